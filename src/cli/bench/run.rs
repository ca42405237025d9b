//! One run: connects, sends a first job to see that somebody answers, puts the load on, and sums up.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future;
use indicatif::{ProgressBar, ProgressDrawTarget};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::BenchError;
use super::advice::{Advice, Grounds};
use super::capacity::{Limit, Search};
use super::drive::{Jobs, Load, Pace, Stops, drive};
use super::rates::Stage;
use super::report::{Capacity, Circumstances, Report, StepReport};
use super::tally::{Counts, Tally, Window};
use crate::broker::connection;
use crate::broker::topology::Names;
use crate::client::{CallError, Client, Options};
use crate::config::Config;
use crate::wire::status::Status;

/// All that a run needs to know.
pub struct Run<'a> {
    pub config: &'a Config,
    pub jobs: Arc<Jobs>,
    pub load: Load,
    pub producers: usize,
    pub body: &'static str,
    /// `None`: one load is put on, and no capacity looked for.
    pub goal: Option<Goal>,
    pub json: bool,
}

/// What the capacity is to be found for.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    pub p99: Duration,
    pub accepted_wait: Duration,
    pub replicas: Option<u32>,
}

/// What came of a run: of a search, of the highest rate at which the goal held, or else of the last one.
pub struct Measured {
    pub tally: Tally,
    load: Load,
    lasted: Duration,
    interrupted: bool,
    capacity: Option<Capacity>,
}

