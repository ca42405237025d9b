//! The messages a worker publishes: replies and dead letters (DESIGN, sections 2.3 and 2.4). Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::decode::{Envelope, Moment, ReplyTo, header};
use super::reply::{Outcome, Timing};
use super::row_headers::RowHeaders;
use crate::broker::topology::Names;
use crate::error::JobError;
use crate::wire::headers;
use crate::wire::reply::encode_error;
use crate::wire::status::Status;
use crate::wire::{Encoded, Encoding, JSON_BYTES_HEADER};

/// Something to publish.
#[derive(Clone)]
pub struct Message {
    pub exchange: ShortString,
    pub routing_key: ShortString,
    /// In a box, since a message is handed on half a dozen times.
    pub properties: Box<BasicProperties>,
    /// Whether the broker returns it where no queue takes it.
    pub mandatory: bool,
    pub body: Bytes,
}

/// Who publishes, and where to.
pub struct Author {
    pub names: Names,
    pub worker: String,
}

/// Why a job goes to the dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadReason {
    /// A status name, or `UNROUTABLE_REPLY`.
    pub code: &'static str,
    pub error: String,
}

/// The queue that the sender wants its reply in; an empty name means none.
pub fn reply_to(envelope: &Envelope) -> Option<&ShortString> {
    let queue = match &envelope.reply_to {
        ReplyTo::AsItIs => envelope.properties.reply_to().as_ref(),
        ReplyTo::Queue(queue) => Some(queue),
        ReplyTo::Refused(_) => None,
    };
    queue.filter(|queue| !queue.as_str().is_empty())
}

/// The reply, if the sender wants one.
pub fn reply(envelope: &Envelope, outcome: &Outcome) -> Option<Message> {
    match outcome {
        Outcome::Result { body, timing, rows } => result(envelope, body, timing, rows),
        Outcome::Failure(error) => failure(envelope, error),
    }
}

fn result(envelope: &Envelope, encoded: &Encoded, timing: &Timing, rows: &RowHeaders) -> Option<Message> {
    let mut headers = reply_headers(envelope, Status::Ok);
    rows.insert_into(&mut headers);
    if envelope.wants_timing() {
        timing_headers(envelope, timing, &mut headers);
    }
    if let Some(bytes) = encoded.json_bytes {
        // Triton's client library takes it for a string; HTTP headers are nothing else.
        headers.insert(
            JSON_BYTES_HEADER.into(),
            AMQPValue::LongString(bytes.to_string().into()),
        );
    }
    let content_type = envelope.properties.content_type().clone();
    publication(envelope, "inferq.result", content_type, headers, encoded.body.clone())
}

fn failure(envelope: &Envelope, error: &JobError) -> Option<Message> {
    let status = error.status();
    let headers = reply_headers(envelope, status);
    let encoded = encode_error(&envelope.encoding, status, &error.to_string());
    let content_type = match envelope.encoding {
        Encoding::MsgPack => envelope.properties.content_type().clone(),
        Encoding::Json | Encoding::Binary { .. } => Some(encoded.content_type.into()),
    };
    publication(envelope, "inferq.error", content_type, headers, encoded.body)
}

fn publication(
    envelope: &Envelope,
    kind: &str,
    content_type: Option<ShortString>,
    headers: FieldTable,
    body: Bytes,
) -> Option<Message> {
    let job = &envelope.properties;
    let mut properties = BasicProperties::default()
        .with_type(kind.into())
        .with_app_id(APP_ID.into())
        .with_delivery_mode(delivery_mode(envelope))
        .with_headers(headers);
    if let Some(content_type) = content_type {
        properties = properties.with_content_type(content_type);
    }
    if let Some(correlation_id) = job.correlation_id() {
        properties = properties.with_correlation_id(correlation_id.clone());
    }
    let id = job.message_id().as_ref().or(job.correlation_id().as_ref());
    // Without any, one is made up: a reply that the broker returns must be told from others to the same queue.
    let id = id.map_or_else(|| format!("{:032x}", fastrand::u128(..)).into(), Clone::clone);
    properties = properties.with_message_id(id);
    Some(Message {
        exchange: ShortString::default(),
        // To a direct reply-to nothing is routed, so that RabbitMQ 3.10 returns what it delivers.
        mandatory: !is_direct(envelope),
        routing_key: reply_to(envelope)?.clone(),
        properties: Box::new(properties),
        body,
    })
}

