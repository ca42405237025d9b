//! The pace: how fast the worker is with each of its models, and so how long it would take for what waits. A pure rule.
//!
//! What holds a worker up is not asked: engines, the way to the broker, the cost of a job around its run, other models. What
//! counts is how many jobs are settled in a second while the broker has more than the worker may take. That is remembered
//! for each number of other models that were busy meanwhile. Until it has been seen, the slowest of what was measured in
//! parts stands for it: engines, a round trip for every window of jobs, and the processor's time of a job.

mod rate;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use self::rate::{JobCost, Rate, SECONDS_MIN, Stretch, drained};
use super::prefetch::Load;
use crate::telemetry::metrics::SettledSoFar;

/// What is seen of a model at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub at: Instant,
    /// Jobs that the broker has and nobody holds.
    pub ready: u64,
    /// Jobs delivered to this worker and not settled.
    pub in_hand: u64,
    /// The most that may be in hand.
    pub window: u64,
    pub settled: SettledSoFar,
    /// `None` until a run was measured.
    pub expected: Option<Expected>,
}

impl Look {
    /// Whether the worker had all that it may take, or the broker more.
    fn is_full(&self) -> bool {
        self.ready > 0 || self.in_hand >= self.window
    }

    fn waiting(&self) -> f64 {
        self.ready as f64 + self.in_hand as f64
    }
}

/// Seconds of a job, measured in parts.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// Of the engines alone.
    pub engines: f64,
    /// Of a round trip to deliver and one to confirm, shared by a window of jobs.
    pub way: f64,
    /// Of both together.
    pub in_turns: f64,
    /// Rows of a job.
    pub rows: f64,
}

impl Expected {
    /// For a window of so many jobs; `round_trip` is one to the broker, `confirm` from publishing to its confirm.
    pub fn new(load: &Load, window: u64, round_trip: Duration, confirm: Duration) -> Self {
        let window = window.max(1) as f64;
        let way = (round_trip + confirm).as_secs_f64() / window;
        let all = load.seconds(window) / window;
        // Runs overlap with the way, unless all of the window is in one.
        let is_one = window <= load.rows_max.unwrap_or(1) as f64 / load.job_rows;
        let engines = load.seconds(MANY) / MANY;
        Self {
            engines,
            // Confirms take longer while the worker is busy, with what else is shared.
            way: 2.0 * round_trip.as_secs_f64() / window,
            in_turns: if is_one { way + all } else { way.max(engines) },
            rows: load.job_rows,
        }
    }
}

/// What is shown of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shown {
    /// What this worker alone would need for all that waits.
    pub seconds: f64,
    /// Rows that it settles in a second beside what its other models do now.
    pub rows_per_second: f64,
    /// Whether it never had all it could do, so that the figures come from its parts.
    pub is_estimate: bool,
}

/// What follows from a look.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// `None` until something is known.
    pub shown: Option<Shown>,
    /// Jobs wait for the first time, or other models have not been looked at: a moment later more is known, and until then nothing
    /// is to be shown.
    pub is_early: bool,
    pub next: Duration,
}

/// The models of one worker.
pub struct Paces {
    /// Runs that may go on at once.
    threads: f64,
    models: Vec<Pace>,
    cost: JobCost,
}

impl Paces {
    pub fn new(threads: usize) -> Self {
        Self {
            threads: threads.max(1) as f64,
            models: Vec::new(),
            cost: JobCost::default(),
        }
    }

    /// The number of one more model.
    pub fn join(&mut self) -> usize {
        self.models.push(Pace::default());
        self.models.len() - 1
    }

    /// The model is not consumed any more, or anew: what was seen last says nothing of what comes.
    pub fn leave(&mut self, model: usize) {
        let pace = &mut self.models[model];
        (pace.began, pace.last, pace.stretch) = (None, None, None);
    }

