//! Settling: the only file that acks.
//!
//! One task a consuming channel owns its window over the delivery tags. It acks `multiple` up to the end of the
//! contiguous settled prefix, so that one frame does for a batch, and never a tag that is not settled.
//!
//! A receipt reaches only the task of its own generation. When that channel is gone so is the task, the broker has
//! requeued the deliveries, and what comes in late is dropped here instead of acking another's delivery.

use std::collections::VecDeque;
use std::sync::Arc;

use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};
use tokio::sync::Notify;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender, WeakSender};
use tokio::time::Instant;

use crate::telemetry::export::Traced;
use crate::telemetry::metrics::ReceiptMetrics;

/// The channel's own number of a delivery, from 1 up without gaps.
pub type DeliveryTag = u64;

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Answered, dead-lettered or dropped on purpose, and the broker has confirmed it.
    Ack,
    /// This job failed and may work elsewhere: `basic.reject`, which counts towards the delivery limit.
    Retry,
    /// The job is innocent, we cannot finish it: `basic.nack`, which RabbitMQ 4.3 does not count.
    GiveBack,
}

impl Verdict {
    /// The method that tells it to the broker.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ack => "ack",
            Self::Retry => "reject",
            Self::GiveBack => "nack",
        }
    }
}

/// A verdict on its way to the task that tells the broker.
struct Settled {
    tag: DeliveryTag,
    verdict: Verdict,
    /// When nothing but this was left to do.
    since: Option<Instant>,
    trace: Option<Box<Traced>>,
}

/// The right to settle one delivery. Dropped unused, the message stays with the broker until the channel closes: right
/// when stopping, otherwise a mistake that `inferq_receipts_dropped_total` counts.
#[must_use = "an unsettled delivery comes back"]
pub struct Receipt {
    tag: DeliveryTag,
    settled: Option<Sender<Settled>>,
    metrics: Arc<ReceiptMetrics>,
}

impl Receipt {
    pub fn settle(self, verdict: Verdict) {
        self.settle_after(verdict, None, None);
    }

    /// As [`Receipt::settle`], for a job with which nothing else was left to do `since`; its trace ends with it.
    pub fn settle_after(mut self, verdict: Verdict, since: Option<Instant>, trace: Option<Box<Traced>>) {
        let told = Settled {
            tag: self.tag,
            verdict,
            since,
            trace,
        };
        if let Some(settled) = self.settled.take()
            && let Err(TrySendError::Full(_)) = settled.try_send(told)
        {
            // Never, see `VERDICTS_MAX`; and otherwise not unseen. A closed channel only means that the generation is over.
            self.metrics.dropped.inc();
        }
    }

    /// Whether the delivery's channel still lives; nothing can be settled on another.
    pub fn is_current(&self) -> bool {
        self.settled.as_ref().is_some_and(|settled| !settled.is_closed())
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.metrics.in_hand.dec();
        if self.is_current() {
            self.metrics.dropped.inc();
        }
    }
}

/// Hands out the receipts of one generation.
pub struct Receipts {
    settled: Sender<Settled>,
    /// Shared, so that a receipt costs one count and not one for each metric.
    metrics: Arc<ReceiptMetrics>,
    /// Told of every delivery by which that many are in hand.
    filling: Arc<Notify>,
    some: usize,
}

impl Receipts {
    pub fn receipt(&self, tag: DeliveryTag) -> Receipt {
        self.metrics.in_hand.inc();
        let receipt = Receipt {
            tag,
            settled: Some(self.settled.clone()),
            metrics: self.metrics.clone(),
        };
        // This receipt and `Receipts` hold a sender each.
        if self.settled.strong_count() > self.some {
            self.filling.notify_one();
        }
        receipt
    }

    pub fn in_hand(&self) -> InHand {
        InHand {
            settled: self.settled.downgrade(),
            filling: self.filling.clone(),
        }
    }
}

