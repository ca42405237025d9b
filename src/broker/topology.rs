//! The exchanges and queues of a model (DESIGN, section 2.1), declared or checked.

use std::fmt;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};
use tracing::warn;

use super::backoff::Failure;
use super::permission::{Act, Lacking};
use super::{BrokerError, failure_of};
use crate::config::{QueueType, TopologyConfig, TopologyMode};

/// Names of everything that belongs to one prefix.
#[derive(Debug, Clone)]
pub struct Names {
    prefix: String,
}

impl Names {
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    /// The front door: producers publish here, with the model's name as routing key.
    pub fn exchange(&self) -> ShortString {
        short(self.prefix.clone())
    }

    pub fn dead_exchange(&self) -> ShortString {
        short(format!("{}.dead", self.prefix))
    }

    pub fn queue(&self, model: &str) -> ShortString {
        short(format!("{}.{model}", self.prefix))
    }

    pub fn dead_queue(&self, model: &str) -> ShortString {
        short(format!("{}.{model}.dead", self.prefix))
    }
}

/// Prefix and model names are limited when they are read, so that every name fits AMQP's 255 bytes.
fn short(name: String) -> ShortString {
    ShortString::try_new(name).unwrap_or_default()
}

/// An exchange or a queue, as it should be.
#[derive(Debug, Clone)]
pub struct Part {
    pub kind: Kind,
    pub name: ShortString,
    pub arguments: FieldTable,
    /// Where a queue gets its messages from.
    pub binding: Option<Binding>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A direct one.
    Exchange,
    Queue,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Exchange => "exchange",
            Self::Queue => "queue",
        })
    }
}

#[derive(Debug, Clone)]
pub struct Binding {
    pub exchange: ShortString,
    pub routing_key: ShortString,
}

/// All that the models need, in the order in which it is declared.
pub fn parts<'a>(config: &TopologyConfig, models: impl IntoIterator<Item = &'a str>) -> Vec<Part> {
    let names = Names::new(&config.prefix);
    let exchange = |name| Part {
        kind: Kind::Exchange,
        name,
        arguments: FieldTable::default(),
        binding: None,
    };
    let mut parts = vec![exchange(names.exchange()), exchange(names.dead_exchange())];
    for model in models {
        let queue = |name, exchange, arguments| Part {
            kind: Kind::Queue,
            name,
            arguments,
            binding: Some(Binding {
                exchange,
                routing_key: short(model.to_owned()),
            }),
        };
        // Dead letters first: a job queue must never be without the place its refused jobs go to.
        parts.push(queue(
            names.dead_queue(model),
            names.dead_exchange(),
            dead_queue_arguments(config),
        ));
        parts.push(queue(
            names.queue(model),
            names.exchange(),
            job_queue_arguments(config, &names, model),
        ));
    }
    parts
}

impl Part {
    fn what(&self) -> String {
        format!("{} `{}`", self.kind, self.name)
    }

    /// Asks whether it exists, which needs no permission and compares nothing.
    ///
    /// # Errors
    /// `BrokerError::Unusable` if it does not exist.
    pub async fn find(&self, connection: &Connection) -> Result<(), BrokerError> {
        self.declared(connection, true).await
    }

    /// Makes it, or has the broker compare what is there.
    ///
    /// # Errors
    /// `BrokerError::Topology` if it exists with other arguments, `BrokerError::Forbidden` if it may not be declared.
    pub async fn declare(&self, connection: &Connection) -> Result<(), BrokerError> {
        self.declared(connection, false).await
    }

    async fn declared(&self, connection: &Connection, passive: bool) -> Result<(), BrokerError> {
        let channel = connection.create_channel().await?;
        let act = match self.kind {
            Kind::Exchange => Act::DeclareExchange,
            Kind::Queue => Act::DeclareQueue,
        };
        if let Err(error) = declare(&channel, self, &Flags::default(), passive).await {
            let mut refused = refusal(self.what(), act, error);
            self.decide(connection, &mut refused).await;
            return Err(refused);
        }
        close(&channel).await;
        Ok(())
    }

