//! Destinations that take nothing at the moment: what is held back for each, and when it is tried again. Pure.
//!
//! The broker refuses a message, or returns it, for reasons that only time or an operator mends: a queue at its limit, a
//! queue whose node is away, a quorum queue between two leaders. Each such destination is tried by one message at a time, on
//! a channel of its own ([`super::trial`]); everything else for it is held back meanwhile, and everybody else's messages go
//! on. What replies may hold back is bounded, since each keeps its place in the prefetch window: beyond the bound they go to
//! the dead letters. Dead letters have nowhere to go, so they are held back without a bound but that window.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lapin::types::ShortString;
use tokio::time::Instant;
use tracing::{info, warn};

use super::message::Message;
use super::plan::{Fate, Parcel, Parcels};
use crate::broker::backoff::Backoff;
use crate::wire::error::excerpt;

/// Where a message goes: a queue, by the default exchange, or the dead letters of a model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    pub exchange: ShortString,
    pub routing_key: ShortString,
}

impl Destination {
    fn of(message: &Message) -> Self {
        Self {
            exchange: message.exchange.clone(),
            routing_key: message.routing_key.clone(),
        }
    }

    pub fn is_reply_queue(&self) -> bool {
        self.exchange.as_str().is_empty()
    }
}

/// What a trial of a destination found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It took the message.
    Taken,
    /// It refused the message because it is at its limit, and holds so many messages, where that can be seen.
    Full { messages: Option<u32> },
    /// It refused the message for a reason that cannot be seen: between two leaders, or without a majority.
    Refused,
    /// What the broker said: the queue is there, and its node is not; or a place of dead letters is missing.
    Away(String),
    /// There is no such queue.
    Gone,
    /// The broker closes the channel over this very message, as it said.
    Unacceptable(String),
    /// The trial's channel was lost.
    Lost,
}

/// A message that is held back no longer, and why.
pub struct GivenUp {
    pub parcel: Box<Parcel>,
    pub reason: String,
}

/// What follows from a trial.
#[derive(Default)]
pub struct Learned {
    /// The message of the trial, confirmed.
    pub taken: Option<Box<Parcel>>,
    /// What was held back and may go now.
    pub released: Parcels,
    pub given_up: Vec<GivenUp>,
    /// The broker closed the channel over it, and what it said.
    pub unacceptable: Option<(Box<Parcel>, String)>,
    /// The destination took on a new channel what it had refused on the one that all messages share.
    pub channel_is_stale: bool,
}

/// All destinations that take nothing, or did so a moment ago.
pub struct Refusing {
    entries: HashMap<Destination, Entry>,
    /// Replies held back, by model.
    replies: HashMap<Arc<str>, usize>,
    /// How long a reply may wait for a queue that is away.
    unavailable_max: Duration,
}

struct Entry {
    held: VecDeque<Held>,
    phase: Phase,
    why: Why,
    /// When it first refused something, without a quiet time since.
    since: Instant,
    /// When it last refused or took something.
    heard: Instant,
    backoff: Backoff,
    /// Whether the broker is to be asked for the queue before something is published.
    look_first: bool,
    /// Whether something was refused on the channel that all share.
    refused: bool,
    logged: Option<Instant>,
}

struct Held {
    parcel: Box<Parcel>,
    since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It takes messages, as far as anybody knows.
    Open,
    /// It is tried again at this moment.
    Waiting(Instant),
    /// A trial is under way.
    Trying,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Why {
    Unknown,
    Full(Option<u32>),
    Away(String),
}

impl Refusing {
    pub fn new(unavailable_max: Duration) -> Self {
        Self {
            entries: HashMap::new(),
            replies: HashMap::new(),
            unavailable_max,
        }
    }

    /// Whether a message is to be held back, since its destination takes nothing.
    pub fn is_refusing(&self, message: &Message) -> bool {
        // Nearly always there is none, and this is asked for every message.
        if self.entries.is_empty() {
            return false;
        }
        let entry = self.entries.get(&Destination::of(message));
        entry.is_some_and(|entry| entry.phase != Phase::Open)
    }

    /// Replies and dead letters that are held back.
    pub fn held(&self) -> (usize, usize) {
        let all: usize = self.entries.values().map(|entry| entry.held.len()).sum();
        let replies = self.replies.values().sum();
        (replies, all - replies)
    }

    pub fn holds_nothing(&self) -> bool {
        self.entries.values().all(|entry| entry.held.is_empty())
    }

