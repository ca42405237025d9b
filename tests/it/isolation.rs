//! Does each sender get the answer to its own rows, however they are batched?

use futures_util::future::join_all;
use lapin::{Connection, ConnectionProperties};

use crate::support::scene::as_producer;
use crate::support::{Producer, Request, Scene, Tensor};

const CONNECTIONS: u16 = 8;
const PRODUCERS_EACH: u16 = 25;
const JOBS_EACH: u16 = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_producers_at_once_each_get_the_answers_to_their_own_rows() {
    let scene = Scene::new();
    let worker = scene.worker("affine").env("INFERQ_BATCH__ROWS_MAX", "32").start().await;

    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let connection = Connection::connect(&as_producer(&scene.uri), ConnectionProperties::default()).await;
        connections.push(connection.expect("the broker accepts connections"));
    }
    let producers = (0..CONNECTIONS * PRODUCERS_EACH).map(|number| {
        let connection = &connections[usize::from(number % CONNECTIONS)];
        produce(&scene, connection, number)
    });
    join_all(producers).await;
    let batches = worker.metrics().await;
    worker.drain().await;

    let mean = batches.mean("inferq_batch_rows").expect("batches are counted");
    assert!(mean > 1.0, "{mean} rows a batch");
    scene.nothing_is_left("affine").await;
}

/// Sends jobs of one to six rows that no other producer sends, all at once, and checks every answer.
async fn produce(scene: &Scene, connection: &Connection, number: u16) {
    let mut producer = Producer::on(connection).await;
    let rows = |job: u16| -> Vec<[f32; 4]> {
        (0..=job)
            .map(|row| [f32::from(number), f32::from(job), f32::from(row), 0.25])
            .collect()
    };
    let jobs = (0..JOBS_EACH).map(|job| {
        let body = Request::new([Tensor::fp32("x", &rows(job))]).msgpack();
        scene.job("affine", body).correlation_id(&job.to_string())
    });
    let ids = producer.send_all(jobs).await;
    let replies = producer.replies(&ids).await;

    for job in 0..JOBS_EACH {
        let expected: Vec<f64> = rows(job).iter().flatten().map(|x| f64::from(3.0 * x - 1.0)).collect();
        let answers = &replies[&job.to_string()];
        assert_eq!(answers.len(), 1, "job {job} of producer {number}");
        assert_eq!(
            answers[0].response().output("y").floats(),
            expected,
            "job {job} of producer {number}"
        );
    }
}

#[tokio::test]
async fn jobs_that_arrive_while_the_engine_is_busy_run_together() {
    const JOBS: u8 = 64;
    let scene = Scene::new();
    let worker = scene.worker("slow").start().await;
    let mut producer = scene.producer().await;

    let jobs = (0..JOBS).map(|number| {
        let body = Request::new([Tensor::fp32("x", &[[f32::from(number); 4]])]).msgpack();
        scene.job("slow", body).correlation_id(&number.to_string()).timed()
    });
    let ids = producer.send_all(jobs).await;
    let replies = producer.replies(&ids).await;
    let metrics = worker.metrics().await;

    let together = replies
        .values()
        .map(|replies| replies[0].number("inferq-batch-rows"))
        .max();
    assert!(together > Some(1), "every job ran alone");
    for (id, replies) in replies {
        assert_eq!(
            replies[0].response().output("y").floats(),
            [id.parse::<f64>().expect("our own id"); 4]
        );
    }
    assert!(metrics.mean("inferq_batch_rows").expect("batches are counted") > 1.0);
}

#[tokio::test]
async fn a_batch_never_has_more_rows_than_allowed() {
    const ROWS_MAX: i64 = 5;
    let scene = Scene::new();
    scene.declare("affine").await;
    let mut producer = scene.producer().await;

    let jobs = (0..60_u8).map(|number| {
        let rows = vec![[f32::from(number); 4]; usize::from(number % 3 + 1)];
        scene
            .job("affine", Request::new([Tensor::fp32("x", &rows)]).msgpack())
            .timed()
    });
    let ids = producer.send_all(jobs).await;
    let _worker = scene
        .worker("affine")
        .env("INFERQ_BATCH__ROWS_MAX", ROWS_MAX.to_string())
        .start()
        .await;
    let replies = producer.replies(&ids).await;

    let rows: Vec<i64> = replies
        .values()
        .map(|replies| replies[0].number("inferq-batch-rows"))
        .collect();
    assert!(rows.iter().all(|rows| (1..=ROWS_MAX).contains(rows)), "{rows:?}");
    assert!(rows.iter().any(|rows| *rows > 3), "no two jobs were joined: {rows:?}");
}

