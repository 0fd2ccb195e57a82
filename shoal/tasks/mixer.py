"""How much of each source is used, and in which order the sources stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from logging import getLogger
from random import Random

from shoal.config.mix import Amount
from shoal.errors import DataError
from shoal.types import Prompt

logger = getLogger(__name__)

FEW, MANY = 10, 100


def rows_wanted(amount: Amount, available: int) -> int:
    """An integer is a count, a float a share of what is there (rounded; at least one row of a share above 0)."""
    if isinstance(amount, int):
        return amount
    return max(round(amount * available), 1) if amount > 0 else 0


def draw(prompts: Sequence[Prompt], amount: Amount, seed: str) -> list[Prompt]:
    """`amount` of the prompts, the same ones for the same seed, in their own order.

    Fewer than there are: drawn at random, none twice. More: all of them as often as they fit, and the rest drawn at
    random. A repeated prompt gets an id of its own (`gsm8k/train/7#2`), so that it is sampled with other seeds.

    Raises:
        DataError: there is nothing to draw from.
    """
    wanted = rows_wanted(amount, len(prompts))
    if wanted and not prompts:
        raise DataError(f"{wanted} prompts were asked for and there are none")
    if isinstance(amount, int) and 0 < amount <= FEW and len(prompts) > MANY:
        logger.warning(
            "amount %d is that many of %d prompts; %d.0 is that many times all", amount, len(prompts), amount
        )
    drawn: list[Prompt] = []
    round_number = 1
    while len(drawn) < wanted:
        left = wanted - len(drawn)
        chosen = range(len(prompts))
        if left < len(prompts):
            chosen = sorted(Random(f"draw/{seed}").sample(chosen, left))  # type: ignore[assignment]
        drawn += [prompts[index] if round_number == 1 else _again(prompts[index], round_number) for index in chosen]
        round_number += 1
    return drawn


def _again(prompt: Prompt, time: int) -> Prompt:
    return replace(prompt, id=f"{prompt.id}#{time}")


def interleave(sources: Sequence[Sequence[Prompt]]) -> list[Prompt]:
    """All prompts, each source spread evenly over the whole and in its own order, so that any first part of it has
    the sources in their proportions."""
    placed = [
        ((index + 0.5) / len(source), number, prompt)
        for number, source in enumerate(sources)
        for index, prompt in enumerate(source)
    ]
    return [prompt for _, _, prompt in sorted(placed, key=lambda place: place[:2])]
