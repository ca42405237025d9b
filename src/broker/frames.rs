//! Frames that go past the AMQP client: how a message is written, and what the broker says about it. Pure.
//!
//! The client makes a promise for every message and another for its confirm, reads and writes frames byte by byte on its own
//! thread and wakes a task for each: two thirds of what a small job cost beside its arithmetic. So the messages of a
//! publishing channel are written here, a batch in one piece, and their confirms, and what is delivered on a consuming
//! channel, are read here, before the client sees them. All else stays with the client: the connection and its heartbeats,
//! channels, confirm mode, consumers, acks, and whatever does not look as it should; that it answers as it always does, by
//! ending the connection. [`super::post`] carries the frames.
//!
//! What holds:
//! - Only whole frames are taken, and only of channels that were given to [`Sieve::add`]. No other byte is lost, moved before
//!   another, or changed, but for what [`super::screen`] mends.
//! - A channel is ours until the broker closes it or agrees that it is closed: what it says later about messages that nobody
//!   waits for any more is taken as well. The client knows of none of them and would end the connection over a confirm.
//! - Of a close we know before the client, and may close the channel through it just then. The broker agrees to that as well,
//!   and the client, which has forgotten the channel meanwhile, would end the connection over it: that is taken too.
//! - Where frames are taken the client gets a heartbeat in their place. The broker sends none while it sends anything else, so
//!   that the client would take it for dead.
//! - Memory is taken only for what has come, except for a body of a size that is allowed: it counts as a whole from its header on
//!   ([`super::bodies`]).
//!
//! # Source
//! AMQP 0-9-1, sections 2.3.5 (frames), 4.2.1 (grammar); RabbitMQ's extension "Publisher Confirms".

use std::collections::HashMap;

use lapin::BasicProperties;
use lapin::protocol::basic::parse_properties;
use lapin::types::{AMQPValue, ChannelId, DeliveryTag, FieldTable, FrameSize, ShortString};

use super::bodies::{Account, Claim};
use super::screen::{END_BYTES, Frame, HEAD_BYTES, Kind};

/// A message to publish.
#[derive(Debug, Clone, Copy)]
pub struct Publication<'a> {
    pub exchange: &'a ShortString,
    pub routing_key: &'a ShortString,
    pub mandatory: bool,
    pub properties: &'a BasicProperties,
    pub body: &'a [u8],
}

/// What the broker says on a channel.
#[derive(Debug, PartialEq)]
#[cfg_attr(test, derive(Clone))]
pub enum Heard {
    News(News),
    /// It closes the channel, or on channel 0 the connection; the client hears it as well.
    Closed {
        code: u16,
        said: ShortString,
    },
}

/// A message, or what it says about one.
#[derive(Debug, PartialEq)]
#[cfg_attr(test, derive(Clone))]
pub enum News {
    Confirm(Confirm),
    Return(Box<Returned>),
    Delivery(Box<Delivered>),
}

/// `basic.ack` or `basic.nack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirm {
    /// The number of a message on its channel, from 1.
    pub tag: DeliveryTag,
    /// Whether it is about all messages up to that one.
    pub multiple: bool,
    pub refused: bool,
}

/// A message that came back: nobody wanted it.
#[derive(Debug, Default, PartialEq)]
#[cfg_attr(test, derive(Clone))]
pub struct Returned {
    pub exchange: ShortString,
    pub routing_key: ShortString,
    pub content: Content,
}

/// A message for a consumer.
#[derive(Debug, Default, PartialEq)]
#[cfg_attr(test, derive(Clone))]
pub struct Delivered {
    pub tag: DeliveryTag,
    pub redelivered: bool,
    pub content: Content,
}

#[derive(Debug, Default, PartialEq)]
#[cfg_attr(test, derive(Clone))]
pub struct Content {
    pub properties: BasicProperties,
    /// Empty if there was no room for it.
    pub body: Vec<u8>,
    pub room: Room,
}

/// What a body takes of the memory for bodies in hand.
#[derive(Debug, Default, PartialEq)]
pub enum Room {
    /// Nobody counts it.
    #[default]
    Uncounted,
    Claimed(Claim),
    /// There was none for so many bytes, and the body was not kept.
    Refused(u64),
}

/// Writes all frames of a message, none of them longer than `frame_max` but for the headers, which must share one.
pub fn publish(into: &mut Vec<u8>, channel: ChannelId, frame_max: usize, message: &Publication<'_>) {
    frame(into, METHOD, channel, |into| {
        into.extend([0, BASIC, 0, PUBLISH]);
        into.extend([0; 2]); // A ticket, which nobody uses.
        short(into, message.exchange);
        short(into, message.routing_key);
        into.push(u8::from(message.mandatory));
    });
    frame(into, CONTENT_HEADER, channel, |into| {
        into.extend([0, BASIC, 0, 0]);
        into.extend((message.body.len() as u64).to_be_bytes());
        properties(into, message.properties);
    });
    let room = frame_max.saturating_sub(HEAD_BYTES + END_BYTES).max(1);
    for piece in message.body.chunks(room) {
        frame(into, BODY, channel, |into| into.extend_from_slice(piece));
    }
}

fn frame(into: &mut Vec<u8>, kind: u8, channel: ChannelId, payload: impl FnOnce(&mut Vec<u8>)) {
    into.push(kind);
    into.extend(channel.to_be_bytes());
    sized(into, payload);
    into.push(END);
}

