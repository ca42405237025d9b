//! Jobs for unit tests, without a broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::Instant;

use super::backlog::PaceHandle;
use super::coalesce::Hurry;
use super::consume::Delivery;
use super::decode::{Envelope, Job, Lane, Limits, Served, WantedOutput};
use super::lane_rows::LaneRows;
use super::message::Author;
use super::plan::Plan;
use super::row_headers::RowHeaders;
use super::settle::{Receipts, Settler, Verdict, generation};
use crate::broker::topology::Names;
use crate::config::Unroutable;
use crate::model::batching::Batching;
use crate::model::signature::Signature;
use crate::model::test_engine::spec;
use crate::telemetry::metrics::{Metrics, ReceiptMetrics};
use crate::wire::tensor::{Datatype, Tensor};

/// Makes jobs of one generation for one model.
pub struct Jobs {
    pub metrics: Metrics,
    receipts: Receipts,
    settler: Option<Settler>,
    delivered: AtomicU64,
    pub lane: Arc<Lane>,
}

impl Jobs {
    /// For a model that takes and gives FP32 `[batch, 2]`.
    pub fn new() -> Self {
        Self::of(Signature {
            inputs: vec![spec("x", Datatype::Fp32, &["batch", "2"])],
            outputs: vec![spec("y", Datatype::Fp32, &["batch", "2"])],
        })
    }

    /// For a batched model of this signature, with at most 4 rows a batch.
    pub fn of(signature: Signature) -> Self {
        let metrics = Metrics::new().unwrap();
        let (receipts, settler) = generation(1000, metrics.receipts.clone());
        let lane = Arc::new(Lane {
            model: "pair".into(),
            version: "1".to_owned(),
            signature,
            defaults: Vec::new(),
            rows: batched(),
            rows_max: 4,
            engines: 1,
            capacity: Arc::default(),
            hurry: Hurry::here(),
            metrics: metrics.lane("pair", "1"),
        });
        Self {
            metrics,
            receipts,
            settler: Some(settler),
            delivered: AtomicU64::new(0),
            lane,
        }
    }

    pub fn lane_mut(&mut self) -> &mut Lane {
        Arc::get_mut(&mut self.lane).expect("changed before the first job")
    }

    /// A job of `rows` rows; the first element of each is `id`, the second the number of the row.
    pub fn job(&self, id: u64, rows: usize) -> Job {
        let values: Vec<f32> = (0..rows).flat_map(|row| [id as f32, row as f32]).collect();
        self.job_with(id, vec![Tensor::fp32("x", &[rows, 2], &values)])
    }

    /// A job that asks for all outputs as raw bytes.
    pub fn job_with(&self, id: u64, inputs: Vec<Tensor>) -> Job {
        Job {
            envelope: self.envelope(BasicProperties::default(), Bytes::new()),
            lane: self.lane.clone(),
            id: Some(id.to_string()),
            rows: inputs[0].shape[0],
            inputs,
            given: Vec::new(),
            outputs: (0..self.lane.signature.outputs.len())
                .map(|index| WantedOutput { index, binary: true })
                .collect(),
        }
    }

    pub fn envelope(&self, properties: BasicProperties, body: Bytes) -> Box<Envelope> {
        Box::new(Envelope::new(
            self.delivery(properties, body),
            "pair".into(),
            1,
            self.metrics.model("pair").into(),
        ))
    }

    pub fn delivery(&self, properties: BasicProperties, body: Bytes) -> Delivery {
        let tag = self.delivered.fetch_add(1, Ordering::Relaxed) + 1;
        Delivery {
            properties,
            body,
            redelivered: false,
            arrived: Instant::now(),
            receipt: self.receipts.receipt(tag),
            claim: None,
        }
    }

    /// The model with its lane as the only version, and where its jobs go.
    pub fn served(&self) -> (Served, Receiver<Job>) {
        let (jobs, receiver) = mpsc::channel(16);
        let served = Served {
            name: "pair".into(),
            lanes: [(1, (self.lane.clone(), jobs))].into(),
            default_version: 1,
            left_out: Vec::new(),
            metrics: self.metrics.model("pair").into(),
            traces: None,
            pace: PaceHandle::alone(),
        };
        (served, receiver)
    }

    /// What was settled since the last call, in the order it was.
    pub fn verdicts(&mut self) -> Vec<Verdict> {
        let told = self.settler.as_mut().map_or_else(Vec::new, Settler::told);
        told.into_iter().map(|(_, verdict)| verdict).collect()
    }

    /// As if the channel had closed.
    pub fn lose_channel(&mut self) {
        self.settler = None;
    }
}

/// The rules of what is published for the answers to these jobs.
pub fn plan(jobs: &Jobs) -> Plan {
    Plan {
        author: Author {
            names: Names::new("inferq"),
            worker: "worker-7".to_owned(),
        },
        uncounted: false,
        unroutable: Unroutable::DeadLetter,
        metrics: jobs.metrics.reply.clone(),
    }
}

/// Nothing is known of these rows, and they are not batched.
pub fn not_batched() -> Arc<LaneRows> {
    let reason = "on purpose".to_owned();
    Arc::new(LaneRows::new(&Batching::Off { reason }, RowHeaders::unknown()))
}

/// These rows are batched.
pub fn batched() -> Arc<LaneRows> {
    Arc::new(LaneRows::new(&Batching::Rows, RowHeaders::independent()))
}

/// What tells jobs apart in tests.
pub fn ids(jobs: &[Job]) -> Vec<u64> {
    jobs.iter()
        .map(|job| job.id.as_ref().unwrap().parse().unwrap())
        .collect()
}

pub fn receipt_metrics() -> ReceiptMetrics {
    Metrics::new().unwrap().receipts
}

pub const LIMITS: Limits = Limits {
    body_bytes_max: 64 * 1024,
    delivery_limit: 10,
};

/// Properties of a job with these headers.
pub fn headers<const N: usize>(headers: [(&str, AMQPValue); N]) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert(name.into(), value);
    }
    BasicProperties::default().with_headers(table)
}

pub fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
