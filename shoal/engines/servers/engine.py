"""An engine of servers behind HTTP: one or several, launched here or run by someone else."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from logging import getLogger
from threading import Condition, RLock, Thread
from time import monotonic
from typing import Any

import httpx

from shoal.engines.base import Engine, EngineOutput, Request, counted
from shoal.engines.servers.control import Control
from shoal.engines.servers.load import LoadMetrics
from shoal.engines.servers.requests import TEMPERATURE_1, RequestForm, output_of, scored, stamp
from shoal.engines.servers.server import Owner, Server
from shoal.errors import EngineError, ServerDied, ServerGone
from shoal.types import Place, Segment

logger = getLogger(__name__)

LOOK_SECONDS = 1.0  # between looks at the servers' load
BETWEEN_SECONDS = 1.0  # at most, between two polls of a caller that also does other things
ABORT_SECONDS = 0.2  # between attempts: a request that is still on its way to the server is not known there
NOT_ASKED = -1


class Silence:
    """Seconds for which servers were listened to without a result. Time in which nobody listened does not count: a
    trainer that was stopped for an hour (Ctrl-Z) finds an hour's results, and no server that hangs."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.last_listened = monotonic()

    def goes_on(self, timeout: float) -> None:
        """Takes note of the time since the last call, of which the caller spent `timeout` seconds at most listening."""
        now = monotonic()
        self.seconds += min(now - self.last_listened, timeout + BETWEEN_SECONDS)
        self.last_listened = now

    def ends(self) -> None:
        """Begins to count anew."""
        self.seconds, self.last_listened = 0.0, monotonic()


class SentRequest:
    """A request that has not come out yet, and the server that has it."""

    def __init__(self, form: dict[str, Any], group: str, version: int) -> None:
        self.form = form
        self.group = group
        self.versions = [(0, version)]
        self.server: Server
        self.incarnation = NOT_ASKED
        self.unwanted = False  # aborted by its owner, so not asked again
        self.paused_at: int | None = None  # tokens that it had when generation was paused