/// Writes how long it is before what `content` writes.
fn sized(into: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    let at = into.len();
    into.extend([0; 4]);
    content(into);
    let bytes = (into.len() - at - 4) as u32;
    into[at..at + 4].copy_from_slice(&bytes.to_be_bytes());
}

/// Short strings have at most 255 bytes, by their type.
fn short(into: &mut Vec<u8>, text: &ShortString) {
    into.push(text.as_str().len() as u8);
    into.extend_from_slice(text.as_str().as_bytes());
}

fn properties(into: &mut Vec<u8>, properties: &BasicProperties) {
    let at = into.len();
    into.extend([0; 2]);
    let mut list = PropertyList {
        into,
        flags: 0,
        flag: 1 << 15,
    };
    list.add(properties.content_type(), short);
    list.add(properties.content_encoding(), short);
    list.add(properties.headers(), table);
    list.add(properties.delivery_mode(), |into, byte| into.push(*byte));
    list.add(properties.priority(), |into, byte| into.push(*byte));
    list.add(properties.correlation_id(), short);
    list.add(properties.reply_to(), short);
    list.add(properties.expiration(), short);
    list.add(properties.message_id(), short);
    list.add(properties.timestamp(), |into, time| into.extend(time.to_be_bytes()));
    list.add(properties.kind(), short);
    list.add(properties.user_id(), short);
    list.add(properties.app_id(), short);
    list.add(properties.cluster_id(), short);
    let flags = list.flags.to_be_bytes();
    into[at..at + 2].copy_from_slice(&flags);
}

/// Properties in the order of their flags.
struct PropertyList<'a> {
    into: &'a mut Vec<u8>,
    flags: u16,
    /// That of the next one.
    flag: u16,
}

impl PropertyList<'_> {
    fn add<T>(&mut self, property: &Option<T>, write: impl FnOnce(&mut Vec<u8>, &T)) {
        if let Some(property) = property {
            self.flags |= self.flag;
            write(self.into, property);
        }
        self.flag >>= 1;
    }
}

fn table(into: &mut Vec<u8>, table: &FieldTable) {
    sized(into, |into| {
        for (name, entry) in table {
            short(into, name);
            value(into, entry);
        }
    });
}

fn value(into: &mut Vec<u8>, value: &AMQPValue) {
    into.push(value.get_type().get_id() as u8);
    match value {
        AMQPValue::Boolean(yes) => into.push(u8::from(*yes)),
        AMQPValue::ShortShortInt(number) => into.extend(number.to_be_bytes()),
        AMQPValue::ShortShortUInt(number) => into.push(*number),
        AMQPValue::ShortInt(number) => into.extend(number.to_be_bytes()),
        AMQPValue::ShortUInt(number) => into.extend(number.to_be_bytes()),
        AMQPValue::LongInt(number) => into.extend(number.to_be_bytes()),
        AMQPValue::LongUInt(number) => into.extend(number.to_be_bytes()),
        AMQPValue::LongLongInt(number) => into.extend(number.to_be_bytes()),
        AMQPValue::Float(number) => into.extend(number.to_be_bytes()),
        AMQPValue::Double(number) => into.extend(number.to_be_bytes()),
        AMQPValue::Timestamp(seconds) => into.extend(seconds.to_be_bytes()),
        AMQPValue::DecimalValue(decimal) => {
            into.push(decimal.scale);
            into.extend(decimal.value.to_be_bytes());
        }
        AMQPValue::ShortString(text) => short(into, text),
        AMQPValue::LongString(text) => sized(into, |into| into.extend_from_slice(text.as_bytes())),
        AMQPValue::ByteArray(bytes) => sized(into, |into| into.extend_from_slice(bytes.as_slice())),
        AMQPValue::FieldArray(array) => sized(into, |into| {
            array.as_slice().iter().for_each(|entry| self::value(into, entry));
        }),
        AMQPValue::FieldTable(inner) => table(into, inner),
        AMQPValue::Void => {}
    }
}

/// Where the client is in what it writes: frames of others may stand between its own, not in them.
#[derive(Debug)]
pub struct Writing {
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    /// Behind the head.
    missing: usize,
}

/// Before the header of the protocol, which is no frame.
impl Default for Writing {
    fn default() -> Self {
        Self {
            head: [0; HEAD_BYTES],
            head_bytes: 0,
            missing: PROTOCOL_HEADER_BYTES,
        }
    }
}

impl Writing {
    pub fn wrote(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.missing > 0 {
                let came = self.missing.min(bytes.len());
                self.missing -= came;
                bytes = &bytes[came..];
                continue;
            }
            let came = (HEAD_BYTES - self.head_bytes).min(bytes.len());
            self.head[self.head_bytes..][..came].copy_from_slice(&bytes[..came]);
            self.head_bytes += came;
            bytes = &bytes[came..];
            if self.head_bytes == HEAD_BYTES {
                self.head_bytes = 0;
                self.missing = Frame::begin(&self.head).map_or(0, |frame| frame.bytes - HEAD_BYTES);
            }
        }
    }

    pub fn is_between_frames(&self) -> bool {
        self.missing == 0 && self.head_bytes == 0
    }
}

/// Takes the frames that are not for the client out of what comes in, and screens the others.
#[derive(Debug, Default)]
pub struct Sieve {
    ours: HashMap<ChannelId, Channel>,
    /// Bytes of the current frame that are passed on unseen and have not come yet.
    passing: usize,
    /// Whether what comes next is, as far as anybody can tell, of a body that is not kept.
    discards: bool,
}

