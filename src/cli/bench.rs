//! `inferq bench`: a load generator on the real wire.
//!
//! The rules are pure (`rates`, `schedule`, `mix`, `shapes`, `tally`, `capacity`, `advice`, `report`); `drive` has the
//! loops, `local` runs a model here to know the right answers. Jobs go through the producer's library, as anybody's.

mod advice;
mod capacity;
mod drive;
mod inputs;
mod local;
mod mix;
mod rates;
mod report;
mod run;
mod schedule;
mod shapes;
mod tally;

use std::io::Write;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use self::drive::{Jobs, Load, Pace};
use self::inputs::{InputsError, Target, Wanted};
use self::local::Local;
use self::mix::{Mix, Share};
use self::rates::{DurationFault, Rates, duration};
use self::run::{Goal, Run};
use self::schedule::Spacing;
use self::shapes::{AnyCase, ForInput, RowShape};
use crate::client::{CallError, ClientError};
use crate::config::Config;
use crate::wire::request::RequestEncoding;
use crate::worker::onnx::{LoadError, Runtime};

/// Puts load on workers, and measures how they answer it.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Models, with commas, and how often each comes: digits, or digits=3,dense
    #[arg(
        long = "model",
        value_name = "NAME[=WEIGHT],...",
        value_delimiter = ',',
        required = true
    )]
    mix: Vec<Share>,
    /// Version of the model [default: the one that serves by default]
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,

    /// Jobs a second: 500, a ramp 100..2000, or stages 100@10s,100..2000@1m [default: as fast as possible]
    #[arg(long, value_name = "RATE", help_heading = "Load")]
    rate: Option<Rates>,
    /// How jobs at a rate lie in time
    #[arg(long, value_name = "SPACING", default_value = "poisson", help_heading = "Load")]
    spacing: Spacing,
    /// How long to measure [default: 10s, or until --jobs; 5s a step with --find-capacity]
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Load")]
    duration: Option<Duration>,
    /// Jobs to measure, at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Load")]
    jobs: Option<u64>,
    /// Load before the measuring begins
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration, help_heading = "Load")]
    warm_up: Duration,
    /// Jobs under way at a time, all producers together [default: 64 as fast as possible, 10000 at a rate]
    #[arg(long, value_name = "N", help_heading = "Load")]
    in_flight: Option<NonZeroUsize>,
    /// Connections that share the load
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=1_000), help_heading = "Load")]
    producers: u16,

    /// Rows in each job [default: 1, or as many as the model takes]
    #[arg(long, value_name = "N", help_heading = "Jobs")]
    rows: Option<NonZeroUsize>,
    /// Form of the body
    #[arg(long, value_name = "KIND", default_value = "msgpack", help_heading = "Jobs")]
    body: BodyKind,
    /// Rows to send over and over: .npy or .csv [default: made up for the model]
    #[arg(long, value_name = "FILE", conflicts_with = "shapes", help_heading = "Jobs")]
    input: Option<PathBuf>,
    /// Shape of one row, such as 64 or 3,224,224 or ids=12, or of a whole input, such as scales=[3] or state=[2,?,128], where ?
    /// is the axis of the rows [default: as the model repository says]
    #[arg(long = "shape", value_name = "[INPUT=]N,...", help_heading = "Jobs")]
    shapes: Vec<ForInput<RowShape>>,
    /// Datatype that goes with --shape or with a .csv [default: FP32]
    #[arg(long = "datatype", value_name = "[INPUT=]TYPE", help_heading = "Jobs")]
    datatypes: Vec<ForInput<AnyCase>>,
    /// What rows, order and times are drawn from: the same again for the same seed
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Jobs")]
    seed: u64,
    /// Deadline of each job, from when it is due [default: none but --timeout-ms]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=86_400_000), help_heading = "Jobs")]
    deadline_ms: Option<u64>,
    /// How long to wait for an answer; after that the job is lost
    #[arg(long, value_name = "MS", default_value = "60000", value_parser = clap::value_parser!(u64).range(1..=86_400_000), help_heading = "Jobs")]
    timeout_ms: u64,

    /// Compare every answer with the model of the repository, run here
    #[arg(long)]
    check: bool,
    /// Raise the rate until the goal of --p99-ms breaks, and say what settings follow
    #[arg(long, requires = "p99_ms", conflicts_with = "jobs", help_heading = "Capacity")]
    find_capacity: bool,
    /// The goal: 99 of 100 jobs are answered within this time
    #[arg(long, value_name = "MS", requires = "find_capacity", value_parser = clap::value_parser!(u64).range(1..=3_600_000), help_heading = "Capacity")]
    p99_ms: Option<u64>,
    /// How long a job may wait before the fleet should grow [default: the goal]
    #[arg(long, value_name = "MS", requires = "find_capacity", value_parser = clap::value_parser!(u64).range(1..=86_400_000), help_heading = "Capacity")]
    accepted_wait_ms: Option<u64>,
    /// How many workers there are [default: as many as consume the queue]
    #[arg(long, value_name = "N", requires = "find_capacity", help_heading = "Capacity")]
    replicas: Option<NonZeroU32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BodyKind {
    /// MessagePack with raw bytes: the fast way
    Msgpack,
    /// JSON with flat arrays
    Json,
    /// Triton's binary tensor extension
    Binary,
}

