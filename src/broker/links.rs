//! The connections that consume: one, and further ones where the broker allows fewer channels on a connection than the models
//! of this worker need.

use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::task::TaskTracker;
use tracing::info;

use super::connection::Connected;
use super::link::{Link, Supervisor};
use crate::telemetry::health::Health;

/// Opens connections as they are needed, each kept up by a supervisor of its own.
pub struct Links {
    /// What the supervisor of every connection is made from.
    supervisor: Supervisor,
    supervisors: TaskTracker,
    open: Mutex<Vec<Link>>,
}

/// The broker allows so few channels on a connection that no model can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker allows {allowed} channel on a connection (channel_max), and a model needs {CHANNELS_PER_MODEL}")]
pub struct TooFewChannels {
    allowed: u16,
}

impl Links {
    /// Opens the first connection.
    pub fn new(supervisor: Supervisor, supervisors: TaskTracker) -> Self {
        let links = Self {
            supervisor,
            supervisors,
            open: Mutex::default(),
        };
        links.link(0);
        links
    }

    /// Waits for the connection on which the model of this number has room; `None` once they were closed for good.
    ///
    /// # Errors
    /// There is no room for a model on any connection.
    pub async fn connection(&self, model: usize) -> Result<Option<Arc<Connected>>, TooFewChannels> {
        let Some(first) = self.link(0).connection().await else {
            return Ok(None);
        };
        let allowed = first.configuration().channel_max();
        match model / models_per_connection(allowed)? {
            0 => Ok(Some(first)),
            number => Ok(self.link(number).connection().await),
        }
    }

    fn link(&self, number: usize) -> Link {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        while open.len() <= number {
            let (live, link) = Link::new();
            let mut supervisor = self.supervisor.clone();
            if !open.is_empty() {
                let connections = open.len() + 1;
                info!(
                    "the models need more channels than the broker allows on {} connections; opening number {connections}",
                    open.len()
                );
                supervisor.name = format!("{} {connections}", supervisor.name);
                // Whoever consumes on it reports that it does not.
                supervisor.health = Health::default();
            }
            self.supervisors.spawn(supervisor.run(live));
            open.push(link);
        }
        open[number].clone()
    }
}

/// How many models fit on a connection, with room for the channels that are open for a moment only.
fn models_per_connection(channels: u16) -> Result<usize, TooFewChannels> {
    if channels < CHANNELS_PER_MODEL {
        return Err(TooFewChannels { allowed: channels });
    }
    let models = channels.saturating_sub(CHANNELS_SPARE) / CHANNELS_PER_MODEL;
    Ok(usize::from(models.max(1)))
}

/// One to consume on; and one to ask for the backlog, before that to declare.
const CHANNELS_PER_MODEL: u16 = 2;
/// A channel that is being closed still counts.
const CHANNELS_SPARE: u16 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_has_two_channels_and_two_are_spare() {
        for (channels, models) in [(2, 1), (3, 1), (4, 1), (6, 2), (8, 3), (2047, 1022), (u16::MAX, 32766)] {
            assert_eq!(models_per_connection(channels), Ok(models), "{channels}");
        }
        for channels in [0, 1] {
            let refusal = models_per_connection(channels).unwrap_err().to_string();
            assert!(
                refusal.starts_with(&format!("the broker allows {channels} channel on")),
                "{refusal}"
            );
        }
    }
}
