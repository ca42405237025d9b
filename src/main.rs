//! The `inferq` binary: parses, calls one function of `cli`, and turns an error into an exit code.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use inferq::cli::Cli;
use inferq::config::ConfigError;
use inferq::worker::onnx::TELEMETRY_OFF;

/// A job makes and frees some eighty pieces on four threads. With the C library's allocator that was half of all
/// instructions of the thread that decodes and publishes, with this one it is a fourth: `benches/README.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    set_environment();
    // A thread of its own, because the stack of the first one is the system's choice.
    let run = std::thread::Builder::new()
        .name("inferq".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(run);
    match run.map(std::thread::JoinHandle::join) {
        Ok(Ok(code)) => code,
        Ok(Err(_panic)) => ExitCode::from(PANICKED),
        Err(error) => {
            eprintln!("inferq: no thread can be started: {error}");
            ExitCode::from(FATAL)
        }
    }
}

fn run() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `eprintln!` would panic where standard error cannot be written.
            let _ = writeln!(std::io::stderr(), "inferq: {}", inferq::error::chain(error.as_ref()));
            ExitCode::from(if error.is::<ConfigError>() {
                BAD_CONFIGURATION
            } else {
                FATAL
            })
        }
    }
}

/// Nothing later than this is a full opt-out of telemetry: ONNX Runtime reads the variable when it is initialised.
///
/// The AMQP client reads header tables by recursion, without a limit and on a thread of its own: 1,000 levels overflowed its
/// stack, and a message may have 26,000. So every thread gets a stack that they fit; what is not used of it takes no memory.
fn set_environment() {
    #[expect(
        unsafe_code,
        reason = "the runtime and the standard library listen to nothing but these"
    )]
    // SAFETY: the first statement of `main`, so there is no other thread that could read the environment.
    unsafe {
        std::env::set_var(TELEMETRY_OFF, "1");
        std::env::set_var("RUST_MIN_STACK", STACK_BYTES.to_string());
    }
}

/// Four times what the deepest table takes that fits a frame of 128 KiB, unoptimised.
const STACK_BYTES: usize = 256 << 20;
/// What a panic makes of a program that does not catch it.
const PANICKED: u8 = 101;
const FATAL: u8 = 1;
const BAD_CONFIGURATION: u8 = 2;
