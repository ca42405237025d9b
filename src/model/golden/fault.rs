//! What can be wrong with golden vectors.

use std::io;
use std::path::PathBuf;

use ndarray_npy::{ReadNpyError, ReadNpzError};

use super::Place;
use crate::wire::tensor::{Datatype, UnknownDatatype};
use crate::worker::infer::EngineError;

/// Why golden vectors did not pass.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    #[error("golden vectors {path}: {fault}")]
    File { path: PathBuf, fault: FileFault },
    #[error("golden vectors {path}: {fault}")]
    Fit { path: PathBuf, fault: Unfit },
    #[error("golden vectors {path} could not be run")]
    Run {
        path: PathBuf,
        #[source]
        source: EngineError,
    },
    #[error("golden vectors {path}: {place}")]
    Deviates { path: PathBuf, place: Box<Place> },
}

/// What is wrong with a file of golden vectors.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    #[error("cannot be read: {0}")]
    Io(io::Error),
    #[error("is not an uncompressed .npz file, as `numpy.savez` writes it: {0}")]
    Npz(ReadNpzError),
    #[error("{key} is not an array that can be read: {source}")]
    Npy { key: String, source: ReadNpyError },
    #[error(
        "{key} has a datatype that has no place in golden.npz; allowed are bool, whole numbers, float32 and float64, and golden.json takes strings too"
    )]
    NpzDatatype { key: String },
    #[error("an array states a size that the file does not hold: the file is damaged")]
    NpzSize,
    #[error("{key} is an unknown key; allowed are input:<name>, output:<name> and tolerance")]
    NpzKey { key: String },
    #[error(
        "is not JSON of the form {{\"inputs\": [tensor], \"outputs\": [tensor], \"tolerance\": {{\"absolute\": x, \"relative\": x}}}}: {0}"
    )]
    Json(serde_json::Error),
    #[error("{name}: {datatype} {fault}")]
    JsonDatatype {
        name: String,
        datatype: String,
        fault: UnknownDatatype,
    },
    #[error("{name}: {value} is not a {datatype}")]
    JsonElement {
        name: String,
        value: String,
        datatype: Datatype,
    },
    #[error("{name}: the shape {shape:?} does not have {elements} elements, as many as there are in data")]
    JsonShape {
        name: String,
        shape: Vec<usize>,
        elements: usize,
    },
    #[error("{name} is there twice: keep one")]
    Twice { name: String },
    #[error("needs at least one input and one output")]
    Nothing,
    #[error("tolerance must be two numbers that are not negative, absolute and relative")]
    Tolerance,
}

/// How golden vectors and a model do not belong together.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("the model takes {spec}, recorded is {recorded}")]
    Input { spec: String, recorded: String },
    #[error("the model has no {kind} {name}; there is: {there}")]
    NoSuch {
        kind: &'static str,
        name: String,
        there: String,
    },
    #[error("output {name}: recorded is {recorded}, the model gives {got}")]
    Output {
        name: String,
        recorded: String,
        got: String,
    },
}
