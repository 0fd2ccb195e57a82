import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from made_groups import step_groups

from shoal.config import ShoalConfig
from shoal.config.nodes.run import MemoryProfileConfig
from shoal.monitor.memory import MemoryProfile, step_memory, summary_markdown
from shoal.monitor.monitor import Monitor

ALLOCATE = "import sys; held = b'x' * (int(sys.argv[2]) << 20); print('ready', flush=True); sys.stdin.read()"


@contextmanager
def child_holding(mib: int, name: str) -> Iterator[int]:
    """A child process that holds this much touched memory until the block ends; gives its pid."""
    command = [sys.executable, "-c", ALLOCATE, name, str(mib)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child.pid
        child.communicate()


def samples(run_dir: Path) -> list[dict[str, object]]:
    lines = (run_dir / "memory_profile" / "memory_samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_child_that_holds_100_mib_is_seen_and_named(tmp_path: Path):
    profile = MemoryProfile(MemoryProfileConfig(interval=0.02), tmp_path)
    with child_holding(100, "the-large-child") as pid:
        before = profile.samples
        while profile.samples < before + 2:  # two whole samples of the thread while the child is there
            time.sleep(0.01)
    summary = profile.stop()
    (child,) = [row for row in summary["top_children"] if row["pid"] == pid]
    assert 100 <= child["mib"] < 150  # the interpreter itself takes 10 MiB or so
    assert summary["peaks"]["children"]["mib"] >= child["mib"]
    assert summary["peaks"]["total"]["mib"] >= child["mib"] + 20
    assert "-c" in child["name"]
    written = json.loads((tmp_path / "memory_profile" / "memory_summary.json").read_text())
    assert written["top_children"] == summary["top_children"]
    markdown = (tmp_path / "memory_profile" / "memory_summary.md").read_text()
    assert "main process" in markdown
    assert f"| {pid} | {child['mib']:.0f} |" in markdown
    left = samples(tmp_path)[-1]["top_children"]
    assert isinstance(left, list)
    assert pid not in [row["pid"] for row in left]


def test_the_largest_children_come_first_and_only_so_many_are_listed(tmp_path: Path):
    profile = MemoryProfile(MemoryProfileConfig(interval=60, top_n_children=2), tmp_path)
    # Larger than any child that another test of this process may have left behind (a tracker's service).
    with child_holding(10, "a"), child_holding(250, "b") as largest, child_holding(200, "c") as second:
        profile.mark("step_1_start")
    listed = samples(tmp_path)[0]["top_children"]
    assert isinstance(listed, list)
    assert [child["pid"] for child in listed] == [largest, second]
    assert [child["pid"] for child in profile.stop()["top_children"]] == [largest, second]


@pytest.fixture
def profiled(cfg: ShoalConfig) -> ShoalConfig:
    cfg.memory_profile.enabled = True
    cfg.memory_profile.interval = 60  # marks only
    return cfg


def run_steps(open_monitor: Callable[[], Monitor], count: int) -> None:
    monitor = open_monitor()
    for step in range(1, count + 1):
        for name in ("rollout", "reward", "train"):
            with monitor.phase(name):
                pass
        monitor.record(step, step_groups(step), {})
    monitor.close("finished")


def test_samples_are_marked_by_step_and_phase(
    profiled: ShoalConfig, open_monitor: Callable[[], Monitor], tmp_path: Path
):
    run_steps(open_monitor, 2)
    with (tmp_path / "run" / "memory_profile" / "memory_samples.csv").open() as file:
        rows = [(row["step"], row["phase"], row["mark"]) for row in csv.DictReader(file)]
    assert rows == [
        ("1", "start", "step_1_start"),
        ("1", "rollout", "after_rollout"),
        ("1", "reward", "after_rewards"),
        ("1", "train", "after_train"),
        ("2", "between phases", "step_2_start"),
        ("2", "rollout", "after_rollout"),
        ("2", "reward", "after_rewards"),
        ("2", "train", "after_train"),
        ("2", "between phases", "end"),
    ]


def test_marks_can_be_rarer_than_steps_or_left_out(
    profiled: ShoalConfig, open_monitor: Callable[[], Monitor], tmp_path: Path
):
    profiled.memory_profile.step_interval = 2
    run_steps(open_monitor, 4)
    marked = {sample["step"] for sample in samples(tmp_path / "run") if sample["mark"] != "end"}
    assert marked == {1, 3}
    profiled.memory_profile.mark_steps = False
    before = len(samples(tmp_path / "run"))
    run_steps(open_monitor, 2)
    assert [sample["mark"] for sample in samples(tmp_path / "run")[before:]] == ["end"]


def test_the_summary_has_the_highest_total_of_each_phase(tmp_path: Path):
    profile = MemoryProfile(MemoryProfileConfig(interval=60), tmp_path)
    profile.step = 1
    for name, mib in (("rollout", 200), ("train", 50), ("rollout", 10)):
        profile.phase = name
        with child_holding(mib, name):
            profile.mark(f"after_{name}")
    highest = profile.stop()["peak_total_by_phase_mib"]
    assert highest["rollout"] > highest["train"] + 100
    assert profile.peaks["total"]["phase"] == "rollout"


def test_the_interval_decides_how_often_the_thread_samples(tmp_path: Path):
    started = time.monotonic()
    rare, often = (
        MemoryProfile(MemoryProfileConfig(interval=interval), tmp_path / str(interval)) for interval in (0.5, 0.02)
    )
    while often.samples < 20 or rare.samples < 1:
        time.sleep(0.01)
    counts = [often.stop()["samples"], rare.stop()["samples"]]
    assert counts[1] <= (time.monotonic() - started) / 0.5 + 1  # and one at the end
    assert counts[0] > 2 * counts[1]


def test_tracemalloc_names_the_line_that_allocates(tmp_path: Path):
    profile = MemoryProfile(MemoryProfileConfig(interval=60, tracemalloc=True), tmp_path)
    held = bytearray(20 << 20)
    summary = profile.stop()
    top = summary["tracemalloc_top_lines"][0]
    assert (Path(top["file"]).name, round(top["mib"])) == (Path(__file__).name, 20)
    assert samples(tmp_path)[-1]["traced_mib"] >= 20
    assert "Python allocations" in (tmp_path / "memory_profile" / "memory_summary.md").read_text()
    assert len(held)


def test_without_tracemalloc_there_are_no_lines(tmp_path: Path):
    summary = MemoryProfile(MemoryProfileConfig(interval=60), tmp_path).stop()
    assert summary["tracemalloc_top_lines"] == []
    assert "traced_mib" not in samples(tmp_path)[0]


def test_a_second_start_appends_to_the_samples_with_one_header(tmp_path: Path):
    for _ in range(2):
        MemoryProfile(MemoryProfileConfig(interval=60), tmp_path).stop()
    lines = (tmp_path / "memory_profile" / "memory_samples.csv").read_text().splitlines()
    assert len(lines) == 3
    assert sum(line.startswith("time,") for line in lines) == 1


def test_no_profile_is_written_when_it_is_off(open_monitor: Callable[[], Monitor], tmp_path: Path):
    run_steps(open_monitor, 1)
    assert not (tmp_path / "run" / "memory_profile").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA the metric is another one")
def test_without_cuda_a_steps_memory_is_the_processs_peak_and_never_falls():
    first = step_memory()["memory/rss_peak_gib"]
    held = bytearray(b"x" * (64 << 20))
    second = step_memory()["memory/rss_peak_gib"]
    del held
    assert 0.01 < first <= second < 64
    assert step_memory()["memory/rss_peak_gib"] >= second


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_a_steps_memory_is_the_steps_own_peak():
    held = torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")
    del held
    assert step_memory()["memory/cuda_peak_gib"] >= 1 / 16
    assert step_memory()["memory/cuda_peak_gib"] < 1 / 16, "the peak of the step before is not this step's"


def test_a_name_with_line_breaks_stays_one_row_of_the_table():
    summary = {
        "samples": 1,
        "seconds": 1.0,
        "peaks": {},
        "top_consumers": [{"name": "python -c import x\nimport y | `z`", "pid": 7, "mib": 3.0}],
        "peak_total_by_phase_mib": {},
        "tracemalloc_top_lines": [],
    }
    assert "| `python -c import x import y \\| 'z'` | 7 | 3 |" in summary_markdown(summary).splitlines()
