//! Does every datatype survive every body, both ways?

use half::{bf16, f16};
use lapin::types::AMQPValue;

use crate::support::body::{Body, MSGPACK};
use crate::support::{Element, Nesting, Request, Scene, Tensor};

/// Two rows of three elements for the identity model of a datatype.
fn six(model: &'static str, datatype: &str, elements: Vec<Element>) -> (&'static str, Tensor) {
    (model, Tensor::new("x", datatype, &[2, 3], elements))
}

/// Every datatype with the ends of its range, and with what is easily lost on the way.
fn tensors() -> Vec<(&'static str, Tensor)> {
    [whole_numbers(), fractions(), others()].concat()
}

fn whole_numbers() -> Vec<(&'static str, Tensor)> {
    let odd = (1 << 53) + 1; // The first whole number that a double cannot hold.
    vec![
        six(
            "identity-uint8",
            "UINT8",
            unsigned([0, 1, 127, 128, 254, u8::MAX.into()]),
        ),
        six(
            "identity-uint16",
            "UINT16",
            unsigned([0, 1, 255, 256, 32_768, u16::MAX.into()]),
        ),
        six(
            "identity-uint32",
            "UINT32",
            unsigned([0, 1, 65_536, 1 << 31, 16_777_217, u32::MAX.into()]),
        ),
        six(
            "identity-uint64",
            "UINT64",
            unsigned([0, 1, odd, 1 << 63, u64::MAX - 1, u64::MAX]),
        ),
        six(
            "identity-int8",
            "INT8",
            signed([0, -1, 1, i8::MIN.into(), i8::MAX.into(), -100]),
        ),
        six(
            "identity-int16",
            "INT16",
            signed([0, -1, 256, i16::MIN.into(), i16::MAX.into(), -300]),
        ),
        six(
            "identity-int32",
            "INT32",
            signed([0, -1, 16_777_217, i32::MIN.into(), i32::MAX.into(), -70_000]),
        ),
        six(
            "identity-int64",
            "INT64",
            signed([0, -1, odd.cast_signed(), i64::MIN, i64::MAX, -odd.cast_signed()]),
        ),
    ]
}

fn fractions() -> Vec<(&'static str, Tensor)> {
    let halves = [f16::MAX, f16::MIN_POSITIVE, f16::from_f32(0.1)].map(f64::from);
    let brains = [bf16::MAX, bf16::MIN_POSITIVE, bf16::from_f32(0.1)].map(f64::from);
    let singles = [f32::MAX, f32::MIN_POSITIVE, 0.1].map(f64::from);
    let [smallest, tenth] = [-1e-40_f32, 0.3].map(f64::from);
    vec![
        six("identity-fp16", "FP16", floats([[0.0, 1.5, -0.25], halves])),
        six("identity-bf16", "BF16", floats([[0.0, 1.5, -0.25], brains])),
        six("identity-fp32", "FP32", floats([[smallest, 1.5, tenth], singles])),
        six(
            "identity-fp64",
            "FP64",
            floats([[0.1 + 0.2, -1.5, 5e-324], [f64::MAX, f64::MIN_POSITIVE, 1.0 / 3.0]]),
        ),
    ]
}

fn others() -> Vec<(&'static str, Tensor)> {
    let long = "long ".repeat(100);
    let texts = ["", "a", "grüße", "日本語 🦀", "\"quoted\" \\ \n", &long];
    vec![
        six(
            "identity-bool",
            "BOOL",
            [true, false, false, true, true, false].map(Element::Bool).to_vec(),
        ),
        six(
            "identity-bytes",
            "BYTES",
            texts.map(|text| Element::Bytes(text.into())).to_vec(),
        ),
    ]
}

fn unsigned(values: [u64; 6]) -> Vec<Element> {
    values.map(Element::Unsigned).to_vec()
}

fn signed(values: [i64; 6]) -> Vec<Element> {
    values.map(Element::Signed).to_vec()
}

fn floats(rows: [[f64; 3]; 2]) -> Vec<Element> {
    rows.concat().into_iter().map(Element::Float).collect()
}

/// Sends every datatype through its identity model in the body that `encode` makes.
async fn round_trip(encode: impl Fn(&Request) -> Body) {
    let scene = Scene::new();
    let models: Vec<&str> = tensors().iter().map(|(model, _)| *model).collect();
    let _worker = scene.worker(&models.join(",")).start().await;
    let mut producer = scene.producer().await;

    for (model, tensor) in tensors() {
        let reply = producer
            .call(scene.job(model, encode(&Request::new([tensor.clone()]))))
            .await;

        let expected = Tensor {
            name: Some("y".to_owned()),
            ..tensor
        };
        assert_eq!(reply.response().outputs, [expected], "{model}");
    }
}

#[tokio::test]
async fn every_datatype_survives_msgpack_with_bin() {
    round_trip(Request::msgpack).await;
}

#[tokio::test]
async fn every_datatype_survives_msgpack_with_a_flat_array() {
    round_trip(|request| request.msgpack_arrays(Nesting::Flat)).await;
}

#[tokio::test]
async fn every_datatype_survives_msgpack_with_nested_arrays() {
    round_trip(|request| request.msgpack_arrays(Nesting::Nested)).await;
}

#[tokio::test]
async fn every_datatype_survives_json_with_a_flat_array() {
    round_trip(|request| request.json(Nesting::Flat)).await;
}

#[tokio::test]
async fn every_datatype_survives_json_with_nested_arrays() {
    round_trip(|request| request.json(Nesting::Nested)).await;
}

