//! Products of matrices.

use super::super::op::{Op, Ruled};
use super::super::size::Size;
use super::super::value::{Content, RowAxis, Value};
use super::broadcast::{broadcast, worse};
use super::one;

pub(super) fn apply(op: &Op<'_>) -> Option<Ruled> {
    Some(match op.kind() {
        "MatMul" | "FusedMatMul" | "TransposeMatMul" | "FusedMatMulActivation" => product(op, 0, 1, &[]),
        "MatMulInteger" => product(op, 0, 1, &[2, 3]),
        "MatMulIntegerToFloat" => product(op, 0, 1, &[2, 3, 4, 5, 6]),
        "QLinearMatMul" => product(op, 0, 3, &[1, 2, 4, 5, 6, 7]),
        "Gemm" | "FusedGemm" => gemm(op),
        "QGemm" => q_gemm(op),
        "MatMulNBits" | "MatMulBnb4" | "MatMulFpQ4" => packed(op),
        "DynamicQuantizeMatMul" => dynamic(op),
        "Einsum" => einsum(op),
        "Det" | "Inverse" => square(op),
        _ => return None,
    })
}

/// Where the rows of one factor lie.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    /// Along an axis before the last two, of which the product has one as well.
    Stack,
    /// Along the axis that the product keeps.
    Kept,
    /// Along the axis that is summed over.
    Summed,
}

struct Factor<'v> {
    value: &'v Value,
    /// Of the two matrices' axes, which the product keeps; both are counted from the end.
    kept: usize,
}

impl Factor<'_> {
    /// # Source
    /// MatMul is `numpy.matmul`: a factor of one axis is a vector, whose axis is summed over.
    fn role(&self, op: &Op<'_>) -> Result<Option<Role>, Content> {
        let Some(axis) = self.value.row_axis() else {
            return Ok(None);
        };
        let Some(rank) = self.value.rank() else {
            return Err(op.unknown("multiplies rows of which only a run knows how many axes they have"));
        };
        let from_end = rank - 1 - axis;
        Ok(Some(match from_end {
            _ if rank == 1 => Role::Summed,
            2.. => Role::Stack,
            from_end if from_end == self.kept => Role::Kept,
            _ => Role::Summed,
        }))
    }
}

/// The product of two inputs; `others` are scales and zero points, for each row of a matrix at the most.
fn product(op: &Op<'_>, left: usize, right: usize, others: &[usize]) -> Ruled {
    for other in others {
        op.shared(*other, "a scale or weights")?;
    }
    let turned = |name: &str| op.int(name, 0) != 0;
    if turned("transBatchA") || turned("transBatchB") {
        return Err(op.unknown("turns its stacks of matrices"));
    }
    let left = Factor {
        value: op.required(left)?,
        kept: if turned("transA") { 0 } else { 1 },
    };
    let right = Factor {
        value: op.required(right)?,
        kept: if turned("transB") { 1 } else { 0 },
    };
    let content = op.content([left.value, right.value]);
    let (left_role, right_role) = (left.role(op)?, right.role(op)?);
    for (role, factor) in [(&left_role, &left), (&right_role, &right)] {
        if *role == Some(Role::Summed) {
            return Err(op.coupled_at("sums over the rows", factor.value.row_axis().unwrap_or(0)));
        }
    }
    let shape = product_shape(op, &left, &right);
    let rank = shape.as_ref().map(Vec::len);
    let rows = match (left_role, right_role) {
        (None, None) => None,
        (Some(Role::Stack), Some(Role::Stack)) => return stacks(op, &left, &right, shape, content),
        (Some(_), Some(_)) => return Err(op.coupled("multiplies rows with other rows")),
        (Some(role), None) => placed(&left, &right, rank, &role, true),
        (None, Some(role)) => placed(&right, &left, rank, &role, false),
    };
    let spoilt = match (&left.value.rows, &right.value.rows) {
        (Some(_), None) => rows.as_ref().and_then(|rows| varies(op, right.value, rank, rows)),
        (None, Some(_)) => rows.as_ref().and_then(|rows| varies(op, left.value, rank, rows)),
        _ => None,
    };
    let content = spoilt.map_or(content.clone(), |spoilt| worse(content, spoilt));
    if rows.is_none() && (left.value.rows.is_some() || right.value.rows.is_some()) {
        return Err(op.unknown("multiplies values whose number of axes only a run knows"));
    }
    Ok(one(Value::of(shape, rows, content)))
}

