//! The model repository: a folder in Triton's layout, read once when a worker or a command starts.
//!
//! ```text
//! models/<name>/model.toml                optional
//! models/<name>/<version>/model.onnx      and its external data files
//! models/<name>/<version>/golden.npz      or golden.json, optional
//! ```
//! Only names and sizes are looked at here: nothing of a model is loaded.

mod fault;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use fault::{ModelFault, RepositoryError, Unreadable};

use super::digest::{Digest, DigestError};
use super::settings::{Settings, parse_version};

/// A model of the repository, with at least one version.
#[derive(Debug)]
pub struct ModelFiles {
    pub name: String,
    /// The versions to serve, ascending.
    pub versions: Vec<VersionFiles>,
    pub settings: Settings,
}

impl ModelFiles {
    /// The version that serves jobs which name none: the highest.
    pub fn default_version(&self) -> Option<&VersionFiles> {
        self.versions.last()
    }
}

/// One version of a model.
#[derive(Debug, Clone)]
pub struct VersionFiles {
    pub version: u64,
    /// The folder of this version; external data files lie in it.
    pub folder: PathBuf,
    pub onnx: PathBuf,
    pub golden: Option<PathBuf>,
    /// The digest that `model.toml` states for `onnx`.
    pub digest: Option<Digest>,
}

impl VersionFiles {
    /// Compares `model.onnx` with the stated digest, if there is one. To be called before it is loaded.
    /// # Errors
    /// `DigestError` if it is another file, or cannot be read.
    pub fn check_digest(&self) -> Result<(), DigestError> {
        self.digest.map_or(Ok(()), |digest| digest.check(&self.onnx))
    }
}

/// Finds the models below `root`, ascending by name; with `only`, no more than those.
///
/// A folder without versions and without `model.toml` (documentation, test data) is no model, and what is hidden
/// is not looked at: Kubernetes mounts its volumes through hidden folders.
/// # Errors
/// One sentence for every fault of every model wanted, each with the path and what to do.
pub fn scan(root: &Path, only: &[String]) -> Result<Vec<ModelFiles>, RepositoryError> {
    let folders = folders(root).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => RepositoryError::Missing { root: root.to_owned() },
        _ => RepositoryError::Unreadable(Unreadable {
            path: root.to_owned(),
            source,
        }),
    })?;
    let mut models = Vec::new();
    let mut faults = Vec::new();
    let mut there = Vec::new();
    for (name, folder) in folders {
        let wanted = only.is_empty() || only.contains(&name);
        if !is_model(&folder) {
            continue;
        }
        if wanted {
            match model(&name, &folder) {
                Ok(model) => models.push(model),
                Err(of_model) => faults.extend(of_model),
            }
        }
        there.push(name);
    }
    let absent = only.iter().filter(|name| !there.contains(name));
    faults.extend(absent.map(|name| ModelFault::NotThere {
        name: name.clone(),
        root: root.to_owned(),
        there: listed(&there),
    }));
    match (faults.is_empty(), there.is_empty()) {
        (true, true) => Err(RepositoryError::Empty { root: root.to_owned() }),
        (true, false) => Ok(models),
        (false, _) => Err(RepositoryError::Models(faults)),
    }
}

/// A folder that cannot be listed counts as a model, so that the fault is reported instead of skipped.
fn is_model(folder: &Path) -> bool {
    folder.join(SETTINGS).exists()
        || folders(folder).map_or(true, |folders| {
            folders
                .iter()
                .any(|(name, path)| parse_version(name).is_some() || path.join(ONNX).exists())
        })
}

fn model(name: &str, folder: &Path) -> Result<ModelFiles, Vec<ModelFault>> {
    let mut faults = Vec::new();
    if !is_name(name) {
        faults.push(ModelFault::Name {
            folder: folder.to_owned(),
        });
    }
    let settings = settings(folder).unwrap_or_else(|fault| {
        faults.push(fault);
        Settings::default()
    });
    let versions = versions(folder, &settings, &mut faults).unwrap_or_else(|fault| {
        faults.push(ModelFault::Unreadable(fault));
        Vec::new()
    });
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(ModelFiles {
        name: name.to_owned(),
        versions,
        settings,
    })
}

