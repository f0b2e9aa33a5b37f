// The open conversation and the list of those kept: opened, saved, found, renamed, moved, deleted.
import { isEmpty, matches, newConversation } from "./conversation.js";
import { $, announce, download, h } from "./dom.js";
import { fromRecord, recordOf } from "./images.js";
import { notice } from "./notice.js";
import { page } from "./page.js";
import { keeps, readOptions, writeOptions } from "./preferences.js";
import * as store from "./store.js";

const OPEN = "vora-open-chat";  // in sessionStorage: each tab has its own
const SAVE_AFTER_MS = 500;
const hooks = { opened: () => {} };
const stored = new Set();  // ids of images that are kept already
let timer = null;
let pending = new Set();

// ------------------------------------------------------------------ saving

/** Keep a conversation: at once, or soon where it changes with every token. */
export function save(chat, now = true) {
  if (!keeps() || isEmpty(chat)) return;
  pending.add(chat);
  if (!now) { timer ??= setTimeout(flush, SAVE_AFTER_MS); return; }
  flush();
}

/** The conversation's images that are not kept yet. */
function unstored(chat) {
  const wanted = new Set([...chat.draft.images, ...Object.values(chat.turns).flatMap((turn) => turn.images)]);
  return [...page.images.values()].filter((image) => wanted.has(image.id) && !stored.has(image.id));
}

/** A page that goes away keeps what has come so far. */
function leaving() {
  if (page.chat) saveDraft();
  for (const chat of pending) store.saveLeaving(structuredClone(chat), unstored(chat).map(recordOf));
}

/** Turns that another tab has added to the open conversation are taken over, not overwritten. */
async function changedElsewhere({ id, removed }) {
  const chat = page.chat;
  if (chat?.id === id && !removed) {
    const kept = await store.get(id).catch(() => null);
    for (const turn of Object.values(kept?.turns ?? {})) chat.turns[turn.id] ??= turn;
  }
  await drawList();
}

async function flush() {
  clearTimeout(timer);
  timer = null;
  const chats = pending;
  pending = new Set();
  for (const chat of chats) {
    const images = unstored(chat);
    try {
      await store.save(structuredClone(chat), images.map(recordOf));
      for (const image of images) stored.add(image.id);
    } catch (error) {
      notice(error.name === "QuotaExceededError" ? "This browser has no room left for this chat."
        : "This browser does not keep this chat.", ["Export it now, then delete chats that you no longer need.", [["Export all", exportAll]]]);
    }
  }
  if (chats.size) drawList();
}

/** The question that is being written belongs to the conversation too. */
export function saveDraft() {
  const chat = page.chat;
  for (const image of page.waiting) page.images.set(image.id, image);
  const before = chat.draft;
  chat.draft = { text: $("question").value, images: page.waiting.map((image) => image.id) };
  if (before.text === chat.draft.text && before.images.join() === chat.draft.images.join()) return;
  chat.updated = Date.now();
  save(chat, false);
}

// ------------------------------------------------------------------ opening

async function show(chat, focus = true) {
  if (page.chat) saveDraft();
  flush();
  page.chat = chat;
  page.images = new Map();
  for (const record of chat.id && keeps() ? await store.imagesOf(chat.id).catch(() => []) : []) {
    try {
      page.images.set(record.id, await fromRecord(record));
      stored.add(record.id);
    } catch { /* an image that this browser no longer shows */ }
  }
  page.waiting = chat.draft.images.map((id) => page.images.get(id)).filter(Boolean);
  sessionStorage.setItem(OPEN, chat.id);
  writeOptions(chat.options);
  hooks.opened(chat);
  drawList();
  if (focus) $("question").focus();
}

export async function openNew() {
  const chat = newConversation();
  chat.options = readOptions();  // a new chat goes on with the settings of the one before
  await show(chat);
}

async function openKept(id) {
  const kept = await store.get(id);
  if (kept) await show(kept);
  return Boolean(kept);
}

/** What this tab had open before it was loaded again, else a new conversation. */
export async function restore() {
  const id = sessionStorage.getItem(OPEN);
  await store.prepare();
  try {
    if (id && keeps() && await openKept(id)) return;
  } catch { /* storage is blocked */ }
  await openNew();
}

// ------------------------------------------------------------------ the list

