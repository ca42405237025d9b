//! One record of separated text, where its cells lie, and why it is none.

use std::io;

/// The cells of one line, or of several where a quoted cell spans them.
#[derive(Debug, Clone, Default)]
pub struct Record {
    pub text: Vec<u8>,
    /// Where each cell ends in the text.
    pub ends: Vec<usize>,
    pub line: u64,
}

impl Record {
    /// The line that it begins in, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// Number of its cells.
    pub fn cells(&self) -> usize {
        self.ends.len()
    }

    /// A cell; empty where there is none.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn cell(&self, place: usize) -> Result<&str, RecordFault> {
        let before = place.checked_sub(1).and_then(|before| self.ends.get(before));
        let end = self.ends.get(place).copied().unwrap_or_default();
        let bytes = self
            .text
            .get(before.copied().unwrap_or_default()..end)
            .unwrap_or_default();
        std::str::from_utf8(bytes).map_err(|_| RecordFault::NotUtf8(self.at(place)))
    }

    fn at(&self, place: usize) -> CellPlace {
        CellPlace {
            line: self.line,
            column: place + 1,
        }
    }

    /// Forgets its cells.
    pub fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }

    /// Bytes of the cell in hand.
    pub fn cell_bytes(&self) -> usize {
        self.text.len() - self.ends.last().copied().unwrap_or_default()
    }

    /// Ends the cell in hand.
    pub fn end_cell(&mut self) {
        self.ends.push(self.text.len());
    }
}

/// Where a cell begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CellPlace {
    pub line: u64,
    pub column: usize,
}

impl std::fmt::Display for CellPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Why a text is no table.
#[derive(Debug, thiserror::Error)]
pub enum RecordFault {
    #[error("{0}: the quote that opens this cell is never closed")]
    Unclosed(CellPlace),
    #[error("{0}: the quote that opens this cell is not closed within {mib} MiB, the most that a cell may have", mib = CELL_BYTES_MAX >> 20)]
    QuotedTooLong(CellPlace),
    #[error("{0}: the cell has more than {mib} MiB, the most that it may have", mib = CELL_BYTES_MAX >> 20)]
    CellTooLong(CellPlace),
    #[error("line {0} has more than {mib} MiB, the most that a row may have", mib = RECORD_BYTES_MAX >> 20)]
    RecordTooLong(u64),
    #[error("{0}: text follows the quote that closes this cell; a quote within quotes is written twice")]
    BehindQuote(CellPlace),
    #[error(
        "{0}: a quote stands within a cell that does not begin with one; the cell must be quoted, and the quote written twice"
    )]
    BareQuote(CellPlace),
    #[error("{0}: the cell is not UTF-8")]
    NotUtf8(CellPlace),
    #[error("cannot read it")]
    Io(#[from] io::Error),
}

/// Far more than a text that a model takes, and soon reached behind a quote that was forgotten.
pub const CELL_BYTES_MAX: usize = 1 << 20;
/// A worker takes bodies of 16 MiB unless it is told otherwise; as text their numbers are a few times as long.
pub const RECORD_BYTES_MAX: usize = 64 << 20;
