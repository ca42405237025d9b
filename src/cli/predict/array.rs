//! One of NumPy's arrays, read row by row in the order and bytes of the wire.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::faults::InputFault;
use super::fortran::{FortranRows, spool};
use super::npy::{Header, NpyFault};
use crate::wire::tensor::Tensor;

/// Bytes that come in order and can be passed over.
pub trait Bytes: Read + Send {
    /// # Errors
    /// They cannot be read, where that is the only way.
    fn pass(&mut self, bytes: u64) -> io::Result<()>;

    /// Where the next byte lies in a file, if it lies in one.
    fn place(&self) -> Option<(Arc<File>, u64)> {
        None
    }
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

    fn place(&self) -> Option<(Arc<File>, u64)> {
        Some((self.file.clone(), self.at))
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
    /// It is no array, or one of elements that no model takes.
    pub fn open(name: String, mut data: Box<dyn Bytes>) -> Result<Self, NpyFault> {
        let mut counted = Counted {
            data: &mut *data,
            bytes: 0,
        };
        let header = Header::read(&mut counted)?;
        let header_bytes = counted.bytes;
        if header.is_fortran {
            let (file, at) = match data.place() {
                Some(place) => place,
                None => (spool(&mut *data, header.data_bytes())?, 0),
            };
            data = Box::new(FortranRows::new(file, at, &header));
        }
        Ok(Self {
            name,
            header_bytes,
            left: header.shape.first().map_or(1, |&rows| rows as u64),
            header,
            data,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn rename(&mut self, input: &str) {
        input.clone_into(&mut self.name);
    }

    /// Bytes before the data.
    pub fn header_bytes(&self) -> u64 {
        self.header_bytes
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Rows that were not yet read.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Passes over rows.
    ///
    /// # Errors
    /// They cannot be read, where that is the only way.
    pub fn pass(&mut self, rows: u64) -> io::Result<()> {
        let rows = rows.min(self.left);
        self.left -= rows;
        self.data.pass(rows * self.header.row_bytes() as u64)
    }

    /// Reads the whole of an array, whatever its first axis says.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_whole(mut self) -> Result<Tensor, InputFault> {
        let rows = self.header.shape.first().copied().unwrap_or(1);
        let tensor = self.read(rows)?;
        Ok(Tensor {
            shape: self.header.shape,
            ..tensor
        })
    }

    /// Reads rows that are known to be left.
    ///
    /// # Errors
    /// There are fewer, or they cannot be read.
    pub fn read(&mut self, rows: usize) -> Result<Tensor, InputFault> {
        let wanted = rows * self.header.row_bytes();
        // Read into what is reserved, since filling it with zeros first would cost as much as reading it.
        let mut bytes = Vec::with_capacity(wanted);
        (&mut self.data).take(wanted as u64).read_to_end(&mut bytes)?;
        if bytes.len() < wanted {
            let left = self.left * self.header.row_bytes() as u64;
            return Err(InputFault::Cut {
                came: self.header.data_bytes() - left + bytes.len() as u64,
                promised: self.header.data_bytes(),
            });
        }
        self.left -= rows as u64;
        if self.left == 0 {
            // What comes after the last row is nothing, but the end is where an archive's checksum is looked at.
            io::copy(&mut self.data, &mut io::sink())?;
        }
        if self.header.is_big_endian {
            bytes
                .chunks_exact_mut(self.header.element_bytes())
                .for_each(<[u8]>::reverse);
        }
        Ok(Tensor {
            name: self.name.clone(),
            datatype: self.header.datatype,
            shape: [&[rows], self.header.shape.get(1..).unwrap_or_default()].concat(),
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
