//! Does a job that breaks the runtime cost anybody else an answer?

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::support::faulty::{ABORT, DEVICE_LOST, HANG, HANG_DEAF, HUNGRY, faulty};
use crate::support::scene::DeadLetter;
use crate::support::worker::Setup;
use crate::support::{Job, Producer, Reply, Request, Scene, Tensor, Worker, eventually};

fn job(scene: &Scene, id: &str, first: f32) -> Job {
    rows(scene, id, &[first])
}

/// A job with a row for each of `firsts`.
fn rows(scene: &Scene, id: &str, firsts: &[f32]) -> Job {
    let rows: Vec<[f32; 4]> = firsts.iter().map(|first| [*first, 0.0, 0.0, 0.5]).collect();
    let body = Request::new([Tensor::fp32("x", &rows)]).msgpack();
    scene.job("affine", body).correlation_id(id).message_id(id).persistent()
}

/// What `affine` makes of a row of [`job`].
fn answer(first: f32) -> Vec<f64> {
    [first, 0.0, 0.0, 0.5]
        .iter()
        .map(|x| f64::from(3.0 * x - 1.0))
        .collect()
}

/// `count` jobs with numbers for ids, each with its own row.
fn innocents(scene: &Scene, numbers: std::ops::Range<u16>) -> Vec<Job> {
    numbers
        .map(|number| job(scene, &number.to_string(), f32::from(number)))
        .collect()
}

/// Checks that every innocent was answered, and each reply to one; the others are returned.
async fn innocents_answered(producer: &mut Producer, numbers: std::ops::Range<u16>) {
    let ids: Vec<String> = numbers.map(|number| number.to_string()).collect();
    let replies = producer.replies(&ids).await;
    for id in &ids {
        for reply in &replies[id] {
            let number: f32 = id.parse().expect("our own number");
            assert_eq!(reply.response().output("y").floats(), answer(number), "job {id}");
            assert_eq!(reply.message_id().as_deref(), Some(id.as_str()));
        }
    }
    for (id, others) in replies {
        if !ids.contains(&id) {
            producer.keep(others);
        }
    }
}

/// Workers that are started again when they end, as Kubernetes would.
struct Fleet {
    setup: Box<dyn Fn() -> Setup>,
    running: Vec<Worker>,
    /// How those ended that did.
    deaths: Vec<String>,
}

impl Fleet {
    /// Nobody is waited for: a job that was there before may end a worker before it is ready.
    fn start(count: usize, setup: impl Fn() -> Setup + 'static) -> Self {
        Self {
            running: (0..count).map(|_| setup().spawn()).collect(),
            setup: Box::new(setup),
            deaths: Vec::new(),
        }
    }

    /// Keeps the workers running until `done` is.
    async fn until<T>(&mut self, done: impl Future<Output = T>) -> T {
        tokio::pin!(done);
        loop {
            tokio::select! {
                done = &mut done => return done,
                (exit, place) = self.first_end() => {
                    let ended = std::mem::replace(&mut self.running[place], (self.setup)().spawn());
                    self.deaths.push(format!("{exit}\n{}", ended.log()));
                }
            }
        }
    }

    async fn first_end(&self) -> (ExitStatus, usize) {
        let ends = self.running.iter().map(|worker| Box::pin(worker.end()));
        let (exit, place, _) = futures_util::future::select_all(ends).await;
        (exit, place)
    }

    async fn ready(&self) {
        for worker in &self.running {
            worker.ready().await;
        }
    }

    async fn drain(self) {
        self.ready().await;
        for worker in &self.running {
            worker.drain().await;
        }
    }
}

/// A fleet on the faulty runtime that takes many jobs at once.
fn fleet(scene: &Scene, count: usize, settings: &'static [(&str, &str)]) -> Fleet {
    let (uri, prefix) = (scene.uri.clone(), scene.prefix.clone());
    Fleet::start(count, move || {
        let scene = Scene {
            uri: uri.clone(),
            prefix: prefix.clone(),
        };
        let worker = faulty(scene.worker("affine"));
        settings
            .iter()
            .fold(worker, |worker, (name, value)| worker.env(name, value))
    })
}

