//! The rows to be predicted, whatever they come in, read in blocks by a thread of their own.
//!
//! Its own because reading may wait, for a disk or for whoever writes into standard input, while answers come in, heartbeats
//! are due and signals want to be heard. It is at most a few blocks ahead.

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::ValueEnum;
use tokio::sync::mpsc;

use super::array::{Array, Arrays, Section, Stream};
use super::block::Block;
use super::columns::{Choice, ColumnFault};
use super::lines::{LineFault, Lines};
use super::npy::NpyFault;
use super::npz::{self, NpzFault, Pick};
use super::parquet::{ParquetFault, Records};
use super::table::{FirstLine, Table, TableFault};
use crate::wire::tensor::Datatype;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InputFormat {
    /// An array of NumPy
    Npy,
    /// An archive of arrays of NumPy
    Npz,
    /// Comma-separated cells
    Csv,
    /// Apache Parquet
    Parquet,
    /// An array of numbers or an object of columns a line
    Jsonl,
}

impl InputFormat {
    fn of(path: &Path) -> Option<Self> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        Self::from_str(extension.to_str()?, true).ok()
    }

    /// True where the file says the datatype of its numbers, and holds no others.
    fn has_datatype(self) -> bool {
        matches!(self, Self::Npy | Self::Npz)
    }
}

/// Rows that go together in one job, where the user has decided it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsPerJob {
    /// The whole file is one job.
    All,
    Rows(NonZeroUsize),
}

impl fmt::Display for RowsPerJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Rows(rows) => rows.fmt(f),
        }
    }
}

impl FromStr for RowsPerJob {
    type Err = NotRowsPerJob;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::All),
            number => number.parse().map(Self::Rows).map_err(|_| NotRowsPerJob),
        }
    }
}

/// The text says no number of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("allowed is a number from 1, or all")]
pub struct NotRowsPerJob;

/// How the rows are to be read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// `None`: as the name of the file says.
    pub format: Option<InputFormat>,
    pub rows_per_job: Option<RowsPerJob>,
    /// Of the numbers of a table; an array knows its own.
    pub datatype: Option<Datatype>,
    pub first_line: FirstLine,
    pub choice: Choice,
    pub arrays: Vec<Pick>,
    /// The input of the model that takes the rows; empty is the only one.
    pub input: String,
}

impl Reading {
    /// Every column of what the file has, or its only array.
    pub fn whole(datatype: Option<Datatype>) -> Self {
        Self {
            format: None,
            rows_per_job: None,
            datatype,
            first_line: FirstLine::Unsaid,
            choice: Choice::default(),
            arrays: Vec::new(),
            input: String::new(),
        }
    }
}

/// What gives rows.
pub trait Source: Send {
    /// Reads up to `rows` rows, more than none; `None` at the end.
    ///
    /// # Errors
    /// What comes next cannot be sent.
    fn read(&mut self, rows: usize) -> Result<Option<Block>, InputFault>;

    /// Passes over rows.
    ///
    /// # Errors
    /// The file cannot be read.
    fn skip(&mut self, rows: u64) -> Result<(), InputFault>;

    /// Rows of the whole, if it says so itself.
    fn total(&self) -> Option<u64> {
        None
    }

    /// Bytes of the file that the rows took so far; 0 where [`Self::total`] is known.
    fn taken_bytes(&self) -> u64 {
        0
    }

    /// Bytes of a row in a job.
    fn row_bytes(&self) -> usize;

    fn key_names(&self) -> &[String];
}

/// A file of rows, or standard input.
pub struct Input {
    path: PathBuf,
    file: File,
    /// `None` for what comes only once, such as a pipe.
    regular: Option<Metadata>,
}

