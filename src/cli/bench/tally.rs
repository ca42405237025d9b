//! What is counted while answers come: how every job ended, and how its time was spent. Pure.

use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;

use super::capacity::Step;
use crate::client::{CallError, Strays, Timing};
use crate::wire::status::Status;

/// One job that has ended.
#[derive(Debug)]
pub struct Done {
    /// Index of its model.
    pub model: usize,
    pub rows: u64,
    /// When it was to be sent, and when it was sent and answered.
    pub due: Instant,
    pub sent: Instant,
    pub ended: Instant,
    /// Whether it was held back because as many jobs as allowed were under way.
    pub held: bool,
    pub ending: Ending,
}

/// How a job ended.
#[derive(Debug)]
pub enum Ending {
    Result {
        timing: Option<Timing>,
        batch_rows: Option<u64>,
        checked: Checked,
    },
    /// An error reply.
    Refused(Status, String),
    /// It came back: no queue took it.
    Unroutable(String),
    /// The broker refused it.
    QueueFull(String),
    /// No answer came in time, or the connection was lost for good.
    Lost(String),
    /// An answer came that cannot be read.
    Unreadable(String),
    /// There was no room for it before the load ended.
    NotSent,
    /// It was under way when the run was stopped.
    Interrupted,
}

#[derive(Debug)]
pub enum Checked {
    No,
    Right,
    Wrong(String),
}

impl From<CallError> for Ending {
    fn from(error: CallError) -> Self {
        let said = crate::error::chain(&error);
        match error {
            CallError::Refused { code, .. } => Self::Refused(code, said),
            CallError::UnknownModel(_) => Self::Unroutable(said),
            CallError::QueueFull(_) => Self::QueueFull(said),
            CallError::Timeout(_) | CallError::Lost(_) | CallError::Forbidden(_) => Self::Lost(said),
            CallError::Reply(_) | CallError::Datatype { .. } | CallError::TooLong { .. } | CallError::Scatter(_) => {
                Self::Unreadable(said)
            }
        }
    }
}

/// When the measuring began, and when the last job was due if that is known beforehand.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub begin: Instant,
    pub end: Option<Instant>,
}

/// Jobs by how they ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    pub due: u64,
    pub sent: u64,
    pub not_sent: u64,
    pub held: u64,
    /// By status, in the order of [`Status::ALL`].
    pub answered: [u64; Status::ALL.len()],
    pub unroutable: u64,
    pub queue_full: u64,
    pub lost: u64,
    pub unreadable: u64,
    pub interrupted: u64,
    pub checked: u64,
    pub wrong: u64,
}

/// Where the time went. All but `late` and `late_unheld` of jobs answered with a result.
#[derive(Debug, Default)]
pub struct Parts {
    /// From when a job was due until its answer was here.
    pub whole: Micros,
    /// From when it was due until it was sent.
    pub late: Micros,
    /// The same of jobs that were not held back.
    pub late_unheld: Micros,
    /// From sending until a worker had it.
    pub queue: Micros,
    /// In the worker, until its batch ran.
    pub wait: Micros,
    pub infer: Micros,
    /// In the worker, from the run's end until the reply was written.
    pub encode: Micros,
    /// From the worker to here.
    pub reply: Micros,
}

/// What one model of a mix has.
#[derive(Debug, Default)]
pub struct OfModel {
    pub jobs: u64,
    pub ok: u64,
    pub whole: Micros,
}

pub struct Tally {
    window: Window,
    /// Of the jobs that were due once the measuring had begun.
    pub counts: Counts,
    pub warm_up: Counts,
    pub parts: Parts,
    pub models: Vec<OfModel>,
    pub rows_ok: u64,
    /// Batches, as far as they ran for our jobs: each job counts for its share of its batch.
    batches: f64,
    batch_rows_seen: u64,
    /// Jobs that were due and not answered at the begin and at the end of the window.
    waiting_first: u64,
    waiting_last: u64,
    last_answer: Option<Instant>,
    /// The first few reasons of jobs that failed or were wrong.
    pub reasons: Vec<String>,
    pub strays: Strays,
}

