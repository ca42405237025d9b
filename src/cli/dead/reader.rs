//! Reads a dead letter queue: each letter once, at most as many as there are at the start.
//!
//! Letters that are read and not removed stay unacked until the end, so that none comes twice, and then go back together.
//! A consumer's window is filled by what it holds, so a full one is followed by another consumer on the same channel.
//!
//! RabbitMQ's channel passes at most 32 commands at a time to a quorum queue and forgets the rest if it is closed: 100 single
//! acks, and then the end, brought two thirds of the letters back. So acks go in small groups with a question between them.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueDeclareOptions,
    QueuePurgeOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer, ErrorKind};

use super::letter::Letter;
use crate::broker::backoff::Failure;
use crate::broker::permission::Act;
use crate::broker::{BrokerError, failure_of, topology};

/// The place of a letter on its channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    tag: u64,
    consumer: u32,
}

pub(super) struct Reader<'a> {
    channel: Channel,
    queue: ShortString,
    model: &'a str,
    limit: Duration,
    /// Letters that may still be read: whatever comes later is for the next time.
    left: u32,
    consumer: Option<Consumer>,
    /// Which consumer it is, so that it is known whose window a letter fills.
    number: u32,
    /// Letters of this consumer that are read and not removed.
    held: u16,
    /// The same of all consumers.
    held_in_all: usize,
}

impl<'a> Reader<'a> {
    /// # Errors
    /// There is no such queue, or it may not be read.
    pub async fn open(
        connection: &Connection,
        limit: Duration,
        model: &'a str,
        queue: ShortString,
    ) -> Result<Self, BrokerError> {
        let channel = within(limit, connection.create_channel()).await?;
        within(limit, channel.basic_qos(WINDOW, BasicQosOptions::default())).await?;
        let mut reader = Self {
            channel,
            queue,
            model,
            limit,
            left: 0,
            consumer: None,
            number: 0,
            held: 0,
            held_in_all: 0,
        };
        reader.left = reader.waiting().await?;
        Ok(reader)
    }

    /// Letters that were there at the start and have not been read.
    pub fn left(&self) -> u32 {
        self.left
    }

