//! Does a cluster of three nodes lose a job, or an answer, when some of its nodes are away? `make chaos` does it for longer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lapin::types::AMQPValue;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::chaos::ledger::Ledger;
use crate::chaos::number;
use crate::chaos::traffic::{Address, Kind, collect, produce};
use crate::support::scene::as_worker;
use crate::support::{Broker, Cluster, Job, PATIENCE, Producer, Request, Scene, Tensor, Worker, eventually, within};

const MODEL: &str = "affine";
const GLANCE: Duration = Duration::from_millis(50);
const CONNECT_MAX: Duration = Duration::from_secs(10);

fn good(scene: &Scene) -> Job {
    let body = Request::new([Tensor::fp32("x", &[[0.5; 4]])]).msgpack();
    scene.job(MODEL, body).persistent()
}

/// A job that ends in the dead letters.
fn bad(scene: &Scene) -> Job {
    let body = Request::new([Tensor::fp32("wrong", &[[0.5; 4]])]).msgpack();
    scene.job(MODEL, body).persistent().fire_and_forget()
}

/// A worker that is connected to this node.
fn at_node(scene: &Scene, node: &Broker) -> crate::support::worker::Setup {
    scene
        .worker(MODEL)
        .env("INFERQ_BROKER__URI", as_worker(node.uri()))
        .env("INFERQ_BROKER__HEARTBEAT_MS", "2000")
}

/// Declares a queue at a node, which a quorum queue has its leader at, and a classic one its home.
async fn declare(node: &Broker, queue: &str, kind: &str) {
    let arguments = [("x-queue-type", AMQPValue::LongString(kind.into()))];
    Scene::at(node.uri()).declare_queue_with(queue, arguments).await;
}

/// All nodes, for a client that tries them in turn.
fn addresses(cluster: &Cluster) -> String {
    let uris = cluster.nodes.iter().map(|node| format!("{}?heartbeat=2", node.uri()));
    uris.collect::<Vec<_>>().join(",")
}

fn worker_addresses(cluster: &Cluster) -> String {
    cluster
        .nodes
        .iter()
        .map(|node| as_worker(node.uri()))
        .collect::<Vec<_>>()
        .join(",")
}

async fn value(worker: &Worker, name: &str) -> f64 {
    worker.metrics().await.sum(name).unwrap_or_default()
}

async fn sum(workers: &[Worker], name: &str) -> f64 {
    let mut sum = 0.0;
    for worker in workers {
        sum += value(worker, name).await;
    }
    sum
}

/// Waits until the workers have had so many replies confirmed together.
async fn until_replied(workers: &[Worker], replies: usize) {
    eventually(&format!("{replies} replies"), || async {
        (sum(workers, "inferq_replies_total").await >= replies as f64).then_some(())
    })
    .await;
}

/// RabbitMQ 3.10 binds a publishing channel to the leader that a quorum queue has at its first message: from then on it
/// refuses everything for that queue for as long as the dead leader is away.
#[tokio::test]
async fn a_channel_bound_to_a_dead_leader_costs_no_answer() {
    const QUEUES: usize = 24;
    let mut cluster = Cluster::shared().await;
    let scene = Scene::at(cluster.nodes[0].uri());
    let workers = [
        at_node(&scene, &cluster.nodes[0]).start().await,
        at_node(&scene, &cluster.nodes[1]).start().await,
    ];
    let queues: Vec<String> = (0..QUEUES).map(|n| scene.queue(&format!("replies-{n}"))).collect();
    for queue in &queues {
        declare(&cluster.nodes[2], queue, "quorum").await;
    }
    let producer = scene.producer().await;

    cluster.nodes[2].kill();
    // The first that anybody publishes to these queues.
    for _ in 0..4 {
        producer
            .send_all(queues.iter().map(|queue| good(&scene).reply_to(queue)))
            .await;
    }
    until_replied(&workers, 4 * QUEUES).await;
    for worker in &workers {
        worker.ready_again().await;
    }
    // By now the channel that all share is another, which is not bound to the dead leader.
    let refused = sum(&workers, "inferq_publishes_refused_total").await;
    producer
        .send_all(queues.iter().map(|queue| good(&scene).reply_to(queue)))
        .await;
    until_replied(&workers, 5 * QUEUES).await;
    let refused_again = sum(&workers, "inferq_publishes_refused_total").await - refused;
    let mut answered = 0;
    for queue in &queues {
        answered += scene.waiting(queue).await;
    }
    for worker in &workers {
        worker.drain().await;
    }
    scene.nothing_is_left(MODEL).await;
    cluster.nodes[2].start_again();

    assert!(answered >= 5 * QUEUES as u32, "{answered} answers");
    assert_eq!(refused_again, 0.0);
}

