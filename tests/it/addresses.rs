//! Is the broker found at any of its addresses, and the next one as soon as one is lost?

use inferq::client::{Client, Options};
use inferq::config::Config;

use crate::support::link::{ClosedPort, Link, through};
use crate::support::scene::{as_producer, as_worker};
use crate::support::{Broker, Request, Scene, Tensor, Worker, within};

fn row() -> Request {
    Request::new([Tensor::fp32("x", &[[1.0, 2.0, 3.0, 4.0]])])
}

/// Two ways to the broker of all tests, and one that leads nowhere.
struct Ways {
    dead: ClosedPort,
    alive: [Link; 2],
}

impl Ways {
    async fn new() -> Self {
        let port = Broker::shared().amqp_port();
        Self {
            dead: ClosedPort::new(),
            alive: [Link::to(port).await, Link::to(port).await],
        }
    }

    /// All of them, as `uri` names one.
    fn uris(&self, uri: &str) -> Vec<String> {
        let alive = self.alive.iter().map(|link| link.uri(uri));
        [through(uri, self.dead.address())].into_iter().chain(alive).collect()
    }
}

/// The addresses that a connection has led to so far, of which there are `count` at least.
async fn led_to(worker: &Worker, connection: &str, count: usize) -> Vec<String> {
    let all = |log: &str| -> Vec<String> {
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines
            .filter(|line| line["message"] == "connected to the broker" && line["connection"] == connection)
            .map(|line| line["broker"].as_str().expect("an address").to_owned())
            .collect()
    };
    crate::support::eventually(&format!("connection {count} to {connection}"), || async {
        Some(all(&worker.log())).filter(|led| led.len() >= count)
    })
    .await
}

#[tokio::test]
async fn a_worker_goes_to_the_next_address_at_once() {
    let ways = Ways::new().await;
    let scene = Scene::new();
    let worker = scene
        .worker("affine")
        .env("INFERQ_BROKER__URI", ways.uris(&as_worker(&scene.uri)).join(","));
    let worker = worker.start().await;
    let mut producer = scene.producer().await;
    let first = led_to(&worker, "consume", 1).await.remove(0);

    let lost = ways.alive.iter().find(|link| link.uri(&scene.uri).contains(&first));
    lost.expect("one of the ways that lead to the broker").close();
    let next = led_to(&worker, "consume", 2).await.remove(1);
    let reply = producer.call(scene.job("affine", row().msgpack())).await;

    assert_eq!(reply.status(), "OK");
    assert_ne!(next, first);
    assert!(
        ways.alive.iter().any(|link| link.uri(&scene.uri).contains(&next)),
        "{next}"
    );
    assert!(!worker.log().contains("trying again within"), "it paused first");
    worker.drain().await;
    scene.nothing_is_left("affine").await;
}

