//! Does a worker tell what it does, and nothing to anybody else?

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::sockets::peers;
use crate::support::worker::ending;
use crate::support::{Broker, Job, Request, Scene, Tensor, eventually};

fn job(scene: &Scene) -> Job {
    scene.job("affine", Request::new([Tensor::fp32("x", &[[1.0; 4]])]).msgpack())
}

#[tokio::test]
async fn a_worker_that_serves_is_live_and_ready() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;

    assert_eq!(worker.get("/livez").await.0, 200);
    assert_eq!(worker.get("/readyz").await.0, 200);
    assert_eq!(worker.get("/nothing-here").await.0, 404);
}

#[tokio::test]
async fn a_ready_worker_logs_where_it_can_be_asked() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;

    let asked = worker.telemetry().await.to_string();

    let log = worker.log();
    let ready = log.lines().find(|line| line.contains(r#""message":"ready""#));
    assert!(
        ready.is_some_and(|line| line.contains(&asked)),
        "{asked} is not in {ready:?}"
    );
}

#[tokio::test]
async fn a_worker_without_a_broker_is_live_but_not_ready() {
    let scene = Scene::new();
    let port = crate::support::link::ClosedPort::new();
    let uri = crate::support::link::through(&scene.uri, port.address());
    let worker = scene.worker("affine").env("INFERQ_BROKER__URI", uri).spawn();

    worker.unready_because("connect").await;

    assert_eq!(worker.get("/livez").await.0, 200);
}

#[tokio::test]
async fn the_metrics_count_what_was_done() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let ids = producer.send_all(std::iter::repeat_n(job(&scene), 10)).await;
    producer.replies(&ids).await;
    let bad = scene.job("affine", Request::new([Tensor::fp32("z", &[[1.0; 4]])]).msgpack());
    producer.call(bad).await.error("INVALID_ARGUMENT");
    // A reply may be here before its confirm is there.
    let metrics = eventually("every job to be settled", || async {
        let metrics = worker.metrics().await;
        (metrics.sum("inferq_jobs_in_hand") == Some(0.0)).then_some(metrics)
    })
    .await;

    assert_eq!(metrics.sum("inferq_batch_rows_sum"), Some(10.0), "{}", metrics.text());
    assert_eq!(metrics.sum("inferq_jobs_total"), Some(11.0), "{}", metrics.text());
    assert_eq!(
        metrics.sum("inferq_receipts_dropped_total"),
        Some(0.0),
        "{}",
        metrics.text()
    );
}

#[tokio::test]
async fn the_metrics_are_well_formed_and_named_by_the_rules() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    producer
        .call(job(&scene).message_id("an-id-that-must-be-no-label"))
        .await;
    let metrics = worker.metrics().await;

    let typed: BTreeSet<&str> = metrics
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let own = typed.iter().filter(|name| name.starts_with("inferq_")).count();
    assert!(own > 0, "no metric of our own");
    for line in metrics.text().lines().filter(|line| line.starts_with("# TYPE inferq_")) {
        let counter = line.ends_with(" counter");
        assert_eq!(counter, line.contains("_total counter"), "{line}");
    }
    assert!(!metrics.text().contains("an-id-that-must-be-no-label"));
    assert!(!metrics.text().contains(producer.reply_queue()));
}

#[tokio::test]
async fn the_time_in_the_queue_is_that_since_the_producers_timestamp() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();

    let waited = worker.metrics().await;
    producer.call(job(&scene).timestamp(now - 7200)).await;
    // The clock of another machine may be ahead.
    producer.call(job(&scene).timestamp(now + 7200)).await;
    producer.call(job(&scene)).await;
    let metrics = worker.metrics().await;

    for before in ["inferq_queue_wait_seconds_count", "inferq_jobs_without_timestamp_total"] {
        assert_eq!(waited.sum(before), Some(0.0), "{before}");
    }
    let value = |name: &str| metrics.sum(name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(value("inferq_queue_wait_seconds_count"), 2.0);
    assert!((7199.0..7300.0).contains(&value("inferq_queue_wait_seconds_sum")));
    assert_eq!(value("inferq_jobs_without_timestamp_total"), 1.0);
    let over_an_hour = r#"inferq_queue_wait_seconds_bucket{model="affine",le="5000"} 1"#;
    assert!(metrics.text().contains(over_an_hour), "{}", metrics.text());
    assert_eq!(value("inferq_decode_duration_seconds_count"), 3.0);
}

