//! The arrays of an `.npz` archive, each read where it lies and as it is compressed, in any order and side by side.
//!
//! The list of contents is the `zip` crate's work. Its reader of a member borrows the archive, so that only one could be read at a
//! time; members are opened here, which takes their offset and `flate2`.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use flate2::Crc;
use flate2::bufread::DeflateDecoder;
use zip::{CompressionMethod, ZipArchive};

use super::array::{Array, Section, Stream};
use super::npy::NpyFault;

/// An array of an archive, and the input of the model that takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pick {
    pub array: String,
    /// Empty: the only one.
    pub input: String,
}

/// Opens the arrays that are asked for, or else the only one.
///
/// # Errors
/// It is no archive, has no such array, or one that cannot be read.
pub fn open(file: &Arc<File>, picks: &[Pick], input: &str) -> Result<Vec<Array>, NpzFault> {
    let mut archive = ZipArchive::new(BufReader::new(file.try_clone()?)).map_err(NpzFault::Archive)?;
    let names: Vec<String> = archive.file_names().map(array_name).collect();
    let only;
    let picks = match (picks, &names[..]) {
        ([], []) => return Err(NpzFault::Empty),
        ([], [name]) => {
            only = [Pick {
                array: name.clone(),
                input: input.to_owned(),
            }];
            &only[..]
        }
        ([], several) => return Err(NpzFault::Several(several.join(", "))),
        (picks, _) => picks,
    };
    picks
        .iter()
        .map(|pick| member(&mut archive, file, pick, &names))
        .collect()
}

fn array_name(member: &str) -> String {
    member.strip_suffix(".npy").unwrap_or(member).to_owned()
}

fn member(
    archive: &mut ZipArchive<BufReader<File>>,
    file: &Arc<File>,
    pick: &Pick,
    names: &[String],
) -> Result<Array, NpzFault> {
    let array = || pick.array.clone();
    let index = names.iter().position(|name| *name == pick.array);
    let index = index.ok_or_else(|| NpzFault::NoArray {
        array: array(),
        names: names.join(", "),
    })?;
    let member = archive.by_index_raw(index).map_err(NpzFault::Archive)?;
    if member.encrypted() {
        return Err(NpzFault::Encrypted(array()));
    }
    let section = Section {
        file: file.clone(),
        at: member.data_start(),
        left: member.compressed_size(),
    };
    let packed = BufReader::with_capacity(READ_BYTES, section);
    let data: Box<dyn Read + Send> = match member.compression() {
        CompressionMethod::Stored => Box::new(packed),
        CompressionMethod::Deflated => Box::new(DeflateDecoder::new(packed)),
        other => return Err(NpzFault::Method(array(), other.to_string())),
    };
    let checked = Checked {
        data,
        sum: Crc::new(),
        promised: member.crc32(),
    };
    let opened = Array::open(pick.input.clone(), Box::new(Stream(checked)));
    opened.map_err(|fault| NpzFault::Array { array: array(), fault })
}

/// Compares the checksum at the end.
struct Checked<R> {
    data: R,
    sum: Crc,
    promised: u32,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.data.read(buffer)?;
        self.sum.update(&buffer[..read]);
        if read == 0 && !buffer.is_empty() && self.sum.sum() != self.promised {
            let reason = "it is damaged: an array has not the checksum that the archive states";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Ok(read)
    }
}

/// Why an archive cannot be sent as rows.
#[derive(Debug, thiserror::Error)]
pub enum NpzFault {
    #[error("it is no whole .npz archive")]
    Archive(#[source] zip::result::ZipError),
    #[error("it holds no arrays")]
    Empty,
    #[error("it holds several arrays, so --array must name one: {0}")]
    Several(String),
    #[error("it holds no array `{array}`; it holds: {names}")]
    NoArray { array: String, names: String },
    #[error("array `{0}` is encrypted")]
    Encrypted(String),
    #[error(
        "array `{0}` is compressed by {1}; allowed are numpy.savez and numpy.savez_compressed, which deflate or store"
    )]
    Method(String, String),
    #[error("array `{array}` cannot be sent")]
    Array {
        array: String,
        #[source]
        fault: NpyFault,
    },
    #[error("cannot read it")]
    Io(#[from] io::Error),
}

