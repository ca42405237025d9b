use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use proptest::prelude::*;
use tokio::sync::mpsc::{self, Receiver};
use tokio_util::sync::CancellationToken;

use super::super::batch::Batcher;
use super::super::lane_rows::LaneRows;
use super::super::row_headers::RowHeaders;
use super::super::testing::{Jobs, not_batched};
use super::super::turns::Turn;
use super::super::watch::{Patience, Watch};
use super::*;
use crate::model::batching::Batching;
use crate::model::capacity::Fit;
use crate::model::signature::Signature;
use crate::model::test_engine::{Array, TestEngine, spec};
use crate::wire::rows::RowRelation;
use crate::wire::status::Status;
use crate::wire::tensor::{Datatype, Tensor, push_bytes_element};

/// An engine on its thread's place, with the other ends of its channels.
struct Rig {
    inference: Inference,
    idle: Receiver<EngineSlot>,
    answers: Receiver<Vec<Answer>>,
    fatal: Receiver<WorkerError>,
    /// Rows of every run, in order.
    runs: Arc<Mutex<Vec<usize>>>,
}

const RUN_MAX: Duration = Duration::from_secs(60);

type Given = Result<Vec<Array>, EngineError>;

fn rig(jobs: &Jobs, mut rule: impl FnMut(&[Array]) -> Given + Send + 'static) -> Rig {
    let runs = Arc::new(Mutex::new(Vec::new()));
    let seen = runs.clone();
    let signature = jobs.lane.signature.clone();
    let engine = TestEngine::new(signature.inputs, signature.outputs, move |inputs| {
        seen.lock().unwrap().push(inputs[0].shape[0]);
        rule(inputs)
    });
    rig_of(jobs, Box::new(engine), runs)
}

fn rig_of(jobs: &Jobs, engine: Box<dyn Engine + Send>, runs: Arc<Mutex<Vec<usize>>>) -> Rig {
    let (idle, idle_receiver) = mpsc::channel(1);
    let (answers, answers_receiver) = mpsc::channel(16);
    let (fatal, fatal_receiver) = mpsc::channel(1);
    Rig {
        inference: Inference {
            engine,
            lane: jobs.lane.clone(),
            fit: Fit::default(),
            model: PathBuf::new(),
            hardware: Hardware::CPU,
            isolation: None,
            isolated: None,
            watched: Watched::default(),
            run_max: RUN_MAX,
            rows_limit: RowsLimit::new(jobs.lane.rows_max),
            reply_bytes_max: 64 * 1024,
            idle,
            answers,
            fatal: Fatal(fatal),
        },
        idle: idle_receiver,
        answers: answers_receiver,
        fatal: fatal_receiver,
        runs,
    }
}

impl Rig {
    fn run(&mut self, jobs: Vec<Job>) -> Vec<(u64, Reply)> {
        let mut answers = Vec::new();
        self.inference.execute(batch(jobs), &mut answers).unwrap();
        answers.into_iter().map(shown).collect()
    }

    fn runs(&self) -> Vec<usize> {
        self.runs.lock().unwrap().clone()
    }
}

fn batch(jobs: Vec<Job>) -> Batch {
    let rows = jobs.iter().map(|job| job.rows).sum();
    Batch { jobs, rows }
}

/// The outputs' data, or what was wrong.
type Reply = Result<serde_json::Value, (Status, String)>;

/// An answer with the number of the delivery it is for; jobs of these tests have the same number as id.
fn shown(answer: Answer) -> (u64, Reply) {
    let id: u64 = answer
        .envelope
        .properties
        .message_id()
        .as_ref()
        .map_or(0, |id| id.as_str().parse().unwrap());
    let reply = match answer.outcome {
        Outcome::Result { body, .. } => {
            let reply: serde_json::Value = serde_json::from_slice(&body.body).unwrap();
            assert_eq!(reply["id"], id.to_string(), "the body of another job");
            let outputs = reply["outputs"].as_array().unwrap().iter();
            Ok(outputs.map(|output| output["data"].clone()).collect())
        }
        Outcome::Failure(error) => Err((error.status(), error.to_string())),
    };
    (id, reply)
}

