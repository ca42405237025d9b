//! Where the time of an answer went, as its headers say it.

use std::time::Duration;

use lapin::types::AMQPValue;
use tokio::time::Instant;

use crate::wire::headers;

/// How a worker spent the time on a job. What is left of [`super::Answer::latency`] is the way of the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From publishing to delivery, by the clocks of producer and worker; `None` if the job had no stamp.
    pub queue: Option<Duration>,
    /// From delivery to the run.
    pub wait: Duration,
    /// The run of the whole batch.
    pub infer: Duration,
    /// From delivery to the reply.
    pub total: Duration,
}

impl Timing {
    /// `None` unless all that a worker says of every result is there.
    pub fn of<'a>(header: impl Fn(&'static str) -> Option<&'a AMQPValue>) -> Option<Self> {
        let micros = |name| {
            let micros = u64::try_from(headers::integer(header(name)?)?).ok()?;
            Some(Duration::from_micros(micros))
        };
        Some(Self {
            queue: micros("inferq-queue-us"),
            wait: micros("inferq-wait-us")?,
            infer: micros("inferq-infer-us")?,
            total: micros("inferq-total-us")?,
        })
    }

    /// The worker counted from whole milliseconds, so that its queue begins before the job was published.
    pub fn after(self, stamp: Stamp) -> Self {
        Self {
            queue: self.queue.map(|queue| queue.saturating_sub(stamp.unstamped)),
            ..self
        }
    }
}

/// When a job was published first.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    pub sent: Instant,
    /// What the job's stamp, in whole milliseconds, leaves out of that time.
    pub unstamped: Duration,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_queue_begins_when_the_job_was_published_and_not_at_its_stamp() {
        let headers = [("queue", 1_400), ("wait", 20), ("infer", 300), ("total", 500)];
        let headers: BTreeMap<String, AMQPValue> = headers
            .map(|(name, micros)| (format!("inferq-{name}-us"), AMQPValue::LongLongInt(micros)))
            .into();
        let stamp = |micros| Stamp {
            sent: Instant::now(),
            unstamped: Duration::from_micros(micros),
        };

        let timing = Timing::of(|name| headers.get(name)).unwrap();

        assert_eq!(timing.after(stamp(900)).queue, Some(Duration::from_micros(500)));
        assert_eq!(timing.after(stamp(1_500)).queue, Some(Duration::ZERO));
        assert_eq!(timing.total, Duration::from_micros(500));
        assert_eq!(
            Timing::of(|name| headers.get(name).filter(|_| name != "inferq-wait-us")),
            None
        );
    }
}
