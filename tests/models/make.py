#!/usr/bin/env python3
"""Writes the small ONNX models that the tests run, each for one question about the worker.

`repository/` holds models that load, laid out as a worker mounts them; `broken/` holds models that
must be refused. Both are committed: tests need neither this script nor a machine-learning package.
`check.py` beside it proves, with ONNX Runtime, what is said here of each model.

From the root of the checkout, with CPython 3.11 on linux x86_64:

    python3.11 -m venv target/test-models
    target/test-models/bin/pip install --require-hashes -r tests/models/requirements.txt
    target/test-models/bin/python tests/models/make.py
    target/test-models/bin/python tests/models/check.py
"""

import hashlib
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE / "repository"
BROKEN = HERE / "broken"
SEED = 1

# Old enough for every ONNX Runtime from 1.17 on.
OPSET = 13
IR_VERSION = 7
# PyTorch's exporter writes no opset below 18, which asks for nothing newer than IR version 9 here.
TORCH_OPSET = 18
TORCH_IR_VERSION = 9

# Absolute and relative tolerance of a golden file.
# Small multiples of 1/4: float32 holds them and all sums of them exactly, in any order.
EXACT = (0.0, 0.0)
# float32 on both sides, a few terms in another order.
FLOAT32 = (1e-6, 1e-6)
# scikit-learn computes in float64, the exported model in float32.
FLOAT64_ORIGIN = (1e-5, 1e-5)

# Elements of float32 that cannot be had: 4 PiB, beyond the 47 bits of address space that a process
# has, and far from overflowing the 64 bits in which the runtime counts bytes.
IMPOSSIBLE = 2**50

DTYPES = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "fp32": TensorProto.FLOAT,
    "fp64": TensorProto.DOUBLE,
    "bytes": TensorProto.STRING,
}


def main() -> None:
    shutil.rmtree(REPOSITORY, ignore_errors=True)
    shutil.rmtree(BROKEN, ignore_errors=True)
    torch_models()
    sklearn_models()
    identities()
    two_heads()
    affine("affine", 1, 2.0, 1.0)
    affine("affine", 2, 3.0, -1.0)
    lookup()
    hungry()
    crowded()
    coupled()
    bright()
    declared_one()
    time_major()
    transposed()
    constant_output()
    hits()
    sequence()
    slow()
    nan()
    external()
    broken()


# --- From the frameworks --------------------------------------------------------------------------


def torch_models() -> None:
    """`torch-mlp`: free batch axis. `fixed`: four rows only, as PyTorch exports unless asked."""
    torch.manual_seed(SEED)
    mlp = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    batch = {0: torch.export.Dim("batch")}
    torch_model("torch-mlp", mlp, torch.randn(16, 4), (batch,))
    torch_model("fixed", torch.nn.Linear(3, 2), torch.randn(4, 3), None)


def torch_model(name: str, module: torch.nn.Module, x: torch.Tensor, free_axes: object) -> None:
    module.eval()
    exported = torch.onnx.export(
        module,
        (x,),
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=free_axes,
        opset_version=TORCH_OPSET,
        dynamo=True,
        verbose=False,
    ).model_proto
    with torch.no_grad():
        golden = {"input:x": x.numpy(), "output:y": module(x).numpy()}
    exported.ir_version = TORCH_IR_VERSION
    write(name, 1, without_traces(exported), golden, FLOAT32)


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drops what PyTorch notes about the machine: stack traces with the paths of its files."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    return model


def sklearn_models() -> None:
    """One classifier of iris, three ways: plain tensors, a list of maps, names as labels."""
    flowers = load_iris()
    rows = flowers.data.astype(np.float32)
    numbered = LogisticRegression(max_iter=1000).fit(rows, flowers.target)
    named = LogisticRegression(max_iter=1000).fit(rows, flowers.target_names[flowers.target])
    # Ten apart, so that all three kinds are among them.
    x = rows[::10]
    probabilities = numbered.predict_proba(x).astype(np.float32)

    golden = {
        "input:X": x,
        "output:label": numbered.predict(x).astype(np.int64),
        "output:probabilities": probabilities,
    }
    write("sklearn-logreg", 1, from_sklearn(numbered, zipmap=False), golden, FLOAT64_ORIGIN)

    # Its probabilities are a sequence of maps, not a tensor; a golden file cannot hold that.
    write("sklearn-zipmap", 1, from_sklearn(numbered, zipmap=True))

    # The labels are left out of the golden file: NumPy stores strings as UTF-32, which few read.
    golden = {"input:X": x, "output:probabilities": probabilities}
    write("sklearn-strings", 1, from_sklearn(named, zipmap=False), golden, FLOAT64_ORIGIN)


