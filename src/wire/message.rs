//! What lies between the bytes of a message and its meaning: the same for every encoding.
//!
//! An encoding reads a body into a [`Message`] and writes an [`Outgoing`]; it checks kinds, lengths and nesting.
//! `request` and `reply` decide what must be there.

use bytes::Bytes;

use super::error::Problem;
use super::reply::ReplyOutput;
use super::request::RequestedOutput;
use super::tensor::{Datatype, element_count};
use super::{elements, json, msgpack};

/// The keys of a request or of a reply that mean something here; every other key is skipped.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub id: Option<String>,
    pub inputs: Option<Vec<Entry>>,
    pub outputs: Option<Vec<Entry>>,
    pub binary_data_output: Option<bool>,
    pub model_name: Option<String>,
    pub model_version: Option<String>,
    pub error: Option<String>,
    pub code: Option<String>,
}

/// One entry of `inputs` or `outputs`.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub name: Option<String>,
    pub datatype: Option<Datatype>,
    pub shape: Option<Vec<usize>>,
    pub data: Option<Data>,
    pub binary_data: Option<bool>,
    pub binary_data_size: Option<usize>,
}

/// A tensor's data as slices of the body, undecoded until the model's datatype is known.
#[derive(Debug, Clone)]
pub(super) enum Data {
    /// Row-major little-endian bytes.
    Raw(Bytes),
    /// A MessagePack array that is known to be well formed.
    MsgPack(Bytes),
    /// A JSON array that is known to be well formed.
    Json(Bytes),
}

impl Data {
    /// The data as bytes of the `expected` datatype, checked against the shape; raw data stay where they are.
    pub(super) fn decode(
        self,
        stated: Option<Datatype>,
        shape: &[usize],
        expected: Datatype,
    ) -> Result<Bytes, Problem> {
        let count = element_count(shape).ok_or(Problem::ShapeOverflow)?;
        match self {
            Self::Raw(raw) => {
                let came = stated.ok_or(Problem::RawWithoutDatatype { expected })?;
                if came != expected {
                    return Err(Problem::OtherDatatype { came, expected });
                }
                elements::check_raw(&raw, expected, count)?;
                Ok(raw)
            }
            Self::MsgPack(array) => {
                elements::check_stated(stated, expected)?;
                msgpack::elements(&array, shape, count, expected)
            }
            Self::Json(array) => {
                elements::check_stated(stated, expected)?;
                json::elements(&array, shape, count, expected)
            }
        }
    }
}

/// A message to be encoded: strings first, then tensors, then what a request asks for.
pub(super) struct Outgoing<'a> {
    pub strings: &'a [(&'static str, &'a str)],
    pub tensors: Option<(&'static str, &'a [ReplyOutput<'a>])>,
    pub requested: &'a [RequestedOutput],
}

pub(super) const REQUEST_KEYS: [&str; 4] = ["id", "inputs", "outputs", "parameters"];
pub(super) const REPLY_KEYS: [&str; 6] = ["model_name", "model_version", "id", "outputs", "error", "code"];
pub(super) const ENTRY_KEYS: [&str; 5] = ["name", "datatype", "shape", "data", "parameters"];
pub(super) const REQUEST_PARAMETERS: [&str; 1] = ["binary_data_output"];
pub(super) const ENTRY_PARAMETERS: [&str; 2] = ["binary_data", "binary_data_size"];

/// Most inputs, or outputs, of one message: far more than models have (a few columns of a table, one input each),
/// and few enough that a body of empty entries costs no memory worth mentioning.
pub const TENSORS_MAX: usize = 1024;

// What each encoding says is allowed, in the same words.
pub(super) const A_MAP: &str = "a map";
pub(super) const A_STRING: &str = "a string";
pub(super) const A_BOOLEAN: &str = "true or false";
pub(super) const A_COUNT: &str = "an integer >= 0";
pub(super) const A_LIST: &str = "an array of maps";
pub(super) const A_SHAPE: &str = "an array of integers >= 0";
pub(super) const DATA: &str = "an array, or raw bytes where the encoding has them";
