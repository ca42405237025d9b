//! Does `inferq predict` answer every row of a file, in order, and say what is wrong otherwise?

mod inputs;
mod interrupted;
mod memory;
mod onnx;
mod relations;
mod tables;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use ndarray::{Array1, Array2};
use ndarray_npy::{read_npy, write_npy};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::support::link::ClosedPort;
use crate::support::scene::as_producer;
use crate::support::{Scene, eventually, within};

/// A folder for files, and a scene to predict in.
struct Desk {
    scene: Scene,
    folder: TempDir,
}

impl Desk {
    fn new() -> Self {
        Self::at(Scene::new())
    }

    fn at(scene: Scene) -> Self {
        Self {
            scene,
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).expect("a writable folder");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("a file that predict wrote")
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).expect("a folder");
        let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let mut names: Vec<_> = entries.map(|entry| name(entry.expect("an entry"))).collect();
        names.sort();
        names
    }

    /// `inferq predict` with the words of `line`; names of files are within the folder.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_inferq"));
        command
            .arg("predict")
            .args(line.split_whitespace())
            .current_dir(self.folder.path())
            .env("INFERQ_BROKER__URI", as_producer(&self.scene.uri))
            .env("INFERQ_TOPOLOGY__PREFIX", &self.scene.prefix)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn predict(&self, line: &str) -> Output {
        within("predict to end", self.command(line).output())
            .await
            .expect("the inferq binary starts")
    }

    async fn succeeds(&self, line: &str) -> String {
        let output = self.predict(line).await;
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    }

    /// Ends with 1 and one line that has all of `words`; no file appears.
    async fn refuses(&self, line: &str, words: &[&str]) {
        let before = self.names();
        let output = self.predict(line).await;
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{line}: {said}");
        let named = said.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(named, "{line}: no line has all of {words:?}:\n{said}");
        assert_eq!(self.names(), before, "{line}");
    }
}

fn send(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    kill_process(pid.expect("it runs"), signal).expect("it runs");
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Rows that are all different, for `affine`, whose version 2 answers 3x - 1 and whose version 1 answers 2x + 1.
fn rows(count: u16) -> Array2<f32> {
    Array2::from_shape_fn((count.into(), 4), |(row, column)| (row * 4 + column) as f32)
}

fn write_rows(path: &Path, rows: &Array2<f32>) {
    write_npy(path, rows).expect("a writable folder");
}

#[tokio::test]
async fn the_rows_of_an_array_are_answered_in_their_order() {
    let desk = Desk::new();
    let _workers = (
        desk.scene.worker("affine").start().await,
        desk.scene.worker("affine").start().await,
    );
    write_rows(&desk.path("x.npy"), &rows(1_001));

    let said = desk
        .succeeds("--model affine --input x.npy --output y.npy --rows-per-job 3 --in-flight 50 --failures failed.jsonl")
        .await;
    desk.succeeds("--model affine --input x.npy --output y1.npy --version 1")
        .await;

    let answers: Array2<f32> = read_npy(desk.path("y.npy")).expect("an array");
    assert_eq!(answers, rows(1_001) * 3.0 - 1.0);
    let answers: Array2<f32> = read_npy(desk.path("y1.npy")).expect("an array");
    assert_eq!(answers, rows(1_001) * 2.0 + 1.0);
    assert!(said.contains("1001 rows in 334 jobs, 0 rows failed"), "{said}");
    assert_eq!(desk.names(), ["x.npy", "y.npy", "y1.npy"]);
}

#[tokio::test]
async fn the_rows_of_a_table_are_answered_as_a_table_an_array_and_json_lines() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;
    desk.write("x.csv", "a,b,c,d\n1,2,3,4\n0.5,-1,0,10\n");
    desk.write("bare.csv", "1,2,3,4\n");

    desk.succeeds("--model affine --input x.csv --output y.csv --input-name x")
        .await;
    desk.succeeds("--model affine --input x.csv --output y.npy --rows-per-job 1")
        .await;
    let lines = desk.predict("--model affine --input x.csv").await;
    let bare = desk
        .predict("--model affine --input bare.csv --no-header --format csv")
        .await;

    assert_eq!(
        desk.read("y.csv"),
        "y_0,y_1,y_2,y_3\n2.0,5.0,8.0,11.0\n0.5,-4.0,-1.0,29.0\n"
    );
    let array: Array2<f32> = read_npy(desk.path("y.npy")).expect("an array");
    assert_eq!(array, ndarray::arr2(&[[2.0, 5.0, 8.0, 11.0], [0.5, -4.0, -1.0, 29.0]]));
    let lines = String::from_utf8(lines.stdout).expect("UTF-8");
    let expected = "{\"row\":0,\"outputs\":{\"y\":[2.0,5.0,8.0,11.0]}}\n\
                    {\"row\":1,\"outputs\":{\"y\":[0.5,-4.0,-1.0,29.0]}}\n";
    assert_eq!(lines, expected);
    let bare = String::from_utf8(bare.stdout).expect("UTF-8");
    assert_eq!(bare, "y_0,y_1,y_2,y_3\n2.0,5.0,8.0,11.0\n");
}

