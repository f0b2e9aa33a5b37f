// Prometheus' text format, read: samples, what happened between two of them, quantiles.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:\\.|[^"\\])*)"/g;
const SIGNS = { "\\n": "\n", "\\\\": "\\", '\\"': '"' };

/** @returns {Array<{name: string, labels: Record<string, string>, value: number}>} */
export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] ?? "").matchAll(LABEL)) labels[name] = value.replace(/\\[n\\"]/g, (sign) => SIGNS[sign]);
    samples.push({ name: found[1], labels, value: found[3] === "+Inf" ? Infinity : Number(found[3]) });
  }
  return samples;
}

const keyOf = ({ name, labels }) => `${name} ${JSON.stringify(labels)}`;

/** Counters and buckets as they grew since an earlier reading; a restart counts from 0. */
export function since(now, before) {
  const old = new Map(before.map((sample) => [keyOf(sample), sample.value]));
  return now.map((sample) => {
    const was = old.get(keyOf(sample)) ?? 0;
    return { ...sample, value: sample.value >= was ? sample.value - was : sample.value };
  });
}

export const named = (samples, name, wanted = {}) => samples.filter((sample) =>
  sample.name === name && Object.entries(wanted).every(([label, value]) => sample.labels[label] === value));

export const total = (samples, name, wanted) => named(samples, name, wanted).reduce((sum, { value }) => sum + value, 0);

/** Sums by one label, the largest first. */
export function by(samples, name, label) {
  const sums = new Map();
  for (const { labels, value } of named(samples, name)) sums.set(labels[label], (sums.get(labels[label]) ?? 0) + value);
  return [...sums].filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]);
}

/** The value below which `share` of a histogram's observations are; null without any. */
export function quantile(samples, name, share) {
  const sums = new Map();
  for (const { labels, value } of named(samples, `${name}_bucket`)) sums.set(labels.le, (sums.get(labels.le) ?? 0) + value);
  const buckets = [...sums].map(([le, count]) => [le === "+Inf" ? Infinity : Number(le), count]).sort((a, b) => a[0] - b[0]);
  const all = buckets.at(-1)?.[1] ?? 0;
  if (!all) return null;
  let low = 0, below = 0;
  for (const [le, count] of buckets) {
    if (count >= share * all) {
      if (le === Infinity) return low;
      return low + (le - low) * ((share * all - below) / (count - below || 1));
    }
    [low, below] = [le, count];
  }
  return low;
}
