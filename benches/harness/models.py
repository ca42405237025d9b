"""Models that the benchmarks make for themselves, written as ONNX without any package.

`recurrent` takes some 250 us a row and some three times that for each run, so that the engine is the narrowest place and
not the broker: a dense layer to STATE columns x, then STEPS times h = tanh(w * h + x), and a dense layer to the classes.
Its time is close to a * rows + b from the first row on: a step is work for each element, and a fixed cost of the runtime
for its three nodes.

`wide` answers with the first ten numbers of a row of any width: it costs bytes and nothing else.

`copies` is one model under several names.
"""

import struct
from pathlib import Path

from . import onnx
from .onnx import FLOAT, INT64, field, node, tensor, value_info
from .programs import TARGET

COLUMNS, CLASSES = 1000, 10  # Of `dense`, so that the same load fits.
STATE, STEPS = 256, 1000
REPOSITORY = TARGET / "floor/models"
# Old enough for every ONNX Runtime from 1.17 on.
OPSET, IR_VERSION = 13, 7


def recurrent() -> Path:
    nodes, state = [node("MatMul", ["input", "first"], ["x"])], "x"
    for step in range(STEPS):
        nodes += [
            node("Mul", [state, "weights"], [f"product-{step}"]),
            node("Add", [f"product-{step}", "x"], [f"sum-{step}"]),
            node("Tanh", [f"sum-{step}"], [f"state-{step}"]),
        ]
        state = f"state-{step}"
    nodes += [node("MatMul", [state, "last"], ["classes"]), node("Softmax", ["classes"], ["probabilities"], axis=1)]
    constants = [
        tensor("first", FLOAT, [COLUMNS, STATE], numbers(COLUMNS * STATE, 0.05, 1)),
        tensor("weights", FLOAT, [STATE], numbers(STATE, 0.9, 2)),
        tensor("last", FLOAT, [STATE, CLASSES], numbers(STATE * CLASSES, 0.3, 3)),
    ]
    return write("recurrent", model(nodes, constants, ("input", COLUMNS), ("probabilities", CLASSES)))


def wide() -> Path:
    bounds = {"from": 0, "to": CLASSES, "axis": 1}
    constants = [tensor(name, INT64, [1], struct.pack("<q", value)) for name, value in bounds.items()]
    nodes = [node("Slice", ["input", *bounds], ["first"])]
    return write("wide", model(nodes, constants, ("input", "columns"), ("first", CLASSES)))


def copies(original: Path, count: int) -> Path:
    """A repository with `original` under the names of `copy_names`."""
    repository = REPOSITORY.with_name(f"copies-{original.parent.parent.name}-{count}")
    for name in copy_names(count):
        version = repository / name / "1"
        version.mkdir(parents=True, exist_ok=True)
        (version / "model.onnx").write_bytes(original.read_bytes())
    return repository


def copy_names(count: int) -> list[str]:
    return [f"copy-{number}" for number in range(count)]


def write(name: str, model: bytes) -> Path:
    path = REPOSITORY / name / "1/model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model)
    return path


def numbers(count: int, bound: float, state: int) -> bytes:
    """Evenly spread over -bound to bound, and the same every time."""
    values = []
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        values.append(bound * (state / 2**31 - 1))
    return struct.pack(f"<{count}f", *values)


def model(nodes: list[bytes], constants: list[bytes], takes: tuple, gives: tuple) -> bytes:
    graph = b"".join(field(onnx.NODE, node) for node in nodes) + field(onnx.NAME, "bench")
    graph += b"".join(field(onnx.INITIALIZER, constant) for constant in constants)
    for place, (name, columns) in [(onnx.INPUT, takes), (onnx.OUTPUT, gives)]:
        graph += field(place, value_info(name, FLOAT, ["batch", columns]))
    opset = field(1, "") + field(2, OPSET)
    return field(1, IR_VERSION) + field(2, "inferq benches") + field(onnx.GRAPH, graph) + field(8, opset)
