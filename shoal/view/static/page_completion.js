// One completion: the conversation, what it came to, and its tokens.

import { ask } from "./data.js";
import { fill, h, table } from "./dom.js";
import { num, signed } from "./format.js";
import { onPage } from "./keys.js";
import { block, letters } from "./plain.js";
import { facts, sortedBy, words } from "./page_group.js";
import { tone } from "./page_steps.js";
import { go, note, place, to } from "./route.js";
import { strip } from "./strip.js";
import { conversation, promptPart } from "./talk.js";

export async function completionPage(page, given, about, show) {
  const { run, kind } = given;
  const group = await ask("group", { run, kind, step: given.step, group: given.group });
  const one = group.completions[Number(given.index)];
  if (!one)
    throw new Error(
      `Group ${given.group} of step ${given.step} has ${group.completions.length} completions; ${given.index} is none of them.`,
    );
  const order = sortedBy(group.completions, "reward");
  const at = order.indexOf(one);
  const address = (other) => to("completion", place(run, kind, group.step, group.group, { index: other.position }));
  const groupAddress = to("group", place(run, kind, group.step, group.group));
  fill(
    page,
    h(
      "div.head",
      h("h1", `Completion ${one.position}`),
      h("a", { href: groupAddress }, `step ${group.step}, group ${group.group}`),
      h("span", { class: `reward ${tone(one.reward)}` }, num(one.reward)),
      facts(one),
      h(
        "nav.steps",
        { "aria-label": "Neighbours" },
        at > 0 ? h("a", { href: address(order[at - 1]) }, "← better") : null,
        at < order.length - 1 ? h("a", { href: address(order[at + 1]) }, "worse →") : null,
      ),
    ),
    one.left_out ? h("p.warning", `Left out of training: ${one.left_out}`) : null,
    one.unreadable ? h("p.warning", "This line of the file cannot be read any more.") : null,
    promptPart(one, group),
    h(
      "section",
      h("h2", "Completion"),
      given.text ? block(one.text, { marked: given.text }) : conversation(one),
      words(one),
    ),
    rewards(one, group),
    tokens(one, given),
  );
  show(page);
  const jump = (step) => () =>
    order[at + step] &&
    go("completion", place(run, kind, group.step, group.group, { index: order[at + step].position }));
  const way = (name) => () => group[name] && go("group", place(run, kind, ...group[name]));
  onPage([
    ["n", "the next completion, by reward", jump(1)],
    ["p", "the completion before", jump(-1)],
    ["g", "its group, side by side", () => go("group", place(run, kind, group.step, group.group))],
    ["j", "the next group", way("after")],
    ["k", "the group before", way("before")],
    ["ArrowRight", "the next step", way("step_after")],
    ["ArrowLeft", "the step before", way("step_before")],
  ]);
}

function rewards(one, group) {
  const rows = [
    ...Object.entries(one.reward_parts || {}).map(([name, value]) => [h("span", letters(name)), num(value)]),
    ...Object.entries(one.penalties || {}).map(([name, value]) => [
      h("span", "penalty ", letters(name)),
      signed(typeof value === "number" ? -value : null),
    ]),
    ["reward", h("b", num(one.reward))],
    ["advantage", signed(one.advantage)],
    ["group's mean reward", num(group.mean)],
  ];
  const judged = (group.criteria || []).map((criterion) => [
    h("span", { title: criterion.description }, letters(criterion.title)),
    h("span", signed(criterion.weight)),
    num(criterion.scores[one.position]),
  ]);
  return h(
    "section",
    h("h2", "What it came to"),
    table(["part", "value"], rows, { class: "numbers", label: "Reward" }),
    judged.length ? table(["criterion", "weight", "score"], judged, { class: "numbers", label: "Criteria" }) : null,
  );
}

function tokens(one, given) {
  if (one.tokens && typeof one.tokens === "object" && Array.isArray(one.tokens.text))
    return strip(one.tokens, given.colour || "difference", (colour) => note({ colour }));
  return h(
    "p.dim",
    "Tokens are recorded with ",
    h("code", "monitor.tokens=true"),
    ": one more forward pass a step, and about 40 bytes a token in samples/.",
  );
}
