//! What a worker is and how it is: versions, models, states, memory. Looked at when somebody asks for metrics, so that no
//! job pays for it.

use std::sync::OnceLock;
use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{Counter, GaugeVec, IntCounter, IntGauge, IntGaugeVec};
use tracing_appender::non_blocking::ErrorCounter;

use super::health::{Condition, Health};
use super::metrics::Adding;
use crate::broker::bodies::Bodies;
use crate::model::repository::NotServed;

/// Metrics of the worker itself.
pub struct About {
    build: IntGaugeVec,
    model: IntGaugeVec,
    not_served: IntGaugeVec,
    load_seconds: GaugeVec,
    ready: IntGauge,
    states: IntGaugeVec,
    bytes_in_hand: IntGauge,
    bytes_limit: IntGauge,
    slowed_seconds: Counter,
    bodies: OnceLock<Bodies>,
    log_dropped: IntCounter,
    log: OnceLock<ErrorCounter>,
}

/// One version of a model that is served.
pub struct ServedVersion<'a> {
    pub model: &'a str,
    pub version: &'a str,
    /// Whether it answers jobs that pin none.
    pub is_default: bool,
    /// As `model.toml` states it and the file was found to have it.
    pub digest: Option<String>,
    pub load: Duration,
}

impl About {
    pub(super) fn new(add: &Adding<'_>) -> prometheus::Result<Self> {
        add.all_of(ProcessCollector::for_self())?;
        let states = add.gauges(
            "inferq_worker_state",
            "1 for `ready`, or for each reason why the worker is not",
            &["state"],
        )?;
        for state in STATES {
            states.with_label_values(&[state]).set(0);
        }
        let not_served = add.gauges(
            "inferq_models_not_served",
            "1 for each folder of the model repository that is not served, and why; no version: the whole model",
            &["model", "version", "reason"],
        )?;
        for reason in NotServed::ALL {
            not_served.with_label_values(&["", "", reason.name()]).set(0);
        }
        Ok(Self {
            build: add.gauges(
                "inferq_build_info",
                "1 for the versions of this program and of the ONNX Runtime that it loaded",
                &["version", "onnxruntime"],
            )?,
            model: add.gauges(
                "inferq_model_info",
                "1 for each version that is served; the digest where model.toml states it",
                &["model", "version", "default", "digest"],
            )?,
            not_served,
            load_seconds: add.real_gauges(
                "inferq_model_load_duration_seconds",
                "What loading and checking took, golden vectors and first runs included",
                &["model", "version"],
            )?,
            ready: add.gauge("inferq_ready", "Whether /readyz says ready")?,
            states,
            bytes_in_hand: add.gauge("inferq_bytes_in_hand", "Bytes of the bodies of all jobs in hand")?,
            bytes_limit: add.gauge(
                "inferq_bytes_in_hand_limit",
                "Bytes that these may take: limits.memory_bytes",
            )?,
            slowed_seconds: add.real_counter(
                "inferq_reading_slowed_seconds_total",
                "Time in which connections were read slowly, since bodies took more than limits.memory_bytes",
            )?,
            bodies: OnceLock::new(),
            log_dropped: add.counter(
                "inferq_log_lines_dropped_total",
                "Log lines that could not be written in time",
            )?,
            log: OnceLock::new(),
        })
    }

    /// Which ONNX Runtime was loaded; an empty text until one is.
    pub fn runs_with(&self, onnxruntime: &str) {
        self.build.reset();
        let labels = &[env!("CARGO_PKG_VERSION"), onnxruntime];
        self.build.with_label_values(labels).set(1);
    }

    pub fn serves(&self, served: &ServedVersion<'_>) {
        let ServedVersion { model, version, .. } = *served;
        let digest = served.digest.as_deref().unwrap_or_default();
        let digest: String = digest.chars().take(DIGEST_CHARS).collect();
        let is_default = if served.is_default { "true" } else { "false" };
        let labels = &[model, version, is_default, &digest];
        self.model.with_label_values(labels).set(1);
        let load = self.load_seconds.with_label_values(&[model, version]);
        load.set(served.load.as_secs_f64());
    }

    /// A model, or a version of one, that is in the repository and not served.
    pub fn does_not_serve(&self, model: &str, version: &str, reason: NotServed) {
        self.not_served
            .with_label_values(&[model, version, reason.name()])
            .set(1);
    }

    /// Shows how much of the memory for bodies is taken.
    pub fn watch_bodies(&self, bodies: Bodies) {
        self.bytes_limit.set(i64::try_from(bodies.limit()).unwrap_or(i64::MAX));
        // A worker has one memory.
        let _ = self.bodies.set(bodies);
    }

