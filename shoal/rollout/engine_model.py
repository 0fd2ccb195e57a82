"""The engine of this process as the model that environments ask: a future for each request, one place that polls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import count

from shoal.engines.base import Engine, EngineOutput, Request, SamplingParams
from shoal.errors import EngineError, RequestRefused

Answer = Callable[[EngineOutput | EngineError], None]


class EngineModel:
    """Asks an engine from an event loop.

    What is asked for in one turn of the loop goes to the engine in one submission, by the next `pump`. The engine
    belongs to whoever pumps: nobody else submits to it meanwhile.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.numbers = count()
        self.queued: list[Request] = []
        self.answers: dict[str, Answer] = {}
        self.news: asyncio.Event | None = None
        """Set when something is asked for."""

    @property
    def busy(self) -> bool:
        """Whether a request is queued or under way."""
        return bool(self.answers)

    async def sample(
        self, context_ids: Sequence[int], seed: int, sampling: SamplingParams, *, group: str = ""
    ) -> EngineOutput:
        """What the model writes after these ids. A caller that is cancelled takes its request back.

        Raises:
            RequestRefused: the engine refuses the request: the context is empty or too long.
            EngineError: the engine failed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[EngineOutput] = loop.create_future()

        def answer(output: EngineOutput | EngineError) -> None:
            if future.done():
                return
            if isinstance(output, EngineError):
                future.set_exception(output)
            else:
                future.set_result(output)

        name = self.ask(context_ids, seed, sampling, answer, group=group)
        try:
            return await future
        except asyncio.CancelledError:
            self.withdraw([name])
            raise

    def ask(
        self, context_ids: Sequence[int], seed: int, sampling: SamplingParams, answer: Answer, *, group: str = ""
    ) -> str:
        """Queues a request; `answer` is called once, by a later `pump`. Gives the request's id."""
        name = f"{group or 'request'}/{next(self.numbers)}"
        self.queued.append(Request(name, tuple(context_ids), seed, sampling, group=group or name))
        self.answers[name] = answer
        if self.news is not None:
            self.news.set()
        return name

    def withdraw(self, names: Sequence[str]) -> None:
        """Takes requests back: nobody is told of them any more."""
        gone = {name for name in names if self.answers.pop(name, None) is not None}
        self.queued = [request for request in self.queued if request.id not in gone]
        self.engine.abort(list(gone))

    def withdraw_all(self) -> None:
        """Takes back whatever has no answer: nothing, unless an error ended the wait."""
        if self.answers:
            self.withdraw(list(self.answers))

    def pump(self, timeout: float) -> None:
        """Submits what is queued, lets the engine work for at most about `timeout` seconds, and answers what is done.

        Raises:
            EngineError: the engine failed; the requests stay unanswered.
        """
        queued, self.queued = self.queued, []
        if queued:
            self._submit(queued)
        if self.engine.in_flight:
            for output in self.engine.poll(timeout):
                self._answer(output.request_id, output)

    def _submit(self, requests: list[Request]) -> None:
        """All at once; where the engine refuses one of them, one by one, so that the others are sampled."""
        try:
            self.engine.submit(requests)
        except ValueError as error:
            if len(requests) == 1:
                self._answer(requests[0].id, RequestRefused(str(error)))
                return
            for request in requests:
                self._submit([request])

    def _answer(self, name: str, output: EngineOutput | EngineError) -> None:
        answer = self.answers.pop(name, None)
        if answer is not None:
            answer(output)
