// Held-out prompts over the run: solved, lost again, never.

import { chart } from "./chart.js";
import { ask, exported, follow } from "./data.js";
import { fill, h, moreButton, table } from "./dom.js";
import { count, num } from "./format.js";
import { letters } from "./plain.js";
import { note, place, to } from "./route.js";

const STORIES = {
  lost: "lost again: right at some time, not at the end",
  solved: "solved: wrong at first, right at the end",
  back: "back: right at first and at the end, not always between",
  never: "never right",
  always: "always right",
};
const AT_ONCE = 200;

export async function evaluationsPage(page, given, about, show) {
  const { run } = given;
  const counts = h("div.counts", { role: "group", "aria-label": "What became of the prompts" });
  const grid = h("div");
  const curve = chart({
    title: "Accuracy",
    about: "held-out prompts",
    lines: [{ label: "accuracy", key: "eval/accuracy", points: true }],
  });
  let story = given.story || "";
  let data = { steps: [], prompts: [] };
  let limit = AT_ONCE;
  const draw = () => {
    const of = (name) => data.prompts.filter((one) => one.story === name);
    fill(
      counts,
      Object.entries(STORIES).map(([name, words]) =>
        h(
          "button",
          {
            type: "button",
            "aria-pressed": String(story === name),
            title: words,
            onclick: () => {
              story = story === name ? "" : name;
              note({ story });
              draw();
            },
          },
          h("b", num(of(name).length)),
          ` ${words.split(":")[0]}`,
        ),
      ),
    );
    const shown = data.prompts.filter((one) => !story || one.story === story);
    shown.sort(
      (a, b) =>
        Object.keys(STORIES).indexOf(a.story) - Object.keys(STORIES).indexOf(b.story) || (a.name < b.name ? -1 : 1),
    );
    fill(
      grid,
      h(
        "p.dim",
        `${count(shown.length, "prompt")}, ${count(data.steps.length, "evaluation")}. A prompt counts as right where more than half of its completions are.`,
      ),
      table(["prompt", "story", ...data.steps.map((step) => `step ${step}`)], shown.slice(0, limit).map(row), {
        class: "grid",
        label: "Prompts by evaluation",
      }),
      moreButton(shown.length - limit, () => {
        limit *= 4;
        draw();
      }),
    );
  };
  const row = (prompt) =>
    h(
      "tr",
      h("th", { scope: "row" }, letters(prompt.name)),
      h("td", { title: STORIES[prompt.story] }, prompt.story),
      prompt.cells.map((cell, column) => {
        if (!cell) return h("td.dim", "–");
        const [group, rights, total, mean, known] = cell;
        const right = rights * 2 > total;
        const before = prompt.cells.slice(0, column).reverse().find(Boolean);
        const lost = before && before[1] * 2 > before[2] && !right;
        const text = total > 1 ? `${rights}/${total}` : known ? (right ? "right" : "wrong") : "no reward";
        const address = to("group", place(run, "evaluations", data.steps[column], group));
        return h(
          "td",
          { class: right ? "good" : lost ? "lost" : "bad" },
          exported ? text : h("a", { href: address, title: `mean reward ${num(mean)}` }, text),
          lost ? h("span", { title: "right in the evaluation before" }, " ↓") : null,
        );
      }),
    );
  fill(
    page,
    h(
      "div.head",
      h("h1", "Evaluations"),
      h("a", { href: to("steps", { run, kind: "evaluations" }) }, "their completions"),
    ),
    curve.element,
    counts,
    grid,
  );
  show(page);
  const update = async () => {
    const [fresh, metrics] = await Promise.all([
      ask("evaluations", { run }),
      ask("metrics", { run, keys: "eval/accuracy" }),
    ]);
    const changed =
      JSON.stringify(fresh.steps) !== JSON.stringify(data.steps) || fresh.prompts.length !== data.prompts.length;
    data = fresh;
    curve.set([metrics.series["eval/accuracy"] || [[], []]]);
    if (changed) draw();
  };
  await update();
  draw();
  follow(update, 4);
}
