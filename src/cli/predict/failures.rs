//! The rows without an answer, in a file of their own: for whoever wants to send them again.

use std::path::PathBuf;

use serde::Serialize;

use super::target::{OutputError, Target};

/// JSON lines, one for each job without an answer. Without such a job there is no file.
pub struct Failures {
    path: Option<PathBuf>,
    target: Option<Target>,
}

/// Some rows that follow one another, and why they have no answer.
#[derive(Serialize)]
struct Line<'a> {
    first_row: u64,
    rows: usize,
    reason: &'a str,
}

impl Failures {
    pub fn new(path: Option<PathBuf>) -> Self {
        Self { path, target: None }
    }

    /// # Errors
    /// The file cannot be made or written.
    pub fn push(&mut self, first_row: u64, rows: usize, reason: &str) -> Result<(), OutputError> {
        let Some(path) = &self.path else { return Ok(()) };
        let target = match &mut self.target {
            Some(target) => target,
            None => self.target.insert(Target::open(Some(path))?),
        };
        let line = Line {
            first_row,
            rows,
            reason,
        };
        // Numbers and a text: there is nothing that JSON could not hold.
        let mut line = serde_json::to_vec(&line).unwrap_or_default();
        line.push(b'\n');
        target.write(&line)
    }

    /// # Errors
    /// The file cannot be written.
    pub fn finish(self) -> Result<(), OutputError> {
        self.target.map_or(Ok(()), Target::finish)
    }
}
