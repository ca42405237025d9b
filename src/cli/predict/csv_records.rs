//! Records of separated text, read strictly: a cell comes as it was written, in memory bounded by the longest one allowed.
//!
//! The `csv` crate reads whatever comes: it makes one cell of all that follows a quote that never closes, however much that is,
//! and joins what stands behind a closing quote to the cell. It tells neither, and no option makes it.
//!
//! # Source
//! RFC 4180, sections 2.5 to 2.7. Beyond it, lines may end in `\n`, `\r\n` or `\r`, the last one need not, and empty lines are
//! passed over.

use std::io::{BufRead, BufReader, Read};

use super::csv_record::{CELL_BYTES_MAX, CellPlace, RECORD_BYTES_MAX, Record, RecordFault};
use super::delimiter::Delimiter;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Bare,
    Quoted,
    /// Behind a quote within quotes: the end of the cell, or the first half of a quote that belongs to it.
    Closed,
}

/// Separated text, read record by record.
pub struct Records<R> {
    file: BufReader<R>,
    scan: Scan,
    bytes: u64,
}

impl<R: Read> Records<R> {
    pub fn new(file: R, delimiter: Delimiter) -> Self {
        Self {
            file: BufReader::with_capacity(READ_BYTES, file),
            scan: Scan::new(delimiter),
            bytes: 0,
        }
    }

    /// Takes empty lines for records of one empty cell from here on, if others follow them: so they are in a table of one column.
    pub fn keep_empty_lines(&mut self) {
        self.scan.are_empty_lines_records = true;
    }

    /// Bytes that were read so far.
    pub fn taken_bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads the next record; false at the end of the file.
    ///
    /// # Errors
    /// What comes next is no record, or longer than allowed.
    pub fn read(&mut self, record: &mut Record) -> Result<bool, RecordFault> {
        record.clear();
        self.scan.state = State::Start;
        loop {
            let chunk = self.file.fill_buf()?;
            if chunk.is_empty() {
                return self.scan.end(record);
            }
            self.scan.at = 0;
            let is_whole = self.scan.run(chunk, record);
            self.file.consume(self.scan.at);
            self.bytes += self.scan.at as u64;
            if is_whole? {
                return Ok(true);
            }
        }
    }
}

/// The state between two bytes.
struct Scan {
    delimiter: u8,
    state: State,
    /// The next byte of the buffer in hand.
    at: usize,
    /// The line of the next byte.
    line: u64,
    /// The last byte was `\r`, so that a `\n` belongs to it.
    is_after_cr: bool,
    /// The line in which the cell in hand begins.
    cell_line: u64,
    /// Empty lines since the last record.
    empty_lines: u64,
    are_empty_lines_records: bool,
    /// What is left of the mark that some programs begin a text with, as long as that is all that came.
    mark: &'static [u8],
}

impl Scan {
    fn new(delimiter: Delimiter) -> Self {
        Self {
            delimiter: delimiter.byte(),
            state: State::Start,
            at: 0,
            line: 1,
            is_after_cr: false,
            cell_line: 1,
            empty_lines: 0,
            are_empty_lines_records: false,
            mark: BYTE_ORDER_MARK,
        }
    }

