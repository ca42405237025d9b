//! A model's rows, as `inferq models inspect` and `check` show them.

use std::fmt;

use serde::Serialize;

use crate::model::batching::{Batching, DecidedBy, RowsReport};
use crate::model::signature::Signature;
use crate::wire::rows::RowRelation;

/// The relation of a model's rows, its source and its reason.
#[derive(Debug, Serialize)]
pub(super) struct ShownRows {
    relation: &'static str,
    decided_by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    because: Option<String>,
    /// Relation by the graph alone.
    graph: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    graph_because: Option<String>,
    /// Names of the outputs whose first axis counts the rows.
    row_outputs: Vec<String>,
}

impl ShownRows {
    pub(super) fn of(rows: &RowsReport, signature: &Signature) -> Self {
        let outputs = signature.outputs.iter().zip(&rows.row_outputs);
        let row_outputs = outputs.filter(|(_, is_rows)| **is_rows);
        Self {
            relation: rows.relation.name(),
            decided_by: rows.decided_by.name(),
            because: rows.reason.clone(),
            graph: rows.proof.relation().name(),
            graph_because: rows.proof.reason().map(str::to_owned),
            row_outputs: row_outputs.map(|(spec, _)| spec.name.clone()).collect(),
        }
    }
}

impl fmt::Display for ShownRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.decided_by != DecidedBy::Graph.name() {
            let reason = self.graph_because.as_deref().unwrap_or_default();
            write!(f, "{} ({reason}); by {}: ", self.graph, self.decided_by)?;
        }
        f.write_str(self.relation)?;
        match &self.because {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// The reason that a model is not batched, without repeating what was said of its rows.
pub(super) fn short_reason(rows: &ShownRows, off_because: &str) -> String {
    if rows.because.as_deref() != Some(off_because) {
        off_because.to_owned()
    } else if rows.relation == RowRelation::Coupled.name() {
        "its rows are coupled".to_owned()
    } else {
        "nothing shows that its rows are independent".to_owned()
    }
}

pub(super) fn off_because(batching: Batching) -> Option<String> {
    match batching {
        Batching::Rows => None,
        Batching::Off { reason } => Some(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::rows::RowsVerdict;
    use crate::model::test_engine::TestEngine;
    use crate::worker::infer::Engine as _;

    fn shown(proof: RowsVerdict, relation: RowRelation, decided_by: DecidedBy, reason: Option<&str>) -> ShownRows {
        let report = RowsReport {
            proof,
            relation,
            decided_by,
            reason: reason.map(str::to_owned),
            row_outputs: vec![true],
            batching: Batching::Rows,
        };
        ShownRows::of(&report, TestEngine::sums().signature())
    }

    fn unknown() -> RowsVerdict {
        let reason = "custom operator mine.Custom".to_owned();
        RowsVerdict::Unknown { reason }
    }

    #[test]
    fn a_trial_is_told_beside_what_the_graph_leaves_open() {
        let sure = shown(
            RowsVerdict::Independent,
            RowRelation::Independent,
            DecidedBy::Graph,
            None,
        );
        let tried = shown(unknown(), RowRelation::Independent, DecidedBy::Trial, None);
        let found = shown(
            unknown(),
            RowRelation::Coupled,
            DecidedBy::Trial,
            Some("1 alone, 2 with others"),
        );
        let stated = shown(unknown(), RowRelation::Independent, DecidedBy::Owner, None);
        let open = shown(
            unknown(),
            RowRelation::Unknown,
            DecidedBy::Graph,
            Some("custom operator mine.Custom"),
        );

        assert_eq!(sure.to_string(), "independent");
        let unknown = "unknown (custom operator mine.Custom)";
        assert_eq!(tried.to_string(), format!("{unknown}; by trial: independent"));
        assert_eq!(
            found.to_string(),
            format!("{unknown}; by trial: coupled: 1 alone, 2 with others")
        );
        assert_eq!(stated.to_string(), format!("{unknown}; by model.toml: independent"));
        assert_eq!(open.to_string(), "unknown: custom operator mine.Custom");
    }

    #[test]
    fn a_reason_is_not_said_twice() {
        let rows = shown(unknown(), RowRelation::Coupled, DecidedBy::Trial, Some("they differ"));

        assert_eq!(short_reason(&rows, "they differ"), "its rows are coupled");
        assert_eq!(short_reason(&rows, "another"), "another");
    }
}
