//! Is a worker let in by certificates and secrets that change, does it ask for no more than it needs, and keep them secret?

use std::path::Path;
use std::sync::OnceLock;

use crate::support::body::Body;
use crate::support::certificates::{Authority, Validity};
use crate::support::producer::unique;
use crate::support::worker::Setup;
use crate::support::{Broker, Job, Producer, Request, Scene, Tensor, Worker, eventually, root, within};

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
