//! Does the client library keep what its documentation says?

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use inferq::client::{CallError, Client, Job, Options, RowRelation, ScatterError, Strays};
use inferq::config::Config;
use inferq::wire::status::Status;
use inferq::wire::tensor::Tensor;
use ndarray::{Array2, ArrayD, arr2};

use crate::support::{Broker, Scene, within};

/// A client of the workers of `scene`.
async fn client(scene: &Scene, options: Options) -> Client {
    let config = Config::from_overrides(&[("broker.uri", scene.uri.clone())]).expect("a URI");
    let options = Options {
        prefix: scene.prefix.clone(),
        ..options
    };
    let opening = Client::open(&config.broker, options);
    within("a client", opening).await.expect("the broker takes clients")
}

/// A job of one row for `affine`, whose version 2 answers 3x - 1.
fn job(number: u16) -> Job {
    Job::new("affine", vec![Tensor::fp32("x", &[1, 4], &[f32::from(number); 4])])
}

fn answer(number: u16) -> Tensor {
    Tensor::fp32("y", &[1, 4], &[f32::from(number) * 3.0 - 1.0; 4])
}

#[tokio::test]
async fn an_array_is_answered_with_an_array_and_errors_have_their_types() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let client = client(&scene, Options::default()).await;
    let rows = arr2(&[[1.0_f32, 2.0, 3.0, 4.0], [0.5, -1.0, 0.0, 10.0]]);

    let answered: ArrayD<f32> = client.predict_array("affine", &rows).await.expect("an answer");
    let pinned = client
        .call(Job {
            version: Some("1".to_owned()),
            timing: true,
            priority: Some(1),
            persistent: true,
            message_id: Some("job-1".to_owned()),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
            ..job(7)
        })
        .await
        .expect("an answer");
    let other_type = client.predict_array::<f32, f64, _, _>("affine", &rows).await;
    let misshapen = client
        .predict_array::<f32, f32, _, _>("affine", &Array2::zeros((1, 3)))
        .await;
    let unknown = client.predict("nobody-serves-this", Vec::new()).await;
    let long = "x".repeat(300);
    let long_id = client
        .call(Job {
            message_id: Some(long.clone()),
            ..job(1)
        })
        .await;
    let long_name = client.submit(&long, job(1)).await;
    let no_version = client
        .call(Job {
            version: Some("9".to_owned()),
            ..job(1)
        })
        .await;
    client.close().await;
    worker.drain().await;

    assert_eq!(answered, (rows * 3.0 - 1.0).into_dyn());
    assert_eq!(pinned.model_version, "1");
    assert_eq!(pinned.outputs, [Tensor::fp32("y", &[1, 4], &[15.0; 4])]);
    assert_eq!(pinned.batch_rows, Some(1));
    let timing = pinned.timing.expect("it was asked for");
    assert!(timing.queue.is_some(), "the job has a stamp");
    assert!(
        timing.wait + timing.infer <= timing.total && timing.total <= pinned.latency,
        "{timing:?}"
    );
    assert!(matches!(other_type, Err(CallError::Datatype { .. })), "{other_type:?}");
    let misshapen = misshapen.expect_err("three columns");
    assert_eq!(misshapen.status(), Some(Status::InvalidArgument), "{misshapen}");
    assert!(matches!(unknown, Err(CallError::UnknownModel(_))), "{unknown:?}");
    assert!(
        matches!(long_id, Err(CallError::TooLong { bytes: 300, .. })),
        "{long_id:?}"
    );
    assert!(
        matches!(long_name, Err(CallError::TooLong { bytes: 300, .. })),
        "{long_name:?}"
    );
    assert_eq!(no_version.expect_err("no version 9").status(), Some(Status::NotFound));
}

#[tokio::test]
async fn a_call_that_nobody_answers_ends_in_its_time_and_one_on_a_closed_client_at_once() {
    let scene = Scene::new();
    scene.declare("affine").await;
    let client = client(&scene, Options::default()).await;
    let clone = client.clone();

    let late = client
        .call(Job {
            timeout: Some(Duration::from_millis(200)),
            ..job(1)
        })
        .await;
    let waiting = tokio::spawn(async move { clone.call(job(2)).await });
    scene.until_waiting(&scene.queue("affine"), 2).await;
    within("the client to close", client.close()).await;
    let closed = within("the call to end", waiting).await.expect("no panic");

    assert!(matches!(late, Err(CallError::Timeout(_))), "{late:?}");
    assert!(matches!(closed, Err(CallError::Lost(_))), "{closed:?}");
}

#[tokio::test]
async fn ten_thousand_calls_at_once_on_one_client_each_get_their_own_answer() {
    const CALLS: u16 = 10_000;
    let scene = Scene::new();
    scene.declare("affine").await;
    let options = Options {
        in_flight_max: CALLS.into(),
        ..Options::default()
    };
    let client = client(&scene, options).await;

    let calls = (0..CALLS).map(|number| client.call(job(number)));
    let calls = futures_util::future::join_all(calls);
    let worker = async {
        // All of them are under way before anybody answers.
        scene.until_waiting(&scene.queue("affine"), CALLS.into()).await;
        scene.worker("affine").start().await
    };
    let (answers, worker) = within("all answers", async { tokio::join!(calls, worker) }).await;
    worker.drain().await;

    for (number, answered) in (0..).zip(answers) {
        assert_eq!(answered.expect("an answer").outputs, [answer(number)], "{number}");
    }
    assert_eq!(client.strays(), Strays::default());
}

