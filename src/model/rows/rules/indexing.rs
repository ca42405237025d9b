//! Operators that take, put or choose elements by an index.
//!
//! # Source
//! ONNX: GatherElements, GatherND and ScatterND state their formulas; `batch_dims` are axes that data and indices share.

use super::super::op::{Op, Ruled};
use super::super::size::Size;
use super::super::value::{Content, RowAxis, Value};
use super::broadcast::worse;
use super::one;

pub(super) fn apply(op: &Op<'_>) -> Option<Ruled> {
    Some(match op.kind() {
        "Gather" => gather(op),
        "GatherElements" => gather_elements(op),
        "GatherND" => gather_nd(op),
        "ScatterElements" | "Scatter" => scatter_elements(op),
        "ScatterND" => scatter_nd(op),
        "TensorScatter" => tensor_scatter(op),
        "TopK" => top_k(op),
        "Compress" => compress(op),
        "Unique" => unique(op),
        "NonMaxSuppression" => hits(op),
        _ => return None,
    })
}

fn gather(op: &Op<'_>) -> Ruled {
    let (data, indices) = (op.required(0)?, op.required(1)?);
    let Some(axis) = data.axis(op.int("axis", 0)) else {
        return Err(op.unknown("takes elements along an axis that cannot be told"));
    };
    if let (Some(elements), Some(indices)) = (data.elements.as_deref(), indices.constants())
        && data.rank() == Some(1)
    {
        return Ok(one(picked(op, elements, &indices)?));
    }
    if indices.content.is_spoilt() {
        return Err(indices.content.clone());
    }
    let content = op.content([data, indices]);
    let shape = data
        .shape
        .as_deref()
        .zip(indices.shape.as_deref())
        .and_then(|(data, indices)| Some([data.get(..axis)?, indices, data.get(axis + 1..)?].concat()));
    let from_indices = indices.rows.as_ref().map(|rows| rows.at(axis + rows.axis));
    let (rows, content) = match (&data.rows, from_indices) {
        (None, rows) => (rows, content),
        (Some(rows), None) if rows.axis == axis => return Err(op.coupled_at("takes rows by their place", axis)),
        (Some(rows), None) => {
            let kept = if rows.axis < axis {
                Some(rows.axis)
            } else {
                indices.rank().map(|rank| rows.axis - 1 + rank)
            };
            match kept {
                Some(kept) => (Some(rows.at(kept)), content),
                None => return Err(op.unknown("takes elements by an index whose number of axes only a run knows")),
            }
        }
        // Each row takes itself.
        (Some(rows), Some(itself)) if rows.axis == axis && rows.is_plain() && indices.content == Content::Place => {
            (Some(itself), data.content.clone())
        }
        (Some(_), Some(_)) if indices.content == Content::Place => {
            return Err(op.unknown("takes elements by the place of a row"));
        }
        (Some(_), Some(_)) => return Err(op.coupled("takes elements of rows by the values of other rows")),
    };
    Ok(one(Value::of(shape, rows, content)))
}

/// Elements of a shape.
fn picked(op: &Op<'_>, elements: &[Size], indices: &[i64]) -> Result<Value, Content> {
    let count = elements.len() as i64;
    let at = |index: &i64| {
        elements
            .get(usize::try_from(if *index < 0 { index + count } else { *index }).ok()?)
            .cloned()
    };
    let picked: Option<Vec<Size>> = indices.iter().map(at).collect();
    let picked = picked.ok_or_else(|| op.unknown("takes elements that are not there"))?;
    let rank = op.required(1)?.rank().unwrap_or(1);
    let shape = if rank == 0 {
        Vec::new()
    } else {
        vec![Size::constant(picked.len() as i64)]
    };
    Ok(Value::integers(shape, picked))
}

fn gather_elements(op: &Op<'_>) -> Ruled {
    let (data, indices) = (op.required(0)?, op.required(1)?);
    let Some(axis) = data.axis(op.int("axis", 0)).or_else(|| indices.axis(op.int("axis", 0))) else {
        return Err(op.unknown("takes elements along an axis that cannot be told"));
    };
    let shape = indices.shape.as_deref().map(<[Size]>::to_vec);
    let rows = match (&data.rows, &indices.rows) {
        // The indices of a row, along the axis on which the result is as long as they are.
        (None, Some(rows)) if rows.axis == axis => Some(rows.clone()),
        _ => same_rows(op, &[data, indices], axis)?,
    };
    Ok(one(Value::of(shape, rows, op.content([data, indices]))))
}

