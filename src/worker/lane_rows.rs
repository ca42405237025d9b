//! Knowledge of a lane's rows: gained when the model was loaded, and withdrawn for good by a run that shows otherwise.

use std::sync::atomic::{AtomicBool, Ordering};

use super::row_headers::RowHeaders;
use crate::model::batching::Batching;
use crate::wire::rows::RowRelation;

/// The right of several jobs to share a run, and the headers of results, while they hold.
///
/// Threads need no more than the one flag in common: a job that was decoded by what is withdrawn is passed on through channels,
/// and the stages that take it from there see the flag as that decoder did, or later. Within a batch the flag is read once.
#[derive(Debug)]
pub struct LaneRows {
    is_batched: bool,
    headers: RowHeaders,
    /// In the place of `headers` once they are withdrawn.
    unknown: RowHeaders,
    withdrawn: AtomicBool,
}

impl LaneRows {
    pub fn new(batching: &Batching, headers: RowHeaders) -> Self {
        Self {
            is_batched: *batching == Batching::Rows,
            headers,
            unknown: RowHeaders::unknown(),
            withdrawn: AtomicBool::new(false),
        }
    }

    /// Tells whether rows of several jobs may run together.
    pub fn are_batched(&self) -> bool {
        self.is_batched && self.holds()
    }

    /// Tells whether every output is taken to have one row for each row of the inputs.
    pub fn are_independent(&self) -> bool {
        self.headers().relation() == RowRelation::Independent
    }

    pub fn headers(&self) -> &RowHeaders {
        if self.holds() { &self.headers } else { &self.unknown }
    }

    /// Ends batching for good, since a run has shown that rows are not what they were taken for. Returns whether it is the first.
    pub fn withdraw(&self) -> bool {
        !self.withdrawn.swap(true, Ordering::Relaxed)
    }

    fn holds(&self) -> bool {
        !self.withdrawn.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knowledge_is_withdrawn_once() {
        let rows = LaneRows::new(&Batching::Rows, RowHeaders::independent());
        let before = (rows.are_batched(), rows.are_independent(), rows.headers().relation());

        let withdrawn = [rows.withdraw(), rows.withdraw()];

        assert_eq!(before, (true, true, RowRelation::Independent));
        assert_eq!(withdrawn, [true, false]);
        assert_eq!((rows.are_batched(), rows.are_independent()), (false, false));
        assert_eq!(rows.headers().relation(), RowRelation::Unknown);
    }

    #[test]
    fn rows_may_be_independent_though_the_owner_wants_no_batches() {
        let reason = "model.toml says batching = false".to_owned();
        let rows = LaneRows::new(&Batching::Off { reason }, RowHeaders::independent());

        assert_eq!((rows.are_batched(), rows.are_independent()), (false, true));
    }
}
