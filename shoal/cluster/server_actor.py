"""Servers of an engine on the nodes of a Ray cluster: an actor on the node starts, watches and ends each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from logging import getLogger
from pathlib import Path
from time import monotonic
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from shoal.child_process import STOP_SECONDS
from shoal.cluster.cluster import Cluster
from shoal.cluster.outcome import outcome
from shoal.engines.servers.process import ServerProcess
from shoal.errors import EngineError, ServerDied, ServerGone, TrainingError

logger = getLogger(__name__)

LOOK_SECONDS = 5.0  # between looks at whether a node has gone whose answer is waited for
ANSWER_SECONDS = 60.0
"""Until the actor of a server, once it runs, must have answered: it starts a process, or looks at one."""


class ServerActor:
    """Holds the process of one server on the node where Ray has put it. The server dies with it."""

    def __init__(self, program: type[ServerProcess]) -> None:
        self.program = program
        self.process: ServerProcess | None = None

    def launch(self, arguments: Sequence[str], environment: Mapping[str, str], options: Mapping[str, Any]) -> Any:
        """Starts the server on this node's address; gives the port. What all these give is an `outcome`."""

        def start() -> int:
            host = ray.util.get_node_ip_address()
            self.process = self.program(arguments, environment, host=host, **options)
            return self.process.port

        return outcome(start)

    def wait_until_healthy(self) -> Any:
        assert self.process is not None
        return outcome(self.process.wait_until_healthy)

    def ended(self) -> Any:
        return outcome(lambda: self.process is None or self.process.ended())

    def stop(self) -> Any:
        assert self.process is not None
        return outcome(self.process.stop)


class PlacedLauncher:
    """The `Launcher` of the engines of a cluster. It makes all actors at once, so that they start at the same time."""

    def __init__(self, cluster: Cluster, program: type[ServerProcess]) -> None:
        self.cluster = cluster
        self.program = program
        self.actors = [self._place(number) for number in range(cluster.engines)]

    def _place(self, number: int) -> Any:
        options = self.cluster.engine_options(number)
        # Two calls at a time: a server can be ended while it is waited for.
        return ray.remote(ServerActor).options(**options, max_restarts=0, max_concurrency=2).remote(self.program)

    def __call__(
        self, number: int, arguments: Sequence[str], environment: Mapping[str, str], *, host: str, **options: Any
    ) -> PlacedProcess:
        """`host` is not asked for: the server listens on its node's address."""
        node, place = self.cluster.engine_node(number), partial(self._place_again, number)
        lost = partial(self._lost, number)
        return PlacedProcess(
            self.program.what, node, place, lost, self.actors[number], arguments, environment, **options
        )

    def _place_again(self, number: int) -> Any:
        """The same where a node may have been lost.

        Raises:
            ServerGone: the run goes on without the node.
            EngineError: it has not come back, or the run ends for it.
        """
        try:
            self.cluster.mend()
        except TrainingError as error:
            raise EngineError(str(error)) from error
        if not self.cluster.has_engine(number):
            raise ServerGone("the run goes on without its node")
        return self._place(number)

    def _lost(self, number: int) -> bool:
        """Whether the node of an engine is gone."""
        return not self.cluster.has_engine(number) or self.cluster.engine_node(number) in self.cluster.lost_nodes()


class PlacedProcess:
    """A server on a node of the cluster, with what the engine asks of a `ServerProcess`.

    An actor that is gone, with its node or without, is made again in the same place.
    """

    def __init__(
        self,
        what: str,
        node: str,
        place: Callable[[], Any],
        lost: Callable[[], bool],
        actor: Any,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        port: int,
        log: Path,
        start_timeout: float,
        key: str,
    ) -> None:
        """`place` makes an actor for it on the node of that address, `lost` tells whether the node is gone; `actor` is
        its first, perhaps still starting."""
        self.what = what
        self.log = log.absolute()
        self.start_timeout = start_timeout
        self.environment = dict(environment)
        self.options = {"log": self.log, "start_timeout": start_timeout, "key": key}
        self.place = place
        self.lost = lost
        self.node = node
        self.actor: Any = actor
        self.port = port
        self.launch(arguments)

    @property
    def url(self) -> str:
        return f"http://{self.node}:{self.port}"

    def launch(self, arguments: Sequence[str]) -> None:
        """Starts the server; returns when its process is there.

        Raises:
            EngineError: the port is taken, or the node does not take the actor in time.
        """
        if self.actor is None:
            self.actor = self.place()
        options = {**self.options, "port": self.port}
        self.port = self._ask("start", self.start_timeout, "launch", list(arguments), self.environment, options)

    def wait_until_healthy(self) -> None:
        """Raises EngineError where the server ends, or does not answer in time."""
        self._ask("wait for", self.start_timeout + ANSWER_SECONDS, "wait_until_healthy")
        logger.info("%s on %s: ready", self.what, self.url)

    def ended(self) -> bool:
        """Whether the server's own process is gone, or the actor that holds it."""
        try:
            return self.actor is None or bool(self._ask("look at", ANSWER_SECONDS, "ended"))
        except EngineError:
            return True

    def stop(self) -> None:
        """Ends the server and everything it started; with its actor, which may be gone already."""
        if self.actor is None:
            return
        with suppress(EngineError):
            self._ask("end", STOP_SECONDS + ANSWER_SECONDS, "stop")
        ray.kill(self.actor)
        self.actor = None

    def _ask(self, what: str, seconds: float, method: str, *arguments: Any) -> Any:
        call, deadline = getattr(self.actor, method).remote(*arguments), monotonic() + seconds
        while True:
            try:
                value, error = ray.get(call, timeout=min(LOOK_SECONDS, max(deadline - monotonic(), 0)))
                break
            except GetTimeoutError as late:
                if self.lost():
                    raise ServerDied(f"node {self.node}, to {what} the {self.what}: the Ray node is lost") from late
                if monotonic() >= deadline:
                    raise EngineError(
                        f"node {self.node} did not {what} the {self.what} within {seconds:g} s; its log: {self.log}"
                    ) from late
            except RayError as gone:
                raise ServerDied(
                    f"node {self.node}, to {what} the {self.what}: {' '.join(str(gone).split())[:200]}"
                ) from gone
        if error is not None:
            raise EngineError(error[1])
        return value
