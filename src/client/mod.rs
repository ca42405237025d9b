//! The producer's side: sends jobs and matches their answers (DESIGN, section 2).
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use inferq::client::Client;
//! use ndarray::{Array2, ArrayD};
//!
//! let client = Client::connect("amqp://guest:guest@127.0.0.1:5672/%2f").await?;
//! let images = Array2::<f32>::zeros((8, 64));
//! let probabilities: ArrayD<f32> = client.predict_array("digits", &images).await?;
//! assert_eq!(probabilities.shape(), [8, 10]);
//! # Ok(())
//! # }
//! ```
//!
//! A client has one connection, one reply queue and a pool of channels to publish on. When the broker is lost it connects
//! anew, and sends again what has no answer yet, with the same `message_id`; a second copy of a reply is dropped. For whoever
//! cannot wait there is a [`Mailbox`]: a durable queue whose replies are there when he comes back.

mod array;
pub mod latency;
mod mailbox;
mod pending;
mod scatter;
mod session;
mod timing;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Confirmation};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::array::Element;
pub use self::mailbox::{Letter, Mailbox};
pub use self::pending::Strays;
use self::pending::{Number, Pending};
pub use self::scatter::ScatterError;
use self::session::{Dial, Keeper, Session, State};
use self::timing::Stamp;
pub use self::timing::Timing;
use crate::broker::topology::Names;
use crate::broker::turn::Turn;
use crate::broker::{self, BrokerError};
use crate::config::{BrokerConfig, Config, ConfigError};
use crate::wire::error::WireError;
use crate::wire::headers;
use crate::wire::request::{RequestEncoding, RequestedOutput, encode_request};
pub use crate::wire::rows::RowRelation;
use crate::wire::status::Status;
use crate::wire::tensor::{Datatype, Tensor};
use crate::wire::{Encoded, JSON_BYTES_HEADER};

/// A connected producer. Clones are the same client.
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
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    number: AtomicU64,
    pending: Arc<Pending>,
    /// For calls under way.
    room: Semaphore,
    state: watch::Receiver<State>,
    closed: CancellationToken,
    keeper: std::sync::Mutex<Option<JoinHandle<()>>>,
    /// The connection goes with the last clone.
    _closing: DropGuard,
}

/// How a client behaves. The defaults suit a service that calls models.
#[derive(Debug, Clone)]
pub struct Options {
    /// The workers' `topology.prefix`.
    pub prefix: String,
    /// How long a call waits for its answer once there is room for it, unless its job says otherwise. Workers are told by the
    /// job's deadline: what nobody waits for is not computed.
    pub answer_timeout: Duration,
    /// Calls under way at a time. Others wait, and their time has not begun.
    pub in_flight_max: usize,
    /// Channels to publish on. A call has one for as long as it takes to write its job.
    pub channels_max: usize,
    /// How long calls outlive the connection: with no other by then they end in [`CallError::Lost`].
    pub reconnect_for: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prefix: "inferq".to_owned(),
            answer_timeout: Duration::from_secs(60),
            in_flight_max: 1_024,
            channels_max: 16,
            reconnect_for: Duration::from_secs(30),
        }
    }
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
    /// A body that was encoded before, in any of the contract's encodings, in the place of `inputs` and `outputs`: whoever
    /// sends the same rows again and again encodes them once.
    pub encoded: Option<Encoded>,
    /// Asks the worker how it spent the time, and in how big a batch: see [`Answer::timing`].
    pub timing: bool,
    /// How long an answer is of use; `None` is [`Options::answer_timeout`] for a call, and for ever for a mailbox.
    pub timeout: Option<Duration>,
    /// By when a worker must have done it, if that is sooner: what comes too late is refused, and the refusal is waited for.
    pub deadline: Option<Duration>,
    /// The broker's: the higher ones of a queue first. Older brokers know two of them, and begin the higher at 5.
    pub priority: Option<u8>,
    /// Whether job and reply survive a restart of the broker; always, for a mailbox.
    pub persistent: bool,
    /// The job's identity, by which a second copy of it can be told; `None` has one made up.
    pub message_id: Option<String>,
    /// W3C trace context, which the reply carries on.
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
}

impl Job {
    pub fn new(model: &str, inputs: Vec<Tensor>) -> Self {
        Self {
            model: model.to_owned(),
            inputs,
            ..Self::default()
        }
    }
}

