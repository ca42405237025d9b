//! Branches and loops: bodies that run once for all rows, or once for each.
//!
//! # Source
//! ONNX: If, Loop, Scan (version 9 and later).

use super::op::{Op, Ruled};
use super::size::Size;
use super::value::{Content, RowAxis, Value, absolute};
use super::walk::{Frame, Scope, Walk};
use crate::model::onnx::GraphProto;

impl<'a> Walk<'a> {
    pub(super) fn branch(&self, op: &Op<'a>, scope: &Scope<'_, 'a>, frame: &Frame<'a>) -> Ruled {
        let condition = op.required(0)?;
        let graphs = [op.graph("else_branch")?, op.graph("then_branch")?];
        let run = |graph: &'a GraphProto| self.body(op, graph, Vec::new(), scope, frame);
        match &condition.content {
            Content::Shared => {}
            Content::Count => return Err(op.coupled("chooses a branch by the number of rows")),
            Content::Own | Content::Place | Content::Led => {
                return Err(op.coupled("chooses one branch for all rows by their values"));
            }
            spoilt @ (Content::Coupled(_) | Content::Unknown(_)) => return Err(spoilt.clone()),
        }
        if let Some(chosen) = condition.constant() {
            return Ok(run(graphs[usize::from(chosen != 0)]));
        }
        let [otherwise, then] = graphs.map(run);
        Ok(then
            .iter()
            .zip(&otherwise)
            .map(|(one, other)| either(op, one, other, &mut Vec::new()))
            .collect())
    }

    pub(super) fn repeat(&self, op: &Op<'a>, scope: &Scope<'_, 'a>, frame: &Frame<'a>) -> Ruled {
        let graph = op.graph("body")?;
        for index in [0, 1] {
            limit(op, op.input(index))?;
        }
        let initial: Vec<Value> = op
            .inputs
            .iter()
            .skip(2)
            .map(|value| value.clone().unwrap_or_else(|| Value::shared(None)))
            .collect();
        let count = initial.len();
        let scalar = || Value::shared(Some(Vec::new()));
        let (states, last) = self.until_stable(op, initial, |states| {
            let inputs = [scalar(), scalar()].into_iter().chain(states.iter().cloned()).collect();
            let mut outputs = self.body(op, graph, inputs, scope, frame);
            let go_on = if outputs.is_empty() {
                scalar()
            } else {
                outputs.remove(0)
            };
            limit(op, Some(&go_on))?;
            Ok(outputs)
        })?;
        let stacked = last
            .iter()
            .skip(count)
            .map(|value| stacked(op, value, 0, op.free(), None));
        Ok(states.into_iter().chain(stacked).collect())
    }

