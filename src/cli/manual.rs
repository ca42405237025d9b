//! `inferq completion` and `inferq man`: what a shell and `man` want to know of this program.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

#[derive(Debug, Args)]
pub struct CompletionArgs {
    shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where the pages go, one a command; made if it is not there
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Runs `inferq completion`.
///
/// # Errors
/// Standard output cannot be written.
pub fn completion(args: &CompletionArgs, mut command: Command, out: &mut impl Write) -> anyhow::Result<()> {
    // Into memory first: the generator panics where it cannot write.
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    Ok(out.write_all(&script)?)
}

/// Runs `inferq man`.
///
/// # Errors
/// The folder cannot be made or written.
pub fn pages(args: &ManArgs, command: Command) -> anyhow::Result<()> {
    let folder = &args.folder;
    let written = std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(command, folder));
    Ok(written.map_err(|cause| NotWritten {
        folder: folder.clone(),
        cause,
    })?)
}

pub const COMPLETION_HELP: &str = "\
Examples:
  inferq completion bash > /etc/bash_completion.d/inferq
  inferq completion zsh > ~/.zfunc/_inferq";

pub const MAN_HELP: &str = "\
Example:
  inferq man /usr/local/share/man/man1";

#[derive(Debug, thiserror::Error)]
#[error("cannot write manual pages into {}", folder.display())]
struct NotWritten {
    folder: PathBuf,
    #[source]
    cause: std::io::Error,
}
