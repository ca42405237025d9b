//! What is to be published and is not under way: it outlives a channel that one message closed.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::time::DelayQueue;
use tracing::warn;

use super::decode::Envelope;
use super::flight::Flight;
use super::plan::{Fate, Next, Parcel, Plan};
use super::refusing::{Destination, Finding, GivenUp, Refusing};
use super::reply::{Answer, Due};
use super::settle::Verdict;
use super::trial::Trial;
use crate::telemetry::health::{Condition, Health};
use crate::telemetry::metrics::ReplyMetrics;

/// The messages of the publishing task, but for those that are published and unconfirmed.
pub(super) struct PublishQueue {
    /// Answers that came while there was no connection.
    pub early: Option<Vec<Answer>>,
    pub ready: Vec<Due>,
    /// What is published with nothing else under way.
    pub exclusive: VecDeque<Due>,
    /// What takes the place of a message over which the broker closed the connection; due on the next.
    pub instead: Vec<Due>,
    /// Jobs that go back to their queues, each in its time.
    pub delayed: DelayedRequeues,
    pub refusing: Refusing,
    pub trials: JoinSet<(Destination, Box<Parcel>, Finding)>,
    /// The worker stops: nothing is held back any more.
    pub stopping: bool,
    /// The channel refuses what a new one is allowed to publish.
    pub channel_is_stale: bool,
    /// When it was last replaced for that.
    replaced: Option<Instant>,
    /// The first refusal since anything was confirmed.
    refused_since: Option<Instant>,
    /// The models of whose dead letters the worker has said that they are not taken.
    reported: BTreeSet<Arc<str>>,
    metrics: ReplyMetrics,
    health: Health,
}

/// Jobs that go back to their queues, each in its time; all at once when the worker stops.
#[derive(Default)]
pub(super) struct DelayedRequeues(pub DelayQueue<(Box<Envelope>, Verdict)>);

impl DelayedRequeues {
    pub fn end(&mut self) {
        while let Some(key) = self.0.peek() {
            let (envelope, verdict) = self.0.remove(&key).into_inner();
            envelope.settle(verdict);
        }
    }
}

impl Drop for DelayedRequeues {
    fn drop(&mut self) {
        self.end();
    }
}

