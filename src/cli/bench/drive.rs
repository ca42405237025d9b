//! The loops: a thread that knows when jobs are due, a task for each producer that sends them, and one that counts.
//!
//! Whether a job is sent never depends on answers, up to `in_flight`: a job that finds no room waits for it, and its
//! time goes on meanwhile. What had no room by the end of the load is counted and not sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::inputs::Target;
use super::mix::Mix;
use super::rates::Stage;
use super::schedule::{Schedule, Spacing};
use super::tally::{Checked, Done, Ending, Tally, Window};
use crate::client::{Client, Job, Strays};

/// What load to put on the workers.
#[derive(Debug, Clone)]
pub struct Load {
    pub pace: Pace,
    /// Sent before anything is measured: at the first rate of an open loop.
    pub warm_up: Duration,
    /// Jobs that are measured, at most.
    pub jobs_max: Option<u64>,
    /// Jobs under way at a time, all producers together.
    pub in_flight: usize,
}

#[derive(Debug, Clone)]
pub enum Pace {
    /// The next job as soon as one is answered.
    Closed { lasts: Option<Duration> },
    /// At times that follow from the rates.
    Open {
        stages: Vec<Stage>,
        spacing: Spacing,
        seed: u64,
    },
}

impl Pace {
    fn lasts(&self) -> Option<Duration> {
        match self {
            Self::Closed { lasts } => *lasts,
            Self::Open { stages, .. } => stages.iter().map(|stage| stage.lasts).sum(),
        }
    }
}

/// What the jobs are.
pub struct Jobs {
    pub targets: Vec<Target>,
    pub mix: Mix,
    pub seed: u64,
    /// How long an answer is waited for.
    pub timeout: Duration,
    /// From when a job is due; `None`: as long as it is waited for.
    pub deadline: Option<Duration>,
}

/// A job that is to be sent.
#[derive(Debug, Clone, Copy)]
struct Due {
    number: u64,
    at: Instant,
}

/// When to stop before the end.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    /// Send nothing more.
    pub sending: CancellationToken,
    /// Wait for no answer any more.
    pub waiting: CancellationToken,
}

/// Puts the load on and counts what comes of it; returns once every job has ended. `show` is called now and then.
pub async fn drive(
    clients: &[Client],
    jobs: &Arc<Jobs>,
    load: &Load,
    stops: &Stops,
    mut show: impl FnMut(&Tally),
) -> (Tally, Duration) {
    let start = Instant::now() + LEAD;
    let begin = start + load.warm_up;
    let window = Window {
        begin,
        end: load.pace.lasts().map(|lasts| begin + lasts),
    };
    let (done, mut ended) = mpsc::channel(DONE_MAX);
    let mut producers = JoinSet::new();
    for (client, feed) in clients.iter().zip(feeds(load, start, window, clients.len())) {
        let producer = Producer {
            client: client.clone(),
            jobs: jobs.clone(),
            room: load.in_flight.div_ceil(clients.len()),
            feed: Some(feed),
            cutoff: window.end.map(|end| end + GRACE),
            full_until: None,
            done: done.clone(),
            stops: stops.clone(),
        };
        producers.spawn(producer.run());
    }
    drop(done);
    let before = strays(clients);
    let mut tally = Tally::new(window, jobs.targets.len());
    let mut shown = Instant::now();
    let mut last_due = begin;
    while let Some(done) = ended.recv().await {
        tally.note(&done);
        last_due = last_due.max(done.due);
        if shown.elapsed() > SHOW_EVERY {
            show(&tally);
            shown = Instant::now();
        }
    }
    producers.join_all().await;
    let after = strays(clients);
    tally.strays.copies = after.copies - before.copies;
    tally.strays.late = after.late - before.late;
    let sending_ended = if load.jobs_max.is_some() || stops.sending.is_cancelled() {
        last_due
    } else {
        window.end.unwrap_or(last_due)
    };
    let lasted = tally.lasted(sending_ended);
    (tally, lasted)
}

fn strays(clients: &[Client]) -> Strays {
    let mut sum = Strays::default();
    for client in clients {
        let one = client.strays();
        sum.copies += one.copies;
        sum.late += one.late;
    }
    sum
}

