//! Rows out of NumPy's arrays: one in an `.npy` file, or several side by side in an `.npz` archive, of which some may have no rows.

use std::io;
use std::sync::Arc;

use super::array::Array;
use super::block::{Block, Key};
use super::cells::Cells;
use super::columns::{Choice, Chosen, ColumnFault};
use super::convert::Conversion;
use super::faults::InputFault;
use super::inputs::{Sending, fixed};
use super::npy::NpyFault;
use super::rows::Source;
use crate::model::signature::{Dim, Dims, TensorSpec};
use crate::wire::tensor::{Datatype, Tensor};

/// Arrays with as many rows each, and those that every job is given whole.
pub struct Arrays {
    arrays: Vec<Array>,
    /// Of each array: what its numbers become; `None` leaves them as they are.
    conversions: Vec<Option<Conversion>>,
    whole: Arc<[Tensor]>,
    /// Set while the only job of inputs without rows is to come.
    is_one_job: bool,
    /// `None`: whole rows.
    chosen: Option<Chosen>,
    total: Option<u64>,
    row: u64,
}

impl Arrays {
    /// # Errors
    /// They have not the columns that are asked for.
    pub fn new(arrays: Vec<Array>, choice: &Choice) -> Result<Self, InputFault> {
        let chosen = match &arrays[..] {
            _ if choice.is_everything() => None,
            [array] if array.header().shape.len() == 2 => Some(choice.by_position(array.header().shape[1])?),
            [array] => {
                let axes = array.header().shape.len().saturating_sub(1);
                return Err(ColumnFault::Axes { axes }.into());
            }
            _ => return Err(InputFault::ColumnsOfArrays),
        };
        // Of several some may be without rows, which only the model knows.
        let total = match &arrays[..] {
            [array] if !array.header().shape.is_empty() => Some(array.header().rows()?),
            _ => None,
        };
        Ok(Self {
            conversions: vec![None; arrays.len()],
            arrays,
            whole: Arc::default(),
            is_one_job: false,
            chosen,
            total,
            row: 0,
        })
    }

    /// Reads the arrays that have no rows.
    fn take_whole(&mut self, sending: &Sending) -> Result<(), InputFault> {
        let are_whole: Vec<bool> = (0..self.arrays.len())
            .map(|place| self.is_whole(place, sending))
            .collect();
        let (mut whole, mut of_rows) = (Vec::new(), Vec::new());
        for (array, is_whole) in std::mem::take(&mut self.arrays).into_iter().zip(are_whole) {
            if is_whole {
                whole.push(whole_input(array, sending)?);
            } else {
                array.header().rows()?;
                of_rows.push(array);
            }
        }
        self.is_one_job = of_rows.is_empty();
        self.arrays = of_rows;
        self.whole = whole.into();
        Ok(())
    }

    /// True of an array whose input has no axis of rows: a scalar, fixed sizes beside inputs of any number of rows, or one row
    /// beside many.
    fn is_whole(&self, place: usize, sending: &Sending) -> bool {
        let header = self.arrays[place].header();
        let spec = sending.spec(self.arrays[place].name());
        let Some(spec) = spec else {
            return header.shape.is_empty() && self.arrays.len() > 1;
        };
        if spec.shape.is_empty() || header.shape.is_empty() {
            return true;
        }
        let others = self.arrays.iter().enumerate().filter(|(other, _)| *other != place);
        let others: Vec<(&Array, &TensorSpec)> = others
            .filter_map(|(_, array)| Some((array, sending.spec(array.name())?)))
            .collect();
        let has_more_rows = |array: &Array| array.left() > self.arrays[place].left();
        match &spec.shape[0] {
            Dim::Fixed(_)
                if others
                    .iter()
                    .any(|(_, other)| matches!(other.shape.first(), Some(Dim::Dynamic(_)))) =>
            {
                true
            }
            // Of inputs of one row each, as exporters fix them, the one with as many rows as it declares.
            Dim::Fixed(_) => {
                fits(&header.shape, spec)
                    && others.iter().any(|(array, other)| {
                        !array.header().shape.is_empty() && has_more_rows(array) && !fits(&array.header().shape, other)
                    })
            }
            Dim::Dynamic(name) => {
                let is_same_axis = |other: &TensorSpec| matches!(other.shape.first(), Some(Dim::Dynamic(axis)) if axis == name && !name.is_empty());
                header.shape[0] == 1
                    && others
                        .iter()
                        .any(|(array, other)| has_more_rows(array) && !is_same_axis(other))
            }
        }
    }
}

fn fits(shape: &[usize], spec: &TensorSpec) -> bool {
    let fits = |(size, dim): (&usize, &Dim)| match dim {
        Dim::Fixed(fixed) => size == fixed,
        Dim::Dynamic(_) => true,
    };
    shape.len() == spec.shape.len() && shape.iter().zip(&spec.shape).all(fits)
}