impl BodyKind {
    fn name(self) -> &'static str {
        match self {
            Self::Msgpack => "msgpack",
            Self::Json => "json",
            Self::Binary => "binary",
        }
    }

    fn encoding(self) -> RequestEncoding {
        match self {
            Self::Msgpack => RequestEncoding::MsgPack,
            Self::Json => RequestEncoding::Json,
            Self::Binary => RequestEncoding::Binary,
        }
    }
}

/// Runs `inferq bench`.
///
/// # Errors
/// Nothing could be measured; or it was, and jobs have no answer or a wrong one.
pub fn run(args: &BenchArgs, config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    args.check()?;
    let load = args.load()?;
    let jobs = Jobs {
        mix: Mix::new(&args.mix.iter().map(|share| share.weight).collect::<Vec<_>>()),
        targets: args.targets(config)?,
        seed: args.seed,
        timeout: Duration::from_millis(args.timeout_ms),
        deadline: args.deadline(),
    };
    let producers = usize::from(args.producers);
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(producers.min(cores))
        .enable_all()
        .build()?;
    let run = Run {
        config,
        jobs: Arc::new(jobs),
        load,
        producers,
        body: args.body.name(),
        goal: args.goal(),
        json: args.json,
    };
    let measured = runtime.block_on(run.measure());
    // Calls that a second Ctrl-C has given up may still be writing.
    runtime.shutdown_timeout(Duration::from_secs(1));
    let measured = measured?;
    let report = measured.report(&run);
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        out.write_all(report.text(&measured.tally.parts).as_bytes())?;
    }
    out.flush()?;
    Ok(measured.verdict()?)
}

impl BenchArgs {
    /// What no single argument can know of the others.
    fn check(&self) -> Result<(), ArgumentFault> {
        let one_model = [
            ("--version", self.version.is_some()),
            ("--input", self.input.is_some()),
            ("--shape", !self.shapes.is_empty()),
            ("--find-capacity", self.find_capacity),
        ];
        match one_model.into_iter().find(|(_, given)| *given) {
            Some((argument, _)) if self.mix.len() > 1 => return Err(ArgumentFault::OneModel(argument)),
            _ => {}
        }
        if let Some(twice) = self.mix.iter().enumerate().find_map(|(at, share)| {
            let earlier = self.mix[..at].iter();
            earlier.map(|other| &other.model).find(|model| **model == share.model)
        }) {
            return Err(ArgumentFault::Twice(twice.clone()));
        }
        if !self.datatypes.is_empty() && self.shapes.is_empty() && self.input.is_none() {
            return Err(ArgumentFault::Datatype);
        }
        if self.check
            && self
                .version
                .as_ref()
                .is_some_and(|version| version.parse::<u64>().is_err())
        {
            return Err(ArgumentFault::Version);
        }
        if self.find_capacity
            && self
                .rate
                .as_ref()
                .is_some_and(|rates| !matches!(rates.0.as_slice(), [only] if only.is_constant()))
        {
            return Err(ArgumentFault::FirstRate);
        }
        Ok(())
    }

