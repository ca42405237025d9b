//! `inferq models`: what is in the repository, what a model takes and gives, and whether it passes its checks.
//!
//! Nothing here talks to a broker. How a model is loaded is the caller's: the commands get it as a function.

mod check;
mod inspect;
mod list;
mod rows;

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::slice;

use serde::Serialize;

use crate::model::proof::ProofError;
use crate::model::repository::{ModelFiles, RepositoryError, VersionFiles, scan};
use crate::model::settings::Settings;
use crate::worker::infer::Engine;

/// Arguments of `inferq models`.
#[derive(Debug, clap::Args)]
pub struct ModelsArgs {
    #[command(subcommand)]
    pub command: ModelsCommand,
}

#[derive(Debug, clap::Subcommand)]
pub enum ModelsCommand {
    /// List the models of the repository
    #[command(after_help = "Example:\n  inferq models list --json")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    // Its --version is the model's.
    /// Show what one version of a model takes and gives
    #[command(
        disable_version_flag = true,
        after_help = "Example:\n  inferq models inspect digits --version 2"
    )]
    Inspect {
        name: String,
        /// The version to show instead of the one that serves by default
        #[arg(long)]
        version: Option<u64>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Load every version, check its digest, run its golden vectors and try rows together
    #[command(after_help = "Example:\n  inferq --models ./models models check digits")]
    Check {
        /// The models to check instead of all
        names: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// A model that was loaded to be looked at.
pub struct Loaded {
    pub engine: Box<dyn Engine>,
    /// Outputs without a form in the Open Inference Protocol, with their types.
    pub unserved: Vec<String>,
}

/// Loads one version of a model, which has these settings.
pub type Load<'a> = dyn FnMut(&Settings, &VersionFiles) -> anyhow::Result<Loaded> + 'a;

/// Runs one of the commands on the repository at `root`, and writes its answer to `out`.
/// # Errors
/// `ModelsError::Failed` if a model did not pass `check`; others if there is no answer.
pub fn run(command: &ModelsCommand, root: &Path, load: &mut Load<'_>, out: &mut dyn Write) -> Result<(), ModelsError> {
    match command {
        ModelsCommand::List { json } => {
            let found = scan(root, &[])?;
            let models = list::list(&found)?;
            print(&models, *json, |models| list::text(models), out)?;
            // Nothing to serve is no answer to be content with.
            if found.models.is_empty() {
                found.strictly()?;
            }
            Ok(())
        }
        ModelsCommand::Inspect { name, version, json } => {
            let model = scan(root, slice::from_ref(name))?.into_model(name)?;
            print(&inspect::inspect(&model, *version, load)?, *json, inspect::text, out)
        }
        ModelsCommand::Check { names, json } => {
            let checks = check::check(&scan(root, names)?, load);
            print(&checks, *json, |checks| check::text(checks), out)?;
            match checks.iter().filter(|check| check.failed()).count() {
                0 => Ok(()),
                failed => Err(ModelsError::Failed {
                    failed,
                    checked: checks.len(),
                }),
            }
        }
    }
}

fn print<T: Serialize>(answer: &T, json: bool, text: fn(&T) -> String, out: &mut dyn Write) -> Result<(), ModelsError> {
    if json {
        serde_json::to_writer_pretty(&mut *out, answer).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        out.write_all(text(answer).as_bytes())?;
    }
    Ok(())
}

fn version_of(model: &ModelFiles, version: Option<u64>) -> Result<&VersionFiles, ModelsError> {
    let found = match version {
        None => model.default_version(),
        Some(version) => model.versions.iter().find(|files| files.version == version),
    };
    found.ok_or_else(|| ModelsError::NoVersion {
        name: model.name.clone(),
        version: version.unwrap_or_default(),
        there: joined(&model.versions.iter().map(|files| files.version).collect::<Vec<_>>()),
    })
}

fn joined(versions: &[u64]) -> String {
    versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Why a command has no answer, or the answer is no.
#[derive(Debug, thiserror::Error)]
pub enum ModelsError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error("{name} has no version {version} that is served; there is: {there}")]
    NoVersion { name: String, version: u64, there: String },
    #[error("cannot read {path}")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot load {path}")]
    Load {
        path: PathBuf,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    #[error(transparent)]
    Proof(#[from] ProofError),
    #[error("{failed} of {checked} failed")]
    Failed { failed: usize, checked: usize },
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;

    use super::*;
    use crate::model::test_engine::TestEngine;

    const DIGEST_OF_NOTHING: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// `sums` has versions 1, with golden vectors, and 2; `other` one version and labels.
    fn repository() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, content: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write("sums/1/model.onnx", "");
        write("sums/1/golden.json", &golden("[6, 1]"));
        write("sums/2/model.onnx", "");
        write("sums/2/model.onnx.data", "12345");
        write(
            "sums/model.toml",
            &format!("rows_max = 64\n[digests]\n1 = \"{DIGEST_OF_NOTHING}\""),
        );
        write("other/7/model.onnx", "x");
        write("other/model.toml", "labels = [\"cat\", \"dog\"]\nbatching = false");
        folder
    }

    /// The same, with files that look like models.
    fn of_models() -> tempfile::TempDir {
        let folder = repository();
        for version in ["sums/1", "sums/2", "other/7"] {
            // IR version 8, and an empty graph.
            fs::write(folder.path().join(version).join("model.onnx"), b"\x08\x08\x3a\x00").unwrap();
        }
        folder
    }

    #[test]
    fn a_list_names_files_that_are_no_models() {
        let repository = of_models();
        fs::write(repository.path().join("sums/2/model.onnx"), "<html>").unwrap();

        let (text, _) = answer(repository.path(), &ModelsCommand::List { json: false });

        let line = text.lines().find(|line| line.starts_with("sums ")).unwrap();
        assert!(line.starts_with("sums   1         1 "), "{text}");
        let said = "not served: sums 2: sums/2/model.onnx is no ONNX model but an HTML page";
        assert!(text.contains(said), "{text}");
    }

    fn golden(outputs: &str) -> String {
        let x = r#"{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}"#;
        let y = format!(r#"{{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": {outputs}}}"#);
        format!(r#"{{"inputs": [{x}], "outputs": [{y}]}}"#)
    }

    fn sums(_: &Settings, _: &VersionFiles) -> anyhow::Result<Loaded> {
        Ok(Loaded {
            engine: Box::new(TestEngine::sums()),
            unserved: vec!["probabilities: a sequence of maps".to_owned()],
        })
    }

    /// What the command writes, with paths relative to the repository.
    fn answer(root: &Path, command: &ModelsCommand) -> (String, Result<(), ModelsError>) {
        let mut out = Vec::new();
        let result = run(command, root, &mut sums, &mut out);
        let text = String::from_utf8(out).unwrap();
        (text.replace(&format!("{}/", root.display()), ""), result)
    }

    fn json(root: &Path, command: &ModelsCommand) -> Value {
        serde_json::from_str(&answer(root, command).0).unwrap()
    }

    fn check(names: &[&str], json: bool) -> ModelsCommand {
        let names = names.iter().map(ToString::to_string).collect();
        ModelsCommand::Check { names, json }
    }

    fn inspect(name: &str, version: Option<u64>, json: bool) -> ModelsCommand {
        let name = name.to_owned();
        ModelsCommand::Inspect { name, version, json }
    }

    #[test]
    fn list_shows_a_line_for_each_model_in_columns() {
        let repository = of_models();

        let (text, result) = answer(repository.path(), &ModelsCommand::List { json: false });

        result.unwrap();
        let expected = "NAME   VERSIONS  DEFAULT  SIZE  FILES\n\
                        other  7         7        4 B   model.onnx\n\
                        sums   1, 2      2        9 B   model.onnx, model.onnx.data\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn list_as_json_has_the_same_values() {
        let models = json(of_models().path(), &ModelsCommand::List { json: true });

        let expected = serde_json::json!({
            "name": "sums", "versions": [1, 2], "default": 2, "bytes": 9, "files": ["model.onnx", "model.onnx.data"],
        });
        assert_eq!(models[1], expected);
    }

    #[test]
    fn inspect_shows_what_a_producer_and_an_operator_need() {
        let repository = repository();

        let (text, result) = answer(repository.path(), &inspect("sums", Some(1), false));

        result.unwrap();
        let expected = format!(
            "model      sums\n\
             version    1, of 1, 2\n\
             file       sums/1/model.onnx\n\
             digest     {DIGEST_OF_NOTHING} (as stated in model.toml)\n\
             input      x FP32 [batch,3]\n\
             output     y FP32 [batch,2]\n\
             not served probabilities: a sequence of maps\n\
             rows       unknown (its graph cannot be read: it has no graph); by trial: independent\n\
             batching   yes\n\
             rows_max   64\n\
             instances  as the worker is configured\n\
             labels     none\n\
             golden     sums/1/golden.json\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn inspect_takes_the_default_version_and_says_why_rows_are_not_batched() {
        let repository = repository();

        let (text, _) = answer(repository.path(), &inspect("other", None, false));
        let model = json(repository.path(), &inspect("other", None, true));

        assert!(text.contains("version    7, the default, of 7\n"), "{text}");
        assert!(text.contains("(none is stated in model.toml)\n"), "{text}");
        assert!(
            text.contains("batching   no: model.toml says batching = false\n"),
            "{text}"
        );
        assert!(text.contains("labels     cat, dog\n"), "{text}");
        assert_eq!(
            model["inputs"],
            serde_json::json!([{"name": "x", "datatype": "FP32", "shape": [-1, 3]}])
        );
        assert_eq!(model["batching"], false);
        assert_eq!(model["rows"]["relation"], "unknown");
        assert_eq!(model["rows"]["decided_by"], "graph");
        assert_eq!(model["digest_stated"], Value::Null);
    }

    #[test]
    fn inspect_of_what_is_not_there_names_what_is() {
        let repository = repository();

        let no_model = answer(repository.path(), &inspect("sum", None, false)).1.unwrap_err();
        let no_version = answer(repository.path(), &inspect("sums", Some(3), false))
            .1
            .unwrap_err();

        assert!(no_model.to_string().ends_with("there is: other, sums"), "{no_model}");
        assert_eq!(
            no_version.to_string(),
            "sums has no version 3 that is served; there is: 1, 2"
        );
    }

    #[test]
    fn check_has_a_line_for_each_version() {
        let (text, result) = answer(repository().path(), &check(&[], false));

        result.unwrap();
        let expected = "other 7: ok; no golden vectors; rows: unknown: its graph cannot be read: it ends in the middle of a field \
                        (1 B are missing): it is cut, or no ONNX model; not batched: model.toml says batching = false; left out, since they are no tensors: probabilities: a sequence \
                        of maps\n\
                        sums 1: ok; golden vectors (rows: 1) at 0.0 % of the tolerance; rows: unknown (its graph cannot be \
                        read: it has no graph); by trial: independent; batched; left out, since they are no tensors: probabilities: a sequence of \
                        maps\n\
                        sums 2: ok; no golden vectors; rows: unknown (its graph cannot be read: it has no graph); by trial: \
                        independent; batched; left out, since they are no tensors: probabilities: a sequence of maps\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn check_goes_on_after_a_failure_and_ends_in_an_error() {
        let repository = repository();
        fs::write(repository.path().join("sums/1/golden.json"), golden("[7, 1]")).unwrap();

        let (text, result) = answer(repository.path(), &check(&["sums"], false));

        assert_eq!(result.unwrap_err().to_string(), "1 of 2 failed");
        let expected = "sums 1: FAILED: golden vectors sums/1/golden.json: output y, row 0, element 0: \
                        expected 7, got 6, allowed is a difference of 7.100e-4\n\
                        sums 2: ok; no golden vectors; rows: unknown (its graph cannot be read: it has no graph); by trial: \
                        independent; batched; left out, since they are no tensors: probabilities: a sequence of maps\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn check_finds_a_file_that_is_not_the_one_stated() {
        let repository = repository();
        fs::write(repository.path().join("sums/1/model.onnx"), "swapped").unwrap();

        let checks = json(repository.path(), &check(&["sums"], true));

        assert_eq!(checks[0]["ok"], false);
        assert!(checks[0]["error"].as_str().unwrap().contains(DIGEST_OF_NOTHING));
        assert_eq!(checks[1]["ok"], true);
        let rows = &checks[1]["rows"];
        assert_eq!(
            (&rows["relation"], &rows["graph"]),
            (&"independent".into(), &"unknown".into())
        );
        assert_eq!(rows["row_outputs"], serde_json::json!(["y"]));
    }

    #[test]
    fn check_shows_the_whole_cause_of_a_model_that_cannot_be_loaded() {
        let mut refuse =
            |_: &Settings, _: &VersionFiles| Err(anyhow::anyhow!("opset 99 is unknown").context("cannot load it"));
        let mut out = Vec::new();

        let result = run(&check(&["other"], false), repository().path(), &mut refuse, &mut out);

        assert!(matches!(result, Err(ModelsError::Failed { failed: 1, checked: 1 })));
        assert_eq!(out, b"other 7: FAILED: cannot load it: opset 99 is unknown\n");
    }

    #[test]
    fn the_arguments_are_read_as_documented() {
        use clap::Parser;
        #[derive(Parser)]
        struct Cli {
            #[command(flatten)]
            models: ModelsArgs,
        }
        let command = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap().models.command;

        assert!(matches!(
            command("models list --json"),
            ModelsCommand::List { json: true }
        ));
        assert!(matches!(
            command("models inspect digits --version 2"),
            ModelsCommand::Inspect { name, version: Some(2), json: false } if name == "digits"
        ));
        assert!(matches!(
            command("models check a b"),
            ModelsCommand::Check { names, json: false } if names == ["a", "b"]
        ));
    }
}
