//! Every form of input, columns, keys, and what is wrong with a file.

use std::process::Stdio;

use ndarray::Array2;
use ndarray_npy::{NpzWriter, read_npy, write_npy};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use super::onnx::{self, Axis};
use super::{Desk, rows, stderr, write_rows};
use crate::support::{root, test_models, within};

/// The rows of `tests/tables/make.py`, and what version 2 of `affine` answers to them.
fn table() -> Array2<f32> {
    Array2::from_shape_fn((10, 4), |(row, column)| {
        let row = row as f32;
        [row, row + 0.5, -row, 2.0 * row][column]
    })
}

fn answers() -> Array2<f32> {
    table() * 3.0 - 1.0
}

/// A file of `tests/tables`, which pandas' and NumPy's own libraries have written.
fn written(name: &str) -> String {
    root().join("tests/tables").join(name).display().to_string()
}

#[tokio::test]
async fn every_form_of_input_gives_the_same_answers() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;
    write_npy(desk.path("x.npy"), &table()).expect("a writable folder");
    let lines = |row: ndarray::ArrayView1<f32>| format!("{:?}\n", row.to_vec());
    desk.write("x.jsonl", &table().rows().into_iter().map(lines).collect::<String>());
    let table = table();
    let objects = table.rows().into_iter().map(|row| {
        let (a, b, c, d) = (row[0], row[1], row[2], row[3]);
        format!("{{\"id\":\"f{a}\",\"d\":{d:?},\"c\":{c:?},\"b\":{b:?},\"a\":{a:?}}}\n")
    });
    desk.write("objects.jsonl", &objects.collect::<String>());
    let mut inputs: Vec<String> = vec![
        "x.npy".to_owned(),
        "x.jsonl".to_owned(),
        "objects.jsonl --columns a,b,c,d".to_owned(),
        written("stored.npz") + " --array rows",
        written("deflated.npz") + " --array rows",
    ];
    for codec in ["none", "snappy", "zstd", "gzip", "lz4"] {
        inputs.push(written(&format!("{codec}.parquet")) + " --columns a,b,c,d");
    }
    for list in ["list", "fixed_size_list", "large_list"] {
        inputs.push(written(&format!("{list}.parquet")) + " --columns v");
    }

    for input in inputs {
        desk.succeeds(&format!(
            "--model affine --input {input} --output y.npy --rows-per-job 3"
        ))
        .await;

        let array: Array2<f32> = read_npy(desk.path("y.npy")).expect("an array");
        assert_eq!(array, answers(), "{input}");
    }
}

#[tokio::test]
async fn standard_input_is_read_as_it_comes() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;
    write_rows(&desk.path("x.npy"), &rows(40));
    let npy = std::fs::read(desk.path("x.npy")).expect("just written");
    let lines: String = rows(40)
        .rows()
        .into_iter()
        .map(|row| format!("{:?}\n", row.to_vec()))
        .collect();
    let cells = lines.replace(['[', ']'], "");

    for (format, content) in [
        ("npy", npy.clone()),
        ("jsonl", lines.into()),
        ("csv --no-header", cells.into()),
    ] {
        let line = format!("--model affine --input - --input-format {format} --output y.npy --rows-per-job 7");
        let (said, code) = fed(&desk, &line, &content).await;

        assert_eq!(code, Some(0), "{said}");
        let array: Array2<f32> = read_npy(desk.path("y.npy")).expect("an array");
        assert_eq!(array, rows(40) * 3.0 - 1.0, "{format}");
    }
    let line = "--model affine --output z.npy --rows-per-job 7 --input -";
    for (line, content, sentence) in [
        (
            format!("{line} --input-format npy"),
            &npy[..npy.len() - 1],
            "it is cut: it holds 639 bytes",
        ),
        (
            format!("{line} --input-format parquet"),
            &npy,
            "must be a file and no pipe",
        ),
        (
            format!("{line} --input-format jsonl"),
            b"",
            "cannot use standard input: it is empty",
        ),
        (line.to_owned(), b"", "--input-format"),
        (
            format!("{line} --input-format npy --resume"),
            &npy,
            "--resume goes on from one file into another",
        ),
    ] {
        let (said, code) = fed(&desk, &line, content).await;

        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(sentence), "{line}: {said}");
        assert_eq!(desk.names(), ["x.npy", "y.npy"], "{line}");
    }
}

/// Runs `inferq predict` with `content` on its standard input, a pipe.
async fn fed(desk: &Desk, line: &str, content: &[u8]) -> (String, Option<i32>) {
    let mut child = desk
        .command(line)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the inferq binary starts");
    let mut stdin = child.stdin.take().expect("piped");
    // Whoever refuses at once reads nothing.
    let _ = stdin.write_all(content).await;
    drop(stdin);
    let output = within("predict to end", child.wait_with_output())
        .await
        .expect("our child");
    (stderr(&output), output.status.code())
}

