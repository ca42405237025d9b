//! How should a fleet be scaled? Runs the simulated fleet under the loads and settings of `sweeps.rs`.
//!
//! `benches/scaling/run` starts it, draws what it prints and says which run is which; that is JSON, one object.

mod fleet;
mod golden;
mod hpa;
mod keda;
mod signals;
mod sweeps;

use serde_json::{Value, json};

use fleet::{Outcome, Setup};

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let vectors: Vec<Value> = golden::vectors()
        .into_iter()
        .map(|vector| json!({"given": vector.given, "expected": vector.expected, "got": vector.got}))
        .collect();
    let runs: Vec<Value> = sweeps::all(quick).iter().map(described).collect();
    println!("{}", json!({"golden": vectors, "runs": runs}));
}

fn described(run: &sweeps::Run) -> Value {
    let seeds = run.seeds.clone();
    let outcomes: Vec<Outcome> = seeds
        .map(|seed| {
            let seeded = Setup {
                seed,
                ..run.setup.clone()
            };
            fleet::run(&seeded)
        })
        .collect();
    let first = &outcomes[0];
    json!({
        "device": run.device, "load": run.load, "question": run.question, "setting": run.setting,
        "default": run.default,
        "accepted": run.setup.accepted,
        "figures": outcomes.iter().map(figures).collect::<Vec<_>>(),
        "course": first.course.iter().map(|point| json!([
            point.at, round(point.offered), round(point.backlog), point.replicas, point.ready, round(point.latency),
        ])).collect::<Vec<_>>(),
    })
}

fn figures(outcome: &Outcome) -> Value {
    json!({
        "jobs": outcome.came,
        "answered": outcome.answered / outcome.came,
        "mean": outcome.latency_sum / outcome.answered.max(1.0),
        "p50": outcome.quantile(0.5),
        "p99": outcome.quantile(0.99),
        "max": outcome.latency_max,
        "in_time": outcome.in_time / outcome.came,
        "cost": outcome.paid / outcome.needed,
        "replicas": outcome.replicas_max,
        "turns": outcome.turns,
        "returned": outcome.returned.round(),
    })
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
