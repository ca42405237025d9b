//! Finds out whether the rows of several jobs may share one run of a model.
//!
//! The signature alone does not tell: a model may normalise over its batch, and then a job's answer depends on
//! its neighbours. So three distinct rows are run singly and together, and must give the same.

use std::fmt;

use super::compare::{Deviation, Tolerance, elements, worst};
use super::golden::Golden;
use super::probe_rows::{self, ProbeRows, ROWS};
use super::rows::{RowsProof, RowsVerdict};
use super::signature::{Dim, Signature, TensorSpec};
use crate::wire::rows::RowRelation;
use crate::wire::tensor::Datatype;
use crate::worker::infer::{Engine, EngineError, Output};

/// What is known of a model's rows, and how its jobs are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsReport {
    /// What the graph shows.
    pub proof: RowsVerdict,
    /// What the graph shows, or where it leaves that open, a trial or the model's owner.
    pub relation: RowRelation,
    /// For every output of the signature: whether its first axis counts the rows.
    pub row_outputs: Vec<bool>,
    pub batching: Batching,
}

/// How jobs for a model are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batching {
    /// Rows of several jobs share a run.
    Rows,
    /// Every job is a run of its own.
    Off { reason: String },
}

/// Decides how jobs for this model are run, given what its graph shows.
///
/// `wanted` is what `model.toml` says: `Some(false)` is taken at its word, `Some(true)` overrides what a trial shows, but
/// neither a proof that rows are coupled nor axes that cannot hold several rows. A trial is made only where the graph leaves
/// the question open; its rows come from `golden` if that has enough of them. What cannot be shown counts as not batchable:
/// that costs speed, and a wrong guess would spoil answers.
///
/// Time: none where the graph decides; else four runs of a few rows, and again for every other form of made-up rows while
/// nothing is shown.
/// # Errors
/// `BatchingError::Axes` if batching is demanded of a model whose axes forbid it, `BatchingError::Coupled` if of one whose
/// rows are coupled, `BatchingError::Device` if the device is lost on the way.
pub fn decide(
    engine: &mut dyn Engine,
    proof: &RowsProof,
    wanted: Option<bool>,
    golden: Option<&Golden>,
) -> Result<RowsReport, BatchingError> {
    let signature = engine.signature().clone();
    let axes = first_axes(&signature);
    if wanted == Some(true) {
        if let Some(axis) = axes {
            return Err(BatchingError::Axes { axis });
        }
        if let RowsVerdict::Coupled { reason } = &proof.verdict {
            return Err(BatchingError::Coupled { reason: reason.clone() });
        }
    }
    let trial = match (&proof.verdict, wanted) {
        (RowsVerdict::Independent, _) => Trial::Independent,
        (RowsVerdict::Coupled { reason }, _) => Trial::Coupled(reason.clone()),
        (RowsVerdict::Unknown { .. }, Some(true)) => Trial::Independent,
        (RowsVerdict::Unknown { reason }, Some(false)) => Trial::Unproven(reason.clone()),
        (RowsVerdict::Unknown { .. }, None) => match &axes {
            Some(axis) => Trial::Unproven(axis.clone()),
            None => try_rows(engine, &signature, golden)?,
        },
    };
    let relation = trial.relation();
    let batching = match (wanted, axes, trial) {
        (Some(false), _, _) => off("model.toml says batching = false"),
        (_, Some(axis), _) => off(axis),
        (_, None, Trial::Independent) => Batching::Rows,
        (_, None, Trial::Coupled(reason) | Trial::Unproven(reason)) => off(reason),
    };
    let is_row_output = |spec: &TensorSpec| relation == RowRelation::Independent || proof.is_row_output(&spec.name);
    Ok(RowsReport {
        proof: proof.verdict.clone(),
        relation,
        row_outputs: signature.outputs.iter().map(is_row_output).collect(),
        batching,
    })
}

/// What running rows singly and together shows.
enum Trial {
    /// Rows do not influence each other.
    Independent,
    /// A row's output depends on its neighbours.
    Coupled(String),
    /// The model could not be run, has outputs that are no rows, or answers every row alike.
    Unproven(String),
}

impl Trial {
    fn relation(&self) -> RowRelation {
        match self {
            Self::Independent => RowRelation::Independent,
            Self::Coupled(_) => RowRelation::Coupled,
            Self::Unproven(_) => RowRelation::Unknown,
        }
    }
}

