//! `inferq dead`: the jobs that nobody answered; to be looked at, sent again, or thrown away.

mod letter;
mod list;
mod purge;
mod reader;
mod redrive;
mod show;

use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use lapin::Connection;
use serde::Serialize;

use self::letter::Letter;
use self::reader::Reader;
use super::named::Named;
use crate::broker::compare::{State, compare};
use crate::broker::topology::{Names, parts};
use crate::broker::{BrokerError, connection};
use crate::config::{Config, QueueType};

/// Arguments of `inferq dead`.
#[derive(Debug, Args)]
pub struct DeadArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One line for each dead letter
    #[command(after_help = LIST_HELP)]
    List {
        #[command(flatten)]
        chosen: Chosen,
        /// At most so many letters
        #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// All of a dead letter: the reason, properties, headers, and the inputs by name and shape; never their values
    #[command(after_help = SHOW_HELP)]
    Show {
        #[command(flatten)]
        chosen: Chosen,
        /// At most so many letters
        #[arg(long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Send dead letters again as jobs; each is removed once the broker has confirmed its job
    #[command(after_help = REDRIVE_HELP)]
    Redrive {
        #[command(flatten)]
        chosen: Chosen,
        /// At most so many letters [default: all that are there at the start]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove dead letters for good
    #[command(after_help = PURGE_HELP)]
    Purge {
        #[command(flatten)]
        chosen: Chosen,
        /// At most so many letters [default: all that are there at the start]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
        /// Do it; without this they are only counted
        #[arg(long)]
        yes: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which letters are meant.
#[derive(Debug, Args)]
struct Chosen {
    #[command(flatten)]
    named: Named,
    /// Only those with this code (a status, UNROUTABLE_REPLY, or the broker's own reason such as expired); repeatable
    #[arg(long = "code", value_name = "CODE")]
    codes: Vec<String>,
    /// Only those with this message_id or correlation_id; repeatable
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<String>,
    /// Read a queue even if reading could bring its letters nearer to their deletion (see `inferq topology check`)
    #[arg(long)]
    anyway: bool,
}

impl Chosen {
    fn takes_all(&self) -> bool {
        self.codes.is_empty() && self.ids.is_empty()
    }

    fn takes(&self, letter: &Letter) -> bool {
        let code = letter.reason();
        let of_code = |wanted: &String| wanted.eq_ignore_ascii_case(&code.code);
        let of_id = |wanted: &String| letter.ids().any(|id| id == wanted);
        (self.codes.is_empty() || self.codes.iter().any(of_code)) && (self.ids.is_empty() || self.ids.iter().any(of_id))
    }
}

/// Runs `inferq dead …`.
///
/// # Errors
/// `DeadError` if not all was done that was asked for.
pub fn run(args: &DeadArgs, config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let (Command::List { chosen, .. }
    | Command::Show { chosen, .. }
    | Command::Redrive { chosen, .. }
    | Command::Purge { chosen, .. }) = &args.command;
    let models = chosen.named.models(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let connection = connection::connect(&config.broker, "inferq dead").await?;
        let work = Work {
            connection: &connection,
            config,
            chosen,
            models,
        };
        let done = work.run(&args.command, out).await;
        // What is still held goes back to its queue, whatever happened.
        let closing = connection.close(200, "done".into());
        let _ = tokio::time::timeout(GOODBYE, closing).await;
        Ok(done?)
    })
}

/// What every command works with.
struct Work<'a> {
    connection: &'a Connection,
    config: &'a Config,
    chosen: &'a Chosen,
    models: Vec<String>,
}

impl Work<'_> {
    async fn run(&self, command: &Command, out: &mut dyn Write) -> Result<(), DeadError> {
        match *command {
            Command::List { limit, json, .. } => list::list(self, limit, json, out).await,
            Command::Show { limit, json, .. } => show::show(self, limit, json, out).await,
            Command::Redrive { limit, json, .. } => redrive::redrive(self, limit, json, out).await,
            Command::Purge { limit, yes, json, .. } => purge::purge(self, limit, yes, json, out).await,
        }
    }

    /// The letters of every model in turn, until `limit` of those chosen have been taken; all of them go back.
    async fn look<T>(&self, limit: u32, mut take: impl FnMut(Letter) -> T) -> Result<Vec<T>, DeadError> {
        let mut taken = Vec::new();
        for model in &self.models {
            let mut reader = self.open(model, Returns::Some).await?;
            let mut left = (limit as usize).saturating_sub(taken.len());
            while left > 0
                && let Some((_, letter)) = reader.next().await?
            {
                if self.chosen.takes(&letter) {
                    taken.push(take(letter));
                    left -= 1;
                }
            }
            reader.close().await?;
        }
        Ok(taken)
    }

    /// Opens the dead letters of a model.
    async fn open<'a>(&self, model: &'a str, returns: Returns) -> Result<Reader<'a>, DeadError> {
        let queue = Names::new(&self.config.topology.prefix).dead_queue(model);
        let reader = Reader::open(self.connection, self.config.broker.connect_timeout, model, queue).await?;
        if returns == Returns::Some && !self.chosen.anyway {
            self.check_delivery_limit(model).await?;
        }
        Ok(reader)
    }

    /// Whether letters may be looked at without coming nearer to their deletion. A classic queue counts nothing.
    async fn check_delivery_limit(&self, model: &str) -> Result<(), DeadError> {
        const ARGUMENT: &str = "x-delivery-limit";
        let mut quorum = self.config.topology.clone();
        quorum.queue_type = QueueType::Quorum;
        let dead = Names::new(&quorum.prefix).dead_queue(model);
        let Some(part) = parts(&quorum, [model]).into_iter().find(|part| part.name == dead) else {
            return Ok(());
        };
        let limit = self.config.broker.connect_timeout;
        let compared = tokio::time::timeout(limit, compare(self.connection, &part)).await;
        match compared.unwrap_or(Err(BrokerError::Silent(limit)))? {
            State::Differs(differences) => {
                let classic = differences
                    .iter()
                    .any(|found| found.argument == "x-queue-type" && found.is.as_deref() == Some("classic"));
                match differences.into_iter().find(|found| found.argument == ARGUMENT) {
                    Some(found) if !classic => Err(DeadError::Endangered {
                        queue: dead.to_string(),
                        is: found.is.unwrap_or_else(|| "not set".to_owned()),
                    }),
                    _ => Ok(()),
                }
            }
            State::NotCompared(said) => {
                eprintln!(
                    "inferq: warning: whether queue `{dead}` has the {ARGUMENT} that lets letters be read without harm is \
                     not known ({said})"
                );
                Ok(())
            }
            State::Fits | State::Missing => Ok(()),
        }
    }
}

