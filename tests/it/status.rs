//! Does every job that goes wrong end as the status table says?

use lapin::types::AMQPValue;

use crate::support::body::{BINARY, Body, JSON, MSGPACK};
use crate::support::metrics::Metrics;
use crate::support::scene::as_producer;
use crate::support::{Element, Job, Nesting, Producer, Reply, Request, Scene, Tensor, eventually};

fn good() -> Request {
    Request::new([Tensor::fp32("x", &[[0.0, 1.0, 2.0, 3.0]])])
}

/// A body for `affine` that cannot be run, and words that its sender must find in the answer.
struct Bad {
    case: &'static str,
    body: Body,
    words: &'static [&'static str],
}

fn bad(case: &'static str, body: Body, words: &'static [&'static str]) -> Bad {
    Bad { case, body, words }
}

fn json(text: &str) -> Body {
    Body::raw(JSON, text.as_bytes())
}

fn x(datatype: &str, shape: &[i64], values: &[f64]) -> Request {
    let elements = values.iter().map(|value| Element::Float(*value)).collect();
    Request::new([Tensor::new("x", datatype, shape, elements)])
}

/// Bodies that are not even a request.
fn undecodable() -> Vec<Bad> {
    let cut = |body: Body| Body {
        bytes: body.bytes[..body.bytes.len() / 2].to_vec(),
        ..body
    };
    vec![
        bad(
            "not MessagePack",
            Body::raw(MSGPACK, b"\xc1\xc1".as_slice()),
            &["MessagePack"],
        ),
        bad(
            "empty MessagePack",
            Body::raw(MSGPACK, b"".as_slice()),
            &["MessagePack"],
        ),
        bad("cut MessagePack", cut(good().msgpack()), &["MessagePack"]),
        bad(
            "a MessagePack number",
            Body::raw(MSGPACK, b"\x07".as_slice()),
            &["integer", "map"],
        ),
        bad("not JSON", json("ceci n'est pas"), &["JSON"]),
        bad("cut JSON", cut(good().json(Nesting::Flat)), &["JSON"]),
        bad("no inputs", json(r#"{"id":"a"}"#), &["inputs"]),
        bad("inputs of another type", json(r#"{"inputs":7}"#), &["inputs"]),
        bad(
            "no shape",
            json(r#"{"inputs":[{"name":"x","datatype":"FP32","data":[1,2,3,4]}]}"#),
            &["shape"],
        ),
        bad(
            "no data",
            json(r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4]}]}"#),
            &["data"],
        ),
        bad(
            "a string among numbers",
            json(r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,"four"]}]}"#),
            &["x", "a string", "FP32"],
        ),
        bad(
            "an unknown format",
            Body::raw("text/csv", b"1,2,3,4".as_slice()),
            &["text/csv", MSGPACK, JSON, BINARY],
        ),
        bad(
            "binary without its header",
            Body {
                header_bytes: None,
                ..good().binary()
            },
            &["inference-header-content-length"],
        ),
    ]
}

/// Requests whose inputs are not those of the model.
fn misnamed() -> Vec<Bad> {
    vec![
        bad(
            "another name",
            Request::new([Tensor::fp32("z", &[[0.0; 4]])]).msgpack(),
            &["z", "x"],
        ),
        bad(
            "an input too many",
            Request::new([Tensor::fp32("x", &[[0.0; 4]]), Tensor::fp32("z", &[[0.0; 4]])]).msgpack(),
            &["inputs", "2", "x"],
        ),
        bad(
            "the same input twice",
            Request::new([Tensor::fp32("x", &[[0.0; 4]]), Tensor::fp32("x", &[[0.0; 4]])]).msgpack(),
            &["x"],
        ),
        bad("no input at all", Request::new([]).msgpack(), &["x"]),
        bad(
            "an output that does not exist",
            good().outputs(&["w"]).msgpack(),
            &["w", "y"],
        ),
    ]
}

