//! Compares what an engine gave with what was expected, element by element.

use half::{bf16, f16};

use crate::wire::tensor::Datatype;

/// How far a floating-point element may be from the expected one: `absolute + relative * |expected|`.
///
/// # Source
/// The form of `numpy.allclose`, in which golden vectors are usually stated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    pub absolute: f64,
    pub relative: f64,
}

impl Tolerance {
    /// What to allow where nothing is stated.
    ///
    /// Two right results differ because sums run in another order: other batch sizes and other CPUs take other
    /// kernels. A sum of a thousand products in `FP32` then moves by some 1e-6 of its size, and layers add to that;
    /// 1e-4 leaves room for deep models, while a wrong weight or a neighbour's row shows in the first digits.
    /// 1e-5 is for elements near zero, which are the difference of larger ones. The half-precision types have 11
    /// and 8 significant bits: a few of their last bits are allowed.
    pub const fn default_for(datatype: Datatype) -> Self {
        let (absolute, relative) = match datatype {
            Datatype::Bf16 => (1e-2, 5e-2),
            Datatype::Fp16 => (1e-3, 1e-2),
            _ => (1e-5, 1e-4),
        };
        Self { absolute, relative }
    }
}

/// The element that is furthest from what was expected, measured by what is allowed there.
#[derive(Debug, Clone, PartialEq)]
pub struct Deviation {
    /// Index into the row-major elements compared.
    pub element: usize,
    pub expected: String,
    pub got: String,
    /// Zero where equal; infinite where one is not a number, or an element that must be equal is not.
    pub deviation: f64,
    /// Zero for everything but floating-point numbers, which must be equal.
    pub allowed: f64,
}

impl Deviation {
    pub fn is_allowed(&self) -> bool {
        self.deviation <= self.allowed
    }

    /// Whether this one is further off than `other`, each measured by what is allowed there.
    pub fn exceeds(&self, other: &Self) -> bool {
        share(self.deviation, self.allowed) > share(other.deviation, other.allowed)
    }
}

/// The elements of a tensor, each as its bytes. `None` if `data` is not made of whole elements.
pub(crate) fn elements(datatype: Datatype, data: &[u8]) -> Option<Vec<&[u8]>> {
    if let Some(bytes) = datatype.element_bytes() {
        return data
            .len()
            .is_multiple_of(bytes)
            .then(|| data.chunks_exact(bytes).collect());
    }
    let mut elements = Vec::new();
    let mut rest = data;
    while let Some((length, after)) = rest.split_first_chunk() {
        let (element, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        elements.push(element);
        rest = after;
    }
    rest.is_empty().then_some(elements)
}

/// Finds the worst element; `None` if there are none. Elements without a counterpart are the caller's to refuse.
pub(crate) fn worst(datatype: Datatype, expected: &[&[u8]], got: &[&[u8]], tolerance: Tolerance) -> Option<Deviation> {
    let mut worst: Option<(f64, Deviation)> = None;
    for (element, (expected, got)) in expected.iter().zip(got).enumerate() {
        let (deviation, allowed) = deviation(datatype, expected, got, tolerance);
        let share = share(deviation, allowed);
        // The texts are made for the few elements that are the worst so far, not for all.
        if worst.as_ref().is_none_or(|(most, _)| share > *most) {
            let found = Deviation {
                element,
                expected: text(datatype, expected),
                got: text(datatype, got),
                deviation,
                allowed,
            };
            worst = Some((share, found));
        }
    }
    worst.map(|(_, deviation)| deviation)
}

/// Deviation in units of what is allowed; infinite where nothing is.
fn share(deviation: f64, allowed: f64) -> f64 {
    if deviation == 0.0 { 0.0 } else { deviation / allowed }
}

/// The distance of two elements, and the distance allowed.
fn deviation(datatype: Datatype, expected: &[u8], got: &[u8], tolerance: Tolerance) -> (f64, f64) {
    let (Some(expected), Some(got)) = (float(datatype, expected), float(datatype, got)) else {
        return (if expected == got { 0.0 } else { f64::INFINITY }, 0.0);
    };
    // An infinite value allows no deviation: otherwise anything would be near enough to it.
    let allowed = if expected.is_finite() {
        tolerance.absolute + tolerance.relative * expected.abs()
    } else {
        0.0
    };
    if expected == got || (expected.is_nan() && got.is_nan()) {
        return (0.0, allowed);
    }
    let deviation = (expected - got).abs();
    (if deviation.is_nan() { f64::INFINITY } else { deviation }, allowed)
}

/// The value of a floating-point element; `None` for the other datatypes.
fn float(datatype: Datatype, element: &[u8]) -> Option<f64> {
    match datatype {
        Datatype::Fp16 => Some(f16::from_le_bytes(element.try_into().ok()?).to_f64()),
        Datatype::Bf16 => Some(bf16::from_le_bytes(element.try_into().ok()?).to_f64()),
        Datatype::Fp32 => Some(f32::from_le_bytes(element.try_into().ok()?).into()),
        Datatype::Fp64 => Some(f64::from_le_bytes(element.try_into().ok()?)),
        _ => None,
    }
}

/// An element as a person reads it.
fn text(datatype: Datatype, element: &[u8]) -> String {
    match datatype {
        Datatype::Fp32 => element
            .try_into()
            .map(f32::from_le_bytes)
            .map_or_else(|_| String::new(), |value| value.to_string()),
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp64 => {
            float(datatype, element).map_or_else(String::new, |value| value.to_string())
        }
        Datatype::Bool => (element != [0]).to_string(),
        Datatype::Bytes => quoted(element),
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 | Datatype::Int64 => integer(element, true).to_string(),
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 | Datatype::Uint64 => integer(element, false).to_string(),
    }
}

fn integer(element: &[u8], signed: bool) -> i128 {
    let negative = signed && element.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 16];
    for (to, from) in wide.iter_mut().zip(element) {
        *to = *from;
    }
    i128::from_le_bytes(wide)
}

