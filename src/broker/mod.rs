//! RabbitMQ's side: connections that are kept up, and the exchanges and queues of a model.

pub mod backoff;
pub mod bodies;
pub mod compare;
pub mod connection;
pub mod frames;
pub mod link;
pub mod links;
pub mod permission;
pub mod post;
pub mod screen;
pub mod stream;
pub mod tls;
pub mod topology;
pub mod turn;
pub mod values;

use std::io;
use std::time::Duration;

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

use self::backoff::Failure;
use crate::config::{LoginFileError, UriFileError};
use crate::error::chain;

/// What of `lapin`'s failures a human needs: whose move it is, and what the broker said.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error(transparent)]
    Uri(#[from] UriFileError),
    #[error(transparent)]
    Login(#[from] LoginFileError),
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error(
        "broker.ca_file or broker.client_certificate_file is set, but the URI in broker.uri_file asks for no encryption; it must begin with amqps://"
    )]
    NotEncrypted,
    #[error("the broker's name `{host}` cannot be resolved")]
    Unresolved {
        host: String,
        #[source]
        cause: std::io::Error,
    },
    #[error("the broker at {address} did not answer within {limit:?}")]
    Timeout { address: String, limit: Duration },
    #[error("the certificate of the broker at {address} is not accepted: {problem}")]
    TheirCertificate { address: String, problem: String },
    #[error("the broker at {address} wants another certificate in broker.client_certificate_file: {problem}")]
    OurCertificate { address: String, problem: String },
    #[error("the broker at {address} refused {who} on virtual host `{vhost}`{}: {said}", empty_vhost(.vhost))]
    Refused {
        address: String,
        who: String,
        vhost: String,
        said: String,
    },
    #[error("no connection to the broker at {address}: {said}")]
    Connect { address: String, said: String },
    #[error("none of the {} addresses in broker.uri can be used; {}", .0.len(), listed(.0))]
    All(Vec<BrokerError>),
    #[error("the broker left a request without an answer for {0:?}")]
    Silent(Duration),
    #[error("{what} cannot be used: {said}")]
    Unusable { what: String, said: String },
    #[error("{what} may not be used: {}", explained(.lacking.as_deref(), .said))]
    Forbidden {
        what: String,
        /// `None` where the broker words it otherwise than RabbitMQ.
        lacking: Option<Box<permission::Lacking>>,
        said: String,
    },
    #[error(transparent)]
    Lapin(#[from] lapin::Error),
    #[error("{0}")]
    Topology(topology::Mismatch),
}

/// Nobody who writes a slash at the end means a virtual host without a name.
fn empty_vhost(vhost: &str) -> &'static str {
    if vhost.is_empty() {
        " (this is the empty virtual host, which a URI that ends in `/` names; `/` itself is no path at all, or `/%2f`)"
    } else {
        ""
    }
}

/// Every failure once: nodes that are all down say the same.
fn listed(failures: &[BrokerError]) -> String {
    let mut said: Vec<String> = failures.iter().map(|failure| chain(failure)).collect();
    said.dedup();
    said.join("; ")
}

/// The permission first, since it is what somebody can give; then the broker's own words.
fn explained(lacking: Option<&permission::Lacking>, said: &str) -> String {
    lacking.map_or_else(
        || said.to_owned(),
        |lacking| format!("{lacking}; the broker said: {said}"),
    )
}

/// What a failure of the client says, with the permission that is missing for `act` if it is one.
pub fn reason(error: &lapin::Error, act: permission::Act) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(said) if is_refusal(said.kind()) => {
            let said = said.get_message().to_string();
            explained(permission::Lacking::of(&said, act).as_ref(), &said)
        }
        _ => error.to_string(),
    }
}

impl BrokerError {
    /// What is said of several addresses, none of which could be used.
    fn of_all(mut failures: Vec<Self>) -> Self {
        match failures.len() {
            1 => failures.remove(0),
            _ => Self::All(failures),
        }
    }

