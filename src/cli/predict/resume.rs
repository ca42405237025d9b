//! What an interrupted run leaves for the next: a note beside `OUTPUT.partial` that says how far it holds, and of what.
//!
//! The note is written after what it speaks of is on disk, and takes the place of the one before it at once. So it is true after
//! SIGKILL as well; what was written after it is cut off and computed again.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::answers::Layout;
use super::folder::{FolderFault, stamps};
use super::target::{PARTIAL, beside};

/// How far a run has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// All that the answers depend on, by a name that a message may use.
    pub settings: Settings,
    pub rows: u64,
    pub jobs: u64,
    pub failed_rows: u64,
    pub output_bytes: u64,
    pub failures_bytes: u64,
    /// Of the version that answered first.
    pub model_version: Option<String>,
    pub layout: Option<Layout>,
}

pub type Settings = BTreeMap<String, String>;

/// Where the note of a run is, and when it is written next.
pub struct Notes {
    output: PathBuf,
    settings: Settings,
    due: Instant,
}

impl Notes {
    /// Of a run that writes to the file `output`.
    pub fn new(output: &Path, settings: Settings) -> Self {
        Self {
            output: output.to_owned(),
            settings,
            due: Instant::now(),
        }
    }

    /// What an earlier run has left; `None` if there is nothing to go on with.
    ///
    /// # Errors
    /// It was of another input or with other settings, or its note cannot be read.
    pub fn read(&self) -> Result<Option<Note>, ResumeError> {
        let (part, path) = (self.part(), self.path());
        let text = match fs::read(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(ResumeError::Read { path, cause }),
            Ok(_) if !part.exists() => return Ok(None),
            Ok(text) => text,
        };
        let note: Note = serde_json::from_slice(&text).map_err(|cause| ResumeError::Note { path, cause })?;
        match difference(&note.settings, &self.settings) {
            None => Ok(Some(note)),
            Some((what, before, now)) => Err(ResumeError::Other {
                part,
                what,
                before,
                now,
            }),
        }
    }

    /// True from time to time, and at first.
    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }

    /// # Errors
    /// The note cannot be written.
    pub fn write(&mut self, progress: Progress, now: Instant) -> Result<(), ResumeError> {
        let note = Note {
            settings: self.settings.clone(),
            rows: progress.rows,
            jobs: progress.jobs,
            failed_rows: progress.failed_rows,
            output_bytes: progress.output_bytes,
            failures_bytes: progress.failures_bytes,
            model_version: progress.model_version,
            layout: progress.layout,
        };
        let path = self.path();
        let new = beside(&path, ".new");
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(&serde_json::to_vec(&note)?)?;
            file.sync_data()?;
            fs::rename(&new, &path)
        });
        written.map_err(|cause| ResumeError::Write { path, cause })?;
        self.due = now + EVERY;
        Ok(())
    }

    /// Removes the note: the file is complete, or nobody shall go on with it.
    pub fn remove(&self) {
        let _ = fs::remove_file(self.path());
    }

    pub fn part(&self) -> PathBuf {
        beside(&self.output, PARTIAL)
    }

    fn path(&self) -> PathBuf {
        beside(&self.output, NOTE)
    }
}

/// What is new in a note.
pub struct Progress {
    pub rows: u64,
    pub jobs: u64,
    pub failed_rows: u64,
    pub output_bytes: u64,
    pub failures_bytes: u64,
    pub model_version: Option<String>,
    pub layout: Option<Layout>,
}

/// By what an input is known again.
pub fn settings_of_input(metadata: &Metadata) -> [(String, String); 2] {
    let modified = metadata.modified().ok();
    let modified = modified
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    [
        ("size of the input".to_owned(), format!("{} bytes", metadata.len())),
        (
            "time of the last change of the input".to_owned(),
            format!("{}.{:09} s", modified.as_secs(), modified.subsec_nanos()),
        ),
    ]
}

/// By what a folder of files is known again.
///
/// # Errors
/// It cannot be read.
pub fn settings_of_folder(folder: &Path) -> Result<Settings, ResumeError> {
    let stamps = stamps(folder).map_err(|cause| ResumeError::Folder {
        path: folder.to_owned(),
        cause: Box::new(cause),
    })?;
    let mut digest = Sha256::new();
    for (name, metadata) in &stamps {
        let [(_, size), (_, time)] = settings_of_input(metadata);
        digest.update(format!("{name}\n{size}\n{time}\n"));
    }
    let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let files = format!("{}, with names, sizes and times of digest {digest}", stamps.len());
    Ok([("number of files, or names, sizes or times of them".to_owned(), files)].into())
}

