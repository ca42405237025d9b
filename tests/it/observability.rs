//! Do the dashboards show what happens, and do the alerts fire when, and only when, something is wrong?

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::link::ClosedPort;
use crate::support::prometheus::{Prometheus, Series};
use crate::support::{Broker, Job, Producer, Request, Scene, Tensor, Worker, eventually, root};

const DASHBOARDS: [&str; 3] = ["fleet", "model", "worker"];
const RULES: &str = "helm/inferq/alerts/inferq.yaml";

/// Names that only a cluster has: of kube-state-metrics, and of KEDA's operator. Their sources say so; nothing here can.
const OF_A_CLUSTER: [&str; 5] = [
    "kube_horizontalpodautoscaler_status_current_replicas",
    "kube_horizontalpodautoscaler_status_desired_replicas",
    "kube_horizontalpodautoscaler_spec_max_replicas",
    "keda_scaler_metrics_value",
    "keda_scaled_object_errors_total",
];

/// A broker with its metrics, two workers, and the Prometheus that scrapes all of them.
struct Fleet {
    scene: Scene,
    workers: Vec<Worker>,
    /// A worker that never finds its broker, if the test wanted one, and the port where there is none.
    lost: Option<(Worker, ClosedPort)>,
    prometheus: Prometheus,
    // Last, since the others need it.
    broker: Broker,
}

impl Fleet {
    async fn start(settings: &[(&str, &str)], with_a_lost_one: bool) -> Self {
        let broker = Broker::with_options(&["--plugins", "rabbitmq_prometheus"]);
        // The alerts know queues by the default prefix; the broker is this test's alone.
        let scene = Scene {
            uri: broker.uri().to_owned(),
            prefix: "inferq".to_owned(),
        };
        let setup = || {
            let worker = scene.worker("affine,slow");
            settings
                .iter()
                .fold(worker, |worker, (name, value)| worker.env(name, value))
        };
        let workers = vec![setup().start().await, setup().start().await];
        let port = ClosedPort::new();
        let nowhere = crate::support::link::through(&scene.uri, port.address());
        let lost = with_a_lost_one.then(|| (setup().env("INFERQ_BROKER__URI", nowhere).spawn(), port));
        let mut targets = Vec::new();
        for worker in workers.iter().chain(lost.iter().map(|(worker, _)| worker)) {
            targets.push(format!("\"{}\"", worker.telemetry().await));
        }
        let configuration = configuration(&targets.join(", "), broker.prometheus_port());
        let fleet = Self {
            prometheus: Prometheus::start(&configuration, &impatient(&read(RULES))).await,
            scene,
            workers,
            lost,
            broker,
        };
        // Only what rises after it was first seen rises.
        eventually("all targets to be scraped twice", || async {
            let scraped = fleet.prometheus.figure("min(count_over_time(up[10m]))").await?;
            let up = fleet.prometheus.figure("sum(up)").await?;
            (scraped >= 2.0 && up == (targets.len() + 1) as f64).then_some(())
        })
        .await;
        fleet
    }

    fn good(&self) -> Job {
        self.affine("x")
    }

    fn bad(&self) -> Job {
        self.affine("z")
    }

    fn affine(&self, input: &str) -> Job {
        let body = Request::new([Tensor::fp32(input, &[[1.0; 4]])]).msgpack();
        self.scene.job("affine", body).timestamp(unix_seconds())
    }

    fn slow(&self) -> Job {
        let body = Request::new([Tensor::fp32("x", &[[0.5; 4]])]).msgpack();
        self.scene.job("slow", body).timestamp(unix_seconds())
    }

    /// Has the broker close all connections, again as soon as the first worker has its own back, and five times in all.
    async fn loses_its_connections(&self) {
        for times in 1..=5 {
            eventually("both connections to be up", || async {
                let up = self.workers[0].metrics().await.sum("inferq_connection_up");
                (up == Some(2.0)).then_some(())
            })
            .await;
            self.broker.ctl(&["close_all_connections", "for the test"]);
            eventually("two more to be lost", || async {
                let lost = self.workers[0].metrics().await.sum("inferq_connections_lost_total");
                (lost == Some(2.0 * f64::from(times))).then_some(())
            })
            .await;
        }
    }

    async fn answered(producer: &mut Producer, jobs: impl Iterator<Item = Job>) {
        let ids = producer.send_all(jobs).await;
        producer.replies(&ids).await;
    }

    /// Sends jobs for as long as `meanwhile` takes.
    async fn under_load<T>(&self, meanwhile: impl Future<Output = T>) -> T {
        let mut producer = self.scene.producer().await;
        let load = async {
            loop {
                let jobs = std::iter::repeat_n(self.good(), 20).chain([self.slow()]);
                Self::answered(&mut producer, jobs).await;
            }
        };
        tokio::select! {
            biased;
            done = meanwhile => done,
            () = load => unreachable!("it never ends"),
        }
    }

