//! The binary tensor extension: a JSON header, then the raw data of the tensors that state a size, in their order.
//!
//! # Source
//! Triton, "Binary Tensor Data Extension"; `tritonclient.http`, `_get_inference_request` and `InferResult`.

use bytes::{Buf, Bytes};

use super::error::{Index, Problem, WireError};
use super::message::{Data, Entry, Message, Outgoing};
use super::reply::ReplyOutput;
use super::{Encoded, Encoding, JSON_BYTES_HEADER, json};

pub(super) fn read_request(body: &Bytes, json_bytes: usize) -> Result<Message, WireError> {
    let (header, tail) = split(body, json_bytes)?;
    let mut message = json::read_request(&header)?;
    distribute(message.inputs.as_deref_mut(), "inputs", tail)?;
    Ok(message)
}

pub(super) fn read_reply(body: &Bytes, json_bytes: usize) -> Result<Message, WireError> {
    let (header, tail) = split(body, json_bytes)?;
    let mut message = json::read_reply(&header)?;
    distribute(message.outputs.as_deref_mut(), "outputs", tail)?;
    Ok(message)
}

fn split(body: &Bytes, json_bytes: usize) -> Result<(Bytes, Bytes), WireError> {
    if json_bytes > body.len() {
        let body_bytes = body.len();
        return Err(Problem::JsonBytes { json_bytes, body_bytes }.at(JSON_BYTES_HEADER));
    }
    Ok((body.slice(..json_bytes), body.slice(json_bytes..)))
}

/// Gives each tensor its slice of the tail, without copying.
fn distribute(entries: Option<&mut [Entry]>, list: &'static str, mut tail: Bytes) -> Result<(), WireError> {
    for (index, entry) in entries.unwrap_or_default().iter_mut().enumerate() {
        let Some(wanted) = entry.binary_data_size.take() else {
            continue;
        };
        let refused = |problem: Problem| WireError::from(problem).within(Index(index)).within(list);
        if entry.data.is_some() {
            return Err(refused(Problem::DataTwice));
        }
        let left = tail.len();
        if wanted > left {
            return Err(refused(Problem::TailShort { wanted, left }));
        }
        entry.data = Some(Data::Raw(tail.split_to(wanted)));
    }
    match tail.remaining() {
        0 => Ok(()),
        bytes => Err(Problem::TailLeftover { bytes }.into()),
    }
}