/// Whether letters are put back after they were read, which a quorum queue may count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Returns {
    Some,
    /// None but those that cannot be removed, which is an error.
    None,
}

fn print<T: Serialize>(
    answer: &[T],
    json: bool,
    text: impl FnOnce(&[T]) -> String,
    out: &mut dyn Write,
) -> io::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, answer)?;
        return writeln!(out);
    }
    out.write_all(text(answer).as_bytes())
}

/// Why not all was done that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum DeadError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
    #[error(
        "queue `{queue}`: x-delivery-limit is {is}, so reading it could bring its letters nearer to their deletion; \
         `inferq topology check` says how to mend it, and --anyway reads it all the same"
    )]
    Endangered { queue: String, is: String },
    #[error("{letters} letters would be removed for good, and none was; repeat it with --yes")]
    NotSure { letters: u64 },
    #[error("{refused} letters could not be sent again and are still dead letters: {why}")]
    Refused { refused: u64, why: String },
    #[error("stopped after {done} letters were {what}")]
    Interrupted {
        done: u64,
        what: &'static str,
        #[source]
        source: BrokerError,
    },
}

const GOODBYE: Duration = Duration::from_secs(2);

const LIST_HELP: &str = "\
Looking takes letters off their queue and puts them back. Meanwhile nobody else sees them; afterwards
they are marked as redelivered, and their order may be another. DELIVERIES are those of the job before
it died.

Examples:
  inferq dead list
  inferq dead list digits --code UNROUTABLE_REPLY --limit 20
  inferq dead list --json | jq -r '.[].code' | sort | uniq -c";

const SHOW_HELP: &str = "\
Looking takes letters off their queue and puts them back, as `inferq dead list` does.

Examples:
  inferq dead show digits
  inferq dead show digits --id order-4711 --json";

const REDRIVE_HELP: &str = "\
A letter is published to the front door, mandatory, with the properties and headers that its job had,
and removed when the broker has confirmed it. Left out: what was added when it died, a deadline that has
passed, and expiration and user_id, which are lost. A version is pinned only if the job had pinned one.
Letters that die again meanwhile are left for the next time. If this is interrupted, a few letters may
be sent and still be there.

Examples:
  inferq dead redrive digits
  inferq dead redrive --code INTERNAL --code delivery_limit --limit 100
  inferq dead redrive digits --id order-4711";

const PURGE_HELP: &str = "\
Without --yes nothing is removed: the letters are counted, and the exit code is 1.

Examples:
  inferq dead purge digits --code INVALID_ARGUMENT
  inferq dead purge digits --yes";