/// Counts the deliveries of one generation that are not settled.
pub struct InHand {
    settled: WeakSender<Settled>,
    filling: Arc<Notify>,
}

impl InHand {
    pub fn jobs(&self) -> usize {
        // Each receipt holds a sender until it is used, and `Receipts` one more.
        self.settled.strong_count().saturating_sub(1)
    }

    /// Waits until half of the prefetch window is in hand, or some jobs, unless that was so since the last call.
    pub async fn fills(&self) {
        self.filling.notified().await;
    }
}

/// The two ends for one generation that asked for `prefetch` deliveries at a time.
pub fn generation(prefetch: u16, metrics: ReceiptMetrics) -> (Receipts, Settler) {
    generation_with(VERDICTS_MAX, prefetch, metrics)
}

/// As [`generation`], with room for so many verdicts.
pub(super) fn generation_with(verdicts_max: usize, prefetch: u16, metrics: ReceiptMetrics) -> (Receipts, Settler) {
    let (settled, receiver) = mpsc::channel(verdicts_max);
    let metrics = Arc::new(metrics);
    let settler = Settler {
        settled: receiver,
        window: Window::new(usize::from(prefetch) / 2),
        unwritten: Vec::new(),
        metrics: metrics.clone(),
    };
    let receipts = Receipts {
        settled,
        metrics,
        filling: Arc::default(),
        some: usize::from(prefetch).div_ceil(2).min(SOME),
    };
    (receipts, settler)
}

/// Settles on one channel until every receipt of its generation is used or dropped.
pub struct Settler {
    settled: Receiver<Settled>,
    window: Window,
    /// Verdicts of which the broker may not have been told yet: an ack waits for those before it.
    unwritten: Vec<Settled>,
    metrics: Arc<ReceiptMetrics>,
}

impl Settler {
    /// # Errors
    /// The channel failed; its deliveries go back to the queue.
    pub async fn run(mut self, channel: Channel) -> Result<(), lapin::Error> {
        while let Some(settled) = self.settled.recv().await {
            self.settle(settled);
            for frame in self.frames() {
                send(&channel, frame).await?;
            }
            self.written();
        }
        Ok(())
    }

    fn settle(&mut self, settled: Settled) {
        self.window.settle(settled.tag, settled.verdict);
        if settled.since.is_some() || settled.trace.is_some() {
            self.unwritten.push(settled);
        }
    }

    /// Measures what the broker has been told, all at one moment.
    fn written(&mut self) {
        if self.unwritten.is_empty() {
            return;
        }
        let (now, window) = (Instant::now(), &self.window);
        for settled in self.unwritten.extract_if(.., |settled| window.is_told(settled.tag)) {
            if let Some(since) = settled.since {
                let seconds = now.saturating_duration_since(since).as_secs_f64();
                self.metrics.settle_seconds.observe(seconds);
            }
            if let Some(mut traced) = settled.trace {
                traced.trace.settled(settled.verdict.name(), settled.since, now);
                traced.end();
            }
        }
    }

    /// What to tell the broker now.
    pub fn frames(&mut self) -> Vec<Frame> {
        while let Ok(settled) = self.settled.try_recv() {
            self.settle(settled);
        }
        self.window.flush()
    }

    /// What receipts have been used for since the last call.
    #[cfg(test)]
    pub fn told(&mut self) -> Vec<(DeliveryTag, Verdict)> {
        let told = std::iter::from_fn(|| self.settled.try_recv().ok());
        told.map(|settled| (settled.tag, settled.verdict)).collect()
    }
}

async fn send(channel: &Channel, frame: Frame) -> Result<(), lapin::Error> {
    match frame {
        Frame::Ack { tag, multiple } => channel.basic_ack(tag, BasicAckOptions { multiple }).await,
        Frame::Reject { tag } => channel.basic_reject(tag, BasicRejectOptions { requeue: true }).await,
        Frame::Nack { tag } => {
            let options = BasicNackOptions {
                requeue: true,
                multiple: false,
            };
            channel.basic_nack(tag, options).await
        }
    }
}

