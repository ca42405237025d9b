//! Files that are called `model.onnx` and hold something else, or not all of it: what they are, by their first bytes.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::onnx::{self, ModelProto, OnnxErrorKind};

/// Says what a file is that is no whole ONNX model; `None` where nothing is found to be amiss.
///
/// Time: that of reading the graph. Data in other files are looked at as well, but for their contents.
pub fn fault_of(path: &Path) -> Option<String> {
    let head = head(path).ok()?;
    if let Some(what) = kind_of(&head) {
        return Some(format!("no ONNX model but {what}"));
    }
    match onnx::read(path) {
        Ok(model) => external_fault(path, &model),
        Err(error) => match error.kind {
            // A newer form may be one that the runtime knows.
            OnnxErrorKind::IrVersion(_) => None,
            OnnxErrorKind::Cut { missing } if head[0] == IR_VERSION => Some(format!(
                "cut: it ends in the middle of a field, and {missing} bytes or more are missing; copy it again"
            )),
            kind => Some(format!("no ONNX model: {}", crate::error::chain(&kind))),
        },
    }
}

fn head(path: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path)?.take(HEAD_BYTES).read_to_end(&mut head)?;
    Ok(head)
}

/// What a file is that begins like this; `None` where it may be an ONNX model.
fn kind_of(head: &[u8]) -> Option<String> {
    if head.is_empty() {
        return Some("an empty file: copy it again".to_owned());
    }
    let magic = MAGIC.iter().find(|(offset, magic, _)| {
        let rest = head.get(*offset..);
        rest.is_some_and(|rest| rest.starts_with(magic))
    });
    if let Some((_, _, what)) = magic {
        return Some((*what).to_owned());
    }
    if head.starts_with(b"PK\x03\x04") {
        return Some(archive(head).to_owned());
    }
    if head.iter().all(|byte| *byte == 0) {
        return Some("a file of zeros, as an interrupted download leaves it: copy it again".to_owned());
    }
    // Its header is JSON, behind its length.
    if head.get(8..10) == Some(b"{\"") && head.get(5..8) == Some(&[0, 0, 0]) {
        return Some("a file of safetensors, which holds weights without a graph: export the model to ONNX".to_owned());
    }
    let holds = |text: &[u8]| head.windows(text.len()).any(|window| window == text);
    if TENSORFLOW_BEGINS.iter().any(|begin| head.starts_with(begin)) && TENSORFLOW_HOLDS.iter().any(|text| holds(text))
    {
        return Some("a model of TensorFlow: convert it with tf2onnx".to_owned());
    }
    text(head).map(str::to_owned)
}

/// What a ZIP archive is, by the names of its first entries.
fn archive(head: &[u8]) -> &'static str {
    let holds = |text: &str| head.windows(text.len()).any(|window| window == text.as_bytes());
    if ["/data.pkl", "/byteorder", "/constants.pkl", "/.format_version"]
        .into_iter()
        .any(holds)
    {
        "a model of PyTorch: export it with torch.onnx.export"
    } else if holds("config.json") && holds("metadata.json") {
        "a model of Keras: export it to ONNX"
    } else if holds(".npy") {
        "an archive of NumPy"
    } else {
        "a ZIP archive: unpack it"
    }
}

/// What a text is; `None` of what is none.
fn text(head: &[u8]) -> Option<&'static str> {
    let start = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins = |text: &str| {
        start
            .get(..text.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()))
    };
    if begins("<!doctype html") || begins("<html") {
        return Some("an HTML page, as servers send it in the place of a file: download the model again");
    }
    // The end may be in the middle of a character.
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&head[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    let is_plain = |letter: char| !letter.is_control() || letter.is_ascii_whitespace();
    if !valid.chars().all(is_plain) {
        return None;
    }
    Some(match start.first() {
        Some(b'<') => "an XML text",
        Some(b'{' | b'[') => "a JSON text",
        _ => "a text",
    })
}

