/* Does the worker keep up, and does each job get its own answer, once?
 *
 *     load URI QUEUE SECONDS IN_FLIGHT echo|inferq
 *
 * Closed loop: keeps IN_FLIGHT jobs under way for SECONDS, then waits for the last answers. A job is one row of 1000
 * float32 in msgpack `bin`, published to the queue with a confirm, transient; answers go to an exclusive queue. Every
 * answer is checked: known correlation id, answered once; of inferq also `inferq-status` OK and a msgpack map that ends
 * with ten probabilities, the same for the same row as before, so that rows that were mixed up do not pass.
 *
 * Prints {"jobs", "wall_seconds", "cpu_seconds"}, or one sentence and exits with 1. */
#define _GNU_SOURCE
#include <math.h>
#include <poll.h>
#include <time.h>

#include "amqp_session.h"

enum {
  COLUMNS = 1000,
  CLASSES = 10,
  ROWS = 64, /* Distinct rows, used in turn. */
  JOBS_MAX = 1 << 25,
  UNCONFIRMED_MAX = 1 << 16,
  QUEUE_WAIT_MS = 20000,
  SILENCE_MS = 20000,
};

struct load {
  amqp_connection_state_t publishing, consuming;
  amqp_bytes_t queue, reply_to;
  uint64_t in_flight_max, published, answered;
  uint64_t confirmed_below; /* All tags up to this one are confirmed. */
  bool unconfirmed[UNCONFIRMED_MAX];
  bool is_inferq;
  uint8_t *seen; /* A byte a job. */
  float expected[ROWS][CLASSES];
  bool known[ROWS];
};

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 1000], "data": bin}]} */
static const char HEAD[] = "\x81\xa6inputs\x91\x84\xa4name\xa5input\xa8" "datatype\xa4" "FP32\xa5shape\x92\x01\xcd\x03\xe8\xa4" "data\xc5\x0f\xa0";
enum { HEAD_BYTES = sizeof HEAD - 1, BODY_BYTES = HEAD_BYTES + 4 * COLUMNS };
static char bodies[ROWS][BODY_BYTES];

static void make_bodies(void) {
  uint32_t state = 1;
  for (int row = 0; row < ROWS; row++) {
    memcpy(bodies[row], HEAD, HEAD_BYTES);
    for (int column = 0; column < COLUMNS; column++) {
      state = state * 1664525u + 1013904223u;
      float value = (float)(state >> 8) / (float)(1 << 23) - 1.0f;
      memcpy(bodies[row] + HEAD_BYTES + 4 * column, &value, sizeof value);
    }
  }
}

/* The worker declares its queue; until it has, there is nobody to load. */
static void await_queue(amqp_connection_state_t connection, amqp_bytes_t queue) {
  for (double until = now() + QUEUE_WAIT_MS / 1e3;;) {
    if (amqp_queue_declare(connection, CHANNEL, queue, 1, 0, 0, 0, amqp_empty_table)) return;
    if (now() > until) fail("there is no queue %.*s", (int)queue.len, (char *)queue.bytes);
    poll(NULL, 0, 50);
    /* The broker has closed the channel over it, and librabbitmq has agreed to that if told to. */
    amqp_rpc_reply_t reply = amqp_get_rpc_reply(connection);
    if (reply.reply_type != AMQP_RESPONSE_SERVER_EXCEPTION || reply.reply.id != AMQP_CHANNEL_CLOSE_METHOD)
      check(connection, "queue");
    amqp_channel_close_ok_t agreed = {0};
    amqp_send_method(connection, CHANNEL, AMQP_CHANNEL_CLOSE_OK_METHOD, &agreed);
    open_channel(connection);
  }
}

static void publish_job(struct load *load) {
  if (load->published == JOBS_MAX) fail("more than %d jobs", JOBS_MAX);
  char id[17];
  snprintf(id, sizeof id, "%016lx", (unsigned long)load->published);
  amqp_basic_properties_t job = {
      ._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG |
                AMQP_BASIC_REPLY_TO_FLAG,
      .content_type = amqp_cstring_bytes("application/msgpack"),
      .delivery_mode = 1,
      .correlation_id = amqp_cstring_bytes(id),
      .reply_to = load->reply_to,
  };
  amqp_bytes_t body = {BODY_BYTES, bodies[load->published % ROWS]};
  int status = amqp_basic_publish(load->publishing, CHANNEL, amqp_empty_bytes, load->queue, 1, 0, &job, body);
  if (status != AMQP_STATUS_OK) fail("publish: %s", amqp_error_string2(status));
  load->published++;
  load->unconfirmed[load->published - load->confirmed_below - 1] = true;
}

static void take_confirms(struct load *load) {
  amqp_frame_t frame;
  while (next_frame(load->publishing, false, &frame)) {
    size_t count = load->published - load->confirmed_below, done = 0;
    note_confirm(&frame, load->confirmed_below + 1, load->unconfirmed, count);
    while (done < count && !load->unconfirmed[done]) done++;
    memmove(load->unconfirmed, load->unconfirmed + done, (count - done) * sizeof *load->unconfirmed);
    load->confirmed_below += done;
  }
  amqp_maybe_release_buffers_on_channel(load->publishing, CHANNEL);
}