#[tokio::test]
async fn answers_wait_for_a_queue_whose_node_is_away() {
    const JOBS: usize = 20;
    let mut cluster = Cluster::shared().await;
    let scene = Scene::at(cluster.nodes[0].uri());
    let worker = at_node(&scene, &cluster.nodes[0]).start().await;
    let away = scene.queue("away");
    declare(&cluster.nodes[2], &away, "classic").await;
    let mut producer = scene.producer().await;

    cluster.nodes[2].kill();
    producer.send_all((0..JOBS).map(|_| good(&scene).reply_to(&away))).await;
    eventually("the answers to be held back", || async {
        (value(&worker, "inferq_replies_held_back").await == JOBS as f64).then_some(())
    })
    .await;
    // Behind them nobody waits, and of a queue that does not exist nobody hopes that it comes back.
    let reply = producer.call(good(&scene)).await;
    producer.send(good(&scene).reply_to(&scene.queue("gone"))).await;
    let letters = scene.dead_letters(MODEL, 1).await;
    cluster.nodes[2].start_again();
    scene.until_waiting(&away, u32::try_from(JOBS).expect("few")).await;
    worker.drain().await;

    assert_eq!(reply.status(), "OK");
    let error = letters[0].header("inferq-error").expect("a sentence");
    assert!(error.contains("does not exist"), "{error}");
    scene.nothing_is_left(MODEL).await;
}

#[tokio::test]
async fn answers_wait_for_a_queue_no_longer_than_their_deadline() {
    let mut cluster = Cluster::shared().await;
    let scene = Scene::at(cluster.nodes[0].uri());
    let worker = at_node(&scene, &cluster.nodes[0]).start().await;
    let away = scene.queue("away");
    declare(&cluster.nodes[2], &away, "classic").await;
    let producer = scene.producer().await;

    cluster.nodes[2].kill();
    let since_epoch = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
    let deadline = i64::try_from(since_epoch.as_millis()).expect("soon") + 3_000;
    producer.send(good(&scene).reply_to(&away).deadline(deadline)).await;
    let letters = scene.dead_letters(MODEL, 1).await;
    worker.drain().await;
    cluster.nodes[2].start_again();

    let error = letters[0].header("inferq-error").expect("a sentence");
    // RabbitMQ 4.3 refuses what is for such a queue, and says nothing of the reason.
    let is_held = error.contains("is not available") || error.contains("refuses messages");
    assert!(is_held, "{error}");
}

/// The leaders of the reply queue, the job queue and the dead letters, one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_are_killed_lose_nothing() {
    let rounds = number("INFERQ_TEST_CLUSTER_ROUNDS").unwrap_or(1);
    let mut cluster = Cluster::shared().await;
    let mut traffic = Traffic::start(&cluster).await;

    for round in 0..rounds {
        for (number, queue) in traffic.quorum_queues().into_iter().enumerate() {
            let leader = cluster.leader(&queue).await;
            eprintln!("cluster: round {round}, leader of {queue}: node {leader}");
            cluster.nodes[leader].kill();
            traffic.all_workers_answer().await;
            traffic.send_bad(&cluster, number + 1).await;
            cluster.nodes[leader].start_again();
            cluster.all_running();
            traffic.all_workers_answer().await;
        }
    }

    traffic.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_restart_in_turn_cost_no_answer() {
    let mut cluster = Cluster::shared().await;
    let traffic = Traffic::start(&cluster).await;

    for number in [1, 2, 0] {
        cluster.nodes[number].stop();
        traffic.all_workers_answer().await;
        cluster.nodes[number].start_again();
        cluster.all_running();
        traffic.all_workers_answer().await;
    }

    traffic.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hangs_loses_nothing() {
    let mut cluster = Cluster::shared().await;
    let traffic = Traffic::start(&cluster).await;
    let replies = traffic.quorum_queues()[0].clone();
    declare(&cluster.nodes[2], &traffic.scene.queue("elsewhere"), "quorum").await;

    cluster.nodes[2].freeze();
    traffic.all_workers_answer().await;
    eventually("the others to take it for lost", || async {
        (cluster.nodes[0].running_nodes() == 2).then_some(())
    })
    .await;
    traffic.all_workers_answer().await;
    cluster.nodes[2].thaw();
    cluster.all_running();
    traffic.all_workers_answer().await;
    let leader = cluster.leader(&replies).await;

    assert!(leader < 3);
    traffic.finish().await;
}

/// Up to RabbitMQ 4.2 a node without a majority pauses, and whoever is connected to it goes to the others; from 4.3 on it stays,
/// and neither confirms nor delivers until it finds the others again.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_majority_loses_nothing() {
    let mut cluster = Cluster::shared().await;
    let traffic = Traffic::start(&cluster).await;
    let [first, second, third] = &cluster.nodes;

    third.cut_off(&[first, second]);
    traffic.a_worker_answers().await;
    third.reconnect(&[first, second]);
    cluster.all_running();
    traffic.all_workers_answer().await;

    traffic.finish().await;
}

/// Jobs, replies and bad jobs on their way, with a ledger that counts them.
struct Traffic {
    scene: Scene,
    workers: Vec<Worker>,
    ledger: Arc<Ledger>,
    producing: CancellationToken,
    collecting: CancellationToken,
    tasks: JoinSet<()>,
    bad: usize,
    replies: String,
}

