//! `inferq predict`: sends the rows of a file as jobs and writes the answers in the order of the rows.
//!
//! The file is read while its answers come back, so memory holds the jobs on the way and no more.

mod answers;
mod array;
mod arrays;
mod block;
mod cells;
mod columns;
mod convert;
mod csv_record;
mod csv_records;
mod delimiter;
mod endings;
mod exchange;
mod failures;
pub(super) mod faults;
mod folder;
mod fortran;
pub(super) mod input;
mod inputs;
mod json_layout;
mod json_texts;
mod json_values;
mod lines;
mod moments;
mod npy;
mod npz;
mod packed;
mod parquet;
mod parquet_schema;
mod parquet_values;
mod resume;
mod rows;
mod table;
mod takes;
mod tally;
mod target;

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use self::answers::{AnswerError, Answers, Format};
use self::columns::{Choice, Missing};
use self::delimiter::Delimiter;
use self::endings::{EndingError, check_failures, check_output};
use self::exchange::{Run, Sender};
use self::failures::Failures;
use self::faults::InputError;
use self::input::{Input, InputFormat, Reading};
use self::inputs::Sending;
use self::npz::Pick;
use self::resume::{Note, Notes, ResumeError, Settings, settings_of_folder, settings_of_input};
use self::rows::{Opening, RowsPerJob};
use self::table::FirstLine;
use self::tally::Tally;
use self::target::{OutputError, Place, Target, beside, place};
use crate::client::{CallError, Client, Options};
use crate::config::Config;
use crate::wire::tensor::Datatype;

/// Sends the rows of a file as jobs, and writes the answers in the order of the rows.
#[derive(Debug, Args)]
pub struct PredictArgs {
    /// Name of the model
    #[arg(long, value_name = "NAME")]
    model: String,
    /// Rows to predict: .npy, .npz (first axis = rows), .csv, .tsv, .jsonl, .json (these also packed, .gz or .zst), .parquet or a
    /// folder of such files; - is standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Form of the input [default: as its name says]
    #[arg(long, value_name = "FORMAT")]
    input_format: Option<InputFormat>,
    /// Where the answers go: .npy, .csv or .jsonl [default: standard output]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Form of the answers [default: as the name of the output says, else jsonl]
    #[arg(long)]
    format: Option<Format>,
    /// Columns to send, in this order: names, or positions from 1 and ranges where there are no names [default: all but the keys]
    #[arg(long, value_name = "COLUMN,...", value_delimiter = ',')]
    columns: Vec<String>,
    /// Columns that are not sent but written beside the answers, such as an id; not for npy
    #[arg(long, value_name = "COLUMN,...", value_delimiter = ',')]
    key: Vec<String>,
    /// Array of the .npz, or several for a model with as many inputs [default: the only one]
    #[arg(long, value_name = "[INPUT=]ARRAY,...", value_delimiter = ',')]
    array: Vec<String>,
    /// The output that npy and csv hold [default: the first; jsonl holds all]
    #[arg(long, value_name = "NAME")]
    output_name: Option<String>,
    /// The input that takes the rows; needed only if the model has several
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    input_name: String,
    /// Version of the model [default: the one that serves by default]
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// Rows in one job, or all for the whole file as one [default: a power of two up to 256 that makes at most 256 KiB; 1 if the
    /// model takes no more, or nothing shows that its rows are independent]
    #[arg(long, value_name = "N|all")]
    rows_per_job: Option<RowsPerJob>,
    /// Jobs on the way at a time
    #[arg(long, value_name = "N", default_value = "64")]
    in_flight: NonZeroUsize,
    /// How often a job is sent again that the workers were too busy for
    #[arg(long, value_name = "N", default_value = "3")]
    retries: u32,
    /// Goes on where an interrupted run has left OUTPUT.partial; without one it begins at the first row
    #[arg(long)]
    resume: bool,
    /// Where to list the rows without an answer, and why, as JSON lines; made only if there are any [default: the output's name
    /// and .failures.jsonl]
    #[arg(long, value_name = "FILE")]
    failures: Option<PathBuf>,
    /// How long to wait for the answer to a job
    #[arg(long, value_name = "MS", default_value = "60000", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    timeout_ms: u64,
    /// Datatype that values are sent as; floats are rounded to it [default: what the model takes, and the numbers of an array only if
    /// that changes none of them]
    #[arg(long, value_name = "TYPE", value_parser = datatype)]
    datatype: Option<Datatype>,
    /// What becomes of a cell without a value: empty, NA and the like in .csv, null elsewhere, or no column in .jsonl
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    missing: Missing,
    /// What separates the cells of the .csv: one character, or tab [default: a comma, in .tsv a tab]
    #[arg(long, value_name = "CHARACTER")]
    delimiter: Option<Delimiter>,
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
    args.check_endings()?;
    let input = Input::open(&args.input)?;
    if let Some(output) = &args.output
        && is_same_file(&input, output)
    {
        return Err(PredictError::OutputIsInput(output.clone()).into());
    }
    let notes = args.notes(&input)?;
    let before = match (&notes, args.resume) {
        (Some(notes), true) => notes.read()?,
        (None, true) => return Err(PredictError::NoResume.into()),
        (_, false) => None,
    };
    let rows = Opening::of(input, &args.reading())?;
    let run = args.begin(&rows, notes, before)?;
    // One thread encodes, sends and writes; the input and the broker's socket have their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tally = runtime.block_on(predict(args, config, rows, run))?;
    eprintln!("{}", tally.summary());
    Ok(tally.verdict()?)
}

