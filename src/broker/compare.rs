//! What differs between a part of the topology as it should be and as it is, found by asking the broker.
//!
//! AMQP shows nobody the arguments of a queue. A declaration is compared with them, and its refusal names the first that
//! differs, with its value. Taking that value over and declaring again leads to the next, until the broker agrees: then
//! nothing was changed, and every difference is known.

use std::fmt;

use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::AMQPValue;
use lapin::{Connection, ErrorKind, ExchangeKind};

use super::BrokerError;
use super::topology::{Flags, Kind, Part, close, declare};
use super::values::text_of;

/// How a part is, beside how it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Fits,
    Missing,
    Differs(Vec<Difference>),
    /// It exists; the broker's reason why no more can be known.
    NotCompared(String),
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// An argument such as `x-delivery-limit`, or `type`, `durable`, `auto_delete`, `exclusive`.
    pub argument: String,
    /// The value it has; `None` if it is not set.
    pub is: Option<String>,
    pub should_be: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is = self.is.as_deref().unwrap_or("not set");
        match &self.should_be {
            Some(should_be) => write!(f, "{}: is {is}, should be {should_be}", self.argument),
            None => write!(f, "{}: is {is}, should not be set", self.argument),
        }
    }
}

/// Compares one part; nothing is made or changed. Only if somebody deletes it in the moment between two questions, it is
/// made anew, as it was.
///
/// # Errors
/// Trouble with the connection.
pub async fn compare(connection: &Connection, part: &Part) -> Result<State, BrokerError> {
    match part.find(connection).await {
        Ok(()) => {}
        Err(BrokerError::Unusable { .. }) => return Ok(State::Missing),
        // It belongs to a connection that has it for itself.
        Err(BrokerError::Topology(mismatch)) => return Ok(State::NotCompared(mismatch.said)),
        Err(error) => return Err(error),
    }
    let mut guess = Guess::new(part);
    // Far more than there are arguments.
    for _ in 0..QUESTIONS_MAX {
        let channel = connection.create_channel().await?;
        let Err(error) = declare(&channel, &guess.part, &guess.flags, false).await else {
            close(&channel).await;
            return Ok(guess.state());
        };
        let ErrorKind::ProtocolError(protocol) = error.kind() else {
            return Err(error.into());
        };
        let said = protocol.get_message().to_string();
        match protocol.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) if guess.learn(&said, part) => {}
            AMQPErrorKind::Soft(_) => return Ok(guess.cut_short(said)),
            AMQPErrorKind::Hard(_) => return Err(error.into()),
        }
    }
    Ok(guess.state())
}

/// What the part may be, by all that the broker has said so far. Pure.
struct Guess {
    part: Part,
    flags: Flags,
    differences: Vec<Difference>,
}

impl Guess {
    fn new(wanted: &Part) -> Self {
        Self {
            part: wanted.clone(),
            flags: Flags::default(),
            differences: Vec::new(),
        }
    }

    /// Takes over what a refusal says; false if it says nothing new that can be understood.
    fn learn(&mut self, said: &str, wanted: &Part) -> bool {
        let Some(refused) = Refused::parse(said) else {
            return false;
        };
        let argument = refused.argument;
        let is = match refused.is {
            // A queue without a type is a classic one; asked again as such, it shows what else differs.
            None if argument == QUEUE_TYPE => Some(Stated::classic()),
            is => is,
        };
        let should_be = wanted.arguments.inner().get(argument);
        let known = self.differences.iter().any(|known| known.argument == argument);
        if known && !refused.impossible {
            return false;
        }
        let difference = if self.learn_flag(argument, is.as_ref()) {
            Difference {
                argument: argument.to_owned(),
                is: is.map(|is| is.text),
                should_be: flag_wanted(argument),
            }
        } else {
            let Ok(is) = is.as_ref().map(|is| is.value(should_be)).transpose() else {
                return false;
            };
            match is.clone() {
                Some(value) => {
                    self.part.arguments.insert(argument.into(), value);
                }
                None => remove(&mut self.part, argument),
            }
            Difference {
                argument: argument.to_owned(),
                is: is.as_ref().map(text_of),
                should_be: should_be.map(text_of),
            }
        };
        if !known {
            self.differences.push(difference);
        }
        if argument == QUEUE_TYPE {
            self.other_type(wanted);
        }
        true
    }

