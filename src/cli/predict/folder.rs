//! Rows out of a folder of Parquet files, as Spark, Dask and Polars write them: the files one after the other, by name.

use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use arrow_schema::SchemaRef;

use super::block::Block;
use super::columns::{Choice, shown};
use super::faults::InputFault;
use super::inputs::{Inputs, Sending};
use super::parquet::{ParquetFault, Records};
use super::rows::Source;

/// The Parquet files of a folder, sorted by name. What begins with `_` or `.` is no table: `_SUCCESS`, `_metadata`, checksums.
///
/// # Errors
/// It cannot be read, has no such file, or holds something else.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, FolderFault> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = name(&path);
        if name.starts_with(['_', '.']) {
            continue;
        }
        if path.is_dir() {
            return Err(FolderFault::Nested(shown(&name)));
        }
        if !path
            .extension()
            .is_some_and(|ending| ending.eq_ignore_ascii_case("parquet"))
        {
            return Err(FolderFault::Stranger(shown(&name)));
        }
        files.push(path);
    }
    if files.is_empty() {
        return Err(FolderFault::Empty);
    }
    files.sort_unstable();
    Ok(files)
}

/// The files of a folder, by which it is known again: their names, sizes and times.
///
/// # Errors
/// As [`files`].
pub fn stamps(folder: &Path) -> Result<Vec<(String, Metadata)>, FolderFault> {
    let files = files(folder)?.into_iter();
    files.map(|path| Ok((name(&path), fs::metadata(&path)?))).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Files of one schema, of which one is open at a time.
pub struct Folder {
    choice: Choice,
    files: Vec<(PathBuf, u64)>,
    key_names: Vec<String>,
    inputs: Inputs,
    /// Which file comes next.
    next: usize,
    current: Option<Records>,
}

impl Folder {
    /// # Errors
    /// A file is not whole or has other columns than the first one; or there are no rows.
    pub fn open(paths: Vec<PathBuf>, choice: &Choice) -> Result<Self, FolderFault> {
        let mut files: Vec<(PathBuf, u64)> = Vec::with_capacity(paths.len());
        let mut first: Option<(SchemaRef, Vec<String>)> = None;
        for path in paths {
            let records = open(&path, choice)?;
            match &first {
                None => first = Some((records.schema().clone(), records.key_names().to_vec())),
                Some((schema, _)) => same(schema, records.schema(), &files[0].0, &path)?,
            }
            files.push((path, records.rows()));
        }
        if files.iter().all(|(_, rows)| *rows == 0) {
            return Err(FolderFault::NoRows);
        }
        Ok(Self {
            choice: choice.clone(),
            files,
            key_names: first.map(|(_, names)| names).unwrap_or_default(),
            inputs: Inputs::default(),
            next: 0,
            current: None,
        })
    }

    /// Opens the next file with rows; false if there is none.
    fn advance(&mut self) -> Result<bool, FolderFault> {
        self.current = None;
        while let Some((path, rows)) = self.files.get(self.next) {
            self.next += 1;
            if *rows > 0 {
                let mut records = open(path, &self.choice)?;
                records.go_on_with(self.inputs.clone());
                self.current = Some(records);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Names the file that a fault is in.
    fn within(&self, fault: ParquetFault) -> FolderFault {
        let open = self.files.get(self.next.saturating_sub(1));
        FolderFault::file(open.map_or(Path::new(""), |(path, _)| path), fault)
    }
}

impl Source for Folder {
    fn bind(&mut self, sending: &Sending) -> Result<(), InputFault> {
        let first = self.files.iter().find(|(_, rows)| *rows > 0);
        if let Some((path, _)) = first {
            let mut records = open(path, &self.choice)?;
            let bound = records.bind_columns(sending);
            bound.map_err(|fault| FolderFault::file(path, fault))?;
            self.inputs = records.inputs().clone();
        }
        Ok(())
    }

    fn read(&mut self, rows: usize) -> Result<Option<Block>, InputFault> {
        let mut blocks = Vec::new();
        let mut left = rows;
        while left > 0 {
            let read = match &mut self.current {
                Some(records) => records.read_rows(left),
                None => Ok(None),
            };
            match read.map_err(|fault| self.within(fault))? {
                Some(block) => {
                    left -= block.rows();
                    blocks.push(block);
                }
                None if self.advance()? => {}
                None => break,
            }
        }
        if blocks.is_empty() {
            return Ok(None);
        }
        Block::concat(blocks).map(Some).ok_or(InputFault::BrokenOff)
    }

    fn skip(&mut self, mut rows: u64) -> Result<(), InputFault> {
        while let Some((_, of_file)) = self.files.get(self.next) {
            if rows < *of_file {
                break;
            }
            rows -= of_file;
            self.next += 1;
        }
        if rows > 0
            && self.advance()?
            && let Some(records) = &mut self.current
        {
            records.pass(rows);
        }
        Ok(())
    }

    fn total(&self) -> Option<u64> {
        Some(self.files.iter().map(|(_, rows)| rows).sum())
    }

    fn row_bytes(&self) -> usize {
        self.inputs.row_bytes()
    }

    fn key_names(&self) -> &[String] {
        &self.key_names
    }
}

fn open(path: &Path, choice: &Choice) -> Result<Records, FolderFault> {
    let file = File::open(path).map_err(ParquetFault::Io);
    let records = file.and_then(|file| Records::open_any(file, choice));
    records.map_err(|fault| FolderFault::file(path, fault))
}

/// All files must have the same columns in one order, since their rows travel together.
fn same(before: &SchemaRef, came: &SchemaRef, first: &Path, path: &Path) -> Result<(), FolderFault> {
    let column = |schema: &SchemaRef, place: usize| {
        let field = schema.fields().get(place);
        field.map_or_else(
            || "none".to_owned(),
            |field| format!("`{}` {}", shown(field.name()), field.data_type()),
        )
    };
    let count = before.fields().len().max(came.fields().len());
    let other = (0..count).find(|&place| column(before, place) != column(came, place));
    match other {
        None => Ok(()),
        Some(place) => Err(FolderFault::Schema {
            file: shown(&name(path)),
            column: place + 1,
            came: column(came, place),
            first: shown(&name(first)),
            before: column(before, place),
        }),
    }
}

/// Why a folder cannot be sent as rows.
#[derive(Debug, thiserror::Error)]
pub enum FolderFault {
    #[error("it is a folder without a .parquet file")]
    Empty,
    #[error("none of its files has a row")]
    NoRows,
    #[error(
        "it holds the folder `{0}`: what stands in the names of folders would be lost, so that each must be sent by itself"
    )]
    Nested(String),
    #[error("it holds `{0}`, which is no .parquet file; move it, or begin its name with `_`")]
    Stranger(String),
    #[error("column {column} of {file} is {came}, and of {first} {before}; all files must have the same")]
    Schema {
        file: String,
        column: usize,
        came: String,
        first: String,
        before: String,
    },
    #[error("{file}")]
    File {
        file: String,
        #[source]
        fault: ParquetFault,
    },
    #[error("cannot read it")]
    Io(#[from] io::Error),
}

impl FolderFault {
    fn file(path: &Path, fault: ParquetFault) -> Self {
        Self::File {
            file: name(path),
            fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Float32Array, Int64Array, RecordBatch};
    use parquet::arrow::ArrowWriter;

    use super::*;

    fn write(folder: &Path, name: &str, column: ArrayRef) {
        let batch = RecordBatch::try_from_iter([("a", column)]).unwrap();
        let file = File::create(folder.join(name)).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    fn numbers(values: &[f32]) -> ArrayRef {
        Arc::new(Float32Array::from(values.to_vec()))
    }

    fn opened(folder: &Path) -> Result<Folder, FolderFault> {
        Folder::open(files(folder)?, &Choice::default())
    }

    #[test]
    fn rows_go_on_from_file_to_file_wherever_one_begins() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "b.parquet", numbers(&[3.0, 4.0]));
        write(folder.path(), "a.parquet", numbers(&[0.0, 1.0, 2.0]));
        write(folder.path(), "aa.parquet", numbers(&[]));
        write(folder.path(), "c.parquet", numbers(&[5.0]));
        fs::write(folder.path().join("_SUCCESS"), "").unwrap();

        for skipped in 0..=6 {
            let mut source = opened(folder.path()).unwrap();
            source.bind(&Sending::default()).unwrap();
            source.skip(skipped).unwrap();
            let (mut read, mut sizes) = (Vec::new(), Vec::new());
            while let Some(block) = source.read(4).unwrap() {
                let (values, _) = block.inputs[0].data.as_chunks();
                read.extend(values.iter().map(|value| f32::from_le_bytes(*value) as u64));
                sizes.push(block.rows());
            }

            assert_eq!(read, (skipped..6).collect::<Vec<u64>>());
            assert!(sizes.iter().rev().skip(1).all(|size| *size == 4), "{sizes:?}");
            assert_eq!(source.total(), Some(6));
        }
    }

    #[test]
    fn what_is_no_folder_of_one_table_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let fault = || opened(folder.path()).err().unwrap();

        assert!(fault().to_string().contains("without a .parquet file"));
        write(folder.path(), "a.parquet", numbers(&[]));
        assert!(fault().to_string().contains("none of its files has a row"));
        write(folder.path(), "b.parquet", Arc::new(Int64Array::from(vec![1])));
        let other = "column 1 of b.parquet is `a` Int64, and of a.parquet `a` Float32";
        assert!(fault().to_string().contains(other), "{}", fault());
        fs::write(folder.path().join("b.parquet"), "rubbish").unwrap();
        let rubbish = crate::error::chain(&fault());
        assert!(rubbish.starts_with("b.parquet: it is no .parquet file"), "{rubbish}");
        fs::write(folder.path().join("notes.txt"), "").unwrap();
        assert!(fault().to_string().contains("it holds `notes.txt`"));
    }
}