impl Run<'_> {
    /// # Errors
    /// There is no connection, or a model does not answer.
    pub async fn measure(&self) -> Result<Measured, BenchError> {
        let stops = Stops::default();
        let _watching = AbortOnDropHandle::new(tokio::spawn(watch(stops.clone())));
        let clients = tokio::select! {
            clients = self.ready() => clients?,
            () = stops.sending.cancelled() => return Err(BenchError::Stopped),
        };
        // In a box, since a search is a large thing to hold.
        let measured = Box::pin(self.load_on(&clients, &stops)).await;
        future::join_all(clients.into_iter().map(Client::close)).await;
        Ok(measured)
    }

    async fn load_on(&self, clients: &[Client], stops: &Stops) -> Measured {
        match self.goal {
            None => self.once(clients, &self.load, stops).await,
            Some(goal) => Box::pin(self.search(clients, goal, stops)).await,
        }
    }

    /// Clients that are connected, and models that answer.
    async fn ready(&self) -> Result<Vec<Client>, BenchError> {
        let options = Options {
            prefix: self.config.topology.prefix.clone(),
            // What bounds them is ours.
            in_flight_max: self.load.in_flight,
            ..Options::default()
        };
        let opening = (0..self.producers).map(|_| Client::open(&self.config.broker, options.clone()));
        let clients = future::try_join_all(opening).await?;
        for (model, target) in self.jobs.targets.iter().enumerate() {
            let job = crate::client::Job {
                deadline: None,
                ..self.jobs.job(model, 0, Duration::ZERO)
            };
            match clients[0].call(job).await {
                Err(cause) if concerns_all(&cause) => {
                    return Err(BenchError::Probe {
                        model: target.model.clone(),
                        cause,
                    });
                }
                _ => {}
            }
        }
        Ok(clients)
    }

    async fn once(&self, clients: &[Client], load: &Load, stops: &Stops) -> Measured {
        self.say(&Report::headline(
            &self.jobs,
            load,
            self.circumstances(Duration::ZERO, false),
        ));
        let (tally, lasted) = self.drive(clients, load, stops).await;
        Measured {
            tally,
            load: load.clone(),
            lasted,
            interrupted: stops.sending.is_cancelled(),
            capacity: None,
        }
    }

    async fn drive(&self, clients: &[Client], load: &Load, stops: &Stops) -> (Tally, Duration) {
        let bar = progress();
        let began = Instant::now();
        let driven = drive(clients, &self.jobs, load, stops, |tally| {
            bar.set_message(format!(
                "{:.0} s: {} jobs answered OK, p50 {:.1} ms, p99 {:.1} ms",
                began.elapsed().as_secs_f64(),
                tally.counts.ok(),
                tally.parts.whole.quantile_ms(0.5),
                tally.parts.whole.quantile_ms(0.99),
            ));
            bar.tick();
        });
        let driven = driven.await;
        bar.finish_and_clear();
        driven
    }

    async fn search(&self, clients: &[Client], goal: Goal, stops: &Stops) -> Measured {
        let mut search = Search::from(first_rate(&self.load));
        let mut steps = Vec::new();
        let mut capacity = None;
        let mut kept = Measured::nothing(&self.load, self.jobs.targets.len());
        while let Some(rate) = search.next() {
            let load = self.step(rate);
            let (tally, lasted) = self.drive(clients, &load, stops).await;
            let measured = Measured {
                tally,
                load,
                lasted,
                ..Measured::nothing(&self.load, 0)
            };
            if stops.sending.is_cancelled() {
                kept = if capacity.is_some() { kept } else { measured };
                kept.interrupted = true;
                break;
            }
            let limit = measured.tally.step(goal.p99).limit();
            let p99_ms = measured.tally.parts.whole.quantile_ms(0.99);
            let verdict = limit.map_or("the goal held", Limit::sentence);
            self.say(&format!("{rate:.1} jobs/s: p99 {p99_ms:.1} ms, {verdict}"));
            steps.push(StepReport {
                jobs_per_second: rate,
                p99_ms,
                limit,
            });
            search.note(rate, limit.is_none());
            let wrong = measured.tally.counts.wrong > 0;
            if limit.is_none() {
                capacity = Some(rate);
            }
            if limit.is_none() || capacity.is_none() || wrong {
                kept = measured;
            }
            if wrong {
                // Of wrong answers nobody wants to know how many there can be.
                capacity = None;
                break;
            }
        }
        kept.capacity = Some(self.found(goal, steps, capacity).await);
        kept
    }

    /// One rate for as long as the load says, and for as long as a few jobs take.
    fn step(&self, rate: f64) -> Load {
        let Pace::Open { stages, spacing, seed } = &self.load.pace else {
            return self.load.clone();
        };
        let asked = stages
            .iter()
            .map(|stage| stage.lasts)
            .sum::<Option<Duration>>()
            .unwrap_or_default();
        let lasts = asked.max(Duration::from_secs_f64(STEP_JOBS_MIN / rate));
        Load {
            pace: Pace::Open {
                stages: vec![Stage::constant(rate, Some(lasts))],
                spacing: *spacing,
                seed: *seed,
            },
            ..self.load.clone()
        }
    }

    /// What follows from the highest rate that held, if there is one.
    async fn found(&self, goal: Goal, steps: Vec<StepReport>, capacity: Option<f64>) -> Capacity {
        // Of the rates that broke, the lowest says what is in the way.
        let broken = steps.iter().filter(|step| step.limit.is_some());
        let lowest = broken.min_by(|one, other| one.jobs_per_second.total_cmp(&other.jobs_per_second));
        let rows = self.jobs.targets.first().map_or(1, |target| target.rows);
        let replicas = match goal.replicas {
            None if capacity.is_some() => self.consumers().await,
            told => told,
        };
        Capacity {
            p99_goal_ms: goal.p99.as_secs_f64() * 1e3,
            limited_by: lowest.and_then(|step| step.limit),
            jobs_per_second: capacity,
            rows_per_second: capacity.map(|jobs_per_second| jobs_per_second * rows as f64),
            replicas_known: replicas.is_some(),
            advice: capacity.map(|jobs_per_second| {
                Advice::of(&Grounds {
                    jobs_per_second,
                    replicas: replicas.unwrap_or(1),
                    accepted_wait: goal.accepted_wait,
                    prefetch: self.config.broker.prefetch,
                    drain_timeout: self.config.worker.drain_timeout,
                })
            }),
            steps,
        }
    }

    /// How many consume the model's queue: each worker does once. `None` where the broker does not tell.
    async fn consumers(&self) -> Option<u32> {
        let model = self.jobs.targets.first()?.model.as_str();
        let queue = Names::new(&self.config.topology.prefix).queue(model);
        let connection = connection::connect(&self.config.broker, "inferq bench").await.ok()?;
        let channel = connection.create_channel().await.ok()?;
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel.queue_declare(queue, passive, FieldTable::default()).await.ok();
        let _ = tokio::time::timeout(GOODBYE, connection.close(200, "done".into())).await;
        declared.map(|queue| queue.consumer_count()).filter(|&count| count > 0)
    }

    fn circumstances(&self, lasted: Duration, interrupted: bool) -> Circumstances {
        Circumstances {
            producers: self.producers,
            body: self.body,
            interrupted,
            lasted,
        }
    }

    /// Tells people what goes on; scripts wait for the end.
    fn say(&self, line: &str) {
        if !self.json {
            eprintln!("{line}");
        }
    }
}

