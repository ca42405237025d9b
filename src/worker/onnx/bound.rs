//! A run on a GPU: rows go into pinned memory, from there to the device and back, without a detour through pageable memory.
//!
//! Pinned memory comes from the arena that ONNX Runtime keeps for it with each session: the same bytes from run to run,
//! more of them only when a run is bigger than all before. Outputs whose shapes are known beforehand are given their
//! place there before the run.
//!
//! Nothing here waits for the whole device, which would stop the other engine's work: binding an input returns when it has
//! been copied, and a run returns when its own stream is done.

use std::collections::HashMap;

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, RunOptions, Session};
use ort::value::{DynTensor, Shape, TensorElementType};
use tracing::debug;

use super::failure::engine_error;
use super::tensor::{element_type, outputs, value};
use crate::model::signature::{Dim, Signature, TensorSpec};
use crate::wire::tensor::Datatype;
use crate::worker::infer::{EngineError, Input, Output};

/// The memory of one session on the host, and what is bound to its inputs and outputs.
pub struct Bound {
    binding: IoBinding,
    pinned: Allocator,
    pageable: MemoryInfo<'static>,
    outputs: Vec<Forecast>,
}

impl Bound {
    /// For a session on the CUDA device of this number.
    ///
    /// # Errors
    /// The session has no pinned memory, so it is not on that device.
    pub fn on_cuda(session: &Session, signature: &Signature, index: u16) -> ort::Result<Self> {
        let memory = MemoryInfo::new(
            AllocationDevice::CUDA_PINNED,
            i32::from(index),
            AllocatorType::Device,
            MemoryType::CPUOutput,
        )?;
        Self::new(session, signature, memory)
    }

