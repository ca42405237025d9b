//! The header of NumPy's `.npy` files, read and written.
//!
//! Only the header: the data behind it are elements one after the other, and [`super::array`] brings them into the order of the wire.
//! `ndarray-npy` reads and writes whole arrays at once, and a file may be bigger than memory.
//!
//! # Source
//! NumPy, "NPY format", versions 1.0 to 3.0.

use std::io::{self, Read};

use crate::wire::tensor::{AXES_MAX, Datatype, element_count};

/// What the data of a file are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub datatype: Datatype,
    /// The first axis counts the rows, unless the array is given whole.
    pub shape: Vec<usize>,
    /// The first axis varies fastest.
    pub is_fortran: bool,
    pub is_big_endian: bool,
}

impl Header {
    /// Of row-major little-endian elements.
    pub fn new(datatype: Datatype, shape: Vec<usize>) -> Self {
        Self {
            datatype,
            shape,
            is_fortran: false,
            is_big_endian: false,
        }
    }

    /// Reads a header and leaves `file` at the first byte of the data.
    ///
    /// # Errors
    /// It is no header, or of elements that no model takes.
    pub fn read(file: &mut impl Read) -> Result<Self, NpyFault> {
        let mut start = [0; 8];
        match file.read(&mut start[..1])? {
            0 => return Err(NpyFault::Empty),
            _ => file.read_exact(&mut start[1..]).map_err(not_npy)?,
        }
        if !start.starts_with(MAGIC) {
            return Err(NpyFault::NotNpy);
        }
        let length = match start[6] {
            1 => u32::from(u16::from_le_bytes(exactly(file)?)),
            2 | 3 => u32::from_le_bytes(exactly(file)?),
            version => return Err(NpyFault::Version(version)),
        };
        if length > HEADER_BYTES_MAX {
            return Err(NpyFault::NotNpy);
        }
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text).map_err(not_npy)?;
        Self::parse(&String::from_utf8_lossy(&text))
    }

    fn parse(text: &str) -> Result<Self, NpyFault> {
        let descr = value(text, "descr")?;
        let descr = match descr.strip_prefix('\'').and_then(|rest| rest.split_once('\'')) {
            Some((descr, _)) => descr,
            None => return Err(NpyFault::Structured),
        };
        let shape = value(text, "shape")?
            .strip_prefix('(')
            .and_then(|rest| rest.split_once(')'));
        let (axes, _) = shape.ok_or(NpyFault::NotNpy)?;
        let axes = axes.split(',').map(str::trim).filter(|axis| !axis.is_empty());
        let shape: Vec<usize> = axes
            .map(|axis| axis.parse().map_err(|_| NpyFault::NotNpy))
            .collect::<Result<_, _>>()?;
        let (datatype, is_big_endian) = datatype(descr).ok_or_else(|| NpyFault::Type(descr.to_owned()))?;
        if shape.len() > AXES_MAX || element_count(&shape).and_then(|count| count.checked_mul(8)).is_none() {
            return Err(NpyFault::TooBig(shape));
        }
        // An array of one axis is in both orders.
        let is_fortran = shape.len() > 1 && value(text, "fortran_order")?.starts_with("True");
        Ok(Self {
            datatype,
            shape,
            is_fortran,
            is_big_endian,
        })
    }

    /// Number of its rows, more than none.
    ///
    /// # Errors
    /// It has no rows.
    pub fn rows(&self) -> Result<u64, NpyFault> {
        match self.shape.first() {
            None => Err(NpyFault::Scalar),
            Some(0) => Err(NpyFault::NoRows),
            Some(&rows) => Ok(rows as u64),
        }
    }

    /// Bytes of all elements.
    pub fn data_bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().map(|&axis| axis as u64).product();
        elements * self.element_bytes() as u64
    }

    /// The datatypes of a header all have elements of one length.
    pub fn element_bytes(&self) -> usize {
        self.datatype.element_bytes().unwrap_or(0)
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        let elements: usize = self.shape.iter().skip(1).product();
        elements * self.element_bytes()
    }

    /// The header as bytes. Its length depends on everything but the number of rows, which may so be written over.
    ///
    /// `None` if NumPy has no such elements.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let descr = descr(self.datatype)?;
        let (rows, tail) = self.shape.split_first()?;
        let tail: String = tail.iter().map(|axis| format!(" {axis},")).collect();
        let text = |rows: &str| format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({rows},{tail}), }}");
        let longest = MAGIC.len() + 4 + text(&u64::MAX.to_string()).len() + 1;
        let length = longest.next_multiple_of(ALIGNMENT) - MAGIC.len() - 4;
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend(u16::try_from(length).ok()?.to_le_bytes());
        bytes.extend(format!("{:<1$}\n", text(&rows.to_string()), length - 1).as_bytes());
        Some(bytes)
    }
}

