//! Nodes of a graph that belong to training, or draw random numbers: the same row gets another answer each time, or one that
//! depends on the batch. Such a model is served, and named.

use std::collections::{BTreeMap, HashMap};

use super::onnx::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};

/// Names what is unsteady in a model, one sentence for each operator, in its graphs and functions.
pub fn name_nodes(model: &ModelProto) -> Vec<String> {
    let mut found = Found {
        functions: model
            .functions
            .iter()
            .map(|of| ((of.domain(), of.name()), of))
            .collect(),
        nodes_left: NODES_MAX,
        named: BTreeMap::new(),
    };
    if let Some(graph) = &model.graph {
        found.graph(graph, &Scope::default(), &model.opset_import, 0);
    }
    found
        .named
        .into_iter()
        .map(|((kind, does), nodes)| sentence(kind, does, &nodes))
        .collect()
}

fn sentence(kind: &str, does: &str, nodes: &[String]) -> String {
    let (first, others) = (&nodes[0], nodes.len() - 1);
    match others {
        0 => format!("{first} ({kind}) {does}"),
        _ => format!("{first} and {others} more ({kind}) {does}"),
    }
}

struct Found<'a> {
    functions: HashMap<(&'a str, &'a str), &'a FunctionProto>,
    nodes_left: usize,
    named: BTreeMap<(&'a str, &'static str), Vec<String>>,
}

/// What is known where a node stands: constants that may be switches, and attributes of the call of a function.
#[derive(Clone, Default)]
struct Scope<'a> {
    /// `None`: the value is not known.
    switches: HashMap<&'a str, Option<bool>>,
    call: HashMap<&'a str, &'a AttributeProto>,
}

impl<'a> Scope<'a> {
    fn attribute(&self, node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
        let attribute = node.attribute.iter().find(|attribute| attribute.name() == name)?;
        match attribute.ref_attr_name() {
            "" => Some(attribute),
            outer => self.call.get(outer).copied(),
        }
    }

    fn integer(&self, node: &'a NodeProto, name: &str) -> i64 {
        self.attribute(node, name).map_or(0, AttributeProto::i)
    }

    /// Whether a switch that is an input is on; `None` where only a run knows. One that is left out is off.
    fn switch(&self, node: &NodeProto, index: usize) -> Option<bool> {
        match node.input.get(index).map(String::as_str) {
            None | Some("") => Some(false),
            Some(name) => self.switches.get(name).copied().flatten(),
        }
    }
}

impl<'a> Found<'a> {
    fn graph(&mut self, graph: &'a GraphProto, outer: &Scope<'a>, opsets: &'a [OperatorSetIdProto], depth: usize) {
        let mut scope = outer.clone();
        for tensor in &graph.initializer {
            scope.switches.insert(tensor.name(), truth(tensor));
        }
        self.nodes(&graph.node, scope, opsets, depth);
    }

    fn nodes(&mut self, nodes: &'a [NodeProto], mut scope: Scope<'a>, opsets: &'a [OperatorSetIdProto], depth: usize) {
        for node in nodes {
            if self.nodes_left == 0 {
                return;
            }
            self.nodes_left -= 1;
            if let (Some(value), Some(output)) = (switch_of(node, &scope), node.output.first()) {
                scope.switches.insert(output, value);
            }
            if let Some(does) = does(node, &scope, opset(opsets, node.domain())) {
                let name = match (node.name(), node.output.first()) {
                    ("", Some(output)) => format!("the node of `{output}`"),
                    (name, _) => format!("node `{name}`"),
                };
                self.named.entry((node.op_type(), does)).or_default().push(name);
            }
            if depth < DEPTH_MAX {
                self.inside(node, &scope, opsets, depth);
            }
        }
    }

