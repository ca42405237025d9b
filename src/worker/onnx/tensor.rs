//! Tensors of ONNX Runtime: filled from the rows of jobs, read as outputs, described for the signature.

use std::ptr::NonNull;

use ort::AsPointer as _;
use ort::memory::{AllocationDevice, Allocator, MemoryInfo};
use ort::session::SessionOutputs;
use ort::value::{DynTensor, DynValue, Outlet, Shape, Tensor, TensorElementType, ValueType};

use super::failure::{engine_error, one_line};
use crate::model::signature::{Dim, Signature, TensorSpec};
use crate::wire::tensor::{Datatype, bytes_elements};
use crate::worker::infer::{EngineError, Input, Output};

/// Copies the parts of one input into a tensor of the runtime: the one copy on the way in.
///
/// The allocator's memory must be reachable by the CPU, as that pinned for a GPU is.
pub fn value(allocator: &Allocator, element: TensorElementType, input: &Input<'_>) -> ort::Result<DynTensor> {
    let shape = Shape::new(input.shape.iter().map(|&size| size as i64));
    if element == TensorElementType::String {
        return strings(input);
    }
    let mut tensor = DynTensor::new(allocator, element, shape)?;
    let room = tensor.size().unwrap_or(0);
    let bytes: usize = input.parts.iter().map(|part| part.len()).sum();
    if room != bytes {
        return Err(ort::Error::new(format!("{bytes} bytes were handed over for {room}")));
    }
    if bytes > 0 {
        let target: *mut u8 = tensor.data_ptr_mut().cast();
        #[expect(
            unsafe_code,
            reason = "one copy for every element type; the crate's safe ways are typed"
        )]
        // SAFETY: the tensor was just allocated with `room` bytes that the CPU reaches, nothing else refers to them, and
        // `bytes == room` is the sum of what is copied.
        let target = unsafe { std::slice::from_raw_parts_mut(target, room) };
        let mut rest = target;
        for part in &input.parts {
            let (here, after) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = after;
        }
    }
    Ok(tensor)
}

/// A tensor in pinned memory that is called memory of the CPU.
///
/// ONNX Runtime 1.23 and later call pinned memory memory of the GPU, and let kernels read from it, over PCIe and as often as
/// they need a value. What is called memory of the CPU is copied to the device first, from pinned memory at full speed.
pub struct Staged {
    /// Does not own its bytes, so it goes first.
    value: DynValue,
    _memory: DynTensor,
}

impl Staged {
    /// # Errors
    /// ONNX Runtime makes no tensor of it.
    pub fn new(mut memory: DynTensor) -> ort::Result<Self> {
        let (info, allocator) = (MemoryInfo::default(), Allocator::default());
        let (element, shape) = (*memory.data_type(), memory.shape().clone());
        let bytes = memory.size().unwrap_or(0);
        let mut value = std::ptr::null_mut();
        #[expect(unsafe_code, reason = "the crate's way to this is typed by element")]
        // SAFETY: all pointers are those of living objects; `bytes` is the length of the data, which the CPU reaches and which
        // lives as long as the value; the status is turned into an error once.
        let value = unsafe {
            let status = (ort::api().CreateTensorWithDataAsOrtValue)(
                info.ptr(),
                memory.data_ptr_mut(),
                bytes,
                shape.as_ptr(),
                shape.len(),
                element.into(),
                &raw mut value,
            );
            ort::Error::result_from_status(status)?;
            let value = NonNull::new(value).ok_or_else(|| ort::Error::new("ONNX Runtime made no tensor"))?;
            DynValue::from_ptr(value, Some(&allocator))
        };
        Ok(Self { value, _memory: memory })
    }

    /// What can be bound or fed, no longer than `self` lives.
    pub fn value(&self) -> &DynValue {
        &self.value
    }
}

fn strings(input: &Input<'_>) -> ort::Result<DynTensor> {
    let mut texts = Vec::with_capacity(input.shape.iter().product());
    for part in &input.parts {
        for element in bytes_elements(part) {
            texts.push(std::str::from_utf8(element).map_err(ort::Error::wrap)?.to_owned());
        }
    }
    Ok(Tensor::from_string_array((input.shape.as_slice(), texts.as_slice()))?.upcast())
}