/// Requests whose tensors are not what they say, or not what the model takes.
fn misshapen() -> Vec<Bad> {
    vec![
        bad(
            "another numeric datatype",
            x("FP64", &[1, 4], &[0.0; 4]).msgpack(),
            &["x", "FP64", "FP32"],
        ),
        bad(
            "a datatype that does not exist",
            x("FP8", &[1, 4], &[0.0; 4]).json(Nesting::Flat),
            &["FP8", "FP32"],
        ),
        bad(
            "too many columns",
            x("FP32", &[1, 5], &[0.0; 5]).msgpack(),
            &["x", "5", "4"],
        ),
        bad("an axis too few", x("FP32", &[4], &[0.0; 4]).msgpack(), &["x", "4"]),
        bad(
            "an axis too many",
            x("FP32", &[1, 1, 4], &[0.0; 4]).msgpack(),
            &["x", "4"],
        ),
        bad(
            "a negative axis",
            x("FP32", &[-1, 4], &[0.0; 4]).json(Nesting::Flat),
            &["shape", "negative"],
        ),
        bad(
            "fewer elements than the shape says",
            x("FP32", &[2, 4], &[0.0; 4]).msgpack(),
            &["x", "32", "16"],
        ),
        bad(
            "fewer numbers than the shape says",
            x("FP32", &[2, 4], &[0.0; 4]).json(Nesting::Flat),
            &["x", "8", "4"],
        ),
        bad(
            "more elements than the shape says",
            x("FP32", &[1, 4], &[0.0; 8]).msgpack(),
            &["x", "16", "32"],
        ),
        bad(
            "a shape beyond all memory",
            x("FP32", &[1 << 62, 4], &[0.0; 4]).msgpack(),
            &["x"],
        ),
        bad(
            "a shape whose product overflows",
            x("FP32", &[1 << 62, 1 << 62, 1 << 62], &[0.0; 4]).msgpack(),
            &["x"],
        ),
    ]
}

/// Binary bodies whose parts do not fit together.
fn misfitted() -> Vec<Bad> {
    let whole = good().binary();
    let length = |value: AMQPValue| Body {
        header_bytes: Some(value),
        ..whole.clone()
    };
    let longer = Body {
        bytes: [whole.bytes.as_slice(), b"more"].concat(),
        ..whole.clone()
    };
    let shorter = Body {
        bytes: whole.bytes[..whole.bytes.len() - 1].to_vec(),
        ..whole.clone()
    };
    vec![
        bad(
            "a header longer than the body",
            length(AMQPValue::LongLongInt(1 << 40)),
            &["inference-header-content-length"],
        ),
        bad(
            "a header of negative length",
            length(AMQPValue::LongLongInt(-1)),
            &["inference-header-content-length"],
        ),
        bad(
            "a length that is no number",
            length(AMQPValue::LongString("many".into())),
            &["inference-header-content-length"],
        ),
        bad("bytes that no input claims", longer, &["body", "4"]),
        bad("an input that is cut", shorter, &["15", "16"]),
    ]
}

/// Sends bad jobs and checks each answer; the worker must serve as before afterwards.
async fn refuses(cases: Vec<Bad>) {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    for Bad { case, body, words } in cases {
        let content_type = body.content_type;
        let reply = producer.call(scene.job("affine", body).message_id("the-job")).await;

        assert_eq!(reply.status(), "INVALID_ARGUMENT", "{case}: {:?}", reply.failure());
        let sentence = reply.error("INVALID_ARGUMENT");
        for word in words {
            assert!(sentence.contains(word), "{case}: {word} is not in: {sentence}");
        }
        assert_eq!(reply.message_id().as_deref(), Some("the-job"), "{case}");
        if [MSGPACK, JSON].contains(&content_type) {
            assert_eq!(reply.content_type(), content_type, "{case}");
        }
    }
    let after = producer.call(scene.job("affine", good().msgpack())).await;
    worker.drain().await;

    assert_eq!(after.response().output("y").floats(), [-1.0, 2.0, 5.0, 8.0]);
    scene.nothing_is_left("affine").await;
}

