//! `inferq topology`: the exchanges and queues of the models, made, compared or written down. No worker need run.

mod apply;
mod check;
mod export;

use std::io::{self, Write};

use clap::{Args, Subcommand};
use lapin::Connection;
use serde::Serialize;

use self::export::ExportError;
use super::named::Named;
use crate::broker::compare::{Difference, State};
use crate::broker::topology::{Kind, Part, parts};
use crate::broker::{BrokerError, connection};
use crate::config::Config;

/// Arguments of `inferq topology`.
#[derive(Debug, Args)]
pub struct TopologyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the exchanges, queues and bindings that are missing; what exists is never changed
    #[command(after_help = APPLY_HELP)]
    Apply(Asked),
    /// Compare what is with what should be: every difference, and how to mend it
    #[command(after_help = CHECK_HELP)]
    Check(Asked),
    /// Print RabbitMQ definitions (JSON), to be imported by somebody else
    #[command(after_help = EXPORT_HELP)]
    Export(Named),
}

#[derive(Debug, Args)]
struct Asked {
    #[command(flatten)]
    named: Named,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `inferq topology …`.
///
/// # Errors
/// `TopologyError::Unfit` if something is not as it should be; others if that could not be found out.
pub fn run(args: &TopologyArgs, config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let (Command::Apply(Asked { named, .. }) | Command::Check(Asked { named, .. }) | Command::Export(named)) =
        &args.command;
    let parts = parts(&config.topology, named.models(config)?.iter().map(String::as_str));
    if let Command::Export(_) = args.command {
        return export::export(&parts, config, out).map_err(|error| match error {
            // As the other commands, so that its exit code is the same.
            ExportError::Broker(error) => error.into(),
            error @ ExportError::Write(_) => error.into(),
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (findings, json) = runtime.block_on(async {
        let connection = connection::connect(&config.broker, "inferq topology").await?;
        let found = match &args.command {
            Command::Apply(asked) => (apply::apply(&connection, config, &parts).await?, asked.json),
            Command::Check(asked) => (check::check(&connection, config, &parts).await?, asked.json),
            Command::Export(_) => (Vec::new(), false),
        };
        close(&connection).await;
        Ok::<_, BrokerError>(found)
    })?;
    print(&findings, json, out)?;
    let count = |is: fn(&Finding) -> bool| findings.iter().filter(|finding| is(finding)).count();
    match count(Finding::is_unfit) {
        0 => Ok(()),
        unfit => Err(TopologyError::Unfit {
            unfit,
            permanent: count(Finding::is_permanent),
            of: findings.len(),
        }
        .into()),
    }
}

/// What was found out about one exchange or queue, or done about it.
#[derive(Debug, Serialize)]
struct Finding {
    kind: &'static str,
    name: String,
    found: Found,
    differences: Vec<Told>,
    /// Why it could not be compared, in the broker's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    said: Option<String>,
    /// What would make it fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Found {
    Fits,
    Made,
    Missing,
    Differs,
    NotCompared,
}

#[derive(Debug, Serialize)]
struct Told {
    argument: String,
    is: Option<String>,
    should_be: Option<String>,
    /// What to set in the configuration in order to keep what is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    keep: Option<String>,
}

impl Finding {
    fn new(part: &Part, state: State, config: &Config) -> Self {
        let mend = mend(part, &state, config);
        let (found, differences, said) = match state {
            State::Fits => (Found::Fits, Vec::new(), None),
            State::Missing => (Found::Missing, Vec::new(), None),
            State::Differs(differences) => (Found::Differs, differences, None),
            State::NotCompared(said) => (Found::NotCompared, Vec::new(), Some(said)),
        };
        Self {
            kind: match part.kind {
                Kind::Exchange => "exchange",
                Kind::Queue => "queue",
            },
            name: part.name.to_string(),
            found,
            differences: differences
                .into_iter()
                .map(|difference| told(part, difference))
                .collect(),
            said,
            mend,
        }
    }

    fn is_unfit(&self) -> bool {
        match self.found {
            Found::Fits | Found::Made => false,
            Found::Missing | Found::Differs | Found::NotCompared => true,
        }
    }

    /// True of what no second try finds otherwise.
    fn is_permanent(&self) -> bool {
        match self.found {
            Found::Fits | Found::Made | Found::Missing => false,
            Found::Differs => true,
            Found::NotCompared => !self.said.as_deref().is_some_and(is_locked),
        }
    }
}

/// True of the broker's words on a queue that belongs to another connection and goes with it.
fn is_locked(said: &str) -> bool {
    said.contains("RESOURCE_LOCKED")
}

fn told(part: &Part, difference: Difference) -> Told {
    let of_jobs = part.arguments.contains_key("x-dead-letter-exchange");
    let keep = match (difference.argument.as_str(), difference.is.as_deref()) {
        ("x-delivery-limit", Some(is)) if of_jobs => Some(format!("topology.delivery_limit = {is}")),
        ("x-queue-type", Some(is @ ("classic" | "quorum"))) => Some(format!("topology.queue_type = \"{is}\"")),
        _ => None,
    };
    Told {
        argument: difference.argument,
        is: difference.is,
        should_be: difference.should_be,
        keep,
    }
}

/// Nothing that exists can be changed, in RabbitMQ: it has to be made anew.
fn mend(part: &Part, state: &State, config: &Config) -> Option<String> {
    let vhost = connection::vhost(&config.broker).unwrap_or_else(|_| "/".to_owned());
    let name = &part.name;
    match (state, part.kind) {
        (State::Fits, _) => None,
        (State::Missing, _) => Some("`inferq topology apply` makes it".to_owned()),
        (State::NotCompared(said), _) if is_locked(said) => Some(
            "it is exclusive to another connection, and goes with it: close that one, then `inferq topology apply`"
                .to_owned(),
        ),
        (State::NotCompared(_), kind) => Some(format!(
            "ask as a user with the permission `configure` on {kind} {name}, which comparing needs"
        )),
        (State::Differs(_), Kind::Exchange) => Some(format!(
            "stop who uses it, `rabbitmqadmin --vhost={vhost} delete exchange name={name}` (its bindings go with it), then \
             `inferq topology apply`"
        )),
        (State::Differs(_), Kind::Queue) => Some(format!(
            "stop the workers, let it run empty or move what is in it, `rabbitmqctl delete_queue -p {vhost} {name}`, then \
             `inferq topology apply`"
        )),
    }
}

fn print(findings: &[Finding], json: bool, out: &mut dyn Write) -> io::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, findings)?;
        return writeln!(out);
    }
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    for finding in findings {
        let found = match finding.found {
            Found::Fits => "fits",
            Found::Made => "made",
            Found::Missing => "missing",
            Found::Differs => "differs",
            Found::NotCompared => "exists, but cannot be compared",
        };
        writeln!(out, "{:<8}  {:<width$}  {found}", finding.kind, finding.name)?;
        for told in &finding.differences {
            let difference = Difference {
                argument: told.argument.clone(),
                is: told.is.clone(),
                should_be: told.should_be.clone(),
            };
            writeln!(out, "  {difference}")?;
            if let Some(keep) = &told.keep {
                writeln!(out, "    to keep it: {keep}")?;
            }
        }
        if let Some(said) = &finding.said {
            writeln!(out, "  the broker says: {said}")?;
        }
        if let Some(mend) = &finding.mend {
            writeln!(out, "  to mend it: {mend}")?;
        }
    }
    Ok(())
}

/// One question to the broker that is not waited for longer than to connect.
async fn within<T>(config: &Config, asked: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
    let limit = config.broker.connect_timeout;
    tokio::time::timeout(limit, asked)
        .await
        .unwrap_or(Err(BrokerError::Silent(limit)))
}

async fn close(connection: &Connection) {
    let closing = connection.close(200, "done".into());
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), closing).await;
}

