//! Is what the README shows and lists what the program does?

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use inferq::telemetry::health::{Condition, Health};
use inferq::wire::status::Status;
use inferq::wire::tensor::Datatype;
use lapin::types::AMQPValue;
use tokio::process::Command;

use crate::support::producer::headers_of;
use crate::support::{Nesting, Request, Scene, Tensor, eventually, models, root, within};

/// Opens a block of commands; the next block, if it opens with `SHOWN`, is what they print.
const COMMANDS: &str = "```sh test";
const SHOWN: &str = "```text output";
/// Stands for any text in a line that is shown.
const ANY: char = '…';

#[tokio::test]
async fn the_commands_print_what_the_readme_shows() {
    let scene = Scene::new();
    let worker = scene.worker("digits").repository(&models()).start().await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::os::unix::fs::symlink(models(), folder.path().join("models")).expect("a link");
    // The dead letter that the README looks at.
    let bad = Request::new([Tensor::fp32("pixels", &[[0.0; 64]])]).json(Nesting::Flat);
    let job = scene.job("digits", bad).message_id("order-4711").fire_and_forget();
    scene.producer().await.send(job).await;
    scene.until_waiting(&scene.dead_queue("digits"), 1).await;
    let readme = readme();
    let blocks = blocks(&readme);

    let commands: Vec<usize> = (0..blocks.len()).filter(|&at| blocks[at].0 == COMMANDS).collect();
    assert!(!commands.is_empty(), "no block opens with {COMMANDS}");
    for at in commands {
        let (_, commands) = &blocks[at];
        let printed = shell(commands, folder.path(), &scene).await;
        if let Some((SHOWN, shown)) = blocks.get(at + 1).map(|(opening, block)| (*opening, block)) {
            assert!(
                alike(shown, &printed),
                "{commands}\nprints\n{printed}\nand not\n{shown}"
            );
        }
    }
    worker.drain().await;
}

#[tokio::test]
async fn the_metrics_are_those_of_a_worker_with_their_types_and_labels() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;

    // The backlog is looked at once the worker is ready.
    let metrics = eventually("the backlog to be shown", || async {
        let metrics = worker.metrics().await;
        metrics.sum("inferq_backlog_seconds").map(|_| metrics)
    })
    .await;

    let text = metrics.text();
    let actual = text.lines().filter_map(|line| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some((name.to_owned(), (kind.to_owned(), labels(text, name))))
    });
    let listed = table("| metric |").into_iter().map(|row| {
        let (name, labels) = row[0].split_once('{').unwrap_or((&row[0], "}"));
        let labels = labels
            .trim_end_matches('}')
            .split(',')
            .filter(|label| !label.is_empty());
        let labels: BTreeSet<String> = labels.map(str::to_owned).collect();
        (name.to_owned(), (row[1].clone(), labels))
    });
    let actual: BTreeMap<_, _> = actual.collect();
    assert_eq!(listed.collect::<BTreeMap<_, _>>(), actual);
}

#[tokio::test]
async fn the_configuration_keys_are_those_of_the_example_with_their_defaults() {
    let example: toml::Table = stdout(&["config", "example"], &[]).await.parse().expect("TOML");

    let actual = example.iter().flat_map(|(section, keys)| {
        let keys = keys.as_table().expect("a section").iter();
        keys.map(move |(key, value)| (format!("{section}.{key}"), value.to_string()))
    });

    let listed = table("| key | default |").into_iter();
    let listed: BTreeMap<_, _> = listed.map(|row| (row[0].clone(), row[1].clone())).collect();
    assert_eq!(listed, actual.collect::<BTreeMap<_, _>>());
}

#[tokio::test]
async fn the_keys_of_a_model_are_those_that_a_wrong_one_is_answered_with() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = folder.path().join("m");
    std::fs::create_dir_all(model.join("1")).expect("a folder");
    std::fs::write(model.join("1/model.onnx"), "").expect("a file");
    std::fs::write(model.join("model.toml"), "nonsense = 1").expect("a file");

    let repository = folder.path().to_str().expect("UTF-8");
    let output = inferq(&["models", "list", "--models", repository], &[]).await;

    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let (_, allowed) = said.trim_end().rsplit_once("allowed are ").expect("the allowed keys");
    let allowed: BTreeSet<&str> = allowed.split(", ").collect();
    let listed = table("| key of `model.toml` |");
    assert_eq!(listed.iter().map(|row| &*row[0]).collect::<BTreeSet<_>>(), allowed);
}