/// How far a sieve came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sifted {
    /// The bytes up to here are what the client may have.
    pub kept: usize,
    /// The bytes from here on are the beginning of a frame.
    pub seen: usize,
}

/// A channel whose messages go past the client.
#[derive(Debug)]
struct Channel {
    /// Of its bodies, if somebody counts them.
    account: Option<Account>,
    coming: Option<Coming>,
    /// The broker has closed it.
    is_closed: bool,
}

/// A message of which some frames are still to come.
#[derive(Debug)]
struct Coming {
    method: Method,
    content: Content,
    /// Bytes of the body that have not come; `None` before the header.
    missing: Option<u64>,
}

/// What a message begins with.
#[derive(Debug)]
enum Method {
    Return {
        exchange: ShortString,
        routing_key: ShortString,
    },
    Deliver {
        tag: DeliveryTag,
        redelivered: bool,
    },
}

impl Sieve {
    /// From now on the channel's messages are ours, and their bodies count, if there is an account.
    pub fn add(&mut self, id: ChannelId, account: Option<Account>) {
        let channel = Channel {
            account,
            coming: None,
            is_closed: false,
        };
        self.ours.insert(id, channel);
    }

    /// Nobody wants what is still to come on a channel: it is read and not kept.
    pub fn discard(&mut self, id: ChannelId) {
        let coming = self.ours.get_mut(&id).and_then(|channel| channel.coming.as_mut());
        if let Some(coming) = coming {
            coming.content = Content {
                room: Room::Refused(0),
                ..Content::default()
            };
        }
    }

    /// Nothing comes any more.
    pub fn end(&mut self) {
        for channel in self.ours.values_mut() {
            channel.coming = None;
        }
    }

    /// Whether a message is under way on a channel.
    #[cfg(test)]
    pub fn comes(&self, id: ChannelId) -> bool {
        self.ours.get(&id).is_some_and(|channel| channel.coming.is_some())
    }

    /// Whether what comes next is not kept.
    pub fn discards(&self) -> bool {
        self.discards
    }

    /// Goes through `bytes`, which follow on those seen before, and puts those for the client in front.
    pub fn sift(&mut self, bytes: &mut [u8], heard: &mut Vec<(ChannelId, Heard)>) -> Sifted {
        let (mut kept, mut seen) = (0, 0);
        let mut told = false;
        loop {
            let passed = self.passing.min(bytes.len() - seen);
            self.passing -= passed;
            keep(bytes, &mut kept, &mut seen, passed);
            let Some(frame) = Frame::begin(&bytes[seen..]).filter(|_| self.passing == 0) else {
                return Sifted { kept, seen };
            };
            // A frame that does not fit is longer than any broker may send: the client refuses it.
            if !self.looks_into(frame) || frame.bytes > FRAME_BYTES_MAX {
                self.passing = frame.bytes;
                continue;
            }
            let Some(whole) = bytes[seen..].get_mut(..frame.bytes) else {
                return Sifted { kept, seen };
            };
            frame.screen(whole);
            if !self.take(frame, whole, heard) {
                keep(bytes, &mut kept, &mut seen, frame.bytes);
                continue;
            }
            seen += frame.bytes;
            if !told {
                told = true;
                bytes[kept..kept + HEARTBEAT.len()].copy_from_slice(&HEARTBEAT);
                kept += HEARTBEAT.len();
            }
        }
    }

    fn looks_into(&self, frame: Frame) -> bool {
        match frame.kind {
            Kind::Method | Kind::ContentHeader => true,
            Kind::Body => self.ours.contains_key(&frame.channel),
            Kind::Other => false,
        }
    }

    /// Whether the frame is ours and says something that makes sense.
    fn take(&mut self, frame: Frame, whole: &[u8], heard: &mut Vec<(ChannelId, Heard)>) -> bool {
        let Some((&END, payload)) = whole[HEAD_BYTES..].split_last() else {
            return false;
        };
        let id = frame.channel;
        if id == 0 {
            heard.extend(closed(payload, CONNECTION_CLOSE).map(|closed| (id, closed)));
            return false;
        }
        let Some(channel) = self.ours.get_mut(&id) else {
            return false;
        };
        if channel.is_closed {
            self.remove(id);
            return payload.starts_with(&CHANNEL_CLOSE_OK);
        }
        let is_taken = match frame.kind {
            Kind::Method => {
                if payload.starts_with(&CHANNEL_CLOSE) {
                    heard.extend(closed(payload, CHANNEL_CLOSE).map(|closed| (id, closed)));
                    channel.coming = None;
                    channel.is_closed = true;
                    return false;
                }
                if payload.starts_with(&CHANNEL_CLOSE_OK) {
                    self.remove(id);
                    return false;
                }
                let confirm = confirm(payload);
                heard.extend(confirm.map(|confirm| (id, Heard::News(News::Confirm(confirm)))));
                confirm.is_some() || channel.begin(payload)
            }
            Kind::ContentHeader => channel.header(payload),
            Kind::Body => channel.body(payload),
            Kind::Other => false,
        };
        heard.extend(channel.finish().map(|news| (id, Heard::News(news))));
        self.discards = channel.discards();
        is_taken
    }

    fn remove(&mut self, id: ChannelId) {
        self.ours.remove(&id);
    }
}

