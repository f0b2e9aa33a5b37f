// Images: read, shrink, draw at the size the model gets them, with the patch grid.
import { newId } from "./conversation.js";
import { bytes, h, number } from "./dom.js";
import { bounded, served, shrunk } from "./geometry.js";
import { getImage } from "./api.js";
import { sizeOf } from "./limits.js";

function load(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("no image"));
    image.src = url;
  });
}

function readAsDataURL(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(new Error("unreadable"));
    reader.readAsDataURL(file);
  });
}

/** An image from a file. Kinds that the browser cannot show are shown as the gateway reads them. */
export async function fromFile(file) {
  const url = await readAsDataURL(file);
  const image = await load(url).catch(async () => load(await getImage(url)));
  return make(newId(), file.name || "pasted.png", url, image, file.type || "image/png", "file");
}

/** An image by its address, which the gateway fetches. */
export async function fromURL(url, signal) {
  const image = await load(await getImage(url, signal));
  const name = url.startsWith("data:") ? "image" : (new URL(url).pathname.split("/").pop() || "image");
  return make(newId(), name, url, image, null, "url");
}

const make = (id, name, url, image, type, source) => ({ id, name, url, image, type, source,
  width: image.naturalWidth, height: image.naturalHeight });

/** What is kept of an image: enough to show and send it again without a network. */
export const recordOf = ({ id, name, url, image, type, source }) => ({ id, name, url, type, source, shown: image.src });

/** An image that was kept. */
export const fromRecord = async ({ id, name, url, type, source, shown }) =>
  make(id, name, url, await load(shown), type, source);

/** The same image with at most so many pixels, as a new file of a kind that every server takes. */
async function redrawn(image, pixels, quality) {
  const factor = Math.min(1, Math.sqrt(pixels / (image.width * image.height)), 16_000 / Math.max(image.width, image.height));
  const canvas = h("canvas", { width: Math.max(2, Math.floor(image.width * factor)), height: Math.max(2, Math.floor(image.height * factor)) });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image.image, 0, 0, canvas.width, canvas.height);
  const type = quality === null ? "image/png" : "image/jpeg";
  const url = canvas.toDataURL(type, quality ?? undefined);
  const stem = image.name.replace(/\.\w+$/, "");
  return make(newId(), `${stem}.${type === "image/png" ? "png" : "jpg"}`, url, await load(url), type, "file");
}

/**
 * The image within limits.
 * @param {{pixels: number, bytes: number}} most
 */
export async function within(image, most) {
  // Drawings keep their edges as PNG; photos become JPEG, and so does what is still too large.
  let quality = image.type === "image/jpeg" ? 0.92 : null;
  let pixels = Math.min(most.pixels, image.width * image.height);
  for (let tries = 0; ; tries += 1) {
    const result = await redrawn(image, pixels, quality);
    if (sizeOf(result) <= most.bytes || tries > 12) return result;
    if (quality === null) quality = 0.92;
    else pixels = Math.floor(pixels * 0.7);
  }
}

