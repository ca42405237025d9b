//! Batching: from jobs to batches of rows, one lane at a time.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::decode::{Job, late};
use super::reply::{Answer, Outcome};

/// Jobs to be run together. A job with more rows than `rows_max` is a batch of its own.
pub struct Batch {
    pub jobs: Vec<Job>,
    pub rows: usize,
}

/// An engine that waits for work.
pub struct EngineSlot(pub oneshot::Sender<Batch>);

/// Hands each idle engine everything that has arrived; never waits for a batch to fill, unless told to linger.
/// Returns when `jobs` closes and the last of them is handed over.
pub async fn run(
    mut batcher: Batcher,
    linger: Duration,
    mut jobs: Receiver<Job>,
    mut idle: Receiver<EngineSlot>,
    answers: Sender<Vec<Answer>>,
) {
    let mut waiting = None;
    while batcher.has_jobs() || batcher.push(jobs.recv().await) {
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
        while !batcher.is_full() && batcher.push(jobs.try_recv().ok()) {}
        let (batch, expired) = batcher.take(Instant::now());
        if !expired.is_empty() {
            let _ = answers.send(expired).await;
        }
        match batch {
            Some(batch) => {
                // An engine that is gone took the device with it; its jobs go back to the broker.
                let _ = slot.0.send(batch);
            }
            None => waiting = Some(slot),
        }
    }
}

/// Collects the jobs of one lane and closes batches, first come first served.
pub struct Batcher {
    rows_max: usize,
    batching: bool,
    jobs: VecDeque<Job>,
}

impl Batcher {
    pub fn new(rows_max: usize, batching: bool) -> Self {
        Self {
            rows_max,
            batching,
            jobs: VecDeque::new(),
        }
    }

    /// Takes a job, if there is one, and says whether there was.
    pub fn push(&mut self, job: Option<Job>) -> bool {
        let came = job.is_some();
        self.jobs.extend(job);
        came
    }

