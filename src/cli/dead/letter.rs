//! A dead letter, and what can be learnt from it. Pure.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::broker::values::{json_of, text_of};
use crate::wire::headers::{self, DEADLINE, VERSION};
use crate::worker::message::kept_properties;

/// A message of a dead letter queue.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    pub model: String,
    pub properties: BasicProperties,
    pub body: Bytes,
}

/// Why a job died, by the worker's headers or else by the broker's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reason {
    /// A status, `UNROUTABLE_REPLY`, or the broker's reason such as `delivery_limit`.
    pub code: String,
    pub error: Option<String>,
    /// Seconds since 1970.
    pub failed_at: Option<u64>,
    pub worker: Option<String>,
    /// The version that answered, or was asked for.
    pub version: Option<String>,
    /// Whether the job had named the version; only the worker's letters say.
    pub version_pinned: Option<bool>,
    /// Earlier deliveries of the job.
    pub deliveries: Option<i64>,
}

impl Letter {
    pub fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.properties.headers().as_ref()?.inner().get(name)
    }

    pub fn ids(&self) -> impl Iterator<Item = &str> {
        let ids = [self.properties.message_id(), self.properties.correlation_id()];
        ids.into_iter().flatten().map(ShortString::as_str)
    }

    pub fn reason(&self) -> Reason {
        let text = |name| self.header(name).map(text_of);
        let Some(code) = text(CODE) else {
            return self.reason_of_broker();
        };
        Reason {
            code,
            error: text("inferq-error"),
            failed_at: self.header("inferq-failed-at").and_then(seconds),
            worker: text("inferq-worker"),
            version: text(VERSION),
            version_pinned: self.version_pinned(),
            deliveries: self
                .header("inferq-delivery-count")
                .map(json_of)
                .and_then(|count| count.as_i64()),
        }
    }

    /// The broker tells the history in `x-death`, the latest first.
    fn reason_of_broker(&self) -> Reason {
        let deaths = match self.header("x-death") {
            Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice(),
            _ => &[],
        };
        let latest = deaths.iter().find_map(|death| match death {
            AMQPValue::FieldTable(death) => Some(death.inner()),
            _ => None,
        });
        let of_latest = |name| latest.and_then(|death| death.get(name));
        let code = of_latest("reason").or_else(|| self.header("x-first-death-reason"));
        let queue = of_latest("queue").map(text_of);
        Reason {
            code: code.map_or_else(|| UNKNOWN.to_owned(), text_of),
            error: queue.map(|queue| format!("the broker moved it here from queue `{queue}`")),
            failed_at: of_latest("time").and_then(seconds),
            worker: None,
            version: self.header(VERSION).map(text_of),
            version_pinned: None,
            deliveries: None,
        }
    }

    fn version_pinned(&self) -> Option<bool> {
        match self.header(PINNED) {
            Some(AMQPValue::Boolean(pinned)) => Some(*pinned),
            _ => None,
        }
    }

    /// The properties that the job had, as far as they are known and may be published again at `now_unix_ms`.
    pub fn job(&self, now_unix_ms: u128) -> BasicProperties {
        let by_worker = self.header(CODE).is_some();
        let mut headers = FieldTable::default();
        for (name, value) in self.properties.headers().iter().flatten() {
            let name_text = name.as_str();
            let kept = match name_text {
                VERSION => !by_worker || self.version_pinned() == Some(true),
                DEADLINE => !has_passed(value, now_unix_ms),
                _ => {
                    !ADDED.contains(&name_text)
                        && !name_text.starts_with("x-first-death-")
                        && !name_text.starts_with("x-last-death-")
                }
            };
            if kept {
                headers.insert(name.clone(), value.clone());
            }
        }
        let mut job = kept_properties(&self.properties).with_headers(headers);
        if let Some(mode) = self.properties.delivery_mode() {
            job = job.with_delivery_mode(*mode);
        }
        job
    }
}

/// A text of somebody else on one line of a terminal, of at most `chars_max` characters.
pub(super) fn printable(text: &str, chars_max: usize) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut shown: String = text.chars().take(chars_max).map(plain).collect();
    if text.chars().nth(chars_max).is_some() {
        shown.push('…');
    }
    shown
}

fn seconds(value: &AMQPValue) -> Option<u64> {
    json_of(value).as_u64()
}

/// A deadline that is no moment is the job's own mistake, and stays; one before 1970 has passed.
fn has_passed(deadline: &AMQPValue, now_unix_ms: u128) -> bool {
    match headers::deadline_ms(deadline) {
        Ok(ms) => u128::from(ms) <= now_unix_ms,
        Err(_) => headers::integer(deadline).is_some_and(|ms| ms < 0),
    }
}

