// What colours mean, and a layer at a time: parts of every view of attention.
import { svg } from "./dom.js";
import { colour, percent, STOPS } from "./heat.js";

const STEP_MS = 450;
let count = 0;

/** The scale from nothing to `top`, as a group of SVG. @param {number} width */
export function scale(width, top) {
  const id = `heat-scale-${count += 1}`;
  const gradient = svg("linearGradient", { id }, ...STOPS.map((_, index) => {
    const at = index / (STOPS.length - 1);
    return svg("stop", { offset: at, "stop-color": `rgb(${colour(at).join(",")})` });
  }));
  const label = (text, x, anchor) => {
    const node = svg("text", { x, y: 24, "text-anchor": anchor, "font-size": 12, "font-family": "sans-serif", fill: "currentColor" });
    node.textContent = text;
    return node;
  };
  return svg("g", {}, svg("defs", {}, gradient),
    svg("rect", { x: 0.5, y: 0.5, width: width - 1, height: 9, fill: `url(#${id})`, stroke: "#808080" }),
    label("0 %", 0, "start"), label("of the attention, on one patch", width / 2, "middle"), label(percent(top), width, "end"));
}

/** The same as a picture of its own. */
export const legend = (top) => svg("svg", { class: "legend", viewBox: "0 0 300 28", role: "img",
  "aria-label": `Colours: from 0 to ${percent(top)} of the attention, on one patch` }, scale(300, top));

/**
 * A slider over layers, whose end is the mean of all, and a button that plays them.
 * @param {{range: any, name: any, play: any, changed: () => void}} parts
 */
export function layerControl({ range, name, play, changed }) {
  let timer = 0;
  const layers = () => Number(range.max);
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play layers";
  };
  const set = (layer) => {
    range.value = String(layer);
    name.textContent = layer < layers() ? `${layer + 1} of ${layers()}` : "mean of all";
    range.setAttribute("aria-valuetext", name.textContent);
  };
  range.addEventListener("input", () => { stop(); set(Number(range.value)); changed(); });
  play.addEventListener("click", () => {
    if (timer) { stop(); return; }
    let next = 0;
    const step = () => {
      set(next);
      changed();
      if (next === layers()) stop();
      next += 1;
    };
    play.textContent = "Stop";
    timer = setInterval(step, STEP_MS);
    step();
  });
  return { stop, get layer() { return Number(range.value); },
    /** For a model with so many layers; the chosen one stays where it has it. */
    prepare(all, layer) {
      stop();
      range.max = String(all);
      set(Math.min(all, layer ?? all));
    } };
}
