//! What does the engine reach on a device, against ONNX Runtime alone?
//!
//! ```text
//! device alone   MODEL.onnx DEVICE ROWS SECONDS
//! device engine  MODEL.onnx DEVICE ROWS SECONDS THREADS
//! device compare MODEL.onnx DEVICE ROWS
//! device answers MODEL.onnx ROWS_FILE ANSWERS_FILE
//! device model   FOLDER LAYERS WIDTH
//! ```
//!
//! `alone` runs the same rows again and again, on a GPU from pinned memory and back into it, and does nothing else: nobody
//! who uses the runtime gets more. `engine` is the worker's own, with rows that lie in messages of 64, on so many threads.
//! Both print `{"rows_per_second", "us_per_run"}`. `compare` runs rows on the CPU and on the device, and prints the worst
//! difference. `answers` computes what the load generator expects, each row on its own on the CPU. `model` writes a stack of square layers with random weights as ONNX. Part of `benches/gpu/run`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use inferq::config::Device;
use inferq::worker::hardware::Hardware;
use inferq::worker::infer::{Engine as _, Input};
use inferq::worker::onnx::{OnnxEngine, Runtime, SharedWeights, Staged};
use ort::environment::Environment;
use ort::ep::{ArenaExtendStrategy, CUDA};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::value::{Tensor, ValueType};
use tokio::time::Instant;

fn main() -> anyhow::Result<()> {
    // `cargo bench` adds a flag for harnesses, which this has none of.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["alone", model, device, rows, seconds] => alone(model, device.parse()?, rows.parse()?, seconds.parse()?),
        ["engine", model, device, rows, seconds, threads] => engine(
            Path::new(model),
            &hardware(device)?,
            rows.parse()?,
            seconds.parse()?,
            threads.parse()?,
        ),
        ["compare", model, device, rows] => compare(Path::new(model), &hardware(device)?, rows.parse()?),
        ["answers", model, rows, answers] => answer(Path::new(model), rows, answers),
        ["model", folder, layers, width] => write_model(Path::new(folder), layers.parse()?, width.parse()?),
        _ => bail!("usage: device alone|engine|compare|answers|model …; the source says how"),
    }
}

fn hardware(device: &str) -> anyhow::Result<Hardware> {
    Ok(Hardware {
        device: device.parse()?,
        ..Hardware::CPU
    })
}

// --- ONNX Runtime alone ---

fn alone(model: &str, device: Device, rows: usize, seconds: f64) -> anyhow::Result<()> {
    let environment = ort::init().with_telemetry(false).build()?;
    let mut session = session(&environment, model, device)?;
    let pinned = match device {
        Device::Cpu => MemoryInfo::default(),
        Device::Cuda(index) => MemoryInfo::new(
            AllocationDevice::CUDA_PINNED,
            i32::from(index),
            AllocatorType::Device,
            MemoryType::CPUOutput,
        )?,
    };
    let allocator = Allocator::new(&session, pinned.to_owned())?;
    let (from, columns) = outlet(&session.inputs()[0])?;
    let (to, _) = outlet(&session.outputs()[0])?;
    let mut input = Tensor::<f32>::new(&allocator, [rows, columns])?;
    fill(&mut input, rows * columns);
    // Else ONNX Runtime would have the kernels read pinned memory over PCIe.
    let input = Staged::new(input.upcast())?;
    let mut binding = session.create_binding()?;
    let pace = pace(Duration::from_secs_f64(seconds), || {
        // Copies the rows to the device, as they would be other ones each time.
        binding.bind_input(from.as_str(), input.value())?;
        // Anew each time: what a run has left there ONNX Runtime would copy onto itself, and fail.
        binding.bind_output_to_device(to.as_str(), &pinned)?;
        session.run_binding(&binding)?;
        Ok(())
    })?;
    print(rows, &[pace]);
    Ok(())
}

fn session(environment: &Environment, model: &str, device: Device) -> ort::Result<Session> {
    let mut builder = Session::builder(environment)?
        .with_intra_threads(1)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?;
    if let Device::Cuda(index) = device {
        preload_cuda();
        let provider = CUDA::default()
            .with_device_id(i32::from(index))
            // As the engine, which is asked for FP32.
            .with_tf32(false)
            .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested);
        builder = builder
            .with_execution_providers([provider.build().error_on_failure()])?
            .with_disable_cpu_fallback()?;
    }
    builder.commit_from_file(model)
}

fn outlet(outlet: &ort::value::Outlet) -> anyhow::Result<(String, usize)> {
    let ValueType::Tensor { shape, .. } = outlet.dtype() else {
        bail!("{} is no tensor", outlet.name());
    };
    ensure!(shape.len() == 2, "{} does not have two axes", outlet.name());
    Ok((outlet.name().to_owned(), usize::try_from(shape[1])?))
}

fn fill(tensor: &mut Tensor<f32>, elements: usize) {
    let data = tensor.data_ptr_mut().cast::<f32>();
    for index in 0..elements {
        #[expect(
            unsafe_code,
            reason = "memory that is pinned for a device is not taken for readable by the crate"
        )]
        // SAFETY: the tensor has so many elements, in memory that the CPU reaches.
        unsafe {
            data.add(index).write(value(index));
        }
    }
}

