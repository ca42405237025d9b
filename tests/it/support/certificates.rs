//! Certificates of a private authority, made anew for every test run.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use tempfile::TempDir;

/// An authority, and the folder that its certificates lie in: `ca.pem`, and a `.pem` and a `.key` for each name.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// Until when a certificate is valid.
#[derive(Clone, Copy)]
pub enum Validity {
    Now,
    Expired,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("a writable folder");
        Self { issuer, folder }
    }

    /// Issues `server.pem` for a broker that is reached as `localhost`.
    pub fn server(&self, validity: Validity) {
        self.issue("server", "localhost", ExtendedKeyUsagePurpose::ServerAuth, validity);
    }

    /// Issues `file`.pem for the user `name`.
    pub fn client(&self, file: &str, name: &str, validity: Validity) {
        self.issue(file, name, ExtendedKeyUsagePurpose::ClientAuth, validity);
    }

    fn issue(&self, file: &str, name: &str, usage: ExtendedKeyUsagePurpose, validity: Validity) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        if matches!(validity, Validity::Expired) {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 12, 31);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        std::fs::write(self.path(&format!("{file}.pem")), certificate.pem()).expect("a writable folder");
        std::fs::write(self.path(&format!("{file}.key")), key.serialize_pem()).expect("a writable folder");
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder().join(file)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}