/// Moves what is kept to where it belongs, as a rule nowhere else.
fn keep(bytes: &mut [u8], kept: &mut usize, seen: &mut usize, count: usize) {
    if kept != seen {
        bytes.copy_within(*seen..*seen + count, *kept);
    }
    *kept += count;
    *seen += count;
}

impl Coming {
    fn whole(self) -> News {
        let content = self.content;
        match self.method {
            Method::Return { exchange, routing_key } => News::Return(Box::new(Returned {
                exchange,
                routing_key,
                content,
            })),
            Method::Deliver { tag, redelivered } => News::Delivery(Box::new(Delivered {
                tag,
                redelivered,
                content,
            })),
        }
    }
}

impl Channel {
    /// Whether a message begins to come.
    fn begin(&mut self, payload: &[u8]) -> bool {
        let begun = returned(payload).or_else(|| delivered(payload));
        match begun.filter(|_| self.coming.is_none()) {
            Some(method) => {
                self.coming = Some(Coming {
                    method,
                    content: Content::default(),
                    missing: None,
                });
                true
            }
            None => false,
        }
    }

    fn header(&mut self, payload: &[u8]) -> bool {
        let Some(coming) = self.coming.as_mut().filter(|coming| coming.missing.is_none()) else {
            return false;
        };
        let Some((bytes, properties)) = content_header(payload) else {
            return false;
        };
        coming.missing = Some(bytes);
        coming.content.properties = properties;
        if let Some(account) = &self.account {
            coming.content.room = match account.claim(bytes) {
                Some(claim) => {
                    coming.content.body = claim.memory();
                    Room::Claimed(claim)
                }
                None => Room::Refused(bytes),
            };
        }
        true
    }

    fn body(&mut self, payload: &[u8]) -> bool {
        let Some(coming) = &mut self.coming else {
            return false;
        };
        let left = coming
            .missing
            .and_then(|missing| missing.checked_sub(payload.len() as u64));
        if left.is_some() {
            coming.missing = left;
            match &mut coming.content.room {
                Room::Refused(_) => {}
                Room::Claimed(claim) => {
                    claim.came(payload.len());
                    coming.content.body.extend_from_slice(payload);
                }
                Room::Uncounted => coming.content.body.extend_from_slice(payload),
            }
        }
        left.is_some()
    }

    fn discards(&self) -> bool {
        let room = self.coming.as_ref().map(|coming| &coming.content.room);
        matches!(room, Some(Room::Refused(_)))
    }

    fn finish(&mut self) -> Option<News> {
        let is_whole = |coming: &mut Coming| coming.missing == Some(0);
        self.coming.take_if(is_whole).map(Coming::whole)
    }
}

fn confirm(payload: &[u8]) -> Option<Confirm> {
    let mut reader = Reader(payload);
    let refused = match reader.take()? {
        BASIC_ACK => false,
        BASIC_NACK => true,
        _ => return None,
    };
    Some(Confirm {
        tag: reader.take().map(u64::from_be_bytes)?,
        multiple: reader.take::<1>()?[0] & 1 != 0,
        refused,
    })
}

/// Of `connection.close` and `channel.close`: code and text.
fn closed(payload: &[u8], method: [u8; 4]) -> Option<Heard> {
    let mut reader = Reader(payload.strip_prefix(&method)?);
    Some(Heard::Closed {
        code: reader.take().map(u16::from_be_bytes)?,
        said: reader.short()?,
    })
}

/// Of `basic.return`, which has a code and a text in front.
fn returned(payload: &[u8]) -> Option<Method> {
    let mut reader = Reader(payload.strip_prefix(&BASIC_RETURN)?);
    reader.skip(2)?;
    reader.skip_short()?;
    Some(Method::Return {
        exchange: reader.short()?,
        routing_key: reader.short()?,
    })
}

/// Of `basic.deliver`, which has the consumer's tag in front, and behind exchange and routing key.
fn delivered(payload: &[u8]) -> Option<Method> {
    let mut reader = Reader(payload.strip_prefix(&BASIC_DELIVER)?);
    reader.skip_short()?;
    Some(Method::Deliver {
        tag: reader.take().map(DeliveryTag::from_be_bytes)?,
        redelivered: reader.take()? != [0],
    })
}

/// The length of the body that follows, and the properties, which are read as the client reads them.
fn content_header(payload: &[u8]) -> Option<(u64, BasicProperties)> {
    let mut reader = Reader(payload);
    reader.skip(4)?;
    let bytes = reader.take().map(u64::from_be_bytes)?;
    let (rest, properties) = parse_properties(reader.0).ok()?;
    rest.is_empty().then_some((bytes, properties))
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const BYTES: usize>(&mut self) -> Option<[u8; BYTES]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.0 = self.0.get(bytes..)?;
        Some(())
    }

    /// UTF-8, since it is screened.
    fn short(&mut self) -> Option<ShortString> {
        let [bytes] = self.take()?;
        let (text, rest) = self.0.split_at_checked(bytes.into())?;
        self.0 = rest;
        std::str::from_utf8(text).ok().map(ShortString::from)
    }

    fn skip_short(&mut self) -> Option<()> {
        let [bytes] = self.take()?;
        self.skip(bytes.into())
    }
}

/// Twice the longest frame that connections here agree to ([`FRAME_MAX`]); a frame longer than this is the client's.
pub const FRAME_BYTES_MAX: usize = 2 * FRAME_MAX as usize;
/// RabbitMQ's own limit.
pub const FRAME_MAX: FrameSize = 128 << 10;

