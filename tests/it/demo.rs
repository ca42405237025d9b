//! Does the demo show what it promises, and leave nothing behind?

use std::process::{Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use crate::support::{eventually, root, within};

/// `scripts/demo` with the binaries of this test run, in a temporary folder by which its processes are known.
fn demo(folder: &tempfile::TempDir) -> Command {
    let binaries = std::path::Path::new(env!("CARGO_BIN_EXE_inferq"))
        .parent()
        .expect("a folder");
    let example = binaries.join("examples/digits");
    assert!(
        example.exists(),
        "run `cargo test`, or `cargo build --example digits` before `cargo test --test it`"
    );
    // Started in the background of a script, these tests ignore SIGINT, and so would a shell that inherits that.
    let mut command = Command::new("env");
    command
        .arg("--default-signal=INT")
        .arg(root().join("scripts/demo"))
        .env("INFERQ_DEMO_BINARIES", binaries)
        .env("INFERQ_DEMO_JOBS", "500")
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Processes whose environment or command line names the folder.
fn processes(folder: &tempfile::TempDir) -> Vec<i32> {
    let needle = folder.path().to_string_lossy().into_owned();
    let names = |pid: i32| {
        ["environ", "cmdline"]
            .iter()
            .filter_map(|file| std::fs::read(format!("/proc/{pid}/{file}")).ok())
            .any(|content| String::from_utf8_lossy(&content).contains(&needle))
    };
    let entries = std::fs::read_dir("/proc").expect("Linux");
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| names(*pid))
        .collect()
}

fn is_empty(folder: &tempfile::TempDir) -> bool {
    std::fs::read_dir(folder.path()).expect("a folder").next().is_none()
}

/// In `/tmp`, as the broker wants it.
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("inferq-demo-")
        .tempdir_in("/tmp")
        .expect("a temporary folder")
}

/// A broker that was interrupted itself is cleared away by its janitor, a moment after the demo has ended.
async fn nothing_is_left(folder: &tempfile::TempDir) {
    eventually("nothing to be left", || async {
        (processes(folder).is_empty() && is_empty(folder)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_demo_shows_accuracy_rates_and_both_workers_and_leaves_nothing() {
    let folder = folder();

    let output: Output = within("the demo", demo(&folder).output())
        .await
        .expect("the demo starts");

    let shown = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}{said}");
    let line = |start: &str| shown.lines().find(|line| line.starts_with(start)).unwrap_or_default();
    let accuracy: f64 = line("accuracy")
        .split_whitespace()
        .nth(1)
        .unwrap_or("0")
        .parse()
        .unwrap_or(0.0);
    assert!(accuracy >= 0.97, "{shown}");
    assert!(line("256 at a time").contains("500 jobs at"), "{shown}");
    assert!(line("batches").contains("on average"), "{shown}");
    let jobs = line("shared")
        .split_whitespace()
        .filter_map(|word| word.parse::<u32>().ok());
    assert_eq!(jobs.sum::<u32>(), 860, "{shown}");
    nothing_is_left(&folder).await;
}

#[tokio::test]
async fn an_interrupted_demo_leaves_nothing() {
    let folder = folder();
    let endless = demo(&folder)
        .env("INFERQ_DEMO_JOBS", "1000000000")
        .process_group(0)
        .spawn();
    let child = endless.expect("the demo starts");
    eventually("the demo to have workers", || async {
        (processes(&folder).len() > 4).then_some(())
    })
    .await;

    // As a terminal does on Ctrl-C: to the whole group.
    let group = child
        .id()
        .and_then(|pid| Pid::from_raw(pid.cast_signed()))
        .expect("it runs");
    rustix::process::kill_process_group(group, Signal::INT).expect("it runs");
    let output = within("the demo to end", child.wait_with_output())
        .await
        .expect("our child");

    assert!(!output.status.success());
    nothing_is_left(&folder).await;
}

#[tokio::test]
async fn a_demo_that_is_terminated_while_its_broker_starts_leaves_nothing() {
    let folder = folder();
    let mut child = demo(&folder).spawn().expect("the demo starts");
    eventually("the broker to run", || async {
        let running = processes(&folder);
        let is_broker = |pid: &i32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains("beam")
        };
        running.iter().any(is_broker).then_some(())
    })
    .await;

    kill_process(
        child
            .id()
            .and_then(|pid| Pid::from_raw(pid.cast_signed()))
            .expect("it runs"),
        Signal::TERM,
    )
    .expect("it runs");
    within("the demo to end", child.wait()).await.expect("our child");

    nothing_is_left(&folder).await;
}