class ServersEngine(Engine):
    """Spreads requests over servers, those of one group to one server, whose prefix cache then holds their prompt.

    A thread of its own talks to the servers. One that dies or hangs is started again, given the present weights by
    `restore`, and asked again for what it owed; a result of its earlier life is not taken, so each completion comes out
    once.

    Args:
        form: Makes the requests.
        timeout: Seconds without any completion, or for one call, before a server counts as hanging.
        restarts: Most restarts of servers that died.
        open_servers: Starts or finds the servers; they belong to the engine that it is given.

    Raises:
        EngineError: a server does not start, or does not answer.
    """

    restore: Callable[[Control], None] | None = None
    """Gives a server that was started again the weights of now; the weight sync sets it."""

    def __init__(
        self,
        form: RequestForm,
        *,
        timeout: float,
        restarts: int,
        open_servers: Callable[[Owner], Sequence[Server]],
    ) -> None:
        self.form = form
        self.timeout = timeout
        self.restarts_left = restarts
        self.started_again = 0
        self.flights: dict[str, SentRequest] = {}
        self.ready: deque[EngineOutput] = deque()
        self.refused: EngineError | None = None
        self.broken: list[tuple[Server, int, str]] = []
        self.changed = Condition(RLock())
        self.reviving = RLock()
        self.paused: set[str] = set()
        self.down: set[Server] = set()
        self.load = LoadMetrics()
        self.busy_since: float | None = None
        self.silence = Silence()
        self.looking = False
        self.loop = asyncio.new_event_loop()
        self.thread = Thread(target=self.loop.run_forever, name="requests to servers", daemon=True)
        self.thread.start()
        self.servers: list[Server] = []
        self.clients: dict[str, httpx.AsyncClient] = {}
        try:
            self.servers = list(open_servers(self))
        except BaseException:
            self.close()
            raise
        self.replicas: list[Control] = list(self.servers)
        self.clients = {server.url: server.connection(patient=True) for server in self.servers}

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Waits for a coroutine in the event loop; what it does has deadlines of its own."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    # Requests and completions.

    def submit(self, requests: Sequence[Request]) -> None:
        forms = [self.form.sampling(request) for request in requests]
        with self.changed:
            known = {*self.flights, *(output.request_id for output in self.ready)}
            for request in requests:
                if request.id in known:
                    raise ValueError(f"request {request.id}: this id is queued already; ids must differ")
                known.add(request.id)
            new = [
                SentRequest(form, request.group or request.id, self.version)
                for form, request in zip(forms, requests, strict=True)
            ]
            homes = {flight.group: flight.server for flight in self.flights.values()}
            for flight in new:
                if flight.group not in homes:
                    homes[flight.group] = min(self.servers, key=lambda server: server.in_flight)
                flight.server = homes[flight.group]
                flight.server.in_flight += 1
                self.flights[flight.form["id"]] = flight
            if self.busy_since is None and new:
                self.busy_since = monotonic()
                self.silence.ends()
                if not self.looking:
                    self.looking = True
                    asyncio.run_coroutine_threadsafe(self._look_at_load(), self.loop)
            for server in self.servers:
                self._ask(server)

    def _ask(self, server: Server) -> None:
        """Asks a server for all that its present life does not know of; one that is down is asked when it is back."""
        with self.changed:
            if server in self.down or server.url in self.paused:
                return
            owed = [
                flight
                for flight in self.flights.values()
                if flight.server is server and flight.incarnation != server.incarnation
            ]
            for flight in owed:
                flight.incarnation = server.incarnation
                flight.versions = [(0, self.version)]
                flight.paused_at = None
        if owed:
            self._begin(self._stream(server, server.incarnation, owed), server)

    def _begin(self, work: Coroutine[Any, Any, None], server: Server) -> None:
        """Starts a coroutine in the event loop. An error that it does not see to itself ends the wait for completions,
        instead of leaving it to the deadline."""

        def ended(done: Future[None]) -> None:
            error = None if done.cancelled() else done.exception()
            if error is not None:
                with self.changed:
                    self.refused = EngineError(
                        f"{server.name} answers what cannot be read ({type(error).__name__}: {error}); "
                        f"{server.where_to_look()}"
                    )
                    self.refused.__cause__ = error
                    self.changed.notify_all()

        asyncio.run_coroutine_threadsafe(work, self.loop).add_done_callback(ended)

    async def _stream(self, server: Server, incarnation: int, flights: Sequence[SentRequest]) -> None:
        """Takes in what a server gives for these requests; a stream that breaks is left to `_mend`."""
        try:
            if server.incarnation != incarnation:
                return  # it died meanwhile, and is asked again when it is back
            async for result in server.ask(self.clients[server.url], [flight.form for flight in flights]):
                self._arrived(server, incarnation, result)
        except httpx.HTTPError as error:
            with self.changed:
                self.broken.append((server, incarnation, f"{type(error).__name__}: {error}"))
                self.changed.notify_all()
        except EngineError as error:  # asking again would not help
            with self.changed:
                self.refused = error
                self.changed.notify_all()

    def _arrived(self, server: Server, incarnation: int, result: Mapping[str, Any]) -> None:
        with self.changed:
            flight = self.flights.get(result["id"])
            if flight is None or flight.server is not server or flight.incarnation != incarnation:
                return
            if result.get("reason") == "abort" and not flight.unwanted:
                # Ended for an update of the weights: it begins anew, with the same seed.
                flight.incarnation = NOT_ASKED
                self._ask(server)
                return
            output = output_of(result, flight.versions)
            del self.flights[result["id"]]
            server.in_flight -= 1
            self.load.count(output)
            self.ready.append(output)
            if not self.flights and self.busy_since is not None:
                self.load.seconds += monotonic() - self.busy_since
                self.busy_since = None
            self.changed.notify_all()

    def poll(self, timeout: float) -> list[EngineOutput]:
        """Sees to servers whose streams broke or that hang, and waits for outputs.

        Raises:
            EngineError: a server refuses what it is asked, or died or hung and may not be started again.
        """
        with self.changed:
            if self.flights and not self.ready and not self.broken and self.refused is None:
                self.changed.wait(timeout)
            self.silence.goes_on(timeout)
            found = list(self.ready)
            self.ready.clear()
            if found:
                self.silence.ends()
                return found
            if self.refused is not None:
                raise self.refused
            # A stream that breaks after its last result owes nothing: whoever asks next will see to the server.
            broken = bool(self.flights and self.broken)
            silent = bool(self.flights) and self.silence.seconds > self.timeout
        if broken:
            self._mend()
            self.silence.ends()
        elif silent:
            self._mend_hanging()
            self.silence.ends()
        return []

    def _too_quiet(self) -> str:
        waiting = ", ".join(f"{server.url}: {server.in_flight}" for server in self.servers)
        return (
            f"no completion within {self.timeout:.0f} s (requests in flight at {waiting}); if completions take that "
            f"long, raise {self.servers[0].timeout_key}, else look into the servers' logs"
        )

    def abort(self, ids: Sequence[str]) -> None:
        with self.changed:
            wanted = [self.flights[id_] for id_ in ids if id_ in self.flights]
            for flight in wanted:
                flight.unwanted = True
        if wanted:
            self._begin(self._abort([flight.form["id"] for flight in wanted]), wanted[0].server)

    async def _abort(self, ids: Sequence[str]) -> None:
        """Asks for the end of requests until all are out."""
        deadline = monotonic() + self.timeout
        while monotonic() < deadline:
            with self.changed:
                left = [self.flights[id_] for id_ in ids if id_ in self.flights]
                theirs = {server: [f.form["id"] for f in left if f.server is server] for server in self.servers}
            if not left:
                return
            for server, names in theirs.items():
                if names:
                    await server.abort(self.clients[server.url], names)
            await asyncio.sleep(ABORT_SECONDS)

    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        if temperature != 1.0:
            raise ValueError(TEMPERATURE_1)
        forms = self.form.scoring(segments)
        shares = [forms[first :: len(self.servers)] for first in range(len(self.servers))]

        async def all_of() -> list[list[dict[str, Any]]]:
            return await asyncio.gather(
                *(server.collect(share) for server, share in zip(self.servers, shares, strict=True))
            )

        found = {result["id"]: result for results in self.run(all_of()) for result in results}
        return scored(segments, [found[form["id"]] for form in forms])

    # Servers that die or hang.

    def revive(self) -> int:
        """Starts every launched server again that has died or hangs, and gives it the present weights; how many were
        started again since the last call, be it by another thread.

        Raises:
            EngineError: the restarts are used up, or an endpoint does not come back.
        """
        with self.reviving:
            for server in list(self.servers):
                if not (server.alive() and server.responds()):
                    self._start_again(server, "it does not answer")
            count, self.started_again = self.started_again, 0
            return count

    def _mend(self) -> None:
        """Sees to servers whose streams broke: they are started again, unless they are well, and asked again."""
        with self.changed:
            broken, self.broken = self.broken, []
        for server, incarnation, why in broken:
            with self.reviving:
                if server.incarnation == incarnation:
                    self._start_again(server, why)
                else:
                    self._ask(server)  # started again meanwhile, perhaps by the weight sync: it knows of nothing

    def _mend_hanging(self) -> None:
        """After `timeout` seconds without a completion: starts servers again that do not answer any more.

        Raises:
            EngineError: all answer, so completions just take longer than that.
        """
        with self.changed:
            being_mended = bool(self.down)
        with self.reviving:
            hanging = [server for server in self.servers if server.in_flight and not server.responds()]
            for server in hanging:
                self._start_again(server, f"it hangs: nothing came for {self.timeout:.0f} s")
            # Silence ends where another thread has started one again meanwhile: see `came_back`.
            if not hanging and not being_mended and self.silence.seconds > self.timeout:
                raise EngineError(self._too_quiet())

    def went_down(self, server: Server) -> None:
        """Takes note that a server is being started again: nothing is asked of it meanwhile."""
        with self.changed:
            self.down.add(server)

    def came_back(self, server: Server) -> None:
        """Takes note that it is ready, and asks it for all that it owed."""
        with self.changed:
            self.down.discard(server)
            self.silence.ends()
        self._ask(server)

    def _start_again(self, server: Server, why: str) -> None:
        self.went_down(server)  # nothing is asked of it before it has the weights of now
        while True:
            self._count_restart(server, why)
            try:
                server.come_back()
            except ServerDied as error:
                why = str(error)
                continue
            except ServerGone as error:
                self._leave_out(server, str(error))
                return
            try:
                if self.restore is not None:
                    self.restore(server)
                break
            except EngineError as error:
                if server.alive() and server.responds():
                    raise
                why = str(error)
        with self.changed:
            self.paused.discard(server.url)  # its new life was never paused
        self.came_back(server)

    def _leave_out(self, server: Server, why: str) -> None:
        """Goes on without a server for good: the others are asked for all that it owed.

        Raises:
            EngineError: it was the last one.
        """
        with self.changed:
            self.servers.remove(server)
            self.replicas.remove(server)
            self.down.discard(server)
            self.paused.discard(server.url)
            if not self.servers:
                raise EngineError(f"{server.name} was the last one: {why}")
            owed = [flight for flight in self.flights.values() if flight.server is server]
            homes: dict[str, Server] = {}
            for flight in owed:
                home = homes.setdefault(flight.group, min(self.servers, key=lambda one: one.in_flight))
                flight.server, flight.incarnation = home, NOT_ASKED
                home.in_flight += 1
            logger.warning("%s is left out (%s); the others are asked for what it owed", server.name, why)
            for other in self.servers:
                self._ask(other)

    def _count_restart(self, server: Server, why: str) -> None:
        if self.restarts_left == 0:
            raise EngineError(
                f"{server.name} died or hangs ({why}), and {server.option}.restarts are used up; "
                f"{server.where_to_look()}"
            )
        self.restarts_left -= 1
        self.started_again += 1
        self.load.restarts += 1
        logger.warning("%s died or hangs (%s); %d restarts are left", server.name, why, self.restarts_left)

    # Versions.

    def refresh(self, version: int) -> None:
        """Says that the weights are now those of `version`. Requests in flight were stamped where they were paused."""
        with self.changed:
            self.version = version
            for flight in self.flights.values():
                if flight.paused_at is not None:
                    stamp(flight.versions, flight.paused_at, version)

    @property
    def max_length(self) -> int:
        """Most tokens of prompt and completion."""
        return self.form.max_model_len

    @property
    def in_flight(self) -> int:
        return len(self.flights) + len(self.ready)

    def hold(self, server: Server) -> None:
        """Asks nothing of a server from before it is paused until it goes on: what came to it in between would be
        sampled with the new weights, and stamped with the old ones."""
        with self.changed:
            self.paused.add(server.url)

    def on_the_way(self, server: Server, counts: Mapping[str, int]) -> list[str]:
        """Requests that a server was asked for, and neither has by its `counts` nor has answered as far as is known
        here: they, or their results, are still on the way."""
        with self.changed:
            return [
                id_
                for id_, flight in self.flights.items()
                if flight.server is server and flight.incarnation == server.incarnation and id_ not in counts
            ]

    def paused_with(self, server: Server, counts: Mapping[str, int]) -> None:
        """Takes note of the tokens that requests had when generation stopped."""
        with self.changed:
            for id_, count in counts.items():
                if id_ in self.flights:
                    self.flights[id_].paused_at = count

    def resumed(self, server: Server) -> None:
        """Takes note that generation goes on, and asks for what was held."""
        with self.changed:
            self.paused.discard(server.url)
            for flight in self.flights.values():
                if flight.server is server:
                    flight.paused_at = None
            self._ask(server)

    # Load.

    def places(self) -> list[Place]:
        with self.changed:
            rows: list[Place] = []
            for number, server in enumerate(self.servers):
                words = [f"{counted(server.in_flight, 'request')} in flight"]
                words += [self.load.of_server(number)] * bool(self.load.of_server(number))
                state = ", ".join(words)
                if server in self.down:
                    state = f"is started again, {counted(server.in_flight, 'request')} waiting for it"
                elif server.url in self.paused:
                    state = f"takes new weights, {counted(server.in_flight, 'request')} in flight"
                host, _, port = server.url.rpartition("//")[2].rpartition(":")
                rows.append((host, f"engine {number} (port {port})", state))
            return rows

    def statistics(self) -> dict[str, float]:
        """Counters since the last call: see `LoadMetrics.take`."""
        return self.load.take(self.run(self._metrics()))

    async def _metrics(self) -> list[dict[str, float]]:
        return list(await asyncio.gather(*(one.metrics(self.clients[one.url]) for one in self.servers)))

    async def _look_at_load(self) -> None:
        """One look after another for as long as there are requests; there is never more than one such loop."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with self.changed:
                self.looking = self.busy_since is not None
                if not self.looking:
                    return
            self.load.look(await self._metrics())

    def close(self) -> None:
        """Ends the servers that Shoal launched, and the thread."""
        with ExitStack() as ending:
            ending.callback(self._end_thread)
            for server in self.servers:
                ending.callback(server.close)
        self.flights.clear()
        self.ready.clear()

    def _end_thread(self) -> None:
        if self.thread.is_alive():
            self.run(self._close_clients())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(10.0)

    async def _close_clients(self) -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        for client in self.clients.values():
            await client.aclose()
