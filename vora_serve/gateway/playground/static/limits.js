// The server's rules for images, checked here before anything is sent.
import { bytes, number } from "./dom.js";

const NAMES = { jpeg: "JPEG", png: "PNG", gif: "GIF", webp: "WebP", tiff: "TIFF", bmp: "BMP", avif: "AVIF", heif: "HEIC" };

const ascii = (head, from, to) => String.fromCharCode(...head.slice(from, to));

/** The format by a file's first bytes, as the gateway tells it; null for none that is known. */
export function sniff(head) {
  if (head[0] === 0xff && head[1] === 0xd8 && head[2] === 0xff) return "jpeg";
  if (ascii(head, 0, 8) === "\x89PNG\r\n\x1a\n") return "png";
  if (/^GIF8[79]a$/.test(ascii(head, 0, 6))) return "gif";
  if (ascii(head, 0, 4) === "RIFF" && ascii(head, 8, 12) === "WEBP") return "webp";
  if (/^(II[*+]\0|MM\0[*+])$/.test(ascii(head, 0, 4))) return "tiff";
  if (ascii(head, 0, 2) === "BM") return "bmp";
  if (ascii(head, 4, 8) === "ftyp") return /avi[fs]/.test(ascii(head, 8, 64)) ? "avif" : "heif";
  return null;
}

/** The bytes in an image's data URL; 0 for one by address, whose file the gateway fetches. */
export function sizeOf(image) {
  if (!image.url.startsWith("data:")) return 0;
  const data = image.url.slice(image.url.indexOf(",") + 1);
  return Math.floor(data.length * 3 / 4) - (data.endsWith("==") ? 2 : data.endsWith("=") ? 1 : 0);
}

export function formatOf(image) {
  if (!image.url.startsWith("data:")) return null;
  const start = image.url.indexOf(",") + 1;
  return sniff([...atob(image.url.slice(start, start + 88))].map((sign) => sign.charCodeAt(0)));
}

/** What the server would say against one image. @returns {{text: string, mend: string|null}|null} */
export function problemOf(image, limits) {
  if (!limits || image.source === "url") return null;  // the gateway has checked it already
  const format = formatOf(image);
  const { width, height } = image;
  const size = sizeOf(image);
  if (!limits.formats.includes(format)) {
    return { text: `The server takes ${limits.formats.map((name) => NAMES[name]).join(", ")}, not this format.`, mend: "Convert to PNG" };
  }
  if (size > limits.max_bytes) return { text: `${bytes(size)}; the server takes ${bytes(limits.max_bytes)}.`, mend: "Shrink" };
  if (width * height > limits.max_pixels) {
    return { text: `${number(width * height / 1e6, 1)} megapixels; the server takes ${number(limits.max_pixels / 1e6, 1)}.`, mend: "Shrink" };
  }
  if (Math.min(width, height) < limits.min_side_pixels) {
    return { text: `Only ${Math.min(width, height)} px on its short side; the server takes ${limits.min_side_pixels} or more. Choose another.`, mend: null };
  }
  if (Math.max(width, height) > limits.max_aspect_ratio * Math.min(width, height)) {
    return { text: `Longer than ${number(limits.max_aspect_ratio)} times its width. Crop it.`, mend: null };
  }
  return null;
}

/** What the server would say against all images of a request. @returns the same, or null */
export function problemOfAll(images, limits) {
  if (!limits) return null;
  if (images.length > limits.max_count) {
    return { text: `${images.length} images in this chat; the server takes ${limits.max_count} in a request.`, mend: null };
  }
  const total = images.reduce((sum, image) => sum + sizeOf(image), 0);
  if (total > limits.max_total_bytes) {
    return { text: `All images together have ${bytes(total)}; the server takes ${bytes(limits.max_total_bytes)} in a request.`, mend: "Shrink" };
  }
  const pixels = images.reduce((sum, image) => sum + image.width * image.height, 0);
  if (pixels > limits.max_total_pixels) {
    return { text: `All images together have ${number(pixels / 1e6, 1)} megapixels; the server takes ${number(limits.max_total_pixels / 1e6, 1)} in a request.`, mend: "Shrink" };
  }
  return null;
}
