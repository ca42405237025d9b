//! Every metric of the worker; the names are here and nowhere else.
//!
//! Labels come from closed sets. Series exist at 0 from the start, so that a query never meets an empty vector.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::about::About;
use crate::broker::link::Role;
use crate::model::batching::RowsReport;
use crate::model::capacity::Capacity;
use crate::wire::rows::RowRelation;
use crate::wire::status::{Status, UNROUTABLE_REPLY};
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Counter, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use tokio::time::Instant;

/// The registry and what is shared by all models.
pub struct Metrics {
    registry: Registry,
    jobs: IntCounterVec,
    job_seconds: HistogramVec,
    arrivals: Arrivals,
    endings: Endings,
    waiting: Waiting,
    rows: IntCounterVec,
    batches: IntCounterVec,
    bisected: IntCounterVec,
    isolated: IntCounterVec,
    stopped: IntCounterVec,
    batch_rows: HistogramVec,
    rows_limit: IntGaugeVec,
    wait_seconds: HistogramVec,
    infer_seconds: HistogramVec,
    seconds_per_row: GaugeVec,
    seconds_per_run: GaugeVec,
    connection_up: IntGaugeVec,
    connects: IntCounterVec,
    connect_failures: IntCounterVec,
    connections_lost: IntCounterVec,
    model_device: IntGaugeVec,
    model_rows: IntGaugeVec,
    pub reply: ReplyMetrics,
    pub receipts: ReceiptMetrics,
    /// Spans that nobody took in time.
    pub spans_dropped: IntCounter,
    /// What the worker is, looked at when somebody asks.
    pub about: About,
}

/// What comes off the queues.
struct Arrivals {
    deliveries: IntCounterVec,
    redelivered: IntCounterVec,
    queue_wait: HistogramVec,
    without_timestamp: IntCounterVec,
    decode_seconds: HistogramVec,
}

/// What becomes of jobs that nobody can answer.
struct Endings {
    dead_letters: IntCounterVec,
    unroutable: IntCounterVec,
    rows_settled: IntCounterVec,
}

/// What is taken ahead, and what is not taken yet.
struct Waiting {
    prefetch: IntGaugeVec,
    /// The same by model alone, for those who read it.
    window: IntGaugeVec,
    set_aside: IntCounterVec,
    backlog_jobs: IntGaugeVec,
    backlog_seconds: GaugeVec,
    capacity: GaugeVec,
    capacity_is_estimate: IntGaugeVec,
}

