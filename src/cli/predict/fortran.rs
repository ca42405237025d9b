//! Rows of an array in Fortran order, whose elements lie as far from one another as the array has rows.
//!
//! Blocks of rows are gathered from every column, so that memory holds a block and not the array. What is no file of its own, such
//! as a pipe or a member of an archive, is copied into one without a name first.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::array::Bytes;
use super::npy::Header;

/// The rows in C order.
pub struct FortranRows {
    file: Arc<File>,
    /// The first byte of the data.
    at: u64,
    rows: u64,
    /// For each element of a row in C order, its column in Fortran order.
    columns: Vec<u64>,
    width: usize,
    next_row: u64,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are taken.
    taken: usize,
}

impl FortranRows {
    pub fn new(file: Arc<File>, at: u64, header: &Header) -> Self {
        Self {
            file,
            at,
            rows: header.shape[0] as u64,
            columns: columns(&header.shape[1..]),
            width: header.element_bytes(),
            next_row: 0,
            buffer: Vec::new(),
            taken: 0,
        }
    }

    fn row_bytes(&self) -> usize {
        self.columns.len() * self.width
    }

    /// Gathers the next block; nothing at the end.
    fn fill(&mut self) -> io::Result<()> {
        self.taken = 0;
        self.buffer.clear();
        let fitting = (BLOCK_BYTES / self.row_bytes().max(1)).max(1) as u64;
        let rows = usize::try_from(fitting.min(self.rows - self.next_row)).unwrap_or(0);
        self.buffer.resize(rows * self.row_bytes(), 0);
        let mut column_part = vec![0; rows * self.width];
        let row_bytes = self.row_bytes();
        for (place, column) in self.columns.iter().enumerate() {
            let offset = (column * self.rows + self.next_row) * self.width as u64;
            self.file.read_exact_at(&mut column_part, self.at + offset)?;
            for (row, element) in column_part.chunks_exact(self.width).enumerate() {
                let start = row * row_bytes + place * self.width;
                self.buffer[start..start + self.width].copy_from_slice(element);
            }
        }
        self.next_row += rows as u64;
        Ok(())
    }
}

impl Read for FortranRows {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.buffer.len() && !buffer.is_empty() {
            self.fill()?;
        }
        let length = buffer.len().min(self.buffer.len() - self.taken);
        buffer[..length].copy_from_slice(&self.buffer[self.taken..self.taken + length]);
        self.taken += length;
        Ok(length)
    }
}

impl Bytes for FortranRows {
    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let here = bytes.min((self.buffer.len() - self.taken) as u64);
        self.taken += usize::try_from(here).unwrap_or(usize::MAX);
        let rows = (bytes - here) / self.row_bytes().max(1) as u64;
        self.next_row = (self.next_row + rows).min(self.rows);
        Ok(())
    }
}

/// Places in Fortran order of the elements of a row in C order.
fn columns(tail: &[usize]) -> Vec<u64> {
    let mut columns = vec![0_u64];
    let mut stride = 1;
    for &axis in tail {
        let wider = columns
            .iter()
            .flat_map(|&before| (0..axis as u64).map(move |index| before + index * stride));
        columns = wider.collect();
        stride *= axis as u64;
    }
    columns
}

/// Copies an array's data into a file without a name.
///
/// # Errors
/// They are cut, or cannot be read or written.
pub fn spool(data: &mut dyn Bytes, promised: u64) -> io::Result<Arc<File>> {
    let mut file = tempfile::tempfile()?;
    let came = io::copy(&mut Read::take(&mut *data, promised), &mut file)?;
    if came < promised {
        let reason = format!("it is cut: it holds {came} bytes of data, its header promises {promised}");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
    }
    // The end is where an archive's checksum is looked at.
    io::copy(data, &mut io::sink())?;
    Ok(Arc::new(file))
}

const BLOCK_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tensor::Datatype;

    #[test]
    fn rows_come_in_c_order_whatever_the_axes() {
        for tail in [&[4][..], &[2, 3], &[2, 3, 2]] {
            let rows = 5_usize;
            let shape = [&[rows], tail].concat();
            let elements: usize = tail.iter().product();
            // Element e of row r in C order is 100 r + e.
            let mut of_columns = vec![0_u16; rows * elements];
            for (place, column) in columns(tail).into_iter().enumerate() {
                for row in 0..rows {
                    of_columns[column as usize * rows + row] = (100 * row + place) as u16;
                }
            }
            let bytes: Vec<u8> = of_columns.iter().flat_map(|value| value.to_le_bytes()).collect();
            let mut data = super::super::array::Stream(&bytes[..]);
            let file = spool(&mut data, bytes.len() as u64).unwrap();
            let mut fortran = FortranRows::new(file, 0, &Header::new(Datatype::Uint16, shape));

            fortran.pass(2 * 2 * elements as u64).unwrap();
            let mut read = Vec::new();
            fortran.read_to_end(&mut read).unwrap();

            let expected = (2..rows).flat_map(|row| (0..elements).map(move |place| (100 * row + place) as u16));
            assert_eq!(read, expected.flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
        }
        // As NumPy has it: of [rows, 2, 3] the second axis varies before the third.
        assert_eq!(columns(&[2, 3]), [0, 2, 4, 1, 3, 5]);
    }

    #[test]
    fn what_is_cut_is_no_array() {
        let mut data = super::super::array::Stream(&[0_u8; 9][..]);

        let fault = spool(&mut data, 10).unwrap_err().to_string();

        assert!(
            fault.contains("it holds 9 bytes of data, its header promises 10"),
            "{fault}"
        );
    }
}