    /// Looks into the graphs of a node's attributes, and into the function that it calls.
    fn inside(&mut self, node: &'a NodeProto, scope: &Scope<'a>, opsets: &'a [OperatorSetIdProto], depth: usize) {
        for attribute in &node.attribute {
            for graph in attribute.g.iter().chain(&attribute.graphs) {
                self.graph(graph, scope, opsets, depth + 1);
            }
        }
        let Some(function) = self.functions.get(&(node.domain(), node.op_type())).copied() else {
            return;
        };
        let defaults = function
            .attribute_proto
            .iter()
            .map(|attribute| (attribute.name(), attribute));
        let given = node.attribute.iter().filter_map(|attribute| {
            let name = attribute.name();
            Some((name, scope.attribute(node, name)?))
        });
        let taken = function.input.iter().zip(&node.input);
        let switches = taken.map(|(formal, name)| {
            let value = if name.is_empty() {
                Some(false)
            } else {
                scope.switches.get(name.as_str()).copied().flatten()
            };
            (formal.as_str(), value)
        });
        // An input that is left out at the end is off.
        let left_out = function
            .input
            .iter()
            .skip(node.input.len())
            .map(|formal| (formal.as_str(), Some(false)));
        let inner = Scope {
            switches: switches.chain(left_out).collect(),
            call: defaults.chain(given).collect(),
        };
        self.nodes(&function.node, inner, &function.opset_import, depth + 1);
    }
}

/// What is unsteady in a node.
fn does(node: &NodeProto, scope: &Scope<'_>, opset: i64) -> Option<&'static str> {
    const TRAINING: &str = "is in training mode: it leaves values out at random";
    const MAY_TRAIN: &str = "is in training mode or not as another value says: it may leave values out at random";
    const BATCH: &str = "is in training mode: it goes by the mean of the rows that run together";
    const RANDOM: &str = "draws random numbers: the same row gets another answer each time";
    let by_switch = |index| match scope.switch(node, index) {
        Some(true) => Some(TRAINING),
        Some(false) => None,
        None => Some(MAY_TRAIN),
    };
    match (node.domain(), node.op_type()) {
        ("" | "ai.onnx", "Dropout") if opset >= 12 => by_switch(2),
        ("" | "ai.onnx", "Dropout") => (opset < 7 && scope.integer(node, "is_test") == 0).then_some(TRAINING),
        ("com.microsoft", "BiasDropout" | "BitmaskBiasDropout") => by_switch(4),
        ("com.microsoft", "BitmaskDropout") => by_switch(2),
        ("" | "ai.onnx", "BatchNormalization") => {
            let is_training = match opset {
                14.. => scope.integer(node, "training_mode") != 0,
                // With the running mean and variance as outputs.
                7..14 => node.output.iter().skip(1).any(|output| !output.is_empty()),
                _ => scope.integer(node, "is_test") == 0,
            };
            is_training.then_some(BATCH)
        }
        (
            "" | "ai.onnx",
            "RandomNormal" | "RandomUniform" | "RandomNormalLike" | "RandomUniformLike" | "Multinomial" | "Bernoulli",
        )
        | ("com.microsoft", "Sampling") => Some(RANDOM),
        ("ai.onnx.preview.training" | "ai.onnx.training", _) => Some("is a step of training"),
        _ => None,
    }
}

fn opset(opsets: &[OperatorSetIdProto], domain: &str) -> i64 {
    let plain = |domain: &str| {
        if domain == "ai.onnx" {
            String::new()
        } else {
            domain.to_owned()
        }
    };
    let found = opsets.iter().find(|opset| plain(opset.domain()) == plain(domain));
    found.map_or(1, OperatorSetIdProto::version)
}

/// The switch that a node gives, if it gives a value that may be one; inside, `None` where only a run knows it.
fn switch_of<'a>(node: &'a NodeProto, scope: &Scope<'a>) -> Option<Option<bool>> {
    match node.op_type() {
        "Constant" => {
            let tensor = scope
                .attribute(node, "value")
                .and_then(|attribute| attribute.t.as_ref());
            let integer = scope.attribute(node, "value_int").map(|attribute| attribute.i() != 0);
            Some(tensor.map_or(integer, truth))
        }
        "Identity" | "Cast" | "Squeeze" | "Unsqueeze" | "Reshape" => {
            let name = node.input.first()?;
            Some(scope.switches.get(name.as_str()).copied().flatten())
        }
        "Not" => {
            let name = node.input.first()?;
            let value = scope.switches.get(name.as_str()).copied().flatten();
            Some(value.map(|value| !value))
        }
        _ => None,
    }
}

