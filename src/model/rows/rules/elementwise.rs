//! Operators that work element by element, with broadcasting; and the arithmetic of sizes, done in symbols.

use super::super::op::{Op, Ruled};
use super::super::size::{Origin, Size};
use super::super::value::{Content, Value};
use super::broadcast::broadcast;
use super::one;
use crate::model::onnx::tensor_proto::DataType;

pub(super) fn apply(op: &Op<'_>) -> Option<Ruled> {
    Some(match op.kind() {
        kind if ELEMENTWISE.contains(&kind) => Ok(elementwise(op)),
        "Identity" | "OptionalGetElement" | "Optional" | "MemcpyFromHost" | "MemcpyToHost" => {
            op.required(0).cloned().map(one)
        }
        "Cast" => cast(op),
        "CastLike" | "BitCast" => op.required(0).map(|value| one(value.without_elements())),
        "Clip" => clip(op),
        "Dropout" => dropout(op),
        "QuantizeLinear" | "DequantizeLinear" => quantized(op),
        "DynamicQuantizeLinear" => dynamic_quantized(op),
        "RandomNormalLike" | "RandomUniformLike" | "Bernoulli" | "RandomNormal" | "RandomUniform" | "Multinomial" => {
            Err(op.unknown("draws at random"))
        }
        _ => return None,
    })
}

fn elementwise(op: &Op<'_>) -> Vec<Value> {
    let values: Vec<&Value> = op.all().collect();
    let mut value = broadcast(op, &values);
    // Of the place of a row only itself may serve as an index.
    if matches!(value.content, Content::Place | Content::Led) {
        value.content = op.unknown("uses the place of a row among the others");
    }
    match computed(op, &values) {
        Some(elements) => {
            let shape = value.shape.as_deref().unwrap_or_default().to_vec();
            one(Value::integers(shape, elements))
        }
        None => one(value),
    }
}

/// The elements of the result, where those of all operands are known: at most one axis of them.
fn computed(op: &Op<'_>, values: &[&Value]) -> Option<Vec<Size>> {
    let elements: Vec<&[Size]> = values
        .iter()
        .map(|value| value.elements.as_deref())
        .collect::<Option<_>>()?;
    let flat = values.iter().all(|value| value.rank().is_some_and(|rank| rank <= 1));
    let count = elements.iter().map(|elements| elements.len()).max()?;
    let fits = elements
        .iter()
        .all(|elements| elements.len() == 1 || elements.len() == count);
    if !flat || !fits {
        return None;
    }
    let at = |index: usize| {
        elements.iter().map(move |elements| {
            if elements.len() == 1 {
                &elements[0]
            } else {
                &elements[index]
            }
        })
    };
    (0..count)
        .map(|index| element(op, &at(index).collect::<Vec<_>>()))
        .collect()
}

fn element(op: &Op<'_>, operands: &[&Size]) -> Option<Size> {
    let truth = |truth: Option<bool>| truth.map(|truth| Size::constant(truth.into()));
    let constants: Option<Vec<i64>> = operands.iter().map(|size| size.to_constant()).collect();
    let symbolic = match (op.kind(), operands) {
        ("Add", [a, b]) => a.plus(b),
        ("Sub", [a, b]) => a.minus(b),
        ("Mul", [a, b]) => a.times(b),
        ("Div", [a, b]) => a.over(b),
        ("Neg", [a]) => Size::constant(0).minus(a),
        ("Equal", [a, b]) => truth(a.equals(b)),
        ("Where", [condition, a, b]) => match condition.to_constant() {
            Some(condition) => Some(if condition == 0 { (*b).clone() } else { (*a).clone() }),
            None => (a == b).then(|| (*a).clone()),
        },
        ("Max" | "Min", [a]) => Some((*a).clone()),
        ("Max" | "Min", [a, b]) if a == b => Some((*a).clone()),
        _ => None,
    };
    let constant = || {
        constants
            .as_deref()
            .and_then(|constants| constant(op.kind(), constants))
    };
    let known = symbolic.or_else(|| constant().map(Size::constant));
    // Nothing is lost by a new symbol but its relation to others.
    Some(known.unwrap_or_else(|| number(op, operands.iter().any(|size| size.origin() == Origin::Counted))))
}

/// A number of which only this much is known: if it follows the number of rows.
pub(super) fn number(op: &Op<'_>, is_counted: bool) -> Size {
    op.symbols
        .fresh(if is_counted { Origin::Counted } else { Origin::Number })
}

