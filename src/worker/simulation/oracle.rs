//! What must hold: every job with all that becomes of it, and the invariants checked wherever it becomes something.
//!
//! A job may be delivered several times; each is an *attempt*, and whatever is published carries the attempt that it comes
//! from. So it is known which reply an ack stands for.

use bytes::Bytes;
use tokio::time::Instant;

use super::super::batch::DEADLINE_DEFAULT;
use super::super::message::Message;
use super::event::Event;
use super::messages::{MODEL, body, expected, message_id, queue_name};
use super::schedule::{Kind, ReplyTo, Setting};
use crate::config::Unroutable;
use crate::wire::status::Status;

/// An invariant that does not hold, by its number in the list below, and what was seen.
///
/// I1: every job ends in a reply, a dead letter or as its sender wished. I2: no ack before the broker has confirmed that.
/// I3: no more in hand than allowed. I4: each reply has the rows of its own job. I5: nothing is settled that is not the
/// worker's to settle. I6: a drain ends and leaves nothing behind. I7: a job that goes wrong costs only itself. I8: no job
/// is late that is not, and none is run that is; nor in a batch that by estimate ends too late for it. I9: the earliest
/// deadline goes first.
pub type Checked<T = ()> = Result<T, String>;

pub type JobNumber = usize;
pub type AttemptNumber = usize;

pub struct Job {
    pub kind: Kind,
    pub rows: usize,
    pub reply_to: ReplyTo,
    pub deadline_unix_ms: Option<i64>,
    pub body: Bytes,
    /// The reply's body if all goes well.
    pub expected: Bytes,
    /// The first of the jobs that are the same to the last bit.
    pub twin_of: JobNumber,
    pub attempts: Vec<AttemptNumber>,
    replies: usize,
    dead_letters: usize,
    dropped: usize,
    /// Messages that were published a second time.
    again: usize,
    /// It ended without either, as its sender or the configuration wished.
    silent: usize,
}

/// One delivery of a job.
#[derive(Debug, Clone, Default)]
pub struct Attempt {
    pub job: JobNumber,
    pub redelivered: bool,
    pub count: u64,
    pub deadline: Option<Instant>,
    pub arrived: Option<Instant>,
    status: Option<Status>,
    reply: Sent,
    dead: Sent,
    /// Its reply was held back, and then no longer.
    turned_away: bool,
    acked: bool,
}

/// What became of the messages of one kind.
#[derive(Debug, Clone, Default)]
struct Sent {
    enqueued: usize,
    confirmed: usize,
    returned: usize,
    refused: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Reply,
    DeadLetter,
}

/// What the broker made of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    Enqueued,
    /// It will be confirmed.
    Returned,
    Refused,
}

pub struct Oracle {
    pub jobs: Vec<Job>,
    pub attempts: Vec<Attempt>,
    /// How often each [`Event`] was seen.
    pub events: [u64; Event::ALL.len()],
    setting: Setting,
}

impl Attempt {
    /// By when it is to be done, for the order of jobs.
    fn due(&self) -> Option<Instant> {
        self.deadline.or_else(|| Some(self.arrived? + DEADLINE_DEFAULT))
    }
}

impl Oracle {
    pub fn new(setting: &Setting) -> Self {
        Self {
            jobs: Vec::new(),
            attempts: Vec::new(),
            events: [0; Event::ALL.len()],
            setting: setting.clone(),
        }
    }

    pub fn job(&mut self, kind: Kind, rows: usize, reply_to: ReplyTo, deadline_unix_ms: Option<i64>) -> JobNumber {
        let number = self.jobs.len();
        self.jobs.push(Job {
            kind,
            rows,
            reply_to,
            deadline_unix_ms,
            body: body(number, kind, rows),
            expected: expected(number, rows),
            twin_of: number,
            attempts: Vec::new(),
            replies: 0,
            dead_letters: 0,
            dropped: 0,
            again: 0,
            silent: 0,
        });
        number
    }