/// The only element of a tensor of truth values or integers.
fn truth(tensor: &TensorProto) -> Option<bool> {
    match tensor.integers()?[..] {
        [value] => Some(value != 0),
        _ => None,
    }
}

/// Bodies of functions are looked at for every call.
const NODES_MAX: usize = 2_000_000;
const DEPTH_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::rows::testing::{graph, model_of};

    fn named(text: &str, opset: i64) -> Vec<String> {
        name_nodes(&model_of(graph(text, &[]), opset))
    }

    #[test]
    fn dropout_is_named_where_its_switch_is_on() {
        let with = |switch: &str| named(&format!("input x [n,3]\n{switch}\ny = Dropout(x, , t)\noutput y"), 17);

        let on = with("scalar t 1");

        assert_eq!(
            on,
            ["node `y_Dropout` (Dropout) is in training mode: it leaves values out at random"]
        );
        assert_eq!(with("scalar t 0"), [""; 0]);
        assert_eq!(with("scalar u 0\nt = Not(u)"), on);
        assert!(with("input t [1]")[0].contains("as another value says"));
        assert_eq!(named("input x [n,3]\ny = Dropout(x)\noutput y", 17), [""; 0]);
        assert_eq!(named("input x [n,3]\ny = Dropout(x)\noutput y", 10), [""; 0]);
        assert_eq!(named("input x [n,3]\ny = Dropout(x)\noutput y", 6).len(), 1);
    }

    #[test]
    fn batch_normalization_is_named_where_it_goes_by_the_batch() {
        let of = |node: &str, opset| named(&format!("input x [n,3]\n{node}\noutput y"), opset).len();

        assert_eq!(of("y = BatchNormalization(x, s, b, m, v)", 15), 0);
        assert_eq!(of("y = BatchNormalization(x, s, b, m, v) training_mode:1", 15), 1);
        assert_eq!(of("y, a, c = BatchNormalization(x, s, b, m, v)", 9), 1);
        assert_eq!(of("y = BatchNormalization(x, s, b, m, v)", 9), 0);
        assert_eq!(of("y = BatchNormalization(x, s, b, m, v) is_test:1", 6), 0);
    }

    #[test]
    fn nodes_that_draw_are_counted_by_operator() {
        let text = "input x [n,3]\na = RandomNormalLike(x)\nb = RandomNormalLike(x)\nc = Bernoulli(x)\noutput c";

        let named = named(text, 17);

        let random = "draws random numbers: the same row gets another answer each time";
        assert_eq!(
            named,
            [
                format!("node `c_Bernoulli` (Bernoulli) {random}"),
                format!("node `a_RandomNormalLike` and 1 more (RandomNormalLike) {random}"),
            ]
        );
    }

    #[test]
    fn bodies_of_nodes_are_looked_into() {
        let body = graph("y = Dropout(x, , t)\noutput y", &[]);
        let text = "input x [n,3]\nscalar t 1\nz = If(c) then:{body}\noutput z";

        let named = name_nodes(&model_of(graph(text, &[("body", body)]), 17));

        assert!(
            named[0].starts_with("node `y_Dropout` (Dropout) is in training mode"),
            "{named:?}"
        );
    }

    #[test]
    fn functions_are_looked_into_with_what_they_are_called_with() {
        let function = |text: &str, inputs: &[&str]| FunctionProto {
            name: Some("Drop".to_owned()),
            domain: Some("mine".to_owned()),
            input: inputs.iter().map(ToString::to_string).collect(),
            node: graph(text, &[]).node,
            opset_import: model_of(GraphProto::default(), 17).opset_import,
            ..FunctionProto::default()
        };
        let with = |switch: i64| {
            let text = format!("input x [n,3]\nscalar t {switch}\ny = mine::Drop(x, t)\noutput y");
            let mut model = model_of(graph(&text, &[]), 17);
            model.functions = vec![function("y = Dropout(x, , train)", &["x", "train"])];
            name_nodes(&model).len()
        };
        let mut uncalled = model_of(graph("input x [n,3]\ny = Relu(x)\noutput y", &[]), 17);
        uncalled.functions = vec![function("y = Bernoulli(x)", &["x"])];

        assert_eq!((with(1), with(0)), (1, 0));
        assert_eq!(name_nodes(&uncalled), [""; 0]);
    }
}
