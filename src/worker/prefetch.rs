//! Prefetching: how many deliveries a consumer asks for ahead of their acks. A pure rule.
//!
//! Credit is held from the delivery to the ack: while a batch forms, while it runs and while its replies are confirmed. With
//! less than that an engine waits for jobs that the broker has. With more, jobs wait here that an idle worker beside us
//! could run, a stop takes longer, and a crash has more of them run again.

use std::time::Duration;

use crate::model::capacity::Capacity;

/// What the engines of one lane do with jobs.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub capacity: Capacity,
    pub engines: usize,
    /// Most rows of a run; `None` if every job is a run of its own.
    pub rows_max: Option<usize>,
    /// Rows of a job in the mean.
    pub job_rows: f64,
}

/// The deliveries to ask for, and what keeps them from being more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetch {
    pub deliveries: u16,
    pub bound: Bound,
}

/// What a window is bounded by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// `broker.prefetch`.
    Configured,
    /// More would not make the engines any busier.
    Busy,
    /// More could not be finished in half of the drain timeout.
    Drained,
}

impl Bound {
    /// Its name as a label of `inferq_prefetch`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Configured => "broker.prefetch",
            Self::Busy => "busy",
            Self::Drained => "drain_timeout",
        }
    }

    /// Why there are no more deliveries, for the log.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Configured => "as broker.prefetch has it",
            Self::Busy => "more would not make its engines any busier",
            Self::Drained => {
                "more could not be finished in half of worker.drain_timeout_ms; worker.instances, if there are cores, or a \
                 longer timeout leave room for more"
            }
        }
    }
}

/// As many deliveries as keep the engines busy while replies are being confirmed, which takes `confirm` in the mean; not
/// more than can be finished in half of `drain_timeout`, and at most `asked`.
pub fn prefetch(asked: u16, loads: &[Load], confirm: Duration, drain_timeout: Duration) -> Prefetch {
    let whole = Prefetch {
        deliveries: asked,
        bound: Bound::Configured,
    };
    if loads.is_empty() {
        return whole;
    }
    let busy = loads.iter().map(|load| load.busy(confirm.as_secs_f64()));
    let busy = (busy.fold(0.0, f64::max).ceil() as u64).max(BUSY_MIN);
    let drained = drained(loads, drain_timeout);
    let (deliveries, bound) = if drained < busy {
        (drained, Bound::Drained)
    } else {
        (busy, Bound::Busy)
    };
    match u16::try_from(deliveries) {
        Ok(deliveries) if deliveries < asked => Prefetch { deliveries, bound },
        Ok(_) | Err(_) => whole,
    }
}

/// The jobs that every lane could finish in half of the time. A worker that is to finish nothing is not held to it.
fn drained(loads: &[Load], drain_timeout: Duration) -> u64 {
    if drain_timeout.is_zero() {
        return u64::MAX;
    }
    let seconds = drain_timeout.as_secs_f64() / 2.0;
    let least = loads.iter().map(|load| load.finished_in(seconds) as u64).min();
    // One job runs and the next one is there when it ends.
    let running = loads.iter().map(|load| 2 * load.engines as u64).max();
    least.unwrap_or(u64::MAX).max(running.unwrap_or(1)).max(1)
}

impl Load {
    /// Jobs of a full run.
    fn run_jobs(&self) -> f64 {
        self.rows_max
            .map_or(1.0, |rows_max| (rows_max as f64 / self.job_rows).max(1.0))
    }

    /// Rows of a full run. A job with more is run in slices.
    fn run_rows(&self) -> f64 {
        self.rows_max.map_or(self.job_rows, |rows_max| rows_max as f64)
    }

    /// `S·B·(2 + C/τ(B))`: a batch that runs and one that forms for every engine, and those whose replies are under way.
    fn busy(&self, confirm: f64) -> f64 {
        let run = self.capacity.seconds(self.run_rows(), 1.0);
        self.engines as f64 * self.run_jobs() * (2.0 + confirm / run)
    }

    /// The most jobs `P` for which `P·a + ⌈P/B⌉·b`, shared by all engines, is not more than `seconds`.
    fn finished_in(&self, seconds: f64) -> f64 {
        let (seconds, run) = (seconds * self.engines as f64, self.capacity.seconds_per_run);
        let job = self.capacity.seconds(self.job_rows, self.job_rows / self.run_rows());
        // What rounding up adds is one run.
        ((seconds - run) / job).floor().max(0.0)
    }