/// Why no run can hold several rows, as far as the signature tells. What it says of outputs does not count: the runtime may
/// give others than the file declares.
fn first_axes(signature: &Signature) -> Option<String> {
    signature.inputs.iter().find_map(|spec| {
        let reason = match spec.shape.split_first() {
            None => "it has no axes".to_owned(),
            Some((Dim::Fixed(size), _)) => format!("its first axis is always {size}"),
            Some((first @ Dim::Dynamic(name), rest)) if !name.is_empty() && rest.contains(first) => {
                format!("its first axis, {name}, is tied to another one")
            }
            Some((Dim::Dynamic(_), _)) => return None,
        };
        Some(format!("input {spec} cannot hold rows: {reason}"))
    })
}

fn try_rows(engine: &mut dyn Engine, signature: &Signature, golden: Option<&Golden>) -> Result<Trial, BatchingError> {
    let mut reasons = Vec::new();
    for rows in probe_rows::candidates(signature, golden) {
        match compare_runs(engine, signature, &rows)? {
            Trial::Unproven(reason) => reasons.push(reason),
            trial @ (Trial::Independent | Trial::Coupled(_)) => return Ok(trial),
        }
    }
    // The first reason is that of recorded rows, or of the plainest ones that we made up.
    let reason = reasons
        .into_iter()
        .next()
        .unwrap_or_else(|| "a row is too large to be made up".to_owned());
    Ok(Trial::Unproven(format!(
        "nothing shows that rows are independent ({reason}): record at least {ROWS} distinct golden rows, or set batching in model.toml"
    )))
}

fn compare_runs(engine: &mut dyn Engine, signature: &Signature, rows: &ProbeRows) -> Result<Trial, BatchingError> {
    let mut runs = Vec::new();
    for row in 0..ROWS {
        match engine.run(&rows.single(row)) {
            Ok(outputs) => runs.push(outputs),
            Err(error) => return unproven("a single row", error),
        }
    }
    let together = match engine.run(&rows.together()) {
        Ok(outputs) => outputs,
        Err(error) => return unproven("several rows", error),
    };
    let mut differ = false;
    for (at, spec) in signature.outputs.iter().enumerate() {
        let Some(output) = Rows::of(spec.datatype, together.get(at), ROWS) else {
            return Ok(Trial::Unproven(format!(
                "output {} does not have one row for each row of input",
                spec.name
            )));
        };
        let mut singles = Vec::new();
        for run in &runs {
            let Some(single) = Rows::of(spec.datatype, run.get(at), 1) else {
                return Ok(Trial::Unproven(format!(
                    "output {} does not have one row for each row of input",
                    spec.name
                )));
            };
            singles.push(single);
        }
        for (row, single) in singles.iter().enumerate() {
            if let Some(difference) = difference(spec.datatype, single, &output, row) {
                let name = &spec.name;
                return Ok(Trial::Coupled(format!(
                    "output {name} of a row depends on its neighbours: {difference}"
                )));
            }
        }
        differ |= singles.iter().any(|single| single.elements != singles[0].elements);
    }
    Ok(if differ {
        Trial::Independent
    } else {
        Trial::Unproven("every row gave the same outputs".to_owned())
    })
}

fn unproven(rows: &str, error: EngineError) -> Result<Trial, BatchingError> {
    match error {
        EngineError::Run(_) | EngineError::Memory(_) | EngineError::Late(_) => {
            Ok(Trial::Unproven(format!("with {rows}, {error}")))
        }
        EngineError::Device(_) => Err(BatchingError::Device(error)),
    }
}

/// An output, cut into its rows.
struct Rows<'a> {
    shape: &'a [usize],
    elements: Vec<&'a [u8]>,
}

impl<'a> Rows<'a> {
    /// `None` if the first axis is not `rows`.
    fn of(datatype: Datatype, output: Option<&'a Output>, rows: usize) -> Option<Self> {
        let output = output?;
        let (first, shape) = output.shape.split_first()?;
        let elements = elements(datatype, output.bytes())?;
        (*first == rows && elements.len().is_multiple_of(rows)).then_some(Self { shape, elements })
    }
}

