//! A mailbox: a durable queue in which the answers wait to jobs that nobody waits for.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use lapin::Acker;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};

use super::pending::read;
use super::session::{Session, State};
use super::{Answer, CallError, Client, ClientError, Tries};

/// The answers to jobs that were submitted ([`Client::submit`]), in a durable queue: they wait there for whoever opens it.
///
/// ```no_run
/// # async fn example(client: inferq::client::Client, job: inferq::client::Job) -> anyhow::Result<()> {
/// let id = client.submit("orders.predicted", job).await?; // The broker has it: from here on it survives us.
///
/// let mut mailbox = client.mailbox("orders.predicted").await?; // Now, or another day.
/// let letter = mailbox.next().await?;
/// println!("{}: {:?}", letter.id, letter.answer);
/// letter.done().await?; // Until then it comes again.
/// # Ok(())
/// # }
/// ```
pub struct Mailbox {
    client: Client,
    queue: ShortString,
    desk: Option<Desk>,
    seen: Seen,
}

/// Where letters come from.
struct Desk {
    session: Arc<Session>,
    letters: Consumer,
}

/// An answer out of a mailbox.
#[derive(Debug)]
pub struct Letter {
    /// The job's `message_id`, as [`Client::submit`] returned it.
    pub id: String,
    pub answer: Result<Answer, CallError>,
    acker: Acker,
}

impl Letter {
    /// Takes the letter out of the mailbox for good.
    ///
    /// # Errors
    /// The connection is lost; the letter comes again.
    pub async fn done(self) -> Result<(), CallError> {
        match self.acker.ack(BasicAckOptions::default()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(CallError::Lost(
                "its connection is gone; the letter comes again".to_owned(),
            )),
            Err(error) => Err(CallError::Lost(error.to_string())),
        }
    }
}

impl Mailbox {
    pub(super) async fn open(client: Client, queue: &str) -> Result<Self, ClientError> {
        let mut mailbox = Self {
            client,
            queue: ShortString::try_new(queue).map_err(|_| ClientError::QueueName(queue.len()))?,
            desk: None,
            seen: Seen::default(),
        };
        if let State::Up(session) = mailbox.client.shared.state.borrow().clone() {
            mailbox.desk = Some(Desk::on(session, &mailbox.queue).await?);
        }
        Ok(mailbox)
    }

    /// Waits for the next answer. A second copy of one that was returned before is taken out of the queue and not returned.
    ///
    /// # Errors
    /// There is no connection for longer than [`super::Options::reconnect_for`], or the queue is gone.
    pub async fn next(&mut self) -> Result<Letter, CallError> {
        let mut tries = Tries::default();
        loop {
            let desk = self.desk().await?;
            tries.on(&desk.session)?;
            let delivery = match desk.letters.next().await {
                Some(Ok(delivery)) => delivery,
                Some(Err(error)) => {
                    self.desk = None;
                    tries.failed(error.to_string()).await;
                    continue;
                }
                None => {
                    self.desk = None;
                    tries.failed("it deleted the mailbox".to_owned()).await;
                    continue;
                }
            };
            tries = Tries::default();
            let id = delivery.properties.message_id().as_ref().map(ToString::to_string);
            let letter = Letter {
                id: id.unwrap_or_default(),
                answer: read(&delivery.properties, delivery.data),
                acker: delivery.acker,
            };
            let is_new = self.seen.is_new(&letter.id);
            // What was returned and not done comes again by the broker's own word, and is no copy.
            if is_new || delivery.redelivered {
                return Ok(letter);
            }
            letter.done().await.ok();
        }
    }

    /// The answers one after the other, for as long as there is a connection.
    pub fn letters(self) -> impl Stream<Item = Result<Letter, CallError>> {
        stream::unfold(Some(self), |mailbox| async {
            let mut mailbox = mailbox?;
            let next = mailbox.next().await;
            let rest = next.is_ok().then_some(mailbox);
            Some((next, rest))
        })
    }

    /// The desk on the session of the moment.
    async fn desk(&mut self) -> Result<&mut Desk, CallError> {
        let session = self.client.shared.session().await?;
        let desk = match self.desk.take() {
            Some(desk) if Arc::ptr_eq(&desk.session, &session) => desk,
            _ => Desk::on(session, &self.queue)
                .await
                .map_err(|error| CallError::Lost(error.to_string()))?,
        };
        Ok(self.desk.insert(desk))
    }
}

impl Desk {
    async fn on(session: Arc<Session>, queue: &ShortString) -> Result<Self, lapin::Error> {
        let channel = session.connection.create_channel().await?;
        declare(&channel, queue.clone()).await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let consuming = channel.basic_consume(
            queue.clone(),
            ShortString::default(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let letters = consuming.await?;
        Ok(Self { session, letters })
    }
}

/// Makes a mailbox, unless there is one.
///
/// # Errors
/// There is a queue of this name of another kind; the channel is closed.
pub async fn declare(channel: &Channel, queue: ShortString) -> Result<(), lapin::Error> {
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel.queue_declare(queue, durable, arguments).await?;
    Ok(())
}

/// The ids that were returned last.
#[derive(Default)]
struct Seen {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl Seen {
    /// Whether this id was not among the last. Who has no id cannot be told from others.
    fn is_new(&mut self, id: &str) -> bool {
        if id.is_empty() {
            return true;
        }
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > SEEN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

/// Letters that the broker hands out ahead.
const PREFETCH: u16 = 256;
const SEEN_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_new_once_until_so_many_others_have_come() {
        let mut seen = Seen::default();

        assert!(seen.is_new("a"));
        assert!(!seen.is_new("a"));
        for number in 0..SEEN_MAX {
            assert!(seen.is_new(&number.to_string()));
        }
        assert!(seen.is_new("a"));
        assert_eq!(seen.ids.len(), seen.order.len());
        assert!(seen.is_new("") && seen.is_new(""));
    }
}
