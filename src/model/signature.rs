//! What a model takes and gives, as read from its ONNX graph.

use std::fmt;

use crate::wire::tensor::Datatype;

/// Inputs and outputs of a model, in the order of the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    pub inputs: Vec<TensorSpec>,
    /// Tensor outputs only: sequences and maps have no form in the Open Inference Protocol.
    pub outputs: Vec<TensorSpec>,
}

/// Name, datatype and shape of one input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub datatype: Datatype,
    pub shape: Vec<Dim>,
}

/// One axis of a shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    Fixed(usize),
    /// Any size; the name is the graph's own, such as `batch`, and may be empty.
    Dynamic(String),
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.name, self.datatype, Dims(&self.shape))
    }
}

/// Shows a shape as `[batch,1000]`; an axis without a name is `?`.
pub struct Dims<'a>(pub &'a [Dim]);

impl fmt::Display for Dims<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (axis, dim) in self.0.iter().enumerate() {
            if axis > 0 {
                f.write_str(",")?;
            }
            match dim {
                Dim::Fixed(size) => write!(f, "{size}")?,
                Dim::Dynamic(name) if name.is_empty() => f.write_str("?")?,
                Dim::Dynamic(name) => f.write_str(name)?,
            }
        }
        f.write_str("]")
    }
}
