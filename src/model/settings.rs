//! `model.toml`: what the owner of a model says about it beyond its ONNX graph. Every key is optional.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::batching::Wish;
use super::digest::Digest;
use crate::config::Device;

/// The contents of one `model.toml`, checked. `Settings::default()` is a model without that file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// Most rows in one run; `None`: what the worker is configured to.
    pub rows_max: Option<NonZeroUsize>,
    /// Engines, each with a thread of its own; `None`: what the worker is configured to.
    pub instances: Option<NonZeroUsize>,
    /// Whether rows of several jobs share a run; `None`: found out when the model is loaded.
    pub batching: Option<bool>,
    /// `None`: what the worker is configured to.
    pub device: Option<Device>,
    /// Names of the classes, in the order of the model's output.
    pub labels: Vec<String>,
    /// The versions to serve, ascending; `None`: all that are there.
    pub versions: Option<Vec<u64>>,
    /// Stated digests of `model.onnx`, by version.
    pub digests: BTreeMap<u64, Digest>,
    /// Not of this file but of Triton's `config.pbtxt`, if there is one: most rows in one run, 0 for no batching.
    pub max_batch_size: Option<usize>,
}

impl Settings {
    /// Reads the text of a `model.toml`.
    /// # Errors
    /// Every fault of the file at once, so that it is corrected once.
    pub fn parse(text: &str) -> Result<Self, SettingsFaults> {
        // Key by key instead of one `Deserialize`, which would stop at the first fault.
        let table: Table = toml::from_str(text).map_err(|error| SettingsFaults(vec![SettingsFault::Syntax(error)]))?;
        let mut settings = Self::default();
        let mut faults = Vec::new();
        for (key, value) in table {
            if let Err(fault) = settings.set(&key, value, &mut faults) {
                faults.push(fault);
            }
        }
        if faults.is_empty() {
            Ok(settings)
        } else {
            Err(SettingsFaults(faults))
        }
    }

    /// Whether rows of several jobs share a run, as far as the owner says.
    pub fn wish(&self) -> Wish {
        match (self.batching, self.max_batch_size) {
            (None, Some(0)) => Wish::Alone("config.pbtxt says max_batch_size = 0"),
            (batching, _) => batching.into(),
        }
    }

    /// Most rows in one run, where the worker is configured to `configured`.
    pub fn rows_max(&self, configured: NonZeroUsize) -> NonZeroUsize {
        let rows_max = self.rows_max.unwrap_or(configured);
        let bound = self.max_batch_size.and_then(NonZeroUsize::new);
        bound.map_or(rows_max, |bound| rows_max.min(bound))
    }

    fn set(&mut self, key: &str, value: Value, faults: &mut Vec<SettingsFault>) -> Result<(), SettingsFault> {
        match key {
            "rows_max" => self.rows_max = Some(count(key, value, ROWS_MAX_MAX)?),
            "instances" => self.instances = Some(count(key, value, INSTANCES_MAX)?),
            "batching" => self.batching = Some(typed(key, value, "true or false")?),
            "device" => self.device = Some(device(key, &value)?),
            "labels" => self.labels = typed(key, value, "a list of strings")?,
            "versions" => self.versions = Some(versions(key, value)?),
            "digests" => self.digests = digests(key, value, faults)?,
            _ => {
                return Err(SettingsFault::UnknownKey { key: key.to_owned() });
            }
        }
        Ok(())
    }
}

fn typed<T: DeserializeOwned>(key: &str, value: Value, allowed: &'static str) -> Result<T, SettingsFault> {
    let shown = value.to_string();
    value.try_into().map_err(|_| not_allowed(key, shown, allowed))
}

fn count(key: &str, value: Value, max: usize) -> Result<NonZeroUsize, SettingsFault> {
    let shown = value.to_string();
    let count = value.try_into().ok().filter(|count: &NonZeroUsize| count.get() <= max);
    count.ok_or_else(|| SettingsFault::Count {
        key: key.to_owned(),
        value: shown,
        max,
    })
}

fn device(key: &str, value: &Value) -> Result<Device, SettingsFault> {
    let named = value.as_str().and_then(|text| text.parse().ok());
    named.ok_or_else(|| not_allowed(key, value.to_string(), Device::ALLOWED))
}

fn versions(key: &str, value: Value) -> Result<Vec<u64>, SettingsFault> {
    let allowed = "a list of one or more whole numbers from 1 on, none twice, such as [1, 2]";
    let shown = value.to_string();
    let mut versions: Vec<u64> = typed(key, value, allowed)?;
    versions.sort_unstable();
    let twice = versions.windows(2).any(|pair| pair[0] == pair[1]);
    if versions.is_empty() || versions[0] == 0 || twice {
        return Err(not_allowed(key, shown, allowed));
    }
    Ok(versions)
}

fn digests(key: &str, value: Value, faults: &mut Vec<SettingsFault>) -> Result<BTreeMap<u64, Digest>, SettingsFault> {
    let stated: Table = typed(key, value, "a table [digests] of version = \"sha256:...\"")?;
    let mut digests = BTreeMap::new();
    for (version, digest) in stated {
        let key = format!("digests.{version}");
        match (parse_version(&version), digest.as_str().map(str::parse)) {
            (Some(version), Some(Ok(digest))) => {
                digests.insert(version, digest);
            }
            (None, _) => faults.push(SettingsFault::DigestOfNoVersion { key }),
            (Some(_), _) => faults.push(not_allowed(&key, digest.to_string(), DIGEST_ALLOWED)),
        }
    }
    Ok(digests)
}

