// Which numbers of a run are drawn together.

const line = (key, label, more) => ({ key, label, ...more });

/** Charts by section. A key that ends in `*` stands for every key that begins so. */
export const SECTIONS = [
  {
    title: "Learning",
    charts: [
      {
        title: "Reward",
        about: "mean over completions",
        lines: [line("reward/mean", "training"), line("eval/reward", "held-out", { points: true })],
      },
      {
        title: "Accuracy",
        about: "held-out prompts",
        lines: [line("eval/accuracy", "accuracy", { points: true }), line("eval/pass@*", "pass@*", { points: true })],
      },
      {
        title: "Reward parts",
        about: "means",
        lines: [line("reward_part/*/mean", "*"), line("penalty/*", "penalty *")],
      },
      {
        title: "Groups",
        about: "shares of groups",
        lines: [
          line("groups/all_right", "all right"),
          line("groups/all_wrong", "all wrong"),
          line("groups/zero_variance", "no signal"),
        ],
      },
      {
        title: "Missing rewards",
        about: "share of completions",
        lines: [line("reward/missing", "missing"), line("reward_part/*/missing", "*")],
      },
      { title: "Reward by source", lines: [line("source/*/reward", "*")] },
      {
        title: "Left out of training",
        about: "shares",
        lines: [
          line("batch/failed", "failed"),
          line("batch/missing_rewards", "no reward"),
          line("batch/masked_truncated", "truncated"),
          line("batch/untrained", "no token"),
          line("batch/dropped_groups", "groups, <2 rewards"),
          line("batch/zero_variance_dropped_groups", "groups, no signal"),
        ],
      },
    ],
  },
  {
    title: "Completions",
    charts: [
      {
        title: "Length",
        about: "sampled tokens",
        lines: [
          line("length/mean", "mean"),
          line("length/right", "right"),
          line("length/wrong", "wrong"),
          line("length/max", "longest"),
        ],
      },
      {
        title: "Stop reasons",
        about: "shares",
        lines: [
          line("stop/stop", "stop"),
          line("stop/length", "length"),
          line("stop/turns", "turns"),
          line("stop/abort", "abort"),
          line("stop/error", "error"),
        ],
      },
      {
        title: "Advantage",
        lines: [
          line("advantage/abs_mean", "mean size"),
          line("advantage/min", "lowest"),
          line("advantage/max", "highest"),
        ],
      },
    ],
  },
  {
    title: "Policy",
    charts: [
      { title: "KL to the reference", lines: [line("kl_ref/*", "*")] },
      { title: "Loss", lines: [line("loss/total", "total"), line("loss/policy", "policy"), line("loss/kl", "KL")] },
      {
        title: "Clip fraction",
        about: "share of trained tokens",
        lines: [
          line("policy/clip_fraction", "clipped"),
          line("policy/clip_fraction_low", "low"),
          line("policy/clip_fraction_high", "high"),
        ],
      },
      { title: "Gradient norm", about: "before clipping", lines: [line("train/grad_norm", "norm")] },
      { title: "Entropy", about: "nats a token", lines: [line("policy/entropy", "entropy")] },
      { title: "Learning rate", lines: [line("train/lr", "lr")] },
    ],
  },
  {
    title: "Sampler and learner",
    charts: [
      {
        title: "Mismatch",
        about: "nats a token",
        lines: [line("sampler/abs_difference", "mean"), line("sampler/abs_difference_max", "largest")],
      },
      { title: "KL, sampler to learner", lines: [line("sampler/kl_k1", "k1"), line("sampler/kl_k3", "k3")] },
      {
        title: "Effective sample size",
        about: "1.0: no effective samples lost",
        lines: [line("sampler/ess", "ESS"), line("sampler/corrected_fraction", "corrected")],
      },
      {
        title: "Staleness",
        about: "versions",
        lines: [line("staleness/mean", "mean"), line("staleness/max", "largest")],
      },
    ],
  },
  {
    title: "Time and memory",
    charts: [
      {
        title: "Seconds by phase",
        unit: "s",
        lines: [
          line("seconds/step", "step"),
          line("seconds/rollout", "rollout"),
          line("seconds/reward", "reward"),
          line("seconds/reference", "reference"),
          line("seconds/train", "train"),
          line("seconds/sync", "sync"),
          line("seconds/evaluate", "evaluate"),
          line("seconds/checkpoint", "checkpoint"),
        ],
      },
      {
        title: "Tokens a second",
        lines: [line("tokens_per_second/rollout", "rollout"), line("tokens_per_second/step", "step")],
      },
      { title: "Memory", unit: "GiB", lines: [line("memory/*", "*")] },
    ],
  },
];