/// Where each producer takes its jobs from.
fn feeds(load: &Load, start: Instant, window: Window, producers: usize) -> Vec<Feed> {
    match &load.pace {
        Pace::Closed { .. } => {
            let shared = Arc::new(Closed {
                start,
                window,
                number: AtomicU64::new(0),
                measured: AtomicU64::new(0),
                jobs_max: load.jobs_max.unwrap_or(u64::MAX),
            });
            (0..producers).map(|_| Feed::Closed(shared.clone())).collect()
        }
        Pace::Open { stages, spacing, seed } => {
            let (senders, receivers): (Vec<_>, Vec<_>) = (0..producers).map(|_| mpsc::channel(DUE_MAX)).unzip();
            let first = stages.first().map_or(0.0, |stage| stage.from);
            let warm_up = Stage::constant(first, Some(load.warm_up));
            let stages = std::iter::once(warm_up).chain(stages.iter().copied()).collect();
            let schedule = Schedule::new(stages, *spacing, *seed);
            let (warm_up, jobs_max) = (load.warm_up, load.jobs_max.unwrap_or(u64::MAX));
            // It ends by itself, or when the producers are gone.
            std::thread::spawn(move || pace(measured(schedule, warm_up, jobs_max), start, &senders));
            receivers.into_iter().map(Feed::Open).collect()
        }
    }
}

/// The schedule until so many jobs of it are due after the warm-up.
fn measured(schedule: Schedule, warm_up: Duration, jobs_max: u64) -> impl Iterator<Item = Duration> {
    let mut left = jobs_max;
    schedule.take_while(move |due| {
        if *due < warm_up {
            return true;
        }
        let is_one_more = left > 0;
        left = left.saturating_sub(1);
        is_one_more
    })
}

/// Hands out jobs when they are due, to one producer after the other.
///
/// On a thread of its own: the runtime's timer knows whole milliseconds only, and would be late by half of one.
fn pace(schedule: impl Iterator<Item = Duration>, start: Instant, producers: &[mpsc::Sender<Due>]) {
    for ((number, due), producer) in (0..).zip(schedule).zip(producers.iter().cycle()) {
        let at = start + due;
        let ahead = at.saturating_duration_since(Instant::now());
        if !ahead.is_zero() {
            std::thread::sleep(ahead);
        }
        if producer.blocking_send(Due { number, at }).is_err() {
            return;
        }
    }
}

enum Feed {
    Open(mpsc::Receiver<Due>),
    Closed(Arc<Closed>),
}

/// A closed loop, which all producers share.
struct Closed {
    start: Instant,
    window: Window,
    number: AtomicU64,
    measured: AtomicU64,
    jobs_max: u64,
}

impl Feed {
    async fn next(&mut self) -> Option<Due> {
        match self {
            Self::Open(due) => due.recv().await,
            Self::Closed(closed) => closed.next().await,
        }
    }
}

impl Closed {
    async fn next(&self) -> Option<Due> {
        tokio::time::sleep_until(self.start).await;
        self.take(Instant::now())
    }

    /// The job that is sent at a moment, if there is one more.
    fn take(&self, at: Instant) -> Option<Due> {
        let is_over = self.window.end.is_some_and(|end| at >= end);
        let is_measured = at >= self.window.begin;
        if is_over || (is_measured && self.measured.fetch_add(1, Ordering::Relaxed) >= self.jobs_max) {
            return None;
        }
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        Some(Due { number, at })
    }
}

/// One connection, and the jobs that it has under way.
struct Producer {
    client: Client,
    jobs: Arc<Jobs>,
    room: usize,
    /// `None` once there is nothing more to send.
    feed: Option<Feed>,
    /// What has found no room by then is not sent.
    cutoff: Option<Instant>,
    /// When there was no room last.
    full_until: Option<Instant>,
    done: mpsc::Sender<Done>,
    stops: Stops,
}

/// What woke a producer.
enum Event {
    Due(Option<Due>),
    Ended(Done),
    Cutoff,
    Stopped,
}

