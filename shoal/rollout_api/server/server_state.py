"""Server state: registrations, backlog, leases, step.

Reads use memory; every change is also written to the store, and a method returns once the store has it. At startup the
state is rebuilt from the store, so a restart loses nothing: a batch that was delivered but not acknowledged is still
leased.
"""

from __future__ import annotations

import asyncio
import time
from asyncio import Future
from collections import Counter
from collections.abc import Iterable
from functools import partial
from logging import getLogger
from secrets import randbits
from sqlite3 import Connection
from typing import Any

from msgspec import convert, to_builtins
from msgspec.structs import replace

from shoal.rollout_api.protocol import (
    WAIT_FOR_TRAINER,
    EnvironmentRegistration,
    EnvironmentReply,
    EnvironmentStatus,
    GroupInfo,
    Registration,
    Status,
)
from shoal.rollout_api.server.compression import DeflatedSegment
from shoal.rollout_api.server.intake import InvalidBodyError, NewGroup
from shoal.rollout_api.server.packer import Backlog, Shortage, WaitingGroup, minimums_of, pack
from shoal.rollout_api.server.records import (
    Delivery,
    Environment,
    FullError,
    Lease,
    OutOfOrderError,
    Packed,
    ServerOptions,
    TrainerProgress,
    UnknownError,
)
from shoal.rollout_api.server.rows import (
    LeaseRow,
    NewRow,
    delete_groups,
    delete_lease,
    empty,
    infos_of,
    lease_groups,
    save_environment,
    save_lease,
    save_state,
    stored_size,
    update_lease,
)
from shoal.rollout_api.server.store import Store
from shoal.rollout_api.server.writer import StoreError

logger = getLogger(__name__)

LEAST_WEIGHT = 0.01
NEARLY_FULL = 0.8
NAMED = 5  # silent environments in one line, at most