#[tokio::test]
async fn what_is_done_with_jobs_moves_the_metrics_that_say_so() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    producer.call(job(&scene)).await;
    producer.send(job(&scene).reply_to("no-such-queue")).await;
    let bad = scene.job("affine", Request::new([Tensor::fp32("z", &[[1.0; 4]])]).msgpack());
    producer.send(bad.fire_and_forget()).await;
    scene.until_waiting(&scene.dead_queue("affine"), 2).await;
    let metrics = eventually("every ack to be measured", || async {
        let metrics = worker.metrics().await;
        (metrics.sum("inferq_settle_duration_seconds_count") == Some(3.0)).then_some(metrics)
    })
    .await;
    worker.drain().await;

    for series in [
        r#"inferq_dead_letters_total{code="UNROUTABLE_REPLY",model="affine"} 1"#,
        r#"inferq_dead_letters_total{code="INVALID_ARGUMENT",model="affine"} 1"#,
        r#"inferq_dead_letters_total{code="INTERNAL",model="affine"} 0"#,
        r#"inferq_dead_letters_total{code="NOT_FOUND",model="affine"} 0"#,
        r#"inferq_replies_unroutable_total{model="affine"} 1"#,
        r#"inferq_redelivered_total{model="affine"} 0"#,
        "inferq_generations_total 1",
        r#"inferq_worker_state{state="ready"} 1"#,
        r#"inferq_worker_state{state="draining"} 0"#,
        "inferq_bytes_in_hand 0",
        "inferq_bytes_in_hand_limit 4294967296",
        "inferq_spans_dropped_total 0",
    ] {
        let shown = metrics.text().lines().any(|line| line == series);
        assert!(shown, "{series} is missing in {}", metrics.text());
    }
    let build = |line: &&str| line.starts_with("inferq_build_info{onnxruntime=\"1.");
    let build = metrics.text().lines().find(build).expect("the version of ONNX Runtime");
    assert!(
        build.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"} 1")),
        "{build}"
    );
    assert!(
        metrics
            .text()
            .contains(r#"inferq_model_info{default="true",digest="",model="affine",version="2"} 1"#)
    );
    let rows = |line: &&str| {
        line.starts_with("inferq_model_rows_info{model=\"affine\",") && line.ends_with("version=\"2\"} 1")
    };
    let rows = metrics.text().lines().find(rows).expect("how its rows relate");
    assert!(rows.contains("relation=\"independent\""), "{rows}");
    assert!(metrics.sum("inferq_model_load_duration_seconds") > Some(0.0));
    assert!(metrics.sum("process_resident_memory_bytes") > Some(0.0));
}

#[tokio::test]
async fn no_job_makes_a_series_that_was_not_there_before() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;
    let series = || async {
        let metrics = eventually("the backlog to be shown", || async {
            let metrics = worker.metrics().await;
            metrics.sum("inferq_backlog_seconds").map(|_| metrics)
        });
        let text = metrics.await.text().to_owned();
        let names = text.lines().filter(|line| !line.starts_with('#'));
        let names = names.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()));
        names.collect::<BTreeSet<String>>()
    };

    let before = series().await;
    for number in 0..5 {
        let odd = job(&scene).text_header("inferq-model-version", &format!("version-{number}"));
        let odd = odd.text_header("traceparent", &format!("trace-{number}"));
        producer.call(odd.message_id(&format!("id-{number}"))).await;
        producer.send(job(&scene).reply_to(&format!("nowhere-{number}"))).await;
    }
    scene.until_waiting(&scene.dead_queue("affine"), 5).await;
    let after = series().await;
    worker.drain().await;

    assert_eq!(after, before);
}