#[tokio::test]
async fn json_lines_hold_all_outputs_and_the_others_the_one_that_is_named() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("sklearn-logreg").start().await;
    let features = ndarray::arr2(&[[5.1_f32, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]);
    write_rows(&desk.path("x.npy"), &features);

    desk.succeeds("--model sklearn-logreg --input x.npy --output y.jsonl")
        .await;
    let lines: Vec<Value> = desk
        .read("y.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let outputs: Vec<&String> = lines[0]["outputs"].as_object().expect("an object").keys().collect();
    assert_eq!(outputs.len(), 2, "{lines:?}");
    let label = outputs.iter().find(|name| lines[0]["outputs"][name.as_str()].is_i64());
    let label = label.expect("a label");
    desk.succeeds(&format!(
        "--model sklearn-logreg --input x.npy --output y.npy --output-name {label}"
    ))
    .await;

    let labels: Array1<i64> = read_npy(desk.path("y.npy")).expect("an array");
    let expected: Vec<i64> = lines
        .iter()
        .map(|line| line["outputs"][label.as_str()].as_i64().expect("a label"))
        .collect();
    assert_eq!(labels.to_vec(), expected);
}

/// `hungry` answers a small number with itself; 2^50 asks for memory that cannot be had.
#[tokio::test]
async fn failed_rows_are_named_keep_their_place_and_do_not_stop_the_others() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("hungry").start().await;
    desk.write("x.csv", "rows\n1125899906842624\n2\n3\n1125899906842624\n5\n");
    let line = "--model hungry --input x.csv --datatype INT64 --rows-per-job 1 --output";

    // At the same time, since each of them waits for its jobs to be given up.
    let [table, array, lines] =
        [" y.csv --failures failed.jsonl", " y.npy", " y.jsonl"].map(|end| format!("{line}{end}"));
    let (table, array, lines) = tokio::join!(desk.predict(&table), desk.predict(&array), desk.predict(&lines));

    for output in [&table, &array, &lines] {
        let said = stderr(output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("5 rows in 5 jobs, 2 rows failed"), "{said}");
        assert!(said.contains("2 of 5 rows have no answer"), "{said}");
        assert!(
            said.contains("row 0: INTERNAL") && said.contains("row 3: INTERNAL"),
            "{said}"
        );
    }
    let failed: Vec<Value> = desk
        .read("failed.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let places: Vec<_> = failed.iter().map(|line| (&line["first_row"], &line["rows"])).collect();
    assert_eq!(places, [(&json!(0), &json!(1)), (&json!(3), &json!(1))]);
    assert!(
        failed[0]["reason"]
            .as_str()
            .is_some_and(|reason| reason.starts_with("INTERNAL")),
        "{failed:?}"
    );
    assert_eq!(desk.read("y.csv"), "y\n\"\"\n2.0\n3.0\n\"\"\n5.0\n");
    let array: Array2<f32> = read_npy(desk.path("y.npy")).expect("an array");
    let numbers: Vec<String> = array.iter().map(ToString::to_string).collect();
    assert_eq!(numbers, ["NaN", "2", "3", "NaN", "5"]);
    let lines = desk.read("y.jsonl");
    let lines: Vec<&str> = lines.lines().collect();
    assert!(lines[3].starts_with("{\"row\":3,\"error\":\"INTERNAL"), "{lines:?}");
    assert_eq!(lines[4], "{\"row\":4,\"outputs\":{\"y\":[5.0]}}");
}

#[tokio::test]
async fn a_model_that_nobody_serves_is_named() {
    let desk = Desk::new();
    write_rows(&desk.path("x.npy"), &rows(300));
    let line = "--model affine --input x.npy --output y.npy";

    desk.refuses(line, &["no exchange", &desk.scene.prefix]).await;
    desk.scene.declare("hungry").await;
    let sentence = ["there is no queue for model `affine`: is a worker serving it?"];
    desk.refuses(line, &sentence).await;
    desk.refuses(&format!("{line} --rows-per-job 1 --in-flight 200"), &sentence)
        .await;
}

#[tokio::test]
async fn a_queue_without_a_worker_is_not_waited_for_for_ever() {
    let desk = Desk::new();
    desk.scene.declare("affine").await;
    write_rows(&desk.path("x.npy"), &rows(3));

    desk.refuses(
        "--model affine --input x.npy --output y.npy --timeout-ms 300",
        &["no answer within 300ms"],
    )
    .await;
}

#[tokio::test]
async fn what_the_model_refuses_is_said_once_in_its_own_words() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;
    write_rows(&desk.path("x.npy"), &Array2::zeros((500, 3)));
    write_rows(&desk.path("good.npy"), &rows(2));

    for (line, words) in [
        (
            "--input x.npy --output y.npy",
            &["INVALID_ARGUMENT", "input `x`", "3]", "4]"][..],
        ),
        (
            "--input good.npy --output y.npy --datatype FP64",
            &["INVALID_ARGUMENT", "FP64", "FP32"],
        ),
        ("--input good.npy --output y.npy --version 9", &["NOT_FOUND", "`9`"]),
        (
            "--input good.npy --output y.npy --input-name q",
            &["INVALID_ARGUMENT", "`q`"],
        ),
        (
            "--input good.npy --output y.npy --output-name q",
            &["INVALID_ARGUMENT", "`q`"],
        ),
    ] {
        desk.refuses(&format!("--model affine {line}"), words).await;
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_sent_is_named_with_the_reason() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;
    write_rows(&desk.path("x.npy"), &rows(8));
    let whole = std::fs::read(desk.path("x.npy")).expect("just written");
    std::fs::write(desk.path("cut.npy"), &whole[..whole.len() - 1]).expect("a writable folder");
    desk.write("empty.npy", "");
    desk.write("table.npy", "a,b\n1,2\n");
    desk.write("text.csv", "a,b,c,d\n1,2,3,4\n1,two,3,4\n");
    desk.write("short.csv", "a,b,c,d\n1,2,3,4\n1,2,3\n");
    desk.write("numbers.csv", "1,2,3,4\n1,2,3,4\n");

    for (file, words) in [
        ("none.npy", &["none.npy", "No such file"][..]),
        ("cut.npy", &["cut.npy", "it is cut", "127", "128"]),
        ("empty.npy", &["empty.npy", "it is empty"]),
        ("table.npy", &["table.npy", "no .npy file"]),
        ("text.csv", &["text.csv", "line 3, column 2 (`b`)", "`two`"]),
        ("short.csv", &["short.csv", "line 3 has 3 cells", "4"]),
        ("numbers.csv", &["numbers.csv", "--no-header"]),
    ] {
        desk.refuses(&format!("--model affine --input {file} --output y.npy"), words)
            .await;
    }
}

#[tokio::test]
async fn a_place_that_cannot_be_written_and_a_broker_that_is_not_there_are_named() {
    let mut desk = Desk::new();
    write_rows(&desk.path("x.npy"), &rows(8));
    let line = "--model affine --input x.npy --output";

    desk.refuses(&format!("{line} no/y.npy"), &["cannot write no/y.npy"])
        .await;
    desk.refuses(&format!("{line} ./x.npy"), &["--output ./x.npy", "the file of --input"])
        .await;
    let closed = ClosedPort::new();
    let address = closed.address().to_string();
    desk.scene.uri = format!("amqp://guest:secret@{address}/%2f");
    desk.refuses(&format!("{line} y.npy"), &[&address]).await;
}

#[tokio::test]
async fn an_interrupt_before_the_first_answer_leaves_no_file_behind() {
    let desk = Desk::new();
    // Nobody answers, so that there is nothing to go on with.
    desk.scene.declare("affine").await;
    write_rows(&desk.path("x.npy"), &rows(8));

    let mut child = desk
        .command("--model affine --input x.npy --output y.npy --in-flight 1")
        .stderr(Stdio::piped())
        .spawn()
        .expect("the inferq binary starts");
    let queue = desk.scene.queue("affine");
    desk.scene.until_waiting(&queue, 1).await;
    let half = desk.names();
    send(&child, Signal::INT);
    let exit = within("predict to end", child.wait()).await.expect("our child");

    assert_eq!(half, ["x.npy", "y.npy.partial"]);
    assert_eq!(exit.code(), Some(1));
    eventually("the part to go", || async { (desk.names() == ["x.npy"]).then_some(()) }).await;
}
