//! A trial of rows, where the graph of a model does not tell how they relate: a row must give the same alone and beside others.
//!
//! Rows may meet only for some values, so neighbours of other scales are tried, and such that are no numbers or infinite.

use std::fmt;

use super::batching::BatchingError;
use super::compare::{Deviation, Tolerance, elements, worst};
use super::golden::Golden;
use super::probe_rows::{self, Change, ProbeRows, ROWS, Row};
use super::signature::Signature;
use crate::wire::rows::RowRelation;
use crate::wire::tensor::Datatype;
use crate::worker::infer::{Engine, EngineError, Input, Output};

/// The outcome of a trial.
pub(super) struct TrialReport {
    pub(super) relation: RowRelation,
    /// Reason that rows are not taken for independent.
    pub(super) reason: Option<String>,
    /// For every output of the signature: whether its first axis counted the rows, alone and together.
    pub(super) row_outputs: Vec<bool>,
}

/// Runs rows of every form one after the other until they show something; recorded ones first.
///
/// # Errors
/// `BatchingError::Device` if the device is lost on the way.
pub(super) fn try_rows(
    engine: &mut dyn Engine,
    signature: &Signature,
    golden: Option<&Golden>,
) -> Result<TrialReport, BatchingError> {
    let mut trial = Trial {
        engine,
        signature,
        row_outputs: None,
    };
    let mut reasons = Vec::new();
    for rows in probe_rows::candidates(signature, golden) {
        match trial.compare(&rows)? {
            Shown::Nothing(reason) => reasons.push(reason),
            Shown::Independent => return Ok(trial.report(RowRelation::Independent, None)),
            Shown::Coupled(reason) => return Ok(trial.report(RowRelation::Coupled, Some(reason))),
            Shown::Unfit(reason) => return Ok(trial.report(RowRelation::Unknown, Some(reason))),
        }
    }
    // The first reason is that of recorded rows, or of the plainest ones that we made up.
    let reason = reasons
        .into_iter()
        .next()
        .unwrap_or_else(|| "a row is too large to be made up".to_owned());
    let reason = format!(
        "nothing shows that rows are independent ({reason}): record at least {ROWS} distinct golden rows, or set batching in model.toml"
    );
    Ok(trial.report(RowRelation::Unknown, Some(reason)))
}

/// The outcome of a trial with rows of one form.
enum Shown {
    /// Rows do not influence each other.
    Independent,
    /// A row's output depends on its neighbours.
    Coupled(String),
    /// Other rows would show no more than these.
    Unfit(String),
    /// The model could not be run, or answers every row alike.
    Nothing(String),
}

struct Trial<'a> {
    engine: &'a mut dyn Engine,
    signature: &'a Signature,
    /// `None` until several rows were run.
    row_outputs: Option<Vec<bool>>,
}

/// The outputs of a run, or why there are none.
type Ran = Result<Vec<Output>, String>;

