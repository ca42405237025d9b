//! Golden vectors: what KEDA and the HPA do in cases that were worked out by hand from their sources.
//!
//! `tests/it/scaling.rs` asserts each of them, and the bench lists them with its figures: a simulator that misses one
//! proves nothing.

use std::time::Duration;

use super::hpa::{Behavior, Hpa, Metric, Policy, Rules, SYNC, Scale, Select, Spec, TOLERANCE};
use super::keda::{self, Fallback, FallbackBehavior, Keda, Kind, Mode, Queue, Trigger};

/// One case: what must come out, and what does.
pub struct Vector {
    pub given: &'static str,
    pub expected: String,
    pub got: String,
}

pub fn vectors() -> Vec<Vector> {
    let mut all = ups();
    all.extend(tolerances());
    all.extend(downs());
    all.extend(choices());
    all.extend(zeros());
    all.extend(modes());
    all.extend(fallbacks());
    all
}

fn vector(given: &'static str, expected: impl std::fmt::Debug, got: impl std::fmt::Debug) -> Vector {
    Vector {
        given,
        expected: format!("{expected:?}"),
        got: format!("{got:?}"),
    }
}

// --- The HPA, from 1 to N ---

fn ups() -> Vec<Vector> {
    let limited = up(
        vec![
            pods(4, 60),
            Policy::Percent {
                share: 100,
                period: seconds(60),
            },
        ],
        Select::Max,
    );
    let at = [(0, 5), (60, 10), (120, 20), (180, 40), (240, 50)];
    vec![
        vector(
            "1 replica, backlog 1000, no behavior",
            [1, 4, 8, 16, 32, 50],
            climb(None),
        ),
        vector(
            "1 replica, backlog 1000, default behavior",
            [1, 5, 10, 20, 40, 50],
            climb(Some(Behavior::default())),
        ),
        vector(
            "1 replica, backlog 1000, at most 4 or 100 % in 60 s",
            at,
            changes(Some(limited), 1, |_| 1000.0, 600),
        ),
    ]
}

/// The replicas before and after each of the first syncs.
fn climb(behavior: Option<Behavior>) -> Vec<u32> {
    let steps = changes(behavior, 1, |_| 1000.0, 600);
    std::iter::once(1)
        .chain(steps.into_iter().map(|(_, replicas)| replicas))
        .collect()
}

fn tolerances() -> Vec<Vector> {
    let once = |replicas: u32, total: f64| {
        let mut hpa = hpa(Some(down(0, vec![pods(100, 15)])));
        let written = hpa.sync(Duration::ZERO, scale(replicas), &[average(total)]);
        written.unwrap_or(replicas)
    };
    let band: Vec<u32> = (91..=109).map(|total| once(10, f64::from(total))).collect();
    vec![
        vector("10 replicas, backlog 91 to 109", [10; 19], band),
        vector(
            "10 replicas, backlog 111 and 89",
            [12, 9],
            [once(10, 111.0), once(10, 89.0)],
        ),
        vector("1 replica, backlog 11 and 12", [1, 2], [once(1, 11.0), once(1, 12.0)]),
        vector("1 replica, backlog 0", [1], [once(1, 0.0)]),
    ]
}

fn downs() -> Vec<Vector> {
    // Seen at 100 for the last time at 0.
    let emptied = |at: u64| if at == 0 { 100.0 } else { 0.0 };
    let one_by_one: Vec<(u64, u32)> = (1..=9).map(|step| (240 + 60 * step, 10 - step as u32)).collect();
    let gentle = down(300, vec![pods(1, 60)]);
    vec![
        vector(
            "10 replicas, backlog 100 to 0, no behavior",
            [(300, 1)],
            changes(None, 10, emptied, 900),
        ),
        vector(
            "10 replicas, backlog 100 to 0, default behavior",
            [(300, 1)],
            changes(Some(Behavior::default()), 10, emptied, 900),
        ),
        vector(
            "10 replicas, backlog 100 to 0, down at most 1 in 60 s",
            one_by_one,
            changes(Some(gentle), 10, emptied, 900),
        ),
        vector(
            "10 replicas, backlog 0 for one sync, then 100 again",
            [(0_u64, 0_u32); 0],
            changes(None, 10, |at| if at == 60 { 0.0 } else { 100.0 }, 900),
        ),
    ]
}

