"""What the server's state is made of: options, leases, deliveries, and the trainer's progress."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as dataclass_field
from secrets import randbits
from typing import NamedTuple

from msgspec import Struct, field

from shoal.rollout_api.protocol import EnvironmentRegistration, GroupInfo, Registration
from shoal.rollout_api.server.compression import DeflatedSegment
from shoal.rollout_api.server.packer import Shortage, WaitingGroup
from shoal.rollout_api.server.rows import LeaseRow


@dataclass(frozen=True)
class ServerOptions:
    """Command-line options of the server. `max_staleness`: groups sampled more versions ago are dropped.

    `environment_timeout` (seconds without a request) makes an environment silent: its minimum no longer holds batches
    back. `minimum_wait` is how many seconds a batch waits for the minimum of one that is not silent.
    """

    max_groups: int = 100_000
    max_bytes: int = 50 * 2**30
    max_request: int = 256 * 2**20
    max_staleness: int | None = None
    environment_timeout: float = 60.0
    minimum_wait: float = 10.0
    drop_extra: bool = False


class OutOfOrderError(Exception):
    """A request that must come after another one."""


class UnknownError(Exception):
    """A lease or an environment that was never given out."""


class FullError(Exception):
    """No room for more groups."""


class TrainerProgress(Struct):
    """What the trainer's side has come to. `trained` counts acknowledged batches, from the starting step.

    Leases count from a random number, so that a trainer never takes another store's batch for one that it has.
    """

    registration: Registration | None = None
    started: bool = False
    step: int = 0
    trained: int = 0
    version: int | None = None
    next_lease: int = field(default_factory=lambda: 1 + randbits(48))


class Environment(Struct):
    """A registered environment; its id is its place in the list."""

    registration: EnvironmentRegistration
    name: str
    connected: bool = True


@dataclass
class Lease:
    """A batch that was handed out. `sending`: an answer with it is under way; `delivery` tells answers apart."""

    id: int
    groups: list[int]
    explicit: bool = False
    sent: bool = False
    counted: bool = False
    sending: bool = False
    delivery: int = 0

    def row(self) -> LeaseRow:
        return LeaseRow(self.id, self.explicit, self.sent, self.counted)


@dataclass
class Delivery:
    """One answer to /batch. Call `ServerState.delivered` when it is sent, or has failed."""

    lease: Lease
    number: int
    step: int
    infos: list[GroupInfo]
    contents: list[DeflatedSegment] = dataclass_field(default_factory=list)


class Packed(NamedTuple):
    """What was taken out of the backlog: a batch or the reason for none, and groups that are too stale."""

    groups: list[WaitingGroup]
    stale: list[WaitingGroup]
    shortage: Shortage | None = None