impl PublishQueue {
    pub fn new(unavailable_max: Duration, metrics: ReplyMetrics, health: Health) -> Self {
        Self {
            early: None,
            ready: Vec::new(),
            exclusive: VecDeque::new(),
            instead: Vec::new(),
            delayed: DelayedRequeues::default(),
            refusing: Refusing::new(unavailable_max),
            trials: JoinSet::new(),
            stopping: false,
            channel_is_stale: false,
            replaced: None,
            refused_since: None,
            reported: BTreeSet::new(),
            metrics,
            health,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.exclusive.is_empty() && self.trials.is_empty() && self.refusing.holds_nothing()
    }

    /// What may be published now, beside what is under way.
    pub fn departing(&mut self, flight: &Flight) -> Vec<Due> {
        if flight.carries_one_alone() || self.channel_is_stale {
            return Vec::new();
        }
        if flight.is_empty() && self.ready.is_empty() {
            return self.exclusive.pop_front().into_iter().collect();
        }
        std::mem::take(&mut self.ready)
    }

    /// The broker has said what became of a message on the channel that all share.
    pub fn landed(&mut self, parcel: Box<Parcel>, fate: Fate, plan: &Plan) {
        match fate {
            Fate::Confirmed | Fate::Returned => self.heard_from(),
            Fate::Refused => {
                self.refused_since.get_or_insert_with(Instant::now);
            }
        }
        self.follow(plan.after(parcel, fate), plan);
    }

    /// Puts the next step of a job where it belongs.
    pub fn follow(&mut self, next: Next, plan: &Plan) {
        match next {
            Next::Publish(parcel, message) => {
                if self.refusing.is_refusing(&message) {
                    self.hold(parcel, None, plan);
                } else if parcel.flies_alone() {
                    self.exclusive.push_back((parcel, message));
                } else {
                    self.ready.push((parcel, message));
                }
            }
            Next::HoldBack(parcel, fate) => {
                self.metrics.refused.inc();
                self.hold(parcel, Some(fate), plan);
            }
            Next::RetryAfter(mut backoff, envelope) => {
                let wait = backoff.next(fastrand::f64());
                self.delayed.0.insert((envelope, Verdict::Retry), wait);
            }
            Next::GiveBackAfter(mut backoff, envelope) => {
                let wait = backoff.next(fastrand::f64());
                self.delayed.0.insert((envelope, Verdict::GiveBack), wait);
            }
            Next::Settled => {}
        }
    }

    fn hold(&mut self, parcel: Box<Parcel>, fate: Option<Fate>, plan: &Plan) {
        if self.stopping {
            return parcel.give_back();
        }
        let destination = plan.destination(&parcel);
        let held = self
            .refusing
            .hold(parcel, destination, fate, Instant::now(), fastrand::f64());
        if let Err(given_up) = held {
            self.turn_away(vec![given_up], plan);
        }
    }

    fn turn_away(&mut self, given_up: Vec<GivenUp>, plan: &Plan) {
        for GivenUp { parcel, reason } in given_up {
            self.follow(plan.turn_away(parcel, reason), plan);
        }
    }

    /// Starts the trials that are due, and gives up what has waited too long.
    pub fn try_refusing(&mut self, plan: &Plan, trial: impl Fn(Destination, bool) -> Trial) {
        let now = Instant::now();
        while self.trials.len() < TRIALS_MAX
            && let Some((destination, parcel, look_first)) = self.refusing.take_due(now)
        {
            match plan.again(parcel) {
                Next::Publish(parcel, message) => {
                    let trial = trial(destination, look_first);
                    self.trials.spawn(async move {
                        let (parcel, finding) = trial.run(parcel, message).await;
                        (trial.destination, parcel, finding)
                    });
                }
                // Its job belongs to another worker by now.
                _ => self.refusing.untried(&destination, now),
            }
        }
        let given_up = self.refusing.expire(now);
        self.turn_away(given_up, plan);
        self.count();
    }

    /// A trial is over.
    pub fn tried(&mut self, destination: &Destination, parcel: Box<Parcel>, finding: Finding, plan: &Plan) {
        match finding {
            Finding::Taken => self.heard_from(),
            Finding::Refused => {
                self.refused_since.get_or_insert_with(Instant::now);
            }
            _ => {}
        }
        let now = Instant::now();
        let learned = self.refusing.found(destination, parcel, finding, now, fastrand::f64());
        if learned.channel_is_stale && self.replaced.is_none_or(|last| now - last > REPLACE_PAUSE) {
            warn!("the publishing channel is refused what a new one may publish, and is replaced");
            self.channel_is_stale = true;
            self.replaced = Some(now);
        }
        if let Some(parcel) = learned.taken {
            self.follow(plan.after(parcel, Fate::Confirmed), plan);
        }
        if let Some((parcel, said)) = learned.unacceptable {
            let next = if parcel.is_dead_letter() {
                plan.turn_away(parcel, said)
            } else {
                plan.outlaw(parcel, &said)
            };
            self.follow(next, plan);
        }
        for parcel in learned.released {
            self.follow(plan.again(parcel), plan);
        }
        self.turn_away(learned.given_up, plan);
        if self.stopping {
            self.give_back_held();
        }
        self.report();
    }

    /// The worker stops: what is held back is for another.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.delayed.end();
        self.give_back_held();
    }

    /// Gives the jobs back to their queues: dropped, they would stay with this worker until its consuming channel closes.
    pub fn give_back(&mut self) {
        for (parcel, _) in self.ready.drain(..).chain(self.exclusive.drain(..)) {
            parcel.give_back();
        }
        self.give_back_held();
        self.refused_since = None;
        self.channel_is_stale = false;
    }

    fn give_back_held(&mut self) {
        for parcel in self.refusing.take_all() {
            parcel.give_back();
        }
        self.report();
    }

    fn heard_from(&mut self) {
        if self.refused_since.take().is_some() {
            self.health.clear(&Condition::Publishing);
        }
    }

