//! Messages that are published and not yet confirmed.
//!
//! `lapin` hands a returned message to whichever confirm comes next, not to its own, so returns are matched by what the
//! message itself carries. A confirm that was given another's return was finished before the one it belongs to.
//! Therefore all finished confirms are collected first, then their returns are noted, and only then is a fate told.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation, Connection, PublisherConfirm};
use tokio::time::Instant;

use super::message::Message;
use super::plan::{Fate, Parcel};
use super::reply::Due;
use super::settle::Verdict;
use crate::telemetry::metrics::ReplyMetrics;

/// One publishing channel and what is under way on it. Used by one task: two would swap their confirms, since `lapin`
/// counts a message and queues its frames in two steps.
pub struct Flight {
    channel: Channel,
    connection: Arc<Connection>,
    confirm_timeout: Duration,
    metrics: ReplyMetrics,
    confirms: FuturesUnordered<Confirm>,
    pending: HashMap<u64, Pending>,
    next: u64,
}

struct Pending {
    parcel: Box<Parcel>,
    message: Message,
    published: Instant,
    returned: bool,
}

/// What became of some messages.
#[derive(Default)]
pub struct Landed {
    pub settled: Vec<(Box<Parcel>, Message, Fate)>,
    /// Why the channel is lost, if it is.
    pub lost: Option<String>,
}

impl Flight {
    pub fn new(
        channel: Channel,
        connection: Arc<Connection>,
        confirm_timeout: Duration,
        metrics: ReplyMetrics,
    ) -> Self {
        Self {
            channel,
            connection,
            confirm_timeout,
            metrics,
            confirms: FuturesUnordered::new(),
            pending: HashMap::new(),
            next: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.pending.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Publishes everything together, so that the frames leave in few writes, and keeps every confirm.
    ///
    /// # Errors
    /// The channel is lost. What was to be published counts as under way, to be given back.
    pub async fn send(&mut self, due: Vec<Due>) -> Result<(), String> {
        if due.is_empty() {
            return Ok(());
        }
        let first = self.next;
        self.hold(due);
        let sent = {
            let publish = |id: u64| {
                let message = &self.pending[&id].message;
                let options = BasicPublishOptions {
                    mandatory: message.mandatory,
                    ..BasicPublishOptions::default()
                };
                let publishing = self.channel.basic_publish(
                    message.exchange.clone(),
                    message.routing_key.clone(),
                    options,
                    &message.body,
                    message.properties.clone(),
                );
                publishing.map(move |confirm| confirm.map(|confirm| Confirm { id, confirm }))
            };
            let publishing = join_all((first..self.next).map(publish));
            self.patiently(publishing).await?
        };
        for confirm in sent {
            self.confirms.push(confirm.map_err(|error| error.to_string())?);
        }
        self.metrics.unconfirmed.set(self.pending.len() as i64);
        Ok(())
    }

    /// Counts messages as under way without publishing them.
    pub fn hold(&mut self, due: Vec<Due>) {
        let published = Instant::now();
        for (parcel, message) in due {
            let pending = Pending {
                parcel,
                message,
                published,
                returned: false,
            };
            self.pending.insert(self.next, pending);
            self.next += 1;
        }
    }

    /// Waits for as long as the broker blocks the connection, and no longer than the confirm timeout else.
    async fn patiently<T>(&self, work: impl Future<Output = T>) -> Result<T, String> {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(self.confirm_timeout, &mut work).await {
                Ok(done) => return Ok(done),
                Err(_) if self.connection.status().blocked() => {}
                Err(_) => return Err(format!("nothing could be published for {:?}", self.confirm_timeout)),
            }
        }
    }

    /// Waits for a confirm and returns everything that has been confirmed by then.
    pub async fn landed(&mut self) -> Landed {
        let Some(first) = self.confirms.next().await else {
            return Landed {
                lost: Some("a confirm is missing".to_owned()),
                ..Landed::default()
            };
        };
        let mut finished = vec![first];
        while let Some(Some(next)) = self.confirms.next().now_or_never() {
            finished.push(next);
        }
        for (_, confirmation) in &finished {
            if let Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) = confirmation {
                self.note_return(returned);
            }
        }
        let mut landed = Landed::default();
        for (id, confirmation) in finished {
            let refused = match confirmation {
                Ok(confirmation) => confirmation.is_nack(),
                Err(error) => {
                    landed.lost = Some(error.to_string());
                    continue;
                }
            };
            let Some(pending) = self.pending.remove(&id) else {
                continue;
            };
            self.metrics
                .confirm_seconds
                .observe(pending.published.elapsed().as_secs_f64());
            let fate = match (refused, pending.returned) {
                (true, _) => Fate::Refused,
                (false, true) => Fate::Returned,
                (false, false) => Fate::Confirmed,
            };
            landed.settled.push((pending.parcel, pending.message, fate));
        }
        self.metrics.unconfirmed.set(self.pending.len() as i64);
        landed
    }

    /// Blames the message that came back: the one to that queue with that id which has waited longest.
    ///
    /// Two messages that agree in both go to one queue, so that either is the right one to blame first.
    fn note_return(&mut self, returned: &BasicReturnMessage) {
        let id = returned.properties.message_id();
        let (exchange, routing_key) = (&returned.exchange, &returned.routing_key);
        let same = |pending: &Pending| {
            let (theirs, message): (&Option<ShortString>, _) =
                (pending.message.properties.message_id(), &pending.message);
            !pending.returned && theirs == id && message.exchange == *exchange && message.routing_key == *routing_key
        };
        let oldest = self
            .pending
            .iter_mut()
            .filter(|(_, pending)| same(pending))
            .min_by_key(|(id, _)| **id);
        match oldest {
            Some((_, pending)) => pending.returned = true,
            None => tracing::error!("the broker returned a message that was not under way"),
        }
    }

    /// Why the channel must be given up, if confirms do not come although the broker lets us publish.
    pub fn overdue(&self) -> Option<String> {
        let oldest = self.pending.values().map(|pending| pending.published.elapsed()).max()?;
        let overdue = oldest > self.confirm_timeout && !self.connection.status().blocked();
        overdue.then(|| format!("the broker confirmed nothing for {:?}", self.confirm_timeout))
    }

    /// Gives every job back to its queue: whether its reply went out is not known, and a second one does no harm.
    pub fn give_back(self) {
        for (_, pending) in self.pending {
            pending.parcel.envelope.receipt.settle(Verdict::GiveBack);
        }
        self.metrics.unconfirmed.set(0);
    }
}

/// A confirm that knows whose it is.
struct Confirm {
    id: u64,
    confirm: PublisherConfirm,
}

impl Future for Confirm {
    type Output = (u64, Result<Confirmation, lapin::Error>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let id = self.id;
        Pin::new(&mut self.confirm)
            .poll(context)
            .map(|confirmation| (id, confirmation))
    }
}
