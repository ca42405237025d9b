//! Protobuf's text format, as far as `config.pbtxt` needs it: fields with their values, without a schema, so that a field that
//! this program has never heard of is read like any other.

use std::str::Chars;

/// A field and its value; a repeated field comes as often as it has values.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    pub name: String,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    /// A number, or the name of an enum's value, as it is written.
    Word(String),
    Message(Vec<Field>),
}

impl Value {
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Word(_) | Self::Message(_) => None,
        }
    }

    pub fn integer(&self) -> Option<i64> {
        match self {
            Self::Word(word) => word.parse().ok(),
            Self::Text(_) | Self::Message(_) => None,
        }
    }

    /// The fields of a message; of any other value none.
    pub fn fields(&self) -> &[Field] {
        match self {
            Self::Message(fields) => fields,
            Self::Text(_) | Self::Word(_) => &[],
        }
    }
}

/// Reads a whole file.
///
/// # Errors
/// The first place that is not protobuf's text format.
/// # Source
/// "Text Format Language Specification" of Protocol Buffers.
pub fn parse(text: &str) -> Result<Vec<Field>, PbtxtError> {
    let mut parser = Parser {
        rest: text.chars(),
        line: 1,
        depth: 0,
    };
    parser.fields(None)
}

/// The text is not protobuf's text format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {expected} is expected")]
pub struct PbtxtError {
    pub line: usize,
    expected: &'static str,
}

struct Parser<'a> {
    rest: Chars<'a>,
    line: usize,
    depth: usize,
}

