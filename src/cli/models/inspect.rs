//! `inferq models inspect`.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::Serialize;

use super::rows::{ShownRows, off_because, short_reason};
use super::{Load, Loaded, ModelsError, joined, version_of};
use crate::model::batching::{self, Batching};
use crate::model::digest::Digest;
use crate::model::golden::Golden;
use crate::model::proof::{ProofError, seen_in_graph};
use crate::model::repository::ModelFiles;
use crate::model::settings::Settings;
use crate::model::signature::{Dim, TensorSpec};

/// One version of a model, as `inspect` shows it.
#[derive(Debug, Serialize)]
pub(super) struct Inspected {
    name: String,
    version: u64,
    default: bool,
    versions: Vec<u64>,
    file: PathBuf,
    digest: String,
    /// Whether `model.toml` states this digest; `None`: it states none.
    digest_stated: Option<bool>,
    inputs: Vec<InspectedTensor>,
    /// Inputs with a value of their own, which a job may leave out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inputs_with_defaults: Vec<InspectedTensor>,
    outputs: Vec<InspectedTensor>,
    outputs_not_served: Vec<String>,
    /// What in its graph belongs to training or draws random numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    rows: ShownRows,
    batching: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    batching_off_because: Option<String>,
    rows_max: Option<usize>,
    instances: Option<usize>,
    labels: Vec<String>,
    /// Labels that Triton's `config.pbtxt` names, by output.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    output_labels: BTreeMap<String, Vec<String>>,
    /// What `config.pbtxt` says without effect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    config_not_honoured: Vec<String>,
    golden: Option<PathBuf>,
}

/// A tensor, as the Open Inference Protocol's model metadata has it: an axis of any size is -1.
#[derive(Debug, Serialize)]
struct InspectedTensor {
    name: String,
    datatype: &'static str,
    shape: Vec<i64>,
    #[serde(skip)]
    text: String,
}

impl InspectedTensor {
    fn of(spec: &TensorSpec) -> Self {
        let size = |dim: &Dim| match dim {
            Dim::Fixed(size) => i64::try_from(*size).unwrap_or(i64::MAX),
            Dim::Dynamic(_) => -1,
        };
        Self {
            name: spec.name.clone(),
            datatype: spec.datatype.name(),
            shape: spec.shape.iter().map(size).collect(),
            text: spec.to_string(),
        }
    }
}

pub(super) fn inspect(model: &ModelFiles, version: Option<u64>, load: &mut Load<'_>) -> Result<Inspected, ModelsError> {
    let files = version_of(model, version)?;
    let digest = Digest::of_file(&files.onnx).map_err(|source| ModelsError::Unreadable {
        path: files.onnx.clone(),
        source,
    })?;
    let Loaded { mut engine, unserved } = load(&model.settings, files).map_err(|error| ModelsError::Load {
        path: files.onnx.clone(),
        source: error.into(),
    })?;
    let golden = files
        .golden
        .as_deref()
        .map(Golden::read)
        .transpose()
        .map_err(ProofError::from)?;
    let Settings { instances, labels, .. } = &model.settings;
    let (proof, warnings) = seen_in_graph(&files.onnx);
    let rows =
        batching::decide(engine.as_mut(), &proof, model.settings.wish(), golden.as_ref()).map_err(ProofError::from)?;
    let signature = engine.signature();
    Ok(Inspected {
        name: model.name.clone(),
        version: files.version,
        default: model
            .default_version()
            .is_some_and(|default| default.version == files.version),
        versions: model.versions.iter().map(|files| files.version).collect(),
        file: files.onnx.clone(),
        digest: digest.to_string(),
        digest_stated: files.digest.map(|stated| stated == digest),
        inputs: signature.inputs.iter().map(InspectedTensor::of).collect(),
        inputs_with_defaults: engine.defaults().iter().map(InspectedTensor::of).collect(),
        outputs: signature.outputs.iter().map(InspectedTensor::of).collect(),
        outputs_not_served: unserved,
        warnings,
        rows: ShownRows::of(&rows, signature),
        batching: rows.batching == Batching::Rows,
        batching_off_because: off_because(rows.batching),
        rows_max: rows_max(&model.settings),
        instances: instances.map(Into::into),
        labels: labels.clone(),
        output_labels: output_labels(model),
        config_not_honoured: model.triton.not_honoured(),
        golden: files.golden.clone(),
    })
}

/// Rows that the model's own files allow a run at the most.
fn rows_max(settings: &Settings) -> Option<usize> {
    let bound = settings.max_batch_size.and_then(NonZeroUsize::new);
    let stated = settings.rows_max.or(bound)?;
    Some(settings.rows_max(stated).get())
}

fn output_labels(model: &ModelFiles) -> BTreeMap<String, Vec<String>> {
    let read = model.triton.labels.iter();
    read.filter_map(|of| Some((of.output.clone(), of.labels.as_ref().ok()?.clone())))
        .collect()
}

pub(super) fn text(model: &Inspected) -> String {
    let mut lines = Vec::new();
    let mut line = |key: &str, value: String| lines.push(format!("{key:<11}{value}\n"));
    let default = if model.default { ", the default" } else { "" };
    line("model", model.name.clone());
    line(
        "version",
        format!("{}{default}, of {}", model.version, joined(&model.versions)),
    );
    line("file", model.file.display().to_string());
    let stated = match model.digest_stated {
        Some(true) => "as stated in model.toml",
        Some(false) => "not the one stated in model.toml",
        None => "none is stated in model.toml",
    };
    line("digest", format!("{} ({stated})", model.digest));
    for input in &model.inputs {
        line("input", input.text.clone());
    }
    for input in &model.inputs_with_defaults {
        line("input", format!("{} (may be left out)", input.text));
    }
    for output in &model.outputs {
        line("output", output.text.clone());
    }
    for output in &model.outputs_not_served {
        line("not served", output.clone());
    }
    for warning in &model.warnings {
        line("warning", warning.clone());
    }
    line("rows", model.rows.to_string());
    line(
        "batching",
        model.batching_off_because.as_ref().map_or_else(
            || "yes".to_owned(),
            |reason| format!("no: {}", short_reason(&model.rows, reason)),
        ),
    );
    let configured = |count: Option<usize>| {
        count.map_or_else(|| "as the worker is configured".to_owned(), |count| count.to_string())
    };
    line("rows_max", configured(model.rows_max));
    line("instances", configured(model.instances));
    line("labels", or_none(model.labels.join(", ")));
    for not_honoured in &model.config_not_honoured {
        line("config", not_honoured.clone());
    }
    let golden = model.golden.as_ref();
    line(
        "golden",
        or_none(golden.map_or_else(String::new, |path| path.display().to_string())),
    );
    lines.concat()
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}
