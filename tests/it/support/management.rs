//! The management API of a broker, as KEDA and people with `curl` read it.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Broker;

/// One broker's API, asked as its administrator.
pub struct Management {
    address: SocketAddr,
    authorization: String,
}

impl Management {
    /// The API of a broker that was started with the plug-in.
    pub fn of(broker: &Broker) -> Self {
        let (_, rest) = broker.uri().split_once("://").expect("a URI");
        let (credentials, _) = rest.split_once('@').expect("a user and a password");
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], broker.management_port())),
            authorization: format!("Basic {}", BASE64_STANDARD.encode(credentials)),
        }
    }

    /// What the API says of `queue`; nothing if it does not answer, or knows no such queue yet.
    pub async fn queue(&self, queue: &str) -> Option<Value> {
        self.get(&format!("/api/queues/%2f/{queue}")).await
    }

    /// What the API says of the broker as a whole.
    pub async fn overview(&self) -> Option<Value> {
        self.get("/api/overview").await
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let authorization = format!("Authorization: {}\r\n", self.authorization);
        let body = get_text(self.address, path, &authorization).await?;
        serde_json::from_str(&body).ok()
    }
}

/// The body at `path`; nothing if nobody answers, or not with 200.
pub async fn get_text(address: SocketAddr, path: &str, headers: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    // HTTP 1.0, so that the body comes in one piece and ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let found = head.split(' ').nth(1) == Some("200");
    found.then(|| body.to_owned())
}