/// One model, whatever version answers.
pub struct ModelMetrics {
    pub deliveries: IntCounter,
    /// Of those, the ones that the broker had delivered before.
    pub redelivered: IntCounter,
    queue_wait: Histogram,
    without_timestamp: IntCounter,
    decode_seconds: Histogram,
    /// Replies whose queue is gone or full.
    pub unroutable: IntCounter,
    dead_letters: [(&'static str, IntCounter); DEAD_CODES.len()],
    pub prefetch: PrefetchMetrics,
    /// Jobs whose bodies found no room.
    pub set_aside: IntCounter,
    pub settled: SettledMetrics,
    pub backlog: BacklogMetrics,
    jobs: [(Status, IntCounter); Status::ALL.len()],
    job_seconds: Histogram,
}

impl ModelMetrics {
    /// A job got its status, `elapsed` after it was delivered.
    pub fn answered(&self, status: Status, elapsed: Duration) {
        if let Some((_, jobs)) = self.jobs.iter().find(|(own, _)| *own == status) {
            jobs.inc();
        }
        self.job_seconds.observe(elapsed.as_secs_f64());
    }

    /// A delivery was decoded, which took so long; before that it was in the queue for `queued`, if its producer said when
    /// it was published.
    pub fn decoded(&self, queued: Option<Duration>, took: Duration) {
        match queued {
            Some(queued) => self.queue_wait.observe(queued.as_secs_f64()),
            None => self.without_timestamp.inc(),
        }
        self.decode_seconds.observe(took.as_secs_f64());
    }

    /// The broker has confirmed a dead letter with this code.
    pub fn dead_lettered(&self, code: &str) {
        if let Some((_, letters)) = self.dead_letters.iter().find(|(own, _)| *own == code) {
            letters.inc();
        }
    }

    #[cfg(test)]
    pub fn dead_letters(&self) -> u64 {
        self.dead_letters.iter().map(|(_, letters)| letters.get()).sum()
    }
}

/// What the broker may have sent ahead of its acks.
pub struct PrefetchMetrics {
    model: Arc<str>,
    shown: IntGaugeVec,
    window: IntGauge,
    bound: Mutex<Option<&'static str>>,
}

impl PrefetchMetrics {
    /// So many deliveries, and what keeps them from being more.
    pub fn set(&self, deliveries: u16, bound: &'static str) {
        let before = self.bound.lock().unwrap_or_else(PoisonError::into_inner).replace(bound);
        if let Some(before) = before.filter(|before| *before != bound) {
            // It is there.
            let _ = self.shown.remove_label_values(&[&*self.model, before]);
        }
        let shown = self.shown.with_label_values(&[&*self.model, bound]);
        shown.set(deliveries.into());
        self.window.set(deliveries.into());
    }

    /// In deliveries; 0 before anything was consumed.
    pub fn get(&self) -> usize {
        usize::try_from(self.window.get()).unwrap_or(0)
    }
}

/// Jobs whose delivery was settled after an answer: how many, and when the last one was.
pub struct SettledMetrics {
    rows: IntCounter,
    jobs: AtomicU64,
    /// Nanoseconds from `began` to the last one, and 1; 0 before the first.
    last: AtomicU64,
    began: Instant,
}

/// What [`SettledMetrics`] has counted by some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettledSoFar {
    pub jobs: u64,
    pub rows: u64,
    pub last: Option<Instant>,
}

impl SettledMetrics {
    fn new(rows: IntCounter) -> Self {
        Self {
            rows,
            jobs: AtomicU64::new(0),
            last: AtomicU64::new(0),
            began: Instant::now(),
        }
    }

    /// Counts a job of so many rows.
    pub fn add(&self, rows: usize, at: Instant) {
        let nanos = at.saturating_duration_since(self.began).as_nanos();
        self.last
            .fetch_max(u64::try_from(nanos).unwrap_or(u64::MAX - 1) + 1, Ordering::Relaxed);
        self.jobs.fetch_add(1, Ordering::Relaxed);
        self.rows.inc_by(rows as u64);
    }

    pub fn so_far(&self) -> SettledSoFar {
        let last = self.last.load(Ordering::Relaxed).checked_sub(1);
        SettledSoFar {
            jobs: self.jobs.load(Ordering::Relaxed),
            rows: self.rows.get(),
            last: last.map(|nanos| self.began + Duration::from_nanos(nanos)),
        }
    }
}

/// What waits for a model, and how fast the worker is with it. Its series are there while they are known.
#[derive(Clone)]
pub struct BacklogMetrics {
    model: Arc<str>,
    jobs: IntGaugeVec,
    seconds: GaugeVec,
    capacity: GaugeVec,
    is_estimate: IntGaugeVec,
}

impl BacklogMetrics {
    pub fn show_jobs(&self, jobs: u64) {
        let jobs = i64::try_from(jobs).unwrap_or(i64::MAX);
        self.jobs.with_label_values(&[&*self.model]).set(jobs);
    }

    /// Shows what the worker would need for what waits, and the rate that says so.
    pub fn show_seconds(&self, seconds: f64, rows_per_second: f64, is_estimate: bool) {
        let model = &[&*self.model];
        self.seconds.with_label_values(model).set(seconds);
        self.capacity.with_label_values(model).set(rows_per_second);
        self.is_estimate.with_label_values(model).set(i64::from(is_estimate));
    }

    pub fn hide(&self) {
        self.hide_seconds();
        // Fails where there is nothing to hide.
        let _ = self.jobs.remove_label_values(&[&*self.model]);
    }

