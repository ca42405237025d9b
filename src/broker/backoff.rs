//! How long to wait before trying again.

use std::time::Duration;

/// Full jitter: `rand(0, min(cap, base * 2^attempt))`, so that a fleet does not come back all at once.
///
/// # Source
/// AWS Architecture Blog, "Exponential Backoff And Jitter".
#[derive(Debug, Clone)]
pub struct Backoff {
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    pub fn new(cap: Duration) -> Self {
        Self { cap, attempt: 0 }
    }

    /// The next wait; `jitter` is a random number in `0.0..1.0`.
    pub fn next(&mut self, jitter: f64) -> Duration {
        let ceiling = BASE.saturating_mul(1 << self.attempt.min(DOUBLINGS_MAX)).min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        ceiling.mul_f64(jitter.clamp(0.0, 1.0))
    }

    /// To be called after a time of stable work, not after a mere handshake, or a fault that shows only after the
    /// handshake would be retried without a pause.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

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
}
