//! Coalescing: fewer, fuller turns of the runtime under load. A rule for the thread that runs all stages but inference.
//!
//! Each frame that comes in wakes the runtime, the client's I/O thread and the stages in turn; with one job a frame those
//! wake-ups cost more than the job. Network cards know the problem and the answer: interrupt coalescing. Before the thread
//! goes to sleep it stays away from the sockets for a moment, so that the next turn finds more of everything: deliveries,
//! finished batches, confirms. It does so only with many jobs in hand, so that nobody waits who came alone.
//!
//! An engine must not stand idle meanwhile with a full batch before it: then its run ends the pause as well. A batch that is
//! not full is worth more when the pause has filled it.
//!
//! `benches/README.md` has what it gives and what it costs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use prometheus::IntGauge;

/// When the runtime's thread is about to sleep.
#[derive(Clone)]
pub struct Coalesce {
    /// `worker.coalesce_ms`.
    pub pause: Duration,
    /// Deliveries taken and not yet settled.
    pub in_hand: IntGauge,
    /// Of those the ones that wait for a queue that takes nothing: they are no load.
    pub held_back: [IntGauge; 2],
}

impl Coalesce {
    /// Stays away from the sockets for as long as it is right.
    pub fn rest(&self) {
        match self.pause() {
            Duration::ZERO => {}
            pause => std::thread::park_timeout(pause),
        }
    }

    fn pause(&self) -> Duration {
        let held_back: i64 = self.held_back.iter().map(IntGauge::get).sum();
        if self.in_hand.get() - held_back >= IN_HAND_MIN {
            self.pause
        } else {
            Duration::ZERO
        }
    }
}

/// Ends the pause of the runtime's thread for the engines of one lane.
pub struct Hurry {
    runtime: Thread,
    /// Whether a full batch waits for an engine.
    waiting: AtomicBool,
}

impl Hurry {
    /// For the runtime of the thread that calls this.
    pub fn here() -> Self {
        Self {
            runtime: std::thread::current(),
            waiting: AtomicBool::new(false),
        }
    }

    pub fn batch_waits(&self, waiting: bool) {
        self.waiting.store(waiting, Ordering::Relaxed);
    }

    /// To be called when an engine asks for work.
    pub fn engine_is_idle(&self) {
        if self.waiting.load(Ordering::Relaxed) {
            self.runtime.unpark();
        }
    }
}

/// From here on a job has company on every leg of its way, and a client with fewer calls at a time waits for nothing. 32
/// gave the same CPU time a job within the noise, 64 gave smaller batches and dearer jobs.
const IN_HAND_MIN: i64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_a_full_batch_is_there_for_ends_the_pause() {
        let in_hand = IntGauge::new("in_hand", "in hand").unwrap();
        in_hand.set(16);
        let rule = Coalesce {
            pause: Duration::from_secs(3600),
            in_hand,
            held_back: held_back(),
        };
        let (rested, end) = std::sync::mpsc::channel();

        std::thread::spawn(move || {
            let hurry = Hurry::here();
            hurry.batch_waits(true);
            std::thread::spawn(move || hurry.engine_is_idle());
            rule.rest(); // Would take an hour.
            rested.send(())
        });

        assert_eq!(end.recv_timeout(Duration::from_secs(60)), Ok(()));
    }

    #[test]
    fn only_with_company_is_there_a_pause() {
        let in_hand = IntGauge::new("in_hand", "in hand").unwrap();
        let rule = Coalesce {
            pause: Duration::from_millis(1),
            in_hand: in_hand.clone(),
            held_back: held_back(),
        };

        let pauses = [0, 1, 15, 16, 256].map(|jobs| {
            in_hand.set(jobs);
            rule.pause().as_millis()
        });

        assert_eq!(pauses, [0, 0, 0, 1, 1]);
    }

    #[test]
    fn jobs_that_are_held_back_are_no_company() {
        let in_hand = IntGauge::new("in_hand", "in hand").unwrap();
        in_hand.set(80);
        let rule = Coalesce {
            pause: Duration::from_millis(1),
            in_hand,
            held_back: held_back(),
        };

        rule.held_back[0].set(60);
        let with_some = rule.pause().as_millis();
        rule.held_back[1].set(5);

        assert_eq!((with_some, rule.pause().as_millis()), (1, 0));
    }

    fn held_back() -> [IntGauge; 2] {
        ["replies", "dead_letters"].map(|name| IntGauge::new(name, "held back").unwrap())
    }
}