#[tokio::test]
async fn promtool_finds_nothing_amiss() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;
    producer.call(job(&scene)).await;

    let metrics = worker.metrics().await;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed; `make setup` sees to it");
    let mut stdin = promtool.stdin.take().expect("it is piped");
    stdin.write_all(metrics.text().as_bytes()).expect("promtool reads");
    drop(stdin);
    let checked = promtool.wait_with_output().expect("promtool ends");

    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success() && said.is_empty(), "{said}");
}

#[tokio::test]
async fn a_worker_talks_to_its_broker_and_to_nobody_else_and_writes_nothing() {
    let broker = Broker::shared();
    let scene = Scene::new();
    let home = tempfile::tempdir().expect("a temporary folder");
    let mut worker = scene
        .worker("affine")
        .env("HOME", home.path())
        .env("TMPDIR", home.path());
    // With any of these the runtime would keep quiet by itself, and nothing would be proved.
    for name in [
        "CI",
        "GITHUB_ACTIONS",
        "GITLAB_CI",
        "TF_BUILD",
        "BUILD_ID",
        "BUILD_NUMBER",
        "JENKINS_URL",
        "TRAVIS",
        "CIRCLECI",
        "APPVEYOR",
        "TEAMCITY_VERSION",
    ] {
        worker = worker.without_env(name);
    }
    for name in [
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "XDG_STATE_HOME",
        "ORT_DISABLE_TELEMETRY",
    ] {
        worker = worker.without_env(name);
    }
    let worker = worker.start().await;
    let mut producer = scene.producer().await;

    let started = peers(worker.pid());
    let ids = producer.send_all(std::iter::repeat_n(job(&scene), 100)).await;
    producer.replies(&ids).await;
    let served = peers(worker.pid());
    worker.drain().await;

    let expected = BTreeSet::from([SocketAddr::from((Ipv4Addr::LOCALHOST, broker.amqp_port()))]);
    assert_eq!(started, expected);
    assert_eq!(served, expected);
    assert_eq!(files(home.path()), Vec::<PathBuf>::new());
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// A library in the place of ONNX Runtime that notes, when it is loaded, whether telemetry has been turned off.
const SPY: &str = r#"
use std::ffi::{CStr, c_char};

unsafe extern "C" {
    fn getenv(name: *const c_char) -> *const c_char;
}

extern "C" fn note() {
    let read = |name: &CStr| unsafe {
        let value = getenv(name.as_ptr());
        if value.is_null() { "unset".to_owned() } else { CStr::from_ptr(value).to_string_lossy().into_owned() }
    };
    let _ = std::fs::write(read(c"SPY_NOTES"), read(c"ORT_DISABLE_TELEMETRY"));
}

#[used]
#[unsafe(link_section = ".init_array")]
static ON_LOAD: extern "C" fn() = note;
"#;

#[tokio::test]
async fn telemetry_of_onnx_runtime_is_off_before_the_library_is_loaded() {
    let scene = Scene::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (source, library, notes) = (
        folder.path().join("spy.rs"),
        folder.path().join("libspy.so"),
        folder.path().join("notes"),
    );
    std::fs::write(&source, SPY).expect("a writable folder");
    let built = Command::new("rustc")
        .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
        .args([&library, &source])
        .output()
        .expect("rustc runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let worker = scene
        .worker("affine")
        .without_env("ORT_DISABLE_TELEMETRY")
        .env("ORT_DYLIB_PATH", &library);
    let (code, output) = ending(worker.env("SPY_NOTES", &notes)).await;

    let noted = std::fs::read_to_string(&notes).unwrap_or_else(|error| panic!("never loaded: {error}\n{output}"));
    assert_eq!(noted, "1", "ORT_DISABLE_TELEMETRY when the library was loaded");
    assert_eq!(code, 1, "a library without ONNX Runtime in it is refused: {output}");
}
