//! Rows out of JSON lines: each an array of numbers, nested or not, or an object of columns.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::block::{Block, Key};
use super::columns::{CellFault, Choice, Chosen, ColumnFault, column, shown};
use super::rows::{InputFault, Source};
use super::table::TEXT_BYTES_GUESS;
use crate::wire::elements::{Elements, Scalar};
use crate::wire::tensor::{Datatype, Tensor};

/// A file, read line by line.
pub struct Lines<R> {
    file: BufReader<R>,
    line: Vec<u8>,
    number: u64,
    has_ahead: bool,
    taken: u64,
    layout: Layout,
    datatype: Datatype,
    input: String,
}

/// What a row looks like: as the first one does.
#[derive(Default)]
struct Layout {
    /// `None` for arrays.
    names: Option<Vec<String>>,
    /// Whether columns that nobody asked for may come and go.
    may_have_others: bool,
    /// `None` for arrays that are sent whole.
    chosen: Option<Chosen>,
    /// The shape of each chosen column, or of the whole array.
    shapes: Vec<Vec<usize>>,
}

impl<R: Read> Lines<R> {
    /// # Errors
    /// The file has no rows, its first one cannot be sent, or has not the columns that are asked for.
    pub fn open(file: R, datatype: Datatype, choice: &Choice, input: &str) -> Result<Self, LineFault> {
        let mut lines = Self {
            file: BufReader::with_capacity(READ_BYTES, file),
            line: Vec::new(),
            number: 0,
            has_ahead: false,
            taken: 0,
            layout: Layout::default(),
            datatype,
            input: input.to_owned(),
        };
        if !lines.look_ahead()? {
            return Err(LineFault::Empty);
        }
        lines.layout = Layout::of(&lines.line, lines.number, choice)?;
        let first = lines
            .layout
            .read(&lines.line, lines.number, &mut Elements::new(datatype, 0), datatype)?;
        lines.layout.shapes = first.shapes;
        if lines.layout.row_shape().contains(&0) {
            return Err(LineFault::Nothing(lines.number));
        }
        Ok(lines)
    }

    /// False at the end of the file.
    fn look_ahead(&mut self) -> Result<bool, LineFault> {
        while !self.has_ahead {
            self.line.clear();
            let read = (&mut self.file)
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', &mut self.line)?;
            if read == 0 {
                return Ok(false);
            }
            self.number += 1;
            self.taken += read as u64;
            if read as u64 == LINE_BYTES_MAX {
                return Err(LineFault::TooLong(self.number));
            }
            if self.number == 1 && self.line.starts_with(BYTE_ORDER_MARK) {
                self.line.drain(..BYTE_ORDER_MARK.len());
            }
            self.has_ahead = !self.line.trim_ascii().is_empty();
        }
        Ok(true)
    }

    fn read_row(&mut self, elements: &mut Elements, keys: &mut Vec<Vec<Key>>) -> Result<bool, LineFault> {
        if !self.look_ahead()? {
            return Ok(false);
        }
        self.has_ahead = false;
        let row = self.layout.read(&self.line, self.number, elements, self.datatype)?;
        self.layout.fit(&row.shapes, self.number)?;
        if !self.layout.keys().is_empty() {
            keys.push(row.keys);
        }
        Ok(true)
    }
}