/// What came back for one job.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    pub model_version: String,
    pub outputs: Vec<Tensor>,
    /// From handing the job to the broker until its answer was here; zero for one out of a mailbox.
    pub latency: Duration,
    /// Rows of the batch that the job ran in; only if the job asked for timing.
    pub batch_rows: Option<u64>,
    /// Where the time went; only if the job asked for it.
    pub timing: Option<Timing>,
    /// Relation of the rows of the model; `None` from a worker that does not say.
    pub rows: Option<RowRelation>,
    /// Names of the outputs whose first axis counts the rows of the job, where rows are not independent.
    pub row_outputs: Option<Vec<String>>,
}

impl Answer {
    /// Returns true if an output of this answer to a job of `rows` rows has one row for each of them, in their order.
    ///
    /// Where rows are independent every output has, else those that the worker names. Of a worker that says neither, the first
    /// axis decides, though it may have this length by chance.
    pub fn is_by_row(&self, output: &Tensor, rows: usize) -> bool {
        let is_said = match (self.rows, &self.row_outputs) {
            (Some(RowRelation::Independent), _) | (None, None) => true,
            (_, Some(names)) => names.contains(&output.name),
            (Some(RowRelation::Coupled | RowRelation::Unknown), None) => false,
        };
        is_said && output.rows() == Some(rows)
    }
}

impl Client {
    /// Connects to the broker at an `amqp://` or `amqps://` address, or at one of several with commas between, with [`Options`] as
    /// they are by default.
    ///
    /// # Errors
    /// The address is none; the broker cannot be reached or refuses us; or no worker has ever declared the exchange.
    pub async fn connect(uri: &str) -> Result<Self, ClientError> {
        let config = Config::from_overrides(&[("broker.uri", uri.to_owned())])?;
        Self::open(&config.broker, Options::default()).await
    }

    /// Connects as a configuration says, with certificates and secrets from files.
    ///
    /// # Errors
    /// The broker cannot be reached or refuses us, or no worker has ever declared the exchange of `options.prefix`.
    pub async fn open(broker: &BrokerConfig, options: Options) -> Result<Self, ClientError> {
        let mut dial = Dial {
            turn: Turn::default(),
            broker: broker.clone(),
            exchange: Names::new(&options.prefix).exchange(),
            channels_max: options.channels_max,
        };
        let (session, arrivals) = dial.open().await?;
        let pending = Arc::new(Pending::new());
        let (state, watched) = watch::channel(State::Up(session.clone()));
        let closed = CancellationToken::new();
        let keeper = Keeper {
            dial,
            pending: pending.clone(),
            state,
            closed: closed.clone(),
        };
        let keeper = tokio::spawn(keeper.run(session, arrivals));
        Ok(Self {
            shared: Arc::new(Shared {
                room: Semaphore::new(options.in_flight_max.clamp(1, Semaphore::MAX_PERMITS)),
                options,
                number: AtomicU64::new(0),
                pending,
                state: watched,
                _closing: closed.clone().drop_guard(),
                closed,
                keeper: std::sync::Mutex::new(Some(keeper)),
            }),
        })
    }

    /// Runs a model on some inputs and waits for its answer.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn predict(&self, model: &str, inputs: Vec<Tensor>) -> Result<Answer, CallError> {
        self.call(Job::new(model, inputs)).await
    }

    /// Sends one job and waits for its answer.
    ///
    /// # Errors
    /// [`CallError`]; other calls are touched by none but `Lost`.
    pub async fn call(&self, job: Job) -> Result<Answer, CallError> {
        let shared = &*self.shared;
        // Never closed, so that it is always had in the end.
        let _room = shared.room.acquire().await;
        let timeout = job.timeout.unwrap_or(shared.options.answer_timeout);
        let answered = tokio::time::timeout(timeout, shared.answer(job, timeout)).await;
        answered.unwrap_or_else(|_| Err(shared.late(timeout)))
    }

    /// Sends one job whose answer goes to a [`Mailbox`], and returns its `message_id` once the broker has confirmed it: from then
    /// on job and answer survive the end of this process and restarts of the broker.
    ///
    /// # Errors
    /// The broker did not take the job: its model is unknown, its queue is full, or there is no connection for longer than
    /// [`Options::reconnect_for`].
    pub async fn submit(&self, mailbox: &str, mut job: Job) -> Result<String, CallError> {
        let shared = &*self.shared;
        let _room = shared.room.acquire().await;
        job.persistent = true;
        let mailbox = short("the name of a mailbox", mailbox)?;
        let (properties, body, _) = encode(&job, job.timeout);
        let made_up = shared.pending.id(shared.number.fetch_add(1, Ordering::Relaxed));
        let properties = identified(properties, &job, made_up)?.with_reply_to(mailbox.clone());
        let id = properties.message_id().as_ref().map(ToString::to_string);
        let mut tries = Tries::default();
        loop {
            let session = shared.session().await?;
            tries.on(&session)?;
            match session.submit(&mailbox, &job.model, &body, properties.clone()).await {
                Ok(Confirmation::Ack(None) | Confirmation::NotRequested) => return Ok(id.unwrap_or_default()),
                Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))) => {
                    return Err(CallError::UnknownModel(job.model));
                }
                Ok(Confirmation::Nack(None)) => return Err(CallError::QueueFull(job.model)),
                Err(error) => tries.failed(error.to_string()).await,
            }
        }
    }

    /// Opens the mailbox of this name, which is made if there is none.
    ///
    /// # Errors
    /// The broker is lost, or has a queue of this name of another kind.
    pub async fn mailbox(&self, name: &str) -> Result<Mailbox, ClientError> {
        Mailbox::open(self.clone(), name).await
    }

    /// Replies that nobody was waiting for, so far.
    pub fn strays(&self) -> Strays {
        self.shared.pending.strays()
    }

    /// Disconnects. Calls under way end in [`CallError::Lost`].
    pub async fn close(self) {
        self.shared.closed.cancel();
        let keeper = self.shared.keeper.lock().ok().and_then(|mut keeper| keeper.take());
        if let Some(keeper) = keeper {
            let _ = keeper.await;
        }
    }
}

