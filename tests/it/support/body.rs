//! Requests and responses of the Open Inference Protocol, written a second time.
//!
//! None of the crate's own wire code is used: a mistake that it makes the same way in both directions shows here.
//! Elements are kept as numbers, not as bytes, so that a test states what it means.

use std::str::FromStr;

use half::{bf16, f16};
use rmpv::Value as Pack;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value as Json, json};

pub const MSGPACK: &str = "application/msgpack";
pub const JSON: &str = "application/json";
pub const BINARY: &str = "application/octet-stream";

/// One element of a tensor. Floats of every width are held as `f64`, which holds them exactly.
#[derive(Debug, Clone, PartialEq)]
pub enum Element {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bytes(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Without a name it is left out of the request, as the contract allows for a single input.
    pub name: Option<String>,
    pub datatype: String,
    pub shape: Vec<i64>,
    pub elements: Vec<Element>,
}

/// How `data` is written where it is an array.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Nesting {
    Flat,
    Nested,
}

/// A body with its content type, and the header that the binary tensor extension needs.
#[derive(Debug, Clone)]
pub struct Body {
    pub content_type: &'static str,
    pub bytes: Vec<u8>,
    pub header_bytes: Option<lapin::types::AMQPValue>,
}

impl Body {
    pub fn raw(content_type: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            content_type,
            bytes: bytes.into(),
            header_bytes: None,
        }
    }

    pub fn content_type(mut self, content_type: &'static str) -> Self {
        self.content_type = content_type;
        self
    }
}

impl Tensor {
    pub fn new(name: &str, datatype: &str, shape: &[i64], elements: Vec<Element>) -> Self {
        Self {
            name: Some(name.to_owned()),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            elements,
        }
    }

    /// Rows of single precision numbers.
    pub fn fp32<const COLUMNS: usize>(name: &str, rows: &[[f32; COLUMNS]]) -> Self {
        let elements = rows
            .iter()
            .flatten()
            .map(|value| Element::Float(f64::from(*value)))
            .collect();
        let shape = [
            i64::try_from(rows.len()).expect("few rows"),
            i64::try_from(COLUMNS).expect("few columns"),
        ];
        Self::new(name, "FP32", &shape, elements)
    }

    /// Rows of integers.
    pub fn int64<const COLUMNS: usize>(name: &str, rows: &[[i64; COLUMNS]]) -> Self {
        let elements = rows.iter().flatten().map(|value| Element::Signed(*value)).collect();
        let shape = [
            i64::try_from(rows.len()).expect("few rows"),
            i64::try_from(COLUMNS).expect("few columns"),
        ];
        Self::new(name, "INT64", &shape, elements)
    }

    pub fn unnamed(mut self) -> Self {
        self.name = None;
        self
    }

    /// The elements as numbers.
    pub fn floats(&self) -> Vec<f64> {
        let number = |element: &Element| match element {
            Element::Float(value) => *value,
            other => panic!("{other:?} is not a float"),
        };
        self.elements.iter().map(number).collect()
    }

    pub fn integers(&self) -> Vec<i64> {
        let number = |element: &Element| match element {
            Element::Signed(value) => *value,
            other => panic!("{other:?} is not a signed integer"),
        };
        self.elements.iter().map(number).collect()
    }

    /// Row-major little-endian bytes; a `BYTES` element is its length as `u32` and then itself.
    pub fn raw(&self) -> Vec<u8> {
        self.elements
            .iter()
            .flat_map(|element| raw(&self.datatype, element))
            .collect()
    }
}

