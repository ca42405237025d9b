"""Sends images of digits in one job whose body Triton's own client builds, and says how many were recognised.

    AMQP_URI=amqp://guest:guest@127.0.0.1:5672/%2f python triton_producer.py images.npy labels.npy

For code that talks to Triton today: the body stays what it is, only the transport changes.
"""

import os
import sys
import uuid

import numpy as np
import pika
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

DEADLINE_S = 30


def main(images_path: str, labels_path: str) -> None:
    images, labels = np.load(images_path), np.load(labels_path)
    rows = InferInput("input", images.shape, "FP32")
    rows.set_data_from_numpy(images)
    outputs = [InferRequestedOutput("output")]
    body, json_bytes = InferenceServerClient.generate_request_body([rows], outputs=outputs)

    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URI"]))
    channel = connection.channel()
    channel.confirm_delivery()
    replies = channel.queue_declare("", exclusive=True).method.queue
    job = pika.BasicProperties(
        content_type="application/octet-stream",
        # What is an HTTP header for Triton is a header of the message.
        headers={"inference-header-content-length": json_bytes},
        reply_to=replies,
        message_id=uuid.uuid4().hex,
    )
    channel.basic_publish("inferq", "digits", body, job, mandatory=True)

    _, reply, answer = next(channel.consume(replies, auto_ack=True, inactivity_timeout=DEADLINE_S))
    if reply is None:
        sys.exit(f"no answer within {DEADLINE_S} s")
    if reply.headers["inferq-status"] != "OK":
        sys.exit(f"{reply.headers['inferq-status']}: {answer.decode()}")
    json_bytes = reply.headers["inference-header-content-length"]
    probabilities = InferenceServerClient.parse_response_body(answer, header_length=json_bytes).as_numpy("output")
    print(f"{(probabilities.argmax(axis=1) == labels).sum()} of {len(images)} digits recognised")
    connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
