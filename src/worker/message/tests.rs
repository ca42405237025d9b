use lapin::types::FieldArray;

use super::super::testing::{Jobs, headers, text};
use super::*;

fn author() -> Author {
    Author {
        names: Names::new("inferq"),
        worker: "worker-7".to_owned(),
    }
}

fn reason(error: &str) -> DeadReason {
    DeadReason {
        code: "INTERNAL",
        error: error.to_owned(),
    }
}

fn dead(properties: BasicProperties) -> Message {
    let envelope = Jobs::new().envelope(properties, Bytes::from_static(b"body"));
    dead_letter(&envelope, &reason("it failed"), &author())
}

fn in_header<'a>(message: &'a Message, name: &str) -> Option<&'a AMQPValue> {
    header(&message.properties, name)
}

/// The value of a header that holds a string.
fn string(message: &Message, name: &str) -> Option<String> {
    match in_header(message, name)? {
        AMQPValue::LongString(value) => Some(value.to_string()),
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn a_dead_letter_keeps_as_many_headers_as_fit_into_a_frame_and_its_own_always() {
    let long = "x".repeat(40 * 1024);
    let jobs = Jobs::new();
    let properties = headers([("a", text(&long)), ("b", text(&long)), ("c", text("short"))]);
    let envelope = jobs.envelope(properties, Bytes::new());

    let message = dead_letter(&envelope, &reason(&long), &author());

    assert!(in_header(&message, "a").is_some());
    assert_eq!(in_header(&message, "b"), None);
    assert_eq!(string(&message, "c").as_deref(), Some("short"));
    assert!(string(&message, "inferq-error").unwrap().len() <= ERROR_CHARS_MAX);
}

#[test]
fn nested_headers_count_with_all_they_hold() {
    let inner = text(&"x".repeat(10 * 1024));
    let array = AMQPValue::FieldArray(FieldArray::from(vec![inner; 7]));

    let message = dead(headers([("x-death", array)]));

    assert_eq!(in_header(&message, "x-death"), None);
}

#[test]
fn a_reply_carries_a_trace_on_unless_it_is_too_long_to_be_one() {
    let long = "k=v,".repeat(200);
    let properties =
        headers([("traceparent", text("00-1-2-01")), ("tracestate", text(&long))]).with_reply_to("replies".into());
    let envelope = Jobs::new().envelope(properties, Bytes::new());

    let message = failure(&envelope, &JobError::Failed("it failed".to_owned())).unwrap();

    assert_eq!(string(&message, "traceparent").as_deref(), Some("00-1-2-01"));
    assert_eq!(in_header(&message, "tracestate"), None);
}

#[test]
fn a_dead_letter_drops_what_would_make_the_broker_copy_or_refuse_it_or_us_miscount() {
    let properties = headers([
        ("CC", text("elsewhere")),
        ("BCC", text("elsewhere")),
        ("x-delivery-count", AMQPValue::LongLongInt(9)),
        ("mine", text("kept")),
    ])
    .with_reply_to("amq.rabbitmq.reply-to".into());

    let message = dead(properties);

    for name in ["CC", "BCC", "x-delivery-count"] {
        assert_eq!(in_header(&message, name), None, "{name}");
    }
    assert_eq!(string(&message, "mine").as_deref(), Some("kept"));
    assert_eq!(message.properties.reply_to(), &None);
}

/// A job whose sender says all that it can.
fn full_job() -> BasicProperties {
    headers([
        ("inferq-timing", AMQPValue::Boolean(true)),
        ("inferq-model-version", AMQPValue::LongLongInt(1)),
        ("traceparent", text("00-1-2-01")),
        ("mine", text("kept")),
    ])
    .with_content_type("application/x-msgpack".into())
    .with_content_encoding("identity".into())
    .with_delivery_mode(PERSISTENT)
    .with_priority(3)
    .with_correlation_id("correlation".into())
    .with_reply_to("replies".into())
    .with_expiration("60000".into())
    .with_message_id("message".into())
    .with_timestamp(1_700_000_000)
    .with_type("theirs".into())
    .with_user_id("guest".into())
    .with_app_id("their-app".into())
    .with_cluster_id("cluster".into())
}

fn envelope(properties: BasicProperties) -> Box<Envelope> {
    let mut envelope = Jobs::new().envelope(properties, Bytes::from_static(b"body"));
    envelope.encoding = Encoding::MsgPack;
    envelope
}

fn encoded() -> Encoded {
    Encoded {
        body: Bytes::from_static(b"result"),
        json_bytes: None,
        content_type: "application/msgpack",
    }
}

const TIMING: Timing = Timing {
    wait: std::time::Duration::from_micros(20),
    infer: std::time::Duration::from_micros(300),
    batch_rows: 64,
};

fn result_of(properties: BasicProperties) -> Message {
    result(&envelope(properties), &encoded(), &TIMING, &RowHeaders::independent()).unwrap()
}

fn names(message: &Message) -> Vec<String> {
    let headers = message.properties.headers().as_ref().unwrap();
    headers.inner().keys().map(ToString::to_string).collect()
}

#[test]
fn a_result_says_what_the_contract_lists_and_no_more() {
    let message = result_of(full_job());

    assert_eq!(message.exchange.as_str(), "");
    assert_eq!(message.routing_key.as_str(), "replies");
    assert_eq!(&message.body[..], b"result");
    let expected = BasicProperties::default()
        .with_headers(message.properties.headers().clone().unwrap())
        .with_content_type("application/x-msgpack".into())
        .with_correlation_id("correlation".into())
        .with_message_id("message".into())
        .with_type("inferq.result".into())
        .with_app_id(APP_ID.into())
        .with_delivery_mode(PERSISTENT);
    assert_eq!(*message.properties, expected);
    assert_eq!(string(&message, "inferq-status").as_deref(), Some("OK"));
    assert_eq!(string(&message, "inferq-model-version").as_deref(), Some("1"));
    assert_eq!(string(&message, "traceparent").as_deref(), Some("00-1-2-01"));
    let number = |name| match in_header(&message, name) {
        Some(AMQPValue::LongLongInt(number)) => *number,
        other => panic!("{name} is {other:?}"),
    };
    assert_eq!(number("inferq-wait-us"), 20);
    assert_eq!(number("inferq-infer-us"), 300);
    assert_eq!(number("inferq-batch-rows"), 64);
    assert!(number("inferq-total-us") >= 0);
    assert!(number("inferq-queue-us") > 1_000_000, "published in 2023");
    assert_eq!(string(&message, "inferq-rows").as_deref(), Some("independent"));
    assert_eq!(names(&message).len(), 9);
}

#[test]
fn the_time_split_comes_only_to_those_who_ask_and_the_queue_only_if_the_start_is_known() {
    let plain = result_of(BasicProperties::default().with_reply_to("replies".into()));
    let asked = result_of(headers([("inferq-timing", AMQPValue::Boolean(true))]).with_reply_to("replies".into()));
    let refused = result_of(headers([("inferq-timing", AMQPValue::Boolean(false))]).with_reply_to("replies".into()));

    assert_eq!(names(&plain), ["inferq-model-version", "inferq-rows", "inferq-status"]);
    assert_eq!(names(&refused), names(&plain));
    assert!(in_header(&asked, "inferq-wait-us").is_some());
    assert_eq!(in_header(&asked, "inferq-queue-us"), None);
}

#[test]
fn a_result_of_dependent_rows_names_its_row_outputs() {
    let properties = || BasicProperties::default().with_reply_to("replies".into());

    let message = result(&envelope(properties()), &encoded(), &TIMING, &RowHeaders::unknown()).unwrap();

    assert_eq!(string(&message, "inferq-rows").as_deref(), Some("unknown"));
    let none = AMQPValue::FieldArray(FieldArray::from(Vec::new()));
    assert_eq!(in_header(&message, "inferq-row-outputs"), Some(&none));
}

#[test]
fn an_error_says_nothing_of_rows() {
    let message = failure(&envelope(full_job()), &JobError::Deadline { late_ms: 5 }).unwrap();

    assert_eq!(in_header(&message, "inferq-rows"), None);
    assert_eq!(in_header(&message, "inferq-row-outputs"), None);
}

#[test]
fn the_brokers_milliseconds_are_believed_before_the_senders_seconds() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let ms = AMQPValue::LongLongInt(i64::try_from(now.as_millis()).unwrap() - 250);
    let properties = headers([("inferq-timing", AMQPValue::Boolean(true)), ("timestamp_in_ms", ms)])
        .with_timestamp(now.as_secs() - 3600)
        .with_reply_to("replies".into());

    let message = result_of(properties);

    let Some(AMQPValue::LongLongInt(queued)) = in_header(&message, "inferq-queue-us") else {
        panic!("no inferq-queue-us");
    };
    assert!((200_000..60_000_000).contains(queued), "{queued}");
}

#[test]
fn a_reply_has_the_message_id_of_the_job_or_its_correlation_id_or_a_new_one() {
    let id = |properties: BasicProperties| {
        let message = result_of(properties.with_reply_to("replies".into()));
        message.properties.message_id().as_ref().unwrap().to_string()
    };
    let both = BasicProperties::default()
        .with_message_id("message".into())
        .with_correlation_id("correlation".into());

    assert_eq!(id(both), "message");
    assert_eq!(
        id(BasicProperties::default().with_correlation_id("correlation".into())),
        "correlation"
    );
    let (one, other) = (id(BasicProperties::default()), id(BasicProperties::default()));
    assert_eq!(one.len(), 32);
    assert_ne!(one, other);
}

#[test]
fn a_reply_is_as_durable_as_its_job_but_a_direct_reply_never() {
    let mode = |queue: &str, mode: Option<u8>| {
        let properties = BasicProperties::default().with_reply_to(queue.into());
        let properties = match mode {
            Some(mode) => properties.with_delivery_mode(mode),
            None => properties,
        };
        *result_of(properties).properties.delivery_mode()
    };

    assert_eq!(mode("replies", Some(PERSISTENT)), Some(PERSISTENT));
    assert_eq!(mode("replies", Some(TRANSIENT)), Some(TRANSIENT));
    assert_eq!(mode("replies", None), Some(TRANSIENT));
    assert_eq!(mode("replies", Some(77)), Some(TRANSIENT));
    assert_eq!(mode("amq.rabbitmq.reply-to.g1h2", Some(PERSISTENT)), Some(TRANSIENT));
}

#[test]
fn what_no_queue_takes_comes_back_unless_there_never_was_a_queue() {
    let reply = |queue: &str| result_of(BasicProperties::default().with_reply_to(queue.into()));

    assert!(reply("replies").mandatory);
    assert!(!reply("amq.rabbitmq.reply-to.g1h2").mandatory);
    assert!(dead(BasicProperties::default()).mandatory);
}

#[test]
fn a_job_without_a_reply_queue_gets_no_reply() {
    for properties in [
        BasicProperties::default(),
        BasicProperties::default().with_reply_to("".into()),
    ] {
        let envelope = envelope(properties);

        assert!(result(&envelope, &encoded(), &TIMING, &RowHeaders::independent()).is_none());
        assert!(failure(&envelope, &JobError::Deadline { late_ms: 1 }).is_none());
    }
}

#[test]
fn a_binary_reply_says_where_its_json_ends_and_its_error_is_plain_json() {
    let properties = BasicProperties::default()
        .with_content_type("application/octet-stream".into())
        .with_reply_to("replies".into());
    let mut envelope = envelope(properties);
    envelope.encoding = Encoding::Binary { json_bytes: 9 };
    let body = Encoded {
        json_bytes: Some(42),
        ..encoded()
    };

    let good = result(&envelope, &body, &TIMING, &RowHeaders::independent()).unwrap();
    let bad = failure(&envelope, &JobError::Deadline { late_ms: 1 }).unwrap();

    assert_eq!(string(&good, JSON_BYTES_HEADER).as_deref(), Some("42"));
    assert_eq!(
        good.properties.content_type().as_ref().unwrap().as_str(),
        "application/octet-stream"
    );
    assert_eq!(in_header(&bad, JSON_BYTES_HEADER), None);
    assert_eq!(
        bad.properties.content_type().as_ref().unwrap().as_str(),
        "application/json"
    );
}

#[test]
fn an_error_is_a_sentence_and_a_code_in_the_jobs_own_encoding() {
    let message = failure(&envelope(full_job()), &JobError::Deadline { late_ms: 5 }).unwrap();

    assert_eq!(message.properties.kind().as_ref().unwrap().as_str(), "inferq.error");
    assert_eq!(
        message.properties.content_type().as_ref().unwrap().as_str(),
        "application/x-msgpack"
    );
    assert_eq!(string(&message, "inferq-status").as_deref(), Some("DEADLINE_EXCEEDED"));
    let body: serde_json::Value = rmp_serde::from_slice(&message.body).unwrap();
    assert_eq!(
        body,
        serde_json::json!({
            "error": "the deadline had passed 5 ms before the job could run",
            "code": "DEADLINE_EXCEEDED",
        })
    );
}

#[test]
fn an_error_to_a_job_of_no_known_encoding_is_json_and_says_so() {
    let properties = BasicProperties::default()
        .with_content_type("text/csv".into())
        .with_reply_to("replies".into());
    let mut envelope = envelope(properties);
    envelope.encoding = Encoding::Json;

    let message = failure(&envelope, &JobError::Deadline { late_ms: 5 }).unwrap();

    assert_eq!(
        message.properties.content_type().as_ref().unwrap().as_str(),
        "application/json"
    );
    assert!(message.body.starts_with(b"{\"error\":"));
}

#[test]
fn a_dead_letter_is_the_job_as_it_came_with_the_reason() {
    let mut envelope = envelope(full_job());
    envelope.delivery_count = 4;

    let message = dead_letter(&envelope, &reason("it failed"), &author());

    assert_eq!(message.exchange.as_str(), "inferq.dead");
    assert_eq!(message.routing_key.as_str(), "pair");
    assert_eq!(&message.body[..], b"body");
    let expected = BasicProperties::default()
        .with_headers(message.properties.headers().clone().unwrap())
        .with_content_type("application/x-msgpack".into())
        .with_content_encoding("identity".into())
        .with_delivery_mode(PERSISTENT)
        .with_priority(3)
        .with_correlation_id("correlation".into())
        .with_reply_to("replies".into())
        .with_message_id("message".into())
        .with_timestamp(1_700_000_000)
        .with_type("theirs".into())
        .with_app_id("their-app".into())
        .with_cluster_id("cluster".into());
    assert_eq!(*message.properties, expected, "neither expiration nor user_id");
    for (name, value) in [
        ("mine", "kept"),
        ("traceparent", "00-1-2-01"),
        ("inferq-user-id", "guest"),
        ("inferq-error-code", "INTERNAL"),
        ("inferq-error", "it failed"),
        ("inferq-worker", "worker-7"),
        ("inferq-model-version", "1"),
    ] {
        assert_eq!(string(&message, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(
        in_header(&message, "inferq-delivery-count"),
        Some(&AMQPValue::LongLongInt(4))
    );
    assert_eq!(
        in_header(&message, "inferq-version-pinned"),
        Some(&AMQPValue::Boolean(true))
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let Some(AMQPValue::Timestamp(failed_at)) = in_header(&message, "inferq-failed-at") else {
        panic!("no inferq-failed-at");
    };
    assert!((now - 60..=now).contains(failed_at));
}

#[test]
fn a_dead_letter_of_a_job_that_named_no_version_says_so() {
    let message = dead(BasicProperties::default());

    assert_eq!(
        in_header(&message, "inferq-version-pinned"),
        Some(&AMQPValue::Boolean(false))
    );
}

#[test]
fn a_second_dead_letter_of_a_job_gives_the_second_reason() {
    let first = dead(BasicProperties::default());
    let again = envelope(*first.properties);
    let why = DeadReason {
        code: "NOT_FOUND",
        error: "no such version".to_owned(),
    };

    let second = dead_letter(&again, &why, &author());

    assert_eq!(string(&second, "inferq-error-code").as_deref(), Some("NOT_FOUND"));
    assert_eq!(string(&second, "inferq-error").as_deref(), Some("no such version"));
}

#[test]
fn a_dead_letter_is_kept_on_disk_even_if_its_job_was_not() {
    let message = dead(BasicProperties::default().with_delivery_mode(TRANSIENT));

    assert_eq!(message.properties.delivery_mode(), &Some(PERSISTENT));
}