impl Parser<'_> {
    /// Reads fields up to `end`, or to the end of the text.
    fn fields(&mut self, end: Option<char>) -> Result<Vec<Field>, PbtxtError> {
        let mut fields = Vec::new();
        loop {
            self.pass_blank();
            match self.peek() {
                next if next == end => {
                    self.next();
                    return Ok(fields);
                }
                None => return Err(self.expected("a closing brace")),
                Some(',' | ';') => {
                    self.next();
                }
                Some(_) => self.field(&mut fields)?,
            }
        }
    }

    fn field(&mut self, fields: &mut Vec<Field>) -> Result<(), PbtxtError> {
        let name = self.name()?;
        self.pass_blank();
        let has_colon = self.take(':');
        self.pass_blank();
        match self.peek() {
            Some('[') => {
                self.next();
                self.list(&name, fields)
            }
            Some('{' | '<') => {
                let value = self.value()?;
                fields.push(Field { name, value });
                Ok(())
            }
            _ if has_colon => {
                let value = self.value()?;
                fields.push(Field { name, value });
                Ok(())
            }
            _ => Err(self.expected("a colon or an opening brace")),
        }
    }

    /// The name of a field, or of an extension in brackets.
    fn name(&mut self) -> Result<String, PbtxtError> {
        if self.take('[') {
            let name = self.taken(|next| next != ']' && next != '\n');
            let is_closed = self.take(']');
            return is_closed
                .then_some(name)
                .ok_or_else(|| self.expected("a closing bracket"));
        }
        let name = self.taken(|next| next.is_ascii_alphanumeric() || next == '_');
        if name.is_empty() {
            return Err(self.expected("the name of a field"));
        }
        Ok(name)
    }

    fn list(&mut self, name: &str, fields: &mut Vec<Field>) -> Result<(), PbtxtError> {
        loop {
            self.pass_blank();
            if self.take(']') {
                return Ok(());
            }
            if self.take(',') {
                continue;
            }
            let value = self.value()?;
            fields.push(Field {
                name: name.to_owned(),
                value,
            });
        }
    }

    fn value(&mut self) -> Result<Value, PbtxtError> {
        match self.peek() {
            Some('{') => self.message('}'),
            Some('<') => self.message('>'),
            Some('"' | '\'') => self.texts(),
            _ => {
                let word = self.taken(|next| next.is_ascii_alphanumeric() || "+-._".contains(next));
                if word.is_empty() {
                    return Err(self.expected("a value"));
                }
                Ok(Value::Word(word))
            }
        }
    }

    fn message(&mut self, end: char) -> Result<Value, PbtxtError> {
        self.next();
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.expected("less nesting"));
        }
        let fields = self.fields(Some(end))?;
        self.depth -= 1;
        Ok(Value::Message(fields))
    }

    /// Strings that follow each other are one.
    fn texts(&mut self) -> Result<Value, PbtxtError> {
        let mut bytes = Vec::new();
        while let Some(quote @ ('"' | '\'')) = self.peek() {
            self.next();
            self.text(quote, &mut bytes)?;
            self.pass_blank();
        }
        Ok(Value::Text(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn text(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), PbtxtError> {
        loop {
            match self.next() {
                None | Some('\n') => return Err(self.expected("a closing quote")),
                Some('\\') => self.escape(bytes)?,
                Some(next) if next == quote => return Ok(()),
                Some(next) => bytes.extend(next.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), PbtxtError> {
        let escaped = self.next().ok_or_else(|| self.expected("an escaped character"))?;
        match escaped {
            'n' => bytes.push(b'\n'),
            't' => bytes.push(b'\t'),
            'r' => bytes.push(b'\r'),
            'a' => bytes.push(7),
            'b' => bytes.push(8),
            'f' => bytes.push(12),
            'v' => bytes.push(11),
            'x' | 'X' => {
                let byte = self.digits(16, 2).ok_or_else(|| self.expected("a hexadecimal byte"))?;
                bytes.push(byte);
            }
            '0'..='7' => {
                let first = escaped.to_digit(8).unwrap_or_default();
                let mut value = first;
                for _ in 0..2 {
                    if let Some(digit) = self.peek().and_then(|next| next.to_digit(8)) {
                        self.next();
                        value = value * 8 + digit;
                    }
                }
                bytes.push(u8::try_from(value & 0xff).unwrap_or_default());
            }
            other => bytes.extend(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
        Ok(())
    }

    fn digits(&mut self, radix: u32, count: usize) -> Option<u8> {
        let mut value = None;
        for _ in 0..count {
            let Some(digit) = self.peek().and_then(|next| next.to_digit(radix)) else {
                break;
            };
            self.next();
            value = Some(value.unwrap_or(0) * radix + digit);
        }
        value.and_then(|value| u8::try_from(value).ok())
    }

    /// Passes over white space and comments.
    fn pass_blank(&mut self) {
        while let Some(next) = self.peek() {
            if next == '#' {
                self.taken(|next| next != '\n');
            } else if next.is_whitespace() || next == '\u{feff}' {
                self.next();
            } else {
                return;
            }
        }
    }

    fn taken(&mut self, belongs: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some(next) = self.peek().filter(|next| belongs(*next)) {
            taken.push(next);
            self.next();
        }
        taken
    }

    fn take(&mut self, wanted: char) -> bool {
        let is_there = self.peek() == Some(wanted);
        if is_there {
            self.next();
        }
        is_there
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    fn expected(&self, expected: &'static str) -> PbtxtError {
        PbtxtError {
            line: self.line,
            expected,
        }
    }
}

/// Triton's own schema nests some ten messages.
const DEPTH_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn words(fields: &[Field], name: &str) -> Vec<String> {
        let named = fields.iter().filter(|field| field.name == name);
        named
            .map(|field| match &field.value {
                Value::Text(text) => format!("{text:?}"),
                Value::Word(word) => word.clone(),
                Value::Message(fields) => format!("{} fields", fields.len()),
            })
            .collect()
    }

    #[test]
    fn fields_of_every_form_are_read() {
        let text = r##"
            # A comment.
            name: "dense" platform: 'onnxruntime_onnx'; max_batch_size: 8,
            input [ { name: "x", data_type: TYPE_FP32 dims: [ -1, 3 ] }, { name: "y" dims: 1 dims: 2 } ]
            output < name: "out" label_filename: "la" "bels" '.txt' >
            instance_group: [{ kind: KIND_CPU }]
            [some.extension]: 1.5e-3
            parameters { key: "a\x41\101\n\"" value: { string_value: "#no comment" } }
        "##;

        let fields = parse(text).unwrap();

        assert_eq!(words(&fields, "name"), ["\"dense\""]);
        assert_eq!(words(&fields, "platform"), ["\"onnxruntime_onnx\""]);
        assert_eq!(words(&fields, "input"), ["4 fields", "3 fields"]);
        assert_eq!(words(fields[3].value.fields(), "dims"), ["-1", "3"]);
        assert_eq!(words(fields[5].value.fields(), "label_filename"), ["\"labels.txt\""]);
        assert_eq!(words(&fields, "some.extension"), ["1.5e-3"]);
        assert_eq!(words(fields[8].value.fields(), "key"), ["\"aAA\\n\\\"\""]);
        assert_eq!(fields[2].value.integer(), Some(8));
    }

    #[test]
    fn what_is_no_text_format_is_named_by_its_line() {
        for (text, said) in [
            ("name \"x\"", "line 1: a colon or an opening brace is expected"),
            ("name: \"x\n", "line 2: a closing quote is expected"),
            ("a: 1\ninput {", "line 2: a closing brace is expected"),
            ("a: [1, {", "line 1: a closing brace is expected"),
            ("a: [1", "line 1: a value is expected"),
            ("a:", "line 1: a value is expected"),
            ("}", "line 1: the name of a field is expected"),
            ("<html>", "line 1: the name of a field is expected"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), said, "{text}");
        }
        assert!(parse(&"a{".repeat(10_000)).is_err());
    }

    #[test]
    fn any_text_is_read_or_refused() {
        let mut random = fastrand::Rng::with_seed(1);
        let letters: Vec<char> = "ab1:{}<>[]\"'\\,;# \n".chars().collect();
        for _ in 0..20_000 {
            let text: String = (0..random.usize(0..30))
                .map(|_| letters[random.usize(..letters.len())])
                .collect();
            let _ = parse(&text);
        }
    }
}
