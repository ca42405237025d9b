//! ONNX Runtime's shared library: found, loaded once a process, and with it the libraries that its CUDA provider needs.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;
use tracing::debug;

use super::LoadError;

/// The loaded library and its process-wide environment.
#[derive(Clone)]
pub struct Runtime {
    pub(super) environment: Environment,
    library: PathBuf,
    version: String,
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
        let version = version(&library).unwrap_or_default();
        let runtime = Self {
            environment,
            library,
            version,
        };
        Ok(loaded.insert(runtime).clone())
    }

    /// The library's own version, such as `1.28.0`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Where the library came from.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Loads CUDA's libraries that lie beside the library, so that its CUDA provider finds them there: it names them, and
    /// says of no folder. Those that are not there are left to the system's own search.
    pub(super) fn preload_cuda(&self) {
        static TRIED: Mutex<bool> = Mutex::new(false);
        let mut tried = TRIED.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(folder) = self.library.parent().filter(|_| !*tried) else {
            return;
        };
        *tried = true;
        for name in CUDA_LIBRARIES {
            let path = folder.join(name);
            if path.is_file()
                && let Err(error) = ort::util::preload_dylib(&path)
            {
                // Whatever needs it will say so.
                debug!("{} could not be loaded: {error}", path.display());
            }
        }
    }
}

/// What is named by ONNX Runtime's CUDA provider, each after what it needs itself; cuDNN loads its own parts.
///
/// # Source
/// `readelf -d libonnxruntime_providers_cuda.so` of 1.28.0; cuDNN, cuFFT and NVRTC are opened when first used.
const CUDA_LIBRARIES: [&str; 7] = [
    "libcudart.so.13",
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libcurand.so.10",
    "libcufft.so.12",
    "libnvrtc.so.13",
    "libcudnn.so.9",
];

/// What the loaded library says of itself; `ort` asks the same and keeps it.
fn version(library: &Path) -> Option<String> {
    type Base = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;
    #[expect(unsafe_code, reason = "the version is not to be had otherwise")]
    // SAFETY: `ort` has loaded the library and read its version in this same way, so that nothing is run or changed by doing
    // it again; it keeps the library loaded, and the text is a constant of it.
    unsafe {
        let loaded = libloading::Library::new(library).ok()?;
        let base = loaded.get::<Base>(b"OrtGetApiBase").ok()?();
        let text = CStr::from_ptr(((*base).GetVersionString)());
        Some(text.to_str().ok()?.to_owned())
    }
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
