//! The headers by which a result says how the rows of its model relate, made once a lane. Pure.

use std::sync::Arc;

use lapin::types::{AMQPValue, FieldArray, FieldTable};

use super::decode::WantedOutput;
use crate::model::batching::RowsReport;
use crate::model::signature::Signature;
use crate::wire::rows::{ROW_OUTPUTS_HEADER, ROWS_HEADER, RowRelation};

/// The headers of results that say how rows relate, and which outputs have one for each row of the job.
#[derive(Debug, Clone, PartialEq)]
pub struct RowHeaders(Arc<Inner>);

#[derive(Debug, PartialEq)]
struct Inner {
    relation: RowRelation,
    /// Places in the signature and names of the row outputs; none where rows are independent, since then all are.
    row_outputs: Vec<(usize, AMQPValue)>,
    relation_value: AMQPValue,
    row_outputs_value: Option<AMQPValue>,
}

impl RowHeaders {
    /// For a model of this signature, of which this is known.
    pub fn of(rows: &RowsReport, signature: &Signature) -> Self {
        let outputs = signature.outputs.iter().zip(&rows.row_outputs).enumerate();
        let names = outputs.filter(|(_, (_, is_rows))| **is_rows);
        Self::new(rows.relation, names.map(|(place, (spec, _))| (place, text(&spec.name))))
    }

    /// For a model of whose rows nothing is known.
    pub fn unknown() -> Self {
        Self::new(RowRelation::Unknown, [])
    }

    /// For a model whose rows are independent.
    pub fn independent() -> Self {
        Self::new(RowRelation::Independent, [])
    }

    fn new(relation: RowRelation, row_outputs: impl IntoIterator<Item = (usize, AMQPValue)>) -> Self {
        let is_independent = relation == RowRelation::Independent;
        let row_outputs: Vec<_> = row_outputs.into_iter().filter(|_| !is_independent).collect();
        let names: Vec<_> = row_outputs.iter().map(|(_, name)| name.clone()).collect();
        Self(Arc::new(Inner {
            relation,
            row_outputs,
            relation_value: text(relation.name()),
            row_outputs_value: (!is_independent).then(|| AMQPValue::FieldArray(FieldArray::from(names))),
        }))
    }

    pub fn relation(&self) -> RowRelation {
        self.0.relation
    }

    /// The headers of a result that holds only these outputs. Those of a result that holds all row outputs are at hand.
    pub fn holding(&self, outputs: &[WantedOutput]) -> Self {
        let is_held = |place: usize| outputs.iter().any(|output| output.index == place);
        let row_outputs = &self.0.row_outputs;
        if row_outputs.iter().all(|(place, _)| is_held(*place)) {
            return self.clone();
        }
        let held = row_outputs.iter().filter(|(place, _)| is_held(*place));
        Self::new(self.0.relation, held.cloned())
    }

    pub fn insert_into(&self, headers: &mut FieldTable) {
        headers.insert(ROWS_HEADER.into(), self.0.relation_value.clone());
        if let Some(outputs) = &self.0.row_outputs_value {
            headers.insert(ROW_OUTPUTS_HEADER.into(), outputs.clone());
        }
    }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::batching::{Batching, DecidedBy};
    use crate::model::rows::RowsVerdict;
    use crate::model::test_engine::spec;
    use crate::wire::tensor::Datatype;

    /// Headers of a model with the outputs `a`, `b` and `c`.
    fn headers(relation: RowRelation, row_outputs: [bool; 3]) -> RowHeaders {
        let signature = Signature {
            inputs: Vec::new(),
            outputs: ["a", "b", "c"].map(|name| spec(name, Datatype::Fp32, &["n"])).into(),
        };
        let report = RowsReport {
            proof: RowsVerdict::Independent,
            relation,
            decided_by: DecidedBy::Graph,
            reason: None,
            row_outputs: row_outputs.into(),
            batching: Batching::Rows,
        };
        RowHeaders::of(&report, &signature)
    }

    fn wanted(places: &[usize]) -> Vec<WantedOutput> {
        let wanted = |index: &usize| WantedOutput {
            index: *index,
            binary: false,
        };
        places.iter().map(wanted).collect()
    }

    fn inserted(headers: &RowHeaders) -> (Option<AMQPValue>, Option<AMQPValue>) {
        let mut table = FieldTable::default();
        headers.insert_into(&mut table);
        let of = |name: &str| table.inner().get(name).cloned();
        (of(ROWS_HEADER), of(ROW_OUTPUTS_HEADER))
    }

    fn array(names: &[&str]) -> Option<AMQPValue> {
        let names: Vec<_> = names.iter().map(|name| text(name)).collect();
        Some(AMQPValue::FieldArray(FieldArray::from(names)))
    }

    #[test]
    fn of_independent_rows_only_the_relation_is_told() {
        let headers = headers(RowRelation::Independent, [true; 3]);

        assert_eq!(
            inserted(&headers.holding(&wanted(&[1]))),
            (Some(text("independent")), None)
        );
    }

    #[test]
    fn row_outputs_that_a_reply_does_not_hold_are_not_named() {
        let headers = headers(RowRelation::Coupled, [true, false, true]);
        let told = |places: &[usize]| inserted(&headers.holding(&wanted(places)));

        let coupled = Some(text("coupled"));
        assert_eq!(told(&[0, 1, 2]), (coupled.clone(), array(&["a", "c"])));
        assert_eq!(told(&[2, 1, 2]), (coupled.clone(), array(&["c"])));
        assert_eq!(told(&[1]), (coupled, array(&[])));
    }

    #[test]
    fn rows_of_which_nothing_is_known_have_no_row_outputs() {
        assert_eq!(inserted(&RowHeaders::unknown()), (Some(text("unknown")), array(&[])));
    }
}