    fn load(&self) -> Result<Load, ArgumentFault> {
        let pace = match (&self.rate, self.find_capacity) {
            (None, false) => Pace::Closed {
                lasts: self.lasts(true),
            },
            (None, true) => self.open(&Rates(vec![rates::Stage::constant(FIRST_RATE, None)]))?,
            (Some(rates), _) => self.open(rates)?,
        };
        let in_flight = match pace {
            Pace::Closed { .. } => IN_FLIGHT_CLOSED,
            Pace::Open { .. } => IN_FLIGHT_OPEN,
        };
        Ok(Load {
            pace,
            warm_up: self.warm_up,
            jobs_max: self.jobs,
            in_flight: self.in_flight.map_or(in_flight, NonZeroUsize::get),
        })
    }

    fn open(&self, rates: &Rates) -> Result<Pace, ArgumentFault> {
        let rest = match rates.0.as_slice() {
            [only] if only.lasts.is_none() => self.lasts(only.is_constant()),
            _ => self.duration,
        };
        Ok(Pace::Open {
            stages: rates.lasting(rest)?,
            spacing: self.spacing,
            seed: self.seed,
        })
    }

    /// How long the load lasts; without an end only if its jobs are counted and `may_go_on`.
    fn lasts(&self, may_go_on: bool) -> Option<Duration> {
        let default = match (self.jobs, self.find_capacity) {
            (Some(_), _) if may_go_on => None,
            (_, true) => Some(STEP),
            (_, false) => Some(DURATION),
        };
        self.duration.or(default)
    }

    fn goal(&self) -> Option<Goal> {
        let p99 = Duration::from_millis(self.p99_ms?);
        Some(Goal {
            p99,
            accepted_wait: self.accepted_wait_ms.map_or(p99, Duration::from_millis),
            replicas: self.replicas.map(NonZeroU32::get),
        })
    }

    /// A step that broke the goal by far must not hold up the next: its jobs are of no use after ten times the goal.
    fn deadline(&self) -> Option<Duration> {
        let of_goal = self.p99_ms.map(|goal| (goal * 10).max(1_000));
        self.deadline_ms.or(of_goal).map(Duration::from_millis)
    }

    fn targets(&self, config: &Config) -> Result<Vec<Target>, BenchError> {
        let mut runtime = None;
        let targets = self.mix.iter().enumerate();
        targets
            .map(|(at, share)| self.target(config, share, at as u64, &mut runtime))
            .collect()
    }

    fn target(
        &self,
        config: &Config,
        share: &Share,
        at: u64,
        runtime: &mut Option<Runtime>,
    ) -> Result<Target, BenchError> {
        let wanted = Wanted {
            input: self.input.as_deref(),
            shapes: &self.shapes,
            datatypes: &self.datatypes,
            rows: self.rows.map(NonZeroUsize::get),
            encoding: self.body.encoding(),
            seed: self.seed.wrapping_add(at),
        };
        let model = share.model.as_str();
        let failed = |cause| BenchError::Inputs {
            model: model.to_owned(),
            cause: Box::new(cause),
        };
        let mut local = None;
        if self.check || wanted.needs_signature() {
            let runtime = match runtime {
                Some(runtime) => runtime,
                None => runtime.insert(Runtime::load()?),
            };
            // A version that is no number can be none of the repository's.
            let version = self.version.as_ref().and_then(|version| version.parse().ok());
            let loaded = Local::load(runtime, &config.models.repository, model, version);
            local = Some(loaded.map_err(|cause| failed(cause.into()))?);
        } else if self.input.is_none() {
            local = self.at_hand(config, model, runtime);
        }
        let (rows, bodies) = wanted.bodies(local.as_mut(), self.check).map_err(failed)?;
        Ok(Target {
            model: model.to_owned(),
            version: self.version.clone(),
            weight: share.weight,
            rows,
            bodies,
        })
    }
}

