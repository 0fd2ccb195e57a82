// Keys: each page says what its letters do; `?` shows them all.

import { h, fill, table } from "./dom.js";

let own = [];
const always = [];

/** Keys of the page that is shown now: rows of [key, what it does in words, function]. */
export function onPage(rows) {
  own = rows;
}

/** Keys of every page. */
export function everywhere(rows) {
  always.push(...rows);
}

function typing(target) {
  return target.closest && target.closest("input, select, textarea, dialog");
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (typing(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const found = [...own, ...always].find(([key]) => key === event.key);
  if (found) {
    event.preventDefault();
    found[2](event);
  }
});

/** The list of keys, in a dialog. */
export function help() {
  const names = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };
  const rows = [...own, ...always].map(([key, what]) => [h("kbd", names[key] || key), what]);
  const dialog = h("dialog", { "aria-label": "Keys" });
  fill(
    dialog,
    h("h2", "Keys"),
    table(["Key", "What it does"], rows, { label: "Keys" }),
    h(
      "form",
      { method: "dialog" },
      h("button", { type: "button", autofocus: "", onclick: () => dialog.close() }, "Close"),
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
