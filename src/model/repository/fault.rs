//! What can be wrong with a repository.

use std::io;
use std::path::PathBuf;

use super::ONNX;
use crate::model::settings::SettingsFaults;

/// Why the repository cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("the model repository {root} does not exist: create it, or set models.repository to where it is")]
    Missing { root: PathBuf },
    #[error("the model repository {root} holds no model: put one at {root}/<name>/1/{ONNX}")]
    Empty { root: PathBuf },
    #[error(transparent)]
    Unreadable(Unreadable),
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Models(Vec<ModelFault>),
}

/// A folder or file that is there but cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path} ({source}): give this user the right to read it")]
pub struct Unreadable {
    pub path: PathBuf,
    pub source: io::Error,
}

/// What is wrong with one model.
#[derive(Debug, thiserror::Error)]
pub enum ModelFault {
    #[error("{root} holds no model {name}, which models.load or the command asks for; there is: {there}")]
    NotThere { name: String, root: PathBuf, there: String },
    #[error(
        "{folder} cannot be a model's name: rename it to 1 to 64 of a-z 0-9 . _ - that start with a letter or digit and do not end in .dead"
    )]
    Name { folder: PathBuf },
    #[error("{folder} holds no version: put the model at {folder}/1/{ONNX}")]
    NoVersion { folder: PathBuf },
    #[error("{folder} holds a {ONNX} but is no version: rename it to a whole number such as 1")]
    NotAVersion { folder: PathBuf },
    #[error("{folder} holds no {ONNX}: put it there, or remove the folder")]
    NoOnnx { folder: PathBuf },
    #[error("{folder} holds golden.npz and golden.json: keep one of them")]
    GoldenTwice { folder: PathBuf },
    #[error("{path}: {key} names version {version}, which is not there; there is: {there}")]
    VersionNotThere {
        path: PathBuf,
        key: &'static str,
        version: u64,
        there: String,
    },
    #[error("{path}: {faults}")]
    Settings { path: PathBuf, faults: SettingsFaults },
    #[error(transparent)]
    Unreadable(Unreadable),
}
