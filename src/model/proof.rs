//! What a loaded model must show before it takes jobs.

use std::path::Path;

use tracing::debug;

use super::batching::{self, BatchingError, RowsReport};
use super::golden::{self, Golden, GoldenError, GoldenReport};
use super::probe_rows::{Form, ProbeRows};
use super::repository::VersionFiles;
use super::rows::{self, RowsProof};
use super::settings::Settings;
use super::{onnx, unsteady};
use crate::worker::infer::Engine;

/// What a model has shown.
#[derive(Debug)]
pub struct Proof {
    /// `None`: no golden vectors are recorded for this version.
    pub golden: Option<GoldenReport>,
    pub rows: RowsReport,
    /// The golden vectors themselves.
    pub recorded: Option<Golden>,
    /// What in the graph belongs to training or draws random numbers.
    pub unsteady: Vec<String>,
}

/// Runs the golden vectors, if there are any, and finds out whether rows may share a run.
///
/// To be called once per version, on one of its engines; [`VersionFiles::check_digest`] comes before loading.
/// # Errors
/// `ProofError` if the model computes something else than was recorded, or cannot be run as its settings demand.
pub fn prove(engine: &mut dyn Engine, files: &VersionFiles, settings: &Settings) -> Result<Proof, ProofError> {
    let golden = files.golden.as_deref().map(Golden::read).transpose()?;
    let report = golden
        .as_ref()
        .map(|golden| golden::check(engine, golden))
        .transpose()?;
    let (proof, unsteady) = seen_in_graph(&files.onnx);
    let rows = batching::decide(engine, &proof, settings.wish(), golden.as_ref())?;
    Ok(Proof {
        golden: report,
        rows,
        recorded: golden,
        unsteady,
    })
}

/// What the graph of a model shows of its rows, and what in it belongs to training or draws random numbers.
pub fn seen_in_graph(path: &Path) -> (RowsProof, Vec<String>) {
    match onnx::read(path) {
        Ok(model) => (rows::prove_model(&model), unsteady::name_nodes(&model)),
        Err(error) => (RowsProof::unreadable(&error), Vec::new()),
    }
}

/// Runs one made-up row, for what is seen while a model runs. Whether it succeeds says nothing of the model.
pub fn run_a_row(engine: &mut dyn Engine) {
    let signature = engine.signature().clone();
    let Some(rows) = ProbeRows::generated(&signature, Form::new(1, 1)) else {
        return;
    };
    if let Some(inputs) = rows.filling(&signature)
        && let Err(error) = engine.run(&inputs)
    {
        debug!("a made-up row failed: {error}");
    }
}

/// Why a model may not take jobs.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    #[error(transparent)]
    Golden(#[from] GoldenError),
    #[error(transparent)]
    Batching(#[from] BatchingError),
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::model::batching::Batching;
    use crate::model::test_engine::{TestEngine, spec};
    use crate::wire::tensor::Datatype;

    fn files(golden: Option<&str>) -> (tempfile::TempDir, VersionFiles) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("golden.json");
        if let Some(outputs) = golden {
            let x = r#"{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}"#;
            let y = format!(r#"{{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": {outputs}}}"#);
            std::fs::write(&path, format!(r#"{{"inputs": [{x}], "outputs": [{y}]}}"#)).unwrap();
        }
        let files = VersionFiles {
            version: 1,
            onnx: folder.path().join("model.onnx"),
            golden: golden.map(|_| path),
            digest: None,
            folder: folder.path().to_owned(),
        };
        (folder, files)
    }

    #[test]
    fn a_model_that_gives_what_was_recorded_may_take_jobs() {
        let (_folder, files) = files(Some("[6, 1]"));

        let proof = prove(&mut TestEngine::sums(), &files, &Settings::default()).unwrap();

        assert_eq!(proof.golden.unwrap().rows, 1);
        assert_eq!(proof.rows.batching, Batching::Rows);
    }

    #[test]
    fn a_model_that_gives_something_else_may_not() {
        let (_folder, files) = files(Some("[7, 1]"));

        let error = prove(&mut TestEngine::sums(), &files, &Settings::default()).unwrap_err();

        assert!(matches!(error, ProofError::Golden(GoldenError::Deviates { .. })));
    }

    #[test]
    fn a_model_that_nothing_was_tried_with_can_still_be_seen_running() {
        let shapes = Arc::new(Mutex::new(Vec::new()));
        let seen = shapes.clone();
        let inputs = vec![
            spec("rows", Datatype::Fp32, &["batch", "3"]),
            spec("pair", Datatype::Int64, &["2", "length"]),
            spec("scalar", Datatype::Fp32, &[]),
        ];
        let mut engine = TestEngine::new(inputs, Vec::new(), move |inputs| {
            seen.lock()
                .unwrap()
                .extend(inputs.iter().map(|input| (input.shape.clone(), input.data.len())));
            Ok(Vec::new())
        });

        run_a_row(&mut engine);

        assert_eq!(
            *shapes.lock().unwrap(),
            [(vec![1, 3], 12), (vec![2, 1], 16), (vec![], 4)]
        );
    }

    #[test]
    fn without_golden_vectors_only_the_batching_is_found_out() {
        let (_folder, files) = files(None);
        let settings = Settings {
            batching: Some(false),
            ..Settings::default()
        };

        let proof = prove(&mut TestEngine::sums(), &files, &settings).unwrap();

        assert!(proof.golden.is_none());
        assert!(matches!(proof.rows.batching, Batching::Off { .. }));
    }
}
