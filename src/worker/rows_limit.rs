//! How many rows a run may have at the moment: half of them after a lack of memory, and slowly more again.
//!
//! On a GPU others come and go, and an arena that has grown for other models does not shrink; so what was too much once
//! may fit later. Pure: an engine has one of its own and tells it how its runs went.

/// The limit of one engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsLimit {
    rows_max: usize,
    rows: usize,
    good_runs: usize,
    /// The limit before the first lack of memory since it last rose.
    fallen_from: Option<usize>,
}

impl RowsLimit {
    pub fn new(rows_max: usize) -> Self {
        Self {
            rows_max,
            rows: rows_max,
            good_runs: 0,
            fallen_from: None,
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// There was no memory for a run of so many rows.
    pub fn starved(&mut self, rows: usize) {
        self.fallen_from.get_or_insert(self.rows);
        self.rows = (rows.min(self.rows) / 2).max(1);
        self.good_runs = 0;
    }

    /// A run succeeded.
    pub fn ran(&mut self) {
        if self.rows == self.rows_max {
            return;
        }
        self.good_runs += 1;
        if self.good_runs == GOOD_RUNS_A_STEP {
            self.good_runs = 0;
            self.fallen_from = None;
            let step = (self.rows_max / STEPS).max(1);
            self.rows = (self.rows + step).min(self.rows_max);
        }
    }

    /// One job found no memory however few of its rows were run: so it is the job, and the others' rows are not to blame.
    pub fn forgive(&mut self) {
        self.rows = self.fallen_from.take().unwrap_or(self.rows);
    }
}

/// Each failed run is run again in halves: one in some hundred costs less than what smaller runs would.
const GOOD_RUNS_A_STEP: usize = 32;
/// From the bottom to the top in 512 runs.
const STEPS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn after_good_runs(limit: &mut RowsLimit, runs: usize) -> usize {
        (0..runs).for_each(|_| limit.ran());
        limit.rows()
    }

    #[test]
    fn a_lack_of_memory_halves_the_rows_that_were_too_many_down_to_one() {
        let mut limit = RowsLimit::new(64);

        let fallen = [64, 20, 64, 5, 2, 1, 1].map(|rows| {
            limit.starved(rows);
            limit.rows()
        });

        assert_eq!(fallen, [32, 10, 5, 2, 1, 1, 1]);
    }

    #[test]
    fn rows_come_back_by_a_sixteenth_after_32_good_runs_in_a_row_and_never_beyond_the_limit() {
        let mut limit = RowsLimit::new(64);
        limit.starved(64);

        assert_eq!(after_good_runs(&mut limit, 31), 32);
        assert_eq!(after_good_runs(&mut limit, 1), 36);
        assert_eq!(after_good_runs(&mut limit, 31), 36);
        limit.starved(36);
        assert_eq!(after_good_runs(&mut limit, 31), 18);
        assert_eq!(after_good_runs(&mut limit, 1), 22);
        assert_eq!(after_good_runs(&mut limit, 32 * 100), 64);
    }

    #[test]
    fn a_limit_of_a_few_rows_rises_as_well() {
        let mut limit = RowsLimit::new(3);
        limit.starved(3);

        assert_eq!(limit.rows(), 1);
        assert_eq!(after_good_runs(&mut limit, 64), 3);
    }

    #[test]
    fn a_job_that_fits_in_no_size_leaves_the_limit_where_it_was() {
        let mut limit = RowsLimit::new(64);
        limit.starved(64);
        after_good_runs(&mut limit, 32);

        for rows in [36, 18, 9, 4, 2, 1] {
            limit.starved(rows);
            limit.ran(); // A neighbour's.
        }
        limit.forgive();
        let once = limit.rows();
        limit.forgive();

        assert_eq!((once, limit.rows()), (36, 36));
    }
}
