//! The worker's rules against a model broker, in schedules drawn from seeds.
//!
//! A schedule is a list of steps: a job comes, the broker delivers, the worker takes, a channel closes, the process dies.
//! After each the invariants of [`oracle`] are checked; in the end every fault is mended, the worker finishes, drains and
//! all jobs are counted. A schedule that fails is cut down and shown with its seed. `tests/README.md` says what is real
//! here, what is a model, and how a seed is run again.

mod arithmetic;
mod broker;
mod event;
mod messages;
mod mutants;
mod oracle;
mod pace;
mod schedule;
mod search;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use self::broker::Broker;
use self::event::Event;
use self::mutants::Mutant;
use self::oracle::{Checked, Oracle};
use self::schedule::{Setting, Step};
use self::search::Bench;
use self::worker::{Died, Worker, World};
use super::decode::Moment;
use crate::telemetry::metrics::Metrics;

/// A broker and at most one worker.
struct Simulation {
    setting: Setting,
    metrics: Arc<Metrics>,
    mutant: Option<Mutant>,
    broker: Broker,
    oracle: Oracle,
    worker: Option<Worker>,
    began: Instant,
    passed: Duration,
    wall_ms: i64,
    ahead: Duration,
    rng: Rng,
}

impl Simulation {
    fn new(setting: &Setting, seed: u64, bench: &Bench) -> Self {
        // Message ids that the worker makes up.
        fastrand::seed(seed);
        Self {
            worker: Some(Worker::new(setting, &bench.metrics, bench.mutant)),
            broker: Broker::new(setting),
            oracle: Oracle::new(setting),
            setting: setting.clone(),
            metrics: bench.metrics.clone(),
            mutant: bench.mutant,
            began: bench.began,
            passed: Duration::from_secs(3600),
            wall_ms: 1_700_000_000_000,
            ahead: Duration::ZERO,
            rng: Rng::with_seed(seed),
        }
    }

    fn run(&mut self, steps: &[Step]) -> Checked {
        self.with_worker(|worker, world| {
            worker.reopen(world.moment.now);
            Ok(())
        })?;
        for step in steps {
            self.step(*step)?;
        }
        self.come_to_rest()?;
        self.oracle.finish()
    }

    fn with_worker(&mut self, act: impl FnOnce(&mut Worker, &mut World<'_>) -> Checked) -> Checked {
        let Some(mut worker) = self.worker.take() else {
            return Ok(());
        };
        let done = act(&mut worker, &mut self.world());
        self.worker = Some(worker);
        done
    }

    fn world(&mut self) -> World<'_> {
        let unix = Duration::from_millis(self.wall_ms.unsigned_abs());
        World {
            moment: Moment {
                now: self.began + self.passed,
                unix,
            },
            ahead: self.ahead,
            broker: &mut self.broker,
            oracle: &mut self.oracle,
            rng: &mut self.rng,
        }
    }

    fn step(&mut self, step: Step) -> Checked {
        match step {
            Step::Publish {
                kind,
                rows,
                reply_to,
                deadline_ms,
            } => {
                let deadline = deadline_ms.map(|ms| self.wall_ms + ms as i64);
                let job = self.oracle.job(kind, rows, reply_to, deadline);
                self.broker.enqueue(job);
            }
            Step::PublishTwin => {
                if let Some(job) = self.oracle.twin() {
                    self.broker.enqueue(job);
                }
            }
            Step::Block(blocked) => self.broker.block(blocked),
            Step::SetQueue(queue, state) => self.broker.set_queue(queue, state),
            Step::SetDeadLetters(state) => self.broker.set_dead_letters(state),
            Step::Pass(time) => {
                self.passed += time;
                self.wall_ms += time.as_millis() as i64;
            }
            Step::WallClockJumps { back: true, by } => self.wall_ms -= by.as_millis() as i64,
            Step::WallClockJumps { back: false, by } => {
                self.wall_ms += by.as_millis() as i64;
                self.ahead += by;
            }
            Step::Run => self.run_batch()?,
            Step::Flow(count) => {
                let way = [
                    Step::Deliver(count),
                    Step::Take(count),
                    Step::Batch,
                    Step::Run,
                    Step::Reply,
                    Step::Route(count),
                ];
                way.iter().try_for_each(|step| self.step(*step))?;
            }
            Step::Crash { routed } => self.end_worker(routed)?,
            Step::Leave if self.worker.as_ref().is_some_and(|worker| worker.draining) => self.end_worker(2)?,
            Step::Leave => {}
            Step::Start if self.worker.is_none() => {
                self.worker = Some(Worker::new(&self.setting, &self.metrics, self.mutant));
                self.step(Step::Reopen)?;
            }
            Step::Start => {}
            step => self.with_worker(|worker, world| worker_step(step, worker, world))?,
        }
        self.leave_if_dry()
    }

