//! Batching: from jobs to batches of rows, one lane at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::decode::{Envelope, Job, Lane, late};
use super::lane_rows::LaneRows;
use super::reply::{Answer, Outcome};
use super::turns::{Seat, Turn};
use crate::error::JobError;
use crate::model::capacity::{Capacity, Estimate};

/// Jobs to be run together. A job with more rows than `rows_max` is a batch of its own.
pub struct Batch {
    pub jobs: Vec<Job>,
    pub rows: usize,
}

/// An engine that waits for work.
pub struct EngineSlot(pub oneshot::Sender<Work>);

/// A batch, and the right to run it now.
pub struct Work {
    pub batch: Batch,
    pub turn: Turn,
}

/// Hands each idle engine everything that has arrived; never waits for a batch to fill, unless told to linger.
/// Returns when `jobs` closes and the last of them is handed over.
pub async fn run(
    mut batcher: Batcher,
    linger: Duration,
    seat: Seat,
    lane: Arc<Lane>,
    mut jobs: Receiver<Job>,
    mut idle: Receiver<EngineSlot>,
    answers: Sender<Vec<Answer>>,
) {
    let mut waiting = None;
    while batcher.has_jobs() || batcher.push(jobs.recv().await) {
        batcher.take_in(&mut jobs);
        // A lane that lingers would hold on to its turn for as long.
        let wish = linger.is_zero().then(|| seat.ask(Instant::now(), batcher.least()));
        // Asked for before the batch is closed: what arrives while all engines are busy joins it.
        let slot = match waiting.take() {
            Some(slot) => Some(slot),
            None => idle.recv().await,
        };
        let Some(slot) = slot else {
            return; // The engines are gone, so we are stopping; what we hold goes back to the broker.
        };
        if !linger.is_zero() {
            let filling = async { while !batcher.is_full() && batcher.push(jobs.recv().await) {} };
            let _ = tokio::time::timeout(linger, filling).await;
        }
        let wish = wish.unwrap_or_else(|| seat.ask(Instant::now(), batcher.least()));
        let Some(turn) = wish.granted().await else { return };
        batcher.take_in(&mut jobs);
        let (batch, refused) = batcher.take(Instant::now(), turn.slice());
        lane.hurry.batch_waits(batcher.is_full());
        match batch {
            Some(batch) => {
                // An engine that is gone took the device with it; its jobs go back to the broker.
                let _ = slot.0.send(Work { batch, turn });
            }
            None => {
                drop(turn);
                waiting = Some(slot);
            }
        }
        // Last, since it may be waited for, and neither an engine nor a turn should be.
        if !refused.is_empty() {
            let _ = answers.send(refused).await;
        }
    }
}

/// Collects the jobs of one lane and closes batches: the earliest deadline first, first come first served where none has
/// one.
pub struct Batcher {
    rows_max: usize,
    lane_rows: Arc<LaneRows>,
    capacity: Arc<Estimate>,
    /// In the order in which they are to leave once [`Batcher::order`] has put them so; until then as they came.
    jobs: VecDeque<Job>,
    /// Rows of all of them.
    rows: usize,
    /// How many of them have a deadline. Without any nothing need be ordered or refused.
    deadlines: usize,
    /// When the last batch was closed, or else the first job was refused.
    ran: Option<Instant>,
}

impl Batcher {
    /// `capacity` says what runs take; until it does, only deadlines that have passed are acted upon.
    pub fn new(rows_max: usize, lane_rows: Arc<LaneRows>, capacity: Arc<Estimate>) -> Self {
        Self {
            rows_max,
            lane_rows,
            capacity,
            jobs: VecDeque::new(),
            rows: 0,
            deadlines: 0,
            ran: None,
        }
    }

    /// Takes a job, if there is one, and says whether there was.
    pub fn push(&mut self, job: Option<Job>) -> bool {
        let Some(job) = job else { return false };
        self.count(&job);
        self.jobs.push_back(job);
        true
    }

    /// Takes all that has been delivered, though it may fill many batches: any of it may have the earliest deadline.
    pub fn take_in(&mut self, jobs: &mut Receiver<Job>) {
        while self.push(jobs.try_recv().ok()) {}
    }

