//! Exporting traces: to an OpenTelemetry collector (OTLP over HTTP), by a thread of its own.
//!
//! Without `telemetry.otlp_endpoint` there is neither thread nor queue, and no job is looked at. A collector that is slow or
//! gone costs spans, which are counted, and never holds up a job.

use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::AMQPValue;
use opentelemetry::KeyValue;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{SpanContext, TraceContextExt as _};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SpanExporter as _;
use prometheus::IntCounter;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::trace::{Arrival, Clock, Trace};
use crate::broker::topology::Names;
use crate::config::Config;

/// Where traces go when their jobs are settled.
#[derive(Clone)]
pub struct Traces {
    queue: Sender<Trace>,
    dropped: IntCounter,
    names: Names,
}

/// The trace of a job, and where it goes.
pub struct Traced {
    pub trace: Trace,
    traces: Traces,
}

impl Traced {
    /// Hands the trace on, or drops it where nobody takes it in time.
    pub fn end(self) {
        if let Err(unsent) = self.traces.queue.try_send(self.trace) {
            self.traces.dropped.inc_by(unsent.into_inner().spans_count() as u64);
        }
    }
}

impl Traces {
    /// Begins the trace of a job, if its producer has one that is sampled. A `traceparent` that is none is ignored.
    pub fn begin<'a>(
        &self,
        properties: &BasicProperties,
        arrival: impl FnOnce() -> Arrival<'a>,
    ) -> Option<Box<Traced>> {
        let headers = Headers(properties);
        let parent = headers.get(TRACEPARENT).filter(|parent| says_sampled(parent))?;
        let parent = context(&headers, parent)?;
        Some(Box::new(Traced {
            trace: Trace::new(parent, &self.names, &arrival()),
            traces: self.clone(),
        }))
    }
}

/// The trace that a job belongs to, sampled or not, for a log line.
pub fn trace_id(properties: &BasicProperties) -> Option<String> {
    let headers = Headers(properties);
    let parent = headers.get(TRACEPARENT)?;
    Some(context(&headers, parent)?.trace_id().to_string())
}

/// Whether the flags say that the trace is sampled; nothing else is looked at, so that the others cost next to nothing.
fn says_sampled(parent: &str) -> bool {
    let flags = parent.as_bytes().get(FLAGS);
    flags.is_some_and(|flags| char::from(*flags).to_digit(16).is_some_and(|flags| flags & 1 == 1))
}

fn context(headers: &Headers<'_>, parent: &str) -> Option<SpanContext> {
    if parent.len() > TRACEPARENT_BYTES_MAX {
        return None;
    }
    let context = TraceContextPropagator::new().extract_with_context(&opentelemetry::Context::new(), headers);
    let context = context.span().span_context().clone();
    context.is_valid().then_some(context)
}

/// The headers of a message, as the propagator reads them.
struct Headers<'a>(&'a BasicProperties);

impl Extractor for Headers<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        match self.0.headers().as_ref()?.inner().get(name)? {
            AMQPValue::LongString(text) => str::from_utf8(text.as_bytes()).ok(),
            AMQPValue::ShortString(text) => Some(text.as_str()),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// The thread that exports. Dropped, it ends at once and leaves what is not sent.
#[must_use = "an exporter that is dropped exports nothing any more"]
pub struct Exporting {
    closed: CancellationToken,
    ended: std_mpsc::Receiver<()>,
}

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("telemetry.otlp_endpoint: nothing can be exported to {endpoint}")]
    Exporter {
        endpoint: String,
        #[source]
        cause: ExporterBuildError,
    },
    #[error("the thread that exports traces could not be started")]
    Thread(#[source] std::io::Error),
}

