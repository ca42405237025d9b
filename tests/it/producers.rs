//! Do the producers of the README and of `examples/producers` work as they stand there?

use std::path::Path;
use std::process::{Output, Stdio};

use tokio::process::Command;

use crate::support::{Broker, Scene, Worker, models, root, within};

/// The first fenced block of the README whose opening line is exactly this.
const FENCE: &str = "```python producer";

/// A broker's address where the names of the contract are free, and a worker that serves `digits` there.
struct Desk {
    uri: String,
    worker: Worker,
}

impl Desk {
    /// In a virtual host of its own, since producers use the default prefix.
    async fn new() -> Self {
        let broker = Broker::shared();
        let scene = Scene::new();
        let host = scene.prefix.clone();
        let (user, _) = broker
            .uri()
            .split("://")
            .nth(1)
            .and_then(|rest| rest.split_once(':'))
            .expect("a URI with a user");
        broker.ctl(&["add_vhost", &host]);
        broker.ctl(&["set_permissions", "-p", &host, user, ".*", ".*", ".*"]);
        let uri = broker
            .uri()
            .rsplit_once('/')
            .map(|(server, _)| format!("{server}/{host}"))
            .expect("a URI with a host");
        let worker = scene
            .worker("digits")
            .repository(&models())
            .env("INFERQ_BROKER__URI", &uri);
        let worker = worker.without_env("INFERQ_TOPOLOGY__PREFIX").start().await;
        Self { uri, worker }
    }

    async fn run(&self, mut program: Command) -> Output {
        let name = format!("{:?}", program.as_std());
        program
            .current_dir(root())
            .env("AMQP_URI", &self.uri)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        within(&name, program.output())
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}; `make setup` puts it there"))
    }

    /// Runs a program with the images of `digits`, and checks that their digits are recognised.
    async fn recognises(self, mut program: Command) {
        let test = root().join("models/digits/test");
        program.args([test.join("images.npy"), test.join("labels.npy")]);

        let output = self.run(program).await;
        self.worker.drain().await;

        let (said, faults) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{}\n{said}\n{faults}", output.status);
        assert_eq!(said.trim(), RECOGNISED, "{faults}");
    }
}

/// The accuracy that `models/README.md` states, in images.
const RECOGNISED: &str = "355 of 360 digits recognised";

#[tokio::test]
async fn the_python_producer_of_the_readme_gets_its_answer() {
    let desk = Desk::new().await;
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let mut program = python();
    program.args(["-c", &snippet(&readme)]);

    let output = desk.run(program).await;
    let metrics = desk.worker.metrics().await;
    desk.worker.drain().await;

    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    assert!(!stdout.trim().is_empty(), "it shows nothing\n{stderr}");
    assert!(
        metrics.sum("inferq_jobs_total").is_some_and(|jobs| jobs >= 1.0),
        "no job reached the worker"
    );
}

#[tokio::test]
async fn the_producer_on_pika_gets_its_answers() {
    Desk::new()
        .await
        .recognises(example(python(), "pika_producer.py"))
        .await;
}

#[tokio::test]
async fn the_producer_on_aio_pika_gets_its_answers() {
    Desk::new()
        .await
        .recognises(example(python(), "aio_pika_producer.py"))
        .await;
}

#[tokio::test]
async fn a_body_that_tritons_client_builds_is_answered_with_one_that_it_reads() {
    Desk::new()
        .await
        .recognises(example(python(), "triton_producer.py"))
        .await;
}

#[tokio::test]
async fn the_producer_on_amqplib_gets_its_answers() {
    let mut node = Command::new("node");
    node.env("NODE_PATH", root().join(".deps/node/node_modules"));
    Desk::new().await.recognises(example(node, "producer.js")).await;
}

#[tokio::test]
async fn the_example_of_the_client_library_gets_its_answers() {
    let desk = Desk::new().await;
    // Beside the binary; cargo builds both for a test run.
    let program = Path::new(env!("CARGO_BIN_EXE_inferq")).with_file_name("examples/client");
    let mut program = Command::new(program);
    program.arg(&desk.uri);

    desk.recognises(program).await;
}

fn example(mut interpreter: Command, name: &str) -> Command {
    interpreter.arg(root().join("examples/producers").join(name));
    interpreter
}

fn python() -> Command {
    Command::new(root().join(".deps/python/bin/python"))
}

fn snippet(readme: &str) -> String {
    let mut lines = readme
        .lines()
        .skip_while(|line| line.trim_end() != FENCE)
        .skip(1)
        .peekable();
    assert!(lines.peek().is_some(), "README.md has no block {FENCE}");
    lines
        .take_while(|line| line.trim_end() != "```")
        .collect::<Vec<_>>()
        .join("\n")
}
