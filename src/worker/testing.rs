//! Jobs for unit tests, without a broker.

use std::sync::Arc;

use bytes::Bytes;
use lapin::BasicProperties;
use tokio::time::Instant;

use super::consume::Delivery;
use super::decode::{Envelope, Job, Lane, WantedOutput};
use super::settle::{Receipts, Settler, generation};
use crate::model::signature::{Dim, Signature, TensorSpec};
use crate::telemetry::metrics::{Metrics, ReceiptMetrics};
use crate::wire::tensor::{Datatype, Tensor};

/// Makes jobs of one generation for a model that takes and gives FP32 `[batch, 2]`.
pub struct Jobs {
    metrics: Metrics,
    receipts: Receipts,
    settler: Option<Settler>,
    pub lane: Arc<Lane>,
}

impl Jobs {
    pub fn new() -> Self {
        let metrics = Metrics::new().unwrap();
        let (receipts, settler) = generation(1000, metrics.receipts.clone());
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            datatype: Datatype::Fp32,
            shape: vec![Dim::Dynamic("batch".to_owned()), Dim::Fixed(2)],
        };
        let lane = Arc::new(Lane {
            model: "pair".into(),
            version: "1".to_owned(),
            signature: Signature {
                inputs: vec![spec("x")],
                outputs: vec![spec("y")],
            },
            batching: true,
            rows_max: 4,
            metrics: metrics.lane("pair", "1"),
        });
        Self {
            metrics,
            receipts,
            settler: Some(settler),
            lane,
        }
    }

    /// A job of `rows` rows; the first element of each is `id`.
    pub fn job(&self, id: u64, rows: usize) -> Job {
        let values: Vec<f32> = (0..rows).flat_map(|row| [id as f32, row as f32]).collect();
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Job {
            envelope: self.envelope(BasicProperties::default(), Bytes::new()),
            lane: self.lane.clone(),
            id: Some(id.to_string()),
            inputs: vec![Tensor {
                name: "x".to_owned(),
                datatype: Datatype::Fp32,
                shape: vec![rows, 2],
                data: data.into(),
            }],
            rows,
            outputs: vec![WantedOutput { index: 0, binary: true }],
        }
    }

    pub fn envelope(&self, properties: BasicProperties, body: Bytes) -> Envelope {
        Envelope::new(
            self.delivery(properties, body),
            "pair".into(),
            1,
            self.metrics.model("pair"),
        )
    }

    pub fn delivery(&self, properties: BasicProperties, body: Bytes) -> Delivery {
        Delivery {
            properties,
            body,
            redelivered: false,
            arrived: Instant::now(),
            receipt: self.receipts.receipt(1),
            memory: None,
        }
    }

    /// As if the channel had closed.
    pub fn lose_channel(&mut self) {
        self.settler = None;
    }
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
