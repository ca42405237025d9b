//! Elements of a tensor: those that come one by one take the model's datatype here, and raw ones are checked.

use std::borrow::Cow;

use bytes::Bytes;
use half::{bf16, f16};

use super::error::Problem;
use super::tensor::{Datatype, push_bytes_element};

/// One element as an encoding delivers it.
#[derive(Debug, Clone)]
pub(crate) enum Scalar<'a> {
    /// In JSON the only way to write NaN.
    Null,
    /// MessagePack has a NaN, so among its numbers this is a hole in the sender's data.
    Nil,
    Bool(bool),
    /// Wide enough for both `u64` and `i64`.
    Integer(i128),
    Float(f64),
    /// A number as JSON writes it, kept as text so that it is rounded once, to the type it ends as.
    Decimal(&'a str),
    Text(Cow<'a, str>),
    /// A string that need not be UTF-8; MessagePack has those.
    Binary(&'a [u8]),
}

impl Scalar<'_> {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Nil => "nil",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::Float(_) | Self::Decimal(_) => "a number",
            Self::Text(_) | Self::Binary(_) => "a string",
        }
    }
}

/// The elements of one tensor, collected as bytes of its datatype.
pub(crate) struct Elements {
    datatype: Datatype,
    count: usize,
    data: Vec<u8>,
}

impl Elements {
    /// `reserved` elements must be known to be there: an announced length is not enough.
    pub(crate) fn new(datatype: Datatype, reserved: usize) -> Self {
        // A string's bytes are not known beforehand, only its length prefix.
        let element_bytes = datatype.element_bytes().unwrap_or(4);
        Self {
            datatype,
            count: 0,
            data: Vec::with_capacity(reserved.saturating_mul(element_bytes)),
        }
    }

    pub(crate) fn push(&mut self, scalar: &Scalar<'_>) -> Result<(), Problem> {
        match self.datatype {
            Datatype::Bool => self.put([u8::from(self.boolean(scalar)?)]),
            Datatype::Uint8 => self.put(self.integer::<u8>(scalar)?.to_le_bytes()),
            Datatype::Uint16 => self.put(self.integer::<u16>(scalar)?.to_le_bytes()),
            Datatype::Uint32 => self.put(self.integer::<u32>(scalar)?.to_le_bytes()),
            Datatype::Uint64 => self.put(self.integer::<u64>(scalar)?.to_le_bytes()),
            Datatype::Int8 => self.put(self.integer::<i8>(scalar)?.to_le_bytes()),
            Datatype::Int16 => self.put(self.integer::<i16>(scalar)?.to_le_bytes()),
            Datatype::Int32 => self.put(self.integer::<i32>(scalar)?.to_le_bytes()),
            Datatype::Int64 => self.put(self.integer::<i64>(scalar)?.to_le_bytes()),
            Datatype::Fp16 => self.put(self.float(scalar, f16::from_f64)?.to_le_bytes()),
            Datatype::Bf16 => self.put(self.float(scalar, bf16::from_f64)?.to_le_bytes()),
            Datatype::Fp32 => self.put(self.float32(scalar)?.to_le_bytes()),
            Datatype::Fp64 => self.put(self.float(scalar, |wide| wide)?.to_le_bytes()),
            Datatype::Bytes => match scalar {
                Scalar::Text(text) => push_bytes_element(&mut self.data, text.as_bytes()),
                Scalar::Binary(bytes) => push_bytes_element(&mut self.data, bytes),
                other => return Err(self.refused(other, "strings")),
            },
        }
        self.count += 1;
        Ok(())
    }

    pub(crate) fn finish(self) -> Bytes {
        self.data.into()
    }

    fn put<const N: usize>(&mut self, element: [u8; N]) {
        self.data.extend_from_slice(&element);
    }

    fn boolean(&self, scalar: &Scalar<'_>) -> Result<bool, Problem> {
        match scalar {
            Scalar::Bool(value) => Ok(*value),
            // 0 and 1 too: a model that takes BOOL and a sender that has numbers disagree about something.
            other => Err(self.refused(other, "true and false")),
        }
    }

