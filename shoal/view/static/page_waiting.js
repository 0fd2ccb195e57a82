// Where the time goes: phases of a step, who waited for whom, engines' load, queues, staleness.

import { chart, clearCharts } from "./chart.js";
import { LOAD, fitting, loadCharts } from "./curves.js";
import { ask, follow, head } from "./data.js";
import { fill, h, table } from "./dom.js";
import { count, duration, percent } from "./format.js";

const PHASES = ["rollout", "reward", "reference", "train", "sync", "evaluate", "checkpoint"];

export async function waitingPage(page, given, about, show) {
  const grid = h("div.charts");
  const shares = h("div");
  let known = [];
  let drawn = [];
  let sums = [];
  fill(
    page,
    h("div.head", h("h1", "Time and load")),
    h("section", h("h2", "Where the time went"), shares),
    h("section", h("h2", "Over the steps"), grid),
  );
  show(page);
  const arrange = (keys) => {
    known = keys;
    clearCharts();
    const chosen = choose(keys);
    drawn = chosen.charts.map((one) => [chart(one), one.lines.map((line) => line.key)]);
    sums = chosen.sums;
    fill(
      grid,
      drawn.map(([one]) => one.element),
    );
  };
  const update = async () => {
    const wanted = [...new Set([...drawn.flatMap(([, some]) => some), ...sums.map(([, key]) => key)])];
    const { series } = await ask("metrics", { run: given.run, keys: wanted.join(",") });
    for (const [one, some] of drawn) one.set(some.map((key) => series[key] || [[], []]));
    fill(shares, summary(sums, series));
  };
  arrange(about.keys);
  await update();
  if (about.status === "running")
    follow(async () => {
      const { keys } = await head(given.run, true);
      if (keys.length !== known.length) arrange(keys); // some numbers come with a later step
      await update();
    }, 4);
}

/** The charts of these numbers, and those that add up over the steps: [name, key]. */
function choose(keys) {
  const known = LOAD.map((one) => ({ ...one, lines: fitting(one.lines, keys) })).filter((one) => one.lines.length);
  const rest = loadCharts(keys, new Set(known.flatMap((one) => one.lines.map((line) => line.key))));
  const [waits, others] = [rest.filter((one) => one.unit === "s"), rest.filter((one) => one.unit !== "s")];
  const sums = waits.flatMap((one) => one.lines.map((line) => [`${one.title}: ${line.label}`, line.key]));
  return {
    charts: [...waits, ...known, ...others],
    sums: [...PHASES.map((name) => [name, `seconds/${name}`]), ...sums],
  };
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
