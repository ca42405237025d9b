//! Jobs set aside: deliveries whose bodies found no room, see [`crate::broker::bodies`].
//!
//! Nothing of them is kept but the right to settle them. They keep their places in the prefetch window, so that the broker sends
//! no others instead, and go back to it one by one when there is room; it then delivers them again, here or to another worker.

use std::collections::VecDeque;

use super::settle::{Receipt, Verdict};

/// Those of one consuming channel, the one that came first in front.
#[derive(Default)]
pub struct Aside(VecDeque<(Receipt, usize)>);

impl Aside {
    /// Sets aside a job whose body has so many bytes.
    pub fn put(&mut self, receipt: Receipt, bytes: u64) {
        self.0
            .push_back((receipt, usize::try_from(bytes).unwrap_or(usize::MAX)));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes the body of the first one has.
    pub fn first_bytes(&self) -> Option<usize> {
        self.0.front().map(|(_, bytes)| *bytes)
    }

    pub fn give_back_first(&mut self) {
        if let Some((receipt, _)) = self.0.pop_front() {
            receipt.settle(Verdict::GiveBack);
        }
    }

    /// For a worker that stops.
    pub fn give_back_all(&mut self) {
        while !self.0.is_empty() {
            self.give_back_first();
        }
    }
}