    /// Says what cannot be got out, and whether that is so for everything, and for so long that another connection may be
    /// of help.
    pub fn report(&mut self) -> bool {
        self.count();
        let stuck = self.refusing.dead_letters();
        let models: BTreeSet<_> = stuck.iter().map(|(model, _)| model.clone()).collect();
        for model in self.reported.difference(&models) {
            self.health.clear(&Condition::DeadLetters(model.clone()));
        }
        for (model, reason) in stuck {
            self.health.set(Condition::DeadLetters(model), &reason);
        }
        self.reported = models;
        let refused = self.refused_since.map_or(Duration::ZERO, |since| since.elapsed());
        let is_inexplicable = self.refusing.is_inexplicable();
        if refused > UNREADY_AFTER && is_inexplicable {
            self.health.set(
                Condition::Publishing,
                "the broker refuses everything that is published, and says nothing of the reason",
            );
        }
        refused > RECONNECT_AFTER && is_inexplicable
    }

    fn count(&self) {
        let (replies, dead_letters) = self.refusing.held();
        self.metrics.replies_held_back.set(replies as i64);
        self.metrics.dead_letters_held_back.set(dead_letters as i64);
    }
}

/// Trials at a time: each takes a channel or two of the connection.
const TRIALS_MAX: usize = 16;
const REPLACE_PAUSE: Duration = Duration::from_secs(1);
const UNREADY_AFTER: Duration = Duration::from_secs(2);
const RECONNECT_AFTER: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::StreamExt;
    use lapin::BasicProperties;

    use super::super::reply::Outcome;
    use super::super::testing::{Jobs, plan};
    use super::*;
    use crate::error::JobError;

    #[tokio::test]
    async fn held_replies_go_back_when_the_connection_is_lost() {
        let mut jobs = Jobs::new();
        let plan = plan(&jobs);
        let mut queue = queue(&jobs);
        for _ in 0..2 {
            let Next::Publish(parcel, _) = plan.start(answer(&jobs)) else {
                panic!("no reply");
            };
            queue.landed(parcel, Fate::Refused, &plan);
        }
        queue.report();
        let held = jobs.metrics.reply.replies_held_back.get();

        queue.give_back();

        assert_eq!(held, 2);
        assert_eq!(jobs.verdicts(), [Verdict::GiveBack, Verdict::GiveBack]);
        assert_eq!(jobs.metrics.receipts.dropped.get(), 0);
        assert_eq!(jobs.metrics.reply.replies_held_back.get(), 0);
    }

    #[tokio::test]
    async fn nothing_is_held_back_once_the_worker_stops() {
        let mut jobs = Jobs::new();
        let plan = plan(&jobs);
        let mut queue = queue(&jobs);
        queue.stop();
        let Next::Publish(parcel, _) = plan.start(answer(&jobs)) else {
            panic!("no reply");
        };

        queue.landed(parcel, Fate::Refused, &plan);

        assert!(queue.is_empty());
        assert_eq!(jobs.verdicts(), [Verdict::GiveBack]);
    }

    #[tokio::test]
    async fn jobs_that_rest_go_back_in_their_time_and_all_at_once_in_the_end() {
        let mut jobs = Jobs::new();
        let mut resting = DelayedRequeues::default();
        for wait in [0, 60_000, 120_000] {
            let envelope = jobs.envelope(BasicProperties::default(), Bytes::new());
            resting
                .0
                .insert((envelope, Verdict::Retry), Duration::from_millis(wait));
        }

        let (first, verdict) = resting.0.next().await.unwrap().into_inner();
        first.settle(verdict);
        let in_time = jobs.verdicts();
        drop(resting);

        assert_eq!(in_time, [Verdict::Retry]);
        assert_eq!(jobs.verdicts(), [Verdict::Retry, Verdict::Retry]);
        assert_eq!(jobs.metrics.receipts.dropped.get(), 0);
    }

    fn queue(jobs: &Jobs) -> PublishQueue {
        jobs.metrics.model("pair").prefetch.set(100, "test");
        PublishQueue::new(Duration::from_secs(300), jobs.metrics.reply.clone(), Health::default())
    }

    fn answer(jobs: &Jobs) -> Answer {
        let properties = BasicProperties::default().with_reply_to("replies".into());
        Answer {
            envelope: jobs.envelope(properties, Bytes::new()),
            outcome: Outcome::Failure(JobError::Failed("it failed".to_owned())),
        }
    }
}
