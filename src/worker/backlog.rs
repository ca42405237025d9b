//! The backlog: how much waits for a model, in jobs and in seconds of work. Beside the way; nothing waits for it.
//!
//! The broker is asked on a channel of its own: what it refuses closes the channel that it was asked on, and on the
//! consuming one that would cost every job in hand.

use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};

use super::decode::Served;
use super::settle::InHand;
use crate::broker::connection::Connected;

/// What one generation of a model looks after.
pub struct Backlog {
    pub model: Arc<Served>,
    pub queue: ShortString,
    pub in_hand: InHand,
    pub connection: Arc<Connected>,
}

impl Backlog {
    /// Looks every few seconds, until it is dropped.
    pub async fn watch(self) {
        let mut look = tokio::time::interval(LOOK);
        let mut channel = None;
        loop {
            look.tick().await;
            match self.ready(&mut channel).await {
                Ok(ready) => self.show(ready),
                // A user who may not look, or a connection that is about to end: no figure is better than an old one.
                Err(_) => {
                    channel = None;
                    self.model.metrics.backlog.hide();
                }
            }
        }
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

    fn show(&self, ready: u32) {
        let jobs = f64::from(ready) + self.in_hand.jobs() as f64;
        let load = self.model.lanes.get(&self.model.default_version);
        let load = load.and_then(|(lane, _)| lane.load());
        let seconds = load.map(|load| load.seconds(jobs));
        self.model.metrics.backlog.show(i64::from(ready), seconds);
    }
}

/// As often as Prometheus asks, or more often.
const LOOK: Duration = Duration::from_secs(5);
