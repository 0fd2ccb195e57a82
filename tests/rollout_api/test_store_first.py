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
from shoal.rollout_api.server.exchange import Delivery, Exchange, Policy
from shoal.rollout_api.server.intake import NewGroup, read_groups
from shoal.rollout_api.server.store import Store
from shoal.rollout_api.server.writer import StoreError

REQUESTS: dict[str, Callable[[Exchange, int], Awaitable[Any]]] = {
    "an acknowledgement": lambda exchange, lease: exchange.acknowledge(lease, 7),
    "a reset": lambda exchange, lease: exchange.reset(),
    "a registration": lambda exchange, lease: exchange.register(convert(registration(8), Registration)),
    "an environment's": lambda exchange, lease: exchange.register_environment(
        convert(environment(), EnvironmentRegistration)
    ),
    "a goodbye": lambda exchange, lease: exchange.disconnect(0),
    "a batch": lambda exchange, lease: exchange.next_batch(explicit=False, version=9, shrink=False),
    "a post": lambda exchange, lease: exchange.post(new_group()),
}


def new_group(**values: Any) -> list[NewGroup]:
    return read_groups(json.dumps(group(**values)).encode(), many=False, drop_extra=False)


async def filled(store: Store) -> tuple[Exchange, int]:
    """A trainer, an environment, a leased batch and a group that waits."""
    exchange = Exchange(store, Policy())
    await exchange.register(convert(registration(4), Registration))
    await exchange.next_batch(explicit=True, version=3, shrink=False)
    await exchange.register_environment(convert(environment(), EnvironmentRegistration))
    for _ in range(2):
        await exchange.post(new_group())
    delivery = await exchange.next_batch(explicit=True, version=None, shrink=False)
    assert isinstance(delivery, Delivery)
    exchange.delivered(delivery, whole=True)
    await store.write(lambda connection: None)  # what was written without waiting is there
    return exchange, delivery.lease.id


def known(exchange: Exchange) -> Any:
    gauges = {name: value for name, value in exchange.gauges().items() if name != "commits"}
    leases = [(lease.row(), lease.groups) for lease in exchange.leases.values()]
    return gauges, to_builtins(exchange.state), to_builtins(exchange.environments), leases


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_whose_write_fails_changes_nothing(name: str, tmp_path: Path):
    async def run() -> None:
        store = Store(tmp_path / "groups.sqlite")
        exchange, lease = await filled(store)
        before = known(exchange)
        store.connection.execute("PRAGMA query_only = ON")  # a full disk
        with pytest.raises(StoreError):
            await REQUESTS[name](exchange, lease)
        assert known(exchange) == before
        store.connection.execute("PRAGMA query_only = OFF")
        assert known(Exchange(store, Policy())) == before
        await REQUESTS[name](exchange, lease)
        assert known(exchange) != before
        store.close()

    asyncio.run(run())


def test_what_is_posted_around_a_reset_is_known_where_it_is_stored(tmp_path: Path):
    async def run() -> None:
        store = Store(tmp_path / "groups.sqlite")
        exchange, _ = await filled(store)
        await asyncio.gather(
            exchange.post(new_group(first=8)), exchange.reset(), *(exchange.post(new_group(first=9)) for _ in range(3))
        )
        assert exchange.backlog.groups == len(store.load().groups) == 3
        assert exchange.arriving == 0
        store.close()

    asyncio.run(run())
