"""What does a job cost with Celery, whose task runs one job at a time?

    BENCH_URI=… BENCH_QUEUE=… [BENCH_PARITY=1] celery --app celery_worker worker --pool prefork|threads|solo

Results go back by Celery's RPC backend to the `reply_to` of the task, tasks and results are msgpack. All else is as Celery
comes: it acks a task before it runs it, and awaits no confirm. `BENCH_PARITY` asks for a guarantee as near to inferq's as
Celery has one: acks afterwards, also when a child is lost, and confirms of what is published.
"""

import functools
import os

from celery import Celery
from kombu import Queue

from answer import QUEUE_ARGUMENTS, as_rows, load_model

QUEUE = os.environ["BENCH_QUEUE"]

app = Celery("bench", broker=os.environ["BENCH_URI"], backend="rpc://")
app.conf.update(
    task_queues=[Queue(QUEUE, routing_key=QUEUE, queue_arguments=QUEUE_ARGUMENTS, durable=True)],
    task_default_queue=QUEUE,
    task_default_queue_type="quorum",
    task_serializer="msgpack",
    result_serializer="msgpack",
    accept_content=["msgpack", "json"],
)
if os.environ.get("BENCH_PARITY"):
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=128,
        broker_transport_options={"confirm_publish": True},
    )

# One for each process, which must load it after the fork.
session = functools.cache(load_model)


@app.task(name="predict")
def predict(row: bytes) -> bytes:
    return session().run(None, {"input": as_rows(row)})[0].tobytes()
