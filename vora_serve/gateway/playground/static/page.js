// What the page's parts share: what the gateway said of itself, and what is open.

export const page = {
  settings: {},
  models: [],
  /** One pane, or two side by side: {index, model, size, node}. */
  panes: [],
  /** The open conversation. */
  chat: null,
  /** Its images by id, decoded. */
  images: new Map(),
  /** Images in the composer. */
  waiting: [],
  pending: 0,
  /** Answers that are shown or still come, by turn. @type {Map<string, Array>} */
  answers: new Map(),
};

export const modelOf = (pane) => page.models.find((card) => card.id === pane.model.value) ?? null;
export const modelNamed = (id) => page.models.find((card) => card.id === id) ?? null;
export const sideOf = (pane) => Number(pane.size.value);
export const imagesOf = (turn) => turn.images.map((id) => page.images.get(id)).filter(Boolean);