/// The row axis that lies alike in all of these, and is not the axis along which the node works.
fn same_rows(op: &Op<'_>, values: &[&Value], axis: usize) -> Result<Option<RowAxis>, Content> {
    if values.iter().any(|value| value.row_axis() == Some(axis)) {
        return Err(op.coupled_at("takes or puts elements along the rows", axis));
    }
    let mut rows = values.iter().filter_map(|value| value.rows.as_ref());
    let Some(first) = rows.next() else { return Ok(None) };
    if rows.any(|other| other != first) {
        return Err(op.coupled("takes elements of rows by the values of other rows"));
    }
    // Nothing is broadcast: what has no rows reaches the first ones alone.
    match values.iter().all(|value| value.rows.is_some()) {
        true => Ok(Some(first.clone())),
        false => Err(op.unknown("takes or puts elements at fixed places among the rows")),
    }
}

fn gather_nd(op: &Op<'_>) -> Ruled {
    let (data, indices) = (op.required(0)?, op.required(1)?);
    let batch_axes = usize::try_from(op.int("batch_dims", 0)).unwrap_or(0);
    let depth = indices
        .shape
        .as_deref()
        .and_then(<[Size]>::last)
        .and_then(Size::to_constant);
    let depth = depth.and_then(|depth| usize::try_from(depth).ok());
    let (Some(depth), Some(indices_rank)) = (depth, indices.rank()) else {
        return Err(op.unknown("takes elements by an index whose axes only a run knows"));
    };
    let shape = data
        .shape
        .as_deref()
        .zip(indices.shape.as_deref())
        .and_then(|(data, indices)| Some([indices.get(..indices_rank - 1)?, data.get(batch_axes + depth..)?].concat()));
    if indices.content.is_spoilt() {
        return Err(indices.content.clone());
    }
    let content = op.content([data, indices]);
    let rows = match (&data.rows, &indices.rows) {
        (None, None) => None,
        // A row of a table for each row of indices.
        (None, Some(rows)) if rows.axis + 1 < indices_rank && rows.axis >= batch_axes => Some(rows.clone()),
        (Some(rows), Some(other)) if rows == other && rows.axis < batch_axes => Some(rows.clone()),
        (Some(rows), None) if rows.axis >= batch_axes + depth => {
            Some(rows.at(rows.axis - batch_axes - depth + indices_rank - 1))
        }
        (Some(rows), None) if rows.axis >= batch_axes => {
            return Err(op.coupled_at("takes rows by their place", rows.axis));
        }
        // Each row takes from itself.
        (Some(rows), Some(own))
            if rows.axis == 0 && rows.is_plain() && indices.content == Content::Led && batch_axes == 0 =>
        {
            return Ok(one(Value::of(shape, Some(own.clone()), data.content.clone())));
        }
        (Some(_), Some(_)) if indices.content == Content::Own && batch_axes == 0 => {
            return Err(op.coupled("takes elements of rows by the values of other rows"));
        }
        _ => return Err(op.unknown("takes elements by an index that cannot be followed")),
    };
    Ok(one(Value::of(shape, rows, content)))
}

fn scatter_elements(op: &Op<'_>) -> Ruled {
    let (data, indices, updates) = (op.required(0)?, op.required(1)?, op.required(2)?);
    let Some(axis) = data.axis(op.int("axis", 0)) else {
        return Err(op.unknown("puts elements along an axis that cannot be told"));
    };
    let values = [data, indices, updates];
    let rows = same_rows(op, &values, axis)?;
    let content = op.content(values);
    Ok(one(Value {
        content,
        rows,
        ..data.without_elements()
    }))
}