    fn integer<T: TryFrom<i128>>(&self, scalar: &Scalar<'_>) -> Result<T, Problem> {
        let wide = match scalar {
            Scalar::Integer(value) => *value,
            Scalar::Float(value) => self.integral(*value)?,
            Scalar::Decimal(text) if !text.contains(['.', 'e', 'E']) => {
                // More digits than an `i128` holds fit no integer type.
                text.parse().map_err(|_| self.range(OUT_OF_RANGE))?
            }
            Scalar::Decimal(text) => {
                let value = self.parsed(text)?;
                // From 2^53 on parsing may have rounded to another integer than the one that was written.
                if value.abs() >= 9_007_199_254_740_992.0 {
                    return Err(self.range("integers this large are written without point or exponent"));
                }
                self.integral(value)?
            }
            other => return Err(self.refused(other, "numbers")),
        };
        T::try_from(wide).map_err(|_| self.range(OUT_OF_RANGE))
    }

    fn integral(&self, value: f64) -> Result<i128, Problem> {
        if value.fract() != 0.0 {
            // Of NaN and the infinities `fract` is NaN.
            return Err(self.range("it is not an integer"));
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "saturates, and the caller's type is narrower"
        )]
        Ok(value as i128)
    }

    /// Rounds to the nearest, as numbers do everywhere; only a number that would become infinite is refused.
    fn float<T: Copy + Into<f64>>(&self, scalar: &Scalar<'_>, narrow: impl Fn(f64) -> T) -> Result<T, Problem> {
        let wide = match scalar {
            Scalar::Null => f64::NAN,
            #[expect(clippy::cast_precision_loss, reason = "rounding is what a float is for")]
            Scalar::Integer(value) => *value as f64,
            Scalar::Float(value) => *value,
            Scalar::Decimal(text) => self.parsed(text)?,
            other => return Err(self.refused(other, "numbers")),
        };
        let narrowed = narrow(wide);
        if wide.is_finite() && !narrowed.into().is_finite() {
            return Err(self.range(OUT_OF_RANGE));
        }
        Ok(narrowed)
    }

    /// Text goes to `f32` directly: by way of `f64` it would be rounded twice.
    fn float32(&self, scalar: &Scalar<'_>) -> Result<f32, Problem> {
        if let Scalar::Decimal(text) = scalar {
            return match text.parse::<f32>() {
                Ok(value) if value.is_finite() => Ok(value),
                Ok(_) | Err(_) => Err(self.range(OUT_OF_RANGE)),
            };
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "`float` refuses what would become infinite"
        )]
        self.float(scalar, |wide| wide as f32)
    }

    fn parsed(&self, text: &str) -> Result<f64, Problem> {
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(value),
            Ok(_) | Err(_) => Err(self.range(OUT_OF_RANGE)),
        }
    }

    #[cold]
    fn refused(&self, scalar: &Scalar<'_>, allowed: &'static str) -> Problem {
        Problem::Element {
            index: self.count,
            came: scalar.kind(),
            datatype: self.datatype,
            allowed,
        }
    }

    #[cold]
    fn range(&self, fault: &'static str) -> Problem {
        Problem::Range {
            index: self.count,
            datatype: self.datatype,
            fault,
        }
    }
}

/// Numbers of an array take the model's numeric type, whatever numeric type the sender stated; nothing else converts.
pub(super) fn check_stated(stated: Option<Datatype>, expected: Datatype) -> Result<(), Problem> {
    let numeric = |datatype| !matches!(datatype, Datatype::Bool | Datatype::Bytes);
    match stated {
        Some(came) if came != expected && !(numeric(came) && numeric(expected)) => {
            Err(Problem::OtherDatatype { came, expected })
        }
        Some(_) | None => Ok(()),
    }
}

