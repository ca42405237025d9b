//! The model repository: a folder in Triton's layout, read once when a worker or a command starts.
//!
//! ```text
//! models/<name>/model.toml                optional
//! models/<name>/config.pbtxt              optional, Triton's
//! models/<name>/<version>/model.onnx      and its external data files; or a folder that holds both
//! models/<name>/<version>/golden.npz      or golden.json, optional
//! ```
//! Only names and sizes are looked at here: nothing of a model is loaded. What cannot be served is left out, with the reason,
//! and everything else is there.

mod fault;
mod foreign;
pub mod pbtxt;
mod triton;
mod versions;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use fault::{LeftOut, ModelFault, NotServed, RepositoryError, Unreadable};
pub use triton::{OutputLabels, Triton};

use super::digest::{Digest, DigestError};
use super::settings::{Settings, parse_version};

/// What there is to serve, and what was left out.
#[derive(Debug)]
pub struct Repository {
    /// Ascending by name.
    pub models: Vec<ModelFiles>,
    pub left_out: Vec<LeftOut>,
}

impl Repository {
    /// Refuses a repository of which anything was left out (`models.strict`).
    ///
    /// # Errors
    /// Every fault.
    pub fn strictly(self) -> Result<Self, RepositoryError> {
        if self.left_out.is_empty() {
            return Ok(self);
        }
        Err(refusal(self.left_out))
    }

    /// The model of this name.
    ///
    /// # Errors
    /// What keeps it from being served.
    pub fn into_model(self, name: &str) -> Result<ModelFiles, RepositoryError> {
        let model = self.models.into_iter().find(|model| model.name == name);
        model.ok_or_else(|| refusal(self.left_out))
    }
}

fn refusal(left_out: Vec<LeftOut>) -> RepositoryError {
    RepositoryError::Models(left_out.into_iter().map(|left_out| left_out.fault).collect())
}

/// A model of the repository, with at least one version.
#[derive(Debug)]
pub struct ModelFiles {
    pub name: String,
    /// The versions to serve, ascending.
    pub versions: Vec<VersionFiles>,
    /// The versions that were to be served and cannot be.
    pub left_out: Vec<u64>,
    pub settings: Settings,
    /// What Triton's `config.pbtxt` says.
    pub triton: Triton,
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
    /// The folder of this version; external data files lie in it, or in a folder of it beside `onnx`.
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
/// A folder without versions and without a file that says that it is a model (documentation, test data) is none. What is hidden
/// is not looked at: Kubernetes mounts its volumes through hidden folders.
/// # Errors
/// The repository is missing, cannot be read or holds nothing, or a model of `only` is not there.
pub fn scan(root: &Path, only: &[String]) -> Result<Repository, RepositoryError> {
    let entries = entries(root).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => RepositoryError::Missing { root: root.to_owned() },
        _ => RepositoryError::Unreadable(Unreadable {
            path: root.to_owned(),
            source,
        }),
    })?;
    let mut found = Repository {
        models: Vec::new(),
        left_out: Vec::new(),
    };
    let mut there = Vec::new();
    for (name, path) in entries {
        let wanted = only.is_empty() || only.contains(&name);
        let of_folder = |fault| LeftOut::model(&name, fault);
        if is_dangling(&path) {
            found
                .left_out
                .extend(wanted.then(|| of_folder(ModelFault::Dangling { path })));
        } else if path.is_dir() && is_model(&path) {
            if wanted {
                match model(&name, &path, &mut found.left_out) {
                    Ok(model) => found.models.push(model),
                    Err(fault) => found.left_out.push(of_folder(fault)),
                }
            }
        } else {
            if only.is_empty() && path.is_file() && has_ending(&name, "onnx") {
                found.left_out.push(of_folder(ModelFault::Stray { path }));
            }
            continue; // Documentation or test data.
        }
        there.push(name);
    }
    let absent = only.iter().filter(|name| !there.contains(name));
    let absent = absent.map(|name| ModelFault::NotThere {
        name: name.clone(),
        root: root.to_owned(),
        there: listed(&there),
    });
    let absent: Vec<_> = absent.collect();
    // What left no version is no model.
    found.models.retain(|model| !model.versions.is_empty());
    match (absent.is_empty(), there.is_empty()) {
        (true, true) => Err(RepositoryError::Empty { root: root.to_owned() }),
        (true, false) => Ok(found),
        (false, _) => Err(RepositoryError::Models(absent)),
    }
}

