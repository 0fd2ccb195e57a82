"""No transfer at all: vLLM's parameters and the learner's are the same memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path

from torch import Tensor

from shoal.config.nodes.parts import WeightSyncConfig
from shoal.engines.servers.control import Control
from shoal.errors import ConfigError
from shoal.learners.base import Learner
from shoal.weight_sync.check import SelfCheck
from shoal.weight_sync.servers import ReplicaEngine, ServerSync
from shoal.wire.shared import BRIDGE_FILE, Bridge, memory_file
from shoal.wire.stream import WeightSpec

logger = getLogger(__name__)

SEED_FILE = "vllm_bridge_config.json"  # of Atropos' example trainer


class SharedSync(ServerSync):
    """The optimizer writes into vLLM's memory, so generation is paused from the first write of a batch until its
    version is published: nothing is ever sampled from weights that are between two versions.

    Raises:
        ConfigError: not every weight has a place, or a dtype differs.
    """

    def __init__(
        self,
        cfg: WeightSyncConfig,
        learner: Learner,
        engine: ReplicaEngine,
        check: SelfCheck,
        folder: Path,
        *,
        ours: bool,
    ) -> None:
        """`ours` says that the bridge goes when the run ends; that of a server started by hand stays."""
        super().__init__(cfg, learner, engine, check)
        self.folder = folder
        self.ours = ours
        self.paused = False
        [self.control] = engine.replicas
        bridge = Bridge.read(folder)
        learner.move_weights(views(learner.weight_specs(), bridge))
        logger.info("weight sync: %d parameters shared through %s", len(bridge.parameters), folder)

    def may_overlap(self, version: int) -> bool:
        return False  # the engine has the weights already, and generation is paused until it is told

    def before_write(self) -> None:
        with self.readable():
            if not self.paused:
                super().warm_up(self.learner.version + 1)
                self.control.pause(self.cfg.in_flight)
                self.paused = True
            super().before_write()

    def warm_up(self, version: int) -> None:
        if not self.paused:  # else it was done before the first write
            super().warm_up(version)

    def swap(self, version: int) -> None:
        self.control.call_workers("shoal_hold", version)
        self.paused = False

    def restore(self, control: Control) -> None:
        share(control, self.folder, adopt=True)
        if self.published is not None:
            control.call_workers("shoal_hold", self.published)

    def close(self) -> None:
        if self.paused:
            # The run ends between two versions; a server of someone else may go on.
            self.control.reset_prefix_cache()
            self.control.resume()
        if self.ours:
            memory_file(self.folder).unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)


def share(control: Control, folder: Path, url: str = "", *, adopt: bool = False) -> None:
    """Has a vLLM put its parameters into shared memory and write the bridge into `folder`.

    `adopt` is for a server in place of one that died: it takes the memory and the values of the bridge that is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    control.call_workers("shoal_share", str(folder), url, adopt)


def find_bridge(configured: str | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of the bridge that a server started by hand has written: `weight_sync.bridge`, else LOGDIR.

    Raises:
        ConfigError: there is none; the line says where it was looked for.
    """
    places = {"weight_sync.bridge": configured, "LOGDIR": environment.get("LOGDIR")}
    looked = {name: Path(place) for name, place in places.items() if place}
    for folder in looked.values():
        if (folder / BRIDGE_FILE).is_file():
            _refuse_other_machines(environment)
            return folder
    for name, folder in looked.items():
        if (folder / SEED_FILE).is_file():
            raise ConfigError(
                f"{folder / SEED_FILE} ({name}) was written by Atropos' example server: start the server with "
                f"shoal serve vllm --bridge {folder}"
            )
    where = ", ".join(f"{folder / BRIDGE_FILE} ({name})" for name, folder in looked.items())
    raise ConfigError(
        f"parameter mapping not found: looked for {where or 'weight_sync.bridge and LOGDIR, neither of which is set'}; "
        "start the server with shoal serve vllm --bridge DIR, and set weight_sync.bridge=DIR"
    )


def _refuse_other_machines(environment: Mapping[str, str]) -> None:
    nodes = environment.get("NUM_INFERENCE_NODES", "0")
    if nodes not in ("", "0"):
        raise ConfigError(
            f"NUM_INFERENCE_NODES={nodes}: memory is shared within one machine only (0); for engines on other machines "
            "use weight_sync=broadcast weight_sync.host=ADDRESS"
        )
    unused = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name in environment]
    if unused:
        logger.info("weight sync: %s not needed: shared memory has no rendezvous", " and ".join(unused))


def views(specs: Sequence[WeightSpec], bridge: Bridge) -> dict[str, Tensor]:
    """The part of vLLM's memory that each of the learner's weights is: whole parameters, or rows of fused ones.

    Raises:
        ConfigError: a weight has no place, or a parameter of vLLM is not covered; all of them are named.
    """
    memory = bridge.tensors()
    fused = {part: (whole, parts) for whole, parts in bridge.packed.items() for part in parts}
    rows = {spec.name: _rows(spec.shape) for spec in specs}
    covered = dict.fromkeys(memory, 0)
    found: dict[str, Tensor] = {}
    unmapped: list[str] = []
    for spec in specs:
        name, first = _place(spec.name, memory, fused, rows)
        target = memory.get(name)
        count = rows[spec.name]
        if (
            target is None
            or len(target.shape) != len(spec.shape)
            or target.shape[1:] != spec.shape[1:]
            or first + count > _rows(target.shape)
        ):
            unmapped.append(f"{spec.name} {list(spec.shape)}")
            continue
        # A single number has no rows to choose from.
        found[spec.name] = target[first : first + count] if spec.shape else target
        covered[name] += count
    # vLLM pads vocabularies to a multiple of 64; rows beyond the learner's are no token's.
    short = [
        f"vLLM's {name} {list(memory[name].shape)}"
        for name, count in covered.items()
        if count < _rows(memory[name].shape) and not (count and _is_vocabulary(name))
    ]
    if unmapped or short:
        raise ConfigError(
            f"weight_sync=shared: {len(unmapped) + len(short)} parameters cannot be mapped: "
            f"{'; '.join([*unmapped, *short])}. Use weight_sync=broadcast for this model"
        )
    return found


def _rows(shape: Sequence[int]) -> int:
    return shape[0] if shape else 1


def _place(
    name: str, memory: Mapping[str, Tensor], fused: Mapping[str, tuple[str, list[str]]], rows: Mapping[str, int]
) -> tuple[str, int]:
    """vLLM's name for a weight, and its first row there."""
    if name in memory:
        return name, 0
    module, _, leaf = name.rpartition(".")
    parent, _, part = module.rpartition(".")
    if part not in fused:
        return name, 0
    whole, parts = fused[part]
    before = parts[: parts.index(part)]
    return f"{parent}.{whole}.{leaf}", sum(rows.get(f"{parent}.{other}.{leaf}", 0) for other in before)


def _is_vocabulary(name: str) -> bool:
    return name.endswith(("embed_tokens.weight", "lm_head.weight"))
