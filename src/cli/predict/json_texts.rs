//! The texts of rows out of a file of JSON: a line each, or the entries of one array.

use std::io::{BufRead, BufReader, Cursor, Read};

use super::csv_records::BYTE_ORDER_MARK;
use super::lines::LineFault;
use super::packed::{Peeked, peek};

/// A file of JSON, read row by row.
pub struct Texts<R> {
    file: BufReader<Peeked<R>>,
    /// The row in hand.
    pub text: Vec<u8>,
    /// The line in which it begins, from 1.
    pub number: u64,
    /// The line of the next byte.
    line: u64,
    taken: u64,
    /// Set where the rows are the entries of one array.
    array: Option<Between>,
}

/// What stands before the next entry of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    /// The bracket that opens it.
    Start,
    Entry,
    /// Nothing but space.
    End,
}

impl<R: Read> Texts<R> {
    /// An array where `is_array` says so, and where the file can be nothing else since it begins with an array of objects.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(mut file: R, is_array: bool) -> Result<Self, LineFault> {
        let ahead = peek(&mut file, |ahead| {
            ahead.len() >= START_MAX || (!BYTE_ORDER_MARK.starts_with(ahead) && start_of(ahead).len() == 2)
        })?;
        let start = start_of(&ahead);
        let mut texts = Self {
            file: BufReader::with_capacity(READ_BYTES, Cursor::new(ahead).chain(file)),
            text: Vec::new(),
            number: 0,
            line: 1,
            taken: 0,
            array: None,
        };
        let is_array = match (&start[..], is_array) {
            // One array of rows, be they objects or arrays.
            ([b'[', b'[' | b'{' | b']', ..], true) | ([b'[', b'{', ..], false) => true,
            (_, _) => false,
        };
        texts.array = is_array.then_some(Between::Start);
        if texts.file.fill_buf()?.starts_with(BYTE_ORDER_MARK) {
            texts.file.consume(BYTE_ORDER_MARK.len());
            texts.taken += BYTE_ORDER_MARK.len() as u64;
        }
        Ok(texts)
    }

    pub fn taken_bytes(&self) -> u64 {
        self.taken
    }

    /// Reads the next row; false at the end of the file.
    ///
    /// # Errors
    /// It cannot be read, is too long, or the array around it is none.
    pub fn read(&mut self) -> Result<bool, LineFault> {
        self.text.clear();
        match self.array {
            None => self.read_line(),
            Some(between) => self.read_entry(between),
        }
    }

    fn read_line(&mut self) -> Result<bool, LineFault> {
        loop {
            self.text.clear();
            let read = (&mut self.file).take(ROW_BYTES_MAX).read_until(b'\n', &mut self.text)?;
            if read == 0 {
                return Ok(false);
            }
            self.number = self.line;
            self.line += 1;
            self.taken += read as u64;
            if read as u64 == ROW_BYTES_MAX {
                return Err(LineFault::TooLong(self.number));
            }
            if !self.text.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    fn read_entry(&mut self, between: Between) -> Result<bool, LineFault> {
        if between == Between::Start {
            self.space()?;
            self.take();
        }
        match self.space()? {
            None if between == Between::End => return Ok(false),
            None => return Err(LineFault::ArrayCut),
            Some(_) if between == Between::End => return Err(LineFault::BehindArray(self.line)),
            Some(b']') => {
                self.take();
                self.array = Some(Between::End);
                return self.read_entry(Between::End);
            }
            Some(b',') if between == Between::Entry => {
                self.take();
                if self.space()?.is_none() {
                    return Err(LineFault::ArrayCut);
                }
            }
            Some(_) if between == Between::Start => {}
            Some(_) => return Err(LineFault::NoComma(self.line)),
        }
        self.array = Some(Between::Entry);
        self.number = self.line;
        self.value()?;
        Ok(true)
    }

    /// Passes over space, and returns the byte behind it.
    fn space(&mut self) -> Result<Option<u8>, LineFault> {
        while let Some(&byte) = self.file.fill_buf()?.first() {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.take_byte(byte);
        }
        Ok(None)
    }

    fn take(&mut self) {
        self.take_byte(0);
    }

    fn take_byte(&mut self, byte: u8) {
        self.file.consume(1);
        self.taken += 1;
        self.line += u64::from(byte == b'\n');
    }

    /// Takes one value into the text, up to the comma or bracket behind it.
    fn value(&mut self) -> Result<(), LineFault> {
        let mut nesting = Nesting::default();
        loop {
            let chunk = self.file.fill_buf()?;
            if chunk.is_empty() {
                return Err(LineFault::ArrayCut);
            }
            let (length, is_whole) = nesting.pass(chunk);
            self.line += chunk[..length].iter().filter(|&&byte| byte == b'\n').count() as u64;
            self.text.extend_from_slice(&chunk[..length]);
            self.file.consume(length);
            self.taken += length as u64;
            if self.text.len() as u64 > ROW_BYTES_MAX {
                return Err(LineFault::TooLong(self.number));
            }
            if is_whole {
                return Ok(());
            }
        }
    }
}

/// The first two bytes that are no space.
fn start_of(text: &[u8]) -> Vec<u8> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    text.iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .take(2)
        .collect()
}

