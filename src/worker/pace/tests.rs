use proptest::prelude::*;

use super::*;
use crate::model::capacity::Capacity;

/// One model under a clock of our own.
struct Watched {
    paces: Paces,
    began: Instant,
    seconds: f64,
    settled: SettledSoFar,
}

impl Watched {
    fn new() -> Self {
        let mut paces = Paces::new(1);
        paces.join();
        Self {
            paces,
            began: Instant::now(),
            seconds: 0.0,
            settled: SettledSoFar {
                jobs: 0,
                rows: 0,
                last: None,
            },
        }
    }

    /// So much later so many more jobs of two rows are settled, and so many are left.
    fn look(&mut self, later: f64, settled: u64, ready: u64, in_hand: u64) -> Option<Shown> {
        self.seconds += later;
        self.settled.jobs += settled;
        self.settled.rows += 2 * settled;
        let at = self.began + Duration::from_secs_f64(self.seconds);
        if settled > 0 {
            self.settled.last = Some(at);
        }
        let look = Look {
            at,
            ready,
            in_hand,
            window: 10,
            settled: self.settled,
            expected: Some(expected()),
        };
        self.paces.look(0, look, Duration::ZERO).shown
    }

    /// Under full load at so many jobs a second, for five seconds.
    fn saturate(&mut self, rate: u64) -> Shown {
        self.look(0.25, 0, 100_000, 10);
        let mut shown = None;
        for _ in 0..5 {
            shown = self.look(1.0, rate, 90_000, 10);
        }
        shown.unwrap()
    }
}

/// Engines that need a microsecond a job.
fn expected() -> Expected {
    let load = Load {
        capacity: Capacity {
            seconds_per_row: 5e-7,
            seconds_per_run: 0.0,
        },
        engines: 1,
        rows_max: Some(64),
        job_rows: 2.0,
    };
    Expected::new(&load, 10, Duration::ZERO, Duration::ZERO)
}

fn is_near(got: f64, wanted: f64) -> bool {
    (got / wanted).ln().abs() < 0.05
}

#[test]
fn what_is_settled_under_full_load_counts_whatever_engines_say() {
    let shown = Watched::new().saturate(1_000);

    assert!(is_near(shown.seconds, 90.01), "{shown:?}");
    assert!(is_near(shown.rows_per_second, 2_000.0), "{shown:?}");
    assert!(!shown.is_estimate);
}

#[test]
fn before_full_load_the_parts_say_it_and_it_is_called_an_estimate() {
    let mut watched = Watched::new();

    let shown = watched.look(1.0, 0, 0, 5).unwrap();

    assert!(shown.is_estimate && is_near(shown.seconds, 5e-6), "{shown:?}");
}

#[test]
fn jobs_that_wait_at_the_very_first_look_have_no_figure_yet() {
    let mut watched = Watched::new();

    let first = watched.look(0.0, 0, 1_000, 10);
    let second = watched.look(0.25, 25, 975, 10).unwrap();

    assert_eq!(first, None);
    assert!(is_near(second.seconds, 9.85), "{second:?}");
}

#[test]
fn what_was_seen_is_remembered_while_there_is_little_to_do() {
    let mut watched = Watched::new();
    watched.saturate(1_000);

    for _ in 0..20 {
        watched.look(5.0, 3, 0, 0);
    }
    let shown = watched.look(1.0, 0, 50_000, 10).unwrap();

    assert!(is_near(shown.seconds, 50.01) && !shown.is_estimate, "{shown:?}");
}

#[test]
fn a_change_under_full_load_is_followed_within_seconds() {
    let mut watched = Watched::new();
    watched.saturate(1_000);

    for _ in 0..8 {
        watched.look(1.0, 100, 80_000, 10);
    }
    let shown = watched.look(1.0, 100, 80_000, 10).unwrap();

    assert!(is_near(shown.rows_per_second, 200.0), "{shown:?}");
}

#[test]
fn a_pause_of_the_producer_is_not_the_speed_of_the_worker() {
    let mut watched = Watched::new();
    watched.saturate(1_000);
    let before = watched.look(1.0, 1_000, 20, 10).unwrap().rows_per_second;

    // Half of the time there is nothing to do, though something waits at every look.
    for _ in 0..20 {
        watched.look(1.0, 500, 20, 10);
    }
    let shown = watched.look(1.0, 500, 20, 10).unwrap();

    assert!(is_near(shown.rows_per_second, before), "{shown:?}");
}

#[test]
fn more_than_was_thought_possible_is_believed_without_full_load() {
    let mut watched = Watched::new();
    watched.saturate(100);

    let shown = watched.look(5.0, 5_000, 0, 0).unwrap();

    assert!(shown.rows_per_second > 1_900.0, "{shown:?}");
}

#[test]
fn a_stall_is_seen_before_the_next_job_is_settled() {
    let mut watched = Watched::new();
    let before = watched.saturate(100).seconds;

    let mut shown = None;
    for _ in 0..60 {
        shown = watched.look(1.0, 0, 90_000, 10);
    }

    assert!(shown.unwrap().seconds > 5.0 * before, "{shown:?}");
}

