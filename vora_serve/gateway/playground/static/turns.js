// The turns of the open conversation: shown, asked, asked anew, edited.
import { Answer } from "./answer.js";
import { showCode } from "./code.js";
import { addTurn, choose, path, versions } from "./conversation.js";
import { $, announce, h, scroller } from "./dom.js";
import { showExplain } from "./explain.js";
import { draw, fate, summary, toSend } from "./images.js";
import { showImage } from "./inspect.js";
import { noticeError } from "./notice.js";
import { imagesOf, modelNamed, page, sideOf } from "./page.js";
import { choice, labelOf } from "./panes.js";
import { sampling, systemPrompt } from "./preferences.js";
import { letSee, reheat } from "./seeing.js";

/** Called when something was said or asked: `save` to keep it, `drawn` after a change on the page. */
const hooks = { save: () => {}, drawn: () => {} };
export const prepareTurns = (given) => Object.assign(hooks, given);

const nodes = new Map();

/** An image as it is served, to look at closer. `height` is the room that it has. */
export function shot(image, { model, side }, height, column = "") {
  const facts = fate(image, model, side, page.settings);
  const canvas = h("canvas", { "aria-hidden": "true" });
  draw(canvas, image, facts, { grid: $("grid").checked, box: [Math.min(height * 1.4, window.innerWidth - 70), height] });
  return h("button", {
    type: "button", class: "shot", "data-image": image.id, "data-column": column, "aria-label": `Look closer at ${image.name}: ${summary(image, facts)}`,
    on: { click: () => showImage(image, model, side, page.settings) },
  }, canvas, h("span", { text: summary(image, facts) }));
}

const shown = () => path(page.chat);
const answersOf = (turn) => page.answers.get(turn.id) ?? [];
export const busy = () => shown().some((turn) => answersOf(turn).some((answer) => answer.busy));
export const stop = () => shown().forEach((turn) => answersOf(turn).forEach((answer) => answer.busy && answer.stop()));

/** The messages of a request: the turns up to `turn`, answered by what this column answered. */
function messages(chat, turn, column, { system, side }, code) {
  const result = system ? [{ role: "system", content: system }] : [];
  for (const each of path(chat, turn.id)) {
    const answer = each.answers[column] ?? each.answers[0];
    if (each !== turn && !answer?.text) continue;  // a question that got no answer
    const parts = imagesOf(each).map((image) => (code ? { image }
      : { type: "image_url", image_url: { url: toSend(image, side) } }));
    result.push({ role: "user", content: parts.length ? [...parts, { type: "text", text: each.text }] : each.text });
    if (each !== turn) result.push({ role: "assistant", content: answer.text });
  }
  return result;
}

const bodyOf = (chat, turn, column, kept, code = false) =>
  ({ model: kept.model, messages: messages(chat, turn, column, kept, code), ...kept.options });

function makeAnswer(chat, turn, column, kept) {
  const images = path(chat, turn.id).flatMap(imagesOf);
  const sees = page.settings.explain && images.length > 0;
  const subject = () => ({ body: bodyOf(chat, turn, column, kept), images, model: modelNamed(kept.model), side: kept.side, column });
  const answer = new Answer(kept, {
    settings: page.settings,
    retry: () => again(turn, turn.text),
    code: () => showCode(bodyOf(chat, turn, column, kept, true), images, kept.side, page.settings),
    explain: sees ? () => showExplain(answer, subject()) : null,
    grew: () => keep(chat, turn, false),
    shown: reheat,
  });
  if (sees) letSee(answer, subject);
  return answer;
}

function keep(chat, turn, now = true) {
  turn.answers = answersOf(turn).map((answer) => answer.record());
  chat.updated = Date.now();
  hooks.save(chat, now);
}

/** Ask what `turn` asks, of each pane. */
function ask(turn) {
  const chat = page.chat;
  const kept = page.panes.map((pane) => ({ model: pane.model.value, label: labelOf(pane), side: sideOf(pane),
    system: systemPrompt(), options: sampling() }));
  const answers = kept.map((each, column) => makeAnswer(chat, turn, column, each));
  page.answers.set(turn.id, answers);
  keep(chat, turn);
  show();
  const log = scroller();
  log.scrollTop = log.scrollHeight;
  announce("Answering");
  answers.forEach(async (answer, column) => {
    await answer.run(bodyOf(chat, turn, column, kept[column]));
    keep(chat, turn);
    if (page.chat === chat) {
      const failed = answer.kept.error;
      if (failed) noticeError(failed);
      hooks.drawn();
    }
  });
  hooks.drawn();
}

