// Steps x groups as a map: a canvas as wide as the window, which draws only the steps that are in sight.

import { h, say } from "./dom.js";
import { num } from "./format.js";

const WORDS = { rig: "all right", wro: "all wrong", mix: "mixed", equ: "all rewards equal", mis: "no reward known" };
const GAP = 1;
/** The groups of a file that has one step stand in columns of so many. */
const FOLDED = 32;

/** The outcome of a group [code, mean, rights, count, length, name] in words. */
export function outcomeOf(cell) {
  return WORDS[cell[0]] || cell[0];
}

const ORDERS = {
  file: null,
  right: (a, b) => b[2] / b[3] - a[2] / a[3],
  reward: (a, b) => (b[1] ?? -Infinity) - (a[1] ?? -Infinity),
  length: (a, b) => (b[4] ?? 0) - (a[4] ?? 0),
  prompt: (a, b) => (a[5] < b[5] ? -1 : 1),
};
export const ORDER_NAMES = {
  file: "as sampled",
  right: "share right",
  reward: "mean reward",
  length: "mean length",
  prompt: "prompt id",
};
export const COLOUR_NAMES = { right: "share right", reward: "mean reward", length: "mean length" };

/** A map over `data` ({steps, groups}); `open(step, group)` is called for a cell that is chosen. */
export function heatMap(open, moved) {
  const canvas = h("canvas", { "aria-hidden": "true" });
  const spacer = h("div.spacer");
  const scroll = h(
    "div.map",
    { tabIndex: 0, role: "application", "aria-label": "Steps by groups: arrow keys move, Enter opens a group" },
    spacer,
    canvas,
  );
  const tip = h("p.tip", { "aria-live": "off" }, " ");
  let data = { steps: [], groups: [] };
  let options = { order: "file", colour: "right" };
  let columns = [];
  let range = [0, 1];
  let cursor = null;
  let size = 12;
  let followed = true;

  function arrange() {
    const order = ORDERS[options.order];
    columns = data.groups.map((groups, column) => {
      const places = groups.map((cell, place) => ({ cell, place, step: data.steps[column] }));
      return order ? places.sort((a, b) => order(a.cell, b.cell) || a.place - b.place) : places;
    });
    if (columns.length === 1)
      columns = Array.from({ length: Math.ceil(columns[0].length / FOLDED) }, (_, at) =>
        columns[0].slice(at * FOLDED, (at + 1) * FOLDED),
      );
    const values = data.groups
      .flat()
      .map(valueOf)
      .filter((one) => typeof one === "number");
    range =
      options.colour === "right"
        ? [0, 1]
        : [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)];
    layout();
  }

  function valueOf(cell) {
    if (options.colour === "length") return cell[4];
    if (cell[1] === null) return null;
    return options.colour === "reward" ? cell[1] : cell[2] / cell[3];
  }

  function layout() {
    const rows = columns.reduce((most, one) => Math.max(most, one.length), 1);
    const room = scroll.clientWidth || 600;
    size = Math.max(7, Math.min(18, Math.floor(room / Math.max(columns.length, 1)), Math.floor(460 / rows)));
    const [width, height] = [columns.length * size, rows * size];
    spacer.style.width = `${width}px`;
    spacer.style.height = `${height}px`;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.min(room, Math.max(width, 1)) * ratio;
    canvas.height = height * ratio;
    canvas.style.width = `${canvas.width / ratio}px`;
    canvas.style.height = `${height}px`;
    if (followed) scroll.scrollLeft = width;
    draw();
  }

  function draw() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    const scale = [0, 1, 2, 3, 4, 5, 6, 7, 8].map((one) => read(`--heat-${one}`));
    const [missing, ink] = [read("--missing"), read("--ink")];
    const context = canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const left = scroll.scrollLeft;
    const first = Math.max(0, Math.floor(left / size));
    const last = Math.min(columns.length, Math.ceil((left + canvas.width / ratio) / size));
    const side = size > 4 ? size - GAP : size;
    for (let column = first; column < last; column += 1) {
      const x = column * size - left;
      columns[column].forEach(({ cell }, row) => {
        const value = valueOf(cell);
        const y = row * size;
        if (value === null || value === undefined) {
          context.strokeStyle = missing;
          context.strokeRect(x + 0.5, y + 0.5, side - 1, side - 1);
          context.beginPath();
          context.moveTo(x, y + side);
          context.lineTo(x + side, y);
          context.stroke();
          return;
        }
        const share = range[1] > range[0] ? (value - range[0]) / (range[1] - range[0]) : 1;
        context.fillStyle = scale[Math.round(share * 8)];
        context.fillRect(x, y, side, side);
      });
    }
    if (cursor && columns[cursor[0]]) {
      context.strokeStyle = ink;
      context.lineWidth = 2;
      context.strokeRect(cursor[0] * size - left - 1, cursor[1] * size - 1, side + 2, side + 2);
      context.lineWidth = 1;
    }
  }

  function at(column, row) {
    return (columns[column] && columns[column][row]) || null;
  }

  function tell(found, aloud) {
    if (!found) return;
    const [, mean, rights, count, length, name] = found.cell;
    const text = `step ${found.step}, group ${found.place}: ${outcomeOf(found.cell)}, ${rights} of ${count} right, reward ${num(mean)}, ${num(length)} tokens, ${name}`;
    tip.textContent = text;
    if (aloud) say(text);
    if (moved) moved(found.step, found.place);
  }

  function move(dx, dy) {
    const last = columns.length - 1;
    if (last < 0) return;
    if (!cursor) cursor = [dx === -Infinity ? 0 : last, 0];
    else cursor = [Math.max(0, Math.min(last, cursor[0] + dx)), cursor[1] + dy];
    cursor[1] = Math.max(0, Math.min(columns[cursor[0]].length - 1, cursor[1]));
    const x = cursor[0] * size;
    if (x < scroll.scrollLeft) scroll.scrollLeft = x;
    if (x + size > scroll.scrollLeft + scroll.clientWidth) scroll.scrollLeft = x + size - scroll.clientWidth;
    const y = cursor[1] * size;
    if (y < scroll.scrollTop) scroll.scrollTop = y;
    if (y + size > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = y + size - scroll.clientHeight;
    draw();
    tell(at(...cursor), true);
  }

  function under(event) {
    const box = canvas.getBoundingClientRect();
    return [
      Math.floor((event.clientX - box.left + scroll.scrollLeft) / size),
      Math.floor((event.clientY - box.top) / size),
    ];
  }

  scroll.addEventListener("scroll", () => {
    followed = scroll.scrollLeft + scroll.clientWidth >= columns.length * size - 2;
    canvas.style.transform = `translateX(${scroll.scrollLeft}px)`;
    draw();
  });
  canvas.addEventListener("mousemove", (event) => tell(at(...under(event))));
  canvas.addEventListener("click", (event) => {
    const found = at(...under(event));
    if (found) open(found.step, found.place);
  });
  scroll.addEventListener("keydown", (event) => {
    const moves = {
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
      Home: [-Infinity, 0],
      End: [Infinity, 0],
      PageUp: [-20, 0],
      PageDown: [20, 0],
    };
    if (event.key in moves) {
      event.preventDefault();
      event.stopPropagation();
      move(...moves[event.key]);
    } else if (event.key === "Enter" && cursor) {
      const found = at(...cursor);
      if (found) open(found.step, found.place);
    }
  });
  new ResizeObserver(() => layout()).observe(scroll);

  return {
    element: h("div", scroll, tip),
    set(fresh, chosen) {
      data = fresh;
      options = { ...options, ...chosen };
      arrange();
    },
    show(step) {
      const column = columns.findIndex((some) => some[0].step === step);
      if (column < 0) return;
      followed = false;
      cursor = [column, 0];
      scroll.scrollLeft = Math.max(0, column * size - scroll.clientWidth / 2);
      draw();
    },
    draw,
  };
}
