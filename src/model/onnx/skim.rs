//! Copies an ONNX file without its weights: fields of Protocol Buffers, of which only those are told apart that may hold tensors.
//!
//! # Source
//! Protocol Buffers documentation, "Encoding": a field is a tag (number × 8 + wire type) and a varint, 4 or 8 bytes, or a length
//! and so many bytes. The numbers of the fields are those of `onnx.proto`.

use std::io::{BufReader, Read, Seek};

use super::OnnxErrorKind;
use super::tensor_proto::DataLocation;

/// Returns the bytes of the file, each long run of raw data replaced by its place.
///
/// # Errors
/// The file is cut, no ONNX model, or takes too much memory even without its weights.
pub(super) fn skim(file: impl Read + Seek) -> Result<Vec<u8>, OnnxErrorKind> {
    let mut source = Source::new(file)?;
    let mut copy = Vec::new();
    let length = source.length;
    source.copy(Holder::Model, length, &mut copy, 0)?;
    Ok(copy)
}

/// A message of ONNX's schema that may hold tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Model,
    TrainingInfo,
    Function,
    Graph,
    Node,
    Attribute,
    SparseTensor,
    Tensor,
}

impl Holder {
    /// The kind of message in a field; `None` where it holds no tensors.
    fn field(self, number: u64) -> Option<Self> {
        match (self, number) {
            (Self::Model, 7) | (Self::TrainingInfo, 1 | 2) | (Self::Attribute, 6 | 11) => Some(Self::Graph),
            (Self::Model, 20) => Some(Self::TrainingInfo),
            (Self::Model, 25) => Some(Self::Function),
            (Self::Function, 7) | (Self::Graph, 1) => Some(Self::Node),
            (Self::Function, 11) | (Self::Node, 5) => Some(Self::Attribute),
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::SparseTensor, 1 | 2) => Some(Self::Tensor),
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Some(Self::SparseTensor),
            _ => None,
        }
    }

    /// Fields whose bytes are a tensor's elements, little-endian: `raw_data`, `float_data` and `double_data`.
    fn is_data(self, number: u64) -> bool {
        self == Self::Tensor && matches!(number, 9 | 4 | 10)
    }
}

struct Source<R> {
    file: BufReader<R>,
    /// Bytes read or passed over.
    at: u64,
    length: u64,
}

impl<R: Read + Seek> Source<R> {
    fn new(mut file: R) -> Result<Self, OnnxErrorKind> {
        let length = file.seek(std::io::SeekFrom::End(0));
        let length = length.and_then(|length| file.rewind().map(|()| length));
        Ok(Self {
            length: length.map_err(OnnxErrorKind::Unreadable)?,
            file: BufReader::new(file),
            at: 0,
        })
    }

    /// Copies the fields of a message that ends before byte `end`.
    fn copy(&mut self, holder: Holder, end: u64, copy: &mut Vec<u8>, depth: usize) -> Result<(), OnnxErrorKind> {
        if depth > DEPTH_MAX {
            return Err(OnnxErrorKind::Nested { max: DEPTH_MAX });
        }
        while self.at < end {
            let offset = self.at;
            let tag = self.varint()?;
            let number = tag >> 3;
            match tag & 7 {
                VARINT => {
                    let value = self.varint()?;
                    push_varint(tag, copy);
                    push_varint(value, copy);
                }
                FIXED_64 => self.copy_plain(tag, 8, copy)?,
                FIXED_32 => self.copy_plain(tag, 4, copy)?,
                LENGTH => {
                    let length = self.varint()?;
                    let missing = self.at.saturating_add(length).saturating_sub(end);
                    if missing > 0 {
                        return Err(OnnxErrorKind::Cut { missing });
                    }
                    self.copy_bytes(holder, number, length, copy, depth)?;
                }
                _ => return Err(OnnxErrorKind::NoField { offset }),
            }
            if copy.len() > COPY_BYTES_MAX {
                return Err(OnnxErrorKind::TooLarge { max: COPY_BYTES_MAX });
            }
        }
        match self.at - end {
            0 => Ok(()),
            missing => Err(OnnxErrorKind::Cut { missing }),
        }
    }