fn raw(datatype: &str, element: &Element) -> Vec<u8> {
    match element {
        Element::Bool(value) => vec![u8::from(*value)],
        Element::Unsigned(value) => value.to_le_bytes()[..width(datatype)].to_vec(),
        Element::Signed(value) => value.to_le_bytes()[..width(datatype)].to_vec(),
        Element::Float(value) => match datatype {
            "FP16" => f16::from_f64(*value).to_le_bytes().to_vec(),
            "BF16" => bf16::from_f64(*value).to_le_bytes().to_vec(),
            "FP32" => narrow(*value).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        },
        Element::Bytes(bytes) => {
            let length = u32::try_from(bytes.len()).expect("short strings");
            [&length.to_le_bytes(), bytes.as_slice()].concat()
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the value came from an f32")]
fn narrow(value: f64) -> f32 {
    value as f32
}

/// Bytes of one element of a datatype of fixed width.
fn width(datatype: &str) -> usize {
    match datatype {
        "BOOL" | "UINT8" | "INT8" => 1,
        "UINT16" | "INT16" | "FP16" | "BF16" => 2,
        "UINT32" | "INT32" | "FP32" => 4,
        "UINT64" | "INT64" | "FP64" => 8,
        other => panic!("{other} has no width"),
    }
}

/// Reads what [`Tensor::raw`] writes.
fn from_raw(datatype: &str, mut bytes: &[u8]) -> Vec<Element> {
    let mut elements = Vec::new();
    while !bytes.is_empty() {
        let take = if datatype == "BYTES" {
            let (length, rest) = bytes.split_first_chunk().expect("a length before each element");
            bytes = rest;
            usize::try_from(u32::from_le_bytes(*length)).expect("64 bits")
        } else {
            width(datatype)
        };
        let (element, rest) = bytes.split_at_checked(take).expect("whole elements");
        elements.push(element_from_raw(datatype, element));
        bytes = rest;
    }
    elements
}

fn element_from_raw(datatype: &str, bytes: &[u8]) -> Element {
    let mut wide = [0; 8];
    let unsigned = |wide: &mut [u8; 8]| {
        wide[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(*wide)
    };
    match datatype {
        "BYTES" => Element::Bytes(bytes.to_vec()),
        "BOOL" => {
            assert!(bytes[0] < 2, "a BOOL of {}", bytes[0]);
            Element::Bool(bytes[0] == 1)
        }
        "FP16" => Element::Float(f16::from_le_bytes(bytes.try_into().expect("two bytes")).into()),
        "BF16" => Element::Float(bf16::from_le_bytes(bytes.try_into().expect("two bytes")).into()),
        "FP32" => Element::Float(f32::from_le_bytes(bytes.try_into().expect("four bytes")).into()),
        "FP64" => Element::Float(f64::from_le_bytes(bytes.try_into().expect("eight bytes"))),
        _ if datatype.starts_with("UINT") => Element::Unsigned(unsigned(&mut wide)),
        _ => {
            let shift = 64 - 8 * bytes.len();
            Element::Signed((unsigned(&mut wide) << shift).cast_signed() >> shift)
        }
    }
}

/// An inference request.
#[derive(Debug, Clone, Default)]
pub struct Request {
    inputs: Vec<Tensor>,
    id: Option<String>,
    outputs: Vec<String>,
}

impl Request {
    pub fn new(inputs: impl IntoIterator<Item = Tensor>) -> Self {
        Self {
            inputs: inputs.into_iter().collect(),
            ..Self::default()
        }
    }

    pub fn id(mut self, id: &str) -> Self {
        self.id = Some(id.to_owned());
        self
    }

    /// Asks for these outputs only, in this order.
    pub fn outputs(mut self, names: &[&str]) -> Self {
        self.outputs = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// MessagePack with `data` as `bin`: the fast path.
    pub fn msgpack(&self) -> Body {
        self.pack(|tensor| Pack::Binary(tensor.raw()))
    }

    /// MessagePack with `data` as an array.
    pub fn msgpack_arrays(&self, nesting: Nesting) -> Body {
        self.pack(|tensor| {
            let elements = tensor
                .elements
                .iter()
                .map(|element| packed(&tensor.datatype, element))
                .collect();
            arrange(elements, &tensor.shape, nesting, Pack::Array)
        })
    }

    fn pack(&self, data: impl Fn(&Tensor) -> Pack) -> Body {
        let input = |tensor: &Tensor| {
            let name = tensor.name.iter().map(|name| ("name".into(), name.as_str().into()));
            let rest = [
                ("datatype".into(), tensor.datatype.as_str().into()),
                (
                    "shape".into(),
                    Pack::Array(tensor.shape.iter().map(|axis| (*axis).into()).collect()),
                ),
                ("data".into(), data(tensor)),
            ];
            Pack::Map(name.chain(rest).collect())
        };
        let output = |name: &String| Pack::Map(vec![("name".into(), name.as_str().into())]);
        let mut request = Vec::new();
        if let Some(id) = &self.id {
            request.push(("id".into(), id.as_str().into()));
        }
        request.push(("inputs".into(), Pack::Array(self.inputs.iter().map(input).collect())));
        if !self.outputs.is_empty() {
            request.push(("outputs".into(), Pack::Array(self.outputs.iter().map(output).collect())));
        }
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &Pack::Map(request)).expect("a Vec takes everything");
        Body::raw(MSGPACK, bytes)
    }

    /// The JSON body.
    pub fn json(&self, nesting: Nesting) -> Body {
        let input = |tensor: &Tensor| {
            let elements = tensor.elements.iter().map(json_of).collect();
            let mut input = self.head(tensor);
            input["data"] = arrange(elements, &tensor.shape, nesting, Json::Array);
            input
        };
        let request = self.request(input, |name| json!({ "name": name }), &json!({}));
        Body::raw(JSON, request)
    }

    /// The binary tensor extension as Triton's Python client builds it: sizes in `parameters`, every output asked
    /// for in binary, the tensors one after another behind the JSON header.
    pub fn binary(&self) -> Body {
        let input = |tensor: &Tensor| {
            let mut input = self.head(tensor);
            input["parameters"] = json!({ "binary_data_size": tensor.raw().len() });
            input
        };
        let output = |name: &String| json!({ "name": name, "parameters": { "binary_data": true } });
        let parameters = if self.outputs.is_empty() {
            json!({ "binary_data_output": true })
        } else {
            json!({})
        };
        self.binary_body(self.request(input, output, &parameters), |_| true)
    }

    /// The binary tensor extension where only the tensors that `is_binary` picks are binary, and every output is
    /// wanted in JSON.
    pub fn binary_in_part(&self, is_binary: impl Fn(&Tensor) -> bool) -> Body {
        let input = |tensor: &Tensor| {
            let mut input = self.head(tensor);
            if is_binary(tensor) {
                input["parameters"] = json!({ "binary_data_size": tensor.raw().len() });
            } else {
                input["data"] = tensor.elements.iter().map(json_of).collect();
            }
            input
        };
        let output = |name: &String| json!({ "name": name, "parameters": { "binary_data": false } });
        let parameters = if self.outputs.is_empty() {
            json!({ "binary_data_output": false })
        } else {
            json!({})
        };
        self.binary_body(self.request(input, output, &parameters), &is_binary)
    }

    fn binary_body(&self, header: Vec<u8>, is_binary: impl Fn(&Tensor) -> bool) -> Body {
        let length = i64::try_from(header.len()).expect("a short header");
        let tensors = self
            .inputs
            .iter()
            .filter(|tensor| is_binary(tensor))
            .flat_map(Tensor::raw);
        let bytes = header.into_iter().chain(tensors).collect();
        Body {
            content_type: BINARY,
            bytes,
            header_bytes: Some(lapin::types::AMQPValue::LongLongInt(length)),
        }
    }

    /// Name, datatype and shape of an input.
    fn head(&self, tensor: &Tensor) -> Json {
        let mut input = json!({ "datatype": tensor.datatype, "shape": tensor.shape });
        if let Some(name) = &tensor.name {
            input["name"] = json!(name);
        }
        input
    }

    fn request(&self, input: impl Fn(&Tensor) -> Json, output: impl Fn(&String) -> Json, parameters: &Json) -> Vec<u8> {
        let mut request = json!({ "inputs": self.inputs.iter().map(input).collect::<Vec<_>>() });
        if let Some(id) = &self.id {
            request["id"] = json!(id);
        }
        if !self.outputs.is_empty() {
            request["outputs"] = self.outputs.iter().map(output).collect();
        }
        if parameters.as_object().is_some_and(|parameters| !parameters.is_empty()) {
            request["parameters"] = parameters.clone();
        }
        serde_json::to_vec(&request).expect("JSON")
    }
}

fn packed(datatype: &str, element: &Element) -> Pack {
    match element {
        Element::Bool(value) => (*value).into(),
        Element::Unsigned(value) => (*value).into(),
        Element::Signed(value) => (*value).into(),
        Element::Float(value) if datatype == "FP64" => (*value).into(),
        Element::Float(value) => narrow(*value).into(),
        Element::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(_) => Pack::Binary(bytes.clone()),
        },
    }
}

fn json_of(element: &Element) -> Json {
    match element {
        Element::Bool(value) => json!(value),
        Element::Unsigned(value) => json!(value),
        Element::Signed(value) => json!(value),
        Element::Float(value) => json!(value),
        Element::Bytes(bytes) => json!(std::str::from_utf8(bytes).expect("JSON carries text only")),
    }
}

/// Puts elements into one array, or into arrays of arrays along the shape.
fn arrange<T>(elements: Vec<T>, shape: &[i64], nesting: Nesting, array: fn(Vec<T>) -> T) -> T {
    let inner = match (nesting, shape) {
        (Nesting::Nested, [_, inner @ ..]) if !inner.is_empty() => inner,
        _ => return array(elements),
    };
    let each = usize::try_from(inner.iter().product::<i64>()).expect("a shape").max(1);
    let mut elements = elements.into_iter();
    let mut rows = Vec::new();
    loop {
        let row: Vec<T> = elements.by_ref().take(each).collect();
        if row.is_empty() {
            return array(rows);
        }
        rows.push(arrange(row, inner, nesting, array));
    }
}

/// An inference response.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    pub model_name: String,
    pub model_version: String,
    pub id: Option<String>,
    pub outputs: Vec<Tensor>,
}

impl Response {
    pub fn decode(content_type: &str, body: &[u8], json_bytes: Option<usize>) -> Self {
        match (content_type, json_bytes) {
            (BINARY, Some(json_bytes)) => {
                let (json, tensors) = body
                    .split_at_checked(json_bytes)
                    .expect("the header is inside the body");
                Self::from_json(json, tensors)
            }
            (BINARY, None) => panic!("a binary response without inference-header-content-length"),
            (JSON, _) => Self::from_json(body, &[]),
            _ => Self::from_msgpack(body),
        }
    }

    /// The output of this name.
    pub fn output(&self, name: &str) -> &Tensor {
        let found = self.outputs.iter().find(|output| output.name.as_deref() == Some(name));
        found.unwrap_or_else(|| panic!("no output {name} in {:?}", self.names()))
    }

    pub fn names(&self) -> Vec<&str> {
        self.outputs
            .iter()
            .filter_map(|output| output.name.as_deref())
            .collect()
    }

    fn from_msgpack(mut body: &[u8]) -> Self {
        let response = rmpv::decode::read_value(&mut body).expect("MessagePack");
        assert!(body.is_empty(), "{} bytes behind the response", body.len());
        Self {
            model_name: text(&response["model_name"]),
            model_version: text(&response["model_version"]),
            id: response["id"].as_str().map(str::to_owned),
            outputs: array(&response["outputs"]).iter().map(output_from_msgpack).collect(),
        }
    }

    fn from_json(json: &[u8], mut tensors: &[u8]) -> Self {
        let response: JsonResponse =
            serde_json::from_slice(json).unwrap_or_else(|error| panic!("{error} in {}", String::from_utf8_lossy(json)));
        let outputs = response
            .outputs
            .into_iter()
            .map(|output| output.tensor(&mut tensors))
            .collect();
        assert!(tensors.is_empty(), "{} bytes that no output claims", tensors.len());
        Self {
            model_name: response.model_name,
            model_version: response.model_version,
            id: response.id,
            outputs,
        }
    }
}

fn text(value: &Pack) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is not a string"))
        .to_owned()
}

fn array(value: &Pack) -> &[Pack] {
    value.as_array().unwrap_or_else(|| panic!("{value} is not an array"))
}

fn output_from_msgpack(output: &Pack) -> Tensor {
    let datatype = text(&output["datatype"]);
    let shape = array(&output["shape"])
        .iter()
        .map(|axis| axis.as_i64().expect("an axis"))
        .collect();
    let elements = match &output["data"] {
        Pack::Binary(bytes) => from_raw(&datatype, bytes),
        data => elements_from_msgpack(&datatype, data),
    };
    Tensor {
        name: Some(text(&output["name"])),
        datatype,
        shape,
        elements,
    }
}

fn elements_from_msgpack(datatype: &str, data: &Pack) -> Vec<Element> {
    let element = match data {
        Pack::Array(inner) => {
            return inner
                .iter()
                .flat_map(|data| elements_from_msgpack(datatype, data))
                .collect();
        }
        Pack::Boolean(value) => Element::Bool(*value),
        Pack::F32(value) => Element::Float(f64::from(*value)),
        Pack::F64(value) => Element::Float(*value),
        Pack::String(value) => Element::Bytes(value.as_bytes().to_vec()),
        Pack::Binary(value) => Element::Bytes(value.clone()),
        Pack::Integer(value) if datatype.starts_with("UINT") => Element::Unsigned(value.as_u64().expect("unsigned")),
        Pack::Integer(value) => Element::Signed(value.as_i64().expect("signed")),
        other => panic!("{other} in data"),
    };
    vec![element]
}

#[derive(Deserialize)]
struct JsonResponse {
    model_name: String,
    model_version: String,
    id: Option<String>,
    outputs: Vec<JsonOutput>,
}

#[derive(Deserialize)]
struct JsonOutput {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default)]
    parameters: JsonParameters,
    // Kept as text: going through `f64` would hide what was written.
    data: Option<Box<RawValue>>,
}

