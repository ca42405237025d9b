//! JSON bodies: serde checks the syntax and finds the values, the data stay text until their datatype is known.
//!
//! JSON has no NaN and no infinity: in an array of floats `null` reads as NaN, and whatever is not finite is
//! written as `null`. `NaN` and `Infinity`, as Python writes them, are refused by name. BYTES are strings; an element that is
//! not UTF-8 is written with U+FFFD in place of what is not. A byte order mark before the text is skipped.

mod foreign;
mod object;
mod text;
mod write;

use std::borrow::Cow;

use bytes::Bytes;
use serde::de::DeserializeSeed;
use serde_json::value::RawValue;

use super::elements::Elements;
use super::error::{Count, Index, Problem, WireError, excerpt};
use super::message::{
    A_BOOLEAN, A_COUNT, A_LIST, A_MAP, A_SHAPE, A_STRING, DATA, Data, ENTRY_KEYS, ENTRY_PARAMETERS, Entry, Message,
    REPLY_KEYS, REQUEST_KEYS, REQUEST_PARAMETERS,
};
use super::tensor::{AXES_MAX, Datatype};
use object::{Object, Objects, Values};
use text::Text;

pub(super) use write::{encode, header};

pub(super) fn read_request(body: &Bytes) -> Result<Message, WireError> {
    let text = text(body)?;
    let [id, inputs, outputs, parameters] = parse(text, Object(REQUEST_KEYS), A_MAP)?;
    let [binary_data_output] = parameters
        .map(|raw| nested(raw, Object(REQUEST_PARAMETERS), A_MAP, "parameters"))
        .transpose()?
        .unwrap_or_default();
    Ok(Message {
        id: optional(id, "id", string)?,
        inputs: entries(body, inputs, "inputs")?,
        outputs: entries(body, outputs, "outputs")?,
        binary_data_output: optional(binary_data_output, "binary_data_output", boolean)
            .map_err(|refusal| refusal.within("parameters"))?,
        ..Message::default()
    })
}

pub(super) fn read_reply(body: &Bytes) -> Result<Message, WireError> {
    let text = text(body)?;
    let [model_name, model_version, id, outputs, error, code] = parse(text, Object(REPLY_KEYS), A_MAP)?;
    Ok(Message {
        model_name: optional(model_name, "model_name", string)?,
        model_version: optional(model_version, "model_version", string)?,
        id: optional(id, "id", string)?,
        outputs: entries(body, outputs, "outputs")?,
        error: optional(error, "error", string)?,
        code: optional(code, "code", string)?,
        ..Message::default()
    })
}

fn entries(body: &Bytes, list: Option<&RawValue>, name: &'static str) -> Result<Option<Vec<Entry>>, WireError> {
    let Some(list) = list else { return Ok(None) };
    let objects = nested(list, Objects(Object(ENTRY_KEYS)), A_LIST, name)?;
    let entry_at = |(index, values)| entry(body, values).map_err(|refusal| refusal.within(Index(index)).within(name));
    let entries: Result<_, _> = objects.into_iter().enumerate().map(entry_at).collect();
    entries.map(Some)
}

fn entry(body: &Bytes, [name, datatype, shape, data, parameters]: Values<'_, 5>) -> Result<Entry, WireError> {
    let [binary_data, binary_data_size] = parameters
        .map(|raw| nested(raw, Object(ENTRY_PARAMETERS), A_MAP, "parameters"))
        .transpose()?
        .unwrap_or_default();
    Ok(Entry {
        name: optional(name, "name", string)?,
        datatype: optional(datatype, "datatype", datatype_of)?,
        shape: optional(shape, "shape", axes)?,
        data: optional(data, "data", |raw| {
            starting(raw, '[', DATA)?;
            Ok(Data::Json(body.slice_ref(raw.get().as_bytes())))
        })?,
        binary_data: optional(binary_data, "binary_data", boolean).map_err(|refusal| refusal.within("parameters"))?,
        binary_data_size: optional(binary_data_size, "binary_data_size", count)
            .map_err(|refusal| refusal.within("parameters"))?,
    })
}

