//! Small ONNX models, written byte by byte: so that a test shows the very inputs that its model takes.

use std::path::{Path, PathBuf};

pub const FLOAT: u64 = 1;
pub const INT64: u64 = 7;
pub const STRING: u64 = 8;
pub const BOOL: u64 = 9;

/// An axis of this size, or of any where it is a name.
pub enum Axis {
    Any,
    Size(u64),
}

/// A model of nodes, each an operator with its inputs and its output.
pub fn model(nodes: &[(&str, &[&str], &str)], inputs: &[Vec<u8>], outputs: &[Vec<u8>]) -> Vec<u8> {
    let nodes = nodes.iter().map(|(operator, inputs, output)| {
        let inputs: Vec<u8> = inputs.iter().flat_map(|input| field(1, input.as_bytes())).collect();
        field(
            1,
            &[inputs, field(2, output.as_bytes()), field(4, operator.as_bytes())].concat(),
        )
    });
    let graph = [
        nodes.flatten().collect(),
        field(2, b"g"),
        inputs.iter().flat_map(|input| field(11, input)).collect(),
        outputs.iter().flat_map(|output| field(12, output)).collect(),
    ];
    let opset = number(2, 13);
    [number(1, 7), field(7, &graph.concat()), field(8, &opset)].concat()
}

/// Declares an input or an output.
pub fn value(name: &str, datatype: u64, axes: &[Axis]) -> Vec<u8> {
    let axis = |axis: &Axis| match axis {
        Axis::Any => field(1, &field(2, b"n")),
        Axis::Size(size) => field(1, &number(1, *size)),
    };
    let axes: Vec<u8> = axes.iter().flat_map(axis).collect();
    let tensor = [number(1, datatype), field(2, &axes)].concat();
    [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
}

/// Puts version 1 of a model into a repository of its own below `folder`.
pub fn repository(folder: &Path, name: &str, model: &[u8]) -> PathBuf {
    let repository = folder.join(format!("models-of-{name}"));
    let version = repository.join(name).join("1");
    std::fs::create_dir_all(&version).expect("a folder");
    std::fs::write(version.join("model.onnx"), model).expect("a file");
    repository
}

fn field(number: u64, content: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}
