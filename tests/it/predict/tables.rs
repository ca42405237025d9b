//! Tables as people have them: nothing of a cell is lost or changed, and what cannot be sent is named.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Decimal128Array, DurationMicrosecondArray, Float32Array, Float64Array,
    Int64Array, RecordBatch, StringArray, TimestampMillisecondArray, UInt64Array,
};
use ndarray::{Array2, ShapeBuilder as _, arr0, arr2};
use ndarray_npy::{NpzWriter, read_npy, write_npy};
use parquet::arrow::ArrowWriter;

use super::onnx::{self, Axis};
use super::{Desk, rows};
use crate::support::Worker;

type Columns<'a> = Vec<(&'a str, ArrayRef)>;

fn write_parquet(desk: &Desk, name: &str, columns: Columns<'_>) {
    let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let file = File::create(desk.path(name)).expect("a writable folder");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("a writable folder");
    writer.close().expect("a writable folder");
}

fn write_gzip(desk: &Desk, name: &str, text: &str) {
    let file = File::create(desk.path(name)).expect("a writable folder");
    let mut packer = flate2::write::GzEncoder::new(file, flate2::Compression::default());
    packer.write_all(text.as_bytes()).expect("a writable folder");
    packer.finish().expect("a writable folder");
}

/// Serves a model with an input for each column, which answers each with itself: `age` FP32, `visits` INT64, `city` BYTES and
/// `member` BOOL.
async fn typed(desk: &Desk) -> Worker {
    let columns = [
        ("age", onnx::FLOAT),
        ("visits", onnx::INT64),
        ("city", onnx::STRING),
        ("member", onnx::BOOL),
    ];
    let declared = |name: &str, datatype| onnx::value(name, datatype, &[Axis::Any, Axis::Size(1)]);
    let inputs = columns.map(|(name, datatype)| declared(name, datatype));
    let outputs = columns.map(|(name, datatype)| declared(&format!("{name}_out"), datatype));
    let nodes = [
        ("Identity", &["age"][..], "age_out"),
        ("Identity", &["visits"], "visits_out"),
        ("Identity", &["city"], "city_out"),
        ("Identity", &["member"], "member_out"),
    ];
    let repository = onnx::repository(desk.folder.path(), "typed", &onnx::model(&nodes, &inputs, &outputs));
    desk.scene.worker("typed").repository(&repository).start().await
}

const KEYS: [&str; 6] = ["007", " x ", "a\"b", "1,5", "tab\tnew\nline", "é;"];
const CITIES: [&str; 6] = ["", " Łódź ", "NA", "true", "1.50", "a\"b,c"];
const AGES: [f32; 6] = [0.1, -3.0, 1e-3, 16_777_217.0, 5.5, 0.0];
const VISITS: [i64; 6] = [0, -1, 9_007_199_254_740_993, 7, i64::MAX, i64::MIN];
const MEMBERS: [bool; 6] = [true, false, true, true, false, false];

fn separated(by: char) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let mut text = ["city", "key", "member", "age", "visits"].join(&by.to_string()) + "\r\n";
    for row in 0..KEYS.len() {
        let cells = [
            quoted(CITIES[row]),
            quoted(KEYS[row]),
            if row == 1 {
                "FALSE".to_owned()
            } else {
                MEMBERS[row].to_string()
            },
            format!(" {} ", AGES[row]),
            VISITS[row].to_string(),
        ];
        text += &(cells.join(&by.to_string()) + "\r\n");
    }
    text
}

fn objects() -> Vec<String> {
    let object = |row: usize| {
        serde_json::json!({
            "key": KEYS[row], "age": AGES[row], "visits": VISITS[row], "city": CITIES[row], "member": MEMBERS[row],
        })
        .to_string()
    };
    (0..KEYS.len()).map(object).collect()
}

fn columns(rows: std::ops::Range<usize>) -> Columns<'static> {
    vec![
        ("visits", Arc::new(Int64Array::from(VISITS[rows.clone()].to_vec()))),
        ("key", Arc::new(StringArray::from(KEYS[rows.clone()].to_vec()))),
        ("city", Arc::new(StringArray::from(CITIES[rows.clone()].to_vec()))),
        ("age", Arc::new(Float32Array::from(AGES[rows.clone()].to_vec()))),
        ("member", Arc::new(BooleanArray::from(MEMBERS[rows].to_vec()))),
    ]
}

