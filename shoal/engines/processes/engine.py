"""The built-in engine in processes of its own (engine=torch engine.processes=N)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shoal.engines.base import Request
from shoal.engines.processes.app import KEY_VARIABLE
from shoal.engines.servers.engine import ServersEngine
from shoal.engines.servers.process import Launcher, ServerProcess
from shoal.engines.servers.requests import RequestForm
from shoal.engines.servers.server import Owner, Server, all_started

LOOPBACK = "127.0.0.1"
POSITIONS = "the model's positions; shorten it"
START_SECONDS = 120.0  # at least, for a start on a busy machine, however soon a call counts as hanging


@dataclass(frozen=True)
class ProcessArguments:
    """What one process is started with, as plain values.

    `model` and `runtime` are fields of the nodes of these names; `device`, `param_dtype`, `compute_dtype` and
    `attention` are those of the learner's Runtime, `device` of this very process.
    """

    name: str
    model: dict[str, Any]
    device: str
    param_dtype: str
    compute_dtype: str | None
    attention: str
    threads: int
    tune_malloc: bool
    max_batch: int
    max_cache_tokens: int
    tensor_parallel: int = 1
    max_lora_rank: int = 0

    def line(self) -> list[str]:
        return [f"--settings={json.dumps(asdict(self))}"]

    def with_model(self, model: str) -> ProcessArguments:
        return replace(self, name=model)

    @classmethod
    def from_text(cls, text: str) -> ProcessArguments:
        return cls(**json.loads(text))


class EngineProcess(ServerProcess):
    """One launched process."""

    module = "shoal.engine_process"
    what = "engine process"
    start_key = "engine.timeout"


class ProcessServer(Server):
    """One process as the trainer sees it."""

    what = "engine process"
    option = "engine"
    timeout_key = "engine.timeout"
    says_versions = True
    was_idle = False  # at the last pause

    def sample_token(self, prompt_ids: Sequence[int]) -> tuple[int, float]:
        """See `Replica.sample_token`. An update does not wait for rollouts that are queued."""
        [found] = self.call_workers("shoal_token", list(prompt_ids))
        return found["token"], found["logprob"]

    def cached_tokens(self, prompt_ids: Sequence[int]) -> int:
        """No prompt's keys outlive its group, nor an update of the weights."""
        return 0

    def pause(self, mode: str) -> None:
        """Where nothing is in flight there, it is enough that nothing is asked."""
        self.owner.hold(self)
        self.was_idle = not self.in_flight
        if not self.was_idle:
            super().pause(mode)

    def resume(self) -> None:
        if self.was_idle:
            self.owner.resumed(self)
        else:
            super().resume()

    def reset_prefix_cache(self) -> None:
        """Nothing is left to forget: taking weights drops what older ones gave."""


class ProcessEngine(ServersEngine):
    """The built-in engine, spread over processes that are started, watched and started again like vLLM's servers.

    Args:
        arguments: For each process, what it is started with.
        form: Makes the requests.
        timeout: `engine.timeout`.
        restarts: `engine.restarts`.
        folder: For log files.
        launcher: Starts the processes on the nodes of a cluster. None: on this machine.

    Raises:
        EngineError: a process does not start.
    """

    def __init__(
        self,
        arguments: Sequence[ProcessArguments],
        form: RequestForm,
        *,
        timeout: float,
        restarts: int,
        folder: Path,
        launcher: Launcher | None = None,
    ) -> None:
        self.prompt_tokens = 0
        super().__init__(
            form,
            timeout=timeout,
            restarts=restarts,
            open_servers=lambda owner: launch(owner, arguments, timeout, folder, launcher),
        )

    def submit(self, requests: Sequence[Request]) -> None:
        super().submit(requests)
        self.prompt_tokens += sum(len(request.prompt_ids) for request in requests)

    def statistics(self) -> dict[str, float]:
        """Counters since the last call: see `LoadMetrics.take`. All are kept here: asking the processes would hold up
        the learner."""
        return self.load.take([{"prompt_tokens": float(self.prompt_tokens)}])


def launch(
    owner: Owner,
    arguments: Sequence[ProcessArguments],
    timeout: float,
    folder: Path,
    launcher: Launcher | None = None,
) -> list[Server]:
    """Starts all processes at once and waits until they answer.

    Raises:
        EngineError: one does not start; none is left running.
    """
    key = secrets.token_hex(16)
    start = launcher or EngineProcess.here

    def launched() -> Iterator[Server]:
        for number, one in enumerate(arguments):
            process = start(
                number,
                one.line(),
                {KEY_VARIABLE: key, "OMP_NUM_THREADS": str(one.threads)},
                host=LOOPBACK,
                port=0,
                log=folder / f"engine_{number}.log",
                start_timeout=max(timeout, START_SECONDS),
                key="engine",
            )
            yield ProcessServer(owner, process.url, one.name, arguments=one, process=process, api_key=key)

    return all_started(launched())
