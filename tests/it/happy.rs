//! Is a good job answered as the contract says?

use lapin::types::AMQPValue;

use crate::support::body::{BINARY, JSON, MSGPACK};
use crate::support::producer::{DIRECT, unique};
use crate::support::scene::as_producer;
use crate::support::{Nesting, Producer, Request, Routed, Scene, Tensor};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Two rows for `affine`, whose version 2 answers 3x - 1.
fn two_rows() -> Request {
    Request::new([Tensor::fp32("x", &[[1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 0.0, 10.0]])])
}

const TWICE_PLUS_ONE: [f64; 8] = [3.0, 5.0, 7.0, 9.0, 2.0, -1.0, 1.0, 21.0];
const THRICE_MINUS_ONE: [f64; 8] = [2.0, 5.0, 8.0, 11.0, 0.5, -4.0, -1.0, 29.0];

#[tokio::test]
async fn a_job_is_answered_with_every_property_and_header_of_the_contract() {
    let scene = Scene::new();
    let _worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let job = scene.job("affine", two_rows().id("request-7").msgpack());
    let reply = producer.call(job.correlation_id("c-1").message_id("m-1")).await;

    let properties = &reply.properties;
    assert_eq!(reply.correlation_id().as_deref(), Some("c-1"));
    assert_eq!(reply.message_id().as_deref(), Some("m-1"));
    assert_eq!(reply.content_type(), MSGPACK);
    assert_eq!(
        properties.kind().as_ref().map(ToString::to_string).as_deref(),
        Some("inferq.result")
    );
    let app = properties.app_id().as_ref().map(ToString::to_string);
    assert_eq!(app, Some(format!("inferq/{VERSION}")));
    assert_eq!(reply.header("inferq-status").as_deref(), Some("OK"));
    assert_eq!(reply.header("inferq-model-version").as_deref(), Some("2"));
    let response = reply.response();
    assert_eq!(response.model_name, "affine");
    assert_eq!(response.model_version, "2");
    assert_eq!(response.id.as_deref(), Some("request-7"));
    assert_eq!(response.names(), ["y"]);
    assert_eq!(response.output("y").datatype, "FP32");
    assert_eq!(response.output("y").shape, [2, 4]);
    assert_eq!(response.output("y").floats(), THRICE_MINUS_ONE);
}

#[tokio::test]
async fn a_reply_has_the_content_type_of_its_job() {
    let scene = Scene::new();
    let _worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let bodies = [
        two_rows().msgpack(),
        two_rows().msgpack().content_type("application/x-msgpack"),
        two_rows().msgpack().content_type("application/vnd.msgpack"),
        two_rows().json(Nesting::Flat),
        two_rows().binary(),
    ];
    for body in bodies {
        let sent = body.content_type;
        let reply = producer.call(scene.job("affine", body)).await;

        assert_eq!(reply.content_type(), sent);
        assert_eq!(reply.response().output("y").floats(), THRICE_MINUS_ONE, "{sent}");
    }
}

#[tokio::test]
async fn a_reply_is_named_after_the_correlation_id_when_the_job_has_no_message_id() {
    let scene = Scene::new();
    let _worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let reply = producer
        .call(scene.job("affine", two_rows().msgpack()).correlation_id("c-2"))
        .await;

    assert_eq!(reply.message_id().as_deref(), Some("c-2"));
}

#[tokio::test]
async fn a_reply_is_as_persistent_as_its_job() {
    let scene = Scene::new();
    let _worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let persistent = producer
        .call(scene.job("affine", two_rows().msgpack()).persistent())
        .await;
    let transient = producer.call(scene.job("affine", two_rows().msgpack())).await;

    assert_eq!(*persistent.properties.delivery_mode(), Some(2));
    assert_ne!(*transient.properties.delivery_mode(), Some(2));
}

