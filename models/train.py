#!/usr/bin/env python3
"""Trains the two models of this repository with Keras and writes them as ONNX.

A model reaches a worker in three steps, each a sub-command:

1. `train`        fits the Keras model; not needed if you bring a `.keras` file of your own;
2. `export`       initialises the ONNX file: graph, weights, golden vectors, digest;
3. `set-weights`  adjusts an ONNX file that is already there to the weights of a Keras model with
                  the same layers, and records its golden vectors and digest anew.

`all`, the default, does 1 and 2 for both models and proves step 3: weights set into the export of
an untrained model must give, byte for byte, the export of the trained one.

Nothing at run time needs this script: its results are committed. Set it up from the root of the
checkout, with CPython 3.11 on linux x86_64:

    python3.11 -m venv target/train
    target/train/bin/pip install --require-hashes -r models/requirements.txt
    target/train/bin/python models/train.py all
"""

import argparse
import hashlib
import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Read by Keras when it is imported. JAX is the smallest of its backends; which one trains does not
# matter here, because the weights are read through Keras.
os.environ.setdefault("KERAS_BACKEND", "jax")
# No accelerator is wanted: the committed files come from a CPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import keras
import numpy as np
import onnx
import onnxruntime
from keras import Input, Model
from keras.layers import Dense
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

REPOSITORY = Path(__file__).resolve().parent
KERAS_FOLDER = REPOSITORY.parent / "target" / "models"

SEED = 1
EPOCHS = 10
GOLDEN_ROWS = 16

# Opset 13 is the first whose Softmax works along one axis, and all that these layers need; IR
# version 7 is its contemporary. Checked to load in ONNX Runtime 1.17 and 1.28.
OPSET = 13
IR_VERSION = 7

# Absolute and relative. Keras and ONNX Runtime both compute in float32 but sum in different orders:
# over 1,000 terms that costs about 1e-6 in a logit of size 10, and Softmax does not enlarge it. On
# the machine that made the committed files the largest difference was 3e-7. The rest is room for
# other CPUs and batch sizes, whose kernels differ in the last bits; TF32 on a GPU needs more.
TOLERANCE = np.array([1e-5, 1e-5], dtype=np.float64)

# Least difference between two golden rows, in some output: a thousand times the tolerance, so that
# a reply that carries a neighbour's row is noticed.
ROWS_APART = 0.01


@dataclass(frozen=True)
class Examples:
    """Inputs, one row each, with the number of the class they belong to."""

    train_inputs: np.ndarray
    train_classes: np.ndarray
    test_inputs: np.ndarray
    test_classes: np.ndarray


@dataclass(frozen=True)
class Recipe:
    """All that makes one model of the repository."""

    examples: Callable[[], Examples]
    hidden: int
    rows_per_step: int
    learning_rate: float
    accuracy_min: float
    # Names of the classes, where they have names.
    labels: tuple[str, ...] = ()
    # Whether clients want the held-out rows, as a file beside the model.
    keeps_test_rows: bool = False


# --- Examples -------------------------------------------------------------------------------------


def centres_with_noise() -> Examples:
    """Ten random centres in 1,000 dimensions, with noise around them.

    The centres are so close together (0.12 against noise of 1) that the classes overlap a little: a
    model that is always certain would answer 0 or 1 everywhere, and tell us nothing when checked.
    """
    rng = np.random.default_rng(SEED)
    centres = rng.normal(0.0, 0.12, size=(10, 1000))
    classes = rng.integers(0, 10, size=12_000)
    inputs = (centres[classes] + rng.normal(size=(12_000, 1000))).astype(np.float32)
    return Examples(inputs[:10_000], classes[:10_000], inputs[10_000:], classes[10_000:])


def handwritten_digits() -> Examples:
    """scikit-learn's 1,797 images of 8x8 pixels, one fifth of each digit held out.

    The file has 17 grey values, 0 to 16; we scale them to 0..1, and so must who sends jobs.
    """
    images, digits = load_digits(return_X_y=True)
    inputs = (images / 16.0).astype(np.float32)
    train_inputs, test_inputs, train_classes, test_classes = train_test_split(
        inputs, digits, test_size=0.2, stratify=digits, random_state=SEED
    )
    return Examples(train_inputs, train_classes, test_inputs, test_classes)


