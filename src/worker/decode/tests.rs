use super::super::testing::{Jobs, LIMITS, headers, text};
use super::*;
use crate::model::test_engine::spec;
use crate::wire::status::Status;

/// One row for the model of [`Jobs::new`].
const ONE_ROW: &str = r#"{"id":"a","inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}"#;

fn json(properties: BasicProperties) -> BasicProperties {
    properties.with_content_type("application/json".into())
}

fn run(jobs: &Jobs, delivery: Delivery) -> Result<Job, (Status, String)> {
    let (served, _lane) = jobs.served();
    match decode(delivery, &served, &LIMITS) {
        Ok((job, _)) => Ok(job),
        Err(answer) => match answer.outcome {
            Outcome::Failure(error) => Err((error.status(), error.to_string())),
            Outcome::Result { .. } => unreachable!("decoding computes nothing"),
        },
    }
}

fn decode_with(properties: BasicProperties, body: &str) -> Result<Job, (Status, String)> {
    let jobs = Jobs::new();
    run(&jobs, jobs.delivery(json(properties), body.to_owned().into()))
}

/// Why a body is refused.
fn refusal(jobs: &Jobs, body: &str) -> String {
    let delivery = jobs.delivery(json(BasicProperties::default()), body.to_owned().into());
    let (status, error) = run(jobs, delivery).map(|job| job.rows).unwrap_err();
    assert_eq!(status, Status::InvalidArgument, "{error}");
    error
}

fn ms_from_now(ms: i64) -> i64 {
    i64::try_from(unix_now().as_millis()).unwrap() + ms
}

#[test]
fn the_time_a_delivery_waited_for_memory_is_not_taken_off_its_deadline() {
    let jobs = Jobs::new();
    let deadline = AMQPValue::LongLongInt(ms_from_now(3_000));
    let mut delivery = jobs.delivery(json(headers([("inferq-deadline", deadline)])), ONE_ROW.into());
    delivery.arrived = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();

    let job = run(&jobs, delivery).map(|job| job.envelope.deadline).unwrap();

    let left = job.unwrap().duration_since(Instant::now());
    assert!(left > Duration::from_secs(2), "{left:?}");
}

#[test]
fn a_timestamp_counts_seconds_so_it_is_refused_where_milliseconds_or_versions_are_due() {
    for header in ["inferq-deadline", "inferq-model-version"] {
        let seconds = u64::try_from(ms_from_now(60_000)).unwrap() / 1000;

        let (status, error) = decode_with(headers([(header, AMQPValue::Timestamp(seconds))]), ONE_ROW)
            .map(|job| job.rows)
            .unwrap_err();

        assert_eq!(status, Status::InvalidArgument);
        assert!(
            error.starts_with(&format!("header `{header}`: a timestamp came")),
            "{error}"
        );
    }
}

#[test]
fn rows_without_data_cannot_keep_an_engine_busy_for_ever() {
    let jobs = Jobs::of(Signature {
        inputs: vec![spec("x", Datatype::Fp32, &["batch", "length"])],
        outputs: vec![spec("y", Datatype::Fp32, &["batch", "1"])],
    });

    let error = refusal(
        &jobs,
        r#"{"inputs":[{"datatype":"FP32","shape":[1000000000,0],"data":[]}]}"#,
    );

    assert!(
        error.starts_with("input `x`: 1000000000 rows came in a body of"),
        "{error}"
    );
}

#[test]
fn a_quoted_name_cannot_forge_a_line_of_the_log() {
    let error = refusal(
        &Jobs::new(),
        r#"{"inputs":[{"name":"x\nerror: all is lost","datatype":"FP32","shape":[1,2],"data":[1,2]}]}"#,
    );

    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn the_version_of_the_reply_is_written_as_the_model_has_it_and_never_at_length() {
    let version = |asked: &str| {
        let jobs = Jobs::new();
        let (served, _lane) = jobs.served();
        let delivery = jobs.delivery(json(headers([("inferq-model-version", text(asked))])), ONE_ROW.into());
        match decode(delivery, &served, &LIMITS) {
            Ok((job, _)) => job.envelope.version,
            Err(answer) => answer.envelope.version,
        }
    };

    let padded = version("+01");
    let endless = version(&"9".repeat(100_000));

    assert_eq!(padded, "1");
    assert!(endless.len() < 100, "{} bytes", endless.len());
}

#[test]
fn only_a_redelivery_has_a_count_whatever_headers_the_sender_wrote() {
    let jobs = Jobs::new();
    let count = |redelivered: bool, header: Option<i64>| {
        let properties = header.map_or_else(BasicProperties::default, |count| {
            headers([("x-delivery-count", AMQPValue::LongLongInt(count))])
        });
        let mut delivery = jobs.delivery(json(properties), ONE_ROW.into());
        delivery.redelivered = redelivered;
        Envelope::new(delivery, "pair".into(), 1, jobs.metrics.model("pair")).delivery_count
    };

    assert_eq!(
        count(false, Some(10)),
        0,
        "left over from a life before the dead letters"
    );
    assert_eq!(count(false, None), 0);
    assert_eq!(count(true, Some(3)), 3);
    assert_eq!(count(true, None), 1, "a classic queue tells no more");
    assert_eq!(count(true, Some(-3)), 1);
}
