// All groups of all steps as a map, and a search among their completions.

import { ask, exported, follow } from "./data.js";
import { fill, h, say } from "./dom.js";
import { longList } from "./found.js";
import { count, num, signed } from "./format.js";
import { COLOUR_NAMES, ORDER_NAMES, heatMap } from "./heat.js";
import { onPage } from "./keys.js";
import { line } from "./plain.js";
import { go, note, place, to } from "./route.js";

const FIELDS = ["text", "prompt", "source", "stop", "outcome", "low", "high", "first", "last", "order"];
const OUTCOMES = {
  mixed: "mixed",
  right: "all right",
  wrong: "all wrong",
  equal: "all rewards equal",
  missing: "no reward known",
  "left out": "left out of training",
};
const LIST_ORDERS = {
  step: "newest step",
  oldest: "oldest step",
  reward: "highest reward",
  lowest: "lowest reward",
  advantage: "largest advantage",
  gap: "largest gap between sampler and learner",
  longest: "longest",
  shortest: "shortest",
};

export async function stepsPage(page, given, about, show) {
  const { run, kind } = given;
  const open = (step, group) => go("group", place(run, kind, step, group));
  const map = heatMap(open);
  const head = h("div.head");
  const progress = h("span.dim", { role: "status" });
  let data = { steps: [], groups: [], sources: [], completions: 0, generation: -1 };
  const options = { order: given.sort || "file", colour: given.colour || "right" };
  const arrange = (changes) => {
    Object.assign(options, changes);
    note({
      sort: options.order === "file" ? "" : options.order,
      colour: options.colour === "right" ? "" : options.colour,
    });
    map.set(data, options);
  };
  const search = exported ? null : searchPart(given, () => data);
  fill(
    page,
    head,
    h(
      "section",
      h(
        "div.controls",
        choice("groups of a step", ORDER_NAMES, options.order, (order) => arrange({ order })),
        choice("colour", COLOUR_NAMES, options.colour, (colour) => arrange({ colour })),
        legend(),
        progress,
      ),
      map.element,
    ),
    search && search.element,
  );
  show(page);

  const update = async () => {
    const fresh = await ask("steps", { run, kind });
    const changed = fresh.generation !== data.generation;
    data = fresh;
    fill(
      head,
      h("h1", kind === "evaluations" ? "Evaluations, step by step" : "Steps by groups"),
      h(
        "span.dim",
        `${count(data.steps.length, "step")}, ${count(data.completions, "completion")}`,
        data.broken ? `, ${count(data.broken, "line")} that cannot be read` : "",
      ),
    );
    progress.textContent = data.waiting ? `indexing: ${count(data.waiting, "file")} to go` : "";
    if (changed) map.set(data, options);
    if (changed && search) search.sources(data.sources);
    return data.waiting;
  };
  await update();
  if (given.step !== undefined) map.show(Number(given.step));
  while (!exported && page.isConnected && (await update()));
  if (search) search.look();
  follow(update, 3);
  onPage([
    ["/", "search", () => page.querySelector("input[name=text]")?.focus()],
    ["m", "to the map; arrow keys move in it, Enter opens", () => page.querySelector(".map").focus()],
    ["l", "to the list of completions", () => page.querySelector(".long")?.focus()],
  ]);
}

function choice(label, names, value, changed) {
  const select = h(
    "select",
    { onchange: () => changed(select.value) },
    Object.entries(names).map(([key, name]) => h("option", { value: key, selected: key === value }, name)),
  );
  return h("label", `${label} `, select);
}

function legend() {
  return h(
    "span.scale",
    { "aria-hidden": "true" },
    "low ",
    [0, 2, 4, 6, 8].map((one) => h("i", { class: `heat-${one}` })),
    " high ",
    h("i.none"),
    " none",
  );
}

