//! What can be wrong with a repository.

use std::io;
use std::path::PathBuf;

use super::{CONFIG, ModelFiles, NAME_ALLOWED, ONNX};
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

/// A folder of the repository that is not served.
#[derive(Debug)]
pub struct LeftOut {
    /// Name of the model's folder.
    pub model: String,
    /// Name of the version's folder; `None`: the whole model.
    pub version: Option<String>,
    pub fault: ModelFault,
}

impl LeftOut {
    pub(super) fn model(name: &str, fault: ModelFault) -> Self {
        Self {
            model: name.to_owned(),
            version: None,
            fault,
        }
    }

    pub(super) fn version(model: &ModelFiles, version: &str, fault: ModelFault) -> Self {
        Self {
            version: Some(version.to_owned()),
            ..Self::model(&model.name, fault)
        }
    }
}

/// Why a model or a version is not served, in a word for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotServed {
    /// It is of another format, or for another backend of Triton.
    Foreign,
    /// Its folder has no allowed name.
    Name,
    /// A file or folder is not there.
    Missing,
    /// `model.toml` or `config.pbtxt` has a fault, or files contradict each other.
    Settings,
    /// A file or folder cannot be read.
    Unreadable,
    /// It is not the file whose digest is stated.
    Digest,
    /// It cannot be loaded.
    Load,
    /// It does not give what was recorded, or cannot be run as it should.
    Check,
}

impl NotServed {
    pub const ALL: [Self; 8] = [
        Self::Foreign,
        Self::Name,
        Self::Missing,
        Self::Settings,
        Self::Unreadable,
        Self::Digest,
        Self::Load,
        Self::Check,
    ];

    /// The value of the label `reason`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Name => "name",
            Self::Missing => "missing",
            Self::Settings => "settings",
            Self::Unreadable => "unreadable",
            Self::Digest => "digest",
            Self::Load => "load",
            Self::Check => "check",
        }
    }
}

/// What is wrong with one model.
#[derive(Debug, thiserror::Error)]
pub enum ModelFault {
    #[error("{root} holds no model {name}, which models.load or the command asks for; there is: {there}")]
    NotThere { name: String, root: PathBuf, there: String },
    #[error("{folder} cannot be a model's name: rename it to {NAME_ALLOWED}")]
    Name { folder: PathBuf },
    #[error("{folder} is for {what}, and only ONNX models are served: export the model to ONNX, or leave it to others")]
    Foreign { folder: PathBuf, what: String },
    #[error("{path} is a link to something that is not there: mend or remove it")]
    Dangling { path: PathBuf },
    #[error("{path} lies in no folder of a model: move it to <name>/1/{ONNX} beside it")]
    Stray { path: PathBuf },
    #[error("{folder} holds no version: put the model at {folder}/1/{ONNX}")]
    NoVersion { folder: PathBuf },
    #[error("{folder} holds {found}, but no folder of a version: move it to {folder}/1/{ONNX}")]
    NoFolder { folder: PathBuf, found: String },
    #[error("{folder} holds a {filename} but is no version: rename it to a whole number such as 1")]
    NotAVersion { folder: PathBuf, filename: String },
    #[error("{folder} holds no {filename}: put it there, or remove the folder")]
    NoOnnx { folder: PathBuf, filename: String },
    #[error(
        "{folder} holds no {filename} but {found}: rename it, or name it as default_model_filename in {CONFIG} beside the versions"
    )]
    OtherName {
        folder: PathBuf,
        filename: String,
        found: String,
    },
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
    #[error("{path}: {reason}")]
    Config { path: PathBuf, reason: String },
    #[error(transparent)]
    Unreadable(Unreadable),
}

impl ModelFault {
    pub fn reason(&self) -> NotServed {
        match self {
            Self::Foreign { .. } => NotServed::Foreign,
            Self::Name { .. } | Self::NotAVersion { .. } => NotServed::Name,
            Self::NotThere { .. }
            | Self::Dangling { .. }
            | Self::Stray { .. }
            | Self::NoVersion { .. }
            | Self::NoFolder { .. }
            | Self::NoOnnx { .. }
            | Self::OtherName { .. }
            | Self::VersionNotThere { .. } => NotServed::Missing,
            Self::GoldenTwice { .. } | Self::Settings { .. } | Self::Config { .. } => NotServed::Settings,
            Self::Unreadable(_) => NotServed::Unreadable,
        }
    }
}
