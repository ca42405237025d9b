//! A producer as any user would write one: publishes jobs with confirms, collects replies from its own queue.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};

use super::body::{Body, Response};
use super::within;

/// The address of RabbitMQ's direct reply-to.
pub const DIRECT: &str = "amq.rabbitmq.reply-to";

/// A job before it is published.
#[derive(Clone)]
pub struct Job {
    exchange: String,
    routing_key: String,
    properties: BasicProperties,
    headers: FieldTable,
    body: Vec<u8>,
    reply: ReplyTo,
}

#[derive(Clone)]
enum ReplyTo {
    Producer,
    Queue(String),
    Nobody,
}

impl Job {
    pub fn new(exchange: &str, model: &str, body: Body) -> Self {
        let properties = BasicProperties::default().with_content_type(body.content_type.into());
        let mut headers = FieldTable::default();
        if let Some(bytes) = body.header_bytes {
            headers.insert("inference-header-content-length".into(), bytes);
        }
        Self {
            exchange: exchange.to_owned(),
            routing_key: model.to_owned(),
            properties,
            headers,
            body: body.bytes,
            reply: ReplyTo::Producer,
        }
    }

    /// Goes straight to `queue` instead of through the front door.
    pub fn straight_to(mut self, queue: &str) -> Self {
        self.exchange.clear();
        queue.clone_into(&mut self.routing_key);
        self
    }

    pub fn header(mut self, name: &str, value: AMQPValue) -> Self {
        self.headers.insert(name.into(), value);
        self
    }

    pub fn text_header(self, name: &str, value: &str) -> Self {
        self.header(name, AMQPValue::LongString(value.into()))
    }

    /// Asks for the time split, which also tells how many rows ran together.
    pub fn timed(self) -> Self {
        self.header("inferq-timing", AMQPValue::Boolean(true))
    }

    /// A deadline in Unix milliseconds.
    pub fn deadline(self, unix_ms: i64) -> Self {
        self.header("inferq-deadline", AMQPValue::LongLongInt(unix_ms))
    }

    pub fn correlation_id(mut self, id: &str) -> Self {
        self.properties = self.properties.with_correlation_id(id.into());
        self
    }

    pub fn message_id(mut self, id: &str) -> Self {
        self.properties = self.properties.with_message_id(id.into());
        self
    }

    /// Sets the property `type`.
    pub fn kind(mut self, kind: &str) -> Self {
        self.properties = self.properties.with_type(kind.into());
        self
    }

    pub fn content_encoding(mut self, encoding: &str) -> Self {
        self.properties = self.properties.with_content_encoding(encoding.into());
        self
    }

    pub fn timestamp(mut self, unix_s: u64) -> Self {
        self.properties = self.properties.with_timestamp(unix_s);
        self
    }

    pub fn persistent(mut self) -> Self {
        self.properties = self.properties.with_delivery_mode(2);
        self
    }

    pub fn fire_and_forget(mut self) -> Self {
        self.reply = ReplyTo::Nobody;
        self
    }

    pub fn reply_to(mut self, queue: &str) -> Self {
        self.reply = ReplyTo::Queue(queue.to_owned());
        self
    }

    pub fn bytes(&self) -> &[u8] {
        &self.body
    }
}

/// What the broker did with a published job.
pub enum Routed {
    Yes,
    Returned(Box<BasicReturnMessage>),
}

/// A connection, a channel with confirms, an exclusive reply queue and its consumer.
pub struct Producer {
    channel: Channel,
    reply_queue: String,
    arriving: Consumer,
    arrived: Vec<Reply>,
    // Last, so that the channel goes first.
    _connection: Option<Connection>,
}

impl Producer {
    pub async fn connect(uri: &str) -> Self {
        let connect = Connection::connect(uri, ConnectionProperties::default());
        let connection = within("a connection", connect)
            .await
            .expect("the broker accepts connections");
        let mut producer = Self::on(&connection).await;
        producer._connection = Some(connection);
        producer
    }

    /// One more producer on a connection that exists.
    pub async fn on(connection: &Connection) -> Self {
        let channel = open(connection).await;
        let exclusive = QueueDeclareOptions {
            exclusive: true,
            ..QueueDeclareOptions::default()
        };
        let declare = channel.queue_declare("".into(), exclusive, FieldTable::default());
        let queue = within("a reply queue", declare).await;
        let reply_queue = queue.expect("an exclusive queue").name().to_string();
        Self::listen(channel, reply_queue).await
    }

    /// A producer that gets its replies through direct reply-to.
    pub async fn direct(uri: &str) -> Self {
        let connect = Connection::connect(uri, ConnectionProperties::default());
        let connection = within("a connection", connect)
            .await
            .expect("the broker accepts connections");
        let channel = open(&connection).await;
        let mut producer = Self::listen(channel, DIRECT.to_owned()).await;
        producer._connection = Some(connection);
        producer
    }