#[tokio::test]
async fn a_job_without_a_reply_address_runs_and_leaves_nothing_behind() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    producer
        .send(scene.job("affine", two_rows().msgpack()).fire_and_forget())
        .await;
    let answered = producer.call(scene.job("affine", two_rows().msgpack())).await;
    worker.drain().await;

    assert_eq!(answered.status(), "OK");
    assert_eq!(producer.remaining().await.len(), 0);
    scene.nothing_is_left("affine").await;
}

#[tokio::test]
async fn a_job_may_go_straight_to_the_queue() {
    let scene = Scene::new();
    let _worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let job = scene
        .job("affine", two_rows().msgpack())
        .straight_to(&scene.queue("affine"));
    let reply = producer.call(job).await;

    assert_eq!(reply.response().output("y").floats(), THRICE_MINUS_ONE);
}

#[tokio::test]
async fn a_job_for_an_unknown_model_comes_back_to_its_producer() {
    let scene = Scene::new();
    let _worker = scene.worker("affine").start().await;
    let producer = scene.producer().await;

    let routed = producer
        .try_send(scene.job("no-such-model", two_rows().msgpack()))
        .await;

    let Some(Routed::Returned(returned)) = routed else {
        panic!("the job was taken")
    };
    assert_eq!(returned.reply_code, 312, "NO_ROUTE");
}

#[tokio::test]
async fn a_job_that_asks_for_timing_learns_where_its_time_went() {
    let scene = Scene::new();
    let _worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    let job = scene.job("affine", two_rows().msgpack()).timestamp(now.as_secs());
    let timed = producer.call(job.clone().timed()).await;
    let plain = producer.call(job).await;

    assert!(timed.number("inferq-queue-us") >= 0);
    assert!(timed.number("inferq-wait-us") >= 0);
    assert!(timed.number("inferq-infer-us") > 0);
    assert!(timed.number("inferq-total-us") >= timed.number("inferq-infer-us"));
    assert_eq!(timed.number("inferq-batch-rows"), 2);
    for name in [
        "inferq-queue-us",
        "inferq-wait-us",
        "inferq-infer-us",
        "inferq-total-us",
        "inferq-batch-rows",
    ] {
        assert_eq!(plain.header(name), None, "{name} was not asked for");
    }
}

#[tokio::test]
async fn a_reply_carries_the_trace_of_its_job_on() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let scene = Scene::new();
    let _worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let job = scene.job("affine", two_rows().msgpack());
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let traced = producer.call(job.clone().text_header("traceparent", &parent)).await;
    let broken = producer.call(job.clone().text_header("traceparent", "no trace")).await;
    let plain = producer.call(job).await;

    let carried = traced.header("traceparent").expect("the trace goes on");
    assert_eq!(carried.split('-').nth(1), Some(TRACE), "{carried}");
    assert_eq!(broken.status(), "OK", "a broken trace is no reason to refuse a job");
    assert_eq!(plain.header("traceparent"), None);
}

#[tokio::test]
async fn direct_reply_to_works() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = Producer::direct(&as_producer(&scene.uri)).await;

    let job = scene.job("affine", two_rows().msgpack()).reply_to(DIRECT).persistent();
    let reply = producer.call(job.message_id("m-9")).await;
    worker.drain().await;

    assert_eq!(reply.message_id().as_deref(), Some("m-9"));
    assert_eq!(reply.response().output("y").floats(), THRICE_MINUS_ONE);
    scene.nothing_is_left("affine").await;
}

