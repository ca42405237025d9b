//! Can dead letters be looked at without harm, and sent again or removed without loss?

use std::collections::BTreeSet;

use lapin::BasicProperties;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};

use crate::support::command::finish;
use crate::support::link::Link;
use crate::support::producer::headers_of;
use crate::support::{Broker, Job, Nesting, Request, Scene, Tensor, Worker, eventually};

const VALUE: f32 = 47.110_5;

fn good(scene: &Scene, model: &str) -> Job {
    scene.job(model, Request::new([Tensor::fp32("x", &[[VALUE; 4]])]).msgpack())
}

/// A job that `affine` refuses: it has no input `z`.
fn bad(scene: &Scene) -> Job {
    let body = Request::new([Tensor::fp32("z", &[[VALUE; 4]])]).json(Nesting::Flat);
    scene.job("affine", body).fire_and_forget()
}

async fn with_topology(models: &[&str]) -> Scene {
    let scene = Scene::new();
    let arguments = [&["topology", "apply"][..], models].concat();
    scene.inferq(&arguments).await.ok();
    scene
}

/// Three letters of a worker: `bad-1` and `bad-2`, and `lost`, whose reply found no queue.
async fn three_letters(scene: &Scene) -> Worker {
    let worker = scene.worker("affine").start().await;
    let producer = scene.producer().await;
    for id in ["bad-1", "bad-2"] {
        producer.send(bad(scene).message_id(id).persistent()).await;
    }
    producer
        .send(good(scene, "affine").message_id("lost").reply_to("no-such-queue"))
        .await;
    scene.until_waiting(&scene.dead_queue("affine"), 3).await;
    worker
}

/// Puts dead letters with these codes straight into the queue, as a worker would have.
async fn bury(scene: &Scene, model: &str, codes: impl IntoIterator<Item = (String, &str)>) {
    let (connection, channel) = scene.open().await;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .expect("confirms");
    let mut confirms = Vec::new();
    for (id, code) in codes {
        let mut headers = FieldTable::default();
        headers.insert("inferq-error-code".into(), AMQPValue::LongString(code.into()));
        let properties = BasicProperties::default()
            .with_message_id(id.into())
            .with_delivery_mode(2)
            .with_headers(headers);
        let queue = scene.dead_queue(model);
        let options = BasicPublishOptions::default();
        let publish = channel.basic_publish("".into(), queue.into(), options, b"body", properties);
        confirms.push(publish.await.expect("the channel stays open"));
    }
    for confirm in confirms {
        confirm.await.expect("a confirm");
    }
    connection.close(200, "done".into()).await.ok();
}

/// Takes all messages of a queue; their ids.
async fn ids_in(scene: &Scene, queue: &str) -> Vec<String> {
    let (connection, channel) = scene.open().await;
    let mut ids = Vec::new();
    while let Some(message) = channel
        .basic_get(queue.into(), BasicGetOptions { no_ack: true })
        .await
        .expect("the queue is there")
    {
        let id = message.delivery.properties.message_id().as_ref();
        ids.push(id.expect("an id").to_string());
    }
    connection.close(200, "done".into()).await.ok();
    ids
}

#[tokio::test]
async fn list_has_a_line_for_each_letter_and_filters_by_code_and_id() {
    let scene = with_topology(&["affine"]).await;
    let worker = three_letters(&scene).await;
    worker.drain().await;

    let all = scene.inferq(&["dead", "list", "affine", "--json"]).await;
    let table = scene.inferq(&["dead", "list", "affine"]).await;
    let lost = scene
        .inferq(&["dead", "list", "affine", "--code", "unroutable_reply", "--json"])
        .await;
    let one = scene
        .inferq(&["dead", "list", "affine", "--id", "bad-2", "--json"])
        .await;
    let two = scene
        .inferq(&["dead", "list", "affine", "--limit", "2", "--json"])
        .await;

    all.ok();
    let all = all.json();
    let codes: BTreeSet<_> = all
        .as_array()
        .expect("a list")
        .iter()
        .map(|letter| letter["code"].as_str())
        .collect();
    assert_eq!(
        codes,
        BTreeSet::from([Some("INVALID_ARGUMENT"), Some("UNROUTABLE_REPLY")])
    );
    assert_eq!(table.ok().lines().count(), 4, "{table:?}");
    for word in ["bad-1", "bad-2", "lost", "there is no input `z`", "no-such-queue"] {
        assert!(table.stdout.contains(word), "{word} is not in {}", table.stdout);
    }
    assert_eq!(lost.json().as_array().map(Vec::len), Some(1));
    assert_eq!(lost.json()[0]["id"], "lost");
    assert_eq!(one.json()[0]["id"], "bad-2");
    assert_eq!(one.json()[0]["deliveries"], 0);
    assert_eq!(one.json()[0]["version_pinned"], false);
    assert_eq!(two.json().as_array().map(Vec::len), Some(2));
    assert!(two.stderr.contains("--limit 2"), "{two:?}");
}