    /// Goes on with the record in hand; true when it is whole.
    fn run(&mut self, chunk: &[u8], record: &mut Record) -> Result<bool, RecordFault> {
        while let Some(&byte) = chunk.get(self.at) {
            if self.is_mark(byte, record) {
                continue;
            }
            if std::mem::take(&mut self.is_after_cr) && byte == b'\n' {
                self.at += 1;
                continue;
            }
            let is_whole = match self.state {
                State::Start => self.start(byte, chunk, record)?,
                State::Bare => self.bare(chunk, record)?,
                State::Quoted => self.quoted(chunk, record)?,
                State::Closed => self.closed(byte, chunk, record)?,
            };
            if is_whole {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Passes over a byte order mark.
    fn is_mark(&mut self, byte: u8, record: &mut Record) -> bool {
        let Some((&next, rest)) = self.mark.split_first() else {
            return false;
        };
        if byte == next {
            self.at += 1;
            self.mark = rest;
            return true;
        }
        let came = BYTE_ORDER_MARK.len() - self.mark.len();
        self.mark = &[];
        if came > 0 {
            // Another character that begins like it.
            record.line = self.line;
            record.text.extend_from_slice(&BYTE_ORDER_MARK[..came]);
            self.state = State::Bare;
        }
        false
    }

    fn end(&mut self, record: &mut Record) -> Result<bool, RecordFault> {
        match self.state {
            State::Quoted => Err(RecordFault::Unclosed(self.place(record))),
            State::Start if record.cells() == 0 => Ok(false),
            State::Start | State::Bare | State::Closed => {
                record.end_cell();
                Ok(true)
            }
        }
    }

    fn place(&self, record: &Record) -> CellPlace {
        CellPlace {
            line: self.cell_line,
            column: record.cells() + 1,
        }
    }

    fn start(&mut self, byte: u8, chunk: &[u8], record: &mut Record) -> Result<bool, RecordFault> {
        if record.cells() == 0 {
            if is_line_end(byte) {
                self.empty_lines += 1;
                self.end_line(byte);
                return Ok(false);
            }
            record.line = self.line - self.empty_lines;
            if self.empty_lines > 0 && self.are_empty_lines_records {
                self.empty_lines -= 1;
                record.end_cell();
                return Ok(true);
            }
            self.empty_lines = 0;
            record.line = self.line;
        }
        self.cell_line = self.line;
        if byte == b'"' {
            self.state = State::Quoted;
            self.at += 1;
            return Ok(false);
        }
        self.state = State::Bare;
        self.bare(chunk, record)
    }

    fn bare(&mut self, chunk: &[u8], record: &mut Record) -> Result<bool, RecordFault> {
        let rest = &chunk[self.at..];
        let is_end = |&byte: &u8| byte == self.delimiter || byte == b'"' || is_line_end(byte);
        let length = rest.iter().position(is_end).unwrap_or(rest.len());
        self.take(&rest[..length], record)?;
        match rest.get(length) {
            None => Ok(false),
            Some(b'"') => Err(RecordFault::BareQuote(self.place(record))),
            Some(&byte) => Ok(self.end_cell(byte, record)),
        }
    }

    fn quoted(&mut self, chunk: &[u8], record: &mut Record) -> Result<bool, RecordFault> {
        let rest = &chunk[self.at..];
        let length = rest.iter().position(|&byte| byte == b'"').unwrap_or(rest.len());
        self.take(&rest[..length], record)?;
        self.line += rest[..length].iter().filter(|&&byte| byte == b'\n').count() as u64;
        if length < rest.len() {
            self.at += 1;
            self.state = State::Closed;
        }
        Ok(false)
    }

    fn closed(&mut self, byte: u8, chunk: &[u8], record: &mut Record) -> Result<bool, RecordFault> {
        if byte == b'"' {
            // Two quotes are one of the cell.
            self.state = State::Quoted;
            let quote = &chunk[self.at..=self.at];
            return self.take(quote, record).map(|()| false);
        }
        if byte == self.delimiter || is_line_end(byte) {
            return Ok(self.end_cell(byte, record));
        }
        Err(RecordFault::BehindQuote(self.place(record)))
    }

    fn take(&mut self, part: &[u8], record: &mut Record) -> Result<(), RecordFault> {
        if record.cell_bytes() + part.len() > CELL_BYTES_MAX {
            let place = self.place(record);
            return Err(match self.state {
                State::Quoted => RecordFault::QuotedTooLong(place),
                State::Start | State::Bare | State::Closed => RecordFault::CellTooLong(place),
            });
        }
        if record.text.len() + record.ends.len() + part.len() > RECORD_BYTES_MAX {
            return Err(RecordFault::RecordTooLong(record.line));
        }
        record.text.extend_from_slice(part);
        self.at += part.len();
        Ok(())
    }

    /// Ends a cell at the delimiter or the end of the line; true if the record ends with it.
    fn end_cell(&mut self, byte: u8, record: &mut Record) -> bool {
        record.end_cell();
        self.state = State::Start;
        if byte == self.delimiter {
            self.at += 1;
            return false;
        }
        self.end_line(byte);
        true
    }

    fn end_line(&mut self, byte: u8) {
        self.at += 1;
        self.line += 1;
        self.is_after_cr = byte == b'\r';
    }
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

pub const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
const READ_BYTES: usize = 256 * 1024;
#[cfg(test)]
mod tests;
