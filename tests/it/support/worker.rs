//! Workers as child processes: their environment, their log, their HTTP endpoints, their end.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::metrics::Metrics;
use super::{eventually, root, sockets, within};

/// A worker that is about to start.
pub struct Setup {
    command: Command,
    log: Log,
}

/// What becomes of a worker's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// Read by the test.
    Read,
    /// Into a pipe that nobody reads.
    Unread,
    /// Onto a disk that is full.
    FullDisk,
}

impl Setup {
    /// `inferq worker` with nothing but what a fresh shell has: no `INFERQ_` variable of the test run leaks in.
    pub fn new() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_inferq"));
        #[expect(clippy::disallowed_methods, reason = "read to keep it from the child")]
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("INFERQ_") {
                command.env_remove(name);
            }
        }
        command
            .arg("worker")
            .current_dir(root())
            .env("INFERQ_TELEMETRY__LISTEN", "127.0.0.1:0")
            .env("INFERQ_TELEMETRY__LOG_FORMAT", "json");
        Self {
            command,
            log: Log::Read,
        }
    }

    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub fn log(mut self, log: Log) -> Self {
        self.log = log;
        self
    }

    pub fn repository(self, folder: &Path) -> Self {
        self.env("INFERQ_MODELS__REPOSITORY", folder)
    }

    /// Starts the worker and waits until it says that it is ready.
    pub async fn start(self) -> Worker {
        let worker = self.spawn();
        worker.ready().await;
        worker
    }

    /// Starts the worker without waiting for anything.
    pub fn spawn(mut self) -> Worker {
        let stderr = match self.log {
            Log::Read | Log::Unread => Stdio::piped(),
            Log::FullDisk => File::create("/dev/full").expect("Linux has a full disk").into(),
        };
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the inferq binary starts");
        let pid = Pid::from_child(&child);
        let (sender, state) = watch::channel(State::default());
        let (read, unread) = match self.log {
            Log::Read => (child.stderr.take(), None),
            Log::Unread | Log::FullDisk => (None, child.stderr.take()),
        };
        let watcher = std::thread::spawn(move || {
            if let Some(stderr) = read {
                note(BufReader::new(stderr), &sender);
            }
            let exit = child.wait().expect("nobody else waits for this child");
            // Open until now, so that the pipe is full and not broken.
            drop(unread);
            sender.send_modify(|state| state.exit = Some(exit));
        });
        Worker {
            pid,
            state,
            watcher: Some(watcher),
        }
    }
}

/// A worker process. Dropped, it is killed; if the test failed, its log is printed.
pub struct Worker {
    pid: Pid,
    state: watch::Receiver<State>,
    watcher: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    exit: Option<ExitStatus>,
}

fn note(stderr: impl BufRead, state: &watch::Sender<State>) {
    for line in stderr.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        state.send_modify(|state| state.lines.push(line));
    }
}

impl Worker {
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits for the log line `ready`.
    pub async fn ready(&self) {
        let mut state = self.state.clone();
        let ready = state.wait_for(|state| state.exit.is_some() || state.lines.iter().any(|line| says_ready(line)));
        let exit = within("the worker to be ready", ready)
            .await
            .expect("the watcher runs")
            .exit;
        assert!(
            exit.is_none(),
            "the worker ended instead of getting ready: {exit:?}\n{}",
            self.log()
        );
    }

    /// Whether it has said so by now.
    pub fn is_ready(&self) -> bool {
        self.state.borrow().lines.iter().any(|line| says_ready(line))
    }

    /// Waits for a log line in which `find` finds something.
    pub async fn logged<T>(&self, event: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let mut state = self.state.clone();
        let seen = |state: &State| state.lines.iter().find_map(|line| find(line));
        let hit = within(
            event,
            state.wait_for(|state| state.exit.is_some() || seen(state).is_some()),
        )
        .await;
        let found = hit.ok().and_then(|state| seen(&state));
        found.unwrap_or_else(|| panic!("the worker ended before {event}\n{}", self.log()))
    }

