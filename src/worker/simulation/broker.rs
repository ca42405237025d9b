//! The broker, the network and the client library, as far as the worker can tell: an unacked window, redelivery with
//! counts, confirms in any order, returns that any confirm may carry, and channels that close at any moment.

use std::collections::{BTreeMap, VecDeque};

use fastrand::Rng;

use super::super::message::Message;
use super::super::refusing::Finding;
use super::super::settle::{DeliveryTag, Frame};
use super::super::unconfirmed::{Address, Confirmed, Number};
use super::event::Event;
use super::oracle::{AttemptNumber, Checked, JobNumber, Made, Oracle, What};
use super::schedule::{QueueState, REPLY_QUEUES, Setting};

pub struct Broker {
    ready: VecDeque<Queued>,
    queues: [QueueState; REPLY_QUEUES],
    dead_letters: QueueState,
    blocked: bool,
    setting: Setting,
}

/// A job in its queue.
#[derive(Debug, Clone, Copy)]
struct Queued {
    job: JobNumber,
    delivered: bool,
    returns: u64,
}

/// A channel with a consumer, seen from both ends.
pub struct Consuming {
    pub open: bool,
    /// The broker sends nothing more.
    pub cancelled: bool,
    next_tag: DeliveryTag,
    /// By how much the broker exceeds the prefetch window: RabbitMQ 3.10 by one more for each message that it moves to the
    /// dead letters at the delivery limit, whoever had it.
    pub widened: usize,
    unacked: BTreeMap<DeliveryTag, (Queued, AttemptNumber)>,
    /// On their way to the worker, or in the client's buffer.
    pub deliveries: VecDeque<(DeliveryTag, AttemptNumber)>,
    /// On their way to the broker.
    pub frames: VecDeque<Frame>,
}

/// A channel in confirm mode, seen from both ends.
#[derive(Default)]
pub struct Publishing {
    pub closed: bool,
    /// Closed because of a message on it.
    pub over_message: bool,
    /// On their way to the broker.
    pub wire: VecDeque<(Number, AttemptNumber, Message)>,
    unconfirmed: BTreeMap<Number, (AttemptNumber, What, Made)>,
    /// Returns that the client holds for the next confirms.
    returns: VecDeque<Address>,
    /// Confirms that the client has for the worker.
    pub confirms: Vec<Confirmed>,
}

impl Consuming {
    pub fn new() -> Self {
        Self {
            open: true,
            cancelled: false,
            next_tag: 1,
            widened: 0,
            unacked: BTreeMap::new(),
            deliveries: VecDeque::new(),
            frames: VecDeque::new(),
        }
    }

    pub fn unacked(&self) -> usize {
        self.unacked.len()
    }
}

impl Broker {
    pub fn new(setting: &Setting) -> Self {
        Self {
            ready: VecDeque::new(),
            queues: setting.queues,
            dead_letters: setting.dead_letters,
            blocked: false,
            setting: setting.clone(),
        }
    }

    pub fn enqueue(&mut self, job: JobNumber) {
        self.ready.push_back(Queued {
            job,
            delivered: false,
            returns: 0,
        });
    }

    pub fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    pub fn block(&mut self, blocked: bool) {
        self.blocked = blocked;
    }

    pub fn set_queue(&mut self, queue: usize, state: QueueState) {
        self.queues[queue] = state;
    }

    pub fn set_dead_letters(&mut self, state: QueueState) {
        self.dead_letters = state;
    }

    pub fn heal(&mut self) {
        self.queues = [QueueState::Open; REPLY_QUEUES];
        self.dead_letters = QueueState::Open;
        self.blocked = false;
    }

    pub fn deliver(&mut self, consuming: &mut Consuming, count: usize, oracle: &mut Oracle) {
        for _ in 0..count {
            let prefetch = usize::from(self.setting.prefetch);
            let room = consuming.unacked.len() < prefetch + consuming.widened;
            if !consuming.open || consuming.cancelled || !room {
                return;
            }
            let Some(queued) = self.ready.pop_front() else { return };
            if consuming.unacked.len() >= prefetch {
                oracle.saw(Event::WindowExceeded);
            }
            let count = if self.setting.classic { 0 } else { queued.returns };
            let attempt = oracle.attempt(queued.job, queued.delivered, count);
            let tag = consuming.next_tag;
            consuming.next_tag += 1;
            consuming.unacked.insert(tag, (queued, attempt));
            consuming.deliveries.push_back((tag, attempt));
        }
    }

