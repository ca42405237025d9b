//! Does the exit code of a command say whether another try may do, or someone has to change something first?

use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::support::command::Ran;
use crate::support::producer::unique;
use crate::support::worker::ending;
use crate::support::{Broker, Scene};

/// Another try may do.
const FATAL: i32 = 1;
const BAD_CONFIGURATION: i32 = 2;
/// No second try does.
const PERMANENT: i32 = 3;

/// Every command that asks the broker, but for the worker, which waits for other secrets and permissions.
const COMMANDS: [&str; 7] = [
    "topology apply affine",
    "topology check affine",
    "predict --model affine --input tests/it/support/affine.csv --no-header --timeout-ms 20000",
    "bench --model affine --rate 5 --duration 200ms --warm-up 0s",
    "dead list affine",
    "dead redrive affine",
    "dead purge affine --yes",
];

async fn run(scene: &Scene, settings: &[(&str, &str)], command: &str) -> Ran {
    scene
        .inferq_with(settings, &command.split(' ').collect::<Vec<_>>())
        .await
}

/// Checks that every command ends with `code` and a sentence that has `words`.
async fn all_end(scene: &Scene, settings: &[(&str, &str)], code: i32, words: &str) {
    for command in COMMANDS {
        let ran = run(scene, settings, command).await;

        assert_eq!(ran.code, Some(code), "{command}: {ran:?}");
        assert!(ran.stderr.contains(words), "{command}: no {words:?} in {ran:?}");
    }
}

/// A user of the shared broker, with the password `secret` and these permissions.
fn user(scene: &Scene, configure: &str, write: &str, read: &str) -> String {
    let (broker, user) = (Broker::shared(), unique());
    broker.ctl(&["add_user", &user, "secret"]);
    broker.ctl(&["set_permissions", &user, configure, write, read]);
    let (_, rest) = scene.uri.split_once('@').expect("a URI with a user");
    format!("amqp://{user}:secret@{rest}")
}

#[tokio::test]
async fn a_refused_login_is_no_fault_that_another_try_mends() {
    let scene = Scene::new();
    let (_, rest) = scene.uri.split_once('@').expect("a URI with a user");
    let wrong = format!("amqp://nobody:hunter2@{rest}");

    all_end(&scene, &[("INFERQ_BROKER__URI", &wrong)], PERMANENT, "user `nobody`").await;
}

#[tokio::test]
async fn a_virtual_host_that_is_not_there_is_a_refusal_too() {
    let scene = Scene::new();
    let (address, _) = scene.uri.rsplit_once('/').expect("a URI with a path");
    let nowhere = format!("{address}/no-such-host");

    all_end(&scene, &[("INFERQ_BROKER__URI", &nowhere)], PERMANENT, "`no-such-host`").await;
}

#[tokio::test]
async fn what_a_file_holds_instead_of_a_uri_stays_there() {
    let scene = Scene::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("uri");
    for (bytes, words) in [
        (&b"http://rabbitmq"[..], "is not the URI of a broker"),
        (b"", "is not the URI of a broker"),
        (b"amqp://user:p@ss/word@host", "is not the URI of a broker"),
        (b"\xff\xfe", "cannot read"),
    ] {
        std::fs::write(&path, bytes).expect("a file");
        let ran = run(&scene, &[FILE, ("INFERQ_BROKER__URI_FILE", text(&path))], COMMANDS[0]).await;

        assert_eq!(ran.code, Some(PERMANENT), "{ran:?}");
        assert!(ran.stderr.contains(words), "{ran:?}");
    }

    std::fs::write(&path, "http://rabbitmq").expect("a file");
    let settings = [FILE, ("INFERQ_BROKER__URI_FILE", text(&path))];
    all_end(&scene, &settings, PERMANENT, "broker.uri_file").await;
    // It asks no broker, but the address says the virtual host.
    let exported = run(&scene, &settings, "topology export affine").await;
    assert_eq!(exported.code, Some(PERMANENT), "{exported:?}");
}

/// No URI beside the one in the file.
const FILE: (&str, &str) = ("INFERQ_BROKER__URI", "amqp://guest:guest@127.0.0.1:5672/%2f");

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[tokio::test]
async fn a_uri_in_the_configuration_is_bad_configuration() {
    let scene = Scene::new();

    all_end(
        &scene,
        &[("INFERQ_BROKER__URI", "http://broker")],
        BAD_CONFIGURATION,
        "broker.uri",
    )
    .await;
}

#[tokio::test]
async fn a_certificate_file_without_a_certificate_stays_so() {
    let scene = Scene::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("ca.crt");
    std::fs::write(&path, "no certificate").expect("a file");
    let settings = [
        ("INFERQ_BROKER__URI", "amqps://user:secret@127.0.0.1:1/%2f"),
        ("INFERQ_BROKER__CA_FILE", text(&path)),
    ];

    all_end(&scene, &settings, PERMANENT, "in PEM format").await;
}

#[tokio::test]
async fn a_user_who_may_nothing_is_told_so_by_every_command() {
    let scene = Scene::new();
    run(&scene, &[], COMMANDS[0]).await.ok();
    // Without a letter there is nothing that would have to be read.
    let (connection, channel) = scene.open().await;
    let dead = format!("{}.dead", scene.queue("affine"));
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    let published = channel.basic_publish("".into(), dead.as_str().into(), options, b"letter", properties);
    published.await.expect("a letter");
    connection.close(200, "done".into()).await.ok();
    let uri = user(&scene, "^$", "^$", "^$");
    let settings = [("INFERQ_BROKER__URI", uri.as_str())];

    for command in COMMANDS {
        let ran = run(&scene, &settings, command).await;

        assert_eq!(ran.code, Some(PERMANENT), "{command}: {ran:?}");
    }
}

