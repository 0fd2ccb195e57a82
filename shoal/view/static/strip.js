// The tokens of a completion in a strip, coloured by one of their numbers.

import { add, fill, h, say, table } from "./dom.js";
import { num, signed } from "./format.js";
import { letters } from "./plain.js";

const AT_ONCE = 3000;
const WORST = 12;

const KINDS = {
  difference: {
    title: "learner − sampler log-prob",
    both: true,
    of: (tokens, at) => minus(tokens.learner, tokens.sampler, at),
  },
  sampler: { title: "sampler log-prob", both: false, of: (tokens, at) => value(tokens.sampler, at) },
  advantage: { title: "advantage", both: true, of: (tokens, at) => value(tokens.advantage, at) },
  mask: { title: "trained or not", both: false, of: (tokens, at) => (untrained(tokens, at) ? null : 0) },
};

function untrained(tokens, at) {
  return Array.isArray(tokens.mask) && !tokens.mask[at];
}

function value(list, at) {
  if (typeof list === "number") return list; // one for all tokens
  return Array.isArray(list) && typeof list[at] === "number" ? list[at] : null;
}

function minus(left, right, at) {
  const [a, b] = [value(left, at), value(right, at)];
  return a === null || b === null ? null : a - b;
}

/** The tokens whose learner and sampler log-probs differ most: [place, difference], the largest first. */
export function disagreements(tokens, count = WORST) {
  const found = [];
  const length = Array.isArray(tokens && tokens.text) ? tokens.text.length : 0;
  for (let at = 0; at < length; at += 1) {
    const difference = minus(tokens.learner, tokens.sampler, at);
    if (difference !== null && !untrained(tokens, at)) found.push([at, difference]);
  }
  return found.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, count);
}

/** The strip; `chosen` is the kind of colour, `changed(kind)` is called with another. */
export function strip(tokens, chosen, changed) {
  const length = tokens.text.length;
  const has = Object.keys(KINDS).filter(
    (kind) =>
      kind === "mask" ||
      Array.from({ length: Math.min(length, 2000) }).some((_, at) => KINDS[kind].of(tokens, at) !== null),
  );
  let kind = has.includes(chosen) ? chosen : has[0];
  const words = h("pre.strip", { dir: "ltr", tabIndex: 0, role: "group", "aria-label": "Tokens" });
  const more = h("button.more", { type: "button", onclick: () => draw(shown + AT_ONCE) });
  const tip = h("p.tip", " ");
  let shown = 0;

  function shades() {
    const sizes = [];
    for (let at = 0; at < length; at += 1) {
      const one = KINDS[kind].of(tokens, at);
      if (one !== null) sizes.push(Math.abs(one));
    }
    const most = sizes.reduce((a, b) => Math.max(a, b), 0) || 1;
    return (one) => {
      if (one === null) return "off";
      if (kind === "mask") return "";
      if (kind === "sampler") return `low-${Math.min(8, Math.round((Math.min(-one, 8) / 8) * 8))}`;
      const share = Math.round((Math.abs(one) / most) * 4);
      return share ? `${one > 0 ? "up" : "down"}-${share}` : "";
    };
  }

  function draw(until) {
    const shade = shades();
    more.remove();
    words.replaceChildren();
    shown = Math.min(length, until);
    const breaks = new Map(
      (Array.isArray(tokens.segments) ? tokens.segments : []).map(([start, context]) => [start, context]),
    );
    for (let at = 0; at < shown; at += 1) {
      if (breaks.has(at) && breaks.get(at)) words.append(h("span.context", letters(String(breaks.get(at)))));
      const text = String(tokens.text[at] ?? "");
      const masked = untrained(tokens, at);
      words.append(
        h(
          "span.token",
          { class: `${shade(KINDS[kind].of(tokens, at))}${masked ? " masked" : ""}`, data: { at: String(at) } },
          text ? letters(text) : h("span.sign", "end"),
        ),
      );
    }
    if (shown < length) {
      more.textContent = `show more tokens (${num(length - shown)})`;
      words.append(more);
    }
  }

  function tell(at) {
    const parts = [`token ${at}`, JSON.stringify(tokens.text[at])];
    for (const [name, list] of [
      ["sampler", tokens.sampler],
      ["learner", tokens.learner],
    ])
      if (value(list, at) !== null) parts.push(`${name} ${num(list[at])}`);
    const difference = minus(tokens.learner, tokens.sampler, at);
    if (difference !== null) parts.push(`difference ${signed(difference)}`);
    if (value(tokens.advantage, at) !== null) parts.push(`advantage ${signed(value(tokens.advantage, at))}`);
    if (untrained(tokens, at)) parts.push("not trained");
    fill(tip, letters(parts.join(" · ")));
    return tip.textContent;
  }

  function mark(at) {
    for (const one of words.querySelectorAll(".chosen")) one.classList.remove("chosen");
    if (at >= shown) draw(at + 100);
    const span = words.querySelector(`[data-at="${at}"]`);
    if (!span) return;
    span.classList.add("chosen");
    span.scrollIntoView({ block: "nearest" });
    say(tell(at));
  }

  words.addEventListener("mouseover", (event) => {
    const span = event.target.closest(".token");
    if (span) tell(Number(span.dataset.at));
  });
  words.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const now = words.querySelector(".chosen");
    mark(Math.max(0, Math.min(length - 1, (now ? Number(now.dataset.at) : -step * (step > 0 ? 1 : 0)) + step)));
  });

  const select = h(
    "select",
    {
      onchange: () => {
        kind = select.value;
        draw(shown);
        changed(kind);
      },
    },
    has.map((one) => h("option", { value: one, selected: one === kind }, KINDS[one].title)),
  );
  const worst = disagreements(tokens);
  const rows = worst.map(([at, difference]) => [
    h("button.small", { type: "button", onclick: () => mark(at) }, String(at)),
    h("code", letters(JSON.stringify(tokens.text[at]))),
    num(tokens.sampler[at]),
    num(tokens.learner[at]),
    signed(difference),
  ]);
  draw(AT_ONCE);
  return add(h("section"), [
    h("h2", "Tokens"),
    h(
      "div.controls",
      h("label", "colour by ", select),
      h("span.dim", "unlike colours: above 0 blue, below 0 orange; struck through: not trained"),
    ),
    tip,
    words,
    worst.length
      ? h(
          "details",
          { open: true },
          h("summary", "Where sampler and learner disagree most"),
          table(["token", "text", "sampler", "learner", "learner − sampler"], rows, {
            class: "numbers",
            label: "Where sampler and learner disagree most",
          }),
        )
      : null,
  ]);
}
