//! The engine: what runs a model, seen from the worker.

use crate::model::signature::Signature;

/// Runs one model. An engine lives on one thread and is called by nobody else.
pub trait Engine {
    fn signature(&self) -> &Signature;

    /// Runs the model once.
    ///
    /// `inputs` and the result follow the order of the signature. Blocks the thread for the whole run.
    /// # Errors
    /// `EngineError::Run` if the runtime refuses these inputs, `EngineError::Memory` if it could not allocate
    /// for them; the engine stays usable after both.
    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<Output>, EngineError>;
}

/// One input of a run. `parts`, joined, are the tensor's data as in [`crate::wire::tensor::Tensor`].
#[derive(Debug, Clone)]
pub struct Input<'a> {
    pub shape: Vec<usize>,
    pub parts: Vec<&'a [u8]>,
}

/// One output of a run: its shape, and its data wherever the runtime left them.
pub struct Output {
    pub shape: Vec<usize>,
    data: Box<dyn AsRef<[u8]> + Send>,
}

impl Output {
    pub fn new(shape: Vec<usize>, data: impl AsRef<[u8]> + Send + 'static) -> Self {
        Self {
            shape,
            data: Box::new(data),
        }
    }

    /// The data, laid out as in [`crate::wire::tensor::Tensor`].
    pub fn bytes(&self) -> &[u8] {
        (*self.data).as_ref()
    }
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the model failed on this input: {0}")]
    Run(String),
    #[error("the runtime could not allocate memory for this run: {0}")]
    Memory(String),
    #[error("the device is lost: {0}")]
    Device(String),
}