#[tokio::test]
async fn the_keys_of_the_input_stand_beside_the_answers() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;
    desk.write("x.csv", "id,a,b,c,d,note\n007,1,2,3,4,x\n\"8,9\",0.5,-1,0,10,\n");
    let parquet = written("zstd.parquet");

    desk.succeeds("--model affine --input x.csv --columns a,b,c,d --key id --output y.csv")
        .await;
    desk.succeeds(&format!("--model affine --input {parquet} --key id --output y.jsonl"))
        .await;
    desk.refuses(
        "--model affine --input x.csv --columns a,b,c,d --key id --output z.npy",
        &["no place for", "--key"],
    )
    .await;

    assert_eq!(
        desk.read("y.csv"),
        "id,y_0,y_1,y_2,y_3\n007,2.0,5.0,8.0,11.0\n\"8,9\",0.5,-4.0,-1.0,29.0\n"
    );
    let lines = desk.read("y.jsonl");
    for (row, line) in lines.lines().enumerate() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["key"]["id"], format!("f{row}"), "{line}");
        assert_eq!(line["outputs"]["y"][0], answers()[[row, 0]], "{line}");
    }
    assert_eq!(lines.lines().count(), 10);
}

#[tokio::test]
async fn the_columns_of_an_array_are_chosen_by_position() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;
    let wide = Array2::from_shape_fn((5, 6), |(row, column)| (row * 6 + column) as f32);
    write_rows(&desk.path("x.npy"), &wide);

    desk.succeeds("--model affine --input x.npy --columns 3-5,1 --key 6 --output y.csv")
        .await;

    let text = desk.read("y.csv");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["column_6,y_0,y_1,y_2,y_3", "5.0,5.0,8.0,11.0,-1.0"]);
}

/// Version 1 of `two-heads` has two inputs, and was answered when it was made.
#[tokio::test]
async fn a_model_with_several_inputs_is_given_as_many_arrays() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("two-heads").start().await;
    let golden = test_models().join("two-heads/1/golden.npz");
    let mut expected = ndarray_npy::NpzReader::new(std::fs::File::open(&golden).expect("golden vectors")).expect("npz");
    let line = format!("--model two-heads --input {} --output y.npy", golden.display());

    desk.succeeds(&format!(
        "{line} --array a=input:a,b=input:b --output-name diff --rows-per-job 3"
    ))
    .await;
    desk.refuses(&line, &["--array must name one", "input:a", "input:b"])
        .await;
    desk.refuses(&format!("{line} --array a=nothing"), &["no array `nothing`", "input:a"])
        .await;
    desk.refuses(
        &format!("{line} --array a=input:a,b=input:b --columns 1"),
        &["--columns", "one array"],
    )
    .await;
    let mut archive = NpzWriter::new(std::fs::File::create(desk.path("x.npz")).expect("a writable folder"));
    archive.add_array("a", &rows(3)).expect("an array");
    archive.add_array("b", &rows(4)).expect("an array");
    archive.finish().expect("an archive");
    desk.refuses(
        "--model two-heads --input x.npz --array a,b",
        &["`a` has 3 rows", "`b` has 4"],
    )
    .await;

    let diff: Array2<f32> = read_npy(desk.path("y.npy")).expect("an array");
    let wanted: Array2<f32> = expected.by_name("output:diff").expect("an output");
    assert_eq!(diff, wanted);
}

#[tokio::test]
async fn a_model_that_takes_one_row_is_sent_one_at_a_time() {
    let desk = Desk::new();
    let repository = onnx::repository(desk.folder.path(), "single", &negation_of_one_row());
    let _worker = desk.scene.worker("single").repository(&repository).start().await;
    write_rows(&desk.path("x.npy"), &rows(600));

    let said = desk.succeeds("--model single --input x.npy --output y.npy").await;
    desk.refuses(
        "--model single --input x.npy --output z.npy --rows-per-job 2",
        &["INVALID_ARGUMENT", "[1,4]"],
    )
    .await;

    let answers: Array2<f32> = read_npy(desk.path("y.npy")).expect("an array");
    assert_eq!(answers, -rows(600));
    assert!(said.contains("600 rows in 600 jobs, 0 rows failed"), "{said}");
}

/// ONNX of y = -x for FP32 `[1, 4]`: most exporters fix the first axis unless told otherwise.
fn negation_of_one_row() -> Vec<u8> {
    let value = |name| onnx::value(name, onnx::FLOAT, &[Axis::Size(1), Axis::Size(4)]);
    onnx::model(&[("Neg", &["x"], "y")], &[value("x")], &[value("y")])
}