/// A job that carries its id in every row and in its properties.
fn job(jobs: &Jobs, id: u64, rows: usize) -> Job {
    marked(jobs.job(id, rows))
}

fn marked(mut job: Job) -> Job {
    let id = job.id.clone().unwrap();
    job.envelope.properties = job.envelope.properties.clone().with_message_id(id.into());
    job
}

/// What a job of [`job`] gets from an engine that gives back what it takes.
fn own_rows(id: u64, rows: usize) -> Reply {
    let values = (0..rows).flat_map(|row| [id as f64, row as f64]);
    Ok(serde_json::json!([values.collect::<Vec<_>>()]))
}

fn echo(inputs: &[Array]) -> Given {
    Ok(inputs.to_vec())
}

fn fail_on(culprits: Vec<u64>) -> impl FnMut(&[Array]) -> Given + Send + 'static {
    move |inputs| {
        let hit = inputs[0].rows().iter().any(|row| culprits.contains(&(row[0] as u64)));
        if hit {
            Err(EngineError::Run("a bad row".to_owned()))
        } else {
            echo(inputs)
        }
    }
}

fn with_rows_max(rows_max: usize) -> Jobs {
    let mut jobs = Jobs::new();
    jobs.lane_mut().rows_max = rows_max;
    jobs
}

fn internal(error: &str) -> Reply {
    Err((Status::Internal, format!("the model failed on this input: {error}")))
}

#[test]
fn a_culprit_at_any_place_of_a_batch_is_the_only_one_hurt() {
    for (count, culprit) in (1..=5).flat_map(|count| (0..count).map(move |culprit| (count, culprit))) {
        let jobs = with_rows_max(64);
        let mut rig = rig(&jobs, fail_on(vec![culprit]));

        let answers = rig.run((0..count).map(|id| job(&jobs, id, 2)).collect());

        for (place, (id, reply)) in answers.into_iter().enumerate() {
            assert_eq!(id, place as u64);
            let expected = if id == culprit {
                internal("a bad row")
            } else {
                own_rows(id, 2)
            };
            assert_eq!(reply, expected, "{culprit} of {count}");
        }
    }
}

#[test]
fn a_job_bigger_than_a_batch_runs_in_slices_and_comes_back_joined_in_order() {
    let jobs = with_rows_max(4);
    let mut rig = rig(&jobs, echo);

    let answers = rig.run(vec![job(&jobs, 7, 9)]);

    assert_eq!(answers, [(7, own_rows(7, 9))]);
    assert_eq!(rig.runs(), [4, 4, 1]);
}

/// An engine that gives its inputs, in memory of a runtime of which so many outputs are out.
struct Lending {
    signature: Signature,
    out: Arc<()>,
    seen: Arc<Mutex<Vec<usize>>>,
}

struct Lent(Vec<u8>, #[expect(dead_code, reason = "counted")] Arc<()>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Engine for Lending {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<Output>, EngineError> {
        self.seen.lock().unwrap().push(Arc::strong_count(&self.out) - 1);
        let lent = Lent(inputs[0].parts.concat(), self.out.clone());
        Ok(vec![Output::new(inputs[0].shape.clone(), lent)])
    }
}

#[test]
fn the_output_of_a_slice_has_left_the_runtime_before_the_next_one_runs() {
    let jobs = with_rows_max(4);
    let engine = Lending {
        signature: jobs.lane.signature.clone(),
        out: Arc::default(),
        seen: Arc::default(),
    };
    let out = engine.seen.clone();
    let mut rig = rig_of(&jobs, Box::new(engine), out);

    let answers = rig.run(vec![job(&jobs, 7, 9)]);

    assert_eq!(answers, [(7, own_rows(7, 9))]);
    assert_eq!(rig.runs(), [0, 0, 0]);
}

