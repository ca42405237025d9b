//! From a capacity to the settings that follow. Pure.

use std::time::Duration;

use serde::Serialize;

/// What the settings follow from.
#[derive(Debug, Clone, Copy)]
pub struct Grounds {
    /// Jobs a second of the whole fleet within the goal.
    pub jobs_per_second: f64,
    /// Workers that share them.
    pub replicas: u32,
    /// How long a job may wait while the fleet is not yet bigger.
    pub accepted_wait: Duration,
    /// The most jobs that a worker holds: `broker.prefetch`.
    pub prefetch: u16,
    pub drain_timeout: Duration,
}

/// Settings, in the words of those who set them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Advice {
    pub replicas: u32,
    /// μ.
    pub replica_jobs_per_second: f64,
    /// L.
    pub accepted_wait_seconds: f64,
    pub held_jobs_max: u16,
    /// Messages, ready and unacked, for each replica.
    pub autoscaling_value: u64,
    /// Jobs a second that each replica is to carry: [`CARRIED`] of μ.
    pub rate_value: f64,
    /// To finish what a worker may hold.
    pub drain_seconds: f64,
    pub drain_timeout_seconds: f64,
}

impl Advice {
    /// `value = max(what a busy worker holds, μ·L/2)`. With a lower one the jobs in hand alone would keep the fleet as big
    /// as it is; with μ·L jobs would wait about that long, and not at most (`benches/README.md`, "Scaling").
    ///
    /// What a busy worker holds is taken to be the whole window, because that is what it holds once a backlog is there to
    /// fill it.
    pub fn of(grounds: &Grounds) -> Self {
        let replica_jobs_per_second = grounds.jobs_per_second / f64::from(grounds.replicas.max(1));
        let accepted_wait_seconds = grounds.accepted_wait.as_secs_f64();
        let within_the_wait = (replica_jobs_per_second * accepted_wait_seconds / 2.0).floor() as u64;
        Self {
            replicas: grounds.replicas,
            replica_jobs_per_second,
            accepted_wait_seconds,
            held_jobs_max: grounds.prefetch,
            autoscaling_value: within_the_wait.max(u64::from(grounds.prefetch)),
            rate_value: floored(CARRIED * replica_jobs_per_second),
            drain_seconds: f64::from(grounds.prefetch) / replica_jobs_per_second,
            drain_timeout_seconds: grounds.drain_timeout.as_secs_f64(),
        }
    }

    /// Values of the Helm chart, for `poolDefaults` or a pool.
    pub fn chart_values(&self) -> String {
        let Self {
            autoscaling_value,
            rate_value,
            ..
        } = self;
        format!(
            "autoscaling:\n  keda:\n    jobs: {{perReplica: {autoscaling_value}}}\n    rate: {{enabled: true, perReplica: {rate_value}}}\n"
        )
    }

    /// Name, value and reason of each setting.
    pub fn lines(&self) -> Vec<(&'static str, String, String)> {
        let mu = self.replica_jobs_per_second;
        let wait = self.accepted_wait_seconds;
        let held = self.held_jobs_max;
        let drain = self.drain_seconds;
        let enough = if drain * 2.0 <= self.drain_timeout_seconds {
            format!(
                "worker.drain_timeout_ms = {:.0} suffices",
                self.drain_timeout_seconds * 1e3
            )
        } else {
            format!(
                "raise worker.drain_timeout_ms from {:.0} to {:.0}, and the pod's grace period above that",
                self.drain_timeout_seconds * 1e3,
                (drain * 2.0).ceil() * 1e3
            )
        };
        vec![
            (
                "autoscaling value",
                format!("{} messages a replica", self.autoscaling_value),
                format!(
                    "the greater of {held}, which a busy worker holds (broker.prefetch), and {mu:.1} jobs/s x half of the \
                     {wait:.3} s that a job may wait; for KEDA's rabbitmq trigger with protocol http, mode QueueLength, unacked counted"
                ),
            ),
            (
                "rate value",
                format!("{} jobs/s a replica", self.rate_value),
                format!(
                    "{CARRIED} of the {mu:.1} jobs/s that one does; a second trigger, with mode MessageRate: a fleet that keeps up has \
                     an empty queue, and on the queue alone it would shrink, fall behind, and grow again"
                ),
            ),
            (
                "replicas",
                format!("peak jobs/s / {mu:.1}, rounded up"),
                "fewer cannot keep up, however long the queue may get; that many are needed all the time if a new one takes \
                 longer to start than a job may wait"
                    .to_owned(),
            ),
            (
                "drain",
                format!("{drain:.2} s"),
                format!("for a worker to finish the {held} jobs that it may hold: {enough}"),
            ),
        ]
    }
}

/// Rounded down to three digits, so that it can be read, and never to 0.
fn floored(jobs_per_second: f64) -> f64 {
    if jobs_per_second <= 0.0 {
        return 0.0;
    }
    let digits = 2 - jobs_per_second.log10().floor() as i32;
    if digits <= 0 {
        return jobs_per_second.floor();
    }
    let unit = 10_f64.powi(digits);
    (jobs_per_second * unit).floor() / unit
}

/// Of what a replica does at most, what it is to carry: the rest is for arrivals that are uneven, and for the time until more
/// replicas are there (`benches/README.md`, "Scaling").
const CARRIED: f64 = 0.75;

#[cfg(test)]
mod tests {
    use super::*;

    fn grounds(jobs_per_second: f64, wait_ms: u64) -> Grounds {
        Grounds {
            jobs_per_second,
            replicas: 2,
            accepted_wait: Duration::from_millis(wait_ms),
            prefetch: 256,
            drain_timeout: Duration::from_secs(30),
        }
    }

    #[test]
    fn the_value_is_what_one_replica_does_in_half_of_the_accepted_wait() {
        let advice = Advice::of(&grounds(2_000.0, 10_000));

        assert_eq!(advice.replica_jobs_per_second, 1_000.0);
        assert_eq!(advice.autoscaling_value, 5_000);
    }

    #[test]
    fn the_value_is_never_less_than_a_busy_worker_holds() {
        let advice = Advice::of(&grounds(2_000.0, 50));

        assert_eq!(advice.autoscaling_value, 256);
    }

    #[test]
    fn the_values_are_printed_as_the_chart_takes_them() {
        let values = |jobs_per_second| Advice::of(&grounds(jobs_per_second, 10_000)).chart_values();

        assert_eq!(
            values(92.04),
            "autoscaling:\n  keda:\n    jobs: {perReplica: 256}\n    rate: {enabled: true, perReplica: 34.5}\n"
        );
        assert!(values(2_000.0).contains("jobs: {perReplica: 5000}\n    rate: {enabled: true, perReplica: 750}"));
    }

    #[test]
    fn the_rate_is_rounded_down_and_never_to_nothing() {
        let rates = [40_000.9, 1_234.56, 99.99, 34.56, 1.0, 0.012_345].map(floored);

        assert_eq!(rates, [40_000.0, 1_234.0, 99.9, 34.5, 1.0, 0.012_3]);
    }

    #[test]
    fn a_worker_too_slow_for_its_drain_timeout_is_given_more_time() {
        let drain = |jobs_per_second| Advice::of(&grounds(jobs_per_second, 50)).lines()[3].2.clone();

        assert!(
            drain(2_000.0).ends_with("worker.drain_timeout_ms = 30000 suffices"),
            "{}",
            drain(2_000.0)
        );
        assert!(
            drain(20.0).contains("raise worker.drain_timeout_ms from 30000 to 52000"),
            "{}",
            drain(20.0)
        );
    }
}
