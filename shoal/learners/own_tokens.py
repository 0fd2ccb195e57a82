"""Tokens that a model itself finds likely, and how far rounding alone moves their log-probs.

Random ids will not do where two computations are compared: a model gives them log-probs of -15 and below, which 16-bit
products move by several nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from logging import getLogger
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from shoal.engines.builtin.decode import ModuleDecoder
from shoal.engines.builtin.sampling import draw, softmax
from shoal.engines.builtin.select import check_cache
from shoal.errors import ConfigError
from shoal.learners.cpu.mixed import MixedLinear, forward_context
from shoal.learners.model import Policy
from shoal.runtime import Runtime
from shoal.types import Segment

logger = getLogger(__name__)


def own_samples(policy: Policy, runtime: Runtime, contexts: Sequence[list[int]], count: int) -> list[Segment]:
    """Each context continued by `count` tokens that the model samples at temperature 1, the same ones every time."""
    decoder = ModuleDecoder(policy.model, runtime.compute_dtype)
    random = torch.Generator().manual_seed(0)
    rows: list[list[int]] = [[] for _ in contexts]
    with decoder.running():
        for logits in _next_logits(decoder, contexts, rows, count):
            logits[:, policy.vocabulary :] = -torch.inf
            uniform = torch.rand(len(rows), generator=random, dtype=torch.float64)
            for row, token in zip(rows, draw(softmax(logits.cpu()), uniform).tolist(), strict=True):
                row.append(token)
    return [
        Segment(list(context), row, [0.0] * count, [True] * count) for context, row in zip(contexts, rows, strict=True)
    ]


def _next_logits(
    decoder: ModuleDecoder, contexts: Sequence[list[int]], rows: list[list[int]], count: int
) -> Iterator[Tensor]:
    """Logits [R, V] of the next tokens, `count` times; the caller appends what it drew to `rows` meanwhile."""
    try:
        check_cache(getattr(decoder.model, "base_model", decoder.model))
    except ConfigError:  # a state that is no KV cache: each token by a pass of its own
        for _ in range(count):
            yield torch.stack(
                [decoder.plain_logits([*context, *row])[-1] for context, row in zip(contexts, rows, strict=True)]
            )
        return
    cache, logits = decoder.prefill([list(context) for context in contexts])
    cache.resize(len(rows), cache.end + count, cache.end)
    yield logits[:, -1]
    for _ in range(count - 1):
        ids = torch.tensor([row[-1:] for row in rows], device=decoder.device)
        yield decoder.forward(ids, cache)[:, -1]


def distance(one: float, other: float) -> float:
    """How far two log-probs of a token are apart, in nats, relative to the log-prob where that is beyond -1: rounding
    grows with it."""
    return abs(one - other) / max(1.0, abs(other))


@torch.no_grad()
def rounding(policy: Policy, runtime: Runtime, segments: Sequence[Segment]) -> float:
    """The mean `distance` between the model's log-probs as it computes and in float32 throughout; 0 where float32 is
    what it computes in, or where it cannot compute in it."""
    if runtime.compute_dtype is None and not runtime.master_weights:
        return 0.0
    policy.model.eval()
    try:
        with in_float32(policy, runtime) as exact:
            right = _plain_logprobs(policy, exact, segments)
    except (RuntimeError, TypeError, ValueError) as error:
        logger.debug("no float32 computation to compare with: %s", error)
        return 0.0
    found = _plain_logprobs(policy, runtime, segments)
    return sum(distance(one, other) for one, other in zip(found, right, strict=True)) / max(len(right), 1)


def _plain_logprobs(policy: Policy, runtime: Runtime, segments: Sequence[Segment]) -> list[float]:
    found: list[float] = []
    for segment in segments:
        ids = torch.tensor([segment.context_ids + segment.sampled_ids], device=runtime.device)
        keep = len(segment.sampled_ids)
        with forward_context(runtime):
            logits = policy.causal_lm(input_ids=ids, use_cache=False).logits[0, -keep - 1 : -1].float()
        found += (logits.gather(-1, ids[0, -keep:, None])[:, 0] - logits.logsumexp(-1)).tolist()
    return found


@contextmanager
def in_float32(policy: Policy, runtime: Runtime) -> Iterator[Runtime]:
    """Lets the model compute in float32, one widened weight at a time; gives the runtime to do it by."""
    mixed: list[torch.nn.Module] = [module for module in policy.model.modules() if type(module) is MixedLinear]
    for module in mixed:
        module.__class__ = torch.nn.Linear
    try:
        with _Widened() if runtime.master_weights else nullcontext():
            yield replace(runtime, compute_dtype=None)
    finally:
        for module in mixed:
            module.__class__ = MixedLinear


class _Widened(TorchFunctionMode):
    """Every torch function gets its 16-bit tensors in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            wide = tree_map(_wide, (args, kwargs or {}))
            return func(*wide[0], **wide[1])


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return value.to(torch.float32)
    return value
