//! What each operator does with the rows of its inputs: one file for each family of operators.
//!
//! A rule gives the values of a node's outputs, or says what has become of all of them. It claims that rows stay apart, or that they
//! meet, only where the operator's definition says so; all else is unknown. Operators whose inputs no row reaches need no rule.
//!
//! # Source
//! ONNX Operator Schemas, versions 1 to 26 of the default domain and 1 to 5 of `ai.onnx.ml`; ONNX Runtime, "Contrib Operators".

mod aligned;
mod broadcast;
mod elementwise;
mod indexing;
mod layout;
mod matrix;
mod normalize;
mod reshape;
mod sequences;
mod shapes;
mod spatial;

use super::op::{Op, Ruled};
use super::value::Value;

pub(super) use shapes::of_tensor;

/// The values of a node's outputs; `None` if no rule is known for its operator.
pub(super) fn apply(op: &Op<'_>) -> Option<Ruled> {
    match op.domain() {
        "" => standard(op),
        "ai.onnx.ml" => aligned::apply(op),
        "com.microsoft" => contrib(op),
        _ => None,
    }
}

fn standard(op: &Op<'_>) -> Option<Ruled> {
    elementwise::apply(op)
        .or_else(|| layout::apply(op))
        .or_else(|| shapes::apply(op))
        .or_else(|| indexing::apply(op))
        .or_else(|| matrix::apply(op))
        .or_else(|| normalize::apply(op))
        .or_else(|| spatial::apply(op))
        .or_else(|| sequences::apply(op))
        .or_else(|| aligned::apply(op))
}

fn contrib(op: &Op<'_>) -> Option<Ruled> {
    elementwise::apply(op)
        .or_else(|| matrix::apply(op))
        .or_else(|| normalize::apply(op))
        .or_else(|| aligned::apply(op))
}

fn one(value: Value) -> Vec<Value> {
    vec![value]
}
