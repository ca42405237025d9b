//! Operators that move elements and keep them: transpose, join, split, cut, repeat and pad.

use super::super::op::{Op, Ruled};
use super::super::size::{Origin, Size};
use super::super::value::{Content, RowAxis, Value, absolute};
use super::elementwise::number;
use super::one;
use super::reshape::{reshape, reshape_to};

pub(super) fn apply(op: &Op<'_>) -> Option<Ruled> {
    Some(match op.kind() {
        "Reshape" => reshape(op),
        "Flatten" => flatten(op),
        "Squeeze" => squeeze(op),
        "Unsqueeze" => unsqueeze(op),
        "Transpose" => transpose(op),
        "Concat" => concat(op),
        "Split" => split(op),
        "Slice" => slice(op),
        "Expand" => expand(op),
        "Tile" => tile(op),
        "Pad" => pad(op),
        "Trilu" => trilu(op),
        "ReverseSequence" => reverse(op),
        "DepthToSpace" | "SpaceToDepth" => blocks(op),
        "CenterCropPad" => crop(op),
        _ => return None,
    })
}

fn flatten(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let axis = op.int("axis", 1);
    let Some(shape) = value.shape.as_deref() else {
        return match value.row_axis() {
            Some(0) if axis == 1 => reshape_to(op, value, vec![Size::rows(), op.free()]),
            None => Ok(one(Value::of(None, None, value.content.clone()))),
            Some(_) => Err(op.unknown("flattens a value whose number of axes only a run knows")),
        };
    };
    let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
    let axis = usize::try_from(axis).ok().filter(|axis| *axis <= shape.len());
    let axis = axis.ok_or_else(|| op.unknown("has no such axis"))?;
    let (front, back) = shape.split_at(axis);
    let product = |sizes: &[Size]| op.size_or_fresh(Size::product(sizes), &sizes.iter().collect::<Vec<_>>());
    reshape_to(op, value, vec![product(front), product(back)])
}

fn squeeze(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let axes = op.axes("axes", 1)?;
    let Some(shape) = value.shape.as_deref() else {
        return Err(op.unknown("drops axes of a value whose number of axes only a run knows"));
    };
    let dropped: Vec<usize> = match axes {
        Some(axes) => axes.iter().filter_map(|axis| absolute(*axis, shape.len())).collect(),
        None if shape.iter().all(|size| size.to_constant().is_some()) => {
            (0..shape.len()).filter(|axis| shape[*axis].is(1)).collect()
        }
        None => return Err(op.unknown("drops every axis of size 1, and that of a row alone with them")),
    };
    if value.row_axis().is_some_and(|axis| dropped.contains(&axis)) {
        return Err(op.coupled("drops the axis of the rows"));
    }
    let kept = (0..shape.len()).filter(|axis| !dropped.contains(axis));
    Ok(one(moved(value, &kept.map(Some).collect::<Vec<_>>())))
}

fn unsqueeze(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let axes = op.axes("axes", 1)?.unwrap_or_default();
    let Some(rank) = value.rank() else {
        return Err(op.unknown("adds axes to a value whose number of axes only a run knows"));
    };
    let rank = rank + axes.len();
    let added: Vec<usize> = axes.iter().filter_map(|axis| absolute(*axis, rank)).collect();
    let mut old = 0..;
    let kept = (0..rank).map(|axis| if added.contains(&axis) { None } else { old.next() });
    Ok(one(moved(value, &kept.collect::<Vec<_>>())))
}

/// The value with its axes in another order, or left out, or with new ones of size 1 where `axes` has none.
fn moved(value: &Value, axes: &[Option<usize>]) -> Value {
    let shape = value.shape.as_deref().unwrap_or_default();
    let size = |axis: &Option<usize>| axis.and_then(|axis| shape.get(axis).cloned()).unwrap_or_else(Size::one);
    let rows = value.rows.as_ref().and_then(|rows| {
        let axis = axes.iter().position(|axis| *axis == Some(rows.axis))?;
        Some(rows.at(axis))
    });
    Value {
        shape: Some(axes.iter().map(size).collect()),
        rows,
        ..value.clone()
    }
}

fn transpose(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let order: Vec<usize> = match (op.ints("perm"), value.rank()) {
        (Some(order), _) => order.iter().filter_map(|axis| usize::try_from(*axis).ok()).collect(),
        (None, Some(rank)) => (0..rank).rev().collect(),
        (None, None) => return Err(op.unknown("turns a value whose number of axes only a run knows")),
    };
    let kept = value.shape.is_some();
    let mut turned = moved(value, &order.iter().copied().map(Some).collect::<Vec<_>>());
    if !kept {
        turned.shape = None;
    }
    // Elements are kept of one axis at the most.
    turned.elements = value.elements.clone().filter(|_| order.len() <= 1);
    if value.content == Content::Led && order.last() != Some(&(order.len() - 1)) {
        turned.content = op.unknown("moves the place of a row among the others");
    }
    Ok(one(turned))
}