impl Tally {
    pub fn new(window: Window, models: usize) -> Self {
        Self {
            window,
            counts: Counts::default(),
            warm_up: Counts::default(),
            parts: Parts::default(),
            models: (0..models).map(|_| OfModel::default()).collect(),
            rows_ok: 0,
            batches: 0.0,
            batch_rows_seen: 0,
            waiting_first: 0,
            waiting_last: 0,
            last_answer: None,
            reasons: Vec::new(),
            strays: Strays::default(),
        }
    }

    pub fn note(&mut self, done: &Done) {
        let was_open = |at: Instant| u64::from(done.due <= at && at < done.ended);
        self.waiting_first += was_open(self.window.begin);
        self.waiting_last += self.window.end.map_or(0, was_open);
        let measured = done.due >= self.window.begin;
        let counts = if measured { &mut self.counts } else { &mut self.warm_up };
        counts.note(done);
        if let Some(reason) = done.ending.reason()
            && self.reasons.len() < REASONS_MAX
            && !self.reasons.iter().any(|known| known == reason)
        {
            self.reasons.push(reason.to_owned());
        }
        if measured {
            self.note_times(done);
        }
    }

    fn note_times(&mut self, done: &Done) {
        let Some(of_model) = self.models.get_mut(done.model) else {
            return;
        };
        of_model.jobs += 1;
        if matches!(done.ending, Ending::NotSent) {
            return;
        }
        let late = done.sent.saturating_duration_since(done.due);
        self.parts.late.record(late);
        if !done.held {
            self.parts.late_unheld.record(late);
        }
        let Ending::Result { timing, batch_rows, .. } = &done.ending else {
            return;
        };
        let whole = done.ended.saturating_duration_since(done.due);
        self.last_answer = self.last_answer.max(Some(done.ended));
        self.parts.whole.record(whole);
        if let Some(timing) = timing {
            self.parts.split(whole.saturating_sub(late), timing);
        }
        self.rows_ok += done.rows;
        if let Some(batch_rows) = batch_rows.filter(|&rows| rows > 0) {
            self.batches += done.rows as f64 / batch_rows as f64;
            self.batch_rows_seen += done.rows;
        }
        of_model.ok += 1;
        of_model.whole.record(whole);
    }

    /// Rows of a batch in the mean, over batches.
    pub fn batch_rows(&self) -> Option<f64> {
        (self.batches > 0.0).then(|| self.batch_rows_seen as f64 / self.batches)
    }

    /// How long the measured load lasted: until its last job was due or answered, whichever was later.
    pub fn lasted(&self, sending_ended: Instant) -> Duration {
        let end = self.window.end.map_or(sending_ended, |end| end.min(sending_ended));
        let end = self.last_answer.map_or(end, |answer| answer.max(end));
        end.saturating_duration_since(self.window.begin)
    }

    /// What is to be judged of a step in the search for the capacity.
    pub fn step(&self, goal: Duration) -> Step {
        Step {
            goal,
            p99: self.parts.whole.quantile(0.99),
            due: self.counts.due,
            not_sent: self.counts.not_sent,
            failed: self.counts.due - self.counts.ok() - self.counts.not_sent + self.counts.wrong,
            waiting_first: self.waiting_first,
            waiting_last: self.waiting_last,
            late_p99: self.parts.late_unheld.quantile(0.99),
        }
    }
}

impl Counts {
    fn note(&mut self, done: &Done) {
        self.due += 1;
        self.held += u64::from(done.held);
        self.sent += u64::from(!matches!(done.ending, Ending::NotSent));
        match &done.ending {
            Ending::Result { checked, .. } => {
                self.answer(Status::Ok);
                self.checked += u64::from(!matches!(checked, Checked::No));
                self.wrong += u64::from(matches!(checked, Checked::Wrong(_)));
            }
            Ending::Refused(status, _) => self.answer(*status),
            Ending::Unroutable(_) => self.unroutable += 1,
            Ending::QueueFull(_) => self.queue_full += 1,
            Ending::Lost(_) => self.lost += 1,
            Ending::Unreadable(_) => self.unreadable += 1,
            Ending::NotSent => self.not_sent += 1,
            Ending::Interrupted => self.interrupted += 1,
        }
    }

    fn answer(&mut self, status: Status) {
        for (known, count) in Status::ALL.into_iter().zip(&mut self.answered) {
            *count += u64::from(known == status);
        }
    }

    pub fn ok(&self) -> u64 {
        Status::ALL
            .into_iter()
            .zip(self.answered)
            .filter(|(status, _)| *status == Status::Ok)
            .map(|(_, count)| count)
            .sum()
    }

