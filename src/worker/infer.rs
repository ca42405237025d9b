//! Inference: from a [`Batch`] to answers, on a thread of its own with an engine of its own.
//!
//! A batch that fails is run again in halves until the culprit stands alone, so that nobody else is hurt.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::batch::{Batch, EngineSlot};
use super::decode::{Job, Lane};
use super::outputs::{self, Run};
use super::reply::{Answer, Outcome, Timing};
use super::{Fatal, WorkerError};
use crate::error::JobError;
use crate::model::signature::Signature;
use crate::wire::tensor::rows_range;

/// Runs one model. An engine lives on one thread and is called by nobody else.
pub trait Engine {
    fn signature(&self) -> &Signature;

    /// Runs the model once.
    ///
    /// `inputs` and the result follow the order of the signature. Blocks the thread for the whole run.
    /// # Errors
    /// `EngineError::Run` if the runtime refuses these inputs, `EngineError::Memory` if it could not allocate
    /// for them; the engine stays usable after both.
    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<Output>, EngineError>;
}

/// One input of a run. `parts`, joined, are the tensor's data as in [`crate::wire::tensor::Tensor`].
#[derive(Debug, Clone)]
pub struct Input<'a> {
    pub shape: Vec<usize>,
    pub parts: Vec<&'a [u8]>,
}

/// One output of a run: its shape, and its data wherever the runtime left them.
pub struct Output {
    pub shape: Vec<usize>,
    data: Box<dyn AsRef<[u8]> + Send>,
}

impl Output {
    pub fn new(shape: Vec<usize>, data: impl AsRef<[u8]> + Send + 'static) -> Self {
        Self {
            shape,
            data: Box::new(data),
        }
    }

    /// The data, laid out as in [`crate::wire::tensor::Tensor`].
    pub fn bytes(&self) -> &[u8] {
        (*self.data).as_ref()
    }
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the model failed on this input: {0}")]
    Run(String),
    #[error("the runtime could not allocate memory for this run: {0}")]
    Memory(String),
    #[error("the device is lost: {0}")]
    Device(String),
}

/// An engine with its thread's ends of the channels.
pub struct Inference {
    pub engine: Box<dyn Engine + Send>,
    pub lane: Arc<Lane>,
    pub reply_bytes_max: usize,
    pub idle: Sender<EngineSlot>,
    pub answers: Sender<Vec<Answer>>,
    pub fatal: Fatal,
}

impl Inference {
    /// Runs batches until the batching stage is gone. Blocks the thread.
    pub fn run(self) {
        let fatal = self.fatal.clone();
        // A thread that ended unseen would leave a worker that takes jobs and answers none.
        if catch_unwind(AssertUnwindSafe(|| self.work())).is_err() {
            fatal.raise(WorkerError::Panicked);
        }
    }

    fn work(mut self) {
        loop {
            let (slot, batch) = oneshot::channel();
            if self.idle.blocking_send(EngineSlot(slot)).is_err() {
                return;
            }
            // The stage drops the slots it has no more batches for.
            let Ok(batch) = batch.blocking_recv() else { return };
            let mut answers = Vec::with_capacity(batch.jobs.len());
            if let Err(lost) = self.execute(batch, &mut answers) {
                return self.fatal.raise(WorkerError::Device(lost));
            }
            if self.answers.blocking_send(answers).is_err() {
                return;
            }
        }
    }

    /// Runs a batch, apart where it fails, and adds an answer for each of its jobs.
    ///
    /// # Errors
    /// The device is lost; the jobs are dropped unsettled and go back to the broker.
    fn execute(&mut self, mut batch: Batch, answers: &mut Vec<Answer>) -> Result<(), String> {
        let started = Instant::now();
        match run_batch(&mut *self.engine, &batch.jobs, &self.lane) {
            Ok(runs) => {
                let infer = started.elapsed();
                self.lane.metrics.ran(batch.rows, infer);
                self.answer(batch, &runs, started, infer, answers);
                Ok(())
            }
            Err(EngineError::Device(lost)) => Err(lost),
            Err(EngineError::Run(_) | EngineError::Memory(_)) if batch.jobs.len() > 1 => {
                self.lane.metrics.bisected.inc();
                let back = batch.jobs.split_off(batch.jobs.len() / 2);
                for jobs in [batch.jobs, back] {
                    let rows = jobs.iter().map(|job| job.rows).sum();
                    self.execute(Batch { jobs, rows }, answers)?;
                }
                Ok(())
            }
            Err(error) => {
                let error = match error {
                    EngineError::Memory(_) => JobError::Unavailable(error.to_string()),
                    EngineError::Run(_) | EngineError::Device(_) => JobError::Failed(error.to_string()),
                };
                // One job is left, and it is the culprit.
                answers.extend(batch.jobs.pop().map(|job| Answer {
                    envelope: job.envelope,
                    outcome: Outcome::Failure(error),
                }));
                Ok(())
            }
        }
    }