#[tokio::test]
async fn show_tells_reason_properties_headers_and_shapes_but_no_value_of_the_payload() {
    let scene = with_topology(&["affine"]).await;
    let worker = three_letters(&scene).await;
    worker.drain().await;

    let text = scene.inferq(&["dead", "show", "affine"]).await;
    let json = scene
        .inferq(&["dead", "show", "affine", "--id", "lost", "--json"])
        .await;

    for line in [
        "affine: INVALID_ARGUMENT",
        "affine: UNROUTABLE_REPLY",
        "property    message_id = bad-1",
        "property    reply_to = no-such-queue",
        "bytes, JSON",
        "bytes, MessagePack",
        "input       z FP32 [1,4]",
        "input       x FP32 [1,4]",
    ] {
        assert!(text.ok().contains(line), "{line:?} is not in\n{}", text.stdout);
    }
    let json = json.json();
    assert_eq!(
        json[0]["body"]["inputs"][0],
        serde_json::json!({"name": "x", "datatype": "FP32", "shape": [1, 4]})
    );
    assert_eq!(json[0]["properties"]["reply_to"], "no-such-queue");
    assert!(
        !text.stdout.contains("47.11") && !json.to_string().contains("47.11"),
        "a value is shown"
    );
}

#[tokio::test]
async fn letters_survive_being_looked_at_far_more_often_than_a_queue_delivers_by_default() {
    let scene = with_topology(&["affine"]).await;
    bury(
        &scene,
        "affine",
        [("one".to_owned(), "INTERNAL"), ("two".to_owned(), "NOT_FOUND")],
    )
    .await;

    for command in ["list", "show"].iter().cycle().take(30) {
        let seen = scene.inferq(&["dead", command, "affine", "--json"]).await;
        assert_eq!(seen.json().as_array().map(Vec::len), Some(2), "{seen:?}");
    }

    scene.until_waiting(&scene.dead_queue("affine"), 2).await;
    assert_eq!(
        ids_in(&scene, &scene.dead_queue("affine"))
            .await
            .into_iter()
            .collect::<BTreeSet<_>>(),
        BTreeSet::from(["one".to_owned(), "two".to_owned()])
    );
}

#[tokio::test]
async fn a_queue_that_would_delete_what_is_looked_at_is_not_looked_at() {
    let scene = Scene::new();
    let queue = scene.dead_queue("affine");
    let (connection, channel) = scene.open().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(queue.as_str().into(), durable, arguments)
        .await
        .expect("a queue");
    connection.close(200, "done".into()).await.ok();
    bury(&scene, "affine", [("one".to_owned(), "INTERNAL")]).await;

    let refused = [
        scene.inferq(&["dead", "list", "affine"]).await,
        scene.inferq(&["dead", "redrive", "affine", "--code", "INTERNAL"]).await,
    ];
    let anyway = scene.inferq(&["dead", "list", "affine", "--anyway"]).await;

    for refused in refused {
        refused.refused();
        assert!(refused.stderr.contains("x-delivery-limit is not set"), "{refused:?}");
    }
    assert!(anyway.ok().contains("one"), "{anyway:?}");
}

#[tokio::test]
async fn letters_of_a_classic_queue_can_be_looked_at_as_well() {
    let scene = Scene::new();
    let classic = [("INFERQ_TOPOLOGY__QUEUE_TYPE", "classic")];
    scene.inferq_with(&classic, &["topology", "apply", "affine"]).await.ok();
    bury(&scene, "affine", [("one".to_owned(), "INTERNAL")]).await;

    // Whatever the configuration says of the type.
    let seen = scene.inferq(&["dead", "list", "affine"]).await;

    assert!(seen.ok().contains("one"), "{seen:?}");
}

