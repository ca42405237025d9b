//! A model of the local repository, run here: what it takes, and what the right answers are.

use std::path::Path;

use crate::client::Answer;
use crate::model::compare::{Tolerance, elements, worst};
use crate::model::digest::DigestError;
use crate::model::golden::{Golden, GoldenError};
use crate::model::repository::{ModelFiles, RepositoryError, VersionFiles, scan};
use crate::model::signature::{Dim, Dims, Signature, TensorSpec};
use crate::wire::tensor::{Datatype, Tensor};
use crate::worker::hardware::Hardware;
use crate::worker::infer::{Engine, EngineError, Input};
use crate::worker::onnx::{LoadError, OnnxEngine, Runtime, SharedWeights};

/// One version of a model, loaded as `inferq models check` loads it.
pub struct Local {
    pub version: u64,
    engine: Box<dyn Engine>,
    /// As the golden vectors of the version state it.
    tolerance: Option<Tolerance>,
}

/// The right answer to a job.
#[derive(Debug)]
pub struct Expected {
    version: u64,
    outputs: Vec<Tensor>,
    tolerance: Option<Tolerance>,
}

impl Local {
    /// # Errors
    /// The repository has no such model or version, or it cannot be loaded.
    pub fn load(runtime: &Runtime, repository: &Path, model: &str, version: Option<u64>) -> Result<Self, LocalError> {
        let found = scan(repository, &[model.to_owned()])?.into_model(model)?;
        let files = version_of(&found, version);
        let files = files.ok_or_else(|| LocalError::NoVersion {
            model: model.to_owned(),
            version: version.unwrap_or_default(),
        })?;
        files.check_digest()?;
        let golden = files.golden.as_deref().map(Golden::read).transpose()?;
        // On the CPU, whatever the workers use: it is there, and what is right does not depend on it.
        let engine = OnnxEngine::load(runtime, &files.onnx, &SharedWeights::new(runtime), &Hardware::CPU)?;
        Ok(Self {
            version: files.version,
            engine: Box::new(engine),
            tolerance: golden.and_then(|golden| golden.tolerance),
        })
    }

    pub fn signature(&self) -> &Signature {
        self.engine.signature()
    }

    /// Runs the model on the inputs of a job.
    ///
    /// # Errors
    /// They are not what the model takes, or it fails on them.
    pub fn expect(&mut self, inputs: &[Tensor]) -> Result<Expected, LocalError> {
        let signature = self.engine.signature().clone();
        if inputs.len() != signature.inputs.len() {
            return Err(LocalError::Inputs {
                came: inputs.len(),
                takes: listed(&signature.inputs),
            });
        }
        let given = signature.inputs.iter().map(|spec| input(spec, inputs));
        let given = given.collect::<Result<Vec<_>, _>>()?;
        let outputs = self.engine.run(&given)?;
        let outputs = signature.outputs.iter().zip(outputs).map(|(spec, output)| Tensor {
            name: spec.name.clone(),
            datatype: spec.datatype,
            data: output.bytes().to_vec().into(),
            shape: output.shape,
        });
        Ok(Expected {
            version: self.version,
            outputs: outputs.collect(),
            tolerance: self.tolerance,
        })
    }
}

fn version_of(model: &ModelFiles, version: Option<u64>) -> Option<&VersionFiles> {
    match version {
        None => model.default_version(),
        Some(version) => model.versions.iter().find(|files| files.version == version),
    }
}

/// The tensor for one input. The runtime trusts what it is given, so that it is looked at here.
fn input<'a>(spec: &TensorSpec, tensors: &'a [Tensor]) -> Result<Input<'a>, LocalError> {
    let named = tensors.iter().find(|tensor| tensor.name == spec.name);
    let alone = match tensors {
        [only] if only.name.is_empty() => Some(only),
        _ => None,
    };
    let tensor = named.or(alone).ok_or_else(|| LocalError::NoInput(spec.to_string()))?;
    let fits = |(dim, length): (&Dim, &usize)| matches!(dim, Dim::Dynamic(_)) || *dim == Dim::Fixed(*length);
    let same_shape = tensor.shape.len() == spec.shape.len() && spec.shape.iter().zip(&tensor.shape).all(fits);
    if tensor.datatype != spec.datatype || !same_shape {
        let shape: Vec<Dim> = tensor.shape.iter().map(|length| Dim::Fixed(*length)).collect();
        return Err(LocalError::Input {
            came: format!("{} {}", tensor.datatype, Dims(&shape)),
            takes: spec.to_string(),
        });
    }
    Ok(Input {
        shape: tensor.shape.clone(),
        parts: vec![&tensor.data],
    })
}