RECIPES = {
    # The reference model of the benchmarks: 1000 -> 512 -> 10. Its data is made up, so its accuracy
    # only has to show that it learned; the best possible rule, the nearest true centre, has 0.977.
    "dense": Recipe(
        centres_with_noise, hidden=512, rows_per_step=128, learning_rate=1e-3, accuracy_min=0.90
    ),
    # Small steps at three times Adam's usual rate, because ten epochs over 1,437 images are few.
    "digits": Recipe(
        handwritten_digits,
        hidden=128,
        rows_per_step=16,
        learning_rate=3e-3,
        accuracy_min=0.97,
        labels=tuple("0123456789"),
        keeps_test_rows=True,
    ),
}


# --- Step 1: train, or load -----------------------------------------------------------------------


def untrained(recipe: Recipe, columns: int) -> Model:
    """Builds the Keras model with freshly initialised weights."""
    inputs = Input(shape=(columns,), name="input")
    hidden = Dense(recipe.hidden, activation="relu", name="hidden")(inputs)
    outputs = Dense(10, activation="softmax", name="output")(hidden)
    return Model(inputs=inputs, outputs=outputs)


def trained(name: str, recipe: Recipe, examples: Examples) -> Model:
    """Fits the model and refuses one that did not learn."""
    # Seeds Python, NumPy and the backend: on one machine, two runs give the same bytes.
    keras.utils.set_random_seed(SEED)
    model = untrained(recipe, examples.train_inputs.shape[1])
    optimizer = keras.optimizers.Adam(learning_rate=recipe.learning_rate)
    model.compile(optimizer=optimizer, loss="categorical_crossentropy")
    model.fit(
        examples.train_inputs,
        keras.utils.to_categorical(examples.train_classes, 10),
        epochs=EPOCHS,
        batch_size=recipe.rows_per_step,
        verbose=0,
    )
    accuracy = accuracy_of(model, examples)
    print(f"{name}: accuracy {accuracy:.4f} on {len(examples.test_inputs)} held-out rows")
    if accuracy < recipe.accuracy_min:
        raise SystemExit(f"{name}: accuracy {accuracy:.4f}, at least {recipe.accuracy_min} wanted")
    return model


def accuracy_of(model: Model, examples: Examples) -> float:
    answers = model.predict(examples.test_inputs, verbose=0).argmax(axis=1)
    return float((answers == examples.test_classes).mean())


# --- Step 2: export -------------------------------------------------------------------------------

# Keras's own exporter needs TensorFlow or PyTorch, and names the weights as it likes. A chain of
# Dense layers takes a few lines, and naming the weights after their layers is what lets step 3 find
# them again.

ACTIVATIONS = {"linear": None, "relu": "Relu", "softmax": "Softmax"}


def dense_layers(model: Model) -> list[Dense]:
    """The layers of a chain Input -> Dense -> Dense ..., which is what we can export."""
    first, *layers = model.layers
    before = first.output
    for layer in layers:
        if not isinstance(layer, Dense) or layer.input is not before:
            raise SystemExit(f"layer {layer.name}: only a chain of Dense layers can be exported")
        if layer.activation.__name__ not in ACTIVATIONS:
            raise SystemExit(f"layer {layer.name}: activation must be one of {list(ACTIVATIONS)}")
        before = layer.output
    return layers


def weights_of(model: Model) -> dict[str, np.ndarray]:
    """Every weight under the name that it has in the ONNX file."""
    weights = {}
    for layer in dense_layers(model):
        weights[f"{layer.name}.kernel"] = np.asarray(layer.kernel, dtype=np.float32)
        weights[f"{layer.name}.bias"] = np.asarray(layer.bias, dtype=np.float32)
    return weights


