// Conversations: who said what, calls of tools and what came back.

import { h } from "./dom.js";
import { count } from "./format.js";
import { block, letters } from "./plain.js";

/** What was asked: as messages where they are known, else as the text that the model saw. */
export function promptPart(one, group) {
  // The first row of a group has its messages, for all of them.
  const messages = [one, ...((group && group.completions) || [])]
    .map((other) => other.messages)
    .find((some) => Array.isArray(some) && some.length);
  const truth = one.ground_truth;
  return h(
    "section.prompt",
    h("h2", "Prompt"),
    messages
      ? messages.map(message)
      : one.prompt === null || one.prompt === undefined
        ? h("p.dim", "This environment sent no prompt.")
        : h("div.turn.user", h("b.role", "prompt"), block(one.prompt, { first: 5000 })),
    truth === null || truth === undefined
      ? null
      : h(
          "p.truth",
          h("span.dim", "ground truth "),
          h("code", letters(typeof truth === "string" ? truth.slice(0, 2000) : JSON.stringify(truth).slice(0, 2000))),
        ),
    group && group.source ? h("p.dim", "source ", letters(group.source)) : null,
  );
}

/** One message of a conversation. */
export function message(one) {
  if (!one || typeof one !== "object") return block(JSON.stringify(one));
  const role = String(one.role ?? "unknown");
  const calls = Array.isArray(one.tool_calls) ? one.tool_calls : [];
  return h(
    "div.turn",
    { class: ["user", "assistant", "system", "tool"].includes(role) ? role : "other" },
    h("b.role", letters(role), one.name ? h("span", " ", letters(String(one.name))) : null),
    contents(one.content),
    calls.map((call) =>
      h(
        "div.call",
        h("b.role", "calls ", letters(String((call && call.function && call.function.name) || "a tool"))),
        block(argumentsOf(call)),
      ),
    ),
  );
}

function contents(content) {
  if (content === null || content === undefined) return null;
  if (typeof content === "string") return content ? block(content, { first: 8000 }) : null;
  if (Array.isArray(content))
    return content.map((part) =>
      part && typeof part.text === "string" ? block(part.text) : block(JSON.stringify(part)),
    );
  return block(JSON.stringify(content));
}

function argumentsOf(call) {
  const given = call && call.function ? call.function.arguments : call;
  return typeof given === "string" ? given : JSON.stringify(given, null, 1);
}

/** What the model wrote, with the turns between, where there are some; then what its tools came to. */
export function conversation(one, options = {}) {
  const info = one.info && typeof one.info === "object" ? one.info : {};
  const said = [info.messages, one.turns].find((some) => Array.isArray(some) && some.length);
  const tools = Array.isArray(info.tools) ? info.tools : [];
  const calls = tools.length
    ? h("details", { open: tools.length < 4 }, h("summary", count(tools.length, "tool call")), tools.map(tool))
    : null;
  return h("div.talk", said ? said.map(message) : block(one.text, options), calls);
}

function tool(call, number) {
  if (!call || typeof call !== "object") return block(JSON.stringify(call));
  const failed = call.error || call.timed_out;
  const name = call.name || call.tool || `tool call ${number + 1}`;
  return h(
    "div.turn.tool",
    h(
      "b.role",
      letters(String(name)),
      failed ? h("span.warning", call.timed_out ? " ran out of time" : " failed") : null,
    ),
    Object.entries(call)
      .filter(([key, value]) => !["name", "tool"].includes(key) && value !== null && value !== "" && value !== false)
      .map(([key, value]) =>
        h(
          "div",
          h("span.dim", letters(key), " "),
          block(typeof value === "string" ? value : JSON.stringify(value), { first: 4000 }),
        ),
      ),
  );
}
