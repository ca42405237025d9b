//! Rows out of a `.parquet` file, as the `parquet` crate reads them: in batches, of the columns that are asked for.

use std::fs::File;

use arrow_array::{Array, RecordBatch};
use arrow_schema::{ArrowError, SchemaRef};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;

use super::block::{Block, Key};
use super::columns::{CellFault, Choice, Chosen, ColumnFault, column};
use super::faults::InputFault;
use super::inputs::{Inputs, Sending};
use super::parquet_schema::{check, index_columns, is_index};
use super::parquet_values::{Unfit, Values, key};
use super::rows::Source;
use crate::wire::elements::Elements;

/// A file, read batch by batch.
pub struct Records {
    file: File,
    schema: SchemaRef,
    chosen: Chosen,
    names: Vec<String>,
    /// Where the chosen columns lie in a batch, which has them in the file's order.
    places: Vec<usize>,
    inputs: Inputs,
    total: u64,
    row: u64,
    reader: Option<ParquetRecordBatchReader>,
    batch: Option<RecordBatch>,
    /// The next row of the batch.
    at: usize,
}

impl Records {
    /// # Errors
    /// It is no whole file, has no rows or not the columns that are asked for.
    pub fn open(file: File, choice: &Choice) -> Result<Self, ParquetFault> {
        let records = Self::open_any(file, choice)?;
        if records.total == 0 {
            return Err(ParquetFault::NoRows);
        }
        Ok(records)
    }

