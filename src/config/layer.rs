//! The layers that values come from: defaults, file, environment, flags. Each holds known keys only, every value with
//! its origin; what a layer holds besides is a fault, with the nearest known name.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ::config::{Map, Source, Value, ValueKind};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Key, SECTIONS, VARIABLE_PREFIX, keys};
use super::names::{FILE_VARIABLE, is_reserved, unknown_key, unknown_variable};
use super::rule::described;
use super::{ConfigError, Fault};

/// The file that is taken from the working folder if none is named.
const FILE_BY_DEFAULT: &str = "inferq.toml";

/// What one place says.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    values: HashMap<&'static str, Value>,
    pub faults: Vec<Fault>,
}

impl Layer {
    pub fn of_defaults() -> Self {
        let origin = "default".to_owned();
        Self {
            values: keys()
                .map(|key| (key.path, Value::new(Some(&origin), (key.default)())))
                .collect(),
            faults: Vec::new(),
        }
    }

    /// # Errors
    /// `ConfigError` if the file is not there, cannot be read or is not TOML.
    pub fn of_file(file: &ConfigFile) -> Result<Self, ConfigError> {
        let path = &file.path;
        let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
            ErrorKind::NotFound => ConfigError::Missing {
                path: path.clone(),
                named_by: file.named_by,
            },
            _ => ConfigError::Unreadable {
                path: path.clone(),
                source,
            },
        })?;
        let table = DeTable::parse(&text).map_err(|error| ConfigError::NotToml {
            path: path.clone(),
            line: line_of(&text, error.span().map_or(0, |span| span.start)),
            // The message only: in full the error would quote the line, which may hold a password.
            reason: error.message().to_owned(),
        })?;
        let mut layer = Self::default();
        for (section, content) in table.get_ref() {
            let origin = Origin { path, text: &text };
            layer.take_section(section.get_ref(), section.span().start, content, &origin);
        }
        Ok(layer)
    }

    pub fn of_environment(environment: &[(OsString, OsString)]) -> Self {
        let variables: HashMap<String, &Key> = keys().map(|key| (key.variable(), key)).collect();
        let mut layer = Self::default();
        for (name, value) in environment {
            let (name, text) = (name.to_string_lossy(), value.to_str());
            if !name.starts_with(VARIABLE_PREFIX) || is_reserved(&name, value) {
                continue;
            }
            match (variables.get(&*name), text) {
                (Some(key), Some(text)) => layer.take_text(key, text, &name),
                (Some(_), None) => layer.faults.push(Fault {
                    key: name.into_owned(),
                    wrong: "is not UTF-8".to_owned(),
                    allowed: "allowed is text".to_owned(),
                    origin: "environment".to_owned(),
                }),
                (None, _) => layer.faults.push(unknown_variable(name.into_owned())),
            }
        }
        layer
    }

    pub fn of_flags(overrides: &[(&str, String)]) -> Self {
        let mut layer = Self::default();
        for (path, text) in overrides {
            match keys().find(|key| key.path == *path) {
                Some(key) => layer.take_text(key, text, "command line"),
                None => layer.faults.push(unknown_key(path, "command line".to_owned())),
            }
        }
        layer
    }

    fn take_section(&mut self, section: &str, position: usize, content: &Spanned<DeValue<'_>>, origin: &Origin<'_>) {
        let known = SECTIONS.iter().any(|known| known.name == section);
        let DeValue::Table(entries) = content.get_ref() else {
            self.faults.push(if known {
                Fault {
                    key: section.to_owned(),
                    wrong: format!("is {}", described(&value_of(content.get_ref()))),
                    allowed: format!("allowed is a section [{section}]"),
                    origin: origin.at(position),
                }
            } else {
                unknown_key(section, origin.at(position))
            });
            return;
        };
        if !known && entries.is_empty() {
            self.faults.push(unknown_key(section, origin.at(position)));
        }
        for (name, value) in entries {
            let path = format!("{section}.{}", name.get_ref());
            let origin = origin.at(name.span().start);
            match keys().find(|key| key.path == path) {
                Some(key) => {
                    let value = Value::new(Some(&origin), value_of(value.get_ref()));
                    self.values.insert(key.path, value);
                }
                None => self.faults.push(unknown_key(&path, origin)),
            }
        }
    }

    /// Takes a value that came as text. What it is meant to be is what the default is.
    fn take_text(&mut self, key: &'static Key, text: &str, origin: &str) {
        // No value begins or ends with white space, but files that end with a line feed become variables.
        let text = text.trim();
        let kind = match (key.default)() {
            ValueKind::I64(_) => text.parse().map_or_else(|_| ValueKind::from(text), ValueKind::I64),
            ValueKind::Boolean(_) => text.parse().map_or_else(|_| ValueKind::from(text), ValueKind::Boolean),
            ValueKind::Array(_) => {
                let entries = text.split(',').map(str::trim);
                ValueKind::from(entries.filter(|entry| !entry.is_empty()).collect::<Vec<_>>())
            }
            _ => ValueKind::from(text),
        };
        let value = Value::new(Some(&origin.to_owned()), kind);
        self.values.insert(key.path, value);
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ::config::ConfigError> {
        Ok(self
            .values
            .iter()
            .map(|(path, value)| ((*path).to_owned(), value.clone()))
            .collect())
    }
}

/// The file to read, and who wants it.
#[derive(Debug)]
pub(super) struct ConfigFile {
    pub path: PathBuf,
    named_by: &'static str,
}

impl ConfigFile {
    /// The first of: the file that was named, the one that `INFERQ_CONFIG` names, `inferq.toml` in `folder` if it is there.
    pub fn find(named: Option<&Path>, environment: &[(OsString, OsString)], folder: &Path) -> Option<Self> {
        if let Some(path) = named {
            return Some(Self {
                path: path.to_owned(),
                named_by: "the command line",
            });
        }
        let variable = environment.iter().find(|(name, _)| name == FILE_VARIABLE);
        if let Some((_, path)) = variable
            && !path.is_empty()
        {
            return Some(Self {
                path: path.into(),
                named_by: FILE_VARIABLE,
            });
        }
        let path = folder.join(FILE_BY_DEFAULT);
        path.exists().then_some(Self {
            path,
            named_by: "the working folder",
        })
    }
}

/// Where in the file something is.
struct Origin<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Origin<'_> {
    fn at(&self, position: usize) -> String {
        format!("{}, line {}", self.path.display(), line_of(self.text, position))
    }
}

fn line_of(text: &str, position: usize) -> usize {
    let before = &text.as_bytes()[..position.min(text.len())];
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

fn value_of(value: &DeValue<'_>) -> ValueKind {
    match value {
        DeValue::String(text) => ValueKind::from(text.as_ref()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| ValueKind::from(number.to_string()), ValueKind::I64),
        DeValue::Float(number) => number
            .as_str()
            .parse()
            .map_or_else(|_| ValueKind::from(number.as_str()), ValueKind::Float),
        DeValue::Boolean(answer) => ValueKind::Boolean(*answer),
        DeValue::Datetime(time) => ValueKind::from(time.to_string()),
        DeValue::Array(entries) => {
            let entries = entries.iter().map(|entry| value_of(entry.get_ref()));
            ValueKind::from(entries.collect::<Vec<_>>())
        }
        // No key is a table, so what is in it does not matter.
        DeValue::Table(_) => ValueKind::from(Map::<String, Value>::new()),
    }
}
