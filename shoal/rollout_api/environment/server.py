"""Serving an environment: items are rolled out and scored ahead of the trainer, within a bound, and sent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import count
from logging import getLogger
from secrets import token_hex
from time import monotonic
from typing import Any

from shoal.errors import EngineError, RequestRefused, TrainingError
from shoal.http import NotYet
from shoal.rewards.scorer import Scorer
from shoal.rollout.environment import Item
from shoal.rollout.rollouts import Rollouts
from shoal.rollout.sampling import sampling_params
from shoal.rollout_api.client import ApiClient, RefusedError
from shoal.rollout_api.protocol import WEIGHTS_VERSION
from shoal.rollout_api.scored_data import ScoredData, stamp, to_scored_data
from shoal.tasks.stream import PromptStream
from shoal.types import Group

logger = getLogger(__name__)

LOOK_SECONDS = 0.05  # between two looks at the queue while it is full
SAY_EVERY = 30.0


@dataclass
class Registration:
    """What the server said when the environment registered. `batch_size` is in sequences."""

    env_id: int
    batch_size: int
    max_tokens: int
    step: int
    num_steps: int


@dataclass
class Counts:
    """What became of the groups; `sent` are those that the server has."""

    sent: int = 0
    unscored: int = 0
    equal: int = 0
    failed: int = 0


class EnvironmentServer:
    """One environment, one trainer behind `api`, one engine behind `model`.

    `ahead` bounds the groups that are queued at the server or under way, in batches. `say` and the deadlines are the
    client's. `finished` groups wait in `outbox` until the server has them.
    """

    def __init__(self, rollouts: Rollouts, scorer: Scorer, stream: PromptStream, name: str, api: ApiClient) -> None:
        self.rollouts = rollouts
        self.scorer = scorer
        self.stream = stream
        self.cfg = rollouts.environment.cfg
        self.settings = self.cfg.environment
        self.group_size = self.cfg.run.group_size
        self.sampling = sampling_params(self.cfg)
        self.name = name
        self.api = api
        self.session = token_hex(6)
        self.counts = Counts()
        self.tasks: dict[asyncio.Task[Group], tuple[Item, int | None]] = {}
        self.keys = count()
        self.said = monotonic()

    async def serve(self) -> Counts:
        """Until the trainer's last step has its groups.

        Raises:
            RolloutApiError: the server did not answer before the deadline.
            TrainingError: the engine did not, or too many groups could not be rolled out or scored.
        """
        registered = await asyncio.to_thread(self.register)
        self._skip_to(registered)
        try:
            while True:
                status = await asyncio.to_thread(self._status, registered)
                if status is None:
                    registered = await asyncio.to_thread(self.register)
                    continue
                if 0 < registered.num_steps <= status["current_step"]:
                    logger.info("%s: the trainer has its last step's groups; %s", self.name, self.counts)
                    return self.counts
                self._start(registered, status)
                await self._send_finished(registered)
        finally:
            for task in self.tasks:
                task.cancel()
            self._disconnect(registered)

    def register(self) -> Registration:
        """Registers, which a server lets an environment do once its trainer asks for batches."""
        info, reply = self.api.wait_for(self._try_to_register)
        logger.info("%s: registered as %s, step %s", self.name, reply["wandb_name"], reply["starting_step"])
        return Registration(
            env_id=reply["env_id"],
            batch_size=info["batch_size"],
            max_tokens=info["max_token_len"],
            step=reply["starting_step"],
            num_steps=reply["num_steps"],
        )

    def _try_to_register(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the server says of its trainer, and of this environment."""
        info = self.api.get("/info")
        if info["batch_size"] > 0:
            reply = self.api.post("/register-env", self._registration())
            if reply.get("status") == "success":
                return info, reply
        raise NotYet("has no trainer that asks for batches")

    def _registration(self) -> dict[str, Any]:
        data, sampling = self.cfg.data, self.sampling
        return {
            "max_token_length": data.max_prompt_tokens + sampling.max_new_tokens,
            "desired_name": self.name,
            "weight": self.settings.weight,
            "group_size": self.group_size,
            "min_batch_allocation": self.settings.min_allocation or None,
        }

    def _skip_to(self, registered: Registration) -> None:
        """Goes on in the data where the trainer is; only the first registration of a process moves it."""
        self.stream.next(registered.step * registered.batch_size // self.group_size)

    def _status(self, registered: Registration) -> dict[str, Any] | None:
        """The queue as this environment sees it; None where the server does not know the environment any more."""
        try:
            return self.api.get("/status-env", {"env_id": registered.env_id})
        except RefusedError as error:
            logger.warning("%s: %s: registering again", self.name, error)
            return None

    def _start(self, registered: Registration, status: dict[str, Any]) -> None:
        """Starts as many groups as the bound leaves room for."""
        queued = status["queue_size"]
        room = int(self.settings.ahead * registered.batch_size / self.group_size) - queued
        room = min(max(room, 1 if queued == 0 else 0), self.settings.max_groups) - len(self.tasks)
        for _ in range(room):
            [(prompt, epoch)] = self.stream.next(1)
            item = Item(prompt, epoch)
            task = asyncio.create_task(self.rollouts.group(item, size=self.group_size, sampling=self.sampling))
            self.tasks[task] = (item, status.get(WEIGHTS_VERSION))

    async def _send_finished(self, registered: Registration) -> None:
        """Waits a little; scores and sends what is finished by then."""
        if not self.tasks:
            await asyncio.sleep(LOOK_SECONDS)
            return
        done, _ = await asyncio.wait(self.tasks, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        groups = [group for task in done if (group := self._taken(task)) is not None]
        if not groups:
            return
        await asyncio.to_thread(lambda: self.scorer.finish(groups).check())
        ready = [self._wire(group, registered) for group in groups if self._is_wanted(group)]
        if ready:
            await asyncio.to_thread(self.send, ready)
            self.counts.sent += len(ready)
        if monotonic() - self.said > SAY_EVERY:
            self.said = monotonic()
            logger.info("%s: %s", self.name, self.counts)

    def send(self, groups: list[ScoredData]) -> None:
        """Returns once the server has them; may send them more than once, by keys that let the server see that."""
        self.api.post("/scored_data_list", groups)

    def _taken(self, task: asyncio.Task[Group]) -> Group | None:
        """The group of a task that ended; None where it failed, which is counted.

        Raises:
            EngineError: the engine was not there before the deadline.
        """
        item, version = self.tasks.pop(task)
        error = task.exception()
        if error is None:
            # The trainer's when the rollout began, so that no token is older.
            stamp(task.result(), version)
            return task.result()
        if isinstance(error, EngineError) and not isinstance(error, RequestRefused):
            raise error
        self.counts.failed += 1
        logger.warning("%s: the rollout of %s failed: %s: %s", self.name, item.prompt.id, type(error).__name__, error)
        if self.counts.failed > self.settings.max_failed:
            raise TrainingError(
                f"{self.counts.failed} rollouts failed, more than environment.max_failed={self.settings.max_failed}; "
                f"the last, of {item.prompt.id}: {type(error).__name__}: {error}"
            ) from error
        return None

    def _is_wanted(self, group: Group) -> bool:
        """Whether a group is to be sent. One with a missing reward is not: it would come out as a score of 0."""
        if len(group.known_rewards) < len(group.completions):
            self.counts.unscored += 1
            return False
        if self.settings.drop_equal and group.zero_variance:
            self.counts.equal += 1
            return False
        return True

    def _wire(self, group: Group, registered: Registration) -> ScoredData:
        key = f"{self.session}/{next(self.keys)}"
        return to_scored_data(group, self.sampling, registered.env_id, key)

    def _disconnect(self, registered: Registration) -> None:
        """Says goodbye, where somebody listens: the server notices by itself too."""
        self.api.timeout = 1.0
        try:
            self.api.post("/disconnect-env", {"env_id": registered.env_id})
        except TrainingError as error:
            logger.info("%s: could not say goodbye: %s", self.name, error)
