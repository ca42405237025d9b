//! Watching: a run that takes too long is told to stop, and one that does not stop ends the worker.
//!
//! The broker takes the jobs of a worker away after its consumer timeout, half an hour unless set, and would go on doing so
//! for ever. A run is therefore ended long before, and the job behind it answered.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Fatal, WorkerError};

/// Ends a run from another thread.
pub trait Stop: Send + Sync {
    /// Tells the run to end and returns at once.
    fn stop(&self);
}

/// What one engine's thread is running at the moment, if anything.
#[derive(Clone, Default)]
pub struct Watched(Arc<Mutex<Option<Running>>>);

struct Running {
    since: Instant,
    stop: Option<Arc<dyn Stop>>,
    told: Option<Instant>,
}

impl Watched {
    /// A run begins.
    pub fn begin(&self, now: Instant, stop: Option<Arc<dyn Stop>>) {
        let running = Running {
            since: now,
            stop,
            told: None,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
    }

    /// The run is over: from here on nobody stops it. Says whether it had been told to stop.
    pub fn end(&self) -> bool {
        let ended = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        ended.is_some_and(|running| running.told.is_some())
    }

    /// Tells a run that has lasted too long to stop, and says whether one that was told is still there too long after.
    fn is_hung(&self, now: Instant, patience: Patience) -> bool {
        // Held while telling: what is told must be this run and not the next.
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(running) = &mut *slot else { return false };
        match running.told {
            Some(told) => now.saturating_duration_since(told) >= patience.stop_max,
            None if now.saturating_duration_since(running.since) >= patience.run_max => {
                if let Some(stop) = &running.stop {
                    stop.stop();
                }
                running.told = Some(now);
                false
            }
            None => false,
        }
    }
}

/// How long a run may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// `worker.run_timeout_ms`: then it is told to stop.
    pub run_max: Duration,
    /// How long it may take to stop.
    pub stop_max: Duration,
}

/// Watches all engines of a worker.
pub struct Watch {
    /// With the model that each runs.
    pub engines: Vec<(Arc<str>, Watched)>,
    pub patience: Patience,
    pub fatal: Fatal,
    /// Fires when there is nothing to watch any more.
    pub closed: CancellationToken,
}

impl Watch {
    pub async fn run(self) {
        let mut look = tokio::time::interval((self.patience.run_max / 4).min(LOOK_MAX));
        loop {
            tokio::select! {
                _ = look.tick() => {}
                () = self.closed.cancelled() => return,
            }
            let now = Instant::now();
            let mut engines = self.engines.iter();
            if let Some((model, _)) = engines.find(|(_, watched)| watched.is_hung(now, self.patience)) {
                return self.fatal.raise(WorkerError::Hung {
                    model: model.to_string(),
                    run_max_ms: self.patience.run_max.as_millis(),
                    stop_max_ms: self.patience.stop_max.as_millis(),
                });
            }
        }
    }
}

/// A runtime that listens stops between two nodes of the graph; one that has not by then never will.
pub const STOP_MAX: Duration = Duration::from_secs(5);
/// A run is stopped at most this late.
const LOOK_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::mpsc;

    use super::*;

    #[derive(Default)]
    struct Stops(AtomicU32);

    impl Stop for Stops {
        fn stop(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    const PATIENCE: Patience = Patience {
        run_max: Duration::from_secs(60),
        stop_max: Duration::from_secs(5),
    };

    fn watch(watched: &Watched) -> (Watch, mpsc::Receiver<WorkerError>) {
        let (fatal, errors) = mpsc::channel(1);
        let watch = Watch {
            engines: vec![("idle".into(), Watched::default()), ("pair".into(), watched.clone())],
            patience: Patience {
                run_max: Duration::from_millis(4),
                stop_max: Duration::from_millis(3),
            },
            fatal: Fatal(fatal),
            closed: CancellationToken::new(),
        };
        (watch, errors)
    }

    #[test]
    fn a_run_is_told_to_stop_once_and_only_when_its_time_is_over() {
        let (watched, stops) = (Watched::default(), Arc::new(Stops::default()));
        let began = Instant::now();
        watched.begin(began, Some(stops.clone()));

        let told = [0, 59, 60, 64].map(|seconds| {
            let hung = watched.is_hung(began + Duration::from_secs(seconds), PATIENCE);
            (hung, stops.0.load(Ordering::Relaxed))
        });

        assert_eq!(told, [(false, 0), (false, 0), (false, 1), (false, 1)]);
        assert!(watched.end());
        assert!(!watched.is_hung(began + Duration::from_secs(1000), PATIENCE));
    }

    #[test]
    fn a_run_that_ends_in_time_is_not_told_and_neither_is_the_next() {
        let (watched, stops) = (Watched::default(), Arc::new(Stops::default()));
        let began = Instant::now();
        watched.begin(began, Some(stops.clone()));
        assert!(!watched.end());

        watched.begin(began + Duration::from_secs(59), Some(stops.clone()));
        let hung = watched.is_hung(began + Duration::from_secs(61), PATIENCE);

        assert!(!hung && stops.0.load(Ordering::Relaxed) == 0);
    }

    #[tokio::test]
    async fn a_run_that_does_not_stop_ends_the_worker_with_the_model_and_the_limit() {
        let watched = Watched::default();
        let (watch, mut errors) = watch(&watched);
        let stops = Arc::new(Stops::default());
        watched.begin(Instant::now(), Some(stops.clone()));

        watch.run().await;

        let error = errors.recv().await.unwrap().to_string();
        assert_eq!(stops.0.load(Ordering::Relaxed), 1);
        assert!(
            error.contains("`pair`") && error.contains("limit of 4 ms (worker.run_timeout_ms)"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn watching_ends_with_the_worker() {
        let (watch, mut errors) = watch(&Watched::default());
        watch.closed.cancel();

        watch.run().await;

        assert!(errors.recv().await.is_none());
    }
}
