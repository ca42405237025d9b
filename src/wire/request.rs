//! A job's body: one inference request of the Open Inference Protocol.
//!
//! Decoding checks all that can be known without the model; [`RequestInput::into_tensor`] checks the rest. Which
//! inputs a model has is the worker's question.

use std::collections::HashSet;

use bytes::Bytes;

use super::error::{Index, Problem, WireError, excerpt};
use super::message::{A_LIST, A_SHAPE, A_STRING, DATA, Data, Entry, Message, Outgoing};
use super::reply::ReplyOutput;
use super::tensor::{Datatype, Tensor, element_count};
use super::{Encoded, Encoding, binary, json, msgpack};

#[derive(Debug)]
pub struct Request {
    pub id: Option<String>,
    /// In the order they came; no two have the same name.
    pub inputs: Vec<RequestInput>,
    /// The outputs asked for; `None`, also for an empty list, is all of them.
    pub outputs: Option<Vec<RequestedOutput>>,
    /// `parameters.binary_data_output`: the rule for outputs that do not say.
    pub binary_output: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedOutput {
    pub name: String,
    /// `parameters.binary_data`.
    pub binary: Option<bool>,
}

/// One input, its data still as they lie in the body.
#[derive(Debug)]
pub struct RequestInput {
    /// May be absent where the model has a single input.
    pub name: Option<String>,
    pub datatype: Option<Datatype>,
    pub shape: Vec<usize>,
    data: Data,
}

/// Reads one body. Raw tensors stay slices of it; memory: see [`crate::wire`].
///
/// # Errors
/// If the body is not what `encoding` says, breaks the protocol, or names an input twice.
#[expect(
    clippy::needless_pass_by_value,
    reason = "a request keeps slices of the body, and its caller has done with it"
)]
pub fn decode_request(encoding: &Encoding, body: Bytes) -> Result<Request, WireError> {
    let message = match *encoding {
        Encoding::MsgPack => msgpack::read_request(&body)?,
        Encoding::Json => json::read_request(&body)?,
        Encoding::Binary { json_bytes } => binary::read_request(&body, json_bytes)?,
    };
    Request::try_from(message)
}

impl Request {
    /// Whether an output goes back as raw bytes: as the output says, else the request, else as the encoding
    /// does best. Meaningless for JSON, which has no raw bytes.
    pub fn wants_binary(&self, output: &str, encoding: &Encoding) -> bool {
        let requested = self.outputs.iter().flatten();
        let of_output = requested
            .filter(|requested| requested.name == output)
            .find_map(|requested| requested.binary);
        of_output.or(self.binary_output).unwrap_or(match encoding {
            Encoding::MsgPack | Encoding::Binary { .. } => true,
            Encoding::Json => false,
        })
    }
}

impl TryFrom<Message> for Request {
    type Error = WireError;

    fn try_from(message: Message) -> Result<Self, WireError> {
        let inputs = message
            .inputs
            .ok_or_else(|| Problem::Missing { allowed: A_LIST }.at("inputs"))?;
        let input = |(index, entry)| {
            RequestInput::try_from(entry).map_err(|refusal: WireError| refusal.within(Index(index)).within("inputs"))
        };
        let inputs: Vec<_> = inputs.into_iter().enumerate().map(input).collect::<Result<_, _>>()?;
        check_names(&inputs)?;
        let requested = message.outputs.unwrap_or_default().into_iter().enumerate();
        let outputs: Vec<_> = requested
            .map(|(index, entry)| requested_output(entry, index))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            id: message.id,
            inputs,
            outputs: Some(outputs).filter(|outputs| !outputs.is_empty()),
            binary_output: message.binary_data_output,
        })
    }
}

impl TryFrom<Entry> for RequestInput {
    type Error = WireError;

