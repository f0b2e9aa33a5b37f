// Conversations in this browser's IndexedDB, and nowhere else.
import { openDB } from "./vendor/idb.js";
import { exported, imported, merged } from "./conversation.js";

const channel = "BroadcastChannel" in window ? new BroadcastChannel("vora-conversations") : null;
let opened = null;
let ready = null;  // the database once it is open, for a page that has no time to wait

function database() {
  opened ??= openDB("vora-playground", 1, {
    upgrade(db) {
      db.createObjectStore("conversations", { keyPath: "id" });
      db.createObjectStore("images", { keyPath: ["conversation", "id"] }).createIndex("conversation", "conversation");
    },
    terminated() { opened = null; ready = null; },
  });
  opened.then((db) => { ready = db; }, () => { opened = null; });
  return opened;
}

/** Open the storage ahead of the first use. */
export const prepare = () => database().then(() => true, () => false);

/** Call `act` when another tab has changed a conversation. */
export const whenChanged = (act) => channel?.addEventListener("message", (event) => act(event.data));

/** All conversations, the latest first. */
export async function list() {
  const found = await (await database()).getAll("conversations");
  return found.sort((a, b) => b.updated - a.updated);
}

export const get = async (id) => (await database()).get("conversations", id);
export const imagesOf = async (id) => (await database()).getAllFromIndex("images", "conversation", id);

/** Keep a conversation and its new images, in one transaction. @returns what is kept now */
export async function save(chat, images = []) {
  const transaction = (await database()).transaction(["conversations", "images"], "readwrite");
  const store = transaction.objectStore("conversations");
  const before = await store.get(chat.id);
  const now = before ? merged(before, chat) : chat;
  await store.put(now);
  for (const image of images) await transaction.objectStore("images").put({ ...image, conversation: chat.id });
  await transaction.done;
  channel?.postMessage({ id: chat.id });
  return now;
}

/** Keep a conversation while the page goes away: everything is asked for at once, nothing is awaited. */
export function saveLeaving(chat, images) {
  if (!ready) return;
  const transaction = ready.transaction(["conversations", "images"], "readwrite");
  transaction.objectStore("conversations").put(chat);
  for (const image of images) transaction.objectStore("images").put({ ...image, conversation: chat.id });
  transaction.commit();
}

export async function remove(id) {
  const transaction = (await database()).transaction(["conversations", "images"], "readwrite");
  await transaction.objectStore("conversations").delete(id);
  const images = transaction.objectStore("images");
  for (const key of await images.index("conversation").getAllKeys(id)) await images.delete(key);
  await transaction.done;
  channel?.postMessage({ id, removed: true });
}

/** One conversation, or all, as the text of an export file. */
export async function exportText(id = null) {
  const chats = id ? [await get(id)].filter(Boolean) : await list();
  const images = {};
  for (const chat of chats) {
    images[chat.id] = (await imagesOf(chat.id)).map(({ conversation, ...image }) => image);
  }
  return JSON.stringify(exported(chats, images), null, 1);
}

/** Add the conversations of an export file to those here. @returns {Promise<number>} how many */
export async function importText(text) {
  const found = imported(text);
  for (const { chat, images } of found) await save(chat, images);
  return found.length;
}
