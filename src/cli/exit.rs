//! The exit code of a command that failed: whether another try may do, or what a human has to change first.

use std::error::Error;

use super::bench::{ArgumentFault, BenchError};
use super::dead::DeadError;
use super::predict::PredictError;
use super::topology::TopologyError;
use crate::broker::{self, BrokerError};
use crate::client::CallError;
use crate::config::ConfigError;
use crate::worker::WorkerError;

/// Returns the exit code that says whose move it is.
pub fn code(error: &anyhow::Error) -> u8 {
    if error.is::<ConfigError>() || error.is::<ArgumentFault>() {
        BAD_CONFIGURATION
    } else if error.chain().any(is_permanent) {
        PERMANENT
    } else {
        FATAL
    }
}

/// True of an error that another try would meet as well.
fn is_permanent(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<BrokerError>() {
        error.is_permanent()
    } else if let Some(error) = error.downcast_ref::<lapin::Error>() {
        broker::is_permanent(error)
    } else if let Some(error) = error.downcast_ref::<CallError>() {
        matches!(error, CallError::Forbidden(_))
    } else if let Some(error) = error.downcast_ref::<WorkerError>() {
        matches!(error, WorkerError::Topology(_) | WorkerError::Channels(_))
    } else {
        is_permanent_for_a_command(error)
    }
}

/// As [`is_permanent`], of the commands' own errors: what their transparent variants hold is not in the chain of causes.
fn is_permanent_for_a_command(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<TopologyError>() {
        let TopologyError::Unfit { permanent, .. } = error;
        *permanent > 0
    } else if let Some(error) = error.downcast_ref::<DeadError>() {
        match error {
            DeadError::Broker(error) => error.is_permanent(),
            DeadError::Endangered { .. } => true,
            _ => false,
        }
    } else if let Some(error) = error.downcast_ref::<BenchError>() {
        matches!(error, BenchError::Client(error) if error.is_permanent())
    } else if let Some(error) = error.downcast_ref::<PredictError>() {
        is_permanent_for_predict(error)
    } else {
        false
    }
}

fn is_permanent_for_predict(error: &PredictError) -> bool {
    match error {
        PredictError::Client(error) => error.is_permanent(),
        PredictError::Call(error) => matches!(error, CallError::Forbidden(_)),
        PredictError::Kept { reason, .. } => is_permanent_for_predict(reason),
        _ => false,
    }
}

/// Anything fatal that another try may not meet.
const FATAL: u8 = 1;
/// Bad configuration or arguments.
const BAD_CONFIGURATION: u8 = 2;
/// Someone has to change an address, a login, a certificate, a permission or a queue before another try is of use.
const PERMANENT: u8 = 3;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::ClientError;

    fn refused() -> BrokerError {
        BrokerError::NotEncrypted
    }

    fn forbidden() -> CallError {
        CallError::Forbidden("no permission".to_owned())
    }

    #[test]
    fn a_permanent_fault_is_found_under_every_command() {
        let kept = PredictError::Kept {
            rows: 3,
            part: "answers.part".into(),
            reason: Box::new(PredictError::Call(forbidden())),
        };
        let stopped = DeadError::Interrupted {
            done: 3,
            what: "sent again",
            source: refused(),
        };
        let probe = BenchError::Probe {
            model: "m".to_owned(),
            cause: forbidden(),
        };
        let errors: Vec<anyhow::Error> = vec![
            refused().into(),
            DeadError::Broker(refused()).into(),
            stopped.into(),
            PredictError::Client(ClientError::Broker(refused())).into(),
            kept.into(),
            BenchError::Client(ClientError::Broker(refused())).into(),
            probe.into(),
            anyhow::Error::from(refused()).context("while looking"),
        ];

        for error in errors {
            assert_eq!(code(&error), PERMANENT, "{error:#}");
        }
    }

    #[test]
    fn another_try_may_find_what_was_only_away() {
        let away = || BrokerError::Silent(Duration::from_secs(1));
        let missing = TopologyError::Unfit {
            unfit: 4,
            permanent: 0,
            of: 4,
        };
        let errors: Vec<anyhow::Error> = vec![
            away().into(),
            DeadError::Broker(away()).into(),
            PredictError::Client(ClientError::NoExchange("inferq".to_owned())).into(),
            PredictError::Call(CallError::Lost("it is away".to_owned())).into(),
            WorkerError::Device("Xid 79".to_owned()).into(),
            missing.into(),
            anyhow::anyhow!("a full disk"),
        ];

        for error in errors {
            assert_eq!(code(&error), FATAL, "{error:#}");
        }
    }
}
