//! Is a worker let in by certificates and secrets that change, does it ask for no more than it needs, and keep them secret?

use std::path::Path;
use std::sync::OnceLock;

use crate::support::body::{Body, JSON, MSGPACK};
use crate::support::certificates::{Authority, Validity};
use crate::support::producer::unique;
use crate::support::scene::as_producer;
use crate::support::worker::Setup;
use crate::support::{
    Broker, Element, Job, Nesting, Producer, Reply, Request, Scene, Tensor, Worker, eventually, root, within,
};

/// A broker that speaks TLS with a certificate of a private authority, and lets users in by certificates of the same.
struct Secured {
    authority: Authority,
    broker: Broker,
}

impl Secured {
    fn shared() -> &'static Self {
        static SHARED: OnceLock<Secured> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(Validity::Now))
    }

    fn start(validity: Validity) -> Self {
        let authority = Authority::new("the tests' authority");
        authority.server(validity);
        let folder = authority.folder().to_str().expect("UTF-8");
        let broker = Broker::with_options(&["--plugins", "rabbitmq_auth_mechanism_ssl", "--tls", folder]);
        Self { authority, broker }
    }

    fn scene(&self) -> Scene {
        Scene::at(self.broker.uri())
    }

    /// A worker that comes over TLS with a password.
    fn worker(&self, scene: &Scene, authorities: &Path) -> Setup {
        let uri = crate::support::scene::as_worker(&scene.uri).replace("amqp://", "amqps://");
        let plain = format!("127.0.0.1:{}", self.broker.amqp_port());
        let uri = uri.replace(&plain, &format!("localhost:{}", self.broker.tls_port()));
        scene
            .worker("affine")
            .env("INFERQ_BROKER__URI", uri)
            .env("INFERQ_BROKER__CA_FILE", authorities)
    }

    /// A worker that comes over TLS with a certificate and without a password.
    fn worker_by_certificate(&self, scene: &Scene, certificate: &Path, key: &Path) -> Setup {
        scene
            .worker("affine")
            .env(
                "INFERQ_BROKER__URI",
                format!("amqps://localhost:{}/%2f", self.broker.tls_port()),
            )
            .env("INFERQ_BROKER__CA_FILE", self.authority.path("ca.pem"))
            .env("INFERQ_BROKER__CLIENT_CERTIFICATE_FILE", certificate)
            .env("INFERQ_BROKER__CLIENT_KEY_FILE", key)
    }

    /// A user without a password that may do what a worker must.
    fn user_without_password(&self) -> String {
        let user = unique();
        self.broker.ctl(&["add_user", &user, "to-be-cleared"]);
        self.broker.ctl(&["clear_password", &user]);
        allow(&self.broker, "/", &user);
        user
    }
}

/// Gives `user` what a worker needs, in the words of the README.
fn allow(broker: &Broker, host: &str, user: &str) {
    let names = r"^t[0-9]+-[0-9]+(\..+)?$";
    let and_replies = r"^(t[0-9]+-[0-9]+(\..+)?|amq\.default)$";
    broker.ctl(&["set_permissions", "-p", host, user, names, and_replies, names]);
}

fn job(scene: &Scene) -> Job {
    scene.job("affine", Request::new([Tensor::fp32("x", &[[1.0; 4]])]).msgpack())
}

async fn serves(scene: &Scene) {
    let reply = scene.producer().await.call(job(scene)).await;
    assert_eq!(reply.status(), "OK");
}

#[tokio::test]
async fn a_broker_with_a_certificate_of_a_private_authority_is_served_over_tls() {
    let secured = Secured::shared();
    let scene = secured.scene();
    let worker = secured.worker(&scene, &secured.authority.path("ca.pem")).start().await;

    serves(&scene).await;
    let encrypted = secured.broker.ctl(&["list_connections", "ssl", "client_properties"]);
    worker.drain().await;

    let own = encrypted
        .lines()
        .find(|line| line.contains("inferq") && line.contains("consume"));
    assert!(own.is_some_and(|line| line.starts_with("true")), "{encrypted}");
}

