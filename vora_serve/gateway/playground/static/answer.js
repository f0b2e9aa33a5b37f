// One answer: streamed, measured, shown.
import { chat } from "./api.js";
import { announce, copy, h, number } from "./dom.js";
import { markdown } from "./markdown.js";
import { money } from "./images.js";

export class Answer {
  /**
   * @param {{model: string, label: string}} pane
   * @param {object} body the request
   * @param {{retry: Function, code: Function, explain: Function|null, settings: object}} hooks
   */
  constructor(pane, body, hooks) {
    this.pane = pane;
    this.body = body;
    this.hooks = hooks;
    this.text = "";
    this.state = "waiting";
    this.error = null;
    this.usage = null;
    this.finish = null;
    this.said = h("div", { class: "said" });
    this.foot = h("div");
    this.node = h("article", { class: "answer", "aria-busy": "true", "aria-label": `Answer of ${pane.label}` },
      h("h3", { text: pane.label }), this.said, this.foot);
  }

  get busy() { return this.state === "waiting" || this.state === "streaming"; }

  async run() {
    this.abort = new AbortController();
    this.started = performance.now();
    try {
      for await (const chunk of chat(this.body, this.abort.signal)) this.#take(chunk);
      this.state = "done";
    } catch (error) {
      if (error.name === "AbortError") this.state = "stopped";
      else {
        this.state = "failed";
        this.error = error;
      }
    }
    this.ended = performance.now();
    this.#show();
    this.node.setAttribute("aria-busy", "false");
    this.#keepingEnd(() => this.#finish());
    announce(this.state === "failed" ? `Failed: ${this.error.message}` : `${this.pane.label} answered: ${this.text}`);
  }

  stop() { this.abort?.abort(); }

  #take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    if (choice.finish_reason) this.finish = choice.finish_reason;
    const now = performance.now();
    this.last = now; // also where the last tokens have no text of their own
    const piece = choice.delta?.content;
    if (!piece) return;
    this.first ??= now;
    this.text += piece;
    this.state = "streaming";
    if (!this.drawing) {
      this.drawing = true;
      requestAnimationFrame(() => { this.drawing = false; this.#show(); });
    }
  }

  /** Change what is shown; somebody who reads the end goes on seeing the end. */
  #keepingEnd(change) {
    const log = document.getElementById("log");
    const low = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    change();
    if (low) log.scrollTop = log.scrollHeight;
  }

  #show() {
    this.#keepingEnd(() => this.said.replaceChildren(markdown(this.text)));
  }

  /** Name and value of what was measured. */
  measures() {
    const rows = [];
    const settings = this.hooks.settings;
    if (this.first) rows.push(["first token", `${number(this.first - this.started)} ms`]);
    const made = this.usage?.completion_tokens;
    if (made > 1 && this.last > this.first) {
      rows.push(["tokens/s", number((made - 1) / ((this.last - this.first) / 1000), 1)]);
    }
    if (this.usage) {
      const details = this.usage.prompt_tokens_details ?? {};
      rows.push(["tokens in", number(this.usage.prompt_tokens)]);
      if (details.image_tokens) rows.push(["of images", number(details.image_tokens)]);
      if (details.cached_tokens) rows.push(["cached", number(details.cached_tokens)]);
      rows.push(["tokens out", number(made)]);
      const { price_per_million_input_tokens: input, price_per_million_output_tokens: output } = settings;
      if (typeof input === "number" && typeof output === "number") {
        rows.push(["price", money((this.usage.prompt_tokens * input + made * output) / 1e6, settings.currency)]);
      }
    }
    if (this.state === "stopped") rows.push(["", "stopped"]);
    if (this.finish === "length") rows.push(["", "cut at the longest answer"]);
    return rows;
  }

  #finish() {
    this.foot.replaceChildren();
    if (this.error) this.foot.append(h("p", { class: "failed", text: this.error.message }));
    const rows = this.measures();
    if (rows.length) {
      this.foot.append(h("dl", { class: "metrics" },
        ...rows.map(([name, value]) => h("div", {}, h("dt", { text: name }), h("dd", { text: value })))));
    }
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
