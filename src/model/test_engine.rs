//! An engine of plain arithmetic, for tests: a signature and a closure instead of an ONNX graph.

use crate::model::signature::{Dim, Signature, TensorSpec};
use crate::wire::tensor::Datatype;
use crate::worker::infer::{Engine, EngineError, Input, Output};

/// An input or output of one run: its shape and its data, joined.
#[derive(Debug, Clone)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Array {
    pub fn f32(shape: &[usize], values: impl IntoIterator<Item = f32>) -> Self {
        Self {
            shape: shape.to_vec(),
            data: f32_bytes(values),
        }
    }

    pub fn to_f32(&self) -> Vec<f32> {
        self.data
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect()
    }

    /// The values of each row.
    pub fn rows(&self) -> Vec<Vec<f32>> {
        let values = self.to_f32();
        let columns = values.len() / self.shape[0];
        values.chunks(columns.max(1)).map(<[f32]>::to_vec).collect()
    }
}

pub fn f32_bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

type Rule = Box<dyn FnMut(&[Array]) -> Result<Vec<Array>, EngineError> + Send>;

pub struct TestEngine {
    signature: Signature,
    rule: Rule,
    pub runs: usize,
}

impl TestEngine {
    pub fn new(
        inputs: Vec<TensorSpec>,
        outputs: Vec<TensorSpec>,
        rule: impl FnMut(&[Array]) -> Result<Vec<Array>, EngineError> + Send + 'static,
    ) -> Self {
        Self {
            signature: Signature { inputs, outputs },
            rule: Box::new(rule),
            runs: 0,
        }
    }

    /// `x FP32 [batch,3]` to `y FP32 [batch,2]`, row by row.
    pub fn by_row(rule: impl Fn(&[f32]) -> [f32; 2] + Send + 'static) -> Self {
        let inputs = vec![spec("x", Datatype::Fp32, &["batch", "3"])];
        let outputs = vec![spec("y", Datatype::Fp32, &["batch", "2"])];
        Self::new(inputs, outputs, move |inputs| {
            let rows = inputs[0].shape[0];
            let values = inputs[0].rows().iter().flat_map(|row| rule(row)).collect::<Vec<_>>();
            Ok(vec![Array::f32(&[rows, 2], values)])
        })
    }

    /// The sum and the first value of each row.
    pub fn sums() -> Self {
        Self::by_row(|row| [row.iter().sum(), row[0]])
    }
}

impl Engine for TestEngine {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<Output>, EngineError> {
        self.runs += 1;
        let inputs: Vec<_> = inputs
            .iter()
            .map(|input| Array {
                shape: input.shape.clone(),
                data: input.parts.concat(),
            })
            .collect();
        let outputs = (self.rule)(&inputs)?;
        Ok(outputs
            .into_iter()
            .map(|output| Output::new(output.shape, output.data))
            .collect())
    }
}

/// Dimensions that are numbers are fixed, all others dynamic.
pub fn spec(name: &str, datatype: Datatype, shape: &[&str]) -> TensorSpec {
    let dim = |dim: &&str| dim.parse().map_or_else(|_| Dim::Dynamic((*dim).to_owned()), Dim::Fixed);
    TensorSpec {
        name: name.to_owned(),
        datatype,
        shape: shape.iter().map(dim).collect(),
    }
}
