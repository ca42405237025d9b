//! A trial: one message to a destination that refuses, on a channel of its own.
//!
//! Of its own for three reasons. RabbitMQ 3.10 binds a channel to the leader that a quorum queue had at its first message:
//! if that node is gone by then, everything that this channel publishes to the queue is refused for as long as the node is
//! away, and a new channel is served at once. A leader that hangs holds up its channel for a minute, with all that is on it.
//! And asking for a queue that is not there closes the channel that asks.

use std::sync::Arc;
use std::time::Duration;

use lapin::ErrorKind;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use super::flight::{Flight, Lost, open};
use super::message::Message;
use super::plan::{Fate, Parcel};
use super::refusing::{Destination, Finding};
use super::reply::LOOK;
use crate::broker::connection::Connected;
use crate::broker::topology;
use crate::config::TopologyConfig;
use crate::error::chain;
use crate::telemetry::metrics::ReplyMetrics;

/// One message, and all that it takes to publish it.
pub struct Trial {
    pub connection: Arc<Connected>,
    pub topology: TopologyConfig,
    pub confirm_timeout: Duration,
    pub metrics: ReplyMetrics,
    pub destination: Destination,
    /// Whether to ask for the queue before anything is published.
    pub look_first: bool,
}

/// What the broker says of a queue.
enum Queue {
    Exists {
        messages: u32,
    },
    /// Exclusive to its producer's connection.
    Exclusive,
    Away(String),
    Gone,
    Unknown,
}

impl Trial {
    /// Publishes the message and finds out why it is not taken, if it is not.
    pub async fn run(&self, parcel: Box<Parcel>, message: Message) -> (Box<Parcel>, Finding) {
        if self.look_first
            && let Some(finding) = self.look().await
        {
            return (parcel, finding);
        }
        let (parcel, finding) = self.publish(parcel, message.clone()).await;
        match finding {
            // Between the question and the message.
            Finding::Gone => (parcel, self.look().await.unwrap_or(Finding::Refused)),
            Finding::Refused => match self.refused().await {
                // It may have got its new leader between the message and the question.
                full @ Finding::Full { .. } => match self.publish(parcel, message).await {
                    (parcel, Finding::Refused) => (parcel, full),
                    other => other,
                },
                other => (parcel, other),
            },
            other => (parcel, other),
        }
    }

    /// What keeps the destination from taking anything; `None` if it is there.
    async fn look(&self) -> Option<Finding> {
        if !self.destination.is_reply_queue() {
            return self.prepare().await.map(Finding::Away);
        }
        match self.queue().await {
            Queue::Exists { .. } | Queue::Exclusive => None,
            Queue::Gone => Some(Finding::Gone),
            Queue::Away(said) => Some(Finding::Away(said)),
            Queue::Unknown => Some(Finding::Lost),
        }
    }

