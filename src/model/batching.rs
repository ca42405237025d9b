//! Decides how jobs for a model are run, by what is known of its rows: from the graph, or where that is not enough, by a trial.

use super::golden::Golden;
use super::row_trial::{self, TrialReport};
use super::rows::{RowsProof, RowsVerdict};
use super::signature::{Dim, Signature, TensorSpec};
use crate::wire::rows::RowRelation;
use crate::worker::infer::{Engine, EngineError};

/// What is known of a model's rows, and how its jobs are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsReport {
    /// What the graph shows.
    pub proof: RowsVerdict,
    /// What the graph shows, or where it leaves that open, a trial or the model's owner.
    pub relation: RowRelation,
    pub decided_by: DecidedBy,
    /// Reason that rows are not taken for independent.
    pub reason: Option<String>,
    /// For every output of the signature: whether its first axis counts the rows.
    pub row_outputs: Vec<bool>,
    pub batching: Batching,
}

/// The source of what is known of a model's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecidedBy {
    Graph,
    /// Runs of single rows and of several together.
    Trial,
    /// The model's owner, in `model.toml`.
    Owner,
}

impl DecidedBy {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Graph => "graph",
            Self::Trial => "trial",
            Self::Owner => "model.toml",
        }
    }
}

/// How jobs for a model are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batching {
    /// Rows of several jobs share a run.
    Rows,
    /// Every job is a run of its own.
    Off { reason: String },
}

/// What the owner of a model says of how its jobs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    None,
    /// `model.toml` says that rows share a run.
    Batched,
    /// Every job is a run of its own, for this reason.
    Alone(&'static str),
}

impl From<Option<bool>> for Wish {
    /// By `batching` of `model.toml`.
    fn from(batching: Option<bool>) -> Self {
        match batching {
            None => Self::None,
            Some(true) => Self::Batched,
            Some(false) => Self::Alone("model.toml says batching = false"),
        }
    }
}

/// Decides how jobs for this model are run, given what its graph shows.
///
/// `wish` is the owner's: `Alone` is taken at its word, `Batched` overrides what a trial shows, but
/// neither a proof that rows are coupled nor axes that cannot hold several rows. A trial is made only where the graph leaves
/// the question open; its rows come from `golden` if that has enough of them. What cannot be shown counts as not batchable:
/// that costs speed, and a wrong guess would spoil answers.
///
/// Time: none where the graph decides; else some 15 runs of one row or three, and again for every other form of made-up rows
/// while nothing is shown.
/// # Errors
/// `BatchingError::Axes` if batching is demanded of a model whose axes forbid it, `BatchingError::Coupled` if of one whose
/// rows are coupled, `BatchingError::Device` if the device is lost on the way.
pub fn decide(
    engine: &mut dyn Engine,
    proof: &RowsProof,
    wish: impl Into<Wish>,
    golden: Option<&Golden>,
) -> Result<RowsReport, BatchingError> {
    let wish = wish.into();
    let signature = engine.signature().clone();
    let axes = first_axes(&signature);
    if wish == Wish::Batched {
        if let Some(axis) = axes {
            return Err(BatchingError::Axes { axis });
        }
        if let RowsVerdict::Coupled { reason } = &proof.verdict {
            return Err(BatchingError::Coupled { reason: reason.clone() });
        }
    }
    let known = match (&proof.verdict, wish, &axes) {
        (RowsVerdict::Unknown { .. }, Wish::Batched, _) => Known::by_owner(),
        (RowsVerdict::Unknown { .. }, Wish::None, None) => row_trial::try_rows(engine, &signature, golden)?.into(),
        (verdict, _, _) => Known::by_graph(verdict),
    };
    let is_row_output = |(at, spec): (usize, &TensorSpec)| {
        let by_trial = known.row_outputs.get(at) == Some(&true);
        known.relation == RowRelation::Independent || by_trial || proof.is_row_output(&spec.name)
    };
    let row_outputs = signature.outputs.iter().enumerate().map(is_row_output).collect();
    Ok(RowsReport {
        proof: proof.verdict.clone(),
        relation: known.relation,
        decided_by: known.by,
        row_outputs,
        batching: batching(wish, axes, &known),
        reason: known.reason,
    })
}

