"""One server as its client sees it, launched by Shoal or run by someone else."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol, TypeVar

import httpx

from shoal.engines.servers.client import IDLE_SECONDS, ServerClient, tls
from shoal.engines.servers.control import PAUSE_MODES, Control
from shoal.engines.servers.process import LaunchedServer
from shoal.engines.servers.requests import RequestForm, scored
from shoal.errors import EngineError, ServerDied
from shoal.types import Segment

RESPOND_SECONDS = 30.0  # until an engine between two steps must answer
PAUSED_LOOK_SECONDS = 0.01  # between two looks at what a paused server has


class Arguments(Protocol):
    """What a server's program is started with."""

    @property
    def tensor_parallel(self) -> int: ...

    @property
    def max_lora_rank(self) -> int: ...

    def line(self) -> list[str]:
        """As its command line says it."""

    def with_model(self, model: str) -> Arguments:
        """The same on other weights."""


class Owner(Protocol):
    """What a server asks of the engine that it belongs to."""

    form: RequestForm
    timeout: float

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Waits for a coroutine that runs in the engine's event loop."""

    def hold(self, server: Server) -> None:
        """Asks nothing of a server that is about to be paused, until it goes on."""

    def on_the_way(self, server: Server, counts: Mapping[str, int]) -> list[str]:
        """Requests that it was asked for and neither has nor has answered."""

    def paused_with(self, server: Server, counts: Mapping[str, int]) -> None:
        """Takes note of the tokens that requests had when generation stopped."""

    def resumed(self, server: Server) -> None:
        """Takes note that generation goes on."""

    def went_down(self, server: Server) -> None:
        """Takes note that a server is being started again."""

    def came_back(self, server: Server) -> None:
        """Takes note that it is ready."""


AnyServer = TypeVar("AnyServer", bound="Server")


def all_started(launching: Iterable[AnyServer]) -> list[AnyServer]:
    """Takes servers as they are launched, one after another, and waits until all answer.

    Raises:
        EngineError: one does not start; none is left running.
    """
    servers: list[AnyServer] = []
    try:
        for server in launching:  # one by one, so that those before one that fails are known
            servers.append(server)
        for server in servers:
            assert server.process is not None
            server.process.wait_until_healthy()
    except BaseException:
        for server in servers:
            server.close()
        raise
    return servers