impl Input {
    /// # Errors
    /// There is no such file, or it may not be read.
    pub fn open(path: &Path) -> Result<Self, InputError> {
        let error = |fault: io::Error| InputError::new(path, fault.into());
        let file = if is_stdin(path) {
            io::stdin().as_fd().try_clone_to_owned().map(File::from)
        } else {
            File::open(path)
        };
        let file = file.map_err(error)?;
        let metadata = file.metadata().map_err(error)?;
        if metadata.is_dir() {
            return Err(error(io::ErrorKind::IsADirectory.into()));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            regular: metadata.is_file().then_some(metadata),
        })
    }

    /// Of a file that can be read again.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.regular.as_ref()
    }

    /// Blocks of up to `rows` rows, read when they are asked for.
    ///
    /// # Errors
    /// Nothing in the file can be sent.
    pub fn blocks(
        self,
        reading: &Reading,
        rows: usize,
    ) -> Result<impl Iterator<Item = Result<Block, InputError>>, InputError> {
        let path = self.path.clone();
        let mut source = self.source(reading).map_err(|fault| InputError::new(&path, fault))?;
        let read = move || {
            source
                .read(rows)
                .map_err(|fault| InputError::new(&path, fault))
                .transpose()
        };
        Ok(std::iter::from_fn(read))
    }

    fn source(self, reading: &Reading) -> Result<Box<dyn Source>, InputFault> {
        let format = reading.format.or_else(|| InputFormat::of(&self.path));
        let format = format.ok_or(InputFault::Extension)?;
        if format.has_datatype() && reading.datatype.is_some() {
            return Err(InputFault::DatatypeOfArray);
        }
        if format != InputFormat::Npz && !reading.arrays.is_empty() {
            return Err(InputFault::ArrayOfOther);
        }
        let datatype = reading.datatype.unwrap_or(Datatype::Fp32);
        let (choice, input) = (&reading.choice, &*reading.input);
        Ok(match format {
            InputFormat::Npy => {
                let array = self.array(input.to_owned())?;
                Box::new(Arrays::new(vec![array], choice)?)
            }
            InputFormat::Npz => {
                let file = Arc::new(self.seekable()?);
                Box::new(Arrays::new(npz::open(&file, &reading.arrays, input)?, choice)?)
            }
            InputFormat::Csv => Box::new(Table::open(self.file, datatype, reading.first_line, choice, input)?),
            InputFormat::Jsonl => Box::new(Lines::open(self.file, datatype, choice, input)?),
            InputFormat::Parquet => Box::new(Records::open(self.seekable()?, datatype, choice, input)?),
        })
    }

    fn array(self, name: String) -> Result<Array, InputFault> {
        let Some(metadata) = self.regular else {
            return Ok(Array::open(name, Box::new(Stream(self.file)))?);
        };
        let section = Section {
            file: Arc::new(self.file),
            at: 0,
            left: metadata.len(),
        };
        let array = Array::open(name, Box::new(section))?;
        let came = metadata.len().saturating_sub(array.header_bytes());
        let promised = array.header().shape[0] as u64 * array.header().row_bytes() as u64;
        // Looked at first, so that nothing is sent of a file that turns out to be cut.
        if came < promised {
            return Err(InputFault::Cut { came, promised });
        }
        Ok(array)
    }

    fn seekable(self) -> Result<File, InputFault> {
        match self.regular {
            Some(_) => Ok(self.file),
            None => Err(InputFault::NoFile),
        }
    }
}

/// Whether the name stands for standard input.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Blocks of rows, each as big as a job may be.
pub struct Rows {
    path: PathBuf,
    /// `None` is the end of the file; a thread that ends without a word has not come so far.
    blocks: mpsc::Receiver<Result<Option<Delivered>, InputError>>,
    /// The rest of a block that was too big.
    rest: Option<Block>,
    /// Set where the model takes fewer rows than a block has.
    rows_max: usize,
    key_names: Vec<String>,
    total: Option<u64>,
    total_guess: u64,
}

/// A block, and how many rows there are in all by what is known so far.
struct Delivered {
    block: Block,
    total_guess: u64,
}

impl Rows {
    /// Begins to read, after the first `skipped` rows.
    ///
    /// # Errors
    /// Nothing in the file can be sent.
    pub fn open(input: Input, reading: &Reading, skipped: u64) -> Result<Self, InputError> {
        let path = input.path.clone();
        let file_bytes = input.regular.as_ref().map_or(0, Metadata::len);
        let opened = input.source(reading).and_then(|mut source| {
            source.skip(skipped)?;
            Ok(source)
        });
        let source = opened.map_err(|fault| InputError::new(&path, fault))?;
        let fitting = (JOB_BYTES / source.row_bytes().max(1)).clamp(1, ROWS_PER_JOB_MAX);
        // A power of two: batches are as big, and one row more than a batch would be another run.
        let fitting = 1 << fitting.ilog2();
        Ok(Self::start(Reader {
            path,
            source,
            file_bytes,
            block_rows: match reading.rows_per_job {
                Some(RowsPerJob::Rows(rows)) => rows.get(),
                Some(RowsPerJob::All) | None => fitting,
            },
            is_one_job: reading.rows_per_job == Some(RowsPerJob::All),
            rows: skipped,
        }))
    }

