/* The floor: what does a worker cost that does all of inferq's messaging and nothing else?
 *
 *     echo_worker URI QUEUE PREFETCH BATCH_MAX
 *
 * For each job it publishes a reply of 120 bytes to the job's `reply_to`, mandatory, with the properties and headers of
 * an inferq reply, and the same result of ten zeros for every job, which a client can read. It drains what has arrived (up to BATCH_MAX), publishes all of it, waits until every reply is
 * confirmed and acks the batch with one frame: the guarantee of inferq. Like inferq it declares its queue, and has one
 * connection to consume and one to publish.
 *
 * Ends at SIGTERM and prints {"jobs", "batches", "cpu_seconds"}. */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>

#include "amqp_session.h"

enum { REPLY_BYTES = 120, BATCH_SLOTS = 2000 };

static volatile sig_atomic_t stopping;

static void stop(int number) {
  (void)number;
  stopping = 1;
}

static amqp_table_entry_t text_entry(const char *key, const char *text) {
  return (amqp_table_entry_t){amqp_cstring_bytes(key), {AMQP_FIELD_KIND_UTF8, {.bytes = amqp_cstring_bytes(text)}}};
}

/* With the arguments that inferq gives a job queue. */
static void declare(amqp_connection_state_t connection, const char *queue) {
  amqp_table_entry_t arguments[] = {
      text_entry("x-queue-type", "quorum"),
      text_entry("x-dead-letter-exchange", "floor.dead"),
      text_entry("x-dead-letter-routing-key", "floor"),
      text_entry("x-dead-letter-strategy", "at-least-once"),
      text_entry("x-overflow", "reject-publish"),
      {amqp_cstring_bytes("x-delivery-limit"), {AMQP_FIELD_KIND_I64, {.i64 = 10}}},
  };
  amqp_table_t table = {sizeof arguments / sizeof *arguments, arguments};
  amqp_queue_declare(connection, CHANNEL, amqp_cstring_bytes(queue), 0, 1, 0, 0, table);
  check(connection, "queue");
}

static void publish_reply(amqp_connection_state_t publishing, const amqp_basic_properties_t *job) {
  /* {"model_name": "m", "model_version": "1", "outputs": [{"name": "prob", "datatype": "FP32", "shape": [1, 10],
   * "data": bin}]} */
  static char body[REPLY_BYTES] = "\x83\xaamodel_name\xa1m\xadmodel_version\xa1" "1\xa7outputs\x91"
                                  "\x84\xa4name\xa4prob\xa8" "datatype\xa4" "FP32\xa5shape\x92\x01\x0a\xa4" "data\xc4\x28";
  amqp_table_entry_t headers[] = {text_entry("inferq-status", "OK"), text_entry("inferq-model-version", "1")};
  amqp_basic_properties_t reply = {
      ._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_HEADERS_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG |
                AMQP_BASIC_CORRELATION_ID_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_TYPE_FLAG |
                AMQP_BASIC_APP_ID_FLAG,
      .content_type = job->content_type,
      .headers = {2, headers},
      /* A job that says nothing is transient; 0 would make the broker close the channel. */
      .delivery_mode = job->_flags & AMQP_BASIC_DELIVERY_MODE_FLAG ? job->delivery_mode : 1,
      .correlation_id = job->correlation_id,
      .message_id = job->correlation_id,
      .type = amqp_cstring_bytes("inferq.result"),
      .app_id = amqp_cstring_bytes("inferq/0.1.0"),
  };
  int status = amqp_basic_publish(publishing, CHANNEL, amqp_empty_bytes, job->reply_to, 1, 0, &reply,
                                  (amqp_bytes_t){sizeof body, body});
  if (status != AMQP_STATUS_OK) fail("publish: %s", amqp_error_string2(status));
}

static void await_confirms(amqp_connection_state_t publishing, uint64_t first, size_t jobs) {
  static bool open[BATCH_SLOTS];
  memset(open, true, jobs);
  amqp_frame_t frame;
  for (size_t left = jobs; left > 0;) {
    next_frame(publishing, true, &frame);
    left -= note_confirm(&frame, first, open, jobs);
  }
  amqp_maybe_release_buffers_on_channel(publishing, CHANNEL);
}

/* Takes what has arrived, answers it and acks it; returns how many jobs that was. */
static size_t serve_batch(amqp_connection_state_t consuming, amqp_connection_state_t publishing, size_t batch_max,
                          uint64_t published) {
  struct message job;
  size_t jobs = 0;
  uint64_t last_tag = 0;
  /* A job's properties are used before the next frame is read; its frames reach the broker in any case only once the
   * socket takes them. */
  while (jobs < batch_max && next_message(consuming, &job)) {
    publish_reply(publishing, job.properties);
    last_tag = job.tag;
    jobs++;
  }
  if (jobs == 0) return 0;
  await_confirms(publishing, published + 1, jobs);
  if (amqp_basic_ack(consuming, CHANNEL, last_tag, 1) != AMQP_STATUS_OK) fail("ack");
  amqp_maybe_release_buffers_on_channel(consuming, CHANNEL);
  return jobs;
}

int main(int count, char **arguments) {
  if (count != 5) fail("usage: echo_worker URI QUEUE PREFETCH BATCH_MAX");
  const char *queue = arguments[2];
  size_t batch_max = strtoul(arguments[4], NULL, 10);
  if (batch_max < 1 || batch_max > BATCH_SLOTS) fail("BATCH_MAX is from 1 to %d", BATCH_SLOTS);

  /* SIGTERM comes in only while we wait for jobs. */
  sigset_t blocked, waiting;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGTERM);
  sigprocmask(SIG_BLOCK, &blocked, &waiting);
  sigaction(SIGTERM, &(struct sigaction){.sa_handler = stop}, NULL);

  amqp_connection_state_t publishing = open_connection(arguments[1]);
  amqp_confirm_select(publishing, CHANNEL);
  check(publishing, "confirms");
  amqp_connection_state_t consuming = open_connection(arguments[1]);
  declare(consuming, queue);
  amqp_basic_qos(consuming, CHANNEL, 0, (uint16_t)strtoul(arguments[3], NULL, 10), 0);
  check(consuming, "prefetch");
  amqp_basic_consume(consuming, CHANNEL, amqp_cstring_bytes(queue), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
  check(consuming, "consume");

  uint64_t jobs = 0, batches = 0;
  while (!stopping) {
    size_t served = serve_batch(consuming, publishing, batch_max, jobs);
    jobs += served;
    batches += served > 0;
    if (served == 0) ppoll(&(struct pollfd){amqp_get_sockfd(consuming), POLLIN, 0}, 1, NULL, &waiting);
  }
  printf("{\"jobs\": %lu, \"batches\": %lu, \"cpu_seconds\": %.6f}\n", (unsigned long)jobs, (unsigned long)batches,
         cpu_seconds());
}
