//! The digest of a model file: proof that what is loaded is what its owner released.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// SHA-256 of a `model.onnx`, written as `sha256:<64 hexadecimal digits>`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Reads the file once, in pieces: a model may be larger than the memory we want to spend.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut hasher = Hasher(Sha256::new());
        io::copy(&mut file, &mut hasher)?;
        Ok(Self(hasher.0.finalize().into()))
    }

    /// Compares the file with this digest.
    ///
    /// Covers this one file: weights in external data files are not part of it.
    /// # Errors
    /// `DigestError::Mismatch` if the file is another one, `DigestError::Unreadable` if it cannot be read.
    pub fn check(self, path: &Path) -> Result<(), DigestError> {
        let found = Self::of_file(path).map_err(|source| DigestError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        if found == self {
            return Ok(());
        }
        Err(DigestError::Mismatch {
            path: path.to_owned(),
            stated: self,
            found,
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let digits = text.strip_prefix(PREFIX).ok_or(NotADigest)?.as_bytes();
        // `from_str_radix` would take a sign as well, hence the look at every digit.
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(NotADigest);
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = str::from_utf8(pair).map_err(|_| NotADigest)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| NotADigest)?;
        }
        Ok(Self(digest))
    }
}

/// The text is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a digest; allowed is \"sha256:\" and 64 hexadecimal digits, as `sha256sum model.onnx` prints them")]
pub struct NotADigest;

/// Why a model file was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    #[error("cannot read {path} to check its digest")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} has the digest {found}, but model.toml states {stated}: restore the file, or state its new digest")]
    Mismatch {
        path: PathBuf,
        stated: Digest,
        found: Digest,
    },
}

/// Lets `io::copy` write into the hash.
struct Hasher(Sha256);

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const PREFIX: &str = "sha256:";

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of "abc". Source: FIPS 180-2, appendix B.1.
    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn file_with(content: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, content).unwrap();
        (folder, path)
    }

    #[test]
    fn a_file_with_the_stated_digest_passes() {
        let (_folder, path) = file_with("abc");

        ABC.parse::<Digest>().unwrap().check(&path).unwrap();
        ABC.to_uppercase()
            .replace("SHA256", "sha256")
            .parse::<Digest>()
            .unwrap()
            .check(&path)
            .unwrap();
    }

    #[test]
    fn another_file_is_refused_with_both_digests_and_the_path() {
        let (_folder, path) = file_with("abd");

        let error = ABC.parse::<Digest>().unwrap().check(&path).unwrap_err().to_string();

        assert!(error.contains(ABC), "{error}");
        assert!(
            error.contains("sha256:a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9"),
            "{error}"
        );
        assert!(error.contains("model.onnx"), "{error}");
    }

    #[test]
    fn a_file_that_is_gone_is_an_error_with_its_path() {
        let error = ABC
            .parse::<Digest>()
            .unwrap()
            .check(Path::new("gone.onnx"))
            .unwrap_err();

        assert!(matches!(&error, DigestError::Unreadable { path, .. } if path == Path::new("gone.onnx")));
    }

    #[test]
    fn a_digest_reads_back_as_it_is_printed() {
        assert_eq!(ABC.parse::<Digest>().unwrap().to_string(), ABC);
    }

    #[test]
    fn anything_but_sha256_and_64_digits_is_no_digest() {
        let signed = ABC.replace("ba", "+a");
        let umlauts = format!("sha256:{}", "ä".repeat(32));
        for text in [
            "",
            "sha256:",
            "sha256:00",
            "md5:00",
            &ABC[7..],
            &ABC[..70],
            &signed,
            &umlauts,
        ] {
            assert_eq!(text.parse::<Digest>(), Err(NotADigest), "{text}");
        }
    }
}