#[tokio::test]
async fn a_table_gives_the_same_answers_in_every_form() {
    let desk = Desk::new();
    let _worker = typed(&desk).await;
    desk.write("comma.csv", &separated(','));
    desk.write("semicolon.csv", &separated(';'));
    write_gzip(&desk, "tab.tsv.gz", &separated('\t'));
    desk.write("lines.jsonl", &objects().join("\n"));
    desk.write("array.json", &format!("[{}\n]", objects().join(",\n")));
    write_parquet(&desk, "whole.parquet", columns(0..6));
    std::fs::create_dir(desk.path("folder")).expect("a writable folder");
    desk.write("folder/_SUCCESS", "");
    desk.write("folder/.part-1.parquet.crc", "");
    write_parquet(&desk, "folder/part-2.parquet", columns(4..6));
    write_parquet(&desk, "folder/part-1.parquet", columns(0..4));
    write_parquet(&desk, "folder/part-0.parquet", columns(0..0));

    let mut all = Vec::new();
    for input in [
        "comma.csv",
        "semicolon.csv --delimiter ;",
        "tab.tsv.gz",
        "lines.jsonl",
        "array.json",
        "whole.parquet",
        "folder --rows-per-job 5",
    ] {
        desk.succeeds(&format!("--model typed --input {input} --key key --output y.jsonl"))
            .await;
        desk.succeeds(&format!(
            "--model typed --input {input} --key key --output y.csv --output-name city_out"
        ))
        .await;
        all.push((input, desk.read("y.jsonl"), desk.read("y.csv")));
    }

    for (input, lines, table) in &all {
        assert_eq!(lines, &all[0].1, "{input}");
        assert_eq!(table, &all[0].2, "{input}");
    }
    for (row, line) in all[0].1.lines().enumerate() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["key"]["key"], KEYS[row], "{line}");
        assert_eq!(line["outputs"]["city_out"][0], CITIES[row], "{line}");
        assert_eq!(line["outputs"]["visits_out"][0], VISITS[row], "{line}");
        assert_eq!(line["outputs"]["member_out"][0], MEMBERS[row], "{line}");
        assert_eq!(
            line["outputs"]["age_out"][0].as_f64().map(|age| age as f32),
            Some(AGES[row]),
            "{line}"
        );
    }
    let mut reader = csv::Reader::from_reader(all[0].2.as_bytes());
    let cells: Vec<csv::StringRecord> = reader.records().map(|record| record.expect("a table")).collect();
    for (row, record) in cells.iter().enumerate() {
        assert_eq!((&record[0], &record[1]), (KEYS[row], CITIES[row]));
    }
}

#[tokio::test]
async fn columns_without_an_input_or_the_other_way_are_named() {
    let desk = Desk::new();
    let _worker = typed(&desk).await;
    desk.write("x.csv", "age,visits,member,town\n1,2,1,x\n");
    desk.write("bare.csv", "1,2,x,1\n");
    desk.write("lines.jsonl", "[1,2,\"x\",true]\n");
    let _heads = desk.scene.worker("two-heads").start().await;
    desk.write("heads.csv", "b_0,a.1,b_2,a.0,b_1\n1,2,3,4,5\n");
    desk.write("heads.jsonl", "{\"a\":[4,2],\"b\":[1,5,3]}\n");

    desk.refuses(
        "--model typed --input x.csv --output y.csv",
        &[
            "model `typed` takes `age FP32 [n,1]`",
            "no column for city",
            "no input for town",
            "--columns",
        ],
    )
    .await;
    for input in ["bare.csv --no-header", "lines.jsonl"] {
        desk.refuses(
            &format!("--model typed --input {input} --output y.csv"),
            &["`member BOOL [n,1]`, and columns go to the inputs of their names"],
        )
        .await;
    }
    for input in ["heads.csv", "heads.jsonl"] {
        desk.succeeds(&format!(
            "--model two-heads --version 1 --input {input} --output-name echo_b --output y.csv"
        ))
        .await;
        assert_eq!(desk.read("y.csv"), "echo_b_0,echo_b_1,echo_b_2\n1,5,3\n", "{input}");
    }
}

