//! Does every reply learn its own fate, whatever else the broker says on its channel and however the frames are cut?

use std::time::Duration;

use crate::support::link::{Link, Weather};
use crate::support::scene::as_worker;
use crate::support::{Broker, Job, Request, Scene, Tensor};

fn numbered(scene: &Scene, number: usize, rows: usize) -> Job {
    let row = [number as f32, 0.0, 0.5, 1.0];
    let body = Request::new([Tensor::fp32("x", &vec![row; rows])]).msgpack();
    scene.job("affine", body).correlation_id(&number.to_string())
}

/// Replies of one batch: to a queue that takes them, to none, and to one that is full.
#[tokio::test]
async fn of_many_replies_under_way_each_is_confirmed_returned_or_refused_by_itself() {
    const JOBS: usize = 60;
    let scene = Scene::new();
    scene.declare("affine").await;
    let (gone, full) = (scene.queue("gone"), scene.queue("full"));
    scene.declare_queue_for(1, &full).await;
    let mut producer = scene.producer().await;

    let jobs = (0..JOBS).map(|number| match number % 3 {
        0 => numbered(&scene, number, 1),
        1 => numbered(&scene, number, 1).reply_to(&gone),
        _ => numbered(&scene, number, 1).reply_to(&full),
    });
    producer.send_all(jobs).await;
    let worker = scene.worker("affine").start().await;
    let answered: Vec<String> = (0..JOBS).step_by(3).map(|number| number.to_string()).collect();
    let replies = producer.replies(&answered).await;
    let letters = scene.dead_letters("affine", JOBS / 3 * 2 - 1).await;
    worker.drain().await;

    assert!(replies.values().all(|replies| replies.len() == 1), "answered twice");
    for letter in &letters {
        let reply_to = letter.properties.reply_to().as_ref().map(ToString::to_string);
        let error = letter.header("inferq-error").expect("a sentence");
        let expected = if reply_to.as_deref() == Some(gone.as_str()) {
            "does not exist"
        } else {
            "full"
        };
        assert!(error.contains(expected), "{reply_to:?}: {error}");
    }
    let returned = |letter: &&_| letter_for(letter, &gone);
    assert_eq!(letters.iter().filter(returned).count(), JOBS / 3);
    assert_eq!(scene.waiting(&full).await, 1);
    scene.until_waiting(&scene.queue("affine"), 0).await;
}

fn letter_for(letter: &crate::support::scene::DeadLetter, queue: &str) -> bool {
    letter
        .properties
        .reply_to()
        .as_ref()
        .is_some_and(|name| name.as_str() == queue)
}

/// Frames hold 8 KiB, the least that RabbitMQ 4.1 and later agree to, and arrive in pieces that end anywhere, so that a returned
/// reply comes back in many parts.
#[tokio::test]
async fn replies_of_many_frames_arrive_whole_and_come_back_whole() {
    const ROWS: usize = 2_000;
    let scene = Scene::new();
    let link = Link::to(Broker::shared().amqp_port()).await;
    link.weather(Weather {
        piece_bytes_max: Some(1_237),
        ..Weather::default()
    });
    let uri = link.uri(&as_worker(&scene.uri));
    let worker = scene
        .worker("affine")
        .env("INFERQ_BROKER__URI", format!("{uri}?frame_max=8192"));
    let worker = worker.start().await;
    let mut producer = scene.producer().await;
    let gone = scene.queue("gone");

    let returned = (1..4).map(|number| numbered(&scene, number, ROWS).reply_to(&gone));
    producer.send_all(returned).await;
    let reply = producer.call(numbered(&scene, 0, ROWS)).await;
    let letters = scene.dead_letters("affine", 3).await;
    let metrics = worker.metrics().await;
    worker.drain().await;

    assert_eq!(reply.response().output("y").floats().len(), 4 * ROWS);
    for letter in letters {
        assert_eq!(letter.header("inferq-error-code").as_deref(), Some("UNROUTABLE_REPLY"));
    }
    assert_eq!(metrics.sum("inferq_connects_total"), Some(2.0));
    scene.until_waiting(&scene.queue("affine"), 0).await;
}

/// RabbitMQ sends no heartbeats while it sends anything else, and of confirms the client sees none.
#[tokio::test]
async fn a_broker_that_says_nothing_but_confirms_is_not_taken_for_dead() {
    const HEARTBEATS: u32 = 5;
    let scene = Scene::new();
    let worker = scene
        .worker("affine")
        .env("INFERQ_BROKER__HEARTBEAT_MS", "1000")
        .start()
        .await;
    let mut producer = scene.producer().await;

    let until = tokio::time::Instant::now() + HEARTBEATS * Duration::from_secs(1);
    let mut number = 0;
    while tokio::time::Instant::now() < until {
        let reply = producer.call(numbered(&scene, number, 1)).await;
        assert_eq!(reply.status(), "OK");
        number += 1;
    }
    let metrics = worker.metrics().await;
    worker.drain().await;

    assert_eq!(metrics.sum("inferq_connects_total"), Some(2.0), "{}", worker.log());
    assert_eq!(metrics.sum("inferq_deliveries_total"), Some(number as f64));
}

/// Heartbeats are too far apart to wake anybody who missed a message. Who is woken for one is a race that a debug build seldom
/// loses: `broker::stream` has the test that decides it.
#[tokio::test]
async fn thousands_of_jobs_at_once_are_answered_once_each_and_none_comes_back() {
    const JOBS: usize = 6_000;
    let scene = Scene::new();
    let worker = scene
        .worker("affine")
        .env("INFERQ_BROKER__HEARTBEAT_MS", "60000")
        .env("INFERQ_REPLY__CONFIRM_TIMEOUT_MS", "10000");
    let worker = worker.start().await;
    let mut producer = scene.producer().await;

    producer
        .send_all((0..JOBS).map(|number| numbered(&scene, number, 1)))
        .await;
    let ids: Vec<String> = (0..JOBS).map(|number| number.to_string()).collect();
    let replies = producer.replies(&ids).await;
    let metrics = worker.metrics().await;
    worker.drain().await;

    assert!(replies.values().all(|replies| replies.len() == 1), "answered twice");
    assert_eq!(metrics.sum("inferq_deliveries_total"), Some(JOBS as f64));
}
