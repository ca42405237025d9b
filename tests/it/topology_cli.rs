//! Does `inferq topology` make, compare and write down what a worker needs, all of it?

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;

use crate::support::{Broker, Request, Scene, Tensor};

/// Declares a durable queue with these arguments, as somebody did who knew no better.
async fn declare(scene: &Scene, queue: &str, arguments: &[(&str, AMQPValue)]) {
    let (connection, channel) = scene.open().await;
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare(queue.into(), durable, table).await;
    declared.unwrap_or_else(|error| panic!("queue {queue}: {error}"));
    connection.close(200, "done".into()).await.ok();
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// A worker that may declare nothing answers a job through the front door, and buries one.
async fn serves_in_check_mode(scene: &Scene) {
    let worker = scene.worker("affine").env("INFERQ_TOPOLOGY__MODE", "check");
    let worker = worker.start().await;
    let mut producer = scene.producer().await;
    let good = Request::new([Tensor::fp32("x", &[[1.0; 4]])]).msgpack();
    let reply = producer.call(scene.job("affine", good)).await;
    let bad = Request::new([Tensor::fp32("z", &[[1.0; 4]])]).msgpack();
    producer.send(scene.job("affine", bad).fire_and_forget()).await;
    scene.dead_letters("affine", 1).await;
    worker.drain().await;

    assert_eq!(reply.status(), "OK");
    assert!(!worker.log().contains("not compared"), "{}", worker.log());
}

fn found(findings: &Value, name: &str) -> String {
    let findings = findings.as_array().expect("a list").iter();
    let finding = findings.clone().find(|finding| finding["name"] == name);
    let finding = finding.unwrap_or_else(|| panic!("{name} is not in {findings:?}"));
    finding["found"].as_str().expect("a word").to_owned()
}

#[tokio::test]
async fn what_apply_made_is_all_that_a_worker_needs_and_applying_again_changes_nothing() {
    let scene = Scene::new();

    let before = scene.inferq(&["topology", "check", "affine", "--json"]).await;
    let first = scene.inferq(&["topology", "apply", "affine"]).await;
    let again = scene.inferq(&["topology", "apply", "affine", "--json"]).await;
    let after = scene.inferq(&["topology", "check", "affine"]).await;

    before.failed();
    assert_eq!(first.ok().matches(" made\n").count(), 4, "{first:?}");
    again.ok();
    assert_eq!(after.ok().matches(" fits\n").count(), 4, "{after:?}");
    for name in [
        scene.prefix.clone(),
        format!("{}.dead", scene.prefix),
        scene.queue("affine"),
        scene.dead_queue("affine"),
    ] {
        assert_eq!(found(&before.json(), &name), "missing");
        assert_eq!(found(&again.json(), &name), "fits");
    }
    serves_in_check_mode(&scene).await;
}

#[tokio::test]
async fn without_names_the_models_of_the_repository_are_meant() {
    let scene = Scene::new();
    let load = [("INFERQ_MODELS__LOAD", "affine,slow")];

    scene.inferq_with(&load, &["topology", "apply"]).await.ok();

    for model in ["affine", "slow"] {
        assert!(scene.exists(&scene.queue(model)).await, "{model}");
        assert!(scene.exists(&scene.dead_queue(model)).await, "{model}");
    }
}

#[tokio::test]
async fn check_names_every_difference_and_changes_nothing() {
    let scene = Scene::new();
    let queue = scene.queue("affine");
    declare(
        &scene,
        &queue,
        &[
            ("x-queue-type", text("quorum")),
            ("x-dead-letter-exchange", text("elsewhere")),
            ("x-dead-letter-routing-key", text("affine")),
            ("x-delivery-limit", AMQPValue::LongInt(3)),
            ("x-message-ttl", AMQPValue::LongInt(60_000)),
        ],
    )
    .await;
    let (connection, channel) = scene.open().await;
    let options = ExchangeDeclareOptions {
        durable: false,
        ..ExchangeDeclareOptions::default()
    };
    let kind = lapin::ExchangeKind::Fanout;
    channel
        .exchange_declare(scene.prefix.as_str().into(), kind, options, FieldTable::default())
        .await
        .expect("an exchange");
    connection.close(200, "done".into()).await.ok();

    let text = scene.inferq(&["topology", "check", "affine"]).await;
    let json = scene.inferq(&["topology", "check", "affine", "--json"]).await;
    let again = scene.inferq(&["topology", "check", "affine"]).await;

    let shown = text.refused();
    for line in [
        "type: is fanout, should be direct",
        "durable: is false, should be true",
        &format!("x-dead-letter-exchange: is elsewhere, should be {}.dead", scene.prefix),
        "x-delivery-limit: is 3, should be 10",
        "to keep it: topology.delivery_limit = 3",
        "x-message-ttl: is 60000, should not be set",
        "x-overflow: is not set, should be reject-publish",
        "x-dead-letter-strategy: is not set, should be at-least-once",
        &format!("rabbitmqctl delete_queue -p / {queue}"),
        "`inferq topology apply` makes it",
    ] {
        assert!(shown.contains(line), "{line:?} is not in:\n{shown}");
    }
    assert!(text.stderr.contains("4 of 4"), "{text:?}");
    json.refused();
    let json = json.json();
    assert_eq!(found(&json, &queue), "differs");
    assert_eq!(found(&json, &scene.dead_queue("affine")), "missing");
    let differences = json.as_array().and_then(|findings| findings.last()).expect("findings")["differences"].clone();
    assert_eq!(differences.as_array().map(Vec::len), Some(5), "{differences}");
    assert_eq!(again.stdout, text.stdout, "the first check changed something");
}

#[tokio::test]
async fn a_queue_of_another_type_is_compared_to_the_end_as_well() {
    let scene = Scene::new();
    let queue = scene.queue("affine");
    declare(&scene, &queue, &[("x-max-priority", AMQPValue::ShortShortInt(5))]).await;

    let shown = scene.inferq(&["topology", "check", "affine"]).await;

    let shown = shown.refused();
    for line in [
        "x-queue-type: is classic, should be quorum",
        "to keep it: topology.queue_type = \"classic\"",
        "x-max-priority: is 5, should not be set",
        "x-delivery-limit: is not set, should be 10",
        "x-dead-letter-strategy: is not set, should be at-least-once",
        "x-overflow: is not set, should be reject-publish",
    ] {
        assert!(shown.contains(line), "{line:?} is not in:\n{shown}");
    }
    assert!(!shown.contains("the rest"), "{shown}");
}

#[tokio::test]
async fn apply_makes_the_rest_where_one_thing_differs_and_says_so() {
    let scene = Scene::new();
    let queue = scene.queue("affine");
    declare(&scene, &queue, &[("x-queue-type", text("quorum"))]).await;

    let applied = scene.inferq(&["topology", "apply", "affine", "--json"]).await;

    applied.refused();
    assert!(applied.stderr.contains("1 of 4"), "{applied:?}");
    assert_eq!(found(&applied.json(), &queue), "differs");
    assert_eq!(found(&applied.json(), &scene.dead_queue("affine")), "made");
    assert!(scene.exists(&scene.dead_queue("affine")).await);
}

#[tokio::test]
async fn what_a_broker_imported_from_the_export_is_all_that_a_worker_needs() {
    for queue_type in ["quorum", "classic"] {
        let scene = Scene::new();
        let settings = [("INFERQ_TOPOLOGY__QUEUE_TYPE", queue_type)];
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("definitions.json");

        let exported = scene.inferq_with(&settings, &["topology", "export", "affine"]).await;
        std::fs::write(&file, exported.ok()).expect("a file");
        Broker::shared().ctl(&["import_definitions", file.to_str().expect("UTF-8")]);
        let checked = scene.inferq_with(&settings, &["topology", "check", "affine"]).await;

        assert_eq!(checked.ok().matches(" fits\n").count(), 4, "{checked:?}");
        if queue_type == "quorum" {
            serves_in_check_mode(&scene).await;
        }
    }
}

/// A user of the shared broker with these permissions, as a URI.
fn user(scene: &Scene, configure: &str) -> String {
    let (broker, name) = (Broker::shared(), format!("user-{}", scene.prefix));
    broker.ctl(&["add_user", &name, "pass"]);
    broker.ctl(&["set_permissions", &name, configure, ".*", ".*"]);
    let (_, rest) = scene.uri.split_once('@').expect("a URI with a user");
    format!("amqp://{name}:pass@{rest}")
}

#[tokio::test]
async fn without_the_permission_to_configure_check_says_what_it_cannot_know_and_a_worker_serves_all_the_same() {
    let scene = Scene::new();
    scene.inferq(&["topology", "apply", "affine"]).await.ok();
    let uri = user(&scene, "^amq\\.gen.*$");

    let checked = scene
        .inferq_with(&[("INFERQ_BROKER__URI", &uri)], &["topology", "check", "affine"])
        .await;
    let worker = scene
        .worker("affine")
        .env("INFERQ_TOPOLOGY__MODE", "check")
        .env("INFERQ_BROKER__URI", &uri);
    let worker = worker.start().await;
    let mut producer = scene.producer().await;
    let body = Request::new([Tensor::fp32("x", &[[1.0; 4]])]).msgpack();
    let reply = producer.call(scene.job("affine", body)).await;
    worker.drain().await;

    let shown = checked.refused();
    assert_eq!(shown.matches("exists, but cannot be compared").count(), 4, "{shown}");
    assert!(shown.contains("permission `configure`"), "{shown}");
    assert_eq!(reply.status(), "OK");
    assert!(worker.log().contains("not compared"), "{}", worker.log());
}

#[tokio::test]
async fn a_queue_that_another_connection_has_for_itself_is_told_as_such() {
    let scene = Scene::new();
    let connection = scene.declare_exclusive_queue_for(1, &scene.queue("affine")).await;

    let checked = scene.inferq(&["topology", "check", "affine"]).await;
    connection.close(200, "done".into()).await.ok();

    assert!(
        checked.failed().contains("exclusive to another connection"),
        "{checked:?}"
    );
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_named_without_the_password() {
    let scene = Scene::new();
    let nowhere = [("INFERQ_BROKER__URI", "amqp://user:hunter2@127.0.0.1:1/%2f")];

    for command in ["apply", "check"] {
        let ran = scene.inferq_with(&nowhere, &["topology", command, "affine"]).await;

        assert_eq!(ran.failed(), "");
        assert!(ran.stderr.contains("127.0.0.1:1"), "{ran:?}");
        assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
    }
}

#[tokio::test]
async fn a_name_that_no_model_can_have_is_refused_with_what_is_allowed() {
    let scene = Scene::new();

    let ran = scene.inferq(&["topology", "check", "No Model"]).await;

    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("A-Z a-z 0-9"), "{ran:?}");
}