/// What is wrong with the files that hold the weights of a model.
fn external_fault(path: &Path, model: &ModelProto) -> Option<String> {
    let folder = path.parent()?;
    let tensors = model.graph.iter().flat_map(|graph| &graph.initializer);
    for tensor in tensors {
        let entry = |key: &str| {
            let entry = tensor.external_data.iter().find(|entry| entry.key() == key)?;
            entry.value.as_deref()
        };
        // Without a location the data lie in the file itself.
        let Some(location) = entry("location").filter(|location| !location.is_empty()) else {
            continue;
        };
        let number = |key: &str| entry(key).and_then(|text| text.parse::<u64>().ok());
        let file = folder.join(location);
        let Ok(length) = file.metadata().map(|metadata| metadata.len()) else {
            return Some(format!(
                "without its weights: {} is not there, or cannot be read; copy it beside the model",
                file.display()
            ));
        };
        let end = number("offset")
            .unwrap_or(0)
            .saturating_add(number("length").unwrap_or(0));
        if end > length {
            let kind = head(&file).ok().and_then(|head| kind_of(&head));
            let why = kind.map_or_else(
                || format!("is cut: it has {length} bytes, and {end} are needed; copy it again"),
                |kind| format!("is {kind}"),
            );
            return Some(format!("without its weights: {} {why}", file.display()));
        }
    }
    None
}

