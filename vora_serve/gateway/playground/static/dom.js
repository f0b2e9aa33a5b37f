// Building nodes: attributes and text only, never markup.

/**
 * An element. `props` sets attributes; `on` holds listeners, `props.text` is its text.
 * @param {string} tag
 * @param {Record<string, any>} [props]
 * @param {...(Node|string|null|undefined)} children
 */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (name === "text") node.textContent = value;
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** An element of SVG, by attributes. */
export function svg(tag, props, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(props)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

/** The element with that id. @returns {any} */
export const $ = (id) => document.getElementById(id);

/** What scrolls the conversation: its own box, or on low screens the page. @returns {Element} */
export const scroller = () => (getComputedStyle($("log")).overflowY === "visible" ? document.scrollingElement : $("log"));

/** Offer JSON as a file to keep. */
export const download = (text, name) => save(new Blob([text], { type: "application/json" }), name);

/** Offer a file to keep. @param {Blob} blob */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Put text into the live region that screen readers follow. */
export function announce(text) {
  $("status").textContent = "";
  requestAnimationFrame(() => { $("status").textContent = text; });
}

export const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${number(count, count < 10 && unit > 0 ? 1 : 0)} ${units[unit]}`;
}

export async function copy(text, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // not there on plain http from elsewhere
    const box = h("textarea", { class: "hidden", value: text, "aria-hidden": "true" });
    button.after(box);
    box.select();
    done = document.execCommand("copy");
    box.remove();
    button.focus();
  }
  const before = button.textContent;
  button.textContent = done ? "Copied" : "Copying is blocked";
  announce(button.textContent);
  setTimeout(() => { button.textContent = before; }, 1500);
}
