//! One function for each decoder: any bytes go in, and all that may come out is an answer. `cargo fuzz` calls them with what
//! it invents (`fuzz_targets/`), and `tests/decoders.rs` with the corpus and mutations of it.
#![allow(dead_code, reason = "each fuzz target uses one of them")]

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use inferq::broker::frames::Sieve;
use inferq::broker::topology::Names;
use inferq::model::batching::Batching;
use inferq::model::signature::{Dim, Signature, TensorSpec};
use inferq::model::{onnx, rows};
use inferq::telemetry::metrics::Metrics;
use inferq::wire::Encoding;
use inferq::wire::reply::decode_reply;
use inferq::wire::reply_address;
use inferq::wire::request::decode_request;
use inferq::wire::tensor::Datatype;
use inferq::worker::backlog::PaceHandle;
use inferq::worker::coalesce::Hurry;
use inferq::worker::consume::Delivery;
use inferq::worker::decode::{Lane, Limits, Served, decode};
use inferq::worker::lane_rows::LaneRows;
use inferq::worker::message::{self, Author, DeadReason};
use inferq::worker::row_headers::RowHeaders;
use inferq::worker::settle::generation;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// An ONNX file: read, and its rows followed through the graph.
pub fn onnx(input: &[u8]) {
    if let Ok(model) = onnx::decode(std::io::Cursor::new(input)) {
        let _ = rows::prove_model(&model);
    }
}

/// A request in MessagePack.
pub fn msgpack(input: &[u8]) {
    request(&Encoding::MsgPack, input);
}

/// A request in JSON.
pub fn json(input: &[u8]) {
    request(&Encoding::Json, input);
}

/// A request in the binary tensor extension; the first two bytes say how long its JSON part is.
pub fn binary(input: &[u8]) {
    if let Some((length, body)) = input.split_first_chunk() {
        let json_bytes = usize::from(u16::from_le_bytes(*length));
        request(&Encoding::Binary { json_bytes }, body);
    }
}

/// A reply, which a producer decodes; the first byte says how it is encoded.
pub fn reply(input: &[u8]) {
    let Some((&kind, body)) = input.split_first() else {
        return;
    };
    let encoding = match kind {
        0..100 => Encoding::MsgPack,
        100..200 => Encoding::Json,
        _ => Encoding::Binary {
            json_bytes: body.len() / 2,
        },
    };
    let _ = decode_reply(&encoding, Bytes::copy_from_slice(body));
}

fn request(encoding: &Encoding, body: &[u8]) {
    let Ok(request) = decode_request(encoding, Bytes::copy_from_slice(body)) else {
        return;
    };
    for input in request.inputs {
        // Mostly what the sender says, so that conversions are reached; else one that the body decides.
        let other = Datatype::ALL[body.len() % Datatype::ALL.len()];
        let datatype = input
            .datatype
            .filter(|_| !body.len().is_multiple_of(5))
            .unwrap_or(other);
        let _ = input.into_tensor("x", datatype);
    }
}

/// A whole job: properties and headers of any type and depth, then the body. What is answered goes to the queue that the job
/// names, through the default exchange, and nowhere else.
pub fn job(input: &[u8]) {
    let mut source = Source(input);
    let properties = properties(&mut source);
    let reply_to = properties.reply_to().clone();
    let metrics = METRICS.get_or_init(|| Metrics::new().expect("metrics of fixed names"));
    let (receipts, _settler) = generation(10, metrics.receipts.clone());
    let delivery = Delivery {
        redelivered: source.byte() % 2 == 1,
        receipt: receipts.receipt(1),
        properties,
        body: Bytes::copy_from_slice(source.0),
        arrived: Instant::now(),
        claim: None,
    };
    let served = served(metrics);
    let Err(answer) = decode(delivery, &served, &LIMITS) else {
        return;
    };
    let envelope = &answer.envelope;
    if let Some(reply) = message::reply(envelope, &answer.outcome) {
        assert_eq!(reply.exchange.as_str(), "");
        let reply_to = reply_to.expect("a reply goes somewhere");
        let queue = reply_address::queue(reply_to.as_str()).expect("the address of a queue");
        assert_eq!(
            reply.routing_key.as_str(),
            queue.as_deref().unwrap_or(reply_to.as_str())
        );
        assert!(!reply.routing_key.as_str().is_empty());
    }
    let author = Author {
        names: Names::new("inferq"),
        worker: "worker".to_owned(),
    };
    let reason = DeadReason {
        code: "INVALID_ARGUMENT",
        error: "why".to_owned(),
    };
    let dead = message::dead_letter(envelope, &reason, &author);
    assert_eq!(dead.exchange.as_str(), "inferq.dead");
}

/// What a broker sends on channels 0 to 2, of which 1 is ours; the first byte says in pieces of which length it comes. Wherever
/// it is cut, the same is heard, and the client gets the same but for heartbeats.
pub fn frames(input: &[u8]) {
    let Some((&piece, bytes)) = input.split_first() else {
        return;
    };
    let (heard, client) = sifted(bytes, bytes.len());
    let (heard_in_pieces, client_in_pieces) = sifted(bytes, piece.into());
    assert_eq!(heard, heard_in_pieces);
    assert_eq!(client % HEARTBEAT_BYTES, client_in_pieces % HEARTBEAT_BYTES);
}

