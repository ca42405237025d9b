//! What becomes of messages that the broker does not take, and of everybody else's meanwhile?

use lapin::options::ExchangeDeleteOptions;

use crate::support::{Broker, Job, Request, Scene, Tensor, Worker, eventually};

const MODEL: &str = "affine";

fn good(scene: &Scene) -> Job {
    let body = Request::new([Tensor::fp32("x", &[[0.5; 4]])]).msgpack();
    scene.job(MODEL, body)
}

/// A job that ends in the dead letters.
fn bad(scene: &Scene) -> Job {
    let body = Request::new([Tensor::fp32("wrong", &[[0.5; 4]])]).msgpack();
    scene.job(MODEL, body).persistent().fire_and_forget()
}

async fn value(worker: &Worker, name: &str) -> f64 {
    worker.metrics().await.sum(name).unwrap_or_default()
}

/// A producer that does not read its replies goes on sending; what it does to the broker, and how much it keeps of the
/// worker, is bounded.
#[tokio::test]
async fn a_full_reply_queue_keeps_little_of_the_window() {
    let scene = Scene::new();
    let full = scene.queue("full");
    scene.declare_queue_for(10, &full).await;

    flood(&scene, &full, "is full (10 messages)").await;
}

/// Such a queue is its producer's alone: the worker may not even ask how much is in it.
#[tokio::test]
async fn a_full_reply_queue_that_is_exclusive_keeps_no_more() {
    let scene = Scene::new();
    let full = scene.queue("full");
    let _owner = scene.declare_exclusive_queue_for(10, &full).await;

    flood(&scene, &full, "is full").await;
}

/// Three thousand answers for a queue that takes ten, and others in between.
async fn flood(scene: &Scene, full: &str, sentence: &str) {
    const JOBS: usize = 3_000;
    let worker = scene.worker(MODEL).start().await;
    let mut producer = scene.producer().await;

    let mut most_held = 0.0_f64;
    for round in 0..JOBS / 100 {
        producer.send_all((0..100).map(|_| good(scene).reply_to(full))).await;
        let reply = producer.call(good(scene)).await;
        assert_eq!(reply.status(), "OK");
        if round >= 5 {
            most_held = most_held.max(value(&worker, "inferq_replies_held_back").await);
        }
        assert!(worker.is_ready());
    }
    let letters = scene.dead_letters(MODEL, JOBS - 10).await;
    let refused = value(&worker, "inferq_publishes_refused_total").await;
    worker.drain().await;

    assert!(most_held <= 64.0, "{most_held} held back");
    assert!(refused < JOBS as f64 / 2.0, "{refused} publishes were refused");
    for letter in &letters {
        let error = letter.header("inferq-error").expect("a sentence");
        assert!(error.contains(sentence), "{error}");
    }
    scene.until_waiting(&scene.queue(MODEL), 0).await;
}

/// Operators limit the dead letters as any queue.
#[tokio::test]
async fn a_full_dead_letter_queue_swallows_nothing() {
    const JOBS: usize = 50;
    let broker = Broker::start();
    let scene = Scene::at(broker.uri());
    let worker = scene.worker(MODEL).env("INFERQ_BROKER__PREFETCH", "16").start().await;
    limit_dead_letters(&broker, &scene);
    let mut producer = scene.producer().await;

    producer.send(bad(&scene)).await;
    scene.until_waiting(&scene.dead_queue(MODEL), 1).await;
    producer.send_all((1..JOBS).map(|_| bad(&scene))).await;
    let reason = worker.unready_because("is full (").await;
    eventually("a window of dead letters", || async {
        (value(&worker, "inferq_dead_letters_held_back").await >= 15.0).then_some(())
    })
    .await;
    let taken = value(&worker, "inferq_deliveries_total").await;
    broker.ctl(&["clear_policy", "small"]);
    let letters = scene.dead_letters(MODEL, JOBS).await;
    worker.ready_again().await;
    let reply = producer.call(good(&scene)).await;
    let (redelivered, held) = (
        value(&worker, "inferq_redelivered_total").await,
        value(&worker, "inferq_dead_letters_held_back").await,
    );
    worker.drain().await;

    assert!(reason.contains(&format!("model `{MODEL}`")), "{reason}");
    assert!(taken <= 17.0 + 16.0, "{taken} jobs were taken");
    assert_eq!((redelivered, held), (0.0, 0.0), "nothing went back");
    assert_eq!(reply.status(), "OK");
    for letter in &letters {
        assert_eq!(letter.header("inferq-error-code").as_deref(), Some("INVALID_ARGUMENT"));
    }
}

/// One letter, and what comes then is refused.
fn limit_dead_letters(broker: &Broker, scene: &Scene) {
    let pattern = format!("^{}$", scene.dead_queue(MODEL).replace('.', "\\."));
    let limit = r#"{"max-length":1,"overflow":"reject-publish"}"#;
    broker.ctl(&["set_policy", "--apply-to", "queues", "small", &pattern, limit]);
}

#[tokio::test]
async fn held_dead_letters_are_for_another_worker_after_a_stop() {
    const ROUND: usize = 20;
    let broker = Broker::start();
    let scene = Scene::at(broker.uri());
    let worker = scene.worker(MODEL).start().await;
    limit_dead_letters(&broker, &scene);
    let producer = scene.producer().await;
    producer.send(bad(&scene)).await;
    scene.until_waiting(&scene.dead_queue(MODEL), 1).await;
    let mut jobs = 1;
    // A quorum queue takes some more than its limit.
    while value(&worker, "inferq_dead_letters_held_back").await == 0.0 {
        producer.send_all((0..ROUND).map(|_| bad(&scene))).await;
        jobs += ROUND;
    }
    worker.unready_because("is full (").await;

    worker.drain().await;
    broker.ctl(&["clear_policy", "small"]);
    let second = scene.worker(MODEL).start().await;
    let letters = scene.dead_letters(MODEL, jobs).await;
    second.drain().await;

    assert_eq!(letters.len(), jobs);
}

/// Without `topology.mode = "declare"` somebody must bring the exchange back; the log says so once.
#[tokio::test]
async fn a_missing_dead_letter_exchange_is_told_once() {
    let scene = Scene::new();
    scene.declare(MODEL).await;
    let worker = scene.worker(MODEL).env("INFERQ_TOPOLOGY__MODE", "off").start().await;
    let mut producer = scene.producer().await;
    let (connection, channel) = scene.open().await;
    let dead = format!("{}.dead", scene.prefix);
    let deleting = channel.exchange_delete(dead.as_str().into(), ExchangeDeleteOptions::default());
    deleting.await.expect("the exchange is ours");
    connection.close(200, "done".into()).await.ok();

    producer.send(bad(&scene)).await;
    let reason = worker.unready_because("no exchange").await;
    assert_eq!(producer.call(good(&scene)).await.status(), "OK");
    let told = worker.log().matches("messages for it are held back").count();
    scene.declare(MODEL).await;
    let letters = scene.dead_letters(MODEL, 1).await;
    worker.ready_again().await;
    worker.drain().await;

    assert!(reason.contains(&dead), "{reason}");
    assert_eq!((told, letters.len()), (1, 1));
}
