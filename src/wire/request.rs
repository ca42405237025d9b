//! A job's body: one inference request of the Open Inference Protocol.
//!
//! Decoding checks all that can be known without the model; [`RequestInput::into_tensor`] checks the rest. Which
//! inputs a model has is the worker's question.

use std::collections::HashSet;

use bytes::Bytes;

use super::error::{Index, Problem, WireError, excerpt};
use super::message::{A_LIST, A_SHAPE, A_STRING, DATA, Data, Entry, Message, Outgoing};
use super::reply::ReplyOutput;
use super::tensor::{Datatype, Tensor, element_count};
use super::{Encoded, Encoding, binary, json, msgpack};

#[derive(Debug)]
pub struct Request {
    pub id: Option<String>,
    /// In the order they came; no two have the same name.
    pub inputs: Vec<RequestInput>,
    /// The outputs asked for; `None`, also for an empty list, is all of them.
    pub outputs: Option<Vec<RequestedOutput>>,
    /// `parameters.binary_data_output`: the rule for outputs that do not say.
    pub binary_output: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedOutput {
    pub name: String,
    /// `parameters.binary_data`.
    pub binary: Option<bool>,
}

/// One input, its data still as they lie in the body.
#[derive(Debug)]
pub struct RequestInput {
    /// May be absent where the model has a single input.
    pub name: Option<String>,
    pub datatype: Option<Datatype>,
    pub shape: Vec<usize>,
    data: Data,
}

/// Reads one body. Raw tensors stay slices of it; memory: see [`crate::wire`].
///
/// # Errors
/// If the body is not what `encoding` says, breaks the protocol, or names an input twice.
pub fn decode_request(encoding: &Encoding, body: Bytes) -> Result<Request, WireError> {
    let message = match *encoding {
        Encoding::MsgPack => msgpack::read_request(&body)?,
        Encoding::Json => json::read_request(&body)?,
        Encoding::Binary { json_bytes } => binary::read_request(&body, json_bytes)?,
    };
    Request::try_from(message)
}

impl Request {
    /// Whether an output goes back as raw bytes: as the output says, else the request, else as the encoding
    /// does best. Meaningless for JSON, which has no raw bytes.
    pub fn wants_binary(&self, output: &str, encoding: &Encoding) -> bool {
        let requested = self.outputs.iter().flatten();
        let of_output = requested
            .filter(|requested| requested.name == output)
            .find_map(|requested| requested.binary);
        of_output.or(self.binary_output).unwrap_or(match encoding {
            Encoding::MsgPack | Encoding::Binary { .. } => true,
            Encoding::Json => false,
        })
    }
}

impl TryFrom<Message> for Request {
    type Error = WireError;

    fn try_from(message: Message) -> Result<Self, WireError> {
        let inputs = message
            .inputs
            .ok_or_else(|| Problem::Missing { allowed: A_LIST }.at("inputs"))?;
        let input = |(index, entry)| {
            RequestInput::try_from(entry)
                .map_err(|refusal: WireError| refusal.within(Index(index)).within("inputs"))
        };
        let inputs: Vec<_> = inputs
            .into_iter()
            .enumerate()
            .map(input)
            .collect::<Result<_, _>>()?;
        check_names(&inputs)?;
        let requested = message.outputs.unwrap_or_default().into_iter().enumerate();
        let outputs: Vec<_> = requested
            .map(|(index, entry)| requested_output(entry, index))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            id: message.id,
            inputs,
            outputs: Some(outputs).filter(|outputs| !outputs.is_empty()),
            binary_output: message.binary_data_output,
        })
    }
}

impl TryFrom<Entry> for RequestInput {
    type Error = WireError;

    fn try_from(entry: Entry) -> Result<Self, WireError> {
        let shape = entry
            .shape
            .ok_or_else(|| Problem::Missing { allowed: A_SHAPE }.at("shape"))?;
        if element_count(&shape).is_none() {
            return Err(Problem::ShapeOverflow.at("shape"));
        }
        let data = match (entry.data, entry.binary_data_size) {
            (Some(data), None) => data,
            (_, Some(_)) => return Err(Problem::BinaryInJson.into()),
            (None, None) => return Err(Problem::Missing { allowed: DATA }.at("data")),
        };
        Ok(Self {
            name: entry.name,
            datatype: entry.datatype,
            shape,
            data,
        })
    }
}

impl RequestInput {
    /// The tensor as the model takes it. Raw data are only checked, numbers of an array take the model's type.
    ///
    /// Time: one pass over the data if they are an array, BYTES or BOOL; constant for all else.
    /// # Errors
    /// If the data are of another datatype, or of another length than the shape says.
    pub fn into_tensor(self, name: &str, expected: Datatype) -> Result<Tensor, WireError> {
        let data = self
            .data
            .decode(self.datatype, &self.shape, expected)
            .map_err(|problem| problem.at(&format!("input `{}`", excerpt(name))))?;
        Ok(Tensor {
            name: name.to_owned(),
            datatype: expected,
            shape: self.shape,
            data,
        })
    }
}

fn check_names(inputs: &[RequestInput]) -> Result<(), WireError> {
    let mut names = HashSet::new();
    for name in inputs.iter().filter_map(|input| input.name.as_deref()) {
        // A set of one name needs no memory, and most jobs have one input.
        if inputs.len() > 1 && !names.insert(name) {
            return Err(Problem::NameTwice.at(&format!("input `{}`", excerpt(name))));
        }
    }
    Ok(())
}

fn requested_output(entry: Entry, index: usize) -> Result<RequestedOutput, WireError> {
    let name = entry.name.ok_or_else(|| {
        Problem::Missing { allowed: A_STRING }
            .at("name")
            .within(Index(index))
            .within("outputs")
    })?;
    Ok(RequestedOutput {
        name,
        binary: entry.binary_data,
    })
}

/// How a producer wants its request encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestEncoding {
    /// Every input as `bin`.
    MsgPack,
    Json,
    /// Every input raw behind the JSON.
    Binary,
}

/// Encodes a request, as a producer does. BYTES that are not UTF-8 do not survive JSON.
///
/// # Panics
/// If a tensor has 4 GiB or more and the encoding is MessagePack; no broker takes such a message.
pub fn encode_request(
    encoding: RequestEncoding,
    id: Option<&str>,
    inputs: &[Tensor],
    outputs: &[RequestedOutput],
) -> Encoded {
    let parts: Vec<[&[u8]; 1]> = inputs.iter().map(|input| [&input.data[..]]).collect();
    // An input is written as the output of a reply is.
    let tensors: Vec<_> = inputs
        .iter()
        .zip(&parts)
        .map(|(input, parts)| ReplyOutput {
            name: &input.name,
            datatype: input.datatype,
            shape: &input.shape,
            parts,
            binary: encoding != RequestEncoding::Json,
        })
        .collect();
    let id = id.map(|id| ("id", id));
    let message = Outgoing {
        strings: id.as_slice(),
        tensors: Some(("inputs", &tensors)),
        requested: outputs,
    };
    match encoding {
        RequestEncoding::MsgPack => msgpack::encode(&message),
        RequestEncoding::Json => json::encode(&message),
        RequestEncoding::Binary => binary::encode(&message),
    }
}
