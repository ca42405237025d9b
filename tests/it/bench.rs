//! Does `inferq bench` put on the load that it is told to, account for every job of it, and see what is wrong?

use ndarray::Array2;
use ndarray_npy::write_npy;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Child;

use crate::support::command::{Ran, finish};
use crate::support::link::ClosedPort;
use crate::support::scene::as_producer;
use crate::support::{Request, Scene, Tensor, eventually, test_models, within};

/// `inferq bench` as a producer's user, with the words of `line`.
async fn bench(scene: &Scene, line: &str) -> Ran {
    finish(start(scene, line)).await
}

fn start(scene: &Scene, line: &str) -> Child {
    let uri = as_producer(&scene.uri);
    let words: Vec<&str> = ["bench"].into_iter().chain(line.split_whitespace()).collect();
    scene.start_inferq(&[("INFERQ_BROKER__URI", &uri)], &words)
}

/// A run whose every job was answered `OK`; its report.
async fn measures(scene: &Scene, line: &str) -> Value {
    let ran = bench(scene, &format!("{line} --json")).await;
    ran.ok();
    let report = ran.json();
    let jobs = &report["jobs"];
    assert_eq!(jobs["answered"]["OK"], jobs["due"], "{ran:?}");
    assert_accounted(&report);
    report
}

/// Every job is in one place.
fn assert_accounted(report: &Value) {
    for jobs in [&report["jobs"], &report["warm_up"]] {
        let answered = jobs["answered"].as_object().expect("statuses").values();
        let others = [
            "unroutable",
            "queue_full",
            "lost",
            "unreadable",
            "interrupted",
            "not_sent",
        ];
        let places = answered.chain(others.map(|place| &jobs[place]));
        let sum: u64 = places.map(|count| count.as_u64().expect("a count")).sum();
        assert_eq!(sum, count(&jobs["due"]), "{report:#}");
        assert_eq!(count(&jobs["sent"]) + count(&jobs["not_sent"]), sum, "{report:#}");
    }
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Percentiles grow, and there are as many jobs as there should be.
fn assert_quantiles(of: &Value, jobs: u64) {
    let quantiles = ["p50", "p90", "p99", "p99_9", "max"].map(|name| number(&of[name]));
    assert!(quantiles.is_sorted(), "{of}");
    assert_eq!(count(&of["count"]), jobs, "{of}");
    assert!(number(&of["mean"]) <= quantiles[4], "{of}");
}

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = object
        .as_object()
        .map(Map::keys)
        .expect("an object")
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn at_a_rate_as_many_jobs_are_sent_as_it_says_and_all_of_their_way_is_told() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;

    let line = "--model affine --rate 200 --spacing fixed --duration 500ms --warm-up 100ms --producers 3 --check";
    let report = measures(&scene, line).await;
    worker.drain().await;

    assert_eq!(count(&report["jobs"]["due"]), 100);
    assert_eq!(count(&report["warm_up"]["due"]), 20);
    assert_eq!(count(&report["jobs"]["checked"]), 100);
    assert_eq!(count(&report["jobs"]["wrong"]), 0);
    for part in ["whole", "late", "queue", "wait", "infer", "encode", "reply"] {
        assert_quantiles(&report["latency"][format!("{part}_ms")], 100);
    }
    assert!(number(&report["latency"]["infer_ms"]["mean"]) > 0.0, "{report:#}");
    assert!(number(&report["throughput"]["batch_rows_mean"]) >= 1.0, "{report:#}");
    assert!(number(&report["throughput"]["jobs_per_second"]) > 0.0, "{report:#}");
    assert_eq!(
        keys(&report),
        [
            "inferq_version",
            "interrupted",
            "jobs",
            "lasted_seconds",
            "latency",
            "load",
            "models",
            "reasons",
            "remarks",
            "throughput",
            "warm_up"
        ]
    );
    let load = &report["load"];
    assert_eq!(load["mode"], "open");
    assert_eq!(load["producers"], 3);
    assert_eq!(load["stages"][0]["to_jobs_per_second"], 200.0);
    scene.nothing_is_left("affine").await;
}

