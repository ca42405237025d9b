//! What the names of files promise: an ending of another form than what is written is refused.

use std::path::{Path, PathBuf};

use super::answers::Format;

/// The ending of a name, in small letters.
pub fn ending(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

/// Refuses a name that ends in another form than those that are written; where `--format` says the form, only one that promises
/// another.
///
/// # Errors
/// It ends so.
pub fn check_output(path: &Path, format: Option<Format>) -> Result<(), EndingError> {
    let is_other = match (Format::named(path), format) {
        (Some(_), _) => false,
        (None, None) => true,
        (None, Some(_)) => ending(path).is_some_and(|ending| OTHER_FORMS.contains(&&*ending)),
    };
    if is_other {
        Err(EndingError::Output(path.to_owned()))
    } else {
        Ok(())
    }
}

/// Refuses a name that promises another form.
///
/// # Errors
/// It does not end as JSON lines do.
pub fn check_failures(path: &Path) -> Result<(), EndingError> {
    let is_named = path.extension().is_some() && Format::of(Some(path)) == Format::Jsonl;
    match is_named.then(|| check_output(path, None)) {
        Some(Ok(())) => Ok(()),
        Some(Err(_)) | None => Err(EndingError::Failures(path.to_owned())),
    }
}

/// The name of a file promises what will not be in it.
#[derive(Debug, thiserror::Error)]
pub enum EndingError {
    #[error(
        "--output {} must end in .npy, .csv or .jsonl, as what --format writes does; nothing else is written, and nothing is packed", .0.display()
    )]
    Output(PathBuf),
    #[error("--failures {} must end in .jsonl: it is written as JSON lines", .0.display())]
    Failures(PathBuf),
}

/// Endings of forms and packings that are not written.
const OTHER_FORMS: [&str; 24] = [
    "parquet", "npz", "tsv", "json", "gz", "gzip", "zst", "zstd", "bz2", "xz", "zip", "7z", "tar", "xls", "xlsx",
    "ods", "feather", "arrow", "ipc", "orc", "avro", "h5", "hdf5", "pkl",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_promise_another_form_are_refused() {
        for (name, format, is_taken) in [
            ("y.csv", None, true),
            ("y.NPY", None, true),
            ("y.ndjson", None, true),
            ("y.csv", Some(Format::Csv), true),
            ("y", Some(Format::Npy), true),
            ("y.txt", Some(Format::Csv), true),
            ("y", None, false),
            ("y.txt", None, false),
            ("y.parquet", None, false),
            ("y.csv.gz", None, false),
            ("y.npz", None, false),
            ("y.json", None, false),
            ("y.csv.gz", Some(Format::Csv), false),
            ("y.csv", Some(Format::Jsonl), true),
        ] {
            let checked = check_output(Path::new(name), format);

            assert_eq!(checked.is_ok(), is_taken, "{name}");
            if let Err(refused) = checked {
                let sentence = refused.to_string();
                assert!(
                    sentence.contains(name) && sentence.contains(".npy, .csv or .jsonl"),
                    "{sentence}"
                );
            }
        }
    }
}
