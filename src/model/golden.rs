//! Golden vectors: inputs and the outputs that the model's owner recorded for them.
//!
//! They are run when a model is loaded. A worker whose library, device or model file computes something else is
//! found before it takes its first job.

mod fault;
mod json;
mod npz;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

pub use fault::{FileFault, GoldenError, Unfit};

use super::compare::{Deviation, Tolerance, elements, worst};
use super::signature::{Dim, Dims, TensorSpec};
use crate::wire::tensor::{Datatype, Tensor};
use crate::worker::infer::{Engine, Input, Output};

/// The contents of one `golden.npz` or `golden.json`: one run of the model.
#[derive(Debug)]
pub struct Golden {
    /// Names the model and its version in every error.
    pub path: PathBuf,
    pub inputs: Vec<Tensor>,
    /// What the model gives for `inputs`: all of its outputs or some.
    pub outputs: Vec<Tensor>,
    /// As the file states it; `None`: the default of each output's datatype.
    pub tolerance: Option<Tolerance>,
}

/// What a passed check found.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenReport {
    /// Size of the first axis of the inputs; 1 where there is none.
    pub rows: usize,
    /// The worst element of all outputs; `None` if the outputs are empty.
    pub largest: Option<Place>,
}

/// An element of an output, with its deviation.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    pub output: String,
    pub row: usize,
    /// Index within the row, row-major.
    pub element: usize,
    pub deviation: Deviation,
}

impl Golden {
    /// Reads `golden.npz` or, by its extension, `golden.json`.
    /// # Errors
    /// `GoldenError` if the file is unreadable, damaged, or holds something else than golden vectors.
    pub fn read(path: &Path) -> Result<Self, GoldenError> {
        let fail = |fault| GoldenError::File {
            path: path.to_owned(),
            fault,
        };
        let bytes = fs::read(path).map_err(|error| fail(FileFault::Io(error)))?;
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let contents = if is_json {
            json::parse(&bytes)
        } else {
            npz::parse(bytes)
        };
        let contents = contents.and_then(Contents::checked).map_err(fail)?;
        Ok(Self {
            path: path.to_owned(),
            inputs: contents.inputs,
            outputs: contents.outputs,
            tolerance: contents.tolerance,
        })
    }

    /// Rows of the inputs, if all of them have the same number.
    pub fn rows(&self) -> Option<usize> {
        let rows = *self.inputs.first()?.shape.first()?;
        let equal = self.inputs.iter().all(|input| input.shape.first() == Some(&rows));
        equal.then_some(rows)
    }

    /// The inputs in the order of the signature.
    /// # Errors
    /// `GoldenError::Fit` if one is absent, too many, or of another datatype or shape than the model takes.
    pub fn inputs_for(&self, specs: &[TensorSpec]) -> Result<Vec<&Tensor>, GoldenError> {
        if let Some(stray) = self
            .inputs
            .iter()
            .find(|input| !specs.iter().any(|spec| spec.name == input.name))
        {
            return Err(self.no_such("input", &stray.name, specs));
        }
        specs.iter().map(|spec| self.input_for(spec)).collect()
    }

    fn input_for(&self, spec: &TensorSpec) -> Result<&Tensor, GoldenError> {
        let unfit = |recorded| GoldenError::Fit {
            path: self.path.clone(),
            fault: Unfit::Input {
                spec: spec.to_string(),
                recorded,
            },
        };
        let Some(input) = self.inputs.iter().find(|input| input.name == spec.name) else {
            return Err(unfit("nothing".to_owned()));
        };
        let same_axis = |(dim, size): (&Dim, &usize)| matches!(dim, Dim::Dynamic(_)) || *dim == Dim::Fixed(*size);
        let same_shape = input.shape.len() == spec.shape.len() && spec.shape.iter().zip(&input.shape).all(same_axis);
        if input.datatype != spec.datatype || !same_shape {
            return Err(unfit(described(input.datatype, &input.shape)));
        }
        Ok(input)
    }

