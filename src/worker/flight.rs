//! One publishing channel: publishes, keeps every confirm, and hands what they carry to [`Unconfirmed`], which knows whose
//! it is.

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
use lapin::{Channel, Confirmation, Connection, PublisherConfirm};
use tokio::time::Instant;
use tracing::error;

use super::message::Message;
use super::plan::{Fate, Parcel};
use super::reply::Due;
use super::unconfirmed::{Address, Confirmed, Number, Unconfirmed};
use crate::broker;
use crate::broker::backoff::Failure;
use crate::telemetry::metrics::ReplyMetrics;

/// One publishing channel and what is under way on it. Used by one task: two would swap their confirms, since `lapin`
/// counts a message and queues its frames in two steps.
pub struct Flight {
    channel: Channel,
    connection: Arc<Connection>,
    confirm_timeout: Duration,
    metrics: ReplyMetrics,
    confirms: FuturesUnordered<Confirm>,
    unconfirmed: Unconfirmed,
    /// When the broker was last seen to block the connection: it confirmed nothing because of that.
    blocked: Option<Instant>,
}

/// What became of some messages.
#[derive(Default)]
pub struct Landed {
    pub settled: Vec<(Box<Parcel>, Fate)>,
    /// Why the channel is lost, if it is.
    pub lost: Option<Lost>,
}

/// Why a channel is lost.
#[derive(Debug)]
pub struct Lost {
    pub failure: Failure,
    pub reason: String,
}

impl From<lapin::Error> for Lost {
    fn from(error: lapin::Error) -> Self {
        Self {
            failure: broker::failure_of(&error),
            reason: error.to_string(),
        }
    }
}