    /// Whether nothing is known of any destination but that it refuses: it may be the connection's fault.
    pub fn is_inexplicable(&self) -> bool {
        let mut refusing = self
            .entries
            .values()
            .filter(|entry| entry.phase != Phase::Open)
            .peekable();
        refusing.peek().is_some() && refusing.all(|entry| entry.why == Why::Unknown)
    }

    /// Holds a message back: one that met this `fate`, or one for a destination that is refusing already.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn hold(
        &mut self,
        parcel: Box<Parcel>,
        destination: Destination,
        fate: Option<Fate>,
        now: Instant,
        jitter: f64,
    ) -> Result<(), GivenUp> {
        let window = parcel.envelope.metrics.prefetch.get();
        let model_held = self.replies.get(&parcel.envelope.model).copied().unwrap_or(0);
        let entry = self
            .entries
            .entry(destination.clone())
            .or_insert_with(|| Entry::new(now));
        if let Some(fate) = fate {
            entry.refuse(fate, now, jitter);
        }
        if destination.is_reply_queue() {
            if !entry.has_room(model_held, window, now) {
                let reason = entry.why.sentence(&destination);
                return Err(GivenUp { parcel, reason });
            }
            *self.replies.entry(parcel.envelope.model.clone()).or_default() += 1;
        }
        entry.held.push_back(Held { parcel, since: now });
        Ok(())
    }

    /// When there is something to do next: a trial, or a message that has waited too long.
    pub fn next_due(&self) -> Option<Instant> {
        let of = |(destination, entry): (&Destination, &Entry)| {
            let first = entry.held.front()?;
            let trial = match entry.phase {
                Phase::Waiting(at) => Some(at),
                Phase::Open | Phase::Trying => None,
            };
            let end = destination.is_reply_queue().then(|| self.end(entry, first));
            trial.into_iter().chain(end).min()
        };
        self.entries.iter().filter_map(of).min()
    }

    /// A message to try its destination with, if one is due, and whether to ask for the queue first.
    pub fn take_due(&mut self, now: Instant) -> Option<(Destination, Box<Parcel>, bool)> {
        let is_due = |entry: &Entry| match entry.phase {
            Phase::Waiting(at) => at <= now && !entry.held.is_empty(),
            Phase::Open | Phase::Trying => false,
        };
        let (destination, entry) = self.entries.iter_mut().find(|(_, entry)| is_due(entry))?;
        let Held { parcel, .. } = entry.held.pop_front()?;
        entry.phase = Phase::Trying;
        let (destination, look_first) = (destination.clone(), entry.look_first);
        self.forget(&destination, &parcel);
        Some((destination, parcel, look_first))
    }

    /// A trial that is not made after all.
    pub fn untried(&mut self, destination: &Destination, now: Instant) {
        if let Some(entry) = self.entries.get_mut(destination) {
            entry.phase = Phase::Waiting(now);
        }
    }

    /// Takes note of what a trial found.
    pub fn found(
        &mut self,
        destination: &Destination,
        parcel: Box<Parcel>,
        finding: Finding,
        now: Instant,
        jitter: f64,
    ) -> Learned {
        let mut learned = Learned::default();
        let Some(entry) = self.entries.get_mut(destination) else {
            learned.released.push(parcel);
            return learned;
        };
        let known = entry.why.clone();
        entry.learn(&finding, destination, now, jitter);
        match finding {
            Finding::Taken => {
                learned.channel_is_stale = entry.refused && known == Why::Unknown;
                entry.refused = false;
                learned.taken = Some(parcel);
                learned.released = self.release(destination);
            }
            Finding::Gone => {
                let reason = format!("the reply queue `{}` does not exist", name(destination));
                let rest = self.release(destination);
                let given_up = std::iter::once(parcel).chain(rest);
                learned.given_up = given_up
                    .map(|parcel| GivenUp {
                        parcel,
                        reason: reason.clone(),
                    })
                    .collect();
                self.entries.remove(destination);
            }
            Finding::Unacceptable(said) => learned.unacceptable = Some((parcel, said)),
            Finding::Full { .. } | Finding::Refused | Finding::Away(_) | Finding::Lost => {
                self.put_back(destination, parcel, now, &mut learned);
            }
        }
        learned
    }

