//! Sequences of tensors. What is known of one is known of each of its tensors.

use super::super::op::{Op, Ruled};
use super::super::size::Size;
use super::super::value::{Content, Value};
use super::one;

pub(super) fn apply(op: &Op<'_>) -> Option<Ruled> {
    Some(match op.kind() {
        "SequenceConstruct" => alike(op, op.all().collect()),
        "SequenceInsert" => inserted(op),
        "SequenceEmpty" => Ok(one(Value::shared(None))),
        "SequenceErase" => op
            .parameter(1, "position")
            .and_then(|_| op.required(0).cloned().map(one)),
        "SequenceAt" => at(op),
        "SplitToSequence" => split(op),
        "OptionalHasElement" | "SequenceLength" => Err(op.unknown("asks a sequence for its length")),
        _ => return None,
    })
}

/// A sequence of tensors whose rows lie alike.
fn alike(op: &Op<'_>, values: Vec<&Value>) -> Ruled {
    let content = op.content(values.iter().copied());
    let mut rows = values.iter().map(|value| &value.rows);
    let first = rows.next().cloned().flatten();
    if rows.any(|other| *other != first) {
        return Err(op.unknown("holds tensors whose rows lie along other axes"));
    }
    let ranks: Vec<_> = values.iter().map(|value| value.rank()).collect();
    let shape = match ranks.first() {
        Some(Some(rank)) if ranks.iter().all(|other| *other == Some(*rank)) => {
            let size = |axis: usize| {
                let mut sizes = values.iter().filter_map(|value| value.size(axis));
                let one = sizes.next().cloned().unwrap_or_else(|| op.free());
                if sizes.all(|size| *size == one) { one } else { op.free() }
            };
            Some((0..*rank).map(size).collect())
        }
        _ => None,
    };
    Ok(one(Value::of(shape, first, content)))
}

fn inserted(op: &Op<'_>) -> Ruled {
    op.parameter(2, "position")?;
    let (sequence, value) = (op.required(0)?, op.required(1)?);
    // An empty one says nothing yet.
    let is_empty = sequence.shape.is_none() && sequence.rows.is_none() && sequence.content == Content::Shared;
    if is_empty {
        // It may as well hold tensors of any shape, of which nothing but the rows counts.
        return Ok(one(Value {
            shape: None,
            ..value.without_elements()
        }));
    }
    alike(op, vec![sequence, value])
}

fn at(op: &Op<'_>) -> Ruled {
    op.parameter(1, "position")?;
    op.required(0).map(|value| one(value.without_elements()))
}

fn split(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    op.parameter(1, "sizes")?;
    let Some(axis) = value.axis(op.int("axis", 0)) else {
        return Err(op.unknown("splits along an axis that cannot be told"));
    };
    if value.row_axis() == Some(axis) {
        return Err(op.unknown("splits the rows into a sequence"));
    }
    if op.int("keepdims", 1) == 0 && op.input(1).is_none() {
        let mut shape = value.shape.as_deref().map(<[Size]>::to_vec);
        if let Some(shape) = &mut shape {
            shape.remove(axis);
        }
        let rows = value
            .rows
            .as_ref()
            .map(|rows| rows.at(rows.axis - usize::from(axis < rows.axis)));
        return Ok(one(Value::of(shape, rows, value.content.clone())));
    }
    let mut shape = value.shape.as_deref().map(<[Size]>::to_vec);
    if let Some(size) = shape.as_mut().and_then(|shape| shape.get_mut(axis)) {
        *size = op.free();
    }
    Ok(one(Value::of(shape, value.rows.clone(), value.content.clone())))
}