#[tokio::test]
async fn what_the_broker_moved_itself_is_listed_with_its_reason() {
    let scene = with_topology(&["affine"]).await;
    let (connection, channel) = scene.open().await;
    let expired = BasicProperties::default()
        .with_message_id("late".into())
        .with_user_id(user(&scene.uri).into())
        .with_expiration("1".into());
    let options = BasicPublishOptions::default();
    let queue = scene.queue("affine");
    channel
        .basic_publish("".into(), queue.into(), options, b"body", expired)
        .await
        .expect("a publish");
    scene.until_waiting(&scene.dead_queue("affine"), 1).await;
    connection.close(200, "done".into()).await.ok();

    let listed = scene
        .inferq(&["dead", "list", "affine", "--code", "expired", "--json"])
        .await;
    let redriven = scene.inferq(&["dead", "redrive", "affine", "--code", "expired"]).await;

    assert_eq!(listed.json()[0]["id"], "late", "{listed:?}");
    assert!(
        listed.json()[0]["error"]
            .as_str()
            .expect("a sentence")
            .contains(&scene.queue("affine"))
    );
    assert!(redriven.ok().contains("affine: 1 sent again"), "{redriven:?}");
    assert_eq!(ids_in(&scene, &scene.queue("affine")).await, ["late"]);
}

fn user(uri: &str) -> String {
    let (_, rest) = uri.split_once("://").expect("a URI");
    rest.split_once(':').expect("a user").0.to_owned()
}

#[tokio::test]
async fn a_letter_is_sent_again_as_the_job_that_it_was() {
    let scene = with_topology(&["affine"]).await;
    let worker = scene.worker("affine").start().await;
    let producer = scene.producer().await;
    let job = |id: &str| {
        let job = bad(&scene).message_id(id).correlation_id("c").persistent();
        job.text_header("traceparent", "00-1-2-01").deadline(i64::MAX)
    };
    producer.send(job("free")).await;
    producer
        .send(job("pinned").text_header("inferq-model-version", "1"))
        .await;
    scene.until_waiting(&scene.dead_queue("affine"), 2).await;
    worker.drain().await;

    let redriven = scene.inferq(&["dead", "redrive", "affine", "--json"]).await;

    redriven.ok();
    assert_eq!(redriven.json()[0]["redriven"], 2);
    assert_eq!(scene.waiting(&scene.dead_queue("affine")).await, 0);
    let (connection, channel) = scene.open().await;
    for _ in 0..2 {
        let queue = scene.queue("affine");
        let got = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await;
        let message = got.expect("the queue is there").expect("a job").delivery;
        let mut headers = headers_of(&message.properties);
        let version = headers.remove("inferq-model-version");
        let id = message.properties.message_id().as_ref().expect("an id").to_string();
        assert_eq!(version.is_some(), id == "pinned", "{id}");
        // The broker adds its count of deliveries to what it hands out.
        let names = headers
            .keys()
            .map(String::as_str)
            .filter(|name| !name.starts_with("x-"));
        let names: Vec<_> = names.collect();
        assert_eq!(names, ["inferq-deadline", "traceparent"]);
        assert_eq!(message.routing_key.as_str(), "affine");
        assert_eq!(message.properties.delivery_mode(), &Some(2));
        assert_eq!(message.data, bad(&scene).bytes());
    }
    connection.close(200, "done".into()).await.ok();
}

#[tokio::test]
async fn a_job_that_was_late_is_answered_when_it_is_sent_again() {
    let scene = with_topology(&["affine"]).await;
    let replies = scene.queue("replies");
    let worker = scene.worker("affine").start().await;
    let producer = scene.producer().await;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a clock");
    let soon = i64::try_from(now.as_millis()).expect("a time") + 30_000;
    producer
        .send(good(&scene, "affine").message_id("m").reply_to(&replies).deadline(soon))
        .await;
    scene.until_waiting(&scene.dead_queue("affine"), 1).await;
    // The requester comes back, after the deadline: it is moved, since nobody wants to wait for it.
    let letters = scene.dead_letters("affine", 1).await;
    let mut headers = letters[0].properties.headers().clone().expect("headers");
    headers.insert("inferq-deadline".into(), AMQPValue::LongLongInt(1));
    let (connection, channel) = scene.open().await;
    let queue = scene.dead_queue("affine");
    let properties = letters[0].properties.clone().with_headers(headers);
    channel
        .basic_publish(
            "".into(),
            queue.as_str().into(),
            BasicPublishOptions::default(),
            &letters[0].body,
            properties,
        )
        .await
        .expect("a publish");
    connection.close(200, "done".into()).await.ok();
    scene.until_waiting(&queue, 1).await;
    scene.declare_queue(&replies).await;

    scene.inferq(&["dead", "redrive", "affine"]).await.ok();
    scene.until_waiting(&replies, 1).await;
    worker.drain().await;

    let mut producer = crate::support::Producer::at_queue(&scene.uri, &replies).await;
    let reply = producer.remaining_one().await;
    assert_eq!(reply.status(), "OK");
    scene.nothing_is_left("affine").await;
}

