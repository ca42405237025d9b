//! Texts that come packed: by gzip, also in several members, or by Zstandard, also in several frames.

use std::ffi::OsStr;
use std::io::{self, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

/// A file after what was looked at of it.
pub type Peeked<R> = io::Chain<Cursor<Vec<u8>>, R>;

/// Reads as far as `is_enough` wants, and no further than a file that still grows has come by then.
///
/// # Errors
/// It cannot be read.
pub fn peek(file: &mut impl Read, is_enough: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    let mut buffer = [0; 512];
    while !is_enough(&start) {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => start.extend_from_slice(&buffer[..read]),
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(start)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Gzip,
    Zstd,
}

/// Unpacks a text if it is packed, which its first bytes say.
///
/// # Errors
/// Its name says that it is packed and it is not, or it is packed in another way.
pub fn unpacked(mut file: impl Read + Send + 'static, name: &Path) -> Result<Unpacked, PackedFault> {
    let start = peek(&mut file, |start| start.len() >= MAGIC_BYTES)?;
    let packing = packing(&start)?;
    let is_empty = start.is_empty();
    let file = Cursor::new(start).chain(file);
    let text: Box<dyn Read + Send> = match packing {
        Some(Packing::Gzip) => Box::new(Whole(MultiGzDecoder::new(BufReader::with_capacity(READ_BYTES, file)))),
        Some(Packing::Zstd) => Box::new(Whole(zstd::Decoder::new(file)?)),
        None if !is_empty && ending(name).is_some() => {
            let ending = name.extension().unwrap_or_default().to_string_lossy().into_owned();
            return Err(PackedFault::NotPacked(ending));
        }
        None => Box::new(file),
    };
    Ok(Unpacked {
        text,
        is_packed: packing.is_some(),
    })
}

pub struct Unpacked {
    pub text: Box<dyn Read + Send>,
    pub is_packed: bool,
}

/// The name without the ending of a packing.
pub fn inner_name(name: &Path) -> PathBuf {
    match ending(name) {
        Some(_) => name.with_extension(""),
        None => name.to_owned(),
    }
}

fn ending(name: &Path) -> Option<Packing> {
    match name.extension().map(OsStr::to_ascii_lowercase)?.to_str()? {
        "gz" | "gzip" => Some(Packing::Gzip),
        "zst" | "zstd" => Some(Packing::Zstd),
        _ => None,
    }
}

fn packing(start: &[u8]) -> Result<Option<Packing>, PackedFault> {
    // A frame to be skipped may come first.
    let is_skippable = |start: &[u8]| start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18];
    match start {
        [0x1f, 0x8b, ..] => Ok(Some(Packing::Gzip)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Some(Packing::Zstd)),
        start if is_skippable(start) => Ok(Some(Packing::Zstd)),
        start => match OTHERS.iter().find(|(magic, _)| start.starts_with(magic)) {
            Some((_, other)) => Err(PackedFault::Other(other)),
            None => Ok(None),
        },
    }
}

/// Says that a packed text is damaged, which the library's own words may not.
struct Whole<R>(R);

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|cause| match cause.kind() {
            io::ErrorKind::Interrupted => cause,
            io::ErrorKind::UnexpectedEof => io::Error::new(cause.kind(), "it is cut: its packed data end too early"),
            kind => io::Error::new(kind, format!("its packed data are damaged: {cause}")),
        })
    }
}

/// Why a packed text cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PackedFault {
    #[error("its name ends in .{0}, and it is packed neither by gzip nor by Zstandard")]
    NotPacked(String),
    #[error("it is {0}; a text may be packed by gzip or Zstandard")]
    Other(&'static str),
    #[error("cannot read it")]
    Io(#[from] io::Error),
}

const READ_BYTES: usize = 64 * 1024;
const MAGIC_BYTES: usize = 8;
/// What people take for a text, by its first bytes.
const OTHERS: [(&[u8], &str); 7] = [
    (b"BZh", "packed by bzip2"),
    (b"\xfd7zXZ", "packed by xz"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"PK\x03\x04", "a ZIP archive, as a spreadsheet is"),
    (b"PAR1", "a Parquet file"),
    (b"\xff\xfe", "a text in UTF-16, and no UTF-8"),
    (b"\xfe\xff", "a text in UTF-16, and no UTF-8"),
];

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut packer = GzEncoder::new(Vec::new(), Compression::default());
        packer.write_all(text).unwrap();
        packer.finish().unwrap()
    }

    fn read(bytes: &[u8], name: &str) -> Result<Vec<u8>, String> {
        let unpacked = unpacked(Cursor::new(bytes.to_vec()), Path::new(name)).map_err(|fault| fault.to_string())?;
        let mut text = Vec::new();
        let mut file = unpacked.text;
        file.read_to_end(&mut text).map_err(|cause| cause.to_string())?;
        Ok(text)
    }

    #[test]
    fn packed_texts_are_read_by_what_they_are() {
        let text = b"a,b\n1,2\n".repeat(100);
        let zstd = |text: &[u8]| zstd::encode_all(text, 0).unwrap();
        let members = [gzip(&text[..400]), gzip(&text[400..])].concat();
        let frames = [
            &[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9][..],
            &zstd(&text[..400]),
            &zstd(&text[400..]),
        ]
        .concat();

        for (bytes, name) in [
            (gzip(&text), "x.csv.gz"),
            (members, "x.csv"),
            (zstd(&text), "x.csv.zst"),
            (frames, "-"),
            (zstd(&text), "x.csv.gz"),
            (text.clone(), "x.csv"),
        ] {
            assert_eq!(read(&bytes, name), Ok(text.clone()), "{name}");
        }
        assert_eq!(inner_name(Path::new("a/x.jsonl.GZ")), Path::new("a/x.jsonl"));
        assert_eq!(inner_name(Path::new("a/x.csv")), Path::new("a/x.csv"));
    }

    #[test]
    fn a_cut_at_any_byte_is_no_end() {
        let text = b"a,b\n1,2\n".repeat(20);
        for whole in [gzip(&text), zstd::encode_all(&text[..], 0).unwrap()] {
            for length in MAGIC_BYTES..whole.len() {
                let fault = read(&whole[..length], "x.csv").unwrap_err();
                assert!(fault.contains("it is cut"), "{length}: {fault}");
            }
        }
    }

    #[test]
    fn what_is_not_packed_so_is_named() {
        let damaged = {
            let mut bytes = gzip(b"a,b\n1,2\n");
            let checksum = bytes.len() - 8;
            bytes[checksum] ^= 0xff;
            bytes
        };
        for (bytes, name, sentence) in [
            (&b"a,b\n"[..], "x.csv.gz", "its name ends in .gz"),
            (b"BZh91AY", "x.csv.bz2", "packed by bzip2"),
            (b"PK\x03\x04....", "x.csv", "a ZIP archive"),
            (b"\xff\xfea\0", "x.csv", "UTF-16"),
            (&damaged, "x.csv.gz", "damaged"),
            (
                &[gzip(b"a\n"), b"rubbish behind it".to_vec()].concat(),
                "x.csv.gz",
                "damaged",
            ),
        ] {
            let fault = read(bytes, name).unwrap_err();
            assert!(fault.contains(sentence), "{fault}");
        }
    }
}
