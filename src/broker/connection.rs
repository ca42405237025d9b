//! One connection to the broker: address, secrets and certificates read anew at every try.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPUri, SASLMechanism};
use lapin::{Connection, ConnectionProperties, ErrorKind};

use super::BrokerError;
use crate::config::BrokerConfig;

/// Connects once, within `broker.connect_timeout_ms`; `name` is what the broker's operators see.
///
/// Recovery by the client stays off: it acks deliveries of the old connection on the new one (see [`super::link`]).
/// # Errors
/// Every cause names the address, and none of them the password.
pub async fn connect(config: &BrokerConfig, name: &str) -> Result<Connection, BrokerError> {
    let uri = uri(config)?;
    let address = address(&uri);
    let (user, vhost) = (uri.authority.userinfo.username.clone(), uri.vhost.clone());
    let tls = tls(config)?;
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "inferq".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    let runtime = lapin::runtime::default_runtime()?;
    let connecting = Connection::connect_uri_with_config(uri, properties, tls, runtime);
    match tokio::time::timeout(config.connect_timeout, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(match error.kind() {
            ErrorKind::ProtocolError(said) => BrokerError::Refused {
                address,
                user,
                vhost,
                said: said.get_message().to_string(),
            },
            _ => BrokerError::Connect {
                address,
                said: error.to_string(),
            },
        }),
        Err(_) => Err(BrokerError::Timeout {
            address,
            limit: config.connect_timeout,
        }),
    }
}

/// `host:port` of the broker, for messages.
pub fn address(uri: &AMQPUri) -> String {
    format!("{}:{}", uri.authority.host, uri.authority.port)
}

/// The URI as it is configured at this moment.
///
/// # Errors
/// The file of `broker.uri_file` cannot be read, or holds no AMQP URI.
pub fn uri(config: &BrokerConfig) -> Result<AMQPUri, BrokerError> {
    let current = config.current_uri()?;
    let mut uri = current.expose().clone();
    // lapin takes the broker's 60 s unless asked, and sees a dead peer only after two of them.
    uri.query.heartbeat.get_or_insert(seconds(config.heartbeat));
    if config.client_certificate_file.is_some() && current.is_tls() {
        uri.query.auth_mechanism.get_or_insert(SASLMechanism::External);
    }
    Ok(uri)
}

fn seconds(heartbeat: Duration) -> u16 {
    u16::try_from(heartbeat.as_secs().max(1)).unwrap_or(u16::MAX)
}

fn tls(config: &BrokerConfig) -> Result<OwnedTLSConfig, BrokerError> {
    let identity = match (&config.client_certificate_file, &config.client_key_file) {
        (Some(certificate), Some(key)) => Some(OwnedIdentity::PKCS8 {
            pem: read("broker.client_certificate_file", certificate)?.into_bytes(),
            key: read("broker.client_key_file", key)?.into_bytes(),
        }),
        _ => None,
    };
    let cert_chain = config
        .ca_file
        .as_ref()
        .map(|path| read("broker.ca_file", path))
        .transpose()?;
    Ok(OwnedTLSConfig { identity, cert_chain })
}

fn read(key: &'static str, path: &Path) -> Result<String, BrokerError> {
    fs::read_to_string(path).map_err(|cause| BrokerError::File {
        key,
        path: path.to_owned(),
        cause,
    })
}
