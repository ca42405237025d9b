//! Reshape: where the rows lie when the same elements, in the same order, get other axes.

use super::super::op::{Op, Ruled};
use super::super::size::{Origin, Size};
use super::super::value::{Content, RowAxis, Value};
use super::elementwise::unknown_elements;
use super::one;

/// # Source
/// Reshape: 0 copies the size of the input's axis (unless `allowzero`), one -1 takes what is left.
pub(super) fn reshape(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let target = match op.ints("shape") {
        // Version 1 has it as an attribute.
        Some(sizes) => sizes.into_iter().map(Size::constant).collect(),
        None => target(op)?,
    };
    let Some(target) = target_shape(op, value, target) else {
        return Err(op.unknown("has a shape that is computed from values that cannot be followed"));
    };
    reshape_to(op, value, target)
}

fn target(op: &Op<'_>) -> Result<Vec<Size>, Content> {
    let shape = op.sizes(1, "shape")?;
    let shape = shape.ok_or_else(|| op.unknown("has no shape"))?;
    if let Some(elements) = &shape.elements {
        return Ok(elements.to_vec());
    }
    let count = shape.size(0).and_then(Size::to_constant);
    match (count, &shape.content) {
        (Some(count), Content::Shared) if (0..=AXES_MAX).contains(&count) => {
            Ok(unknown_elements(op, count as usize, Origin::Free))
        }
        _ => Err(op.unknown("has a shape that only a run knows")),
    }
}

/// The shape with its -1 and its zeros filled in.
fn target_shape(op: &Op<'_>, value: &Value, mut target: Vec<Size>) -> Option<Vec<Size>> {
    if op.int("allowzero", 0) == 0 {
        for (axis, size) in target.iter_mut().enumerate() {
            if size.is(0) {
                let copied = value.size(axis).cloned();
                let first = || {
                    (value.rows.as_ref()?.axis == axis)
                        .then(|| value.rows.as_ref()?.size())
                        .flatten()
                };
                *size = copied.or_else(first).unwrap_or_else(|| op.free());
            }
        }
    }
    let open: Vec<usize> = (0..target.len()).filter(|axis| target[*axis].is(-1)).collect();
    let [open] = open[..] else {
        return open.is_empty().then_some(target);
    };
    let others = Size::product(
        target
            .iter()
            .enumerate()
            .filter(|(axis, _)| *axis != open)
            .map(|(_, size)| size),
    );
    let total = value.shape.as_deref().and_then(Size::product);
    let rest = total
        .as_ref()
        .zip(others.as_ref())
        .and_then(|(total, others)| total.over(others));
    // If all rows lie in the others, none are left for this one.
    let is_free = others.as_ref().is_some_and(Size::has_rows)
        || value.rows.is_none() && !total.as_ref().is_some_and(Size::has_rows);
    target[open] = match rest {
        Some(rest) => rest,
        None if is_free => op.free(),
        None => op.symbols.fresh(Origin::Counted),
    };
    Some(target)
}

/// Gives the same elements, in the same order, another shape.
pub(super) fn reshape_to(op: &Op<'_>, value: &Value, target: Vec<Size>) -> Ruled {
    let rows = match &value.rows {
        None => None,
        Some(rows) => match move_rows(value.shape.as_deref(), rows, &target) {
            Some(rows) => Some(rows),
            None if value.content.is_spoilt() => return Err(value.content.clone()),
            None => return Err(lost(op, value, rows, &target)),
        },
    };
    let keeps_led = value.content != Content::Led || target.last() == value.shape.as_deref().and_then(<[Size]>::last);
    let content = match &value.content {
        _ if !keeps_led => op.unknown("moves the place of a row among the others"),
        content => content.clone(),
    };
    Ok(one(Value {
        shape: Some(target.into()),
        rows,
        content,
        ..value.clone()
    }))
}

/// Finds the rows under another shape of the same elements: as many places before them and behind them as there were.
fn move_rows(shape: Option<&[Size]>, rows: &RowAxis, target: &[Size]) -> Option<RowAxis> {
    let before = match shape {
        Some(shape) => Size::product(&shape[..rows.axis])?,
        None if rows.axis == 0 => Size::one(),
        None => return None,
    };
    let before = before.times(&rows.before)?;
    let mut passed = Size::one();
    for (axis, size) in target.iter().enumerate() {
        if size.has_rows() {
            let before = before.over(&passed)?;
            let after = size.over(&Size::rows())?.over(&before)?;
            return Some(RowAxis { axis, before, after });
        }
        passed = passed.times(size)?;
    }
    None
}

/// Says what has become of rows that cannot be found again.
fn lost(op: &Op<'_>, value: &Value, rows: &RowAxis, target: &[Size]) -> Content {
    let known = |shape: &[Size]| {
        shape
            .iter()
            .all(|size| size.to_constant().is_some() || *size == Size::rows())
    };
    let shape = value.shape.as_deref().unwrap_or_default();
    if rows.is_plain() && !shape.is_empty() && known(shape) && target.iter().all(|size| size.to_constant().is_some()) {
        let sizes: Vec<_> = target.iter().map(ToString::to_string).collect();
        return op.coupled(&format!(
            "has a fixed shape [{}], whatever the number of rows",
            sizes.join(",")
        ));
    }
    op.unknown("has a shape in which the rows cannot be found again")
}

/// More than any tensor has.
const AXES_MAX: i64 = 64;
