//! The capacity model: a run of `n` rows takes `t = a·n + b`, and both constants are measured.
//!
//! [`super::timing`] times a model when it is loaded; from then on each engine adds its runs to a [`Fit`] of its own and
//! shows what comes out in the [`Estimate`] of its lane, from which deadlines, prefetch and metrics are computed. What is
//! done with the numbers is not decided here.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a model takes of an engine's time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Capacity {
    /// `a`: above 0.
    pub seconds_per_row: f64,
    /// `b`: 0 or more.
    pub seconds_per_run: f64,
}

impl Capacity {
    /// The time of so many rows in so many runs, on one engine.
    pub fn seconds(self, rows: f64, runs: f64) -> f64 {
        self.seconds_per_row * rows + self.seconds_per_run * runs
    }

    /// As [`Capacity::seconds`], of whole rows and runs.
    pub fn time(self, rows: usize, runs: usize) -> Duration {
        Duration::try_from_secs_f64(self.seconds(rows as f64, runs as f64)).unwrap_or(Duration::MAX)
    }
}

/// What is known of a lane's capacity: written by its engines, read by whoever asks.
///
/// Both constants are one word, so that nobody reads the row of one fit with the run of another.
#[derive(Debug, Default)]
pub struct Estimate(AtomicU64);

impl Estimate {
    pub fn new(capacity: Option<Capacity>) -> Self {
        let estimate = Self::default();
        if let Some(capacity) = capacity {
            estimate.set(capacity);
        }
        estimate
    }

    /// Keeps seven digits of each, more than any measurement has.
    pub fn set(&self, capacity: Capacity) {
        let row = (capacity.seconds_per_row as f32).max(f32::MIN_POSITIVE).to_bits();
        let run = (capacity.seconds_per_run as f32).to_bits();
        self.0.store(u64::from(row) << 32 | u64::from(run), Ordering::Relaxed);
    }

    /// `None` until something was measured.
    pub fn get(&self) -> Option<Capacity> {
        let bits = self.0.load(Ordering::Relaxed);
        let constant = |bits: u64| f64::from(f32::from_bits(bits as u32));
        (bits != 0).then(|| Capacity {
            seconds_per_row: constant(bits >> 32),
            seconds_per_run: constant(bits & u64::from(u32::MAX)),
        })
    }
}

/// The line through the last runs of one engine.
#[derive(Debug, Clone, Default)]
pub struct Fit {
    runs: VecDeque<Sample>,
    line: Option<Capacity>,
    /// A line whose proportion of row to run is known to be good.
    proportion: Option<Capacity>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    rows: f64,
    seconds: f64,
}

impl Fit {
    /// What the runs so far say; `None` before the first.
    pub fn capacity(&self) -> Option<Capacity> {
        self.line
    }

    /// Takes in a run that has ended well, and says what is known now.
    pub fn add(&mut self, rows: usize, took: Duration) -> Capacity {
        let rows = rows.max(1) as f64;
        let mut seconds = took.as_secs_f64().max(SECONDS_MIN);
        if let Some(line) = self.line {
            let expected = line.seconds(rows, 1.0);
            seconds = seconds.min(expected * SLOWER_MAX);
            if seconds < expected / 2.0 {
                self.forget_half();
            }
        }
        if self.runs.len() == RUNS_MAX {
            self.runs.pop_front();
        }
        self.runs.push_back(Sample { rows, seconds });
        let line = self.through();
        self.line = Some(line);
        line
    }

    /// From here on, runs that are all of one size change how fast the line is and not its proportion of row to run.
    pub fn keep_proportion(&mut self) {
        self.proportion = self.line;
    }

    /// A run twice as quick as expected says that those before it were held up by something that is over. Believed for
    /// long, they would have jobs refused that could be run.
    fn forget_half(&mut self) {
        let kept = (self.runs.len() / 2).max(RUNS_KEPT_MIN);
        let gone = self.runs.len().saturating_sub(kept);
        self.runs.drain(..gone);
    }

    /// The line of least squares, held between "a run costs nothing" and "a row costs next to nothing" about the mean run.
    ///
    /// Summed up anew each time, a fraction of a microsecond: sums that are kept up to date drift.
    fn through(&self) -> Capacity {
        let count = self.runs.len().max(1) as f64;
        let mean_rows = self.runs.iter().map(|run| run.rows).sum::<f64>() / count;
        let mean_seconds = self.runs.iter().map(|run| run.seconds).sum::<f64>() / count;
        let (mut squares, mut products) = (0.0, 0.0);
        for run in &self.runs {
            squares += (run.rows - mean_rows).powi(2);
            products += (run.rows - mean_rows) * (run.seconds - mean_seconds);
        }
        let all_in_rows = mean_seconds / mean_rows;
        let slope = if squares >= mean_rows.powi(2) {
            products / squares
        } else {
            // Runs of one size do not tell row from run. What was known of that still holds; the mean says how fast. The
            // last line knows it less well: it may have been drawn while runs of another size gave way to these.
            self.proportion.or(self.line).map_or(all_in_rows, |line| {
                line.seconds_per_row * mean_seconds / line.seconds(mean_rows, 1.0)
            })
        };
        let seconds_per_row = slope.clamp(all_in_rows * ROW_SHARE_MIN, all_in_rows);
        Capacity {
            seconds_per_row,
            seconds_per_run: (mean_seconds - seconds_per_row * mean_rows).max(0.0),
        }
    }
}

