//! The messages: what a job and a reply look like on the wire (DESIGN, section 2).
//!
//! Everything here is pure: bytes in, values out. It knows nothing of models, brokers or engines.
//!
//! One message, three encodings. [`request`] and [`reply`] say what a message means, `msgpack`, `json` and
//! `binary` how it lies in the bytes, and `message` is what the two sides hand each other. Numbers that come one
//! by one, not as raw bytes, take the model's type in `elements`.
//!
//! # Memory
//! Decoding trusts no announced length: nothing is reserved for what a body only claims to hold. A decoded message
//! takes at most the bytes of its strings (so at most the body's length once more) and 512 bytes for each tensor,
//! of which there are at most [`TENSORS_MAX`]; raw tensors stay slices of the body. An array of elements becomes at
//! most 8 bytes for each byte of the array (a one-byte integer as FP64, a short string with its length before it),
//! and no more elements are reserved than the array has bytes.

pub mod amqp10;
mod binary;
mod datatype_names;
pub(crate) mod elements;
pub mod error;
pub mod headers;
mod json;
mod message;
mod msgpack;
pub mod reply;
pub mod reply_address;
pub mod request;
#[cfg(test)]
mod roundtrip;
pub mod rows;
pub mod status;
pub mod tensor;

use bytes::Bytes;
use error::{Problem, WireError, excerpt};

pub use message::TENSORS_MAX;

/// How a body is encoded, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    MsgPack,
    Json,
    /// The binary tensor extension of the Open Inference Protocol: `json_bytes` of JSON, then raw tensors.
    Binary {
        json_bytes: usize,
    },
}

impl Encoding {
    /// The encoding that the properties of a message name.
    ///
    /// Case and parameters (`; charset=utf-8`) of the content type do not matter. `json_bytes_header` is the header
    /// [`JSON_BYTES_HEADER`]; only `application/octet-stream` looks at it.
    /// # Errors
    /// If the content type is missing or unknown, or is `application/octet-stream` without a usable header.
    pub fn of(content_type: Option<&str>, json_bytes_header: Option<i64>) -> Result<Self, WireError> {
        let Some(content_type) = content_type else {
            return Err(Problem::NoContentType.at("content_type"));
        };
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if MSGPACK_TYPES.iter().any(|name| essence.eq_ignore_ascii_case(name)) {
            return Ok(Self::MsgPack);
        }
        if essence.eq_ignore_ascii_case(JSON_TYPE) {
            return Ok(Self::Json);
        }
        if !essence.eq_ignore_ascii_case(BINARY_TYPE) {
            let came = excerpt(essence);
            return Err(Problem::ContentType { came }.at("content_type"));
        }
        let json_bytes = json_bytes_header.and_then(|bytes| usize::try_from(bytes).ok());
        let json_bytes = json_bytes.ok_or_else(|| Problem::NoJsonBytes.at(JSON_BYTES_HEADER))?;
        Ok(Self::Binary { json_bytes })
    }

    /// Refuses a body that its `content_encoding` says to be compressed, or written as text, such as in Base64. Any other value
    /// says nothing that the content type does not: some clients always write `binary` or `utf-8` there.
    ///
    /// # Errors
    /// The name of such an encoding came, alone or in a list.
    pub fn refuse_encoded(content_encoding: Option<&str>) -> Result<(), WireError> {
        for came in content_encoding.unwrap_or_default().split(',').map(str::trim) {
            let is_one_of = |names: &[&str]| names.iter().any(|name| name.eq_ignore_ascii_case(came));
            let came = || came.to_owned();
            if is_one_of(&COMPRESSIONS) {
                return Err(Problem::Compressed { came: came() }.at("content_encoding"));
            }
            if is_one_of(&TEXT_ENCODINGS) {
                return Err(Problem::Encoded { came: came() }.at("content_encoding"));
            }
        }
        Ok(())
    }

    /// Whether a body is little else than raw tensors, which stay where they lie, while numbers are read one by one. Looks at a
    /// few thousand values at most.
    pub fn is_raw(self, body: &[u8]) -> bool {
        match self {
            Self::MsgPack => msgpack::is_raw(body),
            Self::Json => false,
            Self::Binary { json_bytes } => json_bytes <= JSON_BYTES_FEW,
        }
    }

    /// The content type that names this encoding.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::MsgPack => MSGPACK_TYPES[0],
            Self::Json => JSON_TYPE,
            Self::Binary { .. } => BINARY_TYPE,
        }
    }
}

/// An encoded body, with what the properties of its message have to say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    pub body: Bytes,
    /// Value of the header [`JSON_BYTES_HEADER`]; `Some` exactly for the binary tensor extension.
    pub json_bytes: Option<usize>,
    /// What the body really is: the error reply to a job of the binary extension is plain JSON.
    pub content_type: &'static str,
}

impl Encoded {
    /// The encoding that decodes this body.
    pub fn encoding(&self) -> Encoding {
        match self.json_bytes {
            Some(json_bytes) => Encoding::Binary { json_bytes },
            None if self.content_type == JSON_TYPE => Encoding::Json,
            None => Encoding::MsgPack,
        }
    }
}

/// The header that says how many bytes of a binary body are its JSON part.
///
/// # Source
/// Triton, "Binary Tensor Data Extension": `Inference-Header-Content-Length`.
pub const JSON_BYTES_HEADER: &str = "inference-header-content-length";

