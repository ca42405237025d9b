//! One connection of a client after the other, and the task that keeps it up.
//!
//! Jobs are published on channels out of a pool. A channel is one call's own from numbering its message to writing it: two at
//! a time would swap their confirms, since `lapin` counts a message and queues its frames in two steps. Confirms are
//! awaited here, so that a call that is given up takes no other's return with it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool::managed::{Manager, Metrics, Pool, PoolError, RecycleError, RecycleResult};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Consumer, ErrorKind, ExchangeKind, PublisherConfirm};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::pending::{Number, Pending};
use super::{CallError, ClientError, mailbox};
use crate::broker::backoff::{Failure, Patience};
use crate::broker::connection::{self, Connected};
use crate::broker::turn::Turn;
use crate::config::BrokerConfig;
use crate::error::chain;

/// What a client works on at the moment.
#[derive(Clone)]
pub enum State {
    Up(Arc<Session>),
    Down(Down),
    Closed,
}

/// Since when there is no connection, and why.
#[derive(Clone)]
pub struct Down {
    pub since: Instant,
    reason: String,
    is_permanent: bool,
}

impl Down {
    /// Returns the error of a call that waits for a connection no longer.
    pub fn error(&self) -> CallError {
        let reason = self.reason.clone();
        if self.is_permanent {
            CallError::Forbidden(reason)
        } else {
            CallError::Lost(reason)
        }
    }
}

/// A connection with a reply queue that nobody else sees.
pub struct Session {
    pub connection: Arc<Connected>,
    pool: Pool<Channels>,
    exchange: ShortString,
    pub reply_to: ShortString,
    confirms: mpsc::Sender<(Number, PublisherConfirm)>,
    /// For jobs whose confirm is awaited at once: with one message a channel a confirm carries no other's return.
    confirmed: Pool<Channels>,
    /// The mailboxes that are known to be there.
    mailboxes: Mutex<HashSet<ShortString>>,
}

/// What the task of a session takes in.
pub struct Arrivals {
    replies: Consumer,
    confirms: mpsc::Receiver<(Number, PublisherConfirm)>,
}

/// How sessions are made.
#[derive(Clone)]
pub struct Dial {
    pub broker: BrokerConfig,
    pub exchange: ShortString,
    pub channels_max: usize,
    pub turn: Turn,
}

impl Dial {
    /// # Errors
    /// The broker cannot be reached or refuses us, or has no such exchange.
    pub async fn open(&mut self) -> Result<(Arc<Session>, Arrivals), ClientError> {
        let connecting = connection::connect_next(&self.broker, "inferq producer", &mut self.turn, None);
        let connection = Arc::new(connecting.await?);
        find_exchange(&connection, &self.exchange).await?;
        let (reply_to, replies) = consume_replies(&connection.create_channel().await?).await?;
        // Both pools together leave room for the replies, a mailbox and a channel that is being closed.
        let allowed = usize::from(connection.configuration().channel_max());
        let channels_max = self.channels_max.min(allowed.saturating_sub(CHANNELS_SPARE) / 2);
        let pool = pool(&connection, channels_max)?;
        let confirmed = self::pool(&connection, channels_max)?;
        let (confirms, receiver) = mpsc::channel(CONFIRMS_MAX);
        let session = Session {
            connection,
            pool,
            exchange: self.exchange.clone(),
            reply_to,
            confirms,
            confirmed,
            mailboxes: Mutex::default(),
        };
        let arrivals = Arrivals {
            replies,
            confirms: receiver,
        };
        Ok((Arc::new(session), arrivals))
    }
}

/// A pool of channels with confirms; it makes them when they are needed.
fn pool(connection: &Arc<Connected>, channels_max: usize) -> Result<Pool<Channels>, ClientError> {
    let pool = Pool::builder(Channels(connection.clone())).max_size(channels_max.max(1));
    Ok(pool.build()?)
}

impl Session {
    /// Writes a job, and leaves its confirm to the session's task.
    ///
    /// # Errors
    /// The channel or the connection is gone; the job may be out all the same.
    pub async fn publish(
        &self,
        number: Number,
        model: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), PoolError<lapin::Error>> {
        let channel = self.pool.get().await?;
        let confirm = publish(&channel, &self.exchange, model, body, properties).await?;
        drop(channel);
        // The task is gone with its session, and then all jobs are sent again.
        let _ = self.confirms.send((number, confirm)).await;
        Ok(())
    }

