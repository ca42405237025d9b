//! What is published for a job, and what its fate means (DESIGN, sections 2.3 and 2.4). Pure but for the settling.

use std::time::Duration;

use lapin::types::ShortString;
use tokio::time::Instant;
use tracing::{debug, error};

use super::decode::Envelope;
use super::message::{self, Author, DeadReason, Message};
use super::refusing::Destination;
use super::reply::{Answer, Outcome};
use super::settle::Verdict;
use crate::broker::backoff::Backoff;
use crate::config::Unroutable;
use crate::error::JobError;
use crate::telemetry::export;
use crate::telemetry::metrics::ReplyMetrics;
use crate::telemetry::trace::CONFIRMED;
use crate::wire::error::excerpt;
use crate::wire::status::{Status, UNROUTABLE_REPLY};

/// A job on its last leg: what it still needs before it can be settled.
pub struct Parcel {
    pub envelope: Box<Envelope>,
    outcome: Outcome,
    /// Where the job goes when its reply is out, or could not be.
    dead: Option<DeadReason>,
    kind: Kind,
}

/// Parcels travel in boxes from beginning to end.
pub type Parcels = Vec<Box<Parcel>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reply,
    DeadLetter,
}

impl Parcel {
    pub fn is_dead_letter(&self) -> bool {
        self.kind == Kind::DeadLetter
    }

    /// What is being published for the job.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Reply => "reply",
            Kind::DeadLetter => "dead letter",
        }
    }

    /// The broker has said what became of the message.
    pub fn landed(&mut self, published: Instant, confirmed: Instant, fate: Fate) {
        self.envelope.confirmed = Some(confirmed);
        let what = self.kind_name();
        if let Some(trace) = self.envelope.trace() {
            trace.sent(what, published, confirmed, fate.name());
        }
    }

    /// Whether nothing else should be under way with it: a direct reply to a job that came back.
    ///
    /// RabbitMQ 3.10 closes the connection over a name that only looks like a direct reply-to, and says of none which it
    /// was. So whatever was under way goes back once, and when the job returns the culprit stands alone.
    pub fn flies_alone(&self) -> bool {
        self.kind == Kind::Reply && self.envelope.redelivered && message::is_direct(&self.envelope)
    }

    /// Leaves the job to another worker.
    pub fn give_back(self) {
        self.envelope.settle(Verdict::GiveBack);
    }
}

/// What the broker made of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Confirmed,
    /// Confirmed, and returned: no queue wanted it.
    Returned,
    /// Not confirmed: the queue is full or its process failed.
    Refused,
}

impl Fate {
    fn name(self) -> &'static str {
        match self {
            Self::Confirmed => CONFIRMED,
            Self::Returned => "returned",
            Self::Refused => "refused",
        }
    }
}

/// What to do now.
pub enum Next {
    Publish(Box<Parcel>, Message),
    /// Its destination did not take it: held back until that takes messages again.
    HoldBack(Box<Parcel>, Fate),
    /// Back to the queue, but not before the next wait is over.
    RetryAfter(Backoff, Box<Envelope>),
    /// The same, for a job that only another worker can do.
    GiveBackAfter(Backoff, Box<Envelope>),
    Settled,
}

/// The rules.
pub struct Plan {
    pub author: Author,
    pub unroutable: Unroutable,
    /// Whether the job queues count no deliveries.
    pub uncounted: bool,
    pub metrics: ReplyMetrics,
}