/// Starts exporting to the collector at `endpoint`.
///
/// # Errors
/// The endpoint, or one of OpenTelemetry's own variables, is not what the exporter takes; or there can be no more threads.
pub fn start(config: &Config, endpoint: &str, dropped: IntCounter) -> Result<(Traces, Exporting), ExportError> {
    let built = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .build();
    let mut exporter = built.map_err(|cause| ExportError::Exporter {
        endpoint: endpoint.to_owned(),
        cause,
    })?;
    exporter.set_resource(&resource(&config.worker.identity()));
    let (queue, traces) = mpsc::channel(TRACES_QUEUED_MAX);
    let (closed, (ending, ended)) = (CancellationToken::new(), std_mpsc::channel());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ExportError::Thread)?;
    let export = Export {
        exporter: Arc::new(exporter),
        endpoint: endpoint.to_owned(),
        traces,
        closed: closed.clone(),
        dropped: dropped.clone(),
        fails: false,
    };
    std::thread::Builder::new()
        .name(THREAD.to_owned())
        .spawn(move || {
            runtime.block_on(export.run());
            drop(ending);
        })
        .map_err(ExportError::Thread)?;
    let names = Names::new(&config.topology.prefix);
    Ok((Traces { queue, dropped, names }, Exporting { closed, ended }))
}

