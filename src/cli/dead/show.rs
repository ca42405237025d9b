//! `inferq dead show`.

use std::fmt::Write as _;
use std::io::Write;

use serde::Serialize;
use serde_json::{Map, Value};

use super::letter::{Letter, printable};
use super::list::{Listed, say_if_cut};
use super::{DeadError, Work, print};
use crate::broker::values::json_of;
use crate::error::chain;
use crate::wire::Encoding;
use crate::wire::request::{Request, decode_request};
use crate::worker::decode::encoding;

/// A dead letter, as `show` does it.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    listed: Listed,
    properties: Map<String, Value>,
    /// Those that `listed` does not hold.
    headers: Map<String, Value>,
    body: Body,
}

/// What the body holds, without a value of it.
#[derive(Debug, Serialize)]
struct Body {
    encoding: Option<&'static str>,
    inputs: Vec<Input>,
    /// The outputs asked for; none means all.
    outputs: Vec<String>,
    /// Why it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

#[derive(Debug, Serialize)]
struct Input {
    name: Option<String>,
    datatype: Option<String>,
    shape: Vec<usize>,
}

pub(super) async fn show(work: &Work<'_>, limit: u32, json: bool, out: &mut dyn Write) -> Result<(), DeadError> {
    let shown = work.look(limit, |letter| Shown::new(&letter)).await?;
    print(&shown, json, |shown| shown.iter().map(text).collect(), out)?;
    say_if_cut(shown.len(), limit);
    Ok(())
}

impl Shown {
    fn new(letter: &Letter) -> Self {
        let headers = letter.properties.headers().iter().flatten();
        let headers = headers.filter(|(name, _)| !IN_LIST.contains(&name.as_str()));
        Self {
            listed: Listed::new(letter),
            properties: properties(letter),
            headers: headers
                .map(|(name, value)| (name.to_string(), json_of(value)))
                .collect(),
            body: Body::new(letter),
        }
    }
}

fn properties(letter: &Letter) -> Map<String, Value> {
    let properties = &letter.properties;
    let texts = [
        ("content_type", properties.content_type()),
        ("content_encoding", properties.content_encoding()),
        ("correlation_id", properties.correlation_id()),
        ("reply_to", properties.reply_to()),
        ("expiration", properties.expiration()),
        ("message_id", properties.message_id()),
        ("type", properties.kind()),
        ("user_id", properties.user_id()),
        ("app_id", properties.app_id()),
        ("cluster_id", properties.cluster_id()),
    ];
    let texts = texts
        .into_iter()
        .filter_map(|(name, value)| Some((name, Value::from(value.as_ref()?.as_str()))));
    let numbers = [
        ("delivery_mode", properties.delivery_mode().map(u64::from)),
        ("priority", properties.priority().map(u64::from)),
        ("timestamp", *properties.timestamp()),
    ];
    let numbers = numbers
        .into_iter()
        .filter_map(|(name, value)| Some((name, Value::from(value?))));
    texts
        .chain(numbers)
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

impl Body {
    fn new(letter: &Letter) -> Self {
        let encoding = encoding(&letter.properties);
        let name = encoding.as_ref().ok().map(|encoding| match encoding {
            Encoding::MsgPack => "MessagePack",
            Encoding::Json => "JSON",
            Encoding::Binary { .. } => "binary tensors",
        });
        let request = encoding.and_then(|encoding| decode_request(&encoding, letter.body.clone()));
        let (inputs, outputs, fault) = match request {
            Ok(request) => (inputs(&request), outputs(request), None),
            Err(fault) => (Vec::new(), Vec::new(), Some(chain(&fault))),
        };
        Self {
            encoding: name,
            inputs,
            outputs,
            fault,
        }
    }
}

fn inputs(request: &Request) -> Vec<Input> {
    let inputs = request.inputs.iter().map(|input| Input {
        name: input.name.clone(),
        datatype: input.datatype.map(|datatype| datatype.to_string()),
        shape: input.shape.clone(),
    });
    inputs.collect()
}

fn outputs(request: Request) -> Vec<String> {
    let outputs = request.outputs.into_iter().flatten();
    outputs.map(|output| output.name).collect()
}

fn text(shown: &Shown) -> String {
    let listed = &shown.listed;
    let mut lines = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "  {name:<11} {}", printable(value, VALUE_CHARS));
    };
    let none = "not known";
    line("error", listed.error.as_deref().unwrap_or(none));
    line("failed at", listed.failed_at.as_deref().unwrap_or(none));
    line("worker", listed.worker.as_deref().unwrap_or(none));
    let pinned = match listed.version_pinned {
        Some(true) => " (named by the job)",
        Some(false) => " (the default)",
        None => "",
    };
    line(
        "version",
        &format!("{}{pinned}", listed.model_version.as_deref().unwrap_or(none)),
    );
    let deliveries = listed
        .deliveries
        .map_or_else(|| none.to_owned(), |count| count.to_string());
    line("deliveries", &deliveries);
    for (kind, entries) in [("property", &shown.properties), ("header", &shown.headers)] {
        for (name, value) in entries {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            line(kind, &format!("{name} = {value}"));
        }
    }
    let encoding = shown.body.encoding.unwrap_or("unknown encoding");
    line("body", &format!("{} bytes, {encoding}", listed.body_bytes));
    for input in &shown.body.inputs {
        let (name, datatype) = (input.name.as_deref(), input.datatype.as_deref());
        let shape = format!("{:?}", input.shape).replace(' ', "");
        line(
            "input",
            &format!(
                "{} {} {shape}",
                name.unwrap_or("(no name)"),
                datatype.unwrap_or("(no datatype)")
            ),
        );
    }
    for output in &shown.body.outputs {
        line("output", output);
    }
    if let Some(fault) = &shown.body.fault {
        line("unreadable", fault);
    }
    format!("{}: {}\n{lines}", listed.model, printable(&listed.code, VALUE_CHARS))
}