/// The job's own: a sender that made its job persistent asks for a durable answer. A direct reply-to has no queue that
/// could keep anything.
fn delivery_mode(envelope: &Envelope) -> u8 {
    match envelope.properties.delivery_mode() {
        Some(PERSISTENT) if !is_direct(envelope) => PERSISTENT,
        _ => TRANSIENT,
    }
}

/// Whether the reply goes straight to the requester's channel, without a queue.
///
/// # Source
/// RabbitMQ documentation, "Direct Reply-to".
pub fn is_direct(envelope: &Envelope) -> bool {
    reply_to(envelope).is_some_and(|queue| queue.as_str().starts_with(DIRECT_REPLY_TO))
}

fn reply_headers(envelope: &Envelope, status: Status) -> FieldTable {
    let mut headers = FieldTable::default();
    headers.insert("inferq-status".into(), text(status.name()));
    headers.insert("inferq-model-version".into(), text(&envelope.version));
    for name in ["traceparent", "tracestate"] {
        if let Some(AMQPValue::LongString(value)) = header(&envelope.properties, name)
            && value.as_bytes().len() <= TRACE_BYTES_MAX
        {
            headers.insert(name.into(), AMQPValue::LongString(value.clone()));
        }
    }
    headers
}

fn timing_headers(envelope: &Envelope, timing: &Timing, headers: &mut FieldTable) {
    let moment = Moment::now();
    let total = moment.now.saturating_duration_since(envelope.arrived);
    let mut micros = |name: &str, time: Duration| {
        let micros = i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        headers.insert(name.into(), AMQPValue::LongLongInt(micros));
    };
    if let Some(queued) = queued(envelope, moment) {
        micros("inferq-queue-us", queued);
    }
    micros("inferq-wait-us", timing.wait);
    micros("inferq-infer-us", timing.infer);
    micros("inferq-total-us", total);
    let rows = i64::try_from(timing.batch_rows).unwrap_or(i64::MAX);
    headers.insert("inferq-batch-rows".into(), AMQPValue::LongLongInt(rows));
}

/// How long a job was in the queue: from its producer's timestamp to its delivery, and no less than nothing where the clocks
/// of producer and worker differ. `None` if it does not say when it was published.
pub fn queued(envelope: &Envelope, moment: Moment) -> Option<Duration> {
    let job = &envelope.properties;
    let published_ms = headers::published_ms(job.headers().as_ref(), *job.timestamp());
    let published = Duration::from_millis(published_ms?);
    let since_delivery = moment.now.saturating_duration_since(envelope.arrived);
    Some(moment.unix.saturating_sub(since_delivery).saturating_sub(published))
}

/// The job as it came, with the reason it cannot be answered.
///
/// All properties are kept but three. `expiration`: a dead letter waits for somebody to look at it. `user_id`: the broker
/// closes the channel of a publisher that is somebody else, so it moves to a header. `reply_to`, where it is the bare name
/// of direct reply-to: the broker closes the channel of a publisher that does not consume replies. Of the headers those
/// in `LEFT_OUT` are missing.
pub fn dead_letter(envelope: &Envelope, reason: &DeadReason, author: &Author) -> Message {
    let mut headers = kept_headers(&envelope.properties);
    let failed_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if let Some(user) = envelope.properties.user_id() {
        headers.insert("inferq-user-id".into(), text(user.as_str()));
    }
    headers.insert("inferq-error-code".into(), text(reason.code));
    let error: String = reason.error.chars().take(ERROR_CHARS_MAX).collect();
    headers.insert("inferq-error".into(), text(&error));
    headers.insert("inferq-worker".into(), text(&author.worker));
    headers.insert("inferq-model-version".into(), text(&envelope.version));
    // Whoever sends the job again must know whether it was the job that named the version.
    let pinned = header(&envelope.properties, headers::VERSION).is_some();
    headers.insert("inferq-version-pinned".into(), AMQPValue::Boolean(pinned));
    headers.insert("inferq-failed-at".into(), AMQPValue::Timestamp(failed_at.as_secs()));
    headers.insert(
        "inferq-delivery-count".into(),
        AMQPValue::LongLongInt(i64::try_from(envelope.delivery_count).unwrap_or(i64::MAX)),
    );
    Message {
        exchange: author.names.dead_exchange(),
        routing_key: ShortString::try_new(&*envelope.model).unwrap_or_default(),
        properties: Box::new(
            kept_properties(&envelope.properties)
                .with_headers(headers)
                .with_delivery_mode(PERSISTENT),
        ),
        mandatory: true,
        body: envelope.body.clone(),
    }
}

