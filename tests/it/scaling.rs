//! Does a fleet follow its backlog as Kubernetes would make it, and does any job notice?
//!
//! KEDA and the HPA are those of `benches/scaling/`, pure rules with the time as an argument; broker, management API and
//! workers are real. The clock is theirs alone: it ticks once a simulated second, in [`TICK`] of real time or as long as
//! a tick takes, so that on a slow machine only work seems faster.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use crate::support::management::Management;
use crate::support::{Broker, Job, PATIENCE, Producer, Reply, Request, Scene, Tensor, Worker, eventually};

use hpa::{Behavior, Hpa, Policy, Rules, Scale, Select};
use keda::{Keda, Kind, Seen, Spec, Trigger};

mod figures;
#[expect(dead_code, reason = "the bench shows the rest")]
#[path = "../../benches/scaling/fleet.rs"]
mod fleet;
#[path = "../../benches/scaling/golden.rs"]
mod golden;
#[path = "../../benches/scaling/hpa.rs"]
mod hpa;
#[path = "../../benches/scaling/keda.rs"]
mod keda;
#[expect(dead_code, reason = "the bench shows the rest")]
#[path = "../../benches/scaling/signals.rs"]
mod signals;
mod simulated;

/// A simulated second.
const TICK: Duration = Duration::from_millis(50);
/// What one replica should have before it.
const JOBS_EACH: f64 = 20.0;
const REPLICAS_MAX: u32 = 4;

#[test]
fn every_golden_vector_is_reproduced() {
    for vector in golden::vectors() {
        assert_eq!(vector.got, vector.expected, "{}", vector.given);
    }
}

#[tokio::test]
async fn replicas_follow_the_backlog_up_and_down_and_every_job_is_answered_once() {
    const STEP: u16 = 100;
    const IN_FLIGHT: u16 = 12;
    const VISIT: u16 = 10;
    let broker = broker();
    let scene = Scene::at(broker.uri());
    scene.declare("slow").await;
    let mut cluster = Cluster::new(Protocol::Http(Management::of(&broker)), &scene);
    let mut producer = scene.producer().await;

    // A step, and others who always have a few jobs under way: too few for a second replica, enough for one.
    let (stop, stopped) = watch::channel(false);
    let mut others = tokio::spawn(keep_in_flight(
        scene.producer().await,
        scene.prefix.clone(),
        IN_FLIGHT,
        stopped,
    ));
    let ids = producer
        .send_all((0..STEP).map(|number| job(&scene.prefix, number)))
        .await;
    cluster
        .run_until("all replicas", |cluster| cluster.wanted == REPLICAS_MAX)
        .await;
    cluster.run_until("one replica", |cluster| cluster.wanted == 1).await;
    let step = producer.replies(&ids).await;
    let held_when_ended = cluster.held_when_ended;
    stop.send(true).expect("the others listen");
    cluster.run_until("no replica", |cluster| cluster.wanted == 0).await;
    let (other_ids, other_replies) = (&mut others).await.expect("the others got all their answers");
    let followed = std::mem::take(&mut cluster.course);
    // Somebody comes by when nobody is there.
    let visit_ids = producer
        .send_all((0..VISIT).map(|number| job(&scene.prefix, number)))
        .await;
    cluster.run_until("a replica", |cluster| cluster.wanted > 0).await;
    cluster
        .run_until("no replica again", |cluster| cluster.wanted == 0)
        .await;
    let visit = producer.replies(&visit_ids).await;
    cluster.all_ended().await;

    let peak = followed
        .iter()
        .position(|replicas| *replicas == REPLICAS_MAX)
        .expect("just waited for");
    assert!(followed[..peak].is_sorted(), "up, and only up: {followed:?}");
    assert!(
        followed[peak..].is_sorted_by(|one, next| one >= next),
        "down, and only down: {followed:?}"
    );
    assert_eq!((followed[0], followed.last()), (1, Some(&0)), "{followed:?}");
    assert_eq!(cluster.course, [1, 0], "so few jobs need one replica");
    assert!(
        held_when_ended > 0.0,
        "no replica had work when it was ended, so nothing was proved"
    );

    assert!(producer.remaining().await.is_empty(), "jobs were answered twice");
    step.values().chain(visit.values()).for_each(|replies| check(replies));
    other_replies.chunks(1).for_each(check);
    let answered: BTreeSet<_> = other_replies.iter().filter_map(Reply::correlation_id).collect();
    assert_eq!(other_replies.len(), other_ids.len(), "lost or answered twice");
    assert_eq!(answered, other_ids.into_iter().collect());
    // A job that had gone back to its queue would have waited twice.
    let jobs = usize::from(STEP + VISIT) + other_replies.len();
    let delivered = deliveries(&Management::of(&broker), &scene, jobs).await;
    assert_eq!(delivered, jobs as u64, "jobs went back to their queue");
    scene.nothing_is_left("slow").await;
}