/// Checks what the contract says of a job that was given up: an error reply, and a dead letter with its history.
fn given_up(reply: &Reply, letter: &DeadLetter, words: &str) -> u64 {
    let sentence = reply.error("INTERNAL");
    assert!(sentence.contains(words), "{sentence}");
    let header = |name: &str| letter.header(name).unwrap_or_else(|| panic!("no header {name}"));
    assert_eq!(header("inferq-error-code"), "INTERNAL");
    assert_eq!(header("inferq-error"), sentence);
    assert_eq!(header("inferq-model-version"), "2");
    assert!(!header("inferq-worker").is_empty() && !header("inferq-failed-at").is_empty());
    header("inferq-delivery-count").parse().expect("a count")
}

// Fault 27.
#[tokio::test]
async fn jobs_that_abort_the_process_cost_nobody_else_an_answer() {
    const JOBS: u16 = 400;
    let scene = Scene::new();
    scene.declare("affine").await;
    let mut producer = scene.producer().await;
    let mut jobs = innocents(&scene, 0..JOBS);
    for (place, id) in [(10, "first"), (11, "second"), (300, "third")] {
        jobs.insert(place, rows(&scene, id, &[1.0, ABORT]));
    }
    producer.send_all(jobs).await;

    let mut fleet = fleet(&scene, 3, &[("INFERQ_BROKER__PREFETCH", "64")]);
    let mut poison = BTreeMap::new();
    fleet
        .until(async {
            innocents_answered(&mut producer, 0..JOBS).await;
            for id in ["first", "second", "third"] {
                poison.insert(id, producer.reply(id).await);
            }
        })
        .await;
    let letters = scene.dead_letters("affine", 3).await;
    let deaths = std::mem::take(&mut fleet.deaths);
    fleet.drain().await;

    for letter in &letters {
        let id = letter.properties.message_id().as_ref().expect("an id").to_string();
        let count = given_up(&poison[id.as_str()], letter, "SIGABRT");
        assert!(count >= 2, "isolated at delivery {count}");
    }
    // Each poison may take a worker down twice before it is isolated; innocents that were there each time never do.
    assert!(
        (1..=6).contains(&deaths.len()),
        "{} workers died: {deaths:#?}",
        deaths.len()
    );
    scene.until_waiting(&scene.queue("affine"), 0).await;
}

// Fault 27, without a process of its own: the delivery limit is what is left.
#[tokio::test]
async fn a_job_that_keeps_ending_workers_is_given_up_at_the_delivery_limit() {
    const LIMIT: usize = 3;
    let scene = Scene::new();
    let mut producer = scene.producer().await;
    let settings = &[
        ("INFERQ_WORKER__ISOLATE_AFTER", "0"),
        ("INFERQ_TOPOLOGY__DELIVERY_LIMIT", "3"),
    ];
    let mut fleet = fleet(&scene, 1, settings);
    fleet.ready().await;

    producer.send(job(&scene, "poison", ABORT)).await;
    let reply = fleet.until(producer.reply("poison")).await;
    producer.send_all(innocents(&scene, 0..5)).await;
    fleet.until(innocents_answered(&mut producer, 0..5)).await;

    let letters = scene.dead_letters("affine", 1).await;
    let count = given_up(&reply, &letters[0], "delivered 3 times without an answer");
    assert_eq!(
        (count, fleet.deaths.len()),
        (LIMIT as u64, LIMIT),
        "{:#?}",
        fleet.deaths
    );
    fleet.drain().await;
}

// Fault 27 on a queue that does not count.
#[tokio::test]
async fn on_a_classic_queue_poison_takes_one_worker_down() {
    const JOBS: u16 = 60;
    let scene = Scene::new();
    let mut producer = scene.producer().await;
    let settings = &[("INFERQ_TOPOLOGY__QUEUE_TYPE", "classic")];
    let mut fleet = fleet(&scene, 2, settings);
    fleet.ready().await;

    let mut jobs = innocents(&scene, 0..JOBS);
    jobs.insert(20, job(&scene, "poison", ABORT));
    producer.send_all(jobs).await;
    let reply = fleet
        .until(async {
            innocents_answered(&mut producer, 0..JOBS).await;
            producer.reply("poison").await
        })
        .await;

    let letters = scene.dead_letters("affine", 1).await;
    assert_eq!(given_up(&reply, &letters[0], "SIGABRT"), 1);
    assert_eq!(fleet.deaths.len(), 1, "{:#?}", fleet.deaths);
    fleet.drain().await;
}