/// Checks raw data, so that nobody after this has to: their length, the elements of `BYTES`, the values of `BOOL`.
pub(super) fn check_raw(raw: &[u8], datatype: Datatype, elements: usize) -> Result<(), Problem> {
    let Some(element_bytes) = datatype.element_bytes() else {
        return check_raw_bytes(raw, elements);
    };
    let expected = elements.checked_mul(element_bytes).ok_or(Problem::ShapeOverflow)?;
    if raw.len() != expected {
        return Err(Problem::RawLength {
            came: raw.len(),
            expected,
        });
    }
    // Any other byte is no valid `bool` where C++ or Rust reads it as one.
    if datatype == Datatype::Bool
        && let Some(index) = raw.iter().position(|&byte| byte > 1)
    {
        return Err(Problem::RawBool { index });
    }
    Ok(())
}

fn check_raw_bytes(raw: &[u8], elements: usize) -> Result<(), Problem> {
    let mut rest = raw;
    for index in 0..elements {
        let element = rest.split_first_chunk::<4>().and_then(|(prefix, rest)| {
            let length = usize::try_from(u32::from_le_bytes(*prefix)).ok()?;
            rest.split_at_checked(length)
        });
        let Some((_, after)) = element else {
            return Err(Problem::RawElement {
                index,
                elements,
                bytes: raw.len(),
            });
        };
        rest = after;
    }
    if !rest.is_empty() {
        return Err(Problem::RawLeftover {
            bytes: rest.len(),
            elements,
        });
    }
    Ok(())
}

