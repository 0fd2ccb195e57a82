// Rubrics: each prompt's criteria over time, their spread, what was added and what was given up.

import { ask } from "./data.js";
import { fill, h, moreButton, table } from "./dom.js";
import { count, num, signed } from "./format.js";
import { letters } from "./plain.js";
import { note, to } from "./route.js";

const AT_ONCE = 60;

export async function rubricsPage(page, given, about, show) {
  const { run } = given;
  const { prompts } = await ask("rubrics", { run });
  const list = h("div");
  const field = h("input", { type: "search", value: given.text || "", placeholder: "prompt, question or criterion" });
  let limit = AT_ONCE;
  const draw = () => {
    const wanted = field.value.trim().toLowerCase();
    const shown = prompts.filter(
      (one) =>
        !wanted ||
        JSON.stringify([one.name, one.question, one.steps.map((step) => step.criteria.map((c) => c.title))])
          .toLowerCase()
          .includes(wanted),
    );
    shown.sort((a, b) => b.steps.length - a.steps.length || changes(b) - changes(a));
    fill(
      list,
      shown.slice(0, limit).map((one) => prompt(one, run)),
      moreButton(shown.length - limit, () => {
        limit *= 4;
        draw();
      }),
    );
  };
  field.addEventListener("input", () => {
    note({ text: field.value.trim() });
    draw();
  });
  fill(
    page,
    h("div.head", h("h1", "Rubrics"), h("span.dim", count(prompts.length, "prompt"))),
    h("div.controls", h("label", "find ", field)),
    h(
      "p.dim",
      "A cell: mean score of the group's completions, and how far they spread (standard deviation). A criterion without spread tells nothing apart.",
    ),
    list,
  );
  draw();
  show(page);
}

function changes(one) {
  return one.steps.reduce((sum, step) => sum + step.added.length + step.dropped.length, 0);
}

function prompt(one, run) {
  const criteria = new Map();
  for (const step of one.steps)
    for (const criterion of step.criteria) if (!criteria.has(criterion.key)) criteria.set(criterion.key, criterion);
  const rows = [...criteria.values()].map((criterion) =>
    h(
      "tr",
      h("th", { scope: "row", title: criterion.description }, letters(criterion.title)),
      h("td.n", signed(criterion.weight)),
      h("td.dim", criterion.origin),
      one.steps.map((step) => {
        const cell = step.criteria.find((other) => other.key === criterion.key);
        const added = step.added.includes(criterion.title);
        const dropped = step.dropped.includes(criterion.key);
        return h(
          "td",
          cell
            ? [
                h("i.swatch", {
                  class: `heat-${Math.max(0, Math.min(8, Math.round((cell.mean ?? 0) * 8)))}`,
                  "aria-hidden": "true",
                }),
                h("b", num(cell.mean)),
                h("span", ` ± ${num(cell.spread)}`),
              ]
            : null,
          added ? h("span.tag", " added") : null,
          dropped ? h("span.tag", " given up") : null,
        );
      }),
    ),
  );
  const heads = one.steps.map((step) =>
    h("a", { href: to("steps", { run, prompt: one.name, first: step.step, last: step.step }) }, `step ${step.step}`),
  );
  return h(
    "details.rubric",
    { open: true },
    h("summary", letters(one.name), " ", h("span.dim", letters(String(one.question ?? "").slice(0, 200)))),
    table(["criterion", "weight", "from", ...heads], rows, { class: "grid", label: one.name }),
  );
}
