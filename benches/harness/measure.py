"""Measuring: a broker of our own, load on a contestant, and what the kernel says that it cost."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .contestants import Contestant, Inferq, Runs
from .programs import MODEL, ROOT, TARGET, Programs, fail, runtime_environment
from .report import describe

ROWS_MAX = 64  # The default of inferq.
WARM_UP = 0.25  # Share of the measured time.
IDLE_RATE = 50  # Jobs a second that never meet.
OPEN_LOOP_SHARE = 0.7  # Of what a contestant can do; above it a queue without end would be measured.
MANY_ROWS, MANY_ROWS_IN_FLIGHT = 256, 16
QUEUES_BESIDE = (".dead", ".DQ", ".XQ")  # Those of inferq and of Dramatiq.
TICKS = os.sysconf("SC_CLK_TCK")
CPUCLOCK_SCHED = 2
MIB = 2**20
FAILED_LOG = TARGET / "floor/broker-failed.log"


class Broker:
    """A private one, with RabbitMQ's own default for its memory: the limit of the tests is for small machines."""

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def restart(self):
        """With nothing in it, at another address. What the one before has logged is kept."""
        time.sleep(1)  # It writes its log with a delay.
        try:
            shutil.copy(self.log, FAILED_LOG)
        except FileNotFoundError:
            pass  # It went away by itself, and its folder with it.
        self.stop()
        self.start()

    def start(self):
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as settings:
            memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
            settings.write(f"vm_memory_high_watermark.absolute = {memory_mib * 2 // 5}MiB\n")
            settings.flush()
            # It stops when this end of its stdin is closed, whatever becomes of us.
            self.process = subprocess.Popen(
                [ROOT / "scripts/broker", "--config-file", settings.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            line = self.process.stdout.readline()
        if not line:
            fail("the broker did not start; scripts/broker says why")
        state = json.loads(line)
        self.uri, self.pid = state["uri"], state["pid"]
        self.log = Path(state["dir"]) / "log/broker.log"

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def attempt(turn: dict, number: int, name: str, measure, broker: Broker) -> bool:
    """Measures, and keeps in `turn` what came of it. One failure takes its own figures with it, not those of an hour.

    The next one gets a new broker: brokers, too, have stopped to take messages in the middle of a run.
    """
    try:
        turn[name] = measure()
    except Exception as failure:
        turn["failed"].append(f"turn {number + 1}, {name} failed: {failure}")
        print(turn["failed"][-1], file=sys.stderr, flush=True)
        broker.restart()
        return False
    print(describe(number, name, turn[name]), file=sys.stderr, flush=True)
    return True


class Bench:
    def __init__(self, programs: Programs, broker: Broker, seconds: float, in_flight: int, rates: list[float]):
        self.programs, self.broker = programs, broker
        self.seconds, self.in_flight, self.rates = seconds, in_flight, rates

    def measure(self, start, queue: str, idle: bool) -> dict:
        """One contestant, warmed up, under full load and then at fixed rates. Times are for one job."""
        with self.serving(start, queue) as worker:
            self.closed(worker, 1, self.in_flight, self.seconds * WARM_UP)
            result = self.cost([worker], lambda: self.closed(worker, 1, self.in_flight))
            for rate in self.rates:
                if rate <= OPEN_LOOP_SHARE * result["jobs_per_second"]:
                    did = self.put_load_on(worker, 1, "open", self.seconds, rate)
                    result |= {f"p50_ms at {rate:g}/s": did["p50_ms"], f"p99_ms at {rate:g}/s": did["p99_ms"]}
            if idle:
                did = self.put_load_on(worker, 1, "open", self.seconds, IDLE_RATE)
                result["idle_ms"] = did["round_trip_p50_ms"]
            result["peak_mib"] = peak_mib(worker.process.pid)
            if isinstance(worker, Inferq):
                result["ready_ms"] = 1e3 * worker.ready_seconds
            return result | worker.stop()

    def many_rows(self, start, queue: str) -> dict:
        """Jobs of 256 rows."""
        with self.serving(start, queue) as worker:
            self.closed(worker, MANY_ROWS, MANY_ROWS_IN_FLIGHT, self.seconds * WARM_UP)
            did = self.cost([worker], lambda: self.closed(worker, MANY_ROWS, MANY_ROWS_IN_FLIGHT))
            result = {
                "rows_per_second": MANY_ROWS * did["jobs_per_second"],
                "cpu_us_per_row": did["cpu_us"] / MANY_ROWS,
                "broker_cpu_us_per_row": did["broker_cpu_us"] / MANY_ROWS,
            }
            return result | worker.stop()

    def cost(self, workers: list[Contestant], put_load) -> dict:
        """What a job costs each of those who take part while `put_load` runs, and what the workers ran meanwhile."""
        pids = [worker.process.pid for worker in workers]
        runs, cpu, broker_cpu = runs_of(workers), cpu_seconds(*pids), cpu_seconds(self.broker.pid)
        did = put_load()
        us_per_job = 1e6 / max(did["jobs"], 1)
        result = {
            "cpu_us": (cpu_seconds(*pids) - cpu) * us_per_job,
            "broker_cpu_us": (cpu_seconds(self.broker.pid) - broker_cpu) * us_per_job,
            "load_cpu_us": did["cpu_seconds"] * us_per_job,
            "jobs_per_second": did["jobs"] / did["wall_seconds"],
        }
        if runs:
            rows, count, seconds = (after - before for before, after in zip(runs, runs_of(workers)))
            result |= {"batch_rows": rows / max(count, 1), "run_us": 1e6 * seconds / max(count, 1)}
        return result | {name: value for name, value in did.items() if name.endswith("_ms")}

    def backlog(self, start, queue: str, jobs: int, rows: int | str = 1) -> dict:
        """So many jobs wait when the worker starts; all are answered before its memory is read. What a start costs without jobs is
        told apart."""
        with self.serving(start, queue) as worker:
            start_seconds = cpu_seconds(worker.process.pid)
            worker.stop()
            load = subprocess.Popen(self.load_command(worker, rows, "fill", jobs), stdout=subprocess.PIPE, text=True)
            try:
                if load.stdout.readline() != "filled\n":
                    fail("the queue could not be filled")
                with self.serving(start, queue) as worker:
                    did = json.loads(load.stdout.readline() or fail("the jobs that waited were not answered"))
                    result = {
                        "jobs": did["jobs"],
                        "peak_mib": peak_mib(worker.process.pid),
                        "cpu_us": 1e6 * cpu_seconds(worker.process.pid) / did["jobs"],
                        "cpu_us_after_start": 1e6 * (cpu_seconds(worker.process.pid) - start_seconds) / did["jobs"],
                        "ready_ms": 1e3 * getattr(worker, "ready_seconds", 0),
                        "jobs_per_second": (did["jobs"] - 1) / max(did["answer_seconds"], 1e-6),
                    }
                    return result | worker.stop()
            finally:
                load.kill()
                load.communicate()

    def ort_alone(self, model: Path = MODEL, rows: int = ROWS_MAX) -> dict:
        command = [self.programs.ort_alone, model, str(rows), str(self.seconds / 3)]
        return json.loads(subprocess.run(command, env=runtime_environment(), stdout=subprocess.PIPE, check=True).stdout)

    def closed(self, worker: Contestant, shape: int | str, in_flight: int, seconds: float | None = None) -> dict:
        return self.put_load_on(worker, shape, "closed", self.seconds if seconds is None else seconds, in_flight)

    def put_load_on(self, worker: Contestant, shape: int | str, *mode) -> dict:
        """`shape` is how many rows a job has, or ROWSxCOLUMNS."""
        if worker.process.poll() is not None:
            fail(f"{','.join(worker.queues)}: the worker has ended")
        load = subprocess.run(self.load_command(worker, shape, *mode), stdout=subprocess.PIPE, text=True)
        if load.returncode != 0:
            log = getattr(worker, "log", None)
            fail(f"{','.join(worker.queues)} failed" + (f"; it said:\n{log.read_text()[-3000:]}" if log else ""))
        return json.loads(load.stdout)

    def load_command(self, worker: Contestant, shape: int | str, *mode) -> list:
        answers = worker.answers or self.programs.answers
        command = [self.programs.load, self.broker.uri, ",".join(worker.queues), worker.kind, shape, answers, *mode]
        return [str(word) for word in command]

    @contextmanager
    def serving(self, start, queue: str) -> Iterator[Contestant]:
        """A worker and its queues, both of which are gone afterwards."""
        worker = start(queue)
        try:
            yield worker
        finally:
            worker.kill()
            # Even an empty quorum queue costs the broker something, and there would be more from turn to turn.
            queues = [queue + more for queue in worker.queues for more in ("", *QUEUES_BESIDE)]
            subprocess.run([self.programs.load, "delete", self.broker.uri, *queues])


def runs_of(workers: list[Contestant]) -> Runs | None:
    """Of all of them together."""
    runs = [worker.runs() for worker in workers]
    return Runs(*map(sum, zip(*runs))) if all(runs) else None


def tree(pid: int) -> list[int]:
    """A process and its descendants, as far as they live."""
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(entry)] = int(stat(int(entry))[1])
        except (FileNotFoundError, ProcessLookupError):
            pass
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(*pids: int) -> float:
    """User and system time of processes, their children and those they have buried."""
    return sum(cpu_seconds_of(member) for pid in pids for member in tree(pid))


def cpu_seconds_of(pid: int) -> float:
    try:
        return time.clock_gettime(cpu_clock(pid)) + sum(map(int, stat(pid)[13:15])) / TICKS
    except OSError:
        return 0  # It has just ended, and its parent has buried it.


def cpu_clock(pid: int) -> int:
    """What clock_getcpuclockid(3) gives: to the nanosecond, where /proc counts in hundredths of a second."""
    return ~pid << 3 | CPUCLOCK_SCHED


def peak_mib(pid: int) -> float:
    """The largest resident memory that each process of the tree has had, added up."""
    return sum(vm_hwm_kib(member) for member in tree(pid)) / 1024


def vm_hwm_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
