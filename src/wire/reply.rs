//! A reply's body: the outputs of one job, or the reason why there are none.

use bytes::Bytes;

use super::error::{Index, Problem, WireError, excerpt};
use super::message::{A_LIST, A_SHAPE, A_STRING, DATA, Entry, Message, Outgoing};
use super::status::Status;
use super::tensor::{Datatype, Tensor};
use super::{Encoded, Encoding, binary, json, msgpack};

/// What a reply says besides its outputs.
#[derive(Debug, Clone, Copy)]
pub struct ReplyMeta<'a> {
    pub model_name: &'a str,
    pub model_version: &'a str,
    /// The request's, if it had one.
    pub id: Option<&'a str>,
}

/// One output, its data wherever the runtime left them.
#[derive(Debug, Clone, Copy)]
pub struct ReplyOutput<'a> {
    pub name: &'a str,
    pub datatype: Datatype,
    pub shape: &'a [usize],
    /// Joined, the data as in [`Tensor`]; a job that was run in slices has several. Each holds whole elements.
    pub parts: &'a [&'a [u8]],
    /// As raw bytes; JSON, which has none, takes no notice. See [`super::request::Request::wants_binary`].
    pub binary: bool,
}

impl ReplyOutput<'_> {
    pub(super) fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }
}

/// Encodes a result. For MessagePack and for raw outputs the body is allocated once, at its exact length.
///
/// # Panics
/// If an output has 4 GiB or more and the encoding is MessagePack; no broker takes such a message.
pub fn encode_reply(
    encoding: &Encoding,
    meta: &ReplyMeta<'_>,
    outputs: &[ReplyOutput<'_>],
) -> Encoded {
    let strings = [
        ("model_name", meta.model_name),
        ("model_version", meta.model_version),
        ("id", meta.id.unwrap_or_default()),
    ];
    let message = Outgoing {
        strings: &strings[..2 + usize::from(meta.id.is_some())],
        tensors: Some(("outputs", outputs)),
        requested: &[],
    };
    match encoding {
        Encoding::MsgPack => msgpack::encode(&message),
        Encoding::Json => json::encode(&message),
        Encoding::Binary { .. } => binary::encode(&message),
    }
}

/// Encodes a failure; to a job of the binary extension as plain JSON.
pub fn encode_error(encoding: &Encoding, code: Status, message: &str) -> Encoded {
    let message = Outgoing {
        strings: &[("error", message), ("code", code.name())],
        tensors: None,
        requested: &[],
    };
    match encoding {
        Encoding::MsgPack => msgpack::encode(&message),
        Encoding::Json | Encoding::Binary { .. } => json::encode(&message),
    }
}

/// A reply as its producer reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Result {
        model_name: String,
        model_version: String,
        id: Option<String>,
        outputs: Vec<Tensor>,
    },
    Error {
        error: String,
        code: Status,
    },
}

/// Reads a reply. Raw outputs stay slices of the body; memory: see [`crate::wire`].
///
/// # Errors
/// If the body is neither a result nor an error, or not what `encoding` says.
pub fn decode_reply(encoding: &Encoding, body: Bytes) -> Result<Reply, WireError> {
    let message = match *encoding {
        Encoding::MsgPack => msgpack::read_reply(&body)?,
        Encoding::Json => json::read_reply(&body)?,
        Encoding::Binary { json_bytes } => binary::read_reply(&body, json_bytes)?,
    };
    Reply::try_from(message)
}

impl TryFrom<Message> for Reply {
    type Error = WireError;

    fn try_from(message: Message) -> Result<Self, WireError> {
        if let Some(error) = message.error {
            let code = required(message.code, "code", A_STRING)?;
            let code = code.parse().map_err(|cause| {
                let came = excerpt(&code);
                Problem::Status { came, cause }.at("code")
            })?;
            return Ok(Self::Error { error, code });
        }
        let outputs = required(message.outputs, "outputs", A_LIST)?;
        let output = |(index, entry)| {
            output(entry)
                .map_err(|refusal: WireError| refusal.within(Index(index)).within("outputs"))
        };
        Ok(Self::Result {
            model_name: required(message.model_name, "model_name", A_STRING)?,
            model_version: required(message.model_version, "model_version", A_STRING)?,
            id: message.id,
            outputs: outputs
                .into_iter()
                .enumerate()
                .map(output)
                .collect::<Result<_, _>>()?,
        })
    }
}

fn output(entry: Entry) -> Result<Tensor, WireError> {
    let name = required(entry.name, "name", A_STRING)?;
    let datatype = required(entry.datatype, "datatype", A_STRING)?;
    let shape = required(entry.shape, "shape", A_SHAPE)?;
    let data = required(entry.data, "data", DATA)?
        .decode(Some(datatype), &shape, datatype)
        .map_err(|problem| problem.at("data"))?;
    Ok(Tensor {
        name,
        datatype,
        shape,
        data,
    })
}

fn required<T>(value: Option<T>, key: &'static str, allowed: &'static str) -> Result<T, WireError> {
    value.ok_or_else(|| Problem::Missing { allowed }.at(key))
}
