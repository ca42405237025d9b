//! Rows out of JSON: each an array of numbers, nested or not, or an object of columns, in lines or in one array.

use std::io::{self, Read};

use super::block::{Block, Key};
use super::columns::{CellFault, Choice, ColumnFault, Missing};
use super::faults::InputFault;
use super::inputs::Sending;
use super::json_layout::Layout;
use super::json_texts::{ROW_BYTES_MAX, Texts};
use super::rows::Source;
use crate::wire::elements::Elements;

/// A file, read row by row.
pub struct Lines<R> {
    texts: Texts<R>,
    has_ahead: bool,
    layout: Layout,
}

impl<R: Read> Lines<R> {
    /// # Errors
    /// The file has no rows, or its first one has not the columns that are asked for.
    pub fn open(file: R, is_array: bool, missing: Missing, choice: &Choice) -> Result<Self, LineFault> {
        let mut lines = Self {
            texts: Texts::open(file, is_array)?,
            has_ahead: false,
            layout: Layout::default(),
        };
        if !lines.look_ahead()? {
            return Err(LineFault::Empty);
        }
        lines.layout = Layout::of(&lines.texts.text, lines.texts.number, missing, choice)?;
        Ok(lines)
    }

    /// False at the end of the file.
    fn look_ahead(&mut self) -> Result<bool, LineFault> {
        if !self.has_ahead {
            self.has_ahead = self.texts.read()?;
        }
        Ok(self.has_ahead)
    }

    fn read_row(&mut self, elements: &mut [Elements], keys: &mut Vec<Vec<Key>>) -> Result<bool, LineFault> {
        if !self.look_ahead()? {
            return Ok(false);
        }
        self.has_ahead = false;
        let number = self.texts.number;
        let row = self.layout.read(&self.texts.text, number, elements)?;
        self.layout.fit(&row.shapes, number)?;
        if !self.layout.keys().is_empty() {
            keys.push(row.keys);
        }
        Ok(true)
    }
}

impl<R: Read + Send> Source for Lines<R> {
    fn bind(&mut self, sending: &Sending) -> Result<(), InputFault> {
        Ok(self.layout.bind(sending, &self.texts.text, self.texts.number)?)
    }

    fn read(&mut self, rows: usize) -> Result<Option<Block>, InputFault> {
        let mut elements = self.layout.inputs().elements(0);
        let mut keys = Vec::new();
        let mut count = 0;
        while count < rows && self.read_row(&mut elements, &mut keys)? {
            count += 1;
        }
        Ok((count > 0).then(|| Block::new(self.layout.inputs().tensors(count, elements), keys)))
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
        self.texts.taken_bytes()
    }

    fn row_bytes(&self) -> usize {
        self.layout.inputs().row_bytes()
    }

    fn key_names(&self) -> &[String] {
        self.layout.key_names()
    }
}

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
    #[error("line {0}: `NaN` is Python's and not JSON's: write null, which --missing nan sends as NaN")]
    NotANumber(u64),
    #[error(
        "line {line}: `{word}` is Python's and not JSON's, which has no infinity: .npy, .csv and .parquet have one"
    )]
    Infinity { line: u64, word: &'static str },
    #[error("the array is cut: its closing bracket is missing")]
    ArrayCut,
    #[error("line {0}: text follows the array; a file of JSON lines is called .jsonl, or --input-format jsonl says so")]
    BehindArray(u64),
    #[error("line {0}: a comma is missing between two rows of the array")]
    NoComma(u64),
    #[error("line {0} is longer than {mib} MiB; JSON lines hold one row a line", mib = ROW_BYTES_MAX >> 20)]
    TooLong(u64),
    #[error("line {line} has no column `{name}`, which the first line has")]
    NoColumn { line: u64, name: String },
    #[error("line {line} has a column `{name}`, which the first line has not; --columns says which ones count")]
    Other { line: u64, name: String },
    #[error("line {line} has a column `{name}` twice")]
    Twice { line: u64, name: String },
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

#[cfg(test)]
mod tests {
    use super::super::columns::tests::choice;
    use super::*;
    use crate::wire::tensor::Datatype;

    fn block(text: &str, datatype: Datatype, choice: &Choice) -> Result<Block, InputFault> {
        let mut lines = Lines::open(text.as_bytes(), false, Missing::Refuse, choice)?;
        lines.bind(&Sending {
            datatype: Some(datatype),
            input: "x".to_owned(),
            ..Sending::default()
        })?;
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
            ("{\"a\":1,\"a\":2}\n", &objects, "line 1 has a column `a` twice"),
            (
                "{\"a\":1,\"b\":2}\n{\"a\":1,\"b\":2,\"a\":3}\n",
                &objects,
                "line 2 has a column `a` twice",
            ),
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

        let fault = Lines::open(endless, false, Missing::Refuse, &Choice::default())
            .err()
            .unwrap();

        assert!(fault.to_string().contains("longer than 64 MiB"), "{fault}");
    }

    #[test]
    fn null_and_absent_columns_are_nan_if_that_is_wanted() {
        let text = "{\"a\":1,\"b\":null}\n{\"a\":2}\n{\"b\":3}\n";
        let mut lines = Lines::open(text.as_bytes(), false, Missing::Nan, &Choice::default()).unwrap();
        lines
            .bind(&Sending {
                missing: Missing::Nan,
                ..Sending::default()
            })
            .unwrap();

        let block = lines.read(9).unwrap().unwrap();

        let (values, _) = block.inputs[0].data.as_chunks();
        let values: Vec<f32> = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
        assert_eq!(
            values.iter().map(|value| value.is_nan()).collect::<Vec<_>>(),
            [false, true, false, true, true, false]
        );
        assert_eq!((values[0], values[2], values[5]), (1.0, 2.0, 3.0));
    }

    #[test]
    fn numbers_of_python_are_named_with_the_way_to_send_them() {
        for (text, sentence) in [
            ("[1]\n[NaN]\n", "line 2: `NaN` is Python's and not JSON's: write null"),
            ("{\"a\":-Infinity}\n", "line 1: `-Infinity` is Python's"),
        ] {
            let fault = block(text, Datatype::Fp32, &Choice::default())
                .err()
                .map(|fault| fault.to_string());

            assert!(
                fault.as_ref().is_some_and(|fault| fault.contains(sentence)),
                "{fault:?}"
            );
        }
    }
}
