// All runs under the folders that were given; several of them can be compared.

import { ask, exported, follow } from "./data.js";
import { fill, h, table } from "./dom.js";
import { count, duration, moment, num } from "./format.js";
import { to } from "./route.js";
import { spark } from "./spark.js";

export async function runsPage(page) {
  let { runs, roots } = await ask("runs");
  if (runs.length === 1) {
    location.replace(to(runs[0].pages[0] || "settings", { run: runs[0].name }));
    return;
  }
  const chosen = new Set();
  const compare = h("a.button", { href: "#", role: "button" }, "");
  const list = h("div");
  const draw = () => {
    compare.hidden = chosen.size < 2;
    compare.textContent = `compare ${count(chosen.size, "run")}`;
    compare.href = to("compare", { runs: [...chosen].join("\n") });
    fill(
      list,
      groupsOf(runs).map(([parent, some]) => section(parent, some, chosen, draw)),
    );
  };
  fill(page, h("div.head", h("h1", count(runs.length, "run")), h("span.dim", roots.join(", ")), compare), list);
  if (!runs.length) fill(list, h("p", "No run folders here. A run leaves one in outputs/ (or where run.root says)."));
  else draw();
  if (!exported)
    follow(async () => {
      const focused =
        document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.run : null;
      ({ runs, roots } = await ask("runs"));
      draw();
      if (focused) list.querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
    }, 4);
}

function groupsOf(runs) {
  const groups = new Map();
  for (const run of runs) groups.set(run.parent, [...(groups.get(run.parent) || []), run]);
  return [...groups];
}

function section(parent, runs, chosen, draw) {
  const rows = runs.map((run) => {
    const box = h("input", {
      type: "checkbox",
      checked: chosen.has(run.name),
      "aria-label": `compare ${run.name}`,
      data: { run: run.name },
    });
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(run.name);
      else chosen.delete(run.name);
      draw();
    });
    const page = run.pages[0] || "settings";
    return h(
      "tr",
      h("td", box),
      h("td", h("a", { href: to(page, { run: run.name }) }, run.name.slice(parent ? parent.length + 1 : 0))),
      h("td", h("span.status", { class: run.status }, run.status)),
      h("td.n", num(run.step)),
      h("td.n", num(run.reward)),
      h("td", spark(run.spark)),
      h("td.n", num(run.accuracy)),
      h("td.n", duration(run.seconds)),
      h("td.n.dim", moment(run.changed)),
    );
  });
  const heads = ["", "run", "status", "step", "reward", "over the steps", "held-out accuracy", "time", "changed"];
  const title = parent || "runs";
  const all =
    runs.length > 1
      ? h("a", { href: to("compare", { runs: runs.map((run) => run.name).join("\n") }) }, "compare all of them")
      : null;
  return h(
    "section",
    h("h2", title, " ", all),
    table(heads, rows, { class: "list", label: title }),
  );
}
