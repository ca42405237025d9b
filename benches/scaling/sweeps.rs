//! Which runs answer which question: the devices, the loads, and what is changed about the chart's defaults.

use std::ops::Range;
use std::time::Duration;

use super::fleet::{Broker, Load, Pod, Setup};
use super::hpa::{Behavior, Policy, Rules, Select};
use super::keda::{Fallback, FallbackBehavior, Kind, Mode, Spec, Trigger};
use super::signals::{SHARE, Signal};

/// One line of a table.
pub struct Run {
    pub device: &'static str,
    pub load: &'static str,
    pub question: &'static str,
    pub setting: String,
    /// Whether that is what the chart sets.
    pub default: bool,
    pub setup: Setup,
    pub seeds: Range<u64>,
}

pub fn all(quick: bool) -> Vec<Run> {
    if quick {
        let [cpu, _] = &DEVICES;
        let (name, step) = step("step", 2.0, 20.0);
        let short = || Load {
            seconds: 900.0,
            ..step.clone()
        };
        let mut runs: Vec<Run> = values(cpu, name, &short()).collect();
        runs.extend(downs(cpu, name, &short()));
        runs.extend(rates(cpu, name, &short()));
        runs.iter_mut().for_each(|run| run.seeds = 1..2);
        return runs;
    }
    DEVICES.iter().flat_map(runs_of).collect()
}

fn runs_of(device: &Device) -> Vec<Run> {
    let mut runs = Vec::new();
    for (name, load) in [step("step", 2.0, 20.0), ramp(), wave(), bursts()] {
        runs.extend(values(device, name, &load));
        runs.extend(ups(device, name, &load));
        runs.extend(downs(device, name, &load));
        runs.extend(numbers(device, name, &load));
        runs.extend(rates(device, name, &load));
    }
    let (name, load) = steady();
    runs.extend(rates(device, name, &load));
    runs.extend(short_waits(device));
    runs.extend(heavier(device));
    runs.extend(from_zero(device));
    runs.extend(silence(device));
    runs.extend(no_figures(device));
    runs.extend(thousands(device));
    runs
}

// --- Devices: what a replica is, and what the chart sets for it ---

struct Device {
    name: &'static str,
    pod: Pod,
    /// How long a job may wait for its answer.
    accepted: f64,
}

/// [`Pod::CPU`], and a model that a GPU does 4,800 rows a second of, but often has to wait for a node.
const DEVICES: [Device; 2] = [
    Device {
        name: "CPU",
        pod: Pod::CPU,
        accepted: 60.0,
    },
    Device {
        name: "GPU",
        pod: Pod {
            per_row: 0.0002,
            per_run: 0.005,
            rows_max: 512.0,
            prefetch: 2048.0,
            cold: 180.0,
            grace: 40.0,
        },
        accepted: 300.0,
    },
];

/// Of the time that jobs may wait, what the value is worth: in a steady load they wait about that long, and the rest is for
/// what comes up while replicas start.
const HALF: f64 = 0.5;

impl Device {
    /// With what the chart sets.
    fn setup(&self, load: &Load) -> Setup {
        let scaling = Spec {
            polling: seconds(10),
            cooldown: seconds(300),
            initial_cooldown: seconds(120),
            min: 1,
            max: 100,
            idle: None,
            fallback: None,
            triggers: vec![average(self.value(HALF))],
            behavior: Some(Behavior {
                up: rules(0, &[percent(100, 15), pods(4, 15)]),
                down: rules(300, &[percent(10, 60), pods(1, 60)]),
            }),
        };
        Setup {
            scaling,
            signals: vec![Signal::Messages],
            pod: self.pod,
            broker: Broker {
                jobs_max: f64::INFINITY,
                refresh: 5.0,
                away: None,
                silent: false,
            },
            load: load.clone(),
            accepted: self.accepted,
            seed: 1,
        }
    }

    /// So many times what a replica does in the time that jobs may wait, but no less than it holds.
    fn value(&self, times: f64) -> f64 {
        (times * self.pod.rate(1.0) * self.accepted).max(self.pod.prefetch)
    }

