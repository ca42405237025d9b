//! The trace of a job: moments noted on its way, and the spans made of them once it is settled. Pure.
//!
//! Only a job whose producer samples its trace has one. The pipeline notes moments that it takes anyway; spans are made on
//! the thread that exports them, so that no live span is carried through the stages.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status as SpanStatus, TraceFlags};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::time::Instant;

use crate::broker::topology::Names;
use crate::wire::status::Status;

/// What is known of a job when it has been decoded.
pub struct Arrival<'a> {
    pub model: &'a str,
    pub version: &'a str,
    pub message_id: Option<&'a str>,
    pub correlation_id: Option<&'a str>,
    pub body_bytes: usize,
    /// `None` where the body is no job.
    pub rows: Option<usize>,
    pub redelivered: bool,
    /// Earlier deliveries.
    pub delivery_count: u64,
    /// How long it was in the queue, if the producer said when it was published.
    pub queued: Option<Duration>,
    pub delivered: Instant,
    pub decode_began: Instant,
    pub decode_ended: Instant,
}

/// The moments of one job.
#[derive(Debug)]
pub struct Trace {
    parent: SpanContext,
    /// Of the span that the others are in.
    context: SpanContext,
    name: String,
    attributes: Vec<KeyValue>,
    queued: Option<Duration>,
    delivered: Instant,
    decoded: (Instant, Instant),
    run: Option<Place>,
    sent: Vec<Sent>,
    status: Option<Status>,
    settled: Option<Settled>,
}

/// A run of a batch, shared by the jobs in it.
#[derive(Debug)]
struct Run {
    began: Instant,
    ended: Instant,
    rows: usize,
    /// The `infer` span of the first sampled job: the others link to it, and it to them. So each leads to all, and a batch
    /// of thousands has two links a job.
    leader: SpanContext,
    others: Vec<SpanContext>,
}

#[derive(Debug)]
struct Place {
    run: Arc<Run>,
    leads: bool,
}

/// Something that was published for the job.
#[derive(Debug)]
struct Sent {
    /// `reply` or `dead letter`.
    what: &'static str,
    published: Instant,
    confirmed: Instant,
    fate: &'static str,
}

#[derive(Debug)]
struct Settled {
    verdict: &'static str,
    /// When nothing was left but to settle.
    since: Option<Instant>,
    written: Instant,
}

/// One moment on both clocks, to tell the wall time of others.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    now: Instant,
    wall: SystemTime,
}