    fn try_from(entry: Entry) -> Result<Self, WireError> {
        let shape = entry
            .shape
            .ok_or_else(|| Problem::Missing { allowed: A_SHAPE }.at("shape"))?;
        if element_count(&shape).is_none() {
            return Err(Problem::ShapeOverflow.at("shape"));
        }
        let data = match (entry.data, entry.binary_data_size) {
            (Some(data), None) => data,
            (_, Some(_)) => return Err(Problem::BinaryInJson.into()),
            (None, None) => return Err(Problem::Missing { allowed: DATA }.at("data")),
        };
        Ok(Self {
            name: entry.name,
            datatype: entry.datatype,
            shape,
            data,
        })
    }
}

impl RequestInput {
    /// The tensor as the model takes it. Raw data are only checked, numbers of an array take the model's type.
    ///
    /// Time: one pass over the data if they are an array, BYTES or BOOL; constant for all else.
    /// # Errors
    /// If the data are of another datatype, or of another length than the shape says.
    pub fn into_tensor(self, name: &str, expected: Datatype) -> Result<Tensor, WireError> {
        let data = self
            .data
            .decode(self.datatype, &self.shape, expected)
            .map_err(|problem| problem.at(&format!("input `{}`", excerpt(name))))?;
        Ok(Tensor {
            name: name.to_owned(),
            datatype: expected,
            shape: self.shape,
            data,
        })
    }
}

fn check_names(inputs: &[RequestInput]) -> Result<(), WireError> {
    let mut names = HashSet::new();
    for name in inputs.iter().filter_map(|input| input.name.as_deref()) {
        // A set of one name needs no memory, and most jobs have one input.
        if inputs.len() > 1 && !names.insert(name) {
            return Err(Problem::NameTwice.at(&format!("input `{}`", excerpt(name))));
        }
    }
    Ok(())
}

fn requested_output(entry: Entry, index: usize) -> Result<RequestedOutput, WireError> {
    let name = entry.name.ok_or_else(|| {
        Problem::Missing { allowed: A_STRING }
            .at("name")
            .within(Index(index))
            .within("outputs")
    })?;
    Ok(RequestedOutput {
        name,
        binary: entry.binary_data,
    })
}

/// How a producer wants its request encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestEncoding {
    /// Every input as `bin`.
    MsgPack,
    Json,
    /// Every input raw behind the JSON.
    Binary,
}

