//! ONNX Runtime behind the [`Engine`] trait; this file and its folder are the only ones that name `ort`.

mod bound;
mod failure;
mod library;
mod profile;
mod tensor;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{ArenaExtendStrategy, CUDA, ExecutionProviderDispatch};
use ort::memory::Allocator;
use ort::session::builder::{GraphOptimizationLevel, PrepackedWeights, SessionBuilder};
use ort::session::{RunOptions, Session, SessionInputValue};
use tracing::info;

use self::bound::Bound;
use self::failure::{advice, cause, engine_error, one_line};
pub use self::library::{Runtime, TELEMETRY_OFF};
pub use self::profile::Placement;
use self::profile::ProfileFolder;
pub use self::tensor::Staged;
use self::tensor::{element_type, spec, value};
use super::hardware::Hardware;
use super::infer::{Engine, EngineError, Input, Output};
use super::watch::Stop;
use crate::config::Device;
use crate::model::signature::{Signature, TensorSpec};
use crate::model::{onnx, sniff};

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
    #[error("{path} is {fault}")]
    File { path: PathBuf, fault: String },
    #[error(
        "{path}: input `{input}` is declared without a shape, so that no job could be checked against it; export the model with \
         one, in which axes may be free"
    )]
    NoRank { path: PathBuf, input: String },
    #[error("{path} has no input or no tensor output, so there is nothing to ask it")]
    NothingToServe { path: PathBuf },
    #[error("{path} cannot be loaded on {device} with the library {library}: {reason}; {advice}")]
    Device {
        path: PathBuf,
        device: Device,
        library: PathBuf,
        reason: String,
        advice: &'static str,
    },
    #[error(
        "{path} does not run on {device}: {nodes} ran on the CPU; worker.cpu_fallback = true allows that, device = \"cpu\" \
         runs the whole model there"
    )]
    OnCpu {
        path: PathBuf,
        device: Device,
        nodes: String,
    },
    #[error(
        "nothing shows that {path} runs on {device}: {reason}; mend that, or set worker.cpu_fallback = true to serve it \
         all the same"
    )]
    Unproven {
        path: PathBuf,
        device: Device,
        reason: String,
    },
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
    defaults: Vec<TensorSpec>,
    unserved: Vec<String>,
    way: Way,
    terminator: Arc<Terminator>,
    /// What is still being watched, if it could be.
    profile: Option<Result<ProfileFolder, String>>,
    has_run: bool,
    path: PathBuf,
    hardware: Hardware,
}

/// How rows reach the device and outputs come back.
enum Way {
    /// All memory is the host's.
    Host(Allocator),
    /// Through pinned memory, bound to the session.
    Pinned(Box<Bound>),
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
    /// Loads `path` with one intra-op thread.
    ///
    /// Memory pattern is off since the number of rows changes from run to run, and the pool of one thread has
    /// nobody to spin for.
    /// # Errors
    /// The file is missing, cut or not a model, an input is no tensor that can be sent, or the device cannot be used.
    pub fn load(
        runtime: &Runtime,
        path: &Path,
        weights: &SharedWeights,
        hardware: &Hardware,
    ) -> Result<Self, LoadError> {
        Self::load_with(runtime, path, weights, hardware, None)
    }

    /// As [`OnnxEngine::load`], and has its runs watched until [`OnnxEngine::placement`] says where they took place.
    ///
    /// # Errors
    /// As [`OnnxEngine::load`].
    pub fn load_watched(
        runtime: &Runtime,
        path: &Path,
        weights: &SharedWeights,
        hardware: &Hardware,
    ) -> Result<Self, LoadError> {
        let folder = ProfileFolder::new();
        let profile = folder.map_err(|error| format!("there is no folder for ONNX Runtime's profile: {error}"));
        Self::load_with(runtime, path, weights, hardware, Some(profile))
    }

    fn load_with(
        runtime: &Runtime,
        path: &Path,
        weights: &SharedWeights,
        hardware: &Hardware,
        profile: Option<Result<ProfileFolder, String>>,
    ) -> Result<Self, LoadError> {
        let fault = |error: &ort::Error| not_loaded(error, path, runtime, hardware.device);
        if let Device::Cuda(_) = hardware.device {
            runtime.preload_cuda();
        }
        if let Some(input) = unshaped_input(path) {
            let path = path.to_owned();
            return Err(LoadError::NoRank { path, input });
        }
        let watching = profile.as_ref().and_then(|profile| profile.as_ref().ok());
        let session = builder(runtime, weights, hardware, watching)
            .and_then(|mut builder| builder.commit_from_file(path))
            .map_err(|error| fault(&error))?;
        let (signature, unserved) = signature(&session, path)?;
        let way = match hardware.device {
            Device::Cpu => Way::Host(Allocator::default()),
            Device::Cuda(index) => {
                let bound = Bound::on_cuda(&session, index).map_err(|error| fault(&error))?;
                Way::Pinned(Box::new(bound))
            }
        };
        Ok(Self {
            terminator: Terminator::new().map_err(|error| fault(&error))?,
            signature,
            defaults: defaults(&session),
            unserved,
            way,
            session,
            profile,
            has_run: false,
            path: path.to_owned(),
            hardware: hardware.clone(),
        })
    }