    /// Hides what is not known at the moment.
    pub fn hide_seconds(&self) {
        let model = &[&*self.model];
        // As above.
        let _ = self.seconds.remove_label_values(model);
        let _ = self.capacity.remove_label_values(model);
        let _ = self.is_estimate.remove_label_values(model);
    }
}

/// One version of a model.
#[derive(Clone)]
pub struct LaneMetrics {
    rows: IntCounter,
    batches: IntCounter,
    /// Failed batches that were run again in halves.
    pub bisected: IntCounter,
    /// Jobs that came back and were run in a process of their own.
    pub isolated: IntCounter,
    /// Runs that took too long.
    pub stopped: IntCounter,
    batch_rows: Histogram,
    /// Rows that a run may have at the moment.
    pub rows_limit: IntGauge,
    wait_seconds: Histogram,
    infer_seconds: Histogram,
    seconds_per_row: Gauge,
    seconds_per_run: Gauge,
    pub rows_info: RowsInfo,
}

impl LaneMetrics {
    pub fn ran(&self, rows: usize, infer: Duration) {
        self.batches.inc();
        self.rows.inc_by(rows as u64);
        self.batch_rows.observe(rows as f64);
        self.infer_seconds.observe(infer.as_secs_f64());
    }

    /// What runs take is known anew.
    pub fn measured(&self, capacity: Capacity) {
        self.seconds_per_row.set(capacity.seconds_per_row);
        self.seconds_per_run.set(capacity.seconds_per_run);
    }

    pub fn waited(&self, wait: Duration) {
        self.wait_seconds.observe(wait.as_secs_f64());
    }

    /// Rows of a job in the mean, so far.
    pub fn job_rows(&self) -> f64 {
        let jobs = self.wait_seconds.get_sample_count();
        if jobs == 0 {
            return 1.0;
        }
        (self.rows.get() as f64 / jobs as f64).max(1.0)
    }
}

/// The one series that tells how the rows of a version relate.
#[derive(Clone)]
pub struct RowsInfo {
    gauges: IntGaugeVec,
    model: Arc<str>,
    version: Arc<str>,
}

impl RowsInfo {
    /// Shows what is known of rows when a model is loaded.
    pub fn show(&self, rows: &RowsReport) {
        let reason = rows.reason.as_deref().or_else(|| rows.proof.reason());
        self.set(rows.relation, rows.proof.relation().name(), reason.unwrap_or_default());
    }

    /// Shows that a run spoke against what was known.
    pub fn withdraw(&self, reason: &str) {
        let proof = self.hide().unwrap_or_default();
        self.set(RowRelation::Unknown, &proof, reason);
    }

    fn set(&self, relation: RowRelation, proof: &str, reason: &str) {
        let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
        let labels = &[&*self.model, &*self.version, relation.name(), proof, &*reason];
        self.gauges.with_label_values(labels).set(1);
    }

