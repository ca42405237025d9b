//! The stream that the AMQP client works on: every frame is screened ([`super::screen`]) before the client reads it, and what
//! is not for the client goes past it ([`super::post`]).
//!
//! It lies above TLS, where frames are plain. What comes in is screened in the client's own memory; only a frame whose end is
//! still to come is held back and copied. What goes out is passed through, and between the client's frames the post.
//!
//! The client's thread sleeps when it can neither read nor has anything of its own to write, even if it has just been told
//! that the socket can be written. So whatever concerns the post wakes it as if there were something to read: then it flushes
//! first, which is where the post leaves, and finds nothing to read.

use std::future::Future;
use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::{Duration, Instant};

use async_compat::Compat;
use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::AsyncTcpStream;
use tokio::net::TcpStream;

use super::bodies::Brake;
use super::frames::{FRAME_BYTES_MAX, Writing};
use super::post::{self, Post};

/// A connection to the broker, encrypted or not.
type Wire = AsyncTcpStream<Compat<TcpStream>>;

/// A stream of AMQP frames that the client can read without harm.
pub struct Screened<S = Wire> {
    wire: S,
    post: Post,
    /// For a connection that consumes.
    brake: Option<Brake>,
    /// Where the client is in what it writes.
    client: Writing,
    /// Tells the client that there is something to read.
    reader: Option<Waker>,
    /// Messages that leave, of which `left` bytes have.
    leaving: Vec<u8>,
    left: usize,
    /// What has come in and is held back. `read` bytes of it the client has, up to `screened` it may have, and up to `filled`
    /// there are any.
    bytes: Vec<u8>,
    read: usize,
    screened: usize,
    filled: usize,
}

impl<S> Screened<S> {
    pub fn new(wire: S, post: Post, brake: Option<Brake>) -> Self {
        Self {
            wire,
            post,
            brake,
            client: Writing::default(),
            reader: None,
            leaving: Vec::new(),
            left: 0,
            bytes: vec![0; FRAME_BYTES_MAX],
            read: 0,
            screened: 0,
            filled: 0,
        }
    }

    /// What may be handed on of what is held back, if anything.
    fn hand_over(&mut self, to: &mut [u8]) -> usize {
        let handed = to.len().min(self.screened - self.read);
        to[..handed].copy_from_slice(&self.bytes[self.read..self.read + handed]);
        self.read += handed;
        handed
    }

    /// Makes room behind what has not been handed on: the beginning of a frame, as a rule a short one.
    fn make_room(&mut self) {
        self.bytes.copy_within(self.read..self.filled, 0);
        self.filled -= self.read;
        self.screened -= self.read;
        self.read = 0;
    }

    fn holds_nothing(&self) -> bool {
        self.read == self.filled
    }
}

impl<S: AsyncRead + Unpin> Screened<S> {
    /// Reads from the broker, slowly while bodies in hand take too much.
    fn poll_wire(&mut self, context: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        let Some(brake) = &mut self.brake else {
            return Pin::new(&mut self.wire).poll_read(context, to);
        };
        let allowed = ready!(brake.poll_allowed(context, || !self.post.discards()));
        let most = to.len().min(allowed);
        let came = ready!(Pin::new(&mut self.wire).poll_read(context, &mut to[..most]))?;
        brake.read(came);
        Poll::Ready(Ok(came))
    }

    /// Reads into the client's own memory, and holds back the frame that has only begun to come. Returns how many bytes the
    /// client may have, and whether there will be more.
    fn poll_direct(&mut self, context: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<(usize, bool)>> {
        let came = ready!(self.poll_wire(context, to))?;
        let sifted = self.post.sift(&mut to[..came]);
        self.filled = came - sifted.seen;
        (self.read, self.screened) = (0, 0);
        self.bytes[..self.filled].copy_from_slice(&to[sifted.seen..came]);
        Poll::Ready(Ok((sifted.kept, came > 0)))
    }

    /// Reads behind what is held back. Returns whether there will be more.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.make_room();
        let mut bytes = std::mem::take(&mut self.bytes);
        let came = self.poll_wire(context, &mut bytes[self.filled..]);
        self.bytes = bytes;
        let came = ready!(came)?;
        self.filled += came;
        if came > 0 {
            let sifted = self.post.sift(&mut self.bytes[self.screened..self.filled]);
            self.bytes
                .copy_within(self.screened + sifted.seen..self.filled, self.screened + sifted.kept);
            self.filled -= sifted.seen - sifted.kept;
            self.screened += sifted.kept;
        } else {
            // The broker hung up in the middle of a frame, which nobody will read.
            self.screened = self.filled;
        }
        Poll::Ready(Ok(came > 0))
    }