#[tokio::test]
async fn a_list_of_addresses_may_stand_in_a_file_in_a_secret_or_in_a_flag() {
    let ways = Ways::new().await;
    let scene = Scene::new();
    scene.declare("affine").await;
    let uris = ways.uris(&scene.uri);
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let listed: Vec<String> = uris.iter().map(|uri| format!("{uri:?}")).collect();
    std::fs::write(
        path("inferq.toml"),
        format!("[broker]\nuri = [{}]\n", listed.join(", ")),
    )
    .expect("a file");
    std::fs::write(path("uris"), uris.join("\n")).expect("a file");
    let hosts = uris[1..].iter().map(|uri| uri.rsplit_once('@').expect("a user").1);
    let hosts: Vec<&str> = hosts.map(|rest| rest.split('/').next().expect("a host")).collect();
    let user = scene.uri.rsplit_once('@').expect("a user").0;
    let by_hosts = format!("{user}@{},{}/%2f", ways.dead.address(), hosts.join(","));

    let check = ["topology", "check", "affine"];
    let default = ("INFERQ_BROKER__URI", "amqp://guest:guest@127.0.0.1:5672/%2f");
    let by_secret = [default, ("INFERQ_BROKER__URI_FILE", &path("uris"))];
    for ran in [
        scene
            .inferq(&[&check[..], &["--broker", &uris.join(",")]].concat())
            .await,
        scene.inferq(&[&check[..], &["--broker", &by_hosts]].concat()).await,
        scene.inferq_with(&by_secret, &check).await,
        scene.inferq_with(&[("INFERQ_BROKER__URI", &by_hosts)], &check).await,
    ] {
        ran.ok();
    }
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_inferq"));
    command.args(["--config", &path("inferq.toml")].iter().chain(&check));
    let output = command
        .env("INFERQ_TOPOLOGY__PREFIX", &scene.prefix)
        .env_remove("INFERQ_BROKER__URI")
        .output();
    let output = within("inferq to end", output).await.expect("inferq starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_client_goes_to_the_next_address_and_its_calls_are_answered() {
    let ways = Ways::new().await;
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let uris = ways.uris(&as_producer(&scene.uri)).join(",");
    let config = Config::from_overrides(&[("broker.uri", uris)]).expect("URIs");
    let options = Options {
        prefix: scene.prefix.clone(),
        ..Options::default()
    };
    let opening = Client::open(&config.broker, options);
    let client = within("a client", opening).await.expect("the broker takes clients");
    let rows = ndarray::arr2(&[[1.0_f32, 2.0, 3.0, 4.0]]);

    for link in [&ways.alive[0], &ways.alive[1]] {
        link.cut();
        let answer: ndarray::ArrayD<f32> = within("an answer", client.predict_array("affine", &rows))
            .await
            .expect("an answer");
        assert_eq!(answer.into_raw_vec_and_offset().0, [2.0, 5.0, 8.0, 11.0]);
    }
    ways.alive[0].close();
    let answered = within("an answer", client.predict_array::<f32, f32, _, _>("affine", &rows)).await;

    assert!(answered.is_ok(), "{answered:?}");
    worker.drain().await;
}

#[tokio::test]
async fn addresses_that_are_all_dead_are_all_named() {
    let scene = Scene::new();
    let [one, two] = [ClosedPort::new(), ClosedPort::new()];
    let uris = [&one, &two].map(|port| through(&scene.uri, port.address())).join(",");

    let ran = scene.inferq(&["topology", "check", "affine", "--broker", &uris]).await;

    ran.failed();
    assert!(
        ran.stderr.contains("none of the 2 addresses in broker.uri can be used"),
        "{}",
        ran.stderr
    );
    for port in [&one, &two] {
        assert!(ran.stderr.contains(&port.address().to_string()), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn an_empty_virtual_host_is_named_as_such() {
    let scene = Scene::new();
    let uri = scene.uri.trim_end_matches("%2f");
    assert!(uri.ends_with('/'));

    let ran = scene.inferq(&["topology", "check", "affine", "--broker", uri]).await;

    ran.refused();
    assert!(
        ran.stderr
            .contains("the empty virtual host, which a URI that ends in `/` names"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("`/%2f`"), "{}", ran.stderr);
}

#[tokio::test]
async fn an_unencoded_password_is_hinted_at_and_never_shown() {
    const SECRET: &str = "s3cret";
    let scene = Scene::new();
    let [user, address] = ["someone", scene.uri.rsplit_once('@').expect("a user").1];
    for (uri, hint) in [
        (format!("amqp://{user}:{SECRET}@x/{SECRET}@{address}"), "/ is %2F"),
        (format!("amqp://{user}:{SECRET}#{SECRET}@{address}"), "# is %23"),
        (format!("amqp://{user}:{SECRET}%@{SECRET}@{address}"), "written %40"),
    ] {
        let ran = scene.inferq(&["topology", "check", "affine", "--broker", &uri]).await;

        assert!(ran.code.is_some_and(|code| code > 0), "{ran:?}");
        assert!(ran.stderr.contains(hint), "{}", ran.stderr);
        assert!(!ran.stderr.contains(SECRET), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn connections_that_are_closed_on_purpose_are_not_made_again() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;

    worker.drain().await;

    let log = worker.log();
    assert!(log.contains("draining") && log.contains("drained"), "{log}");
    assert!(!log.contains("trying again"), "{log}");
    assert!(!log.contains("lost the broker"), "{log}");
}
