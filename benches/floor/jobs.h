/* The jobs of every contestant, and how its answers are known to be right: each framework has messages of its own.
 *
 * A job is some rows of 1000 float32 in one msgpack `bin`; around it is what the contestant's own producer would write.
 * The rows come from a fixed set of 64 and their right answers from a file that `ort_alone` wrote, so that rows which were
 * mixed up, or an answer that is merely well-formed, do not pass. A row of another width is cut off or repeats its numbers;
 * its answer is that of the whole row for a model that looks at the first ten only. */
#pragma once

#include <math.h>

#include "amqp_session.h"

enum { COLUMNS = 1000, CLASSES = 10, ROWS = 64, ANSWER_BYTES = 4 * CLASSES, ID_BYTES = 16 };

enum kind {
  ECHO,     /* Jobs of inferq; the answer is not looked into, since nothing was computed. */
  INFERQ,   /* The contract of inferq; also what aio-pika and lapin are made to speak. */
  CELERY,   /* Task messages of Celery, protocol 2, and results of its RPC backend. */
  DRAMATIQ, /* Messages of Dramatiq as msgpack; it has no results over AMQP, so its actor answers like inferq. */
};

static const char *const KINDS[] = {"echo", "inferq", "celery", "dramatiq"};

struct body {
  amqp_bytes_t bytes;
  size_t ids[2], id_count; /* Where the job's id goes, in messages that hold it. */
  size_t first_row;
};

static float rows[ROWS][COLUMNS], answers[ROWS][CLASSES];
static struct body bodies[ROWS];
static size_t body_count, rows_per_job, columns;

static void make_rows(void) {
  uint32_t state = 1;
  for (int row = 0; row < ROWS; row++)
    for (int column = 0; column < COLUMNS; column++) {
      state = state * 1664525u + 1013904223u;
      rows[row][column] = (float)(state >> 8) / (float)(1 << 23) - 1.0f;
    }
}

static void read_answers(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file || fread(answers, sizeof answers, 1, file) != 1) fail("%s does not hold %d answers", path, ROWS);
  fclose(file);
}

/* --- msgpack, as much of it as these messages need --- */

static void put(struct body *body, const void *bytes, size_t count) {
  memcpy((char *)body->bytes.bytes + body->bytes.len, bytes, count);
  body->bytes.len += count;
}

#define PUT(body, literal) put(body, literal, sizeof(literal) - 1)

static void put_text(struct body *body, const char *text) {
  size_t length = strlen(text);
  if (length > 255) fail("a text is too long");
  put(body, (uint8_t[]){0xd9, (uint8_t)length}, 2);
  put(body, text, length);
}

static void put_id(struct body *body) {
  put(body, (uint8_t[]){0xa0 | ID_BYTES}, 1);
  body->ids[body->id_count++] = body->bytes.len;
  put(body, "0000000000000000", ID_BYTES);
}

static void put_u32(struct body *body, uint8_t type, size_t number) {
  put(body, (uint8_t[]){type, (uint8_t)(number >> 24), (uint8_t)(number >> 16), (uint8_t)(number >> 8), (uint8_t)number}, 5);
}

static void put_number(struct body *body, size_t number) {
  if (number < 128) put(body, (uint8_t[]){(uint8_t)number}, 1);
  else if (number < 1 << 16) put(body, (uint8_t[]){0xcd, (uint8_t)(number >> 8), (uint8_t)number}, 3);
  else put_u32(body, 0xce, number);
}

/* The head of a `bin`, as short as it can be; returns its length. */
static size_t bin_head(uint8_t head[5], size_t bytes) {
  size_t length_bytes = bytes < 1 << 8 ? 1 : bytes < 1 << 16 ? 2 : 4;
  head[0] = length_bytes == 1 ? 0xc4 : length_bytes == 2 ? 0xc5 : 0xc6;
  for (size_t i = 0; i < length_bytes; i++) head[1 + i] = (uint8_t)(bytes >> 8 * (length_bytes - 1 - i));
  return 1 + length_bytes;
}

