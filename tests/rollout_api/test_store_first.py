"""What the server knows is what its store has: a write that fails changes nothing in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from api_server import environment, group, registration
from msgspec import convert, to_builtins

from shoal.rollout_api.protocol import EnvironmentRegistration, Registration
from shoal.rollout_api.server.intake import NewGroup, read_groups
from shoal.rollout_api.server.records import Delivery, ServerOptions
from shoal.rollout_api.server.server_state import ServerState
from shoal.rollout_api.server.store import Store
from shoal.rollout_api.server.writer import StoreError

REQUESTS: dict[str, Callable[[ServerState, int], Awaitable[Any]]] = {
    "an acknowledgement": lambda state, lease: state.acknowledge(lease, 7),
    "a reset": lambda state, lease: state.reset(),
    "a registration": lambda state, lease: state.register(convert(registration(8), Registration)),
    "an environment's": lambda state, lease: state.register_environment(
        convert(environment(), EnvironmentRegistration)
    ),
    "a goodbye": lambda state, lease: state.disconnect(0),
    "a batch": lambda state, lease: state.next_batch(explicit=False, version=9, shrink=False),
    "a post": lambda state, lease: state.post(new_group()),
}


def new_group(**values: Any) -> list[NewGroup]:
    return read_groups(json.dumps(group(**values)).encode(), many=False, drop_extra=False)


async def filled(store: Store) -> tuple[ServerState, int]:
    """A trainer, an environment, a leased batch and a group that waits."""
    state = ServerState(store, ServerOptions())
    await state.register(convert(registration(4), Registration))
    await state.next_batch(explicit=True, version=3, shrink=False)
    await state.register_environment(convert(environment(), EnvironmentRegistration))
    for _ in range(2):
        await state.post(new_group())
    delivery = await state.next_batch(explicit=True, version=None, shrink=False)
    assert isinstance(delivery, Delivery)
    state.delivered(delivery, whole=True)
    await store.write(lambda connection: None)  # what was written without waiting is there
    return state, delivery.lease.id


def known(state: ServerState) -> Any:
    gauges = {name: value for name, value in state.gauges().items() if name != "commits"}
    leases = [(lease.row(), lease.groups) for lease in state.leases.values()]
    return gauges, to_builtins(state.progress), to_builtins(state.environments), leases


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_whose_write_fails_changes_nothing(name: str, tmp_path: Path):
    async def run() -> None:
        store = Store(tmp_path / "groups.sqlite")
        state, lease = await filled(store)
        before = known(state)
        store.connection.execute("PRAGMA query_only = ON")  # a full disk
        with pytest.raises(StoreError):
            await REQUESTS[name](state, lease)
        assert known(state) == before
        store.connection.execute("PRAGMA query_only = OFF")
        assert known(ServerState(store, ServerOptions())) == before
        await REQUESTS[name](state, lease)
        assert known(state) != before
        store.close()

    asyncio.run(run())


def test_what_is_posted_around_a_reset_is_known_where_it_is_stored(tmp_path: Path):
    async def run() -> None:
        store = Store(tmp_path / "groups.sqlite")
        state, _ = await filled(store)
        await asyncio.gather(
            state.post(new_group(first=8)), state.reset(), *(state.post(new_group(first=9)) for _ in range(3))
        )
        assert state.backlog.groups == len(store.load().groups) == 3
        assert state.arriving == 0
        store.close()

    asyncio.run(run())
