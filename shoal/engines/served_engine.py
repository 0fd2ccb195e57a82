"""The built-in engine for others too: environments ask for completions while the trainer waits for their groups.

Engine and learner share one module, so that only one of them can be at work. The trainer's thread owns the module; for
as long as it is inside `serving()`, a second thread decodes what was asked for over HTTP. A completion that is under
way when the trainer takes the module back goes on, with the newer weights, the next time; its versions tell.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import getLogger
from threading import Event, Lock, Thread
from typing import Any

from shoal.engines.base import EngineOutput, Request
from shoal.engines.torch_engine import TorchEngine
from shoal.errors import EngineError
from shoal.types import StopReason

logger = getLogger(__name__)

Answer = Callable[[EngineOutput], None]
IDLE_SECONDS = 0.2


class ServedEngine(TorchEngine):
    """A `TorchEngine` that also answers requests from other threads, but only inside `serving()`.

    Takes the arguments of `TorchEngine`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lock = Lock()  # held by the thread that decodes
        self.open = Event()
        self.work = Event()
        self.closing = False
        self.inbox: deque[tuple[Request, Answer]] = deque()
        self.withdrawn: deque[str] = deque()
        self.answers: dict[str, Answer] = {}
        self.served = 0
        self.thread = Thread(target=self._decode_for_others, name="served engine", daemon=True)
        self.thread.start()

    def ask(self, request: Request, answer: Answer) -> None:
        """From any thread: queues a request; `answer` is called, in the decoding thread, with its output.

        Raises:
            ValueError: the prompt is empty, or longer than the engine can hold.
            EngineError: the engine has ended.
        """
        self._check(request)
        self._check_alive()
        self.inbox.append((request, answer))
        self.work.set()

    def withdraw(self, ids: Sequence[str]) -> None:
        """From any thread: whoever asked is gone; the requests end at the next opportunity."""
        self.withdrawn.extend(ids)
        self.work.set()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """In the trainer's thread: others' requests are worked on inside, and nothing of the model may be touched."""
        self._check_alive()
        self.open.set()
        try:
            yield
        finally:
            self.open.clear()
            with self.lock:  # the slice under way ends first
                pass

    def generate(
        self, requests: Sequence[Request], finished: Callable[[EngineOutput], None] | None = None
    ) -> list[EngineOutput]:
        """The trainer's own requests; others' that are under way get on with them."""
        own = {request.id: EngineOutput(request.id, [], [], StopReason.ERROR) for request in requests}
        self.submit(requests)
        missing = set(own)
        while missing:
            for output in self.advance():
                if output.request_id in missing:
                    missing.remove(output.request_id)
                    own[output.request_id] = output
                    if finished is not None:
                        finished(output)
                else:
                    self._give(output)
        return list(own.values())

    def close(self) -> None:
        self.closing = True
        self.open.set()
        self.work.set()
        self.thread.join(timeout=30)
        super().close()

    def _check_alive(self) -> None:
        if self.closing or not self.thread.is_alive():
            raise EngineError("the served engine has ended, for the reason that its thread has logged; resume the run")

    def _decode_for_others(self) -> None:
        try:
            while not self.closing:
                self.open.wait(IDLE_SECONDS)
                if self.open.is_set():
                    self._decode_a_little()
        finally:
            # Nobody waits for an engine that has ended.
            self.closing = True
            for request, answer in self.inbox:
                answer(EngineOutput(request.id, [], [], StopReason.ABORT))
            for name, answer in self.answers.items():
                answer(EngineOutput(name, [], [], StopReason.ABORT))

    def _decode_a_little(self) -> None:
        with self.lock:
            if not self.open.is_set() or self.closing:
                return
            self._take_in()
            for output in self.advance():
                self._give(output)
        if not self.busy and not self.inbox:
            self.work.wait(IDLE_SECONDS)
            self.work.clear()

    def _take_in(self) -> None:
        while self.inbox:
            request, answer = self.inbox.popleft()
            self.answers[request.id] = answer
            self.submit([request])
        while self.withdrawn:
            self.abort([self.withdrawn.popleft()])

    def _give(self, output: EngineOutput) -> None:
        self.served += 1
        answer = self.answers.pop(output.request_id, None)
        if answer is not None:
            answer(output)