/// Keeps so many jobs under way until it is told to stop; gives their ids, and all answers.
async fn keep_in_flight(
    mut producer: Producer,
    prefix: String,
    in_flight: u16,
    stopped: watch::Receiver<bool>,
) -> (Vec<String>, Vec<Reply>) {
    let mut ids = producer
        .send_all((0..in_flight).map(|number| job(&prefix, number)))
        .await;
    while !*stopped.borrow() {
        producer.hear_one().await;
        ids.push(producer.send(job(&prefix, 7)).await);
    }
    let replies = producer.replies(&ids).await;
    let mut replies: Vec<Reply> = replies.into_values().flatten().collect();
    replies.extend(producer.remaining().await);
    (ids, replies)
}

/// Some 25 ms of one core.
fn job(prefix: &str, number: u16) -> Job {
    let body = Request::new([Tensor::fp32("x", &[[f32::from(number), 0.0, 0.0, 0.5]])]).msgpack();
    Job::new(prefix, "slow", body).persistent()
}

fn check(replies: &[Reply]) {
    assert_eq!(replies.len(), 1, "answered twice");
    assert_eq!(replies[0].status(), "OK");
    assert_eq!(replies[0].response().output("y").floats()[3], 0.5);
}

/// A broker whose management API is up to date within a few simulated seconds, as a real one is within five real ones.
fn broker() -> Broker {
    let broker = Broker::with_options(&["--plugins", "rabbitmq_management"]);
    broker.ctl(&["eval", "application:set_env(rabbit, quorum_tick_interval, 200)."]);
    broker.ctl(&["eval", "application:set_env(rabbit, collect_statistics_interval, 200)."]);
    broker
}

// --- The cluster: simulated rules, real workers ---

/// How KEDA asks for the queue: `keda.jobs.protocol` of the chart.
enum Protocol {
    Http(Management),
    Amqp,
}

struct Cluster<'a> {
    scene: &'a Scene,
    protocol: Protocol,
    keda: Keda,
    hpa: Hpa,
    now: Duration,
    wanted: u32,
    /// In the order of their creation.
    pods: Vec<Worker>,
    ending: Vec<Worker>,
    /// Every number of replicas that was set.
    course: Vec<u32>,
    /// Jobs that replicas held when they were told to end.
    held_when_ended: f64,
}

impl<'a> Cluster<'a> {
    fn new(protocol: Protocol, scene: &'a Scene) -> Self {
        let keda = Keda::new(spec(), Duration::ZERO);
        let hpa = Hpa::new(keda.hpa());
        Self {
            scene,
            protocol,
            keda,
            hpa,
            now: Duration::ZERO,
            wanted: 0,
            pods: Vec::new(),
            ending: Vec::new(),
            course: Vec::new(),
            held_when_ended: 0.0,
        }
    }

    async fn run_until(&mut self, event: &str, reached: impl Fn(&Self) -> bool) {
        let began = tokio::time::Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !reached(self) {
            assert!(
                began.elapsed() < PATIENCE,
                "waited in vain for {event}; so far {:?}",
                self.course
            );
            ticks.tick().await;
            self.now += Duration::from_secs(1);
            self.tick().await;
        }
    }

