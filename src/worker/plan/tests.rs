use bytes::Bytes;
use lapin::BasicProperties;

use super::super::reply::Timing;
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

    /// What is published for an answer, if its messages meet these fates, and the verdict.
    fn play(&mut self, answer: Answer, fates: &[Fate]) -> (Vec<String>, Vec<Verdict>) {
        let mut published = Vec::new();
        let mut fates = fates.iter();
        let mut next = self.plan.start(answer);
        while let Next::Publish(parcel, message) | Next::PublishAfter(_, parcel, message) = next {
            published.push(shown(&message));
            let fate = fates.next().copied().unwrap_or(Fate::Confirmed);
            next = self.plan.after(parcel, message, fate, 0.5);
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
fn a_dead_letter_for_an_unroutable_reply_names_the_queue() {
    for (fate, text) in [
        (Fate::Returned, "there is no queue `gone` for the reply"),
        (
            Fate::Refused,
            "the broker refused the reply 6 times, queue `gone` may be full",
        ),
    ] {
        let desk = Desk::new(Unroutable::DeadLetter);
        let mut next = desk.plan.start(desk.answer(Some("gone"), result()));
        let message = loop {
            match next {
                Next::Publish(_, message) if message.exchange.as_str() == "inferq.dead" => break message,
                Next::Publish(parcel, message) | Next::PublishAfter(_, parcel, message) => {
                    next = desk.plan.after(parcel, message, fate, 0.5);
                }
                Next::Settled => panic!("no dead letter"),
            }
        };

        let headers = message.properties.headers().as_ref().unwrap();
        let error = headers.inner()["inferq-error"].as_long_string().unwrap().to_string();
        assert_eq!(error, text);
    }
}

fn result() -> Outcome {
    Outcome::Result {
        body: Encoded {
            body: b"result".to_vec(),
            json_bytes: None,
            content_type: "application/json",
        },
        timing: Timing {
            wait: Duration::ZERO,
            infer: Duration::ZERO,
            batch_rows: 1,
        },
    }
}

#[test]
fn once_the_jobs_channel_is_gone_nothing_more_is_published_for_it() {
    for fate in [Fate::Refused, Fate::Confirmed] {
        let mut desk = Desk::new(Unroutable::DeadLetter);
        let answer = desk.answer(Some("replies"), failed(JobError::Failed("it failed".to_owned())));
        let Next::Publish(parcel, reply) = desk.plan.start(answer) else {
            panic!("no reply");
        };

        desk.jobs.lose_channel();
        let next = desk.plan.after(parcel, reply, fate, 0.5);

        assert!(matches!(next, Next::Settled), "{fate:?}");
        assert_eq!(desk.plan.metrics.stale.get(), 1);
    }
}
