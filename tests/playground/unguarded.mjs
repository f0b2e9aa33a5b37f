// A gateway without its Content-Security-Policy, for Firefox: Playwright runs its own functions in
// pages with eval there, which the policy refuses. What the policy does is shown in Chromium. BiDi
// also hides the bodies of requests, so that they are read and changed here.
import { createServer, request } from "node:http";

const opened = new Map();
/** What a scenario asks for: fields to put into chat requests, and lists that get their bodies. */
export const onTheWay = { fields: {}, bodies: [] };

/** A scenario begins: nothing is asked for. */
export function forget() {
  onTheWay.fields = {};
  onTheWay.bodies = [];
}

async function changed(given) {
  const pieces = [];
  for await (const piece of given) pieces.push(piece);
  const body = Buffer.concat(pieces);
  if (given.method !== "POST" || !given.url.endsWith("/v1/chat/completions")) return body;
  const tree = JSON.parse(body.toString("utf8"));
  for (const list of onTheWay.bodies) list.push(tree);
  return Buffer.from(JSON.stringify({ ...tree, ...onTheWay.fields }));
}

/** The address of a proxy in front of `base` that leaves the policy out; it ends with the process. */
export async function unguarded(base) {
  const { origin, pathname } = new URL(base);
  if (!opened.has(origin)) {
    const proxy = createServer(async (given, answer) => {
      const body = await changed(given);
      const headers = { ...given.headers, host: new URL(origin).host };
      if (body.length) headers["content-length"] = String(body.length);
      const onward = request(`${origin}${given.url}`, { method: given.method, headers }, (got) => {
        const { "content-security-policy": _, ...kept } = got.headers;
        answer.writeHead(got.statusCode, kept);
        got.pipe(answer);
      });
      onward.on("error", () => answer.destroy());
      answer.on("close", () => onward.destroy());
      onward.end(body);
    });
    proxy.unref();
    await new Promise((ready) => { proxy.listen(0, "127.0.0.1", ready); });
    opened.set(origin, `http://127.0.0.1:${proxy.address().port}`);
  }
  return opened.get(origin) + pathname;
}
