"""Runs with servers of their own: one that is killed, and one that scores for the reference."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any

import psutil
import pytest

from shoal.api import train
from shoal.config import load_config
from shoal.engines.vllm.server_engine import VllmServerEngine
from shoal.training.recording import GroupRecording

pytest.importorskip("vllm", reason="needs vLLM")
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS, PROMPTS, GROUP = 4, 8, 4
SERVER = ["engine=vllm_server", "weight_sync=broadcast", "weight_sync.self_check_every=1", "engine.vllm.cache_gib=0.25"]
SMALL = [
    f"run.steps={STEPS}",
    f"run.prompts_per_step={PROMPTS}",
    f"run.group_size={GROUP}",
    "run.preflight=false",
    "run.record_groups=true",
    "runtime.target=cpu",
    "runtime.mixed_precision=none",
    "evaluation.at_start=false",
    "evaluation.at_end=false",
    "checkpoint.every=0",
    "checkpoint.save_final=false",
    "monitor.progress=off",
    "monitor.tensorboard=false",
]


def test_a_run_goes_on_when_its_server_is_killed_in_a_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    submit = VllmServerEngine.submit
    rollouts = 0

    def submit_and_kill(self: VllmServerEngine, requests: Any) -> None:
        nonlocal rollouts
        submit(self, requests)
        if len(requests) == PROMPTS * GROUP:
            rollouts += 1
            process = self.servers[0].process
            assert process is not None and process.process is not None
            groups.append(process.process.pid)
            if rollouts == 2:
                Thread(target=kill_soon, args=(groups[-1],)).start()

    monkeypatch.setattr(VllmServerEngine, "submit", submit_and_kill)
    train(load_config("story", [*SMALL, *SERVER]), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "engine/restarts" in row]
    assert [row["engine/restarts"] for row in steps].count(1.0) == 1
    assert len(set(groups)) == 2
    recording = GroupRecording(tmp_path / "run")
    names = []
    for step in range(1, STEPS + 1):
        recorded = recording.read(step)
        assert recorded is not None
        assert [len(group.completions) for group in recorded] == [GROUP] * PROMPTS
        # Sampled with the weights of that step, also what was asked again after the restart.
        assert {c.versions[0][1] for group in recorded for c in group.completions} == {step - 1}
        names += [(group.id, group.epoch) for group in recorded]
    assert len(set(names)) == STEPS * PROMPTS
    assert not [process for process in psutil.process_iter() if group_of(process) in groups]


def test_a_reference_behind_a_server_gives_the_kl_of_the_one_in_the_process(tmp_path: Path) -> None:
    changes = [*SMALL, "algorithm.kl_coef=0.1", "run.steps=2", "optimizer.lr=1e-3", "optimizer.warmup_steps=0"]
    found = {}
    for kind in ("model", "vllm_launch"):
        train(load_config("story", [*changes, f"reference.kind={kind}"]), tmp_path / kind)
        rows = [json.loads(line) for line in (tmp_path / kind / "metrics.jsonl").read_text().splitlines()]
        found[kind] = [row["kl_ref/k3"] for row in rows if "kl_ref/k3" in row]
    assert len(found["model"]) == 2
    assert found["model"][1] > 1e-6
    assert found["vllm_launch"] == pytest.approx(found["model"], abs=1e-6, rel=1e-2)


def kill_soon(group: int) -> None:
    sleep(0.1)  # in the middle of a rollout, which takes longer
    os.kill(group, signal.SIGKILL)


def group_of(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid) if process.status() != psutil.STATUS_ZOMBIE else None
    except (ProcessLookupError, psutil.NoSuchProcess):
        return None
