"""Who takes part: how each contestant is started and stopped, and whose messages it speaks."""

import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

from .programs import MODEL, RIVALS, ROOT, Programs, fail, rivals_python, runtime_environment

PREFETCH = 256  # The default of inferq.
STOP_SECONDS = 60


class Runs(NamedTuple):
    """What a worker has run: so many rows, in so many runs, in so much time of its engines."""

    rows: float
    runs: float
    seconds: float


class Contestant:
    """A worker under test: one process, or a tree of them."""

    kind = "inferq"  # Whose messages it speaks; see floor/jobs.h.

    answers: Path | None = None  # Other right answers than those of `dense`.

    def __init__(self, *queues: str):
        self.queues = queues

    def start(self, command: list, variables: dict | None = None, **pipes):
        environment = runtime_environment() | (variables or {})
        self.process = subprocess.Popen(command, env=environment, **pipes)

    def runs(self) -> Runs | None:
        """What it has run so far, where the contestant counts that."""
        return None

    def stop(self) -> dict:
        self.process.terminate()
        self.process.wait(STOP_SECONDS)
        return {}

    def kill(self):
        self.process.kill()
        self.process.wait()


class Echo(Contestant):
    kind = "echo"

    def __init__(self, programs: Programs, uri: str, queue: str):
        super().__init__(queue)
        # As much at once as may arrive: bigger batches than those of inferq, and so the lower floor.
        command = [programs.echo_worker, uri, queue, str(PREFETCH), str(PREFETCH)]
        self.start(command, stdout=subprocess.PIPE)

    def stop(self) -> dict:
        self.process.terminate()
        own = json.loads(self.process.communicate()[0])
        return {"batch_rows": own["jobs"] / max(own["batches"], 1)}


class Inferq(Contestant):
    def __init__(
        self,
        programs: Programs,
        uri: str,
        prefix: str,
        settings: dict | None = None,
        models: tuple[str, ...] = ("dense",),
        repository: Path = ROOT / "models",
    ):
        super().__init__(*(f"{prefix}.{model}" for model in models))
        variables = {
            "INFERQ_BROKER__URI": uri,
            "INFERQ_TOPOLOGY__PREFIX": prefix,
            "INFERQ_MODELS__REPOSITORY": str(repository),
            "INFERQ_MODELS__LOAD": ",".join(models),
            "INFERQ_TELEMETRY__LISTEN": "127.0.0.1:0",
            "INFERQ_TELEMETRY__LOG_FORMAT": "json",
        }
        settings = dict(settings or {})
        program = settings.pop("PROGRAM", programs.inferq)
        variables |= {name: value.replace("{uri}", uri) for name, value in settings.items()}
        began = time.monotonic()
        # Its log is a few lines, which the pipe holds.
        self.start([program, "worker"], variables, stderr=subprocess.PIPE, text=True)
        try:
            self.metrics_url = f"http://{self.listen_address()}/metrics"
        except BaseException:
            self.kill()
            raise
        self.ready_seconds = time.monotonic() - began

    def listen_address(self) -> str:
        said = []
        for line in self.process.stderr:
            said.append(line)
            event = json.loads(line) if line.startswith("{") else {}
            fields = event.get("fields", event)
            if fields.get("message") == "ready":
                return fields["listen"]
        fail("inferq did not become ready:\n" + "".join(said))

    def runs(self) -> Runs:
        text = urllib.request.urlopen(self.metrics_url).read().decode()
        samples = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return Runs(
            *(
                sum(float(value) for name, value in samples if name.startswith(f"inferq_{what}"))
                for what in ("batch_rows_sum", "batch_rows_count", "infer_duration_seconds_sum")
            )
        )

    def stop(self) -> dict:
        self.process.terminate()
        said = self.process.communicate()[1]
        if self.process.returncode != 0:
            fail("inferq did not end well:\n" + said)
        return {}