/// Enough to even out what else the machine does, and few enough to follow it within seconds under load.
const RUNS_MAX: usize = 128;
/// Fewer say nothing beyond their own noise.
const RUNS_KEPT_MIN: usize = 8;
/// As how many times slower than expected a run counts at most: one that was held up for a second must not speak for the
/// next hundred, and a model that did get slower is followed all the same, within some two hundred runs for a factor of 100.
const SLOWER_MAX: f64 = 4.0;
/// What a row costs at least, as a share of the mean time for a row: never nothing, or any number of rows would be free.
const ROW_SHARE_MIN: f64 = 0.01;
/// What no clock can tell from nothing.
const SECONDS_MIN: f64 = 1e-9;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn micros(micros: f64) -> Duration {
        Duration::from_secs_f64(micros * 1e-6)
    }

    fn fit(runs: impl IntoIterator<Item = (usize, f64)>) -> Fit {
        let mut fit = Fit::default();
        for (rows, took) in runs {
            fit.add(rows, micros(took));
        }
        fit
    }

    fn micros_of(fit: &Fit, rows: f64) -> f64 {
        fit.capacity().unwrap().seconds(rows, 1.0) * 1e6
    }

    fn is_near(got: f64, wanted: f64) -> bool {
        (got - wanted).abs() <= wanted * 0.01
    }

    #[test]
    fn runs_that_lie_on_a_line_give_that_line() {
        let fit = fit([1, 8, 64].map(|rows| (rows, 11.0 * rows as f64 + 40.0)));

        let capacity = fit.capacity().unwrap();

        assert!(is_near(capacity.seconds_per_row, 11e-6), "{capacity:?}");
        assert!(is_near(capacity.seconds_per_run, 40e-6), "{capacity:?}");
        assert!(is_near(capacity.time(128, 2).as_secs_f64(), 1488e-6));
    }

    #[test]
    fn runs_of_one_size_say_how_fast_and_not_what_a_row_costs() {
        let mut fit = fit([1, 8, 64].map(|rows| (rows, 11.0 * rows as f64 + 40.0)));
        fit.keep_proportion();

        for _ in 0..1_000 {
            fit.add(64, micros(2.0 * 744.0));
        }

        let capacity = fit.capacity().unwrap();
        assert!(is_near(capacity.seconds_per_row, 22e-6), "{capacity:?}");
        assert!(is_near(capacity.seconds_per_run, 80e-6), "{capacity:?}");
    }

    #[test]
    fn a_single_run_counts_as_rows_alone() {
        let fit = fit([(4, 100.0)]);

        assert!(is_near(micros_of(&fit, 4.0), 100.0) && is_near(micros_of(&fit, 8.0), 200.0));
    }

    #[test]
    fn one_run_that_was_held_up_hardly_counts() {
        let mut fit = fit((0..128).map(|_| (1, 100.0)));

        fit.add(1, Duration::from_secs(60));

        assert!(micros_of(&fit, 1.0) < 105.0, "{:?}", fit.capacity());
    }

    #[test]
    fn a_model_that_gets_slower_is_followed() {
        let mut fit = fit((0..128).map(|_| (1, 100.0)));

        for _ in 0..400 {
            fit.add(1, micros(10_000.0));
        }

        assert!(is_near(micros_of(&fit, 1.0), 10_000.0), "{:?}", fit.capacity());
    }

    #[test]
    fn a_time_that_was_too_long_is_forgotten_within_a_few_quick_runs() {
        let mut fit = fit((0..128).map(|_| (1, 10_000.0)));

        for _ in 0..16 {
            fit.add(1, micros(100.0));
        }

        assert!(micros_of(&fit, 1.0) < 120.0, "{:?}", fit.capacity());
    }

    #[test]
    fn an_estimate_is_nothing_until_it_is_set() {
        let estimate = Estimate::default();
        let before = estimate.get();
        estimate.set(Capacity {
            seconds_per_row: 1e-5,
            seconds_per_run: 0.0,
        });

        let after = estimate.get().unwrap();

        assert_eq!(before, None);
        assert!(is_near(after.seconds_per_row, 1e-5) && after.seconds_per_run == 0.0);
    }

    #[test]
    fn what_takes_longer_than_a_clock_can_tell_takes_for_ever() {
        let capacity = Capacity {
            seconds_per_row: 1e300,
            seconds_per_run: 0.0,
        };

        assert_eq!(capacity.time(usize::MAX, 1), Duration::MAX);
    }

    proptest! {
        #[test]
        fn whatever_is_measured_a_row_costs_something_and_a_run_nothing_or_more(
            runs in proptest::collection::vec((0_usize..100_000, 0_u64..u64::MAX), 1..300),
        ) {
            let mut fit = Fit::default();
            for (rows, nanos) in runs {
                let capacity = fit.add(rows, Duration::from_nanos(nanos));

                prop_assert!(capacity.seconds_per_row > 0.0 && capacity.seconds_per_row.is_finite());
                prop_assert!(capacity.seconds_per_run >= 0.0 && capacity.seconds_per_run.is_finite());
                let estimate = Estimate::new(Some(capacity)).get().unwrap();
                prop_assert!(estimate.seconds_per_row > 0.0 && estimate.seconds_per_run >= 0.0);
            }
        }

        #[test]
        fn noise_does_not_lead_the_line_astray(
            row in 1.0_f64..1000.0,
            run in 0.0_f64..10_000.0,
            noise in proptest::collection::vec((1_usize..65, 0.9_f64..1.1), 128),
        ) {
            let fit = fit(noise.iter().map(|(rows, off)| (*rows, (row * *rows as f64 + run) * off)));

            for rows in [1.0, 32.0, 64.0] {
                let (got, wanted) = (micros_of(&fit, rows), row * rows + run);
                prop_assert!((got - wanted).abs() <= 0.2 * wanted + 0.1 * row * 32.0, "{rows} rows: {got} for {wanted}");
            }
        }
    }
}