impl BenchArgs {
    /// The model of the repository, if there is one: what --shape leaves open is then as it says.
    fn at_hand(&self, config: &Config, model: &str, runtime: &mut Option<Runtime>) -> Option<Local> {
        if !config.models.repository.join(model).is_dir() {
            return None;
        }
        let runtime = match runtime {
            Some(runtime) => runtime,
            None => runtime.insert(Runtime::load().ok()?),
        };
        let version = self.version.as_ref().and_then(|version| version.parse().ok());
        Local::load(runtime, &config.models.repository, model, version).ok()
    }
}

/// Arguments that do not go together.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentFault {
    #[error("{0} is about one model, and --model names several")]
    OneModel(&'static str),
    #[error("--model names {0} twice; digits=3 has it come more often")]
    Twice(String),
    #[error("--datatype goes with --shape or --input; the model repository knows its own")]
    Datatype,
    #[error("--check needs a version of the model repository, which is a whole number")]
    Version,
    #[error("--find-capacity begins with one rate, such as --rate 100, and raises it by itself")]
    FirstRate,
    #[error(transparent)]
    Duration(#[from] DurationFault),
}

/// Why nothing was measured, or what was measured is not good.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(
        "no load can be made for model `{model}`: where its repository is not at hand, --shape and --datatype say what it takes"
    )]
    Inputs {
        model: String,
        #[source]
        cause: Box<InputsError>,
    },
    #[error(transparent)]
    Runtime(#[from] LoadError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("model `{model}` does not answer a first job, so nothing was measured")]
    Probe {
        model: String,
        #[source]
        cause: CallError,
    },
    #[error("stopped before anything was measured")]
    Stopped,
    #[error("{}", gone(*.lost, *.unroutable, *.unreadable, *.wrong, .reason))]
    Gone {
        lost: u64,
        unroutable: u64,
        unreadable: u64,
        wrong: u64,
        reason: String,
    },
    #[error(
        "the goal of {goal_ms} ms is met at no rate: even at {rate:.1} jobs/s {why} (p99 {p99_ms:.1} ms); raise --p99-ms, or \
         begin lower with --rate"
    )]
    OutOfReach {
        goal_ms: f64,
        rate: f64,
        p99_ms: f64,
        why: &'static str,
    },
}

fn gone(lost: u64, unroutable: u64, unreadable: u64, wrong: u64, reason: &str) -> String {
    let named = [
        (lost, "jobs were lost"),
        (unroutable, "jobs came back without a queue"),
        (unreadable, "answers could not be read"),
        (wrong, "answers were wrong"),
    ];
    let named = named.into_iter().filter(|(count, _)| *count > 0);
    let named: Vec<String> = named.map(|(count, what)| format!("{count} {what}")).collect();
    format!("{}, such as: {reason}", named.join(", "))
}

const DURATION: Duration = Duration::from_secs(10);
/// Of a step in the search for the capacity.
const STEP: Duration = Duration::from_secs(5);
/// Jobs a second that nearly any fleet can do, and a few doublings from what most can.
const FIRST_RATE: f64 = 100.0;
const IN_FLIGHT_CLOSED: usize = 64;
/// More than a queue of acceptable length has, so that the load is not held back by it.
const IN_FLIGHT_OPEN: usize = 10_000;

pub const HELP: &str = "\
Latency counts from when a job was due, however late it could be sent. Its parts come out of the replies:
in the queue, in the worker until its batch runs, the run, making the reply, and the reply's way here. The
part of the queue is as right as the clocks of both machines agree. Percentiles are of jobs answered OK.

Every job is accounted for: by the status of its answer, as unroutable, refused by a full queue, lost
(no answer in --timeout-ms), or not sent. The exit code is 1 if any was lost, unroutable or unreadable, or,
with --check, wrong; or if the goal of --find-capacity is met at no rate. Ctrl-C ends the load, waits
5 s for what is under way and reports; a second one waits no more.

