//! The rows to be predicted: a `.npy` or `.csv` file, read in blocks of one job each.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::npy::{Header, NpyFault};
use super::table::{FirstLine, Table, TableFault};
use crate::wire::tensor::{Datatype, Tensor};

/// How the rows are to be read.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    pub rows_per_job: Option<usize>,
    /// Of the numbers of a table; an `.npy` file knows its own.
    pub datatype: Option<Datatype>,
    pub first_line: FirstLine,
}

/// A file of rows. As an iterator it gives one tensor, without a name, for each job.
pub struct Rows {
    path: PathBuf,
    source: Source,
    rows_per_job: usize,
    rows_read: u64,
    file_bytes: u64,
}

enum Source {
    Npy {
        file: BufReader<File>,
        header: Header,
    },
    Table {
        table: Box<Table<File>>,
        datatype: Datatype,
    },
}

impl Rows {
    /// # Errors
    /// There is no such file, or nothing in it can be sent.
    pub fn open(path: &Path, reading: Reading) -> Result<Self, InputError> {
        Self::try_open(path, reading).map_err(|fault| InputError {
            path: path.to_owned(),
            fault,
        })
    }

    fn try_open(path: &Path, reading: Reading) -> Result<Self, InputFault> {
        let file = File::open(path)?;
        let file_bytes = file.metadata()?.len();
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let source = match extension.to_str() {
            Some("npy") if reading.datatype.is_some() => return Err(InputFault::DatatypeOfNpy),
            Some("npy") => open_npy(file, file_bytes)?,
            Some("csv") => {
                let datatype = reading.datatype.unwrap_or(Datatype::Fp32);
                let table = Box::new(Table::open(file, datatype, reading.first_line)?);
                Source::Table { table, datatype }
            }
            _ => return Err(InputFault::Extension),
        };
        let row_bytes = match &source {
            Source::Npy { header, .. } => header.row_bytes(),
            Source::Table { table, datatype } => table.columns() * datatype.element_bytes().unwrap_or(0),
        };
        let fitting = (JOB_BYTES / row_bytes.max(1)).clamp(1, ROWS_PER_JOB_MAX);
        Ok(Self {
            path: path.to_owned(),
            source,
            rows_per_job: reading.rows_per_job.unwrap_or(fitting),
            rows_read: 0,
            file_bytes,
        })
    }

    /// Rows of the whole file, if it says so itself.
    pub fn total(&self) -> Option<u64> {
        match &self.source {
            Source::Npy { header, .. } => Some(header.shape[0] as u64),
            Source::Table { .. } => None,
        }
    }

    /// Rows of the whole file: of a table guessed by the length of the lines so far.
    pub fn total_guess(&self) -> u64 {
        self.total().unwrap_or_else(|| match &self.source {
            Source::Table { table, .. } if self.rows_read > 0 => {
                let row_bytes = table.bytes_taken() as f64 / self.rows_read as f64;
                ((self.file_bytes as f64 / row_bytes) as u64).max(self.rows_read)
            }
            _ => 0,
        })
    }

    fn read(&mut self) -> Result<Option<Tensor>, InputFault> {
        let mut data = Vec::new();
        let (rows, datatype, tail) = match &mut self.source {
            Source::Npy { file, header } => {
                let left = header.shape[0] as u64 - self.rows_read;
                let rows = left.min(self.rows_per_job as u64) as usize;
                data.resize(rows * header.row_bytes(), 0);
                file.read_exact(&mut data)?;
                (rows, header.datatype, header.shape[1..].to_vec())
            }
            Source::Table { table, datatype } => {
                let mut rows = 0;
                while rows < self.rows_per_job && table.read_row(*datatype, &mut data)? {
                    rows += 1;
                }
                (rows, *datatype, vec![table.columns()])
            }
        };
        self.rows_read += rows as u64;
        Ok((rows > 0).then(|| Tensor {
            name: String::new(),
            datatype,
            shape: [vec![rows], tail].concat(),
            data: data.into(),
        }))
    }
}

impl Iterator for Rows {
    type Item = Result<Tensor, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read().map_err(|fault| InputError {
            path: self.path.clone(),
            fault,
        });
        read.transpose()
    }
}

