import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from made_groups import completion, group, step_groups

from shoal.config import ShoalConfig
from shoal.monitor.monitor import Monitor
from shoal.monitor.rows import read_rows, without_timing

Open = Callable[[], Monitor]


def do_steps(monitor: Monitor, first: int, last: int, *, evaluate_at: tuple[int, ...] = ()) -> None:
    for step in range(first, last + 1):
        with monitor.phase("rollout"):
            groups = step_groups(step)
        monitor.record(step, groups, {"loss/policy": step / 10})
        if step in evaluate_at:
            monitor.evaluation(step, {"accuracy": step / 10})


def values(run_dir: Path) -> list[dict[str, object]]:
    return [without_timing(row) for row in read_rows(run_dir)]


def test_a_row_holds_group_metrics_the_learners_metrics_and_the_phases(open_monitor: Open, tmp_path: Path):
    monitor = open_monitor()
    with monitor.phase("rollout"):
        time.sleep(0.02)
    with monitor.phase("train"):
        time.sleep(0.01)
    returned = monitor.record(1, step_groups(1), {"loss/policy": 0.25})
    monitor.close("finished")
    (row,) = read_rows(tmp_path / "run")
    assert row == {"step": 1, **returned}
    assert row["loss/policy"] == 0.25
    assert row["reward/mean"] == 0.75  # 1 0 1 1
    assert row["seconds/rollout"] >= 0.02
    assert row["seconds/train"] >= 0.01
    assert row["seconds/step"] >= row["seconds/rollout"] + row["seconds/train"]
    assert row["memory/rss_peak_gib"] > 0.01


def test_tokens_per_second_are_sampled_tokens_over_the_phases_seconds(open_monitor: Open):
    monitor = open_monitor()
    with monitor.phase("rollout"):
        time.sleep(0.01)
    row = monitor.record(1, step_groups(1), {})
    monitor.close("finished")
    # Lengths of step 1: 2 + 3 + 3 + 4.
    assert row["tokens_per_second/rollout"] == pytest.approx(12 / row["seconds/rollout"])
    assert row["tokens_per_second/step"] == pytest.approx(12 / row["seconds/step"])


def test_a_step_that_trains_on_its_own_weights_samples_is_not_stale(open_monitor: Open):
    monitor = open_monitor()
    # Version n is the weights after n steps: step 3 trains version 2.
    row = monitor.record(3, [group("a", [completion(1.0, version=2), completion(0.0, version=1)])], {})
    monitor.close("finished")
    assert (row["staleness/mean"], row["staleness/max"]) == (0.5, 1)


def test_a_phase_entered_twice_adds_up_and_starts_at_zero_in_the_next_step(open_monitor: Open):
    monitor = open_monitor()
    for _ in range(2):
        with monitor.phase("rollout"):
            time.sleep(0.01)
    assert monitor.record(1, step_groups(1), {})["seconds/rollout"] >= 0.02
    assert "seconds/rollout" not in monitor.record(2, step_groups(2), {})
    monitor.close("finished")


def test_a_phase_that_raises_is_counted_all_the_same(open_monitor: Open):
    monitor = open_monitor()
    with pytest.raises(KeyError), monitor.phase("reward"):
        raise KeyError
    assert "seconds/reward" in monitor.record(1, step_groups(1), {})
    monitor.close("finished")