#[tokio::test]
async fn every_datatype_survives_the_binary_tensor_extension() {
    round_trip(Request::binary).await;
}

#[tokio::test]
async fn every_datatype_survives_a_binary_body_whose_answer_is_wanted_in_json() {
    round_trip(|request| request.binary_in_part(|_| true)).await;
}

#[tokio::test]
async fn a_binary_body_may_carry_one_input_in_json_and_another_in_binary() {
    let scene = Scene::new();
    let _worker = scene.worker("two-heads").start().await;
    let mut producer = scene.producer().await;

    let request = Request::new([Tensor::fp32("a", &[[1.0, 2.0]]), Tensor::int64("b", &[[3, 4, 5]])]);
    for binary in ["a", "b"] {
        let body = request.binary_in_part(|tensor| tensor.name.as_deref() == Some(binary));
        let response = producer.call(scene.job("two-heads", body)).await.response();

        assert_eq!(response.output("sum").floats(), [15.0], "{binary} in binary");
        assert_eq!(response.output("echo_b").integers(), [3, 4, 5], "{binary} in binary");
    }
}

#[tokio::test]
async fn the_length_of_a_binary_bodys_header_may_be_a_string_as_in_http() {
    let scene = Scene::new();
    let _worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let mut body = Request::new([Tensor::fp32("x", &[[0.0, 1.0, 2.0, 3.0]])]).binary();
    let Some(AMQPValue::LongLongInt(length)) = body.header_bytes else {
        panic!("a length")
    };
    for header in [
        AMQPValue::LongString(length.to_string().into()),
        AMQPValue::LongInt(i32::try_from(length).expect("short")),
    ] {
        body.header_bytes = Some(header);
        let response = producer.call(scene.job("affine", body.clone())).await.response();

        assert_eq!(response.output("y").floats(), [-1.0, 2.0, 5.0, 8.0]);
    }
}

#[tokio::test]
async fn numbers_without_a_point_take_the_models_type() {
    let scene = Scene::new();
    let _worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;

    let json = br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2.5,-3,4e0]}]}"#;
    let data = [1.into(), 2.5.into(), (-3).into(), 4.into()];
    let input = rmpv::Value::Map(vec![
        ("name".into(), "x".into()),
        ("datatype".into(), "FP32".into()),
        ("shape".into(), rmpv::Value::Array(vec![1.into(), 4.into()])),
        ("data".into(), rmpv::Value::Array(data.to_vec())),
    ]);
    let mut packed = Vec::new();
    let request = rmpv::Value::Map(vec![("inputs".into(), rmpv::Value::Array(vec![input]))]);
    rmpv::encode::write_value(&mut packed, &request).expect("a Vec takes everything");
    for body in [
        Body::raw("application/json", json.as_slice()),
        Body::raw(MSGPACK, packed),
    ] {
        let case = body.content_type;
        let response = producer.call(scene.job("affine", body)).await.response();

        assert_eq!(response.output("y").floats(), [2.0, 6.5, -10.0, 11.0], "{case}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_text_are_carried_whole_or_refused_but_never_cut() {
    let scene = Scene::new();
    let _worker = scene.worker("identity-bytes").start().await;
    let mut producer = scene.producer().await;

    let odd: [&[u8]; 3] = [b"before\0after", b"\0", b"\xff\xfe no UTF-8"];
    for text in odd {
        let elements = vec![
            Element::Bytes(text.to_vec()),
            Element::Bytes(b"b".to_vec()),
            Element::Bytes(b"c".to_vec()),
        ];
        let request = Request::new([Tensor::new("x", "BYTES", &[1, 3], elements.clone())]);
        for body in [request.msgpack(), request.binary()] {
            let reply = producer.call(scene.job("identity-bytes", body)).await;

            if reply.status() == "OK" {
                assert_eq!(reply.response().output("y").elements, elements, "{text:?}");
            } else {
                let sentence = reply.error("INVALID_ARGUMENT");
                assert!(sentence.contains("BYTES") || sentence.contains("UTF-8"), "{sentence}");
            }
        }
    }
}

#[tokio::test]
async fn not_a_number_is_an_answer_and_no_failure() {
    let scene = Scene::new();
    let _worker = scene.worker("nan").start().await;
    let mut producer = scene.producer().await;

    let request = Request::new([Tensor::fp32("x", &[[4.0, -1.0]])]);
    for body in [request.msgpack(), request.binary()] {
        let answer = producer
            .call(scene.job("nan", body))
            .await
            .response()
            .output("y")
            .floats();

        assert_eq!(answer[0], 2.0);
        assert!(answer[1].is_nan());
    }
    // JSON has no such number; whatever is chosen, the reply must be JSON and must not be missing.
    let reply = producer.call(scene.job("nan", request.json(Nesting::Flat))).await;
    let body: Result<serde_json::Value, _> = serde_json::from_slice(&reply.body);
    assert!(body.is_ok(), "{}", String::from_utf8_lossy(&reply.body));
}

#[tokio::test]
async fn infinity_and_negative_zero_survive_the_binary_bodies() {
    let scene = Scene::new();
    let _worker = scene.worker("identity-fp32").start().await;
    let mut producer = scene.producer().await;

    let request = Request::new([Tensor::fp32("x", &[[f32::INFINITY, f32::NEG_INFINITY, -0.0]])]);
    for body in [request.msgpack(), request.binary()] {
        let answer = producer
            .call(scene.job("identity-fp32", body))
            .await
            .response()
            .output("y")
            .floats();

        assert_eq!(answer, [f64::INFINITY, f64::NEG_INFINITY, 0.0]);
        assert!(answer[2].is_sign_negative());
    }
}
