// Markdown to nodes. marked's lexer reads it; this file makes elements from its tokens with
// textContent alone. HTML stays the text that it is, images become links, and links lead to
// http, https or mailto only.
import { Marked } from "./vendor/marked.js";
import { h } from "./dom.js";

const MAX_DEPTH = 24;
const INLINE = [
  [/^\$\$([^$]+?)\$\$/, true], [/^\\\[([\s\S]+?)\\\]/, true], [/^\\\(([\s\S]+?)\\\)/, false],
  [/^\$(?!\s)((?:\\.|[^$\\\n])+?)(?<!\s)\$(?!\d)/, false],  // "$5 and $10" is no formula
];

function formula(type, patterns) {
  return (source) => {
    for (const [pattern, display] of patterns) {
      const found = pattern.exec(source);
      if (found) return { type, raw: found[0], text: found[1].trim(), display };
    }
    return undefined;
  };
}

const reader = new Marked({ gfm: true, breaks: true }).use({ extensions: [
  { name: "formula", level: "block", start: (source) => source.match(/^\$\$|^\\\[/m)?.index,
    tokenizer: formula("formula", [[/^\$\$\s*\n?([^$]+?)\n?\s*\$\$(?:\n|$)/, true], [/^\\\[([\s\S]+?)\\\](?:\n|$)/, true]]) },
  { name: "inlineFormula", level: "inline", start: (source) => source.match(/\$|\\[([]/)?.index,
    tokenizer: formula("inlineFormula", INLINE) },
] });

const math = (token) => h(token.display ? "div" : "span",
  { class: "formula", tabindex: token.display ? "0" : null, "data-tex": token.text, "data-display": String(token.display), text: token.raw.trim() });

/** The text as Markdown. @returns {DocumentFragment} */
export function markdown(text) {
  const fragment = document.createDocumentFragment();
  try {
    fragment.append(...blocks(reader.lexer(text), 0));
  } catch {
    fragment.append(h("p", { text }));
  }
  return fragment;
}

function blocks(tokens, depth) {
  if (depth > MAX_DEPTH) return tokens.map((token) => token.raw ?? "");
  return tokens.map((token) => block(token, depth)).filter((node) => node !== null);
}

function block(token, depth) {
  switch (token.type) {
    case "space": case "def": return null;
    case "heading":  // below the page's own headings
      return h(`h${Math.min(6, token.depth + 3)}`, {}, ...inlines(token.tokens, depth + 1));
    case "paragraph": return h("p", {}, ...inlines(token.tokens, depth + 1));
    case "text":
      return token.tokens
        ? h("span", {}, ...inlines(token.tokens, depth + 1)) : document.createTextNode(token.text);
    case "formula": return math(token);
    case "code": return h("pre", { tabindex: "0" }, h("code", { text: token.text,
      "data-language": /^[\w+#-]+/.exec(token.lang ?? "")?.[0].toLowerCase() }));
    case "blockquote": return h("blockquote", {}, ...blocks(token.tokens, depth + 1));
    case "hr": return h("hr");
    case "list": return list(token, depth);
    case "table": return table(token, depth);
    default: return h("p", { text: token.raw });  // HTML among them
  }
}

function list(token, depth) {
  const start = token.ordered && token.start !== 1 ? token.start : null;
  return h(token.ordered ? "ol" : "ul", { start }, ...token.items.map((item) => h("li", {},
    item.task ? (item.checked ? "☑ " : "☐ ") : null,
    ...blocks(item.tokens.filter((inner) => inner.type !== "checkbox"), depth + 1))));
}

function table(token, depth) {
  const row = (cells, tag) => h("tr", {}, ...cells.map((cell) =>
    h(tag, tag === "th" ? { scope: "col" } : {}, ...inlines(cell.tokens, depth + 1))));
  return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" },
    h("table", {}, h("thead", {}, row(token.header, "th")),
      h("tbody", {}, ...token.rows.map((cells) => row(cells, "td")))));
}

function inlines(tokens, depth) {
  if (depth > MAX_DEPTH) return (tokens ?? []).map((token) => token.raw ?? "");
  return (tokens ?? []).map((token) => inline(token, depth));
}

function inline(token, depth) {
  switch (token.type) {
    case "strong": return h("strong", {}, ...inlines(token.tokens, depth + 1));
    case "em": return h("em", {}, ...inlines(token.tokens, depth + 1));
    case "del": return h("del", {}, ...inlines(token.tokens, depth + 1));
    case "inlineFormula": return math(token);
    case "codespan": return h("code", { text: token.text });
    case "br": return h("br");
    case "link": case "image": return link(token, depth);
    case "escape": return document.createTextNode(token.text);
    case "text":
      return token.tokens
        ? h("span", {}, ...inlines(token.tokens, depth + 1)) : document.createTextNode(token.text);
    default: return document.createTextNode(token.raw);
  }
}

function link(token, depth) {
  let address = null;
  try {
    address = new URL(token.href);
  } catch { /* no absolute address: stays text */ }
  if (!address || !["http:", "https:", "mailto:"].includes(address.protocol)) {
    return document.createTextNode(token.raw);
  }
  const inside = token.type === "image"
    ? [`image: ${token.text || token.href}`] : inlines(token.tokens, depth + 1);
  return h("a", { href: address.href, target: "_blank", rel: "noopener noreferrer nofollow" },
    ...inside);
}
