//! The stream that the AMQP client works on: every frame is screened ([`super::screen`]) before the client reads it.
//!
//! It lies above TLS, where frames are plain. What comes in is screened in the client's own memory; only a frame whose end is
//! still to come is held back and copied. What goes out is passed through, past the [`Gate`].

use std::future::Future;
use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_compat::Compat;
use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::AsyncTcpStream;
use tokio::net::TcpStream;

use super::gate::Gate;
use super::screen::{Frame, Kind};

/// A connection to the broker, encrypted or not.
type Wire = AsyncTcpStream<Compat<TcpStream>>;

/// A stream of AMQP frames that the client can read without harm.
pub struct Screened<S = Wire> {
    wire: S,
    /// Kept by those who publish many messages at a time.
    gate: Gate,
    /// What has come in and is held back. `read` bytes of it the client has, up to `screened` it may have, and up to `filled`
    /// there are any.
    bytes: Vec<u8>,
    read: usize,
    screened: usize,
    filled: usize,
    /// Bytes of the current frame that need no screening and have not come yet.
    passing: usize,
}

impl<S> Screened<S> {
    pub fn new(wire: S, gate: Gate) -> Self {
        Self {
            wire,
            gate,
            bytes: vec![0; BUFFER_BYTES],
            read: 0,
            screened: 0,
            filled: 0,
            passing: 0,
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
    /// Reads into the client's own memory, and holds back the frame that has only begun to come. Returns how many bytes the
    /// client may have, and whether there will be more.
    fn poll_direct(&mut self, context: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<(usize, bool)>> {
        let came = ready!(Pin::new(&mut self.wire).poll_read(context, to))?;
        let screened = screen(&mut self.passing, &mut to[..came]);
        self.filled = came - screened;
        (self.read, self.screened) = (0, 0);
        self.bytes[..self.filled].copy_from_slice(&to[screened..came]);
        Poll::Ready(Ok((screened, came > 0)))
    }

    /// Reads behind what is held back. Returns whether there will be more.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.make_room();
        let came = ready!(Pin::new(&mut self.wire).poll_read(context, &mut self.bytes[self.filled..]))?;
        self.filled += came;
        if came > 0 {
            self.screened += screen(&mut self.passing, &mut self.bytes[self.screened..self.filled]);
        } else {
            // The broker hung up in the middle of a frame, which nobody will read.
            self.screened = self.filled;
        }
        Poll::Ready(Ok(came > 0))
    }
}

/// Screens as far as whole frames have come, and returns how far that is. `passing` bytes of the frame before need none, nor
/// do so many, afterwards, of those that follow.
fn screen(passing: &mut usize, bytes: &mut [u8]) -> usize {
    let mut screened = 0;
    loop {
        let passed = (*passing).min(bytes.len() - screened);
        *passing -= passed;
        screened += passed;
        let ahead = &mut bytes[screened..];
        let Some(frame) = Frame::begin(ahead).filter(|_| *passing == 0) else {
            return screened;
        };
        // A frame that does not fit is longer than any broker may send: the client refuses it.
        if frame.kind == Kind::Other || frame.bytes > BUFFER_BYTES {
            *passing = frame.bytes;
            continue;
        }
        let Some(whole) = ahead.get_mut(..frame.bytes) else {
            return screened;
        };
        frame.screen(whole);
        screened += frame.bytes;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Screened<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            let handed = this.hand_over(to);
            if handed > 0 || to.is_empty() {
                return Poll::Ready(Ok(handed));
            }
            let (handed, more) = if this.holds_nothing() && to.len() >= DIRECT_MIN {
                ready!(this.poll_direct(context, to))?
            } else {
                (0, ready!(this.poll_more(context))?)
            };
            if handed > 0 || (!more && this.screened == this.read) {
                return Poll::Ready(Ok(handed));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Screened<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(context, slices)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The client flushes before it looks for what is to be written.
        self.gate.pass();
        Pin::new(&mut self.wire).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_close(context)
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

/// Twice the longest frame, which is 128 KiB unless the URI says otherwise.
const BUFFER_BYTES: usize = 256 << 10;

/// Below this the client is at the end of its memory, and would be given little at a time.
const DIRECT_MIN: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};
    use proptest::prelude::*;

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
        let mut stream = Screened::new(pieces, Gate::default());
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

    #[tokio::test]
    async fn what_is_published_together_is_not_looked_for_until_all_of_it_is_there() {
        let gate = Gate::default();
        let mut stream = Some(Screened::new(futures_util::io::sink(), gate.clone()));
        let (flushed, log) = std::sync::mpsc::channel();
        let mut writer = None;

        let publishing = gate.shut_during(std::future::poll_fn(|_| {
            let (flushed, mut stream) = (flushed.clone(), stream.take().unwrap());
            writer = Some(std::thread::spawn(move || {
                let result = futures_util::FutureExt::now_or_never(stream.flush());
                let _ = flushed.send(result.is_some());
            }));
            std::thread::sleep(Duration::from_millis(20));
            Poll::Ready(log.try_recv())
        }));
        let before = publishing.await;
        writer.unwrap().join().unwrap();

        assert!(before.is_err(), "flushed through a gate that was shut");
        assert_eq!(log.try_recv(), Ok(true));
    }

    #[test]
    fn a_frame_longer_than_any_broker_may_send_is_left_to_the_client() {
        let long = frame(1, &vec![0xff; BUFFER_BYTES + 1]);

        assert_eq!(all(long.clone(), vec![100_000], &[70_000, 300]), long);
    }
}