/** The URL to send: the image's own, or a smaller PNG of it. */
export function toSend(image, longSide) {
  const size = shrunk(image.width, image.height, longSide);
  if (size.width === image.width && size.height === image.height) return image.url;
  const canvas = h("canvas", { width: size.width, height: size.height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image.image, 0, 0, size.width, size.height);
  return canvas.toDataURL("image/png");
}

/** What the model makes of the image, or null where its geometry is not known. */
export function fate(image, model, longSide, settings) {
  const geometry = model?.vora?.image;
  if (!geometry) return null;
  let size = shrunk(image.width, image.height, longSide);
  size = bounded(size.width, size.height, settings.detail_pixels?.auto);
  return { ...served(geometry, size.width, size.height), sent: size, geometry };
}

export function summary(image, facts) {
  const own = `${image.width} × ${image.height}`;
  if (!facts) return `${own} px`;
  return `${own} → ${facts.width} × ${facts.height} px, ${number(facts.tokens)} tokens`;
}

/** Rows of the table of what an image costs. */
export function costs(image, facts, model, settings) {
  const rows = [["Image", `${image.width} × ${image.height} px`]];
  if (!facts) return [...rows, ["Served at", "not known here; the answer's usage shows its tokens"]];
  if (facts.sent.width !== image.width) rows.push(["Sent as", `${facts.sent.width} × ${facts.sent.height} px`]);
  rows.push(
    ["Served at", `${facts.width} × ${facts.height} px, ${facts.resolution === "native" ? "native resolution" : "padded to a square"}`],
    ["Patches", `${facts.rows} × ${facts.columns} of ${facts.patch} × ${facts.patch} px`],
    ["Image tokens", number(facts.tokens)],
  );
  if (facts.unit !== facts.patch) rows.splice(3, 0, ["Merged", `${facts.unit / facts.patch} × ${facts.unit / facts.patch} patches to a token`]);
  if (model.max_model_len) {
    rows.push(["Of the context", `${number(100 * facts.tokens / model.max_model_len, 1)} % of ${number(model.max_model_len)} tokens`]);
  }
  if (model.vora.kv_bytes_per_token) {
    rows.push(["KV cache", bytes(facts.tokens * model.vora.kv_bytes_per_token)]);
  }
  const price = settings.price_per_million_input_tokens;
  if (price !== null && price !== undefined) rows.push(["Price", money(facts.tokens * price / 1e6, settings.currency)]);
  return rows;
}

export function money(amount, currency) {
  return `${amount === 0 ? "0" : amount.toPrecision(3)} ${currency}`;
}

/**
 * Draw an image as it is served.
 * @param {HTMLCanvasElement} canvas
 * @param {{grid?: boolean, pixels?: boolean, box: [number, number]}} how grid: lines between
 *   patches; pixels: at the served resolution, enlarged; box: width and height that it fits in
 */
export function draw(canvas, image, facts, how) {
  const width = facts?.width ?? image.width, height = facts?.height ?? image.height;
  const fit = Math.min(how.box[0] / width, how.box[1] / height);
  const scale = fit * Math.min(window.devicePixelRatio || 1, 2);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  // Shown pixel for pixel, so that the grid's lines stay sharp and even.
  canvas.style.setProperty("width", `${Math.round(width * fit)}px`);
  const context = canvas.getContext("2d");
  if (facts && how.pixels) {
    const small = h("canvas", { width, height });
    place(small.getContext("2d"), image, facts, 1);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
  } else {
    place(context, image, facts, canvas.width / width);
  }
  if (facts && how.grid) lines(context, facts, canvas.width / width, canvas.height / height);
}

function place(context, image, facts, scale) {
  context.imageSmoothingQuality = "high";
  const { width, height } = context.canvas;
  if (facts?.resolution !== "fixed") {
    context.drawImage(image.image, 0, 0, width, height);
    return;
  }
  // A black square around the centred image, resized, then cropped around its middle.
  const { resize_edge: edge, image_size: crop } = facts.geometry;
  const factor = edge / Math.max(image.width, image.height);
  const shift = (edge - crop) / 2;
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  context.drawImage(image.image,
    ((edge - image.width * factor) / 2 - shift) * scale,
    ((edge - image.height * factor) / 2 - shift) * scale,
    image.width * factor * scale, image.height * factor * scale);
}

function lines(context, facts, sx, sy) {
  // A dark and a light line side by side show on any image.
  const step = facts.patch;
  for (const [offset, colour] of [[0, "rgba(0,0,0,.32)"], [1, "rgba(255,255,255,.38)"]]) {
    context.beginPath();
    for (let x = step; x < facts.width; x += step) {
      context.moveTo(Math.round(x * sx) + offset - 0.5, 0);
      context.lineTo(Math.round(x * sx) + offset - 0.5, context.canvas.height);
    }
    for (let y = step; y < facts.height; y += step) {
      context.moveTo(0, Math.round(y * sy) + offset - 0.5);
      context.lineTo(context.canvas.width, Math.round(y * sy) + offset - 0.5);
    }
    context.strokeStyle = colour;
    context.lineWidth = 1;
    context.stroke();
  }
}

/** The room that a dialog's image has. */
export const dialogBox = (node) =>
  [Math.min((node.tagName === "CANVAS" ? node.parentElement : node).clientWidth || 480, 640), Math.round(window.innerHeight * 0.58)];