/// Why the answer is no.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    #[error("{unfit} of {of} exchanges and queues are not as they should be")]
    Unfit {
        unfit: usize,
        /// Of those, the ones that stay so until a human acts: what is missing can still be made.
        permanent: usize,
        of: usize,
    },
}

const APPLY_HELP: &str = "\
What exists is compared, as `check` does it, and left as it is; if something differs, the exit code is 3.
`topology.mode` has no part in it.

Examples:
  inferq topology apply                    for all models of the repository
  inferq topology apply digits dense       for these two; no repository needed
  inferq --broker amqp://admin@host/%2f topology apply --json";

const CHECK_HELP: &str = "\
Changes nothing, asks over AMQP only, and ends with 1 if something is only missing, with 3 if something
differs or may not be compared. Comparing needs the permission `configure`; without it only existence
can be seen. Policies and bindings cannot be seen over AMQP:
`rabbitmqctl list_policies` and `rabbitmqctl list_bindings` show them, and `apply` binds anew, which
changes nothing where a binding exists.

Examples:
  inferq topology check
  inferq topology check digits --json
  inferq --set topology.queue_type=classic topology check";

const EXPORT_HELP: &str = "\
Asks no broker. The virtual host is that of broker.uri; it has to exist where the file is imported.

Examples:
  inferq topology export > definitions.json && rabbitmqctl import_definitions definitions.json
  inferq --set topology.prefix=staging topology export digits";

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::from_overrides(&[("broker.uri", "amqp://u:secret@host/blue".to_owned())]).unwrap()
    }

    fn shown(part: &Part, state: State) -> String {
        let mut out = Vec::new();
        print(&[Finding::new(part, state, &config())], false, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn difference(argument: &str, is: Option<&str>) -> Difference {
        Difference {
            argument: argument.to_owned(),
            is: is.map(str::to_owned),
            should_be: Some("10".to_owned()),
        }
    }

    #[test]
    fn a_difference_says_what_to_do_about_it_or_how_to_live_with_it() {
        let [_, _, dead, jobs] = &parts(&config().topology, ["m"])[..] else {
            panic!("four parts")
        };
        let limit = State::Differs(vec![difference("x-delivery-limit", Some("20"))]);

        let of_jobs = shown(jobs, limit.clone());
        let of_dead = shown(dead, limit);

        assert!(of_jobs.contains("x-delivery-limit: is 20, should be 10"), "{of_jobs}");
        assert!(of_jobs.contains("topology.delivery_limit = 20"), "{of_jobs}");
        assert!(
            of_jobs.contains("rabbitmqctl delete_queue -p blue inferq.m"),
            "{of_jobs}"
        );
        // That key is not about dead letters.
        assert!(!of_dead.contains("topology.delivery_limit"), "{of_dead}");
    }

    #[test]
    fn only_what_fits_or_was_made_is_fit() {
        let part = &parts(&config().topology, ["m"])[0];

        let unfit = [
            State::Missing,
            State::Differs(vec![difference("type", Some("fanout"))]),
            State::NotCompared("ACCESS_REFUSED".to_owned()),
        ];

        assert!(!Finding::new(part, State::Fits, &config()).is_unfit());
        for state in unfit {
            let finding = Finding::new(part, state, &config());
            assert!(finding.is_unfit() && finding.mend.is_some(), "{finding:?}");
        }
    }
}
