//! The rules of single values: what a key takes, and the type it becomes. Numbers here, texts in `rule/text.rs`.

mod text;

use std::fmt::Display;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::time::Duration;

use ::config::{Value, ValueKind};

pub(super) use text::{
    DeviceRule, LogFilter, ModelNames, OneOf, OptionalAddress, OptionalCollector, OptionalPath, RequiredPath,
    TopologyPrefix, Uri, WorkerName, uri_of,
};

/// How the value of a key is checked.
pub(super) trait Rule {
    type Checked;

    /// What the key takes, as the end of the sentence "allowed is …".
    fn allowed(&self) -> String;

    fn check(&self, given: &ValueKind) -> Result<Self::Checked, Refusal>;
}

/// Why a value was refused.
pub(super) enum Refusal {
    /// It is of the wrong type or out of range; showing it says enough.
    Value,
    /// For a reason of its own, worded to follow the key's name. Must not quote a secret.
    Because(String),
}

/// An integer that fits its type.
pub(super) struct WholeNumber<T>(pub RangeInclusive<T>);

impl<T: TryFrom<i64> + PartialOrd + Display + Copy> Rule for WholeNumber<T> {
    type Checked = T;

    fn allowed(&self) -> String {
        format!("a whole number from {} to {}", self.0.start(), self.0.end())
    }

    fn check(&self, given: &ValueKind) -> Result<T, Refusal> {
        let number = T::try_from(whole_number(given)?).map_err(|_| Refusal::Value)?;
        if self.0.contains(&number) {
            Ok(number)
        } else {
            Err(Refusal::Value)
        }
    }
}

/// How many of something of which there is at least one.
pub(super) struct Count(pub RangeInclusive<usize>);

impl Rule for Count {
    type Checked = NonZeroUsize;

    fn allowed(&self) -> String {
        WholeNumber(self.0.clone()).allowed()
    }

    fn check(&self, given: &ValueKind) -> Result<NonZeroUsize, Refusal> {
        let number = WholeNumber(self.0.clone()).check(given)?;
        NonZeroUsize::new(number).ok_or(Refusal::Value)
    }
}

/// How many of something, where 0 says that none is given.
pub(super) struct OptionalCount(pub usize);

impl Rule for OptionalCount {
    type Checked = Option<NonZeroUsize>;

    fn allowed(&self) -> String {
        WholeNumber(0..=self.0).allowed()
    }

    fn check(&self, given: &ValueKind) -> Result<Option<NonZeroUsize>, Refusal> {
        WholeNumber(0..=self.0).check(given).map(NonZeroUsize::new)
    }
}

/// Whether something is to be.
pub(super) struct YesOrNo;

impl Rule for YesOrNo {
    type Checked = bool;

    fn allowed(&self) -> String {
        "true or false".to_owned()
    }

    fn check(&self, given: &ValueKind) -> Result<bool, Refusal> {
        match given {
            ValueKind::Boolean(answer) => Ok(*answer),
            _ => Err(Refusal::Value),
        }
    }
}

/// A time in milliseconds.
pub(super) struct Milliseconds(pub RangeInclusive<u64>);

impl Rule for Milliseconds {
    type Checked = Duration;

    fn allowed(&self) -> String {
        format!(
            "a whole number of milliseconds from {} to {}",
            self.0.start(),
            self.0.end()
        )
    }

    fn check(&self, given: &ValueKind) -> Result<Duration, Refusal> {
        WholeNumber(self.0.clone()).check(given).map(Duration::from_millis)
    }
}

/// A time in milliseconds that AMQP counts in seconds.
pub(super) struct WholeSeconds(pub RangeInclusive<u64>);

impl Rule for WholeSeconds {
    type Checked = Duration;

    fn allowed(&self) -> String {
        format!("{} in steps of 1000", Milliseconds(self.0.clone()).allowed())
    }

    fn check(&self, given: &ValueKind) -> Result<Duration, Refusal> {
        let time = Milliseconds(self.0.clone()).check(given)?;
        if time.subsec_millis() == 0 {
            Ok(time)
        } else {
            Err(Refusal::Value)
        }
    }
}

/// A value as a fault shows it, such as `"abc"`, `5` or `a list`.
pub(super) fn described(given: &ValueKind) -> String {
    match given {
        ValueKind::String(text) => format!("{text:?}"),
        ValueKind::Nil => "missing".to_owned(),
        ValueKind::Table(_) => "a section".to_owned(),
        ValueKind::Array(entries) => {
            let entries: Vec<String> = entries.iter().map(|Value { kind, .. }| described(kind)).collect();
            format!("[{}]", entries.join(", "))
        }
        ValueKind::Boolean(_)
        | ValueKind::I64(_)
        | ValueKind::I128(_)
        | ValueKind::U64(_)
        | ValueKind::U128(_)
        | ValueKind::Float(_) => given.to_string(),
    }
}

fn whole_number(given: &ValueKind) -> Result<i64, Refusal> {
    match given {
        ValueKind::I64(number) => Ok(*number),
        _ => Err(Refusal::Value),
    }
}

fn text_of(given: &ValueKind) -> Result<&str, Refusal> {
    match given {
        ValueKind::String(text) => Ok(text),
        _ => Err(Refusal::Value),
    }
}
