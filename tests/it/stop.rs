//! Is anything lost when a worker stops, in good order or not?

use std::collections::BTreeSet;

use crate::support::body::Body;
use crate::support::link::{ClosedPort, Link, through};
use crate::support::scene::as_worker;
use crate::support::{Broker, Job, Reply, Request, Scene, Tensor, eventually};

fn numbered(scene: &Scene, model: &str, number: u16) -> Job {
    let id = number.to_string();
    scene
        .job(model, body(number))
        .correlation_id(&id)
        .message_id(&format!("m-{id}"))
        .persistent()
}

fn body(number: u16) -> Body {
    Request::new([Tensor::fp32("x", &[[f32::from(number), 0.0, 0.0, 0.5]])]).msgpack()
}

/// Checks that a reply to a job of [`numbered`] for the identity `slow` is that job's, and says so.
fn check(reply: &Reply) {
    let id = reply.correlation_id().expect("a reply carries its correlation id");
    assert_eq!(reply.message_id(), Some(format!("m-{id}")));
    assert_eq!(
        reply.response().output("y").floats(),
        [id.parse().expect("our own id"), 0.0, 0.0, 0.5]
    );
}

/// Those of `ids` that have no reply among `replies`.
fn unanswered(ids: &[String], replies: &[Reply]) -> Vec<String> {
    let answered: BTreeSet<_> = replies.iter().filter_map(Reply::correlation_id).collect();
    ids.iter().filter(|id| !answered.contains(*id)).cloned().collect()
}

#[tokio::test]
async fn sigterm_under_load_loses_nothing_and_answers_nothing_twice() {
    const JOBS: u16 = 200;
    let scene = Scene::new();
    let settings = |scene: &Scene| {
        scene
            .worker("slow")
            .env("INFERQ_BATCH__ROWS_MAX", "2")
            .env("INFERQ_BROKER__PREFETCH", "32")
    };
    let first = settings(&scene).start().await;
    let mut producer = scene.producer().await;

    let ids = producer
        .send_all((0..JOBS).map(|number| numbered(&scene, "slow", number)))
        .await;
    producer.hear_one().await;
    first.drain().await;
    let drained = producer.remaining().await;
    let missing = unanswered(&ids, &drained);
    scene
        .until_waiting(&scene.queue("slow"), u32::try_from(missing.len()).expect("few"))
        .await;
    let second = settings(&scene).env("INFERQ_BATCH__ROWS_MAX", "64").start().await;
    let rest = producer.replies(&missing).await;
    second.drain().await;

    assert!(
        !missing.is_empty(),
        "the first worker did everything, so nothing was proved"
    );
    let late = producer.remaining().await;
    assert!(late.is_empty(), "{} jobs were answered twice", late.len());
    assert_eq!(drained.len() + rest.len(), usize::from(JOBS));
    assert!(rest.values().all(|replies| replies.len() == 1));
    drained.iter().chain(rest.values().flatten()).for_each(check);
    scene.nothing_is_left("slow").await;
}

/// `make drains` asks for a hundred.
#[tokio::test]
async fn drains_at_any_moment_end_in_time_and_lose_nothing() {
    const JOBS: u16 = 60;
    #[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
    let drains = std::env::var("INFERQ_TEST_DRAINS").map_or(3, |drains| drains.parse().expect("a number of drains"));
    let scene = Scene::new();
    scene.declare("slow").await;
    let mut producer = scene.producer().await;
    let (mut drain_ms, mut late) = (Vec::new(), Vec::new());

    for drain in 0..drains {
        let worker = scene.worker("slow").env("INFERQ_BATCH__ROWS_MAX", "4").start().await;
        let ids = producer
            .send_all((0..JOBS).map(|number| numbered(&scene, "slow", number)))
            .await;
        for _ in 0..fastrand::u16(1..JOBS) {
            producer.hear_one().await;
        }
        worker.drain().await;
        let mut replies = producer.remaining().await;
        let missing = unanswered(&ids, &replies);
        let waiting = u32::try_from(missing.len()).expect("few");
        scene.until_waiting(&scene.queue("slow"), waiting).await;
        // The next worker answers the rest, so that every drain begins with an empty queue.
        let rest = scene.worker("slow").start().await;
        replies.extend(producer.replies(&missing).await.into_values().flatten());
        rest.drain().await;
        replies.extend(producer.remaining().await);

        replies.iter().for_each(check);
        assert_eq!(
            replies.len(),
            usize::from(JOBS),
            "drain {drain}: lost or answered twice"
        );
        if worker.log().contains("not all jobs were finished in time") {
            println!("drain {drain} was late:\n{}", worker.log());
            late.push(drain);
        }
        drain_ms.push(worker.logged("the end of the drain", drained_ms).await);
    }

    assert!(late.is_empty(), "late were {late:?}");
    drain_ms.sort_unstable();
    let at = |share: usize| drain_ms[(drain_ms.len() - 1) * share / 100];
    println!(
        "{drains} drains: median {} ms, 90 % {} ms, longest {} ms",
        at(50),
        at(90),
        at(100)
    );
    scene.nothing_is_left("slow").await;
}

fn drained_ms(line: &str) -> Option<u64> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    line.get("drain_ms")?.as_u64()
}

fn held_when_late(line: &str) -> Option<u64> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let late = line
        .get("message")?
        .as_str()?
        .starts_with("not all jobs were finished in time");
    late.then(|| line.get("jobs")?.as_u64())?
}

#[tokio::test]
async fn an_idle_worker_drains_at_once_and_says_so() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;

    worker.drain().await;

    assert!(worker.log().to_lowercase().contains("drain"), "{}", worker.log());
}

