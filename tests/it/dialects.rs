//! Are producers understood as their libraries write: with other types, other texts, other addresses, over AMQP 1.0?

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::types::AMQPValue;
use tokio::process::Command;

use crate::support::body::{Body, JSON, MSGPACK};
use crate::support::producer::DIRECT;
use crate::support::{Broker, Job, Nesting, Producer, Request, Scene, Tensor, root, within};

/// `affine` makes `3x - 1` of it.
fn row() -> Request {
    Request::new([Tensor::fp32("x", &[[1.0, 2.0, 3.0, 4.0]])])
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// What Python's `(time.time() + 3600) * 1000` gives.
fn in_an_hour() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
    (now + Duration::from_hours(1)).as_secs_f64() * 1000.0
}

#[tokio::test]
async fn headers_of_any_plain_type_are_taken() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    for (name, value) in [
        ("inferq-deadline", AMQPValue::Double(in_an_hour() + 0.5)),
        ("inferq-deadline", text(&in_an_hour().to_string())),
        ("inferq-timing", AMQPValue::LongInt(1)),
        ("inferq-timing", text("true")),
        ("inferq-timing", text("1")),
        ("inferq-model-version", AMQPValue::Double(2.0)),
        ("inferq-model-version", AMQPValue::ShortShortUInt(2)),
    ] {
        let case = format!("{name} = {value:?}");
        let job = scene.job("affine", row().msgpack()).header(name, value);

        let reply = producer.call(job).await;

        assert_eq!(reply.status(), "OK", "{case}: {:?}", reply.failure());
        assert_eq!(
            reply.header("inferq-total-us").is_some(),
            name == "inferq-timing",
            "{case}"
        );
    }
    worker.drain().await;
}

#[tokio::test]
async fn headers_without_a_plain_meaning_are_refused_by_name() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    for (name, value, came) in [
        // As floats RabbitMQ itself does not take them.
        ("inferq-deadline", text("NaN"), "NaN"),
        ("inferq-deadline", text("Infinity"), "an infinite number"),
        ("inferq-deadline", AMQPValue::Double(-0.5), "a number below zero"),
        ("inferq-deadline", text("tomorrow"), "a string"),
        ("inferq-timing", AMQPValue::LongInt(2), "another number"),
        ("inferq-timing", text("maybe"), "another string"),
        ("inferq-model-version", AMQPValue::Boolean(true), "a boolean"),
    ] {
        let job = scene.job("affine", row().msgpack()).header(name, value);

        let error = producer.call(job).await.error("INVALID_ARGUMENT");

        assert!(error.starts_with(&format!("header `{name}`: {came}")), "{error}");
        assert!(error.contains("allowed is"), "{error}");
    }
    worker.drain().await;
}

#[tokio::test]
async fn a_byte_order_mark_before_json_is_skipped() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;
    let marked = |body: Body| Body {
        bytes: [b"\xef\xbb\xbf", body.bytes.as_slice()].concat(),
        ..body
    };

    let reply = producer
        .call(scene.job("affine", marked(row().json(Nesting::Flat))))
        .await;

    assert_eq!(reply.response().output("y").floats(), [2.0, 5.0, 8.0, 11.0]);
    worker.drain().await;
}

#[tokio::test]
async fn texts_of_other_languages_are_refused_by_name_and_place() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;
    let data =
        |data: &str| format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,{data},3,4]}}]}}"#);
    let utf16: Vec<u8> = data("2").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let float32 = data("2").replace("FP32", "float32");

    for (body, words) in [
        (data("NaN").into_bytes(), ["inputs[0].data[1]: `NaN`", "null"]),
        (
            data("Infinity").into_bytes(),
            ["inputs[0].data[1]: `Infinity`", "MessagePack"],
        ),
        (
            data("-Infinity").into_bytes(),
            ["inputs[0].data[1]: `-Infinity`", "raw bytes"],
        ),
        (data("None").into_bytes(), ["inputs[0].data[1]: `None`", "null"]),
        (utf16, ["UTF-16", "UTF-8"]),
        (float32.into_bytes(), ["inputs[0].datatype: `float32`", "write FP32"]),
    ] {
        let reply = producer.call(scene.job("affine", Body::raw(JSON, body))).await;

        let error = reply.error("INVALID_ARGUMENT");
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    }
    let missing = producer.call(scene.job("affine", Body::raw(JSON, data("null")))).await;
    assert!(
        String::from_utf8_lossy(&missing.body).contains("null"),
        "{:?}",
        missing.status()
    );
    worker.drain().await;
}