    /// Removes the series, and returns what it said of the graph.
    fn hide(&self) -> Option<String> {
        let families = self.gauges.collect();
        let mut series = families.iter().flat_map(MetricFamily::get_metric);
        let labels: HashMap<&str, &str> = series.find_map(|series| {
            let labels = series.get_label().iter();
            let labels: HashMap<_, _> = labels.map(|label| (label.name(), label.value())).collect();
            let is_own = labels.get("model") == Some(&&*self.model) && labels.get("version") == Some(&&*self.version);
            is_own.then_some(labels)
        })?;
        // Fails where there is nothing to remove.
        let _ = self.gauges.remove(&labels);
        labels.get("proof").map(|proof| (*proof).to_owned())
    }
}

/// One of the two connections.
#[derive(Clone)]
pub struct LinkMetrics {
    pub up: IntGauge,
    pub connects: IntCounter,
    pub failures: IntCounter,
    pub lost: IntCounter,
}

/// The publishing task.
#[derive(Clone)]
pub struct ReplyMetrics {
    pub replied: IntCounter,
    pub refused: IntCounter,
    pub stale: IntCounter,
    pub unconfirmed: IntGauge,
    /// Of jobs whose reply queue takes nothing at the moment.
    pub replies_held_back: IntGauge,
    pub dead_letters_held_back: IntGauge,
    pub confirm_seconds: Histogram,
}

impl ReplyMetrics {
    /// From publishing to the confirm in the mean; `None` before the first.
    pub fn confirm_mean(&self) -> Option<Duration> {
        let confirms = self.confirm_seconds.get_sample_count();
        let mean = self.confirm_seconds.get_sample_sum() / confirms as f64;
        Duration::try_from_secs_f64(mean).ok()
    }
}

/// The rights to settle.
#[derive(Clone)]
pub struct ReceiptMetrics {
    /// Consuming channels opened.
    pub generations: IntCounter,
    pub in_hand: IntGauge,
    pub dropped: IntCounter,
    pub settle_seconds: Histogram,
}

impl Metrics {
    /// # Errors
    /// Two metrics have one name, which is a mistake in this file.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let add = Adding(&registry);
        let (seconds_per_row, seconds_per_run) = capacity(&add)?;
        let (model_device, model_rows) = loaded(&add)?;
        Ok(Self {
            jobs: add.counters("inferq_jobs_total", "Jobs by the status they got", &["model", "code"])?,
            job_seconds: add.histograms(
                "inferq_job_duration_seconds",
                "From the delivery of a job to its answer",
                MODEL,
                seconds(),
            )?,
            arrivals: arrivals(&add)?,
            endings: endings(&add)?,
            waiting: waiting(&add)?,
            rows: add.counters("inferq_rows_total", "Rows run", LANE)?,
            batches: add.counters(
                "inferq_batches_total",
                "Batches run; rows / batches is the mean batch",
                LANE,
            )?,
            bisected: add.counters(
                "inferq_batches_bisected_total",
                "Failed batches that were run in halves",
                LANE,
            )?,
            isolated: add.counters(
                "inferq_isolated_runs_total",
                "Jobs that came back and were run in a process of their own",
                LANE,
            )?,
            stopped: add.counters("inferq_runs_stopped_total", "Runs ended since they took too long", LANE)?,
            batch_rows: add.histograms("inferq_batch_rows", "Rows of a batch", LANE, powers_of_two())?,
            rows_limit: add.gauges(
                "inferq_batch_rows_limit",
                "Rows that a run may have now: fewer after a lack of memory; the engine that ran last tells its own",
                LANE,
            )?,
            wait_seconds: add.histograms(
                "inferq_batch_wait_seconds",
                "From the delivery of a job to the run of its batch",
                LANE,
                seconds(),
            )?,
            infer_seconds: add.histograms("inferq_infer_duration_seconds", "Run of a batch", LANE, seconds())?,
            seconds_per_row,
            seconds_per_run,
            connection_up: add.gauges(
                "inferq_connection_up",
                "Whether the connection to the broker works",
                ROLE,
            )?,
            connects: add.counters("inferq_connects_total", "Connections made to the broker", ROLE)?,
            connect_failures: add.counters("inferq_connect_failures_total", "Connections that failed", ROLE)?,
            connections_lost: add.counters(
                "inferq_connections_lost_total",
                "Connections that worked until they were lost",
                ROLE,
            )?,
            model_device,
            model_rows,
            reply: replies(&add)?,
            receipts: receipts(&add)?,
            spans_dropped: add.counter(
                "inferq_spans_dropped_total",
                "Spans that the collector did not take, or not in time",
            )?,
            about: About::new(&add)?,
            registry,
        })
    }

    pub fn model(&self, model: &str) -> ModelMetrics {
        let Arrivals {
            deliveries,
            redelivered,
            queue_wait,
            without_timestamp,
            decode_seconds,
        } = &self.arrivals;
        let labels = &[model];
        ModelMetrics {
            deliveries: deliveries.with_label_values(labels),
            redelivered: redelivered.with_label_values(labels),
            queue_wait: queue_wait.with_label_values(labels),
            without_timestamp: without_timestamp.with_label_values(labels),
            decode_seconds: decode_seconds.with_label_values(labels),
            unroutable: self.endings.unroutable.with_label_values(labels),
            dead_letters: DEAD_CODES.map(|code| (code, self.endings.dead_letters.with_label_values(&[model, code]))),
            prefetch: PrefetchMetrics {
                model: model.into(),
                shown: self.waiting.prefetch.clone(),
                window: self.waiting.window.with_label_values(labels),
                bound: Mutex::default(),
            },
            set_aside: self.waiting.set_aside.with_label_values(labels),
            settled: SettledMetrics::new(self.endings.rows_settled.with_label_values(labels)),
            backlog: BacklogMetrics {
                model: model.into(),
                jobs: self.waiting.backlog_jobs.clone(),
                seconds: self.waiting.backlog_seconds.clone(),
                capacity: self.waiting.capacity.clone(),
                is_estimate: self.waiting.capacity_is_estimate.clone(),
            },
            jobs: Status::ALL.map(|status| (status, self.jobs.with_label_values(&[model, status.name()]))),
            job_seconds: self.job_seconds.with_label_values(&[model]),
        }
    }

