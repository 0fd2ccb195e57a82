// The page around the pages: where one is, the tabs of a run, the theme, and the keys of every page.

import { clearCharts, redraw } from "./chart.js";
import { exported, head, unfollow } from "./data.js";
import { fill, h, say } from "./dom.js";
import { everywhere, help, onPage } from "./keys.js";
import { go, to, where } from "./route.js";
import { comparePage } from "./page_compare.js";
import { completionPage } from "./page_completion.js";
import { evaluationsPage } from "./page_evaluations.js";
import { groupPage } from "./page_group.js";
import { rubricsPage } from "./page_rubrics.js";
import { runPage } from "./page_run.js";
import { runsPage } from "./page_runs.js";
import { settingsPage } from "./page_settings.js";
import { stepsPage } from "./page_steps.js";
import { waitingPage } from "./page_waiting.js";

const PAGES = {
  runs: runsPage,
  run: runPage,
  steps: stepsPage,
  group: groupPage,
  completion: completionPage,
  compare: comparePage,
  rubrics: rubricsPage,
  evaluations: evaluationsPage,
  waiting: waitingPage,
  settings: settingsPage,
};

const TABS = [
  ["run", "Curves"],
  ["steps", "Steps"],
  ["evaluations", "Evaluations"],
  ["rubrics", "Rubrics"],
  ["waiting", "Time & load"],
  ["settings", "Settings"],
];

const main = document.getElementById("main");
let shown = 0;

async function show() {
  shown += 1;
  const turn = shown;
  const { page, given } = where();
  unfollow();
  clearCharts();
  onPage([]);
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  let about = null;
  try {
    if (given.run !== undefined) about = await head(given.run, page === "run");
    if (turn !== shown) return;
    top(page, given, about);
    const content = h("div.page", { data: { page } });
    const before = main.firstChild && main.firstChild.dataset ? main.firstChild.dataset.page : null;
    await (PAGES[page] || PAGES.runs)(content, given, about, (element) => {
      if (turn === shown) fill(main, element);
    });
    if (turn !== shown) return;
    if (!content.isConnected) fill(main, content);
    if (before !== page) window.scrollTo(0, 0);
    document.title = [titleOf(page, given), given.run, "shoal view"].filter(Boolean).join(" · ");
    document.body.dataset.ready = String(turn);
  } catch (error) {
    if (turn !== shown) return;
    top(page, given, about);
    fill(
      main,
      h(
        "div.problem",
        { role: "alert" },
        h("h1", "Not here"),
        h("p", error.message),
        h("p", h("a", { href: to("runs") }, "All runs")),
      ),
    );
    document.body.dataset.ready = String(turn);
    if (!(error instanceof Error) || error.name !== "Error") console.error(error);
  }
}

function titleOf(page, given) {
  if (page === "group") return `step ${given.step}, group ${given.group}`;
  if (page === "completion") return `step ${given.step}, group ${given.group}, completion ${given.index}`;
  return page;
}

function top(page, given, about) {
  const bar = document.getElementById("top");
  const inRun = given.run !== undefined;
  const active = ["group", "completion"].includes(page)
    ? given.kind === "evaluations"
      ? "evaluations"
      : "steps"
    : page;
  const tabs = TABS.filter(
    ([name]) => inRun && about && (name === "settings" ? about.pages.includes("run") : about.pages.includes(name)),
  );
  fill(
    bar,
    h(
      "nav.where",
      { "aria-label": "Where" },
      h("a.home", { href: to("runs") }, "shoal"),
      inRun
        ? [
            h("span.dim", { "aria-hidden": "true" }, " / "),
            h("a.name", { href: to("run", { run: given.run }) }, given.run),
            about ? status(about) : null,
          ]
        : null,
    ),
    tabs.length
      ? h(
          "nav.tabs",
          { "aria-label": "Pages of the run" },
          tabs.map(([name, title]) =>
            h("a", { href: to(name, { run: given.run }), "aria-current": name === active ? "page" : undefined }, title),
          ),
        )
      : null,
    h(
      "div.tools",
      h("button", { type: "button", onclick: theme, title: "light, dark or as the system has it" }, "theme"),
      h("button", { type: "button", onclick: help, title: "keys of this page" }, "keys"),
    ),
  );
}

/** The state of a run in a word. */
function status(about) {
  return h("span.status", { class: about.status, id: "status" }, exported ? `${about.status}, exported` : about.status);
}

function theme() {
  const order = { auto: "light", light: "dark", dark: "auto" };
  chosenTheme = order[chosenTheme];
  try {
    localStorage.setItem("shoal-theme", chosenTheme);
  } catch {
    // A browser that keeps nothing for this page: the theme is then for this visit.
  }
  paint();
  say(`theme: ${chosenTheme}`);
}

/** Puts on the chosen theme, or the system's. */
function paint() {
  const dark = chosenTheme === "auto" ? systemIsDark.matches : chosenTheme === "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  redraw();
}

function tab(number) {
  const links = document.querySelectorAll("nav.tabs a");
  if (links[number]) links[number].click();
}

everywhere([
  ["?", "these keys", help],
  ["t", "theme: light, dark, as the system has it", theme],
  ["u", "all runs", () => go("runs")],
  ...TABS.map(([, title], index) => [String(index + 1), `page ${index + 1} of the run`, () => tab(index)]),
]);

let stored = null;
try {
  stored = localStorage.getItem("shoal-theme");
} catch {
  stored = null;
}
let chosenTheme = ["light", "dark"].includes(stored) ? stored : "auto";
const systemIsDark = window.matchMedia("(prefers-color-scheme: dark)");
systemIsDark.addEventListener("change", paint);
paint();
window.addEventListener("hashchange", show);
show();