/// A version as it stands in a folder's name or a key: digits without a leading zero.
///
/// # Source
/// Triton's model repository: folders that are not numbers, or start with zero, are not versions.
pub fn parse_version(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain)
}

fn not_allowed(key: &str, value: String, allowed: &'static str) -> SettingsFault {
    SettingsFault::NotAllowed {
        key: key.to_owned(),
        value,
        allowed,
    }
}

/// Everything that is wrong with one `model.toml`.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct SettingsFaults(pub Vec<SettingsFault>);

/// One thing that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum SettingsFault {
    #[error("not TOML: {}", .0.to_string().trim_end())]
    Syntax(toml::de::Error),
    #[error("{key}: unknown key, allowed are {}", KEYS.join(", "))]
    UnknownKey { key: String },
    #[error("{key}: is {value}, allowed is {allowed}")]
    NotAllowed {
        key: String,
        value: String,
        allowed: &'static str,
    },
    #[error("{key}: is {value}, allowed is a whole number from 1 to {max}")]
    Count { key: String, value: String, max: usize },
    #[error("{key}: the key must be a version, a whole number from 1 on such as \"1\"")]
    DigestOfNoVersion { key: String },
}

const KEYS: [&str; 7] = [
    "rows_max",
    "instances",
    "batching",
    "device",
    "labels",
    "versions",
    "digests",
];
/// A run of a million rows is a typing error: it would pin its memory for good.
const ROWS_MAX_MAX: usize = 1 << 20;
/// Every instance is a thread with its own session; no machine has so many cores for one model.
const INSTANCES_MAX: usize = 1024;
const DIGEST_ALLOWED: &str = "\"sha256:\" and 64 hexadecimal digits, as `sha256sum model.onnx` prints them";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let text = format!(
            r#"
            rows_max = 64
            instances = 2
            batching = false
            device = "cuda:1"
            labels = ["cat", "dog"]
            versions = [3, 1]
            [digests]
            "1" = "{digest}"
            "#
        );

        let settings = Settings::parse(&text).unwrap();

        let expected = Settings {
            rows_max: NonZeroUsize::new(64),
            instances: NonZeroUsize::new(2),
            batching: Some(false),
            device: Some(Device::Cuda(1)),
            labels: vec!["cat".into(), "dog".into()],
            versions: Some(vec![1, 3]),
            digests: BTreeMap::from([(1, digest.parse().unwrap())]),
            max_batch_size: None,
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn an_empty_file_says_nothing() {
        assert_eq!(Settings::parse("").unwrap(), Settings::default());
    }

    #[test]
    fn all_faults_are_named_at_once_with_what_is_allowed() {
        let text = r#"
            rows_max = 0
            instances = -1
            batching = "yes"
            device = "tpu"
            labels = [1]
            versions = [1, 1]
            batch_size = 3
            [digests]
            one = "sha256:00"
            "1" = "00"
        "#;

        let faults = Settings::parse(text).unwrap_err();

        let sentence = faults.to_string();
        for expected in [
            "rows_max: is 0, allowed is a whole number from 1 to 1048576",
            "instances: is -1, allowed is a whole number from 1 to 1024",
            "batching: is \"yes\", allowed is true or false",
            "device: is \"tpu\", allowed is \"cpu\", or \"cuda:N\" for the NVIDIA GPU",
            "labels: is [1], allowed is a list of strings",
            "versions: is [1, 1], allowed is a list of one or more whole numbers",
            "batch_size: unknown key, allowed are rows_max, instances",
            "digests.one: the key must be a version",
            "digests.1: is \"00\", allowed is \"sha256:\" and 64 hexadecimal digits",
        ] {
            assert!(sentence.contains(expected), "{expected} not in {sentence}");
        }
        assert_eq!(faults.0.len(), 9);
    }

    #[test]
    fn a_number_far_too_large_is_refused() {
        for text in [
            "rows_max = 1048577",
            "instances = 1025",
            "rows_max = 9223372036854775807",
        ] {
            assert!(Settings::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn versions_start_at_one_and_are_not_empty() {
        for text in [
            "versions = []",
            "versions = [0]",
            "versions = [-1]",
            "versions = [1.5]",
            "versions = 1",
        ] {
            assert!(Settings::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn text_that_is_no_toml_is_refused_with_its_place() {
        let error = Settings::parse("rows_max = \n").unwrap_err().to_string();

        assert!(error.contains("line 1"), "{error}");
    }

    #[test]
    fn a_version_is_a_plain_number_without_leading_zero() {
        assert_eq!(parse_version("1"), Some(1));
        assert_eq!(parse_version("20231"), Some(20231));
        for text in ["", "0", "01", "+1", "-1", "1.0", "v1", "99999999999999999999"] {
            assert_eq!(parse_version(text), None, "{text}");
        }
    }

    #[test]
    fn a_batch_size_of_triton_bounds_the_rows_and_0_means_none() {
        let of = |text: &str, max_batch_size| Settings {
            max_batch_size: Some(max_batch_size),
            ..Settings::parse(text).unwrap()
        };
        let configured = NonZeroUsize::new(64).unwrap();

        assert_eq!(of("", 8).rows_max(configured).get(), 8);
        assert_eq!(of("", 128).rows_max(configured).get(), 64);
        assert_eq!(of("rows_max = 128", 256).rows_max(configured).get(), 128);
        assert_eq!(of("", 0).rows_max(configured).get(), 64);
        assert_eq!(of("", 8).wish(), Wish::None);
        assert_eq!(of("", 0).wish(), Wish::Alone("config.pbtxt says max_batch_size = 0"));
        assert_eq!(of("batching = true", 0).wish(), Wish::Batched);
    }
}