/// How deep in brackets and texts a byte stands.
#[derive(Default)]
struct Nesting {
    depth: usize,
    is_in_text: bool,
    is_escaped: bool,
}

impl Nesting {
    /// Counts the bytes that belong to the value, and says whether it ends behind them.
    fn pass(&mut self, chunk: &[u8]) -> (usize, bool) {
        for (at, &byte) in chunk.iter().enumerate() {
            if self.is_in_text {
                self.is_in_text = byte != b'"' || self.is_escaped;
                self.is_escaped = byte == b'\\' && !self.is_escaped;
                continue;
            }
            match byte {
                b'"' => self.is_in_text = true,
                b'[' | b'{' => self.depth += 1,
                b']' | b'}' | b',' if self.depth == 0 => return (at, true),
                b']' | b'}' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return (at + 1, true);
                    }
                }
                _ => {}
            }
        }
        (chunk.len(), false)
    }
}

/// Space that a file may begin with before it is taken for lines.
const START_MAX: usize = 4 * 1024;
const READ_BYTES: usize = 256 * 1024;
/// A worker takes bodies of 16 MiB unless it is told otherwise; as text their numbers are a few times as long.
pub const ROW_BYTES_MAX: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    struct Dripping<'a>(&'a [u8], usize);

    impl Read for Dripping<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.1.min(self.0.len()).min(buffer.len());
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    fn read(text: &str, is_array: bool, step: usize) -> Result<Vec<(u64, String)>, LineFault> {
        let mut texts = Texts::open(Dripping(text.as_bytes(), step), is_array)?;
        let mut rows = Vec::new();
        while texts.read()? {
            rows.push((texts.number, String::from_utf8_lossy(&texts.text).trim().to_owned()));
        }
        assert_eq!(texts.taken_bytes(), text.len() as u64);
        Ok(rows)
    }

    #[test]
    fn entries_of_an_array_are_rows() {
        let text = "\u{feff}[ {\"a\":\"]},\\\"\"},\n [1,[2]] ,\r\n{\n}\n]\n ";
        let expected = [(1, "{\"a\":\"]},\\\"\"}"), (2, "[1,[2]]"), (3, "{\n}")];

        for step in 1..text.len() {
            let rows = read(text, true, step).unwrap();

            assert_eq!(rows, expected.map(|(line, row)| (line, row.to_owned())), "{step}");
        }
    }

    #[test]
    fn lines_are_told_from_an_array() {
        for (text, is_array, rows) in [
            ("[1,2]\n[3,4]\n", true, 2),
            ("{\"a\":1}\n{\"a\":2}", true, 2),
            ("[{\"a\":1},{\"a\":2}]", false, 2),
            ("[[1],[2]]\n[[1],[2]]\n", false, 2),
            ("[[1],[2],[3]]\n", true, 3),
            ("[]", true, 0),
        ] {
            assert_eq!(read(text, is_array, 99).unwrap().len(), rows, "{text}");
        }
    }

    #[test]
    fn an_array_that_is_none_is_named() {
        for (text, sentence) in [
            ("[[1],[2]", "the array is cut: its closing bracket is missing"),
            ("[[1],[2", "the array is cut"),
            ("[[1],", "the array is cut"),
            ("[[1]]\n[[2]]\n", "line 2: text follows the array"),
            ("[[1] [2]]", "line 1: a comma is missing"),
        ] {
            let fault = read(text, true, 99).unwrap_err().to_string();

            assert!(fault.contains(sentence), "{text}: {fault}");
        }
    }
}