    fn poll_next(&mut self, context: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let handed = self.hand_over(to);
            if handed > 0 || to.is_empty() {
                return Poll::Ready(Ok(handed));
            }
            let (handed, more) = if self.holds_nothing() && to.len() >= DIRECT_MIN {
                ready!(self.poll_direct(context, to))?
            } else {
                (0, ready!(self.poll_more(context))?)
            };
            if handed > 0 || (!more && self.screened == self.read) {
                return Poll::Ready(Ok(handed));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Screened<S> {
    /// Writes the messages that have begun to leave.
    fn poll_leave(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.left < self.leaving.len() {
            let (wire, rest) = (&mut self.wire, &self.leaving[self.left..]);
            let write = |context: &mut Context<'_>| Pin::new(&mut *wire).poll_write(context, rest);
            match ready!(waking_both(self.reader.as_ref(), context, write))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.left += written,
            }
        }
        if self.leaving.capacity() > LEAVING_BYTES_KEPT {
            self.leaving = Vec::new();
        }
        self.leaving.clear();
        self.left = 0;
        Poll::Ready(Ok(()))
    }

    /// Writes all messages that are to leave, unless the client has a frame half written.
    fn poll_post(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_leave(context))?;
            if !self.client.is_between_frames() || !self.post.collect(&mut self.leaving) {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Screened<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        if !self
            .reader
            .as_ref()
            .is_some_and(|known| known.will_wake(context.waker()))
        {
            self.reader = Some(context.waker().clone());
            self.post.wake(context.waker());
        }
        let came = ready!(self.poll_next(context, to));
        match &came {
            Ok(0) if !to.is_empty() => self
                .post
                .end(|| io::Error::from(io::ErrorKind::ConnectionAborted).into()),
            Ok(_) => {}
            // One that says "later" is none.
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => self.post.end(|| io::Error::new(error.kind(), error.to_string()).into()),
        }
        Poll::Ready(came)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Screened<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_leave(context))?;
        let written = ready!(Pin::new(&mut self.wire).poll_write(context, bytes))?;
        self.client.wrote(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_leave(context))?;
        let written = ready!(Pin::new(&mut self.wire).poll_write_vectored(context, slices))?;
        let mut missing = written;
        for slice in slices {
            let bytes = missing.min(slice.len());
            self.client.wrote(&slice[..bytes]);
            missing -= bytes;
        }
        Poll::Ready(Ok(written))
    }

    /// The client flushes whenever its thread wakes up, before and after it writes.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_post(context))?;
        let this = &mut *self;
        waking_both(this.reader.as_ref(), context, |context| {
            Pin::new(&mut this.wire).poll_flush(context)
        })
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_close(context)
    }
}

/// Polls, and if that has to wait, has the client told afterwards that it may read as well as write.
fn waking_both<T>(
    reader: Option<&Waker>,
    context: &mut Context<'_>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    let polled = poll(context);
    match reader {
        Some(reader) if polled.is_pending() => {
            let both = Waker::from(Arc::new(Both(context.waker().clone(), reader.clone())));
            poll(&mut Context::from_waker(&both))
        }
        _ => polled,
    }
}

struct Both(Waker, Waker);

impl Wake for Both {
    fn wake(self: Arc<Self>) {
        self.0.wake_by_ref();
        self.1.wake_by_ref();
    }
}

impl<S> Drop for Screened<S> {
    fn drop(&mut self) {
        self.post.end(post::closed_silently);
    }
}

/// The runtime as the client knows it: tokio, but for its type of stream.
pub fn runtime() -> Runtime<RuntimeParts<Tokio, ScreenedTokio>> {
    let tokio = Tokio::current();
    Runtime::new(RuntimeParts::new(tokio.clone(), ScreenedTokio(tokio)))
}

#[derive(Debug, Clone)]
pub struct ScreenedTokio(Tokio);