#[tokio::test]
async fn a_job_may_pin_a_version_by_string_or_by_integer_and_gets_the_highest_otherwise() {
    let scene = Scene::new();
    let _worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let pins = [
        (None, "2"),
        (Some(AMQPValue::LongString("1".into())), "1"),
        (Some(AMQPValue::LongString("2".into())), "2"),
        (Some(AMQPValue::LongLongInt(1)), "1"),
        (Some(AMQPValue::LongInt(1)), "1"),
        (Some(AMQPValue::ShortInt(1)), "1"),
        (Some(AMQPValue::ShortShortInt(1)), "1"),
        (Some(AMQPValue::ShortShortUInt(2)), "2"),
    ];
    for (pin, version) in pins {
        let case = format!("{pin:?}");
        let job = scene.job("affine", two_rows().msgpack());
        let job = match pin {
            Some(pin) => job.header("inferq-model-version", pin),
            None => job,
        };
        let reply = producer.call(job).await;

        let expected = if version == "1" {
            TWICE_PLUS_ONE
        } else {
            THRICE_MINUS_ONE
        };
        assert_eq!(reply.header("inferq-model-version").as_deref(), Some(version), "{case}");
        assert_eq!(reply.response().model_version, version, "{case}");
        assert_eq!(reply.response().output("y").floats(), expected, "{case}");
    }
}

#[tokio::test]
async fn two_models_are_served_by_one_worker_at_once() {
    let scene = Scene::new();
    let _worker = scene.worker("affine,two-heads").start().await;
    let mut producer = scene.producer().await;

    let heads = Request::new([Tensor::fp32("a", &[[1.0, 2.0]]), Tensor::int64("b", &[[3, 4, 5]])]);
    let jobs = (0..40).map(|number| match number % 2 {
        0 => scene
            .job("affine", two_rows().msgpack())
            .correlation_id(&format!("affine-{number}")),
        _ => scene
            .job("two-heads", heads.msgpack())
            .correlation_id(&format!("heads-{number}")),
    });
    let ids = producer.send_all(jobs).await;
    let replies = producer.replies(&ids).await;

    for (id, replies) in replies {
        let response = replies[0].response();
        if id.starts_with("affine") {
            assert_eq!(response.output("y").floats(), THRICE_MINUS_ONE);
        } else {
            assert_eq!(response.output("sum").floats(), [15.0]);
        }
    }
}

#[tokio::test]
async fn a_job_with_more_rows_than_a_batch_holds_is_answered_once_with_its_rows_in_order() {
    let scene = Scene::new();
    let worker = scene.worker("affine").env("INFERQ_BATCH__ROWS_MAX", "8").start().await;
    let mut producer = scene.producer().await;

    for count in [7_u16, 8, 9, 16, 17, 1000] {
        let rows: Vec<[f32; 4]> = (0..count)
            .map(|row| [f32::from(row), 0.25, -1.0, f32::from(row) * 0.5])
            .collect();
        let reply = producer
            .call(scene.job("affine", Request::new([Tensor::fp32("x", &rows)]).msgpack()))
            .await;

        let expected: Vec<f64> = rows.iter().flatten().map(|x| f64::from(3.0 * x - 1.0)).collect();
        let response = reply.response();
        assert_eq!(response.output("y").shape, [i64::from(count), 4]);
        assert_eq!(response.output("y").floats(), expected, "{count} rows");
    }
    worker.drain().await;
    assert_eq!(producer.remaining().await.len(), 0, "one reply a job");
}

#[tokio::test]
async fn several_inputs_in_any_order_give_several_outputs() {
    let scene = Scene::new();
    let _worker = scene.worker("two-heads").start().await;
    let mut producer = scene.producer().await;

    let a = Tensor::fp32("a", &[[1.0, 2.5], [0.0, -4.0]]);
    let b = Tensor::int64("b", &[[10, 20, 30], [-1, -2, 1 << 40]]);
    for inputs in [[a.clone(), b.clone()], [b.clone(), a.clone()]] {
        let request = Request::new(inputs);
        for body in [
            request.msgpack(),
            request.msgpack_arrays(Nesting::Nested),
            request.json(Nesting::Flat),
            request.binary(),
        ] {
            let case = body.content_type;
            let response = producer.call(scene.job("two-heads", body)).await.response();

            assert_eq!(response.names(), ["sum", "diff", "echo_b"], "{case}");
            assert_eq!(response.output("sum").shape, [2, 1], "{case}");
            assert_eq!(response.output("sum").floats()[0], 63.5, "{case}");
            assert_eq!(response.output("diff").shape, [2, 2], "{case}");
            assert_eq!(response.output("diff").floats(), [-1.5, 1.5, 4.0, -4.0], "{case}");
            assert_eq!(response.output("echo_b").shape, [2, 3], "{case}");
            assert_eq!(
                response.output("echo_b").integers(),
                [10, 20, 30, -1, -2, 1 << 40],
                "{case}"
            );
        }
    }
}

