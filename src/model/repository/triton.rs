//! What Triton's `config.pbtxt` says of a model: what is honoured, what is not, and whether it is for ONNX Runtime at all.

use std::fs;
use std::io;
use std::path::{Component, Path};

use super::pbtxt::{self, Field, Value};
use super::{CONFIG, ModelFault, ONNX, Unreadable};

/// The contents of a `config.pbtxt`; the default is a model without that file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Triton {
    /// The backend or platform, where it is not ONNX Runtime.
    pub foreign: Option<String>,
    /// Name of the model's file in each version, where it is given.
    pub filename: Option<String>,
    /// Most rows in a run; 0: rows of jobs do not share one.
    pub max_batch_size: Option<usize>,
    /// Names of the classes of outputs, in the order of the file.
    pub labels: Vec<OutputLabels>,
    /// Fields that are not honoured, as `section.field`, each once.
    pub ignored: Vec<String>,
}

/// Names of the classes that one output tells apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputLabels {
    pub output: String,
    /// Name of the file in the model's folder.
    pub file: String,
    /// Why the file could not be read, or its lines.
    pub labels: Result<Vec<String>, String>,
}

impl Triton {
    /// Reads the file in the folder of a model, if there is one.
    ///
    /// # Errors
    /// It cannot be read, is not protobuf's text format, or names a file outside of the version.
    pub(super) fn of(folder: &Path) -> Result<Self, ModelFault> {
        let path = folder.join(CONFIG);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ModelFault::Unreadable(Unreadable { path, source })),
        };
        let faulty = |reason: String| ModelFault::Config {
            path: path.clone(),
            reason,
        };
        let fields = pbtxt::parse(&text).map_err(|error| faulty(error.to_string()))?;
        let mut triton = Self::default();
        for field in &fields {
            triton.set(field, folder).map_err(faulty)?;
        }
        Ok(triton)
    }

    /// Name of the model's file in a version.
    pub fn filename(&self) -> &str {
        self.filename.as_deref().unwrap_or(ONNX)
    }

    /// What it says without effect, in a few sentences.
    pub fn not_honoured(&self) -> Vec<String> {
        let unread = self.labels.iter().filter_map(|of| {
            let error = of.labels.as_ref().err()?;
            Some(format!(
                "the labels of {} in {} cannot be read: {error}",
                of.output, of.file
            ))
        });
        let ignored = (!self.ignored.is_empty()).then(|| format!("not honoured: {}", self.ignored.join(", ")));
        ignored.into_iter().chain(unread).collect()
    }

    fn set(&mut self, Field { name, value }: &Field, folder: &Path) -> Result<(), String> {
        match name.as_str() {
            "backend" => self.made_for(value.text().filter(|backend| *backend != "onnxruntime"), "the backend"),
            "platform" => self.made_for(
                value.text().filter(|platform| *platform != "onnxruntime_onnx"),
                "the platform",
            ),
            "ensemble_scheduling" => self.made_for(Some("ensemble"), "the platform"),
            "default_model_filename" => self.filename = filename(value)?,
            "max_batch_size" => {
                let rows = value.integer().and_then(|rows| usize::try_from(rows).ok());
                self.max_batch_size = Some(rows.ok_or("max_batch_size is no whole number from 0 on")?);
            }
            "output" => self.output(value.fields(), folder),
            "input" => self.ignore_of("input", value.fields()),
            // The folder's name is the model's, in Triton as here.
            "name" => {}
            _ => self.ignore(name.clone()),
        }
        Ok(())
    }

    fn made_for(&mut self, other: Option<&str>, what: &str) {
        if let Some(other) = other.filter(|other| !other.is_empty()) {
            self.foreign.get_or_insert_with(|| format!("{what} {other}"));
        }
    }

    fn output(&mut self, fields: &[Field], folder: &Path) {
        let text = |name: &str| {
            let field = fields.iter().find(|field| field.name == name)?;
            field.value.text().map(str::to_owned).filter(|text| !text.is_empty())
        };
        if let Some(file) = text("label_filename") {
            self.labels.push(OutputLabels {
                output: text("name").unwrap_or_default(),
                labels: labels(folder, &file),
                file,
            });
        }
        self.ignore_of("output", fields);
    }

    fn ignore_of(&mut self, section: &str, fields: &[Field]) {
        // What the graph says itself.
        let known = ["name", "data_type", "dims", "format", "label_filename"];
        let others = fields.iter().filter(|field| !known.contains(&field.name.as_str()));
        for field in others {
            self.ignore(format!("{section}.{}", field.name));
        }
    }

    fn ignore(&mut self, field: String) {
        if !self.ignored.contains(&field) {
            self.ignored.push(field);
        }
    }
}

fn filename(value: &Value) -> Result<Option<String>, String> {
    let name = value.text().ok_or("default_model_filename is no text")?;
    if is_inside(name) {
        Ok((!name.is_empty()).then(|| name.to_owned()))
    } else {
        Err(format!(
            "default_model_filename is {name:?}, allowed is a file in the version's folder"
        ))
    }
}

/// The lines of a file in the folder of a model; an empty one counts, but at the end.
fn labels(folder: &Path, file: &str) -> Result<Vec<String>, String> {
    if !is_inside(file) {
        return Err("allowed is a file in the model's folder".to_owned());
    }
    let text = fs::read_to_string(folder.join(file)).map_err(|error| error.to_string())?;
    let lines = text.trim_start_matches('\u{feff}').trim_end().lines();
    Ok(lines.map(|line| line.trim_end().to_owned()).collect())
}

fn is_inside(path: &str) -> bool {
    Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
}
