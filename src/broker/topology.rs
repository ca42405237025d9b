//! The exchanges and queues of a model (DESIGN, section 2.1), declared or checked.

use std::fmt;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};

use super::BrokerError;
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

/// What the broker has does not fit what the worker needs.
#[derive(Debug)]
pub struct Mismatch {
    what: String,
    said: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} does not fit: {}; delete it, change topology.* to fit it, or set topology.mode to \"off\"",
            self.what, self.said
        )
    }
}

/// Declares or checks all that the models need, on channels of its own: a refusal closes the channel it happens on.
///
/// # Errors
/// `BrokerError::Topology` if something exists with other arguments, `BrokerError::Unusable` if it is only checked and does
/// not exist, or may not be used: that may still come.
pub async fn prepare(
    connection: &Connection,
    config: &TopologyConfig,
    models: impl IntoIterator<Item = &str>,
) -> Result<(), BrokerError> {
    let passive = match config.mode {
        TopologyMode::Off => return Ok(()),
        TopologyMode::Check => true,
        TopologyMode::Declare => false,
    };
    let names = Names::new(&config.prefix);
    for exchange in [names.exchange(), names.dead_exchange()] {
        let channel = connection.create_channel().await?;
        declare_exchange(&channel, exchange, passive).await?;
        close(&channel).await;
    }
    for model in models {
        let jobs = Queue {
            name: names.queue(model),
            exchange: names.exchange(),
            arguments: job_queue_arguments(config, &names, model),
        };
        let dead = Queue {
            name: names.dead_queue(model),
            exchange: names.dead_exchange(),
            arguments: dead_queue_arguments(config),
        };
        // Dead letters first: a job queue must never be without the place its refused jobs go to.
        for queue in [dead, jobs] {
            let channel = connection.create_channel().await?;
            declare_queue(&channel, queue, short(model.to_owned()), passive).await?;
            close(&channel).await;
        }
    }
    Ok(())
}

struct Queue {
    name: ShortString,
    exchange: ShortString,
    arguments: FieldTable,
}

async fn declare_exchange(channel: &Channel, name: ShortString, passive: bool) -> Result<(), BrokerError> {
    let options = ExchangeDeclareOptions {
        durable: true,
        passive,
        ..ExchangeDeclareOptions::default()
    };
    channel
        .exchange_declare(name.clone(), ExchangeKind::Direct, options, FieldTable::default())
        .await
        .map_err(|error| refusal(format!("exchange `{name}`"), error))
}

async fn declare_queue(
    channel: &Channel,
    queue: Queue,
    routing_key: ShortString,
    passive: bool,
) -> Result<(), BrokerError> {
    let what = format!("queue `{}`", queue.name);
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    if passive {
        let options = QueueDeclareOptions { passive, ..durable };
        channel
            .queue_declare(queue.name.clone(), options, FieldTable::default())
            .await
            .map_err(|error| refusal(what.clone(), error))?;
    }
    // A passive declare asks for existence alone. The queue exists now, so this one creates nothing and has the
    // broker compare the arguments.
    channel
        .queue_declare(queue.name.clone(), durable, queue.arguments)
        .await
        .map_err(|error| refusal(what.clone(), error))?;
    if passive {
        return Ok(());
    }
    channel
        .queue_bind(
            queue.name,
            queue.exchange,
            routing_key,
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .map_err(|error| refusal(what, error))
}

/// A channel error is the broker's verdict on this very thing; anything else is the connection's trouble.
///
/// Other arguments stay as they are until someone acts. A missing queue or permission may come: those are retried.
fn refusal(what: String, error: lapin::Error) -> BrokerError {
    let ErrorKind::ProtocolError(protocol) = error.kind() else {
        return error.into();
    };
    let said = protocol.get_message().to_string();
    match protocol.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED | AMQPSoftError::NOTFOUND) => {
            BrokerError::Unusable { what, said }
        }
        AMQPErrorKind::Soft(_) => BrokerError::Topology(Mismatch { what, said }),
        AMQPErrorKind::Hard(_) => error.into(),
    }
}

async fn close(channel: &Channel) {
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
    arguments
}

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
