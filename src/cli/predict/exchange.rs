//! Sends blocks of rows as jobs, so many at a time, and takes in what comes back in the order of the rows.

use std::cell::Cell;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::Instant;

use super::answers::Answers;
use super::block::{Block, Key};
use super::failures::Failures;
use super::resume::{Note, Notes, Progress};
use super::rows::{Opening, Rows};
use super::takes;
use super::tally::Tally;
use super::{PredictArgs, PredictError};
use crate::broker::backoff::Backoff;
use crate::client::{Answer, CallError, Client, Job, RowRelation};
use crate::model::signature::TensorSpec;
use crate::wire::status::Status;
use crate::wire::tensor::Tensor;

/// Makes jobs of rows and has them answered.
pub struct Sender<'a> {
    args: &'a PredictArgs,
    client: &'a Client,
    /// Set once an answer leaves open whether rows may go together.
    is_row_by_row: Cell<bool>,
}

/// The rows of one job, and how it ended.
struct Ended {
    rows: usize,
    keys: Vec<Vec<Key>>,
    answer: Result<Answer, CallError>,
}

impl Ended {
    fn of(block: Block, answer: Result<Answer, CallError>) -> Self {
        Self {
            rows: block.rows(),
            keys: block.keys,
            answer,
        }
    }

    fn relation(&self) -> Option<RowRelation> {
        self.answer.as_ref().ok()?.rows
    }

    fn status(&self) -> Option<Status> {
        self.answer.as_ref().err()?.status()
    }

    /// True of a failure that a single row may not meet: the first axis of a model may be fixed, or so may be what a node makes
    /// of it.
    fn may_be_too_many(&self) -> bool {
        matches!(self.status(), Some(Status::InvalidArgument | Status::Internal))
    }

    /// Decides for a first block and its first row `alone` whether all rows go one by one.
    fn is_worse_than(&self, alone: &Self) -> bool {
        match (&self.answer, &alone.answer) {
            // An answer that is tried again may be wrong.
            (Ok(_), _) => true,
            (Err(_), Err(_)) => false,
            (Err(_), Ok(_)) if self.status() == Some(Status::InvalidArgument) => true,
            // Of independent rows one alone has failed, and costs no more than its own job.
            (Err(_), Ok(_)) => matches!(alone.relation(), Some(RowRelation::Unknown | RowRelation::Coupled)),
        }
    }
}

impl<'a> Sender<'a> {
    pub fn new(args: &'a PredictArgs, client: &'a Client) -> Self {
        Self {
            args,
            client,
            is_row_by_row: Cell::new(false),
        }
    }

    /// Sends the rows and hands what comes back to `run`, as many jobs on the way as `--in-flight` says.
    ///
    /// # Errors
    /// The input, the output or the broker is of no more use, or it is for the user to say which rows go together. What `run`
    /// has taken in is whole.
    pub async fn exchange(&self, rows: Opening, run: &mut Run) -> Result<(), PredictError> {
        let mut rows = rows.start(self.takes().await?, run.tally.rows())?;
        let Some(first) = rows.next().await else {
            return Ok(());
        };
        let first = self.first(&mut rows, first?).await;
        if self.may_not_choose(&first) {
            let is_only_row = run.tally.rows() == 0 && first.rows == 1 && rows.next().await.transpose()?.is_none();
            return if is_only_row {
                run.take(first)
            } else {
                Err(self.coupled())
            };
        }
        run.take(first)?;
        run.tally.show(rows.total_guess());
        let jobs = stream::unfold(rows, async |mut rows| {
            if self.is_row_by_row.get() {
                rows.cut_to(1);
            }
            let block = rows.next().await?;
            Some(((block, rows.total_guess()), rows))
        });
        let calls = jobs.map(|(block, total)| async move { Ok::<_, PredictError>((self.send(block?).await, total)) });
        let mut calls = std::pin::pin!(calls.buffered(self.args.in_flight.get()));
        while let Some(call) = calls.next().await {
            let (jobs, total) = call?;
            for ended in jobs {
                if self.may_not_choose(&ended) {
                    return Err(self.coupled());
                }
                run.take(ended)?;
            }
            run.tally.show(total);
        }
        Ok(())
    }

