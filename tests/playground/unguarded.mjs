// A gateway without its Content-Security-Policy, for Firefox: Playwright runs its own functions in
// pages with eval there, which the policy refuses. What the policy does is shown in Chromium.
import { createServer, request } from "node:http";

const opened = new Map();

/** The address of a proxy in front of `base` that leaves the policy out; it ends with the process. */
export async function unguarded(base) {
  const { origin, pathname } = new URL(base);
  if (!opened.has(origin)) {
    const proxy = createServer((given, answer) => {
      const onward = request(`${origin}${given.url}`, { method: given.method, headers: { ...given.headers, host: new URL(origin).host } }, (got) => {
        const { "content-security-policy": _, ...headers } = got.headers;
        answer.writeHead(got.statusCode, headers);
        got.pipe(answer);
      });
      onward.on("error", () => answer.destroy());
      answer.on("close", () => onward.destroy());
      given.pipe(onward);
    });
    proxy.unref();
    await new Promise((ready) => { proxy.listen(0, "127.0.0.1", ready); });
    opened.set(origin, `http://127.0.0.1:${proxy.address().port}`);
  }
  return opened.get(origin) + pathname;
}
