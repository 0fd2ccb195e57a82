"""Batches from the server to the journal: each is on disk before it is acknowledged, and taken once."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from logging import getLogger
from time import monotonic, sleep
from typing import Any

from shoal.errors import RolloutApiError
from shoal.rollout_api.client import ApiClient, RefusedError, Say
from shoal.rollout_api.protocol import WEIGHTS_VERSION
from shoal.rollout_api.trainer.journal import Entry, Journal

logger = getLogger(__name__)

NOT_REGISTERED = 409
LOOK_SECONDS = (0.02, 0.5)  # between two looks for a batch: at first, and at most
SAY_EVERY = 10.0


class BatchFetcher:
    """Takes batches from the journal as long as it has some, then from the server.

    Args:
        api: The server.
        journal: The run's.
        registration: What the trainer registers with, but for `starting_step`.
        waiting: A context around every wait for a batch, such as that in which the engine works for others.
        timeout: Seconds without a group more in the queue after which a wait fails.
        say: Takes a line for people.
    """

    def __init__(
        self,
        api: ApiClient,
        journal: Journal,
        registration: dict[str, Any],
        *,
        waiting: Callable[[], AbstractContextManager[None]],
        timeout: float,
        say: Say,
    ) -> None:
        self.api, self.journal, self.registration = api, journal, registration
        self.waiting, self.timeout, self.say = waiting, timeout, say
        self.marks = journal.marks()
        self.registered = False

    def next(self, number: int, step: int, version: int) -> tuple[Entry, bool]:
        """Batch `number` of the run, and whether it was in the journal. `step` is the one that asks, `version` the
        weights held now.

        Raises:
            RolloutApiError: the server or a batch did not come before the deadline.
        """
        entry = self.journal.read(number)
        if entry is not None:
            return entry, True
        if not self.registered:
            self._register(step)
        while True:
            with self.waiting():
                reply = self._wait_for_batch(step, version)
            mark = mark_of(reply)
            # A batch whose acknowledgement did not arrive comes again.
            known = bool(mark) and mark in self.marks
            infos = reply.get("groups") or [{}] * len(reply["batch"])
            versions = [info.get(WEIGHTS_VERSION) for info in infos]
            entry = Entry(number, step, mark, reply["batch"], versions)
            if not known:
                self.journal.write(entry)
                self.marks.add(mark)
            if reply.get("lease") is not None:
                self.api.post("/ack", {"lease": reply["lease"], WEIGHTS_VERSION: version})
            if not known:
                return entry, False
            logger.info("step %d: a batch came twice, and is left out the second time", step)

    def _register(self, step: int) -> None:
        self.api.post("/register", {**self.registration, "starting_step": step - 1})
        self.registered = True

    def _wait_for_batch(self, step: int, version: int) -> dict[str, Any]:
        """Asks until there is a batch; the reply with it. The deadline starts anew whenever the queue grows."""
        last_progress = said = monotonic()
        pause, queued = LOOK_SECONDS[0], -1
        while True:
            reply = self._ask_for_batch(step, version)
            if reply["batch"]:
                return reply
            now = monotonic()
            if now - said > SAY_EVERY or now - last_progress > self.timeout:
                waiting = self.api.get("/status")["queue_size"]
                if waiting > queued:
                    queued, last_progress = waiting, now
                why = reply.get("reason") or f"{waiting} groups are queued"
                wanted = self.registration["batch_size"]
                if now - last_progress > self.timeout:
                    raise RolloutApiError(
                        f"{self.api.url} has had no batch of {wanted} sequences for {now - last_progress:.0f} s "
                        f"({why}): is an environment running (shoal env NAME --api {self.api.url}), and does the "
                        "engine answer it? source.timeout sets how long to wait"
                    )
                said = now
                self.say(f"step {step}: waiting for a batch of {wanted} sequences: {why}")
            self.api.check()
            sleep(pause)
            pause = min(pause * 1.3, LOOK_SECONDS[1])

    def _ask_for_batch(self, step: int, version: int) -> dict[str, Any]:
        """The reply to /batch. A server that has lost its registrations, as a stock one does, gets this one again."""
        try:
            reply = self.api.get(f"/batch?ack=explicit&{WEIGHTS_VERSION}={version}")
        except RefusedError as error:
            if error.status != NOT_REGISTERED:
                raise
            reply = {"batch": None, "status": "error"}
        if reply.get("status") == "error":
            self._register(step)
        return reply


def mark_of(reply: dict[str, Any]) -> str:
    """What tells a batch of Shoal's server from every other: its lease and when its groups arrived. Empty for a stock
    server, which hands a batch out once."""
    if reply.get("lease") is None:
        return ""
    groups = [[one["id"], one["received"]] for one in reply.get("groups") or []]
    return json.dumps([reply["lease"], groups])
