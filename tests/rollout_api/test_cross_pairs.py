"""Real environments, real servers, real trainers: each pair of Shoal's and Atropos's trains together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from atropos_python import atropos_python

from shoal import load_config, train
from shoal.monitor.rows import read_rows
from shoal.network import free_port
from shoal.tasks.story import story_rows, story_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 10
QUIET = (
    "runtime.target=cpu",
    "runtime.threads=1",
    "evaluation.at_start=false",
    "evaluation.every=0",
    "checkpoint.every=0",
    "checkpoint.keep_best=false",
    "checkpoint.save_final=false",
    "monitor.tensorboard=false",
    "monitor.curve=false",
    "monitor.progress=lines",
    "source.timeout=300",
    "environment.timeout=300",
)
SMALL = (f"run.steps={STEPS}", "run.prompts_per_step=4", "run.group_size=4", "evaluation.at_end=false")


@contextmanager
def process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, ended with the block."""
    with log.open("wb") as output:
        started = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, cwd=log.parent)
    try:
        yield started
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait(30)


def wait_until_served(url: str, started: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + 120
    while True:
        assert started.poll() is None, log.read_text()
        assert time.monotonic() < ends, "the server does not come up"
        try:
            httpx.get(url, trust_env=False).raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.1)


@contextmanager
def run_api(folder: Path) -> Iterator[str]:
    """Atropos's own server; its address."""
    url, log = f"http://127.0.0.1:{(port := free_port('127.0.0.1'))}", folder / "run-api.log"
    command = [atropos_python(), "-m", "uvicorn", "atroposlib.api:app", "--port", str(port)]
    with process(command, log) as started:
        wait_until_served(url, started, log)
        yield url


@contextmanager
def shoal_api(folder: Path) -> Iterator[str]:
    """Shoal's own server; its address."""
    url, log = f"http://127.0.0.1:{(port := free_port('127.0.0.1'))}", folder / "api.log"
    store = str(folder / "groups.sqlite")
    command = [sys.executable, "-m", "shoal.cli", "serve", "api", "--port", str(port), "--store", store]
    with process(command, log) as started:
        wait_until_served(url, started, log)
        yield url


