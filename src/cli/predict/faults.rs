//! Why a file of rows cannot be sent, whatever it is.

use std::io;
use std::path::{Path, PathBuf};

use super::columns::ColumnFault;
use super::convert::ConvertFault;
use super::folder::FolderFault;
use super::input::is_stdin;
use super::lines::LineFault;
use super::npy::NpyFault;
use super::npz::NpzFault;
use super::packed::PackedFault;
use super::parquet::ParquetFault;
use super::table::TableFault;

/// A file of rows cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}", if is_stdin(.path) { "standard input".into() } else { .path.to_string_lossy() })]
pub struct InputError {
    path: PathBuf,
    #[source]
    fault: Box<InputFault>,
}

impl InputError {
    pub fn new(path: &Path, fault: InputFault) -> Self {
        Self {
            path: path.to_owned(),
            fault: Box::new(fault),
        }
    }
}

/// Why a file of rows cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum InputFault {
    #[error(
        "its name must end in .npy, .npz, .csv, .tsv, .parquet, .jsonl or .json (texts also packed, .gz or .zst), or --input-format must say what it is"
    )]
    Extension,
    #[error("a folder holds Parquet files, and nothing else is read from one")]
    FolderOfOthers,
    #[error("only texts (.csv, .tsv, .jsonl, .json) may be packed; unpack it first")]
    PackedOther,
    #[error("--delimiter is for .csv; nothing else has one")]
    DelimiterOfOther,
    #[error("--missing is for tables; an array has NaN where a value is missing, or a number that stands for it")]
    MissingOfArray,
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
    #[error("input `{input}` is given whole to each job: its shape is {came:?}, and it is declared as {takes}")]
    WholeShape {
        input: String,
        came: Vec<usize>,
        takes: String,
    },
    #[error(transparent)]
    Convert(#[from] ConvertFault),
    #[error(transparent)]
    Packed(#[from] PackedFault),
    #[error(transparent)]
    Folder(#[from] FolderFault),
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