impl Shared {
    /// Publishes until there is an answer: again on every new connection, and with the same ids.
    async fn answer(&self, job: Job, timeout: Duration) -> Result<Answer, CallError> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let (properties, body, unstamped) = encode(&job, Some(timeout));
        let id = self.pending.id(number);
        let properties = identified(properties, &job, id.clone())?.with_correlation_id(id);
        let _expected = Expected {
            pending: &self.pending,
            number,
        };
        let stamp = Stamp {
            sent: Instant::now(),
            unstamped,
        };
        let mut tries = Tries::default();
        loop {
            let session = self.session().await?;
            tries.on(&session)?;
            let answer = self.pending.expect(number, &job.model, stamp);
            let addressed = properties.clone().with_reply_to(session.reply_to.clone());
            if let Err(error) = session.publish(number, &job.model, &body, addressed).await {
                tries.failed(error.to_string()).await;
            } else if let Ok(answered) = answer.await {
                return answered;
            }
        }
    }

    /// The session of the moment, or the next one.
    async fn session(&self) -> Result<Arc<Session>, CallError> {
        let mut state = self.state.clone();
        loop {
            let down = match &*state.borrow_and_update() {
                State::Up(session) => return Ok(session.clone()),
                State::Down(down) => down.clone(),
                State::Closed => return Err(CallError::Lost("the client was closed".to_owned())),
            };
            let up = tokio::time::timeout_at(down.since + self.options.reconnect_for, state.changed()).await;
            // Without a keeper there is no session either.
            if !matches!(up, Ok(Ok(()))) {
                return Err(down.error());
            }
        }
    }

    fn late(&self, timeout: Duration) -> CallError {
        match &*self.state.borrow() {
            State::Down(down) => down.error(),
            State::Up(_) | State::Closed => CallError::Timeout(timeout),
        }
    }
}

/// Forgets a call when its caller does.
struct Expected<'a> {
    pending: &'a Pending,
    number: Number,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.pending.forget(self.number);
    }
}

/// Bounds how often a job is sent on one connection: the broker may close the channel because of that very job.
#[derive(Default)]
struct Tries {
    session: Option<Arc<Session>>,
    count: u32,
    said: Option<String>,
}

impl Tries {
    fn on(&mut self, session: &Arc<Session>) -> Result<(), CallError> {
        if !self.session.as_ref().is_some_and(|last| Arc::ptr_eq(last, session)) {
            self.session = Some(session.clone());
            self.count = 0;
        }
        self.count += 1;
        if self.count > TRIES_MAX {
            let said = self.said.take();
            let said = said.unwrap_or_else(|| "it closes the channel on which the job is published".to_owned());
            return Err(CallError::Lost(said));
        }
        Ok(())
    }

    /// A lost connection is not noticed everywhere at once.
    async fn failed(&mut self, said: String) {
        self.said = Some(said);
        tokio::time::sleep(RETRY_AFTER * self.count).await;
    }
}

