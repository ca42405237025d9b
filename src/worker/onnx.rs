//! ONNX Runtime behind the [`Engine`] trait; the only file that names `ort`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::memory::Allocator;
use ort::session::builder::{GraphOptimizationLevel, PrepackedWeights, SessionBuilder};
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{DynTensor, DynValue, Outlet, Shape, Tensor, TensorElementType, ValueType};

use super::infer::{Engine, EngineError, Input, Output};
use super::watch::Stop;
use crate::model::signature::{Dim, Signature, TensorSpec};
use crate::wire::tensor::{Datatype, bytes_elements};

/// The loaded library and its process-wide environment.
#[derive(Clone)]
pub struct Runtime {
    environment: Environment,
    library: PathBuf,
}

/// Why ONNX Runtime or a model in it could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "ONNX Runtime's shared library was found neither in ORT_DYLIB_PATH nor at {looked_at}; \
         run `make setup`, or set ORT_DYLIB_PATH to a libonnxruntime.so of version 1.17 or newer"
    )]
    LibraryMissing { looked_at: PathBuf },
    #[error(
        "ONNX Runtime could not be loaded from {path}: {reason}; \
         set ORT_DYLIB_PATH to a libonnxruntime.so of version 1.17 or newer"
    )]
    Library { path: PathBuf, reason: String },
    #[error(
        "{TELEMETRY_OFF} is not 1, so ONNX Runtime might report to its makers; set it before the process starts threads"
    )]
    Telemetry,
    #[error("{path} is not a model that ONNX Runtime can load: {reason}")]
    Model { path: PathBuf, reason: String },
    #[error(
        "{path}: input `{input}` is a {kind}, only tensors of BOOL, integer, float and string elements can be served"
    )]
    Input { path: PathBuf, input: String, kind: String },
    #[error("{path} has no input or no tensor output, so there is nothing to ask it")]
    NothingToServe { path: PathBuf },
}

/// The variable that keeps ONNX Runtime 1.29 and later from creating its telemetry collector.
///
/// # Source
/// microsoft/onnxruntime pull request 27379; turning telemetry off through the API comes after the first event.
pub const TELEMETRY_OFF: &str = "ORT_DISABLE_TELEMETRY";

impl Runtime {
    /// Loads the library named by `ORT_DYLIB_PATH`, else `lib/libonnxruntime.so` beside the executable.
    ///
    /// The library knows one environment a process, so later calls return the first one's.
    /// # Errors
    /// The library is missing, of another machine or too old, or telemetry has not been ruled out.
    pub fn load() -> Result<Self, LoadError> {
        static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);
        // Held while loading: a second thread must wait, as a second environment would be refused.
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*loaded {
            return Ok(runtime.clone());
        }
        if variable(TELEMETRY_OFF).is_none_or(|value| value != "1") {
            return Err(LoadError::Telemetry);
        }
        let library = find_library()?;
        let fault = |reason: String| LoadError::Library {
            path: library.clone(),
            reason,
        };
        let environment = ort::init_from(&library)
            .map_err(|error| fault(error.to_string()))?
            .with_name("inferq")
            .with_telemetry(false)
            .build()
            .map_err(|error| fault(error.to_string()))?;
        Ok(loaded.insert(Self { environment, library }).clone())
    }

    /// Where the library came from.
    pub fn library(&self) -> &Path {
        &self.library
    }
}

/// Weights packed once and used by every session of a model.
pub struct SharedWeights(PrepackedWeights);

impl SharedWeights {
    /// Needs a [`Runtime`], since the container is the library's.
    pub fn new(_: &Runtime) -> Self {
        Self(PrepackedWeights::new())
    }
}

/// One session. It is used by one thread, because `Session::run` blocks and takes `&mut self`.
pub struct OnnxEngine {
    session: Session,
    signature: Signature,
    elements: Vec<TensorElementType>,
    unserved: Vec<String>,
    allocator: Allocator,
    terminator: Arc<Terminator>,
}