    fn copy_bytes(
        &mut self,
        holder: Holder,
        number: u64,
        length: u64,
        copy: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), OnnxErrorKind> {
        if holder.is_data(number) && length > INLINE_BYTES_MAX as u64 {
            push_place(self.at, length, copy);
            return self.pass_over(length);
        }
        let tag = number << 3 | LENGTH;
        let Some(inner) = holder.field(number) else {
            push_varint(tag, copy);
            return self.copy_plain(length, length, copy);
        };
        let mut message = Vec::new();
        self.copy(inner, self.at + length, &mut message, depth + 1)?;
        push_varint(tag, copy);
        push_varint(message.len() as u64, copy);
        copy.extend(message);
        Ok(())
    }

    /// Copies so many bytes as they are, behind a number.
    fn copy_plain(&mut self, before: u64, length: u64, copy: &mut Vec<u8>) -> Result<(), OnnxErrorKind> {
        if length > COPY_BYTES_MAX as u64 {
            return Err(OnnxErrorKind::TooLarge { max: COPY_BYTES_MAX });
        }
        push_varint(before, copy);
        // Nothing is reserved for what a file only claims to hold.
        let read = self.file.by_ref().take(length).read_to_end(copy);
        let read = read.map_err(OnnxErrorKind::Unreadable)? as u64;
        self.at += read;
        match length - read {
            0 => Ok(()),
            missing => Err(OnnxErrorKind::Cut { missing }),
        }
    }

    fn pass_over(&mut self, length: u64) -> Result<(), OnnxErrorKind> {
        // It ends within the file, whose length is below 2^63.
        let passed = self.file.seek_relative(length as i64);
        passed.map_err(OnnxErrorKind::Unreadable)?;
        self.at += length;
        Ok(())
    }

    fn varint(&mut self) -> Result<u64, OnnxErrorKind> {
        let offset = self.at;
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let mut byte = [0];
            if self.file.read(&mut byte).map_err(OnnxErrorKind::Unreadable)? == 0 {
                return Err(OnnxErrorKind::Cut { missing: 1 });
            }
            self.at += 1;
            value |= u64::from(byte[0] & 0x7f) << shift.min(63);
            if byte[0] < 0x80 {
                return Ok(value);
            }
        }
        Err(OnnxErrorKind::NoField { offset })
    }
}

/// Writes what stands for data that lie at `offset` of the model's own file.
fn push_place(offset: u64, length: u64, copy: &mut Vec<u8>) {
    for (key, value) in [
        ("location", String::new()),
        ("offset", offset.to_string()),
        ("length", length.to_string()),
    ] {
        let mut entry = Vec::new();
        push_text(1, key, &mut entry);
        push_text(2, &value, &mut entry);
        push_varint(EXTERNAL_DATA << 3 | LENGTH, copy);
        push_varint(entry.len() as u64, copy);
        copy.extend(entry);
    }
    push_varint(DATA_LOCATION << 3 | VARINT, copy);
    push_varint(DataLocation::External as u64, copy);
}

fn push_text(number: u64, text: &str, copy: &mut Vec<u8>) {
    push_varint(number << 3 | LENGTH, copy);
    push_varint(text.len() as u64, copy);
    copy.extend(text.as_bytes());
}

fn push_varint(value: u64, copy: &mut Vec<u8>) {
    prost::encoding::encode_varint(value, copy);
}

/// Longest data that are read: shapes, axes, thresholds and labels are shorter, weights longer.
pub const INLINE_BYTES_MAX: usize = 4096;
/// prost decodes a hundred messages in each other, and a graph in a graph takes three.
const DEPTH_MAX: usize = 90;
/// A graph of a million nodes takes some 200 MB.
const COPY_BYTES_MAX: usize = 512 << 20;
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED_32: u64 = 5;
/// Fields of `TensorProto`.
const EXTERNAL_DATA: u64 = 13;
const DATA_LOCATION: u64 = 14;