    /// What another type of queue cannot have, the broker does not compare.
    fn other_type(&mut self, wanted: &Part) {
        for argument in OF_QUORUM_QUEUES {
            let Some(should_be) = wanted.arguments.inner().get(argument) else {
                continue;
            };
            remove(&mut self.part, argument);
            if self.differences.iter().all(|known| known.argument != argument) {
                self.differences.push(Difference {
                    argument: argument.to_owned(),
                    is: None,
                    should_be: Some(text_of(should_be)),
                });
            }
        }
    }

    /// Takes over a property that is no argument; false if it is one.
    fn learn_flag(&mut self, name: &str, is: Option<&Stated>) -> bool {
        let yes = is.is_some_and(|is| is.text == "true");
        match (name, is) {
            ("durable", _) => self.flags.durable = yes,
            ("auto_delete", _) => self.flags.auto_delete = yes,
            ("internal", _) => self.flags.internal = yes,
            ("type", Some(is)) if self.part.kind == Kind::Exchange => {
                self.flags.kind = ExchangeKind::Custom(is.text.clone());
            }
            _ => return false,
        }
        true
    }

    fn state(self) -> State {
        if self.differences.is_empty() {
            State::Fits
        } else {
            State::Differs(self.differences)
        }
    }

    /// The broker would not go on: what is known up to here, or why nothing is.
    fn cut_short(mut self, said: String) -> State {
        if self.differences.is_empty() {
            return State::NotCompared(said);
        }
        self.differences.push(Difference {
            argument: "the rest".to_owned(),
            is: Some(format!("not known ({said})")),
            should_be: Some("compared".to_owned()),
        });
        State::Differs(self.differences)
    }
}

fn flag_wanted(name: &str) -> Option<String> {
    let wanted = match name {
        "durable" => "true",
        "type" => "direct",
        _ => "false",
    };
    Some(wanted.to_owned())
}

fn remove(part: &mut Part, argument: &str) {
    let kept = part.arguments.inner().iter();
    let kept = kept.filter(|(name, _)| name.as_str() != argument);
    part.arguments = kept
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect::<std::collections::BTreeMap<_, _>>()
        .into();
}

/// A refusal of RabbitMQ, such as `PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received
/// none but current is the value '1000' of type 'signedint'`.
struct Refused<'a> {
    argument: &'a str,
    /// The value on the broker; `None` if there is none.
    is: Option<Stated>,
    /// The type of the queue does not know the argument at all.
    impossible: bool,
}

/// A value as a refusal states it.
struct Stated {
    text: String,
    /// The broker names the type only where it is not that of the value it was sent.
    kind: Option<String>,
}

impl<'a> Refused<'a> {
    fn parse(said: &'a str) -> Option<Self> {
        if let Some((_, rest)) = said.split_once("inequivalent arg '") {
            let (argument, rest) = rest.split_once('\'')?;
            let (_, current) = rest.rsplit_once("but current is ")?;
            let is = Stated::parse(current)?;
            return Some(Self {
                argument,
                is,
                impossible: false,
            });
        }
        let (_, rest) = said.split_once("invalid arg '")?;
        let (argument, rest) = rest.split_once('\'')?;
        rest.contains("of queue type").then_some(Self {
            argument,
            is: None,
            impossible: true,
        })
    }
}

impl Stated {
    fn classic() -> Self {
        Self {
            text: "classic".to_owned(),
            kind: Some("longstr".to_owned()),
        }
    }

    /// The outer `None` is for a text that is not understood, the inner one for `none`.
    #[expect(clippy::option_option, reason = "two different things can be missing")]
    fn parse(current: &str) -> Option<Option<Self>> {
        let current = current.trim_end();
        if current == "none" {
            return Some(None);
        }
        if let Some(rest) = current.strip_prefix("the value '") {
            let (text, kind) = rest.rsplit_once("' of type '")?;
            return Some(Some(Self {
                text: text.to_owned(),
                kind: Some(kind.trim_end_matches('\'').to_owned()),
            }));
        }
        let text = current.strip_prefix('\'')?.strip_suffix('\'')?;
        Some(Some(Self {
            text: text.to_owned(),
            kind: None,
        }))
    }

    /// The value to declare so that the broker finds its own.
    fn value(&self, wanted: Option<&AMQPValue>) -> Result<AMQPValue, ()> {
        let number = || self.text.parse().map(AMQPValue::LongLongInt).map_err(drop);
        match (self.kind.as_deref(), wanted) {
            (Some("longstr"), _) | (None, Some(AMQPValue::LongString(_))) => {
                Ok(AMQPValue::LongString(self.text.as_str().into()))
            }
            (Some("bool"), _) => self.text.parse().map(AMQPValue::Boolean).map_err(drop),
            (Some("byte" | "short" | "signedint" | "long" | "unsignedbyte" | "unsignedshort" | "unsignedint"), _)
            | (None, Some(AMQPValue::LongLongInt(_))) => number(),
            _ => Err(()),
        }
    }
}