/// Read in about 0.1 ms, if all of them are numbers.
const JSON_BYTES_FEW: usize = 64 * 1024;

/// The first is the registered name, the others were in use before it was.
const MSGPACK_TYPES: [&str; 3] = [
    "application/msgpack",
    "application/x-msgpack",
    "application/vnd.msgpack",
];
/// # Source
/// IANA, "HTTP Content Coding Registry", whose names clients of AMQP use as well; and what else is in use.
const COMPRESSIONS: [&str; 24] = [
    "gzip",
    "x-gzip",
    "deflate",
    "br",
    "brotli",
    "zstd",
    "zstandard",
    "compress",
    "x-compress",
    "bzip2",
    "x-bzip2",
    "zlib",
    "zip",
    "xz",
    "lzma",
    "lz4",
    "snappy",
    "x-snappy",
    "x-snappy-framed",
    "dcb",
    "dcz",
    "exi",
    "pack200-gzip",
    "aes128gcm",
];
/// # Source
/// RFC 2045, "Content-Transfer-Encoding", and RFC 4648.
const TEXT_ENCODINGS: [&str; 13] = [
    "base64",
    "x-base64",
    "base64url",
    "base32",
    "base16",
    "base85",
    "ascii85",
    "hex",
    "quoted-printable",
    "uuencode",
    "x-uuencode",
    "uue",
    "x-uue",
];
const JSON_TYPE: &str = "application/json";
const BINARY_TYPE: &str = "application/octet-stream";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_chooses_the_encoding_whatever_its_case_and_parameters() {
        for (content_type, encoding) in [
            ("application/msgpack", Encoding::MsgPack),
            ("Application/X-MsgPack", Encoding::MsgPack),
            ("application/vnd.msgpack;v=1", Encoding::MsgPack),
            ("application/json ; charset=utf-8", Encoding::Json),
        ] {
            assert_eq!(
                Encoding::of(Some(content_type), None).unwrap(),
                encoding,
                "{content_type}"
            );
        }

        let binary = Encoding::of(Some("application/octet-stream"), Some(12)).unwrap();

        assert_eq!(binary, Encoding::Binary { json_bytes: 12 });
    }

    #[test]
    fn raw_tensors_are_told_from_lists_of_numbers() {
        let map = |data: &[u8]| [&b"\x81\xa6inputs\x91\x81\xa4data"[..], data].concat();
        let long = vec![1; 1 << 20];
        let bin = map(&[&[0xc6, 0, 16, 0, 0], &long[..]].concat());
        let array = map(&[&[0xdd, 0, 16, 0, 0], &long[..]].concat());
        let binary = |json_bytes| Encoding::Binary { json_bytes };
        for (encoding, body, raw) in [
            (Encoding::MsgPack, &bin, true),
            (Encoding::MsgPack, &array, false),
            (Encoding::MsgPack, &vec![0xc1; 1 << 20], true), // Refused at its first byte.
            (Encoding::Json, &long, false),
            (binary(100), &long, true),
            (binary(1 << 20), &long, false),
        ] {
            assert_eq!(encoding.is_raw(body), raw, "{encoding:?}, {} bytes", body.len());
        }
    }

    #[test]
    fn an_encoded_body_is_refused_by_name_whatever_else_is_named() {
        for compressed in ["gzip", "GZIP", "zstd", "br", "lz4"] {
            let refusal = Encoding::refuse_encoded(Some(compressed)).unwrap_err().to_string();

            assert_eq!(
                refusal,
                format!("content_encoding: `{compressed}` came; allowed is none: send the body uncompressed")
            );
        }
        for (encoding, named) in [("base64", "base64"), ("Base64", "Base64"), ("identity, hex ", "hex")] {
            let refusal = Encoding::refuse_encoded(Some(encoding)).unwrap_err().to_string();

            let came = format!("content_encoding: `{named}` came; allowed is none: send the bytes as they are");
            assert_eq!(refusal, came);
        }
        for plain in [
            None,
            Some(""),
            Some("identity"),
            Some("binary"),
            Some("utf-8"),
            Some("8bit"),
        ] {
            assert_eq!(Encoding::refuse_encoded(plain), Ok(()), "{plain:?}");
        }
    }

    #[test]
    fn a_missing_or_unknown_content_type_is_refused_with_the_allowed_ones() {
        for content_type in [None, Some(""), Some("text/csv"), Some("application/json2")] {
            let refusal = Encoding::of(content_type, None).unwrap_err().to_string();

            for allowed in ["application/msgpack", "application/json", "application/octet-stream"] {
                assert!(refusal.contains(allowed), "{refusal}");
            }
        }
    }

    #[test]
    fn a_binary_body_needs_the_length_of_its_json_part() {
        for header in [None, Some(-1)] {
            let refusal = Encoding::of(Some("application/octet-stream"), header).unwrap_err();

            assert!(refusal.to_string().contains(JSON_BYTES_HEADER), "{refusal}");
        }
    }

    #[test]
    fn a_long_content_type_is_not_echoed_whole() {
        let refusal = Encoding::of(Some(&"x".repeat(10_000)), None).unwrap_err();

        assert!(refusal.to_string().len() < 400);
    }
}