fn concat(op: &Op<'_>) -> Ruled {
    let values: Vec<&Value> = op.all().collect();
    let first = op.required(0)?;
    if values.len() == 1 {
        return Ok(one(first.clone()));
    }
    let ranked = values.iter().find(|value| value.shape.is_some()).unwrap_or(&first);
    let axis = ranked.axis(op.int("axis", 1));
    let axis = axis.ok_or_else(|| op.unknown("joins values along an axis that cannot be told"))?;
    let rows = joined_rows(op, &values, axis)?;
    let shape = joined_shape(op, &values, axis);
    let content = led(op, &values, shape.as_deref(), axis).unwrap_or_else(|| op.content(values.iter().copied()));
    let elements: Option<Vec<&[Size]>> = values.iter().map(|value| value.elements.as_deref()).collect();
    if let Some(elements) = elements.filter(|_| axis == 0 && values.iter().all(|value| value.rank() == Some(1))) {
        let elements = elements.concat();
        return Ok(one(Value::integers(
            vec![Size::constant(elements.len() as i64)],
            elements,
        )));
    }
    let content = match content {
        Content::Place => op.unknown("joins the places of the rows"),
        content => content,
    };
    Ok(one(Value::of(shape, rows, content)))
}

/// The row axis that all values have which have one.
fn joined_rows(op: &Op<'_>, values: &[&Value], axis: usize) -> Result<Option<RowAxis>, Content> {
    let mut found: Option<&RowAxis> = None;
    for value in values {
        let Some(rows) = &value.rows else { continue };
        match found {
            _ if rows.axis == axis => return Err(op.coupled_at("joins other places to the rows", axis)),
            None => found = Some(rows),
            Some(before) if before == rows => {}
            Some(before) if before.axis != rows.axis => {
                return Err(op.coupled(&format!(
                    "joins rows that lie along other axes ({} and {})",
                    before.axis, rows.axis
                )));
            }
            Some(_) => return Err(op.unknown("joins rows in another order")),
        }
    }
    let Some(rows) = found else { return Ok(None) };
    match values.iter().find(|value| value.rows.is_none()) {
        None => Ok(Some(rows.clone())),
        Some(fixed) => Err(match fixed.size(rows.axis).and_then(Size::to_constant) {
            Some(size) => op.coupled_at(&format!("joins {size} fixed places to the rows"), rows.axis),
            None => op.unknown("joins a value without rows to the rows"),
        }),
    }
}

fn joined_shape(op: &Op<'_>, values: &[&Value], axis: usize) -> Option<Vec<Size>> {
    let mut shape = values.iter().find_map(|value| value.shape.as_deref())?.to_vec();
    let sizes: Option<Vec<&Size>> = values.iter().map(|value| value.size(axis)).collect();
    let sum = sizes
        .as_ref()
        .and_then(|sizes| sizes.iter().try_fold(Size::constant(0), |sum, size| sum.plus(size)));
    *shape.get_mut(axis)? = op.size_or_fresh(sum, &sizes.unwrap_or_default());
    Some(shape)
}

/// An index into rows: the place of the row, and behind it what the row itself says.
fn led(op: &Op<'_>, values: &[&Value], shape: Option<&[Size]>, axis: usize) -> Option<Content> {
    let (first, rest) = values.split_first()?;
    let is_last = shape.is_some_and(|shape| axis + 1 == shape.len());
    let is_place = first.content == Content::Place && first.size(axis).is_some_and(|size| size.is(1));
    let content = op.content(rest.iter().copied());
    (is_last && is_place && matches!(content, Content::Own | Content::Shared)).then_some(Content::Led)
}

