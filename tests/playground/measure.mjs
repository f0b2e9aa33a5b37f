// Page weight, time to interactive on a slowed CPU, and memory after a hundred turns, as JSON.
//   node measure.mjs URL CHROMIUM
import { chromium } from "playwright-core";

const [url, executablePath] = process.argv.slice(2);
const TURNS = 100;
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--enable-precise-memory-info", "--js-flags=--expose-gc"] });

/** Bytes over the network and when the question can be written, at a CPU slowed by `rate`. */
async function load(rate) {
  const context = await browser.newContext();
  const page = await context.newPage();
  const session = await context.newCDPSession(page);
  await session.send("Network.enable");
  await session.send("Emulation.setCPUThrottlingRate", { rate });
  const files = new Map();
  let bytes = 0;
  session.on("Network.responseReceived", ({ requestId, response }) => files.set(requestId, response.url));
  session.on("Network.loadingFinished", ({ encodedDataLength }) => { bytes += encodedDataLength; });
  await page.goto(url);
  await page.waitForFunction(() => document.activeElement?.id === "question" && document.querySelector("#model-0 option"));
  const ms = await page.evaluate(() => performance.now());
  await page.waitForTimeout(1500);
  await context.close();
  return { cpu_slowed_by: rate, interactive_ms: Math.round(ms), files: files.size, bytes };
}

/** JavaScript's heap and the nodes of the page before and after many turns with an image each time. */
async function turns() {
  const page = await (await browser.newContext()).newPage();
  const session = await page.context().newCDPSession(page);
  await page.goto(url);
  await page.waitForSelector(".example img");
  const measure = async () => {
    await session.send("HeapProfiler.collectGarbage");
    const { metrics } = await session.send("Performance.getMetrics");
    const of = (name) => metrics.find((metric) => metric.name === name).value;
    return { heap_bytes: of("JSHeapUsedSize"), nodes: of("Nodes") };
  };
  await session.send("Performance.enable");
  const before = await measure();
  for (let turn = 0; turn < TURNS; turn += 1) {
    await page.fill("#question", `Question ${turn}`);
    await page.press("#question", "Enter");
    await page.waitForFunction((n) => document.querySelectorAll(".answer .after").length > n, turn);
  }
  const after = await measure();
  const began = performance.now();
  await page.reload();
  await page.waitForFunction((n) => document.querySelectorAll(".answer .after").length === n, TURNS);
  return { turns: TURNS, before, after, reload_ms: Math.round(performance.now() - began) };
}

const median = async (rate) => {
  const runs = [];
  for (let run = 0; run < 3; run += 1) runs.push(await load(rate));
  return runs.sort((a, b) => a.interactive_ms - b.interactive_ms)[1];
};
console.log(JSON.stringify({ browser: browser.version(), loads: [await median(1), await median(4)], memory: await turns() }, null, 1));
await browser.close();
