//! Numbers of an array in another datatype: only where none of them is changed, unless the user wants them rounded.

use half::{bf16, f16};

use super::columns::shown;
use crate::wire::tensor::{Datatype, Tensor};

/// How values become those of another datatype.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversion {
    pub to: Datatype,
    /// Whether numbers may be rounded to the nearest float.
    pub rounds: bool,
}

impl Conversion {
    /// Converts the elements of a tensor whose first row is `row` of its array.
    ///
    /// # Errors
    /// One of them would be another number.
    pub fn apply(self, tensor: Tensor, row: u64) -> Result<Tensor, ConvertFault> {
        let from = tensor.datatype;
        if from == self.to || self.to == Datatype::Bytes || from == Datatype::Bytes {
            return Ok(tensor);
        }
        let mut data = Vec::with_capacity(tensor.data.len());
        for (index, number) in numbers(from, &tensor.data).enumerate() {
            let fits = self.push(number, &mut data);
            fits.ok_or_else(|| self.fault(&tensor, index, number, row))?;
        }
        Ok(Tensor {
            datatype: self.to,
            data: data.into(),
            ..tensor
        })
    }

    #[cold]
    fn fault(self, tensor: &Tensor, index: usize, number: Number, row: u64) -> ConvertFault {
        let Self { to, rounds } = self;
        let may_round = Self { to, rounds: true }.push(number, &mut Vec::new()).is_some();
        ConvertFault {
            place: place(&tensor.shape, index, row),
            value: shown(&number.text(tensor.datatype)),
            from: tensor.datatype,
            to,
            advice: if may_round && !rounds {
                Advice::Round(to)
            } else {
                Advice::None
            },
        }
    }

    fn push(self, number: Number, data: &mut Vec<u8>) -> Option<()> {
        match self.to {
            Datatype::Bool => data.push(u8::from(match number.integer()? {
                0 => false,
                1 => true,
                _ => return None,
            })),
            Datatype::Uint8 => data.extend(u8::try_from(number.integer()?).ok()?.to_le_bytes()),
            Datatype::Uint16 => data.extend(u16::try_from(number.integer()?).ok()?.to_le_bytes()),
            Datatype::Uint32 => data.extend(u32::try_from(number.integer()?).ok()?.to_le_bytes()),
            Datatype::Uint64 => data.extend(u64::try_from(number.integer()?).ok()?.to_le_bytes()),
            Datatype::Int8 => data.extend(i8::try_from(number.integer()?).ok()?.to_le_bytes()),
            Datatype::Int16 => data.extend(i16::try_from(number.integer()?).ok()?.to_le_bytes()),
            Datatype::Int32 => data.extend(i32::try_from(number.integer()?).ok()?.to_le_bytes()),
            Datatype::Int64 => data.extend(i64::try_from(number.integer()?).ok()?.to_le_bytes()),
            Datatype::Fp16 => data.extend(self.float(number, f16::from_f64)?.to_le_bytes()),
            Datatype::Bf16 => data.extend(self.float(number, bf16::from_f64)?.to_le_bytes()),
            #[expect(clippy::cast_possible_truncation, reason = "`float` compares what came of it")]
            Datatype::Fp32 => data.extend(self.float(number, |wide| wide as f32)?.to_le_bytes()),
            Datatype::Fp64 => data.extend(self.float(number, |wide| wide)?.to_le_bytes()),
            Datatype::Bytes => return None,
        }
        Some(())
    }

    fn float<T: Copy + Into<f64>>(self, number: Number, narrow: impl Fn(f64) -> T) -> Option<T> {
        let wide = match number {
            Number::Float(value) => value,
            #[expect(clippy::cast_precision_loss, reason = "compared below")]
            Number::Integer(value) => value as f64,
        };
        let narrowed = narrow(wide);
        let came: f64 = narrowed.into();
        if self.rounds {
            return (wide.is_finite() == came.is_finite()).then_some(narrowed);
        }
        let is_same = match number {
            Number::Float(value) => value == came || value.is_nan(),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "saturates, far beyond any integer of an array"
            )]
            Number::Integer(value) => came.is_finite() && came as i128 == value,
        };
        is_same.then_some(narrowed)
    }
}

