//! A fleet of workers on one queue, under KEDA and the HPA, in simulated time.
//!
//! Jobs are a fluid in small portions: each portion knows when it came, waits in the queue, lies in the hands of one
//! replica and is worked off there, first come, first served. That gives the latency of jobs and not of a mean, stays
//! true where it matters for scaling (what one replica holds, nobody else can take; a new one gets only what still
//! waits), and costs a replica some nanoseconds a step, so that thousands of them are simulated for hours in seconds. What it
//! cannot show is anything shorter than [`STEP`].

use std::collections::VecDeque;
use std::time::Duration;

use super::hpa::{Hpa, SYNC, Scale};
use super::keda::{Keda, Reading, Spec};
use super::signals::{Counts, Signal, Sources};

/// All that decides how a run goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    pub scaling: Spec,
    /// What each trigger of `scaling` reads.
    pub signals: Vec<Signal>,
    pub pod: Pod,
    pub broker: Broker,
    pub load: Load,
    /// How long a job may wait for its answer.
    pub accepted: f64,
    pub seed: u64,
}

/// One replica: `t = per_row · rows + per_run`, and how it comes and goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pod {
    pub per_row: f64,
    pub per_run: f64,
    pub rows_max: f64,
    /// Jobs that it holds at most.
    pub prefetch: f64,
    /// Seconds from its creation to its first job: scheduling, image, model. A quarter more or less for each.
    pub cold: f64,
    /// Seconds to finish what it holds; the rest goes back to the queue.
    pub grace: f64,
}

impl Pod {
    /// A model of some 10 ms a row on a core, whose image is on most nodes.
    pub const CPU: Self = Self {
        per_row: 0.008,
        per_run: 0.008,
        rows_max: 64.0,
        prefetch: 256.0,
        cold: 20.0,
        grace: 40.0,
    };
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Broker {
    /// Jobs a second that it delivers to all replicas together.
    pub jobs_max: f64,
    /// Seconds between two refreshes of the management API's figures.
    pub refresh: f64,
    /// From when to when the management API does not answer.
    pub away: Option<(f64, f64)>,
    /// Whether the management API answers without any figure, as with `management_metrics_collection` not permitted.
    pub silent: bool,
}

/// What arrives, in units of what one replica can do.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    pub seconds: f64,
    /// Straight lines between these points: when, and how much.
    pub points: Vec<(f64, f64)>,
    /// Pulses on top: when, for how long, how much.
    pub pulses: Vec<(f64, f64, f64)>,
    /// From when on a job has how many rows; before that one.
    pub heavier: Option<(f64, f64)>,
}

/// What became of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub came: f64,
    pub answered: f64,
    pub latency_sum: f64,
    pub latency_max: f64,
    /// Jobs by their latency, in steps of [`STEP`].
    pub latencies: Vec<f64>,
    pub in_time: f64,
    /// Replica-seconds, from creation to end.
    pub paid: f64,
    /// Replica-seconds that the work took at full batches.
    pub needed: f64,
    /// How often the direction of scaling changed.
    pub turns: u32,
    /// Jobs that a replica could not finish when it was ended.
    pub returned: f64,
    pub replicas_max: u32,
    pub course: Vec<Point>,
}

/// One point of the course of a run; its latencies are those of the jobs that came since the last one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Point {
    pub at: f64,
    pub offered: f64,
    pub backlog: f64,
    pub replicas: f64,
    pub ready: f64,
    pub latency: f64,
    jobs: f64,
}

/// Jobs that came together.
#[derive(Debug, Clone, Copy)]
struct Portion {
    born: f64,
    jobs: f64,
}

#[derive(Debug, Clone)]
struct Replica {
    phase: Phase,
    since: f64,
    held: VecDeque<Portion>,
    /// Of what it holds.
    jobs: f64,
    /// What of it belongs to the batch that runs and the one that forms, as of the last step.
    under_way: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Loading,
    Ready,
    Draining,
}

impl Replica {
    fn new(phase: Phase, since: f64) -> Self {
        Self {
            phase,
            since,
            held: VecDeque::new(),
            jobs: 0.0,
            under_way: 0.0,
        }
    }
}

impl Pod {
    /// Jobs a second at full batches.
    pub fn rate(&self, rows: f64) -> f64 {
        1.0 / (rows * (self.per_row + self.per_run / self.rows_max))
    }

