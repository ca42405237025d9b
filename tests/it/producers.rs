//! Does the producer in the README work as it stands there?

use std::process::Stdio;

use tokio::process::Command;

use crate::support::{Broker, Scene, models, root, within};

/// The first fenced block of the README whose opening line is exactly this.
const FENCE: &str = "```python producer";

#[tokio::test]
async fn the_python_producer_of_the_readme_gets_its_answer() {
    // A virtual host of its own, so that the names in the README are free: it uses the default prefix.
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

    let program = within("the README's producer", python(&uri)).await;
    let metrics = worker.metrics().await;
    worker.drain().await;

    let (stdout, stderr) = (
        String::from_utf8_lossy(&program.stdout),
        String::from_utf8_lossy(&program.stderr),
    );
    assert!(program.status.success(), "{}\n{stdout}\n{stderr}", program.status);
    assert!(!stdout.trim().is_empty(), "it shows nothing\n{stderr}");
    assert!(
        metrics.sum("inferq_jobs_total").is_some_and(|jobs| jobs >= 1.0),
        "no job reached the worker"
    );
}

async fn python(uri: &str) -> std::process::Output {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let interpreter = root().join(".deps/python/bin/python");
    Command::new(&interpreter)
        .args(["-c", &snippet(&readme)])
        .current_dir(root())
        .env("AMQP_URI", uri)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| panic!("{}: {error}; `make setup` puts it there", interpreter.display()))
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