fn choices() -> Vec<Vector> {
    let sync = |select, metrics: &[Metric]| {
        let policies = vec![pods(1, 15), pods(3, 15)];
        hpa(Some(up(policies, select))).sync(Duration::ZERO, scale(2), metrics)
    };
    let full = [average(1000.0)];
    let value = |total, scale| {
        let metric = Metric::Value { total, target: 10.0 };
        hpa(None).sync(Duration::ZERO, scale, &[metric])
    };
    let loading = Scale {
        wanted: 4,
        pods: 4,
        ready: 3,
    };
    vec![
        vector(
            "2 replicas, at most 1 or 3: Max, Min, Disabled",
            [Some(5), Some(3), None],
            [Select::Max, Select::Min, Select::Disabled].map(|select| sync(select, &full)),
        ),
        vector(
            "a metric in error: the other may add, not take away; alone it does nothing",
            [Some(5), None, None],
            [
                sync(Select::Max, &[average(1000.0), Metric::Failed]),
                sync(Select::Max, &[average(1.0), Metric::Failed]),
                sync(Select::Max, &[Metric::Failed]),
            ],
        ),
        vector(
            "the most of several metrics",
            Some(4),
            sync(Select::Max, &[average(10.0), average(40.0)]),
        ),
        vector("Value 20 of 10: twice the ready ones", Some(6), value(20.0, loading)),
        vector(
            "0 replicas: off",
            None::<u32>,
            hpa(None).sync(Duration::ZERO, scale(0), &full),
        ),
        vector(
            "60 and 0 above and below the limits: no metric is read",
            Some(50),
            hpa(None).sync(Duration::ZERO, scale(60), &[Metric::Failed]),
        ),
    ]
}

/// When the HPA changed what, against a backlog over time, target 10.
fn changes(behavior: Option<Behavior>, from: u32, backlog: impl Fn(u64) -> f64, until: u64) -> Vec<(u64, u32)> {
    let mut hpa = hpa(behavior);
    let mut replicas = from;
    let mut seen = Vec::new();
    for at in (0..=until).step_by(SYNC.as_secs() as usize) {
        if let Some(next) = hpa.sync(seconds(at), scale(replicas), &[average(backlog(at))]) {
            replicas = next;
            seen.push((at, next));
        }
    }
    seen
}

fn hpa(behavior: Option<Behavior>) -> Hpa {
    Hpa::new(Spec {
        min: 1,
        max: 50,
        up_tolerance: TOLERANCE,
        down_tolerance: TOLERANCE,
        behavior,
    })
}

fn scale(replicas: u32) -> Scale {
    Scale {
        wanted: replicas,
        pods: replicas,
        ready: replicas,
    }
}

fn average(total: f64) -> Metric {
    Metric::AverageValue { total, target: 10.0 }
}

fn up(policies: Vec<Policy>, select: Select) -> Behavior {
    let default = Behavior::default();
    Behavior {
        up: Rules {
            policies,
            select,
            ..default.up
        },
        ..default
    }
}

fn down(window: u64, policies: Vec<Policy>) -> Behavior {
    Behavior {
        down: Rules {
            window: seconds(window),
            policies,
            select: Select::Max,
        },
        ..Behavior::default()
    }
}

fn pods(count: u32, period: u64) -> Policy {
    Policy::Pods {
        count,
        period: seconds(period),
    }
}

// --- KEDA, from 0 to 1 and back ---

