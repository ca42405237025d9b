//! What a job looks like: shapes and datatypes, from flags or from a model's signature; and made-up rows of them. Pure.

use std::str::FromStr;

use half::{bf16, f16};

use crate::model::signature::{Dim, Signature, TensorSpec};
use crate::wire::tensor::{Datatype, Tensor, element_count, push_bytes_element};

/// A flag such as `--shape 3,224,224` or `--shape ids=12`: a value for all inputs, or for the one named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForInput<T> {
    pub input: Option<String>,
    pub value: T,
}

/// Shape of one row: `64`, `3,224,224`, or nothing for a single number a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowShape(pub Vec<usize>);

impl<T: FromStr<Err = String>> FromStr for ForInput<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (input, value) = match text.split_once('=') {
            Some((input, value)) => (Some(input.to_owned()), value),
            None => (None, text),
        };
        Ok(Self {
            input,
            value: value.parse()?,
        })
    }
}

impl FromStr for RowShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let axes = text.split(',').map(str::trim).filter(|axis| !axis.is_empty());
        let axes: Option<Vec<usize>> = axes
            .map(|axis| axis.parse().ok().filter(|&length| length > 0))
            .collect();
        axes.filter(|axes| axes.len() < AXES_MAX && element_count(axes).is_some_and(|count| count <= ROW_ELEMENTS_MAX))
            .map(Self)
            .ok_or_else(|| {
                format!("`{text}` is no shape of a row: allowed are up to 7 lengths, such as 64 or 3,224,224")
            })
    }
}

/// A datatype in upper or lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnyCase(pub Datatype);

impl FromStr for AnyCase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let datatype = text.to_ascii_uppercase().parse();
        datatype.map(Self).map_err(|unknown| format!("`{text}` {unknown}"))
    }
}

/// One input of every job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputShape {
    /// Empty where the model has only one.
    pub name: String,
    pub datatype: Datatype,
    /// `None` if the input has no axes, and so no rows.
    pub row: Option<Vec<usize>>,
}

/// What the flags say by themselves; `None` if they leave it to the model's signature.
pub fn of_flags(shapes: &[ForInput<RowShape>], datatypes: &[ForInput<AnyCase>]) -> Option<Vec<InputShape>> {
    let inputs = shapes.iter().map(|shape| InputShape {
        name: shape.input.clone().unwrap_or_default(),
        datatype: found(datatypes, shape.input.as_deref()).map_or(Datatype::Fp32, |any| any.0),
        row: Some(shape.value.0.clone()),
    });
    (!shapes.is_empty()).then(|| inputs.collect())
}

fn found<'a, T>(flags: &'a [ForInput<T>], input: Option<&str>) -> Option<&'a T> {
    let named = flags
        .iter()
        .find(|flag| flag.input.is_some() && flag.input.as_deref() == input);
    named
        .or_else(|| flags.iter().find(|flag| flag.input.is_none()))
        .map(|flag| &flag.value)
}

/// What the signature says. An axis of any length, other than that of the rows, is as short as it can be.
pub fn of_signature(signature: &Signature) -> Vec<InputShape> {
    let input = |spec: &TensorSpec| InputShape {
        name: spec.name.clone(),
        datatype: spec.datatype,
        row: spec
            .shape
            .split_first()
            .map(|(_, row)| row.iter().map(length).collect()),
    };
    signature.inputs.iter().map(input).collect()
}

/// Rows that a model takes at a time, if its signature leaves no choice.
pub fn fixed_rows(signature: &Signature) -> Option<usize> {
    match signature.inputs.first()?.shape.first()? {
        Dim::Fixed(rows) => Some(*rows),
        Dim::Dynamic(_) => None,
    }
}

fn length(dim: &Dim) -> usize {
    match dim {
        Dim::Fixed(length) => *length,
        Dim::Dynamic(_) => 1,
    }
}

impl InputShape {
    /// Made-up rows. Whole numbers are 0, 1 and 2 and strings single letters, since they are often looked up in a table whose
    /// size nobody tells; floats are between -1 and 1.
    pub fn rows(&self, rows: usize, random: &mut fastrand::Rng) -> Tensor {
        let shape: Vec<usize> = match &self.row {
            Some(row) => [&[rows], row.as_slice()].concat(),
            None => Vec::new(),
        };
        let count = element_count(&shape).unwrap_or(0);
        let mut data = Vec::with_capacity(count * self.datatype.element_bytes().unwrap_or(5));
        for _ in 0..count {
            push(self.datatype, random, &mut data);
        }
        Tensor {
            name: self.name.clone(),
            datatype: self.datatype,
            shape,
            data: data.into(),
        }
    }

    /// Bytes of one row; of strings the made-up ones.
    pub fn row_bytes(&self) -> usize {
        let elements = self.row.as_deref().and_then(element_count).unwrap_or(1);
        elements.saturating_mul(self.datatype.element_bytes().unwrap_or(5))
    }
}

