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
use super::arrays::Arrays;
use super::block::Block;
use super::columns::Choice;
use super::faults::InputFault;
use super::inputs::Sending;
use super::npy::NpyFault;
use super::rows::Source;

/// An array of an archive, and the input of the model that takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pick {
    pub array: String,
    /// Empty: the only one.
    pub input: String,
}

/// The arrays of an archive, which are chosen when the inputs of the model are known.
pub struct Archive {
    file: Arc<File>,
    names: Vec<String>,
    choice: Choice,
    arrays: Option<Arrays>,
}

/// Opens the arrays that are asked for, or else the only one; of several those are taken that have the names of all inputs, as soon
/// as these are known.
///
/// # Errors
/// It is no archive, has no such array, or one that cannot be read.
pub fn open(file: &Arc<File>, picks: &[Pick], choice: &Choice) -> Result<Archive, InputFault> {
    let names = names(file)?;
    let only = match &names[..] {
        [name] if picks.is_empty() => Some(pick(name, "")),
        _ => None,
    };
    let picks = if picks.is_empty() { only.as_slice() } else { picks };
    let arrays = match (picks, choice.is_everything()) {
        ([], true) => None,
        // Columns are of one array.
        ([], false) => return Err(NpzFault::Several(names.join(", ")).into()),
        (picks, _) => Some(Arrays::new(members(file, picks)?, choice)?),
    };
    Ok(Archive {
        file: file.clone(),
        names,
        choice: choice.clone(),
        arrays,
    })
}

fn pick(array: &str, input: &str) -> Pick {
    Pick {
        array: array.to_owned(),
        input: input.to_owned(),
    }
}

fn archive(file: &Arc<File>) -> Result<ZipArchive<BufReader<File>>, NpzFault> {
    ZipArchive::new(BufReader::new(file.try_clone()?)).map_err(NpzFault::Archive)
}

fn names(file: &Arc<File>) -> Result<Vec<String>, NpzFault> {
    let names: Vec<String> = archive(file)?.file_names().map(array_name).collect();
    if names.is_empty() {
        return Err(NpzFault::Empty);
    }
    Ok(names)
}

fn members(file: &Arc<File>, picks: &[Pick]) -> Result<Vec<Array>, NpzFault> {
    let mut archive = archive(file)?;
    let names: Vec<String> = archive.file_names().map(array_name).collect();
    picks
        .iter()
        .map(|pick| member(&mut archive, file, pick, &names))
        .collect()
}

impl Archive {
    /// The arrays that have the names of the model's inputs, if there are no others.
    fn by_name(&self, sending: &Sending) -> Result<Arrays, InputFault> {
        let is_input = |name: &String| sending.takes.iter().any(|spec| spec.name == *name);
        let all_are_inputs = self.names.iter().all(is_input);
        if !all_are_inputs || self.names.len() != sending.takes.len() || !sending.input.is_empty() {
            return Err(NpzFault::Several(self.names.join(", ")).into());
        }
        let picks: Vec<Pick> = self.names.iter().map(|name| pick(name, name)).collect();
        Arrays::new(members(&self.file, &picks)?, &self.choice)
    }
}

impl Source for Archive {
    fn bind(&mut self, sending: &Sending) -> Result<(), InputFault> {
        let arrays = match &mut self.arrays {
            Some(arrays) => arrays,
            None => {
                let arrays = self.by_name(sending)?;
                self.arrays.insert(arrays)
            }
        };
        arrays.bind(sending)
    }

    fn read(&mut self, rows: usize) -> Result<Option<Block>, InputFault> {
        self.arrays.as_mut().map_or(Ok(None), |arrays| arrays.read(rows))
    }

    fn skip(&mut self, rows: u64) -> Result<(), InputFault> {
        self.arrays.as_mut().map_or(Ok(()), |arrays| arrays.skip(rows))
    }

    fn total(&self) -> Option<u64> {
        self.arrays.as_ref().and_then(Source::total)
    }

    fn row_bytes(&self) -> usize {
        self.arrays.as_ref().map_or(0, Source::row_bytes)
    }

    fn key_names(&self) -> &[String] {
        self.arrays.as_ref().map_or(&[], Source::key_names)
    }
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
    use crate::cli::predict::inputs::tests::{sending, spec};
    use crate::wire::tensor::Datatype;

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

    fn opened(path: &Path, picks: &[Pick], sending: &Sending) -> Result<Archive, InputFault> {
        let mut archive = open(&Arc::new(File::open(path).unwrap()), picks, &Choice::default())?;
        archive.bind(sending)?;
        Ok(archive)
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

            let picks = [pick("b", "second"), pick("a", "first")];
            let mut arrays = opened(&path, &picks, &Sending::default()).unwrap();
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

        let several = opened(&path, &[], &Sending::default()).err().unwrap().to_string();
        let none = opened(&path, &[pick("c", "")], &Sending::default())
            .err()
            .unwrap()
            .to_string();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let cut = opened(&path, &[], &Sending::default()).err().unwrap().to_string();
        archive(&path, false, &[]);
        let empty = opened(&path, &[], &Sending::default()).err().unwrap().to_string();

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

        let mut arrays = opened(&path, &[], &Sending::default()).unwrap();
        let first = arrays.read(2).map(|block| block.is_some());
        let last = arrays.read(2).unwrap_err();

        assert!(first.unwrap());
        assert!(crate::error::chain(&last).contains("it is damaged"), "{last}");
    }

    #[test]
    fn inputs_without_rows_are_given_whole_to_every_job() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npz");
        let mut writer = NpzWriter::new(File::create(&path).unwrap());
        writer
            .add_array("x", &arr2(&[[1.0_f32, 2.0], [3.0, 4.0], [5.0, 6.0]]))
            .unwrap();
        writer.add_array("scale", &ndarray::arr0(0.5_f64)).unwrap();
        writer.add_array("bias", &arr2(&[[1_i64, 2, 3]])).unwrap();
        writer.finish().unwrap();
        let takes = |bias: &[&str]| {
            sending(vec![
                spec("x", Datatype::Fp32, &["n", "2"]),
                spec("scale", Datatype::Fp32, &[]),
                spec("bias", Datatype::Fp32, bias),
            ])
        };

        for bias in [&["1", "3"][..], &["1", "k"], &["k", "3"]] {
            let mut archive = opened(&path, &[], &takes(bias)).unwrap();
            archive.skip(1).unwrap();
            let block = archive.read(1).unwrap().unwrap();

            let tensors = block.tensors();
            let shapes: Vec<&[usize]> = tensors.iter().map(|tensor| &tensor.shape[..]).collect();
            assert_eq!(shapes, [&[1, 2][..], &[], &[1, 3]]);
            assert_eq!(tensors[0].data[..], [3.0_f32, 4.0].map(f32::to_le_bytes).concat());
            assert_eq!(tensors[2].data[..], [1.0_f32, 2.0, 3.0].map(f32::to_le_bytes).concat());
            assert_eq!(archive.total(), Some(3));
        }
        let shape = opened(&path, &[], &takes(&["2", "3"])).err().unwrap().to_string();
        let rows = opened(&path, &[], &takes(&["n", "3"])).err().unwrap().to_string();
        assert!(
            shape.contains("input `bias` is given whole to each job: its shape is [1, 3]"),
            "{shape}"
        );
        assert!(rows.contains("`x` has 3 rows and `bias` has 1"), "{rows}");
    }
}