def onnx_from(model: Model) -> onnx.ModelProto:
    """The Keras model as an ONNX model whose first axis, the rows, is free."""
    layers = dense_layers(model)
    nodes, before = [], "input"
    for layer in layers:
        activation = ACTIVATIONS[layer.activation.__name__]
        after = "output" if layer is layers[-1] else layer.name
        product = f"{layer.name}.product" if activation else after
        parameters = [before, f"{layer.name}.kernel", f"{layer.name}.bias"]
        nodes.append(helper.make_node("Gemm", parameters, [product], name=product))
        if activation:
            nodes.append(helper.make_node(activation, [product], [after], name=after))
        before = after
    graph = helper.make_graph(
        nodes,
        "dense_layers",
        [matrix_of_rows("input", model.input.shape[-1])],
        [matrix_of_rows("output", model.output.shape[-1])],
        [numpy_helper.from_array(weight, name) for name, weight in weights_of(model).items()],
    )
    # The producer names no version and nothing is dated: equal weights give equal bytes.
    return helper.make_model(
        graph,
        producer_name="inferq models/train.py",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )


def matrix_of_rows(name: str, columns: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", columns])


# --- Step 3: set weights --------------------------------------------------------------------------


def with_weights(exported: onnx.ModelProto, model: Model) -> onnx.ModelProto:
    """The exported model with the weights of a Keras model; everything else stays as it is."""
    weights = weights_of(model)
    adjusted = onnx.ModelProto()
    adjusted.CopyFrom(exported)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in adjusted.graph.initializer}
    wanted = {name: weight.shape for name, weight in weights.items()}
    if shapes != wanted:
        raise SystemExit(f"the ONNX file has weights {shapes}, the Keras model {wanted}")
    for tensor in adjusted.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return adjusted


# --- What is written ------------------------------------------------------------------------------


def write_version(name: str, version: int, onnx_model: onnx.ModelProto, model: Model) -> None:
    """Writes one version of a model: graph, golden vectors and digest, each checked first."""
    onnx.checker.check_model(onnx_model, full_check=True)
    encoded = onnx_model.SerializeToString(deterministic=True)
    inputs, outputs = golden_rows(model, RECIPES[name].examples())
    check_answers(encoded, inputs, outputs)

    folder = REPOSITORY / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(encoded)
    golden = {"input:input": inputs, "output:output": outputs, "tolerance": TOLERANCE}
    np.savez(folder / "golden.npz", **golden)
    write_model_toml(name, version, hashlib.sha256(encoded).hexdigest())
    print(f"{name}: version {version} written, {len(encoded)} bytes")


