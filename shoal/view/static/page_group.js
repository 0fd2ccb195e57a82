// One group side by side: what was asked, and every completion with what it came to.

import { ask, exported } from "./data.js";
import { fill, h, say, table } from "./dom.js";
import { marked } from "./diff.js";
import { num, signed } from "./format.js";
import { onPage } from "./keys.js";
import { block, letters } from "./plain.js";
import { go, note, place, to } from "./route.js";
import { conversation, promptPart } from "./talk.js";
import { tone } from "./page_steps.js";

const ORDERS = { reward: "reward", index: "number", length: "length", advantage: "advantage" };

export async function groupPage(page, given, about, show) {
  const { run, kind } = given;
  const group = await ask("group", { run, kind, step: given.step, group: given.group });
  let order = given.sort || "reward";
  let base = given.base === undefined ? null : Number(given.base);
  const cards = h("div.cards");
  const sorted = () => sortedBy(group.completions, order);
  const draw = () => {
    note({ sort: order === "reward" ? "" : order, base: base === null ? "" : base });
    fill(
      cards,
      sorted().map((one) => card(one)),
    );
  };
  const setBase = (position) => {
    base = base === position ? null : position;
    draw();
    say(base === null ? "differences are not marked" : `differences from completion ${position} are marked`);
  };

  function card(one) {
    const from = base !== null && base !== one.position ? group.completions[base] : null;
    const address = to("completion", place(run, kind, group.step, group.group, { index: one.position }));
    const same = from && from.text === one.text;
    return h(
      "article.card",
      {
        class: base === one.position ? "base" : "",
        "aria-label": `completion ${one.position}`,
        id: `completion-${one.position}`,
      },
      h(
        "header",
        h("a", { href: address }, h("b", `#${one.position}`)),
        h("span", { class: `reward ${tone(one.reward)}` }, num(one.reward)),
        facts(one),
        group.completions.length > 1
          ? h(
              "button.small",
              { type: "button", "aria-pressed": String(base === one.position), onclick: () => setBase(one.position) },
              base === one.position ? "compared with" : "compare",
            )
          : null,
      ),
      one.left_out ? h("p.warning", `left out of training: ${one.left_out}`) : null,
      same
        ? h("p.dim", `the same text as #${from.position}`)
        : from && typeof from.text === "string" && typeof one.text === "string"
          ? marked(from.text, one.text)
          : conversation(one, { first: 6000 }),
      words(one),
    );
  }

  const neighbours = h(
    "nav.steps",
    { "aria-label": "Neighbours" },
    way("step_before", "← step"),
    way("step_after", "step →"),
    way("before", "↑ group"),
    way("after", "↓ group"),
  );
  function way(name, title) {
    const there = group[name];
    return there && !exported ? h("a", { href: to("group", place(run, kind, there[0], there[1])) }, title) : null;
  }

  fill(
    page,
    h(
      "div.head",
      h("h1", `Step ${group.step}, group ${group.group}`),
      h("a.dim", { href: to("steps", { run, prompt: group.name }) }, letters(group.name)),
      neighbours,
    ),
    h("p.story", { class: group.outcome }, group.words),
    promptPart(group.completions[0] || {}, group),
    again(group, run, kind),
    h(
      "section",
      h("h2", "Completions"),
      h(
        "div.controls",
        choose(order, (value) => {
          order = value;
          draw();
        }),
        h("span.dim", "“compare” marks what differs from a completion in all others"),
      ),
      overview(group, run, kind),
      criteria(group),
      cards,
    ),
  );
  draw();
  show(page);

  const jump = (name) => () => group[name] && go("group", place(run, kind, ...group[name]));
  onPage([
    ["ArrowLeft", "the step before", jump("step_before")],
    ["ArrowRight", "the next step", jump("step_after")],
    ["k", "the group before", jump("before")],
    ["j", "the next group", jump("after")],
    [
      "n",
      "the first completion",
      () => go("completion", place(run, kind, group.step, group.group, { index: sorted()[0].position })),
    ],
    [
      "d",
      "mark differences from the best completion",
      () => setBase(sortedBy(group.completions, "reward")[0].position),
    ],
  ]);
}

function choose(order, changed) {
  const select = h(
    "select",
    { onchange: () => changed(select.value) },
    Object.entries(ORDERS).map(([key, name]) => h("option", { value: key, selected: key === order }, name)),
  );
  return h("label", "order by ", select);
}

export function sortedBy(completions, order) {
  const value = {
    reward: (one) => one.reward ?? -Infinity,
    advantage: (one) => one.advantage ?? -Infinity,
    length: (one) => one.length ?? 0,
    index: (one) => -one.position,
  }[order];
  return completions.slice().sort((a, b) => value(b) - value(a) || a.position - b.position);
}