#[tokio::test]
async fn redrive_filters_by_code_and_limit_and_leaves_the_rest() {
    const LETTERS: usize = 300;
    let scene = with_topology(&["affine"]).await;
    let codes = ["INTERNAL", "NOT_FOUND", "INTERNAL"];
    bury(
        &scene,
        "affine",
        (0..LETTERS).map(|number| (format!("{number}"), codes[number % 3])),
    )
    .await;

    let limited = scene
        .inferq(&[
            "dead", "redrive", "affine", "--code", "INTERNAL", "--limit", "7", "--json",
        ])
        .await;
    let rest = scene
        .inferq(&["dead", "redrive", "affine", "--code", "INTERNAL", "--json"])
        .await;

    limited.ok();
    assert_eq!(limited.json()[0]["redriven"], 7);
    assert_eq!(rest.json()[0]["redriven"], 193, "{rest:?}");
    assert_eq!(rest.json()[0]["kept"], 100, "{rest:?}");
    let sent = ids_in(&scene, &scene.queue("affine")).await;
    let kept = ids_in(&scene, &scene.dead_queue("affine")).await;
    assert_eq!((sent.len(), kept.len()), (200, 100), "one came twice or was lost");
    let number = |id: &String| id.parse::<usize>().expect("our own id");
    assert!(sent.iter().all(|id| number(id) % 3 != 1));
    assert_eq!(kept.iter().map(number).collect::<BTreeSet<_>>().len(), 100);
}

#[tokio::test]
async fn several_models_are_worked_through_and_one_is_named() {
    let scene = with_topology(&["affine", "slow"]).await;
    for model in ["affine", "slow"] {
        bury(&scene, model, [(model.to_owned(), "INTERNAL")]).await;
    }
    let load = [("INFERQ_MODELS__LOAD", "affine,slow")];

    let both = scene.inferq_with(&load, &["dead", "list", "--json"]).await;
    let one = scene.inferq(&["dead", "redrive", "slow"]).await;

    assert_eq!(both.json().as_array().map(Vec::len), Some(2), "{both:?}");
    one.ok();
    assert_eq!(scene.waiting(&scene.dead_queue("affine")).await, 1);
    assert_eq!(ids_in(&scene, &scene.queue("slow")).await, ["slow"]);
}

#[tokio::test]
async fn redriving_ends_although_a_worker_buries_what_is_sent_again() {
    let scene = with_topology(&["affine"]).await;
    let worker = three_letters(&scene).await;

    let redriven = scene.inferq(&["dead", "redrive", "affine", "--json"]).await;

    redriven.ok();
    assert_eq!(redriven.json()[0]["redriven"], 3, "{redriven:?}");
    scene.until_waiting(&scene.dead_queue("affine"), 3).await;
    worker.drain().await;
    assert_eq!(scene.waiting(&scene.queue("affine")).await, 0);
}

#[tokio::test]
async fn a_letter_that_no_queue_takes_stays_a_dead_letter() {
    let scene = with_topology(&["affine"]).await;
    bury(
        &scene,
        "affine",
        (0..20).map(|number| (format!("{number}"), "INTERNAL")),
    )
    .await;
    scene.delete_queue(&scene.queue("affine")).await;

    let refused = scene.inferq(&["dead", "redrive", "affine", "--json"]).await;
    let listed = scene.inferq(&["dead", "list", "affine", "--json"]).await;

    refused.failed();
    assert_eq!(refused.json()[0]["redriven"], 0, "{refused:?}");
    assert_eq!(refused.json()[0]["refused"], 20, "{refused:?}");
    assert!(
        refused.stderr.contains("20 letters could not be sent again"),
        "{refused:?}"
    );
    assert_eq!(listed.json().as_array().map(Vec::len), Some(20));
}