#[tokio::test]
async fn a_job_that_names_outputs_gets_these_and_no_others() {
    let scene = Scene::new();
    let _worker = scene.worker("two-heads").start().await;
    let mut producer = scene.producer().await;

    let inputs = [Tensor::fp32("a", &[[1.0, 2.0]]), Tensor::int64("b", &[[3, 4, 5]])];
    let one = Request::new(inputs.clone()).outputs(&["diff"]);
    let two = Request::new(inputs).outputs(&["echo_b", "sum"]);
    for encode in [Request::msgpack, Request::binary, |request: &Request| {
        request.json(Nesting::Flat)
    }] {
        let only = producer.call(scene.job("two-heads", encode(&one))).await.response();
        let both = producer.call(scene.job("two-heads", encode(&two))).await.response();

        assert_eq!(only.names(), ["diff"]);
        assert_eq!(only.output("diff").floats(), [-1.0, 1.0]);
        assert_eq!(both.names(), ["echo_b", "sum"]);
        assert_eq!(both.output("sum").floats(), [15.0]);
        assert_eq!(both.output("echo_b").integers(), [3, 4, 5]);
    }
}

#[tokio::test]
async fn jobs_that_want_different_outputs_share_a_batch_and_each_gets_its_own() {
    let scene = Scene::new();
    scene.declare("two-heads").await;
    let mut producer = scene.producer().await;

    let request = |number: i64| {
        let a = Tensor::fp32("a", &[[0.0, 0.0]]);
        let request = Request::new([a, Tensor::int64("b", &[[number, 0, 0]])]);
        if number % 2 == 0 {
            request.outputs(&["echo_b"])
        } else {
            request.outputs(&["sum"])
        }
    };
    let jobs = (0..64).map(|number| {
        let job = scene.job("two-heads", request(number).msgpack());
        job.correlation_id(&number.to_string()).timed()
    });
    let ids = producer.send_all(jobs).await;
    let _worker = scene.worker("two-heads").start().await;
    let replies = producer.replies(&ids).await;

    let together = replies
        .values()
        .map(|replies| replies[0].number("inferq-batch-rows"))
        .max();
    assert!(together > Some(1), "nothing was batched");
    for (id, replies) in replies {
        let number: i64 = id.parse().expect("our own id");
        let response = replies[0].response();
        if number % 2 == 0 {
            assert_eq!(response.names(), ["echo_b"]);
            assert_eq!(response.output("echo_b").integers(), [number, 0, 0]);
        } else {
            assert_eq!(response.names(), ["sum"]);
            assert_eq!(
                response.output("sum").floats(),
                [f64::from(i32::try_from(number).expect("small"))]
            );
        }
    }
}

#[tokio::test]
async fn a_single_input_needs_no_name() {
    let scene = Scene::new();
    let _worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let request = Request::new([Tensor::fp32("x", &[[0.0, 1.0, 2.0, 3.0]]).unnamed()]);
    let bodies = [
        request.msgpack(),
        request.msgpack_arrays(Nesting::Flat),
        request.json(Nesting::Nested),
        request.binary(),
    ];
    for body in bodies {
        let case = body.content_type;
        let response = producer.call(scene.job("affine", body)).await.response();

        assert_eq!(response.output("y").floats(), [-1.0, 2.0, 5.0, 8.0], "{case}");
    }
}

