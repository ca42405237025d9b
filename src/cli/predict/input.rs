//! The file of rows that the user names: what it is, and what reads it.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;

use super::array::{Array, Section, Stream};
use super::arrays::Arrays;
use super::block::Block;
use super::columns::Choice;
use super::delimiter::Delimiter;
use super::faults::{InputError, InputFault};
use super::folder::{self, Folder};
use super::inputs::Sending;
use super::lines::Lines;
use super::npz::{self, Pick};
use super::packed::{inner_name, unpacked};
use super::parquet::Records;
use super::rows::{RowsPerJob, Source};
use super::table::{FirstLine, Table};
use crate::wire::tensor::Datatype;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InputFormat {
    /// An array of NumPy
    Npy,
    /// An archive of arrays of NumPy
    Npz,
    /// Comma-separated cells
    Csv,
    /// Cells separated by tabs
    Tsv,
    /// Apache Parquet, or a folder of such files
    Parquet,
    /// An array of numbers or an object of columns a line
    #[value(alias = "ndjson")]
    Jsonl,
    /// One array of such rows
    Json,
}

impl InputFormat {
    fn of(path: &Path) -> Option<Self> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        <Self as ValueEnum>::from_str(extension.to_str()?, true).ok()
    }

    /// True where the file is an array, which has rows of numbers and no names.
    fn is_array(self) -> bool {
        matches!(self, Self::Npy | Self::Npz)
    }

    fn is_text(self) -> bool {
        matches!(self, Self::Csv | Self::Tsv | Self::Jsonl | Self::Json)
    }
}

/// How the rows are to be read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// `None`: as the name of the file says.
    pub format: Option<InputFormat>,
    pub rows_per_job: Option<RowsPerJob>,
    pub first_line: FirstLine,
    /// `None`: as the name of the file says.
    pub delimiter: Option<Delimiter>,
    pub choice: Choice,
    pub arrays: Vec<Pick>,
    pub sending: Sending,
}

impl Reading {
    /// Every column of what the file has, or its only array.
    pub fn whole(datatype: Option<Datatype>) -> Self {
        Self {
            format: None,
            rows_per_job: None,
            first_line: FirstLine::Unsaid,
            delimiter: None,
            choice: Choice::default(),
            arrays: Vec::new(),
            sending: Sending {
                datatype,
                ..Sending::default()
            },
        }
    }
}