class PlainLapin(Contestant):
    def __init__(self, programs: Programs, uri: str, queue: str):
        super().__init__(queue)
        self.start([programs.plain_lapin, uri, queue, MODEL])


class Rival(Contestant):
    """One in Python. What it says goes to a file, and is shown if it fails."""

    def __init__(self, uri: str, queue: str, arguments: list[str], parity: bool = False):
        super().__init__(queue)
        python = rivals_python()
        variables = {
            "BENCH_URI": uri,
            "BENCH_QUEUE": queue,
            "BENCH_MODEL": str(MODEL),
            "PYTHONPATH": str(RIVALS),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if parity:
            variables |= {"BENCH_PARITY": "1", "dramatiq_queue_prefetch": str(PREFETCH // 2)}
        self.log = python.parent.parent / f"{queue}.log"
        with open(self.log, "w") as log:
            # A session of its own, so that none of its children outlives it.
            self.start([python, *arguments], variables, stdout=log, stderr=log, cwd=RIVALS, start_new_session=True)

    def stop(self) -> dict:
        super().stop()
        self.log.unlink()
        return {}

    def kill(self):
        try:
            os.killpg(self.process.pid, 9)
        except ProcessLookupError:
            pass
        self.process.wait()


class AioPika(Rival):
    def __init__(self, uri: str, queue: str):
        super().__init__(uri, queue, [str(RIVALS / "aio_pika_worker.py"), uri, queue])


class Celery(Rival):
    kind = "celery"

    def __init__(self, uri: str, queue: str, pool: str, parity: bool):
        # Two, as Celery and Dramatiq take by themselves on two cores. The flags spare messages between workers.
        sizes = [] if pool == "solo" else ["--concurrency", "2"]
        quiet = ["--loglevel", "WARNING", "--without-gossip", "--without-mingle"]
        arguments = ["-m", "celery", "--app", "celery_worker", "worker", "--queues", queue, "--pool", pool, *sizes, *quiet]
        super().__init__(uri, queue, arguments, parity)


class Dramatiq(Rival):
    kind = "dramatiq"

    def __init__(self, uri: str, queue: str, parity: bool):
        sizes = ["--processes", "2", "--threads", "8"]
        super().__init__(uri, queue, ["-m", "dramatiq", "dramatiq_worker", *sizes], parity)


def contestants(programs: Programs, broker, also: dict[str, dict]) -> dict:
    """By name, what starts each of them on a queue of the broker that then runs."""
    known = {
        "echo": lambda queue: Echo(programs, broker.uri, queue),
        "inferq": lambda queue: Inferq(programs, broker.uri, queue),
        "plain-lapin": lambda queue: PlainLapin(programs, broker.uri, queue),
        "aio-pika": lambda queue: AioPika(broker.uri, queue),
    }
    for pool in ("prefork", "threads", "solo"):
        known[f"celery-{pool}"] = lambda queue, pool=pool: Celery(broker.uri, queue, pool, parity=False)
        known[f"celery-{pool}-parity"] = lambda queue, pool=pool: Celery(broker.uri, queue, pool, parity=True)
    known["dramatiq"] = lambda queue: Dramatiq(broker.uri, queue, parity=False)
    known["dramatiq-parity"] = lambda queue: Dramatiq(broker.uri, queue, parity=True)
    for name, settings in also.items():
        known[name] = lambda queue, settings=settings: Inferq(programs, broker.uri, queue, settings)
    return known


FLOOR = ["echo", "inferq"]
COMPILED = [*FLOOR, "plain-lapin"]
PYTHON = [
    "aio-pika",
    *(f"celery-{pool}{parity}" for pool in ("prefork", "threads", "solo") for parity in ("", "-parity")),
    "dramatiq",
    "dramatiq-parity",
]
GROUPS = {"floor": FLOOR, "compiled": COMPILED, "python": PYTHON, "all": COMPILED + PYTHON}