#[test]
fn a_job_that_is_too_big_for_the_memory_is_run_in_smaller_slices() {
    let jobs = with_rows_max(4);
    let mut rig = rig(&jobs, |inputs| match inputs[0].shape[0] {
        1 => echo(inputs),
        _ => Err(EngineError::Memory("no room".to_owned())),
    });

    let answers = rig.run(vec![job(&jobs, 7, 6)]);

    assert_eq!(answers, [(7, own_rows(7, 6))]);
    assert_eq!(rig.runs(), [4, 2, 1, 1, 1, 1, 1, 1]);
}

#[test]
fn jobs_that_are_too_many_for_the_memory_are_run_apart_before_any_is_sliced() {
    let jobs = with_rows_max(64);
    let mut rig = rig(&jobs, |inputs| match inputs[0].shape[0] {
        1 | 2 => echo(inputs),
        _ => Err(EngineError::Memory("no room".to_owned())),
    });

    let answers = rig.run(vec![job(&jobs, 1, 2), job(&jobs, 2, 2)]);

    assert_eq!(answers, [(1, own_rows(1, 2)), (2, own_rows(2, 2))]);
    assert_eq!(rig.runs(), [4, 2, 2]);
}

#[test]
fn a_single_row_that_finds_no_memory_is_left_to_another_worker() {
    for batching in [true, false] {
        let mut jobs = Jobs::new();
        if !batching {
            jobs.lane_mut().rows = not_batched();
        }
        let mut rig = rig(&jobs, |_| Err(EngineError::Memory("no room".to_owned())));

        let answers = rig.run(vec![job(&jobs, 7, 1)]);

        let error = "the runtime could not allocate memory for this run: no room".to_owned();
        assert_eq!(answers, [(7, Err((Status::Unavailable, error)))]);
        assert_eq!(rig.runs(), [1]);
    }
}

#[test]
fn a_panic_of_the_engine_costs_one_job_its_answer() {
    let jobs = with_rows_max(64);
    let mut rig = rig(&jobs, |inputs| {
        assert!(
            inputs[0].rows().iter().all(|row| row[0] != 2.0),
            "on purpose, for the test"
        );
        echo(inputs)
    });

    let answers = rig.run((1..=3).map(|id| job(&jobs, id, 1)).collect());

    assert_eq!(
        answers,
        [
            (1, own_rows(1, 1)),
            (2, internal("the engine panicked")),
            (3, own_rows(3, 1))
        ]
    );
}

/// Gives the rows whose second element is not 0: what a job's own rows would be without the first of each.
fn drop_first_rows(inputs: &[Array]) -> Given {
    let kept: Vec<_> = inputs[0].rows().into_iter().filter(|row| row[1] != 0.0).collect();
    Ok(vec![Array::f32(&[kept.len(), 2], kept.concat())])
}

/// The answer that a job gets from it.
fn without_first_row(id: u64, rows: usize) -> Reply {
    let values = (1..rows).flat_map(|row| [id as f64, row as f64]);
    Ok(serde_json::json!([values.collect::<Vec<_>>()]))
}

#[test]
fn jobs_of_a_batch_without_one_row_a_row_are_run_alone() {
    let jobs = with_rows_max(64);
    let mut rig = rig(&jobs, drop_first_rows);

    let answers = rig.run((1..=3).map(|id| job(&jobs, id, 2)).collect());

    assert_eq!(answers, [1, 2, 3].map(|id| (id, without_first_row(id, 2))));
    assert_eq!(rig.runs(), [6, 2, 2, 2]);
}

#[test]
fn a_lane_whose_rows_were_misjudged_is_never_batched_again() {
    let jobs = with_rows_max(64);
    let mut rig = rig(&jobs, |inputs| match inputs[0].rows()[0][0] {
        0.0 => drop_first_rows(inputs),
        _ => echo(inputs),
    });

    rig.run(vec![job(&jobs, 0, 2)]);
    // Closed before, and run after.
    let answers = rig.run(vec![job(&jobs, 1, 2), job(&jobs, 2, 1)]);

    assert_eq!(answers, [(1, own_rows(1, 2)), (2, own_rows(2, 1))]);
    assert_eq!(rig.runs(), [2, 2, 1]);
    assert!(!jobs.lane.rows.are_batched());
}

