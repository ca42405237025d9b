//! Which input of the model takes which columns of a table, and how a cell becomes an element of it.

use super::columns::{CellFault, ColumnFault, Missing, listed};
use crate::model::signature::{Dim, TensorSpec};
use crate::wire::elements::{Elements, Scalar};
use crate::wire::tensor::{Datatype, Tensor};

/// How values are to be sent, by what the user says and by what the model takes.
#[derive(Debug, Clone, Default)]
pub struct Sending {
    pub model: String,
    /// Inputs of the model; empty where no worker has said them.
    pub takes: Vec<TensorSpec>,
    /// The input that takes the rows; empty is the only one.
    pub input: String,
    /// `None`: as the model takes it.
    pub datatype: Option<Datatype>,
    pub missing: Missing,
}

impl Sending {
    /// The input of this name, or the only one.
    pub fn spec(&self, input: &str) -> Option<&TensorSpec> {
        match &self.takes[..] {
            [only] => Some(only),
            several => several.iter().find(|spec| spec.name == input),
        }
    }

    fn datatype(&self, spec: Option<&TensorSpec>) -> Datatype {
        let of_model = spec.map(|spec| spec.datatype);
        self.datatype.or(of_model).unwrap_or(Datatype::Fp32)
    }

    /// The model and its inputs, as a message names them.
    pub fn said(&self) -> String {
        let inputs: Vec<String> = self.takes.iter().map(|spec| format!("`{spec}`")).collect();
        format!("model `{}` takes {}", self.model, inputs.join(", "))
    }
}

/// The inputs that are made of a table's columns.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    pub parts: Vec<Part>,
    missing: Missing,
}

/// One input, and the columns that it is made of.
#[derive(Debug, Clone)]
pub struct Part {
    name: String,
    datatype: Datatype,
    /// As the model declares it, where that is known.
    declared: Option<Vec<Dim>>,
    /// Places of its columns in a row.
    pub columns: Vec<usize>,
    /// What one cell of each column is: empty for a single value.
    pub shapes: Vec<Vec<usize>>,
}

impl Part {
    fn new(sending: &Sending, name: &str, columns: Vec<usize>) -> Self {
        let spec = sending.spec(name);
        Self {
            name: name.to_owned(),
            datatype: sending.datatype(spec),
            declared: spec.map(|spec| spec.shape.clone()),
            shapes: vec![Vec::new(); columns.len()],
            columns,
        }
    }

    pub fn datatype(&self) -> Datatype {
        self.datatype
    }

    /// Shape of one row: a single list as it is nested, several columns one after the other, and both as the model has them if
    /// it declares as many elements in other axes.
    pub fn row_shape(&self) -> Vec<usize> {
        let flat = match &self.shapes[..] {
            [shape] if !shape.is_empty() => shape.clone(),
            shapes => vec![shapes.iter().map(|shape| shape.iter().product::<usize>()).sum()],
        };
        match self.declared.as_deref().and_then(<[Dim]>::split_first) {
            Some((_, tail)) if flat.len() == 1 && tail.len() != 1 => fixed(tail)
                .filter(|tail| tail.iter().product::<usize>() == flat[0])
                .unwrap_or(flat),
            _ => flat,
        }
    }
}

/// The sizes of axes that are all fixed.
pub fn fixed(dims: &[Dim]) -> Option<Vec<usize>> {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => Some(*size),
        Dim::Dynamic(_) => None,
    };
    dims.iter().map(size).collect()
}

impl Inputs {
    /// Deals the columns out: all to the only input or the one that is named, else each to the input of its name.
    ///
    /// # Errors
    /// An input is left without a column, or a column without an input.
    pub fn of(sending: &Sending, columns: &[usize], names: Option<&[String]>) -> Result<Self, ColumnFault> {
        let parts = if sending.takes.len() > 1 && sending.input.is_empty() {
            by_name(sending, columns, names)?
        } else {
            vec![Part::new(sending, &sending.input, columns.to_vec())]
        };
        Ok(Self {
            parts,
            missing: sending.missing,
        })
    }

