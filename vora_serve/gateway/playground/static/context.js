// How much of the model's context the next request takes: exact for images, near for text.

const SIGNS_PER_TOKEN = 3.5;

/**
 * @param {object} given
 * @param {number|null} given.limit of the model, tokens
 * @param {number} given.images tokens of all images of the request
 * @param {number} given.newImages tokens of the images that are not sent yet
 * @param {string} given.history text of the turns before
 * @param {string} given.text that is being written, system prompt included where it is new
 * @param {object|null} given.usage of the last answer in this chat by this model
 * @returns {{limit: number|null, images: number, text: number, total: number, over: boolean}}
 */
export function contextOf({ limit, images, newImages, history, text, usage }) {
  let signs = SIGNS_PER_TOKEN, total;
  if (usage) {
    const before = usage.prompt_tokens + usage.completion_tokens;
    const words = before - (usage.prompt_tokens_details?.image_tokens ?? 0);
    if (words > 0 && history.length > 40) signs = Math.min(8, Math.max(1, history.length / words));
    total = before + newImages + Math.ceil(text.length / signs);
  } else {
    total = images + Math.ceil((history.length + text.length) / signs);
  }
  return { limit, images, text: Math.max(0, total - images), total, over: limit !== null && total >= limit };
}
