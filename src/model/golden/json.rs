//! Golden vectors as JSON, with tensors as the Open Inference Protocol writes them.

use bytes::Bytes;
use half::{bf16, f16};
use serde::Deserialize;
use serde_json::{Number, Value};

use super::{Contents, FileFault};
use crate::model::compare::Tolerance;
use crate::wire::tensor::{Datatype, Tensor};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGolden {
    inputs: Vec<RawTensor>,
    outputs: Vec<RawTensor>,
    tolerance: Option<RawTolerance>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    name: String,
    datatype: String,
    shape: Vec<usize>,
    data: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTolerance {
    absolute: f64,
    relative: f64,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Contents, FileFault> {
    let raw: RawGolden = serde_json::from_slice(bytes).map_err(FileFault::Json)?;
    Ok(Contents {
        inputs: raw.inputs.into_iter().map(tensor).collect::<Result<_, _>>()?,
        outputs: raw.outputs.into_iter().map(tensor).collect::<Result<_, _>>()?,
        tolerance: raw
            .tolerance
            .map(|RawTolerance { absolute, relative }| Tolerance { absolute, relative }),
    })
}

fn tensor(raw: RawTensor) -> Result<Tensor, FileFault> {
    let RawTensor {
        name,
        datatype,
        shape,
        data,
    } = raw;
    let datatype: Datatype = datatype.parse().map_err(|fault| FileFault::JsonDatatype {
        name: name.clone(),
        datatype: datatype.clone(),
        fault,
    })?;
    let mut bytes = Vec::new();
    let elements = append(&data, datatype, &mut bytes).map_err(|value| FileFault::JsonElement {
        name: name.clone(),
        value: value.to_string(),
        datatype,
    })?;
    let stated = shape
        .iter()
        .try_fold(1_usize, |product, size| product.checked_mul(*size));
    if stated != Some(elements) {
        return Err(FileFault::JsonShape { name, shape, elements });
    }
    Ok(Tensor {
        name,
        datatype,
        shape,
        data: Bytes::from(bytes),
    })
}

/// Appends the elements of flat or nested lists, and returns how many; the error is the value that does not fit.
fn append<'a>(value: &'a Value, datatype: Datatype, bytes: &mut Vec<u8>) -> Result<usize, &'a Value> {
    match value {
        // `serde_json` limits how deep lists nest, and so how deep this goes.
        Value::Array(values) => values.iter().map(|value| append(value, datatype, bytes)).sum(),
        Value::Bool(truth) if datatype == Datatype::Bool => {
            bytes.push((*truth).into());
            Ok(1)
        }
        Value::String(text) if datatype == Datatype::Bytes => {
            let length = u32::try_from(text.len()).map_err(|_| value)?;
            bytes.extend(length.to_le_bytes());
            bytes.extend(text.as_bytes());
            Ok(1)
        }
        Value::Number(number) => append_number(number, datatype, bytes).ok_or(value).map(|()| 1),
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Object(_) => Err(value),
    }
}

