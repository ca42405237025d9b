//! Is everything of a repository served that can be, whatever else lies in it, and is the rest named?

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::onnx::Onnx;
use crate::support::worker::{Setup, Worker, ending};
use crate::support::{Request, Scene, Tensor, eventually, root, test_models};

/// A repository that a test fills.
struct Repository(tempfile::TempDir);

impl Repository {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, content).expect("a file");
        self
    }

    /// Puts a link to a folder or file of the tests' models at `path`.
    fn link(&self, path: &str, to: &str) -> &Self {
        self.link_to(path, &test_models().join(to))
    }

    fn link_to(&self, path: &str, to: &Path) -> &Self {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        symlink(to, path).expect("a link");
        self
    }

    /// A worker that serves all of it.
    fn worker(&self, scene: &Scene) -> Setup {
        scene
            .worker("")
            .without_env("INFERQ_MODELS__LOAD")
            .repository(self.path())
    }

    async fn list(&self, scene: &Scene) -> String {
        let folder = self.path().to_str().expect("UTF-8");
        let listed = scene.inferq(&["--models", folder, "models", "list"]).await;
        listed.ok().replace(&format!("{folder}/"), "")
    }
}

/// `affine` with two foreign folders, three bad names and two links to nothing beside it.
fn mixed() -> Repository {
    let repository = Repository::new();
    repository
        .link("affine", "affine")
        .write("preprocess/config.pbtxt", "backend: \"python\"")
        .write("preprocess/1/model.py", "class TritonPythonModel: pass")
        .write("both/config.pbtxt", "platform: \"ensemble\" ensemble_scheduling { }")
        .link("dense/2-old", "affine/2")
        .link("dense/1", "affine/1")
        .link("two words/1", "affine/1")
        .write("README.md", "# Models")
        .write(".git/HEAD", "ref: refs/heads/main")
        .write("lost+found/1/model.onnx", "")
        .write("dense/.ipynb_checkpoints/model.onnx", "");
    symlink("/nonexistent", repository.path().join("gone")).expect("a link");
    symlink("/nonexistent", repository.path().join("dense/7")).expect("a link");
    repository
}

async fn answers(scene: &Scene, model: &str) -> String {
    let mut producer = scene.producer().await;
    let body = Request::new([Tensor::fp32("x", &[[1.0; 4]])]).msgpack();
    let reply = producer.call(scene.job(model, body)).await;
    assert_eq!(reply.status(), "OK");
    reply.header("inferq-model-version").expect("a version")
}

async fn not_served(worker: &Worker) -> Vec<String> {
    let metrics = worker.metrics().await;
    let series = metrics
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("inferq_models_not_served{")?.strip_suffix("} 1"));
    let mut series: Vec<_> = series.map(str::to_owned).collect();
    series.sort();
    series
}

#[tokio::test]
async fn foreign_folders_are_reported_beside_what_is_served() {
    let scene = Scene::new();
    let repository = mixed();

    let worker = repository.worker(&scene).start().await;
    let versions = [answers(&scene, "affine").await, answers(&scene, "dense").await];
    let (status, body) = worker.get("/readyz").await;
    let series = not_served(&worker).await;
    worker.drain().await;

    assert_eq!(versions, ["2", "1"]);
    assert_eq!(status, 200);
    for line in [
        "ready\n",
        "not served: both: ",
        "not served: dense 2-old: ",
        "not served: dense 7: ",
        "not served: gone: ",
        "not served: preprocess: ",
        "not served: two words: ",
    ] {
        assert!(body.contains(line), "{line} is not in:\n{body}");
    }
    assert_eq!(body.lines().count(), 7, "{body}");
    assert_eq!(
        series,
        [
            r#"model="both",reason="foreign",version="""#,
            r#"model="dense",reason="missing",version="7""#,
            r#"model="dense",reason="name",version="2-old""#,
            r#"model="gone",reason="missing",version="""#,
            r#"model="preprocess",reason="foreign",version="""#,
            r#"model="two words",reason="name",version="""#,
        ]
    );
    let said = worker.log().matches("model not served: ").count();
    assert_eq!(said, 6, "each is said once:\n{}", worker.log());
}

