"""From token ids to logits through a KV cache, for any causal language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from shoal.engines.base import SamplingParams
from shoal.engines.builtin.cache import KVCache


class Decoder(ABC):
    """Runs a model on tokens that follow those in a KV cache."""

    layers: int
    device: torch.device
    at_once: int = 1
    """Steps that `steps` takes at a time; 1 where there is no such method."""

    @abstractmethod
    def forward(self, ids: Tensor, cache: KVCache, keep: int = 1) -> Tensor:
        """Appends ids [R, L] to the cache's rows and returns the logits [R, keep, V] float32 of the last `keep`."""

    @abstractmethod
    def refresh(self) -> None:
        """Drops what was derived from the weights, which have changed."""

    @abstractmethod
    def running(self) -> AbstractContextManager[None]:
        """Evaluation mode without gradients. Everything that touches a cache happens inside."""

    def steps(
        self, newest: Tensor, uniforms: Tensor, sampling: Sequence[SamplingParams], cache: KVCache
    ) -> tuple[Tensor, Tensor]:
        """Several steps at a time, where `at_once` is above 1; see `GraphDecoder.steps`."""
        raise NotImplementedError

    def lane_cache(self, capacity: int, columns: int) -> KVCache:
        """A cache to decode in."""
        return self.new_cache(capacity, columns)

    def release(self, cache: KVCache | None) -> None:
        """Lets go of what was made for a lane cache, which is not used any more."""

    def new_cache(self, capacity: int, columns: int) -> KVCache:
        return KVCache(self.layers, capacity, columns, self.device)

    def prefill(self, prompts: list[list[int]], keep: int = 1) -> tuple[KVCache, Tensor]:
        """A cache that holds the prompts, each a row, and the logits [R, keep, V] after their last tokens."""
        width = max(len(prompt) for prompt in prompts)
        # Any id will do left of a prompt, where nothing looks: a missing pad token is no matter.
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=self.device)
        cache = self.new_cache(len(prompts), width)
        starts = [width - len(prompt) for prompt in prompts]
        cache.use(torch.tensor(starts, device=self.device), min(starts))
        return cache, self.forward(ids, cache, keep)


class ModuleDecoder(Decoder):
    """Calls the Hugging Face module itself: slower, but right for every architecture that has a KV cache."""

    def __init__(self, model: Any, compute_dtype: torch.dtype | None) -> None:
        self.model = model
        causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.layers = causal_lm.config.get_text_config().num_hidden_layers
        self.device = next(model.parameters()).device
        self.compute_dtype = compute_dtype
        # On a CPU the learner's linear layers multiply in 16 bits by themselves; autocast would do so in attention too.
        self.autocast = compute_dtype if self.device.type != "cpu" else None
        accepted = signature(causal_lm.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.takes_keep = "logits_to_keep" in accepted

    def refresh(self) -> None:
        """Nothing is derived."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Evaluation mode, with each module's own mode restored after."""
        training = [module for module in self.model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            # Not inference_mode: rotary embeddings may write buffers that the learner's backward pass then meets.
            with torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True

    def forward(self, ids: Tensor, cache: KVCache, keep: int = 1) -> Tensor:
        length = ids.shape[1]
        inputs: dict[str, Any] = {"attention_mask": cache.visible(length).long()}
        if self.takes_positions:
            inputs["position_ids"] = cache.positions(length)
        if self.takes_keep:
            inputs["logits_to_keep"] = keep
        with self._precision():
            output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, **inputs)
        cache.end += length
        return output.logits[:, -keep:].float()

    def plain_logits(self, ids: list[int]) -> Tensor:
        """Logits [L, V] float32 of one sequence without a cache: what every decoder must agree with."""
        with self._precision():
            output = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False)
        return output.logits[0].float()

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)
