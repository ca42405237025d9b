//! Properties that hold for every encoding alike: what was encoded is decoded, and no bytes do any harm.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::reply::{Reply, ReplyMeta, ReplyOutput, decode_reply, encode_error, encode_reply};
use super::request::{RequestEncoding, RequestedOutput, decode_request, encode_request};
use super::status::Status;
use super::tensor::{Datatype, Tensor, push_bytes_element};
use super::{Encoded, Encoding};

const ENCODINGS: [Encoding; 3] = [Encoding::MsgPack, Encoding::Json, Encoding::Binary { json_bytes: 0 }];

const META: ReplyMeta<'_> = ReplyMeta {
    model_name: "seed",
    model_version: "3",
    id: Some("job \"1\""),
};

/// Text that needs escapes, so that JSON has something to get wrong.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{0,5}", "\\PC{0,40}", "[\"\\\\\n\u{0}é𝄞]{0,9}"]
}

/// One element, as bytes. NaN has many patterns and JSON only one, infinities it has none: they have their own tests.
fn element(datatype: Datatype) -> BoxedStrategy<Vec<u8>> {
    let finite16 = |infinite: u16| any::<u16>().prop_filter("finite", move |b| b & infinite != infinite);
    match datatype {
        Datatype::Bool => any::<bool>().prop_map(|b| vec![b.into()]).boxed(),
        Datatype::Uint8 | Datatype::Int8 => vec(any::<u8>(), 1).boxed(),
        Datatype::Uint16 | Datatype::Int16 => vec(any::<u8>(), 2).boxed(),
        Datatype::Uint32 | Datatype::Int32 => any::<u32>().prop_map(|b| b.to_le_bytes().into()).boxed(),
        Datatype::Uint64 | Datatype::Int64 => any::<u64>().prop_map(|b| b.to_le_bytes().into()).boxed(),
        Datatype::Fp16 => finite16(0x7c00).prop_map(|b| b.to_le_bytes().into()).boxed(),
        Datatype::Bf16 => finite16(0x7f80).prop_map(|b| b.to_le_bytes().into()).boxed(),
        Datatype::Fp32 => any::<f32>().prop_map(|f| f.to_le_bytes().into()).boxed(),
        Datatype::Fp64 => any::<f64>().prop_map(|f| f.to_le_bytes().into()).boxed(),
        Datatype::Bytes => text()
            .prop_map(|text| {
                let mut data = Vec::new();
                push_bytes_element(&mut data, text.as_bytes());
                data
            })
            .boxed(),
    }
}

fn tensor(name: &'static str) -> impl Strategy<Value = Tensor> {
    let datatype = proptest::sample::select(&Datatype::ALL[..]);
    (datatype, vec(0_usize..4, 0..4)).prop_flat_map(move |(datatype, shape)| {
        let count: usize = shape.iter().product();
        vec(element(datatype), count).prop_map(move |elements| Tensor {
            name: name.to_owned(),
            datatype,
            shape: shape.clone(),
            data: elements.concat().into(),
        })
    })
}

fn tensors() -> impl Strategy<Value = Vec<Tensor>> {
    (tensor("x"), tensor("y \"quoted\" é")).prop_map(|(x, y)| vec![x, y])
}

/// Encodes the tensors as a reply; `binary` for the first, and data in two parts where that is possible.
fn reply(encoding: &Encoding, tensors: &[Tensor], binary: bool) -> Encoded {
    let split_at = |tensor: &Tensor| match tensor.datatype.element_bytes() {
        Some(element_bytes) => tensor.data.len() / element_bytes / 2 * element_bytes,
        None => 0,
    };
    let parts: Vec<[&[u8]; 2]> = tensors
        .iter()
        .map(|tensor| tensor.data.split_at(split_at(tensor)).into())
        .collect();
    let outputs: Vec<_> = tensors
        .iter()
        .zip(&parts)
        .enumerate()
        .map(|(index, (tensor, parts))| ReplyOutput {
            name: &tensor.name,
            datatype: tensor.datatype,
            shape: &tensor.shape,
            parts,
            binary: binary == (index == 0),
        })
        .collect();
    encode_reply(encoding, &META, &outputs)
}

