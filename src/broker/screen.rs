//! Screening: what comes from the broker is put right where the client would end the connection over it. Pure.
//!
//! The AMQP client takes every short string for UTF-8 and follows nested tables by recursion without a limit. Whoever may
//! publish can therefore send a message (`correlation_id` of one byte `0xff`, or headers 1,000 levels deep) that ends the
//! connection of each worker that gets it, one after the other, and gives back whatever else they hold. So frames are
//! looked through before the client sees them. No length changes: a byte that is not UTF-8 becomes `?`, and a table that
//! lies too deep is declared to be bytes.
//!
//! # Source
//! AMQP 0-9-1, sections 2.3 and 4.2; types as RabbitMQ sends them (its "AMQP 0-9-1 Errata", section 3).

use lapin::types::ChannelId;

/// What a frame begins with: its type, its channel, and the length of its payload. One byte follows the payload.
pub const HEAD_BYTES: usize = 7;
pub const END_BYTES: usize = 1;

/// Of the frame types those that belong to a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Method,
    ContentHeader,
    Body,
    Other,
}

/// A frame as far as its head tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub channel: ChannelId,
    /// With head and end.
    pub bytes: usize,
}

impl Frame {
    /// Reads the head of a frame; `None` before all of it is there.
    pub fn begin(bytes: &[u8]) -> Option<Self> {
        let head = bytes.first_chunk::<HEAD_BYTES>()?;
        let [kind, channel_0, channel_1, length @ ..] = *head;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        Some(Self {
            kind: match kind {
                1 => Kind::Method,
                2 => Kind::ContentHeader,
                3 => Kind::Body,
                _ => Kind::Other,
            },
            channel: ChannelId::from_be_bytes([channel_0, channel_1]),
            bytes: length.saturating_add(HEAD_BYTES + END_BYTES),
        })
    }

    /// Puts a whole frame right.
    pub fn screen(self, bytes: &mut [u8]) {
        let end = bytes.len().saturating_sub(END_BYTES);
        let Some(payload) = bytes.get_mut(HEAD_BYTES..end) else {
            return;
        };
        let mut cursor = Cursor { bytes: payload, at: 0 };
        // What ends early is broken in a way that no publisher can bring about: the broker reads it first.
        let _ = match self.kind {
            Kind::Method => cursor.method(),
            Kind::ContentHeader => cursor.content_header(),
            // Its bytes mean nothing to the client.
            Kind::Body | Kind::Other => None,
        };
    }
}

