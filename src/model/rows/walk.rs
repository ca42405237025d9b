//! Follows the rows through a graph, node by node, and says what has become of them in its outputs.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use super::op::{Attributes, Call, Op, Ruled, Symbols};
use super::size::{Origin, Size};
use super::value::{Content, RowAxis, Value};
use super::{RowsProof, RowsVerdict, rules};
use crate::model::onnx::tensor_proto::DataType;
use crate::model::onnx::tensor_shape_proto::dimension;
use crate::model::onnx::type_proto;
use crate::model::onnx::{
    FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TypeProto, ValueInfoProto,
};

/// Says how the rows of a model relate.
pub(super) fn prove(model: &ModelProto) -> RowsProof {
    let graph = model.graph.as_ref();
    let Some(graph) = graph else {
        return RowsProof {
            verdict: unknown("it has no graph"),
            outputs: Vec::new(),
        };
    };
    let walk = Walk {
        functions: model
            .functions
            .iter()
            .map(|function| (key_of(function), function))
            .collect(),
        symbols: Symbols::default(),
        nodes_left: Cell::new(NODES_MAX),
    };
    let mut scope = Scope::default();
    walk.take_inputs(graph, &mut scope);
    walk.graph(graph, &mut scope, &Frame::of(&model.opset_import));
    judge(graph, &scope)
}

type FunctionKey<'a> = (&'a str, &'a str, &'a str);

fn key_of(function: &FunctionProto) -> FunctionKey<'_> {
    (function.domain(), function.name(), function.overload())
}

pub(super) struct Walk<'a> {
    functions: HashMap<FunctionKey<'a>, &'a FunctionProto>,
    pub symbols: Symbols,
    /// Nodes that may still be looked at: bodies are looked at again and again.
    nodes_left: Cell<usize>,
}

/// The values of a graph by their names, and those of the graphs around it.
#[derive(Default)]
pub(super) struct Scope<'s, 'a> {
    values: HashMap<&'a str, Value>,
    outer: Option<&'s Scope<'s, 'a>>,
}

impl<'s, 'a> Scope<'s, 'a> {
    pub fn within(outer: &'s Self) -> Self {
        Self {
            values: HashMap::new(),
            outer: Some(outer),
        }
    }

    pub fn set(&mut self, name: &'a str, value: Value) {
        self.values.insert(name, value);
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name).or_else(|| self.outer?.get(name))
    }
}

/// What holds for all nodes of a graph: versions of operator sets, and the call that its function was reached by.
pub(super) struct Frame<'a> {
    opsets: &'a [OperatorSetIdProto],
    call: Option<Rc<Call<'a>>>,
    depth: usize,
}

impl<'a> Frame<'a> {
    fn of(opsets: &'a [OperatorSetIdProto]) -> Self {
        Self {
            opsets,
            call: None,
            depth: 0,
        }
    }

    fn opset(&self, domain: &str) -> i64 {
        let is_it = |opset: &&OperatorSetIdProto| match (opset.domain(), domain) {
            ("" | "ai.onnx", "" | "ai.onnx") => true,
            (one, other) => one == other,
        };
        self.opsets.iter().find(is_it).map_or(1, OperatorSetIdProto::version)
    }
}

impl<'a> Walk<'a> {
    /// Puts the rows along the first axis of every input.
    fn take_inputs(&self, graph: &'a GraphProto, scope: &mut Scope<'_, 'a>) {
        let is_constant = |name: &str| {
            let sparse = graph
                .sparse_initializer
                .iter()
                .filter_map(|sparse| sparse.values.as_ref());
            graph
                .initializer
                .iter()
                .chain(sparse)
                .any(|tensor| tensor.name() == name)
        };
        let inputs: Vec<&ValueInfoProto> = graph.input.iter().filter(|input| !is_constant(input.name())).collect();
        let first = |input: &&ValueInfoProto| sizes_of(input).and_then(|sizes| sizes.first().copied());
        let has_free = inputs.iter().any(|input| first(input) == Some(None));
        for input in inputs {
            let value = match sizes_of(input) {
                // Beside inputs that hold any number of rows, one of a fixed number holds none.
                Some(sizes) if sizes.is_empty() || has_free && sizes[0].is_some() => {
                    let reason = format!("input `{}` has no axis for the rows", input.name());
                    Value::spoilt(Content::Unknown(reason.into()))
                }
                Some(sizes) => {
                    let behind = sizes.iter().skip(1);
                    let behind = behind.map(|size| size.map_or_else(|| self.symbols.free(), Size::constant));
                    let shape = std::iter::once(Size::rows()).chain(behind).collect();
                    Value::of(Some(shape), Some(RowAxis::plain(0)), Content::Own)
                }
                None => Value::of(None, Some(RowAxis::plain(0)), Content::Own),
            };
            scope.set(input.name(), value);
        }
    }

