"""Tokenised data is kept by what it is made from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from shoal.config import ShoalConfig
from shoal.tasks import dataset
from shoal.tasks.dataset import build_task

WriteRows = Callable[..., str]
ROWS = [{"question": f"How many are {n} and {n}?", "answer": f"#### {2 * n}"} for n in range(5)]


@pytest.fixture
def cfg(write_rows: WriteRows) -> ShoalConfig:
    """One file for both sides: one entry of the cache."""
    cfg = ShoalConfig()
    cfg.data.task, cfg.data.path = "gsm8k", write_rows("rows.jsonl", ROWS)
    return cfg


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*.msgpack")}


def no_rendering(*_: object) -> None:
    raise AssertionError("rendered again")


def test_the_second_time_nothing_is_rendered_and_the_task_is_the_same(
    cfg: ShoalConfig, cache: Path, chat_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_task(cfg, chat_tokenizer)
    assert len(entries(cache)) == 1
    monkeypatch.setattr(dataset, "render", no_rendering)
    assert build_task(cfg, chat_tokenizer) == first
    # Neither the amount nor the limit is in the key: they are applied to what is kept.
    cfg.data.mix = {"words": {"amount": 2}}
    cfg.data.max_prompt_tokens = 100
    assert [prompt.token_ids for prompt in build_task(cfg, chat_tokenizer).train] != []


def test_a_changed_file_changes_the_key(
    cfg: ShoalConfig, cache: Path, write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    build_task(cfg, tokenizer)
    write_rows("rows.jsonl", [*ROWS[:-1], {**ROWS[-1], "question": "How many are 9 and 9?"}])
    task = build_task(cfg, tokenizer)
    assert len(entries(cache)) == 2
    assert tokenizer.decode(task.train[-1].token_ids) == "How many are 9 and 9?"


def test_a_changed_ground_truth_is_never_hidden_by_the_cache(
    cfg: ShoalConfig, write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    build_task(cfg, tokenizer)
    write_rows("rows.jsonl", [{**row, "answer": "#### 77"} for row in ROWS])
    assert {prompt.ground_truth for prompt in build_task(cfg, tokenizer).train} == {"77"}


def change_template(cfg: ShoalConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ messages[0].content }}"


def change_template_arguments(cfg: ShoalConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    cfg.model.chat_template_kwargs = {"shout": True}


def change_system_prompt(cfg: ShoalConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    cfg.data.system_prompt = "Think."


def change_instructions(cfg: ShoalConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    cfg.data.instructions = "Only the number."


def change_vocabulary(cfg: ShoalConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens(["How many"])


@pytest.mark.parametrize(
    "change",
    [change_template, change_template_arguments, change_system_prompt, change_instructions, change_vocabulary],
)
def test_whatever_changes_the_tokens_changes_the_key(
    change: Callable[[ShoalConfig, PreTrainedTokenizerFast], None],
    cfg: ShoalConfig,
    cache: Path,
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    before = build_task(cfg, chat_tokenizer).train[0].token_ids
    change(cfg, chat_tokenizer)
    assert build_task(cfg, chat_tokenizer).train[0].token_ids != before
    assert len(entries(cache)) == 2


def test_a_damaged_entry_is_said_and_made_again(
    cfg: ShoalConfig, cache: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    first = build_task(cfg, tokenizer)
    [path] = cache.rglob("*.msgpack")
    whole = path.read_bytes()
    for damage in (b"", whole[:-1], b"\x90"):  # empty, cut, and a list without rows
        path.write_bytes(damage)
        with caplog.at_level(logging.WARNING):
            assert build_task(cfg, tokenizer) == first
        assert "is damaged: tokenising again" in caplog.text
        assert path.read_bytes() == whole
        caplog.clear()


def test_without_the_cache_nothing_is_kept(cfg: ShoalConfig, cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    cfg.data.cache = False
    build_task(cfg, tokenizer)
    assert not cache.exists()
