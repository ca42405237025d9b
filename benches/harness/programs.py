"""The programs of a benchmark: built where cargo puts its output, and the Python of the contestants that need one."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

BENCHES = Path(__file__).resolve().parent.parent
ROOT = BENCHES.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
ONNX_RUNTIME = ROOT / ".deps/onnxruntime/libonnxruntime.so"
MODEL = ROOT / "models/dense/1/model.onnx"
RIVALS = BENCHES / "rivals"
REQUIREMENTS = BENCHES / "requirements.txt"
PYTHON = ROOT / ".deps/bench-python"


class Failed(Exception):
    """What went wrong, in one sentence; its measurement has no figures."""


def fail(sentence: str):
    raise Failed(sentence)


def run(main):
    """Ends the process with what `main` returns, or with what went wrong."""
    try:
        sys.exit(main())
    except Failed as failure:
        sys.exit(f"bench: {failure}")


class Programs:
    """All that is built, by name."""

    def __init__(self, profile: str):
        self.echo_worker, self.load = build_c("echo_worker"), build_c("load", "-lm")
        rust = build_rust(profile)
        self.inferq, self.ort_alone, self.plain_lapin = rust["inferq"], rust["ort_alone"], rust["plain_lapin"]
        self.client_calls = rust["client_calls"]
        self.answers = self.answers_of(MODEL)

    def answers_of(self, model: Path) -> Path:
        """What each of the load's rows must be answered with, by ONNX Runtime alone."""
        rows, answers = TARGET / "floor/rows.f32", TARGET / f"floor/{model.parent.parent.name}.f32"
        subprocess.run([self.load, "rows", rows], check=True)
        subprocess.run([self.ort_alone, model, "answers", rows, answers], env=runtime_environment(), check=True)
        return answers


def runtime_environment() -> dict:
    return os.environ | {"ORT_DYLIB_PATH": str(ONNX_RUNTIME), "ORT_DISABLE_TELEMETRY": "1"}


def build_c(name: str, *libraries: str) -> Path:
    if not shutil.which("cc"):
        fail("there is no C compiler; please install what Debian calls: gcc libc6-dev")
    probe = subprocess.run(["cc", "-E", "-"], input=b"#include <amqp.h>", capture_output=True)
    if probe.returncode != 0:
        fail("the headers of librabbitmq are missing; please install what Debian calls: librabbitmq-dev")
    program = TARGET / "floor" / name
    program.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]
    source = BENCHES / "floor" / f"{name}.c"
    subprocess.run(["cc", *flags, source, "-o", program, "-lrabbitmq", *libraries], check=True)
    return program


def build_rust(profile: str) -> dict[str, Path]:
    if not ONNX_RUNTIME.exists():
        fail("ONNX Runtime is not there; please run: make setup")
    command = ["cargo", "build", "--locked", "--profile", profile, "--message-format=json-render-diagnostics"]
    command += ["--bin=inferq", "--bench=ort_alone", "--bench=plain_lapin", "--bench=client_calls"]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    messages = map(json.loads, output.splitlines())
    return {m["target"]["name"]: Path(m["executable"]) for m in messages if m.get("executable")}


def rivals_python() -> Path:
    """A virtual environment with exactly the pinned packages, made anew when the pins change."""
    pinned = (ROOT / "scripts/onnxruntime.txt").read_text().partition("onnxruntime==")[2].split()[0]
    if f"onnxruntime=={pinned} " not in REQUIREMENTS.read_text():
        fail(f"benches/requirements.txt pins another ONNX Runtime than {pinned}, which inferq runs; please pin that")
    pins = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    stamp, python = PYTHON / "stamp", PYTHON / "bin/python"
    if stamp.exists() and stamp.read_text() == pins:
        return python
    print(f"bench: installing the Python contestants into {PYTHON.relative_to(ROOT)}", file=sys.stderr)
    shutil.rmtree(PYTHON, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", PYTHON], check=True)
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--only-binary=:all:", "--no-deps"]
    subprocess.run([*pip, "--require-hashes", "--requirement", REQUIREMENTS], check=True)
    stamp.write_text(pins)
    return python
