use proptest::prelude::*;

use super::super::testing::{Jobs, LIMITS, headers, not_batched, text};
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
    i64::try_from(Moment::now().unix.as_millis()).unwrap() + ms
}

#[test]
fn the_time_a_delivery_waited_is_not_taken_off_its_deadline() {
    let jobs = Jobs::new();
    let deadline = AMQPValue::LongLongInt(ms_from_now(3_000));
    let mut delivery = jobs.delivery(json(headers([("inferq-deadline", deadline)])), ONE_ROW.into());
    delivery.arrived = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();

    let job = run(&jobs, delivery).map(|job| job.envelope.deadline).unwrap();

    let left = job.unwrap().duration_since(Instant::now());
    assert!(left > Duration::from_secs(2), "{left:?}");
}

#[test]
fn a_job_whose_reply_would_be_too_large_is_refused_before_it_runs() {
    let jobs = Jobs::of(Signature {
        inputs: vec![spec("x", Datatype::Uint8, &["batch"])],
        outputs: vec![
            spec("wide", Datatype::Fp32, &["batch", "1000"]),
            spec("narrow", Datatype::Fp32, &["batch", "1"]),
            spec("free", Datatype::Fp32, &["batch", "any", "1000"]),
        ],
    });
    let body = |rows: usize, outputs: &str| {
        let data = vec!["1"; rows].join(",");
        format!(
            r#"{{"inputs":[{{"name":"x","datatype":"UINT8","shape":[{rows}],"data":[{data}]}}],"outputs":[{outputs}]}}"#
        )
    };
    let wide = r#"{"name":"wide"}"#;

    // 16 rows of 4000 bytes fit into 64 KiB, 17 do not.
    let fits = |body: String| run(&jobs, jobs.delivery(json(BasicProperties::default()), body.into())).is_ok();
    assert!(fits(body(16, wide)));
    assert!(fits(body(17, r#"{"name":"narrow"},{"name":"free"}"#)));
    for outputs in [wide, ""] {
        let error = refusal(&jobs, &body(17, outputs));
        assert!(
            error.contains("the reply would have 68") && error.contains("send fewer rows"),
            "{error}"
        );
    }
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
        Envelope::new(delivery, "pair".into(), 1, jobs.metrics.model("pair").into()).delivery_count
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

fn with_deadline(value: AMQPValue) -> Result<Option<Instant>, (Status, String)> {
    decode_with(headers([("inferq-deadline", value)]), ONE_ROW).map(|job| job.envelope.deadline)
}

#[test]
fn a_job_without_a_deadline_has_none() {
    let job = decode_with(BasicProperties::default(), ONE_ROW).unwrap();

    assert_eq!(job.envelope.deadline, None);
    assert_eq!((job.id.as_deref(), job.rows), (Some("a"), 1));
    assert_eq!(job.envelope.encoding, Encoding::Json);
}

#[test]
fn a_deadline_ahead_is_kept_even_if_it_lies_past_the_end_of_the_clock() {
    for ms in [ms_from_now(60_000), i64::MAX] {
        let deadline = with_deadline(AMQPValue::LongLongInt(ms)).unwrap().unwrap();

        assert!(deadline > Instant::now() + Duration::from_secs(30), "{ms}");
    }
}

#[test]
fn a_deadline_that_has_passed_is_answered_before_the_body_is_looked_at() {
    let long_ago = [
        AMQPValue::LongLongInt(ms_from_now(-2_000)),
        AMQPValue::LongLongInt(0),
        AMQPValue::LongUInt(1),
        AMQPValue::LongInt(1),
        AMQPValue::ShortInt(1),
        AMQPValue::ShortUInt(1),
        AMQPValue::ShortShortInt(1),
        AMQPValue::ShortShortUInt(1),
        AMQPValue::Double(1.5),
        text("1700000000000"),
    ];
    for value in long_ago {
        let (status, error) = decode_with(headers([("inferq-deadline", value.clone())]), "no body")
            .map(|job| job.rows)
            .unwrap_err();

        assert_eq!(status, Status::DeadlineExceeded, "{value:?}: {error}");
    }
}

#[test]
fn how_late_a_job_came_is_said_in_milliseconds() {
    let (_, error) = with_deadline(AMQPValue::LongLongInt(ms_from_now(-2_000))).unwrap_err();

    let late: u64 = error
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .expect(&error);
    assert!((2_000..60_000).contains(&late), "{error}");
}

#[test]
fn a_deadline_of_another_type_is_refused_and_told_what_came() {
    for (value, came) in [
        (text("tomorrow"), "a string that is no number"),
        (AMQPValue::Boolean(true), "a boolean"),
        (AMQPValue::Double(f64::NAN), "NaN"),
        (AMQPValue::LongLongInt(-1), "a number below zero"),
        (AMQPValue::FieldTable(Default::default()), "a table or an array"),
        (AMQPValue::ByteArray(vec![1_u8].into()), "a byte array"),
        (AMQPValue::Void, "nothing"),
    ] {
        let (status, error) = with_deadline(value).unwrap_err();

        assert_eq!(status, Status::InvalidArgument);
        assert_eq!(
            error,
            format!("header `inferq-deadline`: {came} came, allowed is a number, milliseconds since 1970-01-01 UTC")
        );
    }
}

#[test]
fn a_wish_for_the_time_split_is_taken_in_any_form_or_refused() {
    let timing = |value| decode_with(headers([("inferq-timing", value)]), ONE_ROW);
    let wanted = |value| timing(value).unwrap().envelope.wants_timing();

    assert!(wanted(AMQPValue::Boolean(true)) && wanted(AMQPValue::LongInt(1)) && wanted(text("true")));
    assert!(!wanted(AMQPValue::Boolean(false)) && !wanted(AMQPValue::LongInt(0)) && !wanted(AMQPValue::Void));
    let (status, error) = timing(text("maybe")).map(|job| job.rows).unwrap_err();
    assert_eq!(status, Status::InvalidArgument);
    assert_eq!(
        error,
        "header `inferq-timing`: another string came, allowed is true or false, 1 or 0"
    );
}

#[test]
fn a_version_is_found_by_a_string_and_by_any_integer() {
    for value in [
        text("1"),
        AMQPValue::LongLongInt(1),
        AMQPValue::LongInt(1),
        AMQPValue::ShortShortUInt(1),
        AMQPValue::Double(1.0),
    ] {
        let job = decode_with(headers([("inferq-model-version", value)]), ONE_ROW).unwrap();

        assert_eq!(job.envelope.version, "1");
    }
}

#[test]
fn a_version_that_is_not_served_is_answered_with_those_that_are() {
    for (value, asked) in [
        (text("2"), "2"),
        (text("latest"), "latest"),
        (text(""), ""),
        (AMQPValue::LongLongInt(-1), "-1"),
        (AMQPValue::LongLongInt(i64::MAX), "9223372036854775807"),
    ] {
        let (status, error) = decode_with(headers([("inferq-model-version", value)]), ONE_ROW)
            .map(|job| job.rows)
            .unwrap_err();

        assert_eq!(status, Status::NotFound);
        assert_eq!(
            error,
            format!("model `pair` has no version `{asked}` here; served are `1`")
        );
    }
}

#[test]
fn a_version_of_another_type_is_refused() {
    let (status, error) = decode_with(headers([("inferq-model-version", AMQPValue::Double(1.5))]), ONE_ROW)
        .map(|job| job.rows)
        .unwrap_err();

    assert_eq!(status, Status::InvalidArgument);
    assert_eq!(
        error,
        "header `inferq-model-version`: a number with a fraction came, allowed is a string or an integer"
    );
}

#[test]
fn an_address_of_a_queue_is_answered_there_and_any_other_is_refused() {
    let to = |address: &str| {
        let jobs = Jobs::new();
        let properties = json(BasicProperties::default().with_reply_to(address.into()));
        let (served, _lane) = jobs.served();
        let decoded = decode(jobs.delivery(properties, ONE_ROW.into()), &served, &LIMITS);
        let (envelope, error) = match decoded {
            Ok((job, _)) => (job.envelope, None),
            Err(answer) => match answer.outcome {
                Outcome::Failure(error) => (answer.envelope, Some((error.status(), error.to_string()))),
                Outcome::Result { .. } => unreachable!("decoding computes nothing"),
            },
        };
        let queue = message::reply_to(&envelope).map(ToString::to_string);
        (queue, message::is_direct(&envelope), error)
    };
    let queue = |name: &str| Some(name.to_owned());

    assert_eq!(to("/queues/my%20replies"), (queue("my replies"), false, None));
    assert_eq!(to("/replies"), (queue("/replies"), false, None));
    let direct = "amq.rabbitmq.reply-to.token";
    assert_eq!(to(direct), (queue(direct), true, None));
    assert_eq!(to(&format!("/queues/{direct}")), (queue(direct), true, None));
    let (nobody, _, error) = to("/exchanges/E/K");
    let (status, error) = error.unwrap();
    assert_eq!((nobody, status), (None, Status::InvalidArgument));
    assert!(
        error.starts_with("reply_to: `/exchanges/E/K` is the address of an exchange"),
        "{error}"
    );
}

#[test]
fn a_compressed_body_is_refused_before_anybody_reads_it() {
    let compressed = |encoding: &str| {
        let properties = BasicProperties::default().with_content_encoding(encoding.into());
        decode_with(properties, ONE_ROW).map(|job| job.rows)
    };

    let (status, error) = compressed("gzip").unwrap_err();

    assert_eq!(status, Status::InvalidArgument);
    assert!(error.starts_with("content_encoding: `gzip` came"), "{error}");
    assert_eq!(compressed("utf-8"), Ok(1));
}

#[test]
fn a_content_type_that_is_missing_or_unknown_is_refused_and_answered_in_json() {
    for content_type in [None, Some("text/csv")] {
        let jobs = Jobs::new();
        let (served, _lane) = jobs.served();
        let properties = content_type.map_or_else(BasicProperties::default, |kind| {
            BasicProperties::default().with_content_type(kind.into())
        });

        let answer = decode(jobs.delivery(properties, ONE_ROW.into()), &served, &LIMITS)
            .map(|(job, _)| job.rows)
            .unwrap_err();

        assert_eq!(answer.envelope.encoding, Encoding::Json);
        let Outcome::Failure(error) = answer.outcome else {
            panic!("a result");
        };
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.to_string().starts_with("content_type: "), "{error}");
    }
}

#[test]
fn the_length_of_a_binary_bodys_json_may_be_a_number_or_its_digits() {
    let body = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}"#;
    let bytes = body.len();
    let mut whole = body.as_bytes().to_vec();
    whole.extend([0; 8]);
    for (value, is_good) in [
        (AMQPValue::LongLongInt(bytes as i64), true),
        (AMQPValue::LongInt(bytes as i32), true),
        (text(&bytes.to_string()), true),
        (text("many"), false),
        (AMQPValue::LongLongInt(-1), false),
        (AMQPValue::Boolean(true), false),
        (AMQPValue::LongLongInt(i64::MAX), false),
    ] {
        let jobs = Jobs::new();
        let properties = headers([(JSON_BYTES_HEADER, value)]).with_content_type("application/octet-stream".into());

        let decoded = run(&jobs, jobs.delivery(properties, whole.clone().into()));

        assert_eq!(decoded.is_ok(), is_good, "{:?}", decoded.map(|job| job.rows));
    }
}

#[test]
fn a_body_over_the_limit_is_refused_with_both_sizes() {
    let jobs = Jobs::new();
    let body = " ".repeat(LIMITS.body_bytes_max + 1);

    let error = refusal(&jobs, &body);

    assert_eq!(
        error,
        "body: 65537 bytes came, at most 65536 are allowed (limits.body_bytes_max)"
    );
}

#[test]
fn a_job_that_came_back_as_often_as_it_may_is_given_up_whatever_it_holds() {
    let count = |count| {
        let jobs = Jobs::new();
        let mut delivery = jobs.delivery(
            json(headers([("x-delivery-count", AMQPValue::LongLongInt(count))])),
            ONE_ROW.into(),
        );
        delivery.redelivered = true;
        run(&jobs, delivery).map(|job| (job.envelope.redelivered, job.envelope.delivery_count))
    };

    assert_eq!(count(9), Ok((true, 9)));
    let (status, error) = count(10).unwrap_err();
    assert_eq!(status, Status::Internal);
    assert_eq!(
        error,
        "the job was delivered 10 times without an answer; it is not tried again"
    );
}

/// `x FP32 [batch,2]` and `n INT64 [batch]` to `y FP32 [batch,2]` and `label BYTES [batch]`.
fn two_inputs() -> Jobs {
    Jobs::of(Signature {
        inputs: vec![
            spec("x", Datatype::Fp32, &["batch", "2"]),
            spec("n", Datatype::Int64, &["batch"]),
        ],
        outputs: vec![
            spec("y", Datatype::Fp32, &["batch", "2"]),
            spec("label", Datatype::Bytes, &["batch"]),
        ],
    })
}

const X: &str = r#"{"name":"x","shape":[1,2],"data":[1,2]}"#;
const N: &str = r#"{"name":"n","shape":[1],"data":[7]}"#;

fn inputs(inputs: &[&str]) -> String {
    format!(r#"{{"inputs":[{}]}}"#, inputs.join(","))
}

fn decode_body(jobs: &Jobs, body: &str) -> Job {
    let delivery = jobs.delivery(json(BasicProperties::default()), body.to_owned().into());
    run(jobs, delivery).unwrap()
}

#[test]
fn inputs_are_put_into_the_order_of_the_model() {
    let job = decode_body(&two_inputs(), &inputs(&[N, X]));

    let names: Vec<_> = job.inputs.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(names, ["x", "n"]);
}

#[test]
fn a_single_input_needs_no_name_and_takes_the_models() {
    let job = decode_body(&Jobs::new(), &inputs(&[r#"{"shape":[1,2],"data":[1,2]}"#]));

    assert_eq!(job.inputs[0].name, "x");
}

#[test]
fn inputs_that_are_not_the_models_are_refused_with_those_that_are() {
    let z = r#"{"name":"z","shape":[1],"data":[7]}"#;
    let unnamed = r#"{"shape":[1],"data":[7]}"#;
    let takes = "model `pair` takes `x FP32 [batch,2]`, `n INT64 [batch]`";
    for (sent, error) in [
        (vec![], format!("inputs: 0 came, {takes}")),
        (vec![X], format!("inputs: 1 came, {takes}")),
        (vec![X, N, z], format!("inputs: 3 came, {takes}")),
        (vec![X, z], format!("inputs[1]: there is no input `z`, {takes}")),
        (vec![X, unnamed], format!("inputs[1]: a name is needed, since {takes}")),
        (
            vec![X, X],
            "input `x`: two inputs have this name; a name is given once".to_owned(),
        ),
    ] {
        assert_eq!(refusal(&two_inputs(), &inputs(&sent)), error);
    }
}

#[test]
fn a_shape_that_does_not_fit_is_refused_with_the_one_that_does() {
    for (shape, data) in [
        ("[2]", "[1,2]"),
        ("[1,3]", "[1,2,3]"),
        ("[1,2,1]", "[1,2]"),
        ("[]", "[1]"),
    ] {
        let body = inputs(&[&format!(r#"{{"name":"x","shape":{shape},"data":{data}}}"#)]);

        let error = refusal(&Jobs::new(), &body);

        let came = shape.replace(',', ", ");
        assert_eq!(
            error,
            format!("input `x`: shape {came} came, the model takes [batch,2]")
        );
    }
}

#[test]
fn a_job_has_rows_and_the_same_of_every_input() {
    let none = r#"{"name":"x","shape":[0,2],"data":[]}"#;
    let three = r#"{"name":"n","shape":[3],"data":[7,8,9]}"#;

    assert_eq!(
        refusal(&Jobs::new(), &inputs(&[none])),
        "input `x`: no rows came, at least one is needed"
    );
    assert_eq!(
        refusal(&two_inputs(), &inputs(&[X, three])),
        "input `n`: 3 rows came where input `x` has 1; all inputs of a job have the same rows"
    );
}

#[test]
fn a_model_that_is_not_batched_takes_its_inputs_as_they_are() {
    let mut jobs = two_inputs();
    jobs.lane_mut().rows = not_batched();
    let five = r#"{"name":"n","shape":[5],"data":[1,2,3,4,5]}"#;

    assert_eq!(decode_body(&jobs, &inputs(&[X, five])).rows, 1);
    let empty = r#"{"name":"x","shape":[0,2],"data":[]}"#;
    assert_eq!(decode_body(&jobs, &inputs(&[empty, N])).rows, 1);
}

#[test]
fn a_lane_whose_rows_were_misjudged_takes_inputs_as_they_are() {
    let jobs = two_inputs();
    jobs.lane.rows.withdraw();
    let five = r#"{"name":"n","shape":[5],"data":[1,2,3,4,5]}"#;

    assert_eq!(decode_body(&jobs, &inputs(&[X, five])).rows, 1);
}

#[test]
fn texts_that_the_runtime_cannot_take_are_refused() {
    let jobs = Jobs::of(Signature {
        inputs: vec![spec("text", Datatype::Bytes, &["batch"])],
        outputs: vec![spec("y", Datatype::Fp32, &["batch"])],
    });
    let raw = |element: &[u8]| {
        let mut body = br#"{"inputs":[{"datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":"#.to_vec();
        body.extend(format!("{}}}}}]}}", 4 + element.len()).bytes());
        let json_bytes = AMQPValue::LongLongInt(body.len() as i64);
        crate::wire::tensor::push_bytes_element(&mut body, element);
        let properties =
            headers([(JSON_BYTES_HEADER, json_bytes)]).with_content_type("application/octet-stream".into());
        run(&jobs, jobs.delivery(properties, body.into())).map(|job| job.inputs[0].data.to_vec())
    };

    assert_eq!(raw("é".as_bytes()).unwrap(), b"\x02\0\0\0\xc3\xa9");
    for (element, what) in [(&b"\xff\xfe"[..], "not UTF-8"), (b"a\0b", "holding a NUL")] {
        let (status, error) = raw(element).unwrap_err();
        assert_eq!(status, Status::InvalidArgument);
        assert_eq!(
            error,
            format!("input `text`: an element that is {what} came; the model's strings are UTF-8 without NUL")
        );
    }
}

#[test]
fn outputs_come_all_or_as_asked_for_in_the_order_asked() {
    let asked = |outputs: &str| {
        let body = format!(r#"{{"inputs":[{X},{N}]{outputs}}}"#);
        let job = decode_body(&two_inputs(), &body);
        job.outputs.iter().map(|output| output.index).collect::<Vec<_>>()
    };

    assert_eq!(asked(""), [0, 1]);
    assert_eq!(asked(r#","outputs":[]"#), [0, 1]);
    assert_eq!(asked(r#","outputs":[{"name":"label"}]"#), [1]);
    assert_eq!(asked(r#","outputs":[{"name":"label"},{"name":"y"}]"#), [1, 0]);
}

#[test]
fn an_output_that_the_model_does_not_give_is_refused_with_those_it_does() {
    let body = format!(r#"{{"inputs":[{X},{N}],"outputs":[{{"name":"y"}},{{"name":"z"}}]}}"#);

    let error = refusal(&two_inputs(), &body);

    assert_eq!(
        error,
        "outputs[1]: there is no output `z`, model `pair` gives `y FP32 [batch,2]`, `label BYTES [batch]`"
    );
}

#[test]
fn names_are_cut_before_they_are_quoted() {
    let long = "z".repeat(10_000);

    let error = refusal(
        &Jobs::new(),
        &inputs(&[&format!(r#"{{"name":"{long}","shape":[1,2],"data":[1,2]}}"#)]),
    );

    assert!(error.len() < 300, "{} bytes", error.len());
}

#[test]
fn no_text_of_a_refusal_holds_a_value_of_the_payload() {
    for data in [
        "[31337,\"31337\"]",
        "[31337]",
        "\"31337\"",
        "[[31337,31337,31337]]",
        "[31337,1e999]",
    ] {
        let error = refusal(&Jobs::new(), &inputs(&[&format!(r#"{{"shape":[1,2],"data":{data}}}"#)]));

        assert!(!error.contains("31337"), "{error}");
    }
}

fn any_value() -> impl Strategy<Value = AMQPValue> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<u32>().prop_map(AMQPValue::LongUInt),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        any::<f64>().prop_map(AMQPValue::Double),
        proptest::collection::vec(any::<u8>(), 0..200).prop_map(|bytes| AMQPValue::LongString(bytes.into())),
        proptest::collection::vec(any::<u8>(), 0..200).prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
        Just(AMQPValue::Void),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        proptest::collection::vec(inner, 0..4).prop_map(|values| AMQPValue::FieldArray(values.into()))
    })
}

proptest! {
    #[test]
    fn whatever_the_headers_are_a_job_is_decoded_or_refused(
        deadline in any_value(), version in any_value(), timing in any_value(), count in any_value(), bytes in any_value(),
        redelivered in any::<bool>(), binary in any::<bool>(),
    ) {
        let jobs = Jobs::new();
        let properties = headers([
            ("inferq-deadline", deadline),
            ("inferq-model-version", version),
            ("inferq-timing", timing),
            ("x-delivery-count", count),
            (JSON_BYTES_HEADER, bytes),
        ]);
        let kind = if binary { "application/octet-stream" } else { "application/json" };
        let mut delivery = jobs.delivery(properties.with_content_type(kind.into()), ONE_ROW.into());
        delivery.redelivered = redelivered;

        if let Err((_, error)) = run(&jobs, delivery) {
            prop_assert!(error.len() < 500, "{}", error);
        }
    }
}

#[test]
fn inputs_with_a_value_of_their_own_may_be_left_out() {
    let mut jobs = Jobs::new();
    jobs.lane_mut().defaults = vec![spec("k", Datatype::Fp32, &["1"]), spec("b", Datatype::Fp32, &["1"])];
    let input = |name: &str, shape: &str, data: &str| {
        format!(r#"{{"name":"{name}","datatype":"FP32","shape":{shape},"data":{data}}}"#)
    };
    let body = |inputs: &[String]| format!(r#"{{"inputs":[{}]}}"#, inputs.join(","));
    let (x, b) = (input("x", "[3,2]", "[1,2,3,4,5,6]"), input("b", "[1]", "[7]"));

    let usual = decode_body(&jobs, &body(std::slice::from_ref(&x)));
    let other = decode_body(&jobs, &body(&[b.clone(), x]));

    assert!(usual.given.is_empty());
    assert_eq!((other.rows, other.inputs.len(), other.given.len()), (3, 1, 2));
    assert!(other.given[0].is_none() && other.given[1].as_ref().is_some_and(|tensor| tensor.name == "b"));
    assert!(usual.stacks_with(&usual) && !usual.stacks_with(&other) && !other.stacks_with(&other));
    let refused = refusal(&jobs, &body(&[input("k", "[1]", "[7]"), b]));
    assert!(
        refused.starts_with("inputs: 2 came, model `pair` takes `x FP32 [batch,2]`, and if given `k"),
        "{refused}"
    );
}

#[test]
fn a_version_that_only_this_worker_lacks_is_no_fault_of_the_job() {
    let jobs = Jobs::new();
    let (mut served, _lane) = jobs.served();
    served.left_out = vec![3];
    let pinned = |version: &str| {
        let properties = json(headers([("inferq-model-version", text(version))]));
        match decode(jobs.delivery(properties, ONE_ROW.into()), &served, &LIMITS) {
            Err(answer) => answer.outcome.status(),
            Ok(_) => Status::Ok,
        }
    };

    assert_eq!(
        ["1", "3", "4"].map(pinned),
        [Status::Ok, Status::Unavailable, Status::NotFound]
    );
}

#[test]
fn rows_are_settled_by_an_ack_on_a_channel_that_lives() {
    let mut jobs = Jobs::new();
    let (served, _lane) = jobs.served();
    let envelope =
        |jobs: &Jobs, body: &'static str| match decode(jobs.delivery(json_body(), body.into()), &served, &LIMITS) {
            Ok((job, _)) => job.envelope,
            Err(answer) => answer.envelope,
        };
    let settled = || {
        (
            served.metrics.settled.so_far().jobs,
            served.metrics.settled.so_far().rows,
        )
    };

    envelope(&jobs, TWO_ROWS).settle(Verdict::Ack);
    let read = settled();
    envelope(&jobs, "no job").settle(Verdict::Ack);
    let unread = settled();
    envelope(&jobs, TWO_ROWS).settle(Verdict::Retry);
    envelope(&jobs, TWO_ROWS).settle(Verdict::GiveBack);
    let late = envelope(&jobs, TWO_ROWS);
    jobs.lose_channel();
    late.settle(Verdict::Ack);

    assert_eq!((read, unread, settled()), ((1, 2), (2, 3), (2, 3)));
}

fn json_body() -> BasicProperties {
    json(BasicProperties::default())
}

const TWO_ROWS: &str = r#"{"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}]}"#;