    pub(super) fn scan(&self, op: &Op<'a>, scope: &Scope<'_, 'a>, frame: &Frame<'a>) -> Ruled {
        if op.opset < 9 {
            return Err(op.unknown("is of a version that is not known"));
        }
        let graph = op.graph("body")?;
        let scanned = usize::try_from(op.int("num_scan_inputs", 0)).unwrap_or(0);
        let count = op
            .inputs
            .len()
            .checked_sub(scanned)
            .ok_or_else(|| op.unknown("scans more inputs than it has"))?;
        let inputs: Vec<Value> = op.all().cloned().collect();
        if inputs.len() != op.inputs.len() {
            return Err(op.unknown("lacks an input"));
        }
        let (initial, scanned) = inputs.split_at(count);
        let axes = op.ints("scan_input_axes").unwrap_or_default();
        let axis = |at: usize, value: &Value| value.axis(axes.get(at).copied().unwrap_or(0));
        let axes: Option<Vec<usize>> = scanned.iter().enumerate().map(|(at, value)| axis(at, value)).collect();
        let axes = axes.ok_or_else(|| op.unknown("scans along axes that cannot be told"))?;
        let output_axes = op.ints("scan_output_axes").unwrap_or_default();
        let is_over_rows = scanned
            .iter()
            .zip(&axes)
            .any(|(value, axis)| value.row_axis() == Some(*axis));
        if is_over_rows {
            self.check_rows_scanned(op, initial, scanned, &axes)?;
        }
        let slices: Vec<Value> = scanned
            .iter()
            .zip(&axes)
            .map(|(value, axis)| sliced(op, value, *axis))
            .collect();
        let seen = self.symbols.count();
        let (states, last) = self.until_stable(op, initial.to_vec(), |states| {
            let inputs = states.iter().chain(&slices).cloned().collect();
            Ok(self.body(op, graph, inputs, scope, frame))
        })?;
        let steps = scanned
            .iter()
            .zip(&axes)
            .find_map(|(value, axis)| value.size(*axis).cloned());
        let steps = steps.unwrap_or_else(|| op.free());
        let stacked = last.iter().skip(count).enumerate().map(|(at, value)| {
            let axis = output_axes.get(at).copied().unwrap_or(0);
            let rows = is_over_rows.then_some(());
            // All turns must give one shape, and in a turn of one row a size that is new there may be that row's.
            let is_fixed = |shape: &[Size]| shape.iter().all(|size| size.is_made_of_first(seen));
            if is_over_rows && value.content == Content::Shared && !value.shape.as_deref().is_some_and(is_fixed) {
                return Value::spoilt(op.unknown("gives each row a shape that may be its own"));
            }
            match value.rank().map(|rank| absolute(axis, rank + 1)) {
                Some(Some(axis)) => stacked(op, value, axis, steps.clone(), rows),
                None if axis == 0 => stacked(op, value, 0, steps.clone(), rows),
                _ => Value::spoilt(op.unknown("stacks values along an axis that cannot be told")),
            }
        });
        Ok(states.into_iter().chain(stacked).collect())
    }

    /// A body that runs once for each row keeps them apart if it carries nothing from one to the next.
    fn check_rows_scanned(
        &self,
        op: &Op<'a>,
        states: &[Value],
        scanned: &[Value],
        axes: &[usize],
    ) -> Result<(), Content> {
        let turned = |name: &str| {
            op.ints(name)
                .is_some_and(|directions| directions.iter().any(|direction| *direction != 0))
        };
        if let Some(spoilt) = scanned
            .iter()
            .map(|value| &value.content)
            .find(|content| content.is_spoilt())
        {
            return Err(spoilt.clone());
        }
        if !states.is_empty() {
            return Err(op.coupled_at("carries a state from row to row", axes.first().copied().unwrap_or(0)));
        }
        if turned("scan_input_directions") || turned("scan_output_directions") {
            return Err(op.unknown("turns the order of the rows"));
        }
        let along = |(value, axis): (&Value, &usize)| {
            value.content == Content::Own && value.rows == Some(RowAxis::plain(*axis))
        };
        match scanned.iter().zip(axes).all(along) {
            true => Ok(()),
            false => Err(op.unknown("scans rows beside something that is not laid out alike")),
        }
    }

    /// Runs a body until what it carries on is known whatever the number of turns; returns that, and all outputs of the last turn.
    fn until_stable(
        &self,
        op: &Op<'a>,
        initial: Vec<Value>,
        run: impl Fn(&[Value]) -> Result<Vec<Value>, Content>,
    ) -> Result<(Vec<Value>, Vec<Value>), Content> {
        let mut states = initial;
        let mut open = Vec::new();
        for _ in 0..TURNS_MAX {
            let outputs = run(&states)?;
            let joined = states.iter().zip(&outputs);
            let joined: Vec<Value> = joined
                .map(|(before, after)| either(op, before, after, &mut open))
                .collect();
            if joined.len() == states.len() && joined.iter().zip(&states).all(|(one, other)| is_alike(one, other)) {
                return Ok((joined, outputs));
            }
            states = joined;
        }
        Err(op.unknown("carries on values that change from turn to turn"))
    }
}

