//! Whether the rows of a model are independent of each other, read from its graph.
//!
//! The rows are the places along the first axis of every input. `walk` follows them through the graph, node by node: along
//! which axis of each value they lie (`value`), with sizes in symbols (`size`), by what the operators are defined to do
//! (`rules`). Rows are independent if every output has them along its first axis, and at each place depends on that row
//! alone, whatever the values are.

mod control;
mod op;
mod rules;
mod size;
#[cfg(test)]
pub(in crate::model) mod testing;
#[cfg(test)]
mod tests;
mod value;
mod walk;

use std::path::Path;

use super::onnx::{self, ModelProto, OnnxError};
use crate::error::chain;
use crate::wire::rows::RowRelation;

/// Reads the graph of a model and says how its rows relate. A graph that cannot be read leaves that unknown.
///
/// Time: some microseconds a node. Memory: that of the graph without its weights.
pub fn prove(path: &Path) -> RowsProof {
    match onnx::read(path) {
        Ok(model) => prove_model(&model),
        Err(error) => RowsProof::unreadable(&error),
    }
}

/// Says how the rows of a model relate whose graph was read.
pub fn prove_model(model: &ModelProto) -> RowsProof {
    walk::prove(model)
}

/// What the graph of a model shows of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsProof {
    pub verdict: RowsVerdict,
    /// For every output of the model, by name: whether its first axis counts the rows.
    pub outputs: Vec<(String, bool)>,
}

impl RowsProof {
    /// What is known of a model whose graph cannot be read: nothing.
    pub fn unreadable(error: &OnnxError) -> Self {
        Self {
            verdict: RowsVerdict::Unknown {
                reason: format!("its graph cannot be read: {}", chain(&error.kind)),
            },
            outputs: Vec::new(),
        }
    }

    /// Whether the first axis of this output counts the rows.
    pub fn is_row_output(&self, name: &str) -> bool {
        self.outputs.iter().any(|(output, is_rows)| output == name && *is_rows)
    }
}

/// How the rows of a model relate, and where they do not stay apart, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowsVerdict {
    /// Proven: rows of several jobs may share a run.
    Independent,
    /// Shown by a node: rows of several jobs must never share a run.
    Coupled { reason: String },
    /// The graph does not tell.
    Unknown { reason: String },
}

impl RowsVerdict {
    pub fn relation(&self) -> RowRelation {
        match self {
            Self::Independent => RowRelation::Independent,
            Self::Coupled { .. } => RowRelation::Coupled,
            Self::Unknown { .. } => RowRelation::Unknown,
        }
    }

    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Independent => None,
            Self::Coupled { reason } | Self::Unknown { reason } => Some(reason),
        }
    }
}
