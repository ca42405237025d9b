//! Rows out of a `.parquet` file, as the `parquet` crate reads them: in batches, of the columns that are asked for.

use std::fs::File;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{ArrowError, DataType, SchemaRef};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;

use super::block::{Block, Key};
use super::columns::{CellFault, Choice, Chosen, ColumnFault, column};
use super::rows::{InputFault, Source};
use super::table::TEXT_BYTES_GUESS;
use crate::wire::elements::{Elements, Scalar};
use crate::wire::tensor::{Datatype, Tensor};

/// A file, read batch by batch.
pub struct Records {
    file: File,
    chosen: Chosen,
    names: Vec<String>,
    /// Where the chosen columns lie in a batch, which has them in the file's order.
    places: Vec<usize>,
    /// The shape of each chosen column in the first row: empty for a single value.
    shapes: Vec<Vec<usize>>,
    total: u64,
    row: u64,
    reader: Option<ParquetRecordBatchReader>,
    batch: Option<RecordBatch>,
    /// The next row of the batch.
    at: usize,
    datatype: Datatype,
    input: String,
}

impl Records {
    /// # Errors
    /// It is no whole file, has no rows or not the columns that are asked for, or its first row cannot be sent.
    pub fn open(file: File, datatype: Datatype, choice: &Choice, input: &str) -> Result<Self, ParquetFault> {
        let builder = builder(&file)?;
        let names: Vec<String> = builder
            .schema()
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .collect();
        let chosen = choice.by_name(&names)?;
        check(builder.schema(), &chosen)?;
        let total = builder.metadata().file_metadata().num_rows();
        let mut read: Vec<usize> = chosen.columns.iter().chain(&chosen.keys).copied().collect();
        read.sort_unstable();
        let mut records = Self {
            file,
            names,
            places: read,
            chosen,
            shapes: Vec::new(),
            total: u64::try_from(total).unwrap_or(0),
            row: 0,
            reader: None,
            batch: None,
            at: 0,
            datatype,
            input: input.to_owned(),
        };
        if records.total == 0 {
            return Err(ParquetFault::NoRows);
        }
        records.reader = Some(records.reader(1, 0)?);
        records.next_batch()?;
        records.shapes = records.row_shapes(&mut Elements::new(datatype, 0))?;
        if records.row_shape().contains(&0) {
            return Err(ParquetFault::Nothing);
        }
        records.reader = None;
        records.batch = None;
        Ok(records)
    }

    /// Reads from row `first` on.
    fn reader(&self, batch_rows: usize, first: u64) -> Result<ParquetRecordBatchReader, ParquetFault> {
        let builder = builder(&self.file)?;
        let columns = ProjectionMask::roots(builder.parquet_schema(), self.places.iter().copied());
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        let builder = builder
            .with_projection(columns)
            .with_batch_size(batch_rows)
            .with_offset(first);
        builder.build().map_err(ParquetFault::Damaged)
    }

    /// False at the end of the file.
    fn next_batch(&mut self) -> Result<bool, ParquetFault> {
        let read = self.reader.as_mut().and_then(Iterator::next);
        self.at = 0;
        self.batch = read
            .transpose()
            .map_err(|cause| ParquetFault::Batch { row: self.row, cause })?;
        Ok(self.batch.is_some())
    }

    /// The array of a column of the file; a batch has all that are chosen.
    fn array(&self, column: usize) -> Option<&dyn Array> {
        let place = self.places.binary_search(&column).ok()?;
        self.batch.as_ref().map(|batch| &**batch.column(place))
    }

    /// Appends the elements of the batch's next row, and returns their shapes.
    fn row_shapes(&self, elements: &mut Elements) -> Result<Vec<Vec<usize>>, ParquetFault> {
        let mut shapes = Vec::with_capacity(self.chosen.columns.len());
        for &column in &self.chosen.columns {
            let Some(array) = self.array(column) else { continue };
            let shape = Values(elements).push(array, self.at);
            shapes.push(shape.map_err(|fault| fault.at(self.place(column), self.datatype))?);
        }
        Ok(shapes)
    }

