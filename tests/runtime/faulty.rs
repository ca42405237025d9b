//! A shared library in front of the real ONNX Runtime, for tests of runs that go wrong: the worker under test is the real
//! binary and knows nothing of it (`ORT_DYLIB_PATH` names this library, `INFERQ_TEST_ONNXRUNTIME` the real one).
//!
//! Every function is the real library's but `Run` and `RunOptionsSetTerminate`. `Run` looks for a magic number among the
//! elements of the first input and does what it stands for; without one it is the real `Run`.
//! `tests/it/support/faulty.rs` has the same numbers.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use libloading::Library;
use ort::sys::{
    ONNXTensorElementDataType, OrtApi, OrtApiBase, OrtErrorCode, OrtRunOptions, OrtSession, OrtStatusPtr, OrtValue,
};

/// Ends the process with SIGABRT, as a failed assertion in native code does.
const ABORT: f32 = 666_001.0;
/// Runs until it is told to terminate.
const HANG: f32 = 666_002.0;
/// Runs for ever, whatever it is told.
const HANG_DEAF: f32 = 666_003.0;
/// Finds no memory for more than two rows.
const HUNGRY: f32 = 666_004.0;
/// Fails as CUDA does when the device is gone.
const DEVICE_LOST: f32 = 666_006.0;

const ROWS_FOR_HUNGRY: i64 = 2;

struct Real {
    base: *const OrtApiBase,
    // Never unloaded: the functions above point into it.
    _library: Library,
}

// SAFETY: the base is a constant table inside a library that stays loaded.
#[expect(unsafe_code, reason = "a table of C functions")]
unsafe impl Send for Real {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a table of C functions")]
unsafe impl Sync for Real {}

static REAL: LazyLock<Real> = LazyLock::new(|| {
    #[expect(
        clippy::disallowed_methods,
        reason = "a library has no configuration but the environment"
    )]
    let path = std::env::var_os("INFERQ_TEST_ONNXRUNTIME").expect("INFERQ_TEST_ONNXRUNTIME names the real library");
    // SAFETY: ONNX Runtime's own library, whose initialisers are meant to be run, and the signature of its one export.
    #[expect(unsafe_code, reason = "loading a C library")]
    unsafe {
        let library = Library::new(path).expect("the real ONNX Runtime can be loaded");
        let get_base = library
            .get::<unsafe extern "system" fn() -> *const OrtApiBase>(b"OrtGetApiBase")
            .expect("ONNX Runtime exports OrtGetApiBase");
        let base = get_base();
        Real {
            base,
            _library: library,
        }
    }
});

static BASE: OrtApiBase = OrtApiBase {
    GetApi: get_api,
    GetVersionString: version,
};

/// The table that the worker asked for, with two functions of our own.
static API: Mutex<Option<Box<OrtApi>>> = Mutex::new(None);

/// Addresses of the run options that were told to terminate.
static TERMINATED: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

/// The one function that ONNX Runtime exports.
#[expect(unsafe_code, reason = "the name is the library's contract")]
#[unsafe(no_mangle)]
pub extern "system" fn OrtGetApiBase() -> *const OrtApiBase {
    &raw const BASE
}

#[expect(unsafe_code, reason = "calls a C function")]
extern "system" fn version() -> *const c_char {
    // SAFETY: the base of the real library is valid for as long as this process lives.
    unsafe { ((*REAL.base).GetVersionString)() }
}

#[expect(unsafe_code, reason = "calls a C function and copies its table")]
extern "system" fn get_api(version: u32) -> *const OrtApi {
    // SAFETY: as above.
    let api = unsafe { ((*REAL.base).GetApi)(version) };
    // SAFETY: null, or a table of at least the functions of that version, which are all that `OrtApi` has.
    let Some(real) = (unsafe { api.as_ref() }) else {
        return std::ptr::null();
    };
    let mut table = API.lock().unwrap_or_else(PoisonError::into_inner);
    let table = table.get_or_insert_with(|| {
        let mut ours = real.clone();
        ours.Run = run;
        ours.RunOptionsSetTerminate = terminate;
        Box::new(ours)
    });
    &raw const **table
}

#[expect(unsafe_code, reason = "calls a C function")]
fn real() -> &'static OrtApi {
    // SAFETY: `get_api` found this version before it handed out any function that comes here.
    unsafe { &*((*REAL.base).GetApi)(ort::sys::ORT_API_VERSION) }
}

