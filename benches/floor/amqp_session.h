/* What the echo worker and the load generator share: a connection with one channel, and messages read frame by frame.
 *
 * On librabbitmq alone. Whatever goes wrong ends the process with one sentence: a benchmark that went wrong has no
 * figures. */
#pragma once

#include <amqp.h>
#include <amqp_framing.h>
#include <amqp_tcp_socket.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>

enum { CHANNEL = 1, FRAME_BYTES_MAX = 131072 };

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(1);
}

static inline void check(amqp_connection_state_t connection, const char *what) {
  amqp_rpc_reply_t reply = amqp_get_rpc_reply(connection);
  if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION)
    fail("%s: %s", what, amqp_error_string2(reply.library_error));
  if (reply.reply_type != AMQP_RESPONSE_NORMAL) fail("%s: the broker refuses", what);
}

static inline void open_channel(amqp_connection_state_t connection) {
  amqp_channel_open(connection, CHANNEL);
  check(connection, "channel");
}

static inline amqp_connection_state_t open_connection(const char *uri) {
  char *parts = strdup(uri);
  struct amqp_connection_info info;
  if (amqp_parse_url(parts, &info) != AMQP_STATUS_OK) fail("that is no AMQP URI");
  amqp_connection_state_t connection = amqp_new_connection();
  if (amqp_socket_open(amqp_tcp_socket_new(connection), info.host, info.port) != AMQP_STATUS_OK)
    fail("nobody listens on %s:%d", info.host, info.port);
  amqp_rpc_reply_t login = amqp_login(connection, info.vhost, 0, FRAME_BYTES_MAX, 0, AMQP_SASL_METHOD_PLAIN, info.user,
                                      info.password);
  if (login.reply_type != AMQP_RESPONSE_NORMAL) fail("the broker lets nobody in");
  free(parts);
  open_channel(connection);
  return connection;
}

static inline bool same(amqp_bytes_t bytes, const char *text) {
  return bytes.len == strlen(text) && memcmp(bytes.bytes, text, bytes.len) == 0;
}

/* A message, while it comes in and afterwards. Its bytes lie in the connection's pool until that is released. */
struct message {
  uint64_t tag;
  const amqp_basic_properties_t *properties;
  amqp_bytes_t body;
  uint64_t bytes_left;
  enum { NOTHING, METHOD, HEADER, COMPLETE } read;
};

/* Whether a frame has come; waits for one if told to. */
static inline bool next_frame(amqp_connection_state_t connection, bool wait, amqp_frame_t *frame) {
  struct timeval at_once = {0, 0};
  int status = amqp_simple_wait_frame_noblock(connection, frame, wait ? NULL : &at_once);
  if (status == AMQP_STATUS_TIMEOUT) return false;
  if (status != AMQP_STATUS_OK) fail("read: %s", amqp_error_string2(status));
  return true;
}

/* A body of one frame stays where it is. One of several is put together, in a buffer that the next one takes over. */
static inline void take_fragment(struct message *message, amqp_bytes_t fragment) {
  static char *whole;
  static size_t room, used;
  bool is_first = message->body.bytes == NULL;
  message->bytes_left -= fragment.len;
  if (is_first && message->bytes_left == 0) {
    message->body = fragment;
    return;
  }
  if (is_first) used = 0;
  if (used + fragment.len + message->bytes_left > room) {
    room = used + fragment.len + message->bytes_left;
    whole = realloc(whole, room);
    if (!whole) fail("no memory");
  }
  memcpy(whole + used, fragment.bytes, fragment.len);
  used += fragment.len;
  message->body = (amqp_bytes_t){used, whole};
}

/* Whether a whole delivery has come. Waits for none, but for the rest of one that has begun. */
static inline bool next_message(amqp_connection_state_t connection, struct message *message) {
  amqp_frame_t frame;
  *message = (struct message){.read = NOTHING};
  while (message->read != COMPLETE) {
    if (!next_frame(connection, message->read != NOTHING, &frame)) return false;
    if (frame.frame_type == AMQP_FRAME_METHOD && frame.payload.method.id == AMQP_BASIC_DELIVER_METHOD) {
      message->tag = ((amqp_basic_deliver_t *)frame.payload.method.decoded)->delivery_tag;
      message->read = METHOD;
    } else if (frame.frame_type == AMQP_FRAME_HEADER && message->read == METHOD) {
      message->properties = frame.payload.properties.decoded;
      message->bytes_left = frame.payload.properties.body_size;
      message->read = message->bytes_left == 0 ? COMPLETE : HEADER;
    } else if (frame.frame_type == AMQP_FRAME_BODY && message->read == HEADER) {
      take_fragment(message, frame.payload.body_fragment);
      if (message->bytes_left == 0) message->read = COMPLETE;
    } else {
      fail("the broker closes the consumer, or its channel");
    }
  }
  return true;
}

/* Notes one frame of a publishing channel. `open[i]` is whether message `i` of `count` waits for its confirm, message 0
 * has the tag `first`. Returns how many were confirmed. */
static inline size_t note_confirm(const amqp_frame_t *frame, uint64_t first, bool *open, size_t count) {
  if (frame->frame_type != AMQP_FRAME_METHOD || frame->payload.method.id != AMQP_BASIC_ACK_METHOD)
    fail("a message was returned or refused, or the channel closed: method %#x", frame->payload.method.id);
  const amqp_basic_ack_t *ack = frame->payload.method.decoded;
  size_t end = ack->delivery_tag - first + 1, confirmed = 0;
  if (ack->delivery_tag < first || end > count) fail("confirm %lu of nothing", (unsigned long)ack->delivery_tag);
  for (size_t i = ack->multiple ? 0 : end - 1; i < end; i++) {
    confirmed += open[i];
    open[i] = false;
  }
  return confirmed;
}

static inline double cpu_seconds(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
         1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}
