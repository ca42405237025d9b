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
