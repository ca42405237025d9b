//! What does each step of a job's way cost the worker by itself: decode, batch copy, encode, settle?
//!
//! ```sh
//! cargo bench --bench micro              # all of them
//! cargo bench --bench micro -- decode    # those with this in their name
//! ```
//!
//! Every step is called by the function that the worker calls, on bodies as they come from a queue. A job is one row of
//! 1000 float32, a batch 64 jobs. Needs what `make setup` installs.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use inferq::model::batching::Batching;
use inferq::model::onnx::tensor_proto::DataType;
use inferq::model::onnx::tensor_shape_proto::{Dimension, dimension};
use inferq::model::onnx::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    type_proto,
};
use inferq::model::rows;
use inferq::telemetry::metrics::Metrics;
use inferq::wire::reply::{ReplyMeta, ReplyOutput, encode_reply};
use inferq::wire::request::{RequestEncoding, encode_request};
use inferq::wire::tensor::{Datatype, Tensor};
use inferq::wire::{Encoded, Encoding};
use inferq::worker::backlog::PaceHandle;
use inferq::worker::coalesce::Hurry;
use inferq::worker::consume::Delivery;
use inferq::worker::decode::{self, Lane, Limits, Served};
use inferq::worker::hardware::Hardware;
use inferq::worker::infer::{Engine as _, Input};
use inferq::worker::lane_rows::LaneRows;
use inferq::worker::onnx::{OnnxEngine, Runtime, SharedWeights, TELEMETRY_OFF};
use inferq::worker::row_headers::RowHeaders;
use inferq::worker::settle::{Verdict, Window, generation};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::Instant;

const COLUMNS: usize = 1000;
const BATCH_JOBS: usize = 64;
const ENCODINGS: [(&str, RequestEncoding); 3] = [
    ("msgpack", RequestEncoding::MsgPack),
    ("json", RequestEncoding::Json),
    ("binary", RequestEncoding::Binary),
];

criterion_group!(benches, decode, batch_copy, encode, settle, prove);

fn main() {
    // SAFETY: the first statement of `main`, so there is no other thread that could read the environment.
    #[expect(unsafe_code, reason = "ONNX Runtime listens to nothing but this variable")]
    unsafe {
        std::env::set_var(TELEMETRY_OFF, "1");
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}

/// From a delivery to a job that fits its model, for each of the three bodies.
fn decode(criterion: &mut Criterion) {
    let metrics = Metrics::new().expect("the names of the metrics are valid");
    let served = served(&metrics);
    let limits = Limits {
        body_bytes_max: 1 << 24,
        delivery_limit: 10,
    };
    // Kept, so that the receipts are current and end as those of a worker do.
    let (receipts, _settler) = generation(256, metrics.receipts);
    let mut group = criterion.benchmark_group("decode");
    for (name, encoding) in ENCODINGS {
        let encoded = encode_request(encoding, None, &[row()], &[]);
        group.throughput(Throughput::Bytes(encoded.body.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || Delivery {
                    properties: properties(&encoded),
                    body: encoded.body.clone(),
                    redelivered: false,
                    arrived: Instant::now(),
                    receipt: receipts.receipt(1),
                    claim: None,
                },
                |delivery| match decode::decode(delivery, &served, &limits) {
                    Ok(job) => job,
                    Err(_) => panic!("the job does not fit"),
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// From the bodies of 64 jobs into one tensor of ONNX Runtime, and through a model that only hands it on.
fn batch_copy(criterion: &mut Criterion) {
    let runtime = runtime();
    let model = root().join("tests/models/repository/identity-fp32/1/model.onnx");
    let mut engine =
        OnnxEngine::load(&runtime, &model, &SharedWeights::new(&runtime), &Hardware::CPU).expect("the model loads");
    // The model takes rows of 3: as many of them as come nearest to a row of 1000.
    let (rows, columns) = (COLUMNS / 3, 3);
    let jobs = vec![vec![0u8; 4 * rows * columns]; BATCH_JOBS];
    let mut group = criterion.benchmark_group("batch copy");
    for (name, jobs) in [("1 job", &jobs[..1]), ("64 jobs", &jobs[..])] {
        let bytes: usize = jobs.iter().map(Vec::len).sum();
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let input = Input {
                    shape: vec![jobs.len() * rows, columns],
                    parts: jobs.iter().map(Vec::as_slice).collect(),
                };
                engine.run(&[input]).expect("the model runs")
            });
        });
    }
    group.finish();
}

/// From ten probabilities where the runtime left them to a reply's body, for each of the three bodies.
fn encode(criterion: &mut Criterion) {
    let probabilities: Vec<u8> = [0.1f32; 10].into_iter().flat_map(f32::to_le_bytes).collect();
    let meta = ReplyMeta {
        model_name: "dense",
        model_version: "1",
        id: None,
    };
    let output = ReplyOutput {
        name: "output",
        datatype: Datatype::Fp32,
        shape: &[1, 10],
        parts: &[&probabilities],
        binary: true,
    };
    let mut group = criterion.benchmark_group("encode");
    for (name, encoding) in ENCODINGS {
        let encoding = match encoding {
            RequestEncoding::MsgPack => Encoding::MsgPack,
            RequestEncoding::Json => Encoding::Json,
            RequestEncoding::Binary => Encoding::Binary { json_bytes: 0 },
        };
        group.bench_function(name, |bencher| {
            bencher.iter(|| encode_reply(black_box(&encoding), &meta, &[output]));
        });
    }
    group.finish();
}

/// From the verdicts of a full prefetch window of 256 to its acks, in batches of 64: in order, and behind a straggler.
fn settle(criterion: &mut Criterion) {
    const PREFETCH: u64 = 256;
    let mut group = criterion.benchmark_group("settle");
    group.throughput(Throughput::Elements(PREFETCH));
    for (name, first) in [("in order", 1), ("behind a straggler", 2)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut window = Window::new(PREFETCH as usize / 2);
                let mut frames = 0;
                for tag in (first..=PREFETCH).chain(1..first) {
                    window.settle(tag, Verdict::Ack);
                    if tag % BATCH_JOBS as u64 == 0 {
                        frames += window.flush().len();
                    }
                }
                frames + window.flush().len()
            });
        });
    }
    group.finish();
}

