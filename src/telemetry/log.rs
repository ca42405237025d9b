//! Logs, on standard error.
//!
//! A thread of its own writes them. Whoever reads them may fall asleep, or have no room left: then lines are dropped and
//! counted, and the jobs go on.

use std::io::IsTerminal as _;
use std::panic::PanicHookInfo;

use tracing::{Level, error};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogFormat, TelemetryConfig};

/// A log that is being written. Dropped, it writes what is left, for a second at most.
#[must_use = "a log that is dropped writes nothing any more"]
pub struct Log {
    _writing: WorkerGuard,
    /// Lines that nobody took in time.
    pub dropped: ErrorCounter,
}

/// Starts logging.
///
/// # Errors
/// `telemetry.log` is not a filter.
pub fn start(config: &TelemetryConfig) -> Result<Log, BadFilter> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", config.log)).map_err(|cause| BadFilter {
        filter: config.log.clone(),
        cause,
    })?;
    let (writer, writing) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_WAITING_MAX)
        .thread_name("log")
        .finish(std::io::stderr());
    let dropped = writer.error_counter();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // A second start in one process keeps the first's settings.
    let fit = filter_fn(|event| is_fit(event.target(), *event.level()));
    let _ = match config.log_format {
        LogFormat::Text => builder.finish().with(fit).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().with(fit).try_init(),
    };
    std::panic::set_hook(Box::new(panicked));
    Ok(Log {
        _writing: writing,
        dropped,
    })
}

/// A panic's own text may have been formatted from values of a job; one that stands in the source has not.
fn panicked(panic: &PanicHookInfo<'_>) {
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    let text = panic.payload().downcast_ref::<&'static str>().unwrap_or(&"");
    error!(at, "a panic, which is a mistake of this program: {text}");
}

/// Whether an event may be logged, whatever the configuration says: libraries show bodies, header tables and what was said
/// to log in from `debug` on, and some above it.
fn is_fit(target: &str, level: Level) -> bool {
    let of = |name: &str| {
        target
            .strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    of("inferq") || (level <= Level::INFO && !NEVER.into_iter().any(of))
}

/// `telemetry.log` is not a filter.
#[derive(Debug, thiserror::Error)]
#[error(
    "telemetry.log: `{filter}` is no log filter; allowed are a level or tracing's directives (`info,inferq=debug`)"
)]
pub struct BadFilter {
    filter: String,
    #[source]
    cause: tracing_subscriber::filter::ParseError,
}

/// Some megabytes at most, and minutes of what a worker says unless it is asked for every job.
const LINES_WAITING_MAX: usize = 8192;
/// Libraries that log errors which we log ourselves, with more to go by. Whoever wants their view asks for it.
const QUIET: &str = "lapin=off,ort=off";
/// They log a message's body, or values in it, as a warning.
const NEVER: [&str; 2] = ["lapin::returned_messages", "ort::logging"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_say_no_more_than_is_fit_and_two_of_them_nothing() {
        for (target, level, fit) in [
            ("inferq", Level::TRACE, true),
            ("inferq::worker::plan", Level::DEBUG, true),
            ("inferq_like", Level::DEBUG, false),
            ("lapin::channels", Level::INFO, true),
            ("lapin::channels", Level::DEBUG, false),
            ("rustls::client", Level::TRACE, false),
            ("lapin::returned_messages", Level::ERROR, false),
            ("ort::logging", Level::ERROR, false),
        ] {
            assert_eq!(is_fit(target, level), fit, "{target} {level}");
        }
    }
}
