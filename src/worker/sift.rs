//! Sifting: which message made the broker close the publishing channel.
//!
//! A reply over the broker's `max_message_size`, or a dead letter for an exchange that is gone, costs the whole channel and
//! the confirms of every other message on it. Given back to their queue, the jobs would return and do it again. So what was
//! under way is published once more, in halves on channels of their own, until the culprit stands alone; everybody else is
//! confirmed on the way.

use std::collections::VecDeque;
use std::sync::Arc;

use tracing::error;

use super::flight::{Flight, Gone, Lost, open};
use super::plan::{Next, Parcel, Parcels};
use super::publish_queue::PublishQueue;
use super::reply::{LOOK, Reply};
use crate::broker::connection::Connected;

/// Groups of messages, one of which closed a channel.
#[derive(Default)]
pub(super) struct Suspects {
    groups: VecDeque<Parcels>,
}

impl Suspects {
    /// Halves a group that closed a channel; the one that did it alone comes back.
    pub(super) fn closed(&mut self, mut group: Parcels) -> Option<Box<Parcel>> {
        if group.len() <= 1 {
            return group.pop();
        }
        let second = group.split_off(group.len() / 2);
        self.groups.push_front(second);
        self.groups.push_front(group);
        None
    }

    pub(super) fn next(&mut self) -> Option<Parcels> {
        self.groups.pop_front()
    }

    fn give_back(self) {
        for parcel in self.groups.into_iter().flatten() {
            parcel.give_back();
        }
    }
}

impl Reply {
    /// Publishes what was under way when the broker closed a channel, and answers the culprits otherwise.
    ///
    /// # Errors
    /// The connection is lost as well; its jobs have gone back to their queues.
    pub(super) async fn sift(
        &self,
        connection: &Arc<Connected>,
        said: String,
        under_way: Parcels,
        desk: &mut PublishQueue,
    ) -> Result<(), Gone> {
        let mut suspects = Suspects::default();
        let mut closed = Some((said, under_way));
        loop {
            if let Some((said, group)) = closed.take()
                && let Some(culprit) = suspects.closed(group)
            {
                self.outlaw(culprit, &said, desk);
            }
            let Some(group) = suspects.next() else { return Ok(()) };
            match self.publish_alone(connection, group, desk).await {
                Ok(()) => {}
                Err((Lost::Closed(said), group)) => closed = Some((said, group)),
                Err((Lost::Gone(gone), group)) => {
                    group.into_iter().for_each(|parcel| parcel.give_back());
                    suspects.give_back();
                    return Err(gone);
                }
            }
        }
    }

    fn outlaw(&self, culprit: Box<Parcel>, said: &str, desk: &mut PublishQueue) {
        let model = culprit.envelope.model.clone();
        error!(
            model.name = %model,
            "the broker closes the channel for the {} of a job: {said}",
            culprit.kind_name()
        );
        desk.follow(self.plan.outlaw(culprit, said), &self.plan);
    }

    /// Publishes messages on a channel that carries nothing else, and waits for all confirms.
    async fn publish_alone(
        &self,
        connection: &Arc<Connected>,
        group: Parcels,
        desk: &mut PublishQueue,
    ) -> Result<(), (Lost, Parcels)> {
        let line = match open(connection, self.config.confirm_timeout).await {
            Ok(line) => line,
            Err(gone) => return Err((Lost::Gone(gone), group)),
        };
        let mut flight = Flight::new(
            line,
            connection.clone(),
            self.config.confirm_timeout,
            self.metrics.clone(),
        );
        let mut due = Vec::with_capacity(group.len());
        for parcel in group {
            if let Next::Publish(parcel, message) = self.plan.again(parcel) {
                due.push((parcel, message));
            }
        }
        let mut look = tokio::time::interval(LOOK);
        let mut lost = flight.send(due).await.err();
        while lost.is_none() && !flight.is_empty() {
            lost = tokio::select! {
                landed = flight.landed() => {
                    for (parcel, fate) in landed.settled {
                        desk.landed(parcel, fate, &self.plan);
                    }
                    landed.lost
                }
                _ = look.tick() => flight.overdue(),
            };
        }
        match lost {
            None => {
                flight.close().await;
                Ok(())
            }
            Some(lost) => Err((lost, flight.into_parcels())),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lapin::BasicProperties;
    use proptest::prelude::*;

    use super::super::reply::{Answer, Outcome};
    use super::super::testing::{Jobs, plan};
    use super::*;
    use crate::error::JobError;

    proptest! {
        #[test]
        fn every_culprit_is_found_alone_and_everybody_else_is_published_once(
            culprits in proptest::collection::vec(any::<bool>(), 1..40),
        ) {
            let jobs = Jobs::new();
            let plan = plan(&jobs);
            let parcels = (0..culprits.len()).map(|number| parcel(&jobs, &plan, number)).collect::<Vec<_>>();
            let is_culprit = |parcel: &Parcel| culprits[number(parcel)];
            // A channel is closed because of one message at least.
            prop_assume!(culprits.contains(&true));

            let (mut found, mut published) = (Vec::new(), Vec::new());
            let mut suspects = Suspects::default();
            found.extend(suspects.closed(parcels));
            while let Some(group) = suspects.next() {
                if group.iter().any(|parcel| is_culprit(parcel)) {
                    found.extend(suspects.closed(group));
                } else {
                    published.extend(group);
                }
            }

            prop_assert!(found.iter().all(|parcel| is_culprit(parcel)));
            let mut all: Vec<_> = found.iter().chain(&published).map(|parcel| number(parcel)).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..culprits.len()).collect::<Vec<_>>());
        }
    }

    fn parcel(jobs: &Jobs, plan: &crate::worker::plan::Plan, number: usize) -> Box<Parcel> {
        let properties = BasicProperties::default().with_reply_to(number.to_string().into());
        let answer = Answer {
            envelope: jobs.envelope(properties, Bytes::new()),
            outcome: Outcome::Failure(JobError::Deadline { late_ms: 1 }),
        };
        match plan.start(answer) {
            Next::Publish(parcel, _) => parcel,
            Next::HoldBack(..) | Next::RetryAfter(..) | Next::GiveBackAfter(..) | Next::Settled => panic!("no reply"),
        }
    }

    fn number(parcel: &Parcel) -> usize {
        let queue = super::super::message::reply_to(&parcel.envelope).unwrap();
        queue.as_str().parse().unwrap()
    }
}
