//! Why a job is not answered with a result, and how any error is shown.

use std::error::Error;

use crate::wire::error::WireError;
use crate::wire::status::Status;

/// Why a job gets an error reply. The text is that reply's: it names the field, what came and what is allowed, and
/// never holds a value of the payload.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("body: {bytes} bytes came, at most {max} are allowed (limits.body_bytes_max)")]
    BodyTooLarge { bytes: usize, max: usize },
    #[error("header `{header}`: {came} came, allowed is {allowed}")]
    Header {
        header: &'static str,
        came: &'static str,
        allowed: &'static str,
    },
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
    #[error("the deadline had passed {late_ms} ms before the job could run")]
    Deadline { late_ms: u128 },
    #[error("{0}")]
    Failed(String),
    #[error("the job was delivered {deliveries} times without an answer; it is not tried again")]
    Exhausted { deliveries: u64 },
    #[error("{0}")]
    Unavailable(String),
}

impl JobError {
    /// The `inferq-status` that the error stands for; what becomes of the job follows from it.
    pub fn status(&self) -> Status {
        match self {
            Self::Wire(_)
            | Self::BodyTooLarge { .. }
            | Self::Header { .. }
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
            Self::Deadline { .. } => Status::DeadlineExceeded,
            Self::Failed(_) | Self::Exhausted { .. } => Status::Internal,
            Self::Unavailable(_) => Status::Unavailable,
        }
    }
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