    /// Reads some of the worker's acks.
    pub fn take_frames(&mut self, consuming: &mut Consuming, count: usize, oracle: &mut Oracle) -> Checked {
        for _ in 0..count {
            let Some(frame) = consuming.frames.pop_front().filter(|_| consuming.open) else {
                return Ok(());
            };
            let (Frame::Ack { tag, .. } | Frame::Reject { tag } | Frame::Nack { tag }) = frame;
            let Some((own, _)) = consuming.unacked.get(&tag).copied() else {
                return Err(format!(
                    "I5: {frame:?}, but that tag is not unacked: the broker closes the channel"
                ));
            };
            match frame {
                Frame::Ack { multiple, .. } => {
                    let first = if multiple { 0 } else { tag };
                    let covered: Vec<_> = consuming.unacked.range(first..=tag).map(|(tag, _)| *tag).collect();
                    for tag in covered {
                        if let Some((_, attempt)) = consuming.unacked.remove(&tag) {
                            oracle.acked(attempt)?;
                        }
                    }
                }
                Frame::Reject { .. } | Frame::Nack { .. } => {
                    consuming.unacked.remove(&tag);
                    let counts = matches!(frame, Frame::Reject { .. }) || self.setting.nacks_count;
                    self.take_back(own, counts, oracle);
                }
            }
        }
        Ok(())
    }

    fn take_back(&mut self, mut queued: Queued, counts: bool, oracle: &mut Oracle) {
        queued.delivered = true;
        queued.returns += u64::from(counts);
        if !self.setting.classic && queued.returns > self.setting.delivery_limit {
            oracle.dropped_by_broker(queued.job);
        } else if self.setting.returned_first {
            self.ready.push_front(queued);
        } else {
            self.ready.push_back(queued);
        }
    }

    /// The channel is gone; what the worker sent and the broker has not read is lost.
    pub fn close_consuming(&mut self, consuming: &mut Consuming, oracle: &mut Oracle) {
        if !std::mem::take(&mut consuming.open) {
            return;
        }
        if !consuming.frames.is_empty() {
            oracle.saw(Event::AckLost);
        }
        consuming.frames.clear();
        let unacked = std::mem::take(&mut consuming.unacked).into_values();
        let unacked: Vec<_> = unacked.map(|(queued, _)| queued).collect();
        if self.setting.returned_first {
            unacked
                .into_iter()
                .rev()
                .for_each(|own| self.take_back(own, true, oracle));
        } else {
            unacked.into_iter().for_each(|own| self.take_back(own, true, oracle));
        }
    }

    /// Routes some of what the worker has published.
    pub fn route(&self, publishing: &mut Publishing, count: usize, oracle: &mut Oracle) -> Checked {
        for _ in 0..count {
            if self.blocked || publishing.closed {
                return Ok(());
            }
            let Some((number, attempt, message)) = publishing.wire.pop_front() else {
                return Ok(());
            };
            let (what, state) = self.destination(attempt, &message, oracle)?;
            let made = match state {
                QueueState::Open => Made::Enqueued,
                QueueState::Full => Made::Refused,
                QueueState::Missing | QueueState::Away => Made::Returned,
                QueueState::Gone => {
                    publishing.over_message = true;
                    publishing.close(oracle);
                    oracle.saw(Event::ClosedOverMessage);
                    return Ok(());
                }
            };
            oracle.published(attempt, what, made)?;
            if made == Made::Returned {
                publishing.returns.push_back(Address::of(&message));
            }
            publishing.unconfirmed.insert(number, (attempt, what, made));
        }
        Ok(())
    }

