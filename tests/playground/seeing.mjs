// How it sees: words that light up patches, layers, figures; `world.real` starts the process that
// computes it when it is first asked, `world.command` is in front of a model that a command is for.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { accessible, ask, contrastOfControls, finished, FIRST_LOOK as FIRST, fits, lit, pointAt, ready, send, upload, withFields } from "./steps.mjs";

const image = (world, name) => `${world.images}/${name}`;
const heat = (page, index = 0) => page.locator("canvas.heat").nth(index).evaluate((canvas) => canvas.toDataURL());

export async function words_light_up_patches({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await upload(page, image(world, "scene.png"));
  await ask(page, "How many shapes are there?");
  assert.equal(await page.locator("canvas.heat").count(), 0);
  await pointAt(page, world.count);
  await lit(page, world.count);
  assert.match(await page.innerText("#heat-state"), /^[\d.]+ % of its attention is on the image$/);
  const [over, under] = await page.evaluate(() => ["canvas.heat", ".turn .shot canvas"].map((selector) => {
    const { x, y, width, height } = document.querySelector(selector).getBoundingClientRect();
    return [x, y, width, height].map(Math.round);
  }));
  assert.deepEqual(over, under, "the heat lies on the image");
  assert.match(await page.locator("#heat-legend svg").getAttribute("aria-label"), /from 0 to [\d.]+ % of the attention/);
  if (await page.evaluate(() => Boolean(globalThis.CSS?.highlights))) {
    assert.equal(await page.evaluate(() => [...CSS.highlights.get("seen")][0].toString().toLowerCase()), world.count);
  }
  await accessible(page, "words light up");
  await contrastOfControls(page, "words light up");
  const mean = await heat(page);
  await page.focus("#heat-layer");
  await page.keyboard.press("Home");
  assert.equal(await page.innerText("#heat-layer-name"), "1 of 6");
  const first = await heat(page);
  assert.notEqual(first, mean, "another layer, another heat");
  await page.click("#heat-play");
  const names = new Set();
  await page.waitForFunction(() => document.querySelector("#heat-play").textContent === "Stop");
  for (let playing = true; playing;) {
    playing = await page.innerText("#heat-play") === "Stop";
    names.add(await page.innerText("#heat-layer-name"));
    await page.waitForTimeout(60);
  }
  assert.deepEqual([...names], ["1 of 6", "2 of 6", "3 of 6", "4 of 6", "5 of 6", "6 of 6", "mean of all"]);
  assert.equal(await heat(page), mean, "it ends where it began");
  await page.keyboard.press("Escape");
  assert.equal(await page.locator("canvas.heat").count(), 0);
  assert.ok(!await page.isVisible("#heat"));
}

export async function words_light_up_at_200_percent_and_by_touch({ world, open }) {
  const page = await open(world.real, { viewport: { width: 590, height: 410 }, deviceScaleFactor: 2 });
  await ready(page);
  await upload(page, image(world, "scene.png"));
  await ask(page, "How many shapes are there?");
  await pointAt(page, world.count, true);
  await lit(page, world.count);
  await fits(page, "200 %");
  await accessible(page, "200 %, words light up");
  const box = await page.locator("#heat").boundingBox();
  assert.ok(box.x >= 0 && box.y >= 0 && box.x + box.width <= 590 && box.y + box.height <= 410, JSON.stringify(box));
  await page.click("#heat-larger");
  await page.waitForSelector("#explain-tokens button[aria-pressed=true]");
  await fits(page, "200 %, enlarged");
  await accessible(page, "200 %, enlarged");
}

export async function each_word_has_its_own_heat({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await upload(page, image(world, "three.png"));
  const [said] = await ask(page, "What do you see?");
  const words = [...new Set(said.toLowerCase().match(/[a-z]{3,}/g))].filter((word) => said.toLowerCase().split(word).length === 2).slice(-3);
  assert.ok(words.length > 1, said);
  const seen = new Set();
  let asked = 0;
  page.on("request", (request) => { if (request.url().endsWith("/playground/explain")) asked += 1; });
  for (const word of words) {
    await pointAt(page, word);
    await lit(page, word);
    seen.add(await heat(page));
  }
  assert.equal(seen.size, words.length);
  assert.equal(asked, 1, "one question brings all words");
  // A later answer is about the same image, which its words light up too.
  await ask(page, "How many shapes are there?");
  await page.mouse.move(2, 2);
  const [last] = await page.locator(".turn").last().locator(".said").allInnerTexts();
  const word = last.match(/[A-Za-z]+/)[0];
  await pointAt(page, word);
  await lit(page, word);
}

export async function words_of_an_answer_that_streams({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await upload(page, image(world, "scene.png"));
  await ask(page, "How many shapes are there?");
  await pointAt(page, world.count);  // so that the model is loaded
  await lit(page, world.count);
  await page.keyboard.press("Escape");
  await page.click("#new-chat");
  await page.waitForSelector(".turn", { state: "detached" });
  await upload(page, image(world, "scene.png"));
  await withFields(page, { ignore_eos: true, max_tokens: 400 });
  await send(page, "How many shapes are there?");
  await page.waitForFunction((word) => document.querySelector(".said")?.textContent.toLowerCase().includes(word), world.count);
  await pointAt(page, world.count);
  await lit(page, world.count);
  assert.ok(await page.evaluate(() => document.querySelector(".answer[aria-busy=true]")), "it still streams");
  const early = await heat(page);
  await finished(page);
  assert.equal(await heat(page), early, "what comes later changes nothing for an earlier word");
}

export async function side_by_side_each_has_its_own_heat({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await page.click("#compare");
  await page.selectOption("#model-1", await page.locator("#model-0").inputValue());
  await page.selectOption("#size-1", "56");
  await upload(page, image(world, "large.png"));
  await ask(page, "What do you see?");
  await pointAt(page, (await page.locator(".said").last().innerText()).match(/[A-Za-z]{3,}/)[0]);
  await page.waitForSelector("canvas.heat", { timeout: FIRST });
  const columns = await page.locator(".answers > div").evaluateAll((all) => all.map((column) => column.querySelectorAll("canvas.heat").length));
  assert.deepEqual(columns, [0, 1]);
}

export async function how_it_sees_enlarged({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await page.click("#add-url");
  await page.fill("#url", `${world.web}/scene.png`);
  await page.click("#url-add");
  await page.waitForSelector("#images .shot");
  await upload(page, image(world, "digit.png"));
  const [said] = await ask(page, "How many shapes are there?");
  await page.locator(".after >> text=How it sees").focus();
  await page.keyboard.press("Enter");
  await page.waitForSelector("#explain-tokens button", { timeout: FIRST });
  const tokens = await page.locator("#explain-tokens button").allInnerTexts();
  assert.ok(said.startsWith(tokens[0].trim()), `${tokens} of ${said}`);
  const drawn = () => page.evaluate(() => document.querySelector("#explain-canvas").toDataURL());
  assert.match(await page.innerText("#explain-share"), /^[\d.]+ % of its attention/);
  const mean = await drawn();
  await page.focus("#explain-layer");
  await page.keyboard.press("Home");
  assert.equal(await page.innerText("#explain-layer-name"), "1 of 6");
  const first = await drawn();
  assert.notEqual(first, mean, "another layer, another image");
  await page.selectOption("#explain-image", "1");
  assert.notEqual(await drawn(), first);
  await accessible(page, "how it sees");
}

export async function figures_for_papers({ world, open }) {
  const page = await open(world.real);
  await ready(page);
  await upload(page, image(world, "scene.png"));
  await ask(page, "How many shapes are there?");
  await pointAt(page, world.count);
  await lit(page, world.count);
  await page.click("#heat-larger");
  await page.waitForSelector("#explain-tokens button[aria-pressed=true]");
  const keep = async (button) => {
    const [download] = await Promise.all([page.waitForEvent("download"), page.click(button)]);
    return [download.suggestedFilename(), await readFile(await download.path())];
  };
  const [svgName, svg] = await keep("#explain-svg");
  assert.equal(svgName, "attention.svg");
  const [rows, columns] = await page.evaluate(() => { const [, w, h] = document.querySelector(".turn .shot span").textContent.match(/→ (\d+) × (\d+) px/); return [h / 8, w / 8]; });
  const text = svg.toString("utf8");
  assert.equal(text.match(/fill-opacity/g).length, rows * columns, "a rectangle for each patch");
  assert.match(text, new RegExp(`<title>Attention of “${world.count}”, layer mean of all: vora-demo</title>`, "i"));
  assert.match(text, /href="data:image\/png;base64,/);
  assert.match(text, /linearGradient/);
  const [pngName, png] = await keep("#explain-png");
  assert.equal(pngName, "attention.png");
  assert.equal(png.subarray(1, 4).toString(), "PNG");
  assert.equal(png.readUInt32BE(16), 2 * Number(/ width="(\d+)"/.exec(text)[1]));
  const shades = await page.evaluate(async ([given, wide]) => {
    const picture = new Image();
    picture.src = `data:image/png;base64,${given}`;
    await picture.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [picture.width, picture.height];
    canvas.getContext("2d").drawImage(picture, 0, 0);
    const { data } = canvas.getContext("2d").getImageData(0, 0, wide, Math.min(wide, canvas.height));
    return new Set(data.filter((_, index) => index % 4 === 0)).size;
  }, [png.toString("base64"), 600]);
  assert.ok(shades > 20, "it is not blank");
}

export async function a_large_model_is_looked_into_by_a_command({ world, open }) {
  const page = await open(world.command);
  await ready(page);
  await upload(page, image(world, "scene.png"));
  await ask(page, "How many shapes are there?");
  await pointAt(page, world.count);
  await page.waitForTimeout(400);
  assert.ok(!await page.isVisible("#heat"), "pointing alone starts nothing");
  await page.click(".after >> text=How it sees");
  await page.waitForFunction(() => /Run: .*vora-serve explain --model \S+ --listen unix:/.test(document.querySelector("#explain-what").textContent));
}
