// The page: panes (one, or two side by side), turns, the composer.
import { getModels, getSettings, key } from "./api.js";
import { Answer } from "./answer.js";
import { showCode } from "./code.js";
import { $, announce, h } from "./dom.js";
import { showExplain } from "./explain.js";
import { showImage } from "./inspect.js";
import { draw, fate, fromFile, fromURL, summary, toSend } from "./images.js";
import { prepareSettings, sampling } from "./preferences.js";

const SIZES = [0, 1024, 768, 512, 336, 224, 112, 56];
const page = { settings: {}, models: [], panes: [], turns: [], waiting: [], pending: 0 };

// ------------------------------------------------------------------ notices

function notice(text) {
  $("notice").textContent = text ?? "";
  $("notice").hidden = !text;
}

// ------------------------------------------------------------------ panes

function addPane(index) {
  const name = index === 0 ? "" : " (second)";
  const model = h("select", { id: `model-${index}`, on: { change: redraw } });
  const size = h("select", { id: `size-${index}`, on: { change: redraw } }, ...SIZES.map((side) =>
    h("option", { value: String(side), text: side ? `at most ${side} px` : "as they are" })));
  const node = h("div", { class: "pane" },
    h("div", {}, h("label", { for: model.id, text: `Model${name}` }), model),
    h("div", {}, h("label", { for: size.id, text: `Images${name}` }), size));
  page.panes.push({ index, model, size, node });
  $("panes").append(node);
  fillModels();
}

function fillModels() {
  for (const pane of page.panes) {
    const chosen = pane.model.value || page.models[Math.min(pane.index, page.models.length - 1)]?.id;
    pane.model.replaceChildren(...page.models.map((card) => h("option", { value: card.id, text: card.id })));
    if (page.models.some((card) => card.id === chosen)) pane.model.value = chosen;
  }
}

const modelOf = (pane) => page.models.find((card) => card.id === pane.model.value) ?? null;
const sideOf = (pane) => Number(pane.size.value);
const labelOf = (pane) => `${pane.model.value}${sideOf(pane) ? `, at most ${sideOf(pane)} px` : ""}`;

function toggleCompare() {
  const on = page.panes.length === 1;
  if (on) {
    addPane(1);
    // One model alone is compared with itself at another resolution.
    if (page.models.length < 2) page.panes[1].size.value = "56";
  } else {
    page.panes.pop().node.remove();
  }
  document.body.classList.toggle("comparing", on);
  $("compare").setAttribute("aria-pressed", String(on));
  newChat(true);
}

async function connect() {
  try {
    page.models = await getModels();
    fillModels();
    notice(page.models.length ? null : "No engine is ready yet. This page asks again by itself.");
  } catch (error) {
    page.models = [];
    if (error.status === 401) {
      notice(key.get() ? "This API key is not valid." : "This server asks for an API key: give it in the settings.");
      return;
    }
    notice(`${error.message} This page asks again by itself.`);
  }
  redraw();
  if (!page.models.length) setTimeout(connect, 2000);
}

// ------------------------------------------------------------------ images

/** What a pane asks with, as it is now. */
const choice = (pane) => ({ model: modelOf(pane), side: sideOf(pane) });

/** An image as it is served, to look at closer. `height` is the room that it has. */
function shot(image, { model, side }, height) {
  const facts = fate(image, model, side, page.settings);
  const canvas = h("canvas", { "aria-hidden": "true" });
  draw(canvas, image, facts, { grid: $("grid").checked, box: [Math.min(height * 1.4, window.innerWidth - 70), height] });
  return h("button", {
    type: "button", class: "shot", "aria-label": `Look closer at ${image.name}: ${summary(image, facts)}`,
    on: { click: () => showImage(image, model, side, page.settings) },
  }, canvas, h("span", { text: summary(image, facts) }));
}

const shots = (turn, chosen) => turn.images.map((image) => shot(image, chosen, 220));