/// The first byte of every ONNX file that was written by ONNX's own library: field 1, `ir_version`.
const IR_VERSION: u8 = 0x08;
/// Enough to see the operators of a TensorFlow graph.
const HEAD_BYTES: u64 = 64 * 1024;
/// Offset, bytes, and what they tell.
const MAGIC: [(usize, &[u8], &str); 25] = [
    (
        0,
        b"version https://git-lfs",
        "a pointer of Git LFS: run `git lfs pull` where the repository was cloned",
    ),
    (
        0,
        b"version https://hawser",
        "a pointer of Git LFS: run `git lfs pull` where the repository was cloned",
    ),
    (0, b"\x1f\x8b", "a file compressed with gzip: unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "a file compressed with zstd: unpack it"),
    (0, b"BZh", "a file compressed with bzip2: unpack it"),
    (0, b"\xfd7zXZ\x00", "a file compressed with xz: unpack it"),
    (0, b"\x04\x22\x4d\x18", "a file compressed with lz4: unpack it"),
    (0, b"7z\xbc\xaf\x27\x1c", "an archive of 7-Zip: unpack it"),
    (257, b"ustar", "a tar archive: unpack it"),
    (
        0,
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, as Keras saves models: export the model to ONNX",
    ),
    (0, b"\x80\x02", PICKLE),
    (0, b"\x80\x03", PICKLE),
    (0, b"\x80\x04", PICKLE),
    (0, b"\x80\x05", PICKLE),
    (4, b"TFL3", "a model of TensorFlow Lite: convert it with tf2onnx"),
    (
        4,
        b"ORTM",
        "a model in ONNX Runtime's own format (.ort): serve the ONNX file it was made of",
    ),
    (0, b"GGUF", "a model of llama.cpp (GGUF)"),
    (0, b"ftrt", "an engine of TensorRT: serve the ONNX file it was made of"),
    (0, b"ptrt", "an engine of TensorRT: serve the ONNX file it was made of"),
    (0, b"\x93NUMPY", "an array of NumPy"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"\x7fELF", "a program or library"),
    (0, b"%PDF", "a PDF"),
    (0, b"\x89PNG", "a picture"),
    (0, b"SQLite format 3", "a database of SQLite"),
];
const PICKLE: &str = "a pickle of Python, as scikit-learn and PyTorch save models: export the model to ONNX";
/// A SavedModel of schema 1 with a graph; a graph whose first node has a name.
const TENSORFLOW_BEGINS: [&[u8]; 2] = [b"\x08\x01\x12", b"\x0a"];
const TENSORFLOW_HOLDS: [&[u8]; 5] = [
    b"Placeholder",
    b"VarHandleOp",
    b"ReadVariableOp",
    b"StatefulPartitionedCall",
    b"serving_default",
];

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::model::onnx::tensor_proto::{DataLocation, DataType};
    use crate::model::onnx::{GraphProto, StringStringEntryProto, TensorProto};

    fn fault(content: &[u8]) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, content).unwrap();
        fault_of(&path)
    }

    fn model(initializer: Vec<TensorProto>) -> Vec<u8> {
        let graph = GraphProto {
            name: Some("test".to_owned()),
            initializer,
            ..GraphProto::default()
        };
        let model = ModelProto {
            ir_version: Some(8),
            producer_name: Some("a producer with a long name".to_owned()),
            graph: Some(graph),
            ..ModelProto::default()
        };
        model.encode_to_vec()
    }

    #[test]
    fn what_is_no_onnx_model_is_called_by_its_name() {
        let zip = |name: &str| [b"PK\x03\x04".as_slice(), &[0; 26], name.as_bytes()].concat();
        let tar = [[b'a'; 257].as_slice(), b"ustar"].concat();
        for (content, said) in [
            (b"".as_slice(), "an empty file"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
                "a pointer of Git LFS",
            ),
            (b"\n<!DOCTYPE HTML>\n<html>", "an HTML page"),
            (b"<html lang=en>", "an HTML page"),
            (b"<?xml version=\"1.0\"?><net>", "an XML text"),
            (b"{\"error\": \"not found\"}", "a JSON text"),
            (b"404: Not Found", "a text"),
            (b"\x1f\x8b\x08\x00\x00\x00", "gzip"),
            (b"\x28\xb5\x2f\xfd\x00", "zstd"),
            (&tar, "a tar archive"),
            (&zip("archive/data.pkl"), "PyTorch"),
            (&zip("metadata.json config.json"), "Keras"),
            (&zip("model.onnx"), "a ZIP archive"),
            (b"\x89HDF\r\n\x1a\n\x00", "Keras"),
            (b"\x80\x04\x95\x00", "pickle"),
            (
                b"\x40\x00\x00\x00\x00\x00\x00\x00{\"w\":{\"dtype\":\"F32\"}}",
                "safetensors",
            ),
            (b"\x1c\x00\x00\x00TFL3\x00", "TensorFlow Lite"),
            (b"\x08\x01\x12\x99\x01\x0a\x20..Placeholder..", "TensorFlow"),
            (b"\x0a\x30\x0a\x01x\x12\x0bPlaceholder", "TensorFlow"),
            (&[0; 100], "zeros"),
            (b"\xff\xfe\x00\x01 no field", "no ONNX model: "),
        ] {
            let fault = fault(content).unwrap_or_default();
            assert!(fault.contains(said), "{said} is not in: {fault}");
        }
    }

    #[test]
    fn a_file_that_is_cut_is_called_cut_and_a_whole_one_nothing() {
        let weights = TensorProto {
            data_type: Some(DataType::Float as i32),
            dims: vec![2048],
            raw_data: Some(vec![1; 8192]),
            ..TensorProto::default()
        };
        let whole = model(vec![weights]);

        assert_eq!(fault(&whole), None);
        for length in [20, 100, whole.len() - 1] {
            let fault = fault(&whole[..length]).unwrap();
            assert!(fault.starts_with("cut: "), "{length}: {fault}");
        }
    }

    #[test]
    fn weights_in_another_file_are_missed_where_they_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        let entry = |key: &str, value: &str| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value.to_owned()),
        };
        let tensor = TensorProto {
            data_type: Some(DataType::Float as i32),
            dims: vec![64],
            data_location: Some(DataLocation::External as i32),
            external_data: vec![
                entry("location", "weights"),
                entry("offset", "0"),
                entry("length", "256"),
            ],
            ..TensorProto::default()
        };
        std::fs::write(&path, model(vec![tensor])).unwrap();
        let with = |content: &[u8]| {
            std::fs::write(folder.path().join("weights"), content).unwrap();
            fault_of(&path)
        };

        let missing = fault_of(&path).unwrap();
        let pointer = with(b"version https://git-lfs.github.com/spec/v1\n").unwrap();
        let cut = with(&[1; 255]).unwrap();

        assert!(missing.contains("weights is not there"), "{missing}");
        assert!(pointer.contains("weights is a pointer of Git LFS"), "{pointer}");
        assert!(cut.contains("is cut: it has 255 bytes, and 256 are needed"), "{cut}");
        assert_eq!(with(&[1; 256]), None);
    }
}