    fn place(&self, place: usize) -> String {
        format!(
            "row {} (from 0), column {}",
            self.row,
            column(place, Some(&self.names[place]))
        )
    }

    fn keys(&self) -> Vec<Key> {
        let arrays = self.chosen.keys.iter().filter_map(|&key| self.array(key));
        arrays.map(|array| key(array, self.at)).collect()
    }

    fn fit(&self, shapes: &[Vec<usize>]) -> Result<(), ParquetFault> {
        for (index, (came, before)) in shapes.iter().zip(&self.shapes).enumerate() {
            if came != before {
                return Err(ParquetFault::Uneven {
                    place: self.place(self.chosen.columns[index]),
                    came: came.clone(),
                    before: before.clone(),
                });
            }
        }
        Ok(())
    }

    /// Of one row as it is sent: a single list as it is nested, several columns one after the other.
    fn row_shape(&self) -> Vec<usize> {
        match &self.shapes[..] {
            [shape] if !shape.is_empty() => shape.clone(),
            shapes => vec![shapes.iter().map(|shape| shape.iter().product::<usize>()).sum()],
        }
    }

    /// Rows of a batch that is neither many small pieces nor much memory.
    fn batch_rows(&self) -> usize {
        (BATCH_BYTES / self.row_bytes().max(1)).clamp(1, BATCH_ROWS_MAX)
    }

    fn read_rows(&mut self, rows: usize) -> Result<Option<Block>, ParquetFault> {
        if self.reader.is_none() {
            self.reader = Some(self.reader(self.batch_rows(), self.row)?);
        }
        let mut elements = Elements::new(self.datatype, 0);
        let mut keys = Vec::new();
        let mut count = 0;
        while count < rows {
            if self.batch.as_ref().is_none_or(|batch| self.at == batch.num_rows()) && !self.next_batch()? {
                break;
            }
            let shapes = self.row_shapes(&mut elements)?;
            self.fit(&shapes)?;
            if !self.chosen.keys.is_empty() {
                keys.push(self.keys());
            }
            self.at += 1;
            self.row += 1;
            count += 1;
        }
        Ok((count > 0).then(|| Block {
            inputs: vec![Tensor {
                name: self.input.clone(),
                datatype: self.datatype,
                shape: [vec![count], self.row_shape()].concat(),
                data: elements.finish(),
            }],
            keys,
        }))
    }
}

impl Source for Records {
    fn read(&mut self, rows: usize) -> Result<Option<Block>, InputFault> {
        Ok(self.read_rows(rows)?)
    }

    fn skip(&mut self, rows: u64) -> Result<(), InputFault> {
        self.row = (self.row + rows).min(self.total);
        self.reader = None;
        self.batch = None;
        Ok(())
    }

    fn total(&self) -> Option<u64> {
        Some(self.total)
    }

    fn row_bytes(&self) -> usize {
        let elements: usize = self.row_shape().iter().product();
        elements * self.datatype.element_bytes().unwrap_or(TEXT_BYTES_GUESS)
    }

    fn key_names(&self) -> &[String] {
        &self.chosen.key_names
    }
}

fn builder(file: &File) -> Result<ParquetRecordBatchReaderBuilder<File>, ParquetFault> {
    // The types as Parquet itself knows them: what Arrow wrote beside them tells dictionaries and sizes of lists, and all
    // values would have to be looked at in twice as many ways.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let file = file.try_clone()?;
    if file.metadata()?.len() == 0 {
        return Err(ParquetFault::Empty);
    }
    ParquetRecordBatchReaderBuilder::try_new_with_options(file, options).map_err(ParquetFault::NotParquet)
}

/// Refuses what no row could be made of, before anything is read.
fn check(schema: &SchemaRef, chosen: &Chosen) -> Result<(), ParquetFault> {
    for &place in &chosen.columns {
        let field = schema.field(place);
        let mut inner = field.data_type();
        while let DataType::List(item) = inner {
            inner = item.data_type();
        }
        if scalar_of(inner).is_none() {
            return Err(ParquetFault::Type {
                column: column(place, Some(field.name())),
                came: field.data_type().to_string(),
            });
        }
    }
    for &place in &chosen.keys {
        let field = schema.field(place);
        if scalar_of(field.data_type()).is_none() {
            return Err(ParquetFault::KeyType {
                column: column(place, Some(field.name())),
                came: field.data_type().to_string(),
            });
        }
    }
    Ok(())
}

