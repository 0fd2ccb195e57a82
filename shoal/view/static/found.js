// A list of any length: a window of rows over pages that are fetched when they come into sight.

import { fill, h } from "./dom.js";

const ROW = 46;
const TALLEST = 8e6;
const PAGE = 100;

/** A list of `total` rows; `fetchPage(start, count)` gives rows, `draw(row)` an element for one. */
export function longList(fetchPage, draw, label) {
  const inner = h("div.rows", { role: "list" });
  const spacer = h("div.spacer");
  const scroll = h("div.long", { tabIndex: 0, role: "region", "aria-label": label }, spacer, inner);
  let total = 0;
  let pages = new Map();
  let version = 0;
  let first = -1;

  const tall = () => Math.min(total * ROW, TALLEST);

  function show(force) {
    const room = scroll.clientHeight || 400;
    const visible = Math.ceil(room / ROW) + 1;
    const way = Math.max(tall() - room, 1);
    const exact =
      total * ROW <= TALLEST ? scroll.scrollTop / ROW : (scroll.scrollTop / way) * Math.max(total - visible + 1, 0);
    const begin = Math.max(0, Math.min(Math.floor(exact), total - 1));
    inner.style.transform = `translateY(${total * ROW <= TALLEST ? begin * ROW : scroll.scrollTop}px)`;
    if (begin === first && !force) return;
    first = begin;
    const rows = [];
    for (let place = begin; place < Math.min(begin + visible, total); place += 1) rows.push(rowAt(place));
    const focused =
      document.activeElement && inner.contains(document.activeElement) ? document.activeElement.dataset.place : null;
    fill(inner, rows);
    if (focused !== null) inner.querySelector(`[data-place="${focused}"]`)?.focus({ preventScroll: true });
  }

  function rowAt(place) {
    const page = Math.floor(place / PAGE);
    const rows = pages.get(page);
    if (rows === undefined) load(page);
    const row = Array.isArray(rows) ? rows[place - page * PAGE] : null;
    const element = row ? draw(row, place) : h("span.row.dim", "…");
    element.dataset.place = String(place);
    return h("div", { role: "listitem" }, element);
  }

  async function load(page) {
    const of = version;
    pages.set(page, null);
    const rows = await fetchPage(page * PAGE, PAGE).catch(() => undefined);
    if (of !== version) return;
    if (rows) pages.set(page, rows);
    else pages.delete(page);
    if (rows) show(true);
  }

  scroll.addEventListener("scroll", () => show(false));
  scroll.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const place = Number(document.activeElement.dataset.place ?? first - step);
    const next = Math.max(0, Math.min(total - 1, place + step));
    const target = inner.querySelector(`[data-place="${next}"]`);
    if (!target || target.getBoundingClientRect().bottom > scroll.getBoundingClientRect().bottom)
      scroll.scrollTop += ROW;
    if (next < first + 1) scroll.scrollTop -= ROW;
    show(true);
    inner.querySelector(`[data-place="${next}"]`)?.focus({ preventScroll: true });
  });
  new ResizeObserver(() => show(true)).observe(scroll);

  return {
    element: scroll,
    /** So many rows there are; `rows` are the first page, where it is known; `fresh` forgets the pages. */
    set(count, rows, fresh) {
      if (fresh) {
        version += 1;
        pages = new Map();
        scroll.scrollTop = 0;
      }
      // The last page may have grown.
      if (count !== total) pages.delete(Math.floor(Math.max(total - 1, 0) / PAGE));
      total = count;
      if (rows) pages.set(0, rows);
      spacer.style.height = `${tall()}px`;
      show(true);
    },
  };
}