fn difference(datatype: Datatype, single: &Rows<'_>, together: &Rows<'_>, row: usize) -> Option<Difference> {
    let columns = single.elements.len();
    if single.shape != together.shape || together.elements.len() != columns * ROWS {
        return Some(Difference::Shape {
            single: single.shape.to_vec(),
            together: together.shape.to_vec(),
        });
    }
    let of_row = &together.elements[row * columns..(row + 1) * columns];
    let worst = worst(datatype, &single.elements, of_row, Tolerance::default_for(datatype))?;
    (!worst.is_allowed()).then_some(Difference::Value(worst))
}

enum Difference {
    Shape { single: Vec<usize>, together: Vec<usize> },
    Value(Deviation),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape { single, together } => {
                write!(f, "shape {single:?} alone, {together:?} with others")
            }
            Self::Value(Deviation { expected, got, .. }) => {
                write!(f, "{expected} alone, {got} with others")
            }
        }
    }
}

fn off(reason: impl Into<String>) -> Batching {
    Batching::Off { reason: reason.into() }
}

/// Why a model cannot be loaded as its settings demand.
#[derive(Debug, thiserror::Error)]
pub enum BatchingError {
    #[error("model.toml says batching = true, but {axis}; remove it, or export the model with a dynamic first axis")]
    Axes { axis: String },
    #[error("model.toml says batching = true, but its rows are coupled: {reason}; remove it")]
    Coupled { reason: String },
    #[error("the model could not be tried with several rows")]
    Device(#[source] EngineError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::test_engine::{Array, TestEngine, f32_bytes, spec};
    use crate::wire::tensor::Tensor;

    /// The graph tells nothing.
    fn unread() -> RowsProof {
        RowsProof {
            verdict: RowsVerdict::Unknown {
                reason: "nobody read it".to_owned(),
            },
            outputs: Vec::new(),
        }
    }

    fn probe(
        engine: &mut TestEngine,
        wanted: Option<bool>,
        golden: Option<&Golden>,
    ) -> Result<Batching, BatchingError> {
        decide(engine, &unread(), wanted, golden).map(|report| report.batching)
    }

    fn reason(engine: &mut TestEngine) -> String {
        match probe(engine, None, None).unwrap() {
            Batching::Rows => panic!("taken for batchable"),
            Batching::Off { reason } => reason,
        }
    }

    /// One input and one output of `FP32 [batch,3]`, by a rule on all rows.
    fn by_batch(rule: impl Fn(Vec<Vec<f32>>) -> Vec<Vec<f32>> + Send + 'static) -> TestEngine {
        let io = |name| vec![spec(name, Datatype::Fp32, &["batch", "3"])];
        TestEngine::new(io("x"), io("y"), move |inputs| {
            let rows = rule(inputs[0].rows());
            Ok(vec![Array::f32(&[rows.len(), 3], rows.concat())])
        })
    }

    fn minus_mean(mut rows: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        for column in 0..3 {
            let mean = rows.iter().map(|row| row[column]).sum::<f32>() / rows.len() as f32;
            rows.iter_mut().for_each(|row| row[column] -= 0.001 * mean);
        }
        rows
    }

    fn golden(rows: &[[f32; 3]]) -> Golden {
        let tensor = |name: &str| Tensor {
            name: name.into(),
            datatype: Datatype::Fp32,
            shape: vec![rows.len(), 3],
            data: f32_bytes(rows.concat()).into(),
        };
        Golden {
            path: "golden.npz".into(),
            inputs: vec![tensor("x")],
            outputs: vec![tensor("y")],
            tolerance: None,
        }
    }

    #[test]
    fn rows_that_ignore_each_other_are_batched() {
        assert_eq!(probe(&mut TestEngine::sums(), None, None).unwrap(), Batching::Rows);
    }

    #[test]
    fn the_last_bits_may_differ_between_batch_sizes() {
        let mut engine = by_batch(|rows| {
            let bits = 1.0 + rows.len() as f32 * 1e-6;
            rows.iter()
                .map(|row| row.iter().map(|value| value * bits).collect())
                .collect()
        });

        assert_eq!(probe(&mut engine, None, None).unwrap(), Batching::Rows);
    }

    #[test]
    fn a_model_that_takes_the_mean_of_its_batch_is_found() {
        let reason = reason(&mut by_batch(minus_mean));

        assert!(
            reason.starts_with("output y of a row depends on its neighbours: "),
            "{reason}"
        );
        assert!(reason.ends_with(" with others"), "{reason}");
    }

    #[test]
    fn rows_that_come_back_in_another_order_are_found() {
        let reversed = reason(&mut by_batch(|mut rows| {
            rows.reverse();
            rows
        }));
        let rotated = reason(&mut by_batch(|mut rows| {
            rows.rotate_left(1);
            rows
        }));

        assert!(reversed.contains("depends on its neighbours"), "{reversed}");
        assert!(rotated.contains("depends on its neighbours"), "{rotated}");
    }

    #[test]
    fn a_shape_that_depends_on_the_neighbours_is_found() {
        let mut engine = TestEngine::new(
            vec![spec("x", Datatype::Fp32, &["n", "1"])],
            vec![spec("y", Datatype::Fp32, &["n", "m"])],
            |inputs| {
                let rows = inputs[0].shape[0];
                Ok(vec![Array::f32(&[rows, rows], inputs[0].to_f32().repeat(rows))])
            },
        );

        let reason = reason(&mut engine);

        assert!(reason.ends_with("shape [1] alone, [3] with others"), "{reason}");
    }

    #[test]
    fn axes_that_cannot_hold_rows_are_named_without_a_run() {
        let cases = [
            (
                &["1", "3"][..],
                &["n"][..],
                "input x FP32 [1,3] cannot hold rows: its first axis is always 1",
            ),
            (&[], &["n"], "input x FP32 [] cannot hold rows: it has no axes"),
            (
                &["n", "n"],
                &["n"],
                "input x FP32 [n,n] cannot hold rows: its first axis, n, is tied to another one",
            ),
            (
                &["n", "3"],
                &["10"],
                "output y FP32 [10] cannot hold rows: its first axis is always 10",
            ),
        ];
        for (input, output, expected) in cases {
            let inputs = vec![spec("x", Datatype::Fp32, input)];
            let mut engine = TestEngine::new(inputs, vec![spec("y", Datatype::Fp32, output)], |_| unreachable!());

            assert_eq!(reason(&mut engine), expected);
        }
    }

    #[test]
    fn an_output_without_a_row_for_each_row_is_found() {
        for shape in [&[][..], &[1], &[2]] {
            let inputs = vec![spec("x", Datatype::Fp32, &["n", "3"])];
            let outputs = vec![spec("y", Datatype::Fp32, &[])];
            let mut engine = TestEngine::new(inputs, outputs, |_| {
                Ok(vec![Array::f32(shape, vec![0.5; shape.iter().product()])])
            });

            assert_eq!(
                reason(&mut engine),
                "output y does not have one row for each row of input"
            );
        }
    }

    #[test]
    fn a_model_that_fails_on_made_up_rows_is_not_batched_and_the_reason_says_what_to_do() {
        let io = |name| vec![spec(name, Datatype::Int64, &["n", "tokens"])];
        let mut engine = TestEngine::new(io("ids"), io("y"), |_| {
            Err(EngineError::Run("index out of range".into()))
        });

        let reason = reason(&mut engine);

        let expected = "nothing shows that rows are independent (with a single row, the model failed on this input: \
                        index out of range): record at least 3 distinct golden rows, or set batching in model.toml";
        assert_eq!(reason, expected);
        assert_eq!(engine.runs, probe_rows::INNER_SIZES.len() * probe_rows::SCALES.len());
    }

    #[test]
    fn a_model_that_answers_every_row_alike_shows_nothing() {
        let reason = reason(&mut TestEngine::by_row(|_| [1.0, f32::NAN]));

        assert!(reason.contains("(every row gave the same outputs)"), "{reason}");
    }

    #[test]
    fn a_classifier_that_tells_only_large_values_apart_is_tried_with_them() {
        let mut engine = TestEngine::by_row(|row| [if row[0] > 5.0 { 1.0 } else { 0.0 }, 0.0]);

        assert_eq!(probe(&mut engine, None, None).unwrap(), Batching::Rows);
    }

    #[test]
    fn a_dynamic_axis_is_tried_at_several_sizes() {
        let mut engine = TestEngine::new(
            vec![spec("image", Datatype::Fp32, &["n", "3", "height", "width"])],
            vec![spec("y", Datatype::Fp32, &["n"])],
            |inputs| {
                let shape = &inputs[0].shape;
                if shape[2] < 8 {
                    return Err(EngineError::Run("kernel larger than image".into()));
                }
                Ok(vec![Array::f32(
                    &[shape[0]],
                    inputs[0].rows().iter().map(|row| row.iter().sum()),
                )])
            },
        );

        assert_eq!(probe(&mut engine, None, None).unwrap(), Batching::Rows);
        assert_eq!(engine.runs, 2 * probe_rows::SCALES.len() + ROWS + 1);
    }

    #[test]
    fn indices_and_strings_are_made_up_small() {
        let inputs = vec![
            spec("ids", Datatype::Int32, &["n", "4"]),
            spec("words", Datatype::Bytes, &["n"]),
            spec("mask", Datatype::Bool, &["n", "2"]),
        ];
        let mut engine = TestEngine::new(inputs, vec![spec("y", Datatype::Uint8, &["n"])], |inputs| {
            let [ids, words, mask] = inputs else { unreachable!() };
            assert!(ids.data.chunks(4).all(|id| id[0] < 3 && id[1..] == [0; 3]));
            let letters: Vec<_> = words.data.chunks(5).map(|word| word[4]).collect();
            assert!(letters.iter().all(|letter| b"abc".contains(letter)));
            assert!(mask.data.iter().all(|truth| *truth < 2));
            Ok(vec![Array {
                shape: vec![letters.len()],
                data: letters,
            }])
        });

        assert_eq!(probe(&mut engine, None, None).unwrap(), Batching::Rows);
    }

    #[test]
    fn golden_rows_are_tried_before_made_up_ones() {
        let mut engine = by_batch(|rows| {
            assert!(rows.iter().all(|row| row[0] >= 10.0));
            rows
        });

        let rows = [[10.0; 3], [10.0; 3], [11.0; 3], [12.0; 3]];
        let batching = probe(&mut engine, None, Some(&golden(&rows))).unwrap();

        assert_eq!(batching, Batching::Rows);
        assert_eq!(engine.runs, ROWS + 1);
    }

    #[test]
    fn golden_vectors_with_too_few_distinct_rows_are_filled_by_made_up_ones() {
        for rows in [&[][..], &[[9.0; 3]], &[[9.0; 3], [8.0; 3], [9.0; 3]]] {
            let mut engine = by_batch(|rows| {
                assert!(rows.iter().flatten().all(|value| value.abs() <= 1.0));
                rows
            });

            assert_eq!(probe(&mut engine, None, Some(&golden(rows))).unwrap(), Batching::Rows);
        }
    }

    #[test]
    fn the_owner_may_overrule_what_the_rows_show() {
        assert_eq!(
            probe(&mut by_batch(minus_mean), Some(true), None).unwrap(),
            Batching::Rows
        );

        let mut engine = TestEngine::sums();
        let off = probe(&mut engine, Some(false), None).unwrap();
        assert_eq!(
            off,
            Batching::Off {
                reason: "model.toml says batching = false".into()
            }
        );
        assert_eq!(engine.runs, 0);
    }

    #[test]
    fn the_owner_cannot_overrule_the_axes() {
        let inputs = vec![spec("x", Datatype::Fp32, &["1", "3"])];
        let mut engine = TestEngine::new(inputs, vec![spec("y", Datatype::Fp32, &["n"])], |_| unreachable!());

        let error = probe(&mut engine, Some(true), None).unwrap_err().to_string();

        let expected = "model.toml says batching = true, but input x FP32 [1,3] cannot hold rows: its first axis is always 1; \
                        remove it, or export the model with a dynamic first axis";
        assert_eq!(error, expected);
    }

    #[test]
    fn a_lost_device_is_an_error_and_no_property_of_the_model() {
        let io = |name| vec![spec(name, Datatype::Fp32, &["n"])];
        let mut engine = TestEngine::new(io("x"), io("y"), |_| Err(EngineError::Device("gone".into())));

        assert!(matches!(probe(&mut engine, None, None), Err(BatchingError::Device(_))));
    }

    #[test]
    fn rows_too_large_to_make_up_are_not_tried() {
        for size in ["5000000", "18446744073709551615"] {
            let inputs = vec![spec("x", Datatype::Fp32, &["n", "2", size])];
            let mut engine = TestEngine::new(inputs, vec![spec("y", Datatype::Fp32, &["n"])], |_| unreachable!());

            assert!(reason(&mut engine).contains("(a row is too large to be made up)"));
        }
    }
}
