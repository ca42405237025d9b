//! Replying: the one publishing task. Every confirm is kept and looked at, and only then is a job settled.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::decode::Envelope;
use super::flight::{Flight, Gone, Line, Lost, open};
use super::message::Message;
use super::plan::{Next, Parcel, Parcels, Plan};
use super::publish_queue::PublishQueue;
use super::refusing::Destination;
use super::row_headers::RowHeaders;
use super::trial::Trial;
use crate::broker::backoff::Patience;
use crate::broker::connection::Connected;
use crate::broker::link::{self, Link};
use crate::config::{ReplyConfig, TopologyConfig};
use crate::error::JobError;
use crate::telemetry::health::{Condition, Health};
use crate::telemetry::metrics::ReplyMetrics;
use crate::wire::Encoded;
use crate::wire::status::Status;

/// What a job comes to, on its way to the sender.
pub struct Answer {
    pub envelope: Box<Envelope>,
    pub outcome: Outcome,
}

pub enum Outcome {
    Result {
        body: Encoded,
        timing: Timing,
        rows: RowHeaders,
    },
    Failure(JobError),
}

impl Outcome {
    pub fn status(&self) -> Status {
        match self {
            Self::Result { .. } => Status::Ok,
            Self::Failure(error) => error.status(),
        }
    }
}

/// Where the time of a job went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From the delivery to the run.
    pub wait: Duration,
    /// The run of the whole batch.
    pub infer: Duration,
    pub batch_rows: usize,
}

/// The publishing task.
pub struct Reply {
    pub link: Link,
    pub answers: Receiver<Vec<Answer>>,
    /// Fires when nothing is to be waited for any more.
    pub stop: CancellationToken,
    pub plan: Plan,
    pub config: ReplyConfig,
    pub reconnect_max: Duration,
    pub topology: TopologyConfig,
    pub health: Health,
    pub metrics: ReplyMetrics,
}

/// Why publishing on a channel ended.
enum Ended {
    /// The stages before are gone and the last answer is settled.
    Done,
    /// The channel is lost, and this was under way on it.
    Lost(Lost, Parcels),
    /// Nothing is under way on it, and another is better.
    Stale(Box<Flight>),
}

impl Reply {
    /// Publishes until there are no more answers and every one is settled, or there is no link any more.
    pub async fn run(mut self) {
        let mut patience = Patience::new(self.reconnect_max);
        let mut lost: Option<Arc<Connected>> = None;
        let mut desk = PublishQueue::new(self.config.unavailable_max, self.metrics.clone(), self.health.clone());
        while let Some(connection) = self.connection(&mut desk.early).await {
            let since = Instant::now();
            let Err(Gone { failure, reason, .. }) = self.publish_on(&connection, &mut desk).await else {
                return;
            };
            desk.give_back();
            // A second channel on it that came to nothing: the connection may be the reason.
            if lost
                .replace(connection.clone())
                .is_some_and(|last| Arc::ptr_eq(&last, &connection))
            {
                link::give_up(&connection);
            }
            self.health.set(Condition::Publishing, &reason);
            warn!("the publishing channel is lost: {reason}; unconfirmed jobs go back to their queues");
            if since.elapsed() > STABLE {
                patience.reset();
            }
            tokio::time::sleep(patience.after(failure, fastrand::f64()).wait).await;
        }
    }

    /// Waits for a connection, unless it turns out that nothing is left to publish. Answers that arrive meanwhile are kept
    /// in `early`.
    async fn connection(&mut self, early: &mut Option<Vec<Answer>>) -> Option<Arc<Connected>> {
        if early.is_none() {
            tokio::select! {
                biased;
                connection = self.link.connection() => return connection,
                answers = self.answers.recv() => *early = Some(answers?),
            }
        }
        self.link.connection().await
    }

    /// Publishes on one channel after the other for as long as the broker closes them because of single messages.
    ///
    /// # Errors
    /// Nothing more can be published here; what was under way has gone back to its queues.
    async fn publish_on(&mut self, connection: &Arc<Connected>, desk: &mut PublishQueue) -> Result<(), Gone> {
        desk.ready.append(&mut desk.instead);
        loop {
            let line = open(connection, self.config.confirm_timeout).await?;
            self.health.clear(&Condition::Publishing);
            match self.publish(connection, line, desk).await {
                Ended::Done => return Ok(()),
                Ended::Stale(flight) => {
                    flight.close().await;
                    desk.channel_is_stale = false;
                }
                Ended::Lost(Lost::Closed(said), under_way) => {
                    warn!("the broker closed the publishing channel: {said}; looking for the message it does not take");
                    self.sift(connection, said, under_way, desk).await?;
                }
                Ended::Lost(Lost::Gone(gone), under_way) => {
                    self.leave(&gone, under_way, desk);
                    return Err(gone);
                }
            }
        }
    }

    /// Gives back what was under way on a connection that is gone, unless the broker closed it over that very message.
    fn leave(&self, gone: &Gone, under_way: Parcels, desk: &mut PublishQueue) {
        let is_to_blame = gone.over_us && under_way.len() == 1;
        for parcel in under_way {
            if is_to_blame && parcel.flies_alone() {
                error!(model.name = %parcel.envelope.model, "the broker closes the connection for a direct reply: {}", gone.reason);
                if let Next::Publish(parcel, message) = self.plan.condemn(parcel, &gone.reason) {
                    desk.instead.push((parcel, message));
                }
            } else {
                parcel.give_back();
            }
        }
    }