    pub fn lane(&self, model: &str, version: &str) -> LaneMetrics {
        let labels = &[model, version];
        LaneMetrics {
            rows: self.rows.with_label_values(labels),
            batches: self.batches.with_label_values(labels),
            bisected: self.bisected.with_label_values(labels),
            isolated: self.isolated.with_label_values(labels),
            stopped: self.stopped.with_label_values(labels),
            batch_rows: self.batch_rows.with_label_values(labels),
            rows_limit: self.rows_limit.with_label_values(labels),
            wait_seconds: self.wait_seconds.with_label_values(labels),
            infer_seconds: self.infer_seconds.with_label_values(labels),
            seconds_per_row: self.seconds_per_row.with_label_values(labels),
            seconds_per_run: self.seconds_per_run.with_label_values(labels),
            rows_info: RowsInfo {
                gauges: self.model_rows.clone(),
                model: model.into(),
                version: version.into(),
            },
        }
    }

    /// Nodes of a model, meant for `device`, were seen running on one of ONNX Runtime's execution providers.
    pub fn runs_on(&self, model: &str, version: &str, device: &str, provider: &str) {
        let labels = &[model, version, device, provider];
        self.model_device.with_label_values(labels).set(1);
    }

    pub fn link(&self, role: Role) -> LinkMetrics {
        let labels = &[role.name()];
        LinkMetrics {
            up: self.connection_up.with_label_values(labels),
            connects: self.connects.with_label_values(labels),
            failures: self.connect_failures.with_label_values(labels),
            lost: self.connections_lost.with_label_values(labels),
        }
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        // Fails only where metrics of one family disagree, which the registry rules out.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

fn capacity(add: &Adding<'_>) -> prometheus::Result<(GaugeVec, GaugeVec)> {
    let per_row = "What each row adds to a run, as measured; 0 until then";
    let per_run = "What a run takes besides its rows, as measured";
    Ok((
        add.real_gauges("inferq_model_seconds_per_row", per_row, LANE)?,
        add.real_gauges("inferq_model_seconds_per_run", per_run, LANE)?,
    ))
}

fn loaded(add: &Adding<'_>) -> prometheus::Result<(IntGaugeVec, IntGaugeVec)> {
    Ok((
        add.gauges(
            "inferq_model_device",
            "1 for the device that a model was asked to run on and a provider that did run its nodes",
            &["model", "version", "device", "provider"],
        )?,
        add.gauges(
            "inferq_model_rows_info",
            "1 for how the rows of a model relate, what its graph shows of that, and why they are not independent or not proven",
            &["model", "version", "relation", "proof", "reason"],
        )?,
    ))
}

fn arrivals(add: &Adding<'_>) -> prometheus::Result<Arrivals> {
    Ok(Arrivals {
        deliveries: add.counters("inferq_deliveries_total", "Messages taken off the queue", MODEL)?,
        redelivered: add.counters(
            "inferq_redelivered_total",
            "Messages taken off the queue that had been delivered before",
            MODEL,
        )?,
        queue_wait: add.histograms(
            "inferq_queue_wait_seconds",
            "From the producer's timestamp, of whole seconds as a rule, to the delivery",
            MODEL,
            decades(-2..=3),
        )?,
        without_timestamp: add.counters(
            "inferq_jobs_without_timestamp_total",
            "Messages that do not say when they were published",
            MODEL,
        )?,
        decode_seconds: add.histograms(
            "inferq_decode_duration_seconds",
            "Decoding and checking a job",
            MODEL,
            decades(-6..=0),
        )?,
    })
}

fn endings(add: &Adding<'_>) -> prometheus::Result<Endings> {
    Ok(Endings {
        dead_letters: add.counters(
            "inferq_dead_letters_total",
            "Dead letters that the broker confirmed",
            &["model", "code"],
        )?,
        unroutable: add.counters(
            "inferq_replies_unroutable_total",
            "Replies whose queue is gone or full",
            MODEL,
        )?,
        rows_settled: add.counters(
            "inferq_rows_settled_total",
            "Rows of jobs that were settled after an answer; a job that could not be read counts as one row",
            MODEL,
        )?,
    })
}

fn waiting(add: &Adding<'_>) -> prometheus::Result<Waiting> {
    Ok(Waiting {
        prefetch: add.gauges(
            "inferq_prefetch",
            "Deliveries that the broker may send ahead of their acks, and what keeps them from being more",
            &["model", "bound"],
        )?,
        window: IntGaugeVec::new(Opts::new("window", "By model"), MODEL)?,
        set_aside: add.counters(
            "inferq_jobs_set_aside_total",
            "Jobs that went back to their queue once there was room, since there was none for their bodies",
            MODEL,
        )?,
        backlog_jobs: add.gauges(
            "inferq_backlog_jobs",
            "Jobs that wait in the queue, looked at every second while there are any, otherwise every 5 s",
            MODEL,
        )?,
        backlog_seconds: add.real_gauges(
            "inferq_backlog_seconds",
            "What this worker alone would need for the jobs in the queue and in its hands",
            MODEL,
        )?,
        capacity: add.real_gauges(
            "inferq_capacity_rows_per_second",
            "Rows that this worker settles in a second when it has all it can do, beside what its other models do now",
            MODEL,
        )?,
        capacity_is_estimate: add.gauges(
            "inferq_capacity_is_estimate",
            "1 before the worker ever had all it could do for the model: its capacity is not measured as a whole",
            MODEL,
        )?,
    })
}

fn replies(add: &Adding<'_>) -> prometheus::Result<ReplyMetrics> {
    Ok(ReplyMetrics {
        replied: add.counter("inferq_replies_total", "Replies that the broker confirmed")?,
        refused: add.counter(
            "inferq_publishes_refused_total",
            "Messages that the broker did not take",
        )?,
        stale: add.counter(
            "inferq_answers_stale_total",
            "Answers to jobs of a channel that is gone",
        )?,
        unconfirmed: add.gauge(
            "inferq_publishes_unconfirmed",
            "Messages published and not yet confirmed",
        )?,
        replies_held_back: add.gauge(
            "inferq_replies_held_back",
            "Replies whose queue takes nothing at the moment",
        )?,
        dead_letters_held_back: add.gauge(
            "inferq_dead_letters_held_back",
            "Dead letters that the broker does not take at the moment; their jobs are un-acked",
        )?,
        confirm_seconds: add.histogram(
            "inferq_confirm_duration_seconds",
            "From publishing a message to its confirm",
            seconds(),
        )?,
    })
}

fn receipts(add: &Adding<'_>) -> prometheus::Result<ReceiptMetrics> {
    Ok(ReceiptMetrics {
        generations: add.counter("inferq_generations_total", "Consuming channels opened, over all models")?,
        in_hand: add.gauge("inferq_jobs_in_hand", "Deliveries taken and not yet settled")?,
        dropped: add.counter(
            "inferq_receipts_dropped_total",
            "Deliveries neither settled nor lost with their channel; a mistake unless the worker is stopping",
        )?,
        settle_seconds: add.histogram(
            "inferq_settle_duration_seconds",
            "From the confirm of a reply or dead letter to the ack of its job being written",
            decades(-5..=1),
        )?,
    })
}

/// Makes a metric and registers it.
pub(super) struct Adding<'a>(&'a Registry);

impl Adding<'_> {
    /// Registers what has names of its own.
    pub(super) fn all_of(&self, collector: impl Collector + 'static) -> prometheus::Result<()> {
        self.0.register(Box::new(collector))
    }

