//! The binary tensor extension: a JSON header, then the raw data of the tensors that state a size, in their order.
//!
//! # Source
//! Triton, "Binary Tensor Data Extension"; `tritonclient.http`, `_get_inference_request` and `InferResult`.

use bytes::{Buf, Bytes};

use super::error::{Index, Problem, WireError};
use super::message::{Data, Entry, Message, Outgoing};
use super::{Encoded, Encoding, json};

pub(super) fn read_request(body: &Bytes, json_bytes: usize) -> Result<Message, WireError> {
    let (header, tail) = split(body, json_bytes)?;
    let mut message = json::read_request(&header)?;
    distribute(message.inputs.as_deref_mut(), "inputs", tail)?;
    Ok(message)
}

pub(super) fn read_reply(body: &Bytes, json_bytes: usize) -> Result<Message, WireError> {
    let (header, tail) = split(body, json_bytes)?;
    let mut message = json::read_reply(&header)?;
    distribute(message.outputs.as_deref_mut(), "outputs", tail)?;
    Ok(message)
}

fn split(body: &Bytes, json_bytes: usize) -> Result<(Bytes, Bytes), WireError> {
    if json_bytes > body.len() {
        let body_bytes = body.len();
        return Err(Problem::JsonBytes {
            json_bytes,
            body_bytes,
        }
        .into());
    }
    Ok((body.slice(..json_bytes), body.slice(json_bytes..)))
}

/// Gives each tensor its slice of the tail, without copying.
fn distribute(
    entries: Option<&mut [Entry]>,
    list: &'static str,
    mut tail: Bytes,
) -> Result<(), WireError> {
    for (index, entry) in entries.unwrap_or_default().iter_mut().enumerate() {
        let Some(wanted) = entry.binary_data_size.take() else {
            continue;
        };
        let refused = |problem: Problem| WireError::from(problem).within(Index(index)).within(list);
        if entry.data.is_some() {
            return Err(refused(Problem::DataTwice));
        }
        let left = tail.len();
        if wanted > left {
            return Err(refused(Problem::TailShort { wanted, left }));
        }
        entry.data = Some(Data::Raw(tail.split_to(wanted)));
    }
    match tail.remaining() {
        0 => Ok(()),
        bytes => Err(Problem::TailLeftover { bytes }.into()),
    }
}

pub(super) fn encode(message: &Outgoing<'_>) -> Encoded {
    let mut body = json::header(message);
    let json_bytes = body.len();
    let tensors = message.tensors.map_or(&[][..], |(_, tensors)| tensors);
    let binary = || tensors.iter().filter(|tensor| tensor.binary);
    body.reserve_exact(binary().map(|tensor| tensor.bytes()).sum());
    for part in binary().flat_map(|tensor| tensor.parts) {
        body.extend_from_slice(part);
    }
    Encoded {
        body,
        json_bytes: Some(json_bytes),
        content_type: Encoding::Binary { json_bytes }.content_type(),
    }
}