#[tokio::test]
async fn the_datatype_of_a_messagepack_job_is_named_as_well() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;
    let mut tensor = Tensor::fp32("x", &[[1.0, 2.0, 3.0, 4.0]]);
    tensor.datatype = "torch.float32".to_owned();

    let named = Request::new([tensor]).msgpack_arrays(Nesting::Flat);
    let error = producer
        .call(scene.job("affine", named))
        .await
        .error("INVALID_ARGUMENT");

    assert!(
        error.starts_with("inputs[0].datatype: `torch.float32` ") && error.ends_with("; write FP32"),
        "{error}"
    );
    worker.drain().await;
}

#[tokio::test]
async fn a_body_in_base64_is_refused_like_a_compressed_one() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    for encoding in ["base64", "gzip", "identity, Base64"] {
        let job = scene.job("affine", row().msgpack()).content_encoding(encoding);

        let error = producer.call(job).await.error("INVALID_ARGUMENT");

        assert!(error.starts_with("content_encoding: `"), "{error}");
        assert!(error.contains("allowed is none"), "{error}");
    }
    worker.drain().await;
}

/// RFC 3986, of everything but what needs no encoding.
fn encoded(queue: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let bytes = queue.bytes();
    bytes
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

#[tokio::test]
async fn a_reply_to_the_address_of_a_queue_goes_to_that_queue() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    for queue in ["replies", "with space/slash%", "überall"] {
        let queue = format!("{} {queue}", scene.prefix);
        scene.declare_queue(&queue).await;
        let mut replies = Producer::at_queue(&scene.uri, &queue).await;
        let address = format!("/queues/{}", encoded(&queue));

        let reply = replies
            .call(scene.job("affine", row().msgpack()).reply_to(&address))
            .await;

        assert_eq!(reply.status(), "OK", "{address}");
        scene.delete_queue(&queue).await;
    }
    worker.drain().await;
    scene.nothing_is_left("affine").await;
}

#[tokio::test]
async fn a_reply_to_any_other_address_is_a_dead_letter_that_says_so() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let producer = scene.producer().await;
    let addresses = [
        "/exchanges/E/K",
        "/exchanges/E",
        "/topic/k",
        "/queue/q",
        "/amq/queue/q",
        "/queues/",
        "/queues/%zz",
    ];

    for address in addresses {
        let job = scene
            .job("affine", row().msgpack())
            .message_id(address)
            .reply_to(address);
        producer.send(job).await;
    }
    let letters = scene.dead_letters("affine", addresses.len()).await;

    for letter in letters {
        let address = letter
            .properties
            .reply_to()
            .clone()
            .expect("a letter keeps its address");
        assert_eq!(letter.header("inferq-error-code").as_deref(), Some("INVALID_ARGUMENT"));
        let error = letter.header("inferq-error").expect("a sentence");
        assert!(error.starts_with(&format!("reply_to: `{address}` ")), "{error}");
        assert!(error.contains("/queues/NAME"), "{error}");
    }
    worker.drain().await;
}

#[tokio::test]
async fn a_direct_reply_is_no_address_of_a_queue() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut direct = Producer::direct(&scene.uri).await;

    let job: Job = scene.job("affine", row().msgpack()).reply_to(DIRECT);
    let reply = direct.call(job).await;

    assert_eq!(reply.status(), "OK");
    worker.drain().await;
}

/// What `tests/node/amqp10.js` prints of one reply.
#[derive(Debug, serde::Deserialize)]
struct Answer {
    name: String,
    id: serde_json::Value,
    content_type: String,
    headers: BTreeMap<String, serde_json::Value>,
    body: String,
}