#[tokio::test]
async fn missing_cells_are_nan_where_that_is_wanted() {
    let desk = Desk::new();
    let _worker = typed(&desk).await;
    desk.write("x.csv", "age,visits,city,member\n1,2,a,1\n,2,b,0\nNA,2,c,0\n");
    desk.write(
        "x.jsonl",
        "{\"visits\":2,\"city\":\"a\",\"member\":1,\"age\":1}\n{\"visits\":2,\"city\":\"b\",\"member\":0}\n\
         {\"visits\":2,\"city\":\"c\",\"member\":0,\"age\":null}\n",
    );
    write_parquet(
        &desk,
        "x.parquet",
        vec![
            ("age", Arc::new(Float64Array::from(vec![Some(1.0), None, None]))),
            ("visits", Arc::new(Int64Array::from(vec![2, 2, 2]))),
            ("city", Arc::new(StringArray::from(vec!["a", "b", "c"]))),
            ("member", Arc::new(Int64Array::from(vec![1, 0, 0]))),
        ],
    );
    desk.write("integer.csv", "age,visits,city,member\n1,,a,1\n");
    desk.write(
        "python.jsonl",
        "{\"visits\":2,\"city\":\"a\",\"member\":1,\"age\":NaN}\n",
    );

    for (input, place) in [
        ("x.csv", "line 3, column 1 (`age`)"),
        ("x.jsonl", "line 2 has no column `age`"),
        ("x.parquet", "row 1 (from 0), column 1 (`age`)"),
    ] {
        let line = format!("--model typed --input {input} --output y.csv --output-name age_out");
        desk.refuses(&line, &[place]).await;
        desk.succeeds(&format!("{line} --missing nan")).await;
        assert_eq!(desk.read("y.csv"), "age_out\n1.0\nNaN\nNaN\n", "{input}");
        desk.succeeds(&format!("--model typed --input {input} --output y.jsonl --missing nan"))
            .await;
        assert!(desk.read("y.jsonl").contains("\"age_out\":[null]"), "{input}");
        for name in ["y.csv", "y.jsonl"] {
            std::fs::remove_file(desk.path(name)).expect("just written");
        }
    }
    for (line, words) in [
        ("x.csv", &["the value is missing", "--missing nan"][..]),
        (
            "integer.csv --missing nan",
            &["column 2 (`visits`)", "INT64 has no NaN"],
        ),
        (
            "python.jsonl --missing nan",
            &["line 1", "`NaN` is Python's", "write null"],
        ),
    ] {
        desk.refuses(&format!("--model typed --input {line} --output y.csv"), words)
            .await;
    }
}

#[tokio::test]
async fn what_is_no_table_is_refused_with_its_place() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;
    desk.write(
        "open.csv",
        &format!("a,b,c,d\n1,2,3,4\n1,\"2,3,4\n{}", "1,2,3,4\n".repeat(300_000)),
    );
    desk.write("unclosed.csv", "a,b,c,d\n1,2,3,\"4\n");
    desk.write("behind.csv", "a,b,c,d\n1,\"2\"x,3,4\n");
    desk.write("within.csv", "a,b,c,d\n1,5\"2,3,4\n");
    desk.write("first.csv", "a,b,,4\n1,2,3,4\n");
    desk.write("semicolon.csv", "a;b;c;d\n1,5;2;3;4\n");
    desk.write("comma.csv", "a;b;c;d\n1,5;2;3;4\n");
    desk.write("lines.jsonl", "[1,2,3,4]\n");
    desk.write("plain.csv.gz", "a,b,c,d\n1,2,3,4\n");
    write_gzip(
        &desk,
        "whole.csv.gz",
        &format!("a,b,c,d\n{}", "1,2,3,4\n".repeat(1_000)),
    );
    let packed = std::fs::read(desk.path("whole.csv.gz")).expect("just written");
    std::fs::write(desk.path("cut.csv.gz"), &packed[..packed.len() - 4]).expect("a writable folder");
    std::fs::create_dir(desk.path("empty")).expect("a writable folder");
    std::fs::create_dir_all(desk.path("nested/year=2024")).expect("a writable folder");

    for (input, words) in [
        ("open.csv", &["line 3, column 2", "quote that opens", "1 MiB"][..]),
        ("unclosed.csv", &["line 2, column 4", "never closed"]),
        ("behind.csv", &["line 2, column 2", "text follows the quote"]),
        ("within.csv", &["line 2, column 2", "a quote stands within"]),
        (
            "first.csv",
            &["cell 3 of its first line is empty", "--header", "--no-header"],
        ),
        ("semicolon.csv", &["separated by `;`", "--delimiter"]),
        ("comma.csv --delimiter ;", &["`1,5` is not a number", "decimal comma"]),
        ("plain.csv.gz", &["ends in .gz", "neither by gzip"]),
        ("cut.csv.gz", &["it is cut"]),
        ("empty", &["a folder without a .parquet file"]),
        ("nested", &["the folder `year=2024`"]),
        ("whole.csv.gz --missing nan --array x", &["--array is for .npz"]),
        ("lines.jsonl --delimiter ;", &["--delimiter is for .csv"]),
    ] {
        desk.refuses(&format!("--model affine --input {input} --output y.csv"), words)
            .await;
    }
}

