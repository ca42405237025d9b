//! Bodies of AMQP 1.0 producers, as RabbitMQ hands them to clients of AMQP 0-9-1.
//!
//! A data section comes as its bare bytes. Anything else comes as AMQP 1.0 encodes it, with the property `type` set to
//! [`TYPE`]: a value that is binary or a string is what client libraries make of a body that is one, so it is taken.
//!
//! # Source
//! OASIS AMQP 1.0, sections 1.3 "Type Encodings" and 3.2.6 to 3.2.8; RabbitMQ's `mc_amqpl.erl`.

use bytes::Bytes;

use super::error::{Problem, WireError};

/// The property `type` of a body that is encoded as AMQP 1.0.
pub const TYPE: &str = "amqp-1.0";

/// The bytes within the value; a body that is not encoded as AMQP 1.0, whatever its `type` says, is returned as it is.
///
/// # Errors
/// The value is neither binary nor a string, or the encoding is broken.
pub fn unwrapped(body: Bytes) -> Result<Bytes, WireError> {
    let Some(section) = body.strip_prefix(&[DESCRIBED]) else {
        return Ok(body);
    };
    let mut rest = Reader(section);
    match rest.descriptor() {
        Some(DATA | VALUE) => {}
        Some(SEQUENCE) => return Err(refused("a sequence")),
        Some(_) | None => return Err(refused("something that is no body")),
    }
    let constructor = rest.bytes(1).and_then(|byte| byte.first().copied());
    let length = match constructor {
        Some(BINARY_8 | STRING_8) => rest.number(1),
        Some(BINARY_32 | STRING_32) => rest.number(4),
        Some(other) => return Err(refused(kind(other))),
        None => None,
    };
    let content = length.and_then(|length| rest.bytes(usize::try_from(length).ok()?));
    let content = content.ok_or_else(|| refused("a value that is cut short"))?;
    // A footer may follow, which is for those who hash or sign.
    if !rest.0.is_empty() && (rest.bytes(1) != Some(&[DESCRIBED]) || rest.descriptor() != Some(FOOTER)) {
        return Err(refused("more than one value"));
    }
    Ok(body.slice_ref(content))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn number(&mut self, length: usize) -> Option<u64> {
        let bytes = self.bytes(length)?;
        Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// The code of a section, which may be written as a number or as a symbol.
    fn descriptor(&mut self) -> Option<u64> {
        match self.bytes(1)? {
            [SMALL_ULONG] => self.number(1),
            [ULONG] => self.number(8),
            [SYMBOL_8] => {
                let length = self.number(1)?;
                let name = self.bytes(usize::try_from(length).ok()?)?;
                SYMBOLS
                    .iter()
                    .find(|(symbol, _)| *symbol == name)
                    .map(|(_, code)| *code)
            }
            _ => None,
        }
    }
}

fn kind(constructor: u8) -> &'static str {
    match constructor {
        0x40 => "nothing",
        0x41 | 0x42 | 0x56 => "a boolean",
        0x45 | 0xc0 | 0xd0 => "a list",
        0xc1 | 0xd1 => "a map",
        0xe0 | 0xf0 => "an array",
        0xa3 | 0xb3 => "a symbol",
        _ => "a number",
    }
}

fn refused(came: &'static str) -> WireError {
    Problem::Amqp10 { came }.into()
}

const DESCRIBED: u8 = 0x00;
const SMALL_ULONG: u8 = 0x53;
const ULONG: u8 = 0x80;
const SYMBOL_8: u8 = 0xa3;
const BINARY_8: u8 = 0xa0;
const STRING_8: u8 = 0xa1;
const BINARY_32: u8 = 0xb0;
const STRING_32: u8 = 0xb1;
const DATA: u64 = 0x75;
const SEQUENCE: u64 = 0x76;
const VALUE: u64 = 0x77;
const FOOTER: u64 = 0x78;
const SYMBOLS: [(&[u8], u64); 4] = [
    (b"amqp:data:binary", DATA),
    (b"amqp:amqp-sequence:list", SEQUENCE),
    (b"amqp:amqp-value:*", VALUE),
    (b"amqp:footer:map", FOOTER),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(parts: &[&[u8]]) -> Result<Bytes, String> {
        unwrapped(parts.concat().into()).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn a_value_that_is_binary_or_a_string_is_the_body() {
        let long = vec![b'x'; 300];
        for parts in [
            &[b"\x00\x53\x77\xa0\x02{}" as &[u8]][..],
            &[b"\x00\x53\x77\xa1\x02{}"],
            &[b"\x00\x53\x77\xb0\0\0\0\x02{}"],
            &[b"\x00\x80\0\0\0\0\0\0\0\x77\xb1\0\0\0\x02{}"],
            &[b"\x00\xa3\x11amqp:amqp-value:*\xa1\x02{}"],
            &[b"\x00\x53\x75\xa0\x02{}"],
            &[b"\x00\x53\x77\xa1\x02{}", b"\x00\x53\x78\xc1\x01\x00"],
        ] {
            assert_eq!(encoded(parts).as_deref(), Ok(&b"{}"[..]), "{parts:x?}");
        }
        let whole = encoded(&[b"\x00\x53\x77\xb1\0\0\x01\x2c", &long]);
        assert_eq!(whole.as_deref(), Ok(&long[..]));
    }

    #[test]
    fn a_body_that_is_not_encoded_stays_as_it_is() {
        for body in [&b"{\"inputs\":[]}"[..], b"\x81\xa2id\xa1a", b""] {
            assert_eq!(encoded(&[body]).as_deref(), Ok(body));
        }
    }

    #[test]
    fn other_values_are_refused_by_their_kind() {
        for (body, came) in [
            (&b"\x00\x53\x77\xc1\x01\x00"[..], "a map came"),
            (b"\x00\x53\x77\x45", "a list came"),
            (b"\x00\x53\x77\x40", "nothing came"),
            (b"\x00\x53\x77\x41", "a boolean came"),
            (b"\x00\x53\x77\x54\x07", "a number came"),
            (b"\x00\x53\x76\xc0\x01\x00", "a sequence came"),
            (b"\x00\x53\x78\xc1\x01\x00", "something that is no body came"),
            (b"\x00\xa3\x02xx", "something that is no body came"),
            (b"\x00", "something that is no body came"),
            (b"\x00\x53\x77", "a value that is cut short came"),
            (b"\x00\x53\x77\xa0\x03{}", "a value that is cut short came"),
            (b"\x00\x53\x77\xb0\xff\xff\xff\xff{}", "a value that is cut short came"),
            (b"\x00\x53\x77\xa0\x02{}!", "more than one value came"),
        ] {
            let refusal = encoded(&[body]).unwrap_err();

            assert!(refusal.starts_with(&format!("body: {came}")), "{body:x?}: {refusal}");
            assert!(refusal.contains("a data section"), "{refusal}");
        }
    }
}