/// Of frames and of records; the second reply comes back.
#[tokio::test]
async fn replies_of_many_frames_come_whole_over_tls() {
    const ROWS: usize = 20_000;
    let secured = Secured::shared();
    let scene = secured.scene();
    let worker = secured.worker(&scene, &secured.authority.path("ca.pem")).start().await;
    let mut producer = scene.producer().await;

    let big = || scene.job("affine", Request::new([Tensor::fp32("x", &[[1.0; 4]; ROWS])]).msgpack());
    producer.send(big().reply_to(&scene.queue("gone"))).await;
    let reply = producer.call(big()).await;
    let letters = scene.dead_letters("affine", 1).await;
    worker.drain().await;

    assert_eq!(reply.response().output("y").floats().len(), 4 * ROWS);
    assert_eq!(
        letters[0].header("inferq-error-code").as_deref(),
        Some("UNROUTABLE_REPLY")
    );
}

#[tokio::test]
async fn another_authority_is_named_and_the_right_one_put_in_its_place_is_used_without_a_restart() {
    let secured = Secured::shared();
    let scene = secured.scene();
    let other = Authority::new("somebody else's authority");
    let worker = secured.worker(&scene, &other.path("ca.pem")).spawn();

    let reason = worker.unready_because("none of the authorities").await;
    std::fs::copy(secured.authority.path("ca.pem"), other.path("ca.pem")).expect("a writable folder");
    worker.ready_again().await;
    serves(&scene).await;
    worker.drain().await;

    for word in ["certificate of the broker", "localhost:", "broker.ca_file", "ca.pem"] {
        assert!(reason.contains(word), "{word} is not in: {reason}");
    }
}

#[tokio::test]
async fn a_certificate_of_the_broker_that_expired_is_named_and_a_new_one_is_accepted_without_a_restart() {
    let secured = Secured::start(Validity::Expired);
    let scene = secured.scene();
    let worker = secured.worker(&scene, &secured.authority.path("ca.pem")).spawn();

    let reason = worker.unready_because("expired").await;
    secured.authority.server(Validity::Now);
    secured.broker.ctl(&["eval", "ssl:clear_pem_cache()."]);
    worker.ready_again().await;
    serves(&scene).await;
    worker.drain().await;

    assert!(reason.contains("certificate of the broker"), "{reason}");
}

#[tokio::test]
async fn a_client_certificate_serves_without_any_password() {
    let secured = Secured::shared();
    let scene = secured.scene();
    let user = secured.user_without_password();
    let file = unique();
    secured.authority.client(&file, &user, Validity::Now);
    let (certificate, key) = files(&secured.authority, &file);
    let worker = secured.worker_by_certificate(&scene, &certificate, &key).start().await;

    serves(&scene).await;
    let connections = secured.broker.ctl(&["list_connections", "user", "auth_mechanism"]);
    worker.drain().await;

    let own = connections.lines().find(|line| line.starts_with(&user));
    assert!(own.is_some_and(|line| line.contains("EXTERNAL")), "{connections}");
}

#[tokio::test]
async fn a_client_certificate_that_expired_is_named_and_a_new_one_on_disk_is_shown_without_a_restart() {
    let secured = Secured::shared();
    let scene = secured.scene();
    let user = secured.user_without_password();
    let file = unique();
    secured.authority.client(&file, &user, Validity::Expired);
    let (certificate, key) = files(&secured.authority, &file);
    let worker = secured.worker_by_certificate(&scene, &certificate, &key).spawn();

    let reason = worker.unready_because("expired").await;
    secured.authority.client(&file, &user, Validity::Now);
    worker.ready_again().await;
    serves(&scene).await;
    worker.drain().await;

    assert!(reason.contains("broker.client_certificate_file"), "{reason}");
}

#[tokio::test]
async fn a_client_certificate_of_a_user_that_the_broker_does_not_know_is_refused_in_one_sentence() {
    let secured = Secured::shared();
    let scene = secured.scene();
    let file = unique();
    secured.authority.client(&file, "nobody", Validity::Now);
    let (certificate, key) = files(&secured.authority, &file);

    let worker = secured.worker_by_certificate(&scene, &certificate, &key).spawn();

    let reason = worker.unready_because("refused").await;
    assert!(reason.contains("broker.client_certificate_file"), "{reason}");
}

fn files(authority: &Authority, file: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    (
        authority.path(&format!("{file}.pem")),
        authority.path(&format!("{file}.key")),
    )
}

