//! `inferq dead list`.

use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::letter::{Letter, printable};
use super::{DeadError, Work, print};

/// A dead letter, as `list` shows it.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    pub model: String,
    /// `message_id`, or else `correlation_id`.
    pub id: Option<String>,
    pub code: String,
    pub error: Option<String>,
    pub failed_at: Option<String>,
    pub worker: Option<String>,
    pub model_version: Option<String>,
    pub version_pinned: Option<bool>,
    /// Of the job, before it died.
    pub deliveries: Option<i64>,
    pub content_type: Option<String>,
    pub body_bytes: usize,
}

impl Listed {
    pub fn new(letter: &Letter) -> Self {
        let reason = letter.reason();
        Self {
            model: letter.model.clone(),
            id: letter.ids().next().map(str::to_owned),
            code: reason.code,
            error: reason.error,
            failed_at: reason.failed_at.map(time),
            worker: reason.worker,
            model_version: reason.version,
            version_pinned: reason.version_pinned,
            deliveries: reason.deliveries,
            content_type: letter.properties.content_type().as_ref().map(ToString::to_string),
            body_bytes: letter.body.len(),
        }
    }
}

pub(super) async fn list(work: &Work<'_>, limit: u32, json: bool, out: &mut dyn Write) -> Result<(), DeadError> {
    let listed = work.look(limit, |letter| Listed::new(&letter)).await?;
    print(&listed, json, table, out)?;
    say_if_cut(listed.len(), limit);
    Ok(())
}

/// Not part of the answer: a script asks for JSON and counts.
pub(super) fn say_if_cut(shown: usize, limit: u32) {
    if shown == limit as usize {
        eprintln!("inferq: stopped at --limit {limit}; there may be more");
    }
}

/// RFC 3339, in UTC.
fn time(unix_s: u64) -> String {
    let latest = Duration::from_secs(LAST_SECOND);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix_s).min(latest)).to_string()
}

fn table(letters: &[Listed]) -> String {
    let mut rows = vec![["MODEL", "CODE", "FAILED AT", "DELIVERIES", "BYTES", "ID", "ERROR"].map(str::to_owned)];
    rows.extend(letters.iter().map(|letter| {
        let or_none = |text: Option<&str>, chars| text.map_or_else(|| "-".to_owned(), |text| printable(text, chars));
        [
            letter.model.clone(),
            printable(&letter.code, CODE_CHARS),
            or_none(letter.failed_at.as_deref(), ID_CHARS),
            letter
                .deliveries
                .map_or_else(|| "-".to_owned(), |count| count.to_string()),
            letter.body_bytes.to_string(),
            or_none(letter.id.as_deref(), ID_CHARS),
            or_none(letter.error.as_deref(), ERROR_CHARS),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3), width(4), width(5), 0];
    let line = |row: &[String; 7]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ") + "\n"
    };
    rows.iter().map(line).collect()
}

const CODE_CHARS: usize = 32;
const ID_CHARS: usize = 64;
const ERROR_CHARS: usize = 120;
/// The end of the year 9999: the last that has four digits, which the format needs.
const LAST_SECOND: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_timestamp_is_a_time() {
        assert_eq!(time(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(time(u64::MAX), "9999-12-31T23:59:59Z");
    }
}