    /// Shows what a log counts as well.
    pub fn watch_log(&self, dropped: ErrorCounter) {
        // A process has one log.
        let _ = self.log.set(dropped);
    }

    /// Looks at everything that changes.
    pub fn look(&self, health: &Health) {
        self.ready.set(i64::from(health.is_ready()));
        let holding = health.names();
        for state in STATES {
            let holds = holding.contains(state) || state == READY && holding.is_empty();
            self.states.with_label_values(&[state]).set(i64::from(holds));
        }
        if let Some(bodies) = self.bodies.get() {
            let taken = i64::try_from(bodies.taken()).unwrap_or(i64::MAX);
            self.bytes_in_hand.set(taken);
            let slowed = bodies.slowed().as_secs_f64();
            self.slowed_seconds
                .inc_by((slowed - self.slowed_seconds.get()).max(0.0));
        }
        let dropped = self.log.get().map_or(0, ErrorCounter::dropped_lines) as u64;
        self.log_dropped.inc_by(dropped.saturating_sub(self.log_dropped.get()));
    }
}

const READY: &str = "ready";
/// Every state, in the order in which a worker goes through them.
pub const STATES: [&str; 9] = [
    READY,
    Condition::Loading.name(),
    Condition::ConsumeConnection.name(),
    Condition::Publishing.name(),
    "dead-letters",
    Condition::Blocked("").name(),
    "model",
    "queue",
    Condition::Draining.name(),
];
/// Enough to tell the files of one model apart, in the width of a table.
const DIGEST_CHARS: usize = "sha256:".len() + 12;

#[cfg(test)]
mod tests {
    use super::super::metrics::Metrics;
    use super::*;

    fn shown(metrics: &Metrics, health: &Health) -> String {
        metrics.about.look(health);
        metrics.render()
    }

    #[test]
    fn every_state_is_a_series_and_those_that_hold_are_1() {
        let metrics = Metrics::new().unwrap();
        let health = Health::default();
        let conditions = [
            Condition::Loading,
            Condition::ConsumeConnection,
            Condition::PublishConnection,
            Condition::Publishing,
            Condition::DeadLetters("digits".into()),
            Condition::Blocked("publish"),
            Condition::Model("digits".into()),
            Condition::Consumer("digits".into()),
            Condition::Draining,
        ];
        assert!(shown(&metrics, &health).contains("inferq_worker_state{state=\"ready\"} 1"));

        for condition in conditions {
            let state = condition.name();
            health.set(condition.clone(), "on purpose");
            let text = shown(&metrics, &health);
            health.clear(&condition);

            for other in STATES {
                let holds = u8::from(other == state);
                let series = format!("inferq_worker_state{{state=\"{other}\"}} {holds}");
                assert!(text.contains(&series), "{series} is missing in {text}");
            }
        }
    }

    #[test]
    fn bytes_in_hand_are_those_of_the_bodies() {
        let metrics = Metrics::new().unwrap();
        let bodies = Bodies::new(1000, 1000, 1);
        metrics.about.watch_bodies(bodies.clone());

        let taken = bodies.account().claim(300).unwrap();
        let with = shown(&metrics, &Health::default());
        drop(taken);
        let without = shown(&metrics, &Health::default());

        assert!(with.contains("inferq_bytes_in_hand 300\n"), "{with}");
        assert!(without.contains("inferq_bytes_in_hand 0\n"), "{without}");
        assert!(with.contains("inferq_bytes_in_hand_limit 1000\n"), "{with}");
    }

    #[test]
    fn a_served_version_tells_whether_it_is_the_default_and_the_beginning_of_its_digest() {
        let metrics = Metrics::new().unwrap();
        let digest = format!("sha256:{}", "0f".repeat(32));
        for (version, is_default, digest) in [("1", false, None), ("2", true, Some(digest))] {
            metrics.about.serves(&ServedVersion {
                model: "digits",
                version,
                is_default,
                digest,
                load: Duration::from_millis(250),
            });
        }

        let text = metrics.render();

        for series in [
            r#"inferq_model_info{default="false",digest="",model="digits",version="1"} 1"#,
            r#"inferq_model_info{default="true",digest="sha256:0f0f0f0f0f0f",model="digits",version="2"} 1"#,
            r#"inferq_model_load_duration_seconds{model="digits",version="2"} 0.25"#,
        ] {
            assert!(text.contains(series), "{series} is missing in {text}");
        }
    }
}
