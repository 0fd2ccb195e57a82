import json
from dataclasses import asdict
from pathlib import Path

import pytest
from made_groups import completion, group

from shoal.config import ShoalConfig
from shoal.monitor.rows import to_line
from shoal.monitor.summary import closing_text, write_summary


def rows_of_a_run() -> list[dict[str, float]]:
    """20 steps of 8 completions with rewards .01, .02 ... .20; evaluations at 0, 10 (the best) and 20."""
    rows: list[dict[str, float]] = [{"step": 0, "eval/accuracy": 0.3, "seconds/evaluate": 2.0}]
    for step in range(1, 21):
        row = {"step": step, "count/completions": 8, "count/sampled_tokens": 80, "reward/mean": step / 100}
        rows.append({**row, "seconds/step": 0.5, "seconds/rollout": 0.3, "seconds/total": 100.0 + step})
        if step in (10, 20):
            rows.append({"step": step, "eval/accuracy": 0.8 if step == 10 else 0.7, "seconds/evaluate": 1.0})
    return rows


def summary_of(run_dir: Path, rows: list[dict[str, float]], status: str = "finished") -> dict[str, object]:
    (run_dir / "metrics.jsonl").write_text("".join(map(to_line, rows)))
    return write_summary(run_dir, config=asdict(ShoalConfig()), seconds_total=33.0, resume_count=2, status=status)


def test_the_summary_holds_the_run_in_numbers(tmp_path: Path):
    summary = summary_of(tmp_path, rows_of_a_run())
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    config = summary.pop("config")
    assert config["run"]["prompts_per_step"] == 32
    assert summary == {
        "status": "finished",
        "accuracy_before": 0.3,
        "accuracy_after": 0.7,
        "accuracy_best": 0.8,
        "best_step": 10,
        "best_by": "accuracy",
        "eval_reward_before": None,
        "eval_reward_after": None,
        # Tenths of 20 steps: the means of .01, .02 and of .19, .20.
        "reward_first": pytest.approx(0.015),
        "reward_last": pytest.approx(0.195),
        "steps": 20,
        "completions": 160,
        "sampled_tokens": 1600,
        "seconds_rl": pytest.approx(10.0),
        "seconds_total": 33.0,
        "seconds_by_phase": {"evaluate": pytest.approx(4.0), "rollout": pytest.approx(6.0)},
        "resume_count": 2,
    }


def test_a_run_that_stopped_before_its_last_evaluation_has_no_accuracy_after(tmp_path: Path):
    summary = summary_of(tmp_path, rows_of_a_run()[:8], status="stopped")
    assert (summary["steps"], summary["accuracy_before"], summary["accuracy_after"]) == (7, 0.3, None)


def test_an_evaluation_before_any_step_is_not_also_the_one_after(tmp_path: Path):
    summary = summary_of(tmp_path, rows_of_a_run()[:1])
    assert (summary["accuracy_before"], summary["accuracy_after"], summary["steps"]) == (0.3, None, 0)


def test_a_run_without_rows_has_a_summary(tmp_path: Path):
    summary = summary_of(tmp_path, [])
    assert (summary["steps"], summary["accuracy_best"], summary["reward_last"]) == (0, None, None)
    assert "Nothing was scored" in closing_text(summary, tmp_path)


def test_the_closing_text_says_what_changed_where_things_are_and_what_is_next(tmp_path: Path):
    summary = summary_of(tmp_path, rows_of_a_run())
    (tmp_path / "samples").mkdir()
    groups = [group(str(index), [completion(float(index % 2), index + 1)]) for index in range(9)]
    text = closing_text(summary, tmp_path, groups, lambda ids: "Dee has\n16 cats", next_steps=["shoal eval model=x"])
    assert "Held-out accuracy 0.300 -> 0.700 (20 steps, 10s of RL, 33s in all)" in text
    # The first completions of groups 0, 3 and 6, which are 1, 4 and 7 tokens long.
    assert text.count("Dee has 16 cats\n") == 3
    for line in ("-> 4   [wrong]", "-> 4444   [right]", "-> 4444444   [wrong]"):
        assert line in text
    assert f"Everything is in {tmp_path}:" in text
    assert "metrics.jsonl" in text
    assert "samples" in text
    assert "curve.png" not in text, "a place that does not exist is not named"
    assert text.rstrip().endswith("shoal eval model=x")


def test_without_evaluations_the_closing_text_speaks_of_the_reward(tmp_path: Path):
    rows = [row for row in rows_of_a_run() if "eval/accuracy" not in row]
    text = closing_text(summary_of(tmp_path, rows), tmp_path)
    assert "Training reward 0.015 -> 0.195 (20 steps" in text


def test_an_unscored_sample_and_a_long_one_are_shown_as_such(tmp_path: Path):
    groups = [group("a", [completion(None, 500)])]
    text = closing_text(summary_of(tmp_path, []), tmp_path, groups, lambda ids: "x")
    assert "[unscored]" in text
    assert "4" * 159 + "…" in text
    assert "4" * 160 not in text


def test_a_judged_run_is_summed_up_by_its_mean_reward(tmp_path: Path):
    rows = rows_of_a_run()
    for row in rows:
        if "eval/accuracy" in row:
            row["eval/reward"] = row["step"] / 100
    (tmp_path / "metrics.jsonl").write_text("".join(map(to_line, rows)))
    summary = write_summary(
        tmp_path, config={}, seconds_total=33.0, resume_count=0, status="finished", best_by="reward"
    )
    assert (summary["best_step"], summary["accuracy_best"]) == (20, 0.7)
    text = closing_text(summary, tmp_path, [], lambda ids: "", next_steps=[])
    assert text.strip().startswith("Held-out reward 0.000 -> 0.200")


def test_the_closing_samples_show_the_question_and_not_the_system_prompt(tmp_path: Path):
    asked = group("a", [completion(1.0)])
    asked.prompt.messages = [
        {"role": "system", "content": "Think first. " * 50},
        {"role": "user", "content": "How many cats?"},
    ]
    text = closing_text(summary_of(tmp_path, []), tmp_path, [asked], lambda ids: "Think first. " * 50)
    assert "  How many cats?\n" in text and "Think first" not in text
