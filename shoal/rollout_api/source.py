"""Groups from environments, by way of a server of scored groups."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from logging import getLogger
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from shoal.config import ShoalConfig
from shoal.engines.generate_server import GenerateServer
from shoal.engines.served_engine import ServedEngine
from shoal.errors import DataError, RolloutApiError
from shoal.monitor.monitor import Monitor
from shoal.rollout_api.client import ApiClient, RefusedError
from shoal.rollout_api.journal import Entry, Journal
from shoal.rollout_api.launch import Companions
from shoal.rollout_api.overlong import fit
from shoal.rollout_api.protocol import TRAINER_TOKEN, WEIGHTS_VERSION
from shoal.rollout_api.scored_data import to_group
from shoal.training.checkpoint import CheckpointStore
from shoal.training.parts import Parts
from shoal.training.sources import GroupSource
from shoal.types import Group

logger = getLogger(__name__)

NOT_REGISTERED = 409
LOOK_SECONDS = (0.02, 0.5)  # between two looks for a batch: at first, and at most
SAY_EVERY = 10.0


class RolloutApiSource(GroupSource):
    """Fetches a batch for each step, keeps it in the journal, acknowledges it.

    While it waits, the built-in engine answers the environments' requests.
    """

    def __init__(self, cfg: ShoalConfig, parts: Parts, monitor: Monitor, folder: Path, total_steps: int) -> None:
        """Raises ConfigError where the engine cannot be served."""
        self.cfg = cfg
        self.parts = parts
        self.monitor = monitor
        self.folder = folder
        self.total_steps = total_steps
        self.seq_len = cfg.source.seq_len or cfg.data.max_prompt_tokens + cfg.sampling.max_new_tokens
        self.batch_size = cfg.source.batch_size or cfg.run.prompts_per_step * cfg.run.group_size
        self.journal = Journal(folder)
        self.checkpoints = CheckpointStore(folder, cfg.checkpoint.keep_last)
        self.marks = self.journal.marks()
        self.batches = 0
        self.after_step: dict[int, int] = {}
        self.registered = False
        self.last: dict[str, float] = {}
        self.companions: Companions | None = None
        self.api = self._client(cfg.source.url)
        self.engine = parts.engine if isinstance(parts.engine, ServedEngine) else None
        self.server: GenerateServer | None = None
        self.engine_url = ""
        if self.engine is not None:
            engine = cfg.engine
            self.server = GenerateServer(self.engine, parts.policy.tokenizer, engine.serve_host, engine.serve_port)
            self.engine_url = self.server.url
            monitor.message(f"the engine is served at {self.engine_url}")

    def next_groups(self, step: int) -> list[Group]:
        """The groups of the next batch that has any to train on.

        Raises:
            RolloutApiError: the server or a batch did not come before the deadline.
        """
        self._forget_old()
        self.last = dict.fromkeys(("batches", "replayed", "overlong", "unusable", "recomputed"), 0.0)
        groups: list[Group] = []
        while not groups:
            entry = self.journal.read(self.batches + 1)
            if entry is None:
                with self.monitor.phase("rollout"):
                    entry = self._fetch(step)
            else:
                self.last["replayed"] += 1
            self.batches += 1
            self.last["batches"] += 1
            groups = self._groups(entry)
        self.after_step[step] = self.batches
        self._fill_in_logprobs(groups)
        return groups

    def metrics(self) -> dict[str, float]:
        """`rollout_api/batches` fetched or replayed for the step; of their sequences or groups: `overlong` sequences,
        `unusable` groups that cannot be read, `recomputed` completions whose log-probs are the learner's."""
        return {f"rollout_api/{name}": value for name, value in self.last.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches, "after_step": self.after_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = state["batches"]
        self.after_step = state["after_step"]

    def close(self) -> None:
        """Stops serving the engine."""
        if self.companions is not None:
            self.companions.stop()
        if self.server is not None:
            self.server.close()
        self.api.close()

    def _client(self, url: str) -> ApiClient:
        token, timeout = os.environ.get(TRAINER_TOKEN), self.cfg.source.timeout
        return ApiClient(url, token=token, timeout=timeout, say=self.monitor.message, check=self._check)

    def _check(self) -> None:
        """Called while something is waited for: raises where it cannot come."""
        if self.companions is not None:
            self.companions.check()

    def _launch(self) -> None:
        """Starts the server and the environment, where the run has them as its own; once."""
        source = self.cfg.source
        if source.launch is None or self.companions is not None:
            return
        self.companions = Companions(source.url, source.launch, self.engine_url, self.folder)
        self.api = self._client(self.companions.url)
        self.monitor.message(f"started a server at {self.companions.url} and the environment {source.launch}")

    def _fetch(self, step: int) -> Entry:
        """The next batch from the server, in the journal and then acknowledged.

        A batch that is in the journal already, because its acknowledgement did not arrive, is acknowledged again.
        """
        if not self.registered:
            self._launch()
            self._register(step)
        while True:
            with self.engine.serving() if self.engine is not None else nullcontext():
                reply = self._wait_for_batch(step)
            mark = mark_of(reply)
            known = bool(mark) and mark in self.marks
            entry = Entry(self.batches + 1, step, mark, reply["batch"])
            if not known:
                self.journal.write(entry)
                self.marks.add(mark)
            if reply.get("lease") is not None:
                version = self.parts.learner.version
                self.api.post("/ack", {"lease": reply["lease"], WEIGHTS_VERSION: version})
            if not known:
                return entry
            logger.info("step %d: a batch came twice, and is left out the second time", step)

    def _register(self, step: int) -> None:
        wandb = self.cfg.monitor.wandb
        self.api.post(
            "/register",
            {
                "wandb_group": wandb.group or self.folder.name,
                "wandb_project": wandb.project,
                "batch_size": self.batch_size,
                "max_token_len": self.seq_len,
                "checkpoint_dir": str(self.folder / "checkpoints"),
                "save_checkpoint_interval": self.cfg.checkpoint.every,
                "starting_step": step - 1,
                "num_steps": self.total_steps,
            },
        )
        self.registered = True

    def _wait_for_batch(self, step: int) -> dict[str, Any]:
        """Asks until there is a batch; the reply with it. The deadline starts anew whenever the queue grows."""
        last_progress = said = monotonic()
        pause, queued = LOOK_SECONDS[0], -1
        while True:
            reply = self._ask_for_batch(step)
            if reply["batch"]:
                return reply
            now = monotonic()
            if now - said > SAY_EVERY or now - last_progress > self.cfg.source.timeout:
                waiting = self.api.get("/status")["queue_size"]
                if waiting > queued:
                    queued, last_progress = waiting, now
                why = reply.get("reason") or f"{waiting} groups are queued"
                if now - last_progress > self.cfg.source.timeout:
                    raise RolloutApiError(
                        f"{self.api.url} has had no batch of {self.batch_size} sequences for "
                        f"{now - last_progress:.0f} s ({why}): is an environment running (shoal env NAME --api "
                        f"{self.api.url}), and does the engine answer it? source.timeout sets how long to wait"
                    )
                said = now
                self.monitor.message(f"step {step}: waiting for a batch of {self.batch_size} sequences: {why}")
            self._check()
            sleep(pause)
            pause = min(pause * 1.3, LOOK_SECONDS[1])

    def _ask_for_batch(self, step: int) -> dict[str, Any]:
        """The reply to /batch. A server that has lost its registrations, as a stock one does, gets this one again."""
        try:
            reply = self.api.get(f"/batch?ack=explicit&{WEIGHTS_VERSION}={self.parts.learner.version}")
        except RefusedError as error:
            if error.status != NOT_REGISTERED:
                raise
            reply = {"batch": None, "status": "error"}
        if reply.get("status") == "error":
            self._register(step)
        return reply

    def _groups(self, entry: Entry) -> list[Group]:
        """The batch's groups that can be trained on, overlong sequences dealt with."""
        groups = []
        for place, data in enumerate(entry.groups):
            source = f"environment {data['env_id']}" if data.get("env_id") is not None else "unknown"
            try:
                group = to_group(data, f"batch_{entry.number}/{place}", source)
            except DataError as error:
                self.last["unusable"] += 1
                logger.warning("left out: %s", error)
                continue
            overlong = fit(group, self.seq_len, self.cfg.source.overlong)
            self.last["overlong"] += overlong
            if not (overlong and self.cfg.source.overlong == "drop"):
                groups.append(group)
        return groups

    def _fill_in_logprobs(self, groups: list[Group]) -> None:
        """The learner's log-probs, at the temperature of sampling, where the environment sent none."""
        missing = [
            (completion, segment)
            for group in groups
            for completion in group.completions
            for segment in completion.segments
            if len(segment.logprobs) != len(segment.sampled_ids)
        ]
        by_temperature: dict[float, list[Any]] = {}
        for completion, segment in missing:
            temperature = float(completion.overrides.get("temperature") or self.cfg.sampling.temperature)
            by_temperature.setdefault(temperature, []).append(segment)
        for temperature, segments in by_temperature.items():
            found = self.parts.learner.logprobs(segments, temperature)
            for segment, row in zip(segments, found, strict=True):
                segment.logprobs = row
        self.last["recomputed"] = float(len({id(completion) for completion, _ in missing}))

    def _forget_old(self) -> None:
        """Takes away what every checkpoint is past."""
        steps = self.checkpoints.steps()
        if steps and steps[0] in self.after_step:
            self.journal.forget(self.after_step[steps[0]] + 1)
            self.after_step = {step: number for step, number in self.after_step.items() if step >= steps[0]}


def mark_of(reply: dict[str, Any]) -> str:
    """What tells a batch of Shoal's server from every other: its lease and when its groups arrived. Empty for a stock
    server, which hands a batch out once."""
    if reply.get("lease") is None:
        return ""
    groups = [[one["id"], one["received"]] for one in reply.get("groups") or []]
    return json.dumps([reply["lease"], groups])
