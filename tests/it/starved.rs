//! Does a worker go on when what is around it stalls or runs out?

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::body::Body;
use crate::support::worker::{Log, ending};
use crate::support::{Broker, Job, Request, Scene, Tensor, Worker, test_models};

fn good(scene: &Scene) -> Job {
    scene.job(
        "affine",
        Request::new([Tensor::fp32("x", &[[0.0, 1.0, 2.0, 3.0]])]).msgpack(),
    )
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_no_job_and_its_lost_lines_are_counted() {
    const JOBS: usize = 12_000;
    let scene = Scene::new();
    let worker = scene
        .worker("affine")
        .env("INFERQ_TELEMETRY__LOG", "inferq=debug")
        .log(Log::Unread)
        .spawn();
    worker.ready_again().await;
    let mut producer = scene.producer().await;

    // Each is worth a line: more than the pipe and what waits before it can hold.
    let bad = scene.job("affine", Body::raw("application/json", "{"));
    let ids = producer.send_all(std::iter::repeat_n(bad, JOBS)).await;
    let replies = producer.replies(&ids).await;
    let metrics = worker.metrics().await;
    worker.drain().await;

    assert_eq!(replies.len(), JOBS);
    assert!(
        metrics.sum("inferq_log_lines_dropped_total") > Some(0.0),
        "{}",
        metrics.text()
    );
}

#[tokio::test]
async fn a_log_on_a_full_disk_holds_up_no_job() {
    let scene = Scene::new();
    let worker = scene.worker("affine").log(Log::FullDisk).spawn();
    worker.ready_again().await;
    let mut producer = scene.producer().await;

    let reply = producer.call(good(&scene)).await;
    worker.drain().await;

    assert_eq!(reply.status(), "OK");
}

#[tokio::test]
async fn scrapers_that_never_read_hold_up_nobody() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let mut asleep = Vec::new();
    for _ in 0..20 {
        let mut scraper = TcpStream::connect(worker.telemetry().await).await.expect("it listens");
        let requests = "GET /metrics HTTP/1.1\r\nHost: worker\r\n\r\n".repeat(1000);
        // As many as it takes: it stops reading once its answers do not get away.
        scraper.write_all(requests.as_bytes()).await.expect("it reads");
        asleep.push(scraper);
    }
    let reply = producer.call(good(&scene)).await;
    worker.ready_again().await;
    worker.drain().await;

    assert_eq!(reply.status(), "OK");
}

/// How many descriptors the worker may have. Those it has, it keeps.
fn allow_descriptors(worker: &Worker, descriptors: u64) {
    let pid = Pid::from_raw(worker.pid()).expect("a process");
    let limit = Rlimit {
        current: Some(descriptors),
        // Lowered once, it could not be raised again. It was inherited from this process.
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    prlimit(Some(pid), Resource::Nofile, limit).expect("the process is ours");
}

#[tokio::test]
async fn a_worker_without_file_descriptors_says_so_does_not_spin_and_comes_back() {
    let broker = Broker::start();
    let scene = Scene::at(broker.uri());
    let worker = scene.worker("affine").start().await;

    allow_descriptors(&worker, 3);
    broker.ctl(&["close_all_connections", "maintenance"]);
    for connection in ["consume", "publish"] {
        worker
            .logged("a connection that cannot be opened", |line| {
                (line.contains("Too many open files") && line.contains(connection)).then_some(())
            })
            .await;
    }
    allow_descriptors(&worker, 1024);
    worker.ready_again().await;
    let mut producer = scene.producer().await;
    let reply = producer.call(good(&scene)).await;
    let failures = worker.metrics().await.sum("inferq_connect_failures_total");
    worker.drain().await;

    assert_eq!(reply.status(), "OK");
    // Two connections with a back-off of their own; without one it would be thousands.
    assert!(failures <= Some(60.0), "{failures:?}\n{}", worker.log());
}

/// A repository of so many models, each of which is `affine` under another name.
fn many(models: usize) -> tempfile::TempDir {
    let repository = tempfile::tempdir().expect("a folder");
    for number in 0..models {
        let link = repository.path().join(format!("affine-{number}"));
        std::os::unix::fs::symlink(test_models().join("affine"), link).expect("a link");
    }
    repository
}

/// How many channels each connection of the worker has, by the broker's own list.
fn channels(broker: &Broker) -> Vec<u32> {
    let listed = broker.ctl(&["list_connections", "--quiet", "--no-table-headers", "user", "channels"]);
    let of_worker = listed.lines().filter_map(|line| line.split_once("-worker"));
    of_worker
        .map(|(_, channels)| channels.trim().parse().expect("a number"))
        .collect()
}

#[tokio::test]
async fn more_models_than_channels_use_further_connections() {
    const MODELS: usize = 10;
    let broker = Broker::with("channel_max = 8\n");
    let scene = Scene::at(broker.uri());
    let repository = many(MODELS);
    let worker = scene.worker("").repository(repository.path()).start().await;
    let mut producer = scene.producer().await;

    for number in 0..MODELS {
        let row = Request::new([Tensor::fp32("x", &[[0.0, 1.0, 2.0, 3.0]])]);
        let reply = producer
            .call(scene.job(&format!("affine-{number}"), row.msgpack()))
            .await;
        assert_eq!(reply.status(), "OK");
    }
    let channels = channels(&broker);
    let log = worker.log();
    worker.drain().await;

    // Three models on each that consumes, and one to publish on.
    assert_eq!(channels.len(), MODELS.div_ceil(3) + 1, "{channels:?}");
    assert!(channels.iter().all(|channels| *channels <= 8), "{channels:?}");
    assert!(!log.contains("\"WARN\""), "{log}");
    assert!(!worker.log().contains("not all jobs were finished"));
}

#[tokio::test]
async fn a_single_channel_a_connection_is_refused_with_both_numbers() {
    let broker = Broker::with("channel_max = 1\n");
    let scene = Scene::at(broker.uri());

    let (code, log) = ending(scene.worker("affine")).await;

    assert_eq!(code, 3, "{log}");
    assert!(
        log.contains("the broker allows 1 channel on a connection (channel_max), and a model needs 2"),
        "{log}"
    );
}