/// The job's headers as far as they fit: what does not, is left out.
fn kept_headers(job: &BasicProperties) -> FieldTable {
    let mut kept = FieldTable::default();
    let mut room = HEADERS_BYTES_MAX;
    for (name, value) in job.headers().iter().flatten() {
        let bytes = 1 + name.as_str().len() + bytes(value);
        if bytes <= room && !LEFT_OUT.contains(&name.as_str()) {
            room -= bytes;
            kept.insert(name.clone(), value.clone());
        }
    }
    kept
}

/// Bytes that a value takes in a frame, or a few more.
fn bytes(value: &AMQPValue) -> usize {
    const SCALAR: usize = 9;
    SCALAR
        + match value {
            AMQPValue::LongString(value) => value.as_bytes().len(),
            AMQPValue::ShortString(value) => value.as_str().len(),
            AMQPValue::ByteArray(value) => value.as_slice().len(),
            AMQPValue::FieldArray(values) => values.as_slice().iter().map(bytes).sum(),
            AMQPValue::FieldTable(values) => values
                .inner()
                .iter()
                .map(|(name, value)| 1 + name.as_str().len() + bytes(value))
                .sum(),
            AMQPValue::Boolean(_)
            | AMQPValue::ShortShortInt(_)
            | AMQPValue::ShortShortUInt(_)
            | AMQPValue::ShortInt(_)
            | AMQPValue::ShortUInt(_)
            | AMQPValue::LongInt(_)
            | AMQPValue::LongUInt(_)
            | AMQPValue::LongLongInt(_)
            | AMQPValue::Float(_)
            | AMQPValue::Double(_)
            | AMQPValue::DecimalValue(_)
            | AMQPValue::Timestamp(_)
            | AMQPValue::Void => 0,
        }
}

/// What of a job's properties may be published by somebody else, and later: neither `expiration` nor `user_id`, nor the
/// bare name of direct reply-to. Headers and delivery mode are for the caller to set.
pub(crate) fn kept_properties(job: &BasicProperties) -> BasicProperties {
    let mut kept = BasicProperties::default();
    macro_rules! keep {
        ($($name:ident, $with:ident;)*) => {
            $(if let Some(value) = job.$name() { kept = kept.$with(value.clone()); })*
        };
    }
    keep! {
        content_type, with_content_type;
        content_encoding, with_content_encoding;
        priority, with_priority;
        correlation_id, with_correlation_id;
        message_id, with_message_id;
        timestamp, with_timestamp;
        kind, with_type;
        app_id, with_app_id;
        cluster_id, with_cluster_id;
    }
    if let Some(queue) = job
        .reply_to()
        .as_ref()
        .filter(|queue| queue.as_str() != DIRECT_REPLY_TO)
    {
        kept = kept.with_reply_to(queue.clone());
    }
    kept
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

const APP_ID: &str = concat!("inferq/", env!("CARGO_PKG_VERSION"));
/// All headers share one frame, of 128 KiB with RabbitMQ's settings. The broker closes the connection over a longer one, and
/// every reply under way on it would have to be computed again.
const HEADERS_BYTES_MAX: usize = 64 * 1024;
/// An error may quote what the runtime said, or list a thousand inputs.
const ERROR_CHARS_MAX: usize = 4 * 1024;
/// W3C Trace Context asks that 512 characters of `tracestate` be carried on; `traceparent` has 55.
const TRACE_BYTES_MAX: usize = 512;
/// RabbitMQ routes copies to the queues that `CC` and `BCC` name. `x-delivery-count` belongs to the life that ends here; on a
/// job that is sent again nobody would take it away.
const LEFT_OUT: [&str; 3] = ["CC", "BCC", "x-delivery-count"];
/// The broker makes a name of its own out of this one when a requester publishes; jobs that came over other protocols may
/// still have it.
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";
const TRANSIENT: u8 = 1;
const PERSISTENT: u8 = 2;

#[cfg(test)]
mod tests;
