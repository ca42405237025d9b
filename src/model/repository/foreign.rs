//! Versions that hold no ONNX model: what they hold instead.

use std::path::Path;

use super::{ModelFault, ONNX, entries, has_ending};

/// The fault of a version without the model's file, by what lies there.
pub(super) fn instead_of_onnx(folder: &Path, filename: &str) -> ModelFault {
    let inner = folder.join(filename);
    if inner.is_dir() {
        return instead_of_onnx(&inner, ONNX);
    }
    let folder = folder.to_owned();
    let filename = filename.to_owned();
    let names: Vec<String> = match entries(&folder) {
        Ok(entries) => entries.into_iter().map(|(name, _)| name).collect(),
        Err(_) => Vec::new(),
    };
    if let Some(found) = names.iter().find(|name| has_ending(name, "onnx")) {
        let found = found.clone();
        return ModelFault::OtherName {
            folder,
            filename,
            found,
        };
    }
    match names.iter().find_map(|name| Some((name, made_for(name)?))) {
        Some((found, what)) => ModelFault::Foreign {
            folder,
            what: format!("{what} ({found})"),
        },
        None => ModelFault::NoOnnx { folder, filename },
    }
}

/// What a file of this name is made for, where its name tells.
fn made_for(name: &str) -> Option<&'static str> {
    let whole = WHOLE_NAMES.iter().find(|(known, _)| name == *known);
    let ending = || ENDINGS.iter().find(|(ending, _)| has_ending(name, ending));
    whole.or_else(ending).map(|(_, what)| *what)
}

/// As Triton's backends and the frameworks name them.
const WHOLE_NAMES: [(&str, &str); 7] = [
    ("model.py", "Triton's Python backend"),
    ("model.xml", "OpenVINO"),
    ("model.json", "Triton's FIL or vLLM backend"),
    ("xgboost.json", "XGBoost"),
    ("xgboost.model", "XGBoost"),
    ("model.txt", "LightGBM"),
    ("saved_model.pb", "TensorFlow"),
];
const ENDINGS: [(&str, &str); 20] = [
    ("plan", "TensorRT"),
    ("engine", "TensorRT"),
    ("pt", "PyTorch"),
    ("pth", "PyTorch"),
    ("pt2", "PyTorch"),
    ("savedmodel", "TensorFlow"),
    ("graphdef", "TensorFlow"),
    ("pb", "TensorFlow"),
    ("tflite", "TensorFlow Lite"),
    ("h5", "Keras"),
    ("keras", "Keras"),
    ("dali", "DALI"),
    ("mar", "TorchServe"),
    ("safetensors", "weights without a graph"),
    ("gguf", "llama.cpp"),
    ("pkl", "Python's pickle"),
    ("joblib", "Python's joblib"),
    ("mlmodel", "Core ML"),
    ("ubj", "XGBoost"),
    ("ort", "ONNX Runtime's own format"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_tells_by_its_name_what_it_is_for() {
        for (name, what) in [
            ("model.py", Some("Triton's Python backend")),
            ("model.plan", Some("TensorRT")),
            ("weights.PT", Some("PyTorch")),
            ("model.savedmodel", Some("TensorFlow")),
            ("README.md", None),
        ] {
            assert_eq!(made_for(name), what, "{name}");
        }
    }
}
