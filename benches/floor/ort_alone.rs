//! What does ONNX Runtime itself need for a row, in a batch of 64 on one thread?
//!
//! ```text
//! ort_alone MODEL.onnx [ROWS [SECONDS]]
//! ```
//!
//! The same tensor is run again and again, so no time goes into messages, copies or waiting: what is left is the
//! arithmetic, and nobody who uses the runtime can need less. Prints `{"runs", "rows", "cpu_us_per_row"}`.

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
    let rows: usize = arguments.next().map_or(Ok(64), |rows| rows.parse())?;
    let seconds: f64 = arguments.next().map_or(Ok(0.2), |seconds| seconds.parse())?;
    let environment = ort::init().with_telemetry(false).build()?;
    let mut session = one_thread(&environment, &model)?;

    let columns = 1000;
    let values = (0..rows * columns).map(|index| (index * 7919 % 2003) as f32 / 1001.5 - 1.0);
    let input = Tensor::from_array(([rows, columns], values.collect::<Vec<f32>>()))?;
    // The first runs pack weights and fill the arena.
    run_for(&mut session, &input, Duration::from_secs_f64(seconds / 4.0))?;
    let before = cpu_us()?;
    let runs = run_for(&mut session, &input, Duration::from_secs_f64(seconds))?;
    let us_per_row = (cpu_us()? - before) / (runs * rows) as f64;

    println!("{{\"runs\": {runs}, \"rows\": {rows}, \"cpu_us_per_row\": {us_per_row:.3}}}");
    Ok(())
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