/// How much was heard, and how many bytes are for the client or not a frame yet.
fn sifted(bytes: &[u8], piece: usize) -> (usize, usize) {
    let mut sieve = Sieve::default();
    sieve.add(1, None);
    let (mut heard, mut waiting, mut client) = (Vec::new(), Vec::new(), 0);
    for piece in bytes.chunks(piece.max(1)) {
        waiting.extend_from_slice(piece);
        let sifted = sieve.sift(&mut waiting, &mut heard);
        client += sifted.kept;
        waiting.drain(..sifted.seen);
    }
    (heard.len(), client + waiting.len())
}

const HEARTBEAT_BYTES: usize = 8;

/// Made once: they take more time than a job.
static METRICS: OnceLock<Metrics> = OnceLock::new();

const LIMITS: Limits = Limits {
    body_bytes_max: 64 * 1024,
    delivery_limit: 10,
};

/// A model that takes FP32 `[batch, 2]`.
fn served(metrics: &Metrics) -> Served {
    let spec = |name: &str| TensorSpec {
        name: name.to_owned(),
        datatype: Datatype::Fp32,
        shape: vec![Dim::Dynamic("batch".to_owned()), Dim::Fixed(2)],
    };
    let lane = Lane {
        model: "pair".into(),
        version: "1".to_owned(),
        signature: Signature {
            inputs: vec![spec("x")],
            outputs: vec![spec("y")],
        },
        defaults: Vec::new(),
        rows: Arc::new(LaneRows::new(&Batching::Rows, RowHeaders::independent())),
        rows_max: 4,
        engines: 1,
        capacity: Arc::default(),
        hurry: Hurry::here(),
        metrics: metrics.lane("pair", "1"),
    };
    Served {
        name: "pair".into(),
        lanes: [(1, (Arc::new(lane), mpsc::channel(1).0))].into(),
        default_version: 1,
        left_out: Vec::new(),
        metrics: metrics.model("pair").into(),
        pace: PaceHandle::alone(),
        traces: None,
    }
}

/// Bytes that are used up one by one; zeros when there are none left.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.byte()).min(self.0.len());
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken.to_vec()
    }

    fn number(&mut self) -> i64 {
        let mut bytes = self.bytes();
        bytes.resize(8, 0);
        i64::from_le_bytes(bytes.try_into().unwrap_or_default())
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.bytes()).chars().take(60).collect()
    }
}

fn properties(source: &mut Source<'_>) -> BasicProperties {
    let mut properties = BasicProperties::default();
    let given = source.byte();
    if given & 1 != 0 {
        let types = ["application/msgpack", "application/json", "application/octet-stream"];
        let content_type = match types.get(usize::from(source.byte())) {
            Some(known) => (*known).to_owned(),
            None => source.text(),
        };
        properties = properties.with_content_type(content_type.as_str().into());
    }
    if given & 2 != 0 {
        properties = properties.with_reply_to(source.text().as_str().into());
    }
    if given & 4 != 0 {
        properties = properties.with_correlation_id(source.text().as_str().into());
    }
    if given & 8 != 0 {
        properties = properties.with_message_id(source.text().as_str().into());
    }
    if given & 16 != 0 {
        properties = properties.with_timestamp(source.number().cast_unsigned());
    }
    if given & 32 != 0 {
        properties = properties.with_expiration(source.text().as_str().into());
    }
    if given & 64 != 0 {
        properties = properties.with_headers(table(source, 0));
    }
    properties
}

fn table(source: &mut Source<'_>, depth: usize) -> FieldTable {
    let names = [
        "inferq-deadline",
        "inferq-model-version",
        "inferq-timing",
        "traceparent",
        "tracestate",
        "inference-header-content-length",
        "x-delivery-count",
        "x-death",
        "CC",
        "BCC",
    ];
    let mut table = FieldTable::default();
    for _ in 0..source.byte() % 16 {
        let name = match names.get(usize::from(source.byte())) {
            Some(known) => (*known).to_owned(),
            None => source.text(),
        };
        let value = value(source, depth);
        table.insert(name.as_str().into(), value);
    }
    table
}

fn value(source: &mut Source<'_>, depth: usize) -> AMQPValue {
    match source.byte() % 12 {
        0 => AMQPValue::Boolean(source.byte() % 2 == 1),
        1 => AMQPValue::ShortShortInt(source.byte().cast_signed()),
        2 => AMQPValue::LongInt(source.number() as i32),
        3 => AMQPValue::LongUInt(source.number() as u32),
        4 => AMQPValue::Double(f64::from_bits(source.number().cast_unsigned())),
        5 => AMQPValue::LongString(source.bytes().into()),
        6 => AMQPValue::ByteArray(source.bytes().into()),
        7 => AMQPValue::Timestamp(source.number().cast_unsigned()),
        8 => AMQPValue::Void,
        9 if depth < DEPTH_MAX => AMQPValue::FieldTable(table(source, depth + 1)),
        10 if depth < DEPTH_MAX => {
            let mut array = FieldArray::default();
            for _ in 0..source.byte() % 8 {
                array.push(value(source, depth + 1));
            }
            AMQPValue::FieldArray(array)
        }
        _ => AMQPValue::LongLongInt(source.number()),
    }
}

/// Deeper, the client refuses the frame before we see it.
const DEPTH_MAX: usize = 100;