#[test]
fn the_statuses_datatypes_and_reasons_are_those_of_the_code() {
    let statuses: Vec<_> = table("| `inferq-status` | when |")
        .into_iter()
        .map(|mut row| row.remove(0))
        .collect();
    assert_eq!(statuses, Status::ALL.map(|status| status.name().to_owned()));

    let line = readme();
    let line = line
        .lines()
        .find_map(|line| line.strip_prefix("- Datatypes: "))
        .expect("datatypes");
    let datatypes: Vec<&str> = line.trim_end_matches('.').split(", ").collect();
    assert_eq!(datatypes, Datatype::ALL.map(Datatype::name));

    let health = Health::default();
    for condition in [
        Condition::Loading,
        Condition::ConsumeConnection,
        Condition::PublishConnection,
        Condition::Publishing,
        Condition::DeadLetters("m".into()),
        Condition::Blocked("publish"),
        Condition::Model("m".into()),
        Condition::Consumer("m".into()),
        Condition::Draining,
    ] {
        health.set(condition, "reason");
    }
    let report = health.report();
    let reasons: BTreeSet<_> = report.lines().filter_map(|line| line.split(':').next()).collect();
    let listed = table("| name | the worker is not ready because |");
    assert_eq!(listed.iter().map(|row| &*row[0]).collect::<BTreeSet<_>>(), reasons);
}

#[tokio::test]
async fn the_headers_of_replies_and_dead_letters_are_those_that_come() {
    let scene = Scene::new();
    let worker = scene.worker("affine,coupled").start().await;
    let mut producer = scene.producer().await;
    let request = Request::new([Tensor::fp32("x", &[[1.0; 4]])]);
    let traced = |body| {
        let job = scene.job("affine", body).timed().timestamp(1_700_000_000);
        job.text_header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .text_header("tracestate", "a=b")
    };

    let reply = producer.call(traced(request.binary())).await;
    let row = Request::new([Tensor::fp32("x", &[[1.0; 2]])]);
    let mixed = producer.call(scene.job("coupled", row.msgpack())).await;
    let bad = scene.job(
        "affine",
        Request::new([Tensor::fp32("z", &[[1.0; 4]])]).json(Nesting::Flat),
    );
    producer.send(bad.fire_and_forget()).await;
    let letters = scene.dead_letters("affine", 1).await;
    worker.drain().await;

    assert_eq!((reply.status(), mixed.status()), ("OK".to_owned(), "OK".to_owned()));
    let mut of_replies = names(headers_of(&reply.properties));
    of_replies.extend(names(headers_of(&mixed.properties)));
    assert_eq!(of_replies, in_first_cells("| header | when |"));
    assert_eq!(
        names(headers_of(&letters[0].properties)),
        in_first_cells("| header | value |")
    );
}

#[tokio::test]
async fn the_exit_codes_are_those_of_the_table() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let uri = folder.path().join("uri");
    std::fs::write(&uri, "no URI").expect("a file");
    let uri = uri.to_str().expect("UTF-8");
    let nowhere = ["models", "list", "--models", "/nonexistent/models"];
    let codes = [
        inferq(&["config", "check"], &[]).await,
        inferq(&nowhere, &[]).await,
        inferq(&["config", "check"], &[("INFERQ_BATCH__ROWS_MAX", "0")]).await,
        inferq(&["topology", "apply", "digits"], &[("INFERQ_BROKER__URI_FILE", uri)]).await,
    ];

    let codes = codes.map(|output| output.status.code().map(|code| code.to_string()));
    let arguments = inferq(&["no-such-command"], &[]).await;

    let listed = table("| code | meaning |")
        .into_iter()
        .map(|mut row| Some(row.remove(0)));
    assert_eq!(listed.collect::<Vec<_>>(), codes);
    assert_eq!(arguments.status.code(), Some(2));
}

#[test]
fn the_sentences_that_call_for_action_are_sentences_of_the_code() {
    let mut code: String = sources(&root().join("src")).into_iter().map(joined).collect();
    code += &read(&root().join("helm/inferq/alerts/inferq.yaml"));

    for row in table("| sentence | what to do |") {
        // A sentence is cut where a value stands in it.
        for part in row[0].split(ANY).map(|part| part.trim_matches([' ', ':', ';', ','])) {
            assert!(code.contains(part), "no message holds {part:?}, as in {:?}", row[0]);
        }
    }
}

#[test]
fn the_figures_are_those_of_the_bench() {
    let bench = std::fs::read_to_string(root().join("benches/README.md")).expect("benches/README.md");

    let readme = readme();
    let figures = table_lines(&readme, "| what | goal | least |");

    assert!(!figures.is_empty(), "no figures");
    for figure in figures {
        assert!(
            bench.lines().any(|line| line == figure),
            "not in benches/README.md: {figure}"
        );
    }
}

#[test]
fn the_links_lead_to_files() {
    for (file, text) in [
        ("README.md", readme()),
        ("tests/README.md", read(&root().join("tests/README.md"))),
    ] {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let place = root().join(file).with_file_name(target);
            assert!(
                target.contains("://") || place.exists(),
                "{file}: {target} is not there"
            );
        }
    }
}