    /// Outputs that have no form in the Open Inference Protocol (sequences, maps), with their types.
    pub fn unserved(&self) -> &[String] {
        &self.unserved
    }

    /// Whether a run has succeeded.
    pub fn has_run(&self) -> bool {
        self.has_run
    }

    /// Where the runs since [`OnnxEngine::load_watched`] took place, by ONNX Runtime's own account; nothing is known if it
    /// gave none. From here on nobody watches.
    ///
    /// # Errors
    /// The device is a GPU, and nodes ran on the CPU or nothing shows that none did, without permission for either.
    pub fn placement(&mut self) -> Result<Placement, LoadError> {
        let seen = match self.profile.take() {
            Some(Ok(_folder)) => self.read_profile(),
            Some(Err(reason)) => Err(reason),
            None => Err("nobody watched".to_owned()),
        };
        judge(seen, &self.path, &self.hardware)
    }

    fn read_profile(&mut self) -> Result<Placement, String> {
        let file = self
            .session
            .end_profiling()
            .map_err(|error| one_line(error.message()))?;
        let text =
            std::fs::read_to_string(&file).map_err(|error| format!("the profile {file} cannot be read: {error}"))?;
        let placement =
            Placement::of_profile(&text).map_err(|error| format!("the profile is not understood: {error}"))?;
        if placement.is_known() {
            Ok(placement)
        } else {
            Err("none of its runs succeeded; golden vectors make one that does".to_owned())
        }
    }
}

/// Whether what was seen of a model's runs is what was asked for.
fn judge(seen: Result<Placement, String>, path: &Path, hardware: &Hardware) -> Result<Placement, LoadError> {
    let device = hardware.device;
    let all_there = device != Device::Cpu && !hardware.cpu_fallback;
    match seen {
        Ok(placement) => match placement.on_cpu().filter(|_| all_there) {
            None => Ok(placement),
            Some(nodes) => Err(LoadError::OnCpu {
                path: path.to_owned(),
                device,
                nodes,
            }),
        },
        Err(reason) if all_there => Err(LoadError::Unproven {
            path: path.to_owned(),
            device,
            reason,
        }),
        Err(reason) => {
            info!("where {} runs is not shown: {reason}", path.display());
            Ok(Placement::default())
        }
    }
}

fn not_loaded(error: &ort::Error, path: &Path, runtime: &Runtime, device: Device) -> LoadError {
    let (path, reason) = (path.to_owned(), one_line(error.message()));
    match advice(&reason).filter(|_| device != Device::Cpu) {
        Some(advice) => LoadError::Device {
            path,
            device,
            library: runtime.library().to_owned(),
            reason: cause(&reason).to_owned(),
            advice,
        },
        None => match sniff::fault_of(&path) {
            Some(fault) => LoadError::File { path, fault },
            None => LoadError::Model { path, reason },
        },
    }
}

/// The first input that is declared without a shape; ONNX Runtime takes it for one without axes.
fn unshaped_input(path: &Path) -> Option<String> {
    let model = onnx::read(path).ok()?;
    model.unshaped_input().map(str::to_owned)
}

/// What the graph says it takes and gives, and its outputs that are no tensors.
fn signature(session: &Session, path: &Path) -> Result<(Signature, Vec<String>), LoadError> {
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
    Ok((Signature { inputs, outputs }, unserved))
}

