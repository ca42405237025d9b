//! Values of Parquet's types: which of them are elements of an input, and how a key of them is written.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Date64Type, Decimal128Type, Decimal256Type, DecimalType, Float16Type, Float32Type,
    Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Time32MillisecondType, Time32SecondType,
    Time64MicrosecondType, Time64NanosecondType, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, PrimitiveArray};
use arrow_schema::{DataType, TimeUnit};

use super::block::Key;
use super::inputs::{Inputs, ValueFault};
use super::moments::{date, moment, time_of_day};
use crate::wire::elements::{Elements, Scalar};
use crate::wire::tensor::Datatype;

type ReadScalar = for<'a> fn(&'a dyn Array, usize) -> Scalar<'a>;

/// How a value of this type is read; of decimals and what never has a value there is another way.
fn scalar_of(data_type: &DataType) -> Option<ReadScalar> {
    fn integer<T: ArrowPrimitiveType<Native: Into<i128>>>(array: &dyn Array, row: usize) -> Scalar<'_> {
        Scalar::Integer(array.as_primitive::<T>().value(row).into())
    }
    fn float<T: ArrowPrimitiveType<Native: Into<f64>>>(array: &dyn Array, row: usize) -> Scalar<'_> {
        Scalar::Float(array.as_primitive::<T>().value(row).into())
    }
    Some(match data_type {
        DataType::Boolean => |array, row| Scalar::Bool(array.as_boolean().value(row)),
        DataType::Int8 => integer::<Int8Type>,
        DataType::Int16 => integer::<Int16Type>,
        DataType::Int32 => integer::<Int32Type>,
        DataType::Int64 => integer::<Int64Type>,
        DataType::UInt8 => integer::<UInt8Type>,
        DataType::UInt16 => integer::<UInt16Type>,
        DataType::UInt32 => integer::<UInt32Type>,
        DataType::UInt64 => integer::<UInt64Type>,
        DataType::Float16 => float::<Float16Type>,
        DataType::Float32 => float::<Float32Type>,
        DataType::Float64 => float::<Float64Type>,
        DataType::Utf8 => |array, row| Scalar::Text(array.as_string::<i32>().value(row).into()),
        DataType::Binary => |array, row| Scalar::Binary(array.as_binary::<i32>().value(row)),
        _ => return None,
    })
}

/// True of a type whose values are elements of an input: numbers, booleans and texts. A date or a time is none, since its number
/// depends on a unit that the model does not know.
pub fn is_element(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(item) => is_element(item.data_type()),
        DataType::Null | DataType::Decimal128(..) | DataType::Decimal256(..) => true,
        other => scalar_of(other).is_some(),
    }
}

/// True of a type that a key may have.
pub fn is_key(data_type: &DataType) -> bool {
    let is_moment = matches!(
        data_type,
        DataType::Date32
            | DataType::Date64
            | DataType::Time32(_)
            | DataType::Time64(_)
            | DataType::Timestamp(..)
            | DataType::FixedSizeBinary(_)
    );
    is_moment || (is_element(data_type) && !matches!(data_type, DataType::List(_)))
}

/// Takes in the values of one cell for one input.
pub struct Values<'a> {
    pub inputs: &'a Inputs,
    pub part: usize,
    pub elements: &'a mut [Elements],
}