    /// Gives up what has waited too long, and forgets destinations that have been quiet.
    pub fn expire(&mut self, now: Instant) -> Vec<GivenUp> {
        let mut given_up = Vec::new();
        let destinations: Vec<_> = self
            .entries
            .keys()
            .filter(|own| own.is_reply_queue())
            .cloned()
            .collect();
        for destination in destinations {
            while let Some(entry) = self.entries.get(&destination)
                && let Some(first) = entry.held.front()
                && self.end(entry, first) <= now
            {
                given_up.extend(self.pop(&destination, false));
            }
        }
        let crowded = self.entries.len() > ENTRIES_MAX;
        self.entries.retain(|_, entry| {
            let quiet = crowded || now.saturating_duration_since(entry.heard) > QUIET;
            !entry.held.is_empty() || entry.phase == Phase::Trying || !quiet
        });
        given_up
    }

    /// Everything that is held back, for a worker that stops or has no connection.
    pub fn take_all(&mut self) -> Parcels {
        let all = self.entries.values_mut().flat_map(|entry| entry.held.drain(..));
        let all = all.map(|held| held.parcel).collect();
        self.replies.clear();
        all
    }

    /// The models whose dead letters are not taken, and why.
    pub fn dead_letters(&self) -> Vec<(Arc<str>, String)> {
        let is_stuck = |(destination, entry): &(&Destination, &Entry)| {
            !destination.is_reply_queue() && entry.phase != Phase::Open && entry.logged.is_some()
        };
        let stuck = self.entries.iter().filter(is_stuck);
        stuck
            .map(|(destination, entry)| {
                let jobs = entry.held.len() + usize::from(entry.phase == Phase::Trying);
                let reason = entry.why.sentence(destination);
                (
                    destination.routing_key.as_str().into(),
                    format!("{reason}; jobs that wait for it: {jobs}"),
                )
            })
            .collect()
    }

    /// The moment at which a reply is held back no longer.
    fn end(&self, entry: &Entry, held: &Held) -> Instant {
        let end = match entry.why {
            Why::Full(_) => entry.since.min(held.since) + FULL_MAX,
            Why::Unknown | Why::Away(_) => held.since + self.unavailable_max,
        };
        held.parcel.envelope.deadline.map_or(end, |deadline| deadline.min(end))
    }

    fn put_back(&mut self, destination: &Destination, parcel: Box<Parcel>, now: Instant, learned: &mut Learned) {
        let Some(entry) = self.entries.get_mut(destination) else {
            return learned.released.push(parcel);
        };
        if !destination.is_reply_queue() {
            return entry.held.push_front(Held { parcel, since: now });
        }
        if entry.is_closed(now) {
            let reason = entry.why.sentence(destination);
            learned.given_up.push(GivenUp { parcel, reason });
        } else {
            // It has waited since the destination began to refuse, or nearly.
            let since = entry.held.front().map_or(entry.since, |held| held.since);
            let window = parcel.envelope.metrics.prefetch.get();
            let model = parcel.envelope.model.clone();
            entry.held.push_front(Held { parcel, since });
            *self.replies.entry(model.clone()).or_default() += 1;
            self.trim(destination, &model, window, now, learned);
        }
    }

    /// Gives up the newest of what is too much, now that more is known of the destination.
    fn trim(
        &mut self,
        destination: &Destination,
        model: &Arc<str>,
        window: usize,
        now: Instant,
        learned: &mut Learned,
    ) {
        while let Some(entry) = self.entries.get(destination)
            && !entry.held.is_empty()
            && entry.is_above(self.replies.get(model).copied().unwrap_or(0), window, now)
        {
            learned.given_up.extend(self.pop(destination, true));
        }
    }

    fn pop(&mut self, destination: &Destination, newest: bool) -> Option<GivenUp> {
        let entry = self.entries.get_mut(destination)?;
        let held = if newest {
            entry.held.pop_back()
        } else {
            entry.held.pop_front()
        };
        let parcel = held?.parcel;
        let reason = entry.why.sentence(destination);
        self.forget(destination, &parcel);
        Some(GivenUp { parcel, reason })
    }

    fn release(&mut self, destination: &Destination) -> Parcels {
        let Some(entry) = self.entries.get_mut(destination) else {
            return Vec::new();
        };
        let released: Parcels = entry.held.drain(..).map(|held| held.parcel).collect();
        for parcel in &released {
            self.forget(destination, parcel);
        }
        released
    }

    fn forget(&mut self, destination: &Destination, parcel: &Parcel) {
        if destination.is_reply_queue()
            && let Some(held) = self.replies.get_mut(&parcel.envelope.model)
        {
            *held = held.saturating_sub(1);
        }
    }
}

