"""Does an upgrade that would end most of a pool's workers say so instead, and no other upgrade? Helm looks at an API server here."""

import helm_python
import pytest

import cluster
from conftest import CHART, LEAST, NAMESPACE, RELEASE, at, merged, notes, one, render

KEDA = {"broker": {"management": {"uri": "http://rabbitmq:15672", "existingSecret": "management"}}}
NAME = f"{RELEASE}-inferq-default"
OWNS, OWNS_NOT = {"f:spec": {"f:replicas": {}, "f:selector": {}}}, {"f:spec": {"f:selector": {}}}


def field(manager: str, operation: str, owned: dict = OWNS, **more) -> dict:
    return {"manager": manager, "operation": operation, "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": owned, **more}


SCALE = {"subresource": "scale"}
# As Helm 4 leaves it, and what becomes of that.
APPLIED = [field("helm", "Apply")]
APPLIED_THEN_SCALED = [field("helm", "Apply", OWNS_NOT), field("kubectl", "Update", **SCALE)]
APPLIED_THEN_KEDA = [field("helm", "Apply", OWNS_NOT), field("kube-controller-manager", "Update", **SCALE)]
APPLIED_AND_SHARED = [field("helm", "Apply"), field("kubectl", "Apply")]
# As Helm 3 does.
PATCHED = [field("helm", "Update")]
PATCHED_THEN_SCALED = [field("helm", "Update", OWNS_NOT), field("kubectl", "Update", **SCALE)]
PATCHED_THEN_KEDA = [field("helm", "Update", OWNS_NOT), field("kube-controller-manager", "Update", **SCALE)]


def live(replicas: int | None, before: str | None, fields: list[dict] | None, name: str = NAME, namespace: str = NAMESPACE) -> dict:
    """The Deployment of a pool whose mode was `before`."""
    metadata = {"name": name, "namespace": namespace}
    if before:
        metadata["annotations"] = {"inferq/autoscaling": before}
    if fields is not None:
        metadata["managedFields"] = fields
    return {"metadata": metadata, "spec": {} if replicas is None else {"replicas": replicas}}


def upgraded(deployment: dict, **pool) -> str:
    """The manifest that Helm would apply; raises HelmError where the chart refuses."""
    values = merged(merged(LEAST, KEDA), {"pools": {"default": pool}})
    return cluster.install(CHART, values, RELEASE, NAMESPACE, [deployment])


def refused(deployment: dict, **pool) -> str:
    with pytest.raises(helm_python.HelmError) as error:
        upgraded(deployment, **pool)
    return str(error.value)


@pytest.mark.parametrize("mode", ["keda", "hpa", "external"])
@pytest.mark.parametrize(
    "before, fields",
    [("none", APPLIED), (None, APPLIED), ("none", PATCHED), ("none", PATCHED_THEN_SCALED), (None, PATCHED), (None, None), ("none", None)],
    ids=["applied", "applied-unnoted", "patched", "patched-scaled", "patched-unnoted", "unknown", "noted"],
)
def test_a_switch_that_ends_workers_is_refused_with_what_to_do(mode, before, fields):
    said = refused(live(6, before, fields), autoscaling={"mode": mode, "minReplicas": 4})

    assert f"pools.default.autoscaling.mode: is {mode}" in said and f"all but one of the 6 workers of Deployment {NAME}" in said
    assert f"`kubectl scale deployment {NAME} --namespace {NAMESPACE} --replicas 7` first" in said
    assert "pools.default.autoscaling.switchMayEndWorkers=true" in said


@pytest.mark.parametrize("mode", ["keda", "hpa", "external"])
@pytest.mark.parametrize(
    "replicas, before, fields",
    [
        (7, "none", APPLIED_THEN_SCALED),
        (7, "keda", APPLIED_THEN_KEDA),
        (7, "none", APPLIED_THEN_KEDA),
        (7, "none", APPLIED_AND_SHARED),
        (7, "keda", PATCHED_THEN_KEDA),
        (7, "external", PATCHED_THEN_SCALED),
        (7, None, PATCHED_THEN_KEDA),
        (1, "none", APPLIED),
        (0, "none", PATCHED),
        (None, "none", PATCHED),
    ],
)
def test_what_ends_no_worker_goes_through(replicas, before, fields, mode):
    manifest = upgraded(live(replicas, before, fields), autoscaling={"mode": mode})

    assert f"inferq/autoscaling: {mode}" in manifest


def test_whoever_knows_may_switch_all_the_same():
    upgraded(live(6, "none", PATCHED), autoscaling={"mode": "keda", "switchMayEndWorkers": True})
    upgraded(live(6, "keda", PATCHED_THEN_KEDA), autoscaling={"mode": "none", "switchMayEndWorkers": True})


@pytest.mark.parametrize("fields", [APPLIED, APPLIED_THEN_KEDA, PATCHED_THEN_KEDA, None])
@pytest.mark.parametrize("before", ["keda", "external", "none", None])
def test_the_way_back_needs_a_number(before, fields):
    said = refused(live(6, before, fields))

    assert "pools.default.replicas: is not set" in said and f"Deployment {NAME} has 6" in said


@pytest.mark.parametrize("replicas", [1, 2, 6, 9])
def test_a_number_that_is_set_is_meant(replicas):
    manifest = upgraded(live(6, "keda", APPLIED_THEN_KEDA), replicas=replicas)

    assert f"replicas: {replicas}" in manifest


def test_each_pool_is_looked_at_by_its_own_name():
    autoscaling = {"autoscaling": {"mode": "keda"}}
    values = merged(merged(LEAST, KEDA), {"pools": {"default": autoscaling, "two": {"models": ["digits"], **autoscaling}}})
    strangers = [live(6, "none", APPLIED, name=f"{RELEASE}-inferq-three"), live(6, "none", APPLIED, namespace="elsewhere")]

    cluster.install(CHART, values, RELEASE, NAMESPACE, strangers)
    with pytest.raises(helm_python.HelmError, match="pools.two.autoscaling.mode: is keda"):
        cluster.install(CHART, values, RELEASE, NAMESPACE, [live(3, "none", APPLIED, name=f"{RELEASE}-inferq-two")])


def test_a_first_release_finds_nothing_in_its_way():
    cluster.install(CHART, merged(merged(LEAST, KEDA), at("pools.default.autoscaling.mode", "keda")), RELEASE, NAMESPACE, [])
    cluster.install(CHART, LEAST, RELEASE, NAMESPACE, [])


@pytest.mark.parametrize("mode", ["none", "keda", "hpa", "external"])
def test_the_deployment_says_who_sets_its_number(mode):
    pool = {"autoscaling": {"mode": mode}, "annotations": {"inferq/autoscaling": "mine", "other": "kept"}}

    deployment = one(render(merged(merged(LEAST, KEDA), {"pools": {"default": pool}})), "Deployment")

    assert deployment["metadata"]["annotations"] == {"inferq/autoscaling": mode, "other": "kept"}
    assert ("replicas" in deployment["spec"]) == (mode == "none")


def test_the_notes_name_the_command_that_shows_why():
    text = notes(LEAST)

    assert f"kubectl describe pods --namespace {NAMESPACE} --selector app.kubernetes.io/instance={RELEASE}" in text
