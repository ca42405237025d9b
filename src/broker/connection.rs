//! One connection to the broker: address, secrets and certificates read anew at every try.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::ops::Deref;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::Duration;

use async_compat::Compat;
use lapin::tcp::RustlsConnector;
use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, ErrorKind};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::backoff::Failure;
use super::bodies::{Bodies, Brake};
use super::frames::FRAME_MAX;
use super::post::Post;
use super::stream::{self, Screened};
use super::tls::{self, Problem};
use super::turn::Turn;
use super::{BrokerError, is_refusal};
use crate::config::{Address, BrokerConfig, Login};

/// A connection, and what goes past its client.
pub struct Connected {
    client: Connection,
    pub post: Post,
    /// `host:port` of the broker.
    pub address: String,
}

impl Deref for Connected {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.client
    }
}

/// Connects to one of the broker's addresses, within `broker.connect_timeout_ms`; `name` is what its operators see.
///
/// Recovery by the client stays off: it acks deliveries of the old connection on the new one (see [`super::link`]).
/// # Errors
/// Every cause names the address, and none of them the password.
pub async fn connect(config: &BrokerConfig, name: &str) -> Result<Connected, BrokerError> {
    connect_next(config, name, &mut Turn::default(), None).await
}

/// As [`connect`], to the address whose turn it is, or else to one of those after it. While `bodies` take too much it is read
/// slowly.
///
/// # Errors
/// None of them can be used.
pub async fn connect_next(
    config: &BrokerConfig,
    name: &str,
    turn: &mut Turn,
    bodies: Option<&Bodies>,
) -> Result<Connected, BrokerError> {
    let uris = uris(config)?;
    let deadline = Instant::now() + config.connect_timeout;
    let mut failures = Vec::new();
    for (tried, index) in turn.uris(uris.len()).enumerate() {
        let uri = &uris[index];
        let limit = share(deadline, uris.len() - tried);
        let attempt = Attempt {
            config,
            name,
            uri: &uri.amqp,
            has_raw_at: uri.has_raw_at,
            address: address(&uri.amqp),
            limit,
            bodies,
        };
        let connecting = attempt.connect(turn, index, uris.len());
        match tokio::time::timeout(limit, connecting).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(failure)) => failures.push(failure),
            Err(_) => failures.push(attempt.timed_out()),
        }
    }
    Err(BrokerError::of_all(failures))
}

/// The time that is left, shared by `others` that are still to be tried.
fn share(deadline: Instant, others: usize) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left / u32::try_from(others.max(1)).unwrap_or(u32::MAX)
}

/// One URI that is tried.
struct Attempt<'a> {
    config: &'a BrokerConfig,
    name: &'a str,
    uri: &'a AMQPUri,
    has_raw_at: bool,
    /// `host:port` of the broker, for messages.
    address: String,
    /// How long it may take.
    limit: Duration,
    bodies: Option<&'a Bodies>,
}

