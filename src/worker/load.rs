//! Loading: from the files of a repository to engines that have shown what they must.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use tracing::{info, warn};

use super::hardware::Hardware;
use super::infer::Engine;
use super::onnx::{LoadError, OnnxEngine, Placement, Runtime, SharedWeights};
use crate::config::Config;
use crate::error::chain;
use crate::model::batching::{Batching, RowsReport};
use crate::model::capacity::Fit;
use crate::model::digest::{Digest, DigestError};
use crate::model::proof::{self, Proof, ProofError};
use crate::model::repository::{LeftOut, ModelFiles, NotServed, Repository, VersionFiles};
use crate::model::signature::{Signature, TensorSpec};
use crate::model::timing;

/// A model that is ready to be served.
pub struct LoadedModel {
    pub name: String,
    /// The highest version that could be loaded.
    pub default_version: u64,
    /// The versions that are meant to be served and are not: jobs that pin them are left to other workers.
    pub left_out: Vec<u64>,
    pub versions: Vec<LoadedVersion>,
}

impl LoadedModel {
    /// Engines of all its versions.
    pub fn engines(&self) -> usize {
        self.versions.iter().map(|version| version.engines.len()).sum()
    }
}

/// One version, with an engine for each of its threads.
pub struct LoadedVersion {
    pub version: u64,
    pub signature: Signature,
    /// Inputs that have a value of their own.
    pub defaults: Vec<TensorSpec>,
    pub rows: RowsReport,
    pub rows_max: usize,
    /// How long runs take, as far as the first ones tell.
    pub fit: Fit,
    /// What the engines were loaded from.
    pub file: PathBuf,
    pub hardware: Hardware,
    /// Where its runs took place.
    pub placement: Placement,
    /// Stated in `model.toml` and found in the file.
    pub digest: Option<Digest>,
    /// What loading took.
    pub load: Duration,
    pub engines: Vec<Box<dyn Engine + Send>>,
}

/// Why a version of a model is not served.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Proof(#[from] ProofError),
}

/// An engine that has shown what it must.
pub struct Proven {
    pub engine: OnnxEngine,
    pub proof: Proof,
    pub placement: Placement,
}

/// Loads one engine and lets it show what it must: digest, golden vectors, whether rows may share a run, and that it
/// runs where it is meant to.
///
/// # Errors
/// `VersionError` names the file at fault.
pub fn first_engine(
    runtime: &Runtime,
    model: &ModelFiles,
    files: &VersionFiles,
    weights: &SharedWeights,
    hardware: &Hardware,
) -> Result<Proven, VersionError> {
    files.check_digest()?;
    let mut engine = OnnxEngine::load_watched(runtime, &files.onnx, weights, hardware)?;
    let proof = proof::prove(&mut engine, files, &model.settings)?;
    if !engine.has_run() {
        proof::run_a_row(&mut engine);
    }
    let placement = engine.placement()?;
    Ok(Proven {
        engine,
        proof,
        placement,
    })
}

/// A model or version that is not served here.
#[derive(Debug)]
pub struct Unserved {
    pub model: String,
    /// Name of the version's folder; `None`: the whole model.
    pub version: Option<String>,
    pub reason: NotServed,
    pub sentence: String,
    /// Whether this machine lacks what the model asks for, whatever the model's files are.
    pub lacks_device: bool,
}

impl From<&LeftOut> for Unserved {
    fn from(left_out: &LeftOut) -> Self {
        Self {
            model: left_out.model.clone(),
            version: left_out.version.clone(),
            reason: left_out.fault.reason(),
            sentence: chain(&left_out.fault),
            lacks_device: false,
        }
    }
}

impl Unserved {
    fn version(model: &ModelFiles, version: u64, error: &VersionError) -> Self {
        let (reason, lacks_device) = match error {
            VersionError::Digest(_) => (NotServed::Digest, false),
            VersionError::Load(LoadError::Device { .. } | LoadError::OnCpu { .. } | LoadError::Unproven { .. }) => {
                (NotServed::Load, true)
            }
            VersionError::Load(_) => (NotServed::Load, false),
            VersionError::Proof(_) => (NotServed::Check, false),
        };
        Self {
            model: model.name.clone(),
            version: Some(version.to_string()),
            reason,
            sentence: chain(error),
            lacks_device,
        }
    }
}

