//! The reader of ONNX files: the graph and what little data it needs; weights are named by their place and never read.
//!
//! `onnx.proto` is ONNX's own schema, version 1.23.2 of the package `onnx`; `proto.rs` is what protox and prost-build make of it,
//! kept here so that building takes neither (the test `the_types_are_those_of_the_schema` makes them anew and compares).
//!
//! Reading goes in two steps. `skim` copies the file without its weights, whose place it notes in ONNX's own words for data
//! that lie elsewhere; prost decodes what is left. So a file of any size takes the memory of its graph, its bytes are not
//! copied, and data in other files are not looked at.

mod skim;
mod tensor;

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use prost::Message as _;

pub use proto::*;
pub use skim::INLINE_BYTES_MAX;

#[expect(
    clippy::all,
    clippy::pedantic,
    missing_docs,
    reason = "made by prost-build; ONNX's schema documents it"
)]
mod proto {
    include!("proto.rs");
}

/// Reads the model in `path`: graph, functions and small tensors, such as shapes and thresholds.
///
/// A larger tensor is left as ONNX writes one whose data lie in another file (`data_location`, `external_data` with `offset` and
/// `length` in bytes), with an empty `location` for the model's own file.
///
/// Time: that of reading the graph; weights are passed over. Memory: twice the graph.
/// # Errors
/// `OnnxError` if the file cannot be read, is no ONNX model, or is of a newer form than this program knows.
pub fn read(path: &Path) -> Result<ModelProto, OnnxError> {
    let read = File::open(path).map_err(OnnxErrorKind::Unreadable).and_then(decode);
    read.map_err(|kind| OnnxError {
        path: path.to_owned(),
        kind,
    })
}

/// Reads the model in the bytes of a file, as [`read`] does.
///
/// # Errors
/// As [`read`].
pub fn decode(file: impl Read + Seek) -> Result<ModelProto, OnnxErrorKind> {
    let skimmed = skim::skim(file)?;
    let model = ModelProto::decode(&*skimmed).map_err(OnnxErrorKind::Malformed)?;
    let ir_version = model.ir_version();
    // Decoding drops fields that it does not know: a newer form might say something of the graph that would be overlooked.
    if ir_version > IR_VERSION_MAX {
        return Err(OnnxErrorKind::IrVersion(ir_version));
    }
    if model.graph.is_none() {
        return Err(OnnxErrorKind::NoGraph);
    }
    Ok(model)
}

impl ModelProto {
    /// The first input, of those without a value of their own, that is a tensor of no declared shape.
    pub fn unshaped_input(&self) -> Option<&str> {
        let graph = self.graph.as_ref()?;
        let has_value = |name: &str| graph.initializer.iter().any(|tensor| tensor.name() == name);
        let is_unshaped = |input: &&ValueInfoProto| match input.r#type.as_ref().and_then(|of| of.value.as_ref()) {
            Some(type_proto::Value::TensorType(tensor)) => tensor.shape.is_none(),
            _ => false,
        };
        let mut unshaped = graph.input.iter().filter(is_unshaped).map(ValueInfoProto::name);
        unshaped.find(|name| !has_value(name))
    }
}

/// Newest version of ONNX's intermediate representation whose fields are all known.
pub const IR_VERSION_MAX: i64 = Version::IrVersion as i64;

/// A file cannot be read as an ONNX model.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the graph of {}", path.display())]
pub struct OnnxError {
    pub path: PathBuf,
    #[source]
    pub kind: OnnxErrorKind,
}

