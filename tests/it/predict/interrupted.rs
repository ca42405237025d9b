//! Runs that end before the end, and runs that go on where they have ended.

use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Child;

use super::{Desk, rows, send, stderr, write_rows};
use crate::support::{Broker, Scene, eventually, within};

/// Small jobs, one after the other: long enough for whatever is to come between them.
const SLOWLY: &str = "--rows-per-job 1 --in-flight 1";
const ROWS: u16 = 20_000;

/// Starts a run and waits until its first answers are noted.
async fn begun(desk: &Desk, line: &str, output: &str) -> Child {
    let child = desk
        .command(&format!("{line} --output {output}"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("the inferq binary starts");
    eventually("the first note", || async { noted(desk, output).map(drop) }).await;
    child
}

fn noted(desk: &Desk, output: &str) -> Option<u64> {
    let note = std::fs::read(desk.path(&format!("{output}.partial.json"))).ok()?;
    let note: Value = serde_json::from_slice(&note).expect("a note is replaced as a whole");
    note["rows"].as_u64()
}

async fn ended(child: Child) -> (Option<i32>, String) {
    let output = within("predict to end", child.wait_with_output())
        .await
        .expect("our child");
    (output.status.code(), stderr(&output))
}

#[tokio::test]
async fn an_interrupted_run_is_gone_on_with_as_if_nothing_had_been() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;
    write_rows(&desk.path("x.npy"), &rows(ROWS));
    let line = "--model affine --input x.npy";

    for (output, signal) in [
        ("y.npy", Signal::INT),
        ("y.csv", Signal::KILL),
        ("y.jsonl", Signal::TERM),
    ] {
        desk.succeeds(&format!("{line} --output whole --format {}", &output[2..]))
            .await;
        let child = begun(&desk, &format!("{line} {SLOWLY}"), output).await;
        let before = desk.names();
        send(&child, signal);
        let (code, said) = ended(child).await;
        let after = desk.names();
        let done = noted(&desk, output).expect("a note");
        let again = desk
            .succeeds(&format!("{line} --output {output} --rows-per-job 1 --resume"))
            .await;

        assert!(done > 0 && done < u64::from(ROWS), "{done}");
        assert!(
            !before.contains(&output.to_owned()) && before == after,
            "{before:?}, {after:?}"
        );
        if signal != Signal::KILL {
            assert_eq!(code, Some(1), "{said}");
            let sentence = format!("ended after {done} rows, which {output}.partial keeps for --resume: stopped");
            assert!(said.contains(&sentence), "{said}");
        }
        assert!(again.contains(&format!("goes on after {done} rows")), "{again}");
        assert!(again.contains("20000 rows in"), "{again}");
        let whole = std::fs::read(desk.path("whole")).expect("a file");
        assert!(
            std::fs::read(desk.path(output)).expect("a file") == whole,
            "{output} is another"
        );
        assert_eq!(desk.names(), [&["whole", "x.npy"], &[output][..]].concat());
        std::fs::remove_file(desk.path(output)).expect("a file");
    }
}

#[tokio::test]
async fn another_input_or_other_settings_are_not_gone_on_with_and_without_the_flag_it_begins_anew() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;
    write_rows(&desk.path("x.npy"), &rows(ROWS));
    let line = "--model affine --input x.npy";
    let child = begun(&desk, &format!("{line} {SLOWLY}"), "y.csv").await;
    desk.refuses(
        &format!("{line} --output y.csv"),
        &["another run is writing", "y.csv.partial"],
    )
    .await;
    send(&child, Signal::INT);
    ended(child).await;

    for (line, words) in [
        (
            "--model hungry --input x.npy",
            &["another --model: affine, and now it is hungry"][..],
        ),
        (
            "--model affine --input x.npy --version 1",
            &["another --version: unsaid, and now it is 1"],
        ),
        (
            "--model affine --input x.npy --columns 1-4",
            &["another --columns: unsaid, and now it is 1-4"],
        ),
        (
            "--model affine --input x.npy --format jsonl",
            &["another --format: csv, and now it is jsonl"],
        ),
        (
            "--model affine --input x.npy",
            &["another --rows-per-job: 1, and now it is unsaid"],
        ),
    ] {
        desk.refuses(&format!("{line} --output y.csv --resume"), words).await;
    }
    let file = std::fs::File::options()
        .append(true)
        .open(desk.path("x.npy"))
        .expect("a file");
    file.set_modified(std::time::UNIX_EPOCH).expect("a time");
    desk.refuses(
        &format!("{line} --output y.csv --resume"),
        &["time of the last change of the input"],
    )
    .await;
    write_rows(&desk.path("x.npy"), &rows(ROWS - 1));
    desk.refuses(
        &format!("{line} --output y.csv --resume"),
        &["size of the input", "bytes"],
    )
    .await;
    let anew = desk.succeeds(&format!("{line} --output y.csv")).await;

    assert!(anew.contains("19999 rows in 79 jobs"), "{anew}");
    assert_eq!(desk.read("y.csv").lines().count(), 20_000);
    assert_eq!(desk.names(), ["x.npy", "y.csv"]);
    // Nothing is left to go on with, so that it begins at the first row.
    let again = desk.succeeds(&format!("{line} --output y.csv --resume")).await;
    assert!(again.contains("19999 rows in 79 jobs"), "{again}");
}