#[tokio::test]
async fn a_body_that_is_no_request_is_refused_with_a_sentence_that_names_the_fault() {
    refuses(undecodable()).await;
}

#[tokio::test]
async fn a_request_with_other_names_than_the_models_is_refused_with_what_came_and_what_is_allowed() {
    refuses(misnamed()).await;
}

#[tokio::test]
async fn a_request_with_other_tensors_than_the_models_is_refused_with_what_came_and_what_is_allowed() {
    refuses(misshapen()).await;
}

#[tokio::test]
async fn a_binary_body_whose_parts_do_not_fit_is_refused() {
    refuses(misfitted()).await;
}

#[tokio::test]
async fn numbers_that_the_datatype_cannot_hold_are_refused_not_bent() {
    let scene = Scene::new();
    let _worker = scene
        .worker("identity-uint8,identity-int64,identity-bool")
        .start()
        .await;
    let mut producer = scene.producer().await;

    let cases = [
        ("identity-uint8", "UINT8", "[1, 2, 300]"),
        ("identity-uint8", "UINT8", "[1, 2, -1]"),
        ("identity-int64", "INT64", "[1, 2, 1.5]"),
        ("identity-int64", "INT64", "[1, 2, 9223372036854775808]"),
        ("identity-bool", "BOOL", "[true, false, 7]"),
    ];
    for (model, datatype, data) in cases {
        let body = format!(r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":[1,3],"data":{data}}}]}}"#);
        let reply = producer.call(scene.job(model, json(&body))).await;

        let sentence = reply.error("INVALID_ARGUMENT");
        assert!(sentence.contains(datatype), "{data}: {sentence}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_with_its_length_and_the_limit() {
    let scene = Scene::new();
    let _worker = scene
        .worker("affine")
        .env("INFERQ_LIMITS__BODY_BYTES_MAX", "1200")
        .start()
        .await;
    let mut producer = scene.producer().await;

    let body = Request::new([Tensor::fp32("x", &[[0.5; 4]; 100])]).msgpack();
    let length = body.bytes.len().to_string();
    let large = producer.call(scene.job("affine", body)).await;
    let small = producer.call(scene.job("affine", good().msgpack())).await;

    let sentence = large.error("INVALID_ARGUMENT");
    assert!(sentence.contains(&length), "{length} is not in: {sentence}");
    assert!(sentence.contains("1200"), "{sentence}");
    assert_eq!(small.status(), "OK");
}

#[tokio::test]
async fn an_input_that_is_missing_is_named() {
    let scene = Scene::new();
    let _worker = scene.worker("two-heads").start().await;
    let mut producer = scene.producer().await;

    let lacking = Request::new([Tensor::fp32("a", &[[1.0, 2.0]])]);
    let uneven = Request::new([
        Tensor::fp32("a", &[[1.0, 2.0]]),
        Tensor::int64("b", &[[1, 2, 3], [4, 5, 6]]),
    ]);
    let unnamed = Request::new([
        Tensor::fp32("a", &[[1.0, 2.0]]).unnamed(),
        Tensor::int64("b", &[[1, 2, 3]]),
    ]);
    for (request, word) in [(lacking, "b"), (uneven, "2"), (unnamed, "name")] {
        let sentence = producer
            .call(scene.job("two-heads", request.msgpack()))
            .await
            .error("INVALID_ARGUMENT");

        assert!(sentence.contains(word), "{word} is not in: {sentence}");
    }
}

#[tokio::test]
async fn an_error_in_the_binary_tensor_extension_is_plain_json() {
    let scene = Scene::new();
    let _worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let reply = producer
        .call(scene.job("affine", x("FP64", &[1, 4], &[0.0; 4]).binary()))
        .await;

    let body: serde_json::Value = serde_json::from_slice(&reply.body).expect("plain JSON");
    assert_eq!(body["code"], "INVALID_ARGUMENT");
    assert!(body["error"].as_str().is_some_and(|sentence| sentence.contains("FP64")));
    assert_eq!(reply.header("inference-header-content-length"), None);
}

#[tokio::test]
async fn a_job_without_rows_is_answered() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let reply = producer
        .call(scene.job("affine", x("FP32", &[0, 4], &[]).msgpack()))
        .await;
    worker.drain().await;

    if reply.status() == "OK" {
        assert_eq!(reply.response().output("y").shape, [0, 4]);
    } else {
        reply.error("INVALID_ARGUMENT");
    }
}

#[tokio::test]
async fn a_bad_job_without_a_reply_address_becomes_a_dead_letter_that_says_why() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let producer = scene.producer().await;

    let job = scene
        .job("affine", x("FP64", &[1, 4], &[0.0; 4]).msgpack())
        .fire_and_forget();
    let body = job.bytes().to_vec();
    let job = job
        .correlation_id("c-1")
        .message_id("m-1")
        .persistent()
        .text_header("x-mine", "kept");
    producer.send(job).await;
    let letters = scene.dead_letters("affine", 1).await;
    worker.drain().await;

    let [letter] = letters.as_slice() else {
        panic!("one letter")
    };
    assert_eq!(letter.body, body);
    assert_eq!(letter.header("x-mine").as_deref(), Some("kept"));
    let properties = &letter.properties;
    assert_eq!(
        properties.correlation_id().as_ref().map(ToString::to_string).as_deref(),
        Some("c-1")
    );
    assert_eq!(
        properties.message_id().as_ref().map(ToString::to_string).as_deref(),
        Some("m-1")
    );
    assert_eq!(
        properties.content_type().as_ref().map(ToString::to_string).as_deref(),
        Some(MSGPACK)
    );
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(letter.header("inferq-error-code").as_deref(), Some("INVALID_ARGUMENT"));
    let sentence = letter.header("inferq-error").expect("a sentence");
    assert!(sentence.contains("FP64") && sentence.contains("FP32"), "{sentence}");
    for name in [
        "inferq-worker",
        "inferq-model-version",
        "inferq-failed-at",
        "inferq-delivery-count",
    ] {
        assert!(
            letter.header(name).is_some_and(|text| !text.is_empty()),
            "no {name} in {properties:?}"
        );
    }
    scene.until_waiting(&scene.queue("affine"), 0).await;
}

#[tokio::test]
async fn a_version_that_is_not_served_is_not_found() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let job = scene
        .job("affine", good().msgpack())
        .text_header("inferq-model-version", "7");
    let reply = producer.call(job.clone()).await;
    producer.send(job.fire_and_forget()).await;
    let letters = scene.dead_letters("affine", 1).await;
    worker.drain().await;

    let sentence = reply.error("NOT_FOUND");
    for word in ["affine", "7", "1", "2"] {
        assert!(sentence.contains(word), "{word} is not in: {sentence}");
    }
    assert_eq!(letters[0].header("inferq-error-code").as_deref(), Some("NOT_FOUND"));
}