    /// What a replica holds on average that gets `share` of what it can do: the batch that runs and the one that forms.
    fn in_hand(&self, share: f64, rows: f64) -> f64 {
        let per_second = share * self.rate(rows) * rows;
        let full = 2.0 * self.rows_max;
        let idle = 1.0 - per_second * self.per_row;
        let batch = if idle > 0.0 {
            per_second * self.per_run / idle
        } else {
            full
        };
        let alone = per_second * (self.per_row + self.per_run);
        let held = if batch < 1.0 { alone } else { (2.0 * batch).min(full) };
        (held / rows).min(self.prefetch)
    }
}

impl Load {
    /// In replicas' worth.
    pub fn offered(&self, at: f64) -> f64 {
        let next = self.points.partition_point(|(when, _)| *when <= at);
        let line = match (next.checked_sub(1).map(|last| self.points[last]), self.points.get(next)) {
            (Some((from, low)), Some((to, high))) => low + (high - low) * (at - from) / (to - from),
            (Some((_, last)), None) => last,
            (None, Some((_, first))) => *first,
            (None, None) => 0.0,
        };
        let pulses = self
            .pulses
            .iter()
            .filter(|(from, long, _)| (*from..from + long).contains(&at));
        line + pulses.map(|(_, _, much)| much).sum::<f64>()
    }

    fn rows(&self, at: f64) -> f64 {
        self.heavier
            .filter(|(from, _)| at >= *from)
            .map_or(1.0, |(_, rows)| rows)
    }
}

/// Runs it from the first job to the end of `load`, and until all are answered.
pub fn run(setup: &Setup) -> Outcome {
    let mut fleet = Fleet::new(setup);
    let steps = (setup.load.seconds / STEP) as u64;
    let longest = steps + (AFTERWARDS / STEP) as u64;
    for step in 0..longest {
        if step >= steps && fleet.messages() < 0.5 {
            break;
        }
        fleet.step(step as f64 * STEP, step < steps);
    }
    fleet.outcome
}

struct Fleet<'a> {
    setup: &'a Setup,
    keda: Keda,
    hpa: Hpa,
    random: fastrand::Rng,
    queue: VecDeque<Portion>,
    /// Of the queue.
    jobs: f64,
    replicas: Vec<Replica>,
    wanted: u32,
    grew: Option<bool>,
    delivered: f64,
    settled_rows: f64,
    sources: Sources,
    outcome: Outcome,
}

impl<'a> Fleet<'a> {
    fn new(setup: &'a Setup) -> Self {
        let keda = Keda::new(setup.scaling.clone(), Duration::ZERO);
        let hpa = Hpa::new(keda.hpa());
        let wanted = setup.scaling.min;
        Self {
            setup,
            keda,
            hpa,
            random: fastrand::Rng::with_seed(setup.seed),
            queue: VecDeque::new(),
            jobs: 0.0,
            replicas: vec![Replica::new(Phase::Ready, 0.0); wanted as usize],
            wanted,
            grew: None,
            delivered: 0.0,
            settled_rows: 0.0,
            sources: Sources::default(),
            outcome: Outcome::default(),
        }
    }

    fn step(&mut self, now: f64, open: bool) {
        if open {
            self.arrive(now);
        }
        self.scale(now);
        self.deliver(now);
        self.work(now);
        self.leave(now);
        self.note(now);
    }

    fn arrive(&mut self, now: f64) {
        let offered = self.setup.load.offered(now + STEP / 2.0);
        let expected = offered * self.setup.pod.rate(1.0) * STEP;
        let jobs = poisson(&mut self.random, expected);
        let rows = self.setup.load.rows(now);
        if jobs > 0.0 {
            self.queue.push_back(Portion {
                born: now + STEP / 2.0,
                jobs,
            });
            self.jobs += jobs;
            self.outcome.came += jobs;
            self.outcome.needed += jobs / self.setup.pod.rate(rows);
        }
        if now % COURSE < STEP / 2.0 {
            self.outcome.course.push(Point {
                at: now,
                offered: offered * rows,
                ..Point::default()
            });
        }
    }

    // --- How many there should be ---

    fn scale(&mut self, now: f64) {
        if is_due(now, self.setup.broker.refresh) {
            let counts = self.counts();
            self.sources.refresh(counts, &self.setup.broker);
        }
        if is_due(now, SCRAPE) {
            let seconds = self.seconds(now);
            let workers = seconds.map(|_| self.settled_rows / self.setup.pod.rate(1.0));
            self.sources.scrape(now, seconds, workers);
        }
        let time = Duration::from_secs_f64(now);
        let readings = self.readings(now);
        if is_due(now, self.setup.scaling.polling.as_secs_f64())
            && let Some(replicas) = self.keda.poll(time, self.wanted, &readings)
        {
            self.become_many(now, replicas);
        }
        // Half a period later than anything else: two loops that know nothing of each other.
        if is_due(now + SYNC.as_secs_f64() / 2.0, SYNC.as_secs_f64()) {
            let scale = Scale {
                wanted: self.wanted,
                pods: self.count(|phase| phase != Phase::Draining),
                ready: self.count(|phase| phase == Phase::Ready),
            };
            let metrics = self.keda.metrics(scale, &readings);
            if let Some(replicas) = self.hpa.sync(time, scale, &metrics) {
                self.become_many(now, replicas);
            }
        }
    }