static void put_row(struct body *body, const float row[COLUMNS]) {
  for (size_t left = columns; left > 0;) {
    size_t some = left < COLUMNS ? left : COLUMNS;
    put(body, row, some * sizeof *row);
    left -= some;
  }
}

static void put_rows(struct body *body) {
  uint8_t head[5];
  put(body, head, bin_head(head, rows_per_job * columns * sizeof(float)));
  for (size_t i = 0; i < rows_per_job; i++) put_row(body, rows[(body->first_row + i) % ROWS]);
}

/* --- Jobs --- */

/* {"inputs": [{"name": "input", "datatype": "FP32", "shape": [rows, columns], "data": bin}]} */
static void make_inferq(struct body *body) {
  PUT(body, "\x81\xa6inputs\x91\x84\xa4name\xa5input\xa8" "datatype\xa4" "FP32\xa5shape\x92");
  put_number(body, rows_per_job);
  put_number(body, columns);
  PUT(body, "\xa4" "data");
  put_rows(body);
}

/* [[bin], {}, {"callbacks": nil, "errbacks": nil, "chain": nil, "chord": nil}] */
static void make_celery(struct body *body) {
  PUT(body, "\x93\x91");
  put_rows(body);
  PUT(body, "\x80\x84");
  for (int i = 0; i < 4; i++) {
    put_text(body, (const char *[]){"callbacks", "errbacks", "chain", "chord"}[i]);
    PUT(body, "\xc0");
  }
}

/* {"queue_name", "actor_name", "args": [], "kwargs": {"job", "reply_to", "row"}, "options": {}, "message_id",
 * "message_timestamp"} */
static void make_dramatiq(struct body *body, const char *queue, const char *reply_to) {
  PUT(body, "\x87");
  put_text(body, "queue_name"), put_text(body, queue);
  put_text(body, "actor_name"), put_text(body, "predict");
  put_text(body, "args"), PUT(body, "\x90");
  put_text(body, "kwargs"), PUT(body, "\x83");
  put_text(body, "job"), put_id(body);
  put_text(body, "reply_to"), put_text(body, reply_to);
  put_text(body, "row"), put_rows(body);
  put_text(body, "options"), PUT(body, "\x80");
  put_text(body, "message_id"), put_id(body);
  put_text(body, "message_timestamp"), put_u32(body, 0xce, 1700000000);
}

/* `shape` is "ROWS" or "ROWSxCOLUMNS". */
static void make_bodies(enum kind kind, const char *shape, const char *queue, const char *reply_to) {
  char *end;
  rows_per_job = strtoul(shape, &end, 10);
  columns = *end == 'x' ? strtoul(end + 1, &end, 10) : COLUMNS;
  if (*end != 0 || rows_per_job == 0 || columns < CLASSES) fail("%s is no number of rows", shape);
  size_t row_bytes = columns * sizeof(float);
  body_count = rows_per_job == 1 && columns <= COLUMNS ? ROWS : 8;
  for (size_t i = 0; i < body_count; i++) {
    bodies[i] = (struct body){.bytes = {0, malloc(2048 + rows_per_job * row_bytes)}, .first_row = i * (ROWS / body_count)};
    if (!bodies[i].bytes.bytes) fail("no memory");
    if (kind == CELERY) make_celery(&bodies[i]);
    else if (kind == DRAMATIQ) make_dramatiq(&bodies[i], queue, reply_to);
    else make_inferq(&bodies[i]);
  }
}

static amqp_bytes_t body_of(uint64_t job, const char *id) {
  struct body *body = &bodies[job % body_count];
  for (size_t i = 0; i < body->id_count; i++) memcpy((char *)body->bytes.bytes + body->ids[i], id, ID_BYTES);
  return body->bytes;
}

