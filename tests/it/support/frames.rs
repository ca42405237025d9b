//! Where the frames of an AMQP connection begin, and which they are. Looks at bytes as they pass and keeps none.

/// Kinds of frames that a test may want to tear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    Any,
    /// `basic.publish`.
    Publish,
    /// `basic.deliver`.
    Deliver,
    /// `basic.ack`: of a delivery on the way to the broker, of a publish on the way back.
    Ack,
    /// A piece of a message's body.
    Body,
}

impl Frame {
    fn is(self, head: &[u8]) -> bool {
        let method = |method: u8| head[0] == 1 && head[7..11] == [0, 60, 0, method];
        match self {
            Self::Any => true,
            Self::Publish => method(40),
            Self::Deliver => method(60),
            Self::Ack => method(80),
            Self::Body => head[0] == 3,
        }
    }
}

/// Bytes of a frame that say what it is: kind, channel and length, then class and method.
pub const HEAD: usize = 11;
/// Kind, channel and length; and the byte behind the payload.
const OVERHEAD: usize = 8;

/// Follows one way of a connection.
pub struct Frames {
    head: Vec<u8>,
    /// Bytes until the next frame begins, once the head is read.
    left: usize,
}

impl Frames {
    /// A client begins with eight bytes that are no frame.
    pub fn new(from_client: bool) -> Self {
        Self {
            head: Vec::new(),
            left: if from_client { b"AMQP\0\0\x09\x01".len() } else { 0 },
        }
    }

    /// Looks at the bytes that follow, and tells where in them the first frame of the wanted kind begins: before them if
    /// its first bytes came earlier.
    pub fn look(&mut self, bytes: &[u8], wanted: Option<Frame>) -> Option<i64> {
        let mut found = None;
        let mut at = 0;
        while at < bytes.len() {
            if self.left > 0 {
                let passed = self.left.min(bytes.len() - at);
                self.left -= passed;
                at += passed;
                continue;
            }
            self.head.push(bytes[at]);
            at += 1;
            let Some(length) = self.head.get(3..7) else { continue };
            let payload = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
            // A heartbeat is shorter than a head, and nobody's target.
            let head = HEAD.min(payload + OVERHEAD);
            if self.head.len() < head {
                continue;
            }
            if found.is_none() && head == HEAD && wanted.is_some_and(|wanted| wanted.is(&self.head)) {
                found = Some(at as i64 - HEAD as i64);
            }
            self.left = payload + OVERHEAD - head;
            self.head.clear();
        }
        found
    }
}

#[test]
fn frames_are_found_however_their_bytes_arrive() {
    let method = |id: u8| [&[1, 0, 1, 0, 0, 0, 5, 0, 60, 0, id, 7, 0xce][..]].concat();
    let heartbeat = [8, 0, 0, 0, 0, 0, 0, 0xce];
    let stream = [
        &b"AMQP\0\0\x09\x01"[..],
        &method(40),
        &heartbeat,
        &method(80),
        &method(40),
    ]
    .concat();

    for piece in [1, 2, 5, 13, stream.len()] {
        let mut frames = Frames::new(true);
        let mut starts = Vec::new();
        for (number, chunk) in stream.chunks(piece).enumerate() {
            if let Some(start) = frames.look(chunk, Some(Frame::Ack)) {
                starts.push(start + (number * piece) as i64);
            }
        }
        assert_eq!(starts, [8 + 13 + 8], "in pieces of {piece}");
    }
}