// Fault 28, a runtime that listens.
#[tokio::test]
async fn a_run_that_hangs_is_ended_and_only_its_job_gets_an_error() {
    const JOBS: u16 = 30;
    let scene = Scene::new();
    scene.declare("affine").await;
    let mut producer = scene.producer().await;
    let mut jobs = innocents(&scene, 0..JOBS);
    jobs.insert(5, job(&scene, "poison", HANG));
    producer.send_all(jobs).await;

    let worker = faulty(scene.worker("affine")).env("INFERQ_WORKER__RUN_TIMEOUT_MS", "300");
    let worker = worker.start().await;
    innocents_answered(&mut producer, 0..JOBS).await;
    let reply = producer.reply("poison").await;
    let letters = scene.dead_letters("affine", 1).await;
    let stopped = worker
        .metrics()
        .await
        .sum("inferq_runs_stopped_total")
        .expect("the series");
    worker.drain().await;

    let count = given_up(&reply, &letters[0], "longer than 300 ms (worker.run_timeout_ms)");
    assert_eq!(count, 0);
    // Once with the others of its batch, once alone, however the batch was.
    assert!((1.0..=2.0).contains(&stopped), "{stopped} runs were stopped");
}

// Fault 28, a runtime that does not.
#[tokio::test]
async fn a_runtime_that_does_not_come_back_ends_the_worker_and_then_its_job() {
    const JOBS: u16 = 30;
    let scene = Scene::new();
    let mut producer = scene.producer().await;
    let settings = &[("INFERQ_WORKER__RUN_TIMEOUT_MS", "300")];
    let mut fleet = fleet(&scene, 1, settings);
    fleet.ready().await;

    let mut jobs = innocents(&scene, 0..JOBS);
    jobs.insert(5, job(&scene, "poison", HANG_DEAF));
    producer.send_all(jobs).await;
    let reply = fleet
        .until(async {
            innocents_answered(&mut producer, 0..JOBS).await;
            producer.reply("poison").await
        })
        .await;

    let letters = scene.dead_letters("affine", 1).await;
    let count = given_up(&reply, &letters[0], "longer than 300 ms (worker.run_timeout_ms)");
    assert_eq!((count, fleet.deaths.len()), (2, 2), "{:#?}", fleet.deaths);
    for death in &fleet.deaths {
        assert!(death.contains("exit status: 1"), "{death}");
        assert!(death.contains("a run of model `affine` did not end"), "{death}");
    }
    fleet.drain().await;
}

// Fault 29, as far as it goes without a device.
#[tokio::test]
async fn a_batch_that_finds_no_memory_is_run_in_smaller_ones() {
    let scene = Scene::new();
    scene.declare("affine").await;
    let mut producer = scene.producer().await;
    let mut jobs = innocents(&scene, 0..20);
    let big: Vec<f32> = (0..9)
        .map(|row| if row == 4 { HUNGRY } else { f32::from(row as u8) })
        .collect();
    jobs.insert(7, rows(&scene, "big", &big));
    producer.send_all(jobs).await;

    let worker = faulty(scene.worker("affine")).start().await;
    innocents_answered(&mut producer, 0..20).await;
    let reply = producer.reply("big").await;
    worker.drain().await;

    let expected: Vec<f64> = big.iter().flat_map(|first| answer(*first)).collect();
    assert_eq!(reply.response().output("y").floats(), expected);
    scene.nothing_is_left("affine").await;
}

