//! Logs, on standard error.

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, TelemetryConfig};

/// Starts logging.
///
/// # Errors
/// `telemetry.log` is not a filter.
pub fn start(config: &TelemetryConfig) -> Result<(), BadFilter> {
    let mut filter = EnvFilter::try_new(&config.log).map_err(|cause| BadFilter {
        filter: config.log.clone(),
        cause,
    })?;
    for directive in QUIET {
        if let Ok(directive) = directive.parse() {
            filter = filter.add_directive(directive);
        }
    }
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start in one process keeps the first's settings.
    let _ = match config.log_format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// `telemetry.log` is not a filter.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.log: `{filter}` is not a log filter; allowed are a level or tracing's directives, such as `info,inferq=debug`")]
pub struct BadFilter {
    filter: String,
    #[source]
    cause: tracing_subscriber::filter::ParseError,
}

/// What libraries would log that must not be: `lapin` writes each returned message with its body, and it and ONNX Runtime
/// log errors that we log ourselves, with more to go by.
const QUIET: [&str; 3] = ["lapin::returned_messages=error", "lapin=error", "ort=warn"];