#[tokio::test]
async fn the_list_names_what_is_not_served_with_its_reason() {
    let scene = Scene::new();

    let list = mixed().list(&scene).await;

    let lines: Vec<_> = list
        .lines()
        .map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(": "))
        .collect();
    assert!(lines[1].starts_with("affine  1, 2"), "{list}");
    assert!(lines[2].starts_with("dense   1         1 "), "{list}");
    let expected = [
        "not served: both",
        "not served: dense 2-old",
        "not served: dense 7",
        "not served: gone",
        "not served: preprocess",
        "not served: two words",
    ];
    assert_eq!(lines[3..], expected, "{list}");
    assert!(
        list.contains("preprocess is for the backend python, and only ONNX models are served"),
        "{list}"
    );
}

#[tokio::test]
async fn strictly_one_foreign_folder_stops_the_worker() {
    let scene = Scene::new();

    let (code, output) = ending(mixed().worker(&scene).env("INFERQ_MODELS__STRICT", "true")).await;

    assert_eq!(code, 1, "{output}");
    for folder in ["preprocess", "both", "2-old", "gone", "two words"] {
        assert!(output.contains(folder), "{folder} is not in:\n{output}");
    }
}

#[tokio::test]
async fn a_repository_of_which_nothing_can_be_served_is_refused() {
    let scene = Scene::new();
    let repository = Repository::new();
    repository
        .write("preprocess/1/model.py", "")
        .link_to("cut", &root().join("tests/models/broken/cut"));

    let (code, output) = ending(repository.worker(&scene)).await;

    assert_eq!(code, 1, "{output}");
    let line = output.lines().find(|line| line.contains("no model is left to serve"));
    let said = output.contains("preprocess 1: ") && output.contains("cut 1: ");
    assert!(line.is_some() && said, "{output}");
}

/// Version 2 of `affine`, and a version 3 that is cut.
fn with_a_broken_version() -> Repository {
    let repository = Repository::new();
    repository
        .link("affine/2", "affine/2")
        .link_to("affine/3", &root().join("tests/models/broken/cut/1"));
    repository
}

#[tokio::test]
async fn a_version_that_cannot_be_loaded_leaves_its_siblings() {
    let scene = Scene::new();
    let repository = with_a_broken_version();

    let worker = repository.worker(&scene).start().await;
    let version = answers(&scene, "affine").await;
    let (_, body) = worker.get("/readyz").await;
    worker.drain().await;

    assert_eq!(version, "2");
    assert!(body.starts_with("ready\nnot served: affine 3: "), "{body}");
    let said = "version 2 answers jobs that name none, since version 3 is not served";
    assert!(worker.log().contains(said), "{}", worker.log());
}

#[tokio::test]
async fn a_job_that_pins_a_missing_version_waits_for_it() {
    let scene = Scene::new();
    let (broken, whole) = (with_a_broken_version(), Repository::new());
    whole.link("affine/2", "affine/2").link("affine/3", "affine/1");
    let mut producer = scene.producer().await;

    let first = broken.worker(&scene).start().await;
    let body = Request::new([Tensor::fp32("x", &[[1.0; 4]])]).msgpack();
    let job = scene.job("affine", body).text_header("inferq-model-version", "3");
    let id = producer.send(job).await;
    eventually("the job to come to the worker that lacks its version", || async {
        first
            .metrics()
            .await
            .sum("inferq_deliveries_total")
            .filter(|count| *count > 0.0)
    })
    .await;
    let beside = answers(&scene, "affine").await;
    let _second = whole.worker(&scene).start().await;
    let reply = producer.reply(&id).await;

    assert_eq!(beside, "2");
    assert_eq!(reply.status(), "OK");
    assert_eq!(reply.header("inferq-model-version").as_deref(), Some("3"));
}

