"""Can the Dockerfile be what it seems? `make image-check` builds and runs it; this is what takes a second."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

from conftest import ROOT

DOCKERFILE = ROOT / "Dockerfile"


@pytest.fixture(scope="module")
def instructions() -> list[dict]:
    with DOCKERFILE.open("rb") as file:
        return [entry for entry in DockerfileParser(fileobj=file).structure if entry["instruction"] != "COMMENT"]


def stages(instructions: list[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for entry in instructions:
        if entry["instruction"] == "FROM":
            found[entry["value"].split(" AS ")[1]] = []
        if found:
            list(found.values())[-1].append(entry)
    return found


def test_hadolint_finds_nothing():
    hadolint = ROOT / ".deps" / "python" / "bin" / "hadolint"
    done = subprocess.run([hadolint, "--failure-threshold", "info", DOCKERFILE], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_would_find_something(tmp_path):
    broken = tmp_path / "Dockerfile"
    broken.write_text("FROM debian:latest\nRUN cd /tmp && sudo apt-get install curl\n")

    hadolint = ROOT / ".deps" / "python" / "bin" / "hadolint"
    assert subprocess.run([hadolint, broken], stdout=subprocess.DEVNULL).returncode != 0


def test_bases_are_pinned_by_an_exact_version(instructions):
    pinned = [entry["value"] for entry in instructions if entry["instruction"] == "ARG" and "_IMAGE=" in entry["value"]]

    assert len(pinned) == 2
    for value in pinned:
        assert re.search(r":\d+\.\d+(\.\d+)?-", value), value
    names = [name for name in stages(instructions)]
    for entry in instructions:
        if entry["instruction"] == "FROM":
            base = entry["value"].split(" AS ")[0]
            assert base in ("${RUST_IMAGE}", "${DEBIAN_IMAGE}", "scratch") or base in names, base


def test_the_rust_of_the_image_is_new_enough(instructions):
    needed = re.search(r'rust-version = "(\d+)\.(\d+)"', (ROOT / "Cargo.toml").read_text()).groups()
    there = re.search(r"/rust:(\d+)\.(\d+)", DOCKERFILE.read_text()).groups()

    assert tuple(map(int, there)) >= tuple(map(int, needed))


def test_the_version_is_that_of_the_crate_and_of_the_chart(instructions):
    crate = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    chart = (ROOT / "helm" / "inferq" / "Chart.yaml").read_text()

    assert f"ARG VERSION={crate}\n" in DOCKERFILE.read_text()
    assert f'appVersion: "{crate}"' in chart and f"inferq/inferq:{crate}\n" in chart


def test_the_image_runs_as_nobody_in_particular_and_without_a_shell(instructions):
    of = stages(instructions)

    assert of["base"][0]["value"] == "scratch AS base"
    assert [entry["value"] for entry in of["base"] if entry["instruction"] == "USER"] == ["65532:65532"]
    for name in ("base", "cpu", "cuda"):
        assert not [entry for entry in of[name] if entry["instruction"] == "RUN"]
    # The one that is built unless told otherwise.
    assert list(of)[-1] == "cpu"
    entry = next(entry for entry in of["base"] if entry["instruction"] == "ENTRYPOINT")
    assert json.loads(entry["value"]) == ["/opt/inferq/inferq"]


def test_the_port_that_is_exposed_is_listened_on_from_outside(instructions):
    base = stages(instructions)["base"]

    exposed = [entry["value"] for entry in base if entry["instruction"] == "EXPOSE"]
    listen = [re.search(r"INFERQ_TELEMETRY__LISTEN=(\S+)", entry["value"]) for entry in base if entry["instruction"] == "ENV"]
    assert [found[1] for found in listen if found] == [f"0.0.0.0:{port}" for port in exposed] and exposed


def test_what_is_copied_exists_and_is_let_through(instructions):
    sources = []
    for entry in instructions:
        if entry["instruction"] == "COPY" and "--from=" not in entry["value"]:
            sources += entry["value"].split()[:-1]

    assert sources
    for source in sources:
        path = ROOT / source
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        assert any(not ignored(file.relative_to(ROOT)) for file in files), source
    for secret in (".git/config", ".deps/stamp", "target/debug/inferq", "models/digits/test/images.npy", "tests/it/main.rs"):
        assert ignored(Path(secret)), secret


def ignored(path: Path) -> bool:
    """By the rules of .dockerignore: the last pattern that matches the path or a folder above it decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            keep, pattern = line.startswith("!"), line.removeprefix("!")
            # A star stops at a slash, two of them do not.
            expression = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            if any(re.fullmatch(expression, str(part)) for part in [path, *path.parents][:-1]):
                verdict = not keep
    return verdict


def test_onnx_runtime_comes_from_the_pinned_wheels_with_their_hashes():
    for script in ("onnxruntime", "onnxruntime-gpu"):
        assert "--require-hashes" in (ROOT / "scripts" / script).read_text()
        pins = (ROOT / "scripts" / f"{script}.txt").read_text()
        assert all("--hash=sha256:" in pin for pin in re.split(r"\n(?=[a-z])", pins) if not pin.startswith("#"))
