// The size that an image is served at, and the tokens it becomes. The same arithmetic as
// model_plugin/images.py, which the tests hold this file against.

/** To the nearest integer, halves to the even one, as Python rounds. */
export function roundHalfEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

/** What the gateway shrinks an image to when it bounds its pixels (`images.detail_pixels`). */
export function bounded(width, height, pixels) {
  if (!pixels || width * height <= pixels) return { width, height };
  const factor = Math.sqrt(pixels / (width * height));
  return {
    width: Math.max(1, Math.floor(width * factor)),
    height: Math.max(1, Math.floor(height * factor)),
  };
}

/**
 * @param {object} image geometry of the model, `vora.image` of its card
 * @param {number} width of the image in pixels
 * @param {number} height
 * @returns {{width: number, height: number, rows: number, columns: number, tokens: number,
 *   tokenRows: number, tokenColumns: number, patch: number, unit: number, resolution: string}}
 */
export function served(image, width, height) {
  const unit = image.patch_size * image.merge_size;
  let size;
  if (image.resolution === "fixed") {
    const side = Math.floor(image.image_size / unit) * unit;
    size = [side, side];
  } else {
    size = native(image, unit, width, height);
  }
  const [w, h] = size;
  return {
    width: w, height: h, patch: image.patch_size, unit, resolution: image.resolution,
    rows: h / image.patch_size, columns: w / image.patch_size,
    tokenRows: h / unit, tokenColumns: w / unit,
    tokens: (h / unit) * (w / unit),
  };
}

function native(image, unit, width, height) {
  const sides = [width, height];
  let size = sides.map((side) => Math.max(unit, roundHalfEven(side / unit) * unit));
  if (size[0] * size[1] > image.max_pixels) {
    const shrink = Math.sqrt((width * height) / image.max_pixels);
    size = sides.map((side) => Math.max(unit, Math.floor(side / shrink / unit) * unit));
    const longest = Math.floor(Math.floor(image.max_pixels / unit) / unit) * unit;
    size = size.map((side) => Math.min(side, longest));
  } else if (size[0] * size[1] < image.min_pixels) {
    const grow = Math.sqrt(image.min_pixels / (width * height));
    size = sides.map((side) => Math.ceil((side * grow) / unit) * unit);
  }
  return size;
}

/** Sizes with the long side at most `longSide`; the image's own where that is 0. */
export function shrunk(width, height, longSide) {
  const long = Math.max(width, height);
  if (!longSide || long <= longSide) return { width, height };
  const factor = longSide / long;
  return {
    width: Math.max(2, Math.round(width * factor)),
    height: Math.max(2, Math.round(height * factor)),
  };
}
