//! Is anything lost when the broker or the way to it fails?

use crate::support::cluster::leader;
use crate::support::link::Link;
use crate::support::scene::as_worker;
use crate::support::{Broker, Job, Producer, Request, Routed, Scene, Tensor, Worker, eventually};

pub fn numbered(scene: &Scene, number: u16) -> Job {
    let body = Request::new([Tensor::fp32("x", &[[f32::from(number), 0.0, 0.0, 0.5]])]).msgpack();
    let id = number.to_string();
    scene.job("slow", body).correlation_id(&id).message_id(&id).persistent()
}

/// Takes replies until each of `0..jobs` has one; checks each and returns how many came in all.
pub async fn all_answered(producer: &mut Producer, jobs: u16) -> usize {
    let ids: Vec<String> = (0..jobs).map(|number| number.to_string()).collect();
    let replies = producer.replies(&ids).await;
    for (id, replies) in &replies {
        for reply in replies {
            assert_eq!(reply.message_id().as_deref(), Some(id.as_str()));
            assert_eq!(
                reply.response().output("y").floats(),
                [id.parse().expect("our own id"), 0.0, 0.0, 0.5]
            );
        }
    }
    replies.values().map(Vec::len).sum()
}

#[tokio::test]
async fn a_connection_that_breaks_in_the_middle_of_the_work_loses_nothing() {
    const JOBS: u16 = 120;
    let broker = Broker::shared();
    let scene = Scene::new();
    let link = Link::to(broker.amqp_port()).await;
    let worker = scene
        .worker("slow")
        .env("INFERQ_BROKER__URI", link.uri(&as_worker(broker.uri())));
    let worker = worker
        .env("INFERQ_BATCH__ROWS_MAX", "2")
        .env("INFERQ_BROKER__PREFETCH", "16")
        .start()
        .await;
    let mut producer = scene.producer().await;

    producer
        .send_all((0..JOBS).map(|number| numbered(&scene, number)))
        .await;
    for _ in 0..4 {
        producer.hear_one().await;
        link.cut();
        worker.ready_again().await;
    }
    all_answered(&mut producer, JOBS).await;
    worker.drain().await;

    assert!(!worker.log().contains("PRECONDITION"), "a stale tag was acked");
    scene.nothing_is_left("slow").await;
}

#[tokio::test]
async fn a_broker_that_restarts_under_load_loses_nothing() {
    survives(Broker::stop).await;
}

#[tokio::test]
async fn a_broker_that_is_killed_under_load_loses_nothing() {
    survives(Broker::kill).await;
}

#[tokio::test]
async fn a_quorum_queue_whose_leader_dies_goes_on_with_another_and_loses_nothing() {
    const JOBS: u16 = 120;
    let first = Broker::start();
    let mut second = Broker::joining(&first);
    let _third = Broker::joining(&first);
    let scene = Scene::at(first.uri());
    // A new queue has its leader where it was declared, and a member on each of three nodes.
    let there = Scene {
        uri: second.uri().to_owned(),
        prefix: scene.prefix.clone(),
    };
    there.declare("slow").await;
    let queue = scene.queue("slow");
    assert_eq!(leader(&first, &queue).as_deref(), Some(second.node()));
    let worker = scene
        .worker("slow")
        .env("INFERQ_BATCH__ROWS_MAX", "2")
        .env("INFERQ_BROKER__PREFETCH", "16");
    let worker = worker.start().await;
    let mut producer = scene.producer().await;

    let jobs = |numbers: std::ops::Range<u16>| numbers.map(|number| numbered(&scene, number)).collect::<Vec<_>>();
    producer.send_all(jobs(0..JOBS / 2)).await;
    producer.hear_one().await;
    second.kill();
    producer.send_all(jobs(JOBS / 2..JOBS)).await; // Confirmed by the two members that are left.
    all_answered(&mut producer, JOBS).await;
    worker.drain().await;

    assert_ne!(leader(&first, &queue).as_deref(), Some(second.node()));
    scene.nothing_is_left("slow").await;
}

/// Ends the broker in the middle of the work, starts it again, and counts.
///
/// The replies wait in a durable queue until the end, so that none is lost between the broker and this test.
async fn survives(end: impl Fn(&mut Broker)) {
    const JOBS: u16 = 120;
    let mut broker = Broker::durable();
    let scene = Scene::at(broker.uri());
    // A stop in good order first: RabbitMQ 3.10 takes some seconds to make a new quorum queue proof against a kill, and
    // then never finds a leader for it again.
    scene.declare("slow").await;
    broker.stop();
    broker.start_again();
    let worker = scene
        .worker("slow")
        .env("INFERQ_BATCH__ROWS_MAX", "2")
        .env("INFERQ_BROKER__PREFETCH", "16");
    let worker = worker.start().await;
    let replies = scene.queue("replies");
    scene.declare_queue(&replies).await;

    let send = async |numbers: std::ops::Range<u16>| {
        let jobs = numbers.map(|number| numbered(&scene, number).reply_to(&replies));
        scene.producer().await.send_all(jobs).await;
    };
    send(0..JOBS / 2).await;
    eventually("the work to begin", || async {
        (scene.waiting(&replies).await > 0).then_some(())
    })
    .await;
    end(&mut broker);
    worker.unready_because("connect").await;
    broker.start_again();
    worker.ready_again().await;
    send(JOBS / 2..JOBS).await;
    let mut producer = Producer::at_queue(&scene.uri, &replies).await;
    all_answered(&mut producer, JOBS).await;
    worker.drain().await;

    scene.nothing_is_left("slow").await;
}

