// A producer on AMQP 1.0: sends one job of each kind, prints what is answered as one line of JSON each.
//
//   node amqp10.js HOST PORT USER PASSWORD EXCHANGE MODEL REPLY_QUEUE
"use strict";

const rhea = require("rhea");
const { encode } = require("@msgpack/msgpack");

const [host, port, username, password, exchange, model, queue] = process.argv.slice(2);
const address = `/queues/${encodeURIComponent(queue)}`;
const input = { name: "x", datatype: "FP32", shape: [1, 4], data: [1, 2, 3, 4] };
const json = JSON.stringify({ inputs: [input] });
const packed = Buffer.from(encode({ inputs: [{ ...input, data: Buffer.from(Float32Array.of(1, 2, 3, 4).buffer) }] }));
const data = (bytes) => rhea.message.data_section(Buffer.from(bytes));
const wanted = { "inferq-timing": true, "inferq-deadline": rhea.types.wrap_double(Date.now() + 3600e3 + 0.5) };

const jobs = {
  "json in a data section": { content_type: "application/json", body: data(json) },
  "json as a string": { content_type: "application/json", body: json },
  "json as binary": { content_type: "application/json", body: Buffer.from(json) },
  "json in two data sections": {
    content_type: "application/json",
    body: rhea.message.data_sections([Buffer.from(json.slice(0, 9)), Buffer.from(json.slice(9))]),
  },
  "msgpack in a data section": { content_type: "application/msgpack", body: data(packed) },
  "msgpack as binary": { content_type: "application/msgpack", body: packed },
  "with headers": { content_type: "application/json", body: data(json), application_properties: wanted },
  "with a number for its id": { content_type: "application/json", body: data(json), correlation_id: 7 },
  "with a uuid for its id": {
    content_type: "application/json",
    body: data(json),
    correlation_id: rhea.types.wrap_uuid(Buffer.from("00112233445566778899aabbccddeeff", "hex")),
  },
  "a map": { content_type: "application/json", body: { inputs: [input] } },
  "a sequence": { content_type: "application/json", body: rhea.message.sequence_section([1, 2]) },
};

const container = rhea.create_container();
const connection = container.connect({ host, port: Number(port), username, password, reconnect: false });
connection.open_receiver({ source: { address }, credit_window: 100 });
const sender = connection.open_sender({ target: { address: `/exchanges/${exchange}/${model}` } });

let left = Object.keys(jobs).length;
sender.once("sendable", () => {
  for (const [name, job] of Object.entries(jobs)) {
    sender.send({ correlation_id: name, message_id: name, durable: true, reply_to: address, ...job });
  }
});
sender.on("released", () => fail("a job was not routed"));
sender.on("rejected", () => fail("a job was rejected"));
connection.on("message", ({ message }) => {
  const { correlation_id: id, message_id, content_type, application_properties: headers } = message;
  const body = Buffer.from(message.body.content);
  const reply = { name: message_id, id: Buffer.isBuffer(id) ? id.toString("hex") : id, content_type, headers };
  console.log(JSON.stringify({ ...reply, body: body.toString("base64") }));
  left -= 1;
  if (left === 0) connection.close();
});
for (const event of ["connection_error", "receiver_error", "sender_error", "session_error", "disconnected"]) {
  container.on(event, (context) => {
    if (left > 0) fail(`${event}: ${context.error || context.connection.error || context.receiver?.error || context.sender?.error}`);
  });
}

function fail(reason) {
  console.error(reason);
  process.exit(1);
}
