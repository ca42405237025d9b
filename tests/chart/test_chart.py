"""Is what the chart renders right: valid for Kubernetes, KEDA and the Prometheus operator, safe, and what the values say?"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml

from conftest import CHART, EXAMPLES, LEAST, NAMES, NAMESPACE, RELEASE, ROOT
from keda import address, vhost_asked_for
from conftest import at, manifests, merged, notes, of_kind, one, pod_of, refusal, render, trigger_of

# The oldest that Chart.yaml allows, those in support, and the newest with schemas.
KUBERNETES = ["1.29", "1.33", "1.34", "1.35", "1.36", "1.37"]
SCHEMAS = ROOT / "tests" / "chart" / "schemas"
GOLDEN = ROOT / "tests" / "chart" / "golden"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
KEDA = merged(LEAST, {"broker": {"management": {"uri": "http://rabbitmq:15672", "existingSecret": "management"}}})


def pool(**values) -> dict:
    """The default pool, with these values."""
    return {"pools": {"default": values}}


def scaled(mode: str, **values) -> dict:
    return pool(autoscaling={"mode": mode, **values})


def keda(**values) -> dict:
    return scaled("keda", keda=values)


# --- Against the schemas of others ---


def examples_by_version(versions: list[str]) -> list:
    """Every example with every version, except that image volumes are there from 1.33 on."""
    return [
        pytest.param(yaml.safe_load(path.read_text()), version, id=f"{name}-{version}")
        for path, name in zip(EXAMPLES, NAMES, strict=True)
        for version in versions
        if "imageVolume" not in path.read_text() or version >= "1.33"
    ]


@pytest.mark.parametrize("values, version", examples_by_version([KUBERNETES[0], KUBERNETES[-1]]))
def test_helm_lint_finds_nothing(values, version):
    report = helm_python.lint(CHART, values, strict=True, kube_version=f"v{version}.0", quiet=True)

    assert report["errors"] == [] and [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("values, version", examples_by_version(KUBERNETES))
def test_every_object_is_strictly_valid(values, version):
    objects = render(values)

    assert objects
    for document in objects:
        if is_custom(document):
            validate_custom(document)
        else:
            kubernetes_validate.validate(document, version, strict=True)


def is_custom(document: dict) -> bool:
    return document["apiVersion"].split("/")[0] in ("keda.sh", "monitoring.coreos.com")


def validate_custom(document: dict) -> None:
    version = document["apiVersion"].split("/")[1]
    schema = json.loads((SCHEMAS / f"{document['kind']}-{version}.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)


def test_the_validation_sees_an_unknown_field_in_either_kind_of_object():
    objects = render(yaml.safe_load((CHART / "ci" / "keda-values.yaml").read_text()))
    deployment, scaled_object = one(objects, "Deployment"), one(objects, "ScaledObject")

    deployment["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    scaled_object["spec"]["minReplicas"] = 1

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)
    with pytest.raises(jsonschema.ValidationError):
        validate_custom(scaled_object)


def test_the_parameters_of_each_trigger_are_known_to_keda(example):
    known = json.loads((SCHEMAS / "triggers.json").read_text())

    for scaled_object in of_kind(render(example), "ScaledObject"):
        for trigger in scaled_object["spec"]["triggers"]:
            parameters = {parameter["name"]: parameter for parameter in known[trigger["type"]]}
            for name, value in trigger["metadata"].items():
                assert parameters[name].get("metadataVariableReadable"), name
                assert isinstance(value, str), name
            authenticated = {entry["parameter"] for entry in authentication(example, trigger)}
            for name in authenticated:
                assert parameters[name].get("triggerAuthenticationVariableReadable"), name
            given = authenticated | set(trigger["metadata"])
            required = {name for name, of in parameters.items() if not of.get("optional") and "default" not in of}
            assert required <= given, required - given


def authentication(values: dict, trigger: dict) -> list[dict]:
    if "authenticationRef" not in trigger:
        return []
    name = trigger["authenticationRef"]["name"]
    (found,) = [made for made in of_kind(render(values), "TriggerAuthentication") if made["metadata"]["name"] == name]
    return found["spec"].get("secretTargetRef", []) + found["spec"].get("configMapTargetRef", [])


# --- Golden renders ---


HANDED_THROUGH = {"dashboards.yaml", "prometheusrule.yaml"}


@pytest.mark.parametrize("path", EXAMPLES, ids=NAMES)
def test_the_examples_render_as_recorded(path):
    """INFERQ_TEST_GOLDEN=renew writes them anew; look at the difference before you commit it."""
    rendered = manifests(yaml.safe_load(path.read_text()))
    # What is only handed through from files of the chart is not recorded a second time.
    own = {template: text for template, text in rendered.items() if template not in HANDED_THROUGH}
    text = "".join(f"# {template}\n{text.strip()}\n" for template, text in own.items())
    golden = GOLDEN / path.name.replace("-values", "")

    if os.environ.get("INFERQ_TEST_GOLDEN") == "renew":
        golden.write_text(text)

    # By what is in them: two Helms may differ in blank lines and in the order of objects.
    assert by_name(text) == by_name(golden.read_text())


def by_name(text: str) -> dict:
    return {(document["kind"], document["metadata"]["name"]): document for document in yaml.safe_load_all(text) if document}


# --- Pod Security "restricted" ---


def violations(spec: dict):
    """What of a pod the Pod Security Standard "restricted" refuses."""
    own = spec.get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    # Images since Kubernetes 1.33 (kubernetes/kubernetes#130394), which is also the first that the chart allows them on.
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"}
    for volume in spec.get("volumes", []):
        if not set(volume) - {"name"} <= allowed:
            yield f"volume {volume['name']}"
    for container in spec.get("initContainers", []) + spec["containers"]:
        security = container.get("securityContext", {})
        if security.get("allowPrivilegeEscalation") is not False:
            yield f"{container['name']}: allowPrivilegeEscalation"
        if security.get("privileged"):
            yield f"{container['name']}: privileged"
        if security.get("capabilities", {}).get("drop") != ["ALL"] or security["capabilities"].get("add"):
            yield f"{container['name']}: capabilities"
        if not security.get("runAsNonRoot", own.get("runAsNonRoot")):
            yield f"{container['name']}: runAsNonRoot"
        if security.get("runAsUser", own.get("runAsUser")) == 0:
            yield f"{container['name']}: runAsUser"
        if security.get("seccompProfile", own.get("seccompProfile", {})).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{container['name']}: seccompProfile"
        if any(port.get("hostPort") for port in container.get("ports", [])):
            yield f"{container['name']}: hostPort"


def pods(values: dict) -> list[dict]:
    return [pod for pod in map(pod_of, render(values)) if pod]


def test_every_pod_is_restricted_and_knows_nothing_of_kubernetes(example):
    for pod in pods(example):
        spec = pod["spec"]
        assert list(violations(spec)) == []
        assert spec["automountServiceAccountToken"] is False
        # INFERQ_SERVICE_HOST would be an unknown variable, which is a fault.
        assert spec["enableServiceLinks"] is False
        for container in spec.get("initContainers", []) + spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize(
    "broken",
    [
        {"hostNetwork": True},
        {"volumes": [{"name": "node", "hostPath": {"path": "/"}}]},
        {"securityContext": {"runAsNonRoot": False, "seccompProfile": {"type": "RuntimeDefault"}}},
        {"securityContext": {"runAsNonRoot": True}},
        {"containers": [{"name": "extra"}]},
    ],
)
def test_the_check_of_pod_security_sees_what_is_not_restricted(broken):
    spec = one(render(LEAST), "Deployment")["spec"]["template"]["spec"]

    assert list(violations(spec)) == []
    assert list(violations({**spec, **broken}))


def test_no_secret_is_in_arguments_or_environment(example):
    for pod in pods(example):
        for container in pod["spec"]["containers"]:
            text = json.dumps([container.get("args"), container.get("env")])
            assert not re.search(r"://[^/]*@", text) and "secretKeyRef" not in text


# --- What ends at once, and says why ---


def test_the_hook_ends_at_once_on_what_no_second_try_mends():
    job = one(render(LEAST), "Job")["spec"]

    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"containerName": "topology", "operator": "In", "values": [2, 3]}}
    # Kubernetes allows it with this alone.
    assert job["template"]["spec"]["restartPolicy"] == "Never" and job["backoffLimit"] == 4
    assert [container["name"] for container in job["template"]["spec"]["containers"]] == ["topology"]


def test_kubectl_describes_the_last_lines_of_a_container(example):
    found = [container for pod in pods(example) for container in pod["spec"]["containers"] if container["name"] in ("worker", "topology", "predict")]

    assert found and {container["terminationMessagePolicy"] for container in found} == {"FallbackToLogsOnError"}


def test_a_worker_is_ready_within_a_second_of_being_so():
    probes = one(render(LEAST), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    startup, ready = probes["startupProbe"], probes["readinessProbe"]

    assert startup["periodSeconds"] == ready["periodSeconds"] == 1
    assert not {"initialDelaySeconds", "successThreshold"} & (set(startup) | set(ready))
    # What is slow to start, or misses a few answers, is given as long as ever.
    assert startup["failureThreshold"] == 120 and ready["failureThreshold"] == 10


# --- Names and labels ---


def test_selectors_match_their_pods_and_do_not_change_with_the_version(example, tmp_path):
    newer = tmp_path / "inferq"
    shutil.copytree(CHART, newer)
    of_chart = yaml.safe_load((newer / "Chart.yaml").read_text())
    (newer / "Chart.yaml").write_text(yaml.safe_dump({**of_chart, "version": "9.9.9", "appVersion": "9.9.9"}))

    before, after = of_kind(render(example), "Deployment"), of_kind(render(example, chart=newer), "Deployment")

    for old, new in zip(before, after, strict=True):
        assert old["spec"]["selector"] == new["spec"]["selector"]
        labels = old["spec"]["template"]["metadata"]["labels"]
        assert old["spec"]["selector"]["matchLabels"].items() <= labels.items()
    selectors = [json.dumps(deployment["spec"]["selector"], sort_keys=True) for deployment in before]
    assert len(set(selectors)) == len(selectors)


def test_no_two_objects_have_one_name(example):
    names = [(document["kind"], document["metadata"]["name"]) for document in render(example)]

    assert len(set(names)) == len(names)


def test_a_pool_may_have_any_name_without_taking_that_of_another_object():
    on = {"enabled": True}
    metrics = {"podMonitor": on, "prometheusRule": on, "dashboards": on}
    over_amqp = {"models": ["digits"], "autoscaling": {"mode": "keda", "keda": {"jobs": {"protocol": "amqp"}}}}
    other = {"pools": {"other": over_amqp}, "broker": {"tls": {"ca": {"existingSecret": "ca"}}}}
    everything = merged(KEDA, merged(scaled("keda"), {"metrics": metrics, "networkPolicy": on, **other}))
    of_the_chart = {document["metadata"]["name"].removeprefix("prod-inferq").lstrip("-.") for document in render(everything)}
    assert of_the_chart >= {"test", "test-0", "topology", "management", "dashboard-fleet", "amqp"}

    for name in of_the_chart - {"", "default"}:
        values = merged(everything, {"pools": {"default": None, name: {"models": ["digits"]}}})
        names = [(document["kind"], document["metadata"]["name"]) for document in render(values)]
        assert ("Deployment", f"prod-inferq-{name}") in names
        assert len(set(names)) == len(names), name


def test_a_changed_configuration_rolls_its_pool_and_no_other():
    two = merged(LEAST, {"pools": {"other": {"models": ["dense"]}}})

    def checksums(values):
        return {
            deployment["metadata"]["name"]: deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
            for deployment in of_kind(render(values), "Deployment")
        }

    before, after = checksums(two), checksums(merged(two, pool(config={"batch": {"rows_max": 32}})))

    assert before["prod-inferq-default"] != after["prod-inferq-default"]
    assert before["prod-inferq-other"] == after["prod-inferq-other"]


def test_the_name_holds_the_release_once():
    assert one(render(LEAST, release="inferq"), "Deployment")["metadata"]["name"] == "inferq-default"


# --- What the values say ---


def test_one_secret_is_all_that_a_release_needs():
    kinds = sorted(document["kind"] for document in render(LEAST))

    assert kinds == ["ConfigMap", "ConfigMap", "Deployment", "Job", "Pod", "PodDisruptionBudget", "ServiceAccount"]
    assert "broker.existingSecret: is not set; name a Secret" in refusal({})


@pytest.mark.parametrize(
    "values, replicas",
    [({}, 1), (pool(replicas=0), 0), (pool(replicas=3), 3), (scaled("keda"), None), (scaled("hpa"), None), (scaled("external"), None)],
)
def test_replicas_are_set_only_where_nothing_else_scales(values, replicas):
    assert one(render(merged(KEDA, values)), "Deployment")["spec"].get("replicas") == replicas


@pytest.mark.parametrize("drain, grace", [(25, 30), (0, 5), (2.5, 8), (600, 605)])
def test_the_grace_period_follows_the_drain_timeout(drain, grace):
    objects = render(merged(LEAST, pool(drainTimeoutSeconds=drain)))

    assert one(objects, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == grace
    assert configuration(objects)["worker"]["drain_timeout_ms"] == int(drain * 1000)


def configuration(objects: list[dict]) -> dict:
    return tomllib.loads(next(document["data"]["inferq.toml"] for document in objects if "inferq.toml" in document.get("data", {})))


def test_what_a_pool_says_wins_also_where_it_is_false_zero_or_empty():
    base = {"poolDefaults": {"config": {"worker": {"cuda_tf32": True, "isolate_after": 5}}, "tolerations": [{"key": "batch"}]}}
    own = pool(config={"worker": {"cuda_tf32": False, "isolate_after": 0}}, tolerations=[], podDisruptionBudget={"enabled": False})

    objects = render(merged(LEAST, merged(base, own)))

    assert configuration(objects)["worker"]["cuda_tf32"] is False
    assert configuration(objects)["worker"]["isolate_after"] == 0
    assert "tolerations" not in one(objects, "Deployment")["spec"]["template"]["spec"]
    assert not of_kind(objects, "PodDisruptionBudget")


# A proxy with a port `proxy`, and the probes through it: by HTTP, by something else, and not at all.
PROXIED = {
    "extraContainers": [{"name": "proxy", "image": "proxy:1", "ports": [{"name": "proxy", "containerPort": 8443}]}],
    "startupProbe": None,
    "livenessProbe": {"httpGet": None, "tcpSocket": {"port": "proxy"}},
    "readinessProbe": {"httpGet": {"port": "proxy", "scheme": "HTTPS"}},
}


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_behind_a_proxy_the_worker_may_listen_to_its_pod_alone(host):
    deployment = one(render(merged(LEAST, merged(pool(**PROXIED), at("telemetry.host", host)))), "Deployment")

    worker, proxy = deployment["spec"]["template"]["spec"]["containers"]
    assert f"--listen={host}:9090" in worker["args"] and proxy["name"] == "proxy"
    assert "startupProbe" not in worker and worker["livenessProbe"]["tcpSocket"] == {"port": "proxy"}
    assert worker["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "proxy", "scheme": "HTTPS"}


@pytest.mark.parametrize("limit, expected", [("2Gi", 2**30), ("512Mi", 2**28), ("1G", 500_000_000), ("1.5Gi", 3 * 2**28), (2**31, 2**30), ("3Ti", 2**40)])
def test_bodies_may_take_half_of_the_memory_limit(limit, expected):
    objects = render(merged(LEAST, pool(resources={"limits": {"memory": limit}})))

    assert configuration(objects)["limits"]["memory_bytes"] == expected


def test_memory_may_be_requested_in_thousandths_of_a_byte_as_kubernetes_itself_writes_it():
    requests = {"cpu": "1", "memory": "1288490188800m"}

    objects = render(merged(LEAST, pool(resources={"requests": requests})))

    assert one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"] == requests
    assert configuration(objects)["limits"]["memory_bytes"] == 2**30


def test_a_pool_on_a_gpu_gets_the_gpu_and_its_image():
    gpu = {"models": ["resnet"], "device": "cuda", "autoscaling": {"mode": "keda"}}

    objects = render(merged(KEDA, {"pools": {"default": None, "gpu": gpu}}))

    deployment, spec = one(objects, "Deployment"), one(objects, "Deployment")["spec"]["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["containers"][0]["image"].endswith(":0.1.0-cuda")
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert "topologySpreadConstraints" not in spec
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert configuration(objects)["worker"]["device"] == "cuda:0"
    behavior = one(objects, "ScaledObject")["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior == VALUES["poolDefaults"]["autoscaling"]["behavior"]
    # The hooks run nothing on it.
    assert one(objects, "Job")["spec"]["template"]["spec"]["containers"][0]["image"].endswith(":0.1.0")


@pytest.mark.parametrize(
    "models, asked",
    [
        (["digits"], {"queueName": "inferq.digits"}),
        (["digits", "a.b"], {"queueName": r"(?-i)^inferq\.(digits|a\.b)$", "useRegex": "true", "operation": "sum", "pageSize": "2"}),
        (["ResNet50"], {"queueName": "inferq.ResNet50"}),
        (
            ["Digits", "digits"],
            {"queueName": r"(?-i)^inferq\.(Digits|digits)$", "useRegex": "true", "operation": "sum", "pageSize": "2"},
        ),
    ],
    ids=["one", "several", "capitals", "case"],
)
def test_keda_sees_ready_and_unacked_jobs_of_every_model_as_one_number(models, asked):
    spec = one(render(merged(KEDA, merged(scaled("keda"), pool(models=models)))), "ScaledObject")["spec"]

    (trigger,) = spec["triggers"]
    assert trigger["metricType"] == "AverageValue"
    assert trigger["metadata"] == {
        "protocol": "http", "mode": "QueueLength", "excludeUnacknowledged": "false", "host": "http://rabbitmq:15672/%2F",
        "value": "500", "activationValue": "0", **asked,
    }
    assert spec["fallback"] == {"failureThreshold": 3, "replicas": 1, "behavior": "currentReplicasIfHigher"}


@pytest.mark.parametrize(
    "models, asked",
    [
        (["digits"], {"queueName": "inferq.digits"}),
        (["digits", "a.b"], {"queueName": r"(?-i)^inferq\.(digits|a\.b)$", "useRegex": "true", "operation": "sum", "pageSize": "2"}),
    ],
    ids=["one", "several"],
)
@pytest.mark.parametrize("each, value", [(35, "35"), (0.25, "0.25"), (40000, "40000")])
def test_the_rate_is_what_is_published_to_every_queue_of_the_pool(models, asked, each, value):
    rate = keda(rate={"enabled": True, "perReplica": each}, jobs={"activation": 7, "timeoutMs": 900})

    scaled_object = one(render(merged(KEDA, merged(rate, pool(models=models)))), "ScaledObject")
    jobs, trigger = trigger_of(scaled_object, "jobs"), trigger_of(scaled_object, "rate")

    assert jobs["metadata"]["mode"] == "QueueLength" and trigger["metricType"] == "AverageValue"
    assert trigger["authenticationRef"] == jobs["authenticationRef"]
    assert trigger["metadata"] == {
        "protocol": "http", "mode": "MessageRate", "host": "http://rabbitmq:15672/%2F", "value": value, "activationValue": "7",
        "timeout": "900", **asked,
    }


@pytest.mark.parametrize("vhost", ["/", "team/a", "a b", "ä", "a+b", "a%2fb", "100%", "a?b#c"])
def test_the_rate_is_read_in_any_virtual_host(vhost):
    values = merged(keda(rate={"enabled": True, "perReplica": 1}), at("broker.vhost", vhost))

    asked = trigger_of(one(render(merged(KEDA, values)), "ScaledObject"), "rate")["metadata"]

    assert "vhostName" not in asked and vhost_asked_for(asked) == vhost


def test_over_amqp_each_model_has_a_trigger_at_the_address_and_login_of_the_workers():
    values = merged(LEAST, merged(keda(jobs={"protocol": "amqp", "perReplica": 300}), pool(models=["digits", "a.b"])))

    objects = render(values)

    triggers = one(objects, "ScaledObject")["spec"]["triggers"]
    assert [trigger["metadata"] for trigger in triggers] == [
        {"protocol": "amqp", "mode": "QueueLength", "queueName": queue, "value": "300", "activationValue": "0"}
        for queue in ("inferq.digits", "inferq.a.b")
    ]
    assert len({trigger["name"] for trigger in triggers}) == 2
    assert {trigger["authenticationRef"]["name"] for trigger in triggers} == {"prod-inferq-amqp"}
    login = one(objects, "TriggerAuthentication")
    assert login["metadata"]["name"] == "prod-inferq-amqp"
    assert login["spec"] == {"secretTargetRef": [{"parameter": "host", "name": "inferq-broker", "key": "uri"}]}
    assert "over AMQP, a connection and a trigger each" in notes(values)


@pytest.mark.parametrize(
    "broker, host, parameters",
    [
        ({"login": "password", "host": "r"}, "amqp://r:5672/%2F", ["username", "password"]),
        ({"login": "password", "host": "r", "port": 1, "vhost": "a b/c"}, "amqp://r:1/a%20b%2Fc", ["username", "password"]),
        (
            {"login": "password", "host": "r", "tls": {"enabled": True, "ca": {"existingSecret": "ca"}}},
            "amqps://r:5671/%2F", ["username", "password", "ca", "tls"],
        ),
        (
            {"existingSecret": "", "login": "certificate", "host": "r", "tls": {"enabled": True, "clientCertificate": {"existingSecret": "c"}}},
            "amqps://r:5671/%2F", ["cert", "key", "tls"],
        ),
        ({"tls": {"ca": {"existingConfigMap": "ca"}}}, None, ["host", "tls", "ca"]),
    ],
)
def test_over_amqp_keda_logs_in_as_the_workers_do(broker, host, parameters):
    values = merged(LEAST, merged({"broker": broker}, keda(jobs={"protocol": "amqp"})))

    objects = render(values)

    trigger = trigger_of(one(objects, "ScaledObject"), "jobs")
    assert trigger["metadata"].get("host") == host
    given = authentication(values, trigger)
    assert [entry["parameter"] for entry in given] == parameters
    for entry in given:
        if entry["parameter"] == "tls":
            (settings,) = [made for made in of_kind(objects, "ConfigMap") if made["metadata"]["name"] == entry["name"]]
            assert settings["data"] == {entry["key"]: "enable"}


def test_an_existing_login_for_amqp_is_not_taken_for_the_management_api():
    existing = {"existing": "mine", "kind": "ClusterTriggerAuthentication"}
    rate = {"enabled": True, "perReplica": 35, "source": "management"}

    objects = render(merged(KEDA, keda(jobs={"protocol": "amqp"}, rate=rate, triggerAuthentication=existing)))

    scaled_object = one(objects, "ScaledObject")
    assert trigger_of(scaled_object, "jobs")["authenticationRef"] == {"name": "mine", "kind": "ClusterTriggerAuthentication"}
    assert trigger_of(scaled_object, "rate")["authenticationRef"] == {"name": "prod-inferq-management"}
    assert one(objects, "TriggerAuthentication")["metadata"]["name"] == "prod-inferq-management"


PROMETHEUS = {"serverAddress": "http://p", "authenticationRef": {"name": "prometheus"}}


@pytest.mark.parametrize(
    "values, names",
    [
        ({}, ["jobs"]),
        ({"rate": {"enabled": True, "perReplica": 35}}, ["jobs", "rate"]),
        ({"seconds": {"enabled": True, **PROMETHEUS}}, ["jobs", "workers-rate", "seconds"]),
        ({"rate": {"enabled": True, "perReplica": 35}, "seconds": {"enabled": True, **PROMETHEUS}}, ["jobs", "rate", "workers-rate", "seconds"]),
        ({"rate": {"enabled": True, "source": "workers"}, "seconds": PROMETHEUS}, ["jobs", "workers-rate"]),
        ({"rate": {"enabled": True, "source": "workers"}, "seconds": {"enabled": True, **PROMETHEUS}}, ["jobs", "workers-rate", "seconds"]),
        ({"rate": {"enabled": True, "source": "broker", "perReplica": 35}, "seconds": PROMETHEUS}, ["jobs", "rate"]),
        ({"jobs": {"protocol": "amqp"}, "rate": {"enabled": True}, "seconds": PROMETHEUS}, ["jobs", "workers-rate"]),
        # Whoever asks for seconds in words of his own may have workers of any name.
        ({"seconds": {"enabled": True, "query": "mine", **PROMETHEUS}}, ["jobs", "seconds"]),
    ],
)
def test_the_rate_comes_from_where_it_is_known(values, names):
    objects = render(merged(KEDA, keda(**values)))

    triggers = one(objects, "ScaledObject")["spec"]["triggers"]
    assert [trigger["name"] for trigger in triggers] == names
    for trigger in triggers:
        if trigger["type"] == "prometheus":
            assert trigger["authenticationRef"] == PROMETHEUS["authenticationRef"]
            assert trigger["metadata"]["serverAddress"] == "http://p" and trigger["metricType"] == "AverageValue"
    steady = "scales on what waits alone" in notes(merged(KEDA, keda(**values)))
    assert steady == (not {"rate", "workers-rate"} & set(names))


@pytest.mark.parametrize("source, threshold", [("workers", "1"), ("broker", "35")])
def test_another_query_for_the_rate_takes_the_place_of_the_charts(source, threshold):
    values = keda(rate={"enabled": True, "source": source, "perReplica": 35, "query": "mine"}, seconds={"serverAddress": "http://p"})

    trigger = one(render(merged(KEDA, values)), "ScaledObject")["spec"]["triggers"][-1]

    assert (trigger["metadata"]["query"], trigger["metadata"]["threshold"]) == ("mine", threshold)


@pytest.mark.parametrize("interval, window", [("5s", "60s"), ("15s", "60s"), ("30s", "120s"), ("2m", "480s"), (None, "150s")])
def test_a_rate_looks_back_over_four_scrapes_or_a_minute(interval, window):
    monitor = at("metrics.podMonitor", {"enabled": True, "interval": interval, "scrapeTimeout": "1s"} if interval else {})
    values = merged(monitor, keda(seconds={"enabled": True, "serverAddress": "http://p"}))

    query = trigger_of(one(render(merged(KEDA, values)), "ScaledObject"), "workers-rate")["metadata"]["query"]

    assert f"[{window}]" in query


@pytest.mark.parametrize("uri, host", [("", None), ("http://rabbitmq:15672/", "http://rabbitmq:15672/%2F")])
def test_the_host_of_an_existing_trigger_authentication_counts_unless_the_values_name_one(uri, host):
    values = keda(triggerAuthentication={"existing": "mine", "kind": "ClusterTriggerAuthentication"})

    objects = render(merged(LEAST, merged(values, at("broker.management.uri", uri))))

    (trigger,) = one(objects, "ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"].get("host") == host
    assert trigger["authenticationRef"] == {"name": "mine", "kind": "ClusterTriggerAuthentication"}
    assert not of_kind(objects, "TriggerAuthentication")


VHOSTS = ["/", "team/a", "a b", "team a/b", "ä", "a+b", "a%2fb", "%41", "a?b", "a#b", "100%", "1 + 1 = 2?", "a&b=c;d", "[a]", "ü %2F/#"]


@pytest.mark.parametrize("models", [["digits"], ["digits", "a.b"]], ids=["one", "several"])
@pytest.mark.parametrize("path", ["", "/", "/rabbit"])
@pytest.mark.parametrize("vhost", VHOSTS)
def test_keda_asks_for_the_virtual_host_that_is_meant(vhost, path, models):
    broker = {"vhost": vhost, "management": {"uri": f"http://rabbitmq:15672{path}"}}

    (trigger,) = one(render(merged(KEDA, merged({"broker": broker}, merged(scaled("keda"), pool(models=models))))), "ScaledObject")["spec"]["triggers"]

    metadata = trigger["metadata"]
    assert "vhostName" not in metadata and vhost_asked_for(metadata) == vhost
    assert address(metadata).startswith(f"http://rabbitmq:15672{path.rstrip('/')}/api/queues/")


@pytest.mark.parametrize("name, asked", [("a b", "a+b"), ("team/a", "team/a")])
def test_by_its_name_alone_keda_asks_for_another_virtual_host(name, asked):
    metadata = {"host": "http://rabbitmq:15672/", "vhostName": name, "queueName": "inferq.digits"}

    assert vhost_asked_for(metadata) == asked


def test_a_host_encoded_as_go_would_is_another():
    metadata = {"host": "http://rabbitmq:15672/a%252fb", "queueName": "inferq.digits"}

    assert vhost_asked_for(metadata) == "a/b"


@pytest.mark.parametrize("vhost", ["/", "team/a"])
def test_the_uri_of_a_secret_keeps_the_name_of_the_virtual_host(vhost):
    broker = {"vhost": vhost, "management": {"uriKey": "uri"}}

    (trigger,) = one(render(merged(LEAST, merged({"broker": broker}, scaled("keda")))), "ScaledObject")["spec"]["triggers"]

    assert trigger["metadata"]["vhostName"] == vhost and "host" not in trigger["metadata"]


def test_from_zero_there_is_no_fallback_but_a_first_pause():
    spec = one(render(merged(KEDA, scaled("keda", minReplicas=0))), "ScaledObject")["spec"]

    assert "fallback" not in spec and spec["minReplicaCount"] == 0 and spec["initialCooldownPeriod"] >= 60
    assert "scales to 0" in notes(merged(KEDA, scaled("keda", minReplicas=0)))


@pytest.mark.parametrize("least, ignored", [(0, "true"), (1, "false")])
def test_no_seconds_of_work_are_an_error_unless_there_may_be_no_worker(least, ignored):
    seconds = {"seconds": {"enabled": True, "serverAddress": "http://prometheus:9090"}}

    trigger = one(render(merged(KEDA, scaled("keda", minReplicas=least, keda=seconds))), "ScaledObject")["spec"]["triggers"][-1]

    assert trigger["metadata"]["ignoreNullValues"] == ignored


def test_the_query_finds_the_pods_of_the_longest_name_that_it_is_allowed_with():
    seconds = {"enabled": True, "serverAddress": "http://prometheus:9090"}
    values = merged(merged(KEDA, keda(seconds=seconds)), at("fullnameOverride", "a" * 38))

    scaled_object = one(render(values), "ScaledObject")

    # A pod is called after its ReplicaSet, cut to 58 characters, and five more.
    name = scaled_object["metadata"]["name"]
    pod = f"{name}-{'b' * 10}-"[:58] + "c" * 5
    assert len(name) == 46
    assert re.fullmatch(re.search('pod=~"(.*?)"', scaled_object["spec"]["triggers"][-1]["metadata"]["query"])[1], pod)


A, B = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"


@pytest.mark.parametrize(
    "defaults, own, image",
    [
        ({}, {}, f"ghcr.io/inferq/inferq@{A}"),
        ({}, {"registry": "mirror"}, f"mirror/inferq/inferq@{A}"),
        ({}, {"repository": "team/special", "tag": "1.2"}, "ghcr.io/team/special:1.2"),
        ({}, {"repository": "team/special"}, "ghcr.io/team/special:0.1.0"),
        ({"digest": B}, {}, f"ghcr.io/inferq/inferq@{B}"),
        ({"digest": B}, {"tag": "1.2"}, "ghcr.io/inferq/inferq:1.2"),
        ({"repository": "team/special"}, {}, "ghcr.io/team/special:0.1.0"),
        ({"tag": "1.2"}, {"digest": B}, f"ghcr.io/inferq/inferq@{B}"),
    ],
)
def test_a_digest_does_not_come_with_another_repository_or_tag(defaults, own, image):
    values = merged({"image": {"digest": A}, "poolDefaults": {"image": defaults}}, pool(image=own))

    assert one(render(merged(LEAST, values)), "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"] == image


def test_a_topology_spread_constraint_keeps_its_own_selector():
    constraint = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    expression = {"key": "track", "operator": "Exists"}
    own = {**constraint, "labelSelector": {"matchLabels": {"team": "fraud"}, "matchExpressions": [expression]}}

    deployment = one(render(merged(LEAST, pool(topologySpreadConstraints=[own, constraint]))), "Deployment")

    completed = {**constraint, "labelSelector": deployment["spec"]["selector"]}
    assert deployment["spec"]["template"]["spec"]["topologySpreadConstraints"] == [own, completed]


def test_the_topology_is_made_before_everything_else_and_without_a_worker():
    objects = render(merged(LEAST, {"pools": {"b": {"models": ["dense", "digits"]}}}))

    job = one(objects, "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    spec = job["spec"]["template"]["spec"]
    assert spec["containers"][0]["args"] == ["topology", "apply", "dense", "digits"]
    # Of what the release brings nothing is there yet.
    sources = [source for volume in spec["volumes"] for source in volume["projected"]["sources"]]
    assert [source["secret"]["name"] for source in sources] == ["inferq-broker"] and "serviceAccountName" not in spec


def test_each_model_with_rows_has_a_test_of_its_own_and_the_notes_know_the_others():
    three = pool(models=["fraud", "digits", "churn"])
    values = merged(LEAST, merged(three, {"test": {"timeoutSeconds": 900, "jobs": {"churn": "1,2", "unserved": "1"}}}))

    objects, text = render(values), notes(values)

    tests = of_kind(objects, "Pod")
    assert [test["metadata"]["name"] for test in tests] == ["prod-inferq-test-0", "prod-inferq-test-1"]
    (rows,) = [document for document in of_kind(objects, "ConfigMap") if "churn.csv" in document["data"]]
    mounted = [volume["configMap"]["name"] for test in tests for volume in test["spec"]["volumes"] if volume["name"] == "jobs"]
    assert mounted == [rows["metadata"]["name"]] * 2
    # `helm test --logs` shows the log of a pod with one container only.
    models = [container["args"][1] for test in tests for container in test["spec"]["containers"]]
    assert models == ["--model=churn", "--model=digits"]
    assert all(test["spec"]["activeDeadlineSeconds"] == 960 for test in tests)
    assert "To send a job to churn, digits" in text and "--logs --timeout 960s" in text
    assert "`helm test` sends nothing to fraud" in text and "nothing to digits" not in text


@pytest.mark.parametrize("values", [at("test.enabled", False), pool(models=["fraud"])])
def test_without_a_test_the_notes_promise_none(values):
    assert not of_kind(render(merged(LEAST, values)), "Pod")
    assert "helm test prod" not in notes(merged(LEAST, values))


TLS = {"enabled": True, "clientCertificate": {"existingSecret": "worker"}}


@pytest.mark.parametrize(
    "broker, also",
    [
        ({"existingSecret": "worker"}, []),
        ({"existingSecret": "worker", "login": "password", "host": "r", "tls": TLS}, ["worker"]),
        ({"existingSecret": "", "login": "certificate", "host": "r", "tls": TLS}, []),
        # This one is KEDA's.
        ({"existingSecret": "management", "login": "certificate", "host": "r", "tls": TLS}, []),
    ],
    ids=["uri", "password", "certificate", "certificate-and-secret"],
)
def test_hooks_may_have_logins_of_their_own(broker, also):
    own = {"topology": {"job": {"existingSecret": "admin"}}, "test": {"existingSecret": "producer"}}

    same, objects = render({"broker": broker}), render({"broker": broker, **own})

    def secrets(document):
        volume = next(volume for volume in pod_of(document)["spec"]["volumes"] if volume["name"] == "broker")
        return [source["secret"]["name"] for source in volume["projected"]["sources"]]

    assert {name for kind in ("Deployment", "Job", "Pod") for name in secrets(one(same, kind))} == {"worker"}
    assert secrets(one(objects, "Deployment")) == ["worker", *also]
    assert secrets(one(objects, "Job")) == ["admin", *also]
    assert secrets(one(objects, "Pod")) == ["producer", *also]


@pytest.mark.parametrize(
    "source, volume",
    [
        ({"source": "imageVolume", "imageVolume": {"reference": "r/m:1"}}, {"image": {"reference": "r/m:1", "pullPolicy": "IfNotPresent"}}),
        (
            {"source": "persistentVolumeClaim", "persistentVolumeClaim": {"claimName": "m"}},
            {"persistentVolumeClaim": {"claimName": "m", "readOnly": True}},
        ),
        ({"source": "initContainer", "initContainer": {"image": "r/c:1"}}, {"emptyDir": {"sizeLimit": "4Gi"}}),
    ],
)
def test_models_come_from_a_volume_that_the_worker_cannot_write(source, volume):
    objects = render(merged(LEAST, pool(modelRepository=source)))

    spec = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert {"name": "models", **volume} in spec["volumes"]
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in spec["containers"][0]["volumeMounts"]
    assert configuration(objects)["models"] == {"repository": "/models", "load": ["digits"]}


@pytest.mark.parametrize(
    "values, broker, collector",
    [
        ({}, [5671, 5672], []),
        (at("networkPolicy.brokerPorts", [5671]), [5671], []),
        (at("broker", {"login": "password", "host": "r", "port": 5673}), [5671, 5672, 5673], []),
        ({"broker": {"login": "password", "host": "r"}, "networkPolicy": {"brokerPorts": [5673]}}, [5673, 5672], []),
        (at("config.telemetry.otlp_endpoint", "http://otel:4318"), [5671, 5672], [4318]),
        (merged(at("config.telemetry.otlp_endpoint", "http://[::1]"), pool(config={"telemetry": {"otlp_endpoint": "http://[::1]:1"}})), [5671, 5672], [1]),
        (at("pools.b", {"models": ["b"], "config": {"telemetry": {"otlp_endpoint": "http://otel/"}}}), [5671, 5672], [80]),
    ],
)
def test_the_network_policies_let_out_what_the_other_values_ask_for(values, broker, collector):
    policies = of_kind(render(merged(LEAST, merged(at("networkPolicy.enabled", True), values))), "NetworkPolicy")

    ports = [[[port["port"] for port in rule["ports"]] for rule in policy["spec"]["egress"]] for policy in policies]
    workers_and_test, hook = ports
    assert hook == [[53, 53], broker]
    assert workers_and_test == [[53, 53], broker] + ([collector] if collector else [])


def test_an_object_with_the_annotations_for_it_comes_before_every_hook():
    said = re.search(r"`helm.sh/hook: (\S+)` and\s*(?:# )?`helm.sh/hook-weight: \"(-\d+)\"`", (CHART / "values.yaml").read_text())
    annotations = {"helm.sh/hook": said[1], "helm.sh/hook-weight": said[2]}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "inferq-broker", "annotations": annotations}}

    objects = render(merged(LEAST, {"networkPolicy": {"enabled": True}, "extraObjects": [secret]}))

    hooks = [document["metadata"].get("annotations", {}) for document in objects]
    before = [int(hook["helm.sh/hook-weight"]) for hook in hooks if hook.get("helm.sh/hook") == "pre-install,pre-upgrade"]
    assert len(before) == 3 and before.count(min(before)) == 1 and str(min(before)) == said[2]


# --- What must be refused ---

CONTRADICTIONS = [
    (at("broker.host", "rabbit"), "broker.host and broker.port: are set, but with broker.login=uri"),
    (at("broker.tls.enabled", True), "broker.tls.enabled: is set, but with broker.login=uri"),
    (at("broker.login", "password"), "broker.host: is not set; with broker.login=password"),
    (at("broker", {"login": "password", "host": "r", "tls": {"ca": {"existingSecret": "ca"}}}), "broker.tls.enabled: is false, but"),
    (at("broker", {"login": "certificate", "host": "r", "tls": {"enabled": True}}), "broker.tls.clientCertificate.existingSecret: is not set"),
    (at("broker.tls.ca", {"existingSecret": "a", "existingConfigMap": "b"}), "broker.tls.ca: existingSecret and existingConfigMap are both"),
    (at("pools.default", None), "pools: none is enabled"),
    (at("pools.default.models", []), "pools.default.models: is empty"),
    (pool(terminationGracePeriodSeconds=29), "is 29, but drainTimeoutSeconds is 25: Kubernetes would kill workers"),
    (pool(drainTimeoutSeconds=60, terminationGracePeriodSeconds=60), "set it to 65 or more, leave it out, or lower drainTimeoutSeconds"),
    (at("fullnameOverride", "a" * 47), "pools.default: its name `" + "a" * 47 + "-default` has 55 characters, but 54 are allowed"),
    (pool(podDisruptionBudget={"maxUnavailable": None}), "pools.default.podDisruptionBudget: has neither"),
    (merged(at("image.digest", "sha256:" + "a" * 64), pool(device="cuda")), "pools.default.image.digest: is not set, but image.digest is"),
    (merged(at("image.tag", "1.0"), pool(device="cuda")), "pools.default.image.tag: is not set, but image.tag is"),
    (pool(config={"limits": {"memory_bytes": 2**31}}), "config.limits.memory_bytes is 2147483648, but resources.limits.memory is 2Gi"),
    (at("config.limits.memory_bytes", 1000000), "memory_bytes is 1000000, less than one body may take (config.limits.body_bytes_max, 16777216"),
    (
        merged(at("config.limits.body_bytes_max", 200), pool(config={"limits": {"memory_bytes": 100}}, resources={"limits": {"memory": None}})),
        "memory_bytes is 100, less than one body may take (config.limits.body_bytes_max, 200",
    ),
    (pool(resources={"limits": {"memory": "24Mi"}}), "half of it is less than one body may take"),
    (pool(modelRepository={"source": "imageVolume"}), "modelRepository.imageVolume.reference: is not set"),
    (pool(modelRepository={"source": "persistentVolumeClaim"}), "modelRepository.persistentVolumeClaim.claimName: is not set"),
    (pool(modelRepository={"source": "initContainer"}), "modelRepository.initContainer.image: is not set"),
    (pool(modelRepository={"subPath": "models"}), "modelRepository.subPath: is set, but source is image"),
    (at("telemetry.host", "127.0.0.1"), "pools.default.startupProbe: asks the port telemetry, but telemetry.host is 127.0.0.1"),
    (
        merged(pool(**PROXIED), merged(pool(readinessProbe={"httpGet": {"port": "telemetry"}}), at("telemetry.host", "[::1]"))),
        "pools.default.readinessProbe: asks the port telemetry, but telemetry.host is [::1]",
    ),
    (
        merged(pool(**PROXIED), {"telemetry": {"host": "[::1]"}, "metrics": {"podMonitor": {"enabled": True}}}),
        "metrics.podMonitor.enabled: is set, but telemetry.host is [::1]",
    ),
    (merged(scaled("keda"), pool(replicas=2)), "pools.default.replicas: is set, but autoscaling.mode is keda"),
    (merged(scaled("external"), pool(replicas=2)), "pools.default.replicas: is set, but autoscaling.mode is external"),
    (scaled("keda", minReplicas=11), "minReplicas is 11, more than maxReplicas, which is 10"),
    (scaled("hpa", minReplicas=0), "minReplicas: is 0, but an HPA cannot start again from 0"),
    (merged(scaled("hpa"), pool(resources={"requests": {"cpu": None}})), "hpa.cpuPercent: is set, but resources.requests.cpu is not"),
    (scaled("hpa", hpa={"cpuPercent": 0}), "autoscaling.hpa: has neither cpuPercent nor metrics"),
    (keda(jobs={"enabled": False}), "jobs and seconds are both off"),
    (merged(scaled("keda"), at("broker.management.uri", "")), "is keda, but broker.management.uri is not set"),
    (merged(scaled("keda"), at("broker.management.uri", "http://u:p@r:1")), "broker.management.uri: holds a login"),
    (merged(scaled("keda"), at("broker.management.uriKey", "uri")), "broker.management: uri and uriKey are both set"),
    (merged(scaled("keda"), at("broker.management.existingSecret", "")), "with broker.login=uri broker.existingSecret holds no user"),
    (merged(scaled("keda"), pool(models=[f"m{number}" for number in range(501)])), "are 501, more than one question to RabbitMQ has room"),
    (merged(scaled("keda"), pool(models=[f"{number:064}" for number in range(120)])), "are 120, more than one question to RabbitMQ"),
    (
        merged(keda(seconds={"enabled": True, "serverAddress": "http://p"}), at("fullnameOverride", "a" * 39)),
        "has 47 characters; Kubernetes cuts the names of its pods from 47 on",
    ),
    (keda(seconds={"enabled": True}), "seconds.serverAddress: is not set, but seconds.enabled is"),
    (keda(rate={"enabled": True}), "rate.perReplica: is not set, but rate.enabled is"),
    (keda(rate={"enabled": True, "source": "broker"}, seconds={"serverAddress": "http://p"}), "rate.perReplica: is not set, but rate.enabled is"),
    (keda(rate={"enabled": True, "source": "workers"}), "rate.source: is workers, which is read in Prometheus, but"),
    (keda(rate={"enabled": True, "source": "broker", "perReplica": 35}), "rate.source: is broker, which is read in Prometheus, but"),
    (keda(jobs={"protocol": "amqp"}, rate={"enabled": True, "perReplica": 35}), "RabbitMQ tells how much waits and not how much comes"),
    (keda(rate={"query": "mine"}), "rate.query: is set, but no rate is read in Prometheus"),
    (keda(rate={"query": "mine", "enabled": True, "perReplica": 35}), "rate.query: is set, but no rate is read in Prometheus"),
    (keda(jobs={"protocol": "amqp", "timeoutMs": 900}), "jobs.timeoutMs: is set, but jobs.protocol is amqp"),
    (
        merged(keda(rate={"enabled": True, "source": "workers"}, seconds={"serverAddress": "http://p"}), at("fullnameOverride", "a" * 39)),
        "autoscaling.keda.rate: the pool's name",
    ),
    (
        merged(keda(jobs={"protocol": "amqp"}, rate={"enabled": True, "perReplica": 1, "source": "management"}), at("broker.management.uri", "")),
        "is keda, but broker.management.uri is not set",
    ),
    (
        scaled("keda", minReplicas=0, keda={"jobs": {"enabled": False}, "seconds": {"enabled": True, "serverAddress": "http://p"}}),
        "minReplicas: is 0, but keda.jobs is off",
    ),
    (
        merged(scaled("keda", minReplicas=0), at("topology", {"workerMode": "declare", "job": {"enabled": False}})),
        "is 0, but only a worker would declare the queues",
    ),
    (merged(scaled("keda"), at("broker", {"vhost": "a b", "management": {"uri": "", "uriKey": "uri"}})), "`a b` has a space, which KEDA asks for as"),
    (merged(scaled("keda"), at("broker.vhost", "?#")), "`?#` has a `%`, `?` or `#` and neither"),
    (keda(fallback={"replicas": 11}), "fallback.replicas: is 11, but minReplicas is 1 and maxReplicas 10"),
    (at("metrics.podMonitor", {"enabled": True, "interval": "15s", "scrapeTimeout": "1m"}), "scrapeTimeout: is 1m, longer than interval"),
]


@pytest.mark.parametrize("values, sentence", CONTRADICTIONS, ids=[sentence for _, sentence in CONTRADICTIONS])
def test_values_that_contradict_each_other_are_refused_with_what_to_change(values, sentence):
    assert sentence in refusal(merged(KEDA, values))


def test_every_refusal_of_the_templates_is_among_those_that_are_tested():
    templates = (CHART / "templates" / "_validate.tpl").read_text()
    sentences = re.findall(r'fail (?:\(printf )?"(.*?)"[ )}]', templates)
    # Each has a test of its own, since it needs more than values beside those of KEDA.
    elsewhere = ("which would win over", "extraArgs: has --config", "broker.existingSecret: is not set", "broker.management.existingSecret: is not set", "there is no such alert", "and has them from 1.33 on")
    refused = [refusal(merged(KEDA, values)) for values, _ in CONTRADICTIONS]

    assert len(sentences) == templates.count("fail ")
    for sentence in sentences:
        pattern = re.sub("%[sdv]", ".*", re.escape(sentence).replace("%%", "%"))
        found = any(re.search(pattern, text) for text in refused)
        assert found or any(part in sentence for part in elsewhere), sentence


def test_without_any_secret_a_login_by_certificate_has_none_for_keda():
    tls = {"enabled": True, "clientCertificate": {"existingSecret": "c"}}
    broker = {"existingSecret": "", "login": "certificate", "host": "r", "tls": tls, "management": {"existingSecret": ""}}

    assert "broker.management.existingSecret: is not set" in refusal(merged(KEDA, {"broker": broker, **scaled("keda")}))


@pytest.mark.parametrize(
    "broker, keys",
    [
        ({"management": {"uri": "http://r:1", "existingSecret": "m"}}, {"username": "m/username", "password": "m/password"}),
        ({"management": {"uriKey": "management-uri"}}, {"host": "inferq-broker/management-uri"}),
        (
            {"login": "password", "host": "r", "management": {"uri": "http://r:1", "passwordKey": "pass"}},
            {"username": "inferq-broker/username", "password": "inferq-broker/pass"},
        ),
    ],
)
def test_keda_gets_the_login_from_the_secret_that_holds_it(broker, keys):
    found = one(render(merged(LEAST, {"broker": broker, **scaled("keda")})), "TriggerAuthentication")

    assert {entry["parameter"]: f"{entry['name']}/{entry['key']}" for entry in found["spec"]["secretTargetRef"]} == keys


def test_image_volumes_are_refused_on_a_kubernetes_without_them(capfd):
    values = merged(LEAST, pool(modelRepository={"source": "imageVolume", "imageVolume": {"reference": "r/m:1"}}))

    # Only the linter takes a version; it carries on after a `fail`, and says on standard error what it was.
    helm_python.lint(CHART, values, kube_version="v1.33.0", quiet=True)
    newer = capfd.readouterr().err
    helm_python.lint(CHART, values, kube_version="v1.32.9", quiet=True)
    older = capfd.readouterr().err

    assert "imageVolume" not in newer and "is imageVolume, but Kubernetes is v1.32.9" in older


OF_INFERQ = {
    f"{section}.{key}": value
    for section, keys in tomllib.loads((ROOT / "config" / "inferq.toml").read_text()).items()
    for key, value in keys.items()
}
SET_BY_CHART = {"models.repository", "models.load", "worker.device", "worker.drain_timeout_ms", "telemetry.listen"}
SET_BY_CHART |= {key for key in OF_INFERQ if key.startswith("topology.") or key.startswith("broker.") and "_file" in key}
SET_BY_CHART |= {"broker.uri"}
# What these allow follows from other values.
CHECKED_BY_CHART = {"limits.memory_bytes", "limits.body_bytes_max"}


@pytest.mark.parametrize("key", sorted(SET_BY_CHART | CHECKED_BY_CHART))
def test_no_variable_and_no_argument_sets_what_the_chart_sets(key):
    variable = "INFERQ_" + key.replace(".", "__").upper()
    by_variable = refusal(merged(LEAST, pool(extraEnv=[{"name": "TZ", "value": "UTC"}, {"name": variable, "value": "1"}])))
    by_argument = [refusal(merged(LEAST, pool(extraArgs=arguments))) for arguments in (["--set", f"{key}=1"], [f"--set={key}=1"])]

    assert f"pools.default.extraEnv: has {variable}, which would win" in by_variable
    assert all(f"pools.default.extraArgs: sets {key}, which would win" in text for text in by_argument)
    # What it says to set is a value of the chart.
    value = re.search(r"set ([\w.]+) instead", by_variable)[1].split(".")
    values = VALUES["poolDefaults"] if value[0] == "pools" else VALUES
    for name in value[2:] if value[0] == "pools" else value:
        assert name in values or values == {}
        values = values.get(name, {})


@pytest.mark.parametrize("flag", ["--broker", "--models", "--listen", "--config"])
def test_no_flag_sets_what_the_chart_sets(flag):
    for arguments in ([flag, "x"], [f"{flag}=x"]):
        assert "pools.default.extraArgs: " in refusal(merged(LEAST, pool(extraArgs=arguments)))


def test_other_variables_and_arguments_are_the_users():
    extras = {"extraEnv": [{"name": "INFERQ_BATCH__ROWS_MAX", "value": "8"}], "extraArgs": ["--set", "broker.prefetch=8", "--set=worker.name=a"]}

    container = one(render(merged(LEAST, pool(**extras))), "Deployment")["spec"]["template"]["spec"]["containers"][0]

    assert container["env"] == extras["extraEnv"] and container["args"][-3:] == extras["extraArgs"]


SCHEMA_FAULTS = [
    at("brokr", {}),
    at("broker.password", "secret"),
    at("broker.login", "token"),
    at("broker.port", 70000),
    at("image.digest", "latest"),
    at("image.pullPolicy", "always"),
    at("topology.prefix", "amq.inferq"),
    at("topology.workerMode", False),
    at("config.batch.rows", 1),
    at("config.batch.rows_max", 0),
    at("config.batch.rows_max", "64"),
    at("config.broker.uri", "amqp://user:password@host"),
    at("config.worker.drain_timeout_ms", 1000),
    at("config.telemetry.log_format", "xml"),
    at("telemetry.host", "::"),
    at("telemetry.host", "localhost"),
    at("pools.Default", {"models": ["digits"]}),
    at("pools.default.replica", 2),
    at("pools.default.models", ["digits.dead"]),
    at("pools.default.models", "digits"),
    at("pools.default.device", "cuda:0"),
    at("pools.default.drainTimeoutSeconds", -1),
    at("pools.default.autoscaling.mode", "vpa"),
    at("pools.default.autoscaling.keda.jobs.perReplica", 0),
    at("pools.default.autoscaling.keda.jobs.perReplica", 0.5),
    at("pools.default.autoscaling.keda.jobs.activation", 1.5),
    at("pools.default.autoscaling.keda.protocol", "amqp"),
    at("pools.default.autoscaling.keda.jobs.protocol", "auto"),
    at("pools.default.autoscaling.keda.rate.perReplica", 0),
    at("pools.default.autoscaling.keda.rate.source", "prometheus"),
    at("pools.default.autoscaling.keda.rate.value", 35),
    at("pools.default.autoscaling.behavior.scaleUp.policies", []),
    at("pools.default.modelRepository.source", "s3"),
    at("pools.default.resources.limits", {"memory": "2 GB"}),
    at("pools.default.resources.limits", {"memory": "1500000000m"}),
    at("pools.default.podDisruptionBudget.minAvailable", "half"),
    at("metrics.podMonitor.interval", "15"),
    at("metrics.prometheusRule.rules", {"Some": {"threshold": 1}}),
    at("networkPolicy.brokerPorts", ["amqps"]),
    at("extraObjects", {}),
]


@pytest.mark.parametrize("values", SCHEMA_FAULTS, ids=json.dumps)
def test_what_the_schema_does_not_know_is_refused(values):
    assert "values don't meet the specifications of the schema" in refusal(merged(LEAST, values))


def test_the_schema_knows_the_values_and_nothing_else():
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values: dict, of: dict, path: str):
        of = schema["$defs"][of["$ref"].rsplit("/", 1)[1]] if "$ref" in of else of
        if "properties" not in of or path in ("config", "poolDefaults.config", "poolDefaults.image"):
            return
        allowed = set(of["properties"]) - {"global", "claims", "tolerance", "requests", "limits"}
        assert set(values) - {"requests", "limits"} == allowed - ({"kind", "name"} if "authenticationRef" in path else set()), path
        for key, value in values.items():
            if isinstance(value, dict):
                compare(value, of["properties"][key], f"{path}.{key}".lstrip("."))

    compare(VALUES, schema, "")


def test_the_schema_allows_every_key_of_inferq_that_the_chart_does_not_set():
    schema = json.loads((CHART / "values.schema.json").read_text())["$defs"]["config"]["properties"]
    allowed = {f"{section}.{key}" for section, of in schema.items() for key in of["properties"]}

    assert allowed == set(OF_INFERQ) - SET_BY_CHART


# --- Dashboards and alerts ---

ALERTS = """
groups:
  - name: inferq
    rules:
      - alert: QueueIsGrowing
        expr: inferq_backlog_seconds > 60
        for: 10m
        labels: {severity: warning}
        annotations: {summary: "{{ $labels.model }} waits"}
      - alert: JobErrorRatio
        expr: vector(1) > 0
        labels: {severity: warning}
      - record: inferq:rows
        expr: vector(1)
