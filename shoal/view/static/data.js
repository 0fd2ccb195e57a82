// What the page is told: by the server that follows the run folders, or by what an exported file holds.

const keptElement = document.getElementById("kept");
const kept = keptElement ? JSON.parse(keptElement.textContent) : null;

/** Whether this is a file that somebody was sent. */
export const exported = Boolean(kept);

/** The name under which an exported file keeps an answer: parameters sorted, without those that only page through. */
function keyOf(name, given) {
  const ignored = ["after", "generation", "start", "count", "keys"];
  const words = Object.entries(given || {})
    .filter(([key, value]) => !ignored.includes(key) && value !== undefined && value !== null && value !== "")
    .map(([key, value]) => `${key}=${value}`)
    .sort();
  return [name, ...words].join("&");
}

/** An answer. Throws an Error with the reason in words. */
export async function ask(name, given) {
  if (kept) {
    const found = kept[keyOf(name, given)];
    if (found === undefined) throw new Error("This file does not hold that page: it is in the run folder only.");
    return found;
  }
  const query = new URLSearchParams(
    Object.entries(given || {}).filter(([, value]) => value !== undefined && value !== null && value !== ""),
  );
  let reply;
  try {
    reply = await fetch(`/api/${name}?${query}`);
  } catch {
    throw new Error("shoal view does not answer: it has ended, or the connection is gone.");
  }
  const body = reply.headers.get("content-type").startsWith("application/json")
    ? await reply.json()
    : { error: await reply.text() };
  if (!reply.ok) throw new Error(body.error);
  return body;
}

let timers = [];

/** Calls `again` every so many seconds until the page is left; not while it is hidden, and never in an exported file. */
export function follow(again, seconds = 2) {
  if (kept) return;
  const timer = { stopped: false };
  timers.push(timer);
  const turn = async () => {
    if (timer.stopped) return;
    if (!document.hidden) {
      try {
        if ((await again()) === false) return;
      } catch (error) {
        console.warn(error.message);
      }
    }
    if (!timer.stopped) setTimeout(turn, seconds * 1000);
  };
  setTimeout(turn, seconds * 1000);
}

/** The page is left: nothing of it is followed any more. */
export function unfollow() {
  for (const timer of timers) timer.stopped = true;
  timers = [];
}

/** What was shown last of a run, so that a new page of it needs not wait for its head. */
const heads = new Map();

export async function head(run, fresh) {
  if (fresh || !heads.has(run)) heads.set(run, await ask("overview", { run }));
  return heads.get(run);
}
