"""The chart as Helm renders it: by `helm` where it is on the PATH, else by the same engine from the package helm-python-sdk."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import helm_python
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "inferq"
EXAMPLES = sorted((CHART / "ci").glob("*-values.yaml"))
NAMES = [path.name.removesuffix("-values.yaml") for path in EXAMPLES]
RELEASE, NAMESPACE = "prod", "predictions"
# The least that a release needs.
LEAST = {"broker": {"existingSecret": "inferq-broker"}}


class Refused(Exception):
    """Helm did not render, and says why."""


def render(values: dict, chart: Path = CHART, release: str = RELEASE) -> list[dict]:
    """Every object that a release of these values has, in Helm's order of templates; hooks are among them."""
    return [document for text in manifests(values, chart, release).values() for document in yaml.safe_load_all(text) if document]


def manifests(values: dict, chart: Path = CHART, release: str = RELEASE) -> dict[str, str]:
    """The rendered text of each template that gave one, NOTES.txt left out."""
    rendered = render_by_program if shutil.which("helm") else render_by_library
    return {path: text for path, text in rendered(values, chart, release).items() if text.strip()}


def render_by_library(values: dict, chart: Path, release: str) -> dict[str, str]:
    try:
        with helm_python.Chart.load(chart) as loaded:
            rendered = loaded.render(values, name=release, namespace=NAMESPACE, is_install=True)
    except helm_python.HelmError as error:
        raise Refused(str(error)) from error
    prefix = "inferq/templates/"
    return {path.removeprefix(prefix): rendered[path] for path in sorted(rendered) if not path.endswith("NOTES.txt")}


def render_by_program(values: dict, chart: Path, release: str) -> dict[str, str]:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        command = ["helm", "template", release, str(chart), "--namespace", NAMESPACE, "--values", file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Refused(done.stderr)
    rendered: dict[str, str] = {}
    for part in done.stdout.split("\n# Source: inferq/templates/")[1:]:
        path, text = part.split("\n", 1)
        rendered[path] = rendered.get(path, "") + "---\n" + text.removesuffix("---") + "\n"
    return dict(sorted(rendered.items()))


def notes(values: dict) -> str:
    """What Helm says after the installation."""
    with helm_python.Chart.load(CHART) as loaded:
        rendered = loaded.render(values, name=RELEASE, namespace=NAMESPACE, is_install=True)
    return rendered["inferq/templates/NOTES.txt"]


def refusal(values: dict, release: str = RELEASE) -> str:
    """Why Helm does not render these values; fails if it does."""
    with pytest.raises(Refused) as refused:
        render(values, release=release)
    return str(refused.value)


def merged(base: dict, more: dict) -> dict:
    """`more` over `base`, as Helm puts values files over each other."""
    result = dict(base)
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def at(path: str, value: object) -> dict:
    """The values in which only what `path` names is set: a.b.c."""
    first, _, rest = path.partition(".")
    return {first: at(rest, value) if rest else value}


def pod_of(document: dict) -> dict | None:
    """The pod template of an object, or nothing if it makes no pods."""
    if document["kind"] == "Pod":
        return document
    return document["spec"]["template"] if document["kind"] in ("Deployment", "Job") else None


def of_kind(documents: list[dict], kind: str) -> list[dict]:
    return [document for document in documents if document["kind"] == kind]


def one(documents: list[dict], kind: str) -> dict:
    found = of_kind(documents, kind)
    assert len(found) == 1, [document["metadata"]["name"] for document in found]
    return found[0]


def trigger_of(scaled_object: dict, name: str) -> dict:
    """The trigger of this name."""
    (found,) = [trigger for trigger in scaled_object["spec"]["triggers"] if trigger["name"] == name]
    return found


@pytest.fixture(params=EXAMPLES, ids=NAMES)
def example(request) -> dict:
    return yaml.safe_load(request.param.read_text())
