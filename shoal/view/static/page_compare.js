// Several runs under one cursor, and the keys of the configuration in which they differ.

import { chart } from "./chart.js";
import { SECTIONS } from "./curves.js";
import { ask, exported, follow } from "./data.js";
import { add, fill, h, table } from "./dom.js";
import { count, duration, num, setting } from "./format.js";
import { note, to } from "./route.js";

const FIRST = [
  "reward/mean",
  "eval/accuracy",
  "length/mean",
  "groups/zero_variance",
  "policy/entropy",
  "train/grad_norm",
  "sampler/abs_difference",
  "seconds/step",
];

export async function comparePage(page, given, about, show) {
  const names = (given.runs || "").split("\n").filter(Boolean);
  const found = await ask("compare", { runs: names.join("\n") });
  const titles = Object.fromEntries(
    SECTIONS.flatMap((section) =>
      section.charts.flatMap((one) =>
        one.lines.map((line) => [line.key, one.lines.length > 1 ? `${one.title}: ${line.label}` : one.title]),
      ),
    ),
  );
  const shortNames = shortened(names, found.differing);
  const shown = new Set((given.keys || FIRST.join(",")).split(",").filter((key) => found.keys.includes(key)));
  const grid = h("div.charts");
  const charts = [];
  const add_ = (key) => {
    const drawn = chart({
      title: titles[key] || key,
      about: key,
      lines: names.map((name) => ({ label: shortNames.get(name), points: key.startsWith("eval/") })),
    });
    grid.append(drawn.element);
    charts.push([key, drawn]);
  };
  for (const key of shown) add_(key);
  const field = h("input", {
    type: "search",
    list: "compared",
    placeholder: "any number",
    "aria-label": "a number of the runs",
  });
  field.addEventListener("change", async () => {
    const key = field.value.trim();
    if (!found.keys.includes(key) || shown.has(key)) return;
    shown.add(key);
    field.value = "";
    add_(key);
    note({ keys: [...shown].join(",") });
    await update();
  });
  fill(
    page,
    h("div.head", h("h1", `Compare ${count(names.length, "run")}`)),
    standing(found.runs, shortNames),
    h(
      "section",
      h("h2", "What differs"),
      found.differing.length
        ? table(
            ["key", ...names.map((name) => shortNames.get(name))],
            found.differing.map(([key, ...values]) => [h("code", key), ...values.map(setting)]),
            { label: "Keys that differ" },
          )
        : h("p.dim", "Their configurations are the same."),
    ),
    h(
      "section",
      h("h2", "Curves"),
      exported ? null : h("label", "Show ", field),
      h(
        "datalist",
        { id: "compared" },
        found.keys.map((key) => h("option", { value: key })),
      ),
      grid,
    ),
  );
  show(page);
  const update = async () => {
    const all = await Promise.all(names.map((name) => ask("metrics", { run: name, keys: [...shown].join(",") })));
    for (const [key, drawn] of charts) drawn.set(all.map((one) => one.series[key] || [[], []]));
    return all;
  };
  const all = await update();
  if (all.some((one) => one.status === "running")) follow(update, 4);
}

function standing(runs, shortNames) {
  const rows = runs.map((run) => [
    h("a", { href: to("run", { run: run.name }) }, shortNames.get(run.name)),
    h("span.status", { class: run.status }, run.status),
    num(run.step),
    num(run.reward),
    num(run.accuracy),
    duration(run.seconds),
  ]);
  return add(h("section"), [
    table(["run", "status", "step", "reward", "held-out accuracy", "time"], rows, {
      class: "numbers",
      label: "Where the runs stand",
    }),
  ]);
}

/** Names without what they have in common, with what differs where that is short. */
function shortened(names, differing) {
  const parts = names.map((name) => name.split("/"));
  let same = 0;
  while (parts.every((one) => one.length > same + 1 && one[same] === parts[0][same])) same += 1;
  const telling = differing.length <= 2 ? differing : [];
  const words = (index) =>
    telling.map(([key, ...values]) => `${key.split(".").pop()} ${setting(values[index])}`).join(", ");
  return new Map(
    names.map((name, index) => [
      name,
      `${parts[index].slice(same).join("/")}${telling.length ? `: ${words(index)}` : ""}`,
    ]),
  );
}
