//! A TCP link between worker and broker with the faults that networks have.
//!
//! It carries each connection from a port of its own to the broker's, slowly, in small pieces, not at all, or up to the
//! middle of a frame, as the test says. (The crate `noxious` does the first three; it cannot end a connection inside a
//! chosen AMQP frame, which is the fault that matters most here.)

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::frames::{Frame, Frames};

/// Carries connections from a port of its own to the broker's.
#[derive(Clone)]
pub struct Link {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
    carried: Arc<Carried>,
}

/// What the link does to the bytes of all its connections, in both ways.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// How much later every byte arrives.
    pub latency: Duration,
    pub bytes_per_second: Option<NonZeroU32>,
    /// Most bytes that are written at once.
    pub piece_bytes_max: Option<usize>,
    /// Nothing arrives any more, and neither end is told: a black hole.
    pub silent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToBroker,
    ToWorker,
}

/// A frame that is to be carried only in part.
#[derive(Debug, Clone, Copy)]
pub struct Tear {
    pub way: Way,
    pub frame: Frame,
    /// How many of its first bytes arrive; from 1 to [`super::frames::HEAD`].
    pub bytes: usize,
}

#[derive(Default)]
struct State {
    weather: Weather,
    tear: Option<Tear>,
    /// Counts the cuts; a connection ends when it sees another count than at its beginning.
    cuts: u64,
    closed: bool,
}

#[derive(Default)]
struct Carried {
    bytes: AtomicU64,
    pieces: AtomicU64,
    torn: AtomicU64,
}

impl Link {
    /// A link to the port `target` on this machine.
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self::serve(listener, target)
    }

    fn serve(listener: TcpListener, target: u16) -> Self {
        let link = Self {
            address: listener.local_addr().expect("a bound port"),
            state: Arc::new(watch::Sender::new(State::default())),
            carried: Arc::default(),
        };
        tokio::spawn(carry_all(listener, target, link.state.clone(), link.carried.clone()));
        link
    }

    /// `uri` with this link's address in the place of the broker's.
    pub fn uri(&self, uri: &str) -> String {
        through(uri, self.address)
    }

    /// Changes what happens to bytes from now on.
    pub fn weather(&self, weather: Weather) {
        self.state.send_modify(|state| state.weather = weather);
    }

    /// Tears the next frame of this kind, resets its connection and drops the others of this link.
    pub fn tear(&self, tear: Tear) {
        self.state.send_modify(|state| state.tear = Some(tear));
    }

    /// Ends the weather, and forgets a tear that has not come yet.
    pub fn calm(&self) {
        self.state.send_modify(|state| {
            state.weather = Weather::default();
            state.tear = None;
        });
    }

    /// Drops every connection at once; new ones are carried.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Drops every connection, and each new one too.
    pub fn close(&self) {
        self.state.send_modify(|state| state.closed = true);
        self.cut();
    }

    /// Bytes carried so far, and the writes it took.
    pub fn carried(&self) -> (u64, u64) {
        let Carried { bytes, pieces, .. } = &*self.carried;
        (bytes.load(Ordering::SeqCst), pieces.load(Ordering::SeqCst))
    }

    /// How many frames were torn.
    pub fn torn(&self) -> u64 {
        self.carried.torn.load(Ordering::SeqCst)
    }
}

/// A port that belongs to us and refuses connections until it is opened.
pub struct ClosedPort {
    socket: TcpSocket,
    address: SocketAddr,
}

impl ClosedPort {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let address = socket.local_addr().expect("a bound port");
        Self { socket, address }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts to listen, and carries every connection to the port `target`.
    pub fn open(self, target: u16) -> Link {
        Link::serve(self.socket.listen(64).expect("a bound socket listens"), target)
    }
}

/// `uri` with another address.
pub fn through(uri: &str, address: SocketAddr) -> String {
    let (scheme, rest) = uri.split_once("://").expect("a URI");
    let (authority, path) = rest
        .split_once('/')
        .map_or((rest, String::new()), |(a, p)| (a, format!("/{p}")));
    let user = authority
        .rsplit_once('@')
        .map_or(String::new(), |(user, _)| format!("{user}@"));
    format!("{scheme}://{user}{address}{path}")
}