"""
WATCHED = merged(LEAST, {"metrics": {"prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}}})


@pytest.fixture
def chart(tmp_path):
    """The chart with alerts and a dashboard of the test's own."""
    copy = tmp_path / "inferq"
    shutil.copytree(CHART, copy, ignore=shutil.ignore_patterns("alerts", "dashboards"))
    return copy


def test_without_files_there_are_no_dashboards_and_alerts(chart):
    kinds = {document["kind"] for document in render(WATCHED, chart=chart)}

    assert "PrometheusRule" not in kinds and len(kinds) == 6


def test_a_dashboard_reaches_grafana_as_it_stands(chart):
    (chart / "dashboards").mkdir()
    dashboard = '{\n  "title": "{{ $labels.model }}", "expr": "{{.Values}} `x` \\"y\\""\n}\n'
    (chart / "dashboards" / "Worker_pools.json").write_text(dashboard)

    objects = render(merged(WATCHED, at("metrics.dashboards.annotations", {"grafana_folder": "inferq"})), chart=chart)

    found = next(document for document in of_kind(objects, "ConfigMap") if "grafana_dashboard" in document["metadata"]["labels"])
    assert found["metadata"]["name"] == "prod-inferq.dashboard-worker-pools"
    assert found["data"] == {"Worker_pools.json": dashboard}
    assert found["metadata"]["annotations"] == {"grafana_folder": "inferq"}


