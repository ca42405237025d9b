//! Rows of cells out of a `.csv` file, and one sentence for whatever cannot be sent.

use std::io::Read;

use super::block::{Block, Key};
use super::columns::{CellFault, Choice, Chosen, ColumnFault, column};
use super::csv_record::{Record, RecordFault};
use super::csv_records::Records;
use super::delimiter::Delimiter;
use super::faults::InputFault;
use super::inputs::{Inputs, Sending, ValueFault};
use super::rows::Source;
use crate::wire::elements::{Elements, Scalar};
use crate::wire::tensor::Datatype;

/// Whether the first line names the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstLine {
    Names,
    Row,
    /// Names, unless a cell of it is a number or empty: then nobody can tell.
    Unsaid,
}

/// A file, read line by line.
pub struct Table<R> {
    records: Records<R>,
    delimiter: Delimiter,
    /// A line that was read and is not yet taken.
    ahead: Record,
    has_ahead: bool,
    names: Option<Vec<String>>,
    cells: usize,
    /// Another delimiter that the first line looks separated by.
    rather: Option<Delimiter>,
    chosen: Chosen,
    inputs: Inputs,
}

impl<R: Read> Table<R> {
    /// # Errors
    /// The file has no rows or not the columns that are asked for, or its first line may be either.
    pub fn open(file: R, delimiter: Delimiter, first_line: FirstLine, choice: &Choice) -> Result<Self, TableFault> {
        let mut table = Self {
            records: Records::new(file, delimiter),
            delimiter,
            ahead: Record::default(),
            has_ahead: false,
            names: None,
            cells: 0,
            rather: None,
            chosen: Chosen::default(),
            inputs: Inputs::default(),
        };
        if !table.look_ahead()? {
            return Err(TableFault::Empty);
        }
        table.cells = table.ahead.cells();
        if table.cells == 1 {
            table.records.keep_empty_lines();
        }
        let cells = table.first_cells()?;
        table.rather = cells
            .iter()
            .find_map(|cell| delimiter.rather(cell))
            .filter(|_| table.cells == 1);
        if first_line != FirstLine::Row {
            table.has_ahead = false;
            if first_line == FirstLine::Unsaid {
                may_be_names(&cells)?;
            }
        }
        table.chosen = match first_line {
            FirstLine::Row => choice.by_position(table.cells)?,
            FirstLine::Names | FirstLine::Unsaid => {
                let chosen = choice.by_name(&cells).map_err(|fault| table.unseparated(fault))?;
                table.names = Some(cells);
                chosen
            }
        };
        if !table.look_ahead()? {
            return Err(TableFault::NoRows);
        }
        Ok(table)
    }

    /// The cells of the first line.
    fn first_cells(&self) -> Result<Vec<String>, TableFault> {
        let cells = (0..self.cells).map(|place| self.ahead.cell(place).map(str::to_owned));
        Ok(cells.collect::<Result<Vec<_>, _>>()?)
    }

    fn unseparated(&self, fault: ColumnFault) -> TableFault {
        match self.rather {
            Some(rather) => TableFault::Unseparated { rather: rather.word() },
            None => fault.into(),
        }
    }

    /// Appends the cells of the next row; false at the end of the file.
    fn read_row(&mut self, elements: &mut [Elements], keys: &mut Vec<Vec<Key>>) -> Result<bool, TableFault> {
        if !self.look_ahead()? {
            return Ok(false);
        }
        self.has_ahead = false;
        self.count_cells()?;
        for (part, input) in self.inputs.parts.iter().enumerate() {
            for &place in &input.columns {
                let cell = self.ahead.cell(place)?;
                let pushed = push(cell, part, &self.inputs, elements);
                pushed.map_err(|fault| self.cell_fault(part, place, cell, fault))?;
            }
        }
        if !self.chosen.keys.is_empty() {
            let cells = self.chosen.keys.iter().map(|&place| self.ahead.cell(place));
            let texts = cells.map(|cell| cell.map(|cell| Key::Text(cell.to_owned())));
            keys.push(texts.collect::<Result<_, _>>()?);
        }
        Ok(true)
    }

    fn count_cells(&self) -> Result<(), TableFault> {
        if self.ahead.cells() == self.cells {
            return Ok(());
        }
        Err(TableFault::Cells {
            line: self.ahead.line(),
            came: self.ahead.cells(),
            wanted: self.cells,
            rather: self.rather,
        })
    }

    #[cold]
    fn cell_fault(&self, part: usize, place: usize, cell: &str, fault: ValueFault) -> TableFault {
        let name = self.names.as_ref().and_then(|names| names.get(place));
        let at = format!(
            "line {}, column {}",
            self.ahead.line(),
            column(place, name.map(String::as_str))
        );
        match (fault, self.delimiter.rather(cell)) {
            (ValueFault::Value, Some(rather)) if self.cells == 1 => TableFault::Unseparated { rather: rather.word() },
            _ => self.inputs.fault(part, fault, at, cell).into(),
        }
    }

