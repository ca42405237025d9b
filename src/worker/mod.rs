//! The worker: from a queue to a confirmed reply. This file wires the stages and knows them all; none knows another.
//!
//! ```text
//! queue → consume → decode → batch → infer → reply → settle → queue
//! ```

pub mod aside;
pub mod backlog;
pub mod batch;
pub mod coalesce;
pub mod consume;
pub mod decode;
pub mod flight;
pub mod hardware;
pub mod infer;
pub mod isolate;
pub mod lane_rows;
pub mod load;
pub mod message;
pub mod onnx;
pub mod outputs;
pub mod pace;
pub mod plan;
pub mod prefetch;
mod publish_queue;
mod refusing;
pub mod reply;
pub mod row_headers;
pub mod rows_limit;
pub mod settle;
pub mod sift;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod testing;
mod trial;
pub mod turns;
pub mod unconfirmed;
pub mod watch;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, Sender};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use self::backlog::PaceTable;
use self::batch::Batcher;
use self::coalesce::Hurry;
use self::consume::Consume;
use self::decode::{Lane, Limits, Served};
use self::infer::Inference;
use self::isolate::Isolation;
use self::lane_rows::LaneRows;
use self::load::{LoadedModel, LoadedVersion};
use self::message::Author;
use self::plan::Plan;
use self::reply::{Answer, Reply};
use self::row_headers::RowHeaders;
use self::rows_limit::RowsLimit;
use self::turns::{Seat, Turns};
use self::watch::{Patience, Watch, Watched};
use crate::broker::bodies::Bodies;
use crate::broker::link::{Link, Role, Supervisor};
use crate::broker::links::{Links, TooFewChannels};
use crate::broker::topology::{Mismatch, Names};
use crate::config::{Config, QueueType};
use crate::model::capacity::Estimate;
use crate::telemetry::about::ServedVersion;
use crate::telemetry::export::Traces;
use crate::telemetry::health::{Condition, Health};
use crate::telemetry::metrics::Metrics;

/// Why a worker ends although nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("{0}")]
    Topology(Mismatch),
    #[error(transparent)]
    Channels(#[from] TooFewChannels),
    #[error("the device is lost: {0}")]
    Device(String),
    #[error(
        "a run of model `{model}` did not end in the {stop_max_ms} ms after it was told to, at its limit of {run_max_ms} ms \
         (worker.run_timeout_ms); the jobs in hand go back to their queues"
    )]
    Hung {
        model: String,
        run_max_ms: u128,
        stop_max_ms: u128,
    },
    #[error("no model is left to serve:\n{0}")]
    NoModel(String),
    #[error("the thread of an engine could not be started")]
    Thread(#[source] std::io::Error),
    #[error("a stage of the worker panicked; its jobs go back to their queues")]
    Panicked,
}

/// Raises what ends the worker; the first one counts.
#[derive(Clone)]
pub struct Fatal(Sender<WorkerError>);

impl Fatal {
    pub fn raise(&self, error: WorkerError) {
        // A full channel holds an error already.
        let _ = self.0.try_send(error);
    }
}

/// What a worker runs with.
pub struct Worker {
    pub config: Config,
    /// The `inferq` program, for jobs that are run in a process of their own; none of them is without it.
    pub program: Option<PathBuf>,
    pub models: Vec<LoadedModel>,
    pub health: Health,
    pub metrics: Arc<Metrics>,
    /// Where the spans of sampled jobs go; `None` if nobody wants them.
    pub traces: Option<Traces>,
    /// Fires when the worker is to finish what it holds and end.
    pub stop: CancellationToken,
}

/// The tasks of a running worker, and the lifetimes of its connections.
struct Running {
    /// End by themselves once the last job is settled.
    stages: JoinSet<()>,
    /// End when `closed` fires.
    supervisors: TaskTracker,
    closed: CancellationToken,
    fatal: mpsc::Receiver<WorkerError>,
}

