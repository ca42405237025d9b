//! Models whose rows do not stay apart, or whose outputs are not one row for each row of a job.

use std::process::{Output, Stdio};

use ndarray::{Array2, Array3, arr2};
use ndarray_npy::{NpzWriter, read_npy, write_npy};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use super::{Desk, rows, stderr, write_rows};
use crate::support::{Worker, eventually, test_models, within};

/// The outputs of each row of a file of JSON lines.
fn outputs(desk: &Desk, name: &str) -> Vec<Value> {
    let text = desk.read(name);
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.map(|line| line["outputs"].clone()).collect()
}

/// `time-major` goes through the first axis, which a cut at 256 would begin anew.
#[tokio::test]
async fn rows_that_depend_on_each_other_are_not_cut() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("time-major,coupled").start().await;
    let steps = Array3::from_shape_fn((300, 1, 3), |(step, _, value)| (step * 3 + value) as f32 / 100.0);
    write_npy(desk.path("steps.npy"), &steps).expect("a writable folder");
    write_rows(
        &desk.path("x.npy"),
        &Array2::from_shape_fn((2, 2), |(row, _)| row as f32),
    );

    for (model, input) in [("time-major", "steps.npy"), ("coupled", "x.npy")] {
        let named = format!("`inferq models inspect {model}`");
        desk.refuses(
            &format!("--model {model} --input {input} --output y.jsonl"),
            &[&named, "--rows-per-job all", "--rows-per-job 1"],
        )
        .await;
    }
    let said = desk
        .succeeds("--model time-major --input steps.npy --output y.jsonl --rows-per-job all")
        .await;
    let whole = desk
        .succeeds("--model coupled --input x.npy --output y.csv --rows-per-job all")
        .await;

    assert!(said.contains("300 rows in 1 job"), "{said}");
    assert_eq!(outputs(&desk, "y.jsonl").len(), 300);
    assert!(whole.contains("2 rows in 1 job"), "{whole}");
    assert_eq!(desk.read("y.csv"), "y_0,y_1\n-0.5,-0.5\n0.5,0.5\n");
}

/// `coupled` answers with the row less the mean of all: 0 for a row by itself.
#[tokio::test]
async fn one_row_of_a_model_that_couples_rows_is_sent() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("coupled").start().await;
    write_rows(&desk.path("one.npy"), &arr2(&[[1.0, 2.0]]));
    write_rows(&desk.path("x.npy"), &arr2(&[[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]]));

    desk.succeeds("--model coupled --input one.npy --output one.csv").await;
    let said = desk
        .succeeds("--model coupled --input x.npy --output y.csv --rows-per-job 1")
        .await;

    assert_eq!(desk.read("one.csv"), "y_0,y_1\n0.0,0.0\n");
    assert_eq!(desk.read("y.csv"), "y_0,y_1\n0.0,0.0\n0.0,0.0\n0.0,0.0\n");
    assert!(said.contains("3 rows in 3 jobs"), "{said}");
}

/// Four rows of `transposed`, whose output has four lines whatever the rows are.
#[tokio::test]
async fn an_output_with_rows_as_columns_is_not_taken_for_rows() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("transposed").start().await;
    let x = arr2(&[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, -4.0]]);
    let weights = arr2(&[[-1.25, -1.0], [-0.75, -0.5], [-0.25, 0.0], [0.25, 0.5]]);
    write_rows(&desk.path("x.npy"), &x);

    let said = desk.succeeds("--model transposed --input x.npy --output y.npy").await;
    desk.refuses(
        "--model transposed --input x.npy --output z.npy --rows-per-job 4",
        &[
            "output `y` has shape [4, 4] for 4 rows",
            "--rows-per-job 1",
            "--output-name",
        ],
    )
    .await;

    let answers: Array3<f32> = read_npy(desk.path("y.npy")).expect("an array");
    assert_eq!(answers.remove_axis(ndarray::Axis(2)), x.dot(&weights.t()));
    assert!(said.contains("4 rows in 4 jobs"), "{said}");
    let announced = said
        .lines()
        .filter(|line| line.contains("nothing shows that the rows of model `transposed`"));
    assert_eq!(announced.count(), 1, "{said}");
    assert!(said.contains("--rows-per-job sends more together"), "{said}");
}

/// Four rows, and beside them four rows that are the same for every job.
#[tokio::test]
async fn a_constant_output_belongs_whole_to_every_row() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("constant-output").start().await;
    let x = arr2(&[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]);
    write_rows(&desk.path("x.npy"), &x);
    let line = "--model constant-output --input x.npy --output";

    desk.succeeds(&format!("{line} y.jsonl")).await;
    desk.succeeds(&format!("{line} y.npy")).await;
    desk.succeeds(&format!("{line} constant.npy --output-name constant"))
        .await;
    desk.refuses(
        &format!("{line} z.jsonl --rows-per-job all"),
        &["has shape [4, 2] for 4 rows", "--rows-per-job 1"],
    )
    .await;

    let constant = json!([[-1.25, -1.0], [-0.75, -0.5], [-0.25, 0.0], [0.25, 0.5]]);
    let lines = outputs(&desk, "y.jsonl");
    assert_eq!(lines.len(), 4);
    assert!(lines.iter().all(|line| line["constant"] == constant), "{lines:?}");
    let y: Array2<f32> = read_npy(desk.path("y.npy")).expect("an array");
    assert_eq!(y, x * 2.0);
    let constants: Array3<f32> = read_npy(desk.path("constant.npy")).expect("an array");
    assert_eq!(constants.shape(), [4, 4, 2]);
}