#[tokio::test]
async fn a_password_that_is_changed_at_the_broker_and_in_its_file_needs_no_restart() {
    let broker = Broker::shared();
    let scene = Scene::new();
    let user = unique();
    broker.ctl(&["add_user", &user, "the-old-password"]);
    allow(broker, "/", &user);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("uri");
    let uri = |password: &str| format!("amqp://{user}:{password}@127.0.0.1:{}/%2f\n", broker.amqp_port());
    std::fs::write(&file, uri("the-old-password")).expect("a writable folder");
    let worker = scene
        .worker("affine")
        .without_env("INFERQ_BROKER__URI")
        .env("INFERQ_BROKER__URI_FILE", &file)
        .start()
        .await;

    broker.ctl(&["change_password", &user, "the-new-password"]);
    close_connections(broker, &user);
    // Twice as long each time, where an outage is asked after every 3 s at most.
    worker
        .logged("a long wait", |line| {
            line.contains("trying again within 4s").then_some(())
        })
        .await;
    let reason = worker.unready_because("refused").await;
    std::fs::write(&file, uri("the-new-password")).expect("a writable folder");
    worker.ready_again().await;
    serves(&scene).await;
    worker.drain().await;

    assert!(reason.contains(&user), "{reason}");
    for password in ["the-old-password", "the-new-password"] {
        assert!(!worker.log().contains(password), "{}", worker.log());
    }
}

/// As Kubernetes mounts a secret with both: nobody percent-encodes anything.
#[tokio::test]
async fn user_and_password_in_files_of_their_own_are_taken_as_they_stand() {
    let broker = Broker::shared();
    let scene = Scene::new();
    let (user, password) = (unique(), "p@ss/w%6Frd:#?");
    broker.ctl(&["add_user", &user, password]);
    allow(broker, "/", &user);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str, holds: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, holds).expect("a writable folder");
        path
    };
    let uri = format!("amqp://127.0.0.1:{}/%2f", broker.amqp_port());

    let worker = scene
        .worker("affine")
        .env("INFERQ_BROKER__URI", &uri)
        .env("INFERQ_BROKER__USERNAME_FILE", file("username", &user))
        .env(
            "INFERQ_BROKER__PASSWORD_FILE",
            file("password", &format!("{password}\n")),
        )
        .start()
        .await;
    serves(&scene).await;
    worker.drain().await;

    assert!(!worker.log().contains(password), "{}", worker.log());
}

/// Closes what `user` has open, and nothing of anybody else: the tests share the broker.
fn close_connections(broker: &Broker, user: &str) {
    for line in broker.ctl(&["list_connections", "pid", "user"]).lines() {
        if let Some((pid, name)) = line.split_once('\t')
            && name == user
        {
            broker.ctl(&["close_connection", pid, "maintenance"]);
        }
    }
}

/// A worker on a virtual host of its own, as a user of its own.
struct Tenant {
    broker: &'static Broker,
    scene: Scene,
    host: String,
    user: String,
}

impl Tenant {
    fn new() -> Self {
        let broker = Broker::shared();
        let (host, user) = (unique(), unique());
        let mut scene = Scene::new();
        let administrator = scene.uri.clone();
        scene.uri = administrator.replace("/%2f", &format!("/{host}"));
        broker.ctl(&["add_user", &user, "secret"]);
        let tenant = Self {
            broker,
            scene,
            host,
            user,
        };
        tenant.add_host();
        tenant
    }

    fn add_host(&self) {
        self.broker.ctl(&["add_vhost", &self.host]);
        allow(self.broker, &self.host, &self.user);
        let (administrator, _) = self.scene.uri["amqp://".len()..].split_once(':').expect("a URI");
        for user in [administrator.to_owned(), format!("{administrator}-producer")] {
            self.broker
                .ctl(&["set_permissions", "-p", &self.host, &user, ".*", ".*", ".*"]);
        }
    }

    async fn worker(&self) -> Worker {
        let uri = format!(
            "amqp://{}:secret@127.0.0.1:{}/{}",
            self.user,
            self.broker.amqp_port(),
            self.host
        );
        let worker = self.scene.worker("affine").env("INFERQ_BROKER__URI", uri);
        worker.start().await
    }