/// The only conversion of an input, if it takes another datatype than it is given.
fn conversion(array: &Array, sending: &Sending) -> Option<Conversion> {
    let of_model = sending.spec(array.name()).map(|spec| spec.datatype);
    let to = sending.datatype.or(of_model)?;
    let is_other = to != array.header().datatype && to != Datatype::Bytes;
    is_other.then_some(Conversion {
        to,
        rounds: sending.datatype.is_some(),
    })
}

fn whole_input(array: Array, sending: &Sending) -> Result<Tensor, InputFault> {
    let spec = sending.spec(array.name()).cloned();
    let conversion = conversion(&array, sending);
    let tensor = array.read_whole()?;
    let tensor = match conversion {
        Some(conversion) => conversion.apply(tensor, 0)?,
        None => tensor,
    };
    let Some(spec) = spec else { return Ok(tensor) };
    // One number is the same with axes of 1 and without.
    let elements: usize = tensor.shape.iter().product();
    let shape = match fixed(&spec.shape) {
        Some(shape) if elements == 1 && shape.iter().product::<usize>() == 1 => shape,
        _ => tensor.shape.clone(),
    };
    if !fits(&shape, &spec) {
        return Err(InputFault::WholeShape {
            input: tensor.name,
            came: shape,
            takes: Dims(&spec.shape).to_string(),
        });
    }
    Ok(Tensor { shape, ..tensor })
}

impl Source for Arrays {
    fn bind(&mut self, sending: &Sending) -> Result<(), InputFault> {
        if let [array] = &mut self.arrays[..]
            && array.name().is_empty()
        {
            array.rename(&sending.input);
        }
        if let [array] = &self.arrays[..]
            && array.header().shape.is_empty()
            && sending.takes.is_empty()
        {
            return Err(NpyFault::Scalar.into());
        }
        self.take_whole(sending)?;
        self.conversions = self.arrays.iter().map(|array| conversion(array, sending)).collect();
        if let [first, others @ ..] = &self.arrays[..]
            && let Some(other) = others.iter().find(|other| other.left() != first.left())
        {
            return Err(InputFault::Lengths {
                one: first.name().to_owned(),
                rows: first.left(),
                other: other.name().to_owned(),
                other_rows: other.left(),
            });
        }
        self.total = Some(self.arrays.first().map_or(1, Array::left));
        Ok(())
    }

    fn read(&mut self, rows: usize) -> Result<Option<Block>, InputFault> {
        if std::mem::take(&mut self.is_one_job) {
            return Ok(Some(Block::of_whole(self.whole.clone())));
        }
        let left = self.arrays.first().map_or(0, Array::left);
        let rows = usize::try_from(left).unwrap_or(usize::MAX).min(rows);
        if rows == 0 {
            return Ok(None);
        }
        let inputs = self.arrays.iter_mut().map(|array| array.read(rows));
        let inputs: Vec<Tensor> = inputs.collect::<Result<_, _>>()?;
        let mut block = match &self.chosen {
            None => Block::new(inputs, Vec::new()),
            Some(chosen) => chosen_of(&inputs[0], chosen),
        };
        let inputs = std::mem::take(&mut block.inputs).into_iter().zip(&self.conversions);
        let converted = inputs.map(|(input, conversion)| match conversion {
            Some(conversion) => conversion.apply(input, self.row),
            None => Ok(input),
        });
        block.inputs = converted.collect::<Result<_, _>>()?;
        self.row += rows as u64;
        Ok(Some(block.with(&self.whole)))
    }

    fn skip(&mut self, rows: u64) -> Result<(), InputFault> {
        self.is_one_job &= rows == 0;
        self.row += rows;
        let passed: io::Result<()> = self.arrays.iter_mut().try_for_each(|array| array.pass(rows));
        Ok(passed?)
    }

    fn total(&self) -> Option<u64> {
        self.total
    }

    fn row_bytes(&self) -> usize {
        self.arrays.iter().map(|array| array.header().row_bytes()).sum()
    }

    fn key_names(&self) -> &[String] {
        self.chosen.as_ref().map_or(&[], |chosen| &chosen.key_names)
    }
}

/// The chosen columns of rows of numbers.
fn chosen_of(whole: &Tensor, chosen: &Chosen) -> Block {
    let (rows, columns) = (whole.shape[0], whole.shape[1]);
    let width = whole.data.len() / (rows * columns).max(1);
    let cell = |row: usize, column: usize| {
        let at = (row * columns + column) * width;
        &whole.data[at..at + width]
    };
    let mut data = Vec::with_capacity(rows * chosen.columns.len() * width);
    let mut keys = Vec::new();
    for row in 0..rows {
        for &column in &chosen.columns {
            data.extend_from_slice(cell(row, column));
        }
        if !chosen.keys.is_empty() {
            let texts = chosen
                .keys
                .iter()
                .flat_map(|&key| Cells::Json.of(whole.datatype, cell(row, key)));
            keys.push(texts.map(Key::Literal).collect());
        }
    }
    let input = Tensor {
        name: whole.name.clone(),
        datatype: whole.datatype,
        shape: vec![rows, chosen.columns.len()],
        data: data.into(),
    };
    Block::new(vec![input], keys)
}
