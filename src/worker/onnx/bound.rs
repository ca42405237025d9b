//! A run on a GPU: rows go into pinned memory, from there to the device and back, without a detour through pageable memory.
//!
//! Pinned memory comes from the arena that ONNX Runtime keeps for it with each session: the same bytes from run to run,
//! more of them only when a run is bigger than all before. Since 1.23 ONNX Runtime calls it memory of the GPU, and uses
//! tensors in it where they are (seen with 1.28 on an H200, `benches/README.md`):
//!
//! - Inputs would be read over PCIe by the kernels, ten times slower. So they are bound as memory of the CPU, and copied.
//! - Outputs would be written over PCIe, and then fail to be copied onto themselves (`dst_data != src_data was false`;
//!   microsoft/onnxruntime issue 29713 is of the same kind). So they are bound to the kind of memory, not to tensors in it.
//!
//! Nothing here waits for the whole device, which would stop the other engine's work: a run copies, computes and copies back
//! on its own stream, and returns when that is done.

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, RunOptions, Session};

use super::failure::engine_error;
use super::tensor::{Staged, element_type, outputs, value};
use crate::model::signature::{Signature, TensorSpec};
use crate::wire::tensor::Datatype;
use crate::worker::infer::{EngineError, Input, Output};

/// The memory of one session on the host, and what is bound to its inputs and outputs.
pub struct Bound {
    /// Refers to `staged`.
    binding: IoBinding,
    staged: Vec<Staged>,
    allocator: Allocator,
    pinned: MemoryInfo<'static>,
    pageable: MemoryInfo<'static>,
}

impl Bound {
    /// For a session on the CUDA device of this number.
    ///
    /// # Errors
    /// The session has no pinned memory, so it is not on that device.
    pub fn on_cuda(session: &Session, index: u16) -> ort::Result<Self> {
        Self::new(session, AllocationDevice::CUDA_PINNED, index)
    }

    fn new(session: &Session, device: AllocationDevice, index: u16) -> ort::Result<Self> {
        let memory = |device, index| MemoryInfo::new(device, index, AllocatorType::Device, MemoryType::CPUOutput);
        Ok(Self {
            binding: session.create_binding()?,
            staged: Vec::new(),
            allocator: Allocator::new(session, memory(device.clone(), i32::from(index))?)?,
            pinned: memory(device, i32::from(index))?,
            pageable: memory(AllocationDevice::CPU, 0)?,
        })
    }

    /// As [`crate::worker::infer::Engine::run`].
    pub fn run<'i, 'a: 'i>(
        &mut self,
        session: &mut Session,
        signature: &Signature,
        options: &RunOptions,
        inputs: impl Iterator<Item = (&'i Input<'a>, &'i TensorSpec)>,
    ) -> Result<Vec<Output>, EngineError> {
        let bound = self.bind(signature, inputs);
        let ran = bound.and_then(|()| session.run_binding_with_options(&self.binding, options));
        let ran = ran
            .map_err(|error| engine_error(&error))
            .and_then(|values| outputs(signature, values));
        // What the run needed is free for the other engines' runs.
        self.binding.clear();
        self.staged.clear();
        ran
    }

    fn bind<'i, 'a: 'i>(
        &mut self,
        signature: &Signature,
        inputs: impl Iterator<Item = (&'i Input<'a>, &'i TensorSpec)>,
    ) -> ort::Result<()> {
        for (input, spec) in inputs {
            let tensor = value(&self.allocator, element_type(spec.datatype), input)?;
            if spec.datatype == Datatype::Bytes {
                self.binding.bind_input(&spec.name, &tensor)?;
            } else {
                let staged = Staged::new(tensor)?;
                self.binding.bind_input(&spec.name, staged.value())?;
                self.staged.push(staged);
            }
        }
        for spec in &signature.outputs {
            // Texts are objects of the host, which no device may copy.
            let memory = match spec.datatype {
                Datatype::Bytes => &self.pageable,
                _ => &self.pinned,
            };
            self.binding.bind_output_to_device(&spec.name, memory)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::library::Runtime;
    use super::super::{SharedWeights, TELEMETRY_OFF, builder, signature};
    use super::*;
    use crate::model::test_engine::f32_bytes;
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
        let bound = Bound::new(&session, AllocationDevice::CPU, 0).unwrap();
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

        for rows in [1, 3, 64, 0, 2, 64] {
            let values: Vec<f32> = (0..rows * 4).map(|value| (value + rows) as f32).collect();
            let data = f32_bytes(values.iter().copied());
            let outputs = bound.run(
                &mut session,
                &signature,
                &options,
                [(&input(&[rows, 4], &data), &signature.inputs[0])].into_iter(),
            );
            kept.push((values, outputs.unwrap()));
        }

        // Looked at last: an output must not change under the runs after its own.
        for (values, outputs) in kept {
            assert_eq!(outputs[0].shape, [values.len() / 4, 4]);
            let expected: Vec<f32> = values.iter().map(|x| 2.0 * x + 1.0).collect();
            assert_eq!(floats(&outputs[0]), expected);
        }
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

        let given = inputs.iter().zip(&signature.inputs);
        let outputs = bound.run(&mut session, &signature, &options, given).unwrap();

        assert_eq!(outputs[0].bytes(), data);
    }
}