    async fn publish(&mut self, connection: &Arc<Connected>, line: Line, desk: &mut PublishQueue) -> Ended {
        let mut flight = Flight::new(
            line,
            connection.clone(),
            self.config.confirm_timeout,
            self.metrics.clone(),
        );
        let mut look = tokio::time::interval(LOOK);
        let mut more = true;
        let departing = desk.departing(&flight);
        let mut lost = flight.send(departing).await.err();
        while lost.is_none() && (more || !flight.is_empty() || !desk.is_empty()) {
            if desk.channel_is_stale && flight.is_empty() {
                return Ended::Stale(Box::new(flight));
            }
            let is_clear = desk.exclusive.is_empty() && !flight.carries_one_alone() && !desk.channel_is_stale;
            let room = is_clear && flight.len() < self.config.unconfirmed_max.get();
            let due = desk.refusing.next_due();
            lost = tokio::select! {
                biased;
                landed = flight.landed(), if !flight.is_empty() => {
                    for (parcel, fate) in landed.settled {
                        desk.landed(parcel, fate, &self.plan);
                    }
                    landed.lost
                }
                Some(tried) = desk.trials.join_next(), if !desk.trials.is_empty() => {
                    if let Ok((destination, parcel, finding)) = tried {
                        desk.tried(&destination, parcel, finding, &self.plan);
                    }
                    None
                }
                () = until(due), if due.is_some() => {
                    desk.try_refusing(&self.plan, |destination, look_first| self.trial(connection, destination, look_first));
                    None
                }
                () = self.stop.cancelled(), if !desk.stopping => {
                    desk.stop();
                    None
                }
                Some(rested) = desk.delayed.0.next(), if !desk.delayed.0.is_empty() => {
                    let (envelope, verdict) = rested.into_inner();
                    envelope.settle(verdict);
                    None
                }
                // Otherwise the first answers after a pause would go out on a dead channel, and their jobs back.
                () = self.link.ended(connection) => Some("its connection is lost".to_owned().into()),
                answers = next(&mut desk.early, &mut self.answers), if more && room => {
                    more = answers.is_some();
                    let answers = answers.unwrap_or_default();
                    desk.ready.reserve(answers.len());
                    for answer in answers {
                        desk.follow(self.plan.start(answer), &self.plan);
                    }
                    None
                }
                _ = look.tick() => {
                    let refused = desk.report().then(|| self.refused(connection));
                    flight.overdue().or(refused)
                }
            };
            if lost.is_none() {
                let departing = desk.departing(&flight);
                lost = flight.send(departing).await.err();
            }
        }
        match lost {
            None => Ended::Done,
            Some(lost) => Ended::Lost(lost, flight.into_parcels()),
        }
    }

    fn trial(&self, connection: &Arc<Connected>, destination: Destination, look_first: bool) -> Trial {
        Trial {
            connection: connection.clone(),
            topology: self.topology.clone(),
            confirm_timeout: self.config.confirm_timeout,
            metrics: self.metrics.clone(),
            destination,
            look_first,
        }
    }

    /// Another connection may lead to another node.
    fn refused(&self, connection: &Arc<Connected>) -> Lost {
        link::give_up(connection);
        "the broker refuses everything that is published".to_owned().into()
    }
}

/// Waits for a moment, if there is one.
async fn until(moment: Option<Instant>) {
    if let Some(moment) = moment {
        tokio::time::sleep_until(moment).await;
    }
}

async fn next(early: &mut Option<Vec<Answer>>, answers: &mut Receiver<Vec<Answer>>) -> Option<Vec<Answer>> {
    match early.take() {
        Some(early) => Some(early),
        None => answers.recv().await,
    }
}

/// Something to publish, and for whom.
pub type Due = (Box<Parcel>, Message);

/// A channel that lasted this long was good; the next failure is a new one.
const STABLE: Duration = Duration::from_secs(10);
/// How often confirms that do not come are looked for.
pub(super) const LOOK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lapin::BasicProperties;
    use tokio::sync::mpsc::{self, Sender};

    use super::super::testing::{Jobs, plan};
    use super::*;
    use crate::broker::link::Live;
    use crate::config::Config;

    #[tokio::test]
    async fn without_a_connection_and_without_answers_there_is_nothing_to_wait_for() {
        let jobs = Jobs::new();
        let (reply, answers, _live) = reply(&jobs);

        drop(answers);

        reply.run().await; // Would wait for ever.
    }

    #[tokio::test]
    async fn answers_wait_for_a_connection_and_stay_unsettled_if_there_is_none_any_more() {
        let mut jobs = Jobs::new();
        let (reply, answers, live) = reply(&jobs);
        answers.send(vec![answer(&jobs)]).await.unwrap();
        drop(answers);

        let running = tokio::spawn(reply.run());
        tokio::task::yield_now().await;
        let waits = !running.is_finished();
        drop(live);
        running.await.unwrap();

        assert!(waits);
        assert_eq!(jobs.verdicts(), []);
    }

    fn reply(jobs: &Jobs) -> (Reply, Sender<Vec<Answer>>, Live) {
        let config = Config::from_overrides(&[]).unwrap();
        let (live, link) = Link::new();
        let (answers, receiver) = mpsc::channel(1);
        let reply = Reply {
            link,
            answers: receiver,
            stop: CancellationToken::new(),
            plan: plan(jobs),
            config: config.reply,
            reconnect_max: config.broker.reconnect_max,
            topology: config.topology,
            health: Health::default(),
            metrics: jobs.metrics.reply.clone(),
        };
        (reply, answers, live)
    }

    fn answer(jobs: &Jobs) -> Answer {
        let properties = BasicProperties::default().with_reply_to("replies".into());
        Answer {
            envelope: jobs.envelope(properties, Bytes::new()),
            outcome: Outcome::Failure(JobError::Failed("it failed".to_owned())),
        }
    }
}
