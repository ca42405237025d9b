//! Where a model runs, as the configuration and its `model.toml` have it; also as arguments for a process of its own.

use std::num::NonZeroUsize;

use clap::Args;

use crate::config::{Device, WorkerConfig};
use crate::model::settings::Settings;

/// The device of a model, and what its engines may do there.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Hardware {
    /// Where the model runs (worker.device)
    #[arg(long, default_value_t = Device::Cpu)]
    pub device: Device,
    /// Most bytes of the GPU for one engine (worker.cuda_memory_bytes)
    #[arg(long)]
    pub cuda_memory_bytes: Option<NonZeroUsize>,
    /// Compute FP32 as TF32 on the GPU (worker.cuda_tf32)
    #[arg(long)]
    pub cuda_tf32: bool,
    /// Let nodes run on the CPU although the device is a GPU (worker.cpu_fallback)
    #[arg(long)]
    pub cpu_fallback: bool,
}

impl Hardware {
    /// The processor of this machine.
    pub const CPU: Self = Self {
        device: Device::Cpu,
        cuda_memory_bytes: None,
        cuda_tf32: false,
        cpu_fallback: false,
    };

    /// What a model's own settings say, and the worker's where they say nothing.
    pub fn of(config: &WorkerConfig, model: &Settings) -> Self {
        Self {
            device: model.device.unwrap_or(config.device),
            cuda_memory_bytes: config.cuda_memory,
            cuda_tf32: config.cuda_tf32,
            cpu_fallback: config.cpu_fallback,
        }
    }

    /// How many engines a model gets, unless told otherwise.
    ///
    /// Two on a GPU: a run waits for its rows to be copied there and back, and meanwhile the other one computes. Each
    /// has a stream of its own and, since ONNX Runtime shares none on a device, its own copy of the weights.
    pub fn instances(&self) -> NonZeroUsize {
        match self.device {
            Device::Cpu => NonZeroUsize::MIN,
            Device::Cuda(_) => NonZeroUsize::MIN.saturating_add(1),
        }
    }

    /// The same as arguments on a command line.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--device={}", self.device)];
        arguments.extend(
            self.cuda_memory_bytes
                .map(|bytes| format!("--cuda-memory-bytes={bytes}")),
        );
        arguments.extend(self.cuda_tf32.then(|| "--cuda-tf32".to_owned()));
        arguments.extend(self.cpu_fallback.then(|| "--cpu-fallback".to_owned()));
        arguments
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Config;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        hardware: Hardware,
    }

    fn config(overrides: &[(&str, &str)]) -> WorkerConfig {
        let overrides: Vec<_> = overrides.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();
        Config::from_overrides(&overrides).unwrap().worker
    }

    #[test]
    fn a_model_may_run_elsewhere_than_the_others() {
        let worker = config(&[("worker.device", "cuda:1"), ("worker.cuda_tf32", "true")]);
        let own = Settings {
            device: Some(Device::Cpu),
            ..Settings::default()
        };

        let elsewhere = Hardware::of(&worker, &own);
        let as_configured = Hardware::of(&worker, &Settings::default());

        assert_eq!((elsewhere.device, elsewhere.instances().get()), (Device::Cpu, 1));
        assert_eq!(
            (as_configured.device, as_configured.instances().get()),
            (Device::Cuda(1), 2)
        );
        assert!(as_configured.cuda_tf32);
    }

    #[test]
    fn another_process_gets_the_same_hardware() {
        let everything = [
            ("worker.device", "cuda:3"),
            ("worker.cuda_memory_bytes", "4096"),
            ("worker.cuda_tf32", "true"),
            ("worker.cpu_fallback", "true"),
        ];
        for overrides in [&everything[..], &everything[..1], &[]] {
            let hardware = Hardware::of(&config(overrides), &Settings::default());

            let line = std::iter::once("engine".to_owned()).chain(hardware.arguments());
            let read = Cli::parse_from(line).hardware;

            assert_eq!(read, hardware);
        }
    }
}
