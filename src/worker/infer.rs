//! Inference: from a [`Batch`] to answers, on a thread of its own with an engine of its own.
//!
//! A batch that fails is run again in halves until the culprit stands alone, so that nobody else is hurt. A job that came
//! back more than once is run in a process of its own ([`super::isolate`]), and every run is watched ([`super::watch`]).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::warn;

use super::batch::{Batch, EngineSlot, Work};
use super::decode::{Job, Lane};
use super::hardware::Hardware;
use super::isolate::{Isolated, Isolation};
use super::outputs::{self, Run, Share};
use super::reply::{Answer, Outcome, Timing};
use super::row_headers::RowHeaders;
use super::rows_limit::RowsLimit;
use super::watch::{Stop, Watched};
use super::{Fatal, WorkerError};
use crate::error::JobError;
use crate::model::capacity::Fit;
use crate::model::signature::{Signature, TensorSpec};
use crate::telemetry::trace;
use crate::wire::tensor::rows_range;

/// Runs one model. An engine lives on one thread and is called by nobody else.
pub trait Engine {
    fn signature(&self) -> &Signature;

    /// Inputs that have a value of their own, which a job may give another.
    fn defaults(&self) -> &[TensorSpec] {
        &[]
    }

    /// Runs the model once.
    ///
    /// `inputs` and the result follow the order of the signature. After the inputs of the signature may come one for each of
    /// [`Engine::defaults`], some of them absent. Blocks the thread for the whole run.
    /// # Errors
    /// `EngineError::Run` if the runtime refuses these inputs, `EngineError::Memory` if it could not allocate
    /// for them; the engine stays usable after both.
    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<Output>, EngineError>;

    /// What ends the next run from another thread, where the engine can be told.
    fn stopper(&mut self) -> Option<Arc<dyn Stop>> {
        None
    }
}

/// One input of a run. `parts`, joined, are the tensor's data as in [`crate::wire::tensor::Tensor`].
#[derive(Debug, Clone)]
pub struct Input<'a> {
    pub shape: Vec<usize>,
    pub parts: Vec<&'a [u8]>,
}

impl Input<'_> {
    /// Stands for an input that keeps its own value.
    pub const ABSENT: Self = Self {
        shape: Vec::new(),
        parts: Vec::new(),
    };

    /// Whether it has no data although it has no axes, and so must have some.
    pub fn is_absent(&self) -> bool {
        self.shape.is_empty() && self.parts.iter().all(|part| part.is_empty())
    }
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

    /// Copies the data out of the runtime's memory, which then serves the next run: a runtime does not give back what it has taken
    /// once, and the outputs of many runs may wait for each other.
    pub fn leave_the_runtime(&mut self) {
        self.data = Box::new(self.bytes().to_vec());
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
    #[error("the run took longer than {} ms (worker.run_timeout_ms) and was ended", .0.as_millis())]
    Late(Duration),
}

