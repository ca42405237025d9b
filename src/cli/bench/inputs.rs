//! The bodies that are sent: made up from what a model takes, or read from a file; encoded before the load begins.

use std::path::{Path, PathBuf};

use crate::cli::bench::local::{Expected, Local, LocalError};
use crate::cli::bench::shapes::{self, AnyCase, ForInput, RowShape};
use crate::cli::predict::faults::InputError;
use crate::cli::predict::input::{Input, Reading};
use crate::wire::Encoded;
use crate::wire::request::{RequestEncoding, encode_request};
use crate::wire::tensor::Tensor;

/// What is to be sent to one model.
pub struct Target {
    pub model: String,
    /// Pinned; `None` is the one that serves by default.
    pub version: Option<String>,
    pub weight: u32,
    pub rows: usize,
    /// There is at least one.
    pub bodies: Vec<Body>,
}

/// One job's body.
pub struct Body {
    pub encoded: Encoded,
    /// Only where answers are checked.
    pub expected: Option<Expected>,
}

/// What all bodies of a model have in common.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    pub input: Option<&'a Path>,
    pub shapes: &'a [ForInput<RowShape>],
    pub datatypes: &'a [ForInput<AnyCase>],
    /// Rows a job; `None`: one, or as many as the model takes.
    pub rows: Option<usize>,
    pub encoding: RequestEncoding,
    pub seed: u64,
}

impl Wanted<'_> {
    /// Whether the model's signature must be known.
    pub fn needs_signature(&self) -> bool {
        self.input.is_none() && self.shapes.is_empty()
    }

    /// The bodies, with the right answers of `local` if `check` asks for them; and how many rows each has.
    ///
    /// # Errors
    /// The file has too few rows, or cannot be read; a job would be too big; or the model cannot be run on it.
    pub fn bodies(&self, local: Option<&mut Local>, check: bool) -> Result<(usize, Vec<Body>), InputsError> {
        let made_up = local.as_deref().filter(|_| self.shapes.is_empty());
        let fixed = made_up.and_then(|local| shapes::fixed_rows(local.signature()));
        let rows = self.rows.or(fixed).unwrap_or(1);
        if let Some(fixed) = fixed.filter(|fixed| *fixed != rows && self.input.is_none()) {
            return Err(InputsError::Fixed { rows, fixed });
        }
        let jobs = match self.input {
            Some(path) => self.read(path, rows)?,
            None => self.make_up(local.as_deref(), rows)?,
        };
        let mut checking = local.filter(|_| check);
        let body = |inputs: Vec<Tensor>| {
            let expected = checking.as_mut().map(|local| local.expect(&inputs)).transpose()?;
            Ok(Body {
                encoded: encode_request(self.encoding, None, &inputs, &[]),
                expected,
            })
        };
        let bodies = jobs.into_iter().map(body).collect::<Result<_, InputsError>>()?;
        Ok((rows, bodies))
    }

    fn make_up(&self, local: Option<&Local>, rows: usize) -> Result<Vec<Vec<Tensor>>, InputsError> {
        let by_both = local.and_then(|local| shapes::of_both(local.signature(), self.shapes, self.datatypes));
        let inputs = by_both.or_else(|| shapes::of_flags(self.shapes, self.datatypes));
        let inputs = inputs.unwrap_or_default();
        let job_bytes = inputs
            .iter()
            .map(|input| input.bytes(rows))
            .fold(0, usize::saturating_add);
        if job_bytes > JOB_BYTES_MAX {
            let row_bytes = job_bytes / rows.max(1);
            return Err(InputsError::TooBig { rows, row_bytes });
        }
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut job = || inputs.iter().map(|input| input.rows(rows, &mut random)).collect();
        Ok((0..bodies_of(job_bytes)).map(|_| job()).collect())
    }

    /// Whole jobs from the beginning of the file, as many as are held; the file need not be read further.
    fn read(&self, path: &Path, rows: usize) -> Result<Vec<Vec<Tensor>>, InputsError> {
        let reading = Reading::whole(self.datatypes.first().map(|flag| flag.value.0));
        let mut jobs = Vec::new();
        let mut room = POOL_BYTES_MAX;
        for block in Input::open(path)?.blocks(&reading, rows)? {
            let block = block?;
            let bytes = block.inputs.iter().map(|input| input.data.len()).sum();
            if block.rows() != rows || (room < bytes && !jobs.is_empty()) {
                break;
            }
            room = room.saturating_sub(bytes);
            jobs.push(block.inputs);
        }
        if jobs.is_empty() {
            return Err(InputsError::TooFewRows {
                path: path.to_owned(),
                rows,
            });
        }
        Ok(jobs)
    }
}