def from_sklearn(classifier: LogisticRegression, *, zipmap: bool) -> onnx.ModelProto:
    model = to_onnx(
        classifier,
        np.zeros((1, 4), dtype=np.float32),
        options={id(classifier): {"zipmap": zipmap}},
        target_opset={"": OPSET, "ai.onnx.ml": 2},
    )
    # A random number otherwise, so that each run would write other bytes.
    model.graph.name = "iris"
    # Listed in the order of a set otherwise, with the same effect.
    opsets = sorted(model.opset_import, key=lambda opset: opset.domain)
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    return model


# --- One question each ----------------------------------------------------------------------------


def identities() -> None:
    """Every datatype goes in and comes out."""
    for name, dtype in DTYPES.items():
        node = helper.make_node("Identity", ["x"], ["y"])
        x, y = tensor("x", dtype, 3), tensor("y", dtype, 3)
        write(f"identity-{name}", 1, model_of([node], [x], [y]))


def two_heads() -> None:
    """Two inputs of different types, three outputs, one of which is an input.

    sum = a0 + a1 + b0 + b1 + b2, diff = (a0 - a1, a1 - a0), echo_b = b.
    """
    nodes = [
        helper.make_node("Cast", ["b"], ["b_float"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["a", "b_float"], ["all"], axis=1),
        helper.make_node("ReduceSum", ["all", "axis_1"], ["sum"]),
        helper.make_node("MatMul", ["a", "signs"], ["diff"]),
        helper.make_node("Identity", ["b"], ["echo_b"]),
    ]
    constants = {
        "axis_1": np.array([1], dtype=np.int64),
        "signs": np.array([[1, -1], [-1, 1]], dtype=np.float32),
    }
    inputs = [tensor("a", TensorProto.FLOAT, 2), tensor("b", TensorProto.INT64, 3)]
    outputs = [
        tensor("sum", TensorProto.FLOAT, 1),
        tensor("diff", TensorProto.FLOAT, 2),
        tensor("echo_b", TensorProto.INT64, 3),
    ]
    a = quarters(8, 2)
    b = np.arange(24, dtype=np.int64).reshape(8, 3) - 10
    golden = {
        "input:a": a,
        "input:b": b,
        "output:sum": (a.sum(axis=1) + b.sum(axis=1)).astype(np.float32)[:, None],
        "output:diff": np.stack([a[:, 0] - a[:, 1], a[:, 1] - a[:, 0]], axis=1),
        "output:echo_b": b,
    }
    write("two-heads", 1, model_of(nodes, inputs, outputs, constants), golden, EXACT)


def affine(name: str, version: int, factor: float, offset: float) -> None:
    """y = factor * x + offset: which version answered can be read off the result."""
    x = quarters(8, 4)
    golden = {"input:x": x, "output:y": np.float32(factor) * x + np.float32(offset)}
    write(name, version, affine_model(factor, offset), golden, EXACT)


def affine_model(factor: float, offset: float) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["product"]),
        helper.make_node("Add", ["product", "offset"], ["y"]),
    ]
    constants = {"factor": np.float32(factor), "offset": np.float32(offset)}
    x, y = tensor("x", TensorProto.FLOAT, 4), tensor("y", TensorProto.FLOAT, 4)
    return model_of(nodes, [x], [y], constants)


def lookup() -> None:
    """Row `index` of a table of eight; any other index is well-formed and fails while running.

    ONNX Runtime then says `INVALID_ARGUMENT` (2) and "indices element out of data bounds, idx=8
    must be within the inclusive range [-8,7]".
    """
    nodes = [
        helper.make_node("Gather", ["table", "index"], ["gathered"], axis=0),
        helper.make_node("Squeeze", ["gathered", "axis_1"], ["row"]),
    ]
    table = quarters(8, 2)
    constants = {"table": table, "axis_1": np.array([1], dtype=np.int64)}
    index, row = tensor("index", TensorProto.INT64, 1), tensor("row", TensorProto.FLOAT, 2)
    indices = np.array([[3], [0], [7], [-1], [-8], [5]], dtype=np.int64)
    golden = {"input:index": indices, "output:row": table[indices[:, 0]]}
    write("lookup", 1, model_of(nodes, [index], [row], constants), golden, EXACT)


