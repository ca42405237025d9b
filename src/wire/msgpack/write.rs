//! MessagePack as it is written: to a body, or to a counter that tells how long the body will be.

use half::{bf16, f16};
use rmp::Marker;

use crate::wire::reply::ReplyOutput;
use crate::wire::tensor::{Datatype, bytes_elements};

/// Where bytes go. Writing twice, first to [`Length`], lets the body be allocated once and exactly.
pub(super) trait Sink {
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Counts what would be written.
#[derive(Debug, Default)]
pub(super) struct Length(pub usize);

impl Sink for Length {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

pub(super) fn map(sink: &mut impl Sink, pairs: usize) {
    match short(pairs, 15) {
        Some(pairs) => sink.put(&[Marker::FixMap(pairs).to_u8()]),
        None => head(sink, pairs, &[(Marker::Map16, 2), (Marker::Map32, 4)]),
    }
}

pub(super) fn array(sink: &mut impl Sink, length: usize) {
    match short(length, 15) {
        Some(length) => sink.put(&[Marker::FixArray(length).to_u8()]),
        None => head(sink, length, &[(Marker::Array16, 2), (Marker::Array32, 4)]),
    }
}

pub(super) fn string(sink: &mut impl Sink, text: &str) {
    match short(text.len(), 31) {
        Some(length) => sink.put(&[Marker::FixStr(length).to_u8()]),
        None => {
            let heads = [(Marker::Str8, 1), (Marker::Str16, 2), (Marker::Str32, 4)];
            head(sink, text.len(), &heads);
        }
    }
    sink.put(text.as_bytes());
}

pub(super) fn boolean(sink: &mut impl Sink, value: bool) {
    let marker = if value { Marker::True } else { Marker::False };
    sink.put(&[marker.to_u8()]);
}

pub(super) fn unsigned(sink: &mut impl Sink, value: u64) {
    let bytes = value.to_be_bytes();
    match value {
        0..=0x7f => sink.put(&bytes[7..]),
        0x80..=0xff => marked(sink, Marker::U8, &bytes[7..]),
        0x100..=0xffff => marked(sink, Marker::U16, &bytes[6..]),
        0x1_0000..=0xffff_ffff => marked(sink, Marker::U32, &bytes[4..]),
        _ => marked(sink, Marker::U64, &bytes),
    }
}

pub(super) fn signed(sink: &mut impl Sink, value: i64) {
    if let Ok(value) = u64::try_from(value) {
        return unsigned(sink, value);
    }
    let bytes = value.to_be_bytes();
    match value {
        -0x20.. => sink.put(&bytes[7..]),
        -0x80..-0x20 => marked(sink, Marker::I8, &bytes[7..]),
        -0x8000..-0x80 => marked(sink, Marker::I16, &bytes[6..]),
        -0x8000_0000..-0x8000 => marked(sink, Marker::I32, &bytes[4..]),
        _ => marked(sink, Marker::I64, &bytes),
    }
}

/// The parts of a tensor as one `bin`.
pub(super) fn bin(sink: &mut impl Sink, parts: &[&[u8]]) {
    let length = parts.iter().map(|part| part.len()).sum();
    let heads = [(Marker::Bin8, 1), (Marker::Bin16, 2), (Marker::Bin32, 4)];
    head(sink, length, &heads);
    for part in parts {
        sink.put(part);
    }
}

/// The parts of a tensor as one flat array. Strings that are not UTF-8 are written as `bin`, so nothing is lost.
pub(super) fn flat(sink: &mut impl Sink, tensor: &ReplyOutput<'_>) {
    array(sink, tensor.shape.iter().product());
    for part in tensor.parts {
        match tensor.datatype {
            Datatype::Bool => each(sink, part, |sink, [byte]: [u8; 1]| boolean(sink, byte != 0)),
            Datatype::Uint8 => each(sink, part, |sink, b| unsigned(sink, u8::from_le_bytes(b).into())),
            Datatype::Uint16 => each(sink, part, |sink, b| unsigned(sink, u16::from_le_bytes(b).into())),
            Datatype::Uint32 => each(sink, part, |sink, b| unsigned(sink, u32::from_le_bytes(b).into())),
            Datatype::Uint64 => each(sink, part, |sink, b| unsigned(sink, u64::from_le_bytes(b))),
            Datatype::Int8 => each(sink, part, |sink, b| signed(sink, i8::from_le_bytes(b).into())),
            Datatype::Int16 => each(sink, part, |sink, b| signed(sink, i16::from_le_bytes(b).into())),
            Datatype::Int32 => each(sink, part, |sink, b| signed(sink, i32::from_le_bytes(b).into())),
            Datatype::Int64 => each(sink, part, |sink, b| signed(sink, i64::from_le_bytes(b))),
            Datatype::Fp16 => each(sink, part, |sink, b| float32(sink, f16::from_le_bytes(b).into())),
            Datatype::Bf16 => each(sink, part, |sink, b| float32(sink, bf16::from_le_bytes(b).into())),
            Datatype::Fp32 => each(sink, part, |sink, b| float32(sink, f32::from_le_bytes(b))),
            Datatype::Fp64 => each(sink, part, |sink, b| {
                marked(sink, Marker::F64, &f64::from_le_bytes(b).to_be_bytes());
            }),
            Datatype::Bytes => bytes_elements(part).for_each(|element| match std::str::from_utf8(element) {
                Ok(text) => string(sink, text),
                Err(_) => bin(sink, &[element]),
            }),
        }
    }
}

fn float32(sink: &mut impl Sink, value: f32) {
    marked(sink, Marker::F32, &value.to_be_bytes());
}

fn each<S: Sink, const N: usize>(sink: &mut S, part: &[u8], write: impl Fn(&mut S, [u8; N])) {
    let (elements, rest) = part.as_chunks();
    debug_assert!(rest.is_empty(), "a part holds whole elements");
    for element in elements {
        write(sink, *element);
    }
}

/// The length, if it fits into the marker itself.
fn short(length: usize, length_max: u8) -> Option<u8> {
    u8::try_from(length).ok().filter(|&length| length <= length_max)
}

/// Writes the first of the markers whose bytes for the length suffice; `heads` ends with one of four bytes.
///
/// # Panics
/// If the length has more than four bytes: MessagePack has no head for it, and a broker takes no such message
/// (RabbitMQ 512 MiB at the very most).
fn head(sink: &mut impl Sink, length: usize, heads: &[(Marker, usize)]) {
    let bytes = u32::try_from(length)
        .expect("a message that a broker takes is shorter than 4 GiB")
        .to_be_bytes();
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    let fitting = heads.iter().find(|(_, width)| 4 - width <= zeros);
    let (marker, width) = fitting.expect("the last head has four bytes, and 0 <= zeros");
    marked(sink, *marker, &bytes[4 - width..]);
}

fn marked(sink: &mut impl Sink, marker: Marker, bytes: &[u8]) {
    sink.put(&[marker.to_u8()]);
    sink.put(bytes);
}
