// Where the time goes: phases of a step, who waited for whom, engines' load, queues, staleness.

import { chart } from "./chart.js";
import { LOAD, fitting } from "./curves.js";
import { ask, exported, follow } from "./data.js";
import { fill, h, table } from "./dom.js";
import { count, duration, percent } from "./format.js";

const PHASES = ["rollout", "reward", "reference", "train", "sync", "evaluate", "checkpoint"];

export async function waitingPage(page, given, about, show) {
  const charts = LOAD.map((one) => ({ ...one, lines: fitting(one.lines, about.keys) })).filter(
    (one) => one.lines.length,
  );
  const grid = h("div.charts");
  const drawn = charts.map((one) => [chart(one), one.lines.map((line) => line.key)]);
  for (const [one] of drawn) grid.append(one.element);
  const shares = h("div");
  fill(
    page,
    h("div.head", h("h1", "Time and load")),
    h("section", h("h2", "Where the time went"), shares),
    h("section", h("h2", "Over the steps"), grid),
  );
  show(page);
  const waits = about.keys.filter((key) => /^(wait|async|queue|slots)\//.test(key) && key.includes("seconds"));
  const sums = [...PHASES.map((name) => [name, `seconds/${name}`]), ...waits.map((key) => [key, key])];
  const keys = [...new Set([...drawn.flatMap(([, some]) => some), ...sums.map(([, key]) => key)])];
  const update = async () => {
    const { series } = await ask("metrics", { run: given.run, keys: keys.join(",") });
    for (const [one, some] of drawn) one.set(some.map((key) => series[key] || [[], []]));
    fill(shares, summary(sums, series));
  };
  await update();
  if (!exported && about.status === "running") follow(update, 4);
}

function summary(sums, series) {
  const rows = sums
    .filter(([, key]) => key in series)
    .map(([name, key]) => [name, series[key][1].reduce((sum, one) => sum + (one || 0), 0), series[key][1].length]);
  const phases = rows.filter(([name]) => PHASES.includes(name));
  const total = phases.reduce((sum, [, seconds]) => sum + seconds, 0);
  const cells = rows
    .sort((a, b) => b[1] - a[1])
    .map(([name, seconds, times]) => [
      name,
      duration(seconds),
      PHASES.includes(name) ? percent(total ? seconds / total : null) : "",
      h("meter", { min: 0, max: total || 1, value: seconds, "aria-label": name }),
      count(times, "time"),
    ]);
  return table(["what", "in all", "share of the phases", "", "counted"], cells, {
    class: "numbers",
    label: "Where the time went",
  });
}