/// The body as text, without the byte order mark that it may begin with.
fn text(body: &[u8]) -> Result<&str, WireError> {
    if let Some(encoding) = foreign::encoding(body) {
        let fault = format!("it is {encoding}; a JSON body is plain UTF-8");
        return Err(Problem::NotJson { fault }.into());
    }
    utf8(body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body))
}

fn utf8(body: &[u8]) -> Result<&str, WireError> {
    std::str::from_utf8(body).map_err(|fault| {
        let fault = format!("it is not UTF-8 from byte {} on", fault.valid_up_to());
        Problem::NotJson { fault }.into()
    })
}

fn optional<'a, T>(
    raw: Option<&'a RawValue>,
    key: &'static str,
    read: impl Fn(&'a RawValue) -> Result<T, Problem>,
) -> Result<Option<T>, WireError> {
    raw.map(read).transpose().map_err(|problem| problem.at(key))
}

fn nested<'a, S, T>(raw: &'a RawValue, seed: S, allowed: &'static str, key: &'static str) -> Result<T, WireError>
where
    S: DeserializeSeed<'a, Value = Result<T, WireError>>,
{
    parse(raw.get(), seed, allowed).map_err(|refusal| refusal.within(key))
}

fn parse<'a, S, T>(text: &'a str, seed: S, allowed: &'static str) -> Result<T, WireError>
where
    S: DeserializeSeed<'a, Value = Result<T, WireError>>,
{
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = seed
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| {
        // A syntax error's text is serde's, a position and no content. A type error's would quote the value.
        if !error.is_data() {
            return foreign::word(text, error.line(), error.column()).unwrap_or_else(|| {
                let fault = error.to_string();
                Problem::NotJson { fault }.into()
            });
        }
        let came = match Text::new(text).kind() {
            "an array" => "an array that holds something else",
            kind => kind,
        };
        Problem::Kind { came, allowed }.into()
    })?
}

/// The cursor at the start of `raw`, which is to begin with `symbol`.
fn starting<'a>(raw: &'a RawValue, symbol: char, allowed: &'static str) -> Result<Text<'a>, Problem> {
    let text = Text::new(raw.get());
    if text.starts_with(symbol) {
        return Ok(text);
    }
    let came = text.kind();
    Err(Problem::Kind { came, allowed })
}

fn string(raw: &RawValue) -> Result<String, Problem> {
    starting(raw, '"', A_STRING)?.string().map(Cow::into_owned)
}

fn boolean(raw: &RawValue) -> Result<bool, Problem> {
    match raw.get() {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(Problem::Kind {
            came: Text::new(other).kind(),
            allowed: A_BOOLEAN,
        }),
    }
}

fn count(raw: &RawValue) -> Result<usize, Problem> {
    count_of(raw.get())
}

fn count_of(text: &str) -> Result<usize, Problem> {
    text.parse().map_err(|_| Problem::Kind {
        came: match Text::new(text).kind() {
            "a number" => "a number with a fraction, an exponent or too many digits",
            kind => kind,
        },
        allowed: A_COUNT,
    })
}

fn datatype_of(raw: &RawValue) -> Result<Datatype, Problem> {
    let name = string(raw)?;
    name.parse().map_err(|cause| Problem::Datatype {
        came: excerpt(&name),
        cause,
    })
}

fn axes(raw: &RawValue) -> Result<Vec<usize>, Problem> {
    let mut text = starting(raw, '[', A_SHAPE)?;
    text.skip('[');
    let mut axes = Vec::with_capacity(AXES_MAX);
    while !text.skip(']') {
        if axes.len() == AXES_MAX {
            return Err(Problem::Axes);
        }
        axes.push(count_of(text.word())?);
        text.skip(',');
    }
    Ok(axes)
}