fn split(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let outputs = op.node.output.len();
    let Some(axis) = value.axis(op.int("axis", 0)) else {
        return Err(op.unknown("splits along an axis that cannot be told"));
    };
    if value.row_axis() == Some(axis) {
        return Err(op.coupled_at("splits the rows", axis));
    }
    let sizes = match op.ints("split") {
        Some(sizes) => Some(sizes),
        None => op.parameter(1, "sizes")?.and_then(Value::constants),
    };
    let even = || {
        let whole = value.size(axis)?.to_constant()?;
        let part = (whole + outputs as i64 - 1) / outputs as i64;
        Some((0..outputs as i64).map(|at| part.min(whole - at * part)).collect())
    };
    let is_even = op.input(1).is_none();
    let sizes: Option<Vec<i64>> = sizes.or_else(|| if is_even { even() } else { None });
    let mut start = 0;
    let part = |at: usize| {
        let size = sizes.as_ref().and_then(|sizes| sizes.get(at).copied());
        let mut part = resized(op, value, axis, size.map(Size::constant));
        if let (Some(elements), Some(size)) = (&value.elements, size) {
            let end = start + size as usize;
            if let Some(elements) = elements.get(start..end) {
                part = Value::integers(vec![Size::constant(size)], elements.to_vec());
            }
            start = end;
        }
        part
    };
    Ok((0..outputs).map(part).collect())
}

/// The value with another size of one axis, which is not that of the rows; elements are not kept.
fn resized(op: &Op<'_>, value: &Value, axis: usize, size: Option<Size>) -> Value {
    let mut shape = value.shape.as_deref().map(<[Size]>::to_vec);
    if let Some(place) = shape.as_mut().and_then(|shape| shape.get_mut(axis)) {
        *place = size.unwrap_or_else(|| op.free());
    }
    let content = match (&value.content, value.rank()) {
        (Content::Led, Some(rank)) if axis + 1 == rank => op.unknown("cuts the place of a row from what follows it"),
        (content, _) => content.clone(),
    };
    Value::of(shape, value.rows.clone(), content)
}

/// One axis of a slice.
struct Cut {
    axis: usize,
    start: Option<Size>,
    end: Option<Size>,
    step: Option<Size>,
}

fn slice(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let cuts = cuts(op, value)?;
    let mut cut = value.clone();
    let mut counted = false;
    for Cut { axis, start, end, step } in cuts {
        if is_whole(value, axis, start.as_ref(), end.as_ref(), step.as_ref()) {
            continue;
        }
        if value.row_axis() == Some(axis) {
            return Err(op.coupled_at("takes some of the rows", axis));
        }
        counted |= [&start, &end, &step]
            .into_iter()
            .flatten()
            .any(|bound| bound.origin() == Origin::Counted);
        let [start, step] = [start, step].map(|bound| bound.as_ref().and_then(Size::to_constant));
        let size = value.size(axis).and_then(Size::to_constant);
        let bounds = size.zip(start).zip(end.as_ref().and_then(Size::to_constant)).zip(step);
        let places = bounds.map(|(((size, start), end), step)| places(size, start, end, step));
        let elements = cut
            .elements
            .clone()
            .zip(places.clone())
            .filter(|_| value.rank() == Some(1));
        cut = match elements {
            Some((elements, places)) => {
                let taken: Vec<Size> = places
                    .iter()
                    .filter_map(|at| elements.get(*at as usize).cloned())
                    .collect();
                Value::integers(vec![Size::constant(taken.len() as i64)], taken)
            }
            None => resized(op, &cut, axis, places.map(|places| Size::constant(places.len() as i64))),
        };
    }
    if counted {
        // As much is taken as there are rows.
        let by_count = Value::of(None, None, Content::Count);
        cut.content = op.content([&cut, &by_count]);
        cut.elements = None;
    }
    Ok(one(cut))
}

fn cuts(op: &Op<'_>, value: &Value) -> Result<Vec<Cut>, Content> {
    let (starts, ends, steps) = if op.has("starts") {
        let constants = |name| {
            op.ints(name)
                .unwrap_or_default()
                .into_iter()
                .map(Size::constant)
                .collect()
        };
        (constants("starts"), constants("ends"), Vec::new())
    } else {
        let elements = |index, name| -> Result<Vec<Size>, Content> {
            let Some(value) = op.sizes(index, name)? else {
                return Ok(Vec::new());
            };
            let known = value.elements.as_deref().map(<[Size]>::to_vec);
            let count = value.size(0).and_then(Size::to_constant).unwrap_or(1);
            let is_counted = value.content == Content::Count;
            Ok(known.unwrap_or_else(|| (0..count.clamp(0, 64)).map(|_| number(op, is_counted)).collect()))
        };
        (elements(1, "starts")?, elements(2, "ends")?, elements(4, "steps")?)
    };
    let axes = op.axes("axes", 3)?;
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let axis_of = |axis: &i64| {
        value
            .axis(*axis)
            .ok_or_else(|| op.unknown("cuts along an axis that cannot be told"))
    };
    axes.iter()
        .enumerate()
        .map(|(at, axis)| {
            Ok(Cut {
                axis: axis_of(axis)?,
                start: starts.get(at).cloned(),
                end: ends.get(at).cloned(),
                step: if steps.is_empty() {
                    Some(Size::one())
                } else {
                    steps.get(at).cloned()
                },
            })
        })
        .collect()
}