    /// True of what stays as it is until someone changes the address, the login, a certificate, a permission or a queue.
    ///
    /// A file that is not there is not among them: it may only come later than this program.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Uri(UriFileError::Refused { .. })
            | Self::Login(LoginFileError::Empty { .. })
            | Self::NotEncrypted
            | Self::TheirCertificate { .. }
            | Self::OurCertificate { .. }
            | Self::Forbidden { .. }
            | Self::Topology(_) => true,
            Self::Refused { said, .. } => !is_limit(said),
            Self::Uri(UriFileError::Unreadable { source, .. })
            | Self::Login(LoginFileError::Unreadable { source, .. }) => source.kind() != io::ErrorKind::NotFound,
            Self::Tls(error) => error.is_permanent(),
            // One that is down may let us in when it is back.
            Self::All(failures) => failures.iter().all(Self::is_permanent),
            Self::Lapin(error) => is_permanent(error),
            Self::Unresolved { .. }
            | Self::Timeout { .. }
            | Self::Connect { .. }
            | Self::Silent(_)
            | Self::Unusable { .. } => false,
        }
    }

    /// Whether time alone may mend it, or somebody has to act at the broker.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Refused { .. } | Self::Forbidden { .. } => Failure::Refusal,
            // One that is down may let us in when it is back.
            Self::All(failures) if failures.iter().all(|one| one.failure() == Failure::Refusal) => Failure::Refusal,
            Self::All(_) => Failure::Outage,
            Self::Uri(_)
            | Self::Login(_)
            | Self::Tls(_)
            | Self::NotEncrypted
            | Self::Unresolved { .. }
            | Self::Timeout { .. }
            | Self::TheirCertificate { .. }
            | Self::OurCertificate { .. }
            | Self::Connect { .. }
            | Self::Silent(_)
            | Self::Unusable { .. }
            | Self::Lapin(_)
            | Self::Topology(_) => Failure::Outage,
        }
    }
}

/// True of what the client says that no second try mends, as [`BrokerError::is_permanent`].
pub fn is_permanent(error: &lapin::Error) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(said) => is_refusal(said.kind()) && !is_limit(&said.get_message().to_string()),
        _ => false,
    }
}

/// True of a refusal that ends when others leave: the broker, the virtual host or the user has as many connections as are allowed.
///
/// # Source
/// RabbitMQ, `rabbit_reader.erl`: "connection limit (N) is reached", "user connection limit (N) is reached", "node connection limit
/// (N) is reached".
fn is_limit(said: &str) -> bool {
    said.contains("connection limit (") && said.contains(") is reached")
}

/// As [`BrokerError::failure`], of what the client says itself.
pub fn failure_of(error: &lapin::Error) -> Failure {
    match error.kind() {
        ErrorKind::ProtocolError(said) if is_refusal(said.kind()) => Failure::Refusal,
        _ => Failure::Outage,
    }
}

/// Whether the broker says that it knows us and does not let us: wrong credentials, no permission, no such virtual host.
fn is_refusal(kind: &AMQPErrorKind) -> bool {
    matches!(
        kind,
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(said: &str) -> BrokerError {
        BrokerError::Refused {
            address: "host:5672".to_owned(),
            who: "user `u`".to_owned(),
            vhost: "v".to_owned(),
            said: said.to_owned(),
        }
    }

    #[test]
    fn a_limit_that_is_reached_is_no_permanent_refusal() {
        for said in [
            "NOT_ALLOWED - access to vhost 'v' refused for user 'u': connection limit (1) is reached",
            "NOT_ALLOWED - connection refused for user 'u': user connection limit (1) is reached",
            "NOT_ALLOWED - connection refused: node connection limit (1) is reached",
        ] {
            assert!(!refused(said).is_permanent(), "{said}");
        }
        for said in [
            "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN",
            "NOT_ALLOWED - vhost limit-is-reached not found",
        ] {
            assert!(refused(said).is_permanent(), "{said}");
        }
    }

    #[test]
    fn a_certificate_that_is_not_accepted_stays_so() {
        let (address, problem) = ("host:5671".to_owned(), "it has expired".to_owned());
        let theirs = BrokerError::TheirCertificate {
            address: address.clone(),
            problem: problem.clone(),
        };

        assert!(theirs.is_permanent());
        assert!(BrokerError::OurCertificate { address, problem }.is_permanent());
        assert!(BrokerError::NotEncrypted.is_permanent());
    }

    #[test]
    fn of_several_addresses_all_must_be_hopeless() {
        let silent = || BrokerError::Silent(Duration::from_secs(1));

        assert!(BrokerError::All(vec![refused("no"), refused("no")]).is_permanent());
        assert!(!BrokerError::All(vec![refused("no"), silent()]).is_permanent());
    }

    #[test]
    fn a_file_that_is_not_there_may_come_later() {
        let of = |kind: io::ErrorKind| {
            BrokerError::Uri(UriFileError::Unreadable {
                path: "/run/uri".into(),
                source: kind.into(),
            })
        };

        assert!(!of(io::ErrorKind::NotFound).is_permanent());
        assert!(of(io::ErrorKind::PermissionDenied).is_permanent());
    }
}