#[tokio::test]
async fn a_model_whose_rows_influence_each_other_never_sees_two_jobs_in_one_run() {
    let scene = Scene::new();
    scene.declare("coupled").await;
    let mut producer = scene.producer().await;

    let jobs = (0..40_u8).map(|number| {
        let value = f32::from(number);
        let body = Request::new([Tensor::fp32("x", &[[value, 0.0], [value + 2.0, 8.0]])]).msgpack();
        scene.job("coupled", body).timed()
    });
    let ids = producer.send_all(jobs).await;
    let _worker = scene.worker("coupled").start().await;
    let replies = producer.replies(&ids).await;

    for (id, replies) in replies {
        assert_eq!(
            replies[0].response().output("y").floats(),
            [-1.0, -4.0, 1.0, 4.0],
            "{id}"
        );
    }
}

/// `bright` divides by 255 where any row of the run is over 1.
#[tokio::test]
async fn dim_rows_beside_bright_ones_stay_as_they_are() {
    const JOBS: u8 = 60;
    let scene = Scene::new();
    let worker = scene.worker("bright").start().await;
    let mut producer = scene.producer().await;
    let row = |number: u8| match number % 2 {
        0 => [0.5, f32::from(number) / 255.0],
        _ => [255.0, 510.0],
    };

    let jobs = (0..JOBS).map(|number| {
        let body = Request::new([Tensor::fp32("x", &[row(number)])]).msgpack();
        scene.job("bright", body).correlation_id(&number.to_string())
    });
    let ids = producer.send_all(jobs).await;
    let replies = producer.replies(&ids).await;
    let metrics = worker.metrics().await;

    for number in 0..JOBS {
        let expected = if number % 2 == 0 { row(number) } else { [1.0, 2.0] };
        let answers = replies[&number.to_string()][0].response().output("y").floats();
        assert_eq!(answers, expected.map(f64::from), "job {number}");
    }
    assert_eq!(metrics.mean("inferq_batch_rows"), Some(1.0));
}

/// `declared-one` states `[1]` for its output, as some converters do, and gives a label for each row.
#[tokio::test]
async fn a_label_declared_for_one_row_is_batched() {
    let scene = Scene::new();
    let worker = scene.worker("declared-one").start().await;
    let mut producer = scene.producer().await;
    let rows = [[0.0, 1.0, 0.5], [3.0, 1.0, 2.0], [0.0, 0.25, 0.5]];

    let body = Request::new([Tensor::fp32("x", &rows)]).msgpack();
    let ids = producer
        .send_all([scene.job("declared-one", body).correlation_id("rows")])
        .await;
    let replies = producer.replies(&ids).await;
    let metrics = worker.metrics().await;

    let reply = &replies["rows"][0];
    assert_eq!(reply.response().output("label").integers(), [1, 0, 2]);
    let text = metrics.text();
    assert!(text.contains(r#"relation="independent""#), "{text}");
}

#[tokio::test]
async fn jobs_of_different_lengths_are_not_mixed_up() {
    let scene = Scene::new();
    scene.declare("sequence").await;
    let mut producer = scene.producer().await;

    let request = |number: u8| match number % 3 {
        0 => Request::new([Tensor::fp32("x", &[[f32::from(number); 1]])]),
        1 => Request::new([Tensor::fp32("x", &[[f32::from(number); 5]])]),
        _ => Request::new([Tensor::fp32("x", &[[f32::from(number); 17]])]),
    };
    let jobs = (0..60_u8).map(|number| {
        scene
            .job("sequence", request(number).msgpack())
            .correlation_id(&number.to_string())
            .timed()
    });
    let ids = producer.send_all(jobs).await;
    let _worker = scene.worker("sequence").start().await;
    let replies = producer.replies(&ids).await;

    for (id, replies) in replies {
        let number: u8 = id.parse().expect("our own id");
        let length = [1.0, 5.0, 17.0][usize::from(number % 3)];
        assert_eq!(
            replies[0].response().output("y").floats(),
            [f64::from(number) * length],
            "{id}"
        );
    }
}

#[tokio::test]
async fn two_workers_share_one_queue_and_every_job_is_answered_once() {
    let scene = Scene::new();
    let first = scene.worker("slow").env("INFERQ_BROKER__PREFETCH", "4").start().await;
    let second = scene.worker("slow").env("INFERQ_BROKER__PREFETCH", "4").start().await;
    let mut producer = scene.producer().await;

    let jobs = (0..60_u8).map(|number| {
        let body = Request::new([Tensor::fp32("x", &[[f32::from(number); 4]])]).msgpack();
        scene.job("slow", body).correlation_id(&number.to_string())
    });
    let ids = producer.send_all(jobs).await;
    let replies = producer.replies(&ids).await;
    let runs = [first.metrics().await, second.metrics().await];
    first.drain().await;
    second.drain().await;

    for (id, replies) in replies {
        assert_eq!(replies.len(), 1, "{id}");
        assert_eq!(
            replies[0].response().output("y").floats(),
            [id.parse::<f64>().expect("our own id"); 4]
        );
    }
    for metrics in runs {
        assert!(
            metrics.sum("inferq_batch_rows_count").is_some_and(|runs| runs > 0.0),
            "one worker had no work"
        );
    }
    assert_eq!(producer.remaining().await.len(), 0);
    scene.nothing_is_left("slow").await;
}