impl Plan {
    /// The first step for an answer.
    pub fn start(&self, answer: Answer) -> Next {
        let Answer { mut envelope, outcome } = answer;
        if !envelope.receipt.is_current() {
            return self.stale();
        }
        if let Outcome::Failure(JobError::VersionElsewhere { .. }) = outcome {
            // Brokers before RabbitMQ 4.3 count such returns as well, so that the pauses grow; of others they have to be long.
            let returns = envelope.delivery_count.max(ELSEWHERE_RETURNS_MIN);
            return Next::GiveBackAfter(Backoff::after(returns, ELSEWHERE_WAIT_MAX), envelope);
        }
        let outcome = match outcome {
            Outcome::Failure(error) => Outcome::Failure(self.final_error(error, &envelope)),
            result @ Outcome::Result { .. } => result,
        };
        let status = outcome.status();
        let total = envelope.arrived.elapsed();
        envelope.metrics.answered(status, total);
        if let Some(trace) = envelope.trace() {
            trace.answered(status);
        }
        log(&envelope, status, total);
        let reply = message::reply(&envelope, &outcome);
        let dead = match (&outcome, status) {
            (_, Status::Unavailable) => {
                // At once it would find the same memory, and be at the delivery limit within milliseconds.
                let backoff = Backoff::after(envelope.delivery_count, UNAVAILABLE_WAIT_MAX);
                return Next::RetryAfter(backoff, envelope);
            }
            // The sender learns of it from the reply, where it asked for one.
            (_, Status::InvalidArgument | Status::NotFound) if reply.is_some() => None,
            // A late job is nobody's fault worth keeping.
            (_, Status::DeadlineExceeded) | (Outcome::Result { .. }, _) => None,
            (Outcome::Failure(error), _) => Some(DeadReason {
                code: status.name(),
                error: error.to_string(),
            }),
        };
        let parcel = Box::new(Parcel {
            envelope,
            outcome,
            dead,
            kind: Kind::Reply,
        });
        match reply {
            Some(reply) => Next::Publish(parcel, reply),
            None => self.bury(parcel),
        }
    }

    /// A classic queue counts no deliveries, so a second lack of memory there is the last.
    fn final_error(&self, error: JobError, envelope: &Envelope) -> JobError {
        match error {
            JobError::Unavailable(why) if self.uncounted && envelope.redelivered => JobError::Failed(why),
            error => error,
        }
    }

    /// The next step, now that the fate of the parcel's message is known.
    pub fn after(&self, parcel: Box<Parcel>, fate: Fate) -> Next {
        match (parcel.kind, fate) {
            (Kind::Reply, Fate::Confirmed) => {
                self.metrics.replied.inc();
                self.bury(parcel)
            }
            (Kind::DeadLetter, Fate::Confirmed) => {
                if let Some(reason) = &parcel.dead {
                    parcel.envelope.metrics.dead_lettered(reason.code);
                }
                parcel.envelope.settle(Verdict::Ack);
                Next::Settled
            }
            // Its sender has often gone meanwhile, and nobody waits for that queue.
            (Kind::Reply, Fate::Returned) if parcel.outcome.status() == Status::DeadlineExceeded => {
                let error = format!("the reply queue `{}` does not exist", queue(&parcel));
                self.unroutable(parcel, error)
            }
            (_, Fate::Refused | Fate::Returned) if !parcel.envelope.receipt.is_current() => self.stale(),
            (_, Fate::Refused | Fate::Returned) => Next::HoldBack(parcel, fate),
        }
    }

    /// The next step for a message that is held back no longer, because of `error`.
    ///
    /// A dead letter that the broker never takes leaves the job in its queue: at the delivery limit RabbitMQ moves it itself.
    pub fn turn_away(&self, parcel: Box<Parcel>, error: String) -> Next {
        match parcel.kind {
            Kind::Reply => self.unroutable(parcel, error),
            Kind::DeadLetter => {
                error!(model.name = %parcel.envelope.model, "a dead letter is not taken, the job goes back: {error}");
                parcel.envelope.settle(Verdict::Retry);
                Next::Settled
            }
        }
    }

    /// Where the message of a parcel goes.
    pub fn destination(&self, parcel: &Parcel) -> Destination {
        match parcel.kind {
            Kind::Reply => Destination {
                exchange: ShortString::default(),
                routing_key: message::reply_to(&parcel.envelope).cloned().unwrap_or_default(),
            },
            Kind::DeadLetter => Destination {
                exchange: self.author.names.dead_exchange(),
                routing_key: ShortString::try_new(&*parcel.envelope.model).unwrap_or_default(),
            },
        }
    }

    /// The same step once more, for a message of which nobody knows whether it went out.
    pub fn again(&self, parcel: Box<Parcel>) -> Next {
        if !parcel.envelope.receipt.is_current() {
            return self.stale();
        }
        match self.message(&parcel) {
            Some(message) => Next::Publish(parcel, message),
            None => Next::Settled,
        }
    }