pub(super) fn encode(message: &Outgoing<'_>) -> Encoded {
    let mut body = json::header(message);
    let json_bytes = body.len();
    let tensors = message.tensors.map_or(&[][..], |(_, tensors)| tensors);
    let binary = || tensors.iter().filter(|tensor| tensor.binary);
    body.reserve_exact(binary().map(ReplyOutput::bytes).sum());
    for part in binary().flat_map(|tensor| tensor.parts) {
        body.extend_from_slice(part);
    }
    Encoded {
        body: body.into(),
        json_bytes: Some(json_bytes),
        content_type: Encoding::Binary { json_bytes }.content_type(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::request::decode_request;
    use crate::wire::tensor::{Datatype, Tensor, bytes_elements};

    /// `InferenceServerClient.generate_request_body` of tritonclient 2.73.0, for `x` FP16 `[[1, -2], [0.5, 65504]]`
    /// and `words` BYTES `[b"one", b"", b"\xff\0"]` as binary data, `flags` BOOL `[True, False]` with
    /// `binary_data=False`, `request_id="42"`, and the outputs `y` and, with `binary_data=False`, `z`.
    const MIXED: &[u8] = b"{\"id\":\"42\",\"inputs\":[\
        {\"name\":\"x\",\"shape\":[2,2],\"datatype\":\"FP16\",\"parameters\":{\"binary_data_size\":8}},\
        {\"name\":\"words\",\"shape\":[3],\"datatype\":\"BYTES\",\"parameters\":{\"binary_data_size\":17}},\
        {\"name\":\"flags\",\"shape\":[2],\"datatype\":\"BOOL\",\"data\":[true,false]}],\
        \"outputs\":[{\"name\":\"y\",\"parameters\":{\"binary_data\":true}},\
        {\"name\":\"z\",\"parameters\":{\"binary_data\":false}}]}\
        \x00<\x00\xc0\x008\xff{\x03\x00\x00\x00one\x00\x00\x00\x00\x02\x00\x00\x00\xff\x00";
    const MIXED_JSON_BYTES: usize = 362;

    /// The same client's, for `x` FP32 `[[0.1, 1, -1]]` and no outputs named.
    const SINGLE: &[u8] = b"{\"inputs\":[{\"name\":\"x\",\"shape\":[1,3],\"datatype\":\"FP32\",\
        \"parameters\":{\"binary_data_size\":12}}],\"parameters\":{\"binary_data_output\":true}}\
        \xcd\xcc\xcc=\x00\x00\x80?\x00\x00\x80\xbf";
    const SINGLE_JSON_BYTES: usize = 135;

    fn tensors(body: &'static [u8], json_bytes: usize, expected: &[(&str, Datatype)]) -> Vec<Tensor> {
        let encoding = Encoding::Binary { json_bytes };
        let request = decode_request(&encoding, Bytes::from_static(body)).unwrap();
        let inputs = request.inputs.into_iter().zip(expected);
        inputs
            .map(|(input, (name, datatype))| input.into_tensor(name, *datatype).unwrap())
            .collect()
    }

    fn refusal(json: &str, tail: &[u8]) -> String {
        let body = [json.as_bytes(), tail].concat();
        let json_bytes = json.len();
        let refusal = read_request(&body.into(), json_bytes).unwrap_err();
        refusal.to_string()
    }

    #[test]
    fn what_tritons_client_builds_is_read_without_copying_its_tensors() {
        let expected = [
            ("x", Datatype::Fp16),
            ("words", Datatype::Bytes),
            ("flags", Datatype::Bool),
        ];

        let tensors = tensors(MIXED, MIXED_JSON_BYTES, &expected);

        let halves: Vec<f32> = tensors[0]
            .data
            .chunks(2)
            .map(|half| half::f16::from_le_bytes([half[0], half[1]]).to_f32())
            .collect();
        assert_eq!(halves, [1.0, -2.0, 0.5, 65504.0]);
        assert_eq!(tensors[0].shape, [2, 2]);
        let words: Vec<_> = bytes_elements(&tensors[1].data).collect();
        assert_eq!(words, [&b"one"[..], b"", b"\xff\0"]);
        assert_eq!(tensors[2].data[..], [1, 0]);
        assert_eq!(tensors[0].data.as_ptr(), MIXED[MIXED_JSON_BYTES..].as_ptr());
    }

    #[test]
    fn the_outputs_that_tritons_client_asks_for_are_raw_or_json_as_it_says() {
        let mixed = Encoding::Binary {
            json_bytes: MIXED_JSON_BYTES,
        };
        let single = Encoding::Binary {
            json_bytes: SINGLE_JSON_BYTES,
        };

        let named = decode_request(&mixed, Bytes::from_static(MIXED)).unwrap();
        let unnamed = decode_request(&single, Bytes::from_static(SINGLE)).unwrap();

        assert!(named.wants_binary("y", &mixed));
        assert!(!named.wants_binary("z", &mixed));
        assert_eq!(unnamed.outputs, None);
        assert_eq!(unnamed.binary_output, Some(true));
        let single = tensors(SINGLE, SINGLE_JSON_BYTES, &[("x", Datatype::Fp32)]);
        assert_eq!(single[0].data[..4], 0.1_f32.to_le_bytes());
    }

    #[test]
    fn every_raw_byte_belongs_to_exactly_one_tensor() {
        let json = r#"{"inputs":[{"shape":[2],"datatype":"INT8","parameters":{"binary_data_size":2}}]}"#;

        assert!(refusal(json, b"1").contains("inputs[0]: 2 raw bytes were announced, 1"));
        assert!(refusal(json, b"123").contains("1 raw bytes belong to no tensor"));
        assert!(read_request(&[json.as_bytes(), b"12"].concat().into(), json.len()).is_ok());
    }

    #[test]
    fn a_size_that_no_body_has_is_refused() {
        let json = format!(
            r#"{{"inputs":[{{"shape":[2],"parameters":{{"binary_data_size":{}}}}}]}}"#,
            usize::MAX
        );

        assert!(refusal(&json, b"12").contains("were announced"));
    }

    #[test]
    fn a_tensor_with_data_and_a_size_is_refused() {
        let json = r#"{"inputs":[{"shape":[2],"data":[1,2],"parameters":{"binary_data_size":2}}]}"#;

        assert!(refusal(json, b"12").contains("both `data` and"));
    }

    #[test]
    fn a_header_length_beyond_the_body_is_refused() {
        let body = Bytes::from_static(b"{}");

        let refusal = read_request(&body, 3).unwrap_err();

        assert!(refusal.to_string().contains("3 bytes by its header"));
    }
}