type ReadScalar = for<'a> fn(&'a dyn Array, usize) -> Scalar<'a>;

/// How a value of this type is read.
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

/// Takes in the values of one cell.
struct Values<'e>(&'e mut Elements);

impl Values<'_> {
    /// Appends what row `row` of `array` holds, and returns its shape: none for a single value.
    fn push(&mut self, array: &dyn Array, row: usize) -> Result<Vec<usize>, ValueFault> {
        if array.is_null(row) {
            return Err(ValueFault::Missing);
        }
        if let Some(list) = array.as_list_opt::<i32>() {
            let values = list.value(row);
            let mut inner = None;
            for index in 0..values.len() {
                let shape = self.push(&values, index)?;
                match &inner {
                    None => inner = Some(shape),
                    Some(first) if *first == shape => {}
                    Some(_) => return Err(ValueFault::Ragged),
                }
            }
            return Ok([vec![values.len()], inner.unwrap_or_default()].concat());
        }
        let read = scalar_of(array.data_type()).ok_or(ValueFault::Ragged)?;
        let scalar = read(array, row);
        let pushed = self.0.push(&scalar);
        pushed
            .map(|()| Vec::new())
            .map_err(|_| ValueFault::Value(text(&scalar)))
    }
}

fn key(array: &dyn Array, row: usize) -> Key {
    if array.is_null(row) {
        return Key::Literal("null".to_owned());
    }
    match scalar_of(array.data_type()).map(|read| read(array, row)) {
        Some(Scalar::Text(text)) => Key::Text(text.into_owned()),
        Some(Scalar::Binary(bytes)) => Key::Text(String::from_utf8_lossy(bytes).into_owned()),
        Some(Scalar::Float(value)) if !value.is_finite() => Key::Literal("null".to_owned()),
        Some(scalar) => Key::Literal(text(&scalar)),
        // `check` lets no other type pass.
        None => Key::Literal("null".to_owned()),
    }
}

/// What is wrong with a value, whose place the caller knows.
enum ValueFault {
    Missing,
    Value(String),
    Ragged,
}

impl ValueFault {
    fn at(self, place: String, datatype: Datatype) -> ParquetFault {
        match self {
            Self::Missing => CellFault::Missing { place }.into(),
            Self::Value(cell) => CellFault::value(place, &cell, datatype).into(),
            Self::Ragged => ParquetFault::Ragged(place),
        }
    }
}

fn text(scalar: &Scalar<'_>) -> String {
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

/// Why a Parquet file cannot be sent as rows.
#[derive(Debug, thiserror::Error)]
pub enum ParquetFault {
    #[error("it is empty")]
    Empty,
    #[error("it is no .parquet file, or not the whole of one: its end, which lists what it holds, cannot be read")]
    NotParquet(#[source] ParquetError),
    #[error("it has no rows")]
    NoRows,
    #[error("its first row holds no values")]
    Nothing,
    #[error("column {column} is of type {came}; allowed are numbers, booleans, texts and lists of them")]
    Type { column: String, came: String },
    #[error("column {column} is of type {came}; a key may be a number, a boolean or a text")]
    KeyType { column: String, came: String },
    #[error("it is damaged")]
    Damaged(#[source] ParquetError),
    #[error("it is damaged, or compressed in a way that is not known, from row {row} (from 0) on")]
    Batch {
        row: u64,
        #[source]
        cause: ArrowError,
    },
    #[error("{place}: its shape is {came:?}, that of the first row {before:?}")]
    Uneven {
        place: String,
        came: Vec<usize>,
        before: Vec<usize>,
    },
    #[error("{0}: it holds lists of different length")]
    Ragged(String),
    #[error(transparent)]
    Cell(#[from] CellFault),
    #[error(transparent)]
    Columns(#[from] ColumnFault),
    #[error("cannot read it")]
    Io(#[from] std::io::Error),
}

/// What is decoded at a time.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_ROWS_MAX: usize = 1_024;
