//! Rows of cells out of a `.csv` file, and one sentence for whatever cannot be sent.

use std::io::Read;

use csv::{Reader, ReaderBuilder, StringRecord, Trim};

use super::block::{Block, Key};
use super::columns::{CellFault, Choice, Chosen, ColumnFault, column};
use super::rows::{InputFault, Source};
use crate::wire::elements::{Elements, Scalar};
use crate::wire::tensor::{Datatype, Tensor};

/// Whether the first line names the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstLine {
    Names,
    Row,
    /// Names, unless all of it is numbers: then nobody can tell.
    Unsaid,
}

/// A file, read line by line.
pub struct Table<R> {
    lines: Reader<R>,
    /// A line that was read and is not yet taken.
    ahead: StringRecord,
    has_ahead: bool,
    names: Option<StringRecord>,
    cells: usize,
    chosen: Chosen,
    datatype: Datatype,
    input: String,
}

impl<R: Read> Table<R> {
    /// # Errors
    /// The file has no rows or not the columns that are asked for, or its first line may be either.
    pub fn open(
        file: R,
        datatype: Datatype,
        first_line: FirstLine,
        choice: &Choice,
        input: &str,
    ) -> Result<Self, TableFault> {
        let lines = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .trim(Trim::All)
            .from_reader(file);
        let mut table = Self {
            lines,
            ahead: StringRecord::new(),
            has_ahead: false,
            names: None,
            cells: 0,
            chosen: Chosen::default(),
            datatype,
            input: input.to_owned(),
        };
        if !table.look_ahead()? {
            return Err(TableFault::Empty);
        }
        table.cells = table.ahead.len();
        let numbers = table.ahead.iter().all(|cell| cell.parse::<f64>().is_ok());
        match first_line {
            FirstLine::Unsaid if numbers => return Err(TableFault::NamesOrRow),
            FirstLine::Row => {}
            FirstLine::Names | FirstLine::Unsaid => {
                table.names = Some(std::mem::take(&mut table.ahead));
                table.has_ahead = false;
            }
        }
        table.chosen = match &table.names {
            Some(names) => choice.by_name(&names.iter().map(str::to_owned).collect::<Vec<_>>())?,
            None => choice.by_position(table.cells)?,
        };
        if !table.look_ahead()? {
            return Err(TableFault::NoRows);
        }
        Ok(table)
    }

    /// Appends the cells of the next row; false at the end of the file.
    fn read_row(&mut self, elements: &mut Elements, keys: &mut Vec<Vec<Key>>) -> Result<bool, TableFault> {
        if !self.look_ahead()? {
            return Ok(false);
        }
        self.has_ahead = false;
        let line = self.ahead.position().map_or(0, csv::Position::line);
        if self.ahead.len() != self.cells {
            return Err(TableFault::Cells {
                line,
                came: self.ahead.len(),
                wanted: self.cells,
            });
        }
        for &place in &self.chosen.columns {
            // As many cells as the first line has, which the places are of.
            let cell = self.ahead.get(place).unwrap_or_default();
            if push(cell, self.datatype, elements) {
                continue;
            }
            let name = self.names.as_ref().and_then(|names| names.get(place));
            let place = format!("line {line}, column {}", column(place, name));
            return Err(match cell {
                "" => CellFault::Missing { place }.into(),
                cell => CellFault::value(place, cell, self.datatype).into(),
            });
        }
        if !self.chosen.keys.is_empty() {
            let cells = self
                .chosen
                .keys
                .iter()
                .map(|&place| self.ahead.get(place).unwrap_or_default());
            keys.push(cells.map(|cell| Key::Text(cell.to_owned())).collect());
        }
        Ok(true)
    }

    fn look_ahead(&mut self) -> Result<bool, TableFault> {
        if !self.has_ahead {
            self.has_ahead = self.lines.read_record(&mut self.ahead)?;
        }
        Ok(self.has_ahead)
    }
}

