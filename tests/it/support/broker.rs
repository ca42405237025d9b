//! Private brokers, started by `scripts/broker` on free ports and gone with the test process.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use super::root;

/// A running broker. Dropped, it is stopped; so it is when this process ends, because its standard input closes.
pub struct Broker {
    ready: Ready,
    child: Child,
    /// Where a broker keeps its data that is to be started again.
    place: Option<TempDir>,
    /// Lines of `rabbitmq.conf` for every start.
    config: Option<PathBuf>,
}

/// The line that `scripts/broker` prints once it serves.
#[derive(Debug, Deserialize)]
struct Ready {
    uri: String,
    amqp_port: u16,
    tls_port: Option<u16>,
    management_port: Option<u16>,
    prometheus_port: Option<u16>,
    dist_port: u16,
    epmd_port: u16,
    node: String,
    dir: String,
    pid: i32,
}

impl Broker {
    /// The broker that all tests of this process share; each keeps to its own prefix on it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// A broker for one test alone, which may alarm it, fill it or kill it.
    pub fn start() -> Self {
        Self::with_options(&[])
    }

    /// As [`Broker::start`], with options of `scripts/broker`.
    pub fn with_options(options: &[&str]) -> Self {
        let (child, ready) = launch(options);
        Self {
            ready,
            child,
            place: None,
            config: None,
        }
    }

    /// A broker for one test alone, with these lines of `rabbitmq.conf` added to its own.
    pub fn with(lines: &str) -> Self {
        let place = folder();
        let file = place.path().join("added.conf");
        std::fs::write(&file, lines).expect("a file");
        Self::with_options(&["--config-file", file.to_str().expect("a path in UTF-8")])
    }

    /// Another node of the cluster of `first`, which must outlive it.
    pub fn joining(first: &Self) -> Self {
        Self::with_options(&["--join", &first.ready.dir])
    }

    /// A broker for one test alone that can be stopped and started again on the same data.
    pub fn durable() -> Self {
        let place = folder();
        let (child, ready) = launch(&["--dir", text(&place)]);
        Self {
            ready,
            child,
            place: Some(place),
            config: None,
        }
    }

    /// As [`Broker::durable`], with the management metrics switched off where the server knows how.
    pub fn durable_without_figures() -> Self {
        if !Self::may_have_no_figures() {
            return Self::durable();
        }
        let place = folder();
        let config = place.path().join("figures.conf");
        std::fs::write(&config, NO_FIGURES).expect("a file");
        let (child, ready) = launch(&["--dir", text(&place), "--config-file", path(&config)]);
        Self {
            ready,
            child,
            place: Some(place),
            config: Some(config),
        }
    }

    /// A broker for one test alone with these plug-ins, whose management API has no figures; nothing if the server is older
    /// than 4.0 and always has them.
    pub fn without_figures(plugins: &str) -> Option<Self> {
        Self::may_have_no_figures().then(|| {
            let place = folder();
            let file = place.path().join("figures.conf");
            std::fs::write(&file, NO_FIGURES).expect("a file");
            Self::with_options(&["--plugins", plugins, "--config-file", path(&file)])
        })
    }

    fn may_have_no_figures() -> bool {
        Self::shared().major() >= 4
    }

    /// The first number of the server's version.
    pub fn major(&self) -> u32 {
        let version = self.ctl(&["version"]);
        let major = version.trim().split('.').next().and_then(|major| major.parse().ok());
        major.expect("a version")
    }

    /// A node of a cluster that can be stopped and started again on the same data: the first, or one that joins it.
    pub fn node_of_cluster(epmd_port: u16, first: Option<&Self>) -> Self {
        let place = folder();
        let config = place.path().join("cluster.conf");
        let figures = if Self::may_have_no_figures() { NO_FIGURES } else { "" };
        std::fs::write(&config, format!("{CLUSTER}{figures}")).expect("a file");
        let epmd_port = epmd_port.to_string();
        let mut options = vec![
            "--dir",
            text(&place),
            "--epmd",
            &epmd_port,
            "--config-file",
            path(&config),
        ];
        options.extend(first.iter().flat_map(|first| ["--join", &first.ready.dir]));
        let (child, ready) = launch(&options);
        Self {
            ready,
            child,
            place: Some(place),
            config: Some(config),
        }
    }

    /// Lets this node neither reach `others` nor be reached, until [`Broker::reconnect`]. From all of them at once: nodes that
    /// still see a node which others have lost stop as well.
    pub fn cut_off(&self, others: &[&Self]) {
        self.for_each(
            others,
            "erlang:set_cookie(N, none_of_yours)",
            "erlang:disconnect_node(N)",
        );
    }

    /// Ends a [`Broker::cut_off`].
    pub fn reconnect(&self, others: &[&Self]) {
        self.for_each(
            others,
            "erlang:set_cookie(N, erlang:get_cookie())",
            "net_kernel:connect_node(N)",
        );
    }

