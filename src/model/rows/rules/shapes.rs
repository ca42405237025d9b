//! Operators that speak of shapes, and those that make tensors from them.

use super::super::op::{Op, Ruled};
use super::super::size::Size;
use super::super::value::{Content, RowAxis, Value, absolute};
use super::layout::filled;
use super::one;
use crate::model::onnx::TensorProto;

pub(super) fn apply(op: &Op<'_>) -> Option<Ruled> {
    Some(match op.kind() {
        "Shape" => shape(op),
        "Size" => size(op),
        "Constant" => Ok(one(constant(op))),
        "ConstantOfShape" => constant_of_shape(op),
        "ConstantFill" => Err(op.unknown("fills a shape that cannot be told")),
        "Range" => range(op),
        "EyeLike" => eye(op),
        "OneHot" => one_hot(op),
        "HannWindow" | "HammingWindow" | "BlackmanWindow" | "MelWeightMatrix" => window(op),
        "NonZero" => non_zero(op),
        _ => return None,
    })
}

fn shape(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    if let Some(sizes) = value.shape.as_deref() {
        let rank = sizes.len() as i64;
        let bound = |axis: i64| (if axis < 0 { axis + rank } else { axis }).clamp(0, rank) as usize;
        let (start, end) = (bound(op.int("start", 0)), bound(op.int("end", rank)));
        let sizes = sizes.get(start..end.max(start)).unwrap_or_default().to_vec();
        return Ok(one(Value::integers(vec![Size::constant(sizes.len() as i64)], sizes)));
    }
    if op.int("start", 0) == 0 && !op.has("end") && value.row_axis() == Some(0) {
        // Its first element is known, and those behind it follow no rows.
        return Err(op.unknown("gives a shape of as many axes as only a run knows"));
    }
    match value.content {
        Content::Shared => Ok(one(Value::shared(None))),
        _ => Err(op.unknown("gives a shape that only a run knows")),
    }
}

fn size(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    match value.shape.as_deref().and_then(Size::product) {
        Some(size) => Ok(one(Value::integers(Vec::new(), vec![size]))),
        None if value.content == Content::Shared => Ok(one(Value::shared(Some(Vec::new())))),
        None => Err(op.unknown("counts elements of which only a run knows how many there are")),
    }
}

fn constant(op: &Op<'_>) -> Value {
    if let Some(tensor) = op.tensor("value") {
        return of_tensor(tensor);
    }
    if let Some(value) = op.attribute("value_int") {
        return Value::integers(Vec::new(), vec![Size::constant(value.i())]);
    }
    if let Some(values) = op.ints("value_ints") {
        let sizes: Vec<Size> = values.into_iter().map(Size::constant).collect();
        return Value::integers(vec![Size::constant(sizes.len() as i64)], sizes);
    }
    if let Some(values) = op.floats("value_floats") {
        return Value {
            floats: Some(values.into()),
            ..Value::shared(Some(vec![Size::constant(values.len() as i64)]))
        };
    }
    if op.has("value_float") || op.has("value_string") {
        return Value::shared(Some(Vec::new()));
    }
    Value::shared(None)
}

/// The value of a constant of the graph.
pub(in super::super) fn of_tensor(tensor: &TensorProto) -> Value {
    let shape: Vec<Size> = tensor.dims.iter().map(|size| Size::constant(*size)).collect();
    if tensor.dims.len() <= 1
        && let Some(elements) = tensor.integers().filter(|elements| elements.len() <= ELEMENTS_MAX)
    {
        return Value::integers(shape, elements.into_iter().map(Size::constant).collect());
    }
    Value {
        floats: tensor
            .floats()
            .filter(|floats| floats.len() <= ELEMENTS_MAX)
            .map(Into::into),
        ..Value::shared(Some(shape))
    }
}

fn constant_of_shape(op: &Op<'_>) -> Ruled {
    let shape = op.sizes(0, "shape")?.ok_or_else(|| op.unknown("has no shape"))?;
    if let Some(sizes) = shape.elements.as_deref() {
        let mut value = filled(op, sizes.to_vec());
        // The ones and minus ones of which shapes are made.
        let fill = op.tensor("value").map_or(Some(vec![0]), TensorProto::integers);
        if let (Some(&[fill]), [count]) = (fill.as_deref(), sizes)
            && let Some(count) = count
                .to_constant()
                .filter(|count| (0..=ELEMENTS_MAX as i64).contains(count))
        {
            value = Value::integers(sizes.to_vec(), vec![Size::constant(fill); count as usize]);
        }
        return Ok(one(value));
    }
    match (&shape.content, shape.size(0).and_then(Size::to_constant)) {
        (Content::Shared, Some(rank)) => Ok(one(Value::shared(Some(
            (0..rank.clamp(0, 64)).map(|_| op.free()).collect(),
        )))),
        (Content::Shared, None) => Ok(one(Value::shared(None))),
        _ => Err(op.unknown("has a shape that only a run knows")),
    }
}

