//! What is counted while the answers come in: the progress bar, the summary, and the rows that failed.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::client::latency::Latencies;

pub struct Tally {
    started: Instant,
    /// Rows that an earlier run has done.
    rows_before: u64,
    rows: u64,
    jobs: u64,
    failed_rows: u64,
    first_failures: Vec<Failure>,
    /// The file of all of them.
    listed_in: Option<PathBuf>,
    latencies: Latencies,
    bar: ProgressBar,
}

/// The rows of one job that has no answer.
#[derive(Debug)]
struct Failure {
    first_row: u64,
    rows: u64,
    reason: String,
}

impl Tally {
    /// With a progress bar on standard error, if that is a terminal.
    pub fn new() -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template(BAR) {
            bar.set_style(style);
        }
        Self {
            started: Instant::now(),
            rows_before: 0,
            rows: 0,
            jobs: 0,
            failed_rows: 0,
            first_failures: Vec::new(),
            listed_in: None,
            latencies: Latencies::default(),
            bar,
        }
    }

    /// Goes on where an earlier run has stopped; rates and times are of this one.
    #[must_use]
    pub fn after(self, rows: u64, jobs: u64, failed_rows: u64) -> Self {
        self.bar.set_position(rows);
        self.bar.reset_eta();
        Self {
            rows_before: rows,
            rows,
            jobs,
            failed_rows,
            ..self
        }
    }

    pub fn jobs(&self) -> u64 {
        self.jobs
    }

    pub fn failed_rows(&self) -> u64 {
        self.failed_rows
    }

    /// Rows that were counted so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn answered(&mut self, rows: usize, latency: Duration) {
        self.latencies.record(latency);
        self.count(rows);
    }

    pub fn failed(&mut self, rows: usize, reason: String) {
        if self.first_failures.len() < FAILURES_NAMED {
            self.first_failures.push(Failure {
                first_row: self.rows,
                rows: rows as u64,
                reason,
            });
        }
        self.failed_rows += rows as u64;
        self.count(rows);
    }

    fn count(&mut self, rows: usize) {
        self.jobs += 1;
        self.rows += rows as u64;
    }

    /// Says where all rows are listed that failed.
    pub fn listed_in(&mut self, path: Option<&Path>) {
        self.listed_in = path.map(Path::to_owned);
    }

    /// Moves the bar; `total` may be a guess, and 0 is none.
    pub fn show(&self, total: u64) {
        if total > 0 {
            self.bar.set_length(total.max(self.rows));
        }
        self.bar.set_position(self.rows);
    }

    /// Takes the bar away, before anything else is said.
    pub fn hide(&self) {
        self.bar.finish_and_clear();
    }

    /// The line at the end.
    pub fn summary(&self) -> String {
        self.bar.finish_and_clear();
        let seconds = self.started.elapsed().as_secs_f64();
        let millis = |share| self.latencies.quantile(share).as_secs_f64() * 1e3;
        format!(
            "{} in {}, {} failed, in {seconds:.1} s: {:.0} rows/s; a job took {:.1} ms (p50), {:.1} ms (p99)",
            counted(self.rows, "row"),
            counted(self.jobs, "job"),
            counted(self.failed_rows, "row"),
            (self.rows - self.rows_before) as f64 / seconds.max(1e-9),
            millis(0.5),
            millis(0.99),
        )
    }

    /// # Errors
    /// Rows have failed.
    pub fn verdict(self) -> Result<(), RowsFailed> {
        if self.failed_rows == 0 {
            return Ok(());
        }
        let mut named: Vec<String> = self.first_failures.iter().map(Failure::line).collect();
        let named_rows: u64 = self.first_failures.iter().map(|failure| failure.rows).sum();
        if named_rows < self.failed_rows {
            named.push(format!("\n  and {} more", self.failed_rows - named_rows));
        }
        if let Some(path) = &self.listed_in {
            named.push(format!("\n  all of them are listed in {}", path.display()));
        }
        Err(RowsFailed {
            failed: self.failed_rows,
            rows: self.rows,
            named: named.concat(),
        })
    }
}

impl Failure {
    fn line(&self) -> String {
        let Self {
            first_row,
            reason,
            rows,
            ..
        } = self;
        match rows {
            1 => format!("\n  row {first_row}: {reason}"),
            rows => format!("\n  rows {first_row} to {}: {reason}", first_row + rows - 1),
        }
    }
}

fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The work was done, and some rows have no answer.
#[derive(Debug, thiserror::Error)]
#[error("{failed} of {rows} rows have no answer (rows count from 0):{named}")]
pub struct RowsFailed {
    failed: u64,
    rows: u64,
    named: String,
}

const FAILURES_NAMED: usize = 5;
const BAR: &str = "{wide_bar} {human_pos}/{human_len} rows  {per_sec}  {eta} left";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_rows_and_jobs() {
        let mut tally = Tally::new();
        tally.answered(9, Duration::from_millis(10));
        tally.failed(1, "no".to_owned());

        let summary = tally.summary();

        assert!(summary.starts_with("10 rows in 2 jobs, 1 row failed, in "), "{summary}");
        assert!(
            summary.contains("a job took 10.") || summary.contains("a job took 9."),
            "{summary}"
        );
    }

    #[test]
    fn the_first_failures_are_named_by_their_rows() {
        let mut tally = Tally::new();
        tally.answered(4, Duration::ZERO);
        tally.failed(1, "too hot".to_owned());
        for _ in 0..7 {
            tally.failed(2, "too cold".to_owned());
        }

        let error = tally.verdict().unwrap_err().to_string();

        let expected = "15 of 19 rows have no answer (rows count from 0):\n  row 4: too hot\n  rows 5 to 6: too cold";
        assert!(error.starts_with(expected), "{error}");
        assert!(error.ends_with("\n  and 6 more"), "{error}");
        assert!(Tally::new().verdict().is_ok());
    }

    #[test]
    fn what_an_earlier_run_has_done_counts_for_the_rows_and_not_for_the_rate() {
        let mut tally = Tally::new().after(1_000_000, 10, 3);
        tally.answered(5, Duration::from_millis(10));

        let summary = tally.summary();

        assert!(
            summary.starts_with("1000005 rows in 11 jobs, 3 rows failed"),
            "{summary}"
        );
        let error = tally.verdict().unwrap_err().to_string();
        assert!(
            error.contains("3 of 1000005 rows") && error.ends_with("\n  and 3 more"),
            "{error}"
        );
    }
}
