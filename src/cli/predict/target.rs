//! Where answers are written: a stream, or a file that has its name only when it is complete.
//!
//! Until then it is called `NAME.partial`, which nobody takes for the whole, and which an interrupted run may leave for the next
//! one to go on with ([`super::resume`]).

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Dropped before [`Target::finish`] or [`Target::keep`], it removes what it has written of a file.
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
        match place(path)? {
            Place::File(real) => Ok(Self::File(PartFile::create(&real)?)),
            // A file in the place of `/dev/null` would be the end of the machine's.
            Place::Device => {
                let file = OpenOptions::new().write(true).open(path);
                let file = file.map_err(|cause| OutputError::file(path, cause))?;
                Ok(Self::Stream(Stream::new(Some(path), file)))
            }
        }
    }

    /// Goes on after the first `bytes` bytes of what an earlier run has kept.
    ///
    /// # Errors
    /// It is gone, or shorter, or another run writes it.
    pub fn go_on(path: &Path, bytes: u64) -> Result<Self, OutputError> {
        match place(path)? {
            Place::File(real) => Ok(Self::File(PartFile::go_on(&real, bytes)?)),
            Place::Device => Err(OutputError::file(path, io::ErrorKind::NotSeekable.into())),
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

    /// Puts on disk what was written, so that it outlasts this process, and returns how many bytes that are; `None` of a
    /// stream.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&mut self) -> Result<Option<u64>, OutputError> {
        match self {
            Self::Stream(_) => Ok(None),
            Self::File(part) => part.keep().map(Some),
        }
    }

    /// Lets go of what was kept: it is removed in the end.
    pub fn discard(&mut self) {
        if let Self::File(part) = self {
            part.is_kept = false;
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
            Self::File(part) => {
                part.bytes += bytes.len() as u64;
                part.file.write_all(bytes).map_err(|cause| part.error(cause))
            }
        }
    }
}

/// What a name stands for.
pub enum Place {
    /// A file, or none yet; behind a link lies the one that is meant, and the link itself stays.
    File(PathBuf),
    Device,
}

/// # Errors
/// It is a folder.
pub fn place(path: &Path) -> Result<Place, OutputError> {
    let error = |cause| OutputError::file(path, cause);
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => Err(error(io::ErrorKind::IsADirectory.into())),
        Ok(there) if there.is_file() => fs::canonicalize(path).map(Place::File).map_err(error),
        Ok(_) => Ok(Place::Device),
        Err(_) => Ok(Place::File(path.to_owned())),
    }
}

/// The path with more at the end of its name.
pub fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(more);
    name.into()
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

/// A file under another name, beside its real one.
pub struct PartFile {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
    /// Whether it stays when this is dropped.
    is_kept: bool,
}

impl PartFile {
    fn create(path: &Path) -> Result<Self, OutputError> {
        if path.file_name().is_none() {
            return Err(OutputError::file(path, io::ErrorKind::InvalidFilename.into()));
        }
        // What an earlier run has left is written over, though not while that run goes on.
        let mut options = OpenOptions::new();
        let part = Self::open(path, options.write(true).create(true).truncate(false), false)?;
        part.file.get_ref().set_len(0).map_err(|cause| part.error(cause))?;
        Ok(part)
    }

    fn go_on(path: &Path, bytes: u64) -> Result<Self, OutputError> {
        let mut part = Self::open(path, OpenOptions::new().write(true), true)?;
        let file = part.file.get_mut();
        let came = file.metadata().map_or(0, |metadata| metadata.len());
        if came < bytes {
            let part = part.part.clone();
            return Err(OutputError::Short { part, came, bytes });
        }
        // What came after the last note is computed again.
        let ready = file.set_len(bytes).and_then(|()| file.seek(SeekFrom::End(0)));
        ready.map_err(|cause| part.error(cause))?;
        part.bytes = bytes;
        Ok(part)
    }

    fn open(path: &Path, options: &OpenOptions, is_kept: bool) -> Result<Self, OutputError> {
        let part = beside(path, PARTIAL);
        let file = options.open(&part).map_err(|cause| OutputError::file(path, cause))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(OutputError::Busy(part)),
            // A file system without locks.
            Err(TryLockError::Error(_)) | Ok(()) => {}
        }
        Ok(Self {
            path: path.to_owned(),
            part,
            file: BufWriter::new(file),
            bytes: 0,
            is_kept,
        })
    }

    fn keep(&mut self) -> Result<u64, OutputError> {
        let flushed = self.file.flush().and_then(|()| self.file.get_ref().sync_data());
        flushed.map_err(|cause| self.error(cause))?;
        self.is_kept = true;
        Ok(self.bytes)
    }

    fn finish(mut self) -> Result<(), OutputError> {
        let complete = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        let named = complete.and_then(|()| fs::rename(&self.part, &self.path));
        named.map_err(|cause| self.error(cause))?;
        // Another run may have begun under the old name by now.
        self.is_kept = true;
        Ok(())
    }

    fn error(&self, cause: io::Error) -> OutputError {
        OutputError::file(&self.path, cause)
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.is_kept {
            // After the renaming there is nothing under this name.
            let _ = fs::remove_file(&self.part);
        }
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
    #[error("another run is writing {}: give --output another name", .0.display())]
    Busy(PathBuf),
    #[error("{} has {came} bytes, fewer than the {bytes} that were noted: leave --resume out to start anew", part.display())]
    Short { part: PathBuf, came: u64, bytes: u64 },
}

impl OutputError {
    fn file(path: &Path, cause: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            cause,
        }
    }
}

/// What the name of an unfinished file ends in.
pub const PARTIAL: &str = ".partial";

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

    #[test]
    fn what_was_kept_is_gone_on_with_after_what_was_noted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("y.csv");

        let mut target = Target::open(Some(&path)).unwrap();
        target.write(b"one,two").unwrap();
        let noted = target.keep().unwrap().unwrap();
        target.write(b",lost").unwrap();
        drop(target);
        assert_eq!(names(folder.path()), ["y.csv.partial"]);
        let mut target = Target::go_on(&path, noted).unwrap();
        target.write(b",three").unwrap();
        target.finish().unwrap();

        assert_eq!(fs::read_to_string(&path).unwrap(), "one,two,three");
        assert_eq!(names(folder.path()), ["y.csv"]);
        assert!(Target::go_on(&path, 1).is_err(), "there is nothing to go on with");
    }

    #[test]
    fn two_runs_do_not_write_one_file_and_a_shorter_one_is_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("y.csv");

        let mut target = Target::open(Some(&path)).unwrap();
        target.write(b"one").unwrap();
        let busy = Target::open(Some(&path)).err().unwrap().to_string();
        target.keep().unwrap();
        drop(target);
        let short = Target::go_on(&path, 9).err().unwrap().to_string();

        assert!(busy.contains("another run is writing"), "{busy}");
        assert!(short.contains("has 3 bytes, fewer than the 9"), "{short}");
        assert_eq!(names(folder.path()), ["y.csv.partial"], "it may be of use yet");
    }
}
