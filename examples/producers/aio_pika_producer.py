"""Sends images of digits as jobs with aio-pika, many calls at a time, and says how many were recognised.

    AMQP_URI=amqp://guest:guest@127.0.0.1:5672/%2f python aio_pika_producer.py images.npy labels.npy

Each call is a coroutine that returns its own answer; one consumer hands the replies out.
"""

import asyncio
import os
import sys
import time
import uuid

import aio_pika
import msgpack
import numpy as np

DEADLINE_S = 30


class Client:
    """Calls models over one connection."""

    async def __aenter__(self):
        self.connection = await aio_pika.connect(os.environ["AMQP_URI"])
        # Publishing awaits the broker's confirm, and raises if no queue wants the job.
        self.channel = await self.connection.channel(publisher_confirms=True, on_return_raises=True)
        self.front_door = await self.channel.get_exchange("inferq")
        self.replies = await self.channel.declare_queue(exclusive=True)
        self.waiting: dict[str, asyncio.Future] = {}
        await self.replies.consume(self.take, no_ack=True)
        return self

    async def __aexit__(self, *_):
        await self.connection.close()

    async def take(self, reply: aio_pika.abc.AbstractIncomingMessage) -> None:
        answer = self.waiting.pop(reply.correlation_id, None)
        if answer and not answer.done():  # Otherwise a second copy: at least once means that it can happen.
            answer.set_result(reply)

    async def predict(self, model: str, row: np.ndarray) -> np.ndarray:
        job = uuid.uuid4().hex
        answer = self.waiting[job] = asyncio.get_running_loop().create_future()
        tensor = {"name": "input", "datatype": "FP32", "shape": [1, row.size], "data": row.astype("<f4").tobytes()}
        message = aio_pika.Message(
            msgpack.packb({"inputs": [tensor]}),
            content_type="application/msgpack",
            reply_to=self.replies.name,
            message_id=job,
            correlation_id=job,
            headers={"inferq-deadline": int((time.time() + DEADLINE_S) * 1000)},
        )
        await self.front_door.publish(message, model, mandatory=True)
        reply = await asyncio.wait_for(answer, DEADLINE_S)
        body = msgpack.unpackb(reply.body)
        if reply.headers["inferq-status"] != "OK":
            raise RuntimeError(f"{reply.headers['inferq-status']}: {body['error']}")
        return np.frombuffer(body["outputs"][0]["data"], "<f4")


async def main(images_path: str, labels_path: str) -> None:
    images, labels = np.load(images_path), np.load(labels_path)
    async with Client() as client:
        answers = await asyncio.gather(*(client.predict("digits", image) for image in images))
    right = sum(answer.argmax() == label for answer, label in zip(answers, labels))
    print(f"{right} of {len(images)} digits recognised")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