    /// As [`Self::open`], and a file without rows as well.
    pub fn open_any(file: File, choice: &Choice) -> Result<Self, ParquetFault> {
        let builder = builder(&file)?;
        let schema = builder.schema().clone();
        let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        let mut chosen = choice.by_name(&names)?;
        if choice.columns.is_empty() {
            let index = index_columns(builder.metadata().file_metadata().key_value_metadata());
            chosen.columns.retain(|&place| !is_index(&names[place], &index));
            if chosen.columns.is_empty() {
                return Err(ColumnFault::NoneLeft.into());
            }
        }
        let declared = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new());
        check(&schema, declared.ok().map(|read| read.schema().clone()), &chosen)?;
        let total = builder.metadata().file_metadata().num_rows();
        let mut places: Vec<usize> = chosen.columns.iter().chain(&chosen.keys).copied().collect();
        places.sort_unstable();
        Ok(Self {
            file,
            schema,
            names,
            places,
            chosen,
            inputs: Inputs::default(),
            total: u64::try_from(total).unwrap_or(0),
            row: 0,
            reader: None,
            batch: None,
            at: 0,
        })
    }

    /// Names and types of its columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub fn rows(&self) -> u64 {
        self.total
    }

    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Goes on with the inputs of another file, whose rows its own must look like.
    pub fn go_on_with(&mut self, inputs: Inputs) {
        self.inputs = inputs;
    }

    /// Deals the columns out to the inputs, in the shapes of the first row.
    ///
    /// # Errors
    /// They are no inputs of the model, or the first row cannot be sent.
    pub fn bind_columns(&mut self, sending: &Sending) -> Result<(), ParquetFault> {
        self.inputs = Inputs::of(sending, &self.chosen.columns, Some(&self.names))?;
        self.reader = Some(self.reader(1, 0)?);
        self.next_batch()?;
        let shapes = self.row_shapes(&mut self.inputs.elements(0))?;
        for (part, shapes) in self.inputs.parts.iter_mut().zip(shapes) {
            part.shapes = shapes;
        }
        if self.inputs.has_empty_row() {
            return Err(ParquetFault::Nothing);
        }
        self.reader = None;
        self.batch = None;
        Ok(())
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

    /// Appends the elements of the batch's next row, and returns the shapes of the columns of each input.
    fn row_shapes(&self, elements: &mut [Elements]) -> Result<Vec<Vec<Vec<usize>>>, ParquetFault> {
        let mut shapes = Vec::with_capacity(self.inputs.parts.len());
        for (part, input) in self.inputs.parts.iter().enumerate() {
            let mut of_part = Vec::with_capacity(input.columns.len());
            for &column in &input.columns {
                let Some(array) = self.array(column) else { continue };
                let mut values = Values {
                    inputs: &self.inputs,
                    part,
                    elements,
                };
                let shape = values.push(array, self.at);
                of_part.push(shape.map_err(|unfit| self.unfit(part, column, unfit))?);
            }
            shapes.push(of_part);
        }
        Ok(shapes)
    }

    #[cold]
    fn unfit(&self, part: usize, column: usize, unfit: Unfit) -> ParquetFault {
        let place = self.place(column);
        match unfit {
            Unfit::Value(fault, cell) => self.inputs.fault(part, fault, place, &cell).into(),
            Unfit::NotUtf8 => ParquetFault::NotUtf8 { place },
            Unfit::Ragged => ParquetFault::Ragged(place),
        }
    }

    fn place(&self, place: usize) -> String {
        format!(
            "row {} (from 0), column {}",
            self.row,
            column(place, Some(&self.names[place]))
        )
    }

    fn keys(&self) -> Result<Vec<Key>, ParquetFault> {
        let places = self.chosen.keys.iter();
        let arrays = places.filter_map(|&place| Some((place, self.array(place)?)));
        let not_utf8 = |place| ParquetFault::NotUtf8 {
            place: self.place(place),
        };
        arrays
            .map(|(place, array)| key(array, self.at).ok_or_else(|| not_utf8(place)))
            .collect()
    }

    fn fit(&self, shapes: &[Vec<Vec<usize>>]) -> Result<(), ParquetFault> {
        for (part, came) in self.inputs.parts.iter().zip(shapes) {
            let mut pairs = came.iter().zip(&part.shapes).zip(&part.columns);
            if let Some(((came, before), &column)) = pairs.find(|((came, before), _)| came != before) {
                return Err(ParquetFault::Uneven {
                    place: self.place(column),
                    came: came.clone(),
                    before: before.clone(),
                });
            }
        }
        Ok(())
    }

    /// Rows of a batch that is neither many small pieces nor much memory.
    fn batch_rows(&self) -> usize {
        (BATCH_BYTES / self.inputs.row_bytes().max(1)).clamp(1, BATCH_ROWS_MAX)
    }

    /// As [`Source::read`].
    pub fn read_rows(&mut self, rows: usize) -> Result<Option<Block>, ParquetFault> {
        if self.reader.is_none() {
            self.reader = Some(self.reader(self.batch_rows(), self.row)?);
        }
        let mut elements = self.inputs.elements(0);
        let mut keys = Vec::new();
        let mut count = 0;
        while count < rows {
            if self.batch.as_ref().is_none_or(|batch| self.at == batch.num_rows()) && !self.next_batch()? {
                break;
            }
            let shapes = self.row_shapes(&mut elements)?;
            self.fit(&shapes)?;
            if !self.chosen.keys.is_empty() {
                keys.push(self.keys()?);
            }
            self.at += 1;
            self.row += 1;
            count += 1;
        }
        Ok((count > 0).then(|| Block::new(self.inputs.tensors(count, elements), keys)))
    }

    /// As [`Source::skip`].
    pub fn pass(&mut self, rows: u64) {
        self.row = (self.row + rows).min(self.total);
        self.reader = None;
        self.batch = None;
    }
}

impl Source for Records {
    fn bind(&mut self, sending: &Sending) -> Result<(), InputFault> {
        Ok(self.bind_columns(sending)?)
    }

    fn read(&mut self, rows: usize) -> Result<Option<Block>, InputFault> {
        Ok(self.read_rows(rows)?)
    }

    fn skip(&mut self, rows: u64) -> Result<(), InputFault> {
        self.pass(rows);
        Ok(())
    }

    fn total(&self) -> Option<u64> {
        Some(self.total)
    }

    fn row_bytes(&self) -> usize {
        self.inputs.row_bytes()
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
    #[error(
        "column {column} is of type {came}; allowed are numbers, booleans, texts and lists of them: a date, a time or a duration is a number only in a unit of your choice"
    )]
    Type { column: String, came: String },
    #[error("column {column} is of type {came}; a key may be a number, a boolean, a text, a date or a time")]
    KeyType { column: String, came: String },
    #[error("{place}: its bytes are not UTF-8, so that they are no text")]
    NotUtf8 { place: String },
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
