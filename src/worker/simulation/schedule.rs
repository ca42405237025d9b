//! Schedules: what happens to a worker, drawn from a seed. A step means something in any state, so that any part of a
//! schedule is one as well and a failing one can be cut down.

use std::time::Duration;

use fastrand::Rng;

use crate::config::Unroutable;
use crate::model::capacity::Capacity;

/// What a schedule runs with.
#[derive(Debug, Clone)]
pub struct Setting {
    pub prefetch: u16,
    pub rows_max: usize,
    /// What the worker believes that runs take.
    pub capacity: Option<Capacity>,
    /// A classic queue counts no deliveries and has no limit on them.
    pub classic: bool,
    pub delivery_limit: u64,
    /// From RabbitMQ 4.3 on a nack is not counted as a failed delivery.
    pub nacks_count: bool,
    /// Whether what comes back is delivered before what is new.
    pub returned_first: bool,
    pub memory_bytes: usize,
    pub unconfirmed_max: usize,
    pub unroutable: Unroutable,
    /// At first.
    pub queues: [QueueState; REPLY_QUEUES],
    pub dead_letters: QueueState,
}

/// What a job is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Good,
    /// The model fails on it.
    Culprit,
    /// The runtime lacks memory for more than two rows at once if this is among them.
    Heavy,
    /// The runtime lacks memory for it even alone.
    TooHeavy,
    /// The broker closes the channel over its result.
    HugeReply,
    /// Takes the process down.
    Poison,
    Undecodable,
    Oversize,
    UnknownVersion,
}

/// Where a job wants its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyTo {
    Nobody,
    Queue(usize),
}

#[derive(Debug, Clone, Copy)]
pub enum QueueState {
    Open,
    /// Refuses what comes.
    Full,
    /// Whatever comes is returned.
    Missing,
    /// Whatever comes is returned as well, but the queue is there and its node is not.
    Away,
    /// Its exchange is missing as well: the broker closes the channel over what comes.
    Gone,
}

/// One thing that happens. Numbers pick among what there is, modulo how much there is.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    // The producer.
    Publish {
        kind: Kind,
        rows: usize,
        reply_to: ReplyTo,
        deadline_ms: Option<u64>,
    },
    /// The job before once more: same id, same body, same reply queue.
    PublishTwin,
    /// Something goes all the way from the queue to the broker's side of the reply, without a fault on the way.
    Flow(usize),
    // The broker and the network.
    Deliver(usize),
    TakeAcks(usize),
    Route(usize),
    Confirm {
        which: usize,
        multiple: bool,
    },
    // The worker.
    Take(usize),
    Batch,
    Run,
    Reply,
    Retry,
    Land,
    Settle,
    Reopen,
    // Faults.
    CloseConsuming,
    ClosePublishing,
    LoseConnections,
    CancelConsumer,
    WidenWindow(usize),
    Block(bool),
    SetQueue(usize, QueueState),
    SetDeadLetters(QueueState),
    Crash {
        /// How much of what the worker had published still gets through.
        routed: usize,
    },
    // Time.
    Pass(Duration),
    WallClockJumps {
        back: bool,
        by: Duration,
    },
    // The end of a worker.
    Drain,
    /// The drain timeout is over.
    Leave,
    Start,
}

pub const REPLY_QUEUES: usize = 3;