/// Encodes a request, as a producer does. BYTES that are not UTF-8 do not survive JSON. An empty name is left out, as
/// the protocol of this project allows where a model has a single input.
///
/// # Panics
/// If a tensor has 4 GiB or more and the encoding is MessagePack; no broker takes such a message.
pub fn encode_request(
    encoding: RequestEncoding,
    id: Option<&str>,
    inputs: &[Tensor],
    outputs: &[RequestedOutput],
) -> Encoded {
    let parts: Vec<[&[u8]; 1]> = inputs.iter().map(|input| [&input.data[..]]).collect();
    // An input is written as the output of a reply is.
    let tensors: Vec<_> = inputs
        .iter()
        .zip(&parts)
        .map(|(input, parts)| ReplyOutput {
            name: &input.name,
            datatype: input.datatype,
            shape: &input.shape,
            parts,
            binary: encoding != RequestEncoding::Json,
        })
        .collect();
    let id = id.map(|id| ("id", id));
    let message = Outgoing {
        strings: id.as_slice(),
        tensors: Some(("inputs", &tensors)),
        requested: outputs,
    };
    match encoding {
        RequestEncoding::MsgPack => msgpack::encode(&message),
        RequestEncoding::Json => json::encode(&message),
        RequestEncoding::Binary => binary::encode(&message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The same document in MessagePack and in JSON.
    fn both(document: &Value) -> [(Encoding, Bytes); 2] {
        [
            (Encoding::MsgPack, rmp_serde::to_vec(document).unwrap().into()),
            (Encoding::Json, document.to_string().into()),
        ]
    }

    fn refusals(document: &Value) -> [String; 2] {
        both(document).map(|(encoding, body)| {
            let refusal = decode_request(&encoding, body).map(|_| document);
            refusal.unwrap_err().to_string()
        })
    }

    fn tensors(document: &Value, expected: Datatype) -> [Result<Tensor, WireError>; 2] {
        both(document).map(|(encoding, body)| {
            let mut request = decode_request(&encoding, body).unwrap();
            request.inputs.remove(0).into_tensor("x", expected)
        })
    }

    fn input(shape: &Value, data: &Value) -> Value {
        json!({"inputs": [{"name": "x", "shape": shape, "data": data}]})
    }

    fn fp32(tensor: &Tensor) -> Vec<f32> {
        let (values, _) = tensor.data.as_chunks();
        values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }

    /// `msgpack.packb` of msgpack-python 1.2.4, `data` before what it needs to be understood.
    const PACKED: &[u8] = b"\x82\xa2id\xa17\xa6inputs\x91\x84\xa4data\xc4\x10\x00\x00\x80?\x00\x00\x00@\
        \x00\x00@@\x00\x00\x80@\xa5shape\x92\x02\x02\xa8datatype\xa4FP32\xa4name\xa1x";

    #[test]
    fn a_msgpack_job_from_python_is_read_in_any_order_without_copying_its_data() {
        let body = Bytes::from_static(PACKED);

        let mut request = decode_request(&Encoding::MsgPack, body).unwrap();
        let tensor = request.inputs.remove(0).into_tensor("x", Datatype::Fp32).unwrap();

        assert_eq!(request.id.as_deref(), Some("7"));
        assert_eq!(fp32(&tensor), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(tensor.shape, [2, 2]);
        assert!(PACKED.as_ptr_range().contains(&tensor.data.as_ptr()));
    }

    #[test]
    fn an_input_without_a_name_is_sent_without_one() {
        let tensor = Tensor::fp32("", &[1, 2], &[1.0, 2.0]);
        for encoding in [RequestEncoding::MsgPack, RequestEncoding::Json, RequestEncoding::Binary] {
            let encoded = encode_request(encoding, None, std::slice::from_ref(&tensor), &[]);

            let request = decode_request(&encoded.encoding(), encoded.body).unwrap();

            assert_eq!(request.inputs[0].name, None, "{encoding:?}");
        }
    }

    #[test]
    fn flat_and_nested_arrays_of_numbers_take_the_models_type() {
        let shape = json!([2, 2]);
        for data in [json!([1, 2.5, -3, 4e0]), json!([[1, 2.5], [-3, 4]])] {
            for tensor in tensors(&input(&shape, &data), Datatype::Fp32) {
                assert_eq!(fp32(&tensor.unwrap()), [1.0, 2.5, -3.0, 4.0]);
            }
        }
        for tensor in tensors(&input(&json!([2]), &json!([7.0, -1])), Datatype::Int8) {
            assert_eq!(tensor.unwrap().data[..], [7, 0xff]);
        }
    }

    #[test]
    fn arrays_of_booleans_and_strings_are_read() {
        let flags = input(&json!([1, 2]), &json!([[true, false]]));
        let words = input(&json!([2]), &json!(["é\"\n", ""]));

        for tensor in tensors(&flags, Datatype::Bool) {
            assert_eq!(tensor.unwrap().data[..], [1, 0]);
        }
        for tensor in tensors(&words, Datatype::Bytes) {
            assert_eq!(tensor.unwrap().data[..], *b"\x04\0\0\0\xc3\xa9\"\n\0\0\0\0");
        }
    }

    #[test]
    fn arrays_that_do_not_nest_as_the_shape_are_refused() {
        let shape = json!([2, 2]);
        for data in [
            json!([[1, 2], [3]]),
            json!([[1, 2], [3, 4, 5]]),
            json!([[1, 2], 3, 4]),
            json!([1, [2, 3], 4]),
            json!([[1, 2]]),
            json!([[1, 2], [3, 4], [5, 6]]),
            json!([[[1], [2]], [[3], [4]]]),
            json!([[1, 2], [3, {}]]),
            json!([1, 2, 3]),
            json!([1, 2, 3, 4, 5]),
            json!([[], []]),
            json!([]),
        ] {
            for tensor in tensors(&input(&shape, &data), Datatype::Fp32) {
                assert!(tensor.is_err(), "{data}");
            }
        }
    }

    #[test]
    fn a_tensor_may_be_empty_or_without_axes() {
        for (shape, data) in [
            (json!([0, 3]), json!([])),
            (json!([2, 0]), json!([[], []])),
            (json!([]), json!([5])),
        ] {
            for tensor in tensors(&input(&shape, &data), Datatype::Fp32) {
                let elements = fp32(&tensor.unwrap()).len();
                assert_eq!(elements, usize::from(shape == json!([])), "{shape}");
            }
        }
    }

    #[test]
    fn raw_data_of_another_datatype_are_refused_and_both_are_named() {
        let body = Bytes::from_static(PACKED);
        let mut request = decode_request(&Encoding::MsgPack, body).unwrap();

        let refusal = request.inputs.remove(0).into_tensor("x", Datatype::Int32);

        assert_eq!(
            refusal.unwrap_err().to_string(),
            "input `x`: datatype FP32 came, the model takes INT32"
        );
    }

    #[test]
    fn a_refusal_names_the_field_and_what_is_allowed() {
        let shape = json!([1]);
        for (document, place, allowed) in [
            (json!([]), "body: ", "a map"),
            (json!({}), "inputs: ", "an array of maps"),
            (json!({"inputs": "x"}), "inputs: ", "an array of maps"),
            (json!({"inputs": [{"data": [1]}]}), "inputs[0].shape: ", "integers >= 0"),
            (json!({"inputs": [{"shape": [1]}]}), "inputs[0].data: ", "an array"),
            (input(&json!([-1]), &json!([])), "inputs[0].shape: ", "an integer >= 0"),
            (input(&json!([1.5]), &json!([])), "inputs[0].shape: ", "an integer >= 0"),
            (input(&json!([[1]]), &json!([])), "inputs[0].shape: ", "an integer >= 0"),
            (input(&json!("1"), &json!([])), "inputs[0].shape: ", "integers >= 0"),
            (input(&json!(vec![1; 9]), &json!([])), "inputs[0].shape: ", "at most 8"),
            (input(&json!([u64::MAX, 2]), &json!([])), "inputs[0].shape: ", "address"),
            (input(&shape, &json!("AAAA")), "inputs[0].data: ", "an array"),
            (input(&shape, &json!({})), "inputs[0].data: ", "an array"),
            (json!({"inputs": [{"name": 1}]}), "inputs[0].name: ", "a string"),
            (
                json!({"inputs": [{"datatype": "F4"}]}),
                "inputs[0].datatype: `F4`",
                "FP32",
            ),
            (json!({"inputs": [], "outputs": [{}]}), "outputs[0].name: ", "a string"),
            (json!({"inputs": [], "id": 5}), "id: ", "a string"),
            (
                json!({"inputs": [], "parameters": {"binary_data_output": 1}}),
                "parameters.binary_data_output: ",
                "true or false",
            ),
            (
                json!({"inputs": [{"shape": [1], "parameters": {"binary_data_size": 1}}]}),
                "inputs[0]: ",
                "application/octet-stream",
            ),
        ] {
            for refusal in refusals(&document) {
                assert!(refusal.starts_with(place), "{document}: {refusal}");
                assert!(refusal.contains(allowed), "{document}: {refusal}");
            }
        }
    }

    #[test]
    fn a_refusal_never_quotes_values() {
        let secret = "s3cret".repeat(100);
        for document in [
            json!(secret),
            json!({"inputs": secret}),
            json!({"inputs": [secret]}),
            json!({"inputs": [{"shape": secret, "data": []}]}),
            json!({"inputs": [{"shape": [secret], "data": []}]}),
            json!({"inputs": [{"shape": [1], "data": secret}]}),
            json!({"inputs": [], "parameters": secret}),
        ] {
            for refusal in refusals(&document) {
                assert!(!refusal.contains("s3cret"), "{refusal}");
                assert!(refusal.len() < 300, "{refusal}");
            }
        }
        for tensor in tensors(&input(&json!([1]), &json!([secret])), Datatype::Fp32) {
            assert!(!tensor.unwrap_err().to_string().contains("s3cret"));
        }
    }

    #[test]
    fn unknown_keys_are_skipped_and_null_is_as_if_absent() {
        let document = json!({
            "model_name": 5, "extra": [{"deep": [1, {"er": null}]}], "id": null, "outputs": null,
            "parameters": {"priority": 3},
            "inputs": [{
                "name": null, "datatype": null, "shape": [1], "data": [1], "more": {"x": [true]},
                "parameters": {"anything": [1]},
            }],
        });

        for (encoding, body) in both(&document) {
            let request = decode_request(&encoding, body).unwrap();

            assert_eq!(request.id, None);
            assert_eq!(request.outputs, None);
            assert_eq!(request.inputs[0].name, None);
        }
    }

    #[test]
    fn a_key_that_comes_twice_is_refused() {
        let json = br#"{"inputs":[{"shape":[1],"shape":null,"data":[1]}]}"#;
        let msgpack = b"\x81\xa6inputs\x91\x83\xa5shape\x91\x01\xa5shape\xc0\xa4data\x91\x01";

        for (encoding, body) in [(Encoding::Json, &json[..]), (Encoding::MsgPack, msgpack)] {
            let refusal = decode_request(&encoding, Bytes::from_static(body)).unwrap_err();

            assert_eq!(refusal.to_string(), "inputs[0].shape: comes twice; allowed is once");
        }
    }

    #[test]
    fn two_inputs_of_one_name_are_refused() {
        let one = json!({"name": "x", "shape": [1], "data": [1]});

        for refusal in refusals(&json!({"inputs": [one, one]})) {
            assert!(refusal.starts_with("input `x`: "), "{refusal}");
        }
    }

    #[test]
    fn bytes_after_the_message_are_refused() {
        for (encoding, body) in both(&json!({"inputs": []})) {
            let longer = [&body[..], b"1"].concat();

            assert!(decode_request(&encoding, body).is_ok());
            assert!(decode_request(&encoding, longer.into()).is_err());
        }
    }

    #[test]
    fn more_tensors_than_allowed_are_refused() {
        let one = json!({"shape": [1], "data": [1]});
        let list = |count| json!({"inputs": vec![one.clone(); count]});

        for (encoding, body) in both(&list(super::super::TENSORS_MAX)) {
            assert!(decode_request(&encoding, body).is_ok());
        }
        for refusal in refusals(&list(super::super::TENSORS_MAX + 1)) {
            assert!(refusal.contains("at most 1024"), "{refusal}");
        }
    }

    #[test]
    fn an_input_takes_no_more_memory_than_stated() {
        let json_values = 5 * size_of::<usize>() * 2 * 2; // in a vector that has just doubled
        let shape = super::super::tensor::AXES_MAX * size_of::<usize>();
        let name_in_a_set = 2 * size_of::<&str>() + 2;
        let bytes = json_values + size_of::<Entry>() + size_of::<RequestInput>() + shape + name_in_a_set;

        assert!(bytes <= 512, "{bytes}");
    }

    #[test]
    fn json_numbers_that_are_no_numbers_are_refused() {
        for data in ["[01]", "[1.]", "[.5]", "[+1]", "[NaN]", "[1,]", "[,1]", "[1 2]", "[1"] {
            let body = format!(r#"{{"inputs":[{{"shape":[1],"data":{data}}}]}}"#);

            let refusal = decode_request(&Encoding::Json, body.into()).unwrap_err();

            assert!(refusal.to_string().contains("is not JSON"), "{refusal}");
        }
    }

    #[test]
    fn a_json_body_nested_without_end_is_refused_or_skipped_without_recursion() {
        let deep = "[".repeat(1_000_000);
        let closed = deep.clone() + &"]".repeat(1_000_000);
        let request = |data: &str| format!(r#"{{"inputs":[{{"shape":[1],"data":{data}}}]}}"#);

        let open = decode_request(&Encoding::Json, request(&deep).into());
        let mut closed = decode_request(&Encoding::Json, request(&closed).into()).unwrap();

        assert!(open.is_err());
        let tensor = closed.inputs.remove(0).into_tensor("x", Datatype::Fp32);
        assert!(tensor.is_err());
    }
}
