//! Does a worker's memory stay where it was told, however much waits for it?
//!
//! What waits fills two thirds of the memory that a broker may take. So these tests have brokers of their own: at its alarm
//! a shared one would hold up the replies of everybody else.

use crate::chaos::number;
use crate::support::worker::Setup;
use crate::support::{Broker, Job, Request, Scene, Tensor, Worker, eventually, test_models};

const MIB: u64 = 1024 * 1024;
/// Of a batch.
const ROWS_MAX: usize = 64;

/// The most memory that the process has held so far, in bytes.
fn peak(worker: &Worker) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).expect("the worker runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")).expect("VmHWM");
    kib.trim().parse::<u64>().expect("a number") * 1024
}

fn job(scene: &Scene, model: &str, rows: usize) -> Job {
    let body = Request::new([Tensor::fp32("x", &vec![[0.0, 1.0, 2.0, 3.0]; rows])]).msgpack();
    scene.job(model, body).fire_and_forget()
}

/// However long it takes, as long as it goes on.
async fn until_answered(worker: &Worker, jobs: f64) {
    let mut answered = 0.0;
    while answered < jobs {
        answered = eventually(&format!("more than {answered} of {jobs} answered jobs"), || async {
            assert_eq!(worker.ended(), None, "the worker is gone");
            let now = worker.metrics().await.sum("inferq_jobs_total")?;
            (now > answered).then_some(now)
        })
        .await;
    }
}

#[tokio::test]
async fn a_hundred_thousand_waiting_jobs_take_no_more_memory_than_a_few() {
    const JOBS: u32 = 100_000;
    let broker = Broker::start();
    let scene = Scene::at(broker.uri());
    scene.declare("affine").await;
    let producer = scene.producer().await;
    let one = job(&scene, "affine", 1);
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

    // The window is what keeps the engine busy, and nothing else.
    let log = worker.log();
    assert!(log.contains("prefetch is 256: as broker.prefetch has it"), "{log}");
    println!(
        "peak after 2,000 jobs {} MiB, after 30,000 {} MiB",
        few / MIB,
        many / MIB
    );
    // Linux counts a thread's pages in lots, so that a later reading may be a little lower.
    assert!(many.saturating_sub(few) < 16 * MIB, "{few} bytes, then {many}");
    assert!(many < 150 * MIB, "{many} bytes");
}

/// Sizes in MiB: of a body, and what all of them may take. `make memory` has the real ones.
struct Sizes {
    body: u64,
    limit: u64,
    jobs: usize,
    models: usize,
    /// Of a large job: of the slow model a run or some of them, so that bodies come faster than they go.
    rows: usize,
}

impl Sizes {
    fn here() -> Self {
        match number("INFERQ_TEST_BODY_MIB") {
            Some(body) => Self {
                body,
                limit: 1024,
                models: 100,
                rows: 4 * ROWS_MAX,
                jobs: number("INFERQ_TEST_BODY_JOBS").map_or(2_000, |jobs| jobs as usize),
            },
            None => Self {
                body: 1,
                limit: 16,
                jobs: 300,
                models: 20,
                rows: ROWS_MAX,
            },
        }
    }

    /// A broker that takes them; its own memory is not what is tested.
    fn broker(&self) -> Broker {
        match number("INFERQ_TEST_BODY_MIB") {
            Some(_) => Broker::with("vm_memory_high_watermark.absolute = 8GB\nmax_message_size = 536870912\n"),
            None => Broker::start(),
        }
    }

    /// A worker whose bodies may be so big, with room for so many.
    fn worker(&self, scene: &Scene, models: &str) -> Setup {
        scene
            .worker(models)
            .env("INFERQ_LIMITS__BODY_BYTES_MAX", (self.body * MIB).to_string())
            .env("INFERQ_LIMITS__MEMORY_BYTES", (self.limit * MIB).to_string())
            .env("INFERQ_BATCH__ROWS_MAX", ROWS_MAX.to_string())
    }

    /// Just below the biggest that is allowed, nearly all of it rows.
    fn job(&self, scene: &Scene, model: &str) -> Job {
        job(scene, model, usize::try_from(self.body * 65_000).expect("a number"))
    }

    /// As big, nearly all of it what no model looks at.
    fn slow_job(&self, scene: &Scene, model: &str) -> Job {
        let mut body = Request::new([Tensor::fp32("x", &vec![[0.5; 4]; self.rows])]).msgpack();
        let bytes = u32::try_from(self.body * 1_040_000).expect("less than 4 GiB");
        // One more entry of the map: `parameters`, a map of one, in which `pad` has so many bytes.
        body.bytes[0] += 1;
        body.bytes.extend(b"\xaaparameters\x81\xa3pad\xc6");
        body.bytes.extend(bytes.to_be_bytes());
        body.bytes.resize(body.bytes.len() + bytes as usize, 0);
        scene.job(model, body).fire_and_forget()
    }