    fn no_such(&self, kind: &'static str, name: &str, specs: &[TensorSpec]) -> GoldenError {
        let there = specs
            .iter()
            .map(|spec| spec.name.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        GoldenError::Fit {
            path: self.path.clone(),
            fault: Unfit::NoSuch {
                kind,
                name: name.to_owned(),
                there,
            },
        }
    }
}

/// Runs the golden inputs once and compares every output that is recorded.
///
/// Floating-point elements may deviate by the tolerance, and NaN equals NaN; all others must be equal.
/// # Errors
/// `GoldenError::Deviates` names the worst element of the first output that is too far off; other variants say that
/// the vectors do not fit the model, or that it could not be run.
pub fn check(engine: &mut dyn Engine, golden: &Golden) -> Result<GoldenReport, GoldenError> {
    let signature = engine.signature().clone();
    let inputs = golden.inputs_for(&signature.inputs)?;
    let inputs: Vec<_> = inputs
        .into_iter()
        .map(|input| Input {
            shape: input.shape.clone(),
            parts: vec![&input.data],
        })
        .collect();
    let position = |name: &str| signature.outputs.iter().position(|spec| spec.name == name);
    if let Some(stray) = golden.outputs.iter().find(|output| position(&output.name).is_none()) {
        return Err(golden.no_such("output", &stray.name, &signature.outputs));
    }
    let outputs = engine.run(&inputs).map_err(|source| GoldenError::Run {
        path: golden.path.clone(),
        source,
    })?;
    let mut largest: Option<Place> = None;
    for expected in &golden.outputs {
        let got = position(&expected.name).and_then(|at| Some((signature.outputs.get(at)?.datatype, outputs.get(at)?)));
        let place = golden.compare(expected, got)?;
        if place.as_ref().is_some_and(|place| {
            largest
                .as_ref()
                .is_none_or(|largest| place.deviation.exceeds(&largest.deviation))
        }) {
            largest = place;
        }
    }
    let rows = golden.rows().unwrap_or(1);
    Ok(GoldenReport { rows, largest })
}

impl Golden {
    fn compare(&self, expected: &Tensor, got: Option<(Datatype, &Output)>) -> Result<Option<Place>, GoldenError> {
        let unfit = |got| GoldenError::Fit {
            path: self.path.clone(),
            fault: Unfit::Output {
                name: expected.name.clone(),
                recorded: described(expected.datatype, &expected.shape),
                got,
            },
        };
        let (datatype, output) = got.ok_or_else(|| unfit("nothing".to_owned()))?;
        if datatype != expected.datatype || output.shape != expected.shape {
            return Err(unfit(described(datatype, &output.shape)));
        }
        let wanted = elements(datatype, &expected.data).unwrap_or_default();
        let given = elements(datatype, output.bytes()).unwrap_or_default();
        if wanted.len() != given.len() {
            return Err(unfit(format!("{} elements", given.len())));
        }
        let tolerance = self.tolerance.unwrap_or(Tolerance::default_for(datatype));
        let Some(deviation) = worst(datatype, &wanted, &given, tolerance) else {
            return Ok(None);
        };
        let rows = expected.shape.first().copied().unwrap_or(1).max(1);
        let per_row = (wanted.len() / rows).max(1);
        let place = Place {
            output: expected.name.clone(),
            row: deviation.element / per_row,
            element: deviation.element % per_row,
            deviation,
        };
        if place.deviation.is_allowed() {
            return Ok(Some(place));
        }
        Err(GoldenError::Deviates {
            path: self.path.clone(),
            place: Box::new(place),
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            output,
            row,
            element,
            deviation,
        } = self;
        write!(f, "output {output}, row {row}, element {element}: ")?;
        write!(f, "expected {}, got {}, ", deviation.expected, deviation.got)?;
        match deviation.allowed {
            0.0 => f.write_str("which must be equal"),
            allowed => write!(f, "allowed is a difference of {allowed:.3e}"),
        }
    }
}

fn described(datatype: Datatype, shape: &[usize]) -> String {
    let dims: Vec<_> = shape.iter().map(|size| Dim::Fixed(*size)).collect();
    format!("{datatype} {}", Dims(&dims))
}

/// What a file holds, before it is known to make sense.
#[derive(Debug, Default)]
struct Contents {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    tolerance: Option<Tolerance>,
}

impl Contents {
    fn checked(self) -> Result<Self, FileFault> {
        if self.inputs.is_empty() || self.outputs.is_empty() {
            return Err(FileFault::Nothing);
        }
        for tensors in [&self.inputs, &self.outputs] {
            for (at, tensor) in tensors.iter().enumerate() {
                if tensors[..at].iter().any(|earlier| earlier.name == tensor.name) {
                    return Err(FileFault::Twice {
                        name: tensor.name.clone(),
                    });
                }
            }
        }
        let sound = |part: f64| part.is_finite() && part >= 0.0;
        if self
            .tolerance
            .is_some_and(|tolerance| !sound(tolerance.absolute) || !sound(tolerance.relative))
        {
            return Err(FileFault::Tolerance);
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;
    use ndarray_npy::NpzWriter;

    use super::*;
    use crate::model::test_engine::{Array, TestEngine, f32_bytes, spec};
    use crate::worker::infer::EngineError;
    use std::io;

    fn npz(fill: impl FnOnce(&mut NpzWriter<io::Cursor<Vec<u8>>>)) -> Vec<u8> {
        let mut npz = NpzWriter::new(io::Cursor::new(Vec::new()));
        fill(&mut npz);
        npz.finish().unwrap().into_inner()
    }

    fn read(name: &str, bytes: &[u8]) -> Result<Golden, GoldenError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        Golden::read(&path)
    }

    fn tensor(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
        Tensor {
            name: name.to_owned(),
            datatype: Datatype::Fp32,
            shape: shape.to_vec(),
            data: f32_bytes(values.iter().copied()).into(),
        }
    }

    fn golden(inputs: Vec<Tensor>, outputs: Vec<Tensor>) -> Golden {
        Golden {
            path: "models/sums/1/golden.npz".into(),
            inputs,
            outputs,
            tolerance: None,
        }
    }

    #[test]
    fn recorded_outputs_pass_and_the_report_names_the_worst_element() {
        let recorded = npz(|npz| {
            npz.add_array("input:x", &array![[1_f32, 2.0, 3.0], [4.0, 5.0, 6.0]])
                .unwrap();
            npz.add_array("output:y", &array![[6_f32, 1.0], [15.0001, 4.0]])
                .unwrap();
        });
        let golden = read("golden.npz", &recorded).unwrap();

        let report = check(&mut TestEngine::sums(), &golden).unwrap();

        assert_eq!(report.rows, 2);
        let place = report.largest.unwrap();
        assert_eq!((place.output.as_str(), place.row, place.element), ("y", 1, 0));
        assert!(place.deviation.deviation > 5e-5 && place.deviation.is_allowed());
    }

    #[test]
    fn an_output_too_far_off_is_named_with_its_model_row_and_values() {
        let golden = golden(
            vec![tensor("x", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])],
            vec![tensor("y", &[2, 2], &[6.0, 1.0, 15.0, 8.0])],
        );

        let error = check(&mut TestEngine::sums(), &golden).unwrap_err();

        let expected = "golden vectors models/sums/1/golden.npz: output y, row 1, element 1: \
                    expected 8, got 4, allowed is a difference of 8.100e-4";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn the_tolerance_of_the_file_is_the_one_that_counts() {
        let bytes = npz(|npz| {
            npz.add_array("input:x", &array![[1_f32, 2.0, 3.0]]).unwrap();
            npz.add_array("output:y", &array![[6.5_f32, 1.0]]).unwrap();
            npz.add_array("tolerance", &array![0.0, 0.1]).unwrap();
        });

        let golden = read("golden.npz", &bytes).unwrap();

        assert_eq!(
            golden.tolerance,
            Some(Tolerance {
                absolute: 0.0,
                relative: 0.1
            })
        );
        check(&mut TestEngine::sums(), &golden).unwrap();
    }

    #[test]
    fn a_tolerance_that_is_no_pair_of_sound_numbers_is_refused() {
        let with = |values: &[f64]| {
            let bytes = npz(|npz| {
                npz.add_array("input:x", &array![1_f32]).unwrap();
                npz.add_array("output:y", &array![1_f32]).unwrap();
                npz.add_array("tolerance", &ndarray::Array1::from_vec(values.to_vec()))
                    .unwrap();
            });
            read("golden.npz", &bytes).unwrap_err()
        };

        for values in [
            &[1e-5][..],
            &[0.0, -1.0],
            &[f64::NAN, 0.0],
            &[0.0, f64::INFINITY],
            &[0.0; 3],
        ] {
            assert!(
                matches!(
                    with(values),
                    GoldenError::File {
                        fault: FileFault::Tolerance,
                        ..
                    }
                ),
                "{values:?}"
            );
        }
    }

    #[test]
    fn an_output_of_whole_numbers_must_be_equal() {
        let mut engine = TestEngine::new(
            vec![spec("x", Datatype::Fp32, &["n", "1"])],
            vec![spec("class", Datatype::Int64, &["n"])],
            |_| {
                Ok(vec![Array {
                    shape: vec![1],
                    data: 5_i64.to_le_bytes().to_vec(),
                }])
            },
        );
        let class = |value: i64| {
            let data = value.to_le_bytes().to_vec().into();
            let output = Tensor {
                name: "class".into(),
                datatype: Datatype::Int64,
                shape: vec![1],
                data,
            };
            golden(vec![tensor("x", &[1, 1], &[0.0])], vec![output])
        };

        check(&mut engine, &class(5)).unwrap();
        let error = check(&mut engine, &class(6)).unwrap_err().to_string();

        assert!(
            error.ends_with("row 0, element 0: expected 6, got 5, which must be equal"),
            "{error}"
        );
    }

    #[test]
    fn vectors_of_another_model_are_refused_with_what_fits() {
        let x = || tensor("x", &[1, 3], &[0.0; 3]);
        let y = || tensor("y", &[1, 2], &[0.0; 2]);
        let doubled = Tensor {
            datatype: Datatype::Fp64,
            data: vec![0; 16].into(),
            ..y()
        };
        let cases = [
            (vec![y()], vec![y()], "the model has no input y; there is: x"),
            (
                vec![x(), tensor("z", &[1], &[0.0])],
                vec![y()],
                "the model has no input z; there is: x",
            ),
            (
                vec![],
                vec![y()],
                "the model takes x FP32 [batch,3], recorded is nothing",
            ),
            (
                vec![tensor("x", &[1, 4], &[0.0; 4])],
                vec![y()],
                "the model takes x FP32 [batch,3], recorded is FP32 [1,4]",
            ),
            (
                vec![tensor("x", &[3], &[0.0; 3])],
                vec![y()],
                "the model takes x FP32 [batch,3], recorded is FP32 [3]",
            ),
            (
                vec![Tensor {
                    datatype: Datatype::Int32,
                    ..x()
                }],
                vec![y()],
                "recorded is INT32 [1,3]",
            ),
            (vec![x()], vec![x()], "the model has no output x; there is: y"),
            (
                vec![x()],
                vec![tensor("y", &[2, 1], &[0.0; 2])],
                "output y: recorded is FP32 [2,1], the model gives FP32 [1,2]",
            ),
            (
                vec![x()],
                vec![doubled],
                "output y: recorded is FP64 [1,2], the model gives FP32 [1,2]",
            ),
        ];

        for (inputs, outputs, expected) in cases {
            let error = check(&mut TestEngine::sums(), &golden(inputs, outputs))
                .unwrap_err()
                .to_string();
            assert!(error.ends_with(expected), "{error}");
        }
    }

    #[test]
    fn a_run_that_fails_keeps_its_cause() {
        let mut engine = TestEngine::new(
            vec![spec("x", Datatype::Fp32, &["n"])],
            vec![spec("y", Datatype::Fp32, &["n"])],
            |_| Err(EngineError::Run("shape mismatch".into())),
        );

        let error = check(
            &mut engine,
            &golden(vec![tensor("x", &[1], &[0.0])], vec![tensor("y", &[1], &[0.0])]),
        )
        .unwrap_err();

        assert!(matches!(
            error,
            GoldenError::Run {
                source: EngineError::Run(_),
                ..
            }
        ));
    }

    #[test]
    fn an_engine_that_gives_too_little_is_an_error_and_no_panic() {
        let vectors = golden(vec![tensor("x", &[1], &[0.0])], vec![tensor("y", &[1], &[0.0])]);
        let given = [
            vec![],
            vec![Array {
                shape: vec![1],
                data: vec![0; 3],
            }],
            vec![Array {
                shape: vec![1],
                data: vec![],
            }],
        ];
        for outputs in given {
            let io = || vec![spec("x", Datatype::Fp32, &["n"])];
            let out = vec![spec("y", Datatype::Fp32, &["n"])];
            let mut engine = TestEngine::new(io(), out, move |_| Ok(outputs.clone()));

            let error = check(&mut engine, &vectors).unwrap_err();

            assert!(matches!(
                error,
                GoldenError::Fit {
                    fault: Unfit::Output { .. },
                    ..
                }
            ));
        }
    }

    #[test]
    fn a_file_without_inputs_or_with_one_twice_is_refused() {
        let nothing = read(
            "golden.npz",
            &npz(|npz| npz.add_array("input:x", &array![1_f32]).unwrap()),
        )
        .unwrap_err();
        assert!(matches!(
            nothing,
            GoldenError::File {
                fault: FileFault::Nothing,
                ..
            }
        ));

        let tensor = r#"{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}"#;
        let twice = read(
            "golden.json",
            format!(r#"{{"inputs": [{tensor}, {tensor}], "outputs": [{tensor}]}}"#).as_bytes(),
        );
        assert!(twice.unwrap_err().to_string().ends_with("x is there twice: keep one"));
    }

    #[test]
    fn a_file_that_is_gone_is_an_error_with_its_path() {
        let error = Golden::read(Path::new("gone/golden.npz")).unwrap_err();

        assert!(
            error
                .to_string()
                .starts_with("golden vectors gone/golden.npz: cannot be read"),
            "{error}"
        );
    }
}
