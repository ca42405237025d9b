//! Can a person see in a browser what a worker does, without anything else being installed?

use std::process::Stdio;

use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::support::{Producer, Request, Scene, Tensor, Worker, root, within};

/// Chromium, with a worker's page open.
struct Browser {
    child: Child,
    words: ChildStdin,
    seen: Lines<BufReader<ChildStdout>>,
    page: String,
    // Its profile, and all else that it writes.
    _home: tempfile::TempDir,
}

/// What `tests/node/browser.js` saw.
#[derive(Debug, Deserialize)]
struct Seen {
    title: String,
    /// The box that says how the worker is.
    state: String,
    text: String,
    total: Facts,
    broker: Facts,
    models: BTreeMap<String, Facts>,
    background: String,
    ink: String,
    /// Nothing has to be scrolled sideways.
    fits: bool,
    /// What axe finds that would keep somebody from reading it.
    barriers: Vec<String>,
    requests: Vec<String>,
    faults: Vec<String>,
}

type Facts = BTreeMap<String, String>;

/// How somebody looks.
#[derive(Debug, Clone, Copy)]
struct Look {
    scheme: &'static str,
    width: u32,
}

const LIGHT: Look = Look {
    scheme: "light",
    width: 1200,
};
const DARK: Look = Look {
    scheme: "dark",
    width: 1200,
};
/// A telephone.
const NARROW: Look = Look {
    scheme: "dark",
    width: 360,
};

impl Browser {
    async fn open(worker: &Worker) -> Self {
        let page = format!("http://{}/", worker.telemetry().await);
        let home = tempfile::tempdir().expect("a temporary folder");
        let mut child = Command::new("node")
            .arg(root().join("tests/node/browser.js"))
            .arg(&page)
            .env("NODE_PATH", root().join(".deps/node/node_modules"))
            .env("CHROMIUM", chromium())
            .env("HOME", home.path())
            .env("TMPDIR", home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("`make setup` installs node");
        let words = child.stdin.take().expect("standard input is piped");
        let seen = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
        Self {
            child,
            words,
            seen,
            page,
            _home: home,
        }
    }

    /// Looks once the page shows `text`.
    async fn until(&mut self, text: &str, Look { scheme, width }: Look) -> Seen {
        let wish = json!({"until": text, "scheme": scheme, "width": width, "picture": picture(scheme, width)});
        let wish = format!("{wish}\n");
        self.words.write_all(wish.as_bytes()).await.expect("the browser reads");
        let line = self.line(&format!("the page to show {text:?}")).await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Closes the browser; whether somebody else's script would have been run in the page.
    async fn close(mut self) -> bool {
        self.words.shutdown().await.expect("a pipe");
        drop(self.words);
        let line = match within("the browser's last word", self.seen.next_line()).await {
            Ok(Some(line)) => line,
            other => panic!("the browser said nothing more: {other:?}"),
        };
        within("the browser to end", self.child.wait())
            .await
            .expect("our child");
        let last: Value = serde_json::from_str(&line).expect("JSON");
        last["runsOthers"].as_bool().expect("a yes or no")
    }

    async fn line(&mut self, event: &str) -> String {
        // Longer than the browser's own patience, so that it may say what it was waiting for.
        match tokio::time::timeout(2 * crate::support::PATIENCE, self.seen.next_line()).await {
            Ok(Ok(Some(line))) => line,
            other => panic!("waited in vain for {event}: {other:?}"),
        }
    }
}

fn chromium() -> String {
    #[expect(clippy::disallowed_methods, reason = "a setting of the tests")]
    std::env::var("INFERQ_TEST_CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned())
}

/// Where a picture of what is seen is to be left, for those who work on the page.
fn picture(scheme: &str, width: u32) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "a setting of the tests")]
    let folder = std::env::var("INFERQ_TEST_PICTURES").ok()?;
    Some(format!("{folder}/{scheme}-{width}.png"))
}

/// Sends jobs for as long as `meanwhile` takes, a few of them bad.
async fn under_load<T>(scene: &Scene, producer: &mut Producer, meanwhile: impl Future<Output = T>) -> T {
    let good = scene.job("affine", Request::new([Tensor::fp32("x", &[[1.0; 4]])]).msgpack());
    let bad = scene.job("affine", Request::new([Tensor::fp32("z", &[[1.0; 4]])]).msgpack());
    let load = async {
        loop {
            let jobs = std::iter::repeat_n(good.clone(), 19).chain([bad.clone()]);
            let ids = producer.send_all(jobs).await;
            producer.replies(&ids).await;
        }
    };
    tokio::select! {
        biased;
        done = meanwhile => done,
        () = load => unreachable!("it never ends"),
    }
}

