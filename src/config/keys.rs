//! Every key, declared once: the structs of [`Config`], the defaults, the check of unknown keys, `config show` and the
//! example file all come from the table in this file. How a value is checked is in `rule.rs`.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ::config::ValueKind;

use super::read::Reader;
use super::rule::{
    Count, DeviceRule, LogFilter, Milliseconds, ModelNames, OneOf, OptionalAddress, OptionalCollector, OptionalCount,
    OptionalPath, RequiredPath, Rule, TopologyPrefix, Uri, WholeNumber, WholeSeconds, WorkerName, YesOrNo,
};
use super::uri::BrokerUri;
use super::values::{Device, LogFormat, QueueType, TopologyMode, Unroutable};

/// A section of the file, such as `[broker]`.
#[derive(Debug)]
pub struct Section {
    pub name: &'static str,
    /// What the section is about, line by line.
    pub doc: &'static [&'static str],
    pub keys: &'static [Key],
}

/// A key of a section, such as `prefetch`.
#[derive(Debug)]
pub struct Key {
    pub section: &'static str,
    pub name: &'static str,
    /// Section and name, such as `broker.prefetch`.
    pub path: &'static str,
    /// What the key means, line by line.
    pub doc: &'static [&'static str],
    /// Why the default is what it is.
    pub reason: &'static str,
    /// True of a value that must never be shown as it is.
    pub secret: bool,
    pub(super) default: fn() -> ValueKind,
    allowed: fn() -> String,
}

impl Key {
    /// The environment variable that sets this key, such as `INFERQ_BROKER__PREFETCH`.
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}__{}", self.section, self.name).to_uppercase()
    }

    /// The value that holds if nobody says otherwise.
    pub fn default_value(&self) -> toml::Value {
        toml_of(&(self.default)())
    }

    /// What the key takes, in words.
    pub fn allowed(&self) -> String {
        (self.allowed)()
    }
}

/// Every key, in the order of the table.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    SECTIONS.iter().flat_map(|section| section.keys)
}

/// A value of a key as it stands in the file.
pub(super) fn toml_of(value: &ValueKind) -> toml::Value {
    match value {
        ValueKind::I64(number) => (*number).into(),
        ValueKind::Boolean(answer) => (*answer).into(),
        ValueKind::Array(entries) => entries
            .iter()
            .map(|entry| toml_of(&entry.kind))
            .collect::<Vec<_>>()
            .into(),
        other => other.to_string().into(),
    }
}

/// What the environment variables of this program begin with.
pub(super) const VARIABLE_PREFIX: &str = "INFERQ_";