#[derive(Debug, thiserror::Error)]
pub enum OnnxErrorKind {
    #[error("the file cannot be read")]
    Unreadable(#[source] io::Error),
    #[error("it ends in the middle of a field ({missing} B are missing): it is cut, or no ONNX model")]
    Cut { missing: u64 },
    #[error("byte {offset} begins no field of an ONNX model")]
    NoField { offset: u64 },
    #[error("its graphs are nested more than {max} deep")]
    Nested { max: usize },
    #[error("its graph takes more than {max} bytes, without the weights")]
    TooLarge { max: usize },
    #[error("its graph has more than {max} fields")]
    TooManyFields { max: usize },
    #[error("its fields are not those of an ONNX model")]
    Malformed(#[source] prost::DecodeError),
    #[error("it is of IR version {0}, the newest known is {IR_VERSION_MAX}")]
    IrVersion(i64),
    #[error("it has no graph")]
    NoGraph,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_bytes(bytes: &[u8]) -> Result<ModelProto, OnnxErrorKind> {
        decode(io::Cursor::new(bytes))
    }

    fn model(initializers: Vec<TensorProto>) -> ModelProto {
        ModelProto {
            ir_version: Some(8),
            graph: Some(GraphProto {
                name: Some("test".to_owned()),
                initializer: initializers,
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        }
    }

    fn floats(name: &str, count: usize) -> TensorProto {
        TensorProto {
            name: Some(name.to_owned()),
            dims: vec![count as i64],
            data_type: Some(tensor_proto::DataType::Float as i32),
            raw_data: Some(vec![7; count * 4]),
            ..TensorProto::default()
        }
    }

    fn external(tensor: &TensorProto, key: &str) -> Option<String> {
        let entry = tensor.external_data.iter().find(|entry| entry.key() == key)?;
        entry.value.clone()
    }

    #[test]
    fn the_types_are_those_of_the_schema() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/onnx");
        let out = tempfile::tempdir().unwrap();

        let descriptors = protox::compile(["onnx.proto"], [&folder]).unwrap();
        let mut config = prost_build::Config::new();
        config.out_dir(out.path()).disable_comments(["."]);
        config.compile_fds(descriptors).unwrap();

        let made = std::fs::read_to_string(out.path().join("onnx.rs")).unwrap();
        let kept = std::fs::read_to_string(folder.join("proto.rs")).unwrap();
        assert!(made == kept, "proto.rs is not what the schema gives");
    }

    #[test]
    fn weights_are_named_by_their_place_in_the_file() {
        let large = floats("large", 2 * INLINE_BYTES_MAX);
        let mut bytes = model(vec![floats("small", 3), large, floats("last", 1)]).encode_to_vec();
        let at = bytes.windows(1000).position(|window| window == [7; 1000]).unwrap();
        bytes[at] = 9;

        let read = read_bytes(&bytes).unwrap();

        let [small, large, last] = &read.graph.unwrap().initializer[..] else {
            panic!("three tensors")
        };
        assert_eq!((small, last), (&floats("small", 3), &floats("last", 1)));
        assert_eq!(large.raw_data, None);
        assert_eq!(large.data_location(), tensor_proto::DataLocation::External);
        assert_eq!(external(large, "location").as_deref(), Some(""));
        assert_eq!(external(large, "offset"), Some(at.to_string()));
        assert_eq!(external(large, "length"), Some((8 * INLINE_BYTES_MAX).to_string()));
    }

    #[test]
    fn weights_in_constants_of_nested_graphs_are_passed_over() {
        let constant = NodeProto {
            op_type: Some("Constant".to_owned()),
            attribute: vec![AttributeProto {
                name: Some("value".to_owned()),
                t: Some(floats("", INLINE_BYTES_MAX)),
                ..AttributeProto::default()
            }],
            ..NodeProto::default()
        };
        let body = GraphProto {
            node: vec![constant],
            ..GraphProto::default()
        };
        let mut whole = model(Vec::new());
        whole.graph.as_mut().unwrap().node.push(NodeProto {
            op_type: Some("Loop".to_owned()),
            attribute: vec![AttributeProto {
                name: Some("body".to_owned()),
                g: Some(body),
                ..AttributeProto::default()
            }],
            ..NodeProto::default()
        });

        let read = read_bytes(&whole.encode_to_vec()).unwrap();

        let graph = read.graph.unwrap();
        let body = graph.node[0].attribute[0].g.as_ref().unwrap();
        let tensor = body.node[0].attribute[0].t.as_ref().unwrap();
        assert_eq!(tensor.raw_data, None);
        assert!(external(tensor, "offset").is_some());
    }

    #[test]
    fn a_newer_form_is_refused() {
        let newer = ModelProto {
            ir_version: Some(IR_VERSION_MAX + 1),
            ..model(Vec::new())
        };

        let error = read_bytes(&newer.encode_to_vec()).unwrap_err();

        let expected = format!("it is of IR version {}, the newest known is 14", IR_VERSION_MAX + 1);
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_file_cut_at_any_byte_is_refused_or_shorter() {
        let whole = model(vec![floats("a", 3), floats("b", INLINE_BYTES_MAX)]).encode_to_vec();
        for length in 0..whole.len() {
            let read = read_bytes(&whole[..length]);

            // Between two fields of the model itself a cut file is a whole one.
            assert!(read.is_err() || length < 10, "{length}");
        }
    }

    #[test]
    fn bytes_at_random_are_refused_without_taking_memory() {
        let mut rng = fastrand::Rng::with_seed(1);
        let whole = model(vec![floats("a", 3), floats("b", INLINE_BYTES_MAX)]).encode_to_vec();
        for _ in 0..3_000 {
            let mut bytes = whole.clone();
            for _ in 0..rng.usize(1..6) {
                let at = rng.usize(..bytes.len().min(120));
                bytes[at] = rng.u8(..);
            }
            let _ = read_bytes(&bytes);
        }
    }

    #[test]
    fn graphs_nested_without_end_are_refused() {
        let mut graph = GraphProto::default();
        for _ in 0..200 {
            let attribute = AttributeProto {
                g: Some(graph),
                ..AttributeProto::default()
            };
            let node = NodeProto {
                attribute: vec![attribute],
                ..NodeProto::default()
            };
            graph = GraphProto {
                node: vec![node],
                ..GraphProto::default()
            };
        }
        let whole = ModelProto {
            graph: Some(graph),
            ..model(Vec::new())
        };

        let error = read_bytes(&whole.encode_to_vec()).unwrap_err();

        assert!(error.to_string().contains("nested"), "{error}");
    }
}
