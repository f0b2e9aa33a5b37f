// What scenarios do again and again.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import AxeBuilder from "@axe-core/playwright";
import { onTheWay } from "./unguarded.mjs";

/** Until a model can be asked; answers are then greedy, so that scenarios can compare them. */
export async function ready(page) {
  await page.waitForFunction(() => document.querySelector("#model-0 option"));
  await page.evaluate(() => { document.querySelector("#temperature").value = "0"; });
}

export async function upload(page, ...files) {
  const before = await page.locator("#images .shot").count();
  await page.setInputFiles("#file", files);
  await page.waitForFunction((n) => document.querySelectorAll("#images .shot").length === n, before + files.length);
}

export async function send(page, question) {
  if (question !== undefined) await page.fill("#question", question);
  await page.press("#question", "Enter");
}

export const finished = (page) =>
  page.waitForFunction(() => document.querySelector(".answer .after")
    && !document.querySelector(".answer[aria-busy=true]"), null, { timeout: 90_000 });

export async function ask(page, question) {
  await send(page, question);
  await finished(page);
  return page.locator(".turn").last().locator(".said").allInnerTexts();
}

export const FIRST_LOOK = 120_000;  // it also loads the model

/** Point at the word `text` of the last answer, or touch it. */
export async function pointAt(page, text, touch = false) {
  const box = await page.evaluate((word) => {
    const said = [...document.querySelectorAll(".said")].at(-1);
    said.scrollIntoView({ block: "center" });
    const walker = document.createTreeWalker(said, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const at = walker.currentNode.data.search(new RegExp(`\\b${word}\\b`, "i"));
      if (at < 0) continue;
      const range = document.createRange();
      range.setStart(walker.currentNode, at);
      range.setEnd(walker.currentNode, at + word.length);
      const { x, y, width, height } = range.getBoundingClientRect();
      return { x: x + width / 2, y: y + height / 2 };
    }
    return null;
  }, text);
  assert.ok(box, `“${text}” is in the answer`);
  if (touch) {
    await page.mouse.click(box.x, box.y);
    return;
  }
  await page.mouse.move(box.x - 3, box.y);
  await page.mouse.move(box.x, box.y);
}

/** Until that word is lit. */
export const lit = (page, word) => page.waitForFunction((text) => document.querySelector("canvas.heat")
  && document.querySelector("#heat-word").textContent.toLowerCase() === `“${text}”`, word.toLowerCase(), { timeout: FIRST_LOOK });

/** Measures of the last turn's answers: name to text. */
export const measures = (page) => page.locator(".turn").last().locator(".answer").evaluateAll((answers) =>
  answers.map((answer) => Object.fromEntries([...answer.querySelectorAll(".metrics div")].map((row) =>
    [row.querySelector("dt").textContent, row.querySelector("dd").textContent]))));

/** No serious or critical fault that axe can find. */
export async function accessible(page, where) {
  const { violations } = await new AxeBuilder({ page }).analyze();
  const serious = violations.filter((fault) => ["serious", "critical"].includes(fault.impact));
  assert.deepEqual(serious.map((fault) => `${where}: ${fault.id}: ${fault.nodes[0].html}`), []);
}

/** A DataTransfer in the page that carries a file. */
export async function carrying(page, path, type) {
  const content = (await readFile(path)).toString("base64");
  return page.evaluateHandle(([data, kind]) => {
    const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "given.png", { type: kind }));
    return transfer;
  }, [content, type]);
}

/** Change the body of chat requests on their way, as another client could send them. */
export async function withFields(page, fields) {
  if (page.unguarded) onTheWay.fields = fields;
  else await page.route("**/v1/chat/completions", (route) => {
    const body = { ...route.request().postDataJSON(), ...fields };
    return route.continue({ postData: JSON.stringify(body) });
  });
}

/** Keep the bodies of chat requests. */
export function watchBodies(page) {
  const bodies = [];
  if (page.unguarded) onTheWay.bodies.push(bodies);
  else page.on("request", (request) => {
    if (request.url().endsWith("/v1/chat/completions")) bodies.push(request.postDataJSON());
  });
  return bodies;
}

/** Nothing is wider than the screen, and the composer and an open dialog are within it. */
export async function fits(page, where) {
  const { clientWidth, wide, high, room } = await page.evaluate(() => {
    const root = document.documentElement;
    const inner = document.querySelector("dialog[open]") ?? document.querySelector("#composer");
    return { clientWidth: root.clientWidth, wide: Math.max(root.scrollWidth, inner.scrollWidth), high: inner.getBoundingClientRect().height, room: window.innerHeight };
  });
  assert.ok(wide <= clientWidth + 1, `${where}: ${wide} px wide in ${clientWidth}`);
  assert.ok(high <= room, `${where}: ${high} px high in ${room}`);
}

/** WCAG 1.4.11: the edge, or else the ground, of every control against what it lies on, 3:1. */
export async function contrastOfControls(page, where) {
  const low = await page.evaluate(() => {
    const read = (text) => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return { r, g, b, a }; };
    const light = ({ r, g, b }) => [r, g, b].map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
      .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
    const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((m, n) => n - m); return (x + 0.05) / (y + 0.05); };
    const ground = (node) => {
      for (let at = node; at; at = at.parentElement) { const colour = read(getComputedStyle(at).backgroundColor); if (colour.a === 1) return colour; }
      return { r: 255, g: 255, b: 255, a: 1 };
    };
    const root = document.querySelector("dialog[open]") ?? document.body;
    return [...root.querySelectorAll("button, input:not([type=checkbox], [type=range]), select, textarea")]
      .filter((node) => node.checkVisibility() && !node.disabled && !node.matches(".chat, .composer #question, .skip"))
      .map((node) => {
        const style = getComputedStyle(node), behind = ground(node.parentElement);
        return { name: node.id || node.textContent || node.className, best: Math.max(ratio(read(style.borderTopColor), behind), ratio(ground(node), behind)) };
      }).filter(({ best }) => best < 3).map(({ name, best }) => `${name}: ${best.toFixed(2)}`);
  });
  assert.deepEqual(low, [], where);
}