    /// The next letter, which is held until it is removed, or the reader is closed.
    ///
    /// # Errors
    /// The broker is lost or took the queue away.
    pub async fn next(&mut self) -> Result<Option<(Place, Letter)>, BrokerError> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.held == WINDOW {
            self.cancel().await?;
        }
        let mut consumer = match self.consumer.take() {
            Some(consumer) => consumer,
            None => self.consume().await?,
        };
        let arrived = self.arrival(&mut consumer).await;
        self.consumer = Some(consumer);
        let Some(delivery) = arrived? else {
            self.left = 0;
            return Ok(None);
        };
        self.left -= 1;
        self.held += 1;
        self.held_in_all += 1;
        let place = Place {
            tag: delivery.delivery_tag,
            consumer: self.number,
        };
        let letter = Letter {
            model: self.model.to_owned(),
            properties: delivery.properties,
            body: delivery.data.into(),
        };
        Ok(Some((place, letter)))
    }

    /// Nothing comes where somebody else has taken the letters meanwhile: then the queue is empty, twice.
    async fn arrival(&self, consumer: &mut Consumer) -> Result<Option<Delivery>, BrokerError> {
        let deadline = tokio::time::Instant::now() + self.limit;
        let mut was_empty = false;
        loop {
            match tokio::time::timeout(GLANCE, consumer.next()).await {
                Ok(Some(delivery)) => return Ok(Some(delivery?)),
                Ok(None) => {
                    return Err(BrokerError::Unusable {
                        what: self.what(),
                        said: "the broker cancelled the consumer".to_owned(),
                    });
                }
                Err(_) if tokio::time::Instant::now() > deadline => return Err(BrokerError::Silent(self.limit)),
                Err(_) => {
                    let empty = self.waiting().await? == 0;
                    if empty && was_empty {
                        return Ok(None);
                    }
                    was_empty = empty;
                }
            }
        }
    }

    /// Removes letters for good.
    ///
    /// # Errors
    /// The broker is lost.
    pub async fn remove(&mut self, places: &[Place]) -> Result<(), BrokerError> {
        let last = places.iter().map(|place| place.tag).max();
        if let Some(last) = last
            && places.len() == self.held_in_all
        {
            // Nothing before it is to stay.
            self.ack(last, true).await?;
            self.waiting().await?;
        } else {
            for group in places.chunks(ACKS_AT_ONCE) {
                for place in group {
                    self.ack(place.tag, false).await?;
                }
                self.waiting().await?;
            }
        }
        let of_this = places.iter().filter(|place| place.consumer == self.number).count();
        self.held = self.held.saturating_sub(u16::try_from(of_this).unwrap_or(u16::MAX));
        self.held_in_all = self.held_in_all.saturating_sub(places.len());
        Ok(())
    }

    /// Removes all letters that no consumer holds, at once; returns how many they were.
    ///
    /// # Errors
    /// The broker is lost, or does not let us.
    pub async fn purge(&self) -> Result<u32, BrokerError> {
        let purging = self
            .channel
            .queue_purge(self.queue.clone(), QueuePurgeOptions::default());
        within(self.limit, purging).await.map_err(|error| self.refusal(error))
    }

    /// Puts back what is held.
    ///
    /// # Errors
    /// The broker is lost; then it puts the letters back itself.
    pub async fn close(mut self) -> Result<(), BrokerError> {
        // A question to the queue itself, behind every ack: its answer means that they have arrived.
        self.cancel().await?;
        let all = BasicNackOptions {
            multiple: true,
            requeue: true,
        };
        within(self.limit, self.channel.basic_nack(0, all)).await?;
        self.until_back().await?;
        within(self.limit, self.channel.close(200, "done".into())).await
    }

    /// A quorum queue takes a moment to put letters back. Whoever asks next is to find them, unless somebody else was faster.
    async fn until_back(&self) -> Result<(), BrokerError> {
        let deadline = tokio::time::Instant::now() + BACK_MAX;
        while (self.waiting().await? as usize) < self.held_in_all && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(BACK_GLANCE).await;
        }
        Ok(())
    }

    async fn ack(&self, tag: u64, multiple: bool) -> Result<(), BrokerError> {
        within(self.limit, self.channel.basic_ack(tag, BasicAckOptions { multiple })).await
    }

    async fn consume(&mut self) -> Result<Consumer, BrokerError> {
        self.number += 1;
        self.held = 0;
        let consuming = self.channel.basic_consume(
            self.queue.clone(),
            ShortString::default(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        within(self.limit, consuming).await.map_err(|error| self.refusal(error))
    }

    async fn cancel(&mut self) -> Result<(), BrokerError> {
        if let Some(consumer) = self.consumer.take() {
            let cancelling = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
            within(self.limit, cancelling).await?;
        }
        Ok(())
    }

    /// Letters in the queue that nobody holds.
    async fn waiting(&self) -> Result<u32, BrokerError> {
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let declaring = self
            .channel
            .queue_declare(self.queue.clone(), passive, FieldTable::default());
        let declared = within(self.limit, declaring).await;
        Ok(declared.map_err(|error| self.refusal(error))?.message_count())
    }

    fn what(&self) -> String {
        format!("queue `{}`", self.queue)
    }

    /// In the words of the broker, if they are about this queue.
    fn refusal(&self, error: BrokerError) -> BrokerError {
        match error {
            BrokerError::Lapin(error) => match error.kind() {
                ErrorKind::ProtocolError(_) if failure_of(&error) == Failure::Refusal => {
                    topology::refusal(self.what(), Act::Consume, error)
                }
                ErrorKind::ProtocolError(said) => BrokerError::Unusable {
                    what: self.what(),
                    said: said.get_message().to_string(),
                },
                _ => error.into(),
            },
            error => error,
        }
    }
}

/// One request to the broker that is not waited for without end.
pub(super) async fn within<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, BrokerError> {
    match tokio::time::timeout(limit, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(BrokerError::Silent(limit)),
    }
}

/// Letters that may be on their way to us: enough to keep a broker busy, and in memory at most so many of the biggest.
const WINDOW: u16 = 64;
/// Half of what the broker's channel passes on at a time.
const ACKS_AT_ONCE: usize = 16;
const GLANCE: Duration = Duration::from_millis(200);
const BACK_MAX: Duration = Duration::from_secs(2);
const BACK_GLANCE: Duration = Duration::from_millis(5);