impl Values<'_> {
    /// Appends what row `row` of `array` holds, and returns its shape: none for a single value.
    pub fn push(&mut self, array: &dyn Array, row: usize) -> Result<Vec<usize>, Unfit> {
        let is_list = matches!(array.data_type(), DataType::List(_));
        if is_missing(array, row) {
            // Of a list that is not there nobody knows how long it would be.
            let scalar = if is_list {
                Err(ValueFault::Missing)
            } else {
                self.scalar(&Scalar::Null)
            };
            return scalar
                .map(|()| Vec::new())
                .map_err(|fault| Unfit::Value(fault, String::new()));
        }
        if let Some(list) = array.as_list_opt::<i32>() {
            return self.list(&*list.value(row));
        }
        if let Some(text) = decimal(array, row) {
            return self.put(&Scalar::Decimal(whole(&text)), || text.clone());
        }
        let read = scalar_of(array.data_type()).ok_or(Unfit::Ragged)?;
        let scalar = read(array, row);
        if let Scalar::Binary(bytes) = scalar
            && self.inputs.parts[self.part].datatype() == Datatype::Bytes
            && std::str::from_utf8(bytes).is_err()
        {
            return Err(Unfit::NotUtf8);
        }
        self.put(&scalar, || text(array, row))
    }

    fn put(&mut self, scalar: &Scalar<'_>, text: impl FnOnce() -> String) -> Result<Vec<usize>, Unfit> {
        let pushed = self.scalar(scalar);
        pushed.map(|()| Vec::new()).map_err(|fault| Unfit::Value(fault, text()))
    }

    fn scalar(&mut self, scalar: &Scalar<'_>) -> Result<(), ValueFault> {
        self.inputs.push(self.part, scalar, self.elements)
    }

    fn list(&mut self, values: &dyn Array) -> Result<Vec<usize>, Unfit> {
        let mut inner = None;
        for index in 0..values.len() {
            let shape = self.push(values, index)?;
            match &inner {
                None => inner = Some(shape),
                Some(first) if *first == shape => {}
                Some(_) => return Err(Unfit::Ragged),
            }
        }
        Ok([vec![values.len()], inner.unwrap_or_default()].concat())
    }
}

/// What is wrong with a cell, whose place the caller knows.
pub enum Unfit {
    Value(ValueFault, String),
    NotUtf8,
    Ragged,
}

fn is_missing(array: &dyn Array, row: usize) -> bool {
    array.is_null(row) || *array.data_type() == DataType::Null
}

/// A cell as a key; `None` if it is of bytes that are no text.
pub fn key(array: &dyn Array, row: usize) -> Option<Key> {
    if is_missing(array, row) {
        return Some(Key::Literal("null".to_owned()));
    }
    Some(match array.data_type() {
        DataType::Binary => Key::Text(
            std::str::from_utf8(array.as_binary::<i32>().value(row))
                .ok()?
                .to_owned(),
        ),
        DataType::Utf8 | DataType::FixedSizeBinary(_) => Key::Text(text(array, row)),
        DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) | DataType::Timestamp(..) => {
            Key::Text(text(array, row))
        }
        _ => Key::Literal(text(array, row)),
    })
}

/// A value as text, as short as it reads back the same.
fn text(array: &dyn Array, row: usize) -> String {
    if let Some(text) = decimal(array, row) {
        return text;
    }
    match array.data_type() {
        // By its own width: as an FP64 it has digits that nobody wrote.
        DataType::Float32 => format!("{:?}", array.as_primitive::<Float32Type>().value(row)),
        DataType::Float16 => format!("{:?}", array.as_primitive::<Float16Type>().value(row).to_f32()),
        DataType::FixedSizeBinary(_) => hex(array.as_fixed_size_binary().value(row)),
        DataType::Date32 => date(i64::from(value::<Date32Type>(array, row))),
        DataType::Date64 => date(value::<Date64Type>(array, row).div_euclid(86_400_000)),
        DataType::Time32(TimeUnit::Second) => time_of_day(value::<Time32SecondType>(array, row).into(), 1),
        DataType::Time32(_) => time_of_day(value::<Time32MillisecondType>(array, row).into(), 1_000),
        DataType::Time64(TimeUnit::Microsecond) => time_of_day(value::<Time64MicrosecondType>(array, row), 1_000_000),
        DataType::Time64(_) => time_of_day(value::<Time64NanosecondType>(array, row), 1_000_000_000),
        DataType::Timestamp(unit, zone) => {
            let (count, a_second) = match unit {
                TimeUnit::Second => (value::<TimestampSecondType>(array, row), 1),
                TimeUnit::Millisecond => (value::<TimestampMillisecondType>(array, row), 1_000),
                TimeUnit::Microsecond => (value::<TimestampMicrosecondType>(array, row), 1_000_000),
                TimeUnit::Nanosecond => (value::<TimestampNanosecondType>(array, row), 1_000_000_000),
            };
            moment(count, a_second, zone.is_some())
        }
        other => scalar_of(other).map_or_else(String::new, |read| scalar_text(&read(array, row))),
    }
}