def hungry() -> None:
    """y = float(rows), and on the way as many floats of memory for each row as its value.

    Values up to 8 cost nothing; one of 2**50 cannot be allocated on any machine, and takes the
    batch that it is in down with it. ONNX Runtime 1.28 then says `FAIL` (1), 1.17 says
    `RUNTIME_EXCEPTION` (6), and both end in "Failed to allocate memory for requested buffer of size
    4503599627370496". With its memory arena off, 1.28 says `RUNTIME_EXCEPTION` (6) and
    "std::bad_alloc". A Scan runs its body once for each row, so that the rows stay apart.
    """
    body = helper.make_graph(
        [
            *zeros_of("row"),
            helper.make_node("Cast", ["row"], ["value"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["value", "zero"], ["sum"]),
        ],
        "one_row",
        [helper.make_tensor_value_info("row", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1])],
    )
    node = helper.make_node("Scan", ["rows"], ["y"], num_scan_inputs=1, body=body)
    rows, y = tensor("rows", TensorProto.INT64, 1), tensor("y", TensorProto.FLOAT, 1)
    values = np.arange(9, dtype=np.int64)[:, None]
    golden = {"input:rows": values, "output:y": values.astype(np.float32)}
    write("hungry", 1, model_of([node], [rows], [y]), golden, EXACT)


def crowded() -> None:
    """y = x for up to four rows; a fifth asks for memory that cannot be had.

    The batch fails and each half of it succeeds, as on a device that is nearly full. The number of
    rows goes through an operator that is not ONNX's own, or else the graph would show that they
    depend on it, and no two jobs would ever share a run.
    """
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "axis_0"], ["counted"]),
        helper.make_node("ExpandDims", ["counted", "front"], ["rows"], domain="com.microsoft"),
        helper.make_node("Greater", ["rows", "rows_max"], ["too_many"]),
        helper.make_node("Where", ["too_many", "impossible", "little"], ["elements"]),
        *zeros_of("elements"),
        helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    constants = {
        "axis_0": np.int64(0),
        "front": np.int32(0),
        "rows_max": np.array([4], dtype=np.int64),
        "impossible": np.array([IMPOSSIBLE], dtype=np.int64),
        "little": np.array([1], dtype=np.int64),
    }
    x, y = tensor("x", TensorProto.FLOAT, 2), tensor("y", TensorProto.FLOAT, 2)
    golden = {"input:x": quarters(4, 2), "output:y": quarters(4, 2)}
    model = model_of(nodes, [x], [y], constants)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    write("crowded", 1, model, golden, EXACT)


def zeros_of(elements: str) -> list[onnx.NodeProto]:
    """Fills that many floats with 0 and adds them up to the scalar `zero`."""
    return [
        helper.make_node("ConstantOfShape", [elements], ["memory"]),
        helper.make_node("ReduceSum", ["memory"], ["zero"], keepdims=0),
    ]


def coupled() -> None:
    """y = x - mean over the rows: a model that must not be batched, though its axis is free.

    It has no golden file, because its rows have no answer of their own.
    """
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    x, y = tensor("x", TensorProto.FLOAT, 2), tensor("y", TensorProto.FLOAT, 2)
    write("coupled", 1, model_of(nodes, [x], [y]))


