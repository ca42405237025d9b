//! A producer and collectors as a careful user would write them: they reconnect, wait for confirms, and ack what they have
//! written down.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::ledger::{End, Ledger};
use crate::support::{Reply, Request, Tensor};

/// Whom the jobs are for, and where their replies go.
#[derive(Clone)]
pub struct Address {
    /// Through a link of its own, or a comma-separated list of addresses to try in turn.
    pub uri: String,
    pub exchange: String,
    pub model: String,
    pub reply_queues: Vec<String>,
}

/// The rows of job `number`; whole numbers, so that single precision holds each and its answer exactly.
fn rows(number: usize) -> Vec<[f32; 4]> {
    let row = |row| [(number & 0xfff) as f32, (number >> 12) as f32, row as f32, 0.25];
    (0..1 + number % 4).map(row).collect()
}

/// The older version of the model serves some jobs.
fn is_pinned(number: usize) -> bool {
    number.is_multiple_of(5)
}

/// What the model makes of them: `tests/models/make.py`.
fn answer(number: usize) -> Vec<f64> {
    let (factor, offset) = if is_pinned(number) { (2.0, 1.0) } else { (3.0, -1.0) };
    let rows = rows(number);
    let values = rows.iter().flatten();
    values.map(|value| factor * f64::from(*value) + offset).collect()
}

/// Publishes jobs until `stop` fires; so many are under way at once that no worker is ever idle for long.
pub async fn produce(address: Address, ledger: Arc<Ledger>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let producing = async {
            let (_connection, channel) = connect(&address.uri).await?;
            let confirms = channel.confirm_select(ConfirmSelectOptions::default());
            timeout(CONNECT_MAX, confirms)
                .await
                .unwrap_or_else(|_| Err(too_late()))?;
            while !stop.is_cancelled() {
                let room = UNDER_WAY_MAX.saturating_sub(ledger.under_way(None)).min(AT_ONCE);
                if room == 0 {
                    tokio::time::sleep(GLANCE).await;
                } else if !publish(&channel, &address, &ledger, room).await {
                    break;
                }
            }
            Ok::<_, lapin::Error>(())
        };
        let _ = producing.await;
        tokio::time::sleep(GLANCE).await;
    }
}

/// Publishes some jobs and writes down which are confirmed; false if the connection is no good any more.
async fn publish(channel: &Channel, address: &Address, ledger: &Ledger, count: usize) -> bool {
    let jobs: Vec<(usize, usize)> = (0..count).map(|_| ledger.begin()).collect();
    let publishing = async {
        let mut confirms = Vec::with_capacity(count);
        for (number, queue) in &jobs {
            let body = Request::new([Tensor::fp32("x", &rows(*number))]).msgpack().bytes;
            let published = channel.basic_publish(
                address.exchange.as_str().into(),
                address.model.as_str().into(),
                BasicPublishOptions {
                    mandatory: true,
                    ..BasicPublishOptions::default()
                },
                &body,
                properties(*number, &address.reply_queues[*queue]),
            );
            match published.await {
                Ok(confirm) => confirms.push(confirm),
                Err(_) => break,
            }
        }
        join_all(confirms).await
    };
    let confirms = timeout(CONFIRM_MAX, publishing).await.unwrap_or_default();
    let mut good = true;
    for (place, (number, _)) in jobs.iter().enumerate() {
        if let Some(Ok(Confirmation::Ack(None))) = confirms.get(place) {
            ledger.confirmed(*number);
        } else {
            ledger.unknown(*number);
            good = false;
        }
    }
    good
}

fn properties(number: usize, reply_queue: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("inferq-timing".into(), AMQPValue::Boolean(true));
    if is_pinned(number) {
        headers.insert("inferq-model-version".into(), AMQPValue::LongString("1".into()));
    }
    BasicProperties::default()
        .with_content_type("application/msgpack".into())
        .with_delivery_mode(2)
        .with_correlation_id(number.to_string().into())
        .with_message_id(format!("m-{number}").into())
        .with_reply_to(reply_queue.into())
        .with_headers(headers)
}