/// How many different bodies of this size are made up.
fn bodies_of(job_bytes: usize) -> usize {
    (POOL_BYTES_MAX / job_bytes.max(1)).clamp(1, BODIES_MAX)
}

/// Why there is nothing to send.
#[derive(Debug, thiserror::Error)]
pub enum InputsError {
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("{} has fewer than the {rows} rows of one job: lower --rows", path.display())]
    TooFewRows { path: PathBuf, rows: usize },
    #[error("--rows is {rows}, and the model takes {fixed} at a time: leave --rows out")]
    Fixed { rows: usize, fixed: usize },
    #[error("a job of {rows} rows of {row_bytes} bytes is more than RabbitMQ takes: lower --rows or --shape")]
    TooBig { rows: usize, row_bytes: usize },
}

/// Enough that no cache of rows makes a model faster than it is.
const BODIES_MAX: usize = 64;
const POOL_BYTES_MAX: usize = 64 << 20;
/// RabbitMQ's `max_message_size` can be no more than this.
const JOB_BYTES_MAX: usize = 512 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::request::decode_request;

    fn wanted<'a>(shapes: &'a [ForInput<RowShape>], rows: usize) -> Wanted<'a> {
        Wanted {
            input: None,
            shapes,
            datatypes: &[],
            rows: Some(rows),
            encoding: RequestEncoding::Binary,
            seed: 1,
        }
    }

    #[test]
    fn made_up_bodies_differ_and_are_the_same_for_a_seed() {
        let shapes = ["x=3".parse().unwrap(), "y=2,2".parse().unwrap()];

        let (rows, bodies) = wanted(&shapes, 5).bodies(None, false).unwrap();
        let (_, again) = wanted(&shapes, 5).bodies(None, false).unwrap();

        assert_eq!((rows, bodies.len()), (5, BODIES_MAX));
        let first = &bodies[0].encoded;
        let request = decode_request(&first.encoding(), first.body.clone()).unwrap();
        assert_eq!(request.inputs[0].shape, [5, 3]);
        assert_eq!(request.inputs[1].shape, [5, 2, 2]);
        assert_ne!(first.body, bodies[1].encoded.body);
        assert_eq!(first.body, again[0].encoded.body);
    }

    #[test]
    fn big_jobs_share_the_memory_and_one_that_is_too_big_is_refused() {
        let shapes = ["1048576".parse().unwrap()];

        let (_, bodies) = wanted(&shapes, 4).bodies(None, false).unwrap();
        let refused = wanted(&shapes, 200).bodies(None, false).err().unwrap().to_string();

        assert_eq!(bodies.len(), 4);
        assert!(
            refused.starts_with("a job of 200 rows of 4194304 bytes is more"),
            "{refused}"
        );
    }

    #[test]
    fn a_file_gives_whole_jobs_and_names_what_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.csv");
        std::fs::write(&path, "a,b\n1,2\n3,4\n5,6\n").unwrap();
        let of_file = |rows| {
            let wanted = Wanted {
                input: Some(&path),
                ..wanted(&[], rows)
            };
            wanted.bodies(None, false)
        };

        let (_, bodies) = of_file(2).unwrap();
        let refused = of_file(4).err().unwrap().to_string();

        assert_eq!(bodies.len(), 1);
        assert!(
            refused.ends_with("has fewer than the 4 rows of one job: lower --rows"),
            "{refused}"
        );
    }
}