fn value(index: usize) -> f32 {
    (index * 7919 % 2003) as f32 / 1001.5 - 1.0
}

/// What `inferq` does as well: the library's CUDA provider says of no folder where CUDA is.
fn preload_cuda() {
    #[expect(clippy::disallowed_methods, reason = "the variable that `ort` reads by itself")]
    let library = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    let folder = library.as_deref().and_then(Path::parent);
    if let Some(folder) = folder {
        let _ = ort::ep::cuda::preload_dylibs(Some(folder), None);
        let _ = ort::util::preload_dylib(folder.join("libcudnn.so.9"));
    }
}

// --- The engine ---

fn engine(model: &Path, hardware: &Hardware, rows: usize, seconds: f64, threads: usize) -> anyhow::Result<()> {
    let runtime = Runtime::load()?;
    let weights = SharedWeights::new(&runtime);
    let mut engines = Vec::new();
    for _ in 0..threads {
        engines.push(OnnxEngine::load(&runtime, model, &weights, hardware)?);
    }
    let columns = columns(&engines[0])?;
    let messages = messages(rows, columns);
    let time_max = Duration::from_secs_f64(seconds);
    let paces = std::thread::scope(|scope| {
        let running: Vec<_> = engines
            .iter_mut()
            .map(|engine| scope.spawn(|| run_for(engine, &messages, [rows, columns], time_max)))
            .collect();
        let paces = running.into_iter().map(|thread| match thread.join() {
            Ok(pace) => pace,
            Err(_) => bail!("an engine panicked"),
        });
        paces.collect::<anyhow::Result<Vec<Pace>>>()
    })?;
    print(rows, &paces);
    Ok(())
}

/// So many runs in so many seconds, on one thread.
struct Pace {
    runs: usize,
    seconds: f64,
}

fn run_for(
    engine: &mut OnnxEngine,
    messages: &[Vec<u8>],
    shape: [usize; 2],
    time_max: Duration,
) -> anyhow::Result<Pace> {
    pace(time_max, || {
        let input = Input {
            shape: shape.to_vec(),
            parts: messages.iter().map(Vec::as_slice).collect(),
        };
        engine.run(&[input])?;
        Ok(())
    })
}