#[tokio::test]
async fn a_version_that_is_no_number_is_refused_or_not_found() {
    let scene = Scene::new();
    let _worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    for version in [
        AMQPValue::LongString("latest".into()),
        AMQPValue::LongLongInt(-1),
        AMQPValue::Boolean(true),
    ] {
        let case = format!("{version:?}");
        let reply = producer
            .call(
                scene
                    .job("affine", good().msgpack())
                    .header("inferq-model-version", version),
            )
            .await;

        assert!(
            ["NOT_FOUND", "INVALID_ARGUMENT"].contains(&reply.status().as_str()),
            "{case}: {}",
            reply.status()
        );
        reply.error(&reply.status());
    }
}

#[tokio::test]
async fn a_job_past_its_deadline_is_answered_so_and_never_becomes_a_dead_letter() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let job = scene.job("affine", good().msgpack());
    producer.send(job.clone().deadline(1).fire_and_forget()).await;
    let late = producer.call(job.clone().deadline(1_000_000_000_000)).await;
    let early = producer.call(job.deadline(9_000_000_000_000)).await;
    worker.drain().await;

    late.error("DEADLINE_EXCEEDED");
    assert_eq!(early.status(), "OK");
    scene.nothing_is_left("affine").await;
}

#[tokio::test]
async fn a_deadline_that_passes_while_the_job_waits_behind_others_counts() {
    let scene = Scene::new();
    let worker = scene.worker("slow").env("INFERQ_BATCH__ROWS_MAX", "1").start().await;
    let mut producer = scene.producer().await;

    // A hundred runs of twenty milliseconds and more, of which the first has begun when the job comes that has less time.
    let long = Request::new([Tensor::fp32("x", &[[0.5; 4]; 100])]).msgpack();
    let long = producer.send(scene.job("slow", long)).await;
    eventually("the long job to be in hand", || async {
        (worker.metrics().await.sum("inferq_jobs_in_hand") == Some(1.0)).then_some(())
    })
    .await;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    let soon = i64::try_from(now.as_millis()).expect("before the year 292278994") + 500;
    let late = producer.send(scene.job("slow", good().msgpack()).deadline(soon)).await;
    let (long, late) = (producer.reply(&long).await, producer.reply(&late).await);
    worker.drain().await;

    assert_eq!(long.status(), "OK");
    late.error("DEADLINE_EXCEEDED");
    scene.nothing_is_left("slow").await;
}

