// The attention of answers, asked for once and kept while the page is open.
import { explain } from "./api.js";
import { unpacked } from "./heat.js";
import { fate } from "./images.js";
import { page } from "./page.js";

/** The server looks into so many characters of an answer. */
const MAX_SIGNS = 4000;
/** By answer: {text, data} that were computed last. */
const known = new WeakMap();

/**
 * What an answer is about: what was sent, and which images.
 * @typedef {{body: any, images: any[], model: any, side: number}} Subject
 */

/** The messages with images' addresses replaced by what the gateway fetched there. */
const withData = (messages, images) => messages.map((message) => (Array.isArray(message.content)
  ? { ...message, content: message.content.map((part) => {
    const given = images.find((image) => image.url === part.image_url?.url);
    return given?.source === "url" ? { type: "image_url", image_url: { url: given.image.src } } : part;
  }) } : message));

/** Images with what the model makes of each. @param {Subject} subject */
export const imagesOf = ({ images, model, side }) =>
  images.map((image) => ({ image, facts: fate(image, model, side, page.settings) }));

/** What is known of an answer, which may have grown since. */
export const attentionOf = (answer) => known.get(answer)?.data ?? null;

/** Whether asking again would bring more. */
export const isBehind = (answer) => (known.get(answer)?.text ?? "") !== answer.text.slice(0, MAX_SIGNS);

/** Ask for the attention of an answer as far as it has come. @param {Subject} subject */
export async function look(answer, { body, images }, signal) {
  const text = answer.text.slice(0, MAX_SIGNS);
  if (isBehind(answer)) {
    const told = await explain({ model: body.model, messages: withData(body.messages, images), answer: text }, signal);
    known.set(answer, { text, data: unpacked(told) });
    page.settings.explain = "ready";
  }
  return attentionOf(answer);
}