#[derive(Debug, Clone, Copy)]
enum Number {
    Integer(i128),
    Float(f64),
}

impl Number {
    fn integer(self) -> Option<i128> {
        match self {
            Self::Integer(value) => Some(value),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "saturates, beyond the range of every integer here"
            )]
            Self::Float(value) => (value.fract() == 0.0).then_some(value as i128),
        }
    }

    fn text(self, datatype: Datatype) -> String {
        match self {
            Self::Integer(value) => value.to_string(),
            #[expect(clippy::cast_possible_truncation, reason = "it came from an FP32")]
            Self::Float(value) if datatype == Datatype::Fp32 => format!("{:?}", value as f32),
            Self::Float(value) => format!("{value:?}"),
        }
    }
}

fn numbers(datatype: Datatype, data: &[u8]) -> Box<dyn Iterator<Item = Number> + '_> {
    fn each<'a, const N: usize>(
        data: &'a [u8],
        read: impl Fn([u8; N]) -> Number + 'a,
    ) -> Box<dyn Iterator<Item = Number> + 'a> {
        let (elements, _) = data.as_chunks();
        Box::new(elements.iter().map(move |element| read(*element)))
    }
    match datatype {
        Datatype::Bool => each(data, |[byte]: [u8; 1]| Number::Integer((byte != 0).into())),
        Datatype::Uint8 => each(data, |bytes| Number::Integer(u8::from_le_bytes(bytes).into())),
        Datatype::Uint16 => each(data, |bytes| Number::Integer(u16::from_le_bytes(bytes).into())),
        Datatype::Uint32 => each(data, |bytes| Number::Integer(u32::from_le_bytes(bytes).into())),
        Datatype::Uint64 => each(data, |bytes| Number::Integer(u64::from_le_bytes(bytes).into())),
        Datatype::Int8 => each(data, |bytes| Number::Integer(i8::from_le_bytes(bytes).into())),
        Datatype::Int16 => each(data, |bytes| Number::Integer(i16::from_le_bytes(bytes).into())),
        Datatype::Int32 => each(data, |bytes| Number::Integer(i32::from_le_bytes(bytes).into())),
        Datatype::Int64 => each(data, |bytes| Number::Integer(i64::from_le_bytes(bytes).into())),
        Datatype::Fp16 => each(data, |bytes| Number::Float(f16::from_le_bytes(bytes).into())),
        Datatype::Bf16 => each(data, |bytes| Number::Float(bf16::from_le_bytes(bytes).into())),
        Datatype::Fp32 => each(data, |bytes| Number::Float(f32::from_le_bytes(bytes).into())),
        Datatype::Fp64 => each(data, |bytes| Number::Float(f64::from_le_bytes(bytes))),
        Datatype::Bytes => Box::new(std::iter::empty()),
    }
}

/// Names the element by its row, and within the row by its column or, behind further axes, by its index.
fn place(shape: &[usize], index: usize, row: u64) -> String {
    let Some((_, tail)) = shape.split_first() else {
        return "the only element".to_owned();
    };
    let elements = tail.iter().product::<usize>().max(1);
    let row = row + (index / elements) as u64;
    let mut rest = index % elements;
    match tail.len() {
        0 => format!("row {row} (from 0)"),
        1 => format!("row {row} (from 0), column {}", rest + 1),
        _ => {
            let mut places = vec![0; tail.len()];
            for (place, axis) in places.iter_mut().zip(tail).rev() {
                *place = rest % axis;
                rest /= axis;
            }
            format!("row {row} (from 0), element {places:?}")
        }
    }
}

