//! Operators that take a batch along known axes: recurrent layers, attention, text, and classical machine learning.

use super::super::op::{Op, Ruled};
use super::super::size::Size;
use super::super::value::{Content, RowAxis, Value};
use super::one;

pub(super) fn apply(op: &Op<'_>) -> Option<Ruled> {
    Some(match (op.domain(), op.kind()) {
        ("", "RNN" | "LSTM" | "GRU") => recurrent(op),
        ("com.microsoft", "DynamicQuantizeLSTM") => dynamic_recurrent(op),
        ("", "StringNormalizer") => joined_text(op, "drops words, and the rows that hold nothing else"),
        ("", "StringSplit") => split_text(op),
        ("com.microsoft", "Tokenizer") => joined_text(op, "fills all rows up to the longest"),
        ("", "ImageDecoder") => joined_text(op, "reads all rows as one image"),
        ("", "TfIdfVectorizer") => table_row(op, false),
        ("ai.onnx.ml", "LabelEncoder" | "CategoryMapper") => op.required(0).map(|value| one(value.without_elements())),
        ("ai.onnx.ml", "OneHotEncoder") => encoded(op),
        ("ai.onnx.ml", "ArrayFeatureExtractor") => extracted(op),
        ("ai.onnx.ml", "FeatureVectorizer") => vector(op),
        ("ai.onnx.ml", "Scaler" | "Imputer" | "Normalizer" | "Binarizer") => table_row(op, true),
        ("ai.onnx.ml", kind) if kind.ends_with("Classifier") || kind.ends_with("Regressor") || ML.contains(&kind) => {
            table_row(op, false)
        }
        _ => by_table(op)?,
    })
}

/// Along which axes an operator takes and gives its batch.
struct Layout {
    domain: &'static str,
    kind: &'static str,
    /// For each input the axis of its batch, `-` if all rows share it, `m` if it is laid upon `[batch, heads, queries, keys]`, `p`
    /// for positions, of which one for all may stand in place of a batch; the last sign stands for all that follow.
    inputs: &'static str,
    /// For each output the axis of its batch; `=` is laid out like the first input.
    outputs: &'static str,
}

/// # Source
/// ONNX: Attention, RotaryEmbedding; ONNX Runtime, "Contrib Operators".
const LAYOUTS: &[Layout] = &[
    layout("", "Attention", "000m000", "=00m"),
    layout("", "RotaryEmbedding", "0--0", "="),
    layout("com.microsoft", "Attention", "0--01m-", "=1"),
    layout("com.microsoft", "QAttention", "0----0--1-", "=1"),
    layout("com.microsoft", "MultiHeadAttention", "000-0m00-", "=00"),
    layout("com.microsoft", "EmbedLayerNormalization", "00-----00", "000"),
    layout("com.microsoft", "GroupQueryAttention", "000000---0m-", "=00"),
    layout("com.microsoft", "RotaryEmbedding", "0p--", "="),
];

const fn layout(domain: &'static str, kind: &'static str, inputs: &'static str, outputs: &'static str) -> Layout {
    Layout {
        domain,
        kind,
        inputs,
        outputs,
    }
}

fn by_table(op: &Op<'_>) -> Option<Ruled> {
    let is_it = |layout: &&Layout| op.domain() == layout.domain && op.kind() == layout.kind;
    let layout = LAYOUTS.iter().find(is_it)?;
    Some(laid_out(op, layout))
}

fn laid_out(op: &Op<'_>, layout: &Layout) -> Ruled {
    let signs = layout.inputs.as_bytes();
    for index in 0..op.inputs.len() {
        let Some(sign) = signs.get(index).or(signs.last()) else {
            break;
        };
        match sign {
            b'm' => mask(op, index)?,
            b'p' if op.input(index).is_some_and(Value::is_single) => batch_along(op, index, None)?,
            sign => batch_along(op, index, axis_of(*sign))?,
        }
    }
    let content = op.content(op.all());
    let is_own = content == Content::Own;
    let output = |sign: &u8| match sign {
        b'=' => Value {
            content: content.clone(),
            ..op.input(0).map_or_else(|| Value::shared(None), Value::without_elements)
        },
        sign => Value::of(
            None,
            axis_of(*sign).filter(|_| is_own).map(RowAxis::plain),
            content.clone(),
        ),
    };
    let outputs: Vec<Value> = layout.outputs.as_bytes().iter().map(output).collect();
    // The width of what comes out is that of the values, which need not be that of the queries.
    let first = outputs.first().map(|value| Value {
        shape: value.shape.as_deref().map(|shape| {
            let mut shape = shape.to_vec();
            if let Some(last) = shape.last_mut() {
                *last = op.free();
            }
            shape.into()
        }),
        ..value.clone()
    });
    Ok(first.into_iter().chain(outputs.into_iter().skip(1)).collect())
}