    /// Finds out which permission is missing, where the broker left it open.
    async fn decide(&self, connection: &Connection, refused: &mut BrokerError) {
        if let BrokerError::Forbidden {
            lacking: Some(lacking), ..
        } = refused
            && lacking.is_ambiguous()
        {
            let must_be_read = self.arguments.contains_key("x-dead-letter-exchange");
            let may_be_configured = must_be_read && self.may_be_configured(connection).await;
            lacking.decide(!may_be_configured);
        }
    }

    /// Asks for a queue of a type that there is not, which makes nothing: it is refused for that, or before for want of the
    /// permission.
    async fn may_be_configured(&self, connection: &Connection) -> bool {
        let mut impossible = self.clone();
        impossible.arguments = FieldTable::default();
        impossible.arguments.insert("x-queue-type".into(), text("none-such"));
        let Ok(channel) = connection.create_channel().await else {
            return false;
        };
        let declared = declare(&channel, &impossible, &Flags::default(), false).await;
        declared.is_err_and(|error| failure_of(&error) != Failure::Refusal)
    }

    /// Binds a queue to its exchange; where that is so already, nothing changes.
    ///
    /// # Errors
    /// `BrokerError::Forbidden` if it may not be bound.
    pub async fn bind(&self, connection: &Connection) -> Result<(), BrokerError> {
        let Some(binding) = self.binding.clone() else {
            return Ok(());
        };
        let channel = connection.create_channel().await?;
        let options = QueueBindOptions::default();
        channel
            .queue_bind(
                self.name.clone(),
                binding.exchange,
                binding.routing_key,
                options,
                FieldTable::default(),
            )
            .await
            .map_err(|error| refusal(self.what(), Act::Bind, error))?;
        close(&channel).await;
        Ok(())
    }
}

/// What of a part is no argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flags {
    pub durable: bool,
    pub auto_delete: bool,
    pub internal: bool,
    /// Of an exchange.
    pub kind: ExchangeKind,
}

impl Default for Flags {
    fn default() -> Self {
        Self {
            durable: true,
            auto_delete: false,
            internal: false,
            kind: ExchangeKind::Direct,
        }
    }
}

pub(super) async fn declare(channel: &Channel, part: &Part, flags: &Flags, passive: bool) -> Result<(), lapin::Error> {
    let (durable, auto_delete) = (flags.durable, flags.auto_delete);
    match part.kind {
        Kind::Exchange => {
            let options = ExchangeDeclareOptions {
                passive,
                durable,
                auto_delete,
                internal: flags.internal,
                ..ExchangeDeclareOptions::default()
            };
            let (name, kind) = (part.name.clone(), flags.kind.clone());
            channel
                .exchange_declare(name, kind, options, part.arguments.clone())
                .await
        }
        Kind::Queue => {
            let options = QueueDeclareOptions {
                passive,
                durable,
                auto_delete,
                ..QueueDeclareOptions::default()
            };
            let (name, arguments) = (part.name.clone(), part.arguments.clone());
            channel.queue_declare(name, options, arguments).await.map(drop)
        }
    }
}

/// What the broker has does not fit what the worker needs.
#[derive(Debug)]
pub struct Mismatch {
    what: String,
    pub(super) said: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} does not fit: {}; delete it, change topology.* to fit it, or set topology.mode to \"off\" \
             (`inferq topology check` lists every difference)",
            self.what, self.said
        )
    }
}

