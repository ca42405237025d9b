//! How long to wait before trying again.

use std::time::Duration;

/// Full jitter: `rand(0, min(cap, base * 2^attempt))`, so that a fleet does not come back all at once.
///
/// # Source
/// AWS Architecture Blog, "Exponential Backoff And Jitter".
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    pub fn new(cap: Duration) -> Self {
        Self::from(BASE, cap)
    }

    /// As if `attempts` had been made already, by whomever.
    pub fn after(attempts: u64, cap: Duration) -> Self {
        Self {
            attempt: u32::try_from(attempts).unwrap_or(u32::MAX),
            ..Self::new(cap)
        }
    }

    fn from(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempt: 0 }
    }

    /// The next wait; `jitter` is a random number in `0.0..1.0`.
    pub fn next(&mut self, jitter: f64) -> Duration {
        self.pause(jitter).wait
    }

    fn pause(&mut self, jitter: f64) -> Pause {
        let ceiling = self
            .base
            .saturating_mul(1 << self.attempt.min(DOUBLINGS_MAX))
            .min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        Pause {
            wait: ceiling.mul_f64(jitter.clamp(0.0, 1.0)),
            most: ceiling,
        }
    }

    /// To be called after a time of stable work, not after a mere handshake, or a fault that shows only after the
    /// handshake would be retried without a pause.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// Whose move it is when something at the broker fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Ours: trying again will do, as soon as the broker and the way to it work.
    Outage,
    /// Of somebody who gives permissions: a fleet that asks as often as after an outage would lock its account out.
    Refusal,
}

/// A wait, and what it was drawn from: people are told the second, since the first tells them nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    pub wait: Duration,
    pub most: Duration,
}

/// How long to wait after each kind of failure; they grow apart from each other.
#[derive(Debug, Clone)]
pub struct Patience {
    outage: Backoff,
    refusal: Backoff,
}

impl Patience {
    /// `outage_max` is the longest wait after an outage, `broker.reconnect_max_ms`.
    pub fn new(outage_max: Duration) -> Self {
        Self {
            outage: Backoff::new(outage_max),
            refusal: Backoff::from(REFUSAL_BASE, REFUSAL_MAX),
        }
    }

    /// The wait after `failure`; `jitter` is a random number in `0.0..1.0`.
    pub fn after(&mut self, failure: Failure, jitter: f64) -> Pause {
        match failure {
            Failure::Outage => self.outage.pause(jitter),
            Failure::Refusal => self.refusal.pause(jitter),
        }
    }

    /// As [`Backoff::reset`].
    pub fn reset(&mut self) {
        self.outage.reset();
        self.refusal.reset();
    }
}

const REFUSAL_BASE: Duration = Duration::from_secs(1);
/// Brokers and directories that lock accounts count failures over minutes.
const REFUSAL_MAX: Duration = Duration::from_secs(60);
const BASE: Duration = Duration::from_millis(100);
/// 100 ms doubled sixteen times is almost two hours, past any sensible cap.
const DOUBLINGS_MAX: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_cap_and_starts_over_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(350));

        let waits: Vec<_> = (0..4).map(|_| backoff.next(1.0).as_millis()).collect();
        backoff.reset();

        assert_eq!(waits, [100, 200, 350, 350]);
        assert_eq!(backoff.next(1.0).as_millis(), 100);
    }

    #[test]
    fn a_wait_lies_anywhere_below_its_ceiling_and_never_overflows() {
        let mut backoff = Backoff::new(Duration::from_secs(30));
        for _ in 0..100 {
            backoff.next(1.0);
        }

        assert_eq!(backoff.next(0.0), Duration::ZERO);
        assert_eq!(backoff.next(0.5), Duration::from_secs(15));
    }

    #[test]
    fn a_refusal_waits_from_a_second_to_a_minute_and_an_outage_as_before() {
        let mut patience = Patience::new(Duration::from_secs(3));

        let refused: Vec<_> = (0..8)
            .map(|_| patience.after(Failure::Refusal, 1.0).wait.as_secs())
            .collect();
        let outage = patience.after(Failure::Outage, 1.0).wait;
        patience.reset();

        assert_eq!(refused, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(outage, BASE, "refusals do not count as outages");
        let first = patience.after(Failure::Refusal, 0.5);
        assert_eq!((first.wait.as_millis(), first.most.as_millis()), (500, 1_000));
    }
}
