//! `inferq predict`: sends the rows of a file as jobs and writes the answers in the order of the rows.
//!
//! The file is read while its answers come back, so memory holds the jobs on the way and no more.

mod answers;
mod cells;
mod failures;
mod npy;
pub(super) mod rows;
pub(super) mod table;
mod tally;
mod target;

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream;
use tokio::signal::unix::{SignalKind, signal};

use self::answers::{AnswerError, Answers, Format};
use self::failures::Failures;
use self::rows::{InputError, Reading, Rows};
use self::table::FirstLine;
use self::tally::Tally;
use self::target::{OutputError, Target};
use crate::broker::backoff::Backoff;
use crate::client::{Answer, CallError, Client, Job, Options};
use crate::config::Config;
use crate::wire::status::Status;
use crate::wire::tensor::Datatype;

/// Sends the rows of a file as jobs, and writes the answers in the order of the rows.
#[derive(Debug, Args)]
pub struct PredictArgs {
    /// Name of the model
    #[arg(long, value_name = "NAME")]
    model: String,
    /// Rows to predict: .npy (first axis = rows) or .csv (numbers)
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where the answers go [default: standard output]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Form of the answers [default: as the name of the output says, else jsonl]
    #[arg(long)]
    format: Option<Format>,
    /// The output that npy and csv hold [default: the first; jsonl holds all]
    #[arg(long, value_name = "NAME")]
    output_name: Option<String>,
    /// The input that takes the rows; needed only if the model has several
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    input_name: String,
    /// Version of the model [default: the one that serves by default]
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// Rows in one job [default: as many as make 64 KiB, at most 256]
    #[arg(long, value_name = "N")]
    rows_per_job: Option<NonZeroUsize>,
    /// Jobs on the way at a time
    #[arg(long, value_name = "N", default_value = "64")]
    in_flight: NonZeroUsize,
    /// How often a job is sent again that the workers were too busy for
    #[arg(long, value_name = "N", default_value = "3")]
    retries: u32,
    /// Where to list the rows without an answer, and why, as JSON lines; made only if there are any
    #[arg(long, value_name = "FILE")]
    failures: Option<PathBuf>,
    /// How long to wait for the answer to a job
    #[arg(long, value_name = "MS", default_value = "60000", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    timeout_ms: u64,
    /// Datatype of the numbers in a .csv [default: FP32]
    #[arg(long, value_name = "TYPE", value_parser = datatype)]
    datatype: Option<Datatype>,
    /// The first line of the .csv names the columns; need not be said unless the names are numbers
    #[arg(long, conflicts_with = "no_header")]
    header: bool,
    /// The first line of the .csv is a row
    #[arg(long)]
    no_header: bool,
}

/// Runs `inferq predict`.
///
/// # Errors
/// Nothing could be sent or written; or the work was done, and some rows have no answer.
pub fn run(args: &PredictArgs, config: &Config) -> anyhow::Result<()> {
    let rows = Rows::open(&args.input, args.reading())?;
    let format = args.format.unwrap_or_else(|| Format::of(args.output.as_deref()));
    if let Some(output) = &args.output
        && is_same_file(&args.input, output)
    {
        return Err(PredictError::OutputIsInput(output.clone()).into());
    }
    let target = Target::open(args.output.as_deref())?;
    let answers = Answers::new(target, format, args.output_name.clone(), rows.total())?;
    // One thread encodes, sends and writes; the broker's socket has its own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tally = runtime.block_on(predict(args, config, rows, answers))?;
    eprintln!("{}", tally.summary());
    Ok(tally.verdict()?)
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| {
        fs::metadata(path)
            .ok()
            .filter(fs::Metadata::is_file)
            .map(|file| (file.dev(), file.ino()))
    };
    id(one).is_some_and(|file| id(other) == Some(file))
}

async fn predict(args: &PredictArgs, config: &Config, rows: Rows, answers: Answers) -> anyhow::Result<Tally> {
    let mut stopped = std::pin::pin!(stopped()?);
    let options = Options {
        prefix: config.topology.prefix.clone(),
        answer_timeout: Duration::from_millis(args.timeout_ms),
        in_flight_max: args.in_flight.get(),
        ..Options::default()
    };
    let client = tokio::select! {
        client = Client::open(&config.broker, options) => client?,
        () = &mut stopped => return Err(PredictError::Stopped.into()),
    };
    // What a signal drops is the half-written file too, which removes it.
    let done = tokio::select! {
        done = exchange(args, &client, rows, answers) => done,
        () = &mut stopped => Err(PredictError::Stopped),
    };
    client.close().await;
    Ok(done?)
}