    fn new(session: &Session, signature: &Signature, memory: MemoryInfo<'_>) -> ort::Result<Self> {
        Ok(Self {
            binding: session.create_binding()?,
            pinned: Allocator::new(session, memory)?,
            pageable: MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput)?,
            outputs: signature.outputs.iter().map(|_| Forecast::Untried).collect(),
        })
    }

    /// As [`crate::worker::infer::Engine::run`].
    pub fn run(
        &mut self,
        session: &mut Session,
        signature: &Signature,
        options: &RunOptions,
        inputs: &[Input<'_>],
    ) -> Result<Vec<Output>, EngineError> {
        let expected = shapes(signature, inputs);
        let mut ran = self.run_once(session, signature, options, inputs, &expected);
        if let Err(EngineError::Run(reason)) = &ran
            && OTHER_SHAPE.iter().any(|text| reason.contains(text))
        {
            debug!("the shapes of outputs are not foreseen any more: {reason}");
            self.outputs.fill(Forecast::Wrong);
            ran = self.run_once(session, signature, options, inputs, &expected);
        }
        // What the last run needed is free for the other engines' runs.
        self.binding.clear();
        let outputs = ran?;
        for ((forecast, expected), output) in self.outputs.iter_mut().zip(&expected).zip(&outputs) {
            forecast.learn(expected.as_deref(), &output.shape);
        }
        Ok(outputs)
    }

    fn run_once(
        &mut self,
        session: &mut Session,
        signature: &Signature,
        options: &RunOptions,
        inputs: &[Input<'_>],
        expected: &[Option<Vec<usize>>],
    ) -> Result<Vec<Output>, EngineError> {
        // A run that failed has left its own.
        self.binding.clear();
        self.bind(signature, inputs, expected)
            .map_err(|error| engine_error(&error))?;
        let values = session.run_binding_with_options(&self.binding, options);
        outputs(signature, values.map_err(|error| engine_error(&error))?)
    }

    fn bind(
        &mut self,
        signature: &Signature,
        inputs: &[Input<'_>],
        expected: &[Option<Vec<usize>>],
    ) -> ort::Result<()> {
        for (input, spec) in inputs.iter().zip(&signature.inputs) {
            let value = value(&self.pinned, element_type(spec.datatype), input)?;
            self.binding.bind_input(&spec.name, &value)?;
        }
        let outputs = signature.outputs.iter().zip(expected).zip(&self.outputs);
        for ((spec, expected), forecast) in outputs {
            match (forecast, expected) {
                (Forecast::Right, Some(shape)) => {
                    let place = place(&self.pinned, element_type(spec.datatype), shape)?;
                    self.binding.bind_output(&spec.name, place)?;
                }
                _ => self.binding.bind_output_to_device(&spec.name, &self.pageable)?,
            }
        }
        Ok(())
    }
}

fn place(pinned: &Allocator, element: TensorElementType, shape: &[usize]) -> ort::Result<DynTensor> {
    DynTensor::new(pinned, element, Shape::new(shape.iter().map(|&size| size as i64)))
}

/// Whether an output has had the shape that the signature let expect. Axes of one name are of one size only as far as
/// the exporter of the model knew, so that is seen before it is relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forecast {
    Untried,
    Right,
    Wrong,
}

impl Forecast {
    fn learn(&mut self, expected: Option<&[usize]>, actual: &[usize]) {
        *self = match (*self, expected) {
            (Self::Wrong, _) | (_, None) => Self::Wrong,
            (Self::Untried | Self::Right, Some(expected)) if expected == actual => Self::Right,
            (Self::Untried | Self::Right, Some(_)) => Self::Wrong,
        };
    }
}

/// The shapes that the outputs will have by the names of their axes; `None` where those do not tell.
fn shapes(signature: &Signature, inputs: &[Input<'_>]) -> Vec<Option<Vec<usize>>> {
    let mut sizes = HashMap::new();
    for (spec, input) in signature.inputs.iter().zip(inputs) {
        for (dim, size) in spec.shape.iter().zip(&input.shape) {
            if let Dim::Dynamic(name) = dim
                && !name.is_empty()
            {
                sizes.insert(name.as_str(), *size);
            }
        }
    }
    signature.outputs.iter().map(|spec| shape(spec, &sizes)).collect()
}

fn shape(spec: &TensorSpec, sizes: &HashMap<&str, usize>) -> Option<Vec<usize>> {
    // Texts have no fixed size, and an output without axes may be one whose shape the graph does not state.
    if spec.datatype == Datatype::Bytes || spec.shape.is_empty() {
        return None;
    }
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => Some(*size),
        Dim::Dynamic(name) => sizes.get(name.as_str()).copied(),
    };
    spec.shape.iter().map(size).collect()
}

/// What ONNX Runtime says of an output that does not fit the place it was given.
///
/// # Source
/// `ExecutionFrame` in `core/framework/execution_frame.cc`.
const OTHER_SHAPE: [&str; 2] = ["shape verification failed", "pre-allocated output OrtValues"];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::library::Runtime;
    use super::super::{SharedWeights, TELEMETRY_OFF, builder, signature};
    use super::*;
    use crate::model::test_engine::{f32_bytes, spec};
    use crate::worker::hardware::Hardware;

    fn input<'a>(shape: &[usize], data: &'a [u8]) -> Input<'a> {
        Input {
            shape: shape.to_vec(),
            parts: data.chunks(data.len().div_ceil(2).max(1)).collect(),
        }
    }

    /// A session of a model in `tests/models/repository`, bound to memory of the CPU: all but the device is as on a GPU.
    fn session(model: &str) -> (Session, Signature, Bound) {
        let path = format!("tests/models/repository/{model}/1/model.onnx");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        // SAFETY: all tests that come here write the same value, and nothing reads the environment meanwhile but ONNX
        // Runtime's library, which is loaded behind a lock.
        #[expect(unsafe_code, reason = "as `main` does, before ONNX Runtime is loaded")]
        unsafe {
            std::env::set_var(TELEMETRY_OFF, "1");
        }
        let runtime = Runtime::load().expect("ONNX Runtime is there; `make setup` puts it in place");
        let weights = SharedWeights::new(&runtime);
        let session = builder(&runtime, &weights, &Hardware::CPU, None)
            .and_then(|mut builder| builder.commit_from_file(&path))
            .unwrap();
        let (signature, _) = signature(&session, &path).unwrap();
        let bound = Bound::new(&session, &signature, MemoryInfo::default()).unwrap();
        (session, signature, bound)
    }

    fn floats(output: &Output) -> Vec<f32> {
        let (values, _) = output.bytes().as_chunks();
        values.iter().copied().map(f32::from_le_bytes).collect()
    }

    #[test]
    fn bound_runs_of_any_size_give_each_row_its_own_answer() {
        let (mut session, signature, mut bound) = session("affine");
        let options = RunOptions::new().unwrap();
        let mut kept = Vec::new();

        for rows in [1, 3, 64, 2, 64] {
            let values: Vec<f32> = (0..rows * 4).map(|value| (value + rows) as f32).collect();
            let data = f32_bytes(values.iter().copied());
            let outputs = bound.run(&mut session, &signature, &options, &[input(&[rows, 4], &data)]);
            kept.push((values, outputs.unwrap()));
        }

        assert_eq!(bound.outputs, [Forecast::Right]);
        // Looked at last: an output must not change under the runs after its own.
        for (values, outputs) in kept {
            assert_eq!(outputs[0].shape, [values.len() / 4, 4]);
            let expected: Vec<f32> = values.iter().map(|x| 2.0 * x + 1.0).collect();
            assert_eq!(floats(&outputs[0]), expected);
        }
    }

    #[test]
    fn a_place_of_the_wrong_shape_costs_a_run_and_no_answer() {
        let (mut session, signature, mut bound) = session("affine");
        let options = RunOptions::new().unwrap();
        let data = f32_bytes([1.0; 8]);
        let inputs = [input(&[2, 4], &data)];
        let wrong = [Some(vec![3, 4])];
        bound.outputs.fill(Forecast::Right);

        let refused = bound.run_once(&mut session, &signature, &options, &inputs, &wrong);
        let after = bound.run(&mut session, &signature, &options, &inputs).unwrap();

        let Err(EngineError::Run(reason)) = refused else {
            panic!("the place was taken");
        };
        assert!(OTHER_SHAPE.iter().any(|text| reason.contains(text)), "{reason}");
        assert_eq!(floats(&after[0]), [3.0; 8]);
    }

    #[test]
    fn texts_are_bound_as_well() {
        let (mut session, signature, mut bound) = session("identity-bytes");
        let options = RunOptions::new().unwrap();
        let data = [3, 0, 0, 0, b'o', b'n', b'e', 0, 0, 0, 0, 1, 0, 0, 0, b'x'];
        let shape: Vec<usize> = std::iter::once(1)
            .chain(signature.inputs[0].shape.iter().skip(1).map(|_| 3))
            .collect();
        let inputs = [Input {
            shape,
            parts: vec![&data],
        }];

        let outputs = bound.run(&mut session, &signature, &options, &inputs).unwrap();

        assert_eq!(outputs[0].bytes(), data);
        assert_eq!(bound.outputs, [Forecast::Wrong]);
    }

    #[test]
    fn the_shape_of_an_output_follows_from_the_names_of_axes_or_is_not_foreseen() {
        let signature = Signature {
            inputs: vec![
                spec("x", Datatype::Fp32, &["batch", "length", "3"]),
                spec("y", Datatype::Fp32, &["batch", "?"]),
            ],
            outputs: vec![
                spec("a", Datatype::Fp32, &["batch", "7"]),
                spec("b", Datatype::Fp32, &["length", "batch"]),
                spec("c", Datatype::Fp32, &["batch", "unknown"]),
                spec("d", Datatype::Bytes, &["batch"]),
                spec("e", Datatype::Fp32, &[]),
            ],
        };
        let inputs = [input(&[2, 5, 3], &[]), input(&[2, 9], &[])];

        let expected = [Some(vec![2, 7]), Some(vec![5, 2]), None, None, None];
        assert_eq!(shapes(&signature, &inputs), expected);
    }

    #[test]
    fn a_forecast_that_failed_once_is_not_relied_on_again() {
        let mut forecast = Forecast::Untried;

        let after: Vec<_> = [[2, 3], [4, 3], [5, 1], [2, 3]]
            .iter()
            .map(|actual| {
                forecast.learn(Some(&[actual[0], 3]), actual);
                forecast
            })
            .collect();

        assert_eq!(
            after,
            [Forecast::Right, Forecast::Right, Forecast::Wrong, Forecast::Wrong]
        );
    }
}