    /// Takes in what was seen, and the processor's time that the whole worker has taken; says what to show and when to look again.
    pub fn look(&mut self, model: usize, look: Look, processor: Duration) -> View {
        let others = self.busy(model, look.at).count();
        let began = *self.models[model].began.get_or_insert(look.at);
        let is_new = look.at.saturating_duration_since(began) < OTHERS_BEGIN;
        let others_begin = is_new && self.models.iter().any(|pace| pace.began.is_none());
        let was_full = self.models[model].last.is_some_and(|(before, _)| before.is_full());
        self.models[model].observe(look, others);
        let jobs = self
            .models
            .iter()
            .filter_map(|pace| pace.last)
            .map(|(look, _)| look.settled.jobs);
        self.cost.add(processor, jobs.sum());
        let pace = &self.models[model];
        let is_first = !was_full && pace.known.is_empty() && look.is_full();
        let is_early = is_first || others_begin && look.waiting() > 0.0;
        View {
            shown: self.shown(model, look.at, others).filter(|_| !is_early),
            is_early,
            next: if is_early { LOOK_FIRST } else { pace.next_look() },
        }
    }

    fn shown(&self, model: usize, now: Instant, others: usize) -> Option<Shown> {
        let rate = self.rate(model, others)?;
        Some(Shown {
            seconds: self.drain(model, now)?,
            rows_per_second: rate.rows / rate.seconds.max(SECONDS_MIN),
            is_estimate: self.models[model].known.is_empty(),
        })
    }

    /// The other models that have all they can do, or much of it.
    fn busy(&self, model: usize, now: Instant) -> impl Iterator<Item = (usize, Look)> + '_ {
        let others = self.models.iter().enumerate().filter(move |(other, _)| *other != model);
        others.filter_map(move |(other, pace)| {
            let (look, _) = pace.last?;
            let is_fresh = now.saturating_duration_since(look.at) < FRESH;
            let engines = look.expected.map_or(0.0, |expected| expected.engines);
            let has_much = look.ready > 0 || look.in_hand * 2 >= look.window || look.waiting() * engines >= MUCH;
            (is_fresh && has_much).then_some((other, look))
        })
    }

    /// Seconds until the last job that waits is settled. What other models wait for ends as well, each in its time.
    fn drain(&self, model: usize, now: Instant) -> Option<f64> {
        let mut own = self.models[model].last?.0.waiting();
        let mut others: Vec<(usize, f64)> = self
            .busy(model, now)
            .map(|(other, look)| (other, look.waiting()))
            .collect();
        let step_min = own * self.rate(model, others.len())?.seconds * STEP_MIN;
        let mut seconds = 0.0;
        loop {
            let company = others.len();
            let rate = self.rate(model, company)?.seconds;
            let job = |other| {
                self.rate(other, company)
                    .map_or(f64::INFINITY, |rate| rate.seconds.max(SECONDS_MIN))
            };
            let first = others
                .iter()
                .map(|(other, jobs)| jobs * job(*other))
                .fold(f64::INFINITY, f64::min);
            if first >= own * rate {
                return Some(seconds + own * rate);
            }
            let step = first.max(step_min).min(own * rate);
            seconds += step;
            own -= step / rate;
            others = others
                .into_iter()
                .map(|(other, jobs)| (other, jobs - step / job(other)))
                .collect();
            others.retain(|(_, jobs)| *jobs > SECONDS_MIN);
        }
    }

    /// The rate of a model beside so many busy ones, as it was seen or else follows from what was.
    fn rate(&self, model: usize, company: usize) -> Option<Rate> {
        let pace = &self.models[model];
        let expected = pace.last.and_then(|(look, _)| look.expected);
        let nearest = pace.known.iter().min_by_key(|(seen, _)| seen.abs_diff(company));
        let Some((seen, rate)) = nearest else {
            let expected = expected?;
            let engines = expected.engines * self.runs_shared(company);
            // One job after the other, whatever model it is for.
            let around = (self.cost.seconds.unwrap_or(0.0) - expected.engines) * (company as f64 + 1.0);
            let seconds = engines.max(expected.in_turns).max(around);
            return Some(Rate {
                seconds,
                rows: expected.rows,
            });
        };
        let Some(expected) = expected.filter(|_| *seen != company) else {
            return Some(*rate);
        };
        // What engines do others hinder where there are too few threads, what is around them always, the way never.
        let share = |company| {
            if rate.seconds < expected.engines * 2.0 {
                self.runs_shared(company)
            } else {
                company as f64 + 1.0
            }
        };
        let way = expected.way.min(rate.seconds);
        let seconds = way + (rate.seconds - way) * share(company) / share(*seen);
        let seconds = seconds.max(expected.engines.min(rate.seconds));
        Some(Rate { seconds, ..*rate })
    }

    /// How many runs want each thread.
    fn runs_shared(&self, company: usize) -> f64 {
        ((company as f64 + 1.0) / self.threads).max(1.0)
    }
}