const READ_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ndarray::{Array2, arr2};
    use ndarray_npy::NpzWriter;

    use super::*;
    use crate::cli::predict::array::Arrays;
    use crate::cli::predict::columns::Choice;
    use crate::cli::predict::rows::Source as _;

    fn archive(path: &Path, compressed: bool, arrays: &[(&str, Array2<f32>)]) {
        let file = File::create(path).unwrap();
        let mut writer = if compressed {
            NpzWriter::new_compressed(file)
        } else {
            NpzWriter::new(file)
        };
        for (name, array) in arrays {
            writer.add_array(*name, array).unwrap();
        }
        writer.finish().unwrap();
    }

    fn pick(array: &str, input: &str) -> Pick {
        Pick {
            array: array.to_owned(),
            input: input.to_owned(),
        }
    }

    fn opened(path: &Path, picks: &[Pick]) -> Result<Vec<Array>, NpzFault> {
        open(&Arc::new(File::open(path).unwrap()), picks, "x")
    }

    fn all(folder: &Path) -> [(&'static str, Array2<f32>); 2] {
        let _ = folder;
        [
            ("a", arr2(&[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])),
            ("b", arr2(&[[7.0], [8.0], [9.0]])),
        ]
    }

    #[test]
    fn arrays_are_read_side_by_side_stored_and_deflated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npz");
        for compressed in [false, true] {
            archive(&path, compressed, &all(folder.path()));

            let arrays = opened(&path, &[pick("b", "second"), pick("a", "first")]).unwrap();
            let mut arrays = Arrays::new(arrays, &Choice::default()).unwrap();
            arrays.skip(1).unwrap();
            let block = arrays.read(9).unwrap().unwrap();

            assert_eq!(block.inputs[0].name, "second");
            assert_eq!(block.inputs[0].data[..4], 8.0_f32.to_le_bytes());
            assert_eq!(block.inputs[1].shape, [2, 2]);
            assert_eq!(block.inputs[1].data[12..], 6.0_f32.to_le_bytes());
            assert!(arrays.read(9).unwrap().is_none());
        }
    }

    #[test]
    fn what_cannot_be_opened_is_named_with_what_there_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npz");
        archive(&path, true, &all(folder.path()));
        let whole = std::fs::read(&path).unwrap();

        let several = opened(&path, &[]).err().unwrap().to_string();
        let none = opened(&path, &[pick("c", "")]).err().unwrap().to_string();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let cut = opened(&path, &[]).err().unwrap().to_string();
        archive(&path, false, &[]);
        let empty = opened(&path, &[]).err().unwrap().to_string();

        assert_eq!(several, "it holds several arrays, so --array must name one: a, b");
        assert_eq!(none, "it holds no array `c`; it holds: a, b");
        assert_eq!(cut, "it is no whole .npz archive");
        assert_eq!(empty, "it holds no arrays");
    }

    #[test]
    fn a_damaged_array_is_found_at_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npz");
        archive(&path, false, &all(folder.path())[..1]);
        let mut bytes = std::fs::read(&path).unwrap();
        let needle = 5.0_f32.to_le_bytes();
        let at = bytes.windows(4).position(|window| window == needle).unwrap();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();

        let mut arrays = Arrays::new(opened(&path, &[]).unwrap(), &Choice::default()).unwrap();
        let first = arrays.read(2).map(|block| block.is_some());
        let last = arrays.read(2).unwrap_err();

        assert!(first.unwrap());
        assert!(crate::error::chain(&last).contains("it is damaged"), "{last}");
    }
}
