"""Groups from environments, by way of a server of scored groups."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from logging import getLogger
from math import isfinite
from pathlib import Path
from typing import Any

from shoal.algorithms.sequences import check_completion
from shoal.config import ShoalConfig
from shoal.engines.served.engine import ServedEngine
from shoal.engines.served.server import GenerateServer
from shoal.engines.vllm.server_engine import VllmServerEngine
from shoal.errors import DataError, RolloutApiError
from shoal.files import write_atomically
from shoal.monitor.monitor import Monitor
from shoal.rollout_api.client import ApiClient
from shoal.rollout_api.protocol import TRAINER_TOKEN
from shoal.rollout_api.scored_data import stamp, to_group
from shoal.rollout_api.trainer.fetch import BatchFetcher
from shoal.rollout_api.trainer.journal import Entry, Journal
from shoal.rollout_api.trainer.launch import Companions
from shoal.rollout_api.trainer.overlong import fit
from shoal.training.checkpoint import CheckpointStore
from shoal.training.parts import Parts
from shoal.training.sources import GroupSource, StoppedWaiting
from shoal.types import Group

logger = getLogger(__name__)

RESTARTS = 5  # of the server and the environment that source.launch starts, in a run
MOST_EMPTY = 20  # batches in a row of which nothing can be trained on
LOOKED_BACK, FEWEST = 100, 20  # groups over which the share of unusable ones is taken: at most, and at least


class RolloutApiSource(GroupSource):
    """Fetches a batch for each step, keeps it in the journal, acknowledges it.

    While it waits, the built-in engine answers the environments' requests.
    """

    def __init__(
        self,
        cfg: ShoalConfig,
        parts: Parts,
        monitor: Monitor,
        folder: Path,
        total_steps: int,
        stopping: Callable[[], bool],
    ) -> None:
        """Raises ConfigError where the engine cannot be served."""
        self.cfg = cfg
        self.parts = parts
        self.monitor = monitor
        self.folder = folder
        self.total_steps = total_steps
        self.stopping = stopping
        self.seq_len = cfg.source.seq_len or cfg.data.max_prompt_tokens + cfg.sampling.max_new_tokens
        self.journal = Journal(folder)
        self.checkpoints = CheckpointStore(folder, cfg.checkpoint.keep_last)
        self.refill_rounds = cfg.algorithm.refill_rounds if cfg.algorithm.zero_variance == "refill" else 0
        self.batches = 0
        self.after_step: dict[int, int] = {}
        self.bad: list[bool] = []  # of the newest groups, the newest last: whether each was unusable
        self.last: dict[str, float] = {}
        self.companions: Companions | None = None
        self.fetcher: BatchFetcher | None = None
        self.engine = parts.engine if isinstance(parts.engine, ServedEngine) else None
        self.server: GenerateServer | None = None
        self.engine_url = ""
        if self.engine is not None:
            engine = cfg.engine
            self.server = GenerateServer(self.engine, parts.info.tokenizer, engine.serve_host, engine.serve_port)
            self.engine_url = self.server.url
            monitor.message(f"the engine is served at {self.engine_url}")
        elif isinstance(parts.engine, VllmServerEngine):
            self.engine_url = parts.engine.servers[0].url
            monitor.message(f"environments may ask {', '.join(server.url for server in parts.engine.servers)}")

    def next_groups(self, step: int) -> list[Group]:
        """The groups of the next batch that has any to train on.

        Under algorithm.zero_variance=refill those whose rewards are all equal make room for those of further batches.

        Raises:
            RolloutApiError: the server or a batch did not come before the deadline.
            StoppedWaiting: a stop was asked for meanwhile.
        """
        self._forget_old()
        self.last = dict.fromkeys(("batches", "replayed", "overlong", "unusable", "recomputed"), 0.0)
        self.passed_over = [] if self.refill_rounds or self.cfg.source.overlong == "drop" else None
        kept: list[Group] = []
        rounds, wanted = 0, 1
        empty = 0
        while len(kept) < wanted and (rounds <= self.refill_rounds):
            groups = self._next_batch(step)
            if not groups:
                empty += 1
                self._say_empty(step, empty)
                continue
            empty = 0
            wanted = wanted if rounds else len(groups)
            rounds += 1
            for group in groups:
                if self.refill_rounds and group.zero_variance:
                    self._pass_over(group)
                else:
                    kept.append(group)
        self.after_step[step] = self.batches
        self._fill_in_logprobs(kept)
        return kept

    def _pass_over(self, group: Group) -> None:
        """A group that was sampled and scored, and that the configuration leaves out of training."""
        assert self.passed_over is not None
        self.passed_over.append(group)

    def _say_empty(self, step: int, empty: int) -> None:
        """A batch of which nothing can be trained on is said; many of them in a row are the end.

        Raises:
            RolloutApiError: they are.
        """
        overlong, unusable = int(self.last["overlong"]), int(self.last["unusable"])
        why = (
            f"{overlong} sequences are longer than {self.seq_len} tokens and {unusable} groups are unusable: raise "
            "source.seq_len, or set source.overlong=truncate"
        )
        if empty == MOST_EMPTY:
            raise RolloutApiError(f"step {step}: {empty} batches in a row had no group that can be trained on; {why}")
        self.monitor.message(f"step {step}: no group of batch {self.batches} can be trained on; so far {why}")

    def _next_batch(self, step: int) -> list[Group]:
        """The groups of the next batch that can be trained on."""
        with self.monitor.phase("rollout"):
            self.fetcher = self.fetcher or self._open_fetcher()
            entry, replayed = self.fetcher.next(self.batches + 1, step, self.parts.learner.version)
        self.batches += 1
        self.last["batches"] += 1
        self.last["replayed"] += replayed
        return self._groups(entry)

    def metrics(self) -> dict[str, float]:
        """`rollout_api/batches` fetched or replayed for the step; of their sequences or groups: `overlong` sequences,
        `unusable` groups that cannot be trained on, `recomputed` completions whose log-probs are the learner's."""
        return {f"rollout_api/{name}": value for name, value in self.last.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches, "after_step": self.after_step, "bad": self.bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = state["batches"]
        self.after_step = state["after_step"]
        self.bad = state.get("bad", [])

    def close(self) -> None:
        """Ends the companions and stops serving the engine, whatever fails on the way."""
        with ExitStack() as ending:
            if self.fetcher is not None:
                ending.callback(self.fetcher.api.close)
            if self.server is not None:
                ending.callback(self.server.close)
            if self.companions is not None:
                ending.callback(self.companions.stop)

    def _check(self) -> None:
        """Called while something is waited for."""
        if self.companions is not None:
            self.companions.check()
        if self.stopping():
            raise StoppedWaiting

    def _open_fetcher(self) -> BatchFetcher:
        """The connection to the server; where the run has one of its own, that and the environment are started."""
        cfg, wandb, url = self.cfg, self.cfg.monitor.wandb, self.cfg.source.url
        if cfg.source.launch is not None:
            self.companions = Companions(url, cfg.source.launch, self.engine_url, self.folder, RESTARTS)
            url = self.companions.url
            self.monitor.message(f"started a server at {url} and the environment {cfg.source.launch}")
        registration = {
            "wandb_group": wandb.group or self.folder.name,
            "wandb_project": wandb.project,
            "batch_size": cfg.source.batch_size or cfg.run.prompts_per_step * cfg.run.group_size,
            "max_token_len": self.seq_len,
            "checkpoint_dir": str(self.folder / "checkpoints"),
            "save_checkpoint_interval": cfg.checkpoint.every,
            # How many batches that will be is not known where some of them refill others.
            "num_steps": -1 if self.refill_rounds else self.total_steps,
        }
        token, timeout, say = os.environ.get(TRAINER_TOKEN), cfg.source.timeout, self.monitor.message
        return BatchFetcher(
            ApiClient(url, token=token, timeout=timeout, say=say, check=self._check),
            self.journal,
            registration,
            waiting=self.engine.serving if self.engine is not None else nullcontext,
            timeout=timeout,
            say=say,
        )

    def _groups(self, entry: Entry) -> list[Group]:
        """The batch's groups that can be trained on, overlong sequences dealt with."""
        groups = []
        for place, (data, version) in enumerate(zip(entry.groups, entry.versions, strict=True)):
            source = f"environment {data['env_id']}" if data.get("env_id") is not None else "unknown"
            try:
                group = to_group(data, f"batch_{entry.number}/{place}", source)
                stamp(group, version)
                overlong = fit(group, self.seq_len, self.cfg.source.overlong)
                self.last["overlong"] += overlong
                dropped = overlong and self.cfg.source.overlong == "drop"
                if not dropped:
                    self._refuse_unusable(group)
                    self._fill_in_texts(group)
            except DataError as error:
                self._leave_out(f"batch_{entry.number}_{place}", data, str(error))
                continue
            self.bad.append(False)
            if dropped:
                self._pass_over(group)
            else:
                groups.append(group)
        self._check_share()
        return groups

    def _refuse_unusable(self, group: Group) -> None:
        """What only the trainer knows.

        Raises:
            DataError: the group cannot be trained on.
        """
        info = self.parts.info
        for index, completion in enumerate(group.completions):
            where = f"group {group.id}, completion {index}"
            for segment in completion.segments:
                largest = max((*segment.context_ids, *segment.sampled_ids), default=0)
                if largest >= info.vocabulary:
                    raise DataError(f"{where}: token {largest} is beyond the model's vocabulary of {info.vocabulary}")
                length = len(segment.context_ids) + len(segment.sampled_ids)
                if length > info.max_positions:
                    raise DataError(f"{where}: {length} tokens, but the model has {info.max_positions} positions")
                numbers = (*segment.logprobs, *(segment.ref_logprobs or ()), *(segment.advantages or ()))
                if not all(map(isfinite, numbers)):
                    raise DataError(f"{where}: log-probs and advantages must be finite")
            # Missing log-probs are the learner's, which come later.
            whole = [
                replace(segment, logprobs=segment.logprobs or [0.0] * len(segment.sampled_ids))
                for segment in completion.segments
            ]
            check_completion(replace(completion, segments=whole), self.cfg.algorithm.surrogate, where)

    def _leave_out(self, name: str, group: Any, reason: str) -> None:
        """Writes a group that cannot be trained on to a file with the reason, and counts it."""
        self.last["unusable"] += 1
        self.bad.append(True)
        path = self.folder / "unusable_groups" / f"{name.replace('/', '_')}.json"
        write_atomically(path, json.dumps({"reason": reason, "group": group}))
        logger.warning("left out: %s (written to %s)", reason, path)

    def _check_share(self) -> None:
        """Raises RolloutApiError where too large a share of the newest groups is unusable."""
        self.bad = self.bad[-LOOKED_BACK:]
        share, allowed = sum(self.bad) / max(len(self.bad), 1), self.cfg.source.max_unusable
        if len(self.bad) >= FEWEST and share > allowed:
            raise RolloutApiError(
                f"{sum(self.bad)} of the last {len(self.bad)} groups cannot be trained on, more than "
                f"source.max_unusable={allowed:g} allows; {self.folder / 'unusable_groups'} has each with its reason"
            )

    def leave_out(self, groups: list[Group], reason: str) -> bool:
        """Those of environments are left out, until a share of them is passed."""
        for group in groups:
            self._leave_out(f"trained_{group.id}_{group.epoch}", group.to_dict(), reason)
        self._check_share()
        return True

    def _fill_in_texts(self, group: Group) -> None:
        """The text of completions that came without one, for the samples: Atropos's environments send tokens alone."""
        for completion in group.completions:
            if not completion.text:
                completion.text = "\n".join(
                    self.parts.decode(
                        [token for token, used in zip(segment.sampled_ids, segment.mask, strict=True) if used]
                    )
                    for segment in completion.segments
                )

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
