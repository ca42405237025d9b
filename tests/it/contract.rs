//! Is the contract that is written down for other programs the one that is kept?
//!
//! `config/asyncapi.yaml` and `config/schemas/` say in schemas what the README says in words.

use std::collections::BTreeSet;
use std::process::Stdio;

use inferq::wire::status::Status;
use inferq::wire::tensor::Datatype;
use lapin::BasicProperties;
use lapin::types::AMQPValue;
use rmpv::Value as Pack;
use serde_json::{Value as Json, json};
use tokio::process::Command;

use crate::support::body::{BINARY, Body};
use crate::support::producer::{Job, headers_of};
use crate::support::{Nesting, Request, Scene, Tensor, root, within};

#[tokio::test]
async fn the_asyncapi_document_is_valid_and_holds_every_kind_of_message() {
    let checking = Command::new("node")
        .arg("tests/node/asyncapi.js")
        .arg("config/asyncapi.yaml")
        .current_dir(root())
        .env("NODE_PATH", root().join(".deps/node/node_modules"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let checked = within("the parser of AsyncAPI", checking)
        .await
        .expect("`make setup` installs node");

    let faults = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{faults}");
    let messages = String::from_utf8_lossy(&checked.stdout);
    let messages: Vec<&str> = messages.lines().collect();
    let expected = ["binaryJob", "binaryResult", "deadLetter", "error", "job", "result"];
    assert_eq!(messages, expected);
}

#[test]
fn the_schemas_know_the_datatypes_and_statuses_of_the_code() {
    let datatypes = json!(Datatype::ALL.map(Datatype::name));
    assert_eq!(
        schema("job")["definitions"]["input"]["properties"]["datatype"]["enum"],
        datatypes
    );
    assert_eq!(
        schema("result")["definitions"]["output"]["properties"]["datatype"]["enum"],
        datatypes
    );

    // What is UNAVAILABLE goes back to its queue, and nobody hears of it.
    let answered: BTreeSet<&str> = Status::ALL.map(Status::name).into();
    let answered: BTreeSet<&str> = answered.into_iter().filter(|name| *name != "UNAVAILABLE").collect();
    let listed = schema("reply-headers")["properties"]["inferq-status"]["enum"].clone();
    assert_eq!(names(&listed), answered);
    let errors = schema("error")["properties"]["code"]["enum"].clone();
    assert_eq!(
        names(&errors),
        answered.iter().copied().filter(|name| *name != "OK").collect()
    );
}

#[test]
fn what_the_contract_does_not_allow_fits_no_schema() {
    let output = json!({"name": "y", "datatype": "FP32", "shape": [1], "data": [1]});
    let input = json!({"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [[1]]});
    for (name, wrong) in [
        ("job", json!([])),
        ("job", json!({"id": "a"})),
        ("job", json!({"inputs": [{"name": "x", "shape": [1], "data": [1]}]})),
        (
            "job",
            json!({"inputs": [{"datatype": "FP8", "shape": [1], "data": [1]}]}),
        ),
        (
            "job",
            json!({"inputs": [{"datatype": "FP32", "shape": [-1], "data": [1]}]}),
        ),
        ("job", json!({"inputs": [{"datatype": "FP32", "shape": [1]}]})),
        ("job", json!({"inputs": [input], "outputs": [{}]})),
        ("result", json!({"model_name": "m", "model_version": "1"})),
        (
            "result",
            json!({"model_name": "m", "model_version": 1, "outputs": [output]}),
        ),
        ("error", json!({"error": "", "code": "INTERNAL"})),
        ("error", json!({"error": "why", "code": "OK"})),
        ("job-headers", json!({"inferq-deadline": "tomorrow"})),
        ("job-headers", json!({"inferq-timing": 2})),
        ("reply-headers", json!({"inferq-status": "OK"})),
        (
            "reply-headers",
            json!({"inferq-status": "UNAVAILABLE", "inferq-model-version": "1"}),
        ),
        ("dead-letter-headers", json!({"inferq-error-code": "INTERNAL"})),
    ] {
        assert!(!faults(name, &wrong).is_empty(), "{name} takes {wrong}");
    }
}

#[tokio::test]
async fn jobs_and_what_the_worker_makes_of_them_fit_the_schemas() {
    let scene = Scene::new();
    let worker = scene.worker("affine,coupled").start().await;
    let mut producer = scene.producer().await;
    let request = Request::new([Tensor::fp32("x", &[[1.0, 2.0, 3.0, 4.0]])])
        .id("r-1")
        .outputs(&["y"]);
    let traced = |body| {
        let job = scene.job("affine", body).timed().timestamp(1_700_000_000);
        job.text_header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .text_header("inferq-model-version", "2")
    };
    let bodies = [
        request.msgpack(),
        request.msgpack_arrays(Nesting::Nested),
        request.json(Nesting::Flat),
        request.json(Nesting::Nested),
        request.binary(),
    ];

    for body in bodies {
        fits("job", &json_of_job(&body));
        let job = traced(body);
        let reply = producer.call(job).await;
        assert_eq!(reply.status(), "OK");
        fits("reply-headers", &headers(&reply.properties));
        let json_bytes = reply.header("inference-header-content-length");
        let bytes = json_bytes.map_or(reply.body.len(), |text| text.parse().expect("a length"));
        fits("result", &json_of(&reply.content_type(), &reply.body[..bytes]));
    }
    let mixed = scene.job("coupled", Request::new([Tensor::fp32("x", &[[1.0, 2.0]])]).msgpack());
    let reply = producer.call(mixed).await;
    assert_eq!(reply.header("inferq-rows").as_deref(), Some("coupled"));
    fits("reply-headers", &headers(&reply.properties));
    for (status, job) in refused(&scene) {
        let reply = producer.call(job).await;
        assert_eq!(reply.status(), status);
        fits("reply-headers", &headers(&reply.properties));
        fits("error", &json_of(&reply.content_type(), &reply.body));
    }
    let bad = scene.job("affine", Request::new([]).json(Nesting::Flat));
    producer.send(bad.deadline(i64::MAX).fire_and_forget()).await;
    let lost = scene.job("affine", request.msgpack()).reply_to("nobody-has-this-queue");
    producer.send(lost).await;
    let letters = scene.dead_letters("affine", 2).await;
    worker.drain().await;

    for letter in letters {
        fits("dead-letter-headers", &headers(&letter.properties));
        fits("job-headers", &headers(&letter.properties));
    }
}

/// A job for each status that a good model answers bad jobs with.
fn refused(scene: &Scene) -> Vec<(&'static str, Job)> {
    let good = || Request::new([Tensor::fp32("x", &[[1.0; 4]])]);
    let job = |body| scene.job("affine", body);
    vec![
        ("INVALID_ARGUMENT", job(Request::new([]).msgpack())),
        ("INVALID_ARGUMENT", job(Body::raw(BINARY, b"no header"))),
        (
            "NOT_FOUND",
            job(good().json(Nesting::Flat)).text_header("inferq-model-version", "99"),
        ),
        ("DEADLINE_EXCEEDED", job(good().msgpack()).deadline(1)),
    ]
}

fn schema(name: &str) -> Json {
    let path = root().join(format!("config/schemas/{name}.schema.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn faults(name: &str, instance: &Json) -> Vec<String> {
    let validator = jsonschema::validator_for(&schema(name)).expect("a schema");
    validator.iter_errors(instance).map(|fault| fault.to_string()).collect()
}

fn fits(name: &str, instance: &Json) {
    assert_eq!(faults(name, instance), [""; 0], "{name}: {instance}");
}

fn names(list: &Json) -> BTreeSet<&str> {
    list.as_array()
        .expect("a list")
        .iter()
        .filter_map(Json::as_str)
        .collect()
}

/// A header table as JSON.
fn headers(properties: &BasicProperties) -> Json {
    fn json_value(value: AMQPValue) -> Json {
        match value {
            AMQPValue::FieldArray(values) => values.as_slice().iter().cloned().map(json_value).collect(),
            AMQPValue::Boolean(flag) => json!(flag),
            AMQPValue::ShortShortInt(number) => json!(number),
            AMQPValue::ShortShortUInt(number) => json!(number),
            AMQPValue::ShortInt(number) => json!(number),
            AMQPValue::ShortUInt(number) => json!(number),
            AMQPValue::LongInt(number) => json!(number),
            AMQPValue::LongUInt(number) => json!(number),
            AMQPValue::LongLongInt(number) => json!(number),
            AMQPValue::Timestamp(seconds) => json!(seconds),
            AMQPValue::LongString(text) => json!(text.to_string()),
            other => panic!("{other:?} has no schema"),
        }
    }
    let headers = headers_of(properties).into_iter();
    headers.map(|(name, header)| (name, json_value(header))).collect()
}

/// The map of a job's body: of the binary tensor extension the JSON part.
fn json_of_job(body: &Body) -> Json {
    let bytes = match &body.header_bytes {
        Some(AMQPValue::LongLongInt(bytes)) => usize::try_from(*bytes).expect("a length"),
        _ => body.bytes.len(),
    };
    json_of(body.content_type, &body.bytes[..bytes])
}

fn json_of(content_type: &str, mut bytes: &[u8]) -> Json {
    if content_type.contains("msgpack") {
        return plain(rmpv::decode::read_value(&mut bytes).expect("MessagePack"));
    }
    serde_json::from_slice(bytes).expect("JSON")
}

/// MessagePack as JSON; `bin`, which JSON lacks, as the array that it stands for.
fn plain(value: Pack) -> Json {
    match value {
        Pack::Nil => Json::Null,
        Pack::Boolean(flag) => json!(flag),
        Pack::Integer(number) => json!(number.as_i64().expect("a small number")),
        Pack::F32(number) => json!(number),
        Pack::F64(number) => json!(number),
        Pack::String(text) => json!(text.into_str().expect("UTF-8")),
        Pack::Binary(bytes) => json!(bytes),
        Pack::Array(values) => values.into_iter().map(plain).collect(),
        Pack::Map(entries) => entries
            .into_iter()
            .map(|(key, value)| (key.as_str().expect("a text").to_owned(), plain(value)))
            .collect(),
        Pack::Ext(..) => panic!("an extension in a body"),
    }
}