const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const BODY: u8 = 3;
const END: u8 = 0xce;
const BASIC: u8 = 60;
const PUBLISH: u8 = 40;
/// Methods by class and number.
const BASIC_RETURN: [u8; 4] = [0, BASIC, 0, 50];
const BASIC_DELIVER: [u8; 4] = [0, BASIC, 0, 60];
const BASIC_ACK: [u8; 4] = [0, BASIC, 0, 80];
const BASIC_NACK: [u8; 4] = [0, BASIC, 0, 120];
const CONNECTION_CLOSE: [u8; 4] = [0, 10, 0, 50];
const CHANNEL_CLOSE: [u8; 4] = [0, 20, 0, 40];
const CHANNEL_CLOSE_OK: [u8; 4] = [0, 20, 0, 41];
/// No longer than any frame that is taken.
const HEARTBEAT: [u8; HEAD_BYTES + END_BYTES] = [8, 0, 0, 0, 0, 0, 0, END];
const PROTOCOL_HEADER_BYTES: usize = 8;

#[cfg(test)]
pub mod testing {
    //! Frames as a broker writes them.

    use super::*;

    pub fn method(channel: ChannelId, payload: &[u8]) -> Vec<u8> {
        any(METHOD, channel, payload)
    }

    pub fn any(kind: u8, channel: ChannelId, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame(&mut bytes, kind, channel, |into| into.extend_from_slice(payload));
        bytes
    }

    pub fn heartbeat() -> Vec<u8> {
        HEARTBEAT.to_vec()
    }

    pub fn confirm(channel: ChannelId, confirm: Confirm) -> Vec<u8> {
        let name = if confirm.refused { BASIC_NACK } else { BASIC_ACK };
        let tag = confirm.tag.to_be_bytes();
        method(channel, &[&name[..], &tag, &[u8::from(confirm.multiple)]].concat())
    }

    /// With the body in pieces of so many bytes.
    pub fn returned(channel: ChannelId, message: &Returned, piece: usize) -> Vec<u8> {
        let mut payload = [&BASIC_RETURN[..], &312_u16.to_be_bytes()].concat();
        for text in [&"NO_ROUTE".into(), &message.exchange, &message.routing_key] {
            short(&mut payload, text);
        }
        [method(channel, &payload), content(channel, &message.content, piece)].concat()
    }

    /// As [`returned`].
    pub fn delivered(channel: ChannelId, message: &Delivered, piece: usize) -> Vec<u8> {
        let mut payload = BASIC_DELIVER.to_vec();
        short(&mut payload, &"ctag".into());
        payload.extend(message.tag.to_be_bytes());
        payload.push(u8::from(message.redelivered));
        for text in ["inferq", "model"] {
            short(&mut payload, &text.into());
        }
        [method(channel, &payload), content(channel, &message.content, piece)].concat()
    }

    fn content(channel: ChannelId, content: &Content, piece: usize) -> Vec<u8> {
        let mut header = [0, BASIC, 0, 0].to_vec();
        header.extend((content.body.len() as u64).to_be_bytes());
        properties(&mut header, &content.properties);
        let bodies = content.body.chunks(piece).flat_map(|piece| any(BODY, channel, piece));
        let bodies: Vec<u8> = bodies.collect();
        [any(CONTENT_HEADER, channel, &header), bodies].concat()
    }

    pub fn closed(channel: ChannelId, code: u16, said: &str) -> Vec<u8> {
        let name = if channel == 0 { CONNECTION_CLOSE } else { CHANNEL_CLOSE };
        let mut payload = [&name[..], &code.to_be_bytes()].concat();
        short(&mut payload, &said.into());
        payload.extend([0; 4]);
        method(channel, &payload)
    }

    pub fn close_ok(channel: ChannelId) -> Vec<u8> {
        method(channel, &CHANNEL_CLOSE_OK)
    }
}

#[cfg(test)]
impl Clone for Room {
    /// A copy takes nothing.
    fn clone(&self) -> Self {
        Self::Uncounted
    }
}

#[cfg(test)]
mod tests {
    use super::super::bodies::Bodies;
    use amq_protocol::frame::{AMQPFrame, parse_frame};
    use amq_protocol::protocol::AMQPClass;
    use amq_protocol::protocol::basic::AMQPMethod;
    use lapin::types::{ByteArray, DecimalValue, FieldArray, LongString};
    use proptest::prelude::*;

    use super::testing::{close_ok, heartbeat, method};
    use super::*;

    const OURS: ChannelId = 1;
    const THEIRS: ChannelId = 2;

    fn short_string() -> impl Strategy<Value = ShortString> {
        ".{0,60}".prop_map(|text: String| text.into())
    }