def shoal_env(*words: str) -> list[str]:
    return [sys.executable, "-m", "shoal.cli", "env", *words]


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of training steps."""
    return [row for row in read_rows(folder) if "count/completions" in row]


def assert_sampled_with_the_learners_weights(rows: Sequence[dict[str, Any]]) -> None:
    """In most steps every token is of the weights before the step. A group that was under way while the trainer made a
    step has some of the weights before that, and their log-probs differ by what the step did."""
    fresh = [row for row in rows if row["staleness/max"] == 0]
    assert rows[0] in fresh and len(fresh) > len(rows) / 2
    assert all(row.get("sampler/abs_difference", 0.0) < 1e-4 for row in fresh)
    assert all(row.get("sampler/abs_difference", 0.0) < 0.1 for row in rows)


def test_a_shoal_environment_and_a_shoal_trainer_through_atroposs_own_server(tmp_path: Path):
    engine_port = free_port("127.0.0.1")
    with run_api(tmp_path) as url:
        own = ["source=rollout_api", f"source.url={url}", f"engine.serve_port={engine_port}", *QUIET, *SMALL]
        cfg = load_config("story", own)
        engine = f"http://127.0.0.1:{engine_port}"
        words = shoal_env("story", "--api", url, "--engine", engine, "run.group_size=4", "run.prompts_per_step=4")
        with process(words, tmp_path / "environment.log") as environment:
            train(cfg, tmp_path / "run")
            assert environment.wait(60) == 0, "it ends with the trainer's last step"
    rows = steps_of(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    # The log-probs that went over two wires are those of the weights that the learner trains: token in, token out.
    assert_sampled_with_the_learners_weights(rows)
    assert all(row["staleness/max"] <= 1 for row in rows)
    assert all(row["rollout_api/unusable"] == row["rollout_api/recomputed"] == 0 for row in rows)


def test_an_environment_of_atroposs_and_a_shoal_trainer_through_shoals_server(tmp_path: Path):
    engine_port, tokenizer = free_port("127.0.0.1"), story_tokenizer()
    rows = [(row["question"], f"<answer>{row['answer']}</answer>") for row in story_rows(evaluation=False)[:50]]
    ids = [
        {"prompt_ids": tokenizer(asked)["input_ids"], "answer_ids": tokenizer(told)["input_ids"]}
        for asked, told in rows
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, ids)))
    own = ["source=rollout_api", f"engine.serve_port={engine_port}", *QUIET, *SMALL]
    command = [atropos_python(), str(Path(__file__).with_name("atropos_env.py")), "--max-tokens", "24"]
    command += ["--generate", f"http://127.0.0.1:{engine_port}", "--prompts", str(tmp_path / "prompts.jsonl")]
    with shoal_api(tmp_path) as url:
        cfg = load_config("story", [*own, f"source.url={url}"])
        with process([*command, "--api", url, "--steps", str(STEPS)], tmp_path / "environment.log"):
            train(cfg, tmp_path / "run")
    rows_of_steps = steps_of(tmp_path / "run")
    assert [row["step"] for row in rows_of_steps] == list(range(1, STEPS + 1))
    # A stock environment tells no version: the server stamps its groups with the trainer's at their arrival.
    assert all(row["staleness/max"] <= 3 for row in rows_of_steps)
    assert all(row["rollout_api/unusable"] == row["rollout_api/recomputed"] == 0 for row in rows_of_steps)
    # It keeps three batches ahead by default, so that the weights have moved since: a gap, but no wrong tokens.
    assert rows_of_steps[0]["sampler/abs_difference"] < 1e-4
    assert all(row.get("sampler/abs_difference", 0.0) < 0.2 for row in rows_of_steps)


def test_one_command_starts_all_four_and_learns_the_default_task(tmp_path: Path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "shoal.cli", "train", "--config-name", "story_api", *QUIET]
    command += ["source.url=http://127.0.0.1:0", "engine.serve_port=0", f"run.root={tmp_path}", "run.name=run"]
    command += ["run.steps=40", "run.prompts_per_step=24", "optimizer.lr=4e-4", "evaluation.prompts=200"]
    with process(command, tmp_path / "trainer.log") as trainer:
        assert trainer.wait(600) == 0, (tmp_path / "trainer.log").read_text()[-3000:]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["accuracy_after"] >= 0.80
    rows = steps_of(folder)
    assert len(rows) == 40
    assert_sampled_with_the_learners_weights(rows)
    assert not left_over(folder), "server and environment end with the run"


def left_over(folder: Path) -> list[str]:
    """Processes that were started with a path in the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(folder).encode() in words:
            found.append(words.decode(errors="replace"))
    return found


def wait_for(happened: Callable[[], bool], seconds: float = 120.0) -> None:
    ends = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < ends, "it does not happen"
        time.sleep(0.05)


def test_what_a_run_started_ends_with_it_even_by_sigkill(tmp_path: Path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "shoal.cli", "train", "--config-name", "story_api", *QUIET, *SMALL]
    command += ["source.url=http://127.0.0.1:0", "engine.serve_port=0", f"run.root={tmp_path}", "run.name=run"]
    command += ["run.steps=10000"]
    with process(command, tmp_path / "trainer.log") as trainer:
        wait_for(lambda: len(steps_of(folder)) >= 2 if (folder / "metrics.jsonl").exists() else False)
        assert len(left_over(folder)) == 2
        os.kill(trainer.pid, signal.SIGKILL)
        trainer.wait(30)
        wait_for(lambda: not left_over(folder))


VLLM = {
    "broadcast": [],
    "shared": [],
    "restart": ["weight_sync.every=5"],
    "lora": ["model.train=lora", "optimizer.lr=2e-3"],
}


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("kind", VLLM)
def test_a_shoal_environment_and_server_with_vllm_and_each_weight_sync(kind: str, tmp_path: Path):
    cfg = load_config(
        "story_api",
        [
            "engine=vllm_server",
            f"weight_sync={kind}",
            "engine.vllm.port=0",
            "source.url=http://127.0.0.1:0",
            *QUIET,
            *SMALL,
            *VLLM[kind],
        ],
    )
    train(cfg, tmp_path / "run")
    rows = steps_of(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    lag = cfg.weight_sync.every
    assert all(0 <= row["staleness/max"] <= 2 + lag for row in rows)
    assert not left_over(tmp_path)