#[tokio::test]
async fn a_producer_who_may_not_publish_is_told_at_once() {
    let scene = Scene::new();
    run(&scene, &[], COMMANDS[0]).await.ok();
    let uri = user(&scene, "^amq\\.gen.*", "^amq\\.gen.*", ".*");
    let settings = [("INFERQ_BROKER__URI", uri.as_str())];

    for command in [COMMANDS[2], COMMANDS[3]] {
        let ran = run(&scene, &settings, command).await;

        assert_eq!(ran.code, Some(PERMANENT), "{command}: {ran:?}");
        let lacking = format!("lacks the permission `write` on exchange '{}'", scene.prefix);
        assert!(ran.stderr.contains(&lacking), "{command}: {ran:?}");
    }
}

#[tokio::test]
async fn queues_that_exist_otherwise_stay_so_for_commands() {
    let scene = Scene::new();
    run(&scene, &[], COMMANDS[0]).await.ok();
    let other = [("INFERQ_TOPOLOGY__DELIVERY_LIMIT", "7")];

    for command in &COMMANDS[..2] {
        let ran = run(&scene, &other, command).await;

        assert_eq!(ran.code, Some(PERMANENT), "{command}: {ran:?}");
        assert!(ran.stdout.contains("x-delivery-limit: is 10, should be 7"), "{ran:?}");
    }
    let (code, log) = ending(scene.worker("affine").env("INFERQ_TOPOLOGY__DELIVERY_LIMIT", "7")).await;
    assert_eq!(code, PERMANENT, "{log}");
}

#[tokio::test]
async fn what_is_only_missing_may_be_there_the_next_time() {
    let scene = Scene::new();

    for command in &COMMANDS[1..] {
        let ran = run(&scene, &[], command).await;

        assert_eq!(ran.code, Some(FATAL), "{command}: {ran:?}");
    }
}

#[tokio::test]
async fn a_queue_of_another_connection_may_be_gone_the_next_time() {
    let scene = Scene::new();
    let connection = scene.declare_exclusive_queue_for(1, &scene.queue("affine")).await;

    let ran = run(&scene, &[], COMMANDS[0]).await;
    connection.close(200, "done".into()).await.ok();

    assert_eq!(ran.code, Some(FATAL), "{ran:?}");
}

#[tokio::test]
async fn a_broker_that_is_away_may_be_back_the_next_time() {
    let scene = Scene::new();
    let nowhere = [("INFERQ_BROKER__URI", "amqp://user:secret@127.0.0.1:1/%2f")];
    all_end(&scene, &nowhere, FATAL, "127.0.0.1:1").await;

    let late = [FILE, ("INFERQ_BROKER__URI_FILE", "/nonexistent/uri")];
    let ran = run(&scene, &late, COMMANDS[0]).await;
    assert_eq!(ran.code, Some(FATAL), "{ran:?}");
}

#[tokio::test]
async fn one_of_two_nodes_that_is_away_may_let_us_in() {
    let scene = Scene::new();
    let (_, rest) = scene.uri.split_once('@').expect("a URI with a user");
    let wrong = format!("amqp://nobody:secret@{rest}");
    let away = "amqp://nobody:secret@127.0.0.1:1/%2f";

    for (uri, code) in [
        (format!("{wrong},{away}"), FATAL),
        (format!("{wrong},{wrong}"), PERMANENT),
    ] {
        let ran = run(&scene, &[("INFERQ_BROKER__URI", &uri)], COMMANDS[0]).await;

        assert_eq!(ran.code, Some(code), "{ran:?}");
    }
}

#[tokio::test]
async fn a_limit_of_connections_is_over_when_others_leave() {
    let (broker, host) = (Broker::shared(), unique());
    broker.ctl(&["add_vhost", &host]);
    broker.ctl(&["set_vhost_limits", "-p", &host, r#"{"max-connections": 0}"#]);
    let mut scene = Scene::new();
    let uri = scene.uri.clone();
    let (address, _) = uri.rsplit_once('/').expect("a URI with a path");
    scene.uri = format!("{address}/{host}");
    let (_, rest) = address.split_once("://").expect("a URI");
    let user = rest.split_once(':').expect("a user").0;
    broker.ctl(&["set_permissions", "-p", &host, user, ".*", ".*", ".*"]);

    let vhost_full = run(&scene, &[], COMMANDS[0]).await;
    broker.ctl(&["set_vhost_limits", "-p", &host, "{}"]);
    let room = run(&scene, &[], COMMANDS[0]).await;

    assert_eq!(vhost_full.code, Some(FATAL), "{vhost_full:?}");
    assert!(vhost_full.stderr.contains("limit"), "{vhost_full:?}");
    room.ok();
}

#[tokio::test]
async fn letters_that_reading_would_endanger_stay_in_danger() {
    let scene = Scene::new();
    let (connection, channel) = scene.open().await;
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let queue = format!("{}.dead", scene.queue("affine"));
    channel
        .queue_declare(queue.as_str().into(), durable, quorum)
        .await
        .expect("a queue");

    let ran = run(&scene, &[], "dead list affine").await;
    connection.close(200, "done".into()).await.ok();

    assert_eq!(ran.code, Some(PERMANENT), "{ran:?}");
}
