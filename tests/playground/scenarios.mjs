// What people do with the playground; every export is one scenario. `world` has the addresses of
// gateways: `real` (the demo model on vLLM), `keyed` (the same, with a key), `down` (no engine),
// `adapters` (an LLM with two vision adapters), `hostile` and `dying` (a fake engine that writes what it is told, or breaks off).
import assert from "node:assert/strict";
import { accessible, ask, carrying, finished, lit, measures, pointAt, ready, send, upload, watchBodies, withFields } from "./steps.mjs";

const image = (world, name) => `${world.images}/${name}`;
const shotText = (page, index = 0) => page.locator("#images .shot span").nth(index).innerText();
const tokensOf = (text) => Number(/([\d,]+) tokens/.exec(text)[1].replace(",", ""));

export async function upload_tells_size_tokens_and_cost({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await upload(page, image(world, "scene.png"));
  const told = await shotText(page);
  assert.match(told, /^\d+ × \d+ → \d+ × \d+ px, \d+ tokens$/);
  const [said] = await ask(page, "How many shapes are there?");
  assert.match(said, new RegExp(world.count, "i"));
  const [measured] = await measures(page);
  assert.equal(Number(measured["of images"]), tokensOf(told), "what the page foretold, the engine counted");
  for (const name of ["first token", "tokens in", "tokens out", "price"]) assert.ok(measured[name], name);
  await page.click(".turn .shot");
  const facts = await page.innerText("#facts");
  for (const name of ["Served at", "Patches", "Image tokens", "Of the context", "KV cache", "Price"]) assert.match(facts, new RegExp(name));
  await page.hover("#image-canvas", { position: { x: 5, y: 5 } });
  assert.match(await page.innerText("#patch"), /Row 1, column 1: image token 1 of/);
  const drawn = () => page.evaluate(() => document.querySelector("#image-canvas").toDataURL());
  const withGrid = await drawn();
  await page.click("#image-grid");
  assert.notEqual(await drawn(), withGrid, "the grid is drawn");
  await page.keyboard.press("Escape");
  const small = () => page.evaluate(() => document.querySelector(".turn canvas").toDataURL());
  const before = await small();
  await page.click("#open-settings");
  await page.click("#grid");
  assert.notEqual(await small(), before, "the grid can be taken off everywhere");
}

export async function paste({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  const transfer = await carrying(page, image(world, "digit.png"), "image/png");
  await page.evaluate((given) => document.dispatchEvent(
    new ClipboardEvent("paste", { clipboardData: given, bubbles: true, cancelable: true })), transfer);
  await page.waitForSelector("#images .shot");
  const [said] = await ask(page, "Which digit is this?");
  assert.match(said, new RegExp(world.digit, "i"));
}

export async function drop({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  const transfer = await carrying(page, image(world, "scene.png"), "image/png");
  for (const event of ["dragenter", "dragover"]) await page.dispatchEvent("body", event, { dataTransfer: transfer });
  assert.ok(await page.isVisible("#drop"));
  await page.dispatchEvent("body", "drop", { dataTransfer: transfer });
  await page.waitForSelector("#images .shot");
  assert.ok(!await page.isVisible("#drop"));
  assert.match((await ask(page, "How many shapes are there?"))[0], new RegExp(world.count, "i"));
}

export async function by_address({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  const bodies = watchBodies(page);
  await page.click("#add-url");
  await page.fill("#url", `${world.web}/scene.png`);
  await page.press("#url", "Enter");
  await page.waitForSelector("#images .shot");
  assert.match((await ask(page, "How many shapes are there?"))[0], new RegExp(world.count, "i"));
  assert.equal(bodies[0].messages[0].content[0].image_url.url, `${world.web}/scene.png`);
}

export async function two_images({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await upload(page, image(world, "scene.png"), image(world, "digit.png"));
  const foretold = tokensOf(await shotText(page, 0)) + tokensOf(await shotText(page, 1));
  await ask(page, "How many shapes are there?");
  assert.equal(Number((await measures(page))[0]["of images"]), foretold);
  assert.equal(await page.locator(".turn .shot").count(), 2);
}

export async function a_removed_image_is_not_sent({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  const bodies = watchBodies(page);
  await upload(page, image(world, "scene.png"), image(world, "digit.png"));
  await page.click("#images li:first-child .remove");
  await ask(page, "Which digit is this?");
  assert.equal(bodies[0].messages[0].content.filter((part) => part.type === "image_url").length, 1);
}

export async function answers_stream({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await upload(page, image(world, "scene.png"));
  await page.evaluate(() => {
    window.lengths = new Set();
    new MutationObserver(() => window.lengths.add(document.querySelector(".said")?.textContent.length ?? 0))
      .observe(document.querySelector("#turns"), { childList: true, subtree: true, characterData: true });
  });
  await withFields(page, { ignore_eos: true, max_tokens: 800 });
  await ask(page, "What do you see?");
  const lengths = await page.evaluate(() => [...window.lengths].filter((length) => length > 0));
  // A busy browser draws many tokens at once; what counts is that some show before the last is there.
  assert.ok(lengths.length >= 2, `grew in ${lengths.length} steps`);
  assert.match(await page.innerText("#status"), /answered:/);
  const [measured] = await measures(page);
  assert.equal(measured["tokens out"], "800");
  assert.ok(Number(measured["tokens/s"].replaceAll(",", "")) > 0);
}

export async function stop_ends_the_engines_work({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await withFields(page, { ignore_eos: true, max_tokens: 900 });
  await send(page, "What do you see?");
  await page.waitForFunction(() => document.querySelector(".said")?.textContent.length > 3);
  assert.ok(!await page.isVisible("#send"));
  await page.keyboard.press("Escape");
  await finished(page);
  assert.equal((await measures(page))[0][""], "stopped");
  assert.ok(await page.isVisible("#send"));
  const running = async () => {
    const text = await (await fetch(`${world.real}/metrics/engines/0`)).text();
    return Number(/^vllm:num_requests_running\{[^}]*\} ([\d.]+)/m.exec(text)[1]);
  };
  for (let tries = 0; await running() > 0; tries += 1) {
    assert.ok(tries < 100, "the engine goes on");
    await new Promise((done) => setTimeout(done, 100));
  }
  const [measured] = await measures(page);
  assert.equal(measured["tokens out"], undefined, "cut before its end");
}

export async function retry_and_a_second_turn({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  const bodies = watchBodies(page);
  await upload(page, image(world, "scene.png"));
  const [first] = await ask(page, "How many shapes are there?");
  await page.click("text=Retry");
  await finished(page);
  assert.equal(await page.locator(".turn").count(), 1);
  assert.equal(await page.innerText(".said"), first);
  assert.deepEqual(bodies[1], bodies[0]);
  await ask(page, "How many shapes are there?");
  assert.deepEqual(bodies[2].messages.map((message) => message.role), ["user", "assistant", "user"]);
  assert.equal(bodies[2].messages[1].content.trim(), first.trim());
  assert.equal(await page.locator("text=Retry").count(), 1, "only the last turn can be asked again");
  await page.click("#new-chat");
  await page.waitForSelector(".turn", { state: "detached" });
}

export async function system_prompt_and_sampling_are_sent({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  const bodies = watchBodies(page);
  await page.click("#open-settings");
  await page.fill("#system", "Answer with a word.");
  const set = { temperature: "0.5", top_p: "0.9", max_tokens: "7", seed: "3", repetition_penalty: "1.1" };
  for (const [name, value] of Object.entries(set)) await page.fill(`#${name}`, value);
  await page.click("#settings [data-close]");
  await ask(page, "What do you see?");
  const [body] = bodies;
  assert.deepEqual(body.messages[0], { role: "system", content: "Answer with a word." });
  for (const [name, value] of Object.entries(set)) assert.equal(body[name], Number(value));
  assert.ok(Number((await measures(page))[0]["tokens out"]) <= 7);
}

export async function compare_two_resolutions({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await upload(page, image(world, "large.png"));
  await page.click("#compare");
  await page.selectOption("#model-1", "vora-demo");
  await page.selectOption("#size-1", "56");
  const said = await ask(page, "How many shapes are there?");
  assert.equal(said.length, 2);
  const [left, right] = await measures(page);
  assert.notEqual(left["of images"], right["of images"]);
  const told = await page.locator(".turn .answers .shot span").allInnerTexts();
  assert.deepEqual(told.map(tokensOf), [left, right].map((each) => Number(each["of images"])));
}

export async function compare_two_models({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  const bodies = watchBodies(page);
  await page.click("#compare");
  await upload(page, image(world, "scene.png"));
  await page.selectOption("#model-1", "vora-demo-b");
  await ask(page, "How many shapes are there?");
  assert.deepEqual(bodies.map((body) => body.model).sort(), ["vora-demo", "vora-demo-b"]);
  assert.deepEqual(bodies[0].messages, bodies[1].messages);
  await page.click("#compare");
  assert.equal(await page.locator(".pane").count(), 1);
}

export async function compare_two_adapters({ world, open }) {
  const page = await open(world.adapters);
  await ready(page);
  const bodies = watchBodies(page);
  await page.click("#compare");
  await page.selectOption("#model-0", "shapes");
  await page.selectOption("#model-1", "digits");
  await upload(page, image(world, "digit.png"));
  const told = (await page.locator("#images .shot span").allInnerTexts()).join();
  const [, digit] = await ask(page, "Which digit is this?");
  assert.match(digit, new RegExp(`^${world.digit}`, "i"));
  assert.deepEqual(bodies.map((body) => body.model).sort(), ["digits", "shapes"]);
  assert.deepEqual(bodies[0].messages, bodies[1].messages);
  const counted = (await measures(page)).map((each) => Number(each["of images"]));
  assert.deepEqual(counted, [36, 25], "each has its own patches");
  const drawn = await page.locator(".turn .answers .shot span").allInnerTexts();
  assert.deepEqual(drawn.map(tokensOf), counted, told);
  await page.click("#new-chat");
  await upload(page, image(world, "scene.png"));
  const [shape] = await ask(page, `What shape is ${world.colour}?`);
  assert.match(shape, new RegExp(`^${world.shape}`, "i"));
  await page.click("#new-chat");
  await page.selectOption("#model-1", "llm");
  await upload(page, image(world, "scene.png"));
  await send(page, `What shape is ${world.colour}?`);
  await page.waitForFunction(() => document.querySelector(".turn .answers").innerText.includes("answers text only"));
  await finished(page);
  assert.match((await page.locator(".turn").last().locator(".said").first().innerText()), new RegExp(`^${world.shape}`, "i"));
}

export async function code_runs_elsewhere({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await upload(page, image(world, "scene.png"));
  await page.click("#open-settings");
  await page.fill("#temperature", "0");
  await page.fill("#system", "It costs $HOME `id` \\n \"quoted\" 'single'\nand a second line.");
  await page.click("#settings [data-close]");
  const [said] = await ask(page, "How many shapes are there?");
  await page.click("text=As code");
  const code = {};
  for (const language of ["curl", "python", "javascript"]) {
    await page.click(`#tab-${language}`);
    code[language] = await page.evaluate(() => document.querySelector("#code-text").textContent);
    await page.click("#code-copy");
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), code[language]);
  }
  return { code, said };
}

// ------------------------------------------------------------------ when things go wrong

export async function no_engine({ world, open }) {
  const page = await open(world.down);
  await page.waitForSelector("#notice:not([hidden])");
  assert.match(await page.innerText("#notice"), /No engine is ready yet. This page asks again/);
  await page.fill("#question", "hello");
  await page.press("#question", "Enter");
  assert.equal(await page.locator(".turn").count(), 0);
}

export async function an_engine_that_breaks_off({ world, open }) {
  const page = await open(world.dying);
  await ready(page);
  await ask(page, "hello");
  assert.match(await page.innerText(".failed"), /broke off/);
  assert.ok((await page.innerText(".said")).length > 0, "what came stays");
  assert.ok(await page.isVisible("text=Retry"));
}

export async function a_server_that_is_gone({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await page.route("**/v1/chat/completions", (route) => route.abort("connectionrefused"));
  await ask(page, "hello");
  assert.match(await page.innerText(".failed"), /cannot be reached/);
}

export async function keys({ world, open }) {
  const page = await open(world.keyed);
  await page.waitForSelector("#notice:not([hidden])");
  assert.match(await page.innerText("#notice"), /asks for an API key/);
  await page.click("#open-settings");
  await page.fill("#key", "sk-wrong");
  await page.click("#settings [data-close]");
  await page.waitForFunction(() => /not valid/.test(document.querySelector("#notice").textContent));
  await page.click("#open-settings");
  await page.fill("#key", world.key);
  await page.click("#settings [data-close]");
  await ready(page);
  await upload(page, image(world, "scene.png"));
  await page.click("#add-url");
  await page.fill("#url", `${world.web}/digit.png`);
  await page.click("#url-add");
  await page.waitForFunction(() => document.querySelectorAll("#images .shot").length === 2);
  await ask(page, "How many shapes are there?");
  assert.equal(await page.locator(".failed").count(), 0);
  await page.click("text=As code");
  for (const language of ["curl", "python", "javascript"]) {
    await page.click(`#tab-${language}`);
    const text = await page.innerText("#code-text");
    assert.ok(!text.includes(world.key) && text.includes("VORA_API_KEY"), language);
  }
  // Kept for this tab only.
  const kept = await page.evaluate(() => [JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie]);
  assert.ok(kept[0].includes(world.key));
  assert.ok(!kept[1].includes(world.key) && !kept[2].includes(world.key));
  const other = await page.context().newPage();
  await other.goto(page.url());
  await other.waitForSelector("#notice:not([hidden])");
  assert.ok(!(await other.evaluate(() => JSON.stringify(sessionStorage))).includes(world.key));
}

export async function bad_images({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  const refused = async (act, sentence) => {
    await act();
    await page.waitForFunction((text) => new RegExp(text, "i").test(document.querySelector("#notice").textContent), sentence);
    assert.equal(await page.locator("#images .shot").count(), 0);
  };
  await refused(() => page.setInputFiles("#file", image(world, "text.png")), "image");
  await page.click("#add-url");
  for (const [url, sentence] of [
    [`${world.web}/absent.png`, "404"], ["http://10.0.0.1/a.png", "address|allowed|refused|private"],
    ["ftp://example.org/a.png", "http"], ["nonsense", "URL|address|http"],
  ]) {
    await page.fill("#url", url);
    await refused(() => page.click("#url-add"), sentence);
  }
}

// ------------------------------------------------------------------ markup that would run

export async function written_markup_stays_text({ world, open }) {
  const page = await open(world.hostile);
  await ready(page);
  await page.evaluate(() => { window.pwned = 0; window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective)); });
  // The fake engine writes the same text that is typed here.
  await ask(page, world.hostileText);
  await page.waitForTimeout(300);
  const found = await page.evaluate(() => ({
    pwned: window.pwned,
    violations: window.violations,
    elements: [...document.querySelectorAll("#turns *")].filter((node) =>
      ["IMG", "SCRIPT", "IFRAME", "SVG", "OBJECT", "EMBED", "STYLE", "FORM", "INPUT", "LINK", "META", "BASE", "VIDEO", "MATH"]
        .includes(node.tagName.toUpperCase()) && !node.matches("svg.timing")).map((node) => node.outerHTML),
    handlers: [...document.querySelectorAll("#turns *")].flatMap((node) =>
      [...node.attributes].filter((attribute) => /^(on|style|srcdoc)/.test(attribute.name)
        && !(node.tagName === "CANVAS" && attribute.name === "style")).map((attribute) => attribute.name)),
    links: [...document.querySelectorAll("#turns a")].map((link) => new URL(link.href).protocol),
    rel: [...document.querySelectorAll("#turns a")].every((link) => link.rel.includes("noopener")),
    shown: document.querySelector(".said").textContent,
    formatted: document.querySelectorAll(".said strong, .said li, .said code").length,
  }));
  assert.equal(found.pwned, 0);
  assert.deepEqual(found.violations, []);
  assert.deepEqual(found.elements, []);
  assert.deepEqual(found.handlers, []);
  assert.ok(found.links.length > 0 && found.links.every((protocol) => ["http:", "https:", "mailto:"].includes(protocol)));
  assert.ok(found.rel);
  assert.ok(found.shown.includes("onerror"), "shown as text");
  assert.ok(found.formatted >= 3, "Markdown still works");
}

export async function controls_of_the_markup_test({ world, open }) {
  // The same text does run where nothing stands in its way …
  const bare = await open(world.bare);
  await bare.evaluate((text) => { window.pwned = 0; document.body.innerHTML = text; }, world.hostileText);
  await bare.waitForFunction(() => window.pwned > 0);
  bare.faults.length = 0;  // it even asks elsewhere
  // … and the policy is a second wall in the playground, were the renderer to fail.
  const page = await open(world.hostile);
  await ready(page);
  const caught = await page.evaluate((text) => {
    window.pwned = 0;
    try { document.querySelector("#turns").innerHTML = text; } catch (error) { return error.name; }
    return "nothing";
  }, world.hostileText);
  assert.equal(caught, "TypeError");
  await page.evaluate(() => {
    const script = document.createElement("script");
    try { script.text = "window.pwned = 1"; } catch { /* trusted types */ }
    document.body.append(script);
    const image = document.createElement("img");
    try { image.setAttribute("onerror", "window.pwned = 1"); } catch { /* trusted types again */ }
    image.src = "/nothing.png";
    document.body.append(image);
  });
  await page.waitForTimeout(300);
  assert.equal(await page.evaluate(() => window.pwned), 0);
  page.faults.length = 0;  // the policy's complaints were asked for
}

// ------------------------------------------------------------------ for everybody

export async function narrow_screen({ world, open }) {
  const page = await open(world.real, { viewport: { width: 360, height: 640 }, hasTouch: true });
  await ready(page);
  await upload(page, image(world, "scene.png"));
  await ask(page, "How many shapes are there?");
  await page.click("#compare");
  await upload(page, image(world, "digit.png"));
  await ask(page, "Which digit is this?");
  for (const dialog of [null, "#open-settings", ".turn .shot", "text=As code"]) {
    if (dialog) await page.locator(dialog).first().click();
    const [wide, inside] = await page.evaluate(() => [document.documentElement.scrollWidth,
      [...document.querySelectorAll("dialog[open], dialog[open] .inspect")].every((node) => node.scrollWidth <= node.clientWidth + 1)]);
    assert.ok(wide <= 360, `${dialog}: the page is ${wide} px wide`);
    assert.ok(inside, `${dialog} fits`);
    await accessible(page, `narrow ${dialog}`);
    if (dialog) await page.keyboard.press("Escape");
  }
  for (const id of ["#compare", "#new-chat", "#open-settings", "#add-file", "#add-url", "#send"]) assert.ok(await page.isVisible(id), id);
}

export async function keyboard_alone({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.className || document.activeElement.tagName);
  assert.equal(await focused(), "question");
  await page.keyboard.type("first line");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("second line");
  assert.equal(await page.inputValue("#question"), "first line\nsecond line");
  await page.keyboard.press("Enter");
  await finished(page);
  const seen = new Set();
  await page.focus("#open-chats");
  await page.keyboard.press("Shift+Tab");
  seen.add(await focused());
  // To the last control, not over it: Firefox would go on to its own bars.
  for (let count = 0; count < 40 && !seen.has("send"); count += 1) {
    await page.keyboard.press("Tab");
    seen.add(await focused());
  }
  for (const id of ["skip", "compare", "new-chat", "open-settings", "model-0", "size-0", "log", "question", "add-file", "add-url", "send"]) {
    assert.ok(seen.has(id), `Tab reaches ${id}`);
  }
  await page.focus("#open-settings");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#settings[open]");
  await page.keyboard.press("Escape");
  await page.waitForSelector("#settings", { state: "hidden" });
  assert.equal(await focused(), "open-settings");
  await page.locator("text=As code").focus();
  await page.keyboard.press("Enter");
  await page.focus("#tab-curl");
  await page.keyboard.press("ArrowRight");
  assert.equal(await focused(), "tab-python");
  assert.match(await page.innerText("#code-text"), /from openai import OpenAI/);
}

export async function axe_finds_no_serious_fault({ world, open }) {
  for (const colorScheme of ["light", "dark"]) {
    const page = await open(world.real, { colorScheme });
    await ready(page);
    await accessible(page, `${colorScheme} welcome`);
    await upload(page, image(world, "scene.png"));
    await page.click("#add-url");
    await accessible(page, `${colorScheme} composer`);
    await ask(page, "What do you see?");
    await accessible(page, `${colorScheme} answer`);
    for (const [opener, name] of [["#open-settings", "settings"], [".turn .shot", "image"], ["text=As code", "code"]]) {
      await page.locator(opener).first().click();
      await accessible(page, `${colorScheme} ${name}`);
      await page.keyboard.press("Escape");
    }
    await page.click("#compare");
    await upload(page, image(world, "scene.png"));
    await ask(page, "What do you see?");
    await accessible(page, `${colorScheme} compare`);
  }
  const down = await open(world.down);
  await down.waitForSelector("#notice:not([hidden])");
  await accessible(down, "down");
  const hostile = await open(world.hostile);
  await ready(hostile);
  await ask(hostile, "hello");
  await accessible(hostile, "Markdown");
}

export async function control_of_axe({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await page.evaluate(() => document.querySelector("label[for=question]").remove());
  await page.evaluate(() => document.querySelector("#question").removeAttribute("placeholder"));
  await assert.rejects(accessible(page, "broken"), /label/);
}

export async function appearance_is_kept({ world, open }) {
  const page = await open(world.real, { colorScheme: "light" });
  const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await paper();
  await page.click("#open-settings");
  await page.selectOption("#theme", "dark");
  const dark = await paper();
  assert.notEqual(dark, light);
  await page.reload();
  assert.equal(await paper(), dark);
}

// ------------------------------------------------------------------ images for the docs

export async function screenshots({ world, open }) {
  if (!world.screenshots) return;
  const shoot = (page, name) => page.screenshot({ path: `${world.screenshots}/${name}.png` });
  const size = { viewport: { width: 1100, height: 880 } };
  const page = await open(world.real, { ...size, colorScheme: "light" });
  await ready(page);
  await shoot(page, "welcome");
  await upload(page, image(world, "three.png"));
  await ask(page, "What do you see?");
  await shoot(page, "answer");
  await page.click(".turn .shot");
  await shoot(page, "patches");
  await page.keyboard.press("Escape");
  await page.click("text=As code");
  await page.click("#tab-python");
  await shoot(page, "code");
  await page.keyboard.press("Escape");
  await page.click("#compare");
  await upload(page, image(world, "large.png"));
  await page.selectOption("#model-1", "vora-demo");
  await page.selectOption("#size-1", "56");
  await ask(page, "What do you see?");
  await shoot(page, "compare");
  const sees = await open(world.real, { viewport: { width: 1100, height: 860 }, colorScheme: "light" });
  await ready(sees);
  await upload(sees, image(world, "three.png"));
  await ask(sees, "What do you see?");
  await pointAt(sees, "circle");
  await lit(sees, "circle");
  await shoot(sees, "how-it-sees");
  const phone = await open(world.real, { viewport: { width: 390, height: 900 }, colorScheme: "dark" });
  await ready(phone);
  await upload(phone, image(world, "digit.png"));
  await ask(phone, "Which digit is this?");
  await shoot(phone, "phone-dark");
  const report = await open(world.report, { viewport: { width: 1000, height: 900 }, colorScheme: "light" });
  await report.locator("figure").first().screenshot({ path: `${world.screenshots}/load-test-report.png` });
}