/// The setting and the steps of a seed.
pub fn draw(seed: u64) -> (Setting, Vec<Step>) {
    let mut rng = Rng::with_seed(seed);
    let classic = rng.u8(..5) == 0;
    // Some schedules are calm, so that not all of them look like a storm.
    let faults = [0, 5, 15, 30][rng.usize(..4)];
    let mut at_first = || {
        if faults > 0 && rng.bool() {
            queue_state(&mut rng)
        } else {
            QueueState::Open
        }
    };
    let (queues, dead_letters) = ([at_first(), at_first(), at_first()], at_first());
    let setting = Setting {
        prefetch: rng.u16(1..9),
        rows_max: rng.usize(1..6),
        // Deadlines are up to five seconds ahead: from never in the way to mostly out of reach.
        capacity: rng.bool().then(|| Capacity {
            seconds_per_row: f64::from(rng.f32() + 1e-6),
            seconds_per_run: f64::from(rng.f32()),
        }),
        classic,
        delivery_limit: rng.u64(3..7),
        nacks_count: rng.bool(),
        returned_first: rng.bool(),
        memory_bytes: rng.usize(BODY_BYTES_MAX..4 * BODY_BYTES_MAX),
        unconfirmed_max: rng.usize(1..9),
        unroutable: if rng.u8(..4) == 0 {
            Unroutable::Discard
        } else {
            Unroutable::DeadLetter
        },
        queues,
        dead_letters,
    };
    let length = rng.usize(10..120);
    let steps = (0..length)
        .map(|_| {
            if rng.usize(..100) < faults {
                fault(&mut rng)
            } else {
                work(&mut rng, classic)
            }
        })
        .collect();
    (setting, steps)
}

fn work(rng: &mut Rng, classic: bool) -> Step {
    match rng.u8(..48) {
        0..7 => publish(rng, classic),
        7 | 8 => Step::PublishTwin,
        9..16 => Step::Flow(rng.usize(1..5)),
        16..19 => Step::Deliver(rng.usize(1..5)),
        19..22 => Step::Take(rng.usize(1..5)),
        22..24 => Step::Batch,
        24..26 => Step::Run,
        26..28 => Step::Reply,
        28..31 => Step::Route(rng.usize(1..5)),
        31..37 => Step::Confirm {
            which: rng.usize(..64),
            multiple: rng.u8(..3) == 0,
        },
        37..41 => Step::Land,
        41..43 => Step::Settle,
        43 | 44 => Step::TakeAcks(rng.usize(1..5)),
        45 => Step::Retry,
        _ => Step::Pass(Duration::from_millis(rng.u64(1..2_000))),
    }
}

fn publish(rng: &mut Rng, classic: bool) -> Step {
    let kind = match rng.u8(..24) {
        0 => Kind::Culprit,
        1 => Kind::Heavy,
        2 => Kind::TooHeavy,
        // A classic queue would deliver it for ever.
        3 if !classic => Kind::Poison,
        4 => Kind::Undecodable,
        5 => Kind::Oversize,
        6 => Kind::UnknownVersion,
        7 => Kind::HugeReply,
        _ => Kind::Good,
    };
    Step::Publish {
        kind,
        rows: if rng.u8(..6) == 0 {
            rng.usize(4..10)
        } else {
            rng.usize(1..4)
        },
        reply_to: match rng.u8(..10) {
            0 => ReplyTo::Nobody,
            _ => ReplyTo::Queue(rng.usize(..REPLY_QUEUES)),
        },
        deadline_ms: (rng.u8(..8) == 0).then(|| rng.u64(..5_000)),
    }
}

fn fault(rng: &mut Rng) -> Step {
    match rng.u8(..34) {
        0..4 => Step::CloseConsuming,
        4..8 => Step::ClosePublishing,
        8 => Step::LoseConnections,
        9 => Step::CancelConsumer,
        10 => Step::Block(rng.u8(..3) == 0),
        11..17 => Step::SetQueue(rng.usize(..REPLY_QUEUES), queue_state(rng)),
        17 | 18 => Step::SetDeadLetters(queue_state(rng)),
        19 => Step::SetDeadLetters(QueueState::Gone),
        20 | 21 => Step::Crash { routed: rng.usize(..4) },
        22 => Step::WallClockJumps {
            back: rng.bool(),
            by: Duration::from_millis(rng.u64(..3_600_000)),
        },
        23 | 24 => Step::Drain,
        25 => Step::Leave,
        26 | 27 => Step::Start,
        28 | 29 => Step::WidenWindow(rng.usize(1..9)),
        _ => Step::Reopen,
    }
}

fn queue_state(rng: &mut Rng) -> QueueState {
    [
        QueueState::Open,
        QueueState::Full,
        QueueState::Missing,
        QueueState::Away,
    ][rng.usize(..4)]
}

/// `limits.body_bytes_max` of all schedules.
pub const BODY_BYTES_MAX: usize = 400;