#[tokio::test]
async fn an_output_that_is_not_written_is_refused_before_any_work() {
    let desk = Desk::new();
    desk.write("x.csv", "a,b,c,d\n1,2,3,4\n");

    for output in ["y.parquet", "y.csv.gz", "y.npz", "y.xlsx", "y", "y.csv.gz --format csv"] {
        desk.refuses(
            &format!("--model nobody-serves-it --input x.csv --output {output}"),
            &["--output y", ".npy, .csv or .jsonl"],
        )
        .await;
    }
    desk.refuses(
        "--model nobody-serves-it --input x.csv --output y.csv --failures failed.csv",
        &["--failures failed.csv must end in .jsonl"],
    )
    .await;
}

fn singles(values: [f32; 2]) -> ArrayRef {
    Arc::new(Float32Array::from(values.to_vec()))
}

fn prices(cents: [i128; 2]) -> ArrayRef {
    let prices = Decimal128Array::from(cents.to_vec()).with_precision_and_scale(9, 2);
    Arc::new(prices.expect("a type"))
}

/// Two rows of numbers for `affine`, and other columns behind them.
fn with<'a>(more: Columns<'a>) -> Columns<'a> {
    let mut columns: Columns<'a> = vec![
        ("a", singles([0.1, 1.0])),
        ("b", Arc::new(BooleanArray::from(vec![true, false]))),
        ("c", prices([250, -100])),
        ("d", singles([2.0, 3.0])),
    ];
    columns.extend(more);
    columns
}

#[tokio::test]
async fn columns_of_parquet_are_converted_as_documented() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;
    let index = || -> ArrayRef { Arc::new(Int64Array::from(vec![5, 6])) };
    let moments = TimestampMillisecondArray::from(vec![1_700_000_000_120, -1]).with_timezone("UTC");
    let keys: Columns<'_> = vec![
        ("__index_level_0__", index()),
        ("single", singles([0.1, f32::NAN])),
        ("big", Arc::new(UInt64Array::from(vec![u64::MAX, 0]))),
        ("when", Arc::new(moments)),
        ("price", prices([1050, -1])),
    ];
    write_parquet(&desk, "x.parquet", with(keys));
    write_parquet(&desk, "index.parquet", with(vec![("__index_level_0__", index())]));

    desk.succeeds("--model affine --input x.parquet --key single,big,when,price --output keyed.csv")
        .await;
    desk.succeeds("--model affine --input index.parquet --output y.csv")
        .await;
    desk.succeeds("--model affine --input index.parquet --output z.csv --columns b,c,d,__index_level_0__")
        .await;

    let (keyed, plain) = (desk.read("keyed.csv"), desk.read("y.csv"));
    let first = "single,big,when,price,y_0,y_1,y_2,y_3\n0.1,18446744073709551615,2023-11-14T22:13:20.12Z,10.50,";
    let second = "\nNaN,0,1969-12-31T23:59:59.999Z,-0.01,2.0,-1.0,-4.0,8.0\n";
    assert!(keyed.starts_with(first) && keyed.ends_with(second), "{keyed}");
    assert!(plain.ends_with("\n2.0,-1.0,-4.0,8.0\n"), "{plain}");
    assert!(desk.read("z.csv").ends_with("\n-1.0,-4.0,8.0,17.0\n"));
}

#[tokio::test]
async fn columns_of_parquet_that_lose_their_meaning_are_refused() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;
    let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"ok", b"\xff"]));
    let duration: ArrayRef = Arc::new(DurationMicrosecondArray::from(vec![1, 2]));
    write_parquet(&desk, "bytes.parquet", with(vec![("k", bytes)]));
    write_parquet(&desk, "duration.parquet", with(vec![("k", duration)]));

    for (input, words) in [
        (
            "bytes.parquet --columns a,b,c,d --key k",
            &["row 1 (from 0), column 5 (`k`)", "not UTF-8"][..],
        ),
        (
            "duration.parquet --columns a,b,c,d --key k",
            &["column 5 (`k`)", "Duration", "a key may be"],
        ),
        (
            "duration.parquet --columns a,b,c,k",
            &["column 5 (`k`)", "Duration", "allowed are"],
        ),
    ] {
        desk.refuses(&format!("--model affine --output y.csv --input {input}"), words)
            .await;
    }
}

