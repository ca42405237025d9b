use bytes::Bytes;
use lapin::BasicProperties;

use super::super::reply::Timing;
use super::super::row_headers::RowHeaders;
use super::super::testing::{Jobs, plan};
use super::*;
use crate::error::JobError;
use crate::wire::Encoded;

struct Desk {
    jobs: Jobs,
    plan: Plan,
}

impl Desk {
    fn new(unroutable: Unroutable) -> Self {
        let jobs = Jobs::new();
        let plan = Plan {
            unroutable,
            ..plan(&jobs)
        };
        Self { jobs, plan }
    }

    fn answer(&self, reply_to: Option<&str>, outcome: Outcome) -> Answer {
        let properties = reply_to.map_or_else(BasicProperties::default, |queue| {
            BasicProperties::default().with_reply_to(queue.into())
        });
        Answer {
            envelope: self.jobs.envelope(properties, Bytes::from_static(b"body")),
            outcome,
        }
    }

    /// What is published for an answer, if its messages meet these fates, and the verdict. What is not taken is turned away.
    fn play(&mut self, answer: Answer, fates: &[Fate]) -> (Vec<String>, Vec<Verdict>) {
        let mut published = Vec::new();
        let mut fates = fates.iter();
        let mut next = self.plan.start(answer);
        loop {
            next = match next {
                Next::Publish(parcel, message) => {
                    published.push(shown(&message));
                    self.plan
                        .after(parcel, fates.next().copied().unwrap_or(Fate::Confirmed))
                }
                Next::HoldBack(parcel, _) => self.plan.turn_away(parcel, "it takes nothing".to_owned()),
                Next::RetryAfter(_, envelope) => {
                    envelope.settle(Verdict::Retry);
                    break;
                }
                Next::GiveBackAfter(_, envelope) => {
                    envelope.settle(Verdict::GiveBack);
                    break;
                }
                Next::Settled => break,
            };
        }
        (published, self.jobs.verdicts())
    }
}

/// A reply as its queue and type, a dead letter as its code.
fn shown(message: &Message) -> String {
    let header = message.properties.headers().as_ref().unwrap();
    match header.inner().get("inferq-error-code") {
        Some(code) => format!("dead {}", code.as_long_string().unwrap()),
        None => format!(
            "{} {}",
            message.routing_key,
            message.properties.kind().as_ref().unwrap()
        ),
    }
}

fn failed(error: JobError) -> Outcome {
    Outcome::Failure(error)
}

fn late() -> Outcome {
    failed(JobError::Deadline { late_ms: 5 })
}

#[test]
fn a_late_job_never_goes_to_the_dead_letters_even_if_nobody_waits_for_its_reply_any_more() {
    let mut desk = Desk::new(Unroutable::DeadLetter);

    let gone = desk.answer(Some("gone"), late());
    let played = desk.play(gone, &[Fate::Returned]);

    assert_eq!(played, (vec!["gone inferq.error".to_owned()], vec![Verdict::Ack]));
}

#[test]
fn a_dead_letter_says_why_its_reply_was_turned_away() {
    for fate in [Fate::Returned, Fate::Refused] {
        let desk = Desk::new(Unroutable::DeadLetter);
        let Next::Publish(parcel, _) = desk.plan.start(desk.answer(Some("gone"), result())) else {
            panic!("no reply");
        };

        let Next::HoldBack(parcel, held) = desk.plan.after(parcel, fate) else {
            panic!("not held back");
        };
        let Next::Publish(_, message) = desk.plan.turn_away(parcel, "the reply queue `gone` is full".to_owned()) else {
            panic!("no dead letter");
        };

        let headers = message.properties.headers().as_ref().unwrap();
        let error = headers.inner()["inferq-error"].as_long_string().unwrap().to_string();
        assert_eq!((held, &*error), (fate, "the reply queue `gone` is full"));
    }
}

#[test]
fn a_direct_reply_flies_alone_once_its_job_came_back_and_is_unroutable_if_the_broker_hangs_up_over_it() {
    let desk = Desk::new(Unroutable::DeadLetter);
    let publish = |queue: &str, redelivered: bool| {
        let mut answer = desk.answer(Some(queue), result());
        answer.envelope.redelivered = redelivered;
        match desk.plan.start(answer) {
            Next::Publish(parcel, _) => parcel,
            _ => panic!("no reply"),
        }
    };
    let direct = "amq.rabbitmq.reply-to.a.b";

    let alone =
        [(direct, true), (direct, false), ("replies", true)].map(|(queue, back)| publish(queue, back).flies_alone());
    let condemned = desk.plan.condemn(publish(direct, true), "INTERNAL_ERROR");

    assert_eq!(alone, [true, false, false]);
    let Next::Publish(parcel, letter) = condemned else {
        panic!("no dead letter");
    };
    assert_eq!(shown(&letter), "dead UNROUTABLE_REPLY");
    assert!(!parcel.flies_alone(), "a dead letter is like any other");
}

