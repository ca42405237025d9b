//! Rows out of NumPy's arrays: one in an `.npy` file, or several side by side in an `.npz` archive.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::block::{Block, Key};
use super::cells::Cells;
use super::columns::{Choice, Chosen, ColumnFault};
use super::npy::{Header, NpyFault};
use super::rows::{InputFault, Source};
use crate::wire::tensor::Tensor;

/// Bytes that come in order and can be passed over.
pub trait Bytes: Read + Send {
    /// # Errors
    /// They cannot be read, where that is the only way.
    fn pass(&mut self, bytes: u64) -> io::Result<()>;
}

/// A part of a file, read at its own pace whatever else is read of it.
pub struct Section {
    pub file: Arc<File>,
    pub at: u64,
    pub left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Bytes for Section {
    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = bytes.min(self.left);
        self.at += bytes;
        self.left -= bytes;
        Ok(())
    }
}

/// What can only be read.
pub struct Stream<R>(pub R);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read + Send> Bytes for Stream<R> {
    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        io::copy(&mut (&mut self.0).take(bytes), &mut io::sink()).map(drop)
    }
}

/// One array.
pub struct Array {
    /// Of the input that takes it; empty is the only one.
    name: String,
    data: Box<dyn Bytes>,
    header: Header,
    header_bytes: u64,
    left: u64,
}

impl Array {
    /// # Errors
    /// It is no array whose first axis counts rows.
    pub fn open(name: String, mut data: Box<dyn Bytes>) -> Result<Self, NpyFault> {
        let mut counted = Counted {
            data: &mut *data,
            bytes: 0,
        };
        let header = Header::read(&mut counted)?;
        Ok(Self {
            name,
            header_bytes: counted.bytes,
            left: header.shape[0] as u64,
            header,
            data,
        })
    }

    /// Bytes before the data.
    pub fn header_bytes(&self) -> u64 {
        self.header_bytes
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads rows that are known to be left.
    fn read(&mut self, rows: usize) -> Result<Tensor, InputFault> {
        let wanted = rows * self.header.row_bytes();
        // Read into what is reserved, since filling it with zeros first would cost as much as reading it.
        let mut bytes = Vec::with_capacity(wanted);
        (&mut self.data).take(wanted as u64).read_to_end(&mut bytes)?;
        if bytes.len() < wanted {
            let row_bytes = self.header.row_bytes() as u64;
            let before = (self.header.shape[0] as u64 - self.left) * row_bytes;
            return Err(InputFault::Cut {
                came: before + bytes.len() as u64,
                promised: self.header.shape[0] as u64 * row_bytes,
            });
        }
        self.left -= rows as u64;
        if self.left == 0 {
            // What comes after the last row is nothing, but the end is where an archive's checksum is looked at.
            io::copy(&mut self.data, &mut io::sink())?;
        }
        Ok(Tensor {
            name: self.name.clone(),
            datatype: self.header.datatype,
            shape: [&[rows], &self.header.shape[1..]].concat(),
            data: bytes.into(),
        })
    }
}

/// Counts what is read.
struct Counted<'a> {
    data: &'a mut dyn Bytes,
    bytes: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.data.read(buffer)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

/// Arrays with as many rows each.
pub struct Arrays {
    arrays: Vec<Array>,
    /// `None`: whole rows.
    chosen: Option<Chosen>,
}

impl Arrays {
    /// # Errors
    /// They are of different length, or have not the columns that are asked for.
    pub fn new(arrays: Vec<Array>, choice: &Choice) -> Result<Self, InputFault> {
        if let [first, others @ ..] = &arrays[..]
            && let Some(other) = others.iter().find(|other| other.left != first.left)
        {
            return Err(InputFault::Lengths {
                one: first.name.clone(),
                rows: first.left,
                other: other.name.clone(),
                other_rows: other.left,
            });
        }
        let chosen = match &arrays[..] {
            _ if choice.is_everything() => None,
            [array] if array.header.shape.len() == 2 => Some(choice.by_position(array.header.shape[1])?),
            [array] => {
                let axes = array.header.shape.len() - 1;
                return Err(ColumnFault::Axes { axes }.into());
            }
            _ => return Err(InputFault::ColumnsOfArrays),
        };
        Ok(Self { arrays, chosen })
    }
}

impl Source for Arrays {
    fn read(&mut self, rows: usize) -> Result<Option<Block>, InputFault> {
        let left = self.arrays.first().map_or(0, |array| array.left);
        let rows = usize::try_from(left).unwrap_or(usize::MAX).min(rows);
        if rows == 0 {
            return Ok(None);
        }
        let inputs = self.arrays.iter_mut().map(|array| array.read(rows));
        let inputs: Vec<Tensor> = inputs.collect::<Result<_, _>>()?;
        let whole = Block {
            inputs,
            keys: Vec::new(),
        };
        Ok(Some(match &self.chosen {
            None => whole,
            Some(chosen) => chosen_of(&whole.inputs[0], chosen),
        }))
    }

    fn skip(&mut self, rows: u64) -> Result<(), InputFault> {
        for array in &mut self.arrays {
            let rows = rows.min(array.left);
            array.data.pass(rows * array.header.row_bytes() as u64)?;
            array.left -= rows;
        }
        Ok(())
    }

    fn total(&self) -> Option<u64> {
        self.arrays.first().map(|array| array.header.shape[0] as u64)
    }

    fn row_bytes(&self) -> usize {
        self.arrays.iter().map(|array| array.header.row_bytes()).sum()
    }

    fn key_names(&self) -> &[String] {
        self.chosen.as_ref().map_or(&[], |chosen| &chosen.key_names)
    }
}

/// The chosen columns of rows of numbers.
fn chosen_of(whole: &Tensor, chosen: &Chosen) -> Block {
    let (rows, columns) = (whole.shape[0], whole.shape[1]);
    let width = whole.data.len() / (rows * columns).max(1);
    let cell = |row: usize, column: usize| {
        let at = (row * columns + column) * width;
        &whole.data[at..at + width]
    };
    let mut data = Vec::with_capacity(rows * chosen.columns.len() * width);
    let mut keys = Vec::new();
    for row in 0..rows {
        for &column in &chosen.columns {
            data.extend_from_slice(cell(row, column));
        }
        if !chosen.keys.is_empty() {
            let texts = chosen
                .keys
                .iter()
                .flat_map(|&key| Cells::Json.of(whole.datatype, cell(row, key)));
            keys.push(texts.map(Key::Literal).collect());
        }
    }
    let input = Tensor {
        name: whole.name.clone(),
        datatype: whole.datatype,
        shape: vec![rows, chosen.columns.len()],
        data: data.into(),
    };
    Block {
        inputs: vec![input],
        keys,
    }
}
