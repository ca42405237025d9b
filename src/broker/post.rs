//! The post: messages go to the broker, and they and their confirms come from it, past the AMQP client.
//!
//! [`super::frames`] says why, and how frames are told apart. Here they change hands, between the task that publishes or
//! consumes on a channel ([`Mail`]) and the stream that the client reads and writes on a thread of its own
//! ([`super::stream`]): a batch waits here in one piece, and one call wakes that thread for it; what came waits here until the
//! task looks.
//!
//! What holds:
//! - Messages of a channel leave in the order in which they were added, before anything that the client writes later: its
//!   frames that close the channel leave after them.
//! - Once the broker has closed the channel nothing more is sent on it. What was not sent is dropped, and the task learns why.
//! - What waits to leave has a limit ([`Mail::room`]); what came in has none but the prefetch window and what is under way.
//! - When the stream ends, whatever for, every channel has ended.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use lapin::protocol::AMQPError;
use lapin::types::{ChannelId, FrameSize, ShortString};
use lapin::{ConnectionState, Error, ErrorKind};

use super::bodies::Account;
use super::frames::{self, Heard, News, Publication, Sieve, Sifted};

/// The post of one connection; clones are the same.
#[derive(Clone, Default)]
pub struct Post(Arc<Mutex<Office>>);

#[derive(Default)]
struct Office {
    sieve: Sieve,
    /// By their numbers.
    boxes: HashMap<u64, Mailbox>,
    /// Which box a channel has.
    of_channel: HashMap<ChannelId, u64>,
    /// Of the next box.
    number: u64,
    /// The boxes with messages that are to leave, in their order.
    leaving: VecDeque<u64>,
    /// The boxes that got something just now.
    touched: Vec<u64>,
    /// Wakes the thread that writes, see [`super::stream`].
    carrier: Option<Waker>,
    /// Why the connection can be used no more.
    ended: Option<Error>,
    /// What was heard just now.
    heard: Vec<(ChannelId, Heard)>,
    /// Bytes that were read.
    read: u64,
}

/// What waits on both sides of a channel.
struct Mailbox {
    leaving: Vec<u8>,
    came: Vec<News>,
    /// Why the channel can be used no more.
    ended: Option<Error>,
    /// Wakes who waits for news.
    reader: Option<Waker>,
    /// Wakes who waits for room.
    writer: Option<Waker>,
}

/// A channel's end of the post. Dropped, it takes back what has not left.
pub struct Mail {
    post: Post,
    number: u64,
    channel: ChannelId,
    frame_max: usize,
    /// Messages that are to leave together.
    batch: Vec<u8>,
}

impl Post {
    /// The post of a channel on which nobody has published or consumed yet, and nobody else will.
    pub fn channel(&self, channel: ChannelId, frame_max: FrameSize) -> Mail {
        self.counted_channel(channel, frame_max, None)
    }

    /// As [`Post::channel`]; what is delivered on it counts.
    pub fn counted_channel(&self, channel: ChannelId, frame_max: FrameSize, account: Option<Account>) -> Mail {
        let mut office = self.lock();
        let number = office.number;
        office.number += 1;
        office.sieve.add(channel, account);
        let mailbox = Mailbox {
            leaving: Vec::new(),
            came: Vec::new(),
            ended: office.ended.clone(),
            reader: None,
            writer: None,
        };
        office.boxes.insert(number, mailbox);
        office.of_channel.insert(channel, number);
        Mail {
            post: self.clone(),
            number,
            channel,
            frame_max: frame_max as usize,
            batch: Vec::new(),
        }
    }

    /// Takes out of `bytes` what is not for the client, and hands it to those who wait for it.
    pub fn sift(&self, bytes: &mut [u8]) -> Sifted {
        let mut office = self.lock();
        let mut heard = std::mem::take(&mut office.heard);
        let sifted = office.sieve.sift(bytes, &mut heard);
        office.read += sifted.seen as u64;
        for (channel, heard) in heard.drain(..) {
            office.deliver(channel, heard);
        }
        office.heard = heard;
        office.tell();
        sifted
    }

    /// Bytes that the broker has sent so far.
    pub fn read(&self) -> u64 {
        self.lock().read
    }

    /// Whether nothing is kept of what comes next, see [`super::bodies`].
    pub fn discards(&self) -> bool {
        self.lock().sieve.discards()
    }