#[test]
fn a_new_channel_forgets_what_was_seen_last_but_not_the_rate() {
    let mut watched = Watched::new();
    watched.saturate(1_000);

    watched.paces.leave(0);
    let shown = watched.look(60.0, 0, 10_000, 0).unwrap();

    assert!(is_near(shown.seconds, 10.0), "{shown:?}");
}

#[test]
fn models_that_end_leave_their_share_to_those_that_go_on() {
    let mut paces = Paces::new(1);
    let began = Instant::now();
    let models = [paces.join(), paces.join()];
    // Each settles 100 jobs a second while both are busy; one has 500 left, the other 5,000.
    let mut shown = [None, None];
    for second in 0..6 {
        for (model, left) in models.into_iter().zip([1_000, 5_500]) {
            let at = began + Duration::from_secs(second) + Duration::from_millis(model as u64);
            let look = Look {
                at,
                ready: left - 100 * second,
                in_hand: 0,
                window: 10,
                settled: SettledSoFar {
                    jobs: 100 * second,
                    rows: 100 * second,
                    last: Some(at),
                },
                expected: Some(expected()),
            };
            shown[model] = paces.look(model, look, Duration::ZERO).shown;
        }
    }

    let [short, long] = shown.map(Option::unwrap);

    // 5 s; and after those, in which 500 jobs go, 4,500 at twice the rate.
    assert!(
        is_near(short.seconds, 5.0) && is_near(long.seconds, 27.5),
        "{short:?} {long:?}"
    );
    assert!(is_near(long.rows_per_second, 100.0), "{long:?}");
}

/// A model that has a million jobs left and settles none.
fn full(at: Instant) -> Look {
    Look {
        at,
        ready: 1_000_000,
        in_hand: 10,
        window: 10,
        settled: SettledSoFar {
            jobs: 0,
            rows: 0,
            last: None,
        },
        expected: Some(expected()),
    }
}

#[test]
fn the_first_figure_waits_until_the_other_models_have_been_looked_at() {
    let mut paces = Paces::new(1);
    let [one, other] = [paces.join(), paces.join()];
    let began = Instant::now();
    let mut look = |model, millis| {
        let at = began + Duration::from_millis(millis);
        paces.look(model, full(at), Duration::ZERO).shown
    };

    let early = [0, 100, 200].map(|millis| look(one, millis));
    look(other, 250);
    let both = look(one, 300).unwrap();

    assert_eq!(early, [None; 3]);
    // A second for its own jobs, and as long for the other's.
    assert!(is_near(both.seconds, 2.0), "{both:?}");
}

#[test]
fn the_first_figure_waits_for_a_second_at_most() {
    let mut paces = Paces::new(1);
    let [one, _] = [paces.join(), paces.join()];
    let began = Instant::now();

    let early = paces.look(one, full(began), Duration::ZERO).shown;
    let late = paces.look(one, full(began + OTHERS_BEGIN), Duration::ZERO).shown;

    assert_eq!(early, None);
    assert!(late.is_some());
}

#[test]
fn the_way_to_the_broker_bounds_an_estimate() {
    let load = Load {
        capacity: Capacity {
            seconds_per_row: 1e-6,
            seconds_per_run: 0.0,
        },
        engines: 1,
        rows_max: Some(64),
        job_rows: 1.0,
    };
    let way = Duration::from_millis(40);

    let expected = Expected::new(&load, 4, way, way);

    assert!(is_near(expected.in_turns, 0.02), "{expected:?}");
}

proptest! {
    #[test]
    fn whatever_is_seen_the_figures_are_numbers(
        looks in proptest::collection::vec((0_usize..3, 0.0_f64..20.0, 0_u64..5_000, 0_u64..10_000, 0_u64..300), 1..80),
    ) {
        let mut paces = Paces::new(2);
        let began = Instant::now();
        let (mut seconds, mut settled) = (0.0, [0; 3]);
        for _ in 0..3 {
            paces.join();
        }
        for (model, later, done, ready, in_hand) in looks {
            seconds += later;
            settled[model] += done;
            let at = began + Duration::from_secs_f64(seconds);
            let look = Look {
                at,
                ready,
                in_hand,
                window: 100,
                settled: SettledSoFar { jobs: settled[model], rows: settled[model], last: (done > 0).then_some(at) },
                expected: (done % 2 == 0).then(expected),
            };

            let View { shown, next, .. } = paces.look(model, look, Duration::from_secs_f64(seconds / 2.0));

            prop_assert!(next >= Duration::from_millis(50) && next <= LOOK_IDLE);
            if let Some(shown) = shown {
                prop_assert!(shown.seconds.is_finite() && shown.seconds >= 0.0, "{shown:?}");
                prop_assert!(shown.rows_per_second.is_finite() && shown.rows_per_second >= 0.0, "{shown:?}");
                prop_assert_eq!(shown.seconds == 0.0, ready + in_hand == 0);
            }
        }
    }
}
