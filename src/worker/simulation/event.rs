//! What schedules are for.

/// What a schedule is for; one in which nothing of it happens proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Enqueued,
    Returned,
    Refused,
    /// Its destination takes nothing at the moment.
    HeldBack,
    /// A reply that is held back no longer, or not at all.
    TurnedAway,
    /// A confirm carries the return of another message.
    CarriedByAnother,
    /// A refusal carries a return.
    CarriedByRefusal,
    Redelivered,
    SharedBatch,
    Sliced,
    Expired,
    /// Refused, since it could not be run in time.
    OutOfReach,
    Exhausted,
    Requeued,
    DroppedByBroker,
    /// The broker has handed out more than was asked for.
    WindowExceeded,
    MemoryShort,
    AckLost,
    ConfirmLost,
    ClosedOverMessage,
    Died,
    Drained,
}

impl Event {
    pub const ALL: [Self; 22] = [
        Self::Enqueued,
        Self::Returned,
        Self::Refused,
        Self::HeldBack,
        Self::TurnedAway,
        Self::CarriedByAnother,
        Self::CarriedByRefusal,
        Self::Redelivered,
        Self::SharedBatch,
        Self::Sliced,
        Self::Expired,
        Self::OutOfReach,
        Self::Exhausted,
        Self::Requeued,
        Self::DroppedByBroker,
        Self::WindowExceeded,
        Self::MemoryShort,
        Self::AckLost,
        Self::ConfirmLost,
        Self::ClosedOverMessage,
        Self::Died,
        Self::Drained,
    ];
}