impl<R: Read + Send> Source for Table<R> {
    fn read(&mut self, rows: usize) -> Result<Option<Block>, InputFault> {
        let columns = self.chosen.columns.len();
        let mut elements = Elements::new(self.datatype, rows.min(RESERVED_MAX) * columns);
        let mut keys = Vec::new();
        let mut count = 0;
        while count < rows && self.read_row(&mut elements, &mut keys)? {
            count += 1;
        }
        Ok((count > 0).then(|| Block {
            inputs: vec![Tensor {
                name: self.input.clone(),
                datatype: self.datatype,
                shape: vec![count, columns],
                data: elements.finish(),
            }],
            keys,
        }))
    }

    fn skip(&mut self, rows: u64) -> Result<(), InputFault> {
        for _ in 0..rows {
            if !self.look_ahead()? {
                break;
            }
            self.has_ahead = false;
        }
        Ok(())
    }

    fn taken_bytes(&self) -> u64 {
        self.lines.position().byte()
    }

    fn row_bytes(&self) -> usize {
        self.chosen.columns.len() * self.datatype.element_bytes().unwrap_or(TEXT_BYTES_GUESS)
    }

    fn key_names(&self) -> &[String] {
        &self.chosen.key_names
    }
}

/// Appends a cell; false if it is nothing of that datatype.
fn push(cell: &str, datatype: Datatype, elements: &mut Elements) -> bool {
    // `nan` and `inf` are numbers of a table, and no others begin with a letter.
    let is_word = cell
        .trim_start_matches(['+', '-'])
        .starts_with(|first: char| first.is_ascii_alphabetic());
    let scalar = match (datatype, cell) {
        (Datatype::Bytes, text) => Scalar::Text(text.into()),
        (_, "") => return false,
        (Datatype::Bool, text) => match &*text.to_ascii_lowercase() {
            "true" => Scalar::Bool(true),
            "false" => Scalar::Bool(false),
            _ => return false,
        },
        (_, word) if is_word => match word.parse() {
            Ok(number) => Scalar::Float(number),
            Err(_) => return false,
        },
        (_, number) => Scalar::Decimal(number),
    };
    elements.push(&scalar).is_ok()
}

