//! Broadcasting: values of several shapes laid upon each other, aligned at their last axes.
//!
//! # Source
//! ONNX, "Broadcasting in ONNX": multidirectional broadcasting, as NumPy's.

use super::super::op::Op;
use super::super::size::Size;
use super::super::value::{Content, RowAxis, Value};

/// The value that an element-wise operator makes of these.
pub(super) fn broadcast(op: &Op<'_>, values: &[&Value]) -> Value {
    let content = op.content(values.iter().copied());
    let Some(shapes): Option<Vec<&[Size]>> = values.iter().map(|value| value.shape.as_deref()).collect() else {
        return unshaped(op, values, content);
    };
    let rank = shapes.iter().map(|shape| shape.len()).max().unwrap_or(0);
    let mut shape = Vec::with_capacity(rank);
    for axis in 0..rank {
        let sizes = shapes.iter().filter_map(|shape| at(shape, axis, rank));
        shape.push(sizes.fold(Size::one(), |size, other| joined(op, &size, other)));
    }
    let rows = match row_axis(op, values, rank) {
        Ok(rows) => rows,
        Err(spoilt) => return Value::of(Some(shape), None, worse(content, spoilt)),
    };
    if let Some(size) = rows.as_ref().and_then(RowAxis::size)
        && let Some(rows) = &rows
    {
        shape[rows.axis] = size;
    }
    let spoilt = rows.as_ref().and_then(|rows| varies(op, values, rank, rows));
    let content = spoilt.map_or_else(|| content.clone(), |spoilt| worse(content.clone(), spoilt));
    Value::of(Some(shape), rows, content)
}

/// Where the number of axes is not known a value alone, or one upon single numbers, keeps its own.
fn unshaped(op: &Op<'_>, values: &[&Value], content: Content) -> Value {
    let mut others = values.iter().filter(|value| value.rank() != Some(0));
    match (others.next(), others.next()) {
        (Some(only), None) => Value::of(None, only.rows.clone(), content),
        _ if values.iter().all(|value| value.rows.is_none()) => Value::of(None, None, content),
        _ => {
            let unknown = op.unknown("lays rows upon a value whose number of axes only a run knows");
            Value::spoilt(worse(content, unknown))
        }
    }
}

/// The axis along which the rows lie in what comes out.
fn row_axis(op: &Op<'_>, values: &[&Value], rank: usize) -> Result<Option<RowAxis>, Content> {
    let mut found: Option<RowAxis> = None;
    for value in values {
        let (Some(rows), Some(own)) = (&value.rows, value.rank()) else {
            continue;
        };
        let rows = rows.at(rows.axis + rank - own);
        match &found {
            None => found = Some(rows),
            Some(before) if before.axis != rows.axis => {
                return Err(op.coupled(&format!(
                    "lays rows upon other rows (axes {} and {})",
                    before.axis, rows.axis
                )));
            }
            // A row alone is laid upon the places of each, and among others the node fails.
            Some(before)
                if before.after.equals(&rows.after) == Some(false) || before.after.is(1) != rows.after.is(1) =>
            {
                return Err(op.unknown("lays rows upon rows of another size"));
            }
            // As many places in all, or the node fails: then there are as many behind each row, too.
            Some(before) if before.before == rows.before => {}
            Some(_) => return Err(op.unknown("lays rows upon rows in another order")),
        }
    }
    Ok(found)
}

/// Says so if a value without rows has other elements for other places of the row axis.
fn varies(op: &Op<'_>, values: &[&Value], rank: usize, rows: &RowAxis) -> Option<Content> {
    values.iter().filter(|value| value.rows.is_none()).find_map(|value| {
        let size = at(value.shape.as_deref()?, rows.axis, rank)?;
        match size.to_constant() {
            Some(1) => None,
            Some(size) => Some(op.coupled_at(&format!("lays {size} fixed places upon the rows"), rows.axis)),
            None => Some(op.unknown("lays a value without rows along the rows")),
        }
    })
}

/// The size of an axis, counted from the last one; `None` if the value has no such axis.
fn at(shape: &[Size], axis: usize, rank: usize) -> Option<&Size> {
    shape.get((axis + shape.len()).checked_sub(rank)?)
}

fn joined(op: &Op<'_>, one: &Size, other: &Size) -> Size {
    match () {
        () if one == other || other.is(1) => one.clone(),
        () if one.is(1) => other.clone(),
        () if one.to_constant().is_some() => one.clone(),
        () if other.to_constant().is_some() => other.clone(),
        () => op.size_or_fresh(None, &[one, other]),
    }
}

/// Of two things that may have become of a value, the one that counts.
pub(super) fn worse(one: Content, other: Content) -> Content {
    match (&one, &other) {
        (Content::Coupled(_), _) => one,
        (_, Content::Coupled(_)) => other,
        (Content::Unknown(_), _) => one,
        _ => other,
    }
}