/// The model `dense`, alone.
fn served(metrics: &Metrics) -> Served {
    let model = root().join("models/dense/1/model.onnx");
    let runtime = runtime();
    let engine =
        OnnxEngine::load(&runtime, &model, &SharedWeights::new(&runtime), &Hardware::CPU).expect("the model loads");
    let lane = Arc::new(Lane {
        model: "dense".into(),
        version: "1".to_owned(),
        signature: engine.signature().clone(),
        defaults: Vec::new(),
        rows: Arc::new(LaneRows::new(&Batching::Rows, RowHeaders::independent())),
        rows_max: BATCH_JOBS,
        engines: 1,
        capacity: Arc::default(),
        hurry: Hurry::here(),
        metrics: metrics.lane("dense", "1"),
    });
    Served {
        name: "dense".into(),
        lanes: [(1, (lane, mpsc::channel(1).0))].into(),
        default_version: 1,
        left_out: Vec::new(),
        metrics: metrics.model("dense").into(),
        pace: PaceHandle::alone(),
        traces: None,
    }
}

fn runtime() -> Runtime {
    Runtime::load().expect("ONNX Runtime is there; `make setup` puts it in place")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn row() -> Tensor {
    let values: Vec<f32> = (0..COLUMNS)
        .map(|column| (column * 7919 % 2003) as f32 / 1001.5 - 1.0)
        .collect();
    Tensor::fp32("input", &[1, COLUMNS], &values)
}

fn properties(encoded: &Encoded) -> BasicProperties {
    let mut headers = FieldTable::default();
    if let Some(bytes) = encoded.json_bytes {
        headers.insert(
            "inference-header-content-length".into(),
            AMQPValue::LongLongInt(bytes as i64),
        );
    }
    BasicProperties::default()
        .with_content_type(encoded.content_type.into())
        .with_headers(headers)
        .with_reply_to("answers".into())
        .with_correlation_id("0000000000000001".into())
}

/// Reading a graph of ten thousand nodes, and following its rows through it.
fn prove(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, deep(10_000).encode_to_vec()).expect("room for a model");
    criterion.bench_function("prove/10,000 nodes", |bencher| {
        bencher.iter(|| rows::prove(black_box(&path)));
    });
}

/// A chain of products, sums and activations.
fn deep(nodes: usize) -> ModelProto {
    let dim = |value| Dimension {
        value: Some(value),
        ..Dimension::default()
    };
    let shape = TensorShapeProto {
        dim: vec![
            dim(dimension::Value::DimParam("n".to_owned())),
            dim(dimension::Value::DimValue(4)),
        ],
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(DataType::Float as i32),
        shape: Some(shape),
    };
    let node = |number: usize| {
        let (kind, other) = [("MatMul", "w"), ("Add", "b"), ("Relu", "")][number % 3];
        let inputs = [format!("v{number}"), other.to_owned()];
        NodeProto {
            op_type: Some(kind.to_owned()),
            input: inputs.into_iter().filter(|name| !name.is_empty()).collect(),
            output: vec![format!("v{}", number + 1)],
            ..NodeProto::default()
        }
    };
    let weights = |name: &str, dims: Vec<i64>| TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(DataType::Float as i32),
        float_data: vec![0.5; dims.iter().product::<i64>() as usize],
        dims,
        ..TensorProto::default()
    };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto {
            version: Some(17),
            ..OperatorSetIdProto::default()
        }],
        graph: Some(GraphProto {
            node: (0..nodes).map(node).collect(),
            initializer: vec![weights("w", vec![4, 4]), weights("b", vec![4])],
            input: vec![ValueInfoProto {
                name: Some("v0".to_owned()),
                r#type: Some(TypeProto {
                    value: Some(type_proto::Value::TensorType(tensor)),
                    ..TypeProto::default()
                }),
                ..ValueInfoProto::default()
            }],
            output: vec![ValueInfoProto {
                name: Some(format!("v{nodes}")),
                ..ValueInfoProto::default()
            }],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}
