//! Small tensors of a graph, as numbers.

use super::TensorProto;
use super::tensor_proto::{DataLocation, DataType};

impl TensorProto {
    /// Elements, row-major, of a tensor of integers or truth values; `None` of any other, and where the data were not read.
    pub fn integers(&self) -> Option<Vec<i64>> {
        if self.data_location() == DataLocation::External {
            return None;
        }
        let narrow = || self.int32_data.iter().map(|value| i64::from(*value)).collect();
        let elements: Vec<i64> = match (DataType::try_from(self.data_type()).ok()?, self.raw_data.as_deref()) {
            (DataType::Int64, None) => self.int64_data.clone(),
            (DataType::Int64, Some(raw)) => whole(raw, i64::from_le_bytes)?,
            (DataType::Int32, Some(raw)) => whole(raw, |bytes| i32::from_le_bytes(bytes).into())?,
            (DataType::Int16, Some(raw)) => whole(raw, |bytes| i16::from_le_bytes(bytes).into())?,
            (DataType::Uint16, Some(raw)) => whole(raw, |bytes| u16::from_le_bytes(bytes).into())?,
            (DataType::Int8, Some(raw)) => whole(raw, |bytes| i8::from_le_bytes(bytes).into())?,
            (DataType::Uint8 | DataType::Bool, Some(raw)) => whole(raw, |bytes| u8::from_le_bytes(bytes).into())?,
            (
                DataType::Int32
                | DataType::Int16
                | DataType::Uint16
                | DataType::Int8
                | DataType::Uint8
                | DataType::Bool,
                None,
            ) => narrow(),
            _ => return None,
        };
        self.holds(elements.len()).then_some(elements)
    }

    /// Elements, row-major, of a tensor of `FLOAT`; `None` of any other, and where the data were not read.
    pub fn floats(&self) -> Option<Vec<f32>> {
        if self.data_location() == DataLocation::External || self.data_type() != DataType::Float as i32 {
            return None;
        }
        let elements = match self.raw_data.as_deref() {
            Some(raw) => whole(raw, f32::from_le_bytes)?,
            None => self.float_data.clone(),
        };
        self.holds(elements.len()).then_some(elements)
    }

    fn holds(&self, elements: usize) -> bool {
        let product = self
            .dims
            .iter()
            .try_fold(1_i64, |product, size| product.checked_mul(*size));
        product == i64::try_from(elements).ok()
    }
}

fn whole<T, const BYTES: usize>(raw: &[u8], read: impl Fn([u8; BYTES]) -> T) -> Option<Vec<T>> {
    let (elements, rest) = raw.as_chunks();
    rest.is_empty()
        .then(|| elements.iter().map(|bytes| read(*bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(data_type: DataType, dims: &[i64]) -> TensorProto {
        TensorProto {
            data_type: Some(data_type as i32),
            dims: dims.to_vec(),
            ..TensorProto::default()
        }
    }

    #[test]
    fn integers_are_read_from_raw_bytes_or_typed_fields() {
        let raw = TensorProto {
            raw_data: Some(vec![1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
            ..tensor(DataType::Int32, &[2])
        };
        let typed = TensorProto {
            int32_data: vec![1, 0],
            ..tensor(DataType::Bool, &[2])
        };
        let long = TensorProto {
            int64_data: vec![7],
            ..tensor(DataType::Int64, &[])
        };

        assert_eq!(raw.integers(), Some(vec![1, -1]));
        assert_eq!(typed.integers(), Some(vec![1, 0]));
        assert_eq!(long.integers(), Some(vec![7]));
    }

    #[test]
    fn data_that_are_not_there_are_none() {
        let shorter = TensorProto {
            int64_data: vec![7],
            ..tensor(DataType::Int64, &[2])
        };
        let floats = TensorProto {
            raw_data: Some(vec![0; 4]),
            ..tensor(DataType::Float, &[1])
        };
        let elsewhere = TensorProto {
            data_location: Some(DataLocation::External as i32),
            ..tensor(DataType::Int64, &[0])
        };

        for tensor in [shorter, floats, elsewhere] {
            assert_eq!(tensor.integers(), None);
        }
    }
}
