"""What is said of tokenizers that a run would suffer from."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shoal.models.tokenizer_notes import PROBE, tokenizer_notes

CHATML = "{% for m in messages %}{{ m.content }}{% endfor %}"


def tokenizer(*, spaces: bool = True, lower: bool = False, template: str | None = CHATML) -> Any:
    letters = {letter: number for number, letter in enumerate(sorted(set(PROBE + PROBE.lower())))}
    made = Tokenizer(models.WordLevel(letters, unk_token="?"))
    if lower:
        made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = (
        pre_tokenizers.Split("", "isolated")
        if spaces
        else pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")])
    )
    made.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False)
    fast.chat_template = template
    return fast


def test_a_sound_tokenizer_needs_no_note():
    assert list(tokenizer_notes(tokenizer())) == []


def test_a_tokenizer_without_a_template_is_told():
    [note] = tokenizer_notes(tokenizer(template=None))
    assert "no chat template" in note and "model.chat_template" in note


def test_a_tokenizer_that_loses_spaces_or_letters_is_told():
    [spaces] = tokenizer_notes(tokenizer(spaces=False))
    assert "loses spaces" in spaces and "Shehas3apples" in spaces
    [letters] = tokenizer_notes(tokenizer(lower=True))
    assert "changes text" in letters
