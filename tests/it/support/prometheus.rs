//! A real Prometheus, from the distribution's package, on a free port and with short intervals.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{eventually, sockets, within};

const EAGER: &str = "global: { scrape_interval: 2s, scrape_timeout: 2s, evaluation_interval: 2s }";

/// A running Prometheus. Dropped, it is killed.
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

/// A series, and its value at the moment.
#[derive(Debug, Deserialize)]
pub struct Series {
    pub metric: std::collections::BTreeMap<String, String>,
    value: (f64, String),
}

impl Series {
    pub fn value(&self) -> f64 {
        self.value.1.parse().unwrap_or(f64::NAN)
    }
}

impl Prometheus {
    /// With this configuration, and `rules` in the file `rules.yaml` beside it; all of it every other second.
    pub async fn start(configuration: &str, rules: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("a writable folder");
        };
        file("rules.yaml", rules);
        file("prometheus.yaml", &format!("{EAGER}\n{configuration}"));
        let child = spawn(folder.path());
        let pid = child.id().cast_signed();
        let address = eventually("Prometheus to listen", || async { sockets::listening(pid) }).await;
        let prometheus = Self {
            child,
            address,
            _folder: folder,
        };
        eventually("Prometheus to be ready", || async {
            (prometheus.get("/-/ready").await?.0 == 200).then_some(())
        })
        .await;
        prometheus
    }

    /// What an expression gives now.
    pub async fn query(&self, expression: &str) -> Vec<Series> {
        let data = self.api(&format!("query?query={}", escaped(expression))).await;
        serde_json::from_value(data["result"].clone()).unwrap_or_else(|error| panic!("{expression}: {error}: {data}"))
    }

    /// The one figure that an expression gives now.
    pub async fn figure(&self, expression: &str) -> Option<f64> {
        self.query(expression).await.first().map(Series::value)
    }

    /// What `/api/v1/PATH` answers.
    pub async fn api(&self, path: &str) -> Value {
        let path = format!("/api/v1/{path}");
        let (_, body) = self.get(&path).await.expect("Prometheus answers");
        let answer: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"));
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].clone()
    }

    async fn get(&self, path: &str) -> Option<(u16, String)> {
        within("an answer of Prometheus", get(self.address, path)).await.ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn spawn(folder: &Path) -> Child {
    let argument = |name: &str, path: &str| format!("--{name}={}", folder.join(path).display());
    Command::new("prometheus")
        .arg(argument("config.file", "prometheus.yaml"))
        .arg(argument("storage.tsdb.path", "data"))
        .args(["--web.listen-address=127.0.0.1:0", "--log.level=warn"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("`make setup` installs prometheus")
}

/// As a parameter of a URL.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// HTTP 1.0, so that the answer comes in one piece.
async fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok((status, body.to_owned()))
}
