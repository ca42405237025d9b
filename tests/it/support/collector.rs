//! An OpenTelemetry collector: takes OTLP over HTTP and reads it with the official types.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::within;

/// Takes what comes, until it is dropped.
pub struct Collector {
    address: SocketAddr,
    shelf: Arc<Shelf>,
    serving: tokio::task::JoinHandle<()>,
}

struct Shelf {
    taken: watch::Sender<Taken>,
    refuses: AtomicBool,
}

/// What has come so far.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    pub spans: Vec<Span>,
    /// What the sender says of itself, last.
    pub resource: BTreeMap<String, String>,
    pub headers: HeaderMap,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shelf = Arc::new(Shelf {
            taken: watch::Sender::new(Taken::default()),
            refuses: AtomicBool::new(false),
        });
        let router = Router::new().route("/v1/traces", post(take)).with_state(shelf.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self {
            address,
            shelf,
            serving,
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on it refuses everything, or nothing.
    pub fn refuse(&self, refuses: bool) {
        self.shelf.refuses.store(refuses, Ordering::Relaxed);
    }

    pub fn taken(&self) -> Taken {
        self.shelf.taken.borrow().clone()
    }

    /// Waits for all spans of a trace: for as many as are expected.
    pub async fn trace(&self, trace_id: &str, spans: usize) -> Trace {
        let of_trace = |taken: &Taken| -> Vec<Span> {
            let spans = taken.spans.iter().filter(|span| hex(&span.trace_id) == trace_id);
            spans.cloned().collect()
        };
        let mut taken = self.shelf.taken.subscribe();
        let event = format!("{spans} spans of trace {trace_id}");
        let taken = within(&event, taken.wait_for(|taken| of_trace(taken).len() >= spans)).await;
        Trace(of_trace(&taken.expect("the collector lives")))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn take(State(shelf): State<Arc<Shelf>>, headers: HeaderMap, body: Bytes) -> (StatusCode, &'static [u8]) {
    if shelf.refuses.load(Ordering::Relaxed) {
        return (StatusCode::BAD_REQUEST, b"on purpose");
    }
    let request = ExportTraceServiceRequest::decode(body).expect("OTLP's protobuf");
    shelf.taken.send_modify(|taken| {
        taken.headers = headers;
        for resource in request.resource_spans {
            let attributes = resource.resource.map(|resource| resource.attributes);
            taken.resource = texts(&attributes.unwrap_or_default());
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            taken.spans.extend(spans);
        }
    });
    // An empty message.
    (StatusCode::OK, b"")
}

/// The spans of one trace.
#[derive(Debug)]
pub struct Trace(pub Vec<Span>);

impl Trace {
    /// The only span of this name.
    pub fn span(&self, name: &str) -> &Span {
        let mut named = self.0.iter().filter(|span| span.name == name);
        let span = named
            .next()
            .unwrap_or_else(|| panic!("no span `{name}` in {:#?}", self.0));
        assert!(named.next().is_none(), "two spans `{name}` in {:#?}", self.0);
        span
    }

    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(|span| &*span.name).collect()
    }
}

/// Attributes as texts.
pub fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(answer) => answer.to_string(),
        other => format!("{other:?}"),
    };
    let pair = |pair: &KeyValue| Some((pair.key.clone(), text(pair.value.as_ref()?.value.as_ref()?)));
    attributes.iter().filter_map(pair).collect()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