/// Ends the runs that were started with its options.
struct Terminator {
    options: RunOptions,
    used: AtomicBool,
}

impl Terminator {
    fn new() -> ort::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            options: RunOptions::new()?,
            used: AtomicBool::new(false),
        }))
    }
}

impl Stop for Terminator {
    fn stop(&self) {
        self.used.store(true, Ordering::Release);
        // Fails never: it sets a flag.
        let _ = self.options.terminate();
    }
}

impl OnnxEngine {
    /// Loads `path` for the CPU with one intra-op thread.
    ///
    /// Memory pattern is off since the number of rows changes from run to run, and the pool of one thread has
    /// nobody to spin for.
    /// # Errors
    /// The file is missing, cut or not a model, or an input is no tensor that can be sent.
    pub fn load(runtime: &Runtime, path: &Path, weights: &SharedWeights) -> Result<Self, LoadError> {
        let fault = |reason: String| LoadError::Model {
            path: path.to_owned(),
            reason,
        };
        let session = builder(runtime, weights)
            .and_then(|mut builder| builder.commit_from_file(path))
            .map_err(|error| fault(one_line(error.message())))?;
        let inputs = session
            .inputs()
            .iter()
            .map(|outlet| {
                spec(outlet).ok_or_else(|| LoadError::Input {
                    path: path.to_owned(),
                    input: outlet.name().to_owned(),
                    kind: outlet.dtype().to_string(),
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let outputs: Vec<_> = session.outputs().iter().filter_map(spec).collect();
        let unserved = session
            .outputs()
            .iter()
            .filter(|outlet| spec(outlet).is_none())
            .map(|outlet| format!("{} ({})", outlet.name(), outlet.dtype()))
            .collect();
        if inputs.is_empty() || outputs.is_empty() {
            return Err(LoadError::NothingToServe { path: path.to_owned() });
        }
        let terminator = Terminator::new().map_err(|error| fault(one_line(error.message())))?;
        Ok(Self {
            terminator,
            elements: inputs.iter().map(|input| element_type(input.datatype)).collect(),
            signature: Signature { inputs, outputs },
            unserved,
            allocator: Allocator::default(),
            session,
        })
    }

    /// Outputs that have no form in the Open Inference Protocol (sequences, maps), with their types.
    pub fn unserved(&self) -> &[String] {
        &self.unserved
    }
}

impl Engine for OnnxEngine {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<Output>, EngineError> {
        let values = inputs
            .iter()
            .zip(&self.elements)
            .map(|(input, element)| value(&self.allocator, *element, input).map(SessionInputValue::Owned))
            .collect::<ort::Result<Vec<_>>>()
            .map_err(|error| engine_error(&error))?;
        let mut outputs = self
            .session
            .run_with_options(values.as_slice(), &self.terminator.options)
            .map_err(|error| engine_error(&error))?;
        self.signature
            .outputs
            .iter()
            .map(|spec| {
                let value = outputs
                    .remove(&spec.name)
                    .ok_or_else(|| EngineError::Run(format!("output `{}` was not computed", spec.name)))?;
                output(spec.datatype, value)
            })
            .collect()
    }

    fn stopper(&mut self) -> Option<Arc<dyn Stop>> {
        // Whatever is run with options that were used would end at once.
        if self.terminator.used.load(Ordering::Acquire)
            && let Ok(fresh) = Terminator::new()
        {
            self.terminator = fresh;
        }
        Some(self.terminator.clone())
    }
}

fn builder(runtime: &Runtime, weights: &SharedWeights) -> ort::Result<SessionBuilder> {
    Ok(Session::builder(&runtime.environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(1)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_memory_pattern(false)?
        .with_prepacked_weights(&weights.0)?)
}

/// Copies the parts of one input into a tensor of the runtime: the one copy on the way in.
fn value(allocator: &Allocator, element: TensorElementType, input: &Input<'_>) -> ort::Result<DynValue> {
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
        // SAFETY: the tensor was just allocated on the CPU with `room` bytes, nothing else refers to them, and
        // `bytes == room` is the sum of what is copied.
        let target = unsafe { std::slice::from_raw_parts_mut(target, room) };
        let mut rest = target;
        for part in &input.parts {
            let (here, after) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = after;
        }
    }
    Ok(tensor.into_dyn())
}

fn strings(input: &Input<'_>) -> ort::Result<DynValue> {
    let mut texts = Vec::with_capacity(input.shape.iter().product());
    for part in &input.parts {
        for element in bytes_elements(part) {
            texts.push(std::str::from_utf8(element).map_err(ort::Error::wrap)?.to_owned());
        }
    }
    Ok(Tensor::from_string_array((input.shape.as_slice(), texts.as_slice()))?.into_dyn())
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
    if !tensor.memory_info().is_cpu_accessible() {
        return Err(EngineError::Device(
            "an output was left in the device's memory".to_owned(),
        ));
    }
    Ok(Output::new(shape, RuntimeBytes(tensor)))
}

/// An output where ONNX Runtime left it.
struct RuntimeBytes(DynTensor);

impl AsRef<[u8]> for RuntimeBytes {
    fn as_ref(&self) -> &[u8] {
        let bytes = self.0.size().unwrap_or(0);
        if bytes == 0 {
            return &[];
        }
        // SAFETY: a non-empty tensor in CPU memory (checked where this is built) of `bytes` bytes, which nobody
        // writes while `self` is borrowed.
        #[expect(unsafe_code, reason = "the crate's safe ways are typed by element")]
        unsafe {
            std::slice::from_raw_parts(self.0.data_ptr().cast(), bytes)
        }
    }
}

fn spec(outlet: &Outlet) -> Option<TensorSpec> {
    let ValueType::Tensor {
        ty,
        shape,
        dimension_symbols,
    } = outlet.dtype()
    else {
        return None;
    };
    let dim = |axis: usize, size: i64| match usize::try_from(size) {
        Ok(size) => Dim::Fixed(size),
        Err(_) => Dim::Dynamic(dimension_symbols.get(axis).cloned().unwrap_or_default()),
    };
    Some(TensorSpec {
        name: outlet.name().to_owned(),
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

fn element_type(datatype: Datatype) -> TensorElementType {
    ELEMENTS
        .iter()
        .find(|(_, ours)| *ours == datatype)
        .map_or(TensorElementType::Undefined, |(element, _)| *element)
}

/// Sorts the runtime's failures by whose fault they are; it has error codes for neither a lack of memory nor a lost device.
fn engine_error(error: &ort::Error) -> EngineError {
    let message = one_line(error.message());
    if ["bad_alloc", "bad allocation", "Failed to allocate", "out of memory"]
        .iter()
        .any(|text| message.contains(text))
    {
        EngineError::Memory(message)
    } else if ["CUDA failure", "CUDA error", "CUBLAS failure", "CUDNN failure"]
        .iter()
        .any(|text| message.contains(text))
    {
        // Nearly all of CUDA's errors stay with the process: every later call fails in the same way.
        EngineError::Device(message)
    } else {
        EngineError::Run(message)
    }
}

/// ONNX Runtime's messages run over several lines; a sentence for a reply or a log has one.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn find_library() -> Result<PathBuf, LoadError> {
    if let Some(path) = variable("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        // `ort` would take a relative path as relative to the executable; a shell user means the current folder.
        let path = std::path::absolute(&path).unwrap_or(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(LoadError::Library {
                path,
                reason: "there is no such file".to_owned(),
            })
        };
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(|folder| folder.join("lib/libonnxruntime.so")))
        .unwrap_or_else(|| PathBuf::from("lib/libonnxruntime.so"));
    if beside.is_file() {
        Ok(beside)
    } else {
        Err(LoadError::LibraryMissing { looked_at: beside })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "ONNX Runtime's own variables, which are not inferq's configuration"
)]
fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}
