"""What the Python contestants share: the model on one thread, and bodies in msgpack."""

import os

import msgpack
import numpy as np
import onnxruntime

COLUMNS = 1000
MODEL = os.environ["BENCH_MODEL"]

# With the arguments that inferq gives a job queue.
QUEUE_ARGUMENTS = {
    "x-queue-type": "quorum",
    "x-dead-letter-exchange": "floor.dead",
    "x-dead-letter-routing-key": "floor",
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
    "x-delivery-limit": 10,
}
REPLY_HEADERS = {"inferq-status": "OK", "inferq-model-version": "1"}
REPLY_TYPE, APP_ID = "inferq.result", "inferq/0.1.0"


def load_model() -> onnxruntime.InferenceSession:
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def as_rows(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype="<f4").reshape(-1, COLUMNS)


def encode_reply(probabilities: np.ndarray) -> bytes:
    output = {"name": "output", "datatype": "FP32", "shape": probabilities.shape, "data": probabilities.tobytes()}
    return msgpack.packb({"model_name": "dense", "model_version": "1", "outputs": [output]})