#[tokio::test]
async fn ramps_and_stages_send_what_their_rates_add_up_to_and_a_seed_gives_the_same_again() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let due = async |line: &str| {
        let report = measures(&scene, &format!("--model affine --warm-up 0s {line}")).await;
        count(&report["jobs"]["due"])
    };

    let stages = due("--rate 0..400@500ms,100@200ms --spacing fixed").await;
    let random = [
        due("--rate 300 --duration 300ms --seed 7").await,
        due("--rate 300 --duration 300ms --seed 7").await,
    ];
    let counted = due("--rate 1000 --jobs 30").await;
    worker.drain().await;

    assert_eq!(stages, 120);
    assert_eq!(random[0], random[1]);
    assert!((30..180).contains(&random[0]), "{random:?}");
    assert_eq!(counted, 30);
}

#[tokio::test]
async fn as_fast_as_possible_a_mix_is_sent_by_its_weights_and_measured_for_each_model() {
    let scene = Scene::new();
    let worker = scene.worker("affine,two-heads").start().await;

    let line = "--model affine=3,two-heads --jobs 200 --warm-up 0s --in-flight 8 --producers 2 --check";
    let report = measures(&scene, line).await;
    let ran = bench(&scene, "--model affine=3,two-heads --jobs 40 --warm-up 0s").await;
    worker.drain().await;

    assert_eq!(report["load"]["mode"], "closed");
    let models = report["models"].as_array().expect("models");
    for (model, (name, jobs)) in models.iter().zip([("affine", 150), ("two-heads", 50)]) {
        assert_eq!(model["name"], name);
        assert_eq!(count(&model["jobs"]), jobs);
        assert_quantiles(&model["whole_ms"], jobs);
    }
    let table = ran.ok();
    assert!(table.contains("jobs    40 due: 40 OK\n"), "{table}");
    for name in ["whole way", "  queue", "  infer", "\naffine", "\ntwo-heads"] {
        assert!(table.contains(name), "no {name:?} in {table}");
    }
    assert!(
        ran.stderr
            .contains("affine (1 row), two-heads (1 row): as fast as possible, 64 jobs under way"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn every_body_and_every_way_to_say_what_a_job_is_gives_answers_that_are_right() {
    let scene = Scene::new();
    let worker = scene
        .worker("affine,two-heads,identity-bytes,fixed,lookup")
        .start()
        .await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x.npy");
    write_npy(
        &file,
        &Array2::from_shape_fn((7, 4), |(row, column)| (row + column) as f32),
    )
    .expect("a file");
    let file = file.to_str().expect("UTF-8");
    let of = async |line: &str| {
        let report = measures(&scene, &format!("{line} --jobs 20 --warm-up 0s")).await;
        (count(&report["models"][0]["rows_per_job"]), report)
    };

    for body in ["msgpack", "json", "binary"] {
        for model in ["affine", "two-heads", "identity-bytes", "lookup"] {
            let (rows, report) = of(&format!("--model {model} --body {body} --rows 3 --check")).await;
            assert_eq!((rows, count(&report["jobs"]["checked"])), (3, 20), "{model}, {body}");
        }
    }
    let (fixed, _) = of("--model fixed --check").await;
    let (_, read) = of(&format!("--model affine --input {file} --rows 2 --check")).await;
    let (_, pinned) = of("--model affine --version 1 --check").await;
    let (_, told) = of("--models /nonexistent --model affine --shape x=4 --datatype fp32").await;
    worker.drain().await;

    assert_eq!(fixed, 4);
    assert_eq!(count(&read["models"][0]["different_bodies"]), 3);
    assert_eq!(count(&pinned["jobs"]["checked"]), 20);
    assert_eq!(count(&told["jobs"]["checked"]), 0);
}

#[tokio::test]
async fn a_worker_that_serves_another_model_than_the_repository_is_caught() {
    let scene = Scene::new();
    let other = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(other.path().join("affine")).expect("a folder");
    let first = test_models().join("affine/1");
    std::os::unix::fs::symlink(first, other.path().join("affine/1")).expect("a link");
    let worker = scene.worker("affine").repository(other.path()).start().await;

    let ran = bench(&scene, "--model affine --jobs 30 --warm-up 0s --check --json").await;
    worker.drain().await;

    ran.failed();
    assert!(
        ran.stderr
            .contains("30 answers were wrong, such as: output y, element "),
        "{ran:?}"
    );
    assert!(
        ran.stderr.contains("(version 1 answered, version 2 was run here)"),
        "{ran:?}"
    );
    assert_eq!(count(&ran.json()["jobs"]["wrong"]), 30);
    assert_accounted(&ran.json());
}

#[tokio::test]
async fn jobs_past_their_deadline_are_counted_by_their_status_and_are_no_failure() {
    let scene = Scene::new();
    let worker = scene.worker("slow").env("INFERQ_BATCH__ROWS_MAX", "1").start().await;

    let ran = bench(&scene, "--model slow --jobs 20 --warm-up 0s --deadline-ms 1 --json").await;
    worker.drain().await;

    ran.ok();
    let report = ran.json();
    assert_eq!(
        count(&report["jobs"]["answered"]["DEADLINE_EXCEEDED"]),
        20,
        "{report:#}"
    );
    assert_eq!(report["load"]["deadline_ms"], 1);
    assert!(
        report["reasons"][0]
            .as_str()
            .is_some_and(|reason| reason.starts_with("DEADLINE_EXCEEDED: "))
    );
    assert_accounted(&report);
}

#[tokio::test]
async fn a_rate_that_workers_cannot_keep_up_with_is_told_and_what_found_no_room_is_counted() {
    let scene = Scene::new();
    let worker = scene.worker("slow").env("INFERQ_BATCH__ROWS_MAX", "1").start().await;

    let line = "--model slow --rate 2000 --spacing fixed --duration 300ms --warm-up 0s --in-flight 2 --json";
    let ran = bench(&scene, line).await;
    worker.drain().await;

    ran.ok();
    let report = ran.json();
    assert_eq!(count(&report["jobs"]["due"]), 600);
    assert!(count(&report["jobs"]["not_sent"]) > 0, "{report:#}");
    assert!(count(&report["jobs"]["held"]) > 0, "{report:#}");
    let remarks = report["remarks"].to_string();
    assert!(
        remarks.contains("found no room") && remarks.contains("(--in-flight)"),
        "{remarks}"
    );
    assert_accounted(&report);
}

/// Waits until the load is about to begin, which `bench` says.
async fn begun(child: &mut Child) -> BufReader<tokio::process::ChildStderr> {
    let mut stderr = BufReader::new(child.stderr.take().expect("it is piped"));
    let mut line = String::new();
    within("bench to begin", stderr.read_line(&mut line))
        .await
        .expect("it can be read");
    assert!(line.contains("warm-up: "), "{line}");
    stderr
}

/// What became of a run whose standard error was read up to here.
async fn ended(child: Child, mut stderr: BufReader<tokio::process::ChildStderr>) -> Ran {
    let mut ran = finish(child).await;
    within("its words", stderr.read_to_string(&mut ran.stderr))
        .await
        .expect("it can be read");
    ran
}

#[tokio::test]
async fn no_more_jobs_are_under_way_than_allowed_and_ctrl_c_reports_what_was_measured_so_far() {
    let scene = Scene::new();
    let worker = scene.worker("affine").env("INFERQ_BROKER__PREFETCH", "1").start().await;

    let mut child = start(&scene, "--model affine --in-flight 7 --duration 10m --warm-up 0s");
    let stderr = begun(&mut child).await;
    // One job is the worker's at the most, all others are in the queue.
    worker.hold();
    let queue = scene.queue("affine");
    let waiting = eventually("the jobs to wait", || async {
        Some(scene.waiting(&queue).await).filter(|&waiting| waiting >= 6)
    })
    .await;
    worker.go_on();
    interrupt(&child);
    let ran = ended(child, stderr).await;
    worker.drain().await;

    assert!(waiting <= 7, "{waiting}");
    let table = ran.ok();
    assert!(table.contains("(stopped before the end)"), "{table}");
    assert!(
        !table.contains("interrupted"),
        "what was under way was answered: {table}"
    );
    scene.nothing_is_left("affine").await;
}

fn interrupt(child: &Child) {
    let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    kill_process(pid.expect("it runs"), Signal::INT).expect("it is ours");
}

#[tokio::test]
async fn what_comes_too_late_was_lost_and_is_counted_when_it_comes() {
    let scene = Scene::new();
    let worker = scene.worker("affine").env("INFERQ_BROKER__PREFETCH", "1").start().await;

    let line = "--model affine --rate 50 --duration 4s --warm-up 0s --timeout-ms 300 --body json";
    let mut child = start(&scene, &format!("{line} --json"));
    // With --json nothing is said before the end: jobs are there once the worker has run some.
    eventually("jobs to be answered", || async {
        (worker.metrics().await.sum("inferq_batches_total")? > 3.0).then_some(())
    })
    .await;
    worker.hold();
    let queue = scene.queue("affine");
    eventually("jobs to wait for longer than they are waited for", || async {
        (scene.waiting(&queue).await > 30).then_some(())
    })
    .await;
    worker.go_on();
    let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
    let ran = ended(child, stderr).await;
    worker.drain().await;

    ran.failed();
    let report = ran.json();
    assert!(count(&report["jobs"]["lost"]) > 0, "{report:#}");
    assert!(count(&report["jobs"]["late_replies"]) > 0, "{report:#}");
    assert!(
        ran.stderr.contains("jobs were lost, such as: no answer within 300ms"),
        "{ran:?}"
    );
    assert_accounted(&report);
    scene.nothing_is_left("affine").await;
}

#[tokio::test]
async fn jobs_whose_queue_goes_away_are_lost_or_unroutable_and_none_is_forgotten() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;

    let child = start(
        &scene,
        "--model affine --rate 40 --duration 1h --warm-up 0s --timeout-ms 500 --json",
    );
    eventually("jobs to be answered", || async {
        (worker.metrics().await.sum("inferq_batches_total")? > 3.0).then_some(())
    })
    .await;
    worker.sigkill();
    worker.exit().await;
    let queue = scene.queue("affine");
    eventually("jobs to wait", || async {
        // More than the worker can have answered without acking them.
        (scene.waiting(&queue).await >= 10).then_some(())
    })
    .await;
    scene.delete_queue(&queue).await;
    let producer = scene.producer().await;
    for _ in 0..50 {
        let body = Request::new([Tensor::fp32("x", &[[0.5; 4]])]).msgpack();
        producer.try_send(scene.job("affine", body)).await;
    }
    // With a worker the queue is there again. When it has answered jobs of two seconds, the others are past their time.
    let second = scene.worker("affine").start().await;
    eventually("jobs to be answered again", || async {
        (second.metrics().await.sum("inferq_replies_total")? > 80.0).then_some(())
    })
    .await;
    interrupt(&child);
    let ran = finish(child).await;
    second.drain().await;

    ran.failed();
    let report = ran.json();
    assert!(count(&report["jobs"]["lost"]) > 0, "{report:#}");
    assert!(count(&report["jobs"]["unroutable"]) > 0, "{report:#}");
    assert!(
        ran.stderr.contains("jobs were lost, ") && ran.stderr.contains("jobs came back without a queue"),
        "{ran:?}"
    );
    assert_accounted(&report);
}

#[tokio::test]
async fn the_capacity_is_where_the_backlog_begins_to_grow_and_settings_follow_from_it() {
    let scene = Scene::new();
    let worker = scene.worker("slow").env("INFERQ_BATCH__ROWS_MAX", "1").start().await;

    let goal = "--find-capacity --p99-ms 60000 --accepted-wait-ms 100000";
    let line = format!("bench --model slow {goal} --rate 20 --duration 500ms --warm-up 0s --json");
    // Not every broker tells a producer how many consumers there are, but it tells the administrator.
    let ran = scene.inferq(&line.split_whitespace().collect::<Vec<_>>()).await;
    worker.drain().await;

    ran.ok();
    let report = ran.json();
    let capacity = &report["capacity"];
    let steps = capacity["steps"].as_array().expect("steps");
    let jobs_per_second = number(&capacity["jobs_per_second"]);
    let held = steps.iter().filter(|step| step["limit"].is_null());
    let highest = held.map(|step| number(&step["jobs_per_second"])).fold(0.0, f64::max);
    assert_eq!(jobs_per_second, highest, "{report:#}");
    assert_eq!(capacity["limited_by"], "backlog", "{report:#}");
    assert_eq!(capacity["replicas_known"], true);
    let advice = &capacity["advice"];
    assert_eq!(advice["replicas"], 1);
    assert_eq!(
        count(&advice["autoscaling_value"]),
        ((jobs_per_second * 50.0) as u64).max(256),
        "{report:#}"
    );
    let carried = number(&advice["rate_value"]) / jobs_per_second;
    assert!((0.74..=0.75).contains(&carried), "{report:#}");
    assert_accounted(&report);
}

#[tokio::test]
async fn a_goal_that_no_rate_can_meet_is_said_to_be_out_of_reach() {
    let scene = Scene::new();
    let worker = scene.worker("slow").env("INFERQ_BATCH__ROWS_MAX", "1").start().await;

    let goal = "--find-capacity --p99-ms 1 --rate 400 --duration 200ms --warm-up 0s";
    let ran = bench(&scene, &format!("--model slow {goal}")).await;
    worker.drain().await;

    assert_eq!(ran.code, Some(1), "{ran:?}");
    let table = &ran.stdout;
    assert!(
        ran.stderr
            .contains("inferq: the goal of 1 ms is met at no rate: even at 50.0 jobs/s "),
        "{ran:?}"
    );
    assert!(!table.contains("capacity:"), "{table}");
    // Each rate that was tried is told, and why it was too much.
    for rate in ["400.0", "200.0", "100.0", "50.0"] {
        assert!(ran.stderr.contains(&format!("{rate} jobs/s: p99 ")), "{ran:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_measured_is_refused_in_one_sentence() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let nobody = ClosedPort::new();
    let refuses = async |line: &str, code: i32, words: &[&str]| {
        let ran = bench(&scene, line).await;
        assert_eq!(ran.code, Some(code), "{line}: {ran:?}");
        assert!(
            words.iter().all(|word| ran.stderr.contains(word)),
            "{line}: no {words:?} in {ran:?}"
        );
        assert!(ran.stdout.is_empty(), "{line}: {ran:?}");
    };

    let missing = [
        "`two-heads` does not answer a first job",
        "there is no queue for model `two-heads`",
    ];
    refuses("--model two-heads", 1, &missing).await;
    let misshapen = [
        "does not answer a first job",
        "INVALID_ARGUMENT: input `x`: shape [1, 3] came",
    ];
    refuses("--model affine --shape 3", 1, &misshapen).await;
    refuses("--model affine --version 9 --shape 4", 1, &["NOT_FOUND", "version `9`"]).await;
    let no_repository = [
        "no load can be made for model `affine`",
        "--shape and --datatype",
        "/nonexistent",
    ];
    refuses("--models /nonexistent --model affine", 1, &no_repository).await;
    refuses(
        "--model affine --shape 3 --check",
        1,
        &["FP32 [1,3] is sent, the model takes x FP32"],
    )
    .await;
    let unreachable = format!("--model affine --broker amqp://guest:guest@{}", nobody.address());
    refuses(&unreachable, 1, &["no connection to the broker"]).await;
    refuses(
        "--model affine,two-heads --version 1",
        2,
        &["inferq: --version is about one model"],
    )
    .await;
    refuses("--model affine --rate fast", 2, &["`fast` is no rate: allowed are"]).await;
    refuses("--model affine --find-capacity", 2, &["--p99-ms"]).await;
    worker.drain().await;
}
