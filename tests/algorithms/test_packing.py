"""Rows, micro-batches and masks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.algorithms.masks import additive, allowed, cumulative_lengths
from shoal.algorithms.micro_batch import MicroBatch
from shoal.algorithms.packing import pack
from shoal.types import TrainSequence


def sequence(
    completion: int, group: int, context: list[int], sampled: list[int], mask: list[bool] | None = None
) -> TrainSequence:
    trained = np.array(mask if mask is not None else [True] * len(sampled))
    return TrainSequence(
        completion=completion,
        group=group,
        ids=np.array(context + sampled),
        context=len(context),
        mask=trained,
        sampler_logprobs=np.zeros(len(sampled), dtype=np.float32),
        advantages=np.ones(len(sampled)),
        completion_tokens=int(trained.sum()),
    )


@st.composite
def batches(draw: st.DrawFn) -> list[TrainSequence]:
    """Groups with shared contexts; some completions have a second segment. Some begin as the one before them did, up
    to all of it; every other id is unique, so that it tells its place."""
    sequences: list[TrainSequence] = []
    completion, next_id = 0, 1
    for group in range(draw(st.integers(1, 4))):
        context = list(range(next_id, next_id + draw(st.integers(1, 7))))
        next_id += len(context)
        last: list[int] = []
        for _ in range(draw(st.integers(1, 5))):
            for segment in range(draw(st.sampled_from([1, 1, 2]))):
                mask = draw(st.lists(st.booleans(), min_size=1, max_size=8))
                mask[draw(st.integers(0, len(mask) - 1))] = True
                alike = last[: draw(st.integers(0, len(mask)))] if segment == 0 else []
                sampled = alike + list(range(next_id, next_id + len(mask) - len(alike)))
                next_id += len(mask)
                last = sampled if segment == 0 else last
                own = context if segment == 0 else [*context, next_id]
                next_id += 1
                sequences.append(sequence(completion, group, own, sampled, mask))
            completion += 1
    return sequences


def attended(batch: MicroBatch, row: int, column: int, window: int | None = None) -> list[int]:
    """Ids that one place attends to, in order of position."""
    keys = torch.nonzero(allowed(batch, window)[row, 0, column]).flatten()
    keys = keys[torch.argsort(batch.position_ids[row, keys], stable=True)]
    return batch.input_ids[row, keys].tolist()


def trees(batch: MicroBatch) -> list[list[tuple[int, ...]]]:
    """Of every tree in every row, the ids on the path to each of its tokens."""
    found: list[list[tuple[int, ...]]] = []
    for row, column in torch.nonzero(batch.until >= 0).tolist():
        if batch.position_ids[row, column] == 0:
            found.append([])
        found[-1].append(tuple(attended(batch, row, column)))
    return found


@settings(max_examples=80, deadline=None)
@given(
    sequences=batches(),
    packing=st.booleans(),
    share=st.booleans(),
    tokens=st.sampled_from([1, 20, 60, 10_000]),
    size=st.sampled_from([0, 1, 2]),
    length=st.sampled_from([0, 5, 25]),
    flat=st.booleans(),
)
def test_every_trained_token_is_predicted_once_from_exactly_what_came_before_it(
    sequences: list[TrainSequence], packing: bool, share: bool, tokens: int, size: int, length: int, flat: bool
):
    found = pack(
        sequences,
        micro_batch_tokens=tokens,
        micro_batch_size=size,
        packing=packing,
        pack_length=length,
        share_prefix=share,
        flat=flat,
    )
    if flat and packing:
        assert all(len(batch.until) == 1 and bool((batch.until >= 0).all()) for batch in found)
    seen = []
    longest = max(len(one.ids) for one in sequences)
    place_of: dict[int, int] = {}
    for number, batch in enumerate(found):
        width = batch.until.shape[1]
        completions = {sequences[index].completion for index in batch.sequence.tolist()}
        assert not size or len(completions) <= size
        assert batch.until.numel() <= max(tokens, longest) or len(completions) == 1
        padding = batch.until < 0
        assert not (allowed(batch)[:, 0] & padding[:, None, :])[~padding].any(), "padding is seen"
        for paths in trees(batch):
            assert len(set(paths)) == len(paths), "a beginning stands twice in a tree"
        for completion in completions:
            assert place_of.setdefault(completion, number) == number, "a completion is split over micro-batches"
        for source, target, index, token in zip(
            *(one.tolist() for one in (batch.source, batch.targets, batch.sequence, batch.token)), strict=True
        ):
            ids = sequences[index].ids.tolist()
            at = sequences[index].context + token
            row, column = divmod(source, width)
            assert target == ids[at]
            assert attended(batch, row, column) == ids[:at]
            assert batch.until[row, column] > column
            assert batch.position_ids[row, column] == at - 1
            assert attended(batch, row, column, window=3) == ids[max(0, at - 3) : at]
            seen.append((index, token))
    expected = [(index, int(token)) for index, one in enumerate(sequences) for token in np.flatnonzero(one.mask)]
    assert sorted(seen) == expected


def test_a_shared_context_stands_once_in_a_row():
    sequences = [sequence(number, 0, [1, 2, 3], [4 + number, 9]) for number in range(3)]
    (shared,) = pack(sequences, micro_batch_tokens=100)
    # Context 3, then of each completion the one token before its last: the last predicts nothing.
    assert shared.input_ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert shared.position_ids.tolist() == [[0, 1, 2, 3, 3, 3]]
    assert shared.source.tolist() == [2, 3, 2, 4, 2, 5]
    (apart,) = pack(sequences, micro_batch_tokens=100, share_prefix=False)
    assert apart.input_ids.tolist() == [[1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3, 6]]


def test_every_beginning_that_completions_have_in_common_stands_once():
    ends = [[3, 4, 5, 9], [8, 9], [3, 7, 9], [3, 4, 6, 9]]
    sequences = [sequence(number, 0, [1, 2], end) for number, end in enumerate(ends)]
    (batch,) = pack(sequences, micro_batch_tokens=100)
    # Without the last tokens, which predict nothing, in the order of their ids:
    #   1 2 3 4 5 (0), 1 2 3 4 6 (3), 1 2 3 7 (2), 1 2 8 (1), of which the others share 4, 3 and 2 with the one before.
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 4, 3, 2]]
    # 1 and 2 go on to the end, 3 until 8 leaves it, 4 until 7 does; the others end at once.
    assert batch.until.tolist() == [[8, 8, 7, 6, 5, 6, 7, 8]]
    assert batch.sequence.tolist() == [0] * 4 + [3] * 4 + [2] * 3 + [1] * 2
    assert batch.source.tolist() == [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 6, 1, 7]
    assert batch.targets.tolist() == [3, 4, 5, 9, 3, 4, 6, 9, 3, 7, 9, 8, 9]
    visible = [torch.nonzero(row).flatten().tolist() for row in allowed(batch)[0, 0]]
    assert visible[4:] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 5], [0, 1, 2, 6], [0, 1, 7]]


def test_equal_predictions_are_made_once_where_there_are_enough_of_them():
    ends = [[3, 4, 5, 9], [3, 4, 6, 9]]
    (batch,) = pack([sequence(number, 0, [1], end) for number, end in enumerate(ends)], micro_batch_tokens=100)
    # 3 and 4 are predicted by the same two places in both: 6 predictions for 8 tokens.
    assert batch.distinct is not None and batch.entry is not None
    assert batch.entry[:2].tolist() == batch.entry[4:6].tolist()
    assert sorted(batch.entry.unique().tolist()) == list(range(6)) and len(batch.distinct) == 6
    for one in (batch.source, batch.targets):
        torch.testing.assert_close(one[batch.distinct][batch.entry], one)
    (apart,) = pack([sequence(0, 0, [1], ends[0]), sequence(1, 0, [1], [7, *ends[1]])], micro_batch_tokens=100)
    assert apart.distinct is None and apart.entry is None


def test_a_completion_that_begins_as_another_ends_does_not_hide_what_others_share():
    # Of the second only 3 goes through the model, though its ids stand between those of the others.
    ends, masks = [[3, 4, 5, 6], [3, 4, 5, 7], [3, 4, 5, 8]], [[True] * 4, [True, True, False, False], [True] * 4]
    sequences = [
        sequence(number, 0, [1], end, mask) for number, (end, mask) in enumerate(zip(ends, masks, strict=True))
    ]
    (batch,) = pack(sequences, micro_batch_tokens=100)
    assert batch.input_ids.tolist() == [[1, 3, 4, 5]]


def test_a_family_that_does_not_fit_is_cut_into_trees():
    sequences = [sequence(number, 0, [1, 2], [3, 4 + number, 9]) for number in range(5)]
    rows = pack(sequences, micro_batch_tokens=6, pack_length=6)
    # 1 2 3 and one token of each completion: three of them in a row of 6.
    assert [batch.input_ids.tolist() for batch in rows] == [[[1, 2, 3, 4, 5, 6]], [[1, 2, 3, 7, 8]]]
    by_two = pack(sequences, micro_batch_tokens=100, micro_batch_size=2)
    assert [batch.input_ids.tolist() for batch in by_two] == [[[1, 2, 3, 4, 5]], [[1, 2, 3, 6, 7]], [[1, 2, 3, 8]]]


def test_equal_contexts_of_different_groups_are_not_shared():
    (batch,) = pack([sequence(0, 0, [1, 2], [3, 4]), sequence(1, 1, [1, 2], [5, 6])], micro_batch_tokens=100)
    assert batch.input_ids.tolist() == [[1, 2, 3, 1, 2, 5]]


def test_tokens_after_the_last_trained_one_are_left_out():
    (batch,) = pack([sequence(0, 0, [1, 2], [3, 4, 5, 6], [True, True, False, False])], micro_batch_tokens=100)
    assert batch.input_ids.tolist() == [[1, 2, 3]]
    assert batch.targets.tolist() == [3, 4]


def test_padding_stands_at_the_end_and_attends_to_itself_only():
    sequences = [sequence(0, 0, [1, 2, 3], [4, 5, 6]), sequence(1, 1, [7], [8, 9])]
    (batch,) = pack(sequences, micro_batch_tokens=100, packing=False)
    assert batch.plain
    assert batch.until.tolist() == [[5, 5, 5, 5, 5], [2, 2, -1, -1, -1]]
    mask = allowed(batch)[1, 0]
    assert not mask[:2, 2:].any()
    assert mask[2:].tolist() == torch.eye(5, dtype=torch.bool)[2:].tolist(), "a row of the softmax would be empty"


def test_the_additive_mask_is_zero_where_allowed_and_the_least_number_elsewhere():
    (batch,) = pack([sequence(0, 0, [1, 2], [3, 4])], micro_batch_tokens=100)
    mask = additive(allowed(batch), torch.float32)
    least = torch.finfo(torch.float32).min
    assert mask.tolist() == [[[[0, least, least], [0, 0, least], [0, 0, 0]]]]


def test_cumulative_lengths_are_the_bounds_of_the_sequences_and_the_padding():
    sequences = [sequence(0, 0, [1, 2, 3], [4, 5]), sequence(1, 1, [6], [7, 8])]
    (batch,) = pack(sequences, micro_batch_tokens=8, pack_length=8, share_prefix=False)
    bounds, longest = cumulative_lengths(batch)
    assert bounds.tolist() == [0, 4, 6]
    assert longest == 4
    assert bounds.dtype == torch.int32


def test_longer_rows_come_first_so_that_later_micro_batches_are_narrower():
    sequences = [sequence(number, number, [1], [2] * (3 + 5 * number)) for number in range(4)]
    widths = [batch.until.shape[1] for batch in pack(sequences, micro_batch_tokens=18, packing=False)]
    assert all(wide >= narrow for wide, narrow in pairwise(widths))
    assert widths[0] == 18


def test_nothing_packs_to_nothing():
    assert pack([], micro_batch_tokens=10) == []


@pytest.mark.parametrize("bad", [sequence(0, 0, [1], [2], [False]), sequence(0, 0, [], [2, 3])])
def test_a_sequence_that_cannot_be_trained_on_is_refused(bad: TrainSequence):
    with pytest.raises(ValueError, match="no trained token or no context"):
        pack([bad], micro_batch_tokens=10)