def golden_rows(model: Model, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Input rows with Keras's answers, no two of them alike.

    Taken in turns from held-out rows and from the mean of two of them: between two rows the model
    is undecided, so that all its outputs count and not only one.
    """
    rows = examples.test_inputs[:200]
    means = (rows + np.roll(rows, 1, axis=0)) / 2
    inputs = np.stack([rows, means], axis=1).reshape(-1, rows.shape[1])
    # From Keras, not from ONNX Runtime: otherwise a wrong export would be its own proof.
    outputs = np.asarray(model.predict(inputs, verbose=0))
    chosen: list[int] = []
    for row, output in enumerate(outputs):
        if all(np.abs(output - outputs[other]).max() > ROWS_APART for other in chosen):
            chosen.append(row)
    chosen = chosen[:GOLDEN_ROWS]
    if len(chosen) < GOLDEN_ROWS:
        raise SystemExit(f"only {len(chosen)} of {GOLDEN_ROWS} golden rows differ enough")
    return inputs[chosen], outputs[chosen]


def check_answers(encoded: bytes, inputs: np.ndarray, outputs: np.ndarray) -> None:
    """Refuses an export that answers otherwise than Keras, alone or in a batch."""
    session = onnxruntime.InferenceSession(encoded, providers=["CPUExecutionProvider"])
    absolute, relative = TOLERANCE
    for rows in (1, 3, len(inputs)):
        (answers,) = session.run(["output"], {"input": inputs[:rows]})
        np.testing.assert_allclose(answers, outputs[:rows], rtol=relative, atol=absolute)


def write_model_toml(name: str, version: int, digest: str) -> None:
    """Sets the digest of one version; those of other versions stay."""
    path = REPOSITORY / name / "model.toml"
    digests = tomllib.loads(path.read_text()).get("digests", {}) if path.exists() else {}
    digests[str(version)] = f"sha256:{digest}"
    lines = ["# Written by models/train.py."]
    if labels := RECIPES[name].labels:
        # A JSON list of plain strings is TOML as well.
        lines.append(f"labels = {json.dumps(labels)}")
    lines += ["", "[digests]"]
    lines += [f'"{number}" = "{digests[number]}"' for number in sorted(digests, key=int)]
    path.write_text("\n".join(lines) + "\n")


def write_test_rows(name: str, examples: Examples) -> None:
    folder = REPOSITORY / name / "test"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", examples.test_inputs)
    np.save(folder / "labels.npy", examples.test_classes.astype(np.int64))


# --- Sub-commands ---------------------------------------------------------------------------------


def train(names: list[str], keras_folder: Path) -> None:
    keras_folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        recipe = RECIPES[name]
        examples = recipe.examples()
        trained(name, recipe, examples).save(keras_folder / f"{name}.keras")
        if recipe.keeps_test_rows:
            write_test_rows(name, examples)


def export(names: list[str], keras_folder: Path, version: int) -> None:
    for name in names:
        model = keras.saving.load_model(keras_folder / f"{name}.keras")
        write_version(name, version, onnx_from(model), model)


def set_weights(name: str, keras_file: Path, version: int, to_version: int) -> None:
    exported = onnx.load(REPOSITORY / name / str(version) / "model.onnx")
    model = keras.saving.load_model(keras_file)
    write_version(name, to_version, with_weights(exported, model), model)


def all_steps(keras_folder: Path) -> None:
    names = list(RECIPES)
    train(names, keras_folder)
    export(names, keras_folder, version=1)
    for name in names:
        prove_set_weights(name, keras_folder)


def prove_set_weights(name: str, keras_folder: Path) -> None:
    """Step 3 on an untrained export must end where step 2 ends on the trained model."""
    model = keras.saving.load_model(keras_folder / f"{name}.keras")
    adjusted = with_weights(onnx_from(untrained(RECIPES[name], model.input.shape[-1])), model)
    written = (REPOSITORY / name / "1" / "model.onnx").read_bytes()
    if adjusted.SerializeToString(deterministic=True) != written:
        raise SystemExit(f"{name}: setting weights and exporting give different files")
    print(f"{name}: setting weights gives the same file as exporting")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--keras-folder",
        type=Path,
        default=KERAS_FOLDER,
        help="where the .keras files are kept (default: target/models of the checkout)",
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("all", help="both models, all steps (the default)")

    command = commands.add_parser("train", help="step 1: fit and save <name>.keras")
    command.add_argument("names", nargs="*", metavar="NAME", help="dense, digits (default: both)")

    command = commands.add_parser("export", help="step 2: write <name>/<version>/")
    command.add_argument("names", nargs="*", metavar="NAME", help="dense, digits (default: both)")
    command.add_argument("--version", type=int, default=1)

    command = commands.add_parser("set-weights", help="step 3: new weights for an exported model")
    command.add_argument("name", choices=RECIPES)
    command.add_argument("keras_file", type=Path, help="a Keras model with the same layers")
    command.add_argument("--version", type=int, default=1, help="the version to start from")
    # A version of its own by choice, because workers that run keep the one they have loaded.
    command.add_argument("--to-version", type=int, help="the version to write (default: the same)")

    parsed = parser.parse_args()
    unknown = set(getattr(parsed, "names", ())) - set(RECIPES)
    if unknown:
        parser.error(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(RECIPES)}")
    return parsed


def main() -> None:
    given = arguments()
    match given.command:
        case "train":
            train(given.names or list(RECIPES), given.keras_folder)
        case "export":
            export(given.names or list(RECIPES), given.keras_folder, given.version)
        case "set-weights":
            to_version = given.to_version or given.version
            set_weights(given.name, given.keras_file, given.version, to_version)
        case "all" | None:
            all_steps(given.keras_folder)


if __name__ == "__main__":
    main()
