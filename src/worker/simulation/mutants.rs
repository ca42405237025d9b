//! Mistakes that somebody could make, planted one at a time. Each test fails if the simulation does not see the mistake.

use super::super::reply::{Answer, Outcome};
use super::super::settle::{Frame, Settler, Verdict};
use super::super::unconfirmed::{Address, Confirmed};
use crate::error::JobError;
use crate::wire::status::Status;

/// One mistake, and where it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A published reply counts as confirmed.
    AckBeforeConfirm,
    /// What was not confirmed when the channel was lost counts as confirmed.
    LostChannelConfirms,
    /// A confirm of any kind is an ack.
    NackTakenForAck,
    /// A return belongs to the confirm that carries it.
    ReturnBelongsToItsCarrier,
    /// A refused message cannot carry a return.
    RefusedCarriesNothing,
    /// Returns are not looked at.
    ReturnsIgnored,
    /// A receipt of a lost channel settles on the next.
    OldGenerationSettles,
    /// An ack covers all tags below it, settled or not.
    WindowPastGap,
    /// A reject counts as an ack.
    RejectIsAck,
    /// Tags are acked one by one a second time.
    SettledTwice,
    /// Whether a delivery comes again is not looked at.
    RedeliveryForgotten,
    /// The first two rows of a run change places.
    RowsSwapped,
    /// A slice of a big job gets the rows of the one before.
    SliceRepeated,
    /// A failed batch is not run in halves.
    NotBisected,
    /// What was refused is dropped when the publishing channel is lost.
    RefusedDropped,
    /// What is held back counts as confirmed.
    HeldTakenForConfirmed,
    /// A drain forgets what is held back.
    HeldWhileDraining,
    /// A drain leaves out what waits for an engine.
    DrainDropsBatch,
    /// The memory of a job is not given back.
    MemoryKept,
    /// Jobs that were set aside are forgotten.
    AsideForgotten,
    /// A step of the wall clock moves the deadlines of jobs that are already taken.
    DeadlineOnWallClock,
    /// Whether a batch ends before its earliest deadline is not looked at.
    EstimateIgnored,
    /// Who came first goes first, whatever the deadlines.
    OrderOfArrival,
    /// There is room for as many verdicts as deliveries were asked for.
    WindowTakenForExact,
}

impl Mutant {
    /// Makes a confirm of the message of this address say something else.
    pub fn confirm(self, confirm: &mut Confirmed, address: Option<Address>) {
        match self {
            Self::NackTakenForAck => confirm.refused = false,
            Self::ReturnsIgnored => confirm.returned = None,
            Self::RefusedCarriesNothing if confirm.refused => confirm.returned = None,
            Self::ReturnBelongsToItsCarrier if confirm.returned.is_some() => confirm.returned = address,
            _ => {}
        }
    }

    /// The frames to the broker.
    pub fn frames(self, settler: &mut Settler, old: &mut [Settler]) -> Vec<Frame> {
        let naive = |(tag, verdict)| match verdict {
            Verdict::Ack => Frame::Ack { tag, multiple: true },
            Verdict::Retry => Frame::Reject { tag },
            Verdict::GiveBack => Frame::Nack { tag },
        };
        let mut frames = match self {
            Self::WindowPastGap => settler.told().into_iter().map(naive).collect(),
            _ => settler.frames(),
        };
        match self {
            Self::OldGenerationSettles => frames.extend(old.iter_mut().flat_map(Settler::frames)),
            Self::RejectIsAck => {
                for frame in &mut frames {
                    if let Frame::Reject { tag } = *frame {
                        *frame = Frame::Ack { tag, multiple: false };
                    }
                }
            }
            Self::SettledTwice => frames.extend(frames.last().copied()),
            _ => {}
        }
        frames
    }

    /// What a batch comes to.
    pub fn answers(self, answers: &mut [Answer]) {
        if self == Self::NotBisected && answers.iter().any(|answer| answer.outcome.status() == Status::Internal) {
            for answer in answers {
                answer.outcome = Outcome::Failure(JobError::Failed("the batch failed".to_owned()));
            }
        }
    }
}

/// Seeds that a mistake has to be seen in. Most are seen within a hundred.
const SCHEDULES: u64 = 100_000;

/// One test for each mistake, which says the invariant that it breaks.
macro_rules! caught {
    ($($test:ident: $mutant:ident breaks $invariant:pat,)*) => {
        $(
            #[test]
            fn $test() {
                let failure = super::search::search(0, SCHEDULES, Some(Mutant::$mutant)).expect("the simulation sees the mistake");

                println!("{failure}");
                let broken = failure.violation.split(':').next().unwrap();
                assert!(matches!(broken, $invariant), "{failure}");
            }
        )*
    };
}

caught! {
    an_ack_before_the_confirm_is_seen: AckBeforeConfirm breaks "I2",
    a_lost_channel_taken_for_a_confirm_is_seen: LostChannelConfirms breaks "I2",
    a_nack_taken_for_an_ack_is_seen: NackTakenForAck breaks "I2",
    a_return_credited_to_the_confirm_that_carries_it_is_seen: ReturnBelongsToItsCarrier breaks "I1" | "I2",
    a_return_lost_with_a_refusal_is_seen: RefusedCarriesNothing breaks "I2",
    returns_that_nobody_looks_at_are_seen: ReturnsIgnored breaks "I2",
    an_ack_of_an_old_generation_is_seen: OldGenerationSettles breaks "I2" | "I5",
    an_ack_past_a_gap_is_seen: WindowPastGap breaks "I2" | "I5",
    a_reject_taken_for_an_ack_is_seen: RejectIsAck breaks "I2",
    an_ack_sent_twice_is_seen: SettledTwice breaks "I2" | "I5",
    a_lost_redelivery_flag_is_seen: RedeliveryForgotten breaks "I1" | "I7",
    rows_that_change_places_are_seen: RowsSwapped breaks "I4",
    a_slice_that_is_sent_twice_is_seen: SliceRepeated breaks "I4",
    a_batch_that_is_not_bisected_is_seen: NotBisected breaks "I7",
    a_refused_reply_dropped_with_its_channel_is_seen: RefusedDropped breaks "I1",
    a_held_reply_taken_for_a_confirmed_one_is_seen: HeldTakenForConfirmed breaks "I2",
    a_drain_that_forgets_held_replies_is_seen: HeldWhileDraining breaks "I6",
    a_drain_that_drops_what_is_held_is_seen: DrainDropsBatch breaks "I6",
    a_verdict_without_room_is_seen: WindowTakenForExact breaks "I1" | "I6",
    memory_that_is_not_given_back_is_seen: MemoryKept breaks "I1" | "I3",
    a_job_set_aside_for_ever_is_seen: AsideForgotten breaks "I1" | "I6",
    a_deadline_on_the_wall_clock_is_seen: DeadlineOnWallClock breaks "I8",
    a_batch_too_big_for_its_earliest_deadline_is_seen: EstimateIgnored breaks "I8",
    a_batch_in_the_order_of_arrival_is_seen: OrderOfArrival breaks "I9",
}
