//! How a job ended, in the words of `inferq-status` and of an error reply's `code`.

use std::fmt;
use std::str::FromStr;

/// The outcome of a job; the names are gRPC's, so that they need no explanation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    Ok,
    InvalidArgument,
    NotFound,
    DeadlineExceeded,
    Internal,
    Unavailable,
}

impl Status {
    /// Every status, in the order of DESIGN's table.
    pub const ALL: [Self; 6] = [
        Self::Ok,
        Self::InvalidArgument,
        Self::NotFound,
        Self::DeadlineExceeded,
        Self::Internal,
        Self::Unavailable,
    ];

    /// Name on the wire, such as `INVALID_ARGUMENT`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::NotFound => "NOT_FOUND",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Internal => "INTERNAL",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

/// What a dead letter has in the place of a status: the job was computed, and its reply found no queue.
pub const UNROUTABLE_REPLY: &str = "UNROUTABLE_REPLY";

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|status| status.name() == name)
            .ok_or(UnknownStatus)
    }
}

/// The name is none of the statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a status; allowed are OK, INVALID_ARGUMENT, NOT_FOUND, DEADLINE_EXCEEDED, INTERNAL and UNAVAILABLE")]
pub struct UnknownStatus;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_found_by_its_name_and_the_refusal_lists_them_all() {
        for status in Status::ALL {
            assert_eq!(status.to_string().parse(), Ok(status));
            assert!(UnknownStatus.to_string().contains(status.name()));
        }

        assert_eq!("ok".parse::<Status>(), Err(UnknownStatus));
    }
}
