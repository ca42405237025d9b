//! The rows to be predicted, whatever they come in, read in blocks by a thread of their own.
//!
//! Its own because reading may wait, for a disk or for whoever writes into standard input, while answers come in, heartbeats
//! are due and signals want to be heard. It is at most a few blocks ahead.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use tokio::sync::mpsc;

use super::block::Block;
use super::faults::{InputError, InputFault};
use super::input::{Input, Opened, Reading};
use super::inputs::Sending;
use crate::model::signature::TensorSpec;

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

/// What gives rows.
pub trait Source: Send {
    /// Decides what becomes of the columns or arrays, once and before anything is read or passed over.
    ///
    /// # Errors
    /// They are no inputs of the model.
    fn bind(&mut self, sending: &Sending) -> Result<(), InputFault>;

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

/// Blocks of rows, each as big as a job may be.
pub struct Rows {
    path: PathBuf,
    /// `None` is the end of the file; a thread that ends without a word has not come so far.
    blocks: mpsc::Receiver<Result<Option<Delivered>, InputError>>,
    /// The rest of a block that was too big.
    rest: Option<Block>,
    /// Set where the model takes fewer rows than a block has.
    rows_max: usize,
    total_guess: u64,
}

/// A block, and how many rows there are in all by what is known so far.
struct Delivered {
    block: Block,
    total_guess: u64,
}

/// A file of rows that is open, and not yet read: what the model takes may still have to be asked.
pub struct Opening {
    path: PathBuf,
    opened: Opened,
    sending: Sending,
    rows_per_job: Option<RowsPerJob>,
}

impl Opening {
    /// # Errors
    /// The file is not what it is said to be, has no rows, or not the columns that are asked for.
    pub fn of(input: Input, reading: &Reading) -> Result<Self, InputError> {
        let path = input.path().to_owned();
        let opened = input.source(reading);
        Ok(Self {
            opened: opened.map_err(|fault| InputError::new(&path, fault))?,
            path,
            sending: reading.sending.clone(),
            rows_per_job: reading.rows_per_job,
        })
    }

    pub fn key_names(&self) -> &[String] {
        self.opened.source.key_names()
    }

    /// Rows of the whole file, if it says so itself.
    pub fn total(&self) -> Option<u64> {
        self.opened.source.total()
    }

    /// Begins to read after the first `skipped` rows, for a model that takes these inputs; none are not known.
    ///
    /// # Errors
    /// The rows are no inputs of the model.
    pub fn start(mut self, takes: Vec<TensorSpec>, skipped: u64) -> Result<Rows, InputError> {
        self.sending.takes = takes;
        let mut source = self.opened.source;
        let ready = source.bind(&self.sending).and_then(|()| source.skip(skipped));
        let (path, file_bytes, rows_per_job) = (self.path, self.opened.file_bytes, self.rows_per_job);
        ready.map_err(|fault| InputError::new(&path, fault))?;
        let fitting = (JOB_BYTES / source.row_bytes().max(1)).clamp(1, ROWS_PER_JOB_MAX);
        // A power of two: batches are as big, and one row more than a batch would be another run.
        let fitting = 1 << fitting.ilog2();
        Ok(Rows::start(Reader {
            path,
            source,
            file_bytes,
            block_rows: match rows_per_job {
                Some(RowsPerJob::Rows(rows)) => rows.get(),
                Some(RowsPerJob::All) | None => fitting,
            },
            is_one_job: rows_per_job == Some(RowsPerJob::All),
            rows: skipped,
        }))
    }
}

impl Rows {
    fn start(reader: Reader) -> Self {
        let total = reader.source.total();
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
            total_guess: total.unwrap_or(0),
        }
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

/// A job of this size costs a broker little more for each row than a bigger one does (`benches/plots/growth.md`), and rows of
/// 4 kB fill one run of a worker, which takes 64 of them at a time.
const JOB_BYTES: usize = 256 * 1024;
const ROWS_PER_JOB_MAX: usize = 256;
/// Blocks that are read before anybody wants them.
const BLOCKS_AHEAD: usize = 4;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::columns::Choice;
    use super::super::npy::Header;
    use super::*;
    use crate::wire::tensor::{Datatype, Tensor};

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
        Opening::of(Input::open(path)?, reading)?.start(Vec::new(), skipped)
    }

    fn of_bytes(reading: Reading) -> Reading {
        Reading {
            sending: Sending {
                datatype: Some(Datatype::Uint8),
                ..Sending::default()
            },
            ..reading
        }
    }

    fn npy(shape: &[usize]) -> Vec<u8> {
        let header = Header::new(Datatype::Uint8, shape.to_vec());
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
        assert_eq!(rows.total_guess(), 5);
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
            let reading = of_bytes(reading(2));

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
        let reading = of_bytes(Reading {
            rows_per_job: Some(RowsPerJob::All),
            choice: Choice {
                columns: Vec::new(),
                keys: vec!["id".to_owned()],
            },
            ..Reading::whole(None)
        });

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
            fn bind(&mut self, _: &Sending) -> Result<(), InputFault> {
                Ok(())
            }

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
            ("x.txt", b"1,2", "must end in .npy, .npz, .csv, .tsv"),
        ] {
            let (_folder, path) = file(name, content);

            let error = open(&path, &reading(1), 0).err().unwrap();

            let text = crate::error::chain(&error);
            assert!(text.contains(path.to_str().unwrap()) && text.contains(reason), "{text}");
        }
    }
}