    fn permit(&self, configure: &str, write: &str, read: &str) {
        let (host, user) = (self.host.as_str(), self.user.as_str());
        self.broker
            .ctl(&["set_permissions", "-p", host, user, configure, write, read]);
    }
}

#[tokio::test]
async fn a_virtual_host_that_is_removed_is_named_and_served_again_once_it_is_back() {
    let tenant = Tenant::new();
    let worker = tenant.worker().await;
    serves(&tenant.scene).await;

    tenant.broker.ctl(&["delete_vhost", &tenant.host]);
    let reason = worker.unready_because("refused").await;
    tenant.add_host();
    worker.ready_again().await;
    serves(&tenant.scene).await;
    worker.drain().await;

    assert!(reason.contains(&tenant.host), "{reason}");
    assert!(reason.contains(&tenant.user), "{reason}");
}

#[tokio::test]
async fn a_permission_to_read_that_is_taken_away_is_named_and_the_worker_comes_back_with_it() {
    let tenant = Tenant::new();
    let worker = tenant.worker().await;

    tenant.permit(".*", ".*", "^$");
    close_connections(tenant.broker, &tenant.user);
    let reason = worker.unready_because("access_refused").await;
    allow(tenant.broker, &tenant.host, &tenant.user);
    worker.ready_again().await;
    serves(&tenant.scene).await;
    worker.drain().await;

    assert!(reason.contains("queue: "), "{reason}");
    assert!(reason.contains(&tenant.scene.prefix), "{reason}");
    let lacking = format!("user `{}` lacks the permission `read` on ", tenant.user);
    assert!(reason.contains(&lacking), "{reason}");
}

/// A user who lacks one permission on one thing of a scene of his own.
struct Short {
    scene: Scene,
    user: String,
    permission: &'static str,
    thing: String,
}

impl Short {
    /// `name` stands behind the prefix of the scene.
    fn of(permission: &'static str, kind: &str, name: &str) -> Self {
        let scene = Scene::new();
        Self {
            thing: format!("{kind} '{}{name}'", scene.prefix),
            user: unique(),
            scene,
            permission,
        }
    }

    /// The user with his permissions, as a term of Erlang.
    fn term(&self) -> String {
        let (_, name) = self.thing.split_once(' ').expect("a kind and a name");
        let all_but = format!("^(?!{}$)", name.trim_matches('\'').replace('.', "[.]"));
        let [configure, write, read] = ["configure", "write", "read"].map(|permission| {
            if permission == self.permission {
                all_but.as_str()
            } else {
                ".*"
            }
        });
        format!(
            r#"{{<<"{}">>, <<"{configure}">>, <<"{write}">>, <<"{read}">>}}"#,
            self.user
        )
    }

    fn worker(&self) -> Worker {
        let (_, rest) = self.scene.uri.split_once('@').expect("a URI with a user");
        let uri = format!("amqp://{}:secret@{rest}", self.user);
        self.scene.worker("affine").env("INFERQ_BROKER__URI", uri).spawn()
    }
}

#[tokio::test]
async fn each_permission_that_is_missing_is_named_with_its_thing_its_user_and_its_virtual_host() {
    let shorts = [
        Short::of("configure", "exchange", ""),
        Short::of("configure", "exchange", ".dead"),
        Short::of("configure", "queue", ".affine"),
        Short::of("configure", "queue", ".affine.dead"),
        // Of the job queue's dead letter exchange; of a queue that is bound.
        Short::of("write", "exchange", ".dead"),
        Short::of("write", "queue", ".affine"),
        Short::of("write", "queue", ".affine.dead"),
        // Of an exchange that a queue is bound to; of a queue that has dead letters, and is consumed from.
        Short::of("read", "exchange", ""),
        Short::of("read", "exchange", ".dead"),
        Short::of("read", "queue", ".affine"),
    ];
    let terms: Vec<String> = shorts.iter().map(Short::term).collect();
    // In one command: each takes seconds.
    Broker::shared().ctl(&[
        "eval",
        &format!(
            r#"lists:foreach(fun({{User, Configure, Write, Read}}) ->
                 rabbit_auth_backend_internal:add_user(User, <<"secret">>, <<"test">>),
                 rabbit_auth_backend_internal:set_permissions(User, <<"/">>, Configure, Write, Read, <<"test">>)
               end, [{}])."#,
            terms.join(", ")
        ),
    ]);

    let workers: Vec<Worker> = shorts.iter().map(Short::worker).collect();

    for (short, worker) in shorts.iter().zip(workers) {
        let reason = worker.unready_because("may not be used").await;
        let lacking = format!(
            "user `{}` lacks the permission `{}` on {} in virtual host `/`; give it with `rabbitmqctl set_permissions",
            short.user, short.permission, short.thing
        );
        assert!(reason.contains(&lacking), "{lacking} is not in\n{reason}");
        assert!(!worker.log().contains("secret"), "{}", worker.log());
        worker.drain().await;
    }
}

