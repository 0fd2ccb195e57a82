"""When a completion ends: end-of-sequence ids and stop strings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what an incomplete character decodes to


def eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a completion: the generation config's (one or several) and the tokenizer's."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(named if isinstance(named, (list, tuple)) else [named]) | {getattr(tokenizer, "eos_token_id", None)}
    return sorted(id_ for id_ in ids if id_ is not None)


def text_decoder(tokenizer: Any, ends: Iterable[int] = ()) -> Callable[[Sequence[int]], str]:
    """From sampled ids to the text that verifiers and environments see.

    It has every token but padding and those that end a completion: the tokenizer's own, and `ends`. Other special
    tokens stay, since tags such as <think> and <answer> may be special.
    """
    unseen = {getattr(tokenizer, "eos_token_id", None), getattr(tokenizer, "pad_token_id", None), *ends}

    last: tuple[list[int], str] = [], ""

    def decode(ids: Sequence[int]) -> str:
        nonlocal last
        found = last  # another thread may decode meanwhile
        if found[0] != ids:  # equal completions of a group come one after another
            text = str(tokenizer.decode([id_ for id_ in ids if id_ not in unseen], skip_special_tokens=False))
            found = last = list(ids), text
        return found[1]

    return decode


class StopStrings:
    """Finds stop strings in sampled ids, also where they span tokens.

    Decoding at every token would cost more than a small model's forward pass. A stop string can only be complete at a
    token that holds its last character, so ids are decoded at such tokens alone, and no further back than the string
    can reach.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._enders: dict[tuple[str, ...], NDArray[np.bool_]] = {}

    @cached_property
    def _pieces(self) -> list[str]:
        """The text of each id by itself."""
        return [self._decode([id_]) for id_ in range(len(self.tokenizer))]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def may_end(self, stop: tuple[str, ...], token: int) -> bool:
        """Whether one of the strings could be complete at this token."""
        if stop not in self._enders:
            last = {text[-1] for text in stop}
            # A tokenizer may strip or add blanks around a token that is decoded by itself.
            always = any(character.isspace() for character in last)
            self._enders[stop] = np.array(
                [always or not piece or UNKNOWN in piece or bool(last & set(piece)) for piece in self._pieces]
            )
        enders = self._enders[stop]
        return token < len(enders) and bool(enders[token])

    def found(self, stop: tuple[str, ...], ids: Sequence[int]) -> bool:
        """Whether the text of `ids` holds one of the strings; assumes that no earlier prefix matched."""
        if not self.may_end(stop, ids[-1]):
            return False
        needed = max(len(text) for text in stop)
        start = len(ids)
        while start > 0 and needed > 0:
            start -= 1
            piece = self._pieces[ids[start]] if ids[start] < len(self._pieces) else ""
            needed -= 0 if UNKNOWN in piece else len(piece)
        # One id more: the first of a text may be decoded without its leading blank.
        text = self._decode(ids[max(start - 1, 0) :])
        return any(string in text for string in stop)