#[tokio::test]
async fn what_a_full_job_queue_does_not_take_stays_a_dead_letter() {
    const LETTERS: u64 = 12;
    let scene = with_topology(&["affine"]).await;
    bury(
        &scene,
        "affine",
        (0..LETTERS).map(|number| (format!("{number}"), "INTERNAL")),
    )
    .await;
    let queue = scene.queue("affine");
    scene.delete_queue(&queue).await;
    let (connection, channel) = scene.open().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(5));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare(queue.as_str().into(), durable, arguments).await;
    declared.expect("a queue");
    let (exchange, options) = (scene.prefix.as_str().into(), QueueBindOptions::default());
    let bound = channel.queue_bind(
        queue.as_str().into(),
        exchange,
        "affine".into(),
        options,
        FieldTable::default(),
    );
    bound.await.expect("a binding");
    connection.close(200, "done".into()).await.ok();

    let redriven = scene.inferq(&["dead", "redrive", "affine", "--json"]).await;

    redriven.failed();
    assert!(redriven.stderr.contains("takes no more"), "{redriven:?}");
    let count = |name: &str| redriven.json()[0][name].as_u64().expect("a number");
    assert!(count("refused") > 0, "{redriven:?}");
    assert_eq!(count("redriven") + count("refused"), LETTERS);
    let sent = ids_in(&scene, &queue).await;
    let kept = ids_in(&scene, &scene.dead_queue("affine")).await;
    assert_eq!(
        (sent.len() as u64, kept.len() as u64),
        (count("redriven"), count("refused"))
    );
    let ids: BTreeSet<_> = sent.into_iter().chain(kept).collect();
    assert_eq!(ids.len() as u64, LETTERS);
}

/// Starts to send letters again, interrupts that in the middle, and counts: each is sent or still there.
async fn interrupted(settings: &[(&str, &str)], scene: &Scene, interrupt: impl FnOnce(u32)) {
    const LETTERS: usize = 3_000;
    bury(
        scene,
        "affine",
        (0..LETTERS).map(|number| (format!("{number}"), "INTERNAL")),
    )
    .await;
    let (jobs, dead) = (scene.queue("affine"), scene.dead_queue("affine"));

    let redriving = scene.start_inferq(settings, &["dead", "redrive", "affine"]);
    eventually("the first letters to be sent", || async {
        (scene.waiting(&jobs).await > 0).then_some(())
    })
    .await;
    interrupt(redriving.id().expect("it runs"));
    let ended = finish(redriving).await;
    eventually("the letters that were held to be back", || async {
        let all = scene.waiting(&jobs).await + scene.waiting(&dead).await;
        (all as usize >= LETTERS).then_some(())
    })
    .await;
    scene.inferq(&["dead", "redrive", "affine"]).await.ok();

    if ended.code == Some(1) {
        assert!(ended.stderr.contains("stopped after"), "{ended:?}");
    }
    let sent = ids_in(scene, &jobs).await;
    assert_eq!(scene.waiting(&dead).await, 0);
    assert_eq!(sent.iter().collect::<BTreeSet<_>>().len(), LETTERS, "some are lost");
    assert!(sent.len() <= LETTERS + 64, "{} are sent twice", sent.len() - LETTERS);
}

#[tokio::test]
async fn a_redrive_that_is_killed_loses_nothing() {
    let scene = with_topology(&["affine"]).await;

    interrupted(&[], &scene, |id| {
        let id = rustix::process::Pid::from_raw(id.cast_signed()).expect("a process id");
        rustix::process::kill_process(id, rustix::process::Signal::KILL).ok();
    })
    .await;
}

#[tokio::test]
async fn a_redrive_whose_connection_breaks_loses_nothing_and_says_how_far_it_came() {
    let scene = with_topology(&["affine"]).await;
    let link = Link::to(Broker::shared().amqp_port()).await;
    let uri = link.uri(&scene.uri);

    interrupted(&[("INFERQ_BROKER__URI", &uri)], &scene, |_| link.cut()).await;
}