/// Whether a model may be called this: the name becomes a queue, a routing key and a metric label. The queue of `m.dead`
/// would be the one of the dead letters of `m`.
pub fn is_name(name: &str) -> bool {
    if name.ends_with(".dead") {
        return false;
    }
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let first = name.bytes().next();
    name.len() <= 64 && first.is_some_and(plain) && name.bytes().all(|byte| plain(byte) || b"._-".contains(&byte))
}

fn settings(folder: &Path) -> Result<Settings, ModelFault> {
    let path = folder.join(SETTINGS);
    match fs::read_to_string(&path) {
        Ok(text) => Settings::parse(&text).map_err(|faults| ModelFault::Settings { path, faults }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Settings::default()),
        Err(source) => Err(ModelFault::Unreadable(Unreadable { path, source })),
    }
}

fn versions(folder: &Path, settings: &Settings, faults: &mut Vec<ModelFault>) -> Result<Vec<VersionFiles>, Unreadable> {
    let folders = folders(folder).map_err(|source| Unreadable {
        path: folder.to_owned(),
        source,
    })?;
    let mut there = Vec::new();
    for (name, path) in folders {
        match parse_version(&name) {
            Some(version) => there.push((version, path)),
            None if path.join(ONNX).exists() => faults.push(ModelFault::NotAVersion { folder: path }),
            None => {} // Documentation or test data.
        }
    }
    there.sort();
    let numbers: Vec<u64> = there.iter().map(|(version, _)| *version).collect();
    if numbers.is_empty() {
        faults.push(ModelFault::NoVersion {
            folder: folder.to_owned(),
        });
        return Ok(Vec::new());
    }
    let served = settings.versions.as_ref();
    for (key, version) in named(settings) {
        if !numbers.contains(&version) {
            faults.push(ModelFault::VersionNotThere {
                path: folder.join(SETTINGS),
                key,
                version,
                there: listed(&numbers),
            });
        }
    }
    let mut versions = Vec::new();
    for (version, path) in there {
        if served.is_none_or(|served| served.contains(&version)) {
            match version_files(version, path, settings) {
                Ok(files) => versions.push(files),
                Err(fault) => faults.push(fault),
            }
        }
    }
    Ok(versions)
}

/// The versions that the settings name, with the key that names them.
fn named(settings: &Settings) -> impl Iterator<Item = (&'static str, u64)> {
    let served = settings.versions.iter().flatten().map(|version| ("versions", *version));
    served.chain(settings.digests.keys().map(|version| ("digests", *version)))
}

fn version_files(version: u64, folder: PathBuf, settings: &Settings) -> Result<VersionFiles, ModelFault> {
    let onnx = folder.join(ONNX);
    if !onnx.is_file() {
        return Err(ModelFault::NoOnnx { folder });
    }
    let [npz, json] = GOLDEN.map(|name| Some(folder.join(name)).filter(|path| path.exists()));
    if npz.is_some() && json.is_some() {
        return Err(ModelFault::GoldenTwice { folder });
    }
    Ok(VersionFiles {
        version,
        onnx,
        golden: npz.or(json),
        digest: settings.digests.get(&version).copied(),
        folder,
    })
}

/// The folders in `folder` that are not hidden, ascending by name. Symbolic links are followed.
fn folders(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with('.') && path.is_dir() {
            folders.push((name, path));
        }
    }
    folders.sort();
    Ok(folders)
}