/// Decodes whatever it is, as far as it goes; only a panic fails.
fn try_everything(encoding: &Encoding, body: &Bytes) {
    for datatype in Datatype::ALL {
        let Ok(request) = decode_request(encoding, body.clone()) else {
            break;
        };
        for input in request.inputs {
            let _ = input.into_tensor("x", datatype);
        }
    }
    let _ = decode_reply(encoding, body.clone());
}

proptest! {
    #[test]
    fn a_request_is_decoded_to_what_was_encoded(tensors in tensors(), id in proptest::option::of(text())) {
        let asked = [
            RequestedOutput { name: "a".into(), binary: None },
            RequestedOutput { name: "b".into(), binary: Some(false) },
        ];
        for encoding in [RequestEncoding::MsgPack, RequestEncoding::Json, RequestEncoding::Binary] {
            let encoded = encode_request(encoding, id.as_deref(), &tensors, &asked);

            let request = decode_request(&encoded.encoding(), encoded.body).unwrap();

            prop_assert_eq!(&request.id, &id);
            prop_assert_eq!(request.outputs.as_deref(), Some(&asked[..]));
            for (input, tensor) in request.inputs.into_iter().zip(&tensors) {
                prop_assert_eq!(input.name.as_ref(), Some(&tensor.name));
                let decoded = input.into_tensor(&tensor.name, tensor.datatype);
                prop_assert_eq!(decoded.as_ref(), Ok(tensor));
            }
        }
    }

    #[test]
    fn a_reply_is_decoded_to_what_was_encoded_raw_or_not(tensors in tensors(), binary: bool) {
        for encoding in ENCODINGS {
            let encoded = reply(&encoding, &tensors, binary);

            let decoded = decode_reply(&encoded.encoding(), encoded.body).unwrap();

            prop_assert_eq!(decoded, Reply::Result {
                model_name: META.model_name.to_owned(),
                model_version: META.model_version.to_owned(),
                id: META.id.map(str::to_owned),
                outputs: tensors.clone(),
            });
        }
    }

    #[test]
    fn an_error_is_decoded_to_what_was_encoded(
        error in text(),
        code in proptest::sample::select(&Status::ALL[..]),
    ) {
        for encoding in ENCODINGS {
            let encoded = encode_error(&encoding, code, &error);

            prop_assert_eq!(encoded.json_bytes, None);
            let decoded = decode_reply(&encoded.encoding(), encoded.body).unwrap();
            prop_assert_eq!(decoded, Reply::Error { error: error.clone(), code });
        }
    }

    #[test]
    fn the_body_of_a_msgpack_reply_is_allocated_once(tensors in tensors(), binary: bool) {
        let encoded = reply(&Encoding::MsgPack, &tensors, binary);

        let body = Vec::from(encoded.body);
        prop_assert_eq!(body.len(), body.capacity());
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(body in vec(any::<u8>(), 0..200), json_bytes in 0_usize..250) {
        let body = Bytes::from(body);
        for encoding in [Encoding::MsgPack, Encoding::Json, Encoding::Binary { json_bytes }] {
            try_everything(&encoding, &body);
        }
    }

    /// Bytes that look like MessagePack reach deeper than random ones.
    #[test]
    fn any_tokens_of_msgpack_are_decoded_or_refused(
        tokens in vec(proptest::sample::select(&TOKENS[..]), 0..60),
    ) {
        let body = Bytes::from(tokens.concat());
        try_everything(&Encoding::MsgPack, &body);
    }

    #[test]
    fn any_tokens_of_json_are_decoded_or_refused(
        tokens in vec(proptest::sample::select(&JSON_TOKENS[..]), 0..60),
    ) {
        let text = tokens.concat();
        let json_bytes = text.len();
        try_everything(&Encoding::Json, &text.clone().into());
        try_everything(&Encoding::Binary { json_bytes }, &(text + "tail").into());
    }
}

const TOKENS: [&[u8]; 22] = [
    b"\x81",
    b"\x82",
    b"\x84",
    b"\xde\x00\x02",
    b"\x91",
    b"\x92",
    b"\xdc\x00\x02",
    b"\xdd\x00\x00\x00\x01",
    b"\xa6inputs",
    b"\xa7outputs",
    b"\xa4name",
    b"\xa5shape",
    b"\xa8datatype",
    b"\xa4data",
    b"\xaaparameters",
    b"\xa4FP32",
    b"\xa5BYTES",
    b"\xc4\x04\0\0\0\0",
    b"\xc0",
    b"\xca\0\0\0\0",
    b"\x01",
    b"\xff",
];

const JSON_TOKENS: [&str; 22] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"inputs\":[{",
    "\"outputs\":[{",
    "\"name\":",
    "\"shape\":[1]",
    "\"datatype\":\"FP32\"",
    "\"data\":[",
    "\"parameters\":{",
    "\"binary_data_size\":4",
    "1",
    "-1.5e3",
    "null",
    "true",
    "\"\\ud800\"",
    "\"a\\\"b\"",
    " ",
    "}]}",
];

