//! Headers as producers write them: every client library chooses an AMQP type of its own for the same value.
//!
//! One way to read a number, a flag, a moment and a version. A value is taken where its meaning is plain, and refused with
//! a sentence where it is not.

use lapin::types::{AMQPValue, DecimalValue, FieldTable};

/// The moment after which nobody wants the answer any more.
pub const DEADLINE: &str = "inferq-deadline";
/// The version that a job pins.
pub const VERSION: &str = "inferq-model-version";
/// The sender's wish for the time split.
pub const TIMING: &str = "inferq-timing";
/// When the job was published, in milliseconds.
///
/// # Source
/// RabbitMQ documentation, "Message Interceptors", `set_header_timestamp`.
pub const PUBLISHED_MS: &str = "timestamp_in_ms";

/// A header whose value has no plain meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("header `{header}`: {came} came, allowed is {allowed}")]
pub struct HeaderError {
    pub header: &'static str,
    pub came: &'static str,
    pub allowed: &'static str,
}

/// The header of this name.
pub fn value<'a>(headers: Option<&'a FieldTable>, name: &str) -> Option<&'a AMQPValue> {
    headers?.inner().get(name)
}

/// Reads [`DEADLINE`]: milliseconds since 1970-01-01 UTC, floored.
///
/// # Errors
/// It is no number, or none that is a moment. An AMQP timestamp is none: it counts seconds.
pub fn deadline_ms(value: &AMQPValue) -> Result<u64, HeaderError> {
    let ms = number(value).and_then(|number| u64::try_from(number.floor()).map_err(|_| NEGATIVE));
    ms.map_err(|came| HeaderError {
        header: DEADLINE,
        came,
        allowed: "a number, milliseconds since 1970-01-01 UTC",
    })
}

/// Reads [`TIMING`]: a boolean, 0 or 1, or one of the words for them; no value at all is false.
///
/// # Errors
/// It is anything else.
pub fn timing(value: &AMQPValue) -> Result<bool, HeaderError> {
    flag(value).map_err(|came| HeaderError {
        header: TIMING,
        came,
        allowed: "true or false, 1 or 0",
    })
}

/// Reads [`VERSION`] as text: whether there is such a version is another question.
///
/// # Errors
/// It is neither text nor a whole number.
pub fn version(value: &AMQPValue) -> Result<String, HeaderError> {
    let version = match text(value) {
        Some(text) => Ok(text.trim().to_owned()),
        None => whole(value).map(|number| number.to_string()),
    };
    version.map_err(|came| HeaderError {
        header: VERSION,
        came,
        allowed: "a string or an integer",
    })
}

/// A whole number of any AMQP type, also one that is written as text or as a float.
pub fn integer(value: &AMQPValue) -> Option<i64> {
    whole(value).ok()
}

/// When a message was published, in milliseconds since 1970: by its header, else by the AMQP property.
///
/// The property counts seconds. Producers that fill it with milliseconds are common, and as seconds these would lie
/// thousands of years ahead.
pub fn published_ms(headers: Option<&FieldTable>, timestamp: Option<u64>) -> Option<u64> {
    let of_header = value(headers, PUBLISHED_MS).and_then(|stamp| match stamp {
        AMQPValue::Timestamp(seconds) => Some(seconds_or_ms(*seconds)),
        other => u64::try_from(number(other).ok()?.floor()).ok(),
    });
    of_header.or_else(|| timestamp.map(seconds_or_ms))
}

fn seconds_or_ms(stamp: u64) -> u64 {
    if stamp > YEAR_9999 { stamp } else { stamp * 1000 }
}

/// A number as AMQP's many types and texts can hold it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Number {
    Whole(i64),
    /// Neither NaN nor infinite.
    Float(f64),
}

impl Number {
    /// The next whole number below; one that is too large for 64 bits is the largest of them.
    #[expect(clippy::cast_possible_truncation, reason = "saturates, as it says")]
    fn floor(self) -> i64 {
        match self {
            Self::Whole(number) => number,
            Self::Float(number) => number.floor() as i64,
        }
    }
}

