"""The folder of runs that the browser looks at: what Shoal's runs leave, small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from view.run_folders import group, row, write_lines, write_samples

from shoal.config import load_config
from shoal.run_folder import save_config

STEPS = 12
LOST, NEVER = "held_out/lost", "held_out/never"
WHY = "its group has fewer than two known rewards"
WORST_TOKEN = 7
"""Of completion 1 of group 0 in step 3: where sampler and learner disagree most, over the whole run."""

HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>",
    "\x1b[2J\x1b]0;title\x07 and \u202egnp.exe and a\x00b",
    "one line of " + "many words " * 100_000,
)


OUTCOMES = {
    "mixed": [1.0, 0.0, 1.0, 0.0],
    "right": [1.0] * 4,
    "wrong": [0.0] * 4,
    "missing": [None, None, 1.0, None],
}


def tokens(step: int, number: int, length: int, *, worst: bool) -> dict[str, Any]:
    """Recorded tokens whose log-probs differ a little everywhere, and much at one place of one completion."""
    sampler = [round(-0.05 * ((step + number + at) % 9), 5) for at in range(length)]
    learner = [round(value - 0.001 * (at % 3), 5) for at, value in enumerate(sampler)]
    if worst:
        learner[WORST_TOKEN] = sampler[WORST_TOKEN] - 1.5
    texts = [f"word{at} " for at in range(length)]
    mask = [1] * (length - 2) + [0, 0]
    return {"text": texts, "sampler": sampler, "learner": learner, "advantage": 0.5, "mask": mask, "segments": []}


def metrics_row(step: int) -> dict[str, Any]:
    """What a step measures: the part `format` falls, the part `answer` rises."""
    share = step / STEPS
    return {
        "step": step,
        "count/groups": 4,
        "count/completions": 16,
        "count/sampled_tokens": 16 * 20,
        "reward/mean": 0.3 + 0.5 * share,
        "reward/missing": 0.0625,
        "reward_part/answer/mean": 0.2 + 0.7 * share,
        "reward_part/format/mean": 0.9 - 0.6 * share,
        "length/mean": 20.0 + step,
        "length/max": 40,
        "stop/stop": 0.75,
        "stop/length": 0.25,
        "groups/all_right": 0.25 * share,
        "groups/all_wrong": 0.25,
        "groups/zero_variance": 0.25 + 0.25 * share,
        "staleness/mean": 0.0,
        "policy/clip_fraction": 0.01 * step,
        "policy/entropy": 0.5 - 0.02 * step,
        "kl_ref/k3": 0.001 * step,
        "sampler/abs_difference": 0.002,
        "sampler/kl_k3": 0.0001,
        "sampler/ess": 0.999,
        "train/grad_norm": 1.0 / step,
        "loss/total": 0.01,
        "seconds/rollout": 2.0 + share,
        "seconds/train": 1.0,
        "seconds/step": 3.2 + share,
        "seconds/total": 3.5 * step,
        "tokens_per_second/step": 100.0,
        "memory/rss_peak_gib": 0.6,
        "engine/mean_rows": 12.0,
        "wait/learner_seconds": 0.4,
    }


def step_samples(step: int) -> list[dict[str, Any]]:
    """Four groups of four: mixed, right, wrong, and one that was left out."""
    texts = ["<think>2+3=5</think><answer>5</answer>", "<think>2+3=6</think><answer>6</answer>"]
    rows = []
    for number, (name, rewards) in enumerate(
        [
            ("mixed", [1.0, 0.0, 1.0, 0.0]),
            ("right", [1.0] * 4),
            ("wrong", [0.0] * 4),
            ("missing", [None, None, 1.0, None]),
        ]
    ):
        for index, reward in enumerate(rewards):
            more: dict[str, Any] = {"tokens": tokens(step, index, 20, worst=(step, number, index) == (3, 0, 1))}
            if index == 0:
                more["messages"] = [
                    {"role": "system", "content": "Think first."},
                    {"role": "user", "content": f"what is {name}, in step {step}?"},
                ]
            if name == "missing":
                more |= {"left_out": WHY if reward is not None else "its reward is missing"}
                more["info"] = {"missing": {"answer": "SympifyError: could not parse"}} if reward is None else {}
            text = texts[reward != 1.0]
            parts = {"answer": reward, "format": None if reward is None else 0.5}
            rows.append(row(f"train/{name}", index, reward, text=text, reward_parts=parts, length=20, **more))
    return rows


def finished(folder: Path) -> None:
    """A whole run with evaluations, tokens, notes and a configuration."""
    rows: list[dict[str, Any]] = []
    for step in range(STEPS + 1):
        if step:
            rows.append(metrics_row(step))
            write_samples(folder, step, step_samples(step))
        if step % 6 == 0:
            rows.append({"step": step, "eval/accuracy": 0.5, "eval/reward": 0.25 + step / 48})
            right = {"held_out/always": 1.0, LOST: float(step < STEPS), NEVER: 0.0, "held_out/solved": float(step > 0)}
            some = [one for name, reward in right.items() for one in group(name, [reward])]
            write_samples(folder, step, some, "evaluations")
    write_lines(folder / "metrics.jsonl", rows)
    warning = "54% of the completions were cut off at the token limit"
    notes = [{"time": 1.7e9, "step": 0, "level": "note", "text": "the engine is served"}]
    notes.append({"time": 1.7e9 + 9, "step": 5, "level": "warning", "text": warning})
    write_lines(folder / "notes.jsonl", notes)
    save_config(load_config("story", ["optimizer.lr=0.5"]), ["optimizer.lr=0.5"], folder, preset="story")
    summary = {"status": "finished", "steps": STEPS, "completions": 16 * STEPS, "accuracy_before": 0.5}
    (folder / "summary.json").write_text(json.dumps({**summary, "accuracy_after": 0.5}))


def aborted(folder: Path) -> None:
    """A run that a broken gradient ended; its last line is half a line."""
    write_lines(folder / "metrics.jsonl", [metrics_row(step) for step in (1, 2)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rewa')
    text = "step 3: the loss is not finite, from completions [4]"
    write_lines(folder / "notes.jsonl", [{"time": 1.7e9, "step": 3, "level": "error", "text": text}])
    write_samples(folder, 2, group("a", [1.0, 0.0]))


def sweep(folder: Path) -> None:
    """Two runs that differ in their learning rate."""
    for number, lr in enumerate((0.1, 0.2)):
        write_lines(
            folder / str(number) / "metrics.jsonl", [metrics_row(step) | {"train/lr": lr} for step in (1, 2, 3)]
        )
        save_config(load_config("story", [f"optimizer.lr={lr}"]), [f"optimizer.lr={lr}"], folder / str(number), "story")


def rubric(folder: Path) -> None:
    """A run judged by criteria of which one was added and one given up."""
    long = {"key": "k1", "title": "Names the cause", "description": "It says why.", "weight": 2.0, "origin": "static"}
    new = {"key": "k2", "title": "Is brief", "description": "Few words.", "weight": -1.0, "origin": "adaptive"}
    rows = []
    for step in (1, 2):
        criteria = [{**long, "scores": [1.0, 0.5]}] + ([{**new, "scores": [0.0, 0.0]}] if step == 2 else [])
        added, dropped = ([new], []) if step == 1 else ([], ["k2"])
        rows.append({"step": step, "prompt": "essay", "question": "Why is the sky blue?", "criteria": criteria})
        rows[-1] |= {"rewards": [1.0, 0.5], "added": added, "to_inactive": dropped}
        write_samples(folder, step, group("essay", [1.0, 0.5]))
    write_lines(folder / "adaptive_rubrics.jsonl", rows)
    write_lines(folder / "metrics.jsonl", [metrics_row(step) for step in (1, 2)])


def tools(folder: Path) -> None:
    """A run whose model calls tools."""
    call = {"name": "python", "arguments": {"code": "print(6 * 7)"}, "output": "42", "seconds": 0.01}
    failed = {"name": "python", "arguments": {"code": "1 +"}, "error": "SyntaxError: invalid syntax"}
    said = [("assistant", "I compute."), ("environment", "42"), ("assistant", "It is 42.")]
    turns = [{"role": role, "content": text} for role, text in said]
    info = {"tools": [call, failed]}
    write_samples(folder, 1, [row("a", 0, 1.0, info=info, turns=turns), row("a", 1, 0.0)])


def foreign(folder: Path) -> None:
    """Groups of an Atropos environment: no prompt, conversations of its own."""
    talk = [{"role": "user", "content": "Your move."}, {"role": "assistant", "content": "e4"}]
    more = {"prompt": None, "source": None, "ground_truth": None, "reward_parts": {}, "text": "e4"}
    rows = [
        row("batch_1/0", index, reward, info={"messages": talk}, **more) for index, reward in enumerate((1.0, -1.0))
    ]
    write_samples(folder, 1, rows)


def asynchronous(folder: Path) -> None:
    """A run whose trainer and engines waited for one another."""
    more = {
        "async/lag": 2.0,
        "async/train_seconds": 3.0,
        "async/learner_idle": 0.2,
        "slots/waiting": 5,
        "wait/for_groups": 1.5,
    }
    write_lines(folder / "metrics.jsonl", [metrics_row(1) | more])


def hostile(folder: Path) -> None:
    """Completions that a page must not believe."""
    rows = [row("<b>bold</b>", index, 1.0, text=text, prompt=text) for index, text in enumerate(HOSTILE)]
    path = folder / "samples" / "step_1.jsonl"
    path.parent.mkdir(parents=True)
    content = "".join(json.dumps(one) + "\n" for one in rows).encode()
    path.write_bytes(
        content + json.dumps(row("b", 0, 0.0, text="BAD")).encode().replace(b"BAD", b"\xff\xfe") + b"\n{half"
    )


def all_runs(root: Path) -> Path:
    """Every run above, one that goes on, and a file of answers that `shoal eval` saved."""
    answers = [row(f"held_out/{number}", 0, float(number % 2)) for number in range(100)]
    write_lines(root / "answers.jsonl", answers)
    for make in (finished, aborted, sweep, rubric, tools, foreign, asynchronous, hostile):
        make(root / make.__name__)
    shutil.copytree(root / "finished", root / "running")
    (root / "running" / "summary.json").unlink()
    return root