impl Engine for OnnxEngine {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn defaults(&self) -> &[TensorSpec] {
        &self.defaults
    }

    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<Output>, EngineError> {
        let (session, options) = (&mut self.session, &self.terminator.options);
        let outputs = match &mut self.way {
            Way::Host(allocator) if inputs.len() > self.signature.inputs.len() => {
                let given = given(inputs, &self.signature, &self.defaults);
                run_by_name(allocator, session, &self.signature, options, given)
            }
            Way::Host(allocator) => run_on_host(allocator, session, &self.signature, options, inputs),
            Way::Pinned(bound) => {
                let given = given(inputs, &self.signature, &self.defaults);
                bound.run(session, &self.signature, options, given)
            }
        }?;
        self.has_run = true;
        Ok(outputs)
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

/// The inputs with what they are for, without those that keep their own value.
fn given<'i, 'a>(
    inputs: &'i [Input<'a>],
    signature: &'i Signature,
    defaults: &'i [TensorSpec],
) -> impl Iterator<Item = (&'i Input<'a>, &'i TensorSpec)> {
    let required = signature.inputs.len();
    let all = inputs.iter().zip(signature.inputs.iter().chain(defaults)).enumerate();
    all.filter(move |(place, (input, _))| *place < required || !input.is_absent())
        .map(|(_, pair)| pair)
}

/// Inputs that have a value of their own, and may be given another.
fn defaults(session: &Session) -> Vec<TensorSpec> {
    let initializers = session.overridable_initializers();
    let specs = initializers.iter().map(|of| tensor::spec_of(of.name(), of.dtype()));
    specs.flatten().collect()
}

fn run_by_name<'i, 'a: 'i>(
    allocator: &Allocator,
    session: &mut Session,
    signature: &Signature,
    options: &RunOptions,
    given: impl Iterator<Item = (&'i Input<'a>, &'i TensorSpec)>,
) -> Result<Vec<Output>, EngineError> {
    let named = given
        .map(|(input, spec)| {
            let value = value(allocator, element_type(spec.datatype), input)?;
            Ok((spec.name.as_str(), SessionInputValue::from(value)))
        })
        .collect::<ort::Result<Vec<_>>>()
        .map_err(|error| engine_error(&error))?;
    let outputs = session.run_with_options(named, options);
    tensor::outputs(signature, outputs.map_err(|error| engine_error(&error))?)
}

fn run_on_host(
    allocator: &Allocator,
    session: &mut Session,
    signature: &Signature,
    options: &RunOptions,
    inputs: &[Input<'_>],
) -> Result<Vec<Output>, EngineError> {
    let values = inputs
        .iter()
        .zip(&signature.inputs)
        .map(|(input, spec)| value(allocator, element_type(spec.datatype), input).map(SessionInputValue::from))
        .collect::<ort::Result<Vec<_>>>()
        .map_err(|error| engine_error(&error))?;
    let outputs = session.run_with_options(values.as_slice(), options);
    tensor::outputs(signature, outputs.map_err(|error| engine_error(&error))?)
}

fn builder(
    runtime: &Runtime,
    weights: &SharedWeights,
    hardware: &Hardware,
    watching: Option<&ProfileFolder>,
) -> ort::Result<SessionBuilder> {
    let mut builder = Session::builder(&runtime.environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(1)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_memory_pattern(false)?
        .with_prepacked_weights(&weights.0)?;
    if let Some(folder) = watching {
        builder = builder.with_profiling(folder.prefix())?;
    }
    if let Device::Cuda(index) = hardware.device {
        builder = builder.with_execution_providers([cuda(index, hardware)])?;
        if !hardware.cpu_fallback {
            builder = builder.with_disable_cpu_fallback()?;
        }
    }
    Ok(builder)
}

/// ONNX Runtime's provider for one CUDA device. If it cannot be had that is an error: left to itself, ONNX Runtime would
/// say so in its log and run on the CPU.
fn cuda(index: u16, hardware: &Hardware) -> ExecutionProviderDispatch {
    let provider = CUDA::default()
        .with_device_id(i32::from(index))
        .with_tf32(hardware.cuda_tf32)
        // The arena never shrinks: it must not take twice of what a bigger run needs.
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
        // Batches are of all sizes, and the default tries every algorithm anew for each of them.
        .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic);
    let provider = match hardware.cuda_memory_bytes {
        Some(bytes) => provider.with_memory_limit(bytes.get()),
        None => provider,
    };
    provider.build().error_on_failure()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware(device: Device, cpu_fallback: bool) -> Hardware {
        Hardware {
            device,
            cpu_fallback,
            ..Hardware::CPU
        }
    }

    fn placement(providers: &[&str]) -> Placement {
        let event = |(number, provider): (usize, &&str)| {
            format!(r#"{{"name": "n{number}", "args": {{"provider": "{provider}", "op_name": "Gemm"}}}}"#)
        };
        let events: Vec<_> = providers.iter().enumerate().map(event).collect();
        Placement::of_profile(&format!("[{}]", events.join(","))).unwrap()
    }

    const CUDA: &str = "CUDAExecutionProvider";
    const CPU: &str = "CPUExecutionProvider";

    #[test]
    fn who_asked_for_a_gpu_gets_it_alone_or_an_error_unless_the_cpu_is_allowed() {
        let path = Path::new("m.onnx");
        let judged = |providers: &[&str], device, cpu_fallback| {
            let judged = judge(Ok(placement(providers)), path, &hardware(device, cpu_fallback));
            judged.map_err(|error| error.to_string())
        };

        assert!(judged(&[CPU], Device::Cpu, false).is_ok());
        assert!(judged(&[CUDA, CUDA], Device::Cuda(0), false).is_ok());
        assert!(judged(&[CUDA, CPU], Device::Cuda(0), true).is_ok());
        let refused = judged(&[CUDA, CPU], Device::Cuda(1), false).unwrap_err();

        assert!(
            refused.starts_with("m.onnx does not run on cuda:1: 1 node (Gemm) ran on the CPU; "),
            "{refused}"
        );
    }

    #[test]
    fn who_asked_for_a_gpu_is_not_put_off_without_a_proof() {
        let judged = |device, cpu_fallback| {
            let seen = Err("no runs".to_owned());
            judge(seen, Path::new("m.onnx"), &hardware(device, cpu_fallback))
        };

        assert!(judged(Device::Cpu, false).is_ok_and(|placement| !placement.is_known()));
        assert!(judged(Device::Cuda(0), true).is_ok());
        assert!(matches!(
            judged(Device::Cuda(0), false),
            Err(LoadError::Unproven { .. })
        ));
    }
}
