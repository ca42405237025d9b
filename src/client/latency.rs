//! How long answers took, in a fixed amount of memory whatever their number.

use std::time::Duration;

/// Counts durations in buckets, each 2 % wider than the one before: a quantile is right to within 2 %.
#[derive(Debug, Clone)]
pub struct Latencies {
    buckets: Vec<u64>,
    count: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKETS],
            count: 0,
        }
    }
}

impl Latencies {
    pub fn record(&mut self, latency: Duration) {
        let micros = latency.as_secs_f64() * 1e6;
        let bucket = (micros.max(1.0).ln() / GROWTH.ln()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
        self.count += 1;
    }

    /// The duration that a share of all, such as 0.99, did not exceed; zero if there is none.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = (share * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_secs_f64(GROWTH.powf(bucket as f64 + 0.5) / 1e6);
            }
        }
        Duration::ZERO
    }
}

const GROWTH: f64 = 1.02;
/// From a microsecond to more than an hour.
const BUCKETS: usize = 1_200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_within_two_percent() {
        let mut latencies = Latencies::default();
        for millis in 1..=1_000 {
            latencies.record(Duration::from_millis(millis));
        }

        for (share, millis) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1_000.0)] {
            let found = latencies.quantile(share).as_secs_f64() * 1e3;
            assert!((found / millis - 1.0).abs() < 0.02, "{share}: {found}");
        }
    }

    #[test]
    fn nothing_recorded_is_zero_and_extremes_have_a_bucket() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.99), Duration::ZERO);

        latencies.record(Duration::ZERO);
        latencies.record(Duration::from_secs(1_000_000));

        assert!(latencies.quantile(0.5) < Duration::from_micros(2));
        assert!(latencies.quantile(1.0) > Duration::from_secs(3_600));
    }
}
