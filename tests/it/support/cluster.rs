//! A cluster of three brokers on this machine, whose nodes can be killed, frozen, cut off and started again.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, OnceCell};
use tokio::time::Instant;

use super::{Broker, eventually};

/// How long nodes may take to find each other; a node that paused takes some two seconds.
const REUNION: Duration = Duration::from_secs(20);
/// No other node is restarted after that.
const REUNIONS_MAX: Duration = Duration::from_secs(180);
const GLANCE: Duration = Duration::from_millis(100);

/// Three nodes. Dropped, they are stopped.
pub struct Cluster {
    pub nodes: [Broker; 3],
    /// The map from node names to ports; no node's own, so that it outlives each of them.
    _epmd: Epmd,
}

impl Cluster {
    /// The cluster of this test process, for one test at a time; the test leaves it whole.
    pub async fn shared() -> MutexGuard<'static, Self> {
        static SHARED: OnceCell<Mutex<Cluster>> = OnceCell::const_new();
        let start = || async {
            let starting = tokio::task::spawn_blocking(|| Mutex::new(Self::start()));
            starting.await.expect("a cluster of three nodes")
        };
        let mut cluster = SHARED.get_or_init(start).await.lock().await;
        cluster.mend();
        cluster
    }

    fn start() -> Self {
        let epmd = Epmd::start();
        let first = Broker::node_of_cluster(epmd.port, None);
        let second = Broker::node_of_cluster(epmd.port, Some(&first));
        let third = Broker::node_of_cluster(epmd.port, Some(&first));
        Self {
            nodes: [first, second, third],
            _epmd: epmd,
        }
    }

    /// What a test that failed has left behind.
    fn mend(&mut self) {
        for node in &mut self.nodes {
            node.mend();
        }
        self.all_running();
    }

    /// Waits until every node sees all three. A node that does not find the others again is restarted, as its operator would:
    /// RabbitMQ 3.10 leaves a node for good in a partition of its own that hung for longer than the net tick.
    pub fn all_running(&mut self) {
        let began = Instant::now();
        while began.elapsed() < REUNIONS_MAX {
            let since = Instant::now();
            let mut seen = Vec::new();
            while since.elapsed() < REUNION {
                seen = self.nodes.iter().map(Broker::running_nodes).collect();
                if seen.iter().all(|nodes| *nodes == self.nodes.len()) {
                    return;
                }
                std::thread::sleep(GLANCE);
            }
            let alone = self.nodes.iter_mut().zip(&seen).min_by_key(|(_, nodes)| **nodes);
            let (alone, _) = alone.expect("there are three");
            eprintln!("cluster: {} does not find the others and is restarted", alone.node());
            alone.stop();
            alone.start_again();
        }
        panic!("the nodes did not find each other again");
    }

    /// The number of the node that leads a quorum queue, once there is a leader that runs.
    pub async fn leader(&self, queue: &str) -> usize {
        eventually(&format!("a leader of {queue}"), || async {
            let asked = self.nodes.iter().find(|node| node.is_running())?;
            let leader = leader(asked, queue)?;
            let is_it = |node: &Broker| node.node() == leader && node.is_running();
            self.nodes.iter().position(is_it)
        })
        .await
    }
}

/// The node of the member that leads a quorum queue, as far as this one knows.
pub fn leader(broker: &Broker, queue: &str) -> Option<String> {
    let listed = broker.try_ctl(&["list_queues", "--silent", "--timeout", "10", "name", "leader"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut lines = listed.lines();
    let leader = lines.find_map(|line| line.strip_prefix(queue)?.strip_prefix('\t'))?;
    Some(leader.to_owned())
}

/// Erlang's port mapper. It ends with this process, because its standard input closes.
struct Epmd {
    port: u16,
    child: Child,
}

impl Epmd {
    fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("it is bound").port();
        drop(free);
        let child = Command::new("sh")
            .args(["-c", "epmd -port \"$1\" -address 127.0.0.1 & read -r _; kill $!", "sh"])
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("epmd starts");
        Self { port, child }
    }
}

impl Drop for Epmd {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().ok();
    }
}
