//! One connection to the broker: address, secrets and certificates read anew at every try.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::ops::Deref;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::Duration;

use async_compat::Compat;
use lapin::uri::{AMQPUri, SASLMechanism};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, ErrorKind};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::frames::FRAME_MAX;
use super::post::Post;
use super::stream::{self, Screened};
use super::tls::{self, Problem};
use super::{BrokerError, is_refusal};
use crate::config::BrokerConfig;

/// A connection, and what goes past its client.
pub struct Connected {
    client: Connection,
    pub post: Post,
}

impl Deref for Connected {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.client
    }
}

/// Connects once, within `broker.connect_timeout_ms`; `name` is what the broker's operators see.
///
/// Recovery by the client stays off: it acks deliveries of the old connection on the new one (see [`super::link`]).
/// # Errors
/// Every cause names the address, and none of them the password.
pub async fn connect(config: &BrokerConfig, name: &str) -> Result<Connected, BrokerError> {
    let uri = uri(config)?;
    let deadline = Instant::now() + config.connect_timeout;
    let attempt = Attempt {
        config,
        address: address(&uri),
        encrypted: uri.scheme == lapin::uri::AMQPScheme::AMQPS,
    };
    match tokio::time::timeout_at(deadline, attempt.open(uri, name, deadline)).await {
        Ok(connected) => connected,
        Err(_) => Err(BrokerError::Timeout {
            address: attempt.address,
            limit: config.connect_timeout,
        }),
    }
}

struct Attempt<'a> {
    config: &'a BrokerConfig,
    /// `host:port` of the broker, for messages.
    address: String,
    encrypted: bool,
}

impl Attempt<'_> {
    async fn open(&self, uri: AMQPUri, name: &str, deadline: Instant) -> Result<Connected, BrokerError> {
        // Before anything goes over the network: a file that is amiss is amiss without it.
        let connector = self.encrypted.then(|| tls::connector(self.config)).transpose()?;
        let host = uri.authority.host.clone();
        let stream = self.reach(&host, uri.authority.port, deadline).await?;
        let hangup = Hangup::of(&stream).map_err(|cause| self.failed(&cause, &host))?;
        let mut stream = AsyncTcpStream::Plain(Compat::new(stream));
        if let Some(connector) = connector {
            let secured = stream.into_rustls(&connector, &host).await;
            stream = secured.map_err(|cause| self.failed(&cause, &host))?;
        }
        let properties = ConnectionProperties::default()
            .with_connection_name(name.into())
            .with_client_property("product".into(), "inferq".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let who = who(&uri);
        let vhost = uri.vhost.clone();
        let post = Post::default();
        // The client asks once, since its own retries are off.
        let stream = Mutex::new(Some(AsyncTcpStream::Plain(Screened::new(stream, post.clone()))));
        let hand_over = async move |_, _| {
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected).into())
        };
        let connected = Connection::connector(uri, stream::runtime(), hand_over, properties).await;
        let client = connected.map_err(|error| match error.kind() {
            ErrorKind::ProtocolError(said) if is_refusal(said.kind()) => BrokerError::Refused {
                address: self.address.clone(),
                who,
                vhost,
                said: said.get_message().to_string(),
            },
            ErrorKind::ProtocolError(said) => self.said(said.get_message().to_string()),
            ErrorKind::IOError(cause) => self.failed(cause, &host),
            _ => self.said(error.to_string()),
        })?;
        hangup.disarm();
        Ok(Connected { client, post })
    }

    /// Connects to one of the addresses that the name stands for at this moment, in random order.
    async fn reach(&self, host: &str, port: u16, deadline: Instant) -> Result<TcpStream, BrokerError> {
        let resolved = tokio::net::lookup_host((host, port)).await;
        let mut addresses: Vec<SocketAddr> = resolved
            .map_err(|cause| BrokerError::Unresolved {
                host: host.to_owned(),
                cause,
            })?
            .collect();
        // A fleet spreads over the nodes behind a name, and comes away from one that is down.
        fastrand::shuffle(&mut addresses);
        first_of(&addresses, deadline).await.map_err(|failure| {
            if failure.kind() == io::ErrorKind::TimedOut {
                return BrokerError::Timeout {
                    address: self.address.clone(),
                    limit: self.config.connect_timeout,
                };
            }
            self.said(failure.to_string())
        })
    }
    fn failed(&self, cause: &io::Error, host: &str) -> BrokerError {
        let address = self.address.clone();
        match tls::problem(cause, host, self.config) {
            Some(Problem::Theirs(problem)) => BrokerError::TheirCertificate { address, problem },
            Some(Problem::Ours(problem)) => BrokerError::OurCertificate { address, problem },
            None => self.said(cause.to_string()),
        }
    }

    fn said(&self, said: String) -> BrokerError {
        BrokerError::Connect {
            address: self.address.clone(),
            said,
        }
    }
}