// Fault 30, as far as it goes without a device: the worker ends, its jobs are answered by the next.
#[tokio::test]
async fn a_lost_device_ends_the_worker_with_the_reason_and_its_jobs_go_to_the_next() {
    let scene = Scene::new();
    let mut producer = scene.producer().await;
    scene.declare("affine").await;
    let mut jobs = innocents(&scene, 0..20);
    jobs.push(job(&scene, "poison", DEVICE_LOST));
    producer.send_all(jobs).await;

    let mut fleet = fleet(&scene, 1, &[]);
    let reply = fleet
        .until(async {
            innocents_answered(&mut producer, 0..20).await;
            producer.reply("poison").await
        })
        .await;

    let letters = scene.dead_letters("affine", 1).await;
    assert_eq!(given_up(&reply, &letters[0], "CUDA failure 719"), 2);
    assert_eq!(fleet.deaths.len(), 2, "{:#?}", fleet.deaths);
    for death in &fleet.deaths {
        assert!(death.contains("exit status: 1"), "{death}");
        assert!(death.contains("the device is lost: CUDA failure 719"), "{death}");
    }
    fleet.drain().await;
}

// A process of its own is started for one suspect, and serves no longer than it must.
#[tokio::test]
async fn what_comes_back_for_no_fault_of_its_own_is_answered_from_a_process_of_its_own() {
    const JOBS: u16 = 80;
    let scene = Scene::new();
    let settings = |scene: &Scene| scene.worker("slow").env("INFERQ_BATCH__ROWS_MAX", "1");
    let mut producer = scene.producer().await;
    let body = |number: u16| Request::new([Tensor::fp32("x", &[[f32::from(number), 0.0, 0.0, 0.5]])]).msgpack();
    let first = settings(&scene).start().await;

    let ids = producer
        .send_all((0..JOBS).map(|number| scene.job("slow", body(number)).correlation_id(&number.to_string())))
        .await;
    // Two workers are lost with all that is left.
    for worker in [first, settings(&scene).start().await] {
        scene.until_waiting(&scene.queue("slow"), 0).await;
        worker.sigkill();
        let exit = worker.exit().await;
        assert_eq!(exit.signal(), Some(9));
    }
    let third = settings(&scene).start().await;
    let replies = producer.replies(&ids).await;
    let isolated = third
        .metrics()
        .await
        .sum("inferq_isolated_runs_total")
        .expect("the series");
    third.drain().await;

    assert!(isolated > 0.0, "nothing came back twice");
    for (id, replies) in &replies {
        for reply in replies {
            let number: f64 = id.parse().expect("our own number");
            assert_eq!(reply.response().output("y").floats(), [number, 0.0, 0.0, 0.5]);
        }
    }
    scene.nothing_is_left("slow").await;
}

/// RabbitMQ 3.10 closes the connection over such a name; later ones drop what is sent to it.
#[tokio::test]
async fn a_forged_direct_reply_to_costs_nobody_else_an_answer() {
    const JOBS: u16 = 60;
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;
    let row = || Request::new([Tensor::fp32("x", &[[1.0, 2.0, 3.0, 4.0]])]).msgpack();
    let good = |number: u16| scene.job("affine", row()).correlation_id(&number.to_string());

    let mut ids = producer.send_all((0..JOBS / 2).map(good)).await;
    producer
        .send(scene.job("affine", row()).reply_to("amq.rabbitmq.reply-to.QUJD.QUJD"))
        .await;
    ids.extend(producer.send_all((JOBS / 2..JOBS).map(good)).await);
    let replies = producer.replies(&ids).await;
    worker.ready_again().await;
    let metrics = eventually("every job to be settled", || async {
        let metrics = worker.metrics().await;
        (metrics.sum("inferq_jobs_in_hand") == Some(0.0)).then_some(metrics)
    })
    .await;
    scene.until_waiting(&scene.queue("affine"), 0).await;
    let letters = scene.dead_letters_now("affine").await;
    worker.drain().await;

    assert!(replies.values().flatten().all(|reply| reply.status() == "OK"));
    // Once among others, and once alone.
    let connects = metrics.sum("inferq_connects_total").expect("connections are counted");
    assert!(connects <= 4.0, "{connects} connections were made");
    assert!(letters.len() <= 1, "{letters:?}");
    for letter in &letters {
        assert_eq!(letter.header("inferq-error-code").as_deref(), Some("UNROUTABLE_REPLY"));
    }
}
