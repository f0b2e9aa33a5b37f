// The page: its parts put together.
import { getModels, getSettings, key } from "./api.js";
import { addFiles, addURL, drawComposer, shrinkWaiting, wireComposer, write } from "./composer.js";
import { $ } from "./dom.js";
import { wireDrop } from "./drop.js";
import { showGallery } from "./gallery.js";
import { openNew, restore, save, saveDraft, wireHistory } from "./history.js";
import { notice, prepareNotice } from "./notice.js";
import { page } from "./page.js";
import { addPane, fillModels, toggleCompare } from "./panes.js";
import { prepareSettings, readOptions } from "./preferences.js";
import { endSeeing, wireSeeing } from "./seeing.js";
import { leave, prepareTurns, show } from "./turns.js";

const AGAIN_MS = 2000;
const WITHOUT_GATEWAY = { limits: null };

async function begin(file, question) {
  if (file) await addFiles([file]);
  if (!$("question").value) write(question);
  $("question").focus();
  saveDraft();
}

function redraw() {
  drawComposer();
  showGallery(begin);
}

async function connect() {
  try {
    page.models = await getModels();
    fillModels();
    notice(page.models.length ? null : "No engine is ready yet.", ["This page asks again by itself.", []]);
  } catch (error) {
    page.models = [];
    if (error.status === 401) {
      notice(key.get() ? "This API key is not valid." : "This server asks for an API key.", ["Give it in the settings.", ["settings"]]);
      return;
    }
    notice(error.message, ["This page asks again by itself.", []]);
  }
  redraw();
  show(true);
  if (!page.models.length) setTimeout(connect, AGAIN_MS);
}

function wire() {
  $("compare").addEventListener("click", () => toggleCompare(redraw));
  $("new-chat").addEventListener("click", openNew);
  $("sample").addEventListener("click", async () => {
    const file = await (await fetch("/playground/sample.png")).blob();
    begin(new File([file], "sample.png", { type: "image/png" }), "What do you see?");
  });
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  wireComposer({ changed: saveDraft, connect });
  wireSeeing();
  wireDrop({ files: addFiles, url: addURL });
  wireHistory({ opened: (chat) => {
    endSeeing();
    leave();
    write(chat.draft.text);
    show();
    redraw();
  } });
  prepareTurns({ save: (chat, now) => save(chat, now), drawn: drawComposer });
  prepareNotice({ settings: () => $("settings").showModal(), shrink: shrinkWaiting, "new-chat": openNew });
}

async function start() {
  prepareSettings({
    drawn: () => { drawComposer(); show(true); },
    options: () => { page.chat.options = readOptions(); save(page.chat, false); drawComposer(); },
    keyChanged: connect,
  });
  addPane(0, redraw);
  page.settings = await getSettings().catch(() => WITHOUT_GATEWAY);
  wire();
  await restore();
  $("key-field").hidden = page.settings.keys_needed === false;
  $("add-url").hidden = page.settings.fetch === false;
  await connect();
}

start();
