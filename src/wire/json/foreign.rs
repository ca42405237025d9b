//! What is no JSON, but what senders take for it: words of other languages, and texts in other encodings. Pure.
//!
//! Looked at only where a parser has refused a body already.

use super::text::quoted;
use crate::wire::error::{Problem, WireError, excerpt};

/// The encoding of a text that is not UTF-8, or what a body is instead of a text; `None` if its first bytes look like UTF-8.
///
/// # Source
/// RFC 4627, section 3: the first two characters of JSON are ASCII, so that zeros tell the encoding.
pub(super) fn encoding(body: &[u8]) -> Option<&'static str> {
    let first = body.first_chunk().copied().unwrap_or([b' '; 4]);
    match first {
        [0xff, 0xfe, 0, 0] | [1..=255, 0, 0, 0] | [0, 0, 0xfe, 0xff] | [0, 0, 0, 1..=255] => Some("in UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [1..=255, 0, 1..=255, _] | [0, 1..=255, 0, _] => Some("in UTF-16"),
        [0x1f, 0x8b, ..] => Some("compressed with gzip"),
        [0x28, 0xb5, 0x2f, 0xfd] => Some("compressed with Zstandard"),
        _ => None,
    }
}

/// The word at `line` and `column`, both from 1, if it is one that other languages have where JSON has none.
pub(super) fn word(text: &str, line: usize, column: usize) -> Option<WireError> {
    let line_start = match line.checked_sub(2) {
        None => 0,
        Some(line) => text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').nth(line)?.0 + 1,
    };
    let of_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-_.'".contains(byte);
    let bytes = text.as_bytes();
    // The parser may have stopped within the word.
    let stopped = (line_start + column.saturating_sub(1)).min(bytes.len());
    let start = stopped
        - bytes[..stopped]
            .iter()
            .rev()
            .take(WORD_BYTES_MAX)
            .take_while(|b| of_word(b))
            .count();
    let length = bytes[start..]
        .iter()
        .take(WORD_BYTES_MAX)
        .take_while(|b| of_word(b))
        .count();
    let word = text.get(start..start + length)?;
    let instead = instead(word)?;
    let refusal = Problem::Foreign {
        came: if instead == QUOTES { "'" } else { word }.to_owned(),
        instead,
    };
    Some(refusal.at(&place(text.get(..start)?)))
}

fn instead(word: &str) -> Option<&'static str> {
    if word.starts_with('\'') {
        return Some(QUOTES);
    }
    let unsigned = word.trim_start_matches(['+', '-']).to_ascii_lowercase();
    match unsigned.as_str() {
        "nan" => Some("write null for it, or send the numbers as MessagePack or raw bytes"),
        "inf" | "infinity" => Some("send the numbers as MessagePack or raw bytes"),
        "true" | "false" => Some("it writes true and false"),
        "none" | "nil" | "undefined" => Some("it writes null"),
        _ => None,
    }
}

/// The way to what follows `before`, such as `inputs[0].data[3]`, in a text that is JSON up to there.
fn place(before: &str) -> String {
    let mut levels: Vec<Level<'_>> = Vec::new();
    let mut deeper = 0_usize;
    let mut rest = before;
    while let Some(symbol) = rest.chars().next() {
        let mut length = symbol.len_utf8();
        match symbol {
            '"' => {
                length = quoted(rest).0;
                if let (Some(Level::Map { key, is_next: true }), 0) = (levels.last_mut(), deeper) {
                    *key = rest[..length].trim_matches('"');
                }
            }
            '[' | '{' if levels.len() == LEVELS_MAX => deeper += 1,
            '[' => levels.push(Level::Array(0)),
            '{' => levels.push(Level::Map { key: "", is_next: true }),
            ']' | '}' if deeper > 0 => deeper -= 1,
            ']' | '}' => drop(levels.pop()),
            ',' | ':' if deeper == 0 => match levels.last_mut() {
                Some(Level::Array(index)) => *index += 1,
                Some(Level::Map { is_next, .. }) => *is_next = symbol == ',',
                None => {}
            },
            _ => {}
        }
        rest = &rest[length..];
    }
    levels.iter().fold(String::new(), |way, level| match level {
        Level::Array(index) => format!("{way}[{index}]"),
        Level::Map { key, .. } if way.is_empty() => excerpt(key),
        Level::Map { key, .. } => format!("{way}.{}", excerpt(key)),
    })
}

/// An array or a map that has begun and not ended.
enum Level<'a> {
    Array(usize),
    /// The last key, and whether the next text is one.
    Map {
        key: &'a str,
        is_next: bool,
    },
}

const QUOTES: &str = "strings stand in double quotes";
/// The longest word of the table has nine.
const WORD_BYTES_MAX: usize = 16;
/// An input's data with as many axes as a tensor may have; whatever is deeper is not told apart.
const LEVELS_MAX: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_value_is_found_in_what_stands_before_it() {
        for (before, expected) in [
            ("", ""),
            ("{\"inputs\": ", "inputs"),
            (
                r#"{"id": "a,b:[{", "inputs": [{"name": "x"}, {"shape": [1, 2], "data": [1, "#,
                "inputs[1].data[1]",
            ),
            (r#"{"inputs":[{"data":[[1,2],[3,"#, "inputs[0].data[1][1]"),
            (r#"{"a":{"b":[],"c\"d":"#, "a.c\\\"d"),
            (r#"[[], {}, "#, "[2]"),
        ] {
            assert_eq!(place(before), expected, "{before}");
        }
        let deep = "[".repeat(1_000_000);
        assert_eq!(place(&deep), "[0]".repeat(LEVELS_MAX));
    }

    #[test]
    fn zeros_and_marks_tell_the_encoding() {
        let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let utf32 = |text: &str| {
            text.chars()
                .flat_map(|c| u32::from(c).to_be_bytes())
                .collect::<Vec<u8>>()
        };
        for (body, expected) in [
            (utf16("{\"a\":1}"), Some("in UTF-16")),
            (utf16("\u{feff}{}"), Some("in UTF-16")),
            (vec![0xfe, 0xff, 0, b'{', 0, b'}'], Some("in UTF-16")),
            (vec![0, b'{', 0, b'}'], Some("in UTF-16")),
            (utf32("{}"), Some("in UTF-32")),
            (utf32("\u{feff}{}"), Some("in UTF-32")),
            (vec![0xff, 0xfe, 0, 0, b'{', 0, 0, 0], Some("in UTF-32")),
            (vec![0x1f, 0x8b, 8, 0, 0], Some("compressed with gzip")),
            (vec![0x28, 0xb5, 0x2f, 0xfd, 4], Some("compressed with Zstandard")),
            (b"{\"a\":1}".to_vec(), None),
            (b"".to_vec(), None),
            (b"\0".to_vec(), None),
            (vec![0xef, 0xbb, 0xbf, b'{'], None),
        ] {
            assert_eq!(encoding(&body), expected, "{body:x?}");
        }
    }
}