    async fn tick(&mut self) {
        let seconds = self.now.as_secs();
        if seconds.is_multiple_of(spec().polling.as_secs()) {
            let messages = self.messages().await;
            if let Some(replicas) = self.keda.poll(self.now, self.wanted, &[messages.map(Seen::from)]) {
                self.become_many(replicas).await;
            }
        }
        if seconds.is_multiple_of(hpa::SYNC.as_secs()) {
            let messages = self.messages().await;
            let scale = self.scale();
            let metrics = self.keda.metrics(scale, &[messages.map(Seen::from)]);
            if let Some(replicas) = self.hpa.sync(self.now, scale, &metrics) {
                self.become_many(replicas).await;
            }
        }
    }

    /// As KEDA's trigger reads it: with `protocol: http` ready and unacked, with `amqp` ready alone.
    async fn messages(&self) -> Option<f64> {
        let queue = self.scene.queue("slow");
        match &self.protocol {
            Protocol::Http(management) => management.queue(&queue).await?.get("messages").and_then(Value::as_f64),
            Protocol::Amqp => Some(self.scene.waiting(&queue).await.into()),
        }
    }

    fn scale(&self) -> Scale {
        let ready = self.pods.iter().filter(|pod| pod.is_ready()).count();
        Scale {
            wanted: self.wanted,
            pods: self.pods.len() as u32,
            ready: ready as u32,
        }
    }

    async fn become_many(&mut self, replicas: u32) {
        self.course.push(replicas);
        self.wanted = replicas;
        while self.pods.len() < replicas as usize {
            let pod = self
                .scene
                .worker("slow")
                .env("INFERQ_BATCH__ROWS_MAX", "1")
                .env("INFERQ_BROKER__PREFETCH", "4");
            self.pods.push(pod.spawn());
        }
        while self.pods.len() > replicas as usize {
            // Kubernetes ends those first that are not ready, then those that became so last.
            let loading = self.pods.iter().rposition(|pod| !pod.is_ready());
            let pod = self.pods.remove(loading.unwrap_or(self.pods.len() - 1));
            if pod.is_ready() {
                self.held_when_ended += pod.metrics().await.sum("inferq_jobs_in_hand").unwrap_or(0.0);
            }
            pod.sigterm();
            self.ending.push(pod);
        }
    }

    /// Waits for those that were told to end, and checks that they ended well.
    async fn all_ended(&mut self) {
        assert!(self.pods.is_empty(), "replicas are left");
        for pod in self.ending.drain(..) {
            let exit = pod.exit().await;
            assert_eq!(exit.code(), Some(0), "{}", pod.log());
            assert!(
                !pod.log().contains("not all jobs were finished in time"),
                "{}",
                pod.log()
            );
        }
    }
}

/// How many deliveries of jobs the broker counted, once it has counted an ack for each of `jobs`.
async fn deliveries(management: &Management, scene: &Scene, jobs: usize) -> u64 {
    let queue = scene.queue("slow");
    eventually("the broker to count all acks", || async {
        let queue = management.queue(&queue).await?;
        let count = |what: &str| queue.get("message_stats")?.get(what)?.as_u64();
        (count("ack")? >= jobs as u64).then(|| count("deliver"))?
    })
    .await
}

/// Windows are shorter than the chart's, so that the test is; the rules are the same.
fn spec() -> Spec {
    let period = Duration::from_secs(15);
    Spec {
        polling: Duration::from_secs(10),
        cooldown: Duration::from_secs(20),
        initial_cooldown: Duration::from_secs(120),
        min: 0,
        max: REPLICAS_MAX,
        idle: None,
        fallback: None,
        triggers: vec![Trigger {
            target: JOBS_EACH,
            activation: 0.0,
            kind: Kind::AverageValue,
            cached: false,
        }],
        behavior: Some(Behavior {
            up: Behavior::default().up,
            down: Rules {
                window: Duration::from_secs(45),
                policies: vec![Policy::Pods { count: 1, period }],
                select: Select::Max,
            },
        }),
    }
}
