//! Consuming: from a model's queue to jobs, and the only stage that watches the stop token.
//!
//! One task a model. It opens a channel, consumes until the channel or the connection fails, and opens the next: each
//! channel is a generation with receipts of its own. The AMQP client opens and cancels the consumer; what is delivered goes
//! past it ([`crate::broker::post`]).

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Consumer};
use tokio::sync::mpsc::Sender;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::aside::Aside;
use super::backlog::Backlog;
use super::decode::{self, Decoded, Limits, Served};
use super::prefetch::{self, CONFIRM_ASSUMED, Load, Prefetch};
use super::reply::Answer;
use super::settle::{self, Receipt, Receipts};
use super::{Fatal, WorkerError};
use crate::broker::BrokerError;
use crate::broker::backoff::{Failure, Patience};
use crate::broker::bodies::{Bodies, Claim};
use crate::broker::connection::Connected;
use crate::broker::frames::{Content, Delivered, News, Room};
use crate::broker::link;
use crate::broker::links::Links;
use crate::broker::permission::Act;
use crate::broker::post::Mail;
use crate::broker::topology::{self, Names};
use crate::config::{BrokerConfig, TopologyConfig};
use crate::error::chain;
use crate::telemetry::health::{Condition, Health};
use crate::telemetry::metrics::{ReceiptMetrics, ReplyMetrics};

/// One message from the broker, with the right to settle it.
pub struct Delivery {
    pub properties: BasicProperties,
    pub body: Bytes,
    pub redelivered: bool,
    pub arrived: Instant,
    pub receipt: Receipt,
    /// What the body takes of `limits.memory_bytes`; given back when the job is settled.
    pub claim: Option<Claim>,
}

/// Consumes one model's queue.
pub struct Consume {
    pub model: Arc<Served>,
    /// Which of the worker's models it is.
    pub number: usize,
    pub links: Arc<Links>,
    pub broker: BrokerConfig,
    pub topology: TopologyConfig,
    pub limits: Limits,
    pub bodies: Bodies,
    pub answers: Sender<Vec<Answer>>,
    pub health: Health,
    pub receipts: ReceiptMetrics,
    /// Known by those who publish: how long confirms take.
    pub replies: ReplyMetrics,
    pub drain_timeout: Duration,
    pub stop: CancellationToken,
    pub fatal: Fatal,
}

/// Why a generation ended.
enum Ended {
    /// The stop token fired and everything that had been delivered is passed on.
    Stopping,
    /// The channel, its connection or its consumer is gone; the reason, in words.
    Lost(String),
}

/// What the broker has delivered on one channel.
struct Deliveries {
    mail: Mail,
    came: std::vec::IntoIter<News>,
}

impl Deliveries {
    /// Waits for the next one.
    ///
    /// # Errors
    /// The channel is gone, and with it what came last.
    async fn next(&mut self) -> Result<Delivered, lapin::Error> {
        loop {
            for news in self.came.by_ref() {
                if let News::Delivery(delivered) = news {
                    return Ok(*delivered);
                }
            }
            let mut news = Vec::new();
            if let Some(lost) = self.mail.news(&mut news).await {
                return Err(lost);
            }
            self.came = news.into_iter();
        }
    }
}

/// One channel with its consumer and the task that settles on it.
struct Generation {
    deliveries: Deliveries,
    channel: Channel,
    consumer: Consumer,
    receipts: Receipts,
    settling: JoinHandle<Result<(), lapin::Error>>,
    /// Ends when it is dropped.
    watching: JoinSet<()>,
}

