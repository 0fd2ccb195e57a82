"""summary.json, and the words that a run ends with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.files import write_atomically
from shoal.monitor.log_file import LOG_FILE
from shoal.monitor.metrics import is_right
from shoal.monitor.progress import duration
from shoal.monitor.rows import METRICS_FILE, read_rows
from shoal.monitor.samples import Decode, question
from shoal.types import Group

SUMMARY_FILE = "summary.json"

# What a reader may look for, in this order, where it exists.
PLACES = (
    ("curve.png", "reward and accuracy in one picture"),
    (METRICS_FILE, "every number of every step"),
    ("samples", "what the model wrote, step by step"),
    ("tensorboard", "tensorboard --logdir"),
    ("model", "the trained model, for from_pretrained"),
    ("best", "the model of the best evaluation"),
    ("checkpoints", "to resume from"),
    ("memory_profile", "memory_summary.md"),
    (str(LOG_FILE), "what the run has said"),
    (SUMMARY_FILE, "the run in a few numbers"),
)


def write_summary(
    run_dir: Path,
    *,
    config: Mapping[str, Any],
    seconds_total: float,
    resume_count: int,
    status: str,
    best_by: str = "accuracy",
) -> dict[str, Any]:
    """Writes summary.json from metrics.jsonl and the arguments, and returns it.

    `accuracy_before` is the evaluation at step 0, `accuracy_after` the one after the last step, each None where there
    was none; `accuracy_best` that after `best_step`, the first with the highest `best_by` (accuracy, or the mean reward
    in judged runs: `eval_reward_before` and `_after`). `seconds_rl` adds up `seconds/step`:
    rollouts, rewards, training and weight sync, without the warm start, evaluations and checkpoints.
    `seconds_by_phase` are sums over the rows. `reward_first` and `reward_last` are means over the first and the last
    tenth of the steps.
    """
    rows = read_rows(run_dir)
    trained = [row for row in rows if "count/completions" in row]
    evaluated = [row for row in rows if row.get("eval/accuracy") is not None]
    steps = trained[-1]["step"] if trained else 0
    graded = [row for row in evaluated if row.get(f"eval/{best_by}") is not None]
    best = max(graded, key=lambda row: row[f"eval/{best_by}"], default=None)
    rewards = [row["reward/mean"] for row in trained if row.get("reward/mean") is not None]
    tenth = max(len(rewards) // 10, 1)
    summary = {
        "status": status,
        "accuracy_before": _evaluated_at(evaluated, "accuracy", 0),
        "accuracy_after": _evaluated_at(evaluated, "accuracy", steps) if steps else None,
        "accuracy_best": best["eval/accuracy"] if best else None,
        "best_step": best["step"] if best else None,
        "best_by": best_by,
        "eval_reward_before": _evaluated_at(evaluated, "reward", 0),
        "eval_reward_after": _evaluated_at(evaluated, "reward", steps) if steps else None,
        "reward_first": _mean(rewards[:tenth]),
        "reward_last": _mean(rewards[-tenth:]),
        "steps": steps,
        "completions": sum(row["count/completions"] for row in trained),
        "sampled_tokens": sum(row["count/sampled_tokens"] for row in trained),
        "seconds_rl": sum(row.get("seconds/step", 0.0) for row in trained),
        "seconds_total": seconds_total,
        "seconds_by_phase": _phase_sums(rows),
        "resume_count": resume_count,
        "config": config,
    }
    write_atomically(run_dir / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    return summary


def closing_text(
    summary: Mapping[str, Any],
    run_dir: Path,
    groups: Sequence[Group] = (),
    decode: Decode | None = None,
    *,
    next_steps: Sequence[str] = (),
) -> str:
    """What a run prints at its end: before and after, three completions, where everything is, what to try next.

    `groups` are scored ones, best those of the last evaluation; the samples are the first completion of three of them,
    evenly spaced, not the three best.
    """
    lines = ["", _headline(summary), ""]
    chosen = [groups[index * len(groups) // 3] for index in range(3)] if len(groups) >= 3 else list(groups)
    for group in chosen:
        completion = group.completions[0]
        verdict = "unscored" if completion.reward is None else "right" if is_right(completion) else "wrong"
        lines.append(f"  {_one_line(question(group.prompt, decode) or group.id)}")
        lines.append(f"    -> {_one_line(completion.text)}   [{verdict}]")
    places = [(name, what) for name, what in PLACES if (run_dir / name).exists()]
    lines += ["", f"Everything is in {run_dir}:"]
    lines += [f"  {name:<15} {what}" for name, what in places]
    if next_steps:
        lines += ["", "What to try next:", *(f"  {step}" for step in next_steps)]
    return "\n".join(lines) + "\n"


def _headline(summary: Mapping[str, Any]) -> str:
    rl, total = duration(summary["seconds_rl"]), duration(summary["seconds_total"])
    times = f"{summary['steps']} steps, {rl} of RL, {total} in all"
    name, key = ("reward", "eval_reward") if summary["best_by"] == "reward" else ("accuracy", "accuracy")
    before, after = summary[f"{key}_before"], summary[f"{key}_after"]
    if before is not None and after is not None:
        return f"Held-out {name} {before:.3f} -> {after:.3f} ({times})"
    if summary["reward_first"] is not None:
        return f"Training reward {summary['reward_first']:.3f} -> {summary['reward_last']:.3f} ({times})"
    return f"Nothing was scored ({times})"


def _evaluated_at(evaluated: Sequence[Mapping[str, Any]], name: str, step: int) -> float | None:
    return next((row.get(f"eval/{name}") for row in evaluated if row["step"] == step), None)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _phase_sums(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for row in rows:
        for key, value in row.items():
            name = key.removeprefix("seconds/")
            if key != name and name not in ("step", "total"):
                sums[name] = sums.get(name, 0.0) + value
    return sums


def _one_line(text: str, width: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
