//! Timing: a few runs of growing size when a model is loaded, so that its capacity is known before its first job.

use std::time::Duration;

use tokio::time::Instant;

use super::capacity::Fit;
use super::golden::Golden;
use super::probe_rows::{self, ProbeRows};
use super::signature::{Dim, Signature};
use crate::worker::infer::Engine;

/// Times runs of one row up to `rows_max`, or of the model's own size where that is `None`.
///
/// A model that no recorded and no made-up row fits is not timed: its fit has no runs.
/// Time: 50 ms and a last run, or one run if that takes longer.
pub fn time(engine: &mut dyn Engine, golden: Option<&Golden>, rows_max: Option<usize>) -> Fit {
    time_within(BUDGET, engine, golden, rows_max)
}

fn time_within(budget: Duration, engine: &mut dyn Engine, golden: Option<&Golden>, rows_max: Option<usize>) -> Fit {
    let signature = engine.signature().clone();
    let began = Instant::now();
    let (first, last) = match rows_max {
        Some(rows_max) => (1, rows_max),
        None => (own_rows(&signature), own_rows(&signature)),
    };
    let mut fit = Fit::default();
    // The first run of a session allocates what the later ones find.
    let warmed_up =
        probe_rows::candidates(&signature, golden).find_map(|rows| Some((run(engine, &rows, first)?, rows)));
    let Some((mut took, rows)) = warmed_up else { return fit };
    let mut before = first;
    for size in sizes(first, last) {
        // Four times the rows hardly ever take four times as long, and a little over the budget does no harm.
        let expected = took.mul_f64((size as f64 / before as f64).min(2.0));
        if began.elapsed() + expected > budget {
            break;
        }
        let Some(best) = best(engine, &rows, size, || began.elapsed() > budget) else {
            break;
        };
        (took, before) = (best, size);
        fit.add(size, best);
    }
    if fit.capacity().is_none() {
        fit.add(first, took);
    }
    fit.keep_proportion();
    fit
}

/// The rows of a run of a model whose first axis is fixed.
fn own_rows(signature: &Signature) -> usize {
    match signature.inputs.first().and_then(|input| input.shape.first()) {
        Some(Dim::Fixed(rows)) => *rows,
        Some(Dim::Dynamic(_)) | None => 1,
    }
}

/// From the first to the last in steps of four: the line is not quite straight at its low end.
fn sizes(first: usize, last: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(first), move |size| {
        (*size < last).then(|| size.saturating_mul(4).min(last))
    })
}

/// The quickest of a few runs: whatever else the machine does only ever adds.
fn best(engine: &mut dyn Engine, rows: &ProbeRows, size: usize, is_late: impl Fn() -> bool) -> Option<Duration> {
    let mut best = run(engine, rows, size)?;
    for _ in 1..REPEATS {
        if is_late() {
            break;
        }
        best = best.min(run(engine, rows, size)?);
    }
    Some(best)
}

fn run(engine: &mut dyn Engine, rows: &ProbeRows, size: usize) -> Option<Duration> {
    let inputs = rows.repeated(size);
    let began = Instant::now();
    engine.run(&inputs).ok()?;
    Some(began.elapsed())
}

/// A sixth of what a start may take, for each model.
const BUDGET: Duration = Duration::from_millis(50);
const REPEATS: usize = 3;

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::model::test_engine::{Array, TestEngine, spec};
    use crate::wire::tensor::Datatype;
    use crate::worker::infer::EngineError;

    /// An engine that takes no more than so many rows, and the rows of its runs.
    fn engine(shape: &[&str], rows_max: usize) -> (TestEngine, Arc<Mutex<Vec<usize>>>) {
        let runs = Arc::new(Mutex::new(Vec::new()));
        let noted = runs.clone();
        let (inputs, outputs) = (
            vec![spec("x", Datatype::Fp32, shape)],
            vec![spec("y", Datatype::Fp32, shape)],
        );
        let engine = TestEngine::new(inputs, outputs, move |inputs: &[Array]| {
            let rows = inputs[0].shape[0];
            if rows > rows_max {
                return Err(EngineError::Memory("too big".to_owned()));
            }
            noted.lock().unwrap().push(rows);
            Ok(vec![inputs[0].clone()])
        });
        (engine, runs)
    }

    #[test]
    fn a_batchable_model_is_timed_from_one_row_to_the_most() {
        let (mut engine, runs) = engine(&["batch", "3"], usize::MAX);

        let fit = time_within(Duration::MAX, &mut engine, None, Some(50));

        assert!(fit.capacity().is_some());
        assert_eq!(*runs.lock().unwrap(), [1, 1, 1, 1, 4, 4, 4, 16, 16, 16, 50, 50, 50]);
    }

    #[test]
    fn a_model_of_one_size_is_timed_at_that() {
        let (mut engine, runs) = engine(&["4", "3"], usize::MAX);

        time_within(Duration::MAX, &mut engine, None, None);

        assert_eq!(*runs.lock().unwrap(), [4, 4, 4, 4]);
    }

    #[test]
    fn sizes_that_fail_are_left_out() {
        let (mut engine, runs) = engine(&["batch", "3"], 4);

        let fit = time_within(Duration::MAX, &mut engine, None, Some(64));

        assert!(fit.capacity().is_some());
        assert_eq!(*runs.lock().unwrap(), [1, 1, 1, 1, 4, 4, 4]);
    }

    #[test]
    fn a_model_that_fails_on_made_up_rows_is_not_timed() {
        let (mut engine, _) = engine(&["batch", "3"], 0);

        assert!(
            time_within(Duration::MAX, &mut engine, None, Some(64))
                .capacity()
                .is_none()
        );
    }

    #[test]
    fn a_run_beyond_the_budget_is_the_only_one() {
        let inputs = vec![spec("x", Datatype::Fp32, &["batch", "3"])];
        let mut engine = TestEngine::new(inputs.clone(), inputs, |inputs: &[Array]| {
            std::thread::sleep(BUDGET);
            Ok(vec![inputs[0].clone()])
        });

        let fit = time(&mut engine, None, Some(64));

        assert_eq!(engine.runs, 1);
        assert!(fit.capacity().unwrap().time(1, 1) >= BUDGET);
    }
}
