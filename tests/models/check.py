#!/usr/bin/env python3
"""Proves with ONNX Runtime what `make.py` and `models/train.py` say of the models they write.

Needs `onnxruntime` and `numpy` only; prints what the runtime said where it has to fail.
"""

import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE / "repository"
SEED_MODELS = HERE.parent.parent / "models"


def main() -> None:
    # What fails here does so on purpose, and is printed below.
    onnxruntime.set_default_logger_severity(4)
    print(f"ONNX Runtime {onnxruntime.__version__}, Python {sys.version.split()[0]}")
    files = sorted([*SEED_MODELS.glob("*/*/model.onnx"), *REPOSITORY.glob("*/*/model.onnx")])
    sessions = {name_of(file): session_of(file) for file in files}
    for file in files:
        check_golden(file.parent, sessions[name_of(file)])
        check_axes(name_of(file), sessions[name_of(file)])
    check_identities(sessions)
    check_odd_outputs(sessions)
    check_rows_that_meet(sessions)
    check_failures(sessions)
    check_slow(sessions["slow/1"])
    check_broken()
    print(f"{len(files)} models are what they are said to be")


def name_of(file: Path) -> str:
    return "/".join(file.parts[-3:-1])


def session_of(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # As the worker runs small models.
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def check_golden(folder: Path, session: onnxruntime.InferenceSession) -> None:
    """All rows together, and where the first axis is free, each row alone as well."""
    if not (folder / "golden.npz").exists():
        return
    inputs, outputs, tolerance = golden_of(folder)
    compare(session.run(list(outputs), inputs), outputs, tolerance)
    if session.get_inputs()[0].shape[0] == "batch":
        for row in range(len(next(iter(inputs.values())))):
            alone = session.run(list(outputs), {n: a[row : row + 1] for n, a in inputs.items()})
            compare(alone, {n: a[row : row + 1] for n, a in outputs.items()}, tolerance)


def golden_of(folder: Path) -> tuple[dict, dict, np.ndarray]:
    golden = dict(np.load(folder / "golden.npz", allow_pickle=False))
    tolerance = golden.pop("tolerance")
    assert tolerance.dtype == np.float64 and tolerance.shape == (2,)
    inputs = {key.split(":", 1)[1]: a for key, a in golden.items() if key.startswith("input:")}
    outputs = {key.split(":", 1)[1]: a for key, a in golden.items() if key.startswith("output:")}
    assert len(inputs) + len(outputs) == len(golden)
    return inputs, outputs, tolerance


def compare(answers: list, outputs: dict[str, np.ndarray], tolerance: np.ndarray) -> None:
    absolute, relative = tolerance
    for answer, output in zip(answers, outputs.values(), strict=True):
        assert answer.dtype == output.dtype, (answer.dtype, output.dtype)
        np.testing.assert_allclose(answer, output, atol=absolute, rtol=relative)


def check_axes(name: str, session: onnxruntime.InferenceSession) -> None:
    """The first axis is free in every model but `fixed`, and counts time in `time-major`."""
    first = session.get_inputs()[0].shape[0]
    if name == "fixed/1":
        assert first == 4, first
        assert [o.shape for o in session.get_outputs()] == [[4, 2]]
    elif name == "time-major/1":
        assert session.get_inputs()[0].shape == ["seq", "batch", 3]
    else:
        # skl2onnx gives the axis no name.
        assert first == ("batch" if not name.startswith("sklearn") else None), (name, first)


def check_identities(sessions: dict) -> None:
    arrays = {
        "bool": np.array([[True, False, True]]),
        "fp16": np.array([[1.5, -0.0, np.inf]], dtype=np.float16),
        "fp32": np.array([[1.5, -0.0, np.inf]], dtype=np.float32),
        "fp64": np.array([[1.5, -0.0, np.inf]]),
        "bytes": np.array([["", "a", "\u00fc"]], dtype=object),
    }
    for bits in (8, 16, 32, 64):
        for kind in ("int", "uint"):
            limits = np.iinfo(f"{kind}{bits}")
            numbers = [[limits.min, 1, limits.max]]
            arrays[f"{kind}{bits}"] = np.array(numbers, dtype=limits.dtype)
    for name, array in arrays.items():
        for rows in (1, 5):
            x = np.repeat(array, rows, axis=0)
            (y,) = sessions[f"identity-{name}/1"].run(["y"], {"x": x})
            assert y.dtype == x.dtype and (y == x).all(), name
    check_bf16(sessions["identity-bf16/1"])


def check_bf16(session: onnxruntime.InferenceSession) -> None:
    """NumPy has no such type: its two bytes go in as an unsigned number."""
    if not hasattr(onnxruntime.OrtValue, "ortvalue_from_numpy_with_onnx_type"):
        print("identity-bf16/1: loads; this version's Python cannot make such a tensor")
        return
    bits = np.array([[0x3FC0, 0x8000, 0x7F80]], dtype=np.uint16)
    bfloat16 = 16
    x = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, bfloat16)
    (y,) = session.run_with_ort_values(["y"], {"x": x})
    assert y.data_type() == "tensor(bfloat16)" and y.shape() == [1, 3]