impl Clock {
    pub fn now() -> Self {
        Self {
            now: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    fn wall(&self, moment: Instant) -> SystemTime {
        match self.now.checked_duration_since(moment) {
            Some(ago) => self.wall - ago,
            None => self.wall + (moment - self.now),
        }
    }
}

impl Trace {
    /// For a job under the span of its producer.
    pub fn new(parent: SpanContext, names: &Names, arrival: &Arrival<'_>) -> Self {
        let queue = names.queue(arrival.model);
        let context = child_of(&parent);
        Self {
            name: format!("process {queue}"),
            attributes: attributes(queue.as_str(), arrival),
            queued: arrival.queued,
            delivered: arrival.delivered,
            decoded: (arrival.decode_began, arrival.decode_ended),
            run: None,
            sent: Vec::new(),
            status: None,
            settled: None,
            context,
            parent,
        }
    }

    /// Something was published, and the broker has said what became of it.
    pub fn sent(&mut self, what: &'static str, published: Instant, confirmed: Instant, fate: &'static str) {
        self.sent.push(Sent {
            what,
            published,
            confirmed,
            fate,
        });
    }

    pub fn answered(&mut self, status: Status) {
        self.status = Some(status);
    }

    /// The broker was told `verdict` at `written`; nothing but that was left to do `since`.
    pub fn settled(&mut self, verdict: &'static str, since: Option<Instant>, written: Instant) {
        self.settled = Some(Settled {
            verdict,
            since,
            written,
        });
    }

    /// How many spans there will be.
    pub fn spans_count(&self) -> usize {
        let run = if self.run.is_some() { 2 } else { 0 };
        let settle = self.settled.as_ref().and_then(|settled| settled.since);
        2 + usize::from(self.queued.is_some()) + run + self.sent.len() + usize::from(settle.is_some())
    }

    /// The spans, the one that holds the others first, then in the order of the job's way.
    pub fn spans(self, clock: &Clock) -> Vec<SpanData> {
        let making = Making {
            clock,
            context: &self.context.clone(),
        };
        let delivered = clock.wall(self.delivered);
        let published = self.queued.map_or(delivered, |queued| delivered - queued);
        let mut spans = Vec::with_capacity(self.spans_count());
        if self.queued.is_some() {
            spans.push(making.between("queue", published, delivered));
        }
        spans.push(making.span("decode", self.decoded.0, self.decoded.1));
        if let Some(place) = &self.run {
            spans.push(making.span("batch", self.decoded.1, place.run.began));
            spans.push(making.infer(place));
        }
        spans.extend(self.sent.iter().map(|sent| making.publish(sent)));
        if let Some(Settled {
            verdict,
            since: Some(since),
            written,
        }) = self.settled
        {
            let mut span = making.span("settle", since, written);
            span.attributes.push(KeyValue::new("inferq.verdict", verdict));
            spans.push(span);
        }
        let ended = self.settled.as_ref().map(|settled| clock.wall(settled.written));
        let latest = spans.iter().map(|span| span.end_time).chain(ended).max();
        let job = self.whole(&making, published, latest.unwrap_or(delivered));
        spans.insert(0, job);
        spans
    }

    fn whole(self, making: &Making<'_>, began: SystemTime, ended: SystemTime) -> SpanData {
        let mut span = making.between(self.name, began, ended);
        span.span_kind = SpanKind::Consumer;
        span.span_context = self.context.clone();
        span.parent_span_id = self.parent.span_id();
        span.parent_span_is_remote = true;
        span.attributes = self.attributes;
        if let Some(place) = &self.run {
            span.attributes.push(count("inferq.batch.rows", place.run.rows));
        }
        if let Some(status) = self.status {
            span.attributes.push(KeyValue::new("inferq.status", status.name()));
            if status != Status::Ok {
                span.attributes.push(KeyValue::new("error.type", status.name()));
                // Without the sentence, which may quote values of the payload.
                span.status = SpanStatus::error(status.name());
            }
        }
        span
    }
}

/// The sampled jobs of a batch have run together.
pub fn ran<'a>(jobs: impl Iterator<Item = &'a mut Trace>, began: Instant, ended: Instant, rows: usize) {
    // Allocates only where there is one.
    let mut jobs: Vec<&mut Trace> = jobs.collect();
    let Some((first, others)) = jobs.split_first() else {
        return;
    };
    let run = Arc::new(Run {
        began,
        ended,
        rows,
        leader: child_of(&first.context),
        others: others.iter().take(LINKS_MAX).map(|job| job.context.clone()).collect(),
    });
    for (index, job) in jobs.iter_mut().enumerate() {
        job.run = Some(Place {
            run: run.clone(),
            leads: index == 0,
        });
    }
}

/// What the spans of one job have in common.
struct Making<'a> {
    clock: &'a Clock,
    context: &'a SpanContext,
}