def time_major() -> None:
    """y [seq, batch, 2] of an LSTM whose first axis is time: each row depends on all before it.

    It has no golden file, because a row has no answer of its own.
    """
    nodes = [
        helper.make_node("LSTM", ["x", "weights", "recurrence"], ["all"], hidden_size=2),
        helper.make_node("Squeeze", ["all", "axis_1"], ["y"]),
    ]
    constants = {
        "weights": (np.arange(24, dtype=np.float32).reshape(1, 8, 3) - 12) / 16,
        "recurrence": (np.arange(16, dtype=np.float32).reshape(1, 8, 2) - 8) / 16,
        "axis_1": np.array([1], dtype=np.int64),
    }
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["seq", "batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["seq", "batch", 2])
    write("time-major", 1, model_of(nodes, [x], [y], constants))


def transposed() -> None:
    """y [4, batch] = weights times the rows as columns: with four rows it looks like one a row."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["columns"], perm=[1, 0]),
        helper.make_node("MatMul", ["weights", "columns"], ["y"]),
    ]
    x = tensor("x", TensorProto.FLOAT, 2)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, "batch"])
    write("transposed", 1, model_of(nodes, [x], [y], {"weights": quarters(4, 2)}))


def constant_output() -> None:
    """y = 2x, and beside it `constant` [4, 2], which is the same whatever the rows are."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Identity", ["four"], ["constant"]),
    ]
    x, y = tensor("x", TensorProto.FLOAT, 2), tensor("y", TensorProto.FLOAT, 2)
    constant = helper.make_tensor_value_info("constant", TensorProto.FLOAT, [4, 2])
    model = model_of(nodes, [x], [y, constant], {"four": quarters(4, 2)})
    write("constant-output", 1, model)


def hits() -> None:
    """hits [h, 3]: what NonMaxSuppression leaves of k boxes of each picture, if anything.

    A hit is picture, class and box. Boxes count from a score of 1/2 on, and one that lies on a
    better one by half is left out.
    """
    node = helper.make_node(
        "NonMaxSuppression", ["boxes", "scores", "most", "overlap", "score"], ["hits"]
    )
    constants = {
        "most": np.array([10], dtype=np.int64),
        "overlap": np.array([0.5], dtype=np.float32),
        "score": np.array([0.5], dtype=np.float32),
    }
    inputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", "boxes", 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 1, "boxes"]),
    ]
    outputs = [helper.make_tensor_value_info("hits", TensorProto.INT64, ["hits", 3])]
    write("hits", 1, model_of([node], inputs, outputs, constants))


def bright() -> None:
    """y = x / 255 if any number of the batch is over 1, else x: rows that meet only for some values.

    Dim pictures by themselves give what they are, and with each other as well.
    """
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "one"], ["is_bright"]),
        helper.make_node("Where", ["is_bright", "full", "one"], ["scale"]),
        helper.make_node("Div", ["x", "scale"], ["y"]),
    ]
    constants = {"one": np.float32(1), "full": np.float32(255)}
    x, y = tensor("x", TensorProto.FLOAT, 2), tensor("y", TensorProto.FLOAT, 2)
    write("bright", 1, model_of(nodes, [x], [y], constants))


def declared_one() -> None:
    """label = the place of the largest number of each row, declared `[1]` as LightGBM's converter does."""
    node = helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=0)
    x = tensor("x", TensorProto.FLOAT, 3)
    label = helper.make_tensor_value_info("label", TensorProto.INT64, [1])
    rows = quarters(4, 3) * np.array([1, -1, 0], dtype=np.float32)
    golden = {"input:x": rows, "output:label": rows.argmax(axis=1)}
    write("declared-one", 1, model_of([node], [x], [label]), golden, EXACT)


def sequence() -> None:
    """y = sum over `time`, an axis whose length is the sender's choice as well."""
    node = helper.make_node("ReduceSum", ["x", "axis_1"], ["y"], keepdims=1)
    constants = {"axis_1": np.array([1], dtype=np.int64)}
    x, y = tensor("x", TensorProto.FLOAT, "time"), tensor("y", TensorProto.FLOAT, 1)
    rows = quarters(6, 5)
    golden = {"input:x": rows, "output:y": rows.sum(axis=1, keepdims=True)}
    write("sequence", 1, model_of([node], [x], [y], constants), golden, EXACT)


