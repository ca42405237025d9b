//! The calls that wait for an answer, by number. Pure but for its lock, which nobody holds while waiting.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lapin::message::{BasicReturnMessage, Delivery};
use lapin::types::{AMQPValue, LongString, ShortString};
use lapin::{BasicProperties, Confirmation};
use tokio::sync::oneshot;

use super::timing::{Stamp, Timing};
use super::{Answer, CallError};
use crate::broker;
use crate::broker::permission::Act;
use crate::wire::Encoding;
use crate::wire::JSON_BYTES_HEADER;
use crate::wire::headers;
use crate::wire::reply::{Reply, decode_reply};
use crate::wire::rows::{ROW_OUTPUTS_HEADER, ROWS_HEADER};

/// Number of a call; with the client's prefix before it, the id of its job.
pub type Number = u64;

/// How a call ends; a sender that is dropped means that the job is to be sent again.
pub type Answered = oneshot::Receiver<Result<Answer, CallError>>;

pub struct Pending {
    /// What all ids of a client begin with: the workers' dead letters must tell producers apart.
    id_prefix: String,
    calls: Mutex<Calls>,
}

#[derive(Default)]
struct Calls {
    waiting: HashMap<Number, Waiting>,
    /// The last ones that were given up before an answer came.
    given_up: BTreeSet<Number>,
    strays: Strays,
}

struct Waiting {
    model: String,
    stamp: Stamp,
    answered: oneshot::Sender<Result<Answer, CallError>>,
}

/// Replies that nobody was waiting for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Strays {
    /// Second copies of a reply, as there are where delivery is at least once.
    pub copies: u64,
    /// Replies to calls that had been given up.
    pub late: u64,
}

impl Pending {
    pub fn new() -> Self {
        Self {
            id_prefix: format!("{:016x}-", fastrand::u64(..)),
            calls: Mutex::default(),
        }
    }

    pub fn id(&self, number: Number) -> ShortString {
        format!("{}{number}", self.id_prefix).into()
    }

    /// Expects an answer for a job that is about to be published; `stamp` is from when that was tried first.
    pub fn expect(&self, number: Number, model: &str, stamp: Stamp) -> Answered {
        let (answered, answer) = oneshot::channel();
        let waiting = Waiting {
            model: model.to_owned(),
            stamp,
            answered,
        };
        self.lock().waiting.insert(number, waiting);
        answer
    }

    /// Nobody waits for this call any more; one that was answered is forgotten already.
    pub fn forget(&self, number: Number) {
        let mut calls = self.lock();
        if calls.waiting.remove(&number).is_some() {
            calls.given_up.insert(number);
            if calls.given_up.len() > GIVEN_UP_MAX {
                calls.given_up.pop_first();
            }
        }
    }

    /// Has every job sent again.
    pub fn all_again(&self) {
        self.lock().waiting.clear();
    }

    pub fn strays(&self) -> Strays {
        self.lock().strays
    }

    /// What no caller waits for is a second copy, or too late: both are counted and dropped.
    pub fn reply(&self, delivery: Delivery) {
        let Some(number) = self.number_of(delivery.properties.correlation_id().as_ref()) else {
            return;
        };
        let (properties, body) = (delivery.properties, delivery.data);
        let was_awaited = self.end(number, |waiting| {
            read(&properties, body).map(|answer| Answer {
                latency: waiting.stamp.sent.elapsed(),
                timing: answer.timing.map(|timing| timing.after(waiting.stamp)),
                ..answer
            })
        });
        if !was_awaited {
            let mut calls = self.lock();
            if calls.given_up.remove(&number) {
                calls.strays.late += 1;
            } else {
                calls.strays.copies += 1;
            }
        }
    }

