"""Ten steps on the groups that a run has recorded: the same numbers and weights from the local learner and from ranks
on two Ray nodes, at every ZeRO stage and over a resume on other ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rollout.calling_model import PROMPTS, save_calling_model

from shoal import load_config, train
from shoal.algorithms.batch import make_batch
from shoal.config import ShoalConfig
from shoal.learners.deepspeed.saved import read_parts
from shoal.learners.local import LocalLearner
from shoal.models.info import read_info
from shoal.runtime import resolve_runtime
from shoal.training.policy import open_policy, story_model
from shoal.training.recording import GroupRecording
from shoal.types import Batch

pytest.importorskip("ray", reason="needs Ray")
pytest.importorskip("deepspeed", reason="needs DeepSpeed")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

from cluster.two_nodes import ADDRESSES, two_ray_nodes  # noqa: E402

from shoal.cluster.cluster import Cluster  # noqa: E402
from shoal.cluster.deepspeed_learner import DeepSpeedLearner  # noqa: E402
from shoal.cluster.ray_nodes import RayNodes  # noqa: E402

STEPS = 10
RUN = [
    f"run.steps={STEPS}",
    "run.prompts_per_step=6",
    "run.group_size=4",
    "run.record_groups=true",
    "run.preflight=false",
    "runtime.target=cpu",
    "runtime.mixed_precision=none",
    "runtime.threads=1",
    "evaluation.at_start=false",
    "evaluation.at_end=false",
    "evaluation.every=0",
    "checkpoint.every=0",
    "checkpoint.save_final=false",
    "optimizer.lr=1e-3",
    "optimizer.weight_decay=0.1",
    "optimizer.max_grad_norm=0.5",
    "monitor.progress=off",
]
LEFT_OUT = ("seconds", "per_second", "forwarded_tokens", "padding")


@dataclass
class Recorded:
    """The batches of a run, and its configuration with a model that any process can load."""

    cfg: ShoalConfig
    batches: list[Batch]


def recorded(cfg: ShoalConfig, folder: Path) -> Recorded:
    train(cfg, folder)
    groups = GroupRecording(folder)
    batches = []
    for step in range(1, STEPS + 1):
        found = groups.read(step)
        assert found is not None
        batches.append(
            make_batch(
                found,
                cfg.algorithm,
                temperature=cfg.sampling.temperature,
                max_new_tokens=cfg.sampling.max_new_tokens,
                max_positions=512,
                made_up=False,
            )[0]
        )
    if cfg.model.name == "story":
        cfg = replace(cfg, model=replace(cfg.model, name=str(story_model(cfg))))
    return Recorded(cfg, batches)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return recorded(load_config("story", RUN), tmp_path_factory.mktemp("story"))


@pytest.fixture(scope="module")
def with_tools(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Conversations in which the model calls a tool by chance, and what it says is masked."""
    folder = tmp_path_factory.mktemp("tools")
    model = save_calling_model(folder / "model")
    rows = [{"prompt": prompt, "ground_truth": "7", "verifiers": ["gsm8k"]} for prompt in PROMPTS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [f"model.name={model}", "data.task=messages", f"data.path={folder / 'rows.jsonl'}"]
    tools = ["environment.tools=[calculator]", "environment.max_turns=2", "sampling.max_new_tokens=30"]
    found = recorded(load_config("story", [*RUN, *data, *tools, "run.group_size=8"]), folder / "run")
    assert any(not one.mask.all() for batch in found.batches for one in batch.sequences)
    return found


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[None]:
    with two_ray_nodes(), closing(RayNodes()):
        yield


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., DeepSpeedLearner]]:
    """A learner of so many ranks, each on a node of its own, at a ZeRO stage. Those opened before are closed."""
    with ExitStack() as held:

        def make(cfg: ShoalConfig, world: int, stage: int) -> DeepSpeedLearner:
            held.close()
            learner = replace(cfg.learner, kind="deepspeed", num_devices=world, zero_stage=stage, timeout=300.0)
            cfg = replace(cfg, learner=learner)
            cluster = held.enter_context(closing(Cluster(cfg)))
            assert [one.node.address for one in cluster.shares] == list(ADDRESSES[:world])
            return held.enter_context(
                closing(DeepSpeedLearner(cfg, read_info(cfg.model), cluster, STEPS, tmp_path / "logs"))
            )

        yield make


def local_learner(cfg: ShoalConfig) -> LocalLearner:
    runtime = resolve_runtime(cfg.runtime, cfg.model)
    torch.manual_seed(cfg.run.seed)
    return LocalLearner(open_policy(cfg, runtime), cfg, runtime, STEPS)


def assert_same(mine: dict[str, float], theirs: dict[str, float], step: int) -> None:
    assert mine.keys() == theirs.keys()
    for name in mine:
        # Sums over all tokens are as in one process; the largest of single tokens moves with the order of sums.
        near = 1e-4 if name.endswith("_max") else 1e-5
        if not name.endswith(LEFT_OUT):
            assert mine[name] == pytest.approx(theirs[name], rel=near, abs=near), f"{name} of step {step}"


@pytest.mark.parametrize(
    ("task", "train", "first", "then"),
    [
        ("story", "full", (1, 0), None),
        ("story", "full", (1, 3), None),
        ("story", "full", (2, 3), (1, 1)),
        ("story", "full", (1, 2), (2, 3)),
        ("story", "lora", (2, 3), (1, 2)),
        ("with_tools", "full", (2, 2), None),
    ],
)
def test_ten_steps_on_recorded_groups_are_the_local_learners(
    request: pytest.FixtureRequest,
    opened: Any,
    tmp_path: Path,
    task: str,
    train: str,
    first: tuple[int, int],
    then: tuple[int, int] | None,
) -> None:
    """With `then`, a checkpoint after half of the steps is gone on from by so many ranks at that stage."""
    made: Recorded = request.getfixturevalue(task)
    cfg = replace(made.cfg, model=replace(made.cfg.model, train=train))
    right, learner = local_learner(cfg), opened(cfg, *first)
    for step, batch in enumerate(made.batches):
        if then and step == STEPS // 2:
            learner.save(tmp_path)
            learner = opened(cfg, *then)
            learner.load(tmp_path)
        assert_same(learner.train(batch), right.train(batch), step)
    assert learner.version == right.version == STEPS
    assert sum(batch.trained_tokens for batch in made.batches) > 1000
    (tmp_path / "end").mkdir()
    learner.save(tmp_path / "end")
    mine = {name: value["weight"] for name, value in read_parts(tmp_path / "end")[1].items()}
    theirs = right.trained_weights()
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value.detach(), rtol=1e-4, atol=2e-5, msg=name)
