// Elements. Texts of a run only ever become text nodes and attributes that are no scripts: nothing here parses markup.

/** An element: `h("a.dim", { href, onclick }, "text", child, [children])`. Null and false children are left out. */
export function h(name, properties, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  if (properties && (properties.nodeType || Array.isArray(properties) || typeof properties !== "object")) {
    children.unshift(properties);
    properties = null;
  }
  for (const [key, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.className += ` ${value}`;
    else if (key === "data") Object.assign(element.dataset, value);
    else if (key in element && typeof value !== "string") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  add(element, children);
  return element;
}

/** Appends children, nested lists flattened. */
export function add(element, children) {
  for (const child of [children].flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child.nodeType ? child : String(child));
  }
  return element;
}

/** Puts these children in the place of what was there. */
export function fill(element, ...children) {
  element.replaceChildren();
  return add(element, children);
}

/** Says it to screen readers. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

/** A table: heads are strings or elements (an empty one heads nothing), rows lists of cells, or rows as elements. */
export function table(heads, rows, properties) {
  const { label = "table", ...others } = properties || {};
  const head = heads.map((one) => (one === "" ? h("td") : h("th", { scope: "col" }, one)));
  const body = rows.map((cells) =>
    Array.isArray(cells)
      ? h(
          "tr",
          cells.map((cell) => (cell && ["TD", "TH"].includes(cell.tagName) ? cell : h("td", cell))),
        )
      : cells,
  );
  return h(
    "div.scroll",
    { tabIndex: 0, role: "region", "aria-label": label },
    h("table", others, h("thead", h("tr", head)), h("tbody", body)),
  );
}

/** The button below a list of which `left` more can be shown; null where there are none. */
export function moreButton(left, onclick) {
  return left > 0 ? h("button.more", { type: "button", onclick }, `show more (${left.toLocaleString("en")})`) : null;
}
