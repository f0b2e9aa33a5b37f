// Conversations, versions, limits, context, rich text, zoom, and use in little room; each export is
// a scenario, as in scenarios.mjs.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { accessible, ask, contrastOfControls, finished, fits, ready, send, upload, watchBodies, withFields } from "./steps.mjs";

const image = (world, name) => `${world.images}/${name}`;
const questions = (page) => page.locator(".asked .text").allInnerTexts();
const titles = (page) => page.locator("#chat-list .title").allInnerTexts();
const listed = (page, count) => page.waitForFunction((n) => document.querySelectorAll("#chat-list .chat").length === n, count);
/** Until what was said is in the browser's storage. */
const kept = (page, text) => page.waitForFunction(async (wanted) => {
  const db = await new Promise((done) => { const asked = indexedDB.open("vora-playground"); asked.onsuccess = () => done(asked.result); });
  const all = await new Promise((done) => { const asked = db.transaction("conversations").objectStore("conversations").getAll(); asked.onsuccess = () => done(asked.result); });
  db.close();
  return JSON.stringify(all).includes(wanted);
}, text);

export async function chats_survive_reload_compare_and_new_chat({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await upload(page, image(world, "scene.png"));
  const [said] = await ask(page, "How many shapes are there?");
  await page.click("#compare");
  assert.deepEqual(await questions(page), ["How many shapes are there?"], "Compare keeps the chat");
  await page.click("#compare");
  await page.reload();
  await page.waitForSelector(".turn .said");
  assert.deepEqual(await page.locator(".said").allInnerTexts(), [said]);
  await ready(page);
  await page.waitForFunction(() => /tokens/.test(document.querySelector(".turn .shot span").textContent));
  const bodies = watchBodies(page);
  await ask(page, "How many shapes are there?");
  assert.equal(bodies[0].messages[0].content[0].type, "image_url", "the image came back too");
  assert.deepEqual(bodies[0].messages.map((message) => message.role), ["user", "assistant", "user"]);
  await page.click("#new-chat");
  await page.waitForSelector(".turn", { state: "detached" });
  await ask(page, "Which digit is this?");
  await page.click("#open-chats");
  await listed(page, 2);
  assert.deepEqual(await titles(page), ["Which digit is this?", "How many shapes are there?"]);
  await page.locator(".chat").nth(1).click();
  await page.waitForFunction(() => document.querySelectorAll(".turn").length === 2);
}

export async function an_answer_cut_by_a_reload_keeps_what_came({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await withFields(page, { ignore_eos: true, max_tokens: 900 });
  await send(page, "What do you see?");
  await page.waitForFunction(() => document.querySelector(".said")?.textContent.length > 20);
  await page.reload();
  await page.waitForSelector(".turn .said");
  assert.ok((await page.innerText(".said")).length > 10);
  assert.match(await page.innerText(".metrics"), /stopped/);
}

export async function a_question_being_written_survives_too({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await upload(page, image(world, "scene.png"));
  await page.fill("#question", "half a quest");
  await kept(page, "half a quest");
  await page.reload();
  await page.waitForSelector("#images .shot");
  assert.equal(await page.inputValue("#question"), "half a quest");
}

export async function chats_are_found_renamed_moved_and_deleted({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await upload(page, image(world, "scene.png"));
  const [said] = await ask(page, "How many shapes are there?");
  await page.click("#new-chat");
  await page.waitForSelector(".turn", { state: "detached" });
  await ask(page, "Which digit is this?");
  await page.click("#open-chats");
  await listed(page, 2);
  await accessible(page, "list of chats");
  await page.fill("#chat-search", "SHAPES");
  await listed(page, 1);
  await page.click("text=Rename");
  await page.keyboard.type("My shapes");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector("#chat-list .title")?.textContent === "My shapes");
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#chat-export")]);
  const text = await readFile(await download.path(), "utf8");
  assert.equal(JSON.parse(text).conversations.length, 2);
  await page.click("#chat-list >> text=Delete");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Keep", "asked first");
  await page.click(".renaming .danger");
  await listed(page, 0);
  assert.match(await page.innerText("#chat-none"), /No chat has/);
  const file = { name: "a.json", mimeType: "application/json", buffer: Buffer.from(text) };
  await page.setInputFiles("#chat-file", file);
  await listed(page, 1);
  await page.locator(".chat").click();
  await page.waitForSelector(".turn .shot");
  assert.deepEqual(await page.locator(".said").allInnerTexts(), [said]);
  await page.setInputFiles("#chat-file", { ...file, buffer: Buffer.from("{}") });
  await page.waitForFunction(() => /not an export.*Nothing was imported/.test(document.querySelector("#chat-said").textContent));
  await page.reload();
  await page.waitForSelector(".turn");
  assert.equal(await page.locator(".turn").count(), 1);
}

export async function an_imported_chat_runs_no_script({ world, open }) {
  const page = await open(world.hostile);
  await ready(page);
  await ask(page, world.hostileText);
  await page.click("#open-chats");
  await listed(page, 1);
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#chat-export")]);
  const tree = JSON.parse(await readFile(await download.path(), "utf8"));
  Object.assign(tree.conversations[0], { id: "<img src=x onerror=window.pwned=1>", title: world.hostileText, updated: 9e15 });
  await page.setInputFiles("#chat-file", { name: "a.json", mimeType: "application/json", buffer: Buffer.from(JSON.stringify(tree)) });
  await listed(page, 2);
  await page.locator(".chat").first().click();
  await page.waitForTimeout(200);
  assert.equal(await page.evaluate(() => window.pwned), undefined);
  assert.equal(await page.locator("#chat-list img, #turns img, #turns script").count(), 0);
}

export async function two_tabs_lose_nothing_of_each_other({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await ask(page, "first");
  await kept(page, "first");
  const other = await page.context().newPage();
  await other.goto(page.url());
  await ready(other);
  await other.click("#open-chats");
  await listed(other, 1);
  await other.locator(".chat").click();
  await other.waitForSelector(".turn");
  await ask(other, "in the second tab");
  await ask(page, "in the first tab");
  for (const text of ["in the second tab", "in the first tab"]) await kept(page, text);
}

export async function nothing_is_kept_where_that_is_switched_off({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await page.click("#open-settings");
  await page.click("#keep");
  await page.click("#settings [data-close]");
  await ask(page, "secret question");
  await page.reload();
  await ready(page);
  assert.equal(await page.locator(".turn").count(), 0);
  assert.ok(!await page.isChecked("#keep"));
}

export async function a_turn_is_edited_into_a_version({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  const bodies = watchBodies(page);
  await upload(page, image(world, "scene.png"));
  const [first] = await ask(page, "How many shapes are there?");
  await ask(page, "What do you see?");
  await page.locator(".edit").first().focus();
  await page.keyboard.press("Enter");
  await page.keyboard.press("Control+A");
  await page.keyboard.type("Which colour is the shape?");
  await page.keyboard.press("Enter");
  await finished(page);
  assert.deepEqual(await questions(page), ["Which colour is the shape?"]);
  assert.equal(bodies[2].messages.length, 1);
  assert.equal(bodies[2].messages[0].content[0].type, "image_url", "with the same image");
  assert.match(await page.innerText(".versions"), /2 of 2/);
  await page.click("[aria-label='Earlier version']");
  assert.deepEqual(await questions(page), ["How many shapes are there?", "What do you see?"]);
  assert.equal(await page.locator(".said").first().innerText(), first);
  await page.reload();
  await page.waitForSelector(".versions");
  assert.match(await page.innerText(".versions"), /1 of 2/);
  await accessible(page, "versions");
}

export async function presets({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  const bodies = watchBodies(page);
  await page.click("#open-settings");
  await page.selectOption("#preset", { label: "JSON only" });
  assert.match(await page.inputValue("#system"), /JSON/);
  await page.fill("#system", "Mine.");
  await page.fill("#seed", "5");
  await page.fill("#preset-name", "My preset");
  await page.click("#preset-save");
  await page.reload();
  await ready(page);
  await page.click("#open-settings");
  await page.selectOption("#preset", { label: "My preset" });
  await page.keyboard.press("Escape");
  await ask(page, "hello");
  assert.deepEqual([bodies[0].messages[0].content, bodies[0].seed], ["Mine.", 5]);
}

export async function images_are_checked_and_shrunk({ world, open }) {
  const page = await open(world.strict);
  await ready(page);
  const bodies = watchBodies(page);
  await upload(page, image(world, "large.png"));
  assert.match(await page.innerText(".problem"), /megapixels|KiB/);
  await send(page, "What do you see?");
  assert.match(await page.innerText("#notice"), /the server takes/);
  assert.equal(bodies.length, 0, "nothing was sent");
  await accessible(page, "image over a limit");
  await page.click("#notice >> text=Shrink");
  await page.waitForFunction(() => !document.querySelector(".problem"));
  await page.setInputFiles("#file", { name: "a.svg", mimeType: "image/svg+xml", buffer: Buffer.from(
    '<svg xmlns="http://www.w3.org/2000/svg" width="80" height="80"><rect width="40" height="40" fill="red"/></svg>') });
  await page.waitForSelector(".problem");
  assert.match(await page.innerText(".problem"), /not this format/);
  await page.click("text=Convert to PNG");
  await page.waitForFunction(() => !document.querySelector(".problem"));
  await ask(page, "What do you see?");
  assert.equal(await page.locator(".failed").count(), 0, "the server took what the page let through");
  assert.equal(bodies.length, 1);
  assert.match(bodies[0].messages[0].content[1].image_url.url, /^data:image\/png/);
}

export async function the_context_bar({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  const told = async () => Number(/about ([\d,]+) of 1,024/.exec(await page.innerText("#context-text"))[1].replace(",", ""));
  assert.equal(await told(), 0);
  await upload(page, image(world, "scene.png"));
  const tokens = Number(/(\d+) tokens/.exec(await page.innerText("#images .shot span"))[1]);
  assert.equal(await told(), tokens, "exact for images");
  await page.fill("#question", "x".repeat(350));
  assert.ok(await told() >= tokens + 80);
  await page.fill("#question", "");
  await ask(page, "How many shapes are there?");
  const measured = await page.locator(".metrics div").evaluateAll((rows) => Object.fromEntries(rows.map((row) =>
    [row.querySelector("dt").textContent, Number(row.querySelector("dd").textContent)])));
  assert.equal(await told(), measured["tokens in"] + measured["tokens out"], "exact after an answer");
  await upload(page, ...Array(12).fill(image(world, "large.png")));
  await page.fill("#question", "x".repeat(1200));
  assert.match(await page.getAttribute("#context", "class"), /over/);
}

export async function an_error_comes_with_what_to_do({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  for (const [code, status, sentence, button] of [
    ["context_length_exceeded", 400, /Shrink the images/, "New chat"], ["rate_limit_exceeded", 429, /Wait a moment/, null],
    ["engine_unavailable", 503, /Wait until/, null], ["invalid_api_key", 401, /valid key/, "Open settings"],
    ["some_new_code", 400, /Check the settings/, "Open settings"], ["some_new_code", 500, /Choose Retry/, null],
  ]) {
    await page.route("**/v1/chat/completions", (route) => route.fulfill({ status, contentType: "application/json",
      body: JSON.stringify({ error: { message: "It went wrong.", code } }) }));
    await ask(page, "hello");
    const said = await page.innerText("#notice");
    assert.match(said, /It went wrong\./);
    assert.match(said, sentence, code);
    if (button) assert.ok(await page.isVisible(`#notice >> text=${button}`), code);
    const below = await page.evaluate(() => document.querySelector("#composer").getBoundingClientRect().top - document.querySelector("#notice").getBoundingClientRect().bottom);
    assert.ok(below >= 0 && below < 30, "beside the composer");
    await page.unroute("**/v1/chat/completions");
  }
  await accessible(page, "error");
}

export async function code_is_coloured_and_formulas_laid_out({ world, open }) {
  const page = await open(world.rich);
  await ready(page);
  assert.ok(!await page.evaluate(() => performance.getEntriesByType("resource").some(({ name }) => /katex|highlight/.test(name))), "not loaded before they are needed");
  await ask(page, "hello");
  await page.waitForSelector(".said .code-keyword");
  await page.waitForSelector(".said math");
  assert.equal(await page.locator(".said math").count(), 2);
  assert.match(await page.innerText(".said"), /\$5 and \$10/);
  assert.match(await page.innerText(".said pre"), /def area\(r\):/, "the text is the same");
  assert.equal(await page.locator(".said pre >> nth=1 >> span").count(), 0, "an unknown language stays plain");
  assert.match(await page.innerText(".said"), /\\notamacro/, "a formula that is none stays text");
  await accessible(page, "code");
}

export async function the_chart_of_an_answer({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await withFields(page, { ignore_eos: true, max_tokens: 40 });
  await ask(page, "What do you see?");
  await page.click(".timing-box summary");
  const words = await page.getAttribute("svg.timing", "aria-label");
  assert.match(words, /First piece after \d+ ms, then \d+ more/);
  assert.ok(await page.locator("svg.timing .piece").count() >= 10);
  await accessible(page, "timing");
}

export async function zoom_and_patches_by_keyboard({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await upload(page, image(world, "scene.png"));
  await page.focus("#images .shot");
  await page.keyboard.press("Enter");
  await page.focus("#image-canvas");
  const width = () => page.evaluate(() => document.querySelector("#image-canvas").clientWidth);
  const before = await width();
  await page.keyboard.press("ArrowRight");
  assert.match(await page.innerText("#patch"), /^Row 1, column 1: image token 1 of/);
  for (const key of ["ArrowRight", "ArrowRight", "ArrowDown"]) await page.keyboard.press(key);
  assert.match(await page.innerText("#patch"), /^Row 2, column 3/);
  await page.keyboard.press("+");
  await page.keyboard.press("+");
  assert.equal(await page.innerText("#zoom"), "200 %");
  assert.ok(Math.abs(await width() - 2 * before) <= 2);
  for (let count = 0; count < 40; count += 1) await page.keyboard.press("ArrowDown");
  const below = await page.evaluate(() => { const view = document.querySelector("#image-view"); return view.scrollHeight - view.scrollTop - view.clientHeight; });
  assert.ok(below < 60, `the patch is in view: ${below} px are below, ${await page.innerText("#patch")}`);
  await accessible(page, "zoom");
  await page.keyboard.press("0");
  assert.equal(await page.innerText("#zoom"), "100 %");
}

export async function little_room({ world, open }) {
  // A phone in landscape, and 1280 x 800 at 200 %.
  for (const viewport of [{ width: 740, height: 340 }, { width: 640, height: 400 }]) {
    const page = await open(world.real, { viewport, deviceScaleFactor: 2 });
    await ready(page);
    await fits(page, "welcome");
    await upload(page, image(world, "scene.png"));
    await fits(page, "image added");
    await ask(page, "How many shapes are there?");
    await accessible(page, `${viewport.width} answer`);
    await page.evaluate(() => document.querySelector(".said").scrollIntoView({ block: "start" }));
    const covered = await page.evaluate(() => {
      const box = document.querySelector(".said").getBoundingClientRect();
      return !document.querySelector(".said").contains(document.elementFromPoint(box.left + 3, box.top + 8));
    });
    assert.ok(!covered, "the answer can be read");
    for (const opener of ["#open-settings", ".turn .shot", "text=As code"]) {
      await page.locator(opener).first().click();
      await fits(page, opener);
      await page.locator("dialog[open] [data-close]").scrollIntoViewIfNeeded();
      await accessible(page, `${viewport.width} ${opener}`);
      await page.keyboard.press("Escape");
    }
    await page.click("#open-chats");
    await fits(page, "chats");
    await accessible(page, `${viewport.width} chats`);
  }
}

export async function controls_have_contrast({ world, open }) {
  for (const colorScheme of ["light", "dark"]) {
    const page = await open(world.real, { colorScheme });
    await ready(page);
    await upload(page, image(world, "scene.png"));
    await ask(page, "hello");
    await page.click("#open-chats");
    await page.click("#add-url");
    await contrastOfControls(page, colorScheme);
    await page.click("#open-settings");
    await contrastOfControls(page, `${colorScheme} settings`);
  }
  const page = await open(world.real);  // the control: the edge that it had before
  await ready(page);
  await page.evaluate(() => document.documentElement.style.setProperty("--edge", "#dfe1e4"));
  await assert.rejects(contrastOfControls(page, "broken"), /1\.\d+/);
}

export async function a_gallery_to_begin_with({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await page.waitForSelector(".example img");
  assert.match(await page.innerText("#knows"), /shapes and digits/);
  assert.ok(!await page.isVisible("#sample"));
  await accessible(page, "gallery");
  for (const [question, answer] of [["How many shapes are there?", /three/], ["Which digit is this?", /eight/]]) {
    await page.click("#new-chat");
    await page.click(`.example:has-text("${question}")`);
    await page.waitForSelector("#images .shot");
    assert.equal(await page.inputValue("#question"), question);
    await page.evaluate(() => { document.querySelector("#temperature").value = "0"; });
    assert.match((await ask(page))[0], answer);
  }
}

export async function the_operators_page({ world, open }) {
  const client = await open(world.keyed);
  await client.click("#open-settings");
  await client.fill("#key", world.key);
  await client.click("#settings [data-close]");
  await ready(client);
  await upload(client, image(world, "scene.png"));
  const page = await open(`${world.keyed}/operate`);
  await page.waitForSelector("#fault:not([hidden])");
  assert.match(await page.innerText("#fault"), /scope “metrics”/);
  await page.fill("#key", world.watchKey);
  await page.press("#key", "Enter");
  await page.waitForFunction(() => document.querySelector("#engines .good"));
  await ask(client, "How many shapes are there?");
  await page.waitForFunction(() => [...document.querySelectorAll("#tenants th")].some((cell) => cell.textContent === "a"), null, { timeout: 15_000 });
  await page.waitForFunction(() => /[1-9]/.test(document.querySelector("#image-path dd").textContent), null, { timeout: 15_000 });
  assert.match(await page.innerText("#latency"), /first token\s+\d/);
  await accessible(page, "operation");
  if (world.screenshots) await page.screenshot({ path: `${world.screenshots}/operate.png` });
  await page.setViewportSize({ width: 360, height: 640 });
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= 360), "fits a phone");
}

export async function the_api_page({ world, open }) {
  for (const viewport of [{ width: 1180, height: 820 }, { width: 590, height: 410 }]) {
    const page = await open(`${world.real}/docs`, { viewport });
    await page.waitForSelector("#post--v1-chat-completions");
    assert.match(await page.innerText("#post--v1-chat-completions"), /temperature[^]*0 takes the most likely token/);
    await page.click("#post--v1-chat-completions td a");
    await page.waitForSelector("#parts details[open] table");
    await accessible(page, `API page, ${viewport.width} px`);
  }
}