    /// Publishes one message on a channel of its own and looks why it is not taken, if it is not.
    pub fn try_alone(
        &self,
        number: AttemptNumber,
        message: &Message,
        look_first: bool,
        oracle: &mut Oracle,
        rng: &mut Rng,
    ) -> Checked<Finding> {
        if self.blocked {
            return Ok(Finding::Lost);
        }
        let (what, state) = self.destination(number, message, oracle)?;
        let missing = match (what, state) {
            (What::Reply, QueueState::Missing) => Some(Finding::Gone),
            (What::DeadLetter, QueueState::Missing | QueueState::Gone) => {
                Some(Finding::Away("it is missing".to_owned()))
            }
            (_, QueueState::Away) => Some(Finding::Away("its node is down".to_owned())),
            (_, QueueState::Open | QueueState::Full | QueueState::Gone) => None,
        };
        if look_first && let Some(missing) = missing {
            return Ok(missing);
        }
        let (made, finding) = match state {
            QueueState::Open => (Made::Enqueued, Finding::Taken),
            // Sometimes nothing is seen of the reason.
            QueueState::Full if rng.bool() => (Made::Refused, Finding::Refused),
            QueueState::Full => (Made::Refused, Finding::Full { messages: Some(1) }),
            QueueState::Missing | QueueState::Away => (Made::Returned, missing.unwrap_or(Finding::Refused)),
            QueueState::Gone => {
                oracle.saw(Event::ClosedOverMessage);
                return Ok(missing.unwrap_or_else(|| Finding::Unacceptable("it is too large".to_owned())));
            }
        };
        oracle.published(number, what, made)?;
        if made == Made::Enqueued {
            if rng.u8(..8) == 0 {
                oracle.published_again(number);
                return Ok(Finding::Lost);
            }
            oracle.confirmed(number, what);
        }
        Ok(finding)
    }

    /// Where a message goes; it must be what the job of the attempt asked for.
    fn destination(&self, attempt: AttemptNumber, message: &Message, oracle: &Oracle) -> Checked<(What, QueueState)> {
        if !message.mandatory {
            return Err("I1: a message that the broker would drop in silence".to_owned());
        }
        match message.exchange.as_str() {
            "" => {
                let queue = oracle.check_reply(attempt, message)?;
                let state = if oracle.is_huge(attempt, message) {
                    QueueState::Gone
                } else {
                    self.queues[queue]
                };
                Ok((What::Reply, state))
            }
            "inferq.dead" => {
                oracle.check_dead_letter(attempt, message)?;
                Ok((What::DeadLetter, self.dead_letters))
            }
            other => Err(format!("I1: published to exchange `{other}`")),
        }
    }

    /// Confirms one message, or all up to it; the client hands each confirm the oldest return that it holds.
    pub fn confirm(&self, publishing: &mut Publishing, which: usize, multiple: bool, oracle: &mut Oracle) {
        if self.blocked || publishing.closed || publishing.unconfirmed.is_empty() {
            return;
        }
        let picked = which % publishing.unconfirmed.len();
        let numbers: Vec<_> = publishing.unconfirmed.keys().copied().take(picked + 1).collect();
        let refused = |number: &Number| publishing.unconfirmed[number].2 == Made::Refused;
        let alike = numbers
            .iter()
            .all(|number| refused(number) == refused(&numbers[picked]));
        let mut numbers = if multiple && alike {
            numbers
        } else {
            vec![numbers[picked]]
        };
        // The client goes through them in the order of a hash map.
        Rng::with_seed(which as u64).shuffle(&mut numbers);
        for number in numbers {
            let Some((attempt, what, made)) = publishing.unconfirmed.remove(&number) else {
                continue;
            };
            if made == Made::Enqueued {
                oracle.confirmed(attempt, what);
            }
            let returned = publishing.returns.pop_front();
            match made {
                Made::Refused if returned.is_some() => oracle.saw(Event::CarriedByRefusal),
                Made::Enqueued if returned.is_some() => oracle.saw(Event::CarriedByAnother),
                _ => {}
            }
            publishing.confirms.push(Confirmed {
                number,
                refused: made == Made::Refused,
                returned,
            });
        }
    }
}

impl Publishing {
    pub fn is_confirmed(&self) -> bool {
        self.wire.is_empty() && self.unconfirmed.is_empty()
    }

    /// The channel is gone; what the broker has not read is lost, and so are its confirms.
    pub fn close(&mut self, oracle: &mut Oracle) {
        self.closed = true;
        if !self.unconfirmed.is_empty() {
            oracle.saw(Event::ConfirmLost);
        }
        self.wire.clear();
        self.unconfirmed.clear();
    }
}
