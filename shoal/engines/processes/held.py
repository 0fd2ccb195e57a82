"""The built-in engine in a process that does nothing else: one thread owns it, and others hand it work."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from logging import getLogger
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from shoal.engines.base import EngineOutput, Request, SamplingParams
from shoal.engines.builtin.engine import TorchEngine
from shoal.types import StopReason

logger = getLogger(__name__)

T = TypeVar("T")
Answer = Callable[[EngineOutput], None]
IDLE_SECONDS = 5.0
SLICE_SECONDS = 0.02  # of decoding between two looks at what else is asked


class HeldEngine:
    """Runs calls and decodes in turn, in one thread. An error while decoding ends the process, which is then started
    again by whoever launched it."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine
        self.calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.answers: dict[str, Answer] = {}
        self.waiting: list[Request] = []  # asked while generation was stopped
        self.paused = False
        self.draining: list[Future[None]] = []
        self.thread = Thread(target=self._run, name="engine", daemon=True)
        self.thread.start()

    def call(self, work: Callable[[], T]) -> Future[T]:
        """From any thread: runs `work` in the engine's own, between two slices of decoding."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
                future.set_exception(error)

        self.calls.put(run)
        return future

    def ask(self, requests: Sequence[tuple[Request, Answer]]) -> None:
        """From any thread: each answer is called, in the engine's thread, with its output."""
        self.calls.put(lambda: self._take(requests))

    def withdraw(self, ids: Sequence[str]) -> None:
        """From any thread: ends requests, whose answers are given what they have."""
        self.calls.put(lambda: self._abort(ids))

    def pause(self, mode: str) -> Future[None]:
        """Stops generation: `drain` when requests in flight have ended, `keep` and `abort` (which ends them) now."""
        future: Future[None] = Future()
        self.calls.put(lambda: self._pause(mode, future))
        return future

    def resume(self) -> Future[None]:
        """Generates again; also where a pause was still waiting for the end of requests."""
        return self.call(self._resume)

    def load(self) -> dict[str, float]:
        """Requests that run and wait now."""
        running = int(self.engine.rows.alive.sum())
        return {
            "running": float(running),
            "waiting": float(max(len(self.answers) - running, 0)),
        }

    # In the engine's thread.

    def _run(self) -> None:
        try:
            while True:
                self._work_off_calls()
                if self.paused:
                    continue
                for output in self.engine.poll(SLICE_SECONDS):
                    self._give(output)
                if self.draining and not self.engine.in_flight:
                    self._stop()
        except BaseException:
            logger.exception("the engine failed")
            os._exit(1)

    def _work_off_calls(self) -> None:
        idle = self.paused or not (self.engine.in_flight or self.draining)
        try:
            self.calls.get(timeout=IDLE_SECONDS if idle else None, block=idle)()
            while True:
                self.calls.get_nowait()()
        except Empty:
            pass

    def _take(self, requests: Sequence[tuple[Request, Answer]]) -> None:
        stopped = self.paused or bool(self.draining)
        new = []
        for request, answer in requests:
            self.answers[request.id] = answer
            new.append(request)
        if stopped:
            self.waiting += new
        else:
            self._submit(new)

    def _submit(self, requests: Sequence[Request]) -> None:
        try:
            self.engine.submit(requests)
            return
        except ValueError:
            pass
        for request in requests:  # one by one, so that only those that are wrong are refused
            try:
                self.engine.submit([request])
            except ValueError as error:
                self._give(EngineOutput(request.id, [], [], StopReason.ERROR, error=str(error)))

    def _abort(self, ids: Sequence[str]) -> None:
        wanted = set(ids)
        for request in self.waiting:
            if request.id in wanted:
                self._give(EngineOutput(request.id, [], [], StopReason.ABORT))
        self.waiting = [request for request in self.waiting if request.id not in wanted]
        self.engine.abort(ids)
        self._give_ready()

    def _give_ready(self) -> None:
        while self.engine.ready:
            self._give(self.engine.ready.popleft())

    def _pause(self, mode: str, future: Future[None]) -> None:
        if mode == "drain" and self.engine.in_flight:
            self.draining.append(future)
            return
        if mode == "abort":
            self.engine.abort(list(self.engine.in_flight_counts()))
        self._give_ready()
        self.draining.append(future)
        self._stop()

    def _stop(self) -> None:
        self.paused = True
        for future in self.draining:
            future.set_result(None)
        self.draining.clear()

    def _resume(self) -> None:
        for future in self.draining:
            future.cancel()
        self.draining.clear()
        self.paused = False
        waiting, self.waiting = self.waiting, []
        if waiting:
            self._submit(waiting)

    def _give(self, output: EngineOutput) -> None:
        answer = self.answers.pop(output.request_id, None)
        if answer is not None:
            answer(output)


def request_of(form: dict[str, Any]) -> Request:
    """The engine's form of a request as it comes over HTTP."""
    sampling = SamplingParams(
        form["max_tokens"], form["temperature"], form["top_p"], form["top_k"], tuple(form["stop"])
    )
    return Request(form["id"], tuple(form["prompt"]), form["seed"], sampling)


def result_of(output: EngineOutput) -> dict[str, Any]:
    """An output as it goes over HTTP. It says the version of each token, which is known best here."""
    if output.stop_reason is StopReason.ERROR:
        return {"id": output.request_id, "error": output.error}
    return {
        "id": output.request_id,
        "tokens": output.token_ids,
        "logprobs": output.logprobs,
        "reason": output.stop_reason.value,
        "versions": output.versions,
    }
