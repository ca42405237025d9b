//! Sends the test set of `models/digits` as jobs and shows what comes back: the producer of `scripts/demo`, and an
//! example of the client.
//!
//! ```text
//! cargo run --release --example digits -- [JOBS]
//! ```
//! Workers must serve `digits` on the broker that `INFERQ_BROKER__URI` names.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::stream::{self, StreamExt};
use inferq::client::latency::Latencies;
use inferq::client::{Client, Job, Options};
use inferq::config::Config;
use inferq::wire::tensor::Tensor;
use ndarray::{Array1, Array2};
use tokio::time::Instant;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let jobs = match std::env::args().nth(1) {
        Some(jobs) => jobs.parse().context("the first argument is the number of jobs")?,
        None => 20_000,
    };
    let images: Array2<f32> = ndarray_npy::read_npy("models/digits/test/images.npy")?;
    let labels: Array1<i64> = ndarray_npy::read_npy("models/digits/test/labels.npy")?;
    let config = Config::load(None, &[])?.config;
    let options = Options {
        prefix: config.topology.prefix.clone(),
        answer_timeout: ANSWER_TIMEOUT,
        ..Options::default()
    };
    let client = Client::open(&config.broker, options).await?;

    // Each image once, one after the other: what is right, and how long an idle worker takes.
    let alone = send(&client, &images, images.nrows(), 1).await?;
    show_digits(&images, &labels, &alone.guesses);
    let right = alone
        .guesses
        .iter()
        .zip(&labels)
        .filter(|(guess, label)| guess.digit == **label);
    let accuracy = right.count() as f64 / labels.len() as f64;
    println!(
        "accuracy           {accuracy:.4} on {} images it was not trained on",
        labels.len()
    );
    println!("one job at a time  {}", alone.times());

    // All images again and again, many on the way at once: how the work is batched.
    let started = Instant::now();
    let many = send(&client, &images, jobs, IN_FLIGHT).await?;
    let rate = jobs as f64 / started.elapsed().as_secs_f64();
    println!(
        "{IN_FLIGHT} at a time      {}, {jobs} jobs at {rate:.0} jobs/s",
        many.times()
    );
    println!("batches            {}", many.batches());
    client.close().await;
    ensure!(
        accuracy >= ACCURACY_MIN,
        "the accuracy is {accuracy:.4}, and {ACCURACY_MIN} is the least that is right"
    );
    Ok(())
}

/// What the model takes an image for.
struct Guess {
    digit: i64,
    probability: f32,
}

#[derive(Default)]
struct Outcome {
    guesses: Vec<Guess>,
    latencies: Latencies,
    batch_rows: Vec<u64>,
}

/// Sends `jobs` jobs of one image each and gathers the answers, which come in the order of the jobs.
async fn send(client: &Client, images: &Array2<f32>, jobs: usize, in_flight: usize) -> anyhow::Result<Outcome> {
    let rows = images.rows().into_iter().cycle().take(jobs);
    let calls = stream::iter(rows).map(|row| {
        let pixels = row.to_vec();
        client.call(Job {
            model: "digits".to_owned(),
            inputs: vec![Tensor::fp32("input", &[1, pixels.len()], &pixels)],
            timing: true,
            ..Job::default()
        })
    });
    let mut answers = calls.buffered(in_flight);
    let mut outcome = Outcome::default();
    while let Some(answer) = answers.next().await {
        let answer = answer?;
        outcome.guesses.push(guess(&answer.outputs[0]));
        outcome.latencies.record(answer.latency);
        outcome.batch_rows.extend(answer.batch_rows);
    }
    Ok(outcome)
}

/// The output holds a probability for each digit.
fn guess(output: &Tensor) -> Guess {
    let (bytes, _) = output.data.as_chunks();
    let probabilities = bytes.iter().map(|&bytes| f32::from_le_bytes(bytes));
    let best = (0..)
        .zip(probabilities)
        .max_by(|(_, one), (_, other)| one.total_cmp(other));
    let (digit, probability) = best.unwrap_or((-1, 0.0));
    Guess { digit, probability }
}

impl Outcome {
    fn times(&self) -> String {
        let millis = |share| self.latencies.quantile(share).as_secs_f64() * 1e3;
        format!("{:.1} ms (p50), {:.1} ms (p99)", millis(0.5), millis(0.99))
    }

    fn batches(&self) -> String {
        // A batch of n rows answers n jobs, so each of them stands for one nth of it.
        let batches: f64 = self.batch_rows.iter().map(|&rows| 1.0 / rows as f64).sum();
        let mean = self.batch_rows.len() as f64 / batches;
        let least = self.batch_rows.iter().min().copied().unwrap_or(0);
        let most = self.batch_rows.iter().max().copied().unwrap_or(0);
        format!("{least} to {most} rows, {mean:.1} on average")
    }
}

/// Draws a few digits side by side, and one that the model takes for another, if there is one.
fn show_digits(images: &Array2<f32>, labels: &Array1<i64>, guesses: &[Guess]) {
    let wrong = guesses
        .iter()
        .zip(labels)
        .position(|(guess, label)| guess.digit != *label);
    let shown: Vec<usize> = (0..DRAWN).chain(wrong).collect();
    for line in 0..SIDE {
        let line = shown.iter().map(|&image| {
            let pixels = images.row(image);
            let pixels = pixels.iter().skip(line * SIDE).take(SIDE);
            // A character is twice as high as wide.
            pixels.map(|ink| [shade(*ink); 2].concat()).collect::<String>()
        });
        println!("  {}", line.collect::<Vec<_>>().join("   ").trim_end());
    }
    let captions = shown.iter().map(|&image| {
        let Guess { digit, probability } = guesses[image];
        let verdict = if digit == labels[image] { "right" } else { "WRONG" };
        (
            format!("{digit} at {:.1} %", probability * 100.0),
            format!("{verdict}, it is {}", labels[image]),
        )
    });
    let (said, truth): (Vec<_>, Vec<_>) = captions.unzip();
    for line in [said, truth] {
        let line: String = line.iter().map(|caption| format!("{caption:<19}")).collect();
        println!("  {}", line.trim_end());
    }
    println!();
}

fn shade(ink: f32) -> &'static str {
    const SHADES: [&str; 5] = [" ", "░", "▒", "▓", "█"];
    SHADES[((ink * 5.0) as usize).min(SHADES.len() - 1)]
}

/// An image has 8 x 8 pixels.
const SIDE: usize = 8;
const DRAWN: usize = 4;
const IN_FLIGHT: usize = 256;
const ACCURACY_MIN: f64 = 0.97;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