/// `None` if the number is not one of the datatype.
fn append_number(number: &Number, datatype: Datatype, bytes: &mut Vec<u8>) -> Option<()> {
    let (float, integer) = (number.as_f64()?, number.as_i128());
    let finite = |fits: bool| fits.then_some(());
    match datatype {
        Datatype::Int8 => bytes.extend(i8::try_from(integer?).ok()?.to_le_bytes()),
        Datatype::Int16 => bytes.extend(i16::try_from(integer?).ok()?.to_le_bytes()),
        Datatype::Int32 => bytes.extend(i32::try_from(integer?).ok()?.to_le_bytes()),
        Datatype::Int64 => bytes.extend(i64::try_from(integer?).ok()?.to_le_bytes()),
        Datatype::Uint8 => bytes.extend(u8::try_from(integer?).ok()?.to_le_bytes()),
        Datatype::Uint16 => bytes.extend(u16::try_from(integer?).ok()?.to_le_bytes()),
        Datatype::Uint32 => bytes.extend(u32::try_from(integer?).ok()?.to_le_bytes()),
        Datatype::Uint64 => bytes.extend(u64::try_from(integer?).ok()?.to_le_bytes()),
        Datatype::Fp16 => {
            finite(f16::from_f64(float).is_finite())?;
            bytes.extend(f16::from_f64(float).to_le_bytes());
        }
        Datatype::Bf16 => {
            finite(bf16::from_f64(float).is_finite())?;
            bytes.extend(bf16::from_f64(float).to_le_bytes());
        }
        Datatype::Fp32 => {
            let nearest = float as f32;
            finite(nearest.is_finite())?;
            bytes.extend(nearest.to_le_bytes());
        }
        Datatype::Fp64 => bytes.extend(float.to_le_bytes()),
        Datatype::Bool | Datatype::Bytes => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::test_engine::f32_bytes;

    #[test]
    fn json_tensors_are_read_flat_or_nested() {
        let text = br#"{
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2.5], [3, -4]]},
            {"name": "s", "datatype": "BYTES", "shape": [2], "data": ["a", "bcd"]},
            {"name": "t", "datatype": "BOOL", "shape": [2], "data": [true, false]}
        ],
        "outputs": [{"name": "y", "datatype": "INT16", "shape": [], "data": [-2]}],
        "tolerance": {"absolute": 0.1, "relative": 0}
    }"#;

        let golden = parse(text).unwrap();

        assert_eq!(golden.inputs[0].data, f32_bytes([1.0, 2.5, 3.0, -4.0]));
        assert_eq!(golden.inputs[1].data, &b"\x01\0\0\0a\x03\0\0\0bcd"[..]);
        assert_eq!(golden.inputs[2].data, vec![1, 0]);
        assert_eq!(golden.outputs[0].data, (-2_i16).to_le_bytes().to_vec());
        assert_eq!(
            golden.tolerance,
            Some(Tolerance {
                absolute: 0.1,
                relative: 0.0
            })
        );
    }

    #[test]
    fn json_elements_that_the_datatype_does_not_have_are_refused() {
        let cases = [
            ("INT8", "128"),
            ("UINT8", "-1"),
            ("INT64", "1.5"),
            ("INT64", "9223372036854775808"),
            ("UINT64", "-1"),
            ("FP32", "1e39"),
            ("FP16", "65536"),
            ("BF16", "1e39"),
            ("FP64", "\"NaN\""),
            ("FP32", "null"),
            ("FP32", "{}"),
            ("BOOL", "1"),
            ("BYTES", "1"),
        ];
        for (datatype, value) in cases {
            let tensor = format!(r#"{{"name": "x", "datatype": "{datatype}", "shape": [1], "data": [{value}]}}"#);
            let error = parse(format!(r#"{{"inputs": [{tensor}], "outputs": []}}"#).as_bytes()).unwrap_err();
            assert!(
                matches!(error, FileFault::JsonElement { .. }),
                "{datatype} {value}: {error}"
            );
        }
    }

    #[test]
    fn json_numbers_at_the_ends_of_their_datatype_are_read() {
        let cases = [
            ("INT8", "-128"),
            ("UINT64", "18446744073709551615"),
            ("INT64", "-9223372036854775808"),
            ("FP16", "65504"),
            ("BF16", "1e38"),
            ("FP32", "3.4e38"),
            ("FP64", "1.7e308"),
            ("INT16", "32767"),
            ("INT32", "-2147483648"),
            ("UINT16", "65535"),
            ("UINT32", "4294967295"),
            ("UINT8", "255"),
        ];
        for (datatype, value) in cases {
            let tensor = format!(r#"{{"name": "x", "datatype": "{datatype}", "shape": [1], "data": {value}}}"#);
            let contents = parse(format!(r#"{{"inputs": [{tensor}], "outputs": []}}"#).as_bytes()).unwrap();
            assert_eq!(
                contents.inputs[0].data.len(),
                contents.inputs[0].datatype.element_bytes().unwrap(),
                "{datatype}"
            );
        }
    }

    #[test]
    fn json_of_another_form_is_refused() {
        let cases = [
            ("[]", "is not JSON of the form"),
            ("{}", "missing field `inputs`"),
            (r#"{"inputs": [], "outputs": [], "more": 1}"#, "unknown field `more`"),
            (
                r#"{"inputs": [{"name": "x", "datatype": "float", "shape": [1], "data": [1]}], "outputs": []}"#,
                "x: float is not a datatype; allowed are BOOL",
            ),
            (
                r#"{"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1]}], "outputs": []}"#,
                "x: the shape [2] does not have 1 elements",
            ),
            (
                r#"{"inputs": [{"name": "x", "datatype": "FP32", "shape": [4294967296, 4294967296, 4294967296], "data": []}], "outputs": []}"#,
                "does not have 0 elements",
            ),
        ];
        for (text, expected) in cases {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_golden_vectors_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(parse(&bytes).is_err());
        }
    }
}