/// True if all of an axis is taken, in its order.
fn is_whole(value: &Value, axis: usize, start: Option<&Size>, end: Option<&Size>, step: Option<&Size>) -> bool {
    let (Some(start), Some(end), Some(step)) = (start, end, step) else {
        return false;
    };
    let to_the_end = end.to_constant().is_some_and(|end| end >= i64::from(i32::MAX)) || value.size(axis) == Some(end);
    start.is(0) && step.is(1) && to_the_end
}

/// # Source
/// Slice: negative bounds count from the end, and all are clamped to the axis.
fn places(size: i64, start: i64, end: i64, step: i64) -> Vec<i64> {
    let from_end = |bound: i64| if bound < 0 { bound.saturating_add(size) } else { bound };
    let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
    let (mut at, end) = (from_end(start).clamp(low.max(0), high), from_end(end).clamp(low, high));
    let mut places = Vec::new();
    while step != 0 && (step > 0 && at < end || step < 0 && at > end) {
        places.push(at);
        at = at.saturating_add(step);
    }
    places
}

fn expand(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let sizes = op.sizes(1, "shape")?.ok_or_else(|| op.unknown("has no shape"))?;
    let Some(target) = sizes.elements.as_deref() else {
        return Err(op.unknown("has a shape that only a run knows"));
    };
    let Some(shape) = value.shape.as_deref() else {
        return Err(op.unknown("repeats a value whose number of axes only a run knows"));
    };
    let rank = shape.len().max(target.len());
    let padded = |sizes: &[Size]| [vec![Size::one(); rank - sizes.len()], sizes.to_vec()].concat();
    let (shape, target) = (padded(shape), padded(target));
    let mut rows = value
        .rows
        .as_ref()
        .map(|rows| rows.at(rows.axis + rank - value.rank().unwrap_or(0)));
    let mut expanded = Vec::with_capacity(rank);
    for (axis, (own, wanted)) in shape.iter().zip(&target).enumerate() {
        let keeps = wanted.is(1) || wanted.is(-1) || own == wanted;
        if rows.as_ref().is_some_and(|rows| rows.axis == axis) && !keeps {
            return Err(match wanted.to_constant() {
                Some(_) => op.coupled_at("has a fixed number of places for the rows", axis),
                None => op.unknown("may repeat the rows"),
            });
        }
        let size = match own.to_constant() {
            _ if keeps => own.clone(),
            Some(1) => wanted.clone(),
            Some(_) => own.clone(),
            None => op.size_or_fresh(None, &[own, wanted]),
        };
        if rows.is_none() && size.has_rows() {
            rows = repeated(axis, &size);
        }
        expanded.push(size);
    }
    let content = match (&value.content, &rows) {
        (Content::Shared, Some(_)) => Content::Own,
        (content, _) => content.clone(),
    };
    Ok(one(Value::of(Some(expanded), rows, content)))
}

/// The rows along an axis on which every place is alike.
fn repeated(axis: usize, size: &Size) -> Option<RowAxis> {
    Some(RowAxis {
        axis,
        before: Size::one(),
        after: size.over(&Size::rows())?,
    })
}

/// A tensor of such sizes whose elements are all alike.
pub(super) fn filled(op: &Op<'_>, shape: Vec<Size>) -> Value {
    let along = shape.iter().position(Size::has_rows);
    match along.map(|axis| repeated(axis, &shape[axis])) {
        None => Value::shared(Some(shape)),
        Some(Some(rows)) => Value::of(Some(shape), Some(rows), Content::Own),
        Some(None) => Value::of(Some(shape), None, op.unknown("has a size that cannot be followed")),
    }
}

fn tile(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let repeats = op.sizes(1, "repeats")?.and_then(|repeats| repeats.elements.as_deref());
    let (Some(repeats), Some(shape)) = (repeats, value.shape.as_deref()) else {
        return Err(op.unknown("repeats its input as often as only a run knows"));
    };
    let mut rows = value.rows.clone();
    let mut tiled = Vec::with_capacity(shape.len());
    for (axis, (size, repeats)) in shape.iter().zip(repeats).enumerate() {
        let product = size.times(repeats);
        if repeats.has_rows() {
            if rows.is_some() {
                return Err(op.unknown("repeats rows as often as there are rows"));
            }
            rows = product.as_ref().and_then(|product| repeated(axis, product));
            if rows.is_none() {
                return Err(op.unknown("repeats its input in a way that cannot be followed"));
            }
        } else if let Some(own) = rows.as_mut().filter(|rows| rows.axis == axis)
            && let Some(before) = own.before.times(repeats)
        {
            own.before = before;
        }
        tiled.push(op.size_or_fresh(product, &[size, repeats]));
    }
    let content = match (&value.content, &rows) {
        (Content::Shared, Some(_)) => Content::Own,
        (Content::Place | Content::Led, _) => op.unknown("repeats the places of the rows"),
        (content, _) => content.clone(),
    };
    Ok(one(Value::of(Some(tiled), rows, content)))
}

