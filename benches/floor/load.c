/* Does the worker keep up, and does each job get its own answer, once?
 *
 *     load rows FILE                                       writes the 64 rows, for `ort_alone answers`
 *     load delete URI QUEUE...                             deletes the queues that a contestant has left, if they are there
 *     load URI QUEUE KIND ROWS ANSWERS closed SECONDS IN_FLIGHT
 *     load URI QUEUE KIND ROWS ANSWERS open SECONDS RATE [SEED]
 *     load URI QUEUE KIND ROWS ANSWERS fill JOBS
 *     load URI QUEUE KIND ROWS ANSWERS unread SECONDS RATE
 *
 * QUEUE is a name, or several with commas, which take turns. KIND says whose messages these are: echo, inferq, celery or
 * dramatiq (jobs.h). ROWS is the number of rows a job, or ROWSxCOLUMNS where a row has not 1000, and ANSWERS the file of the
 * 64 right answers. Jobs are published to the queue with a confirm, transient; answers go to an exclusive queue, and each is
 * checked: known id, answered once, the probabilities of its own rows.
 *
 * closed: keeps IN_FLIGHT jobs under way for SECONDS. open: sends RATE jobs a second at the times of a Poisson process,
 * the same for every contestant and the same SEED, however late the answers are; latency counts from the time at which a job was due and
 * not from when it could be sent, so that a stall is seen by every job that it held up. fill: sends all JOBS, says
 * "filled", and only then waits for answers, so that a worker may be started then. All wait for the last answer.
 * unread: as open, but answers go to a queue that takes ten messages, refuses all others, and is read by nobody.
 *
 * Prints {"jobs", "wall_seconds", "cpu_seconds", "answer_seconds"}, the last from the first answer to the last one, and in
 * open mode also {"mean_ms", "p50_ms", "p99_ms", "max_ms"}, {"round_trip_p50_ms"} from when the job was sent, and
 * {"late_p99_ms"} by how much it was sent too late; or one sentence and exits with 1. */
#define _GNU_SOURCE
#include <poll.h>
#include <sys/prctl.h>
#include <time.h>

#include "jobs.h"

enum { JOBS_MAX = 1 << 25, UNCONFIRMED_MAX = 1 << 17, QUEUE_WAIT_MS = 60000, SILENCE_MS = 60000, QUEUES_MAX = 128, UNREAD_MAX = 10 };

struct load {
  amqp_connection_state_t publishing, consuming;
  amqp_bytes_t queues[QUEUES_MAX], reply_to;
  size_t queue_count;
  enum kind kind;
  enum { CLOSED, OPEN, FILL, UNREAD } mode;
  uint64_t limit; /* Of jobs in flight, or in all when filling. */
  uint64_t random;
  double rate, next_due, until, first_answer, last_answer;
  uint64_t published, answered;
  uint64_t confirmed_below; /* All tags up to this one are confirmed. */
  bool unconfirmed[UNCONFIRMED_MAX];
  bool filled;
  uint8_t *seen;      /* A byte a job. */
  double *due, *sent; /* In open mode; when it is answered, what is left of them is the latency. */
};

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
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

static bool is_open(const struct load *load) {
  return load->mode == OPEN || load->mode == UNREAD;
}

/* Not simply in turn, so that every queue gets every body. */
static amqp_bytes_t queue_of(const struct load *load, uint64_t job) {
  return load->queues[(job + job / body_count) % load->queue_count];
}