/// Loads every version of a model that can be loaded; the others go to `unserved`. With `models.strict` the model is served
/// whole or not at all.
fn load(runtime: &Runtime, config: &Config, model: &ModelFiles, unserved: &mut Vec<Unserved>) -> Option<LoadedModel> {
    let mut versions = Vec::new();
    let mut left_out = model.left_out.clone();
    for not_honoured in model.triton.not_honoured() {
        warn!(model.name = model.name, "config.pbtxt: {not_honoured}");
    }
    for files in &model.versions {
        match load_version(runtime, config, model, files) {
            Ok(version) => versions.push(version),
            Err(error) => {
                unserved.push(Unserved::version(model, files.version, &error));
                left_out.push(files.version);
                if config.models.strict {
                    return None;
                }
            }
        }
    }
    let default_version = versions.last()?.version;
    if let Some(higher) = left_out.iter().max().filter(|version| **version > default_version) {
        warn!(
            model.name = model.name,
            "version {default_version} answers jobs that name none, since version {higher} is not served"
        );
    }
    Some(LoadedModel {
        name: model.name.clone(),
        default_version,
        left_out,
        versions,
    })
}

fn load_version(
    runtime: &Runtime,
    config: &Config,
    model: &ModelFiles,
    files: &VersionFiles,
) -> Result<LoadedVersion, VersionError> {
    let began = Instant::now();
    let weights = SharedWeights::new(runtime);
    let hardware = Hardware::of(&config.worker, &model.settings);
    let Proven {
        engine: mut first,
        proof,
        placement,
    } = first_engine(runtime, model, files, &weights, &hardware)?;
    let signature = first.signature().clone();
    let defaults = first.defaults().to_vec();
    if !first.unserved().is_empty() {
        warn!(
            model.name = model.name,
            "not served, since they are no tensors: {}",
            first.unserved().join(", ")
        );
    }
    for sentence in &proof.unsteady {
        warn!(model.name = model.name, model.version = files.version, "{sentence}");
    }
    if let Batching::Off { reason } = &proof.rows.batching {
        info!(
            model.name = model.name,
            model.version = files.version,
            "not batched: {reason}"
        );
    }
    let rows_max = model.settings.rows_max(config.batch.rows_max).get();
    let batching = proof.rows.batching == Batching::Rows;
    let fit = timing::time(&mut first, proof.recorded.as_ref(), batching.then_some(rows_max));
    let instances = model.settings.instances.or(config.worker.instances);
    let instances = instances.unwrap_or_else(|| hardware.instances()).get();
    let mut engines: Vec<Box<dyn Engine + Send>> = vec![Box::new(first)];
    for _ in 1..instances {
        engines.push(Box::new(OnnxEngine::load(runtime, &files.onnx, &weights, &hardware)?));
    }
    let load = began.elapsed();
    info!(
        model.name = model.name,
        model.version = files.version,
        instances,
        device = %hardware.device,
        ran_on = %placement,
        load_ms = load.as_millis() as u64,
        row_us = fit.capacity().map(|capacity| (capacity.seconds_per_row * 1e6) as u64),
        run_us = fit.capacity().map(|capacity| (capacity.seconds_per_run * 1e6) as u64),
        "model loaded"
    );
    Ok(LoadedVersion {
        version: files.version,
        signature,
        defaults,
        rows: proof.rows,
        rows_max,
        fit,
        file: files.onnx.clone(),
        hardware,
        placement,
        digest: files.digest,
        load,
        engines,
    })
}

/// Loads what can be loaded; the others come back with their faults, and with what the repository has left out.
pub fn load_all(runtime: &Runtime, config: &Config, found: &Repository) -> (Vec<LoadedModel>, Vec<Unserved>) {
    let mut unserved: Vec<Unserved> = found.left_out.iter().map(Unserved::from).collect();
    let loaded = found
        .models
        .iter()
        .filter_map(|model| load(runtime, config, model, &mut unserved))
        .collect();
    (loaded, unserved)
}