impl Traffic {
    /// Two workers, a producer and collectors, each at any node; quorum queues that node 2 leads at first.
    async fn start(cluster: &Cluster) -> Self {
        let scene = Scene::at(cluster.nodes[0].uri());
        let replies = scene.queue("replies");
        declare(&cluster.nodes[2], &replies, "quorum").await;
        at_node(&scene, &cluster.nodes[2]).start().await.drain().await;
        let mut workers = Vec::new();
        for _ in 0..2 {
            let worker = at_node(&scene, &cluster.nodes[0]).env("INFERQ_BROKER__URI", worker_addresses(cluster));
            workers.push(worker.start().await);
        }
        let address = Address {
            uri: addresses(cluster),
            exchange: scene.prefix.clone(),
            model: MODEL.to_owned(),
            reply_queues: vec![replies.clone()],
        };
        let mut traffic = Self {
            workers,
            ledger: Arc::new(Ledger::new(1)),
            producing: CancellationToken::new(),
            collecting: CancellationToken::new(),
            tasks: JoinSet::new(),
            bad: 0,
            replies: replies.clone(),
            scene,
        };
        let (ledger, collecting) = (traffic.ledger.clone(), traffic.collecting.clone());
        let reading = collect(address.uri.clone(), replies, Kind::Replies, ledger.clone(), collecting);
        traffic.tasks.spawn(reading);
        traffic.tasks.spawn(produce(address, ledger, traffic.producing.clone()));
        traffic.all_workers_answer().await;
        traffic
    }

    fn quorum_queues(&self) -> [String; 3] {
        [
            self.replies.clone(),
            self.scene.queue(MODEL),
            self.scene.dead_queue(MODEL),
        ]
    }

    /// Waits until each worker has had more answers confirmed.
    async fn all_workers_answer(&self) {
        for worker in &self.workers {
            let before = value(worker, "inferq_replies_total").await;
            eventually("answers of each worker", || async {
                (value(worker, "inferq_replies_total").await >= before + 50.0).then_some(())
            })
            .await;
        }
    }

    /// Waits until more answers have been confirmed, whoever gave them.
    async fn a_worker_answers(&self) {
        let before = self.ledger.counts().replies;
        eventually("more answers", || async {
            (self.ledger.counts().replies >= before + 200).then_some(())
        })
        .await;
    }

    /// Jobs that end in the dead letters.
    async fn send_bad(&mut self, cluster: &Cluster, count: usize) {
        self.bad += count;
        let node = cluster
            .nodes
            .iter()
            .find(|node| node.is_running())
            .expect("a node runs");
        // RabbitMQ 3.10 may leave a queue undeclared for good that is asked for while a node dies.
        let producer = eventually("a producer", || async {
            let connecting = Producer::connect(node.uri());
            tokio::time::timeout(CONNECT_MAX, connecting).await.ok()
        })
        .await;
        producer.send_all((0..count).map(|_| bad(&self.scene))).await;
    }

    /// As long as it goes on, it may take its time.
    async fn until_all_have_ended(&self) {
        let (mut left, mut since) = (usize::MAX, Instant::now());
        let began = since;
        while left > 0 {
            tokio::time::sleep(GLANCE).await;
            let now = self.ledger.under_way(None);
            if now < left {
                (left, since) = (now, Instant::now());
            }
            if since.elapsed() > PATIENCE || began.elapsed() > 5 * PATIENCE {
                let waiting = self.scene.waiting(&self.scene.queue(MODEL)).await;
                let replies = self.scene.waiting(&self.replies).await;
                let mut in_hand = Vec::new();
                for worker in &self.workers {
                    in_hand.push(value(worker, "inferq_jobs_in_hand").await);
                }
                let letters = self.scene.dead_letters_now(MODEL).await;
                let errors = letters.iter().filter_map(|letter| letter.header("inferq-error"));
                let errors: BTreeSet<String> = errors.collect();
                panic!(
                    "{left} jobs have no end: {waiting} wait in the queue, {in_hand:?} are in the workers' hands, {replies} \
                     replies wait for the collector, and {} dead letters say {errors:?}",
                    letters.len()
                );
            }
        }
    }

    /// Ends the traffic, and counts: an answer for every job, and no dead letter but those of the bad jobs.
    async fn finish(self) {
        self.producing.cancel();
        self.until_all_have_ended().await;
        for worker in &self.workers {
            worker.ready_again().await;
            worker.drain().await;
        }
        let letters = self.scene.dead_letters(MODEL, self.bad).await;
        self.scene.until_waiting(&self.scene.queue(MODEL), 0).await;
        self.collecting.cancel();
        within("the end of producers and collectors", self.tasks.join_all()).await;
        let counts = self.ledger.counts();
        eprintln!("cluster: {counts:?}");
        assert_eq!(self.ledger.missing(), [] as [usize; 0], "confirmed jobs without an end");
        assert_eq!(counts.wrong, [] as [String; 0]);
        for letter in &letters {
            assert_eq!(letter.header("inferq-error-code").as_deref(), Some("INVALID_ARGUMENT"));
        }
        assert!(counts.replies > 0, "nothing was answered, so nothing was proved");
    }
}
