// Texts that somebody else wrote: shown letter by letter, whatever is in them.

import { h } from "./dom.js";
import { num } from "./format.js";

const AT_ONCE = 20000;

// Letters that draw nothing, or change how others are drawn: control codes, direction marks, invisible ones, halves of pairs.
const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

const NAMES = {
  0x1b: "escape: a terminal code begins",
  0x202e: "right-to-left override",
  0x200f: "right-to-left mark",
  0x200b: "zero-width space",
};

function sign(letter) {
  const code = letter.charCodeAt(0);
  const shown =
    code < 0x20
      ? String.fromCharCode(0x2400 + code)
      : code === 0x7f
        ? "\u2421"
        : `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
  return h("span.sign", { title: NAMES[code] || "a letter that is not seen" }, shown);
}

/** Text nodes, with a visible sign for every letter that is not seen, and `marked` (lower case) marked. */
export function letters(text, marked) {
  const parts = [];
  const push = (piece) => {
    if (!marked) {
      if (piece) parts.push(piece);
      return;
    }
    const low = piece.toLowerCase();
    let from = 0;
    for (let at = low.indexOf(marked); at >= 0; at = low.indexOf(marked, from)) {
      if (at > from) parts.push(piece.slice(from, at));
      parts.push(h("mark", piece.slice(at, at + marked.length)));
      from = at + marked.length;
    }
    if (from < piece.length) parts.push(piece.slice(from));
  };
  let from = 0;
  for (const match of text.matchAll(UNSEEN)) {
    push(text.slice(from, match.index));
    parts.push(sign(match[0]));
    from = match.index + match[0].length;
  }
  push(text.slice(from));
  return parts;
}

/** A block of text; what is long is shown as far as one reads, the rest when asked for. */
export function block(text, options = {}) {
  if (typeof text !== "string")
    return h("p.dim", text === null || text === undefined ? "no text" : JSON.stringify(text));
  const marked = options.marked ? options.marked.toLowerCase() : "";
  const element = h("pre.words", { dir: "ltr", class: options.class });
  let shown = 0;
  const more = h("button.more", { type: "button", onclick: () => grow() });
  const grow = () => {
    const end = shown ? Math.min(text.length, shown + AT_ONCE * 10) : Math.min(text.length, options.first || AT_ONCE);
    more.remove();
    element.append(
      ...letters(text.slice(shown, end), marked).map((part) => (part.nodeType ? part : document.createTextNode(part))),
    );
    shown = end;
    if (shown < text.length) {
      more.textContent = `show more (${num(text.length - shown)} letters)`;
      element.append(more);
    }
  };
  grow();
  if (!text) element.append(h("span.dim", "(empty)"));
  return element;
}

/** One line of a text: its beginning, or its end, without line breaks. */
export function line(text, length = 200, fromEnd = false) {
  const short = text.length > length ? (fromEnd ? `…${text.slice(-length)}` : `${text.slice(0, length)}…`) : text;
  return letters(short.replace(/\s+/g, " "));
}
