// Runs the scenarios in a headless browser and writes what came out, for test_browser.py.
//   node browser.mjs WORLD.json RESULTS.json
import { readFile, writeFile } from "node:fs/promises";
import { chromium } from "playwright-core";
import playwrightForFirefox from "playwright-core-for-firefox";
import * as chats from "./chats.mjs";
import * as others from "./scenarios.mjs";
import * as seeing from "./seeing.mjs";
import { forget, unguarded } from "./unguarded.mjs";

const [worldFile, resultsFile] = process.argv.slice(2);
const world = JSON.parse(await readFile(worldFile, "utf8"));
const inFirefox = world.browser === "firefox";
// Firefox as it is shipped, over WebDriver BiDi; Playwright's own protocol needs a patched one. The
// newest Playwright asks for more of BiDi than Firefox's extended support release has.
const browser = await (inFirefox
  ? playwrightForFirefox._bidiFirefox.launch({ executablePath: world.program,
    firefoxUserPrefs: { "dom.events.testing.asyncClipboard": true } })
  : chromium.launch({ executablePath: world.program, args: ["--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb"] }));

/** A page that fails the scenario on script errors, broken policy and requests to elsewhere. */
async function open(given, options = {}) {
  const base = inFirefox ? await unguarded(given) : given;
  const context = await browser.newContext({ viewport: { width: 1180, height: 820 }, reducedMotion: "reduce", acceptDownloads: true, ...options });
  if (!inFirefox) await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  const page = await context.newPage();
  page.faults = [];
  page.unguarded = inFirefox;
  page.on("pageerror", (error) => page.faults.push(`script error: ${error.message}`));
  page.on("console", (message) => {
    // An answer of 4xx or 5xx is part of some scenarios; Chromium logs each.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) page.faults.push(message.text());
  });
  page.on("dialog", (dialog) => { page.faults.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (!["data:", "blob:"].includes(url.protocol) && url.origin !== new URL(base).origin) page.faults.push(`request to ${url.origin}`);
  });
  await page.goto(base);
  return page;
}

/** Scenarios that Firefox cannot be driven through, and what its BiDi lacks for them. */
const NO_DOWNLOADS = "Firefox says nothing of downloads over BiDi";
const LACKING = {
  controls_of_the_markup_test: "shows what the page's policy does, which the proxy for Firefox leaves out",
  chats_are_found_renamed_moved_and_deleted: NO_DOWNLOADS,
  an_imported_chat_runs_no_script: NO_DOWNLOADS,
  figures_for_papers: NO_DOWNLOADS,
  paste: "Firefox gives a page no data with a paste that a script makes up",
};
const scenarios = { ...others, ...chats, ...seeing };
const results = {};
const keep = () => writeFile(resultsFile, JSON.stringify(results));
const only = process.env.SCENARIO && process.env.SCENARIO.split(",");  // for work on a few of them
for (const [name, scenario] of Object.entries(scenarios)) {
  if (only && !only.includes(name)) continue;
  if (inFirefox && LACKING[name]) {
    results[name] = { ok: true, skipped: LACKING[name], kept: null };
    continue;
  }
  forget();
  const pages = [];
  const began = Date.now();
  try {
    const kept = await scenario({
      world,
      open: async (...args) => { const page = await open(...args); pages.push(page); return page; },
    });
    const faults = pages.flatMap((page) => page.faults);
    results[name] = { ok: faults.length === 0, error: faults.join("\n"), kept: kept ?? null };
  } catch (error) {
    results[name] = { ok: false, error: `${error.stack}\n${pages.flatMap((page) => page.faults).join("\n")}`, kept: null };
    if (process.env.SHOTS_ON_FAILURE) await pages.at(-1)?.screenshot({ path: `${process.env.SHOTS_ON_FAILURE}/${name}.png` });
  } finally {
    for (const page of pages) await page.context().close();
  }
  results[name].ms = Date.now() - began;
  await keep();  // at once: what is cut off keeps what it has
}
await browser.close();
await keep();
