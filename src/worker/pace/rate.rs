//! What was measured of one model: how long a job takes while the worker has all it can do, and what it costs.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::{LOOK_SOON, Look};

/// What a job takes when there are many.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub seconds: f64,
    /// Rows of a job.
    pub rows: f64,
}

/// The rate of a backlog that was there at one look and, as a whole or nearly, settled by the next.
pub fn drained(before: &Look, look: &Look) -> Option<Rate> {
    let jobs = look.settled.jobs.saturating_sub(before.settled.jobs);
    let seconds = look.settled.last?.checked_duration_since(before.at)?.as_secs_f64();
    // What was in hand may have been all but settled.
    let is_telling = before.ready > 0 && jobs > before.in_hand;
    is_telling.then(|| Rate::new(seconds, jobs, look.settled.rows - before.settled.rows))
}

impl Rate {
    fn new(seconds: f64, jobs: u64, rows: u64) -> Self {
        Self {
            seconds: (seconds / jobs as f64).max(SECONDS_MIN),
            rows: rows as f64 / jobs as f64,
        }
    }

    /// A worker that does more than it was thought able to, though it had pauses, is able to do that.
    pub fn raise(&mut self, before: &Look, look: &Look, done: u64) {
        // What was in hand may have been all but settled.
        let jobs = done.saturating_sub(before.in_hand);
        let seconds = look.at.saturating_duration_since(before.at).as_secs_f64();
        if jobs > 0 && seconds / (jobs as f64) < self.seconds {
            let rows = look.settled.rows.saturating_sub(before.settled.rows) as f64 / done as f64;
            (self.seconds, self.rows) = ((seconds / jobs as f64).max(SECONDS_MIN), rows);
        }
    }

    /// Between two, on the scale of factors.
    fn between(self, other: Self, weight: f64) -> Self {
        let mean = |one: f64, other: f64| (one.ln() * (1.0 - weight) + other.ln() * weight).exp();
        Self {
            seconds: mean(self.seconds, other.seconds),
            rows: mean(self.rows, other.rows),
        }
    }
}

/// A time without a pause in which the worker had all it could do.
pub struct Stretch {
    /// The last settled job at each look at which there was a new one. The first is where it begins.
    marks: VecDeque<Mark>,
    /// What was known before.
    prior: Option<Rate>,
}

#[derive(Clone, Copy)]
struct Mark {
    at: Instant,
    jobs: u64,
    rows: u64,
}

impl Stretch {
    /// Jobs are settled in lumps, so that it begins with the end of one, if one has just ended.
    pub fn new(look: &Look, prior: Option<Rate>) -> Self {
        let lately = |last: &Instant| look.at.saturating_duration_since(*last) <= LOOK_SOON;
        let first = Mark {
            at: look.settled.last.filter(lately).unwrap_or(look.at),
            jobs: look.settled.jobs,
            rows: look.settled.rows,
        };
        Self {
            marks: [first].into(),
            prior,
        }
    }

    pub fn add(&mut self, look: &Look) {
        let (Some(at), Some(newest)) = (look.settled.last, self.marks.back()) else {
            return;
        };
        if look.settled.jobs <= newest.jobs || at <= newest.at {
            return;
        }
        self.marks.push_back(Mark {
            at,
            jobs: look.settled.jobs,
            rows: look.settled.rows,
        });
        while self.marks.len() > 2 && at.saturating_duration_since(self.marks[1].at) >= HORIZON {
            self.marks.pop_front();
        }
    }

    /// From the end of one lump to that of another.
    pub fn span(&self) -> Duration {
        let ends = self.marks.front().zip(self.marks.back());
        ends.map_or(Duration::ZERO, |(first, newest)| {
            newest.at.saturating_duration_since(first.at)
        })
    }

    pub fn rate(&self, look: &Look) -> Option<Rate> {
        let (first, newest) = self.marks.front().zip(self.marks.back())?;
        let (jobs, rows) = (newest.jobs - first.jobs, newest.rows - first.rows);
        if jobs == 0 {
            return None;
        }
        let span = self.span().as_secs_f64();
        let mut rate = Rate::new(span, jobs, rows);
        // A run, or a window, may have been under way when it began, but it is no quicker than the engines and the way to the broker.
        if let (2, Some(expected)) = (self.marks.len(), look.expected) {
            rate.seconds = rate.seconds.max(expected.engines.max(expected.in_turns) * FIRST_MIN);
        }
        // If nothing comes for long, all that is in hand will not have come at once.
        let open = look.at.saturating_duration_since(first.at).as_secs_f64();
        rate.seconds = rate.seconds.max(open / (jobs + look.in_hand) as f64);
        let weight = span / (span + PRIOR_SECONDS);
        Some(self.prior.map_or(rate, |prior| prior.between(rate, weight)))
    }
}

/// What a job takes of the processor, runs included, at the best of times: at the worst the worker does little else than
/// wake up.
#[derive(Default)]
pub struct JobCost {
    base: Option<(Duration, u64)>,
    pub seconds: Option<f64>,
}

impl JobCost {
    pub fn add(&mut self, processor: Duration, jobs: u64) {
        let (before, base) = *self.base.get_or_insert((processor, jobs));
        let jobs_since = jobs.saturating_sub(base);
        if jobs < base || jobs_since >= COST_JOBS_MIN {
            self.base = Some((processor, jobs));
        }
        if jobs_since >= COST_JOBS_MIN {
            let seconds = processor.saturating_sub(before).as_secs_f64() / jobs_since as f64;
            self.seconds = Some(self.seconds.map_or(seconds, |best| best.min(seconds)));
        }
    }
}

/// Long enough to even out what else the machine does, and short enough to follow jobs that change.
const HORIZON: Duration = Duration::from_secs(5);
/// What was known before counts as if it had been seen for so long.
const PRIOR_SECONDS: f64 = 0.1;
/// How much quicker than its parts the first lump may seem.
const FIRST_MIN: f64 = 0.8;
/// Fewer jobs say little of what one costs.
const COST_JOBS_MIN: u64 = 50;
/// What no clock can tell from nothing.
pub const SECONDS_MIN: f64 = 1e-9;