def check_odd_outputs(sessions: dict) -> None:
    flower = np.array([[5.0, 3.4, 1.5, 0.2]], dtype=np.float32)
    maps = sessions["sklearn-zipmap/1"].get_outputs()[1]
    assert maps.type == "seq(map(int64,tensor(float)))", maps.type
    label, probabilities = sessions["sklearn-strings/1"].get_outputs()
    assert (label.type, probabilities.type) == ("tensor(string)", "tensor(float)")
    answer = sessions["sklearn-strings/1"].run(["label"], {"X": flower})[0]
    assert answer.tolist() == ["setosa"], answer

    (y,) = sessions["nan/1"].run(["y"], {"x": np.array([[4, -1]], dtype=np.float32)})
    assert y[0, 0] == 2 and np.isnan(y[0, 1])

    x = np.array([[1, 2], [3, 6]], dtype=np.float32)
    (together,) = sessions["coupled/1"].run(["y"], {"x": x})
    (alone,) = sessions["coupled/1"].run(["y"], {"x": x[:1]})
    assert together.tolist() == [[-1, -2], [1, 2]] and alone.tolist() == [[0, 0]]

    for time_steps in (1, 7, 300):
        x = np.ones((3, time_steps), dtype=np.float32)
        (y,) = sessions["sequence/1"].run(["y"], {"x": x})
        assert y.tolist() == [[time_steps]] * 3


def check_rows_that_meet(sessions: dict) -> None:
    """Models whose outputs cannot be dealt out to the rows of a job, each in its own way."""
    x = np.random.default_rng(1).normal(size=(6, 1, 3)).astype(np.float32)
    (whole,) = sessions["time-major/1"].run(["y"], {"x": x})
    (begin,) = sessions["time-major/1"].run(["y"], {"x": x[:3]})
    (rest,) = sessions["time-major/1"].run(["y"], {"x": x[3:]})
    assert whole.shape == (6, 1, 2)
    assert (whole[:3] == begin).all() and (whole[3:] != rest).all()

    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    (together,) = sessions["transposed/1"].run(["y"], {"x": x})
    alone = [sessions["transposed/1"].run(["y"], {"x": x[row : row + 1]})[0] for row in range(4)]
    assert together.shape == (4, 4) and [column.shape for column in alone] == [(4, 1)] * 4
    assert (together == np.concatenate(alone, axis=1)).all() and (together != together.T).any()

    for rows in (1, 4):
        y, constant = sessions["constant-output/1"].run(["y", "constant"], {"x": x[:rows]})
        assert (y == 2 * x[:rows]).all() and constant.shape == (4, 2)

    # Two boxes a picture, far apart: both, none and one of them are hits.
    boxes = np.tile(np.array([[0, 0, 1, 1], [5, 5, 6, 6]], dtype=np.float32), (3, 1, 1))
    scores = np.array([[[0.9, 0.8]], [[0.1, 0.2]], [[0.3, 0.7]]], dtype=np.float32)
    (found,) = sessions["hits/1"].run(["hits"], {"boxes": boxes, "scores": scores})
    assert found.tolist() == [[0, 0, 0], [0, 0, 1], [2, 0, 1]], found
    (none,) = sessions["hits/1"].run(["hits"], {"boxes": boxes[1:2], "scores": scores[1:2]})
    assert none.shape == (0, 3)


def check_failures(sessions: dict) -> None:
    """Well-formed inputs that the runtime cannot run, and after each, one that it can."""
    lookup = sessions["lookup/1"]
    for index in (8, -9, 2**40):
        must_fail("lookup/1", lookup, {"index": np.array([[0], [index]])})
    assert lookup.run(None, {"index": np.array([[0]])})[0].tolist() == [[-1.25, -1.0]]

    hungry = sessions["hungry/1"]
    for rows in (2**46, 2**50, 2**60):
        must_fail("hungry/1", hungry, {"rows": np.array([[3], [rows]])})
    assert hungry.run(None, {"rows": np.array([[3], [8]])})[0].tolist() == [[3], [8]]

    crowded = sessions["crowded/1"]
    must_fail("crowded/1", crowded, {"x": np.ones((5, 2), dtype=np.float32)})
    assert crowded.run(None, {"x": np.ones((4, 2), dtype=np.float32)})[0].tolist() == [[1, 1]] * 4

    must_fail("fixed/1", sessions["fixed/1"], {"x": np.ones((1, 3), dtype=np.float32)})


def must_fail(name: str, session: onnxruntime.InferenceSession, inputs: dict) -> None:
    try:
        session.run(None, inputs)
    except Exception as error:  # Which classes there are is for the runtime to say.
        print(f"{name} {[a.tolist() for a in inputs.values()]}: {type(error).__name__}: {error}")
        return
    raise SystemExit(f"{name}: did not fail")


def check_slow(session: onnxruntime.InferenceSession) -> None:
    for rows in (1, 64):
        x = np.random.default_rng(1).normal(size=(rows, 4)).astype(np.float32)
        session.run(None, {"x": x})
        started = time.perf_counter()
        (y,) = session.run(None, {"x": x})
        print(f"slow/1: {1000 * (time.perf_counter() - started):.1f} ms for {rows} rows")
        assert (y == x).all()


def check_broken() -> None:
    for name in ("corrupt", "cut"):
        try:
            session_of(HERE / "broken" / name / "1" / "model.onnx")
        except Exception as error:
            print(f"broken/{name}: {type(error).__name__}: {str(error)[:120]!r}")
        else:
            raise SystemExit(f"broken/{name}: loads")
    folder = HERE / "broken" / "wrong-golden" / "1"
    try:
        check_golden(folder, session_of(folder / "model.onnx"))
    except AssertionError:
        return
    raise SystemExit("broken/wrong-golden: matches")


if __name__ == "__main__":
    main()
