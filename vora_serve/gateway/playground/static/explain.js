// How it sees, enlarged: attention from each token of the answer to the patches, layer by layer.
import { attentionOf, imagesOf, look } from "./attention.js";
import { $, h, number, save } from "./dom.js";
import { asPNG, asSVG, figure, shownOf } from "./figure.js";
import { paint, percent, topOf, weights } from "./heat.js";
import { dialogBox, draw } from "./images.js";
import { layerControl, legend } from "./legend.js";

const view = { data: null, images: [], tokens: [0], label: "" };
const layers = layerControl({ range: $("explain-layer"), name: $("explain-layer-name"), play: $("explain-play"), changed: () => redraw() });

const words = () => view.tokens.map((token) => view.data.tokens[token]).join("").trim() || "␣";
const image = () => Number($("explain-image").value || 0);
const current = () => shownOf(view.images, view.data, weights(view.data, view.tokens, layers.layer), image(),
  `Attention of “${words()}”, layer ${$("explain-layer-name").textContent}: ${view.label}`);

function redraw() {
  if (!view.data) return;
  const shown = current();
  const canvas = $("explain-canvas");
  draw(canvas, shown.image, shown.facts, { box: dialogBox(canvas) });
  paint(canvas, shown.grid, shown.values, shown.top);
  canvas.setAttribute("aria-label", shown.caption);
  const total = shown.values.reduce((sum, value) => sum + value, 0);
  $("explain-share").textContent = `${percent(total)} of its attention is on this image`;
  $("explain-legend").replaceChildren(legend(shown.top));
}

function choose(tokens) {
  view.tokens = tokens;
  [...$("explain-tokens").children].forEach((chip, index) => chip.setAttribute("aria-pressed", String(tokens.includes(index))));
  redraw();
}

function fill(images) {
  const { data } = view;
  $("explain-what").textContent = "Where the model looked when it chose this token: bright patches got more of its attention, all heads together.";
  $("explain-tokens").replaceChildren(...data.tokens.map((text, index) =>
    h("button", { type: "button", text: text.trim() || "␣", on: { click: () => choose([index]) } })));
  $("explain-image-field").hidden = images.length < 2;
  $("explain-image").replaceChildren(...images.map(({ name }, index) => h("option", { value: String(index), text: name })));
  if (data.similarity) {
    $("explain-teacher").replaceChildren(h("h3", { text: "Similarity to the teacher, by block" }),
      h("p", { class: "hint", text: data.similarity.map((value) => number(value, 2)).join("  ") }));
  }
}

/**
 * @param {any} answer
 * @param {import("./attention.js").Subject} subject
 * @param {{tokens: number[], layer: number}} [at] what to begin with
 */
export async function showExplain(answer, subject, at) {
  view.data = null;
  view.images = imagesOf(subject);
  view.label = subject.body.model;
  $("explain-what").textContent = attentionOf(answer) ? "" : "Computing …";
  for (const id of ["explain-tokens", "explain-teacher", "explain-legend"]) $(id).replaceChildren();
  $("explain-share").textContent = "";
  $("explain-parts").hidden = true;
  $("explain").showModal();
  draw($("explain-canvas"), view.images[0].image, view.images[0].facts, { box: dialogBox($("explain-canvas")) });
  try {
    view.data = await look(answer, subject);
  } catch (error) {
    $("explain-what").textContent = error.message;
    return;
  }
  $("explain-parts").hidden = false;
  fill(subject.images);
  layers.prepare(view.data.layers, at?.layer);
  choose(at?.tokens ?? [0]);
}

$("explain-image").addEventListener("input", redraw);
$("explain").addEventListener("close", () => layers.stop());
$("explain-svg").addEventListener("click", () => { if (view.data) save(asSVG(figure(current())), "attention.svg"); });
$("explain-png").addEventListener("click", async () => { if (view.data) save(await asPNG(figure(current())), "attention.png"); });