impl Measured {
    fn nothing(load: &Load, models: usize) -> Self {
        let window = Window {
            begin: Instant::now(),
            end: None,
        };
        Self {
            tally: Tally::new(window, models),
            load: load.clone(),
            lasted: Duration::ZERO,
            interrupted: false,
            capacity: None,
        }
    }

    pub fn report(&self, run: &Run<'_>) -> Report {
        let of = run.circumstances(self.lasted, self.interrupted);
        let mut report = Report::of(&self.tally, &run.jobs, &self.load, of);
        report.capacity.clone_from(&self.capacity);
        report
    }

    /// # Errors
    /// Jobs have no answer or a wrong one, or the goal is met at no rate.
    pub fn verdict(&self) -> Result<(), BenchError> {
        let both = [&self.tally.counts, &self.tally.warm_up];
        let sum = |count: fn(&Counts) -> u64| both.iter().map(|counts| count(counts)).sum();
        let wrong: u64 = sum(|counts| counts.wrong);
        if let Some(capacity) = &self.capacity
            && capacity.jobs_per_second.is_none()
            && wrong == 0
            && !self.interrupted
            && let Some(lowest) = capacity.steps.last()
        {
            return Err(BenchError::OutOfReach {
                goal_ms: capacity.p99_goal_ms,
                rate: lowest.jobs_per_second,
                p99_ms: lowest.p99_ms,
                why: lowest.limit.map_or("nothing is known", Limit::sentence),
            });
        }
        if wrong + sum(Counts::gone) == 0 {
            return Ok(());
        }
        Err(BenchError::Gone {
            lost: sum(|counts| counts.lost),
            unroutable: sum(|counts| counts.unroutable),
            unreadable: sum(|counts| counts.unreadable),
            wrong,
            reason: self.tally.reasons.first().cloned().unwrap_or_default(),
        })
    }
}

/// True of an error of the first job that all others would meet as well.
fn concerns_all(error: &CallError) -> bool {
    match error {
        CallError::Refused { code, .. } => matches!(code, Status::InvalidArgument | Status::NotFound),
        CallError::UnknownModel(_)
        | CallError::QueueFull(_)
        | CallError::Timeout(_)
        | CallError::Lost(_)
        | CallError::Forbidden(_)
        | CallError::Reply(_)
        | CallError::Datatype { .. }
        | CallError::TooLong { .. }
        | CallError::Scatter(_) => true,
    }
}

fn first_rate(load: &Load) -> f64 {
    match &load.pace {
        Pace::Open { stages, .. } => stages.first().map_or(1.0, |stage| stage.from),
        Pace::Closed { .. } => 1.0,
    }
}

/// The first signal ends the sending, and after a while the waiting; the second ends both.
async fn watch(stops: Stops) {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
        return;
    };
    let mut next = async || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    next().await;
    stops.sending.cancel();
    let _ = tokio::time::timeout(PATIENCE, next()).await;
    stops.waiting.cancel();
}

/// On a terminal only.
fn progress() -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(None, target);
    if let Ok(style) = indicatif::ProgressStyle::with_template("{spinner} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// How long an answer is still waited for after Ctrl-C.
const PATIENCE: Duration = Duration::from_secs(5);
const GOODBYE: Duration = Duration::from_secs(2);
/// Fewer say nothing of a percentile.
const STEP_JOBS_MIN: f64 = 20.0;
