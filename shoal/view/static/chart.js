// Curves: uPlot with the page's colours, one cursor over all charts of a page, and keys.

import { h, say } from "./dom.js";
import { num } from "./format.js";

const PENS = ["--pen-1", "--pen-2", "--pen-3", "--pen-4", "--pen-5", "--pen-6", "--pen-7", "--pen-8"];
const DASHES = [[], [6, 3], [2, 3], [9, 3, 2, 3]];

let drawn = [];

/** Forgets the charts of the page that is left. */
export function clearCharts() {
  for (const one of drawn) one.plot.destroy();
  drawn = [];
}

/** Draws all charts again, in the colours of now. */
export function redraw() {
  for (const one of drawn) one.build();
}

/** The ends of the axis of values: a flat line gets room above and below that is like its height. */
function heights(low, high) {
  if (low === null || high === null) return [0, 1];
  if (low === high) return low === 0 ? [-0.05, 1] : [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
  return uPlot.rangeNum(low, high, 0.1, true);
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Series of [steps, values] on one axis of steps; null where a series has no value. */
export function aligned(series) {
  const steps = [...new Set(series.flatMap(([at]) => at))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, index) => [step, index]));
  const columns = series.map(([at, values]) => {
    const column = new Array(steps.length).fill(undefined);
    at.forEach((step, index) => (column[place.get(step)] = values[index]));
    return column;
  });
  return [steps, ...columns];
}

/**
 * A chart with its heading, its legend and its keys. `lines` are [{ label, points }]; `points` draws dots (evaluations).
 * Returns the element, and `set(series)` with one [steps, values] for each line.
 */
export function chart({ title, about, lines, unit, height = 150, marks = [], onstep }) {
  const canvas = h("div.plot");
  const legend = h("div.legend");
  const caption = h("figcaption", h("b", title), about ? h("span.dim", { title: about }, " ", about) : null);
  const figure = h(
    "figure.chart",
    { tabIndex: 0, "aria-label": `${title}: curve over steps; arrow keys move the cursor` },
    caption,
    canvas,
    legend,
  );
  const entry = { plot: null, data: [[], ...lines.map(() => [])], steps: [], build, cursor: null };

  function build() {
    if (!figure.isConnected) return;
    if (entry.plot) entry.plot.destroy();
    const axis = {
      stroke: colour("--dim"),
      grid: { stroke: colour("--rule"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui",
    };
    entry.plot = new uPlot(
      {
        width: Math.max(canvas.clientWidth, 200),
        height,
        legend: { show: false },
        cursor: { sync: { key: "steps" }, drag: { x: true, y: false }, points: { size: 6 } },
        scales: {
          x: { time: false, range: (plot, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) },
          y: { range: (plot, low, high) => heights(low, high) },
        },
        axes: [
          { ...axis, size: 24, values: (plot, at) => at.map((one) => (Number.isInteger(one) ? num(one) : "")) },
          { ...axis, size: 52, values: (plot, at) => at.map(num) },
        ],
        series: [
          {},
          ...lines.map((one, index) => ({
            label: one.label,
            stroke: colour(PENS[index % PENS.length]),
            width: 1.5,
            dash: DASHES[Math.floor(index / PENS.length) % DASHES.length],
            spanGaps: true,
            points: {
              show: one.points || undefined,
              size: one.points ? 7 : 4,
              fill: colour(PENS[index % PENS.length]),
            },
          })),
        ],
        hooks: { setCursor: [(plot) => read(plot.cursor.idx)], draw: [drawMarks] },
      },
      entry.data,
      canvas,
    );
    canvas.firstChild.addEventListener(
      "dblclick",
      () => onstep && entry.cursor !== null && onstep(entry.data[0][entry.cursor]),
    );
    read(null);
  }

  function drawMarks(plot) {
    const context = plot.ctx;
    context.save();
    context.fillStyle = colour("--warn");
    if (entry.data[0].length === 1) lonely(plot);
    for (const step of marks) {
      const x = plot.valToPos(step, "x", true);
      if (x >= plot.bbox.left && x <= plot.bbox.left + plot.bbox.width) context.fillRect(x - 1, plot.bbox.top, 2, 8);
    }
    context.restore();
  }

  /** A curve of one step has no line: its values are drawn as dots. */
  function lonely(plot) {
    const context = plot.ctx;
    context.save();
    lines.forEach((one, index) => {
      const value = entry.data[index + 1][0];
      if (typeof value !== "number") return;
      context.fillStyle = colour(PENS[index % PENS.length]);
      context.beginPath();
      context.arc(plot.valToPos(entry.data[0][0], "x", true), plot.valToPos(value, "y", true), 4, 0, 2 * Math.PI);
      context.fill();
    });
    context.restore();
  }

  function read(index) {
    entry.cursor = index ?? null;
    const steps = entry.data[0];
    const shown = lines.map((one, number) => {
      const column = entry.data[number + 1];
      let at = index ?? column.length - 1;
      while (at >= 0 && (column[at] === undefined || column[at] === null)) at -= 1;
      const item = h(
        "span.key",
        h("i", { class: `pen-${(number % PENS.length) + 1}`, "aria-hidden": "true" }),
        `${one.label} `,
        h("b", at >= 0 ? num(column[at]) : "–"),
        unit ? ` ${unit}` : "",
      );
      return item;
    });
    const step = steps.length ? steps[index ?? steps.length - 1] : null;
    legend.replaceChildren(h("span.dim", step === null ? "no steps" : `step ${num(step)}`), ...shown);
  }

  figure.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (!(event.key in moves) || !entry.plot || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    const last = entry.data[0].length - 1;
    const from = entry.cursor ?? last;
    const index = Math.max(0, Math.min(last, from + moves[event.key]));
    const left = entry.plot.valToPos(entry.data[0][index], "x");
    for (const one of drawn)
      one.plot.setCursor({ left: one.plot.valToPos(entry.data[0][index], "x"), top: one.plot.over.clientHeight / 2 });
    entry.plot.setCursor({ left, top: entry.plot.over.clientHeight / 2 });
    say(legend.textContent);
  });

  return {
    element: figure,
    set(series) {
      entry.data = aligned(series);
      if (!entry.plot) {
        build();
        if (entry.plot) drawn.push(entry);
      } else {
        entry.plot.setData(entry.data);
        read(null);
      }
    },
  };
}

let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === width) return;
  width = window.innerWidth;
  redraw();
});