/// The outputs of a run in the order of the signature.
///
/// # Errors
/// One is missing, or in memory that the CPU cannot read.
pub fn outputs(signature: &Signature, mut values: SessionOutputs<'_>) -> Result<Vec<Output>, EngineError> {
    let computed = signature.outputs.iter().map(|spec| {
        let value = values.remove(&spec.name);
        let value = value.ok_or_else(|| EngineError::Run(format!("output `{}` was not computed", spec.name)))?;
        output(spec.datatype, value)
    });
    computed.collect()
}

fn output(datatype: Datatype, value: DynValue) -> Result<Output, EngineError> {
    let tensor: DynTensor = value
        .downcast()
        .map_err(|error| EngineError::Run(one_line(error.message())))?;
    let shape: Vec<usize> = tensor.shape().iter().map(|&size| size.max(0) as usize).collect();
    if datatype == Datatype::Bytes {
        let (_, texts) = tensor.try_extract_strings().map_err(|error| engine_error(&error))?;
        let mut bytes = Vec::new();
        for text in &texts {
            bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        return Ok(Output::new(shape, bytes));
    }
    if !is_readable(tensor.memory_info()) {
        return Err(EngineError::Device(
            "an output was left in the device's memory".to_owned(),
        ));
    }
    Ok(Output::new(shape, RuntimeBytes(tensor)))
}

/// Whether this process can read the memory. ONNX Runtime 1.23 and later call what is pinned for a GPU memory of the GPU.
fn is_readable(memory: &MemoryInfo<'_>) -> bool {
    memory.is_cpu_accessible() || memory.allocation_device() == AllocationDevice::CUDA_PINNED
}

/// An output where ONNX Runtime left it.
struct RuntimeBytes(DynTensor);

impl AsRef<[u8]> for RuntimeBytes {
    fn as_ref(&self) -> &[u8] {
        let bytes = self.0.size().unwrap_or(0);
        if bytes == 0 {
            return &[];
        }
        // SAFETY: a non-empty tensor in memory that the CPU reaches (checked where this is built) of `bytes` bytes, which nobody
        // writes while `self` is borrowed.
        #[expect(unsafe_code, reason = "the crate's safe ways are typed by element")]
        unsafe {
            std::slice::from_raw_parts(self.0.data_ptr().cast(), bytes)
        }
    }
}

pub fn spec(outlet: &Outlet) -> Option<TensorSpec> {
    spec_of(outlet.name(), outlet.dtype())
}

/// As [`spec`], of something by its name and type.
pub fn spec_of(name: &str, dtype: &ValueType) -> Option<TensorSpec> {
    let ValueType::Tensor {
        ty,
        shape,
        dimension_symbols,
    } = dtype
    else {
        return None;
    };
    let dim = |axis: usize, size: i64| match usize::try_from(size) {
        Ok(size) => Dim::Fixed(size),
        Err(_) => Dim::Dynamic(dimension_symbols.get(axis).cloned().unwrap_or_default()),
    };
    Some(TensorSpec {
        name: name.to_owned(),
        datatype: datatype(*ty)?,
        shape: shape.iter().enumerate().map(|(axis, &size)| dim(axis, size)).collect(),
    })
}

/// ONNX Runtime's element types and the protocol's names for them.
const ELEMENTS: [(TensorElementType, Datatype); 14] = [
    (TensorElementType::Bool, Datatype::Bool),
    (TensorElementType::Uint8, Datatype::Uint8),
    (TensorElementType::Uint16, Datatype::Uint16),
    (TensorElementType::Uint32, Datatype::Uint32),
    (TensorElementType::Uint64, Datatype::Uint64),
    (TensorElementType::Int8, Datatype::Int8),
    (TensorElementType::Int16, Datatype::Int16),
    (TensorElementType::Int32, Datatype::Int32),
    (TensorElementType::Int64, Datatype::Int64),
    (TensorElementType::Float16, Datatype::Fp16),
    (TensorElementType::Bfloat16, Datatype::Bf16),
    (TensorElementType::Float32, Datatype::Fp32),
    (TensorElementType::Float64, Datatype::Fp64),
    (TensorElementType::String, Datatype::Bytes),
];

fn datatype(element: TensorElementType) -> Option<Datatype> {
    ELEMENTS
        .iter()
        .find(|(ours, _)| *ours == element)
        .map(|(_, datatype)| *datatype)
}

pub fn element_type(datatype: Datatype) -> TensorElementType {
    ELEMENTS
        .iter()
        .find(|(_, ours)| *ours == datatype)
        .map_or(TensorElementType::Undefined, |(element, _)| *element)
}
