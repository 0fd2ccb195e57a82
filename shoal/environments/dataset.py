"""The environment of a data set with verifiers: the configuration's prompts, one answer each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.config import ShoalConfig
from shoal.config.model import ModelConfig
from shoal.engines.base import SamplingParams
from shoal.engines.stopping import generation_ends, text_decoder
from shoal.environments.base import Environment, Item, Model
from shoal.environments.single_turn import to_completion
from shoal.rewards.scorer import Scorer
from shoal.tasks.base import Task
from shoal.tasks.dataset import build_task
from shoal.tasks.stream import PromptStream
from shoal.types import Completion, Group, Prompt


def _ends(model: ModelConfig) -> list[int]:
    """What ends a completion beside the tokenizer's own id; the built-in model has that one alone."""
    return [] if model.name == "story" else generation_ends(model.name, model.revision)


class DatasetEnvironment(Environment):
    """Prompts and verifiers as `data` and `reward` say; the order is that of a run with the same seed."""

    def __init__(self, cfg: ShoalConfig, tokenizer: Any) -> None:
        super().__init__(cfg, tokenizer)
        self.task = Task([], [], {})
        self._decode = text_decoder(tokenizer, _ends(cfg.model))

    def setup(self) -> None:
        self.task = build_task(self.cfg, self.tokenizer)
        self.scorer = Scorer(self.cfg.reward, self.task.verifiers)
        self.stream = PromptStream(self.task.train, seed=self.cfg.run.seed, shuffle=self.cfg.data.shuffle)

    @property
    def held_out(self) -> Sequence[Prompt]:
        return self.task.evaluation[: self.cfg.evaluation.prompts or None]

    def next_item(self) -> Item:
        [(prompt, epoch)] = self.stream.next(1)
        return Item(prompt, epoch)

    async def rollout(self, item: Item, index: int, model: Model, sampling: SamplingParams) -> Completion:
        output = await model.sample(item.prompt.token_ids, self.seed(item, index), sampling)
        return to_completion(item.prompt, output, self.decode)

    def decode(self, ids: list[int]) -> str:
        """Text as verifiers see it."""
        return self._decode(ids)

    def score(self, groups: Sequence[Group]) -> None:
        self.scorer.score(groups).check()

    def close(self) -> None:
        if self.task.train:
            self.scorer.close()