#[tokio::test]
async fn a_model_that_was_asked_for_is_missed() {
    let scene = Scene::new();
    let repository = mixed();

    let worker = scene.worker("affine,preprocess").repository(repository.path()).spawn();
    let reason = worker.unready_because("preprocess").await;
    worker
        .logged("the other model to be consumed", |line| {
            line.contains(r#""message":"consuming""#).then_some(())
        })
        .await;
    let version = answers(&scene, "affine").await;

    assert!(reason.contains("model: ") && reason.contains("python"), "{reason}");
    assert_eq!(version, "2");
}

#[tokio::test]
async fn a_check_fails_on_broken_models_only() {
    let scene = Scene::new();
    let (foreign, broken) = (Repository::new(), with_a_broken_version());
    foreign.link("affine", "affine").write("preprocess/1/model.py", "");
    let check = async |repository: &Repository| {
        let folder = repository.path().to_str().expect("UTF-8").to_owned();
        scene.inferq(&["--models", &folder, "models", "check"]).await
    };

    let (fine, failed) = (check(&foreign).await, check(&broken).await);

    assert!(fine.ok().contains("preprocess 1: not served: "), "{}", fine.ok());
    assert!(failed.stdout.contains("affine 2: ok"), "{}", failed.stdout);
    assert!(failed.stdout.contains("affine 3: FAILED: "), "{}", failed.stdout);
    failed.failed();
}

#[tokio::test]
async fn models_whose_names_have_capitals_are_served() {
    let scene = Scene::new();
    let repository = Repository::new();
    let long = format!("Long{}", "x".repeat(123));
    repository
        .link("ResNet50_v1.5", "affine")
        .link("resnet50_v1.5/1", "affine/1")
        .link(&long, "affine");

    let worker = repository.worker(&scene).start().await;
    let versions = [
        answers(&scene, "ResNet50_v1.5").await,
        answers(&scene, "resnet50_v1.5").await,
        answers(&scene, &long).await,
    ];
    worker.drain().await;

    assert_eq!(versions, ["2", "1", "2"]);
}

#[tokio::test]
async fn a_repository_of_triton_is_served_by_what_its_config_says() {
    let scene = Scene::new();
    let repository = Repository::new();
    let onnx =
        |version: &str| fs::read(test_models().join("affine").join(version).join("model.onnx")).expect("a model");
    repository
        .write("affine/1/model.onnx/model.onnx", onnx("2"))
        .write(
            "named/config.pbtxt",
            "backend: \"onnxruntime\" default_model_filename: \"net.onnx\" max_batch_size: 2 dynamic_batching { }",
        )
        .write("named/1/net.onnx", onnx("2"))
        .write("alone/config.pbtxt", "platform: \"onnxruntime_onnx\" max_batch_size: 0")
        .write("alone/1/model.onnx", onnx("2"));

    let worker = repository.worker(&scene).start().await;
    for model in ["affine", "named", "alone"] {
        assert_eq!(answers(&scene, model).await, "1", "{model}");
    }
    let metrics = worker.metrics().await;
    worker.drain().await;

    let limit = |model: &str| format!(r#"inferq_batch_rows_limit{{model="{model}",version="1"}}"#);
    let shown = |line: String| assert!(metrics.text().contains(&line), "{line} is not in:\n{}", metrics.text());
    shown(format!("{} 2", limit("named")));
    shown(format!("{} 64", limit("affine")));
    let log = worker.log();
    assert!(log.contains("config.pbtxt: not honoured: dynamic_batching"), "{log}");
    assert!(
        log.contains("not batched: config.pbtxt says max_batch_size = 0"),
        "{log}"
    );
}

#[tokio::test]
async fn files_that_are_no_models_are_called_by_their_names() {
    let scene = Scene::new();
    let repository = Repository::new();
    let whole = fs::read(test_models().join("torch-mlp/1/model.onnx")).expect("a model");
    let named: [(&str, &[u8], &str); 7] = [
        (
            "lfs",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "a pointer of Git LFS: run `git lfs pull`",
        ),
        ("html", b"<!doctype html><title>Sign in</title>", "an HTML page"),
        ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "compressed with gzip"),
        ("pickle", b"\x80\x04\x95\x10\x00\x00\x00", "a pickle of Python"),
        ("keras", b"\x89HDF\r\n\x1a\n", "as Keras saves models"),
        ("empty", b"", "an empty file"),
        (
            "cut",
            &whole[..whole.len() - 7],
            "cut: it ends in the middle of a field",
        ),
    ];
    repository.link("affine", "affine");
    for (model, content, _) in named {
        repository.write(&format!("{model}/1/model.onnx"), content);
    }

    let list = repository.list(&scene).await;
    let worker = repository.worker(&scene).start().await;
    let (_, body) = worker.get("/readyz").await;
    worker.drain().await;

    for (model, _, said) in named {
        for text in [&list, &body] {
            let start = format!("not served: {model} 1: ");
            let line = text.lines().find(|line| line.starts_with(&start)).unwrap_or_default();
            assert!(line.contains(said), "{said} is not said of {model} in:\n{text}");
        }
    }
}

#[tokio::test]
async fn an_input_without_a_shape_is_refused_at_load() {
    let scene = Scene::new();
    let repository = Repository::new();
    let model = Onnx::default()
        .unshaped_input("pixels")
        .node("Relu", &["pixels"], "y")
        .output("y", &["n", "2"]);
    repository.write("free/1/model.onnx", model.file());

    let (code, output) = ending(repository.worker(&scene)).await;

    assert_eq!(code, 1, "{output}");
    let said = "input `pixels` is declared without a shape, so that no job could be checked against it";
    assert!(output.contains(said), "{output}");
}

#[tokio::test]
async fn nodes_of_training_are_named_and_served() {
    let scene = Scene::new();
    let repository = Repository::new();
    let dropout = Onnx::default()
        .input("x", &["n", "4"])
        .truth("on")
        .node("Dropout", &["x", "", "on"], "y")
        .output("y", &["n", "4"]);
    let noise = Onnx::default()
        .input("x", &["n", "4"])
        .node("RandomNormalLike", &["x"], "y")
        .output("y", &["n", "4"]);
    repository
        .write("dropout/1/model.onnx", dropout.file())
        .write("noise/1/model.onnx", noise.file());
    let folder = repository.path().to_str().expect("UTF-8");

    let list = repository.list(&scene).await;
    let check = scene.inferq(&["--models", folder, "models", "check"]).await;
    let inspect = scene.inferq(&["--models", folder, "models", "inspect", "noise"]).await;
    let worker = repository.worker(&scene).start().await;
    let version = answers(&scene, "dropout").await;
    worker.drain().await;

    assert_eq!(version, "1");
    let log = worker.log();
    for text in [list.as_str(), check.ok(), log.as_str()] {
        for said in [
            "node `the_dropout` (Dropout) is in training mode",
            "node `the_randomnormallike` (RandomNormalLike) draws random numbers",
        ] {
            assert!(text.contains(said), "{said} is not in:\n{text}");
        }
    }
    assert!(
        inspect.ok().contains("warning    node `the_randomnormallike`"),
        "{}",
        inspect.ok()
    );
}

#[tokio::test]
async fn a_check_says_what_it_leaves_out() {
    let scene = Scene::new();

    let check = scene.inferq(&["models", "check", "sklearn-zipmap"]).await;

    let said = "; left out, since they are no tensors: output_probability (";
    assert!(check.ok().contains(said), "{}", check.ok());
}

#[tokio::test]
async fn a_bench_makes_jobs_of_declared_shapes() {
    let scene = Scene::new();
    let repository = Repository::new();
    let model = Onnx::default()
        .input("x", &["batch", "4"])
        .input("scales", &["3"])
        .input("state", &["2", "?", "8"])
        .node("Relu", &["x"], "y")
        .node("Neg", &["scales"], "s")
        .node("Abs", &["state"], "t")
        .output("y", &["batch", "4"])
        .output("s", &["3"])
        .output("t", &["2", "?", "8"]);
    repository.write("mixed/1/model.onnx", model.file());
    let folder = repository.path().to_str().expect("UTF-8");
    let bench = async |more: &str| {
        let line = format!("--models {folder} bench --model mixed --jobs 10 --warm-up 0s --check --json {more}");
        let words: Vec<&str> = line.split_whitespace().collect();
        let report = scene.inferq(&words).await;
        report.ok();
        report.json()["jobs"]["checked"].as_u64()
    };

    let worker = repository.worker(&scene).start().await;
    let declared = bench("--rows 2").await;
    let told = bench("--shape state=2,5,8").await;
    let whole = bench("--shape scales=[3] --shape state=[2,?,8] --rows 3").await;
    worker.drain().await;

    assert_eq!((declared, told, whole), (Some(10), Some(10), Some(10)));
}
