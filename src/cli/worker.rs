//! `inferq worker`: loads the models, serves its HTTP endpoints, and works until it is told to stop.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::model::repository::{self, NotServed};
use crate::telemetry::export::{self, Traces};
use crate::telemetry::health::{Condition, Health};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{log, server};
use crate::worker::coalesce::Coalesce;
use crate::worker::load::{self, LoadedModel, Unserved};
use crate::worker::onnx::Runtime;
use crate::worker::{Worker, WorkerError};

/// Runs a worker to its end.
///
/// # Errors
/// Whatever keeps it from starting or going on, as one sentence.
pub fn run(config: Config) -> anyhow::Result<()> {
    let log = log::start(&config.telemetry)?;
    let metrics = Arc::new(Metrics::new()?);
    metrics.about.watch_log(log.dropped);
    metrics.about.runs_with(NO_RUNTIME);
    let coalesce = Coalesce {
        pause: config.worker.coalesce,
        in_hand: metrics.receipts.in_hand.clone(),
        held_back: [
            metrics.reply.replies_held_back.clone(),
            metrics.reply.dead_letters_held_back.clone(),
        ],
    };
    // One thread is all that decoding, publishing and settling need; inference has threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(move || coalesce.rest())
        .build()?;
    let (traces, exporting) = match &config.telemetry.otlp_endpoint {
        Some(endpoint) => {
            let (traces, exporting) = export::start(&config, endpoint, metrics.spans_dropped.clone())?;
            (Some(traces), Some(exporting))
        }
        None => (None, None),
    };
    let ended = runtime.block_on(work(config, metrics, traces));
    // A model that is still loading must not hold up the end.
    runtime.shutdown_background();
    if let Some(exporting) = exporting {
        exporting.finish();
    }
    ended
}

async fn work(config: Config, metrics: Arc<Metrics>, traces: Option<Traces>) -> anyhow::Result<()> {
    let health = Health::default();
    let stop = stop_on_signals()?;
    let closed = CancellationToken::new();
    health.set(Condition::Loading, "loading models");
    let listen = match config.telemetry.listen {
        Some(address) => {
            let listener = server::bind(address).await?;
            let address = listener.local_addr()?;
            tokio::spawn(server::serve(listener, health.clone(), metrics.clone(), closed.clone()));
            address.to_string()
        }
        None => "nothing".to_owned(),
    };
    tokio::spawn(say_when_ready(health.clone(), listen));
    let loading = {
        let (config, health, metrics) = (config.clone(), health.clone(), metrics.clone());
        tokio::task::spawn_blocking(move || load_models(&config, &health, &metrics))
    };
    let models = tokio::select! {
        models = loading => models??,
        () = stop.cancelled() => return Ok(()),
    };
    let worker = Worker {
        config,
        program: Some(std::env::current_exe().context("the path of this program is unknown")?),
        models,
        health,
        metrics,
        traces,
        stop,
    };
    let ended = worker.run().await;
    closed.cancel();
    Ok(ended?)
}

fn load_models(config: &Config, health: &Health, metrics: &Metrics) -> anyhow::Result<Vec<LoadedModel>> {
    let runtime = Runtime::load()?;
    info!(library = %runtime.library().display(), "ONNX Runtime loaded");
    metrics.about.runs_with(runtime.version());
    let mut found = repository::scan(&config.models.repository, &config.models.load)?;
    if config.models.strict {
        found = found.strictly()?;
    }
    let (loaded, unserved) = load::load_all(&runtime, config, &found);
    for one in &unserved {
        let is_missed = config.models.strict || one.lacks_device || config.models.load.contains(&one.model);
        let is_served = loaded.iter().any(|model| model.name == one.model);
        report(one, is_missed && !is_served, health, metrics);
    }
    if loaded.is_empty() {
        let faults: Vec<_> = unserved.iter().map(sentence).collect();
        return Err(WorkerError::NoModel(faults.join("\n")).into());
    }
    Ok(loaded)
}

/// Says once that a model or version is not served. If it `is_missed`, the worker is not ready without it.
fn report(one: &Unserved, is_missed: bool, health: &Health, metrics: &Metrics) {
    let version = one.version.as_deref().unwrap_or_default();
    metrics.about.does_not_serve(&one.model, version, one.reason);
    if is_missed {
        health.set(Condition::Model(one.model.as_str().into()), &one.sentence);
    } else {
        health.note(format!("not served: {}", sentence(one)));
    }
    let Unserved { model, sentence, .. } = one;
    if one.reason == NotServed::Foreign {
        warn!(
            model.name = model,
            model.version = version,
            "model not served: {sentence}"
        );
    } else {
        error!(
            model.name = model,
            model.version = version,
            "model not served: {sentence}"
        );
    }
}

fn sentence(one: &Unserved) -> String {
    let version = one.version.as_ref().map(|version| format!(" {version}"));
    format!("{}{}: {}", one.model, version.unwrap_or_default(), one.sentence)
}

async fn say_when_ready(health: Health, listen: String) {
    health.ready().await;
    info!(listen, "ready");
}

/// The first SIGTERM or SIGINT fires the token, a second one ends the process at once: what it holds is unacked, and the
/// broker gives it to another worker.
fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be listened for")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be listened for")?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        for again in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if again {
                info!("stopping at once");
                std::process::exit(STOPPED_AT_ONCE);
            }
            stopping.cancel();
        }
    });
    Ok(stop)
}

const STOPPED_AT_ONCE: i32 = 1;
/// What `inferq_build_info` says of ONNX Runtime before it is loaded.
const NO_RUNTIME: &str = "";