#[test]
fn a_job_alone_without_one_row_a_row_is_answered_with_what_came() {
    let jobs = with_rows_max(4);
    let mut rig = rig(&jobs, |_| Ok(vec![Array::f32(&[0, 2], [])]));

    let answers = rig.run(vec![job(&jobs, 7, 1)]);

    assert_eq!(answers, [(7, Ok(serde_json::json!([[]])))]);
    let metrics = jobs.metrics.render();
    assert!(
        metrics.contains(r#"reason="output `y` has shape [0, 2] for 1 rows",relation="unknown""#),
        "{metrics}"
    );
    assert_eq!(rig.runs(), [1]);
}

#[test]
fn a_job_in_slices_without_one_row_a_row_is_run_once_more_whole() {
    let jobs = with_rows_max(4);
    let mut rig = rig(&jobs, drop_first_rows);

    let answers = rig.run(vec![job(&jobs, 7, 6)]);

    assert_eq!(answers, [(7, without_first_row(7, 6))]);
    assert_eq!(rig.runs(), [4, 2, 6]);
}

#[test]
fn a_result_says_unknown_from_the_run_that_shows_it_on() {
    let jobs = with_rows_max(4);
    let mut rig = rig(&jobs, drop_first_rows);
    let relation_told = |answers: Vec<Answer>| match &answers[0].outcome {
        Outcome::Result { rows, .. } => rows.relation(),
        Outcome::Failure(error) => panic!("{error}"),
    };

    let mut told = Vec::new();
    for first in [1.0, 0.0, 1.0] {
        let x = Tensor::fp32("x", &[1, 2], &[7.0, first]);
        let mut answers = Vec::new();
        rig.inference
            .execute(batch(vec![jobs.job_with(7, vec![x])]), &mut answers)
            .unwrap();
        told.push(relation_told(answers));
    }

    assert_eq!(
        told,
        [RowRelation::Independent, RowRelation::Unknown, RowRelation::Unknown]
    );
}

#[test]
fn rows_withdrawn_during_a_run_are_not_cut_up() {
    let jobs = with_rows_max(64);
    let lane_rows = jobs.lane.rows.clone();
    let mut rig = rig(&jobs, move |inputs| {
        lane_rows.withdraw();
        drop_first_rows(inputs)
    });

    let answers = rig.run(vec![job(&jobs, 1, 2), job(&jobs, 2, 3)]);

    assert_eq!(answers, [(1, without_first_row(1, 2)), (2, without_first_row(2, 3))]);
}

#[test]
fn an_independent_model_without_batches_is_checked_too() {
    let mut jobs = Jobs::new();
    let off = Batching::Off {
        reason: "model.toml says batching = false".to_owned(),
    };
    jobs.lane_mut().rows = Arc::new(LaneRows::new(&off, RowHeaders::independent()));
    let mut rig = rig(&jobs, drop_first_rows);

    let answers = rig.run(vec![job(&jobs, 1, 2)]);

    assert_eq!(answers, [(1, without_first_row(1, 2))]);
    assert!(!jobs.lane.rows.are_independent());
}

#[test]
fn too_few_bytes_for_a_shape_stay_an_error() {
    let jobs = with_rows_max(4);
    let mut rig = rig(&jobs, |_| Ok(vec![Array::f32(&[0, 2], [1.0])]));

    let answers = rig.run(vec![job(&jobs, 1, 1)]);

    assert_eq!(
        answers,
        [(1, internal("output `y` has shape [0, 2] of FP32 in 4 bytes"))]
    );
    assert!(jobs.lane.rows.are_batched());
}

#[test]
fn slices_that_give_outputs_of_other_widths_are_an_error() {
    let jobs = with_rows_max(2);
    let mut rig = rig(&jobs, |inputs| {
        let rows = inputs[0].shape[0];
        Ok(vec![Array::f32(&[rows, rows], vec![0.0; rows * rows])])
    });

    let answers = rig.run(vec![job(&jobs, 1, 3)]);

    let error = "output `y` came in other shapes from slice to slice".to_owned();
    assert_eq!(answers, [(1, Err((Status::Internal, error)))]);
}

#[test]
fn a_model_that_is_not_batched_takes_and_gives_what_it_likes() {
    let mut jobs = Jobs::new();
    jobs.lane_mut().rows = not_batched();
    let mut rig = rig(&jobs, |inputs| Ok(vec![Array::f32(&[], [inputs[0].shape[0] as f32])]));

    let answers = rig.run(vec![job(&jobs, 1, 9)]);

    assert_eq!(answers, [(1, Ok(serde_json::json!([[9.0]])))]);
    assert_eq!(rig.runs(), [9]);
}

#[test]
fn rows_of_every_output_return_to_their_jobs_though_texts_differ_in_length() {
    let mut jobs = Jobs::of(Signature {
        inputs: vec![
            spec("x", Datatype::Fp32, &["batch", "1"]),
            spec("n", Datatype::Fp32, &["batch"]),
        ],
        outputs: vec![
            spec("y", Datatype::Fp32, &["batch"]),
            spec("label", Datatype::Bytes, &["batch", "2"]),
        ],
    });
    jobs.lane_mut().rows_max = 64;
    let mut rig = rig(&jobs, |inputs| {
        let (x, n) = (inputs[0].to_f32(), inputs[1].to_f32());
        let mut texts = Vec::new();
        for value in &x {
            push_bytes_element(&mut texts, "x".repeat(*value as usize).as_bytes());
            push_bytes_element(&mut texts, value.to_string().as_bytes());
        }
        let labels = Array {
            shape: vec![x.len(), 2],
            data: texts,
        };
        Ok(vec![Array::f32(&[n.len()], n), labels])
    });
    let two_inputs = |id: u64, values: &[f32]| {
        let negative: Vec<f32> = values.iter().map(|value| -value).collect();
        let x = Tensor::fp32("x", &[values.len(), 1], values);
        marked(jobs.job_with(id, vec![x, Tensor::fp32("n", &[values.len()], &negative)]))
    };
    let mut labels_only = two_inputs(3, &[4.0]);
    labels_only.outputs.remove(0);

    let answers = rig.run(vec![two_inputs(1, &[0.0]), two_inputs(2, &[3.0, 1.0]), labels_only]);

    assert_eq!(
        answers,
        [
            (1, Ok(serde_json::json!([[-0.0], ["", "0"]]))),
            (2, Ok(serde_json::json!([[-3.0, -1.0], ["xxx", "3", "x", "1"]]))),
            (3, Ok(serde_json::json!([["xxxx", "4"]]))),
        ]
    );
    assert_eq!(rig.runs(), [4]);
}

#[test]
fn a_reply_that_is_too_large_is_refused_and_the_others_of_its_batch_are_not() {
    let jobs = with_rows_max(64);
    let mut rig = rig(&jobs, echo);
    rig.inference.reply_bytes_max = 200;

    let answers = rig.run(vec![job(&jobs, 1, 1), job(&jobs, 2, 30)]);

    assert_eq!(answers[0], (1, own_rows(1, 1)));
    let (status, error) = answers[1].1.clone().unwrap_err();
    assert_eq!(status, Status::InvalidArgument);
    assert!(
        error.contains("at most 200 are allowed (limits.body_bytes_max)"),
        "{error}"
    );
}

#[test]
fn timings_are_those_of_the_run_that_answered_the_job() {
    let jobs = with_rows_max(64);
    let mut rig = rig(&jobs, fail_on(vec![1]));
    let mut answers = Vec::new();

    let batched = (0..4).map(|id| job(&jobs, id, 3)).collect();
    rig.inference.execute(batch(batched), &mut answers).unwrap();

    let rows = answers.iter().map(|answer| match &answer.outcome {
        Outcome::Result { timing, .. } => timing.batch_rows,
        Outcome::Failure(_) => 0,
    });
    assert_eq!(rows.collect::<Vec<_>>(), [3, 0, 6, 6]);
}

/// Hands the jobs to the engine's thread and returns when it has ended.
fn run_thread(rig: Rig, jobs: Vec<Job>) -> (Vec<Answer>, Option<WorkerError>) {
    let (inference, mut idle, mut answers, mut fatal) = (rig.inference, rig.idle, rig.answers, rig.fatal);
    let thread = std::thread::spawn(move || inference.run());
    let slot = idle.blocking_recv().unwrap();
    let (batch, turn) = (batch(jobs), Turn::free());
    assert!(slot.0.send(Work { batch, turn }).is_ok());
    let answered = answers.blocking_recv();
    drop(idle);
    thread.join().unwrap();
    (answered.unwrap_or_default(), fatal.try_recv().ok())
}

#[test]
fn an_engine_ends_when_nobody_has_batches_for_it_any_more() {
    let jobs = Jobs::new();
    let rig = rig(&jobs, echo);

    let (answers, fatal) = run_thread(rig, vec![job(&jobs, 1, 1)]);

    assert_eq!(answers.len(), 1);
    assert!(fatal.is_none());
}

#[test]
fn a_lost_device_ends_the_worker_and_leaves_its_jobs_to_others() {
    let mut jobs = Jobs::new();
    let rig = rig(&jobs, |_| Err(EngineError::Device("Xid 79".to_owned())));

    let held = vec![job(&jobs, 1, 1), job(&jobs, 2, 1)];
    let (answers, fatal) = run_thread(rig, held);

    assert!(answers.is_empty());
    assert!(matches!(fatal, Some(WorkerError::Device(lost)) if lost == "Xid 79"));
    assert_eq!(jobs.verdicts(), []);
}

#[test]
fn what_was_computed_before_the_device_was_lost_is_answered() {
    let jobs = with_rows_max(64);
    let rig = rig(&jobs, |inputs| match inputs[0].rows()[0][0] {
        _ if inputs[0].shape[0] > 1 => Err(EngineError::Run("apart, please".to_owned())),
        0.0 | 1.0 => echo(inputs),
        _ => Err(EngineError::Device("Xid 79".to_owned())),
    });

    let (answers, fatal) = run_thread(rig, (0..4).map(|id| job(&jobs, id, 1)).collect());

    let answers: Vec<_> = answers.into_iter().map(shown).collect();
    assert_eq!(answers, [(0, own_rows(0, 1)), (1, own_rows(1, 1))]);
    assert!(matches!(fatal, Some(WorkerError::Device(_))));
}

/// An engine that runs until it is told to stop where a row's first element is 2, and remembers its batches.
struct Endless {
    signature: Signature,
    told: Arc<Told>,
    runs: Arc<Mutex<Vec<usize>>>,
}

#[derive(Default)]
struct Told(Mutex<bool>, Condvar);

impl Stop for Told {
    fn stop(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

impl Engine for Endless {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<Output>, EngineError> {
        let data = inputs[0].parts.concat();
        self.runs.lock().unwrap().push(inputs[0].shape[0]);
        if data.chunks(8).any(|row| row[..4] == 2.0_f32.to_le_bytes()) {
            let told = self.told.0.lock().unwrap();
            drop(self.told.1.wait_while(told, |told| !*told).unwrap());
            return Err(EngineError::Run("terminated".to_owned()));
        }
        Ok(vec![Output::new(inputs[0].shape.clone(), data)])
    }

    fn stopper(&mut self) -> Option<Arc<dyn Stop>> {
        self.told = Arc::default();
        Some(self.told.clone())
    }
}

#[tokio::test]
async fn a_batch_that_takes_too_long_is_run_job_by_job_and_only_the_culprit_is_late() {
    let jobs = with_rows_max(64);
    let engine = Endless {
        signature: jobs.lane.signature.clone(),
        told: Arc::default(),
        runs: Arc::default(),
    };
    let runs = engine.runs.clone();
    let mut rig = rig_of(&jobs, Box::new(engine), runs);
    rig.inference.run_max = Duration::from_millis(20);
    let closed = CancellationToken::new();
    let watch = Watch {
        engines: vec![("pair".into(), rig.inference.watched.clone())],
        patience: Patience {
            run_max: rig.inference.run_max,
            stop_max: Duration::from_secs(60),
        },
        fatal: rig.inference.fatal.clone(),
        closed: closed.clone(),
    };
    let watching = tokio::spawn(watch.run());

    let held = (0..5).map(|id| job(&jobs, id, 1)).collect();
    let (answers, runs) = tokio::task::spawn_blocking(move || (rig.run(held), rig.runs()))
        .await
        .unwrap();
    closed.cancel();
    watching.await.unwrap();

    let late = "the run took longer than 20 ms (worker.run_timeout_ms) and was ended".to_owned();
    let expected = (0..5).map(|id| match id {
        2 => (id, Err((Status::Internal, late.clone()))),
        id => (id, own_rows(id, 1)),
    });
    assert_eq!(answers, expected.collect::<Vec<_>>());
    assert_eq!(runs, [5, 1, 1, 1, 1, 1]);
    assert_eq!(jobs.lane.metrics.stopped.get(), 2);
}

/// An output that panics once, when it is looked at for that time.
struct Brittle(AtomicU32);

impl AsRef<[u8]> for Brittle {
    fn as_ref(&self) -> &[u8] {
        let left = self.0.fetch_sub(1, Ordering::Relaxed);
        assert!(left != 1, "on purpose, for the test");
        &[0; 24]
    }
}

struct BrittleEngine(Signature, u32);

impl Engine for BrittleEngine {
    fn signature(&self) -> &Signature {
        &self.0
    }

    fn run(&mut self, _: &[Input<'_>]) -> Result<Vec<Output>, EngineError> {
        Ok(vec![Output::new(vec![3, 2], Brittle(self.1.into()))])
    }
}

#[test]
fn a_panic_while_a_reply_is_written_costs_that_job_its_answer_and_nobody_else() {
    let jobs = with_rows_max(64);
    // Checking the outputs takes two looks, and so does each reply.
    let engine = BrittleEngine(jobs.lane.signature.clone(), 2 + 2 + 1);
    let mut rig = rig_of(&jobs, Box::new(engine), Arc::default());

    let answers = rig.run((0..3).map(|id| job(&jobs, id, 1)).collect());

    let statuses: Vec<_> = answers
        .iter()
        .map(|(_, reply)| reply.as_ref().err().map(|error| error.0))
        .collect();
    assert_eq!(statuses, [None, Some(Status::Internal), None]);
    let error = answers[1].1.clone().unwrap_err().1;
    assert!(error.contains("panicked while writing the reply"), "{error}");
}

#[test]
fn a_panic_outside_the_engine_ends_the_worker_instead_of_leaving_it_without_an_engine() {
    struct Trap;
    impl AsRef<[u8]> for Trap {
        fn as_ref(&self) -> &[u8] {
            &[0; 8]
        }
    }
    impl Drop for Trap {
        fn drop(&mut self) {
            panic!("on purpose, for the test");
        }
    }
    struct Trapped(Signature);
    impl Engine for Trapped {
        fn signature(&self) -> &Signature {
            &self.0
        }
        fn run(&mut self, _: &[Input<'_>]) -> Result<Vec<Output>, EngineError> {
            Ok(vec![Output::new(vec![1, 2], Trap)])
        }
    }
    let jobs = Jobs::new();
    let engine = Box::new(Trapped(jobs.lane.signature.clone()));
    let rig = rig_of(&jobs, engine, Arc::default());

    let (_, fatal) = run_thread(rig, vec![job(&jobs, 1, 1)]);

    assert!(matches!(fatal, Some(WorkerError::Panicked)));
}

proptest! {
    #[test]
    fn in_any_batches_with_any_culprits_everybody_else_gets_their_own_rows(
        sizes in proptest::collection::vec((1_usize..6, any::<bool>(), 0..4_u8), 1..16),
        rows_max in 1_usize..10,
    ) {
        let jobs = with_rows_max(rows_max);
        let culprit = |id: u64| sizes[id as usize].2 == 0;
        let mut rig = rig(&jobs, fail_on((0..sizes.len() as u64).filter(|id| culprit(*id)).collect()));
        let mut batcher = Batcher::new(rows_max, jobs.lane.rows.clone(), Arc::default());
        for (id, (rows, redelivered, _)) in sizes.iter().enumerate() {
            let mut job = job(&jobs, id as u64, *rows);
            job.envelope.redelivered = *redelivered;
            batcher.push(Some(job));
        }

        let mut answers = Vec::new();
        while let (Some(batch), _) = batcher.take(Instant::now(), None) {
            answers.extend(rig.run(batch.jobs));
        }

        prop_assert_eq!(answers.len(), sizes.len());
        for (place, (id, reply)) in answers.into_iter().enumerate() {
            prop_assert_eq!(id, place as u64);
            let expected = if culprit(id) { internal("a bad row") } else { own_rows(id, sizes[place].0) };
            prop_assert_eq!(reply, expected);
        }
    }
}

#[test]
fn a_lack_of_memory_lets_later_batches_run_in_parts_without_failing_first() {
    let jobs = with_rows_max(8);
    let mut rig = rig(&jobs, |inputs| {
        if inputs[0].shape[0] > 2 {
            Err(EngineError::Memory("no room".to_owned()))
        } else {
            echo(inputs)
        }
    });
    let batch = || (1..=6).map(|id| job(&jobs, id, 1)).collect::<Vec<_>>();

    let first = rig.run(batch());
    let runs_of_first = rig.runs();
    let second = rig.run(batch());

    let expected: Vec<_> = (1..=6).map(|id| (id, own_rows(id, 1))).collect();
    assert_eq!((first, second), (expected.clone(), expected));
    assert_eq!(runs_of_first[..2], [6, 3]);
    assert_eq!(rig.runs()[runs_of_first.len()..], [1; 6]);
    assert_eq!(rig.inference.lane.metrics.rows_limit.get(), 1);
}

#[test]
fn a_job_that_never_finds_memory_makes_nobody_elses_batches_smaller() {
    let jobs = with_rows_max(8);
    let mut rig = rig(&jobs, |inputs| {
        let hungry = inputs[0].rows().iter().any(|row| row[0] == 3.0);
        if hungry {
            Err(EngineError::Memory("no room".to_owned()))
        } else {
            echo(inputs)
        }
    });

    let replies = rig.run((1..=6).map(|id| job(&jobs, id, 1)).collect());
    let before = rig.runs().len();
    rig.run((4..=7).map(|id| job(&jobs, id, 1)).collect());

    assert!(matches!(&replies[2], (3, Err((Status::Unavailable, _)))), "{replies:?}");
    assert_eq!(replies.iter().filter(|(_, reply)| reply.is_ok()).count(), 5);
    assert_eq!(rig.runs()[before..], [4]);
}

#[test]
fn a_limit_below_the_rows_of_a_batch_cuts_it_between_jobs() {
    let jobs = with_rows_max(8);
    let cut = |rows: &[usize], limit| {
        let jobs = rows.iter().map(|rows| jobs.job(1, *rows)).collect();
        let batches = within(jobs, limit).into_iter();
        batches
            .map(|batch| batch.iter().map(|job| job.rows).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };

    assert_eq!(cut(&[1, 1, 1, 1, 1], 2), [vec![1, 1], vec![1, 1], vec![1]]);
    assert_eq!(cut(&[3, 1, 2, 5], 3), [vec![3], vec![1, 2], vec![5]]);
    assert_eq!(cut(&[4, 4], 2), [vec![4], vec![4]]);
}
