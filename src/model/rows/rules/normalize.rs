//! Operators that work along some axes: reductions, softmax, normalisation and running sums.

use super::super::op::{Op, Ruled};
use super::super::size::Size;
use super::super::value::{Content, Value, absolute};
use super::broadcast::{broadcast, worse};
use super::one;

pub(super) fn apply(op: &Op<'_>) -> Option<Ruled> {
    Some(match op.kind() {
        kind if REDUCTIONS.contains(&kind) => reduce(op),
        "ArgMax" | "ArgMin" => reduce_one(op),
        "Softmax" | "LogSoftmax" | "Hardmax" | "QLinearSoftmax" => softmax(op),
        "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => layer_norm(op),
        "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => skip_norm(op),
        "LpNormalization" => along(op, "normalises over the rows", &[op.int("axis", -1)]),
        "MeanVarianceNormalization" => {
            let axes = op.ints("axes").unwrap_or_else(|| vec![0, 2, 3]);
            along(op, "normalises over the rows", &axes)
        }
        "CumSum" | "CumProd" => running(op),
        "BatchNormalization" | "FusedBatchNormalization" => batch_norm(op),
        "InstanceNormalization" | "GroupNormalization" | "GroupNorm" | "LRN" => channels(op),
        "NegativeLogLikelihoodLoss" | "SoftmaxCrossEntropyLoss" => loss(op),
        "DFT" => fourier(op),
        _ => return None,
    })
}

/// The value with the axes reduced to one place, or taken away.
fn reduce(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let axes = op.axes("axes", 1)?.unwrap_or_default();
    if axes.is_empty() && op.int("noop_with_empty_axes", 0) != 0 {
        return Ok(one(value.without_elements()));
    }
    if op.kind() == "ReduceProd"
        && let Some(elements) = value.elements.as_deref()
        && let Some(product) = Size::product(elements)
    {
        let rank = if op.int("keepdims", 1) == 0 { 0 } else { 1 };
        return Ok(one(Value::integers(vec![Size::one(); rank], vec![product])));
    }
    reduced(op, value, &axes, op.int("keepdims", 1) != 0)
}

fn reduce_one(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    reduced(op, value, &[op.int("axis", 0)], op.int("keepdims", 1) != 0)
}

/// Reduces over these axes, or over all if there are none.
fn reduced(op: &Op<'_>, value: &Value, axes: &[i64], keeps: bool) -> Ruled {
    let content = op.content([value]);
    let Some(rank) = value.rank() else {
        return match (&value.rows, axes.is_empty()) {
            (None, _) => Ok(one(Value::of(None, None, content))),
            (Some(rows), true) => Err(op.coupled_at("reduces over the rows", rows.axis)),
            (Some(_), false) => Err(op.unknown("reduces over axes of which only a run knows how many there are")),
        };
    };
    let axes: Vec<usize> = if axes.is_empty() {
        (0..rank).collect()
    } else {
        axes.iter().filter_map(|axis| absolute(*axis, rank)).collect()
    };
    let shape = value.shape.as_deref().unwrap_or_default();
    let kept = (0..rank).filter(|axis| keeps || !axes.contains(axis));
    let sizes = kept
        .clone()
        .map(|axis| {
            if axes.contains(&axis) {
                Size::one()
            } else {
                shape[axis].clone()
            }
        })
        .collect();
    let rows = match &value.rows {
        Some(rows) if axes.contains(&rows.axis) => {
            let coupled = op.coupled_at("reduces over the rows", rows.axis);
            return Ok(one(Value::of(Some(sizes), None, worse(coupled, content))));
        }
        Some(rows) => kept
            .clone()
            .position(|axis| axis == rows.axis)
            .map(|axis| rows.at(axis)),
        None => None,
    };
    let content = match content {
        Content::Place | Content::Led => op.unknown("uses the place of a row among the others"),
        content => content,
    };
    Ok(one(Value::of(Some(sizes), rows, content)))
}

/// The value itself, spoilt if the node works along the axis of its rows; other inputs must be shared by all rows.
fn along(op: &Op<'_>, does: &str, axes: &[i64]) -> Ruled {
    let value = op.required(0)?;
    for index in 1..op.inputs.len() {
        op.shared(index, "its parameters")?;
    }
    kept_along(op, value, does, axes)
}

fn kept_along(op: &Op<'_>, value: &Value, does: &str, axes: &[i64]) -> Ruled {
    let content = op.content([value]);
    if let Some(rows) = &value.rows {
        let axes: Option<Vec<usize>> = match value.rank() {
            Some(rank) => Some(axes.iter().filter_map(|axis| absolute(*axis, rank)).collect()),
            // What is counted from the end may be any axis but those that are counted from the front.
            None => axes.iter().map(|axis| usize::try_from(*axis).ok()).collect(),
        };
        match axes {
            None => return Err(op.unknown("works along an axis that cannot be told")),
            Some(axes) if axes.contains(&rows.axis) => {
                let content = worse(op.coupled_at(does, rows.axis), content);
                return Ok(one(Value {
                    content,
                    ..value.without_elements()
                }));
            }
            Some(_) => {}
        }
    }
    let content = match content {
        Content::Place | Content::Led => op.unknown("uses the place of a row among the others"),
        content => content,
    };
    Ok(one(Value {
        content,
        ..value.without_elements()
    }))
}

