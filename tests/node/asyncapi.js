// Says what is amiss with an AsyncAPI document, by the parser that the makers of AsyncAPI publish.
//
//     node asyncapi.js FILE

const { fromFile, Parser } = require("@asyncapi/parser");

const HINT = 2; // Below it are errors and warnings.

fromFile(new Parser(), process.argv[2])
  .parse()
  .then(({ document, diagnostics }) => {
    const faults = diagnostics.filter(({ severity }) => severity < HINT);
    for (const { path, message } of faults) console.error(`${path.join(".")}: ${message}`);
    if (faults.length > 0 || !document) process.exit(1);
    const messages = document.allMessages().all().map((message) => message.id());
    console.log(messages.sort().join("\n"));
  });
