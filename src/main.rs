//! The `inferq` binary: parses, calls one function of `cli`, and turns an error into an exit code.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use inferq::cli::{Cli, exit};
use inferq::worker::onnx::TELEMETRY_OFF;

/// A job makes and frees some eighty pieces on four threads. With the C library's allocator that was half of all
/// instructions of the thread that decodes and publishes, with this one it is a fourth: `benches/README.md`. It asks for no huge
/// pages (`no_thp` in `Cargo.toml`): each thread has pages of its own, and a hundred models have a hundred threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    set_environment();
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `eprintln!` would panic where standard error cannot be written.
            let _ = writeln!(std::io::stderr(), "inferq: {}", inferq::error::chain(error.as_ref()));
            ExitCode::from(exit::code(&error))
        }
    }
}

/// Nothing later than this is a full opt-out of telemetry: ONNX Runtime reads the variable when it is initialised.
fn set_environment() {
    #[expect(unsafe_code, reason = "the runtime listens to nothing else")]
    // SAFETY: the first statement of `main`, so there is no other thread that could read the environment.
    unsafe {
        std::env::set_var(TELEMETRY_OFF, "1");
    }
}
