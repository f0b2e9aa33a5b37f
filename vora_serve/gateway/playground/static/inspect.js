// An image up close: patches, tokens, costs.
import { $, h, number } from "./dom.js";
import { costs, dialogBox, draw, fate } from "./images.js";

let shown = null;

function redraw() {
  draw($("image-canvas"), shown.image, shown.facts,
    { grid: $("image-grid").checked, pixels: $("image-pixels").checked,
      box: dialogBox($("image-canvas")) });
}

export function showImage(image, model, side, settings) {
  const facts = fate(image, model, side, settings);
  shown = { image, facts };
  $("image-title").textContent = image.name;
  $("image-canvas").setAttribute("aria-label", facts
    ? `${image.name}, served at ${facts.width} by ${facts.height} pixels, ${facts.rows} by ${facts.columns} patches`
    : image.name);
  $("facts").replaceChildren(...costs(image, facts, model, settings).map(([name, value]) =>
    h("tr", {}, h("th", { scope: "row", text: name }), h("td", { text: value }))));
  $("patch").textContent = facts ? "Point at a patch to see its token." : "";
  for (const id of ["image-grid", "image-pixels"]) $(id).disabled = !facts;
  $("image").showModal();
  redraw();
}

for (const id of ["image-grid", "image-pixels"]) $(id).addEventListener("change", redraw);
$("image-canvas").addEventListener("pointermove", (event) => {
  if (!shown?.facts) return;
  const { facts } = shown;
  const box = event.target.getBoundingClientRect();
  const row = Math.min(facts.tokenRows - 1, Math.floor(((event.clientY - box.top) / box.height) * facts.tokenRows));
  const column = Math.min(facts.tokenColumns - 1, Math.floor(((event.clientX - box.left) / box.width) * facts.tokenColumns));
  $("patch").textContent = `Row ${row + 1}, column ${column + 1}: image token ${number(row * facts.tokenColumns + column + 1)} of ${number(facts.tokens)}`;
});
