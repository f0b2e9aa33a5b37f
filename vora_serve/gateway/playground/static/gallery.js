// What to begin with: what the model knows, by its model card, and examples of it.
import { getAbout } from "./api.js";
import { $, h } from "./dom.js";
import { page } from "./page.js";

const known = new Map();

/** The file in a data URL; the page's policy lets fetch() read none. */
function fileOf(url, name) {
  const [head, data] = url.split(",");
  return new File([Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0))], name, { type: /data:([^;]+)/.exec(head)[1] });
}

/** Show the examples of the first pane's model. @param {(file: File, question: string) => void} begin */
export async function showGallery(begin) {
  const model = page.panes[0].model.value;
  if (!model) return;
  if (!known.has(model)) known.set(model, getAbout(model).catch(() => ({ about: null, examples: [] })));
  const { about, examples } = await known.get(model);
  if (page.panes[0].model.value !== model) return;
  $("knows").hidden = !about;
  $("knows").textContent = about ?? "";
  $("sample").hidden = examples.length > 0;
  $("gallery").replaceChildren(...examples.map((example) => h("li", {}, h("button", {
    type: "button", class: "example", on: { click: () => {
      begin(example.image && fileOf(example.image, example.name), example.question);
    } } },
  example.image ? h("img", { src: example.image, alt: "", height: "96" }) : null, h("span", { text: example.question })))));
}
