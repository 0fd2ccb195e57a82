"""Sources of a data mix: from entries by name, checked before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.config import load_config
from shoal.config.mix import data_sources
from shoal.run_folder import load_saved, save_config

Refusal = Callable[..., str]


def test_without_a_mix_there_is_one_source_named_after_its_layout():
    [source] = data_sources(load_config("gsm8k", ["data.path=rows.jsonl"]).data)
    assert (source.name, source.task, source.path, source.amount) == ("gsm8k", "gsm8k", "rows.jsonl", 1.0)
    assert source.system_prompt.startswith("You solve grade-school maths problems")


def test_an_entry_takes_what_it_does_not_give_from_the_data():
    config = load_config(
        "gsm8k",
        ["data.mix.all.amount=0.5", "data.mix.mine={path: rows.jsonl, task: math, amount: 3, verifiers: gsm8k}"],
    )
    whole, mine = data_sources(config.data)
    assert (whole.name, whole.path, whole.split, whole.amount) == ("all", "openai/gsm8k", "train", 0.5)
    assert (mine.name, mine.path, mine.task, mine.amount) == ("mine", "rows.jsonl", "math", 3)
    assert (mine.verifiers, whole.verifiers) == (["gsm8k"], [])
    assert type(mine.amount) is int
    assert mine.system_prompt == whole.system_prompt != ""


def test_an_entry_with_a_path_of_its_own_takes_nothing_of_the_common_place():
    config = load_config("gsm8k", ["data.eval_path=held.jsonl", "data.subset=main", "data.mix.mine.path=rows.jsonl"])
    [mine] = data_sources(config.data)
    assert (mine.eval_path, mine.subset, mine.revision) == (None, None, None)


def test_counts_and_shares_stay_what_they_are_in_a_run_folder(tmp_path):
    config = load_config("gsm8k", ["data.mix.a.amount=1", "data.mix.b.amount=1.0"])
    save_config(config, [], tmp_path)
    amounts = [source.amount for source in data_sources(load_saved(tmp_path, []).data)]
    assert [(type(amount), amount) for amount in amounts] == [(int, 1), (float, 1.0)]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.mix.mine=rows.jsonl", "data.mix.mine: 'rows.jsonl' is not a source; write data.mix.mine.path=FILE"),
        (
            "data.mix.mine.pth=rows.jsonl",
            "there is no key 'data.mix.mine.pth'; the nearest is 'path' (there are: task,",
        ),
        ("data.mix.mine.amount=half", "data.mix.mine.amount: 'half' is not an amount: 1.0 is all"),
        ("data.mix.mine.amount=-1", "data.mix.mine.amount: -1 is not an amount"),
        ("data.mix.mine.amount=true", "data.mix.mine.amount: True is not an amount"),
        ("data.mix.mine.amount=nan", "data.mix.mine.amount: nan is not an amount"),
        ("data.mix.mine.verifiers=[1]", "data.mix.mine.verifiers: [1] is not a list of verifiers' names"),
        ("data.mix.mine.split=null", "data.mix.mine.split: None is not a string"),
        ("data.mix.mine.path=3", "data.mix.mine.path: 3 is not a string"),
        ("data.mix.mine.task=gsm", "data.mix.mine.task=gsm: the nearest choice is 'gsm8k'"),
        ("data.mix.mine.amount=0", "data.mix: every amount is 0, so there is nothing to train on"),
        ("data.mix.mine.eval_amount=0", "data.mix: every eval_amount is 0, so there is nothing to evaluate on"),
        (
            "data.mix.mine={task: story, path: rows.jsonl}",
            "data.task=story makes its own problems and reads no data.path",
        ),
    ],
)
def test_an_entry_that_cannot_be_used_is_one_line(refusal_of: Refusal, override: str, line: str):
    given = refusal_of(override, name="gsm8k")
    assert line in given
    assert "\n" not in given


def test_the_built_in_model_takes_no_other_source_in_the_mix(refusal_of: Refusal):
    line = refusal_of("data.mix.mine={task: gsm8k, path: rows.jsonl}", name="story")
    assert "model.name=story only reads the words of data.task=story" in line


def test_the_mix_of_the_documentation_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (tmp_path / "mixed.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    words, sums, chat = data_sources(load_config("mixed", config_dir=tmp_path).data)
    assert (words.path, words.amount, words.task) == ("openai/gsm8k", 0.5, "gsm8k")
    assert (sums.path, sums.eval_path, sums.amount) == ("sums.jsonl", "sums_held_out.jsonl", 2.0)
    assert (chat.amount, chat.eval_amount, chat.instructions) == (1000, 0, "Answer in one sentence.")
