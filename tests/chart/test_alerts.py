"""Do the alerts and dashboards of a release look for its own queues and objects, whatever they are called?"""

import json
import re
import subprocess

import pytest
import yaml

from conftest import CHART, LEAST, NAMESPACE, merged, of_kind, one, render, trigger_of

WATCHED = merged(LEAST, {"metrics": {"prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}}})
# A dot in the prefix stands for itself alone.
OTHER_NAMES = merged(
    WATCHED,
    {
        "fullnameOverride": "fraud",
        "topology": {"prefix": "our.jobs"},
        "pools": {"default": {"models": ["digits"]}, "large": {"models": ["dense"]}},
    },
)
FILE = yaml.safe_load((CHART / "alerts" / "inferq.yaml").read_text())


def rules(values: dict, release: str) -> dict:
    return one(render(values, release=release), "PrometheusRule")["spec"]


def dashboards(values: dict, release: str) -> dict[str, str]:
    """The text of each dashboard, by the name of its file."""
    found = of_kind(render(values, release=release), "ConfigMap")
    return {name: text for document in found for name, text in document["data"].items() if name.endswith(".json")}


def fired(spec: dict, series: dict[str, str], folder) -> set[str]:
    """Which alerts these series make fire in an hour, each with the queue or object that it is about."""
    about = 'label_join(ALERTS{alertstate="firing"}, "about", "", "queue", "scaledObject", "horizontalpodautoscaler")'
    asked = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [{"expr": f"count by (alertname, about) ({about})", "eval_time": "1h", "exp_samples": []}],
            }
        ],
    }
    (folder / "rules.yaml").write_text(yaml.safe_dump(spec))
    (folder / "test.yaml").write_text(yaml.safe_dump(asked))
    said = subprocess.run(["promtool", "test", "rules", folder / "test.yaml"], capture_output=True, text=True)
    # It is told to expect nothing, so that it lists whatever there is.
    assert ("got:" in said.stderr) == (said.returncode != 0), said.stderr
    found = re.findall(r'\{(?:about="(.*?)", )?alertname="(\w+)"\}', said.stderr)
    return {f"{alert} {about}".strip() for about, alert in found}


def troubles(queue: str, scaled_object: str, autoscaler: str) -> dict[str, str]:
    """A queue with jobs and no consumer, a scaler with errors, and an autoscaler at its maximum."""
    return {
        f'rabbitmq_detailed_queue_messages{{vhost="/", queue="{queue}"}}': "9x60",
        f'rabbitmq_detailed_queue_consumers{{vhost="/", queue="{queue}"}}': "0x60",
        f'keda_scaled_object_errors_total{{exported_namespace="n", scaledObject="{scaled_object}"}}': "0+1x60",
        f'kube_horizontalpodautoscaler_status_desired_replicas{{horizontalpodautoscaler="{autoscaler}"}}': "8x60",
        f'kube_horizontalpodautoscaler_spec_max_replicas{{horizontalpodautoscaler="{autoscaler}"}}': "8x60",
    }


@pytest.mark.parametrize(
    "queue, scaled_object, autoscaler",
    [("our.jobs.dense", "fraud-default", "keda-hpa-fraud-large"), ("our.jobs.digits", "fraud-large", "fraud-default")],
)
def test_the_alerts_find_queues_and_objects_of_other_names(queue, scaled_object, autoscaler, tmp_path):
    spec = rules(OTHER_NAMES, "prod")

    found = fired(spec, troubles(queue, scaled_object, autoscaler), tmp_path)
    gone = fired(spec, {f'rabbitmq_detailed_queue_consumers{{queue="{queue}"}}': "2x10 stale"}, tmp_path)

    assert found == {f"InferqNoConsumers {queue}", f"InferqScalerErrors {scaled_object}", f"InferqAtMostWorkers {autoscaler}"}
    assert gone == {"InferqBrokerMetricsAbsent"}


@pytest.mark.parametrize(
    "queue, scaled_object, autoscaler",
    [
        ("inferq.digits", "prod-inferq-default", "keda-hpa-prod-inferq-default"),
        ("ourXjobs.digits", "fraud-other-default", "fraud-default-other"),
        ("our.jobs.digits.dead", "fraud", "keda-hpa-fraud"),
    ],
)
def test_the_alerts_leave_queues_and_objects_of_others_alone(queue, scaled_object, autoscaler, tmp_path):
    assert fired(rules(OTHER_NAMES, "prod"), troubles(queue, scaled_object, autoscaler), tmp_path) == set()


def test_the_alerts_find_what_scales_a_pool_from_outside_by_the_name_of_the_release(tmp_path):
    external = merged(OTHER_NAMES, {"pools": {"large": {"autoscaling": {"mode": "external"}}}})

    found = fired(rules(external, "prod"), troubles("other", "my-fraud-scaler", "keda-hpa-my-fraud-scaler"), tmp_path)

    assert found == {"InferqScalerErrors my-fraud-scaler", "InferqAtMostWorkers keda-hpa-my-fraud-scaler"}