impl Making<'_> {
    fn span(&self, name: &'static str, began: Instant, ended: Instant) -> SpanData {
        self.between(name, self.clock.wall(began), self.clock.wall(ended))
    }

    fn between(&self, name: impl Into<Cow<'static, str>>, began: SystemTime, ended: SystemTime) -> SpanData {
        SpanData {
            span_context: child_of(self.context),
            parent_span_id: self.context.span_id(),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: began,
            end_time: ended,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: SpanStatus::Unset,
            instrumentation_scope: InstrumentationScope::builder("inferq")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
        }
    }

    fn infer(&self, place: &Place) -> SpanData {
        let run = &place.run;
        let mut span = self.span("infer", run.began, run.ended);
        span.attributes.push(count("inferq.batch.rows", run.rows));
        let link = |context: &SpanContext| Link::with_context(context.clone());
        if place.leads {
            span.span_context = run.leader.clone();
            span.links.links = run.others.iter().map(link).collect();
        } else {
            span.links.links = vec![link(&run.leader)];
        }
        span
    }

    fn publish(&self, sent: &Sent) -> SpanData {
        let mut span = self.span(sent.what, sent.published, sent.confirmed);
        span.span_kind = SpanKind::Producer;
        span.attributes = vec![
            KeyValue::new("messaging.system", "rabbitmq"),
            KeyValue::new("messaging.operation.name", "publish"),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("inferq.fate", sent.fate),
        ];
        if sent.fate != CONFIRMED {
            span.status = SpanStatus::error(sent.fate);
        }
        span
    }
}

/// OpenTelemetry's names for messaging, and ours where it has none.
///
/// # Source
/// OpenTelemetry semantic conventions, "Messaging spans" and "RabbitMQ".
fn attributes(queue: &str, arrival: &Arrival<'_>) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("messaging.system", "rabbitmq"),
        KeyValue::new("messaging.destination.name", queue.to_owned()),
        KeyValue::new("messaging.operation.name", "process"),
        KeyValue::new("messaging.operation.type", "process"),
        count("messaging.message.body.size", arrival.body_bytes),
        KeyValue::new("inferq.model.name", arrival.model.to_owned()),
        KeyValue::new("inferq.model.version", arrival.version.to_owned()),
        KeyValue::new("inferq.redelivered", arrival.redelivered),
    ];
    let texts = [
        ("messaging.message.id", arrival.message_id),
        ("messaging.message.conversation_id", arrival.correlation_id),
    ];
    let texts = texts
        .into_iter()
        .filter_map(|(name, text)| Some(KeyValue::new(name, text?.to_owned())));
    attributes.extend(texts);
    attributes.extend(arrival.rows.map(|rows| count("inferq.rows", rows)));
    if arrival.redelivered {
        let deliveries = usize::try_from(arrival.delivery_count).unwrap_or(usize::MAX);
        attributes.push(count("inferq.delivery_count", deliveries));
    }
    attributes
}

fn count(name: &'static str, count: usize) -> KeyValue {
    KeyValue::new(name, Value::I64(i64::try_from(count).unwrap_or(i64::MAX)))
}

/// A new span of the same trace.
fn child_of(parent: &SpanContext) -> SpanContext {
    SpanContext::new(
        parent.trace_id(),
        // Anything but 0, which means none.
        SpanId::from(fastrand::u64(1..)),
        TraceFlags::SAMPLED,
        false,
        parent.trace_state().clone(),
    )
}

