//! From the outputs of a run to the reply's body, straight out of the runtime's buffers.

use std::fmt;
use std::ops::Range;

use super::decode::{Job, Lane};
use super::infer::{EngineError, Output};
use crate::error::JobError;
use crate::wire::Encoded;
use crate::wire::reply::{ReplyMeta, ReplyOutput, encode_reply};
use crate::wire::tensor::{Datatype, bytes_elements, element_count, rows_range};

/// The outputs of one run, and which rows of the batch they are.
pub struct Run {
    pub rows: Range<usize>,
    pub outputs: Vec<Output>,
}

impl Run {
    /// Checks that every output is there, and as long as its shape says.
    ///
    /// # Errors
    /// The engine gave something else than the model's signature promises.
    pub fn check(&self, lane: &Lane) -> Result<(), EngineError> {
        let specs = &lane.signature.outputs;
        if self.outputs.len() != specs.len() {
            return Err(EngineError::Run(format!(
                "{} outputs came, the model has {}",
                self.outputs.len(),
                specs.len()
            )));
        }
        for (output, spec) in self.outputs.iter().zip(specs) {
            let (name, shape) = (&spec.name, &output.shape);
            let bytes = output.bytes().len();
            if !holds(output, spec.datatype) {
                return Err(EngineError::Run(format!(
                    "output `{name}` has shape {shape:?} of {} in {bytes} bytes",
                    spec.datatype
                )));
            }
        }
        Ok(())
    }

    /// The first output without one row for each row of the inputs; without any, rows can go back to their jobs.
    pub fn output_without_rows<'a>(&'a self, lane: &'a Lane) -> Option<OutputWithoutRows<'a>> {
        let rows = self.rows.len();
        let mut outputs = self.outputs.iter().zip(&lane.signature.outputs);
        let (output, spec) = outputs.find(|(output, _)| output.shape.first() != Some(&rows))?;
        Some(OutputWithoutRows {
            name: &spec.name,
            shape: &output.shape,
            rows,
        })
    }
}

/// An output that does not have one row for each row of the inputs.
#[derive(Debug, PartialEq, Eq)]
pub struct OutputWithoutRows<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    pub rows: usize,
}

impl fmt::Display for OutputWithoutRows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "output `{}` has shape {:?} for {} rows",
            self.name, self.shape, self.rows
        )
    }
}

/// The part of a batch's outputs that belongs to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share {
    /// All of the only run, whatever came.
    Whole,
    /// These rows of the batch.
    Rows(Range<usize>),
}

fn holds(output: &Output, datatype: Datatype) -> bool {
    let Some(elements) = element_count(&output.shape) else {
        return false;
    };
    match datatype.element_bytes() {
        Some(bytes) => elements.checked_mul(bytes) == Some(output.bytes().len()),
        None => bytes_elements(output.bytes()).count() == elements,
    }
}

/// Encodes the reply of one job, which gets its `share` of what `runs` computed.
///
/// # Errors
/// The reply would be bigger than a message may be.
pub fn encode(job: &Job, runs: &[Run], share: &Share, bytes_max: usize) -> Result<Encoded, JobError> {
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
            let Share::Rows(rows) = share else {
                pieces.push(output.bytes());
                continue;
            };
            let overlap = rows.start.max(run.rows.start)..rows.end.min(run.rows.end);
            if overlap.is_empty() {
                continue;
            }
            let within = overlap.start - run.rows.start..overlap.end - run.rows.start;
            pieces.push(&output.bytes()[rows_range(output.bytes(), datatype, &output.shape, &within)]);
        }
        if let Share::Rows(rows) = share {
            shape[0] = rows.len();
        }
        shapes.push(shape);
        parts.push(pieces);
    }
    let raw_bytes: usize = parts.iter().flatten().map(|part| part.len()).sum();
    if raw_bytes > bytes_max {
        return Err(JobError::ReplyTooLarge {
            bytes: raw_bytes,
            max: bytes_max,
        });
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

#[cfg(test)]
mod tests {
    use super::super::testing::Jobs;
    use super::*;
    use crate::model::test_engine::{f32_bytes, spec};
    use crate::wire::tensor::push_bytes_element;

    fn run(shape: &[usize], bytes: Vec<u8>) -> Run {
        Run {
            rows: 0..2,
            outputs: vec![Output::new(shape.to_vec(), bytes)],
        }
    }

    fn fault(run: &Run, lane: &Lane) -> String {
        run.check(lane).unwrap_err().to_string()
    }

    #[test]
    fn outputs_that_are_not_what_the_signature_promises_are_an_error_that_names_them() {
        let jobs = Jobs::new();
        let pair = || f32_bytes([0.0; 4]);
        let none = Run {
            rows: 0..2,
            outputs: Vec::new(),
        };

        assert!(run(&[2, 2], pair()).check(&jobs.lane).is_ok());
        for (run, text) in [
            (none, "0 outputs came, the model has 1"),
            (
                run(&[2, 2], vec![0; 15]),
                "output `y` has shape [2, 2] of FP32 in 15 bytes",
            ),
            (run(&[2, usize::MAX], pair()), "of FP32 in 16 bytes"),
        ] {
            let fault = fault(&run, &jobs.lane);
            assert!(fault.contains(text), "{fault}");
        }
    }

    #[test]
    fn an_output_without_one_row_a_row_is_named() {
        let jobs = Jobs::new();

        assert_eq!(run(&[2, 2], Vec::new()).output_without_rows(&jobs.lane), None);
        for shape in [&[][..], &[0, 2], &[3, 2]] {
            let run = run(shape, Vec::new());
            let found = run.output_without_rows(&jobs.lane).unwrap();
            assert_eq!(found.to_string(), format!("output `y` has shape {shape:?} for 2 rows"));
        }
    }

    #[test]
    fn texts_are_counted_since_their_length_says_nothing() {
        let mut jobs = Jobs::new();
        jobs.lane_mut().signature.outputs = vec![spec("label", Datatype::Bytes, &["batch"])];
        let mut texts = Vec::new();
        push_bytes_element(&mut texts, b"one");
        let one = texts.clone();
        push_bytes_element(&mut texts, b"");

        assert!(run(&[2], texts).check(&jobs.lane).is_ok());
        assert!(fault(&run(&[2], one), &jobs.lane).contains("output `label` has shape [2] of BYTES"));
    }
}