    /// How long all engines together take for so many jobs.
    pub fn seconds(&self, jobs: f64) -> f64 {
        let rows = jobs * self.job_rows;
        let runs = (rows / self.run_rows()).ceil();
        self.capacity.seconds(rows, runs) / self.engines as f64
    }
}

/// A quorum queue hands out in pieces, and what a fast network and a slow disk make of confirms is known only later: below
/// about this many jobs the broker's own hesitation shows.
const BUSY_MIN: u64 = 100;

/// How long confirms are taken to need before one was measured: twice those of a persistent reply on a good disk. A window
/// too small would cost throughput, one too big only fairness.
pub const CONFIRM_ASSUMED: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(row_us: f64, run_us: f64) -> Load {
        Load {
            capacity: Capacity {
                seconds_per_row: row_us * 1e-6,
                seconds_per_run: run_us * 1e-6,
            },
            engines: 1,
            rows_max: Some(64),
            job_rows: 1.0,
        }
    }

    fn asked(asked: u16, load: Load, confirm_ms: u64, drain_ms: u64) -> Prefetch {
        let (confirm, drain) = (Duration::from_millis(confirm_ms), Duration::from_millis(drain_ms));
        prefetch(asked, &[load], confirm, drain)
    }

    fn lowered(deliveries: u16, bound: Bound) -> Prefetch {
        Prefetch { deliveries, bound }
    }

    #[test]
    fn the_formula_gives_the_windows_of_its_table() {
        // 64 rows take 0.76 ms; confirms 2 ms, 20 ms, 200 ms.
        let reference = load(11.25, 40.0);

        let windows = [2, 20, 200].map(|confirm| asked(u16::MAX, reference, confirm, 25_000).deliveries);

        assert_eq!(windows, [297, 1813, 16_971]);
    }

    #[test]
    fn what_is_configured_is_never_exceeded() {
        let whole = Prefetch {
            deliveries: 256,
            bound: Bound::Configured,
        };

        assert_eq!(asked(256, load(11.25, 40.0), 20, 25_000), whole);
        assert_eq!(prefetch(256, &[], Duration::ZERO, Duration::ZERO), whole);
    }

    #[test]
    fn a_model_whose_runs_hide_the_confirms_needs_two_batches() {
        assert_eq!(asked(256, load(1_000.0, 0.0), 1, 25_000), lowered(129, Bound::Busy));
    }

    #[test]
    fn what_is_in_hand_can_be_finished_in_half_the_drain_timeout() {
        // A second a row, and 12.5 s.
        let slow = load(1e6, 0.0);

        assert_eq!(asked(256, slow, 20, 25_000), lowered(12, Bound::Drained));
        assert_eq!(
            asked(256, Load { job_rows: 4.0, ..slow }, 20, 25_000),
            lowered(3, Bound::Drained)
        );
        assert_eq!(
            asked(256, Load { engines: 4, ..slow }, 20, 25_000),
            lowered(50, Bound::Drained)
        );
    }

    #[test]
    fn an_engine_has_one_job_and_the_next_however_slow_it_is() {
        let slow = Load {
            engines: 3,
            ..load(1e9, 0.0)
        };

        assert_eq!(asked(256, slow, 20, 25_000), lowered(6, Bound::Drained));
    }

    #[test]
    fn a_worker_that_may_not_take_time_to_drain_is_not_held_to_it() {
        assert_eq!(asked(256, load(1e6, 0.0), 20, 0).bound, Bound::Busy);
    }

    proptest! {
        #[test]
        fn no_more_is_asked_for_than_can_be_finished_and_never_nothing(
            row_us in 0.1_f64..1e7,
            run_us in 0.0_f64..1e7,
            engines in 1_usize..9,
            rows_max in proptest::option::of(1_usize..100),
            job_rows in 1.0_f64..300.0,
            drain_ms in 1_u64..100_000,
        ) {
            let load = Load { engines, rows_max, job_rows, ..load(row_us, run_us) };

            let window = asked(256, load, 20, drain_ms).deliveries;

            prop_assert!((1..=256).contains(&window));
            let jobs = f64::from(window);
            let in_time = load.seconds(jobs) <= drain_ms as f64 / 2_000.0 * (1.0 + 1e-9);
            prop_assert!(in_time || window as usize <= 2 * engines, "{window}: {} s", load.seconds(jobs));
        }
    }
}
