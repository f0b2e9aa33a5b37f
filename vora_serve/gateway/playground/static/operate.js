// The operator's page: the gateway's own metrics, read again every few seconds.
import { getMetrics, key } from "./api.js";
import { $, announce, bytes, h, number } from "./dom.js";
import { by, named, parse, quantile, since, total } from "./exposition.js";
import { line } from "./sparkline.js";

const EVERY_MS = 2000;
const WINDOW = 150;  // readings: five minutes
const P = "vora_gateway_";
const readings = [];
let timer = null;

const ms = (seconds) => (seconds === null ? "–" : seconds < 10 ? `${number(seconds * 1000, seconds < 0.01 ? 1 : 0)} ms` : `${number(seconds, 1)} s`);
const rate = (count, seconds) => number(count / seconds, count / seconds < 10 ? 2 : 0);

function fill(id, rows, empty) {
  $(id).replaceChildren(...(rows.length ? rows.map((cells) => h("tr", {}, h("th", { scope: "row", text: String(cells[0]) }),
    ...cells.slice(1).map((cell) => h("td", cell instanceof Node ? {} : { text: String(cell) }, cell instanceof Node ? cell : null)))) : [h("tr", {}, h("td", { class: "hint", colspan: "6", text: empty }))]));
}

function state(word, good) {
  return h("span", { class: good ? "good" : "bad", text: `${good ? "●" : "▲"} ${word}` });
}

function engines(now, grown, seconds) {
  fill("engines", named(now, `${P}upstream_up`).map(({ labels: { upstream }, value }) => {
    const open = total(now, `${P}upstream_breaker_open`, { upstream }) > 0;
    const outcomes = named(grown, `${P}upstream_requests_total`, { upstream });
    const failed = outcomes.filter(({ labels }) => labels.outcome !== "ok").reduce((sum, each) => sum + each.value, 0);
    return [upstream, state(value ? (open ? "breaker open" : "up") : "down", value > 0 && !open),
      number(total(now, `${P}upstream_requests_in_flight`, { upstream })),
      rate(outcomes.reduce((sum, each) => sum + each.value, 0), seconds), number(failed)];
  }), "No engine is configured.");
}

function tenants(now, grown, seconds) {
  const tokens = (kind, name) => total(grown, `${P}tokens_total`, { kind, key: name });
  fill("tenants", by(now, `${P}requests_total`, "key").map(([name]) => {
    const failed = named(grown, `${P}requests_total`, { key: name }).filter(({ labels }) => Number(labels.status) >= 400).reduce((sum, each) => sum + each.value, 0);
    return [name || "(none)", rate(total(grown, `${P}requests_total`, { key: name }), seconds), rate(tokens("prompt", name), seconds),
      rate(tokens("completion", name), seconds), number(failed)];
  }), "No request yet.");
}

function facts(now, grown, seconds) {
  const all = total(grown, `${P}requests_total`);
  const p = (name, share) => ms(quantile(grown, `${P}${name}`, share));
  const both = (name) => `${p(name, 0.5)} / ${p(name, 0.95)}`;
  const images = total(grown, `${P}images_total`);
  const list = (id, rows) => $(id).replaceChildren(...rows.map(([name, value]) => h("div", {}, h("dt", { text: name }), h("dd", { text: value }))));
  list("now", [["requests/s", rate(all, seconds)], ["in flight", number(total(now, `${P}requests_in_flight`))], ["waiting", number(total(now, `${P}requests_queued`))],
    ["tokens out/s", rate(total(grown, `${P}tokens_total`, { kind: "completion" }), seconds)], ["refused", number(total(grown, `${P}refused_total`))]]);
  list("latency", [["whole request", both("request_duration_seconds")], ["first token", both("time_to_first_token_seconds")], ["between tokens", both("inter_token_seconds")],
    ["wait for a place", both("queue_duration_seconds")], ["gateway’s own", both("overhead_seconds")]]);
  list("image-path", [["images/s", rate(images, seconds)], ["bytes of one", images ? bytes(total(grown, `${P}image_bytes_total`) / images) : "–"],
    ["megapixels of one", images ? number(total(grown, `${P}image_pixels_total`) / images / 1e6, 2) : "–"],
    ["fetch", both("image_fetch_duration_seconds")], ["decode", both("image_decode_duration_seconds")],
    ["pages of files/s", rate(total(grown, `${P}file_pages_total`), seconds)]]);
}

function charts() {
  const steps = readings.slice(1).map((reading, index) => {
    const grown = since(reading.samples, readings[index].samples), seconds = (reading.at - readings[index].at) / 1000;
    return { requests: total(grown, `${P}requests_total`) / seconds, tokens: total(grown, `${P}tokens_total`, { kind: "completion" }) / seconds,
      waiting: total(reading.samples, `${P}requests_queued`), errors: total(grown, `${P}refused_total`) / seconds };
  });
  for (const [name, title] of [["requests", "Requests per second"], ["tokens", "Tokens out per second"], ["waiting", "Requests waiting"], ["errors", "Refused per second"]]) {
    $(`chart-${name}`).replaceChildren(h("h3", { text: title }), line(steps.map((step) => step[name]), title));
  }
}

function show() {
  const last = readings.at(-1), first = readings[Math.max(0, readings.length - 1 - 30)];
  if (last === first) return;
  const seconds = (last.at - first.at) / 1000, grown = since(last.samples, first.samples);
  engines(last.samples, grown, seconds);
  tenants(last.samples, grown, seconds);
  facts(last.samples, grown, seconds);
  fill("refused", by(last.samples, `${P}refused_total`, "cause").map(([cause, count]) => [cause, number(count), number(total(grown, `${P}refused_total`, { cause }))]), "Nothing was refused.");
  fill("statuses", by(last.samples, `${P}requests_total`, "status").map(([status, count]) => [status, number(count), number(total(grown, `${P}requests_total`, { status }))]), "No request yet.");
  charts();
  $("when").textContent = `As of ${new Date().toLocaleTimeString()}; rates and percentiles of the last ${number(seconds)} s`;
}

async function read() {
  clearTimeout(timer);
  try {
    const text = await getMetrics();
    readings.push({ at: performance.now(), samples: parse(text) });
    if (readings.length > WINDOW) readings.shift();
    $("fault").hidden = true;
    show();
  } catch (error) {
    const known = { 401: key.get() ? "This API key is not valid." : "Enter an API key with the scope “metrics”.", 403: "This key has no scope “metrics”. Ask for one that has it." };
    const text = known[error.status] ?? `${error.message} This page asks again by itself.`;
    if ($("fault").hidden || $("fault").textContent !== text) announce(text);
    $("fault").textContent = text;
    $("fault").hidden = false;
    $("key-row").hidden = false;
    if (known[error.status]) return;  // asking again would not change the answer
  }
  if (document.visibilityState === "visible") timer = setTimeout(read, readings.length < 2 ? 500 : EVERY_MS);
}

$("key").value = key.get();
$("key-form").addEventListener("submit", (event) => { event.preventDefault(); key.set($("key").value.trim()); read(); });
document.addEventListener("visibilitychange", () => { if (document.visibilityState === "visible") read(); });
read();
