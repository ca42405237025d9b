//! Whether the rows of a model are independent of each other, read from its graph.

use std::path::Path;

use crate::wire::rows::RowRelation;

/// Reads the graph of a model and says how its rows relate. What cannot be read is unknown.
pub fn prove(path: &Path) -> RowsProof {
    RowsProof {
        verdict: RowsVerdict::Unknown {
            reason: format!("{} was not read", path.display()),
        },
        outputs: Vec::new(),
    }
}

/// What the graph of a model shows of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsProof {
    pub verdict: RowsVerdict,
    /// For every output of the model, by name: whether its first axis counts the rows.
    pub outputs: Vec<(String, bool)>,
}

impl RowsProof {
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
