//! The broker's address, which holds a password: how it is checked, and how it never shows.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use lapin::uri::{AMQPScheme, AMQPUri};

use super::keys::BrokerConfig;

/// A value that prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself: to be used, never to be printed.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A checked AMQP URI. It prints with `***` in the place of the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUri {
    shown: String,
    amqp: Secret<AMQPUri>,
}

impl BrokerUri {
    /// The URI with its password, for `lapin::Connection::connect_uri`.
    pub const fn expose(&self) -> &AMQPUri {
        self.amqp.expose()
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.expose().scheme == AMQPScheme::AMQPS
    }
}

impl fmt::Display for BrokerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl FromStr for BrokerUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The parser's own message is dropped, because it quotes the URI with its password.
        let amqp = text.parse::<AMQPUri>().map_err(|_| UriError::Malformed)?;
        if host_and_rest(text).starts_with('[') {
            return Err(UriError::Ipv6);
        }
        Ok(Self {
            shown: masked(text),
            amqp: Secret::new(amqp),
        })
    }
}

/// Why a text is not the broker's URI. Never quotes the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    #[error("is not an AMQP URI (are the special characters of the password percent-encoded?)")]
    Malformed,
    /// The AMQP client's parser knows only names and would go to `localhost` instead.
    #[error("has an IPv6 address as its host, which the AMQP client cannot use; give the host by name")]
    Ipv6,
}

impl BrokerConfig {
    /// The URI to connect to now: what `uri_file` holds at this moment, or else `uri`.
    ///
    /// To be asked again at every attempt to connect, because credentials are rotated in the file.
    /// # Errors
    /// `UriFileError` if there is a file and it cannot be read or holds something else.
    pub fn current_uri(&self) -> Result<BrokerUri, UriFileError> {
        let Some(path) = &self.uri_file else {
            return Ok(self.uri.clone());
        };
        let text = std::fs::read_to_string(path).map_err(|source| UriFileError::Unreadable {
            path: path.clone(),
            source,
        })?;
        text.trim().parse().map_err(|source| UriFileError::Refused {
            path: path.clone(),
            source,
        })
    }
}

/// Why `broker.uri_file` gave no URI.
#[derive(Debug, thiserror::Error)]
pub enum UriFileError {
    #[error("broker.uri_file: cannot read {}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("broker.uri_file: what {} holds is not the URI of a broker", path.display())]
    Refused { path: PathBuf, source: UriError },
}

/// The URI with `***` for its password.
///
/// Works on the text, not on the parsed URI: in a password with a bare `/` or `@` the parser sees a host, and would
/// show the rest. What could be part of a password is up to the last `@`, and is masked.
fn masked(uri: &str) -> String {
    let (scheme, rest) = uri.split_once("://").unwrap_or(("", uri));
    let Some((userinfo, host)) = rest.rsplit_once('@') else {
        return uri.to_owned();
    };
    match userinfo.split_once(':') {
        Some((user, _)) => format!("{scheme}://{user}:***@{host}"),
        // An encoded colon is part of the user's name, yet whoever wrote it meant a password to follow.
        None if userinfo.to_ascii_lowercase().contains("%3a") => format!("{scheme}://***@{host}"),
        None => uri.to_owned(),
    }
}

fn host_and_rest(uri: &str) -> &str {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    rest.rsplit_once('@').map_or(rest, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_password_is_masked_whatever_is_in_it() {
        let uris = [
            ("amqp://user:pass@host:5672/v", "amqp://user:***@host:5672/v"),
            ("amqp://user:p%40s%2Fs%23@host/v", "amqp://user:***@host/v"),
            ("amqp://user:p@ss:w@host/v", "amqp://user:***@host/v"),
            ("amqp://user:12/34@host/v", "amqp://user:***@host/v"),
            ("amqp://user%3Apass@host/v", "amqp://***@host/v"),
            ("amqps://user:@host", "amqps://user:***@host"),
            (
                "amqps://user@host:5671?heartbeat=5",
                "amqps://user@host:5671?heartbeat=5",
            ),
            ("amqp://host:5672", "amqp://host:5672"),
        ];
        for (given, shown) in uris {
            let uri: BrokerUri = given.parse().unwrap();

            assert_eq!(uri.to_string(), shown);
            assert_eq!(
                format!("{uri:?}"),
                format!("BrokerUri {{ shown: {shown:?}, amqp: *** }}")
            );
        }
    }

    #[test]
    fn the_exposed_uri_holds_the_decoded_password() {
        let uri: BrokerUri = "amqps://user:p%40ss@host/v".parse().unwrap();

        assert_eq!(uri.expose().authority.userinfo.password, "p@ss");
        assert!(uri.is_tls());
    }

    #[test]
    fn a_secret_prints_as_stars() {
        let secret = Secret::new("hidden");

        assert_eq!(format!("{secret} {secret:?} {}", secret.expose()), "*** *** hidden");
    }

    #[test]
    fn an_ipv6_host_is_refused_because_the_client_would_go_elsewhere() {
        let taken_for: AMQPUri = "amqp://user:pass@[fd00::5]/".parse().unwrap();
        assert_eq!(taken_for.authority.host, "localhost");

        let refused = "amqp://user:pass@[fd00::5]/".parse::<BrokerUri>();

        assert_eq!(refused, Err(UriError::Ipv6));
    }

    #[test]
    fn the_file_is_read_again_every_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display().to_string();
        let broker = Config::from_overrides(&[("broker.uri_file", path)]).unwrap().broker;

        std::fs::write(file.path(), "amqp://first\n").unwrap();
        let first = broker.current_uri().unwrap();
        std::fs::write(file.path(), "amqp://user:other@second").unwrap();
        let second = broker.current_uri().unwrap();
        std::fs::write(file.path(), "hunter2").unwrap();
        let refused = broker.current_uri().unwrap_err();
        file.close().unwrap();
        let gone = broker.current_uri().unwrap_err();

        assert_eq!(first.to_string(), "amqp://first");
        assert_eq!(second.to_string(), "amqp://user:***@second");
        assert!(matches!(refused, UriFileError::Refused { .. }));
        assert!(!format!("{refused} {refused:?}").contains("hunter2"));
        assert!(matches!(gone, UriFileError::Unreadable { .. }));
    }
}