    /// What the least run takes that is worth its while: the first job, and as many of the rest as make the rows take as
    /// long as the run besides them.
    pub fn least(&self) -> Duration {
        let (Some(first), Some(capacity)) = (self.jobs.front(), self.capacity.get()) else {
            return Duration::ZERO;
        };
        if self.runs_alone(first) {
            return self.time(first.rows, capacity);
        }
        let worth = (capacity.seconds_per_run / capacity.seconds_per_row).ceil() as usize;
        self.time(worth.min(self.rows).min(self.rows_max).max(first.rows), capacity)
    }

    pub fn has_jobs(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Whether more jobs could not join the next batch, unless they overtake.
    pub fn is_full(&self) -> bool {
        let alone = self.jobs.front().is_some_and(|first| self.runs_alone(first));
        alone || self.rows >= self.rows_max
    }

    /// Closes a batch at `now`, and answers what cannot be run in time any more. Whatever it is, the first job runs; others
    /// join it for as long as the batch takes no longer than `slice`.
    ///
    /// Jobs of a channel that is gone are dropped: the broker has given them to somebody else.
    pub fn take(&mut self, now: Instant, slice: Option<Duration>) -> (Option<Batch>, Vec<Answer>) {
        let capacity = self.capacity.get();
        let refused = if self.deadlines == 0 {
            Vec::new()
        } else {
            let refused = self.refuse(now, capacity);
            self.order();
            refused
        };
        (self.close(now, slice, capacity), refused)
    }

    /// Takes out the jobs whose deadline has passed, or would before they were done if they ran at once.
    fn refuse(&mut self, now: Instant, capacity: Option<Capacity>) -> Vec<Answer> {
        if !self.jobs.iter().any(|job| self.refusal(job, now, capacity).is_some()) {
            return Vec::new();
        }
        let ran = *self.ran.get_or_insert(now);
        let mut refused = Vec::new();
        for job in self.drain() {
            match self.refusal(&job, now, capacity) {
                Some(error) => refused.push((job, error)),
                None => {
                    self.push(Some(job));
                }
            }
        }
        if self.jobs.is_empty() && now.saturating_duration_since(ran) >= BELIEVED_MAX {
            self.try_one(&mut refused);
        }
        refused.into_iter().map(answer).collect()
    }

    /// Runs the last of the jobs refused by estimate all the same: an estimate that has every job refused would never be
    /// measured again, and stay what it is.
    fn try_one(&mut self, refused: &mut Vec<(Job, JobError)>) {
        let by_estimate = |(_, error): &(Job, JobError)| matches!(error, JobError::OutOfReach { .. });
        if let Some(index) = refused.iter().rposition(by_estimate) {
            let (job, _) = refused.remove(index);
            self.push(Some(job));
        }
    }

    fn refusal(&self, job: &Job, now: Instant, capacity: Option<Capacity>) -> Option<JobError> {
        let deadline = job.envelope.deadline?;
        if deadline <= now {
            return Some(late(deadline, now));
        }
        let (left, estimate) = (deadline - now, self.time(job.rows, capacity?));
        (estimate > left).then_some(JobError::OutOfReach { left, estimate })
    }

    /// What a batch of so many rows takes. Only one job can have more than a run holds; it is run in slices.
    fn time(&self, rows: usize, capacity: Capacity) -> Duration {
        let runs = if self.lane_rows.are_batched() {
            rows.div_ceil(self.rows_max)
        } else {
            1
        };
        capacity.time(rows, runs)
    }

    /// Stable, so that who came first goes first among equals; and quick where all but the last jobs are in order already.
    fn order(&mut self) {
        self.jobs.make_contiguous().sort_by_key(|job| due(&job.envelope));
    }

    fn close(&mut self, now: Instant, slice: Option<Duration>, capacity: Option<Capacity>) -> Option<Batch> {
        let mut batch = Batch {
            jobs: Vec::with_capacity(self.jobs.len().min(self.rows_max)),
            rows: 0,
        };
        let mut time_max = slice;
        while let Some(next) = self.jobs.front() {
            if next.envelope.receipt.is_current() {
                time_max = earlier(time_max, left(next, now));
                if !self.joins(next, &batch, time_max.zip(capacity)) {
                    break;
                }
            }
            let Some(job) = self.pop() else { break };
            if job.envelope.receipt.is_current() {
                batch.rows += job.rows;
                batch.jobs.push(job);
            }
        }
        if batch.jobs.is_empty() {
            return None;
        }
        self.ran = Some(now);
        Some(batch)
    }

    /// Whether a job may be the next of a batch that may take so long.
    fn joins(&self, next: &Job, batch: &Batch, time_max: Option<(Duration, Capacity)>) -> bool {
        let Some(first) = batch.jobs.first() else { return true };
        let rows = batch.rows + next.rows;
        !self.runs_alone(first)
            && rows <= self.rows_max
            && !next.envelope.redelivered
            && next.stacks_with(first)
            && time_max.is_none_or(|(time_max, capacity)| self.time(rows, capacity) <= time_max)
    }

    /// A redelivered job may be what took the last worker down; alone, it takes nobody with it.
    fn runs_alone(&self, job: &Job) -> bool {
        !self.lane_rows.are_batched() || job.envelope.redelivered || job.rows >= self.rows_max || !job.given.is_empty()
    }

    fn count(&mut self, job: &Job) {
        self.rows += job.rows;
        self.deadlines += usize::from(job.envelope.deadline.is_some());
    }

    fn pop(&mut self) -> Option<Job> {
        let job = self.jobs.pop_front()?;
        self.rows -= job.rows;
        self.deadlines -= usize::from(job.envelope.deadline.is_some());
        Some(job)
    }

    fn drain(&mut self) -> VecDeque<Job> {
        (self.rows, self.deadlines) = (0, 0);
        std::mem::take(&mut self.jobs)
    }
}

/// By when a job is to be done, for the order.
fn due(envelope: &Envelope) -> Instant {
    envelope.deadline.unwrap_or(envelope.arrived + DEADLINE_DEFAULT)
}

/// How long a job's own deadline leaves.
fn left(job: &Job, now: Instant) -> Option<Duration> {
    let deadline = job.envelope.deadline?;
    Some(deadline.saturating_duration_since(now))
}

fn earlier(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

fn answer((job, error): (Job, JobError)) -> Answer {
    Answer {
        envelope: job.envelope,
        outcome: Outcome::Failure(error),
    }
}

/// Where a job without a deadline stands among those that have one: behind whoever waits for an answer, which takes seconds
/// at most, and before whoever set a limit only so that nothing waits for ever. It is also how long others can overtake it.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// How long an estimate is believed that no run has confirmed.
const BELIEVED_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::super::testing::{Jobs, batched, ids, not_batched};
    use super::*;

    /// An engine that is told when to finish, seen from the batching loop.
    struct Bench {
        jobs: Option<Sender<Job>>,
        idle: Sender<EngineSlot>,
        answers: Receiver<Vec<Answer>>,
    }

    fn start(batcher: Batcher) -> Bench {
        let (jobs, jobs_receiver) = mpsc::channel(16);
        let (idle, idle_receiver) = mpsc::channel(1);
        let (answers, answers_receiver) = mpsc::channel(16);
        tokio::spawn(run(
            batcher,
            Duration::ZERO,
            Seat::free(),
            Jobs::new().lane,
            jobs_receiver,
            idle_receiver,
            answers,
        ));
        Bench {
            jobs: Some(jobs),
            idle,
            answers: answers_receiver,
        }
    }

    impl Bench {
        async fn send(&self, job: Job) {
            assert!(self.jobs.as_ref().unwrap().send(job).await.is_ok());
        }

        async fn finish(&self) -> oneshot::Receiver<Work> {
            let (slot, batch) = oneshot::channel();
            assert!(self.idle.send(EngineSlot(slot)).await.is_ok());
            batch
        }

        async fn finish_and_take(&mut self) -> Batch {
            self.finish().await.await.unwrap().batch
        }
    }

    /// Nothing is known of what runs take.
    fn batcher(rows_max: usize) -> Batcher {
        Batcher::new(rows_max, batched(), Arc::default())
    }

    /// A run takes 10 ms and 1 ms a row.
    fn measured(rows_max: usize) -> Batcher {
        let capacity = Capacity {
            seconds_per_row: 0.001,
            seconds_per_run: 0.01,
        };
        Batcher::new(rows_max, batched(), Arc::new(Estimate::new(Some(capacity))))
    }

    fn in_ms(mut job: Job, now: Instant, ms: u64) -> Job {
        job.envelope.deadline = Some(now + Duration::from_millis(ms));
        job
    }

    fn refusals(answers: Vec<Answer>) -> Vec<String> {
        let text = |answer: Answer| match answer.outcome {
            Outcome::Failure(error) => error.to_string(),
            Outcome::Result { .. } => "a result".to_owned(),
        };
        answers.into_iter().map(text).collect()
    }

    #[tokio::test]
    async fn jobs_that_arrive_while_the_engine_is_busy_leave_together() {
        let jobs = Jobs::new();
        let mut bench = start(batcher(64));

        bench.send(jobs.job(1, 1)).await;
        let alone = bench.finish_and_take().await; // idle: nothing to wait for
        for id in 2..=4 {
            bench.send(jobs.job(id, 1)).await;
        }
        let together = bench.finish_and_take().await;

        assert_eq!(ids(&alone.jobs), [1]);
        assert_eq!(ids(&together.jobs), [2, 3, 4]);
    }

    #[tokio::test]
    async fn an_engine_that_was_offered_only_expired_jobs_stays_idle_for_the_next() {
        let jobs = Jobs::new();
        let mut bench = start(batcher(64));
        let mut late_job = jobs.job(1, 1);
        late_job.envelope.deadline = Some(Instant::now());

        bench.send(late_job).await;
        let offered = bench.finish().await;
        let expired = bench.answers.recv().await.unwrap();
        bench.send(jobs.job(2, 1)).await;
        let batch = offered.await.unwrap().batch;

        assert_eq!(expired.len(), 1);
        assert_eq!(ids(&batch.jobs), [2]);
    }

    #[tokio::test]
    async fn the_loop_hands_over_what_it_holds_before_it_ends() {
        let jobs = Jobs::new();
        let mut bench = start(batcher(1));
        bench.send(jobs.job(1, 1)).await;
        bench.send(jobs.job(2, 1)).await;
        bench.jobs = None;

        assert_eq!(ids(&bench.finish_and_take().await.jobs), [1]);
        assert_eq!(ids(&bench.finish_and_take().await.jobs), [2]);
        assert!(bench.answers.recv().await.is_none());
    }

    #[test]
    fn a_redelivered_job_runs_alone_and_lets_nobody_overtake() {
        let jobs = Jobs::new();
        let mut batcher = batcher(64);
        let mut suspect = jobs.job(2, 1);
        suspect.envelope.redelivered = true;
        for job in [jobs.job(1, 1), suspect, jobs.job(3, 1), jobs.job(4, 1)] {
            batcher.push(Some(job));
        }

        assert_eq!(take_all(&mut batcher), [vec![1], vec![2], vec![3, 4]]);
    }

    #[test]
    fn a_job_with_more_rows_than_a_batch_may_have_is_a_batch_of_its_own() {
        let jobs = Jobs::new();
        let mut batcher = batcher(4);
        for (id, rows) in [(1, 2), (2, 9), (3, 2), (4, 2), (5, 1)] {
            batcher.push(Some(jobs.job(id, rows)));
        }

        assert_eq!(take_all(&mut batcher), [vec![1], vec![2], vec![3, 4], vec![5]]);
    }

    #[test]
    fn jobs_that_wait_when_batching_ends_leave_alone() {
        let jobs = Jobs::new();
        let rows = batched();
        let mut batcher = Batcher::new(64, rows.clone(), Arc::default());
        for id in 1..=3 {
            batcher.push(Some(jobs.job(id, 2)));
        }

        rows.withdraw();

        let batches = (1..=3).map(|_| ids(&batcher.take(Instant::now(), None).0.unwrap().jobs));
        assert_eq!(batches.collect::<Vec<_>>(), [[1], [2], [3]]);
    }

    #[test]
    fn jobs_of_a_model_that_cannot_be_batched_run_one_by_one() {
        let jobs = Jobs::new();
        let mut batcher = Batcher::new(64, not_batched(), Arc::default());
        for id in 1..=3 {
            batcher.push(Some(jobs.job(id, 1)));
        }

        assert_eq!(take_all(&mut batcher), [vec![1], vec![2], vec![3]]);
    }

    #[test]
    fn jobs_of_other_trailing_axes_do_not_share_a_tensor() {
        let jobs = Jobs::new();
        let mut batcher = batcher(64);
        let mut wide = jobs.job(2, 1);
        wide.inputs[0].shape = vec![1, 7];
        for job in [jobs.job(1, 1), wide, jobs.job(3, 1)] {
            batcher.push(Some(job));
        }

        assert_eq!(take_all(&mut batcher), [vec![1], vec![2], vec![3]]);
    }

    #[test]
    fn jobs_of_a_channel_that_is_gone_are_dropped() {
        let mut jobs = Jobs::new();
        let mut batcher = batcher(64);
        batcher.push(Some(jobs.job(1, 1)));

        jobs.lose_channel();

        assert!(batcher.take(Instant::now(), None).0.is_none());
    }

    #[test]
    fn the_earliest_deadline_goes_first_and_among_equals_who_came_first() {
        let jobs = Jobs::new();
        let mut batcher = batcher(2);
        let now = Instant::now();
        for job in [
            jobs.job(1, 1),
            in_ms(jobs.job(2, 1), now, 60_000),
            in_ms(jobs.job(3, 1), now, 500),
            in_ms(jobs.job(4, 1), now, 200),
            jobs.job(5, 1),
            in_ms(jobs.job(6, 1), now, 500),
        ] {
            batcher.push(Some(job));
        }

        assert_eq!(take_all(&mut batcher), [vec![4, 3], vec![6, 1], vec![5, 2]]);
    }

    #[test]
    fn a_job_without_a_deadline_is_overtaken_for_a_while_only() {
        let jobs = Jobs::new();
        let mut batcher = batcher(1);
        batcher.push(Some(jobs.job(0, 1)));
        let mut left = Vec::new();

        for second in 1..=12 {
            let now = Instant::now() + Duration::from_secs(second);
            batcher.push(Some(in_ms(jobs.job(second, 1), now, 100)));
            left.extend(ids(&batcher.take(now, None).0.unwrap().jobs));
        }

        assert_eq!(left[..9], [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert!(left.contains(&0), "{left:?}");
    }

    #[test]
    fn a_job_that_cannot_be_done_before_its_deadline_is_refused_with_both_times() {
        let jobs = Jobs::new();
        let mut batcher = measured(64);
        let now = Instant::now();
        for job in [in_ms(jobs.job(1, 2), now, 11), in_ms(jobs.job(2, 1), now, 12)] {
            batcher.push(Some(job));
        }

        let (batch, refused) = batcher.take(now, None);

        assert_eq!(ids(&batch.unwrap().jobs), [2]);
        let text = "the deadline is 11.0ms away, and a run of this job takes some 12.0ms; it was not run";
        assert_eq!(refusals(refused), [text]);
    }

    #[test]
    fn a_batch_grows_only_while_its_earliest_deadline_can_be_met() {
        let jobs = Jobs::new();
        let mut batcher = measured(64);
        let now = Instant::now();
        batcher.push(Some(in_ms(jobs.job(1, 1), now, 13)));
        for id in 2..=9 {
            batcher.push(Some(jobs.job(id, 1)));
        }

        let (batch, refused) = batcher.take(now, None);

        assert!(refused.is_empty());
        assert_eq!(ids(&batch.unwrap().jobs), [1, 2, 3]);
        assert_eq!(take_all(&mut batcher), [[4, 5, 6, 7, 8, 9]]);
    }

    #[test]
    fn a_batch_is_as_long_as_its_slice_and_one_job_at_least() {
        let jobs = Jobs::new();
        let mut batcher = measured(64);
        for id in 1..=9 {
            batcher.push(Some(jobs.job(id, 1)));
        }

        let batches = [14, 1].map(|ms| batcher.take(Instant::now(), Some(Duration::from_millis(ms))).0);

        let batches = batches.map(|batch| ids(&batch.unwrap().jobs));
        assert_eq!(batches, [vec![1, 2, 3, 4], vec![5]]);
    }

    #[test]
    fn the_least_run_has_rows_that_take_as_long_as_the_run_besides_them() {
        let jobs = Jobs::new();
        let mut batcher = measured(64);
        let mut least = vec![batcher.least().as_millis()];

        for (id, rows) in [(1, 3), (2, 2), (3, 40)] {
            batcher.push(Some(jobs.job(id, rows)));
            least.push(batcher.least().as_millis());
        }

        assert_eq!(least, [0, 13, 15, 20]);
    }

    #[test]
    fn a_job_that_runs_in_slices_is_estimated_by_all_of_them() {
        let jobs = Jobs::new();
        let mut batcher = measured(4);
        let now = Instant::now();
        // Three runs of ten milliseconds and nine rows.
        for job in [in_ms(jobs.job(1, 9), now, 38), in_ms(jobs.job(2, 9), now, 40)] {
            batcher.push(Some(job));
        }

        let (batch, refused) = batcher.take(now, None);

        assert_eq!((ids(&batch.unwrap().jobs), refused.len()), (vec![2], 1));
    }

    #[test]
    fn an_estimate_that_has_every_job_refused_is_tried_again_after_a_while() {
        let jobs = Jobs::new();
        let mut batcher = measured(64);
        let began = Instant::now();
        let mut run = Vec::new();

        for half_seconds in 0..6 {
            let now = began + Duration::from_millis(500 * half_seconds);
            for job in [in_ms(jobs.job(1, 1), now, 5), in_ms(jobs.job(2, 1), now, 6)] {
                batcher.push(Some(job));
            }
            let (batch, refused) = batcher.take(now, None);
            run.push((batch.map_or(0, |batch| batch.jobs.len()), refused.len()));
        }

        assert_eq!(run, [(0, 2), (0, 2), (1, 1), (0, 2), (1, 1), (0, 2)]);
    }

    fn take_all(batcher: &mut Batcher) -> Vec<Vec<u64>> {
        let mut batches = Vec::new();
        while let (Some(batch), _) = batcher.take(Instant::now(), None) {
            batches.push(ids(&batch.jobs));
        }
        batches
    }

    /// An estimate has seven digits.
    const SLACK: Duration = Duration::from_micros(1);

    proptest! {
        #[test]
        fn every_job_leaves_in_one_batch_once_and_in_order(
            shapes in proptest::collection::vec((1_usize..12, any::<bool>()), 0..40),
            rows_max in 1_usize..16,
        ) {
            let jobs = Jobs::new();
            let mut batcher = batcher(rows_max);
            for (id, (rows, redelivered)) in shapes.iter().enumerate() {
                let mut job = jobs.job(id as u64, *rows);
                job.envelope.redelivered = *redelivered;
                batcher.push(Some(job));
            }

            let mut left = Vec::new();
            while let (Some(batch), _) = batcher.take(Instant::now(), None) {
                prop_assert!(batch.rows <= rows_max || batch.jobs.len() == 1);
                prop_assert!(batch.jobs.len() == 1 || batch.jobs.iter().all(|job| !job.envelope.redelivered));
                left.extend(ids(&batch.jobs));
            }

            prop_assert_eq!(left, (0..shapes.len() as u64).collect::<Vec<_>>());
        }

        #[test]
        fn with_deadlines_every_job_leaves_once_the_earliest_first_or_is_refused(
            shapes in proptest::collection::vec((1_usize..12, proptest::option::of(0_u64..40), any::<bool>()), 0..40),
            rows_max in 1_usize..16,
        ) {
            let jobs = Jobs::new();
            let mut batcher = measured(rows_max);
            let now = Instant::now();
            for (id, (rows, deadline, redelivered)) in shapes.iter().enumerate() {
                let mut job = jobs.job(id as u64, *rows);
                job.envelope.redelivered = *redelivered;
                job.envelope.deadline = deadline.map(|ms| now + Duration::from_millis(ms));
                batcher.push(Some(job));
            }

            let (mut left, mut refused) = (Vec::new(), 0);
            loop {
                let (batch, answers) = batcher.take(now, None);
                refused += answers.len();
                let Some(batch) = batch else { break };
                prop_assert!(batch.rows <= rows_max || batch.jobs.len() == 1);
                prop_assert!(batch.jobs.len() == 1 || batch.jobs.iter().all(|job| !job.envelope.redelivered));
                let takes = Duration::from_millis((10 * batch.rows.div_ceil(rows_max) + batch.rows) as u64);
                for job in &batch.jobs {
                    prop_assert!(job.envelope.deadline.is_none_or(|deadline| now + takes <= deadline + SLACK));
                    left.push((due(&job.envelope), ids(std::slice::from_ref(job))[0]));
                }
            }

            prop_assert_eq!(left.len() + refused, shapes.len());
            prop_assert!(left.is_sorted(), "{:?}", left);
            prop_assert!(!batcher.has_jobs() && batcher.rows == 0 && batcher.deadlines == 0);
        }
    }
}
