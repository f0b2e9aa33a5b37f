// Where questions are written: images to send, what the server would refuse, the context they take.
import { contextOf } from "./context.js";
import { path } from "./conversation.js";
import { $, announce, h, number } from "./dom.js";
import { fate, fromFile, fromURL, within } from "./images.js";
import { problemOf, problemOfAll } from "./limits.js";
import { notice, noticeError } from "./notice.js";
import { imagesOf, modelOf, page, sideOf } from "./page.js";
import { choice } from "./panes.js";
import { systemPrompt } from "./preferences.js";
import { askNext, busy, shot, stop } from "./turns.js";

/** Called when what is written or waits has changed. */
const hooks = { changed: () => {}, connect: () => {} };

const limits = () => page.settings.limits ?? null;
const sent = () => path(page.chat).flatMap(imagesOf);
const tokensOf = (images) => images.reduce((sum, image) =>
  sum + (fate(image, modelOf(page.panes[0]), sideOf(page.panes[0]), page.settings)?.tokens ?? 0), 0);

// ------------------------------------------------------------------ images

async function replace(image, making) {
  const mended = await making(image);
  page.waiting = page.waiting.map((other) => (other === image ? mended : other));
  drawComposer();
  hooks.changed();
  announce(`${mended.name} has ${mended.width} by ${mended.height} pixels now`);
}

const fitting = (image) => within(image, { pixels: limits().max_pixels, bytes: limits().max_bytes });

function waitingItem(image) {
  const problem = problemOf(image, limits());
  return h("li", { class: problem ? "wrong" : null }, shot(image, choice(page.panes[0]), 110),
    problem ? h("p", { class: "problem" }, problem.text, problem.mend
      ? h("button", { type: "button", text: problem.mend, on: { click: () => replace(image, fitting) } }) : null) : null,
    h("button", {
      type: "button", class: "remove", text: "×", "aria-label": `Remove ${image.name}`,
      on: { click: () => {
        page.waiting = page.waiting.filter((other) => other !== image);
        drawComposer();
        hooks.changed();
        $("question").focus();
      } },
    }));
}

async function add(making, name) {
  const most = limits()?.max_count ?? 16;
  if (page.waiting.length + page.pending + sent().length >= most) {
    notice(`At most ${most} images go into a request.`, ["Remove one, or begin a new chat.", ["new-chat"]]);
    return false;
  }
  page.pending += 1;
  drawComposer();
  try {
    const image = await making();
    page.waiting.push(image);
    notice(null);
    announce(`Added ${image.name}`);
    return true;
  } catch (error) {
    if (error.status || error.code) noticeError(error);
    else notice(`${name} cannot be read as an image.`, ["Send a PNG or JPEG file.", []]);
    return false;
  } finally {
    page.pending -= 1;
    drawComposer();
    hooks.changed();
  }
}

export async function addFiles(files) {
  for (const file of files) await add(() => fromFile(file), file.name || "What was pasted");
}

export const addURL = (url) => add(() => fromURL(url), "What this address gives");

/** Make the images that wait so small that the server and the model's context take them all. */
export async function shrinkWaiting() {
  if (!limits() || !page.waiting.length) { notice("No image waits to be sent.", ["Images of earlier turns stay as they are: begin a new chat to leave them out.", ["new-chat"]]); return; }
  const pane = page.panes[0];
  const room = (modelOf(pane)?.max_model_len ?? Infinity) * 0.75 - tokensOf(sent());
  const bytes = Math.min(limits().max_bytes, limits().max_total_bytes / (page.waiting.length + sent().length));
  const pixels = Math.min(limits().max_pixels, limits().max_total_pixels / (page.waiting.length + sent().length));
  let images = await Promise.all(page.waiting.map((image) => within(image, { pixels, bytes })));
  for (let tries = 0; tries < 12 && tokensOf(images) > room; tries += 1) {
    const before = tokensOf(images);
    images = await Promise.all(images.map((image) => within(image, { pixels: image.width * image.height * Math.max(0.25, Math.min(0.8, room / before)), bytes })));
  }
  page.waiting = images;
  drawComposer();
  hooks.changed();
  announce("The images are smaller now");
}

// ------------------------------------------------------------------ context

/** What the next request takes of the context, by what is known here. */
function context() {
  const turns = path(page.chat);
  const model = modelOf(page.panes[0]);
  const last = turns.at(-1)?.answers[0];
  const newImages = tokensOf(page.waiting);
  return contextOf({
    limit: model?.max_model_len ?? null,
    images: tokensOf(sent()) + newImages, newImages,
    history: turns.map((turn) => `${turn.text}${turn.answers[0]?.text ?? ""}`).join(""),
    text: $("question").value + (turns.length ? "" : systemPrompt()),
    usage: last?.usage && last.model === model?.id && last.side === sideOf(page.panes[0]) ? last.usage : null,
  });
}

export function drawContext() {
  const { limit, images, text, total, over } = context();
  $("context").hidden = limit === null;
  if (limit === null) return;
  $("context").classList.toggle("over", over);
  $("context-images").style.setProperty("width", `${Math.min(100, 100 * images / limit)}%`);
  $("context-words").style.setProperty("width", `${Math.max(0, Math.min(100 - 100 * images / limit, 100 * text / limit))}%`);
  const told = `about ${number(total)} of ${number(limit)} tokens: ${number(images)} of images, about ${number(text)} of text`;
  $("context-text").textContent = over ? `${told}. Too long: shrink the images, or begin a new chat.` : told;
}

export function drawComposer() {
  $("images").replaceChildren(...page.waiting.map(waitingItem),
    ...(page.pending ? [h("li", { class: "loading", text: "loading …" })] : []));
  $("send").disabled = page.pending > 0;
  $("stop").hidden = !busy();
  $("send").hidden = busy();
  drawContext();
}

function grow() {
  const box = $("question");
  box.style.setProperty("height", "auto");
  box.style.setProperty("height", `${box.scrollHeight}px`);
}

/** Put a question there, as of a draft. */
export function write(text) {
  $("question").value = text;
  grow();
  drawContext();
}

// ------------------------------------------------------------------ sending

/** The reason not to send yet, told beside the composer; null where the server would take it. */
function refusal() {
  const wrong = page.waiting.find((image) => problemOf(image, limits()));
  if (wrong) {
    const problem = problemOf(wrong, limits());
    notice(`${wrong.name}: ${problem.text}`, ["", problem.mend ? [[problem.mend, () => replace(wrong, fitting)]] : []]);
    return true;
  }
  const all = problemOfAll([...sent(), ...page.waiting], limits());
  if (all) { notice(all.text, ["", all.mend ? ["shrink", "new-chat"] : ["new-chat"]]); return true; }
  const { limit, images } = context();
  if (limit !== null && images >= limit) {  // exact, so there is no use in asking the server
    notice(`The images take ${number(images)} tokens of the model's ${number(limit)}.`, ["", ["shrink", "new-chat"]]);
    return true;
  }
  return false;
}

function send() {
  const text = $("question").value.trim();
  if (busy() || page.pending) return;
  if (!text && !page.waiting.length) { $("question").focus(); return; }
  if (!page.panes[0].model.value) { hooks.connect(); return; }
  if (refusal()) return;
  const images = page.waiting;
  page.waiting = [];
  notice(null);
  write("");
  askNext(text || "What do you see?", images);
  drawComposer();
}

export function wireComposer(given) {
  Object.assign(hooks, given);
  $("stop").addEventListener("click", stop);
  $("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  $("question").addEventListener("input", () => { grow(); drawContext(); hooks.changed(); });
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
}
