// The configuration of a run, and what differs from its preset.

import { ask } from "./data.js";
import { fill, h, table } from "./dom.js";
import { count, setting } from "./format.js";

export async function settingsPage(page, given, about, show) {
  const { settings, overrides, preset } = await ask("configuration", { run: given.run });
  const field = h("input", { type: "search", placeholder: "optimizer.lr" });
  const all = h("div");
  const draw = () => {
    const wanted = field.value.trim().toLowerCase();
    const rows = Object.entries(settings).filter(
      ([key, value]) => !wanted || `${key} ${setting(value)}`.toLowerCase().includes(wanted),
    );
    fill(
      all,
      table(
        ["key", "value"],
        rows.map(([key, value]) => [h("code", key), h("code", setting(value))]),
        { label: "Every key" },
      ),
    );
  };
  field.addEventListener("input", draw);
  const rows = preset.rows.map(([key, mine, theirs]) =>
    preset.complete
      ? [h("code", key), h("code", setting(mine)), h("code.dim", setting(theirs))]
      : [h("code", key), h("code", setting(mine))],
  );
  fill(
    page,
    h("div.head", h("h1", "Settings"), h("span.dim", preset.preset ? `preset ${preset.preset}` : "no preset known")),
    overrides.length ? h("p", h("span.dim", "given: "), h("code", overrides.join(" "))) : null,
    h(
      "section",
      h("h2", preset.complete ? `Differs from the preset (${count(rows.length, "key")})` : "Given on the command line"),
      rows.length
        ? table(preset.complete ? ["key", "here", "in the preset"] : ["key", "value"], rows, {
            label: "What differs from the preset",
          })
        : h("p.dim", "Nothing."),
    ),
    h("section", h("h2", "Every key"), h("div.controls", h("label", "find ", field)), all),
  );
  draw();
  show(page);
}