/// What stands behind a key; NumPy writes the keys in quotes, and writes nothing else that looks like one.
fn value<'a>(text: &'a str, key: &str) -> Result<&'a str, NpyFault> {
    let (_, rest) = text.split_once(&format!("'{key}':")).ok_or(NpyFault::NotNpy)?;
    Ok(rest.trim_start())
}

/// The datatype, and true if its elements are big-endian.
fn datatype(descr: &str) -> Option<(Datatype, bool)> {
    let (order, name) = descr.split_at_checked(1)?;
    let known = TYPES.iter().find(|(_, known)| *known == name)?.0;
    // `|` is for elements of one byte, which have no order; `=` is that of a machine nobody names.
    let one_byte = known.element_bytes() == Some(1);
    (matches!(order, "<" | ">") || (order == "|" && one_byte)).then_some((known, order == ">" && !one_byte))
}

fn descr(datatype: Datatype) -> Option<String> {
    let (_, name) = TYPES.iter().find(|(known, _)| *known == datatype)?;
    let order = if datatype.element_bytes() == Some(1) { '|' } else { '<' };
    Some(format!("{order}{name}"))
}

fn exactly<const N: usize>(file: &mut impl Read) -> Result<[u8; N], NpyFault> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes).map_err(not_npy)?;
    Ok(bytes)
}

fn not_npy(error: io::Error) -> NpyFault {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => NpyFault::NotNpy,
        _ => error.into(),
    }
}

/// Why a file cannot be sent as rows.
#[derive(Debug, thiserror::Error)]
pub enum NpyFault {
    #[error("it is empty")]
    Empty,
    #[error("it is no .npy file")]
    NotNpy,
    #[error("it is an .npy file of version {0}; known are 1 to 3")]
    Version(u8),
    #[error("its elements are records; allowed are numbers")]
    Structured,
    #[error(
        "its elements are of type `{0}`; allowed are float16, float32, float64, int8 to int64, uint8 to uint64 and bool"
    )]
    Type(String),
    #[error("it holds a single number; the first axis must count the rows")]
    Scalar,
    #[error("it has no rows")]
    NoRows,
    #[error("its shape {0:?} is too big")]
    TooBig(Vec<usize>),
    #[error("cannot read it")]
    Io(#[from] io::Error),
}