    /// Gives values to all names of a graph.
    pub fn graph(&self, graph: &'a GraphProto, scope: &mut Scope<'_, 'a>, frame: &Frame<'a>) {
        for tensor in &graph.initializer {
            scope.set(tensor.name(), rules::of_tensor(tensor));
        }
        for sparse in &graph.sparse_initializer {
            let name = sparse.values.as_ref().map_or("", |values| values.name());
            let shape = sparse.dims.iter().map(|size| Size::constant(*size)).collect();
            scope.set(name, Value::shared(Some(shape)));
        }
        for node in &graph.node {
            self.node(node, scope, frame);
        }
    }

    fn node(&self, node: &'a NodeProto, scope: &mut Scope<'_, 'a>, frame: &Frame<'a>) {
        let undefined = |name: &str| Value::spoilt(Content::Unknown(format!("`{name}` is given by no node").into()));
        let input = |name: &String| {
            let is_there = !name.is_empty();
            is_there.then(|| scope.get(name).cloned().unwrap_or_else(|| undefined(name)))
        };
        let op = Op {
            node,
            opset: frame.opset(node.domain()),
            inputs: node.input.iter().map(input).collect(),
            attributes: Attributes {
                node: &node.attribute,
                call: frame.call.clone(),
            },
            symbols: &self.symbols,
        };
        let outputs = self.outputs(&op, scope, frame);
        for (name, value) in node.output.iter().zip(outputs) {
            scope.set(name, value);
        }
    }

    /// A value for every output of a node.
    fn outputs(&self, op: &Op<'a>, scope: &Scope<'_, 'a>, frame: &Frame<'a>) -> Vec<Value> {
        let count = op.node.output.len();
        let Some(left) = self.nodes_left.get().checked_sub(1) else {
            return vec![Value::spoilt(op.unknown("is one of more nodes than are looked at")); count];
        };
        self.nodes_left.set(left);
        let function = self.functions.get(&(op.node.domain(), op.kind(), op.node.overload()));
        let (ruled, is_plain) = match (function, op.domain(), op.kind()) {
            (Some(function), ..) => (self.call(op, function, frame), false),
            (None, "", "If") => (self.branch(op, scope, frame), false),
            (None, "", "Loop") => (self.repeat(op, scope, frame), false),
            (None, "", "Scan") => (self.scan(op, scope, frame), false),
            (None, ..) => {
                let ruled = rules::apply(op);
                (ruled.unwrap_or_else(|| Err(op.unknown("is not known"))), true)
            }
        };
        let is_reached = op.all().any(|value| value.content != Content::Shared);
        let mut values = match ruled {
            Ok(values) if is_plain => {
                let values = values.into_iter().map(|value| kept(op, value));
                values.map(|value| with_places(op, value)).collect()
            }
            Ok(values) => values.into_iter().map(|value| kept(op, value)).collect(),
            // Whatever it does, it does the same for all rows.
            Err(Content::Unknown(_)) if is_plain && !is_reached && is_repeatable(op) => {
                vec![Value::shared(None); count]
            }
            Err(spoilt) => vec![Value::spoilt(worst(op, spoilt)); count],
        };
        while values.len() < count {
            let lacking = op.unknown("has more outputs than are known");
            values.push(if is_reached {
                Value::spoilt(lacking)
            } else {
                Value::shared(None)
            });
        }
        values
    }

