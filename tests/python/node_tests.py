"""Writes ONNX's node tests that take tensors only: python node_tests.py FOLDER

Each case becomes a folder of its name with model.onnx, and its inputs as input_0.pb, input_1.pb and so on (TensorProto, named
like the inputs of the graph).
"""

import sys
import warnings
from pathlib import Path

import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases


def main(out: Path) -> None:
    # The generators overflow on purpose.
    warnings.simplefilter("ignore")
    for case in collect_testcases(None):
        inputs = case.model.graph.input
        if inputs and all(value.type.HasField("tensor_type") for value in inputs):
            write(case, out / case.name)


def write(case, folder: Path) -> None:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(case.model.SerializeToString())
    given, _ = case.data_sets[0]
    for place, (value, data) in enumerate(zip(case.model.graph.input, given, strict=True)):
        tensor = data if isinstance(data, onnx.TensorProto) else numpy_helper.from_array(data)
        tensor.name = value.name
        (folder / f"input_{place}.pb").write_bytes(tensor.SerializeToString())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