impl Worker {
    /// Takes jobs until `stop` fires, then finishes those in hand, for at most `worker.drain_timeout_ms`.
    ///
    /// What is not finished by then stays unacked, and the broker gives it to another worker.
    /// # Errors
    /// `WorkerError` if the worker cannot go on; its jobs go back to their queues as well.
    pub async fn run(self) -> Result<(), WorkerError> {
        let (stop, health) = (self.stop.clone(), self.health.clone());
        let drain_timeout = self.config.worker.drain_timeout;
        let in_hand = self.metrics.receipts.in_hand.clone();
        let unconfirmed = self.metrics.reply.unconfirmed.clone();
        let mut running = self.start()?;
        // Everything that is still to come has said so by now.
        health.clear(&Condition::Loading);
        if let Err(error) = running.until(&stop).await {
            stop.cancel();
            running.leave().await;
            return Err(error);
        }
        let began = Instant::now();
        health.set(Condition::Draining, "draining");
        info!("draining");
        let goodbye = GOODBYE_MAX.min(drain_timeout / 4);
        let drained = tokio::time::timeout(drain_timeout - goodbye, running.finish()).await;
        match drained {
            Ok(finished) => finished?,
            // With what was held and what stood in the way: without them nobody can tell a slow model from a full broker.
            Err(_) => warn!(
                jobs = in_hand.get(),
                unconfirmed = unconfirmed.get(),
                state = health.report().trim_end(),
                "not all jobs were finished in time; the rest goes back to its queues"
            ),
        }
        running.close(goodbye).await;
        info!(drain_ms = began.elapsed().as_millis() as u64, "drained");
        Ok(())
    }

    fn start(self) -> Result<Running, WorkerError> {
        let limits = &self.config.limits;
        let bodies = Bodies::new(limits.memory_bytes, limits.body_bytes_max, self.models.len());
        self.metrics.about.watch_bodies(bodies.clone());
        let closed = CancellationToken::new();
        let supervisors = TaskTracker::new();
        let mut consuming = self.supervisor(Role::Consume, &closed);
        consuming.bodies = Some(bodies.clone());
        let consuming = Arc::new(Links::new(consuming, supervisors.clone()));
        let (live, publishing) = Link::new();
        supervisors.spawn(self.supervisor(Role::Publish, &closed).run(live));
        let (fatal, fatal_receiver) = mpsc::channel(1);
        let (answers, answers_receiver) = mpsc::channel(ANSWERS_QUEUED_MAX);
        let mut stages = JoinSet::new();
        let threads = threads(&self.config);
        let engines: usize = self.models.iter().map(LoadedModel::engines).sum();
        let shared = Shared {
            threads,
            turns: (engines > threads).then(|| Turns::new(threads)),
            bodies,
            isolation: self.program.and_then(|program| isolation(&self.config, program)),
            config: self.config,
            health: self.health,
            metrics: self.metrics,
            traces: self.traces,
            paces: PaceTable::new(threads),
            stop: self.stop,
            fatal: Fatal(fatal),
            answers,
        };
        stages.spawn(shared.reply(publishing, answers_receiver).run());
        let mut engines = Vec::new();
        for (number, model) in self.models.into_iter().enumerate() {
            let served = shared.serve(model, &mut stages, &mut engines)?;
            stages.spawn(shared.consume(number, served, consuming.clone()).run());
        }
        let watch = Watch {
            engines,
            patience: Patience {
                run_max: shared.config.worker.run_timeout,
                stop_max: watch::STOP_MAX,
            },
            fatal: shared.fatal.clone(),
            closed: closed.clone(),
        };
        supervisors.spawn(watch.run());
        Ok(Running {
            stages,
            supervisors,
            closed,
            fatal: fatal_receiver,
        })
    }

    fn supervisor(&self, role: Role, closed: &CancellationToken) -> Supervisor {
        self.health.set(role.down(), "connecting to the broker");
        Supervisor {
            role,
            config: self.config.broker.clone(),
            name: self.config.worker.identity(),
            bodies: None,
            health: self.health.clone(),
            metrics: self.metrics.link(role),
            closed: closed.clone(),
        }
    }
}

impl Running {
    /// Returns when the worker is to stop.
    ///
    /// # Errors
    /// It cannot go on. A stage that ends before it is told to counts as well: jobs would pile up where it was.
    async fn until(&mut self, stop: &CancellationToken) -> Result<(), WorkerError> {
        let stage = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            Some(error) = self.fatal.recv() => return Err(error),
            stage = self.stages.join_next() => stage,
        };
        match stage {
            Some(Ok(())) if stop.is_cancelled() => Ok(()),
            Some(Ok(()) | Err(_)) | None => Err(self.fatal.try_recv().unwrap_or(WorkerError::Panicked)),
        }
    }

    /// Waits for the stages to run dry: each ends when the one before it has.
    async fn finish(&mut self) -> Result<(), WorkerError> {
        loop {
            tokio::select! {
                stage = self.stages.join_next() => match stage {
                    Some(Ok(())) => {}
                    Some(Err(_)) => return Err(WorkerError::Panicked),
                    None => return Ok(()),
                },
                Some(error) = self.fatal.recv() => return Err(error),
            }
        }
    }

    /// Lets out what is done already, for a moment: an answer that gets out need not be computed again.
    async fn leave(mut self) {
        let dry = async { while self.stages.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(GOODBYE_MAX, dry).await;
        self.close(GOODBYE_MAX).await;
    }

    async fn close(self, goodbye: Duration) {
        self.closed.cancel();
        self.supervisors.close();
        let _ = tokio::time::timeout(goodbye, self.supervisors.wait()).await;
    }
}

