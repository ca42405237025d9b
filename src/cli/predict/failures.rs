//! The rows without an answer, in a file of their own: for whoever wants to send them again.

use std::fs;
use std::path::{Path, PathBuf};

use super::block::{Key, keys_object};
use super::target::{OutputError, PARTIAL, Target, beside};

/// JSON lines, one for each job without an answer. Without such a job there is no file.
pub struct Failures {
    path: Option<PathBuf>,
    key_names: Vec<String>,
    target: Option<Target>,
}

impl Failures {
    pub fn new(path: Option<PathBuf>, key_names: Vec<String>) -> Self {
        Self {
            path,
            key_names,
            target: None,
        }
    }

    /// Goes on after the first `bytes` bytes of what an earlier run has kept.
    ///
    /// # Errors
    /// It is gone, or cannot be written.
    pub fn go_on(path: Option<PathBuf>, key_names: Vec<String>, bytes: u64) -> Result<Self, OutputError> {
        let target = match &path {
            Some(path) if bytes > 0 => Some(Target::go_on(path, bytes)?),
            Some(_) | None => None,
        };
        Ok(Self {
            path,
            key_names,
            target,
        })
    }

    pub fn path(&self) -> Option<&Path> {
        self.target.as_ref().and(self.path.as_deref())
    }

    /// # Errors
    /// The file cannot be made or written.
    pub fn push(&mut self, first_row: u64, rows: usize, keys: &[Vec<Key>], reason: &str) -> Result<(), OutputError> {
        let Some(path) = &self.path else { return Ok(()) };
        let target = match &mut self.target {
            Some(target) => target,
            None => self.target.insert(Target::open(Some(path))?),
        };
        let reason = serde_json::Value::from(reason);
        let mut line = format!("{{\"first_row\":{first_row},\"rows\":{rows}");
        if !keys.is_empty() {
            let keys: Vec<String> = keys.iter().map(|keys| keys_object(&self.key_names, keys)).collect();
            line.push_str(&format!(",\"keys\":[{}]", keys.join(",")));
        }
        line.push_str(&format!(",\"reason\":{reason}}}\n"));
        target.write(line.as_bytes())
    }

    /// Puts on disk what was written, and returns how many bytes that are.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&mut self) -> Result<u64, OutputError> {
        let kept = self.target.as_mut().map(Target::keep).transpose()?;
        Ok(kept.flatten().unwrap_or(0))
    }

    pub fn discard(&mut self) {
        if let Some(target) = &mut self.target {
            target.discard();
        }
    }

    /// Completes the file. Where no row failed, that of an earlier run goes: it would be taken for this one's.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(self) -> Result<(), OutputError> {
        if let (None, Some(path)) = (&self.target, &self.path) {
            // What a crash has left that came before the first note.
            let _ = fs::remove_file(beside(path, PARTIAL));
        }
        match (self.target, &self.path) {
            (Some(target), _) => target.finish(),
            (None, Some(path)) if path.is_file() => fs::remove_file(path).map_err(|cause| OutputError::File {
                path: path.clone(),
                cause,
            }),
            (None, _) => Ok(()),
        }
    }
}