class ServerState:
    """The server's operations, without HTTP. Use it from one event loop."""

    def __init__(self, store: Store, options: ServerOptions) -> None:
        self.store = store
        self.options = options
        self.lock = asyncio.Lock()
        self.counters: Counter[str] = Counter()
        self.arriving = 0
        self.era = self.forgotten = 0  # posts of eras before `forgotten` are gone
        self._begin()
        self._load()

    def _begin(self) -> None:
        self.progress = TrainerProgress()
        self.environments: list[Environment] = []
        self.seen: dict[int, float] = {}
        self.backlog = Backlog()
        self.leases: dict[int, Lease] = {}
        self.latest: DeflatedSegment | bytes | None = None
        self.bytes = 0
        self.short_since: float | None = None

    def _load(self) -> None:
        """Rebuilds the memory. What was being sent when the server died counts as not sent."""
        saved = self.store.load()
        self.progress = convert(saved.state or {}, TrainerProgress)
        self.environments = [convert(row, Environment) for row in saved.environments]
        self.seen = dict.fromkeys(range(len(self.environments)), time.monotonic())
        self.leases = {
            row.id: Lease(row.id, [], explicit=row.explicit, sent=row.sent, counted=row.counted) for row in saved.leases
        }
        for id_, size, env_id, version, lease in saved.groups:
            if lease is None:
                self.backlog.add(WaitingGroup(id_, size, env_id, version))
            else:
                self.leases[lease].groups.append(id_)
        self.bytes = saved.bytes
        self.latest = saved.latest
        if saved.groups or self.leases:
            logger.info(
                "%d groups wait in %s, %d batches are leased", self.backlog.groups, self.store.path, len(self.leases)
            )

    async def register(self, registration: Registration) -> int:
        """A trainer, perhaps the next one: the count of steps begins anew, all data and environments stay.

        A batch that the last trainer did not acknowledge is handed out again.
        """
        async with self.lock:
            old = self.progress.registration
            start = registration.starting_step
            new = replace(self.progress, registration=registration, step=start, trained=start, version=None)
            rows = [LeaseRow(lease.id, lease.explicit, sent=False, counted=False) for lease in self.leases.values()]
            state = to_builtins(new)

            def job(connection: Connection) -> None:
                save_state(connection, state)
                for row in rows:
                    update_lease(connection, row)

            await self.store.write(job)
            self.progress = new
            for lease in self.leases.values():
                if lease.sent:  # an answer ended meanwhile: it was the last trainer's
                    self.store.submit(partial(update_lease, lease=lease.row()._replace(sent=False, counted=False)))
                lease.sent = lease.counted = lease.sending = False
                lease.delivery += 1
            logger.info(
                "a trainer registered%s: batches of %d sequences, from step %d",
                " again" if old else "",
                registration.batch_size,
                registration.starting_step,
            )
            # Atropos's ids have 128 bits, which many JSON parsers cannot hold. Nothing is done with them.
            return randbits(53)

    async def register_environment(self, registration: EnvironmentRegistration) -> EnvironmentReply:
        """An environment; refused in words until the trainer has asked for its first batch."""
        async with self.lock:
            trainer = self.progress.registration
            if trainer is None or not self.progress.started:
                return EnvironmentReply(status=WAIT_FOR_TRAINER)
            env_id = len(self.environments)
            same = sum(other.registration.desired_name == registration.desired_name for other in self.environments)
            environment = Environment(registration, f"{registration.desired_name}_{same}")
            row = to_builtins(environment)
            await self.store.write(lambda connection: save_environment(connection, env_id, row))
            self.environments.append(environment)
            self.seen[env_id] = time.monotonic()
            logger.info(
                "environment %d registered: %s, groups of %d", env_id, environment.name, registration.group_size
            )
            return EnvironmentReply(
                status="success",
                env_id=env_id,
                wandb_name=environment.name,
                checkpoint_dir=trainer.checkpoint_dir,
                starting_step=self.progress.step,
                checkpoint_interval=trainer.save_checkpoint_interval,
                num_steps=trainer.num_steps,
            )

    async def disconnect(self, env_id: int) -> None:
        """The environment will send no more; what it sent stays.

        Raises:
            UnknownError: no such environment.
        """
        async with self.lock:
            gone = replace(self._environment(env_id), connected=False)
            row = to_builtins(gone)
            await self.store.write(lambda connection: save_environment(connection, env_id, row))
            self.environments[env_id] = gone

    def check(self, groups: Iterable[NewGroup]) -> None:
        """Whether groups may come in.

        Raises:
            InvalidBodyError: a group names an environment that is not registered.
            FullError: there is no room.
        """
        for index, group in enumerate(groups):
            if group.env_id is not None and group.env_id >= len(self.environments):
                raise InvalidBodyError(f"environment {group.env_id} is not registered", [index, "env_id"])
        self.check_room()

    def check_room(self) -> None:
        """Raises FullError when there is no room."""
        waiting, options = self.backlog.groups + self.arriving, self.options
        if waiting >= options.max_groups:
            raise FullError(f"{waiting} groups wait, which is the most (--max-groups)")
        if self.bytes >= options.max_bytes:
            raise FullError(f"{self.bytes} bytes are stored, which is the most (--max-gigabytes)")

    async def post(self, groups: list[NewGroup]) -> None:
        """Takes checked groups in; they are on the disk when this returns.

        Raises:
            StoreError: nothing was stored.
        """
        version = self.version
        rows = [
            NewRow(group, version, True) if group.version is None else NewRow(group, group.version, False)
            for group in groups
        ]
        now = time.monotonic()
        self.seen.update((group.env_id, now) for group in groups if group.env_id is not None)
        era, self.arriving = self.era, self.arriving + len(groups)
        written = self.store.insert(rows)

        def arrived(done: Future[list[int | None]]) -> None:
            # Also when the client is gone by now: what is stored waits.
            self.arriving -= len(groups)
            if done.cancelled() or done.exception() or era < self.forgotten:
                return
            for id_, (group, version, _) in zip(done.result(), rows, strict=True):
                if id_ is None:
                    self.counters["duplicates"] += 1
                    continue
                self.backlog.add(WaitingGroup(id_, group.size, group.env_id, version))
                self.bytes += stored_size(group.content)
                self.latest = group.content
                self.counters["groups"] += 1
                self.counters["sequences"] += group.size
                self.counters["tokens"] += group.tokens

        written.add_done_callback(arrived)
        await asyncio.shield(written)

    @property
    def version(self) -> int:
        """The trainer's weights: as it said, else the batches that it acknowledged."""
        return self.progress.trained if self.progress.version is None else self.progress.version

    async def next_batch(self, *, explicit: bool, version: int | None, shrink: bool) -> Delivery | Shortage:
        """Leases the next batch, or one again that was not acknowledged; `shrink` as in `Store.contents`.

        Raises:
            OutOfOrderError: no trainer is registered.
            StoreError: nothing was leased.
            GoneError: the batch was acknowledged by another request meanwhile.
        """
        async with self.lock:
            trainer = self.progress.registration
            if trainer is None:
                raise OutOfOrderError("Trainer not registered. Call /register first.")
            before = convert(to_builtins(self.progress), TrainerProgress)
            self.progress.started = True
            if version is not None:
                self.progress.version = version
            done = [lease for lease in self.leases.values() if lease.sent and not (lease.explicit or explicit)]
            self.progress.trained += len(done)
            due = (lease for lease in self.leases.values() if lease not in done and self._is_due(lease, explicit))
            lease, packed = next(due, None), Packed([], [])
            if lease is None:
                packed = self._pack(trainer.batch_size)
                lease = self._new_lease(packed.groups) if packed.groups else None
            else:
                self.counters["redelivered"] += 1
            try:
                infos = await self._write_batch(lease, explicit, done, packed.stale, before)
            except StoreError:
                self.progress = before
                self.backlog.put_back([*packed.groups, *packed.stale])
                raise
            self.counters["acknowledged"] += len(done)
            for old in done:
                del self.leases[old.id]
            self._count_batch(packed, trainer.batch_size)
            if lease is None:
                assert packed.shortage is not None
                return self._explained(packed.shortage)
            self.leases[lease.id] = lease
            lease.explicit, lease.sent, lease.counted, lease.sending = explicit, False, True, True
            lease.delivery += 1
            delivery = Delivery(lease, lease.delivery, self.progress.step, infos)
        try:
            delivery.contents = await self.store.contents(lease.groups, shrink=shrink)
        finally:
            if not delivery.contents:
                self.delivered(delivery, whole=False)
        return delivery

    async def _write_batch(
        self, lease: Lease | None, explicit: bool, done: list[Lease], stale: list[WaitingGroup], before: TrainerProgress
    ) -> list[GroupInfo]:
        """One transaction: old leases end, stale groups go, the batch is leased, the step is counted."""
        self.progress.step += lease is not None and not lease.counted
        if lease is None and not done and not stale and self.progress == before:
            return []
        state = to_builtins(self.progress)
        row = LeaseRow(lease.id, explicit, sent=False, counted=True) if lease else None
        ids = lease.groups if lease else []

        def job(connection: Connection) -> tuple[list[GroupInfo], int]:
            freed = sum(delete_lease(connection, old.id) for old in done)
            freed += delete_groups(connection, [group.id for group in stale])
            save_state(connection, state)
            if row:
                save_lease(connection, row)
                lease_groups(connection, row.id, ids)
            return infos_of(connection, ids), freed

        infos, freed = await self.store.write(job)
        self.bytes -= freed
        return infos

    def _explained(self, shortage: Shortage) -> Shortage:
        """With all that may be the reason: who is silent, that nobody is there, batches that are not acknowledged."""
        parts = [shortage.reason, self._absent()]
        if self.leases:
            parts.append(f"{len(self.leases)} batches are not acknowledged yet")
        return shortage._replace(reason="; ".join(part for part in parts if part))

    def _absent(self) -> str:
        """Which environments send nothing; empty where all that are registered do."""
        connected = [env_id for env_id, one in enumerate(self.environments) if one.connected]
        if not connected:
            if self.backlog.groups:
                return ""  # somebody sends without having registered
            return "every environment has said goodbye" if self.environments else "no environment is registered"
        now = time.monotonic()
        silent = [
            f"{self.environments[env_id].name} for {now - self.seen[env_id]:.0f} s"
            for env_id in connected
            if self.silent(env_id)
        ]
        more = f" and {len(silent) - NAMED} others" if len(silent) > NAMED else ""
        return f"silent: {', '.join(silent[:NAMED])}{more}" if silent else ""

    def _new_lease(self, groups: list[WaitingGroup]) -> Lease:
        lease = Lease(self.progress.next_lease, [group.id for group in groups])
        self.progress.next_lease += 1
        return lease

    def delivered(self, delivery: Delivery, *, whole: bool) -> None:
        """An answer ended. Where it was whole, a stock trainer's next request acknowledges the batch."""
        lease = delivery.lease
        if lease.delivery != delivery.number:
            return
        lease.sending, lease.sent = False, whole
        if whole and lease.id in self.leases:
            row = lease.row()
            self.store.submit(lambda connection: update_lease(connection, row))

    async def acknowledge(self, lease_id: int, version: int | None) -> None:
        """The trainer has this batch for good. Saying so twice is harmless.

        Raises:
            UnknownError: no batch was leased under this number.
        """
        async with self.lock:
            if not 0 < lease_id < self.progress.next_lease:
                raise UnknownError(f"no batch was leased as {lease_id}")
            known = lease_id in self.leases
            version = self.progress.version if version is None else version
            new = replace(self.progress, trained=self.progress.trained + known, version=version)
            state = to_builtins(new)

            def job(connection: Connection) -> int:
                save_state(connection, state)
                return delete_lease(connection, lease_id)

            self.bytes -= await self.store.write(job)
            self.progress = new
            self.leases.pop(lease_id, None)
            self.counters["acknowledged"] += known

    async def reset(self) -> None:
        """Forgets everything but the numbers of groups and leases."""
        async with self.lock:
            new = TrainerProgress(next_lease=self.progress.next_lease)
            state = to_builtins(new)
            # Posts from here on are stored after the reset, those before are emptied by it.
            self.era += 1
            era = self.era

            def job(connection: Connection) -> None:
                empty(connection)
                save_state(connection, state)

            def done(written: Future[None]) -> None:
                # At once, before any post that is stored after it arrives.
                if not written.cancelled() and written.exception() is None:
                    self._begin()
                    self.progress, self.forgotten = new, era

            written = self.store.submit(job)
            written.add_done_callback(done)
            await asyncio.shield(written)
            logger.info("all data was reset")

    def status(self) -> Status:
        """Public status: step, queue size, weights version."""
        return Status(current_step=self.progress.step, queue_size=self.backlog.groups, weights_version=self.version)

    def environment_status(self, env_id: int) -> EnvironmentStatus:
        """Status for one environment; each request also counts as its sign of life.

        Raises:
            UnknownError: no such environment.
        """
        environment = self._environment(env_id)
        self.seen[env_id] = time.monotonic()
        active = [other for other in self.environments if other.connected]
        size = environment.registration.group_size
        own = self.backlog.sequences_of(env_id)
        least = minimums_of(self._shares(), self._batch_size())
        others = sum(
            max(0, queue.sequences - least.get(other, 0) if other is not None else queue.sequences)
            for other, queue in self.backlog.queues.items()
            if other != env_id
        )
        shares = (other.registration.min_batch_allocation or 0.0 for other in active)
        context = [other.registration.max_token_length * other.registration.weight for other in active]
        mine = environment.registration.max_token_length * environment.registration.weight
        weight = mine / sum(context) if sum(context) > 0 else 1 / max(1, len(active))
        held_back = self._hold_back(size)
        return EnvironmentStatus(
            current_step=self.progress.step,
            queue_size=max((own + others) // size, held_back),
            unallocated_fraction=1.0 - min(1.0, sum(shares)),
            self_queue_size=max(own // size, held_back),
            max_group_size=self.backlog.largest(),
            env_weight=max(LEAST_WEIGHT, weight),
            weights_version=self.version,
        )

    def silent(self, env_id: int) -> bool:
        """Whether an environment has sent nothing for too long."""
        return time.monotonic() - self.seen[env_id] > self.options.environment_timeout

    def _hold_back(self, size: int) -> int:
        """Groups to report so that stock environments pause, 0 while there is room.

        As many as the remaining steps can use: at one more they would take the run for finished and end.
        """
        waiting, options = self.backlog.groups + self.arriving, self.options
        if waiting < NEARLY_FULL * options.max_groups and self.bytes < NEARLY_FULL * options.max_bytes:
            return 0
        trainer = self.progress.registration
        steps = trainer.num_steps - self.progress.step if trainer and trainer.num_steps > 0 else 16
        return max(0, steps) * self._batch_size() // size

    def _environment(self, env_id: int) -> Environment:
        if env_id >= len(self.environments):
            raise UnknownError(f"environment {env_id} is not registered")
        return self.environments[env_id]

    def _batch_size(self) -> int:
        return self.progress.registration.batch_size if self.progress.registration else 0

    def _shares(self) -> dict[int, float]:
        """The minimums that count: of environments that are connected and not silent."""
        return {
            env_id: share
            for env_id, environment in enumerate(self.environments)
            if environment.connected
            and not self.silent(env_id)
            and (share := environment.registration.min_batch_allocation) is not None
        }

    @staticmethod
    def _is_due(lease: Lease, explicit: bool) -> bool:
        """Whether a lease is handed out again to who asks like this."""
        lost = not lease.sent and not lease.sending
        return lost or (explicit and lease.explicit)

    def _pack(self, batch_size: int) -> Packed:
        """Takes the next batch out of the backlog, and what is too stale for one."""
        stale = [] if self.options.max_staleness is None else self.backlog.take_oldest(self._is_stale)
        while True:
            packed = self._pack_once(batch_size)
            if isinstance(packed, Shortage):
                return Packed([], stale, packed)
            self.backlog.take(packed)
            too_old = [group for group in packed if self._is_stale(group)]
            if not too_old:
                self.short_since = None
                return Packed(packed, stale)
            stale += too_old
            self.backlog.put_back([group for group in packed if group not in too_old])

    def _pack_once(self, batch_size: int) -> list[WaitingGroup] | Shortage:
        minimums = minimums_of(self._shares(), batch_size)
        packed = pack(self.backlog, batch_size, minimums)
        if not isinstance(packed, Shortage) or packed.env_id is None:
            return packed
        now = time.monotonic()
        self.short_since = self.short_since or now
        left = self.short_since + self.options.minimum_wait - now
        if left <= 0:
            return pack(self.backlog, batch_size, minimums, patient=False)
        return Shortage(f"{packed.reason}; waiting for {left:.0f} s more", packed.env_id)

    def _is_stale(self, group: WaitingGroup) -> bool:
        bound = self.options.max_staleness
        return bound is not None and self.version - group.version > bound

    def _count_batch(self, packed: Packed, batch_size: int) -> None:
        self.counters["stale"] += len(packed.stale)
        if packed.groups:
            size = sum(group.size for group in packed.groups)
            self.counters["batches"] += 1
            self.counters["batches_short"] += size < batch_size
            self.counters["batches_long"] += size > batch_size

    def gauges(self) -> dict[str, Any]:
        """Numbers of now, for /metrics."""
        return {
            "step": self.progress.step,
            "weights_version": self.version,
            "waiting_groups": self.backlog.groups,
            "waiting_sequences": self.backlog.sequences,
            "leased_batches": len(self.leases),
            "stored_bytes": self.bytes,
            "environments": len(self.environments),
            "environments_silent": sum(map(self.silent, range(len(self.environments)))),
            "commits": self.store.commits,
        }
