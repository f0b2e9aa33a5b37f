// One answer: streamed, measured, shown, kept.
import { chat } from "./api.js";
import { announce, copy, h, number, scroller } from "./dom.js";
import { enrich } from "./enrich.js";
import { markdown } from "./markdown.js";
import { money } from "./images.js";
import { adviceFor } from "./notice.js";
import { timing } from "./timing.js";

const MAX_TIMES = 4096;
/** Whether the page is about to go. Firefox breaks requests off first; that is no fault of theirs. */
let leaving = false;
addEventListener("beforeunload", () => {
  leaving = true;
  setTimeout(() => { leaving = false; }, 2000);  // a download goes on without leaving
});

export class Answer {
  /**
   * @param {object} kept what is known of it: model, label, side, system, options; of one that has
   *   ended, text, state, error, usage, finish and times too
   * @param {{retry: Function|null, code: Function, explain: Function|null, grew: Function, shown: Function, settings: object}} hooks
   */
  constructor(kept, hooks) {
    this.kept = { text: "", state: "waiting", error: null, usage: null, finish: null, times: [], ...kept };
    this.hooks = hooks;
    this.said = h("div", { class: "said" });
    this.foot = h("div");
    this.node = h("article", { class: "answer", "aria-label": `Answer of ${this.kept.label}` },
      h("h3", { text: this.kept.label }), this.said, this.foot);
    if (!this.busy) this.#draw();
  }

  get busy() { return this.kept.state === "waiting" || this.kept.state === "streaming"; }
  get text() { return this.kept.text; }

  /** What is kept of it; one that still streams counts as stopped where it is. */
  record() {
    return { ...this.kept, state: this.busy ? "stopped" : this.kept.state };
  }

  async run(body) {
    this.abort = new AbortController();
    this.started = performance.now();
    this.node.setAttribute("aria-busy", "true");
    try {
      for await (const chunk of chat(body, this.abort.signal)) this.#take(chunk);
      this.kept.state = "done";
    } catch (error) {
      this.kept.state = leaving || error.name === "AbortError" ? "stopped" : "failed";
      if (this.kept.state === "failed") this.kept.error = { message: error.message, code: error.code ?? "", status: error.status ?? 0 };
    }
    this.node.setAttribute("aria-busy", "false");
    this.#keepingEnd(() => this.#draw());
    const { state, error } = this.kept;
    announce(state === "failed" ? `Failed: ${error.message}` : `${this.kept.label} answered: ${this.text}`);
  }

  #draw() {
    this.#show();
    this.#finish();
    enrich(this.said).then(() => this.hooks.shown());
  }

  stop() { this.abort?.abort(); }

  #take(chunk) {
    const kept = this.kept;
    if (chunk.usage) kept.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    if (choice.finish_reason) kept.finish = choice.finish_reason;
    const now = Math.round((performance.now() - this.started) * 10) / 10;
    kept.last = now; // also where the last tokens have no text of their own
    const piece = choice.delta?.content;
    if (!piece) return;
    if (kept.times.length < MAX_TIMES) kept.times.push(now);
    kept.text += piece;
    kept.state = "streaming";
    this.hooks.grew();
    if (!this.drawing) {
      this.drawing = true;
      requestAnimationFrame(() => { this.drawing = false; if (this.busy) this.#show(); });
    }
  }

  /** Change what is shown; somebody who reads the end goes on seeing the end. */
  #keepingEnd(change) {
    const log = scroller();
    const low = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    change();
    if (low) log.scrollTop = log.scrollHeight;
  }

  #show() {
    this.#keepingEnd(() => this.said.replaceChildren(markdown(this.text)));
    this.hooks.shown();
  }

  /** Name and value of what was measured. */
  measures() {
    const rows = [];
    const settings = this.hooks.settings;
    const { usage, state, finish, times: [first], last } = this.kept;
    if (first) rows.push(["first token", `${number(first)} ms`]);
    const made = usage?.completion_tokens;
    if (made > 1 && last > first) rows.push(["tokens/s", number((made - 1) / ((last - first) / 1000), 1)]);
    if (usage) {
      const details = usage.prompt_tokens_details ?? {};
      rows.push(["tokens in", number(usage.prompt_tokens)]);
      if (details.image_tokens) rows.push(["of images", number(details.image_tokens)]);
      if (details.cached_tokens) rows.push(["cached", number(details.cached_tokens)]);
      rows.push(["tokens out", number(made)]);
      const { price_per_million_input_tokens: input, price_per_million_output_tokens: output } = settings;
      if (typeof input === "number" && typeof output === "number") {
        rows.push(["price", money((usage.prompt_tokens * input + made * output) / 1e6, settings.currency)]);
      }
    }
    if (state === "stopped") rows.push(["", "stopped"]);
    if (finish === "length") rows.push(["", "cut at the longest answer"]);
    return rows;
  }

  #finish() {
    this.foot.replaceChildren();
    const { error, times } = this.kept;
    if (error) this.foot.append(h("p", { class: "failed" }, `${error.message} ${adviceFor(error)[0]}`));
    const rows = this.measures();
    if (rows.length) {
      this.foot.append(h("dl", { class: "metrics" },
        ...rows.map(([name, value]) => h("div", {}, h("dt", { text: name }), h("dd", { text: value })))));
    }
    if (times.length > 1) this.foot.append(timing(times));
    const button = (text, act) => h("button", { type: "button", text, on: { click: (event) => act(event.target) } });
    this.foot.append(h("div", { class: "after" },
      this.hooks.retry ? button("Retry", () => this.hooks.retry()) : null,
      this.text ? button("Copy", (target) => copy(this.text, target)) : null,
      button("As code", () => this.hooks.code()),
      this.hooks.explain && this.text ? button("How it sees", () => this.hooks.explain()) : null));
  }

  /** Only the last turn can be asked again. */
  settle() {
    this.hooks.retry = null;
    if (!this.busy) this.#finish();
  }
}