    /// A producer that takes its replies from the queue `name`, where they waited for it.
    pub async fn at_queue(uri: &str, name: &str) -> Self {
        let connect = Connection::connect(uri, ConnectionProperties::default());
        let connection = within("a connection", connect)
            .await
            .expect("the broker accepts connections");
        let mut producer = Self::at(&connection, name).await;
        producer._connection = Some(connection);
        producer
    }

    /// The same on a connection that exists.
    pub async fn at(connection: &Connection, name: &str) -> Self {
        Self::listen(open(connection).await, name.to_owned()).await
    }

    async fn listen(channel: Channel, reply_queue: String) -> Self {
        let options = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let queue = ShortString::from(reply_queue.as_str());
        let consume = channel.basic_consume(queue, "".into(), options, FieldTable::default());
        let consumer = within("a consumer", consume).await;
        let arriving = consumer.expect("the reply queue can be consumed");
        Self {
            channel,
            reply_queue,
            arriving,
            arrived: Vec::new(),
            _connection: None,
        }
    }

    pub fn reply_queue(&self) -> &str {
        &self.reply_queue
    }

    /// Publishes a job that must be routed; returns its correlation id.
    pub async fn send(&self, job: Job) -> String {
        self.send_all([job]).await.remove(0)
    }

    /// Publishes jobs that must be routed, then waits for all confirms; returns their correlation ids.
    pub async fn send_all(&self, jobs: impl IntoIterator<Item = Job>) -> Vec<String> {
        let mut ids = Vec::new();
        let mut confirms = Vec::new();
        for job in jobs {
            let (job, id) = self.address(job);
            confirms.push(self.put(job).await);
            ids.push(id);
        }
        for confirm in confirms {
            let confirmation = within("a publisher confirm", confirm)
                .await
                .expect("the channel stays open");
            assert_eq!(confirmation, Confirmation::Ack(None), "the job was not taken");
        }
        ids
    }

    /// Publishes one job and tells what became of it; `None` if the connection broke before the confirm.
    pub async fn try_send(&self, job: Job) -> Option<Routed> {
        let (job, _) = self.address(job);
        let Job {
            exchange,
            routing_key,
            body,
            ..
        } = &job;
        let publish = self.channel.basic_publish(
            exchange.as_str().into(),
            routing_key.as_str().into(),
            BasicPublishOptions {
                mandatory: true,
                ..BasicPublishOptions::default()
            },
            body,
            job.properties.clone().with_headers(job.headers.clone()),
        );
        let confirm = within("a publish", publish).await.ok()?;
        match within("a publisher confirm", confirm).await.ok()? {
            Confirmation::Ack(None) => Some(Routed::Yes),
            Confirmation::Ack(Some(returned)) => Some(Routed::Returned(Box::new(returned))),
            Confirmation::Nack(_) | Confirmation::NotRequested => None,
        }
    }

    /// Publishes a job and waits for its reply.
    pub async fn call(&mut self, job: Job) -> Reply {
        let id = self.send(job).await;
        self.reply(&id).await
    }

    /// Waits for the reply to the job with this correlation id; other replies are kept.
    pub async fn reply(&mut self, correlation_id: &str) -> Reply {
        loop {
            let known = |reply: &Reply| reply.correlation_id().as_deref() == Some(correlation_id);
            if let Some(index) = self.arrived.iter().position(known) {
                return self.arrived.remove(index);
            }
            let next = self.next(&format!("the reply to {correlation_id}")).await;
            self.arrived.push(next);
        }
    }

    /// Waits for one more reply, and keeps it for later: by then the worker is in the middle of its work.
    pub async fn hear_one(&mut self) {
        let reply = self.next("one more reply").await;
        self.arrived.push(reply);
    }

    /// Puts replies back that were taken for another purpose.
    pub fn keep(&mut self, replies: impl IntoIterator<Item = Reply>) {
        self.arrived.extend(replies);
    }

    /// The only reply in the queue.
    pub async fn remaining_one(&mut self) -> Reply {
        let mut replies = self.remaining().await;
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies.remove(0)
    }

    /// Waits for any reply.
    async fn any_reply(&mut self) -> Reply {
        if self.arrived.is_empty() {
            self.next("any reply").await
        } else {
            self.arrived.remove(0)
        }
    }

    /// Waits for a reply to each of `correlation_ids`; a second reply to one of them is put beside the first.
    pub async fn replies(&mut self, correlation_ids: &[String]) -> BTreeMap<String, Vec<Reply>> {
        let mut replies: BTreeMap<String, Vec<Reply>> = BTreeMap::new();
        while correlation_ids.iter().any(|id| !replies.contains_key(id)) {
            let reply = self.any_reply().await;
            let id = reply.correlation_id().expect("a reply carries its correlation id");
            replies.entry(id).or_default().push(reply);
        }
        replies
    }

