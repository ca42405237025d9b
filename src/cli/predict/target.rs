//! Where answers are written: standard output, or a file that appears only when it is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Stdout, Write};
use std::path::{Path, PathBuf};

/// Dropped before [`Target::finish`], it removes what it has written of a file.
pub enum Target {
    Stdout(BufWriter<Stdout>),
    File(PartFile),
}

impl Target {
    /// # Errors
    /// The file cannot be made.
    pub fn open(path: Option<&Path>) -> Result<Self, OutputError> {
        Ok(match path {
            None => Self::Stdout(BufWriter::new(io::stdout())),
            Some(path) => Self::File(PartFile::create(path)?),
        })
    }

    /// Makes the file what its name promises.
    ///
    /// # Errors
    /// The last bytes cannot be written, or the file cannot be renamed.
    pub fn finish(self) -> Result<(), OutputError> {
        match self {
            Self::Stdout(mut out) => out.flush().map_err(OutputError::Stdout),
            Self::File(part) => part.finish(),
        }
    }

    /// Writes over the first bytes; false if that cannot be, since they are gone for good.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write_over_start(&mut self, bytes: &[u8]) -> Result<bool, OutputError> {
        match self {
            Self::Stdout(_) => Ok(false),
            Self::File(part) => {
                let written = part.file.seek(SeekFrom::Start(0));
                let written = written.and_then(|_| part.file.write_all(bytes));
                written.map(|()| true).map_err(|cause| part.error(cause))
            }
        }
    }

    /// # Errors
    /// They cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), OutputError> {
        match self {
            Self::Stdout(out) => out.write_all(bytes).map_err(OutputError::Stdout),
            Self::File(part) => part.file.write_all(bytes).map_err(|cause| part.error(cause)),
        }
    }
}

/// A file under a temporary name beside its real one.
pub struct PartFile {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
}

impl PartFile {
    fn create(path: &Path) -> Result<Self, OutputError> {
        let error = |cause| OutputError::File {
            path: path.to_owned(),
            cause,
        };
        let Some(name) = path.file_name() else {
            return Err(error(io::ErrorKind::InvalidFilename.into()));
        };
        if path.is_dir() {
            return Err(error(io::ErrorKind::IsADirectory.into()));
        }
        let part = format!(".{}.{:08x}.part", name.to_string_lossy(), fastrand::u32(..));
        let part = path.with_file_name(part);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&part)
            .map_err(error)?;
        Ok(Self {
            path: path.to_owned(),
            part,
            file: BufWriter::new(file),
        })
    }

    fn finish(mut self) -> Result<(), OutputError> {
        let complete = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        let named = complete.and_then(|()| fs::rename(&self.part, &self.path));
        named.map_err(|cause| self.error(cause))
    }

    fn error(&self, cause: io::Error) -> OutputError {
        OutputError::File {
            path: self.path.clone(),
            cause,
        }
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        // After the renaming there is nothing under this name.
        let _ = fs::remove_file(&self.part);
    }
}

/// The answers cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("cannot write {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("y.csv");
        fs::write(&path, "of yesterday").unwrap();

        let mut target = Target::open(Some(&path)).unwrap();
        target.write(b"-ew").unwrap();
        assert!(target.write_over_start(b"n").unwrap());
        let before = fs::read_to_string(&path).unwrap();
        target.finish().unwrap();

        assert_eq!(before, "of yesterday");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(names(folder.path()), ["y.csv"]);
    }

    #[test]
    fn what_was_not_finished_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();

        let mut target = Target::open(Some(&folder.path().join("y.csv"))).unwrap();
        target.write(b"half").unwrap();
        let under_way = names(folder.path());
        drop(target);

        assert_eq!(under_way.len(), 1);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("no/y.csv")] {
            let error = Target::open(Some(&path)).err().unwrap();

            assert_eq!(error.to_string(), format!("cannot write {}", path.display()));
        }
    }
}
