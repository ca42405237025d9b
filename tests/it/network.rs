//! Is anything lost when the network between worker and broker is slow, silent or torn? Rows of the fault matrix.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use crate::faults::{all_answered, numbered};
use crate::support::frames::Frame;
use crate::support::link::{Link, Tear, Way, Weather};
use crate::support::metrics::Metrics;
use crate::support::scene::DeadLetter;
use crate::support::scene::as_worker;
use crate::support::worker::Setup;
use crate::support::{Broker, Producer, Request, Scene, Tensor, Worker, eventually};

/// A worker of `scene` behind a link, with small batches and a small window.
async fn behind(link: &Link, scene: &Scene) -> Worker {
    settings(link, scene).start().await
}

fn settings(link: &Link, scene: &Scene) -> Setup {
    scene
        .worker("slow,affine")
        .env("INFERQ_BROKER__URI", link.uri(&as_worker(&scene.uri)))
        .env("INFERQ_BATCH__ROWS_MAX", "4")
        .env("INFERQ_BROKER__PREFETCH", "16")
}

/// A value that must be among the metrics.
fn value(metrics: &Metrics, name: &str) -> f64 {
    metrics.sum(name).unwrap_or_else(|| panic!("no {name}"))
}

/// Row 5. Each kind of frame is torn in its first byte, in its head and right behind it.
#[tokio::test]
async fn a_connection_that_is_reset_in_the_middle_of_any_frame_loses_nothing() {
    const TEARS: [(Way, Frame, usize); 8] = [
        (Way::ToBroker, Frame::Publish, 1),
        (Way::ToBroker, Frame::Publish, 11),
        (Way::ToBroker, Frame::Body, 9),
        (Way::ToBroker, Frame::Ack, 5),
        (Way::ToWorker, Frame::Deliver, 3),
        (Way::ToWorker, Frame::Body, 10),
        (Way::ToWorker, Frame::Ack, 1),
        (Way::ToWorker, Frame::Ack, 11),
    ];
    const JOBS: u16 = 40;
    let scene = Scene::new();
    let link = Link::to(Broker::shared().amqp_port()).await;
    let worker = behind(&link, &scene).await;
    let mut producer = scene.producer().await;

    for (number, (way, frame, bytes)) in TEARS.into_iter().enumerate() {
        let first = u16::try_from(number).expect("few") * JOBS;
        link.tear(Tear { way, frame, bytes });
        producer
            .send_all((first..first + JOBS).map(|number| numbered(&scene, number)))
            .await;
        eventually(&format!("a {frame:?} frame {way:?} to be torn"), || async {
            (link.torn() > number as u64).then_some(())
        })
        .await;
        worker.ready_again().await;
    }
    all_answered(&mut producer, JOBS * 8).await;
    let metrics = worker.metrics().await;
    worker.drain().await;

    assert_eq!(value(&metrics, "inferq_receipts_dropped_total"), 0.0);
    assert!(!worker.log().contains("PRECONDITION"), "a stale tag was acked");
    scene.nothing_is_left("slow").await;
}

/// Row 6. Neither end is told that the other is out of reach; heartbeats tell.
#[tokio::test]
async fn a_link_that_falls_silent_is_declared_dead_and_its_jobs_are_answered_later() {
    const JOBS: u16 = 100;
    let scene = Scene::new();
    let link = Link::to(Broker::shared().amqp_port()).await;
    let worker = settings(&link, &scene)
        .env("INFERQ_BROKER__HEARTBEAT_MS", "1000")
        .env("INFERQ_BROKER__CONNECT_TIMEOUT_MS", "1000")
        .start()
        .await;
    let mut producer = scene.producer().await;

    producer
        .send_all((0..JOBS).map(|number| numbered(&scene, number)))
        .await;
    producer.hear_one().await;
    link.weather(Weather {
        silent: true,
        ..Weather::default()
    });
    // Both connections are given up, and connecting anew gets no answer either.
    let metrics = eventually("the silent connections to be given up", || async {
        let metrics = worker.metrics().await;
        let dead = metrics.sum("inferq_connection_up") == Some(0.0);
        let tried = metrics.sum("inferq_connect_failures_total")? >= 2.0;
        (dead && tried).then_some(metrics)
    })
    .await;
    let reason = worker.unready_because("did not answer").await;
    link.weather(Weather::default());
    worker.ready_again().await;
    all_answered(&mut producer, JOBS).await;
    worker.drain().await;

    assert!(!reason.is_empty());
    assert_eq!(value(&metrics, "inferq_ready"), 0.0);
    assert_eq!(metrics.sum("inferq_connections_lost_total"), Some(2.0));
    scene.nothing_is_left("slow").await;
}