/// A mask of fewer than four axes is laid upon heads, queries and keys, and has none for the batch.
fn mask(op: &Op<'_>, index: usize) -> Result<(), Content> {
    match op.input(index) {
        Some(mask) if mask.rows.is_some() && mask.rank() != Some(4) => {
            Err(op.unknown("lays a mask of rows upon another axis"))
        }
        Some(mask) if mask.rows.is_none() && mask.rank().is_some_and(|rank| rank < 4 || is_one(mask, 0)) => {
            batch_along(op, index, None)
        }
        _ => batch_along(op, index, Some(0)),
    }
}

fn axis_of(sign: u8) -> Option<usize> {
    let sign = if matches!(sign, b'm' | b'p') { b'0' } else { sign };
    char::from(sign).to_digit(10).map(|axis| axis as usize)
}

fn is_one(value: &Value, axis: usize) -> bool {
    value.size(axis).is_some_and(|size| size.is(1))
}

/// Refuses rows of an input that lie anywhere else, and a batch of fixed size beside rows: even one of a single place, since
/// these operators do not broadcast it.
fn batch_along(op: &Op<'_>, index: usize, axis: Option<usize>) -> Result<(), Content> {
    let Some(value) = op.input(index) else { return Ok(()) };
    if value.content.is_spoilt() {
        return Err(value.content.clone());
    }
    match (&value.rows, axis) {
        (Some(rows), Some(axis)) if rows.axis == axis && rows.is_plain() => Ok(()),
        (Some(_), None) => Err(op.unknown(&format!("takes input {index} from the rows"))),
        (Some(rows), Some(_)) => Err(op.unknown(&format!("takes rows along axis {} of input {index}", rows.axis))),
        (None, None) => Ok(()),
        (None, Some(_)) if op.all().all(|value| value.rows.is_none()) => Ok(()),
        (None, Some(_)) => Err(op.unknown(&format!(
            "takes an input {index} that no row reaches where it expects a batch"
        ))),
    }
}

/// # Source
/// RNN, GRU, LSTM: X is `[seq, batch, input]`, with `layout` 1 `[batch, seq, input]`; sequence_lens `[batch]`; initial_h and
/// initial_c `[directions, batch, hidden]` or `[batch, directions, hidden]`; Y `[seq, directions, batch, hidden]` or
/// `[batch, seq, directions, hidden]`.
fn recurrent(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let is_first = op.int("layout", 0) != 0;
    let (batch, state) = if is_first { (0, 0) } else { (1, 1) };
    if value.content.is_spoilt() {
        return Err(value.content.clone());
    }
    if let Some(axis) = value.row_axis().filter(|axis| *axis == 1 - batch) {
        // The steps of the output still lie where those of the input do.
        let coupled = op.coupled_at("takes the rows for the steps of its sequence", axis);
        let last = Value::spoilt(coupled.clone());
        let size = || op.free();
        let mut shape = vec![size(), size(), size(), size()];
        shape[axis] = Size::rows();
        let all = Value::of(Some(shape), value.rows.clone(), coupled);
        return Ok(vec![all, last.clone(), last]);
    }
    for index in 0..op.inputs.len() {
        let axis = match index {
            0 => Some(batch),
            4 => Some(0),
            5 | 6 if op.kind() == "LSTM" || index == 5 => Some(state),
            _ => None,
        };
        batch_along(op, index, axis)?;
    }
    let content = op.content(op.all());
    let rows = |axis: usize| (content == Content::Own).then(|| RowAxis::plain(axis));
    let directions = Size::constant(if op.text("direction") == Some("bidirectional") {
        2
    } else {
        1
    });
    let hidden = if op.has("hidden_size") {
        Size::constant(op.int("hidden_size", 0))
    } else {
        op.free()
    };
    let size = |axis: usize| value.size(axis).cloned().unwrap_or_else(|| op.free());
    let (steps, count) = (size(1 - batch), size(batch));
    let (all, last, axes) = if is_first {
        (
            vec![count.clone(), steps, directions.clone(), hidden.clone()],
            vec![count, directions, hidden],
            (0, 0),
        )
    } else {
        (
            vec![steps, directions.clone(), count.clone(), hidden.clone()],
            vec![directions, count, hidden],
            (2, 1),
        )
    };
    let last = Value::of(Some(last), rows(axes.1), content.clone());
    Ok(vec![
        Value::of(Some(all), rows(axes.0), content.clone()),
        last.clone(),
        last,
    ])
}