/// Connects to the first of `addresses` that answers; one that swallows packets leaves time for those after it.
async fn first_of(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Without it small frames wait for the acks of others; a socket that cannot is slow and nothing else.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(cause)) => failure = cause,
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

/// Shuts the socket down unless it is disarmed: a client that is told nothing waits on a thread of its own for ever.
struct Hangup(Option<std::net::TcpStream>);

impl Hangup {
    fn of(stream: &TcpStream) -> io::Result<Self> {
        let same = stream.as_fd().try_clone_to_owned()?;
        Ok(Self(Some(same.into())))
    }

    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Hangup {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            // Fails only if the socket is closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// By what the broker knows us.
fn who(uri: &AMQPUri) -> String {
    match uri.query.auth_mechanism {
        Some(SASLMechanism::External) => "the certificate of broker.client_certificate_file".to_owned(),
        _ => format!("user `{}`", uri.authority.userinfo.username),
    }
}

/// `host:port` of the broker, for messages.
fn address(uri: &AMQPUri) -> String {
    format!("{}:{}", uri.authority.host, uri.authority.port)
}

/// The URI as it is configured at this moment.
///
/// # Errors
/// A file of address or login cannot be read, or holds no AMQP URI, or one without the encryption that is asked for.
pub fn uri(config: &BrokerConfig) -> Result<AMQPUri, BrokerError> {
    let current = config.current_uri()?;
    let mut uri = current.expose().clone();
    let login = config.current_login()?;
    if let Some(login) = &login {
        uri.authority.userinfo.username.clone_from(&login.user);
        uri.authority.userinfo.password.clone_from(login.password.expose());
    }
    // lapin takes the broker's 60 s unless asked, and sees a dead peer only after two of them.
    uri.query.heartbeat.get_or_insert(seconds(config.heartbeat));
    // What is screened is held back until all of a frame is there: less is possible, more is not.
    uri.query.frame_max = Some(
        uri.query
            .frame_max
            .filter(|bytes| (1..FRAME_MAX).contains(bytes))
            .unwrap_or(FRAME_MAX),
    );
    if current.is_tls() {
        if config.client_certificate_file.is_some() && login.is_none() {
            uri.query.auth_mechanism.get_or_insert(SASLMechanism::External);
        }
    } else if config.ca_file.is_some() || config.client_certificate_file.is_some() {
        // A check of the configuration cannot see what a file will hold.
        return Err(BrokerError::NotEncrypted);
    }
    Ok(uri)
}

fn seconds(heartbeat: Duration) -> u16 {
    u16::try_from(heartbeat.as_secs().max(1)).unwrap_or(u16::MAX)
}

/// A number that changes when any of the files does that [`connect`] reads.
pub fn secrets(config: &BrokerConfig) -> u64 {
    let mut hasher = DefaultHasher::new();
    let files = [
        &config.uri_file,
        &config.username_file,
        &config.password_file,
        &config.ca_file,
        &config.client_certificate_file,
        &config.client_key_file,
    ];
    for path in files.into_iter().flatten() {
        std::fs::read(path).ok().hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_file_with_an_address_without_encryption_is_refused_where_certificates_are_configured() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let overrides = [
            ("broker.uri_file", file.path().display().to_string()),
            ("broker.ca_file", "/ca.pem".to_owned()),
        ];
        let config = Config::from_overrides(&overrides).unwrap().broker;

        std::fs::write(file.path(), "amqp://user:hunter2@broker").unwrap();
        let plain = uri(&config).unwrap_err();
        std::fs::write(file.path(), "amqps://user:hunter2@broker").unwrap();
        let encrypted = uri(&config);

        assert!(matches!(plain, BrokerError::NotEncrypted));
        assert!(encrypted.is_ok());
    }

    #[test]
    fn a_login_in_files_takes_the_place_of_the_one_in_the_uri_and_of_a_login_by_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("user"), "worker").unwrap();
        std::fs::write(path("password"), "p@ss/%6F").unwrap();
        let with = |more: &[(&'static str, String)]| {
            let login = [
                ("broker.username_file", path("user")),
                ("broker.password_file", path("password")),
            ];
            let config = Config::from_overrides(&[&login, more].concat()).unwrap().broker;
            uri(&config).unwrap()
        };

        let plain = with(&[("broker.uri", "amqp://broker".to_owned())]);
        let certificate = [
            ("broker.uri", "amqps://other:secret@broker".to_owned()),
            ("broker.client_certificate_file", "/c.pem".to_owned()),
            ("broker.client_key_file", "/k.pem".to_owned()),
        ];
        let both = with(&certificate);

        for uri in [plain, both] {
            assert_eq!(uri.authority.userinfo.username, "worker");
            assert_eq!(uri.authority.userinfo.password, "p@ss/%6F");
            assert_eq!(uri.query.auth_mechanism, None);
        }
    }

    #[tokio::test]
    async fn an_address_that_refuses_or_swallows_leaves_time_for_the_next() {
        let refusing = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        // Its queue is full, so that Linux drops whatever else comes.
        let full = tokio::net::TcpSocket::new_v4().unwrap();
        full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = full.listen(0).unwrap();
        let swallowing = full.local_addr().unwrap();
        let _waiting = TcpStream::connect(swallowing).await.unwrap();
        let serving = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(3);

        let addresses = [refusing, swallowing, serving.local_addr().unwrap()];
        let reached = first_of(&addresses, deadline).await.unwrap();
        let nobody = first_of(&addresses[..1], deadline).await.unwrap_err();

        assert_eq!(reached.peer_addr().unwrap(), serving.local_addr().unwrap());
        assert_eq!(nobody.kind(), io::ErrorKind::ConnectionRefused);
        let silent = first_of(&[swallowing], Instant::now() + Duration::from_millis(50)).await;
        assert_eq!(silent.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn the_number_of_the_secrets_changes_with_any_of_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let keys = [
            "uri_file",
            "username_file",
            "password_file",
            "ca_file",
            "client_certificate_file",
            "client_key_file",
        ];
        let overrides: Vec<_> = [
            "broker.uri_file",
            "broker.username_file",
            "broker.password_file",
            "broker.ca_file",
            "broker.client_certificate_file",
            "broker.client_key_file",
        ]
        .into_iter()
        .zip(keys.map(path))
        .collect();
        let config = Config::from_overrides(&overrides).unwrap().broker;

        let mut seen = vec![secrets(&config)];
        for name in keys {
            std::fs::write(folder.path().join(name), "").unwrap();
            seen.push(secrets(&config));
            std::fs::write(folder.path().join(name), name).unwrap();
            seen.push(secrets(&config));
        }

        let unchanged = secrets(&config);
        assert_eq!(seen.last(), Some(&unchanged));
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 1 + 2 * keys.len());
    }
}