#[expect(unsafe_code, reason = "has the signature of a C function")]
unsafe extern "system" fn terminate(options: *mut OrtRunOptions) -> OrtStatusPtr {
    let mut terminated = TERMINATED.lock().unwrap_or_else(PoisonError::into_inner);
    terminated.insert(options as usize);
    // SAFETY: the caller's argument, handed on.
    unsafe { (real().RunOptionsSetTerminate)(options) }
}

#[expect(unsafe_code, reason = "has the signature of a C function")]
unsafe extern "system" fn run(
    session: *mut OrtSession,
    options: *const OrtRunOptions,
    input_names: *const *const c_char,
    inputs: *const *const OrtValue,
    input_len: usize,
    output_names: *const *const c_char,
    output_names_len: usize,
    outputs: *mut *mut OrtValue,
) -> OrtStatusPtr {
    // SAFETY: ONNX Runtime's contract: `inputs` has `input_len` values.
    let (rows, values) = unsafe { first_input(inputs, input_len) };
    match values.iter().copied().find_map(fault) {
        Some(ABORT) => std::process::abort(),
        Some(HANG) => {
            until_terminated(options);
            return failure(c"Exiting due to terminate flag being set to true.");
        }
        Some(HANG_DEAF) => loop {
            std::thread::park();
        },
        Some(HUNGRY) if rows > ROWS_FOR_HUNGRY => return failure(NO_MEMORY),
        Some(DEVICE_LOST) => return failure(c"CUDA failure 719: unspecified launch failure ; GPU=0 ; expr=cudaMemcpy"),
        _ => {}
    }
    // SAFETY: the caller's arguments, handed on.
    unsafe {
        (real().Run)(
            session,
            options,
            input_names,
            inputs,
            input_len,
            output_names,
            output_names_len,
            outputs,
        )
    }
}

const NO_MEMORY: &CStr = c"Failed to allocate memory for requested buffer of size 4503599627370496";

fn fault(value: f32) -> Option<f32> {
    [ABORT, HANG, HANG_DEAF, HUNGRY, DEVICE_LOST]
        .into_iter()
        .find(|magic| *magic == value)
}

/// Rows and elements of the first input, if those are FP32.
#[expect(unsafe_code, reason = "calls C functions")]
unsafe fn first_input<'a>(inputs: *const *const OrtValue, input_len: usize) -> (i64, &'a [f32]) {
    let api = real();
    if input_len == 0 {
        return (0, &[]);
    }
    let mut info = std::ptr::null_mut();
    let mut element = ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    let (mut elements, mut axes) = (0, 0);
    let mut data = std::ptr::null_mut();
    let mut shape = [0_i64; 8];
    // SAFETY: the caller's value is a tensor in the memory of the CPU, which is all that this worker hands over; what is
    // asked for lives on this stack, and `info` is released.
    unsafe {
        let value = *inputs;
        let _ = (api.GetTensorTypeAndShape)(value, &raw mut info);
        let _ = (api.GetTensorElementType)(info, &raw mut element);
        let _ = (api.GetTensorShapeElementCount)(info, &raw mut elements);
        let _ = (api.GetDimensionsCount)(info, &raw mut axes);
        let _ = (api.GetDimensions)(info, shape.as_mut_ptr(), axes.min(shape.len()));
        (api.ReleaseTensorTypeAndShapeInfo)(info);
        if element != ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || elements == 0 {
            return (shape[0], &[]);
        }
        let _ = (api.GetTensorMutableData)(value.cast_mut(), &raw mut data);
        (shape[0], std::slice::from_raw_parts(data.cast(), elements))
    }
}

fn until_terminated(options: *const OrtRunOptions) {
    let told = || {
        let terminated = TERMINATED.lock().unwrap_or_else(PoisonError::into_inner);
        terminated.contains(&(options as usize))
    };
    while !told() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[expect(unsafe_code, reason = "calls a C function")]
fn failure(message: &CStr) -> OrtStatusPtr {
    // SAFETY: the message ends with a NUL and is copied.
    unsafe { (real().CreateStatus)(OrtErrorCode::ORT_FAIL, message.as_ptr()) }
}
