//! Why a job is not answered with a result, and how any error is shown.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::wire::error::WireError;
use crate::wire::headers::HeaderError;
use crate::wire::reply_address::AddressError;
use crate::wire::status::Status;

/// Why a job gets an error reply. The text is that reply's: it names the field, what came and what is allowed, and
/// never holds a value of the payload.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("body: {bytes} bytes came, at most {max} are allowed (limits.body_bytes_max)")]
    BodyTooLarge { bytes: usize, max: usize },
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error(transparent)]
    ReplyTo(#[from] AddressError),
    #[error("inputs: {came} came, model `{model}` takes {takes}")]
    InputCount { came: usize, model: String, takes: String },
    #[error("inputs[{index}]: there is no input `{name}`, model `{model}` takes {takes}")]
    InputName {
        index: usize,
        name: String,
        model: String,
        takes: String,
    },
    #[error("inputs[{index}]: input `{name}` came twice")]
    InputTwice { index: usize, name: String },
    #[error("inputs[{index}]: a name is needed, since model `{model}` takes {takes}")]
    InputUnnamed { index: usize, model: String, takes: String },
    #[error("input `{input}`: shape {came} came, the model takes {takes}")]
    Shape { input: String, came: String, takes: String },
    #[error("input `{input}`: no rows came, at least one is needed")]
    NoRows { input: String },
    #[error("input `{input}`: {rows} rows came in a body of {bytes} bytes; a row has at least one byte")]
    RowsWithoutData { input: String, rows: usize, bytes: usize },
    #[error(
        "input `{input}`: {came} rows came where input `{other}` has {rows}; all inputs of a job have the same rows"
    )]
    Rows {
        input: String,
        came: usize,
        other: String,
        rows: usize,
    },
    #[error("input `{input}`: an element that is {what} came; the model's strings are UTF-8 without NUL")]
    Text { input: String, what: &'static str },
    #[error("outputs[{index}]: there is no output `{name}`, model `{model}` gives {gives}")]
    OutputName {
        index: usize,
        name: String,
        model: String,
        gives: String,
    },
    #[error(
        "the reply would have {bytes} bytes, at most {max} are allowed (limits.body_bytes_max); send fewer rows a job"
    )]
    ReplyTooLarge { bytes: usize, max: usize },
    #[error("model `{model}` has no version `{version}` here; served are {served}")]
    Version {
        model: String,
        version: String,
        served: String,
    },
    #[error("version `{version}` of model `{model}` cannot be served here; the job waits for a worker that has it")]
    VersionElsewhere { model: String, version: String },
    #[error("the deadline had passed {late_ms} ms before the job could run{}", seconds_hint(*late_ms))]
    Deadline { late_ms: u128 },
    #[error("the deadline is {left:.1?} away, and a run of this job takes some {estimate:.1?}; it was not run")]
    OutOfReach { left: Duration, estimate: Duration },
    #[error("{0}")]
    Failed(String),
    #[error("the broker does not take the reply: {said}; send fewer rows a job, or raise the broker's limit")]
    ReplyRefused { said: String },
    #[error("the job was delivered {deliveries} times without an answer; it is not tried again")]
    Exhausted { deliveries: u64 },
    #[error("{0}")]
    Unavailable(String),
    #[error("the worker panicked while {doing}, which is a mistake of the worker")]
    Panicked { doing: &'static str },
}

impl JobError {
    /// Does a piece of work for one job. Should it panic, that costs this job its answer and nobody else anything.
    ///
    /// # Errors
    /// Those of the work, or `Panicked`.
    pub fn contain<T>(doing: &'static str, work: impl FnOnce() -> Result<T, Self>) -> Result<T, Self> {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(Self::Panicked { doing }))
    }

    /// The `inferq-status` that the error stands for; what becomes of the job follows from it.
    pub fn status(&self) -> Status {
        match self {
            Self::Wire(_)
            | Self::BodyTooLarge { .. }
            | Self::Header(_)
            | Self::ReplyTo(_)
            | Self::InputCount { .. }
            | Self::InputName { .. }
            | Self::InputTwice { .. }
            | Self::InputUnnamed { .. }
            | Self::Shape { .. }
            | Self::NoRows { .. }
            | Self::RowsWithoutData { .. }
            | Self::Rows { .. }
            | Self::Text { .. }
            | Self::OutputName { .. }
            | Self::ReplyTooLarge { .. } => Status::InvalidArgument,
            Self::Version { .. } => Status::NotFound,
            Self::Deadline { .. } | Self::OutOfReach { .. } => Status::DeadlineExceeded,
            Self::Failed(_) | Self::ReplyRefused { .. } | Self::Exhausted { .. } | Self::Panicked { .. } => {
                Status::Internal
            }
            Self::Unavailable(_) | Self::VersionElsewhere { .. } => Status::Unavailable,
        }
    }
}

