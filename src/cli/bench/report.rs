//! What was measured, for people as a table and for scripts as JSON. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::advice::Advice;
use super::capacity::Limit;
use super::drive::{Jobs, Load, Pace};
use super::rates::Stage;
use super::schedule::Spacing;
use super::tally::{Counts, Micros, Parts, Tally};
use crate::wire::status::Status;

/// The object of `--json`. Keys stay, new ones may come.
#[derive(Debug, Serialize)]
pub struct Report {
    pub inferq_version: &'static str,
    pub load: LoadReport,
    /// Ctrl-C came before the end.
    pub interrupted: bool,
    /// From the first measured job to the last answer.
    pub lasted_seconds: f64,
    pub jobs: JobsReport,
    pub warm_up: JobsReport,
    pub throughput: Throughput,
    /// Of jobs answered with a result.
    pub latency: BTreeMap<&'static str, Quantiles>,
    pub models: Vec<ModelReport>,
    /// What keeps the figures from being what they seem.
    pub remarks: Vec<String>,
    /// A few of the reasons why jobs failed or were wrong.
    pub reasons: Vec<String>,
    /// Only of `--find-capacity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
}

#[derive(Debug, Serialize)]
pub struct LoadReport {
    pub mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spacing: Option<Spacing>,
    pub stages: Vec<StageReport>,
    pub seed: u64,
    pub producers: usize,
    pub in_flight_max: usize,
    pub body: &'static str,
    pub warm_up_seconds: f64,
    pub timeout_ms: u64,
    pub deadline_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
pub struct StageReport {
    pub from_jobs_per_second: f64,
    pub to_jobs_per_second: f64,
    pub seconds: Option<f64>,
}

/// Every job is in exactly one of `answered`, `unroutable`, `queue_full`, `lost`, `unreadable`, `interrupted`, `not_sent`.
#[derive(Debug, Serialize)]
pub struct JobsReport {
    pub due: u64,
    pub sent: u64,
    pub not_sent: u64,
    /// Sent late because as many as allowed were under way.
    pub held: u64,
    pub answered: BTreeMap<&'static str, u64>,
    pub unroutable: u64,
    pub queue_full: u64,
    pub lost: u64,
    pub unreadable: u64,
    pub interrupted: u64,
    pub checked: u64,
    pub wrong: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicate_replies: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_replies: Option<u64>,
}

#[derive(Debug, Serialize)]
pub struct Throughput {
    pub jobs_per_second: f64,
    pub rows_per_second: f64,
    pub batch_rows_mean: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Quantiles {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

#[derive(Debug, Serialize)]
pub struct ModelReport {
    pub name: String,
    pub version: Option<String>,
    pub weight: u32,
    pub rows_per_job: usize,
    pub different_bodies: usize,
    pub jobs: u64,
    pub ok: u64,
    pub whole_ms: Quantiles,
}

#[derive(Debug, Clone, Serialize)]
pub struct Capacity {
    pub p99_goal_ms: f64,
    pub steps: Vec<StepReport>,
    /// `None`: the goal was met at no rate that was tried.
    pub jobs_per_second: Option<f64>,
    pub rows_per_second: Option<f64>,
    /// Why no more.
    pub limited_by: Option<Limit>,
    /// Whether the broker or `--replicas` said how many workers there are; one is assumed otherwise.
    pub replicas_known: bool,
    pub advice: Option<Advice>,
}

#[derive(Debug, Clone, Serialize)]
pub struct StepReport {
    pub jobs_per_second: f64,
    pub p99_ms: f64,
    /// `None`: the goal held.
    pub limit: Option<Limit>,
}

/// What is told beside the figures themselves.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    pub producers: usize,
    pub body: &'static str,
    pub interrupted: bool,
    pub lasted: Duration,
}

impl Report {
    pub fn of(tally: &Tally, jobs: &Jobs, load: &Load, of: Circumstances) -> Self {
        let seconds = of.lasted.as_secs_f64();
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let mut counted = JobsReport::of(&tally.counts);
        counted.duplicate_replies = Some(tally.strays.copies);
        counted.late_replies = Some(tally.strays.late);
        let models = jobs.targets.iter().zip(&tally.models);
        Self {
            inferq_version: env!("CARGO_PKG_VERSION"),
            load: LoadReport::of(jobs, load, of),
            interrupted: of.interrupted,
            lasted_seconds: seconds,
            jobs: counted,
            warm_up: JobsReport::of(&tally.warm_up),
            throughput: Throughput {
                jobs_per_second: rate(tally.counts.ok()),
                rows_per_second: rate(tally.rows_ok),
                batch_rows_mean: tally.batch_rows(),
            },
            latency: latency(&tally.parts),
            models: models
                .map(|(target, seen)| ModelReport {
                    name: target.model.clone(),
                    version: target.version.clone(),
                    weight: target.weight,
                    rows_per_job: target.rows,
                    different_bodies: target.bodies.len(),
                    jobs: seen.jobs,
                    ok: seen.ok,
                    whole_ms: Quantiles::of(&seen.whole),
                })
                .collect(),
            remarks: remarks(tally, load),
            reasons: tally.reasons.clone(),
            capacity: None,
        }
    }
}

/// The parts of the way, in the order of the way.
fn parts(parts: &Parts) -> [(&'static str, &'static str, &Micros); 7] {
    [
        ("whole_ms", "whole way", &parts.whole),
        ("late_ms", "  late sending", &parts.late),
        ("queue_ms", "  queue", &parts.queue),
        ("wait_ms", "  wait", &parts.wait),
        ("infer_ms", "  infer", &parts.infer),
        ("encode_ms", "  encode", &parts.encode),
        ("reply_ms", "  reply", &parts.reply),
    ]
}

fn latency(of: &Parts) -> BTreeMap<&'static str, Quantiles> {
    parts(of)
        .into_iter()
        .map(|(key, _, micros)| (key, Quantiles::of(micros)))
        .collect()
}

fn remarks(tally: &Tally, load: &Load) -> Vec<String> {
    let mut remarks = Vec::new();
    let counts = &tally.counts;
    if counts.not_sent > 0 {
        remarks.push(format!(
            "{} jobs were due and found no room before the end: they were not sent, and with them every percentile would be \
             worse",
            counts.not_sent
        ));
    }
    if counts.held > 0 && matches!(load.pace, Pace::Open { .. }) {
        remarks.push(format!(
            "{} jobs waited because {} were under way (--in-flight): workers or broker do not keep up with this rate, or \
             --in-flight is too low for it",
            counts.held, load.in_flight
        ));
    }
    let late = tally.parts.late_unheld.quantile(0.99);
    if late * 2 > tally.parts.whole.quantile(0.99) && tally.parts.whole.count() > 0 {
        remarks.push(format!(
            "the load generator itself was late by {:.1} ms (p99): it is the limit, or its machine is busy; lower the rate, or \
             take more --producers or another machine",
            tally.parts.late_unheld.quantile_ms(0.99)
        ));
    }
    if counts.ok() > 0 && tally.parts.wait.count() == 0 {
        remarks.push("the replies say nothing of their time: the workers are older than this program".to_owned());
    }
    remarks
}

impl LoadReport {
    fn of(jobs: &Jobs, load: &Load, of: Circumstances) -> Self {
        let (mode, spacing, stages) = match &load.pace {
            Pace::Closed { .. } => ("closed", None, &[][..]),
            Pace::Open { stages, spacing, .. } => ("open", Some(*spacing), stages.as_slice()),
        };
        Self {
            mode,
            spacing,
            stages: stages.iter().map(StageReport::from).collect(),
            seed: jobs.seed,
            producers: of.producers,
            in_flight_max: load.in_flight,
            body: of.body,
            warm_up_seconds: load.warm_up.as_secs_f64(),
            timeout_ms: millis(jobs.timeout),
            deadline_ms: jobs.deadline.map(millis),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<&Stage> for StageReport {
    fn from(stage: &Stage) -> Self {
        Self {
            from_jobs_per_second: stage.from,
            to_jobs_per_second: stage.to,
            seconds: stage.lasts.map(|lasts| lasts.as_secs_f64()),
        }
    }
}

impl JobsReport {
    fn of(counts: &Counts) -> Self {
        Self {
            due: counts.due,
            sent: counts.sent,
            not_sent: counts.not_sent,
            held: counts.held,
            answered: Status::ALL.map(Status::name).into_iter().zip(counts.answered).collect(),
            unroutable: counts.unroutable,
            queue_full: counts.queue_full,
            lost: counts.lost,
            unreadable: counts.unreadable,
            interrupted: counts.interrupted,
            checked: counts.checked,
            wrong: counts.wrong,
            duplicate_replies: None,
            late_replies: None,
        }
    }
}

impl Quantiles {
    pub fn of(micros: &Micros) -> Self {
        Self {
            count: micros.count(),
            mean: if micros.count() > 0 { micros.mean_ms() } else { 0.0 },
            p50: micros.quantile_ms(0.5),
            p90: micros.quantile_ms(0.9),
            p99: micros.quantile_ms(0.99),
            p99_9: micros.quantile_ms(0.999),
            max: micros.quantile_ms(1.0),
        }
    }
}

// --- For people ---

impl Report {
    /// What load was put on, in a line; it is said before it begins.
    pub fn headline(jobs: &Jobs, load: &Load, of: Circumstances) -> String {
        let models = jobs.targets.iter().map(|target| match target.rows {
            1 => format!("{} (1 row)", target.model),
            rows => format!("{} ({rows} rows)", target.model),
        });
        let models: Vec<String> = models.collect();
        let pace = match &load.pace {
            Pace::Closed { .. } => format!("as fast as possible, {} jobs under way", load.in_flight),
            Pace::Open { stages, spacing, .. } => {
                let stages: Vec<String> = stages.iter().map(ToString::to_string).collect();
                let spacing = match spacing {
                    Spacing::Poisson => "at random (Poisson)",
                    Spacing::Fixed => "evenly spaced",
                };
                format!("{}, {spacing}", stages.join(", then "))
            }
        };
        format!(
            "{}: {pace}; {} body, producers: {}, warm-up: {}",
            models.join(", "),
            of.body,
            of.producers,
            humantime::format_duration(load.warm_up),
        )
    }

    pub fn text(&self, parts_of: &Parts) -> String {
        let mut text = String::new();
        self.write_jobs(&mut text);
        let throughput = &self.throughput;
        let batches = throughput
            .batch_rows_mean
            .map(|rows| format!("; batches of {rows:.1} rows in the mean"));
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "rate    {:.1} jobs/s, {:.1} rows/s in {:.1} s{}",
            throughput.jobs_per_second,
            throughput.rows_per_second,
            self.lasted_seconds,
            batches.unwrap_or_default()
        );
        let _ = writeln!(
            text,
            "\n{:<16}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "ms", "mean", "p50", "p90", "p99", "p99.9", "max"
        );
        for (_, name, micros) in parts(parts_of) {
            if micros.count() > 0 {
                let of = Quantiles::of(micros);
                let _ = writeln!(
                    text,
                    "{name:<16}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>10.2}",
                    of.mean, of.p50, of.p90, of.p99, of.p99_9, of.max
                );
            }
        }
        self.write_models(&mut text);
        for reason in &self.reasons {
            let _ = writeln!(text, "\nnot OK, such as: {reason}");
        }
        for remark in &self.remarks {
            let _ = writeln!(text, "\nnote: {remark}");
        }
        if let Some(capacity) = &self.capacity {
            capacity.write(&mut text);
        }
        text
    }

    fn write_jobs(&self, text: &mut String) {
        let jobs = &self.jobs;
        let answered = jobs.answered.iter().map(|(status, count)| (status.to_string(), *count));
        let others = [
            ("unroutable", jobs.unroutable),
            ("refused by a full queue", jobs.queue_full),
            ("lost", jobs.lost),
            ("unreadable", jobs.unreadable),
            ("not sent", jobs.not_sent),
            ("interrupted", jobs.interrupted),
            ("wrong", jobs.wrong),
            ("duplicate replies", jobs.duplicate_replies.unwrap_or_default()),
            ("late replies", jobs.late_replies.unwrap_or_default()),
        ];
        let others = others.map(|(name, count)| (name.to_owned(), count));
        let named = answered
            .chain(others)
            .filter(|(name, count)| *count > 0 || name == "OK");
        let named: Vec<String> = named.map(|(name, count)| format!("{count} {name}")).collect();
        let checked = if jobs.checked > 0 {
            format!(", {} checked", jobs.checked)
        } else {
            String::new()
        };
        let stopped = if self.interrupted {
            " (stopped before the end)"
        } else {
            ""
        };
        let _ = writeln!(text, "jobs    {} due: {}{checked}{stopped}", jobs.due, named.join(", "));
    }

    fn write_models(&self, text: &mut String) {
        if self.models.len() < 2 {
            return;
        }
        let _ = writeln!(
            text,
            "\n{:<32}{:>10}{:>10}{:>10}{:>10}",
            "model", "jobs", "OK", "p50 ms", "p99 ms"
        );
        for model in &self.models {
            let _ = writeln!(
                text,
                "{:<32}{:>10}{:>10}{:>10.2}{:>10.2}",
                model.name, model.jobs, model.ok, model.whole_ms.p50, model.whole_ms.p99
            );
        }
    }
}

impl Capacity {
    fn write(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "\n{:>12}{:>12}  goal of {} ms",
            "jobs/s", "p99 ms", self.p99_goal_ms
        );
        for step in &self.steps {
            let verdict = step.limit.map_or("held", Limit::sentence);
            let _ = writeln!(text, "{:>12.1}{:>12.2}  {verdict}", step.jobs_per_second, step.p99_ms);
        }
        let (Some(jobs), Some(rows), Some(advice)) = (self.jobs_per_second, self.rows_per_second, &self.advice) else {
            return;
        };
        let at_least = match self.limited_by {
            Some(Limit::LoadGenerator) | None => "at least ",
            Some(Limit::Latency | Limit::Backlog | Limit::Failures) => "",
        };
        let workers = match (self.replicas_known, advice.replicas) {
            (false, _) => "taken to be one worker's; --replicas says how many there are".to_owned(),
            (true, 1) => "of one worker".to_owned(),
            (true, replicas) => format!(
                "of {replicas} workers, {:.1} jobs/s each",
                advice.replica_jobs_per_second
            ),
        };
        let _ = writeln!(
            text,
            "\ncapacity: {at_least}{jobs:.1} jobs/s, {rows:.1} rows/s, {workers}"
        );
        for (name, value, reason) in advice.lines() {
            let _ = writeln!(text, "{name}: {value}\n  {reason}");
        }
        let _ = writeln!(text, "for the Helm chart, under poolDefaults or pools.<name>:");
        for line in advice.chart_values().lines() {
            let _ = writeln!(text, "  {line}");
        }
    }
}