/// A worker with enough to do that its broker can be alarmed in the middle.
async fn busy(scene: &Scene, producer: &mut Producer, jobs: u16) -> Worker {
    let worker = scene
        .worker("slow")
        .env("INFERQ_BATCH__ROWS_MAX", "1")
        .env("INFERQ_BROKER__PREFETCH", "32");
    let worker = worker.env("INFERQ_WORKER__DRAIN_TIMEOUT_MS", "3000").start().await;
    producer.send_all((0..jobs).map(|number| numbered(scene, number))).await;
    worker
}

#[tokio::test]
async fn a_worker_that_the_broker_blocks_says_so_and_goes_on_afterwards() {
    const JOBS: u16 = 300;
    let broker = Broker::start();
    let scene = Scene::at(broker.uri());
    let mut producer = scene.producer().await;
    let worker = busy(&scene, &mut producer, JOBS).await;

    worker.held_still(|| broker.ctl(&["set_vm_memory_high_watermark", "0"]));
    let reason = worker.unready_because("block").await;
    broker.ctl(&["set_vm_memory_high_watermark", "0.9"]);
    worker.ready_again().await;
    let answers = all_answered(&mut producer, JOBS).await;
    worker.drain().await;

    assert!(!reason.is_empty());
    assert_eq!(answers, usize::from(JOBS), "blocking is no reason to answer twice");
    scene.nothing_is_left("slow").await;
}

#[tokio::test]
async fn a_blocked_worker_still_ends_with_0_within_its_drain_timeout() {
    const JOBS: u16 = 300;
    let broker = Broker::start();
    let scene = Scene::at(broker.uri());
    let mut producer = scene.producer().await;
    let worker = busy(&scene, &mut producer, JOBS).await;

    worker.held_still(|| broker.ctl(&["set_vm_memory_high_watermark", "0"]));
    worker.unready_because("block").await;
    worker.sigterm();
    let exit = worker.exit().await;
    broker.ctl(&["set_vm_memory_high_watermark", "0.9"]);
    let _second = scene.worker("slow").start().await;
    all_answered(&mut producer, JOBS).await;

    assert_eq!(exit.code(), Some(0), "{}", worker.log());
}

#[tokio::test]
async fn a_queue_that_is_deleted_under_a_worker_is_declared_and_served_again() {
    let scene = Scene::new();
    let worker = scene.worker("slow").start().await;
    let mut producer = scene.producer().await;
    let before = producer.call(numbered(&scene, 1)).await;

    scene.delete_queue(&scene.queue("slow")).await;
    let after = eventually("the queue to take jobs again", || async {
        let mut producer = scene.producer().await;
        match producer.try_send(numbered(&scene, 2)).await {
            Some(Routed::Yes) => Some(producer.reply("2").await),
            _ => None,
        }
    })
    .await;
    worker.ready_again().await;
    worker.drain().await;

    assert_eq!(before.status(), "OK");
    assert_eq!(after.status(), "OK");
    scene.nothing_is_left("slow").await;
}

#[tokio::test]
async fn a_worker_whose_connections_are_closed_by_an_operator_comes_back() {
    let broker = Broker::start();
    let scene = Scene::at(broker.uri());
    let worker = scene.worker("slow").start().await;

    broker.ctl(&["close_all_connections", "maintenance"]);
    // It may be back before anybody could have seen it away, so what is waited for is its own word.
    worker
        .logged("the loss of the connections", |line| {
            line.contains("lost the broker").then_some(())
        })
        .await;
    worker.ready_again().await;
    let mut producer = scene.producer().await;
    let reply = producer.call(numbered(&scene, 3)).await;
    worker.drain().await;

    assert_eq!(reply.status(), "OK");
}

#[tokio::test]
async fn a_reply_queue_that_disappears_under_load_blames_only_its_own_jobs() {
    const JOBS: u16 = 60;
    let scene = Scene::new();
    let worker = scene.worker("slow").env("INFERQ_BATCH__ROWS_MAX", "4").start().await;
    let mut staying = scene.producer().await;
    let leaving = scene.producer().await;
    let gone = leaving.reply_queue().to_owned();

    leaving
        .send_all((JOBS..2 * JOBS).map(|number| numbered(&scene, number)))
        .await;
    staying.send_all((0..JOBS).map(|number| numbered(&scene, number))).await;
    drop(leaving);
    let answers = all_answered(&mut staying, JOBS).await;
    worker.drain().await;

    assert_eq!(answers, usize::from(JOBS));
    scene.until_waiting(&scene.queue("slow"), 0).await;
    let dead = scene.waiting(&scene.dead_queue("slow")).await;
    for letter in scene.dead_letters("slow", usize::try_from(dead).expect("few")).await {
        assert_eq!(letter.header("inferq-error-code").as_deref(), Some("UNROUTABLE_REPLY"));
        let reply_to = letter.properties.reply_to().as_ref().map(ToString::to_string);
        assert_eq!(reply_to.as_deref(), Some(gone.as_str()));
    }
}