    /// Declares the place of the dead letters again, if that is ours to do; what is missing, else.
    async fn prepare(&self) -> Option<String> {
        let model = self.destination.routing_key.as_str();
        let preparing = topology::prepare(&self.connection, &self.topology, [model]);
        match tokio::time::timeout(self.limit(), preparing).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(chain(&error)),
            Err(_) => Some(format!("it could not be declared for {:?}", self.limit())),
        }
    }

    /// Why a message may have been refused.
    async fn refused(&self) -> Finding {
        let queue = if self.destination.is_reply_queue() {
            self.queue().await
        } else {
            let names = topology::Names::new(&self.topology.prefix);
            self.ask(names.dead_queue(self.destination.routing_key.as_str()).as_str())
                .await
        };
        match queue {
            // Of a queue without a leader the broker says that it is empty.
            Queue::Exists { messages: 0 } | Queue::Gone | Queue::Unknown => Finding::Refused,
            Queue::Exists { messages } => {
                let messages = Some(messages);
                Finding::Full { messages }
            }
            // It is a classic queue that goes with its connection: it has no leader to lose, and is never away.
            Queue::Exclusive => Finding::Full { messages: None },
            Queue::Away(said) => Finding::Away(said),
        }
    }

    async fn queue(&self) -> Queue {
        self.ask(self.destination.routing_key.as_str()).await
    }

    /// Asks for a queue without making it, which needs no permission.
    ///
    /// # Source
    /// RabbitMQ's texts for 404: "no queue '…' in vhost '…'" and "home node '…' of durable queue '…' in vhost '…' is down or
    /// inaccessible" (`rabbit_amqqueue:not_found_or_absent_dirty`).
    async fn ask(&self, queue: &str) -> Queue {
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let asking = async {
            let channel = self.connection.create_channel().await?;
            let declared = channel
                .queue_declare(queue.into(), passive, FieldTable::default())
                .await?;
            // One that does not close goes with its connection.
            let _ = channel.close(200, "done".into()).await;
            Ok(declared.message_count())
        };
        match tokio::time::timeout(self.limit(), asking).await {
            Ok(Ok(messages)) => Queue::Exists { messages },
            Ok(Err(error)) => of(&error),
            Err(_) => Queue::Unknown,
        }
    }

    async fn publish(&self, parcel: Box<Parcel>, message: Message) -> (Box<Parcel>, Finding) {
        let line = match open(&self.connection, self.limit()).await {
            Ok(line) => line,
            Err(_) => return (parcel, Finding::Lost),
        };
        let mut flight = Flight::new(line, self.connection.clone(), self.limit(), self.metrics.clone());
        let mut look = tokio::time::interval(LOOK);
        let mut lost = flight.send(vec![(parcel, message)]).await.err();
        loop {
            if let Some(lost) = lost {
                return lost_with(flight, lost);
            }
            lost = tokio::select! {
                mut landed = flight.landed() => {
                    if let Some((parcel, fate)) = landed.settled.pop() {
                        flight.close().await;
                        return (parcel, of_fate(fate));
                    }
                    landed.lost
                }
                _ = look.tick() => flight.overdue(),
            };
        }
    }

    /// A trial is over before anybody stops waiting for it.
    fn limit(&self) -> Duration {
        self.confirm_timeout.min(TRIAL_MAX)
    }
}

fn of_fate(fate: Fate) -> Finding {
    match fate {
        Fate::Confirmed => Finding::Taken,
        Fate::Returned => Finding::Gone,
        Fate::Refused => Finding::Refused,
    }
}

/// The message that was under way when its channel was lost, and what that says of its destination.
fn lost_with(flight: Flight, lost: Lost) -> (Box<Parcel>, Finding) {
    let is_connected = flight.is_connected();
    let [parcel] = flight
        .into_parcels()
        .try_into()
        .unwrap_or_else(|_| unreachable!("one message was published"));
    let finding = match lost {
        Lost::Closed(said) if parcel.is_dead_letter() && said.starts_with(NOT_FOUND) => Finding::Away(said),
        Lost::Closed(said) => Finding::Unacceptable(said),
        // Neither confirmed nor refused.
        Lost::Gone(_) if is_connected => Finding::Refused,
        Lost::Gone(_) => Finding::Lost,
    };
    (parcel, finding)
}

fn of(error: &lapin::Error) -> Queue {
    match error.kind() {
        ErrorKind::ProtocolError(said) => {
            let said = said.get_message().to_string();
            if said.contains("is down or inaccessible") {
                Queue::Away(said)
            } else if said.starts_with(NOT_FOUND) {
                Queue::Gone
            } else if said.starts_with("RESOURCE_LOCKED") {
                Queue::Exclusive
            } else {
                Queue::Unknown
            }
        }
        _ => Queue::Unknown,
    }
}

const NOT_FOUND: &str = "NOT_FOUND";
const TRIAL_MAX: Duration = Duration::from_secs(10);