    /// Room for the elements of each input.
    pub fn elements(&self, rows: usize) -> Vec<Elements> {
        let reserved = |part: &Part| rows * part.row_shape().iter().product::<usize>();
        let parts = self.parts.iter();
        parts.map(|part| Elements::new(part.datatype, reserved(part))).collect()
    }

    /// Bytes of a row in a job.
    pub fn row_bytes(&self) -> usize {
        let bytes = |part: &Part| {
            let elements: usize = part.row_shape().iter().product();
            elements * part.datatype.element_bytes().unwrap_or(TEXT_BYTES_GUESS)
        };
        self.parts.iter().map(bytes).sum()
    }

    /// True if a row of an input holds nothing.
    pub fn has_empty_row(&self) -> bool {
        self.parts.iter().any(|part| part.row_shape().contains(&0))
    }

    /// The inputs of `rows` rows.
    pub fn tensors(&self, rows: usize, elements: Vec<Elements>) -> Vec<Tensor> {
        let parts = self.parts.iter().zip(elements);
        parts
            .map(|(part, elements)| Tensor {
                name: part.name.clone(),
                datatype: part.datatype,
                shape: [vec![rows], part.row_shape()].concat(),
                data: elements.finish(),
            })
            .collect()
    }

    /// Appends a value to input `part`: booleans are 1 and 0 among numbers, and these two are booleans.
    ///
    /// # Errors
    /// It is missing, or nothing of that datatype.
    pub fn push(&self, part: usize, scalar: &Scalar<'_>, elements: &mut [Elements]) -> Result<(), ValueFault> {
        let datatype = self.parts[part].datatype;
        let mended = match (datatype, scalar) {
            (_, Scalar::Null | Scalar::Nil) if self.missing == Missing::Nan && is_float(datatype) => {
                Some(Scalar::Float(f64::NAN))
            }
            (_, Scalar::Null | Scalar::Nil) => return Err(ValueFault::Missing),
            (Datatype::Bool, value) => Some(Scalar::Bool(truth(value).ok_or(ValueFault::Value)?)),
            (Datatype::Bytes, _) => None,
            (_, Scalar::Bool(value)) => Some(Scalar::Integer((*value).into())),
            (_, _) => None,
        };
        let value = mended.as_ref().unwrap_or(scalar);
        elements[part].push(value).map_err(|_| ValueFault::Value)
    }

    /// The sentence over a value of input `part` at `place`.
    pub fn fault(&self, part: usize, fault: ValueFault, place: String, cell: &str) -> CellFault {
        let datatype = self.parts[part].datatype;
        match fault {
            ValueFault::Missing if self.missing == Missing::Nan => CellFault::NoNan { place, datatype },
            ValueFault::Missing if is_float(datatype) => CellFault::Missing { place },
            ValueFault::Missing => CellFault::NoValue { place },
            ValueFault::Value => CellFault::value(place, cell, datatype),
        }
    }
}

/// What is wrong with a value, whose place the caller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueFault {
    Missing,
    Value,
}

pub fn is_float(datatype: Datatype) -> bool {
    matches!(
        datatype,
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64
    )
}

fn truth(scalar: &Scalar<'_>) -> Option<bool> {
    let number = match scalar {
        Scalar::Bool(value) => return Some(*value),
        #[expect(
            clippy::cast_precision_loss,
            reason = "0 and 1 are exact, and nothing else is of interest"
        )]
        Scalar::Integer(value) => *value as f64,
        Scalar::Float(value) => *value,
        Scalar::Decimal(text) => text.parse().ok()?,
        Scalar::Null | Scalar::Nil | Scalar::Text(_) | Scalar::Binary(_) => return None,
    };
    [(0.0, false), (1.0, true)]
        .into_iter()
        .find(|(value, _)| *value == number)
        .map(|(_, truth)| truth)
}

