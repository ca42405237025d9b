//! From the outputs of a run to the reply's body, straight out of the runtime's buffers.

use std::ops::Range;

use super::decode::{Job, Lane};
use super::infer::{EngineError, Output};
use crate::error::JobError;
use crate::wire::Encoded;
use crate::wire::reply::{ReplyMeta, ReplyOutput, encode_reply};
use crate::wire::tensor::rows_range;

/// The outputs of one run, and which rows of the batch they are.
pub struct Run {
    pub rows: Range<usize>,
    pub outputs: Vec<Output>,
}

impl Run {
    /// Whether every output has a row for each input row, so that rows can go back to their jobs.
    pub fn check(&self, lane: &Lane) -> Result<(), EngineError> {
        if !lane.batching {
            return Ok(());
        }
        for (output, spec) in self.outputs.iter().zip(&lane.signature.outputs) {
            if output.shape.first() != Some(&self.rows.len()) {
                return Err(EngineError::Run(format!(
                    "output `{}` has shape {:?} for {} rows",
                    spec.name,
                    output.shape,
                    self.rows.len()
                )));
            }
        }
        Ok(())
    }
}

/// Encodes the reply of one job, whose rows are `rows` of the batch that `runs` computed.
///
/// # Errors
/// The reply would be bigger than a message may be.
pub fn encode(job: &Job, runs: &[Run], rows: Range<usize>, bytes_max: usize) -> Result<Encoded, JobError> {
    let lane = &job.lane;
    let mut shapes = Vec::with_capacity(job.outputs.len());
    let mut parts = Vec::with_capacity(job.outputs.len());
    for wanted in &job.outputs {
        let datatype = lane.signature.outputs[wanted.index].datatype;
        let mut shape = runs[0].outputs[wanted.index].shape.clone();
        let mut pieces = Vec::with_capacity(1);
        for run in runs {
            let output = &run.outputs[wanted.index];
            if output.shape.get(1..) != shape.get(1..) {
                return Err(JobError::Failed(format!(
                    "output `{}` came in other shapes from slice to slice",
                    lane.signature.outputs[wanted.index].name
                )));
            }
            if !lane.batching {
                pieces.push(output.bytes());
                continue;
            }
            let overlap = rows.start.max(run.rows.start)..rows.end.min(run.rows.end);
            if overlap.is_empty() {
                continue;
            }
            let within = overlap.start - run.rows.start..overlap.end - run.rows.start;
            pieces.push(&output.bytes()[rows_range(output.bytes(), datatype, &output.shape, &within)]);
        }
        if lane.batching {
            shape[0] = rows.len();
        }
        shapes.push(shape);
        parts.push(pieces);
    }
    let outputs: Vec<_> = job
        .outputs
        .iter()
        .zip(shapes.iter().zip(&parts))
        .map(|(wanted, (shape, parts))| ReplyOutput {
            name: &lane.signature.outputs[wanted.index].name,
            datatype: lane.signature.outputs[wanted.index].datatype,
            shape,
            parts,
            binary: wanted.binary,
        })
        .collect();
    let meta = ReplyMeta {
        model_name: &lane.model,
        model_version: &lane.version,
        id: job.id.as_deref(),
    };
    let encoded = encode_reply(&job.envelope.encoding, &meta, &outputs);
    if encoded.body.len() > bytes_max {
        return Err(JobError::ReplyTooLarge {
            bytes: encoded.body.len(),
            max: bytes_max,
        });
    }
    Ok(encoded)
}