fn result() -> Outcome {
    Outcome::Result {
        body: Encoded {
            body: Bytes::from_static(b"result"),
            json_bytes: None,
            content_type: "application/json",
        },
        timing: Timing {
            wait: Duration::ZERO,
            infer: Duration::ZERO,
            batch_rows: 1,
        },
        rows: RowHeaders::independent(),
    }
}

#[test]
fn once_the_jobs_channel_is_gone_nothing_more_is_published_for_it() {
    for fate in [Fate::Refused, Fate::Confirmed] {
        let mut desk = Desk::new(Unroutable::DeadLetter);
        let answer = desk.answer(Some("replies"), failed(JobError::Failed("it failed".to_owned())));
        let Next::Publish(parcel, _) = desk.plan.start(answer) else {
            panic!("no reply");
        };

        desk.jobs.lose_channel();
        let next = desk.plan.after(parcel, fate);

        assert!(matches!(next, Next::Settled), "{fate:?}");
        assert_eq!(desk.plan.metrics.stale.get(), 1);
    }
}

const REPLY: &str = "replies inferq.error";

fn failures() -> [(Status, fn() -> JobError); 5] {
    [
        (Status::InvalidArgument, || JobError::NoRows { input: "x".to_owned() }),
        (Status::NotFound, || JobError::Version {
            model: "pair".to_owned(),
            version: "9".to_owned(),
            served: "`1`".to_owned(),
        }),
        (Status::DeadlineExceeded, || JobError::Deadline { late_ms: 5 }),
        (Status::Internal, || JobError::Failed("it failed".to_owned())),
        (Status::Unavailable, || JobError::Unavailable("no room".to_owned())),
    ]
}

#[test]
fn a_result_is_acked_once_its_reply_is_confirmed() {
    let mut desk = Desk::new(Unroutable::DeadLetter);
    let Next::Publish(parcel, _) = desk.plan.start(desk.answer(Some("replies"), result())) else {
        panic!("no reply");
    };

    let before = desk.jobs.verdicts();
    let next = desk.plan.after(parcel, Fate::Confirmed);

    assert_eq!(before, []);
    assert!(matches!(next, Next::Settled));
    assert_eq!(desk.jobs.verdicts(), [Verdict::Ack]);
    assert_eq!(desk.plan.metrics.replied.get(), 1);
}

#[test]
fn a_result_that_nobody_asked_for_is_acked_at_once() {
    for reply_to in [None, Some("")] {
        let mut desk = Desk::new(Unroutable::DeadLetter);

        let answer = desk.answer(reply_to, result());

        assert_eq!(desk.play(answer, &[]), (vec![], vec![Verdict::Ack]));
    }
}

#[test]
fn every_status_has_its_messages_and_its_verdict_where_the_sender_wants_a_reply() {
    for (status, error) in failures() {
        let mut desk = Desk::new(Unroutable::DeadLetter);
        let answer = desk.answer(Some("replies"), failed(error()));

        let (published, verdicts) = desk.play(answer, &[]);

        let (messages, verdict): (&[&str], _) = match status {
            Status::Internal => (&[REPLY, "dead INTERNAL"], Verdict::Ack),
            Status::Unavailable => (&[], Verdict::Retry),
            _ => (&[REPLY], Verdict::Ack),
        };
        assert_eq!((published, verdicts), (owned(messages), vec![verdict]), "{status}");
    }
}

#[test]
fn every_status_has_its_messages_and_its_verdict_where_nobody_waits_for_a_reply() {
    for (status, error) in failures() {
        let mut desk = Desk::new(Unroutable::DeadLetter);
        let answer = desk.answer(None, failed(error()));

        let (published, verdicts) = desk.play(answer, &[]);

        let (messages, verdict): (&[&str], _) = match status {
            Status::InvalidArgument => (&["dead INVALID_ARGUMENT"], Verdict::Ack),
            Status::NotFound => (&["dead NOT_FOUND"], Verdict::Ack),
            Status::Internal => (&["dead INTERNAL"], Verdict::Ack),
            Status::Unavailable => (&[], Verdict::Retry),
            _ => (&[], Verdict::Ack),
        };
        assert_eq!((published, verdicts), (owned(messages), vec![verdict]), "{status}");
    }
}