    fn answer(&self, batch: Batch, runs: &[Run], started: Instant, infer: Duration, answers: &mut Vec<Answer>) {
        let mut first_row = 0;
        let batch_rows = batch.rows;
        for job in batch.jobs {
            let rows = first_row..first_row + job.rows;
            first_row = rows.end;
            let timing = Timing {
                wait: started.saturating_duration_since(job.envelope.arrived),
                infer,
                batch_rows,
            };
            self.lane.metrics.waited(timing.wait);
            answers.push(Answer {
                outcome: match outputs::encode(&job, runs, rows, self.reply_bytes_max) {
                    Ok(body) => Outcome::Result { body, timing },
                    Err(error) => Outcome::Failure(error),
                },
                envelope: job.envelope,
            });
        }
    }
}

/// Runs all rows of the jobs: at once, or a job that is bigger than a batch may be in slices.
fn run_batch(engine: &mut dyn Engine, jobs: &[Job], lane: &Lane) -> Result<Vec<Run>, EngineError> {
    let rows: usize = jobs.iter().map(|job| job.rows).sum();
    let mut slice_rows = if lane.batching { lane.rows_max } else { rows };
    loop {
        match run_slices(engine, jobs, lane, rows, slice_rows) {
            // Only a job on its own is worth a smaller slice here; of several, each is first tried alone.
            Err(EngineError::Memory(_)) if jobs.len() == 1 && lane.batching && slice_rows.min(rows) > 1 => {
                slice_rows = slice_rows.min(rows) / 2;
            }
            done => return done,
        }
    }
}

fn run_slices(
    engine: &mut dyn Engine,
    jobs: &[Job],
    lane: &Lane,
    rows: usize,
    slice_rows: usize,
) -> Result<Vec<Run>, EngineError> {
    if rows <= slice_rows || !lane.batching {
        let inputs = whole(jobs, lane, rows);
        return Ok(vec![run_once(engine, lane, &inputs, 0..rows)?]);
    }
    (0..rows)
        .step_by(slice_rows)
        .map(|start| {
            let slice = start..rows.min(start + slice_rows);
            let inputs: Vec<_> = jobs.iter().flat_map(|job| sliced(job, &slice)).collect();
            run_once(engine, lane, &inputs, slice)
        })
        .collect()
}

/// The inputs of all jobs, one under the other.
fn whole<'a>(jobs: &'a [Job], lane: &Lane, rows: usize) -> Vec<Input<'a>> {
    (0..lane.signature.inputs.len())
        .map(|index| {
            let mut shape = jobs[0].inputs[index].shape.clone();
            if lane.batching {
                shape[0] = rows;
            }
            let parts = jobs.iter().map(|job| &*job.inputs[index].data).collect();
            Input { shape, parts }
        })
        .collect()
}

/// Some rows of one job.
fn sliced<'a>(job: &'a Job, rows: &std::ops::Range<usize>) -> Vec<Input<'a>> {
    job.inputs
        .iter()
        .map(|tensor| {
            let mut shape = tensor.shape.clone();
            shape[0] = rows.len();
            let range = rows_range(&tensor.data, tensor.datatype, &tensor.shape, rows);
            Input {
                shape,
                parts: vec![&tensor.data[range]],
            }
        })
        .collect()
}

fn run_once(
    engine: &mut dyn Engine,
    lane: &Lane,
    inputs: &[Input<'_>],
    rows: std::ops::Range<usize>,
) -> Result<Run, EngineError> {
    // A panic must cost one job its answer, not a batch its receipts.
    let ran = catch_unwind(AssertUnwindSafe(|| engine.run(inputs)));
    let outputs = ran.unwrap_or_else(|_| Err(EngineError::Run("the engine panicked".to_owned())))?;
    let run = Run { rows, outputs };
    run.check(lane)?;
    Ok(run)
}

#[cfg(test)]
mod tests;
