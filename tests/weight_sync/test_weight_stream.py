"""Weights through a process group: whole, in order, in little memory, and never waited for without end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import PrefixStore

from shoal.errors import EngineError
from shoal.weight_sync.together import run_together
from shoal.wire import stream
from shoal.wire.stream import WeightGroup, WeightSpec, bucket_size, cards, find, listen, packets, receive, send

CPU = torch.device("cpu")
HOST = "127.0.0.1"
SHAPES = [(40, 30), (30,), (7,), (3, 5), (100, 100), (1,), (64,), (90, 100)]


def some_weights(dtype: torch.dtype = torch.float32) -> list[tuple[str, torch.Tensor]]:
    return [(f"w{number}", torch.randn(shape).to(dtype)) for number, shape in enumerate(SHAPES)]


def specs_of(weights: list[tuple[str, torch.Tensor]]) -> list[WeightSpec]:
    return [WeightSpec(name, tuple(one.shape), str(one.dtype).removeprefix("torch.")) for name, one in weights]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=30), st.integers(16, 4000))
@settings(deadline=None)
def test_every_weight_goes_once_and_small_ones_go_together(sizes: list[int], bucket: int):
    items = [(str(number), torch.empty(size, dtype=torch.uint8)) for number, size in enumerate(sizes)]
    found = list(packets(items, bucket))
    assert sorted(name for packet in found for name, _ in packet) == sorted(name for name, _ in items)
    for packet in found:
        assert len(packet) == 1 or sum(one.nbytes for _, one in packet) <= bucket
    assert [[name for name, _ in packet] for packet in packets(items, bucket)] == [
        [name for name, _ in packet] for packet in found
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [None, 9000], ids=["in one bucket", "in several, and some alone"])
def test_what_is_received_is_what_was_sent_also_to_several_workers(dtype: torch.dtype, size: int | None):
    weights = some_weights(dtype)
    specs = specs_of(weights)
    bucket = size or bucket_size(specs)
    assert (len(list(packets(weights, bucket))) == 1) == (size is None)
    store = listen(HOST, 30)
    got: dict[int, dict[str, torch.Tensor]] = {1: {}, 2: {}}

    def worker(rank: int) -> None:
        group = WeightGroup(find(HOST, store.port, 30), "one", rank, 3, 30, CPU, HOST)
        for name, tensor in receive(group, specs, bucket, CPU):
            got[rank][name] = tensor.clone()

    threads = [Thread(target=worker, args=(rank,)) for rank in got]
    for thread in threads:
        thread.start()
    send(WeightGroup(store, "one", 0, 3, 30, CPU, HOST), weights, bucket, CPU)
    for thread in threads:
        thread.join(30)
    for found in got.values():
        assert found.keys() == dict(weights).keys()
        assert all(torch.equal(found[name], one) for name, one in weights)


@pytest.mark.parametrize("same", [True, False])
def test_every_rank_learns_whether_two_of_them_share_a_card(same: bool):
    store = listen(HOST, 30)
    own = ["GPU-0", "GPU-0" if same else "GPU-1"]
    found: dict[int, list[str]] = {}

    def worker() -> None:
        found[1] = cards(PrefixStore("one", find(HOST, store.port, 30)), 1, 2, own[1])

    thread = Thread(target=worker)
    thread.start()
    found[0] = cards(PrefixStore("one", store), 0, 2, own[0])
    thread.join(30)
    assert found == {0: own, 1: own}


def test_two_processes_on_one_card_get_a_group_without_nccl(monkeypatch: pytest.MonkeyPatch):
    """NCCL refuses two ranks on one card; Gloo carries a card's tensors too."""
    monkeypatch.setattr(stream, "card_of", lambda device: "GPU-0")
    store, cuda = listen(HOST, 30), torch.device("cuda")
    got: list[torch.Tensor] = []

    def worker() -> None:
        group = WeightGroup(find(HOST, store.port, 30), "one", 1, 2, 30, cuda, HOST)
        got.append(torch.zeros(4, dtype=torch.uint8))
        group.broadcast(got[0])

    thread = Thread(target=worker)
    thread.start()
    WeightGroup(store, "one", 0, 2, 30, cuda, HOST).broadcast(torch.arange(4, dtype=torch.uint8))
    thread.join(30)
    assert got[0].tolist() == [0, 1, 2, 3]


DIES = """
import sys, time, torch
from shoal.wire.stream import WeightGroup, find
group = WeightGroup(find("127.0.0.1", int(sys.argv[1]), 30), "one", 1, 2, 30, torch.device("cpu"), "127.0.0.1")
group.broadcast(torch.zeros(10_000, dtype=torch.uint8))
print("in", flush=True)
time.sleep(60)
"""


def test_a_peer_that_is_killed_ends_the_stream_long_before_the_deadline():
    store = listen(HOST, 60)
    peer = subprocess.Popen([sys.executable, "-c", DIES, str(store.port)], stdout=subprocess.PIPE)
    group = WeightGroup(store, "one", 0, 2, 60, CPU, HOST)
    group.broadcast(torch.zeros(10_000, dtype=torch.uint8))
    assert peer.stdout is not None and peer.stdout.readline() == b"in\n"
    peer.kill()
    peer.wait()
    big = torch.zeros(50_000_000, dtype=torch.uint8)
    started = time.monotonic()
    with pytest.raises(RuntimeError):
        for _ in range(3):
            group.broadcast(big)
    assert time.monotonic() - started < 50


def test_the_store_listens_at_its_address_alone():
    store = listen("127.0.0.2", 30)
    find("127.0.0.2", store.port, 5)
    with pytest.raises(RuntimeError):
        find("127.0.0.3", store.port, 1)


def fails() -> None:
    raise ValueError("a worker\nis lost")


@pytest.mark.parametrize(
    ("call", "said"), [(fails, "second: a worker is lost"), (lambda: time.sleep(30), r"no word after 2 s from: sec")]
)
def test_the_first_failure_or_the_deadline_ends_the_wait_for_all(call: Callable[[], Any], said: str):
    started = time.monotonic()
    with pytest.raises(EngineError, match=said):
        run_together({"first": lambda: 1, "second": call}, 2)
    assert time.monotonic() - started < 20
