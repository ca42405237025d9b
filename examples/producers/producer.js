// Sends images of digits as jobs with amqplib, many at a time, and says how many were recognised.
//
//     AMQP_URI=amqp://guest:guest@127.0.0.1:5672/%2f node producer.js images.npy labels.npy

const { randomUUID } = require("node:crypto");
const { readFileSync } = require("node:fs");
const amqp = require("amqplib");
const { decode, encode } = require("@msgpack/msgpack");

const DEADLINE_MS = 30_000;
const PIXELS = 64;

async function main(imagesPath, labelsPath) {
  const images = new Float32Array(data(imagesPath));
  const labels = new BigInt64Array(data(labelsPath));
  const client = await connect(process.env.AMQP_URI);
  const rows = Array.from(labels, (_, row) => images.subarray(row * PIXELS, (row + 1) * PIXELS));
  const answers = await Promise.all(rows.map((row) => client.predict("digits", row)));
  const right = answers.filter((answer, row) => largest(answer) === Number(labels[row])).length;
  console.log(`${right} of ${labels.length} digits recognised`);
  await client.close();
}

async function connect(uri) {
  const connection = await amqp.connect(uri);
  const channel = await connection.createConfirmChannel();
  const { queue: replies } = await channel.assertQueue("", { exclusive: true });
  const waiting = new Map();

  // What no queue wants comes back before it is confirmed.
  channel.on("return", ({ properties }) => settle(properties.messageId, (call) => call.reject(new Error("no such model"))));
  await channel.consume(
    replies,
    ({ properties, content }) => {
      const status = properties.headers["inferq-status"];
      const body = decode(content);
      settle(properties.correlationId, (call) => {
        if (status === "OK") call.resolve(body.outputs[0].data);
        else call.reject(new Error(`${status}: ${body.error}`));
      });
    },
    { noAck: true },
  );

  // A second copy finds nobody: at least once means that it can happen.
  function settle(job, how) {
    const call = waiting.get(job);
    waiting.delete(job);
    if (call) {
      clearTimeout(call.timer);
      how(call);
    }
  }

  function predict(model, row) {
    return new Promise((resolve, reject) => {
      const job = randomUUID();
      const late = () => settle(job, (call) => call.reject(new Error(`no answer within ${DEADLINE_MS} ms`)));
      waiting.set(job, { resolve, reject, timer: setTimeout(late, DEADLINE_MS) });
      const bytes = new Uint8Array(row.buffer, row.byteOffset, row.byteLength);
      const tensor = { name: "input", datatype: "FP32", shape: [1, row.length], data: bytes };
      const options = {
        contentType: "application/msgpack",
        replyTo: replies,
        messageId: job,
        correlationId: job,
        mandatory: true,
        headers: { "inferq-deadline": Date.now() + DEADLINE_MS },
      };
      const refused = (error) => error && settle(job, (call) => call.reject(error));
      channel.publish("inferq", model, Buffer.from(encode({ inputs: [tensor] })), options, refused);
    });
  }

  return { predict, close: () => connection.close() };
}

// The elements of a .npy file in the byte order of nearly every machine.
function data(path) {
  const file = readFileSync(path);
  const start = 10 + file.readUInt16LE(8);
  return file.buffer.slice(file.byteOffset + start, file.byteOffset + file.length);
}

function largest(bytes) {
  // A copy of their own, since they lie somewhere in the message.
  const values = new Float32Array(Uint8Array.from(bytes).buffer);
  return values.indexOf(Math.max(...values));
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
