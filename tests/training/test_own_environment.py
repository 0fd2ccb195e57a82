"""Environments of one's own in plain training: their items, their reward, their turns; evaluation uses them too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import SMALL, rows

from shoal import load_config, train
from shoal.errors import ConfigError
from shoal.rewards.base import Submission
from shoal.rollout.environment import Environment, Item
from shoal.rollout.multi_turn import MultiTurnEnvironment
from shoal.types import Completion, Segment


class Digits(MultiTurnEnvironment):
    """Asks once more after the first answer; the reward is for digits."""

    def items(self) -> Any:
        return [self.prompt(f"Ada has {n} bags") for n in range(2, 8)]

    def held_out(self) -> Any:
        return [self.prompt("Joe has 9 hats"), self.prompt("Dee has 3 cats")]

    async def reply(self, item: Item, text: str, info: dict[str, Any]) -> list[dict[str, Any]]:
        return [] if "asked" in info else [{"role": "user", "content": "and?"}]

    def reward(self, submission: Submission) -> float:
        return sum(letter.isdigit() for letter in submission.text) / (1 + len(submission.text))


class OnlyRollout(Environment):
    """A class with `rollout` and nothing else: the data set's prompts, the configuration's verifiers."""

    async def rollout(self, item: Item, index: int, model: Any, sampling: Any) -> Completion:
        output = await model.sample(item.prompt.token_ids, self.seed(item, index), sampling)
        mask = [True] * len(output.token_ids)
        segment = Segment(item.prompt.token_ids, output.token_ids, output.logprobs, mask)
        return Completion([segment], output.stop_reason, self.decode(output.token_ids), versions=output.versions)


class NothingJudges(Digits):
    reward = None  # type: ignore[assignment]


@pytest.fixture
def trained(tiny_model: Path, few_problems: None, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    def run(*overrides: str) -> list[dict[str, Any]]:
        cfg = load_config("story", [f"model.name={tiny_model}", *SMALL, "run.steps=3", *overrides])
        train(cfg, tmp_path / "run")
        return rows(tmp_path / "run")

    return run


def test_an_environment_with_items_turns_and_a_reward_of_its_own_is_trained_and_evaluated(trained):
    found = trained(f"environment={__name__}:Digits", "environment.max_turns=2", "evaluation.every=3")
    steps = [row for row in found if "reward/mean" in row]
    assert len(steps) == 3 and all(0 < row["reward/mean"] < 1 for row in steps)
    assert all("rewards/environment/mean" in row for row in steps)
    assert any(row["train/grad_norm"] > 0 for row in steps)
    evaluated = [row for row in found if "evaluation/reward" in row or "eval/reward" in row]
    assert evaluated, found[0].keys()


def test_a_class_with_rollout_alone_does_what_the_plain_environment_does(trained, tmp_path: Path):
    verifier = "reward.verifiers={starts_with_a_digit: 1.0}"
    mine = trained(f"environment={__name__}:OnlyRollout", verifier)
    (tmp_path / "run").rename(tmp_path / "other")
    assert trained(verifier) == mine


def test_prompts_that_nothing_judges_are_refused(trained):
    with pytest.raises(ConfigError, match=r"NothingJudges has prompts of its own and nothing judges"):
        trained(f"environment={__name__}:NothingJudges")