    /// The last job once more, if it can have a twin.
    pub fn twin(&mut self) -> Option<JobNumber> {
        let last = self.jobs.last()?;
        let (kind, twin_of) = (last.kind, last.twin_of);
        if kind != Kind::Good || last.deadline_unix_ms.is_some() {
            return None;
        }
        let (rows, reply_to, body, expected) = (last.rows, last.reply_to, last.body.clone(), last.expected.clone());
        let number = self.job(kind, rows, reply_to, None);
        let twin = &mut self.jobs[number];
        (twin.body, twin.expected, twin.twin_of) = (body, expected, twin_of);
        Some(number)
    }

    pub fn attempt(&mut self, job: JobNumber, redelivered: bool, count: u64) -> AttemptNumber {
        let number = self.attempts.len();
        self.attempts.push(Attempt {
            job,
            redelivered,
            count,
            ..Attempt::default()
        });
        self.jobs[job].attempts.push(number);
        if redelivered {
            self.saw(Event::Redelivered);
        }
        number
    }

    fn is_exhausted(&self, attempt: &Attempt) -> bool {
        !self.setting.classic && attempt.count >= self.setting.delivery_limit
    }

    /// Whether a batch of so many rows would end after a deadline, by what the worker believes.
    fn is_out_of_reach(&self, attempt: &Attempt, rows: usize, now: Instant) -> bool {
        let runs = rows.div_ceil(self.setting.rows_max);
        let time = self.setting.capacity.map(|capacity| capacity.time(rows, runs));
        attempt
            .deadline
            .zip(time)
            .is_some_and(|(deadline, time)| now + time > deadline)
    }

    /// A batch is closed.
    pub fn batch(&mut self, attempts: &[AttemptNumber], now: Instant) -> Checked {
        let rows: usize = attempts
            .iter()
            .map(|number| self.jobs[self.attempts[*number].job].rows)
            .sum();
        if attempts.len() > 1 && rows > self.setting.rows_max {
            return Err(format!(
                "I3: a batch of {rows} rows, at most {} are allowed",
                self.setting.rows_max
            ));
        }
        for number in attempts {
            let attempt = &self.attempts[*number];
            if attempt.redelivered && attempts.len() > 1 {
                return Err(format!("I7: job {} came back and shares a batch", attempt.job));
            }
            if attempt.deadline.is_some_and(|deadline| deadline <= now) {
                return Err(format!("I8: job {} is past its deadline and run", attempt.job));
            }
            if attempts.len() > 1 && self.is_out_of_reach(attempt, rows, now) {
                return Err(format!(
                    "I8: job {} cannot meet its deadline in such a batch",
                    attempt.job
                ));
            }
        }
        let due = |number: &AttemptNumber| self.attempts[*number].due();
        if !attempts.iter().is_sorted_by_key(due) {
            return Err("I9: a batch is not in the order of its deadlines".to_owned());
        }
        if attempts.len() > 1 {
            self.saw(Event::SharedBatch);
        }
        if rows > self.setting.rows_max {
            self.saw(Event::Sliced);
        }
        Ok(())
    }

    /// An answer is made.
    pub fn answered(&mut self, number: AttemptNumber, status: Status, now: Instant) -> Checked {
        let attempt = &self.attempts[number];
        let job = &self.jobs[attempt.job];
        let late = attempt.deadline.is_some_and(|deadline| deadline <= now);
        let out_of_reach = self.is_out_of_reach(attempt, job.rows, now);
        let exhausted = self.is_exhausted(attempt);
        let usual = match job.kind {
            Kind::Good | Kind::Heavy | Kind::HugeReply => status == Status::Ok,
            Kind::Culprit => status == Status::Internal,
            Kind::TooHeavy => status == Status::Unavailable,
            // Run apart, it costs nobody but itself.
            Kind::Poison => status == Status::Internal && attempt.count >= ISOLATED_AFTER,
            Kind::Undecodable | Kind::Oversize => status == Status::InvalidArgument,
            Kind::UnknownVersion => status == Status::NotFound,
        };
        let allowed = match status {
            Status::DeadlineExceeded => late || out_of_reach,
            Status::Internal => usual || exhausted,
            _ => usual,
        };
        if !allowed {
            return Err(format!(
                "{}: job {} ({:?}) is answered {status:?}",
                if status == Status::DeadlineExceeded { "I8" } else { "I7" },
                attempt.job,
                job.kind
            ));
        }
        self.attempts[number].status = Some(status);
        match status {
            Status::DeadlineExceeded if late => self.saw(Event::Expired),
            Status::DeadlineExceeded => self.saw(Event::OutOfReach),
            Status::Internal if exhausted => self.saw(Event::Exhausted),
            Status::Unavailable => self.saw(Event::Requeued),
            _ => {}
        }
        Ok(())
    }

