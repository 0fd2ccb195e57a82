// What differs between two texts, word by word.

import { h } from "./dom.js";
import { letters } from "./plain.js";

const MOST_CELLS = 4e6;
const LONGEST = 60000;

const split = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) || [];
const lines = (text) => text.match(/[^\n]*\n|[^\n]+/g) || [];

/** Runs of [what, words]: `same`, `gone` (in the first only) or `new` (in the second only). */
export function differences(first, second) {
  const [left, right] = [first.slice(0, LONGEST), second.slice(0, LONGEST)];
  let [a, b] = [split(left), split(right)];
  if (middle(a, b) > MOST_CELLS) [a, b] = [lines(left), lines(right)];
  let begin = 0;
  while (begin < a.length && begin < b.length && a[begin] === b[begin]) begin += 1;
  let end = 0;
  while (end < a.length - begin && end < b.length - begin && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
  const inner = between(a.slice(begin, a.length - end), b.slice(begin, b.length - end));
  return joined([["same", a.slice(0, begin)], ...inner, ["same", end ? a.slice(-end) : []]]);
}

function middle(a, b) {
  return a.length * b.length;
}

/** The longest common subsequence by dynamic programming. */
function between(a, b) {
  if (!a.length || !b.length || middle(a, b) > MOST_CELLS)
    return [
      ["gone", a],
      ["new", b],
    ];
  const width = b.length + 1;
  const best = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      const at = i * width + j;
      best[at] = a[i] === b[j] ? best[at + width + 1] + 1 : Math.max(best[at + width], best[at + 1]);
    }
  }
  const runs = [];
  let [i, j] = [0, 0];
  while (i < a.length && j < b.length) {
    if (a[i] === b[j]) {
      runs.push(["same", [a[i]]]);
      i += 1;
      j += 1;
    } else if (best[(i + 1) * width + j] >= best[i * width + j + 1]) {
      runs.push(["gone", [a[i]]]);
      i += 1;
    } else {
      runs.push(["new", [b[j]]]);
      j += 1;
    }
  }
  return [...runs, ["gone", a.slice(i)], ["new", b.slice(j)]];
}

function joined(runs) {
  const made = [];
  for (const [what, words] of runs) {
    if (!words.length) continue;
    const text = words.join("");
    if (made.length && made[made.length - 1][0] === what) made[made.length - 1][1] += text;
    else made.push([what, text]);
  }
  return made;
}

/** The second text, with what it has beside the first underlined, and what it lacks struck out. */
export function marked(first, second) {
  const element = h("pre.words", { dir: "ltr" });
  for (const [what, text] of differences(first, second)) {
    const tag = what === "new" ? "ins" : what === "gone" ? "del" : "span";
    element.append(h(tag, letters(text)));
  }
  if (second.length > LONGEST)
    element.append(h("p.dim", "Differences are marked as far as this; the rest is on the completion's own page."));
  return element;
}
