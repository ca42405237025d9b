//! The program's other commands, run to their end.

use std::process::Stdio;

use serde_json::Value;
use tokio::process::{Child, Command};

use super::{Scene, root, test_models, within};

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Scene {
    /// Runs `inferq` on this scene's broker with its prefix and the test models.
    pub async fn inferq(&self, arguments: &[&str]) -> Ran {
        self.inferq_with(&[], arguments).await
    }

    /// [`Scene::inferq`] with other settings beside, or instead of, those of the scene.
    pub async fn inferq_with(&self, settings: &[(&str, &str)], arguments: &[&str]) -> Ran {
        finish(self.start_inferq(settings, arguments)).await
    }

    /// Starts what [`Scene::inferq_with`] runs, without waiting for its end.
    pub fn start_inferq(&self, settings: &[(&str, &str)], arguments: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_inferq"));
        #[expect(clippy::disallowed_methods, reason = "read to keep it from the child")]
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("INFERQ_") {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .current_dir(root())
            .env("INFERQ_BROKER__URI", &self.uri)
            .env("INFERQ_TOPOLOGY__PREFIX", &self.prefix)
            .env("INFERQ_MODELS__REPOSITORY", test_models())
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the inferq binary starts")
    }
}

/// Waits for the end of a command.
pub async fn finish(child: Child) -> Ran {
    let output = within("inferq to end", child.wait_with_output()).await;
    let output = output.expect("its output can be read");
    let ran = Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    assert!(!ran.stderr.contains("panicked"), "{ran:?}");
    ran
}

impl Ran {
    /// Checks that it ended with 0, and returns what it printed.
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        &self.stdout
    }

    /// Checks that it ended with 1, with one sentence; returns what it printed before.
    pub fn failed(&self) -> &str {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(self.stderr.starts_with("inferq: "), "{self:?}");
        &self.stdout
    }

    /// As [`Self::failed`], of what another try would meet as well: it ended with 3.
    pub fn refused(&self) -> &str {
        assert_eq!(self.code, Some(3), "{self:?}");
        assert!(self.stderr.starts_with("inferq: "), "{self:?}");
        &self.stdout
    }

    /// What it printed, as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