impl Entry {
    fn new(now: Instant) -> Self {
        Self {
            held: VecDeque::new(),
            phase: Phase::Waiting(now),
            why: Why::Unknown,
            since: now,
            heard: now,
            backoff: Backoff::new(WAIT_MAX),
            look_first: false,
            refused: false,
            logged: None,
        }
    }

    fn refuse(&mut self, fate: Fate, now: Instant, jitter: f64) {
        self.look_first |= fate == Fate::Returned;
        self.refused |= fate == Fate::Refused;
        if self.phase == Phase::Open {
            if now.saturating_duration_since(self.heard) > QUIET {
                (self.since, self.why) = (now, Why::Unknown);
                self.backoff.reset();
            }
            self.phase = Phase::Waiting(now + self.backoff.next(jitter));
        }
        self.heard = now;
    }

    fn learn(&mut self, finding: &Finding, destination: &Destination, now: Instant, jitter: f64) {
        self.heard = now;
        match finding {
            Finding::Taken => {
                if self.logged.take().is_some() {
                    info!("{} takes messages again", place(destination));
                }
                self.phase = Phase::Open;
                return;
            }
            Finding::Full { messages } => self.why = Why::Full(*messages),
            Finding::Away(said) => (self.why, self.look_first) = (Why::Away(said.clone()), true),
            // A full queue stays full when its length cannot be seen for once.
            Finding::Refused if matches!(self.why, Why::Away(_)) => self.why = Why::Unknown,
            Finding::Refused | Finding::Gone | Finding::Unacceptable(_) | Finding::Lost => {}
        }
        self.phase = Phase::Waiting(now + self.backoff.next(jitter));
        let is_news = *finding != Finding::Gone && *finding != Finding::Lost;
        if is_news
            && self
                .logged
                .is_none_or(|logged| now.saturating_duration_since(logged) >= LOG_AGAIN)
        {
            self.logged = Some(now);
            warn!("{}; messages for it are held back", self.why.sentence(destination));
        }
    }

    /// Whether a full queue has been full for so long that nothing is held back for it any more.
    fn is_closed(&self, now: Instant) -> bool {
        matches!(self.why, Why::Full(_)) && now.saturating_duration_since(self.since) >= FULL_MAX
    }

    fn has_room(&self, model_held: usize, window: usize, now: Instant) -> bool {
        // One now and then, to find out whether it takes messages again.
        let is_trial = self.held.is_empty() && matches!(self.phase, Phase::Waiting(at) if at <= now);
        let (each, all) = self.bounds(window, now);
        is_trial || !self.is_closed(now) && self.held.len() < each && model_held < all
    }

    fn is_above(&self, model_held: usize, window: usize, now: Instant) -> bool {
        let (each, all) = self.bounds(window, now);
        self.held.len() > each || model_held > all
    }

    /// The most that may be held back for this queue, and for all queues of a model together. Without a reason a new leader
    /// may be a moment away, and nobody is to blame: then it is the window itself.
    fn bounds(&self, window: usize, now: Instant) -> (usize, usize) {
        if self.why == Why::Unknown && now.saturating_duration_since(self.since) < ELECTION {
            (usize::MAX, usize::MAX)
        } else {
            (HELD_MAX, (window / 4).max(1))
        }
    }
}

impl Why {
    fn sentence(&self, destination: &Destination) -> String {
        let place = place(destination);
        match self {
            Self::Full(Some(messages)) => format!("{place} is full ({messages} messages)"),
            Self::Full(None) => format!("{place} is full"),
            // A text of AMQP has 255 bytes at most.
            Self::Away(said) => format!("{place} is not available: {said}"),
            Self::Unknown => format!("{place} refuses messages, and the broker does not say why"),
        }
    }
}

fn place(destination: &Destination) -> String {
    if destination.is_reply_queue() {
        format!("the reply queue `{}`", name(destination))
    } else {
        format!("the dead letter queue of model `{}`", name(destination))
    }
}

fn name(destination: &Destination) -> String {
    excerpt(destination.routing_key.as_str())
}

/// The most replies that are held back for one queue.
const HELD_MAX: usize = 64;
/// A queue that has been full for so long is not waited for.
const FULL_MAX: Duration = Duration::from_secs(5);
/// A new leader is elected within this time.
const ELECTION: Duration = Duration::from_secs(10);
const WAIT_MAX: Duration = Duration::from_secs(2);
/// A destination that refused nothing for so long begins anew.
const QUIET: Duration = Duration::from_secs(10);
const LOG_AGAIN: Duration = Duration::from_secs(60);
const ENTRIES_MAX: usize = 1_024;

#[cfg(test)]
mod tests;