static int publish(amqp_connection_state_t connection, enum kind kind, uint64_t job, amqp_bytes_t queue,
                   amqp_bytes_t reply_to) {
  char id[ID_BYTES + 1];
  snprintf(id, sizeof id, "%016lx", (unsigned long)job);
  amqp_bytes_t id_bytes = amqp_cstring_bytes(id);
  amqp_field_value_t id_text = {AMQP_FIELD_KIND_UTF8, {.bytes = id_bytes}};
  amqp_table_entry_t headers[] = {
      {amqp_cstring_bytes("lang"), {AMQP_FIELD_KIND_UTF8, {.bytes = amqp_cstring_bytes("py")}}},
      {amqp_cstring_bytes("task"), {AMQP_FIELD_KIND_UTF8, {.bytes = amqp_cstring_bytes("predict")}}},
      {amqp_cstring_bytes("id"), id_text},
      {amqp_cstring_bytes("root_id"), id_text},
      {amqp_cstring_bytes("retries"), {AMQP_FIELD_KIND_I32, {.i32 = 0}}},
  };
  amqp_basic_properties_t properties = {
      ._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG |
                AMQP_BASIC_REPLY_TO_FLAG,
      .content_type = amqp_cstring_bytes(kind == CELERY ? "application/x-msgpack" : "application/msgpack"),
      .delivery_mode = 1,
      .correlation_id = id_bytes,
      .reply_to = reply_to,
  };
  if (kind == CELERY) {
    properties._flags |= AMQP_BASIC_CONTENT_ENCODING_FLAG | AMQP_BASIC_HEADERS_FLAG;
    properties.content_encoding = amqp_cstring_bytes("binary");
    properties.headers = (amqp_table_t){sizeof headers / sizeof *headers, headers};
  }
  return amqp_basic_publish(connection, CHANNEL, amqp_empty_bytes, queue, 1, 0, &properties, body_of(job, id));
}

/* --- Answers --- */

static uint64_t id_of(const struct message *reply) {
  amqp_bytes_t correlation_id = reply->properties->correlation_id;
  char text[ID_BYTES + 1] = "";
  if (correlation_id.len != ID_BYTES) fail("an answer to nothing");
  memcpy(text, correlation_id.bytes, ID_BYTES);
  return strtoull(text, NULL, 16);
}

static bool is_ok(enum kind kind, const struct message *reply) {
  if (kind == CELERY) return memmem(reply->body.bytes, reply->body.len, "\xa7SUCCESS", 8) != NULL;
  const amqp_table_t *headers = &reply->properties->headers;
  bool status_ok = false;
  for (int i = 0; i < headers->num_entries; i++)
    status_ok |= same(headers->entries[i].key, "inferq-status") && same(headers->entries[i].value.value.bytes, "OK");
  return status_ok && same(reply->properties->type, "inferq.result");
}

/* The probabilities of all rows of the job, in the order of its rows. */
static void check_answer(enum kind kind, const struct message *reply, uint64_t job) {
  if (kind == ECHO) return;
  uint8_t head[5];
  size_t bytes = rows_per_job * ANSWER_BYTES, head_bytes = bin_head(head, bytes);
  const char *found = memmem(reply->body.bytes, reply->body.len, head, head_bytes);
  const char *end = (const char *)reply->body.bytes + reply->body.len;
  if (!is_ok(kind, reply) || !found || (size_t)(end - found) < head_bytes + bytes)
    fail("job %lu was not answered with %zu rows of probabilities: %.*s", (unsigned long)job, rows_per_job,
         (int)(reply->body.len < 400 ? reply->body.len : 400), (char *)reply->body.bytes);
  size_t first_row = bodies[job % body_count].first_row;
  for (size_t row = 0; row < rows_per_job; row++) {
    float classes[CLASSES];
    memcpy(classes, found + head_bytes + row * ANSWER_BYTES, ANSWER_BYTES);
    for (int i = 0; i < CLASSES; i++)
      if (!(fabsf(classes[i] - answers[(first_row + row) % ROWS][i]) <= 1e-5f))
        fail("job %lu: row %zu got another answer than its own", (unsigned long)job, row);
  }
}
