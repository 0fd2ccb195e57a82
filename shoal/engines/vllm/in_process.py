"""vLLM in this process: no server, no copy of what goes in and out, one loop that the caller drives."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from logging import getLogger
from pathlib import Path
from threading import Condition
from time import monotonic, perf_counter
from typing import Any

import numpy as np
import torch

from shoal.engines.base import Engine, EngineOutput, Request
from shoal.engines.servers.control import PAUSE_MODES, Control
from shoal.engines.servers.load import LoadMetrics
from shoal.engines.servers.requests import TEMPERATURE_1, RequestForm, output_of, scored, stamp
from shoal.engines.vllm import compat as vllm_compat
from shoal.engines.vllm.arguments import VllmArguments
from shoal.engines.vllm.metrics import read_process_metrics
from shoal.errors import EngineError
from shoal.types import Segment

logger = getLogger(__name__)

LOOK_SECONDS = 1.0  # between looks at the load


class RunningRequest:
    """A request that has not come out yet."""

    def __init__(self, form: dict[str, Any], version: int) -> None:
        self.form = form
        self.versions = [(0, version)]


class InProcessVllmEngine(Engine):
    """vLLM's own engine, stepped by `completed`. Several threads may use it; one at a time is inside vLLM.

    Args:
        arguments: What vLLM is started with.
        form: Makes its requests.
        timeout: Most seconds for what has to end by itself: draining, and waiting while paused.

    Raises:
        EngineError: vLLM is missing, of another release, or does not start.
    """

    restore: Callable[[Control], None] | None = None  # nothing here dies by itself

    def __init__(self, arguments: VllmArguments, form: RequestForm, timeout: float) -> None:
        vllm_compat.check_vllm()
        os.environ.update({**arguments.environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        self.arguments = arguments
        self.form = form
        self.timeout = timeout
        started = monotonic()
        with random_states_kept():
            self.llm = vllm_compat.make_engine(arguments.line())
        logger.info("vLLM is ready after %.1f s", monotonic() - started)
        self.adapter: Any = None
        self.flights: dict[str, RunningRequest] = {}
        self.ready: deque[EngineOutput] = deque()
        self.asides: dict[str, dict[str, Any]] = {}  # results of scoring and single tokens
        self.paused = False
        self.paused_since = 0.0
        self.asleep = False
        self.changed = Condition()
        self.replicas: list[Control] = [InProcessControl(self)]
        self.reviving = nullcontext()  # nothing is ever started again
        self.load = LoadMetrics()
        self.next_look = 0.0

    def refresh(self, version: int) -> None:
        """Says that the weights are now those of `version`; completions in flight are stamped with it."""
        with self.changed:
            self.version = version
            counts = vllm_compat.in_flight_counts(self.llm) if self.flights else {}
            for id_, flight in self.flights.items():
                stamp(flight.versions, counts.get(id_, 0), version)

    @property
    def max_length(self) -> int:
        """Most tokens of prompt and completion."""
        return self.form.max_model_len

    def revive(self) -> int:
        """How many servers had to be started again: none, there is none."""
        return 0

    @property
    def in_flight(self) -> int:
        return len(self.flights) + len(self.ready)

    def submit(self, requests: Sequence[Request]) -> None:
        with self.changed:
            forms = [self.form.sampling(request) for request in requests]
            known = {*self.flights, *(output.request_id for output in self.ready)}
            for request in requests:
                if request.id in known:
                    raise ValueError(f"request {request.id}: this id is queued already; ids must differ")
                known.add(request.id)
            self.wake()
            for form in forms:
                self.flights[form["id"]] = RunningRequest(form, self.version)
                if not self.paused:
                    vllm_compat.add_request(self.llm, form, self.adapter)

    def poll(self, timeout: float) -> list[EngineOutput]:
        """Steps vLLM until a completion is there, or `timeout` seconds have gone by.

        Raises:
            EngineError: it has been paused for longer than the engine's own deadline with requests in flight.
        """
        with self.changed:
            until = monotonic() + timeout
            while not self.ready and self.flights and not self.paused:
                self._step()
                if monotonic() > until:
                    break
            if self.paused and self.flights and not self.ready:
                self.changed.wait(timeout)
                if self.paused and monotonic() - self.paused_since > self.timeout:
                    raise EngineError(f"vLLM has been paused for {self.timeout:.0f} s with requests in flight")
            found = list(self.ready)
            self.ready.clear()
            if not self.flights:
                self.sleep()
            return found

    def abort(self, ids: Sequence[str]) -> None:
        with self.changed:
            for id_ in ids:
                flight = self.flights.pop(id_, None)
                if flight:
                    result = vllm_compat.partial_result(self.llm, flight.form)
                    self.ready.append(output_of(result, flight.versions))

    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        if temperature != 1.0:
            raise ValueError(TEMPERATURE_1)
        return self.replicas[0].logprobs(segments)

    def aside(self, forms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Results of requests that are no completions; those in flight go on meanwhile."""
        with self.changed:
            if self.paused:
                raise EngineError("vLLM is paused: resume it before it is asked for log-probs")
            self.wake()
            for form in forms:
                vllm_compat.add_request(self.llm, form, self.adapter)
                self.asides[form["id"]] = form
            found: dict[str, dict[str, Any]] = {}
            deadline = monotonic() + self.timeout
            while len(found) < len(forms):
                if monotonic() > deadline:
                    late = [form["id"] for form in forms if form["id"] not in found]
                    for name in late:
                        vllm_compat.partial_result(self.llm, self.asides.pop(name))
                    raise EngineError(
                        f"vLLM has not answered {len(late)} of {len(forms)} requests for log-probs within "
                        f"{self.timeout:.0f} s (engine.vllm.request_timeout)"
                    )
                found |= self._step()
            return [found[form["id"]] for form in forms]

    def _step(self) -> dict[str, dict[str, Any]]:
        """One step of vLLM. Completions that end go to `ready`, other results are given."""
        start = perf_counter()
        found = {}
        for output in self.llm.step():
            if not output.finished:
                continue
            if output.request_id in self.asides:
                found[output.request_id] = vllm_compat.result_of(self.asides.pop(output.request_id), output)
            elif output.request_id in self.flights:
                flight = self.flights.pop(output.request_id)
                ended = output_of(vllm_compat.result_of(flight.form, output), flight.versions)
                self.load.count(ended)
                self.ready.append(ended)
        now = perf_counter()
        self.load.seconds += now - start
        if now > self.next_look:
            self.next_look = now + LOOK_SECONDS
            self.load.look([read_process_metrics()])
        return found

    def statistics(self) -> dict[str, float]:
        """Counters since the last call: see `LoadMetrics.take`."""
        return self.load.take([read_process_metrics()])

    def sleep(self) -> None:
        """Gives the weights' and the cache's memory back, where `engine.vllm.sleep` says so, until they are needed."""
        if self.arguments.sleep and not self.asleep:
            self.llm.sleep(level=1)
            self.asleep = True

    def wake(self) -> None:
        """Takes the memory again; the weights are those from before."""
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False

    def close(self) -> None:
        self.flights.clear()
        self.ready.clear()
        self.llm.engine_core.shutdown()


