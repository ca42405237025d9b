//! The rules of texts: paths, addresses, names and words to choose from.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use ::config::ValueKind;
use tracing_subscriber::EnvFilter;

use super::{Refusal, Rule, text_of};
use crate::config::uri::{BrokerUri, UriError};
use crate::config::values::{Choice, Device};
use crate::model::repository::{NAME_ALLOWED, is_name};

/// One of a few words.
pub(in crate::config) struct OneOf<T: 'static>(pub &'static [T]);

impl<T: Choice> Rule for OneOf<T> {
    type Checked = T;

    fn allowed(&self) -> String {
        let words: Vec<String> = self.0.iter().map(|choice| format!("{:?}", choice.word())).collect();
        words.join(" or ")
    }

    fn check(&self, given: &ValueKind) -> Result<T, Refusal> {
        let word = text_of(given)?;
        self.0
            .iter()
            .copied()
            .find(|choice| choice.word() == word)
            .ok_or(Refusal::Value)
    }
}

/// A path that must be given.
pub(in crate::config) struct RequiredPath;

impl Rule for RequiredPath {
    type Checked = PathBuf;

    fn allowed(&self) -> String {
        "a path".to_owned()
    }

    fn check(&self, given: &ValueKind) -> Result<PathBuf, Refusal> {
        OptionalPath.check(given)?.ok_or(Refusal::Value)
    }
}

/// A path, or nothing.
pub(in crate::config) struct OptionalPath;

impl Rule for OptionalPath {
    type Checked = Option<PathBuf>;

    fn allowed(&self) -> String {
        "a path, or \"\" for none".to_owned()
    }

    fn check(&self, given: &ValueKind) -> Result<Option<PathBuf>, Refusal> {
        let path = text_of(given)?;
        if path.contains("://") {
            // Most likely the broker's URI under the wrong key, password and all.
            return Err(Refusal::Because("is a URI".to_owned()));
        }
        Ok((!path.is_empty()).then(|| PathBuf::from(path)))
    }
}

/// The broker's address.
pub(in crate::config) struct Uri;

impl Rule for Uri {
    type Checked = BrokerUri;

    fn allowed(&self) -> String {
        "amqp://user:password@host:port/vhost, or amqps:// for TLS; several as a list, or with commas between"
            .to_owned()
    }

    fn check(&self, given: &ValueKind) -> Result<BrokerUri, Refusal> {
        let is_no_text = || Refusal::Because("is not a text".to_owned());
        let uri = uri_of(given).ok_or_else(is_no_text)?;
        uri.map_err(|error| Refusal::Because(error.to_string()))
    }
}

/// The broker's URIs out of a text or a list of them; `None` if it is anything else.
pub(in crate::config) fn uri_of(given: &ValueKind) -> Option<Result<BrokerUri, UriError>> {
    match given {
        ValueKind::Array(entries) => {
            let texts = entries.iter().map(|entry| text_of(&entry.kind).ok());
            Some(BrokerUri::of_list(texts.collect::<Option<Vec<_>>>()?))
        }
        other => Some(text_of(other).ok()?.parse()),
    }
}

/// What the names of exchanges and queues begin with.
pub(in crate::config) struct TopologyPrefix;

impl Rule for TopologyPrefix {
    type Checked = String;

    fn allowed(&self) -> String {
        "1 to 32 of a-z, A-Z, 0-9, dot, underscore and hyphen, not beginning with \"amq.\" (RabbitMQ's own)".to_owned()
    }

    fn check(&self, given: &ValueKind) -> Result<String, Refusal> {
        let prefix = text_of(given)?;
        let fits = (1..=32).contains(&prefix.len())
            && prefix
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if fits && !prefix.starts_with("amq.") {
            Ok(prefix.to_owned())
        } else {
            Err(Refusal::Value)
        }
    }
}

/// Names of models, each once.
pub(in crate::config) struct ModelNames;

impl Rule for ModelNames {
    type Checked = Vec<String>;

    fn allowed(&self) -> String {
        format!("a list of model names, each once: {NAME_ALLOWED}")
    }