fn index(value: i64) -> Request {
    Request::new([Tensor::int64("index", &[[value]])])
}

#[tokio::test]
async fn a_job_on_which_the_model_fails_is_told_apart_from_the_others_of_its_batch() {
    let scene = Scene::new();
    scene.declare("lookup").await;
    let mut producer = scene.producer().await;

    let culprits = [20_i64, 41];
    let jobs = (0..64_i64).map(|number| {
        let value = if culprits.contains(&number) {
            1000 + number
        } else {
            number % 8
        };
        scene
            .job("lookup", index(value).msgpack())
            .correlation_id(&number.to_string())
            .timed()
    });
    let ids = producer.send_all(jobs).await;
    let worker = scene.worker("lookup").start().await;
    let replies = producer.replies(&ids).await;
    let letters = scene.dead_letters("lookup", culprits.len()).await;
    worker.drain().await;

    let together = replies
        .values()
        .filter_map(|replies| replies[0].header("inferq-batch-rows"))
        .max();
    assert!(
        together.is_some_and(|rows| rows != "1"),
        "nothing was batched, so nothing was proved"
    );
    for (id, replies) in replies {
        let number: i64 = id.parse().expect("our own id");
        assert_eq!(replies.len(), 1, "{id}");
        if culprits.contains(&number) {
            replies[0].error("INTERNAL");
        } else {
            assert_eq!(
                replies[0].response().output("row").floats(),
                table_row(number % 8),
                "{id}"
            );
        }
    }
    let mut dead: Vec<Vec<u8>> = letters.iter().map(|letter| letter.body.clone()).collect();
    dead.sort();
    let mut expected = culprits.map(|number| index(1000 + number).msgpack().bytes);
    expected.sort();
    assert_eq!(dead, expected);
    for letter in letters {
        assert_eq!(letter.header("inferq-error-code").as_deref(), Some("INTERNAL"));
        assert_eq!(letter.header("inferq-model-version").as_deref(), Some("1"));
    }
    scene.until_waiting(&scene.queue("lookup"), 0).await;
}

/// A row of the table in `lookup`: quarters, counted up from -5.
fn table_row(index: i64) -> [f64; 2] {
    let first = f64::from(i32::try_from(2 * index - 5).expect("small"));
    [first / 4.0, (first + 1.0) / 4.0]
}

