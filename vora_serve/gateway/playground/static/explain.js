// How it sees: attention from each token of the answer to the image's patches, layer by layer.
import { explain } from "./api.js";
import { $, h, number } from "./dom.js";
import { dialogBox, draw, fate } from "./images.js";

const view = { data: null, images: [], token: 0 };

/** Attention of the chosen token and layer to one image's tokens, as an array. */
function weights() {
  const { layers } = view.data;
  const layer = Number($("explain-layer").value);
  const image = Number($("explain-image").value || 0);
  const of = (index) => view.data.attention[view.token][index][image];
  if (layer < layers) return of(layer);
  const sum = of(0).map(() => 0);
  for (let index = 0; index < layers; index += 1) of(index).forEach((value, at) => { sum[at] += value / layers; });
  return sum;
}

function redraw() {
  if (!view.data) return;
  const image = Number($("explain-image").value || 0);
  const layer = Number($("explain-layer").value);
  $("explain-layer-name").textContent = layer < view.data.layers ? `${layer + 1} of ${view.data.layers}` : "mean of all";
  const canvas = $("explain-canvas");
  draw(canvas, view.images[image].image, view.images[image].facts, { box: dialogBox(canvas) });
  const [rows, columns] = view.data.grids[image];
  const values = weights();
  const top = Math.max(...values) || 1;
  const context = canvas.getContext("2d");
  context.fillStyle = "rgba(12,14,20,.55)";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const w = canvas.width / columns, hgt = canvas.height / rows;
  values.forEach((value, index) => {
    context.fillStyle = `rgba(255,176,32,${0.9 * (value / top) ** 1.5})`;
    context.fillRect((index % columns) * w, Math.floor(index / columns) * hgt, w + 0.5, hgt + 0.5);
  });
  const total = values.reduce((sum, value) => sum + value, 0);
  $("explain-share").textContent = `${number(100 * total, 1)} % of this token's attention is on this image`;
  canvas.setAttribute("aria-label",
    `Attention of “${view.data.tokens[view.token]}” over the image, layer ${$("explain-layer-name").textContent}`);
}

function choose(token) {
  view.token = token;
  [...$("explain-tokens").children].forEach((chip, index) => chip.setAttribute("aria-pressed", String(index === token)));
  redraw();
}

/** The messages with images' addresses replaced by what the gateway fetched there. */
const withData = (messages, images) => messages.map((message) => (Array.isArray(message.content)
  ? { ...message, content: message.content.map((part) => {
    const given = images.find((image) => image.url === part.image_url?.url);
    return given?.source === "url" ? { type: "image_url", image_url: { url: given.image.src } } : part;
  }) } : message));

export async function showExplain(body, answer, images, model, side, settings) {
  view.data = null;
  view.images = images.map((image) => ({ image, facts: fate(image, model, side, settings) }));
  $("explain-what").textContent = "Computing …";
  $("explain-tokens").replaceChildren();
  $("explain-teacher").replaceChildren();
  $("explain-share").textContent = "";
  $("explain").showModal();
  draw($("explain-canvas"), view.images[0].image, view.images[0].facts, { box: dialogBox($("explain-canvas")) });
  try {
    view.data = await explain({ model: body.model, messages: withData(body.messages, images), answer });
  } catch (error) {
    $("explain-what").textContent = error.message;
    return;
  }
  $("explain-what").textContent = "Where the model looked when it chose this token: bright patches got more of its attention, all heads together.";
  $("explain-tokens").replaceChildren(...view.data.tokens.map((text, index) =>
    h("button", { type: "button", text: text.trim() || "␣", on: { click: () => choose(index) } })));
  $("explain-layer").max = String(view.data.layers);
  $("explain-layer").value = String(view.data.layers);
  $("explain-image-field").hidden = images.length < 2;
  $("explain-image").replaceChildren(...images.map((image, index) =>
    h("option", { value: String(index), text: image.name })));
  if (view.data.similarity) {
    $("explain-teacher").replaceChildren(h("h3", { text: "Similarity to the teacher, by block" }),
      h("p", { class: "hint", text: view.data.similarity.map((value) => number(value, 2)).join("  ") }));
  }
  choose(0);
}

for (const id of ["explain-layer", "explain-image"]) $(id).addEventListener("input", redraw);
$("explain-save").addEventListener("click", () => {
  h("a", { href: $("explain-canvas").toDataURL("image/png"), download: "attention.png" }).click();
});