@pytest.mark.parametrize(
    "series, answer",
    [
        # The most that a worker of the pool says of each model.
        ({"jobs a default": 4, "jobs b default": 2, "seconds a default": 1.5, "seconds b default": 2, "seconds a other": 9}, 2),
        # A model whose pace is not known yet is no error.
        ({"jobs a default": 4}, 0),
        # No scrape at all is one.
        ({"jobs a other": 4, "seconds a other": 9}, None),
    ],
)
def test_the_query_for_seconds_of_work_has_an_answer_where_workers_are_scraped(series, answer, tmp_path):
    seconds = {"enabled": True, "serverAddress": "http://prometheus:9090"}
    scaling = {"mode": "keda", "keda": {"jobs": {"enabled": False}, "seconds": seconds}}
    scaled = one(render(merged(LEAST, {"poolDefaults": {"autoscaling": scaling}}), release="prod"), "ScaledObject")
    trigger = trigger_of(scaled, "seconds")
    given = []
    for about, value in series.items():
        kind, model, pool = about.split()
        for pod, value in {"x": value, "y": value / 2}.items():
            labels = f'namespace="{NAMESPACE}",pod="prod-inferq-{pool}-5d9-{pod}",model="{model}"'
            given.append({"series": f"inferq_backlog_{kind}{{{labels}}}", "values": str(value)})
    samples = [] if answer is None else [{"labels": "{}", "value": answer}]
    asked = {"expr": trigger["metadata"]["query"], "eval_time": "0m", "exp_samples": samples}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"tests": [{"input_series": given, "promql_expr_test": [asked]}]}))

    said = subprocess.run(["promtool", "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True)

    assert said.returncode == 0, said.stderr
    assert (trigger["type"], trigger["metadata"]["threshold"]) == ("prometheus", "10")


RATES = {
    "mode": "keda",
    "keda": {
        "jobs": {"protocol": "amqp"},
        "rate": {"enabled": True, "source": "broker", "perReplica": 35},
        "seconds": {"enabled": True, "serverAddress": "http://p"},
    },
}


def asked(name: str, series: dict[str, str], answer: float | None, folder) -> subprocess.CompletedProcess:
    """Asks what the trigger of this name asks, four minutes after the series began."""
    values = merged(LEAST, {"poolDefaults": {"autoscaling": RATES}, "pools": {"default": {"models": ["a", "b.c"]}}})
    trigger = trigger_of(one(render(values, release="prod"), "ScaledObject"), name)
    samples = [] if answer is None else [{"labels": "{}", "value": answer}]
    expected = {"expr": f"round({trigger['metadata']['query']}, 0.001)", "eval_time": "4m", "exp_samples": samples}
    given = [{"series": series, "values": values} for series, values in series.items()]
    test = {"interval": "15s", "input_series": given, "promql_expr_test": [expected]}
    (folder / "test.yaml").write_text(yaml.safe_dump({"tests": [test]}))
    return subprocess.run(["promtool", "test", "rules", folder / "test.yaml"], capture_output=True, text=True)


def workers(**figures: tuple[str, str, str]) -> dict[str, str]:
    """Series of workers of the pool, by pod: rows settled in each 15 s, rows/s that it can do, and whether it only estimates that."""
    series = {"inferq_backlog_jobs": 0, "inferq_rows_settled_total": 0, "inferq_capacity_rows_per_second": 1, "inferq_capacity_is_estimate": 2}
    found = {}
    for pod, of_pod in figures.items():
        model = "b.c" if pod.endswith("2") else "a"
        labels = f'{{namespace="{NAMESPACE}",pod="prod-inferq-default-5d9-{pod.rstrip("2")}",model="{model}"}}'
        for name, column in series.items():
            values = f"0+{of_pod[0]}x20" if name.endswith("total") else f"{of_pod[column]}x20"
            if of_pod[column] != "":
                found[name + labels] = values
    return found


@pytest.mark.parametrize(
    "figures, answer",
    [
        # 60 and 30 rows/s over 60, over 0.75.
        ({"x": ("900", "60", "0"), "y": ("450", "60", "0")}, 2),
        # Of a worker that was saturated more is known than of one that never was.
        ({"x": ("450", "40", "0"), "y": ("450", "4000", "1")}, 2),
        ({"x": ("450", "40", "1"), "y": ("450", "40", "1")}, 2),
        # Each model by what can be done of it: half a worker and a whole one.
        ({"x": ("450", "60", "0"), "x2": ("15", "1", "0")}, 2),
        # Nothing is known yet, or the workers are older than these metrics.
        ({"x": ("450", "0", "1")}, 0),
        ({"x": ("450", "", "")}, 0),
        # Nobody is scraped.
        ({}, None),
    ],
)
def test_the_query_for_the_rate_of_the_workers_gives_how_many_are_needed(figures, answer, tmp_path):
    said = asked("workers-rate", workers(**figures), answer, tmp_path)

    assert said.returncode == 0, said.stderr


PUBLISHED = {
    'rabbitmq_detailed_queue_messages{vhost="/",queue="inferq.a"}': "7x20",
    'rabbitmq_detailed_queue_messages_published_total{channel="1",queue_vhost="/",queue="inferq.a",exchange=""}': "0+300x20",
    'rabbitmq_detailed_queue_messages_published_total{channel="2",queue_vhost="/",queue="inferq.b.c",exchange=""}': "0+150x20",
    'rabbitmq_detailed_queue_messages_published_total{channel="2",queue_vhost="/",queue="inferq.bxc",exchange=""}': "0+600x20",
    'rabbitmq_detailed_queue_messages_published_total{channel="2",queue_vhost="v",queue="inferq.a",exchange=""}': "0+600x20",
}
NEWER = {'rabbitmq_detailed_queue_exchange_messages_published_total{vhost="/",queue="inferq.a",exchange="inferq"}': "0+450x20"}


@pytest.mark.parametrize(
    "series, answer",
    [(PUBLISHED, 30), ({**PUBLISHED, **NEWER}, 30), (dict([*PUBLISHED.items()][:1]), 0), ({}, None)],
    ids=["by channel", "by queue", "nothing published", "not scraped"],
)
def test_the_query_for_published_jobs_knows_old_brokers_new_ones_and_no_other_queue(series, answer, tmp_path):
    said = asked("rate", series, answer, tmp_path)

    assert said.returncode == 0, said.stderr


def test_a_scaler_that_sees_nothing_is_told_by_the_number_of_its_own_pool(tmp_path):
    keda = {"autoscaling": {"mode": "keda", "keda": {"jobs": {"protocol": "amqp", "perReplica": 100}}}}
    large = {"autoscaling": {"mode": "keda", "keda": {"jobs": {"protocol": "amqp", "perReplica": 2000}}}}
    values = merged(OTHER_NAMES, {"pools": {"default": keda, "large": large, "fixed": {"models": ["digits"]}}})
    series = {}
    for pool in ("default", "large", "fixed"):
        series[f'inferq_backlog_jobs{{namespace="n", pod="fraud-{pool}-5d9c-abcde", model="m"}}'] = "900x60"
        series[f'keda_scaler_metrics_value{{exported_namespace="n", scaledObject="fraud-{pool}", metric="s0-rabbitmq-m"}}'] = "0x60"

    found = fired(rules(values, "prod"), series, tmp_path)

    assert found == {"InferqScalerSeesNothing fraud-default"}


def test_the_other_rules_are_those_of_the_file():
    by_default, changed = rules(WATCHED, "prod"), rules(OTHER_NAMES, "prod")

    def differing(spec: dict) -> set[str]:
        pairs = zip(spec["groups"], FILE["groups"], strict=True)
        rules = [pair for ours, theirs in pairs for pair in zip(ours["rules"], theirs["rules"], strict=True)]
        for ours, theirs in rules:
            assert {**ours, "expr": ""} == {**theirs, "expr": ""}
        return {ours.get("alert") for ours, theirs in rules if ours["expr"] != theirs["expr"]}

    assert differing(by_default) == {"InferqScalerErrors", "InferqScalerSeesNothing", "InferqAtMostWorkers"}
    assert differing(changed) == {"InferqNoConsumers", "InferqBrokerMetricsAbsent"} | differing(by_default)


def test_the_dashboards_are_the_files_if_names_are_those_of_the_files():
    files = {path.name: path.read_text() for path in (CHART / "dashboards").glob("*.json")}

    assert len(files) == 3 and dashboards(WATCHED, "inferq") == files


def test_the_menus_of_the_dashboards_begin_with_the_names_of_the_release():
    files = {path.name: json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")}
    made = {name: json.loads(text) for name, text in dashboards(OTHER_NAMES, "prod").items()}

    menus = {menu["name"]: menu for menu in files["fleet.json"]["templating"]["list"]}
    for name, value in {"prefix": "our.jobs", "scaled": ".*fraud.*"}.items():
        menus[name] |= {"query": value, "current": {"text": value, "value": value}}
    assert made == files


def test_the_queries_of_the_dashboards_take_names_from_the_menus():
    queries = re.findall(r'"expr": "(.*)"', (CHART / "dashboards" / "fleet.json").read_text())

    found = [query for query in queries if re.search(r"queue=|horizontalpodautoscaler=|scaledObject=", query)]
    assert len(found) == 9
    assert all("$prefix" in query or "$scaled" in query for query in found) and not any("inferq.*" in query for query in found)
