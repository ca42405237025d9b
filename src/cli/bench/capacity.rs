//! The search for the highest rate at which a latency goal holds. Pure: the caller measures.

use std::time::Duration;

use super::rates::RATE_MAX;

/// Doubles the rate until the goal breaks, then halves the distance between what held and what broke.
#[derive(Debug)]
pub struct Search {
    first: f64,
    held: Option<f64>,
    broken: Option<f64>,
}

impl Search {
    pub fn from(first: f64) -> Self {
        Self {
            first,
            held: None,
            broken: None,
        }
    }

    /// The rate to try next; `None` once the answer is known.
    pub fn next(&self) -> Option<f64> {
        match (self.held, self.broken) {
            (None, None) => Some(self.first),
            (Some(held), None) => (held < RATE_MAX).then(|| (held * GROWTH).min(RATE_MAX)),
            (None, Some(broken)) => (broken > self.first / LOWEST).then_some(broken / GROWTH),
            // In ratios, as all of it.
            (Some(held), Some(broken)) => (broken / held > PRECISION).then(|| (held * broken).sqrt()),
        }
    }

    /// Notes what came of a rate. A goal that breaks below a rate at which it held is believed.
    pub fn note(&mut self, rate: f64, held: bool) {
        if held {
            self.held = Some(self.held.map_or(rate, |before| before.max(rate)));
        } else {
            self.broken = Some(self.broken.map_or(rate, |before| before.min(rate)));
        }
    }
}

/// What was measured at one rate.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub goal: Duration,
    pub p99: Duration,
    /// Jobs that were due.
    pub due: u64,
    /// Jobs that were due and could not be sent.
    pub not_sent: u64,
    /// Jobs without a result: lost, refused, wrong.
    pub failed: u64,
    /// Jobs that were due and not answered, when the measuring began and when the last job was due.
    pub waiting_first: u64,
    pub waiting_last: u64,
    /// By how much the load generator was late, where it was not held up by jobs under way.
    pub late_p99: Duration,
}

/// Why a rate is too high.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The goal broke.
    Latency,
    /// More jobs came than were answered.
    Backlog,
    /// Jobs were not answered with a result.
    Failures,
    /// The load generator could not send in time: nothing is known of the workers.
    LoadGenerator,
}

impl Step {
    /// Why this rate is too high; `None` if it is not.
    pub fn limit(&self) -> Option<Limit> {
        // First, since a load that came late says nothing of those who answer it.
        if self.late_p99 * 2 > self.goal {
            return Some(Limit::LoadGenerator);
        }
        if self.failed > 0 {
            return Some(Limit::Failures);
        }
        let grown = self.waiting_last.saturating_sub(self.waiting_first);
        if self.not_sent > 0 || (grown as f64 > BACKLOG_SHARE * self.due as f64 && grown > BACKLOG_MIN) {
            return Some(Limit::Backlog);
        }
        (self.p99 > self.goal).then_some(Limit::Latency)
    }
}

impl Limit {
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Latency => "the goal broke",
            Self::Backlog => "jobs came faster than they were answered",
            Self::Failures => "jobs were not answered with a result",
            Self::LoadGenerator => "the load generator could not send in time",
        }
    }
}

const GROWTH: f64 = 2.0;
/// Capacity is known to within 5 %, which is what runs differ by.
const PRECISION: f64 = 1.05;
/// Down to an eighth of the first rate: below that the goal is out of reach, or the first rate was a mistake.
const LOWEST: f64 = 8.0;
/// A twentieth of the jobs more in the queue at the end: at 5 % over capacity.
const BACKLOG_SHARE: f64 = 0.05;
/// A few jobs more or less are under way at any moment.
const BACKLOG_MIN: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches a fleet that can do `capacity` jobs a second; the rates that were tried.
    fn tried(first: f64, capacity: f64) -> (Vec<f64>, Search) {
        let mut search = Search::from(first);
        let mut tried = Vec::new();
        while let Some(rate) = search.next() {
            tried.push(rate);
            search.note(rate, rate <= capacity);
        }
        (tried, search)
    }

    #[test]
    fn the_rate_doubles_until_it_breaks_and_is_then_narrowed_down() {
        for capacity in [100.0, 137.0, 9_999.0, 250_000.0] {
            let (tried, search) = tried(100.0, capacity);

            assert_eq!(tried[0], 100.0);
            let held = search.held.unwrap();
            assert!(held <= capacity && capacity < held * PRECISION, "{capacity}: {held}");
            assert!(tried.len() <= 17, "{capacity}: {tried:?}");
        }
    }

    #[test]
    fn a_first_rate_that_is_too_high_is_lowered_to_an_eighth_and_no_further() {
        let (lowered, search) = tried(100.0, 30.0);
        let (in_vain, nothing) = tried(100.0, 1.0);

        assert_eq!(lowered[..3], [100.0, 50.0, 25.0]);
        assert!(search.held.is_some_and(|held| held > 28.0));
        assert_eq!(in_vain, [100.0, 50.0, 25.0, 12.5]);
        assert_eq!(nothing.held, None);
    }

    #[test]
    fn a_fleet_without_a_limit_ends_the_search_at_the_highest_rate() {
        let (tried, search) = tried(100.0, f64::INFINITY);

        assert_eq!(tried.last(), Some(&RATE_MAX));
        assert_eq!(search.held, Some(RATE_MAX));
    }

    #[test]
    fn a_rate_is_too_high_for_one_of_four_reasons() {
        let ms = Duration::from_millis;
        let good = Step {
            goal: ms(50),
            p99: ms(50),
            due: 1_000,
            not_sent: 0,
            failed: 0,
            waiting_first: 40,
            waiting_last: 90,
            late_p99: ms(1),
        };

        assert_eq!(good.limit(), None);
        assert_eq!(Step { p99: ms(51), ..good }.limit(), Some(Limit::Latency));
        assert_eq!(
            Step {
                waiting_last: 91,
                ..good
            }
            .limit(),
            Some(Limit::Backlog)
        );
        assert_eq!(Step { not_sent: 1, ..good }.limit(), Some(Limit::Backlog));
        assert_eq!(Step { failed: 1, ..good }.limit(), Some(Limit::Failures));
        let late = Step {
            late_p99: ms(26),
            p99: ms(80),
            ..good
        };
        assert_eq!(late.limit(), Some(Limit::LoadGenerator));
        // With few jobs a few more under way are no backlog.
        let few = Step {
            due: 20,
            waiting_first: 0,
            waiting_last: 10,
            ..good
        };
        assert_eq!(few.limit(), None);
    }
}
