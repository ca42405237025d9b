//! The worker's HTTP endpoints: `/metrics`, `/livez`, `/readyz`. There is no inference port; workers only pull.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::health::Health;
use super::metrics::Metrics;

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.listen: {address} cannot be listened on; choose another address, or \"\" for none")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    cause: std::io::Error,
}

/// Binds `address`; port 0 takes a free one.
///
/// # Errors
/// The address is in use or not ours.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|cause| ListenError { address, cause })
}

/// Serves until `closed` fires.
pub async fn serve(listener: TcpListener, health: Health, metrics: Arc<Metrics>, closed: CancellationToken) {
    let router = Router::new()
        .route("/metrics", get(render))
        // Answers while the runtime does; what keeps jobs from being done is readiness' affair.
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state((health, metrics));
    let serving = axum::serve(listener, router).with_graceful_shutdown(closed.cancelled_owned());
    if let Err(error) = serving.await {
        tracing::error!("the metrics server ended: {error}");
    }
}

type Shared = State<(Health, Arc<Metrics>)>;

async fn render(State((health, metrics)): Shared) -> impl IntoResponse {
    metrics.about.look(&health);
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        metrics.render(),
    )
}

async fn ready(State((health, _)): Shared) -> impl IntoResponse {
    let report = health.report();
    if report.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, report)
    }
}