static void publish_job(struct load *load) {
  if (load->published == JOBS_MAX) fail("more than %d jobs", JOBS_MAX);
  if (is_open(load)) {
    load->due[load->published] = load->next_due;
    load->sent[load->published] = now();
  }
  int status = publish(load->publishing, load->kind, load->published, queue_of(load, load->published), load->reply_to);
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

static void take_answers(struct load *load) {
  struct message reply;
  uint64_t before = load->answered;
  while (next_message(load->consuming, &reply)) {
    uint64_t id = id_of(&reply);
    if (id >= load->published || load->seen[id]++) fail("job %lu was answered twice, or never sent", (unsigned long)id);
    check_answer(load->kind, &reply, id);
    if (load->mode == OPEN) {
      double arrived = now();
      load->due[id] = arrived - load->due[id];
      load->sent[id] = arrived - load->sent[id];
    }
    load->answered++;
  }
  if (load->answered > before) load->last_answer = now();
  if (before == 0) load->first_answer = load->last_answer;
  amqp_maybe_release_buffers_on_channel(load->consuming, CHANNEL);
}

/* Exponential gaps, from a state that is never 0. */
static double next_gap(struct load *load) {
  load->random ^= load->random << 13, load->random ^= load->random >> 7, load->random ^= load->random << 17;
  return -log1p(-(double)(load->random >> 11) * 0x1p-53) / load->rate;
}

/* Whether a job is to be sent at this time. */
static bool is_due(struct load *load, double time) {
  if (load->published - load->confirmed_below == UNCONFIRMED_MAX) return false;
  switch (load->mode) {
    case CLOSED: return time < load->until && load->published - load->answered < load->limit;
    case OPEN:
    case UNREAD: return load->next_due < load->until && load->next_due <= time;
    case FILL: return load->published < load->limit;
  }
  return false;
}

static bool is_done(struct load *load, double time) {
  if (load->mode != UNREAD && load->answered < load->published) return false;
  if (load->confirmed_below < load->published) return false;
  switch (load->mode) {
    case CLOSED: return time >= load->until;
    case OPEN:
    case UNREAD: return load->next_due >= load->until;
    case FILL: return load->published == load->limit;
  }
  return true;
}

static void wait_for_more(struct load *load) {
  struct pollfd sockets[] = {{amqp_get_sockfd(load->publishing), POLLIN, 0},
                             {amqp_get_sockfd(load->consuming), POLLIN, 0}};
  double seconds = SILENCE_MS / 1e3;
  bool more_to_send = is_open(load) && load->next_due < load->until;
  if (more_to_send) seconds = fmin(seconds, fmax(load->next_due - now(), 0));
  struct timespec timeout = {(time_t)seconds, (long)(fmod(seconds, 1) * 1e9)};
  if (ppoll(sockets, 2, &timeout, NULL) == 0 && !more_to_send)
    fail("%lu of %lu jobs are not answered", (unsigned long)(load->published - load->answered),
         (unsigned long)load->published);
}

static void run(struct load *load) {
  while (!is_done(load, now())) {
    bool sent = false;
    for (int i = 0; i < 1000 && is_due(load, now()); i++) {
      publish_job(load);
      if (is_open(load)) load->next_due += next_gap(load);
      sent = true;
    }
    uint64_t before = load->answered + load->confirmed_below;
    take_confirms(load);
    take_answers(load);
    if (load->mode == FILL && !load->filled && load->confirmed_below == load->limit) {
      load->filled = true;
      puts("filled");
      fflush(stdout);
    }
    if (!sent && load->answered + load->confirmed_below == before) wait_for_more(load);
  }
}

static int by_size(const void *a, const void *b) {
  double first = *(const double *)a, second = *(const double *)b;
  return (first > second) - (first < second);
}

static double quantile_ms(double *seconds, uint64_t count, double share) {
  qsort(seconds, count, sizeof *seconds, by_size);
  return 1e3 * seconds[(uint64_t)(share * (double)(count - 1))];
}

static double mean_ms(const double *seconds, uint64_t count) {
  double sum = 0;
  for (uint64_t i = 0; i < count; i++) sum += seconds[i];
  return 1e3 * sum / (double)count;
}

/* By how much a job was sent too late is the difference of its latencies. */
static void print_latencies(double *since_due, double *since_sent, uint64_t count) {
  double *late = malloc(count * sizeof *late);
  if (!late) fail("no memory");
  for (uint64_t i = 0; i < count; i++) late[i] = since_due[i] - since_sent[i];
  printf(", \"mean_ms\": %.4f, \"p50_ms\": %.4f, \"p99_ms\": %.4f, \"max_ms\": %.4f", mean_ms(since_due, count),
         quantile_ms(since_due, count, 0.5), quantile_ms(since_due, count, 0.99), quantile_ms(since_due, count, 1));
  printf(", \"round_trip_p50_ms\": %.4f, \"late_p99_ms\": %.4f", quantile_ms(since_sent, count, 0.5),
         quantile_ms(late, count, 0.99));
}

static void write_rows(const char *path) {
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(rows, sizeof rows, 1, file) != 1 || fclose(file) != 0) fail("%s cannot be written", path);
}

static void delete_queues(const char *uri, char **queues, int count) {
  amqp_connection_state_t connection = open_connection(uri);
  for (int i = 0; i < count; i++) {
    amqp_queue_delete(connection, CHANNEL, amqp_cstring_bytes(queues[i]), 0, 0);
    check(connection, "delete");
  }
}