    /// Whether a reply is for the job of its attempt and says what that may be told; gives its queue.
    pub fn check_reply(&self, number: AttemptNumber, message: &Message) -> Checked<usize> {
        let attempt = &self.attempts[number];
        let job = &self.jobs[attempt.job];
        let ReplyTo::Queue(queue) = job.reply_to else {
            return Err(format!("I4: job {} wants no reply and gets one", attempt.job));
        };
        let ids = [message.properties.message_id(), message.properties.correlation_id()];
        let id = message_id(job.twin_of);
        if message.routing_key.as_str() != queue_name(queue) || ids.iter().any(|own| own.as_ref() != Some(&id)) {
            return Err(format!("I4: the reply of job {} has another address", attempt.job));
        }
        let failed = is_error(message);
        let told = attempt.status.is_some_and(|status| {
            // The sender is told that its result cannot be sent.
            (status != Status::Ok) == failed || job.kind == Kind::HugeReply && failed
        });
        if !told {
            return Err(format!("I4: the reply of job {} is not what its run gave", attempt.job));
        }
        if !failed && message.body != job.expected {
            return Err(format!(
                "I4: job {} gets other rows than its own: {:?}",
                attempt.job, message.body
            ));
        }
        Ok(queue)
    }

    /// Whether the broker closes the channel over a reply.
    pub fn is_huge(&self, number: AttemptNumber, message: &Message) -> bool {
        self.jobs[self.attempts[number].job].kind == Kind::HugeReply && !is_error(message)
    }

    /// A reply is held back no longer, or not at all: as if its queue had refused it.
    pub fn turned_away(&mut self, number: AttemptNumber) {
        self.attempts[number].reply.refused += 1;
        self.attempts[number].turned_away = true;
        self.saw(Event::TurnedAway);
    }

    /// A message of which nobody knows whether it went out goes out once more.
    pub fn published_again(&mut self, number: AttemptNumber) {
        self.jobs[self.attempts[number].job].again += 1;
    }

    /// Whether a dead letter is the job of its attempt.
    pub fn check_dead_letter(&self, number: AttemptNumber, message: &Message) -> Checked {
        let job = &self.jobs[self.attempts[number].job];
        if message.routing_key.as_str() != MODEL || message.body != job.body {
            return Err(format!(
                "I4: the dead letter of job {} is another",
                self.attempts[number].job
            ));
        }
        Ok(())
    }

    /// The broker got a message.
    pub fn published(&mut self, number: AttemptNumber, what: What, made: Made) -> Checked {
        let attempt = &mut self.attempts[number];
        let sent = match what {
            What::Reply => &mut attempt.reply,
            What::DeadLetter => &mut attempt.dead,
        };
        let (count, seen) = match made {
            Made::Enqueued => (&mut sent.enqueued, Event::Enqueued),
            Made::Returned => (&mut sent.returned, Event::Returned),
            Made::Refused => (&mut sent.refused, Event::Refused),
        };
        *count += 1;
        self.saw(seen);
        if made != Made::Enqueued {
            return Ok(());
        }
        let number = self.attempts[number].job;
        let job = &mut self.jobs[number];
        match what {
            What::Reply => job.replies += 1,
            What::DeadLetter => job.dead_letters += 1,
        }
        let group = || {
            self.jobs
                .iter()
                .filter(|other| other.twin_of == self.jobs[number].twin_of)
        };
        let attempts: usize = group().map(|job| job.attempts.len() + job.again).sum();
        let messages: usize = match what {
            What::Reply => group().map(|job| job.replies).sum(),
            What::DeadLetter => group().map(|job| job.dead_letters).sum(),
        };
        if messages > attempts {
            return Err(format!(
                "I1: {attempts} deliveries of job {number} gave {messages} of {what:?}"
            ));
        }
        Ok(())
    }