/// One frame to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    Ack { tag: DeliveryTag, multiple: bool },
    Reject { tag: DeliveryTag },
    Nack { tag: DeliveryTag },
}

/// The window over the delivery tags of one channel: pure, so that a simulation can run it.
#[derive(Debug)]
pub struct Window {
    /// Tag of the first entry; everything below is settled with the broker.
    base: DeliveryTag,
    entries: VecDeque<Entry>,
    /// Acks that a straggler may hold up before they are sent one by one.
    held_max: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// Not settled by us.
    Open,
    /// To be told to the broker.
    Told(Verdict),
    /// The broker knows.
    Done,
}

impl Window {
    pub fn new(held_max: usize) -> Self {
        Self {
            base: 1,
            entries: VecDeque::new(),
            held_max,
        }
    }

    /// Notes a verdict. A second one for the same tag is ignored: the first may already be on its way.
    pub fn settle(&mut self, tag: DeliveryTag, verdict: Verdict) {
        let Some(index) = tag.checked_sub(self.base).and_then(|index| usize::try_from(index).ok()) else {
            return;
        };
        if index >= self.entries.len() {
            self.entries.resize(index + 1, Entry::Open);
        }
        if self.entries[index] == Entry::Open {
            self.entries[index] = Entry::Told(verdict);
        }
    }

    /// Whether the frames of a flush have told the broker about this tag.
    pub fn is_told(&self, tag: DeliveryTag) -> bool {
        let index = tag.checked_sub(self.base).and_then(|index| usize::try_from(index).ok());
        index.is_none_or(|index| self.entries.get(index) == Some(&Entry::Done))
    }

    /// The frames to send now, in order.
    ///
    /// A `multiple` ack names a tag that is still unacked, as the broker demands, and covers nothing but settled tags.
    pub fn flush(&mut self) -> Vec<Frame> {
        let mut frames = self.refusals();
        let prefix = self.entries.iter().take_while(|entry| **entry != Entry::Open).count();
        let last_ack = self.entries.iter().take(prefix).rposition(|entry| *entry == ACK);
        if let Some(index) = last_ack {
            frames.push(Frame::Ack {
                tag: self.base + index as u64,
                multiple: true,
            });
        }
        self.entries.drain(..prefix);
        self.base += prefix as u64;
        frames.extend(self.overtaking());
        frames
    }

    /// Rejects and nacks go one by one and at once; whoever gets the job next is waiting.
    fn refusals(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        for (index, entry) in self.entries.iter_mut().enumerate() {
            let tag = self.base + index as u64;
            match entry {
                Entry::Told(Verdict::Retry) => frames.push(Frame::Reject { tag }),
                Entry::Told(Verdict::GiveBack) => frames.push(Frame::Nack { tag }),
                Entry::Open | Entry::Done | Entry::Told(Verdict::Ack) => continue,
            }
            *entry = Entry::Done;
        }
        frames
    }

    /// Behind a straggler acks are worth a frame each once they hold half the prefetch window: without them the broker
    /// would send nothing more until the straggler is done.
    fn overtaking(&mut self) -> Vec<Frame> {
        let held = self.entries.iter().filter(|entry| **entry == ACK).count();
        if held <= self.held_max {
            return Vec::new();
        }
        let base = self.base;
        self.entries
            .iter_mut()
            .enumerate()
            .filter(|(_, entry)| **entry == ACK)
            .map(|(index, entry)| {
                *entry = Entry::Done;
                Frame::Ack {
                    tag: base + index as u64,
                    multiple: false,
                }
            })
            .collect()
    }
}

