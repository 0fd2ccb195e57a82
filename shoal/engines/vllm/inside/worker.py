"""What runs inside vLLM's worker processes: `ShoalWorker`, whose methods are called by `collective_rpc`.

vLLM imports this module before its model loads (`--worker-extension-cls`); importing it changes two things in vLLM,
and ends the process where the trainer has ended.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import wraps
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager, WorkerLoRAManager
from vllm.model_executor.layers import utils as vllm_layers

from shoal.child_process import end_with_owner
from shoal.wire.held import HeldWeights
from shoal.wire.shared import adopt_on_cpu, share_on_cpu, share_on_cuda
from shoal.wire.stream import WeightGroup, WeightSpec, find, receive
from shoal.wire.versions import UNKNOWN, version_in

logger = getLogger(__name__)


def keep_weights_plain() -> None:
    """On a CPU vLLM packs the weights of linear layers and empties the originals, so that nobody could write them.

    Without packing the layers multiply with `weight` itself, and a tied head sees what its embedding is given. On tiny
    models this is no slower.
    """

    def dispatch(layer: nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = nn.functional.linear  # type: ignore[assignment]

    vllm_layers.dispatch_cpu_unquantized_gemm = dispatch


def note_versions_of_adapters() -> None:
    """Makes vLLM's adapters remember which version the folder that they were really loaded from has."""
    # Any: types must check alike where vLLM is installed and where it is not.
    manager: Any = WorkerLoRAManager
    plain = manager._load_adapter

    @wraps(plain)
    def load(self: Any, lora_request: Any) -> Any:
        adapter = plain(self, lora_request)
        adapter.shoal_version = version_in(lora_request.lora_path)
        return adapter

    if not hasattr(plain, "__wrapped__"):
        manager._load_adapter = load


end_with_owner()
keep_weights_plain()
note_versions_of_adapters()


class ShoalWorker:
    """Methods that vLLM's workers get beside their own. Arguments and results are JSON values.

    The version is kept here, where the weights are: set with them, or read from the folder that they were loaded from.
    """

    rank: int
    device: torch.device
    model_runner: Any
    model_config: Any
    shoal_held: int | None = None
    shoal_group: WeightGroup | None = None
    shoal_kept: HeldWeights | None = None

    def shoal_status(self) -> dict[str, Any]:
        """The version that this worker holds: of the adapter where one is loaded, else of its weights."""
        return {"version": self.shoal_version(), "rank": self.rank, "pid": os.getpid()}

    def shoal_version(self) -> int:
        adapters = self.shoal_adapters()
        if adapters:
            return max(adapters)
        if self.shoal_held is None:
            self.shoal_held = version_in(self.model_config.model)
        return self.shoal_held

    def shoal_adapters(self) -> list[int]:
        """Versions of the adapters that are loaded."""
        manager = getattr(self.model_runner, "lora_manager", None)
        if not isinstance(manager, LRUCacheWorkerLoRAManager):
            return []
        loaded = [manager._adapter_manager.get_adapter(number) for number in manager.list_adapters()]
        return [getattr(adapter, "shoal_version", UNKNOWN) for adapter in loaded]

    def shoal_hold(self, version: int) -> dict[str, Any]:
        """Takes the weights that are in memory now for `version`."""
        self.shoal_held = version
        return self.shoal_status()

    # broadcast

    def shoal_join(
        self, host: str, port: int, name: str, first_rank: int, world: int, seconds: float
    ) -> dict[str, Any]:
        """Joins the learner's group; this worker's rank in it is `first_rank` plus its own."""
        self.shoal_group = None
        self.shoal_group = WeightGroup(
            find(host, port, seconds), name, first_rank + self.rank, world, seconds, self.device, host
        )
        return self.shoal_status()

    def shoal_receive(
        self, version: int, rows: Sequence[Sequence[Any]], bucket: int, delta: bool = False
    ) -> dict[str, Any]:
        """Takes all weights from the group, through vLLM's own loaders, which know fused and sharded layers. `delta`:
        those that follow may come as what has changed, for which a copy is kept in memory of the CPU.

        Returns the parameters that were left as they were, as `missing`: a weight sync may not have any.
        """
        assert self.shoal_group is not None, "shoal_join comes first"
        specs = [WeightSpec.from_row(row) for row in rows]
        # Until all weights are in, this worker holds a mixture.
        self.shoal_held = UNKNOWN
        model = self.model_runner.get_model()
        weights = receive(self.shoal_group, specs, bucket, self.device)
        loaded = model.load_weights(self.shoal_copy(specs).noting(weights, version) if delta else weights)
        missing = sorted(set(dict(model.named_parameters())) - set(loaded))
        if not missing:
            self.shoal_held = version
        return {**self.shoal_status(), "missing": missing}

    def shoal_receive_delta(self, version: int, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Takes from the group what has changed since the version that is held, and loads the weights that have. Where
        that cannot be used, `wrong` says why, and all weights have to be sent."""
        assert self.shoal_group is not None, "shoal_join comes first"
        copy = self.shoal_copy([WeightSpec.from_row(row) for row in rows])
        self.shoal_held = UNKNOWN
        found = copy.take(self.shoal_group, version, self.device)
        if not found.wrong:
            self.model_runner.get_model().load_weights(copy.changed_copies(found.changed))
            self.shoal_held = version
        return {**self.shoal_status(), "wrong": found.wrong}

    def shoal_copy(self, specs: Sequence[WeightSpec]) -> HeldWeights:
        """The weights as the learner names them. vLLM's own are fused, and a worker may have a part of each."""
        if self.shoal_kept is None:
            self.shoal_kept = HeldWeights(specs, {}, torch.get_num_threads())
        return self.shoal_kept

    # shared

    def shoal_share(self, folder: str, url: str, adopt: bool) -> dict[str, Any]:
        """Shares this worker's parameters through the bridge in `folder`.

        `adopt` takes the values and the memory of the bridge that is there, for a server in place of one that died.
        """
        model = self.model_runner.get_model()
        parameters = dict(model.named_parameters())
        packed = getattr(model, "packed_modules_mapping", {})
        place = Path(folder)
        if self.device.type == "cuda":
            bridge = share_on_cuda(parameters, place, self.model_config.model, packed, url)
        elif adopt:
            bridge = adopt_on_cpu(parameters, place, url)
        else:
            bridge = share_on_cpu(parameters, place, self.model_config.model, packed, url)
        return {"parameters": len(bridge.parameters)}
