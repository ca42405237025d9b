//! Short ways to make graphs of ONNX's own types.

use inferq::model::onnx::tensor_shape_proto::{Dimension, dimension};
use inferq::model::onnx::{TensorShapeProto, TypeProto, ValueInfoProto, type_proto};

/// A tensor with a free first axis and others of these sizes.
pub fn rows_of(name: &str, element: i32, sizes: &[i64]) -> ValueInfoProto {
    let rows = Dimension {
        value: Some(dimension::Value::DimParam("N".to_owned())),
        ..Dimension::default()
    };
    let fixed = sizes.iter().map(|size| Dimension {
        value: Some(dimension::Value::DimValue(*size)),
        ..Dimension::default()
    });
    let shape = TensorShapeProto {
        dim: std::iter::once(rows).chain(fixed).collect(),
    };
    tensor(name, element, Some(shape))
}

/// A tensor of any shape.
pub fn any_shape(name: &str, element: i32) -> ValueInfoProto {
    tensor(name, element, None)
}

fn tensor(name: &str, element: i32, shape: Option<TensorShapeProto>) -> ValueInfoProto {
    let kind = type_proto::Tensor {
        elem_type: Some(element),
        shape,
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(kind)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}