impl Producer {
    async fn run(mut self) {
        let stops = self.stops.clone();
        let mut calls = FuturesUnordered::new();
        loop {
            let is_full = calls.len() >= self.room;
            let is_open = self.feed.is_some();
            if !is_open && calls.is_empty() {
                return;
            }
            let event = tokio::select! {
                due = next(&mut self.feed), if is_open && !is_full => Event::Due(due),
                Some(done) = calls.next(), if !calls.is_empty() => Event::Ended(done),
                () = until(self.cutoff), if is_open => Event::Cutoff,
                () = stops.sending.cancelled(), if is_open => Event::Stopped,
            };
            match event {
                Event::Due(Some(due)) => {
                    let held = self.full_until.is_some_and(|full| due.at < full);
                    calls.push(call(
                        self.client.clone(),
                        self.jobs.clone(),
                        stops.waiting.clone(),
                        due,
                        held,
                    ));
                }
                Event::Due(None) | Event::Stopped => self.feed = None,
                Event::Ended(done) => {
                    if is_full {
                        self.full_until = Some(done.ended);
                    }
                    self.report(done).await;
                }
                Event::Cutoff => self.leave_over().await,
            }
        }
    }

    /// Counts the jobs that were due and found no room. All of them are due by now, so that their thread does not wait.
    async fn leave_over(&mut self) {
        while let Some(due) = next(&mut self.feed).await {
            self.report(self.jobs.not_sent(due)).await;
        }
        self.feed = None;
    }

    async fn report(&self, done: Done) {
        // The one who counts is gone only with the whole run.
        let _ = self.done.send(done).await;
    }
}

