//! Tensors as the Open Inference Protocol names them.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use bytes::Bytes;

use super::datatype_names;

/// Element type of a tensor, by its Open Inference Protocol name.
///
/// # Source
/// Open Inference Protocol, "Tensor Data Types"; BF16 as in Triton's extension of that list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

impl Datatype {
    /// Every datatype, in the order of the protocol's table.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// Name on the wire, such as `FP32`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// Bytes of one element; `None` for `BYTES`, whose elements differ in length.
    pub const fn element_bytes(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Datatype {
    type Err = UnknownDatatype;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|datatype| datatype.name() == name)
            .ok_or_else(|| UnknownDatatype {
                nearest: datatype_names::nearest(name),
            })
    }
}

/// The name is none of the protocol's datatypes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a datatype; allowed are BOOL, UINT8/16/32/64, INT8/16/32/64, FP16, BF16, FP32, FP64 and BYTES{}",
    .nearest.map(|nearest| format!("; write {nearest}")).unwrap_or_default()
)]
pub struct UnknownDatatype {
    /// The one that a name of another system stands for.
    pub nearest: Option<Datatype>,
}

/// A named tensor.
///
/// `data` is row-major and little-endian. For `BYTES` every element is its length as a little-endian
/// `u32` followed by that many bytes, which is also the layout of the binary tensor extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    pub datatype: Datatype,
    pub shape: Vec<usize>,
    pub data: Bytes,
}

impl Tensor {
    /// A tensor of `FP32`; `values` are as many as `shape` says.
    pub fn fp32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|value| value.to_le_bytes());
        Self {
            name: name.to_owned(),
            datatype: Datatype::Fp32,
            shape: shape.to_vec(),
            data: data.collect(),
        }
    }

    /// Rows of the batch: the length of the first axis; a tensor without axes has no rows to speak of.
    pub fn rows(&self) -> Option<usize> {
        self.shape.first().copied()
    }

    /// Cuts the rows into tensors of up to `rows_max` rows, without copying them; `None` where there are none to cut, or the data
    /// are not as long as the shape says.
    pub(crate) fn cut_rows(&self, rows_max: usize) -> Option<Vec<Self>> {
        let rows = self
            .rows()
            .filter(|rows| *rows > 0 && rows_max > 0 && self.is_whole())?;
        let mut rest = self.data.clone();
        let parts = (0..rows).step_by(rows_max).map(|start| {
            let count = rows_max.min(rows - start);
            let range = rows_range(&rest, self.datatype, &self.shape, &(0..count));
            Self {
                name: self.name.clone(),
                datatype: self.datatype,
                shape: [&[count], &self.shape[1..]].concat(),
                data: rest.split_to(range.end),
            }
        });
        Some(parts.collect())
    }

    /// Puts the rows of several tensors together in their order; `None` where there is none, or they differ in more than the
    /// number of rows.
    pub(crate) fn concat_rows(parts: &[&Self]) -> Option<Self> {
        let (first, rows) = (
            parts.first()?,
            parts.iter().map(|part| part.rows()).sum::<Option<usize>>()?,
        );
        let alike = |part: &&Self| {
            part.name == first.name && part.datatype == first.datatype && part.shape[1..] == first.shape[1..]
        };
        if !parts.iter().all(alike) {
            return None;
        }
        let data: Vec<&[u8]> = parts.iter().map(|part| &*part.data).collect();
        Some(Self {
            name: first.name.clone(),
            datatype: first.datatype,
            shape: [&[rows], &first.shape[1..]].concat(),
            data: data.concat().into(),
        })
    }

    /// True if the data hold as many elements as the shape says.
    fn is_whole(&self) -> bool {
        let Some(count) = element_count(&self.shape) else {
            return false;
        };
        match self.datatype.element_bytes() {
            Some(bytes) => count.checked_mul(bytes) == Some(self.data.len()),
            None => {
                let lengths = bytes_elements(&self.data).map(|element| 4 + element.len());
                let (elements, bytes) =
                    lengths.fold((0, 0), |(elements, bytes), length| (elements + 1, bytes + length));
                (elements, bytes) == (count, self.data.len())
            }
        }
    }
}

/// Elements in a tensor of this shape; `None` if that is more than can be counted.
///
/// An axis of length 0 does not hide an overflow of the others: a shape is good or bad whatever the order of its axes.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    let product = shape
        .iter()
        .try_fold(1_usize, |product, &axis| product.checked_mul(axis.max(1)))?;
    Some(if shape.contains(&0) { 0 } else { product })
}

/// The elements of `BYTES` data; ends early where the data are not laid out as [`Tensor`] says.
pub fn bytes_elements(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (prefix, rest) = data.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*prefix)).ok()?;
        let (element, rest) = rest.split_at_checked(length)?;
        data = rest;
        Some(element)
    })
}