struct Cursor<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Cursor<'_> {
    fn content_header(&mut self) -> Option<()> {
        self.skip(CLASS_WEIGHT_AND_BODY_SIZE)?;
        let flags = self.u16()?;
        for (bit, property) in PROPERTIES.into_iter().enumerate() {
            if flags & (1 << (15 - bit)) == 0 {
                continue;
            }
            match property {
                Property::Text => self.text()?,
                Property::Table => self.table()?,
                Property::Bytes(bytes) => self.skip(bytes)?,
            }
        }
        Some(())
    }

    /// The methods that carry what a sender wrote (routing keys), or may quote it.
    fn method(&mut self) -> Option<()> {
        let (class, method) = (self.u16()?, self.u16()?);
        match (class, method) {
            // basic.deliver: consumer tag, delivery tag, redelivered, exchange, routing key.
            (60, 60) => {
                self.text()?;
                self.skip(9)?;
                self.text()?;
                self.text()
            }
            // basic.get-ok: delivery tag, redelivered, exchange, routing key.
            (60, 71) => {
                self.skip(9)?;
                self.text()?;
                self.text()
            }
            // basic.return: code, text, exchange, routing key.
            (60, 50) => {
                self.skip(2)?;
                self.text()?;
                self.text()?;
                self.text()
            }
            // connection.close and channel.close: code, text.
            (10, 50) | (20, 40) => {
                self.skip(2)?;
                self.text()
            }
            _ => None,
        }
    }

    /// Short strings are at most 255 bytes, with their length in front.
    fn text(&mut self) -> Option<()> {
        let length = usize::from(self.u8()?);
        let start = self.at;
        self.skip(length)?;
        mend(&mut self.bytes[start..start + length]);
        Some(())
    }

    /// A table, and what is nested in it, without recursion.
    fn table(&mut self) -> Option<()> {
        let mut open = vec![self.level(true)?];
        while let Some(level) = open.last() {
            if self.at >= level.end {
                open.pop();
                continue;
            }
            if level.has_names {
                self.text()?;
            }
            let kind_at = self.at;
            match self.u8()? {
                b'V' => {}
                b't' | b'b' | b'B' => self.skip(1)?,
                b's' | b'U' | b'u' => self.skip(2)?,
                b'I' | b'i' | b'f' => self.skip(4)?,
                b'D' => self.skip(5)?,
                b'l' | b'L' | b'd' | b'T' => self.skip(8)?,
                BYTES | b'S' => {
                    let length = self.u32()?;
                    self.skip(length)?;
                }
                b'F' | b'A' if open.len() == LEVELS_MAX => {
                    self.bytes[kind_at] = BYTES;
                    let length = self.u32()?;
                    self.skip(length)?;
                }
                kind @ (b'F' | b'A') => open.push(self.level(kind == b'F')?),
                _ => return None,
            }
        }
        Some(())
    }

    fn level(&mut self, has_names: bool) -> Option<Level> {
        let length = self.u32()?;
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len())?;
        Some(Level { end, has_names })
    }

    fn u8(&mut self) -> Option<u8> {
        let [byte] = self.take()?;
        Some(byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<usize> {
        usize::try_from(u32::from_be_bytes(self.take()?)).ok()
    }

    fn take<const BYTES: usize>(&mut self) -> Option<[u8; BYTES]> {
        let taken = *self.bytes.get(self.at..)?.first_chunk()?;
        self.at += BYTES;
        Some(taken)
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.at = self.at.checked_add(bytes).filter(|at| *at <= self.bytes.len())?;
        Some(())
    }
}

/// A table or an array that is being read.
struct Level {
    end: usize,
    /// Only the entries of a table have them.
    has_names: bool,
}

/// Makes UTF-8 of a text, byte for byte.
fn mend(text: &mut [u8]) {
    let mut good = 0;
    while let Err(error) = std::str::from_utf8(&text[good..]) {
        let bad = good + error.valid_up_to();
        let end = error.error_len().map_or(text.len(), |length| bad + length);
        text[bad..end].fill(b'?');
        good = end;
    }
}

#[derive(Clone, Copy)]
enum Property {
    Text,
    Table,
    Bytes(usize),
}

/// The properties of `basic`, in the order of their flags: content type and encoding, headers, delivery mode, priority,
/// correlation id, reply-to, expiration, message id, timestamp, type, user id, app id, and one that is reserved.
const PROPERTIES: [Property; 14] = {
    use Property::{Bytes, Table, Text};
    [
        Text,
        Text,
        Table,
        Bytes(1),
        Bytes(1),
        Text,
        Text,
        Text,
        Text,
        Bytes(8),
        Text,
        Text,
        Text,
        Text,
    ]
};
const CLASS_WEIGHT_AND_BODY_SIZE: usize = 2 + 2 + 8;
/// The type of a value of bytes that mean nothing to anybody here.
const BYTES: u8 = b'x';
/// No header that anybody reads lies as deep; `x-death`, the deepest of RabbitMQ's own, has three levels.
const LEVELS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind, 0, 1];
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        bytes.push(0xce);
        bytes
    }

    fn text(bytes: &[u8]) -> Vec<u8> {
        [&[bytes.len() as u8], bytes].concat()
    }

    fn long(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
    }

    /// A content header whose only properties are headers and correlation id.
    fn header(table: &[u8], correlation_id: &[u8]) -> Vec<u8> {
        let flags = (1_u16 << 13 | 1 << 10).to_be_bytes();
        let payload = [&[0, 60, 0, 0], &[0; 8][..], &flags, &long(table), &text(correlation_id)].concat();
        frame(2, &payload)
    }

    fn screened(mut bytes: Vec<u8>) -> Vec<u8> {
        let frame = Frame::begin(&bytes).unwrap();
        assert_eq!(frame.bytes, bytes.len());
        frame.screen(&mut bytes);
        bytes
    }

    #[test]
    fn texts_that_are_not_utf_8_are_mended_wherever_they_stand() {
        let entry = |name: &[u8]| [text(name), vec![b'S'], long(b"\xff stays, it is bytes")].concat();
        let inner = |name: &[u8]| [text(b"inner"), vec![b'F'], long(&entry(name))].concat();
        let array = |name: &[u8]| {
            [
                text(b"array"),
                vec![b'A'],
                long(&[vec![b'F'], long(&entry(name))].concat()),
            ]
            .concat()
        };
        let table = |name: &[u8]| {
            [
                entry(name),
                inner(name),
                array(name),
                [text(b"int"), vec![b'I', 0, 0, 0, 7]].concat(),
            ]
            .concat()
        };

        let mended = screened(header(&table(b"a\xc3\xa4\xff"), b"\xc3"));

        assert_eq!(mended, header(&table("aä?".as_bytes()), b"?"));
    }

    #[test]
    fn good_frames_are_left_as_they_are() {
        let header = header(&[text("ä".as_bytes()), vec![b't', 1]].concat(), "gruß".as_bytes());
        let body = frame(3, b"\xff\xfe");

        assert_eq!(screened(header.clone()), header);
        assert_eq!(screened(body.clone()), body);
    }

    #[test]
    fn a_routing_key_and_what_the_broker_quotes_are_mended_as_well() {
        let deliver = |key: &[u8]| [vec![0, 60, 0, 60], text(b"tag"), vec![0; 9], text(b""), text(key)].concat();
        let got = |key: &[u8]| [vec![0, 60, 0, 71], vec![0; 9], text(b""), text(key), vec![0; 4]].concat();
        let returned = |key: &[u8]| [vec![0, 60, 0, 50, 1, 56], text(b"NO_ROUTE"), text(b""), text(key)].concat();
        let closed = |said: &[u8]| [vec![0, 20, 0, 40, 1, 148], text(said), vec![0; 4]].concat();

        for method in [deliver, got, returned, closed].map(|method: fn(&[u8]) -> Vec<u8>| method) {
            assert_eq!(screened(frame(1, &method(b"k\x80"))), frame(1, &method(b"k?")));
        }
    }

    #[test]
    fn tables_that_lie_too_deep_become_bytes() {
        let nested =
            |levels: usize| (0..levels).fold(Vec::new(), |inner, _| [text(b"n"), vec![b'F'], long(&inner)].concat());
        let deepest = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'F').count();

        let allowed = screened(header(&nested(LEVELS_MAX - 1), b""));
        let deep = screened(header(&nested(1000), b""));

        assert_eq!(allowed, header(&nested(LEVELS_MAX - 1), b""));
        let first = deep.iter().position(|byte| *byte == BYTES).unwrap();
        assert_eq!(deepest(&deep[..first]), LEVELS_MAX - 1);
        assert_eq!(deep.len(), header(&nested(1000), b"").len());
    }

    proptest! {
        #[test]
        fn any_bytes_are_screened_without_a_panic(
            kind in 0_u8..4, payload in proptest::collection::vec(any::<u8>(), 0..300), cut in 0_usize..400,
        ) {
            let mut bytes = frame(kind, &payload);
            bytes.truncate(cut);

            if let Some(frame) = Frame::begin(&bytes) {
                frame.screen(&mut bytes);
            }
        }

        #[test]
        fn any_text_becomes_utf_8_and_what_was_good_stays(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut mended = bytes.clone();

            mend(&mut mended);

            let text = std::str::from_utf8(&mended).unwrap();
            prop_assert_eq!(text.len(), bytes.len());
            if let Ok(good) = std::str::from_utf8(&bytes) {
                prop_assert_eq!(text, good);
            }
        }
    }
}
