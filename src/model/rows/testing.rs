//! Graphs for tests, written line by line.

use crate::model::onnx::tensor_proto::DataType;
use crate::model::onnx::tensor_shape_proto::{Dimension, dimension};
use crate::model::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};

/// Reads a graph:
/// ```text
/// input x [n,3]            a tensor of FLOAT; axes that are no numbers are free, no axes at all `?`
/// weights w [3,2]          an initializer of FLOAT, all 0
/// ints shape 0 -1          an initializer of INT64 with one axis
/// scalar k 5               an initializer of INT64 without axes
/// floats scales 1 2        an initializer of FLOAT with one axis
/// y, z = Split(x) axis:1   a node; an attribute is an integer, a list with commas, or text
/// y = my.domain::Op(x, )   of another domain, and with an input left out
/// y = If(c) then:{a} else:{b}   graphs of attributes are named, and given beside the text
/// output y
/// ```
/// A node is named by its first output and its operator, such as `y_Split`.
pub(in crate::model) fn graph(text: &str, bodies: &[(&str, GraphProto)]) -> GraphProto {
    let mut graph = GraphProto::default();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (word, rest) = line.split_once(' ').unwrap();
        match word {
            "input" => graph.input.push(info(rest)),
            "output" => graph.output.extend(rest.split_whitespace().map(|name| ValueInfoProto {
                name: Some(name.to_owned()),
                ..ValueInfoProto::default()
            })),
            "weights" | "ints" | "scalar" | "floats" => graph.initializer.push(initializer(word, rest)),
            _ => graph.node.push(node(line, bodies)),
        }
    }
    graph
}

pub(super) fn model(text: &str) -> ModelProto {
    model_of(graph(text, &[]), 17)
}

pub(in crate::model) fn model_of(graph: GraphProto, opset: i64) -> ModelProto {
    let import = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version),
    };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![import("", opset), import("ai.onnx.ml", 3), import("com.microsoft", 1)],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

fn info(text: &str) -> ValueInfoProto {
    let (name, shape) = text.split_once(' ').unwrap();
    let dim = |size: &str| Dimension {
        value: Some(match size.parse() {
            Ok(size) => dimension::Value::DimValue(size),
            Err(_) => dimension::Value::DimParam(size.to_owned()),
        }),
        ..Dimension::default()
    };
    let shape = (shape != "?").then(|| TensorShapeProto {
        dim: list(shape).iter().map(|size| dim(size)).collect(),
    });
    let tensor = type_proto::Tensor {
        elem_type: Some(DataType::Float as i32),
        shape,
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

fn list(text: &str) -> Vec<&str> {
    let inner = text.trim_start_matches('[').trim_end_matches(']');
    inner
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .collect()
}

fn initializer(word: &str, text: &str) -> TensorProto {
    let (name, values) = text.split_once(' ').unwrap();
    let tensor = |data_type: DataType, dims: Vec<i64>| TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(data_type as i32),
        dims,
        ..TensorProto::default()
    };
    let words: Vec<&str> = values.split_whitespace().collect();
    let count = words.len() as i64;
    match word {
        "weights" => {
            let dims: Vec<i64> = list(values).iter().map(|size| size.parse().unwrap()).collect();
            let bytes = dims.iter().product::<i64>() as usize * 4;
            TensorProto {
                raw_data: Some(vec![0; bytes]),
                ..tensor(DataType::Float, dims)
            }
        }
        "floats" => TensorProto {
            float_data: words.iter().map(|word| word.parse().unwrap()).collect(),
            ..tensor(DataType::Float, vec![count])
        },
        word => TensorProto {
            int64_data: words.iter().map(|word| word.parse().unwrap()).collect(),
            ..tensor(DataType::Int64, if word == "scalar" { Vec::new() } else { vec![count] })
        },
    }
}

fn node(line: &str, bodies: &[(&str, GraphProto)]) -> NodeProto {
    let (outputs, call) = line.split_once(" = ").unwrap();
    let (kind, rest) = call.split_once('(').unwrap();
    let (inputs, attributes) = rest.split_once(')').unwrap();
    let (domain, kind) = kind.split_once("::").unwrap_or(("", kind));
    let names = |text: &str| -> Vec<String> { text.split(',').map(|name| name.trim().to_owned()).collect() };
    let outputs = names(outputs);
    NodeProto {
        name: Some(format!("{}_{kind}", outputs[0])),
        op_type: Some(kind.to_owned()),
        domain: Some(domain.to_owned()),
        input: if inputs.trim().is_empty() {
            Vec::new()
        } else {
            names(inputs)
        },
        output: outputs,
        attribute: attributes
            .split_whitespace()
            .map(|text| attribute(text, bodies))
            .collect(),
        ..NodeProto::default()
    }
}

fn attribute(text: &str, bodies: &[(&str, GraphProto)]) -> AttributeProto {
    let (name, value) = text.split_once(':').unwrap();
    let mut attribute = AttributeProto {
        name: Some(name.to_owned()),
        ..AttributeProto::default()
    };
    let ints: Option<Vec<i64>> = value.split(',').map(|item| item.parse().ok()).collect();
    match ints.as_deref() {
        _ if value.starts_with('{') => {
            let body = bodies.iter().find(|(body, _)| value == format!("{{{body}}}")).unwrap();
            attribute.g = Some(body.1.clone());
        }
        Some([one]) if !value.contains(',') => {
            attribute.i = Some(*one);
            attribute.ints = vec![*one];
        }
        Some(ints) => attribute.ints = ints.to_vec(),
        None => match value.strip_prefix('@') {
            // Of the call that the function is reached by.
            Some(outer) => attribute.ref_attr_name = Some(outer.to_owned()),
            None => attribute.s = Some(value.as_bytes().to_vec()),
        },
    }
    attribute
}