/** Ask a new question after the last turn. */
export function askNext(text, images) {
  for (const image of images) page.images.set(image.id, image);
  ask(addTurn(page.chat, page.chat.leaf, text, images.map((image) => image.id)));
}

/** Ask once more at the place of `turn`, with this text; what was there stays a version of it. */
function again(turn, text) {
  if (busy()) return;
  ask(addTurn(page.chat, turn.parent, text, turn.images));
}

function edit(turn, place) {
  const box = h("textarea", { rows: "2", "aria-label": "Your question, edited", value: turn.text });
  const close = () => { form.replaceWith(place); place.parentElement.querySelector(".edit")?.focus(); };
  const form = h("form", { class: "editing", on: {
    submit: (event) => { event.preventDefault(); if (box.value.trim() && !busy()) { close(); again(turn, box.value.trim()); } },
    keydown: (event) => {
      if (event.key === "Escape") { event.stopPropagation(); close(); }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
    },
  } }, box, h("div", { class: "after" }, h("button", { type: "submit", class: "primary", text: "Ask this instead" }),
    h("button", { type: "button", text: "Cancel", on: { click: close } })));
  place.replaceWith(form);
  box.focus();
}

function versionsOf(turn) {
  const all = versions(page.chat, turn);
  if (all.length < 2) return null;
  const at = all.indexOf(turn);
  const step = (sign, by, name) => h("button", { type: "button", text: sign, "aria-label": name, disabled: !all[at + by],
    on: { click: () => { choose(page.chat, all[at + by]); hooks.save(page.chat, true); show(); hooks.drawn();
      nodes.get(all[at + by].id)?.querySelector(".versions button:not(:disabled)")?.focus(); } } });
  return h("span", { class: "versions" }, step("‹", -1, "Earlier version"),
    h("span", { text: `${at + 1} of ${all.length}` }), step("›", 1, "Later version"));
}

function build(turn) {
  const text = h("div", { class: "text", text: turn.text });
  const tools = h("div", { class: "asked-tools" });
  const node = h("div", { class: "turn" },
    h("div", { class: "asked" }, h("div", { class: "shown" }), h("h2", { class: "hidden", text: "You asked" }), text, tools),
    h("div", { class: "answers" }));
  node.addEventListener("tools", () => tools.replaceChildren(...[versionsOf(turn),
    h("button", { type: "button", class: "edit", text: "Edit", on: { click: () => { if (!busy()) edit(turn, text); } } })].filter(Boolean)));
  return node;
}

/** Put the answers of a turn, and the images as they were sent, on the page. */
function fill(turn, node) {
  const answers = page.answers.get(turn.id)
    ?? turn.answers.map((kept, column) => makeAnswer(page.chat, turn, column, kept));
  page.answers.set(turn.id, answers);
  // Side by side, each shows what it was sent; later changes of the panes change nothing here.
  const chosen = answers.map(({ kept }) => ({ model: modelNamed(kept.model), side: kept.side }));
  const images = imagesOf(turn);
  const apart = chosen.length > 1 && images.length > 0;
  const shots = (how, column) => images.map((image) => shot(image, how, 220, column));
  node.querySelector(".asked > .shown").replaceChildren(...(apart ? [] : shots(chosen[0] ?? choice(page.panes[0]))));
  const columns = answers.map((answer, index) => h("div", {}, h("div", { class: "shown" }, ...(apart ? shots(chosen[index], index) : [])), answer.node));
  node.querySelector(".answers").replaceChildren(...columns);
  requestAnimationFrame(reheat);  // once it is on the page
}

/** Show the open conversation. `anew` draws the images again, as after a change of the settings. */
export function show(anew = false) {
  const turns = shown();
  $("turns").replaceChildren(...turns.map((turn) => {
    const known = nodes.get(turn.id);
    const node = known ?? build(turn);
    nodes.set(turn.id, node);
    const columns = node.querySelectorAll(".answer");
    const same = columns.length && [...columns].every((column, index) => column === answersOf(turn)[index]?.node);
    if (anew || !same) fill(turn, node);
    node.dispatchEvent(new Event("tools"));
    return node;
  }));
  turns.slice(0, -1).forEach((turn) => answersOf(turn).forEach((answer) => answer.settle()));
  $("welcome").hidden = turns.length > 0;
}

/** Forget the nodes of a conversation that is no longer open; answers on their way go on. */
export function leave() {
  nodes.clear();
  for (const [id, answers] of page.answers) if (!answers.some((answer) => answer.busy)) page.answers.delete(id);
}
