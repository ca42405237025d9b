//! `inferq models check`.

use std::fmt;

use serde::Serialize;

use super::Load;
use super::rows::{ShownRows, off_because, short_reason};
use crate::model::batching::Batching;
use crate::model::golden::GoldenReport;
use crate::model::proof::{Proof, prove};
use crate::model::repository::{LeftOut, NotServed, Repository, VersionFiles};
use crate::model::settings::{Settings, parse_version};
use crate::model::signature::Signature;

/// What `check` found for one version.
#[derive(Debug, Serialize)]
pub(super) struct Checked {
    name: String,
    version: Place,
    ok: bool,
    /// True of a model that is not for this program: that is no failure.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    foreign: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    golden_rows: Option<usize>,
    /// How much of the tolerance the worst golden element takes: 1 is all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    golden_deviation: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<ShownRows>,
    batching: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    batching_off_because: Option<String>,
    /// What in its graph belongs to training or draws random numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    /// Outputs that are left out, since they are no tensors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    outputs_not_served: Vec<String>,
}

/// The folder of a model that was checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
enum Place {
    Model,
    Version(u64),
    /// A folder that cannot be a version, or holds none.
    Other(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model => Ok(()),
            Self::Version(version) => write!(f, " {version}"),
            Self::Other(folder) => write!(f, " {folder}"),
        }
    }
}

pub(super) fn check(found: &Repository, load: &mut Load<'_>) -> Vec<Checked> {
    let mut checks = Vec::new();
    for model in &found.models {
        for files in &model.versions {
            let seen = check_version(files, &model.settings, load);
            checks.push(Checked::of(&model.name, files.version, seen));
        }
    }
    checks.extend(found.left_out.iter().map(Checked::left_out));
    checks.sort_by(|one, other| (&one.name, &one.version).cmp(&(&other.name, &other.version)));
    checks
}

/// What loading and running a version has shown.
struct SeenVersion {
    proof: Proof,
    signature: Signature,
    unserved: Vec<String>,
}

fn check_version(files: &VersionFiles, settings: &Settings, load: &mut Load<'_>) -> anyhow::Result<SeenVersion> {
    files.check_digest()?;
    let mut loaded = load(settings, files)?;
    Ok(SeenVersion {
        proof: prove(loaded.engine.as_mut(), files, settings)?,
        signature: loaded.engine.signature().clone(),
        unserved: loaded.unserved,
    })
}

impl Checked {
    fn new(name: &str, version: Place) -> Self {
        Self {
            name: name.to_owned(),
            version,
            ok: false,
            foreign: false,
            error: None,
            golden_rows: None,
            golden_deviation: None,
            rows: None,
            batching: false,
            batching_off_because: None,
            warnings: Vec::new(),
            outputs_not_served: Vec::new(),
        }
    }

    fn left_out(left_out: &LeftOut) -> Self {
        let place = match &left_out.version {
            None => Place::Model,
            Some(version) => parse_version(version).map_or_else(|| Place::Other(version.clone()), Place::Version),
        };
        Self {
            foreign: left_out.fault.reason() == NotServed::Foreign,
            error: Some(left_out.fault.to_string()),
            ..Self::new(&left_out.model, place)
        }
    }

    pub(super) fn failed(&self) -> bool {
        !self.ok && !self.foreign
    }

    fn of(name: &str, version: u64, seen: anyhow::Result<SeenVersion>) -> Self {
        let mut checked = Self::new(name, Place::Version(version));
        checked.ok = seen.is_ok();
        match seen {
            // With the whole chain of causes, on one line.
            Err(error) => checked.error = Some(format!("{error:#}")),
            Ok(SeenVersion {
                proof: Proof {
                    golden, rows, unsteady, ..
                },
                signature,
                unserved,
            }) => {
                checked.warnings = unsteady;
                checked.outputs_not_served = unserved;
                checked.golden_rows = golden.as_ref().map(|report| report.rows);
                checked.golden_deviation = golden.as_ref().map(share_of_tolerance);
                checked.rows = Some(ShownRows::of(&rows, &signature));
                checked.batching = rows.batching == Batching::Rows;
                checked.batching_off_because = off_because(rows.batching);
            }
        }
        checked
    }
}

fn share_of_tolerance(report: &GoldenReport) -> f64 {
    let deviation = report.largest.as_ref().map(|place| &place.deviation);
    let some = deviation.filter(|deviation| deviation.deviation > 0.0);
    some.map_or(0.0, |deviation| deviation.deviation / deviation.allowed)
}

pub(super) fn text(checks: &[Checked]) -> String {
    checks
        .iter()
        .map(|check| format!("{}{}: {}\n", check.name, check.version, verdict(check)))
        .collect()
}

fn verdict(check: &Checked) -> String {
    if let Some(error) = &check.error {
        let word = if check.foreign { "not served" } else { "FAILED" };
        return format!("{word}: {error}");
    }
    let golden = match (check.golden_rows, check.golden_deviation) {
        (Some(rows), Some(share)) => format!(
            "golden vectors (rows: {rows}) at {:.1} % of the tolerance",
            share * 100.0
        ),
        _ => "no golden vectors".to_owned(),
    };
    let mut verdict = format!("ok; {golden}");
    if let Some(rows) = &check.rows {
        verdict += &format!("; rows: {rows}");
    }
    verdict += &match (&check.batching_off_because, &check.rows) {
        (Some(reason), Some(rows)) => format!("; not batched: {}", short_reason(rows, reason)),
        (Some(reason), None) => format!("; not batched: {reason}"),
        (None, _) => "; batched".to_owned(),
    };
    for warning in &check.warnings {
        verdict += &format!("; {warning}");
    }
    if !check.outputs_not_served.is_empty() {
        let left_out = check.outputs_not_served.join(", ");
        verdict += &format!("; left out, since they are no tensors: {left_out}");
    }
    verdict
}
