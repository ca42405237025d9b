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

/// Shape of one row: `64`, `3,224,224`, or nothing for a single number a row; or in brackets that of a whole input, where `?` is
/// the axis of the rows, if it has one: `[3]`, `[2,?,128]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowShape {
    Row(Vec<usize>),
    Whole(Vec<Axis>),
}

/// The length of one axis of a job's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// As many as the job has rows.
    Rows,
    Fixed(usize),
}

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
        Self::read(text).ok_or_else(|| {
            format!(
                "`{text}` is no shape of a row: allowed are up to 7 lengths, such as 64 or 3,224,224, or in brackets the \
                 shape of a whole input, such as [2,?,128], where ? is the axis of the rows"
            )
        })
    }
}

impl RowShape {
    fn read(text: &str) -> Option<Self> {
        let inner = text.trim().strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let words = inner.unwrap_or(text).split(',').map(str::trim);
        let axes = words.filter(|axis| !axis.is_empty()).map(|axis| match axis {
            "?" if inner.is_some() => Some(Axis::Rows),
            axis => axis.parse().ok().filter(|&length| length > 0).map(Axis::Fixed),
        });
        let axes: Vec<Axis> = axes.collect::<Option<_>>()?;
        let lengths: Vec<usize> = axes.iter().map(|axis| axis.length(1)).collect();
        let axes_max = if inner.is_some() { AXES_MAX } else { AXES_MAX - 1 };
        let fits = axes.len() <= axes_max && element_count(&lengths).is_some_and(|count| count <= ROW_ELEMENTS_MAX);
        fits.then_some(match inner {
            Some(_) => Self::Whole(axes),
            None => Self::Row(lengths),
        })
    }

    /// The axes of an input with this shape, of which `declared` are known.
    fn axes(&self, declared: Option<usize>) -> Vec<Axis> {
        match self {
            Self::Whole(axes) => axes.clone(),
            // As many lengths as the input has axes are all of them: there is none left for the rows.
            Self::Row(row) if declared == Some(row.len()) => row.iter().copied().map(Axis::Fixed).collect(),
            Self::Row(row) => std::iter::once(Axis::Rows)
                .chain(row.iter().copied().map(Axis::Fixed))
                .collect(),
        }
    }
}

impl Axis {
    fn length(self, rows: usize) -> usize {
        match self {
            Self::Rows => rows,
            Self::Fixed(length) => length,
        }
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
    pub axes: Vec<Axis>,
}

/// What the flags say by themselves; `None` if they leave it to the model's signature.
pub fn of_flags(shapes: &[ForInput<RowShape>], datatypes: &[ForInput<AnyCase>]) -> Option<Vec<InputShape>> {
    let inputs = shapes.iter().map(|shape| InputShape {
        name: shape.input.clone().unwrap_or_default(),
        datatype: found(datatypes, shape.input.as_deref()).map_or(Datatype::Fp32, |any| any.0),
        axes: shape.value.axes(None),
    });
    (!shapes.is_empty()).then(|| inputs.collect())
}

/// What the signature says, with what the flags say of single inputs in its place; `None` if they name an input that it does not
/// have.
pub fn of_both(
    signature: &Signature,
    shapes: &[ForInput<RowShape>],
    datatypes: &[ForInput<AnyCase>],
) -> Option<Vec<InputShape>> {
    let is_there = |name: &Option<String>| {
        let name = name.as_deref();
        name.is_none_or(|name| signature.inputs.iter().any(|spec| spec.name == name))
    };
    let names = shapes.iter().map(|flag| &flag.input);
    let mut names = names.chain(datatypes.iter().map(|flag| &flag.input));
    if !names.all(is_there) {
        return None;
    }
    let declared = of_signature(signature).into_iter();
    let inputs = declared.map(|input| InputShape {
        axes: found(shapes, Some(&input.name)).map_or(input.axes.clone(), |shape| shape.axes(Some(input.axes.len()))),
        datatype: found(datatypes, Some(&input.name)).map_or(input.datatype, |any| any.0),
        name: input.name,
    });
    Some(inputs.collect())
}

fn found<'a, T>(flags: &'a [ForInput<T>], input: Option<&str>) -> Option<&'a T> {
    let named = flags
        .iter()
        .find(|flag| flag.input.is_some() && flag.input.as_deref() == input);
    named
        .or_else(|| flags.iter().find(|flag| flag.input.is_none()))
        .map(|flag| &flag.value)
}

/// What the signature says. A fixed axis is as long as it says. A free one is that of the rows if it is the first, if it has the
/// same name as such a one, or if it is the only free one of an input whose first is fixed; any other is as short as it can be.
pub fn of_signature(signature: &Signature) -> Vec<InputShape> {
    let first_axes = signature.inputs.iter().filter_map(|spec| spec.shape.first());
    let rows: Vec<&Dim> = first_axes
        .filter(|dim| matches!(dim, Dim::Dynamic(name) if !name.is_empty()))
        .collect();
    let input = |spec: &TensorSpec| {
        let free = spec.shape.iter().filter(|dim| matches!(dim, Dim::Dynamic(_))).count();
        let only_one = free == 1 && matches!(spec.shape.first(), Some(Dim::Fixed(_)));
        let axis = |(at, dim): (usize, &Dim)| match dim {
            Dim::Fixed(length) => Axis::Fixed(*length),
            Dim::Dynamic(_) if at == 0 || only_one || rows.contains(&dim) => Axis::Rows,
            Dim::Dynamic(_) => Axis::Fixed(1),
        };
        InputShape {
            name: spec.name.clone(),
            datatype: spec.datatype,
            axes: spec.shape.iter().enumerate().map(axis).collect(),
        }
    };
    signature.inputs.iter().map(input).collect()
}