fn is_same_file(input: &Input, output: &Path) -> bool {
    let output = fs::metadata(output).ok().filter(fs::Metadata::is_file);
    let id = |file: &fs::Metadata| (file.dev(), file.ino());
    output.is_some_and(|output| input.metadata().map(id) == Some(id(&output)))
}

async fn predict(args: &PredictArgs, config: &Config, rows: Opening, mut run: Run) -> Result<Tally, PredictError> {
    let mut stopped = std::pin::pin!(stopped().map_err(PredictError::Signals)?);
    let options = Options {
        prefix: config.topology.prefix.clone(),
        answer_timeout: Duration::from_millis(args.timeout_ms),
        in_flight_max: args.in_flight.get(),
        ..Options::default()
    };
    let client = tokio::select! {
        client = Client::open(&config.broker, options) => client?,
        () = &mut stopped => return Err(run.suspend(PredictError::Stopped)),
    };
    let sender = Sender::new(args, &client);
    let done = tokio::select! {
        done = sender.exchange(rows, &mut run) => done,
        () = &mut stopped => Err(PredictError::Stopped),
    };
    // First of all, since a broker that does not answer may hold up the goodbye, and whoever sent the signal may not wait.
    let done = match done {
        Ok(()) => run.finish(),
        Err(reason) => Err(run.suspend(reason)),
    };
    client.close().await;
    done
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

impl PredictArgs {
    fn reading(&self) -> Reading {
        Reading {
            format: self.input_format,
            rows_per_job: self.rows_per_job,
            delimiter: self.delimiter,
            first_line: match (self.header, self.no_header) {
                (true, _) => FirstLine::Names,
                (_, true) => FirstLine::Row,
                (false, false) => FirstLine::Unsaid,
            },
            choice: Choice {
                columns: self.columns.clone(),
                keys: self.key.clone(),
            },
            arrays: self.arrays(),
            sending: Sending {
                model: self.model.clone(),
                takes: Vec::new(),
                input: self.input_name.clone(),
                datatype: self.datatype,
                missing: self.missing,
            },
        }
    }

    /// Several arrays are inputs of the model by their own names, unless others are given.
    fn arrays(&self) -> Vec<Pick> {
        let pick = |text: &String| match text.split_once('=') {
            Some((input, array)) => Pick {
                array: array.to_owned(),
                input: input.to_owned(),
            },
            None => Pick {
                array: text.clone(),
                input: if self.array.len() == 1 { &self.input_name } else { text }.clone(),
            },
        };
        self.array.iter().map(pick).collect()
    }

    fn answers_format(&self) -> Format {
        self.format.unwrap_or_else(|| Format::of(self.output.as_deref()))
    }

    /// Refuses names of files that promise a form which is not written.
    fn check_endings(&self) -> Result<(), PredictError> {
        if let Some(output) = &self.output
            && let Place::File(_) = place(output)?
        {
            check_output(output, self.format)?;
        }
        match &self.failures {
            Some(failures) if matches!(place(failures)?, Place::File(_)) => Ok(check_failures(failures)?),
            Some(_) | None => Ok(()),
        }
    }

    /// Of a run that can be gone on with: from one file into another.
    fn notes(&self, input: &Input) -> Result<Option<Notes>, PredictError> {
        let (Some(output), Some(metadata)) = (&self.output, input.metadata()) else {
            return Ok(None);
        };
        let Place::File(output) = place(output)? else {
            return Ok(None);
        };
        let mut settings: Settings = if metadata.is_dir() {
            settings_of_folder(input.path())?
        } else {
            settings_of_input(metadata).into()
        };
        let mut said = |what: &str, value: String| {
            if !value.is_empty() {
                settings.insert(what.to_owned(), value);
            }
        };
        said("version of inferq", env!("CARGO_PKG_VERSION").to_owned());
        said("--model", self.model.clone());
        said("--version", self.version.clone().unwrap_or_default());
        said("--format", name(self.answers_format()));
        said("--input-format", self.input_format.map(name).unwrap_or_default());
        said("--columns", self.columns.join(","));
        said("--key", self.key.join(","));
        said("--array", self.array.join(","));
        said("--output-name", self.output_name.clone().unwrap_or_default());
        said("--input-name", self.input_name.clone());
        said(
            "--rows-per-job",
            self.rows_per_job.map(|rows| rows.to_string()).unwrap_or_default(),
        );
        said(
            "--datatype",
            self.datatype.map(|datatype| datatype.to_string()).unwrap_or_default(),
        );
        said("--missing", name(self.missing));
        said("--delimiter", self.delimiter.map(Delimiter::word).unwrap_or_default());
        said("--header", if self.header { "yes".to_owned() } else { String::new() });
        said(
            "--no-header",
            if self.no_header {
                "yes".to_owned()
            } else {
                String::new()
            },
        );
        Ok(Some(Notes::new(&output, settings)))
    }

    /// Opens what is written to: anew, or after what an earlier run has left.
    fn begin(&self, rows: &Opening, notes: Option<Notes>, before: Option<Note>) -> Result<Run, PredictError> {
        let failures = self.failures.clone();
        let failures = failures.or_else(|| match place(self.output.as_deref()?).ok()? {
            Place::File(output) => Some(beside(&output, ".failures.jsonl")),
            Place::Device => None,
        });
        let key_names = rows.key_names().to_vec();
        let (target, failures) = match (&before, &self.output) {
            (Some(before), Some(output)) => {
                eprintln!("inferq: goes on after {} rows", before.rows);
                let failures = Failures::go_on(failures, key_names.clone(), before.failures_bytes)?;
                (Target::go_on(output, before.output_bytes)?, failures)
            }
            (_, output) => {
                let target = Target::open(output.as_deref())?;
                // Only now, with the file our own: the note of a run that goes on is not ours to remove.
                if let Some(notes) = &notes {
                    notes.remove();
                }
                (target, Failures::new(failures, key_names.clone()))
            }
        };
        let format = self.answers_format();
        let answers = Answers::new(target, format, self.output_name.clone(), rows.total(), key_names)?;
        Ok(Run::new(answers, failures, notes, before))
    }
}

fn name(value: impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

fn datatype(text: &str) -> Result<Datatype, crate::wire::tensor::UnknownDatatype> {
    text.to_ascii_uppercase().parse()
}

pub const HELP: &str = "\
Rows without an answer keep their place and are named at the end; the exit code is then 1. Until it is whole, the output is
called OUTPUT.partial; what is beside it in OUTPUT.partial.json lets --resume go on after an interrupt or a crash.

Every answer says how the rows of the model relate. Where they are independent many rows are one job, where that is unknown every
row is. Where they depend on each other it matters which rows go together: say so with --rows-per-job, a number or all, for more
than one row. An output without a row for each row of the job, such as a constant or the hits of a search, can be written of jobs
of one row only.

Examples:
  inferq predict --model digits --input images.npy --output digits.csv
  inferq predict --model digits --input golden.npz --array input:input --output digits.npy
  inferq predict --model iris --input flowers.csv --key id --output-name label --format jsonl
  inferq predict --model iris --input flowers.parquet --columns length,width --key id --output labels.csv
  inferq predict --model pairs --input pairs.npz --array left,right=other --output y.jsonl
  inferq predict --model pipeline --input people.tsv.gz --key id --missing nan --output y.csv
  inferq predict --model series --input steps.npy --output y.npy --rows-per-job all
  zcat rows.jsonl.gz | inferq predict --model dense --input - --input-format jsonl --output y.npy
  inferq predict --model dense --input rows.npy --output y.npy --version 3 --in-flight 256 --resume";

/// Why there are no answers, or not all of them.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Answers(AnswerError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Resume(#[from] ResumeError),
    #[error(transparent)]
    Call(CallError),
    #[error(transparent)]
    Client(#[from] crate::client::ClientError),
    #[error(transparent)]
    Ending(#[from] EndingError),
    #[error("--output {} is the file of --input: name another, the rows would be gone", .0.display())]
    OutputIsInput(PathBuf),
    #[error(
        "--resume goes on from one file into another: --input and --output must both be files, no pipes or devices"
    )]
    NoResume,
    #[error(
        "the rows so far were answered by version {before} of the model, and now version {now} serves: pin one with --version, \
         and leave --resume out to start anew"
    )]
    OtherVersion { before: String, now: String },
    #[error(
        "the rows of model `{model}` depend on each other (`inferq models inspect {model}` says why): --rows-per-job all sends the \
         file as one job, --rows-per-job 1 every row by itself"
    )]
    Coupled { model: String },
    #[error("stopped by a signal before the end")]
    Stopped,
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    #[error("ended after {rows} rows, which {} keeps for --resume", part.display())]
    Kept {
        rows: u64,
        part: PathBuf,
        #[source]
        reason: Box<PredictError>,
    },
}

impl From<AnswerError> for PredictError {
    fn from(error: AnswerError) -> Self {
        match error {
            // A full disk may have room tomorrow.
            AnswerError::Output(error) => Self::Output(error),
            error => Self::Answers(error),
        }
    }
}