impl Trial<'_> {
    fn report(self, relation: RowRelation, reason: Option<String>) -> TrialReport {
        let outputs = self.signature.outputs.len();
        TrialReport {
            relation,
            reason,
            row_outputs: self.row_outputs.unwrap_or_else(|| vec![false; outputs]),
        }
    }

    fn compare(&mut self, rows: &ProbeRows) -> Result<Shown, BatchingError> {
        let mut singles = Vec::new();
        // The first row once more at the end.
        for row in (0..ROWS).chain([0]) {
            match self.run(&rows.single(row))? {
                Ok(outputs) => singles.push(outputs),
                Err(error) => return Ok(Shown::Nothing(format!("with a single row, {error}"))),
            }
        }
        let together = match self.run(&rows.together())? {
            Ok(outputs) => outputs,
            Err(error) => return Ok(Shown::Nothing(format!("with several rows, {error}"))),
        };
        let without_rows = self.count(&singles[..ROWS], &together);
        if !self.repeats(&singles[0], &singles[ROWS]) {
            return Ok(Shown::Unfit(UNREPEATABLE.to_owned()));
        }
        singles.truncate(ROWS);
        let singles: Vec<&[Output]> = singles.iter().map(Vec::as_slice).collect();
        if let Some(reason) = self.coupled(&singles, &together, Beside::OTHERS) {
            return Ok(Shown::Coupled(reason));
        }
        if let Some(name) = without_rows {
            let reason = format!("output {name} does not have one row for each row of input");
            return Ok(Shown::Unfit(reason));
        }
        if !self.differ(&singles) {
            return Ok(Shown::Nothing("every row gave the same outputs".to_owned()));
        }
        self.mix(rows, &singles)
    }

    /// Runs a row beside ones of other scales. What was tried with rows of one scale has shown nothing that speaks against them.
    fn mix(&mut self, rows: &ProbeRows, singles: &[&[Output]]) -> Result<Shown, BatchingError> {
        // A dim row, where it can be had, is what a branch on the largest value of all takes for another.
        let dim = self.neighbour(rows, 2, Change::Dim)?;
        let (third, of_third) = match &dim {
            Some((row, outputs)) => (row.clone(), outputs.as_slice()),
            None => (rows.row(2), singles[2]),
        };
        for change in Change::NEIGHBOURS {
            let Some((neighbour, of_neighbour)) = self.neighbour(rows, 1, change)? else {
                continue;
            };
            let mixed = rows.with_rows([rows.row(0), neighbour, third.clone()]);
            let together = match self.run(&mixed.together())? {
                Ok(outputs) => outputs,
                Err(error) => return Ok(Shown::Nothing(format!("with rows of several scales, {error}"))),
            };
            let singles = [singles[0], &of_neighbour, of_third];
            if let Some(reason) = self.coupled(&singles, &together, Beside::of(change)) {
                return Ok(Shown::Coupled(reason));
            }
        }
        Ok(Shown::Independent)
    }

    /// A row with other values and what it gives alone; `None` if nothing in it can be changed so, or the model fails on it.
    fn neighbour(
        &mut self,
        rows: &ProbeRows,
        row: usize,
        change: Change,
    ) -> Result<Option<(Row, Vec<Output>)>, BatchingError> {
        // Whole numbers may be indices, which fail when they are large, and say nothing of the floats beside them.
        let mut changes: Vec<Row> = [false, true]
            .into_iter()
            .filter_map(|floats_only| rows.changed(self.signature, row, change, floats_only))
            .collect();
        changes.dedup();
        for changed in changes {
            let alone = rows.with_rows([changed.clone(), rows.row(1), rows.row(2)]);
            if let Ok(outputs) = self.run(&alone.single(0))? {
                return Ok(Some((changed, outputs)));
            }
        }
        Ok(None)
    }

    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Ran, BatchingError> {
        match self.engine.run(inputs) {
            Ok(outputs) => Ok(Ok(outputs)),
            Err(error @ EngineError::Device(_)) => Err(BatchingError::Device(error)),
            Err(error @ (EngineError::Run(_) | EngineError::Memory(_) | EngineError::Late(_))) => {
                Ok(Err(error.to_string()))
            }
        }
    }

    /// Notes which outputs have one row a row, and names the first that has not.
    fn count(&mut self, singles: &[Vec<Output>], together: &[Output]) -> Option<String> {
        let outputs = self.signature.outputs.iter().enumerate();
        let counts = outputs.map(|(at, spec)| {
            let is_rows = |run: &[Output], rows| Rows::of(spec.datatype, run.get(at), rows).is_some();
            is_rows(together, ROWS) && singles.iter().all(|run| is_rows(run, 1))
        });
        let counts: Vec<bool> = counts.collect();
        let first = counts.iter().position(|counts| !counts);
        let before = self.row_outputs.take().unwrap_or_else(|| counts.clone());
        let always = before.iter().zip(&counts).map(|(before, now)| *before && *now);
        self.row_outputs = Some(always.collect());
        Some(self.signature.outputs[first?].name.clone())
    }

    /// Tells whether two runs of the same row gave the same.
    fn repeats(&self, first: &[Output], again: &[Output]) -> bool {
        let outputs = self.signature.outputs.iter().zip(first.iter().zip(again));
        first.len() == again.len()
            && outputs.into_iter().all(|(spec, (first, again))| {
                let parts = |output| elements(spec.datatype, Output::bytes(output)).unwrap_or_default();
                let (parts_first, parts_again) = (parts(first), parts(again));
                let tolerance = Tolerance::default_for(spec.datatype);
                first.shape == again.shape
                    && parts_first.len() == parts_again.len()
                    && worst(spec.datatype, &parts_first, &parts_again, tolerance)
                        .is_none_or(|worst| worst.is_allowed())
            })
    }

    /// Tells whether rows gave different outputs at all.
    fn differ(&self, singles: &[&[Output]]) -> bool {
        let others = |at: usize| singles.iter().map(move |run| run.get(at).map(Output::bytes));
        (0..self.signature.outputs.len()).any(|at| others(at).any(|bytes| Some(bytes) != others(at).next()))
    }

    /// The first output that has rows and gives a row something else together than alone.
    fn coupled(&self, singles: &[&[Output]], together: &[Output], beside: Beside) -> Option<String> {
        for (at, spec) in self.signature.outputs.iter().enumerate() {
            let Some(output) = Rows::of(spec.datatype, together.get(at), ROWS) else {
                continue;
            };
            for (row, single) in singles.iter().enumerate() {
                let Some(single) = Rows::of(spec.datatype, single.get(at), 1) else {
                    continue;
                };
                let mut tolerance = Tolerance::default_for(spec.datatype);
                if row == 1 {
                    tolerance.absolute *= beside.leniency;
                    tolerance.relative *= beside.leniency;
                }
                if let Some(difference) = difference(spec.datatype, &single, &output, row, tolerance) {
                    let (name, beside) = (&spec.name, beside.name);
                    return Some(format!(
                        "output {name} of a row depends on its neighbours: {difference} {beside}"
                    ));
                }
            }
        }
        None
    }
}