/// What a job is published with, but for its ids and where its reply goes; and what its stamp leaves out of the time.
fn encode(job: &Job, timeout: Option<Duration>) -> (BasicProperties, Bytes, Duration) {
    let encoded = job.encoded.clone().unwrap_or_else(|| {
        let requested = job.outputs.iter().cloned();
        let requested: Vec<_> = requested.map(|name| RequestedOutput { name, binary: None }).collect();
        encode_request(RequestEncoding::MsgPack, None, &job.inputs, &requested)
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut headers = headers(job, now, timeout);
    if let Some(bytes) = encoded.json_bytes {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        headers.insert(JSON_BYTES_HEADER.into(), AMQPValue::LongLongInt(bytes));
    }
    let mut properties = BasicProperties::default()
        .with_content_type(encoded.content_type.into())
        // For the time in the queue.
        .with_timestamp(now.as_secs())
        .with_headers(headers);
    if let Some(priority) = job.priority {
        properties = properties.with_priority(priority);
    }
    if job.persistent {
        properties = properties.with_delivery_mode(PERSISTENT);
    }
    let unstamped = Duration::from_nanos(u64::from(now.subsec_nanos() % 1_000_000));
    (properties, encoded.body, unstamped)
}

fn headers(job: &Job, now: Duration, timeout: Option<Duration>) -> FieldTable {
    let mut headers = FieldTable::default();
    let mut text = |name: &str, value: &Option<String>| {
        if let Some(value) = value {
            headers.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
        }
    };
    text("inferq-model-version", &job.version);
    text("traceparent", &job.traceparent);
    text("tracestate", &job.tracestate);
    if let Some(timeout) = timeout.into_iter().chain(job.deadline).min() {
        let deadline = now.saturating_add(timeout);
        headers.insert("inferq-deadline".into(), AMQPValue::LongLongInt(millis(deadline)));
    }
    if job.timing {
        headers.insert("inferq-timing".into(), AMQPValue::Boolean(true));
        // AMQP's own timestamp has whole seconds.
        headers.insert(headers::PUBLISHED_MS.into(), AMQPValue::LongLongInt(millis(now)));
    }
    headers
}

fn millis(since_1970: Duration) -> i64 {
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

/// With the job's own identity, or else a made-up one.
fn identified(properties: BasicProperties, job: &Job, made_up: ShortString) -> Result<BasicProperties, CallError> {
    let own = job
        .message_id
        .as_deref()
        .map(|id| short("a message_id", id))
        .transpose()?;
    Ok(properties.with_message_id(own.unwrap_or(made_up)))
}

fn short(what: &'static str, text: &str) -> Result<ShortString, CallError> {
    let bytes = text.len();
    ShortString::try_new(text).map_err(|_| CallError::TooLong { what, bytes })
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("the broker has no exchange `{0}`: no worker has been started on it with this `topology.prefix`")]
    NoExchange(String),
    #[error("the name of a queue has at most 255 bytes, this one has {0}")]
    QueueName(usize),
    #[error("no pool of channels can be made")]
    Pool(#[from] deadpool::managed::BuildError),
    #[error("the broker does not let us make a reply queue")]
    Lapin(#[from] lapin::Error),
}

impl ClientError {
    /// True of what stays as it is until someone changes the address, the login or a permission.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Broker(error) => error.is_permanent(),
            Self::Lapin(error) => broker::is_permanent(error),
            Self::Config(_) | Self::NoExchange(_) | Self::QueueName(_) | Self::Pool(_) => false,
        }
    }
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
    #[error("the answer is {came}, not {asked} as asked for")]
    Datatype { came: Datatype, asked: Datatype },
    #[error("{what} has at most 255 bytes, this one has {bytes}")]
    TooLong { what: &'static str, bytes: usize },
    #[error("lost the broker: {0}")]
    Lost(String),
    /// A login or a permission that another try would not have either.
    #[error("not allowed by the broker: {0}")]
    Forbidden(String),
    /// Only [`Client::scatter`] ends so.
    #[error(transparent)]
    Scatter(#[from] ScatterError),
}

impl CallError {
    /// The status of a reply, if one came.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

const PERSISTENT: u8 = 2;
const TRIES_MAX: u32 = 4;
const RETRY_AFTER: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_outputs_that_are_said_to_be_rows_are_dealt_out() {
        let y = Tensor::fp32("y", &[4, 1], &[0.0; 4]);
        let answer = |rows, names: Option<&[&str]>| Answer {
            rows,
            row_outputs: names.map(|names| names.iter().map(ToString::to_string).collect()),
            ..Answer::default()
        };

        for (rows, names, expected) in [
            (None, None, true),
            (None, Some(&["z"][..]), false),
            (Some(RowRelation::Independent), Some(&[][..]), true),
            (Some(RowRelation::Coupled), Some(&["z", "y"]), true),
            (Some(RowRelation::Coupled), Some(&["z"]), false),
            (Some(RowRelation::Unknown), None, false),
        ] {
            assert_eq!(answer(rows, names).is_by_row(&y, 4), expected, "{rows:?} {names:?}");
            assert!(!answer(rows, names).is_by_row(&y, 3), "four are not three");
        }
    }
}
