//! Runs schedules, and cuts down one that fails.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::Simulation;
use super::event::Event;
use super::mutants::Mutant;
use super::oracle::Checked;
use super::schedule::{Setting, Step, draw};
use crate::telemetry::metrics::Metrics;

/// What schedules share.
pub struct Bench {
    pub metrics: Arc<Metrics>,
    pub began: Instant,
    pub mutant: Option<Mutant>,
}

impl Bench {
    fn new(mutant: Option<Mutant>) -> Self {
        Self {
            metrics: Arc::new(Metrics::new().unwrap()),
            began: Instant::now(),
            mutant,
        }
    }

    fn check(&self, setting: &Setting, seed: u64, steps: &[Step]) -> Checked {
        let run = || Simulation::new(setting, seed, self).run(steps);
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("a panic".to_owned()))
    }

    fn check_seed(&self, seed: u64) -> Result<(), Failure> {
        let (setting, steps) = draw(seed);
        let Err(violation) = self.check(&setting, seed, &steps) else {
            return Ok(());
        };
        Err(Failure {
            seed,
            setting: Box::new(setting),
            steps,
            violation,
        })
    }

    /// Cuts out steps for as long as something fails without them.
    fn shrink(&self, mut failure: Failure) -> Failure {
        let mut cut = failure.steps.len().div_ceil(2);
        while cut > 0 {
            let mut start = 0;
            let mut shrunk = false;
            while start < failure.steps.len() {
                let mut steps = failure.steps.clone();
                steps.drain(start..steps.len().min(start + cut));
                match self.check(&failure.setting, failure.seed, &steps) {
                    Err(violation) => {
                        (failure.steps, failure.violation) = (steps, violation);
                        shrunk = true;
                    }
                    Ok(()) => start += cut,
                }
            }
            if !shrunk {
                cut /= 2;
            }
        }
        failure
    }
}

/// A schedule that an invariant did not survive.
#[derive(Debug)]
pub struct Failure {
    seed: u64,
    setting: Box<Setting>,
    steps: Vec<Step>,
    pub violation: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}\nafter {} steps with {:?}:",
            self.violation,
            self.steps.len(),
            self.setting
        )?;
        self.steps.iter().try_for_each(|step| writeln!(f, "  {step:?}"))?;
        write!(
            f,
            "again: {FIRST}={} {SCHEDULES}=1 cargo test --lib no_schedule",
            self.seed
        )
    }
}

/// Runs schedules from a first seed on, on all cores, and gives the first failure that was found.
pub fn search(first: u64, schedules: u64, mutant: Option<Mutant>) -> Option<Failure> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let found = Mutex::new(None);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let found = &found;
            scope.spawn(move || {
                let bench = Bench::new(mutant);
                for seed in (first..first + schedules)
                    .skip(thread as usize)
                    .step_by(threads as usize)
                {
                    if found.lock().unwrap().is_some() {
                        return;
                    }
                    if let Err(failure) = bench.check_seed(seed) {
                        *found.lock().unwrap() = Some(failure);
                    }
                }
            });
        }
    });
    let failure = found.into_inner().unwrap()?;
    Some(Bench::new(mutant).shrink(failure))
}

#[test]
fn schedules_do_what_they_are_for() {
    let bench = Bench::new(None);
    let mut events = [0; Event::ALL.len()];

    for seed in 0..3_000 {
        let (setting, steps) = draw(seed);
        let mut simulation = Simulation::new(&setting, seed, &bench);
        simulation.run(&steps).unwrap();
        let seen = simulation.oracle.events;
        events.iter_mut().zip(seen).for_each(|(sum, seen)| *sum += seen);
    }

    for (event, seen) in Event::ALL.into_iter().zip(events) {
        println!("{event:?}: {seen}");
        assert!(seen >= 10, "{event:?} was seen {seen} times");
    }
}

#[test]
fn a_failure_is_cut_down_to_what_fails_and_its_seed_fails_again() {
    let bench = Bench::new(Some(Mutant::NackTakenForAck));
    let failure = (0..1_000).find_map(|seed| bench.check_seed(seed).err()).unwrap();
    let (seed, steps, violation) = (failure.seed, failure.steps.len(), failure.violation.clone());

    let again = bench.check_seed(seed).unwrap_err();
    let shrunk = bench.shrink(failure);

    assert_eq!(again.violation, violation);
    assert!(shrunk.steps.len() < steps, "{shrunk}");
    let part = bench.check(&shrunk.setting, seed, &shrunk.steps);
    assert_eq!(part.unwrap_err(), shrunk.violation);
    assert!(shrunk.to_string().contains(&format!("{FIRST}={seed}")));
}

/// How many schedules are run, and the seed of the first.
const SCHEDULES: &str = "INFERQ_TEST_SCHEDULES";
const FIRST: &str = "INFERQ_TEST_FIRST";

#[expect(
    clippy::disallowed_methods,
    reason = "what a test runs is no configuration of the worker"
)]
fn number(variable: &str, usual: u64) -> u64 {
    match std::env::var(variable) {
        Ok(value) => value
            .parse()
            .unwrap_or_else(|_| panic!("{variable}: a whole number is needed")),
        Err(_) => usual,
    }
}

#[test]
fn no_schedule_loses_a_job_or_breaks_another_invariant() {
    let (first, schedules) = (number(FIRST, 0), number(SCHEDULES, 100_000));

    let failure = search(first, schedules, None);

    if let Some(failure) = failure {
        panic!("{failure}");
    }
    println!("{schedules} schedules from seed {first} on, no violation");
}
