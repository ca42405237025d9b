//! Jobs set aside: deliveries whose bodies found no room, see [`crate::broker::bodies`].
//!
//! Nothing of them is kept but the right to settle them. They keep their places in the prefetch window, so that the broker sends
//! no others instead, and go back to it one by one when there is room; it then delivers them again, here or to another worker.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::settle::{Receipt, Verdict};
use crate::broker::bodies::Bodies;

/// Those of one consuming channel, the one that came first in front.
pub struct Aside {
    bodies: Bodies,
    waiting: VecDeque<(Receipt, usize)>,
    /// A job that went back and has not come again, and until when it is waited for.
    returning: Option<(OwnedSemaphorePermit, Instant)>,
}

impl Aside {
    pub fn new(bodies: Bodies) -> Self {
        Self {
            bodies,
            waiting: VecDeque::new(),
            returning: None,
        }
    }

    /// Sets aside a job whose body has so many bytes.
    pub fn put(&mut self, receipt: Receipt, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.waiting.push_back((receipt, bytes));
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A delivery came: what went back is here, or elsewhere.
    pub fn delivered(&mut self) {
        self.returning = None;
    }

    /// Gives back the next job as soon as that makes sense; waits for ever if there is none. May be dropped at any moment.
    pub async fn give_back_next(&mut self) {
        if let Some((_, until)) = &self.returning {
            tokio::time::sleep_until(*until).await;
            // Another worker has it.
            self.returning = None;
        }
        let Some((_, bytes)) = self.waiting.front() else {
            return std::future::pending().await;
        };
        let turn = self.bodies.turn(*bytes).await;
        self.give_back_first();
        self.returning = turn.map(|turn| (turn, Instant::now() + RETURN_MAX));
    }

    /// Gives back the first one if there is room for it now.
    #[cfg(test)]
    pub fn give_back_if_room(&mut self) {
        let first = self.waiting.front();
        if first.is_some_and(|(_, bytes)| self.bodies.has_room_for(*bytes)) {
            self.give_back_first();
        }
    }

    /// For a worker that stops.
    pub fn give_back_all(&mut self) {
        self.returning = None;
        while !self.waiting.is_empty() {
            self.give_back_first();
        }
    }

    fn give_back_first(&mut self) {
        if let Some((receipt, _)) = self.waiting.pop_front() {
            receipt.settle(Verdict::GiveBack);
        }
    }
}

/// How long a job that went back is waited for.
const RETURN_MAX: Duration = Duration::from_secs(1);
