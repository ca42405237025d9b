//! Why a body was refused: the place, what came there, and what is allowed.
//!
//! Every one of these is the sender's to mend. The text goes into the error reply, so it quotes names (cut short),
//! never values of the data.

use std::fmt;

use super::tensor::{AXES_MAX, Datatype, UnknownDatatype};

/// A refusal, as one sentence: `inputs[1].shape: a string came; allowed is …`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct WireError {
    place: Place,
    pub problem: Problem,
}

impl WireError {
    /// The same refusal, seen from one level further out: `shape` within `[1]` within `inputs` is `inputs[1].shape`.
    pub(super) fn within(mut self, outer: impl fmt::Display) -> Self {
        self.place = Place(match self.place.0.as_str() {
            "" => outer.to_string(),
            index if index.starts_with('[') => format!("{outer}{index}"),
            key => format!("{outer}.{key}"),
        });
        self
    }
}

/// Found at the top of the body; `within` adds the way there.
impl From<Problem> for WireError {
    fn from(problem: Problem) -> Self {
        let place = Place(String::new());
        Self { place, problem }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place(String);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.as_str() {
            "" => "body",
            place => place,
        })
    }
}

/// What is wrong at a place, and what is allowed there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("is missing; allowed are application/msgpack, application/json and application/octet-stream")]
    NoContentType,
    #[error("`{came}` came; allowed are application/msgpack, application/json and application/octet-stream")]
    ContentType { came: String },
    #[error("`{came}` came; allowed is none: send the body uncompressed")]
    Compressed { came: String },
    #[error("`{came}` came; allowed is none: send the bytes as they are")]
    Encoded { came: String },
    #[error(
        "with application/octet-stream this header gives the length of the JSON part, an integer >= 0; \
         a body that is JSON alone is application/json"
    )]
    NoJsonBytes,
    #[error("the JSON part has {json_bytes} bytes by its header, the whole body has {body_bytes}")]
    JsonBytes { json_bytes: usize, body_bytes: usize },

    /// `fault` is the parser's, and holds positions but nothing of the text.
    #[error("is not JSON: {fault}")]
    NotJson { fault: String },
    /// `came` is one of a few words of other languages.
    #[error("`{came}` is not JSON; {instead}")]
    Foreign { came: String, instead: &'static str },
    #[error("{came} came as AMQP 1.0; allowed is a data section, or a value that is binary or a string")]
    Amqp10 { came: &'static str },
    #[error("is not MessagePack: {fault}")]
    NotMsgPack { fault: &'static str },
    #[error("{bytes} bytes follow the message; nothing may")]
    TrailingBytes { bytes: usize },
    #[error("more than {max} levels are nested in one another")]
    Depth { max: usize },

    #[error("{came} came; allowed is {allowed}")]
    Kind { came: &'static str, allowed: &'static str },
    #[error("is missing; required is {allowed}")]
    Missing { allowed: &'static str },
    #[error("comes twice; allowed is once")]
    Duplicate,
    #[error("more than {max} entries came; allowed are at most {max}")]
    TooMany { max: usize },
    #[error("`{came}` {cause}")]
    Datatype { came: String, cause: UnknownDatatype },
    #[error("`{came}` {cause}")]
    Status {
        came: String,
        cause: super::status::UnknownStatus,
    },

    #[error("more than {AXES_MAX} axes came; allowed are at most {AXES_MAX}")]
    Axes,
    #[error("the axes multiply to more than this machine can address")]
    ShapeOverflow,
    #[error("two inputs have this name; a name is given once")]
    NameTwice,

    #[error("datatype {came} came, the model takes {expected}")]
    OtherDatatype { came: Datatype, expected: Datatype },
    #[error("raw data came without a `datatype`; the model takes {expected}")]
    RawWithoutDatatype { expected: Datatype },
    #[error("element {index} is {came}; {datatype} takes {allowed}")]
    Element {
        index: usize,
        came: &'static str,
        datatype: Datatype,
        allowed: &'static str,
    },
    #[error("element {index} does not go into {datatype}: {fault}")]
    Range {
        index: usize,
        datatype: Datatype,
        fault: &'static str,
    },
    #[error("{came} came where the shape says {expected}; data are one flat array, or nested as the shape")]
    Nesting { came: &'static str, expected: &'static str },
    #[error("an array of the data holds {came}, the shape says {expected}")]
    Length { came: Count, expected: usize },
    #[error("{came} bytes of raw data came, the shape needs {expected}")]
    RawLength { came: usize, expected: usize },
    #[error(
        "raw BYTES are, for each element, its length as 4 little-endian bytes and then the element; \
         element {index} of {elements} does not fit into the {bytes} bytes that came"
    )]
    RawElement {
        index: usize,
        elements: usize,
        bytes: usize,
    },
    #[error("{bytes} bytes of raw BYTES follow the last of the {elements} elements of the shape")]
    RawLeftover { bytes: usize, elements: usize },
    #[error("byte {index} of raw BOOL is neither 0 nor 1")]
    RawBool { index: usize },

    #[error("`parameters.binary_data_size` came without raw data behind the JSON; that is application/octet-stream")]
    BinaryInJson,
    #[error("both `data` and `parameters.binary_data_size` came; a tensor has one of them")]
    DataTwice,
    #[error("{wanted} raw bytes were announced, {left} are left in the body")]
    TailShort { wanted: usize, left: usize },
    #[error("{bytes} raw bytes belong to no tensor")]
    TailLeftover { bytes: usize },
}

impl Problem {
    pub(super) fn at(self, place: &str) -> WireError {
        WireError::from(self).within(place)
    }

    pub(super) fn nesting(came: &'static str, expected: &'static str) -> Self {
        Self::Nesting { came, expected }
    }

    pub(super) fn length(came: usize, expected: usize) -> Self {
        let came = Count::Exactly(came);
        Self::Length { came, expected }
    }
}

/// The place of one entry within its list, such as `[1]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Index(pub usize);

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]", self.0)
    }
}

/// How many elements an array holds, as far as they were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    Exactly(usize),
    /// Counting stopped at the first one too many.
    MoreThan(usize),
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(count) => write!(f, "{count}"),
            Self::MoreThan(count) => write!(f, "more than {count}"),
        }
    }
}

/// A name that a sender chose, fit to be quoted: cut short, and without control characters, which could
/// forge lines of a log.
pub(crate) fn excerpt(name: &str) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut excerpt: String = name.chars().take(EXCERPT_CHARS).map(printable).collect();
    if name.chars().nth(EXCERPT_CHARS).is_some() {
        excerpt.push('…');
    }
    excerpt
}

/// Longest part of a name that is quoted; a model's name has at most as many.
const EXCERPT_CHARS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_place_from_the_outside_in() {
        let refusal = Problem::Duplicate.at("shape").within(Index(1)).within("inputs");

        assert_eq!(refusal.to_string(), "inputs[1].shape: comes twice; allowed is once");
        assert!(WireError::from(Problem::Duplicate).to_string().starts_with("body: "));
    }

    #[test]
    fn a_quoted_name_is_short_and_holds_no_control_characters() {
        assert_eq!(excerpt("x\ny"), "x\u{fffd}y");
        assert_eq!(excerpt(&"é".repeat(64)), "é".repeat(64));
        assert_eq!(excerpt(&"é".repeat(65)), format!("{}…", "é".repeat(64)));
    }
}
