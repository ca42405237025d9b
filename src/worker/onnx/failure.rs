//! What ONNX Runtime's messages say. It has error codes for neither a lack of memory nor a lost device, so the words are
//! all there is.

use crate::worker::infer::EngineError;

/// Sorts a failed run by whose fault it is.
pub fn engine_error(error: &ort::Error) -> EngineError {
    let message = one_line(error.message());
    if NO_MEMORY.iter().any(|text| message.contains(text)) {
        EngineError::Memory(message)
    } else if cuda_failure(&message).is_some_and(|failure| !failure.is_of_this_run()) {
        EngineError::Device(message)
    } else {
        EngineError::Run(message)
    }
}

/// ONNX Runtime's messages run over several lines; a sentence for a reply or a log has one.
pub fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The cause at the end of a message that begins with places in ONNX Runtime's own source.
pub fn cause(message: &str) -> &str {
    let cause = ["] : 1 : FAIL : ", " operator() "]
        .iter()
        .fold(message, |message, place| {
            message.rsplit(place).next().unwrap_or(message)
        });
    cause.trim_end_matches(['.', ' '])
}

/// Who must act when a model cannot be loaded for a GPU; `None`: it is not the GPU's fault.
pub fn advice(message: &str) -> Option<&'static str> {
    let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    if says(&["is not enabled in this build"]) {
        Some(
            "this is the library for the CPU: `scripts/onnxruntime-gpu` fetches the one for CUDA, and ORT_DYLIB_PATH names it",
        )
    } else if says(&["libcuda.so"]) {
        Some("install NVIDIA's driver, and where this is a container give it the GPU")
    } else if says(&["cannot open shared object file", "Failed to load library"]) {
        Some(
            "put CUDA 13's libraries beside the library, as `scripts/onnxruntime-gpu` does, or name their folder in LD_LIBRARY_PATH",
        )
    } else if says(&["invalid device ordinal", "Invalid device ID", "no CUDA-capable device"]) {
        Some("there is no such GPU here: `nvidia-smi` lists those there are, CUDA_VISIBLE_DEVICES hides some")
    } else if says(&["driver version is insufficient"]) {
        Some("NVIDIA's driver is older than CUDA 13: install 580 or newer")
    } else if says(&["fallback to CPU EP has been explicitly disabled"]) {
        Some("worker.cpu_fallback = true lets nodes that CUDA has no kernel for run on the CPU")
    } else if says(&NO_MEMORY) {
        Some("free memory of the GPU, raise worker.cuda_memory_bytes, or start fewer worker.instances")
    } else {
        cuda_failure(message).map(|_| "`nvidia-smi` shows how the GPU is")
    }
}

/// A failure of one of CUDA's libraries.
struct CudaFailure<'a> {
    library: &'a str,
    code: u32,
    text: &'a str,
}

impl CudaFailure<'_> {
    /// Whether another run may succeed. Nearly all of CUDA's errors stay with the process: every later call fails in the
    /// same way. Those of arguments do not, and come from what this run was given.
    ///
    /// # Source
    /// CUDA Runtime API, `cudaError`: the descriptions of 1 and 9 lack "the process must be terminated and relaunched".
    fn is_of_this_run(&self) -> bool {
        match self.library {
            "CUDA" => matches!(self.code, INVALID_VALUE | INVALID_CONFIGURATION),
            _ => ["NOT_SUPPORTED", "BAD_PARAM", "INVALID_VALUE", "INVALID_SIZE"]
                .iter()
                .any(|status| self.text.contains(status)),
        }
    }
}

/// Finds `CUDA failure 719: unspecified launch failure ; GPU=0 ; …`, or the same of CUBLAS, CUDNN and so on.
///
/// # Source
/// `CudaCall` in ONNX Runtime's `core/providers/cuda/cuda_call.cc`, which writes all of them.
fn cuda_failure(message: &str) -> Option<CudaFailure<'_>> {
    for (at, _) in message.match_indices(FAILURE) {
        let library = message[..at].rsplit([' ', ':', '(']).next().unwrap_or_default();
        let (code, text) = message[at + FAILURE.len()..].split_once(':')?;
        if (library.starts_with("CU") || library == "NCCL")
            && let Ok(code) = code.parse()
        {
            return Some(CudaFailure { library, code, text });
        }
    }
    None
}