    /// A run with something changed about what the chart sets.
    fn run(
        &self,
        (name, load): (&'static str, &Load),
        question: &'static str,
        setting: impl Into<String>,
        change: impl Fn(&mut Setup),
    ) -> Run {
        let usual = self.setup(load);
        let mut setup = usual.clone();
        change(&mut setup);
        Run {
            device: self.name,
            load: name,
            question,
            setting: setting.into(),
            default: setup == usual,
            setup,
            seeds: 1..4,
        }
    }
}

// --- Loads, in replicas' worth ---

fn line(seconds: f64, points: Vec<(f64, f64)>) -> Load {
    Load {
        seconds,
        points,
        pulses: Vec::new(),
        heavier: None,
    }
}

fn step(name: &'static str, low: f64, high: f64) -> (&'static str, Load) {
    let points = vec![(300.0, low), (300.1, high), (2100.0, high), (2100.1, low)];
    (name, line(4500.0, points))
}

fn ramp() -> (&'static str, Load) {
    let points = vec![(300.0, 1.0), (2100.0, 20.0), (3000.0, 20.0), (4800.0, 1.0)];
    ("ramp", line(6000.0, points))
}

/// A day from 2 to 20 and back.
fn wave() -> (&'static str, Load) {
    const SECONDS: f64 = 86_400.0;
    // So many points are as good as a cosine.
    let points = (0..=200).map(|index| f64::from(index) / 200.0);
    let points = points.map(|share| (share * SECONDS, 11.0 - 9.0 * (std::f64::consts::TAU * share).cos()));
    ("wave", line(SECONDS, points.collect()))
}

/// Two hours of the same, which one replica cannot do: 120 jobs/s where it does 46.
fn steady() -> (&'static str, Load) {
    ("steady", line(7200.0, vec![(0.0, 2.6)]))
}

/// Twenty minutes of one replica's work within half a minute, at odd times.
fn bursts() -> (&'static str, Load) {
    let times = [600.0, 1900.0, 2500.0, 4700.0, 6300.0];
    let load = Load {
        pulses: times.map(|at| (at, 30.0, 40.0)).to_vec(),
        ..line(7800.0, vec![(0.0, 1.0)])
    };
    ("burst", load)
}

// --- What is changed, one thing at a time ---

fn values<'a>(device: &'a Device, name: &'static str, load: &'a Load) -> impl Iterator<Item = Run> + 'a {
    [0.125, 0.25, HALF, 0.75, 1.0, 2.0, 4.0].into_iter().map(move |times| {
        let change = |setup: &mut Setup| setup.scaling.triggers = vec![average(device.value(times))];
        device.run((name, load), "value", format!("{times} x"), change)
    })
}

fn ups(device: &Device, name: &'static str, load: &Load) -> Vec<Run> {
    let run = |setting: &str, rules: Rules| {
        let change = |setup: &mut Setup| behavior(setup).up = rules.clone();
        device.run((name, load), "up", setting, change)
    };
    vec![
        device.run((name, load), "up", "no behavior at all, up and down", |setup| {
            setup.scaling.behavior = None;
        }),
        run("100 % or 4 in 15 s", rules(0, &[percent(100, 15), pods(4, 15)])),
        run("100 % or 4 in 30 s", rules(0, &[percent(100, 30), pods(4, 30)])),
        run("100 % or 4 in 60 s", rules(0, &[percent(100, 60), pods(4, 60)])),
        run("4 in 30 s", rules(0, &[pods(4, 30)])),
        run("2 in 60 s", rules(0, &[pods(2, 60)])),
        run(
            "100 % or 4 in 15 s, window 60 s",
            rules(60, &[percent(100, 15), pods(4, 15)]),
        ),
    ]
}

fn downs(device: &Device, name: &'static str, load: &Load) -> Vec<Run> {
    let run = |setting: &str, rules: Rules| {
        let change = |setup: &mut Setup| behavior(setup).down = rules.clone();
        device.run((name, load), "down", setting, change)
    };
    vec![
        run("all in 15 s, no window", rules(0, &[percent(100, 15)])),
        run("all in 15 s, window 300 s", rules(300, &[percent(100, 15)])),
        run("1 in 60 s, window 300 s", rules(300, &[pods(1, 60)])),
        run(
            "10 % or 1 in 60 s, window 300 s",
            rules(300, &[percent(10, 60), pods(1, 60)]),
        ),
        run(
            "10 % or 1 in 60 s, window 120 s",
            rules(120, &[percent(10, 60), pods(1, 60)]),
        ),
        run(
            "25 % or 1 in 60 s, window 300 s",
            rules(300, &[percent(25, 60), pods(1, 60)]),
        ),
        run(
            "10 % or 1 in 60 s, window 600 s",
            rules(600, &[percent(10, 60), pods(1, 60)]),
        ),
    ]
}

fn numbers(device: &Device, name: &'static str, load: &Load) -> Vec<Run> {
    let at = (name, load);
    let mins = [1, 2, 5, 10, 20].map(|replicas| {
        let change = move |setup: &mut Setup| setup.scaling.min = replicas;
        device.run(at, "minReplicaCount", replicas.to_string(), change)
    });
    let starts = [5.0, 20.0, 60.0, 180.0, 420.0].map(|cold| {
        let change = move |setup: &mut Setup| setup.pod.cold = cold;
        device.run(at, "start of a replica", format!("{cold} s"), change)
    });
    let polls = [5, 10, 30, 60].map(|polling| {
        let change = move |setup: &mut Setup| setup.scaling.polling = seconds(polling);
        device.run(at, "pollingInterval", format!("{polling} s"), change)
    });
    mins.into_iter().chain(starts).chain(polls).collect()
}