def test_alerts_are_taken_over_and_single_ones_changed_or_left_out(chart):
    (chart / "alerts").mkdir()
    (chart / "alerts" / "inferq.yaml").write_text(ALERTS)
    own = {"QueueIsGrowing": {"severity": "critical", "for": "1h"}, "JobErrorRatio": {"enabled": False}}

    as_they_are = one(render(WATCHED, chart=chart), "PrometheusRule")
    changed = one(render(merged(WATCHED, at("metrics.prometheusRule.rules", own)), chart=chart), "PrometheusRule")
    with pytest.raises(Exception, match="there is no such alert; there are QueueIsGrowing, JobErrorRatio"):
        render(merged(WATCHED, at("metrics.prometheusRule.rules", {"Grow": {}})), chart=chart)

    validate_custom(changed)
    assert as_they_are["spec"] == yaml.safe_load(ALERTS)
    growing, recorded = changed["spec"]["groups"][0]["rules"]
    assert growing["labels"] == {"severity": "critical"} and growing["for"] == "1h"
    assert growing["annotations"] == {"summary": "{{ $labels.model }} waits"} and recorded["record"] == "inferq:rows"


# --- Documents ---


def test_the_readme_of_the_chart_is_current():
    subprocess.run([sys.executable, ROOT / "scripts" / "chart-readme", "--check"], check=True)


