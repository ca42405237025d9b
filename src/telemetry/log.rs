//! Logs, on standard error.

use std::io::IsTerminal as _;
use std::panic::PanicHookInfo;

use tracing::error;
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, TelemetryConfig};

/// Starts logging.
///
/// # Errors
/// `telemetry.log` is not a filter.
pub fn start(config: &TelemetryConfig) -> Result<(), BadFilter> {
    let mut filter = EnvFilter::try_new(format!("{QUIET},{}", config.log)).map_err(|cause| BadFilter {
        filter: config.log.clone(),
        cause,
    })?;
    for never in NEVER {
        if let Ok(never) = never.parse() {
            filter = filter.add_directive(never);
        }
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // A second start in one process keeps the first's settings.
    let _ = match config.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    std::panic::set_hook(Box::new(panicked));
    Ok(())
}

/// A panic's own text may have been formatted from values of a job; one that stands in the source has not.
fn panicked(panic: &PanicHookInfo<'_>) {
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    let text = panic.payload().downcast_ref::<&'static str>().unwrap_or(&"");
    error!(at, "a panic, which is a mistake of this program: {text}");
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

/// Libraries that log errors which we log ourselves, with more to go by. Whoever wants their view asks for it.
const QUIET: &str = "lapin=off,ort=off";
/// Logs of a message's body, or of values in it, whatever the configuration says.
const NEVER: [&str; 2] = ["lapin::returned_messages=off", "ort::logging=off"];