    /// The bound of README.md, and beside it the outputs and the reply of a job or two, and what the allocator holds on to.
    fn most(&self) -> u64 {
        (self.limit * 3 / 2 + 3 * self.body + 50) * MIB
    }
}

/// A limit of 2 GiB that the kernel sees to.
struct Group(std::path::PathBuf);

impl Group {
    /// Confines a worker, if the sizes are real and this machine lets us.
    fn around(worker: &Worker) -> Option<Self> {
        number("INFERQ_TEST_BODY_MIB")?;
        let path = std::path::Path::new("/sys/fs/cgroup/memory").join(format!("inferq-{}", worker.pid()));
        if std::fs::create_dir(&path).is_err() {
            eprintln!("no cgroup: the memory is looked at, and not limited");
            return None;
        }
        std::fs::write(path.join("memory.limit_in_bytes"), (2048 * MIB).to_string()).expect("a limit");
        std::fs::write(path.join("cgroup.procs"), worker.pid().to_string()).expect("the worker is in it");
        Some(Self(path))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}

/// A worker that is under way.
struct Started {
    worker: Worker,
    /// The memory that another one had without any job.
    before: u64,
    /// Dropped after its worker.
    _group: Option<Group>,
}

impl Started {
    fn new(setup: Setup, before: u64) -> Self {
        let worker = setup.spawn();
        let group = Group::around(&worker);
        Self {
            worker,
            before,
            _group: group,
        }
    }
}

/// Lets a worker make the queues and leave; what memory it had.
async fn idle_peak(setup: Setup) -> u64 {
    let worker = setup.start().await;
    let peak = peak(&worker);
    worker.drain().await;
    peak
}

/// Sends jobs, those that fill a window before there is a worker.
async fn send(scene: &Scene, mut jobs: impl Iterator<Item = Job>, setup: impl Fn() -> Setup) -> Started {
    const WAITING: usize = 200;
    const AT_ONCE: usize = 4;
    let before = idle_peak(setup()).await;
    let producer = scene.producer().await;
    for _ in 0..WAITING / AT_ONCE {
        producer.send_all(jobs.by_ref().take(AT_ONCE)).await;
    }
    let started = Started::new(setup(), before);
    while !producer.send_all(jobs.by_ref().take(AT_ONCE)).await.is_empty() {}
    started
}

/// Every job was answered once, whatever had to wait, and on the connections that were there at first.
async fn each_was_answered_once(worker: &Worker, jobs: usize) {
    let metrics = worker.metrics().await;
    let value = |name: &str| metrics.sum(name).unwrap_or_default();
    println!(
        "slowed for {:.1} s, {} of {jobs} jobs set aside",
        value("inferq_reading_slowed_seconds_total"),
        value("inferq_jobs_set_aside_total")
    );
    assert_eq!(value("inferq_jobs_total"), jobs as f64);
    assert_eq!(value("inferq_redelivered_total"), value("inferq_jobs_set_aside_total"));
    assert_eq!(value("inferq_connects_total"), 2.0);
    assert_eq!(value("inferq_bytes_in_hand"), 0.0);
}

/// The jobs alone would have taken more.
async fn the_bound_was_needed(worker: &Worker) {
    let metrics = worker.metrics().await;
    let value = |name: &str| metrics.sum(name).unwrap_or_default();
    let slowed = value("inferq_reading_slowed_seconds_total");
    assert!(slowed > 0.0 || value("inferq_jobs_set_aside_total") > 0.0);
}

async fn stays_within(sizes: &Sizes, started: &Started, jobs: usize) {
    let Started { worker, before, .. } = started;
    until_answered(worker, jobs as f64).await;
    let after = peak(worker);
    each_was_answered_once(worker, jobs).await;
    println!(
        "the peak rose by {} MiB, allowed are {}",
        after.saturating_sub(*before) / MIB,
        sizes.most() / MIB
    );
    assert!(
        after.saturating_sub(*before) < sizes.most(),
        "{before} bytes, then {after}"
    );
}

#[tokio::test]
async fn large_bodies_take_no_more_memory_than_allowed() {
    let sizes = Sizes::here();
    let broker = sizes.broker();
    let scene = Scene::at(broker.uri());

    let jobs = std::iter::repeat_n(sizes.slow_job(&scene, "slow"), sizes.jobs);
    let started = send(&scene, jobs, || sizes.worker(&scene, "slow")).await;

    stays_within(&sizes, &started, sizes.jobs).await;
    the_bound_was_needed(&started.worker).await;
    started.worker.drain().await;
}

/// Whatever the window was good for before.
#[tokio::test]
async fn small_bodies_that_turn_large_at_once_take_no_more() {
    const SMALL: usize = 2_000;
    let sizes = Sizes::here();
    let broker = sizes.broker();
    let scene = Scene::at(broker.uri());

    let small = std::iter::repeat_n(job(&scene, "slow", 1), SMALL);
    let jobs = small.chain(std::iter::repeat_n(sizes.slow_job(&scene, "slow"), sizes.jobs));
    let started = send(&scene, jobs, || sizes.worker(&scene, "slow")).await;

    stays_within(&sizes, &started, SMALL + sizes.jobs).await;
    the_bound_was_needed(&started.worker).await;
    started.worker.drain().await;
}

#[tokio::test]
async fn many_models_with_large_bodies_take_no_more_together() {
    let sizes = Sizes::here();
    let broker = sizes.broker();
    let scene = Scene::at(broker.uri());
    let repository = tempfile::tempdir().expect("a folder");
    let names: Vec<String> = (0..sizes.models).map(|number| format!("slow-{number}")).collect();
    for name in &names {
        let version = repository.path().join(name).join("1");
        std::fs::create_dir_all(&version).expect("a folder");
        let model = test_models().join("slow/1/model.onnx");
        std::fs::copy(model, version.join("model.onnx")).expect("a copy");
    }

    let large: Vec<Job> = names.iter().map(|name| sizes.slow_job(&scene, name)).collect();
    let setup = || sizes.worker(&scene, &names.join(",")).repository(repository.path());
    let jobs = large.iter().cycle().take(sizes.jobs).cloned();
    let started = send(&scene, jobs, setup).await;

    stays_within(&sizes, &started, sizes.jobs).await;
    the_bound_was_needed(&started.worker).await;
    started.worker.drain().await;
}

/// The slow one has all of the memory, and more in its window than ever has room. `make memory` lets it be so for longer than
/// RabbitMQ waits for a reader that stands still.
#[tokio::test]
async fn a_fast_model_is_answered_while_a_slow_one_has_all_the_memory() {
    const SLOW: usize = 40;
    let is_real = number("INFERQ_TEST_BODY_MIB").is_some();
    let (body, limit, calls) = if is_real {
        (16 * MIB, 256 * MIB, 90)
    } else {
        (MIB / 16, MIB / 2, 20)
    };
    let sizes = Sizes::here();
    let broker = sizes.broker();
    let scene = Scene::at(broker.uri());
    let setup = || {
        scene
            .worker("slow,affine")
            .env("INFERQ_LIMITS__BODY_BYTES_MAX", body.to_string())
            .env("INFERQ_LIMITS__MEMORY_BYTES", limit.to_string())
            .env("INFERQ_BROKER__PREFETCH", "64")
            .env("INFERQ_BATCH__ROWS_MAX", ROWS_MAX.to_string())
    };
    let before = idle_peak(setup()).await;
    let started = Started::new(setup(), before);
    let (worker, backlog, mut producer) = (&started.worker, scene.producer().await, scene.producer().await);

    // Minutes of work each.
    let rows = vec![[0.5; 4]; usize::try_from(body / 17).expect("a number")];
    let slow = scene.job("slow", Request::new([Tensor::fp32("x", &rows)]).msgpack());
    for _ in 0..SLOW / 4 {
        backlog.send_all(vec![slow.clone(); 4]).await;
    }
    eventually("jobs of the slow model to be set aside", || async {
        let metrics = worker.metrics().await;
        (metrics.sum("inferq_jobs_set_aside_total") > Some(0.0)).then_some(())
    })
    .await;
    for _ in 0..calls {
        let body = Request::new([Tensor::fp32("x", &[[0.5; 4]])]).msgpack();
        assert_eq!(producer.call(scene.job("affine", body)).await.status(), "OK");
        if is_real {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }
    let metrics = worker.metrics().await;

    let bytes = metrics.sum("inferq_bytes_in_hand").expect("it is shown");
    assert!(bytes > limit as f64, "{bytes}");
    assert!(bytes <= limit as f64 * 1.5, "{bytes}");
    assert_eq!(metrics.sum("inferq_connects_total"), Some(2.0));
    let done = r#"inferq_jobs_total{code="OK",model="slow"} "#;
    let done = metrics.text().lines().find_map(|line| line.strip_prefix(done));
    assert_ne!(done, Some("40"));
}

/// A body may be as big as all the memory that bodies may take; such bodies come one after the other.
#[tokio::test]
async fn bodies_as_big_as_the_limit_are_served_one_by_one() {
    const JOBS: usize = 8;
    let body = number("INFERQ_TEST_BODY_MIB").map_or(8, |_| 512);
    let sizes = Sizes {
        body,
        limit: body,
        jobs: JOBS,
        models: 1,
        rows: 0,
    };
    let broker = sizes.broker();
    let scene = Scene::at(broker.uri());

    let jobs = std::iter::repeat_n(sizes.job(&scene, "affine"), JOBS);
    let setup = || sizes.worker(&scene, "affine").env("INFERQ_BATCH__ROWS_MAX", "4096");
    let started = send(&scene, jobs, setup).await;

    stays_within(&sizes, &started, JOBS).await;
    started.worker.drain().await;
}
