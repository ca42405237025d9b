"""Measuring: a broker of our own, load on a contestant, and what the kernel says that it cost."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from .contestants import Contestant, Inferq
from .programs import MODEL, ROOT, Programs, fail, runtime_environment

ROWS_MAX = 64  # The default of inferq.
WARM_UP = 0.25  # Share of the measured time.
IDLE_RATE = 50  # Jobs a second that never meet.
OPEN_LOOP_SHARE = 0.7  # Of what a contestant can do; above it a queue without end would be measured.
MANY_ROWS, MANY_ROWS_IN_FLIGHT = 256, 16
TICKS = os.sysconf("SC_CLK_TCK")
MIB = 2**20


class Broker:
    """A private one, with RabbitMQ's own default for its memory: the limit of the tests is for small machines."""

    def __enter__(self):
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
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


class Bench:
    def __init__(self, programs: Programs, broker: Broker, seconds: float, in_flight: int, rates: list[float]):
        self.programs, self.broker = programs, broker
        self.seconds, self.in_flight, self.rates = seconds, in_flight, rates

    def measure(self, start, queue: str, idle: bool) -> dict:
        """One contestant, warmed up, under full load and then at fixed rates. Times are for one job."""
        worker = start(queue)
        try:
            self.closed(worker, self.seconds * WARM_UP)
            batches, cpu, broker_cpu = worker.batches(), cpu_seconds(worker.process.pid), cpu_seconds(self.broker.pid)
            did = self.closed(worker, self.seconds)
            us_per_job = 1e6 / did["jobs"]
            result = {
                "cpu_us": (cpu_seconds(worker.process.pid) - cpu) * us_per_job,
                "broker_cpu_us": (cpu_seconds(self.broker.pid) - broker_cpu) * us_per_job,
                "load_cpu_us": did["cpu_seconds"] * us_per_job,
                "jobs_per_second": did["jobs"] / did["wall_seconds"],
            }
            if batches:
                rows, runs = (after - before for before, after in zip(batches, worker.batches()))
                result["batch_rows"] = rows / max(runs, 1)
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
            return result | self.stop(worker)
        finally:
            worker.kill()

    def many_rows(self, start, queue: str) -> dict:
        """Jobs of 256 rows."""
        worker = start(queue)
        try:
            self.put_load_on(worker, MANY_ROWS, "closed", self.seconds * WARM_UP, MANY_ROWS_IN_FLIGHT)
            cpu = cpu_seconds(worker.process.pid)
            did = self.put_load_on(worker, MANY_ROWS, "closed", self.seconds, MANY_ROWS_IN_FLIGHT)
            cpu, rows = cpu_seconds(worker.process.pid) - cpu, did["jobs"] * MANY_ROWS
            result = {"rows_per_second": rows / did["wall_seconds"], "cpu_us_per_row": 1e6 * cpu / rows}
            return result | self.stop(worker)
        finally:
            worker.kill()

    def backlog(self, start, queue: str, jobs: int) -> dict:
        """So many jobs wait when the worker starts; all are answered before its memory is read."""
        self.stop_but_keep_queue(start(queue))
        command = self.load_command(f"{queue}.dense", "inferq", 1, "fill", jobs)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
            try:
                if load.stdout.readline() != "filled\n":
                    fail("the queue could not be filled")
                worker = start(queue)
                try:
                    did = json.loads(load.stdout.readline() or fail("the jobs that waited were not answered"))
                    return {"jobs": did["jobs"], "peak_mib": peak_mib(worker.process.pid)} | self.stop(worker)
                finally:
                    worker.kill()
            finally:
                load.kill()

    def ort_alone(self) -> dict:
        command = [self.programs.ort_alone, MODEL, str(ROWS_MAX), str(self.seconds / 3)]
        return json.loads(subprocess.run(command, env=runtime_environment(), stdout=subprocess.PIPE, check=True).stdout)

    def closed(self, worker: Contestant, seconds: float) -> dict:
        return self.put_load_on(worker, 1, "closed", seconds, self.in_flight)

    def put_load_on(self, worker: Contestant, rows: int, *mode) -> dict:
        command = self.load_command(worker.queue, worker.kind, rows, *mode)
        load = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if load.returncode != 0:
            log = getattr(worker, "log", None)
            fail(f"{worker.queue} failed" + (f"; it said:\n{log.read_text()[-3000:]}" if log else ""))
        return json.loads(load.stdout)

    def load_command(self, queue: str, kind: str, rows: int, *mode) -> list:
        command = [self.programs.load, self.broker.uri, queue, kind, rows, self.programs.answers, *mode]
        return [str(word) for word in command]

    def stop(self, worker: Contestant) -> dict:
        said = worker.stop()
        # Even an empty quorum queue costs the broker something, and there would be more from turn to turn.
        subprocess.run([self.programs.load, "delete", self.broker.uri, worker.queue], check=True)
        return said

    def stop_but_keep_queue(self, worker: Contestant):
        try:
            worker.stop()
        finally:
            worker.kill()


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


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, its children and those they have buried."""
    return sum(int(ticks) for member in tree(pid) for ticks in stat(member)[11:15]) / TICKS


def peak_mib(pid: int) -> float:
    """The largest resident memory that each process of the tree has had, added up."""
    return sum(vm_hwm_kib(member) for member in tree(pid)) / 1024


def vm_hwm_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
