//! Kubernetes' HorizontalPodAutoscaler as a pure rule: what it was told and the time go in, a number of replicas comes out.
//!
//! One call of [`Hpa::sync`] is one pass of its controller (every 15 s by default) over external metrics, the only kind
//! that KEDA makes. `golden.rs` holds vectors that it must reproduce.

use std::time::Duration;

/// The spec of a HorizontalPodAutoscaler, and the controller's flags that matter here.
#[derive(Debug, Clone)]
pub struct Spec {
    pub min: u32,
    pub max: u32,
    pub up_tolerance: f64,
    pub down_tolerance: f64,
    /// Without one the older rules hold: at most double, or 4, at once, and down to what the last five minutes asked for.
    pub behavior: Option<Behavior>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behavior {
    pub up: Rules,
    pub down: Rules,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    pub window: Duration,
    pub policies: Vec<Policy>,
    pub select: Select,
}

/// How far one period may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Pods { count: u32, period: Duration },
    Percent { share: u32, period: Duration },
}

/// Which of several policies holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Select {
    /// The one that allows the largest change.
    Max,
    /// The one that allows the smallest.
    Min,
    Disabled,
}

/// A metric as the controller reads it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Metric {
    AverageValue { total: f64, target: f64 },
    Value { total: f64, target: f64 },
    Failed,
}

/// The scaled workload, at the moment of a sync.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// `scale.spec.replicas`.
    pub wanted: u32,
    /// `scale.status.replicas`: pods that are not being ended, ready or not.
    pub pods: u32,
    pub ready: u32,
}

/// One HorizontalPodAutoscaler with what it remembers.
#[derive(Debug, Clone)]
pub struct Hpa {
    spec: Spec,
    recommended: Vec<(Duration, u32)>,
    added: Vec<(Duration, u32)>,
    removed: Vec<(Duration, u32)>,
}

impl Hpa {
    pub fn new(spec: Spec) -> Self {
        Self {
            spec,
            recommended: Vec::new(),
            added: Vec::new(),
            removed: Vec::new(),
        }
    }

    /// One pass; gives the number of replicas that it writes, if it writes one.
    pub fn sync(&mut self, now: Duration, scale: Scale, metrics: &[Metric]) -> Option<u32> {
        let current = scale.wanted;
        let Spec { min, max, .. } = self.spec;
        // KEDA's state of zero: the controller is off until somebody else leaves it.
        if current == 0 && min != 0 {
            return None;
        }
        let next = if current > max {
            max
        } else if current < min {
            min
        } else {
            let wanted = self.wanted(scale, metrics)?;
            self.limited(now, current, wanted)
        };
        if next == current {
            return None;
        }
        if next > current {
            self.added.push((now, next - current));
        } else {
            self.removed.push((now, current - next));
        }
        Some(next)
    }

    /// What the metrics ask for. With one in error, only for more; with all in error, nothing.
    fn wanted(&self, scale: Scale, metrics: &[Metric]) -> Option<u32> {
        let proposals: Vec<u32> = metrics
            .iter()
            .filter_map(|metric| self.proposal(scale, *metric))
            .collect();
        let most = proposals.iter().copied().max()?;
        let failed = proposals.len() < metrics.len();
        (!failed || most >= scale.wanted).then_some(most)
    }

    fn proposal(&self, scale: Scale, metric: Metric) -> Option<u32> {
        match metric {
            // Readiness is ignored: a pod that still loads counts as one that works.
            Metric::AverageValue { total, target } => {
                let (total, target) = (milli(total), milli(target));
                let steady = self.tolerates(total / (target * f64::from(scale.pods)));
                Some(if steady { scale.pods } else { ceil(total / target) })
            }
            Metric::Value { total, target } => {
                let ratio = milli(total) / milli(target);
                let steady = self.tolerates(ratio);
                Some(if steady {
                    scale.wanted
                } else {
                    ceil(ratio * f64::from(scale.ready))
                })
            }
            Metric::Failed => None,
        }
    }

    fn tolerates(&self, ratio: f64) -> bool {
        (1.0 - self.spec.down_tolerance..=1.0 + self.spec.up_tolerance).contains(&ratio)
    }

    /// Stabilises and limits what is wanted.
    fn limited(&mut self, now: Duration, current: u32, wanted: u32) -> u32 {
        let next = match self.spec.behavior.clone() {
            None => self.plain(now, current, wanted),
            Some(behavior) => self.behaved(now, current, wanted, &behavior),
        };
        // What is remembered is what the metrics wanted, not what became of it.
        self.recommended.push((now, wanted));
        self.forget(now);
        next
    }