    /// Publishes a job and waits for its confirm. The mailbox for its answer is made if there is none.
    ///
    /// # Errors
    /// The channel or the connection is gone; the job may be out all the same.
    pub async fn submit(
        &self,
        mailbox: &ShortString,
        model: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<Confirmation, PoolError<lapin::Error>> {
        let channel = self.confirmed.get().await?;
        if !self.lock().contains(mailbox) {
            mailbox::declare(&channel, mailbox.clone()).await?;
            self.lock().insert(mailbox.clone());
        }
        Ok(publish(&channel, &self.exchange, model, body, properties)
            .await?
            .await?)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<ShortString>> {
        self.mailboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Publishes a job, `mandatory`, so that one for an unknown model comes back.
async fn publish(
    channel: &Channel,
    exchange: &ShortString,
    model: &str,
    body: &[u8],
    properties: BasicProperties,
) -> lapin::Result<PublisherConfirm> {
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    // An AMQP routing key has at most 255 bytes. No model has so long a name, and the empty one is no model's.
    let routing_key = ShortString::try_new(model).unwrap_or_default();
    channel
        .basic_publish(exchange.clone(), routing_key, options, body, properties)
        .await
}

/// Makes the channels of a pool.
pub struct Channels(Arc<Connected>);

impl Manager for Channels {
    type Type = Channel;
    type Error = lapin::Error;

    async fn create(&self) -> Result<Channel, lapin::Error> {
        let channel = self.0.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    async fn recycle(&self, channel: &mut Channel, _: &Metrics) -> RecycleResult<lapin::Error> {
        if channel.status().connected() {
            Ok(())
        } else {
            Err(RecycleError::message("the broker closed it"))
        }
    }
}

/// Keeps a client connected until it is closed. What is under way when a connection is lost is sent again on the next.
pub struct Keeper {
    pub dial: Dial,
    pub pending: Arc<Pending>,
    pub state: watch::Sender<State>,
    pub closed: CancellationToken,
}

impl Keeper {
    pub async fn run(mut self, mut session: Arc<Session>, mut arrivals: Arrivals) {
        let mut patience = Patience::new(self.dial.broker.reconnect_max);
        let closed = self.closed.clone();
        loop {
            let since = Instant::now();
            let ended = tokio::select! {
                reason = serve(arrivals, &self.pending) => Some(reason),
                () = self.closed.cancelled() => None,
            };
            let Some(reason) = ended else { break };
            self.state.send_replace(State::Down(Down {
                since: Instant::now(),
                reason,
                is_permanent: false,
            }));
            self.pending.all_again();
            let was_stable = since.elapsed() > STABLE;
            if was_stable {
                patience.reset();
            }
            let is_at_once = self.dial.turn.is_next_at_once(was_stable);
            let next = tokio::select! {
                next = self.next(&mut patience, is_at_once) => next,
                () = closed.cancelled() => break,
            };
            (session, arrivals) = next;
            self.state.send_replace(State::Up(session.clone()));
        }
        self.state.send_replace(State::Closed);
        self.pending.all_again();
        let _ = tokio::time::timeout(GOODBYE, session.connection.close(200, "bye".into())).await;
    }

    /// Never without a pause, unless the broker has other addresses: what ends a connection right after its handshake would end the
    /// next as well.
    async fn next(&mut self, patience: &mut Patience, mut is_at_once: bool) -> (Arc<Session>, Arrivals) {
        let since = Instant::now();
        let mut failure = Failure::Outage;
        loop {
            if !std::mem::take(&mut is_at_once) {
                tokio::time::sleep(patience.after(failure, fastrand::f64()).wait).await;
            }
            match self.dial.open().await {
                Ok(next) => return next,
                Err(error) => {
                    failure = match &error {
                        ClientError::Broker(error) => error.failure(),
                        _ => Failure::Outage,
                    };
                    self.state.send_replace(State::Down(Down {
                        since,
                        reason: chain(&error),
                        is_permanent: error.is_permanent(),
                    }));
                }
            }
        }
    }
}

/// Hands replies and confirms to the calls that they belong to; returns why there will be no more.
async fn serve(mut arrivals: Arrivals, pending: &Pending) -> String {
    let mut confirms = FuturesUnordered::new();
    loop {
        tokio::select! {
            delivery = arrivals.replies.next() => match delivery {
                Some(Ok(delivery)) => pending.reply(delivery),
                Some(Err(error)) => return error.to_string(),
                None => return "it deleted our reply queue".to_owned(),
            },
            Some((number, confirm)) = arrivals.confirms.recv() => confirms.push(async move { (number, confirm.await) }),
            Some((number, confirmation)) = confirms.next(), if !confirms.is_empty() => {
                pending.confirmed(number, confirmation);
            }
        }
    }
}

/// Looks for the front door on a channel of its own: a refusal closes the channel it happens on.
async fn find_exchange(connection: &Connection, exchange: &ShortString) -> Result<(), ClientError> {
    let channel = connection.create_channel().await?;
    let passive = ExchangeDeclareOptions {
        passive: true,
        ..ExchangeDeclareOptions::default()
    };
    let looked = channel
        .exchange_declare(exchange.clone(), ExchangeKind::Direct, passive, FieldTable::default())
        .await;
    match looked {
        Ok(()) => Ok(channel.close(200, "done".into()).await?),
        Err(error) => Err(match error.kind() {
            ErrorKind::ProtocolError(said) if *said.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => {
                ClientError::NoExchange(exchange.to_string())
            }
            _ => error.into(),
        }),
    }
}

/// Replies need no acks: their queue dies with this connection, and no more of them are on the way than calls wait.
async fn consume_replies(channel: &Channel) -> Result<(ShortString, Consumer), ClientError> {
    let own = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let queue = channel
        .queue_declare(ShortString::default(), own, FieldTable::default())
        .await?;
    let options = BasicConsumeOptions {
        no_ack: true,
        exclusive: true,
        ..BasicConsumeOptions::default()
    };
    let name = queue.name().clone();
    let replies = channel
        .basic_consume(name.clone(), ShortString::default(), options, FieldTable::default())
        .await?;
    Ok((name, replies))
}

const CHANNELS_SPARE: usize = 3;
/// Confirms that the task has not taken in yet.
const CONFIRMS_MAX: usize = 256;
/// A connection that lasted this long was good; the next failure is a new one.
const STABLE: Duration = Duration::from_secs(10);
const GOODBYE: Duration = Duration::from_secs(2);