/// What is read from a queue.
#[derive(Clone, Copy)]
pub enum Kind {
    Replies,
    DeadLetters,
}

/// Reads a queue until `stop` fires, whether or not it exists at the moment, and acks what it has written down.
pub async fn collect(uri: String, queue: String, kind: Kind, ledger: Arc<Ledger>, stop: CancellationToken) {
    let collecting = async {
        loop {
            let _ = read(&uri, &queue, kind, &ledger).await;
            tokio::time::sleep(GLANCE).await;
        }
    };
    tokio::select! {
        () = collecting => {}
        () = stop.cancelled() => {}
    }
}

async fn read(uri: &str, queue: &str, kind: Kind, ledger: &Ledger) -> lapin::Result<()> {
    let (_connection, channel) = connect(uri).await?;
    channel.basic_qos(500, BasicQosOptions::default()).await?;
    let consuming = channel.basic_consume(
        queue.into(),
        "".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let mut arriving = consuming.await?;
    while let Some(delivery) = arriving.next().await {
        let delivery = delivery?;
        let (tag, again) = (delivery.delivery_tag, delivery.redelivered);
        note(delivery, again, kind, ledger);
        channel.basic_ack(tag, BasicAckOptions::default()).await?;
    }
    Ok(())
}

fn note(delivery: Delivery, again: bool, kind: Kind, ledger: &Ledger) {
    let reply = Reply {
        properties: delivery.properties,
        body: delivery.data,
    };
    let Some(number) = reply.correlation_id().and_then(|id| id.parse().ok()) else {
        return ledger.stray(format!("a message without a job's number: {:?}", reply.properties));
    };
    let end = match kind {
        // RabbitMQ itself takes a job away that came back too often, and then writes no reason of ours.
        Kind::DeadLetters => End::Dead(
            reply
                .header("inferq-error-code")
                .unwrap_or_else(|| "delivery limit".to_owned()),
        ),
        Kind::Replies if reply.status() == "INTERNAL" => End::GivenUp,
        Kind::Replies => End::Reply {
            attempt: attempt(&reply),
            right: is_right(number, &reply),
        },
    };
    ledger.end(number, end, again);
}

fn is_right(number: usize, reply: &Reply) -> bool {
    reply.status() == "OK"
        && reply.message_id() == Some(format!("m-{number}"))
        && reply.response().output("y").floats() == answer(number)
}

/// Two computations of one job differ in their times, in microseconds; two copies of one message do not.
fn attempt(reply: &Reply) -> u64 {
    let mut hasher = DefaultHasher::new();
    for name in ["queue-us", "wait-us", "infer-us", "total-us"] {
        reply.header(&format!("inferq-{name}")).hash(&mut hasher);
    }
    hasher.finish()
}

async fn connect(uri: &str) -> lapin::Result<(Connection, Channel)> {
    let connecting = async {
        let mut last = None;
        for uri in uri.split(',') {
            match Connection::connect(uri, ConnectionProperties::default()).await {
                Ok(connection) => {
                    let channel = connection.create_channel().await?;
                    return Ok((connection, channel));
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("one address at least"))
    };
    timeout(CONNECT_MAX, connecting)
        .await
        .unwrap_or_else(|_| Err(too_late()))
}

fn too_late() -> lapin::Error {
    lapin::ErrorKind::IOError(Arc::new(std::io::ErrorKind::TimedOut.into())).into()
}

/// Jobs that are confirmed and not yet answered, at most.
const UNDER_WAY_MAX: usize = 600;
/// Jobs of one go: published together, then all confirmed.
const AT_ONCE: usize = 100;
const GLANCE: Duration = Duration::from_millis(10);
const CONNECT_MAX: Duration = Duration::from_secs(3);
const CONFIRM_MAX: Duration = Duration::from_secs(10);