    /// Everything that lies in the reply queue by now, up to a message of our own that follows it.
    pub async fn remaining(&mut self) -> Vec<Reply> {
        let last = unique();
        let body = Body {
            content_type: "text/plain",
            bytes: Vec::new(),
            header_bytes: None,
        };
        let mark = Job::new("", &self.reply_queue, body)
            .correlation_id(&last)
            .fire_and_forget();
        self.send(mark).await;
        let mut rest = std::mem::take(&mut self.arrived);
        loop {
            let reply = self.next("the end of the reply queue").await;
            if reply.correlation_id().as_deref() == Some(&last) {
                return rest;
            }
            rest.push(reply);
        }
    }

    async fn next(&mut self, event: &str) -> Reply {
        let delivery = within(event, self.arriving.next()).await;
        let delivery = delivery.unwrap_or_else(|| panic!("the reply consumer ended before {event}"));
        let delivery = delivery.unwrap_or_else(|error| panic!("{error} before {event}"));
        Reply {
            properties: delivery.properties,
            body: delivery.data,
        }
    }

    /// Fills in where the reply goes, and a correlation id if the job has none.
    fn address(&self, mut job: Job) -> (Job, String) {
        let id = match job.properties.correlation_id() {
            Some(id) => id.to_string(),
            None => unique(),
        };
        job = job.correlation_id(&id);
        let queue = match &job.reply {
            ReplyTo::Producer => Some(self.reply_queue.clone()),
            ReplyTo::Queue(queue) => Some(queue.clone()),
            ReplyTo::Nobody => None,
        };
        if let Some(queue) = queue {
            job.properties = job.properties.with_reply_to(queue.into());
        }
        (job, id)
    }

    async fn put(&self, job: Job) -> impl Future<Output = lapin::Result<Confirmation>> + use<> {
        let publish = self.channel.basic_publish(
            job.exchange.into(),
            job.routing_key.into(),
            BasicPublishOptions {
                mandatory: true,
                ..BasicPublishOptions::default()
            },
            &job.body,
            job.properties.with_headers(job.headers),
        );
        within("a publish", publish).await.expect("the channel stays open")
    }
}

async fn open(connection: &Connection) -> Channel {
    let channel = within("a channel", connection.create_channel())
        .await
        .expect("the broker opens channels");
    within("confirms", channel.confirm_select(ConfirmSelectOptions::default()))
        .await
        .expect("the broker confirms");
    channel
}

/// An id that no other job of this process has.
pub fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("id-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A message from a reply queue.
#[derive(Debug, Clone)]
pub struct Reply {
    pub properties: BasicProperties,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn correlation_id(&self) -> Option<String> {
        self.properties.correlation_id().as_ref().map(ToString::to_string)
    }

    pub fn message_id(&self) -> Option<String> {
        self.properties.message_id().as_ref().map(ToString::to_string)
    }

    pub fn content_type(&self) -> String {
        self.properties
            .content_type()
            .as_ref()
            .expect("a reply has a content type")
            .to_string()
    }

    /// A header as text, whatever its AMQP type.
    pub fn header(&self, name: &str) -> Option<String> {
        headers_of(&self.properties).get(name).map(text_of)
    }

    pub fn number(&self, name: &str) -> i64 {
        let text = self
            .header(name)
            .unwrap_or_else(|| panic!("no header {name} in {:?}", self.properties));
        text.parse()
            .unwrap_or_else(|_| panic!("header {name} is {text}, not a number"))
    }

    pub fn status(&self) -> String {
        self.header("inferq-status").expect("a reply has a status")
    }

    /// The decoded result of a job that went well.
    pub fn response(&self) -> Response {
        assert_eq!(self.status(), "OK", "{:?}", self.failure());
        let json_bytes = self
            .header("inference-header-content-length")
            .map(|text| text.parse().expect("a length"));
        Response::decode(&self.content_type(), &self.body, json_bytes)
    }

    /// Sentence and code of an error reply; nothing if it is none.
    pub fn failure(&self) -> Option<(String, String)> {
        super::body::failure(&self.content_type(), &self.body)
    }

    /// Checks that this is an error reply in the form of the contract, and returns its sentence.
    pub fn error(&self, status: &str) -> String {
        assert_eq!(self.status(), status, "{:?}", self.failure());
        let kind = self.properties.kind().as_ref().map(ToString::to_string);
        assert_eq!(kind.as_deref(), Some("inferq.error"));
        let (sentence, code) = self.failure().expect("an error reply has a sentence and a code");
        assert_eq!(code, status, "the body's code is the header's");
        sentence
    }
}

/// The header table, by name.
pub fn headers_of(properties: &BasicProperties) -> BTreeMap<String, AMQPValue> {
    let table = properties.headers().iter().flat_map(FieldTable::inner);
    table.map(|(name, value)| (name.to_string(), value.clone())).collect()
}

/// A header's value as text.
pub fn text_of(value: &AMQPValue) -> String {
    match value {
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Timestamp(value) => value.to_string(),
        AMQPValue::ShortString(value) => value.to_string(),
        AMQPValue::LongString(value) => value.to_string(),
        other => format!("{other:?}"),
    }
}
