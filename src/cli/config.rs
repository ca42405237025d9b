//! `inferq config`: shows the effective configuration, checks it, prints the commented example.

use std::io::{self, Write};
use std::path::Path;

use clap::{Args, Subcommand};

use crate::config::{Config, ConfigError, Loaded, SECTIONS, Setting};

/// Shows or checks the configuration.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prints every effective value and where it came from; secrets are masked.
    #[command(after_help = "Example:\n  INFERQ_BATCH__ROWS_MAX=32 inferq config show --json")]
    Show {
        /// As JSON instead of TOML.
        #[arg(long)]
        json: bool,
    },
    /// Says whether the configuration is valid, or everything that is wrong with it.
    #[command(after_help = "Example:\n  inferq --config inferq.toml config check")]
    Check,
    /// Prints a configuration file with every key, its default and its meaning.
    #[command(after_help = "Example:\n  inferq config example > inferq.toml")]
    Example,
}

/// Runs `inferq config …` on the configuration of this process.
///
/// # Errors
/// `ConfigError` if the configuration has faults; `io::Error` if `out` cannot be written.
pub fn run(
    args: &ConfigArgs,
    file: Option<&Path>,
    overrides: &[(&str, String)],
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    answer(args, || Config::load(file, overrides), out)
}

fn answer(
    args: &ConfigArgs,
    load: impl FnOnce() -> Result<Loaded, ConfigError>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    match args.command {
        Command::Show { json: true } => show_json(&load()?, out)?,
        Command::Show { json: false } => show_toml(&load()?, out)?,
        Command::Check => {
            load()?;
            writeln!(out, "configuration is valid")?;
        }
        Command::Example => out.write_all(example().as_bytes())?,
    }
    Ok(())
}

/// The example file, `config/inferq.toml`.
pub fn example() -> String {
    let mut lines = vec![
        "# inferq: every key with its default, its meaning and the reason for its default.".to_owned(),
        "# Printed by `inferq config example`. A variable, named beside its key, wins over this file.".to_owned(),
    ];
    for section in SECTIONS {
        lines.push(String::new());
        lines.extend(section.doc.iter().map(|line| format!("#{line}")));
        lines.push(format!("[{}]", section.name));
        for (index, key) in section.keys.iter().enumerate() {
            if index > 0 {
                lines.push(String::new());
            }
            lines.extend(key.doc.iter().map(|line| format!("#{line}")));
            lines.push(format!("# Why this default: {}", key.reason));
            lines.push(format!("# Allowed: {}.", key.allowed()));
            lines.push(format!("# Variable: {}", key.variable()));
            lines.push(format!("{} = {}", key.name, key.default_value()));
        }
    }
    lines.join("\n") + "\n"
}

fn show_toml(loaded: &Loaded, out: &mut dyn Write) -> io::Result<()> {
    for (index, section) in SECTIONS.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        writeln!(out, "[{}]", section.name)?;
        for Setting { key, value, origin } in settings_of(loaded, section.name) {
            writeln!(out, "{} = {value} # {origin}", key.name)?;
        }
    }
    Ok(())
}

fn show_json(loaded: &Loaded, out: &mut dyn Write) -> anyhow::Result<()> {
    let sections: serde_json::Map<String, serde_json::Value> = SECTIONS
        .iter()
        .map(|section| {
            let entries: serde_json::Map<String, serde_json::Value> = settings_of(loaded, section.name)
                .map(|Setting { key, value, origin }| {
                    (
                        key.name.to_owned(),
                        serde_json::json!({ "value": value, "origin": origin }),
                    )
                })
                .collect();
            (section.name.to_owned(), entries.into())
        })
        .collect();
    serde_json::to_writer_pretty(&mut *out, &sections)?;
    writeln!(out)?;
    Ok(())
}

fn settings_of<'a>(loaded: &'a Loaded, section: &'a str) -> impl Iterator<Item = &'a Setting> {
    loaded
        .settings
        .iter()
        .filter(move |setting| setting.key.section == section)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser;

    use super::*;

    #[test]
    fn the_committed_example_is_what_the_table_gives() {
        let committed = include_str!("../../config/inferq.toml");

        assert!(
            committed == example(),
            "config/inferq.toml is old: write it with `inferq config example`"
        );
    }

    #[test]
    fn the_example_holds_the_defaults() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/inferq.toml");

        let loaded = Config::load_from(Some(&file), &[], [], Path::new("")).unwrap();

        assert_eq!(loaded.config, Config::from_overrides(&[]).unwrap());
        let from_file = |setting: &Setting| setting.origin.contains("inferq.toml, line ");
        assert!(loaded.settings.iter().all(from_file), "every key is in it");
    }

    #[test]
    fn show_prints_toml_that_loads_again_with_origins_and_without_the_password() {
        let shown = output("show", &[("INFERQ_BROKER__URI", "amqp://user:hidden@host/v")]).unwrap();

        let broker = &shown.parse::<toml::Table>().unwrap()["broker"];
        assert_eq!(broker["uri"].as_str(), Some("amqp://user:***@host/v"));
        assert_eq!(broker["prefetch"].as_integer(), Some(256));
        assert!(
            shown.contains("uri = \"amqp://user:***@host/v\" # INFERQ_BROKER__URI\n"),
            "{shown}"
        );
        assert!(shown.contains("prefetch = 256 # default\n"), "{shown}");
        assert!(!shown.contains("hidden"), "{shown}");
    }

    #[test]
    fn show_prints_json_with_origins_and_without_the_password() {
        let shown = output(
            "show --json",
            &[
                ("INFERQ_BROKER__URI", "amqp://user:hidden@host/v"),
                ("INFERQ_MODELS__LOAD", "a,b"),
            ],
        )
        .unwrap();

        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(
            shown["broker"]["uri"],
            serde_json::json!({ "value": "amqp://user:***@host/v", "origin": "INFERQ_BROKER__URI" })
        );
        assert_eq!(shown["models"]["load"]["value"], serde_json::json!(["a", "b"]));
        assert_eq!(
            shown["broker"]["prefetch"],
            serde_json::json!({ "value": 256, "origin": "default" })
        );
    }

    #[test]
    fn check_says_yes_or_names_every_fault() {
        let valid = output("check", &[]).unwrap();
        let refused = output(
            "check",
            &[("INFERQ_BATCH__ROWS_MAX", "0"), ("INFERQ_BROKER__PREFETCH", "0")],
        )
        .unwrap_err();

        assert_eq!(valid, "configuration is valid\n");
        assert!(refused.is::<ConfigError>());
        for key in ["batch.rows_max: ", "broker.prefetch: "] {
            assert!(refused.to_string().contains(key), "{refused}");
        }
    }

    #[test]
    fn the_example_needs_no_valid_configuration() {
        let printed = output("example", &[("INFERQ_NONSENSE", "")]).unwrap();

        assert_eq!(printed, example());
    }

    #[derive(Debug, Parser)]
    struct Arguments {
        #[command(flatten)]
        config: ConfigArgs,
    }

    fn output(arguments: &str, environment: &[(&str, &str)]) -> anyhow::Result<String> {
        let arguments = Arguments::parse_from(["config"].into_iter().chain(arguments.split(' ')));
        let environment: Vec<(OsString, OsString)> = environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let nowhere = tempfile::tempdir()?;
        let mut out = Vec::new();
        answer(
            &arguments.config,
            || Config::load_from(None, &[], environment, nowhere.path()),
            &mut out,
        )?;
        Ok(String::from_utf8(out)?)
    }
}