const CODE: &str = "inferq-error-code";
const PINNED: &str = "inferq-version-pinned";
const UNKNOWN: &str = "unknown";
/// What the worker and the broker add when a job dies, or when it is delivered; and copies to other queues, of which there
/// has been one already.
pub(super) const ADDED: [&str; 14] = [
    CODE,
    "inferq-error",
    "inferq-worker",
    "inferq-failed-at",
    "inferq-delivery-count",
    PINNED,
    "inferq-user-id",
    "x-death",
    "x-delivery-count",
    "x-acquired-count",
    "x-opt-deaths",
    "x-exception",
    "CC",
    "BCC",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> AMQPValue {
        AMQPValue::LongString(value.into())
    }

    fn letter(headers: &[(&str, AMQPValue)]) -> Letter {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        Letter {
            model: "m".to_owned(),
            properties: BasicProperties::default().with_headers(table),
            body: Bytes::new(),
        }
    }

    fn of_worker(more: &[(&str, AMQPValue)]) -> Letter {
        let mut headers = vec![
            (CODE, text("INTERNAL")),
            ("inferq-error", text("it failed")),
            ("inferq-worker", text("w")),
            (VERSION, text("3")),
            (PINNED, AMQPValue::Boolean(false)),
            ("inferq-failed-at", AMQPValue::Timestamp(1_700_000_000)),
            ("inferq-delivery-count", AMQPValue::LongLongInt(2)),
        ];
        headers.extend(more.iter().cloned());
        letter(&headers)
    }

    fn of_broker(reason: &str) -> Letter {
        let mut death = FieldTable::default();
        death.insert("reason".into(), text(reason));
        death.insert("queue".into(), text("inferq.m"));
        death.insert("time".into(), AMQPValue::Timestamp(1_700_000_000));
        let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into());
        letter(&[
            ("x-death", deaths),
            ("x-first-death-reason", text("maxlen")),
            ("x-last-death-queue", text("inferq.m")),
            (VERSION, text("3")),
        ])
    }

    fn names(job: &BasicProperties) -> Vec<String> {
        let headers = job.headers().iter().flatten();
        headers.map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn the_workers_reason_goes_before_the_brokers() {
        let mut both = of_broker("expired").properties;
        let headers = of_worker(&[]).properties.headers().clone().unwrap();
        let mut all = both.headers().clone().unwrap();
        for (name, value) in &headers {
            all.insert(name.clone(), value.clone());
        }
        both = both.with_headers(all);

        let reason = Letter {
            properties: both,
            ..letter(&[])
        }
        .reason();

        assert_eq!(reason, of_worker(&[]).reason());
        assert_eq!(reason.code, "INTERNAL");
        assert_eq!(reason.failed_at, Some(1_700_000_000));
        assert_eq!(reason.deliveries, Some(2));
    }

    #[test]
    fn what_the_broker_moved_itself_has_its_latest_reason() {
        let reason = of_broker("delivery_limit").reason();

        assert_eq!(reason.code, "delivery_limit");
        assert_eq!(reason.failed_at, Some(1_700_000_000));
        assert!(reason.error.unwrap().contains("inferq.m"));
        assert_eq!(letter(&[]).reason().code, UNKNOWN);
    }

    #[test]
    fn a_job_gets_back_its_own_headers_and_none_of_its_death() {
        let more = [("mine", text("kept")), ("x-delivery-count", AMQPValue::LongLongInt(3))];

        assert_eq!(names(&of_worker(&more).job(0)), ["mine"]);
        assert_eq!(names(&of_broker("expired").job(0)), [VERSION]);
    }

    #[test]
    fn a_version_is_pinned_again_only_if_the_job_had_pinned_it() {
        assert!(names(&of_worker(&[(PINNED, AMQPValue::Boolean(true))]).job(0)).contains(&VERSION.to_owned()));
        assert!(names(&of_worker(&[]).job(0)).is_empty());
    }

    #[test]
    fn only_a_deadline_that_has_passed_is_left_out() {
        let kept = |deadline| !names(&of_worker(&[(DEADLINE, deadline)]).job(1_000)).is_empty();

        assert!(!kept(AMQPValue::LongLongInt(1_000)));
        assert!(!kept(AMQPValue::LongLongInt(-5)));
        assert!(!kept(AMQPValue::Double(1_000.75)));
        assert!(kept(AMQPValue::LongLongInt(1_001)));
        assert!(kept(AMQPValue::Double(1_001.5)));
        assert!(kept(text("soon")));
    }

    #[test]
    fn neither_expiration_nor_user_survives() {
        let letter = Letter {
            properties: BasicProperties::default()
                .with_expiration("5".into())
                .with_user_id("guest".into())
                .with_reply_to("replies".into())
                .with_delivery_mode(2),
            ..letter(&[])
        };

        let job = letter.job(0);

        assert_eq!((job.expiration(), job.user_id()), (&None, &None));
        assert!(job.reply_to().is_some());
        assert_eq!(job.delivery_mode(), &Some(2));
    }

    #[test]
    fn a_text_of_somebody_else_is_one_short_line() {
        assert_eq!(printable("a\nb\u{1b}[31m", 80), "a\u{fffd}b\u{fffd}[31m");
        assert_eq!(printable("abc", 2), "ab…");
    }
}
