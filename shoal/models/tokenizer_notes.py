"""What a tokenizer does that a user should know before a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

PROBE = "She has 3 apples, and buys 12 more.\nHow many are there? <answer> 15 </answer>"


def tokenizer_notes(tokenizer: Any) -> Iterator[str]:
    """Sentences on a missing chat template, and on text that does not survive encoding and decoding."""
    if not tokenizer.chat_template:
        yield (
            "the tokenizer has no chat template: the messages of a prompt are joined by empty lines, without roles; "
            "set model.chat_template for a model that was taught one"
        )
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids, skip_special_tokens=True)
    if back.strip() != PROBE:
        lost = "loses spaces" if "".join(back.split()) == "".join(PROBE.split()) else "changes text"
        yield f"the tokenizer {lost}: {PROBE!r} comes back as {back!r}, and so do the completions that verifiers see"