fn quoted(element: &[u8]) -> String {
    let shown = String::from_utf8_lossy(&element[..element.len().min(TEXT_BYTES_MAX)]).into_owned();
    let more = if element.len() > TEXT_BYTES_MAX { "..." } else { "" };
    format!("{shown:?}{more}")
}

/// Enough to recognise a string in a one-line sentence.
const TEXT_BYTES_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: Tolerance = Tolerance {
        absolute: 0.5,
        relative: 0.1,
    };

    fn worst_f64(expected: &[f64], got: &[f64]) -> Deviation {
        let [expected, got] =
            [expected, got].map(|values| values.iter().flat_map(|value| value.to_le_bytes()).collect());
        worst_of(Datatype::Fp64, &expected, &got)
    }

    fn worst_of(datatype: Datatype, expected: &Vec<u8>, got: &Vec<u8>) -> Deviation {
        let [expected, got] = [expected, got].map(|data| elements(datatype, data).unwrap());
        worst(datatype, &expected, &got, TOLERANCE).unwrap()
    }

    #[test]
    fn a_float_may_deviate_by_the_absolute_and_the_relative_part_together() {
        assert!(worst_f64(&[10.0], &[11.5]).is_allowed());
        assert!(worst_f64(&[-10.0], &[-8.5]).is_allowed());
        assert!(!worst_f64(&[10.0], &[11.6]).is_allowed());
    }

    #[test]
    fn the_worst_element_is_the_one_furthest_beyond_what_is_allowed_for_it() {
        let found = worst_f64(&[1000.0, 1.0, 2.0], &[1050.0, 2.0, 2.0]);

        let expected = Deviation {
            element: 1,
            expected: "1".into(),
            got: "2".into(),
            deviation: 1.0,
            allowed: 0.6,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn not_a_number_equals_itself_and_nothing_else() {
        assert!(worst_f64(&[f64::NAN], &[f64::NAN]).is_allowed());
        assert!(!worst_f64(&[f64::NAN], &[1.0]).is_allowed());
        assert!(!worst_f64(&[1.0], &[f64::NAN]).is_allowed());
    }

    #[test]
    fn infinity_equals_itself_and_nothing_else() {
        let infinity = f64::INFINITY;
        assert!(worst_f64(&[infinity], &[infinity]).is_allowed());
        for (expected, got) in [
            (infinity, 1e300),
            (1e300, infinity),
            (infinity, -infinity),
            (infinity, f64::NAN),
        ] {
            assert!(!worst_f64(&[expected], &[got]).is_allowed(), "{expected} {got}");
        }
    }

    #[test]
    fn without_tolerance_equal_passes_and_anything_else_fails() {
        let exact = Tolerance {
            absolute: 0.0,
            relative: 0.0,
        };
        let [one, next] = [1.0_f32, 1.000_000_1].map(f32::to_le_bytes);

        let same = worst(Datatype::Fp32, &[&one], &[&one], exact).unwrap();
        let other = worst(Datatype::Fp32, &[&one, &one], &[&one, &next], exact).unwrap();

        assert!(same.is_allowed());
        assert!(!other.is_allowed());
        assert_eq!((other.element, other.got.as_str()), (1, "1.0000001"));
    }

    #[test]
    fn whatever_is_no_float_must_be_equal() {
        assert!(
            worst_of(
                Datatype::Int64,
                &7_i64.to_le_bytes().into(),
                &7_i64.to_le_bytes().into()
            )
            .is_allowed()
        );

        let found = worst_of(
            Datatype::Int64,
            &(-7_i64).to_le_bytes().into(),
            &8_i64.to_le_bytes().into(),
        );
        assert!(!found.is_allowed());
        assert_eq!((found.expected.as_str(), found.got.as_str()), ("-7", "8"));
        let found = worst_of(Datatype::Uint8, &vec![255], &vec![0]);
        assert_eq!((found.expected.as_str(), found.got.as_str()), ("255", "0"));
        let found = worst_of(Datatype::Bool, &vec![1], &vec![0]);
        assert_eq!((found.expected.as_str(), found.got.as_str()), ("true", "false"));
    }

    #[test]
    fn strings_are_compared_and_shown_in_quotes_cut_to_a_readable_length() {
        let long = format!("\x09\0\0\0abc\n\"xyz\\\x3c\0\0\0{}", "y".repeat(60));
        let other = format!("\x09\0\0\0abc\n\"xyz\\\x3c\0\0\0{}", "z".repeat(60));

        let found = worst_of(Datatype::Bytes, &long.into(), &other.into());

        assert_eq!(found.element, 1);
        assert_eq!(found.got, format!("\"{}\"...", "z".repeat(40)));
        assert!(!found.is_allowed());
    }

    #[test]
    fn half_precision_is_compared_as_numbers() {
        let expected = f16::from_f64(10.0).to_le_bytes().to_vec();
        let got = f16::from_f64(11.0).to_le_bytes().to_vec();

        assert!(worst_of(Datatype::Fp16, &expected, &got).is_allowed());
        assert_eq!(
            worst_of(Datatype::Bf16, &vec![0x80, 0x3f], &vec![0x80, 0x3f]).expected,
            "1"
        );
    }

    #[test]
    fn data_that_ends_within_an_element_has_no_elements() {
        assert_eq!(elements(Datatype::Fp32, &[0; 7]), None);
        assert_eq!(elements(Datatype::Bytes, &[1, 0, 0]), None);
        assert_eq!(elements(Datatype::Bytes, &[2, 0, 0, 0, 1]), None);
        assert_eq!(elements(Datatype::Bytes, &[255, 255, 255, 255, 1]), None);
        assert_eq!(
            elements(Datatype::Bytes, &[0, 0, 0, 0, 1, 0, 0, 0, 7]),
            Some(vec![&[][..], &[7]])
        );
        assert_eq!(elements(Datatype::Fp32, &[]), Some(vec![]));
    }

    #[test]
    fn nothing_compared_is_no_deviation() {
        assert_eq!(worst(Datatype::Fp32, &[], &[], TOLERANCE), None);
    }
}