/// Runs a producer on AMQP 1.0 against the worker's broker and returns what it was answered, by the name of its job.
async fn over_amqp_1_0(scene: &Scene, model: &str, queue: &str) -> BTreeMap<String, Answer> {
    let uri: lapin::uri::AMQPUri = scene.uri.parse().expect("a URI");
    let (user, address) = (uri.authority.userinfo, (uri.authority.host, uri.authority.port));
    let program = Command::new("node")
        .arg("tests/node/amqp10.js")
        .args([&address.0, &address.1.to_string(), &user.username, &user.password])
        .args([&scene.prefix, model, queue])
        .current_dir(root())
        .env("NODE_PATH", root().join(".deps/node/node_modules"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = within("the answers over AMQP 1.0", program)
        .await
        .expect("`make setup` installs node");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers = String::from_utf8(output.stdout).expect("JSON is UTF-8");
    let answers = answers
        .lines()
        .map(|line| serde_json::from_str(line).expect("an answer"));
    answers.map(|answer: Answer| (answer.name.clone(), answer)).collect()
}

#[tokio::test]
async fn producers_on_amqp_1_0_are_answered_where_the_broker_speaks_it() {
    if Broker::shared().major() < 4 {
        // Before, it was another protocol's plug-in; `encoded_as_amqp_1_0` shows what RabbitMQ 4 makes of such jobs.
        return;
    }
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let queue = format!("{} replies/1", scene.prefix);
    scene.declare_queue(&queue).await;

    let answers = over_amqp_1_0(&scene, "affine", &queue).await;

    for (name, answer) in &answers {
        let status = answer.headers["inferq-status"].as_str();
        let refused = ["a map", "a sequence"].contains(&name.as_str());
        assert_eq!(
            status,
            Some(if refused { "INVALID_ARGUMENT" } else { "OK" }),
            "{answer:?}"
        );
        let id = match name.as_str() {
            "with a number for its id" => "7",
            "with a uuid for its id" => "00112233445566778899aabbccddeeff",
            name => name,
        };
        assert_eq!(answer.id, id, "{answer:?}");
        let packed = name.starts_with("msgpack");
        assert_eq!(answer.content_type, if packed { MSGPACK } else { JSON });
        assert!(!answer.body.is_empty());
        let timed = answer.headers.contains_key("inferq-total-us");
        assert_eq!(timed, name == "with headers", "{answer:?}");
    }
    assert_eq!(answers.len(), 11, "{:?}", answers.keys());
    // `{"error":"body: a map came as AMQP 1.0` in Base64.
    assert!(
        answers["a map"]
            .body
            .starts_with("eyJlcnJvciI6ImJvZHk6IGEgbWFwIGNhbWUgYXMgQU1RUCAxLj")
    );
    worker.drain().await;
    scene.delete_queue(&queue).await;
    scene.nothing_is_left("affine").await;
}

/// A body as RabbitMQ 4 hands it on where a producer on AMQP 1.0 sent a string and not a data section.
fn encoded_as_amqp_1_0(body: Body) -> Body {
    let length = u32::try_from(body.bytes.len()).expect("a short body");
    Body {
        bytes: [b"\0\x53\x77\xb1", length.to_be_bytes().as_slice(), &body.bytes].concat(),
        ..body
    }
}

#[tokio::test]
async fn a_body_that_is_an_amqp_1_0_value_is_read_on_every_broker() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let queue = format!("{} of a value", scene.prefix);
    scene.declare_queue(&queue).await;
    let mut replies = Producer::at_queue(&scene.uri, &queue).await;
    let address = format!("/queues/{}", encoded(&queue));

    for body in [row().json(Nesting::Flat), row().msgpack(), row().binary()] {
        let job = scene.job("affine", encoded_as_amqp_1_0(body)).kind("amqp-1.0");
        let reply = replies.call(job.reply_to(&address)).await;
        assert_eq!(reply.response().output("y").floats(), [2.0, 5.0, 8.0, 11.0]);
    }
    worker.drain().await;
    scene.delete_queue(&queue).await;
}
