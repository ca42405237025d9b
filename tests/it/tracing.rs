//! Does a job whose producer traces it leave the spans of its way, and nobody else a trace of anything?

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use crate::support::collector::{Collector, hex, texts};
use crate::support::link::ClosedPort;
use crate::support::worker::Setup;
use crate::support::{Job, Request, Scene, Tensor, Worker, eventually};

const PARENT: &str = "b7ad6b7169203331";

/// A trace of its own for each number.
fn trace_id(number: u64) -> String {
    format!("{:032x}", 0x0af7_6519_0000_0000_u64 + number)
}

fn traced(job: Job, number: u64, flags: &str) -> Job {
    job.text_header("traceparent", &format!("00-{}-{PARENT}-{flags}", trace_id(number)))
}

fn job(scene: &Scene) -> Job {
    scene.job("affine", Request::new([Tensor::fp32("x", &[[1.0; 4]])]).msgpack())
}

fn worker(scene: &Scene, endpoint: &str) -> Setup {
    scene.worker("affine").env("INFERQ_TELEMETRY__OTLP_ENDPOINT", endpoint)
}

fn unix_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

/// The threads of a worker, by name.
fn threads(worker: &Worker) -> BTreeSet<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", worker.pid())).expect("the worker lives");
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).collect()
}