fn stopped() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Sends the rows and writes what comes back, as many jobs on the way as `--in-flight` says.
async fn exchange(
    args: &PredictArgs,
    client: &Client,
    mut rows: Rows,
    mut answers: Answers,
) -> Result<Tally, PredictError> {
    let mut tally = Tally::new();
    let mut failures = Failures::new(args.failures.clone());
    let jobs = stream::iter(std::iter::from_fn(|| {
        let tensor = rows.next()?;
        Some(tensor.map(|tensor| (tensor, rows.total_guess())))
    }));
    let calls = jobs.map(|read| async move {
        let (tensor, total) = read?;
        let count = tensor.shape[0];
        let answer = args.call(client, tensor).await;
        Ok::<_, PredictError>((count, total, answer))
    });
    let mut calls = std::pin::pin!(calls.buffered(args.in_flight.get()));
    while let Some(call) = calls.next().await {
        let (count, total, answer) = call?;
        match answer {
            Ok(Answer { outputs, latency, .. }) => {
                answers.push(count, &outputs)?;
                tally.answered(count, latency);
            }
            Err(error) if concerns_all(&error, &tally) => return Err(PredictError::Call(error)),
            Err(error) => {
                let reason = crate::error::chain(&error);
                answers.push_failed(count, &reason)?;
                failures.push(tally.rows(), count, &reason)?;
                tally.failed(count, reason);
            }
        }
        tally.show(total);
    }
    answers.finish()?;
    failures.finish()?;
    Ok(tally)
}

/// True of an error that every other job would meet as well.
fn concerns_all(error: &CallError, tally: &Tally) -> bool {
    match error {
        CallError::UnknownModel(_) | CallError::Lost(_) => true,
        // All jobs look alike: what is wrong with the first one's shape or version is wrong with all.
        CallError::Refused { code, .. } => {
            tally.is_empty() && matches!(code, Status::InvalidArgument | Status::NotFound)
        }
        // Nobody has ever answered, so it is not this job that is slow.
        CallError::Timeout(_) => tally.is_empty(),
        CallError::QueueFull(_) | CallError::Reply(_) | CallError::Datatype { .. } | CallError::TooLong { .. } => false,
    }
}

/// True of an error that another time the same job may not meet.
fn may_pass(error: &CallError) -> bool {
    matches!(
        error,
        CallError::QueueFull(_)
            | CallError::Refused {
                code: Status::DeadlineExceeded,
                ..
            }
    )
}

impl PredictArgs {
    fn reading(&self) -> Reading {
        Reading {
            rows_per_job: self.rows_per_job.map(NonZeroUsize::get),
            datatype: self.datatype,
            first_line: match (self.header, self.no_header) {
                (true, _) => FirstLine::Names,
                (_, true) => FirstLine::Row,
                (false, false) => FirstLine::Unsaid,
            },
        }
    }

    /// Calls again where time may help: the queue was full, or the workers could not be done in time.
    async fn call(&self, client: &Client, rows: crate::wire::tensor::Tensor) -> Result<Answer, CallError> {
        let job = self.job(rows);
        let mut backoff = Backoff::new(RETRY_WAIT_MAX);
        for _ in 0..self.retries {
            match client.call(job.clone()).await {
                Err(error) if may_pass(&error) => tokio::time::sleep(backoff.next(fastrand::f64())).await,
                ended => return ended,
            }
        }
        client.call(job).await
    }

    fn job(&self, mut rows: crate::wire::tensor::Tensor) -> Job {
        rows.name.clone_from(&self.input_name);
        Job {
            model: self.model.clone(),
            version: self.version.clone(),
            inputs: vec![rows],
            outputs: self.output_name.iter().cloned().collect(),
            ..Job::default()
        }
    }
}

fn datatype(text: &str) -> Result<Datatype, crate::wire::tensor::UnknownDatatype> {
    text.to_ascii_uppercase().parse()
}

/// The longest wait before a job is sent again.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);

pub const HELP: &str = "\
Rows without an answer keep their place and are named at the end; the exit code is then 1.

Examples:
  inferq predict --model digits --input images.npy --output digits.csv
  inferq predict --model iris --input flowers.csv --output-name label --format jsonl
  inferq predict --model dense --input rows.npy --output y.npy --version 3 --in-flight 256";

/// Why there are no answers, or not all of them.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Answers(#[from] AnswerError),
    #[error(transparent)]
    Failures(#[from] OutputError),
    #[error(transparent)]
    Call(CallError),
    #[error("--output {} is the file of --input: name another, the rows would be gone", .0.display())]
    OutputIsInput(PathBuf),
    #[error("stopped before the end: no file was written")]
    Stopped,
}