    /// Jobs that nobody can account for by an answer: the run has failed.
    pub fn gone(&self) -> u64 {
        self.lost + self.unroutable + self.unreadable
    }
}

impl Ending {
    /// Why it is not what was hoped for.
    fn reason(&self) -> Option<&str> {
        match self {
            Self::Result {
                checked: Checked::Wrong(reason),
                ..
            }
            | Self::Refused(_, reason)
            | Self::Unroutable(reason)
            | Self::QueueFull(reason)
            | Self::Lost(reason)
            | Self::Unreadable(reason) => Some(reason),
            Self::Result { .. } | Self::NotSent | Self::Interrupted => None,
        }
    }
}

impl Parts {
    /// Takes the way from sending to the answer apart. Clocks that disagree show in `queue` and `reply`, never below zero.
    fn split(&mut self, way: Duration, timing: &Timing) {
        self.wait.record(timing.wait);
        self.infer.record(timing.infer);
        self.encode
            .record(timing.total.saturating_sub(timing.wait + timing.infer));
        if let Some(queue) = timing.queue {
            self.queue.record(queue);
            self.reply.record(way.saturating_sub(queue + timing.total));
        }
    }
}

/// Durations in an HDR histogram: right to three digits, from a microsecond to an hour.
#[derive(Debug)]
pub struct Micros(Histogram<u64>);

impl Default for Micros {
    fn default() -> Self {
        Self(
            Histogram::new_with_bounds(1, HOUR_MICROS, DIGITS)
                .expect("bounds and digits are those of the crate's examples"),
        )
    }
}

impl Micros {
    fn record(&mut self, duration: Duration) {
        self.0
            .saturating_record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The duration that a share of all did not exceed; zero if there is none.
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_micros(self.0.value_at_quantile(share))
    }

    pub fn mean_ms(&self) -> f64 {
        self.0.mean() / 1e3
    }

    pub fn quantile_ms(&self, share: f64) -> f64 {
        // What lies between two marks of the histogram is no more than what was recorded.
        self.0.value_at_quantile(share).min(self.0.max()) as f64 / 1e3
    }
}