#[tokio::test]
async fn a_slice_that_fails_makes_its_whole_job_fail_and_no_other() {
    let scene = Scene::new();
    let worker = scene.worker("lookup").env("INFERQ_BATCH__ROWS_MAX", "4").start().await;
    let mut producer = scene.producer().await;

    let rows: Vec<[i64; 1]> = (0..20).map(|row| [if row == 13 { 99 } else { row % 8 }]).collect();
    let large = scene
        .job("lookup", Request::new([Tensor::int64("index", &rows)]).msgpack())
        .correlation_id("large");
    let small = (0..8).map(|value| {
        scene
            .job("lookup", index(value).msgpack())
            .correlation_id(&value.to_string())
    });
    let ids = producer.send_all(std::iter::once(large).chain(small)).await;
    let replies = producer.replies(&ids).await;
    let letters = scene.dead_letters("lookup", 1).await;
    worker.drain().await;

    for (id, replies) in replies {
        assert_eq!(replies.len(), 1, "{id} is answered once");
        if id == "large" {
            replies[0].error("INTERNAL");
        } else {
            assert_eq!(
                replies[0].response().output("row").floats(),
                table_row(id.parse().expect("our own id"))
            );
        }
    }
    assert_eq!(letters[0].header("inferq-error-code").as_deref(), Some("INTERNAL"));
}

fn rows(value: i64) -> Request {
    Request::new([Tensor::int64("rows", &[[value]])])
}

/// More floats than any address space holds.
const IMPOSSIBLE: i64 = 1 << 50;

#[tokio::test]
async fn a_job_for_which_memory_never_suffices_is_given_up_at_the_delivery_limit() {
    let scene = Scene::new();
    let worker = scene
        .worker("hungry")
        .env("INFERQ_TOPOLOGY__DELIVERY_LIMIT", "3")
        .start()
        .await;
    let mut producer = scene.producer().await;

    let small = (0..8).map(|value| {
        scene
            .job("hungry", rows(value).msgpack())
            .correlation_id(&value.to_string())
    });
    let large = scene
        .job("hungry", rows(IMPOSSIBLE).msgpack())
        .correlation_id("large")
        .message_id("large");
    let ids = producer.send_all(small.chain([large])).await;
    let replies = producer.replies(&ids).await;
    let letters = scene.dead_letters("hungry", 1).await;
    let after = producer.call(scene.job("hungry", rows(8).msgpack())).await;
    worker.drain().await;

    for (id, replies) in replies {
        assert_eq!(replies.len(), 1, "{id}");
        if id == "large" {
            replies[0].error("INTERNAL");
            assert_eq!(replies[0].message_id().as_deref(), Some("large"));
        } else {
            let value: f64 = id.parse().expect("our own id");
            assert_eq!(replies[0].response().output("y").floats(), [value]);
        }
    }
    assert_eq!(letters[0].header("inferq-error-code").as_deref(), Some("INTERNAL"));
    let deliveries: u32 = letters[0]
        .header("inferq-delivery-count")
        .expect("a count")
        .parse()
        .expect("a number");
    assert!(
        (3..=4).contains(&deliveries),
        "{deliveries} deliveries with a limit of 3"
    );
    assert_eq!(after.response().output("y").floats(), [8.0]);
    scene.until_waiting(&scene.queue("hungry"), 0).await;
}

#[tokio::test]
async fn a_batch_that_needs_too_much_memory_is_run_in_smaller_ones() {
    let scene = Scene::new();
    scene.declare("crowded").await;
    let mut producer = scene.producer().await;

    let request = |value: u8| Request::new([Tensor::fp32("x", &[[f32::from(value), 0.5]])]);
    let jobs = (0..40).map(|value| {
        scene
            .job("crowded", request(value).msgpack())
            .correlation_id(&value.to_string())
    });
    let ids = producer.send_all(jobs).await;
    let worker = scene.worker("crowded").start().await;
    let replies = producer.replies(&ids).await;
    worker.drain().await;

    for (id, replies) in replies {
        assert_eq!(replies.len(), 1, "{id}");
        assert_eq!(
            replies[0].response().output("y").floats(),
            [id.parse().expect("our own id"), 0.5]
        );
    }
    scene.nothing_is_left("crowded").await;
}