/// Decodes an array that serde has accepted; `count` is the number of elements of `shape`.
pub(super) fn elements(array: &[u8], shape: &[usize], count: usize, expected: Datatype) -> Result<Bytes, Problem> {
    let text = utf8(array).map_err(|refusal| refusal.problem)?;
    // An element has two bytes at least, itself and a comma or a bracket.
    let mut elements = Elements::new(expected, count.min(array.len() / 2));
    let mut text = Text::new(text);
    let mut inside = text.clone();
    match shape {
        [outer, inner @ ..] if inside.skip('[') && inside.skip('[') => {
            fill(&mut text, *outer, inner, &mut elements)?;
        }
        _ => fill(&mut text, count, &[], &mut elements)?,
    }
    Ok(elements.finish())
}

/// One array of `length`, and the arrays in it, as deep as `inner` has axes.
fn fill(text: &mut Text<'_>, length: usize, inner: &[usize], elements: &mut Elements) -> Result<(), Problem> {
    if !text.skip('[') {
        return Err(Problem::nesting(text.kind(), "an array"));
    }
    let mut came = 0;
    while !text.skip(']') {
        if came == length {
            return Err(Problem::Length {
                came: Count::MoreThan(length),
                expected: length,
            });
        }
        match inner {
            [] => elements.push(&text.scalar()?)?,
            [length, inner @ ..] => fill(text, *length, inner, elements)?,
        }
        came += 1;
        text.skip(',');
    }
    if came != length {
        return Err(Problem::length(came, length));
    }
    Ok(())
}

/// Programs of Windows write it before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(body: impl Into<Bytes>) -> String {
        read_request(&body.into()).unwrap_err().to_string()
    }

    #[test]
    fn words_of_other_languages_are_refused_by_name_and_place() {
        let job = |data: &str| {
            refusal(format!(
                "{{\"id\": \"NaN\",\n\"inputs\": [{{\"shape\": [3],\n \"data\": [1, {data}]}}]}}"
            ))
        };
        for (word, instead) in [
            (
                "NaN",
                "write null for it, or send the numbers as MessagePack or raw bytes",
            ),
            (
                "nan",
                "write null for it, or send the numbers as MessagePack or raw bytes",
            ),
            (
                "-NaN",
                "write null for it, or send the numbers as MessagePack or raw bytes",
            ),
            ("Infinity", "send the numbers as MessagePack or raw bytes"),
            ("-Infinity", "send the numbers as MessagePack or raw bytes"),
            ("inf", "send the numbers as MessagePack or raw bytes"),
            ("+inf", "send the numbers as MessagePack or raw bytes"),
            ("True", "it writes true and false"),
            ("None", "it writes null"),
            ("undefined", "it writes null"),
        ] {
            let expected = format!("inputs[0].data[1]: `{word}` is not JSON; {instead}");
            assert_eq!(job(word), expected);
            assert_eq!(job(&format!("{word}, 2")), expected);
        }
        assert_eq!(
            refusal("NaN"),
            "body: `NaN` is not JSON; write null for it, or send the numbers as MessagePack or raw bytes"
        );
        assert_eq!(
            refusal("{'inputs': []}"),
            "body: `'` is not JSON; strings stand in double quotes"
        );
        assert!(job("NaNa").starts_with("body: is not JSON: "), "{}", job("NaNa"));
        assert!(job("secret").starts_with("body: is not JSON: "), "{}", job("secret"));
        assert!(refusal("{\"inputs\": [NaN").starts_with("inputs[0]: `NaN` is not JSON"));
    }

    #[test]
    fn a_byte_order_mark_is_skipped_once() {
        let job = r#"{"id":"a","inputs":[{"shape":[1],"data":[1]}]}"#;

        let message = read_request(&format!("\u{feff}{job}").into()).unwrap();

        assert_eq!(message.id.as_deref(), Some("a"));
        assert!(read_reply(&"\u{feff}{\"id\":\"a\"}".into()).is_ok());
        assert!(refusal(format!("\u{feff}\u{feff}{job}")).starts_with("body: is not JSON: "));
        assert!(refusal("\u{feff}").starts_with("body: is not JSON: "));
    }

    #[test]
    fn a_text_in_another_encoding_is_refused_by_its_name() {
        let wide: Vec<u8> = "\u{feff}{\"inputs\":[]}"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();

        assert_eq!(
            refusal(wide),
            "body: is not JSON: it is in UTF-16; a JSON body is plain UTF-8"
        );
    }
}