@contextmanager
def random_states_kept() -> Iterator[None]:
    """vLLM seeds this process's generators when it starts; the learner's dropout is to have its own."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


class InProcessControl(Control):
    """Controls the engine in this process."""

    name = "vLLM in this process"

    def __init__(self, engine: InProcessVllmEngine) -> None:
        self.engine = engine
        self.model = engine.arguments.model
        self.tensor_parallel = engine.arguments.tensor_parallel
        self.max_lora_rank = engine.arguments.max_lora_rank

    def call_workers(self, method: str, *arguments: Any) -> list[Any]:
        with self.engine.changed:
            self.engine.wake()
            return list(self.engine.llm.collective_rpc(method, args=arguments))

    def pause(self, mode: str) -> None:
        assert mode in PAUSE_MODES
        engine = self.engine
        with engine.changed:
            deadline = monotonic() + engine.timeout
            while mode == "drain" and engine.flights:
                if monotonic() > deadline:
                    raise EngineError(f"{len(engine.flights)} requests have not ended within {engine.timeout:.0f} s")
                engine._step()
            if mode == "abort":
                for flight in engine.flights.values():
                    vllm_compat.partial_result(engine.llm, flight.form)
            engine.paused = True
            engine.paused_since = monotonic()

    def resume(self) -> None:
        engine = self.engine
        with engine.changed:
            known = vllm_compat.in_flight_counts(engine.llm)
            for id_, flight in engine.flights.items():
                if id_ not in known:
                    flight.versions = [(0, engine.version)]
                    vllm_compat.add_request(engine.llm, flight.form, engine.adapter)
            engine.paused = False
            engine.changed.notify_all()

    def reset_prefix_cache(self) -> None:
        with self.engine.changed:
            # Requests in flight are run again from their first token, so that nothing of the old weights is left.
            if not self.engine.llm.reset_prefix_cache(reset_running_requests=True):
                raise EngineError("vLLM did not reset its prefix cache, so completions would mix old and new weights")

    def load_adapter(self, name: str, folder: Path, version: int) -> None:
        with self.engine.changed:
            self.engine.wake()
            self.engine.adapter = vllm_compat.adapter_request(name, folder)
            if not self.engine.llm.add_lora(self.engine.adapter):
                raise EngineError(f"vLLM did not take the adapter in {folder}")

    def logprobs(self, segments: Sequence[Segment]) -> list[list[float]]:
        return scored(segments, self.engine.aside(self.engine.form.scoring(segments)))

    def sample_token(self, prompt_ids: Sequence[int]) -> tuple[int, float]:
        (result,) = self.engine.aside([self.engine.form.token(prompt_ids)])
        return result["tokens"][0], result["logprobs"][0]

    def cached_tokens(self, prompt_ids: Sequence[int]) -> int:
        (result,) = self.engine.aside([self.engine.form.token(prompt_ids)])
        return int(result.get("cached", 0))

    def restart(self, model: Path) -> None:
        raise EngineError("vLLM in this process cannot be restarted: use engine=vllm_server with weight_sync=restart")
