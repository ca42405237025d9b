"""What does a job cost with the best worker that one writes by hand in Python: aio-pika on uvloop, in greedy batches?

    aio_pika_worker.py URI QUEUE

As inferq does it: a batch is whatever has arrived, up to 64 rows; nobody waits for it to fill. The model runs in a thread
beside the event loop. The replies of a batch are published at once, mandatory, and their confirms are awaited together;
then one ack settles the batch. Two connections, prefetch 256. Ends at SIGTERM.
"""

import asyncio
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import aio_pika
import aiormq
import msgpack
import numpy as np
import uvloop

from answer import APP_ID, QUEUE_ARGUMENTS, REPLY_HEADERS, REPLY_TYPE, as_rows, encode_reply, load_model

PREFETCH = 256
ROWS_MAX = 64


async def main(uri: str, queue_name: str):
    session = load_model()
    consuming, publishing = await aio_pika.connect(uri), await aio_pika.connect(uri)
    channel = await consuming.channel(publisher_confirms=False)
    await channel.set_qos(prefetch_count=PREFETCH)
    replies = (await publishing.channel(publisher_confirms=True)).default_exchange
    queue = await channel.declare_queue(queue_name, durable=True, arguments=QUEUE_ARGUMENTS)

    arrived = asyncio.Queue()
    await queue.consume(arrived.put)
    serving = asyncio.create_task(serve(arrived, session, replies))
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    done, _ = await asyncio.wait([serving, asyncio.create_task(stopped.wait())], return_when=asyncio.FIRST_COMPLETED)
    if serving in done:
        serving.result()  # It ends only by failing.
    serving.cancel()
    await consuming.close()
    await publishing.close()


async def serve(arrived: asyncio.Queue, session, replies: aio_pika.abc.AbstractExchange):
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1)
    while True:
        batch = [await arrived.get()]
        inputs = [rows_of(batch[0])]
        rows = len(inputs[0])
        while rows < ROWS_MAX and not arrived.empty():
            batch.append(arrived.get_nowait())
            inputs.append(rows_of(batch[-1]))
            rows += len(inputs[-1])
        bodies = await loop.run_in_executor(thread, predict, session, inputs)
        await asyncio.gather(*(reply(replies, job, body) for job, body in zip(batch, bodies)))
        # The tags of a channel count up, and every lower one is settled by now.
        await batch[-1].ack(multiple=True)


def rows_of(job: aio_pika.abc.AbstractIncomingMessage) -> np.ndarray:
    return as_rows(msgpack.unpackb(job.body)["inputs"][0]["data"])


def predict(session, inputs: list[np.ndarray]) -> list[bytes]:
    [probabilities] = session.run(None, {"input": np.concatenate(inputs)})
    ends = np.cumsum([len(rows) for rows in inputs])
    return [encode_reply(probabilities[end - len(rows) : end]) for rows, end in zip(inputs, ends)]


async def reply(exchange: aio_pika.abc.AbstractExchange, job: aio_pika.abc.AbstractIncomingMessage, body: bytes):
    message = aio_pika.Message(
        body,
        content_type="application/msgpack",
        headers=REPLY_HEADERS,
        delivery_mode=job.delivery_mode,
        correlation_id=job.correlation_id,
        message_id=job.correlation_id,
        type=REPLY_TYPE,
        app_id=APP_ID,
    )
    confirmed = await exchange.publish(message, routing_key=job.reply_to, mandatory=True)
    if not isinstance(confirmed, aiormq.spec.Basic.Ack):
        raise RuntimeError("a reply was returned or refused")


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