#[tokio::test]
async fn a_permission_to_reply_that_is_taken_away_is_named_and_nothing_is_lost_meanwhile() {
    let tenant = Tenant::new();
    let worker = tenant.worker().await;
    let mut producer = tenant.scene.producer().await;

    let names = r"^t[0-9]+-[0-9]+(\..+)?$";
    tenant.permit(names, names, names);
    close_connections(tenant.broker, &tenant.user);
    let id = producer.send(job(&tenant.scene)).await;
    let reason = worker.unready_because("access_refused").await;
    allow(tenant.broker, &tenant.host, &tenant.user);
    let reply = producer.reply(&id).await;
    worker.ready_again().await;
    worker.drain().await;

    assert!(reason.contains("replies: "), "{reason}");
    assert!(
        reason.contains("amq.default") || reason.contains("default exchange"),
        "{reason}"
    );
    let lacking = format!("user `{}` lacks the permission `write` on ", tenant.user);
    assert!(reason.contains(&lacking), "{reason}");
    assert_eq!(reply.status(), "OK");
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_one_sentence() {
    let scene = Scene::new();
    let worker = scene
        .worker("affine")
        .env("INFERQ_BROKER__URI", "amqp://user:secret@broker.invalid:5672/%2f")
        .spawn();

    let reason = within("a reason", worker.unready_because("resolve")).await;

    assert!(reason.contains("`broker.invalid`"), "{reason}");
    assert!(!worker.log().contains("secret"), "{}", worker.log());
}

/// The permissions that the README names for the user `inferq-ROLE`: to configure, to write and to read.
fn permissions_in_the_readme(role: &str) -> [String; 3] {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let line = readme
        .lines()
        .find_map(|line| line.strip_prefix(&format!("rabbitmqctl set_permissions -p / inferq-{role} ")))
        .unwrap_or_else(|| panic!("README.md gives no permissions to {role}"));
    let quoted: Vec<String> = line.split('\'').skip(1).step_by(2).map(str::to_owned).collect();
    quoted.try_into().expect("three patterns")
}

#[tokio::test]
async fn the_permissions_in_the_readme_are_enough_for_workers_and_producers() {
    let broker = Broker::shared();
    let mut scene = Scene::new();
    // The names in the README are free on a virtual host of its own.
    let host = unique();
    broker.ctl(&["add_vhost", &host]);
    let uri = |user: &str| format!("amqp://{user}:secret@127.0.0.1:{}/{host}", broker.amqp_port());
    let mut users = Vec::new();
    for role in ["worker", "checking", "producer"] {
        let user = unique();
        let [configure, write, read] = permissions_in_the_readme(role);
        broker.ctl(&["add_user", &user, "secret"]);
        broker.ctl(&["set_permissions", "-p", &host, &user, &configure, &write, &read]);
        users.push(user);
    }
    scene.prefix = "inferq".to_owned();
    for (user, mode) in [(&users[0], "declare"), (&users[1], "check"), (&users[1], "off")] {
        let worker = scene
            .worker("affine")
            .env("INFERQ_BROKER__URI", uri(user))
            .env("INFERQ_TOPOLOGY__MODE", mode)
            .start()
            .await;
        let mut producer = Producer::connect(&uri(&users[2])).await;
        let reply = producer.call(job(&scene)).await;
        let dead = scene.job("affine", Body::raw("text/plain", "no job")).fire_and_forget();
        producer.send(dead).await;
        eventually("a dead letter", || async {
            let dead = worker.metrics().await.sum("inferq_dead_letters_total");
            (dead == Some(1.0)).then_some(())
        })
        .await;
        worker.drain().await;
        assert_eq!(reply.status(), "OK", "{mode}");
    }
}

/// What must show nowhere: in no log line, metric or reason, however it is written there.
const PASSWORD: &str = "marker-password";
const TEXT: &str = "marker-payload";
const TOKEN: &str = "marker-token";
const NUMBER: i64 = 918_273_645;

/// Each secret as it is, and as the list of bytes that `{:?}` makes of it.
fn secrets() -> Vec<String> {
    let number = NUMBER.to_string();
    let texts = [PASSWORD, TEXT, TOKEN, &number];
    let bytes = |text: &&str| format!("{:?}", text.as_bytes()).trim_matches(['[', ']']).to_owned();
    // The nearest single precision number, which a tensor holds.
    let rounded = ["918273664", "9.1827366"].map(str::to_owned);
    texts
        .iter()
        .map(bytes)
        .chain(texts.map(str::to_owned))
        .chain(rounded)
        .collect()
}

/// Jobs of every kind, good and bad, that hold the secrets in every place.
fn telling_jobs(scene: &Scene) -> Vec<Job> {
    let row = [918_273_645.0, 1.0, 2.0, 3.0];
    let good = Request::new([Tensor::fp32("x", &[row])]);
    let text = Tensor::new("x", "BYTES", &[1, 3], vec![Element::Bytes(TEXT.into()); 3]);
    let mut jobs = vec![
        scene.job("affine", good.clone().id(TEXT).json(Nesting::Nested)),
        scene.job("affine", good.binary()),
        scene.job("affine", good.msgpack()),
        scene.job("identity-bytes", Request::new([text.clone()]).msgpack()),
        // Refused for what it holds.
        scene.job("affine", Request::new([text]).json(Nesting::Flat)),
        // ONNX Runtime itself says which index is out of bounds.
        scene.job("lookup", Request::new([Tensor::int64("index", &[[NUMBER]])]).msgpack()),
        scene
            .job("affine", good.msgpack())
            .text_header("inferq-deadline", TOKEN),
        scene.job("affine", good.msgpack()).text_header("inferq-timing", TOKEN),
    ];
    for body in [
        TEXT.to_owned(),
        format!("{{\"inputs\": \"{TEXT}\"}}"),
        format!("{{\"inputs\": [{{\"name\": \"x\", \"datatype\": {NUMBER}, \"shape\": [1, 4], \"data\": []}}]}}"),
        format!("{{\"inputs\": [{{\"name\": \"x\", \"shape\": [1, 4], \"data\": [1, 2, 3, \"{TEXT}\"]}}]}}"),
        format!("{{\"inputs\": [{{\"name\": \"x\", \"shape\": [1, 4], \"data\": [1, 2, {NUMBER}]}}]}}"),
    ] {
        for content_type in [JSON, MSGPACK, "marker/none"] {
            let body = Body::raw(JSON, body.clone()).content_type(content_type);
            jobs.push(scene.job("affine", body));
        }
    }
    let headers = |job: Job| {
        job.text_header("authorization", TOKEN)
            .text_header("traceparent", TOKEN)
            .text_header("inferq-model-version-of-mine", TOKEN)
    };
    jobs.into_iter().map(headers).collect()
}

#[tokio::test]
async fn no_credential_and_no_payload_shows_in_any_log_line_metric_or_reason() {
    let broker = Broker::start();
    let scene = Scene::at(broker.uri());
    let user = unique();
    broker.ctl(&["add_user", &user, PASSWORD]);
    allow(&broker, "/", &user);
    let uri = format!("amqp://{user}:{PASSWORD}@127.0.0.1:{}/%2f", broker.amqp_port());
    let worker = scene
        .worker("affine,identity-bytes,lookup,slow")
        .env("INFERQ_BROKER__URI", &uri)
        .env(
            "INFERQ_TELEMETRY__LOG",
            "trace,lapin=trace,lapin::channels=trace,ort=trace,ort::logging=trace",
        )
        .env("INFERQ_BATCH__ROWS_MAX", "1")
        .start()
        .await;
    let mut said = Vec::new();

    let mut producer = scene.producer().await;
    let ids = producer.send_all(telling_jobs(&scene)).await;
    let replies = producer.replies(&ids).await;
    let gone = telling_jobs(&scene)
        .into_iter()
        .map(|job| job.reply_to("no-such-queue"));
    producer.send_all(gone).await;
    let silent = telling_jobs(&scene).into_iter().map(Job::fire_and_forget);
    producer.send_all(silent).await;
    for model in ["affine", "identity-bytes", "lookup"] {
        scene.until_waiting(&scene.queue(model), 0).await;
    }
    said.push(worker.metrics().await.text().to_owned());
    // Work enough that the alarm comes in the middle of it: only a connection that publishes is told.
    let row = Tensor::fp32("x", &[[918_273_645.0, 1.0, 2.0, 3.0]]);
    let slow = scene.job("slow", Request::new([row]).msgpack());
    producer.send_all(std::iter::repeat_n(slow, 300)).await;
    worker.held_still(|| broker.ctl(&["set_vm_memory_high_watermark", "0"]));
    said.push(worker.unready_because("block").await);
    broker.ctl(&["set_vm_memory_high_watermark", "0.9"]);
    worker.ready_again().await;
    broker.ctl(&["change_password", &user, "another-password"]);
    close_connections(&broker, &user);
    said.push(worker.unready_because("refused").await);
    said.push(worker.metrics().await.text().to_owned());
    broker.ctl(&["change_password", &user, PASSWORD]);
    worker.ready_again().await;
    worker.drain().await;
    said.push(worker.log());

    // What ONNX Runtime says of an input quotes it. It goes to the sender, and is logged nowhere.
    let of_the_model = |sentence: &String| sentence.starts_with("the model failed on this input");
    let failed = replies.values().flatten().filter_map(Reply::failure);
    said.extend(
        failed
            .map(|(sentence, _)| sentence)
            .filter(|sentence| !of_the_model(sentence)),
    );
    assert!(
        worker.log().contains("job failed"),
        "the log is not at its most verbose"
    );
    for secret in secrets() {
        for said in &said {
            let line = said.lines().find(|line| line.contains(&secret));
            assert_eq!(line, None, "shows {secret}");
        }
    }
}

/// Publishes a job whose headers hold arrays in one another, as deep as a frame has room for; a client of ours would need as
/// deep a stack as the worker. Arguments: the URI, the exchange, the reply queue or nothing, a model's rows.
const NESTED: &str = r#"
import struct, sys
import pika
from pika import data

uri, exchange, reply_to, body = sys.argv[1:]
plain = data.encode_table

def encode_table(pieces, table):
    if not table or "deep" not in table:
        return plain(pieces, table)
    value = b""
    for _ in range(table["deep"]):
        value = b"A" + struct.pack(">I", len(value)) + value
    entry = b"\x04deep" + value
    pieces += [struct.pack(">I", len(entry)), entry]
    return 4 + len(entry)

data.encode_table = encode_table
channel = pika.BlockingConnection(pika.URLParameters(uri)).channel()
channel.confirm_delivery()
for depth in (1000, 26000):
    properties = pika.BasicProperties(
        content_type="application/json", reply_to=reply_to or None, correlation_id=f"deep-{depth}", headers={"deep": depth}
    )
    channel.basic_publish(exchange, "affine", body, properties, mandatory=True)
"#;

/// Runs one of these producers, with the rights of any other.
async fn publish_with(program: &str, scene: &Scene, reply_to: &str, body: &str) {
    let running = tokio::process::Command::new(root().join(".deps/python/bin/python"))
        .args(["-c", program, &as_producer(&scene.uri), &scene.prefix, reply_to, body])
        .kill_on_drop(true)
        .output();
    let ran = within("the hostile producer", running).await.expect("Python starts");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

#[tokio::test]
async fn headers_nested_as_deep_as_a_frame_allows_do_no_harm() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;
    let good = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}"#;

    for (reply_to, body) in [(producer.reply_queue(), good), ("", "no request")] {
        publish_with(NESTED, &scene, reply_to, body).await;
    }
    let replies = [producer.reply("deep-1000").await, producer.reply("deep-26000").await];
    let dead = scene.dead_queue("affine");
    scene.until_waiting(&dead, 2).await;
    serves(&scene).await;
    let metrics = worker.metrics().await;
    worker.drain().await;

    for reply in replies {
        assert_eq!(reply.status(), "OK");
    }
    assert_eq!(metrics.sum("inferq_deliveries_total"), Some(5.0), "each came once");
}

