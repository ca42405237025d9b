//! Turns: which model runs next where fewer runs may go on at once than there are engines.
//!
//! A pure rule, deficit round robin on time, and a table at which lanes ask. A lane is granted its turn by whoever gives one
//! back, on an engine's thread, under a lock that is held for less than a microsecond; it waits for it in its own task.
//!
//! A lane asks as soon as it has jobs and before its engine is idle. If it asked only then, at the moment a run ends its own
//! lane would never be among those that wait, and a slow model would get every second turn instead of half of the time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// Where the lanes of a worker ask for their turns.
#[derive(Clone)]
pub struct Turns(Arc<Mutex<Rule<oneshot::Sender<Turn>>>>);

impl Turns {
    /// For at most `threads` runs at once.
    pub fn new(threads: usize) -> Self {
        Self(Arc::new(Mutex::new(Rule::new(threads))))
    }

    /// A place for one more lane, which has so many engines.
    pub fn seat(&self, engines: usize) -> Seat {
        let lane = self.rule().add(engines);
        Seat(Some((self.clone(), lane)))
    }

    fn rule(&self) -> MutexGuard<'_, Rule<oneshot::Sender<Turn>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grant(&self, now: Instant) {
        loop {
            let Some(granted) = self.rule().next(now) else { return };
            let turn = Turn {
                slice: granted.slice,
                given: Some((self.clone(), granted.lane, granted.is_paid)),
                began: None,
            };
            // A lane that is gone drops its turn and so gives it back: after the lock, which that takes as well.
            let _ = granted.wish.send(turn);
        }
    }
}

/// The place of one lane.
pub struct Seat(Option<(Turns, LaneNumber)>);

impl Seat {
    /// Of a lane that need not ask, since there are as many threads as engines.
    pub fn free() -> Self {
        Self(None)
    }

    /// Asks for a turn, with what the least run takes that is worth its while. A lane asks for one at a time.
    pub fn ask(&self, now: Instant, least: Duration) -> Wish {
        let Some((turns, lane)) = &self.0 else {
            return Wish::Granted(Turn::free());
        };
        let (wish, granted) = oneshot::channel();
        turns.rule().ask(*lane, now, least.as_secs_f64(), wish);
        turns.grant(now);
        Wish::Waiting(granted)
    }
}

/// A turn that was asked for. Dropped, it goes to another lane.
pub enum Wish {
    Granted(Turn),
    Waiting(oneshot::Receiver<Turn>),
}

impl Wish {
    /// Waits for the turn; `None` if there will be none, because the worker is gone.
    pub async fn granted(self) -> Option<Turn> {
        match self {
            Self::Granted(turn) => Some(turn),
            Self::Waiting(granted) => granted.await.ok(),
        }
    }
}

/// The right to run one batch; dropped, also by a panic, it is given back.
pub struct Turn {
    slice: Option<Duration>,
    given: Option<(Turns, LaneNumber, bool)>,
    began: Option<Instant>,
}

impl Turn {
    pub fn free() -> Self {
        Self {
            slice: None,
            given: None,
            began: None,
        }
    }

    /// How long the run may take, if others are to have their turns as well.
    pub fn slice(&self) -> Option<Duration> {
        self.slice
    }

    /// The run begins; until now the turn has cost nobody anything.
    pub fn begin(&mut self, now: Instant) {
        self.began = Some(now);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some((turns, lane, is_paid)) = self.given.take() else {
            return;
        };
        let took = self.began.map_or(Duration::ZERO, |began| began.elapsed());
        let paid = if is_paid { took } else { Duration::ZERO };
        turns.rule().give_back(lane, paid.as_secs_f64());
        turns.grant(Instant::now());
    }
}

type LaneNumber = usize;

/// Deficit round robin. In seconds, as measured: what a run took is taken off the credit of its lane.
struct Rule<W> {
    free: usize,
    lanes: Vec<Place<W>>,
    /// Whose visit it is: it goes on for as long as the credit lasts.
    visited: LaneNumber,
}

struct Place<W> {
    engines: usize,
    /// Turns that it has.
    running: usize,
    wish: Option<(f64, W)>,
    asked: Option<Instant>,
    credit: f64,
}

struct Granted<W> {
    lane: LaneNumber,
    wish: W,
    slice: Option<Duration>,
    /// Whether the run is taken off the credit.
    is_paid: bool,
}

