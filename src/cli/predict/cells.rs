//! Elements of a tensor as text, each as short as it reads back the same.

use half::{bf16, f16};

use crate::wire::tensor::{Datatype, bytes_elements};

/// What the text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cells {
    /// Strings as they are, `NaN` and `inf` for what is not finite.
    Plain,
    /// Strings in quotes; JSON has no word for what is not finite, so it is `null`.
    Json,
}

impl Cells {
    /// The elements in `data`, one text each.
    pub fn of(self, datatype: Datatype, data: &[u8]) -> Vec<String> {
        match datatype {
            Datatype::Bool => each(data, |[byte]: [u8; 1]| (byte != 0).to_string()),
            Datatype::Uint8 => each(data, |bytes| u8::from_le_bytes(bytes).to_string()),
            Datatype::Uint16 => each(data, |bytes| u16::from_le_bytes(bytes).to_string()),
            Datatype::Uint32 => each(data, |bytes| u32::from_le_bytes(bytes).to_string()),
            Datatype::Uint64 => each(data, |bytes| u64::from_le_bytes(bytes).to_string()),
            Datatype::Int8 => each(data, |bytes| i8::from_le_bytes(bytes).to_string()),
            Datatype::Int16 => each(data, |bytes| i16::from_le_bytes(bytes).to_string()),
            Datatype::Int32 => each(data, |bytes| i32::from_le_bytes(bytes).to_string()),
            Datatype::Int64 => each(data, |bytes| i64::from_le_bytes(bytes).to_string()),
            Datatype::Fp16 => each(data, |bytes| self.single(f16::from_le_bytes(bytes).to_f32())),
            Datatype::Bf16 => each(data, |bytes| self.single(bf16::from_le_bytes(bytes).to_f32())),
            Datatype::Fp32 => each(data, |bytes| self.single(f32::from_le_bytes(bytes))),
            Datatype::Fp64 => each(data, |bytes| {
                self.float(f64::from_le_bytes(bytes), |value| format!("{value:?}"))
            }),
            Datatype::Bytes => bytes_elements(data).map(|element| self.text(element)).collect(),
        }
    }

    fn single(self, value: f32) -> String {
        // Not as its `f64`, which has digits that the model never said.
        self.float(value.into(), |_| format!("{value:?}"))
    }

    fn float(self, value: f64, text: impl Fn(f64) -> String) -> String {
        match self {
            Self::Json if !value.is_finite() => "null".to_owned(),
            Self::Json | Self::Plain => text(value),
        }
    }

    fn text(self, element: &[u8]) -> String {
        let text = String::from_utf8_lossy(element);
        match self {
            Self::Plain => text.into_owned(),
            Self::Json => serde_json::Value::from(text).to_string(),
        }
    }
}

fn each<const N: usize>(data: &[u8], text: impl Fn([u8; N]) -> String) -> Vec<String> {
    let (elements, _) = data.as_chunks();
    elements.iter().map(|element| text(*element)).collect()
}

/// Texts nested as the shape says: `[[1,2],[3,4]]`, or the text itself where there are no axes.
pub fn nested(cells: &[String], shape: &[usize]) -> String {
    let Some((&axis, inner)) = shape.split_first() else {
        return cells.first().cloned().unwrap_or_default();
    };
    let step: usize = inner.iter().product();
    let parts: Vec<String> = (0..axis)
        .map(|index| nested(&cells[index * step..(index + 1) * step], inner))
        .collect();
    format!("[{}]", parts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_as_short_as_their_own_width_allows_and_json_has_no_infinity() {
        let values: Vec<u8> = [0.1_f32, 1.0, 1e-10, f32::NAN, f32::NEG_INFINITY]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();

        assert_eq!(
            Cells::Plain.of(Datatype::Fp32, &values),
            ["0.1", "1.0", "1e-10", "NaN", "-inf"]
        );
        assert_eq!(
            Cells::Json.of(Datatype::Fp32, &values),
            ["0.1", "1.0", "1e-10", "null", "null"]
        );
    }

    #[test]
    fn integers_booleans_and_strings_are_themselves() {
        let text = [3, 0, 0, 0, b'a', b'"', b'b'];

        assert_eq!(
            Cells::Json.of(Datatype::Int64, &i64::MIN.to_le_bytes()),
            [i64::MIN.to_string()]
        );
        assert_eq!(Cells::Json.of(Datatype::Bool, &[1, 0]), ["true", "false"]);
        assert_eq!(Cells::Plain.of(Datatype::Bytes, &text), ["a\"b"]);
        assert_eq!(Cells::Json.of(Datatype::Bytes, &text), [r#""a\"b""#]);
    }

    #[test]
    fn rows_are_nested_as_their_shape_says() {
        let cells: Vec<String> = (1..=4).map(|cell| cell.to_string()).collect();

        assert_eq!(nested(&cells, &[2, 2]), "[[1,2],[3,4]]");
        assert_eq!(nested(&cells, &[4]), "[1,2,3,4]");
        assert_eq!(nested(&cells[..1], &[]), "1");
        assert_eq!(nested(&[], &[2, 0]), "[[],[]]");
    }
}