/** Advantage, length, stop reason and versions, in a line. */
export function facts(one) {
  const parts = [];
  if (one.advantage !== null && one.advantage !== undefined)
    parts.push(h("span", { title: "advantage" }, `adv ${signed(one.advantage)}`));
  if (one.length !== null && one.length !== undefined)
    parts.push(h("span", { title: "sampled tokens" }, `${num(one.length)} tok`));
  if (one.stop_reason)
    parts.push(
      h(
        "span",
        { class: one.stop_reason === "stop" ? "" : "warning", title: "stop reason" },
        letters(String(one.stop_reason)),
      ),
    );
  const versions = versionText(one.versions);
  if (versions) parts.push(h("span.dim", { title: "weights that sampled it: version, from token" }, versions));
  return h("span.facts", parts);
}

/** Versions of the weights: `v3`, or `v3 → v4 from token 120`. */
export function versionText(versions) {
  if (!Array.isArray(versions) || !versions.length) return "";
  return versions
    .map((one, index) => (Array.isArray(one) ? (index ? `v${one[1]} from token ${one[0]}` : `v${one[1]}`) : ""))
    .join(" → ");
}

/** What judges, sandboxes and verifiers said of a completion. */
export function words(one) {
  const info = one.info && typeof one.info === "object" ? one.info : {};
  const rows = [];
  if (info.missing && typeof info.missing === "object")
    for (const [name, reason] of Object.entries(info.missing)) rows.push([`${name}: no score`, String(reason)]);
  for (const [name, value] of Object.entries(info)) {
    if (["missing", "messages", "tools"].includes(name)) continue;
    rows.push([name, typeof value === "string" ? value : JSON.stringify(value, null, 1)]);
  }
  return rows.length
    ? h(
        "div.said",
        rows.map(([name, text]) =>
          h("details", { open: text.length < 300 }, h("summary", letters(name)), block(text, { first: 4000 })),
        ),
      )
    : null;
}

/** Rewards with their parts and penalties: a row for each completion. */
function overview(group, run, kind) {
  const keys = (field) => [
    ...new Set(group.completions.flatMap((one) => Object.keys((typeof one[field] === "object" && one[field]) || {}))),
  ];
  const [parts, penalties] = [keys("reward_parts"), keys("penalties")];
  const rows = sortedBy(group.completions, "reward").map((one) => [
    h(
      "a",
      { href: to("completion", place(run, kind, group.step, group.group, { index: one.position })) },
      `#${one.position}`,
    ),
    num(one.reward),
    ...parts.map((name) => num((one.reward_parts || {})[name])),
    ...penalties.map((name) => num((one.penalties || {})[name])),
    signed(one.advantage),
    num(one.length),
    String(one.stop_reason ?? "–"),
    versionText(one.versions) || "–",
    one.left_out ? "left out" : "",
  ]);
  const heads = [
    "",
    "reward",
    ...parts.map((name) => h("span", letters(name))),
    ...penalties.map((name) => h("span", "penalty ", letters(name))),
    "advantage",
    "tokens",
    "stop",
    "versions",
    "",
  ];
  return h(
    "details",
    { open: true },
    h("summary", "Rewards in parts"),
    table(heads, rows, { class: "numbers", label: "Rewards in parts" }),
  );
}

/** Scores by criterion, where the run was judged by rubrics. */
function criteria(group) {
  if (!group.criteria) return null;
  const order = sortedBy(group.completions, "reward");
  const heads = ["criterion", "weight", "from", ...order.map((one) => `#${one.position}`)];
  const rows = group.criteria.map((one) => [
    h("span", { title: one.description }, letters(one.title)),
    signed(one.weight),
    one.origin,
    ...order.map((completion) => num(one.scores[completion.position])),
  ]);
  return h(
    "details",
    { open: true },
    h("summary", "Scores by criterion"),
    table(heads, rows, { class: "numbers", label: "Scores by criterion" }),
  );
}

/** The other times that this prompt was drawn. */
function again(group, run, kind) {
  if (group.again.length < 2) return null;
  const links = group.again.map((one) => {
    const here = one.step === group.step && one.group === group.group;
    const text = `step ${one.step}: ${one.rights}/${one.count}`;
    return here || exported ? h("b", text) : h("a", { href: to("group", place(run, kind, one.step, one.group)) }, text);
  });
  return h(
    "p.again",
    h("span.dim", "This prompt over the run (right completions): "),
    links.map((one) => [one, " "]),
  );
}