fn open_npy(file: File, file_bytes: u64) -> Result<Source, InputFault> {
    let mut file = BufReader::with_capacity(READ_BYTES, file);
    let header = Header::read(&mut file)?;
    let came = file_bytes.saturating_sub(std::io::Seek::stream_position(&mut file)?);
    let promised = header.shape[0] as u64 * header.row_bytes() as u64;
    // Looked at first, so that nothing is sent of a file that turns out to be cut.
    if came < promised {
        return Err(InputFault::Cut { came, promised });
    }
    Ok(Source::Npy { file, header })
}

/// A file of rows cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}", path.display())]
pub struct InputError {
    path: PathBuf,
    #[source]
    fault: InputFault,
}

#[derive(Debug, thiserror::Error)]
pub enum InputFault {
    #[error("its name must end in .npy or .csv")]
    Extension,
    #[error("--datatype is for .csv; an .npy file has its own")]
    DatatypeOfNpy,
    #[error("it is cut: it holds {came} bytes of data, its header promises {promised}")]
    Cut { came: u64, promised: u64 },
    #[error(transparent)]
    Npy(#[from] NpyFault),
    #[error(transparent)]
    Table(#[from] TableFault),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A job of this size costs a broker little more than a small one, and a worker of 64 rows still gets several runs.
const JOB_BYTES: usize = 64 * 1024;
const ROWS_PER_JOB_MAX: usize = 256;
const READ_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        (folder, path)
    }

    fn reading(rows_per_job: Option<usize>) -> Reading {
        Reading {
            rows_per_job,
            datatype: None,
            first_line: FirstLine::Unsaid,
        }
    }

    fn npy(shape: &[usize]) -> Vec<u8> {
        let header = Header {
            datatype: Datatype::Uint8,
            shape: shape.to_vec(),
        };
        let count = shape.iter().product::<usize>();
        [header.encode().unwrap(), (0..count).map(|i| i as u8).collect()].concat()
    }

    fn shapes(rows: Rows) -> Vec<Vec<usize>> {
        rows.map(|tensor| tensor.unwrap().shape).collect()
    }

    #[test]
    fn the_blocks_of_a_file_are_all_of_its_rows_in_order() {
        let (_folder, path) = file("x.npy", &npy(&[5, 2, 3]));

        let rows = Rows::open(&path, reading(Some(2))).unwrap();
        assert_eq!(rows.total(), Some(5));
        let tensors: Vec<Tensor> = rows.map(Result::unwrap).collect();

        let shapes: Vec<_> = tensors.iter().map(|tensor| &tensor.shape[..]).collect();
        assert_eq!(shapes, [[2, 2, 3], [2, 2, 3], [1, 2, 3]]);
        let data: Vec<u8> = tensors.iter().flat_map(|tensor| tensor.data.to_vec()).collect();
        assert_eq!(data, (0..30).collect::<Vec<u8>>());
    }

    #[test]
    fn a_table_is_read_in_blocks_and_its_rows_are_guessed() {
        let (_folder, path) = file("x.CSV", b"a,b\n1,2\n3,4\n5,6\n");

        let mut rows = Rows::open(&path, reading(Some(2))).unwrap();
        let first = rows.next().unwrap().unwrap();
        let guess = rows.total_guess();

        assert_eq!(first.shape, [2, 2]);
        assert!((2..=4).contains(&guess), "{guess}");
        assert_eq!(shapes(rows), [[1, 2]]);
    }

    #[test]
    fn small_rows_travel_together_and_big_ones_alone() {
        for (shape, rows_per_job) in [(&[600, 1][..], 256), (&[300, 1_024], 64), (&[2, 100_000], 1)] {
            let (_folder, path) = file("x.npy", &npy(shape));

            let first = Rows::open(&path, reading(None)).unwrap().next().unwrap().unwrap();

            assert_eq!(first.shape[0], rows_per_job);
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_the_reason() {
        let whole = npy(&[5, 2]);
        for (name, content, reason) in [
            (
                "x.npy",
                &whole[..whole.len() - 1],
                "it holds 9 bytes of data, its header promises 10",
            ),
            ("x.npy", b"", "it is empty"),
            ("x.csv", b"", "it is empty"),
            ("x.txt", b"1,2", "must end in .npy or .csv"),
        ] {
            let (_folder, path) = file(name, content);

            let error = Rows::open(&path, reading(None)).err().unwrap();

            let text = crate::error::chain(&error);
            assert!(text.contains(path.to_str().unwrap()) && text.contains(reason), "{text}");
        }
    }
}
