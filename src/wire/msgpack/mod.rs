//! MessagePack bodies: read in one pass, in whatever order the keys come, with `bin` left where it lies.
//!
//! The walk is written by hand because a job's tensors must not be copied on the way in: serde would hand out
//! borrowed bytes, but not slices that share the body's ownership.

mod read;
mod write;

use bytes::Bytes;

use super::elements::{Elements, Scalar};
use super::error::{Index, Problem, WireError, excerpt};
use super::message::{
    A_LIST, A_SHAPE, DATA, Data, ENTRY_KEYS, ENTRY_PARAMETERS, Entry, Message, Outgoing, REPLY_KEYS, REQUEST_KEYS,
    REQUEST_PARAMETERS, TENSORS_MAX,
};
use super::reply::ReplyOutput;
use super::tensor::{AXES_MAX, Datatype};
use super::{Encoded, Encoding};
use read::{Reader, Token};
use write::{Length, Sink};

pub(super) fn read_request(body: &Bytes) -> Result<Message, WireError> {
    read(body, &REQUEST_KEYS)
}

pub(super) fn read_reply(body: &Bytes) -> Result<Message, WireError> {
    read(body, &REPLY_KEYS)
}

/// Whether a body is little else than `bin`. One that is no MessagePack counts as such: it is refused as quickly.
pub(super) fn is_raw(body: &[u8]) -> bool {
    // What is nested comes right behind its head, so that a body is one row of tokens.
    let mut reader = Reader::new(body);
    (0..TOKENS_MAX).any(|_| reader.left() == 0 || reader.token().is_err())
}