impl From<String> for Lost {
    fn from(reason: String) -> Self {
        Self {
            failure: Failure::Outage,
            reason,
        }
    }
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
            unconfirmed: Unconfirmed::default(),
            blocked: None,
        }
    }

    pub fn len(&self) -> usize {
        self.unconfirmed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.unconfirmed.is_empty()
    }

    /// Publishes everything together, so that the frames leave in few writes, and keeps every confirm.
    ///
    /// # Errors
    /// The channel is lost. What was to be published counts as under way, to be given back.
    pub async fn send(&mut self, due: Vec<Due>) -> Result<(), Lost> {
        if due.is_empty() {
            return Ok(());
        }
        let mut messages = self.hold(due).into_iter();
        let pieces = std::iter::from_fn(|| {
            // Collected first, so that the length is known: a piece that grew would move its futures, a kilobyte each.
            let piece: Vec<_> = messages.by_ref().take(JOINED_AT_ONCE).collect();
            let publish = |(number, message)| publish(&self.channel, number, message);
            (!piece.is_empty()).then(|| join_all(piece.into_iter().map(publish)))
        });
        let (sent, blocked) = self.patiently(join_all(pieces)).await?;
        self.blocked = blocked.or(self.blocked);
        for confirm in sent.into_iter().flatten() {
            self.confirms.push(confirm?);
        }
        self.metrics.unconfirmed.set(self.unconfirmed.len() as i64);
        Ok(())
    }

    /// Counts messages as under way without publishing them, and gives them their numbers.
    pub fn hold(&mut self, due: Vec<Due>) -> Vec<(Number, Message)> {
        let now = Instant::now();
        let hold = |(parcel, message): Due| {
            let number = self.unconfirmed.hold(parcel, Address::of(&message), now);
            (number, message)
        };
        due.into_iter().map(hold).collect()
    }

    /// Waits for as long as the broker blocks the connection, and no longer than the confirm timeout else. The second part
    /// is when the wait was over, if it was for a block.
    async fn patiently<T>(&self, work: impl Future<Output = T>) -> Result<(T, Option<Instant>), Lost> {
        let mut work = std::pin::pin!(work);
        let mut blocked = self.connection.status().blocked();
        loop {
            match tokio::time::timeout(self.confirm_timeout, &mut work).await {
                Ok(done) => return Ok((done, blocked.then(Instant::now))),
                Err(_) if self.connection.status().blocked() => blocked = true,
                Err(_) => return Err(format!("nothing could be published for {:?}", self.confirm_timeout).into()),
            }
        }
    }

    /// Waits for a confirm and returns everything that has been confirmed by then.
    pub async fn landed(&mut self) -> Landed {
        let Some(first) = self.confirms.next().await else {
            return Landed {
                lost: Some("a confirm is missing".to_owned().into()),
                ..Landed::default()
            };
        };
        // All that are finished, since the return of one may be carried by another.
        let mut finished = Vec::with_capacity(self.confirms.len() + 1);
        finished.push(first);
        while let Some(Some(next)) = self.confirms.next().now_or_never() {
            finished.push(next);
        }
        let mut lost = None;
        let mut confirms = Vec::with_capacity(finished.len());
        for (number, confirmation) in finished {
            match confirmation {
                Ok(confirmation) => confirms.push(Confirmed {
                    number,
                    refused: confirmation.is_nack(),
                    returned: confirmation.take_message().map(address),
                }),
                Err(error) => lost = Some(error.into()),
            }
        }
        let (landed, strays) = self.unconfirmed.confirm(confirms);
        for Address { routing_key, .. } in strays {
            error!("the broker returned a message for `{routing_key}` that was not under way");
        }
        self.metrics.unconfirmed.set(self.unconfirmed.len() as i64);
        let settled = landed.into_iter().map(|landed| {
            let waited = landed.published.elapsed().as_secs_f64();
            self.metrics.confirm_seconds.observe(waited);
            (landed.parcel, landed.fate)
        });
        Landed {
            settled: settled.collect(),
            lost,
        }
    }

    /// Why the channel must be given up, if confirms do not come although the broker lets us publish.
    pub fn overdue(&mut self) -> Option<Lost> {
        let now = Instant::now();
        if self.connection.status().blocked() {
            self.blocked = Some(now);
        }
        let since = self.unconfirmed.oldest().max(self.blocked)?;
        let overdue = !self.unconfirmed.is_empty() && now.duration_since(since) > self.confirm_timeout;
        overdue.then(|| format!("the broker confirmed nothing for {:?}", self.confirm_timeout).into())
    }

    /// Gives every job back to its queue: whether its reply went out is not known, and a second one does no harm.
    pub fn give_back(self) {
        for parcel in self.unconfirmed.into_parcels() {
            parcel.give_back();
        }
        self.metrics.unconfirmed.set(0);
    }
}

async fn publish(channel: &Channel, number: Number, message: Message) -> Result<Confirm, lapin::Error> {
    let Message {
        exchange,
        routing_key,
        properties,
        mandatory,
        body,
    } = message;
    let options = BasicPublishOptions {
        mandatory,
        ..BasicPublishOptions::default()
    };
    let publishing = channel.basic_publish(exchange, routing_key, options, &body, *properties);
    Ok(Confirm {
        number,
        confirm: publishing.await?,
    })
}

/// `join_all` keeps up to this many futures in one piece of memory; of more it allocates and wakes each by itself, which
/// cost a sixth of the publishing task's time.
const JOINED_AT_ONCE: usize = 30;

fn address(returned: BasicReturnMessage) -> Address {
    Address {
        message_id: returned.properties.message_id().clone(),
        exchange: returned.delivery.exchange,
        routing_key: returned.delivery.routing_key,
        body: returned.delivery.data.into(),
    }
}

/// A confirm that knows whose it is.
struct Confirm {
    number: Number,
    confirm: PublisherConfirm,
}

impl Future for Confirm {
    type Output = (Number, Result<Confirmation, lapin::Error>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let number = self.number;
        Pin::new(&mut self.confirm)
            .poll(context)
            .map(|confirmation| (number, confirmation))
    }
}