#[test]
fn an_unroutable_reply_is_kept_or_dropped_as_configured_but_never_hides_a_failure() {
    for (policy, outcome, messages) in [
        (
            Unroutable::DeadLetter,
            result(),
            vec!["gone inferq.result", "dead UNROUTABLE_REPLY"],
        ),
        (Unroutable::Discard, result(), vec!["gone inferq.result"]),
        (
            Unroutable::DeadLetter,
            failed(JobError::Failed("it failed".to_owned())),
            vec!["gone inferq.error", "dead INTERNAL"],
        ),
        (
            Unroutable::Discard,
            failed(JobError::Failed("it failed".to_owned())),
            vec!["gone inferq.error", "dead INTERNAL"],
        ),
    ] {
        let mut desk = Desk::new(policy);
        let answer = desk.answer(Some("gone"), outcome);

        let played = desk.play(answer, &[Fate::Returned]);

        assert_eq!(played, (owned(&messages), vec![Verdict::Ack]), "{policy}");
        assert_eq!(desk.jobs.metrics.model("pair").unroutable.get(), 1);
        assert_eq!(desk.plan.metrics.replied.get(), 0);
    }
}

#[test]
fn a_dead_letter_that_is_never_taken_leaves_the_job_in_its_queue() {
    for fate in [Fate::Refused, Fate::Returned] {
        let mut desk = Desk::new(Unroutable::DeadLetter);
        let answer = desk.answer(None, failed(JobError::Failed("it failed".to_owned())));

        let (published, verdicts) = desk.play(answer, &[fate]);

        assert_eq!(published, ["dead INTERNAL"]);
        assert_eq!(verdicts, [Verdict::Retry]);
        assert_eq!(desk.jobs.metrics.model("pair").dead_letters(), 0);
    }
}

#[test]
fn nothing_is_published_for_a_job_whose_channel_is_gone() {
    for outcome in [result(), failed(JobError::Failed("it failed".to_owned()))] {
        let mut desk = Desk::new(Unroutable::DeadLetter);
        let answer = desk.answer(Some("replies"), outcome);

        desk.jobs.lose_channel();

        assert!(matches!(desk.plan.start(answer), Next::Settled));
        assert_eq!(desk.plan.metrics.stale.get(), 1);
    }
}

fn owned(messages: &[&str]) -> Vec<String> {
    messages.iter().map(|message| (*message).to_owned()).collect()
}

#[test]
fn a_second_lack_of_memory_is_the_last_where_the_queue_counts_no_deliveries() {
    let mut desk = Desk::new(Unroutable::DeadLetter);
    desk.plan.uncounted = true;
    let lack = |redelivered| {
        let mut answer = desk.answer(None, Outcome::Failure(JobError::Unavailable("no memory".to_owned())));
        answer.envelope.redelivered = redelivered;
        answer
    };

    let (first, second) = (desk.plan.start(lack(false)), desk.plan.start(lack(true)));

    assert!(matches!(first, Next::RetryAfter(..)));
    assert!(matches!(second, Next::Publish(_, letter) if letter.exchange.as_str().ends_with(".dead")));
}

#[test]
fn a_job_that_found_no_memory_rests_the_longer_the_more_often_it_came_and_never_too_long() {
    let desk = Desk::new(Unroutable::DeadLetter);

    let waits = [0, 1, 2, 5, 9, u64::MAX].map(|deliveries| {
        let mut answer = desk.answer(Some("replies"), failed(JobError::Unavailable("no memory".to_owned())));
        answer.envelope.delivery_count = deliveries;
        match desk.plan.start(answer) {
            Next::RetryAfter(mut backoff, _) => backoff.next(1.0).as_millis(),
            _ => panic!("it does not rest"),
        }
    });

    assert_eq!(waits, [100, 200, 400, 3200, 5000, 5000]);
}

#[test]
fn a_job_for_a_version_of_others_rests_and_is_given_back() {
    let desk = Desk::new(Unroutable::DeadLetter);

    let waits = [0, 1, 9, u64::MAX].map(|deliveries| {
        let elsewhere = JobError::VersionElsewhere {
            model: "m".to_owned(),
            version: "3".to_owned(),
        };
        let mut answer = desk.answer(Some("replies"), failed(elsewhere));
        answer.envelope.delivery_count = deliveries;
        match desk.plan.start(answer) {
            Next::GiveBackAfter(mut backoff, _) => backoff.next(1.0).as_millis(),
            _ => panic!("it does not rest"),
        }
    });

    assert_eq!(waits, [1600, 1600, 51_200, 60_000]);
}