fn zeros() -> Vec<Vector> {
    let quiet_after = |at: u64| if at <= 30 { 40.0 } else { 0.0 };
    let idle = keda::Spec {
        min: 2,
        idle: Some(0),
        ..spec(0)
    };
    vec![
        vector(
            "activation 50 outranks target 10: 40 messages, 0 replicas; 51 messages",
            [None, Some(1)],
            [40.0, 51.0].map(|messages| {
                let spec = spec_with(Trigger {
                    activation: 50.0,
                    ..trigger()
                });
                Keda::new(spec, Duration::ZERO).poll(seconds(0), 0, &[Some(messages.into())])
            }),
        ),
        vector(
            "1 message wakes the minimum of 3",
            Some(3),
            polled(&mut keda(3), 0, 0, 1.0),
        ),
        vector(
            "active last at 30 s, cooldown 300 s, polled every 30 s: from 7 replicas straight to 0",
            [(360, 0)],
            polls(spec(0), 7, quiet_after, 900),
        ),
        vector(
            "the same with a minimum of 1: KEDA never goes there",
            [(0_u64, 0_u32); 0],
            polls(spec(1), 7, quiet_after, 900),
        ),
        vector(
            "idle 0, minimum 2, never active",
            [(30, 0)],
            polls(idle.clone(), 2, |_| 0.0, 300),
        ),
        vector(
            "idle 0, minimum 2, 1 message at 0 replicas",
            Some(2),
            polled(&mut Keda::new(idle, Duration::ZERO), 0, 0, 1.0),
        ),
        vector(
            "a new object over 3 idle replicas: at the first pass after its creation",
            [(30, 0)],
            polls(spec(0), 3, |_| 0.0, 300),
        ),
        vector(
            "the same with an initial cooldown of 120 s",
            [(150, 0)],
            polls(
                keda::Spec {
                    initial_cooldown: seconds(120),
                    ..spec(0)
                },
                3,
                |_| 0.0,
                300,
            ),
        ),
        vector("idle below the minimum", Some(2), polled(&mut keda(2), 0, 1, 0.0)),
    ]
}

// --- What the modes of KEDA's rabbitmq trigger make of a queue ---

fn modes() -> Vec<Vector> {
    let all = [
        Mode::QueueLength,
        Mode::MessageRate,
        Mode::DeliverGetRate,
        Mode::ExpectedQueueConsumptionTime,
    ];
    let value = |queue: Queue| all.map(|mode| mode.read(queue, 0.0).value);
    let wakes = |queue: Queue, activation: f64| all.map(|mode| mode.read(queue, activation).activity > activation);
    let kept_up = queue(6.0, 120.0, 120.0);
    let behind = queue(900.0, 120.0, 60.0);
    let alone = queue(900.0, 0.0, 0.0);
    let silent = queue(0.0, 0.0, 0.0);
    vec![
        vector(
            "QueueLength, MessageRate, DeliverGetRate, ExpectedQueueConsumptionTime of a fleet that keeps up with 120 jobs/s",
            [6.0, 120.0, 120.0, 0.05],
            value(kept_up),
        ),
        vector(
            "the same of one that answers 60 of 120 jobs/s, with 900 waiting",
            [900.0, 120.0, 60.0, 16.0],
            value(behind),
        ),
        vector(
            "the same of 900 jobs with no consumer: the last one asks for what its activation is",
            [900.0, 0.0, 0.0, 0.0],
            value(alone),
        ),
        vector(
            "which of them wake a pool at 0 then, with activation 0 and 1000",
            [[true, true, false, true], [false, false, false, true]],
            [wakes(alone, 0.0), wakes(alone, 1000.0)],
        ),
        vector(
            "150 jobs/s on a broker without management metrics: no number, no error, nobody is woken",
            ([0.0; 4], [false; 4]),
            (value(silent), wakes(silent, 0.0)),
        ),
        vector(
            "120 jobs/s at 35 a replica beside an empty queue: 4 of 4 replicas stay; on the queue alone 1 would",
            [None, Some(1)],
            [vec![target(120.0, 35.0), average(0.0)], vec![average(0.0)]]
                .map(|metrics| hpa(Some(down(0, vec![pods(100, 15)]))).sync(Duration::ZERO, scale(4), &metrics)),
        ),
    ]
}

fn queue(messages: f64, publish: f64, deliver_get: f64) -> Queue {
    Queue {
        messages,
        publish,
        deliver_get,
    }
}

