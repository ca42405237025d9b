//! What does a single call of `inferq::client` take, from before it to its answer?
//!
//!     client_calls URI PREFIX MODEL SECONDS RATE SEED current|multi
//!
//! One call at a time, at the times of a Poisson process of RATE, as `load open` sends its jobs; a call that is due while
//! another is under way waits for it, and its time begins when it is made. The queue PREFIX.MODEL must be there, and its
//! consumer answer with a result of the contract; the front door is made here. `current` and `multi` say how many threads
//! tokio has. Prints {"calls", "p50_ms", "mean_ms", "p99_ms", "cpu_us"}: the last is all CPU time of this process a call.

use std::time::Duration;

use anyhow::{Context as _, bail};
use inferq::client::{Client, Options};
use inferq::config::Config;
use inferq::wire::tensor::Tensor;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// As wide as the rows of `load`.
const COLUMNS: usize = 1_000;

fn main() -> anyhow::Result<()> {
    // `cargo bench` adds a flag for harnesses, which this has none of.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let [uri, prefix, model, seconds, rate, seed, threads] = arguments.as_slice() else {
        bail!("usage: client_calls URI PREFIX MODEL SECONDS RATE SEED current|multi");
    };
    let calls = Calls {
        uri,
        prefix,
        model,
        lasts: Duration::from_secs_f64(seconds.parse()?),
        rate: rate.parse()?,
        seed: seed.parse()?,
    };
    let mut builder = match threads.as_str() {
        "current" => tokio::runtime::Builder::new_current_thread(),
        "multi" => tokio::runtime::Builder::new_multi_thread(),
        _ => bail!("{threads} is neither current nor multi"),
    };
    builder.enable_all().build()?.block_on(calls.make())
}

struct Calls<'a> {
    uri: &'a str,
    prefix: &'a str,
    model: &'a str,
    lasts: Duration,
    rate: f64,
    seed: u64,
}

impl Calls<'_> {
    async fn make(&self) -> anyhow::Result<()> {
        self.make_front_door().await.context("the front door cannot be made")?;
        let config = Config::from_overrides(&[("broker.uri", self.uri.to_owned())])?;
        let options = Options {
            prefix: self.prefix.to_owned(),
            ..Options::default()
        };
        let client = Client::open(&config.broker, options).await?;
        let row = Tensor::fp32("input", &[1, COLUMNS], &[0.5; COLUMNS]);
        client.predict(self.model, vec![row.clone()]).await?;
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut millis = Vec::new();
        let cpu = cpu_seconds();
        let began = Instant::now();
        let mut due = began;
        loop {
            due += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / self.rate);
            if due > began + self.lasts {
                break;
            }
            tokio::time::sleep_until(due).await;
            let sent = Instant::now();
            client.predict(self.model, vec![row.clone()]).await?;
            millis.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        let cpu_us = (cpu_seconds() - cpu) * 1e6 / millis.len().max(1) as f64;
        client.close().await;
        print(&mut millis, cpu_us);
        Ok(())
    }

    async fn make_front_door(&self) -> Result<(), lapin::Error> {
        let connection = Connection::connect(self.uri, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let durable = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let exchange = self.prefix;
        channel
            .exchange_declare(exchange.into(), ExchangeKind::Direct, durable, FieldTable::default())
            .await?;
        let queue = format!("{exchange}.{}", self.model);
        let bind = QueueBindOptions::default();
        channel
            .queue_bind(
                queue.into(),
                exchange.into(),
                self.model.into(),
                bind,
                FieldTable::default(),
            )
            .await?;
        connection.close(200, "done".into()).await
    }
}

/// Of all threads of this process.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn print(millis: &mut [f64], cpu_us: f64) {
    millis.sort_by(f64::total_cmp);
    let quantile = |share: f64| {
        millis
            .get((share * millis.len().saturating_sub(1) as f64) as usize)
            .copied()
            .unwrap_or(0.0)
    };
    let mean = millis.iter().sum::<f64>() / millis.len().max(1) as f64;
    println!(
        r#"{{"calls": {}, "p50_ms": {:.4}, "mean_ms": {mean:.4}, "p99_ms": {:.4}, "cpu_us": {cpu_us:.2}}}"#,
        millis.len(),
        quantile(0.5),
        quantile(0.99)
    );
}
