import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import DataError
from shoal.tasks.stream import PromptStream
from shoal.types import Prompt


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=str(index), token_ids=[index]) for index in range(count)]


def drawn(stream: PromptStream, n: int) -> list[tuple[str, int]]:
    return [(prompt.id, epoch) for prompt, epoch in stream.next(n)]


def test_without_shuffling_the_order_is_the_datas_and_epochs_are_counted() -> None:
    stream = PromptStream(prompts(3), seed=0, shuffle=False)
    assert drawn(stream, 7) == [("0", 0), ("1", 0), ("2", 0), ("0", 1), ("1", 1), ("2", 1), ("0", 2)]


def test_every_epoch_draws_every_prompt_once_in_an_order_of_its_own() -> None:
    stream = PromptStream(prompts(50), seed=0, shuffle=True)
    epochs = [drawn(stream, 50) for _ in range(3)]
    for number, epoch in enumerate(epochs):
        assert {(str(index), number) for index in range(50)} == set(epoch)
    orders = [tuple(name for name, _ in epoch) for epoch in epochs]
    assert len({*orders, tuple(map(str, range(50)))}) == 4


def test_the_order_depends_on_the_seed_alone() -> None:
    first, again, other = (drawn(PromptStream(prompts(50), seed=seed, shuffle=True), 80) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@given(
    size=st.integers(1, 12),
    before=st.lists(st.integers(0, 9), max_size=6),
    after=st.lists(st.integers(0, 9), max_size=6),
    shuffle=st.booleans(),
)
def test_a_restored_stream_goes_on_as_the_saved_one(
    size: int, before: list[int], after: list[int], shuffle: bool
) -> None:
    stream = PromptStream(prompts(size), seed=3, shuffle=shuffle)
    for n in before:
        stream.next(n)
    restored = PromptStream(prompts(size), seed=3, shuffle=shuffle)
    restored.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert [drawn(stream, n) for n in after] == [drawn(restored, n) for n in after]


@given(sizes=st.lists(st.integers(0, 9), max_size=8))
def test_how_many_are_drawn_at_a_time_does_not_change_the_order(sizes: list[int]) -> None:
    in_parts, at_once = (PromptStream(prompts(7), seed=0, shuffle=True) for _ in range(2))
    assert [item for n in sizes for item in drawn(in_parts, n)] == drawn(at_once, sum(sizes))


def test_a_position_in_other_data_is_refused() -> None:
    stream = PromptStream(prompts(5), seed=0, shuffle=True)
    with pytest.raises(DataError, match="5 training prompts and there are 4"):
        PromptStream(prompts(4), seed=0, shuffle=True).load_state_dict(stream.state_dict())


def test_no_prompts_are_refused() -> None:
    with pytest.raises(DataError, match="no prompts to train on"):
        PromptStream([], seed=0, shuffle=True)