fn target(total: f64, target: f64) -> Metric {
    Metric::AverageValue { total, target }
}

fn fallbacks() -> Vec<Vector> {
    let with = |replicas, behavior| keda::Spec {
        fallback: Some(Fallback {
            failures: 3,
            replicas,
            behavior,
        }),
        ..spec(0)
    };
    // What the HPA is told at each of five syncs in a row at which the broker does not answer.
    let half_ready = Scale { ready: 2, ..scale(4) };
    let told = |spec: keda::Spec| {
        let mut keda = Keda::new(spec, Duration::ZERO);
        [0; 5].map(|_| match keda.metrics(half_ready, &[None])[0] {
            Metric::AverageValue { total, .. } | Metric::Value { total, .. } => Some(total),
            Metric::Failed => None,
        })
    };
    let hold = |spec: keda::Spec| Keda::new(spec, Duration::ZERO).poll(seconds(900), 4, &[None]);
    let failed = |total| [None, None, None, Some(total), Some(total)];
    vec![
        vector(
            "fallback of 6 after 3 failures: the fourth counts",
            failed(60.0),
            told(with(6, FallbackBehavior::Static)),
        ),
        vector(
            "fallback of 6 or the current 4, if higher, if lower",
            [failed(40.0), failed(60.0), failed(40.0)],
            [
                FallbackBehavior::CurrentReplicas,
                FallbackBehavior::CurrentReplicasIfHigher,
                FallbackBehavior::CurrentReplicasIfLower,
            ]
            .map(|behavior| told(with(6, behavior))),
        ),
        vector(
            "the same as Value, with 2 of 4 ready: twice as much each",
            failed(30.0),
            told(keda::Spec {
                triggers: vec![Trigger {
                    kind: Kind::Value,
                    ..trigger()
                }],
                ..with(6, FallbackBehavior::Static)
            }),
        ),
        vector("a trigger in error, no fallback: nothing", None::<u32>, hold(spec(0))),
        vector(
            "a trigger in error, fallback of 6: nothing",
            None::<u32>,
            hold(with(6, FallbackBehavior::Static)),
        ),
        vector(
            "a trigger in error, fallback of 0: to 0, though nobody knows what waits",
            Some(0),
            hold(with(0, FallbackBehavior::Static)),
        ),
        vector("a negative metric is 0", Some(0.0), {
            match keda(1).metrics(scale(1), &[Some((-3.0).into())])[0] {
                Metric::AverageValue { total, .. } | Metric::Value { total, .. } => Some(total),
                Metric::Failed => None,
            }
        }),
    ]
}

/// When the scale loop changed what, against messages over time, with nobody else at it.
fn polls(spec: keda::Spec, from: u32, messages: impl Fn(u64) -> f64, until: u64) -> Vec<(u64, u32)> {
    let every = spec.polling.as_secs() as usize;
    let mut keda = Keda::new(spec, Duration::ZERO);
    let mut replicas = from;
    let mut seen = Vec::new();
    for at in (0..=until).step_by(every) {
        if let Some(next) = polled(&mut keda, at, replicas, messages(at)) {
            replicas = next;
            seen.push((at, next));
        }
    }
    seen
}

fn polled(keda: &mut Keda, at: u64, replicas: u32, messages: f64) -> Option<u32> {
    keda.poll(seconds(at), replicas, &[Some(messages.into())])
}

fn keda(min: u32) -> Keda {
    Keda::new(spec(min), Duration::ZERO)
}

fn spec(min: u32) -> keda::Spec {
    keda::Spec {
        min,
        ..spec_with(trigger())
    }
}

fn spec_with(trigger: Trigger) -> keda::Spec {
    keda::Spec {
        polling: seconds(30),
        cooldown: seconds(300),
        initial_cooldown: Duration::ZERO,
        min: 0,
        max: 50,
        idle: None,
        fallback: None,
        triggers: vec![trigger],
        behavior: None,
    }
}

fn trigger() -> Trigger {
    Trigger {
        target: 10.0,
        activation: 0.0,
        kind: Kind::AverageValue,
        cached: false,
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