fn scatter_nd(op: &Op<'_>) -> Ruled {
    let (data, indices, updates) = (op.required(0)?, op.required(1)?, op.required(2)?);
    let content = op.content([data, indices, updates]);
    if values_without_rows(&[data, indices, updates]) {
        return Ok(one(Value {
            content,
            ..data.without_elements()
        }));
    }
    let depth = indices
        .shape
        .as_deref()
        .and_then(<[Size]>::last)
        .and_then(Size::to_constant);
    let (Some(depth), Some(indices_rank), Some(rows)) = (depth, indices.rank(), &data.rows) else {
        return Err(op.unknown("puts elements by an index that cannot be followed"));
    };
    let depth = usize::try_from(depth).unwrap_or(0);
    let is_behind = rows.axis >= depth && indices.rows.is_none();
    let updated = is_behind.then(|| rows.at(rows.axis - depth + indices_rank - 1));
    if is_behind && updates.rows == updated {
        return Ok(one(Value {
            content,
            ..data.without_elements()
        }));
    }
    Err(op.unknown("puts elements by an index that cannot be followed"))
}

fn values_without_rows(values: &[&Value]) -> bool {
    values.iter().all(|value| value.rows.is_none())
}

fn tensor_scatter(op: &Op<'_>) -> Ruled {
    let (past, update) = (op.required(0)?, op.required(1)?);
    let Some(axis) = past.axis(op.int("axis", -2)) else {
        return Err(op.unknown("writes along an axis that cannot be told"));
    };
    let mut values = vec![past, update];
    values.extend(op.input(2));
    let is_plain = |value: &&Value| value.rows == Some(RowAxis::plain(0));
    match values.iter().filter(|value| value.rows.is_some()).count() {
        0 => Ok(one(past.without_elements())),
        _ if axis != 0 && values.iter().all(is_plain) => Ok(one(Value {
            content: op.content(values),
            ..past.without_elements()
        })),
        _ => Err(op.unknown("writes rows at places that cannot be followed")),
    }
}

fn top_k(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let axis = value.axis(op.int("axis", -1));
    let axis = axis.ok_or_else(|| op.unknown("sorts along an axis that cannot be told"))?;
    let count = match op.has("k") {
        true => Some(op.int("k", 1)),
        false => op.parameter(1, "k")?.and_then(Value::constant),
    };
    if value.row_axis() == Some(axis) {
        return Err(op.coupled_at("sorts the rows", axis));
    }
    let mut shape = value.shape.as_deref().map(<[Size]>::to_vec);
    if let Some(size) = shape.as_mut().and_then(|shape| shape.get_mut(axis)) {
        *size = count.map_or_else(|| op.free(), Size::constant);
    }
    let found = Value::of(shape, value.rows.clone(), op.content([value]));
    Ok(vec![found.clone(), found])
}

fn compress(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    op.parameter(1, "condition")?;
    let axis = op.has("axis").then(|| value.axis(op.int("axis", 0)));
    match (axis, value.row_axis()) {
        (None, Some(_)) => Err(op.coupled("takes some of the elements of all rows")),
        (None, None) => Ok(one(Value::of(Some(vec![op.free()]), None, value.content.clone()))),
        (Some(None), _) => Err(op.unknown("takes places along an axis that cannot be told")),
        (Some(Some(axis)), Some(rows)) if rows == axis => Err(op.coupled_at("takes some of the rows", axis)),
        (Some(Some(axis)), _) => {
            let mut shape = value.shape.as_deref().map(<[Size]>::to_vec);
            if let Some(size) = shape.as_mut().and_then(|shape| shape.get_mut(axis)) {
                *size = op.free();
            }
            Ok(one(Value::of(shape, value.rows.clone(), value.content.clone())))
        }
    }
}

fn unique(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    match value.content {
        Content::Shared => Ok(vec![Value::shared(None); 4]),
        Content::Coupled(_) | Content::Unknown(_) => Err(value.content.clone()),
        _ => Err(op.coupled("compares all rows with each other")),
    }
}

/// # Source
/// NonMaxSuppression: selected_indices is `[hits, 3]`, each hit with the index of its batch.
fn hits(op: &Op<'_>) -> Ruled {
    let content = op
        .all()
        .fold(Content::Shared, |content, value| worse(content, value.content.clone()));
    match (
        content.is_spoilt(),
        op.all().any(|value| value.content != Content::Shared),
    ) {
        (true, _) => Err(content),
        (false, true) => Err(op.coupled("lists the hits of all rows one behind the other")),
        (false, false) => Ok(one(Value::shared(Some(vec![op.free(), Size::constant(3)])))),
    }
}
