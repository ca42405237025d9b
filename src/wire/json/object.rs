//! One level of a JSON object, its values left as text.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::wire::error::{Index, Problem, WireError};
use crate::wire::message::TENSORS_MAX;

/// Reads an object into the values of `keys`, in that order; a key that comes twice is refused, others are skipped.
///
/// Refusals of ours are values, not serde errors: those would lose the place and are text.
#[derive(Clone, Copy)]
pub(super) struct Object<const N: usize>(pub [&'static str; N]);

/// The values of an object; `None` where the key is absent or its value null.
pub(super) type Values<'a, const N: usize> = [Option<&'a RawValue>; N];

impl<'a, const N: usize> DeserializeSeed<'a> for Object<N> {
    type Value = Result<Values<'a, N>, WireError>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a, const N: usize> Visitor<'a> for Object<N> {
    type Value = Result<Values<'a, N>, WireError>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = [None; N];
        let mut twice = None;
        while let Some(Key(key)) = map.next_key()? {
            let Some(index) = self.0.iter().position(|&known| known == key) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = map.next_value::<&RawValue>()?;
            if values[index].replace(value).is_some() {
                twice = Some(self.0[index]);
            }
        }
        Ok(match twice {
            Some(key) => Err(Problem::Duplicate.at(key)),
            None => Ok(values.map(|value| value.filter(|value| value.get() != "null"))),
        })
    }
}

#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads an array of such objects, at most [`TENSORS_MAX`].
pub(super) struct Objects<const N: usize>(pub Object<N>);

impl<'a, const N: usize> DeserializeSeed<'a> for Objects<N> {
    type Value = Result<Vec<Values<'a, N>>, WireError>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'a, const N: usize> Visitor<'a> for Objects<N> {
    type Value = Result<Vec<Values<'a, N>>, WireError>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let mut objects = Ok(Vec::new());
        while let Some(object) = array.next_element_seed(self.0)? {
            // After a refusal the rest is only stepped over: serde wants an array read to its end.
            let Ok(list) = &mut objects else { continue };
            match object {
                Ok(_) if list.len() == TENSORS_MAX => {
                    objects = Err(Problem::TooMany { max: TENSORS_MAX }.into());
                }
                Ok(object) => list.push(object),
                Err(refusal) => objects = Err(refusal.within(Index(list.len()))),
            }
        }
        Ok(objects)
    }
}