// --- What stands for itself ---

/// Where jobs may wait no longer than it takes to work off twice what a replica holds anyway.
fn short_waits(device: &Device) -> Vec<Run> {
    let (_, load) = step("", 2.0, 20.0);
    let runs = [0.25, 0.5, 1.0, 2.0, 4.0].map(|times| {
        let change = |setup: &mut Setup| {
            setup.accepted = 2.0 * device.pod.prefetch / device.pod.rate(1.0);
            setup.scaling.triggers = vec![average(times * device.pod.prefetch)];
        };
        device.run(
            ("step", &load),
            "value of what is in hand",
            format!("{times} x"),
            change,
        )
    });
    runs.into()
}

/// What a fleet follows while it keeps up, when the queue is as good as empty.
fn rates(device: &Device, name: &'static str, load: &Load) -> Vec<Run> {
    let runs = RATES.map(|(setting, signals)| {
        device.run((name, load), "rate", setting, |setup| {
            read(device, setup, signals);
        })
    });
    runs.into()
}

const PUBLISH: Signal = Signal::Mode(Mode::MessageRate);
const DELIVER_GET: Signal = Signal::Mode(Mode::DeliverGetRate);
const CONSUMPTION: Signal = Signal::Mode(Mode::ExpectedQueueConsumptionTime);

const RATES: [(&str, &[Signal]); 11] = [
    ("messages", &[Signal::Messages]),
    ("messages that are ready (amqp)", &[Signal::Ready]),
    ("messages and MessageRate", &[Signal::Messages, PUBLISH]),
    (
        "messages and a MessageRate that flaps",
        &[Signal::Messages, Signal::FlappingRate],
    ),
    ("messages and rows settled", &[Signal::Messages, Signal::SettledRate]),
    (
        "messages that are ready (amqp) and rows settled",
        &[Signal::Ready, Signal::SettledRate],
    ),
    (
        "seconds of work and rows settled",
        &[Signal::Seconds, Signal::SettledRate],
    ),
    ("MessageRate alone", &[PUBLISH]),
    ("DeliverGetRate alone", &[DELIVER_GET]),
    ("messages and DeliverGetRate", &[Signal::Messages, DELIVER_GET]),
    ("ExpectedQueueConsumptionTime as Value", &[CONSUMPTION]),
];

const SIGNALS: [(&str, &[Signal]); 4] = [
    ("messages", &[Signal::Messages]),
    ("messages that are ready (amqp)", &[Signal::Ready]),
    ("seconds of work", &[Signal::Seconds]),
    ("messages and seconds of work", &[Signal::Messages, Signal::Seconds]),
];

fn read(device: &Device, setup: &mut Setup, signals: &[Signal]) {
    let trigger = |signal: &Signal| match signal {
        Signal::Messages | Signal::Ready | Signal::Mode(Mode::QueueLength) => average(device.value(HALF)),
        Signal::FlappingRate | Signal::Mode(Mode::MessageRate | Mode::DeliverGetRate) => {
            average(SHARE * device.pod.rate(1.0))
        }
        // Of the fleet that there is, so that it needs no figure of one replica.
        Signal::Mode(Mode::ExpectedQueueConsumptionTime) => Trigger {
            kind: Kind::Value,
            ..average(HALF * device.accepted)
        },
        Signal::Seconds => average(HALF * device.accepted),
        Signal::SettledRate => average(1.0),
    };
    setup.scaling.triggers = signals.iter().map(trigger).collect();
    setup.signals = signals.to_vec();
}

/// Jobs get four times the rows, and as many come as before.
fn heavier(device: &Device) -> Vec<Run> {
    let load = Load {
        heavier: Some((600.0, 4.0)),
        ..line(4500.0, vec![(0.0, 5.0)])
    };
    let runs = SIGNALS.map(|(setting, signals)| {
        device.run(("heavier jobs", &load), "trigger", setting, |setup| {
            read(device, setup, signals);
        })
    });
    runs.into()
}

