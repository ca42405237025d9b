//! KEDA as a pure rule: its scale loop, and what it hands to the HPA.
//!
//! [`Keda::poll`] is one pass of the loop (every `pollingInterval`): it leaves zero and goes there, and nothing else.
//! [`Keda::metrics`] is what the HPA gets when it asks, which is at its own syncs and not at the polls. From 1 to N the
//! HPA rules (`hpa.rs`).

use std::time::Duration;

use super::hpa::{self, Behavior, Metric, Scale};

/// The spec of a ScaledObject.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    pub polling: Duration,
    pub cooldown: Duration,
    pub initial_cooldown: Duration,
    pub min: u32,
    pub max: u32,
    pub idle: Option<u32>,
    pub fallback: Option<Fallback>,
    pub triggers: Vec<Trigger>,
    pub behavior: Option<Behavior>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    pub target: f64,
    /// It is active above this, not at it.
    pub activation: f64,
    pub kind: Kind,
    /// `useCachedMetrics`: the HPA gets what the last poll saw.
    pub cached: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    AverageValue,
    Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fallback {
    pub failures: u32,
    pub replicas: u32,
    pub behavior: FallbackBehavior,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FallbackBehavior {
    Static,
    CurrentReplicas,
    CurrentReplicasIfHigher,
    CurrentReplicasIfLower,
}

/// What a trigger's source said, or nothing if it could not be asked.
pub type Reading = Option<Seen>;

/// The number that the HPA gets, and the one by which the trigger is active or not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    pub value: f64,
    pub activity: f64,
}

impl From<f64> for Seen {
    fn from(value: f64) -> Self {
        Self { value, activity: value }
    }
}

/// A mode of KEDA's rabbitmq trigger; all but the first need the management API and its statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    QueueLength,
    MessageRate,
    DeliverGetRate,
    ExpectedQueueConsumptionTime,
}

/// The figures of one queue, or the sums of several, as the management API gives them. What is not in its answer is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Queue {
    pub messages: f64,
    /// Jobs a second that were published, over the last interval of the broker's statistics. What is sent again is not in it.
    pub publish: f64,
    pub deliver_get: f64,
}

impl Mode {
    /// Reads a queue in this mode, for a trigger with this `activationValue`.
    ///
    /// # Source
    /// `pkg/scalers/rabbitmq_scaler.go`, `GetMetricsAndActivity`; an empty queue has no consumption time since the release
    /// after 2.20.
    pub fn read(self, queue: Queue, activation: f64) -> Seen {
        let Queue {
            messages,
            publish,
            deliver_get,
        } = queue;
        match self {
            Self::QueueLength => messages.into(),
            Self::MessageRate => Seen {
                value: publish,
                activity: publish.max(messages),
            },
            Self::DeliverGetRate => deliver_get.into(),
            Self::ExpectedQueueConsumptionTime if messages == 0.0 => 0.0.into(),
            // Nobody consumes: it is active, and yet asks for nothing.
            Self::ExpectedQueueConsumptionTime if deliver_get == 0.0 => Seen {
                value: activation,
                activity: f64::INFINITY,
            },
            Self::ExpectedQueueConsumptionTime => ((publish - deliver_get + messages) / deliver_get).into(),
        }
    }
}

/// One ScaledObject with what it remembers.
#[derive(Debug, Clone)]
pub struct Keda {
    spec: Spec,
    created: Duration,
    active_last: Option<Duration>,
    polled: Vec<Reading>,
    /// How often in a row the HPA got no answer, for each trigger.
    failures: Vec<u32>,
}

impl Keda {
    pub fn new(spec: Spec, created: Duration) -> Self {
        let triggers = spec.triggers.len();
        Self {
            spec,
            created,
            active_last: None,
            polled: vec![None; triggers],
            failures: vec![0; triggers],
        }
    }

    /// The HPA that KEDA makes for this object.
    pub fn hpa(&self) -> hpa::Spec {
        hpa::Spec {
            min: self.spec.min.max(1),
            max: self.spec.max,
            up_tolerance: hpa::TOLERANCE,
            down_tolerance: hpa::TOLERANCE,
            behavior: self.spec.behavior.clone(),
        }
    }

    /// One pass of the scale loop; gives the number of replicas that it writes, if it writes one.
    pub fn poll(&mut self, now: Duration, replicas: u32, readings: &[Reading]) -> Option<u32> {
        self.polled = readings.to_vec();
        let active = self
            .spec
            .triggers
            .iter()
            .zip(readings)
            .any(|(trigger, reading)| reading.is_some_and(|seen| seen.activity > trigger.activation));
        if active {
            self.active_last = Some(now);
            let asleep = replicas == 0 || (self.spec.idle.is_some() && replicas < self.spec.min);
            return asleep.then(|| self.spec.min.max(1));
        }
        let failed = readings.iter().any(Option::is_none);
        // With a fallback of 0 replicas it goes on as if nothing had failed: a broker that is away scales to zero.
        if failed && self.spec.fallback.is_none_or(|fallback| fallback.replicas != 0) {
            return None;
        }
        let floor = self.spec.idle.unwrap_or(self.spec.min);
        if replicas > floor && (self.spec.min == 0 || self.spec.idle.is_some()) {
            return self.is_cold(now).then_some(floor);
        }
        (replicas < self.spec.min && self.spec.idle.is_none()).then_some(self.spec.min)
    }

    /// Whether it was inactive for so long that nothing needs to run. What was never active waits for nothing but
    /// `initialCooldownPeriod`, which is 0 unless it is set.
    fn is_cold(&self, now: Duration) -> bool {
        match self.active_last {
            Some(active) => active + self.spec.cooldown < now,
            None => self.created + self.spec.initial_cooldown < now,
        }
    }

    /// What the HPA is told at a sync. Failures count here, since it is the HPA that asks.
    pub fn metrics(&mut self, scale: Scale, readings: &[Reading]) -> Vec<Metric> {
        let asked = self.spec.triggers.iter().zip(readings).zip(&self.polled);
        let asked = asked.map(|((trigger, live), polled)| if trigger.cached { *polled } else { *live });
        let metrics = asked.zip(&self.spec.triggers).zip(&mut self.failures);
        let fallback = self.spec.fallback;
        metrics
            .map(|((reading, trigger), failures)| {
                let total = match reading {
                    Some(seen) => {
                        *failures = 0;
                        seen.value.max(0.0)
                    }
                    None => {
                        *failures += 1;
                        let fallback = fallback.filter(|fallback| *failures > fallback.failures);
                        match fallback {
                            Some(fallback) => instead(trigger, scale, fallback),
                            None => return Metric::Failed,
                        }
                    }
                };
                let target = trigger.target;
                match trigger.kind {
                    Kind::AverageValue => Metric::AverageValue { total, target },
                    Kind::Value => Metric::Value { total, target },
                }
            })
            .collect()
    }
}

/// The metric that makes the HPA want what the fallback says.
fn instead(trigger: &Trigger, scale: Scale, fallback: Fallback) -> f64 {
    let current = scale.wanted;
    let replicas = match fallback.behavior {
        FallbackBehavior::Static => fallback.replicas,
        FallbackBehavior::CurrentReplicas => current,
        FallbackBehavior::CurrentReplicasIfHigher => current.max(fallback.replicas),
        FallbackBehavior::CurrentReplicasIfLower => current.min(fallback.replicas),
    };
    match trigger.kind {
        Kind::AverageValue => trigger.target * f64::from(replicas),
        Kind::Value => trigger.target * f64::from(replicas) / f64::from(scale.ready.max(1)),
    }
}