#[derive(Deserialize, Default)]
struct JsonParameters {
    binary_data_size: Option<usize>,
}

impl JsonOutput {
    fn tensor(self, tensors: &mut &[u8]) -> Tensor {
        let elements = match (self.parameters.binary_data_size, &self.data) {
            (Some(bytes), None) => {
                let (mine, rest) = tensors.split_at_checked(bytes).expect("the tensor is inside the body");
                *tensors = rest;
                from_raw(&self.datatype, mine)
            }
            (None, Some(data)) => elements_from_json(&self.datatype, data.get()),
            _ => panic!("output {} needs either data or binary_data_size", self.name),
        };
        Tensor {
            name: Some(self.name),
            datatype: self.datatype,
            shape: self.shape,
            elements,
        }
    }
}

fn elements_from_json(datatype: &str, data: &str) -> Vec<Element> {
    if datatype == "BYTES" {
        let data: Json = serde_json::from_str(data).expect("JSON");
        return strings(&data);
    }
    let flat = data.replace(['[', ']'], " ");
    flat.split(',')
        .map(str::trim)
        .filter(|number| !number.is_empty())
        .map(|number| parse(datatype, number))
        .collect()
}

fn strings(data: &Json) -> Vec<Element> {
    match data {
        Json::Array(inner) => inner.iter().flat_map(strings).collect(),
        Json::String(text) => vec![Element::Bytes(text.as_bytes().to_vec())],
        other => panic!("{other} in the data of BYTES"),
    }
}

