//! Does a worker's memory stay where it was told, however much waits for it?
//!
//! What waits fills two thirds of the memory that a broker may take. So these tests have brokers of their own: at its alarm
//! a shared one would hold up the replies of everybody else.

use crate::support::{Broker, Job, Request, Scene, Tensor, Worker, eventually};

const MIB: u64 = 1024 * 1024;

/// The most memory that the process has held so far, in bytes.
fn peak(worker: &Worker) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).expect("the worker runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")).expect("VmHWM");
    kib.trim().parse::<u64>().expect("a number") * 1024
}

fn job(scene: &Scene, rows: usize) -> Job {
    let body = Request::new([Tensor::fp32("x", &vec![[0.0, 1.0, 2.0, 3.0]; rows])]).msgpack();
    scene.job("affine", body).fire_and_forget()
}

async fn until_answered(worker: &Worker, jobs: f64) {
    eventually(&format!("{jobs} answered jobs"), || async {
        let answered = worker.metrics().await.sum("inferq_jobs_total");
        (answered >= Some(jobs)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_hundred_thousand_waiting_jobs_take_no_more_memory_than_a_few() {
    const JOBS: u32 = 100_000;
    let broker = Broker::start();
    let scene = Scene::at(broker.uri());
    scene.declare("affine").await;
    let producer = scene.producer().await;
    let one = job(&scene, 1);
    for _ in 0..JOBS / 1000 {
        producer.send_all(std::iter::repeat_n(one.clone(), 1000)).await;
    }
    assert_eq!(scene.waiting(&scene.queue("affine")).await, JOBS);

    let worker = scene.worker("affine").start().await;
    until_answered(&worker, 2_000.0).await;
    let few = peak(&worker);
    until_answered(&worker, 30_000.0).await;
    let many = peak(&worker);
    worker.drain().await;
    scene.delete_queue(&scene.queue("affine")).await;

    println!(
        "peak after 2,000 jobs {} MiB, after 30,000 {} MiB",
        few / MIB,
        many / MIB
    );
    // Linux counts a thread's pages in lots, so that a later reading may be a little lower.
    assert!(many.saturating_sub(few) < 16 * MIB, "{few} bytes, then {many}");
    assert!(many < 150 * MIB, "{many} bytes");
}

#[tokio::test]
async fn big_bodies_take_no_more_memory_than_allowed_though_the_prefetch_window_would_hold_more() {
    const JOBS: usize = 400;
    const ALLOWED: u64 = 16 * MIB;
    let broker = Broker::start();
    let scene = Scene::at(broker.uri());
    scene.declare("affine").await;
    let producer = scene.producer().await;
    let big = job(&scene, 65_000); // Just below 1 MiB.
    assert!(big.bytes().len() as u64 > MIB * 98 / 100);
    for _ in 0..JOBS / 20 {
        producer.send_all(std::iter::repeat_n(big.clone(), 20)).await;
    }

    let worker = scene
        .worker("affine")
        .env("INFERQ_LIMITS__BODY_BYTES_MAX", MIB.to_string())
        .env("INFERQ_LIMITS__MEMORY_BYTES", ALLOWED.to_string());
    let worker = worker.spawn();
    let before = eventually("the model to be loaded", || async {
        worker.log().contains("model loaded").then(|| peak(&worker))
    })
    .await;
    until_answered(&worker, JOBS as f64).await;
    let after = peak(&worker);
    worker.drain().await;

    // Beside the bodies: what the client and the allocator hold on to, a batch, outputs and a reply of the same size; 40 to
    // 60 MiB as a rule. The whole prefetch window would be 256 MiB of bodies.
    const BESIDE: u64 = 112 * MIB;
    println!(
        "{} MiB of bodies raised the peak by {} MiB",
        JOBS,
        (after - before) / MIB
    );
    assert!(after - before < ALLOWED + BESIDE, "{before} bytes, then {after}");
    assert!(worker.log().contains("prefetch is 16 and not 256"), "{}", worker.log());
    scene.nothing_is_left("affine").await;
}