    /// The broker confirmed a message that it enqueued.
    pub fn confirmed(&mut self, number: AttemptNumber, what: What) {
        let attempt = &mut self.attempts[number];
        match what {
            What::Reply => attempt.reply.confirmed += 1,
            What::DeadLetter => attempt.dead.confirmed += 1,
        }
    }

    /// The broker got an ack.
    pub fn acked(&mut self, number: AttemptNumber) -> Checked {
        self.attempts[number].acked = true;
        let attempt = &self.attempts[number];
        let group = self.jobs[attempt.job].twin_of;
        let jobs = || self.jobs.iter().filter(|job| job.twin_of == group);
        let attempts = || {
            jobs()
                .flat_map(|job| &job.attempts)
                .map(|number| &self.attempts[*number])
        };
        // Replies that say the same may change places, also those of an earlier delivery of the same job: what counts is
        // that there are as many as acks.
        let ended = if jobs().count() == 1 {
            attempts().any(|attempt| self.ended(attempt))
        } else {
            let ends = attempts().map(|twin| twin.reply.confirmed + twin.dead.confirmed + self.silent_returns(twin));
            let acked = attempts().filter(|twin| twin.acked).count();
            self.jobs[attempt.job].reply_to == ReplyTo::Nobody || acked <= ends.sum()
        };
        if !ended {
            let kind = self.jobs[attempt.job].kind;
            return Err(format!(
                "I2: job {} ({kind:?}) is acked without a confirmed end: {attempt:?}",
                attempt.job
            ));
        }
        let silent = attempt.reply.enqueued + attempt.dead.enqueued == 0;
        self.jobs[self.attempts[number].job].silent += usize::from(silent);
        Ok(())
    }

    /// Whether an attempt has all the ends that its job asks for.
    fn ended(&self, attempt: &Attempt) -> bool {
        let Some(status) = attempt.status else { return false };
        let wants_reply = self.jobs[attempt.job].reply_to != ReplyTo::Nobody;
        let replied = attempt.reply.confirmed > 0;
        let unroutable = attempt.reply.returned + attempt.reply.refused > 0;
        let dead = attempt.dead.confirmed > 0;
        let is_huge = self.jobs[attempt.job].kind == Kind::HugeReply && status == Status::Ok;
        if is_huge && wants_reply && !attempt.turned_away {
            return dead && (replied || unroutable);
        }
        match status {
            Status::Ok | Status::InvalidArgument | Status::NotFound if wants_reply => {
                replied || unroutable && (dead || self.setting.unroutable == Unroutable::Discard)
            }
            Status::Ok => true,
            Status::InvalidArgument | Status::NotFound => dead,
            Status::DeadlineExceeded => !wants_reply || replied || unroutable,
            Status::Internal | Status::Unavailable => dead && (!wants_reply || replied || unroutable),
        }
    }

    /// Returned replies that are discarded by configuration.
    fn silent_returns(&self, attempt: &Attempt) -> usize {
        match self.setting.unroutable {
            Unroutable::Discard => attempt.reply.returned + attempt.reply.refused,
            Unroutable::DeadLetter => 0,
        }
    }

    /// The broker gave the job up by itself.
    pub fn dropped_by_broker(&mut self, job: JobNumber) {
        self.saw(Event::DroppedByBroker);
        self.jobs[job].dropped += 1;
    }

    pub fn saw(&mut self, event: Event) {
        self.events[event as usize] += 1;
    }

    /// All is quiet, the queue is empty.
    pub fn finish(&self) -> Checked {
        for (number, job) in self.jobs.iter().enumerate() {
            let group = || self.jobs.iter().filter(|other| other.twin_of == job.twin_of);
            let jobs = group().count();
            let ends: usize = group()
                .map(|job| job.replies + job.dead_letters + job.dropped + job.silent)
                .sum();
            if ends < jobs {
                return Err(format!(
                    "I1: {jobs} jobs like {number} have {ends} ends: nothing came of one"
                ));
            }
        }
        Ok(())
    }
}

/// From this count of deliveries on a job is run in a process of its own.
pub const ISOLATED_AFTER: u64 = 2;

fn is_error(message: &Message) -> bool {
    let kind = message.properties.kind().as_ref();
    kind.is_none_or(|kind| kind.as_str() != "inferq.result")
}
