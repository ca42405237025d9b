//! TLS towards the broker: which authorities are trusted, which certificate is shown, and what was wrong if it fails.
//!
//! All files are read at every try, so that a certificate that is replaced on disk is used for the next connection.

use std::io;
use std::path::{Path, PathBuf};

use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::{AlertDescription, CertificateError, RootCertStore};

use crate::config::BrokerConfig;

/// Why there can be no TLS, whatever the broker says.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{key} names {}, which cannot be read", path.display())]
    Unreadable {
        key: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{key} names {}, which holds no {wanted} in PEM format", path.display())]
    NotPem {
        key: &'static str,
        path: PathBuf,
        wanted: &'static str,
    },
    #[error("{key} names {}, of which certificate {number} cannot be used", path.display())]
    BadAuthority {
        key: &'static str,
        path: PathBuf,
        /// Which of the file's certificates, counted from 1.
        number: usize,
        #[source]
        cause: rustls::Error,
    },
    #[error("{KEY} names {}, which is not the key of the certificate in {} ({CERTIFICATE})", key.display(), certificate.display())]
    OtherKey { certificate: PathBuf, key: PathBuf },
    #[error("the certificate in {} ({CERTIFICATE}) cannot be used with the key in {} ({KEY})", certificate.display(), key.display())]
    Unusable {
        certificate: PathBuf,
        key: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the certificate authorities of this system cannot be loaded; name the broker's in {AUTHORITIES}")]
    System(#[source] io::Error),
}

impl TlsError {
    /// True of what stays as it is until someone changes a file; one that is not there may only come later.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Unreadable { cause, .. } => cause.kind() != io::ErrorKind::NotFound,
            Self::NotPem { .. } | Self::BadAuthority { .. } | Self::OtherKey { .. } | Self::Unusable { .. } => true,
            Self::System(_) => false,
        }
    }
}

/// Reads the files of the moment.
///
/// # Errors
/// A file cannot be read or used; it is named with its key.
pub fn connector(config: &BrokerConfig) -> Result<RustlsConnector, TlsError> {
    let authorities = match &config.ca_file {
        Some(path) => RustlsConnectorConfig::default().with_parsable_certificates(authorities(path)?),
        None => RustlsConnectorConfig::new_with_native_certs().map_err(TlsError::System)?,
    };
    let (Some(certificate), Some(key)) = (&config.client_certificate_file, &config.client_key_file) else {
        return authorities.connector_with_no_client_auth().map_err(TlsError::System);
    };
    let chain = certificates(CERTIFICATE, certificate)?;
    let private = private_key(key)?;
    authorities
        .connector_with_single_cert(chain, private)
        .map_err(|cause| match rustls_error(&cause) {
            Some(rustls::Error::InconsistentKeys(_)) => TlsError::OtherKey {
                certificate: certificate.clone(),
                key: key.clone(),
            },
            _ => TlsError::Unusable {
                certificate: certificate.clone(),
                key: key.clone(),
                cause,
            },
        })
}

/// The authorities of `broker.ca_file`, each proved to be usable: the connector would skip one that is not.
fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = certificates(AUTHORITIES, path)?;
    let mut store = RootCertStore::empty();
    for (index, certificate) in certificates.iter().enumerate() {
        store.add(certificate.clone()).map_err(|cause| TlsError::BadAuthority {
            key: AUTHORITIES,
            path: path.to_owned(),
            number: index + 1,
            cause,
        })?;
    }
    Ok(certificates)
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&read(key, path)?).collect();
    // What the parser says may quote the file.
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(|| TlsError::NotPem {
            key,
            path: path.to_owned(),
            wanted: "certificate",
        })
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(KEY, path)?).map_err(|_| TlsError::NotPem {
        key: KEY,
        path: path.to_owned(),
        wanted: "unencrypted private key",
    })
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|cause| TlsError::Unreadable {
        key,
        path: path.to_owned(),
        cause,
    })
}

/// What is wrong with a certificate, as the end of a sentence.
#[derive(Debug, PartialEq, Eq)]
pub enum Problem {
    /// With the broker's.
    Theirs(String),
    /// With ours, or with there being none.
    Ours(String),
}

