// The settings dialog: sampling, system prompt, presets, appearance, what is kept, the key.
import { key } from "./api.js";
import { $, h } from "./dom.js";

const KEPT = "vora-preferences";
const PRESETS = "vora-presets";
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed", "repetition_penalty"];
const BUILT_IN = [
  { name: "The model’s own", options: {} },
  { name: "Exact and short", options: { system: "Answer with as few words as the question allows.", temperature: 0 } },
  { name: "Describe everything", options: { system: "Describe the whole image in detail before you answer.", temperature: 0.2 } },
  { name: "JSON only", options: { system: "Answer with one JSON object and nothing else.", temperature: 0 } },
];

/** The sampling fields of a request: those that were set. */
export function sampling() {
  const result = {};
  for (const name of NUMBERS) {
    const box = $(name);
    if (box.value !== "" && box.validity.valid) result[name] = Number(box.value);
  }
  return result;
}

export const systemPrompt = () => $("system").value.trim();

/** System prompt and sampling, as a conversation or a preset keeps them. */
export const readOptions = () => ({ ...sampling(), ...(systemPrompt() ? { system: systemPrompt() } : {}) });

export function writeOptions(options) {
  $("system").value = options.system ?? "";
  for (const name of NUMBERS) $(name).value = options[name] ?? "";
}

/** Whether conversations are kept in this browser. */
export const keeps = () => $("keep").checked;

function read(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? fallback;
  } catch {
    return fallback;
  }
}

// ------------------------------------------------------------------ presets

const own = () => {
  const kept = read(PRESETS, []);
  return Array.isArray(kept) ? kept.filter((preset) => typeof preset?.name === "string" && typeof preset.options === "object" && preset.options) : [];
};

function fillPresets(chosen = "") {
  const options = (presets, kind) => presets.map((preset, index) => h("option", { value: `${kind}${index}`, text: preset.name }));
  $("preset").replaceChildren(h("option", { value: "", text: "Choose …" }), ...options(BUILT_IN, "b"), ...options(own(), "o"));
  $("preset").value = chosen;
  $("preset-delete").disabled = !chosen.startsWith("o");
}

function preparePresets(changed) {
  fillPresets();
  $("preset").addEventListener("change", () => {
    const value = $("preset").value;
    $("preset-delete").disabled = !value.startsWith("o");
    if (!value) return;
    writeOptions((value[0] === "b" ? BUILT_IN : own())[Number(value.slice(1))].options);
    changed();
  });
  $("preset-save").addEventListener("click", () => {
    const name = $("preset-name").value.trim();
    if (!name) { $("preset-name").focus(); return; }
    const presets = [...own().filter((preset) => preset.name !== name), { name, options: readOptions() }];
    localStorage.setItem(PRESETS, JSON.stringify(presets));
    $("preset-name").value = "";
    fillPresets(`o${presets.length - 1}`);
  });
  $("preset-delete").addEventListener("click", () => {
    const presets = own();
    presets.splice(Number($("preset").value.slice(1)), 1);
    localStorage.setItem(PRESETS, JSON.stringify(presets));
    fillPresets();
  });
}

/** @param {{drawn: Function, options: Function, keyChanged: Function}} hooks */
export function prepareSettings(hooks) {
  const kept = read(KEPT, {});  // never the key
  $("theme").value = ["light", "dark"].includes(kept.theme) ? kept.theme : "";
  $("grid").checked = kept.grid !== false;
  $("keep").checked = kept.keep !== false;
  const apply = () => {
    if ($("theme").value) document.documentElement.dataset.theme = $("theme").value;
    else delete document.documentElement.dataset.theme;
    localStorage.setItem(KEPT, JSON.stringify({ theme: $("theme").value, grid: $("grid").checked, keep: $("keep").checked }));
  };
  apply();
  $("theme").addEventListener("change", apply);
  $("keep").addEventListener("change", apply);
  $("grid").addEventListener("change", () => { apply(); hooks.drawn(); });
  for (const name of ["system", ...NUMBERS]) $(name).addEventListener("change", hooks.options);
  preparePresets(hooks.options);
  $("key").value = key.get();
  $("key").addEventListener("change", () => { key.set($("key").value.trim()); hooks.keyChanged(); });
  $("open-settings").addEventListener("click", () => $("settings").showModal());
}