fn batching(wish: Wish, axes: Option<String>, known: &Known) -> Batching {
    let reason = match (wish, axes) {
        (Wish::Alone(reason), _) => reason.to_owned(),
        (_, Some(axis)) => axis,
        (_, None) if known.relation == RowRelation::Independent => return Batching::Rows,
        (_, None) => known.reason.clone().unwrap_or_default(),
    };
    Batching::Off { reason }
}

/// Findings on a model's rows.
struct Known {
    relation: RowRelation,
    by: DecidedBy,
    reason: Option<String>,
    /// Empty where nothing was run.
    row_outputs: Vec<bool>,
}

impl Known {
    fn by_graph(verdict: &RowsVerdict) -> Self {
        Self {
            relation: verdict.relation(),
            by: DecidedBy::Graph,
            reason: verdict.reason().map(str::to_owned),
            row_outputs: Vec::new(),
        }
    }

    fn by_owner() -> Self {
        Self {
            relation: RowRelation::Independent,
            by: DecidedBy::Owner,
            reason: None,
            row_outputs: Vec::new(),
        }
    }
}

impl From<TrialReport> for Known {
    fn from(trial: TrialReport) -> Self {
        Self {
            relation: trial.relation,
            by: DecidedBy::Trial,
            reason: trial.reason,
            row_outputs: trial.row_outputs,
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
    use crate::model::test_engine::{Array, TestEngine, spec};
    use crate::wire::tensor::Datatype;

    fn proof(verdict: RowsVerdict) -> RowsProof {
        RowsProof {
            verdict,
            outputs: Vec::new(),
        }
    }

    fn unknown() -> RowsProof {
        let reason = "node `n` (mine.Custom) is not known".to_owned();
        proof(RowsVerdict::Unknown { reason })
    }

    fn coupled() -> RowsProof {
        let reason = "node `Max_3` (ReduceMax) reduces over the rows".to_owned();
        proof(RowsVerdict::Coupled { reason })
    }

    fn independent() -> RowsProof {
        proof(RowsVerdict::Independent)
    }

    fn off(reason: &str) -> Batching {
        Batching::Off { reason: reason.into() }
    }

    /// `x FP32 [batch,3]` to `y FP32 [batch,2]`, each row minus a share of the first.
    fn minus_first() -> TestEngine {
        let sums = vec![spec("y", Datatype::Fp32, &["batch", "2"])];
        TestEngine::new(vec![spec("x", Datatype::Fp32, &["batch", "3"])], sums, |inputs| {
            let rows = inputs[0].rows();
            let values = rows.iter().flat_map(|row| [row[0] - 0.1 * rows[0][0], row[1]]);
            Ok(vec![Array::f32(&[rows.len(), 2], values)])
        })
    }

    #[test]
    fn a_proof_decides_without_a_run() {
        for (proof, relation, batching) in [
            (independent(), RowRelation::Independent, Batching::Rows),
            (
                coupled(),
                RowRelation::Coupled,
                off("node `Max_3` (ReduceMax) reduces over the rows"),
            ),
        ] {
            // What it computes speaks against both.
            let mut engine = if relation == RowRelation::Coupled {
                TestEngine::sums()
            } else {
                minus_first()
            };

            let report = decide(&mut engine, &proof, None, None).unwrap();

            assert_eq!((report.relation, report.decided_by), (relation, DecidedBy::Graph));
            assert_eq!(report.batching, batching);
            assert_eq!(report.row_outputs, [relation == RowRelation::Independent]);
            assert_eq!(engine.runs, 0);
        }
    }

    #[test]
    fn a_trial_decides_what_the_graph_leaves_open() {
        let report = decide(&mut TestEngine::sums(), &unknown(), None, None).unwrap();
        let other = decide(&mut minus_first(), &unknown(), None, None).unwrap();

        assert_eq!(report.relation, RowRelation::Independent);
        assert_eq!((report.decided_by, report.reason), (DecidedBy::Trial, None));
        assert_eq!(report.batching, Batching::Rows);
        assert_eq!(report.proof, unknown().verdict);
        assert_eq!(
            (other.relation, other.decided_by),
            (RowRelation::Coupled, DecidedBy::Trial)
        );
        assert_eq!(other.row_outputs, [true], "coupled, and still rows");
        assert_eq!(other.batching, off(&other.reason.unwrap()));
    }

    #[test]
    fn outputs_that_the_proof_calls_rows_are_rows() {
        let mut engine = TestEngine::sums();
        for proven in [true, false] {
            let mut proof = coupled();
            proof.outputs = vec![("y".to_owned(), proven)];

            let report = decide(&mut engine, &proof, None, None).unwrap();

            assert_eq!(report.row_outputs, [proven]);
        }
    }

    #[test]
    fn the_first_axis_declared_for_an_output_does_not_count() {
        for proof in [independent(), unknown()] {
            let inputs = vec![spec("x", Datatype::Fp32, &["n", "3"])];
            let outputs = vec![spec("label", Datatype::Fp32, &["1"])];
            let mut engine = TestEngine::new(inputs, outputs, |inputs| {
                let rows = inputs[0].rows();
                Ok(vec![Array::f32(&[rows.len()], rows.iter().map(|row| row[0]))])
            });

            let report = decide(&mut engine, &proof, None, None).unwrap();

            assert_eq!(report.batching, Batching::Rows);
            assert_eq!(report.row_outputs, [true]);
        }
    }

    #[test]
    fn input_axes_that_cannot_hold_rows_are_named_without_a_run() {
        let cases = [
            (
                &["1", "3"][..],
                "input x FP32 [1,3] cannot hold rows: its first axis is always 1",
            ),
            (&[], "input x FP32 [] cannot hold rows: it has no axes"),
            (
                &["n", "n"],
                "input x FP32 [n,n] cannot hold rows: its first axis, n, is tied to another one",
            ),
        ];
        for (input, expected) in cases {
            let inputs = vec![spec("x", Datatype::Fp32, input)];
            let mut engine = TestEngine::new(inputs, vec![spec("y", Datatype::Fp32, &["n"])], |_| unreachable!());

            let report = decide(&mut engine, &unknown(), None, None).unwrap();

            assert_eq!(report.batching, off(expected));
            assert_eq!(
                (report.relation, report.decided_by),
                (RowRelation::Unknown, DecidedBy::Graph)
            );
        }
    }

    #[test]
    fn the_owner_overrules_what_is_unknown() {
        let mut engine = minus_first();

        let report = decide(&mut engine, &unknown(), Some(true), None).unwrap();

        assert_eq!(report.relation, RowRelation::Independent);
        assert_eq!((report.decided_by, report.batching), (DecidedBy::Owner, Batching::Rows));
        assert_eq!(engine.runs, 0);
    }

    #[test]
    fn the_owner_cannot_overrule_coupled_rows() {
        let error = decide(&mut TestEngine::sums(), &coupled(), Some(true), None).unwrap_err();

        let expected = "model.toml says batching = true, but its rows are coupled: node `Max_3` (ReduceMax) reduces over the \
                        rows; remove it";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn the_owner_cannot_overrule_the_axes() {
        let inputs = vec![spec("x", Datatype::Fp32, &["1", "3"])];
        let mut engine = TestEngine::new(inputs, vec![spec("y", Datatype::Fp32, &["n"])], |_| unreachable!());

        let error = decide(&mut engine, &unknown(), Some(true), None).unwrap_err();

        let expected = "model.toml says batching = true, but input x FP32 [1,3] cannot hold rows: its first axis is always 1; \
                        remove it, or export the model with a dynamic first axis";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn an_owner_who_wants_no_batches_is_taken_at_the_word() {
        for (proof, relation) in [
            (independent(), RowRelation::Independent),
            (coupled(), RowRelation::Coupled),
            (unknown(), RowRelation::Unknown),
        ] {
            let mut engine = TestEngine::sums();

            let report = decide(&mut engine, &proof, Some(false), None).unwrap();

            assert_eq!(report.batching, off("model.toml says batching = false"));
            assert_eq!((report.relation, engine.runs), (relation, 0));
        }
    }
}