impl<R: Read + Send> Source for Lines<R> {
    fn read(&mut self, rows: usize) -> Result<Option<Block>, InputFault> {
        let mut elements = Elements::new(self.datatype, 0);
        let mut keys = Vec::new();
        let mut count = 0;
        while count < rows && self.read_row(&mut elements, &mut keys)? {
            count += 1;
        }
        Ok((count > 0).then(|| Block {
            inputs: vec![Tensor {
                name: self.input.clone(),
                datatype: self.datatype,
                shape: [vec![count], self.layout.row_shape()].concat(),
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
        self.taken
    }

    fn row_bytes(&self) -> usize {
        let elements: usize = self.layout.row_shape().iter().product();
        elements * self.datatype.element_bytes().unwrap_or(TEXT_BYTES_GUESS)
    }

    fn key_names(&self) -> &[String] {
        self.layout.chosen.as_ref().map_or(&[], |chosen| &chosen.key_names)
    }
}

/// What was found in a row, besides its elements.
struct Row {
    shapes: Vec<Vec<usize>>,
    keys: Vec<Key>,
}

impl Layout {
    fn of(line: &[u8], number: u64, choice: &Choice) -> Result<Self, LineFault> {
        if line.trim_ascii_start().starts_with(b"{") {
            let Columns(columns) = parse(line, number)?;
            let names: Vec<String> = columns.iter().map(|(name, _)| name.to_string()).collect();
            return Ok(Self {
                chosen: Some(choice.by_name(&names)?),
                names: Some(names),
                may_have_others: !choice.columns.is_empty(),
                shapes: Vec::new(),
            });
        }
        let parts: Vec<&RawValue> = parse(line, number)?;
        let chosen = if choice.is_everything() {
            None
        } else {
            Some(choice.by_position(parts.len())?)
        };
        Ok(Self {
            chosen,
            ..Self::default()
        })
    }

    fn keys(&self) -> &[usize] {
        self.chosen.as_ref().map_or(&[], |chosen| &chosen.keys)
    }

    /// Of one row as it is sent: a single list as it is nested, several columns one after the other.
    fn row_shape(&self) -> Vec<usize> {
        match &self.shapes[..] {
            [shape] if !shape.is_empty() => shape.clone(),
            shapes => vec![shapes.iter().map(|shape| shape.iter().product::<usize>()).sum()],
        }
    }

    fn read(&self, line: &[u8], number: u64, elements: &mut Elements, datatype: Datatype) -> Result<Row, LineFault> {
        let Some(chosen) = &self.chosen else {
            let whole: &RawValue = parse(line, number)?;
            let values = Values(elements);
            let shape = values
                .push(whole)
                .map_err(|fault| fault.at(format!("line {number}"), datatype))?;
            return Ok(Row {
                shapes: vec![shape],
                keys: Vec::new(),
            });
        };
        let cells = match &self.names {
            Some(names) => self.columns_of(line, number, names, chosen)?,
            None => parse(line, number)?,
        };
        let mut shapes = Vec::with_capacity(chosen.columns.len());
        for &place in &chosen.columns {
            let name = || self.names.as_ref().map(|names| &*names[place]);
            let fault =
                |fault: ValueFault| fault.at(format!("line {number}, column {}", column(place, name())), datatype);
            let cell = cells.get(place).ok_or(LineFault::Short {
                line: number,
                came: cells.len(),
            })?;
            shapes.push(Values(elements).push(cell).map_err(fault)?);
        }
        let keys = chosen.keys.iter().filter_map(|&place| cells.get(place));
        Ok(Row {
            shapes,
            keys: keys.map(|raw| key(raw)).collect(),
        })
    }

    /// The values of an object in the order of the first line's; those that nobody asked for may be `null` for want of any.
    fn columns_of<'a>(
        &self,
        line: &'a [u8],
        number: u64,
        names: &[String],
        chosen: &Chosen,
    ) -> Result<Vec<&'a RawValue>, LineFault> {
        let Columns(columns) = parse(line, number)?;
        if !self.may_have_others
            && let Some((other, _)) = columns.iter().find(|(name, _)| !has(names, name, columns.len()))
        {
            return Err(LineFault::Other {
                line: number,
                name: shown(other),
            });
        }
        let mut cells = vec![RawValue::NULL; names.len()];
        for &place in chosen.columns.iter().chain(&chosen.keys) {
            let name = &names[place];
            // As a rule all lines have their columns in one order.
            let found = columns.get(place).filter(|(found, _)| found == name);
            let found = found.or_else(|| columns.iter().find(|(found, _)| found == name));
            let (_, cell) = found.ok_or_else(|| LineFault::NoColumn {
                line: number,
                name: shown(name),
            })?;
            cells[place] = cell;
        }
        Ok(cells)
    }

    /// All rows must look alike, since they travel in one tensor.
    fn fit(&self, shapes: &[Vec<usize>], line: u64) -> Result<(), LineFault> {
        if shapes == self.shapes {
            return Ok(());
        }
        let mut pairs = shapes.iter().zip(&self.shapes).enumerate();
        let (index, (came, before)) = pairs
            .find(|(_, (came, before))| came != before)
            .ok_or(LineFault::Short {
                line,
                came: shapes.len(),
            })?;
        let column = self.chosen.as_ref().map(|chosen| {
            let place = chosen.columns[index];
            let name = self.names.as_ref().map(|names| &*names[place]);
            format!(", column {}", column(place, name))
        });
        Err(LineFault::Uneven {
            line,
            column: column.unwrap_or_default(),
            came: came.clone(),
            before: before.clone(),
        })
    }
}

fn has(names: &[String], name: &str, columns: usize) -> bool {
    // With as many columns as the first line, a stranger shows as one that is missing.
    columns == names.len() || names.iter().any(|known| known == name)
}

fn parse<'a, T: Deserialize<'a>>(line: &'a [u8], number: u64) -> Result<T, LineFault> {
    serde_json::from_slice(line).map_err(|cause| LineFault::Json { line: number, cause })
}

fn key(raw: &RawValue) -> Key {
    match serde_json::from_str::<String>(raw.get()) {
        Ok(text) => Key::Text(text),
        Err(_) => Key::Literal(raw.get().to_owned()),
    }
}

/// Takes in the values of one cell.
struct Values<'e>(&'e mut Elements);

impl Values<'_> {
    /// Appends what `raw` holds, and returns its shape: none for a single value.
    fn push(mut self, raw: &RawValue) -> Result<Vec<usize>, ValueFault> {
        self.nested(raw, 0)
    }

    fn nested(&mut self, raw: &RawValue, depth: usize) -> Result<Vec<usize>, ValueFault> {
        let text = raw.get();
        let scalar = match text.as_bytes().first() {
            Some(b'[') if depth < DEPTH_MAX => return self.list(text, depth),
            Some(b'n') => return Err(ValueFault::Missing),
            Some(b't') => Scalar::Bool(true),
            Some(b'f') => Scalar::Bool(false),
            Some(b'"') => match serde_json::from_str::<String>(text) {
                Ok(text) => Scalar::Text(Cow::Owned(text)),
                Err(_) => return Err(ValueFault::Value(text.to_owned())),
            },
            Some(b'{' | b'[') => return Err(ValueFault::Value(text.to_owned())),
            _ => Scalar::Decimal(text),
        };
        let pushed = self.0.push(&scalar);
        pushed
            .map_err(|_| ValueFault::Value(text.to_owned()))
            .map(|()| Vec::new())
    }

    fn list(&mut self, text: &str, depth: usize) -> Result<Vec<usize>, ValueFault> {
        let parts: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| ValueFault::Value(text.to_owned()))?;
        let mut inner = None;
        for part in &parts {
            let shape = self.nested(part, depth + 1)?;
            match &inner {
                None => inner = Some(shape),
                Some(first) if *first == shape => {}
                Some(first) => return Err(ValueFault::Ragged(first.clone(), shape)),
            }
        }
        Ok([vec![parts.len()], inner.unwrap_or_default()].concat())
    }
}

