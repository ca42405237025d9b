//! JSON as it is written: floats as short as they read back the same, `FP32` as an `f32` and not as its `f64`.

use half::{bf16, f16};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use crate::wire::message::Outgoing;
use crate::wire::reply::ReplyOutput;
use crate::wire::request::RequestedOutput;
use crate::wire::tensor::{Datatype, bytes_elements};
use crate::wire::{Encoded, Encoding};

pub(in crate::wire) fn encode(message: &Outgoing<'_>) -> Encoded {
    Encoded {
        body: serialized(message, false).into(),
        json_bytes: None,
        content_type: Encoding::Json.content_type(),
    }
}

/// The JSON part of a binary body: tensors that are `binary` state their size instead of their data.
pub(in crate::wire) fn header(message: &Outgoing<'_>) -> Vec<u8> {
    serialized(message, true)
}

fn serialized(message: &Outgoing<'_>, binary_apart: bool) -> Vec<u8> {
    let document = Document { message, binary_apart };
    serde_json::to_vec(&document).expect("all keys are strings, and memory takes every byte")
}

struct Document<'a> {
    message: &'a Outgoing<'a>,
    binary_apart: bool,
}

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, text) in self.message.strings {
            map.serialize_entry(key, text)?;
        }
        if let Some((key, tensors)) = self.message.tensors {
            let entry = |tensor| TensorEntry {
                tensor,
                apart: self.binary_apart,
            };
            map.serialize_entry(key, &tensors.iter().map(entry).collect::<Vec<_>>())?;
        }
        if !self.message.requested.is_empty() {
            let requested: Vec<_> = self.message.requested.iter().map(Requested).collect();
            map.serialize_entry("outputs", &requested)?;
        }
        map.end()
    }
}

struct TensorEntry<'a> {
    tensor: &'a ReplyOutput<'a>,
    apart: bool,
}

impl Serialize for TensorEntry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tensor = self.tensor;
        let mut map = serializer.serialize_map(None)?;
        if !tensor.name.is_empty() {
            map.serialize_entry("name", tensor.name)?;
        }
        map.serialize_entry("datatype", tensor.datatype.name())?;
        map.serialize_entry("shape", tensor.shape)?;
        if self.apart && tensor.binary {
            map.serialize_entry("parameters", &Parameter("binary_data_size", tensor.bytes()))?;
        } else {
            map.serialize_entry("data", &Elements(tensor))?;
        }
        map.end()
    }
}

struct Requested<'a>(&'a RequestedOutput);

impl Serialize for Requested<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.0.name)?;
        if let Some(binary) = self.0.binary {
            map.serialize_entry("parameters", &Parameter("binary_data", binary))?;
        }
        map.end()
    }
}

/// `parameters` with a single key.
struct Parameter<T>(&'static str, T);

impl<T: Serialize> Serialize for Parameter<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map([(self.0, &self.1)])
    }
}

/// The data of a tensor as one flat array.
struct Elements<'a>(&'a ReplyOutput<'a>);

impl Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let parts = self.0.parts;
        match self.0.datatype {
            Datatype::Bool => each(serializer, parts, |[byte]: [u8; 1]| byte != 0),
            Datatype::Uint8 => each(serializer, parts, u8::from_le_bytes),
            Datatype::Uint16 => each(serializer, parts, u16::from_le_bytes),
            Datatype::Uint32 => each(serializer, parts, u32::from_le_bytes),
            Datatype::Uint64 => each(serializer, parts, u64::from_le_bytes),
            Datatype::Int8 => each(serializer, parts, i8::from_le_bytes),
            Datatype::Int16 => each(serializer, parts, i16::from_le_bytes),
            Datatype::Int32 => each(serializer, parts, i32::from_le_bytes),
            Datatype::Int64 => each(serializer, parts, i64::from_le_bytes),
            Datatype::Fp16 => each(serializer, parts, |b| f16::from_le_bytes(b).to_f32()),
            Datatype::Bf16 => each(serializer, parts, |b| bf16::from_le_bytes(b).to_f32()),
            Datatype::Fp32 => each(serializer, parts, f32::from_le_bytes),
            Datatype::Fp64 => each(serializer, parts, f64::from_le_bytes),
            Datatype::Bytes => serializer.collect_seq(
                parts
                    .iter()
                    .flat_map(|part| bytes_elements(part))
                    .map(String::from_utf8_lossy),
            ),
        }
    }
}

fn each<S: Serializer, T: Serialize, const N: usize>(
    serializer: S,
    parts: &[&[u8]],
    read: impl Fn([u8; N]) -> T,
) -> Result<S::Ok, S::Error> {
    let mut array = serializer.serialize_seq(None)?;
    for part in parts {
        let (elements, rest) = part.as_chunks();
        debug_assert!(rest.is_empty(), "a part holds whole elements");
        for element in elements {
            array.serialize_element(&read(*element))?;
        }
    }
    array.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(datatype: Datatype, parts: &[&[u8]]) -> String {
        let tensor = ReplyOutput {
            name: "y",
            datatype,
            shape: &[],
            parts,
            binary: false,
        };
        serde_json::to_string(&Elements(&tensor)).unwrap()
    }

    #[test]
    fn floats_are_written_as_short_as_their_own_width_allows() {
        let single = 0.1_f32.to_le_bytes();
        let double = 0.1_f64.to_le_bytes();

        assert_eq!(written(Datatype::Fp32, &[&single]), "[0.1]");
        assert_eq!(written(Datatype::Fp64, &[&double]), "[0.1]");
    }

    #[test]
    fn what_is_not_finite_is_written_as_null() {
        let data: Vec<u8> = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();

        assert_eq!(written(Datatype::Fp32, &[&data]), "[null,null,null,1.0]");
    }

    #[test]
    fn the_parts_of_a_job_run_in_slices_are_one_array() {
        let (first, second) = (1_i64.to_le_bytes(), i64::MIN.to_le_bytes());

        let array = written(Datatype::Int64, &[&first, &second]);

        assert_eq!(array, format!("[1,{}]", i64::MIN));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced() {
        let data = [1, 0, 0, 0, b'a', 1, 0, 0, 0, 0xff];

        assert_eq!(written(Datatype::Bytes, &[&data]), "[\"a\",\"\u{fffd}\"]");
    }
}
