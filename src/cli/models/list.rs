//! `inferq models list`.

use std::fs::Metadata;
use std::io;
use std::path::Path;

use indicatif::HumanBytes;
use serde::Serialize;

use super::{ModelsError, joined};
use crate::model::proof::seen_in_graph;
use crate::model::repository::{ModelFiles, NotServed, Repository};
use crate::model::sniff;

/// A model, as `list` shows it.
#[derive(Debug, Serialize)]
pub(super) struct ListedModel {
    name: String,
    versions: Vec<u64>,
    /// `None`: no version can be served.
    default: Option<u64>,
    /// Bytes of the default version's files.
    bytes: u64,
    /// Names of the default version's files.
    files: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_served: Vec<Unserved>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Warning>,
}

/// What in the graph of a version belongs to training or draws random numbers.
#[derive(Debug, Serialize)]
struct Warning {
    version: u64,
    warning: String,
}

/// What cannot be served of a model.
#[derive(Debug, Serialize)]
struct Unserved {
    /// `None`: the whole model.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    reason: &'static str,
    error: String,
}

pub(super) fn list(found: &Repository) -> Result<Vec<ListedModel>, ModelsError> {
    let models = found.models.iter().map(listed);
    let mut models = models.collect::<Result<Vec<_>, _>>()?;
    for left_out in &found.left_out {
        let place = models.iter().position(|model| model.name == left_out.model);
        let place = place.unwrap_or_else(|| {
            models.push(none_served(&left_out.model));
            models.len() - 1
        });
        models[place].not_served.push(Unserved {
            version: left_out.version.clone(),
            reason: left_out.fault.reason().name(),
            error: left_out.fault.to_string(),
        });
    }
    models.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(models)
}

/// Lists a model by what its files look like; whether they can be loaded is for `check` to say.
fn listed(model: &ModelFiles) -> Result<ListedModel, ModelsError> {
    let mut listed = none_served(&model.name);
    let mut served = Vec::new();
    for files in &model.versions {
        if let Some(fault) = sniff::fault_of(&files.onnx) {
            listed.not_served.push(Unserved {
                version: Some(files.version.to_string()),
                reason: NotServed::Load.name(),
                error: format!("{} is {fault}", files.onnx.display()),
            });
            continue;
        }
        let of_version = |warning| Warning {
            version: files.version,
            warning,
        };
        let (_, warnings) = seen_in_graph(&files.onnx);
        listed.warnings.extend(warnings.into_iter().map(of_version));
        served.push(files);
    }
    if let Some(default) = served.last() {
        let files = files(&default.folder).map_err(|source| ModelsError::Unreadable {
            path: default.folder.clone(),
            source,
        })?;
        listed.default = Some(default.version);
        listed.bytes = files.iter().map(|(_, bytes)| bytes).sum();
        listed.files = files.into_iter().map(|(name, _)| name).collect();
    }
    listed.versions = served.iter().map(|files| files.version).collect();
    Ok(listed)
}

fn none_served(name: &str) -> ListedModel {
    ListedModel {
        name: name.to_owned(),
        versions: Vec::new(),
        default: None,
        bytes: 0,
        files: Vec::new(),
        not_served: Vec::new(),
        warnings: Vec::new(),
    }
}

/// The files of a version, those of a folder in it as well: Triton has a model with external data in one.
fn files(folder: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for (name, path, metadata) in entries(folder)? {
        if metadata.is_dir() {
            let inner = entries(&path)?
                .into_iter()
                .filter(|(_, _, metadata)| metadata.is_file());
            files.extend(inner.map(|(inner, _, metadata)| (format!("{name}/{inner}"), metadata.len())));
        } else if metadata.is_file() {
            files.push((name, metadata.len()));
        }
    }
    files.sort();
    Ok(files)
}

/// What is in a folder, but for what is hidden and links to nothing.
fn entries(folder: &Path) -> io::Result<Vec<(String, std::path::PathBuf, Metadata)>> {
    let mut entries = Vec::new();
    for entry in folder.read_dir()? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Of what a link points to: in a Kubernetes volume, every file is a link.
        if let Ok(metadata) = entry.path().metadata()
            && !name.starts_with('.')
        {
            entries.push((name, entry.path(), metadata));
        }
    }
    Ok(entries)
}

pub(super) fn text(models: &[ListedModel]) -> String {
    let mut table = vec![["NAME", "VERSIONS", "DEFAULT", "SIZE", "FILES"].map(str::to_owned)];
    let served = models.iter().filter(|model| model.default.is_some());
    table.extend(served.map(|model| {
        [
            model.name.clone(),
            joined(&model.versions),
            model.default.map_or_else(String::new, |default| default.to_string()),
            HumanBytes(model.bytes).to_string(),
            model.files.join(", "),
        ]
    }));
    let width = |column: usize| table.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3), 0];
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ") + "\n"
    };
    let not_served = models.iter().flat_map(|model| {
        let line = |one: &Unserved| {
            let version = one
                .version
                .as_ref()
                .map_or_else(String::new, |version| format!(" {version}"));
            format!("not served: {}{version}: {}\n", model.name, one.error)
        };
        model.not_served.iter().map(line)
    });
    let warnings = models.iter().flat_map(|model| {
        let line = |one: &Warning| format!("warning: {} {}: {}\n", model.name, one.version, one.warning);
        model.warnings.iter().map(line)
    });
    table.iter().map(line).chain(not_served).chain(warnings).collect()
}
