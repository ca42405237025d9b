//! Do models of any exporter and any shape answer as their framework did?

use std::fs::File;
use std::path::Path;

use ndarray::{ArrayD, Axis, Slice};
use ndarray_npy::{NpzReader, ReadNpyExt, ReadableElement};

use crate::support::onnx::Onnx;
use crate::support::{Element, Request, Scene, Tensor, models, root, test_models};

/// What the framework recorded beside the model: see `tests/models/make.py`.
struct Golden {
    file: NpzReader<File>,
}

impl Golden {
    fn of(repository: &Path, model: &str) -> Self {
        let path = repository.join(model).join("1/golden.npz");
        let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self {
            file: NpzReader::new(file).expect("an archive of arrays"),
        }
    }

    fn array<T: ReadableElement>(&mut self, name: &str) -> ArrayD<T> {
        self.file
            .by_name(name)
            .or_else(|_| self.file.by_name(&format!("{name}.npy")))
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn only_input(&mut self) -> String {
        let names = self.file.names().expect("names");
        let name = names.iter().find(|name| name.starts_with("input:")).expect("an input");
        name.trim_start_matches("input:").trim_end_matches(".npy").to_owned()
    }
}

fn tensor_of(name: &str, array: &ArrayD<f32>) -> Tensor {
    let shape: Vec<i64> = array
        .shape()
        .iter()
        .map(|axis| i64::try_from(*axis).expect("small"))
        .collect();
    Tensor::new(
        name,
        "FP32",
        &shape,
        array.iter().map(|value| Element::Float(f64::from(*value))).collect(),
    )
}

/// Sends each row of the recorded input as a job of its own, and all of them as one, and compares `output`.
async fn answers_as_recorded(model: &str, output: &str, tolerance: f64) {
    let scene = Scene::new();
    let _worker = scene.worker(model).start().await;
    let mut producer = scene.producer().await;

    let mut golden = Golden::of(&test_models(), model);
    let input = golden.only_input();
    let rows: ArrayD<f32> = golden.array(&format!("input:{input}"));
    let expected: Vec<f32> = golden.array::<f32>(&format!("output:{output}")).into_iter().collect();
    let each = rows
        .axis_chunks_iter(Axis(0), 1)
        .map(|row| tensor_of(&input, &row.to_owned()));
    let jobs = each.chain([tensor_of(&input, &rows)]).enumerate();
    let jobs = jobs.map(|(number, x)| {
        scene
            .job(model, Request::new([x]).msgpack())
            .correlation_id(&number.to_string())
    });
    let ids = producer.send_all(jobs).await;
    let replies = producer.replies(&ids).await;

    let mut singly = Vec::new();
    for id in &ids[..ids.len() - 1] {
        singly.extend(replies[id][0].response().output(output).floats());
    }
    let together = replies[&ids[ids.len() - 1]][0].response().output(output).floats();
    for answer in [singly, together] {
        assert_eq!(answer.len(), expected.len());
        for (got, want) in answer.iter().zip(&expected) {
            assert!((got - f64::from(*want)).abs() <= tolerance, "{got} is not {want}");
        }
    }
}

#[tokio::test]
async fn a_model_from_pytorch_answers_as_pytorch_did() {
    answers_as_recorded("torch-mlp", "y", 1e-5).await;
}

#[tokio::test]
async fn a_model_from_scikit_learn_answers_as_scikit_learn_did() {
    answers_as_recorded("sklearn-logreg", "probabilities", 1e-4).await;
}

#[tokio::test]
async fn a_model_with_names_as_labels_answers_as_scikit_learn_did() {
    answers_as_recorded("sklearn-strings", "probabilities", 1e-4).await;
}

#[tokio::test]
async fn weights_in_a_file_of_their_own_are_found() {
    answers_as_recorded("external", "y", 0.0).await;
}

/// One iris of each kind.
fn irises() -> Request {
    Request::new([Tensor::fp32(
        "X",
        &[[5.1, 3.5, 1.4, 0.2], [7.0, 3.2, 4.7, 1.4], [6.3, 3.3, 6.0, 2.5]],
    )])
}

#[tokio::test]
async fn labels_come_as_numbers_or_as_names() {
    let scene = Scene::new();
    let _worker = scene.worker("sklearn-logreg,sklearn-strings").start().await;
    let mut producer = scene.producer().await;

    let numbered = producer
        .call(scene.job("sklearn-logreg", irises().msgpack()))
        .await
        .response();
    let named = producer
        .call(scene.job("sklearn-strings", irises().msgpack()))
        .await
        .response();

    assert_eq!(numbered.output("label").integers(), [0, 1, 2]);
    assert_eq!(named.output("label").datatype, "BYTES");
    let names = ["setosa", "versicolor", "virginica"].map(|name| Element::Bytes(name.into()));
    assert_eq!(named.output("label").elements, names);
    assert_eq!(named.output("probabilities").shape, [3, 3]);
}

#[tokio::test]
async fn an_output_that_is_no_tensor_is_left_out_and_the_others_are_served() {
    let scene = Scene::new();
    let _worker = scene.worker("sklearn-zipmap").start().await;
    let mut producer = scene.producer().await;

    let all = producer
        .call(scene.job("sklearn-zipmap", irises().msgpack()))
        .await
        .response();
    let asked = irises().outputs(&["output_probability"]).msgpack();
    let refused = producer.call(scene.job("sklearn-zipmap", asked)).await;

    assert_eq!(all.outputs.len(), 1, "{:?}", all.names());
    assert_eq!(all.outputs[0].integers(), [0, 1, 2]);
    refused.error("INVALID_ARGUMENT");
}

#[tokio::test]
async fn a_model_with_a_fixed_first_axis_takes_jobs_of_exactly_that_many_rows() {
    let scene = Scene::new();
    scene.declare("fixed").await;
    let mut producer = scene.producer().await;

    let mut golden = Golden::of(&test_models(), "fixed");
    let x: ArrayD<f32> = golden.array("input:x");
    let expected: Vec<f32> = golden.array::<f32>("output:y").into_iter().collect();
    let jobs = (0..20).map(|number: i32| {
        let body = Request::new([tensor_of("x", &x)]).msgpack();
        scene.job("fixed", body).correlation_id(&number.to_string())
    });
    let ids = producer.send_all(jobs).await;
    let _worker = scene.worker("fixed").start().await;
    let replies = producer.replies(&ids).await;

    for (id, replies) in replies {
        let response = replies[0].response();
        assert_eq!(response.output("y").shape, [4, 2], "{id}");
        for (got, want) in response.output("y").floats().iter().zip(&expected) {
            assert!((got - f64::from(*want)).abs() <= 1e-5, "{got} is not {want}");
        }
    }
}

#[tokio::test]
async fn a_job_of_too_many_rows_for_a_fixed_model_is_refused_with_what_it_takes() {
    let scene = Scene::new();
    let _worker = scene.worker("fixed").start().await;
    let mut producer = scene.producer().await;

    let body = Request::new([Tensor::fp32("x", &[[0.0_f32; 3]; 5])]).msgpack();
    let sentence = producer.call(scene.job("fixed", body)).await.error("INVALID_ARGUMENT");

    assert!(sentence.contains('5') && sentence.contains('4'), "{sentence}");
}

#[tokio::test]
async fn the_digits_model_reads_its_held_out_images_as_well_as_promised() {
    let scene = Scene::new();
    let _worker = scene.worker("digits").repository(&models()).start().await;
    let mut producer = scene.producer().await;

    let folder = root().join("models/digits/test");
    let images = read(&folder.join("images.npy"));
    let labels = read(&folder.join("labels.npy"));
    let jobs = images.axis_chunks_iter(Axis(0), 1).enumerate().map(|(number, image)| {
        let image = image.to_owned();
        let pixels = image.iter().map(|pixel| Element::Float(*pixel)).collect();
        let x = Tensor::new("x", "FP32", &[1, 64], pixels).unnamed();
        scene
            .job("digits", Request::new([x]).msgpack())
            .correlation_id(&number.to_string())
    });
    let ids = producer.send_all(jobs).await;
    let replies = producer.replies(&ids).await;

    let right = replies.iter().filter(|(id, replies)| {
        let number: usize = id.parse().expect("our own id");
        let digit = largest(&replies[0].response().outputs[0].floats());
        labels
            .slice_axis(Axis(0), Slice::from(number..=number))
            .iter()
            .all(|label| (*label - digit).abs() < 0.5)
    });
    let right = right.count();
    // 0.97 of them, in whole numbers.
    assert!(100 * right >= 97 * ids.len(), "{right} of {} are right", ids.len());
}

/// Index of the largest value, as a number.
fn largest(values: &[f64]) -> f64 {
    let mut best = (0.0, f64::NEG_INFINITY);
    let mut index = 0.0;
    for value in values {
        if *value > best.1 {
            best = (index, *value);
        }
        index += 1.0;
    }
    best.0
}

/// An array of numbers of whatever type was saved.
fn read(path: &Path) -> ArrayD<f64> {
    let open = || File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if let Ok(array) = ArrayD::<f32>::read_npy(open()) {
        return array.mapv(f64::from);
    }
    if let Ok(array) = ArrayD::<u8>::read_npy(open()) {
        return array.mapv(f64::from);
    }
    if let Ok(array) = ArrayD::<i32>::read_npy(open()) {
        return array.mapv(f64::from);
    }
    let array = ArrayD::<i64>::read_npy(open()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    array.mapv(|value| f64::from(i32::try_from(value).expect("a small number")))
}

#[tokio::test]
async fn the_reference_model_answers_with_probabilities() {
    let scene = Scene::new();
    let _worker = scene.worker("dense").repository(&models()).start().await;
    let mut producer = scene.producer().await;

    let rows = [[0.25_f32; 1000], [-0.5; 1000]];
    let request = Request::new([Tensor::fp32("x", &rows).unnamed()]);
    let response = producer.call(scene.job("dense", request.msgpack())).await.response();

    assert_eq!(response.outputs[0].shape, [2, 10]);
    for row in response.outputs[0].floats().chunks(10) {
        let sum: f64 = row.iter().sum();
        assert!((sum - 1.0).abs() < 1e-5, "probabilities that add up to {sum}");
    }
}

#[tokio::test]
async fn an_input_with_a_value_of_its_own_may_be_given_another() {
    let scene = Scene::new();
    let repository = tempfile::tempdir().expect("a temporary folder");
    let model = Onnx::default()
        .input("x", &["n", "2"])
        .default_input("k", &[2.0, 3.0])
        .node("Mul", &["x", "k"], "y")
        .output("y", &["n", "2"]);
    std::fs::create_dir_all(repository.path().join("scale/1")).expect("a folder");
    std::fs::write(repository.path().join("scale/1/model.onnx"), model.file()).expect("a file");
    let mut producer = scene.producer().await;
    let x = |number: f32| Tensor::fp32("x", &[[number, 1.0]]);
    let k = |number: f64| Tensor::new("k", "FP32", &[2], vec![Element::Float(number), Element::Float(7.0)]);
    scene
        .worker("scale")
        .repository(repository.path())
        .start()
        .await
        .drain()
        .await;

    // Usual jobs and others are in the queue together when the worker comes.
    let jobs = (0..40_u8).map(|number| {
        let number = f32::from(number);
        let inputs = if number % 3.0 == 0.0 {
            vec![k(f64::from(number)), x(number)]
        } else {
            vec![x(number)]
        };
        let body = Request::new(inputs).msgpack();
        scene.job("scale", body).correlation_id(&number.to_string())
    });
    let ids = producer.send_all(jobs).await;
    let _worker = scene.worker("scale").repository(repository.path()).start().await;
    let replies = producer.replies(&ids).await;
    let wrong = Tensor::new("k", "FP32", &[1], vec![Element::Float(1.0)]);
    let misshapen = producer
        .call(scene.job("scale", Request::new([x(1.0), wrong]).msgpack()))
        .await;
    let alone = producer
        .call(scene.job("scale", Request::new([k(1.0)]).msgpack()))
        .await;

    for (number, id) in (0..40_u8).zip(&ids) {
        let number = f64::from(number);
        let given = number % 3.0 == 0.0;
        let expected = if given {
            [number * number, 7.0]
        } else {
            [number * 2.0, 3.0]
        };
        let reply = &replies[id][0];
        assert_eq!(reply.response().output("y").floats(), expected, "{id}");
        let rows = if given { "unknown" } else { "independent" };
        assert_eq!(reply.header("inferq-rows").as_deref(), Some(rows), "{id}");
    }
    let sentence = misshapen.error("INVALID_ARGUMENT");
    assert!(sentence.contains("`k`") && sentence.contains("[2]"), "{sentence}");
    let sentence = alone.error("INVALID_ARGUMENT");
    assert!(
        sentence.contains("`x FP32 [n,2]`, and if given `k FP32 [2]`"),
        "{sentence}"
    );
}
