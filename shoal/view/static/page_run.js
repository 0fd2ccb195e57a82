// One run: its curves, where it stands, and notes and warnings in words.

import { chart } from "./chart.js";
import { ask, exported, follow, head } from "./data.js";
import { fill, h } from "./dom.js";
import { count, duration, moment, num } from "./format.js";
import { go, note, to } from "./route.js";
import { SECTIONS, fitting } from "./curves.js";
import { letters } from "./plain.js";

export async function runPage(page, given, about, show) {
  const charts = [];
  const facts = h("dl.facts");
  const notes = h("div");
  const moved = h("div");
  const body = h("div");
  fill(page, h("h1.unseen", `Run ${given.run}`), facts, notes, moved, body);
  let known = { generation: -1, rows: 0, series: {} };
  const marks = [
    ...new Set(
      about.notes.filter((one) => one.level !== "note" && typeof one.step === "number").map((one) => one.step),
    ),
  ];
  const openStep = (step) => about.pages.includes("steps") && go("steps", { run: given.run, step });

  for (const section of SECTIONS) {
    const made = section.charts
      .map((one) => ({ ...one, lines: fitting(one.lines, about.keys) }))
      .filter((one) => one.lines.length);
    if (!made.length) continue;
    const grid = h("div.charts");
    body.append(h("section", h("h2", section.title), grid));
    for (const one of made) {
      const drawn = chart({ ...one, marks, onstep: openStep });
      grid.append(drawn.element);
      charts.push([drawn, one.lines.map((line) => line.key)]);
    }
  }
  body.append(everyNumber(about, given, charts, () => known));
  drawFacts(facts, given, about);
  drawNotes(notes, about, given.run);
  show(page);

  const wanted = () => [...new Set(charts.flatMap(([, keys]) => keys))];
  const update = async () => {
    const keys = wanted();
    const fresh = keys.filter((key) => !(key in known.series));
    const found = await ask(
      "metrics",
      fresh.length
        ? { run: given.run, keys: keys.join(",") }
        : { run: given.run, keys: keys.join(","), after: known.rows, generation: known.generation },
    );
    const grown = found.rows !== known.rows || found.generation !== known.generation || fresh.length;
    if (!grown) return found;
    known = merged(known, found, fresh.length > 0);
    for (const [drawn, keys] of charts) drawn.set(keys.map((key) => known.series[key] || [[], []]));
    fill(moved, movesOf(known.series));
    return found;
  };
  page.update = update;
  await update();
  if (!exported)
    follow(async () => {
      const before = known.rows;
      const found = await update();
      if (known.rows !== before || found.status !== about.status) {
        about = await head(given.run, true);
        drawFacts(facts, given, about);
        drawNotes(notes, about, given.run);
        const status = document.getElementById("status");
        if (status) {
          status.textContent = about.status;
          status.className = `status ${about.status}`;
        }
      }
    });
}

function merged(known, found, whole) {
  if (whole || found.generation !== known.generation || !found.after) return found;
  const series = { ...known.series };
  for (const [key, [steps, values]] of Object.entries(found.series)) {
    const [before, were] = series[key] || [[], []];
    series[key] = [before.concat(steps), were.concat(values)];
  }
  return { ...found, series };
}

function drawFacts(facts, given, about) {
  const { summary } = about;
  const pair = (name, value) => h("div", h("dt", name), h("dd", value));
  fill(
    facts,
    pair("status", about.status),
    pair("step", about.total_steps ? `${num(about.step)} of ${num(about.total_steps)}` : num(about.step)),
    pair("reward", num(about.reward)),
    about.accuracy !== null
      ? pair(
          "held-out accuracy",
          summary.accuracy_before !== undefined && summary.accuracy_after !== null
            ? `${num(summary.accuracy_before)} → ${num(summary.accuracy_after)}`
            : num(about.accuracy),
        )
      : null,
    pair("time", duration(about.seconds)),
    summary.completions ? pair("completions", num(summary.completions)) : null,
    summary.sampled_tokens ? pair("sampled tokens", num(summary.sampled_tokens)) : null,
    summary.resume_count ? pair("resumed", count(summary.resume_count, "time")) : null,
    about.broken ? pair("unreadable lines", num(about.broken)) : null,
    pair("folder", h("code", about.path)),
  );
}