fn listed<T: ToString>(there: &[T]) -> String {
    if there.is_empty() {
        return "no model".to_owned();
    }
    there.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

const ONNX: &str = "model.onnx";
const SETTINGS: &str = "model.toml";
const GOLDEN: [&str; 2] = ["golden.npz", "golden.json"];

#[cfg(test)]
mod tests {
    use super::*;

    struct Repository(tempfile::TempDir);

    /// A repository of these files; a path that ends in `/` is an empty folder.
    fn repository(files: &[(&str, &str)]) -> Repository {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            if path.to_str().unwrap().ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
        }
        Repository(folder)
    }

    impl Repository {
        fn scan(&self, only: &[&str]) -> Result<Vec<ModelFiles>, RepositoryError> {
            let only: Vec<_> = only.iter().map(ToString::to_string).collect();
            scan(self.0.path(), &only)
        }

        /// The sentences of the error, with paths relative to the repository.
        fn faults(&self, only: &[&str]) -> Vec<String> {
            let root = format!("{}/", self.0.path().display());
            let text = self.scan(only).unwrap_err().to_string().replace(&root, "");
            text.lines().map(str::to_owned).collect()
        }
    }

    #[test]
    fn models_and_versions_come_in_order_and_the_highest_is_the_default() {
        let repository = repository(&[
            ("digits/10/model.onnx", ""),
            ("digits/9/model.onnx", ""),
            ("digits/9/model.onnx.data", ""),
            ("digits/9/golden.npz", ""),
            ("digits/10/golden.json", ""),
            ("a.b_c-0/1/model.onnx", ""),
        ]);

        let models = repository.scan(&[]).unwrap();

        let names: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
        assert_eq!(names, ["a.b_c-0", "digits"]);
        let digits = &models[1];
        let versions: Vec<_> = digits.versions.iter().map(|files| files.version).collect();
        assert_eq!(versions, [9, 10]);
        assert_eq!(digits.default_version().unwrap().version, 10);
        let folder = repository.0.path().join("digits/9");
        assert_eq!(digits.versions[0].onnx, folder.join("model.onnx"));
        assert_eq!(digits.versions[0].golden, Some(folder.join("golden.npz")));
        assert!(digits.versions[1].golden.as_ref().unwrap().ends_with("golden.json"));
        assert_eq!(models[0].versions[0].golden, None);
        assert_eq!(models[0].settings, Settings::default());
    }

    #[test]
    fn what_is_no_model_is_passed_over() {
        let repository = repository(&[
            ("train.py", ""),
            ("Documentation/figures/1.png", ""),
            ("__pycache__/", ""),
            (".git/1/model.onnx", ""),
            ("digits/.cache/model.onnx", ""),
            ("digits/test/images.npy", ""),
            ("digits/1/model.onnx", ""),
        ]);

        let models = repository.scan(&[]).unwrap();

        assert_eq!(models.len(), 1);
        assert_eq!(models[0].versions.len(), 1);
    }

    #[test]
    fn model_toml_chooses_the_versions_and_states_their_digests() {
        let digest = format!("sha256:{}", "0f".repeat(32));
        let settings = format!("versions = [1, 2]\n[digests]\n2 = \"{digest}\"\n3 = \"{digest}\"");
        let repository = repository(&[
            ("m/model.toml", &settings),
            ("m/1/model.onnx", ""),
            ("m/2/model.onnx", ""),
            ("m/3/half-uploaded.part", ""),
        ]);

        let models = repository.scan(&[]).unwrap();

        let served: Vec<_> = models[0]
            .versions
            .iter()
            .map(|files| (files.version, files.digest))
            .collect();
        assert_eq!(served, [(1, None), (2, Some(digest.parse().unwrap()))]);
        assert_eq!(models[0].default_version().unwrap().version, 2);
    }

    #[test]
    fn a_stated_digest_is_checked_against_the_file() {
        let settings = format!("[digests]\n1 = \"sha256:{}\"", "0f".repeat(32));
        let repository = repository(&[
            ("m/model.toml", &settings),
            ("m/1/model.onnx", "weights"),
            ("m/2/model.onnx", "weights"),
        ]);

        let models = repository.scan(&[]).unwrap();

        let error = models[0].versions[0].check_digest().unwrap_err();
        assert!(matches!(error, DigestError::Mismatch { .. }));
        models[0].versions[1].check_digest().unwrap();
    }

    #[test]
    fn a_repository_that_is_missing_or_empty_says_what_to_do() {
        let empty = repository(&[("README.md", ""), ("docs/", "")]);

        let missing = scan(&empty.0.path().join("models"), &[]).unwrap_err();
        let nothing = empty.scan(&[]).unwrap_err();

        assert!(
            missing
                .to_string()
                .ends_with("create it, or set models.repository to where it is")
        );
        assert!(nothing.to_string().ends_with("/<name>/1/model.onnx"), "{nothing}");
        assert!(matches!(nothing, RepositoryError::Empty { .. }));
    }

    #[test]
    fn a_repository_that_is_a_file_cannot_be_read() {
        let repository = repository(&[("models", "")]);

        let error = scan(&repository.0.path().join("models"), &[]).unwrap_err();

        assert!(matches!(error, RepositoryError::Unreadable(_)));
    }

    #[test]
    fn only_the_wanted_models_are_read_and_an_absent_one_is_named_with_those_there() {
        let repository = repository(&[
            ("broken/model.toml", "rows_max = 0"),
            ("Bad/1/model.onnx", ""),
            ("good/1/model.onnx", ""),
        ]);

        assert_eq!(repository.scan(&["good"]).unwrap().len(), 1);

        let faults = repository.faults(&["good", "godo"]);
        let root = repository.0.path().display();
        assert_eq!(
            faults,
            [format!(
                "{root} holds no model godo, which models.load or the command asks for; there is: Bad, broken, good"
            )]
        );
    }

    #[test]
    fn every_fault_of_every_model_is_named_at_once() {
        let repository = repository(&[
            ("Upper/1/model.onnx", ""),
            ("both/1/model.onnx", ""),
            ("both/1/golden.npz", ""),
            ("both/1/golden.json", ""),
            ("empty/1/", ""),
            ("named/v1/model.onnx", ""),
            ("named/1/model.onnx", ""),
            ("nothing/model.toml", ""),
            ("toml/1/model.onnx", ""),
            ("toml/model.toml", "rows_max = 0\ninstances = 0\nversions = [1]"),
            ("versions/1/model.onnx", ""),
            ("versions/model.toml", "versions = [2]\n[digests]\n3 = \"sha256:00\""),
            ("wanted/1/model.onnx", ""),
            ("wanted/model.toml", "versions = [2]"),
        ]);

        let faults = repository.faults(&[]);

        let expected = [
            "Upper cannot be a model's name: rename it",
            "both/1 holds golden.npz and golden.json: keep one of them",
            "empty/1 holds no model.onnx: put it there, or remove the folder",
            "named/v1 holds a model.onnx but is no version: rename it",
            "nothing holds no version: put the model at nothing/1/model.onnx",
            "toml/model.toml: instances: is 0, allowed is a whole number from 1 to 1024; rows_max: is 0",
            "versions/model.toml: digests.3: is \"sha256:00\"",
            "wanted/model.toml: versions names version 2, which is not there; there is: 1",
        ];
        assert_eq!(faults.len(), expected.len(), "{faults:#?}");
        for (fault, expected) in faults.iter().zip(expected) {
            assert!(fault.starts_with(expected), "{fault}");
        }
    }

    #[test]
    fn a_name_is_short_plain_and_lower_case() {
        for name in ["a", "0", "resnet-50", "a.b_c", "a.deadly", &"x".repeat(64)] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "",
            ".a",
            "-a",
            "_a",
            "A",
            "a b",
            "a/b",
            "ä",
            "a*",
            "a.dead",
            &"x".repeat(65),
        ] {
            assert!(!is_name(name), "{name}");
        }
    }
}