/// The company of a row.
#[derive(Debug, Clone, Copy)]
struct Beside {
    name: &'static str,
    /// Times the tolerance for the second row, whose own values may be so large that the order of a sum shows.
    leniency: f64,
}

impl Beside {
    const OTHERS: Self = Self {
        name: "with others",
        leniency: 1.0,
    };

    fn of(change: Change) -> Self {
        let (name, leniency) = match change {
            Change::Dim => ("beside smaller values", 1.0),
            Change::Times(_) => ("beside larger values", LENIENCY_MAX),
            Change::NotANumber => ("beside NaN", 1.0),
            Change::Infinite => ("beside infinite values", 1.0),
        };
        Self { name, leniency }
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

fn difference(
    datatype: Datatype,
    single: &Rows<'_>,
    together: &Rows<'_>,
    row: usize,
    tolerance: Tolerance,
) -> Option<Difference> {
    let columns = single.elements.len();
    if single.shape != together.shape || together.elements.len() != columns * ROWS {
        return Some(Difference::Shape {
            single: single.shape.to_vec(),
            together: together.shape.to_vec(),
        });
    }
    let of_row = &together.elements[row * columns..(row + 1) * columns];
    let worst = worst(datatype, &single.elements, of_row, tolerance)?;
    (!worst.is_allowed()).then_some(Difference::Value(worst))
}

enum Difference {
    Shape { single: Vec<usize>, together: Vec<usize> },
    Value(Deviation),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape { single, together } => write!(f, "shape {single:?} alone, {together:?}"),
            Self::Value(Deviation { expected, got, .. }) => write!(f, "{expected} alone, {got}"),
        }
    }
}

const UNREPEATABLE: &str = "the model answers the same row differently each time: it is random, or keeps something from run to \
                            run; set batching in model.toml if its rows may share a run all the same";
/// A hundredth is still less than any coupling by scale makes of a row, and more than rounding does.
const LENIENCY_MAX: f64 = 100.0;

#[cfg(test)]
mod tests;