impl<W> Rule<W> {
    fn new(threads: usize) -> Self {
        Self {
            free: threads,
            lanes: Vec::new(),
            visited: 0,
        }
    }

    fn add(&mut self, engines: usize) -> LaneNumber {
        self.lanes.push(Place {
            engines,
            running: 0,
            wish: None,
            asked: None,
            credit: 0.0,
        });
        self.lanes.len() - 1
    }

    fn ask(&mut self, lane: LaneNumber, now: Instant, least: f64, wish: W) {
        let place = &mut self.lanes[lane];
        place.wish = Some((least, wish));
        place.asked = Some(now);
    }

    fn give_back(&mut self, lane: LaneNumber, paid: f64) {
        self.free += 1;
        let place = &mut self.lanes[lane];
        place.running -= 1;
        place.credit -= paid;
        if place.wish.is_none() {
            // Who has nothing to run saves nothing up. And owes nothing: a model with a job now and then, whose runs are held
            // up by whatever else has its core, would owe more and more and in the end wait for seconds.
            place.credit = 0.0;
        }
    }

    /// The next turn, if there is one and somebody for it. Called again until there is not.
    fn next(&mut self, now: Instant) -> Option<Granted<W>> {
        if self.free == 0 || !(0..self.lanes.len()).any(|lane| self.can_run(lane)) {
            return None;
        }
        let is_contended = self.lanes.iter().filter(|place| place.wish.is_some()).count() > 1;
        let lane = if is_contended {
            self.visit()
        } else {
            (0..self.lanes.len()).find(|lane| self.can_run(*lane))?
        };
        let has_company = is_contended || self.has_company(lane, now);
        let place = &mut self.lanes[lane];
        let (least, wish) = place.wish.take()?;
        if !is_contended {
            place.credit = 0.0;
        }
        place.running += 1;
        self.free -= 1;
        let slice = has_company.then(|| Duration::try_from_secs_f64(place.credit.max(least).max(QUANTUM)));
        Some(Granted {
            lane,
            wish,
            slice: slice.map(|slice| slice.unwrap_or(Duration::MAX)),
            is_paid: is_contended,
        })
    }

    /// A lane whose engines all run would only hold on to its turn.
    fn can_run(&self, lane: LaneNumber) -> bool {
        let place = &self.lanes[lane];
        place.wish.is_some() && place.running < place.engines
    }

    /// Whether another lane has had jobs a moment ago. Its next job comes in the middle of a run that nobody can interrupt,
    /// so that run should not be long.
    fn has_company(&self, lane: LaneNumber, now: Instant) -> bool {
        let is_there = |place: &Place<W>| {
            let lately = |asked| now.saturating_duration_since(asked) < COMPANY_MAX;
            place.running > 0 || place.asked.is_some_and(lately)
        };
        let mut others = self.lanes.iter().enumerate().filter(|(other, _)| *other != lane);
        others.any(|(_, place)| is_there(place))
    }

    /// The lane whose turn it is, of those that can run; there is one.
    fn visit(&mut self) -> LaneNumber {
        if self.can_run(self.visited) && self.rounds(self.visited) == 0.0 {
            return self.visited;
        }
        // Rounds in which nobody could afford a run are gone through at once.
        let able = |rule: &Self| {
            (0..rule.lanes.len())
                .filter(|lane| rule.can_run(*lane))
                .collect::<Vec<_>>()
        };
        let able = able(self);
        let rounds = able
            .iter()
            .map(|lane| self.rounds(*lane).max(1.0))
            .fold(f64::INFINITY, f64::min);
        for lane in &able {
            self.lanes[*lane].credit += (rounds - 1.0) * QUANTUM;
        }
        let (before, after): (Vec<_>, Vec<_>) = able.into_iter().partition(|lane| *lane <= self.visited);
        for lane in after.into_iter().chain(before) {
            self.lanes[lane].credit += QUANTUM;
            self.visited = lane;
            if self.rounds(lane) == 0.0 {
                break;
            }
        }
        self.visited
    }

    /// How many quanta a lane still needs for its run.
    fn rounds(&self, lane: LaneNumber) -> f64 {
        let place = &self.lanes[lane];
        let least = place.wish.as_ref().map_or(0.0, |(least, _)| *least);
        ((least - place.credit - ROUNDING) / QUANTUM).ceil().max(0.0)
    }
}