    /// Follows the rows through the body of a function.
    fn call(&self, op: &Op<'a>, function: &'a FunctionProto, frame: &Frame<'a>) -> Ruled {
        if frame.depth >= DEPTH_MAX {
            return Err(op.unknown("calls functions that call each other without end"));
        }
        if function.node.is_empty() {
            return Err(op.unknown("is a function without a body"));
        }
        let frame = Frame {
            opsets: &function.opset_import,
            call: Some(Rc::new(Call {
                given: op.attributes.clone(),
                defaults: &function.attribute_proto,
            })),
            depth: frame.depth + 1,
        };
        // It sees nothing of the graph around it.
        let mut scope = Scope::default();
        for (name, value) in function.input.iter().zip(&op.inputs) {
            if let Some(value) = value {
                scope.set(name, value.clone());
            }
        }
        for node in &function.node {
            self.node(node, &mut scope, &frame);
        }
        Ok(function.output.iter().map(|name| given(op, &scope, name)).collect())
    }

    /// Follows the rows through a body, whose inputs are values of the node.
    pub fn body(
        &self,
        op: &Op<'a>,
        graph: &'a GraphProto,
        inputs: Vec<Value>,
        outer: &Scope<'_, 'a>,
        frame: &Frame<'a>,
    ) -> Vec<Value> {
        let mut scope = Scope::within(outer);
        for (input, value) in graph.input.iter().zip(inputs) {
            scope.set(input.name(), value);
        }
        self.graph(graph, &mut scope, frame);
        graph
            .output
            .iter()
            .map(|output| given(op, &scope, output.name()))
            .collect()
    }
}

/// A value that a body gives to the node which runs it.
fn given(op: &Op<'_>, scope: &Scope<'_, '_>, name: &str) -> Value {
    let value = scope.get(name).cloned();
    value.unwrap_or_else(|| Value::spoilt(op.unknown(&format!("gives `{name}`, which no node in it does"))))
}

/// The value as a rule gave it, but for what its shape says besides: an axis whose size follows the number of rows makes the whole
/// depend on that, and rows that have no axis are lost.
fn kept(op: &Op<'_>, value: Value) -> Value {
    let counts = |(axis, size): (usize, &Size)| value.row_axis() != Some(axis) && size.origin() == Origin::Counted;
    let follows_count = value
        .shape
        .as_deref()
        .is_some_and(|shape| shape.iter().enumerate().any(counts));
    match value.content {
        Content::Own | Content::Place | Content::Led if value.rows.is_none() => {
            Value::spoilt(op.unknown("lays rows along an axis that cannot be told"))
        }
        Content::Shared if follows_count => Value {
            content: Content::Count,
            rows: None,
            ..value
        },
        Content::Own | Content::Place | Content::Led if follows_count => Value {
            content: op.coupled("has a size that depends on how many rows there are"),
            ..value
        },
        _ => value,
    }
}

/// The value, spoilt if it came from places of rows and its elements need no longer be these: an index of any other kind
/// takes rows for others.
fn with_places(op: &Op<'_>, value: Value) -> Value {
    let is_same = match value.content {
        Content::Place => keeps_places(op),
        Content::Led => keeps_led_places(op),
        _ => true,
    };
    match is_same {
        true => value,
        false => Value {
            content: op.unknown("uses the place of a row among the others"),
            ..value
        },
    }
}

/// True of nodes that give places of rows as they take them, or make them.
fn keeps_places(op: &Op<'_>) -> bool {
    let of = |index: usize| op.input(index).map(|value| &value.content);
    match (op.domain(), op.kind()) {
        ("", "Cast") => matches!(op.int("to", 0), TO_INT32 | TO_INT64),
        ("", "Gather") => of(0) == Some(&Content::Place),
        ("", kind) => KEEP_PLACES.contains(&kind),
        _ => false,
    }
}

/// True of nodes that leave the place of a row where it is, before what else makes the index.
fn keeps_led_places(op: &Op<'_>) -> bool {
    match (op.domain(), op.kind()) {
        ("", "Cast") => keeps_places(op),
        ("", kind) => KEEP_LED_PLACES.contains(&kind),
        _ => false,
    }
}

/// What has become of the outputs of a node whose rule gave up.
fn worst(op: &Op<'_>, spoilt: Content) -> Content {
    // Of a shape alone it cannot be said that it follows the values.
    if matches!(spoilt, Content::Coupled(_)) || matches!(op.kind(), "Shape" | "Size") {
        return spoilt;
    }
    let mut contents = op.all().map(|value| &value.content);
    let coupled = contents.find(|content| matches!(content, Content::Coupled(_)));
    coupled.cloned().unwrap_or(spoilt)
}