    fn run_batch(&mut self) -> Checked {
        let mut died = Ok(());
        self.with_worker(|worker, world| {
            died = worker.run(world)?;
            Ok(())
        })?;
        match died {
            Ok(()) => Ok(()),
            Err(Died) => {
                self.oracle.saw(Event::Died);
                self.end_worker(2)
            }
        }
    }

    /// The process ends as it is; a part of what it sent gets through.
    fn end_worker(&mut self, routed: usize) -> Checked {
        match self.worker.take() {
            Some(worker) => worker.disconnect(routed, &mut self.world()),
            None => Ok(()),
        }
    }

    fn leave_if_dry(&mut self) -> Checked {
        match self.worker.take_if(|worker| worker.draining && worker.is_dry()) {
            Some(worker) => worker.leave_dry(&mut self.world()),
            None => Ok(()),
        }
    }

    /// Mends everything and lets the worker finish and drain.
    fn come_to_rest(&mut self) -> Checked {
        self.broker.heal();
        for _ in 0..ROUNDS_MAX {
            self.round()?;
            let at_rest = self.worker.as_mut().is_some_and(|worker| {
                worker.is_dry() && worker.consuming().is_some_and(|consuming| consuming.unacked() == 0)
            });
            if at_rest && self.broker.is_empty() {
                return self.drain();
            }
        }
        Err("I1: nothing is wrong any more, and still jobs are left".to_owned())
    }

    fn drain(&mut self) -> Checked {
        self.step(Step::Drain)?;
        for _ in 0..ROUNDS_MAX {
            if self.worker.is_none() {
                return Ok(());
            }
            self.round()?;
        }
        Err("I6: a drain does not end".to_owned())
    }

    /// Everything that can go on goes on.
    fn round(&mut self) -> Checked {
        const ALL: usize = usize::MAX;
        let steps = [
            Step::Start,
            Step::Reopen,
            Step::Deliver(ALL),
            Step::Take(ALL),
            Step::Batch,
            Step::Run,
            Step::Reply,
            Step::Retry,
            Step::Route(ALL),
            Step::Confirm {
                which: ALL,
                multiple: true,
            },
            Step::Confirm {
                which: 0,
                multiple: false,
            },
            Step::Land,
            Step::Settle,
            Step::TakeAcks(ALL),
            Step::Pass(Duration::from_millis(700)),
        ];
        let starts = usize::from(self.worker.as_ref().is_some_and(|worker| worker.draining));
        steps[starts..].iter().try_for_each(|step| self.step(*step))
    }
}

/// What is between the worker and the broker, and what the worker does next.
fn worker_step(step: Step, worker: &mut Worker, world: &mut World<'_>) -> Checked {
    match step {
        Step::Take(count) => worker.take(count, world)?,
        Step::Batch => worker.batch(world)?,
        Step::Reply => worker.reply(world),
        Step::Retry => worker.retry(world)?,
        Step::Land => worker.land(world)?,
        Step::Settle => worker.settle(world)?,
        Step::Reopen => worker.reopen(world.moment.now),
        Step::Drain => worker.drain(),
        _ => {}
    }
    if let Some(publishing) = worker.publishing() {
        match step {
            Step::Route(count) => world.broker.route(publishing, count, world.oracle)?,
            Step::Confirm { which, multiple } => world.broker.confirm(publishing, which, multiple, world.oracle),
            Step::ClosePublishing | Step::LoseConnections => publishing.close(world.oracle),
            _ => {}
        }
    }
    if let Some(consuming) = worker.consuming() {
        match step {
            Step::Deliver(count) => world.broker.deliver(consuming, count, world.oracle),
            Step::TakeAcks(count) => world.broker.take_frames(consuming, count, world.oracle)?,
            Step::CloseConsuming | Step::LoseConnections => world.broker.close_consuming(consuming, world.oracle),
            Step::CancelConsumer => consuming.cancelled = true,
            Step::WidenWindow(by) => consuming.widened += by,
            _ => {}
        }
    }
    Ok(())
}

/// Rounds until all must be done. A poisonous job takes two deliveries, a job that is too heavy six, a held reply
/// half a minute; there are fewer than ninety jobs.
const ROUNDS_MAX: usize = 3_000;