fn difference(before: &Settings, now: &Settings) -> Option<(String, String, String)> {
    let said =
        |settings: &Settings, what: &String| settings.get(what).map_or_else(|| "unsaid".to_owned(), Clone::clone);
    let mut all = now.keys().chain(before.keys());
    let what = all.find(|&what| before.get(what) != now.get(what))?;
    Some((what.clone(), said(before, what), said(now, what)))
}

/// A run cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    #[error(
        "{} was begun with another {what}: {before}, and now it is {now}; leave --resume out to start anew", part.display()
    )]
    Other {
        part: PathBuf,
        what: String,
        before: String,
        now: String,
    },
    #[error("{} cannot be read as the note of a run; leave --resume out to start anew", path.display())]
    Note {
        path: PathBuf,
        #[source]
        cause: serde_json::Error,
    },
    #[error("cannot use {}", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        cause: Box<FolderFault>,
    },
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

/// What the name of a note has more than that of the output.
const NOTE: &str = ".partial.json";
/// At most so much work is lost to SIGKILL; each note waits for the disk.
const EVERY: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(model: &str) -> Settings {
        [("--model".to_owned(), model.to_owned())].into()
    }

    fn progress(rows: u64) -> Progress {
        Progress {
            rows,
            jobs: 2,
            failed_rows: 1,
            output_bytes: 30,
            failures_bytes: 40,
            model_version: Some("7".to_owned()),
            layout: None,
        }
    }

    #[test]
    fn a_note_is_read_as_it_was_written_last() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("y.csv");
        let mut notes = Notes::new(&output, settings("a"));
        let now = Instant::now();
        assert!(notes.is_due(now) && notes.read().unwrap().is_none());

        fs::write(notes.part(), "").unwrap();
        notes.write(progress(10), now).unwrap();
        notes.write(progress(20), now).unwrap();
        let note = notes.read().unwrap().unwrap();

        assert_eq!((note.rows, note.jobs, note.failed_rows), (20, 2, 1));
        assert_eq!((note.output_bytes, note.failures_bytes), (30, 40));
        assert!(!notes.is_due(now) && notes.is_due(now + EVERY));
        notes.remove();
        assert!(notes.read().unwrap().is_none());
    }

    #[test]
    fn another_setting_and_a_broken_note_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("y.csv");
        let mut notes = Notes::new(&output, settings("a"));
        fs::write(notes.part(), "").unwrap();
        notes.write(progress(10), Instant::now()).unwrap();

        let other = Notes::new(&output, settings("b")).read().unwrap_err().to_string();
        let fewer = Notes::new(&output, Settings::new()).read().unwrap_err().to_string();
        fs::write(beside(&output, NOTE), "{").unwrap();
        let broken = notes.read().unwrap_err().to_string();

        assert!(
            other.contains("begun with another --model: a, and now it is b"),
            "{other}"
        );
        assert!(fewer.contains("--model: a, and now it is unsaid"), "{fewer}");
        assert!(broken.contains("cannot be read as the note of a run"), "{broken}");
    }

    #[test]
    fn a_note_without_its_file_is_nothing_to_go_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let mut notes = Notes::new(&folder.path().join("y.csv"), settings("a"));

        notes.write(progress(10), Instant::now()).unwrap();

        assert!(notes.read().unwrap().is_none());
    }

    #[test]
    fn a_folder_is_known_again_by_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a.parquet"), "1").unwrap();
        fs::write(path("_SUCCESS"), "").unwrap();

        let before = settings_of_folder(folder.path()).unwrap();
        fs::write(path("_metadata"), "").unwrap();
        let same = settings_of_folder(folder.path()).unwrap();
        fs::rename(path("a.parquet"), path("b.parquet")).unwrap();
        let renamed = settings_of_folder(folder.path()).unwrap();
        fs::write(path("c.parquet"), "1").unwrap();
        let more = settings_of_folder(folder.path()).unwrap();

        assert_eq!(before, same);
        assert!(before != renamed && renamed != more);
    }
}