/** Charts of the page on time and load. */
export const LOAD = [
  {
    title: "Where the time of a step goes",
    unit: "s",
    lines: [
      line("seconds/rollout", "rollout"),
      line("seconds/reward", "reward"),
      line("seconds/reference", "reference"),
      line("seconds/train", "train"),
      line("seconds/sync", "sync"),
    ],
  },
  {
    title: "Between the steps",
    unit: "s",
    lines: [line("seconds/evaluate", "evaluate"), line("seconds/checkpoint", "checkpoint")],
  },
  { title: "Staleness", about: "versions", lines: [line("staleness/*", "*")] },
  {
    title: "Rows that the engine decodes at once",
    lines: [
      line("engine/mean_rows", "rows"),
      line("engine/mean_lanes", "lanes"),
    ],
  },
  {
    title: "Engine",
    about: "tokens a second",
    lines: [line("engine/tokens_per_second", "sampled"), line("tokens_per_second/step", "over the step")],
  },
  { title: "Weight sync", unit: "s", lines: [line("seconds/sync_*", "*")] },
];

/** Prefixes of what waited and what was busy, in the order of their charts. */
const FAMILIES = {
  wait: "Waiting",
  async: "Asynchronous rollout",
  queue: "Queue",
  slots: "Slots",
  engine: "Engine",
  engines: "Engines",
  cluster: "Cluster",
  workers: "Workers",
  rollout_api: "Rollout API",
};

/** What a number is counted in, by the words of its key: [pattern, what is said below the title, unit at the values]. */
const UNITS = [
  [/(tokens|requests|groups|bytes)_(a|per)_second/, "a second", ""],
  [/(^|_)(seconds?|latency|idle_time)(_|$)/, "seconds", "s"],
  [/(^|_)(share|fraction|rate|utili[sz]ation|usage|use|busy|idle)(_|$)/, "shares", ""],
  [/(^|_)(staleness|lag|versions?)(_|$)/, "versions", ""],
  [/(^|_)(gib|memory)(_|$)/, "GiB", "GiB"],
  [/(^|_)tokens(_|$)/, "tokens", ""],
];

/** Charts of whatever a run counts of waiting and load that is not drawn elsewhere: by prefix, one unit a chart. */
export function loadCharts(keys, drawn) {
  const charts = new Map();
  for (const [family, title] of Object.entries(FAMILIES)) {
    for (const key of keys) {
      if (!key.startsWith(`${family}/`) || drawn.has(key)) continue;
      const name = key.slice(family.length + 1);
      const found = UNITS.find(([pattern]) => name.split("/").some((word) => pattern.test(word)));
      const [, about, unit] = found || (family === "wait" ? UNITS[1] : [null, "numbers", ""]);
      const place = `${family} ${about}`;
      if (!charts.has(place)) charts.set(place, { title, about, unit, lines: [] });
      charts.get(place).lines.push(line(key, name.replaceAll("_", " ")));
    }
  }
  return [...charts.values()];
}

/** The lines whose keys a run has, patterns opened. */
export function fitting(lines, keys) {
  const there = new Set(keys);
  const found = [];
  const taken = new Set();
  for (const one of lines) {
    if (!one.key.includes("*")) {
      if (there.has(one.key) && !taken.has(one.key)) found.push(one);
      taken.add(one.key);
      continue;
    }
    const [begin, end] = one.key.split("*");
    for (const key of keys) {
      if (taken.has(key) || !key.startsWith(begin) || !key.endsWith(end) || key.length < begin.length + end.length + 1)
        continue;
      taken.add(key);
      const inner = key.slice(begin.length, end ? -end.length : undefined);
      found.push({ ...one, key, label: one.label.replace("*", inner) });
    }
  }
  return found;
}