impl Reactor for ScreenedTokio {
    type TcpStream = Screened;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    /// Never asked for: the client is handed a stream that is connected.
    fn tcp_connect_addr(
        &self,
        _address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

/// Below this the client is at the end of its memory, and would be given little at a time.
const DIRECT_MIN: usize = 16 << 10;

/// Memory that is kept for the next batch.
const LEAVING_BYTES_KEPT: usize = 512 << 10;

#[cfg(test)]
mod tests {
    use futures_util::AsyncReadExt as _;
    use proptest::prelude::*;

    use super::super::frames::{Confirm, News, Publication, testing};
    use super::super::post::Mail;
    use super::super::screen::{Frame, Kind};
    use super::*;

    /// Gives its bytes in pieces of these lengths, again and again.
    struct Pieces {
        bytes: Vec<u8>,
        lengths: Vec<usize>,
        given: usize,
    }

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
            let length = self.lengths[self.given % self.lengths.len()]
                .min(to.len())
                .min(self.bytes.len());
            self.given += 1;
            to[..length].copy_from_slice(&self.bytes[..length]);
            self.bytes.drain(..length);
            Poll::Ready(Ok(length))
        }
    }

    /// A content header with nothing but a correlation id, or a body.
    fn frame(kind: u8, text: &[u8]) -> Vec<u8> {
        let payload = match kind {
            2 => [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x04, 0, text.len() as u8], text].concat(),
            _ => text.to_vec(),
        };
        [
            &[kind, 0, 1],
            &(payload.len() as u32).to_be_bytes()[..],
            &payload,
            &[0xce],
        ]
        .concat()
    }

    /// What comes out when as much is asked for as `reads` says, again and again.
    fn all(bytes: Vec<u8>, lengths: Vec<usize>, reads: &[usize]) -> Vec<u8> {
        let pieces = Pieces {
            bytes,
            lengths,
            given: 0,
        };
        let mut stream = Screened::new(pieces, Post::default(), None);
        let mut got = Vec::new();
        for asked in reads.iter().cycle() {
            let mut to = vec![0; *asked];
            match futures_util::FutureExt::now_or_never(stream.read(&mut to))
                .unwrap()
                .unwrap()
            {
                0 => break,
                read => got.extend(&to[..read]),
            }
        }
        got
    }

    proptest! {
        #[test]
        fn frames_come_through_whole_and_screened_however_they_are_cut(
            texts in proptest::collection::vec((2_u8..4, proptest::collection::vec(any::<u8>(), 0..200)), 0..20),
            lengths in proptest::collection::vec(1_usize..500, 1..6),
            reads in proptest::collection::vec(prop_oneof![1_usize..300, Just(DIRECT_MIN)], 1..6),
            cut in 0_usize..3,
        ) {
            let mut sent: Vec<u8> = texts.iter().flat_map(|(kind, text)| frame(*kind, text)).collect();
            let expected = texts.iter().flat_map(|(kind, text)| match kind {
                2 => {
                    let mut mended = frame(2, text);
                    Frame::begin(&mended).unwrap().screen(&mut mended);
                    mended
                }
                kind => frame(*kind, text),
            });
            let expected: Vec<u8> = expected.collect();
            sent.truncate(sent.len().saturating_sub(cut));

            let got = all(sent.clone(), lengths, &reads);

            prop_assert_eq!(got.len(), sent.len());
            // A frame that is cut is not screened, and nobody can read it.
            if cut == 0 {
                prop_assert_eq!(got, expected);
            }
        }
    }

    #[test]
    fn a_frame_longer_than_any_broker_may_send_is_left_to_the_client() {
        let long = frame(1, &vec![0xff; FRAME_BYTES_MAX + 1]);

        assert_eq!(all(long.clone(), vec![100_000], &[70_000, 300]), long);
    }

    /// Takes as many bytes as it is told at a time, and now and then none.
    struct Narrow {
        taken: Vec<u8>,
        takes: Vec<usize>,
        turn: usize,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let takes = self.takes[self.turn % self.takes.len()].min(bytes.len());
            self.turn += 1;
            if takes == 0 {
                return Poll::Pending;
            }
            self.taken.extend_from_slice(&bytes[..takes]);
            Poll::Ready(Ok(takes))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    const OURS: u16 = 1;
    const THEIRS: u16 = 2;

    fn publish(mail: &mut Mail, body: &[u8]) {
        mail.add(&Publication {
            exchange: &"".into(),
            routing_key: &"replies".into(),
            mandatory: true,
            properties: &lapin::BasicProperties::default(),
            body,
        });
        mail.send().unwrap();
    }

    proptest! {
        /// The client writes its frames in pieces, as far as the socket takes them; messages come at any time.
        #[test]
        fn messages_leave_between_the_frames_of_the_client_and_never_in_one(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 1..6),
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            turns in proptest::collection::vec(any::<bool>(), 300),
            takes in proptest::collection::vec(0_usize..25, 1..6),
        ) {
            prop_assume!(takes.iter().any(|takes| *takes > 0));
            let post = Post::default();
            let mut mail = post.channel(OURS, 16);
            let mut stream = Screened::new(Narrow { taken: Vec::new(), takes, turn: 0 }, post, None);
            let mut context = Context::from_waker(std::task::Waker::noop());
            let mut client = b"AMQP\0\0\x09\x01".to_vec();
            client.extend(payloads.iter().flat_map(|payload| testing::method(THEIRS, payload)));
            let mut unpublished = bodies.iter();
            let mut written = 0;

            for publishes in turns.into_iter().chain([true; 600]) {
                if publishes && let Some(body) = unpublished.next() {
                    publish(&mut mail, body);
                }
                let _ = Pin::new(&mut stream).poll_flush(&mut context);
                if written < client.len() && let Poll::Ready(bytes) = Pin::new(&mut stream).poll_write(&mut context, &client[written..]) {
                    written += bytes.unwrap();
                }
            }

            let mut rest = &stream.wire.taken[..];
            prop_assert_eq!(&rest[..8], &client[..8]);
            rest = &rest[8..];
            let (mut theirs, mut ours) = (client[..8].to_vec(), Vec::new());
            while let Some(frame) = Frame::begin(rest) {
                let (whole, behind) = rest.split_at(frame.bytes);
                prop_assert_eq!(whole.last(), Some(&0xce));
                match (frame.channel, frame.kind) {
                    (THEIRS, _) => theirs.extend_from_slice(whole),
                    (_, Kind::Body) => ours.extend_from_slice(&whole[7..whole.len() - 1]),
                    _ => {}
                }
                rest = behind;
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(theirs, client);
            prop_assert_eq!(ours, bodies.concat());
        }
    }

    #[tokio::test]
    async fn what_was_said_is_heard_before_that_the_stream_ended() {
        let confirm = Confirm {
            tag: 1,
            multiple: false,
            refused: false,
        };
        let post = Post::default();
        let mail = post.channel(OURS, 4096);
        let pieces = Pieces {
            bytes: [
                testing::confirm(OURS, confirm),
                testing::confirm(OURS, confirm)[..9].to_vec(),
            ]
            .concat(),
            lengths: vec![usize::MAX],
            given: 0,
        };
        let mut stream = Screened::new(pieces, post.clone(), None);

        let mut client = Vec::new();
        stream.read_to_end(&mut client).await.unwrap();
        let mut news = Vec::new();
        let lost = mail.news(&mut news).await;
        let later = post.channel(OURS, 4096).send();

        assert_eq!(news, [News::Confirm(confirm)]);
        assert!(lost.is_some_and(|lost| lost.is_io_error()));
        assert!(later.is_err());
    }

    #[tokio::test]
    async fn a_stream_that_is_dropped_ends_the_channels() {
        let post = Post::default();
        let mail = post.channel(OURS, 4096);
        let stream = Screened::new(futures_util::io::empty(), post, None);

        drop(stream);

        assert!(mail.news(&mut Vec::new()).await.is_some());
    }

    /// Takes nothing, and keeps who waits for it.
    #[derive(Default)]
    struct Full(Vec<Waker>);

    impl AsyncRead for Full {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Full {
        fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            self.0.push(context.waker().clone());
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Told(std::sync::atomic::AtomicUsize);

    impl Wake for Told {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }

    #[test]
    fn the_client_is_told_to_read_of_a_message_and_when_a_full_socket_takes_the_rest() {
        let told = || Arc::new(Told::default());
        let (reads, writes) = (told(), told());
        let count = |told: &Told| told.0.load(std::sync::atomic::Ordering::SeqCst);
        let (reader, writer) = (Waker::from(reads.clone()), Waker::from(writes.clone()));
        let post = Post::default();
        let mut mail = post.channel(OURS, 4096);
        let mut stream = Screened::new(Full::default(), post, None);
        stream.client.wrote(b"AMQP\0\0\x09\x01");

        let _ = Pin::new(&mut stream).poll_read(&mut Context::from_waker(&reader), &mut [0; 8]);
        publish(&mut mail, b"body");
        let of_a_message = (count(&reads), count(&writes));
        let flushed = Pin::new(&mut stream).poll_flush(&mut Context::from_waker(&writer));
        // A socket keeps the last.
        stream.wire.0.pop().unwrap().wake();

        assert_eq!(of_a_message, (1, 0));
        assert!(flushed.is_pending());
        assert_eq!((count(&reads), count(&writes)), (2, 1));
    }
}
