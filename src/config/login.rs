//! User and password in files of their own, as Kubernetes mounts them from a secret.
//!
//! They are taken as they stand: nobody has to percent-encode a password, which no template language does right.

use std::path::{Path, PathBuf};

use super::keys::BrokerConfig;
use super::uri::Secret;

/// A user and its password, in the place of those of the URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub password: Secret<String>,
}

impl BrokerConfig {
    /// What `username_file` and `password_file` hold at this moment; `None` where they are not configured.
    ///
    /// To be asked again at every attempt to connect, as [`BrokerConfig::current_uri`].
    /// # Errors
    /// `LoginFileError` if one of them cannot be read, or is empty.
    pub fn current_login(&self) -> Result<Option<Login>, LoginFileError> {
        let (Some(user), Some(password)) = (&self.username_file, &self.password_file) else {
            return Ok(None);
        };
        Ok(Some(Login {
            user: held("broker.username_file", user)?,
            password: Secret::new(held("broker.password_file", password)?),
        }))
    }
}

/// The text of a file without the end of its line, which editors and `echo` add.
fn held(key: &'static str, path: &Path) -> Result<String, LoginFileError> {
    let read = std::fs::read_to_string(path);
    let text = read.map_err(|source| LoginFileError::Unreadable {
        key,
        path: path.to_owned(),
        source,
    })?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        let path = path.to_owned();
        return Err(LoginFileError::Empty { key, path });
    }
    Ok(text.to_owned())
}

/// Why there is no user or no password. Never quotes what a file holds.
#[derive(Debug, thiserror::Error)]
pub enum LoginFileError {
    #[error("{key}: cannot read {}", path.display())]
    Unreadable {
        key: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{key}: {} is empty", path.display())]
    Empty { key: &'static str, path: PathBuf },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn both_files_are_read_again_every_time_and_taken_as_they_stand() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let overrides = [
            ("broker.username_file", path("user").display().to_string()),
            ("broker.password_file", path("password").display().to_string()),
        ];
        let broker = Config::from_overrides(&overrides).unwrap().broker;

        let missing = broker.current_login().unwrap_err();
        std::fs::write(path("user"), "worker\n").unwrap();
        std::fs::write(path("password"), "p@ss/w%6Frd: #?\r\n").unwrap();
        let first = broker.current_login().unwrap().unwrap();
        std::fs::write(path("password"), " other ").unwrap();
        let second = broker.current_login().unwrap().unwrap();
        std::fs::write(path("password"), "\n").unwrap();
        let empty = broker.current_login().unwrap_err();

        assert!(matches!(
            missing,
            LoginFileError::Unreadable {
                key: "broker.username_file",
                ..
            }
        ));
        assert_eq!(first.user, "worker");
        assert_eq!(first.password.expose(), "p@ss/w%6Frd: #?");
        assert_eq!(second.password.expose(), " other ");
        assert!(!format!("{second:?}").contains("other"));
        assert!(matches!(
            empty,
            LoginFileError::Empty {
                key: "broker.password_file",
                ..
            }
        ));
    }

    #[test]
    fn without_the_files_the_uri_has_the_login() {
        let broker = Config::from_overrides(&[]).unwrap().broker;

        assert_eq!(broker.current_login().unwrap(), None);
    }
}