def test_every_value_has_its_row_in_the_readme():
    text = (CHART / "README.md").read_text()
    for key in ("broker.existingSecret", "pools.default", "poolDefaults.autoscaling.keda.jobs.perReplica", "extraObjects"):
        assert f"| `{key}` |" in text, key


def test_a_comment_that_goes_on_with_a_flag_is_one_meaning():
    script = runpy.run_path(str(ROOT / "scripts" / "chart-readme"))
    lines = "a: 1\n# No row\n# -- What `bench\n# --find` says\nb: 2\n# --c is a flag\nc: 3\n"

    assert list(script["entries"](lines)) == [("b", "`2`", "What `bench --find` says")]


@pytest.mark.parametrize(
    "values, warning",
    [
        (scaled("keda", keda={"jobs": {"perReplica": 100}}), "may hold 256 unacked jobs in a worker"),
        (merged(scaled("keda"), pool(models=["a", "b"])), "may hold 512 unacked jobs in a worker"),
        (pool(drainTimeoutSeconds=900), "the cluster autoscaler gives pods 600 s"),
        (merged(scaled("keda"), at("pools.b", {"models": ["b", "digits"], "autoscaling": {"mode": "keda"}})), "both scale on the jobs of digits"),
        (keda(seconds={"enabled": True, "serverAddress": "http://p"}), "this release has no PodMonitor"),
        (keda(rate={"enabled": True, "source": "workers"}, seconds={"serverAddress": "http://p"}), "scales on inferq_rows_settled_total, and"),
        (scaled("keda", minReplicas=0, keda={"jobs": {"protocol": "amqp"}}), "single job for longer than cooldownPeriod, 300 s"),
    ],
)
def test_the_notes_warn_of_what_is_allowed_and_unwise(values, warning):
    assert warning in notes(merged(KEDA, values))
    assert "WARNING" not in notes(LEAST) and RELEASE in notes(LEAST) and "inferq.digits" in notes(LEAST)


