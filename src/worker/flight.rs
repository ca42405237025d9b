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
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Channel, Confirmation, Connection, ErrorKind, PublisherConfirm};
use tokio::time::Instant;
use tracing::error;

use super::message::Message;
use super::plan::{Fate, Parcel, Parcels};
use super::reply::Due;
use super::unconfirmed::{Address, Confirmed, Number, Unconfirmed};
use crate::broker::backoff::Failure;
use crate::broker::connection::Connected;
use crate::broker::permission::Act;
use crate::broker::{self, link};
use crate::telemetry::metrics::ReplyMetrics;

/// One publishing channel and what is under way on it. Used by one task: two would swap their confirms, since `lapin`
/// counts a message and queues its frames in two steps.
pub struct Flight {
    channel: Channel,
    connection: Arc<Connected>,
    confirm_timeout: Duration,
    metrics: ReplyMetrics,
    confirms: FuturesUnordered<Confirm>,
    unconfirmed: Unconfirmed,
    /// When the broker was last seen to block the connection: it confirmed nothing because of that.
    blocked: Option<Instant>,
    /// Whether what was sent last is to have no company.
    alone: bool,
}

/// What became of some messages.
#[derive(Default)]
pub struct Landed {
    pub settled: Vec<(Box<Parcel>, Fate)>,
    /// Why the channel is lost, if it is.
    pub lost: Option<Lost>,
}

/// Why a channel can be used no more.
#[derive(Debug)]
pub enum Lost {
    /// The broker closed it because of a message on it, and would do so again; what it said.
    Closed(String),
    Gone(Gone),
}

/// Anything else: the connection, as a rule.
#[derive(Debug)]
pub struct Gone {
    pub failure: Failure,
    pub reason: String,
    /// Whether the broker closed the connection over something that was sent on it.
    pub over_us: bool,
}

impl From<lapin::Error> for Lost {
    fn from(error: lapin::Error) -> Self {
        match error.kind() {
            ErrorKind::ProtocolError(said) if is_about_a_message(said.kind()) => {
                Self::Closed(said.get_message().to_string())
            }
            _ => Self::Gone(error.into()),
        }
    }
}

impl From<lapin::Error> for Gone {
    fn from(error: lapin::Error) -> Self {
        Self {
            failure: broker::failure_of(&error),
            reason: broker::reason(&error, Act::Publish),
            over_us: matches!(error.kind(), ErrorKind::ProtocolError(said) if is_over_us(said.kind())),
        }
    }
}

impl From<String> for Gone {
    fn from(reason: String) -> Self {
        Self {
            failure: Failure::Outage,
            reason,
            over_us: false,
        }
    }
}

impl From<String> for Lost {
    fn from(reason: String) -> Self {
        Self::Gone(reason.into())
    }
}

/// An operator, or a broker that stops, closes it over nothing.
fn is_over_us(kind: &AMQPErrorKind) -> bool {
    matches!(kind, AMQPErrorKind::Hard(hard) if *hard != AMQPHardError::CONNECTIONFORCED)
}

/// A permission, in contrast, is missing for every message.
fn is_about_a_message(kind: &AMQPErrorKind) -> bool {
    matches!(
        kind,
        AMQPErrorKind::Soft(
            AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::CONTENTTOOLARGE | AMQPSoftError::NOTFOUND
        )
    )
}

/// Opens a publishing channel.
///
/// # Errors
/// The broker did not open it, or not in time.
pub async fn open(connection: &Arc<Connected>, limit: Duration) -> Result<Channel, Gone> {
    let opening = async {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    };
    match patiently(connection, limit, opening).await {
        Some((opened, _)) => opened.map_err(|error: lapin::Error| error.into()),
        None => {
            // Whatever it is that the broker does not answer, a fresh connection is the way out.
            link::give_up(connection);
            Err(format!("no channel could be opened for {limit:?}").into())
        }
    }
}

