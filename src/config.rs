//! The configuration: one TOML file, every key also by environment (`INFERQ_BROKER__PREFETCH`), a few by flag.
//!
//! `config/keys.rs` declares every key once. `config/layer.rs` reads the places that values come from, `config/read.rs`
//! puts them on top of each other and checks them by the rules in `config/rule.rs`. Whoever holds a [`Config`] need not
//! check anything again. This is the only module that reads the environment.

mod keys;
mod layer;
mod login;
mod names;
mod read;
mod rule;
mod uri;
mod values;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

pub use keys::{
    BatchConfig, BrokerConfig, Config, Key, LimitsConfig, ModelsConfig, ReplyConfig, SECTIONS, Section,
    TelemetryConfig, TopologyConfig, WorkerConfig, keys,
};
use layer::{ConfigFile, Layer};
pub use login::{Login, LoginFileError};
use read::Reader;
pub use uri::{Address, BrokerUri, Secret, UriError, UriFileError};
pub use values::{Device, LogFormat, QueueType, TopologyMode, UnknownDevice, Unroutable};

impl Config {
    /// Reads defaults, file, environment and flags, each over the one before.
    ///
    /// The file is `file`, or else the one that `INFERQ_CONFIG` names, or else `inferq.toml` in the working folder if there
    /// is one. `overrides` are keys such as `broker.uri` with the text that a flag gave.
    /// # Errors
    /// `ConfigError`, with every fault there is.
    pub fn load(file: Option<&Path>, overrides: &[(&str, String)]) -> Result<Loaded, ConfigError> {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
        let environment = std::env::vars_os();
        Self::load_from(file, overrides, environment, Path::new(""))
    }

    /// [`Config::load`] with another environment and working folder than those of the process.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_from(
        file: Option<&Path>,
        overrides: &[(&str, String)],
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        folder: &Path,
    ) -> Result<Loaded, ConfigError> {
        let environment: Vec<(OsString, OsString)> = environment.into_iter().collect();
        let file = ConfigFile::find(file, &environment, folder);
        let of_file = file.as_ref().map(Layer::of_file).transpose()?;
        let (config, settings) = Self::checked([
            Layer::of_defaults(),
            of_file.unwrap_or_default(),
            Layer::of_environment(&environment),
            Layer::of_flags(overrides),
        ])?;
        Ok(Loaded {
            config,
            settings,
            file: file.map(|file| file.path),
        })
    }

    /// The defaults and these keys, from neither file nor environment: for a worker inside another program, and for tests.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_overrides(overrides: &[(&str, String)]) -> Result<Self, ConfigError> {
        Self::checked([Layer::of_defaults(), Layer::of_flags(overrides)]).map(|(config, _)| config)
    }

    fn checked<const N: usize>(layers: [Layer; N]) -> Result<(Self, Vec<Setting>), ConfigError> {
        let mut reader = Reader::new(layers)?;
        let config = Self::read(&mut reader);
        reader.check_together();
        match config {
            Some(config) if reader.faults.is_empty() => Ok((config, reader.settings())),
            _ => Err(ConfigError::Faults(Faults(reader.faults))),
        }
    }
}

impl WorkerConfig {
    /// What this worker calls itself: the configured name, or host name and process id.
    pub fn identity(&self) -> String {
        self.name.clone().unwrap_or_else(|| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let host = if host.trim().is_empty() { "worker" } else { host.trim() };
            format!("{host}-{}", std::process::id())
        })
    }
}

/// A configuration and where it came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    /// Every key with its effective value and its origin, in the order of the table; secrets are masked.
    pub settings: Vec<Setting>,
    /// The file that was read, if one was.
    pub file: Option<PathBuf>,
}

/// The effective value of one key, fit to be printed.
#[derive(Debug, Clone)]
pub struct Setting {
    pub key: &'static Key,
    pub value: toml::Value,
    /// `default`, file and line, the name of a variable, or `command line`.
    pub origin: String,
}