    fn check(&self, given: &ValueKind) -> Result<Vec<String>, Refusal> {
        let ValueKind::Array(entries) = given else {
            return Err(Refusal::Value);
        };
        let names: Vec<String> = entries
            .iter()
            .map(|entry| text_of(&entry.kind).map(str::to_owned))
            .collect::<Result<_, _>>()?;
        let mut seen = HashSet::new();
        match names.iter().find(|name| !is_name(name) || !seen.insert(name.as_str())) {
            Some(name) if is_name(name) => Err(Refusal::Because(format!("names {name:?} twice"))),
            Some(name) => Err(Refusal::Because(format!("holds {name:?}"))),
            None => Ok(names),
        }
    }
}

/// The device that models run on.
pub(in crate::config) struct DeviceRule;

impl Rule for DeviceRule {
    type Checked = Device;

    fn allowed(&self) -> String {
        Device::ALLOWED.to_owned()
    }

    fn check(&self, given: &ValueKind) -> Result<Device, Refusal> {
        text_of(given)?.parse().map_err(|_| Refusal::Value)
    }
}

/// What a worker is called.
pub(in crate::config) struct WorkerName;

impl Rule for WorkerName {
    type Checked = Option<String>;

    fn allowed(&self) -> String {
        "up to 128 printable characters".to_owned()
    }

    fn check(&self, given: &ValueKind) -> Result<Option<String>, Refusal> {
        let name = text_of(given)?;
        if name.chars().count() > 128 || name.chars().any(char::is_control) {
            return Err(Refusal::Value);
        }
        Ok((!name.is_empty()).then(|| name.to_owned()))
    }
}

/// An address to listen on, or nothing.
pub(in crate::config) struct OptionalAddress;

impl Rule for OptionalAddress {
    type Checked = Option<SocketAddr>;

    fn allowed(&self) -> String {
        "address:port such as \"0.0.0.0:9090\" or \"[::]:9090\", or \"\" for none".to_owned()
    }

    fn check(&self, given: &ValueKind) -> Result<Option<SocketAddr>, Refusal> {
        let address = text_of(given)?;
        if address.is_empty() {
            return Ok(None);
        }
        address.parse().map(Some).map_err(|_| Refusal::Value)
    }
}

/// The base address of an OpenTelemetry collector.
pub(in crate::config) struct OptionalCollector;

impl Rule for OptionalCollector {
    type Checked = Option<String>;

    fn allowed(&self) -> String {
        "http://host:port such as \"http://127.0.0.1:4318\", or \"\" for none".to_owned()
    }

    fn check(&self, given: &ValueKind) -> Result<Option<String>, Refusal> {
        let text = text_of(given)?;
        if text.is_empty() {
            return Ok(None);
        }
        if text.contains('@') {
            // Not quoted, since it may hold a password.
            return Err(Refusal::Because(
                "has a user in it; OTEL_EXPORTER_OTLP_HEADERS is for credentials".to_owned(),
            ));
        }
        let address: axum::http::Uri = text.parse().map_err(|_| Refusal::Value)?;
        if address.scheme_str() == Some("https") {
            return Err(Refusal::Because(
                "asks for encryption, which is up to a collector beside the worker".to_owned(),
            ));
        }
        let fits = address.scheme_str() == Some("http") && address.query().is_none() && !text.contains('#');
        if fits {
            Ok(Some(text.to_owned()))
        } else {
            Err(Refusal::Value)
        }
    }
}

/// What is logged, in the syntax of `tracing_subscriber::EnvFilter`.
pub(in crate::config) struct LogFilter;

impl Rule for LogFilter {
    type Checked = String;

    fn allowed(&self) -> String {
        "error, warn, info, debug, trace or off, alone or for parts of the program: \"warn,inferq=debug\"".to_owned()
    }

    fn check(&self, given: &ValueKind) -> Result<String, Refusal> {
        let filter = text_of(given)?;
        match EnvFilter::try_new(filter) {
            Ok(_) if !filter.is_empty() => Ok(filter.to_owned()),
            Ok(_) | Err(_) => Err(Refusal::Value),
        }
    }
}