/// A column belongs to the input of its name. Several make up an input `x` if they are called `x_0`, `x_1` or `x.0`, `x.1` and
/// so on, as the columns of an output are.
fn by_name(sending: &Sending, columns: &[usize], names: Option<&[String]>) -> Result<Vec<Part>, ColumnFault> {
    let names = names.ok_or_else(|| ColumnFault::NoNames { said: sending.said() })?;
    let is_free = |place: &usize| !sending.takes.iter().any(|spec| is_same(&names[*place], &spec.name));
    let mut used = vec![false; names.len()];
    let mut parts = Vec::new();
    let mut without = Vec::new();
    for spec in &sending.takes {
        let exact = columns.iter().find(|&&place| is_same(&names[place], &spec.name));
        let places = match exact {
            Some(&place) => vec![place],
            None => numbered(&spec.name, columns.iter().copied().filter(is_free), names),
        };
        places.iter().for_each(|&place| used[place] = true);
        if places.is_empty() {
            without.push(spec.name.clone());
        }
        parts.push(Part::new(sending, &spec.name, places));
    }
    let left: Vec<String> = columns
        .iter()
        .filter(|&&place| !used[place])
        .map(|&place| names[place].clone())
        .collect();
    if !without.is_empty() || !left.is_empty() {
        return Err(ColumnFault::Inputs {
            said: sending.said(),
            without: listed(&without),
            left: listed(&left),
        });
    }
    rows_only(sending)?;
    Ok(parts)
}

/// Refuses an input that has no axis of rows beside others that have one.
fn rows_only(sending: &Sending) -> Result<(), ColumnFault> {
    let has_rows = |spec: &TensorSpec| matches!(spec.shape.first(), Some(Dim::Dynamic(_)));
    let is_odd = |spec: &&TensorSpec| spec.shape.is_empty() || (sending.takes.iter().any(has_rows) && !has_rows(spec));
    match sending.takes.iter().find(is_odd) {
        None => Ok(()),
        Some(spec) => Err(ColumnFault::NoRowAxis {
            input: spec.to_string(),
        }),
    }
}

fn is_same(column: &str, input: &str) -> bool {
    column == input || column.trim() == input
}

/// The columns `x_0`, `x_1`, … of an input `x` in the order of their numbers, if they are all numbers from 0.
fn numbered(input: &str, columns: impl Iterator<Item = usize>, names: &[String]) -> Vec<usize> {
    let number = |name: &str| {
        let rest = name.trim().strip_prefix(input)?;
        rest.strip_prefix(['_', '.'])?.parse::<usize>().ok()
    };
    let mut found: Vec<(usize, usize)> = columns
        .filter_map(|place| Some((number(&names[place])?, place)))
        .collect();
    found.sort_unstable();
    let is_whole = found.iter().enumerate().all(|(index, (number, _))| index == *number);
    if is_whole {
        found.into_iter().map(|(_, place)| place).collect()
    } else {
        Vec::new()
    }
}