/// Why a table cannot be sent as rows.
#[derive(Debug, thiserror::Error)]
pub enum TableFault {
    #[error("it is empty")]
    Empty,
    #[error("it has a line of column names and no rows")]
    NoRows,
    #[error("its first line is all numbers: say --header if these name the columns, --no-header if they are a row")]
    NamesOrRow,
    #[error("line {line} has {came} cells, the first line has {wanted}")]
    Cells { line: u64, came: usize, wanted: usize },
    #[error(transparent)]
    Cell(#[from] CellFault),
    #[error(transparent)]
    Columns(#[from] ColumnFault),
    #[error("it cannot be read as comma-separated text")]
    Text(#[from] csv::Error),
}

/// Rows that memory is taken for before they have come.
const RESERVED_MAX: usize = 256;
/// The length of a text is not known before it is read; words and short sentences, as a rule.
pub const TEXT_BYTES_GUESS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str, datatype: Datatype, first_line: FirstLine) -> Result<(usize, Vec<u8>), InputFault> {
        let mut table = Table::open(text.as_bytes(), datatype, first_line, &Choice::default(), "")?;
        let (mut count, mut data) = (0, Vec::new());
        while let Some(block) = table.read(1)? {
            count += block.rows();
            data.extend_from_slice(&block.inputs[0].data);
        }
        assert_eq!(table.taken_bytes(), text.len() as u64);
        Ok((count, data))
    }

    fn fault(text: &str, datatype: Datatype, first_line: FirstLine) -> String {
        rows(text, datatype, first_line).unwrap_err().to_string()
    }

    #[test]
    fn rows_are_read_with_names_and_without() {
        let expected: Vec<u8> = [1.0_f32, -2.5, 3e2, f32::INFINITY]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        for (text, first_line) in [
            ("a,b\n1, -2.5\n3e2,inf\n", FirstLine::Unsaid),
            ("\u{feff}1,2\n1,-2.5\n3e2,inf", FirstLine::Names),
            ("1,-2.5\r\n\"3e2\",inf\r\n", FirstLine::Row),
        ] {
            assert_eq!(
                rows(text, Datatype::Fp32, first_line).unwrap(),
                (2, expected.clone()),
                "{text}"
            );
        }
    }

    #[test]
    fn integers_are_read_and_none_is_rounded_or_wrapped() {
        let (_, data) = rows("-128\n127\n", Datatype::Int8, FirstLine::Row).unwrap();

        assert_eq!(data, [0x80, 0x7f]);
        for cell in ["128", "1.5", "1e3", "nan", "x"] {
            let text = format!("1,2\n3,{cell}\n");
            let fault = fault(&text, Datatype::Int8, FirstLine::Row);
            assert!(fault.starts_with(&format!("line 2, column 2: `{cell}`")), "{fault}");
        }
    }

    #[test]
    fn a_number_that_its_datatype_cannot_hold_is_no_number() {
        assert!(fault("1e39\n", Datatype::Fp32, FirstLine::Row).contains("`1e39` is not a number of datatype FP32"));
        assert!(rows("1e39\n", Datatype::Fp64, FirstLine::Row).is_ok());
    }

    #[test]
    fn what_is_wrong_is_named_by_line_and_column() {
        for (text, first_line, sentence) in [
            ("", FirstLine::Unsaid, "it is empty"),
            ("a,b\n", FirstLine::Unsaid, "no rows"),
            ("1,2\n3,4\n", FirstLine::Unsaid, "say --header"),
            (
                "a,b\n1,2\n3\n",
                FirstLine::Unsaid,
                "line 3 has 1 cells, the first line has 2",
            ),
            (
                "a,b\n1,x\n",
                FirstLine::Unsaid,
                "line 2, column 2 (`b`): `x` is not a number",
            ),
            (
                "a,b\n1,\n",
                FirstLine::Names,
                "line 2, column 2 (`b`): the value is missing",
            ),
        ] {
            let fault = fault(text, Datatype::Fp32, first_line);

            assert!(fault.contains(sentence), "{fault}");
        }
    }

    #[test]
    fn a_long_cell_is_not_shown_whole() {
        let text = format!("{}\n", "é".repeat(1_000));

        assert!(fault(&text, Datatype::Fp32, FirstLine::Row).chars().count() < 120);
    }

    #[test]
    fn the_columns_asked_for_are_read_in_that_order_and_keys_beside_them() {
        let choice = Choice {
            columns: ["c", "a"].map(str::to_owned).into(),
            keys: vec!["id".to_owned()],
        };
        let text = "id,a,b,c\n007,1,x,3\n008,4,,6\n";
        let mut table = Table::open(text.as_bytes(), Datatype::Int8, FirstLine::Unsaid, &choice, "").unwrap();

        table.skip(1).unwrap();
        let block = table.read(5).unwrap().unwrap();

        assert_eq!(
            (&block.inputs[0].shape[..], &block.inputs[0].data[..]),
            (&[1, 2][..], &[6, 4][..])
        );
        assert_eq!(block.keys, [[Key::Text("008".to_owned())]]);
        assert_eq!(table.key_names(), ["id"]);
    }

    #[test]
    fn truths_and_texts_are_read_where_the_model_takes_them() {
        let (_, truths) = rows("a,b\ntrue,False\n", Datatype::Bool, FirstLine::Unsaid).unwrap();
        let (_, texts) = rows("a\nred\n\"\"\n", Datatype::Bytes, FirstLine::Unsaid).unwrap();

        assert_eq!(truths, [1, 0]);
        assert_eq!(texts, b"\x03\0\0\0red\0\0\0\0");
        assert!(fault("1\n", Datatype::Bool, FirstLine::Row).contains("`1` is not true or false"));
    }
}
