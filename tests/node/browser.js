// Looks at a worker's page as a person would, in headless Chromium, and tells what it saw.
//
//     node browser.js URL
//
// A line of JSON on standard input, `{"until": TEXT, "scheme": "light" | "dark", "width": PIXELS, "picture": FILE?}`, is
// answered by one once the page shows the text. It ends with its standard input.

const fs = require("node:fs");
const readline = require("node:readline");
const { chromium } = require("playwright-core");

const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const PATIENCE = 60_000;
const QUIET = [
  "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
  "--disable-sync", "--disable-dev-shm-usage",
];

// What stands in the page, as a reader would take it down.
function read() {
  const facts = (list) => Object.fromEntries([...list.querySelectorAll("div")].map((fact) => [
    fact.querySelector("dt").textContent, fact.querySelector("dd").innerText.replace(/\s+/g, " "),
  ]));
  return {
    title: document.title,
    state: document.getElementById("state").innerText,
    text: document.body.innerText,
    total: facts(document.getElementById("total")),
    broker: facts(document.getElementById("broker")),
    models: Object.fromEntries([...document.querySelectorAll("article")].map((card) => [
      card.querySelector("h3").textContent, facts(card.querySelector("dl")),
    ])),
    background: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    fits: document.documentElement.scrollWidth <= document.documentElement.clientWidth,
  };
}

// Whether a script that somebody else has put into the page is run.
async function runsOthers() {
  const script = document.createElement("script");
  script.textContent = "window.other = true";
  document.body.append(script);
  script.remove();
  return window.other === true;
}

async function main(url) {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: QUIET, chromiumSandbox: false });
  const page = await browser.newPage();
  const [requests, faults] = [new Set(), []];
  page.on("request", (request) => requests.add(request.url()));
  page.on("pageerror", (error) => faults.push(error.message));
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  await page.goto(url);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { until, scheme, width, picture } = JSON.parse(line);
    await page.emulateMedia({ colorScheme: scheme });
    await page.setViewportSize({ width, height: 900 });
    await page.waitForFunction((text) => document.body.innerText.includes(text), until, { timeout: PATIENCE });
    const seen = await page.evaluate(read);
    if (picture) await page.screenshot({ path: picture, fullPage: true });
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => window.axe.run());
    const barriers = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(", ")}`);
    console.log(JSON.stringify({ ...seen, barriers, requests: [...requests], faults: faults.splice(0) }));
  }
  console.log(JSON.stringify({ runsOthers: await page.evaluate(runsOthers) }));
  await browser.close();
}

main(process.argv[2]).catch((error) => {
  console.error(error);
  process.exit(1);
});