    /// Looks at a confirm. What was returned may come with the confirm of another, so it is known by its own id only.
    pub fn confirmed(&self, number: Number, confirmation: lapin::Result<Confirmation>) {
        match confirmation {
            Ok(Confirmation::Ack(None) | Confirmation::NotRequested) => {}
            Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) => self.returned(&returned),
            Ok(Confirmation::Nack(None)) => {
                self.end(number, |waiting| Err(CallError::QueueFull(waiting.model.clone())));
            }
            Err(error) if broker::is_permanent(&error) => {
                let reason = broker::reason(&error, Act::Publish);
                self.end(number, |_| Err(CallError::Forbidden(reason)));
            }
            // Its caller is told by the drop, and sends it again.
            Err(_) => drop(self.lock().waiting.remove(&number)),
        }
    }

    fn returned(&self, returned: &BasicReturnMessage) {
        if let Some(number) = self.number_of(returned.properties.correlation_id().as_ref()) {
            self.end(number, |waiting| Err(CallError::UnknownModel(waiting.model.clone())));
        }
    }

    fn number_of(&self, id: Option<&ShortString>) -> Option<Number> {
        id?.as_str().strip_prefix(&self.id_prefix)?.parse().ok()
    }

    /// Ends a call; false if nobody was waiting for it.
    fn end(&self, number: Number, outcome: impl FnOnce(&Waiting) -> Result<Answer, CallError>) -> bool {
        let waiting = self.lock().waiting.remove(&number);
        let Some(waiting) = waiting else { return false };
        let outcome = outcome(&waiting);
        // Whoever called may have stopped waiting.
        let _ = waiting.answered.send(outcome);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a reply says. Nobody here knows how long it took.
pub fn read(properties: &BasicProperties, body: Vec<u8>) -> Result<Answer, CallError> {
    let content_type = properties.content_type().as_ref().map(ShortString::as_str);
    let json_bytes = header(properties, JSON_BYTES_HEADER).and_then(headers::integer);
    let encoding = Encoding::of(content_type, json_bytes).map_err(CallError::Reply)?;
    match decode_reply(&encoding, Bytes::from(body)).map_err(CallError::Reply)? {
        Reply::Error { error, code } => Err(CallError::Refused { code, error }),
        Reply::Result {
            model_version, outputs, ..
        } => Ok(Answer {
            model_version,
            outputs,
            latency: std::time::Duration::ZERO,
            batch_rows: header(properties, "inferq-batch-rows")
                .and_then(headers::integer)
                .and_then(|rows| u64::try_from(rows).ok()),
            timing: Timing::of(|name| header(properties, name)),
            rows: header(properties, ROWS_HEADER).and_then(|said| text(said)?.parse().ok()),
            row_outputs: header(properties, ROW_OUTPUTS_HEADER).and_then(texts),
        }),
    }
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

fn text(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(LongString::as_bytes(text)).ok(),
        _ => None,
    }
}

/// `None` unless all of them are texts.
fn texts(value: &AMQPValue) -> Option<Vec<String>> {
    let AMQPValue::FieldArray(values) = value else {
        return None;
    };
    values
        .as_slice()
        .iter()
        .map(|value| text(value).map(str::to_owned))
        .collect()
}

/// Calls given up whose answers are told from second copies: more than are under way at a time.
const GIVEN_UP_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lapin::types::{FieldArray, FieldTable};
    use tokio::time::Instant;

    use super::*;
    use crate::wire::reply::encode_error;
    use crate::wire::rows::RowRelation;
    use crate::wire::status::Status;

    fn delivery(pending: &Pending, number: Number, content_type: &str, body: &[u8]) -> Delivery {
        let properties = BasicProperties::default()
            .with_content_type(content_type.into())
            .with_correlation_id(pending.id(number));
        let mut delivery = Delivery::mock(1, ShortString::default(), ShortString::default(), false, body.to_vec());
        delivery.properties = properties;
        delivery
    }

    fn stamp() -> Stamp {
        Stamp {
            sent: Instant::now(),
            unstamped: Duration::ZERO,
        }
    }

    fn refusal(pending: &Pending, number: Number) -> Delivery {
        let encoded = encode_error(&Encoding::MsgPack, Status::NotFound, "no version 7");
        delivery(pending, number, encoded.content_type, &encoded.body)
    }

    #[test]
    fn an_error_reply_keeps_its_code_and_its_words_and_ends_its_own_call_only() {
        let pending = Pending::new();
        let mut one = pending.expect(1, "m", stamp());
        let mut other = pending.expect(2, "m", stamp());

        pending.reply(refusal(&pending, 1));

        let refused = one.try_recv().unwrap().unwrap_err();
        assert_eq!(refused.to_string(), "NOT_FOUND: no version 7");
        assert!(other.try_recv().is_err());
    }

    #[test]
    fn a_second_copy_and_a_reply_for_another_client_are_dropped() {
        let (pending, stranger) = (Pending::new(), Pending::new());
        let mut answer = pending.expect(1, "m", stamp());

        pending.reply(refusal(&stranger, 1));
        let untouched = answer.try_recv().is_err();
        pending.reply(refusal(&pending, 1));
        pending.reply(refusal(&pending, 1));

        assert!(untouched);
        assert!(answer.try_recv().unwrap().is_err());
        assert_eq!(pending.strays(), Strays { copies: 1, late: 0 });
    }

    #[test]
    fn a_reply_to_a_call_that_was_given_up_is_late_and_no_copy() {
        let pending = Pending::new();
        for number in 1..=2 {
            drop(pending.expect(number, "m", stamp()));
            pending.forget(number);
        }

        pending.reply(refusal(&pending, 2));
        let late = pending.strays();
        pending.reply(refusal(&pending, 2));

        assert_eq!(late, Strays { copies: 0, late: 1 });
        assert_eq!(pending.strays(), Strays { copies: 1, late: 1 });
    }

    #[test]
    fn a_reply_that_cannot_be_read_says_why() {
        for (content_type, body) in [("text/plain", &b"hi"[..]), ("application/msgpack", b"\xc1")] {
            let properties = BasicProperties::default().with_content_type(content_type.into());

            let refused = read(&properties, body.to_vec()).unwrap_err();

            assert!(matches!(refused, CallError::Reply(_)), "{refused}");
        }
    }

    fn result_with(headers: FieldTable) -> Answer {
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_headers(headers);
        let body = br#"{"model_name":"m","model_version":"1","outputs":[]}"#;
        read(&properties, body.to_vec()).unwrap()
    }

    #[test]
    fn a_result_says_how_the_rows_relate() {
        let long = |text: &str| AMQPValue::LongString(text.into());
        let mut headers = FieldTable::default();
        headers.insert(ROWS_HEADER.into(), long("coupled"));
        let names = FieldArray::from(vec![long("y"), long("z")]);
        headers.insert(ROW_OUTPUTS_HEADER.into(), AMQPValue::FieldArray(names));

        let answer = result_with(headers);

        assert_eq!(answer.rows, Some(RowRelation::Coupled));
        assert_eq!(answer.row_outputs.unwrap(), ["y", "z"]);
        assert_eq!(result_with(FieldTable::default()).rows, None);
    }

    #[test]
    fn a_relation_of_rows_that_cannot_be_read_is_none() {
        let long = |text: &str| AMQPValue::LongString(text.into());
        let mixed = FieldArray::from(vec![long("y"), AMQPValue::Boolean(true)]);
        for (rows, outputs) in [
            (long("of a later version"), long("y")),
            (AMQPValue::Boolean(true), AMQPValue::FieldArray(mixed)),
            (AMQPValue::Void, AMQPValue::Void),
        ] {
            let mut headers = FieldTable::default();
            headers.insert(ROWS_HEADER.into(), rows);
            headers.insert(ROW_OUTPUTS_HEADER.into(), outputs);

            let answer = result_with(headers);

            assert_eq!((answer.rows, answer.row_outputs), (None, None));
        }
    }

    #[test]
    fn a_job_that_was_refused_ends_its_call_and_one_that_was_lost_is_sent_again() {
        let pending = Pending::new();
        let mut refused = pending.expect(1, "m", stamp());
        let mut lost = pending.expect(2, "m", stamp());

        pending.confirmed(1, Ok(Confirmation::Nack(None)));
        pending.confirmed(2, Err(lapin::ErrorKind::InvalidChannel(1).into()));

        assert!(matches!(refused.try_recv(), Ok(Err(CallError::QueueFull(_)))));
        assert!(matches!(lost.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
    }
}