impl Attempt<'_> {
    /// Tries the addresses that the name stands for at this moment, until one of them is a broker.
    async fn connect(&self, turn: &mut Turn, index: usize, uris: usize) -> Result<Connected, BrokerError> {
        let deadline = Instant::now() + self.limit;
        // Before anything goes over the network: a file that is amiss is amiss without it.
        let encrypted = self.uri.scheme == AMQPScheme::AMQPS;
        let connector = encrypted.then(|| tls::connector(self.config)).transpose()?;
        let addresses = turn.addresses(index, self.resolve().await?);
        let mut rest = &addresses[..];
        loop {
            let (tried, stream) = first_of(rest, deadline)
                .await
                .map_err(|failure| self.unreached(&failure))?;
            let address = rest[tried];
            rest = &rest[tried + 1..];
            let limit = share(deadline, rest.len() + 1);
            let opened = tokio::time::timeout(limit, self.open(stream, connector.as_ref())).await;
            match opened.unwrap_or_else(|_| Err(self.timed_out())) {
                Ok(connected) => {
                    turn.connected(index, address, uris.max(addresses.len()));
                    return Ok(connected);
                }
                // Whoever is refused by one node is refused by the others that have its name.
                Err(failure) if rest.is_empty() || failure.failure() == Failure::Refusal => return Err(failure),
                Err(_) => {}
            }
        }
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, BrokerError> {
        let authority = &self.uri.authority;
        let resolved = tokio::net::lookup_host((authority.host.as_str(), authority.port)).await;
        let addresses = resolved.map_err(|cause| BrokerError::Unresolved {
            host: authority.host.clone(),
            cause,
        })?;
        Ok(addresses.collect())
    }

    /// Speaks TLS, if it is asked for, and AMQP.
    async fn open(&self, stream: TcpStream, connector: Option<&RustlsConnector>) -> Result<Connected, BrokerError> {
        let host = &self.uri.authority.host;
        let hangup = Hangup::of(&stream).map_err(|cause| self.failed(&cause, host))?;
        let mut stream = AsyncTcpStream::Plain(Compat::new(stream));
        if let Some(connector) = connector {
            let secured = stream.into_rustls(connector, host).await;
            stream = secured.map_err(|cause| self.failed(&cause, host))?;
        }
        let properties = ConnectionProperties::default()
            .with_connection_name(self.name.into())
            .with_client_property("product".into(), "inferq".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let post = Post::default();
        let brake = self.bodies.map(|bodies| Brake::new(bodies.clone()));
        // The client asks once, since its own retries are off.
        let stream = Mutex::new(Some(AsyncTcpStream::Plain(Screened::new(stream, post.clone(), brake))));
        let hand_over = async move |_, _| {
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected).into())
        };
        let connected = Connection::connector(self.uri.clone(), stream::runtime(), hand_over, properties).await;
        let client = connected.map_err(|error| match error.kind() {
            ErrorKind::ProtocolError(said) if is_refusal(said.kind()) => self.refused(said.get_message().to_string()),
            ErrorKind::ProtocolError(said) => self.said(said.get_message().to_string()),
            ErrorKind::IOError(cause) => self.failed(cause, host),
            _ => self.said(error.to_string()),
        })?;
        hangup.disarm();
        let address = self.address.clone();
        Ok(Connected { client, post, address })
    }

    fn refused(&self, said: String) -> BrokerError {
        BrokerError::Refused {
            address: self.address.clone(),
            who: who(self.uri, self.has_raw_at),
            vhost: self.uri.vhost.clone(),
            said,
        }
    }

    fn unreached(&self, failure: &io::Error) -> BrokerError {
        match failure.kind() {
            io::ErrorKind::TimedOut => self.timed_out(),
            _ => self.said(failure.to_string()),
        }
    }

    fn timed_out(&self) -> BrokerError {
        BrokerError::Timeout {
            address: self.address.clone(),
            limit: self.limit,
        }
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

/// Connects to the first of `addresses` that answers, and says which it is; one that swallows packets leaves time for those after it.
async fn first_of(addresses: &[SocketAddr], deadline: Instant) -> io::Result<(usize, TcpStream)> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for (tried, address) in addresses.iter().enumerate() {
        let limit = share(deadline, addresses.len() - tried);
        match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Without it small frames wait for the acks of others; a socket that cannot is slow and nothing else.
                let _ = stream.set_nodelay(true);
                return Ok((tried, stream));
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
fn who(uri: &AMQPUri, has_raw_at: bool) -> String {
    let user = &uri.authority.userinfo.username;
    match uri.query.auth_mechanism {
        Some(SASLMechanism::External) => "the certificate of broker.client_certificate_file".to_owned(),
        _ if has_raw_at => {
            format!("user `{user}` (there is an `@` before the last one of the URI: in a password it is written %40)")
        }
        _ => format!("user `{user}`"),
    }
}

/// `host:port` of the broker, for messages.
fn address(uri: &AMQPUri) -> String {
    format!("{}:{}", uri.authority.host, uri.authority.port)
}

/// The virtual host as it is configured at this moment.
///
/// # Errors
/// A file that is configured cannot be read, or what it holds is no address.
pub fn vhost(config: &BrokerConfig) -> Result<String, BrokerError> {
    let uris = uris(config)?;
    Ok(uris
        .into_iter()
        .next()
        .map_or_else(|| "/".to_owned(), |uri| uri.amqp.vhost))
}

/// The URIs as they are configured at this moment; at least one.
///
/// # Errors
/// A file of address or login cannot be read, or holds no AMQP URI, or one without the encryption that is asked for.
fn uris(config: &BrokerConfig) -> Result<Vec<Address>, BrokerError> {
    let current = config.current_uri()?;
    if !current.is_tls() && (config.ca_file.is_some() || config.client_certificate_file.is_some()) {
        // A check of the configuration cannot see what a file will hold.
        return Err(BrokerError::NotEncrypted);
    }
    let login = config.current_login()?;
    let mut uris = current.expose().to_vec();
    for uri in &mut uris {
        complete(&mut uri.amqp, config, login.as_ref());
    }
    Ok(uris)
}

/// Adds what the rest of the configuration says of a connection.
fn complete(uri: &mut AMQPUri, config: &BrokerConfig, login: Option<&Login>) {
    if let Some(login) = login {
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
    if uri.scheme == AMQPScheme::AMQPS && config.client_certificate_file.is_some() && login.is_none() {
        uri.query.auth_mechanism.get_or_insert(SASLMechanism::External);
    }
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
        let plain = uris(&config).unwrap_err();
        std::fs::write(file.path(), "amqps://user:hunter2@broker").unwrap();
        let encrypted = uris(&config);

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
            uris(&config).unwrap().remove(0).amqp
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
        let (_, reached) = first_of(&addresses, deadline).await.unwrap();
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
