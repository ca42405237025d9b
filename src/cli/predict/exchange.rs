//! Sends blocks of rows as jobs, so many at a time, and takes in what comes back in the order of the rows.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::Instant;

use super::answers::Answers;
use super::block::{Block, Key};
use super::failures::Failures;
use super::resume::{Note, Notes, Progress};
use super::rows::Rows;
use super::tally::Tally;
use super::{PredictArgs, PredictError};
use crate::broker::backoff::Backoff;
use crate::client::{Answer, CallError, Client, Job};
use crate::wire::status::Status;
use crate::wire::tensor::Tensor;

/// Makes jobs of rows and has them answered.
pub struct Sender<'a> {
    pub args: &'a PredictArgs,
    pub client: &'a Client,
}

impl Sender<'_> {
    /// Sends the rows and hands what comes back to `run`, as many jobs on the way as `--in-flight` says.
    ///
    /// # Errors
    /// The input, the output or the broker is of no more use. What `run` has taken in is whole.
    pub async fn exchange(&self, mut rows: Rows, run: &mut Run) -> Result<(), PredictError> {
        let Some(first) = rows.next().await else {
            return Ok(());
        };
        let (block, answer) = self.first(&mut rows, first?).await;
        run.take(block.rows(), &block.keys, answer)?;
        run.tally.show(rows.total_guess());
        let jobs = stream::unfold(rows, async |mut rows| {
            let block = rows.next().await?;
            Some(((block, rows.total_guess()), rows))
        });
        let calls = jobs.map(|(block, total)| async move {
            let mut block = block?;
            let count = block.rows();
            let answer = self.call(std::mem::take(&mut block.inputs)).await;
            Ok::<_, PredictError>((count, block.keys, answer, total))
        });
        let mut calls = std::pin::pin!(calls.buffered(self.args.in_flight.get()));
        while let Some(call) = calls.next().await {
            let (count, keys, answer, total) = call?;
            run.take(count, &keys, answer)?;
            run.tally.show(total);
        }
        Ok(())
    }

    /// Sends the first block by itself: what is wrong with it is wrong with all. A model whose first axis is fixed refuses many
    /// rows; if it takes one, that is how the others go as well.
    async fn first(&self, rows: &mut Rows, mut block: Block) -> (Block, Result<Answer, CallError>) {
        let answer = self.call(block.inputs.clone()).await;
        let may_be_too_many = matches!(&answer, Err(error) if error.status() == Some(Status::InvalidArgument));
        if !may_be_too_many || self.args.rows_per_job.is_some() {
            return (block, answer);
        }
        let whole = block.inputs.clone();
        let Some(rest) = block.split_off(1) else {
            return (block, answer);
        };
        match self.call(block.inputs.clone()).await {
            Ok(alone) => {
                rows.put_back(rest);
                rows.cut_to(1);
                (block, Ok(alone))
            }
            Err(_) => {
                block.inputs = whole;
                (block, answer)
            }
        }
    }

    /// Calls again where time may help: the queue was full, or the workers could not be done in time.
    async fn call(&self, inputs: Vec<Tensor>) -> Result<Answer, CallError> {
        let job = Job {
            model: self.args.model.clone(),
            version: self.args.version.clone(),
            inputs,
            outputs: self.args.output_name.iter().cloned().collect(),
            ..Job::default()
        };
        let mut backoff = Backoff::new(RETRY_WAIT_MAX);
        for _ in 0..self.args.retries {
            match self.client.call(job.clone()).await {
                Err(error) if may_pass(&error) => tokio::time::sleep(backoff.next(fastrand::f64())).await,
                ended => return ended,
            }
        }
        self.client.call(job).await
    }
}

/// True of an error that another time the same job may not meet.
fn may_pass(error: &CallError) -> bool {
    match error {
        CallError::QueueFull(_) => true,
        CallError::Refused { code, .. } => matches!(code, Status::DeadlineExceeded | Status::Unavailable),
        CallError::UnknownModel(_)
        | CallError::Timeout(_)
        | CallError::Reply(_)
        | CallError::Datatype { .. }
        | CallError::TooLong { .. }
        | CallError::Scatter(_)
        | CallError::Lost(_) => false,
    }
}

/// What has come of the rows so far.
pub struct Run {
    answers: Answers,
    failures: Failures,
    pub tally: Tally,
    /// `None` where nothing can be gone on with.
    notes: Option<Notes>,
    /// Of the version that answered first, be it in an earlier run.
    version: Option<String>,
    /// Jobs of this run that have ended, one way or the other.
    ended: u64,
    answered: u64,
}