    fn readings(&self, now: f64) -> Vec<Reading> {
        let away = self
            .setup
            .broker
            .away
            .is_some_and(|(from, to)| (from..to).contains(&now));
        let triggers = self.setup.signals.iter().zip(&self.setup.scaling.triggers);
        triggers
            .map(|(signal, trigger)| self.sources.read(*signal, trigger.activation, away))
            .collect()
    }

    fn counts(&self) -> Counts {
        Counts {
            ready: self.jobs,
            unacked: self.held(),
            published: self.outcome.came,
            delivered: self.delivered,
        }
    }

    /// What the worker that is worst off says that it would need for all that waits and what it holds. It knows the
    /// rows of what came last, not of what waits.
    fn seconds(&self, now: f64) -> Option<f64> {
        let ready = self.replicas.iter().filter(|replica| replica.phase == Phase::Ready);
        let most = ready.map(|replica| replica.jobs).reduce(f64::max)?;
        Some((self.jobs + most) / self.setup.pod.rate(self.setup.load.rows(now)))
    }

    fn become_many(&mut self, now: f64, replicas: u32) {
        let grows = replicas > self.wanted;
        if self.grew.is_some_and(|grew| grew != grows) {
            self.outcome.turns += 1;
        }
        self.grew = Some(grows);
        for _ in self.wanted..replicas {
            let cold = self.setup.pod.cold * (0.75 + self.random.f64() / 2.0);
            self.replicas.push(Replica::new(Phase::Loading, now + cold));
        }
        for _ in replicas..self.wanted {
            self.end_one(now);
        }
        self.wanted = replicas;
    }

    /// Kubernetes ends those first that are not ready, then those that became ready last.
    fn end_one(&mut self, now: f64) {
        let loading = self
            .replicas
            .iter()
            .rposition(|replica| replica.phase == Phase::Loading);
        if let Some(index) = loading {
            self.replicas.remove(index);
        } else if let Some(index) = self.replicas.iter().rposition(|replica| replica.phase == Phase::Ready) {
            self.replicas[index].phase = Phase::Draining;
            self.replicas[index].since = now;
        }
    }

    // --- What they do ---

    /// Turns about, to each that has room.
    fn deliver(&mut self, now: f64) {
        let pod = self.setup.pod;
        let work = pod.rate(self.setup.load.rows(now)) * STEP;
        let mut budget = (self.setup.broker.jobs_max * STEP).min(self.jobs);
        let mut roomy: Vec<(usize, f64)> = Vec::new();
        for (index, replica) in self.replicas.iter_mut().enumerate() {
            if replica.phase == Phase::Loading && replica.since <= now {
                replica.phase = Phase::Ready;
            }
            // What it works off within the step makes room within the step.
            let room = pod.prefetch + work - replica.jobs;
            if replica.phase == Phase::Ready && room > 0.0 {
                roomy.push((index, room));
            }
        }
        // The fullest first, so that what it cannot take is there for the others.
        roomy.sort_by(|one, other| one.1.total_cmp(&other.1));
        let mut left = roomy.len();
        for (index, room) in roomy {
            let share = room.min(budget / left as f64);
            budget -= share;
            left -= 1;
            if let Some(portion) = self.take(share) {
                self.delivered += portion.jobs;
                self.replicas[index].jobs += portion.jobs;
                self.replicas[index].held.push_back(portion);
            }
        }
    }

    /// The oldest jobs, as one portion.
    fn take(&mut self, jobs: f64) -> Option<Portion> {
        let (mut taken, mut born) = (0.0, 0.0);
        while taken < jobs
            && let Some(first) = self.queue.front_mut()
        {
            let part = first.jobs.min(jobs - taken);
            taken += part;
            born += part * first.born;
            first.jobs -= part;
            if first.jobs < CRUMB {
                self.queue.pop_front();
            }
        }
        self.jobs = if self.queue.is_empty() { 0.0 } else { self.jobs - taken };
        (taken > CRUMB).then(|| Portion {
            born: born / taken,
            jobs: taken,
        })
    }

