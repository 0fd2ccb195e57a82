// Addresses: `#page?key=value`. Everything that a page shows is in its address, so that it can be sent.

/** The page and the parameters that the address asks for. */
export function where() {
  const [page, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { page: page || "runs", given: Object.fromEntries(new URLSearchParams(query || "")) };
}

/** The address of a page. Empty parameters are left out. */
export function to(page, given) {
  const kept = Object.entries(given || {}).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const query = new URLSearchParams(kept.map(([key, value]) => [key, String(value)])).toString();
  return `#${page}${query ? `?${query}` : ""}`;
}

/** Goes there. */
export function go(page, given) {
  location.hash = to(page, given);
}

/** Changes parameters of this page in the address, without going anywhere. */
export function note(changes) {
  const { page, given } = where();
  history.replaceState(null, "", to(page, { ...given, ...changes }));
}

/** The parameters that name a group or a completion. */
export function place(run, kind, step, group, more) {
  return { run, kind: kind === "evaluations" ? kind : undefined, step, group, ...more };
}
