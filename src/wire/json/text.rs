//! A cursor over JSON text that a parser has accepted already: it finds elements and brackets, it does not validate.
//!
//! Numbers stay text until the model's datatype is known, which serde's own deserializers cannot do without
//! an allocation for each.

use std::borrow::Cow;

use crate::wire::elements::Scalar;
use crate::wire::error::Problem;

#[derive(Debug, Clone)]
pub(super) struct Text<'a> {
    rest: &'a str,
}

impl<'a> Text<'a> {
    pub(super) fn new(valid: &'a str) -> Self {
        Self { rest: valid }
    }

    /// What comes next, in the words of an error.
    pub(super) fn kind(&self) -> &'static str {
        match self.rest.trim_ascii_start().as_bytes().first() {
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b'"') => "a string",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            Some(b'-') => "a negative number",
            Some(_) => "a number",
            None => "nothing",
        }
    }

    pub(super) fn starts_with(&self, symbol: char) -> bool {
        self.rest.trim_ascii_start().starts_with(symbol)
    }

    /// Steps over `symbol`, if it comes next.
    pub(super) fn skip(&mut self, symbol: char) -> bool {
        match self.rest.trim_ascii_start().strip_prefix(symbol) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// The next element; an array or an object does not belong there.
    pub(super) fn scalar(&mut self) -> Result<Scalar<'a>, Problem> {
        self.rest = self.rest.trim_ascii_start();
        match self.rest.as_bytes().first() {
            Some(b'"') => return self.string().map(Scalar::Text),
            Some(b'[' | b'{') => return Err(Problem::nesting(self.kind(), "an element")),
            Some(_) | None => {}
        }
        Ok(match self.word() {
            "null" => Scalar::Null,
            "true" => Scalar::Bool(true),
            "false" => Scalar::Bool(false),
            number => Scalar::Decimal(number),
        })
    }

    /// The number or the literal that comes next: everything up to what may follow one.
    pub(super) fn word(&mut self) -> &'a str {
        self.rest = self.rest.trim_ascii_start();
        let ends = |byte: &u8| matches!(byte, b',' | b']' | b'}' | b' ' | b'\t' | b'\n' | b'\r');
        let length = self.rest.bytes().position(|byte| ends(&byte));
        let (word, rest) = self.rest.split_at(length.unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }

    /// The text between the quotes that come next, without its escapes.
    pub(super) fn string(&mut self) -> Result<Cow<'a, str>, Problem> {
        let (quoted, escaped) = quoted(self.rest);
        let (quoted, rest) = self.rest.split_at(quoted);
        self.rest = rest;
        if escaped {
            let text: String = serde_json::from_str(quoted).map_err(|_| Problem::NotJson {
                fault: "a string holds half of a surrogate pair".to_owned(),
            })?;
            return Ok(text.into());
        }
        let inside = quoted.strip_prefix('"').unwrap_or(quoted);
        Ok(inside.strip_suffix('"').unwrap_or(inside).into())
    }
}

/// Length of the quoted string that `text` begins with, quotes included, and whether it holds escapes.
pub(super) fn quoted(text: &str) -> (usize, bool) {
    let bytes = text.as_bytes();
    let mut escaped = false;
    let mut index = 1;
    while let Some(byte) = bytes.get(index) {
        match byte {
            b'"' => return (index + 1, escaped),
            b'\\' => {
                escaped = true;
                index += 2;
            }
            _ => index += 1,
        }
    }
    (text.len(), escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_end_at_their_own_quote_and_lose_their_escapes() {
        let mut text = Text::new(r#" "plain" , "a\"b\\" , "\u00e9\n" , "é" ]"#);
        let mut strings = Vec::new();

        loop {
            let Scalar::Text(string) = text.scalar().unwrap() else {
                panic!("not a string")
            };
            strings.push(string.into_owned());
            if !text.skip(',') {
                break;
            }
        }

        assert_eq!(strings, ["plain", "a\"b\\", "é\n", "é"]);
        assert!(text.skip(']'));
    }

    #[test]
    fn half_a_surrogate_pair_is_refused() {
        let refusal = Text::new(r#""\ud800""#).scalar().unwrap_err();

        assert!(matches!(refusal, Problem::NotJson { .. }));
    }

    #[test]
    fn numbers_stay_as_they_are_written() {
        let mut text = Text::new("-0.0e-5\n,1]");

        let first = text.scalar().unwrap();

        assert!(matches!(first, Scalar::Decimal("-0.0e-5")));
        assert!(text.skip(','));
        assert!(matches!(text.scalar().unwrap(), Scalar::Decimal("1")));
    }
}