/// Why there is no configuration. Whatever it is, the exit code is 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("there is no configuration file {}, which {named_by} names", path.display())]
    Missing { path: PathBuf, named_by: &'static str },
    #[error("cannot read the configuration file {}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("the configuration file {} is not TOML from line {line} on: {reason}", path.display())]
    NotToml { path: PathBuf, line: usize, reason: String },
    #[error("{0}")]
    Faults(Faults),
    #[error("cannot put the sources of the configuration together")]
    Layers(#[from] ::config::ConfigError),
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.0.len() == 1 { "fault" } else { "faults" };
        write!(f, "the configuration has {} {noun}", self.0.len())?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key such as `broker.prefetch`, or the variable if it belongs to no key.
    pub key: String,
    /// What is wrong, worded to follow the key.
    pub wrong: String,
    /// What would be right.
    pub allowed: String,
    pub origin: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            wrong,
            allowed,
            origin,
        } = self;
        write!(f, "{key}: {wrong}, {allowed} ({origin})")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    const PASSWORD: &str = "s3cr%2Fet%40";

    #[test]
    fn a_later_layer_wins_over_an_earlier_one() {
        let folder = Folder::with("[batch]\nrows_max = 2\nlinger_ms = 2\n[broker]\nprefetch = 2\n");
        let environment = [("INFERQ_BATCH__LINGER_MS", "3"), ("INFERQ_BROKER__PREFETCH", "3")];
        let overrides = [("broker.prefetch", "4".to_owned())];

        let loaded = folder.load(&overrides, &environment).unwrap();

        assert_eq!(loaded.config.reply.unconfirmed_max.get(), 1_024);
        assert_eq!(loaded.config.batch.rows_max.get(), 2);
        assert_eq!(loaded.config.batch.linger, Duration::from_millis(3));
        assert_eq!(loaded.config.broker.prefetch, 4);
        assert_eq!(origin(&loaded, "reply.unconfirmed_max"), "default");
        assert_eq!(origin(&loaded, "batch.rows_max"), folder.line(2));
        assert_eq!(origin(&loaded, "batch.linger_ms"), "INFERQ_BATCH__LINGER_MS");
        assert_eq!(origin(&loaded, "broker.prefetch"), "command line");
        assert_eq!(loaded.file, Some(folder.file()));
    }

    #[test]
    fn every_fault_is_in_one_message_with_its_origin() {
        let folder = Folder::with(
            "[broker]\nprefetch = 2001\nheartbeat_ms = 1500\nprefech = 1\n\
             [topology]\nmode = true\nprefix = \"amq.x\"\n[worker]\ndevice = \"gpu\"\ncuda_tf32 = 1\n",
        );
        let environment = [
            ("INFERQ_BATCH__ROWS_MAX", "many"),
            ("INFERQ_BROKER_URI", "amqp://one-underscore"),
            ("INFERQ_LIMITS__MEMORY_BYTES", "2048"),
        ];
        let overrides = [("telemetry.listen", "localhost:9090".to_owned())];

        let message = folder.load(&overrides, &environment).unwrap_err().to_string();

        let faults = [
            format!(
                "broker.prefech: is not a key, did you mean broker.prefetch? ({})",
                folder.line(4)
            ),
            "INFERQ_BROKER_URI: is not a variable of this program, did you mean INFERQ_BROKER__URI? (environment)"
                .into(),
            format!(
                "broker.prefetch: is 2001, allowed is a whole number from 1 to 2000 ({})",
                folder.line(2)
            ),
            format!(
                "broker.heartbeat_ms: is 1500, allowed is a whole number of milliseconds from 1000 to 60000 in steps of 1000 ({})",
                folder.line(3)
            ),
            format!(
                "topology.prefix: is \"amq.x\", allowed is 1 to 32 of a-z, A-Z, 0-9, dot, underscore and hyphen, \
                 not beginning with \"amq.\" (RabbitMQ's own) ({})",
                folder.line(7)
            ),
            format!(
                "topology.mode: is true, allowed is \"declare\" or \"check\" or \"off\" ({})",
                folder.line(6)
            ),
            format!(
                "worker.device: is \"gpu\", allowed is \"cpu\", or \"cuda:N\" for the NVIDIA GPU of that number, such as \"cuda:0\" ({})",
                folder.line(9)
            ),
            format!("worker.cuda_tf32: is 1, allowed is true or false ({})", folder.line(10)),
            "batch.rows_max: is \"many\", allowed is a whole number from 1 to 65536 (INFERQ_BATCH__ROWS_MAX)".into(),
            "telemetry.listen: is \"localhost:9090\", allowed is address:port such as \"0.0.0.0:9090\" or \
             \"[::]:9090\", or \"\" for none (command line)"
                .into(),
            "limits.memory_bytes: is 2048, allowed is limits.body_bytes_max (16777216) or more \
             (INFERQ_LIMITS__MEMORY_BYTES; limits.body_bytes_max: default)"
                .into(),
        ];
        assert_eq!(
            message,
            format!("the configuration has 11 faults\n  {}", faults.join("\n  "))
        );
    }

    #[test]
    fn a_key_in_the_wrong_place_is_told_its_own() {
        let misplaced = [
            ("prefetch = 3", "prefetch", "broker.prefetch"),
            ("[batch]\nprefetch = 3", "batch.prefetch", "broker.prefetch"),
            ("[worker]\nlinger_ms = 3", "worker.linger_ms", "batch.linger_ms"),
            ("[brokr]\nuri = \"\"", "brokr.uri", "broker.uri"),
        ];
        for (text, given, meant) in misplaced {
            let faults = faults(&Folder::with(text).load(&[], &[]).unwrap_err());

            assert_eq!(faults.len(), 1, "{text}");
            assert_eq!(faults[0].key, given);
            assert_eq!(faults[0].allowed, format!("did you mean {meant}?"));
        }
    }

    #[test]
    fn what_resembles_no_key_is_sent_to_the_example() {
        let folder = Folder::with("broker = 3\n[nonsense]\n[[batch]]\nx = 1\n");

        let faults = faults(&folder.load(&[("x.y", String::new())], &[]).unwrap_err());

        let by_key = |key: &str| faults.iter().find(|fault| fault.key == key).unwrap();
        assert_eq!(faults.len(), 4);
        assert_eq!(
            by_key("broker").to_string(),
            format!("broker: is 3, allowed is a section [broker] ({})", folder.line(1))
        );
        assert_eq!(by_key("batch").wrong, "is [a section]");
        for key in ["nonsense", "x.y"] {
            assert_eq!(
                by_key(key).allowed,
                "allowed are those that `inferq config example` lists"
            );
        }
    }

    #[test]
    fn every_key_can_be_set_by_its_variable() {
        let samples = [
            ("broker.uri", "amqps://broker/%2f"),
            ("broker.uri_file", "/run/secrets/uri"),
            ("broker.username_file", "/run/secrets/username"),
            ("broker.password_file", "/run/secrets/password"),
            ("broker.ca_file", "/etc/ca.pem"),
            ("broker.client_certificate_file", "/etc/client.pem"),
            ("broker.client_key_file", "/etc/client.key"),
            ("broker.prefetch", "7"),
            ("broker.heartbeat_ms", "5000"),
            ("broker.connect_timeout_ms", "700"),
            ("broker.reconnect_max_ms", "700"),
            ("topology.prefix", "other"),
            ("topology.mode", "check"),
            ("topology.queue_type", "classic"),
            ("topology.delivery_limit", "7"),
            ("models.repository", "/models"),
            ("models.load", "seed, other"),
            ("models.strict", "true"),
            ("worker.instances", "7"),
            ("worker.threads", "7"),
            ("worker.device", "cuda:1"),
            ("worker.cuda_memory_bytes", "7000"),
            ("worker.cuda_tf32", "true"),
            ("worker.cpu_fallback", "true"),
            ("worker.run_timeout_ms", "700"),
            ("worker.isolate_after", "7"),
            ("worker.coalesce_ms", "3"),
            ("worker.drain_timeout_ms", "7"),
            ("worker.name", "seven"),
            ("batch.rows_max", "7"),
            ("batch.linger_ms", "7"),
            ("limits.body_bytes_max", "7000"),
            ("limits.memory_bytes", "70000000"),
            ("reply.unroutable", "discard"),
            ("reply.confirm_timeout_ms", "700"),
            ("reply.unavailable_max_ms", "900"),
            ("reply.unconfirmed_max", "7"),
            ("telemetry.listen", "[::]:0"),
            ("telemetry.log", "warn,inferq=debug"),
            ("telemetry.log_format", "json"),
            ("telemetry.otlp_endpoint", "http://collector:4318"),
        ];
        let paths: BTreeSet<&str> = samples.iter().map(|(path, _)| *path).collect();
        assert_eq!(paths, keys().map(|key| key.path).collect(), "a sample for each key");

        let defaults = Config::from_overrides(&[]).unwrap();
        for key in keys() {
            let sample = samples.iter().find(|(path, _)| *path == key.path).unwrap().1;
            let mut environment = vec![(key.variable(), sample.to_owned())];
            // These go together.
            if key.path.starts_with("broker.c") && key.path.ends_with("_file") {
                environment.push(("INFERQ_BROKER__URI".into(), "amqps://broker".into()));
            }
            match key.path {
                "broker.client_certificate_file" => {
                    environment.push(("INFERQ_BROKER__CLIENT_KEY_FILE".into(), "k".into()));
                }
                "broker.client_key_file" => {
                    environment.push(("INFERQ_BROKER__CLIENT_CERTIFICATE_FILE".into(), "c".into()));
                }
                "broker.username_file" => environment.push(("INFERQ_BROKER__PASSWORD_FILE".into(), "p".into())),
                "broker.password_file" => environment.push(("INFERQ_BROKER__USERNAME_FILE".into(), "u".into())),
                _ => {}
            }

            let loaded = load_only(&environment).unwrap();

            assert_eq!(origin(&loaded, key.path), key.variable());
            assert_ne!(loaded.config, defaults, "{}", key.path);
        }
        let loaded = load_only(&[("INFERQ_MODELS__LOAD".into(), " seed, other,".into())]).unwrap();
        assert_eq!(loaded.config.models.load, ["seed", "other"]);
    }

    #[test]
    fn contradictions_are_faults() {
        let contradictions: [(&[(&str, &str)], &str); 7] = [
            (
                &[("broker.uri", "amqp://other"), ("broker.uri_file", "/run/uri")],
                "broker.uri_file: is set as well as broker.uri, allowed is one of them (command line; broker.uri: command line)",
            ),
            (
                &[("broker.uri", "amqps://b"), ("broker.client_key_file", "/k")],
                "broker.client_certificate_file: is not set, but broker.client_key_file is, allowed are both or neither \
                 (default; broker.client_key_file: command line)",
            ),
            (
                &[("broker.uri", "amqps://b"), ("broker.client_certificate_file", "/c")],
                "broker.client_key_file: is not set, but broker.client_certificate_file is, allowed are both or neither \
                 (default; broker.client_certificate_file: command line)",
            ),
            (
                &[("broker.password_file", "/p")],
                "broker.username_file: is not set, but broker.password_file is, allowed are both or neither \
                 (default; broker.password_file: command line)",
            ),
            (
                &[("broker.username_file", "/u")],
                "broker.password_file: is not set, but broker.username_file is, allowed are both or neither \
                 (default; broker.username_file: command line)",
            ),
            (
                &[("broker.ca_file", "/ca")],
                "broker.ca_file: is set, but broker.uri asks for no encryption, allowed is an amqps:// URI, or no \
                 certificate (command line; broker.uri: default)",
            ),
            (
                &[("limits.memory_bytes", "16777215")],
                "limits.memory_bytes: is 16777215, allowed is limits.body_bytes_max (16777216) or more \
                 (command line; limits.body_bytes_max: default)",
            ),
        ];
        for (given, expected) in contradictions {
            let overrides: Vec<(&str, String)> = given.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();

            let error = Config::from_overrides(&overrides).unwrap_err();

            assert_eq!(faults(&error)[0].to_string(), expected);
            assert_eq!(faults(&error).len(), 1);
        }
    }

    #[test]
    fn the_uri_of_the_example_file_is_no_second_address() {
        let folder = Folder::with("[broker]\nuri = \"amqp://guest:guest@127.0.0.1:5672/%2f\"\n");

        let loaded = folder.load(&[], &[("INFERQ_BROKER__URI_FILE", "/run/uri")]);

        assert_eq!(loaded.unwrap().config.broker.uri_file, Some("/run/uri".into()));
    }

    #[test]
    fn the_edges_of_every_range_are_inside_it() {
        let edges = [
            ("broker.prefetch", 1, 2_000),
            ("broker.heartbeat_ms", 1_000, 60_000),
            ("worker.instances", 0, 1_024),
            ("worker.drain_timeout_ms", 0, 3_600_000),
            ("batch.rows_max", 1, 65_536),
            ("reply.unconfirmed_max", 1, 65_536),
        ];
        for (key, least, most) in edges {
            for (number, fits) in [(least - 1, false), (least, true), (most, true), (most + 1, false)] {
                let result = Config::from_overrides(&[(key, number.to_string())]);

                assert_eq!(result.is_ok(), fits, "{key} = {number}");
            }
        }
    }

    #[test]
    fn values_of_the_wrong_type_are_refused_in_the_file() {
        let wrong = [
            "[broker]\nprefetch = \"7\"",
            "[broker]\nprefetch = 7.0",
            "[broker]\nprefetch = 99999999999999999999",
            "[broker]\nuri_file = 7",
            "[broker]\nuri = [7]",
            "[broker]\nuri = []",
            "[models]\nload = \"seed\"",
            "[models]\nload = [7]",
            "[models]\nload = [\"see d\"]",
            "[models]\nload = [\"seed\", \"seed\"]",
            "[models]\nrepository = \"\"",
            "[telemetry]\nlog = \"inferq=loud\"",
            "[telemetry]\nlog = \"\"",
            "[worker]\nname = \"a\\nb\"",
            "[worker]\ncuda_tf32 = \"true\"",
            "[broker.prefetch]\nx = 1",
        ];
        for text in wrong {
            let error = Folder::with(text).load(&[], &[]).unwrap_err();

            assert_eq!(faults(&error).len(), 1, "{text}: {error}");
        }
    }

    #[test]
    fn secrets_never_show() {
        let good = Config::from_overrides(&[("broker.uri", format!("amqp://user:{PASSWORD}@broker/vhost"))]);
        let bad = [
            ("broker.uri", format!("http://user:{PASSWORD}@broker")),
            ("broker.uri", format!("amqp:user:{PASSWORD}@broker")),
            ("broker.uri_file", format!("amqp://user:{PASSWORD}@broker")),
        ];

        let mut shown = vec![format!("{:?}", good.unwrap())];
        for fault in bad {
            let error = Config::from_overrides(&[fault]).unwrap_err();
            shown.extend([format!("{error}"), format!("{error:?}")]);
        }
        let not_toml = [
            format!("[broker]\nuri = \"amqp://user:{PASSWORD}@broker\n"),
            format!("[broker]\nuri = amqp://user:{PASSWORD}@broker\n"),
            format!("[broker]\nuri \"amqp://user:{PASSWORD}@broker\"\n"),
            format!("[broker]\nuri = \"\"\nuri = \"amqp://user:{PASSWORD}@broker\"\n"),
        ];
        for text in not_toml {
            let error = Folder::with(&text).load(&[], &[]).unwrap_err();
            assert!(matches!(error, ConfigError::NotToml { .. }), "{error}");
            shown.extend([format!("{error}"), format!("{error:?}")]);
        }
        let misspelt = [("INFERQ_BROKER_URI".to_owned(), format!("amqp://user:{PASSWORD}@broker"))];
        shown.push(load_only(&misspelt).unwrap_err().to_string());

        for text in shown {
            assert!(!text.contains("s3cr"), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let folder = Folder::with("");
        let absent = folder.0.path().join("absent.toml");
        let environment = [("INFERQ_CONFIG".to_owned(), absent.display().to_string())];

        let by_flag = Config::load_from(Some(&absent), &[], pairs(&[]), folder.0.path()).unwrap_err();
        let by_variable = load_only(&environment).unwrap_err();
        let nobody = load_only(&[("INFERQ_CONFIG".to_owned(), String::new())]).unwrap();

        let absent = absent.display();
        assert_eq!(
            by_flag.to_string(),
            format!("there is no configuration file {absent}, which the command line names")
        );
        assert_eq!(
            by_variable.to_string(),
            format!("there is no configuration file {absent}, which INFERQ_CONFIG names")
        );
        assert_eq!(nobody.file, None);
    }

    #[test]
    fn a_file_that_is_not_toml_is_one_sentence_with_the_line() {
        let folder = Folder::with("[broker]\nprefetch = 7\nuri = amqp://b\n");

        let message = folder.load(&[], &[]).unwrap_err().to_string();

        let path = folder.file();
        assert!(
            message.starts_with(&format!(
                "the configuration file {} is not TOML from line 3 on: ",
                path.display()
            )),
            "{message}"
        );
        assert!(!message.contains('\n'), "{message}");
    }

    #[test]
    fn variables_that_are_no_settings_are_left_alone() {
        let environment = [
            ("PATH", "/bin"),
            ("INFERQ_TEST_RABBITMQ", "/opt/server"),
            ("INFERQ_SERVICE_HOST", "10.0.0.1"),
            ("INFERQ_SERVICE_PORT_METRICS", "9090"),
            ("INFERQ_PORT", "tcp://10.0.0.1:9090"),
            ("INFERQ_METRICS_PORT_9090_TCP_ADDR", "10.0.0.1"),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));

        let loaded = load_only(&environment).unwrap();

        assert_eq!(loaded.config, Config::from_overrides(&[]).unwrap());
    }

    #[test]
    fn a_worker_without_a_name_takes_that_of_its_process() {
        let mut worker = Config::from_overrides(&[]).unwrap().worker;

        let own = worker.identity();
        worker.name = Some("seven".to_owned());

        assert!(own.ends_with(&format!("-{}", std::process::id())), "{own}");
        assert_eq!(worker.identity(), "seven");
    }

    /// A working folder with an `inferq.toml`.
    struct Folder(tempfile::TempDir);

    impl Folder {
        fn with(text: &str) -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            std::fs::write(folder.file(), text).unwrap();
            folder
        }

        fn file(&self) -> PathBuf {
            self.0.path().join("inferq.toml")
        }

        fn line(&self, line: usize) -> String {
            format!("{}, line {line}", self.file().display())
        }

        fn load(&self, overrides: &[(&str, String)], environment: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
            let environment: Vec<(String, String)> = environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            Config::load_from(None, overrides, pairs(&environment), self.0.path())
        }
    }

    fn load_only(environment: &[(String, String)]) -> Result<Loaded, ConfigError> {
        let empty = tempfile::tempdir().unwrap();
        Config::load_from(None, &[], pairs(environment), empty.path())
    }

    fn pairs(environment: &[(String, String)]) -> Vec<(OsString, OsString)> {
        environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }

    fn origin<'a>(loaded: &'a Loaded, path: &str) -> &'a str {
        let setting = loaded.settings.iter().find(|setting| setting.key.path == path);
        &setting.unwrap().origin
    }

    fn faults(error: &ConfigError) -> Vec<Fault> {
        match error {
            ConfigError::Faults(faults) => faults.0.clone(),
            other => panic!("{other}"),
        }
    }
}
