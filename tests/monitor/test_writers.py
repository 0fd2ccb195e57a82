import json
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_groups import step_groups
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shoal.config import ShoalConfig
from shoal.errors import ConfigError
from shoal.monitor.monitor import Monitor

Open = Callable[[], Monitor]


def do_steps(monitor: Monitor, first: int, last: int, loss: float = 0.0) -> None:
    for step in range(first, last + 1):
        monitor.record(step, step_groups(step), {"loss/policy": loss})


def scalars(run_dir: Path, name: str) -> dict[int, float]:
    """Step to value, as TensorBoard reads it. Fails on a step that has two values."""
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload().Scalars(name)
    assert len({event.step for event in events}) == len(events)
    return {event.step: event.value for event in events}


def test_tensorboard_reads_back_what_was_recorded(cfg: ShoalConfig, open_monitor: Open, tmp_path: Path):
    cfg.monitor.tensorboard = True
    monitor = open_monitor()
    monitor.evaluation(0, {"accuracy": 0.25})
    do_steps(monitor, 1, 3)
    monitor.close("finished")
    # Rewards of step s: 1, 0, s odd, 1.
    assert scalars(tmp_path / "run", "reward/mean") == {1: 0.75, 2: 0.5, 3: 0.75}
    assert scalars(tmp_path / "run", "eval/accuracy") == {0: 0.25}


def test_tensorboard_drops_the_steps_that_a_resume_repeats(cfg: ShoalConfig, open_monitor: Open, tmp_path: Path):
    cfg.monitor.tensorboard = True
    first = open_monitor()
    do_steps(first, 1, 2, loss=1.0)
    state = first.state_dict()
    do_steps(first, 3, 5, loss=1.0)
    first.close("failed")
    second = open_monitor()
    second.load_state_dict(state)
    do_steps(second, 3, 4, loss=2.0)
    second.close("finished")
    assert scalars(tmp_path / "run", "loss/policy") == {1: 1.0, 2: 1.0, 3: 2.0, 4: 2.0}


def test_a_checkpoint_makes_tensorboards_events_durable(cfg: ShoalConfig, open_monitor: Open, tmp_path: Path):
    cfg.monitor.tensorboard = True
    monitor = open_monitor()
    do_steps(monitor, 1, 2)
    monitor.state_dict()
    # The last value of the last row, read while the writer is still open.
    assert set(scalars(tmp_path / "run", "seconds/total")) == {1, 2}
    monitor.close("stopped")


def test_no_tensorboard_folder_appears_when_it_is_off(open_monitor: Open, tmp_path: Path):
    monitor = open_monitor()
    do_steps(monitor, 1, 1)
    monitor.close("finished")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.jsonl", "samples"]


def test_a_missing_wandb_package_is_one_line_at_the_start(
    cfg: ShoalConfig, open_monitor: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    cfg.monitor.wandb.enabled = True
    # A Python path without site-packages, and the folder that W&B leaves behind in the working directory.
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError) as error:
        open_monitor()
    assert "pip install 'shoal-rl[wandb]'" in str(error.value)
    assert "\n" not in str(error.value)


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of a W&B transaction log: a 7-byte file header, then LevelDB's log format, that is blocks of 32 KiB
    of fragments with a header of checksum (4 bytes), length (2) and type (1 whole, 2 first, 3 middle, 4 last)."""
    position, parts = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
        length, kind = struct.unpack_from("<HB", content, position + 4)
        if position + 7 + length > len(content):
            return  # still being written
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def finished_log(path: Path) -> list[Any]:
    """The records up to the run's exit. W&B's service writes the last of them after `finish` has returned."""
    from wandb.proto.wandb_internal_pb2 import Record  # noqa: PLC0415 - an optional package

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        records = [Record.FromString(data) for data in leveldb_records(path.read_bytes())]
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.05)
    return pytest.fail(f"{path} has no exit record")


@pytest.mark.extras
def test_wandb_offline_keeps_one_run_over_a_resume(cfg: ShoalConfig, open_monitor: Open, tmp_path: Path):
    pytest.importorskip("wandb")
    options = cfg.monitor.wandb
    options.enabled, options.mode = True, "offline"
    options.project, options.group, options.name = "made-project", "made-group", "made-name"
    first = open_monitor()
    do_steps(first, 1, 2)
    state = json.loads(json.dumps(first.state_dict()))
    first.close("stopped")
    time.sleep(1.1)  # W&B names the folder of an offline start by its second
    second = open_monitor()
    second.load_state_dict(state)
    do_steps(second, 3, 3)
    second.close("finished")

    runs: list[tuple[str, str, str, str]] = []
    steps: list[int] = []
    for path in sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")):
        for record in finished_log(path):
            if record.HasField("run"):
                run = record.run
                runs.append((run.run_id, run.project, run.run_group, run.display_name))
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if "reward/mean" in items:
                steps.append(int(items["step"]))
    assert set(runs) == {(state["run_id"], "made-project", "made-group", "made-name")}
    assert steps == [1, 2, 3]