/// A row reads `field: Type, "key" = default, Rule, "why this default";`, with `, secret` before the semicolon if so.
macro_rules! settings {
    ($(
        $(#[doc = $section_doc:literal])+
        $section:ident: $Section:ident {$(
            $(#[doc = $doc:literal])+
            $field:ident: $Type:ty, $key:literal = $default:expr, $rule:expr, $reason:literal $(, $secret:ident)?;
        )+}
    )+) => {
        /// The checked configuration. Past this point nobody validates a value again.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Config {
            $($(#[doc = $section_doc])+ pub $section: $Section,)+
        }

        impl Config {
            /// Reads every key; `None` if the reader holds faults afterwards.
            pub(super) fn read(reader: &mut Reader) -> Option<Self> {
                $(let $section = $Section::read(reader);)+
                Some(Self { $($section: $section?,)+ })
            }
        }

        $(
            $(#[doc = $section_doc])+
            #[derive(Debug, Clone, PartialEq, Eq)]
            pub struct $Section {
                $($(#[doc = $doc])+ pub $field: $Type,)+
            }

            impl $Section {
                fn read(reader: &mut Reader) -> Option<Self> {
                    // All are read before the first is missed, so that every fault is found.
                    $(let $field: Option<$Type> = reader.read(concat!(stringify!($section), ".", $key), &$rule);)+
                    Some(Self { $($field: $field?,)+ })
                }
            }
        )+

        /// Every section, in the order of the example file.
        pub static SECTIONS: &[Section] = &[$(
            Section {
                name: stringify!($section),
                doc: &[$($section_doc),+],
                keys: &[$(
                    Key {
                        section: stringify!($section),
                        name: $key,
                        path: concat!(stringify!($section), ".", $key),
                        doc: &[$($doc),+],
                        reason: $reason,
                        secret: is_secret!($($secret)?),
                        default: || ValueKind::from($default),
                        allowed: || $rule.allowed(),
                    },
                )+],
            },
        )+];
    };
}

macro_rules! is_secret {
    (secret) => {
        true
    };
    () => {
        false
    };
}

settings! {
    /// Where RabbitMQ is, and how this process talks to it.
    broker: BrokerConfig {
        /// Address and credentials of the broker; special characters in them are percent-encoded. A list, or several with commas
        /// between, are the nodes of a cluster: tried in turn from a random one on, and the next one as soon as one is lost.
        uri: BrokerUri, "uri" = "amqp://guest:guest@127.0.0.1:5672/%2f", Uri,
            "A broker fresh from its package listens here and lets this account in from the same machine only.", secret;
        /// A file that holds the URI instead, as a mounted secret does; read again at every connect.
        uri_file: Option<PathBuf>, "uri_file" = "", OptionalPath,
            "Only deployments that rotate their credentials need it.";
        /// A file that holds the user's name, in the place of the one in the URI; goes with `password_file`.
        username_file: Option<PathBuf>, "username_file" = "", OptionalPath,
            "Most URIs hold user and password; where a secret has both apart, nobody should have to build a URI of them.";
        /// A file that holds the password as it is, not percent-encoded; both are read again at every connect.
        password_file: Option<PathBuf>, "password_file" = "", OptionalPath,
            "A password is of use only with its user.";
        /// Certificate authorities (PEM) to trust with `amqps://`, instead of the system's.
        ca_file: Option<PathBuf>, "ca_file" = "", OptionalPath,
            "The system's authorities are right for a certificate that was bought.";
        /// Certificate (PEM) that this client shows to the broker; goes with `client_key_file`.
        client_certificate_file: Option<PathBuf>, "client_certificate_file" = "", OptionalPath,
            "Most brokers know their clients by password.";
        /// Private key (PEM) of that certificate.
        client_key_file: Option<PathBuf>, "client_key_file" = "", OptionalPath,
            "A key is of use only with its certificate.";
        /// Most deliveries the broker hands out ahead of their acks, for each consumer. Fewer are asked for where more would keep no
        /// engine busier, or could not be finished in half of `worker.drain_timeout_ms`.
        prefetch: u16, "prefetch" = 256, WholeNumber(1..=2_000_u16),
            "Four batches of 64 keep an engine busy while replies are being confirmed; a crash computes at most this many again.";
        /// How often both sides say that they are alive; two missed beats end the connection.
        heartbeat: Duration, "heartbeat_ms" = 10_000, WholeSeconds(1_000..=60_000),
            "A dead peer is noticed within 20 seconds, where the broker's own 60 would take two minutes.";
        /// How long one attempt to connect may take; several addresses share it.
        connect_timeout: Duration, "connect_timeout_ms" = 10_000, Milliseconds(100..=600_000),
            "A broker that answers later than this is not going to.";
        /// Longest pause between two attempts to connect; each pause is drawn at random below it.
        reconnect_max: Duration, "reconnect_max_ms" = 3_000, Milliseconds(10..=600_000),
            "Short enough that a restarted broker is found at once, long enough that a fleet does not storm it.";
    }

    /// The exchanges and queues, and who looks after them.
    topology: TopologyConfig {
        /// Name of the front door's exchange, and what the queues' names begin with.
        prefix: String, "prefix" = "inferq", TopologyPrefix,
            "One fleet a virtual host needs no other.";
        /// Whether a worker declares what is missing, only compares, or leaves it to others.
        mode: TopologyMode, "mode" = "declare", OneOf(TopologyMode::ALL),
            "A first start should need no preparation.";
        /// Type of the job queues.
        queue_type: QueueType, "queue_type" = "quorum", OneOf(QueueType::ALL),
            "Only quorum queues survive the loss of a node and count how often a job came back.";
        /// How often a job may come back before the broker takes it to the dead letters.
        delivery_limit: u32, "delivery_limit" = 10, WholeNumber(1..=10_000_u32),
            "Workers that are killed for unrelated reasons must not use it up; half of RabbitMQ's own 20 stops a killer job sooner.";
    }

    /// What is served.
    models: ModelsConfig {
        /// Folder of the models, `<name>/<version>/model.onnx`; relative to the working folder.
        repository: PathBuf, "repository" = "models", RequiredPath,
            "The folder beside the program.";
        /// Names of the models to serve; none means all. Separated by commas in the environment.
        load: Vec<String>, "load" = Vec::<String>::new(), ModelNames,
            "What lies in the repository is meant to be served.";
        /// Whether anything in the repository that cannot be served keeps the worker from starting, or from being ready, and one
        /// version that cannot be loaded its whole model from being served.
        strict: bool, "strict" = false, YesOrNo,
            "Repositories hold models of other servers and versions that are not finished; what is not served is reported.";
    }

    /// This process.
    worker: WorkerConfig {
        /// Inference threads for each model; 0: one on the CPU, two on a GPU.
        instances: Option<NonZeroUsize>, "instances" = 0, OptionalCount(1_024),
            "One thread keeps up with what one queue delivers of a small model; on a GPU one batch is copied while another computes.";
        /// Runs that go on at the same time, over all models; 0: as many as the process has cores. Models that wait for each other
        /// share the time, not the turns.
        threads: usize, "threads" = 0, WholeNumber(0..=1_024_usize),
            "More runs than cores only take the cores from each other, and from the broker's connections.";
        /// Where models run. A GPU that cannot be used keeps the worker from starting.
        device: Device, "device" = "cpu", DeviceRule,
            "Every machine has one.";
        /// Bytes that one inference thread may take on a GPU for weights and tensors; 0: all that is free.
        cuda_memory: Option<NonZeroUsize>, "cuda_memory_bytes" = 0, OptionalCount(1_099_511_627_776),
            "A worker alone on a GPU may have all of it; what several share has to be divided by somebody who knows them.";
        /// Whether a GPU may compute FP32 with the shorter numbers of its tensor cores (TF32).
        cuda_tf32: bool, "cuda_tf32" = false, YesOrNo,
            "It is several times faster, and changes results by about a thousandth.";
        /// Whether nodes of a model may run on the CPU where `device` is a GPU.
        cpu_fallback: bool, "cpu_fallback" = false, YesOrNo,
            "Whoever asks for a GPU should not get a slow worker in silence.";
        /// How long a stopping worker may take to finish the jobs in its hands; the rest goes back to the queue.
        drain_timeout: Duration, "drain_timeout_ms" = 25_000, Milliseconds(0..=3_600_000),
            "Long against any usual run, and below the grace period of Kubernetes, 30 s unless set.";
        /// How long one run of a model may take; then it is ended, and a job that is alone in it gets an error.
        run_timeout: Duration, "run_timeout_ms" = 60_000, Milliseconds(100..=600_000),
            "Runs take milliseconds to seconds; a minute says that one hangs, long before the broker takes its job away (30 min).";
        /// A job that came back so often is run in a process of its own, with a second copy of the model; 0: never.
        isolate_after: u32, "isolate_after" = 2, WholeNumber(0..=10_000_u32),
            "Workers end for many reasons; a job that was there twice is under suspicion, and its neighbours should not pay for it.";
        /// How long the worker lets deliveries, results and confirms gather while many jobs are in its hands; 0 turns it off.
        coalesce: Duration, "coalesce_ms" = 2, Milliseconds(0..=20),
            "Almost half of the CPU time a job is saved under load; with fewer than 16 jobs in hand nobody waits.";
        /// Name of this worker in logs, connections and dead letters; empty: host name and process id.
        name: Option<String>, "name" = "", WorkerName,
            "Host name and process id tell the workers of a fleet apart.";
    }

    /// How rows are put together.
    batch: BatchConfig {
        /// Most rows in one run; a bigger job runs in slices.
        rows_max: NonZeroUsize, "rows_max" = 64, Count(1..=65_536),
            "On a CPU nearly all that batching gains is gained by 64 rows, and a run stays short.";
        /// How long an idle engine waits for more rows.
        linger: Duration, "linger_ms" = 0, Milliseconds(0..=60_000),
            "What arrives during a run makes the next batch, so that waiting only adds latency.";
    }

    /// What one worker takes on at most.
    limits: LimitsConfig {
        /// Biggest body of a job; a bigger one is answered with an error.
        body_bytes_max: usize, "body_bytes_max" = 16_777_216, WholeNumber(1..=536_870_912_usize),
            "16 MiB is RabbitMQ's own limit for a message since 4.0.";
        /// Bytes that the bodies of all jobs in hand may take. Above it deliveries are read slowly, and bodies that come all the same
        /// take half as much again at most, or a single one of them more. On top come decoded JSON (at most 8 bytes a number), a batch for each engine, replies under way, and what the client and
        /// the allocator hold on to (some 60 MiB with bodies of 1 MiB).
        memory_bytes: usize, "memory_bytes" = 4_294_967_296_i64, WholeNumber(1..=1_099_511_627_776_usize),
            "What 256 of the biggest jobs take, so that even those fill a prefetch window; small jobs use little of it.";
    }

    /// How results go back.
    reply: ReplyConfig {
        /// What becomes of a reply whose queue is gone: kept with the dead letters, or dropped.
        unroutable: Unroutable, "unroutable" = "dead-letter", OneOf(Unroutable::ALL),
            "A result that nobody fetched should be found by somebody.";
        /// How long the broker may take to confirm a reply before the connection counts as lost.
        confirm_timeout: Duration, "confirm_timeout_ms" = 30_000, Milliseconds(100..=600_000),
            "A slow disk takes seconds; after half a minute no confirm will come any more.";
        /// How long a reply is kept for a queue that is there and not available: its node is down, or it has no leader.
        unavailable_max: Duration, "unavailable_max_ms" = 300_000, Milliseconds(0..=3_600_000),
            "A node restarts within minutes, and the broker's consumer timeout is half an hour.";
        /// Replies that are published and not yet confirmed, at most.
        unconfirmed_max: NonZeroUsize, "unconfirmed_max" = 1_024, Count(1..=65_536),
            "Room for several batches; more would cost time, because a confirm of several replies walks through all of these.";
    }

    /// What can be seen from outside.
    telemetry: TelemetryConfig {
        /// Address of `/metrics`, `/livez` and `/readyz`; empty turns them off.
        listen: Option<SocketAddr>, "listen" = "127.0.0.1:9090", OptionalAddress,
            "Seen from this machine only, until somebody opens it on purpose.";
        /// What is logged: a level, or levels for parts of the program (`warn,inferq=debug`).
        log: String, "log" = "info", LogFilter,
            "The lifecycle and what went wrong; single jobs are `debug`.";
        /// How log lines look.
        log_format: LogFormat, "log_format" = "text", OneOf(LogFormat::ALL),
            "People read it first; collectors ask for `json`.";
        /// Where traces go: an OpenTelemetry collector that takes OTLP over HTTP (protobuf). The path `/v1/traces` is added; only
        /// jobs whose `traceparent` says that they are sampled have a trace.
        otlp_endpoint: Option<String>, "otlp_endpoint" = "", OptionalCollector,
            "Most workers have no collector; without one nothing is recorded, and it costs nothing.";
    }
}