/// One model.
#[derive(Default)]
struct Pace {
    /// When it was looked at first on this connection.
    began: Option<Instant>,
    /// With the number of other models that were busy.
    last: Option<(Look, usize)>,
    /// The time for which it has had all it could do, up to now.
    stretch: Option<Stretch>,
    /// By the number of other models that were busy.
    known: BTreeMap<usize, Rate>,
}

impl Pace {
    fn observe(&mut self, look: Look, company: usize) {
        let Some((before, company_before)) = self.last.replace((look, company)) else {
            return;
        };
        let done = look.settled.jobs.saturating_sub(before.settled.jobs);
        let is_same = company == company_before;
        // All that was settled was there at the last look, so that the worker never waited for a producer.
        let was_full = before.is_full() && look.is_full() && done <= before.ready.max(before.in_hand);
        if was_full && (is_same || self.known.is_empty()) {
            let prior = self.known.get(&company).copied();
            let stretch = self.stretch.get_or_insert_with(|| Stretch::new(&before, prior));
            stretch.add(&look);
            if let Some(rate) = stretch.rate(&look) {
                self.known.insert(company, rate);
            }
            return;
        }
        self.stretch = None;
        match self.known.get_mut(&company) {
            None => {
                if let Some(rate) = drained(&before, &look).filter(|_| self.known.is_empty()) {
                    self.known.insert(company, rate);
                }
            }
            Some(rate) if is_same => rate.raise(&before, &look, done),
            Some(_) => {}
        }
    }

    fn next_look(&self) -> Duration {
        let Some((look, _)) = self.last else { return LOOK_IDLE };
        let span = self.stretch.as_ref().map_or(Duration::ZERO, Stretch::span);
        let engines = look.expected.map_or(0.0, |expected| expected.engines);
        match look.is_full() {
            true if span < LOOK_BUSY => LOOK_FIRST,
            true if span < NEW_FOR => LOOK_SOON,
            true => LOOK_BUSY,
            false if look.waiting() * engines >= MUCH => LOOK_BUSY,
            false => LOOK_IDLE,
        }
    }
}

/// So many jobs that a last run which is not full does not count.
const MANY: f64 = 10_000.0;
/// When jobs have just begun to wait: a scrape right after that is to find a figure.
const LOOK_FIRST: Duration = Duration::from_millis(100);
/// Models of a worker begin together, and what one needs depends on the others; one that does not begin is not waited for.
const OTHERS_BEGIN: Duration = Duration::from_secs(1);
/// While there is little to go by.
pub const LOOK_SOON: Duration = Duration::from_millis(250);
/// While jobs wait: the figure is to follow them.
pub const LOOK_BUSY: Duration = Duration::from_secs(1);
/// As often as Prometheus asks, or more often.
pub const LOOK_IDLE: Duration = Duration::from_secs(5);
/// For so long a stretch is looked at more often.
const NEW_FOR: Duration = Duration::from_secs(2);
/// Some looks of a busy model; what was seen before is not how it is now.
const FRESH: Duration = Duration::from_secs(3);
/// Seconds of runs in the queue and in hand that make a model busy although its window is not full.
const MUCH: f64 = 0.2;
/// The share of the time to drain in which other models may end all at once: bounds the steps with a hundred models.
const STEP_MIN: f64 = 0.05;

#[cfg(test)]
mod tests;