#[tokio::test]
async fn a_sampled_job_has_a_span_of_each_phase_under_its_producers() {
    let (scene, collector) = (Scene::new(), Collector::start().await);
    let worker = worker(&scene, &collector.endpoint())
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20of-the-test")
        .start()
        .await;
    let mut producer = scene.producer().await;

    let sent = traced(job(&scene), 1, "01").text_header("tracestate", "vendor=value");
    let reply = producer.call(sent.message_id("job-1").timestamp(unix_s() - 3)).await;
    let trace = collector.trace(&trace_id(1), 7).await;
    worker.drain().await;

    assert_eq!(reply.status(), "OK");
    let parent = format!("00-{}-{PARENT}-01", trace_id(1));
    assert_eq!(reply.header("traceparent"), Some(parent), "the job's own");
    let whole = trace.span(&format!("process {}", scene.queue("affine")));
    assert_eq!(hex(&whole.parent_span_id), PARENT);
    assert_eq!(whole.kind(), SpanKind::Consumer);
    assert_eq!(whole.trace_state, "vendor=value");
    let attributes = texts(&whole.attributes);
    for (name, value) in [
        ("messaging.system", "rabbitmq"),
        ("messaging.destination.name", &scene.queue("affine")),
        ("messaging.operation.type", "process"),
        ("messaging.message.id", "job-1"),
        ("inferq.model.name", "affine"),
        ("inferq.model.version", "2"),
        ("inferq.rows", "1"),
        ("inferq.batch.rows", "1"),
        ("inferq.redelivered", "false"),
        ("inferq.status", "OK"),
    ] {
        assert_eq!(attributes.get(name).map(String::as_str), Some(value), "{name}");
    }
    let phases = ["queue", "decode", "batch", "infer", "reply", "settle"].map(|name| trace.span(name));
    assert_eq!(trace.0.len(), 1 + phases.len(), "{:?}", trace.names());
    in_order_within(whole, &phases);
    assert!(
        phases[0].end_time_unix_nano - phases[0].start_time_unix_nano >= 2_000_000_000,
        "the producer's timestamp"
    );

    let taken = collector.taken();
    for (name, value) in [
        ("service.name", "inferq"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("deployment.environment.name", "test"),
    ] {
        assert_eq!(taken.resource.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(taken.resource.contains_key("service.instance.id"));
    assert_eq!(taken.headers["authorization"], "Bearer of-the-test");
    assert_eq!(taken.headers["content-type"], "application/x-protobuf");
}

/// Every phase lies within the whole, and begins when the one before it has ended, or later.
fn in_order_within(whole: &Span, phases: &[&Span]) {
    let mut at = whole.start_time_unix_nano;
    for span in phases {
        assert_eq!(span.parent_span_id, whole.span_id, "{}", span.name);
        assert!(span.start_time_unix_nano >= at, "{} begins too early", span.name);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{}", span.name);
        at = span.end_time_unix_nano;
    }
    assert_eq!(at, whole.end_time_unix_nano, "the job ends with its last phase");
}

#[tokio::test]
async fn jobs_that_ran_together_lead_to_each_other() {
    let (scene, collector) = (Scene::new(), Collector::start().await);
    // A batch waits for its third row, however long that takes.
    let worker = worker(&scene, &collector.endpoint())
        .env("INFERQ_BATCH__ROWS_MAX", "3")
        .env("INFERQ_BATCH__LINGER_MS", "60000")
        .env("OTEL_SERVICE_NAME", "a-name-of-its-own")
        .start()
        .await;
    let mut producer = scene.producer().await;

    let ids = producer
        .send_all((1..=3).map(|number| traced(job(&scene), number, "01")))
        .await;
    producer.replies(&ids).await;
    let mut traces = Vec::new();
    for number in 1..=3 {
        traces.push(collector.trace(&trace_id(number), 6).await);
    }
    worker.drain().await;

    let links = |span: &Span| -> BTreeSet<Vec<u8>> { span.links.iter().map(|link| link.span_id.clone()).collect() };
    let whole = format!("process {}", scene.queue("affine"));
    let (led, leaders): (Vec<_>, Vec<_>) = traces.iter().partition(|trace| trace.span("infer").links.len() == 1);
    let [leader] = leaders[..] else {
        panic!("{} runs", leaders.len())
    };
    assert_eq!(
        links(leader.span("infer")),
        led.iter().map(|trace| trace.span(&whole).span_id.clone()).collect()
    );
    for trace in &led {
        assert_eq!(
            links(trace.span("infer")),
            BTreeSet::from([leader.span("infer").span_id.clone()])
        );
        assert_eq!(texts(&trace.span("infer").attributes)["inferq.batch.rows"], "3");
    }
    assert_eq!(collector.taken().resource["service.name"], "a-name-of-its-own");
}

#[tokio::test]
async fn what_the_producer_does_not_sample_or_breaks_is_answered_and_leaves_no_span() {
    let (scene, collector) = (Scene::new(), Collector::start().await);
    let worker = worker(&scene, &collector.endpoint()).start().await;
    let mut producer = scene.producer().await;
    let long = "0".repeat(10_000);

    let broken =
        ["", "01", "00-zz-zz-01", "ff-00-00-01", &long].map(|text| job(&scene).text_header("traceparent", text));
    let number = job(&scene).header("traceparent", lapin::types::AMQPValue::LongLongInt(1));
    let others = [traced(job(&scene), 1, "00"), job(&scene), number];
    let ids = producer.send_all(broken.into_iter().chain(others)).await;
    let replies = producer.replies(&ids).await;
    producer.call(traced(job(&scene), 2, "01")).await;
    // What a draining worker has left is sent before it ends.
    worker.drain().await;

    assert!(replies.values().flatten().all(|reply| reply.status() == "OK"));
    let seen: BTreeSet<String> = collector.taken().spans.iter().map(|span| hex(&span.trace_id)).collect();
    assert_eq!(seen, BTreeSet::from([trace_id(2)]));
}

#[tokio::test]
async fn a_job_that_fails_says_so_in_its_trace_without_a_word_of_its_body() {
    let (scene, collector) = (Scene::new(), Collector::start().await);
    let worker = worker(&scene, &collector.endpoint()).start().await;
    let producer = scene.producer().await;

    let bad = scene.job(
        "affine",
        Request::new([Tensor::fp32("a-secret-name", &[[1.0; 4]])]).msgpack(),
    );
    producer.send(traced(bad.fire_and_forget(), 1, "01")).await;
    let trace = collector.trace(&trace_id(1), 4).await;
    worker.drain().await;

    let whole = trace.span(&format!("process {}", scene.queue("affine")));
    let status = whole.status.clone().expect("a status");
    assert_eq!(
        (status.code(), &*status.message),
        (StatusCode::Error, "INVALID_ARGUMENT")
    );
    in_order_within(whole, &["decode", "dead letter", "settle"].map(|name| trace.span(name)));
    assert!(!format!("{trace:?}").contains("a-secret-name"));
}

#[tokio::test]
async fn a_collector_that_is_away_costs_spans_and_no_job() {
    let scene = Scene::new();
    let port = ClosedPort::new();
    let worker = worker(&scene, &format!("http://{}", port.address())).start().await;
    let mut producer = scene.producer().await;

    let ids = producer
        .send_all((0..20).map(|number| traced(job(&scene), number, "01")))
        .await;
    let replies = producer.replies(&ids).await;
    eventually("dropped spans to be counted", || async {
        (worker.metrics().await.sum("inferq_spans_dropped_total")? > 0.0).then_some(())
    })
    .await;
    worker.drain().await;

    assert_eq!(
        replies
            .values()
            .flatten()
            .filter(|reply| reply.status() == "OK")
            .count(),
        20
    );
}

#[tokio::test]
async fn a_collector_that_refuses_is_told_of_once_and_again_when_it_takes_them() {
    let (scene, collector) = (Scene::new(), Collector::start().await);
    let worker = worker(&scene, &collector.endpoint()).start().await;
    let mut producer = scene.producer().await;

    collector.refuse(true);
    let mut dropped = 0.0;
    for number in 1..=3 {
        producer.call(traced(job(&scene), number, "01")).await;
        dropped = eventually("more spans to be dropped", || async {
            let now = worker.metrics().await.sum("inferq_spans_dropped_total")?;
            (now > dropped).then_some(now)
        })
        .await;
    }
    collector.refuse(false);
    producer.call(traced(job(&scene), 4, "01")).await;
    collector.trace(&trace_id(4), 6).await;
    worker
        .logged("spans to be exported again", |line| {
            line.contains("exported again").then_some(())
        })
        .await;
    worker.drain().await;

    let log = worker.log();
    let warnings: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("spans cannot be exported"))
        .collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].contains(&collector.endpoint()), "{}", warnings[0]);
}

