//! The producer's side: sends jobs and matches their answers (DESIGN, section 2).
//!
//! One connection and one channel for everything; the task in `calls` is the only one that publishes on it. Nothing is
//! reconnected: when the broker is lost every call ends in [`CallError::Lost`], and the caller connects anew.

mod calls;
pub mod latency;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::options::{BasicConsumeOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, Consumer, ErrorKind, ExchangeKind};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use self::calls::{Call, Calls};
use crate::broker::BrokerError;
use crate::broker::connection::{self, Connected};
use crate::broker::topology::Names;
use crate::config::BrokerConfig;
use crate::wire::error::WireError;
use crate::wire::request::{RequestEncoding, RequestedOutput, encode_request};
use crate::wire::status::Status;
use crate::wire::tensor::Tensor;

/// A connected producer.
///
/// Many jobs, answered in their order, with at most 64 of them on the way:
/// ```no_run
/// # async fn example(client: &inferq::client::Client, jobs: Vec<inferq::client::Job>) {
/// use futures_util::stream::{self, StreamExt};
///
/// let mut answers = stream::iter(jobs).map(|job| client.call(job)).buffered(64);
/// while let Some(answer) = answers.next().await {
///     println!("{answer:?}");
/// }
/// # }
/// ```
pub struct Client {
    calls: mpsc::Sender<Call>,
    task: JoinHandle<()>,
    connection: Connected,
    reply_to: ShortString,
    answer_timeout: Duration,
}

/// One prediction job: any number of rows for one model.
#[derive(Debug, Clone, Default)]
pub struct Job {
    pub model: String,
    /// Pins a version; `None` is the one that serves by default.
    pub version: Option<String>,
    /// An empty name is left out of the job, which a model with a single input allows.
    pub inputs: Vec<Tensor>,
    /// Names of the outputs wanted; none means all.
    pub outputs: Vec<String>,
    /// Asks the worker how it spent the time, and in how big a batch.
    pub timing: bool,
}

/// What came back for one job.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub model_version: String,
    pub outputs: Vec<Tensor>,
    /// From handing the job to the broker until its answer was here.
    pub latency: Duration,
    /// Rows of the batch that the job ran in; only if the job asked for timing.
    pub batch_rows: Option<u64>,
}

impl Client {
    /// Connects, and makes a reply queue that nobody else sees.
    ///
    /// `prefix` is the workers' `topology.prefix`. A job that has no answer after `answer_timeout` is given up, and the
    /// workers are told so by its deadline: what nobody waits for is not computed.
    /// # Errors
    /// The broker cannot be reached or refuses us, or no worker has ever declared the exchange of `prefix`.
    pub async fn connect(broker: &BrokerConfig, prefix: &str, answer_timeout: Duration) -> Result<Self, ClientError> {
        let connection = connection::connect(broker, "inferq producer").await?;
        let exchange = Names::new(prefix).exchange();
        find_exchange(&connection, &exchange).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let (reply_to, replies) = consume_replies(&channel).await?;
        let (calls, receiver) = mpsc::channel(CALLS_MAX);
        let task = Calls::new(channel, replies, exchange, answer_timeout);
        Ok(Self {
            calls,
            task: tokio::spawn(task.run(receiver)),
            connection,
            reply_to,
            answer_timeout,
        })
    }

    /// Sends one job and waits for its answer. Many may wait at once; how many is the caller's business.
    ///
    /// # Errors
    /// [`CallError`]; other calls are touched by none but `Lost`.
    pub async fn call(&self, job: Job) -> Result<Answer, CallError> {
        let properties = self.properties(&job);
        let requested: Vec<_> = job.outputs.into_iter().map(requested_output).collect();
        let encoded = encode_request(RequestEncoding::MsgPack, None, &job.inputs, &requested);
        let (answered, answer) = oneshot::channel();
        let call = Call {
            properties: properties.with_content_type(encoded.content_type.into()),
            body: encoded.body,
            model: job.model,
            answered,
        };
        // Both ends go away only with the task, which answers everything it has taken.
        let gone = |_| CallError::Lost("the client was closed".to_owned());
        self.calls.send(call).await.map_err(|_| gone(()))?;
        answer.await.map_err(|_| gone(()))?
    }

    fn properties(&self, job: &Job) -> BasicProperties {
        let mut headers = FieldTable::default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let deadline = (now + self.answer_timeout).as_millis();
        let deadline = i64::try_from(deadline).unwrap_or(i64::MAX);
        headers.insert("inferq-deadline".into(), AMQPValue::LongLongInt(deadline));
        if let Some(version) = &job.version {
            let version = AMQPValue::LongString(version.as_str().into());
            headers.insert("inferq-model-version".into(), version);
        }
        if job.timing {
            headers.insert("inferq-timing".into(), AMQPValue::Boolean(true));
        }
        BasicProperties::default()
            .with_reply_to(self.reply_to.clone())
            .with_headers(headers)
    }

    /// Waits a moment for the answers on their way, so that they do not become dead letters, and disconnects.
    pub async fn close(self) {
        drop(self.calls);
        let _ = tokio::time::timeout(GOODBYE, self.task).await;
        let _ = tokio::time::timeout(GOODBYE, self.connection.close(200, "bye".into())).await;
    }
}

fn requested_output(name: String) -> RequestedOutput {
    RequestedOutput { name, binary: None }
}

/// Looks for the front door on a channel of its own: a refusal closes the channel it happens on.
async fn find_exchange(connection: &Connection, exchange: &ShortString) -> Result<(), ClientError> {
    let channel = connection.create_channel().await?;
    let passive = ExchangeDeclareOptions {
        passive: true,
        ..ExchangeDeclareOptions::default()
    };
    let looked = channel
        .exchange_declare(exchange.clone(), ExchangeKind::Direct, passive, FieldTable::default())
        .await;
    match looked {
        Ok(()) => Ok(channel.close(200, "done".into()).await?),
        Err(error) => Err(match error.kind() {
            ErrorKind::ProtocolError(said) if *said.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => {
                ClientError::NoExchange(exchange.to_string())
            }
            _ => error.into(),
        }),
    }
}

/// Replies need no acks: their queue dies with this connection, and no more of them are on the way than calls wait.
async fn consume_replies(channel: &Channel) -> Result<(ShortString, Consumer), ClientError> {
    let own = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let queue = channel
        .queue_declare(ShortString::default(), own, FieldTable::default())
        .await?;
    let options = BasicConsumeOptions {
        no_ack: true,
        exclusive: true,
        ..BasicConsumeOptions::default()
    };
    let name = queue.name().clone();
    let replies = channel
        .basic_consume(name.clone(), ShortString::default(), options, FieldTable::default())
        .await?;
    Ok((name, replies))
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("the broker has no exchange `{0}`: no worker has been started on it with this `topology.prefix`")]
    NoExchange(String),
    #[error("the broker does not let us make a reply queue")]
    Lapin(#[from] lapin::Error),
}

/// Why a job has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("there is no queue for model `{0}`: is a worker serving it?")]
    UnknownModel(String),
    #[error("the queue of model `{0}` takes no more jobs")]
    QueueFull(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The worker's own words.
    #[error("{code}: {error}")]
    Refused { code: Status, error: String },
    #[error("the reply cannot be read")]
    Reply(#[source] WireError),
    #[error("lost the broker: {0}")]
    Lost(String),
}

/// Calls that are encoded and not yet published: enough to publish many at once.
const CALLS_MAX: usize = 64;
const GOODBYE: Duration = Duration::from_secs(2);