/// `hungry` answers a small number with itself; 2^50 asks for memory that cannot be had.
#[tokio::test]
async fn rows_that_failed_before_the_interrupt_are_failures_of_the_whole() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("hungry").start().await;
    let rest: String = (0..5_000).map(|row| format!("{row},1\n")).collect();
    desk.write("x.csv", &format!("id,rows\nfirst,1\nbad,1125899906842624\n{rest}"));
    let line = "--model hungry --input x.csv --datatype INT64 --key id";

    let child = begun(&desk, &format!("{line} {SLOWLY} --retries 0"), "y.csv").await;
    eventually("the failed row to be noted", || async {
        noted(&desk, "y.csv").filter(|rows| *rows > 2).map(drop)
    })
    .await;
    send(&child, Signal::KILL);
    ended(child).await;
    let output = desk
        .predict(&format!("{line} --output y.csv --rows-per-job 1 --resume"))
        .await;

    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("5002 rows in") && said.contains("1 row failed"), "{said}");
    assert!(
        said.contains("listed in") && said.contains("y.csv.failures.jsonl"),
        "{said}"
    );
    let failures = desk.read("y.csv.failures.jsonl");
    assert!(
        failures.starts_with("{\"first_row\":1,\"rows\":1,\"keys\":[{\"id\":\"bad\"}],\"reason\":\"INTERNAL"),
        "{failures}"
    );
    assert_eq!(failures.lines().count(), 1);
    let text = desk.read("y.csv");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..4], ["id,y", "first,1.0", "bad,", "0,1.0"]);
    assert_eq!((lines.len(), *lines.last().expect("lines")), (5_003, "4999,1.0"));
    assert_eq!(desk.names(), ["x.csv", "y.csv", "y.csv.failures.jsonl"]);
}

#[tokio::test]
async fn a_broker_that_goes_for_good_ends_the_run_and_what_is_there_is_kept() {
    let mut broker = Broker::start();
    let desk = Desk::at(Scene::at(broker.uri()));
    let _worker = desk.scene.worker("affine").start().await;
    write_rows(&desk.path("x.npy"), &rows(ROWS));

    let child = begun(
        &desk,
        &format!("--model affine --input x.npy {SLOWLY} --timeout-ms 2000"),
        "y.npy",
    )
    .await;
    broker.kill();
    let (code, said) = ended(child).await;

    assert_eq!(code, Some(1), "{said}");
    let done = noted(&desk, "y.npy").expect("a note");
    assert!(
        said.contains(&format!("ended after {done} rows")) && said.contains("lost the broker"),
        "{said}"
    );
    assert_eq!(desk.names(), ["x.npy", "y.npy.partial", "y.npy.partial.json"]);
}

#[tokio::test]
async fn a_broker_that_comes_back_costs_no_row() {
    let mut broker = Broker::durable();
    let desk = Desk::at(Scene::at(broker.uri()));
    let _worker = desk.scene.worker("affine").start().await;
    write_rows(&desk.path("x.npy"), &rows(3_000));

    let child = begun(
        &desk,
        "--model affine --input x.npy --rows-per-job 1 --in-flight 8",
        "y.npy",
    )
    .await;
    broker.stop();
    broker.start_again();
    let (code, said) = ended(child).await;

    assert_eq!(code, Some(0), "{said}");
    let answers: ndarray::Array2<f32> = ndarray_npy::read_npy(desk.path("y.npy")).expect("an array");
    assert_eq!(answers, rows(3_000) * 3.0 - 1.0);
}

/// Python's `pty` stands in for a terminal.
#[tokio::test]
async fn a_terminal_sees_how_far_it_is_and_nobody_else_does() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;
    write_rows(&desk.path("x.npy"), &rows(3_000));
    let line = "--model affine --input x.npy --output y.npy --rows-per-job 1 --in-flight 4";

    let mut command = desk.command(line);
    let program = command.as_std().get_program().to_owned();
    let arguments: Vec<_> = command.as_std().get_args().map(ToOwned::to_owned).collect();
    let terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let mut shown = tokio::process::Command::new("python3");
    shown.args(["-c", terminal]).arg(program).args(arguments);
    shown
        .current_dir(desk.folder.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    for (name, value) in command.as_std().get_envs() {
        shown.env(name, value.expect("a value"));
    }
    let shown = within("predict to end", shown.output()).await.expect("python3");
    let quiet = within("predict to end", command.output())
        .await
        .expect("the inferq binary starts");

    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    for part in ["/3,000 rows", "/s", " left", "3000 rows in 3000 jobs"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert_eq!(stderr(&quiet).lines().count(), 1, "{}", stderr(&quiet));
}