    /// Asks what the model takes; none where no worker says it.
    async fn takes(&self) -> Result<Vec<TensorSpec>, PredictError> {
        let question = Job {
            outputs: Vec::new(),
            ..self.job(vec![takes::question()])
        };
        match self.call_again(question).await {
            Ok(_) => Ok(Vec::new()),
            // Every job would meet these.
            Err(
                error @ (CallError::UnknownModel(_)
                | CallError::Lost(_)
                | CallError::Forbidden(_)
                | CallError::Timeout(_)),
            ) => Err(PredictError::Call(error)),
            Err(error) if error.status() == Some(Status::NotFound) => Err(PredictError::Call(error)),
            Err(error) => Ok(takes::inputs(&error)),
        }
    }

    /// Sends the first block by itself: what is wrong with it is wrong with all, and what its answer says of rows is true of
    /// all. Its first row is tried alone where the answer leaves open how rows relate, or there is none.
    async fn first(&self, rows: &mut Rows, mut block: Block) -> Ended {
        let whole = Ended {
            rows: block.rows(),
            keys: block.keys.clone(),
            answer: self.call(block.tensors()).await,
        };
        let may_be_better = self.is_open(&whole) || whole.may_be_too_many();
        if self.args.rows_per_job.is_some() || !may_be_better {
            return whole;
        }
        let Some(rest) = block.split_off(1) else {
            return whole;
        };
        let answer = self.call(block.tensors()).await;
        let alone = Ended::of(block, answer);
        if !whole.is_worse_than(&alone) {
            return whole;
        }
        if whole.status() != Some(Status::InvalidArgument) && alone.relation() != Some(RowRelation::Coupled) {
            self.go_row_by_row();
        }
        rows.put_back(rest);
        rows.cut_to(1);
        alone
    }

    /// Sends a block, and its rows again one by one if the answer leaves open whether they may go together.
    async fn send(&self, mut block: Block) -> Vec<Ended> {
        let whole = Ended {
            rows: block.rows(),
            keys: std::mem::take(&mut block.keys),
            answer: self.call(block.tensors()).await,
        };
        if !self.is_open(&whole) {
            return vec![whole];
        }
        self.go_row_by_row();
        block.keys = whole.keys;
        let mut rest = Some(block);
        let mut jobs = Vec::new();
        while let Some(mut row) = rest.take() {
            rest = row.split_off(1);
            let answer = self.call(row.tensors()).await;
            jobs.push(Ended::of(row, answer));
        }
        jobs
    }

    /// True of an answer to several rows that may be wrong for each, since nothing shows that rows are independent.
    fn is_open(&self, ended: &Ended) -> bool {
        self.args.rows_per_job.is_none() && ended.rows > 1 && ended.relation() == Some(RowRelation::Unknown)
    }

    /// True where rows depend on each other, so that only the user can say which go together.
    fn may_not_choose(&self, ended: &Ended) -> bool {
        self.args.rows_per_job.is_none() && ended.relation() == Some(RowRelation::Coupled)
    }

    fn coupled(&self) -> PredictError {
        PredictError::Coupled {
            model: self.args.model.clone(),
        }
    }

    fn go_row_by_row(&self) {
        if !self.is_row_by_row.replace(true) {
            eprintln!(
                "inferq: nothing shows that the rows of model `{}` are independent, so every row is a job of its own; \
                 --rows-per-job sends more together",
                self.args.model
            );
        }
    }

    /// Calls again where time may help: the queue was full, or the workers could not be done in time.
    async fn call(&self, inputs: Vec<Tensor>) -> Result<Answer, CallError> {
        self.call_again(self.job(inputs)).await
    }