async fn carry_all(listener: TcpListener, target: u16, state: Arc<watch::Sender<State>>, carried: Arc<Carried>) {
    while let Ok((stream, _)) = listener.accept().await {
        if state.borrow().closed {
            continue;
        }
        let (state, carried) = (state.clone(), carried.clone());
        tokio::spawn(async move { carry(stream, target, &state, &carried).await });
    }
}

async fn carry(worker: TcpStream, target: u16, state: &watch::Sender<State>, carried: &Carried) {
    let cuts = state.borrow().cuts;
    let Ok(broker) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    for end in [&worker, &broker] {
        end.set_nodelay(true).ok();
    }
    let mut cut = state.subscribe();
    let (from_worker, to_worker) = worker.into_split();
    let (from_broker, to_broker) = broker.into_split();
    let there = lane(Way::ToBroker, from_worker, to_broker, state, carried);
    let back = lane(Way::ToWorker, from_broker, to_worker, state, carried);
    tokio::select! {
        // Both ends have said all they had to say.
        _ = async { tokio::join!(there, back) } => {}
        _ = cut.wait_for(|state| state.cuts != cuts) => {}
    }
}

/// One way of one connection.
async fn lane(way: Way, mut from: OwnedReadHalf, to: OwnedWriteHalf, state: &watch::Sender<State>, carried: &Carried) {
    let (sender, receiver) = mpsc::channel(QUEUED_MAX);
    let read = async {
        // An end by an error is one the other side should see as well; what had arrived is carried first.
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(bytes @ 1..) = from.read(&mut chunk).await {
            if sender.send((Instant::now(), chunk[..bytes].to_vec())).await.is_err() {
                return;
            }
        }
        drop(sender);
    };
    tokio::join!(read, write(way, receiver, to, state, carried));
}

async fn write(
    way: Way,
    mut chunks: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut to: OwnedWriteHalf,
    state: &watch::Sender<State>,
    carried: &Carried,
) {
    let mut frames = Frames::new(way == Way::ToBroker);
    let mut weather = state.subscribe();
    while let Some((arrived, chunk)) = chunks.recv().await {
        let latency = weather.borrow().weather.latency;
        tokio::time::sleep_until(arrived + latency).await;
        let torn = tear(way, state, &mut frames, &chunk);
        let mut rest = &chunk[..torn.unwrap_or(chunk.len())];
        while !rest.is_empty() {
            let now = weather.wait_for(|state| !state.weather.silent).await;
            let now = now.expect("the link is borrowed").weather;
            let (piece, left) = rest.split_at(rest.len().min(now.piece_bytes_max.unwrap_or(rest.len())));
            if to.write_all(piece).await.is_err() {
                return;
            }
            carried.bytes.fetch_add(piece.len() as u64, Ordering::SeqCst);
            carried.pieces.fetch_add(1, Ordering::SeqCst);
            if let Some(rate) = now.bytes_per_second {
                tokio::time::sleep(Duration::from_secs_f64(piece.len() as f64 / f64::from(rate.get()))).await;
            }
            rest = left;
        }
        if torn.is_some() {
            carried.torn.fetch_add(1, Ordering::SeqCst);
            // Both ways end, here and on every other connection of the link: a worker's two share its network.
            to.as_ref().set_zero_linger().ok();
            state.send_modify(|state| state.cuts += 1);
            return;
        }
    }
    weather.wait_for(|state| !state.weather.silent).await.ok();
}

/// Where in `chunk` the connection ends, if a frame is to be torn here.
fn tear(way: Way, state: &watch::Sender<State>, frames: &mut Frames, chunk: &[u8]) -> Option<usize> {
    let wanted = state.borrow().tear.filter(|tear| tear.way == way);
    let found = frames.look(chunk, wanted.map(|tear| tear.frame));
    let (start, tear) = (found?, wanted?);
    // Whoever asks first gets it: each tear is for one frame of one connection.
    let mine = state.send_if_modified(|state| state.tear.take().is_some());
    let end = usize::try_from(start + tear.bytes as i64).unwrap_or(0);
    mine.then_some(end.min(chunk.len()))
}

const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks between the two ends of a lane; more stay in the sockets.
const QUEUED_MAX: usize = 8;
