"""Deltas: bit for bit what full weights would be, never on top of other weights, and few bytes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shoal.wire import delta
from shoal.wire.delta import BITMAP, GAPS_8, GAPS_16, NOTHING, WHOLE, Bits, apply, checksum_of, encode, signed
from shoal.wire.held import HeldWeights, Received
from shoal.wire.snapshot import DeltaSize, Snapshot
from shoal.wire.stream import WeightGroup, WeightSpec, bucket_size, find, listen, receive, send
from shoal.wire.versions import UNKNOWN

CPU, HOST = torch.device("cpu"), "127.0.0.1"
SIZES = st.integers(1, 3000)


def applied(held: Bits, now: Bits) -> tuple[delta.Piece, bool]:
    """Encodes the change, applies it to a copy, and looks whether both ends have the new block."""
    there = torch.from_numpy(held.copy().view(f"i{held.itemsize}"))
    here = held.copy()
    piece = encode(here, now)
    assert (here == now).all()
    written = np.empty(piece.nbytes, dtype=np.uint8)
    piece.write(written)
    right = apply(there, piece.row(), written)
    assert (there.numpy().view(held.dtype) == now).all()
    return piece, right


@given(st.data(), SIZES, st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64]), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=150)
def test_what_is_applied_is_what_was_encoded_whatever_share_changed(
    data: st.DataObject, size: int, dtype: type, seed: int
):
    random = np.random.default_rng(seed)
    share = data.draw(st.sampled_from([0.0, 0.001, 0.03, 0.3, 0.9, 1.0]))
    held = random.integers(0, np.iinfo(dtype).max, size, dtype=dtype, endpoint=True)
    now = held.copy()
    now[random.random(size) < share] ^= dtype(data.draw(st.integers(1, int(np.iinfo(dtype).max))))
    piece, right = applied(held, now)
    assert right and piece.changed == (held != now).sum() and piece.nbytes <= now.nbytes


@given(arrays(np.float32, SIZES, elements=st.floats(width=32)), arrays(np.bool_, SIZES))
@settings(deadline=None)
def test_nan_and_negative_zero_go_by_their_bits(values: np.ndarray, signs: np.ndarray):
    size = min(len(values), len(signs))
    held = torch.from_numpy(values[:size].copy())
    now = torch.where(torch.from_numpy(signs[:size].copy()), -held, held)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        old, new = (delta.bits_of(one.to(dtype)).copy() for one in (held, now))
        piece, right = applied(old, new)
        assert right and piece.changed == (old != new).sum()


@pytest.mark.parametrize(
    ("share", "coding", "times_fewer"),
    [(0.0, NOTHING, 1e9), (1e-4, GAPS_16, 1000), (0.03, GAPS_8, 20), (0.3, BITMAP, 2.5), (1.0, WHOLE, 1.0)],
)
def test_the_coding_is_the_one_that_takes_the_fewest_bytes(share: float, coding: int, times_fewer: float):
    random = np.random.default_rng(0)
    held = random.integers(0, 2**16, delta.BLOCK, dtype=np.uint16)
    now = held.copy()
    now[random.random(len(now)) < share] += np.uint16(1)
    piece, right = applied(held, now)
    assert right and piece.coding == coding
    assert now.nbytes >= times_fewer * piece.nbytes


@given(st.integers(0, 600), st.integers(1, 600), st.integers(0, 70_000))
@settings(deadline=None)
def test_gaps_as_long_as_a_coding_can_say_and_longer_are_right(first: int, second: int, third: int):
    held = np.zeros(first + second + third + 200_000, dtype=np.uint16)
    now = held.copy()
    now[[first, first + second, first + second + third]] = 7
    assert applied(held, now)[1]


@given(st.data(), st.integers(2, 500))
@settings(deadline=None)
def test_another_block_has_another_checksum(data: st.DataObject, size: int):
    block = np.random.default_rng(size).integers(0, 2**16, size, dtype=np.uint16)
    other = block.copy()
    place = data.draw(st.integers(0, size - 1))
    if data.draw(st.booleans()):
        other[place] ^= np.uint16(data.draw(st.integers(1, 2**16 - 1)))
    else:  # two elements change places
        other[[place, place - 1]] = other[[place - 1, place]]
    assert (checksum_of(other) == checksum_of(block)) == bool((other == block).all())


SHAPES = [(130, 70), (70,), (), (3, 5), (1,), (257,)]


def some_weights(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    return {f"w{number}": torch.randn(shape).to(dtype) for number, shape in enumerate(SHAPES)}


def specs_of(weights: dict[str, torch.Tensor]) -> list[WeightSpec]:
    return [WeightSpec(name, tuple(one.shape), str(one.dtype).removeprefix("torch.")) for name, one in weights.items()]


def stepped(weights: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """The weights with this share of elements changed; one weight stays as it is."""
    found = {name: one.clone() for name, one in weights.items()}
    for one in list(found.values())[:-1]:
        bits = signed(one)
        bits[torch.rand(len(bits)) < share] += 1
    return found


class Ends:
    """A sender and a receiver, joined by a group. `own` weights of the receiver are changed in place."""

    def __init__(self, weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> None:
        self.specs = specs_of(weights)
        self.store = listen(HOST, 30)
        self.snapshot, self.held = Snapshot(self.specs, 2), HeldWeights(self.specs, own, 2)
        self.groups: dict[int, WeightGroup] = {}
        self.together(lambda: self._join(0), lambda: self._join(1))

    def _join(self, rank: int) -> None:
        store = self.store if rank == 0 else find(HOST, self.store.port, 30)
        self.groups[rank] = WeightGroup(store, "one", rank, 2, 30, CPU, HOST)

    def together(self, send: Callable[[], None], take: Callable[[], None]) -> None:
        thread = Thread(target=take)
        thread.start()
        send()
        thread.join(30)
        assert not thread.is_alive()

    def full(self, weights: dict[str, torch.Tensor], version: int) -> None:
        bucket = bucket_size(self.specs)

        def take() -> None:
            for name, one in self.held.noting(receive(self.groups[1], self.specs, bucket, CPU), version):
                if name in self.held.own:
                    self.held.own[name].copy_(one)

        noted = self.snapshot.noting(iter(weights.items()), version)
        self.together(lambda: send(self.groups[0], noted, bucket, CPU), take)

    def delta(self, weights: dict[str, torch.Tensor], version: int) -> tuple[DeltaSize, Received]:
        found: list[Received] = []
        size = self.snapshot.compare(iter(weights.items()), version)
        self.together(
            lambda: self.snapshot.send_delta(self.groups[0], CPU),
            lambda: found.append(self.held.take(self.groups[1], version, CPU)),
        )
        return size, found[0]

    def have(self, weights: dict[str, torch.Tensor]) -> bool:
        mine = {**self.held.own, **self.held.copies}
        return all(torch.equal(signed(mine[name]), signed(one)) for name, one in weights.items())


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of several blocks, and several packets of them."""
    monkeypatch.setattr(delta, "BLOCK", 100)
    monkeypatch.setattr("shoal.wire.snapshot.PACKET", 256)
    monkeypatch.setattr("shoal.wire.held.PACKET", 256)


