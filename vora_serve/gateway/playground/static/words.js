// Which word of an answer the pointer is on: from the page's text back to the answer's own.

/** Most signs of Markdown, an address for instance, between two words that are shown. */
const MAX_HIDDEN = 2000;
const WORD = /[\p{L}\p{N}\p{M}]+|[^\s\p{L}\p{N}\p{M}]/gu;

/** Text nodes below `root`, in order. */
function texts(root) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) found.push(walker.currentNode);
  return found;
}

/**
 * The words that are shown below `root`, with where each is in `source`. Markdown's signs are in
 * the source only; what the page shows of it comes in the same order.
 * @returns {{node: Text, from: number, to: number, span: [number, number]}[]}
 */
export function wordsOf(root, source) {
  const words = [];
  let cursor = 0;
  for (const node of texts(root)) {
    for (const { 0: text, index } of node.data.matchAll(WORD)) {
      const at = source.slice(cursor, cursor + MAX_HIDDEN + text.length).indexOf(text) + cursor;
      if (at < cursor) continue;  // made by the page, or further than the source goes
      words.push({ node, from: index, to: index + text.length, span: [at, at + text.length] });
      cursor = at + text.length;
    }
  }
  return words;
}

/** The text node and offset at a point of the window, or null. */
function caret(x, y) {
  if (document.caretPositionFromPoint) {
    const place = document.caretPositionFromPoint(x, y);
    return place && [place.offsetNode, place.offset];
  }
  const range = document.caretRangeFromPoint?.(x, y);
  return range ? [range.startContainer, range.startOffset] : null;
}

/** A word's range in the page. */
export function rangeOf({ node, from, to }) {
  const range = document.createRange();
  range.setStart(node, from);
  range.setEnd(node, Math.min(to, node.length));
  return range;
}

/** The word of `words` at a point, or null. */
export function wordAt(words, x, y) {
  const place = caret(x, y);
  if (!place) return null;
  const near = words.filter(({ node, from, to }) => node === place[0] && from <= place[1] && to >= place[1]);
  // Between two words, or right of the last, the nearest caret is no word that is pointed at.
  return near.find((word) => [...rangeOf(word).getClientRects()].some((box) =>
    x >= box.left - 1 && x <= box.right + 1 && y >= box.top - 2 && y <= box.bottom + 2)) ?? null;
}

/** Mark words, or none, the way that a search marks what it finds: without touching the page's nodes. */
export function mark(words) {
  if (!globalThis.CSS?.highlights) return;
  if (words.length) CSS.highlights.set("seen", new Highlight(...words.map(rangeOf)));
  else CSS.highlights.delete("seen");
}
