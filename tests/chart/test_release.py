"""Does a release work? What its pods would run is run here, against a real broker: hook, workers, test, and their end.

No kubelet is at hand, so this file does the little of one that matters: environment, arguments and files come from the rendered
objects, and what would be mounted at a path lies under a folder in the place of that path.
"""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote, quote_plus

import pika
import pytest
import yaml

from keda import address
from conftest import CHART, LEAST, ROOT, merged, of_kind, one, pod_of, render, trigger_of

INFERQ = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug" / "inferq"
LIBRARY = ROOT / ".deps" / "onnxruntime" / "libonnxruntime.so"
PATIENCE = 60  # Seconds until something that comes at once has not come.


@pytest.fixture(scope="module")
def broker():
    """A private RabbitMQ with the management plugin; `ctl` is rabbitmqctl."""
    command = [ROOT / "scripts" / "broker", "--plugins", "rabbitmq_management"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield json.loads(process.stdout.readline())
        process.stdin.close()
        process.wait(PATIENCE)


def ctl(broker: dict, *arguments: str) -> str:
    command = [ROOT / "scripts" / "broker-ctl", broker["dir"], "--quiet", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


class Kubelet:
    """Runs the containers of pods as processes."""

    def __init__(self, folder: Path, objects: list[dict], secrets: dict[str, dict[str, str]]):
        self.folder = folder
        self.secrets = secrets
        self.config_maps = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}

    def start(self, pod: dict, **settings) -> subprocess.Popen:
        """The only container of a pod."""
        (container,) = pod["spec"]["containers"]
        places = self.mount(pod["spec"]["volumes"], container["volumeMounts"])
        # What the image has and the volumes do not.
        places["/opt/inferq/models"] = ROOT / "models"

        def placed(text: str) -> str:
            # In one pass: a place may itself hold one of the paths.
            return re.sub("|".join(map(re.escape, places)), lambda found: str(places[found[0]]), text)

        for path in self.folder.rglob("inferq.toml"):
            path.write_text(placed(path.read_text()))
        environment = dict(re.findall(r"(INFERQ_\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))
        environment |= {entry["name"]: placed(entry["value"]) for entry in container.get("env", [])}
        environment |= {"ORT_DYLIB_PATH": str(LIBRARY), "TMPDIR": str(self.folder)}
        arguments = [placed(argument) for argument in container["args"]]
        return subprocess.Popen([INFERQ, *arguments], env=environment, cwd=self.folder, text=True, **settings)

    def run(self, pod: dict) -> str:
        """The standard output of a container that ends with 0."""
        process = self.start(pod, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        return out

    def mount(self, volumes: list[dict], mounts: list[dict]) -> dict[str, Path]:
        """Where the files of each mount are; the longest paths first, since one mount may lie within another."""
        contents = {volume["name"]: self.files_of(volume) for volume in volumes}
        places = {}
        for mount in sorted(mounts, key=lambda mount: -len(mount["mountPath"])):
            place = self.folder / f"{len(list(self.folder.iterdir()))}-{mount['name']}"
            place.mkdir()
            for name, text in contents[mount["name"]].items():
                (place / name).write_text(text)
            places[mount["mountPath"]] = place / mount["subPath"] if "subPath" in mount else place
        return places

    def files_of(self, volume: dict) -> dict[str, str]:
        if "configMap" in volume:
            return self.config_maps[volume["configMap"]["name"]]
        files = {}
        for source in volume.get("projected", {}).get("sources", []):
            held = self.secrets[source["secret"]["name"]] if "secret" in source else self.config_maps[source["configMap"]["name"]]
            files |= {item["path"]: held[item["key"]] for item in source.get("secret", source.get("configMap"))["items"]}
        return files


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def probe(pod: dict, name: str) -> int:
    """What the worker answers to a probe."""
    (container,) = pod["spec"]["containers"]
    port = next(port["containerPort"] for port in container["ports"] if port["name"] == container[name]["httpGet"]["port"])
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{container[name]['httpGet']['path']}", timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def wait_until(condition, what: str):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


PASSWORD = "p@ss/w%6Frd:#?"  # No URI could hold it as it is.


def users(broker: dict) -> dict[str, dict[str, str]]:
    """Secrets of three users, each with no more than the README of inferq gives to it."""
    names = r"^inferq(\..+)?$"
    permissions = {
        "admin": [names, r"^(inferq(\..+)?|amq\.default)$", names],
        "worker": ["^$", r"^(inferq\.dead|amq\.default)$", names],
        "producer": [r"^amq\.gen-.*$", "^inferq$", r"^amq\.gen-.*$"],
    }
    for name, patterns in permissions.items():
        ctl(broker, "add_user", name, PASSWORD)
        ctl(broker, "set_permissions", name, *patterns)
    return {name: {"username": name, "password": PASSWORD} for name in permissions}


def test_a_release_makes_its_queues_answers_its_test_and_drains(broker, tmp_path):
    port = free_port()
    values = {
        "broker": {"existingSecret": "worker", "login": "password", "host": "127.0.0.1", "port": broker["amqp_port"]},
        "topology": {"job": {"existingSecret": "admin"}},
        "test": {"existingSecret": "producer"},
        "telemetry": {"port": port},
    }
    objects = render(values)
    kubelet = Kubelet(tmp_path, objects, users(broker))
    pod = one(objects, "Deployment")["spec"]["template"]

    made = kubelet.run(one(objects, "Job")["spec"]["template"])
    worker = kubelet.start(pod)
    try:
        wait_until(lambda: probe(pod, "readinessProbe") == 200, "the worker did not become ready")
        live = probe(pod, "livenessProbe")
        answer = json.loads(kubelet.run(one(objects, "Pod")))
        worker.send_signal(signal.SIGTERM)
        ended = worker.wait(pod["spec"]["terminationGracePeriodSeconds"])
    finally:
        worker.kill()
        worker.wait()

    assert "inferq.digits.dead" in made and live == 200 and ended == 0
    assert "output" in json.dumps(answer)
    queues = dict(line.split("\t") for line in ctl(broker, "list_queues", "--no-table-headers", "name", "messages").splitlines())
    assert queues["inferq.digits"] == queues["inferq.digits.dead"] == "0"


def hook_of(broker: dict, settings: dict) -> tuple[list[dict], dict]:
    """The objects of a release whose hook logs in with the Secret `admin`, and its Job."""
    login = {"existingSecret": "admin", "login": "password", "host": "127.0.0.1", "port": broker["amqp_port"]}
    objects = render(merged({"broker": login, "topology": {"prefix": "hook"}}, settings))
    return objects, one(objects, "Job")


def ends(kubelet: Kubelet, job: dict) -> tuple[int, bool, str]:
    """The exit code of a hook, whether its Job would end at once over it, and the last line that it says."""
    process = kubelet.start(job["spec"]["template"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said = process.communicate(timeout=PATIENCE)[1]
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    return process.returncode, process.returncode in rule["onExitCodes"]["values"], said.strip().splitlines()[-1]


def test_the_hook_ends_at_once_on_a_fault_that_stays(broker, tmp_path):
    user, password = broker["uri"].split("//")[1].split("@")[0].split(":")
    ctl(broker, "add_user", "nobody", PASSWORD)
    secrets = {"admin": {"username": user, "password": password}}
    objects, job = hook_of(broker, {})
    (tmp_path / "made").mkdir()
    Kubelet(tmp_path / "made", objects, secrets).run(job["spec"]["template"])

    def of(secret: dict[str, str], settings: dict) -> tuple[int, bool, str]:
        objects, job = hook_of(broker, settings)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return ends(Kubelet(folder, objects, {"admin": secret}), job)

    wrong = of({"username": user, "password": "hunter2"}, {})
    denied = of({"username": "nobody", "password": PASSWORD}, {})
    other = of(secrets["admin"], {"topology": {"deliveryLimit": 7}})
    away = of(secrets["admin"], {"broker": {"port": 1}})

    assert [code for code, _, _ in (wrong, denied, other, away)] == [3, 3, 3, 1]
    assert [at_once for _, at_once, _ in (wrong, denied, other, away)] == [True, True, True, False]
    assert f"refused user `{user}`" in wrong[2] and "hunter2" not in wrong[2]
    assert "`nobody`" in denied[2] and "are not as they should be" in other[2] and "127.0.0.1:1" in away[2]


def jobs_done(pod: dict) -> float:
    """How many jobs the worker says that it has answered."""
    (container,) = pod["spec"]["containers"]
    with urllib.request.urlopen(f"http://127.0.0.1:{container['ports'][0]['containerPort']}/metrics", timeout=5) as answer:
        counts = re.findall(r'^inferq_jobs_total{.*code="OK".*} (\S+)$', answer.read().decode(), re.MULTILINE)
    return sum(map(float, counts))


def test_scaling_down_while_jobs_come_loses_none_of_them(broker, tmp_path):
    rows = 4000
    row = yaml.safe_load((CHART / "values.yaml").read_text())["test"]["jobs"]["digits"]
    (tmp_path / "rows.csv").write_text(f"{row}\n" * rows)
    workers = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        objects = render({**LEAST, "topology": {"prefix": "down"}, "telemetry": {"port": free_port()}})
        kubelet = Kubelet(folder, objects, {"inferq-broker": {"uri": broker["uri"]}})
        pod = one(objects, "Deployment")["spec"]["template"]
        if not workers:
            kubelet.run(one(objects, "Job")["spec"]["template"])
        workers.append((pod, kubelet.start(pod)))
    try:
        for pod, _ in workers:
            wait_until(lambda pod=pod: probe(pod, "readinessProbe") == 200, "a worker did not become ready")
        command = ["predict", "--model=digits", "--input=rows.csv", "--no-header", "--rows-per-job=1", "--output=answers.csv"]
        environment = {"INFERQ_BROKER__URI": broker["uri"], "INFERQ_TOPOLOGY__PREFIX": "down"}
        producer = subprocess.Popen([INFERQ, *command], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        (first, leaving), _ = workers
        wait_until(lambda: jobs_done(first) > 0, "the worker got no jobs")
        midway = producer.poll() is None
        leaving.send_signal(signal.SIGTERM)
        ended = leaving.wait(first["spec"]["terminationGracePeriodSeconds"])
        said = producer.communicate(timeout=PATIENCE)[1]
    finally:
        for _, worker in workers:
            worker.kill()
            worker.wait()

    assert midway and ended == 0 and producer.returncode == 0, said
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 1 + rows
    assert f"{rows} rows in {rows} jobs, 0 rows failed" in said


def keda_asks(broker: dict, metadata: dict[str, str]) -> int:
    """The number of jobs that KEDA hands to the HPA, asked for and added up as its rabbitmq_scaler.go does."""
    user, password = broker["uri"].split("//")[1].split("@")[0].split(":")
    passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
    passwords.add_password(None, metadata["host"].rsplit("/", 1)[0] + "/", user, password, is_authenticated=True)
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
    with opener.open(address(metadata), timeout=PATIENCE) as answer:
        found = json.load(answer)
    pattern = metadata.get("useRegex") == "true"
    assert not pattern or (found["page_count"] <= 1 and metadata["operation"] == "sum")
    return sum(queue.get("messages", 0) for queue in (found["items"] if pattern else [found]))


# Names that a pattern would match as well if it were careless about dots, ends or capitals.
STRANGERS = ["ask.digits.dead", "ask.aXb", "askXdigits", "ASK.digits", "task.digits", "ask.dense"]


def test_what_keda_would_ask_is_answered_with_ready_and_unacked_jobs_of_every_model(broker):
    management = {"uri": f"http://127.0.0.1:{broker['management_port']}", "existingSecret": "m"}
    scaled = {"autoscaling": {"mode": "keda"}}
    pools = {"default": {"models": ["digits"], **scaled}, "two": {"models": ["digits", "a.b"], **scaled}}
    values = {"broker": {"existingSecret": "b", "management": management}, "topology": {"prefix": "ask"}, "pools": pools}
    triggers = [scaled_object["spec"]["triggers"] for scaled_object in of_kind(render(values), "ScaledObject")]
    of_one, of_two = [trigger["metadata"] for (trigger,) in triggers]
    environment = {"INFERQ_BROKER__URI": broker["uri"], "INFERQ_TOPOLOGY__PREFIX": "ask"}
    subprocess.run([INFERQ, "topology", "apply", "digits", "a.b"], check=True, env=environment, stdout=subprocess.DEVNULL)

    with pika.BlockingConnection(pika.URLParameters(broker["uri"])) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for name in STRANGERS:
            channel.queue_declare(name, passive=name.endswith(".dead"), exclusive=not name.endswith(".dead"))
            channel.basic_publish("", name, b"", mandatory=True)
        for model in ["digits", "a.b"]:
            for _ in range(2):
                channel.basic_publish("ask", model, b"", mandatory=True)
            # One of the two is in somebody's hands.
            assert channel.basic_get(f"ask.{model}")[0]
        # The broker renews its numbers every 5 s, for each queue by itself.
        wait_until(lambda: keda_asks(broker, of_one) == 2 and keda_asks(broker, of_two) >= 4, "the broker never counted the jobs")
        others = [{**of_one, "queueName": name} for name in STRANGERS]
        wait_until(lambda: all(keda_asks(broker, other) for other in others), "the broker never counted the other queues")
        seen = keda_asks(broker, of_one), keda_asks(broker, of_two)

    assert seen == (2, 4)


@pytest.mark.parametrize("vhost", ["team/a", "team a/b", "ä", "a+b", "a%2fb", "a#b?"])
def test_what_keda_would_ask_is_asked_of_the_right_virtual_host(broker, vhost):
    management = {"uri": f"http://127.0.0.1:{broker['management_port']}", "existingSecret": "m"}
    user, password = broker["uri"].split("//")[1].split("@")[0].split(":")
    pools = {"default": {"models": ["digits"], "autoscaling": {"mode": "keda"}}}
    (trigger,) = one(render({"broker": {"existingSecret": "b", "vhost": vhost, "management": management}, "pools": pools}), "ScaledObject")["spec"]["triggers"]
    ctl(broker, "add_vhost", vhost)
    ctl(broker, "set_permissions", "-p", vhost, user, ".*", ".*", ".*")
    uri = f"amqp://{user}:{password}@127.0.0.1:{broker['amqp_port']}/{quote(vhost, safe='')}"

    with pika.BlockingConnection(pika.URLParameters(uri)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("inferq.digits")
        for _ in range(3):
            channel.basic_publish("", "inferq.digits", b"", mandatory=True)
        wait_until(lambda: keda_asks(broker, trigger["metadata"]) == 3, "the jobs of this virtual host were never counted")


def rate_asked(broker: dict, metadata: dict[str, str]) -> float:
    """The jobs/s that KEDA hands to the HPA in its mode MessageRate, at a `host` that ends in the virtual host."""
    base, vhost = metadata["host"].rsplit("/", 1)
    queues, url = quote_plus(metadata["queueName"]), f"{base}/api/queues/{vhost}"
    pattern = metadata.get("useRegex") == "true"
    url += f"?page=1&use_regex=true&pagination=false&name={queues}&page_size={metadata['pageSize']}" if pattern else f"/{queues}"
    user, password = broker["uri"].split("//")[1].split("@")[0].split(":")
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {login}"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        found = json.load(answer)
    of_queues = [queue.get("message_stats", {}) for queue in (found["items"] if pattern else [found])]
    return sum(stats.get("publish_details", {}).get("rate", 0) for stats in of_queues)


def test_the_rate_that_keda_would_ask_for_is_that_of_every_model_of_a_pool(broker):
    management = {"uri": f"http://127.0.0.1:{broker['management_port']}", "existingSecret": "m"}
    scaled = {"autoscaling": {"mode": "keda", "keda": {"rate": {"enabled": True, "perReplica": 35}}}}
    pools = {"default": {"models": ["digits"], **scaled}, "other": {"models": ["dense"], **scaled}, "two": {"models": ["digits", "a.b"], **scaled}}
    values = {"broker": {"existingSecret": "b", "management": management}, "topology": {"prefix": "pace"}, "pools": pools}
    found = of_kind(render(values), "ScaledObject")
    of_one, of_other, of_two = [trigger_of(scaled_object, "rate")["metadata"] for scaled_object in found]
    environment = {"INFERQ_BROKER__URI": broker["uri"], "INFERQ_TOPOLOGY__PREFIX": "pace"}
    subprocess.run([INFERQ, "topology", "apply", "digits", "dense", "a.b"], check=True, env=environment, stdout=subprocess.DEVNULL)

    with pika.BlockingConnection(pika.URLParameters(broker["uri"])) as connection:
        channel = connection.channel()

        def rates() -> tuple[float, float]:
            """After a job for digits and nine for the model beside it."""
            for model, jobs in {"digits": 1, "a.b": 9}.items():
                for _ in range(jobs):
                    channel.basic_publish("pace", model, b"")
            return rate_asked(broker, of_one), rate_asked(broker, of_two)

        # The broker renews its numbers every 5 s, for each queue by itself.
        wait_until(lambda: 0 < 5 * (pair := rates())[0] < pair[1], "the broker never told the rates")
        quiet = rate_asked(broker, of_other)

    assert quiet == 0


HARD = [
    {"config": {"limits": {"body_bytes_max": 1048576}, "worker": {"coalesce_ms": 0, "name": 'a "b" \\ c'}, "telemetry": {"log": "warn,inferq=debug"}}},
    {"pools": {"default": {"resources": {"limits": {"memory": "3Ti"}}}}, "telemetry": {"host": "[::]"}},
    {"pools": {"default": {"models": ["digits", "dense"], "device": "cuda", "drainTimeoutSeconds": 60.5}}},
    {"broker": {"login": "password", "host": "rabbit", "vhost": "a/b c%d", "tls": {"enabled": True, "ca": {"existingSecret": "ca"}}}},
]


@pytest.mark.parametrize("values", HARD, ids=json.dumps)
def test_inferq_accepts_what_is_hard_to_write_down(values, tmp_path):
    accepts_configurations(merged({"broker": {"existingSecret": "b"}}, values), tmp_path)


def test_inferq_accepts_the_configuration_of_every_example(example, tmp_path):
    accepts_configurations(example, tmp_path)


def accepts_configurations(values: dict, folder: Path):
    objects = render(values)
    files = {document["metadata"]["name"]: document.get("data") for document in of_kind(objects, "ConfigMap")}
    for deployment in of_kind(objects, "Deployment"):
        (folder / "pool.toml").write_text(files[deployment["metadata"]["name"]]["inferq.toml"])
        arguments = pod_of(deployment)["spec"]["containers"][0]["args"]
        accepts([argument.replace("/etc/inferq/inferq.toml", "pool.toml") for argument in arguments[1:]], folder, {})
    for document in of_kind(objects, "Job") + of_kind(objects, "Pod"):
        container = pod_of(document)["spec"]["containers"][0]
        accepts([], folder, {entry["name"]: entry["value"] for entry in container["env"]})


def accepts(arguments: list[str], folder: Path, environment: dict[str, str]):
    done = subprocess.run([INFERQ, *arguments, "config", "check"], capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