function drawNotes(element, about, run) {
  const steps = about.pages.includes("steps");
  if (!about.notes.length) {
    fill(element);
    return;
  }
  const warnings = about.notes.filter((one) => one.level !== "note").length;
  const open = element.querySelector("details") ? element.querySelector("details").open : warnings > 0;
  const rows = about.notes
    .slice()
    .reverse()
    .map((one) =>
      h(
        "li",
        { class: one.level },
        h(
          "span.dim",
          typeof one.step !== "number"
            ? ""
            : steps
              ? h("a", { href: to("steps", { run, step: one.step }) }, `step ${one.step}`)
              : `step ${one.step}`,
          " ",
          h("time", moment(one.time)),
        ),
        " ",
        one.level === "note" ? null : h("b", `${one.level}: `),
        letters(one.text),
      ),
    );
  fill(
    element,
    h(
      "details.notes",
      { open },
      h("summary", count(about.notes.length, "note"), warnings ? `, ${count(warnings, "warning")}` : ""),
      h("ol", { reversed: true }, rows),
    ),
  );
}

/** What rose and what fell: means over the first and the last tenth of the steps. */
function movesOf(series) {
  const names = Object.keys(series).filter(
    (key) => key === "reward/mean" || /^reward_part\/.*\/mean$/.test(key) || key === "length/mean",
  );
  const rows = names.map((key) => {
    const values = series[key][1].filter((one) => one !== null);
    const tenth = Math.max(1, Math.floor(values.length / 10));
    const mean = (some) => some.reduce((a, b) => a + b, 0) / some.length;
    const [first, last] = [mean(values.slice(0, tenth)), mean(values.slice(-tenth))];
    const label = key === "reward/mean" ? "reward" : key === "length/mean" ? "length" : `part ${key.slice(12, -5)}`;
    return values.length > 1
      ? h(
          "span.move",
          letters(label),
          " ",
          h("b", `${num(first)} → ${num(last)}`),
          h(
            "span",
            { class: key === "length/mean" ? "dim" : last < first ? "fell" : "rose" },
            last < first ? " fell" : last > first ? " rose" : " as it was",
          ),
        )
      : null;
  });
  return rows.some(Boolean) ? h("p.moves", h("span.dim", "first tenth → last tenth: "), rows) : null;
}

/** Any number of the run: what one picks becomes a chart, and part of the address. */
function everyNumber(about, given, charts) {
  const picked = new Set((given.more || "").split(",").filter((key) => about.keys.includes(key)));
  const grid = h("div.charts");
  const list = h(
    "datalist",
    { id: "every-key" },
    about.keys.map((key) => h("option", { value: key })),
  );
  const field = h("input", {
    type: "search",
    list: "every-key",
    placeholder: "rewards/…, engine/…, train/…",
    "aria-label": "a number of the run",
  });
  const draw = (key) => {
    const drawn = chart({ title: key, lines: [{ label: key.split("/").pop(), key, points: key.startsWith("eval/") }] });
    grid.append(drawn.element);
    charts.push([drawn, [key]]);
  };
  const pick = async () => {
    const key = field.value.trim();
    if (!about.keys.includes(key) || picked.has(key)) return;
    picked.add(key);
    field.value = "";
    draw(key);
    note({ more: [...picked].join(",") });
    await document.querySelector("[data-page=run]").update();
  };
  field.addEventListener("change", pick);
  for (const key of picked) draw(key);
  return h(
    "section",
    h("h2", "Any number"),
    h(
      "p.dim",
      `Each of the ${count(about.keys.length, "number")} in metrics.jsonl, by its key. `,
      h("a", { href: to("settings", { run: given.run }) }, "Settings of this run"),
    ),
    h("label", "Show ", field),
    list,
    grid,
  );
}
