"""An API server that knows a few objects and no more: enough for Helm to look at them, and to say what it would install.

Helm itself asks it, by the same client as it asks a real one, so that `lookup` in the templates finds what is put here.
"""

import json
import tempfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import helm_python
import yaml

# Group and version, and the resources of each: plural name, kind, whether it has a namespace.
RESOURCES = {
    "v1": [("configmaps", "ConfigMap"), ("secrets", "Secret"), ("serviceaccounts", "ServiceAccount"), ("pods", "Pod"), ("namespaces", "Namespace")],
    "apps/v1": [("deployments", "Deployment")],
    "batch/v1": [("jobs", "Job")],
    "policy/v1": [("poddisruptionbudgets", "PodDisruptionBudget")],
    "autoscaling/v2": [("horizontalpodautoscalers", "HorizontalPodAutoscaler")],
    "networking.k8s.io/v1": [("networkpolicies", "NetworkPolicy")],
    "keda.sh/v1alpha1": [("scaledobjects", "ScaledObject"), ("triggerauthentications", "TriggerAuthentication")],
    "monitoring.coreos.com/v1": [("podmonitors", "PodMonitor"), ("prometheusrules", "PrometheusRule")],
}
VERSION = {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one packet, or each answer waits for an ack.
    wbufsize = -1

    def do_GET(self):
        path = self.path.partition("?")[0].strip("/")
        found = self.server.answers.get(path)
        self.answer(200 if found is not None else 404, found if found is not None else not_found(path))

    def answer(self, status: int, body: dict):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Nobody reads it."""


def not_found(path: str) -> dict:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": f"{path} not found", "reason": "NotFound", "code": 404}


def discovery() -> dict[str, dict]:
    """What every client asks for first."""
    answers = {"version": VERSION, "api": {"kind": "APIVersions", "versions": ["v1"]}}
    groups = []
    for group_version, resources in RESOURCES.items():
        listed = [
            {"name": plural, "singularName": kind.lower(), "namespaced": kind != "Namespace", "kind": kind, "verbs": ["get", "list"]}
            for plural, kind in resources
        ]
        prefix = "api" if group_version == "v1" else "apis"
        answers[f"{prefix}/{group_version}"] = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed}
        if prefix == "apis":
            group, version = group_version.split("/")
            of = {"groupVersion": group_version, "version": version}
            groups.append({"name": group, "versions": [of], "preferredVersion": of})
    answers["apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    return answers | checks_fields()


def checks_fields() -> dict[str, dict]:
    """That the server checks unknown fields itself, so that the client asks for no schemas."""
    answers, paths = {}, {}
    for group_version, resources in RESOURCES.items():
        group, version = group_version.rpartition("/")[::2]
        at = f"{'apis' if group else 'api'}/{group_version}"
        paths[at] = {"serverRelativeURL": f"/openapi/v3/{at}"}
        patched = {
            f"/{at}/{plural}/{{name}}": {
                "patch": {
                    "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
                    "parameters": [{"name": "fieldValidation", "in": "query"}],
                    "responses": {},
                }
            }
            for plural, kind in resources
        }
        answers[f"openapi/v3/{at}"] = {"openapi": "3.0.0", "info": {"title": "", "version": ""}, "paths": patched}
    return answers | {"openapi/v3": {"paths": paths}}


def owned(metadata: dict, release: str) -> dict:
    """The metadata of an object of this release, without which Helm would not touch it."""
    labels = {"app.kubernetes.io/managed-by": "Helm", **metadata.get("labels", {})}
    of = {"meta.helm.sh/release-name": release, "meta.helm.sh/release-namespace": metadata["namespace"]}
    return {**metadata, "labels": labels, "annotations": of | metadata.get("annotations", {})}


@contextmanager
def server(deployments: list[dict], release: str):
    """The address of an API server that has these Deployments."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.answers = discovery()
        for deployment in deployments:
            of = deployment["metadata"]
            path = f"apis/apps/v1/namespaces/{of['namespace']}/deployments/{of['name']}"
            listening.answers[path] = {"apiVersion": "apps/v1", "kind": "Deployment", **deployment, "metadata": owned(of, release)}
        thread = threading.Thread(target=listening.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}"
        finally:
            listening.shutdown()
            thread.join()


def install(chart, values: dict, release: str, namespace: str, deployments: list[dict]) -> str:
    """The manifest that Helm would install with these Deployments there; raises HelmError where the chart refuses."""
    with server(deployments, release) as address:
        user, cluster = {"name": "u", "user": {}}, {"name": "c", "cluster": {"server": address}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u", "namespace": namespace}}
        kubeconfig = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "users": [user], "contexts": [context], "current-context": "x"}
        # What the client remembers of one server is not true of the next.
        with tempfile.TemporaryDirectory() as folder:
            config = helm_python.Config(kubeconfig_content=yaml.safe_dump(kubeconfig), namespace=namespace, storage_driver="memory", qps=1000.0, burst_limit=1000)
            with config:
                return config.install(chart, release, values, namespace=namespace, dry_run="server")["manifest"]
