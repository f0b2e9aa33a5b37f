// The API's reference page, from /openapi.json: paths, fields and what each means.
import { getOpenAPI } from "./api.js";
import { $, h } from "./dom.js";

const partName = (reference) => reference.split("/").pop();
const partId = (name) => `part-${name.replace(/[^\w-]/g, "-")}`;
const label = (name) => name.split("_").pop();

/** A field's type in words, with links to the parts that it names. @returns {Array<Node|string>} */
function typeOf(schema) {
  if (!schema || schema === true) return ["any"];
  if (schema.$ref) return [h("a", { href: `#${partId(partName(schema.$ref))}`, text: label(partName(schema.$ref)) })];
  const some = schema.anyOf ?? schema.oneOf;
  if (some) return some.flatMap((each, index) => (index ? [" or ", ...typeOf(each)] : typeOf(each)));
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(", ")];
  if (schema.type === "array") return ["list of ", ...typeOf(schema.items)];
  return [Array.isArray(schema.type) ? schema.type.join(" or ") : schema.type ?? "any"];
}

function bounds(schema) {
  const parts = [schema, ...(schema.anyOf ?? [])];
  const find = (name) => parts.map((part) => part?.[name]).find((value) => value !== undefined);
  const words = [[find("minimum"), "at least"], [find("maximum"), "at most"], [find("exclusiveMinimum"), "above"], [find("exclusiveMaximum"), "below"]]
    .filter(([value]) => value !== undefined).map(([value, word]) => `${word} ${value}`);
  return words.length ? ` (${words.join(", ")})` : "";
}

function fields(schema, caption) {
  const rows = Object.entries(schema.properties ?? {});
  if (!rows.length) return h("p", { class: "hint" }, ...typeOf(schema));
  const needed = new Set(schema.required ?? []);
  return h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": caption }, h("table", { class: "rows" },
    h("thead", {}, h("tr", {}, ...["Field", "Type", "Meaning"].map((text) => h("th", { scope: "col", text })))),
    h("tbody", {}, ...rows.map(([name, field]) => h("tr", {},
      h("th", { scope: "row" }, h("code", { text: name }), needed.has(name) ? h("span", { class: "hint", text: " required" }) : null),
      h("td", {}, ...typeOf(field), bounds(field)), h("td", { text: field.description ?? "" }))))));
}

function operation(method, path, given) {
  const title = `${method.toUpperCase()} ${path}`;
  const schema = given.requestBody?.content?.["application/json"]?.schema;
  return h("section", { id: `${method}-${path.replace(/\W+/g, "-")}` }, h("h2", {}, h("code", { text: title })), h("p", { text: given.summary ?? "" }),
    ...(given.parameters ?? []).map((parameter) => h("p", {}, h("code", { text: parameter.name }), `: ${parameter.description ?? ""}`)),
    schema ? fields(schema, `Fields of ${title}`) : null,
    h("p", { class: "hint", text: `Answers: ${Object.entries(given.responses).map(([code, answer]) => `${code} ${answer.description.replace(/\.$/, "")}`).join(", ")}.` }));
}

async function start() {
  try {
    const document_ = await getOpenAPI();
    $("about").textContent = document_.info.description ?? "";
    const all = Object.entries(document_.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, given]) => operation(method, path, given)));
    $("operations").replaceChildren(...all);
    $("paths").replaceChildren(...all.map((node) => h("li", {}, h("a", { href: `#${node.id}` }, h("code", { text: node.querySelector("h2").textContent })))));
    $("parts").replaceChildren(...Object.entries(document_.components.schemas).map(([name, schema]) => h("details", { id: partId(name) },
      h("summary", {}, h("code", { text: label(name) }), schema.description ? ` ${schema.description.split("\n")[0]}` : ""), fields(schema, `Fields of ${name}`))));
  } catch (error) {
    $("fault").textContent = error.message;
    $("fault").hidden = false;
  }
}

// A link to a part opens it.
window.addEventListener("hashchange", () => {
  const part = document.getElementById(location.hash.slice(1));
  if (part instanceof HTMLDetailsElement) { part.open = true; part.scrollIntoView(); }
});
start();