/// Runs for a quarter of the time to warm up, then for all of it, and counts.
fn pace(time_max: Duration, mut run: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Pace> {
    let mut pace = Pace { runs: 0, seconds: 0.0 };
    for time in [time_max / 4, time_max] {
        let began = Instant::now();
        pace.runs = 0;
        while pace.runs == 0 || began.elapsed() < time {
            run()?;
            pace.runs += 1;
        }
        pace.seconds = began.elapsed().as_secs_f64();
    }
    Ok(pace)
}

fn print(rows: usize, paces: &[Pace]) {
    let runs_per_second: f64 = paces.iter().map(|pace| pace.runs as f64 / pace.seconds).sum();
    println!(
        "{{\"rows_per_second\": {:.1}, \"us_per_run\": {:.2}}}",
        runs_per_second * rows as f64,
        1e6 * paces.len() as f64 / runs_per_second
    );
}

fn columns(engine: &OnnxEngine) -> anyhow::Result<usize> {
    match engine.signature().inputs[0].shape[..] {
        [_, inferq::model::signature::Dim::Fixed(columns)] => Ok(columns),
        _ => bail!("the input does not have two axes, the second of a fixed size"),
    }
}

fn messages(rows: usize, columns: usize) -> Vec<Vec<u8>> {
    let values: Vec<f32> = (0..rows * columns).map(value).collect();
    values
        .chunks(MESSAGE_ROWS * columns)
        .map(|rows| rows.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect()
}

fn compare(model: &Path, hardware: &Hardware, rows: usize) -> anyhow::Result<()> {
    let runtime = Runtime::load()?;
    let mut answers = Vec::new();
    for hardware in [&Hardware::CPU, hardware] {
        let mut engine = OnnxEngine::load_watched(&runtime, model, &SharedWeights::new(&runtime), hardware)?;
        let columns = columns(&engine)?;
        let messages = messages(rows, columns);
        let mut answer = Vec::new();
        // More than one run: from the second on, outputs are placed beforehand.
        for _ in 0..3 {
            let input = Input {
                shape: vec![rows, columns],
                parts: messages.iter().map(Vec::as_slice).collect(),
            };
            let outputs = engine.run(&[input])?;
            answer = outputs[0].bytes().as_chunks().0.to_vec();
        }
        answers.push((answer, engine.placement()?.to_string()));
    }
    let (expected, actual) = (&answers[0].0, &answers[1].0);
    ensure!(expected.len() == actual.len(), "the outputs are of different sizes");
    let float = |bytes: &[u8; 4]| f64::from(f32::from_le_bytes(*bytes));
    let largest = expected.iter().map(|bytes| float(bytes).abs()).fold(0.0, f64::max);
    let worst = expected.iter().zip(actual).map(|(one, other)| {
        let difference = (float(one) - float(other)).abs();
        if difference.is_nan() { f64::INFINITY } else { difference }
    });
    let worst = worst.fold(0.0, f64::max);
    println!(
        "{{\"largest\": {largest:e}, \"worst\": {}, \"fits\": {}, \"ran_on\": \"{}\"}}",
        if worst.is_finite() {
            format!("{worst:e}")
        } else {
            "null".to_owned()
        },
        worst <= ABSOLUTE + RELATIVE * largest,
        answers[1].1
    );
    Ok(())
}

fn answer(model: &Path, rows: &str, answers: &str) -> anyhow::Result<()> {
    let runtime = Runtime::load()?;
    let mut engine = OnnxEngine::load(&runtime, model, &SharedWeights::new(&runtime), &Hardware::CPU)?;
    let columns = columns(&engine)?;
    let mut bytes = Vec::new();
    for row in std::fs::read(rows)?.chunks_exact(4 * columns) {
        let input = Input {
            shape: vec![1, columns],
            parts: vec![row],
        };
        bytes.extend_from_slice(engine.run(&[input])?[0].bytes());
    }
    Ok(std::fs::write(answers, bytes)?)
}

// --- A model of square layers ---

/// Writes `model.onnx` and beside it the weights, which may be more than a protobuf message can hold.
fn write_model(folder: &Path, layers: usize, width: usize) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut weights = std::io::BufWriter::new(std::fs::File::create(folder.join(WEIGHTS))?);
    let mut graph = Vec::new();
    let bytes = 4 * width * width;
    // Keeps the values of a row at about the same size from layer to layer.
    let scale = (6.0 / width as f32).sqrt();
    for layer in 0..layers {
        for index in 0..width * width {
            let mixed = (index + layer).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
            let uniform = mixed as f32 / (1 << 24) as f32 * 2.0 - 1.0;
            weights.write_all(&(uniform * scale).to_le_bytes())?;
        }
        let (from, weight, sum, to) = (
            format!("x{layer}"),
            format!("w{layer}"),
            format!("s{layer}"),
            format!("x{}", layer + 1),
        );
        message(&mut graph, 1, |node| operator(node, "MatMul", &[&from, &weight], &sum));
        message(&mut graph, 1, |node| operator(node, "Relu", &[&sum], &to));
        message(&mut graph, 5, |tensor| {
            number(tensor, 1, width as u64);
            number(tensor, 1, width as u64);
            number(tensor, 2, FLOAT);
            text(tensor, 8, &weight);
            let places = [
                ("location", WEIGHTS.to_owned()),
                ("offset", (layer * bytes).to_string()),
                ("length", bytes.to_string()),
            ];
            for (key, value) in places {
                message(tensor, 13, |entry| {
                    text(entry, 1, key);
                    text(entry, 2, &value);
                });
            }
            number(tensor, 14, EXTERNAL);
        });
    }
    weights.flush()?;
    text(&mut graph, 2, "stack");
    message(&mut graph, 11, |input| rows_of(input, "x0", width));
    message(&mut graph, 12, |output| rows_of(output, &format!("x{layers}"), width));
    let mut model = Vec::new();
    number(&mut model, 1, 8);
    message(&mut model, 7, |target| target.extend(graph));
    message(&mut model, 8, |opset| number(opset, 2, 17));
    std::fs::write(folder.join("model.onnx"), model).context("the model could not be written")
}

fn operator(node: &mut Vec<u8>, operator: &str, inputs: &[&str], output: &str) {
    inputs.iter().for_each(|input| text(node, 1, input));
    text(node, 2, output);
    text(node, 3, output);
    text(node, 4, operator);
}

fn rows_of(value: &mut Vec<u8>, name: &str, width: usize) {
    text(value, 1, name);
    message(value, 2, |kind| {
        message(kind, 1, |tensor| {
            number(tensor, 1, FLOAT);
            message(tensor, 2, |shape| {
                message(shape, 1, |dim| text(dim, 2, "batch"));
                message(shape, 1, |dim| number(dim, 1, width as u64));
            });
        });
    });
}

/// A field of a protobuf message, by its number in `onnx.proto`.
fn message(target: &mut Vec<u8>, field: u64, content: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    content(&mut inner);
    varint(target, field << 3 | 2);
    varint(target, inner.len() as u64);
    target.extend(inner);
}

fn text(target: &mut Vec<u8>, field: u64, text: &str) {
    message(target, field, |inner| inner.extend(text.as_bytes()));
}

fn number(target: &mut Vec<u8>, field: u64, number: u64) {
    varint(target, field << 3);
    varint(target, number);
}

fn varint(target: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        target.push(number as u8 | 0x80);
        number >>= 7;
    }
    target.push(number as u8);
}

const MESSAGE_ROWS: usize = 64;
const WEIGHTS: &str = "weights.bin";
/// `TensorProto.FLOAT` and `TensorProto.EXTERNAL`.
const FLOAT: u64 = 1;
const EXTERNAL: u64 = 1;
/// Sums of thousands of products in another order differ in their last digits.
const ABSOLUTE: f64 = 1e-5;
const RELATIVE: f64 = 1e-4;
