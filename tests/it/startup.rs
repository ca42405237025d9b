//! Does a worker that cannot serve say why, in one sentence, to the one who can change it?

use std::path::Path;

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};

use crate::support::link::{ClosedPort, through};
use crate::support::scene::as_worker;
use crate::support::worker::{Setup, ending};
use crate::support::{Broker, Request, Scene, Tensor, root, test_models};

/// Checks that the worker ends with `code` and that some line of its output has all of `words`.
async fn ends_with(setup: Setup, code: i32, words: &[&str]) -> String {
    let (ended, output) = ending(setup).await;
    assert_eq!(ended, code, "{output}");
    let said = output.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(said, "no line has all of {words:?}:\n{output}");
    assert!(!output.contains("panicked"), "{output}");
    output
}

#[tokio::test]
async fn a_missing_onnx_runtime_is_named_by_its_path() {
    let scene = Scene::new();
    let worker = scene
        .worker("affine")
        .env("ORT_DYLIB_PATH", "/nonexistent/libonnxruntime.so");

    ends_with(worker, 1, &["/nonexistent/libonnxruntime.so", "ORT_DYLIB_PATH"]).await;
}

#[tokio::test]
async fn a_file_that_is_no_onnx_runtime_is_named_by_its_path() {
    let scene = Scene::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let library = folder.path().join("libonnxruntime.so");
    std::fs::write(&library, "not a library").expect("a writable folder");
    let path = library.to_str().expect("UTF-8");

    ends_with(scene.worker("affine").env("ORT_DYLIB_PATH", path), 1, &[path]).await;
}

// Fault 30.
#[tokio::test]
async fn a_gpu_that_the_library_cannot_use_is_refused_with_what_to_do() {
    let scene = Scene::new();
    let worker = scene.worker("affine").env("INFERQ_WORKER__DEVICE", "cuda:0");

    let words = ["affine", "cuda:0", "libonnxruntime.so", "ORT_DYLIB_PATH"];
    let output = ends_with(worker, 1, &words).await;

    assert!(!output.contains("onnxruntime_src"), "{output}");
}

#[tokio::test]
async fn a_model_that_asks_for_a_gpu_itself_is_refused_as_well() {
    let scene = Scene::new();
    let repository = tempfile::tempdir().expect("a temporary folder");
    let model = repository.path().join("affine");
    std::fs::create_dir(&model).expect("a folder");
    std::os::unix::fs::symlink(test_models().join("affine/2"), model.join("2")).expect("a link");
    std::fs::write(model.join("model.toml"), "device = \"cuda:3\"").expect("a file");

    ends_with(scene.worker("affine").repository(repository.path()), 1, &["cuda:3"]).await;
}

/// A worker whose only model is one of `tests/models/broken`.
fn broken(scene: &Scene, model: &str) -> Setup {
    scene.worker(model).repository(&root().join("tests/models/broken"))
}

#[tokio::test]
async fn a_corrupt_model_is_named_by_its_file() {
    let scene = Scene::new();

    ends_with(broken(&scene, "corrupt"), 1, &["corrupt/1/model.onnx"]).await;
}

#[tokio::test]
async fn a_model_that_was_cut_is_named_by_its_file() {
    let scene = Scene::new();

    ends_with(broken(&scene, "cut"), 1, &["cut/1/model.onnx"]).await;
}

#[tokio::test]
async fn a_model_with_another_digest_is_named_with_both_digests() {
    let scene = Scene::new();
    let wanted = "24ac1e68";

    let output = ends_with(broken(&scene, "wrong-digest"), 1, &["wrong-digest", "sha256"]).await;

    let toml =
        std::fs::read_to_string(root().join("tests/models/broken/wrong-digest/model.toml")).expect("the model's file");
    let digest = toml
        .split("sha256:")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .unwrap_or(wanted);
    assert!(output.contains(digest), "{digest} is not in:\n{output}");
}

#[tokio::test]
async fn a_model_that_answers_otherwise_than_recorded_is_named_by_its_golden_file() {
    let scene = Scene::new();

    ends_with(broken(&scene, "wrong-golden"), 1, &["wrong-golden/1/golden.npz"]).await;
}