    fn look_ahead(&mut self) -> Result<bool, TableFault> {
        if !self.has_ahead {
            self.has_ahead = self.records.read(&mut self.ahead)?;
        }
        Ok(self.has_ahead)
    }
}

impl<R: Read + Send> Source for Table<R> {
    fn bind(&mut self, sending: &Sending) -> Result<(), InputFault> {
        let inputs = Inputs::of(sending, &self.chosen.columns, self.names.as_deref());
        self.inputs = inputs.map_err(|fault| self.unseparated(fault))?;
        Ok(())
    }

    fn read(&mut self, rows: usize) -> Result<Option<Block>, InputFault> {
        let mut elements = self.inputs.elements(rows.min(RESERVED_MAX));
        let mut keys = Vec::new();
        let mut count = 0;
        while count < rows && self.read_row(&mut elements, &mut keys)? {
            count += 1;
        }
        Ok((count > 0).then(|| Block::new(self.inputs.tensors(count, elements), keys)))
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
        self.records.taken_bytes()
    }

    fn row_bytes(&self) -> usize {
        self.inputs.row_bytes()
    }

    fn key_names(&self) -> &[String] {
        &self.chosen.key_names
    }
}

/// Refuses a first line that may as well be a row.
fn may_be_names(cells: &[String]) -> Result<(), TableFault> {
    let is_number = |cell: &String| cell.trim().parse::<f64>().is_ok();
    if cells.iter().all(is_number) {
        return Err(TableFault::NamesOrRow);
    }
    let is_value = |cell: &String| cell.trim().is_empty() || is_number(cell);
    match cells.iter().position(is_value) {
        None => Ok(()),
        Some(place) => Err(TableFault::ValueInNames {
            column: place + 1,
            what: if is_number(&cells[place]) { "a number" } else { "empty" },
        }),
    }
}