/// What the stages are built from.
struct Shared {
    config: Config,
    isolation: Option<Isolation>,
    health: Health,
    metrics: Arc<Metrics>,
    traces: Option<Traces>,
    paces: PaceTable,
    bodies: Bodies,
    stop: CancellationToken,
    fatal: Fatal,
    answers: Sender<Vec<Answer>>,
    /// `worker.threads`.
    threads: usize,
    /// `None` where there are as many threads as engines.
    turns: Option<Turns>,
}

impl Shared {
    fn reply(&self, link: Link, answers: mpsc::Receiver<Vec<Answer>>) -> Reply {
        Reply {
            link,
            answers,
            stop: self.stop.clone(),
            plan: Plan {
                author: Author {
                    names: Names::new(&self.config.topology.prefix),
                    worker: self.config.worker.identity(),
                },
                unroutable: self.config.reply.unroutable,
                uncounted: self.config.topology.queue_type == QueueType::Classic,
                metrics: self.metrics.reply.clone(),
            },
            config: self.config.reply.clone(),
            reconnect_max: self.config.broker.reconnect_max,
            topology: self.config.topology.clone(),
            health: self.health.clone(),
            metrics: self.metrics.reply.clone(),
        }
    }

    fn consume(&self, number: usize, model: Served, links: Arc<Links>) -> Consume {
        self.health.set(Condition::Consumer(model.name.clone()), NOT_YET);
        Consume {
            model: Arc::new(model),
            number,
            links,
            broker: self.config.broker.clone(),
            topology: self.config.topology.clone(),
            limits: Limits {
                body_bytes_max: self.config.limits.body_bytes_max,
                delivery_limit: delivery_limit(&self.config).unwrap_or(u64::MAX),
            },
            bodies: self.bodies.clone(),
            answers: self.answers.clone(),
            health: self.health.clone(),
            receipts: self.metrics.receipts.clone(),
            replies: self.metrics.reply.clone(),
            drain_timeout: self.config.worker.drain_timeout,
            stop: self.stop.clone(),
            fatal: self.fatal.clone(),
        }
    }

    /// Starts the lanes of a model: a batching task and its engines' threads for every version.
    fn serve(
        &self,
        model: LoadedModel,
        stages: &mut JoinSet<()>,
        engines: &mut Vec<(Arc<str>, Watched)>,
    ) -> Result<Served, WorkerError> {
        let name: Arc<str> = model.name.into();
        let mut lanes = BTreeMap::new();
        for loaded in model.versions {
            let version = loaded.version;
            for provider in loaded.placement.providers() {
                let device = loaded.hardware.device.to_string();
                self.metrics.runs_on(&name, &version.to_string(), &device, provider);
            }
            self.metrics.about.serves(&ServedVersion {
                model: &name,
                version: &version.to_string(),
                is_default: version == model.default_version,
                digest: loaded.digest.map(|digest| digest.to_string()),
                load: loaded.load,
            });
            let lane = Arc::new(Lane {
                model: name.clone(),
                version: version.to_string(),
                metrics: self.metrics.lane(&name, &version.to_string()),
                signature: loaded.signature.clone(),
                defaults: loaded.defaults.clone(),
                rows: Arc::new(LaneRows::new(
                    &loaded.rows.batching,
                    RowHeaders::of(&loaded.rows, &loaded.signature),
                )),
                rows_max: loaded.rows_max,
                engines: loaded.engines.len().min(self.threads),
                capacity: Arc::new(Estimate::new(loaded.fit.capacity())),
                hurry: Hurry::here(),
            });
            lane.metrics.rows_info.show(&loaded.rows);
            if let Some(capacity) = loaded.fit.capacity() {
                lane.metrics.measured(capacity);
            }
            lane.metrics.rows_limit.set(lane.rows_max as i64);
            let (jobs, jobs_receiver) = mpsc::channel(usize::from(self.config.broker.prefetch));
            let (idle, idle_receiver) = mpsc::channel(loaded.engines.len());
            let batcher = Batcher::new(lane.rows_max, lane.rows.clone(), lane.capacity.clone());
            let linger = self.config.batch.linger;
            let seat = match &self.turns {
                Some(turns) => turns.seat(loaded.engines.len()),
                None => Seat::free(),
            };
            stages.spawn(batch::run(
                batcher,
                linger,
                seat,
                lane.clone(),
                jobs_receiver,
                idle_receiver,
                self.answers.clone(),
            ));
            for watched in self.start_engines(loaded, &lane, &idle)? {
                engines.push((name.clone(), watched));
            }
            lanes.insert(version, (lane, jobs));
        }
        Ok(Served {
            metrics: self.metrics.model(&name).into(),
            traces: self.traces.clone(),
            pace: self.paces.join(),
            default_version: model.default_version,
            left_out: model.left_out,
            name,
            lanes,
        })
    }

