//! A cursor over MessagePack that borrows everything and believes no length it has not compared with the body.

use rmp::Marker;

use crate::wire::error::Problem;
use crate::wire::message::{A_BOOLEAN, A_COUNT, A_MAP, A_STRING};

#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

/// One step of the cursor: a whole value, or the head of an array or a map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Token<'a> {
    Nil,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float32(f32),
    Float64(f64),
    Str(&'a [u8]),
    Bin(&'a [u8]),
    /// At most as many elements as bytes are left.
    Array(usize),
    /// At most half as many pairs as bytes are left.
    Map(usize),
}

impl Token<'_> {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Nil => "nil",
            Self::Bool(_) => "a boolean",
            Self::Unsigned(_) | Self::Signed(_) => "an integer",
            Self::Float32(_) | Self::Float64(_) => "a float",
            Self::Str(_) => "a string",
            Self::Bin(_) => "bin",
            Self::Array(_) => "an array",
            Self::Map(_) => "a map",
        }
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// Bytes not read yet.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn token(&mut self) -> Result<Token<'a>, Problem> {
        let [marker] = self.array_of()?;
        Ok(match Marker::from_u8(marker) {
            Marker::Null => Token::Nil,
            Marker::False => Token::Bool(false),
            Marker::True => Token::Bool(true),
            Marker::FixPos(value) => Token::Unsigned(value.into()),
            Marker::U8 => Token::Unsigned(self.array_of().map(u8::from_be_bytes)?.into()),
            Marker::U16 => Token::Unsigned(self.array_of().map(u16::from_be_bytes)?.into()),
            Marker::U32 => Token::Unsigned(self.array_of().map(u32::from_be_bytes)?.into()),
            Marker::U64 => Token::Unsigned(self.array_of().map(u64::from_be_bytes)?),
            Marker::FixNeg(value) => Token::Signed(value.into()),
            Marker::I8 => Token::Signed(self.array_of().map(i8::from_be_bytes)?.into()),
            Marker::I16 => Token::Signed(self.array_of().map(i16::from_be_bytes)?.into()),
            Marker::I32 => Token::Signed(self.array_of().map(i32::from_be_bytes)?.into()),
            Marker::I64 => Token::Signed(self.array_of().map(i64::from_be_bytes)?),
            Marker::F32 => Token::Float32(self.array_of().map(f32::from_be_bytes)?),
            Marker::F64 => Token::Float64(self.array_of().map(f64::from_be_bytes)?),
            Marker::FixStr(length) => Token::Str(self.take(length.into())?),
            Marker::Str8 => Token::Str(self.take_counted::<1>()?),
            Marker::Str16 => Token::Str(self.take_counted::<2>()?),
            Marker::Str32 => Token::Str(self.take_counted::<4>()?),
            Marker::Bin8 => Token::Bin(self.take_counted::<1>()?),
            Marker::Bin16 => Token::Bin(self.take_counted::<2>()?),
            Marker::Bin32 => Token::Bin(self.take_counted::<4>()?),
            Marker::FixArray(length) => Token::Array(self.fitting(length.into(), 1)?),
            Marker::Array16 => self.length::<2>(1).map(Token::Array)?,
            Marker::Array32 => self.length::<4>(1).map(Token::Array)?,
            Marker::FixMap(length) => Token::Map(self.fitting(length.into(), 2)?),
            Marker::Map16 => self.length::<2>(2).map(Token::Map)?,
            Marker::Map32 => self.length::<4>(2).map(Token::Map)?,
            Marker::Reserved => return Err(not_msgpack("the byte 0xc1 is never used")),
            Marker::Ext8
            | Marker::Ext16
            | Marker::Ext32
            | Marker::FixExt1
            | Marker::FixExt2
            | Marker::FixExt4
            | Marker::FixExt8
            | Marker::FixExt16 => {
                return Err(not_msgpack("extension types are not part of the protocol"));
            }
        })
    }

    /// Enters a map and gives the number of its pairs.
    pub(super) fn map(&mut self) -> Result<usize, Problem> {
        match self.token()? {
            Token::Map(pairs) => Ok(pairs),
            other => Err(kind(&other, A_MAP)),
        }
    }

    /// Enters an array and gives the number of its elements.
    pub(super) fn array(&mut self, allowed: &'static str) -> Result<usize, Problem> {
        match self.token()? {
            Token::Array(length) => Ok(length),
            other => Err(kind(&other, allowed)),
        }
    }

    pub(super) fn string(&mut self) -> Result<&'a str, Problem> {
        match self.token()? {
            Token::Str(text) => std::str::from_utf8(text).map_err(|_| not_msgpack("a string is not UTF-8")),
            other => Err(kind(&other, A_STRING)),
        }
    }

    pub(super) fn boolean(&mut self) -> Result<bool, Problem> {
        match self.token()? {
            Token::Bool(value) => Ok(value),
            other => Err(kind(&other, A_BOOLEAN)),
        }
    }

    pub(super) fn count(&mut self) -> Result<usize, Problem> {
        let token = self.token()?;
        let count = match token {
            Token::Unsigned(value) => usize::try_from(value).ok(),
            // Some libraries write every integer with a signed marker.
            Token::Signed(value) => usize::try_from(value).ok(),
            _ => None,
        };
        count.ok_or_else(|| match token {
            Token::Signed(_) => Problem::Kind {
                came: "a negative integer",
                allowed: A_COUNT,
            },
            other => kind(&other, A_COUNT),
        })
    }

    /// Steps over a nil, if one comes next.
    pub(super) fn skip_nil(&mut self) -> bool {
        let nil = self.rest.first() == Some(&Marker::Null.to_u8());
        if nil {
            self.rest = &self.rest[1..];
        }
        nil
    }

    /// True if an array comes next.
    pub(super) fn is_array(&self) -> bool {
        matches!(self.clone().token(), Ok(Token::Array(_)))
    }

    /// Steps over one value, however it is nested.
    ///
    /// Iterative, with its stack of fixed size: a body cannot make it recurse or allocate.
    pub(super) fn skip(&mut self) -> Result<(), Problem> {
        let mut pending = [0_usize; DEPTH_MAX];
        let mut depth = 0;
        pending[0] = 1;
        loop {
            while pending[depth] == 0 {
                if depth == 0 {
                    return Ok(());
                }
                depth -= 1;
            }
            pending[depth] -= 1;
            let inner = match self.token()? {
                Token::Array(length) => length,
                Token::Map(pairs) => pairs * 2, // at most the bytes left, so no overflow
                _ => continue,
            };
            depth += 1;
            *pending.get_mut(depth).ok_or(Problem::Depth { max: DEPTH_MAX })? = inner;
        }
    }

    /// `length`, if that many things of at least `bytes_min` bytes each can still come.
    fn fitting(&self, length: usize, bytes_min: usize) -> Result<usize, Problem> {
        if length > self.rest.len() / bytes_min {
            return Err(cut_short());
        }
        Ok(length)
    }

    fn length<const N: usize>(&mut self, bytes_min: usize) -> Result<usize, Problem> {
        let length = self.big_endian::<N>()?;
        self.fitting(length, bytes_min)
    }

    fn take_counted<const N: usize>(&mut self) -> Result<&'a [u8], Problem> {
        let length = self.big_endian::<N>()?;
        self.take(length)
    }

    fn big_endian<const N: usize>(&mut self) -> Result<usize, Problem> {
        let bytes: [u8; N] = self.array_of()?;
        Ok(bytes.iter().fold(0, |value, &byte| value << 8 | usize::from(byte)))
    }

    fn array_of<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or_else(cut_short)?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Problem> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or_else(cut_short)?;
        self.rest = rest;
        Ok(bytes)
    }
}