#[tokio::test]
async fn calls_outlive_their_connection_and_a_restart_of_the_broker() {
    let mut broker = Broker::durable();
    let scene = Scene::at(broker.uri());
    let worker = scene.worker("affine").start().await;
    let client = client(&scene, Options::default()).await;
    let calls = {
        let client = client.clone();
        let calls = stream::iter(0..4_000).map(move |number| {
            let client = client.clone();
            async move { (number, client.call(job(number)).await) }
        });
        tokio::spawn(calls.buffer_unordered(20).collect::<Vec<_>>())
    };

    tokio::time::sleep(Duration::from_millis(300)).await;
    broker.ctl(&["close_all_connections", "maintenance"]);
    let between = within("an answer on the second connection", client.call(job(1))).await;
    broker.stop();
    broker.start_again();
    let answers = within("all answers", calls).await.expect("no panic");
    worker.drain().await;

    assert!(between.is_ok(), "{between:?}");
    assert_eq!(answers.len(), 4_000);
    for (number, answered) in answers {
        assert_eq!(answered.expect("an answer").outputs, [answer(number)], "{number}");
    }
}

#[tokio::test]
async fn without_a_broker_calls_end_after_the_time_that_they_may_outlive_it() {
    let mut broker = Broker::start();
    let scene = Scene::at(broker.uri());
    scene.declare("affine").await;
    let options = Options {
        reconnect_for: Duration::from_millis(300),
        ..Options::default()
    };
    let client = client(&scene, options).await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call(job(1)).await }
    });
    scene.until_waiting(&scene.queue("affine"), 1).await;

    broker.stop();
    let lost = within("the call to end", waiting).await.expect("no panic");
    let at_once = within("the next call to end", client.call(job(2))).await;

    assert!(matches!(lost, Err(CallError::Lost(_))), "{lost:?}");
    assert!(matches!(at_once, Err(CallError::Lost(_))), "{at_once:?}");
}

#[tokio::test]
async fn answers_wait_in_a_mailbox_for_whoever_comes_back() {
    let scene = Scene::new();
    let name = format!("{}.mailbox", scene.prefix);
    scene.declare("affine").await;
    let submitting = client(&scene, Options::default()).await;
    let mut ids = BTreeSet::new();
    for number in 0..10 {
        ids.insert(submitting.submit(&name, job(number)).await.expect("a confirm"));
    }
    let unknown = submitting
        .submit(&name, Job::new("nobody-serves-this", Vec::new()))
        .await;
    submitting.close().await;
    let worker = scene.worker("affine").start().await;

    // Reads all and takes none of them out.
    let client = client(&scene, Options::default()).await;
    let mailbox = client.mailbox(&name).await.expect("a mailbox");
    let read = mailbox.letters().take(10).collect::<Vec<_>>();
    let read = within("ten letters", read).await;
    client.close().await;
    // Takes all of them out.
    let client = self::client(&scene, Options::default()).await;
    let mut mailbox = client.mailbox(&name).await.expect("a mailbox");
    let mut taken = BTreeSet::new();
    for _ in 0..10 {
        let letter = within("a letter", mailbox.next()).await.expect("a letter");
        assert_eq!(letter.answer.as_ref().expect("an answer").outputs.len(), 1);
        taken.insert(letter.id.clone());
        letter.done().await.expect("the connection lives");
    }
    client.close().await;
    worker.drain().await;

    assert!(matches!(unknown, Err(CallError::UnknownModel(_))), "{unknown:?}");
    let read: BTreeSet<String> = read.into_iter().map(|letter| letter.expect("a letter").id).collect();
    assert_eq!(read, ids);
    assert_eq!(taken, ids);
    scene.until_waiting(&name, 0).await;
    scene.delete_queue(&name).await;
}

/// `affine` keeps rows apart, `coupled` does not.
#[tokio::test]
async fn a_job_is_cut_by_row_only_where_rows_are_independent() {
    let scene = Scene::new();
    let worker = scene.worker("affine,coupled").start().await;
    let client = client(&scene, Options::default()).await;
    let values: Vec<f32> = (0..4_000_u16).map(f32::from).collect();
    let tripled: Vec<f32> = values.iter().map(|value| value * 3.0 - 1.0).collect();
    let rows_per_job = NonZeroUsize::new(7).expect("more than none");
    let pairs = Job::new("coupled", vec![Tensor::fp32("x", &[10, 2], &[0.0; 20])]);

    let scattering = {
        let (client, job) = (
            client.clone(),
            Job::new("affine", vec![Tensor::fp32("x", &[1_000, 4], &values)]),
        );
        tokio::spawn(async move { client.scatter(job, rows_per_job).await })
    };
    let scattered = within("all parts", scattering)
        .await
        .expect("no panic")
        .expect("an answer");
    let refused = client.scatter(pairs.clone(), rows_per_job).await;
    let whole = client
        .scatter(pairs, NonZeroUsize::new(10).expect("more than none"))
        .await
        .expect("it is one call");
    client.close().await;
    worker.drain().await;

    assert_eq!(scattered.outputs, [Tensor::fp32("y", &[1_000, 4], &tripled)]);
    assert_eq!(scattered.rows, Some(RowRelation::Independent));
    let said = ScatterError::Relation {
        model: "coupled".to_owned(),
        said: Some(RowRelation::Coupled),
    };
    assert!(
        matches!(&refused, Err(CallError::Scatter(error)) if *error == said),
        "{refused:?}"
    );
    assert_eq!(whole.rows, Some(RowRelation::Coupled));
}
