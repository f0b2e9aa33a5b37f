// A conversation as it is kept: a tree of turns, of which one path is shown. No DOM, no storage.
//   {id, title, named, created, updated, leaf, options, draft, turns: {id: turn}}
//   turn: {id, parent, at, text, images: [id], answers: [answer]}

export const FORMAT = "vora-playground";
const VERSION = 1;
const IMAGE = /^data:image\/(png|jpeg|gif|webp|bmp|avif|heic|heif|tiff);base64,[A-Za-z0-9+/=]*$/;

/** A new name; crypto.randomUUID is missing on plain http from elsewhere. */
export const newId = () =>
  [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(36).padStart(7, "0")).join("");

export function newConversation() {
  const now = Date.now();
  return { id: newId(), title: "New chat", named: false, created: now, updated: now, leaf: null,
    options: {}, draft: { text: "", images: [] }, turns: {} };
}

/** Whether anything in it could be missed. */
export const isEmpty = (chat) =>
  !Object.keys(chat.turns).length && !chat.draft.text && !chat.draft.images.length;

/** Turns from the first to `leaf`. */
export function path(chat, leaf = chat.leaf) {
  const turns = [];
  for (let turn = chat.turns[leaf]; turn; turn = chat.turns[turn.parent]) turns.unshift(turn);
  return turns;
}

/** The versions of a turn: those that follow the same one, oldest first. */
export const versions = (chat, turn) => Object.values(chat.turns)
  .filter((other) => other.parent === turn.parent).sort((a, b) => a.at - b.at || (a.id < b.id ? -1 : 1));

/** Add a turn after `parent` and show it. */
export function addTurn(chat, parent, text, images) {
  const turn = { id: newId(), parent, at: Date.now(), text, images, answers: [] };
  chat.turns[turn.id] = turn;
  chat.leaf = turn.id;
  if (!chat.named && parent === null) chat.title = titleOf(text);
  return turn;
}

/** Show the version `turn`, and the newest turns that followed it. */
export function choose(chat, turn) {
  let leaf = turn;
  for (;;) {
    const next = Object.values(chat.turns).filter((other) => other.parent === leaf.id).sort((a, b) => b.at - a.at)[0];
    if (!next) break;
    leaf = next;
  }
  chat.leaf = leaf.id;
}

export function titleOf(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line || "An image";
}

/** Whether each word of `query` occurs in the title, a question or an answer. */
export function matches(chat, query) {
  const text = [chat.title, ...Object.values(chat.turns).flatMap((turn) =>
    [turn.text, ...turn.answers.map((answer) => answer.text)])].join("\n").toLowerCase();
  return query.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

/** Two states of one conversation, as two tabs may have written them: no turn is lost. */
export function merged(kept, given) {
  const [older, newer] = kept.updated <= given.updated ? [kept, given] : [given, kept];
  const turns = { ...older.turns };
  for (const turn of Object.values(newer.turns)) {
    const before = turns[turn.id];
    // An answer that another tab has in full is not replaced by the beginning of it.
    turns[turn.id] = before && said(before) > said(turn) ? before : turn;
  }
  return { ...newer, turns };
}

const said = (turn) => turn.answers.reduce((sum, answer) => sum + answer.text.length, 0);

/** What an export file holds. `images` by conversation: their records. */
export const exported = (chats, images) => ({ format: FORMAT, version: VERSION,
  conversations: chats.map((chat) => ({ ...chat, images: images[chat.id] ?? [] })) });

/**
 * The conversations and images of an export file.
 * @throws {Error} whose message says what is wrong with it
 */
export function imported(text) {
  let tree;
  try { tree = JSON.parse(text); } catch { throw new Error("This file is not JSON."); }
  if (tree?.format !== FORMAT) throw new Error("This file is not an export of the playground.");
  if (tree.version !== VERSION) throw new Error(`This export has version ${tree.version}; this page reads ${VERSION}.`);
  if (!Array.isArray(tree.conversations)) throw new Error("This export holds no conversations.");
  return tree.conversations.map((given, index) => {
    const name = `Conversation ${index + 1} of this file`;
    const must = (right, what) => { if (!right) throw new Error(`${name} ${what}.`); };
    must(text_(given?.id) && text_(given.title) && isTree(given.turns), "has no id, title or turns");
    const images = (given.images ?? []).map((image) => {
      must(text_(image?.id) && text_(image.name) && IMAGE.test(image.shown ?? "")
        && (IMAGE.test(image.url) || (image.source === "url" && /^https?:/.test(image.url))), "has an image that is broken");
      return { id: image.id, name: image.name, type: text_(image.type) ? image.type : null, source: image.source === "url" ? "url" : "file", url: image.url, shown: image.shown };
    });
    const known = new Set(images.map((image) => image.id));
    const turns = {};
    for (const [id, turn] of Object.entries(given.turns)) {
      must(turn?.id === id && text_(turn.text) && Array.isArray(turn.images) && Array.isArray(turn.answers), "has a turn that is broken");
      must(turn.parent === null || isTree(given.turns[turn.parent]), "has a turn that follows none");
      must(turn.images.every((image) => known.has(image)), "lacks an image");
      turns[id] = { id, parent: turn.parent, at: count(turn.at), text: turn.text, images: turn.images,
        answers: turn.answers.map((answer) => { must(isTree(answer), "has an answer that is broken"); return answerOf(answer); }) };
    }
    for (const id of Object.keys(turns)) {
      let steps = 0;
      for (let at = id; at !== null; at = turns[at].parent) must((steps += 1) <= Object.keys(turns).length, "has turns in a circle");
    }
    must(given.leaf === null || turns[given.leaf], "has no last turn");
    const chat = { id: given.id, title: given.title.slice(0, 200), named: given.named === true,
      created: count(given.created), updated: count(given.updated), leaf: given.leaf ?? null,
      options: optionsOf(given.options), draft: { text: "", images: [] }, turns };
    return { chat, images };
  });
}

const text_ = (value) => typeof value === "string";
const isTree = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const count = (value) => (Number.isFinite(value) ? value : 0);
const optionsOf = (given) => Object.fromEntries(Object.entries(isTree(given) ? given : {})
  .filter(([, value]) => text_(value) || Number.isFinite(value)));

/** An answer with nothing in it but what the page knows. */
function answerOf(given) {
  const text = (value) => (text_(value) ? value : "");
  return { model: text(given.model), label: text(given.label), side: count(given.side), text: text(given.text),
    state: ["done", "stopped", "failed"].includes(given.state) ? given.state : "stopped",
    error: isTree(given.error) ? { message: text(given.error.message), code: text(given.error.code), status: count(given.error.status) } : null,
    usage: usageOf(given.usage), finish: text(given.finish) || null, last: count(given.last),
    times: Array.isArray(given.times) ? given.times.filter(Number.isFinite).slice(0, 4096) : [],
    system: text(given.system), options: optionsOf(given.options) };
}

function usageOf(given) {
  if (!isTree(given)) return null;
  const details = isTree(given.prompt_tokens_details) ? given.prompt_tokens_details : {};
  return { prompt_tokens: count(given.prompt_tokens), completion_tokens: count(given.completion_tokens),
    prompt_tokens_details: { image_tokens: count(details.image_tokens), cached_tokens: count(details.cached_tokens) } };
}