    fn add<C: Collector + Clone + 'static>(&self, metric: prometheus::Result<C>) -> prometheus::Result<C> {
        let metric = metric?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.add(IntCounter::new(name, help))
    }

    pub(super) fn real_counter(&self, name: &str, help: &str) -> prometheus::Result<Counter> {
        self.add(Counter::new(name, help))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.add(IntGauge::new(name, help))
    }

    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> prometheus::Result<Histogram> {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn real_gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
        self.add(GaugeVec::new(Opts::new(name, help), labels))
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: Vec<f64>,
    ) -> prometheus::Result<HistogramVec> {
        self.add(HistogramVec::new(
            HistogramOpts::new(name, help).buckets(buckets),
            labels,
        ))
    }
}

/// 50 µs to almost 30 minutes, three a decade: a run of a small model and a day's backlog in one set.
fn seconds() -> Vec<f64> {
    let mut bounds = Vec::new();
    let mut decade = 5e-5;
    while decade < 1000.0 {
        bounds.extend([decade, decade * 2.0, decade * 5.0]);
        decade *= 10.0;
    }
    bounds
}

/// 1, 2 and 5 times these powers of ten. Read from text, since products of powers would show as `9.999999999999999e-6`.
fn decades(powers: RangeInclusive<i32>) -> Vec<f64> {
    let bounds = powers.flat_map(|power| [1, 2, 5].map(|digit| format!("{digit}e{power}")));
    bounds.filter_map(|bound| bound.parse().ok()).collect()
}

