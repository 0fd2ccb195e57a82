"""Which waiting groups make the next batch: oldest first, exactly `batch_size` sequences where that is possible.

The oldest group is in every batch, whatever its size, its environment and the others' minimums. So a group with k older
ones is delivered with the (k+1)th batch at the latest: nothing starves. Groups stay whole. Where no choice among the
next groups gives exactly `batch_size` sequences beside the oldest, the batch has fewer; a group larger than that is a
batch of its own.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

SEARCH = 256
"""How many groups, and how many sequences at the end of a batch, the search for an exact fit looks at."""


class WaitingGroup(NamedTuple):
    """A group in the queue. Ids rise with age: the smallest is the oldest. `size` counts sequences."""

    id: int
    size: int
    env_id: int | None
    version: int


@dataclass
class Queue:
    """The groups of one environment, oldest first, and their sequences."""

    groups: deque[WaitingGroup] = field(default_factory=deque)
    sequences: int = 0


class Backlog:
    """All waiting groups, by environment. Adding is O(1), taking O(groups passed over)."""

    def __init__(self) -> None:
        self.queues: dict[int | None, Queue] = {}
        self.sizes: Counter[int] = Counter()
        self.groups = 0
        self.sequences = 0

    def add(self, group: WaitingGroup) -> None:
        """Appends a group to its environment's queue."""
        queue = self.queues.setdefault(group.env_id, Queue())
        queue.groups.append(group)
        self._count(queue, group, 1)

    def take(self, groups: list[WaitingGroup]) -> None:
        """Removes groups that wait here."""
        wanted = {group.id for group in groups}
        for env_id in {group.env_id for group in groups}:
            queue = self.queues[env_id]
            left = sum(group.env_id == env_id for group in groups)
            passed: list[WaitingGroup] = []
            while left:
                group = queue.groups.popleft()
                if group.id in wanted:
                    left -= 1
                    self._count(queue, group, -1)
                else:
                    passed.append(group)
            queue.groups.extendleft(reversed(passed))
            if not queue.groups:
                del self.queues[env_id]

    def take_oldest(self, unwanted: Callable[[WaitingGroup], bool]) -> list[WaitingGroup]:
        """Removes each environment's oldest groups as long as they are unwanted."""
        taken: list[WaitingGroup] = []
        for queue in self.queues.values():
            while queue.groups and unwanted(queue.groups[0]):
                group = queue.groups.popleft()
                self._count(queue, group, -1)
                taken.append(group)
        self.queues = {env_id: queue for env_id, queue in self.queues.items() if queue.groups}
        return taken

    def put_back(self, groups: list[WaitingGroup]) -> None:
        """Undoes `take`."""
        for group in groups:
            queue = self.queues.setdefault(group.env_id, Queue())
            queue.groups = deque(sorted([*queue.groups, group]))
            self._count(queue, group, 1)

    def oldest_first(self) -> Iterator[WaitingGroup]:
        """All groups, without a copy of the queue."""
        return merge(*(queue.groups for queue in self.queues.values()), key=attrgetter("id"))

    def sequences_of(self, env_id: int | None) -> int:
        """How many sequences of one environment wait."""
        queue = self.queues.get(env_id)
        return queue.sequences if queue else 0

    def largest(self) -> int:
        """The size of the largest group that waits, at least 1."""
        return max(self.sizes, default=1)

    def _count(self, queue: Queue, group: WaitingGroup, sign: int) -> None:
        queue.sequences += sign * group.size
        self.sequences += sign * group.size
        self.groups += sign
        self.sizes[group.size] += sign
        if not self.sizes[group.size]:
            del self.sizes[group.size]


class Shortage(NamedTuple):
    """Why there is no batch. `env_id`: whose minimum is waited for; None where there is too little altogether."""

    reason: str
    env_id: int | None = None


def minimums_of(shares: Mapping[int, float], batch_size: int) -> dict[int, int]:
    """The least sequences of each environment in a batch, from the shares asked for; above 1 in sum they shrink."""
    scale = max(1.0, sum(shares.values()))
    return {env_id: int(batch_size * share / scale) for env_id, share in shares.items()}


def pack(
    backlog: Backlog, batch_size: int, minimums: Mapping[int, int] | None = None, patient: bool = True
) -> list[WaitingGroup] | Shortage:
    """The next batch, oldest group first; the backlog stays as it is. O(batch), however many groups wait.

    `minimums` are the least sequences by environment: without `patient` an environment that has too little gives
    what it has, and with it the batch waits. A minimum that does not fit beside the oldest group gives way.
    """
    if backlog.sequences < batch_size:
        return Shortage(f"{backlog.sequences} of {batch_size} sequences are waiting")
    oldest = next(backlog.oldest_first())
    if oldest.size >= batch_size:
        return [oldest]
    chosen = {oldest.id: oldest}
    room = batch_size - oldest.size
    for env_id, least in (minimums or {}).items():
        have = backlog.sequences_of(env_id)
        if patient and have < least:
            reason = f"environment {env_id} has {have} of the {least} sequences of its minimum in a batch"
            return Shortage(reason, env_id)
        needed = least - (oldest.size if oldest.env_id == env_id else 0)
        for group in islice(backlog.queues[env_id].groups, 2 * batch_size) if have else ():
            if needed <= 0:
                break
            if group.id not in chosen and group.size <= room:
                chosen[group.id] = group
                room -= group.size
                needed -= group.size
    for group in _fill(backlog, chosen, room):
        chosen[group.id] = group
    return sorted(chosen.values())


def _fill(backlog: Backlog, chosen: Mapping[int, WaitingGroup], room: int) -> list[WaitingGroup]:
    """Groups beside the chosen ones with `room` sequences together, oldest first; fewer where that is impossible."""
    filled: list[WaitingGroup] = []
    others = (group for group in backlog.oldest_first() if group.id not in chosen)
    # All but the last stretch is simply the oldest. A bounded number of groups that are too large is passed over.
    for group in islice(others, room + SEARCH if room > SEARCH else 0):
        if group.size <= room:
            filled.append(group)
            room -= group.size
        if room <= SEARCH:
            break
    return filled + _exact_fit(list(islice(others, SEARCH)), room)


def _exact_fit(groups: list[WaitingGroup], room: int) -> list[WaitingGroup]:
    """The subset whose sizes add up to `room`, or to as much below as can be; of several the one with the oldest.

    `reachable[i]` has bit s set where some of the groups from i on add up to s.
    """
    every_sum = (1 << room + 1) - 1
    reachable = [1]
    for group in reversed(groups):
        reachable.append((reachable[-1] | reachable[-1] << group.size) & every_sum)
    reachable.reverse()
    left = reachable[0].bit_length() - 1
    fit: list[WaitingGroup] = []
    for group, after in zip(groups, reachable[1:], strict=True):
        if group.size <= left and after >> left - group.size & 1:
            fit.append(group)
            left -= group.size
    return fit
