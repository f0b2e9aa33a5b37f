// What scenarios do again and again.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import AxeBuilder from "@axe-core/playwright";

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
  page.waitForFunction(() => document.querySelector(".answer")
    && !document.querySelector(".answer[aria-busy=true]"), null, { timeout: 90_000 });

export async function ask(page, question) {
  await send(page, question);
  await finished(page);
  return page.locator(".turn").last().locator(".said").allInnerTexts();
}

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
export const withFields = (page, fields) => page.route("**/v1/chat/completions", (route) => {
  const body = { ...route.request().postDataJSON(), ...fields };
  return route.continue({ postData: JSON.stringify(body) });
});

/** Keep the bodies of chat requests. */
export function watchBodies(page) {
  const bodies = [];
  page.on("request", (request) => {
    if (request.url().endsWith("/v1/chat/completions")) bodies.push(request.postDataJSON());
  });
  return bodies;
}