    pub fn has_jobs(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Whether more jobs could not join the next batch.
    pub fn is_full(&self) -> bool {
        let alone = self.jobs.front().is_some_and(|first| self.runs_alone(first));
        alone || self.jobs.iter().map(|job| job.rows).sum::<usize>() >= self.rows_max
    }

    /// Closes a batch at `now`, and answers what has passed its deadline until then.
    ///
    /// Jobs of a channel that is gone are dropped: the broker has given them to somebody else.
    pub fn take(&mut self, now: Instant) -> (Option<Batch>, Vec<Answer>) {
        let expired = self.expire(now);
        self.jobs.retain(|job| job.envelope.receipt.is_current());
        let jobs: Vec<Job> = self.jobs.drain(..self.fitting()).collect();
        let rows = jobs.iter().map(|job| job.rows).sum();
        let batch = (!jobs.is_empty()).then_some(Batch { jobs, rows });
        (batch, expired)
    }

    fn expire(&mut self, now: Instant) -> Vec<Answer> {
        let is_late = |job: &Job| job.envelope.deadline.is_some_and(|deadline| deadline <= now);
        if !self.jobs.iter().any(is_late) {
            return Vec::new();
        }
        let (expired, kept): (Vec<_>, Vec<_>) = self.jobs.drain(..).partition(is_late);
        self.jobs = kept.into();
        expired
            .into_iter()
            .map(|job| Answer {
                outcome: Outcome::Failure(late(job.envelope.deadline.unwrap_or(now), now)),
                envelope: job.envelope,
            })
            .collect()
    }

    /// How many jobs from the front run together.
    fn fitting(&self) -> usize {
        let Some(first) = self.jobs.front() else { return 0 };
        if self.runs_alone(first) {
            return 1;
        }
        let mut rows = 0;
        self.jobs
            .iter()
            .take_while(|job| {
                rows += job.rows;
                rows <= self.rows_max && !job.envelope.redelivered && job.stacks_with(first)
            })
            .count()
            .max(1)
    }

    /// A redelivered job may be what took the last worker down; alone, it takes nobody with it.
    fn runs_alone(&self, job: &Job) -> bool {
        !self.batching || job.envelope.redelivered || job.rows >= self.rows_max
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::super::testing::{Jobs, ids};
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
        tokio::spawn(run(batcher, Duration::ZERO, jobs_receiver, idle_receiver, answers));
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

        async fn finish(&self) -> oneshot::Receiver<Batch> {
            let (slot, batch) = oneshot::channel();
            assert!(self.idle.send(EngineSlot(slot)).await.is_ok());
            batch
        }

        async fn finish_and_take(&mut self) -> Batch {
            self.finish().await.await.unwrap()
        }
    }

    #[tokio::test]
    async fn jobs_that_arrive_while_the_engine_is_busy_leave_together() {
        let jobs = Jobs::new();
        let mut bench = start(Batcher::new(64, true));

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
        let mut bench = start(Batcher::new(64, true));
        let mut late_job = jobs.job(1, 1);
        late_job.envelope.deadline = Some(Instant::now());

        bench.send(late_job).await;
        let offered = bench.finish().await;
        let expired = bench.answers.recv().await.unwrap();
        bench.send(jobs.job(2, 1)).await;
        let batch = offered.await.unwrap();

        assert_eq!(expired.len(), 1);
        assert_eq!(ids(&batch.jobs), [2]);
    }

    #[tokio::test]
    async fn the_loop_hands_over_what_it_holds_before_it_ends() {
        let jobs = Jobs::new();
        let mut bench = start(Batcher::new(1, true));
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
        let mut batcher = Batcher::new(64, true);
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
        let mut batcher = Batcher::new(4, true);
        for (id, rows) in [(1, 2), (2, 9), (3, 2), (4, 2), (5, 1)] {
            batcher.push(Some(jobs.job(id, rows)));
        }

        assert_eq!(take_all(&mut batcher), [vec![1], vec![2], vec![3, 4], vec![5]]);
    }

    #[test]
    fn jobs_of_a_model_that_cannot_be_batched_run_one_by_one() {
        let jobs = Jobs::new();
        let mut batcher = Batcher::new(64, false);
        for id in 1..=3 {
            batcher.push(Some(jobs.job(id, 1)));
        }

        assert_eq!(take_all(&mut batcher), [vec![1], vec![2], vec![3]]);
    }

    #[test]
    fn jobs_of_other_trailing_axes_do_not_share_a_tensor() {
        let jobs = Jobs::new();
        let mut batcher = Batcher::new(64, true);
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
        let mut batcher = Batcher::new(64, true);
        batcher.push(Some(jobs.job(1, 1)));

        jobs.lose_channel();

        assert!(batcher.take(Instant::now()).0.is_none());
    }

    fn take_all(batcher: &mut Batcher) -> Vec<Vec<u64>> {
        let mut batches = Vec::new();
        while let (Some(batch), _) = batcher.take(Instant::now()) {
            batches.push(ids(&batch.jobs));
        }
        batches
    }

    proptest! {
        #[test]
        fn every_job_leaves_in_one_batch_once_and_in_order(
            shapes in proptest::collection::vec((1_usize..12, any::<bool>()), 0..40),
            rows_max in 1_usize..16,
        ) {
            let jobs = Jobs::new();
            let mut batcher = Batcher::new(rows_max, true);
            for (id, (rows, redelivered)) in shapes.iter().enumerate() {
                let mut job = jobs.job(id as u64, *rows);
                job.envelope.redelivered = *redelivered;
                batcher.push(Some(job));
            }

            let mut left = Vec::new();
            while let (Some(batch), _) = batcher.take(Instant::now()) {
                prop_assert!(batch.rows <= rows_max || batch.jobs.len() == 1);
                prop_assert!(batch.jobs.len() == 1 || batch.jobs.iter().all(|job| !job.envelope.redelivered));
                left.extend(ids(&batch.jobs));
            }

            prop_assert_eq!(left, (0..shapes.len() as u64).collect::<Vec<_>>());
        }
    }
}