pub(super) fn kind(token: &Token<'_>, allowed: &'static str) -> Problem {
    Problem::Kind {
        came: token.kind(),
        allowed,
    }
}

fn not_msgpack(fault: &'static str) -> Problem {
    Problem::NotMsgPack { fault }
}

#[cold]
fn cut_short() -> Problem {
    not_msgpack("it ends before what it announced")
}

/// Deepest nesting of a value that is skipped: tensor data have at most 8 levels, parameters hardly any.
const DEPTH_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_compared_with_what_is_left_before_it_is_believed() {
        for bomb in [
            &[0xdd, 0xff, 0xff, 0xff, 0xff][..], // array 32
            &[0xdc, 0x00, 0x01],
            &[0x91],
            &[0xdf, 0xff, 0xff, 0xff, 0xff, 0xc0], // map 32
            &[0xde, 0x00, 0x01, 0xc0],
            &[0x81, 0xc0],
            &[0xdb, 0xff, 0xff, 0xff, 0xff, b'x'], // str 32
            &[0xa2, b'x'],
            &[0xc6, 0xff, 0xff, 0xff, 0xff], // bin 32
            &[0xc4, 0x01],
            &[0xcf, 0, 0, 0, 0, 0, 0, 0],
            &[],
        ] {
            assert_eq!(Reader::new(bomb).token(), Err(cut_short()), "{bomb:x?}");
        }
    }

    #[test]
    fn extension_types_and_the_unused_byte_are_refused_even_where_a_value_is_skipped() {
        for marker in [0xc1, 0xc7, 0xc8, 0xc9, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8] {
            let body = [0x91, marker, 1, 1, 1, 1, 1, 1, 1, 1];

            let skipped = Reader::new(&body).skip();

            assert!(matches!(skipped, Err(Problem::NotMsgPack { .. })), "{marker:x}");
        }
    }

    #[test]
    fn a_value_nested_too_deep_is_refused_and_one_just_deep_enough_is_skipped() {
        let nested = |depth: usize| {
            let mut body = vec![0x91; depth];
            body.extend([0xc0, 0x07]);
            body
        };
        let (fine, bomb) = (nested(DEPTH_MAX - 1), nested(1_000_000));
        let mut reader = Reader::new(&fine);

        reader.skip().unwrap();

        assert_eq!(reader.token(), Ok(Token::Unsigned(7)));
        assert_eq!(Reader::new(&bomb).skip(), Err(Problem::Depth { max: DEPTH_MAX }));
        assert_eq!(
            Reader::new(&nested(DEPTH_MAX)).skip(),
            Err(Problem::Depth { max: DEPTH_MAX })
        );
    }

    #[test]
    fn skipping_a_value_leaves_the_next_one() {
        // {"a": [1, {"b": nil}], "c": bin}, then true
        let body = [
            0x82, 0xa1, b'a', 0x92, 0x01, 0x81, 0xa1, b'b', 0xc0, 0xa1, b'c', 0xc4, 0x01, 0x09, 0xc3,
        ];
        let mut reader = Reader::new(&body);

        reader.skip().unwrap();

        assert_eq!(reader.token(), Ok(Token::Bool(true)));
        assert_eq!(reader.left(), 0);
    }

    #[test]
    fn a_count_may_be_written_with_a_signed_marker_but_not_below_zero() {
        assert_eq!(Reader::new(&[0xd0, 0x05]).count(), Ok(5));
        assert_eq!(Reader::new(&[0xcd, 0x01, 0x00]).count(), Ok(256));
        for refused in [&[0xff][..], &[0xca, 0, 0, 0, 0], &[0xa1, b'5']] {
            assert!(matches!(Reader::new(refused).count(), Err(Problem::Kind { .. })));
        }
    }
}