impl Consume {
    /// Runs until the stop token fires and every delivery taken before is settled, or the worker is lost.
    pub async fn run(self) {
        let condition = Condition::Consumer(self.model.name.clone());
        let mut patience = Patience::new(self.broker.reconnect_max);
        loop {
            let connection = tokio::select! {
                connection = self.links.connection(self.number) => connection,
                () = self.stop.cancelled() => return,
            };
            let connection = match connection {
                Ok(Some(connection)) => connection,
                Ok(None) => return,
                Err(few) => return self.fatal.raise(few.into()),
            };
            let (failure, reason) = match self.open_in_time(&connection).await {
                Ok(generation) => {
                    self.health.clear(&condition);
                    info!(model.name = %self.model.name, "consuming");
                    let since = Instant::now();
                    let ended = self.serve(generation).await;
                    if since.elapsed() > STABLE {
                        patience.reset();
                    }
                    match ended {
                        Ended::Stopping => return,
                        Ended::Lost(reason) => (Failure::Outage, reason),
                    }
                }
                // Asking again will not change what the broker has; someone must.
                Err(BrokerError::Topology(mismatch)) => return self.fatal.raise(WorkerError::Topology(mismatch)),
                Err(error) => {
                    if matches!(error, BrokerError::Silent(_)) {
                        link::give_up(&connection);
                    }
                    (error.failure(), chain(&error))
                }
            };
            self.health.set(condition.clone(), &reason);
            warn!(model.name = %self.model.name, "not consuming: {reason}");
            tokio::select! {
                () = tokio::time::sleep(patience.after(failure, fastrand::f64()).wait) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Opens within `broker.connect_timeout_ms`, or for as long as the broker is busy sending other things: its answers come
    /// behind them.
    async fn open_in_time(&self, connection: &Arc<Connected>) -> Result<Generation, BrokerError> {
        let limit = self.broker.connect_timeout;
        let _at_full_speed = self.bodies.opening();
        let mut opening = pin!(self.open(connection));
        let mut waited = Duration::ZERO;
        loop {
            let read = connection.post.read();
            if let Ok(opened) = tokio::time::timeout(limit, &mut opening).await {
                return opened;
            }
            waited += limit;
            let is_busy = connection.post.read() - read > IDLE_BYTES;
            if !is_busy || waited >= limit * BUSY_MAX || self.stop.is_cancelled() {
                // Whatever it is that the broker does not answer, a fresh connection is the way out.
                return Err(BrokerError::Silent(waited));
            }
        }
    }

    async fn open(&self, connection: &Arc<Connected>) -> Result<Generation, BrokerError> {
        topology::prepare(connection, &self.topology, [&*self.model.name]).await?;
        let channel = connection.create_channel().await?;
        let deliveries = Deliveries {
            mail: connection.post.counted_channel(
                channel.id(),
                connection.configuration().frame_max(),
                Some(self.bodies.account()),
            ),
            came: Vec::new().into_iter(),
        };
        let prefetch = self.prefetch();
        channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let queue = Names::new(&self.topology.prefix).queue(&self.model.name);
        let options = BasicConsumeOptions::default();
        let consumer = channel
            .basic_consume(queue.clone(), ShortString::default(), options, FieldTable::default())
            .await
            .map_err(|error| topology::refusal(format!("queue `{queue}`"), Act::Consume, error))?;
        self.receipts.generations.inc();
        let (receipts, settler) = settle::generation(prefetch, self.receipts.clone());
        let backlog = Backlog {
            model: self.model.clone(),
            queue,
            in_hand: receipts.in_hand(),
            connection: connection.clone(),
            replies: self.replies.clone(),
        };
        let mut watching = JoinSet::new();
        watching.spawn(backlog.watch());
        Ok(Generation {
            settling: tokio::spawn(settler.run(channel.clone())),
            deliveries,
            channel,
            consumer,
            receipts,
            watching,
        })
    }

    /// Anew for every channel: what runs and confirms take is known better each time.
    fn prefetch(&self) -> u16 {
        let asked = self.broker.prefetch;
        let lanes = self.model.lanes.values();
        let loads: Vec<Load> = lanes.filter_map(|(lane, _)| lane.load()).collect();
        let confirm = self.replies.confirm_mean().unwrap_or(CONFIRM_ASSUMED);
        let Prefetch { deliveries, bound } = prefetch::prefetch(asked, &loads, confirm, self.drain_timeout);
        let than = if deliveries < asked {
            format!(" and not {asked}")
        } else {
            String::new()
        };
        info!(model.name = %self.model.name, "prefetch is {deliveries}{than}: {}", bound.sentence());
        self.model.metrics.prefetch.set(deliveries, bound.name());
        deliveries
    }

    /// Passes deliveries on until the generation ends.
    async fn serve(&self, generation: Generation) -> Ended {
        let Generation {
            mut deliveries,
            channel,
            mut consumer,
            receipts,
            mut settling,
            watching,
        } = generation;
        let mut cancelling = None;
        let mut aside = Aside::new(self.bodies.clone());
        let ended = loop {
            let end = tokio::select! {
                next = deliveries.next() => match next {
                    Ok(delivered) => {
                        self.take(delivered, &receipts, &mut aside).await;
                        continue;
                    }
                    Err(error) => break Ended::Lost(error.to_string()),
                },
                () = aside.give_back_next() => continue,
                end = consumer.next() => end,
                // Without it nothing would be acked, and the worker would sit on a full prefetch window.
                settled = &mut settling => break Ended::Lost(match settled {
                    Ok(Err(error)) => error.to_string(),
                    Ok(Ok(())) | Err(_) => "the task that acks ended".to_owned(),
                }),
                () = self.stop.cancelled(), if cancelling.is_none() => {
                    aside.give_back_all();
                    let (channel, tag) = (channel.clone(), consumer.tag());
                    cancelling = Some(tokio::spawn(async move {
                        channel.basic_cancel(tag, BasicCancelOptions::default()).await
                    }));
                    continue;
                }
            };
            match end {
                Some(Ok(_)) => break Ended::Lost("a delivery was read by the client".to_owned()),
                Some(Err(error)) => break Ended::Lost(error.to_string()),
                // The end of a stream that we did not cancel means that the queue or its node is gone.
                None if cancelling.is_none() => break Ended::Lost("the broker cancelled the consumer".to_owned()),
                None => {}
            }
            // All that was delivered before the broker agreed to the end is here by now.
            while let Some(Ok(delivered)) = deliveries.next().now_or_never() {
                self.take(delivered, &receipts, &mut aside).await;
            }
            break Ended::Stopping;
        };
        aside.give_back_all();
        drop(receipts);
        drop(watching);
        self.model.metrics.backlog.hide();
        match &ended {
            Ended::Stopping => {
                // Ends when the last job of this generation is settled.
                let _ = settling.await;
                let _ = channel.close(200, "drained".into()).await;
            }
            // What is in hand belongs to a channel that is gone: nothing of it may be settled any more.
            Ended::Lost(_) => {
                settling.abort();
                // On a connection that hangs, closing would hang as well.
                let closing = channel.close(200, "starting over".into());
                let _ = tokio::time::timeout(CLOSE_MAX, closing).await;
            }
        }
        ended
    }

    async fn take(&self, delivered: Delivered, receipts: &Receipts, aside: &mut Aside) {
        let Content { properties, body, room } = delivered.content;
        let receipt = receipts.receipt(delivered.tag);
        aside.delivered();
        self.model.metrics.deliveries.inc();
        if delivered.redelivered {
            self.model.metrics.redelivered.inc();
        }
        let claim = match room {
            Room::Refused(bytes) => {
                self.model.metrics.set_aside.inc();
                return aside.put(receipt, bytes);
            }
            Room::Claimed(claim) => Some(claim),
            Room::Uncounted => None,
        };
        let delivery = Delivery {
            receipt,
            claim,
            properties,
            redelivered: delivered.redelivered,
            arrived: Instant::now(),
            body: Bytes::from(body),
        };
        match self.decode(delivery).await {
            Ok((job, lane)) => {
                // The lane is gone only when the engines are, and then the delivery goes back to the broker.
                let _ = lane.send(job).await;
            }
            Err(answer) => {
                let _ = self.answers.send(vec![*answer]).await;
            }
        }
    }

    /// Decodes here what is quick to decode, and a big body on a thread where it holds up nobody.
    async fn decode(&self, delivery: Delivery) -> Decoded {
        let bytes = delivery.body.len();
        // A body in an encoding that is unknown is refused unread.
        let raw = || decode::encoding(&delivery.properties).map_or(true, |encoding| encoding.is_raw(&delivery.body));
        if bytes <= NUMBERS_BYTES_MAX || (bytes <= RAW_BYTES_MAX && raw()) {
            return decode::decode(delivery, &self.model, &self.limits);
        }
        let (model, limits) = (self.model.clone(), self.limits);
        match tokio::task::spawn_blocking(move || decode::decode(delivery, &model, &limits)).await {
            Ok(decoded) => decoded,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

/// A consumer that lasted this long was good; the next failure is a new one.
const STABLE: Duration = Duration::from_secs(10);

const CLOSE_MAX: Duration = Duration::from_secs(1);

/// So many times as long a busy broker may take to answer.
const BUSY_MAX: u32 = 4;
/// What a broker sends that is not busy: heartbeats, and answers to others.
const IDLE_BYTES: u64 = 64 * 1024;

/// About 0.1 ms of JSON numbers.
const NUMBERS_BYTES_MAX: usize = 64 * 1024;
/// Raw numbers take far less at any size, but the elements of BYTES are counted: about 2 ms of empty ones.
const RAW_BYTES_MAX: usize = 4 * 1024 * 1024;