function item(chat) {
  const open = chat.id === page.chat.id;
  const button = (text, name, act) => h("button", { type: "button", text, "aria-label": `${name} “${chat.title}”`, on: { click: act } });
  const row = h("li", {}, h("button", { type: "button", class: "chat", "aria-current": open ? "true" : null, title: chat.title,
    on: { click: () => { if (narrow()) toggleList(false); openKept(chat.id); } } },
  h("span", { class: "title", text: chat.title }), h("span", { class: "hint", text: new Date(chat.updated).toLocaleString() })),
  h("span", { class: "row-tools" },
    button("Rename", "Rename", () => rename(chat, row)),
    button("Export", "Export", async () => download(await store.exportText(chat.id), "vora-chat.json")),
    button("Delete", "Delete", () => askDelete(chat, row))));
  return row;
}

function rename(chat, row) {
  const box = h("input", { type: "text", value: chat.title, "aria-label": "New name", maxlength: "200" });
  const form = h("form", { class: "renaming", on: { submit: async (event) => {
    event.preventDefault();
    const kept = chat.id === page.chat.id ? page.chat : await store.get(chat.id);
    Object.assign(kept, { title: box.value.trim() || chat.title, named: true, updated: Date.now() });
    await store.save(structuredClone(kept));
    await drawList();
    $("chat-list").querySelector("button")?.focus();
  }, keydown: (event) => { if (event.key === "Escape") { event.stopPropagation(); drawList(); } } } },
  box, h("button", { type: "submit", text: "Save" }));
  row.replaceChildren(form);
  box.select();
}

function askDelete(chat, row) {
  const no = h("button", { type: "button", text: "Keep", on: { click: () => drawList() } });
  row.replaceChildren(h("div", { class: "renaming", role: "group", "aria-label": `Delete “${chat.title}”?` },
    h("span", { text: "Delete for good?" }),
    h("button", { type: "button", class: "danger", text: "Delete", on: { click: async () => {
      await store.remove(chat.id);
      announce(`Deleted ${chat.title}`);
      if (chat.id === page.chat.id) { pending.delete(page.chat); page.chat = null; await openNew(); } else await drawList();
      $("chat-search").focus();
    } } }), no));
  no.focus();
}

export async function drawList() {
  if ($("chats").hidden) return;
  let chats = [];
  try { chats = await store.list(); } catch { /* storage is blocked: nothing is kept */ }
  const query = $("chat-search").value.trim();
  const found = chats.filter((chat) => matches(chat, query));
  $("chat-list").replaceChildren(...found.map(item));
  $("chat-none").hidden = found.length > 0;
  $("chat-none").textContent = query ? "No chat has these words." : "Chats that you begin appear here.";
}

const narrow = () => window.matchMedia("(max-width: 1000px)").matches;

function toggleList(open) {
  $("chats").hidden = !open;
  $("open-chats").setAttribute("aria-expanded", String(open));
  document.body.classList.toggle("listing", open);
  if (open) { drawList(); $("chat-search").focus(); } else $("open-chats").focus();
}

async function exportAll() {
  download(await store.exportText(), "vora-chats.json");
}

async function importFile(file) {
  try {
    const count = await store.importText(await file.text());
    announce(`${count} chats imported`);
    $("chat-said").textContent = `${count} ${count === 1 ? "chat" : "chats"} imported.`;
  } catch (error) {
    $("chat-said").textContent = `${error.message} Nothing was imported.`;
  }
  await drawList();
}

export function wireHistory(given) {
  Object.assign(hooks, given);
  $("open-chats").addEventListener("click", () => toggleList($("chats").hidden));
  $("close-chats").addEventListener("click", () => toggleList(false));
  $("chats").addEventListener("keydown", (event) => { if (event.key === "Escape") toggleList(false); });
  $("chat-search").addEventListener("input", drawList);
  $("chat-export").addEventListener("click", exportAll);
  $("chat-import").addEventListener("click", () => $("chat-file").click());
  $("chat-file").addEventListener("change", async () => {
    for (const file of $("chat-file").files) await importFile(file);
    $("chat-file").value = "";
  });
  window.addEventListener("pagehide", leaving);
  document.addEventListener("visibilitychange", () => { if (document.visibilityState === "hidden") leaving(); });
  store.whenChanged(changedElsewhere);
}
