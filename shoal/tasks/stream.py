"""The order in which a run draws its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
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
        self.digest = _digest(prompts)
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
        """The position, and the prompts that it is a position in: how many, and a digest of them."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "prompts": len(self.prompts),
            "digest": self.digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a position.

        Raises:
            DataError: the position is one in other data, so that the rest of the epoch would not be the same.
        """
        if state["digest"] != self.digest:
            changed = (
                f"other training prompts, as many ({state['prompts']})"
                if state["prompts"] == len(self.prompts)
                else f"{state['prompts']} training prompts and there are {len(self.prompts)} now"
            )
            raise DataError(
                f"the checkpoint was made with {changed}; resume with the same data, run.seed, tokenizer and "
                "data.max_prompt_tokens"
            )
        self.epoch = state["epoch"]
        self.position = state["position"]
        self.order = self._order()

    def _order(self) -> list[int]:
        order = list(range(len(self.prompts)))
        if self.shuffle:
            Random(f"{self.seed}/{self.epoch}").shuffle(order)
        return order


def _digest(prompts: Sequence[Prompt]) -> str:
    digest = sha256()
    for prompt in prompts:
        digest.update(f"{prompt.id} {prompt.token_ids}\n".encode())
    return digest.hexdigest()[:32]
