#!/usr/bin/env python3
"""Makes fuzz/corpus anew: small good inputs of every kind, one of each, from which fuzzers and tests start."""

import json
import shutil
import struct
from pathlib import Path

CORPUS = Path(__file__).resolve().parent / "corpus"
MODELS = CORPUS.parent.parent / "tests/models/repository"
ROW = struct.pack("<2f", 1.5, -2.0)


def main():
    shutil.rmtree(CORPUS, ignore_errors=True)
    requests = {
        "flat": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2]}]},
        "nested": {"id": "7", "inputs": [{"name": "x", "datatype": "INT64", "shape": [2, 2], "data": [[1, 2], [3, 4]]}]},
        "strings": {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [2], "data": ["a\u00e9\n", ""]}]},
        "bools": {"inputs": [{"datatype": "BOOL", "shape": [1, 2], "data": [True, False]}]},
        "outputs": {
            "inputs": [{"name": "x", "shape": [1, 1], "data": [1e-7]}],
            "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
            "parameters": {"binary_data_output": True, "other": [{"deep": [None]}]},
        },
    }
    raw = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": ROW}]}
    for name, request in requests.items():
        write("json", name, as_json(request))
        write("msgpack", name, pack(request))
    write("msgpack", "raw", pack(raw))

    sized = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": len(ROW)}}
    for name, inputs in {"one": [sized], "two": [sized, sized | {"name": "z"}], "mixed": [sized, requests["bools"]["inputs"][0]]}.items():
        header = as_json({"inputs": inputs})
        tail = ROW * sum("parameters" in entry for entry in inputs)
        write("binary", name, struct.pack("<H", len(header)) + header + tail)

    outputs = {"model_name": "m", "model_version": "1", "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
    error = {"error": "it is wrong", "code": "INVALID_ARGUMENT"}
    for name, body in {"outputs": outputs, "error": error}.items():
        write("reply", f"{name}-msgpack", b"\x00" + pack(body))
        write("reply", f"{name}-json", b"\x64" + as_json(body))

    # Which properties, the content type, reply_to, headers; see `properties` and `table` in entries.rs.
    reply_to = b"\x07replies"
    deadline = bytes([1, 0, 11, 2, 0xff, 0x7f])
    nested = bytes([2, 7, 9, 1, 4, 5, 3]) + b"abc" + bytes([2, 0, 1])
    for name, headers in {"deadline": deadline, "nested": nested, "none": bytes([0])}.items():
        write("job", f"{name}-msgpack", bytes([1 | 2 | 64, 0]) + reply_to + headers + b"\x00" + pack(raw))
        write("job", f"{name}-json", bytes([1 | 64, 1]) + headers + b"\x01" + as_json(requests["flat"]))

    # A loop, a scan, several inputs and outputs, another domain.
    for name in ["slow", "hungry", "two-heads", "crowded", "identity-fp32"]:
        write("onnx", name, (MODELS / name / "1/model.onnx").read_bytes())


def write(target: str, name: str, content: bytes):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def as_json(value) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def pack(value) -> bytes:
    """MessagePack, as much of it as is needed here."""
    match value:
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int() if 0 <= value < 128:
            return bytes([value])
        case int():
            return b"\xd3" + struct.pack(">q", value)
        case float():
            return b"\xcb" + struct.pack(">d", value)
        case str():
            text = value.encode()
            return (bytes([0xA0 + len(text)]) if len(text) < 32 else b"\xd9" + bytes([len(text)])) + text
        case bytes():
            return b"\xc4" + bytes([len(value)]) + value
        case list():
            return bytes([0x90 + len(value)]) + b"".join(map(pack, value))
        case dict():
            return bytes([0x80 + len(value)]) + b"".join(pack(part) for item in value.items() for part in item)
    raise TypeError(value)


if __name__ == "__main__":
    main()