/// A file of rows, a folder of them, or standard input.
pub struct Input {
    path: PathBuf,
    /// `None` of a folder.
    file: Option<File>,
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
        let is_folder = metadata.is_dir();
        Ok(Self {
            path: path.to_owned(),
            file: (!is_folder).then_some(file),
            regular: (is_folder || metadata.is_file()).then_some(metadata),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Of a file or a folder that can be read again.
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
        let opened = self.source(reading).and_then(|mut opened| {
            opened.source.bind(&reading.sending)?;
            Ok(opened.source)
        });
        let mut source = opened.map_err(|fault| InputError::new(&path, fault))?;
        let read = move || {
            source
                .read(rows)
                .map_err(|fault| InputError::new(&path, fault))
                .transpose()
        };
        Ok(std::iter::from_fn(read))
    }

    /// Begins to read, as far as nothing needs to be known of the model.
    ///
    /// # Errors
    /// The file is not what it is said to be, has no rows, or not the columns that are asked for.
    pub(super) fn source(self, reading: &Reading) -> Result<Opened, InputFault> {
        let format = self.format(reading)?;
        check(reading, format)?;
        let file_bytes = self.regular.as_ref().map_or(0, Metadata::len);
        let choice = &reading.choice;
        let source: Box<dyn Source> = match format {
            InputFormat::Npy => Box::new(Arrays::new(vec![self.array()?], choice)?),
            InputFormat::Npz => {
                let file = Arc::new(self.seekable()?);
                Box::new(npz::open(&file, &reading.arrays, choice)?)
            }
            InputFormat::Parquet => match self.file {
                None => Box::new(Folder::open(folder::files(&self.path)?, choice)?),
                Some(_) => Box::new(Records::open(self.seekable()?, choice)?),
            },
            InputFormat::Csv | InputFormat::Tsv | InputFormat::Jsonl | InputFormat::Json => {
                return self.text(reading, format);
            }
        };
        Ok(Opened { source, file_bytes })
    }

    fn text(self, reading: &Reading, format: InputFormat) -> Result<Opened, InputFault> {
        let file_bytes = self.regular.as_ref().map_or(0, Metadata::len);
        let file = self.file.ok_or(InputFault::FolderOfOthers)?;
        let text = unpacked(file, &self.path)?;
        let choice = &reading.choice;
        let source: Box<dyn Source> = match format {
            InputFormat::Jsonl | InputFormat::Json => {
                let is_array = format == InputFormat::Json;
                Box::new(Lines::open(text.text, is_array, reading.sending.missing, choice)?)
            }
            _ => {
                let by_name = if format == InputFormat::Tsv {
                    Delimiter::TAB
                } else {
                    Delimiter::default()
                };
                let delimiter = reading.delimiter.unwrap_or(by_name);
                Box::new(Table::open(text.text, delimiter, reading.first_line, choice)?)
            }
        };
        Ok(Opened {
            source,
            // How much there is behind a packed byte, nobody can tell.
            file_bytes: if text.is_packed { 0 } else { file_bytes },
        })
    }

    fn format(&self, reading: &Reading) -> Result<InputFormat, InputFault> {
        let is_folder = self.file.is_none();
        match reading.format.or_else(|| InputFormat::of(&inner_name(&self.path))) {
            Some(InputFormat::Parquet) => Ok(InputFormat::Parquet),
            None if is_folder => Ok(InputFormat::Parquet),
            Some(_) if is_folder => Err(InputFault::FolderOfOthers),
            Some(format) if !format.is_text() && inner_name(&self.path) != self.path && reading.format.is_none() => {
                Err(InputFault::PackedOther)
            }
            Some(format) => Ok(format),
            None => Err(InputFault::Extension),
        }
    }

    fn array(self) -> Result<Array, InputFault> {
        let file = self.file.ok_or(InputFault::FolderOfOthers)?;
        let Some(metadata) = self.regular else {
            return Ok(Array::open(String::new(), Box::new(Stream(file)))?);
        };
        let section = Section {
            file: Arc::new(file),
            at: 0,
            left: metadata.len(),
        };
        let array = Array::open(String::new(), Box::new(section))?;
        let came = metadata.len().saturating_sub(array.header_bytes());
        let promised = array.header().data_bytes();
        // Looked at first, so that nothing is sent of a file that turns out to be cut.
        if came < promised {
            return Err(InputFault::Cut { came, promised });
        }
        Ok(array)
    }

    fn seekable(self) -> Result<File, InputFault> {
        match (self.regular, self.file) {
            (Some(_), Some(file)) => Ok(file),
            (_, _) => Err(InputFault::NoFile),
        }
    }
}

/// What gives the rows, before it knows the inputs of the model.
pub(super) struct Opened {
    pub source: Box<dyn Source>,
    /// By which the rows are guessed; 0 is not known.
    pub file_bytes: u64,
}

/// Refuses what is asked of another form than this.
fn check(reading: &Reading, format: InputFormat) -> Result<(), InputFault> {
    if format != InputFormat::Npz && !reading.arrays.is_empty() {
        return Err(InputFault::ArrayOfOther);
    }
    if !matches!(format, InputFormat::Csv | InputFormat::Tsv) && reading.delimiter.is_some() {
        return Err(InputFault::DelimiterOfOther);
    }
    if format.is_array() && reading.sending.missing != super::columns::Missing::Refuse {
        return Err(InputFault::MissingOfArray);
    }
    Ok(())
}

/// Whether the name stands for standard input.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}