#[tokio::test]
async fn a_broken_model_beside_a_good_one_keeps_the_worker_from_being_ready_or_from_starting() {
    let scene = Scene::new();
    let repository = tempfile::tempdir().expect("a temporary folder");
    let link = |from: &Path, name: &str| {
        std::os::unix::fs::symlink(from.join(name), repository.path().join(name)).expect("a link");
    };
    link(&test_models(), "affine");
    link(&root().join("tests/models/broken"), "wrong-golden");
    let worker = scene
        .worker("affine,wrong-golden")
        .repository(repository.path())
        .spawn();

    worker
        .logged("the broken model to be named", |line| {
            line.contains("wrong-golden").then_some(())
        })
        .await;

    // Whether it ends or serves the rest is not laid down; that nobody takes it for healthy is.
    assert!(!worker.log().contains(r#""message":"ready""#), "{}", worker.log());
}

#[tokio::test]
async fn a_model_that_is_not_in_the_repository_is_named_with_what_there_is() {
    let scene = Scene::new();

    ends_with(scene.worker("affine,no-such-model"), 1, &["no-such-model"]).await;
}

#[tokio::test]
async fn a_repository_that_is_not_there_is_named() {
    let scene = Scene::new();

    let (code, output) = ending(scene.worker("affine").repository(Path::new("/nonexistent/models"))).await;

    assert!([1, 2].contains(&code), "{code}: {output}");
    assert!(output.contains("/nonexistent/models"), "{output}");
}

#[tokio::test]
async fn a_worker_waits_for_a_broker_that_is_not_there_yet_and_serves_once_it_is() {
    let broker = Broker::shared();
    let scene = Scene::new();
    let port = ClosedPort::new();
    let address = port.address();
    let password = password(broker.uri());
    let worker = scene
        .worker("affine")
        .env("INFERQ_BROKER__URI", through(&as_worker(broker.uri()), address))
        .spawn();

    let reason = worker.unready_because("connect").await;
    worker
        .logged("a line with host and port", |line| {
            line.contains(&address.to_string()).then_some(())
        })
        .await;
    let _link = port.open(broker.amqp_port());
    worker.ready_again().await;
    let mut producer = scene.producer().await;
    let body = Request::new([Tensor::fp32("x", &[[1.0; 4]])]).msgpack();
    let reply = producer.call(scene.job("affine", body)).await;
    worker.drain().await;

    assert_eq!(reply.status(), "OK");
    assert!(!reason.contains(&password), "{reason}");
    assert!(!worker.log().contains(&password), "the password is in the log");
}

/// The password in a broker's URI.
fn password(uri: &str) -> String {
    let authority = uri
        .split("://")
        .nth(1)
        .and_then(|rest| rest.rsplit_once('@'))
        .expect("a URI with a password")
        .0;
    authority.split_once(':').expect("user and password").1.to_owned()
}

#[tokio::test]
async fn a_wrong_password_is_reported_without_showing_it() {
    let broker = Broker::shared();
    let scene = Scene::new();
    let wrong = broker.uri().replace(&password(broker.uri()), "hunter2-is-wrong");
    let worker = scene.worker("affine").env("INFERQ_BROKER__URI", wrong).spawn();

    worker
        .logged("a line about the refusal", |line| {
            let line = line.to_lowercase();
            (line.contains("access_refused") || line.contains("access refused") || line.contains("refused"))
                .then_some(())
        })
        .await;
    worker.unready_because("refused").await;
    worker.sigterm();
    worker.exit().await;

    assert!(!worker.log().contains("hunter2"), "{}", worker.log());
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_address() {
    let scene = Scene::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("a bound port").to_string();

    ends_with(
        scene.worker("affine").env("INFERQ_TELEMETRY__LISTEN", &address),
        1,
        &[&address],
    )
    .await;
}

#[tokio::test]
async fn a_queue_of_another_type_is_named_with_the_argument_that_differs() {
    let scene = Scene::new();
    scene.declare_queue(&scene.queue("affine")).await;

    // Which of several arguments is named is the broker's choice.
    ends_with(scene.worker("affine"), 3, &[&scene.queue("affine"), "'x-"]).await;
}

#[tokio::test]
async fn a_queue_with_another_delivery_limit_is_named_with_the_argument_that_differs() {
    let scene = Scene::new();
    scene
        .worker("affine")
        .env("INFERQ_TOPOLOGY__DELIVERY_LIMIT", "3")
        .start()
        .await
        .drain()
        .await;

    let other = scene.worker("affine").env("INFERQ_TOPOLOGY__DELIVERY_LIMIT", "4");
    ends_with(other, 3, &[&scene.queue("affine"), "x-delivery-limit"]).await;
}

#[tokio::test]
async fn an_exchange_of_another_kind_is_named() {
    let scene = Scene::new();
    let (connection, channel) = scene.open().await;
    let durable = lapin::options::ExchangeDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let kind = lapin::ExchangeKind::Fanout;
    channel
        .exchange_declare(scene.prefix.as_str().into(), kind, durable, FieldTable::default())
        .await
        .expect("an exchange");
    connection.close(200, "done".into()).await.ok();

    ends_with(scene.worker("affine"), 3, &[&scene.prefix, "exchange"]).await;
}

#[tokio::test]
async fn every_fault_of_the_configuration_is_listed_at_once() {
    let scene = Scene::new();
    let worker = scene
        .worker("affine")
        .env("INFERQ_BROKER__PREFETCH", "0")
        .env("INFERQ_BATCH__ROWS_MAX", "many")
        .env("INFERQ_TOPOLOGY__QUEUE_TYPE", "stream")
        .env("INFERQ_REPLY__UNROUTABLE", "shrug")
        .env("INFERQ_TELEMETRY__LISTEN", "somewhere");

    let (code, output) = ending(worker).await;

    assert_eq!(code, 2, "{output}");
    for key in [
        "broker.prefetch",
        "batch.rows_max",
        "topology.queue_type",
        "reply.unroutable",
        "telemetry.listen",
    ] {
        assert!(output.contains(key), "{key} is not in:\n{output}");
    }
    for allowed in ["quorum", "classic", "dead-letter", "discard"] {
        assert!(output.contains(allowed), "{allowed} is not in:\n{output}");
    }
}

#[tokio::test]
async fn an_unknown_key_is_a_fault_of_the_configuration() {
    let scene = Scene::new();

    let (code, output) = ending(scene.worker("affine").env("INFERQ_BATCH__ROWS_MAXIMUM", "7")).await;

    assert_eq!(code, 2, "{output}");
    assert!(output.to_lowercase().contains("rows_maximum"), "{output}");
}

#[tokio::test]
async fn a_broken_configuration_does_not_show_the_password() {
    let scene = Scene::new();
    let worker = scene
        .worker("affine")
        .env(
            "INFERQ_BROKER__URI",
            "amqp://user:hunter2-secret@127.0.0.1:notaport/%2f",
        )
        .env("INFERQ_BROKER__PREFETCH", "0");

    let (code, output) = ending(worker).await;

    assert_eq!(code, 2, "{output}");
    assert!(output.contains("broker.uri"), "{output}");
    assert!(!output.contains("hunter2"), "{output}");
}

#[tokio::test]
async fn a_worker_that_may_only_check_the_topology_declares_nothing_and_waits_for_it() {
    let scene = Scene::new();

    let worker = scene.worker("affine").env("INFERQ_TOPOLOGY__MODE", "check").spawn();
    worker
        .logged("what is missing", |line| line.contains(&scene.prefix).then_some(()))
        .await;
    let declared = scene.exists(&scene.queue("affine")).await;
    scene.declare("affine").await;
    worker.ready_again().await;
    worker.drain().await;

    assert!(!declared, "it declared a queue");
}

#[tokio::test]
async fn the_queues_are_what_the_contract_says() {
    let scene = Scene::new();
    scene
        .worker("affine")
        .env("INFERQ_TOPOLOGY__DELIVERY_LIMIT", "5")
        .start()
        .await
        .drain()
        .await;

    // A declaration of the same arguments is accepted; of any other, refused.
    let (connection, channel) = scene.open().await;
    let mut arguments = FieldTable::default();
    for (name, value) in [
        ("x-queue-type", "quorum"),
        ("x-dead-letter-exchange", format!("{}.dead", scene.prefix).as_str()),
        ("x-dead-letter-strategy", "at-least-once"),
        // Without it, what was published straight to the queue would bear the queue's name.
        ("x-dead-letter-routing-key", "affine"),
        ("x-overflow", "reject-publish"),
    ] {
        arguments.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(5));
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let queue = scene.queue("affine");
    let declared = channel.queue_declare(queue.as_str().into(), durable, arguments).await;
    connection.close(200, "done".into()).await.ok();

    declared.unwrap_or_else(|error| panic!("{queue} is declared otherwise: {error}"));
    assert_eq!(scene.waiting(&scene.dead_queue("affine")).await, 0);
}
