//! What the triggers of a fleet read: the figures of the management API and what Prometheus scraped, each as late as it is in
//! a cluster.

use std::collections::VecDeque;

use super::fleet::Broker;
use super::keda::{Mode, Queue, Reading};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ready and unacked, by the management API: KEDA's `protocol: http`.
    Messages,
    /// Ready alone, as with `protocol: amqp` or `excludeUnacknowledged`.
    Ready,
    /// Another mode of the rabbitmq trigger, by the management API.
    Mode(Mode),
    /// The publish rate where `collect_statistics_interval` is not the management agent's own: every other figure is 0.
    FlappingRate,
    /// The greatest `inferq_backlog_seconds`, by Prometheus. Without a worker there is none, and KEDA takes that for 0.
    Seconds,
    /// Workers' worth of rows that are settled, over [`SHARE`], by Prometheus.
    SettledRate,
}

/// The counts of one moment; the latter two only grow.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub ready: f64,
    pub unacked: f64,
    pub published: f64,
    pub delivered: f64,
}

/// What the sources say at present.
#[derive(Debug, Default)]
pub struct Sources {
    counts: Counts,
    /// What the management API says.
    queue: Queue,
    refreshes: u64,
    seconds: Option<f64>,
    /// When what was settled so far was so many seconds' worth of one worker; of the last [`WINDOW`].
    settled: VecDeque<(f64, f64)>,
}

impl Sources {
    /// The broker takes its figures anew.
    pub fn refresh(&mut self, counts: Counts, broker: &Broker) {
        let last = std::mem::replace(&mut self.counts, counts);
        self.refreshes += 1;
        if broker.silent {
            return;
        }
        self.queue = Queue {
            messages: counts.ready + counts.unacked,
            publish: (counts.published - last.published) / broker.refresh,
            deliver_get: (counts.delivered - last.delivered) / broker.refresh,
        };
    }

    /// Prometheus scrapes the workers; without any there is nothing.
    pub fn scrape(&mut self, now: f64, seconds: Option<f64>, settled: Option<f64>) {
        self.seconds = seconds;
        self.settled.extend(settled.map(|settled| (now, settled)));
        self.settled.retain(|(at, _)| now - at <= WINDOW);
    }

    pub fn read(&self, signal: Signal, activation: f64, broker_is_away: bool) -> Reading {
        let queue = self.queue;
        let asked = match signal {
            Signal::Messages => Mode::QueueLength.read(queue, activation),
            Signal::Ready => self.counts.ready.into(),
            Signal::Mode(mode) => mode.read(queue, activation),
            Signal::FlappingRate if self.refreshes.is_multiple_of(2) => {
                Mode::MessageRate.read(Queue { publish: 0.0, ..queue }, activation)
            }
            Signal::FlappingRate => Mode::MessageRate.read(queue, activation),
            // Prometheus does not ask the broker.
            Signal::Seconds => return Some(self.seconds.unwrap_or(0.0).into()),
            Signal::SettledRate => return Some(self.workers().into()),
        };
        (!broker_is_away).then_some(asked)
    }

    fn workers(&self) -> f64 {
        let (Some((from, first)), Some((to, last))) = (self.settled.front(), self.settled.back()) else {
            return 0.0;
        };
        (last - first) / (to - from).max(1.0) / SHARE
    }
}

/// Of what one replica can do, what it is to carry.
pub const SHARE: f64 = 0.75;
/// Seconds that a rate in Prometheus looks back.
const WINDOW: f64 = 60.0;