fn constant(kind: &str, operands: &[i64]) -> Option<i64> {
    Some(match (kind, operands) {
        ("Div", [a, b]) => a.checked_div(*b)?,
        ("Mod", [a, b]) if *a >= 0 && *b > 0 => a % b,
        ("Less", [a, b]) => i64::from(a < b),
        ("LessOrEqual", [a, b]) => i64::from(a <= b),
        ("Greater", [a, b]) => i64::from(a > b),
        ("GreaterOrEqual", [a, b]) => i64::from(a >= b),
        ("And", [a, b]) => i64::from(*a != 0 && *b != 0),
        ("Or", [a, b]) => i64::from(*a != 0 || *b != 0),
        ("Not", [a]) => i64::from(*a == 0),
        ("Abs", [a]) => a.checked_abs()?,
        ("Max", all) => *all.iter().max()?,
        ("Min", all) => *all.iter().min()?,
        _ => return None,
    })
}

/// Keeps the elements of integers; a size that became a float is followed no further.
fn cast(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let to = i32::try_from(op.int("to", 0))
        .ok()
        .and_then(|to| DataType::try_from(to).ok());
    let keeps = matches!(to, Some(DataType::Int64 | DataType::Int32));
    Ok(one(if keeps { value.clone() } else { value.without_elements() }))
}

/// # Source
/// Clip: `min` and `max` are scalars since version 11; ONNX Runtime takes one of one element, which a row alone would be.
fn clip(op: &Op<'_>) -> Ruled {
    op.parameter(1, "min")?;
    op.parameter(2, "max")?;
    Ok(one(op.required(0)?.without_elements()))
}

/// # Source
/// Dropout is the identity unless `training_mode` is true (version 12) or `is_test` is 0 (version 6 and before).
fn dropout(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let trains = match op.input(2) {
        None => Some(false),
        Some(mode) => mode.constant().map(|mode| mode != 0),
    };
    match trains {
        Some(false) => Ok(vec![value.clone(), value.without_elements()]),
        Some(true) => Err(op.unknown("draws at random, since it is in training mode")),
        None => Err(op.unknown("is in training mode in runs that cannot be told")),
    }
}

/// A scale for the whole, for each place of one axis, or for blocks along it.
fn quantized(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let content = op.content(op.all());
    let kept = Value::of(
        value.shape.as_deref().map(<[Size]>::to_vec),
        value.rows.clone(),
        content,
    );
    let scale = op.required(1)?;
    if scale.is_single() || scale.rank() == Some(0) {
        // ONNX Runtime takes a zero point of one element beside it, which that of a row alone would be.
        return match op.input(2).is_some_and(|zero_point| zero_point.rows.is_some()) {
            true => Err(op.unknown("takes zero points of the rows beside one scale")),
            false => Ok(one(kept)),
        };
    }
    let Some(axis) = value.axis(op.int("axis", 1)) else {
        return Err(op.unknown("has scales along an axis that cannot be told"));
    };
    let scaled = match (&scale.rows, scale.rank()) {
        (Some(rows), Some(1)) => Some(rows.at(axis)),
        (rows, _) => rows.clone(),
    };
    match (&value.rows, &scaled) {
        (Some(rows), None) if rows.axis == axis => {
            Err(op.coupled_at("has a scale for each place among the rows", axis))
        }
        // Blocks have as many axes as the value.
        (Some(_), None) if scale.rank().is_some_and(|rank| rank > 1) => {
            Err(op.unknown("has scales in blocks that no row reaches"))
        }
        (Some(_), Some(_)) if op.input(2).is_some_and(|zero_point| zero_point.rows != scale.rows) => {
            Err(op.unknown("has zero points that are not laid out like its scales"))
        }
        (Some(_), None) | (None, None) => Ok(one(kept)),
        (Some(rows), Some(scaled)) if rows == scaled => Ok(one(kept)),
        (_, Some(_)) => Err(op.coupled("scales rows by other rows")),
    }
}

/// # Source
/// DynamicQuantizeLinear: the scale is (max(0, max(x)) - min(0, min(x))) / 255 over the whole tensor.
fn dynamic_quantized(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let content = match (&value.content, &value.rows) {
        (Content::Own | Content::Place | Content::Led, Some(rows)) => {
            op.coupled_at("takes its scale from all rows together", rows.axis)
        }
        (content, _) => content.clone(),
    };
    let scalar = Value::of(Some(Vec::new()), None, content.clone());
    let quantized = Value {
        content,
        ..value.without_elements()
    };
    Ok(vec![quantized, scalar.clone(), scalar])
}

/// Operators whose every output element depends on the elements at the same place of their broadcast inputs, and on attributes.
const ELEMENTWISE: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "Affine",
    "And",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BiasGelu",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Div",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "FastGelu",
    "Floor",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "ImageScaler",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "ParametricSoftplus",
    "Pow",
    "PRelu",
    "QLinearAdd",
    "QLinearLeakyRelu",
    "QLinearMul",
    "QLinearSigmoid",
    "QLinearWhere",
    "QuickGelu",
    "Reciprocal",
    "RegexFullMatch",
    "Relu",
    "Round",
    "ScaledTanh",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "StringConcat",
    "Sub",
    "Sum",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Where",
    "Xor",
];