#[tokio::test]
async fn the_permissions_of_a_worker_are_enough() {
    let scene = with_topology(&["affine"]).await;
    bury(
        &scene,
        "affine",
        [("one".to_owned(), "INTERNAL"), ("two".to_owned(), "INTERNAL")],
    )
    .await;
    let (broker, name) = (Broker::shared(), format!("user-{}", scene.prefix));
    let own = format!("^{}(\\..+)?$", scene.prefix);
    let write = format!("^({}(\\..+)?|amq\\.default)$", scene.prefix);
    broker.ctl(&["add_user", &name, "pass"]);
    broker.ctl(&["set_permissions", &name, &own, &write, &own]);
    let (_, rest) = scene.uri.split_once('@').expect("a URI with a user");
    let uri = format!("amqp://{name}:pass@{rest}");
    let settings = [("INFERQ_BROKER__URI", uri.as_str())];

    for arguments in [
        &["topology", "apply", "affine"][..],
        &["topology", "check", "affine"],
        &["dead", "list", "affine"],
        &["dead", "redrive", "affine", "--id", "one"],
        &["dead", "purge", "affine", "--yes"],
    ] {
        let ran = scene.inferq_with(&settings, arguments).await;

        ran.ok();
        assert_eq!(ran.stderr, "", "{arguments:?}");
    }
    assert_eq!(ids_in(&scene, &scene.queue("affine")).await, ["one"]);
}

/// `make test` looks at 500; the figures in `tests/README.md` are of 10,000.
#[tokio::test]
async fn many_letters_measured_are_all_sent_again_and_none_of_them_twice() {
    #[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
    let letters: usize = std::env::var("INFERQ_TEST_LETTERS").map_or(500, |letters| letters.parse().expect("a number"));
    let scene = with_topology(&["affine"]).await;
    let codes = ["INTERNAL", "NOT_FOUND"];
    bury(
        &scene,
        "affine",
        (0..letters).map(|number| (format!("{number}"), codes[number % 2])),
    )
    .await;

    for arguments in [
        &["dead", "list", "affine", "--limit", "20000"][..],
        &["dead", "redrive", "affine", "--code", "INTERNAL"],
        &["dead", "redrive", "affine"],
    ] {
        let began = tokio::time::Instant::now();
        let child = scene.start_inferq(&[], arguments);
        let status = format!("/proc/{}/status", child.id().expect("it runs"));
        let watching = tokio::spawn(async move {
            let mut peak = String::new();
            while let Ok(status) = tokio::fs::read_to_string(&status).await {
                peak = status
                    .lines()
                    .find(|line| line.starts_with("VmHWM"))
                    .map_or(peak, str::to_owned);
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            peak
        });
        finish(child).await.ok();
        println!(
            "{arguments:?}: {:?}, {}",
            began.elapsed(),
            watching.await.expect("a figure")
        );
    }

    let sent = ids_in(&scene, &scene.queue("affine")).await;
    assert_eq!(sent.len(), letters);
    assert_eq!(sent.iter().collect::<BTreeSet<_>>().len(), letters);
}

#[tokio::test]
async fn purge_only_counts_until_it_is_told_yes() {
    let scene = with_topology(&["affine"]).await;
    let codes = ["INTERNAL", "NOT_FOUND"];
    bury(
        &scene,
        "affine",
        (0..200).map(|number| (format!("{number}"), codes[number % 2])),
    )
    .await;

    let counted = scene.inferq(&["dead", "purge", "affine", "--code", "INTERNAL"]).await;
    let all = scene.inferq(&["dead", "purge", "affine"]).await;
    let some = scene
        .inferq(&["dead", "purge", "affine", "--code", "INTERNAL", "--yes", "--json"])
        .await;
    let left = scene
        .inferq(&["dead", "list", "affine", "--limit", "500", "--json"])
        .await;
    let rest = scene.inferq(&["dead", "purge", "affine", "--yes"]).await;

    assert!(counted.failed().contains("affine: 100 would be removed"), "{counted:?}");
    assert!(counted.stderr.contains("--yes"), "{counted:?}");
    assert!(all.failed().contains("affine: 200 would be removed"), "{all:?}");
    some.ok();
    assert_eq!(some.json()[0]["letters"], 100);
    let left = left.json();
    let left = left.as_array().expect("a list");
    assert_eq!(left.len(), 100);
    assert!(left.iter().all(|letter| letter["code"] == "NOT_FOUND"));
    assert!(rest.ok().contains("affine: 100 removed"), "{rest:?}");
    assert_eq!(scene.waiting(&scene.dead_queue("affine")).await, 0);
}

#[tokio::test]
async fn a_queue_that_is_not_there_is_named() {
    let scene = Scene::new();

    for command in [&["list"][..], &["show"], &["redrive"], &["purge", "--yes"]] {
        let arguments = [&["dead"][..], command, &["affine"]].concat();
        let ran = scene.inferq(&arguments).await;

        ran.failed();
        assert!(ran.stderr.contains(&scene.dead_queue("affine")), "{ran:?}");
    }
}