/// The number, or what came instead: messages must not show the value.
fn number(value: &AMQPValue) -> Result<Number, &'static str> {
    match value {
        AMQPValue::ShortShortInt(number) => Ok(Number::Whole((*number).into())),
        AMQPValue::ShortShortUInt(number) => Ok(Number::Whole((*number).into())),
        AMQPValue::ShortInt(number) => Ok(Number::Whole((*number).into())),
        AMQPValue::ShortUInt(number) => Ok(Number::Whole((*number).into())),
        AMQPValue::LongInt(number) => Ok(Number::Whole((*number).into())),
        AMQPValue::LongUInt(number) => Ok(Number::Whole((*number).into())),
        AMQPValue::LongLongInt(number) => Ok(Number::Whole(*number)),
        AMQPValue::Float(number) => finite((*number).into()),
        AMQPValue::Double(number) => finite(*number),
        AMQPValue::DecimalValue(DecimalValue { scale, value }) => {
            finite(f64::from(*value) / 10_f64.powi((*scale).into()))
        }
        AMQPValue::ShortString(_) | AMQPValue::LongString(_) => text(value).map_or(Err(A_STRING), number_of_text),
        AMQPValue::ByteArray(_) => number_of_text(text(value).unwrap_or_default()).map_err(|_| "a byte array"),
        AMQPValue::Boolean(_) => Err("a boolean"),
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) => Err("a table or an array"),
        AMQPValue::Timestamp(_) => Err("a timestamp"),
        AMQPValue::Void => Err("nothing"),
    }
}

fn number_of_text(text: &str) -> Result<Number, &'static str> {
    let text = text.trim();
    match text.parse() {
        Ok(whole) => Ok(Number::Whole(whole)),
        Err(_) => finite(text.parse().map_err(|_| A_STRING)?),
    }
}

fn finite(number: f64) -> Result<Number, &'static str> {
    if number.is_nan() {
        return Err("NaN");
    }
    if number.is_infinite() {
        return Err("an infinite number");
    }
    Ok(Number::Float(number))
}

fn whole(value: &AMQPValue) -> Result<i64, &'static str> {
    match number(value)? {
        Number::Float(number) if number.fract() != 0.0 => Err("a number with a fraction"),
        number => Ok(number.floor()),
    }
}

fn flag(value: &AMQPValue) -> Result<bool, &'static str> {
    match value {
        AMQPValue::Boolean(flag) => return Ok(*flag),
        AMQPValue::Void => return Ok(false),
        _ => {}
    }
    let word = text(value).map(|text| text.trim().to_ascii_lowercase());
    match word.as_deref() {
        Some("true" | "t" | "yes" | "y" | "on") => return Ok(true),
        Some("false" | "f" | "no" | "n" | "off" | "") => return Ok(false),
        _ => {}
    }
    match whole(value) {
        Ok(0) => Ok(false),
        Ok(1) => Ok(true),
        Ok(_) => Err("another number"),
        Err(A_STRING) => Err("another string"),
        Err(came) => Err(came),
    }
}

fn text(value: &AMQPValue) -> Option<&str> {
    let bytes = match value {
        AMQPValue::ShortString(text) => return Some(text.as_str()),
        AMQPValue::LongString(text) => text.as_bytes(),
        // What Python has as `bytes`, and AMQP 1.0 as binary.
        AMQPValue::ByteArray(bytes) => bytes.as_slice(),
        _ => return None,
    };
    str::from_utf8(bytes).ok()
}

