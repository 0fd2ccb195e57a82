"""Weights through a process group: large tensors one by one, small ones packed. Both ends of it.

The group is a second one, made from a store and nothing else: it needs no default group and disturbs none.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import prod
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, Store, TCPStore

from shoal.network import is_loopback

BUCKET = 2**20  # bytes: smaller tensors are packed into buckets of at most so many
ALIGNMENT = 16  # bytes: where a tensor may begin within a bucket


@dataclass(frozen=True)
class WeightSpec:
    """A weight by its Hugging Face name; `dtype` is torch's name of it, such as float32."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * getattr(torch, self.dtype).itemsize

    def fits(self, tensor: Tensor, device: torch.device) -> bool:
        """Whether a tensor's memory is that of this weight as it goes over the wire, on a device of this type."""
        same = tensor.shape == self.shape and tensor.dtype == getattr(torch, self.dtype)
        return same and tensor.is_contiguous() and tensor.device.type == device.type

    def to_row(self) -> list[Any]:
        """As JSON."""
        return [self.name, list(self.shape), self.dtype]

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> WeightSpec:
        return cls(row[0], tuple(row[1]), row[2])


class Sized(Protocol):
    """A spec or a tensor."""

    @property
    def nbytes(self) -> int: ...


One = TypeVar("One", bound=Sized)


def packets(items: Iterable[tuple[str, One]], bucket: int) -> Iterator[list[tuple[str, One]]]:
    """What goes together, in the order of the wire: the same at both ends, for the same weights in the same order."""
    waiting: list[tuple[str, One]] = []
    size = 0
    for name, item in items:
        if item.nbytes >= bucket:
            yield [(name, item)]
            continue
        if size + padded(item.nbytes) > bucket and waiting:
            yield waiting
            waiting, size = [], 0
        waiting.append((name, item))
        size += padded(item.nbytes)
    if waiting:
        yield waiting


def padded(nbytes: int) -> int:
    """So many bytes, rounded up to where the next tensor may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def bucket_size(specs: Iterable[WeightSpec]) -> int:
    """Bytes of a bucket: all of a small model goes in one, since each takes both ends a wait for the other."""
    return min(BUCKET, sum(padded(spec.nbytes) for spec in specs) or BUCKET)


class WeightGroup:
    """A process group of the learner (rank 0) and all workers: NCCL between GPUs, Gloo on a CPU and where two of the
    processes share a GPU, which NCCL refuses.

    `name` must be new at every (re)connection: a store remembers the addresses of the last one.

    Raises:
        RuntimeError: not all of the `world` came within `seconds`.
    """

    def __init__(
        self, store: TCPStore, name: str, rank: int, world: int, seconds: float, device: torch.device, host: str
    ) -> None:
        self.timeout = timedelta(seconds=seconds)
        named = PrefixStore(name, store)
        if device.type == "cuda" and len(set(cards(named, rank, world, card_of(device)))) == world:
            from torch.distributed import ProcessGroupNCCL  # noqa: PLC0415 - not in builds of torch without CUDA

            options = ProcessGroupNCCL.Options()
            options._timeout = self.timeout
            self.group: Any = ProcessGroupNCCL(named, rank, world, options)
            return
        gloo = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        gloo._timeout = self.timeout
        # Over loopback the host's own name, which may resolve to an address of another network, is not asked for.
        gloo._devices = [
            ProcessGroupGloo.create_device(hostname=host)
            if is_loopback(host)
            else ProcessGroupGloo.create_default_device()
        ]
        self.group = ProcessGroupGloo(named, rank, world, gloo)

    def broadcast(self, tensor: Tensor) -> None:
        """Rank 0's values, a contiguous tensor of bytes, to all. Raises RuntimeError at a lost peer or deadline."""
        self.group.broadcast(tensor, 0).wait(self.timeout)

    def drop(self) -> None:
        """Closes its connections: members that wait for something in it are told so at once."""
        self.group = None


@dataclass(frozen=True)
class Meeting:
    """Where and as what the `world` members of a group find each other within `seconds`: plain values, which can be
    sent to the process of a member. `host` and `port` are those of the store that `listen` opened."""

    host: str
    port: int
    name: str
    world: int
    seconds: float

    def join(self, rank: int, device: torch.device) -> WeightGroup:
        """The group, when all members have come. Raises RuntimeError as `WeightGroup` does."""
        store = find(self.host, self.port, self.seconds)
        return WeightGroup(store, self.name, rank, self.world, self.seconds, device, self.host)


def cards(store: Store, rank: int, world: int, card: str) -> list[str]:
    """The card of each rank: every rank says its own and waits for the others', as long as the store allows."""
    store.set(f"card {rank}", card)
    return [store.get(f"card {other}").decode() for other in range(world)]


def card_of(device: torch.device) -> str:
    """What tells a GPU from all others, also where each process numbers those that it sees from 0."""
    return str(torch.cuda.get_device_properties(device).uuid)


def listen(host: str, seconds: float) -> TCPStore:
    """The store at which a group's members find each other; bound to `host` alone, on a free port (`store.port`)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((host, 0))
        door.listen()
        port = door.getsockname()[1]
        return TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=seconds),
            master_listen_fd=door.detach(),
        )


def find(host: str, port: int, seconds: float) -> TCPStore:
    """The store that `listen` opened."""
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))


@torch.no_grad()
def send(group: WeightGroup, weights: Iterable[tuple[str, Tensor]], bucket: int, device: torch.device) -> None:
    """Broadcasts weights as they come. Beside them no more than one bucket is held, and what had to be moved."""
    room = torch.empty(bucket, dtype=torch.uint8, device=device)
    for packet in packets(weights, bucket):
        if len(packet) == 1 and packet[0][1].nbytes >= bucket:
            group.broadcast(as_bytes(packet[0][1].to(device)))
            continue
        end = 0
        for _, tensor in packet:
            room[end : end + tensor.nbytes].copy_(as_bytes(tensor))
            end += padded(tensor.nbytes)
        group.broadcast(room[:end])


def receive(
    group: WeightGroup,
    specs: Sequence[WeightSpec],
    bucket: int,
    device: torch.device,
    places: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights that `send` broadcasts. Each is valid until the next is asked for: one buffer holds all.

    A large weight that has its own place in `places`, of the same shape and dtype on this device, arrives there, and
    the place itself is given. It is written past torch, which does not count that as a change of the tensor.
    """
    places = places or {}
    room = torch.empty(0, dtype=torch.uint8, device=device)
    for packet in packets(((spec.name, spec) for spec in specs), bucket):
        whole = len(packet) == 1 and packet[0][1].nbytes >= bucket
        name, spec = packet[0]
        place = places.get(name)
        if whole and place is not None and spec.fits(place, device):
            group.broadcast(as_bytes(place))
            yield name, place
            continue
        size = spec.nbytes if whole else sum(padded(spec.nbytes) for _, spec in packet)
        if size > len(room):
            room = torch.empty(max(size, bucket), dtype=torch.uint8, device=device)
        group.broadcast(room[:size])
        end = 0
        for name, spec in packet:
            yield name, room[end : end + spec.nbytes].view(getattr(torch, spec.dtype)).view(spec.shape)
            end += padded(spec.nbytes)


def as_bytes(tensor: Tensor) -> Tensor:
    """The same memory as a vector of bytes; a copy where the tensor is not contiguous."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