/// Publishes a job for each property that is a text, and for a header's name, with a byte in it that is not UTF-8. AMQP
/// allows that, and clients that take a text for bytes send it. Arguments as above.
const NOT_UTF_8: &str = r#"
import sys
import pika

uri, exchange, reply_to, body = sys.argv[1:]
channel = pika.BlockingConnection(pika.URLParameters(uri)).channel()
channel.confirm_delivery()
properties = ["content_encoding", "correlation_id", "message_id", "type", "app_id", "cluster_id"]
for number, name in enumerate([*properties, "headers"]):
    given = dict(content_type="application/json", reply_to=reply_to or None, correlation_id=f"text-{number}")
    given[name] = {b"name\xff": "value"} if name == "headers" else b"text-%d\xff" % number
    channel.basic_publish(exchange, "affine", body, pika.BasicProperties(**given), mandatory=True)
"#;

/// How many of these there are, and which of them has its correlation id for it.
const TEXTS: usize = 7;
const CORRELATED: usize = 1;

#[tokio::test]
async fn texts_that_are_not_utf_8_cost_nobody_an_answer_and_nobody_a_dead_letter() {
    const JOBS: usize = 40;
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let mut producer = scene.producer().await;
    let good = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}"#;

    let before = producer.send_all((0..JOBS / 2).map(|_| job(&scene))).await;
    publish_with(NOT_UTF_8, &scene, producer.reply_queue(), good).await;
    publish_with(NOT_UTF_8, &scene, "", "no request").await;
    let after = producer.send_all((0..JOBS / 2).map(|_| job(&scene))).await;
    let texts = (0..TEXTS).map(|number| match number {
        CORRELATED => format!("text-{number}?"),
        _ => format!("text-{number}"),
    });
    let ids: Vec<String> = before.into_iter().chain(after).chain(texts).collect();
    let replies = producer.replies(&ids).await;
    scene.until_waiting(&scene.dead_queue("affine"), TEXTS as u32).await;
    let listed = scene.inferq(&["dead", "list", "affine"]).await;
    let purged = scene
        .inferq(&["dead", "purge", "affine", "--code", "INVALID_ARGUMENT", "--yes"])
        .await;
    let metrics = worker.metrics().await;
    worker.drain().await;

    assert!(replies.values().flatten().all(|reply| reply.status() == "OK"));
    let came = (JOBS + 2 * TEXTS) as f64;
    assert_eq!(metrics.sum("inferq_deliveries_total"), Some(came), "each came once");
    assert_eq!(listed.ok().matches("INVALID_ARGUMENT").count(), TEXTS);
    assert_eq!(purged.ok().trim(), format!("affine: {TEXTS} removed"));
    scene.nothing_is_left("affine").await;
}

#[tokio::test]
async fn a_reply_goes_to_the_queue_of_that_name_or_to_nobody_whatever_else_has_the_name() {
    let scene = Scene::new();
    let worker = scene.worker("affine").start().await;
    let producer = scene.producer().await;
    let long = "x".repeat(255);
    let names: [&str; 8] = [
        &scene.prefix,
        "amq.direct",
        "amq.fanout",
        "amq.topic",
        "a\n\u{1b}[2J\t",
        &long,
        "#",
        "*",
    ];

    let named = names.map(|name| job(&scene).reply_to(name));
    producer.send_all(named).await;
    // An empty name means that nobody wants a reply.
    producer.send(job(&scene).reply_to("")).await;
    let letters = scene.dead_letters("affine", names.len()).await;
    scene.until_waiting(&scene.queue("affine"), 0).await;
    worker.drain().await;

    for letter in letters {
        assert_eq!(letter.header("inferq-error-code").as_deref(), Some("UNROUTABLE_REPLY"));
        let error = letter.header("inferq-error").expect("a sentence");
        assert!(!error.contains(char::is_control), "{error:?}");
    }
    assert!(!worker.log().contains("\\u001b"), "{}", worker.log());
}
