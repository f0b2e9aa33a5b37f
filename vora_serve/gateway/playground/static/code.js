// The dialog with the request as curl, Python and JavaScript.
import { $, copy } from "./dom.js";
import { fileNames, snippets } from "./snippets.js";

const TABS = ["curl", "python", "javascript"];
let texts = {};

function select(language, focus) {
  for (const name of TABS) {
    const tab = $(`tab-${name}`);
    tab.setAttribute("aria-selected", String(name === language));
    tab.tabIndex = name === language ? 0 : -1;
    if (focus && name === language) tab.focus();
  }
  $("code-panel").setAttribute("aria-labelledby", `tab-${language}`);
  $("code-text").textContent = texts[language];
}

export function showCode(body, images, side, settings) {
  texts = snippets(body, images, location.origin, settings.keys_needed);
  const files = [...fileNames(images).values()];
  const notes = [];
  if (files.length) notes.push(`Reads ${files.join(", ")} from the current folder.`);
  if (side) notes.push(`This page shrank images to at most ${side} px before sending them.`);
  if (settings.keys_needed) notes.push("Takes your key from VORA_API_KEY.");
  $("code-note").textContent = notes.join(" ");
  select("curl", false);
  $("code").showModal();
}

TABS.forEach((name, index) => {
  const tab = $(`tab-${name}`);
  tab.addEventListener("click", () => select(name, false));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) select(TABS[(index + step + TABS.length) % TABS.length], true);
  });
});
$("code-copy").addEventListener("click", () => copy($("code-text").textContent, $("code-copy")));
