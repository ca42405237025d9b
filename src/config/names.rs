//! Names that are no key: which are not meant for us, and what the others were probably meant to be.

use std::ffi::OsStr;
use std::fmt::Display;

use super::Fault;
use super::keys::keys;

/// Names the configuration file.
pub(super) const FILE_VARIABLE: &str = "INFERQ_CONFIG";

/// Variables for the tests, which are no settings although they begin as settings do.
const RESERVED_PREFIX: &str = "INFERQ_TEST_";

/// Whether a variable that begins as ours do is none of the settings.
pub(super) fn is_reserved(name: &str, value: &OsStr) -> bool {
    name == FILE_VARIABLE || name.starts_with(RESERVED_PREFIX) || is_service_link(name, value)
}

/// Kubernetes describes every service of the namespace to every container: with a service named `inferq` or `inferq-…`
/// by `INFERQ_SERVICE_HOST`, `INFERQ_PORT_9090_TCP` and the like. Nobody set those, so nobody can be told off for them.
///
/// # Source
/// Kubernetes documentation, "Service", section "Discovering services, environment variables".
fn is_service_link(name: &str, value: &OsStr) -> bool {
    let holds_address = || value.to_str().is_some_and(|value| value.contains("://"));
    let names_protocol = || ["_TCP", "_UDP", "_SCTP"].iter().any(|word| name.contains(word));
    !name.contains("__")
        && (name.ends_with("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || (name.ends_with("_PORT") && holds_address())
            || (name.contains("_PORT_") && names_protocol()))
}

pub(super) fn unknown_key(path: &str, origin: String) -> Fault {
    let meant = nearest(path, keys().map(|key| (key.path.to_owned(), key.path))).or_else(|| {
        // The right name in the wrong section, or in none.
        let name = path.rsplit('.').next().unwrap_or(path);
        nearest(name, keys().map(|key| (key.name.to_owned(), key.path)))
    });
    Fault {
        wrong: "is not a key".to_owned(),
        allowed: suggestion(meant),
        key: path.to_owned(),
        origin,
    }
}

pub(super) fn unknown_variable(name: String) -> Fault {
    let candidates = keys().map(|key| (key.variable(), key.variable()));
    Fault {
        wrong: "is not a variable of this program".to_owned(),
        allowed: suggestion(nearest(&name, candidates)),
        key: name,
        origin: "environment".to_owned(),
    }
}

fn suggestion<T: Display>(nearest: Option<T>) -> String {
    match nearest {
        Some(name) => format!("did you mean {name}?"),
        None => "allowed are those that `inferq config example` lists".to_owned(),
    }
}

/// What goes with the candidate that is nearest to `name`, if one is near: at most a third of its letters differ.
fn nearest<T>(name: &str, candidates: impl Iterator<Item = (String, T)>) -> Option<T> {
    candidates
        .map(|(candidate, meant)| (edit_distance(name, &candidate), candidate.len(), meant))
        .filter(|(distance, letters, _)| distance * 3 <= *letters)
        .min_by_key(|(distance, _, _)| *distance)
        .map(|(_, _, meant)| meant)
}

/// Letters to insert, remove or replace to come from one text to the other (Levenshtein).
fn edit_distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for column in 0..to.len() {
            let replaced = diagonal + usize::from(to[column] != letter);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}