fn read(body: &Bytes, keys: &[&'static str]) -> Result<Message, WireError> {
    let mut reader = Reader::new(body);
    let mut message = Message::default();
    each_pair(&mut reader, keys, |reader, key| {
        match key {
            "id" => message.id = Some(reader.string()?.to_owned()),
            "model_name" => message.model_name = Some(reader.string()?.to_owned()),
            "model_version" => message.model_version = Some(reader.string()?.to_owned()),
            "error" => message.error = Some(reader.string()?.to_owned()),
            "code" => message.code = Some(reader.string()?.to_owned()),
            "inputs" => message.inputs = Some(entries(body, reader)?),
            "outputs" => message.outputs = Some(entries(body, reader)?),
            "parameters" => each_pair(reader, &REQUEST_PARAMETERS, |reader, _| {
                message.binary_data_output = Some(reader.boolean()?);
                Ok(())
            })?,
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    match reader.left() {
        0 => Ok(message),
        bytes => Err(Problem::TrailingBytes { bytes }.into()),
    }
}

fn entries(body: &Bytes, reader: &mut Reader<'_>) -> Result<Vec<Entry>, WireError> {
    let length = reader.array(A_LIST)?;
    if length > TENSORS_MAX {
        return Err(Problem::TooMany { max: TENSORS_MAX }.into());
    }
    let mut entries = Vec::with_capacity(length);
    for index in 0..length {
        let entry = entry(body, reader).map_err(|refusal| refusal.within(Index(index)))?;
        entries.push(entry);
    }
    Ok(entries)
}

fn entry(body: &Bytes, reader: &mut Reader<'_>) -> Result<Entry, WireError> {
    let mut entry = Entry::default();
    each_pair(reader, &ENTRY_KEYS, |reader, key| {
        match key {
            "name" => entry.name = Some(reader.string()?.to_owned()),
            "datatype" => entry.datatype = Some(datatype(reader.string()?)?),
            "shape" => entry.shape = Some(shape(reader)?),
            "data" => entry.data = Some(data(body, reader)?),
            "parameters" => each_pair(reader, &ENTRY_PARAMETERS, |reader, key| {
                match key {
                    "binary_data" => entry.binary_data = Some(reader.boolean()?),
                    "binary_data_size" => entry.binary_data_size = Some(reader.count()?),
                    _ => reader.skip()?,
                }
                Ok(())
            })?,
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    Ok(entry)
}

/// Reads a map: hands the values of `keys` to `read`, skips all others. A nil is as if its key had not come.
fn each_pair<'a>(
    reader: &mut Reader<'a>,
    keys: &[&'static str],
    mut read: impl FnMut(&mut Reader<'a>, &'static str) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let mut seen = 0_u32;
    for _ in 0..reader.map()? {
        let key = reader.string()?;
        let Some(index) = keys.iter().position(|&known| known == key) else {
            reader.skip().map_err(|problem| problem.at(&excerpt(key)))?;
            continue;
        };
        if seen >> index & 1 == 1 {
            return Err(Problem::Duplicate.at(keys[index]));
        }
        seen |= 1 << index;
        if !reader.skip_nil() {
            read(reader, keys[index]).map_err(|refusal| refusal.within(keys[index]))?;
        }
    }
    Ok(())
}

fn datatype(name: &str) -> Result<Datatype, Problem> {
    name.parse().map_err(|cause| Problem::Datatype {
        came: excerpt(name),
        cause,
    })
}

fn shape(reader: &mut Reader<'_>) -> Result<Vec<usize>, Problem> {
    let axes = reader.array(A_SHAPE)?;
    if axes > AXES_MAX {
        return Err(Problem::Axes);
    }
    (0..axes).map(|_| reader.count()).collect()
}

fn data(body: &Bytes, reader: &mut Reader<'_>) -> Result<Data, Problem> {
    if reader.is_array() {
        let start = body.len() - reader.left();
        reader.skip()?;
        return Ok(Data::MsgPack(body.slice(start..body.len() - reader.left())));
    }
    match reader.token()? {
        Token::Bin(raw) => Ok(Data::Raw(body.slice_ref(raw))),
        other => Err(read::kind(&other, DATA)),
    }
}

/// Decodes an array that [`data`] has walked over; `count` is the number of elements of `shape`.
pub(super) fn elements(array: &[u8], shape: &[usize], count: usize, expected: Datatype) -> Result<Bytes, Problem> {
    // An element has one byte at least.
    let mut elements = Elements::new(expected, count.min(array.len()));
    let mut reader = Reader::new(array);
    let mut inside = reader.clone();
    inside.array(DATA)?;
    match shape {
        [outer, inner @ ..] if inside.is_array() => fill(&mut reader, *outer, inner, &mut elements)?,
        _ => fill(&mut reader, count, &[], &mut elements)?,
    }
    Ok(elements.finish())
}

/// One array of `length`, and the arrays in it, as deep as `inner` has axes.
fn fill(reader: &mut Reader<'_>, length: usize, inner: &[usize], elements: &mut Elements) -> Result<(), Problem> {
    let came = match reader.token()? {
        Token::Array(came) => came,
        other => return Err(Problem::nesting(other.kind(), "an array")),
    };
    if came != length {
        return Err(Problem::length(came, length));
    }
    for _ in 0..length {
        match inner {
            [] => elements.push(&scalar(reader.token()?)?)?,
            [length, inner @ ..] => fill(reader, *length, inner, elements)?,
        }
    }
    Ok(())
}

fn scalar(token: Token<'_>) -> Result<Scalar<'_>, Problem> {
    Ok(match token {
        Token::Bool(value) => Scalar::Bool(value),
        Token::Unsigned(value) => Scalar::Integer(value.into()),
        Token::Signed(value) => Scalar::Integer(value.into()),
        Token::Float32(value) => Scalar::Float(value.into()),
        Token::Float64(value) => Scalar::Float(value),
        Token::Str(bytes) | Token::Bin(bytes) => Scalar::Binary(bytes),
        Token::Nil => Scalar::Nil,
        Token::Array(_) | Token::Map(_) => {
            return Err(Problem::nesting(token.kind(), "an element"));
        }
    })
}

/// Encodes into one allocation of exactly the body's length.
pub(super) fn encode(message: &Outgoing<'_>) -> Encoded {
    let mut length = Length::default();
    write_message(&mut length, message);
    let mut body = Vec::with_capacity(length.0);
    write_message(&mut body, message);
    Encoded {
        body: body.into(),
        json_bytes: None,
        content_type: Encoding::MsgPack.content_type(),
    }
}

fn write_message(sink: &mut impl Sink, message: &Outgoing<'_>) {
    let lists = usize::from(message.tensors.is_some()) + usize::from(!message.requested.is_empty());
    write::map(sink, message.strings.len() + lists);
    for (key, text) in message.strings {
        write::string(sink, key);
        write::string(sink, text);
    }
    if let Some((key, tensors)) = message.tensors {
        write::string(sink, key);
        write::array(sink, tensors.len());
        for tensor in tensors {
            write_tensor(sink, tensor);
        }
    }
    if !message.requested.is_empty() {
        write::string(sink, "outputs");
        write::array(sink, message.requested.len());
        for output in message.requested {
            write::map(sink, 1 + usize::from(output.binary.is_some()));
            write::string(sink, "name");
            write::string(sink, &output.name);
            if let Some(binary) = output.binary {
                write::string(sink, "parameters");
                write::map(sink, 1);
                write::string(sink, "binary_data");
                write::boolean(sink, binary);
            }
        }
    }
}

fn write_tensor(sink: &mut impl Sink, tensor: &ReplyOutput<'_>) {
    let named = !tensor.name.is_empty();
    write::map(sink, 3 + usize::from(named));
    if named {
        write::string(sink, "name");
        write::string(sink, tensor.name);
    }
    write::string(sink, "datatype");
    write::string(sink, tensor.datatype.name());
    write::string(sink, "shape");
    write::array(sink, tensor.shape.len());
    for &axis in tensor.shape {
        write::unsigned(sink, axis as u64);
    }
    write::string(sink, "data");
    if tensor.binary {
        write::bin(sink, tensor.parts);
    } else {
        write::flat(sink, tensor);
    }
}

/// More than the names and shapes of a hundred tensors; read in some 20 us.
const TOKENS_MAX: usize = 4096;