fn listed(specs: &[TensorSpec]) -> String {
    specs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Expected {
    /// What is wrong with an answer; `None` if it is right.
    pub fn wrong(&self, answer: &Answer) -> Option<String> {
        let reason = self
            .outputs
            .iter()
            .find_map(|expected| self.differs(expected, &answer.outputs))?;
        Some(format!(
            "{reason} (version {} answered, version {} was run here)",
            answer.model_version, self.version
        ))
    }

    fn differs(&self, expected: &Tensor, outputs: &[Tensor]) -> Option<String> {
        let name = &expected.name;
        let Some(got) = outputs.iter().find(|output| output.name == *name) else {
            return Some(format!("output {name} is missing"));
        };
        if got.datatype != expected.datatype || got.shape != expected.shape {
            return Some(format!(
                "output {name}: expected {} {:?}, got {} {:?}",
                expected.datatype, expected.shape, got.datatype, got.shape
            ));
        }
        let wanted = elements(expected.datatype, &expected.data).unwrap_or_default();
        let given = elements(got.datatype, &got.data).unwrap_or_default();
        if wanted.len() != given.len() {
            return Some(format!(
                "output {name}: expected {} elements, got {}",
                wanted.len(),
                given.len()
            ));
        }
        let deviation = worst(expected.datatype, &wanted, &given, self.tolerance(expected.datatype))?;
        (!deviation.is_allowed()).then(|| {
            format!(
                "output {name}, element {}: expected {}, got {}",
                deviation.element, deviation.expected, deviation.got
            )
        })
    }
}

impl Expected {
    /// The wider of what golden vectors state and the default. Golden vectors may state less, even nothing, where their own
    /// values are exact; of others the last digits depend on how many rows run together.
    fn tolerance(&self, datatype: Datatype) -> Tolerance {
        let default = Tolerance::default_for(datatype);
        let stated = self.tolerance.unwrap_or(default);
        Tolerance {
            absolute: stated.absolute.max(default.absolute),
            relative: stated.relative.max(default.relative),
        }
    }
}

/// Why there are no right answers to compare with, or nobody knows what the model takes.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error("{model} has no version {version} in the model repository; --version names one that it has")]
    NoVersion { model: String, version: u64 },
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error(transparent)]
    Golden(#[from] GoldenError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("{came} inputs are sent, the model takes {takes}")]
    Inputs { came: usize, takes: String },
    #[error("no input is sent for {0}; --shape NAME=... names it")]
    NoInput(String),
    #[error("{came} is sent, the model takes {takes}")]
    Input { came: String, takes: String },
    #[error("the model cannot be run here on what is sent")]
    Run(#[from] EngineError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::test_engine::TestEngine;

    fn local() -> Local {
        Local {
            version: 2,
            engine: Box::new(TestEngine::sums()),
            tolerance: None,
        }
    }

    fn answer(outputs: Vec<Tensor>) -> Answer {
        Answer {
            model_version: "1".to_owned(),
            outputs,
            latency: std::time::Duration::ZERO,
            batch_rows: None,
            timing: None,
            rows: None,
            row_outputs: None,
        }
    }

    /// `sums` gives the sum and the first of three columns.
    fn sums() -> Expected {
        local().expect(&[Tensor::fp32("x", &[1, 3], &[1.0, 2.0, 3.0])]).unwrap()
    }

    #[test]
    fn an_answer_within_the_tolerance_is_right_and_another_is_named() {
        let y = |values: &[f32]| answer(vec![Tensor::fp32("y", &[1, 2], values)]);

        assert_eq!(sums().wrong(&y(&[6.000_01, 1.0])), None);
        let wrong = sums().wrong(&y(&[6.0, 2.0])).unwrap();

        assert_eq!(
            wrong,
            "output y, element 1: expected 1, got 2 (version 1 answered, version 2 was run here)"
        );
    }

    #[test]
    fn golden_vectors_may_widen_the_tolerance_and_not_narrow_it() {
        let allows = |absolute, got| {
            let tolerance = Some(Tolerance {
                absolute,
                relative: 0.0,
            });
            let expected = Expected { tolerance, ..sums() };
            expected
                .wrong(&answer(vec![Tensor::fp32("y", &[1, 2], &[got, 1.0])]))
                .is_none()
        };

        assert!(allows(0.0, 6.000_1));
        assert!(!allows(0.0, 6.1));
        assert!(allows(0.2, 6.1));
    }

    #[test]
    fn an_answer_of_another_form_is_wrong() {
        let other = Tensor::fp32("z", &[1, 2], &[6.0, 1.0]);
        let turned = Tensor::fp32("y", &[2, 1], &[6.0, 1.0]);

        assert!(
            sums()
                .wrong(&answer(vec![other]))
                .unwrap()
                .starts_with("output y is missing")
        );
        assert!(sums().wrong(&answer(vec![turned])).unwrap().contains("got FP32 [2, 1]"));
    }

    #[test]
    fn inputs_that_the_model_does_not_take_are_refused_before_they_reach_it() {
        let named = |name: &str, shape: &[usize]| Tensor::fp32(name, shape, &vec![0.0; shape.iter().product()]);
        let text = |inputs: &[Tensor]| local().expect(inputs).unwrap_err().to_string();
        let whole = Tensor {
            datatype: Datatype::Int32,
            ..named("x", &[1, 3])
        };

        assert!(local().expect(&[named("", &[2, 3])]).is_ok());
        assert!(text(&[]).starts_with("0 inputs are sent"));
        assert!(text(&[named("z", &[1, 3])]).starts_with("no input is sent for x FP32"));
        assert!(text(&[named("x", &[1, 4])]).starts_with("FP32 [1,4] is sent, the model takes x FP32"));
        assert!(text(&[whole]).starts_with("INT32 [1,3] is sent"));
    }
}
