//! The command line: one file a subcommand.

pub mod bench;
pub mod config;
pub mod dead;
pub mod engine;
pub mod exit;
pub mod manual;
pub mod models;
mod named;
pub mod predict;
pub mod topology;
pub mod worker;

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand};

use self::bench::BenchArgs;
use self::config::ConfigArgs;
use self::dead::DeadArgs;
use self::engine::EngineArgs;
use self::manual::{CompletionArgs, ManArgs};
use self::models::ModelsArgs;
use self::predict::PredictArgs;
use self::topology::TopologyArgs;
use crate::config::{Config, ConfigError, Loaded};
use crate::model::repository::VersionFiles;
use crate::model::settings::Settings;
use crate::worker::hardware::Hardware;
use crate::worker::onnx::{OnnxEngine, Runtime, SharedWeights};

/// Runs ONNX models behind RabbitMQ queues.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take jobs off the queues until SIGTERM, then finish what is in hand
    #[command(after_help = WORKER_HELP)]
    Worker,
    /// Send the rows of a file as jobs, and write the answers in the order of the rows
    // Its --version is the model's.
    #[command(disable_version_flag = true, after_help = predict::HELP)]
    Predict(PredictArgs),
    /// Put load on workers, at a rate or as fast as possible, and measure how they answer it
    // Its --version is the model's.
    #[command(disable_version_flag = true, after_help = bench::HELP)]
    Bench(BenchArgs),
    /// What is in the model repository, and whether it is fit to be served
    Models(ModelsArgs),
    /// The exchanges and queues on the broker: make them, compare them, write them down
    Topology(TopologyArgs),
    /// The dead letters: look at them, send them again, throw them away
    Dead(DeadArgs),
    /// The effective configuration, and where each value came from
    Config(ConfigArgs),
    /// A script that completes commands and options: bash, elvish, fish, powershell or zsh
    #[command(after_help = manual::COMPLETION_HELP)]
    Completion(CompletionArgs),
    /// Manual pages, one for each command
    #[command(after_help = manual::MAN_HELP)]
    Man(ManArgs),
    /// What a worker starts to run a job apart
    #[command(hide = true)]
    Engine(EngineArgs),
}

/// Where settings come from, besides the environment (`INFERQ_BROKER__URI` and so on).
#[derive(Debug, Args)]
struct SettingsArgs {
    /// Configuration file [default: inferq.toml in the working folder, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the broker (broker.uri); other users of the machine can see it, so secrets belong elsewhere
    #[arg(long, global = true, value_name = "URI")]
    broker: Option<String>,
    /// Model repository (models.repository)
    #[arg(long, global = true, value_name = "FOLDER")]
    models: Option<String>,
    /// Address of the metrics and health endpoints (telemetry.listen)
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Any other setting, such as batch.rows_max=32
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

impl SettingsArgs {
    fn file(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    fn overrides(&self) -> Vec<(&str, String)> {
        let named = [
            ("broker.uri", &self.broker),
            ("models.repository", &self.models),
            ("telemetry.listen", &self.listen),
        ];
        let named = named.into_iter().filter_map(|(key, value)| Some((key, value.clone()?)));
        let others = self.set.iter().map(|(key, value)| (key.as_str(), value.clone()));
        named.chain(others).collect()
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        Config::load(self.file(), &self.overrides())
    }
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// One sentence, or for a bad configuration one a fault; `ConfigError` can be told apart.
    pub fn run(self) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        match self.command {
            Command::Worker => worker::run(self.settings.load()?.config),
            Command::Predict(args) => predict::run(&args, &self.settings.load()?.config),
            Command::Bench(args) => bench::run(&args, &self.settings.load()?.config, &mut out),
            Command::Models(args) => {
                let config = self.settings.load()?.config;
                let mut runtime = None;
                let mut load = |settings: &Settings, files: &VersionFiles| {
                    load_to_look_at(&mut runtime, &Hardware::of(&config.worker, settings), files)
                };
                Ok(models::run(
                    &args.command,
                    &config.models.repository,
                    &mut load,
                    &mut out,
                )?)
            }
            Command::Topology(args) => topology::run(&args, &self.settings.load()?.config, &mut out),
            Command::Engine(args) => engine::run(&args, &mut out),
            Command::Completion(args) => manual::completion(&args, Self::command(), &mut out),
            Command::Man(args) => manual::pages(&args, Self::command()),
            Command::Dead(args) => dead::run(&args, &self.settings.load()?.config, &mut out),
            Command::Config(args) => config::run(&args, self.settings.file(), &self.settings.overrides(), &mut out),
        }
    }
}

/// Loads a model for `inferq models`; ONNX Runtime is loaded with the first one.
fn load_to_look_at(
    runtime: &mut Option<Runtime>,
    hardware: &Hardware,
    files: &VersionFiles,
) -> anyhow::Result<models::Loaded> {
    let runtime = match runtime {
        Some(runtime) => runtime,
        None => runtime.insert(Runtime::load()?),
    };
    let engine = OnnxEngine::load(runtime, &files.onnx, &SharedWeights::new(runtime), hardware)?;
    Ok(models::Loaded {
        unserved: engine.unserved().to_vec(),
        engine: Box::new(engine),
    })
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("allowed is KEY=VALUE, such as batch.rows_max=32".to_owned()),
    }
}

const WORKER_HELP: &str = "\
Examples:
  inferq worker                                                models and broker as the configuration says
  inferq worker --models /srv/models --set models.load=digits  one model of a repository
  INFERQ_BROKER__URI_FILE=/run/secrets/uri inferq worker       the broker's address from a file";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_arguments_of_a_command_are_in_each_others_way() {
        Cli::command().debug_assert();
    }
}
