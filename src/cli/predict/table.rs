//! Rows of numbers out of a `.csv` file, and one sentence for whatever is no number.

use std::io::Read;
use std::num::ParseFloatError;
use std::str::FromStr;

use csv::{Reader, ReaderBuilder, StringRecord, Trim};

use crate::wire::tensor::Datatype;

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
    columns: usize,
    push: PushNumber,
}

type PushNumber = fn(&str, &mut Vec<u8>) -> bool;

impl<R: Read> Table<R> {
    /// # Errors
    /// The file has no rows, its first line may be either, or numbers of `datatype` are not written in tables.
    pub fn open(file: R, datatype: Datatype, first_line: FirstLine) -> Result<Self, TableFault> {
        let push = push_number(datatype).ok_or(TableFault::Datatype(datatype))?;
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
            columns: 0,
            push,
        };
        if !table.look_ahead()? {
            return Err(TableFault::Empty);
        }
        table.columns = table.ahead.len();
        let numbers = table.ahead.iter().all(|cell| cell.parse::<f64>().is_ok());
        match first_line {
            FirstLine::Unsaid if numbers => return Err(TableFault::NamesOrRow),
            FirstLine::Row => {}
            FirstLine::Names | FirstLine::Unsaid => {
                table.names = Some(std::mem::take(&mut table.ahead));
                table.has_ahead = false;
            }
        }
        if !table.look_ahead()? {
            return Err(TableFault::NoRows);
        }
        Ok(table)
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes of the file that have been taken; the buffer reads ahead of this.
    pub fn bytes_taken(&self) -> u64 {
        self.lines.position().byte()
    }

    /// Appends the numbers of the next row to `data`; false at the end of the file.
    ///
    /// # Errors
    /// The line has another number of cells, or one that is no number of the datatype.
    pub fn read_row(&mut self, datatype: Datatype, data: &mut Vec<u8>) -> Result<bool, TableFault> {
        if !self.look_ahead()? {
            return Ok(false);
        }
        self.has_ahead = false;
        let line = line(&self.ahead);
        if self.ahead.len() != self.columns {
            return Err(TableFault::Cells {
                line,
                came: self.ahead.len(),
                wanted: self.columns,
            });
        }
        for (index, cell) in self.ahead.iter().enumerate() {
            if !(self.push)(cell, data) {
                return Err(TableFault::Cell {
                    line,
                    column: self.column(index),
                    cell: shown(cell),
                    datatype,
                });
            }
        }
        Ok(true)
    }

    fn look_ahead(&mut self) -> Result<bool, TableFault> {
        if !self.has_ahead {
            self.has_ahead = self.lines.read_record(&mut self.ahead)?;
        }
        Ok(self.has_ahead)
    }

    fn column(&self, index: usize) -> String {
        match self.names.as_ref().and_then(|names| names.get(index)) {
            Some(name) if !name.is_empty() => format!("{} (`{}`)", index + 1, shown(name)),
            _ => (index + 1).to_string(),
        }
    }
}

fn line(record: &StringRecord) -> u64 {
    record.position().map_or(0, csv::Position::line)
}

/// A cell as a message may hold it.
fn shown(cell: &str) -> String {
    match cell.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &cell[..end]),
        None => cell.to_owned(),
    }
}

fn push_number(datatype: Datatype) -> Option<PushNumber> {
    macro_rules! integer {
        ($type:ty) => {
            |cell, data| push(cell.parse::<$type>().map(<$type>::to_le_bytes), data)
        };
    }
    Some(match datatype {
        Datatype::Uint8 => integer!(u8),
        Datatype::Uint16 => integer!(u16),
        Datatype::Uint32 => integer!(u32),
        Datatype::Uint64 => integer!(u64),
        Datatype::Int8 => integer!(i8),
        Datatype::Int16 => integer!(i16),
        Datatype::Int32 => integer!(i32),
        Datatype::Int64 => integer!(i64),
        Datatype::Fp32 => |cell, data| fits(cell, f32::is_infinite) && push(float(cell, f32::to_le_bytes), data),
        Datatype::Fp64 => |cell, data| fits(cell, f64::is_infinite) && push(float(cell, f64::to_le_bytes), data),
        Datatype::Bool | Datatype::Fp16 | Datatype::Bf16 | Datatype::Bytes => return None,
    })
}

fn push<const N: usize, E>(bytes: Result<[u8; N], E>, data: &mut Vec<u8>) -> bool {
    bytes.map(|bytes| data.extend(bytes)).is_ok()
}

fn float<T: FromStr<Err = ParseFloatError>, const N: usize>(
    cell: &str,
    bytes: fn(T) -> [u8; N],
) -> Result<[u8; N], ParseFloatError> {
    cell.parse().map(bytes)
}

/// Rust reads a number that is too big as infinity; only a cell that says infinity means it.
fn fits<T: FromStr>(cell: &str, is_infinite: fn(T) -> bool) -> bool {
    let says_infinity = || cell.trim_start_matches(['+', '-']).starts_with(['i', 'I']);
    cell.parse().is_ok_and(|number| !is_infinite(number) || says_infinity())
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
    #[error("line {line}, column {column}: `{cell}` is not a number of datatype {datatype}")]
    Cell {
        line: u64,
        column: String,
        cell: String,
        datatype: Datatype,
    },
    #[error(
        "a table holds numbers, so --datatype {0} is not for it; allowed are FP32, FP64, INT8/16/32/64 and UINT8/16/32/64"
    )]
    Datatype(Datatype),
    #[error("it cannot be read as comma-separated text")]
    Text(#[from] csv::Error),
}

const SHOWN_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str, datatype: Datatype, first_line: FirstLine) -> Result<(usize, Vec<u8>), TableFault> {
        let mut table = Table::open(text.as_bytes(), datatype, first_line)?;
        let (mut count, mut data) = (0, Vec::new());
        while table.read_row(datatype, &mut data)? {
            count += 1;
        }
        assert_eq!(table.bytes_taken(), text.len() as u64);
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
        for cell in ["128", "1.0", "1e2", ""] {
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
                "line 2, column 2 (`b`): `` is not a number",
            ),
        ] {
            let fault = fault(text, Datatype::Fp32, first_line);

            assert!(fault.contains(sentence), "{fault}");
        }
        assert!(fault("1\n", Datatype::Bytes, FirstLine::Row).contains("--datatype BYTES"));
    }

    #[test]
    fn a_long_cell_is_not_shown_whole() {
        let text = format!("{}\n", "é".repeat(1_000));

        assert!(fault(&text, Datatype::Fp32, FirstLine::Row).chars().count() < 120);
    }
}