/// What a lane may run in one visit while others wait, in seconds. Some runs of a small model, and less than anybody notices
/// who waits for a reply; a tenth of it would make the batches of a model of 1 ms a row too small to pay.
const QUANTUM: f64 = 0.005;
/// For so long after its last job a lane is expected back.
const COMPANY_MAX: Duration = Duration::from_secs(1);
/// What adding up seconds may be off by.
const ROUNDING: f64 = 1e-9;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lanes with one engine each that always have jobs: what each run takes, and what each lane has had by then.
    fn share(rule: &mut Rule<()>, runs: &[f64], seconds: f64) -> Vec<f64> {
        let now = Instant::now();
        let mut had = vec![0.0; runs.len()];
        for (lane, run) in runs.iter().enumerate() {
            rule.ask(lane, now, *run, ());
        }
        while had.iter().sum::<f64>() < seconds {
            let granted = rule.next(now).unwrap();
            let took = runs[granted.lane];
            had[granted.lane] += took;
            // Asked for before the run is over.
            rule.ask(granted.lane, now, took, ());
            rule.give_back(granted.lane, if granted.is_paid { took } else { 0.0 });
        }
        had
    }

    fn rule(threads: usize, engines: &[usize]) -> Rule<()> {
        let mut rule = Rule::new(threads);
        for engines in engines {
            rule.add(*engines);
        }
        rule
    }

    #[test]
    fn two_models_that_always_have_jobs_get_half_of_the_time_each_however_slow_one_is() {
        let had = share(&mut rule(1, &[1, 1]), &[0.000_5, 0.2], 20.0);

        assert!((had[0] - had[1]).abs() <= 0.4, "{had:?}");
    }

    #[test]
    fn a_model_that_is_alone_is_not_held_to_anything() {
        let mut rule = rule(1, &[1, 1]);
        let now = Instant::now();
        rule.ask(0, now, 10.0, ());

        let granted = rule.next(now).unwrap();

        assert_eq!((granted.lane, granted.slice, granted.is_paid), (0, None, false));
    }

    #[test]
    fn a_run_is_short_while_another_model_has_company_to_expect() {
        let mut rule = rule(1, &[1, 1]);
        let now = Instant::now();
        rule.ask(1, now, 0.001, ());
        rule.next(now).unwrap();
        rule.give_back(1, 0.0);

        let slices = [0.5, 2.0].map(|later| {
            let now = now + Duration::from_secs_f64(later);
            rule.ask(0, now, 0.001, ());
            let granted = rule.next(now).unwrap();
            rule.give_back(0, 0.0);
            granted.slice
        });

        assert_eq!(slices, [Some(Duration::from_secs_f64(QUANTUM)), None]);
    }

    #[test]
    fn runs_that_take_too_long_are_not_held_against_a_model_that_has_nothing_else_to_run() {
        let mut rule = rule(1, &[1, 1]);
        let now = Instant::now();
        let mut slow_runs = Vec::new();

        for _ in 0..100 {
            for lane in [0, 1] {
                rule.ask(lane, now, 0.001, ());
            }
            let mut slow = 0;
            while rule.next(now).unwrap().lane == 1 {
                slow += 1;
                rule.ask(1, now, 0.001, ());
                rule.give_back(1, 0.001);
            }
            rule.give_back(0, 0.1);
            slow_runs.push(slow);
        }

        assert!(slow_runs.iter().all(|runs| *runs <= 10), "{slow_runs:?}");
    }

    /// How long a job of a fast model waits at most, of which one comes every 21 ms for a simulated minute, beside a model
    /// that always has 64 rows of a millisecond each; `is_sliced` if that one keeps to its slices. The first job does not
    /// count: until it has come nobody knows of it.
    fn longest_wait(is_sliced: bool) -> f64 {
        let mut rule = rule(1, &[1, 1]);
        let (began, mut seconds, mut due, mut longest) = (Instant::now(), 0.0, 0.0, 0.0_f64);
        // The fast model has been there before, or the first run would not be sliced.
        rule.ask(0, began, 0.000_3, ());
        rule.next(began).unwrap();
        rule.give_back(0, 0.0);
        rule.ask(1, began, 0.008, ());
        while seconds < 60.0 {
            let now = began + Duration::from_secs_f64(seconds);
            let granted = rule.next(now).unwrap();
            let took = if granted.lane == 0 {
                if due > 0.0 {
                    longest = longest.max(seconds - due);
                }
                due = (due + 0.021).max(seconds);
                0.000_3
            } else {
                rule.ask(1, now, 0.008, ());
                let slice = granted.slice.filter(|_| is_sliced).unwrap_or(Duration::MAX);
                0.004 + 0.001 * (slice.as_secs_f64() * 1_000.0 - 4.0).floor().clamp(1.0, 64.0)
            };
            // What comes during the run asks before it is over.
            seconds += took;
            if due <= seconds && rule.lanes[0].wish.is_none() {
                rule.ask(0, began + Duration::from_secs_f64(due), 0.000_3, ());
            }
            rule.give_back(granted.lane, if granted.is_paid { took } else { 0.0 });
        }
        longest
    }

    #[test]
    fn a_fast_model_waits_for_a_slice_of_a_slow_one_and_not_for_a_whole_batch() {
        let (sliced, whole) = (longest_wait(true), longest_wait(false));

        assert!(sliced < 0.01 && whole > 0.04, "{sliced} s in slices, {whole} s without");
    }

    #[test]
    fn a_turn_is_not_for_a_model_whose_engines_all_run() {
        let mut rule = rule(2, &[1, 1]);
        let now = Instant::now();
        rule.ask(0, now, 0.001, ());
        rule.next(now).unwrap();
        rule.ask(0, now, 0.001, ());
        let busy = rule.next(now).is_none();
        rule.ask(1, now, 0.001, ());

        let granted = rule.next(now).unwrap();

        assert!(busy && granted.lane == 1 && rule.next(now).is_none());
    }

    #[tokio::test]
    async fn turns_that_nobody_takes_or_that_end_in_a_panic_are_given_back() {
        let turns = Turns::new(1);
        let (one, other) = (turns.seat(1), turns.seat(1));
        let ask = |seat: &Seat| seat.ask(Instant::now(), Duration::ZERO);

        drop(ask(&one));
        let turn = ask(&one).granted().await.unwrap();
        let gone = ask(&one);
        let next = ask(&other);
        drop(gone);
        let panicked = std::thread::spawn(move || {
            let _turn = turn;
            panic!("on purpose, for the test");
        });
        let next = next.granted().await;

        assert!(panicked.join().is_err() && next.is_some());
        drop(next);
        assert!(ask(&one).granted().await.is_some());
    }

    #[tokio::test]
    async fn a_lane_that_need_not_ask_never_waits() {
        let seat = Seat::free();

        let turns = [(); 3].map(|()| seat.ask(Instant::now(), Duration::from_secs(1)));

        for wish in turns {
            assert_eq!(wish.granted().await.unwrap().slice(), None);
        }
    }

    proptest! {
        #[test]
        fn whoever_always_has_jobs_gets_their_share_within_a_few_runs(
            runs in proptest::collection::vec(0.000_05_f64..0.3, 2..6),
        ) {
            let places = vec![1; runs.len()];
            let seconds = 40.0;

            let had = share(&mut rule(1, &places), &runs, seconds);

            let fair = seconds / runs.len() as f64;
            let slack = 2.0 * (runs.iter().copied().fold(0.0, f64::max) + QUANTUM) + 0.3;
            for had in &had {
                prop_assert!((had - fair).abs() <= slack, "{had} of {fair}");
            }
        }

        #[test]
        fn no_more_run_at_once_than_threads_and_engines_and_no_free_turn_is_kept_from_who_can_use_it(
            steps in proptest::collection::vec((0_usize..4, any::<bool>(), 0.0_f64..0.1), 1..200),
            threads in 1_usize..4,
        ) {
            let engines = [1, 2, 1, 3];
            let mut rule = rule(threads, &engines);
            let now = Instant::now();
            let mut running = [0; 4];
            for (lane, asks, seconds) in steps {
                if asks && rule.lanes[lane].wish.is_none() {
                    rule.ask(lane, now, seconds, ());
                } else if running[lane] > 0 {
                    running[lane] -= 1;
                    rule.give_back(lane, seconds);
                }
                while let Some(granted) = rule.next(now) {
                    running[granted.lane] += 1;
                }
                prop_assert!(running.iter().sum::<usize>() <= threads);
                prop_assert!(running.iter().zip(engines).all(|(running, engines)| *running <= engines));
                let can_run = (0..4).any(|lane| rule.can_run(lane));
                prop_assert!(rule.free == 0 || !can_run);
            }
        }
    }
}
