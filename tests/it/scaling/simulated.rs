//! What the chart's defaults rest on, shown with the simulated fleet: `benches/README.md` says it with figures.

use std::time::Duration;

use super::fleet::{Broker, Load, Outcome, Pod, Setup, run};
use super::keda::{Kind, Mode, Spec, Trigger};
use super::signals::{SHARE, Signal};

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

#[test]
fn a_rate_beside_the_queue_keeps_a_fleet_that_keeps_up() {
    let rate = trigger(SHARE * Pod::CPU.rate(1.0));
    let settled = trigger(1.0);
    let alone = run(&steady(vec![]));
    let kept = [
        run(&steady(vec![(Signal::Mode(Mode::MessageRate), rate)])),
        run(&steady(vec![(Signal::SettledRate, settled)])),
    ];

    assert!(alone.turns > 4, "the queue alone: {}", alone.turns);
    for outcome in kept {
        // It may be above what is needed once, after the backlog of its first minutes.
        assert!(outcome.turns <= 1 && all_answered(&outcome), "{}", outcome.turns);
        assert!(outcome.quantile(0.5) < 2.0, "{}", outcome.quantile(0.5));
        assert!(4.0 * outcome.latency_sum < alone.latency_sum);
        assert!(cost(&outcome) < 1.7, "{}", cost(&outcome));
    }
}

#[test]
fn a_broker_that_tells_nothing_leaves_a_fleet_as_it_is() {
    let mut blind = steady(vec![(
        Signal::Mode(Mode::MessageRate),
        trigger(SHARE * Pod::CPU.rate(1.0)),
    )]);
    blind.broker.silent = true;
    let mut over_amqp = blind.clone();
    over_amqp.signals = vec![Signal::Ready, Signal::SettledRate];
    over_amqp.scaling.triggers[1] = trigger(1.0);

    let blind = run(&blind);
    let over_amqp = run(&over_amqp);

    assert_eq!(
        (blind.turns, blind.replicas_max),
        (0, 1),
        "nothing asks for a second one"
    );
    assert!(over_amqp.replicas_max > 2 && all_answered(&over_amqp));
}

/// Two hours of 2.6 replicas' worth, with the queue's length and what else there is to follow.
fn steady(beside: Vec<(Signal, Trigger)>) -> Setup {
    let mut setup = ramp(0.5);
    setup.load.seconds = 7200.0;
    setup.load.points = vec![(0.0, 2.6)];
    let (signals, triggers): (Vec<_>, Vec<_>) = beside.into_iter().unzip();
    setup.signals.extend(signals);
    setup.scaling.triggers.extend(triggers);
    setup
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
            silent: false,
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
