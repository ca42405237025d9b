//! A connection that is kept up: reconnects with full jitter and tells its users of every new one.
//!
//! Users take the connection of the moment, work on it until it fails, and come back for the next. What they had in
//! hand belongs to the old one and is never settled on the new: the broker has already requeued it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::protocol::AMQPErrorKind;
use lapin::{Connection, ErrorKind, Event};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::backoff::{Failure, Patience};
use super::bodies::Bodies;
use super::connection::{self, Connected};
use super::failure_of;
use super::turn::Turn;
use crate::config::BrokerConfig;
use crate::error::chain;
use crate::telemetry::health::{Condition, Health};
use crate::telemetry::metrics::LinkMetrics;

/// What a connection is for. A memory alarm stops the publishing one entirely, so consuming has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Consume,
    Publish,
}

impl Role {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Consume => "consume",
            Self::Publish => "publish",
        }
    }

    /// The condition that holds while the connection does not work.
    pub const fn down(self) -> Condition {
        match self {
            Self::Consume => Condition::ConsumeConnection,
            Self::Publish => Condition::PublishConnection,
        }
    }
}

/// A user's end: the connection of the moment.
#[derive(Clone)]
pub struct Link {
    live: watch::Receiver<Option<Arc<Connected>>>,
}

/// The supervisor's end of a link.
pub type Live = watch::Sender<Option<Arc<Connected>>>;

impl Link {
    pub fn new() -> (Live, Self) {
        let (live, receiver) = watch::channel(None);
        (live, Self { live: receiver })
    }

    /// Waits until there is a connection that works; `None` once the link was closed for good.
    pub async fn connection(&mut self) -> Option<Arc<Connected>> {
        let usable = |live: &Option<Arc<Connected>>| live.as_ref().is_some_and(|c| c.status().connected());
        loop {
            if let Some(connection) = self.live.borrow_and_update().clone()
                && connection.status().connected()
            {
                return Some(connection);
            }
            self.live.wait_for(usable).await.ok()?;
        }
    }

    /// Waits until `connection` is not the connection of the moment any more.
    pub async fn ended(&self, connection: &Arc<Connected>) {
        let is_another = |live: &Option<Arc<Connected>>| !live.as_ref().is_some_and(|c| Arc::ptr_eq(c, connection));
        // Without a supervisor there will be none.
        let _ = self.live.clone().wait_for(is_another).await;
    }
}

/// Keeps one connection up until `closed` fires, then closes it.
#[derive(Clone)]
pub struct Supervisor {
    pub role: Role,
    pub config: BrokerConfig,
    /// The worker's name; the broker shows it with the role behind it.
    pub name: String,
    /// What is delivered on it counts among these.
    pub bodies: Option<Bodies>,
    pub health: Health,
    pub metrics: LinkMetrics,
    pub closed: CancellationToken,
}

impl Supervisor {
    /// Runs until `closed` fires.
    pub async fn run(self, live: Live) {
        let mut patience = Patience::new(self.config.reconnect_max);
        let mut turn = Turn::default();
        let name = format!("{} {}", self.name, self.role.name());
        loop {
            let secrets = connection::secrets(&self.config);
            let connected = tokio::select! {
                connected = connection::connect_next(&self.config, &name, &mut turn, self.bodies.as_ref()) => connected,
                () = self.closed.cancelled() => return,
            };
            let failure = match connected {
                Ok(connection) => {
                    let since = tokio::time::Instant::now();
                    let failure = self.serve(Arc::new(connection), &live).await;
                    if self.closed.is_cancelled() {
                        // Closed on purpose.
                        return;
                    }
                    let was_stable = since.elapsed() > STABLE;
                    if was_stable {
                        patience.reset();
                    }
                    if turn.is_next_at_once(was_stable) {
                        continue;
                    }
                    failure
                }
                Err(error) => {
                    self.metrics.failures.inc();
                    let reason = chain(&error);
                    self.health.set(self.role.down(), &reason);
                    warn!(connection = self.role.name(), "{reason}");
                    error.failure()
                }
            };
            let pause = patience.after(failure, fastrand::f64());
            info!(connection = self.role.name(), "trying again within {:?}", pause.most);
            tokio::select! {
                () = tokio::time::sleep(pause.wait) => {}
                // Somebody has acted: what failed may do now.
                () = self.other_secrets(secrets) => {}
                () = self.closed.cancelled() => return,
            }
        }
    }

    /// Returns when the files of the configuration no longer hold what they did when `seen` was taken.
    async fn other_secrets(&self, seen: u64) {
        while connection::secrets(&self.config) == seen {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Returns whose move it is when the connection has ended.
    async fn serve(&self, connection: Arc<Connected>, live: &Live) -> Failure {
        let mut events = Box::pin(connection.events_listener());
        self.health.clear(&self.role.down());
        self.metrics.connects.inc();
        self.metrics.up.inc();
        info!(
            connection = self.role.name(),
            broker = connection.address,
            "connected to the broker"
        );
        live.send_replace(Some(connection.clone()));
        let reason = tokio::select! {
            biased;
            () = self.closed.cancelled() => None,
            reason = self.watch(&connection, &mut events) => Some(reason),
        };
        live.send_replace(None);
        self.metrics.up.dec();
        self.health.clear(&Condition::Blocked(self.role.name()));
        match reason {
            Some((reason, failure)) => {
                self.health.set(self.role.down(), &reason);
                self.metrics.lost.inc();
                warn!(connection = self.role.name(), "lost the broker: {reason}");
                failure
            }
            None => {
                close(&connection).await;
                Failure::Outage
            }
        }
    }

    /// Returns why the connection ended, and whose move it is.
    async fn watch(
        &self,
        connection: &Connection,
        events: &mut (impl futures_util::Stream<Item = Event> + Unpin),
    ) -> (String, Failure) {
        let blocked = || Condition::Blocked(self.role.name());
        let mut said = None;
        while connection.status().connected() {
            // Some ends come without an event, so the status is looked at from time to time.
            let Ok(event) = tokio::time::timeout(LOOK_AGAIN, events.next()).await else {
                continue;
            };
            match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    warn!(connection = self.role.name(), "blocked by the broker: {reason}");
                    self.health.set(blocked(), &format!("blocked by the broker: {reason}"));
                }
                Some(Event::ConnectionUnblocked) => {
                    info!(connection = self.role.name(), "unblocked by the broker");
                    self.health.clear(&blocked());
                }
                // Also sent for a channel's error, which its user deals with and which ends no connection.
                Some(Event::Error(error)) if is_of_a_channel(&error) => {}
                // A limit of the user or of the node is a refusal as well.
                Some(Event::Error(error)) => said = Some((error.to_string(), failure_of(&error))),
                Some(_) => {}
                None => break,
            }
        }
        said.unwrap_or_else(|| ("the connection was closed".to_owned(), Failure::Outage))
    }
}

fn is_of_a_channel(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(said) if matches!(said.kind(), AMQPErrorKind::Soft(_)))
}

/// Ends a connection that does not answer, so that its supervisor makes the next.
pub fn give_up(connection: &Arc<Connected>) {
    let connection = connection.clone();
    tokio::spawn(async move { close(&connection).await });
}

async fn close(connection: &Connection) {
    let closing = connection.close(200, "bye".into());
    // A blocked or dead connection never says goodbye; the broker notices when the socket goes.
    let _ = tokio::time::timeout(GOODBYE, closing).await;
}

/// A connection that lasted this long was good; the next failure is a new one.
const STABLE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const GOODBYE: Duration = Duration::from_secs(1);
