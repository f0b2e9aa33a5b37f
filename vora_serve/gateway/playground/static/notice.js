// What went wrong, beside the composer, each with what to do about it.
import { $, h } from "./dom.js";

const ADVICE = {
  invalid_api_key: ["Enter a valid key.", ["settings"]],
  insufficient_permissions: ["Ask who runs this server for a key with more rights, or choose another model.", ["settings"]],
  model_not_found: ["Choose another model above.", []],
  context_length_exceeded: ["Shrink the images, shorten the question, or begin a new chat.", ["shrink", "new-chat"]],
  invalid_image: ["Convert the image to PNG or JPEG, or remove it.", []],
  image_too_large: ["Shrink the images.", ["shrink"]],
  request_too_large: ["Shrink the images, or begin a new chat.", ["shrink", "new-chat"]],
  rate_limit_exceeded: ["Wait a moment, then choose Retry.", []],
  engine_unavailable: ["Wait until the engine is ready, then choose Retry.", []],
  draining: ["The server restarts. Wait a moment, then choose Retry.", []],
  deadline_exceeded: ["Choose Retry, or ask for a shorter answer in the settings.", ["settings"]],
  engine_error: ["Choose Retry. If it happens again, whoever runs this server finds the cause in its log.", []],
  internal_error: ["Choose Retry. If it happens again, whoever runs this server finds the cause in its log.", []],
  unreachable: ["Check your network and that the server runs, then choose Retry.", []],
  broken: ["Choose Retry. What has come so far stays.", []],
  invalid_request: ["Check the settings: one of them is outside of what the server takes.", ["settings"]],
};
const NAMES = { settings: "Open settings", shrink: "Shrink images", "new-chat": "New chat" };
const acts = {};

/** What "settings", "shrink" and "new-chat" do. */
export const prepareNotice = (given) => Object.assign(acts, given);

/** The advice for an error of the gateway: a sentence and names of actions. */
export function adviceFor(error) {
  if (ADVICE[error.code]) return ADVICE[error.code];
  if (error.status === 401) return ADVICE.invalid_api_key;
  if (error.status === 413) return ADVICE.request_too_large;
  if (error.status === 429) return ADVICE.rate_limit_exceeded;
  return error.status >= 400 && error.status < 500 ? ADVICE.invalid_request : ADVICE.engine_error;
}

/**
 * Show a message, or none.
 * @param {string|null} text
 * @param {[string, Array]} [advice] what to do, and actions: names, or [label, function]
 */
export function notice(text, [what, actions] = ["", []]) {
  const buttons = actions.map((action) => {
    const [label, act] = Array.isArray(action) ? action : [NAMES[action], acts[action]];
    return h("button", { type: "button", text: label, on: { click: () => { notice(null); act(); } } });
  });
  const close = h("button", { type: "button", class: "close", text: "×", "aria-label": "Close this message", on: { click: () => { notice(null); $("question").focus(); } } });
  $("notice").replaceChildren(...(text ? [h("p", {}, h("strong", { text }), what ? ` ${what}` : ""), ...buttons, close] : []));
  $("notice").hidden = !text;
}

/** Show an error of the gateway. */
export const noticeError = (error) => notice(error.message, adviceFor(error));