/// A number that would be another one in the datatype that the model takes.
#[derive(Debug, thiserror::Error)]
#[error("{place}: `{value}` of datatype {from} does not go into {to} unchanged{advice}")]
pub struct ConvertFault {
    place: String,
    value: String,
    from: Datatype,
    to: Datatype,
    advice: Advice,
}

#[derive(Debug)]
enum Advice {
    Round(Datatype),
    None,
}

impl std::fmt::Display for Advice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Round(to) => write!(f, "; --datatype {to} rounds to the nearest"),
            Self::None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fp64(shape: &[usize], values: &[f64]) -> Tensor {
        Tensor {
            name: "x".to_owned(),
            datatype: Datatype::Fp64,
            shape: shape.to_vec(),
            data: values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect::<Vec<u8>>()
                .into(),
        }
    }

    fn converted(tensor: &Tensor, to: Datatype, rounds: bool) -> Result<Vec<u8>, String> {
        let converted = Conversion { to, rounds }.apply(tensor.clone(), 7);
        converted
            .map(|tensor| tensor.data.to_vec())
            .map_err(|fault| fault.to_string())
    }

    #[test]
    fn what_stays_the_same_is_converted() {
        let values = fp64(&[2, 2], &[0.5, -3.0, f64::NAN, f64::INFINITY]);
        let whole = fp64(&[4], &[0.0, 1.0, 1.0, -0.0]);

        let single = converted(&values, Datatype::Fp32, false).unwrap();

        assert_eq!(
            single,
            [0.5_f32, -3.0, f32::NAN, f32::INFINITY].map(f32::to_le_bytes).concat()
        );
        assert_eq!(converted(&whole, Datatype::Bool, false).unwrap(), [0, 1, 1, 0]);
        assert_eq!(converted(&whole, Datatype::Int8, false).unwrap(), [0, 1, 1, 0]);
        let truths = Tensor {
            datatype: Datatype::Bool,
            data: vec![1, 0].into(),
            shape: vec![2],
            name: String::new(),
        };
        assert_eq!(
            converted(&truths, Datatype::Fp32, false).unwrap(),
            [1.0_f32, 0.0].map(f32::to_le_bytes).concat()
        );
    }

    #[test]
    fn the_first_number_that_would_be_another_is_named() {
        for (tensor, to, sentence) in [
            (
                fp64(&[2, 2], &[0.5, 1.0, 2.0, 0.1]),
                Datatype::Fp32,
                "row 8 (from 0), column 2: `0.1` of datatype FP64 does not go into FP32 unchanged; --datatype FP32 rounds",
            ),
            (
                fp64(&[2], &[0.0, 1.5]),
                Datatype::Int64,
                "row 8 (from 0): `1.5` of datatype FP64 does not go into INT64",
            ),
            (
                fp64(&[1, 2, 2], &[0.0, 0.0, 300.0, 0.0]),
                Datatype::Uint8,
                "row 7 (from 0), element [1, 0]: `300.0`",
            ),
            (
                fp64(&[1, 1], &[2.0]),
                Datatype::Bool,
                "`2.0` of datatype FP64 does not go into BOOL",
            ),
        ] {
            let fault = converted(&tensor, to, false).unwrap_err();

            assert!(fault.contains(sentence), "{fault}");
            assert_eq!(fault.contains("rounds"), to == Datatype::Fp32);
        }
    }

    #[test]
    fn numbers_are_rounded_where_the_user_says_so_and_never_to_infinity() {
        let rounded = converted(&fp64(&[1], &[0.1]), Datatype::Fp32, true).unwrap();

        assert_eq!(rounded, 0.1_f32.to_le_bytes());
        assert!(converted(&fp64(&[1], &[1e39]), Datatype::Fp32, true).is_err());
        assert!(converted(&fp64(&[1], &[1.5]), Datatype::Int8, true).is_err());
    }
}