/// From 0 to the number of rows, it is the place of each row.
fn range(op: &Op<'_>) -> Ruled {
    let bound = |index, name| -> Result<Option<Size>, Content> {
        let value = op.sizes(index, name)?;
        Ok(value.and_then(|value| value.elements.as_deref()?.first().cloned()))
    };
    let (start, limit, delta) = (bound(0, "start")?, bound(1, "limit")?, bound(2, "delta")?);
    let follows_rows = op.all().any(|value| value.content != Content::Shared);
    let (Some(start), Some(limit), Some(delta)) = (start, limit, delta) else {
        return if follows_rows {
            Err(op.coupled("counts on with the number of rows"))
        } else {
            Ok(one(Value::shared(Some(vec![op.free()]))))
        };
    };
    if follows_rows {
        return if start.is(0) && delta.is(1) && limit == Size::rows() {
            Ok(one(Value::of(
                Some(vec![limit]),
                Some(RowAxis::plain(0)),
                Content::Place,
            )))
        } else {
            Err(op.unknown("counts on with the number of rows"))
        };
    }
    if let [Some(start), Some(limit), Some(delta)] = [&start, &limit, &delta].map(Size::to_constant)
        && let Some(elements) = counted(start, limit, delta)
    {
        let size = Size::constant(elements.len() as i64);
        return Ok(one(Value::integers(vec![size], elements)));
    }
    let count = if delta.is(1) { limit.minus(&start) } else { None };
    let count = op.size_or_fresh(count, &[&start, &limit]);
    Ok(one(Value::shared(Some(vec![count]))))
}

/// The numbers of a short range.
fn counted(start: i64, limit: i64, delta: i64) -> Option<Vec<Size>> {
    let mut elements = Vec::new();
    let mut number = start;
    while delta > 0 && number < limit || delta < 0 && number > limit {
        if elements.len() == ELEMENTS_MAX {
            return None;
        }
        elements.push(Size::constant(number));
        number = number.checked_add(delta)?;
    }
    (delta != 0).then_some(elements)
}

fn eye(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    match value.rows {
        Some(_) => Err(op.unknown("gives each row the place that it has among the others")),
        None if value.content == Content::Shared => Ok(one(value.without_elements())),
        None => Err(op.unknown("has a shape that only a run knows")),
    }
}

fn one_hot(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let depth = op.parameter(1, "depth")?.and_then(Value::constant);
    op.parameter(2, "values")?;
    let Some(shape) = value.shape.as_deref() else {
        return Err(op.unknown("adds an axis to a value whose number of axes only a run knows"));
    };
    let axis = absolute(op.int("axis", -1), shape.len() + 1);
    let axis = axis.ok_or_else(|| op.unknown("has no such axis"))?;
    let mut sizes = shape.to_vec();
    sizes.insert(axis, depth.map_or_else(|| op.free(), Size::constant));
    let rows = value
        .rows
        .as_ref()
        .map(|rows| rows.at(rows.axis + usize::from(axis <= rows.axis)));
    Ok(one(Value::of(Some(sizes), rows, op.content([value]))))
}

fn window(op: &Op<'_>) -> Ruled {
    for index in 0..op.inputs.len() {
        op.parameter(index, "size")?;
    }
    Ok(one(Value::shared(None)))
}

fn non_zero(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    match value.content {
        Content::Shared => {
            let rank = value
                .rank()
                .map_or_else(|| op.free(), |rank| Size::constant(rank as i64));
            Ok(one(Value::shared(Some(vec![rank, op.free()]))))
        }
        Content::Coupled(_) | Content::Unknown(_) => Err(value.content.clone()),
        _ => Err(op.coupled("lists what it finds in all rows one behind the other")),
    }
}

/// Shapes, axes and scales are shorter.
const ELEMENTS_MAX: usize = 64;
