"""Asynchronous runs with real engines: the bound holds, and every token is of the weights that it says it is of."""

from __future__ import annotations

from pathlib import Path

import pytest
from async_runs import prove_versions

SERVER = ["engine=vllm_server", "engine.vllm.cache_gib=0.25"]
# One completion after another, so that some are under way at every update.
MIXED = ["weight_sync.in_flight=keep", "engine.max_batch=1"]
LORA = ["model.train=lora", "model.lora.r=4"]
KINDS = {
    "broadcast, keep, two servers": ["weight_sync=broadcast", *MIXED, "engine.vllm.servers=2"],
    "broadcast, drain": ["weight_sync=broadcast", "weight_sync.in_flight=drain"],
    "broadcast, abort": ["weight_sync=broadcast", "weight_sync.in_flight=abort"],
    "shared, keep": ["weight_sync=shared", *MIXED],
    "lora, drain": ["weight_sync=lora", *LORA],
    "restart, drain": ["weight_sync=restart", "run.steps=3"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_bound_holds_and_every_tokens_log_prob_is_that_of_its_version(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm", reason="needs vLLM")
    prove_versions([*SERVER, *KINDS[kind]], tmp_path / "run", monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "kind",
    [
        ["engine.processes=1", "weight_sync=shared"],
        ["engine.processes=2", "weight_sync=broadcast"],
        ["engine.processes=2", "weight_sync=broadcast", *MIXED],
        ["engine.processes=1", "weight_sync=shared", *MIXED],
    ],
    ids=" ".join,
)
def test_the_same_with_the_built_in_engine_in_processes_of_its_own(
    kind: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove_versions(kind, tmp_path / "run", monkeypatch)