/// True of operators that give the same again for the same inputs.
fn is_repeatable(op: &Op<'_>) -> bool {
    let at_random = op.kind().starts_with("Random") || matches!(op.kind(), "Multinomial" | "Bernoulli" | "Dropout");
    matches!(op.domain(), "" | "ai.onnx.ml") && !at_random
}

/// The sizes of an input's axes, `None` for those that a run may choose; `None` where not even their number is stated.
///
/// ONNX Runtime holds every run to what an input declares.
fn sizes_of(input: &ValueInfoProto) -> Option<Vec<Option<i64>>> {
    let Some(type_proto::Value::TensorType(tensor)) = input.r#type.as_ref().and_then(|stated| stated.value.as_ref())
    else {
        return None;
    };
    let size = |dimension: &crate::model::onnx::tensor_shape_proto::Dimension| match dimension.value {
        Some(dimension::Value::DimValue(size)) if size >= 0 => Some(size),
        _ => None,
    };
    Some(tensor.shape.as_ref()?.dim.iter().map(size).collect())
}

/// True of an output that can be served: sequences and maps cannot.
fn is_tensor(stated: Option<&TypeProto>) -> bool {
    let kind = stated.and_then(|stated| stated.value.as_ref());
    matches!(kind, None | Some(type_proto::Value::TensorType(_)))
}

/// The verdict on the outputs.
fn judge(graph: &GraphProto, scope: &Scope<'_, '_>) -> RowsProof {
    let mut outputs = Vec::new();
    let mut verdict = RowsVerdict::Independent;
    for output in graph.output.iter().filter(|output| is_tensor(output.r#type.as_ref())) {
        let name = output.name();
        let value = scope.get(name);
        let is_rows = value.is_some_and(|value| value.rows == Some(RowAxis::plain(0)));
        outputs.push((name.to_owned(), is_rows));
        let of_output = value.map_or_else(
            || unknown(&format!("output `{name}` is given by no node")),
            |value| verdict_on(name, value),
        );
        verdict = match (&verdict, &of_output) {
            (RowsVerdict::Coupled { .. }, _) | (_, RowsVerdict::Independent) => verdict,
            (RowsVerdict::Unknown { .. }, RowsVerdict::Unknown { .. }) => verdict,
            (_, _) => of_output,
        };
    }
    RowsProof { verdict, outputs }
}

fn verdict_on(name: &str, value: &Value) -> RowsVerdict {
    let coupled = |reason: &str| RowsVerdict::Coupled {
        reason: reason.to_owned(),
    };
    match (&value.content, &value.rows) {
        (Content::Own, Some(rows)) if *rows == RowAxis::plain(0) => RowsVerdict::Independent,
        (Content::Own, Some(rows)) if rows.axis == 0 => {
            unknown(&format!("output `{name}` does not have one row for each row"))
        }
        (Content::Own, Some(rows)) => unknown(&format!("output `{name}` has its rows along axis {}", rows.axis)),
        (Content::Own | Content::Led, _) => unknown(&format!("the rows of output `{name}` cannot be told")),
        (Content::Shared, _) => unknown(&format!("output `{name}` is the same for all rows")),
        (Content::Count, _) => coupled(&format!("output `{name}` depends on how many rows there are")),
        (Content::Place, _) => coupled(&format!("output `{name}` gives the place of a row among the others")),
        (Content::Coupled(reason), _) => coupled(reason),
        (Content::Unknown(reason), _) => unknown(reason),
    }
}

fn unknown(reason: &str) -> RowsVerdict {
    RowsVerdict::Unknown {
        reason: reason.to_owned(),
    }
}

const TO_INT32: i64 = DataType::Int32 as i64;
const TO_INT64: i64 = DataType::Int64 as i64;
/// Operators that move elements, and change, add or index none.
const KEEP_PLACES: &[&str] = &[
    "Expand",
    "Flatten",
    "Identity",
    "Range",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];
/// Those of them whose rules see to the last axis, and the one that lays places before other elements.
const KEEP_LED_PLACES: &[&str] = &["Concat", "Identity", "Reshape", "Transpose"];
/// Graphs of real models have a tenth of that; bodies in bodies could be looked at without end.
const NODES_MAX: usize = 1_000_000;
/// Functions must not call themselves, which nobody has checked.
const DEPTH_MAX: usize = 32;
