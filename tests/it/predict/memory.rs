//! A file of any length streams through the memory of a short one.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Arc;

use arrow_array::{FixedSizeListArray, Float32Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use ndarray::Array2;
use ndarray_npy::NpzWriter;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use super::{Desk, write_rows};
use crate::support::{models, within};

const MIB: u64 = 1024 * 1024;
const COLUMNS: usize = 1_000;
const FEW: usize = 1_200;
const MANY: usize = 10 * FEW;
/// The few rows fill it as well as the many.
const WINDOW: &str = "--rows-per-job 32 --in-flight 8";

/// 48 MiB of numbers in `MANY` of them: far above the margin, if they stayed.
fn some(rows: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, COLUMNS), |(row, column)| ((row + column) % 7) as f32)
}

#[tokio::test]
async fn ten_times_the_rows_take_the_same_memory_in_every_form() {
    let desk = Desk::new();
    let _worker = desk.scene.worker("dense").repository(&models()).start().await;

    for form in ["npy", "npz", "csv", "jsonl", "parquet"] {
        let mut peaks = Vec::new();
        for rows in [FEW, MANY] {
            let name = format!("{rows}.{form}");
            write(&desk, &name, &some(rows));
            peaks.push(peak(&desk, &name, rows).await);
            std::fs::remove_file(desk.path(&name)).expect("a file");
        }

        println!("{form}: {} MiB, then {} MiB", peaks[0] / MIB, peaks[1] / MIB);
        assert!(peaks[1].saturating_sub(peaks[0]) < 24 * MIB, "{form}: {peaks:?}");
        assert!(peaks[1] < 200 * MIB, "{form}: {peaks:?}");
    }
}

fn write(desk: &Desk, name: &str, rows: &Array2<f32>) {
    let path = desk.path(name);
    if name.ends_with(".npy") {
        return write_rows(&path, rows);
    }
    let mut file = BufWriter::new(File::create(path).expect("a writable folder"));
    if name.ends_with(".npz") {
        let mut archive = NpzWriter::new_compressed(file);
        archive.add_array("rows", rows).expect("an array");
        archive.finish().expect("an archive");
        return;
    }
    if name.ends_with(".parquet") {
        return write_parquet(file, rows);
    }
    for row in rows.rows() {
        let cells: Vec<String> = row.iter().map(|cell| (*cell as u8).to_string()).collect();
        let line = if name.ends_with(".csv") {
            cells.join(",")
        } else {
            format!("[{}]", cells.join(","))
        };
        writeln!(file, "{line}").expect("a writable folder");
    }
}

fn write_parquet(file: BufWriter<File>, rows: &Array2<f32>) {
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let list = |rows: ndarray::ArrayView2<f32>| {
        let values = Float32Array::from_iter_values(rows.iter().copied());
        FixedSizeListArray::new(item.clone(), COLUMNS as i32, Arc::new(values), None)
    };
    let field = Field::new("v", DataType::FixedSizeList(item.clone(), COLUMNS as i32), false);
    let schema = Arc::new(Schema::new(vec![field]));
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(500))
        .build();
    let mut writer = ArrowWriter::try_new(file, schema.clone(), Some(properties)).expect("a writer");
    for block in rows.axis_chunks_iter(ndarray::Axis(0), 500) {
        let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(list(block))]).expect("a batch");
        writer.write(&batch).expect("a writable folder");
    }
    writer.close().expect("a writable folder");
}

/// The most memory that a run has held, in bytes, as it was seen last before the end.
async fn peak(desk: &Desk, input: &str, rows: usize) -> u64 {
    let header = if input.ends_with(".csv") { "--no-header" } else { "" };
    let mut child = desk
        .command(&format!(
            "--model dense --input {input} --output y.npy {header} {WINDOW}"
        ))
        .spawn()
        .expect("the inferq binary starts");
    let status = format!("/proc/{}/status", child.id().expect("it runs"));
    let mut peak = 0;
    let exit = within("predict to end", async {
        loop {
            if let Some(kib) = std::fs::read_to_string(&status).ok().as_deref().and_then(high_water) {
                peak = kib * 1024;
            }
            if let Some(exit) = child.try_wait().expect("our child") {
                return exit;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
    assert!(exit.success(), "{input}");
    let answers: Array2<f32> = ndarray_npy::read_npy(desk.path("y.npy")).expect("an array");
    assert_eq!(answers.nrows(), rows);
    peak
}

fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}