impl Exporting {
    /// Sends what is left, for a second at most.
    pub fn finish(self) {
        self.closed.cancel();
        // Ends with an error when the thread does.
        let _ = self.ended.recv_timeout(FLUSH_MAX + FLUSH_MAX / 4);
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win over what we say of ourselves; the library reads them.
fn resource(worker: &str) -> Resource {
    let ours = [
        KeyValue::new("service.name", "inferq"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", worker.to_owned()),
    ];
    let theirs = Resource::builder().build();
    let said = |key: &opentelemetry::Key| {
        let value = theirs.get(key).map(|value| value.to_string());
        value.is_some_and(|value| !value.starts_with("unknown_service"))
    };
    let missing = ours.into_iter().filter(|pair| !said(&pair.key));
    Resource::builder().with_attributes(missing).build()
}

/// What the thread does.
struct Export {
    exporter: Arc<SpanExporter>,
    endpoint: String,
    traces: Receiver<Trace>,
    closed: CancellationToken,
    dropped: IntCounter,
    /// Whether the last export failed.
    fails: bool,
}

impl Export {
    async fn run(mut self) {
        let closed = self.closed.clone();
        let late = async {
            closed.cancelled().await;
            tokio::time::sleep(FLUSH_MAX).await;
        };
        tokio::select! {
            () = self.export_all() => {}
            () = late => warn!("not all spans were exported in time"),
        }
    }

    async fn export_all(&mut self) {
        let closed = self.closed.clone();
        loop {
            let mut traces = Vec::new();
            tokio::select! {
                biased;
                taken = self.traces.recv_many(&mut traces, TRACES_AT_ONCE) => if taken == 0 {
                    return;
                },
                () = closed.cancelled() => return,
            }
            // Company for the first of them: a request costs a collector more than a span does.
            let gathered = tokio::time::timeout(GATHER, closed.cancelled());
            if traces.len() < TRACES_AT_ONCE && gathered.await.is_err() {
                while traces.len() < TRACES_AT_ONCE
                    && let Ok(trace) = self.traces.try_recv()
                {
                    traces.push(trace);
                }
            }
            self.export(traces).await;
        }
    }

    async fn export(&mut self, traces: Vec<Trace>) {
        let clock = Clock::now();
        let spans: Vec<_> = traces.into_iter().flat_map(|trace| trace.spans(&clock)).collect();
        let count = spans.len() as u64;
        match self.exporter.export(spans).await {
            Ok(()) if self.fails => {
                self.fails = false;
                info!("spans are exported again");
            }
            Ok(()) => {}
            Err(error) => {
                self.dropped.inc_by(count);
                // Once: whoever is away stays away for a while, and the metric tells how much is lost.
                if !std::mem::replace(&mut self.fails, true) {
                    warn!(
                        "spans cannot be exported to {}, the jobs go on: {}",
                        self.endpoint,
                        reason(&error)
                    );
                }
            }
        }
    }
}

fn reason(error: &OTelSdkError) -> String {
    let text = error.to_string();
    text.chars()
        .take(REASON_CHARS_MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

const TRACEPARENT: &str = "traceparent";
/// Where the last digit of the flags stands.
const FLAGS: usize = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00".len() - 1;
/// Version 00 has 55; a later one may say more.
const TRACEPARENT_BYTES_MAX: usize = 256;
/// The thread's name, as `top -H` shows it.
pub const THREAD: &str = "traces";
/// Traces that wait for the thread: some megabytes.
const TRACES_QUEUED_MAX: usize = 2048;
/// About a thousand spans, as many as OpenTelemetry's own exporters send at once.
const TRACES_AT_ONCE: usize = 128;
const GATHER: Duration = Duration::from_millis(200);
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// A collector may answer with a page.
const REASON_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::telemetry::metrics::Metrics;
    use crate::wire::status::Status;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    /// A queue for one trace, and nobody who takes it.
    fn traces(dropped: &IntCounter) -> (Traces, Receiver<Trace>) {
        let (queue, receiver) = mpsc::channel(1);
        let traces = Traces {
            queue,
            dropped: dropped.clone(),
            names: Names::new("inferq"),
        };
        (traces, receiver)
    }

    fn with(traceparent: AMQPValue) -> BasicProperties {
        let mut headers = lapin::types::FieldTable::default();
        headers.insert(TRACEPARENT.into(), traceparent);
        BasicProperties::default().with_headers(headers)
    }

    fn text(traceparent: &str) -> BasicProperties {
        with(AMQPValue::LongString(traceparent.into()))
    }

    fn arrival() -> Arrival<'static> {
        let now = Instant::now();
        Arrival {
            model: "pair",
            version: "1",
            message_id: None,
            correlation_id: None,
            body_bytes: 0,
            rows: None,
            redelivered: false,
            delivery_count: 0,
            queued: None,
            delivered: now,
            decode_began: now,
            decode_ended: now,
        }
    }

    #[test]
    fn only_a_traceparent_that_is_whole_and_sampled_begins_a_trace() {
        let (traces, _receiver) = traces(&Metrics::new().unwrap().spans_dropped);
        let begins = |properties: &BasicProperties| traces.begin(properties, arrival).is_some();

        assert!(begins(&text(SAMPLED)));
        // Of a version that is not written yet.
        assert!(begins(&text(
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more"
        )));
        for none in [
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "",
            "1",
            "ä-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            &"1".repeat(1000),
        ] {
            assert!(!begins(&text(none)), "{none}");
        }
        assert!(!begins(&with(AMQPValue::LongLongInt(1))));
        assert!(!begins(&BasicProperties::default()));
    }

    #[test]
    fn the_trace_of_a_log_line_is_one_whether_it_is_sampled_or_not_and_never_what_else_came() {
        let not_sampled = SAMPLED.replace("-01", "-00");

        for parent in [SAMPLED, &not_sampled] {
            assert_eq!(
                trace_id(&text(parent)).as_deref(),
                Some("0af7651916cd43dd8448eb211c80319c")
            );
        }
        assert_eq!(trace_id(&text("a-secret")), None);
        assert_eq!(trace_id(&BasicProperties::default()), None);
    }

    #[test]
    fn a_trace_that_nobody_takes_is_dropped_and_its_spans_are_counted() {
        let metrics = Metrics::new().unwrap();
        let (traces, mut receiver) = traces(&metrics.spans_dropped);

        for _ in 0..3 {
            let mut traced = traces.begin(&text(SAMPLED), arrival).unwrap();
            traced.trace.answered(Status::Ok);
            traced.end();
        }

        assert!(receiver.try_recv().is_ok());
        assert!(receiver.try_recv().is_err());
        assert_eq!(metrics.spans_dropped.get(), 2 * 2, "two jobs of two spans");
    }
}
