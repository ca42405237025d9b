//! Rows that make a run go wrong, for workers on the runtime of `tests/runtime/faulty.rs`.

use std::path::PathBuf;

use super::worker::Setup;

/// Ends the process.
pub const ABORT: f32 = 666_001.0;
/// Runs until the run is terminated.
pub const HANG: f32 = 666_002.0;
/// Runs for ever.
pub const HANG_DEAF: f32 = 666_003.0;
/// Finds no memory for a batch of more than two rows.
pub const HUNGRY: f32 = 666_004.0;
/// Loses the device.
pub const DEVICE_LOST: f32 = 666_006.0;

/// Puts the faulty runtime in front of the worker's own.
pub fn faulty(worker: Setup) -> Setup {
    let folder = PathBuf::from(env!("CARGO_BIN_EXE_inferq"));
    let folder = folder.parent().expect("a binary is in a folder");
    let faulty = folder.join("examples/libfaulty_runtime.so");
    assert!(
        faulty.exists(),
        "{} is missing: cargo build --example faulty_runtime",
        faulty.display()
    );
    worker
        .env("ORT_DYLIB_PATH", faulty)
        .env("INFERQ_TEST_ONNXRUNTIME", folder.join("lib/libonnxruntime.so"))
}