    /// From now on `carrier` is woken when messages are to leave and none were before.
    pub fn wake(&self, carrier: &Waker) {
        self.lock().carrier = Some(carrier.clone());
    }

    /// Fills `into`, which is empty, with messages that are to leave; whether there were any.
    pub fn collect(&self, into: &mut Vec<u8>) -> bool {
        let mut office = self.lock();
        while let Some(number) = office.leaving.pop_front() {
            let Some(mailbox) = office.boxes.get_mut(&number) else {
                continue;
            };
            std::mem::swap(into, &mut mailbox.leaving);
            if let Some(writer) = mailbox.writer.take() {
                writer.wake();
            }
            // What was to leave is dropped when the channel ends.
            if !into.is_empty() {
                return true;
            }
        }
        false
    }

    /// Tells everybody that the connection can be used no more; the first reason counts.
    pub fn end(&self, reason: impl FnOnce() -> Error) {
        let mut office = self.lock();
        if office.ended.is_none() {
            office.end(reason());
            office.tell();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Office> {
        // Nothing in it is ever left half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Office {
    fn deliver(&mut self, channel: ChannelId, heard: Heard) {
        match heard {
            Heard::Closed { code, said } if channel == 0 => self.end(closed(code, said)),
            // Of a channel that nobody uses any more, nobody wants to know.
            heard => {
                let number = self.of_channel.get(&channel).copied();
                if let Some(number) = number
                    && let Some(mailbox) = self.boxes.get_mut(&number)
                {
                    mailbox.put(heard);
                    if self.touched.last() != Some(&number) {
                        self.touched.push(number);
                    }
                }
            }
        }
    }

    /// Wakes those for whom there is something.
    fn tell(&mut self) {
        while let Some(number) = self.touched.pop() {
            self.boxes.get_mut(&number).into_iter().for_each(Mailbox::tell);
        }
    }

    fn end(&mut self, reason: Error) {
        for (number, mailbox) in &mut self.boxes {
            mailbox.end(reason.clone());
            self.touched.push(*number);
        }
        self.sieve.end();
        self.ended.get_or_insert(reason);
    }
}

impl Mailbox {
    fn put(&mut self, heard: Heard) {
        match heard {
            Heard::News(news) => self.came.push(news),
            Heard::Closed { code, said } => self.end(closed(code, said)),
        }
    }

    fn end(&mut self, reason: Error) {
        self.ended.get_or_insert(reason);
        self.leaving = Vec::new();
    }

    /// Wakes those who wait for what there is.
    fn tell(&mut self) {
        if self.ended.is_some() || !self.came.is_empty() {
            self.reader.take().into_iter().for_each(Waker::wake);
        }
        if self.ended.is_some() {
            self.writer.take().into_iter().for_each(Waker::wake);
        }
    }
}

impl Mail {
    /// Adds a message to those that [`Mail::send`] is to send.
    pub fn add(&mut self, message: &Publication<'_>) {
        frames::publish(&mut self.batch, self.channel, self.frame_max, message);
    }

    /// Whether so much has been added that it is to be sent before there is more.
    pub fn is_full(&self) -> bool {
        self.batch.len() >= BATCH_BYTES
    }

    /// Hands what was added to the thread that writes.
    ///
    /// # Errors
    /// The channel or its connection can be used no more; why.
    pub fn send(&mut self) -> Result<(), Error> {
        let mut office = self.post.lock();
        let Some(mailbox) = office.boxes.get_mut(&self.number) else {
            return Err(closed_silently());
        };
        if let Some(reason) = &mailbox.ended {
            return Err(reason.clone());
        }
        if !mailbox.leaving.is_empty() {
            // The thread has been woken for those.
            mailbox.leaving.append(&mut self.batch);
        } else if !self.batch.is_empty() {
            std::mem::swap(&mut mailbox.leaving, &mut self.batch);
            office.leaving.push_back(self.number);
            let carrier = office.carrier.clone();
            // Awake, the thread would wait for what is locked here.
            drop(office);
            carrier.into_iter().for_each(Waker::wake);
        }
        Ok(())
    }

    /// Waits until no more waits to leave than may.
    ///
    /// # Errors
    /// As for [`Mail::send`].
    pub async fn room(&self) -> Result<(), Error> {
        std::future::poll_fn(|context| {
            let mut office = self.post.lock();
            let Some(mailbox) = office.boxes.get_mut(&self.number) else {
                return Poll::Ready(Err(closed_silently()));
            };
            if let Some(reason) = &mailbox.ended {
                return Poll::Ready(Err(reason.clone()));
            }
            if mailbox.leaving.len() <= LEAVING_BYTES_MAX {
                return Poll::Ready(Ok(()));
            }
            mailbox.writer = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Waits for news and puts them into `into`, which is empty. Returns why the channel can be used no more, if it cannot.
    pub async fn news(&self, into: &mut Vec<News>) -> Option<Error> {
        std::future::poll_fn(|context| {
            let mut office = self.post.lock();
            let Some(mailbox) = office.boxes.get_mut(&self.number) else {
                return Poll::Ready(Some(closed_silently()));
            };
            if mailbox.came.is_empty() && mailbox.ended.is_none() {
                mailbox.reader = Some(context.waker().clone());
                return Poll::Pending;
            }
            std::mem::swap(&mut mailbox.came, into);
            Poll::Ready(mailbox.ended.clone())
        })
        .await
    }
}

impl Drop for Mail {
    fn drop(&mut self) {
        let mut office = self.post.lock();
        office.boxes.remove(&self.number);
        // The channel's number may be another's by now.
        if office.of_channel.get(&self.channel) == Some(&self.number) {
            office.of_channel.remove(&self.channel);
            office.sieve.discard(self.channel);
        }
    }
}

/// What the broker said, as the client says it.
fn closed(code: u16, said: ShortString) -> Error {
    AMQPError::from_id(code, said).map_or_else(closed_silently, |error| ErrorKind::ProtocolError(error).into())
}

/// The end of a connection of which nobody said why.
pub fn closed_silently() -> Error {
    ErrorKind::InvalidConnectionState(ConnectionState::Closed).into()
}

/// What leaves together at the most, but for the rest of a message.
const BATCH_BYTES: usize = 256 << 10;
/// Beyond this whoever publishes waits; a batch more may be there then.
const LEAVING_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;
    use lapin::BasicProperties;

    use super::super::bodies::Bodies;
    use super::super::frames::{Confirm, Content, Delivered, testing};
    use super::*;

    const CHANNEL: ChannelId = 3;

    /// Counts how often the thread that writes is woken.
    #[derive(Default)]
    struct Carrier(AtomicUsize);

    impl std::task::Wake for Carrier {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn add(mail: &mut Mail, bytes: usize) {
        mail.add(&Publication {
            exchange: &"".into(),
            routing_key: &"replies".into(),
            mandatory: true,
            properties: &BasicProperties::default(),
            body: &vec![7; bytes],
        });
    }

    /// What leaves now.
    fn collected(post: &Post) -> Vec<u8> {
        let mut leaving = Vec::new();
        post.collect(&mut leaving);
        leaving
    }

    /// The post of a channel on which most of a body of 50 bytes has come, and the rest of it.
    fn with_most_of_a_body(bodies: &Bodies) -> (Post, Mail, Vec<u8>) {
        let post = Post::default();
        let mail = post.counted_channel(CHANNEL, 4096, Some(bodies.account()));
        let delivered = Delivered {
            content: Content {
                body: vec![7; 50],
                ..Content::default()
            },
            ..Delivered::default()
        };
        let mut come = testing::delivered(CHANNEL, &delivered, 10);
        let mut rest = come.split_off(come.len() - 18);
        let seen = post.sift(&mut come).seen;
        rest.splice(0..0, come[seen..].iter().copied());
        assert_eq!(bodies.taken(), 50);
        (post, mail, rest)
    }

    const CONFIRM: Confirm = Confirm {
        tag: 1,
        multiple: true,
        refused: false,
    };

    #[test]
    fn the_thread_that_writes_is_woken_once_for_all_that_it_has_not_collected() {
        let (post, carrier) = (Post::default(), Arc::new(Carrier::default()));
        let mut mail = post.channel(CHANNEL, 4096);
        post.wake(&carrier.clone().into());

        for _ in 0..3 {
            add(&mut mail, 10);
            mail.send().unwrap();
        }
        let woken = carrier.0.load(Ordering::SeqCst);
        let together = collected(&post);
        add(&mut mail, 10);
        mail.send().unwrap();

        assert_eq!(woken, 1);
        assert_eq!(together, collected(&post).repeat(3));
        assert_eq!(carrier.0.load(Ordering::SeqCst), 2);
        assert_eq!(collected(&post), b"");
    }

    #[test]
    fn a_body_that_nobody_waits_for_any_more_takes_nothing_and_is_read_to_its_end() {
        let bodies = Bodies::new(100, 100, 1);
        let (post, mail, mut rest) = with_most_of_a_body(&bodies);

        drop(mail);
        let (taken, is_coming) = (bodies.taken(), post.lock().sieve.comes(CHANNEL));
        post.sift(&mut rest);

        assert_eq!((taken, is_coming), (0, true));
        assert!(!post.lock().sieve.comes(CHANNEL));
    }

    #[test]
    fn a_body_that_is_cut_off_by_the_end_of_its_connection_takes_nothing() {
        let bodies = Bodies::new(100, 100, 1);
        let (post, _mail, _) = with_most_of_a_body(&bodies);

        post.end(closed_silently);

        assert_eq!(bodies.taken(), 0);
    }

    #[test]
    fn once_the_broker_has_closed_a_channel_nothing_leaves_any_more_and_the_reason_is_known() {
        let post = Post::default();
        let (mut mail, mut other) = (post.channel(CHANNEL, 4096), post.channel(CHANNEL + 1, 4096));
        for mail in [&mut mail, &mut other] {
            add(mail, 10);
            mail.send().unwrap();
        }

        let mut close = testing::closed(CHANNEL, 406, "too large");
        post.sift(&mut close);
        add(&mut mail, 10);
        let refused = mail.send().unwrap_err();
        let lost = mail.news(&mut Vec::new()).now_or_never().unwrap().unwrap();

        assert!(refused.to_string().contains("too large"));
        assert_eq!(lost.to_string(), refused.to_string());
        // Of the other channel.
        assert!(!collected(&post).is_empty());
        assert_eq!(collected(&post), b"");
    }

    #[test]
    fn a_connection_that_the_broker_closes_ends_all_its_channels_and_those_to_come() {
        let post = Post::default();
        let mut mail = post.channel(CHANNEL, 4096);

        post.sift(&mut testing::closed(0, 320, "maintenance"));
        // The first reason counts.
        post.end(closed_silently);

        let mut later = post.channel(CHANNEL + 1, 4096);

        for mail in [&mut mail, &mut later] {
            assert!(mail.send().unwrap_err().to_string().contains("maintenance"));
        }
    }

    #[test]
    fn mail_that_is_dropped_takes_back_what_has_not_left_and_what_is_said_of_it_is_forgotten() {
        let post = Post::default();
        let mut mail = post.channel(CHANNEL, 4096);
        add(&mut mail, 10);
        mail.send().unwrap();

        drop(mail);
        let mut late = testing::confirm(CHANNEL, CONFIRM);
        let sifted = post.sift(&mut late);

        assert_eq!(collected(&post), b"");
        // The client, which knows nothing of it, gets a heartbeat instead.
        assert_eq!(late[..sifted.kept], testing::heartbeat());
    }

    #[test]
    fn news_are_waited_for_and_all_come_at_once() {
        let post = Post::default();
        let mail = post.channel(CHANNEL, 4096);
        let mut news = Vec::new();

        let early = mail.news(&mut news).now_or_never();
        post.sift(&mut testing::confirm(CHANNEL, CONFIRM).repeat(2));
        let lost = mail.news(&mut news).now_or_never();

        assert!(early.is_none());
        assert!(lost.is_some_and(|lost| lost.is_none()));
        assert_eq!(news, [News::Confirm(CONFIRM), News::Confirm(CONFIRM)]);
    }

    #[tokio::test]
    async fn whoever_publishes_more_than_leaves_waits() {
        let post = Post::default();
        let mut mail = post.channel(CHANNEL, 4096);
        while !mail.is_full() {
            add(&mut mail, 4096);
        }
        while mail.room().now_or_never().is_some() {
            let mut batch = mail.batch.clone();
            mail.send().unwrap();
            mail.batch.append(&mut batch);
        }

        let waits = tokio::spawn({
            let post = post.clone();
            async move {
                tokio::task::yield_now().await;
                collected(&post).len()
            }
        });
        mail.room().await.unwrap();

        assert!(waits.await.unwrap() > LEAVING_BYTES_MAX);
    }
}