@pytest.mark.parametrize(
    "budget, workers, blocks",
    [
        ({}, 1, False),
        ({"maxUnavailable": 0}, 3, True),
        ({"maxUnavailable": "0%"}, 3, True),
        ({"maxUnavailable": "1%"}, 1, False),
        ({"maxUnavailable": "50%"}, 0, False),
        ({"minAvailable": 1}, 1, True),
        ({"minAvailable": 1}, 2, False),
        ({"minAvailable": "100%"}, 3, True),
        ({"minAvailable": "67%"}, 3, True),
        ({"minAvailable": "66%"}, 3, False),
        ({"minAvailable": 0}, 1, False),
        ({"maxUnavailable": 0, "enabled": False}, 3, False),
    ],
)
def test_the_notes_warn_of_a_budget_that_lets_no_worker_go(budget, workers, blocks):
    text = notes(merged(LEAST, pool(podDisruptionBudget=budget, replicas=workers)))

    assert ("its nodes could not be drained" in text) == blocks


@pytest.mark.parametrize("most, warning", [(1, None), ("50%", None), ("0%", "lets no worker go"), (0, "lets no worker go")])
def test_a_budget_that_lets_workers_go_is_not_warned_of_at_0_workers(most, warning):
    values = merged(scaled("keda", minReplicas=0), pool(podDisruptionBudget={"maxUnavailable": most}))

    text = notes(merged(KEDA, values))

    assert warning in text if warning else "its nodes could not be drained" not in text


@pytest.mark.parametrize("other", [{"mode": "none"}, {"mode": "keda", "keda": {"jobs": {"enabled": False}, "seconds": {"enabled": True}}}])
def test_pools_may_share_a_queue_if_one_of_them_counts_its_jobs(other):
    seconds = at("poolDefaults.autoscaling.keda.seconds.serverAddress", "http://prometheus:9090")
    pools = {"pools": {"b": {"models": ["digits"], "autoscaling": other}}}

    assert "both scale on" not in notes(merged(merged(KEDA, merged(scaled("keda"), seconds)), pools))
