"""From sequences to micro-batches: which tokens share a row, and what may attend to what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.algorithms.micro_batch import MicroBatch
from shoal.types import TrainSequence

DEFAULT_ROW = 128  # masked attention costs a CPU as much as all else at about this length


@dataclass
class _Tree:
    """A context and the sequences that continue it in one row."""

    context: NDArray[np.int64]
    members: list[int] = field(default_factory=list)
    length: int = 0  # tokens in the row, the context included


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
) -> list[MicroBatch]:
    """Lays sequences out in rows, and rows in micro-batches of at most `micro_batch_tokens` tokens, padding included.

    All segments of a completion are in one micro-batch. With `packing`, rows of up to `pack_length` tokens hold
    several sequences; `share_prefix` lets sequences of one group with equal contexts share the context's tokens.
    Without it every sequence has a row. The bound gives way to a sequence, or the segments of a completion, that are
    longer. `micro_batch_size` bounds the completions of a micro-batch; 0 does not. Tokens from a sequence's last
    trained one on are left out: nothing depends on their hidden states.

    Raises:
        ValueError: a sequence has no trained token or no context.
    """
    if not sequences:
        return []
    lengths = [_needed(sequence) for sequence in sequences]
    if packing:
        room = max([min(pack_length or DEFAULT_ROW, micro_batch_tokens), *lengths])
        blocks = _packed_blocks(sequences, lengths, room=room, share=share_prefix, most=micro_batch_size)
    else:
        blocks = _padded_blocks(sequences, lengths)
    blocks.sort(key=lambda block: -block.length)
    return [
        _micro_batch(rows, sequences, lengths, plain=not packing)
        for rows in _grouped(blocks, micro_batch_tokens, micro_batch_size)
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


def _alone(sequences: Sequence[TrainSequence], lengths: Sequence[int], index: int) -> _Tree:
    sequence = sequences[index]
    return _Tree(sequence.ids[: sequence.context], [index], lengths[index])


def _padded_blocks(sequences: Sequence[TrainSequence], lengths: Sequence[int]) -> list[_Block]:
    blocks = []
    for members in _by_completion(sequences):
        rows = [_Row() for _ in members]
        for row, index in zip(rows, members, strict=True):
            row.add(_alone(sequences, lengths, index))
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
            trees = [_alone(sequences, lengths, index) for index in members]
            blocks.append(_Block(_first_fit(trees, room, most=0), 1))
            continue
        sequence = sequences[members[0]]
        if share:
            key = (sequence.group, sequence.ids[: sequence.context].tobytes())
            families.setdefault(key, []).append(members[0])
        else:
            pieces.append(_alone(sequences, lengths, members[0]))
    for family in families.values():
        pieces += _split(family, sequences, lengths, room, most)
    return blocks + [
        _Block([row], sum(len(tree.members) for tree in row.trees)) for row in _first_fit(pieces, room, most)
    ]


def _split(
    family: list[int], sequences: Sequence[TrainSequence], lengths: Sequence[int], room: int, most: int
) -> list[_Tree]:
    """Shares the context among as many sequences as fit in a row, the longest that fits first."""
    left = sorted(family, key=lambda index: -lengths[index])
    context = sequences[left[0]].ids[: sequences[left[0]].context]
    trees = []
    while left:
        tree = _Tree(context, [], len(context))
        kept = []
        for index in left:
            own = lengths[index] - len(context)
            if tree.length + own <= room and not (most and len(tree.members) == most):
                tree.members.append(index)
                tree.length += own
            else:
                kept.append(index)
        trees.append(tree)
        left = kept
    return trees


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


def _grouped(blocks: Sequence[_Block], tokens: int, size: int) -> list[list[_Row]]:
    """Rows of each micro-batch. Blocks come longest first, so the first one sets the row length."""
    batches: list[list[_Row]] = []
    completions = 0
    for block in blocks:
        rows = batches[-1] if batches else []
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
    width = max(row.length for row in rows)
    input_ids, branch, positions = np.zeros((3, len(rows) * width), dtype=np.int64)
    tree_of = np.full(len(rows) * width, -1, dtype=np.int64)
    count = np.arange(width)
    # Of each sequence: its index, the places of its context's end and of its own first token.
    members: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        start = number * width
        for tree_number, tree in enumerate(row.trees):
            at = start + len(tree.context)
            tree_of[start : start + tree.length] = tree_number
            input_ids[start:at] = tree.context
            positions[start:at] = count[: at - start]
            last = at - 1
            for branch_number, index in enumerate(tree.members):
                context = sequences[index].context
                end = at + lengths[index] - context
                input_ids[at:end] = sequences[index].ids[context : lengths[index]]
                positions[at:end] = count[context : lengths[index]]
                branch[at:end] = branch_number + 1
                members.append((index, last, at))
                at = end
            start += tree.length
        rest = width * (number + 1) - start
        positions[start : start + rest] = count[width - rest :] if plain else count[:rest]
    packed = [sequences[index] for index, _, _ in members]
    trained = np.concatenate([sequence.mask for sequence in packed])
    sampled = np.array([len(sequence.mask) for sequence in packed])
    token = np.arange(len(trained)) - np.repeat(sampled.cumsum() - sampled, sampled)
    sequence_of, context_end, own = np.repeat(np.array(members, dtype=np.int64).T, sampled, axis=1)
    # Token 0 of a branch is predicted at the end of the context, token k at the branch's place k - 1.
    source = np.where(token == 0, context_end, own + token - 1)
    targets = np.concatenate([sequence.ids[sequence.context :] for sequence in packed])
    shape = len(rows), width
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids.reshape(shape)),
        position_ids=torch.from_numpy(positions.reshape(shape)),
        tree=torch.from_numpy(tree_of.reshape(shape)),
        branch=torch.from_numpy(branch.reshape(shape)),
        source=torch.from_numpy(source[trained]),
        targets=torch.from_numpy(targets[trained]),
        sequence=torch.from_numpy(sequence_of[trained]),
        token=torch.from_numpy(token[trained]),
        plain=plain,
    )
