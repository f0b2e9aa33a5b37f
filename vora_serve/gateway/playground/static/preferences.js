// The settings dialog: sampling, system prompt, appearance, the key.
import { key } from "./api.js";
import { $ } from "./dom.js";

const KEPT = "vora-preferences";
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed", "repetition_penalty"];

/** The sampling fields of a request: those that were set. */
export function sampling() {
  const result = {};
  for (const name of NUMBERS) {
    const box = $(name);
    if (box.value !== "" && box.validity.valid) result[name] = Number(box.value);
  }
  return result;
}

function read() {
  try {
    return JSON.parse(localStorage.getItem(KEPT) ?? "{}");
  } catch {
    return {};
  }
}

/** @param {{changed: Function, keyChanged: Function}} hooks */
export function prepareSettings(hooks) {
  const kept = read();  // never the key, never prompts
  $("theme").value = ["light", "dark"].includes(kept.theme) ? kept.theme : "";
  $("grid").checked = kept.grid !== false;
  const apply = () => {
    if ($("theme").value) document.documentElement.dataset.theme = $("theme").value;
    else delete document.documentElement.dataset.theme;
    localStorage.setItem(KEPT, JSON.stringify({ theme: $("theme").value, grid: $("grid").checked }));
  };
  apply();
  $("theme").addEventListener("change", apply);
  $("grid").addEventListener("change", () => { apply(); hooks.changed(); });
  $("key").value = key.get();
  $("key").addEventListener("change", () => { key.set($("key").value.trim()); hooks.keyChanged(); });
  $("open-settings").addEventListener("click", () => $("settings").showModal());
}
