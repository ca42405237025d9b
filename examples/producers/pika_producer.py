"""Sends images of digits as jobs with pika, one a job, and says how many were recognised.

    AMQP_URI=amqp://guest:guest@127.0.0.1:5672/%2f python pika_producer.py images.npy labels.npy

pika is blocking: publish all, then collect all.
"""

import os
import sys
import time
import uuid

import msgpack
import numpy as np
import pika

DEADLINE_S = 30


def main(images_path: str, labels_path: str) -> None:
    images, labels = np.load(images_path), np.load(labels_path)
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URI"]))
    channel = connection.channel()
    channel.confirm_delivery()  # From here on publish returns when the broker has the job, and raises if no queue wants it.
    replies = channel.queue_declare("", exclusive=True).method.queue

    waiting = {}
    for image, label in zip(images, labels):
        job = uuid.uuid4().hex
        waiting[job] = label
        channel.basic_publish("inferq", "digits", encode(image), properties(job, replies), mandatory=True)

    right = 0
    for _, reply, body in channel.consume(replies, auto_ack=True, inactivity_timeout=DEADLINE_S):
        if reply is None:
            sys.exit(f"{len(waiting)} jobs were not answered within {DEADLINE_S} s")
        label = waiting.pop(reply.correlation_id, None)
        if label is not None:  # Otherwise a second copy: at least once means that it can happen.
            right += digit(reply, body) == label
        if not waiting:
            break
    print(f"{right} of {len(images)} digits recognised")
    connection.close()


def properties(job: str, replies: str) -> pika.BasicProperties:
    return pika.BasicProperties(
        content_type="application/msgpack",
        reply_to=replies,
        message_id=job,
        correlation_id=job,
        headers={"inferq-deadline": int((time.time() + DEADLINE_S) * 1000)},
    )


def encode(image: np.ndarray) -> bytes:
    """One row: the bytes of a little-endian array are the fastest `data`."""
    row = image.astype("<f4").reshape(1, -1)
    tensor = {"name": "input", "datatype": "FP32", "shape": list(row.shape), "data": row.tobytes()}
    return msgpack.packb({"inputs": [tensor]})


def digit(reply: pika.BasicProperties, body: bytes) -> int:
    answer = msgpack.unpackb(body)
    if reply.headers["inferq-status"] != "OK":
        sys.exit(f"{reply.headers['inferq-status']}: {answer['error']}")
    return int(np.frombuffer(answer["outputs"][0]["data"], "<f4").argmax())


if __name__ == "__main__":
    main(*sys.argv[1:])