const FAILURE: &str = " failure ";
const INVALID_VALUE: u32 = 1;
const INVALID_CONFIGURATION: u32 = 9;
/// What allocators of the CPU, of ONNX Runtime's arena and of CUDA's libraries say.
const NO_MEMORY: [&str; 7] = [
    "bad_alloc",
    "bad allocation",
    "Failed to allocate",
    "out of memory",
    "is smaller than requested bytes",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(message: &str) -> &'static str {
        match engine_error(&ort::Error::new(message)) {
            EngineError::Run(_) => "run",
            EngineError::Memory(_) => "memory",
            EngineError::Device(_) => "device",
            EngineError::Late(_) => "late",
        }
    }

    #[test]
    fn messages_of_cuda_are_sorted_by_who_must_act() {
        let tail = "; GPU=0 ; hostname=h ; file=f.cc ; line=1 ; expr=e;";
        for (message, expected) in [
            ("CUDA failure 700: an illegal memory access was encountered", "device"),
            ("CUDA failure 719: unspecified launch failure", "device"),
            (
                "CUDA failure 46: all CUDA-capable devices are busy or unavailable",
                "device",
            ),
            (
                "/a/cuda_call.cc:129 std::conditional_t<true> onnxruntime::CudaCall(...) CUDA failure 214: uncorrectable ECC error",
                "device",
            ),
            (
                "Non-zero status code returned while running Gemm node. Name:'g' Status Message: CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED",
                "device",
            ),
            ("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED", "device"),
            ("CUDA failure 1: invalid argument", "run"),
            ("CUDA failure 9: invalid configuration argument", "run"),
            ("CUBLAS failure 7: CUBLAS_STATUS_INVALID_VALUE", "run"),
            ("CUDNN failure 3000: CUDNN_STATUS_NOT_SUPPORTED", "run"),
            (
                "CUDNN_FE failure 9: CUDNN_BACKEND_TENSOR_DESCRIPTOR: CUDNN_STATUS_BAD_PARAM",
                "run",
            ),
            ("CUDA failure 2: out of memory", "memory"),
            ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", "memory"),
            (
                "CUDNN failure 4003: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
                "memory",
            ),
            (
                "Available memory of 1024 is smaller than requested bytes of 4096",
                "memory",
            ),
            ("Failed to allocate memory for requested buffer of size 4096", "memory"),
            ("Got invalid dimensions for input: x", "run"),
            ("an ear failure 3: of the engine", "run"),
        ] {
            assert_eq!(kind(&format!("{message} {tail}")), expected, "{message}");
        }
    }

    #[test]
    fn a_cause_is_shown_without_the_way_to_it() {
        let long = "/onnxruntime_src/bridge.cc:1988 Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library a.so";

        assert_eq!(cause(long), "Failed to load library a.so");
        let option = "/onnxruntime_src/info.cc:62 FromProviderOptions(const ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : \
            utils.h:187 Parse Failed to parse provider option \"device_id\": info.cc:70 operator() Invalid device ID: 99.";
        assert_eq!(cause(option), "Invalid device ID: 99");
        assert_eq!(
            cause("It is not enabled in this build. "),
            "It is not enabled in this build"
        );
    }

    #[test]
    fn who_asks_for_a_gpu_in_vain_is_told_what_to_do() {
        for (message, expected) in [
            (
                "CUDA execution provider is not enabled in this build. ",
                Some("library for the CPU"),
            ),
            (
                "Failed to load library libonnxruntime_providers_cuda.so with error: libcuda.so.1: cannot open shared object file",
                Some("driver"),
            ),
            (
                "Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object file",
                Some("libraries"),
            ),
            ("CUDA failure 101: invalid device ordinal ; GPU=0", Some("no such GPU")),
            (
                "Invalid device ID: 99, must be between 0 (inclusive) and 1 (exclusive).",
                Some("no such GPU"),
            ),
            (
                "CUDA failure 100: no CUDA-capable device is detected ; GPU=0",
                Some("no such GPU"),
            ),
            (
                "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
                Some("580"),
            ),
            (
                "but fallback to CPU EP has been explicitly disabled by the user.",
                Some("worker.cpu_fallback"),
            ),
            ("CUDA failure 2: out of memory", Some("worker.cuda_memory_bytes")),
            ("CUDA failure 802: system not yet initialized", Some("nvidia-smi")),
            ("Load model from m failed: Protobuf parsing failed.", None),
        ] {
            let advice = advice(message);
            assert_eq!(advice.is_some(), expected.is_some(), "{message}");
            assert!(
                advice.unwrap_or_default().contains(expected.unwrap_or_default()),
                "{message}: {advice:?}"
            );
        }
    }
}