const OUT_OF_RANGE: &str = "it is out of range";

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(datatype: Datatype, scalar: &Scalar<'_>) -> Result<Bytes, Problem> {
        let mut elements = Elements::new(datatype, 1);
        elements.push(scalar)?;
        Ok(elements.finish())
    }

    fn decimal(datatype: Datatype, text: &str) -> Result<Bytes, Problem> {
        converted(datatype, &Scalar::Decimal(text))
    }

    #[test]
    fn integers_are_taken_up_to_the_ends_of_their_type_and_no_further() {
        for (datatype, fits, too_small, too_large) in [
            (Datatype::Uint8, "255", "-1", "256"),
            (Datatype::Uint16, "65535", "-1", "65536"),
            (Datatype::Uint32, "4294967295", "-1", "4294967296"),
            (Datatype::Uint64, "18446744073709551615", "-1", "18446744073709551616"),
            (Datatype::Int8, "-128", "-129", "128"),
            (Datatype::Int16, "-32768", "-32769", "32768"),
            (Datatype::Int32, "-2147483648", "-2147483649", "2147483648"),
            (
                Datatype::Int64,
                "-9223372036854775808",
                "-9223372036854775809",
                "9223372036854775808",
            ),
        ] {
            assert!(decimal(datatype, fits).is_ok(), "{datatype} {fits}");
            for refused in [too_small, too_large, &"9".repeat(60)] {
                assert!(
                    matches!(decimal(datatype, refused), Err(Problem::Range { .. })),
                    "{datatype} {refused}"
                );
            }
        }
    }

    #[test]
    fn a_float_goes_into_an_integer_only_if_it_is_one() {
        let one = 1_i32.to_le_bytes();

        assert_eq!(decimal(Datatype::Int32, "1.0").unwrap()[..], one);
        assert_eq!(decimal(Datatype::Int32, "10e-1").unwrap()[..], one);
        assert_eq!(converted(Datatype::Int32, &Scalar::Float(1.0)).unwrap()[..], one);
        for refused in [1.5, f64::NAN, f64::INFINITY, 1e300] {
            assert!(converted(Datatype::Int32, &Scalar::Float(refused)).is_err());
        }
        // 2^53 + 1, which a float cannot hold: parsing would make it 2^53.
        assert!(decimal(Datatype::Int64, "9007199254740993.0").is_err());
        assert!(decimal(Datatype::Int64, "9007199254740993").is_ok());
    }

    #[test]
    fn floats_round_to_the_nearest_but_do_not_become_infinite() {
        for (datatype, fits, too_large) in [
            (Datatype::Fp16, "65504.1", "65536"),
            (Datatype::Bf16, "3.38e38", "3.40e38"),
            (Datatype::Fp32, "3.4028235e38", "3.5e38"),
            (Datatype::Fp64, "1.7976931348623157e308", "1e309"),
        ] {
            assert!(decimal(datatype, fits).is_ok(), "{datatype} {fits}");
            assert!(
                matches!(decimal(datatype, too_large), Err(Problem::Range { .. })),
                "{datatype} {too_large}"
            );
            let infinite = converted(datatype, &Scalar::Float(f64::INFINITY));
            assert!(infinite.is_ok(), "infinity itself is no overflow");
        }
        let rounded = decimal(Datatype::Fp32, "16777217").unwrap();
        assert_eq!(rounded[..], 16_777_216_f32.to_le_bytes());
    }

    #[test]
    fn decimal_text_is_rounded_to_fp32_once() {
        // Just above the middle of 1 and the next f32; as an f64 it is the middle, which rounds down to 1.
        let text = "1.00000005960464477539062500000001";

        let once = decimal(Datatype::Fp32, text).unwrap();

        assert_eq!(once[..], 1.000_000_1_f32.to_le_bytes());
    }

    #[test]
    fn null_is_nan_among_floats_and_refused_elsewhere() {
        for datatype in Datatype::ALL {
            let null = converted(datatype, &Scalar::Null);

            let float = matches!(
                datatype,
                Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64
            );
            assert_eq!(null.is_ok(), float, "{datatype}");
            let nil = converted(datatype, &Scalar::Nil);
            assert!(nil.is_err(), "MessagePack has a NaN of its own");
        }
    }

    #[test]
    fn booleans_strings_and_numbers_do_not_stand_in_for_one_another() {
        let text = Scalar::Text("1".into());

        for datatype in Datatype::ALL {
            let takes = |scalar: &Scalar<'_>| converted(datatype, scalar).is_ok();
            let numeric = !matches!(datatype, Datatype::Bool | Datatype::Bytes);
            assert_eq!(takes(&Scalar::Integer(1)), numeric, "{datatype}");
            assert_eq!(takes(&Scalar::Decimal("0")), numeric, "{datatype}");
            assert_eq!(takes(&Scalar::Bool(true)), datatype == Datatype::Bool);
            assert_eq!(takes(&text), datatype == Datatype::Bytes, "{datatype}");
        }
    }

    #[test]
    fn a_stated_datatype_must_be_the_models_unless_both_are_numeric() {
        for stated in Datatype::ALL {
            for expected in Datatype::ALL {
                let numeric = |d| !matches!(d, Datatype::Bool | Datatype::Bytes);
                let fine = stated == expected || numeric(stated) && numeric(expected);

                assert_eq!(check_stated(Some(stated), expected).is_ok(), fine);
                assert!(check_stated(None, expected).is_ok());
            }
        }
    }

    #[test]
    fn raw_data_have_the_length_of_their_shape() {
        assert_eq!(check_raw(&[0; 12], Datatype::Fp32, 3), Ok(()));
        assert!(check_raw(&[0; 11], Datatype::Fp32, 3).is_err());
        assert!(check_raw(&[0; 13], Datatype::Fp32, 3).is_err());
        assert_eq!(check_raw(&[], Datatype::Fp32, usize::MAX), Err(Problem::ShapeOverflow));
    }

    #[test]
    fn raw_bytes_hold_exactly_the_elements_of_their_shape() {
        let two = [1, 0, 0, 0, b'a', 0, 0, 0, 0];

        assert_eq!(check_raw(&two, Datatype::Bytes, 2), Ok(()));
        for (raw, elements) in [(&two[..], 1), (&two, 3), (&two[..8], 2), (&two[..4], 1)] {
            assert!(check_raw(raw, Datatype::Bytes, elements).is_err());
        }
        let bomb = [0xff, 0xff, 0xff, 0xff, b'a'];
        assert!(check_raw(&bomb, Datatype::Bytes, 1).is_err());
        assert!(check_raw(&two, Datatype::Bytes, usize::MAX).is_err());
    }

    #[test]
    fn raw_booleans_are_0_or_1() {
        assert_eq!(check_raw(&[0, 1], Datatype::Bool, 2), Ok(()));
        assert_eq!(
            check_raw(&[0, 2], Datatype::Bool, 2),
            Err(Problem::RawBool { index: 1 })
        );
    }
}
