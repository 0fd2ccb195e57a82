"""A run over two Ray nodes that goes on without one of them."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import pytest

from shoal import load_config, train
from shoal.monitor.rows import read_rows
from shoal.monitor.status import read_status

pytest.importorskip("ray", reason="needs Ray")
pytest.importorskip("deepspeed", reason="needs DeepSpeed")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

from cluster.test_cluster_storm import OVERRIDES, SEED, ClusterStorm, nodes  # noqa: E402, F401
from cluster.two_nodes import ADDRESSES, TwoNodes  # noqa: E402


def test_a_run_goes_on_without_the_ranks_and_engines_of_a_node_that_is_lost(
    tmp_path: Path,
    nodes: TwoNodes,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps = 8
    cfg = load_config("story", [*OVERRIDES, f"run.root={tmp_path}", f"run.steps={steps}", "cluster.lost_node=without"])
    storm = ClusterStorm(tmp_path / "run", nodes, SEED, 0)

    def lose_a_node() -> None:
        while storm.last_step() < 4 and not storm.over.wait(0.02):
            pass
        nodes.kill(1)

    losing = Thread(target=lose_a_node)
    losing.start()
    try:
        summary = train(cfg, storm.folder)
    finally:
        storm.over.set()
        losing.join()
        nodes.start_again(1)
    assert summary["status"] == "finished"
    assert [row["step"] for row in read_rows(storm.folder)] == list(range(1, steps + 1))
    assert "with 1 of 2 ranks and 1 of 2 engines" in caplog.text
    assert "is left out (the run goes on without its node)" in caplog.text
    found = read_status(storm.folder)
    assert found is not None
    assert {node for node, part, _ in found.parts if node} == {ADDRESSES[0]}
