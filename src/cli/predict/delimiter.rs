//! What stands between the cells of a line, and what a wrong one looks like.

use std::str::FromStr;

/// The byte between two cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delimiter(u8);

impl Delimiter {
    pub const TAB: Self = Self(b'\t');

    pub fn byte(self) -> u8 {
        self.0
    }

    /// The word by which `--delimiter` takes it.
    pub fn word(self) -> String {
        match self.0 {
            b'\t' => "tab".to_owned(),
            byte => char::from(byte).to_string(),
        }
    }

    /// Another delimiter that a text looks separated by, since it holds that and none of this.
    pub fn rather(self, text: &str) -> Option<Self> {
        let holds = |delimiter: &Self| text.contains(char::from(delimiter.0));
        let others = USUAL.iter().filter(|other| **other != self);
        let mut found = others.filter(|other| holds(other));
        (!holds(&self)).then(|| found.next().copied()).flatten()
    }
}

impl Default for Delimiter {
    fn default() -> Self {
        Self(b',')
    }
}

impl FromStr for Delimiter {
    type Err = NotDelimiter;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.as_bytes()) {
            ("tab" | "\\t", _) => Ok(Self::TAB),
            (_, &[byte]) if is_delimiter(byte) => Ok(Self(byte)),
            _ => Err(NotDelimiter),
        }
    }
}

/// What may be a part of a number, a quote or the end of a line separates nothing.
fn is_delimiter(byte: u8) -> bool {
    let is_text = byte.is_ascii_alphanumeric() || matches!(byte, b'"' | b'\n' | b'\r' | b'+' | b'-' | b'.');
    byte.is_ascii() && !is_text && (!byte.is_ascii_control() || byte == b'\t' || byte == 0x1f)
}

/// True of a number written with a comma where a point is meant, such as `1,5` or `1.234,56`.
pub fn has_decimal_comma(cell: &str) -> bool {
    let cell = cell.trim();
    let Some((whole, part)) = cell.split_once(',') else {
        return false;
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let whole = whole.trim_start_matches(['+', '-']);
    let is_whole = whole
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b' ');
    let (part, exponent) = part.split_once(['e', 'E']).unwrap_or((part, "0"));
    !part.is_empty() && is_whole && digits(part) && digits(exponent.trim_start_matches(['+', '-']))
}

/// The text is no delimiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("allowed is one character that is no part of a number, such as , ; | or tab")]
pub struct NotDelimiter;

const USUAL: [Delimiter; 4] = [Delimiter(b';'), Delimiter::TAB, Delimiter(b'|'), Delimiter(b',')];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delimiter_is_one_character_or_a_word_for_it() {
        for (text, byte) in [
            (",", b','),
            (";", b';'),
            ("|", b'|'),
            ("tab", b'\t'),
            ("\\t", b'\t'),
            ("\t", b'\t'),
            (" ", b' '),
        ] {
            let delimiter: Delimiter = text.parse().unwrap();
            assert_eq!(delimiter.byte(), byte);
            assert_eq!(delimiter.word().parse(), Ok(delimiter));
        }
        for text in ["", ";;", "a", "1", "\"", "\n", ".", "-", "é"] {
            assert_eq!(text.parse::<Delimiter>(), Err(NotDelimiter), "{text}");
        }
    }

    #[test]
    fn a_wrong_delimiter_shows_in_the_text() {
        let comma = Delimiter::default();

        assert_eq!(comma.rather("a;b;c").map(Delimiter::byte), Some(b';'));
        assert_eq!(comma.rather("a\tb").map(Delimiter::byte), Some(b'\t'));
        assert_eq!(comma.rather("a,b;c"), None);
        assert_eq!(comma.rather("a"), None);
        assert_eq!(Delimiter(b';').rather("a,b").map(Delimiter::byte), Some(b','));
    }

    #[test]
    fn decimal_commas_are_told_from_other_texts() {
        for cell in ["1,5", "-0,25", "1.234,56", "1 234,5", "3,1e-5", ",5"] {
            assert!(has_decimal_comma(cell), "{cell}");
        }
        for cell in ["1.5", "a,b", "1,", "1,2,3", "x1,5", "1,5 m"] {
            assert!(!has_decimal_comma(cell), "{cell}");
        }
    }
}
