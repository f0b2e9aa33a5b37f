// Point at a word of an answer, and the patches that it was chosen by light up on the images.
import { attentionOf, imagesOf, isBehind, look } from "./attention.js";
import { $, h } from "./dom.js";
import { showExplain } from "./explain.js";
import { paint, percent, tokensIn, topOf, weights } from "./heat.js";
import { draw } from "./images.js";
import { layerControl, legend } from "./legend.js";
import { page } from "./page.js";
import { mark, wordAt, wordsOf } from "./words.js";

const DWELL_MS = 120, AGAIN_MS = 10_000, SMALL = 96;
/** What is pointed at: {answer, subject, index of the word}, or null. */
let at = null;
let timer = 0;
let asking = null;
const failures = new WeakMap();
const layers = layerControl({ range: $("heat-layer"), name: $("heat-layer-name"), play: $("heat-play"), changed: () => redraw() });

const say = (text) => { if ($("heat-state").textContent !== text) $("heat-state").textContent = text; };

/** Tokens of the word that is pointed at; none where they are not computed yet. */
function tokens() {
  const data = attentionOf(at.answer);
  const word = data && wordsOf(at.answer.said, data.answer)[at.index];
  return word ? tokensIn(data, word.span) : [];
}

/** The images of the conversation that show what the answer was about, with their index. */
function shots() {
  const { images, column } = at.subject;
  return [...document.querySelectorAll("#turns .shot")].flatMap((node) => {
    const index = images.findIndex((image) => image.id === node.dataset.image);
    return index >= 0 && ["", String(column)].includes(node.dataset.column) ? [[node, index]] : [];
  });
}

const inView = (node) => {
  const box = node.getBoundingClientRect(), log = $("log").getBoundingClientRect();
  return box.top >= Math.max(0, log.top) - box.height / 2 && box.bottom <= Math.min(window.innerHeight, log.bottom) + box.height / 2;
};

function cool() {
  for (const node of document.querySelectorAll("canvas.heat")) node.remove();
}

function redraw() {
  cool();
  if (!at) return;
  const words = wordsOf(at.answer.said, at.answer.text);
  const word = words[at.index];
  mark(word ? [word] : []);
  const chosen = tokens();
  $("heat-word").textContent = word ? `“${word.node.data.slice(word.from, word.to)}”` : "";
  $("heat-parts").hidden = !chosen.length;
  if (!chosen.length) return;
  const data = attentionOf(at.answer);
  const all = weights(data, chosen, layers.layer);
  const top = topOf(all);
  const visible = shots();
  for (const [node, index] of visible) {
    const base = node.querySelector("canvas");
    const heat = h("canvas", { class: "heat", width: base.width, height: base.height, "aria-hidden": "true" });
    for (const [name, value] of [["left", base.offsetLeft], ["top", base.offsetTop], ["width", base.clientWidth], ["height", base.clientHeight]]) heat.style.setProperty(name, `${value}px`);
    paint(heat, data.grids[index], all[index], top, base);
    node.append(heat);
  }
  // Images that are scrolled away are shown beside the word.
  const far = !visible.some(([node]) => inView(node));
  $("heat-images").replaceChildren(...(far ? imagesOf(at.subject).map(({ image, facts }, index) => {
    const canvas = h("canvas", { role: "img", "aria-label": image.name });
    draw(canvas, image, facts, { box: [SMALL * 2, SMALL] });
    paint(canvas, data.grids[index], all[index], top);
    return canvas;
  }) : []));
  $("heat-legend").replaceChildren(legend(top));
  const total = all.flat().reduce((sum, value) => sum + value, 0);
  say(`${percent(total)} of its attention is on ${all.length > 1 ? "the images" : "the image"}`);
}

/** Ask until what is pointed at is computed, or cannot be. */
async function fetchIt() {
  if (asking || !at) return;
  const { answer, subject } = at;
  asking = answer;
  try {
    await look(answer, subject);
    if (at?.answer === answer) {
      layers.prepare(attentionOf(answer).layers, $("heat-parts").hidden ? undefined : layers.layer);
      redraw();
    }
  } catch (error) {
    failures.set(answer, performance.now());
    if (at?.answer === answer) say(error.message);
  }
  asking = null;
  const failed = at && performance.now() - (failures.get(at.answer) ?? -Infinity) < AGAIN_MS;
  if (at && !failed && !tokens().length) {
    if (isBehind(at.answer)) fetchIt();
    else say("Only the beginning of this answer could be looked into.");
  }
}

function point(answer, subject, x, y) {
  const words = wordsOf(answer.said, answer.text);
  const word = wordAt(words, x, y);
  if (!word) return;
  const index = words.indexOf(word);
  if (at?.answer === answer && at.index === index) return;
  const other = at?.answer !== answer;
  if (other && performance.now() - (failures.get(answer) ?? -Infinity) < AGAIN_MS) return;
  at = { answer, subject: other ? subject() : at.subject, index };
  if (other) {
    layers.stop();
    if (attentionOf(answer)) layers.prepare(attentionOf(answer).layers);
  }
  clearTimeout(timer);
  timer = 0;
  const begin = () => {
    const card = $("heat");
    if (card.hidden) card.classList.toggle("high", y > window.innerHeight / 2);
    card.hidden = false;
    redraw();
  };
  if (tokens().length) begin();
  else {
    timer = setTimeout(() => {
      timer = 0;
      say("Computing where it looked; the first time loads the model …");
      begin();
      fetchIt();
    }, DWELL_MS);
  }
}

/** The pointer went elsewhere: who only passed by asked for nothing. */
function left() {
  if (!timer) return;
  clearTimeout(timer);
  timer = 0;
  if ($("heat").hidden) endSeeing();
}

/** Forget what is pointed at. */
export function endSeeing() {
  at = null;
  clearTimeout(timer);
  timer = 0;
  layers.stop();
  mark([]);
  cool();
  $("heat").hidden = true;
}

/** After the page was drawn anew: an answer that streams, other sizes of images. */
export function reheat() {
  if (at && !at.answer.said.isConnected) endSeeing();
  else if (at) redraw();
}

/**
 * Let the words of an answer be pointed at.
 * @param {any} answer
 * @param {() => import("./attention.js").Subject & {column: number}} subject
 */
export function letSee(answer, subject) {
  const ready = () => page.settings.explain === "ready";
  answer.said.addEventListener("pointermove", (event) => {
    // Over the conversation alone: a button that is held selects text.
    if (ready() && event.pointerType === "mouse" && !event.buttons) point(answer, subject, event.clientX, event.clientY);
  });
  answer.said.addEventListener("pointerleave", left);
  answer.said.addEventListener("click", (event) => { if (ready()) point(answer, subject, event.clientX, event.clientY); });
}

export function wireSeeing() {
  $("heat-close").addEventListener("click", endSeeing);
  $("heat-larger").addEventListener("click", () => {
    const now = at && { ...at, tokens: tokens(), layer: layers.layer };
    endSeeing();
    if (now) showExplain(now.answer, now.subject, now);
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && at) endSeeing(); });
  document.addEventListener("pointerdown", (event) => {
    if (at && event.target instanceof Element && !event.target.closest("#heat, .said, .shot")) endSeeing();
  });
}