    fn start(reader: Reader) -> Self {
        let (key_names, total) = (reader.source.key_names().to_vec(), reader.source.total());
        let (sender, blocks) = mpsc::channel(BLOCKS_AHEAD);
        let rows_max = if reader.is_one_job {
            usize::MAX
        } else {
            reader.block_rows
        };
        let path = reader.path.clone();
        std::thread::spawn(move || reader.run(&sender));
        Self {
            path,
            blocks,
            rest: None,
            rows_max,
            key_names,
            total,
            total_guess: total.unwrap_or(0),
        }
    }

    pub fn key_names(&self) -> &[String] {
        &self.key_names
    }

    /// Rows of the whole file, if it says so itself.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// Rows of the whole file: of a table guessed by the length of the lines so far; 0 if nobody can tell.
    pub fn total_guess(&self) -> u64 {
        self.total_guess
    }

    /// From here on a block has at most so many rows.
    pub fn cut_to(&mut self, rows_max: usize) {
        self.rows_max = rows_max;
    }

    /// Puts rows back that are to come next.
    pub fn put_back(&mut self, rest: Block) {
        self.rest = Some(rest);
    }

    /// The next block; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Block, InputError>> {
        let mut block = match self.rest.take() {
            Some(rest) => rest,
            None => match self.blocks.recv().await {
                Some(Ok(Some(read))) => {
                    self.total_guess = read.total_guess;
                    read.block
                }
                Some(Ok(None)) => return None,
                Some(Err(error)) => return Some(Err(error)),
                None => return Some(Err(InputError::new(&self.path, InputFault::BrokenOff))),
            },
        };
        self.rest = block.split_off(self.rows_max);
        Some(Ok(block))
    }
}

/// What the thread works on.
struct Reader {
    path: PathBuf,
    source: Box<dyn Source>,
    file_bytes: u64,
    /// Rows that are read at a time.
    block_rows: usize,
    /// Set where all rows of the file go together.
    is_one_job: bool,
    rows: u64,
}

impl Reader {
    /// Ends with the file, at its first fault, or when nobody wants more.
    fn run(mut self, blocks: &mpsc::Sender<Result<Option<Delivered>, InputError>>) {
        loop {
            let read = match self.read() {
                Ok(None) => Ok(None),
                Ok(Some(block)) => {
                    self.rows += block.rows() as u64;
                    let total_guess = self.total_guess();
                    Ok(Some(Delivered { block, total_guess }))
                }
                Err(fault) => Err(InputError::new(&self.path, fault)),
            };
            let is_last = !matches!(read, Ok(Some(_)));
            if blocks.blocking_send(read).is_err() || is_last {
                return;
            }
        }
    }

    fn read(&mut self) -> Result<Option<Block>, InputFault> {
        if !self.is_one_job {
            return self.source.read(self.block_rows);
        }
        let mut blocks = Vec::new();
        // Not at once: a header may promise more than there will ever be memory for.
        while let Some(block) = self.source.read(self.block_rows)? {
            blocks.push(block);
        }
        if blocks.is_empty() {
            return Ok(None);
        }
        Block::concat(blocks).map(Some).ok_or(InputFault::BrokenOff)
    }

    fn total_guess(&self) -> u64 {
        self.source.total().unwrap_or_else(|| {
            let row_bytes = self.source.taken_bytes() as f64 / self.rows.max(1) as f64;
            let guess = (self.file_bytes as f64 / row_bytes) as u64;
            if self.file_bytes == 0 { 0 } else { guess.max(self.rows) }
        })
    }
}

/// A file of rows cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}", if is_stdin(.path) { "standard input".into() } else { .path.to_string_lossy() })]
pub struct InputError {
    path: PathBuf,
    #[source]
    fault: InputFault,
}

