// Attention over an image as a figure for a paper: SVG, and PNG drawn from it.
import { h, svg } from "./dom.js";
import { colour, cover, topOf } from "./heat.js";
import { draw } from "./images.js";
import { scale } from "./legend.js";

const SIDE = 672, FOOT = 64, PNG_SCALE = 2;

/**
 * The figure as an element.
 * @param {{image: any, facts: any, grid: [number, number], values: number[], top: number, caption: string}} shown
 */
export function figure({ image, facts, grid: [rows, columns], values, top, caption }) {
  const canvas = h("canvas");
  const size = [facts?.width ?? image.width, facts?.height ?? image.height];
  const factor = SIDE / Math.max(...size);
  const [width, height] = size.map((side) => Math.round(side * factor));
  draw(canvas, image, facts, { pixels: true, box: size });
  const w = width / columns, hgt = height / rows;
  const patches = values.map((value, index) => svg("rect", { x: (index % columns) * w, y: Math.floor(index / columns) * hgt,
    width: w, height: hgt, fill: `rgb(${colour(value / top).join(",")})`, "fill-opacity": cover(value / top).toFixed(3) }));
  const title = svg("title", {});
  title.textContent = caption;
  const words = svg("text", { x: 0, y: height + 22, "font-size": 14, "font-family": "sans-serif", fill: "#000" });
  words.textContent = caption;
  const legend = scale(Math.min(width, 360), top);
  legend.setAttribute("transform", `translate(0 ${height + 34})`);
  legend.setAttribute("color", "#000");
  return svg("svg", { xmlns: "http://www.w3.org/2000/svg", width, height: height + FOOT, viewBox: `0 0 ${width} ${height + FOOT}` }, title,
    svg("rect", { width, height: height + FOOT, fill: "#fff" }),
    svg("defs", {}, svg("filter", { id: "grey" }, svg("feColorMatrix", { type: "saturate", values: 0 }))),
    svg("image", { filter: "url(#grey)", width, height, href: canvas.toDataURL("image/png"), preserveAspectRatio: "none", "image-rendering": "pixelated" }),
    svg("g", { "shape-rendering": "crispEdges" }, ...patches), words, legend);
}

export const asSVG = (node) => new Blob([new XMLSerializer().serializeToString(node)], { type: "image/svg+xml" });

/** The figure's pixels, twice as fine as its size. @returns {Promise<Blob>} */
export async function asPNG(node) {
  const url = URL.createObjectURL(asSVG(node));
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = h("canvas", { width: Number(node.getAttribute("width")) * PNG_SCALE, height: Number(node.getAttribute("height")) * PNG_SCALE });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((resolve, reject) => { canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no image"))), "image/png"); });
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** What is drawn: the image `index` of `images`, whose weights are `all[index]`. */
export const shownOf = (images, data, all, index, caption) => ({ ...images[index], grid: data.grids[index],
  values: all[index], top: topOf(all), caption });