function drawWaiting() {
  $("images").replaceChildren(
    ...page.waiting.map((image) => h("li", {}, shot(image, choice(page.panes[0]), 110), h("button", {
      type: "button", class: "remove", text: "×", "aria-label": `Remove ${image.name}`,
      on: { click: () => {
        page.waiting = page.waiting.filter((other) => other !== image);
        drawWaiting();
        $("question").focus();
      } },
    }))),
    ...(page.pending ? [h("li", { class: "loading", text: "loading …" })] : []));
  $("send").disabled = page.pending > 0;
}

async function add(making, name) {
  if (page.waiting.length + page.pending >= page.settings.max_images) {
    notice(`At most ${page.settings.max_images} images go into a request.`);
    return false;
  }
  page.pending += 1;
  drawWaiting();
  try {
    const image = await making();
    page.waiting.push(image);
    notice(null);
    announce(`Added ${image.name}`);
    return true;
  } catch (error) {
    notice(error.status || error.code || error.message?.includes("taken")
      ? error.message : `${name} cannot be read as an image.`);
    return false;
  } finally {
    page.pending -= 1;
    drawWaiting();
  }
}

const addFiles = async (files) => {
  for (const file of files) await add(() => fromFile(file, page.settings.max_image_bytes), file.name || "What was pasted");
};

async function addURL(url) {
  return add(() => fromURL(url), "What this address gives");
}

// ------------------------------------------------------------------ asking

function messages(pane, turns, code) {
  const system = $("system").value.trim();
  const result = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    const answer = turn.answers[pane.index];
    if (turn !== turns.at(-1) && !answer?.text) continue;  // a question that got no answer
    const parts = turn.images.map((image) => (code ? { image }
      : { type: "image_url", image_url: { url: toSend(image, sideOf(pane)) } }));
    result.push({ role: "user",
      content: parts.length ? [...parts, { type: "text", text: turn.text }] : turn.text });
    if (turn !== turns.at(-1)) result.push({ role: "assistant", content: answer.text });
  }
  return result;
}

function ask(turn) {
  const upTo = page.turns.slice(0, page.turns.indexOf(turn) + 1);
  turn.answers = page.panes.map((pane) => {
    const body = { model: pane.model.value, messages: messages(pane, upTo, false), ...sampling() };
    const label = labelOf(pane), side = sideOf(pane);
    const images = upTo.flatMap((each) => each.images);
    const written = { ...body, messages: messages(pane, upTo, true) };
    return new Answer({ model: pane.model.value, label }, body, {
      settings: page.settings,
      retry: () => ask(turn),
      code: () => showCode(written, images, side, page.settings),
      explain: page.settings.explain && images.length
        ? () => showExplain(body, turn.answers[pane.index].text, images, modelOf(pane), side, page.settings) : null,
    });
  });
  // Side by side, each shows what it was sent; later changes of the panes change nothing here.
  const chosen = page.panes.map(choice);
  const apart = chosen.length > 1 && turn.images.length > 0;
  const columns = turn.answers.map((answer) =>
    h("div", {}, h("div", { class: "shown" }), answer.node));
  turn.node.querySelector(".answers").replaceChildren(...columns);
  turn.show = () => {
    turn.node.querySelector(".asked > .shown").replaceChildren(...(apart ? [] : shots(turn, chosen[0])));
    columns.forEach((column, index) =>
      column.firstChild.replaceChildren(...(apart ? shots(turn, chosen[index]) : [])));
  };
  turn.show();
  $("log").scrollTop = $("log").scrollHeight;
  showBusy();
  announce("Answering");
  Promise.all(turn.answers.map((answer) => answer.run())).then(showBusy);
}