/// # Source
/// ONNX Runtime, `com.microsoft.DynamicQuantizeLSTM`: the input is quantised with one scale for the whole of it.
fn dynamic_recurrent(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    match (&value.content, value.row_axis()) {
        (Content::Coupled(_) | Content::Unknown(_), _) => Err(value.content.clone()),
        (_, Some(axis)) => Err(op.coupled_at("takes its scale from all rows together", axis)),
        (_, None) => Ok(vec![Value::shared(None); 3]),
    }
}

/// Text or bytes that a node takes as a whole.
fn joined_text(op: &Op<'_>, does: &str) -> Ruled {
    let value = op.required(0)?;
    match &value.content {
        Content::Shared => Ok(one(Value::shared(None))),
        spoilt @ (Content::Coupled(_) | Content::Unknown(_)) => Err(spoilt.clone()),
        _ => Err(op.coupled(does)),
    }
}

/// # Source
/// StringSplit: the parts, filled up to the most that any string has; and how many each has.
fn split_text(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let content = match &value.content {
        Content::Own => op.coupled("fills all rows up to the one with the most parts"),
        content => content.clone(),
    };
    Ok(vec![Value::of(None, None, content), value.without_elements()])
}

/// One row of a table `[rows, features]` for each of what comes out; a value of one axis would be a single row.
fn table_row(op: &Op<'_>, keeps_shape: bool) -> Ruled {
    let value = op.required(0)?;
    for index in 1..op.inputs.len() {
        op.shared(index, "its parameters")?;
    }
    if value.content.is_spoilt() {
        return Err(value.content.clone());
    }
    let is_table = value.rank() == Some(2);
    match (&value.rows, value.row_axis()) {
        (Some(rows), Some(0)) if is_table => {
            let count = value.size(0).cloned().unwrap_or_else(Size::rows);
            let of = |shape| Value::of(Some(shape), Some(rows.clone()), value.content.clone());
            if keeps_shape {
                return Ok(one(value.without_elements()));
            }
            let wide = of(vec![count.clone(), op.free()]);
            Ok(if op.kind().ends_with("Classifier") {
                vec![of(vec![count]), wide]
            } else {
                one(wide)
            })
        }
        (None, _) => Ok(vec![Value::of(None, None, value.content.clone()); 2]),
        (Some(_), Some(1)) if is_table => Err(op.coupled_at("takes the rows for features", 1)),
        _ => Err(op.unknown("takes a value that is no table of rows and features")),
    }
}

/// Adds an axis at the end.
fn encoded(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let shape = value.shape.as_deref().map(|shape| [shape, &[op.free()]].concat());
    Ok(one(Value::of(shape, value.rows.clone(), op.content([value]))))
}

/// # Source
/// ArrayFeatureExtractor: takes elements along the last axis.
fn extracted(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    op.parameter(1, "index")?;
    let Some(shape) = value.shape.as_deref() else {
        return Err(op.unknown("takes elements along an axis that cannot be told"));
    };
    if let Some(axis) = value.row_axis().filter(|axis| axis + 1 == shape.len()) {
        return Err(op.coupled_at("takes rows by their place", axis));
    }
    let mut shape = shape.to_vec();
    if let Some(last) = shape.last_mut() {
        *last = op.free();
    }
    Ok(one(Value::of(Some(shape), value.rows.clone(), op.content([value]))))
}

/// Tables with the same rows, side by side.
fn vector(op: &Op<'_>) -> Ruled {
    let is_table = |value: &Value| value.rank() == Some(2) && value.rows == Some(RowAxis::plain(0));
    match op.all().all(is_table) {
        true => Ok(one(Value::of(
            Some(vec![Size::rows(), op.free()]),
            Some(RowAxis::plain(0)),
            op.content(op.all()),
        ))),
        false => Err(op.unknown("takes values that are no tables of rows and features")),
    }
}

/// Operators on tables whose names do not say so.
const ML: &[&str] = &["TreeEnsemble", "ZipMap"];