/// A folder that cannot be listed counts as a model, so that the fault is reported instead of skipped.
fn is_model(folder: &Path) -> bool {
    let is_sign = |(name, path): &(String, PathBuf)| {
        name == SETTINGS
            || name == CONFIG
            || parse_version(name).is_some()
            || has_ending(name, "onnx")
            || path.join(ONNX).exists()
    };
    entries(folder).map_or(true, |entries| entries.iter().any(is_sign))
}

/// Reads the folder of one model; what is wrong with single versions goes to `left_out`.
fn model(name: &str, folder: &Path, left_out: &mut Vec<LeftOut>) -> Result<ModelFiles, ModelFault> {
    // First, since of a model for others nothing else is ours to judge.
    let triton = Triton::of(folder)?;
    if let Some(what) = triton.foreign {
        return Err(ModelFault::Foreign {
            folder: folder.to_owned(),
            what,
        });
    }
    if !is_name(name) {
        return Err(ModelFault::Name {
            folder: folder.to_owned(),
        });
    }
    let mut settings = settings(folder)?;
    settings.max_batch_size = triton.max_batch_size;
    if settings.labels.is_empty() {
        let known = triton.labels.iter().find_map(|of| of.labels.as_ref().ok());
        settings.labels = known.cloned().unwrap_or_default();
    }
    let mut model = ModelFiles {
        name: name.to_owned(),
        versions: Vec::new(),
        left_out: Vec::new(),
        settings,
        triton,
    };
    versions::find(folder, &mut model, left_out)?;
    Ok(model)
}

/// Whether a model may be called this: the name becomes a queue, a routing key and a metric label. The queue of `m.dead`
/// would be the one of the dead letters of `m`.
pub fn is_name(name: &str) -> bool {
    let first = name.bytes().next();
    !name.ends_with(".dead")
        && name.len() <= NAME_BYTES_MAX
        && first.is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// What [`is_name`] takes, in words.
pub const NAME_ALLOWED: &str =
    "1 to 127 of A-Z a-z 0-9 . _ - that start with a letter or digit and do not end in .dead";
/// With prefix and `.dead` around it, a queue's name stays below RabbitMQ's 255 bytes.
const NAME_BYTES_MAX: usize = 127;

fn settings(folder: &Path) -> Result<Settings, ModelFault> {
    let path = folder.join(SETTINGS);
    match fs::read_to_string(&path) {
        Ok(text) => Settings::parse(&text).map_err(|faults| ModelFault::Settings { path, faults }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Settings::default()),
        Err(source) => Err(ModelFault::Unreadable(Unreadable { path, source })),
    }
}

/// What is in `folder` and not hidden, ascending by name, but for what systems and programs leave behind.
fn entries(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with('.') && !PASSED_OVER.contains(&name.as_str()) {
            entries.push((name, path));
        }
    }
    entries.sort();
    Ok(entries)
}