/// What is wrong with a value, whose place the caller knows.
enum ValueFault {
    Missing,
    Value(String),
    Ragged(Vec<usize>, Vec<usize>),
}

impl ValueFault {
    fn at(self, place: String, datatype: Datatype) -> LineFault {
        match self {
            Self::Missing => CellFault::Missing { place }.into(),
            Self::Value(cell) => CellFault::value(place, &cell, datatype).into(),
            Self::Ragged(one, other) => LineFault::Ragged { place, one, other },
        }
    }
}

/// An object in its own order, which a map would lose.
struct Columns<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Columns<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Columns<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of columns, as the first line is")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Columns<'de>, A::Error> {
                let mut pairs = Vec::with_capacity(map.size_hint().unwrap_or(0));
                while let Some(Name(name)) = map.next_key()? {
                    pairs.push((name, map.next_value()?));
                }
                Ok(Columns(pairs))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

/// A name, copied only if it holds escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Why JSON lines cannot be sent as rows.
#[derive(Debug, thiserror::Error)]
pub enum LineFault {
    #[error("it is empty")]
    Empty,
    #[error("line {0} holds no values")]
    Nothing(u64),
    #[error("line {line} is not a row in JSON: each line must be an array of numbers or an object of columns")]
    Json {
        line: u64,
        #[source]
        cause: serde_json::Error,
    },
    #[error("line {0} is longer than {mib} MiB; JSON lines hold one row a line", mib = LINE_BYTES_MAX >> 20)]
    TooLong(u64),
    #[error("line {line} has no column `{name}`, which the first line has")]
    NoColumn { line: u64, name: String },
    #[error("line {line} has a column `{name}`, which the first line has not; --columns says which ones count")]
    Other { line: u64, name: String },
    #[error("line {line} has {came} values, fewer than the first line")]
    Short { line: u64, came: usize },
    #[error("line {line}{column}: its shape is {came:?}, that of the first line {before:?}")]
    Uneven {
        line: u64,
        column: String,
        came: Vec<usize>,
        before: Vec<usize>,
    },
    #[error("{place}: it holds parts of shape {one:?} and of {other:?}")]
    Ragged {
        place: String,
        one: Vec<usize>,
        other: Vec<usize>,
    },
    #[error(transparent)]
    Cell(#[from] CellFault),
    #[error(transparent)]
    Columns(#[from] ColumnFault),
    #[error("cannot read it")]
    Io(#[from] io::Error),
}

const READ_BYTES: usize = 256 * 1024;
/// A worker takes bodies of 16 MiB unless it is told otherwise; as text their numbers are a few times as long.
const LINE_BYTES_MAX: u64 = 64 << 20;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// With the axis of the rows, as many as a tensor may have.
const DEPTH_MAX: usize = crate::wire::tensor::AXES_MAX - 1;

#[cfg(test)]
mod tests {
    use super::super::columns::tests::choice;
    use super::*;

    fn block(text: &str, datatype: Datatype, choice: &Choice) -> Result<Block, InputFault> {
        let mut lines = Lines::open(text.as_bytes(), datatype, choice, "x")?;
        let block = lines.read(100)?.expect("the first line is a row");
        assert_eq!(lines.taken_bytes(), text.len() as u64);
        Ok(block)
    }

    #[test]
    fn arrays_are_read_as_they_are_nested() {
        for (text, shape) in [
            ("[1,2]\n\n [3 , 4]", &[2, 2][..]),
            ("\u{feff}[[1],[2]]\r\n[[3],[4]]\r\n", &[2, 2, 1]),
        ] {
            let block = block(text, Datatype::Uint8, &Choice::default()).unwrap();

            assert_eq!(
                (&block.inputs[0].shape[..], &block.inputs[0].data[..]),
                (shape, &[1, 2, 3, 4][..])
            );
            assert_eq!(block.inputs[0].name, "x");
        }
    }

    #[test]
    fn objects_are_read_by_the_names_of_the_first_whatever_their_order() {
        let text = "{\"id\":\"a\",\"x\":1,\"y\":2}\n{\"y\":4,\"x\":3,\"id\":17}\n";

        let rest = block(text, Datatype::Uint8, &choice(&[], &["id"])).unwrap();
        let chosen = block(text, Datatype::Uint8, &choice(&["y"], &["id", "x"])).unwrap();

        assert_eq!(rest.inputs[0].data[..], [1, 2, 3, 4]);
        assert_eq!(
            rest.keys,
            [[Key::Text("a".to_owned())], [Key::Literal("17".to_owned())]]
        );
        assert_eq!(
            (&chosen.inputs[0].shape[..], &chosen.inputs[0].data[..]),
            (&[2, 1][..], &[2, 4][..])
        );
        assert_eq!(chosen.keys[1][1], Key::Literal("3".to_owned()));
    }

    #[test]
    fn a_list_is_a_row_by_itself_and_follows_the_columns_before_it_otherwise() {
        let text = "{\"a\":1,\"v\":[[2,3],[4,5]]}\n";

        let alone = block(text, Datatype::Uint8, &choice(&["v"], &[])).unwrap();
        let both = block(text, Datatype::Uint8, &Choice::default()).unwrap();
        let places = block("[9,8,7,6]\n", Datatype::Uint8, &choice(&["3-4", "1"], &["2"])).unwrap();

        assert_eq!(alone.inputs[0].shape, [1, 2, 2]);
        assert_eq!(
            (&both.inputs[0].shape[..], &both.inputs[0].data[..]),
            (&[1, 5][..], &[1, 2, 3, 4, 5][..])
        );
        assert_eq!(places.inputs[0].data[..], [7, 6, 9]);
        assert_eq!(places.keys, [[Key::Literal("8".to_owned())]]);
    }

    #[test]
    fn a_number_is_rounded_to_its_datatype_once() {
        let text = "[1.00000005960464477539062500000001]\n";

        let block = block(text, Datatype::Fp32, &Choice::default()).unwrap();

        assert_eq!(block.inputs[0].data[..], 1.000_000_1_f32.to_le_bytes());
    }

    #[test]
    fn what_is_wrong_is_named_by_line_and_column() {
        let objects = choice(&[], &[]);
        for (text, choice, sentence) in [
            ("", &objects, "it is empty"),
            ("\n \n", &objects, "it is empty"),
            ("[]\n", &objects, "line 1 holds no values"),
            ("1\n", &objects, "line 1 is not a row in JSON"),
            ("[1,2\n", &objects, "line 1 is not a row in JSON"),
            ("[1]\n{\"a\":1}\n", &objects, "line 2: `{\"a\":1}` is not a number"),
            ("{\"a\":1}\n[1]\n", &objects, "line 2 is not a row in JSON"),
            (
                "[1,2]\n[3]\n",
                &objects,
                "line 2: its shape is [1], that of the first line [2]",
            ),
            (
                "[[1],[2,3]]\n",
                &objects,
                "line 1: it holds parts of shape [1] and of [2]",
            ),
            ("[1,null]\n", &objects, "line 1: the value is missing"),
            (
                "{\"a\":1,\"b\":null}\n",
                &objects,
                "line 1, column 2 (`b`): the value is missing",
            ),
            ("{\"a\":1,\"b\":2}\n{\"a\":1}\n", &objects, "line 2 has no column `b`"),
            ("{\"a\":1}\n{\"b\":1}\n", &objects, "line 2 has no column `a`"),
            ("{\"a\":1}\n{\"a\":1,\"c\":2}\n", &objects, "line 2 has a column `c`"),
            (
                "{\"a\":1}\n{\"a\":\"x\"}\n",
                &objects,
                "line 2, column 1 (`a`): `\"x\"` is not a number of datatype FP32",
            ),
            (
                "{\"a\":[1,2]}\n{\"a\":[1]}\n",
                &objects,
                "line 2, column 1 (`a`): its shape is [1]",
            ),
            (
                "{\"a\":1}\n",
                &choice(&["z"], &[]),
                "there is no column `z`; there are: a",
            ),
            ("[1,2]\n[3]\n", &choice(&["2"], &[]), "line 2 has 1 values"),
        ] {
            let fault = block(text, Datatype::Fp32, choice)
                .err()
                .map(|fault| crate::error::chain(&fault));

            assert!(
                fault.as_ref().is_some_and(|fault| fault.contains(sentence)),
                "{text}: {fault:?}"
            );
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused_before_it_fills_the_memory() {
        let endless = io::repeat(b'1');

        let fault = Lines::open(endless, Datatype::Fp32, &Choice::default(), "")
            .err()
            .unwrap();

        assert!(fault.to_string().contains("longer than 64 MiB"), "{fault}");
    }
}