const A_STRING: &str = "a string that is no number";
const NEGATIVE: &str = "a number below zero";
/// Its last second. Milliseconds of today are far beyond.
const YEAR_9999: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    /// In milliseconds.
    const NOON: i64 = 1_764_331_200_000;

    fn long_text(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    fn table(name: &str, value: AMQPValue) -> FieldTable {
        let mut headers = FieldTable::default();
        headers.insert(name.into(), value);
        headers
    }

    #[test]
    fn a_deadline_is_a_number_of_any_type_floored() {
        let expected = u64::try_from(NOON).unwrap();
        for value in [
            AMQPValue::LongLongInt(NOON),
            AMQPValue::Double(1_764_331_200_000.75),
            long_text("1764331200000"),
            long_text(" 1764331200000.75 "),
            long_text("1.7643312e12"),
            AMQPValue::ShortString("1764331200000".into()),
            AMQPValue::ByteArray(b"1764331200000".to_vec().into()),
        ] {
            assert_eq!(deadline_ms(&value), Ok(expected), "{value:?}");
        }
        let near = [
            (AMQPValue::ShortShortInt(7), 7),
            (AMQPValue::ShortShortUInt(200), 200),
            (AMQPValue::ShortInt(7), 7),
            (AMQPValue::ShortUInt(60_000), 60_000),
            (AMQPValue::LongInt(7), 7),
            (AMQPValue::LongUInt(4_000_000_000), 4_000_000_000),
            (AMQPValue::Float(7.9), 7),
            (AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 799 }), 7),
            (AMQPValue::DecimalValue(DecimalValue { scale: 255, value: 799 }), 0),
            (AMQPValue::Double(1e300), i64::MAX.cast_unsigned()),
            (long_text(&"9".repeat(30)), i64::MAX.cast_unsigned()),
        ];
        for (value, expected) in near {
            assert_eq!(deadline_ms(&value), Ok(expected), "{value:?}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused_by_its_kind() {
        for (value, came) in [
            (AMQPValue::Double(f64::NAN), "NaN came"),
            (AMQPValue::Double(f64::INFINITY), "an infinite number came"),
            (AMQPValue::Float(f32::NEG_INFINITY), "an infinite number came"),
            (AMQPValue::Double(-0.5), "a number below zero came"),
            (AMQPValue::LongLongInt(-1), "a number below zero came"),
            (long_text("-1"), "a number below zero came"),
            (long_text("nan"), "NaN came"),
            (long_text("inf"), "an infinite number came"),
            (long_text(""), "a string that is no number came"),
            (long_text("2026-11-24T01:11:25Z"), "a string that is no number came"),
            (AMQPValue::ByteArray(vec![0xff].into()), "a byte array came"),
            (AMQPValue::ByteArray(b"soon".to_vec().into()), "a byte array came"),
            (AMQPValue::Boolean(true), "a boolean came"),
            (AMQPValue::FieldArray(Vec::new().into()), "a table or an array came"),
            (AMQPValue::FieldTable(FieldTable::default()), "a table or an array came"),
            (AMQPValue::Timestamp(1_764_331_200), "a timestamp came"),
            (AMQPValue::Void, "nothing came"),
        ] {
            let refusal = deadline_ms(&value).unwrap_err().to_string();

            assert!(refusal.starts_with("header `inferq-deadline`: "), "{refusal}");
            assert!(refusal.contains(came), "{value:?}: {refusal}");
            assert!(refusal.contains("milliseconds since 1970"), "{refusal}");
        }
    }

    #[test]
    fn a_flag_is_true_or_false_in_all_their_forms() {
        let one = [
            AMQPValue::Boolean(true),
            AMQPValue::ShortShortInt(1),
            AMQPValue::LongInt(1),
            AMQPValue::Double(1.0),
        ];
        let words = ["true", "True", "TRUE", "1", "yes", "on", " t "].map(long_text);
        for value in one.iter().chain(&words) {
            assert_eq!(timing(value), Ok(true), "{value:?}");
        }
        let none = [
            AMQPValue::Boolean(false),
            AMQPValue::Void,
            AMQPValue::LongLongInt(0),
            AMQPValue::Float(0.0),
        ];
        let words = ["false", "False", "0", "no", "off", "n", ""].map(long_text);
        for value in none.iter().chain(&words) {
            assert_eq!(timing(value), Ok(false), "{value:?}");
        }
        for value in [
            long_text("maybe"),
            long_text("2"),
            AMQPValue::LongInt(-1),
            AMQPValue::Double(0.5),
            AMQPValue::Double(f64::NAN),
            AMQPValue::Timestamp(1),
            AMQPValue::FieldArray(Vec::new().into()),
        ] {
            let refusal = timing(&value).unwrap_err().to_string();
            assert!(refusal.ends_with("allowed is true or false, 1 or 0"), "{refusal}");
        }
    }

    #[test]
    fn a_version_is_text_or_a_whole_number() {
        for value in [
            long_text("2"),
            AMQPValue::ShortString("2".into()),
            AMQPValue::ByteArray(b"2".to_vec().into()),
            AMQPValue::ShortShortUInt(2),
            AMQPValue::Double(2.0),
        ] {
            assert_eq!(version(&value).as_deref(), Ok("2"), "{value:?}");
        }
        assert_eq!(version(&long_text("newest")).as_deref(), Ok("newest"));
        for value in [
            AMQPValue::Double(2.5),
            AMQPValue::Boolean(true),
            AMQPValue::Timestamp(2),
        ] {
            let refusal = version(&value).unwrap_err().to_string();
            assert!(refusal.ends_with("allowed is a string or an integer"), "{refusal}");
        }
    }

    #[test]
    fn a_moment_of_publishing_in_milliseconds_is_one_in_either_place() {
        let ms = u64::try_from(NOON).unwrap();
        for stamp in [
            AMQPValue::LongLongInt(NOON),
            AMQPValue::Double(1_764_331_200_000.5),
            long_text("1764331200000"),
            AMQPValue::Timestamp(ms / 1000),
            AMQPValue::Timestamp(ms),
        ] {
            assert_eq!(published_ms(Some(&table(PUBLISHED_MS, stamp)), Some(5)), Some(ms));
        }
        let unfit = table(PUBLISHED_MS, long_text("now"));
        assert_eq!(published_ms(Some(&unfit), Some(5)), Some(5_000));
        assert_eq!(published_ms(None, Some(ms / 1000)), Some(ms));
        assert_eq!(published_ms(None, Some(ms)), Some(ms));
        assert_eq!(published_ms(None, Some(u64::MAX)), Some(u64::MAX));
        assert_eq!(published_ms(None, None), None);
    }
}
