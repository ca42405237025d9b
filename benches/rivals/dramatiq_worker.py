"""What does a job cost with Dramatiq, whose actor runs one job at a time?

    BENCH_URI=… BENCH_QUEUE=… [BENCH_PARITY=1] dramatiq dramatiq_worker

Dramatiq has no results over AMQP. So the actor publishes its reply itself, by the channel that Dramatiq keeps for each
thread, as the documentation has actors enqueue further messages. Messages are msgpack and not the default, JSON, which
knows no bytes. Dramatiq always acks afterwards; `BENCH_PARITY` adds confirms and `mandatory`, and prefetch.
"""

import functools
import os

import dramatiq
import msgpack
import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from answer import APP_ID, QUEUE_ARGUMENTS, REPLY_HEADERS, REPLY_TYPE, as_rows, encode_reply, load_model

QUEUE = os.environ["BENCH_QUEUE"]
PARITY = bool(os.environ.get("BENCH_PARITY"))


class MsgpackEncoder(dramatiq.Encoder):
    def encode(self, data: dict) -> bytes:
        return msgpack.packb(data)

    def decode(self, data: bytes) -> dict:
        return msgpack.unpackb(data)


class QuorumBroker(RabbitmqBroker):
    """Dramatiq declares classic queues only."""

    def _declare_queue(self, queue_name: str):
        return self.channel.queue_declare(queue=queue_name, durable=True, arguments=QUEUE_ARGUMENTS)


dramatiq.set_encoder(MsgpackEncoder())
broker = QuorumBroker(url=os.environ["BENCH_URI"], confirm_delivery=PARITY)
dramatiq.set_broker(broker)

# One for each process.
session = functools.cache(load_model)


@dramatiq.actor(queue_name=QUEUE, actor_name="predict")
def predict(job: str, reply_to: str, row: bytes):
    [probabilities] = session().run(None, {"input": as_rows(row)})
    properties = pika.BasicProperties(
        content_type="application/msgpack",
        headers=REPLY_HEADERS,
        delivery_mode=1,
        correlation_id=job,
        message_id=job,
        type=REPLY_TYPE,
        app_id=APP_ID,
    )
    broker.channel.basic_publish("", reply_to, encode_reply(probabilities), properties, mandatory=PARITY)