/// Declares or checks all that the models need, on channels of its own: a refusal closes the channel it happens on.
///
/// # Errors
/// `BrokerError::Topology` if something exists with other arguments, `BrokerError::Unusable` if it is only checked and does
/// not exist, `BrokerError::Forbidden` if it may not be used: that may still come.
pub async fn prepare(
    connection: &Connection,
    config: &TopologyConfig,
    models: impl IntoIterator<Item = &str>,
) -> Result<(), BrokerError> {
    match config.mode {
        TopologyMode::Off => {}
        TopologyMode::Declare => {
            for part in parts(config, models) {
                part.declare(connection).await?;
                part.bind(connection).await?;
            }
        }
        TopologyMode::Check => check(connection, &parts(config, models)).await?,
    }
    Ok(())
}

/// Existence first, since that changes nothing. What exists is then declared, which creates nothing any more and has the
/// broker compare the arguments; a user who may configure nothing cannot have them compared.
async fn check(connection: &Connection, parts: &[Part]) -> Result<(), BrokerError> {
    let mut not_compared = Vec::new();
    for part in parts {
        part.find(connection).await?;
        match part.declare(connection).await {
            Err(BrokerError::Forbidden { what, .. }) => not_compared.push(what),
            compared => compared?,
        }
    }
    if !not_compared.is_empty() {
        warn!(
            "not compared with what they should be, since the user may not configure them: {}",
            not_compared.join(", ")
        );
    }
    Ok(())
}

/// A channel error is the broker's verdict on this very thing; anything else is the connection's trouble.
///
/// Other arguments stay as they are until someone acts. A missing queue or permission may come: those are retried.
pub fn refusal(what: String, act: Act, error: lapin::Error) -> BrokerError {
    let ErrorKind::ProtocolError(protocol) = error.kind() else {
        return error.into();
    };
    let said = protocol.get_message().to_string();
    match protocol.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => BrokerError::Forbidden {
            what,
            lacking: Lacking::of(&said, act).map(Box::new),
            said,
        },
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => BrokerError::Unusable { what, said },
        AMQPErrorKind::Soft(_) => BrokerError::Topology(Mismatch { what, said }),
        AMQPErrorKind::Hard(_) => error.into(),
    }
}

pub(super) async fn close(channel: &Channel) {
    // A channel that will not close dies with its connection; nothing depends on it.
    let _ = channel.close(200, ShortString::from("done")).await;
}

fn job_queue_arguments(config: &TopologyConfig, names: &Names, model: &str) -> FieldTable {
    let mut arguments = queue_type(config.queue_type);
    arguments.insert("x-dead-letter-exchange".into(), text(names.dead_exchange().as_str()));
    arguments.insert("x-dead-letter-routing-key".into(), text(model));
    arguments.insert("x-overflow".into(), text("reject-publish"));
    match config.queue_type {
        QueueType::Quorum => {
            arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
            arguments.insert(
                "x-delivery-limit".into(),
                AMQPValue::LongLongInt(i64::from(config.delivery_limit)),
            );
        }
        // A classic queue counts no deliveries and dead-letters at most once.
        QueueType::Classic => {}
    }
    arguments
}

fn dead_queue_arguments(config: &TopologyConfig) -> FieldTable {
    let mut arguments = queue_type(config.queue_type);
    arguments.insert("x-overflow".into(), text("reject-publish"));
    match config.queue_type {
        QueueType::Quorum => {
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DEAD_DELIVERY_LIMIT));
        }
        QueueType::Classic => {}
    }
    arguments
}

/// As good as none. A letter that is looked at and put back counts as delivered, and since RabbitMQ 4.0 a quorum queue
/// deletes what came back 20 times unless it says otherwise. The word for "none", -1, makes 3.10 delete it at once.
const DEAD_DELIVERY_LIMIT: i64 = 0x7fff_ffff;

fn queue_type(queue_type: QueueType) -> FieldTable {
    let mut arguments = FieldTable::default();
    let name = match queue_type {
        QueueType::Quorum => "quorum",
        QueueType::Classic => "classic",
    };
    arguments.insert("x-queue-type".into(), text(name));
    arguments
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