/// The row axis of the product where one factor has rows.
fn placed(factor: &Factor<'_>, other: &Factor<'_>, rank: Option<usize>, role: &Role, is_left: bool) -> Option<RowAxis> {
    let rows = factor.value.rows.as_ref()?;
    let (own, other, rank) = (factor.value.rank()?, other.value.rank()?, rank?);
    let axis = match role {
        Role::Summed => None,
        // A vector leaves the axes before its own as they are.
        Role::Stack if other == 1 => Some(rows.axis),
        Role::Stack => (rows.axis + rank).checked_sub(own),
        Role::Kept if is_left && other > 1 => rank.checked_sub(2),
        Role::Kept => rank.checked_sub(1),
    };
    Some(rows.at(axis?))
}

/// The shape of the product; `None` where a number of axes is not known, or a factor is a vector.
fn product_shape(op: &Op<'_>, left: &Factor<'_>, right: &Factor<'_>) -> Option<Vec<Size>> {
    let (one, two) = (left.value.shape.as_deref()?, right.value.shape.as_deref()?);
    if one.len() < 2 || two.len() < 2 {
        return vector_shape(one, two);
    }
    let stack = |shape: &[Size]| Value::shared(Some(shape[..shape.len() - 2].to_vec()));
    let stacked = broadcast(op, &[&stack(one), &stack(two)]);
    let kept = |shape: &[Size], factor: &Factor<'_>| shape[shape.len() - 1 - factor.kept].clone();
    let mut shape = stacked.shape.as_deref()?.to_vec();
    shape.extend([kept(one, left), kept(two, right)]);
    Some(shape)
}

fn vector_shape(one: &[Size], two: &[Size]) -> Option<Vec<Size>> {
    match (one.len(), two.len()) {
        (1, 1) => Some(Vec::new()),
        (2.., 1) => Some(one[..one.len() - 1].to_vec()),
        (1, 2..) => Some([&two[..two.len() - 2], &two[two.len() - 1..]].concat()),
        _ => None,
    }
}

fn stacks(op: &Op<'_>, left: &Factor<'_>, right: &Factor<'_>, shape: Option<Vec<Size>>, content: Content) -> Ruled {
    // The axes before the last two are broadcast.
    let stack = |value: &Value| {
        let shape = value.shape.as_deref().unwrap_or_default();
        Value::of(
            Some(shape[..shape.len() - 2].to_vec()),
            value.rows.clone(),
            value.content.clone(),
        )
    };
    let stacked = broadcast(op, &[&stack(left.value), &stack(right.value)]);
    if stacked.content.is_spoilt() {
        return Err(stacked.content);
    }
    Ok(one(Value::of(shape, stacked.rows, content)))
}

/// Says so if the factor without rows has another matrix for each place among the rows.
fn varies(op: &Op<'_>, value: &Value, rank: Option<usize>, rows: &RowAxis) -> Option<Content> {
    let (shape, rank) = (value.shape.as_deref(), rank?);
    let Some(shape) = shape else {
        return Some(op.unknown("multiplies rows with a value whose number of axes only a run knows"));
    };
    if rows.axis + 2 >= rank || shape.len() < 3 {
        return None;
    }
    let size = shape.get((rows.axis + shape.len()).checked_sub(rank)?)?;
    match size.to_constant() {
        Some(1) => None,
        Some(size) => Some(op.coupled_at(&format!("lays {size} fixed matrices upon the rows"), rows.axis)),
        None => Some(op.unknown("lays a value without rows along the rows")),
    }
}

/// # Source
/// Gemm: `alpha·A'·B' + beta·C`, all of two axes, C broadcast.
fn gemm(op: &Op<'_>) -> Ruled {
    let product = product(op, 0, 1, &[])?;
    let Some(bias) = op.input(2) else { return Ok(product) };
    let matrix = &product[0];
    if let (None, Some(rows)) = (&matrix.shape, &matrix.rows) {
        return Ok(one(Value::of(None, Some(rows.clone()), matrix.content.clone())));
    }
    // Only C is broadcast: a row alone may lie upon one of A, and more cannot.
    if bias.rows.is_some() && matrix.rows.is_none() {
        return Err(op.unknown("adds rows to a product that no row reaches"));
    }
    let sum = broadcast(op, &[matrix, bias]);
    Ok(one(Value {
        shape: matrix.shape.clone(),
        ..sum
    }))
}

/// # Source
/// ONNX Runtime, `com.microsoft.QGemm`: A, a_scale, a_zero_point, B, b_scale, b_zero_point, C, y_scale, y_zero_point.
fn q_gemm(op: &Op<'_>) -> Ruled {
    op.shared(6, "a scale or weights")?;
    product(op, 0, 3, &[1, 2, 4, 5, 7, 8])
}

