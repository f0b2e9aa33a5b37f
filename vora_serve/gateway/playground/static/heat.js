// Attention as heat: unpack what the server computed, choose and colour it. No DOM but a canvas.

/** Black, blue-violet, red, orange, light yellow: even in lightness, so that greyscale keeps its order. */
export const STOPS = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];

/** The colour of a value in 0..1, as [r, g, b]. */
export function colour(value) {
  const place = Math.min(1, Math.max(0, value)) * (STOPS.length - 1);
  const low = Math.min(STOPS.length - 2, Math.floor(place));
  return STOPS[low].map((part, index) => Math.round(part + (STOPS[low + 1][index] - part) * (place - low)));
}

/** How much of the patch its colour covers: what gets little stays the image that it is. */
export const cover = (value) => 0.1 + 0.78 * Math.min(1, Math.max(0, value)) ** 1.5;

/**
 * What `POST /playground/explain` answers, ready to use: `spans` in UTF-16 units as strings of
 * JavaScript have them, `at(token, layer)` an array of the shares of all image tokens.
 */
export function unpacked(told) {
  const bytes = Uint8Array.from(atob(told.weights), (sign) => sign.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const sizes = told.grids.map(([rows, columns]) => rows * columns);
  const count = sizes.reduce((sum, size) => sum + size, 0);
  const units = [0];  // characters to UTF-16 units
  for (const sign of told.answer) units.push(units.at(-1) + sign.length);
  const at = (token, layer) => {
    const start = (token * told.layers + layer) * count;
    const scale = told.top[token][layer] / 65535;
    return Array.from({ length: count }, (_, index) => view.getUint16(2 * (start + index), true) * scale);
  };
  return { answer: told.answer, tokens: told.tokens, layers: told.layers, grids: told.grids, sizes,
    similarity: told.similarity, spans: told.spans.map((span) => span.map((place) => units[place])), at };
}

/** Tokens that have a part in the answer from `start` to `end`. */
export const tokensIn = (data, [start, end]) =>
  data.spans.flatMap(([from, to], token) => (from < end && to > start ? [token] : []));

/** Mean over tokens, and over layers where `layer` is their number; one array for each image. */
export function weights(data, tokens, layer) {
  const layers = layer < data.layers ? [layer] : [...Array(data.layers).keys()];
  const sum = new Array(data.sizes.reduce((a, b) => a + b, 0)).fill(0);
  for (const token of tokens) {
    for (const each of layers) data.at(token, each).forEach((value, index) => { sum[index] += value; });
  }
  const mean = sum.map((value) => value / Math.max(1, tokens.length * layers.length));
  let start = 0;
  return data.sizes.map((size) => mean.slice(start, (start += size)));
}

/** The largest share of any patch of any image: the end of the legend. */
export const topOf = (images) => Math.max(1e-9, ...images.flat());

/** Lay heat over what the canvas `base` shows, in grey, so that all colour is the heat's. */
export function paint(canvas, [rows, columns], values, top, base = canvas) {
  const context = canvas.getContext("2d");
  context.save();
  context.globalCompositeOperation = "copy";
  context.filter = "grayscale(1) brightness(.85)";
  context.drawImage(base, 0, 0, canvas.width, canvas.height);
  context.restore();
  const x = (column) => Math.round((column * canvas.width) / columns), y = (row) => Math.round((row * canvas.height) / rows);
  values.forEach((value, index) => {
    const row = Math.floor(index / columns), column = index % columns;
    context.fillStyle = `rgb(${colour(value / top).join(" ")} / ${cover(value / top)})`;
    context.fillRect(x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row));
  });
}

/** A share in words. */
export const percent = (value) => `${(100 * value).toLocaleString("en", { maximumSignificantDigits: 2 })} %`;
