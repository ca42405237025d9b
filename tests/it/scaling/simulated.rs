//! What the chart's defaults rest on, shown with the simulated fleet: `benches/README.md` says it with figures.

use std::time::Duration;

use super::fleet::{Broker, Load, Outcome, Pod, Setup, Signal, run};
use super::keda::{Kind, Spec, Trigger};

/// Seconds that a job may wait.
const ACCEPTED: f64 = 60.0;

#[test]
fn jobs_are_in_time_if_a_replica_may_have_half_of_what_it_does_in_that_time_and_not_if_it_may_have_all() {
    let half = run(&ramp(0.5));
    let all = run(&ramp(1.0));

    assert!(half.latency_max < ACCEPTED, "{}", half.latency_max);
    assert!(all.in_time < 0.9 * all.came, "{} of {}", all.in_time, all.came);
    assert!(cost(&half) < 1.1 * cost(&all), "{} and {}", cost(&half), cost(&all));
}

#[test]
fn a_replica_gives_back_what_it_cannot_finish_and_every_job_is_answered_all_the_same() {
    let patient = run(&ramp(0.5));
    let mut hasty = ramp(0.5);
    hasty.pod.grace = 0.5;
    let hasty = run(&hasty);

    assert_eq!(patient.returned, 0.0, "it had time to finish");
    assert!(
        hasty.returned > 0.0,
        "nobody was ended with work in hand, so nothing is proved"
    );
    assert!(all_answered(&patient) && all_answered(&hasty));
}

#[test]
fn the_same_seed_gives_the_same_course() {
    let course = |seed| {
        let outcome = run(&Setup { seed, ..ramp(0.5) });
        format!("{:?}", outcome.course)
    };

    assert_eq!(course(7), course(7));
    assert_ne!(course(7), course(8));
}

#[test]
fn seconds_of_work_wake_nobody_and_messages_beside_them_do() {
    let at_zero = |signals: &[Signal]| {
        let mut setup = ramp(0.5);
        setup.scaling.min = 0;
        setup.signals = signals.to_vec();
        setup.scaling.triggers = signals.iter().map(|_| trigger(30.0)).collect();
        run(&setup)
    };

    let alone = at_zero(&[Signal::Seconds]);
    let both = at_zero(&[Signal::Seconds, Signal::Messages]);

    assert_eq!((alone.answered, alone.replicas_max), (0.0, 0));
    assert!(all_answered(&both), "{} of {}", both.answered, both.came);
}

/// From one replica's worth to ten and back, with so many times what one does in [`ACCEPTED`] as the target.
fn ramp(times: f64) -> Setup {
    let pod = Pod::CPU;
    Setup {
        scaling: Spec {
            polling: Duration::from_secs(10),
            cooldown: Duration::from_secs(300),
            initial_cooldown: Duration::from_secs(120),
            min: 1,
            max: 100,
            idle: None,
            fallback: None,
            triggers: vec![trigger(times * ACCEPTED * pod.rate(1.0))],
            behavior: None,
        },
        signals: vec![Signal::Messages],
        pod,
        broker: Broker {
            jobs_max: f64::INFINITY,
            refresh: 5.0,
            away: None,
        },
        load: Load {
            seconds: 3000.0,
            points: vec![(100.0, 1.0), (1000.0, 10.0), (2000.0, 10.0), (2900.0, 1.0)],
            pulses: Vec::new(),
            heavier: None,
        },
        accepted: ACCEPTED,
        seed: 1,
    }
}

fn trigger(target: f64) -> Trigger {
    Trigger {
        target,
        activation: 0.0,
        kind: Kind::AverageValue,
        cached: false,
    }
}

/// But for the last one: a fluid has no last drop.
fn all_answered(outcome: &Outcome) -> bool {
    outcome.came - outcome.answered < 1.0
}

fn cost(outcome: &Outcome) -> f64 {
    outcome.paid / outcome.needed
}