/// A deadline that long ago is a recent one in the wrong unit.
const fn seconds_hint(late_ms: u128) -> &'static str {
    const YEARS_30_MS: u128 = 30 * 365 * 24 * 3600 * 1000;
    if late_ms < YEARS_30_MS {
        return "";
    }
    "; it counts milliseconds since 1970-01-01 UTC, not seconds"
}

/// An error and its causes on one line, as `what failed: because of this: because of that`.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // Some libraries repeat the cause in their own text.
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Encoding;
    use crate::wire::reply_address;
    use crate::wire::request::decode_request;

    fn text(value: &str) -> String {
        value.to_owned()
    }

    /// One of each kind that the sender must mend, in the order of the enum.
    fn invalid_arguments() -> Vec<JobError> {
        let wire = decode_request(&Encoding::Json, "[".into()).unwrap_err();
        vec![
            JobError::Wire(wire),
            JobError::BodyTooLarge { bytes: 9, max: 8 },
            JobError::Header(HeaderError {
                header: "inferq-deadline",
                came: "a string",
                allowed: "a long",
            }),
            JobError::ReplyTo(reply_address::queue("/exchanges/e").unwrap_err()),
            JobError::InputCount {
                came: 2,
                model: text("pair"),
                takes: text("`x`"),
            },
            JobError::InputName {
                index: 0,
                name: text("z"),
                model: text("pair"),
                takes: text("`x`"),
            },
            JobError::InputTwice {
                index: 1,
                name: text("x"),
            },
            JobError::InputUnnamed {
                index: 0,
                model: text("pair"),
                takes: text("`x`"),
            },
            JobError::Shape {
                input: text("x"),
                came: text("[1]"),
                takes: text("[batch,2]"),
            },
            JobError::NoRows { input: text("x") },
            JobError::RowsWithoutData {
                input: text("x"),
                rows: 9,
                bytes: 8,
            },
            JobError::Rows {
                input: text("x"),
                came: 2,
                other: text("z"),
                rows: 3,
            },
            JobError::Text {
                input: text("x"),
                what: "not UTF-8",
            },
            JobError::OutputName {
                index: 0,
                name: text("z"),
                model: text("pair"),
                gives: text("`y`"),
            },
            JobError::ReplyTooLarge { bytes: 9, max: 8 },
        ]
    }

    fn every_error() -> Vec<(JobError, Status)> {
        let others = [
            (
                JobError::Version {
                    model: text("pair"),
                    version: text("9"),
                    served: text("`1`"),
                },
                Status::NotFound,
            ),
            (JobError::Deadline { late_ms: 5 }, Status::DeadlineExceeded),
            (
                JobError::OutOfReach {
                    left: Duration::from_millis(5),
                    estimate: Duration::from_millis(7),
                },
                Status::DeadlineExceeded,
            ),
            (JobError::Failed(text("the model failed")), Status::Internal),
            (JobError::ReplyRefused { said: text("too big") }, Status::Internal),
            (JobError::Exhausted { deliveries: 10 }, Status::Internal),
            (JobError::Unavailable(text("no memory")), Status::Unavailable),
            (JobError::Panicked { doing: "reading" }, Status::Internal),
        ];
        let invalid = invalid_arguments()
            .into_iter()
            .map(|error| (error, Status::InvalidArgument));
        invalid.chain(others).collect()
    }

    #[test]
    fn every_error_has_the_status_of_the_table() {
        for (error, status) in every_error() {
            assert_eq!(error.status(), status, "{error}");
        }
    }

    #[test]
    fn a_deadline_in_seconds_is_told_its_unit() {
        let text = |late_ms| JobError::Deadline { late_ms }.to_string();

        assert!(text(1_762_000_000_000).ends_with("milliseconds since 1970-01-01 UTC, not seconds"));
        assert!(text(86_400_000).ends_with("before the job could run"));
    }

    #[test]
    fn a_panic_becomes_the_error_of_its_job() {
        let good = JobError::contain("counting", || Ok(7));
        let bad = JobError::contain::<()>("counting", || panic!("on purpose, for the test"));

        assert!(matches!(good, Ok(7)));
        assert!(bad.unwrap_err().to_string().contains("panicked while counting"));
    }

    #[test]
    fn every_error_is_one_line_that_says_something() {
        for (error, _) in every_error() {
            let text = error.to_string();

            assert!(text.len() > 8 && !text.contains('\n'), "{text:?}");
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let (text, causes) = texts.split_first().unwrap();
        Layer {
            text,
            source: (!causes.is_empty()).then(|| Box::new(layers(causes))),
        }
    }

    #[test]
    fn a_chain_names_every_cause_once() {
        assert_eq!(
            chain(&layers(&["no connection", "tls", "expired"])),
            "no connection: tls: expired"
        );
        assert_eq!(
            chain(&layers(&["no connection: expired", "expired"])),
            "no connection: expired"
        );
    }
}
