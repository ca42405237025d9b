//! Values of JSON as elements of an input, objects in their own order, and words that are no JSON.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::block::Key;
use super::inputs::{Inputs, ValueFault};
use crate::wire::elements::{Elements, Scalar};

/// A cell as a key.
pub fn key(raw: &RawValue) -> Key {
    match serde_json::from_str::<String>(raw.get()) {
        Ok(text) => Key::Text(text),
        Err(_) => Key::Literal(raw.get().to_owned()),
    }
}

/// Takes in the values of one cell for one input.
pub struct Values<'a> {
    pub inputs: &'a Inputs,
    pub part: usize,
    pub elements: &'a mut [Elements],
}

impl Values<'_> {
    /// Appends what `raw` holds, and returns its shape: none for a single value.
    pub fn push(mut self, raw: &RawValue) -> Result<Vec<usize>, Unfit> {
        self.nested(raw, 0)
    }

    fn nested(&mut self, raw: &RawValue, depth: usize) -> Result<Vec<usize>, Unfit> {
        let text = raw.get();
        let unfit = |fault| Unfit::Value(fault, text.to_owned());
        let scalar = match text.as_bytes().first() {
            Some(b'[') if depth < DEPTH_MAX => return self.list(text, depth),
            Some(b'n') => Scalar::Null,
            Some(b't') => Scalar::Bool(true),
            Some(b'f') => Scalar::Bool(false),
            Some(b'"') => match serde_json::from_str::<String>(text) {
                Ok(text) => Scalar::Text(Cow::Owned(text)),
                Err(_) => return Err(unfit(ValueFault::Value)),
            },
            Some(b'{' | b'[') => return Err(unfit(ValueFault::Value)),
            _ => Scalar::Decimal(text),
        };
        let pushed = self.inputs.push(self.part, &scalar, self.elements);
        pushed.map(|()| Vec::new()).map_err(unfit)
    }

    fn list(&mut self, text: &str, depth: usize) -> Result<Vec<usize>, Unfit> {
        let parts: Result<Vec<&RawValue>, _> = serde_json::from_str(text);
        let parts = parts.map_err(|_| Unfit::Value(ValueFault::Value, text.to_owned()))?;
        let mut inner = None;
        for part in &parts {
            let shape = self.nested(part, depth + 1)?;
            match &inner {
                None => inner = Some(shape),
                Some(first) if *first == shape => {}
                Some(first) => return Err(Unfit::Ragged(first.clone(), shape)),
            }
        }
        Ok([vec![parts.len()], inner.unwrap_or_default()].concat())
    }
}

/// What is wrong with a cell, whose place the caller knows.
pub enum Unfit {
    Value(ValueFault, String),
    Ragged(Vec<usize>, Vec<usize>),
}

/// The first of Python's words for numbers that are none in JSON, which stands outside of texts.
pub fn python_number(text: &[u8]) -> Option<&'static str> {
    let mut rest = text;
    let mut is_in_text = false;
    while let Some((&byte, behind)) = rest.split_first() {
        match byte {
            b'\\' if is_in_text => {
                rest = behind.get(1..).unwrap_or_default();
                continue;
            }
            b'"' => is_in_text = !is_in_text,
            _ if !is_in_text => {
                if let Some(word) = PYTHON_NUMBERS.iter().find(|word| rest.starts_with(word.as_bytes())) {
                    return Some(word);
                }
            }
            _ => {}
        }
        rest = behind;
    }
    None
}

/// An object in its own order, which a map would lose.
pub struct Columns<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Columns<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Columns<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of columns, as the first line is")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Columns<'de>, A::Error> {
                let mut pairs = Vec::with_capacity(map.size_hint().unwrap_or(0));
                while let Some(Name(name)) = map.next_key()? {
                    pairs.push((name, map.next_value()?));
                }
                Ok(Columns(pairs))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

/// A name, copied only if it holds escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

const PYTHON_NUMBERS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
/// With the axis of the rows, as many as a tensor may have.
const DEPTH_MAX: usize = crate::wire::tensor::AXES_MAX - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_python_are_found_outside_of_texts() {
        for (text, word) in [
            ("[1,NaN]", Some("NaN")),
            ("{\"NaN\":-Infinity}", Some("-Infinity")),
            ("[\"a\\\"NaN\",Infinity]", Some("Infinity")),
            ("[\"NaN\",1]", None),
            ("[1,", None),
        ] {
            assert_eq!(python_number(text.as_bytes()), word, "{text}");
        }
    }
}