/// Rows 6 and 39. A worker that can reach nobody ends in good order all the same.
#[tokio::test]
async fn sigterm_while_the_link_is_silent_ends_with_0_and_loses_nothing() {
    const JOBS: u16 = 60;
    let scene = Scene::new();
    let link = Link::to(Broker::shared().amqp_port()).await;
    let worker = settings(&link, &scene)
        .env("INFERQ_WORKER__DRAIN_TIMEOUT_MS", "2000")
        .start()
        .await;
    let mut producer = scene.producer().await;

    producer
        .send_all((0..JOBS).map(|number| numbered(&scene, number)))
        .await;
    producer.hear_one().await;
    link.weather(Weather {
        silent: true,
        ..Weather::default()
    });
    worker.sigterm();
    let exit = worker.exit().await;
    link.close();
    let second = scene.worker("slow").start().await;
    all_answered(&mut producer, JOBS).await;
    second.drain().await;

    assert_eq!(exit.code(), Some(0), "{}", worker.log());
    scene.nothing_is_left("slow").await;
}

/// Row 7. Slow is not dead: no connection is given up, nothing is computed twice, and no more is held than prefetch allows.
#[tokio::test]
async fn a_slow_link_makes_the_work_slow_and_nothing_else() {
    const JOBS: u16 = 150;
    let scene = Scene::new();
    let link = Link::to(Broker::shared().amqp_port()).await;
    link.weather(Weather {
        latency: Duration::from_millis(150),
        bytes_per_second: NonZeroU32::new(64 * 1024),
        ..Weather::default()
    });
    let worker = behind(&link, &scene).await;
    let mut producer = scene.producer().await;

    producer
        .send_all((0..JOBS).map(|number| numbered(&scene, number)))
        .await;
    let watching = async {
        let mut most: f64 = 0.0;
        loop {
            let metrics = worker.metrics().await;
            most = most.max(value(&metrics, "inferq_jobs_in_hand"));
            if value(&metrics, "inferq_replies_total") >= f64::from(JOBS) {
                return (most, metrics);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ((most, metrics), answers) = tokio::join!(watching, all_answered(&mut producer, JOBS));
    worker.drain().await;

    assert_eq!(answers, usize::from(JOBS), "a slow link is no reason to answer twice");
    assert!(most <= 16.0, "{most} jobs in hand");
    assert_eq!(value(&metrics, "inferq_connects_total"), 2.0);
    assert_eq!(value(&metrics, "inferq_connect_failures_total"), 0.0);
    scene.nothing_is_left("slow").await;
}

/// Row 8.
#[tokio::test]
async fn frames_that_arrive_byte_by_byte_are_frames() {
    const JOBS: u16 = 12;
    let scene = Scene::new();
    let link = Link::to(Broker::shared().amqp_port()).await;
    link.weather(Weather {
        piece_bytes_max: Some(1),
        ..Weather::default()
    });
    let worker = behind(&link, &scene).await;
    let mut producer = scene.producer().await;

    producer
        .send_all((0..JOBS).map(|number| numbered(&scene, number)))
        .await;
    let answers = all_answered(&mut producer, JOBS).await;
    worker.drain().await;

    assert_eq!(answers, usize::from(JOBS));
    let (bytes, pieces) = link.carried();
    assert_eq!(bytes, pieces, "more than a byte was carried at once");
    scene.nothing_is_left("slow").await;
}

/// Row 12.
#[tokio::test]
async fn a_worker_whose_broker_runs_out_of_disk_says_so_and_goes_on_afterwards() {
    const JOBS: u16 = 200;
    let broker = Broker::start();
    let scene = Scene::at(broker.uri());
    let mut producer = scene.producer().await;
    let worker = scene.worker("slow").env("INFERQ_BATCH__ROWS_MAX", "1").start().await;

    producer
        .send_all((0..JOBS).map(|number| numbered(&scene, number)))
        .await;
    worker.held_still(|| broker.ctl(&["set_disk_free_limit", "1000000GB"]));
    let reason = worker.unready_because("disk").await;
    broker.ctl(&["set_disk_free_limit", "50MB"]);
    worker.ready_again().await;
    let answers = all_answered(&mut producer, JOBS).await;
    worker.drain().await;

    assert!(reason.to_lowercase().contains("block"), "{reason}");
    assert_eq!(answers, usize::from(JOBS));
    scene.nothing_is_left("slow").await;
}

/// Row 45.
#[tokio::test]
async fn a_full_reply_queue_is_tried_again_and_then_the_job_is_a_dead_letter() {
    const JOBS: u16 = 4;
    let scene = Scene::new();
    let worker = scene.worker("slow").start().await;
    let replies = scene.queue("full");
    scene.declare_queue_for(1, &replies).await;
    let producer = scene.producer().await;

    producer
        .send_all((0..JOBS).map(|number| numbered(&scene, number).reply_to(&replies)))
        .await;
    let letters = scene.dead_letters("slow", usize::from(JOBS) - 1).await;
    let metrics = worker.metrics().await;
    worker.drain().await;

    for letter in letters {
        assert_eq!(letter.header("inferq-error-code").as_deref(), Some("UNROUTABLE_REPLY"));
        let error = letter.header("inferq-error").expect("a sentence");
        assert!(error.contains(&replies) && error.contains("full"), "{error}");
    }
    assert!(value(&metrics, "inferq_publishes_refused_total") >= 1.0);
    assert_eq!(scene.waiting(&replies).await, 1);
    scene.until_waiting(&scene.queue("slow"), 0).await;
}

/// Row 45. Of many jobs that are refused at the same time, some still have tries left when the queue is read again.
#[tokio::test]
async fn replies_that_a_full_queue_refused_arrive_if_it_is_read_again_in_time() {
    const JOBS: u16 = 30;
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let replies = scene.queue("full");
    scene.declare_queue_for(1, &replies).await;
    let producer = scene.producer().await;

    let body = || Request::new([Tensor::fp32("x", &[[0.5; 4]])]).msgpack();
    let jobs = (0..JOBS).map(|_| scene.job("affine", body()).reply_to(&replies));
    producer.send_all(jobs).await;
    eventually("a refusal", || async {
        (value(&worker.metrics().await, "inferq_publishes_refused_total") > 0.0).then_some(())
    })
    .await;
    let mut reader = Producer::at_queue(&scene.uri, &replies).await;
    reader.hear_one().await; // What filled the queue.
    reader.hear_one().await; // What had been refused.
    scene.until_waiting(&scene.queue("affine"), 0).await;
    eventually("the last job to be settled", || async {
        (value(&worker.metrics().await, "inferq_jobs_in_hand") == 0.0).then_some(())
    })
    .await;
    let answered = reader.remaining().await;
    let dead = scene.dead_letters_now("affine").await;
    worker.drain().await;

    assert!(answered.iter().all(|reply| reply.status() == "OK"));
    assert_eq!(answered.len() + dead.len(), usize::from(JOBS));
}

/// Row 49. At every moment two dozen replies wait for the full queue, and everybody else is answered.
#[tokio::test]
async fn one_full_reply_queue_among_many_holds_up_nobody_else() {
    const QUEUES: u16 = 200;
    const REFUSED: u16 = 24;
    let scene = Scene::new();
    let worker = scene
        .worker("affine")
        .env("INFERQ_BROKER__PREFETCH", "64")
        .start()
        .await;
    let full = scene.queue("full");
    scene.declare_queue_for(1, &full).await;
    let feeder = scene.producer().await;
    let refused = || {
        let body = Request::new([Tensor::fp32("x", &[[0.5; 4]])]).msgpack();
        scene.job("affine", body).reply_to(&full)
    };
    let mut others = Vec::new();
    let (connection, channel) = scene.open().await;
    let mut names = Vec::new();
    for _ in 0..QUEUES {
        let queue = QueueDeclareOptions {
            exclusive: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel.queue_declare("".into(), queue, FieldTable::default()).await;
        names.push(declared.expect("a queue").name().to_string());
    }

    feeder.send_all((0..=REFUSED).map(|_| refused())).await;
    let feeding = async {
        loop {
            let dead = scene.dead_letters_now("affine").await.len();
            feeder.send_all((0..dead).map(|_| refused())).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let asking = async {
        for queue in &names {
            let body = Request::new([Tensor::fp32("x", &[[0.25; 4]])]).msgpack();
            let job = scene.job("affine", body).correlation_id(queue).reply_to(queue);
            feeder.send(job).await;
        }
        for queue in &names {
            let mut reader = Producer::at(&connection, queue).await;
            others.push(reader.reply(queue).await);
        }
    };
    tokio::select! {
        () = feeding => {}
        () = asking => {}
    }
    let metrics = worker.metrics().await;
    worker.drain().await;

    assert!(others.iter().all(|reply| reply.status() == "OK"));
    assert!(value(&metrics, "inferq_publishes_refused_total") > 0.0);
}

/// Rows 10 and 36. The broker closes the consuming channel with 406 (from RabbitMQ 4.3 on it cancels the consumer instead)
/// when a job is held too long. The job comes back until its delivery limit, and everybody else is served again.
#[tokio::test]
async fn a_job_that_outlasts_the_brokers_consumer_timeout_is_given_up_and_the_worker_comes_back() {
    let broker = Broker::with("consumer_timeout = 1000\n");
    // How often it looks whether a job is held too long; every minute, unless told otherwise.
    broker.ctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 500)."]);
    let scene = Scene::at(broker.uri());
    let worker = scene
        .worker("slow")
        .env("INFERQ_BATCH__ROWS_MAX", "1")
        .env("INFERQ_TOPOLOGY__DELIVERY_LIMIT", "1")
        .start()
        .await;
    let mut producer = scene.producer().await;

    // Twenty-five milliseconds a row, one row at a time.
    let long = Request::new([Tensor::fp32("x", &[[1.0, 2.0, 3.0, 4.0]; 400])]).msgpack();
    let given_up = producer.call(scene.job("slow", long).message_id("long")).await;
    let letters = scene.dead_letters("slow", 1).await;
    eventually("the engine to be done with the job that is gone", || async {
        (value(&worker.metrics().await, "inferq_jobs_in_hand") == 0.0).then_some(())
    })
    .await;
    worker.ready_again().await;
    let reply = producer.call(numbered(&scene, 7)).await;
    let metrics = worker.metrics().await;
    worker.drain().await;

    given_up.error("INTERNAL");
    assert_eq!(letters[0].header("inferq-error-code").as_deref(), Some("INTERNAL"));
    assert_eq!(reply.status(), "OK");
    assert!(worker.log().contains("not consuming"), "{}", worker.log());
    assert_eq!(
        value(&metrics, "inferq_connects_total"),
        2.0,
        "a channel was lost, and no connection"
    );
    scene.nothing_is_left("slow").await;
}

/// Rows 5 and 6. What arrives after the pause is published on the new connection, and not given back because of the old.
#[tokio::test]
async fn a_connection_that_is_lost_while_nothing_is_to_do_costs_no_job_a_delivery() {
    const CUTS: u16 = 2;
    let scene = Scene::new();
    let link = Link::to(Broker::shared().amqp_port()).await;
    let worker = behind(&link, &scene).await;
    let mut producer = scene.producer().await;

    for number in 0..CUTS {
        let reply = producer.call(numbered(&scene, number)).await;
        assert_eq!(reply.status(), "OK");
        // A job whose ack were cut off would come again: it is given, and then the link carries nothing more.
        let mut carried = Vec::new();
        eventually("the worker to have nothing to do", || {
            carried.push(link.carried().0);
            let quiet = carried.iter().rev().take(5).all(|bytes| carried.last() == Some(bytes));
            let (long, worker) = (carried.len() > 5, &worker);
            async move {
                let idle = worker.metrics().await.sum("inferq_jobs_in_hand") == Some(0.0);
                (idle && quiet && long).then_some(())
            }
        })
        .await;
        link.cut();
        let connects = 2.0 * f64::from(number + 2);
        eventually("both connections to be made again", || async {
            (worker.metrics().await.sum("inferq_connects_total") == Some(connects)).then_some(())
        })
        .await;
        worker.ready_again().await;
    }
    let last = producer.call(numbered(&scene, CUTS)).await;
    let metrics = worker.metrics().await;
    worker.drain().await;

    assert_eq!(last.status(), "OK");
    assert_eq!(value(&metrics, "inferq_deliveries_total"), f64::from(CUTS) + 1.0);
}

/// Row 19. The broker closes the whole channel for such a reply, and would again.
#[tokio::test]
async fn a_reply_that_the_broker_finds_too_big_costs_only_its_own_job_its_answer() {
    const JOBS: u16 = 60;
    let big = Request::new([Tensor::fp32("x", &[[1.0, 2.0, 3.0, 4.0]; 2_000])]).msgpack();
    // The reply names the model and its version, which the job need not.
    let limit = big.bytes.len() + 8;
    let broker = Broker::with(&format!("max_message_size = {limit}\n"));
    let scene = Scene::at(broker.uri());
    let worker = scene
        .worker("slow,affine")
        .env("INFERQ_BATCH__ROWS_MAX", "4")
        .start()
        .await;
    let mut producer = scene.producer().await;

    let job = || scene.job("affine", big.clone());
    let jobs = (0..JOBS).map(|number| numbered(&scene, number));
    let (first, second) = (job().message_id("first"), job().message_id("second"));
    producer.send_all(jobs).await;
    let answers = [producer.call(first).await, producer.call(second).await];
    let replies = all_answered(&mut producer, JOBS).await;
    // One that was under way when the channel was closed for another may have been taken, and is published again.
    let letters = RefCell::new(Vec::new());
    eventually("the dead letters of both", || async {
        let more = scene.dead_letters_now("affine").await;
        let mut letters = letters.borrow_mut();
        letters.extend(more);
        let id = |letter: &DeadLetter| letter.properties.message_id().as_ref().map(ToString::to_string);
        let ids: BTreeSet<_> = letters.iter().filter_map(id).collect();
        ids.into_iter().eq(["first", "second"]).then_some(())
    })
    .await;
    let metrics = worker.metrics().await;
    worker.drain().await;

    for answer in answers {
        let sentence = answer.error("INTERNAL");
        assert!(sentence.contains("message size"), "{sentence}");
    }
    assert!(replies >= usize::from(JOBS));
    for letter in letters.into_inner() {
        assert_eq!(letter.header("inferq-error-code").as_deref(), Some("INTERNAL"));
        assert_eq!(letter.body, big.bytes);
    }
    assert_eq!(
        value(&metrics, "inferq_deliveries_total"),
        f64::from(JOBS) + 2.0,
        "no job went back to its queue because of another's reply"
    );
    scene.nothing_is_left("slow").await;
    scene.until_waiting(&scene.queue("affine"), 0).await;
}

/// Row 9. Only the exchange of the dead letters can be missing: replies go through the default exchange.
#[tokio::test]
async fn a_dead_letter_whose_exchange_is_gone_closes_the_channel_once_and_nobody_notices() {
    const JOBS: u16 = 60;
    let scene = Scene::new();
    let worker = scene
        .worker("slow,affine")
        .env("INFERQ_BATCH__ROWS_MAX", "4")
        .start()
        .await;
    let mut producer = scene.producer().await;

    let (connection, channel) = scene.open().await;
    let dead = format!("{}.dead", scene.prefix);
    let deleted = channel
        .exchange_delete(dead.as_str().into(), ExchangeDeleteOptions::default())
        .await;
    deleted.expect("the exchange is ours");
    connection.close(200, "done".into()).await.ok();
    producer
        .send_all((0..JOBS).map(|number| numbered(&scene, number)))
        .await;
    let bad = Request::new([Tensor::fp32("wrong", &[[0.0; 4]])]).msgpack();
    producer.send(scene.job("affine", bad).fire_and_forget()).await;
    let replies = all_answered(&mut producer, JOBS).await;
    let letters = scene.dead_letters("affine", 1).await;
    let metrics = worker.metrics().await;
    worker.drain().await;

    assert!(replies >= usize::from(JOBS));
    assert_eq!(
        letters[0].header("inferq-error-code").as_deref(),
        Some("INVALID_ARGUMENT")
    );
    assert_eq!(
        value(&metrics, "inferq_connects_total"),
        2.0,
        "a channel was lost, and no connection"
    );
    assert_eq!(value(&metrics, "inferq_deliveries_total"), f64::from(JOBS) + 1.0);
    scene.until_waiting(&scene.queue("slow"), 0).await;
}

/// Row 9, where the worker is not to declare anything. Nobody else waits for it, and the job is not lost.
#[tokio::test]
async fn a_dead_letter_whose_exchange_stays_gone_keeps_its_job_in_the_queue() {
    let scene = Scene::new();
    scene.declare("affine").await;
    let worker = scene.worker("affine").env("INFERQ_TOPOLOGY__MODE", "off").start().await;
    let mut producer = scene.producer().await;

    let (connection, channel) = scene.open().await;
    let dead = format!("{}.dead", scene.prefix);
    let deleted = channel
        .exchange_delete(dead.as_str().into(), ExchangeDeleteOptions::default())
        .await;
    deleted.expect("the exchange is ours");
    connection.close(200, "done".into()).await.ok();
    let bad = Request::new([Tensor::fp32("wrong", &[[0.0; 4]])]).msgpack();
    producer
        .send(scene.job("affine", bad).message_id("bad").fire_and_forget())
        .await;
    worker
        .logged("the fault to be told", |line| {
            line.contains("is not available: NOT_FOUND").then_some(())
        })
        .await;
    let good = || Request::new([Tensor::fp32("x", &[[0.5; 4]])]).msgpack();
    let reply = producer.call(scene.job("affine", good())).await;
    let unready = worker.unready_because("dead-letters").await;
    worker.drain().await;
    // Whoever brings the exchange back finds the job among the dead letters, or a worker takes it there.
    let second = scene.worker("affine").start().await;
    let letters = scene.dead_letters("affine", 1).await;
    second.drain().await;

    assert_eq!(reply.status(), "OK");
    assert!(unready.contains(&dead), "{unready}");
    let id = letters[0].properties.message_id().as_ref().map(ToString::to_string);
    assert_eq!(id.as_deref(), Some("bad"));
}
