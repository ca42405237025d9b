//! The models that a command is about: those named, or those that a worker would serve.

use clap::Args;

use crate::config::Config;
use crate::model::repository::{NAME_ALLOWED, RepositoryError, is_name, scan};

#[derive(Debug, Args)]
pub struct Named {
    /// The models meant [default: those that a worker with this configuration serves]
    #[arg(value_name = "MODEL", value_parser = model_name)]
    models: Vec<String>,
}

impl Named {
    /// Their names, each once. Where they are given on the command line, nothing is read of the model repository.
    ///
    /// # Errors
    /// None is given, and the repository has a fault.
    pub fn models(&self, config: &Config) -> Result<Vec<String>, RepositoryError> {
        let mut names = self.models.clone();
        if names.is_empty() {
            let found = scan(&config.models.repository, &config.models.load)?;
            names.extend(found.models.into_iter().map(|model| model.name));
            names.extend(config.models.load.iter().cloned());
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}

fn model_name(text: &str) -> Result<String, String> {
    if is_name(text) {
        return Ok(text.to_owned());
    }
    Err(format!("allowed are {NAME_ALLOWED}"))
}