    /// Has this node do two things for each of `others`.
    fn for_each(&self, others: &[&Self], first: &str, then: &str) {
        let names: Vec<String> = others.iter().map(|other| format!("'{}'", other.node())).collect();
        let names = names.join(",");
        let both = format!("[{first} || N <- [{names}]], [{then} || N <- [{names}]].");
        self.ctl(&["eval", &both]);
    }

    /// Stops all threads of the server, as if its machine hung; [`Broker::thaw`] lets them go on.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    pub fn is_running(&self) -> bool {
        speaks(self.ready.amqp_port)
    }

    /// Ends a server that a failed test has left hanging or paused, and starts it again.
    pub fn mend(&mut self) {
        if let Some(pid) = Pid::from_raw(self.ready.pid) {
            kill_process(pid, Signal::CONT).ok();
        }
        if !self.is_running() {
            end(&mut self.child);
            self.start_again();
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.ready.pid).expect("a process id");
        kill_process(pid, signal).expect("the broker runs");
    }

    pub fn uri(&self) -> &str {
        &self.ready.uri
    }

    pub fn node(&self) -> &str {
        &self.ready.node
    }

    pub fn amqp_port(&self) -> u16 {
        self.ready.amqp_port
    }

    /// Where a broker that was started with `--tls` speaks it.
    pub fn tls_port(&self) -> u16 {
        self.ready.tls_port.expect("the broker was started with --tls")
    }

    /// Where a broker that was started with the management plug-in has its API.
    pub fn management_port(&self) -> u16 {
        self.ready
            .management_port
            .expect("the broker was started with rabbitmq_management")
    }

    /// Where a broker that was started with the plugin `rabbitmq_prometheus` shows its metrics.
    pub fn prometheus_port(&self) -> u16 {
        self.ready
            .prometheus_port
            .expect("the broker was started with the plugin")
    }

    /// Stops the broker as its operator would; what is durable stays in its folder.
    pub fn stop(&mut self) {
        end(&mut self.child);
    }

    /// Ends the broker as a power cut would.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().ok();
    }

    /// Starts a broker that has ended again, on the same folder and the same ports.
    pub fn start_again(&mut self) {
        let ports = format!(
            "{}:{}:{}",
            self.ready.amqp_port, self.ready.dist_port, self.ready.epmd_port
        );
        let place = self.place.as_ref().expect("only a durable broker starts again");
        let mut options = vec!["--dir", text(place), "--keep-ports", &ports];
        options.extend(self.config.iter().flat_map(|config| ["--config-file", path(config)]));
        (self.child, self.ready) = launch(&options);
    }

    /// How many nodes of its cluster run, as this one sees it; 0 while it does not run itself.
    pub fn running_nodes(&self) -> usize {
        let output = self.try_ctl(&["cluster_status", "--formatter", "json", "--timeout", "10"]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        status["running_nodes"].as_array().map_or(0, Vec::len)
    }

    /// Runs `rabbitmqctl` on this broker and returns what it printed.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.try_ctl(arguments);
        assert!(
            output.status.success(),
            "broker-ctl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// As [`Broker::ctl`], whether or not it ends well.
    pub fn try_ctl(&self, arguments: &[&str]) -> Output {
        Command::new(root().join("scripts/broker-ctl"))
            .arg(&self.ready.dir)
            .args(arguments)
            .output()
            .expect("scripts/broker-ctl runs")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Whether somebody listens there.
fn speaks(port: u16) -> bool {
    let address = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port));
    std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_secs(1)).is_ok()
}

fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("inferq-broker-").tempdir();
    folder.expect("a temporary folder")
}

fn text(place: &TempDir) -> &str {
    place.path().to_str().expect("a path in UTF-8")
}

fn path(file: &Path) -> &str {
    file.to_str().expect("a path in UTF-8")
}

/// A node that hangs is taken for lost within ten seconds and not within 75, and one without a majority stops.
const CLUSTER: &str = "net_ticktime = 8\ncluster_partition_handling = pause_minority\n";

/// What will be the default of a later RabbitMQ: the management agent collects nothing.
const NO_FIGURES: &str = "deprecated_features.permit.management_metrics_collection = false\n";

fn launch(options: &[&str]) -> (Child, Ready) {
    let mut child = Command::new(root().join("scripts/broker"))
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("scripts/broker starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("standard output is piped");
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("scripts/broker writes text");
    let mut stderr = child.stderr.take().expect("standard error is piped");
    let Ok(ready) = serde_json::from_str(&line) else {
        let mut words = String::new();
        stderr.read_to_string(&mut words).ok();
        let status = child.wait();
        panic!("the broker did not start ({status:?}): {line}{words}");
    };
    // Kept empty, so that the broker never waits for somebody to read.
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    (child, ready)
}

fn end(child: &mut Child) {
    if let Ok(None) = child.try_wait() {
        kill_process(Pid::from_child(child), Signal::TERM).ok();
        child.wait().ok();
    }
}
