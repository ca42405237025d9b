//! Puts the layers on top of each other, reads key by key, and collects what is wrong instead of stopping at it.

use ::config::builder::DefaultState;
use std::collections::HashMap;

use ::config::{Source, Value, ValueKind};

use super::keys::{Key, keys, toml_of};
use super::layer::Layer;
use super::rule::{Refusal, Rule, described, uri_of};
use super::{ConfigError, Fault, Setting};

/// The effective value of every key, and the faults so far.
pub(super) struct Reader {
    values: HashMap<&'static str, (&'static Key, Value)>,
    pub faults: Vec<Fault>,
}

impl Reader {
    /// Lays the layers on top of each other, the last on top.
    ///
    /// # Errors
    /// `ConfigError::Layers` if the library refuses a layer.
    pub fn new<const N: usize>(layers: [Layer; N]) -> Result<Self, ConfigError> {
        let faults = layers.iter().flat_map(|layer| layer.faults.clone()).collect();
        let builder = layers.into_iter().fold(
            ::config::Config::builder(),
            ::config::ConfigBuilder::<DefaultState>::add_source,
        );
        // Through `Source`, because that keeps each value's origin; deserialising does not.
        let sections = builder.build()?.collect()?;
        let value_of = |key: &Key| match &sections.get(key.section)?.kind {
            ValueKind::Table(section) => section.get(key.name).cloned(),
            _ => None,
        };
        Ok(Self {
            values: keys()
                .filter_map(|key| Some((key.path, (key, value_of(key)?))))
                .collect(),
            faults,
        })
    }

    /// Checks one value; a fault is kept, and `None` returned.
    pub fn read<R: Rule>(&mut self, path: &'static str, rule: &R) -> Option<R::Checked> {
        let (wrong, origin) = match self.values.get(path) {
            Some((key, value)) => match rule.check(&value.kind) {
                Ok(checked) => return Some(checked),
                Err(Refusal::Because(reason)) => (reason, origin_of(value)),
                Err(Refusal::Value) if key.secret => ("is something else".to_owned(), origin_of(value)),
                Err(Refusal::Value) => (format!("is {}", described(&value.kind)), origin_of(value)),
            },
            None => ("is missing".to_owned(), String::new()),
        };
        self.faults.push(Fault {
            key: path.to_owned(),
            wrong,
            allowed: format!("allowed is {}", rule.allowed()),
            origin,
        });
        None
    }

    /// Finds values that are well by themselves and not together.
    pub fn check_together(&mut self) {
        let found = [
            self.two_uris(),
            self.half_a_pair("broker.client_certificate_file", "broker.client_key_file"),
            self.half_a_pair("broker.client_key_file", "broker.client_certificate_file"),
            self.half_a_pair("broker.username_file", "broker.password_file"),
            self.half_a_pair("broker.password_file", "broker.username_file"),
            self.certificate_without_tls("broker.ca_file"),
            self.certificate_without_tls("broker.client_certificate_file"),
            self.body_above_memory(),
        ];
        self.faults.extend(found.into_iter().flatten());
    }

    /// What `config show` prints.
    pub fn settings(&self) -> Vec<Setting> {
        keys()
            .filter_map(|key| self.values.get(key.path))
            .map(|(key, value)| Setting {
                key,
                value: shown(key, &value.kind),
                origin: origin_of(value),
            })
            .collect()
    }

    fn two_uris(&self) -> Option<Fault> {
        // The example file holds the default: that is not a second address.
        let default = keys().find(|key| key.path == "broker.uri")?.default;
        let is_default = |(_, uri): &(_, Value)| uri.kind == default();
        let set = !self.text("broker.uri_file").is_empty() && !self.values.get("broker.uri").is_none_or(is_default);
        set.then(|| {
            self.fault(
                "broker.uri_file",
                "is set as well as broker.uri",
                "allowed is one of them",
                "broker.uri",
            )
        })
    }

    fn half_a_pair(&self, missing: &'static str, given: &'static str) -> Option<Fault> {
        let half = self.text(missing).is_empty() && !self.text(given).is_empty();
        half.then(|| {
            let wrong = format!("is not set, but {given} is");
            self.fault(missing, &wrong, "allowed are both or neither", given)
        })
    }

    fn certificate_without_tls(&self, path: &'static str) -> Option<Fault> {
        let from_file = !self.text("broker.uri_file").is_empty();
        let (_, uri) = self.values.get("broker.uri")?;
        let uri = uri_of(&uri.kind)?.ok()?;
        let pointless = !self.text(path).is_empty() && !from_file && !uri.is_tls();
        pointless.then(|| {
            let wrong = "is set, but broker.uri asks for no encryption";
            self.fault(
                path,
                wrong,
                "allowed is an amqps:// URI, or no certificate",
                "broker.uri",
            )
        })
    }

    fn body_above_memory(&self) -> Option<Fault> {
        let (body, memory) = ("limits.body_bytes_max", "limits.memory_bytes");
        let (body_bytes, memory_bytes) = (self.whole_number(body)?, self.whole_number(memory)?);
        (memory_bytes < body_bytes).then(|| {
            let allowed = format!("allowed is {body} ({body_bytes}) or more");
            self.fault(memory, &format!("is {memory_bytes}"), &allowed, body)
        })
    }

    /// A fault of the value at `path`, seen together with the one at `other`.
    fn fault(&self, path: &'static str, wrong: &str, allowed: &str, other: &'static str) -> Fault {
        Fault {
            key: path.to_owned(),
            wrong: wrong.to_owned(),
            allowed: allowed.to_owned(),
            origin: format!("{}; {other}: {}", self.origin(path), self.origin(other)),
        }
    }

    fn origin(&self, path: &str) -> String {
        self.values
            .get(path)
            .map_or_else(String::new, |(_, value)| origin_of(value))
    }

    fn text(&self, path: &str) -> &str {
        match self.values.get(path) {
            Some((
                _,
                Value {
                    kind: ValueKind::String(text),
                    ..
                },
            )) => text,
            _ => "",
        }
    }

    fn whole_number(&self, path: &str) -> Option<i64> {
        match self.values.get(path) {
            Some((
                _,
                Value {
                    kind: ValueKind::I64(number),
                    ..
                },
            )) => Some(*number),
            _ => None,
        }
    }
}

fn origin_of(value: &Value) -> String {
    value.origin().unwrap_or_default().to_owned()
}

fn shown(key: &Key, value: &ValueKind) -> toml::Value {
    if !key.secret {
        return toml_of(value);
    }
    match uri_of(value) {
        Some(Ok(uri)) => uri.to_string().into(),
        Some(Err(_)) | None => "***".into(),
    }
}
