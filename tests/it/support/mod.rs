//! What every test stands on: a broker, workers, producers, and bodies made without the crate's own code.
//!
//! Nothing here sleeps for a guessed time. Every wait is for an event and ends after [`PATIENCE`], so that a
//! failing test fails instead of hanging; no test asserts how long something took.

pub mod body;
pub mod broker;
pub mod certificates;
pub mod cluster;
pub mod collector;
pub mod command;
pub mod faulty;
pub mod frames;
pub mod link;
pub mod management;
pub mod metrics;
pub mod onnx;
pub mod producer;
pub mod prometheus;
pub mod scene;
pub mod sockets;
pub mod worker;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use body::{Element, Nesting, Request, Tensor};
pub use broker::Broker;
pub use cluster::Cluster;
pub use producer::{Job, Producer, Reply, Routed};
pub use scene::Scene;
pub use worker::Worker;

/// Longest wait for any one event. Far above what a loaded machine needs: it bounds a failure, nothing else.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a state is looked at that nobody announces, such as the number of messages in a queue.
const GLANCE: Duration = Duration::from_millis(20);

/// The folder of `Cargo.toml`.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The test models' repository.
pub fn test_models() -> PathBuf {
    root().join("tests/models/repository")
}

/// The repository that is shipped.
pub fn models() -> PathBuf {
    root().join("models")
}

/// Waits for `event`, and fails with its name if it does not come.
pub async fn within<T>(event: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} in vain for {event}"),
    }
}

/// Looks again and again until `look` gives a value.
pub async fn eventually<T, F>(event: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    within(event, async {
        loop {
            if let Some(value) = look().await {
                return value;
            }
            tokio::time::sleep(GLANCE).await;
        }
    })
    .await
}
