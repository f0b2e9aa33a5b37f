// An image up close: patches, tokens, costs; enlarged, and walked through by pointer or keys.
import { $, h, number } from "./dom.js";
import { costs, dialogBox, draw, fate } from "./images.js";

const STEPS = [1, 1.5, 2, 3, 4, 6, 8];
const KEYS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
let shown = null;

function redraw() {
  const [width, height] = dialogBox($("image-view"));
  const canvas = $("image-canvas");
  draw(canvas, shown.image, shown.facts, { grid: $("image-grid").checked, pixels: $("image-pixels").checked,
    box: [width * shown.zoom, height * shown.zoom] });
  $("zoom").textContent = `${number(100 * shown.zoom)} %`;
  $("zoom-out").disabled = shown.zoom === STEPS[0];
  $("zoom-in").disabled = shown.zoom === STEPS.at(-1);
  if (!shown.facts || !shown.patch) return;
  const { tokenRows, tokenColumns } = shown.facts;
  const [row, column] = shown.patch;
  const w = canvas.width / tokenColumns, hgt = canvas.height / tokenRows;
  const context = canvas.getContext("2d");
  for (const [style, line] of [["#000", 4], ["#ffd34d", 2]]) {
    context.strokeStyle = style;
    context.lineWidth = line;
    context.strokeRect(column * w, row * hgt, w, hgt);
  }
}

function zoom(to) {
  const view = $("image-view"), before = shown.zoom;
  shown.zoom = to;
  redraw();
  // What was in the middle stays there.
  view.scrollLeft = (view.scrollLeft + view.clientWidth / 2) * (to / before) - view.clientWidth / 2;
  view.scrollTop = (view.scrollTop + view.clientHeight / 2) * (to / before) - view.clientHeight / 2;
}

const step = (by) => zoom(STEPS[Math.min(STEPS.length - 1, Math.max(0, STEPS.indexOf(shown.zoom) + by))]);

function select(row, column) {
  const { facts } = shown;
  shown.patch = [Math.min(facts.tokenRows - 1, Math.max(0, row)), Math.min(facts.tokenColumns - 1, Math.max(0, column))];
  [row, column] = shown.patch;
  $("patch").textContent = `Row ${row + 1}, column ${column + 1}: image token ${number(row * facts.tokenColumns + column + 1)} of ${number(facts.tokens)}`;
  redraw();
}

function reveal() {
  const view = $("image-view"), canvas = $("image-canvas");
  const [row, column] = shown.patch;
  const x = (column + 0.5) / shown.facts.tokenColumns * canvas.clientWidth, y = (row + 0.5) / shown.facts.tokenRows * canvas.clientHeight;
  if (x < view.scrollLeft + 20 || x > view.scrollLeft + view.clientWidth - 20) view.scrollLeft = x - view.clientWidth / 2;
  if (y < view.scrollTop + 20 || y > view.scrollTop + view.clientHeight - 20) view.scrollTop = y - view.clientHeight / 2;
}

export function showImage(image, model, side, settings) {
  const facts = fate(image, model, side, settings);
  shown = { image, facts, zoom: 1, patch: null };
  $("image-title").textContent = image.name;
  $("image-canvas").setAttribute("aria-label", facts
    ? `${image.name}, served at ${facts.width} by ${facts.height} pixels, ${facts.rows} by ${facts.columns} patches; the arrow keys walk through them`
    : image.name);
  $("facts").replaceChildren(...costs(image, facts, model, settings).map(([name, value]) =>
    h("tr", {}, h("th", { scope: "row", text: name }), h("td", { text: value }))));
  $("patch").textContent = facts ? "Point at a patch, or walk with the arrow keys, to see its token." : "";
  for (const id of ["image-grid", "image-pixels"]) $(id).disabled = !facts;
  $("image").showModal();
  redraw();
}

for (const id of ["image-grid", "image-pixels"]) $(id).addEventListener("change", redraw);
$("zoom-in").addEventListener("click", () => step(1));
$("zoom-out").addEventListener("click", () => step(-1));
$("zoom-fit").addEventListener("click", () => zoom(1));
$("image-view").addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  step(event.deltaY < 0 ? 1 : -1);
}, { passive: false });
$("image-canvas").addEventListener("keydown", (event) => {
  if (event.key === "+" || event.key === "=") step(1);
  else if (event.key === "-") step(-1);
  else if (event.key === "0") zoom(1);
  else if (KEYS[event.key] && shown.facts) {
    const [down, right] = KEYS[event.key];
    if (shown.patch) select(shown.patch[0] + down, shown.patch[1] + right);
    else select(0, 0);
    reveal();
  } else return;
  event.preventDefault();
});
$("image-canvas").addEventListener("pointermove", (event) => {
  if (!shown?.facts) return;
  const { facts } = shown;
  const box = event.target.getBoundingClientRect();
  select(Math.floor(((event.clientY - box.top) / box.height) * facts.tokenRows),
    Math.floor(((event.clientX - box.left) / box.width) * facts.tokenColumns));
});
