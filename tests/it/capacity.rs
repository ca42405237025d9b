//! Does a worker know what runs take, and make use of it: for deadlines, for order, for what it takes ahead?

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::{Job, Request, Scene, Tensor, eventually};

/// Rows that `slow` takes some 25 ms for, each in a run of its own.
fn rows(scene: &Scene, count: usize) -> Job {
    let body = Request::new([Tensor::fp32("x", &vec![[0.5; 4]; count])]).msgpack();
    scene.job("slow", body).timed()
}

/// Milliseconds since 1970, so much later than now.
fn ahead(time: Duration) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from((now + time).as_millis()).expect("before the year 292278994")
}

#[tokio::test]
async fn a_job_that_cannot_be_done_in_time_is_refused_before_it_costs_a_run() {
    let scene = Scene::new();
    let worker = scene.worker("slow").env("INFERQ_BATCH__ROWS_MAX", "1").start().await;
    let mut producer = scene.producer().await;

    // Half a minute and more of work, to be done in five seconds.
    let job = rows(&scene, 2_000).deadline(ahead(Duration::from_secs(5)));
    let refused = producer.call(job).await.error("DEADLINE_EXCEEDED");
    let runs = worker.metrics().await.sum("inferq_batches_total");
    let possible = producer
        .call(rows(&scene, 1).deadline(ahead(Duration::from_secs(60))))
        .await;
    worker.drain().await;

    assert!(refused.contains("away, and a run of this job takes some"), "{refused}");
    assert_eq!(runs, Some(0.0));
    assert_eq!(possible.status(), "OK");
    scene.nothing_is_left("slow").await;
}

#[tokio::test]
async fn the_earliest_deadline_overtakes_what_was_delivered_before() {
    const OTHERS: usize = 30;
    let scene = Scene::new();
    scene.declare("slow").await;
    let mut producer = scene.producer().await;

    let mut jobs: Vec<Job> = (0..OTHERS)
        .map(|number| rows(&scene, 1).correlation_id(&number.to_string()))
        .collect();
    // Long enough for a busy machine, and shorter than what a job without a deadline is taken to have.
    jobs.push(
        rows(&scene, 1)
            .correlation_id("urgent")
            .deadline(ahead(Duration::from_secs(9))),
    );
    let ids = producer.send_all(jobs).await;
    let worker = scene.worker("slow").env("INFERQ_BATCH__ROWS_MAX", "1").start().await;
    let replies = producer.replies(&ids).await;
    worker.drain().await;

    let wait = |id: &str| replies[id][0].number("inferq-wait-us");
    let behind = (0..OTHERS).filter(|number| wait(&number.to_string()) > wait("urgent"));
    assert_eq!(replies["urgent"][0].status(), "OK");
    assert!(behind.count() > OTHERS / 2, "it waited for those that came before it");
    scene.nothing_is_left("slow").await;
}

#[tokio::test]
async fn a_slow_model_with_a_backlog_does_not_starve_a_fast_one_of_the_only_thread() {
    const JOBS: usize = 400;
    let scene = Scene::new();
    let worker = scene
        .worker("slow,affine")
        .env("INFERQ_BATCH__ROWS_MAX", "1")
        .env("INFERQ_WORKER__THREADS", "1")
        .start()
        .await;
    let (backlog, mut producer) = (scene.producer().await, scene.producer().await);

    backlog.send_all(vec![rows(&scene, 1); JOBS]).await;
    for _ in 0..20 {
        let body = Request::new([Tensor::fp32("x", &[[0.5; 4]])]).msgpack();
        assert_eq!(producer.call(scene.job("affine", body)).await.status(), "OK");
    }
    let metrics = worker.metrics().await;

    let slow = metrics
        .text()
        .lines()
        .find_map(|line| line.strip_prefix("inferq_jobs_total{code=\"OK\",model=\"slow\"} "));
    let slow: usize = slow.expect("it is counted").parse().expect("a number");
    assert!(slow < JOBS, "the fast model waited for all of the slow one's jobs");
}

#[tokio::test]
async fn the_backlog_is_shown_in_jobs_and_in_seconds_of_work() {
    const JOBS: usize = 10;
    let scene = Scene::new();
    let worker = scene
        .worker("slow")
        .env("INFERQ_BATCH__ROWS_MAX", "1")
        .env("INFERQ_BROKER__PREFETCH", "1")
        .start()
        .await;
    let producer = scene.producer().await;

    // The first runs for longer than anybody here waits for the figures.
    producer.send_all(vec![rows(&scene, 4_000); JOBS]).await;
    let seconds = eventually("the backlog to be shown", || async {
        let metrics = worker.metrics().await;
        let waiting = metrics.sum("inferq_backlog_jobs")?;
        (waiting == (JOBS - 1) as f64).then(|| metrics.sum("inferq_backlog_seconds"))
    })
    .await;
    let metrics = worker.metrics().await;

    assert!(seconds.is_some_and(|seconds| seconds > 0.0), "{}", metrics.text());
    assert!(
        metrics
            .sum("inferq_model_seconds_per_row")
            .is_some_and(|seconds| seconds > 0.0)
    );
    assert!(!metrics.text().contains("NaN"), "{}", metrics.text());
}

#[tokio::test]
async fn no_more_is_taken_ahead_than_can_be_finished_when_the_worker_stops() {
    let scene = Scene::new();
    let worker = scene.worker("slow").env("INFERQ_WORKER__DRAIN_TIMEOUT_MS", "1");

    let worker = worker.start().await;

    assert_eq!(worker.metrics().await.sum("inferq_prefetch"), Some(2.0));
    assert!(worker.log().contains("prefetch is 2 and not 256"), "{}", worker.log());
}