def test_evaluations_and_checkpoints_are_not_part_of_a_steps_seconds(
    open_monitor: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = [0.0]
    monkeypatch.setattr("shoal.monitor.monitor.monotonic", lambda: now[0])
    monitor = open_monitor()
    for name, seconds in (("evaluate", 5.0), ("checkpoint", 7.0)):
        with monitor.phase(name):
            now[0] += seconds
    monitor.evaluation(0, {"accuracy": 0.5})
    with monitor.phase("rollout"):
        now[0] += 2.0
    monitor.record(1, step_groups(1), {})
    monitor.close("finished")
    evaluated, trained = read_rows(tmp_path / "run")
    assert evaluated["seconds/evaluate"] == 5.0
    assert "seconds/evaluate" not in trained
    assert trained["seconds/checkpoint"] == 7.0
    assert trained["seconds/step"] == 2.0


def test_an_evaluation_is_a_row_of_its_own(open_monitor: Open, tmp_path: Path):
    monitor = open_monitor()
    monitor.evaluation(0, {"accuracy": 0.5, "pass@2": 0.75})
    monitor.close("finished")
    assert values(tmp_path / "run") == [{"step": 0, "eval/accuracy": 0.5, "eval/pass@2": 0.75}]


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_a_resumed_run_ends_with_the_rows_of_an_uninterrupted_one(cfg: ShoalConfig, tmp_path: Path, lost: int):
    whole = Monitor(cfg, tmp_path / "whole", total_steps=6)
    whole.evaluation(0, {"accuracy": 0.0})
    do_steps(whole, 1, 6, evaluate_at=(2, 6))
    whole.close("finished")

    first = Monitor(cfg, tmp_path / "run", total_steps=6)
    first.evaluation(0, {"accuracy": 0.0})
    do_steps(first, 1, 2, evaluate_at=(2,))
    state = json.loads(json.dumps(first.state_dict()))
    do_steps(first, 3, 2 + lost)  # what the kill throws away; `first` is never closed
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rewa')

    second = Monitor(cfg, tmp_path / "run", total_steps=6)
    second.load_state_dict(state)
    do_steps(second, 3, 6, evaluate_at=(6,))
    second.close("finished")
    assert values(tmp_path / "run") == values(tmp_path / "whole")


def test_a_checkpoint_before_an_evaluation_of_the_same_step_has_the_evaluation_done_again(
    open_monitor: Open, tmp_path: Path
):
    first = open_monitor()
    do_steps(first, 1, 1)
    state = first.state_dict()
    first.evaluation(1, {"accuracy": 0.1})
    second = open_monitor()
    second.load_state_dict(state)
    second.evaluation(1, {"accuracy": 0.1})
    second.close("finished")
    assert [row["step"] for row in values(tmp_path / "run")] == [1, 1]
    assert values(tmp_path / "run")[1] == {"step": 1, "eval/accuracy": 0.1}


def test_a_start_without_a_checkpoint_drops_what_an_earlier_start_left(open_monitor: Open, tmp_path: Path):
    do_steps(open_monitor(), 1, 3)
    again = open_monitor()
    do_steps(again, 1, 2)
    again.close("finished")
    assert [row["step"] for row in values(tmp_path / "run")] == [1, 2]
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == ["step_1.jsonl", "step_2.jsonl"]
    assert again.resume_count == 1


def test_every_resume_counts_also_those_from_the_same_checkpoint(open_monitor: Open):
    first = open_monitor()
    do_steps(first, 1, 1)
    state = first.state_dict()
    assert first.resume_count == 0
    for resumes in (1, 2, 3):
        monitor = open_monitor()
        monitor.load_state_dict(state)
        assert monitor.resume_count == resumes


def test_seconds_total_goes_on_from_the_checkpoint(open_monitor: Open, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("shoal.monitor.monitor.monotonic", lambda: now[0])
    first = open_monitor()
    now[0] += 3.0
    state = first.state_dict()
    second = open_monitor()
    assert second.seconds_total == 0.0
    second.load_state_dict(state)
    now[0] += 1.0
    assert second.seconds_total == 4.0


def test_seconds_total_holds_what_came_before_the_monitor(cfg: ShoalConfig, tmp_path: Path):
    monitor = Monitor(cfg, tmp_path / "run", total_steps=1, started=time.monotonic() - 40)
    assert 40 <= monitor.seconds_total < 60


def test_rows_survive_sigkill_without_a_close(tmp_path: Path):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from made_groups import step_groups\n"
        "from shoal.config import ShoalConfig\n"
        "from shoal.monitor.monitor import Monitor\n"
        "cfg = ShoalConfig(); cfg.monitor.tensorboard = cfg.monitor.curve = False; cfg.monitor.progress = 'off'\n"
        "monitor = Monitor(cfg, Path(sys.argv[1]), total_steps=9)\n"
        "for step in (1, 2): monitor.record(step, step_groups(step), {})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False)
    assert child.returncode == -9
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2]


def test_samples_are_written_every_n_steps(cfg: ShoalConfig, open_monitor: Open, tmp_path: Path):
    cfg.monitor.samples_every = 2
    monitor = open_monitor()
    do_steps(monitor, 1, 5)
    monitor.close("finished")
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == ["step_2.jsonl", "step_4.jsonl"]


def test_no_samples_are_written_at_zero(cfg: ShoalConfig, open_monitor: Open, tmp_path: Path):
    cfg.monitor.samples_every = 0
    monitor = open_monitor()
    do_steps(monitor, 1, 1)
    monitor.close("finished")
    assert not (tmp_path / "run" / "samples").exists()


def test_a_resume_removes_the_samples_of_later_steps(open_monitor: Open, tmp_path: Path):
    first = open_monitor()
    do_steps(first, 1, 2)
    state = first.state_dict()
    do_steps(first, 3, 4)
    second = open_monitor()
    second.load_state_dict(state)
    do_steps(second, 3, 3)
    second.close("stopped")
    names = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert names == ["step_1.jsonl", "step_2.jsonl", "step_3.jsonl"]


def test_samples_hold_everything_about_a_completion(open_monitor: Open, tmp_path: Path):
    monitor = open_monitor()
    one = completion(0.5, 3, parts={"answer": None, "format": 0.5}, advantage=-0.25, version=7, penalties={"kl": 0.1})
    monitor.record(1, [group("p1", [one, completion(None, 1)])], {})
    monitor.close("finished")
    first, second = map(json.loads, (tmp_path / "run" / "samples" / "step_1.jsonl").read_text().splitlines())
    assert first == {
        "group": "p1",
        "epoch": 0,
        "index": 0,
        "source": "story",
        "prompt": "prompt [1, 2]",
        "text": "444",
        "ground_truth": None,
        "reward": 0.5,
        "reward_parts": {"answer": None, "format": 0.5},
        "penalties": {"kl": 0.1},
        "advantage": -0.25,
        "stop_reason": "stop",
        "length": 3,
        "versions": [[0, 7]],
    }
    assert (second["index"], second["reward"]) == (1, None)


def test_a_step_without_a_signal_says_so_in_words(
    cfg: ShoalConfig, open_monitor: Open, capsys: pytest.CaptureFixture[str]
):
    cfg.monitor.progress = "lines"
    monitor = open_monitor()
    monitor.record(1, [group("a", [completion(0.0), completion(0.0)])], {})
    monitor.close("finished")
    assert "step 1: every group failed: nothing to learn" in capsys.readouterr().err


def test_closing_twice_is_harmless_and_closing_an_unused_monitor_writes_nothing(open_monitor: Open, tmp_path: Path):
    monitor = open_monitor()
    monitor.close("failed")
    monitor.close("failed")
    assert list((tmp_path / "run").iterdir()) == []