/// So many jobs in hand may be the beginning of a backlog.
const SOME: usize = 8;
const ACK: Entry = Entry::Told(Verdict::Ack);
/// Verdicts that wait for the settling task. Each uses up a receipt, and there is one for each delivery, so that the
/// deliveries bound them; no memory is set aside for more. The prefetch window does not: RabbitMQ 3.10 widens it by one for
/// every message that it moves to the dead letters at its delivery limit, and a verdict that found no room would leave its
/// job unacked, and the acks behind it unsaid, until the channel closes.
pub(super) const VERDICTS_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn multiple(tag: DeliveryTag) -> Frame {
        Frame::Ack { tag, multiple: true }
    }

    #[test]
    fn an_ack_is_measured_when_it_is_told_and_not_while_it_waits_for_another() {
        let metrics = super::super::testing::receipt_metrics();
        let (receipts, mut settler) = generation(100, metrics.clone());
        let measured = |settler: &mut Settler| {
            settler.frames();
            settler.written();
            metrics.settle_seconds.get_sample_count()
        };
        let [first, second, third] = [1, 2, 3].map(|tag| receipts.receipt(tag));

        second.settle_after(Verdict::Ack, Some(Instant::now()), None);
        let held_up = measured(&mut settler);
        first.settle_after(Verdict::Ack, Some(Instant::now()), None);
        let told = measured(&mut settler);
        // Nothing was published for it, so there is no time since then.
        third.settle(Verdict::Retry);

        assert_eq!((held_up, told, measured(&mut settler)), (0, 2, 2));
        assert!(settler.unwritten.is_empty());
    }

    #[test]
    fn the_settled_prefix_is_acked_with_one_frame() {
        let mut window = Window::new(100);
        for tag in [2, 1, 3] {
            window.settle(tag, Verdict::Ack);
        }

        assert_eq!(window.flush(), [multiple(3)]);
        assert_eq!(window.flush(), []);
    }

    #[test]
    fn a_straggler_holds_up_the_acks_behind_it_and_nothing_else() {
        let mut window = Window::new(100);
        window.settle(1, Verdict::Ack);
        window.settle(3, Verdict::Ack);

        let before = window.flush();
        window.settle(2, Verdict::Ack);
        let after = window.flush();

        assert_eq!(before, [multiple(1)]);
        assert_eq!(after, [multiple(3)]);
    }

    #[test]
    fn acks_overtake_a_straggler_once_they_fill_half_the_prefetch_window() {
        let mut window = Window::new(2);
        for tag in 2..=4 {
            window.settle(tag, Verdict::Ack);
        }

        let single = |tag| Frame::Ack { tag, multiple: false };
        assert_eq!(window.flush(), [single(2), single(3), single(4)]);
        window.settle(1, Verdict::Ack);
        // Not through 4: those tags are gone, and the broker closes the channel over an unknown tag.
        assert_eq!(window.flush(), [multiple(1)]);
    }

    #[test]
    fn a_refused_job_is_told_at_once_and_does_not_end_the_prefix() {
        let mut window = Window::new(100);
        window.settle(1, Verdict::Ack);
        window.settle(2, Verdict::Retry);
        window.settle(3, Verdict::Ack);
        window.settle(5, Verdict::GiveBack);

        assert_eq!(
            window.flush(),
            [Frame::Reject { tag: 2 }, Frame::Nack { tag: 5 }, multiple(3)]
        );
    }

    #[test]
    fn a_prefix_of_refusals_alone_needs_no_ack() {
        let mut window = Window::new(100);
        window.settle(1, Verdict::Retry);

        assert_eq!(window.flush(), [Frame::Reject { tag: 1 }]);
        assert_eq!(window.flush(), []);
    }

    #[test]
    fn a_receipt_of_an_old_generation_settles_nothing() {
        let (receipts, settler) = generation(8, super::super::testing::receipt_metrics());
        let late = receipts.receipt(1);

        drop(settler);

        assert!(!late.is_current());
        late.settle(Verdict::Ack);
    }

    #[test]
    fn no_verdict_is_lost_when_the_broker_hands_out_more_than_was_asked_for() {
        let metrics = super::super::testing::receipt_metrics();
        let (receipts, mut settler) = generation(2, metrics.clone());

        for tag in 1..=5 {
            receipts.receipt(tag).settle(Verdict::Ack);
        }

        assert_eq!(settler.frames(), [multiple(5)]);
        assert_eq!(metrics.dropped.get(), 0);
    }

    #[tokio::test]
    async fn half_a_window_in_hand_is_told_to_whoever_waits_for_it() {
        let (receipts, _settler) = generation(4, super::super::testing::receipt_metrics());
        let in_hand = receipts.in_hand();
        let _first = receipts.receipt(1);

        let few = in_hand.fills().now_or_never();
        let _second = receipts.receipt(2);
        let half = in_hand.fills().now_or_never();

        assert_eq!((few, half, in_hand.jobs()), (None, Some(()), 2));
    }

    #[test]
    fn a_receipt_dropped_unused_is_counted() {
        let metrics = super::super::testing::receipt_metrics();
        let (receipts, mut settler) = generation(8, metrics.clone());

        drop(receipts.receipt(1));
        receipts.receipt(2).settle(Verdict::Ack);

        assert_eq!(metrics.dropped.get(), 1);
        assert_eq!(settler.told(), [(2, Verdict::Ack)]);
    }

    /// The broker's side of one channel: which tags it waits for, and what it closes the channel over.
    struct Broker {
        unacked: std::collections::BTreeSet<DeliveryTag>,
        acked: std::collections::BTreeSet<DeliveryTag>,
    }

    impl Broker {
        fn receive(&mut self, frame: Frame) {
            match frame {
                Frame::Ack { tag, multiple } => {
                    assert!(self.unacked.contains(&tag), "406: unknown delivery tag {tag}");
                    let covered: Vec<_> = self
                        .unacked
                        .iter()
                        .copied()
                        .filter(|other| *other == tag || (multiple && *other < tag))
                        .collect();
                    for tag in covered {
                        self.unacked.remove(&tag);
                        self.acked.insert(tag);
                    }
                }
                Frame::Reject { tag } | Frame::Nack { tag } => {
                    assert!(self.unacked.remove(&tag), "406: unknown delivery tag {tag}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn in_any_order_and_with_any_flushes_each_tag_gets_its_own_verdict_once(
            verdicts in proptest::collection::vec(0_u8..3, 1..80),
            order in proptest::collection::vec(any::<u32>(), 80),
            flushes in proptest::collection::vec(any::<bool>(), 80),
            held_max in 0_usize..40,
        ) {
            let tags = verdicts.len() as u64;
            let verdict = |tag: DeliveryTag| match verdicts[tag as usize - 1] {
                0 => Verdict::Ack,
                1 => Verdict::Retry,
                _ => Verdict::GiveBack,
            };
            let mut arrival: Vec<DeliveryTag> = (1..=tags).collect();
            arrival.sort_by_key(|tag| order[*tag as usize - 1]);
            let mut broker = Broker { unacked: (1..=tags).collect(), acked: Default::default() };
            let mut window = Window::new(held_max);
            let mut settled = std::collections::BTreeSet::new();

            for (tag, flush) in arrival.into_iter().zip(flushes) {
                window.settle(tag, verdict(tag));
                settled.insert(tag);
                if flush {
                    window.flush().into_iter().for_each(|frame| broker.receive(frame));
                }
                prop_assert!(broker.acked.is_subset(&settled), "acked before it was settled");
            }
            window.flush().into_iter().for_each(|frame| broker.receive(frame));

            prop_assert!(broker.unacked.is_empty());
            let expected: std::collections::BTreeSet<_> = (1..=tags).filter(|tag| verdict(*tag) == Verdict::Ack).collect();
            prop_assert_eq!(broker.acked, expected);
        }
    }
}
