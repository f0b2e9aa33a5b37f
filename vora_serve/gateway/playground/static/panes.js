// One pane, or two side by side: which model answers, and how large images are sent to it.
import { $, h } from "./dom.js";
import { modelOf, page, sideOf } from "./page.js";

const SIZES = [0, 1024, 768, 512, 336, 224, 112, 56];

export function addPane(index, changed) {
  const name = index === 0 ? "" : " (second)";
  const model = h("select", { id: `model-${index}`, on: { change: changed } });
  const size = h("select", { id: `size-${index}`, on: { change: changed } }, ...SIZES.map((side) =>
    h("option", { value: String(side), text: side ? `at most ${side} px` : "as they are" })));
  const node = h("div", { class: "pane" },
    h("div", {}, h("label", { for: model.id, text: `Model${name}` }), model),
    h("div", {}, h("label", { for: size.id, text: `Images${name}` }), size));
  page.panes.push({ index, model, size, node });
  $("panes").append(node);
  fillModels();
}

export function fillModels() {
  for (const pane of page.panes) {
    const chosen = pane.model.value || page.models[Math.min(pane.index, page.models.length - 1)]?.id;
    pane.model.replaceChildren(...page.models.map((card) => h("option", { value: card.id, text: card.id })));
    if (page.models.some((card) => card.id === chosen)) pane.model.value = chosen;
  }
}

export const labelOf = (pane) => `${pane.model.value}${sideOf(pane) ? `, at most ${sideOf(pane)} px` : ""}`;

/** What a pane asks with, as it is now. */
export const choice = (pane) => ({ model: modelOf(pane), side: sideOf(pane) });

/** Ask two at a time from now on, or one; what was asked before stays. */
export function toggleCompare(changed) {
  const on = page.panes.length === 1;
  if (on) {
    addPane(1, changed);
    // One model alone is compared with itself at another resolution.
    if (page.models.length < 2) page.panes[1].size.value = "56";
  } else {
    page.panes.pop().node.remove();
  }
  document.body.classList.toggle("comparing", on);
  $("compare").setAttribute("aria-pressed", String(on));
  changed();
}