const QUESTIONS_MAX: usize = 64;
const QUEUE_TYPE: &str = "x-queue-type";
const OF_QUORUM_QUEUES: [&str; 2] = ["x-delivery-limit", "x-dead-letter-strategy"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::topology::parts;
    use crate::config::Config;

    fn job_queue() -> Part {
        let config = Config::from_overrides(&[]).unwrap();
        parts(&config.topology, ["m"]).pop().unwrap()
    }

    /// As RabbitMQ 3.10, 4.0 and 4.3 say it.
    fn inequivalent(argument: &str, values: &str) -> String {
        format!("PRECONDITION_FAILED - inequivalent arg '{argument}' for queue 'inferq.m' in vhost '/': {values}")
    }

    #[test]
    fn each_refusal_adds_a_difference_and_brings_the_guess_nearer_to_what_is() {
        let wanted = job_queue();
        let mut guess = Guess::new(&wanted);

        for (argument, values) in [
            ("x-delivery-limit", "received '10' but current is '20'"),
            (
                "x-message-ttl",
                "received none but current is the value '1000' of type 'signedint'",
            ),
            (
                "x-overflow",
                "received the value 'reject-publish' of type 'longstr' but current is none",
            ),
            ("x-dead-letter-exchange", "received 'inferq.dead' but current is 'it's'"),
            ("durable", "received 'true' but current is 'false'"),
        ] {
            assert!(guess.learn(&inequivalent(argument, values), &wanted), "{argument}");
        }

        let arguments = guess.part.arguments.inner();
        assert_eq!(arguments.get("x-delivery-limit"), Some(&AMQPValue::LongLongInt(20)));
        assert_eq!(arguments.get("x-message-ttl"), Some(&AMQPValue::LongLongInt(1000)));
        assert_eq!(arguments.get("x-overflow"), None);
        assert!(!guess.flags.durable);
        let State::Differs(differences) = guess.state() else {
            panic!("it differs")
        };
        let texts: Vec<_> = differences.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "x-delivery-limit: is 20, should be 10",
                "x-message-ttl: is 1000, should not be set",
                "x-overflow: is not set, should be reject-publish",
                "x-dead-letter-exchange: is it's, should be inferq.dead",
                "durable: is false, should be true",
            ]
        );
    }

    #[test]
    fn an_argument_that_the_type_of_the_queue_does_not_know_is_not_set() {
        let wanted = job_queue();
        let mut guess = Guess::new(&wanted);

        let said = "PRECONDITION_FAILED - invalid arg 'x-delivery-limit' for queue 'inferq.m' in vhost '/' of queue type \
                    rabbit_classic_queue";

        assert!(guess.learn(said, &wanted));
        assert_eq!(
            guess.differences[0].to_string(),
            "x-delivery-limit: is not set, should be 10"
        );
        assert_eq!(guess.part.arguments.inner().get("x-delivery-limit"), None);
    }

    #[test]
    fn a_queue_without_a_type_is_classic_and_lacks_what_only_quorum_queues_have() {
        let wanted = job_queue();
        let mut guess = Guess::new(&wanted);
        let none = "received the value 'quorum' of type 'longstr' but current is none";

        assert!(guess.learn(&inequivalent("x-queue-type", none), &wanted));

        let texts: Vec<_> = guess.differences.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "x-queue-type: is classic, should be quorum",
                "x-delivery-limit: is not set, should be 10",
                "x-dead-letter-strategy: is not set, should be at-least-once",
            ]
        );
        let classic = AMQPValue::LongString("classic".into());
        assert_eq!(guess.part.arguments.inner().get("x-queue-type"), Some(&classic));
    }

    #[test]
    fn what_is_not_understood_or_was_said_before_ends_the_questions() {
        let wanted = job_queue();
        let mut guess = Guess::new(&wanted);
        let limit = inequivalent("x-delivery-limit", "received '10' but current is '20'");
        assert!(guess.learn(&limit, &wanted));

        let table = "received none but current is the value 'x' of type 'table'";
        for said in [
            limit.as_str(),
            "PRECONDITION_FAILED - something new",
            &inequivalent("x-new", table),
        ] {
            assert!(!guess.learn(said, &wanted), "{said}");
        }
        let State::Differs(differences) = guess.cut_short("something new".to_owned()) else {
            panic!("it differs")
        };

        assert_eq!(differences.len(), 2);
        assert!(differences[1].to_string().contains("something new"));
    }
}