static void check_result(struct load *load, const struct message *reply, uint64_t id) {
  bool is_ok = false;
  const amqp_table_t *headers = &reply->properties->headers;
  for (int i = 0; i < headers->num_entries; i++)
    is_ok |= same(headers->entries[i].key, "inferq-status") && same(headers->entries[i].value.value.bytes, "OK");
  const unsigned char *body = reply->body.bytes;
  size_t bytes = sizeof(float[CLASSES]);
  bool is_map = reply->body.len > bytes + 2 && body[0] >> 4 == 0x8;
  if (!is_ok || !is_map || !same(reply->properties->type, "inferq.result"))
    fail("job %lu was not answered OK with a msgpack map: %.*s", (unsigned long)id, (int)reply->body.len, body);
  const unsigned char *end = body + reply->body.len;
  float classes[CLASSES], sum = 0;
  memcpy(classes, end - bytes, bytes);
  float *expected = load->expected[id % ROWS];
  if (!load->known[id % ROWS]) {
    memcpy(expected, classes, bytes);
    load->known[id % ROWS] = true;
  }
  for (int i = 0; i < CLASSES; i++) {
    sum += classes[i];
    if (!(fabsf(classes[i] - expected[i]) <= 1e-5f)) fail("job %lu got the answer of another row", (unsigned long)id);
  }
  if (end[-(int)bytes - 2] != 0xc4 || !(fabsf(sum - 1) <= 1e-4f))
    fail("job %lu: the body does not end with %d probabilities", (unsigned long)id, CLASSES);
}

static void take_answers(struct load *load) {
  struct message reply;
  while (next_message(load->consuming, &reply)) {
    amqp_bytes_t correlation_id = reply.properties->correlation_id;
    char text[17] = "";
    if (correlation_id.len != 16) fail("an answer to nothing");
    memcpy(text, correlation_id.bytes, 16);
    uint64_t id = strtoull(text, NULL, 16);
    if (id >= load->published || load->seen[id]++) fail("job %s was answered twice, or never sent", text);
    if (load->is_inferq) check_result(load, &reply, id);
    load->answered++;
  }
  amqp_maybe_release_buffers_on_channel(load->consuming, CHANNEL);
}

static void run(struct load *load, double until) {
  while (now() < until || load->answered < load->published || load->confirmed_below < load->published) {
    bool idle = true;
    while (now() < until && load->published - load->answered < load->in_flight_max &&
           load->published - load->confirmed_below < UNCONFIRMED_MAX) {
      publish_job(load);
      idle = false;
    }
    uint64_t before = load->answered + load->confirmed_below;
    take_confirms(load);
    take_answers(load);
    if (!idle || load->answered + load->confirmed_below > before) continue;
    struct pollfd sockets[] = {{amqp_get_sockfd(load->publishing), POLLIN, 0},
                               {amqp_get_sockfd(load->consuming), POLLIN, 0}};
    if (poll(sockets, 2, SILENCE_MS) == 0)
      fail("%lu of %lu jobs are not answered", (unsigned long)(load->published - load->answered),
           (unsigned long)load->published);
  }
}

int main(int count, char **arguments) {
  if (count != 6) fail("usage: load URI QUEUE SECONDS IN_FLIGHT echo|inferq");
  static struct load load;
  load.publishing = open_connection(arguments[1]);
  load.consuming = open_connection(arguments[1]);
  load.queue = amqp_cstring_bytes(arguments[2]);
  load.in_flight_max = strtoul(arguments[4], NULL, 10);
  load.is_inferq = strcmp(arguments[5], "inferq") == 0;
  load.seen = calloc(JOBS_MAX, 1);
  if (!load.seen) fail("no memory");
  make_bodies();

  await_queue(load.publishing, load.queue);
  amqp_confirm_select(load.publishing, CHANNEL);
  check(load.publishing, "confirms");
  amqp_queue_declare_ok_t *answers =
      amqp_queue_declare(load.consuming, CHANNEL, amqp_empty_bytes, 0, 0, 1, 1, amqp_empty_table);
  check(load.consuming, "queue of the answers");
  load.reply_to = amqp_bytes_malloc_dup(answers->queue);
  amqp_basic_consume(load.consuming, CHANNEL, load.reply_to, amqp_empty_bytes, 0, 1, 1, amqp_empty_table);
  check(load.consuming, "consume");

  double began = now(), cpu = cpu_seconds();
  run(&load, began + strtod(arguments[3], NULL));
  printf("{\"jobs\": %lu, \"wall_seconds\": %.6f, \"cpu_seconds\": %.6f}\n", (unsigned long)load.answered,
         now() - began, cpu_seconds() - cpu);
}
