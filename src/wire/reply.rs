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
    /// Joined, the data as in [`Tensor`]; a job that was run in slices has several. Each holds whole elements,
    /// and all together hold as many as the shape says.
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
pub fn encode_reply(encoding: &Encoding, meta: &ReplyMeta<'_>, outputs: &[ReplyOutput<'_>]) -> Encoded {
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
#[expect(
    clippy::needless_pass_by_value,
    reason = "a reply keeps slices of the body, and its caller has done with it"
)]
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
        let output =
            |(index, entry)| output(entry).map_err(|refusal: WireError| refusal.within(Index(index)).within("outputs"));
        Ok(Self::Result {
            model_name: required(message.model_name, "model_name", A_STRING)?,
            model_version: required(message.model_version, "model_version", A_STRING)?,
            id: message.id,
            outputs: outputs.into_iter().enumerate().map(output).collect::<Result<_, _>>()?,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::JSON_BYTES_HEADER;

    const META: ReplyMeta<'_> = ReplyMeta {
        model_name: "seed",
        model_version: "3",
        id: None,
    };

    fn outputs(binary: bool) -> [ReplyOutput<'static>; 1] {
        [ReplyOutput {
            name: "y",
            datatype: Datatype::Fp32,
            shape: &[2, 1],
            parts: &[&[0, 0, 0x80, 0x3f], &[0xcd, 0xcc, 0xcc, 0x3d]],
            binary,
        }]
    }

    #[test]
    fn a_json_reply_is_the_protocols_response() {
        let encoded = encode_reply(&Encoding::Json, &META, &outputs(true));

        let expected = r#"{"model_name":"seed","model_version":"3","outputs":[{"name":"y","datatype":"FP32","shape":[2,1],"data":[1.0,0.1]}]}"#;
        assert_eq!(std::str::from_utf8(&encoded.body).unwrap(), expected);
        assert_eq!(encoded.content_type, "application/json");
    }

    #[test]
    fn a_msgpack_reply_is_the_same_map_with_its_data_as_bin_or_as_numbers() {
        let raw = encode_reply(&Encoding::MsgPack, &META, &outputs(true));
        let numbers = encode_reply(&Encoding::MsgPack, &META, &outputs(false));

        let map: serde_json::Value = rmp_serde::from_slice(&numbers.body).unwrap();
        assert_eq!(map["outputs"][0]["shape"], serde_json::json!([2, 1]));
        assert_eq!(map["outputs"][0]["data"][0], 1.0);
        assert!(raw.body.ends_with(b"\xa4data\xc4\x08\0\0\x80?\xcd\xcc\xcc="));
        assert_eq!(raw.content_type, "application/msgpack");
    }

    #[test]
    fn a_binary_reply_has_its_raw_outputs_behind_the_json() {
        let encoding = Encoding::Binary { json_bytes: 0 };

        let encoded = encode_reply(&encoding, &META, &outputs(true));

        let (json, tail) = encoded.body.split_at(encoded.json_bytes.unwrap());
        let json: serde_json::Value = serde_json::from_slice(json).unwrap();
        assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 8);
        assert_eq!(tail, b"\0\0\x80?\xcd\xcc\xcc=");
        assert_eq!(encoded.content_type, "application/octet-stream");
    }

    #[test]
    fn an_error_to_a_binary_job_is_plain_json_and_needs_no_header() {
        let encoding = Encoding::Binary { json_bytes: 0 };

        let encoded = encode_error(&encoding, Status::NotFound, "no such version");

        assert_eq!(encoded.body, &br#"{"error":"no such version","code":"NOT_FOUND"}"#[..]);
        assert_eq!(encoded.content_type, "application/json");
        assert_eq!(encoded.json_bytes, None, "so {JSON_BYTES_HEADER} is not set");
    }

    #[test]
    fn a_reply_that_is_neither_result_nor_error_is_refused() {
        for (body, place) in [
            ("{}", "outputs: is missing"),
            (r#"{"error":"x"}"#, "code: is missing"),
            (r#"{"error":"x","code":"OOPS"}"#, "code: `OOPS` is not a status"),
            (r#"{"outputs":[]}"#, "model_name: is missing"),
            (
                r#"{"model_name":"m","model_version":"1","outputs":[{"name":"y"}]}"#,
                "outputs[0].datatype: is missing",
            ),
            (
                r#"{"model_name":"m","model_version":"1","outputs":[{"name":"y","datatype":"INT8","shape":[1],"data":[300]}]}"#,
                "outputs[0].data: element 0",
            ),
        ] {
            let refusal = decode_reply(&Encoding::Json, body.into()).unwrap_err();

            assert!(refusal.to_string().starts_with(place), "{refusal}");
        }
    }
}
