"""Makes an ONNX model slower and nothing else: its graph runs so many times in a loop, and the last answer counts.

The answers stay those of the model, so that the load checks them as it does the model's own. ONNX is protobuf, of which
this speaks as much as it needs; the package `onnx` would be a heavy dependency for a handful of messages.
"""

VARINT, I64, LENGTH, I32 = 0, 1, 2, 5

# Numbers of fields, from onnx.proto.
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_NAME, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 1, 2, 5, 11, 12
NODE_INPUT, NODE_OUTPUT, NODE_OP_TYPE, NODE_ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_NAME, ATTRIBUTE_GRAPH, ATTRIBUTE_TYPE, TYPE_GRAPH = 1, 6, 20, 5
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW = 1, 2, 8, 9
FLOAT, INT64, BOOL = 1, 7, 9


def slower(model: bytes, times: int, columns: int) -> bytes:
    """`columns` is the width of the one output, by which the loop's first value is shaped."""
    fields = list(read(model))
    graph = list(read(next(value for number, _, value in fields if number == MODEL_GRAPH)))
    slow = message(*((number, looped(graph, times, columns) if number == MODEL_GRAPH else value) for number, _, value in fields))
    return slow


def looped(graph: list, times: int, columns: int) -> bytes:
    output = text_of(next(value for number, _, value in graph if number == GRAPH_OUTPUT), 1)
    nodes = [renamed(value, output, "in_loop") for number, _, value in graph if number == GRAPH_NODE]
    go_on = node("Identity", ["go_on"], ["go_on_out"])
    body = message(
        *((GRAPH_NODE, value) for value in [go_on, *nodes]),
        (GRAPH_NAME, b"body"),
        *((GRAPH_INPUT, info(name, kind, axes)) for name, kind, axes in [("turn", INT64, 0), ("go_on", BOOL, 0), ("before", FLOAT, 2)]),
        *((GRAPH_OUTPUT, info(name, kind, axes)) for name, kind, axes in [("go_on_out", BOOL, 0), ("in_loop", FLOAT, 2)]),
    )
    attribute = message((ATTRIBUTE_NAME, b"body"), (ATTRIBUTE_GRAPH, body), (ATTRIBUTE_TYPE, TYPE_GRAPH))
    loop = node("Loop", ["times", "", "first"], [output], (NODE_ATTRIBUTE, attribute))
    first = tensor("first", FLOAT, [1, columns], bytes(4 * columns))
    count = tensor("times", INT64, [], times.to_bytes(8, "little"))
    rest = [(number, value) for number, _, value in graph if number != GRAPH_NODE]
    return message((GRAPH_NODE, loop), *rest, (GRAPH_INITIALIZER, count), (GRAPH_INITIALIZER, first))


def renamed(raw: bytes, old: str, new: str) -> bytes:
    """A node whose output, if it is the graph's, has another name: nothing in a loop may be called as something outside."""
    is_old = lambda number, value: number == NODE_OUTPUT and value == old.encode()  # noqa: E731
    return message(*((number, new.encode() if is_old(number, value) else value) for number, _, value in read(raw)))


def node(op_type: str, inputs: list[str], outputs: list[str], *more) -> bytes:
    named = [(NODE_INPUT, name.encode()) for name in inputs] + [(NODE_OUTPUT, name.encode()) for name in outputs]
    return message(*named, (NODE_OP_TYPE, op_type.encode()), *more)


def tensor(name: str, kind: int, dims: list[int], raw: bytes) -> bytes:
    return message(*((TENSOR_DIMS, dim) for dim in dims), (TENSOR_TYPE, kind), (TENSOR_NAME, name.encode()), (TENSOR_RAW, raw))


def info(name: str, kind: int, axes: int) -> bytes:
    """ValueInfoProto of a tensor whose axes may have any size."""
    shape = message(*[(1, b"")] * axes)
    return message((1, name.encode()), (2, message((1, message((1, kind), (2, shape))))))


def text_of(raw: bytes, field: int) -> str:
    return next(value for number, _, value in read(raw) if number == field).decode()


def read(raw: bytes):
    """The fields of a message: number, wire type, value."""
    at = 0
    while at < len(raw):
        key, at = read_varint(raw, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = read_varint(raw, at)
        else:
            length, at = {LENGTH: lambda: read_varint(raw, at), I64: lambda: (8, at), I32: lambda: (4, at)}[wire]()
            value, at = raw[at : at + length], at + length
            if wire != LENGTH:
                raise ValueError(f"field {number} is of a kind that no model here has")
        yield number, wire, value


def read_varint(raw: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def message(*fields) -> bytes:
    """Numbers become varints, bytes are written with their length."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3 | VARINT) + varint(value)
        else:
            out += varint(number << 3 | LENGTH) + varint(len(value)) + value
    return bytes(out)


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