def slow() -> None:
    """y = x after some 25 ms of one core (measured on an EPYC), whatever the number of rows.

    A matrix of 1/256 times itself is itself, exactly, so the work changes nothing: its mean minus
    1/256 is added. How often it is multiplied is computed from the shape of `x`, or else the
    runtime could do the work once, when it loads the model.
    """
    side, times = 256, 80
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
            helper.make_node("MatMul", ["before", "before"], ["after"]),
        ],
        "multiply",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [side, side]),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [side, side]),
        ],
    )
    share = helper.make_tensor("share", TensorProto.FLOAT, [1], [1 / side])
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "axis_0"], ["rows"]),
        helper.make_node("Mul", ["rows", "nothing"], ["none"]),
        helper.make_node("Add", ["none", "times"], ["turns"]),
        helper.make_node("ConstantOfShape", ["square"], ["first"], value=share),
        helper.make_node("Loop", ["turns", "", "first"], ["last"], body=body),
        helper.make_node("ReduceMean", ["last"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["mean", "share"], ["zero"]),
        helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    constants = {
        "axis_0": np.int64(0),
        "nothing": np.int64(0),
        "times": np.int64(times),
        "square": np.array([side, side], dtype=np.int64),
        "share": np.float32(1 / side),
    }
    x, y = tensor("x", TensorProto.FLOAT, 4), tensor("y", TensorProto.FLOAT, 4)
    golden = {"input:x": quarters(4, 4), "output:y": quarters(4, 4)}
    write("slow", 1, model_of(nodes, [x], [y], constants), golden, EXACT)


def nan() -> None:
    """y = square root of x: a negative number gives NaN, which is an answer and no failure."""
    x, y = tensor("x", TensorProto.FLOAT, 2), tensor("y", TensorProto.FLOAT, 2)
    write("nan", 1, model_of([helper.make_node("Sqrt", ["x"], ["y"])], [x], [y]))


def external() -> None:
    """Weights in a file of their own, `model.onnx.data`, as models beyond 2 GB must have them."""
    weights = quarters(4, 3)
    node = helper.make_node("MatMul", ["x", "weights"], ["y"])
    x, y = tensor("x", TensorProto.FLOAT, 4), tensor("y", TensorProto.FLOAT, 3)
    rows = quarters(8, 4)
    golden = {"input:x": rows, "output:y": rows @ weights}
    folder = write("external", 1, model_of([node], [x], [y], {"weights": weights}), golden, EXACT)
    model = onnx.load(folder / "model.onnx")
    # The default keeps weights under 1 kB inside.
    onnx.save_model(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )


# --- What must be refused -------------------------------------------------------------------------


def broken() -> None:
    """One way to be broken each, with what an operator should come to know from it."""
    # "The file is no ONNX model."
    folder = BROKEN / "corrupt" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(np.random.default_rng(SEED).bytes(512))

    # "The copy was interrupted."
    whole = (REPOSITORY / "two-heads" / "1" / "model.onnx").read_bytes()
    folder = BROKEN / "cut" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(whole[: len(whole) // 2])

    # "It runs, but it is not the model that was tested." One number of 32 is wrong.
    x = quarters(8, 4)
    wrong = 2 * x + 1
    wrong[5, 2] += 0.5
    golden = {"input:x": x, "output:y": wrong}
    write("wrong-golden", 1, affine_model(2.0, 1.0), golden, EXACT, repository=BROKEN)

    # "The file is not the one that was signed off."
    write("wrong-digest", 1, affine_model(2.0, 1.0), repository=BROKEN)
    digest = hashlib.sha256(b"another file").hexdigest()
    (BROKEN / "wrong-digest" / "model.toml").write_text(f'[digests]\n"1" = "sha256:{digest}"\n')


# --- How they are built ---------------------------------------------------------------------------


def quarters(rows: int, columns: int) -> np.ndarray:
    """Distinct multiples of 1/4 in float32, negative ones among them, no two rows alike."""
    numbers = np.arange(rows * columns, dtype=np.float32) - 5
    return (numbers / 4).reshape(rows, columns)


def tensor(name: str, dtype: int, columns: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, ["batch", columns])


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    initializers = [
        numpy_helper.from_array(np.asarray(array), name)
        for name, array in (constants or {}).items()
    ]
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
    return helper.make_model(
        graph,
        producer_name="inferq tests/models/make.py",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )


def write(
    name: str,
    version: int,
    model: onnx.ModelProto,
    golden: dict[str, np.ndarray] | None = None,
    tolerance: tuple[float, float] = EXACT,
    repository: Path = REPOSITORY,
) -> Path:
    onnx.checker.check_model(model, full_check=True)
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    if golden:
        np.savez(folder / "golden.npz", tolerance=np.array(tolerance), **golden)
    return folder


if __name__ == "__main__":
    # Both exporters warn of their own future, which the pinned versions do not reach.
    warnings.simplefilter("ignore")
    main()