/// Reads a number as its datatype does, so that the shortest decimal form of an FP32 is that FP32.
fn parse(datatype: &str, number: &str) -> Element {
    match datatype {
        "BOOL" => Element::Bool(read(number)),
        "FP64" => Element::Float(read(number)),
        "FP32" => Element::Float(read::<f32>(number).into()),
        "FP16" => Element::Float(f16::from_f32(read(number)).into()),
        "BF16" => Element::Float(bf16::from_f32(read(number)).into()),
        _ if datatype.starts_with("UINT") => Element::Unsigned(read(number)),
        _ => Element::Signed(read(number)),
    }
}

fn read<T: FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| panic!("{text} in data is no {}", std::any::type_name::<T>()))
}

/// Sentence and code of an error body; `None` if it has none.
///
/// An error is a map in the job's own format, but plain JSON where that is the binary tensor extension.
pub fn failure(content_type: &str, mut body: &[u8]) -> Option<(String, String)> {
    if content_type.contains("msgpack") {
        let error = rmpv::decode::read_value(&mut body).ok()?;
        return Some((error["error"].as_str()?.to_owned(), error["code"].as_str()?.to_owned()));
    }
    let error: Json = serde_json::from_slice(body).ok()?;
    Some((error["error"].as_str()?.to_owned(), error["code"].as_str()?.to_owned()))
}
