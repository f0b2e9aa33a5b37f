// When each piece of an answer came, as a small chart with the same facts in words.
import { h, number, svg } from "./dom.js";

const WIDTH = 560, HEIGHT = 72, BASE = 60;

/** The value below which a share of the sorted ones are. */
const quantile = (sorted, share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];

/** The facts of the chart. @param {number[]} times of pieces since the request, ms */
export function facts(times) {
  const gaps = times.slice(1).map((time, index) => time - times[index]);
  const sorted = [...gaps].sort((a, b) => a - b);
  return { first: times[0], last: times.at(-1), gaps,
    median: quantile(sorted, 0.5) ?? 0, p95: quantile(sorted, 0.95) ?? 0, longest: sorted.at(-1) ?? 0 };
}

/** The chart: each piece at its time, as high as the wait for it. */
export function timing(times) {
  const { first, last, gaps, median, p95, longest } = facts(times);
  const x = (time) => (last > 0 ? (time / last) * (WIDTH - 2) + 1 : 1);
  const words = `First piece after ${number(first)} ms, then ${times.length - 1} more until ${number(last)} ms: `
    + `${number(median, 1)} ms apart in the median, ${number(p95, 1)} ms at the 95th percentile, ${number(longest, 1)} ms at most.`;
  const bars = gaps.map((gap, index) => svg("line", { class: "piece", x1: x(times[index + 1]), x2: x(times[index + 1]),
    y1: BASE, y2: BASE - Math.max(2, (longest ? gap / longest : 0) * (BASE - 6)) }));
  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": words, class: "timing" },
    svg("rect", { class: "first", x: 0, y: 6, width: Math.max(1, x(first)), height: BASE - 6 }), ...bars,
    svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: BASE, y2: BASE }),
    ...[["0 ms", 0, "start"], [`${number(last)} ms`, WIDTH, "end"]].map(([text, at, anchor]) => {
      const label = svg("text", { x: at, y: HEIGHT - 1, "text-anchor": anchor });
      label.textContent = text;
      return label;
    }));
  return h("details", { class: "timing-box" }, h("summary", { text: "Timing" }), chart,
    h("p", { class: "hint", text: `${words} The shaded part is the wait for the first piece: queue, images and prompt.` }));
}