/// The problem with a certificate that made a handshake fail, if it was one.
pub fn problem(error: &io::Error, host: &str, config: &BrokerConfig) -> Option<Problem> {
    match rustls_error(error)? {
        rustls::Error::InvalidCertificate(cause) => Some(Problem::Theirs(theirs(cause, host, config))),
        rustls::Error::AlertReceived(alert) => ours(*alert, config).map(Problem::Ours),
        _ => None,
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn theirs(cause: &CertificateError, host: &str, config: &BrokerConfig) -> String {
    match cause {
        CertificateError::UnknownIssuer => match &config.ca_file {
            Some(path) => format!(
                "none of the authorities in {} ({AUTHORITIES}) issued it",
                path.display()
            ),
            None => format!("none of the system's authorities issued it; {AUTHORITIES} can name another"),
        },
        CertificateError::ExpiredContext { time, not_after } => {
            format!("it expired {} ago", lapse(*not_after, *time))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            format!("it is valid only in {} from now", lapse(*time, *not_before))
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            format!("it is not for `{host}`, but for {}", presented.join(", "))
        }
        other => other.to_string(),
    }
}

/// The broker's alert, if it is about our certificate.
fn ours(alert: AlertDescription, config: &BrokerConfig) -> Option<String> {
    let what = match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => "it asks for one",
        AlertDescription::CertificateExpired => "it has expired",
        AlertDescription::CertificateRevoked => "it was revoked",
        AlertDescription::UnknownCA => "it trusts none of the authorities that issued it",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => "it does not accept it",
        // This is also how a broker of TLS 1.2 says that it wants one.
        AlertDescription::HandshakeFailure if config.client_certificate_file.is_none() => "it may ask for one",
        _ => return None,
    };
    Some(what.to_owned())
}

fn lapse(earlier: UnixTime, later: UnixTime) -> String {
    let seconds = later.as_secs().saturating_sub(earlier.as_secs());
    match seconds {
        0..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

const AUTHORITIES: &str = "broker.ca_file";
const CERTIFICATE: &str = "broker.client_certificate_file";
const KEY: &str = "broker.client_key_file";

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use tempfile::NamedTempFile;

    use super::*;
    use crate::config::Config;
    use crate::error::chain;

    fn file(content: &str) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file
    }

    fn pair() -> (String, String) {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    }

    /// What is said of these files, in the order of the keys; an empty path is no file.
    fn said(paths: [&Path; 3]) -> String {
        let uri = ("broker.uri", "amqps://broker".to_owned());
        let keys = [AUTHORITIES, CERTIFICATE, KEY];
        let files = keys.into_iter().zip(paths.map(|path| path.display().to_string()));
        let overrides: Vec<_> = [uri].into_iter().chain(files).collect();
        let config = Config::from_overrides(&overrides).unwrap().broker;
        connector(&config).map_or_else(|error| chain(&error), |_| "nothing".to_owned())
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_its_key_and_not_quoted() {
        let (certificate, key) = pair();
        let (_, other_key) = pair();
        let none = Path::new("");
        let missing = Path::new("/nonexistent/file.pem");
        let [good, private, other] = [&certificate, &key, &other_key].map(|text| file(text));
        let (good, private, other) = (good.path(), private.path(), other.path());
        let garbage = file("hunter2");
        let cut = file(&certificate.replace("END", "hunter2"));
        let no_certificate = file("-----BEGIN CERTIFICATE-----\naHVudGVyMg==\n-----END CERTIFICATE-----\n");

        assert_eq!(said([good, good, private]), "nothing");
        for (paths, key, what) in [
            ([missing, none, none], AUTHORITIES, "cannot be read"),
            ([Path::new("/"), none, none], AUTHORITIES, "cannot be read"),
            ([garbage.path(), none, none], AUTHORITIES, "holds no certificate"),
            ([cut.path(), none, none], AUTHORITIES, "holds no certificate"),
            ([private, none, none], AUTHORITIES, "holds no certificate"),
            (
                [no_certificate.path(), none, none],
                AUTHORITIES,
                "certificate 1 cannot be used",
            ),
            ([good, missing, private], CERTIFICATE, "cannot be read"),
            ([good, garbage.path(), private], CERTIFICATE, "holds no certificate"),
            ([good, good, missing], KEY, "cannot be read"),
            ([good, good, garbage.path()], KEY, "holds no unencrypted private key"),
            ([good, good, other], KEY, "is not the key of the certificate"),
            (
                [good, no_certificate.path(), private],
                CERTIFICATE,
                "cannot be used with the key",
            ),
        ] {
            let said = said(paths);

            assert!(said.contains(key) && said.contains(what), "{paths:?}: {said}");
            assert!(!said.contains("hunter2") && !said.contains("aHVudGVyMg"), "{said}");
        }
    }

    #[test]
    fn every_problem_with_a_certificate_says_what_to_look_at() {
        let config = Config::from_overrides(&[]).unwrap().broker;
        let at = |days: u64| UnixTime::since_unix_epoch(std::time::Duration::from_secs(days * 86_400));
        let wrapped = |error: rustls::Error| io::Error::new(io::ErrorKind::InvalidData, error);
        let their = |cause| wrapped(rustls::Error::InvalidCertificate(cause));
        let our = |alert| wrapped(rustls::Error::AlertReceived(alert));
        let expired = CertificateError::ExpiredContext {
            time: at(10),
            not_after: at(7),
        };
        let early = CertificateError::NotValidYetContext {
            time: at(7),
            not_before: at(8),
        };

        for (error, words) in [
            (their(expired), "it expired 3 days ago"),
            (their(early), "it is valid only in 24 hours from now"),
            (
                their(CertificateError::UnknownIssuer),
                "broker.ca_file can name another",
            ),
            (our(AlertDescription::CertificateRequired), "it asks for one"),
            (
                our(AlertDescription::UnknownCA),
                "it trusts none of the authorities that issued it",
            ),
        ] {
            let (Problem::Theirs(said) | Problem::Ours(said)) = problem(&error, "broker", &config).unwrap();
            assert!(said.contains(words), "{said}");
        }
        assert_eq!(problem(&io::ErrorKind::ConnectionReset.into(), "broker", &config), None);
        assert_eq!(problem(&our(AlertDescription::InternalError), "broker", &config), None);
    }
}