/// How often a body runs must not follow from the rows.
fn limit(op: &Op<'_>, value: Option<&Value>) -> Result<(), Content> {
    match value.map(|value| &value.content) {
        None | Some(Content::Shared) => Ok(()),
        Some(Content::Count | Content::Place | Content::Led) => Err(op.unknown("runs as often as there are rows")),
        Some(Content::Own) => Err(op.coupled("runs on for all rows by their values")),
        Some(spoilt @ (Content::Coupled(_) | Content::Unknown(_))) => Err(spoilt.clone()),
    }
}

/// One of two values, of which only a run knows which. Sizes that differ become new ones in `open`, which may change further.
fn either(op: &Op<'_>, one: &Value, other: &Value, open: &mut Vec<Size>) -> Value {
    let content = op.content([one, other]);
    if content.is_spoilt() {
        return Value::spoilt(content);
    }
    if one.rows != other.rows {
        return Value::spoilt(op.unknown("gives rows along one axis or another"));
    }
    let shape = one
        .shape
        .as_deref()
        .zip(other.shape.as_deref())
        .filter(|(one, other)| one.len() == other.len());
    let sizes = shape.map(|(one, other)| {
        one.iter()
            .zip(other)
            .map(|(one, other)| same_or_open(op, one, other, open))
            .collect()
    });
    let elements = one.elements.clone().filter(|_| one.elements == other.elements);
    let floats = one.floats.clone().filter(|_| one.floats == other.floats);
    Value {
        elements,
        floats,
        ..Value::of(sizes, one.rows.clone(), content)
    }
}

fn same_or_open(op: &Op<'_>, one: &Size, other: &Size, open: &mut Vec<Size>) -> Size {
    if one == other || open.contains(one) {
        return one.clone();
    }
    let fresh = op.size_or_fresh(None, &[one, other]);
    open.push(fresh.clone());
    fresh
}

fn is_alike(one: &Value, other: &Value) -> bool {
    let same_content = one.content == other.content && one.floats == other.floats;
    same_content && one.rows == other.rows && one.shape == other.shape && one.elements == other.elements
}

/// What a body sees of a value in one turn of a scan along `axis`; of rows, one row, which all that it computes depends on alone.
fn sliced(op: &Op<'_>, value: &Value, axis: usize) -> Value {
    let mut shape = value.shape.as_deref().map(<[Size]>::to_vec);
    if let Some(shape) = shape.as_mut().filter(|shape| axis < shape.len()) {
        shape.remove(axis);
    }
    match &value.rows {
        Some(rows) if rows.axis == axis => Value::shared(shape),
        Some(rows) => Value::of(
            shape,
            Some(rows.at(rows.axis - usize::from(axis < rows.axis))),
            op.content([value]),
        ),
        None => Value::of(shape, None, value.content.clone()),
    }
}

/// The values of all turns behind each other along a new axis; with `rows`, one turn is one row.
fn stacked(op: &Op<'_>, value: &Value, axis: usize, steps: Size, rows: Option<()>) -> Value {
    let shape = value.shape.as_deref().map(|shape| {
        let mut shape = shape.to_vec();
        shape.insert(axis.min(shape.len()), steps);
        shape
    });
    match (rows, &value.content) {
        (None, _) => {
            let rows = value
                .rows
                .as_ref()
                .map(|rows| rows.at(rows.axis + usize::from(axis <= rows.axis)));
            Value::of(shape, rows, value.content.clone())
        }
        (Some(()), Content::Shared) => Value::of(shape, Some(RowAxis::plain(axis)), Content::Own),
        (Some(()), content) if content.is_spoilt() => Value::of(shape, None, content.clone()),
        (Some(()), _) => Value::of(shape, None, op.coupled("takes other rows into the turn of a row")),
    }
}

/// Two turns tell in most cases.
const TURNS_MAX: usize = 8;