/// The fate of a message that a queue has.
pub const CONFIRMED: &str = "confirmed";
/// What collectors take at most in one span, as OpenTelemetry limits it unless told otherwise.
const LINKS_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{TraceId, TraceState};

    use super::*;

    fn producer(trace: u128) -> SpanContext {
        let state = TraceState::from_key_value([("vendor", "value")]).unwrap();
        SpanContext::new(TraceId::from(trace), SpanId::from(9), TraceFlags::SAMPLED, true, state)
    }

    fn trace(trace: u128, began: Instant) -> Trace {
        let at = |ms| began + Duration::from_millis(ms);
        let arrival = Arrival {
            model: "pair",
            version: "1",
            message_id: Some("job-1"),
            correlation_id: None,
            body_bytes: 100,
            rows: Some(2),
            redelivered: false,
            delivery_count: 0,
            queued: Some(Duration::from_millis(500)),
            delivered: began,
            decode_began: at(1),
            decode_ended: at(2),
        };
        Trace::new(producer(trace), &Names::new("inferq"), &arrival)
    }

    fn names(spans: &[SpanData]) -> Vec<&str> {
        spans.iter().map(|span| &*span.name).collect()
    }

    fn attribute(span: &SpanData, name: &str) -> Option<String> {
        let found = span.attributes.iter().find(|pair| pair.key.as_str() == name)?;
        Some(found.value.to_string())
    }

    #[test]
    fn the_phases_lie_in_the_span_of_the_job_and_follow_each_other() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut trace = trace(7, began);
        ran([&mut trace].into_iter(), at(4), at(9), 8);
        trace.answered(Status::Ok);
        trace.sent("reply", at(10), at(12), CONFIRMED);
        trace.settled("ack", Some(at(12)), at(13));
        let promised = trace.spans_count();

        let spans = trace.spans(&Clock::now());

        assert_eq!(
            names(&spans),
            [
                "process inferq.pair",
                "queue",
                "decode",
                "batch",
                "infer",
                "reply",
                "settle"
            ]
        );
        assert_eq!(spans.len(), promised);
        let (job, phases) = spans.split_first().unwrap();
        assert_eq!((job.parent_span_id, job.parent_span_is_remote), (SpanId::from(9), true));
        assert_eq!(job.end_time.duration_since(job.start_time).unwrap().as_millis(), 513);
        assert_eq!(attribute(job, "inferq.batch.rows").as_deref(), Some("8"));
        for span in phases {
            assert_eq!(span.span_context.trace_id(), TraceId::from(7));
            assert_eq!(span.span_context.trace_state().get("vendor"), Some("value"));
            assert_eq!(span.parent_span_id, job.span_context.span_id());
            assert!(job.start_time <= span.start_time && span.end_time <= job.end_time);
        }
        assert!(phases.windows(2).all(|pair| pair[0].end_time <= pair[1].start_time));
    }

    #[test]
    fn the_first_job_of_a_batch_links_to_the_others_and_they_to_its_run() {
        let began = Instant::now();
        let mut traces: Vec<Trace> = (1..=3).map(|id| trace(id, began)).collect();
        ran(traces.iter_mut(), began, began, 3);

        let spans: Vec<Vec<SpanData>> = traces.into_iter().map(|trace| trace.spans(&Clock::now())).collect();

        let infer = |job: usize| spans[job].iter().find(|span| span.name == "infer").unwrap();
        let linked = |job: usize| -> Vec<SpanContext> {
            let links = infer(job).links.links.iter();
            links.map(|link| link.span_context.clone()).collect()
        };
        assert_eq!(
            linked(0),
            [spans[1][0].span_context.clone(), spans[2][0].span_context.clone()]
        );
        for other in [1, 2] {
            assert_eq!(linked(other), [infer(0).span_context.clone()]);
        }
    }

    #[test]
    fn a_job_that_failed_says_so_by_its_status_alone() {
        let began = Instant::now();
        let mut trace = trace(7, began);
        trace.answered(Status::InvalidArgument);
        trace.sent("reply", began, began, "returned");
        trace.sent("dead letter", began, began, CONFIRMED);
        trace.settled("ack", Some(began), began);

        let spans = trace.spans(&Clock::now());

        assert_eq!(
            names(&spans),
            [
                "process inferq.pair",
                "queue",
                "decode",
                "reply",
                "dead letter",
                "settle"
            ]
        );
        assert_eq!(spans[0].status, SpanStatus::error("INVALID_ARGUMENT"));
        assert_eq!(attribute(&spans[0], "error.type").as_deref(), Some("INVALID_ARGUMENT"));
        assert_eq!(spans[3].status, SpanStatus::error("returned"));
        assert_eq!(spans[4].status, SpanStatus::Unset);
    }
}
