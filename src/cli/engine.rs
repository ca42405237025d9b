//! `inferq engine`: one session of one model, which a worker starts to run a job apart. Not meant to be called by people.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::worker::hardware::Hardware;
use crate::worker::isolate;
use crate::worker::onnx::{OnnxEngine, Runtime, SharedWeights};

#[derive(Debug, Args)]
pub struct EngineArgs {
    /// The model's file
    model: PathBuf,
    #[command(flatten)]
    hardware: Hardware,
}

/// Serves the worker at the other ends of standard input and output until it has no more jobs.
///
/// # Errors
/// The model cannot be loaded, or the worker is gone.
pub fn run(args: &EngineArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let runtime = Runtime::load()?;
    let weights = SharedWeights::new(&runtime);
    let engine = OnnxEngine::load(&runtime, &args.model, &weights, &args.hardware)?;
    Ok(isolate::serve(engine, out)?)
}