function send() {
  const text = $("question").value.trim();
  if (busy() || page.pending) return;
  if (!text && !page.waiting.length) { $("question").focus(); return; }
  if (!page.panes[0].model.value) { connect(); return; }
  for (const answer of page.turns.at(-1)?.answers ?? []) answer.settle();
  const turn = { text: text || "What do you see?", images: page.waiting, answers: [] };
  turn.node = h("div", { class: "turn" },
    h("div", { class: "asked" },
      h("div", { class: "shown" }),
      h("h2", { class: "hidden", text: "You asked" }), h("div", { class: "text", text: turn.text })),
    h("div", { class: "answers" }));
  page.turns.push(turn);
  $("turns").append(turn.node);
  $("welcome").hidden = true;
  page.waiting = [];
  $("question").value = "";
  grow();
  drawWaiting();
  ask(turn);
}

const busy = () => page.turns.some((turn) => turn.answers.some((answer) => answer.busy));
const stop = () => page.turns.forEach((turn) => turn.answers.forEach((answer) => answer.busy && answer.stop()));

function showBusy() {
  $("stop").hidden = !busy();
  $("send").hidden = busy();
}

function newChat(keep) {
  stop();
  page.turns = [];
  $("turns").replaceChildren();
  $("welcome").hidden = false;
  if (keep !== true) { page.waiting = []; notice(null); }
  redraw();
  showBusy();
  $("question").focus();
}

function redraw() {
  drawWaiting();
}

function grow() {
  const box = $("question");
  box.style.setProperty("height", "auto");
  box.style.setProperty("height", `${box.scrollHeight}px`);
}

// ------------------------------------------------------------------ wiring

function wire() {
  $("compare").addEventListener("click", toggleCompare);
  $("new-chat").addEventListener("click", newChat);
  $("stop").addEventListener("click", stop);
  $("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  $("question").addEventListener("input", grow);
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && busy() && !document.querySelector("dialog[open]")) stop();
  });
  $("add-file").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", async () => { await addFiles([...$("file").files]); $("file").value = ""; });
  $("add-url").addEventListener("click", () => {
    const open = $("url-row").hidden;
    $("url-row").hidden = !open;
    $("add-url").setAttribute("aria-expanded", String(open));
    (open ? $("url") : $("question")).focus();
  });
  const byURL = async () => {
    const url = $("url").value.trim();
    if (url && await addURL(url)) { $("url").value = ""; $("question").focus(); }
  };
  $("url-add").addEventListener("click", byURL);
  $("url").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); byURL(); } });
  $("sample").addEventListener("click", async () => {
    const file = await (await fetch("/playground/sample.png")).blob();
    await addFiles([new File([file], "sample.png", { type: "image/png" })]);
    if (!$("question").value) $("question").value = "What do you see?";
    $("question").focus();
  });
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  wireDrop();
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
    if (files.length) { event.preventDefault(); addFiles(files); }
  });
}

function wireDrop() {
  let depth = 0;
  const carries = (event) => [...(event.dataTransfer?.types ?? [])].some((type) => type === "Files" || type === "text/uri-list");
  const show = (on) => { $("drop").hidden = !on; };
  document.addEventListener("dragenter", (event) => { if (carries(event)) { depth += 1; show(true); } });
  document.addEventListener("dragleave", (event) => { if (carries(event)) { depth -= 1; show(depth > 0); } });
  document.addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    depth = 0;
    show(false);
    const files = [...event.dataTransfer.files];
    const url = event.dataTransfer.getData("text/uri-list").split("\n").find((line) => /^https?:/.test(line));
    if (files.length) addFiles(files);
    else if (url) addURL(url.trim());
  });
}

async function start() {
  prepareSettings({
    changed: () => { redraw(); page.turns.forEach((turn) => turn.show()); },
    keyChanged: connect,
  });
  wire();
  addPane(0);
  try {
    page.settings = await getSettings();
  } catch {
    page.settings = { max_images: 16, max_image_bytes: 20 * 2 ** 20 };
  }
  $("key-field").hidden = page.settings.keys_needed === false;
  $("add-url").hidden = page.settings.fetch === false;
  await connect();
  $("question").focus();
}

start();