    /// The next step for a message that makes the broker close the channel, as it would do again.
    ///
    /// The sender gets an error in the place of such a reply, and somebody must see the dead letter. A dead letter is held
    /// back: its exchange may be missing.
    pub fn outlaw(&self, mut parcel: Box<Parcel>, said: &str) -> Next {
        if !parcel.envelope.receipt.is_current() {
            return self.stale();
        }
        match (parcel.kind, &parcel.outcome) {
            (Kind::Reply, Outcome::Result { .. }) => {
                let refused = JobError::ReplyRefused { said: excerpt(said) };
                parcel.dead = Some(DeadReason {
                    code: refused.status().name(),
                    error: refused.to_string(),
                });
                if let Some(trace) = parcel.envelope.trace() {
                    trace.answered(refused.status());
                }
                parcel.outcome = Outcome::Failure(refused);
                self.again(parcel)
            }
            (Kind::Reply, Outcome::Failure(_)) => {
                let error = format!("the broker does not take the reply: {}", excerpt(said));
                self.unroutable(parcel, error)
            }
            (Kind::DeadLetter, _) => Next::HoldBack(parcel, Fate::Returned),
        }
    }

    /// The next step for a direct reply over which the broker closed the connection: an error in its place would go to the
    /// same name.
    pub fn condemn(&self, parcel: Box<Parcel>, said: &str) -> Next {
        if !parcel.envelope.receipt.is_current() {
            return self.stale();
        }
        let error = format!(
            "the broker closes the connection over `{}`: {}",
            queue(&parcel),
            excerpt(said)
        );
        self.unroutable(parcel, error)
    }

    /// What a parcel needs published, made anew: refusals are rare, and a copy of every message for them is not cheap.
    fn message(&self, parcel: &Parcel) -> Option<Message> {
        match parcel.kind {
            Kind::Reply => message::reply(&parcel.envelope, &parcel.outcome),
            Kind::DeadLetter => {
                let reason = parcel.dead.as_ref()?;
                Some(message::dead_letter(&parcel.envelope, reason, &self.author))
            }
        }
    }

    fn unroutable(&self, mut parcel: Box<Parcel>, error: String) -> Next {
        parcel.envelope.metrics.unroutable.inc();
        // Whoever sent a late job has often gone meanwhile: its queue is missing for the same reason.
        let kept = self.unroutable == Unroutable::DeadLetter && parcel.outcome.status() != Status::DeadlineExceeded;
        if kept && parcel.dead.is_none() {
            parcel.dead = Some(DeadReason {
                code: UNROUTABLE_REPLY,
                error,
            });
        }
        self.bury(parcel)
    }

    /// The broker has given the job to somebody else: whatever is published now, that one will publish as well.
    fn stale(&self) -> Next {
        self.metrics.stale.inc();
        Next::Settled
    }

    /// Dead-letters what is to be dead-lettered; anything else is done.
    fn bury(&self, mut parcel: Box<Parcel>) -> Next {
        if parcel.dead.is_none() {
            parcel.envelope.settle(Verdict::Ack);
            return Next::Settled;
        }
        if !parcel.envelope.receipt.is_current() {
            return self.stale();
        }
        parcel.kind = Kind::DeadLetter;
        match self.message(&parcel) {
            Some(message) => Next::Publish(parcel, message),
            None => Next::Settled,
        }
    }
}

/// Without the sentence of an error: what the runtime says may quote values of the payload.
fn log(envelope: &Envelope, status: Status, total: Duration) {
    debug!(
        model.name = %envelope.model,
        model.version = envelope.version,
        code = status.name(),
        total_us = total.as_micros() as u64,
        trace_id = export::trace_id(&envelope.properties),
        "{}",
        if status == Status::Ok { "job done" } else { "job failed" }
    );
}

/// The queue that a reply is for.
fn queue(parcel: &Parcel) -> String {
    message::reply_to(&parcel.envelope).map_or_else(String::new, |queue| excerpt(queue.as_str()))
}

/// The waits grow with the deliveries that the broker counted: some twelve seconds in all for ten, on average.
const UNAVAILABLE_WAIT_MAX: Duration = Duration::from_secs(5);
/// With ten deliveries the job waits for some three minutes, on average.
const ELSEWHERE_WAIT_MAX: Duration = Duration::from_secs(60);
/// The first pause is up to 1.6 s: a job that comes back at once would keep the worker busy.
const ELSEWHERE_RETURNS_MIN: u64 = 4;

#[cfg(test)]
mod tests;
