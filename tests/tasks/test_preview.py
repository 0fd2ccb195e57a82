"""`shoal data preview`: what the prompts look like to the model, and what is left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from shoal.cli.command import main
from shoal.config import ShoalConfig
from shoal.tasks.preview import preview_lines

WriteRows = Callable[..., str]
ROWS = [{"question": "x" * length, "answer": "#### 7"} for length in (*range(10, 20), 90, 95, 99, 99)]


@pytest.fixture
def cfg(write_rows: WriteRows) -> ShoalConfig:
    cfg = ShoalConfig()
    cfg.data.task, cfg.data.max_prompt_tokens, cfg.data.instructions = "gsm8k", 41, "Go!"
    cfg.data.mix = {
        "long": {"path": write_rows("long.jsonl", ROWS), "eval_amount": 0},
        "short": {"path": write_rows("short.jsonl", ROWS[:2]), "amount": 4, "verifiers": ["exact_answer"]},
    }
    return cfg


def test_the_preview_shows_prompts_lengths_and_what_is_left_out_by_source(
    cfg: ShoalConfig, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    lines = list(preview_lines(cfg, chat_tokenizer, rows=1))
    heads = [line for line in lines if line.startswith("==")]
    assert heads == [
        "== long, training: 10 prompts, 4 left out",
        "== short, training: 4 prompts, 0 left out",
        "== short, evaluation: 2 prompts, 0 left out",
        "== in all: 14 prompts to train on, 2 to evaluate on",
    ]
    # A character is a token: [user], the question, an empty line and Go!, [assistant].
    assert "-- long/train/0, 32 tokens" in lines
    assert f"[user]{'x' * 10}\n\nGo![assistant]" in lines
    assert "-- ground truth '7'" in lines
    assert "-- ground truth '7', judged by exact_answer" in lines
    left_out = [line for line in lines if "left out:" in line]
    assert left_out[0] == f"   left out: long/train/10, 112 tokens: {'x' * 90} Go!"
    assert left_out[2].endswith("x ...")  # cut at a hundred characters
    assert left_out[3] == "   left out: 1 more"


def test_the_histogram_counts_every_row_once(cfg: ShoalConfig, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    del cfg.data.mix["short"]
    cfg.data.mix["long"].pop("eval_amount")
    lines = list(preview_lines(cfg, chat_tokenizer, rows=0))
    assert "   tokens: shortest 32, median 38.5, longest 121" in lines
    bars = [line.split() for line in lines if " to " in line and "prompts" not in line]
    bars = bars[: len(bars) // 2]  # the same for evaluation
    # Lengths 32 to 41 and 112, 117, 121, 121, in steps of 12.
    assert [(int(bar[0]), int(bar[2]), int(bar[3])) for bar in bars if bar[3] != "0"] == [
        (32, 43, 10),
        (104, 115, 1),
        (116, 121, 3),
    ]
    assert len(bars[0][4]) == 40  # the longest bar


def test_the_command_previews_the_default_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "preview", "--rows", "1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "== story, training: 10000 prompts, 0 left out"
    assert out[-1] == "== in all: 10000 prompts to train on, 1000 to evaluate on"
    assert "Gus has 7 cakes drops 5 How many?" in out


def test_data_that_cannot_be_read_ends_the_command_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "preview", "data.mix.verbs.task=no_such"]) == 2
    assert capsys.readouterr().err.startswith("shoal: error: data.mix.verbs.task=no_such: the nearest choice is ")
