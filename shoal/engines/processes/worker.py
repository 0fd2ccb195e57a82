"""How the built-in engine in a process of its own is given its weights: the methods that a weight sync calls."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.engines.builtin.engine import TorchEngine
from shoal.wire.buffers import read_buffer
from shoal.wire.held import HeldWeights
from shoal.wire.stream import WeightGroup, WeightSpec, find, receive
from shoal.wire.versions import UNKNOWN


class TorchWorker:
    """Runs in the thread that owns the engine. Arguments and results are JSON values.

    The version is kept by the engine, where the weights are: it is unknown until all weights of a version are in.
    """

    METHODS = (
        "shoal_status",
        "shoal_join",
        "shoal_receive",
        "shoal_receive_delta",
        "shoal_take",
        "shoal_token",
    )

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine
        self.group: WeightGroup | None = None
        self.held: HeldWeights | None = None

    def shoal_status(self) -> dict[str, Any]:
        """The version that is held."""
        return {"version": self.engine.version, "rank": 0, "pid": os.getpid()}

    def shoal_join(
        self, host: str, port: int, name: str, first_rank: int, world: int, seconds: float
    ) -> dict[str, Any]:
        """Joins the learner's group as `first_rank`."""
        self.group = None
        store = find(host, port, seconds)
        self.group = WeightGroup(store, name, first_rank, world, seconds, self._wire_device, host)
        return self.shoal_status()

    def shoal_receive(
        self, version: int, rows: Sequence[Sequence[Any]], bucket: int, delta: bool = False
    ) -> dict[str, Any]:
        """Takes all weights of a version from the group; `delta`: those that follow may come as what has changed."""
        assert self.group is not None, "shoal_join comes first"
        specs = [WeightSpec.from_row(row) for row in rows]
        there = dict(self.engine.model.named_parameters())
        weights = receive(self.group, specs, bucket, self._wire_device, there)
        return self._take(version, self._held(specs).noting(weights, version) if delta else weights)

    @torch.no_grad()
    def shoal_receive_delta(self, version: int, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Takes from the group what has changed since the version that is held. Where that cannot be used, `wrong` says
        why, and all weights have to be sent."""
        assert self.group is not None, "shoal_join comes first"
        held = self._held([WeightSpec.from_row(row) for row in rows])
        self.engine.version = UNKNOWN  # it holds a mixture now
        found = held.take(self.group, version, self._wire_device)
        if not found.wrong:
            there = dict(self.engine.model.named_parameters())
            for name, weight in held.changed_copies(found.changed):
                there[name].copy_(weight)
            self._serve(version)
        return {**self.shoal_status(), "wrong": found.wrong}

    def _held(self, specs: Sequence[WeightSpec]) -> HeldWeights:
        if self.held is None:
            self.held = HeldWeights(specs, dict(self.engine.model.named_parameters()), torch.get_num_threads())
        return self.held

    def shoal_take(self, version: int, file: str, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Takes all weights of a version from a buffer in memory that the learner shares.

        Raises:
            EngineError: the buffer holds another version.
        """
        specs = [WeightSpec.from_row(row) for row in rows]
        return self._take(version, read_buffer(file, specs, version))

    def shoal_token(self, prompt_ids: Sequence[int]) -> dict[str, Any]:
        """One token after the prompt, sampled at temperature 1, ahead of all requests that are queued."""
        token, logprob = self.engine.next_token(prompt_ids)
        return {**self.shoal_status(), "token": token, "logprob": logprob}

    @torch.no_grad()
    def _take(self, version: int, weights: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
        """Writes the weights where the model has them. Parameters that were left out are given as `missing`."""
        there = dict(self.engine.model.named_parameters())
        left = set(there)
        self.engine.version = UNKNOWN  # it holds a mixture now
        for name, weight in weights:
            there[name].copy_(weight)  # of itself it copies nothing, but counts as a change
            left.discard(name)
        if not left:
            self._serve(version)
        return {**self.shoal_status(), "missing": sorted(left)}

    def _serve(self, version: int) -> None:
        """Completions in flight are run again by the new weights, so that no token follows keys and values of two."""
        self.engine.refresh(version)
        self.engine.recompute()

    @property
    def _wire_device(self) -> torch.device:
        return self.engine.device if self.engine.device.type == "cuda" else torch.device("cpu")