/// An engine with its thread's ends of the channels.
pub struct Inference {
    pub engine: Box<dyn Engine + Send>,
    pub lane: Arc<Lane>,
    /// What the runs of this engine take.
    pub fit: Fit,
    /// The model's file and where it runs, for a process of its own.
    pub model: PathBuf,
    pub hardware: Hardware,
    pub isolation: Option<Isolation>,
    pub isolated: Option<Isolated>,
    pub watched: Watched,
    pub run_max: Duration,
    pub rows_limit: RowsLimit,
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
            self.lane.hurry.engine_is_idle();
            // The stage drops the slots it has no more batches for.
            let Ok(Work { batch, mut turn }) = batch.blocking_recv() else {
                return;
            };
            turn.begin(Instant::now());
            let mut answers = Vec::with_capacity(batch.jobs.len());
            let lost = self.execute(batch, &mut answers).err();
            // The next run need not wait until the answers are passed on.
            drop(turn);
            // Also when the device was lost on the way: what was computed before is good.
            if self.answers.blocking_send(answers).is_err() {
                return;
            }
            if let Some(lost) = lost {
                return self.fatal.raise(WorkerError::Device(lost));
            }
        }
    }

    /// Runs a batch, apart where it fails, and adds an answer for each of its jobs.
    ///
    /// # Errors
    /// The device is lost; the jobs are dropped unsettled and go back to the broker.
    pub(super) fn execute(&mut self, mut batch: Batch, answers: &mut Vec<Answer>) -> Result<(), String> {
        // Once for the batch: another engine of the lane may withdraw it at any time.
        let is_batched = self.lane.rows.are_batched() && all_as_usual(&batch.jobs);
        if batch.jobs.len() > 1 && !is_batched {
            return self.execute_all(singly(batch.jobs), answers);
        }
        if batch.jobs.len() > 1 && batch.rows > self.rows_limit.rows() {
            return self.execute_all(within(batch.jobs, self.rows_limit.rows()), answers);
        }
        let started = Instant::now();
        match self.run_batch(&batch.jobs, is_batched) {
            Ok(runs) if self.rows_are_wrong(&batch, is_batched, &runs) && (batch.jobs.len() > 1 || runs.len() > 1) => {
                self.execute_all(singly(batch.jobs), answers)
            }
            Ok(runs) => {
                let infer = started.elapsed();
                self.lane.metrics.ran(batch.rows, infer);
                trace_run(&mut batch, started, started + infer);
                self.answer(batch, &runs, started, infer, answers);
                Ok(())
            }
            Err(EngineError::Device(lost)) => Err(lost),
            Err(error) if batch.jobs.len() > 1 => {
                self.lane.metrics.bisected.inc();
                self.execute_all(apart(batch.jobs, &error), answers)
            }
            Err(error) => {
                let error = match error {
                    EngineError::Memory(_) => JobError::Unavailable(error.to_string()),
                    EngineError::Run(_) | EngineError::Device(_) | EngineError::Late(_) => {
                        JobError::Failed(error.to_string())
                    }
                };
                trace_run(&mut batch, started, Instant::now());
                // One job is left, and it is the culprit.
                answers.extend(batch.jobs.pop().map(|job| Answer {
                    envelope: job.envelope,
                    outcome: Outcome::Failure(error),
                }));
                Ok(())
            }
        }
    }

    fn execute_all(&mut self, batches: Vec<Vec<Job>>, answers: &mut Vec<Answer>) -> Result<(), String> {
        for jobs in batches {
            let rows = jobs.iter().map(|job| job.rows).sum();
            self.execute(Batch { jobs, rows }, answers)?;
        }
        Ok(())
    }

    /// Looks for an output that should have one row for each row of the inputs and has not. From the first one on every job of the lane is
    /// run alone and answered with what comes.
    fn rows_are_wrong(&self, batch: &Batch, is_batched: bool, runs: &[Run]) -> bool {
        let lane = &*self.lane;
        // Jobs of a lane that is not batched may have inputs that do not agree on the rows.
        let agree = |job: &Job| job.inputs.iter().all(|input| input.shape.first() == Some(&job.rows));
        let must_have_rows =
            is_batched || all_as_usual(&batch.jobs) && lane.rows.are_independent() && batch.jobs.iter().all(agree);
        if !must_have_rows {
            return false;
        }
        let Some(output) = runs.iter().find_map(|run| run.output_without_rows(lane)) else {
            return false;
        };
        if lane.rows.withdraw() {
            lane.metrics.rows_info.withdraw(&output.to_string());
            warn!(
                model.name = %lane.model,
                model.version = lane.version,
                output = output.name,
                shape = ?output.shape,
                rows = output.rows,
                "an output does not have one row for each row of the inputs; jobs of this model are not batched any more"
            );
        }
        true
    }

    fn run_batch(&mut self, jobs: &[Job], is_batched: bool) -> Result<Vec<Run>, EngineError> {
        let apart = self.runs_apart(jobs) && self.isolate();
        let engine: &mut dyn Engine = match &mut self.isolated {
            Some(isolated) if apart => {
                self.lane.metrics.isolated.inc();
                isolated
            }
            _ => &mut *self.engine,
        };
        // What memory another process finds says nothing of ours.
        let mut other_limit = self.rows_limit.clone();
        let mut guarded = Guarded {
            engine,
            watched: &self.watched,
            run_max: self.run_max,
            lane: &self.lane,
            is_batched,
            // A process of its own takes longer, and runs what says little of other jobs.
            fit: (!apart).then_some(&mut self.fit),
            limit: if apart { &mut other_limit } else { &mut self.rows_limit },
        };
        let ran = guarded.run_batch(jobs);
        self.lane.metrics.rows_limit.set(self.rows_limit.rows() as i64);
        if !apart {
            // The second copy of the model has served.
            self.isolated = None;
        }
        ran
    }

    /// Whether the jobs are one that has come back too often to be trusted.
    fn runs_apart(&self, jobs: &[Job]) -> bool {
        match (jobs, &self.isolation) {
            ([job], Some(isolation)) => job.envelope.delivery_count >= isolation.after,
            _ => false,
        }
    }

    /// Sees to a process for such a job. Without one the job runs here: alone, and at the worker's risk.
    fn isolate(&mut self) -> bool {
        let Some(isolation) = &self.isolation else { return false };
        if self.isolated.as_ref().is_some_and(Isolated::is_fit) {
            return true;
        }
        let (program, signature) = (&isolation.program, self.engine.signature());
        let started = Isolated::start(program, &self.model, &self.hardware, signature).and_then(|mut process| {
            self.watched.begin(Instant::now(), process.stopper());
            let waited = process.wait();
            self.watched.end();
            waited.map(|()| process)
        });
        match started {
            Ok(process) => self.isolated = Some(process),
            Err(error) => {
                self.isolated = None;
                warn!(model.name = %self.lane.model, "a job that came back cannot be run in a process of its own: {error}");
            }
        }
        self.isolated.is_some()
    }

    fn answer(&self, batch: Batch, runs: &[Run], started: Instant, infer: Duration, answers: &mut Vec<Answer>) {
        let mut first_row = 0;
        let batch_rows = batch.rows;
        let is_whole = batch.jobs.len() == 1 && runs.len() == 1;
        for job in batch.jobs {
            let rows = first_row..first_row + job.rows;
            first_row = rows.end;
            let share = if is_whole { Share::Whole } else { Share::Rows(rows) };
            let timing = Timing {
                wait: started.saturating_duration_since(job.envelope.arrived),
                infer,
                batch_rows,
            };
            self.lane.metrics.waited(timing.wait);
            answers.push(Answer {
                outcome: match JobError::contain("writing the reply", || {
                    outputs::encode(&job, runs, &share, self.reply_bytes_max)
                }) {
                    Ok(body) => Outcome::Result {
                        body,
                        timing,
                        rows: if job.given.is_empty() {
                            self.lane.rows.headers().holding(&job.outputs)
                        } else {
                            RowHeaders::unknown()
                        },
                    },
                    Err(error) => Outcome::Failure(error),
                },
                envelope: job.envelope,
            });
        }
    }
}