/// Three pictures with two hits, none and one: three hits, as many as there are pictures.
#[tokio::test]
async fn hits_stay_with_their_own_picture() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("hits").start().await;
    let boxes = Array3::from_shape_fn((3, 2, 4), |(_, at, side)| (at * 5 + side / 2) as f32);
    let scores = ndarray::arr3(&[[[0.9_f32, 0.8]], [[0.1, 0.2]], [[0.3, 0.7]]]);
    let mut archive = NpzWriter::new(std::fs::File::create(desk.path("x.npz")).expect("a writable folder"));
    archive.add_array("boxes", &boxes).expect("an array");
    archive.add_array("scores", &scores).expect("an array");
    archive.finish().expect("an archive");
    let line = "--model hits --input x.npz --array boxes,scores --rows-per-job 1 --output";

    desk.succeeds(&format!("{line} y.jsonl")).await;
    desk.refuses(
        &format!("{line} y.csv"),
        &["output `hits` has rows of", "--format jsonl"],
    )
    .await;

    let hits: Vec<Value> = outputs(&desk, "y.jsonl")
        .iter()
        .map(|line| line["hits"].clone())
        .collect();
    assert_eq!(hits, [json!([[0, 0, 0], [0, 0, 1]]), json!([]), json!([[0, 0, 1]])]);
}

#[tokio::test]
async fn a_whole_file_goes_as_one_job_if_the_user_says_so() {
    let desk = Desk::new();
    let _worker = desk
        .scene
        .worker("affine")
        .env("INFERQ_LIMITS__BODY_BYTES_MAX", "65536")
        .start()
        .await;
    write_rows(&desk.path("x.npy"), &rows(1_001));
    write_rows(&desk.path("long.npy"), &rows(5_000));
    let line = "--model affine --rows-per-job all --input";

    let said = desk.succeeds(&format!("{line} x.npy --output y.npy")).await;
    desk.refuses(
        &format!("{line} long.npy --output z.npy"),
        &["INVALID_ARGUMENT", "65536"],
    )
    .await;
    let wrong = desk.predict("--model affine --input x.npy --rows-per-job some").await;

    let answers: Array2<f32> = read_npy(desk.path("y.npy")).expect("an array");
    assert_eq!(answers, rows(1_001) * 3.0 - 1.0);
    assert!(said.contains("1001 rows in 1 job,"), "{said}");
    assert!(
        stderr(&wrong).contains("allowed is a number from 1, or all"),
        "{}",
        stderr(&wrong)
    );
}

/// Starts a worker that serves version `version` of `m`, which is the test model `model`.
async fn serving(desk: &Desk, model: &str, version: u32) -> Worker {
    let repository = desk.folder.path().join(format!("models-{version}"));
    let folder = repository.join(format!("m/{version}"));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::copy(
        test_models().join(model).join("1/model.onnx"),
        folder.join("model.onnx"),
    )
    .expect("a model");
    desk.scene.worker("m").repository(&repository).start().await
}

/// Predicts 556 rows `[r, r]` into `y.csv`: 256 are answered by the square root, the others by `model` in its place.
async fn replaced_by(desk: &Desk, model: &str) -> Output {
    let lines = |rows: std::ops::Range<u16>| rows.map(|row| format!("[{row}, {row}]\n")).collect::<String>();
    let before = serving(desk, "nan", 1).await;
    let mut child = desk
        .command("--model m --input - --input-format jsonl --output y.csv")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the inferq binary starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(lines(0..256).as_bytes()).await.expect("it reads");
    // The first reply of all refuses the question for the inputs.
    eventually("the first answer", || async {
        (before.metrics().await.sum("inferq_replies_total")? > 1.0).then_some(())
    })
    .await;
    before.drain().await;
    let _after = serving(desk, model, 2).await;
    stdin.write_all(lines(256..556).as_bytes()).await.expect("it reads");
    drop(stdin);
    within("predict to end", child.wait_with_output())
        .await
        .expect("our child")
}

#[tokio::test]
async fn a_new_version_that_says_less_of_rows_is_sent_row_by_row() {
    let desk = Desk::new();

    let output = replaced_by(&desk, "constant-output").await;

    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("556 rows in 301 jobs, 0 rows failed"), "{said}");
    assert_eq!(said.matches("every row is a job of its own").count(), 1, "{said}");
    let text = desk.read("y.csv");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        (lines.len(), lines[1 + 225], lines[1 + 256]),
        (557, "15.0,15.0", "512.0,512.0")
    );
    assert_eq!(lines[1 + 555], "1110.0,1110.0");
}

#[tokio::test]
async fn a_new_version_that_couples_rows_ends_the_run() {
    let desk = Desk::new();

    let output = replaced_by(&desk, "coupled").await;

    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the rows of model `m` depend on each other"), "{said}");
    assert_eq!(desk.names(), ["models-1", "models-2"]);
}