    fn work(&mut self, now: f64) {
        let pod = self.setup.pod;
        let rows = self.setup.load.rows(now);
        let most = pod.rate(rows) * STEP;
        for replica in &mut self.replicas {
            if replica.jobs <= 0.0 {
                continue;
            }
            // One that keeps up still holds what is under way; one that is to leave does not.
            let share = (replica.jobs - replica.under_way).max(0.0) / most;
            replica.under_way = if replica.phase == Phase::Draining {
                0.0
            } else {
                pod.in_hand(share.min(1.0), rows).min(replica.jobs)
            };
            let mut done = (replica.jobs - replica.under_way).min(most);
            replica.jobs -= done;
            self.settled_rows += done * rows;
            while done > 0.0
                && let Some(first) = replica.held.front_mut()
            {
                let part = first.jobs.min(done);
                done -= part;
                first.jobs -= part;
                self.outcome
                    .answer(first.born, now + STEP - first.born, part, self.setup.accepted);
                if first.jobs < CRUMB {
                    replica.held.pop_front();
                }
            }
            if replica.held.is_empty() {
                replica.jobs = 0.0;
            }
        }
    }

    /// Those that drain end when they are done, or when their time is up; then what they hold goes back.
    fn leave(&mut self, now: f64) {
        let grace = self.setup.pod.grace;
        let mut back = Vec::new();
        self.replicas.retain_mut(|replica| {
            let ends = replica.phase == Phase::Draining && (replica.jobs <= CRUMB || now - replica.since >= grace);
            if ends {
                back.extend(replica.held.drain(..));
            }
            !ends
        });
        for portion in back {
            self.outcome.returned += portion.jobs;
            self.jobs += portion.jobs;
            self.queue.push_front(portion);
        }
    }

    fn note(&mut self, now: f64) {
        let (backlog, replicas) = (self.messages(), self.replicas.len());
        let ready = f64::from(self.count(|phase| phase == Phase::Ready));
        self.outcome.paid += replicas as f64 * STEP;
        self.outcome.replicas_max = self.outcome.replicas_max.max(self.wanted);
        let open = now < self.setup.load.seconds;
        if let Some(point) = self.outcome.course.last_mut().filter(|_| open) {
            point.backlog = point.backlog.max(backlog);
            point.replicas = f64::from(self.wanted);
            point.ready = ready;
        }
    }

    fn messages(&self) -> f64 {
        self.jobs + self.held()
    }

    fn held(&self) -> f64 {
        self.replicas.iter().map(|replica| replica.jobs).sum()
    }

    fn count(&self, which: impl Fn(Phase) -> bool) -> u32 {
        self.replicas.iter().filter(|replica| which(replica.phase)).count() as u32
    }
}

impl Outcome {
    /// The latency that so great a share of the answered jobs did not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut left = share * self.answered;
        let step = self.latencies.iter().position(|jobs| {
            left -= jobs;
            left <= 0.0
        });
        step.map_or(self.latency_max, |step| step as f64 * STEP)
    }

    fn answer(&mut self, born: f64, latency: f64, jobs: f64, accepted: f64) {
        self.answered += jobs;
        self.latency_sum += jobs * latency;
        self.latency_max = self.latency_max.max(latency);
        let step = (latency / STEP) as usize;
        self.latencies.resize(self.latencies.len().max(step + 1), 0.0);
        self.latencies[step] += jobs;
        if latency <= accepted {
            self.in_time += jobs;
        }
        if let Some(point) = self.course.get_mut((born / COURSE) as usize) {
            point.latency = (point.latency * point.jobs + latency * jobs) / (point.jobs + jobs);
            point.jobs += jobs;
        }
    }
}

fn is_due(now: f64, period: f64) -> bool {
    now % period < STEP / 2.0
}

/// A number of arrivals; of many the normal distribution will do.
fn poisson(random: &mut fastrand::Rng, expected: f64) -> f64 {
    if expected > 30.0 {
        let (one, other) = (random.f64().max(f64::MIN_POSITIVE), random.f64());
        let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos();
        return (expected + expected.sqrt() * normal).round().max(0.0);
    }
    let (limit, mut product, mut count) = ((-expected).exp(), random.f64(), 0.0);
    while product > limit {
        product *= random.f64();
        count += 1.0;
    }
    count
}

/// Seconds; periods are multiples of it.
pub const STEP: f64 = 0.5;
/// Seconds between two points of the course.
const COURSE: f64 = 10.0;
/// Seconds after the last job, by which all are answered or never will be.
const AFTERWARDS: f64 = 3600.0;
/// Of Prometheus.
const SCRAPE: f64 = 15.0;
/// Less than this of a job is none.
const CRUMB: f64 = 1e-9;
