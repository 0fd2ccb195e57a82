"""The environment's contract: how an item becomes scored completions. How the model is reached is not its business."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from shoal.config import ShoalConfig
from shoal.engines.base import EngineOutput, SamplingParams
from shoal.engines.seeds import sampling_seed
from shoal.types import Completion, Group, Prompt

EVALUATION_EPOCH = -1
"""The epoch of held-out prompts: their seeds are those of no training epoch, and the same in every evaluation."""


class Item(NamedTuple):
    """What one group answers: a prompt, and how often the data had been gone through when it was drawn."""

    prompt: Prompt
    epoch: int = 0


class Model(Protocol):
    """Whatever samples: an engine behind HTTP, or the one of this process."""

    async def sample(self, context_ids: Sequence[int], seed: int, sampling: SamplingParams) -> EngineOutput:
        """What the model writes after these ids."""
        ...


class Environment(ABC):
    """A source of items and the judge of what a model makes of them.

    A new one is a subclass with `setup`, `next_item`, `rollout` and `score`; `held_out` is there to be evaluated on.
    `group_size` and the sampling are the configuration's.
    """

    def __init__(self, cfg: ShoalConfig, tokenizer: Any) -> None:
        self.cfg = cfg
        self.tokenizer = tokenizer
        self.group_size = cfg.run.group_size
        self.sampling = SamplingParams(**{**vars(cfg.sampling), "stop": tuple(cfg.sampling.stop)})

    @property
    def held_out(self) -> Sequence[Prompt]:
        """Prompts that are never trained on; none unless a subclass has some."""
        return ()

    def setup(self) -> None:
        """Loads what is needed, once, before anything else."""

    @abstractmethod
    def next_item(self) -> Item:
        """The next item to train on."""

    def skip(self, count: int) -> None:
        """Passes over items that an earlier process has served."""
        for _ in range(count):
            self.next_item()

    @abstractmethod
    async def rollout(self, item: Item, index: int, model: Model, sampling: SamplingParams) -> Completion:
        """One completion of an item; `index` is its place in the group, which seeds it (see `seed`)."""

    @abstractmethod
    def score(self, groups: Sequence[Group]) -> None:
        """Sets the reward of every completion, None where there is none. Called in a thread, once at a time."""

    def close(self) -> None:
        """Ends what `setup` started."""

    def seed(self, item: Item, index: int, turn: int = 0) -> int:
        """The seed of one turn of one completion."""
        return sampling_seed(self.cfg.run.seed, item.prompt.id, item.epoch, index, turn)

    async def group(self, item: Item, model: Model, size: int, sampling: SamplingParams) -> Group:
        """All completions of an item, unscored."""
        made = [self.rollout(item, index, model, sampling) for index in range(size)]
        completions = await asyncio.gather(*made)
        return Group(id=item.prompt.id, completions=list(completions), prompt=item.prompt, epoch=item.epoch)