    /// Of all types that the client reads as it writes them.
    fn header_value() -> impl Strategy<Value = AMQPValue> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(AMQPValue::Boolean),
            any::<i8>().prop_map(AMQPValue::ShortShortInt),
            any::<u8>().prop_map(AMQPValue::ShortShortUInt),
            any::<i16>().prop_map(AMQPValue::ShortInt),
            any::<u16>().prop_map(AMQPValue::ShortUInt),
            any::<i32>().prop_map(AMQPValue::LongInt),
            any::<u32>().prop_map(AMQPValue::LongUInt),
            any::<i64>().prop_map(AMQPValue::LongLongInt),
            (-1e9_f32..1e9).prop_map(AMQPValue::Float),
            (-1e9_f64..1e9).prop_map(AMQPValue::Double),
            any::<u64>().prop_map(AMQPValue::Timestamp),
            any::<(u8, u32)>().prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
            any::<Vec<u8>>().prop_map(|bytes| AMQPValue::LongString(LongString::from(bytes))),
            any::<Vec<u8>>().prop_map(|bytes| AMQPValue::ByteArray(ByteArray::from(bytes))),
            Just(AMQPValue::Void),
        ];
        leaf.prop_recursive(4, 20, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4)
                    .prop_map(|entries| AMQPValue::FieldArray(FieldArray::from(entries))),
                proptest::collection::btree_map(short_string(), inner, 0..4)
                    .prop_map(|entries| AMQPValue::FieldTable(FieldTable::from(entries))),
            ]
        })
    }

    fn any_properties() -> impl Strategy<Value = BasicProperties> {
        let texts = proptest::collection::vec(proptest::option::of(short_string()), 10);
        let headers = proptest::option::of(proptest::collection::btree_map(short_string(), header_value(), 0..5));
        let numbers = any::<(Option<u8>, Option<u8>, Option<u64>)>();
        (texts, headers, numbers).prop_map(|(texts, headers, (mode, priority, timestamp))| {
            type Set = fn(BasicProperties, ShortString) -> BasicProperties;
            let set: [Set; 10] = [
                BasicProperties::with_content_type,
                BasicProperties::with_content_encoding,
                BasicProperties::with_correlation_id,
                BasicProperties::with_reply_to,
                BasicProperties::with_expiration,
                BasicProperties::with_message_id,
                BasicProperties::with_type,
                BasicProperties::with_user_id,
                BasicProperties::with_app_id,
                BasicProperties::with_cluster_id,
            ];
            let mut properties = BasicProperties::default();
            for (text, set) in texts.into_iter().zip(set) {
                if let Some(text) = text {
                    properties = set(properties, text);
                }
            }
            if let Some(headers) = headers {
                properties = properties.with_headers(headers.into());
            }
            if let Some(mode) = mode {
                properties = properties.with_delivery_mode(mode);
            }
            if let Some(priority) = priority {
                properties = properties.with_priority(priority);
            }
            match timestamp {
                Some(timestamp) => properties.with_timestamp(timestamp),
                None => properties,
            }
        })
    }

    /// As the client reads them.
    fn parsed(mut bytes: &[u8]) -> Vec<AMQPFrame> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let (rest, frame) = parse_frame(bytes).unwrap();
            frames.push(frame);
            bytes = rest;
        }
        frames
    }

    proptest! {
        #[test]
        fn a_message_is_written_as_the_client_reads_it(
            names in (short_string(), short_string(), any::<bool>()),
            properties in any_properties(),
            body in proptest::collection::vec(any::<u8>(), 0..300),
            frame_max in 9_usize..400,
        ) {
            let (exchange, routing_key, mandatory) = names;
            let mut bytes = Vec::new();

            publish(&mut bytes, 7, frame_max, &Publication {
                exchange: &exchange, routing_key: &routing_key, mandatory, properties: &properties, body: &body,
            });

            let mut frames = parsed(&bytes).into_iter();
            let Some(AMQPFrame::Method(7, AMQPClass::Basic(AMQPMethod::Publish(publish)))) = frames.next() else {
                panic!("no basic.publish");
            };
            prop_assert_eq!((publish.exchange, publish.routing_key), (exchange, routing_key));
            prop_assert_eq!((publish.mandatory, publish.immediate), (mandatory, false));
            let Some(AMQPFrame::Header(7, header)) = frames.next() else { panic!("no content header") };
            prop_assert_eq!((header.class_id, header.body_size), (60, body.len() as u64));
            prop_assert_eq!(header.properties, properties);
            let mut pieces = Vec::new();
            for frame in frames {
                let AMQPFrame::Body(7, piece) = frame else { panic!("no body") };
                prop_assert!(!piece.is_empty() && piece.len() + 8 <= frame_max);
                pieces.extend(piece);
            }
            prop_assert_eq!(pieces, body);
        }

        #[test]
        fn whoever_writes_in_any_pieces_is_known_to_be_between_frames_or_not(
            payloads in proptest::collection::vec((1_u8..4, proptest::collection::vec(any::<u8>(), 0..40)), 0..6),
            pieces in proptest::collection::vec(1_usize..12, 1..5),
        ) {
            let mut bytes = b"AMQP\0\0\x09\x01".to_vec();
            let mut ends = vec![bytes.len()];
            for (kind, payload) in payloads {
                bytes.extend(testing::any(kind, 3, &payload));
                ends.push(bytes.len());
            }
            let mut writing = Writing::default();
            let (mut written, mut pieces) = (0, pieces.into_iter().cycle());

            while written < bytes.len() {
                let until = bytes.len().min(written + pieces.next().unwrap());
                writing.wrote(&bytes[written..until]);
                written = until;
                prop_assert_eq!(writing.is_between_frames(), ends.contains(&written));
            }
        }
    }

    /// Something that a broker may send, and what is to be heard of it; `None` if the client alone gets it.
    #[derive(Debug, Clone)]
    struct Sent {
        bytes: Vec<u8>,
        heard: Option<News>,
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let confirm = any::<(u64, bool, bool)>().prop_map(|(tag, multiple, refused)| {
            let confirm = Confirm { tag, multiple, refused };
            Sent {
                bytes: testing::confirm(OURS, confirm),
                heard: Some(News::Confirm(confirm)),
            }
        });
        let body = proptest::collection::vec(any::<u8>(), 0..60);
        let content = (any_properties(), body).prop_map(|(properties, body)| Content {
            properties,
            body,
            room: Room::Uncounted,
        });
        let message = (
            short_string(),
            any::<(u64, bool)>(),
            any::<bool>(),
            content,
            1_usize..50,
        );
        let message = message.prop_map(|(routing_key, (tag, redelivered), is_return, content, piece)| {
            let returned = Returned {
                exchange: "".into(),
                routing_key,
                content: content.clone(),
            };
            let delivered = Delivered {
                tag,
                redelivered,
                content,
            };
            let (bytes, news) = match is_return {
                true => (testing::returned(OURS, &returned, piece), News::Return(returned.into())),
                false => (
                    testing::delivered(OURS, &delivered, piece),
                    News::Delivery(delivered.into()),
                ),
            };
            Sent {
                bytes,
                heard: Some(news),
            }
        });
        let theirs = prop_oneof![
            Just(heartbeat()),
            // confirm.select-ok of our channel; a confirm, content and a close of another.
            Just(method(OURS, &[0, 85, 0, 11])),
            Just(testing::confirm(
                THEIRS,
                Confirm {
                    tag: 1,
                    multiple: false,
                    refused: false
                }
            )),
            proptest::collection::vec(any::<u8>(), 0..60).prop_map(|body| testing::any(BODY, THEIRS, &body)),
            Just(testing::closed(THEIRS, 404, "gone")),
        ];
        prop_oneof![3 => confirm, 2 => message, 3 => theirs.prop_map(|bytes| Sent { bytes, heard: None })]
    }

    /// What is heard and what the client gets, when `bytes` come in pieces that end at `cuts`.
    fn sifted(sieve: &mut Sieve, bytes: &[u8], cuts: &[usize]) -> (Vec<(ChannelId, Heard)>, Vec<u8>) {
        let (mut heard, mut client, mut waiting, mut came) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for cut in cuts.iter().copied().chain([bytes.len()]) {
            waiting.extend_from_slice(&bytes[came..cut]);
            came = cut;
            let sifted = sieve.sift(&mut waiting, &mut heard);
            client.extend_from_slice(&waiting[..sifted.kept]);
            waiting.drain(..sifted.seen);
        }
        assert!(waiting.is_empty());
        (heard, client)
    }

    fn without_heartbeats(client: &[u8]) -> Vec<AMQPFrame> {
        let frames = parsed(client).into_iter();
        frames.filter(|frame| *frame != AMQPFrame::Heartbeat).collect()
    }

    /// What is heard of a message whose body comes in pieces of 10 bytes.
    fn delivered_to(sieve: &mut Sieve, body: &[u8]) -> (Delivered, bool) {
        let delivered = Delivered {
            content: Content {
                body: body.to_vec(),
                ..Content::default()
            },
            ..Delivered::default()
        };
        let bytes = testing::delivered(OURS, &delivered, 10);
        let (first, rest) = bytes.split_at(bytes.len() - 1);
        let (mut first, mut heard) = (first.to_vec(), Vec::new());
        let seen = sieve.sift(&mut first, &mut heard).seen;
        let discards = sieve.discards();
        sieve.sift(&mut [&first[seen..], rest].concat(), &mut heard);
        match heard.pop() {
            Some((OURS, Heard::News(News::Delivery(delivered)))) => (*delivered, discards),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_body_without_room_is_not_kept() {
        let bodies = Bodies::new(100, 100, 1);
        let mut sieve = Sieve::default();
        sieve.add(OURS, Some(bodies.account()));

        let (kept, discards_kept) = delivered_to(&mut sieve, &[7; 100]);
        let (refused, discards_refused) = delivered_to(&mut sieve, &[7; 70]);
        let taken = bodies.taken();
        let is_counted = matches!(kept.content.room, Room::Claimed(_));
        drop(kept);

        assert!(is_counted && !discards_kept);
        assert_eq!(
            (refused.content.body.len(), refused.content.room),
            (0, Room::Refused(70))
        );
        assert!(discards_refused && !sieve.discards());
        assert_eq!((taken, bodies.taken()), (100, 0));
    }

    #[test]
    fn a_body_that_is_cut_off_by_the_end_of_its_channel_takes_nothing() {
        let bodies = Bodies::new(100, 100, 1);
        let mut sieve = Sieve::default();
        sieve.add(OURS, Some(bodies.account()));
        let delivered = Delivered {
            content: Content {
                body: vec![7; 50],
                ..Content::default()
            },
            ..Delivered::default()
        };
        let mut bytes = testing::delivered(OURS, &delivered, 10);
        bytes.truncate(bytes.len() - 20);

        sieve.sift(&mut bytes, &mut Vec::new());
        let coming = bodies.taken();
        sieve.sift(&mut testing::closed(OURS, 406, "no more"), &mut Vec::new());

        assert_eq!((coming, bodies.taken()), (50, 0));
    }

    fn ours() -> Sieve {
        let mut sieve = Sieve::default();
        sieve.add(OURS, None);
        sieve
    }

    proptest! {
        #[test]
        fn messages_and_confirms_are_heard_in_order_and_the_client_gets_all_else_wherever_it_is_cut(
            sent in proptest::collection::vec(sent(), 1..8),
        ) {
            let bytes: Vec<u8> = sent.iter().flat_map(|sent| sent.bytes.clone()).collect();
            let theirs: Vec<u8> = sent.iter().filter(|sent| sent.heard.is_none()).flat_map(|sent| sent.bytes.clone()).collect();
            let expected: Vec<_> = sent.iter().filter_map(|sent| Some((OURS, Heard::News(sent.heard.clone()?)))).collect();
            let everywhere: Vec<usize> = (1..bytes.len()).collect();
            let cuts = (0..bytes.len()).map(|cut| vec![cut]).chain([everywhere]);

            for cuts in cuts {
                let (heard, client) = sifted(&mut ours(), &bytes, &cuts);

                prop_assert_eq!(&heard, &expected);
                prop_assert_eq!(without_heartbeats(&client), without_heartbeats(&theirs));
                let is_told = !client.is_empty() || expected.is_empty();
                prop_assert!(is_told, "the client takes the broker for dead");
            }
        }

        #[test]
        fn any_bytes_are_sifted_without_a_panic_and_none_is_made_up(
            channels in proptest::collection::vec(0_u16..3, 0..3),
            pieces in proptest::collection::vec(
                (0_u8..5, 0_u16..3, proptest::collection::vec(any::<u8>(), 0..50), any::<bool>()), 0..12),
            methods in proptest::collection::vec(proptest::sample::select(
                vec![BASIC_RETURN, BASIC_DELIVER, BASIC_ACK, CHANNEL_CLOSE, CONNECTION_CLOSE]), 12),
            cut in 0_usize..40,
        ) {
            let mut sieve = Sieve::default();
            channels.into_iter().for_each(|channel| sieve.add(channel, None));
            let mut bytes = Vec::new();
            for ((kind, channel, payload, is_method), method) in pieces.into_iter().zip(methods) {
                let payload = if is_method { [&method[..], &payload].concat() } else { payload };
                bytes.extend(testing::any(kind, channel, &payload));
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            let (came, mut heard) = (bytes.len(), Vec::new());

            let Sifted { kept, seen } = sieve.sift(&mut bytes, &mut heard);

            prop_assert!(kept <= seen && seen <= came);
            prop_assert!(heard.len() <= came / HEARTBEAT.len());
        }
    }

    #[test]
    fn what_is_said_of_a_channel_is_taken_until_it_is_closed_by_either_side() {
        let late = testing::confirm(
            OURS,
            Confirm {
                tag: 3,
                multiple: false,
                refused: false,
            },
        );
        let said = Heard::Closed {
            code: 406,
            said: "too large".into(),
        };
        for (close, expected) in [
            (testing::closed(OURS, 406, "too large"), Some(said)),
            (close_ok(OURS), None),
        ] {
            let mut sieve = ours();

            let (heard, before) = sifted(&mut sieve, &late, &[]);
            let (closed, passed) = sifted(&mut sieve, &close, &[]);
            let (unheard, after) = sifted(&mut sieve, &late, &[]);

            assert_eq!((heard.len(), before), (1, heartbeat()));
            assert_eq!(
                closed,
                expected.into_iter().map(|said| (OURS, said)).collect::<Vec<_>>()
            );
            assert_eq!(passed, close);
            // Nobody can say that any more. The client ends the connection over it.
            assert_eq!((unheard, after), (Vec::new(), late.clone()));
        }
    }

    #[test]
    fn the_second_answer_to_closes_that_crossed_is_not_for_the_client() {
        let close = testing::closed(OURS, 406, "too late");
        let open_ok = testing::method(OURS, &[0, 20, 0, 11, 0, 0, 0, 0]);

        let (heard, client) = sifted(
            &mut ours(),
            &[close.clone(), close_ok(OURS), open_ok.clone()].concat(),
            &[],
        );
        let (_, uncrossed) = sifted(
            &mut ours(),
            &[close.clone(), open_ok.clone(), close_ok(OURS)].concat(),
            &[],
        );

        assert_eq!(heard.len(), 1);
        assert_eq!(client, [close.clone(), heartbeat(), open_ok.clone()].concat());
        // Of a channel that the client has opened anew the answer is its own.
        assert_eq!(uncrossed, [close, open_ok, close_ok(OURS)].concat());
    }

    #[test]
    fn content_that_nobody_announced_or_that_is_longer_than_announced_is_left_to_the_client() {
        let mut message = Returned::default();
        message.content.body = b"four".to_vec();
        let whole = testing::returned(OURS, &message, 4);
        let end = whole.len() - (HEAD_BYTES + 4 + END_BYTES);
        let longer = testing::any(BODY, OURS, b"fives");

        let (heard, client) = sifted(&mut ours(), &longer, &[]);
        assert_eq!((heard, client), (Vec::new(), longer.clone()));

        let (heard, client) = sifted(&mut ours(), &[&whole[..end], &longer].concat(), &[]);
        assert_eq!(heard, []);
        assert!(client.ends_with(&longer));
    }

    #[test]
    fn a_frame_with_another_end_is_left_to_the_client() {
        let mut broken = testing::confirm(
            OURS,
            Confirm {
                tag: 1,
                multiple: false,
                refused: false,
            },
        );
        *broken.last_mut().unwrap() = 0;

        assert_eq!(sifted(&mut ours(), &broken, &[]), (Vec::new(), broken.clone()));
    }
}
