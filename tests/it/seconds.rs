//! Is the time that a worker says it needs for what waits the time that it then takes?
//!
//! Each test lets a queue drain with nothing more sent, and compares every figure that the worker showed with the time that
//! was left. Truth and figure come from the same run, so that a busy machine slows both down. What no figure can know is that
//! the machine gets busier or less busy while the queue drains, as it does when other tests begin and end: so beside them twice as
//! much is allowed as on a machine that does nothing else, where `make seconds` shows the table.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use crate::chaos::number;
use crate::support::link::{Link, Weather};
use crate::support::metrics::Metrics;
use crate::support::scene::as_worker;
use crate::support::worker::Setup;
use crate::support::{Broker, Job, Request, Scene, Tensor, Worker, test_models, within};

/// One figure, when it was new.
#[derive(Clone, Copy)]
struct Shown {
    at: Instant,
    seconds: f64,
    is_estimate: bool,
}

/// What a worker showed of a model while its queue drained.
struct Drain {
    shown: Vec<Shown>,
    ended: Instant,
}

impl Drain {
    /// Figures over what was left when they were new, for as long as a tenth of the time is left: what remains then is a
    /// window or two.
    fn ratios(&self) -> Vec<f64> {
        let Some(first) = self.shown.first() else {
            panic!("no figure was shown");
        };
        let all = self.left(first);
        let telling = self.shown.iter().filter(|shown| self.left(shown) > all / 10.0);
        telling.map(|shown| shown.seconds / self.left(shown)).collect()
    }

    fn left(&self, shown: &Shown) -> f64 {
        (self.ended - shown.at).as_secs_f64()
    }

    /// The first figure within a factor of two; those of the later two thirds, in the middle, of one and a half.
    fn is_true(&self, case: &str) {
        let slack = number("INFERQ_TEST_EXACT").map_or(2.0, |_| 1.0);
        let (first, later) = (2.0 * slack, 1.5 * slack);
        let ratios = self.ratios();
        let settled = &ratios[ratios.len() / 3..];
        let mut sorted = settled.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = sorted[sorted.len() / 2];
        let mut line = format!(
            "{case}: {:.1} s, first {:.2}, later {median:.2}, all",
            self.left(&self.shown[0]),
            ratios[0]
        );
        for ratio in &ratios {
            write!(line, " {ratio:.2}").expect("text");
        }
        println!("{line}");
        assert!((1.0 / first..=first).contains(&ratios[0]), "{line}");
        assert!((1.0 / later..=later).contains(&median), "{line}");
    }
}

/// The value of one model's series.
fn of(metrics: &Metrics, name: &str, model: &str) -> Option<f64> {
    let series = format!("{name}{{model=\"{model}\"}} ");
    metrics
        .text()
        .lines()
        .find_map(|line| line.strip_prefix(&series)?.parse().ok())
}

/// Notes every new figure until `workers` together have settled `rows` rows of the model; one drain a worker.
async fn drains<const N: usize>(workers: [&Worker; N], model: &str, rows: usize, stale: Option<f64>) -> [Drain; N] {
    within("the queue to be drained", noted(workers, model, rows as f64, stale)).await
}

