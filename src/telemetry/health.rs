//! Why the worker is not ready, if it is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use tokio::sync::watch;

/// Something that keeps the worker from doing its work.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Models are being loaded and checked.
    Loading,
    ConsumeConnection,
    PublishConnection,
    /// There is no channel to publish replies on.
    Publishing,
    /// The dead letters of this model are not taken.
    DeadLetters(Arc<str>),
    /// A resource alarm of the broker, on the connection of this role.
    Blocked(&'static str),
    /// This model could not be loaded, or did not give what it should.
    Model(Arc<str>),
    /// The consumer of this model is not running.
    Consumer(Arc<str>),
    Draining,
}

impl Condition {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::ConsumeConnection | Self::PublishConnection => "broker",
            Self::Publishing => "replies",
            Self::DeadLetters(_) => "dead-letters",
            Self::Blocked(_) => "blocked",
            Self::Model(_) => "model",
            Self::Consumer(_) => "queue",
            Self::Draining => "draining",
        }
    }
}

/// The set of conditions that hold at the moment, with their reasons; shared by everything that can hold up the work.
#[derive(Debug, Clone)]
pub struct Health {
    conditions: watch::Sender<BTreeMap<Condition, String>>,
    /// What people should know of a worker, ready or not.
    notes: watch::Sender<Vec<String>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            conditions: watch::Sender::new(BTreeMap::new()),
            notes: watch::Sender::new(Vec::new()),
        }
    }
}

impl Health {
    pub fn set(&self, condition: Condition, reason: &str) {
        self.conditions
            .send_if_modified(|conditions| conditions.insert(condition, reason.to_owned()).as_deref() != Some(reason));
    }

    pub fn clear(&self, condition: &Condition) {
        self.conditions
            .send_if_modified(|conditions| conditions.remove(condition).is_some());
    }

    /// Adds a line to what `/readyz` says, which keeps nothing from being ready.
    pub fn note(&self, note: String) {
        self.notes.send_modify(|notes| notes.push(note));
    }

    /// One line a note.
    pub fn notes(&self) -> String {
        self.notes.borrow().iter().map(|note| format!("{note}\n")).collect()
    }

    pub fn is_ready(&self) -> bool {
        self.conditions.borrow().is_empty()
    }

    /// The kinds of conditions that hold.
    pub fn names(&self) -> BTreeSet<&'static str> {
        self.conditions.borrow().keys().map(Condition::name).collect()
    }

    /// One line a condition, `name: reason`; empty when ready.
    pub fn report(&self) -> String {
        let mut text = String::new();
        for (condition, reason) in &*self.conditions.borrow() {
            let _ = writeln!(text, "{}: {reason}", condition.name());
        }
        text
    }

    /// Returns as soon as no condition holds.
    pub async fn ready(&self) {
        let mut conditions = self.conditions.subscribe();
        // The sender lives in `self`, so the channel cannot close here.
        let _ = conditions.wait_for(BTreeMap::is_empty).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_must_be_cleared_before_the_worker_is_ready() {
        let health = Health::default();
        health.set(Condition::Loading, "loading models");
        health.set(Condition::Blocked("publish"), "low on memory");

        health.clear(&Condition::Loading);

        assert!(!health.is_ready());
        assert_eq!(health.report(), "blocked: low on memory\n");
        health.clear(&Condition::Blocked("publish"));
        assert!(health.is_ready());
    }

    #[test]
    fn a_note_keeps_no_worker_from_being_ready() {
        let health = Health::default();

        health.note("not served: old: a link".to_owned());

        assert!(health.is_ready());
        assert_eq!(
            (health.report(), health.notes()),
            (String::new(), "not served: old: a link\n".to_owned())
        );
    }
}