/// The length of a text is not known before it is read; words and short sentences, as a rule.
const TEXT_BYTES_GUESS: usize = 32;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn spec(name: &str, datatype: Datatype, shape: &[&str]) -> TensorSpec {
        let dim = |text: &&str| {
            text.parse()
                .map_or_else(|_| Dim::Dynamic((*text).to_owned()), Dim::Fixed)
        };
        TensorSpec {
            name: name.to_owned(),
            datatype,
            shape: shape.iter().map(dim).collect(),
        }
    }

    pub fn sending(takes: Vec<TensorSpec>) -> Sending {
        Sending {
            model: "m".to_owned(),
            takes,
            ..Sending::default()
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn dealt(takes: Vec<TensorSpec>, columns: &[&str]) -> Result<Vec<Vec<usize>>, String> {
        let names = names(columns);
        let places: Vec<usize> = (0..names.len()).collect();
        let inputs = Inputs::of(&sending(takes), &places, Some(&names)).map_err(|fault| fault.to_string())?;
        Ok(inputs.parts.into_iter().map(|part| part.columns).collect())
    }

    #[test]
    fn columns_go_to_the_inputs_of_their_names() {
        let takes = || {
            vec![
                spec("age", Datatype::Fp32, &["n", "1"]),
                spec("city", Datatype::Bytes, &["n", "1"]),
                spec("v", Datatype::Fp32, &["n", "3"]),
            ]
        };

        assert_eq!(
            dealt(takes(), &["city", "v", "age"]),
            Ok(vec![vec![2], vec![0], vec![1]])
        );
        assert_eq!(
            dealt(takes(), &["v_2", "v_0", "age", " city", "v_1"]),
            Ok(vec![vec![2], vec![3], vec![1, 4, 0]])
        );
        for (columns, parts) in [
            (&["age", "v"][..], "no column for `city`"),
            (
                &["age", "city", "v_0", "v_2"],
                "no column for `v`; no input for `v_0`, `v_2`",
            ),
            (&["age", "city", "v", "target"], "no input for `target`"),
        ] {
            let fault = dealt(takes(), columns).unwrap_err();
            let said = fault.replace("no column for city", "no column for `city`");
            let start = "columns go to the inputs of their names, model `m` takes `age FP32 [n,1]`, `city BYTES [n,1]`";
            assert!(said.contains(start), "{fault}");
            for word in parts.split("; ") {
                assert!(fault.replace('`', "").contains(&word.replace('`', "")), "{fault}");
            }
        }
    }

    #[test]
    fn one_input_takes_all_columns_in_its_own_shape() {
        for (shape, expected) in [
            (&["n", "4"][..], &[4][..]),
            (&["n", "2", "2"], &[2, 2]),
            (&["n", "1", "4", "1"], &[1, 4, 1]),
            (&["n", "5", "5"], &[4]),
            (&["n", "?", "2"], &[4]),
        ] {
            let inputs = Inputs::of(&sending(vec![spec("x", Datatype::Int64, shape)]), &[0, 1, 2, 3], None).unwrap();
            assert_eq!(inputs.parts[0].row_shape(), expected);
            assert_eq!(inputs.row_bytes(), 32);
        }
        let of_rank_one = Inputs::of(&sending(vec![spec("x", Datatype::Fp32, &["n"])]), &[0], None).unwrap();
        assert!(of_rank_one.parts[0].row_shape().is_empty());
        assert_eq!(of_rank_one.tensors(3, of_rank_one.elements(0))[0].shape, [3]);
    }

    #[test]
    fn truths_are_0_or_1_and_what_is_missing_is_nan_if_that_is_wanted() {
        let takes = vec![
            spec("f", Datatype::Fp32, &["n", "1"]),
            spec("i", Datatype::Int8, &["n", "1"]),
            spec("b", Datatype::Bool, &["n", "1"]),
        ];
        let names = names(&["f", "i", "b"]);
        let mut sending = sending(takes);
        let mut inputs = Inputs::of(&sending, &[0, 1, 2], Some(&names)).unwrap();
        let mut elements = inputs.elements(0);

        assert_eq!(inputs.push(0, &Scalar::Null, &mut elements), Err(ValueFault::Missing));
        inputs.push(0, &Scalar::Bool(true), &mut elements).unwrap();
        inputs.push(1, &Scalar::Bool(false), &mut elements).unwrap();
        inputs.push(2, &Scalar::Decimal("1"), &mut elements).unwrap();
        inputs.push(2, &Scalar::Float(0.0), &mut elements).unwrap();
        assert_eq!(
            inputs.push(2, &Scalar::Integer(2), &mut elements),
            Err(ValueFault::Value)
        );
        sending.missing = Missing::Nan;
        inputs = Inputs::of(&sending, &[0, 1, 2], Some(&names)).unwrap();
        inputs.push(0, &Scalar::Null, &mut elements).unwrap();
        assert_eq!(inputs.push(1, &Scalar::Null, &mut elements), Err(ValueFault::Missing));

        let data: Vec<_> = elements.into_iter().map(Elements::finish).collect();
        assert_eq!(data[0][..], [1.0, f32::NAN].map(f32::to_le_bytes).concat());
        assert_eq!((&data[1][..], &data[2][..]), (&[0][..], &[1, 0][..]));
    }
}