static void parse(struct load *load, int count, char **arguments) {
  const char *const usage = "usage: load URI QUEUE KIND ROWS ANSWERS closed SECONDS IN_FLIGHT | open SECONDS RATE [SEED] | fill JOBS "
                            "| unread SECONDS RATE";
  if (count < 8) fail("%s", usage);
  for (char *name = strtok(strdup(arguments[2]), ","); name; name = strtok(NULL, ",")) {
    if (load->queue_count == QUEUES_MAX) fail("more than %d queues", QUEUES_MAX);
    load->queues[load->queue_count++] = amqp_cstring_bytes(name);
  }
  if (load->queue_count == 0) fail("%s", usage);
  while (strcmp(KINDS[load->kind], arguments[3]) != 0)
    if (++load->kind > DRAMATIQ) fail("%s", usage);
  const char *mode = arguments[6];
  if (strcmp(mode, "fill") == 0 && count == 8) {
    load->mode = FILL;
    load->limit = strtoul(arguments[7], NULL, 10);
    if (load->limit > UNCONFIRMED_MAX) fail("at most %d jobs", UNCONFIRMED_MAX);
    return;
  }
  load->mode = strcmp(mode, "open") == 0 ? OPEN : strcmp(mode, "unread") == 0 ? UNREAD : CLOSED;
  if (count != 9 && !(load->mode == OPEN && count == 10)) fail("%s", usage);
  load->random = 88172645463325252u + 0x9e3779b97f4a7c15u * (count == 10 ? strtoul(arguments[9], NULL, 10) : 0);
  load->limit = strtoul(arguments[8], NULL, 10);
  load->rate = strtod(arguments[8], NULL);
  load->until = strtod(arguments[7], NULL);
}

int main(int count, char **arguments) {
  static struct load load;
  make_rows();
  if (count == 3 && strcmp(arguments[1], "rows") == 0) {
    write_rows(arguments[2]);
    return 0;
  }
  if (count >= 4 && strcmp(arguments[1], "delete") == 0) {
    delete_queues(arguments[2], arguments + 3, count - 3);
    return 0;
  }
  parse(&load, count, arguments);
  read_answers(arguments[5]);
  prctl(PR_SET_TIMERSLACK, 1);
  load.seen = calloc(JOBS_MAX, 1);
  load.due = calloc(JOBS_MAX, sizeof *load.due);
  load.sent = calloc(JOBS_MAX, sizeof *load.sent);
  if (!load.seen || !load.due || !load.sent) fail("no memory");

  load.publishing = open_connection(arguments[1]);
  load.consuming = open_connection(arguments[1]);
  for (size_t i = 0; i < load.queue_count; i++) await_queue(load.publishing, load.queues[i]);
  amqp_confirm_select(load.publishing, CHANNEL);
  check(load.publishing, "confirms");
  amqp_table_entry_t refuses[] = {
      {amqp_cstring_bytes("x-max-length"), {AMQP_FIELD_KIND_I32, {.i32 = UNREAD_MAX}}},
      {amqp_cstring_bytes("x-overflow"), {AMQP_FIELD_KIND_UTF8, {.bytes = amqp_cstring_bytes("reject-publish")}}},
  };
  amqp_table_t arguments_of_replies = {load.mode == UNREAD ? 2 : 0, refuses};
  amqp_queue_declare_ok_t *replies =
      amqp_queue_declare(load.consuming, CHANNEL, amqp_empty_bytes, 0, 0, 1, 1, arguments_of_replies);
  check(load.consuming, "queue of the answers");
  load.reply_to = amqp_bytes_malloc_dup(replies->queue);
  if (load.mode != UNREAD) {
    amqp_basic_consume(load.consuming, CHANNEL, load.reply_to, amqp_empty_bytes, 0, 1, 1, amqp_empty_table);
    check(load.consuming, "consume");
  }
  make_bodies(load.kind, arguments[4], arguments[2],
              strndup(load.reply_to.bytes, load.reply_to.len));

  double began = now(), cpu = cpu_seconds();
  load.until += began;
  load.next_due = began;
  run(&load);
  printf("{\"jobs\": %lu, \"wall_seconds\": %.6f, \"cpu_seconds\": %.6f, \"answer_seconds\": %.6f",
         (unsigned long)load.answered, now() - began, cpu_seconds() - cpu, load.last_answer - load.first_answer);
  if (load.mode == OPEN && load.answered > 0) print_latencies(load.due, load.sent, load.answered);
  puts("}");
}