    /// Everything the worker has written so far.
    pub fn log(&self) -> String {
        self.state.borrow().lines.join("\n")
    }

    pub fn sigterm(&self) {
        self.signal(Signal::TERM);
    }

    pub fn sigkill(&self) {
        self.signal(Signal::KILL);
    }

    pub fn sigint(&self) {
        self.signal(Signal::INT);
    }

    /// Holds the worker still for as long as `meanwhile` takes, so that it does not outrun slow commands such as `rabbitmqctl`.
    pub fn held_still<T>(&self, meanwhile: impl FnOnce() -> T) -> T {
        self.hold();
        let done = meanwhile();
        self.go_on();
        done
    }

    /// Holds the worker still until [`Worker::go_on`].
    pub fn hold(&self) {
        self.signal(Signal::STOP);
    }

    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if self.state.borrow().exit.is_none() {
            kill_process(self.pid, signal).ok();
        }
    }

    /// Waits for the end of the process.
    pub async fn exit(&self) -> ExitStatus {
        let mut state = self.state.clone();
        let ended = within("the worker to end", state.wait_for(|state| state.exit.is_some())).await;
        ended.expect("the watcher runs").exit.expect("just waited for")
    }

    /// The end of the process, if it has come.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.state.borrow().exit
    }

    /// As [`Worker::exit`], for as long as it takes.
    pub async fn end(&self) -> ExitStatus {
        let mut state = self.state.clone();
        let ended = state.wait_for(|state| state.exit.is_some()).await;
        ended.expect("the watcher runs").exit.expect("just waited for")
    }

    /// Asks for a drain and checks that it ended well.
    pub async fn drain(&self) {
        self.sigterm();
        let exit = self.exit().await;
        assert_eq!(exit.code(), Some(0), "a drained worker ends with 0\n{}", self.log());
    }

    /// Where metrics and health are served: known before the worker is ready, and without reading its log.
    pub async fn telemetry(&self) -> SocketAddr {
        eventually("the worker to listen", || async { sockets::listening(self.pid()) }).await
    }

    /// Status code and body of one of the worker's pages.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let address = self.telemetry().await;
        within("an HTTP answer", get(address, path))
            .await
            .unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    pub async fn metrics(&self) -> Metrics {
        let (status, text) = self.get("/metrics").await;
        assert_eq!(status, 200, "{text}");
        Metrics::new(text)
    }

    /// Waits until `/readyz` is not ready and gives a reason that contains `reason`.
    pub async fn unready_because(&self, reason: &str) -> String {
        eventually(&format!("/readyz to say {reason:?}"), || async {
            let (status, body) = self.get("/readyz").await;
            (status == 503 && body.to_lowercase().contains(reason)).then_some(body)
        })
        .await
    }

    /// Waits until `/readyz` is ready.
    pub async fn ready_again(&self) {
        eventually("/readyz to be ready", || async {
            (self.get("/readyz").await.0 == 200).then_some(())
        })
        .await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.sigkill();
        if let Some(watcher) = self.watcher.take() {
            watcher.join().ok();
        }
        if std::thread::panicking() {
            eprintln!("--- log of worker {} ---\n{}\n---", self.pid(), self.log());
        }
    }
}

/// How a worker ended that was not meant to serve: its exit code and all that it wrote.
pub async fn ending(setup: Setup) -> (i32, String) {
    let worker = setup.spawn();
    let exit = worker.exit().await;
    let code = exit
        .code()
        .unwrap_or_else(|| panic!("the worker died of signal {:?}", exit.signal()));
    (code, worker.log())
}

fn says_ready(line: &str) -> bool {
    field(line, "message").is_some_and(|message| message == "ready")
}

/// A field of a JSON log line, whether fields stand at the top or under `fields`.
fn field(line: &str, name: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    let value = line.get(name).or_else(|| line.get("fields")?.get(name))?;
    value.as_str().map(str::to_owned)
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok((status, body.to_owned()))
}