    /// Waits until each of the queries, named by their panels, gives a figure. A rate has none before its second scrape.
    async fn until_all_have_data(&self, mut asked: Vec<(String, String)>) {
        while let Some((panel, query)) = asked.pop() {
            eventually(&format!("data in {panel}: {query}"), || async {
                let series = self.prometheus.query(&query).await;
                series.iter().map(Series::value).any(f64::is_finite).then_some(())
            })
            .await;
        }
    }

    /// The alerts that fire now.
    async fn firing(&self) -> BTreeSet<String> {
        let alerts = self.prometheus.query(r#"ALERTS{alertstate="firing"}"#).await;
        alerts
            .into_iter()
            .filter_map(|mut alert| alert.metric.remove("alertname"))
            .collect()
    }

    async fn until_it_fires(&self, alert: &str) {
        let event = format!("{alert} to fire");
        eventually(&event, || async { self.firing().await.contains(alert).then_some(()) }).await;
    }

    async fn expressions_of_rules(&self) -> Vec<String> {
        let rules = self.rules().await;
        rules
            .iter()
            .map(|rule| rule["query"].as_str().expect("an expression").to_owned())
            .collect()
    }

    /// The rules, as Prometheus has read them.
    async fn rules(&self) -> Vec<Value> {
        let rules = self.prometheus.api("rules").await;
        let groups = rules["groups"].as_array().expect("groups").iter();
        groups
            .flat_map(|group| group["rules"].as_array().expect("rules").clone())
            .collect()
    }

    /// What Prometheus has against the rules: an error of an expression, or of a text.
    async fn faults_of_rules(&self) -> Vec<String> {
        let rules = self.rules().await;
        let faulty = rules
            .iter()
            .filter(|rule| rule["health"] == "err" || rule["alerts"].to_string().contains("error expanding"));
        faulty.map(ToString::to_string).collect()
    }
}

/// The configuration that the README shows, with the addresses of this test.
fn configuration(workers: &str, broker: u16) -> String {
    let readme = read("README.md");
    let block = readme
        .split_once("```yaml prometheus\n")
        .and_then(|(_, rest)| rest.split_once("```"));
    let (mut shown, _) = block
        .map(|(block, rest)| (block.to_owned(), rest))
        .expect("a configuration");
    for (example, own) in [
        (RULES, "rules.yaml"),
        (r#""worker-1:9090", "worker-2:9090""#, workers),
        (r#""broker:15692""#, &format!(r#""127.0.0.1:{broker}""#)),
    ] {
        assert!(shown.contains(example), "{example} is not in {shown}");
        shown = shown.replace(example, own);
    }
    shown
}

fn unix_seconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("a clock that is set").as_secs()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The same rules for a test that cannot wait: they fire at once.
fn impatient(rules: &str) -> String {
    let lines = rules.lines().map(|line| match line.trim_start().strip_prefix("for: ") {
        Some(_) => format!("{}for: 1s", " ".repeat(line.len() - line.trim_start().len())),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

fn dashboard(name: &str) -> PathBuf {
    root().join(format!("helm/inferq/dashboards/{name}.json"))
}

/// The panels of a dashboard, also those in rows that are closed.
fn panels(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(dashboard(name)).expect("a dashboard");
    let whole: Value = serde_json::from_str(&text).expect("JSON");
    let top = whole["panels"].as_array().expect("panels").clone();
    let within_rows: Vec<Value> = top
        .iter()
        .filter_map(|panel| panel["panels"].as_array().cloned())
        .flatten()
        .collect();
    top.into_iter()
        .chain(within_rows)
        .filter(|panel| panel["type"] != "row")
        .collect()
}

/// The queries of a panel, as Grafana sends them when `instance` and the model `affine` are chosen.
fn queries(panel: &Value, instance: &str) -> Vec<String> {
    let targets = panel["targets"].as_array().expect("targets");
    let expressions = targets.iter().map(|target| target["expr"].as_str().expect("a query"));
    expressions
        .map(|expression| {
            expression
                .replace("$__rate_interval", "30s")
                .replace("$namespace", ".*")
                .replace("$job", ".*")
                .replace("$model", "affine")
                .replace("$instance", instance)
                .replace("$prefix", "inferq")
                .replace("$scaled", ".*inferq.*")
        })
        .collect()
}

fn needs_a_cluster(expression: &str) -> bool {
    names(expression)
        .iter()
        .any(|name| OF_A_CLUSTER.contains(&name.as_str()))
}

/// The metrics that an expression names.
fn names(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    let prefixes = ["inferq_", "rabbitmq_", "process_", "kube_", "keda_"];
    let named = words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)));
    named.map(str::to_owned).collect()
}

/// All expressions of a dashboard: those of its panels, and those that fill its menus.
fn expressions(name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(dashboard(name)).expect("a dashboard");
    let whole: Value = serde_json::from_str(&text).expect("JSON");
    let menus = whole["templating"]["list"].as_array().expect("variables");
    let menus = menus
        .iter()
        .filter_map(|menu| menu["query"]["query"].as_str().map(str::to_owned));
    let panels = panels(name);
    panels
        .iter()
        .flat_map(|panel| queries(panel, ""))
        .chain(menus)
        .collect()
}

#[tokio::test]
async fn every_panel_shows_data_under_load_and_no_alert_fires_while_all_is_well() {
    let fleet = Fleet::start(&[], false).await;
    let instance = fleet.workers[0].telemetry().await.to_string();

    let mut asked = Vec::new();
    for name in DASHBOARDS {
        for panel in panels(name) {
            assert_ne!(panel["description"], "", "{name}: {}", panel["title"]);
            let queries = queries(&panel, &instance).into_iter();
            asked.extend(queries.map(|query| (format!("{name}: {}", panel["title"]), query)));
        }
    }
    let (of_a_cluster, asked): (Vec<_>, Vec<_>) = asked.into_iter().partition(|(_, query)| needs_a_cluster(query));
    for (_, query) in of_a_cluster {
        fleet.prometheus.query(&query).await; // Nobody answers it here, but it is understood.
    }
    fleet.under_load(fleet.until_all_have_data(asked)).await;
    let metrics = fleet.workers[0].metrics().await;
    // A scrape that a loaded machine answers late is an alert for a moment, and rightly so; what was counted would stay.
    eventually("all alerts to be quiet", || async {
        fleet.firing().await.is_empty().then_some(())
    })
    .await;
    let faults = fleet.faults_of_rules().await;
    let known = fleet.prometheus.api("label/__name__/values").await;

    assert_eq!(faults, Vec::<String>::new());
    assert_eq!(promtool(&["check", "metrics"], metrics.text()), "");
    let known: BTreeSet<String> = serde_json::from_value(known).expect("names");
    let shown = DASHBOARDS.iter().flat_map(|name| expressions(name));
    let named: BTreeSet<String> = shown
        .chain(fleet.expressions_of_rules().await)
        .flat_map(|text| names(&text))
        .collect();
    let unknown: Vec<_> = named
        .iter()
        .filter(|name| !known.contains(*name) && !OF_A_CLUSTER.contains(&name.as_str()))
        .collect();
    assert!(unknown.is_empty(), "nobody has the metrics {unknown:?}");
}

#[tokio::test]
async fn alerts_fire_when_workers_and_broker_are_really_in_trouble() {
    // `slow` one by one, so that a worker has jobs in hand when it is killed.
    let settings = [("INFERQ_WORKER__ISOLATE_AFTER", "1"), ("INFERQ_BATCH__ROWS_MAX", "1")];
    let mut fleet = Fleet::start(&settings, true).await;
    fleet.loses_its_connections().await;
    fleet.until_it_fires("InferqReconnecting").await;
    let mut producer = fleet.scene.producer().await;

    let late = fleet.good().deadline(1);
    Fleet::answered(&mut producer, std::iter::repeat_n(late, 200)).await;
    Fleet::answered(&mut producer, std::iter::repeat_n(fleet.bad(), 100)).await;
    producer.send(fleet.bad().fire_and_forget()).await;
    producer.send(fleet.good().reply_to("nobody.is.here")).await;
    for alert in [
        "InferqDeadlinesMissed",
        "InferqErrorBudgetBurnsFast",
        "InferqJobErrors",
        "InferqDeadLetters",
        "InferqRepliesUnroutable",
    ] {
        fleet.until_it_fires(alert).await;
    }
    fleet.until_it_fires("InferqNotReady").await; // The worker that never finds its broker.

    let ids = producer.send_all(std::iter::repeat_n(fleet.slow(), 60)).await;
    fleet.workers.remove(0).sigkill();
    producer.replies(&ids).await;
    for alert in ["InferqDown", "InferqRedeliveries", "InferqJobsIsolated"] {
        fleet.until_it_fires(alert).await;
    }

    // The broker blocks who publishes while it has an alarm, and not before.
    let ids = producer.send_all(std::iter::repeat_n(fleet.slow(), 60)).await;
    fleet.workers[0].held_still(|| fleet.broker.ctl(&["set_vm_memory_high_watermark", "0"]));
    fleet.until_it_fires("InferqBrokerBlocked").await;
    fleet.broker.ctl(&["set_vm_memory_high_watermark", "0.9"]);
    producer.replies(&ids).await;

    fleet.workers.clear();
    fleet.lost.take();
    producer.send(fleet.good()).await;
    for alert in ["InferqAbsent", "InferqNoConsumers"] {
        fleet.until_it_fires(alert).await;
    }
    fleet.broker.stop();
    fleet.until_it_fires("InferqBrokerMetricsAbsent").await;

    assert_eq!(fleet.faults_of_rules().await, Vec::<String>::new());
}

#[test]
fn every_alert_fires_in_a_test_of_the_rules_and_none_in_a_healthy_fleet() {
    let test = "tests/alerts/inferq.test.yaml";
    assert_eq!(promtool(&["check", "rules", RULES], ""), "");
    promtool(&["test", "rules", test], "");

    let tests = read(test);
    for (alert, lines) in alerts() {
        assert!(
            tests.contains(&format!(r#"alertname="{alert}"}}"#)),
            "{alert} fires in no test"
        );
        assert!(alert.starts_with("Inferq"), "{alert}");
        for needed in ["severity: ", "summary: ", "description: ", "for: "] {
            assert!(lines.contains(needed), "{alert} has no {needed}");
        }
    }
}

#[test]
fn the_readme_says_of_every_alert_what_to_do() {
    let readme = read("README.md");

    for (alert, lines) in alerts() {
        let heading = format!("#### {alert}");
        assert!(readme.lines().any(|line| line == heading), "README.md has no {heading}");
        let link = format!(
            "runbook_url: https://github.com/inferq/inferq#{}\n",
            alert.to_lowercase()
        );
        assert!(lines.contains(&link), "{alert} does not lead to its text");
    }
    let written = readme.lines().filter_map(|line| line.strip_prefix("#### "));
    let written: BTreeSet<_> = written
        .filter(|name| name.starts_with("Inferq"))
        .map(str::to_owned)
        .collect();
    assert_eq!(written, alerts().into_keys().collect());
}

/// Every alert, with the lines that are about it.
fn alerts() -> BTreeMap<String, String> {
    let rules = read(RULES);
    let parts = rules.split("      - ").skip(1);
    let named = parts.filter_map(|part| {
        let (name, lines) = part.strip_prefix("alert: ")?.split_once('\n')?;
        Some((name.to_owned(), lines.to_owned()))
    });
    named.collect()
}

#[test]
fn the_dashboards_are_as_their_script_writes_them_and_valid_for_grafana_10_to_12() {
    let current = Command::new(root().join("scripts/dashboards"))
        .arg("--check")
        .output()
        .expect("it runs");
    let files = DASHBOARDS.map(dashboard);

    assert!(current.status.success(), "{}", String::from_utf8_lossy(&current.stderr));
    assert_eq!(faults(&files), "");
}

#[test]
fn a_dashboard_that_grafana_would_not_understand_is_seen() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let broken = |name: &str, from: &str, to: &str| {
        let text = std::fs::read_to_string(dashboard("worker")).expect("a dashboard");
        assert!(text.contains(from), "{from}");
        let path = folder.path().join(name);
        std::fs::write(&path, text.replacen(from, to, 1)).expect("a writable folder");
        path
    };

    let said = faults(&[
        broken("a.json", r#""mode": "multi""#, r#""mode": "many""#),
        broken("b.json", r#""gridPos""#, r#""gridPosition""#),
    ]);

    for version in [10, 11, 12] {
        assert!(said.contains(&format!("a.json: Grafana {version}: ")), "{said}");
        assert!(said.contains(&format!("b.json: Grafana {version}: ")), "{said}");
    }
}

/// What Grafana's own types have against dashboards.
fn faults(files: &[PathBuf]) -> String {
    let checked = Command::new("node")
        .arg(root().join("tests/node/dashboards.js"))
        .args(files)
        .env("NODE_PATH", root().join(".deps/node/node_modules"))
        .output()
        .expect("`make setup` installs node");
    String::from_utf8_lossy(&checked.stderr).into_owned()
}

/// Runs `promtool`, checks that it is content, and returns its complaints.
fn promtool(arguments: &[&str], input: &str) -> String {
    use std::io::Write as _;
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("`make setup` installs prometheus, and with it promtool");
    let mut stdin = child.stdin.take().expect("standard input is piped");
    stdin.write_all(input.as_bytes()).expect("promtool reads");
    drop(stdin);
    let output = child.wait_with_output().expect("our child");
    let (said, faults) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "promtool {arguments:?}: {said}{faults}");
    faults.into_owned()
}
