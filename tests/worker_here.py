"""A replica of the built-in engine in this process, which takes weights as one in a process of its own does."""

from __future__ import annotations

from typing import Any

import torch
from recorded_vllm import RecordedVllm
from transformers import AutoModelForCausalLM

from shoal.engines.builtin.engine import TorchEngine
from shoal.engines.processes.worker import TorchWorker
from shoal.wire.delta import signed


class WorkerHere(RecordedVllm):
    """Begins with weights of zero, of the dtype of the learner's or another one."""

    def __init__(self, learner: Any, name: str = "a worker here", dtype: torch.dtype | None = None) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            learner.cfg.model.name, dtype=dtype or learner.runtime.param_dtype
        )
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()
        self.worker = TorchWorker(TorchEngine(self.model, learner.policy.tokenizer, max_batch=4))
        super().__init__(learner, {method: getattr(self.worker, method) for method in TorchWorker.METHODS})
        self.name = name

    def has_the_learners_weights(self) -> bool:
        """Whether they are equal, to the bit where the dtype is the same."""
        mine = dict(self.model.named_parameters())
        return all(
            torch.equal(signed(mine[name]), signed(one.to(mine[name].dtype)))
            for name, one in self.learner.named_weights()  # type: ignore[attr-defined]
        )
