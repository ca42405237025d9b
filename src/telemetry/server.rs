//! The worker's HTTP endpoints: `/metrics`, `/livez`, `/readyz`, and `/` for people. There is no inference port; workers
//! only pull.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest as _, Sha256};
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
    let policy: Arc<str> = policy(PAGE).into();
    let router = Router::new()
        .route("/", get(async move || page(&policy)))
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
        (StatusCode::OK, format!("ready\n{}", health.notes()))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, report + &health.notes())
    }
}

/// What shows the two others to people, in their browser.
const PAGE: &str = include_str!("page.html");

fn page(policy: &str) -> impl IntoResponse + use<> {
    let headers: [(HeaderName, String); 5] = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy.to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        // Another version of the worker may have another page.
        (header::CACHE_CONTROL, "no-cache".to_owned()),
    ];
    (headers, PAGE)
}

/// Lets the page's own script and style run, known by their digests, and talk to this worker and to nobody else.
fn policy(page: &str) -> String {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        source(page, "script"),
        source(page, "style"),
    )
}

/// How a policy names what stands in the only element `name` of the page.
fn source(page: &str, name: &str) -> String {
    let text = page
        .split_once(&format!("<{name}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{name}>")))
        .map_or("", |(text, _)| text);
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_names_the_script_and_the_style_by_their_digests() {
        // The digest of `hello`, as `openssl dgst -sha256 -binary | base64` gives it.
        let hello = "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";

        let policy = policy("<style>hello</style><script>hello</script>");

        assert!(
            policy.contains(&format!("script-src '{hello}'; style-src '{hello}';")),
            "{policy}"
        );
    }

    #[test]
    fn the_page_has_one_script_one_style_and_no_address_of_anything_else() {
        for element in ["<script>", "</script>", "<style>", "</style>"] {
            assert_eq!(PAGE.matches(element).count(), 1, "{element}");
        }
        for needle in ["<script ", "src=", "@import", "url(", "https:", " style="] {
            let found = PAGE.lines().find(|line| line.contains(needle));
            assert_eq!(found, None, "{needle}");
        }
    }
}