fn powers_of_two() -> Vec<f64> {
    (0..=12).map(|power| f64::from(1 << power)).collect()
}

/// Codes that a dead letter can have: no other status ends there (`src/worker/plan.rs`).
const DEAD_CODES: [&str; 4] = [
    Status::InvalidArgument.name(),
    Status::NotFound.name(),
    Status::Internal.name(),
    UNROUTABLE_REPLY,
];
/// Enough for a node, its operator and what it does to the rows.
const REASON_CHARS_MAX: usize = 200;
const MODEL: &[&str] = &["model"];
const LANE: &[&str] = &["model", "version"];
const ROLE: &[&str] = &["connection"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::batching::{Batching, DecidedBy};
    use crate::model::rows::RowsVerdict;

    #[test]
    fn series_of_a_model_stand_at_zero_before_its_first_job() {
        let metrics = Metrics::new().unwrap();
        metrics.model("digits");
        metrics.lane("digits", "1");

        let text = metrics.render();

        for status in Status::ALL {
            let series = format!("inferq_jobs_total{{code=\"{}\",model=\"digits\"}} 0", status.name());
            assert!(text.contains(&series), "{series} is missing");
        }
        assert!(text.contains("inferq_batch_rows_count{model=\"digits\",version=\"1\"} 0"));
        assert!(text.contains("inferq_receipts_dropped_total 0"));
    }

    #[test]
    fn rows_have_one_series_a_version_also_after_a_withdrawal() {
        let metrics = Metrics::new().unwrap();
        let (one, other) = (metrics.lane("digits", "1"), metrics.lane("digits", "2"));
        let coupled = RowsReport {
            proof: RowsVerdict::Coupled {
                reason: "x".repeat(900),
            },
            relation: RowRelation::Coupled,
            decided_by: DecidedBy::Graph,
            reason: Some("x".repeat(900)),
            row_outputs: Vec::new(),
            batching: Batching::Rows,
        };
        let independent = RowsReport {
            proof: RowsVerdict::Independent,
            relation: RowRelation::Independent,
            reason: None,
            ..coupled.clone()
        };

        one.rows_info.show(&coupled);
        other.rows_info.show(&independent);
        let before = metrics.render();
        other.rows_info.withdraw("output `y` has shape [0, 4] for 1 rows");
        let after = metrics.render();

        let series = |text: &str| {
            let lines = text.lines().filter(|line| line.starts_with("inferq_model_rows_info{"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let cut = format!(
            r#"proof="coupled",reason="{}",relation="coupled",version="1"}} 1"#,
            "x".repeat(REASON_CHARS_MAX)
        );
        assert!(series(&before)[0].ends_with(&cut), "{before}");
        let proven = r#"model="digits",proof="independent",reason="",relation="independent",version="2"} 1"#;
        assert!(series(&before)[1].ends_with(proven), "{before}");
        let withdrawn =
            r#"proof="independent",reason="output `y` has shape [0, 4] for 1 rows",relation="unknown",version="2"} 1"#;
        assert!(series(&after)[1].ends_with(withdrawn), "{after}");
        assert_eq!(series(&after).len(), 2);
    }

    #[test]
    fn bucket_bounds_rise() {
        for bounds in [seconds(), decades(-6..=0), decades(-2..=3), powers_of_two()] {
            assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]), "{bounds:?}");
        }
    }
}