const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy aligns the data so that they can be mapped into memory.
const ALIGNMENT: usize = 64;
/// NumPy itself refuses more than 10,000 by default.
const HEADER_BYTES_MAX: u32 = 65_536;
const TYPES: [(Datatype, &str); 12] = [
    (Datatype::Bool, "b1"),
    (Datatype::Uint8, "u1"),
    (Datatype::Uint16, "u2"),
    (Datatype::Uint32, "u4"),
    (Datatype::Uint64, "u8"),
    (Datatype::Int8, "i1"),
    (Datatype::Int16, "i2"),
    (Datatype::Int32, "i4"),
    (Datatype::Int64, "i8"),
    (Datatype::Fp16, "f2"),
    (Datatype::Fp32, "f4"),
    (Datatype::Fp64, "f8"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, dict: &str) -> Vec<u8> {
        let mut bytes = [MAGIC, &[version, 0]].concat();
        let length = u32::try_from(dict.len()).unwrap().to_le_bytes();
        bytes.extend(if version == 1 { &length[..2] } else { &length[..] });
        bytes.extend(dict.as_bytes());
        bytes
    }

    fn dict(descr: &str, fortran: &str, shape: &str) -> String {
        format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n")
    }

    #[test]
    fn what_ndarray_npy_writes_is_read_and_what_we_write_it_reads() {
        use ndarray_npy::{ReadNpyExt, WriteNpyExt};
        let array = ndarray::arr2(&[[1.0_f32, 2.0, 3.0], [4.0, 5.0, 6.0]]);
        let mut theirs = Vec::new();
        array.write_npy(&mut theirs).unwrap();

        let mut rest = &theirs[..];
        let header = Header::read(&mut rest).unwrap();
        let ours = [header.encode().unwrap(), rest.to_vec()].concat();

        assert_eq!(header.datatype, Datatype::Fp32);
        assert_eq!(header.shape, [2, 3]);
        assert_eq!(ndarray::Array2::<f32>::read_npy(&ours[..]).unwrap(), array);
    }

    #[test]
    fn every_type_and_shape_comes_back_as_it_was_written_in_a_header_of_one_length() {
        for (datatype, _) in TYPES {
            for tail in [&[][..], &[10], &[3, 224, 224]] {
                let header = |rows: usize| Header::new(datatype, [&[rows], tail].concat());

                let (few, many) = (header(1).encode().unwrap(), header(1 << 40).encode().unwrap());

                assert_eq!(Header::read(&mut &few[..]).unwrap(), header(1));
                assert_eq!(few.len(), many.len());
                assert_eq!(few.len() % ALIGNMENT, 0);
            }
        }
    }

    #[test]
    fn all_versions_are_read() {
        for version in 1..=3 {
            let header = Header::read(&mut &file(version, &dict("'<i8'", "False", "(5,)"))[..]).unwrap();

            assert_eq!((header.datatype, header.shape), (Datatype::Int64, vec![5]));
        }
    }

    #[test]
    fn orders_of_elements_and_bytes_are_read() {
        for (descr, fortran, expected) in [
            ("'<f8'", "True", (true, false)),
            ("'>f8'", "False", (false, true)),
            ("'>u1'", "True", (true, false)),
        ] {
            let header = Header::read(&mut &file(1, &dict(descr, fortran, "(5, 2)"))[..]).unwrap();

            assert_eq!((header.is_fortran, header.is_big_endian), expected);
        }
        let one_axis = Header::read(&mut &file(1, &dict("'<f8'", "True", "(5,)"))[..]).unwrap();
        assert!(!one_axis.is_fortran);
    }

    #[test]
    fn what_cannot_be_sent_is_refused_in_a_sentence() {
        for (bytes, sentence) in [
            (vec![], "it is empty"),
            (b"a,b\n1,2\n".to_vec(), "no .npy file"),
            (b"\x93NUM".to_vec(), "no .npy file"),
            (file(9, ""), "version 9"),
            (file(1, &dict("'=f4'", "False", "(5, 2)")), "`=f4`"),
            (file(1, &dict("'<c8'", "False", "(5, 2)")), "`<c8`"),
            (file(1, &dict("'<U3'", "False", "(5, 2)")), "`<U3`"),
            (file(1, &dict("[('a', '<f4')]", "False", "(5,)")), "records"),
            (file(1, &dict("'<f4'", "False", "()")), "single number"),
            (file(1, &dict("'<f4'", "False", "(0, 2)")), "no rows"),
            (file(1, &dict("'<f4'", "False", "(9223372036854775807, 9)")), "too big"),
        ] {
            let header = Header::read(&mut &bytes[..]);
            let fault = header.and_then(|header| header.rows()).unwrap_err().to_string();

            assert!(fault.contains(sentence), "{fault}");
        }
    }

    #[test]
    fn a_header_cut_anywhere_is_refused() {
        let whole = file(1, &dict("'<f4'", "False", "(5, 2)"));
        for length in 0..whole.len() {
            assert!(Header::read(&mut &whole[..length]).is_err(), "{length}");
        }
    }
}