/// Headers that have a place of their own, and what the broker counts of looking at the letter, which is not the job's.
const IN_LIST: [&str; 9] = [
    "x-delivery-count",
    "x-acquired-count",
    "inferq-error-code",
    "inferq-error",
    "inferq-worker",
    "inferq-model-version",
    "inferq-version-pinned",
    "inferq-failed-at",
    "inferq-delivery-count",
];
/// A worker cuts its error at as many.
const VALUE_CHARS: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lapin::BasicProperties;
    use lapin::types::{AMQPValue, FieldTable};

    use super::*;

    fn shown(content_type: &str, body: &'static [u8]) -> String {
        let mut headers = FieldTable::default();
        headers.insert("inferq-error-code".into(), AMQPValue::LongString("INTERNAL".into()));
        headers.insert("mine".into(), AMQPValue::LongString("a\nb".into()));
        text(&Shown::new(&Letter {
            model: "m".to_owned(),
            properties: BasicProperties::default()
                .with_content_type(content_type.into())
                .with_priority(3)
                .with_headers(headers),
            body: Bytes::from_static(body),
        }))
    }

    #[test]
    fn shapes_are_shown_and_values_are_not() {
        let body =
            br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[4711,0]}],"outputs":[{"name":"y"}]}"#;

        let text = shown("application/json", body);

        for line in [
            "m: INTERNAL\n",
            "  property    priority = 3\n",
            "  header      mine = a\u{fffd}b\n",
            "  input       x FP32 [1,2]\n",
            "  output      y\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        assert!(!text.contains("4711") && !text.contains("inferq-error-code"), "{text}");
    }

    #[test]
    fn a_body_that_cannot_be_read_says_why() {
        assert!(shown("application/json", b"{").contains("  unreadable  body: is not JSON"));
        assert!(shown("text/csv", b"1,2").contains("unknown encoding\n  unreadable  content_type: `text/csv`"));
    }
}