impl Flight {
    pub fn new(channel: Channel, connection: Arc<Connected>, confirm_timeout: Duration, metrics: ReplyMetrics) -> Self {
        Self {
            channel,
            connection,
            confirm_timeout,
            metrics,
            confirms: FuturesUnordered::new(),
            unconfirmed: Unconfirmed::default(),
            blocked: None,
            alone: false,
        }
    }

    /// Whether something is under way that nothing should be beside.
    pub fn carries_one_alone(&self) -> bool {
        self.alone && !self.is_empty()
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
    /// The channel is lost. What was to be published counts as under way.
    pub async fn send(&mut self, due: Vec<Due>) -> Result<(), Lost> {
        if due.is_empty() {
            return Ok(());
        }
        self.alone = due.iter().any(|(parcel, _)| parcel.flies_alone());
        let mut messages = self.hold(due).into_iter();
        let pieces = std::iter::from_fn(|| {
            // Collected first, so that the length is known: a piece that grew would move its futures, a kilobyte each.
            let piece: Vec<_> = messages.by_ref().take(JOINED_AT_ONCE).collect();
            let publish = |(number, message)| publish(&self.channel, number, message);
            (!piece.is_empty()).then(|| join_all(piece.into_iter().map(publish)))
        });
        let sending = patiently(
            &self.connection,
            self.confirm_timeout,
            self.connection.gate.shut_during(join_all(pieces)),
        );
        let Some((sent, blocked)) = sending.await else {
            let waited = self.confirm_timeout;
            return Err(format!("nothing could be published for {waited:?}").into());
        };
        self.blocked = blocked.or(self.blocked);
        let mut failed = None;
        for confirm in sent.into_iter().flatten() {
            match confirm {
                Ok(confirm) => self.confirms.push(confirm),
                Err(error) => failed = Some(error),
            }
        }
        self.metrics.unconfirmed.set(self.unconfirmed.len() as i64);
        match failed {
            None => Ok(()),
            Some(error) => Err(self.reason(error).await),
        }
    }

    /// Why publishing failed. On a channel that is closing it fails without saying why; those who wait for a confirm are
    /// told a moment later.
    async fn reason(&mut self, error: lapin::Error) -> Lost {
        if !matches!(error.kind(), ErrorKind::InvalidChannelState(..)) {
            return error.into();
        }
        let told = async {
            while let Some((_, confirmation)) = self.confirms.next().await {
                if let Err(told) = confirmation {
                    return Some(told);
                }
            }
            None
        };
        let told = tokio::time::timeout(TOLD_MAX, told).await;
        told.ok().flatten().unwrap_or(error).into()
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
        // One moment for all: they are here together.
        let now = Instant::now();
        let settled = landed.into_iter().map(|mut landed| {
            let waited = now.saturating_duration_since(landed.published);
            self.metrics.confirm_seconds.observe(waited.as_secs_f64());
            landed.parcel.landed(landed.published, now, landed.fate);
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

    /// Everything that is still under way. Whether it went out is not known, and a second copy does no harm.
    pub fn into_parcels(self) -> Parcels {
        self.metrics.unconfirmed.set(0);
        self.unconfirmed.into_parcels().collect()
    }

    /// Closes a channel on which nothing is under way.
    pub async fn close(self) {
        // One that does not close goes with its connection.
        let _ = tokio::time::timeout(TOLD_MAX, self.channel.close(200, "done".into())).await;
    }
}

/// Waits for as long as the broker blocks the connection, and no longer than `limit` else. The second part is when the wait
/// was over, if it was for a block.
async fn patiently<T>(
    connection: &Connection,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Option<(T, Option<Instant>)> {
    let mut work = std::pin::pin!(work);
    let mut blocked = connection.status().blocked();
    loop {
        match tokio::time::timeout(limit, &mut work).await {
            Ok(done) => return Some((done, blocked.then(Instant::now))),
            Err(_) if connection.status().blocked() => blocked = true,
            Err(_) => return None,
        }
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
/// How long the end of a channel may take.
const TOLD_MAX: Duration = Duration::from_secs(1);

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