#[tokio::test]
async fn an_answer_in_json_is_json_that_any_reader_takes() {
    let scene = Scene::new();
    let _worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let reply = producer
        .call(scene.job("affine", two_rows().id("j").json(Nesting::Flat)))
        .await;

    assert_eq!(reply.content_type(), JSON);
    let body: serde_json::Value = serde_json::from_slice(&reply.body).expect("JSON");
    assert_eq!(body["model_name"], "affine");
    assert_eq!(body["model_version"], "2");
    assert_eq!(body["id"], "j");
    assert_eq!(body["outputs"][0]["name"], "y");
    assert_eq!(body["outputs"][0]["datatype"], "FP32");
    assert_eq!(body["outputs"][0]["shape"], serde_json::json!([2, 4]));
}

#[tokio::test]
async fn a_binary_answer_says_where_its_json_ends_and_how_long_each_tensor_is() {
    let scene = Scene::new();
    let _worker = scene.worker("two-heads").start().await;
    let mut producer = scene.producer().await;

    let request = Request::new([Tensor::fp32("a", &[[1.0, 2.0]]), Tensor::int64("b", &[[3, 4, 5]])]);
    let reply = producer.call(scene.job("two-heads", request.binary())).await;

    assert_eq!(reply.content_type(), BINARY);
    let length = usize::try_from(reply.number("inference-header-content-length")).expect("a length");
    let header: serde_json::Value = serde_json::from_slice(&reply.body[..length]).expect("JSON");
    let sizes: Vec<u64> = (0..3)
        .map(|output| {
            header["outputs"][output]["parameters"]["binary_data_size"]
                .as_u64()
                .expect("a size")
        })
        .collect();
    assert_eq!(sizes, [4, 8, 24]);
    assert_eq!(reply.body.len(), length + 36);
    assert!(
        header["outputs"][0].get("data").is_none(),
        "a binary output has no data in JSON"
    );
}

#[tokio::test]
async fn a_worker_loads_every_model_of_its_repository_unless_told_otherwise() {
    let scene = Scene::new();
    let repository = tempfile::tempdir().expect("a temporary folder");
    for name in ["affine", "two-heads"] {
        std::os::unix::fs::symlink(crate::support::test_models().join(name), repository.path().join(name))
            .expect("a link");
    }
    let _worker = scene
        .worker("")
        .without_env("INFERQ_MODELS__LOAD")
        .repository(repository.path())
        .start()
        .await;
    let mut producer = scene.producer().await;

    let heads = Request::new([Tensor::fp32("a", &[[1.0, 2.0]]), Tensor::int64("b", &[[3, 4, 5]])]);
    let affine = producer.call(scene.job("affine", two_rows().msgpack())).await;
    let heads = producer
        .call(scene.job("two-heads", heads.msgpack()).correlation_id(&unique()))
        .await;

    assert_eq!(affine.status(), "OK");
    assert_eq!(heads.status(), "OK");
}

#[tokio::test]
async fn classic_queues_serve_as_well() {
    let scene = Scene::new();
    let worker = scene
        .worker("affine")
        .env("INFERQ_TOPOLOGY__QUEUE_TYPE", "classic")
        .start()
        .await;
    let mut producer = scene.producer().await;

    let good = producer.call(scene.job("affine", two_rows().msgpack())).await;
    let bad = scene.job("affine", crate::support::body::Body::raw(MSGPACK, b"?".as_slice()));
    producer.send(bad.fire_and_forget()).await;
    let dead = scene.dead_letters("affine", 1).await;
    worker.drain().await;

    assert_eq!(good.response().output("y").floats(), THRICE_MINUS_ONE);
    assert_eq!(dead[0].header("inferq-error-code").as_deref(), Some("INVALID_ARGUMENT"));
}