/// Texts, each with something wrong, and what is said of it.
const TEXTS: [(&str, &str, &str, &[&str]); 14] = [
    ("empty.csv", "", "", &["empty.csv", "it is empty"]),
    ("empty.jsonl", "", "", &["empty.jsonl", "it is empty"]),
    ("empty.parquet", "", "", &["empty.parquet", "it is empty"]),
    ("empty.npz", "", "", &["empty.npz", "no whole .npz archive"]),
    ("names.csv", "id,a,b\n", "", &["names.csv", "no rows"]),
    (
        "missing.csv",
        "a,b,c,d\n1,2,3,4\n1,,3,4\n",
        "",
        &["line 3, column 2 (`b`)", "missing"],
    ),
    (
        "mixed.csv",
        "a,b,c,d\n1,2,3,4\n1,2,three,4\n",
        "",
        &["line 3, column 3 (`c`)", "`three`", "FP32"],
    ),
    (
        "columns.csv",
        "a,b\n1,2\n",
        "--columns a,e",
        &["no column `e`", "there are: a, b"],
    ),
    (
        "key.csv",
        "a,b\n1,2\n",
        "--key id",
        &["no column `id`", "there are: a, b"],
    ),
    (
        "mixed.jsonl",
        "{\"a\":1,\"b\":2}\n{\"a\":1,\"b\":\"two\"}\n",
        "",
        &["line 2, column 2 (`b`)", "`\"two\"`"],
    ),
    (
        "missing.jsonl",
        "{\"a\":1,\"b\":2}\n{\"a\":1,\"b\":null}\n",
        "",
        &["line 2, column 2 (`b`)", "missing"],
    ),
    (
        "fewer.jsonl",
        "{\"a\":1,\"b\":2}\n{\"a\":1}\n",
        "",
        &["line 2 has no column `b`"],
    ),
    ("short.jsonl", "[1,2,3,4]\n[1,2,3]\n", "", &["line 2", "[3]", "[4]"]),
    (
        "pretty.jsonl",
        "[\n  [1,2,3,4]\n]\n",
        "",
        &["line 1 is not a row in JSON"],
    ),
];

#[tokio::test]
async fn what_is_wrong_with_a_text_is_named_by_line_and_column_and_nothing_is_left_behind() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;

    for (name, content, options, words) in TEXTS {
        desk.write(name, content);
        desk.refuses(
            &format!("--model affine --output y.csv --input {name} {options}"),
            words,
        )
        .await;
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_table_or_an_archive_is_named_by_row_and_column_and_nothing_is_left_behind() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;
    let whole = std::fs::read(written("snappy.parquet")).expect("a table");
    std::fs::write(desk.path("cut.parquet"), &whole[..whole.len() - 9]).expect("a writable folder");
    let mut damaged = whole.clone();
    damaged[4..400].fill(0xff);
    std::fs::write(desk.path("damaged.parquet"), damaged).expect("a writable folder");
    let npz = std::fs::read(written("deflated.npz")).expect("an archive");
    std::fs::write(desk.path("cut.npz"), &npz[..npz.len() / 2]).expect("a writable folder");

    for (line, words) in [
        ("cut.parquet".to_owned(), &["cut.parquet", "not the whole of one"][..]),
        (
            "damaged.parquet --key id".to_owned(),
            &["damaged.parquet", "it is damaged"],
        ),
        ("cut.npz".to_owned(), &["cut.npz", "no whole .npz archive"]),
        (
            written("null.parquet") + " --key id",
            &["row 2 (from 0), column 3 (`b`)", "missing"],
        ),
        (
            written("text.parquet") + " --key id",
            &["row 0 (from 0), column 3 (`b`)", "`x`", "FP32"],
        ),
        (
            written("date.parquet") + " --key id",
            &["column 3 (`b`)", "Timestamp", "allowed are"],
        ),
        (written("brotli.parquet") + " --key id", &["row 0", "brotli"]),
        (written("uneven.parquet"), &["row 6 (from 0)", "[1]", "[4]"]),
        (written("no_rows.parquet"), &["no rows"]),
        (
            written("zstd.parquet") + " --key when",
            &["no column `when`", "id, a, b, c, d"],
        ),
        (written("stored.npz"), &["--array must name one", "rows, others"]),
        (written("zstd.parquet") + " --array a", &["--array is for .npz"]),
    ] {
        desk.refuses(&format!("--model affine --output y.csv --input {line}"), words)
            .await;
    }
}