fn push(datatype: Datatype, random: &mut fastrand::Rng, data: &mut Vec<u8>) {
    let whole = random.u8(0..3);
    let float = random.f32() * 2.0 - 1.0;
    match datatype {
        Datatype::Bool => data.push(whole % 2),
        Datatype::Fp16 => data.extend(f16::from_f32(float).to_le_bytes()),
        Datatype::Bf16 => data.extend(bf16::from_f32(float).to_le_bytes()),
        Datatype::Fp32 => data.extend(float.to_le_bytes()),
        Datatype::Fp64 => data.extend(f64::from(float).to_le_bytes()),
        Datatype::Bytes => push_bytes_element(data, &[b'a' + whole]),
        Datatype::Uint8 | Datatype::Int8 => data.push(whole),
        Datatype::Uint16 | Datatype::Int16 => data.extend(u16::from(whole).to_le_bytes()),
        Datatype::Uint32 | Datatype::Int32 => data.extend(u32::from(whole).to_le_bytes()),
        Datatype::Uint64 | Datatype::Int64 => data.extend(u64::from(whole).to_le_bytes()),
    }
}

const AXES_MAX: usize = crate::wire::tensor::AXES_MAX;
/// Half a gigabyte of the smallest elements, which is more than RabbitMQ takes for a message.
const ROW_ELEMENTS_MAX: usize = 1 << 29;

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> ForInput<RowShape> {
        text.parse().unwrap()
    }

    #[test]
    fn flags_say_shapes_and_datatypes_for_all_inputs_or_for_one() {
        let shapes = [shape("3,2"), shape("ids=4")];
        let datatypes = ["fp16", "ids=INT64"].map(|text| text.parse().unwrap());

        let inputs = of_flags(&shapes, &datatypes).unwrap();

        let input = |name: &str, datatype, row: &[usize]| InputShape {
            name: name.to_owned(),
            datatype,
            row: Some(row.to_vec()),
        };
        assert_eq!(
            inputs,
            [input("", Datatype::Fp16, &[3, 2]), input("ids", Datatype::Int64, &[4])]
        );
        assert_eq!(of_flags(&[shape("")], &[]).unwrap()[0], input("", Datatype::Fp32, &[]));
        assert_eq!(of_flags(&[], &datatypes), None);
    }

    #[test]
    fn what_is_no_shape_or_datatype_is_named_with_what_is_allowed() {
        for text in [
            "x",
            "3,-1",
            "0",
            "1,1,1,1,1,1,1,1",
            "99999999999",
            "65536,65536,65536,65536",
        ] {
            let said = text.parse::<ForInput<RowShape>>().unwrap_err();
            assert!(said.contains("is no shape of a row: allowed are"), "{said}");
        }
        let said = "x=float".parse::<ForInput<AnyCase>>().unwrap_err();
        assert!(said.starts_with("`float` is not a datatype; allowed are"), "{said}");
    }

    #[test]
    fn a_signature_gives_the_shape_of_a_row_and_its_fixed_rows() {
        let spec = |name: &str, shape: Vec<Dim>| TensorSpec {
            name: name.to_owned(),
            datatype: Datatype::Fp32,
            shape,
        };
        let batch = || Dim::Dynamic("batch".to_owned());
        let signature = |inputs| Signature {
            inputs,
            outputs: Vec::new(),
        };
        let free = signature(vec![
            spec("x", vec![batch(), Dim::Fixed(3), batch()]),
            spec("s", Vec::new()),
        ]);
        let fixed = signature(vec![spec("x", vec![Dim::Fixed(4), Dim::Fixed(3)])]);

        let inputs = of_signature(&free);

        assert_eq!(inputs[0].row, Some(vec![3, 1]));
        assert_eq!(inputs[1].row, None);
        assert_eq!((fixed_rows(&free), fixed_rows(&fixed)), (None, Some(4)));
    }

    #[test]
    fn made_up_rows_are_as_long_as_their_shape_and_the_same_for_a_seed() {
        for datatype in Datatype::ALL {
            let input = InputShape {
                name: "x".to_owned(),
                datatype,
                row: Some(vec![2, 3]),
            };
            let made = |seed| input.rows(4, &mut fastrand::Rng::with_seed(seed));

            assert_eq!(made(1).shape, [4, 2, 3]);
            assert_eq!(made(1).data.len(), 4 * input.row_bytes(), "{datatype}");
            assert_eq!(made(1), made(1));
            assert_ne!(made(1), made(2), "{datatype}");
        }
        let scalar = InputShape {
            name: "s".to_owned(),
            datatype: Datatype::Fp64,
            row: None,
        };
        let made = scalar.rows(4, &mut fastrand::Rng::with_seed(1));
        assert_eq!((made.shape.len(), made.data.len()), (0, 8));
    }
}
