//! One publishing channel: publishes, and hands what the broker says of it to [`Unconfirmed`], which knows whose it is.
//!
//! The channel is opened and closed by the AMQP client; its messages and confirms go past it ([`crate::broker::post`]).

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Channel, Connection, ErrorKind};
use tokio::time::Instant;
use tracing::error;

use super::message::Message;
use super::plan::{Fate, Parcel, Parcels};
use super::reply::Due;
use super::unconfirmed::{Address, Confirmed, Number, Unconfirmed};
use crate::broker::backoff::Failure;
use crate::broker::connection::Connected;
use crate::broker::frames::{Confirm, News, Publication, Returned};
use crate::broker::permission::Act;
use crate::broker::post::Mail;
use crate::broker::{self, link};
use crate::telemetry::metrics::ReplyMetrics;

/// A channel in confirm mode on which nothing has been published yet.
pub struct Line {
    /// First, so that nothing of it is left when the client closes the channel.
    mail: Mail,
    channel: Channel,
}

/// One publishing channel and what is under way on it.
pub struct Flight {
    line: Line,
    connection: Arc<Connected>,
    confirm_timeout: Duration,
    metrics: ReplyMetrics,
    tags: Tags,
    unconfirmed: Unconfirmed,
    /// What of it the metric counts, which is the sum over all channels.
    counted: i64,
    /// What came last; its memory is used again.
    news: Vec<News>,
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

impl Line {
    /// Drops the channel of which the broker said that it is closed, but not before the client has read that as well.
    ///
    /// What is told here comes past the client, and so before it knows. A client that drops a channel closes it, and one that
    /// is closing when it reads `channel.close` takes the whole connection for broken (lapin 4.12: "invalid channel state:
    /// Closing").
    fn let_go(self) {
        let Self { mail, channel } = self;
        drop(mail);
        tokio::spawn(async move {
            let until = Instant::now() + CLOSE_MAX;
            while channel.status().connected() && Instant::now() < until {
                tokio::time::sleep(CLOSE_LOOK).await;
            }
        });
    }
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
pub async fn open(connection: &Arc<Connected>, limit: Duration) -> Result<Line, Gone> {
    let opening = async {
        let channel = connection.create_channel().await?;
        let frame_max = connection.configuration().frame_max();
        // Before anything else happens on the channel, so that its end cannot be missed.
        let mail = connection.post.channel(channel.id(), frame_max);
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Line { mail, channel })
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
    pub fn new(line: Line, connection: Arc<Connected>, confirm_timeout: Duration, metrics: ReplyMetrics) -> Self {
        Self {
            line,
            connection,
            confirm_timeout,
            metrics,
            tags: Tags::default(),
            unconfirmed: Unconfirmed::default(),
            counted: 0,
            news: Vec::new(),
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

    pub fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    /// Publishes everything together, so that the frames leave in few writes.
    ///
    /// # Errors
    /// The channel is lost. What was to be published counts as under way.
    pub async fn send(&mut self, due: Vec<Due>) -> Result<(), Lost> {
        if due.is_empty() {
            return Ok(());
        }
        self.alone = due.iter().any(|(parcel, _)| parcel.flies_alone());
        let mut messages = self.hold(due).into_iter();
        self.count();
        loop {
            let mail = &mut self.line.mail;
            while !mail.is_full()
                && let Some(message) = messages.next()
            {
                mail.add(&publication(&message));
            }
            mail.send()?;
            let Some((room, blocked)) = patiently(&self.connection, self.confirm_timeout, mail.room()).await else {
                let waited = self.confirm_timeout;
                return Err(format!("nothing could be published for {waited:?}").into());
            };
            room?;
            self.blocked = blocked.or(self.blocked);
            if messages.len() == 0 {
                return Ok(());
            }
        }
    }

    /// Brings the metric up to date.
    fn count(&mut self) {
        let under_way = self.unconfirmed.len() as i64;
        self.metrics.unconfirmed.add(under_way - self.counted);
        self.counted = under_way;
    }

    /// Counts messages as under way, in the order in which they are published.
    fn hold(&mut self, due: Vec<Due>) -> Vec<Message> {
        let now = Instant::now();
        let hold = |(parcel, message): Due| {
            let number = self.unconfirmed.hold(parcel, Address::of(&message), now);
            self.tags.published(number);
            message
        };
        due.into_iter().map(hold).collect()
    }

    /// Waits for a confirm and returns everything that has been confirmed by then.
    pub async fn landed(&mut self) -> Landed {
        let lost = self.line.mail.news(&mut self.news).await.map(Lost::from);
        let confirms = self.tags.read(self.news.drain(..));
        let (landed, strays) = self.unconfirmed.confirm(confirms);
        for Address { routing_key, .. } in strays {
            error!("the broker returned a message for `{routing_key}` that was not under way");
        }
        self.count();
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
        self.metrics.unconfirmed.sub(self.counted);
        self.line.let_go();
        self.unconfirmed.into_parcels().collect()
    }

    /// Closes a channel on which nothing is under way.
    pub async fn close(self) {
        // One that does not close goes with its connection.
        let _ = tokio::time::timeout(CLOSE_MAX, self.line.channel.close(200, "done".into())).await;
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

fn publication(message: &Message) -> Publication<'_> {
    Publication {
        exchange: &message.exchange,
        routing_key: &message.routing_key,
        mandatory: message.mandatory,
        properties: &message.properties,
        body: &message.body,
    }
}

/// The broker's numbers for the messages of a channel, and what it says by them.
#[derive(Debug, Default)]
struct Tags {
    /// So many messages have been published.
    published: Number,
    /// All up to this tag have been confirmed together.
    confirmed: u64,
    /// Returns whose confirms are still to come.
    returns: VecDeque<Address>,
}

impl Tags {
    /// The broker counts from 1, we from 0.
    fn published(&mut self, number: Number) {
        self.published = number + 1;
    }

    /// What was said, message by message. A return goes with the confirm that comes next: a channel tells of it before it
    /// confirms that message.
    fn read(&mut self, news: impl Iterator<Item = News>) -> Vec<Confirmed> {
        let mut confirms = Vec::with_capacity(news.size_hint().0);
        for news in news {
            match news {
                News::Confirm(confirm) => self.confirm(confirm, &mut confirms),
                News::Return(returned) => self.returns.push_back(address(*returned)),
                // Nobody consumes here.
                News::Delivery(_) => {}
            }
        }
        confirms
    }

    fn confirm(&mut self, confirm: Confirm, confirms: &mut Vec<Confirmed>) {
        let Confirm { tag, multiple, refused } = confirm;
        // 0 stands for all of them.
        let last = if multiple && tag == 0 { u64::MAX } else { tag }.min(self.published);
        let first = if multiple { self.confirmed + 1 } else { tag.max(1) };
        // Of those in between, some may have been confirmed singly; they wait for nothing any more.
        confirms.extend((first..=last).map(|tag| Confirmed {
            number: tag - 1,
            refused,
            returned: self.returns.pop_front(),
        }));
        if multiple {
            self.confirmed = self.confirmed.max(last);
        }
    }
}

/// How long the end of a channel may take.
const CLOSE_MAX: Duration = Duration::from_secs(1);
const CLOSE_LOOK: Duration = Duration::from_millis(5);

fn address(returned: Returned) -> Address {
    Address {
        exchange: returned.exchange,
        routing_key: returned.routing_key,
        message_id: returned.content.properties.message_id().clone(),
        body: returned.content.body.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn confirm(tag: u64, multiple: bool, refused: bool) -> News {
        News::Confirm(Confirm { tag, multiple, refused })
    }

    fn returned(queue: &str) -> News {
        News::Return(Box::new(Returned {
            routing_key: queue.into(),
            ..Returned::default()
        }))
    }

    fn tags(published: Number) -> Tags {
        let mut tags = Tags::default();
        (0..published).for_each(|number| tags.published(number));
        tags
    }

    /// Numbers, whether they were refused, and the queue of the return that they carry.
    fn read(tags: &mut Tags, news: impl IntoIterator<Item = News>) -> Vec<(Number, bool, Option<String>)> {
        let read = tags.read(news.into_iter()).into_iter();
        let queue = |address: Address| address.routing_key.to_string();
        read.map(|read| (read.number, read.refused, read.returned.map(queue)))
            .collect()
    }

    #[test]
    fn one_confirm_of_many_is_one_for_each_that_was_not_confirmed_with_others() {
        let mut tags = tags(6);

        let first = read(&mut tags, [confirm(2, true, false)]);
        let next = read(&mut tags, [confirm(4, false, true), confirm(5, true, false)]);
        let all = read(&mut tags, [confirm(0, true, true)]);

        assert_eq!(first, [(0, false, None), (1, false, None)]);
        assert_eq!(
            next,
            [(3, true, None), (2, false, None), (3, false, None), (4, false, None)]
        );
        assert_eq!(all, [(5, true, None)]);
    }

    #[test]
    fn confirms_of_what_was_not_published_are_of_nothing() {
        let mut tags = tags(2);

        assert_eq!(
            read(&mut tags, [confirm(0, false, false), confirm(3, false, false)]),
            []
        );
        assert_eq!(read(&mut tags, [confirm(u64::MAX, true, false)]).len(), 2);
    }

    #[test]
    fn a_return_goes_with_the_confirm_that_comes_next_even_if_that_is_read_later() {
        let mut tags = tags(3);

        let alone = read(&mut tags, [confirm(1, false, false), returned("a"), returned("b")]);
        let later = read(&mut tags, [confirm(3, true, false)]);

        assert_eq!(alone, [(0, false, None)]);
        assert_eq!(
            later[..2],
            [(0, false, Some("a".to_owned())), (1, false, Some("b".to_owned()))]
        );
    }

    proptest! {
        #[test]
        fn every_message_is_confirmed_first_by_the_first_confirm_that_covers_it(
            published in 1_u64..40,
            confirms in proptest::collection::vec((0_u64..45, any::<bool>(), any::<bool>()), 0..20),
        ) {
            let mut expected: Vec<Option<bool>> = vec![None; published as usize];
            for (tag, multiple, refused) in &confirms {
                for (index, fate) in expected.iter_mut().enumerate() {
                    let own = index as u64 + 1;
                    let covers = if *multiple { *tag == 0 || own <= *tag } else { own == *tag };
                    if covers {
                        fate.get_or_insert(*refused);
                    }
                }
            }
            let mut tags = tags(published);

            let mut seen: Vec<Option<bool>> = vec![None; published as usize];
            for (tag, multiple, refused) in confirms {
                for (number, refused, _) in read(&mut tags, [confirm(tag, multiple, refused)]) {
                    seen[number as usize].get_or_insert(refused);
                }
            }

            prop_assert_eq!(seen, expected);
        }
    }
}