function searchPart(given, data) {
  const query = Object.fromEntries(FIELDS.filter((name) => given[name]).map((name) => [name, given[name]]));
  const state = h("span.dim", { role: "status" });
  const list = longList(fetchPage, drawRow, "Completions that were found");
  const sources = h("select", { name: "source" }, h("option", { value: "" }, "any source"));
  const select = (name, any, names) =>
    h(
      "select",
      { name, "aria-label": any },
      h("option", { value: "" }, any),
      Object.entries(names).map(([value, title]) => h("option", { value, selected: query[name] === value }, title)),
    );
  const field = (name, label, more) =>
    h("label", `${label} `, h("input", { name, value: query[name] || "", type: "search", ...more }));
  const narrow = { class: "narrow", inputmode: "decimal", type: "text" };
  const form = h(
    "form.controls",
    { role: "search", onsubmit: (event) => event.preventDefault() },
    field("text", "text", { placeholder: "in prompts and completions" }),
    field("prompt", "prompt id"),
    h("label", h("span.unseen", "source"), sources),
    select("stop", "any stop reason", {
      stop: "stop",
      length: "length",
      turns: "turns",
      abort: "abort",
      error: "error",
    }),
    select("outcome", "any outcome", OUTCOMES),
    field("low", "reward from", narrow),
    field("high", "to", narrow),
    field("first", "steps from", narrow),
    field("last", "to", narrow),
    h(
      "label",
      "first the ",
      h(
        "select",
        { name: "order" },
        Object.entries(LIST_ORDERS).map(([value, title]) =>
          h("option", { value, selected: query.order === value }, title),
        ),
      ),
    ),
    state,
  );
  let turn = 0;
  let timer = null;

  async function look() {
    turn += 1;
    const mine = turn;
    let found = null;
    let beginning = true;
    do {
      try {
        found = await ask("find", { run: given.run, kind: given.kind, ...query, start: 0, count: 100 });
      } catch (error) {
        state.textContent = error.message;
        return;
      }
      if (mine !== turn || (!beginning && !form.isConnected)) return;
      list.set(found.total, found.rows, beginning);
      beginning = false;
      state.textContent =
        found.left > 0
          ? `${num(found.total)} found, ${num(found.left)} still to be looked at`
          : `${count(found.total, "completion")} found`;
    } while (found.left > 0 && form.isConnected);
    if (query.text) say(state.textContent);
  }

  async function fetchPage(start, length) {
    return (await ask("find", { run: given.run, kind: given.kind, ...query, start, count: length })).rows;
  }

  function drawRow(row) {
    return h(
      "a.row",
      {
        href: to(
          "completion",
          place(given.run, given.kind, row.step, row.group, { index: row.index, text: query.text }),
        ),
      },
      h(
        "span.numbers",
        h("b", `${row.step}/${row.group}/${row.index}`),
        h("span", { class: `reward ${tone(row.reward)}` }, num(row.reward)),
        h("span.dim", signed(row.advantage)),
        h("span.dim", `${num(row.length)} tok`),
        h("span.dim", row.stop),
        row.left_out ? h("span.warning", "left out") : null,
        row.gap !== null
          ? h(
              "span.dim",
              { title: "largest difference of log-probs between sampler and learner" },
              `gap ${num(row.gap)}`,
            )
          : null,
      ),
      h("span.one", h("span.dim", line(row.prompt, 120, true)), " ", line(row.text, 160)),
    );
  }

  function changed() {
    for (const name of FIELDS) query[name] = form.elements[name].value.trim();
    note(query);
    clearTimeout(timer);
    timer = setTimeout(look, 150);
  }
  form.addEventListener("input", changed);

  return {
    element: h("section", h("h2", "Completions"), form, list.element),
    look,
    sources(names) {
      fill(
        sources,
        h("option", { value: "" }, "any source"),
        names.map((name) => h("option", { value: name, selected: query.source === name }, name)),
      );
      sources.parentElement.hidden = names.length < 2;
    },
  };
}

/** The class of a reward's colour. */
export function tone(reward) {
  return reward === null || reward === undefined ? "none" : reward >= 1 ? "good" : reward <= 0 ? "bad" : "part";
}
