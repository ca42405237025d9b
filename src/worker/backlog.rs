//! The backlog: how much waits for a model, in jobs and in seconds of work. Beside the way; nothing waits for it.
//!
//! The broker is asked on a channel of its own: what it refuses closes the channel that it was asked on, and on the
//! consuming one that would cost every job in hand. What follows from its answers is [`super::pace`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use super::decode::Served;
use super::pace::{Expected, LOOK_BUSY, LOOK_IDLE, LOOK_SOON, Look, Paces};
use super::settle::InHand;
use crate::broker::connection::Connected;
use crate::telemetry::metrics::ReplyMetrics;

/// The models of a worker, at which each of them looks.
#[derive(Clone)]
pub struct PaceTable(Arc<Mutex<Paces>>);

/// The place of one model.
pub struct PaceHandle {
    table: PaceTable,
    model: usize,
}

impl PaceTable {
    /// For a worker in which so many runs may go on at once.
    pub fn new(threads: usize) -> Self {
        Self(Arc::new(Mutex::new(Paces::new(threads))))
    }

    /// A place for one more model.
    pub fn join(&self) -> PaceHandle {
        PaceHandle {
            model: self.paces().join(),
            table: self.clone(),
        }
    }

    fn paces(&self) -> MutexGuard<'_, Paces> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PaceHandle {
    /// The place of an only model, which nobody looks at.
    pub fn alone() -> Self {
        PaceTable::new(1).join()
    }
}

/// What one generation of a model looks after.
pub struct Backlog {
    pub model: Arc<Served>,
    pub queue: ShortString,
    pub in_hand: InHand,
    pub connection: Arc<Connected>,
    pub replies: ReplyMetrics,
}

impl Backlog {
    /// Looks often while jobs wait and every few seconds otherwise, until it is dropped.
    pub async fn watch(self) {
        let (mut channel, mut round_trip) = (None, None);
        let mut is_woken = false;
        self.leave();
        loop {
            let asked = Instant::now();
            let next = match self.ready(&mut channel).await {
                Ok(ready) => {
                    // The shortest: others waited behind deliveries.
                    let took = asked.elapsed();
                    let round_trip = round_trip.get_or_insert(took);
                    *round_trip = took.min(*round_trip);
                    self.show(ready, *round_trip)
                }
                // A user who may not look, or a connection that is about to end: no figure is better than an old one.
                Err(_) => {
                    channel = None;
                    self.leave();
                    LOOK_IDLE
                }
            };
            // Who was woken for nothing is not to be so all the time.
            let soonest = if is_woken { LOOK_BUSY } else { LOOK_SOON }.min(next);
            tokio::time::sleep(soonest).await;
            is_woken = self.is_woken(next - soonest).await;
        }
    }

    /// Waits for so long, or until more jobs are in hand than a worker without a backlog often has.
    async fn is_woken(&self, rest: Duration) -> bool {
        !rest.is_zero() && tokio::time::timeout(rest, self.in_hand.fills()).await.is_ok()
    }

    /// The messages that wait in the queue.
    async fn ready(&self, channel: &mut Option<Channel>) -> Result<u32, lapin::Error> {
        let channel = match channel {
            Some(channel) => channel,
            None => channel.insert(self.connection.create_channel().await?),
        };
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let queue = channel.queue_declare(self.queue.clone(), passive, FieldTable::default());
        Ok(queue.await?.message_count())
    }

    fn show(&self, ready: u32, round_trip: Duration) -> Duration {
        let metrics = &self.model.metrics;
        let window = u64::try_from(metrics.prefetch.get()).unwrap_or(1);
        let load = self.model.lanes.get(&self.model.default_version);
        let load = load.and_then(|(lane, _)| lane.load());
        let confirm = self.replies.confirm_mean().unwrap_or(round_trip);
        let look = Look {
            at: Instant::now(),
            ready: ready.into(),
            in_hand: self.in_hand.jobs() as u64,
            window,
            settled: metrics.settled.so_far(),
            expected: load.map(|load| Expected::new(&load, window, round_trip, confirm)),
        };
        let place = &self.model.pace;
        let view = place.table.paces().look(place.model, look, processor());
        if !view.is_early {
            metrics.backlog.show_jobs(ready.into());
        }
        match view.shown {
            Some(shown) => {
                let rate = shown.rows_per_second;
                metrics.backlog.show_seconds(shown.seconds, rate, shown.is_estimate);
            }
            None if view.is_early => {}
            None => metrics.backlog.hide_seconds(),
        }
        view.next
    }

    fn leave(&self) {
        let place = &self.model.pace;
        place.table.paces().leave(place.model);
        self.model.metrics.backlog.hide();
    }
}

/// What this process has taken of the processor so far.
fn processor() -> Duration {
    let taken = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(taken).unwrap_or_default()
}
