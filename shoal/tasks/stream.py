"""The order in which a run draws its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from shoal.errors import DataError
from shoal.types import Prompt


class PromptStream:
    """Goes through the prompts again and again, in a new order each epoch when shuffling.

    The order of an epoch depends on (seed, epoch) alone, so that the position is two numbers.

    Raises:
        DataError: there are no prompts.
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, shuffle: bool) -> None:
        if not prompts:
            raise DataError("there are no prompts to train on; see data.path, data.split and data.max_prompt_tokens")
        self.prompts = prompts
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.position = 0
        self.order = self._order()

    def next(self, n: int) -> list[tuple[Prompt, int]]:
        """The next `n` prompts, each with its epoch (from 0)."""
        drawn = []
        for _ in range(n):
            if self.position == len(self.prompts):
                self.epoch += 1
                self.position = 0
                self.order = self._order()
            drawn.append((self.prompts[self.order[self.position]], self.epoch))
            self.position += 1
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """The position, and the number of prompts that it is a position in."""
        return {"epoch": self.epoch, "position": self.position, "prompts": len(self.prompts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a position.

        Raises:
            DataError: the position is one in other data, so that the rest of the epoch would not be the same.
        """
        if state["prompts"] != len(self.prompts):
            raise DataError(
                f"the checkpoint was made with {state['prompts']} training prompts and there are "
                f"{len(self.prompts)} now; resume with the same data and data.max_prompt_tokens"
            )
        self.epoch = state["epoch"]
        self.position = state["position"]
        self.order = self._order()

    def _order(self) -> list[int]:
        order = list(range(len(self.prompts)))
        if self.shuffle:
            Random(f"{self.seed}/{self.epoch}").shuffle(order)
        return order
