//! A test's own corner of a broker: its prefix, and with it its exchanges and queues.

use std::sync::atomic::{AtomicU32, Ordering};

use lapin::options::{BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Queue};

use super::body::Body;
use super::producer::{headers_of, text_of};
use super::worker::Setup;
use super::{Broker, Job, PATIENCE, Producer, eventually, test_models, within};

pub struct Scene {
    /// The administrator's address. The scene's workers and producers come as users that may do no more than they must.
    pub uri: String,
    pub prefix: String,
}

/// A message found in a dead letter queue.
#[derive(Debug)]
pub struct DeadLetter {
    pub properties: BasicProperties,
    pub body: Vec<u8>,
}

impl Scene {
    /// A corner of the broker that all tests share.
    pub fn new() -> Self {
        Self::at(Broker::shared().uri())
    }

    /// A corner of the broker at `uri`.
    pub fn at(uri: &str) -> Self {
        static SCENES: AtomicU32 = AtomicU32::new(0);
        let number = SCENES.fetch_add(1, Ordering::Relaxed);
        Self {
            uri: uri.to_owned(),
            prefix: format!("t{}-{number}", std::process::id()),
        }
    }

    /// A worker of this scene that serves `models`, a comma list, out of the test repository.
    pub fn worker(&self, models: &str) -> Setup {
        Setup::new()
            .repository(&test_models())
            .env("INFERQ_BROKER__URI", as_worker(&self.uri))
            .env("INFERQ_TOPOLOGY__PREFIX", &self.prefix)
            .env("INFERQ_MODELS__LOAD", models)
    }

    /// Lets a worker make the queues of `models` and leave, so that jobs can wait before anybody takes them.
    pub async fn declare(&self, models: &str) {
        self.worker(models).start().await.drain().await;
    }

    pub async fn producer(&self) -> Producer {
        Producer::connect(&as_producer(&self.uri)).await
    }

    /// A job for `model` through the front door.
    pub fn job(&self, model: &str, body: Body) -> Job {
        Job::new(&self.prefix, model, body)
    }

    pub fn queue(&self, model: &str) -> String {
        format!("{}.{model}", self.prefix)
    }

    pub fn dead_queue(&self, model: &str) -> String {
        format!("{}.{model}.dead", self.prefix)
    }

    /// Messages in `queue` that no consumer holds.
    pub async fn waiting(&self, queue: &str) -> u32 {
        let (connection, channel) = self.open().await;
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let declared = declare(&channel, queue, passive, FieldTable::default()).await;
        let count = declared
            .unwrap_or_else(|error| panic!("queue {queue}: {error}"))
            .message_count();
        close(&connection).await;
        count
    }

    /// Whether there is a queue of this name.
    pub async fn exists(&self, queue: &str) -> bool {
        let (connection, channel) = self.open().await;
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let declared = declare(&channel, queue, passive, FieldTable::default()).await;
        close(&connection).await;
        declared.is_ok()
    }

    /// Waits until `queue` holds exactly `count` waiting messages.
    pub async fn until_waiting(&self, queue: &str, count: u32) {
        eventually(&format!("{count} messages in {queue}"), || async {
            (self.waiting(queue).await == count).then_some(())
        })
        .await;
    }

    /// Takes `count` dead letters of `model`, and checks that there are no more.
    pub async fn dead_letters(&self, model: &str, count: usize) -> Vec<DeadLetter> {
        let (connection, channel) = self.open().await;
        let queue = self.dead_queue(model);
        let mut letters = Vec::new();
        while letters.len() < count {
            let event = format!("{count} dead letters in {queue}, of which {} came", letters.len());
            letters.push(eventually(&event, || take(&channel, &queue)).await);
        }
        let more = take(&channel, &queue).await;
        assert!(more.is_none(), "a dead letter too many: {more:?}");
        close(&connection).await;
        letters
    }

    /// Takes the dead letters of `model` that are there by now.
    pub async fn dead_letters_now(&self, model: &str) -> Vec<DeadLetter> {
        let (connection, channel) = self.open().await;
        let mut letters = Vec::new();
        while let Some(letter) = take(&channel, &self.dead_queue(model)).await {
            letters.push(letter);
        }
        close(&connection).await;
        letters
    }