/// Bodies with everything in them that an encoding has.
fn samples() -> Vec<Encoded> {
    let tensor = |name: &str, datatype, data: &'static [u8], shape: &[usize]| Tensor {
        name: name.to_owned(),
        datatype,
        shape: shape.to_vec(),
        data: Bytes::from_static(data),
    };
    let tensors = [
        tensor("x", Datatype::Fp32, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0], &[2, 1]),
        tensor("s", Datatype::Bytes, b"\x02\0\0\0a\"\0\0\0\0", &[2]),
        tensor("b", Datatype::Bool, &[1, 0], &[2]),
    ];
    let asked = [RequestedOutput {
        name: "y".into(),
        binary: Some(true),
    }];
    let mut samples = Vec::new();
    for encoding in [RequestEncoding::MsgPack, RequestEncoding::Json, RequestEncoding::Binary] {
        samples.push(encode_request(encoding, Some("7"), &tensors, &asked));
    }
    for encoding in ENCODINGS {
        samples.push(reply(&encoding, &tensors, true));
        samples.push(reply(&encoding, &tensors, false));
        samples.push(encode_error(&encoding, Status::Internal, "no"));
    }
    samples
}

#[test]
fn a_body_cut_at_any_length_is_refused() {
    for sample in samples() {
        let (encoding, body) = (sample.encoding(), sample.body);

        for length in 0..body.len() {
            let cut = body.slice(..length);
            assert!(decode_request(&encoding, cut.clone()).is_err(), "{length} of {body:?}");
            assert!(decode_reply(&encoding, cut).is_err(), "{length} of {body:?}");
        }
    }
}

#[test]
fn a_body_with_any_bit_or_byte_flipped_is_decoded_or_refused() {
    for sample in samples() {
        let encoding = sample.encoding();
        for index in 0..sample.body.len() {
            for flip in [1, 2, 4, 8, 16, 32, 64, 128, 0xff] {
                let mut body = sample.body.to_vec();
                body[index] ^= flip;

                try_everything(&encoding, &body.into());
            }
        }
    }
}

#[test]
fn infinities_and_nan_survive_msgpack_and_become_nan_in_json() {
    let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
    let tensor = Tensor::fp32("x", &[4], &values);
    let decoded = |encoding: &Encoding, binary| {
        let encoded = reply(encoding, std::slice::from_ref(&tensor), binary);
        let reply = decode_reply(&encoded.encoding(), encoded.body).unwrap();
        let Reply::Result { outputs, .. } = reply else {
            panic!("an error came")
        };
        let (values, _) = outputs[0].data.as_chunks();
        values
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect::<Vec<_>>()
    };

    for binary in [true, false] {
        let values = decoded(&Encoding::MsgPack, binary);
        assert!(values[0].is_nan());
        assert_eq!(values[1..3], [f32::INFINITY, f32::NEG_INFINITY]);
        assert!(values[3].is_sign_negative());
    }
    let values = decoded(&Encoding::Json, false);
    assert!(values[..3].iter().all(|value| value.is_nan()));
    assert!(values[3].is_sign_negative());
}

#[test]
fn strings_that_are_not_utf8_survive_msgpack_arrays() {
    let mut data = Vec::new();
    push_bytes_element(&mut data, b"\xff\xfe");
    let tensor = Tensor {
        name: "s".to_owned(),
        datatype: Datatype::Bytes,
        shape: vec![1],
        data: data.into(),
    };

    let encoded = reply(&Encoding::MsgPack, std::slice::from_ref(&tensor), false);
    let decoded = decode_reply(&Encoding::MsgPack, encoded.body).unwrap();

    let Reply::Result { outputs, .. } = decoded else {
        panic!("an error came")
    };
    assert_eq!(outputs, [tensor]);
}