#[tokio::test]
async fn a_draining_worker_is_not_ready_and_a_second_sigterm_ends_it_at_once() {
    const JOBS: u16 = 150;
    let scene = Scene::new();
    let worker = scene
        .worker("slow")
        .env("INFERQ_BATCH__ROWS_MAX", "1")
        .env("INFERQ_BROKER__PREFETCH", "150");
    let worker = worker.env("INFERQ_WORKER__DRAIN_TIMEOUT_MS", "600000").start().await;
    let mut producer = scene.producer().await;

    let ids = producer
        .send_all((0..JOBS).map(|number| numbered(&scene, "slow", number)))
        .await;
    producer.hear_one().await;
    scene.until_waiting(&scene.queue("slow"), 0).await;
    worker.sigterm();
    worker.unready_because("drain").await;
    worker.sigterm();
    worker.exit().await;
    let answered = producer.remaining().await;

    assert!(
        answered.len() < usize::from(JOBS),
        "it finished its work instead of ending at once"
    );
    let _second = scene.worker("slow").start().await;
    let rest = producer.replies(&unanswered(&ids, &answered)).await;
    rest.values().flatten().for_each(check);
}

#[tokio::test]
async fn sigkill_under_load_loses_nothing_and_what_comes_back_runs_alone() {
    const JOBS: u16 = 60;
    let scene = Scene::new();
    let first = scene
        .worker("slow")
        .env("INFERQ_BATCH__ROWS_MAX", "1")
        .env("INFERQ_BROKER__PREFETCH", "64");
    let first = first.start().await;
    let mut producer = scene.producer().await;

    let ids = producer
        .send_all((0..JOBS).map(|number| numbered(&scene, "slow", number).timed()))
        .await;
    producer.hear_one().await;
    scene.until_waiting(&scene.queue("slow"), 0).await; // All of them are in the worker's hands.
    first.sigkill();
    first.exit().await;
    let before = producer.remaining().await;
    let second = scene.worker("slow").start().await;
    let missing = unanswered(&ids, &before);
    let rest = producer.replies(&missing).await;
    second.drain().await;

    assert!(
        !missing.is_empty(),
        "the first worker did everything, so nothing was proved"
    );
    for reply in rest.values().flatten() {
        assert_eq!(reply.number("inferq-batch-rows"), 1, "a redelivered job runs alone");
        check(reply);
    }
    producer.remaining().await.iter().for_each(check); // A second copy is allowed, and known by its message_id.
    scene.nothing_is_left("slow").await;
}

#[tokio::test]
async fn a_worker_that_cannot_finish_in_time_gives_its_jobs_back() {
    const JOBS: u16 = 150;
    let scene = Scene::new();
    let worker = scene
        .worker("slow")
        .env("INFERQ_BATCH__ROWS_MAX", "1")
        .env("INFERQ_BROKER__PREFETCH", "150");
    let worker = worker.env("INFERQ_WORKER__DRAIN_TIMEOUT_MS", "200").start().await;
    let mut producer = scene.producer().await;

    // A worker takes no more ahead than it can finish in time, as far as it can tell: of jobs of one row.
    let long = Request::new([Tensor::fp32("x", &[[0.5; 4]; 200])]).msgpack();
    producer.send(scene.job("slow", long).fire_and_forget()).await;
    let ids = producer
        .send_all((0..JOBS).map(|number| numbered(&scene, "slow", number)))
        .await;
    eventually("the long job to be in hand", || async {
        let in_hand = worker.metrics().await.sum("inferq_jobs_in_hand");
        in_hand.is_some_and(|jobs| jobs > 0.0).then_some(())
    })
    .await;
    worker.sigterm();
    worker.exit().await;
    let held = worker.logged("what it held", held_when_late).await;
    let before = producer.remaining().await;
    let second = scene.worker("slow").start().await;
    let missing = unanswered(&ids, &before);
    producer.replies(&missing).await.values().flatten().for_each(check);
    second.drain().await;

    assert!(!missing.is_empty(), "the work was too little to run into the timeout");
    assert!(held > 0);
    scene.nothing_is_left("slow").await;
}

#[tokio::test]
async fn sigterm_while_the_broker_is_away_ends_with_0() {
    let broker = Broker::shared();
    let scene = Scene::new();
    let link = Link::to(broker.amqp_port()).await;
    let worker = scene
        .worker("affine")
        .env("INFERQ_BROKER__URI", link.uri(&as_worker(broker.uri())));
    let worker = worker.env("INFERQ_WORKER__DRAIN_TIMEOUT_MS", "2000").start().await;

    link.close();
    worker.unready_because("connect").await;
    worker.sigterm();
    let exit = worker.exit().await;

    assert_eq!(exit.code(), Some(0), "{}", worker.log());
}

#[tokio::test]
async fn sigterm_before_the_first_connection_ends_with_0() {
    let scene = Scene::new();
    let port = ClosedPort::new();
    let uri = through(&as_worker(&scene.uri), port.address());
    let worker = scene.worker("affine").env("INFERQ_BROKER__URI", uri).spawn();

    worker.unready_because("connect").await;
    worker.sigterm();
    let exit = worker.exit().await;

    assert_eq!(exit.code(), Some(0), "{}", worker.log());
}

#[tokio::test]
async fn sigint_drains_as_sigterm_does() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let reply = producer.call(scene.job("affine", body(7))).await;
    worker.sigint();
    let exit = worker.exit().await;

    assert_eq!(reply.status(), "OK");
    assert_eq!(exit.code(), Some(0), "{}", worker.log());
}
