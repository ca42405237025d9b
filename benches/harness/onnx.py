"""ONNX, as much of it as the models of the benchmarks need, without any package: onnx.proto has the numbers of the fields.

The package `onnx` would be a heavy dependency for a handful of protobuf messages.
"""

FLOAT, INT64, BOOL = 1, 7, 9  # TensorProto.DataType
INT_ATTRIBUTE, GRAPH_ATTRIBUTE = 2, 5  # AttributeProto.AttributeType
GRAPH = 7  # Of ModelProto.
NODE, NAME, INITIALIZER, INPUT, OUTPUT = 1, 2, 5, 11, 12  # Of GraphProto.
NODE_OUTPUT = 2
VARINT, LENGTH = 0, 2  # Kinds of fields.


def node(kind: str, takes: list[str], gives: list[str], **attributes: int | bytes) -> bytes:
    """Attributes are whole numbers, or graphs."""
    raw = b"".join(field(1, name) for name in takes) + b"".join(field(NODE_OUTPUT, name) for name in gives) + field(4, kind)
    for name, value in attributes.items():
        is_number = isinstance(value, int)
        raw += field(5, field(1, name) + field(3 if is_number else 6, value) + field(20, INT_ATTRIBUTE if is_number else GRAPH_ATTRIBUTE))
    return raw


def tensor(name: str, kind: int, shape: list[int], raw: bytes) -> bytes:
    return b"".join(field(1, size) for size in shape) + field(2, kind) + field(8, name) + field(9, raw)


def value_info(name: str, kind: int, shape: list[int | str | None]) -> bytes:
    """A tensor; axes are of a size, of a name, or of neither."""
    axes = b"".join(field(1, b"" if size is None else field(1 if isinstance(size, int) else 2, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, axes)))


def field(number: int, value: int | str | bytes) -> bytes:
    """A field of a message."""
    if isinstance(value, int):
        return varint(number << 3 | VARINT) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | LENGTH) + varint(len(value)) + value


def varint(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def read(raw: bytes):
    """The fields of a message: number and value."""
    at = 0
    while at < len(raw):
        key, at = read_varint(raw, at)
        value, at = read_varint(raw, at)
        if key & 7 == LENGTH:
            length = value
            value, at = raw[at : at + length], at + length
        elif key & 7 != VARINT:
            raise ValueError(f"field {key >> 3} is of a kind that no model here has")
        yield key >> 3, value


def read_varint(raw: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