#[tokio::test]
async fn a_reply_whose_queue_is_gone_becomes_a_dead_letter() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let job = scene
        .job("affine", good().msgpack())
        .reply_to("a-queue-that-is-gone")
        .message_id("m-1");
    let body = job.bytes().to_vec();
    producer.send(job).await;
    let letters = scene.dead_letters("affine", 1).await;
    let after = producer.call(scene.job("affine", good().msgpack())).await;
    let metrics = worker.metrics().await;
    worker.drain().await;

    assert_eq!(
        letters[0].header("inferq-error-code").as_deref(),
        Some("UNROUTABLE_REPLY")
    );
    assert!(
        letters[0]
            .header("inferq-error")
            .is_some_and(|sentence| sentence.contains("a-queue-that-is-gone"))
    );
    assert_eq!(letters[0].body, body);
    let reply_to = letters[0].properties.reply_to().as_ref().map(ToString::to_string);
    assert_eq!(reply_to.as_deref(), Some("a-queue-that-is-gone"));
    assert_eq!(after.status(), "OK");
    assert_eq!(dropped(&metrics), 0.0);
    scene.until_waiting(&scene.queue("affine"), 0).await;
}

/// Deliveries that the worker let go of without settling them.
fn dropped(metrics: &Metrics) -> f64 {
    metrics
        .sum("inferq_receipts_dropped_total")
        .expect("receipts are counted")
}

#[tokio::test]
async fn a_reply_whose_queue_is_gone_may_be_discarded_instead() {
    let scene = Scene::new();
    let worker = scene
        .worker("affine")
        .env("INFERQ_REPLY__UNROUTABLE", "discard")
        .start()
        .await;
    let mut producer = scene.producer().await;

    producer
        .send(scene.job("affine", good().msgpack()).reply_to("a-queue-that-is-gone"))
        .await;
    let after = producer.call(scene.job("affine", good().msgpack())).await;
    // A worker that stops gives back what it still asks the broker about.
    eventually("the end of both jobs", || async {
        (worker.metrics().await.sum("inferq_jobs_in_hand") == Some(0.0)).then_some(())
    })
    .await;
    worker.drain().await;

    assert_eq!(after.status(), "OK");
    scene.nothing_is_left("affine").await;
}

#[tokio::test]
async fn an_error_reply_whose_queue_is_gone_keeps_the_job() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let producer = scene.producer().await;

    let job = scene
        .job("affine", x("FP64", &[1, 4], &[0.0; 4]).msgpack())
        .reply_to("a-queue-that-is-gone");
    let body = job.bytes().to_vec();
    producer.send(job).await;
    let letters = scene.dead_letters("affine", 1).await;
    worker.drain().await;

    assert_eq!(letters[0].body, body);
    scene.until_waiting(&scene.queue("affine"), 0).await;
}