impl InputError {
    fn new(path: &Path, fault: InputFault) -> Self {
        Self {
            path: path.to_owned(),
            fault,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum InputFault {
    #[error("its name must end in .npy, .npz, .csv, .parquet or .jsonl, or --input-format must say what it is")]
    Extension,
    #[error("--datatype is for tables (.csv, .jsonl, .parquet); arrays have their own")]
    DatatypeOfArray,
    #[error("--array is for .npz; nothing else holds several")]
    ArrayOfOther,
    #[error("its contents are listed at its end, so it must be a file and no pipe")]
    NoFile,
    #[error("it is cut: it holds {came} bytes of data, its header promises {promised}")]
    Cut { came: u64, promised: u64 },
    #[error("`{one}` has {rows} rows and `{other}` has {other_rows}; inputs of one model have as many each")]
    Lengths {
        one: String,
        rows: u64,
        other: String,
        other_rows: u64,
    },
    #[error("--columns and --key are for one array; several of them are sent whole")]
    ColumnsOfArrays,
    #[error(transparent)]
    Columns(#[from] ColumnFault),
    #[error(transparent)]
    Npy(#[from] NpyFault),
    #[error(transparent)]
    Npz(#[from] NpzFault),
    #[error(transparent)]
    Table(#[from] TableFault),
    #[error(transparent)]
    Lines(#[from] LineFault),
    #[error(transparent)]
    Parquet(#[from] ParquetFault),
    #[error("reading it broke off, by a mistake in inferq: not all of its rows were sent")]
    BrokenOff,
    #[error("cannot read it")]
    Io(#[from] io::Error),
}

/// A job of this size costs a broker little more for each row than a bigger one does (`benches/plots/growth.md`), and rows of
/// 4 kB fill one run of a worker, which takes 64 of them at a time.
const JOB_BYTES: usize = 256 * 1024;
const ROWS_PER_JOB_MAX: usize = 256;
/// Blocks that are read before anybody wants them.
const BLOCKS_AHEAD: usize = 4;

#[cfg(test)]
mod tests {
    use super::super::npy::Header;
    use super::*;
    use crate::wire::tensor::Tensor;

    fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        (folder, path)
    }

    fn reading(rows_per_job: usize) -> Reading {
        Reading {
            rows_per_job: NonZeroUsize::new(rows_per_job).map(RowsPerJob::Rows),
            ..Reading::whole(None)
        }
    }

    fn open(path: &Path, reading: &Reading, skipped: u64) -> Result<Rows, InputError> {
        Rows::open(Input::open(path)?, reading, skipped)
    }

    fn npy(shape: &[usize]) -> Vec<u8> {
        let header = Header {
            datatype: Datatype::Uint8,
            shape: shape.to_vec(),
        };
        let count = shape.iter().product::<usize>();
        [header.encode().unwrap(), (0..count).map(|i| i as u8).collect()].concat()
    }

    async fn tensors(rows: &mut Rows) -> Vec<Tensor> {
        let mut tensors = Vec::new();
        while let Some(block) = rows.next().await {
            tensors.push(block.unwrap().inputs.remove(0));
        }
        tensors
    }

    fn shapes(tensors: &[Tensor]) -> Vec<&[usize]> {
        tensors.iter().map(|tensor| &tensor.shape[..]).collect()
    }

    #[tokio::test]
    async fn the_blocks_of_a_file_are_all_of_its_rows_in_order() {
        let (_folder, path) = file("x.npy", &npy(&[5, 2, 3]));

        let mut rows = open(&path, &reading(2), 0).unwrap();
        assert_eq!(rows.total(), Some(5));
        let tensors = tensors(&mut rows).await;

        assert_eq!(shapes(&tensors), [[2, 2, 3], [2, 2, 3], [1, 2, 3]]);
        let data: Vec<u8> = tensors.iter().flat_map(|tensor| tensor.data.to_vec()).collect();
        assert_eq!(data, (0..30).collect::<Vec<u8>>());
    }

    #[tokio::test]
    async fn rows_that_were_done_before_are_passed_over() {
        for (name, content) in [
            ("x.npy", npy(&[5, 1])),
            ("x.csv", b"a\n0\n1\n2\n3\n4\n".to_vec()),
            ("x.jsonl", b"[0]\n[1]\n\n[2]\n[3]\n[4]\n".to_vec()),
        ] {
            let (_folder, path) = file(name, &content);
            let datatype = (name != "x.npy").then_some(Datatype::Uint8);
            let reading = Reading { datatype, ..reading(2) };

            let left = tensors(&mut open(&path, &reading, 3).unwrap()).await;
            let none = tensors(&mut open(&path, &reading, 5).unwrap()).await;

            assert_eq!(
                left.iter().map(|tensor| &tensor.data[..]).collect::<Vec<_>>(),
                [[3, 4]],
                "{name}"
            );
            assert!(none.is_empty(), "{name}");
        }
    }

    #[tokio::test]
    async fn a_table_is_read_in_blocks_and_its_rows_are_guessed() {
        let (_folder, path) = file("x.CSV", b"a,b\n1,2\n3,4\n5,6\n");

        let mut rows = open(&path, &reading(2), 0).unwrap();
        let first = rows.next().await.unwrap().unwrap();
        let guess = rows.total_guess();

        assert_eq!(first.inputs[0].shape, [2, 2]);
        assert!((2..=4).contains(&guess), "{guess}");
        assert_eq!(shapes(&tensors(&mut rows).await), [[1, 2]]);
    }

    #[tokio::test]
    async fn small_rows_travel_together_and_big_ones_alone() {
        for (shape, rows_per_job) in [(&[600, 1][..], 256), (&[300, 4_096], 64), (&[2, 300_000], 1)] {
            let (_folder, path) = file("x.npy", &npy(shape));
            let reading = Reading {
                rows_per_job: None,
                ..reading(1)
            };

            let first = open(&path, &reading, 0).unwrap().next().await.unwrap().unwrap();

            assert_eq!(first.rows(), rows_per_job);
        }
    }

    #[tokio::test]
    async fn all_rows_of_a_file_go_together_with_their_keys() {
        let lines: String = (0..700).map(|row| format!("{row},{}\n", row % 256)).collect();
        let (_folder, path) = file("x.csv", format!("id,a\n{lines}").as_bytes());
        let reading = Reading {
            rows_per_job: Some(RowsPerJob::All),
            datatype: Some(Datatype::Uint8),
            choice: Choice {
                columns: Vec::new(),
                keys: vec!["id".to_owned()],
            },
            ..Reading::whole(None)
        };

        let mut rows = open(&path, &reading, 0).unwrap();
        let block = rows.next().await.unwrap().unwrap();

        assert_eq!(block.inputs[0].shape, [700, 1]);
        assert_eq!((block.inputs[0].data[699], block.keys[699][0].plain()), (187, "699"));
        assert!(rows.next().await.is_none());
    }

    #[test]
    fn rows_per_job_are_a_number_or_all_of_them() {
        for text in ["1", "256", "all"] {
            assert_eq!(text.parse::<RowsPerJob>().unwrap().to_string(), text);
        }
        for text in ["0", "-1", "ALL", "", "1.5"] {
            assert_eq!(text.parse::<RowsPerJob>(), Err(NotRowsPerJob), "{text}");
        }
    }

    /// A library that panics over a file must not make what it has read so far the whole.
    #[tokio::test]
    async fn a_reader_that_breaks_off_is_no_end_of_the_file() {
        struct Panics;

        impl Source for Panics {
            fn read(&mut self, _: usize) -> Result<Option<Block>, InputFault> {
                panic!("a planted mistake");
            }

            fn skip(&mut self, _: u64) -> Result<(), InputFault> {
                Ok(())
            }

            fn row_bytes(&self) -> usize {
                1
            }

            fn key_names(&self) -> &[String] {
                &[]
            }
        }
        let mut rows = Rows::start(Reader {
            path: "x.npy".into(),
            source: Box::new(Panics),
            file_bytes: 0,
            block_rows: 1,
            is_one_job: false,
            rows: 0,
        });

        let error = rows.next().await.unwrap().unwrap_err();

        assert!(crate::error::chain(&error).contains("reading it broke off"), "{error}");
    }

    #[tokio::test]
    async fn what_was_too_much_is_cut_and_comes_next() {
        let (_folder, path) = file("x.npy", &npy(&[5, 1]));
        let mut rows = open(&path, &reading(3), 0).unwrap();

        let mut first = rows.next().await.unwrap().unwrap();
        rows.put_back(first.split_off(1).unwrap());
        rows.cut_to(1);
        let rest = tensors(&mut rows).await;

        assert_eq!(
            rest.iter().map(|tensor| tensor.data[0]).collect::<Vec<_>>(),
            [1, 2, 3, 4]
        );
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
            ("x.jsonl", b"", "it is empty"),
            ("x.parquet", b"", "it is empty"),
            ("x.npz", b"", "no whole .npz archive"),
            ("x.txt", b"1,2", "must end in .npy, .npz, .csv, .parquet or .jsonl"),
        ] {
            let (_folder, path) = file(name, content);

            let error = open(&path, &reading(1), 0).err().unwrap();

            let text = crate::error::chain(&error);
            assert!(text.contains(path.to_str().unwrap()) && text.contains(reason), "{text}");
        }
    }
}