/// Whether no job gives another value to an input that has one: what is known of the rows holds for those alone.
fn all_as_usual(jobs: &[Job]) -> bool {
    jobs.iter().all(|job| job.given.is_empty())
}

fn trace_run(batch: &mut Batch, began: Instant, ended: Instant) {
    let rows = batch.rows;
    let traces = batch.jobs.iter_mut().filter_map(|job| job.envelope.trace());
    trace::ran(traces, began, ended, rows);
}

/// The jobs of a failed batch, to be run again: in halves, or each alone where every failure costs a whole time limit.
fn apart(mut jobs: Vec<Job>, error: &EngineError) -> Vec<Vec<Job>> {
    if let EngineError::Late(_) = error {
        return singly(jobs);
    }
    let back = jobs.split_off(jobs.len() / 2);
    vec![jobs, back]
}

fn singly(jobs: Vec<Job>) -> Vec<Vec<Job>> {
    jobs.into_iter().map(|job| vec![job]).collect()
}

/// The jobs in their order, so many at a time that their rows are within the limit, as far as they can be.
fn within(jobs: Vec<Job>, rows_max: usize) -> Vec<Vec<Job>> {
    let mut batches: Vec<Vec<Job>> = Vec::new();
    let mut rows = 0;
    for job in jobs {
        rows += job.rows;
        match batches.last_mut().filter(|_| rows <= rows_max) {
            Some(batch) => batch.push(job),
            None => {
                rows = job.rows;
                batches.push(vec![job]);
            }
        }
    }
    batches
}