/// A fleet of none, and now and then somebody who wants something.
fn from_zero(device: &Device) -> Vec<Run> {
    // At all sorts of moments between two polls.
    let visits = [602.0, 2411.0, 4223.0, 6039.0];
    let load = Load {
        pulses: visits.map(|at| (at, 10.0, 1.0)).to_vec(),
        ..line(7200.0, vec![(0.0, 0.0)])
    };
    let mut runs: Vec<Run> = SIGNALS
        .map(|(setting, signals)| {
            device.run(("visits", &load), "trigger at zero", setting, |setup| {
                setup.scaling.min = 0;
                read(device, setup, signals);
            })
        })
        .into();
    runs.extend([5, 10, 30, 60].map(|polling| {
        device.run(
            ("visits", &load),
            "pollingInterval at zero",
            format!("{polling} s"),
            |setup| {
                setup.scaling.min = 0;
                setup.scaling.polling = seconds(polling);
            },
        )
    }));
    // The second of each pair comes that much later than the first.
    let apart = [(602.0, 220.0), (2411.0, 320.0), (4223.0, 420.0), (6039.0, 520.0)];
    let pairs = Load {
        pulses: apart
            .iter()
            .flat_map(|(at, later)| [(*at, 10.0, 1.0), (at + later, 10.0, 1.0)])
            .collect(),
        ..line(7200.0, vec![(0.0, 0.0)])
    };
    runs.extend([60, 300, 600, 1200].map(|cooldown| {
        device.run(
            ("pairs of visits", &pairs),
            "cooldownPeriod at zero",
            format!("{cooldown} s"),
            |setup| {
                setup.scaling.min = 0;
                setup.scaling.cooldown = seconds(cooldown);
            },
        )
    }));
    runs
}

/// The management API is away from before a step until it has lasted for ten minutes; or while there is a load at all.
fn silence(device: &Device) -> Vec<Run> {
    let (_, load) = step("", 2.0, 20.0);
    let fallbacks = [
        ("none", None),
        ("10 replicas, static", Some((10, FallbackBehavior::Static))),
        ("1 replica, static", Some((1, FallbackBehavior::Static))),
        (
            "10 replicas, or as many as there are",
            Some((10, FallbackBehavior::CurrentReplicasIfHigher)),
        ),
    ];
    let moments = [
        ("away before the step", (250.0, 900.0)),
        ("away in the step", (1500.0, 2100.0)),
    ];
    let mut runs = Vec::new();
    for (name, away) in moments {
        runs.extend(fallbacks.map(|(setting, fallback)| {
            device.run((name, &load), "fallback", setting, |setup| {
                setup.broker.away = Some(away);
                setup.scaling.fallback = fallback.map(|(replicas, behavior)| Fallback {
                    failures: 3,
                    replicas,
                    behavior,
                });
            })
        }));
    }
    runs
}

/// The management API answers, and has no figure in its answers.
fn no_figures(device: &Device) -> Vec<Run> {
    let (name, load) = step("step", 2.0, 20.0);
    let followed: [(&str, &[Signal]); 5] = [
        ("messages", &[Signal::Messages]),
        ("messages and MessageRate", &[Signal::Messages, PUBLISH]),
        ("messages that are ready (amqp)", &[Signal::Ready]),
        (
            "messages that are ready (amqp) and rows settled",
            &[Signal::Ready, Signal::SettledRate],
        ),
        (
            "seconds of work and rows settled",
            &[Signal::Seconds, Signal::SettledRate],
        ),
    ];
    let runs = followed.map(|(setting, signals)| {
        device.run((name, &load), "no figures", setting, |setup| {
            setup.broker.silent = true;
            read(device, setup, signals);
        })
    });
    runs.into()
}

fn thousands(device: &Device) -> Vec<Run> {
    let (name, load) = step("to 2000", 100.0, 2000.0);
    let run = |setting: &str, change: &dyn Fn(&mut Setup)| {
        device.run((name, &load), "thousands", setting, |setup| {
            setup.scaling.min = 100;
            setup.scaling.max = 4000;
            change(setup);
        })
    };
    vec![
        run("as the chart has it", &|_| ()),
        run("up 4 in 30 s", &|setup| behavior(setup).up.policies = vec![pods(4, 30)]),
        run("down 1 in 60 s", &|setup| {
            behavior(setup).down.policies = vec![pods(1, 60)];
        }),
        run("the broker carries 1000 replicas' worth", &|setup| {
            setup.broker.jobs_max = 1000.0 * device.pod.rate(1.0);
        }),
        run("the same, and maxReplicaCount 1100", &|setup| {
            setup.broker.jobs_max = 1000.0 * device.pod.rate(1.0);
            setup.scaling.max = 1100;
        }),
    ]
}

// --- Short words for long types ---

fn behavior(setup: &mut Setup) -> &mut Behavior {
    setup.scaling.behavior.as_mut().expect("the chart sets it")
}

fn rules(window: u64, policies: &[Policy]) -> Rules {
    Rules {
        window: seconds(window),
        policies: policies.to_vec(),
        select: Select::Max,
    }
}

fn average(target: f64) -> Trigger {
    Trigger {
        target,
        activation: 0.0,
        kind: Kind::AverageValue,
        cached: false,
    }
}

const fn pods(count: u32, period: u64) -> Policy {
    Policy::Pods {
        count,
        period: seconds(period),
    }
}

const fn percent(share: u32, period: u64) -> Policy {
    Policy::Percent {
        share,
        period: seconds(period),
    }
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