    fn plain(&self, now: Duration, current: u32, wanted: u32) -> u32 {
        let stable = self.recommendations(now, PLAIN_WINDOW).fold(wanted, u32::max);
        let limit = (2 * current).max(4).min(self.spec.max);
        stable.clamp(self.spec.min, limit.max(self.spec.min))
    }

    fn behaved(&self, now: Duration, current: u32, wanted: u32, behavior: &Behavior) -> u32 {
        let up = self.recommendations(now, behavior.up.window).fold(wanted, u32::min);
        let down = self.recommendations(now, behavior.down.window).fold(wanted, u32::max);
        let stable = current.max(up).min(down);
        if stable > current {
            let limit = self.limit(now, current, &behavior.up, Way::Up).max(current);
            stable.min(limit).min(self.spec.max)
        } else {
            let limit = self.limit(now, current, &behavior.down, Way::Down).min(current);
            stable.max(limit).max(self.spec.min)
        }
    }

    fn recommendations(&self, now: Duration, window: Duration) -> impl Iterator<Item = u32> {
        self.recommended
            .iter()
            .filter(move |(at, _)| now - *at < window)
            .map(|(_, wanted)| *wanted)
    }

    /// How far the policies let it go. Each counts from what there was when its period began.
    fn limit(&self, now: Duration, current: u32, rules: &Rules, way: Way) -> u32 {
        let limits = rules.policies.iter().map(|policy| {
            let (Policy::Pods { period, .. } | Policy::Percent { period, .. }) = *policy;
            let base = i64::from(current) - sum(&self.added, now, period) + sum(&self.removed, now, period);
            let limit = match (*policy, way) {
                (Policy::Pods { count, .. }, Way::Up) => base + i64::from(count),
                (Policy::Pods { count, .. }, Way::Down) => base - i64::from(count),
                // Up is rounded up, and down is cut off, so that both go as far as they may.
                (Policy::Percent { share, .. }, Way::Up) => {
                    ((base * (100 + i64::from(share))) as f64 / 100.0).ceil() as i64
                }
                (Policy::Percent { share, .. }, Way::Down) => base * (100 - i64::from(share)) / 100,
            };
            u32::try_from(limit.max(0)).unwrap_or(u32::MAX)
        });
        let chosen = match (rules.select, way) {
            (Select::Disabled, _) => None,
            (Select::Max, Way::Up) | (Select::Min, Way::Down) => limits.max(),
            (Select::Max, Way::Down) | (Select::Min, Way::Up) => limits.min(),
        };
        chosen.unwrap_or(current)
    }

    /// Drops what no window and no period can reach any more.
    fn forget(&mut self, now: Duration) {
        for list in [&mut self.recommended, &mut self.added, &mut self.removed] {
            list.retain(|(at, _)| now - *at <= REACH);
        }
    }
}

impl Default for Behavior {
    /// What Kubernetes fills in for parts that are missing.
    fn default() -> Self {
        let period = Duration::from_secs(15);
        let all = Policy::Percent { share: 100, period };
        Self {
            up: Rules {
                window: Duration::ZERO,
                policies: vec![Policy::Pods { count: 4, period }, all],
                select: Select::Max,
            },
            down: Rules {
                window: PLAIN_WINDOW,
                policies: vec![all],
                select: Select::Max,
            },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

fn sum(changes: &[(Duration, u32)], now: Duration, period: Duration) -> i64 {
    let young = changes.iter().filter(|(at, _)| now - *at < period);
    young.map(|(_, count)| i64::from(*count)).sum()
}

/// Quantities travel in thousandths.
fn milli(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn ceil(replicas: f64) -> u32 {
    replicas.ceil() as u32
}

/// Of the controller's flag `--horizontal-pod-autoscaler-downscale-stabilization`.
const PLAIN_WINDOW: Duration = Duration::from_secs(300);
/// The longest window that Kubernetes accepts; periods are at most half of it.
const REACH: Duration = Duration::from_secs(3600);
/// Of the controller's flag `--horizontal-pod-autoscaler-tolerance`.
pub const TOLERANCE: f64 = 0.1;
/// Of the controller's flag `--horizontal-pod-autoscaler-sync-period`.
pub const SYNC: Duration = Duration::from_secs(15);