@pytest.mark.parametrize("in_place", [True, False])
def test_after_deltas_the_receiver_has_the_weights_bit_for_bit(in_place: bool, small_blocks: None):
    weights = some_weights()
    own = {name: torch.zeros_like(one) for name, one in weights.items()} if in_place else {}
    counted = {name: one._version for name, one in own.items()}
    ends = Ends(weights, own)
    ends.full(weights, 4)
    assert ends.have(weights) and ends.held.version == 4
    for version, share in enumerate((0.03, 0.0, 0.5, 1.0), start=5):
        weights = stepped(weights, share)
        size, received = ends.delta(weights, version)
        assert not received.wrong and ends.have(weights)
        assert ends.held.version == ends.snapshot.version == version
        assert (size.before, size.after, size.elements) == (version - 1, version, sum(map(prod, SHAPES)))
        assert size.changed_share == pytest.approx(share, abs=0.05)
        changed = dict(ends.held.changed_copies(received.changed))
        assert "w5" not in received.changed and changed.keys() == (set() if in_place else received.changed)
    # Copies of weights in 16 bits know by this count that they are old.
    assert all(one._version > counted[name] for name, one in own.items() if name != "w5")


def test_a_delta_from_another_version_is_not_applied(small_blocks: None):
    weights = some_weights()
    ends = Ends(weights, {})
    ends.full(weights, 4)
    ends.snapshot.compare(iter(stepped(weights, 0.1).items()), 5)  # of which nothing was sent
    now = stepped(weights, 0.1)
    _, received = ends.delta(now, 6)
    assert received.wrong == "it leads from version 5 to 6, and version 4 is held"
    assert ends.have(weights) and ends.held.version == UNKNOWN
    ends.full(now, 6)
    _, received = ends.delta(now, 7)
    assert not received.wrong and ends.have(now)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_weights_that_are_not_those_of_the_sender_are_seen_by_their_checksum(share: float, small_blocks: None):
    weights = some_weights()
    ends = Ends(weights, {})
    ends.full(weights, 1)
    ends.held.copies["w5"][256] += 1  # in a block of which nothing changes
    now = stepped(weights, share)
    _, received = ends.delta(now, 2)
    assert received.wrong == "1 of 98 blocks do not have their checksum, such as w5[200:257]"
    assert ends.held.version == UNKNOWN
    ends.full(now, 2)
    assert ends.have(now) and ends.held.version == 2


def test_nothing_is_compared_before_all_was_sent():
    weights = some_weights()
    snapshot = Snapshot(specs_of(weights), 1)
    assert snapshot.compare(iter(weights.items()), 1) == DeltaSize(UNKNOWN, 1, 0, 0, 0)
    half_sent = snapshot.noting(iter(weights.items()), 1)
    next(half_sent)
    half_sent.close()
    assert snapshot.compare(iter(weights.items()), 1).before == UNKNOWN
    list(snapshot.noting(iter(weights.items()), 1))
    assert snapshot.compare(iter(weights.items()), 2).before == 1