#[tokio::test]
async fn a_collector_that_never_answers_holds_up_neither_jobs_nor_the_end() {
    let scene = Scene::new();
    // Takes connections, since the system does, and reads nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", silent.local_addr().expect("it is bound"));
    let worker = worker(&scene, &endpoint)
        // Whoever waits for this waits longer than a test does.
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", "600000")
        .start()
        .await;
    let mut producer = scene.producer().await;

    let ids = producer
        .send_all((0..20).map(|number| traced(job(&scene), number, "01")))
        .await;
    let replies = producer.replies(&ids).await;
    worker.drain().await;

    assert_eq!(
        replies
            .values()
            .flatten()
            .filter(|reply| reply.status() == "OK")
            .count(),
        20
    );
    assert!(
        worker.log().contains("not all spans were exported in time"),
        "{}",
        worker.log()
    );
}

#[tokio::test]
async fn without_a_collector_nothing_is_there_that_exports() {
    let (scene, other) = (Scene::new(), Scene::new());
    let collector = Collector::start().await;
    let off = scene
        .worker("affine")
        // The key alone decides.
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .start()
        .await;
    let on = worker(&other, &collector.endpoint()).start().await;
    let mut producer = scene.producer().await;

    producer.call(traced(job(&scene), 1, "01")).await;
    let (without, with) = (threads(&off), threads(&on));
    off.drain().await;
    on.drain().await;

    assert!(!without.contains("traces"), "{without:?}");
    assert!(with.contains("traces"), "{with:?}");
    assert_eq!(collector.taken().spans.len(), 0);
}

#[tokio::test]
async fn a_line_of_a_job_has_its_trace_whether_it_is_sampled_or_not() {
    let scene = Scene::new();
    let worker = scene
        .worker("affine")
        .env("INFERQ_TELEMETRY__LOG", "inferq=debug")
        .start()
        .await;
    let mut producer = scene.producer().await;

    for (number, flags) in [(1, "01"), (2, "00")] {
        producer.call(traced(job(&scene), number, flags)).await;
    }
    producer
        .call(job(&scene).text_header("traceparent", "none-at-all"))
        .await;
    let line = |number| move |line: &str| line.contains(&trace_id(number)).then(|| line.to_owned());
    let lines = [
        worker.logged("the first", line(1)).await,
        worker.logged("the second", line(2)).await,
    ];
    worker.drain().await;

    for text in lines {
        let line: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(line["message"], "job done", "{text}");
        assert_eq!(
            (&line["code"], &line["model.name"]),
            (&"OK".into(), &"affine".into()),
            "{text}"
        );
        assert!(Duration::from_micros(line["total_us"].as_u64().expect("a number")) > Duration::ZERO);
    }
    assert!(!worker.log().contains("none-at-all"), "{}", worker.log());
}
