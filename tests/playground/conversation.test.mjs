// The playground's logic without a browser: node --test conversation.test.mjs
import assert from "node:assert/strict";
import test from "node:test";

const at = (name) => import(`../../vora_serve/gateway/playground/static/${name}.js`);
const { addTurn, choose, exported, imported, isEmpty, matches, merged, newConversation, path, versions } = await at("conversation");
const { problemOf, problemOfAll, sizeOf, sniff } = await at("limits");
const { contextOf } = await at("context");
const { facts } = await at("timing");
const { by, parse, quantile, since, total } = await at("exposition");

const answer = (text) => ({ model: "m", label: "m", side: 0, text, state: "done", error: null, usage: null, finish: "stop", last: 3, times: [1, 2, 3], system: "", options: { temperature: 0 } });
const PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

function twoVersions() {
  const chat = newConversation();
  const first = addTurn(chat, null, "How many?", ["i"]);
  first.answers = [answer("three")];
  const second = addTurn(chat, first.id, "And colours?", []);
  second.answers = [answer("red")];
  const other = addTurn(chat, null, "Which digit?", ["i"]);
  return { chat, first, second, other };
}

test("editing a turn makes a version of it, and both keep what followed", () => {
  const { chat, first, second, other } = twoVersions();
  first.at = 1; second.at = 2; other.at = 3;
  assert.deepEqual(path(chat).map((turn) => turn.id), [other.id]);
  assert.deepEqual(versions(chat, other).map((turn) => turn.id), [first.id, other.id]);
  choose(chat, first);
  assert.deepEqual(path(chat).map((turn) => turn.id), [first.id, second.id]);
  assert.ok(matches(chat, "COLOURS three") && !matches(chat, "absent"));
  assert.ok(isEmpty(newConversation()) && !isEmpty(chat));
});

test("two tabs lose no turn of each other, nor the end of an answer", () => {
  const { chat, first } = twoVersions();
  const other = structuredClone(chat);
  other.updated = chat.updated + 5;
  const added = addTurn(chat, first.id, "Mine", []);
  addTurn(other, first.id, "Theirs", []);
  other.turns[first.id].answers[0].text = "th";
  const both = merged(chat, other);
  assert.equal(Object.keys(both.turns).length, 5);
  assert.ok(both.turns[added.id]);
  assert.equal(both.turns[first.id].answers[0].text, "three");
});

test("an export comes back as it was", () => {
  const { chat } = twoVersions();
  const image = { id: "i", name: "a.png", type: "image/png", source: "file", url: PIXEL, shown: PIXEL };
  const [back] = imported(JSON.stringify(exported([chat], { [chat.id]: [image] })));
  assert.deepEqual(back, { chat, images: [image] });
});

test("files that are no export are refused in a sentence, whole", () => {
  const { chat } = twoVersions();
  const image = { id: "i", name: "a.png", type: "image/png", source: "file", url: PIXEL, shown: PIXEL };
  const good = () => JSON.parse(JSON.stringify(exported([chat], { [chat.id]: [image] })));
  const turn = Object.keys(chat.turns)[0];
  const wrong = {
    "not JSON": () => "{", "not an export": () => "[]", "not an export of": () => "{\"format\": \"other\"}",
    "version 2": (tree) => { tree.version = 2; }, "no conversations": (tree) => { tree.conversations = {}; },
    "no id": (tree) => { delete tree.conversations[0].id; },
    "an image that is broken": (tree) => { tree.conversations[0].images[0].shown = "javascript:alert(1)"; },
    "lacks an image": (tree) => { tree.conversations[0].images = []; },
    "follows none": (tree) => { tree.conversations[0].turns[turn].parent = "absent"; },
    "in a circle": (tree) => { tree.conversations[0].turns[turn].parent = turn; },
    "no last turn": (tree) => { tree.conversations[0].leaf = "absent"; },
    "an answer that is broken": (tree) => { tree.conversations[0].turns[turn].answers = [1]; },
  };
  imported(JSON.stringify(good()));
  for (const [sentence, spoil] of Object.entries(wrong)) {
    const tree = good();
    const text = spoil(tree) ?? JSON.stringify(tree);
    assert.throws(() => imported(text), new RegExp(sentence), sentence);
  }
  const odd = good();
  odd.conversations[0].turns[turn].answers = [{ text: 3, usage: { prompt_tokens: "x" }, times: [1, "a", null] }];
  const [kept] = Object.values(imported(JSON.stringify(odd))[0].chat.turns[turn].answers);
  assert.deepEqual([kept.text, kept.usage.prompt_tokens, kept.times], ["", 0, [1]]);
});

test("the context bar: exact for images and what was asked, near for words", () => {
  const given = { limit: 100, images: 40, newImages: 0, history: "", text: "x".repeat(35), usage: null };
  assert.deepEqual(contextOf(given), { limit: 100, images: 40, text: 10, total: 50, over: false });
  const usage = { prompt_tokens: 60, completion_tokens: 20, prompt_tokens_details: { image_tokens: 40 } };
  const after = contextOf({ ...given, images: 60, newImages: 20, history: "y".repeat(80), usage, text: "" });
  assert.deepEqual([after.total, after.over], [100, true]);
  assert.equal(contextOf({ ...given, limit: null }).over, false);
});

test("the chart's facts", () => {
  assert.deepEqual(facts([10, 11, 12, 20]), { first: 10, last: 20, gaps: [1, 1, 8], median: 1, p95: 8, longest: 8 });
});

test("the operator's page reads the exposition", () => {
  const text = (n) => `# HELP a_total x\n# TYPE a_total counter\na_total{key="a \\"b\\"",status="200"} ${n}\na_total{key="c",status="429"} 1.0
d_bucket{le="0.1"} ${n}\nd_bucket{le="0.5"} ${2 * n}\nd_bucket{le="+Inf"} ${2 * n}\nd_count 3\n`;
  const grown = since(parse(text(10)), parse(text(4)));
  assert.deepEqual(by(grown, "a_total", "key"), [['a "b"', 6]]);
  assert.deepEqual(by(parse(text(1)), "a_total", "status"), [["200", 1], ["429", 1]]);
  assert.ok(Math.abs(quantile(grown, "d", 0.25) - 0.05) < 1e-9);
  assert.ok(Math.abs(quantile(grown, "d", 0.75) - 0.3) < 1e-9);
  assert.equal(quantile(since(parse(text(4)), parse(text(4))), "d", 0.5), null);
  assert.equal(total(since(parse(text(2)), parse(text(9))), "a_total", { status: "200" }), 2, "after a restart");
});

// What the gateway's own tests compare with its answers.
const [cases] = process.env.CASES ? [JSON.parse(process.env.CASES)] : [[]];
test("images: the same verdict as the gateway's", () => {
  const verdicts = cases.map(({ limits, url, width, height }) => {
    const image = { url, width, height, source: "file" };
    return problemOf(image, limits) === null && problemOfAll([image], limits) === null;
  });
  console.log(`VERDICTS ${JSON.stringify(verdicts)}`);
  assert.equal(sizeOf({ url: PIXEL }), 70);
  assert.equal(sniff([0xff, 0xd8, 0xff]), "jpeg");
});
