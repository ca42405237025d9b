//! `inferq models list`.

use std::io;
use std::path::Path;

use indicatif::HumanBytes;
use serde::Serialize;

use super::{ModelsError, joined, version_of};
use crate::model::repository::ModelFiles;

/// A model, as `list` shows it.
#[derive(Debug, Serialize)]
pub(super) struct ListedModel {
    name: String,
    versions: Vec<u64>,
    default: u64,
    /// Bytes of the default version's files.
    bytes: u64,
    /// Names of the default version's files.
    files: Vec<String>,
}

pub(super) fn list(models: &[ModelFiles]) -> Result<Vec<ListedModel>, ModelsError> {
    let mut listed = Vec::new();
    for model in models {
        let default = version_of(model, None)?;
        let files = files(&default.folder).map_err(|source| ModelsError::Unreadable {
            path: default.folder.clone(),
            source,
        })?;
        listed.push(ListedModel {
            name: model.name.clone(),
            versions: model.versions.iter().map(|files| files.version).collect(),
            default: default.version,
            bytes: files.iter().map(|(_, bytes)| bytes).sum(),
            files: files.into_iter().map(|(name, _)| name).collect(),
        });
    }
    Ok(listed)
}

fn files(folder: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in folder.read_dir()? {
        let entry = entry?;
        // Of what a link points to: in a Kubernetes volume, every file is a link.
        let metadata = entry.path().metadata()?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if metadata.is_file() && !name.starts_with('.') {
            files.push((name, metadata.len()));
        }
    }
    files.sort();
    Ok(files)
}

pub(super) fn text(models: &[ListedModel]) -> String {
    let mut table = vec![["NAME", "VERSIONS", "DEFAULT", "SIZE", "FILES"].map(str::to_owned)];
    table.extend(models.iter().map(|model| {
        [
            model.name.clone(),
            joined(&model.versions),
            model.default.to_string(),
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
    table.iter().map(line).collect()
}