#[tokio::test]
async fn a_return_is_credited_to_the_job_it_belongs_to_though_another_has_the_same_message_id() {
    const PAIRS: u8 = 100;
    let scene = Scene::new();
    scene.declare("affine").await;
    let mut listening = scene.producer().await;
    let gone = scene.producer().await;

    let request = |value: f32| Request::new([Tensor::fp32("x", &[[value; 4]])]).msgpack();
    let mut ids = Vec::new();
    for number in 0..PAIRS {
        let id = number.to_string();
        let heard = scene
            .job("affine", request(number.into()))
            .message_id(&id)
            .correlation_id(&id);
        let unheard = scene
            .job("affine", request(1000.0 + f32::from(number)))
            .message_id(&id)
            .correlation_id(&id);
        ids.extend(listening.send_all([heard]).await);
        gone.send(unheard.reply_to("a-queue-that-is-gone")).await;
    }
    let worker = scene.worker("affine").start().await;
    let replies = listening.replies(&ids).await;
    let letters = scene.dead_letters("affine", PAIRS.into()).await;
    worker.drain().await;

    for (id, replies) in replies {
        let value: f64 = id.parse().expect("our own id");
        assert_eq!(replies.len(), 1, "{id}");
        assert_eq!(
            replies[0].response().output("y").floats(),
            [3.0 * value - 1.0; 4],
            "{id}"
        );
    }
    let mut dead: Vec<Vec<u8>> = letters.iter().map(|letter| letter.body.clone()).collect();
    let mut expected: Vec<Vec<u8>> = (0..PAIRS)
        .map(|number| request(1000.0 + f32::from(number)).bytes)
        .collect();
    dead.sort();
    expected.sort();
    assert!(
        dead == expected,
        "the dead letters are not the jobs whose replies had nowhere to go"
    );
    scene.until_waiting(&scene.queue("affine"), 0).await;
}

#[tokio::test]
async fn headers_of_the_wrong_type_neither_break_the_worker_nor_pass_in_silence() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let odd = [
        ("inferq-deadline", AMQPValue::LongString("tomorrow".into())),
        ("inferq-deadline", AMQPValue::LongLongInt(i64::MIN)),
        ("inferq-timing", AMQPValue::LongString("yes".into())),
        ("inferq-timing", AMQPValue::Void),
        ("traceparent", AMQPValue::LongLongInt(7)),
        ("traceparent", AMQPValue::LongString(b"\xff\xfe".to_vec().into())),
    ];
    for (name, value) in odd {
        let case = format!("{name} = {value:?}");
        let reply = producer
            .call(scene.job("affine", good().msgpack()).header(name, value))
            .await;

        assert!(answered(&reply), "{case}: {}", reply.status());
    }
    worker.drain().await;
    scene.nothing_is_left("affine").await;
}

fn answered(reply: &Reply) -> bool {
    ["OK", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED"].contains(&reply.status().as_str())
}

#[tokio::test]
async fn the_log_holds_neither_payloads_nor_a_line_for_each_returned_body() {
    let scene = Scene::new();
    let worker = scene.worker("identity-bytes").start().await;
    let mut producer = scene.producer().await;

    let secret = |shape: &[i64]| {
        let elements = vec![Element::Bytes(b"my-private-text".to_vec()); 3];
        Request::new([Tensor::new("x", "BYTES", shape, elements)]).msgpack()
    };
    let jobs: Vec<Job> = vec![
        scene
            .job("identity-bytes", secret(&[1, 3]))
            .reply_to("a-queue-that-is-gone"),
        scene.job("identity-bytes", secret(&[3])).fire_and_forget(),
    ];
    producer.send_all(jobs).await;
    let answer = producer.call(scene.job("identity-bytes", secret(&[1, 3]))).await;
    scene.dead_letters("identity-bytes", 2).await;
    worker.drain().await;

    assert_eq!(answer.status(), "OK");
    let log = worker.log();
    assert!(!log.contains("my-private-text"), "{log}");
    // The same text as a list of numbers, as some libraries print bytes.
    assert!(!log.contains("109, 121, 45"), "{log}");
}

#[tokio::test]
async fn a_producer_that_is_gone_before_its_direct_reply_costs_nothing_but_that_reply() {
    let scene = Scene::new();
    scene.declare("affine").await;

    let vanishing = Producer::direct(&as_producer(&scene.uri)).await;
    vanishing.send(scene.job("affine", good().msgpack())).await;
    drop(vanishing);
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;
    let reply = producer.call(scene.job("affine", good().msgpack())).await;
    worker.drain().await;

    assert_eq!(reply.status(), "OK");
    scene.until_waiting(&scene.queue("affine"), 0).await;
}
