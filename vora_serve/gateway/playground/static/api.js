// The gateway's HTTP, as any client speaks it.

const KEY = "vora-api-key";

export class APIError extends Error {
  constructor(message, status, code) { super(message); this.status = status; this.code = code; }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

async function request(path, body, signal) {
  const headers = {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST", headers, signal,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "omit", redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new APIError("The server cannot be reached.", 0, "unreachable");
  }
  if (response.ok) return response;
  let error = null;
  try { error = (await response.json()).error; } catch { /* not the gateway's own answer */ }
  throw new APIError(error?.message ?? `The server answered ${response.status}.`,
    response.status, error?.code ?? null);
}

export const getSettings = async () => (await request("/playground/settings.json")).json();
export const getModels = async () => (await (await request("/v1/models")).json()).data;
export const getMetrics = async () => (await request("/operate/metrics")).text();
export const getOpenAPI = async () => (await request("/openapi.json")).json();
export const getAbout = async (model) =>
  (await request(`/playground/about?model=${encodeURIComponent(model)}`)).json();
export const getImage = async (url, signal) =>
  (await (await request("/playground/image", { url }, signal)).json()).url;
export const explain = async (body, signal) =>
  (await request("/playground/explain", body, signal)).json();

/** The events of one streamed chat answer, parsed. */
export async function* chat(body, signal) {
  const response = await request(
    "/v1/chat/completions", { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      let piece;
      try {
        piece = await reader.read();
      } catch (error) {
        if (signal?.aborted) throw error;
        throw new APIError("The connection broke off before the answer was complete.", 0, "broken");
      }
      if (piece.done) break;
      buffer += piece.value;
      let end;
      while ((end = buffer.indexOf("\n\n")) >= 0) {
        const event = buffer.slice(0, end);
        buffer = buffer.slice(end + 2);
        const data = event.split("\n").filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trimStart()).join("\n");
        if (data === "[DONE]") return;
        if (!data) continue;
        const tree = JSON.parse(data);
        if (tree.error) throw new APIError(tree.error.message, 200, tree.error.code);
        yield tree;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new APIError("The answer broke off before its end.", 200, "broken");
}