/// Appends a cell to input `part`: as it is where that takes texts, and without the spaces around it elsewhere.
fn push(cell: &str, part: usize, inputs: &Inputs, elements: &mut [Elements]) -> Result<(), ValueFault> {
    if inputs.parts[part].datatype() == Datatype::Bytes {
        return inputs.push(part, &Scalar::Text(cell.into()), elements);
    }
    let value = cell.trim();
    // No number begins with a letter, but for the words below.
    let is_word = value
        .trim_start_matches(['+', '-'])
        .starts_with(|first: char| !first.is_ascii_digit() && first != '.');
    let scalar = match value {
        missing if MISSING.contains(&missing) => Scalar::Null,
        word if word.eq_ignore_ascii_case("true") => Scalar::Bool(true),
        word if word.eq_ignore_ascii_case("false") => Scalar::Bool(false),
        word if is_word => Scalar::Float(word.parse().map_err(|_| ValueFault::Value)?),
        number => Scalar::Decimal(number),
    };
    inputs.push(part, &scalar, elements)
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
    #[error(
        "cell {column} of its first line is {what}, so that this may be a row: say --header if it names the columns, --no-header \
         if it is a row"
    )]
    ValueInNames { column: usize, what: &'static str },
    #[error("line {line} has {came} cells, the first line has {wanted}{}", separated(*.rather))]
    Cells {
        line: u64,
        came: usize,
        wanted: usize,
        rather: Option<Delimiter>,
    },
    #[error("it looks separated by `{rather}`: --delimiter '{rather}' says so")]
    Unseparated { rather: String },
    #[error(transparent)]
    Cell(#[from] CellFault),
    #[error(transparent)]
    Columns(#[from] ColumnFault),
    #[error(transparent)]
    Record(#[from] RecordFault),
}

fn separated(rather: Option<Delimiter>) -> String {
    rather.map_or_else(String::new, |rather| {
        let rather = rather.word();
        format!("; that looks separated by `{rather}`, which --delimiter '{rather}' says")
    })
}

/// Cells without a value, as spreadsheets, pandas, R and databases write them. A text is never one of them.
const MISSING: [&str; 9] = ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "None"];
/// Rows that memory is taken for before they have come.
const RESERVED_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str, datatype: Datatype, first_line: FirstLine) -> Result<(usize, Vec<u8>), InputFault> {
        let mut table = Table::open(text.as_bytes(), Delimiter::default(), first_line, &Choice::default())?;
        table.bind(&of(datatype))?;
        let (mut count, mut data) = (0, Vec::new());
        while let Some(block) = table.read(1)? {
            count += block.rows();
            data.extend_from_slice(&block.inputs[0].data);
        }
        assert_eq!(table.taken_bytes(), text.len() as u64);
        Ok((count, data))
    }

    fn of(datatype: Datatype) -> Sending {
        Sending {
            datatype: Some(datatype),
            ..Sending::default()
        }
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
        let mut table = Table::open(text.as_bytes(), Delimiter::default(), FirstLine::Unsaid, &choice).unwrap();
        table.bind(&of(Datatype::Int8)).unwrap();

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
        assert!(fault("2\n", Datatype::Bool, FirstLine::Row).contains("`2` is not true or false"));
    }

    #[test]
    fn keys_come_as_they_were_written() {
        let choice = Choice {
            columns: vec!["a".to_owned()],
            keys: vec!["id".to_owned()],
        };
        let cells = ["007", " x ", "a\"b", "1,5", "two\r\nlines", "\t", "", "é", "true", "NA"];
        let mut writer = csv::Writer::from_writer(b"id, a\n".to_vec());
        for cell in cells {
            writer.write_record([cell, " 1 "]).unwrap();
        }
        let text = writer.into_inner().unwrap();

        let mut table = Table::open(&text[..], Delimiter::default(), FirstLine::Unsaid, &choice).unwrap();
        table.bind(&of(Datatype::Int8)).unwrap();
        let block = table.read(99).unwrap().unwrap();

        let keys: Vec<&str> = block.keys.iter().map(|keys| keys[0].plain()).collect();
        assert_eq!(keys, cells);
        assert_eq!(block.inputs[0].data[..], [1; 10]);
    }

    #[test]
    fn a_first_line_that_may_be_a_row_is_asked_about() {
        for (text, place) in [
            ("a,1\nb,2\n", "cell 2 of its first line is a number"),
            (",a\n0,1\n", "cell 1 of its first line is empty"),
            ("a, \n0,1\n", "cell 2 of its first line is empty"),
            ("a,nan\n0,1\n", "cell 2 of its first line is a number"),
            ("-inf,a\n0,1\n", "cell 1 of its first line is a number"),
        ] {
            let fault = fault(text, Datatype::Fp32, FirstLine::Unsaid);

            assert!(fault.contains(place) && fault.contains("--no-header"), "{fault}");
            assert!(rows(text, Datatype::Bytes, FirstLine::Row).is_ok());
        }
    }

    #[test]
    fn a_wrong_delimiter_and_a_decimal_comma_are_named() {
        for (text, sentence) in [
            ("a;b\n1;2\n", "separated by `;`: --delimiter ';'"),
            (
                "a;b\n1,5;2,5\n",
                "line 2 has 3 cells, the first line has 1; that looks separated by `;`",
            ),
            ("a\tb\n1\t2\n", "--delimiter 'tab'"),
            (
                "a,b\n\"1,5\",2\n",
                "`1,5` is not a number of datatype FP32: it has a decimal comma",
            ),
        ] {
            let fault = fault(text, Datatype::Fp32, FirstLine::Unsaid);
            assert!(fault.contains(sentence), "{fault}");
        }
        let semicolon = ";".parse().unwrap();
        let mut table = Table::open(&b"a;b\n1;2.5\n"[..], semicolon, FirstLine::Unsaid, &Choice::default()).unwrap();
        table.bind(&of(Datatype::Fp32)).unwrap();
        assert_eq!(table.read(1).unwrap().unwrap().inputs[0].shape, [1, 2]);
    }

    #[test]
    fn missing_cells_are_nan_if_that_is_wanted() {
        let text = "a,b\n1,\nNA, \nnull,None\n";
        let mut sending = of(Datatype::Fp32);
        sending.missing = super::super::columns::Missing::Nan;

        let mut table = Table::open(
            text.as_bytes(),
            Delimiter::default(),
            FirstLine::Unsaid,
            &Choice::default(),
        )
        .unwrap();
        table.bind(&sending).unwrap();
        let block = table.read(9).unwrap().unwrap();
        sending.datatype = Some(Datatype::Int64);
        let mut table = Table::open(
            text.as_bytes(),
            Delimiter::default(),
            FirstLine::Unsaid,
            &Choice::default(),
        )
        .unwrap();
        table.bind(&sending).unwrap();
        let of_integers = table.read(9).unwrap_err().to_string();

        let (values, _) = block.inputs[0].data.as_chunks();
        let are_missing: Vec<bool> = values.iter().map(|value| f32::from_le_bytes(*value).is_nan()).collect();
        assert_eq!(are_missing, [false, true, true, true, true, true]);
        assert!(
            of_integers.contains("line 2, column 2 (`b`): the value is missing, and datatype INT64"),
            "{of_integers}"
        );
        assert!(fault(text, Datatype::Fp32, FirstLine::Unsaid).contains("--missing nan"));
    }
}