    fn job(&self, inputs: Vec<Tensor>) -> Job {
        Job {
            model: self.args.model.clone(),
            version: self.args.version.clone(),
            inputs,
            outputs: self.args.output_name.iter().cloned().collect(),
            ..Job::default()
        }
    }

    async fn call_again(&self, job: Job) -> Result<Answer, CallError> {
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
        | CallError::Lost(_)
        | CallError::Forbidden(_) => false,
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
    fn take(&mut self, ended: Ended) -> Result<(), PredictError> {
        let Ended { rows, keys, answer } = ended;
        match answer {
            Ok(answer) => {
                self.be_version(&answer.model_version)?;
                self.answers.push(rows, &keys, &answer)?;
                self.tally.answered(rows, answer.latency);
                self.answered += 1;
            }
            Err(error) if self.concerns_all(&error) => return Err(PredictError::Call(error)),
            Err(error) => {
                let reason = crate::error::chain(&error);
                self.answers.push_failed(rows, &keys, &reason)?;
                self.failures.push(self.tally.rows(), rows, &keys, &reason)?;
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
    fn be_version(&mut self, now: &str) -> Result<(), PredictError> {
        match &self.version {
            None => self.version = Some(now.to_owned()),
            Some(before) if self.ended == 0 && before != now => {
                return Err(PredictError::OtherVersion {
                    before: before.clone(),
                    now: now.to_owned(),
                });
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// True of an error that every other job would meet as well.
    fn concerns_all(&self, error: &CallError) -> bool {
        match error {
            CallError::UnknownModel(_) | CallError::Lost(_) | CallError::Forbidden(_) => true,
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
        let is_new_beginning = match reason {
            // Another input or another way to write it down.
            PredictError::Input(_) | PredictError::Answers(_) => true,
            // Or to send it, unless rows were answered before the model was another.
            PredictError::Coupled { .. } => self.version.is_none(),
            PredictError::Output(_)
            | PredictError::Resume(_)
            | PredictError::Call(_)
            | PredictError::Client(_)
            | PredictError::OutputIsInput(_)
            | PredictError::Ending(_)
            | PredictError::NoResume
            | PredictError::OtherVersion { .. }
            | PredictError::Stopped
            | PredictError::Signals(_)
            | PredictError::Kept { .. } => false,
        };
        if is_new_beginning {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(rows: Option<RowRelation>) -> Ended {
        ended(Ok(Answer {
            rows,
            ..Answer::default()
        }))
    }

    fn refused(code: Status) -> Ended {
        let error = "no".to_owned();
        ended(Err(CallError::Refused { code, error }))
    }

    fn ended(answer: Result<Answer, CallError>) -> Ended {
        Ended {
            rows: 1,
            keys: Vec::new(),
            answer,
        }
    }

    #[test]
    fn rows_go_alone_where_a_block_fails_that_may_be_too_much() {
        let (independent, unknown) = (Some(RowRelation::Independent), Some(RowRelation::Unknown));
        for (whole, alone, expected) in [
            (answered(unknown), answered(unknown), true),
            (answered(unknown), refused(Status::Internal), true),
            (refused(Status::InvalidArgument), answered(independent), true),
            (refused(Status::InvalidArgument), answered(None), true),
            (
                refused(Status::InvalidArgument),
                refused(Status::InvalidArgument),
                false,
            ),
            (refused(Status::Internal), answered(unknown), true),
            (refused(Status::Internal), answered(Some(RowRelation::Coupled)), true),
            (refused(Status::Internal), answered(independent), false),
            (refused(Status::Internal), answered(None), false),
            (refused(Status::Internal), refused(Status::Internal), false),
        ] {
            let said = format!("{:?} {:?}", whole.answer, alone.answer);

            assert_eq!(whole.is_worse_than(&alone), expected, "{said}");
        }
    }
}
