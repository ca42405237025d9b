"""What was measured, for people as tables and for programs as JSON."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from .contestants import PYTHON
from .programs import ONNX_RUNTIME, REQUIREMENTS, ROOT, Programs


def machine(programs: Programs) -> dict:
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = dict(
        line.split(" ")[0].split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line.split(" ")[0]
    )
    rivals = ", ".join(f"{name} {versions[name]}" for name in ("aio-pika", "uvloop", "celery", "dramatiq"))
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{os.cpu_count()} cores of {cpu[0].partition(': ')[2] if cpu else platform.machine()}, "
        f"{memory:.0f} GiB, Linux {platform.release()}",
        "inferq": f"{text_of(programs.inferq, '--version')}, commit "
        f"{text_of('git', '-C', ROOT, 'describe', '--always', '--dirty', '--abbrev=12')}, {text_of('rustc', '--version')}",
        "libraries": f"librabbitmq {installed('librabbitmq-dev')}, rabbitmq-server {server_version()}, "
        f"{ONNX_RUNTIME.parent.resolve().name}",
        "rivals": f"{rivals}, Python {platform.python_version()}",
    }


def text_of(*command) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def installed(package: str) -> str:
    return text_of("dpkg-query", "--show", "--showformat=${Version}", package)


def server_version() -> str:
    if "INFERQ_TEST_RABBITMQ" in os.environ:
        return "the one of INFERQ_TEST_RABBITMQ"
    return installed("rabbitmq-server")


def write_json(path: Path, content: dict):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def failures(turns: list[dict]) -> int:
    """Says once more at the end what has failed; returns the exit code."""
    failed = [sentence for turn in turns for sentence in turn["failed"]]
    print("".join(f"\n{sentence}" for sentence in failed), end="\n" * bool(failed), file=sys.stderr)
    return 1 if failed else 0


def about_lines(about: dict, turns: list[dict]) -> list[str]:
    load = spread([turn["load average"] for turn in turns], ".1f")
    return [*(f"{what}: {value}" for what, value in about.items()), f"load average while measuring: {load}"]


def introduction(title: str, program: str) -> str:
    return f"# {title}\n\nWritten by `{program}`; `../README.md` says how to read it. Each cell: median (least to most).\n\n"


def plot_subtitle(about: dict) -> str:
    commit = about["inferq"].partition("commit ")[2].partition(",")[0]
    return f"commit {commit}, {about['date'][:10]}, {about['machine'].partition(', ')[0]}"


def describe(number: int, name: str, result: dict) -> str:
    return f"turn {number + 1}, {name}: " + ", ".join(f"{what} {value:.6g}" for what, value in result.items())


class Report:
    """Ratios are taken within a turn, so that a noisy moment spoils a turn and not the comparison."""

    def __init__(self, turns: list[dict], names: list[str], rates: list[float]):
        self.turns, self.names, self.rates = turns, names, rates

    def tables(self) -> str:
        return "\n\n".join([self.goals(), self.contestants()])

    def summary(self) -> dict:
        """Every figure and ratio with its least, median and most."""
        figures = {
            f"{name}: {figure}": self.values(name, figure)
            for turn in self.turns
            for name in turn
            if isinstance(turn[name], dict)
            for figure in turn[name]
        }
        figures |= {what: values for what, _, values, _ in self.goal_rows()}
        return {
            what: dict(zip(("least", "median", "most"), of(values))) for what, values in figures.items() if values
        }

    def values(self, name: str, figure: str) -> list[float]:
        return [turn[name][figure] for turn in self.turns if figure in turn.get(name, {})]

    def ratio(self, above: tuple[str, str], below: tuple[str, str]) -> list[float]:
        return self.each(lambda turn: turn[above[0]][above[1]] / turn[below[0]][below[1]])

    def each(self, figure) -> list[float]:
        """A figure of every turn that has it."""
        values = []
        for turn in self.turns:
            try:
                values.append(figure(turn))
            except KeyError:
                pass
        return values

    def floor(self, turn: dict) -> float:
        return turn["echo"]["cpu_us"] + turn["ONNX Runtime"]["cpu_us_per_row"]

    def many_rows_floor(self, turn: dict) -> float:
        return turn["echo, 256-row jobs"]["cpu_us_per_row"] + turn["ONNX Runtime"]["cpu_us_per_row"]

    def many_rows_ceiling(self, turn: dict) -> float:
        """One thread runs no more rows than that, and the broker beside it moves no more of these jobs."""
        return min(turn[name]["rows_per_second"] for name in ("ONNX Runtime", "echo, 256-row jobs"))

    def cpu_to_floor(self, name: str) -> list[float]:
        return self.each(lambda turn: turn[name]["cpu_us"] / self.floor(turn))

    def goal_rows(self) -> list[tuple[str, str, list[float], str]]:
        inferqs = [name for name in self.names if self.is_inferq(name)]
        rows = []
        for name in inferqs:
            rows += [
                (f"{name}: CPU a job / (echo + ONNX Runtime)", "<= 1.5", self.cpu_to_floor(name), ".2f"),
                (
                    f"{name}: jobs/s / echo's jobs/s",
                    ">= 0.8",
                    self.ratio((name, "jobs_per_second"), ("echo", "jobs_per_second")),
                    ".2f",
                ),
            ]
        return rows + [
            ("best Python worker's CPU a job / inferq's", ">= 10", self.each(self.best_python), ".1f"),
            (
                "256-row jobs: rows/s / ONNX Runtime alone",
                ">= 0.9",
                self.ratio(("inferq, 256-row jobs", "rows_per_second"), ("ONNX Runtime", "rows_per_second")),
                ".2f",
            ),
            (
                "256-row jobs: rows/s / the lesser of ONNX Runtime alone and echo",
                "",
                self.each(lambda turn: turn["inferq, 256-row jobs"]["rows_per_second"] / self.many_rows_ceiling(turn)),
                ".2f",
            ),
            (
                "256-row jobs: CPU a row / (echo + ONNX Runtime)",
                "",
                self.each(lambda turn: turn["inferq, 256-row jobs"]["cpu_us_per_row"] / self.many_rows_floor(turn)),
                ".2f",
            ),
            (
                "256-row jobs: CPU a row / ONNX Runtime alone",
                "",
                self.ratio(("inferq, 256-row jobs", "cpu_us_per_row"), ("ONNX Runtime", "cpu_us_per_row")),
                ".2f",
            ),
            ("idle latency / echo round trip", "<= 1.3", self.ratio(("inferq", "idle_ms"), ("echo", "idle_ms")), ".2f"),
            ("start to ready, ms", "<= 300", self.values("inferq", "ready_ms"), ".0f"),
            ("peak memory under load, MiB", "<= 150", self.values("inferq", "peak_mib"), ".0f"),
            (self.backlog_name(), "<= 150", self.values("inferq, backlog", "peak_mib"), ".0f"),
        ]

    def is_inferq(self, name: str) -> bool:
        return name == "inferq" or "=" in name

    def best_python(self, turn: dict) -> float:
        python = [turn[name]["cpu_us"] for name in self.names if name in turn and name in PYTHON]
        if not python:
            raise KeyError("no Python worker took part")
        return min(python) / turn["inferq"]["cpu_us"]

    def backlog_name(self) -> str:
        jobs = self.values("inferq, backlog", "jobs")
        return f"peak memory with {jobs[0]:,.0f} jobs waiting, MiB" if jobs else "peak memory with jobs waiting, MiB"

    def goals(self) -> str:
        lines = ["| what | goal | least | median | most |", "|---|---|---|---|---|"]
        for what, goal, values, form in self.goal_rows():
            if values:
                lines.append(f"| {what} | {goal} | " + " | ".join(format(value, form) for value in of(values)) + " |")
        return "\n".join(lines)

    def contestants(self) -> str:
        alone = spread(self.values("ONNX Runtime", "cpu_us_per_row"), ".2f")
        columns = [
            ("CPU us a job", lambda name: self.values(name, "cpu_us"), ".1f"),
            ("/ (echo + ONNX Runtime)", self.cpu_to_floor, ".2f"),
            ("jobs/s", lambda name: self.values(name, "jobs_per_second"), ".0f"),
            ("/ echo", lambda name: self.ratio((name, "jobs_per_second"), ("echo", "jobs_per_second")), ".2f"),
            ("jobs a batch", lambda name: self.values(name, "batch_rows"), ".1f"),
            ("peak MiB", lambda name: self.values(name, "peak_mib"), ".0f"),
            ("idle ms", lambda name: self.values(name, "idle_ms"), ".2f"),
        ]
        for rate in self.rates:
            for quantile in ("p50", "p99"):
                figure = f"{quantile}_ms at {rate:g}/s"
                columns.append((f"{quantile} ms at {rate:g}/s", lambda name, f=figure: self.values(name, f), ".2f"))
        columns += [
            ("broker CPU us a job", lambda name: self.values(name, "broker_cpu_us"), ".1f"),
            ("load CPU us a job", lambda name: self.values(name, "load_cpu_us"), ".1f"),
        ]
        lines = [
            f"ONNX Runtime alone, batch of 64: {alone} us of CPU a row. Each cell: median (least to most).",
            "",
            "| worker | " + " | ".join(head for head, _, _ in columns) + " |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for name in self.names:
            cells = [spread(values, form) if (values := of_name(name)) else "" for _, of_name, form in columns]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


def of(values: list[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


def spread(values: list[float], form: str) -> str:
    least, middle, most = (format(value, form) for value in of(values))
    return middle if len(values) == 1 else f"{middle} ({least} to {most})"
