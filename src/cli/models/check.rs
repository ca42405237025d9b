//! `inferq models check`.

use serde::Serialize;

use super::Load;
use super::rows::{ShownRows, off_because, short_reason};
use crate::model::batching::Batching;
use crate::model::golden::GoldenReport;
use crate::model::proof::{Proof, prove};
use crate::model::repository::{ModelFiles, VersionFiles};
use crate::model::settings::Settings;
use crate::model::signature::Signature;

/// What `check` found for one version.
#[derive(Debug, Serialize)]
pub(super) struct Checked {
    name: String,
    version: u64,
    ok: bool,
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
}

pub(super) fn check(models: &[ModelFiles], load: &mut Load<'_>) -> Vec<Checked> {
    let mut checks = Vec::new();
    for model in models {
        for files in &model.versions {
            let proof = check_version(files, &model.settings, load);
            checks.push(Checked::of(&model.name, files.version, proof));
        }
    }
    checks
}

fn check_version(files: &VersionFiles, settings: &Settings, load: &mut Load<'_>) -> anyhow::Result<(Proof, Signature)> {
    files.check_digest()?;
    let mut loaded = load(settings, files)?;
    let proof = prove(loaded.engine.as_mut(), files, settings)?;
    Ok((proof, loaded.engine.signature().clone()))
}

impl Checked {
    fn of(name: &str, version: u64, proof: anyhow::Result<(Proof, Signature)>) -> Self {
        let mut checked = Self {
            name: name.to_owned(),
            version,
            ok: proof.is_ok(),
            error: None,
            golden_rows: None,
            golden_deviation: None,
            rows: None,
            batching: false,
            batching_off_because: None,
        };
        match proof {
            // With the whole chain of causes, on one line.
            Err(error) => checked.error = Some(format!("{error:#}")),
            Ok((Proof { golden, rows, .. }, signature)) => {
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
        .map(|check| format!("{} {}: {}\n", check.name, check.version, verdict(check)))
        .collect()
}

fn verdict(check: &Checked) -> String {
    if let Some(error) = &check.error {
        return format!("FAILED: {error}");
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
    match (&check.batching_off_because, &check.rows) {
        (Some(reason), Some(rows)) => verdict + "; not batched: " + &short_reason(rows, reason),
        (Some(reason), None) => verdict + "; not batched: " + reason,
        (None, _) => verdict + "; batched",
    }
}