/// Weights that are packed: the last axis of the first input is summed over.
fn packed(op: &Op<'_>) -> Ruled {
    for index in 1..op.inputs.len() {
        op.shared(index, "a scale or weights")?;
    }
    let value = op.required(0)?;
    let Some(shape) = value.shape.as_deref() else {
        return Err(op.unknown("multiplies values whose number of axes only a run knows"));
    };
    if value.row_axis().is_some_and(|axis| axis + 1 == shape.len()) {
        return Err(op.coupled_at("sums over the rows", shape.len() - 1));
    }
    let mut shape = shape.to_vec();
    if let Some(last) = shape.last_mut() {
        *last = op
            .attribute("N")
            .map_or_else(|| op.free(), |columns| Size::constant(columns.i()));
    }
    Ok(one(Value::of(Some(shape), value.rows.clone(), op.content([value]))))
}

/// # Source
/// ONNX Runtime, `com.microsoft.DynamicQuantizeMatMul`: A is quantised with one scale for the whole of it.
fn dynamic(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    match (&value.content, value.row_axis()) {
        (Content::Coupled(_) | Content::Unknown(_), _) => Err(value.content.clone()),
        (_, Some(axis)) => Err(op.coupled_at("takes its scale from all rows together", axis)),
        (_, None) => product(op, 0, 1, &[2, 3, 4]),
    }
}

/// # Source
/// Einsum: each letter is an axis; those that the result does not name are summed over.
fn einsum(op: &Op<'_>) -> Ruled {
    let equation: String = op.text("equation").unwrap_or_default().split_whitespace().collect();
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left.to_owned(), right.to_owned()),
        None => {
            // The letters that stand once, in alphabetical order.
            let letters = |letter: &char| letter.is_alphabetic() && equation.matches(*letter).count() == 1;
            let mut once: Vec<char> = equation.chars().filter(letters).collect();
            once.sort_unstable();
            (equation.clone(), once.into_iter().collect())
        }
    };
    if equation.contains('.') {
        return Err(op.unknown("has an equation with an ellipsis"));
    }
    let terms: Vec<Vec<char>> = left.split(',').map(|term| term.chars().collect()).collect();
    let values: Vec<&Value> = op.all().collect();
    if terms.len() != values.len() {
        return Err(op.unknown("has an equation for another number of inputs"));
    }
    let shape = right
        .chars()
        .map(|letter| letter_size(op, letter, &terms, &values))
        .collect();
    let mut rows: Option<(char, &RowAxis)> = None;
    for (term, value) in terms.iter().zip(&values) {
        let Some(own) = &value.rows else { continue };
        let letter = *term
            .get(own.axis)
            .ok_or_else(|| op.unknown("has an equation of fewer axes"))?;
        match rows {
            None => rows = Some((letter, own)),
            Some((before, axis)) if before == letter && axis.before == own.before && axis.after == own.after => {}
            Some(_) => return Err(op.coupled("multiplies rows with other rows")),
        }
    }
    let content = op.content(values.iter().copied());
    let Some((letter, own)) = rows else {
        return Ok(one(Value::of(Some(shape), None, content)));
    };
    let fixed = terms.iter().zip(&values).any(|(term, value)| {
        let axis = term.iter().position(|other| *other == letter);
        value.rows.is_none() && axis.is_some_and(|axis| !value.size(axis).is_some_and(|size| size.is(1)))
            || term.iter().filter(|other| **other == letter).count() > 1
    });
    if fixed {
        return Err(op.unknown("lays a value without rows along the rows"));
    }
    match right.chars().position(|other| other == letter) {
        Some(axis) => Ok(one(Value::of(Some(shape), Some(own.at(axis)), content))),
        None => Err(op.coupled_at("sums over the rows", own.axis)),
    }
}

fn letter_size(op: &Op<'_>, letter: char, terms: &[Vec<char>], values: &[&Value]) -> Size {
    let mut sizes = terms.iter().zip(values).filter_map(|(term, value)| {
        let axis = term.iter().position(|other| *other == letter)?;
        value.size(axis).filter(|size| !size.is(1)).cloned()
    });
    sizes.next().unwrap_or_else(|| op.free())
}

/// Determinants and inverses of the matrices in the last two axes.
fn square(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let Some(shape) = value.shape.as_deref() else {
        return Err(op.unknown("works on matrices along axes that cannot be told"));
    };
    let stack = shape.len().saturating_sub(2);
    if let Some(axis) = value.row_axis().filter(|axis| *axis >= stack) {
        return Err(op.coupled_at("works on matrices of several rows", axis));
    }
    let shape = if op.kind() == "Det" {
        shape[..stack].to_vec()
    } else {
        shape.to_vec()
    };
    Ok(one(Value::of(Some(shape), value.rows.clone(), op.content([value]))))
}