class Server(ServerClient, Control):
    """Controls and asks one server. `process` is None where someone else runs it."""

    option: str  # prefix of the options of its engine, for error lines
    timeout_key: str  # option that sets `timeout`
    says_versions = False  # whether its results say with which weights each token was sampled

    def __init__(
        self,
        owner: Owner,
        url: str,
        model: str,
        *,
        arguments: Arguments | None = None,
        process: LaunchedServer | None = None,
        api_key: str | None = None,
    ) -> None:
        super().__init__(url, api_key=api_key, timeout=owner.timeout, key=f"{self.option}.api_key")
        self.owner = owner
        self.model = model
        self.arguments = arguments
        self.process = process
        self.launched = process is not None
        self.tensor_parallel = arguments.tensor_parallel if arguments else 1
        self.max_lora_rank = arguments.max_lora_rank if arguments else 0
        self.incarnation = 0  # of the server, so that nothing of an earlier one is taken for the present one's
        self.in_flight = 0
        # Kept connections: an update of the weights makes half a dozen calls.
        self.calls = httpx.Client(
            base_url=self.url,
            headers=self.headers,
            limits=httpx.Limits(keepalive_expiry=IDLE_SECONDS),
            trust_env=False,
            verify=tls(),
        )

    def ask_all(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Results in the order of the requests; those in flight go on meanwhile."""

        return self.owner.run(self.collect(requests))

    async def collect(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same, in the engine's event loop."""
        found = {}
        try:
            async with asyncio.timeout(self.timeout), self.connection() as client:
                async for result in self.ask(client, requests):
                    if "error" in result:
                        raise EngineError(f"{self.name}: {result['error']}")
                    found[result["id"]] = result
        except httpx.HTTPError as error:
            raise ServerDied(self._gone("log-probs", error)) from error
        except TimeoutError as error:
            raise EngineError(f"{self.name}: no answer within {self.timeout:.0f} s; is it paused?") from error
        return [found[request["id"]] for request in requests]

    # Controls.

    def call_workers(self, method: str, *arguments: Any) -> list[Any]:
        body = {"method": method, "arguments": list(arguments), "timeout": self.timeout}
        return list(self._post("/shoal/call", f"{method} in its workers", body)["results"])

    def pause(self, mode: str) -> None:
        assert mode in PAUSE_MODES
        self.owner.hold(self)
        self._post("/shoal/pause", f"pause ({mode})", {"mode": mode})
        counts: dict[str, int] = {}
        if not self.says_versions:
            counts = self._post("/shoal/counts", "tokens in flight", {})
        deadline = monotonic() + self.timeout
        # What was asked for just before may come only now, and is sampled with the weights to come.
        while not self.says_versions and (missing := self.owner.on_the_way(self, counts)):
            if monotonic() > deadline:
                raise EngineError(
                    f"{self.name} is paused, and {len(missing)} requests are neither there nor answered after "
                    f"{self.timeout:.0f} s ({missing[0]}, ...); {self.where_to_look()}"
                )
            sleep(PAUSED_LOOK_SECONDS)
            counts = self._post("/shoal/counts", "tokens in flight", {})
        self.owner.paused_with(self, counts)

    def resume(self) -> None:
        self._post("/shoal/resume", "resume", {})
        self.owner.resumed(self)

    def reset_prefix_cache(self) -> None:
        if not self._post("/shoal/reset_prefix_cache", "reset of the prefix cache", {})["done"]:
            raise EngineError(f"{self.name} did not reset its prefix cache: completions would mix old and new weights")

    def load_adapter(self, name: str, folder: Path, version: int) -> None:
        body = {"name": name, "folder": str(folder)}
        if not self._post("/shoal/adapter", f"adapter {folder}", body)["done"]:
            raise EngineError(f"{self.name} did not take the adapter in {folder}")

    def logprobs(self, segments: Sequence[Segment]) -> list[list[float]]:
        return scored(segments, self.ask_all(self.owner.form.scoring(segments)))

    def sample_token(self, prompt_ids: Sequence[int]) -> tuple[int, float]:
        (result,) = self.ask_all([self.owner.form.token(prompt_ids)])
        return result["tokens"][0], result["logprobs"][0]

    def cached_tokens(self, prompt_ids: Sequence[int]) -> int:
        (result,) = self.ask_all([self.owner.form.token(prompt_ids)])
        return int(result.get("cached", 0))

    def restart(self, model: Path) -> None:
        if self.process is None or self.arguments is None:
            raise EngineError(f"{self.name} is run by someone else, so it cannot be restarted from here")
        self.arguments = self.arguments.with_model(str(model))
        self.model = str(model)
        self.owner.went_down(self)
        self._launch_again(self.process, self.arguments)
        self.owner.came_back(self)

    def _launch_again(self, process: LaunchedServer, arguments: Arguments) -> None:
        process.stop()
        self.incarnation += 1
        process.launch(arguments.line())
        process.wait_until_healthy()

    def look_up(self) -> None:
        """Asks the server how it was started."""
        found = self._post("/shoal/about", "Shoal's routes", {})
        self.tensor_parallel = found["tensor_parallel"]
        self.max_lora_rank = found["max_lora_rank"]

    def responds(self) -> bool:
        """Whether its workers answer: /health says yes even where the engine's own process hangs."""
        seconds = min(self.timeout, RESPOND_SECONDS)
        body = {"method": "shoal_status", "arguments": [], "timeout": seconds}
        try:
            return self._reply("/shoal/call", body, seconds).status_code == 200
        except httpx.HTTPError:
            return False

    def come_back(self) -> None:
        """Starts a server again that died; waits for one that someone else runs.

        Raises:
            EngineError: it does not come back in time.
        """
        if self.process is not None and self.arguments is not None:
            self._launch_again(self.process, self.arguments)
            return
        self.incarnation += 1
        deadline = monotonic() + self.timeout
        while not self.alive():
            if monotonic() > deadline:
                raise EngineError(f"{self.name} has not answered for {self.timeout:.0f} s; start it again")
            sleep(1.0)

    async def abort(self, client: httpx.AsyncClient, ids: Sequence[str]) -> None:
        """Ends requests early; what they have comes out where they were asked for. A dead server has none to end."""
        with suppress(httpx.HTTPError):
            await client.post("/shoal/abort", json={"ids": list(ids)}, timeout=self.timeout)

    def where_to_look(self) -> str:
        return f"its log: {self.process.log}" if self.process else "look into its log"

    def close(self) -> None:
        """Ends the server, where Shoal launched it."""
        self.calls.close()
        if self.process is not None:
            self.process.stop()

    def _post(self, path: str, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            response = self._reply(path, body, self.timeout)
        except httpx.TimeoutException as error:
            if self.process is not None and self.process.ended():
                raise ServerDied(self._gone(what, error)) from error
            raise EngineError(
                f"{self.name}: no answer to {what} within {self.timeout:.0f} s ({self.timeout_key})"
            ) from error
        except httpx.HTTPError as error:
            raise ServerDied(self._gone(what, error)) from error
        if response.status_code != 200:
            self.refuse(what, response)
        found: dict[str, Any] = response.json()
        return found

    def _reply(self, path: str, body: Mapping[str, Any], seconds: float) -> httpx.Response:
        return self.calls.post(path, json=body, timeout=seconds)

    def _gone(self, what: str, error: httpx.HTTPError) -> str:
        where = f"; its log: {self.process.log}" if self.process else "; is it running, and is the port right?"
        return f"{self.name} does not answer ({what}: {type(error).__name__}){where}"