const HOUR_MICROS: u64 = 3_600_000_000;
const DIGITS: u8 = 3;
const REASONS_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A clock that nobody winds: all times are this one and so many milliseconds.
    struct Clock(Instant);

    impl Clock {
        fn at(&self, ms: u32) -> Instant {
            self.0 + MS * ms
        }

        fn done(&self, [due, sent, ended]: [u32; 3], ending: Ending) -> Done {
            Done {
                model: 0,
                rows: 2,
                due: self.at(due),
                sent: self.at(sent),
                ended: self.at(ended),
                held: false,
                ending,
            }
        }
    }

    fn ok(timing: Option<Timing>, batch_rows: u64) -> Ending {
        Ending::Result {
            timing,
            batch_rows: Some(batch_rows),
            checked: Checked::No,
        }
    }

    fn tally(clock: &Clock) -> Tally {
        let window = Window {
            begin: clock.at(100),
            end: Some(clock.at(1_100)),
        };
        Tally::new(window, 1)
    }

    fn near(found: f64, wanted: f64) {
        assert!((found / wanted - 1.0).abs() < 0.002, "{found} is not {wanted}");
    }

    #[test]
    fn latency_counts_from_when_a_job_was_due_and_not_from_when_it_was_sent() {
        let clock = Clock(Instant::now());
        let mut tally = tally(&clock);

        // A generator that stood still for a second, and answers that took 10 ms.
        for due in (100..1_100).step_by(10) {
            tally.note(&clock.done([due, 1_100, 1_110], ok(None, 1)));
        }

        near(tally.parts.whole.quantile_ms(0.5), 510.0);
        near(tally.parts.whole.quantile_ms(1.0), 1_010.0);
        near(tally.parts.late.quantile_ms(1.0), 1_000.0);
    }

    #[test]
    fn the_parts_of_the_way_add_up_to_the_whole() {
        let clock = Clock(Instant::now());
        let mut tally = tally(&clock);
        let timing = Timing {
            queue: Some(MS * 20),
            wait: MS * 3,
            infer: MS * 10,
            total: MS * 15,
        };

        tally.note(&clock.done([100, 105, 155], ok(Some(timing), 8)));

        let parts = &tally.parts;
        let all = [
            &parts.late,
            &parts.queue,
            &parts.wait,
            &parts.infer,
            &parts.encode,
            &parts.reply,
        ];
        let all = all.map(|part| part.quantile_ms(1.0));
        for (found, wanted) in all.into_iter().zip([5.0, 20.0, 3.0, 10.0, 2.0, 15.0]) {
            near(found, wanted);
        }
        near(all.iter().sum(), parts.whole.quantile_ms(1.0));
    }

    #[test]
    fn clocks_that_disagree_make_no_part_negative() {
        let clock = Clock(Instant::now());
        let mut tally = tally(&clock);
        let timing = Timing {
            queue: Some(Duration::from_secs(3_600)),
            wait: MS,
            infer: MS,
            total: MS,
        };

        tally.note(&clock.done([100, 100, 110], ok(Some(timing), 1)));

        assert_eq!(tally.parts.reply.quantile(1.0), Duration::ZERO);
        assert_eq!(tally.parts.encode.quantile(1.0), Duration::ZERO);
    }

    #[test]
    fn every_job_is_counted_once_by_how_it_ended() {
        let clock = Clock(Instant::now());
        let mut tally = tally(&clock);
        let said = || "said".to_owned();
        let checked = |checked| Ending::Result {
            timing: None,
            batch_rows: None,
            checked,
        };
        let endings = [
            ok(None, 1),
            checked(Checked::Right),
            checked(Checked::Wrong("wrong".to_owned())),
            Ending::Refused(Status::DeadlineExceeded, said()),
            Ending::Unroutable(said()),
            Ending::QueueFull(said()),
            Ending::Lost(said()),
            Ending::Unreadable(said()),
            Ending::NotSent,
            Ending::Interrupted,
        ];

        for ending in endings {
            tally.note(&clock.done([100, 100, 101], ending));
        }
        tally.note(&clock.done([99, 99, 101], Ending::Lost(said())));

        let counts = &tally.counts;
        assert_eq!((counts.due, counts.sent, counts.not_sent), (10, 9, 1));
        assert_eq!((counts.ok(), counts.answered[3]), (3, 1));
        assert_eq!((counts.checked, counts.wrong), (2, 1));
        assert_eq!(counts.gone(), 3);
        assert_eq!((counts.queue_full, counts.interrupted), (1, 1));
        assert_eq!((tally.warm_up.due, tally.warm_up.lost), (1, 1));
        assert_eq!(tally.reasons, ["wrong", "said"]);
        assert_eq!(tally.step(MS).failed, 7);
    }

    #[test]
    fn batches_are_averaged_over_batches_and_not_over_jobs() {
        let clock = Clock(Instant::now());
        let mut tally = tally(&clock);

        // One batch of 8 rows, which are 4 jobs, and one of 2 rows.
        for _ in 0..4 {
            tally.note(&clock.done([100, 100, 101], ok(None, 8)));
        }
        tally.note(&clock.done([100, 100, 101], ok(None, 2)));

        assert_eq!(tally.batch_rows(), Some(5.0));
        assert_eq!((tally.rows_ok, tally.models[0].ok), (10, 5));
    }

    #[test]
    fn jobs_that_wait_at_the_begin_and_the_end_of_the_window_are_told_apart() {
        let clock = Clock(Instant::now());
        let mut tally = tally(&clock);

        for [due, ended] in [
            [50, 60],
            [90, 150],
            [100, 101],
            [1_000, 1_200],
            [1_099, 1_101],
            [1_100, 1_300],
        ] {
            tally.note(&clock.done([due, due, ended], ok(None, 1)));
        }

        let step = tally.step(MS);
        assert_eq!((step.waiting_first, step.waiting_last), (2, 3));
    }

    #[test]
    fn the_load_lasts_until_its_end_or_its_last_answer() {
        let clock = Clock(Instant::now());
        let mut tally = tally(&clock);

        let without = tally.lasted(clock.at(2_000));
        tally.note(&clock.done([100, 100, 1_600], ok(None, 1)));

        assert_eq!((without, tally.lasted(clock.at(1_100))), (MS * 1_000, MS * 1_500));
        assert_eq!(tally.parts.whole.count(), 1);
    }
}