    /// Checks that every job has left: none waits, and none died.
    pub async fn nothing_is_left(&self, model: &str) {
        self.until_waiting(&self.queue(model), 0).await;
        assert_eq!(
            self.waiting(&self.dead_queue(model)).await,
            0,
            "dead letters of {model}"
        );
    }

    /// Declares a durable classic queue, such as replies may wait in while nobody listens.
    pub async fn declare_queue(&self, queue: &str) {
        self.declare_queue_with(queue, []).await;
    }

    /// A durable queue that refuses what comes beyond so many messages.
    pub async fn declare_queue_for(&self, messages: i32, queue: &str) {
        self.declare_queue_with(queue, limited_to(messages)).await;
    }

    /// A durable queue with these arguments.
    pub async fn declare_queue_with<const N: usize>(&self, queue: &str, arguments: [(&str, AMQPValue); N]) {
        let durable = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let connection = self.connection_with(queue, durable, arguments).await;
        close(&connection).await;
    }

    /// A queue that refuses what comes beyond so many messages, and that only the connection which is returned may ask for.
    pub async fn declare_exclusive_queue_for(&self, messages: i32, queue: &str) -> Connection {
        let exclusive = QueueDeclareOptions {
            exclusive: true,
            ..QueueDeclareOptions::default()
        };
        self.connection_with(queue, exclusive, limited_to(messages)).await
    }

    async fn connection_with<const N: usize>(
        &self,
        queue: &str,
        options: QueueDeclareOptions,
        arguments: [(&str, AMQPValue); N],
    ) -> Connection {
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert(name.into(), value);
        }
        let (connection, channel) = self.open().await;
        let declared = declare(&channel, queue, options, table).await;
        declared.unwrap_or_else(|error| panic!("queue {queue}: {error}"));
        connection
    }

    pub async fn delete_queue(&self, queue: &str) {
        let (connection, channel) = self.open().await;
        let delete = channel.queue_delete(queue.into(), QueueDeleteOptions::default());
        let deleted = within("queue.delete", delete).await;
        deleted.unwrap_or_else(|error| panic!("queue {queue}: {error}"));
        close(&connection).await;
    }

    /// A short-lived channel: what goes wrong on it touches nothing else.
    pub async fn open(&self) -> (Connection, Channel) {
        let connect = Connection::connect(&self.uri, ConnectionProperties::default());
        let connection = within("a connection", connect)
            .await
            .expect("the broker accepts connections");
        let channel = within("a channel", connection.create_channel())
            .await
            .expect("the broker opens channels");
        (connection, channel)
    }
}

impl DeadLetter {
    /// A header as text, whatever its AMQP type.
    pub fn header(&self, name: &str) -> Option<String> {
        headers_of(&self.properties).get(name).map(text_of)
    }
}

async fn declare(
    channel: &Channel,
    queue: &str,
    options: QueueDeclareOptions,
    arguments: FieldTable,
) -> lapin::Result<Queue> {
    within("queue.declare", channel.queue_declare(queue.into(), options, arguments)).await
}

/// Ends a connection that nobody needs any more, even one that is lost.
async fn close(connection: &Connection) {
    tokio::time::timeout(PATIENCE, connection.close(200, "done".into()))
        .await
        .ok();
}

async fn take(channel: &Channel, queue: &str) -> Option<DeadLetter> {
    let got = within(
        "basic.get",
        channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }),
    )
    .await;
    let message = got.unwrap_or_else(|error| panic!("queue {queue}: {error}"))?;
    Some(DeadLetter {
        properties: message.delivery.properties,
        body: message.delivery.data,
    })
}

/// The administrator's `uri` with the user in its place that has a worker's permissions.
pub fn as_worker(uri: &str) -> String {
    as_user(uri, "worker")
}

/// The administrator's `uri` with the user in its place that has a producer's permissions.
pub fn as_producer(uri: &str) -> String {
    as_user(uri, "producer")
}

fn limited_to(messages: i32) -> [(&'static str, AMQPValue); 2] {
    let overflow = AMQPValue::LongString("reject-publish".into());
    [("x-max-length", AMQPValue::LongInt(messages)), ("x-overflow", overflow)]
}

/// `scripts/broker` gives these users the administrator's password.
fn as_user(uri: &str, role: &str) -> String {
    let (address, rest) = uri.split_once("://").expect("a URI");
    let (administrator, rest) = rest.split_once(':').expect("a user and a password");
    format!("{address}://{administrator}-{role}:{rest}")
}