fn value<T: ArrowPrimitiveType>(array: &dyn Array, row: usize) -> T::Native {
    array.as_primitive::<T>().value(row)
}

fn scalar_text(scalar: &Scalar<'_>) -> String {
    match scalar {
        Scalar::Null | Scalar::Nil => "null".to_owned(),
        Scalar::Bool(value) => value.to_string(),
        Scalar::Integer(value) => value.to_string(),
        Scalar::Float(value) => format!("{value:?}"),
        Scalar::Decimal(text) => (*text).to_owned(),
        Scalar::Text(text) => text.to_string(),
        Scalar::Binary(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// A decimal number with all of its digits; `None` if it is none.
fn decimal(array: &dyn Array, row: usize) -> Option<String> {
    fn digits<T: DecimalType>(array: &PrimitiveArray<T>, row: usize, precision: u8, scale: i8) -> String {
        T::format_decimal(array.value(row), precision, scale)
    }
    Some(match *array.data_type() {
        DataType::Decimal128(precision, scale) => digits(array.as_primitive::<Decimal128Type>(), row, precision, scale),
        DataType::Decimal256(precision, scale) => digits(array.as_primitive::<Decimal256Type>(), row, precision, scale),
        _ => return None,
    })
}

/// Without zeros behind the point that say nothing, so that an input of integers takes it whatever its size.
fn whole(text: &str) -> &str {
    match text.split_once('.') {
        Some((whole, part)) if part.bytes().all(|digit| digit == b'0') => whole,
        _ => text,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{
        ArrayRef, BinaryArray, Decimal128Array, FixedSizeBinaryArray, Float32Array, NullArray,
        TimestampNanosecondArray, UInt64Array,
    };

    use super::super::inputs::Sending;
    use super::*;

    #[test]
    fn keys_keep_what_they_are() {
        let columns: [(ArrayRef, &str); 8] = [
            (Arc::new(Float32Array::from(vec![0.1])), "0.1"),
            (Arc::new(UInt64Array::from(vec![u64::MAX])), "18446744073709551615"),
            (
                Arc::new(
                    Decimal128Array::from(vec![-1050])
                        .with_precision_and_scale(9, 2)
                        .unwrap(),
                ),
                "-10.50",
            ),
            (
                Arc::new(Decimal128Array::from(vec![12]).with_precision_and_scale(9, -2).unwrap()),
                "1200",
            ),
            (Arc::new(BinaryArray::from_vec(vec!["é ".as_bytes()])), "é "),
            (
                Arc::new(FixedSizeBinaryArray::try_from_iter([[0_u8, 255]].iter()).unwrap()),
                "00ff",
            ),
            (
                Arc::new(TimestampNanosecondArray::from(vec![1_700_000_000_123_000_000]).with_timezone("+02:00")),
                "2023-11-14T22:13:20.123Z",
            ),
            (Arc::new(NullArray::new(1)), ""),
        ];
        for (column, expected) in columns {
            assert!(is_key(column.data_type()));
            assert_eq!(key(&column, 0).unwrap().plain(), expected);
        }
        let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"\xff"]));
        assert!(key(&bytes, 0).is_none());
    }

    #[test]
    fn decimals_are_numbers_of_any_datatype() {
        let column = Decimal128Array::from(vec![900_719_925_474_099_300])
            .with_precision_and_scale(20, 2)
            .unwrap();
        for (datatype, expected) in [
            (Datatype::Int64, 9_007_199_254_740_993_i64.to_le_bytes().to_vec()),
            (Datatype::Fp32, 9_007_199_254_740_993_f32.to_le_bytes().to_vec()),
        ] {
            let sending = Sending {
                datatype: Some(datatype),
                ..Sending::default()
            };
            let inputs = Inputs::of(&sending, &[0], None).unwrap();
            let mut elements = inputs.elements(1);
            let mut values = Values {
                inputs: &inputs,
                part: 0,
                elements: &mut elements,
            };

            assert!(values.push(&column, 0).is_ok_and(|shape| shape.is_empty()));
            assert_eq!(elements.remove(0).finish()[..], expected);
        }
    }
}