/// A number that stands in the page.
fn figure(facts: &Facts, name: &str) -> f64 {
    let fact = facts.get(name).unwrap_or_else(|| panic!("no {name:?} in {facts:?}"));
    let number = fact.split(' ').next().unwrap_or_default().replace(',', "");
    number
        .parse()
        .unwrap_or_else(|_| panic!("{name}: {fact:?} is no number"))
}

#[tokio::test]
async fn the_page_shows_models_rates_latency_and_state_in_light_and_dark_and_says_when_the_worker_is_gone() {
    let scene = Scene::new();
    let worker = scene.worker("affine,two-heads").start().await;
    let mut producer = scene.producer().await;
    let mut browser = Browser::open(&worker).await;

    let looks = async {
        // Only a worker that is under load for a while has a line to draw.
        let light = browser.until("jobs/s, the last two minutes", LIGHT).await;
        (
            light,
            browser.until("Ready", DARK).await,
            browser.until("Ready", NARROW).await,
        )
    };
    let (light, dark, narrow) = under_load(&scene, &mut producer, looks).await;
    worker.drain().await;
    let gone = browser.until("The worker does not answer", LIGHT).await;

    assert_eq!(light.state, "Ready");
    assert!(light.title.starts_with("Ready – inferq"), "{}", light.title);
    let models: Vec<_> = dark.models.keys().collect();
    assert_eq!(models, ["affine", "two-heads"]);
    let affine = &dark.models["affine"];
    assert!(figure(&dark.total, "Jobs/s") > 0.0, "{:?}", dark.total);
    assert!(figure(affine, "Jobs/s") > 0.0, "{affine:?}");
    assert!(figure(affine, "Rows a batch") >= 1.0, "{affine:?}");
    assert!(figure(affine, "In the worker") > 0.0, "{affine:?}");
    assert!(figure(affine, "Run of a batch") > 0.0, "{affine:?}");
    assert!(figure(affine, "Not OK") > 0.0, "{affine:?}");
    assert!(dark.text.contains(" INVALID_ARGUMENT"), "{}", dark.text);
    assert!(affine["Waiting"].contains("of work"), "{affine:?}");
    assert!(dark.text.contains("Rows of version 2: independent"), "{}", dark.text);
    assert_eq!(dark.models["two-heads"]["Jobs/s"], "0");
    assert_eq!(dark.broker["Consuming"], "up made once");
    assert_ne!(light.background, dark.background);
    assert_ne!(light.ink, dark.ink);
    assert!(gone.state.starts_with("The worker does not answer"), "{}", gone.state);
    assert!(
        gone.models.contains_key("affine"),
        "what was last seen is kept: {gone:?}"
    );
    for seen in [&light, &dark, &narrow, &gone] {
        assert!(seen.fits, "{seen:?}");
        assert_eq!(seen.barriers, Vec::<String>::new());
        let foreign: Vec<_> = seen.requests.iter().filter(|url| !is_own(url, &browser.page)).collect();
        assert!(foreign.is_empty(), "{foreign:?}");
    }
    for seen in [&light, &dark, &narrow] {
        assert_eq!(seen.faults, Vec::<String>::new());
    }
    assert!(!browser.close().await, "somebody else's script is run");
}

/// Of the page's worker, or of nobody: the icon is part of the page.
fn is_own(url: &str, page: &str) -> bool {
    url.starts_with("data:") || url.starts_with(page)
}

#[tokio::test]
async fn the_page_of_a_worker_without_a_broker_says_that_it_is_not_ready_and_why() {
    let scene = Scene::new();
    let port = crate::support::link::ClosedPort::new();
    let uri = crate::support::link::through(&scene.uri, port.address());
    let worker = scene.worker("affine").env("INFERQ_BROKER__URI", uri).spawn();
    worker.unready_because("connect").await;
    let mut browser = Browser::open(&worker).await;

    let seen = browser.until("Not ready", LIGHT).await;
    browser.close().await;

    assert!(seen.state.starts_with("Not ready"), "{}", seen.state);
    assert!(seen.state.contains("broker: "), "{}", seen.state);
    assert_eq!(
        seen.broker["Consuming"].split(' ').next(),
        Some("down"),
        "{}",
        seen.text
    );
    assert_eq!(seen.barriers, Vec::<String>::new());
}