/// # Source
/// Softmax: before version 13 over all axes from `axis` (1) on, since then over `axis` (-1) alone.
fn softmax(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let old = op.opset < 13 && op.domain() != "com.microsoft";
    let axes: Vec<i64> = match (old, value.rank()) {
        (false, _) => vec![op.int("axis", -1)],
        (true, Some(rank)) => {
            let first = absolute(op.int("axis", 1), rank).unwrap_or(rank);
            (first..rank).map(|axis| axis as i64).collect()
        }
        (true, None) if value.row_axis() == Some(0) && op.int("axis", 1) > 0 => Vec::new(),
        (true, None) => vec![-1],
    };
    along(op, "normalises over the rows", &axes)
}

/// Normalises over all axes from `axis` on; scale and bias are laid upon these.
fn layer_norm(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let Some(rank) = value.rank() else {
        return Err(op.unknown("normalises over axes of which only a run knows how many there are"));
    };
    let first = absolute(op.int("axis", -1), rank).unwrap_or(0);
    let axes: Vec<i64> = (first..rank).map(|axis| axis as i64).collect();
    let mut outputs = along(op, "normalises over the rows", &axes)?;
    if let Some(normal) = outputs.first().cloned() {
        let mut shape = normal.shape.as_deref().unwrap_or_default().to_vec();
        shape[first..].fill(Size::one());
        let statistics = Value {
            shape: Some(shape.into()),
            ..normal
        };
        outputs.extend([statistics.clone(), statistics]);
    }
    Ok(outputs)
}

/// # Source
/// ONNX Runtime, `com.microsoft.SkipLayerNormalization`: input + skip (+ bias), normalised over the last axis; the fourth output
/// is the sum.
fn skip_norm(op: &Op<'_>) -> Ruled {
    let (value, skip) = (op.required(0)?, op.required(1)?);
    for index in 2..op.inputs.len() {
        op.shared(index, "its parameters")?;
    }
    // Only the skip is broadcast.
    if value.rows.is_none() && skip.rows.is_some() {
        return Err(op.unknown("adds rows to a value that no row reaches"));
    }
    let sum = broadcast(op, &[value, skip]);
    let normal = kept_along(op, &sum, "normalises over the rows", &[-1])?;
    let normal = normal.into_iter().next().unwrap_or_else(|| sum.clone());
    Ok(vec![normal.clone(), normal.clone(), normal, sum])
}

fn running(op: &Op<'_>) -> Ruled {
    let axes = op.constants(1, "axis")?;
    let axes = axes.ok_or_else(|| op.unknown("has no axis"))?;
    kept_along(op, op.required(0)?, "adds up the rows one after the other", &axes)
}

/// # Source
/// BatchNormalization: in training mode mean and variance are those of the batch; before version 14, if it has outputs for them.
fn batch_norm(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let trains = op.int("training_mode", 0) != 0;
    if let Some(axis) = value.row_axis().filter(|_| trains) {
        return Err(op.coupled_at(
            "takes mean and variance of the rows, since it is in training mode",
            axis,
        ));
    }
    let outputs = op.node.output.iter().filter(|output| !output.is_empty()).count();
    if op.opset < 14 && (outputs > 1 || op.has("is_test") && op.int("is_test", 0) == 0) {
        return Err(op.unknown("may be in training mode"));
    }
    along(op, "has a scale for each place among the rows", &[1])
}

/// Normalises each channel of each image, or channels with their neighbours.
fn channels(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    match value.row_axis() {
        Some(0) | None => along(op, "", &[]),
        Some(axis) => Err(op.coupled_at("normalises over the rows", axis)),
    }
}

/// # Source
/// Both losses: with `reduction` "none" one loss for each place, else their mean (the default) or sum.
fn loss(op: &Op<'_>) -> Ruled {
    let values: Vec<&Value> = op.all().collect();
    let rows = values.iter().find_map(|value| value.row_axis());
    match (rows, op.text("reduction")) {
        (None, _) => Ok(vec![Value::of(None, None, op.content(values)); 2]),
        (Some(axis), None | Some("mean" | "sum")) => Err(op.coupled_at("reduces over the rows", axis)),
        (Some(0), _)
            if values
                .iter()
                .take(2)
                .all(|value| value.row_axis() == Some(0) && value.rank().is_some()) =>
        {
            op.parameter(2, "weights")?;
            let (scores, labels) = (values[0], values[1]);
            let content = op.content(values.iter().copied());
            let losses = Value {
                content: content.clone(),
                ..labels.without_elements()
            };
            Ok(vec![
                losses,
                Value {
                    content,
                    ..scores.without_elements()
                },
            ])
        }
        (Some(_), _) => Err(op.unknown("compares rows with something that is not laid out alike")),
    }
}

/// # Source
/// DFT: along `axis`, with real and imaginary parts along the last one.
fn fourier(op: &Op<'_>) -> Ruled {
    let axis = match op.constants(2, "axis")? {
        Some(axes) => axes.first().copied().unwrap_or(-2),
        None => op.int("axis", if op.opset >= 20 { -2 } else { 1 }),
    };
    let mut outputs = along(op, "transforms the rows", &[axis, -1])?;
    for value in &mut outputs {
        value.shape = value.shape.as_deref().map(|shape| {
            let at = absolute(axis, shape.len());
            let size = |(axis, size): (usize, &Size)| {
                if Some(axis) == at || axis + 1 == shape.len() {
                    op.free()
                } else {
                    size.clone()
                }
            };
            shape.iter().enumerate().map(size).collect()
        });
    }
    Ok(outputs)
}

const REDUCTIONS: &[&str] = &[
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumInteger",
    "ReduceSumSquare",
];