async fn noted<const N: usize>(workers: [&Worker; N], model: &str, rows: f64, stale: Option<f64>) -> [Drain; N] {
    let mut shown: [Vec<Shown>; N] = std::array::from_fn(|_| Vec::new());
    loop {
        let mut settled = 0.0;
        for (worker, shown) in workers.iter().zip(&mut shown) {
            let metrics = worker.metrics().await;
            settled += of(&metrics, "inferq_rows_settled_total", model).expect("there from the start");
            let seconds = of(&metrics, "inferq_backlog_seconds", model);
            let last = shown.last().map(|last: &Shown| last.seconds).or(stale);
            let is_new = |seconds: &f64| *seconds > 0.0 && last != Some(*seconds);
            if let Some(seconds) = seconds.filter(is_new) {
                let is_estimate = of(&metrics, "inferq_capacity_is_estimate", model) == Some(1.0);
                let at = Instant::now();
                shown.push(Shown {
                    at,
                    seconds,
                    is_estimate,
                });
            }
        }
        let ended = Instant::now();
        if settled >= rows {
            return shown.map(|shown| Drain { shown, ended });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A job of so many rows, whose reply waits in a queue that nobody reads.
fn job(scene: &Scene, model: &str, rows: usize) -> Job {
    let body = Request::new([Tensor::fp32("x", &vec![[0.5; 4]; rows])]).msgpack();
    scene.job(model, body).reply_to(&replies(scene))
}

fn replies(scene: &Scene) -> String {
    format!("{}.replies", scene.prefix)
}

/// Fills the queue of a model; the time to drain begins when this returns.
async fn fill(scene: &Scene, model: &str, jobs: usize, rows: usize) {
    scene
        .producer()
        .await
        .send_all(vec![job(scene, model, rows); jobs])
        .await;
}

/// One row a run, so that `slow` takes some 25 ms a row.
fn by_rows(setup: Setup) -> Setup {
    setup.env("INFERQ_BATCH__ROWS_MAX", "1")
}

async fn far_away() -> Link {
    let link = Link::to(Broker::shared().amqp_port()).await;
    link.weather(Weather {
        latency: Duration::from_millis(20),
        ..Weather::default()
    });
    link
}

/// Drains a queue that was full before the worker started.
async fn drain_from_start(case: &str, setup: impl FnOnce(Setup) -> Setup, load: (&str, usize, usize)) {
    let scene = Scene::new();
    let (model, jobs, rows) = load;
    scene.declare(model).await;
    scene.declare_queue(&replies(&scene)).await;
    fill(&scene, model, jobs, rows).await;

    let worker = setup(scene.worker(model)).start().await;
    let [drain] = drains([&worker], model, jobs * rows, None).await;
    worker.drain().await;

    drain.is_true(case);
}

/// 260 times too little before: the engine needs next to nothing.
#[tokio::test]
async fn the_seconds_of_a_tiny_model_are_not_those_of_its_engine() {
    drain_from_start("tiny", |setup| setup, ("affine", 60_000, 1)).await;
}

#[tokio::test]
async fn the_seconds_of_jobs_with_256_rows_are_true() {
    drain_from_start("256 rows", |setup| setup, ("affine", 12_000, 256)).await;
}

#[tokio::test]
async fn the_seconds_of_a_slow_model_are_true() {
    drain_from_start("slow", by_rows, ("slow", 400, 1)).await;
}

/// A window of 4 and 20 ms each way: some 46 jobs a second, whatever the machine. The second load meets a worker that knows.
#[tokio::test]
async fn the_seconds_behind_a_slow_link_are_true_and_remembered() {
    const JOBS: usize = 250;
    let scene = Scene::new();
    let link = far_away().await;
    let worker = scene
        .worker("affine")
        .env("INFERQ_BROKER__URI", link.uri(&as_worker(&scene.uri)))
        .env("INFERQ_BROKER__PREFETCH", "4")
        .start()
        .await;
    scene.declare_queue(&replies(&scene)).await;

    let mut loads = Vec::new();
    for load in 1..=2 {
        fill(&scene, "affine", JOBS, 1).await;
        // Of a moment at which more was still to come.
        let stale = of(&worker.metrics().await, "inferq_backlog_seconds", "affine");
        let [drain] = drains([&worker], "affine", load * JOBS, stale).await;
        loads.push(drain);
    }
    let metrics = worker.metrics().await;
    worker.drain().await;

    loads[0].is_true("20 ms each way, window of 4");
    loads[1].is_true("the same, second load");
    assert!(
        loads[1].shown.iter().all(|shown| !shown.is_estimate),
        "it has been measured"
    );
    let capacity = of(&metrics, "inferq_capacity_rows_per_second", "affine").expect("it is shown");
    assert!(
        (5.0..=100.0).contains(&capacity),
        "{capacity} rows a second, 50 at the most and fewer on a busy machine"
    );
}

/// Three models of equal speed share one thread and have unequal work: who ends first leaves the others its share.
#[tokio::test]
async fn the_seconds_of_three_models_in_one_worker_are_true() {
    const LOADS: [(&str, usize); 3] = [("slow-a", 80), ("slow-b", 160), ("slow-c", 320)];
    let scene = Scene::new();
    let folder = TempDir::new().expect("a temporary folder");
    for (model, _) in LOADS {
        symlink(test_models().join("slow"), folder.path().join(model)).expect("a link");
    }
    let models = LOADS.map(|(model, _)| model).join(",");
    let setup = || scene.worker(&models).repository(folder.path());
    setup().start().await.drain().await;
    scene.declare_queue(&replies(&scene)).await;
    for (model, jobs) in LOADS {
        fill(&scene, model, jobs, 1).await;
    }

    let worker = by_rows(setup()).env("INFERQ_WORKER__THREADS", "1").start().await;
    let [a, b, c] = LOADS.map(|(model, jobs)| drains([&worker], model, jobs, None));
    let ([a], [b], [c]) = tokio::join!(a, b, c);
    worker.drain().await;

    for (drain, (model, _)) in [a, b, c].iter().zip(LOADS) {
        drain.is_true(&format!("three models, {model}"));
    }
}

/// What each alone would need, together makes what both need. One has a window of 4 and 20 ms each way, the other its engine.
#[tokio::test]
async fn the_seconds_of_two_unequal_workers_add_up() {
    const JOBS: usize = 600;
    let scene = Scene::new();
    let link = far_away().await;
    scene.declare("slow").await;
    scene.declare_queue(&replies(&scene)).await;
    fill(&scene, "slow", JOBS, 1).await;

    let far = by_rows(scene.worker("slow"))
        .env("INFERQ_BROKER__URI", link.uri(&as_worker(&scene.uri)))
        .env("INFERQ_BROKER__PREFETCH", "1");
    let near = by_rows(scene.worker("slow")).env("INFERQ_BROKER__PREFETCH", "8");
    let (far, near) = tokio::join!(far.start(), near.start());
    let [one, other] = drains([&far, &near], "slow", JOBS, None).await;
    far.drain().await;
    near.drain().await;

    let together = one.shown.iter().filter_map(|far| {
        let near = other.shown.iter().rev().find(|near| near.at <= far.at)?;
        Some(Shown {
            seconds: 1.0 / (1.0 / far.seconds + 1.0 / near.seconds),
            ..*far
        })
    });
    let both = Drain {
        shown: together.collect(),
        ended: one.ended,
    };
    both.is_true("two workers");
    let (one, other) = (
        one.shown[one.shown.len() / 2].seconds,
        other.shown[other.shown.len() / 2].seconds,
    );
    assert!(
        one > other * 1.5,
        "the far one alone would need longer: {one} s, {other} s"
    );
}