    fn start_engines(
        &self,
        loaded: LoadedVersion,
        lane: &Arc<Lane>,
        idle: &Sender<batch::EngineSlot>,
    ) -> Result<Vec<Watched>, WorkerError> {
        let mut started = Vec::new();
        for (number, engine) in loaded.engines.into_iter().enumerate() {
            let watched = Watched::default();
            started.push(watched.clone());
            let inference = Inference {
                engine,
                lane: lane.clone(),
                fit: loaded.fit.clone(),
                model: loaded.file.clone(),
                hardware: loaded.hardware.clone(),
                isolation: self.isolation.clone(),
                isolated: None,
                watched,
                run_max: self.config.worker.run_timeout,
                rows_limit: RowsLimit::new(lane.rows_max),
                reply_bytes_max: self.config.limits.body_bytes_max,
                idle: idle.clone(),
                answers: self.answers.clone(),
                fatal: self.fatal.clone(),
            };
            std::thread::Builder::new()
                .name(format!("{}-{number}", lane.model))
                .spawn(move || inference.run())
                .map_err(WorkerError::Thread)?;
        }
        Ok(started)
    }
}

/// How often a job may come back; a classic queue does not count, and `redelivered` alone says nothing of how often.
fn delivery_limit(config: &Config) -> Option<u64> {
    match config.topology.queue_type {
        QueueType::Quorum => Some(u64::from(config.topology.delivery_limit)),
        QueueType::Classic => None,
    }
}

/// How many runs may go on at once.
fn threads(config: &Config) -> usize {
    match config.worker.threads {
        0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        threads => threads,
    }
}

fn isolation(config: &Config, program: PathBuf) -> Option<Isolation> {
    let after = isolate::threshold(config.worker.isolate_after, delivery_limit(config))?;
    Some(Isolation { program, after })
}

const NOT_YET: &str = "not consuming yet";
/// Batches whose replies wait for the publishing task. Engines wait beyond that, and so does everything before them.
const ANSWERS_QUEUED_MAX: usize = 8;
/// The share of the drain timeout that is kept for closing the connections; and what a worker that cannot go on takes for
/// its answers, and again for the connections.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> (Running, Fatal) {
        let (fatal, receiver) = mpsc::channel(1);
        let running = Running {
            stages: JoinSet::new(),
            supervisors: TaskTracker::new(),
            closed: CancellationToken::new(),
            fatal: receiver,
        };
        (running, Fatal(fatal))
    }

    #[tokio::test]
    async fn a_stage_that_ends_before_it_is_told_to_ends_the_worker() {
        let (mut running, _fatal) = running();
        running.stages.spawn(std::future::pending());
        running.stages.spawn(async {});

        let ended = running.until(&CancellationToken::new()).await;

        assert!(matches!(ended, Err(WorkerError::Panicked)));
    }

    #[tokio::test]
    async fn the_first_fatal_error_is_the_one_that_counts() {
        let (mut running, fatal) = running();
        fatal.raise(WorkerError::Device("the first".to_owned()));
        fatal.raise(WorkerError::Device("the second".to_owned()));
        running.stages.spawn(async {});

        let ended = running.until(&CancellationToken::new()).await;

        assert!(matches!(ended, Err(WorkerError::Device(lost)) if lost == "the first"));
    }

    #[tokio::test]
    async fn a_stage_that_ends_because_the_worker_stops_is_no_fault() {
        let (mut running, _fatal) = running();
        let stop = CancellationToken::new();
        stop.cancel();
        running.stages.spawn(async {});

        assert!(running.until(&stop).await.is_ok());
        assert!(running.finish().await.is_ok());
    }
}