/// An engine whose runs are watched.
struct Guarded<'a> {
    engine: &'a mut dyn Engine,
    watched: &'a Watched,
    run_max: Duration,
    lane: &'a Lane,
    is_batched: bool,
    fit: Option<&'a mut Fit>,
    limit: &'a mut RowsLimit,
}

impl Guarded<'_> {
    /// Runs all rows of the jobs: at once, or a job that is bigger than a batch may be in slices.
    fn run_batch(&mut self, jobs: &[Job]) -> Result<Vec<Run>, EngineError> {
        let rows: usize = jobs.iter().map(|job| job.rows).sum();
        let mut slice_rows = if self.is_batched { self.limit.rows() } else { rows };
        loop {
            match self.run_slices(jobs, rows, slice_rows) {
                // Only a job on its own is worth a smaller slice here; of several, each is first tried alone.
                Err(EngineError::Memory(_)) if jobs.len() == 1 && self.is_batched && slice_rows.min(rows) > 1 => {
                    slice_rows = slice_rows.min(rows) / 2;
                }
                Err(EngineError::Memory(reason)) if jobs.len() == 1 => {
                    self.limit.forgive();
                    return Err(EngineError::Memory(reason));
                }
                done => return done,
            }
        }
    }

    fn run_slices(&mut self, jobs: &[Job], rows: usize, slice_rows: usize) -> Result<Vec<Run>, EngineError> {
        if rows <= slice_rows {
            let inputs = whole(jobs, self.lane, rows);
            return Ok(vec![self.run_once(&inputs, 0..rows)?]);
        }
        (0..rows)
            .step_by(slice_rows)
            .map(|start| {
                let slice = start..rows.min(start + slice_rows);
                let inputs: Vec<_> = jobs.iter().flat_map(|job| sliced(job, &slice)).collect();
                let mut run = self.run_once(&inputs, slice)?;
                run.outputs.iter_mut().for_each(Output::leave_the_runtime);
                Ok(run)
            })
            .collect()
    }

    fn run_once(&mut self, inputs: &[Input<'_>], rows: std::ops::Range<usize>) -> Result<Run, EngineError> {
        let began = Instant::now();
        self.watched.begin(began, self.engine.stopper());
        // A panic must cost one job its answer, not a batch its receipts.
        let ran = catch_unwind(AssertUnwindSafe(|| self.engine.run(inputs)));
        let stopped = self.watched.end();
        let ran = ran.unwrap_or_else(|_| Err(EngineError::Run("the engine panicked".to_owned())));
        let outputs = match ran {
            Err(_) if stopped => {
                self.lane.metrics.stopped.inc();
                return Err(EngineError::Late(self.run_max));
            }
            Err(EngineError::Memory(reason)) if self.is_batched => {
                self.limit.starved(rows.len());
                return Err(EngineError::Memory(reason));
            }
            ran => ran?,
        };
        self.measured(rows.len(), began.elapsed());
        let run = Run { rows, outputs };
        run.check(self.lane)?;
        self.limit.ran();
        Ok(run)
    }

    fn measured(&mut self, rows: usize, took: Duration) {
        if let Some(fit) = &mut self.fit {
            let capacity = fit.add(rows, took);
            self.lane.capacity.set(capacity);
            self.lane.metrics.measured(capacity);
        }
    }
}

/// The inputs of all jobs, one under the other.
fn whole<'a>(jobs: &'a [Job], lane: &Lane, rows: usize) -> Vec<Input<'a>> {
    let given = jobs.iter().flat_map(|job| &job.given).map(|given| match given {
        None => Input::ABSENT,
        Some(tensor) => Input {
            shape: tensor.shape.clone(),
            parts: vec![&tensor.data],
        },
    });
    (0..lane.signature.inputs.len())
        .map(|index| {
            let mut shape = jobs[0].inputs[index].shape.clone();
            if jobs.len() > 1 {
                shape[0] = rows;
            }
            let parts = jobs.iter().map(|job| &*job.inputs[index].data).collect();
            Input { shape, parts }
        })
        .chain(given)
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

#[cfg(test)]
mod tests;