/// Where some rows of a tensor lie in its data; `rows` are within its first axis.
pub fn rows_range(data: &[u8], datatype: Datatype, shape: &[usize], rows: &Range<usize>) -> Range<usize> {
    let row_elements = element_count(shape.get(1..).unwrap_or_default()).unwrap_or(0);
    if let Some(element_bytes) = datatype.element_bytes() {
        let row_bytes = row_elements * element_bytes;
        return rows.start * row_bytes..rows.end * row_bytes;
    }
    // The elements differ in length, so they are walked.
    let bytes = |elements: usize, data| {
        bytes_elements(data)
            .take(elements)
            .map(|element| 4 + element.len())
            .sum()
    };
    let start: usize = bytes(rows.start * row_elements, data);
    let length: usize = bytes(rows.len() * row_elements, &data[start..]);
    start..start + length
}

/// Appends one element to `BYTES` data.
///
/// # Panics
/// If the element has 4 GiB or more, which no message broker carries.
pub fn push_bytes_element(data: &mut Vec<u8>, element: &[u8]) {
    let length = u32::try_from(element.len()).expect("an element came in a message, below 4 GiB");
    data.extend_from_slice(&length.to_le_bytes());
    data.extend_from_slice(element);
}

/// Most axes of a tensor; Triton and KServe state no limit, real models have at most five or six.
pub const AXES_MAX: usize = 8;

#[cfg(target_endian = "big")]
compile_error!("tensors are handed to ONNX Runtime as they lie on the wire, which is little-endian");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_were_cut_apart_are_put_together_again() {
        let mut texts = Vec::new();
        for text in ["a", "", "ccc", "dd", "e", "f"] {
            push_bytes_element(&mut texts, text.as_bytes());
        }
        let words = Tensor {
            name: "words".to_owned(),
            datatype: Datatype::Bytes,
            shape: vec![3, 2],
            data: texts.into(),
        };
        for whole in [words, Tensor::fp32("x", &[3, 1], &[1.0, 2.0, 3.0])] {
            let parts = whole.cut_rows(2).unwrap();

            let rows: Vec<_> = parts.iter().map(Tensor::rows).collect();
            assert_eq!(rows, [Some(2), Some(1)]);
            assert_eq!(Tensor::concat_rows(&parts.iter().collect::<Vec<_>>()), Some(whole));
        }
    }

    #[test]
    fn rows_of_what_is_not_as_its_shape_says_are_none() {
        let short = Tensor::fp32("x", &[3, 2], &[1.0; 5]);
        let vast = Tensor::fp32("x", &[usize::MAX, 2], &[]);
        let scalar = Tensor::fp32("x", &[], &[1.0]);
        let [narrow, wide] = [1, 2].map(|columns| Tensor::fp32("x", &[1, columns], &vec![0.0; columns]));

        let none = Tensor::fp32("x", &[0, 2], &[]);
        for tensor in [&short, &vast, &scalar, &none] {
            assert_eq!(tensor.cut_rows(1), None);
        }
        assert_eq!(Tensor::concat_rows(&[&narrow, &wide]), None);
        assert_eq!(Tensor::concat_rows(&[&scalar]), None);
        assert_eq!(Tensor::concat_rows(&[]), None);
    }

    #[test]
    fn rows_are_found_where_elements_are_of_one_length_and_where_they_are_not() {
        let mut texts = Vec::new();
        for text in ["a", "", "ccc", "dd", "e", "f"] {
            push_bytes_element(&mut texts, text.as_bytes());
        }

        let range = rows_range(&texts, Datatype::Bytes, &[3, 2], &(1..3));
        let found: Vec<_> = bytes_elements(&texts[range]).collect();

        assert_eq!(found, [&b"ccc"[..], b"dd", b"e", b"f"]);
        assert_eq!(rows_range(&[0; 24], Datatype::Fp32, &[3, 2], &(1..2)), 8..16);
        assert_eq!(rows_range(&[], Datatype::Fp32, &[3, 0], &(1..3)), 0..0);
    }

    #[test]
    fn every_datatype_is_found_by_its_name() {
        for datatype in Datatype::ALL {
            assert_eq!(datatype.to_string().parse(), Ok(datatype));
        }

        let nearest = Some(Datatype::Fp32);
        assert_eq!("float32".parse::<Datatype>(), Err(UnknownDatatype { nearest }));
    }

    #[test]
    fn elements_are_counted_without_overflow_whatever_the_order_of_the_axes() {
        assert_eq!(element_count(&[]), Some(1));
        assert_eq!(element_count(&[2, 3, 4]), Some(24));
        assert_eq!(element_count(&[0, 3]), Some(0));
        for overflow in [[usize::MAX, 2, 1], [0, usize::MAX, 2], [usize::MAX, 2, 0]] {
            assert_eq!(element_count(&overflow), None, "{overflow:?}");
        }
    }

    #[test]
    fn bytes_elements_come_back_as_they_were_pushed_and_stop_at_a_bad_length() {
        let mut data = Vec::new();
        push_bytes_element(&mut data, b"one");
        push_bytes_element(&mut data, b"");
        push_bytes_element(&mut data, &[0xff, 0]);

        let elements: Vec<_> = bytes_elements(&data).collect();
        let cut: Vec<_> = bytes_elements(&data[..data.len() - 1]).collect();

        assert_eq!(elements, [&b"one"[..], b"", &[0xff, 0]]);
        assert_eq!(cut, [&b"one"[..], b""]);
    }
}
