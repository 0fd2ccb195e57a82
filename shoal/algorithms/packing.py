"""From sequences to micro-batches: which tokens share a row, and what may attend to what."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.algorithms.micro_batch import MicroBatch
from shoal.types import TrainSequence

DEFAULT_ROW = 128  # masked attention costs a CPU as much as all else at about this length
WORTH_SHARING = 0.9  # with more distinct predictions than this share, spreading their log-probs costs what it saves


@dataclass
class _Tree:
    """Sequences that continue each other's beginnings in one row. `common[i]` of member i's tokens are those of the
    member before it and stand in the row already."""

    members: list[int] = field(default_factory=list)
    common: list[int] = field(default_factory=list)
    length: int = 0  # tokens in the row

    def add(self, index: int, common: int, needed: int) -> None:
        """A member of `needed` tokens."""
        self.members.append(index)
        self.common.append(common)
        self.length += needed - common


@dataclass
class _Row:
    trees: list[_Tree] = field(default_factory=list)
    length: int = 0

    def add(self, tree: _Tree) -> None:
        self.trees.append(tree)
        self.length += tree.length


@dataclass
class _Block:
    """Rows that must stay together, because a completion has segments in each."""

    rows: list[_Row]
    completions: int

    @property
    def length(self) -> int:
        return max(row.length for row in self.rows)


def pack(
    sequences: Sequence[TrainSequence],
    *,
    micro_batch_tokens: int,
    micro_batch_size: int = 0,
    packing: bool = True,
    pack_length: int = 0,
    share_prefix: bool = True,
    flat: bool = False,
) -> list[MicroBatch]:
    """Lays sequences out in rows, and rows in micro-batches of at most `micro_batch_tokens` tokens, padding included.

    All segments of a completion are in one micro-batch. With `packing`, rows of up to `pack_length` tokens hold
    several sequences; `share_prefix` lets sequences of one group with equal contexts share every beginning that they
    have in common; `flat` makes one row of each micro-batch, without padding, whatever `pack_length` says. Without
    `packing` every sequence has a row. The bound gives way to a sequence, or the segments of a completion, that are
    longer. `micro_batch_size` bounds the completions of a micro-batch; 0 does not. Tokens from a sequence's last
    trained one on are left out: nothing depends on their hidden states.

    Raises:
        ValueError: a sequence has no trained token or no context.
    """
    if not sequences:
        return []
    lengths = [_needed(sequence) for sequence in sequences]
    if packing:
        wanted = micro_batch_tokens if flat else min(pack_length or DEFAULT_ROW, micro_batch_tokens)
        room = max([wanted, *lengths])
        blocks = _packed_blocks(sequences, lengths, room=room, share=share_prefix, most=micro_batch_size)
        if flat:
            blocks = [_Block([_in_one(block.rows)], block.completions) for block in blocks]
    else:
        blocks = _padded_blocks(sequences, lengths)
    blocks.sort(key=lambda block: -block.length)
    return [
        _micro_batch([_in_one(rows)] if flat and packing else rows, sequences, lengths, plain=not packing)
        for rows in _grouped(blocks, micro_batch_tokens, micro_batch_size, flat and packing)
    ]


def _needed(sequence: TrainSequence) -> int:
    """Tokens of the sequence that go through the model: all before its last trained one."""
    trained = sequence.trained_tokens
    if not trained or sequence.context < 1:
        raise ValueError(f"a sequence of completion {sequence.completion} has no trained token or no context")
    last = len(sequence.mask) - 1 if sequence.mask[-1] else int(np.flatnonzero(sequence.mask)[-1])
    return sequence.context + last


def _by_completion(sequences: Sequence[TrainSequence]) -> list[list[int]]:
    """Indices of the sequences of each completion, in order of first appearance."""
    found: dict[int, list[int]] = {}
    for index, sequence in enumerate(sequences):
        found.setdefault(sequence.completion, []).append(index)
    return list(found.values())


def _alone(lengths: Sequence[int], index: int) -> _Tree:
    return _Tree([index], [0], lengths[index])


def _padded_blocks(sequences: Sequence[TrainSequence], lengths: Sequence[int]) -> list[_Block]:
    blocks = []
    for members in _by_completion(sequences):
        rows = [_Row() for _ in members]
        for row, index in zip(rows, members, strict=True):
            row.add(_alone(lengths, index))
        blocks.append(_Block(rows, 1))
    return blocks


def _packed_blocks(
    sequences: Sequence[TrainSequence], lengths: Sequence[int], *, room: int, share: bool, most: int
) -> list[_Block]:
    """Rows of single-segment completions, filled first-fit decreasing; each longer conversation is a block."""
    pieces: list[_Tree] = []
    blocks: list[_Block] = []
    families: dict[tuple[int, bytes], list[int]] = {}
    for members in _by_completion(sequences):
        if len(members) > 1:
            trees = [_alone(lengths, index) for index in members]
            blocks.append(_Block(_first_fit(trees, room, most=0), 1))
            continue
        sequence = sequences[members[0]]
        if share:
            key = (sequence.group, sequence.ids[: sequence.context].tobytes())
            families.setdefault(key, []).append(members[0])
        else:
            pieces.append(_alone(lengths, members[0]))
    for family in families.values():
        pieces += _split(family, sequences, lengths, room, most)
    return blocks + [
        _Block([row], sum(len(tree.members) for tree in row.trees)) for row in _first_fit(pieces, room, most)
    ]


def _split(
    family: Sequence[int], sequences: Sequence[TrainSequence], lengths: Sequence[int], room: int, most: int
) -> list[_Tree]:
    """Trees of up to `room` tokens and `most` members, the longest that fits first. In the order of their ids,
    what two sequences have in common is the least that neighbours between them have."""
    needed = {index: sequences[index].ids[: lengths[index]] for index in family}
    order = sorted(family, key=lambda index: needed[index].tobytes())
    common = _common([needed[index] for index in order])
    left = sorted(range(len(order)), key=lambda place: -lengths[order[place]])
    trees = []
    while left:
        taken: list[int] = []
        rest, length = [], 0
        for place in left:
            at = bisect(taken, place)
            shared = min(common[(taken[at - 1] + 1 if at else 0) : place + 1])
            if at < len(taken):
                shared = max(shared, min(common[place + 1 : taken[at] + 1]))
            own = lengths[order[place]] - shared
            if length + own <= room and not (most and len(taken) == most):
                taken.insert(at, place)
                length += own
            else:
                rest.append(place)
        tree = _Tree()
        for before, place in pairwise([-1, *taken]):
            tree.add(order[place], min(common[before + 1 : place + 1]), lengths[order[place]])
        trees.append(tree)
        left = rest
    return trees


def _common(rows: Sequence[NDArray[np.int64]]) -> list[int]:
    """How many first ids each row has in common with the one before it; 0 for the first."""
    lengths = np.array([len(row) for row in rows])
    own = np.arange(lengths.max() + 1) < lengths[:, None]  # a column more, so that every two rows differ somewhere
    padded = np.zeros(own.shape, dtype=np.int64)
    padded[own] = np.concatenate(rows)
    same = (padded[1:] == padded[:-1]) & own[1:] & own[:-1]
    return [0, *same.argmin(1).tolist()]


def _first_fit(trees: list[_Tree], room: int, most: int) -> list[_Row]:
    rows: list[_Row] = []
    for tree in sorted(trees, key=lambda tree: -tree.length):
        for row in rows:
            members = sum(len(other.members) for other in row.trees) + len(tree.members)
            if row.length + tree.length <= room and not (most and members > most):
                row.add(tree)
                break
        else:
            row = _Row()
            row.add(tree)
            rows.append(row)
    return rows


def _in_one(rows: Sequence[_Row]) -> _Row:
    """One row of all their trees."""
    whole = _Row()
    for row in rows:
        for tree in row.trees:
            whole.add(tree)
    return whole


def _grouped(blocks: Sequence[_Block], tokens: int, size: int, flat: bool) -> list[list[_Row]]:
    """Rows of each micro-batch. Blocks come longest first, so the first one sets the row length; where rows become one,
    what counts is their sum."""
    batches: list[list[_Row]] = []
    completions = 0
    for block in blocks:
        rows = batches[-1] if batches else []
        if flat:
            fits = sum(row.length for row in [*rows, *block.rows]) <= tokens
        else:
            fits = (len(rows) + len(block.rows)) * max((row.length for row in rows), default=0) <= tokens
        if rows and fits and not (size and completions + block.completions > size):
            rows += block.rows
            completions += block.completions
        else:
            batches.append(list(block.rows))
            completions = block.completions
    return batches


def _micro_batch(
    rows: Sequence[_Row], sequences: Sequence[TrainSequence], lengths: Sequence[int], *, plain: bool
) -> MicroBatch:
    """Lays every tree out depth first: its first member whole, of the others what they do not share."""
    width = max(row.length for row in rows)
    shape = len(rows), width
    input_ids, positions = np.zeros((2, len(rows) * width), dtype=np.int64)
    until = np.full(len(rows) * width, -1, dtype=np.int64)
    places, path = np.arange(len(rows) * width), np.zeros(width, dtype=np.int64)
    members: list[int] = []
    sources: list[NDArray[np.int64]] = []  # of each member, where each token up to its last trained one is predicted
    for number, row in enumerate(rows):
        start = first = number * width
        for tree in row.trees:
            depth = 0  # path[:depth] are the places of the last member's tokens
            for index, common in zip(tree.members, tree.common, strict=True):
                sequence, length = sequences[index], lengths[index]
                until[path[common:depth]] = start - first
                end = start + length - common
                path[common:length] = places[start:end]
                input_ids[start:end] = sequence.ids[common:length]
                positions[start:end] = places[common:length]
                sources.append(path[sequence.context - 1 : length].copy())
                members.append(index)
                depth, start = length, end
            until[path[:depth]] = start - first
        rest = first + width - start
        positions[start : start + rest] = places[width - rest : width] if plain else places[:rest]
    packed = [sequences[index] for index in members]
    sampled = np.array([len(source) for source in sources])
    trained = np.flatnonzero(
        np.concatenate([sequence.mask[:count] for sequence, count in zip(packed, sampled, strict=True)])
    )
    token = np.arange(sampled.sum()) - np.repeat(sampled.cumsum() - sampled, sampled)
    source = np.concatenate(sources)[trained]
    targets = np.concatenate(
        [sequence.ids[sequence.context :][:count] for sequence, count in zip(packed, sampled, strict=True)]
    )[trained]
    distinct, entry = _distinct(source, targets)
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids.reshape(shape)),
        position_ids=torch.from_numpy(positions.reshape(shape)),
        until=torch.from_numpy(until.reshape(shape)),
        source=torch.from_numpy(source),
        targets=torch.from_numpy(targets),
        sequence=torch.from_numpy(np.repeat(np.array(members, dtype=np.int64), sampled)[trained]),
        token=torch.from_numpy(token[trained]),
        distinct=distinct,
        entry=entry,
        plain=plain,
    )


def _distinct(source: NDArray[np.int64], targets: NDArray[np.int64]) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """`distinct` and `entry` of a micro-batch."""
    pairs = source * (targets.max() + 1) + targets
    _, distinct, entry = np.unique(pairs, return_index=True, return_inverse=True)
    if len(distinct) >= WORTH_SHARING * len(pairs):
        return None, None
    return torch.from_numpy(distinct), torch.from_numpy(entry)
