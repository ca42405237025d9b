"""Makes an ONNX model slower and nothing else: its graph runs so many times in a loop, and the last answer counts.

The answers stay those of the model, so that the load checks them as it does the model's own.
"""

from harness import onnx
from harness.onnx import BOOL, FLOAT, INT64, field, node, read, tensor, value_info


def slower(model: bytes, times: int, columns: int) -> bytes:
    """`columns` is the width of the one output, by which the loop's first value is shaped."""
    return b"".join(
        field(number, looped(list(read(value)), times, columns) if number == onnx.GRAPH else value)
        for number, value in read(model)
    )


def looped(graph: list, times: int, columns: int) -> bytes:
    output = dict(read(next(value for number, value in graph if number == onnx.OUTPUT)))[1].decode()
    nodes = [renamed(value, output, "in_loop") for number, value in graph if number == onnx.NODE]
    takes = [value_info("turn", INT64, []), value_info("go_on", BOOL, []), value_info("before", FLOAT, [None, None])]
    gives = [value_info("go_on_out", BOOL, []), value_info("in_loop", FLOAT, [None, None])]
    body = b"".join(field(onnx.NODE, value) for value in [node("Identity", ["go_on"], ["go_on_out"]), *nodes])
    body += field(onnx.NAME, "body")
    body += b"".join(field(onnx.INPUT, value) for value in takes) + b"".join(field(onnx.OUTPUT, value) for value in gives)
    loop = node("Loop", ["times", "", "first"], [output], body=body)
    first = tensor("first", FLOAT, [1, columns], bytes(4 * columns))
    count = tensor("times", INT64, [], times.to_bytes(8, "little"))
    rest = b"".join(field(number, value) for number, value in graph if number != onnx.NODE)
    return field(onnx.NODE, loop) + rest + field(onnx.INITIALIZER, count) + field(onnx.INITIALIZER, first)


def renamed(raw: bytes, old: str, new: str) -> bytes:
    """A node whose output, if it is the graph's, has another name: nothing in a loop may be called as something outside."""
    return b"".join(
        field(number, new if number == onnx.NODE_OUTPUT and value == old.encode() else value) for number, value in read(raw)
    )
