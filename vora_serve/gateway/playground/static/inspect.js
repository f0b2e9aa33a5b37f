// A picture up close: patches, tokens, costs.
import { $, h, number } from "./dom.js";
import { costs, dialogBox, draw, fate } from "./pictures.js";

let shown = null;

function redraw() {
  draw($("picture-canvas"), shown.picture, shown.facts,
    { grid: $("picture-grid").checked, pixels: $("picture-pixels").checked,
      box: dialogBox($("picture-canvas")) });
}

export function showPicture(picture, model, side, settings) {
  const facts = fate(picture, model, side, settings);
  shown = { picture, facts };
  $("picture-title").textContent = picture.name;
  $("picture-canvas").setAttribute("aria-label", facts
    ? `${picture.name}, served at ${facts.width} by ${facts.height} pixels, ${facts.rows} by ${facts.columns} patches`
    : picture.name);
  $("facts").replaceChildren(...costs(picture, facts, model, settings).map(([name, value]) =>
    h("tr", {}, h("th", { scope: "row", text: name }), h("td", { text: value }))));
  $("patch").textContent = facts ? "Point at a patch to see its token." : "";
  for (const id of ["picture-grid", "picture-pixels"]) $(id).disabled = !facts;
  $("picture").showModal();
  redraw();
}

for (const id of ["picture-grid", "picture-pixels"]) $(id).addEventListener("change", redraw);
$("picture-canvas").addEventListener("pointermove", (event) => {
  if (!shown?.facts) return;
  const { facts } = shown;
  const box = event.target.getBoundingClientRect();
  const row = Math.min(facts.tokenRows - 1, Math.floor(((event.clientY - box.top) / box.height) * facts.tokenRows));
  const column = Math.min(facts.tokenColumns - 1, Math.floor(((event.clientX - box.left) / box.width) * facts.tokenColumns));
  $("patch").textContent = `Row ${row + 1}, column ${column + 1}: image token ${number(row * facts.tokenColumns + column + 1)} of ${number(facts.tokens)}`;
});
