//! The versions of one model: which can be served, and what keeps the others from it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{
    LeftOut, ModelFault, ModelFiles, ONNX, SETTINGS, Unreadable, VersionFiles, entries, foreign, has_ending,
    is_dangling, listed,
};
use crate::model::settings::{Settings, parse_version};

/// Finds the versions of a model that can be served, and what keeps the others from it.
pub(super) fn find(folder: &Path, model: &mut ModelFiles, left_out: &mut Vec<LeftOut>) -> Result<(), ModelFault> {
    let Folders { versions, outside } = Folders::of(folder, model, left_out)?;
    let numbers: Vec<u64> = versions.iter().map(|(version, _)| *version).collect();
    miss(folder, &numbers, model, left_out);
    if numbers.is_empty() {
        let folder = folder.to_owned();
        return Err(match outside {
            Some(found) => ModelFault::NoFolder { folder, found },
            None => ModelFault::NoVersion { folder },
        });
    }
    let served = model.settings.versions.clone();
    for (version, path) in versions {
        if served.as_ref().is_none_or(|served| served.contains(&version)) {
            match version_files(version, path, model) {
                Ok(files) => model.versions.push(files),
                Err(fault) => {
                    left_out.push(LeftOut::version(model, &version.to_string(), fault));
                    model.left_out.push(version);
                }
            }
        }
    }
    Ok(())
}

/// What lies in the folder of a model.
struct Folders {
    /// Ascending.
    versions: Vec<(u64, PathBuf)>,
    /// An ONNX file that is in no version.
    outside: Option<String>,
}

impl Folders {
    fn of(folder: &Path, model: &ModelFiles, left_out: &mut Vec<LeftOut>) -> Result<Self, ModelFault> {
        let entries = entries(folder).map_err(|source| {
            let path = folder.to_owned();
            ModelFault::Unreadable(Unreadable { path, source })
        })?;
        let filename = model.triton.filename();
        let (mut versions, mut outside) = (Vec::new(), None);
        for (name, path) in entries {
            match parse_version(&name) {
                Some(version) => versions.push((version, path)),
                None if path.join(filename).exists() => {
                    let fault = ModelFault::NotAVersion {
                        folder: path,
                        filename: filename.to_owned(),
                    };
                    left_out.push(LeftOut::version(model, &name, fault));
                }
                None if has_ending(&name, "onnx") && path.is_file() => outside = Some(name),
                None => {} // Documentation or test data.
            }
        }
        versions.sort();
        Ok(Self { versions, outside })
    }
}

/// Names the versions that the settings name and that are not there.
fn miss(folder: &Path, there: &[u64], model: &mut ModelFiles, left_out: &mut Vec<LeftOut>) {
    let missing: Vec<_> = named(&model.settings)
        .filter(|(_, version)| !there.contains(version))
        .collect();
    for (key, version) in missing {
        let fault = ModelFault::VersionNotThere {
            path: folder.join(SETTINGS),
            key,
            version,
            there: listed(there),
        };
        left_out.push(LeftOut::version(model, &version.to_string(), fault));
        // Whoever names it in `versions` means it to be served; a digest may be there before its version.
        model.left_out.extend((key == "versions").then_some(version));
    }
}

/// The versions that the settings name, with the key that names them.
fn named(settings: &Settings) -> impl Iterator<Item = (&'static str, u64)> {
    let served = settings.versions.iter().flatten().map(|version| ("versions", *version));
    served.chain(settings.digests.keys().map(|version| ("digests", *version)))
}

fn version_files(version: u64, folder: PathBuf, model: &ModelFiles) -> Result<VersionFiles, ModelFault> {
    if is_dangling(&folder) {
        return Err(ModelFault::Dangling { path: folder });
    }
    let onnx = onnx_file(&folder, model.triton.filename())?;
    let [npz, json] = GOLDEN.map(|name| Some(folder.join(name)).filter(|path| path.exists()));
    if npz.is_some() && json.is_some() {
        return Err(ModelFault::GoldenTwice { folder });
    }
    Ok(VersionFiles {
        version,
        onnx,
        golden: npz.or(json),
        digest: model.settings.digests.get(&version).copied(),
        folder,
    })
}

/// The model's file in the folder of a version, which can be opened.
fn onnx_file(folder: &Path, filename: &str) -> Result<PathBuf, ModelFault> {
    let mut path = folder.join(filename);
    // As Triton has it for a model with external data.
    if path.is_dir() {
        path = path.join(ONNX);
    }
    if is_dangling(&path) {
        return Err(ModelFault::Dangling { path });
    }
    match fs::metadata(&path).and_then(|_| fs::File::open(&path)) {
        Ok(_) if path.is_file() => Ok(path),
        Err(source) if source.kind() != io::ErrorKind::NotFound && source.kind() != io::ErrorKind::NotADirectory => {
            Err(ModelFault::Unreadable(Unreadable { path, source }))
        }
        _ => Err(foreign::instead_of_onnx(folder, filename)),
    }
}

const GOLDEN: [&str; 2] = ["golden.npz", "golden.json"];