/// Whether this is a link to something that is not there.
fn is_dangling(path: &Path) -> bool {
    path.is_symlink() && fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn has_ending(name: &str, ending: &str) -> bool {
    let extension = Path::new(name).extension();
    extension.is_some_and(|extension| extension.eq_ignore_ascii_case(ending))
}

fn listed<T: ToString>(there: &[T]) -> String {
    if there.is_empty() {
        return "none".to_owned();
    }
    there.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

const ONNX: &str = "model.onnx";
const SETTINGS: &str = "model.toml";
const CONFIG: &str = "config.pbtxt";
/// Folders that file systems, archives and interpreters make.
const PASSED_OVER: [&str; 6] = [
    "lost+found",
    "__pycache__",
    "__MACOSX",
    "@eaDir",
    "$RECYCLE.BIN",
    "System Volume Information",
];

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(tempfile::TempDir);

    /// A repository of these files; a path that ends in `/` is an empty folder.
    fn repository(files: &[(&str, &str)]) -> Folder {
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
        Folder(folder)
    }

    impl Folder {
        fn found(&self, only: &[&str]) -> Result<Repository, RepositoryError> {
            let only: Vec<_> = only.iter().map(ToString::to_string).collect();
            scan(self.0.path(), &only)
        }

        fn scan(&self, only: &[&str]) -> Result<Vec<ModelFiles>, RepositoryError> {
            self.found(only).map(|found| found.models)
        }

        /// The sentences of the error, or of what was left out, with paths relative to the repository.
        fn faults(&self, only: &[&str]) -> Vec<String> {
            let root = format!("{}/", self.0.path().display());
            let strictly = self.found(only).and_then(Repository::strictly);
            let text = strictly.unwrap_err().to_string().replace(&root, "");
            text.lines().map(str::to_owned).collect()
        }

        /// What is served, as `name version`, and the reasons why other folders are not.
        fn served(&self) -> (Vec<String>, Vec<(String, &'static str)>) {
            let found = self.found(&[]).unwrap();
            let of_model = |model: &ModelFiles| {
                let versions = model.versions.iter().map(|files| files.version);
                versions
                    .map(|version| format!("{} {version}", model.name))
                    .collect::<Vec<_>>()
            };
            let served = found.models.iter().flat_map(of_model).collect();
            let left_out = found.left_out.iter().map(|left_out| {
                let version = left_out
                    .version
                    .as_ref()
                    .map_or_else(String::new, |version| format!(" {version}"));
                (format!("{}{version}", left_out.model), left_out.fault.reason().name())
            });
            (served, left_out.collect())
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
    fn what_cannot_be_served_is_left_out_with_a_reason() {
        let repository = repository(&[
            ("good/1/model.onnx", ""),
            ("good/2/", ""),
            ("good/2-old/model.onnx", ""),
            ("good/03/model.onnx", ""),
            ("good/4/model.onnx/", ""),
            ("good/5/resnet.onnx", ""),
            ("good/test/images.npy", ""),
            ("flat/model.onnx", ""),
            ("loose.onnx", ""),
            ("README.md", ""),
            ("a b/1/model.onnx", ""),
            ("lost+found/1/model.onnx", ""),
            (".ipynb_checkpoints/1/model.onnx", ""),
            ("..data/1/model.onnx", ""),
            ("python/1/model.py", ""),
            ("trt/1/model.plan", ""),
            ("torch/config.pbtxt", "backend: \"pytorch\""),
            ("tf/config.pbtxt", "platform: \"tensorflow_savedmodel\""),
            ("tf/1/model.onnx", ""),
            (
                "sum/config.pbtxt",
                "name: \"sum\" ensemble_scheduling { step [ { model_name: \"good\" } ] }",
            ),
            ("cut/config.pbtxt", "name: \"cut"),
            ("cut/1/model.onnx", ""),
            ("toml/1/model.onnx", ""),
            ("toml/model.toml", "rows = 1"),
        ]);
        std::os::unix::fs::symlink("/nonexistent", repository.0.path().join("gone")).unwrap();
        std::os::unix::fs::symlink("/nonexistent", repository.0.path().join("good/6")).unwrap();
        fs::create_dir(repository.0.path().join("good/7")).unwrap();
        std::os::unix::fs::symlink("nothing", repository.0.path().join("good/7/model.onnx")).unwrap();

        let (served, left_out) = repository.served();

        assert_eq!(served, ["good 1"]);
        let expected = [
            ("a b", "name"),
            ("cut", "settings"),
            ("flat", "missing"),
            ("gone", "missing"),
            ("good 03", "name"),
            ("good 2-old", "name"),
            ("good 2", "missing"),
            ("good 4", "missing"),
            ("good 5", "missing"),
            ("good 6", "missing"),
            ("good 7", "missing"),
            ("loose.onnx", "missing"),
            ("python 1", "foreign"),
            ("sum", "foreign"),
            ("tf", "foreign"),
            ("toml", "settings"),
            ("torch", "foreign"),
            ("trt 1", "foreign"),
        ];
        assert_eq!(left_out, expected.map(|(folder, reason)| (folder.to_owned(), reason)));
        assert_eq!(repository.found(&["good"]).unwrap().models[0].left_out, [2, 4, 5, 6, 7]);
    }

    #[test]
    fn a_repository_of_nothing_but_foreign_models_is_found_without_models() {
        let repository = repository(&[
            ("python/1/model.py", ""),
            ("python/config.pbtxt", "backend: \"python\""),
        ]);

        let found = repository.found(&[]).unwrap();
        let refused = repository.found(&["python"]).unwrap().into_model("python").unwrap_err();

        assert!(found.models.is_empty());
        let expected = "python is for the backend python, and only ONNX models are served: export the model to ONNX, or leave it \
                        to others";
        assert!(refused.to_string().ends_with(expected), "{refused}");
    }

    const CONFIG_OF_DENSE: &str = r#"
        name: "dense"
        platform: "onnxruntime_onnx"
        backend: "onnxruntime"
        default_model_filename: "dense.onnx"
        max_batch_size: 8
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] reshape { shape: [ 3, 1 ] } } ]
        output [
          { name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" },
          { name: "z" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "gone.txt" }
        ]
        instance_group [ { count: 2 kind: KIND_CPU }, { count: 1 } ]
        dynamic_batching { }
        version_policy: { latest { num_versions: 1 } }
        a_field_of_next_year: 7
    "#;

    #[test]
    fn what_triton_says_is_honoured_or_named() {
        let repository = repository(&[
            ("dense/config.pbtxt", CONFIG_OF_DENSE),
            ("dense/labels.txt", "cat\ndog\r\n\nhen\n"),
            ("dense/1/dense.onnx", ""),
            ("dense/2/dense.onnx/model.onnx", ""),
            ("dense/2/dense.onnx/weights.bin", ""),
            ("dense/3/model.onnx", ""),
            ("folder/1/model.onnx/model.onnx", ""),
            ("alone/config.pbtxt", "max_batch_size: 0"),
            ("alone/1/model.onnx", ""),
            ("out/config.pbtxt", "default_model_filename: \"../../x.onnx\""),
            ("out/1/model.onnx", ""),
        ]);

        let found = repository.found(&[]).unwrap();

        let [alone, dense, folder] = &found.models[..] else {
            panic!("three models")
        };
        let root = repository.0.path();
        let files: Vec<_> = dense.versions.iter().map(|files| files.onnx.clone()).collect();
        assert_eq!(
            files,
            ["1/dense.onnx", "2/dense.onnx/model.onnx"].map(|file| root.join("dense").join(file))
        );
        assert_eq!(folder.versions[0].onnx, root.join("folder/1/model.onnx/model.onnx"));
        assert_eq!(dense.settings.max_batch_size, Some(8));
        assert_eq!(dense.settings.labels, ["cat", "dog", "", "hen"]);
        assert_eq!(alone.settings.max_batch_size, Some(0));
        assert_eq!(folder.settings.max_batch_size, None);
        let not_honoured = dense.triton.not_honoured();
        assert_eq!(
            not_honoured[0],
            "not honoured: input.reshape, instance_group, dynamic_batching, version_policy, a_field_of_next_year"
        );
        assert!(
            not_honoured[1].starts_with("the labels of z in gone.txt cannot be read: "),
            "{not_honoured:?}"
        );
        let left_out: Vec<_> = found
            .left_out
            .iter()
            .map(|left_out| left_out.fault.to_string())
            .collect();
        assert!(left_out[0].ends_with("dense/3 holds no dense.onnx but model.onnx: rename it, or name it as default_model_filename in config.pbtxt beside the versions"), "{left_out:?}");
        assert!(
            left_out[1].contains("default_model_filename is \"../../x.onnx\", allowed is a file in"),
            "{left_out:?}"
        );
    }

    #[test]
    fn every_fault_of_every_model_is_named_at_once() {
        let repository = repository(&[
            ("Over head/1/model.onnx", ""),
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
            "Over head cannot be a model's name: rename it",
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
    fn a_name_is_short_and_plain() {
        for name in [
            "a",
            "0",
            "resnet-50",
            "a.b_c",
            "a.deadly",
            "A",
            "ResNet50",
            "BERT_v2",
            &"x".repeat(127),
        ] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "",
            ".a",
            "-a",
            "_a",
            "a b",
            "a/b",
            "ä",
            "a*",
            "a.dead",
            &"x".repeat(128),
        ] {
            assert!(!is_name(name), "{name}");
        }
    }
}
