#!/usr/bin/env python3
"""Makes JSON schemas of the custom resources that the chart renders, from the YAML of their definitions.

    tests/chart/make_schemas.py KEDA PROMETHEUS_OPERATOR

Both are git repositories of the projects; the versions are below. Unknown fields are refused, as the API server's strict
validation does; of KEDA's triggers, whose metadata are a free map of strings, the known parameters are written down too.
"""

import json
import subprocess
import sys
from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parent / "schemas"
KEDA = "v2.20.2"
PROMETHEUS_OPERATOR = "6adcebc5076c34f4f55f8f5f7b1e528929373ac7"  # Of v0.93.0.
KINDS = {
    "keda": ["config/crd/bases/keda.sh_scaledobjects.yaml", "config/crd/bases/keda.sh_triggerauthentications.yaml"],
    "prometheus": [
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ],
}


def main(keda: str, prometheus_operator: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    for path in KINDS["keda"]:
        write(show(keda, KEDA, path))
    for path in KINDS["prometheus"]:
        write(show(prometheus_operator, PROMETHEUS_OPERATOR, path))
    scalers = json.loads(show(keda, KEDA, "schema/generated/scalers-schema.json"))["scalers"]
    known = {scaler["type"]: scaler["parameters"] for scaler in scalers if scaler["type"] in ("prometheus", "rabbitmq")}
    (FOLDER / "triggers.json").write_text(json.dumps(known, indent=1) + "\n")


def show(repository: str, commit: str, path: str) -> str:
    command = ["git", "--git-dir", repository, "show", f"{commit}:{path}"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def write(definition: str) -> None:
    definition = yaml.safe_load(definition)
    for version in definition["spec"]["versions"]:
        if not version["served"]:
            continue
        schema = strict(version["schema"]["openAPIV3Schema"])
        name = f"{definition['spec']['names']['kind']}-{version['name']}.json"
        (FOLDER / name).write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")


def strict(schema: object) -> object:
    """The same schema without its prose, closed against unknown fields where it lists the known ones."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {}
    for key, value in schema.items():
        if key == "properties":
            closed[key] = {name: strict(field) for name, field in value.items()}
        elif key != "description" and not key.startswith("x-kubernetes"):
            closed[key] = strict(value)
    fields = closed.get("properties")
    if fields and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed["additionalProperties"] = False
    return closed


if __name__ == "__main__":
    main(*sys.argv[1:])
