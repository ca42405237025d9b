//! A TCP link between worker and broker that a test can cut, as a switch or a proxy would.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;

/// Carries connections from a port of its own to the broker's.
pub struct Link {
    address: SocketAddr,
    cut: Arc<Notify>,
    open: Arc<AtomicBool>,
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
            cut: Arc::new(Notify::new()),
            open: Arc::new(AtomicBool::new(true)),
        };
        tokio::spawn(carry_all(
            listener,
            target,
            Arc::clone(&link.cut),
            Arc::clone(&link.open),
        ));
        link
    }

    /// `uri` with this link's address in the place of the broker's.
    pub fn uri(&self, uri: &str) -> String {
        through(uri, self.address)
    }

    /// Drops every connection at once; new ones are carried.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// Drops every connection, and each new one too.
    pub fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
        self.cut();
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

async fn carry_all(listener: TcpListener, target: u16, cut: Arc<Notify>, open: Arc<AtomicBool>) {
    while let Ok((stream, _)) = listener.accept().await {
        if open.load(Ordering::SeqCst) {
            tokio::spawn(carry(stream, target, Arc::clone(&cut)));
        }
    }
}

async fn carry(mut worker: TcpStream, target: u16, cut: Arc<Notify>) {
    let Ok(mut broker) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut worker, &mut broker) => {}
        () = cut.notified() => {}
    }
}
