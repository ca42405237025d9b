//! RabbitMQ's side: connections that are kept up, and the exchanges and queues of a model.

pub mod backoff;
pub mod compare;
pub mod connection;
pub mod link;
pub mod topology;
pub mod values;

use std::time::Duration;

use crate::config::UriFileError;

/// What of `lapin`'s failures a human needs: whose move it is, and what the broker said.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error(transparent)]
    Uri(#[from] UriFileError),
    #[error("{key} names {path}, which cannot be read")]
    File {
        key: &'static str,
        path: std::path::PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("the broker at {address} did not answer within {limit:?}")]
    Timeout { address: String, limit: Duration },
    #[error("the broker at {address} refused user `{user}` on virtual host `{vhost}`: {said}")]
    Refused {
        address: String,
        user: String,
        vhost: String,
        said: String,
    },
    #[error("no connection to the broker at {address}: {said}")]
    Connect { address: String, said: String },
    #[error("the broker left a request without an answer for {0:?}")]
    Silent(Duration),
    #[error("{what} cannot be used: {said}")]
    Unusable { what: String, said: String },
    #[error(transparent)]
    Lapin(#[from] lapin::Error),
    #[error("{0}")]
    Topology(topology::Mismatch),
}