#[test]
fn every_module_of_these_tests_is_in_their_readme_with_its_question() {
    let listed = table_in(&read(&root().join("tests/README.md")), "| module | question |");

    let mut modules = Vec::new();
    for line in read(&root().join("tests/it/main.rs")).lines() {
        let module = line.strip_prefix("mod ").and_then(|line| line.strip_suffix(';'));
        if let Some(module) = module.filter(|module| *module != "support") {
            let file = read(&root().join(format!("tests/it/{module}.rs")));
            let question = file.lines().next().and_then(|line| line.strip_prefix("//! "));
            modules.push(vec![module.to_owned(), question.expect("a question").to_owned()]);
        }
    }

    assert_eq!(listed, modules);
}

// --- Reading the README ---

fn readme() -> String {
    read(&root().join("README.md"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every fenced block, with the line that opens it.
fn blocks(text: &str) -> Vec<(&str, String)> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(opening) = lines.find(|line| line.starts_with("```")) {
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push((opening, block.join("\n")));
    }
    blocks
}

/// The rows of the README's table whose head begins so; cells without backticks.
fn table(head: &str) -> Vec<Vec<String>> {
    table_in(&readme(), head)
}

fn table_in(text: &str, head: &str) -> Vec<Vec<String>> {
    let rows = table_lines(text, head);
    assert!(!rows.is_empty(), "no table {head}");
    let cells = |row: &&str| {
        let row = row.trim_matches('|').split(" | ");
        row.map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    rows.iter().map(cells).collect()
}

fn table_lines<'a>(text: &'a str, head: &str) -> Vec<&'a str> {
    let lines = text.lines().skip_while(|line| !line.starts_with(head)).skip(2);
    lines.take_while(|line| line.starts_with('|')).collect()
}

/// What is named in the first cells of a table, several names to a cell.
fn in_first_cells(head: &str) -> BTreeSet<String> {
    let rows = table(head).into_iter();
    rows.flat_map(|row| row[0].split("`, `").map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

// --- Asking the program ---

/// `bash` in `folder`, with the program on its path and the scene's broker.
async fn shell(commands: &str, folder: &Path, scene: &Scene) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_inferq"));
    let mut command = Command::new("bash");
    without_settings(&mut command);
    // In one stream, as a terminal shows it.
    let commands = format!("exec 2>&1\nPATH=$PROGRAMS:$PATH\n{commands}");
    let output = command
        .args(["-euo", "pipefail", "-c", &commands])
        .current_dir(folder)
        .env("PROGRAMS", program.parent().expect("a folder"))
        .env("INFERQ_BROKER__URI", &scene.uri)
        .env("INFERQ_TOPOLOGY__PREFIX", &scene.prefix)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = within("the README's commands", output).await.expect("bash starts");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{commands}\n{}\n{printed}", output.status);
    printed
}

/// The program by itself, without a broker.
async fn inferq(arguments: &[&str], environment: &[(&str, &str)]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inferq"));
    without_settings(&mut command);
    let output = command
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    within("inferq to end", output).await.expect("the inferq binary starts")
}

async fn stdout(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    String::from_utf8(inferq(arguments, environment).await.stdout).expect("UTF-8")
}

fn without_settings(command: &mut Command) {
    #[expect(clippy::disallowed_methods, reason = "read to keep it from the child")]
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("INFERQ_") {
            command.env_remove(name);
        }
    }
}

/// Whether both have the same lines, but for the parts that `ANY` stands for.
fn alike(shown: &str, printed: &str) -> bool {
    let (shown, printed): (Vec<_>, Vec<_>) = (shown.lines().collect(), printed.lines().collect());
    let mut pairs = shown.iter().zip(&printed);
    shown.len() == printed.len() && pairs.all(|(shown, printed)| fits(shown, printed))
}

fn fits(shown: &str, printed: &str) -> bool {
    let parts: Vec<&str> = shown.trim_end().split(ANY).collect();
    let [first, inner @ .., last] = parts.as_slice() else {
        return shown.trim_end() == printed.trim_end();
    };
    let Some(rest) = printed.trim_end().strip_prefix(first) else {
        return false;
    };
    let after = inner.iter().try_fold(rest, |rest, part| Some(rest.split_once(part)?.1));
    after.is_some_and(|rest| rest.ends_with(last))
}

/// The labels of a metric's series, without the bounds of buckets.
fn labels(text: &str, metric: &str) -> BTreeSet<String> {
    let series = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(metric)?;
        let rest = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| rest.strip_prefix(end))
            .unwrap_or(rest);
        rest.strip_prefix('{')?.split_once('}').map(|(labels, _)| labels)
    });
    let labels = series.flat_map(|labels| labels.split(',').filter_map(|label| label.split('=').next()));
    labels.filter(|label| *label != "le").map(str::to_owned).collect()
}

fn names(headers: BTreeMap<String, AMQPValue>) -> BTreeSet<String> {
    let names = headers.into_keys();
    // RabbitMQ adds some of its own to what it delivers.
    names.filter(|name| !name.starts_with("x-")).collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .collect()
}

/// A source file with each string on one line that the code breaks with a backslash.
fn joined(path: PathBuf) -> String {
    let text = read(&path);
    let mut parts = text.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.trim_start())
}
