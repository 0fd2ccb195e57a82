"""The DeepSpeed learner as the run sees it: one Ray actor for each rank, and no weights in this process."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from threading import RLock
from time import monotonic
from typing import Any

import ray

from shoal.cluster.cluster import Cluster
from shoal.cluster.ranks import RankLost, Ranks
from shoal.config import ShoalConfig
from shoal.errors import TrainingError
from shoal.learners.base import Learner, Watcher
from shoal.models.info import ModelInfo
from shoal.types import Batch, Place, Segment
from shoal.wire.snapshot import DeltaSize
from shoal.wire.stream import Meeting, WeightSpec

logger = getLogger(__name__)

OF_A_GROUP = ("join", "send_weights", "send_delta")
"""Calls that are not made again after ranks were lost: others take part in them, who have lost rank 0."""


class DeepSpeedLearner(Learner):
    """Tells the ranks on a cluster what to do, all at once, and waits for them `learner.timeout` seconds.

    Where one dies or hangs, all are started again, `learner.restarts` times at most: from the last checkpoint, after
    which they train the batches again that came since. So no version is lost, and nobody else is started again.

    Two threads may call it: while rollouts run ahead, weights are published beside the learner's work.
    """

    def __init__(self, cfg: ShoalConfig, info: ModelInfo, cluster: Cluster, total_steps: int, logs: Path) -> None:
        """`cfg.model.name` is a model that every node can load; each rank writes a log in `logs`.

        Raises:
            ConfigError: the model or DeepSpeed's options do not work.
            TrainingError: a rank did not start in time.
        """
        self.cfg = cfg
        self.version = 0
        self.cluster = cluster
        self.specs: list[WeightSpec] | None = None
        self.model_info = info
        # Without checkpoints the batches since the last one are all of the run.
        self.restarts_left = cfg.learner.restarts if cfg.checkpoint.every else 0
        self.mending = RLock()
        self.lives = self.seen = 0
        self.lost = ""
        self.saved_in: Path | None = None
        self.since: list[Any] = []
        """Batches that were trained since the last checkpoint, in Ray's store, which moves to disk what is too much."""
        self.joined: Meeting | None = None
        self.doing = "start"
        self.ranks = Ranks(cfg, cluster, total_steps, logs)
        try:
            self.ranks.start()
            self.runtime = self.ranks.runtime
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> ModelInfo:
        return self.model_info

    @property
    def world(self) -> int:
        """The number of ranks."""
        return len(self.ranks.actors)

    def train(self, batch: Batch, watcher: Watcher | None = None) -> dict[str, float]:
        """See `Learner.train`. `watcher` is told once of all writes of the batch."""
        given = ray.put(batch)
        while True:
            lives = self._mended()  # not while others wait for the weights to be written
            if watcher:
                watcher.before_write()
            try:
                metrics: dict[str, float] = self._ask("train", given)[0]
                break
            except RankLost as error:
                self._note_lost(error, lives)
            finally:
                if watcher:
                    watcher.after_write()
        if self.cfg.checkpoint.every:
            self.since.append(given)
        self.version += 1
        return metrics

    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        return [row for rows in self._all("logprobs", list(segments), temperature) for row in rows]

    def reference_logprobs(self, segments: Sequence[Segment]) -> list[list[float]]:
        """As `logprobs`, by the reference that the ranks hold under `algorithm.kl_coef`, at temperature 1."""
        return [row for rows in self._all("reference_logprobs", list(segments)) for row in rows]

    def sample(self, contexts: Sequence[list[int]], count: int) -> list[Segment]:
        return list(self._all("sample", list(contexts), count)[0])

    def rounding(self, segments: Sequence[Segment]) -> float:
        return float(self._all("rounding", list(segments))[0])

    def save(self, folder: Path) -> None:
        self._all("save", folder.absolute())

    def saved(self, folder: Path) -> None:
        self.saved_in, self.since = folder.absolute(), []

    def load(self, folder: Path) -> None:
        self._all("load", folder.absolute())
        self.version = self._all("counted")[0]
        self.saved(folder)

    def export(self, folder: Path) -> None:
        self._all("export", folder.absolute())

    def weight_specs(self) -> list[WeightSpec]:
        if self.specs is None:
            self.specs = self._all("weight_specs")[0]
        return self.specs

    def join(self, meeting: Meeting) -> None:
        self._all("join", meeting)
        self.joined = meeting

    def revive(self) -> int:
        lives = self._mended()
        count, self.seen = lives - self.seen, lives
        return count

    def is_in(self, meeting: Meeting) -> bool:
        return meeting == self.joined

    def send_weights(self, meeting: Meeting, version: int) -> None:
        self._all("send_weights", meeting, version)

    def compare_weights(self, version: int) -> DeltaSize:
        found: DeltaSize = self._all("compare_weights", version)[0]
        return found

    def send_delta(self, meeting: Meeting) -> None:
        self._all("send_delta", meeting)

    def leave(self) -> None:
        self.ranks.tell(0, "leave")

    def places(self) -> list[Place]:
        state = "is started again" if self.lost else self.doing or "idle"
        return [
            (node, f"rank {rank}", f"version {self.version}, {state}") for rank, node in enumerate(self.ranks.nodes)
        ]

    def close(self) -> None:
        """Ends the ranks at once: what they held is saved, or not wanted."""
        self.ranks.kill()

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        """What a method gives on every rank, in their order.

        Raises:
            TrainingError: a rank died, or did not answer in time, and may not be started again.
            Exception: what the ranks raise.
        """
        while True:
            lives = self._mended()
            try:
                return self._ask(method, *arguments)
            except RankLost as error:
                self._note_lost(error, lives)
                if method in OF_A_GROUP:
                    raise

    def _ask(self, method: str, *arguments: Any) -> list[Any]:
        self.doing = method.replace("_", " ")
        found = self.ranks.ask(method, *arguments)
        self.doing = ""
        return found

    def _note_lost(self, error: RankLost, lives: int) -> None:
        """Takes note that the ranks cannot be used again; unless another thread has had them started again since.

        Raises:
            RankLost: they may not be started again.
        """
        with self.mending:
            if lives != self.lives:
                return
            self.lost = str(error)
            if not self.restarts_left:
                raise error

    def _mended(self) -> int:
        """Starts the ranks again where they were lost; how often that has been done.

        Raises:
            TrainingError: that failed, `learner.restarts` are used up, or a node is lost for good.
        """
        with self.mending:
            started = monotonic()
            again = bool(self.lost)
            while self.lost:
                self._start_again()
            if again:
                logger.warning("the ranks are back after %.1f s, at version %d", monotonic() - started, self.version)
            return self.lives

    def _start_again(self) -> None:
        if not self.restarts_left:
            raise TrainingError(f"{self.lost}; learner.restarts are used up")
        self.restarts_left -= 1
        batches = f"{len(self.since)} batch{'es' * (len(self.since) != 1)}"
        logger.warning(
            "%s; all ranks are started again from %s and train %s again (checkpoint.every=%d bounds that); %d "
            "learner.restarts are left",
            self.lost,
            self.saved_in.name if self.saved_in else "the start of the run",
            batches,
            self.cfg.checkpoint.every,
            self.restarts_left,
        )
        self.ranks.kill()
        self.joined = None
        try:
            self.cluster.mend()
            self.ranks.start()
            if self.saved_in is not None:
                self.ranks.ask("load", self.saved_in)
            for batch in self.since:
                self.ranks.ask("train", batch)
            [version, *_] = self.ranks.ask("counted")
        except RankLost as error:
            self.lost = str(error)
            return
        if version != self.version:
            raise TrainingError(
                f"the learner's ranks have version {version} after {batches} since "
                f"{self.saved_in or 'the start'}, where {self.version} was lost: this is a fault of Shoal's"
            )
        self.lives += 1
        self.lost = ""
