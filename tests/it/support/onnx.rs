//! Small ONNX models, written as a test needs them.

use inferq::model::onnx::tensor_proto::DataType;
use inferq::model::onnx::tensor_shape_proto::{Dimension, dimension};
use inferq::model::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};
use prost::Message as _;

/// A graph of FLOAT tensors.
#[derive(Default)]
pub struct Onnx(GraphProto);

impl Onnx {
    /// An input or output; an axis that is no number is free, and without axes at all none is declared.
    fn info(name: &str, shape: Option<&[&str]>) -> ValueInfoProto {
        let dim = |axis: &&str| Dimension {
            value: Some(match axis.parse() {
                Ok(size) => dimension::Value::DimValue(size),
                Err(_) => dimension::Value::DimParam((*axis).to_owned()),
            }),
            ..Dimension::default()
        };
        let tensor = type_proto::Tensor {
            elem_type: Some(DataType::Float as i32),
            shape: shape.map(|axes| TensorShapeProto {
                dim: axes.iter().map(dim).collect(),
            }),
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

    pub fn input(mut self, name: &str, shape: &[&str]) -> Self {
        self.0.input.push(Self::info(name, Some(shape)));
        self
    }

    pub fn unshaped_input(mut self, name: &str) -> Self {
        self.0.input.push(Self::info(name, None));
        self
    }

    /// An input with a value of its own.
    pub fn default_input(mut self, name: &str, values: &[f32]) -> Self {
        self = self.input(name, &[&values.len().to_string()]);
        self.0.initializer.push(TensorProto {
            name: Some(name.to_owned()),
            data_type: Some(DataType::Float as i32),
            dims: vec![i64::try_from(values.len()).expect("few")],
            float_data: values.to_vec(),
            ..TensorProto::default()
        });
        self
    }

    pub fn truth(mut self, name: &str) -> Self {
        self.0.initializer.push(TensorProto {
            name: Some(name.to_owned()),
            data_type: Some(DataType::Bool as i32),
            int32_data: vec![1],
            ..TensorProto::default()
        });
        self
    }

    /// A node; an attribute is an integer.
    pub fn node(mut self, kind: &str, inputs: &[&str], output: &str) -> Self {
        self.0.node.push(NodeProto {
            name: Some(format!("the_{}", kind.to_lowercase())),
            op_type: Some(kind.to_owned()),
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![output.to_owned()],
            attribute: Vec::<AttributeProto>::new(),
            ..NodeProto::default()
        });
        self
    }

    pub fn output(mut self, name: &str, shape: &[&str]) -> Self {
        self.0.output.push(Self::info(name, Some(shape)));
        self
    }

    /// The bytes of the file.
    pub fn file(mut self) -> Vec<u8> {
        self.0.name = Some("test".to_owned());
        ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto {
                domain: Some(String::new()),
                version: Some(17),
            }],
            graph: Some(self.0),
            ..ModelProto::default()
        }
        .encode_to_vec()
    }
}
