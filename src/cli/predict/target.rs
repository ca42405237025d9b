//! Where answers are written: a stream, or a file that appears only when it is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Dropped before [`Target::finish`], it removes what it has written of a file.
pub enum Target {
    Stream(Stream),
    File(PartFile),
}

/// Standard output, a pipe or a device: what is written is gone, and nothing may be put in its place.
pub struct Stream {
    /// `None` is standard output.
    path: Option<PathBuf>,
    out: BufWriter<Box<dyn Write>>,
}

impl Target {
    /// # Errors
    /// The file cannot be made.
    pub fn open(path: Option<&Path>) -> Result<Self, OutputError> {
        let Some(path) = path else {
            return Ok(Self::Stream(Stream::new(None, io::stdout())));
        };
        let error = |cause| OutputError::file(path, cause);
        match fs::metadata(path) {
            Ok(there) if there.is_dir() => Err(error(io::ErrorKind::IsADirectory.into())),
            Ok(there) if there.is_file() => {
                // Behind a link lies the file that is meant; the link itself stays.
                let real = fs::canonicalize(path).map_err(error)?;
                Ok(Self::File(PartFile::create(&real)?))
            }
            // A file in the place of `/dev/null` would be the end of the machine's.
            Ok(_) => {
                let file = OpenOptions::new().write(true).open(path).map_err(error)?;
                Ok(Self::Stream(Stream::new(Some(path), file)))
            }
            Err(_) => Ok(Self::File(PartFile::create(path)?)),
        }
    }

    /// Makes the file what its name promises.
    ///
    /// # Errors
    /// The last bytes cannot be written, or the file cannot be renamed.
    pub fn finish(self) -> Result<(), OutputError> {
        match self {
            Self::Stream(mut stream) => stream.out.flush().map_err(|cause| stream.error(cause)),
            Self::File(part) => part.finish(),
        }
    }

    /// Writes over the first bytes; false if that cannot be, since they are gone for good.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write_over_start(&mut self, bytes: &[u8]) -> Result<bool, OutputError> {
        match self {
            Self::Stream(_) => Ok(false),
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
            Self::Stream(stream) => stream.out.write_all(bytes).map_err(|cause| stream.error(cause)),
            Self::File(part) => part.file.write_all(bytes).map_err(|cause| part.error(cause)),
        }
    }
}

impl Stream {
    fn new(path: Option<&Path>, out: impl Write + 'static) -> Self {
        Self {
            path: path.map(Path::to_owned),
            out: BufWriter::new(Box::new(out)),
        }
    }

    fn error(&self, cause: io::Error) -> OutputError {
        match &self.path {
            Some(path) => OutputError::file(path, cause),
            None => OutputError::Stdout(cause),
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
        let error = |cause| OutputError::file(path, cause);
        let Some(name) = path.file_name() else {
            return Err(error(io::ErrorKind::InvalidFilename.into()));
        };
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
        OutputError::file(&self.path, cause)
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

impl OutputError {
    fn file(path: &Path, cause: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            cause,
        }
    }
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
    fn a_device_is_written_to_and_not_replaced() {
        use std::os::unix::fs::FileTypeExt as _;
        let folder = tempfile::tempdir().unwrap();
        // A link, so that the test harms nothing where it fails.
        let full = folder.path().join("full");
        std::os::unix::fs::symlink("/dev/full", &full).unwrap();

        let mut target = Target::open(Some(&full)).unwrap();
        let written = target.write(b"all").and_then(|()| target.finish());

        assert_eq!(
            written.unwrap_err().to_string(),
            format!("cannot write {}", full.display())
        );
        assert_eq!(names(folder.path()), ["full"]);
        assert!(fs::metadata(&full).unwrap().file_type().is_char_device());
    }

    #[test]
    fn a_link_stays_a_link_and_its_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("y.csv"));
        fs::write(&real, "of yesterday").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();

        let mut target = Target::open(Some(&link)).unwrap();
        target.write(b"new").unwrap();
        target.finish().unwrap();

        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&real).unwrap(), "new");
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