#[tokio::test]
async fn arrays_are_converted_where_no_number_changes() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("affine").start().await;
    let doubles = rows(300).mapv(f64::from);
    write_npy(desk.path("doubles.npy"), &doubles).expect("a writable folder");
    write_npy(desk.path("integers.npy"), &rows(300).mapv(|value| value as i64)).expect("a writable folder");
    let mut fortran = Array2::zeros((300, 4).f());
    fortran.assign(&rows(300));
    write_npy(desk.path("fortran.npy"), &fortran).expect("a writable folder");
    let mut archive = NpzWriter::new_compressed(File::create(desk.path("fortran.npz")).expect("a writable folder"));
    archive.add_array("x", &fortran).expect("an array");
    archive.finish().expect("an archive");
    let little = std::fs::read(desk.path("fortran.npy")).expect("just written");
    assert!(String::from_utf8_lossy(&little[..128]).contains("'fortran_order': True"));
    let mut big = String::from_utf8_lossy(&little[10..128])
        .replace("<f4", ">f4")
        .into_bytes();
    big.splice(..0, little[..10].iter().copied());
    big.extend(little[128..].chunks(4).flat_map(|element| element.iter().rev()));
    std::fs::write(desk.path("big.npy"), big).expect("a writable folder");
    write_npy(desk.path("truths.npy"), &arr2(&[[true, false, true, true]])).expect("a writable folder");
    write_npy(
        desk.path("tenths.npy"),
        &arr2(&[[0.5, 1.0, 2.0, 3.0], [0.5, 1.0, 0.1, 3.0]]),
    )
    .expect("a writable folder");

    for input in ["doubles.npy", "integers.npy", "fortran.npy", "fortran.npz", "big.npy"] {
        desk.succeeds(&format!(
            "--model affine --input {input} --output y.npy --rows-per-job 7"
        ))
        .await;

        let answers: Array2<f32> = read_npy(desk.path("y.npy")).expect("an array");
        assert_eq!(answers, rows(300) * 3.0 - 1.0, "{input}");
    }
    desk.succeeds("--model affine --input truths.npy --output y.csv").await;
    assert!(desk.read("y.csv").ends_with("2.0,-1.0,2.0,2.0\n"));
    let line = "--model affine --input tenths.npy --output z.npy";
    desk.refuses(
        line,
        &["row 1 (from 0), column 3", "`0.1`", "FP64", "FP32", "--datatype FP32"],
    )
    .await;
    desk.succeeds(&format!("{line} --datatype FP32")).await;
    let rounded: Array2<f32> = read_npy(desk.path("z.npy")).expect("an array");
    assert_eq!(rounded[[1, 2]], 0.1_f32 * 3.0 - 1.0);
}

#[tokio::test]
async fn inputs_without_rows_are_given_whole_from_an_archive() {
    let desk = Desk::new();
    let inputs = [
        onnx::value("x", onnx::FLOAT, &[Axis::Any, Axis::Size(2)]),
        onnx::value("scale", onnx::FLOAT, &[]),
        onnx::value("bias", onnx::FLOAT, &[Axis::Size(1), Axis::Size(2)]),
    ];
    let nodes = [
        ("Mul", &["x", "scale"][..], "scaled"),
        ("Add", &["scaled", "bias"], "y"),
    ];
    let output = onnx::value("y", onnx::FLOAT, &[Axis::Any, Axis::Size(2)]);
    let repository = onnx::repository(desk.folder.path(), "scaled", &onnx::model(&nodes, &inputs, &[output]));
    let _worker = desk.scene.worker("scaled").repository(&repository).start().await;
    let mut archive = NpzWriter::new(File::create(desk.path("x.npz")).expect("a writable folder"));
    archive
        .add_array("x", &arr2(&[[1.0_f32, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        .expect("an array");
    archive.add_array("scale", &arr0(0.5_f64)).expect("an array");
    archive.add_array("bias", &arr2(&[[10.0_f32, 20.0]])).expect("an array");
    archive.finish().expect("an archive");
    desk.write("x.csv", "x_0,x_1,scale,bias_0,bias_1\n1,2,3,4,5\n");

    for more in ["", " --array bias,x,scale"] {
        desk.succeeds(&format!("--model scaled --input x.npz --output y.csv{more}"))
            .await;

        assert_eq!(
            desk.read("y.csv"),
            "y_0,y_1\n10.5,21.0\n11.5,22.0\n12.5,23.0\n",
            "{more}"
        );
    }
    desk.refuses(
        "--model scaled --input x.csv --output z.csv",
        &["input `scale FP32 []` has no axis of rows", ".npz"],
    )
    .await;
}