/// Rows that a model takes at a time, if its signature leaves no choice.
pub fn fixed_rows(signature: &Signature) -> Option<usize> {
    let mut axes = signature.inputs.iter().flat_map(|spec| &spec.shape);
    match signature.inputs.first()?.shape.first()? {
        Dim::Fixed(rows) if axes.all(|dim| matches!(dim, Dim::Fixed(_))) => Some(*rows),
        Dim::Fixed(_) | Dim::Dynamic(_) => None,
    }
}

impl InputShape {
    /// Made-up rows. Whole numbers are 0, 1 and 2 and strings single letters, since they are often looked up in a table whose
    /// size nobody tells; floats are between -1 and 1.
    pub fn rows(&self, rows: usize, random: &mut fastrand::Rng) -> Tensor {
        let shape: Vec<usize> = self.axes.iter().map(|axis| axis.length(rows)).collect();
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

    /// Bytes of this input of a job; of strings the made-up ones.
    pub fn bytes(&self, rows: usize) -> usize {
        let lengths = self.axes.iter().map(|axis| axis.length(rows));
        let elements = lengths.fold(1, usize::saturating_mul);
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
            axes: RowShape::Row(row.to_vec()).axes(None),
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
            "?",
            "[2",
            "[2,-1]",
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

        assert_eq!(inputs[0].axes, [Axis::Rows, Axis::Fixed(3), Axis::Rows]);
        assert_eq!(inputs[1].axes, []);
        assert_eq!((fixed_rows(&free), fixed_rows(&fixed)), (None, Some(4)));
    }

    /// `x [batch,seq]`, `scales [3]`, `state [2,?,128]`, `mask [4,batch,seq]`, `alpha []`.
    fn mixed() -> Signature {
        let spec = |name: &str, shape: &[&str]| TensorSpec {
            name: name.to_owned(),
            datatype: Datatype::Int64,
            shape: shape
                .iter()
                .map(|axis| {
                    axis.parse()
                        .map_or_else(|_| Dim::Dynamic(axis.replace('?', "")), Dim::Fixed)
                })
                .collect(),
        };
        Signature {
            inputs: vec![
                spec("x", &["batch", "seq"]),
                spec("scales", &["3"]),
                spec("state", &["2", "?", "128"]),
                spec("mask", &["4", "batch", "seq"]),
                spec("alpha", &[]),
            ],
            outputs: Vec::new(),
        }
    }

    fn made(inputs: &[InputShape]) -> Vec<Vec<usize>> {
        let mut random = fastrand::Rng::with_seed(1);
        inputs.iter().map(|input| input.rows(5, &mut random).shape).collect()
    }

    #[test]
    fn inputs_whose_first_axis_is_fixed_keep_their_shape() {
        let inputs = of_signature(&mixed());

        let expected = [vec![5, 1], vec![3], vec![2, 5, 128], vec![4, 5, 1], vec![]];
        assert_eq!(made(&inputs), expected);
        assert_eq!(fixed_rows(&mixed()), None);
    }

    #[test]
    fn flags_say_otherwise_of_single_inputs() {
        let flags = ["x=7", "state=2,9,128", "mask=[4,?,6]"].map(shape);
        let datatypes = ["x=fp32"].map(|text| text.parse().unwrap());

        let inputs = of_both(&mixed(), &flags, &datatypes).unwrap();

        let expected = [vec![5, 7], vec![3], vec![2, 9, 128], vec![4, 5, 6], vec![]];
        assert_eq!(made(&inputs), expected);
        assert_eq!(
            (inputs[0].datatype, inputs[1].datatype),
            (Datatype::Fp32, Datatype::Int64)
        );
        assert_eq!(of_both(&mixed(), &[shape("y=3")], &[]), None);
        let alone = of_flags(&["scales=[3]", "state=[2,?,128]"].map(shape), &[]).unwrap();
        assert_eq!(made(&alone), [vec![3], vec![2, 5, 128]]);
    }

    #[test]
    fn made_up_rows_are_as_long_as_their_shape_and_the_same_for_a_seed() {
        for datatype in Datatype::ALL {
            let input = InputShape {
                name: "x".to_owned(),
                datatype,
                axes: vec![Axis::Rows, Axis::Fixed(2), Axis::Fixed(3)],
            };
            let made = |seed| input.rows(4, &mut fastrand::Rng::with_seed(seed));

            assert_eq!(made(1).shape, [4, 2, 3]);
            assert_eq!(made(1).data.len(), input.bytes(4), "{datatype}");
            assert_eq!(made(1), made(1));
            assert_ne!(made(1), made(2), "{datatype}");
        }
        let scalar = InputShape {
            name: "s".to_owned(),
            datatype: Datatype::Fp64,
            axes: Vec::new(),
        };
        let made = scalar.rows(4, &mut fastrand::Rng::with_seed(1));
        assert_eq!((made.shape.len(), made.data.len()), (0, 8));
    }
}
