//! Logs, on standard error.

use std::io::IsTerminal as _;

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
    Ok(())
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
