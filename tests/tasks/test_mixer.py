"""How much of each source is used, in which order, under which ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from shoal.config import ShoalConfig
from shoal.errors import DataError
from shoal.tasks.dataset import build_task
from shoal.tasks.mixer import draw, interleave, rows_wanted
from shoal.tasks.stream import PromptStream
from shoal.types import Prompt

WriteRows = Callable[..., str]


def prompts(count: int, source: str = "s") -> list[Prompt]:
    return [Prompt(id=f"{source}/{index}", token_ids=[index], source=source) for index in range(count)]


def ids(drawn: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in drawn]


def test_an_integer_is_a_count_and_a_float_a_share() -> None:
    cases: list[tuple[int | float, int]] = [(1, 1), (1.0, 40), (0.5, 20), (2.0, 80), (2, 2), (0, 0), (0.0, 0), (90, 90)]
    assert [rows_wanted(amount, 40) for amount, _ in cases] == [wanted for _, wanted in cases]
    assert rows_wanted(0.001, 40) == 1  # a share above nothing is at least one row


@given(size=st.integers(1, 30), amount=st.integers(1, 100), seed=st.text(max_size=3))
def test_every_prompt_is_drawn_equally_often_but_for_the_rest(size: int, amount: int, seed: str) -> None:
    drawn = draw(prompts(size), amount, seed)
    assert len(drawn) == amount
    assert len(set(ids(drawn))) == amount  # repeated rows have ids of their own
    often = Counter(prompt.token_ids[0] for prompt in drawn)
    assert len(often) == min(size, amount)
    assert max(often.values()) - min(often.get(index, 0) for index in range(size)) <= 1
    assert drawn == draw(prompts(size), amount, seed)


@given(size=st.integers(1, 200), share=st.floats(0.01, 3))
def test_a_share_is_met_to_within_half_a_row(size: int, share: float) -> None:
    drawn = draw(prompts(size), share, "0")
    assert abs(len(drawn) - share * size) <= 0.5 or len(drawn) == 1


def test_fewer_rows_are_a_random_choice_in_the_datas_order_and_depend_on_the_seed() -> None:
    first, other = (draw(prompts(100), 10, seed) for seed in ("0", "1"))
    numbers = [prompt.token_ids[0] for prompt in first]
    assert numbers == sorted(numbers) != list(range(10))
    assert ids(first) != ids(other)


def test_repeated_rows_are_numbered() -> None:
    assert ids(draw(prompts(2), 2.0, "0")) == ["s/0", "s/1", "s/0#2", "s/1#2"]


def test_a_small_count_that_looks_like_a_share_is_said(caplog: pytest.LogCaptureFixture) -> None:
    draw(prompts(200), 1, "0")
    assert "1.0 is that many times all" in caplog.text
    caplog.clear()
    draw(prompts(200), 1.0, "0")
    assert caplog.text == ""


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_every_first_part_of_the_mix_has_the_sources_in_their_proportions(sizes: list[int]) -> None:
    sources = [prompts(size, str(number)) for number, size in enumerate(sizes)]
    mixed = interleave(sources)
    for number, source in enumerate(sources):
        assert [prompt for prompt in mixed if prompt.source == str(number)] == source
        for length in range(len(mixed) + 1):
            there = sum(prompt.source == str(number) for prompt in mixed[:length])
            assert abs(there * len(mixed) - length * len(source)) <= len(sizes) * len(mixed)


QUESTIONS = [{"question": f"How many are {n} and {n}?", "answer": f"#### {2 * n}"} for n in range(1, 21)]
SUMS = [{"problem": f"Add {n} to 1.", "answer": str(n + 1)} for n in range(1, 11)]


def mixed_config(mix: dict[str, Any], **data: Any) -> ShoalConfig:
    cfg = ShoalConfig()
    cfg.data.mix = mix
    cfg.data.task = "gsm8k"
    for name, value in data.items():
        setattr(cfg.data, name, value)
    return cfg


@pytest.fixture
def mix(write_rows: WriteRows) -> dict[str, Any]:
    held_out = write_rows("held_out.jsonl", QUESTIONS[:4])
    return {
        "words": {"path": write_rows("words.jsonl", QUESTIONS), "eval_path": held_out, "amount": 0.5},
        "sums": {"path": write_rows("sums.jsonl", SUMS), "task": "math", "amount": 20, "eval_amount": 0}
        | {"verifiers": "exact_answer"},
    }


def test_a_mix_has_each_source_in_its_amount_layout_and_name(
    mix: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    task = build_task(mixed_config(mix), tokenizer)
    assert Counter(prompt.source for prompt in task.train) == {"words": 10, "sums": 20}
    assert Counter(prompt.source for prompt in task.evaluation) == {"words": 4}
    assert len({prompt.id for prompt in [*task.train, *task.evaluation]}) == 34
    by_id = {prompt.id: prompt for prompt in task.train}
    assert by_id["sums/train/3"].messages == [{"role": "user", "content": "Add 4 to 1."}]
    assert by_id["sums/train/3"].ground_truth == by_id["sums/train/3#2"].ground_truth == "5"


def test_each_source_is_judged_by_its_layouts_verifiers_or_by_those_it_is_given(
    mix: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    task = build_task(mixed_config(mix), tokenizer)
    judges = {prompt.source: prompt.verifiers for prompt in task.train}
    assert judges == {"words": ["gsm8k"], "sums": ["exact_answer"]}
    # Functions of the caller's judge what names no verifier, and beside those that are named.
    task = build_task(mixed_config(mix), tokenizer, own_verifiers=("mine",))
    assert {prompt.source: prompt.verifiers for prompt in task.train} == {"words": [], "sums": ["exact_answer", "mine"]}


def test_only_what_the_layouts_own_verifiers_judge_has_a_known_right_answer(
    mix: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    words, sums = mix["words"], mix["sums"]
    assert build_task(mixed_config({"words": words}), tokenizer).demonstrate is not None
    assert build_task(mixed_config({"sums": {**sums, "eval_amount": 1.0}}), tokenizer).demonstrate is None


def test_equal_seeds_give_equal_data_and_other_seeds_evaluate_on_the_same(
    mix: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    mix["words"]["eval_amount"] = 2
    configs = [mixed_config(mix) for _ in range(3)]
    configs[2].run.seed = 1
    first, again, other = (build_task(cfg, tokenizer) for cfg in configs)
    assert (first.train, first.evaluation) == (again.train, again.evaluation)
    assert ids(first.train) != ids(other.train)
    assert first.evaluation == other.evaluation
    assert len(first.evaluation) == 2


def test_amounts_count_prompts_that_fit(write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"question": "x" * (50 if n % 2 else 5), "answer": f"#### {n}"} for n in range(20)]
    words = {"path": write_rows("rows.jsonl", rows), "amount": 8, "eval_amount": 1.0}
    task = build_task(mixed_config({"words": words}, max_prompt_tokens=10), tokenizer)
    assert (len(task.train), len(task.evaluation)) == (8, 10)
    assert task.dropped == {
        "words, training: longer than 10 tokens": 10,
        "words, evaluation: longer than 10 tokens": 10,
    }


def test_sources_may_differ_in_what_is_said_around_their_questions(
    mix: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    mix["sums"]["instructions"] = "Only the number."
    mix["sums"]["system_prompt"] = None
    task = build_task(mixed_config(mix, system_prompt="Think."), tokenizer)
    first = {prompt.source: [message["content"] for message in prompt.messages] for prompt in task.train}
    assert first["words"][0] == "Think."
    assert first["sums"][0].endswith("to 1.\n\nOnly the number.")


def test_a_run_goes_on_at_the_same_row_of_the_mix(mix: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    def stream() -> PromptStream:
        return PromptStream(build_task(mixed_config(mix), tokenizer).train, seed=0, shuffle=True)

    whole = stream().next(75)
    stopped = stream()
    stopped.next(41)  # in the second epoch
    resumed = stream()
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.next(34) == whole[41:]


def test_a_position_in_as_many_other_rows_is_refused(mix: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    state = PromptStream(build_task(mixed_config(mix), tokenizer).train, seed=0, shuffle=True).state_dict()
    cfg = mixed_config(mix)
    cfg.run.seed = 1
    with pytest.raises(DataError, match=r"other training prompts, as many \(30\); resume with the same data, run.seed"):
        PromptStream(build_task(cfg, tokenizer).train, seed=0, shuffle=True).load_state_dict(state)


def test_a_source_that_is_not_used_on_a_side_is_not_read_for_it(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows("rows.jsonl", QUESTIONS)
    mix = {"words": {"path": path, "eval_amount": 0}, "held": {"path": "none.jsonl", "eval_path": path, "amount": 0}}
    task = build_task(mixed_config(mix), tokenizer)
    assert {prompt.source for prompt in task.train} == {"words"}
    assert {prompt.source for prompt in task.evaluation} == {"held"}
