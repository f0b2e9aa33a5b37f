// Colours for code and layout for formulas. Both libraries load when the first of either is shown.
import { h } from "./dom.js";

const LANGUAGES = { bash: "bash", sh: "bash", shell: "bash", zsh: "bash", console: "bash", c: "c", h: "c", cpp: "cpp", "c++": "cpp",
  cs: "csharp", csharp: "csharp", css: "css", diff: "diff", patch: "diff", go: "go", java: "java", js: "javascript",
  javascript: "javascript", jsx: "javascript", mjs: "javascript", json: "json", md: "markdown", markdown: "markdown",
  py: "python", python: "python", rb: "ruby", ruby: "ruby", rs: "rust", rust: "rust", sql: "sql", ts: "typescript",
  typescript: "typescript", tsx: "typescript", html: "xml", xml: "xml", svg: "xml", yaml: "yaml", yml: "yaml" };
const MAX_SIGNS = 50_000;
let core = null;
let katex = null;

/** highlight.js emits into this: nodes with classes and text, never markup. */
class Nodes {
  constructor() {
    this.root = document.createDocumentFragment();
    this.open = [this.root];
  }

  addText(text) { this.open.at(-1).append(text); }

  openNode(name) {
    const node = h("span", { class: `code-${String(name).split(".")[0].replaceAll("_", "-")}` });
    this.open.at(-1).append(node);
    this.open.push(node);
  }

  closeNode() { this.open.pop(); }
  startScope(name) { this.openNode(name); }
  endScope() { this.closeNode(); }
  __addSublanguage(other) { this.open.at(-1).append(other.root); }
  finalize() { /* nothing is open any more */ }
  toHTML() { return ""; }
}

async function highlighter(language) {
  if (!core) {
    core = (await import("./vendor/highlight/core.js")).default.newInstance();
    core.configure({ __emitter: Nodes });
  }
  if (!core.getLanguage(language)) {
    core.registerLanguage(language, (await import(`./vendor/highlight/${language}.js`)).default);
  }
  return core;
}

async function colour(node) {
  const language = LANGUAGES[node.dataset.language];
  const text = node.textContent;
  if (!language || text.length > MAX_SIGNS) return;
  const { _emitter: emitter } = (await highlighter(language)).highlight(text, { language, ignoreIllegals: true });
  node.replaceChildren(emitter.root);
}

async function layOut(node) {
  if (!katex) {
    await import("./vendor/katex.js");
    katex = globalThis.katex;
  }
  const place = h("span");
  // MathML: browsers lay it out, so it needs neither a style sheet nor fonts.
  katex.render(node.dataset.tex, place, { output: "mathml", displayMode: node.dataset.display === "true",
    throwOnError: true, trust: false, maxSize: 20, maxExpand: 500 });
  node.replaceChildren(...place.childNodes);
}

/** Colour the code and lay out the formulas below `root`; what fails stays as it was written. */
export async function enrich(root) {
  const work = [...[...root.querySelectorAll("code[data-language]")].map((node) => [colour, node]),
    ...[...root.querySelectorAll("[data-tex]")].map((node) => [layOut, node])];
  for (const [act, node] of work) {
    try { await act(node); } catch { /* no such language, or no LaTeX */ }
  }
}