impl Run {
    pub fn new(answers: Answers, failures: Failures, notes: Option<Notes>, before: Option<Note>) -> Self {
        let mut tally = Tally::new();
        let (mut answers, mut version) = (answers, None);
        if let Some(before) = before {
            tally = tally.after(before.rows, before.jobs, before.failed_rows);
            answers = answers.after(before.rows, before.layout);
            version = before.model_version;
        }
        Self {
            answers,
            failures,
            tally,
            notes,
            version,
            ended: 0,
            answered: 0,
        }
    }

    /// Takes in how a job ended; the first ones first.
    fn take(&mut self, rows: usize, keys: &[Vec<Key>], answer: Result<Answer, CallError>) -> Result<(), PredictError> {
        match answer {
            Ok(answer) => {
                self.be_version(answer.model_version)?;
                self.answers.push(rows, keys, &answer.outputs)?;
                self.tally.answered(rows, answer.latency);
                self.answered += 1;
            }
            Err(error) if self.concerns_all(&error) => return Err(PredictError::Call(error)),
            Err(error) => {
                let reason = crate::error::chain(&error);
                self.answers.push_failed(rows, keys, &reason)?;
                self.failures.push(self.tally.rows(), rows, keys, &reason)?;
                self.tally.failed(rows, reason);
            }
        }
        self.ended += 1;
        let now = Instant::now();
        if self.notes.as_ref().is_some_and(|notes| notes.is_due(now)) {
            self.keep(now)?;
        }
        Ok(())
    }

    /// Two versions in one file would be told apart by nobody. While a run goes on a new version may come to serve, as it may for
    /// everybody; but who goes on another day is asked.
    fn be_version(&mut self, now: String) -> Result<(), PredictError> {
        match &self.version {
            None => self.version = Some(now),
            Some(before) if self.ended == 0 && *before != now => {
                return Err(PredictError::OtherVersion {
                    before: before.clone(),
                    now,
                });
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// True of an error that every other job would meet as well.
    fn concerns_all(&self, error: &CallError) -> bool {
        match error {
            CallError::UnknownModel(_) | CallError::Lost(_) => true,
            // All jobs look alike: what is wrong with the first one's shape or version is wrong with all.
            CallError::Refused {
                code: Status::InvalidArgument | Status::NotFound,
                ..
            }
            // Nobody has ever answered, so it is not this job that is slow.
            | CallError::Timeout(_) => self.ended == 0,
            // So many and not a single answer. Their keys wait in memory for the width of a row.
            CallError::Refused { .. } | CallError::QueueFull(_) | CallError::Reply(_) | CallError::Datatype { .. }
            | CallError::TooLong { .. } | CallError::Scatter(_) => self.answered == 0 && self.ended >= FAILED_MAX,
        }
    }

    /// Puts on disk what there is, with a note of it; false if it cannot be gone on with.
    fn keep(&mut self, now: Instant) -> Result<bool, PredictError> {
        let Some(notes) = &mut self.notes else { return Ok(false) };
        let Some((output_bytes, layout)) = self.answers.keep()? else {
            return Ok(false);
        };
        let progress = Progress {
            rows: self.tally.rows(),
            jobs: self.tally.jobs(),
            failed_rows: self.tally.failed_rows(),
            output_bytes,
            failures_bytes: self.failures.keep()?,
            model_version: self.version.clone(),
            layout,
        };
        notes.write(progress, now)?;
        Ok(true)
    }

    /// Ends before the end, for `reason`, and keeps what the next run can go on with.
    pub fn suspend(mut self, reason: PredictError) -> PredictError {
        self.tally.hide();
        if matches!(reason, PredictError::Input(_) | PredictError::Answers(_)) {
            // Another input or another way to write it down is a new beginning.
            self.answers.discard();
            self.failures.discard();
            if let Some(notes) = &self.notes {
                notes.remove();
            }
            return reason;
        }
        match (self.keep(Instant::now()), &self.notes) {
            (Ok(true), Some(notes)) => PredictError::Kept {
                rows: self.tally.rows(),
                part: notes.part(),
                reason: Box::new(reason),
            },
            // What was noted before is as good as it was.
            _ => reason,
        }
    }

    /// Completes the files.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn finish(mut self) -> Result<Tally, PredictError> {
        self.tally.listed_in(self.failures.path());
        self.answers.finish()?;
        self.failures.finish()?;
        if let Some(notes) = &self.notes {
            notes.remove();
        }
        Ok(self.tally)
    }
}

/// The longest wait before a job is sent again.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);
/// Jobs that may fail before the first answer.
const FAILED_MAX: u64 = 1_000;