async fn next(feed: &mut Option<Feed>) -> Option<Due> {
    feed.as_mut()?.next().await
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Sends one job and waits for its end.
async fn call(client: Client, jobs: Arc<Jobs>, waiting: CancellationToken, due: Due, held: bool) -> Done {
    let (model, body) = jobs.of(due.number);
    let target = &jobs.targets[model];
    let sent = Instant::now();
    let job = jobs.job(model, body, sent.saturating_duration_since(due.at));
    let ending = tokio::select! {
        answered = client.call(job) => match answered {
            Ok(answer) => {
                let wrong = target.bodies[body].expected.as_ref().map(|expected| expected.wrong(&answer));
                Ending::Result {
                    timing: answer.timing,
                    batch_rows: answer.batch_rows,
                    checked: match wrong {
                        None => Checked::No,
                        Some(None) => Checked::Right,
                        Some(Some(reason)) => Checked::Wrong(reason),
                    },
                }
            }
            Err(error) => error.into(),
        },
        () = waiting.cancelled() => Ending::Interrupted,
    };
    Done {
        model,
        rows: target.rows as u64,
        due: due.at,
        sent,
        ended: Instant::now(),
        held,
        ending,
    }
}

impl Jobs {
    /// The model and the body of a job; the same for a seed.
    fn of(&self, number: u64) -> (usize, usize) {
        let model = self.mix.model_of(number);
        let mut random = fastrand::Rng::with_seed(self.seed ^ number.wrapping_mul(ODD));
        (model, random.usize(..self.targets[model].bodies.len()))
    }

    pub fn job(&self, model: usize, body: usize, late: Duration) -> Job {
        let target = &self.targets[model];
        Job {
            model: target.model.clone(),
            version: target.version.clone(),
            encoded: Some(target.bodies[body].encoded.clone()),
            timing: true,
            timeout: Some(self.timeout),
            // Whoever sets a deadline counts from when he wanted the job done.
            deadline: self.deadline.map(|deadline| deadline.saturating_sub(late)),
            ..Job::default()
        }
    }

    fn not_sent(&self, due: Due) -> Done {
        let (model, _) = self.of(due.number);
        let now = Instant::now();
        Done {
            model,
            rows: self.targets[model].rows as u64,
            due: due.at,
            sent: now,
            ended: now,
            held: true,
            ending: Ending::NotSent,
        }
    }
}

/// Until the first job is due: time to start the tasks.
const LEAD: Duration = Duration::from_millis(20);
/// How long after the end of the load a job that was due before is still sent.
const GRACE: Duration = Duration::from_millis(500);
/// Jobs that are due and not yet taken, for each producer.
const DUE_MAX: usize = 8_192;
const DONE_MAX: usize = 1_024;
const SHOW_EVERY: Duration = Duration::from_millis(200);
/// The golden ratio in 64 bits, which spreads neighbouring numbers.
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::inputs::Body;
    use crate::wire::request::{RequestEncoding, encode_request};

    fn jobs(weights: &[u32]) -> Jobs {
        let body = || Body {
            encoded: encode_request(RequestEncoding::Json, None, &[], &[]),
            expected: None,
        };
        let target = |at: usize| Target {
            model: format!("m{at}"),
            version: None,
            weight: weights[at],
            rows: 1,
            bodies: (0..8).map(|_| body()).collect(),
        };
        Jobs {
            targets: (0..weights.len()).map(target).collect(),
            mix: Mix::new(weights),
            seed: 1,
            timeout: Duration::from_secs(60),
            deadline: Some(Duration::from_millis(100)),
        }
    }

    fn fixed(rate: f64, lasts: Option<Duration>) -> Schedule {
        Schedule::new(vec![Stage::constant(rate, lasts)], Spacing::Fixed, 1)
    }

    #[test]
    fn the_warm_up_does_not_count_as_jobs_that_are_measured() {
        let second = Duration::from_secs(1);

        let due = measured(fixed(10.0, None), second, 5).count();
        let all = measured(fixed(10.0, Some(second * 2)), second, u64::MAX).count();

        assert_eq!((due, all), (15, 20));
    }

    #[test]
    fn every_body_of_every_model_has_its_turn_whatever_the_mix() {
        let jobs = jobs(&[1, 3]);

        let mut seen = [[0; 8]; 2];
        for number in 0..1_000 {
            let (model, body) = jobs.of(number);
            seen[model][body] += 1;
        }

        assert_eq!(seen[0].iter().sum::<i32>(), 250);
        assert!(seen.iter().flatten().all(|&count| count > 10), "{seen:?}");
        assert_eq!(jobs.of(7), jobs.of(7));
    }

    #[test]
    fn a_deadline_counts_from_when_the_job_was_due() {
        let jobs = jobs(&[1]);
        let left = |late| {
            jobs.job(0, 0, Duration::from_millis(late))
                .deadline
                .unwrap()
                .as_millis()
        };

        assert_eq!([left(0), left(30), left(500)], [100, 70, 0]);
    }

    #[test]
    fn jobs_are_handed_out_in_turn_and_never_before_they_are_due() {
        let (senders, mut receivers): (Vec<_>, Vec<_>) = (0..2).map(|_| mpsc::channel(10)).unzip();
        let start = Instant::now();

        pace(fixed(1_000.0, Some(Duration::from_millis(5))), start, &senders);

        let now = Instant::now();
        let taken = receivers
            .iter_mut()
            .map(|due| std::iter::from_fn(|| due.try_recv().ok()).collect());
        let taken: Vec<Vec<Due>> = taken.collect();
        assert_eq!(taken[0].iter().map(|due| due.number).collect::<Vec<_>>(), [0, 2, 4]);
        assert_eq!(taken[1].iter().map(|due| due.number).collect::<Vec<_>>(), [1, 3]);
        assert!(taken.iter().flatten().all(|due| start <= due.at && due.at <= now));
    }

    #[test]
    fn a_closed_loop_ends_with_its_jobs_or_with_its_time() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let closed = |jobs_max, end| Closed {
            start,
            window: Window {
                begin: start + second,
                end,
            },
            number: AtomicU64::new(0),
            measured: AtomicU64::new(0),
            jobs_max,
        };
        let number = |due: Option<Due>| due.map(|due| due.number);

        let by_jobs = closed(2, None);
        let warm = number(by_jobs.take(start));
        let measured = [0, 1, 2].map(|more| number(by_jobs.take(start + second + second * more)));
        let by_time = closed(u64::MAX, Some(start + second * 2));
        let ended = [1, 2].map(|seconds| number(by_time.take(start + second * seconds)));

        assert_eq!(warm, Some(0));
        assert_eq!(measured, [Some(1), Some(2), None]);
        assert_eq!(ended, [Some(0), None]);
    }
}