Examples:
  inferq bench --model digits                                    as fast as 64 jobs under way can be
  inferq bench --model digits --rate 500 --duration 30s --check  at a rate, every answer checked
  inferq bench --model digits --rate 100..2000@1m --json         a ramp, for a script
  inferq bench --model dense=3,digits --rate 200 --producers 4   a mix, from four connections
  inferq bench --model resnet --shape 3,224,224 --body binary    without the model repository
  inferq bench --model digits --find-capacity --p99-ms 50        how much can this fleet take?";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn args(line: &str) -> BenchArgs {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        // As the command itself, whose --version is the model's.
        Line::try_parse_from(words)
            .unwrap_or_else(|error| panic!("{line}: {error}"))
            .bench
    }

    fn lasts(line: &str) -> Option<Duration> {
        match args(line).load().unwrap().pace {
            Pace::Closed { lasts } => lasts,
            Pace::Open { stages, .. } => stages.iter().map(|stage| stage.lasts).sum(),
        }
    }

    #[test]
    fn a_load_lasts_as_long_as_it_is_told_or_until_its_jobs_are_done() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));

        assert_eq!(lasts("--model m"), seconds(10));
        assert_eq!(lasts("--model m --duration 3s"), seconds(3));
        assert_eq!(lasts("--model m --jobs 5"), None);
        assert_eq!(lasts("--model m --jobs 5 --rate 10"), None);
        assert_eq!(lasts("--model m --jobs 5 --rate 1..10"), seconds(10));
        assert_eq!(lasts("--model m --rate 5@2s,6@3s"), seconds(5));
        assert_eq!(lasts("--model m --find-capacity --p99-ms 5"), seconds(5));
    }

    #[test]
    fn arguments_that_do_not_go_together_are_one_sentence() {
        for (line, said) in [
            ("--model a,b --version 1", "--version is about one model"),
            ("--model a,b --shape 4", "--shape is about one model"),
            (
                "--model a,b --find-capacity --p99-ms 5",
                "--find-capacity is about one model",
            ),
            ("--model a,b=2,a", "--model names a twice"),
            ("--model a --datatype FP64", "--datatype goes with"),
            ("--model a --check --version x", "--check needs a version"),
            (
                "--model a --find-capacity --p99-ms 5 --rate 1..2",
                "--find-capacity begins with one rate",
            ),
        ] {
            let fault = args(line).check().unwrap_err().to_string();
            assert!(fault.starts_with(said), "{line}: {fault}");
        }
        assert!(args("--model a,b=2 --rate 5").check().is_ok());
        assert!(args("--model a --rate 5@1s --duration 2s").load().is_err());
    }

    #[test]
    fn jobs_of_a_search_are_of_no_use_long_after_the_goal() {
        let deadline = |line| args(line).deadline().map(|deadline| deadline.as_millis());

        assert_eq!(deadline("--model m"), None);
        assert_eq!(deadline("--model m --deadline-ms 30"), Some(30));
        assert_eq!(deadline("--model m --find-capacity --p99-ms 500"), Some(5_000));
        assert_eq!(deadline("--model m --find-capacity --p99-ms 5"), Some(1_000));
        assert_eq!(
            deadline("--model m --find-capacity --p99-ms 5 --deadline-ms 30"),
            Some(30)
        );
    }

    #[test]
    fn the_accepted_wait_is_the_goal_unless_it_is_told() {
        let goal = |more: &str| {
            args(&format!("--model m --find-capacity --p99-ms 50 {more}"))
                .goal()
                .unwrap()
        };
        let ms = Duration::from_millis;

        assert_eq!((goal("").accepted_wait, goal("").replicas), (ms(50), None));
        let told = goal("--accepted-wait-ms 7000 --replicas 3");
        assert_eq!(
            (told.p99, told.accepted_wait, told.replicas),
            (ms(50), ms(7_000), Some(3))
        );
        assert!(args("--model m").goal().is_none());
    }

    #[test]
    fn a_failed_run_says_how_and_gives_an_example() {
        let error = BenchError::Gone {
            lost: 2,
            unroutable: 0,
            unreadable: 0,
            wrong: 1,
            reason: "no answer within 1s".to_owned(),
        };

        assert_eq!(
            error.to_string(),
            "2 jobs were lost, 1 answers were wrong, such as: no answer within 1s"
        );
    }
}
