// A line of numbers over time, with its last and its largest in words.
import { number, svg } from "./dom.js";

const WIDTH = 300, HEIGHT = 64;

/** @param {number[]} values the newest last @param {string} title */
export function line(values, title) {
  const top = Math.max(...values, 0), digits = top < 10 ? 2 : 0;
  const at = values.map((value, index) => `${((index / Math.max(1, values.length - 1)) * WIDTH).toFixed(1)},${(HEIGHT - 4 - (top ? value / top : 0) * (HEIGHT - 10)).toFixed(1)}`);
  const words = values.length ? `${number(values.at(-1), digits)} now, ${number(top, digits)} at most` : "no values yet";
  const label = svg("text", { x: 2, y: 10 });
  label.textContent = words;
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${words}`, class: "sparkline" },
    svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: HEIGHT - 4, y2: HEIGHT - 4 }),
    svg("polyline", { points: at.join(" ") }), label);
}