fn pad(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let pads = match op.ints("pads").or_else(|| op.ints("paddings")) {
        Some(pads) => pads.into_iter().map(Size::constant).collect(),
        None => match op.sizes(1, "pads")? {
            Some(pads) => pads.elements.as_deref().unwrap_or_default().to_vec(),
            None => Vec::new(),
        },
    };
    let axes = match op.constants(3, "axes")? {
        Some(axes) => axes,
        None => (0..pads.len() as i64 / 2).collect(),
    };
    if pads.len() != 2 * axes.len() || pads.is_empty() {
        return Err(op.unknown("adds as many places as only a run knows"));
    }
    op.parameter(2, "value")?;
    let mut padded = value.without_elements();
    for (at, axis) in axes.iter().enumerate() {
        let (front, back) = (&pads[at], &pads[at + axes.len()]);
        let Some(axis) = value.axis(*axis) else {
            return Err(op.unknown("adds places along an axis that cannot be told"));
        };
        if front.is(0) && back.is(0) {
            continue;
        }
        if value.row_axis() == Some(axis) {
            return Err(op.coupled_at("adds places to the rows, or takes some away", axis));
        }
        let size = value.size(axis).and_then(|size| size.plus(front)?.plus(back));
        padded = resized(op, &padded, axis, Some(op.size_or_fresh(size, &[front, back])));
    }
    Ok(one(padded))
}

fn trilu(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    op.parameter(1, "diagonal")?;
    match (value.row_axis(), value.rank()) {
        (Some(axis), Some(rank)) if axis + 2 >= rank => {
            Err(op.coupled_at("keeps other elements for each place among the rows", axis))
        }
        (Some(_), None) => Err(op.unknown("keeps a triangle of axes that cannot be told")),
        _ => Ok(one(value.without_elements())),
    }
}

fn reverse(op: &Op<'_>) -> Ruled {
    let (value, lengths) = (op.required(0)?, op.required(1)?);
    let (batch, time) = (value.axis(op.int("batch_axis", 1)), value.axis(op.int("time_axis", 0)));
    let content = op.content([value, lengths]);
    let reversed = |rows: Option<RowAxis>| {
        Ok(one(Value {
            rows,
            content: content.clone(),
            ..value.without_elements()
        }))
    };
    match (value.row_axis(), lengths.row_axis()) {
        (Some(axis), _) if Some(axis) == time => Err(op.coupled_at("turns the order of the rows", axis)),
        (Some(axis), Some(0)) if Some(axis) == batch => reversed(value.rows.clone()),
        (Some(axis), None) if Some(axis) == batch => Err(op.unknown("has fixed lengths for the rows")),
        (Some(_) | None, None) => reversed(value.rows.clone()),
        (_, Some(_)) => Err(op.unknown("takes lengths from rows that lie along another axis")),
    }
}

/// Blocks of the last two axes become channels, or channels become blocks.
fn blocks(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    match value.row_axis() {
        Some(axis) if axis > 0 => Err(op.coupled_at("moves rows between channels and places", axis)),
        _ => {
            let first = value.size(0).cloned().unwrap_or_else(|| op.free());
            let shape = vec![first, op.free(), op.free(), op.free()];
            Ok(one(Value::of(Some(shape), value.rows.clone(), value.content.clone())))
        }
    }
}

fn crop(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    op.parameter(1, "shape")?;
    let Some(rank) = value.rank() else {
        return Err(op.unknown("cuts a value whose number of axes only a run knows"));
    };
    let axes = op.ints("axes").unwrap_or_else(|| (0..rank as i64).collect());
    let mut cropped = value.without_elements();
    for axis in axes.iter().filter_map(|axis| absolute(*axis, rank)) {
        if value.row_axis() == Some(axis) {
            return Err(op.coupled_at("cuts the rows, or adds some", axis));
        }
        cropped = resized(op, &cropped, axis, None);
    }
    Ok(one(cropped))
}
