//! What does ONNX Runtime itself need for a row, in a batch of 64 on one thread?
//!
//! ```text
//! ort_alone MODEL.onnx [ROWS [SECONDS]]
//! ort_alone MODEL.onnx answers ROWS_FILE ANSWERS_FILE
//! ```
//!
//! The same tensor is run again and again, so no time goes into messages, copies or waiting: what is left is the
//! arithmetic, and nobody who uses the runtime can need less. Prints `{"runs", "rows", "cpu_us_per_row",
//! "rows_per_second"}`.
//!
//! The second form computes the answers that the load generator expects, each row on its own.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use ort::environment::Environment;
use ort::session::Session;
use ort::value::Tensor;
use tokio::time::Instant;

fn main() -> anyhow::Result<()> {
    // `cargo bench` adds a flag for harnesses, which this has none of.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let model = arguments
        .next()
        .context("usage: ort_alone MODEL.onnx [ROWS [SECONDS]]")?;
    let environment = ort::init().with_telemetry(false).build()?;
    let mut session = one_thread(&environment, &model)?;
    let rows = arguments.next();
    if rows.as_deref() == Some("answers") {
        let files = arguments.next().zip(arguments.next());
        let (rows, answers) = files.context("usage: ort_alone MODEL.onnx answers ROWS_FILE ANSWERS_FILE")?;
        return answer(&mut session, &rows, &answers);
    }
    let rows: usize = rows.map_or(Ok(64), |rows| rows.parse())?;
    let seconds: f64 = arguments.next().map_or(Ok(0.2), |seconds| seconds.parse())?;
    time(&mut session, rows, seconds)
}

fn time(session: &mut Session, rows: usize, seconds: f64) -> anyhow::Result<()> {
    let values = (0..rows * COLUMNS).map(|index| (index * 7919 % 2003) as f32 / 1001.5 - 1.0);
    let input = Tensor::from_array(([rows, COLUMNS], values.collect::<Vec<f32>>()))?;
    // The first runs pack weights and fill the arena.
    run_for(session, &input, Duration::from_secs_f64(seconds / 4.0))?;
    let (before, began) = (cpu_us()?, Instant::now());
    let runs = run_for(session, &input, Duration::from_secs_f64(seconds))?;
    let wall = began.elapsed().as_secs_f64();
    let total = (runs * rows) as f64;
    let us_per_row = (cpu_us()? - before) / total;

    println!(
        "{{\"runs\": {runs}, \"rows\": {rows}, \"cpu_us_per_row\": {us_per_row:.3}, \"rows_per_second\": {:.0}}}",
        total / wall
    );
    Ok(())
}

fn answer(session: &mut Session, rows: &str, answers: &str) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    for row in std::fs::read(rows)?.chunks_exact(4 * COLUMNS) {
        let values: Vec<f32> = row.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect();
        let outputs = session.run(ort::inputs![Tensor::from_array(([1, COLUMNS], values))?])?;
        let (_, classes) = outputs[0].try_extract_tensor::<f32>()?;
        bytes.extend(classes.iter().flat_map(|class| class.to_le_bytes()));
    }
    Ok(std::fs::write(answers, bytes)?)
}

fn one_thread(environment: &Environment, model: &str) -> ort::Result<Session> {
    Session::builder(environment)?
        .with_intra_threads(1)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .commit_from_file(model)
}

fn run_for(session: &mut Session, input: &Tensor<f32>, time: Duration) -> anyhow::Result<usize> {
    let began = Instant::now();
    let mut runs = 0;
    while runs == 0 || began.elapsed() < time {
        let outputs = session.run(ort::inputs![input])?;
        ensure!(outputs.len() == 1, "one output was expected");
        runs += 1;
    }
    Ok(runs)
}

/// Of the model `dense`.
const COLUMNS: usize = 1000;

/// User and system time of all threads, as the scheduler counts it.
fn cpu_us() -> anyhow::Result<f64> {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let ran = text.split(' ').next().context("schedstat is empty")?;
        nanoseconds += ran.parse::<u64>()?;
    }
    Ok(nanoseconds as f64 / 1e3)
}
