"""Which decoder a model gets, and the proof that it is right for it."""

from __future__ import annotations

from inspect import signature
from logging import getLogger
from typing import Any

import torch
from torch import Tensor

from shoal.engines.base import SamplingParams
from shoal.engines.builtin.decode import Decoder, ModuleDecoder
from shoal.engines.builtin.fast_decode import FastDecoder
from shoal.engines.builtin.fused_weights import unsupported
from shoal.engines.builtin.graph_decode import GraphDecoder, can_record, decode_kernel
from shoal.errors import ConfigError

logger = getLogger(__name__)

KV_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
PROBE_LENGTHS = (5, 9)
PROBE_STEPS = 2


def choose_decoder(model: Any, compute_dtype: torch.dtype | None) -> Decoder:
    """The fastest decoder whose logits are the module's own on a small probe.

    Raises:
        ConfigError: no decoder agrees with the module.
    """
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    check_cache(causal_lm)
    decoder = ModuleDecoder(model, compute_dtype)
    reason = unsupported(causal_lm)
    if not reason:
        fast = FastDecoder(model, compute_dtype)
        difference, allowed = probe(fast, decoder)
        if difference <= allowed:
            return _recorded(fast, decoder, allowed)
        reason = f"its logits differ from the module's by {difference:.2g} ({allowed:.2g} allowed)"
    logger.info("engine: the module's own forward pass decodes (no fast path: %s)", reason)
    difference, allowed = probe(decoder, decoder)
    if not difference <= allowed:
        raise ConfigError(
            f"engine=torch cannot decode {type(causal_lm).__name__}: with a KV cache its logits differ by "
            f"{difference:.2g} from a plain forward pass ({allowed:.2g} allowed); use another model or engine"
        )
    return decoder


def _recorded(fast: FastDecoder, module: ModuleDecoder, allowed: float) -> FastDecoder:
    """The fast decoder with graphs, where this device has them and they compute the same: by our kernel or torch's."""
    if not can_record(fast):
        return fast
    fast.refresh()  # lets go of its copies of the weights
    why = ""
    for kernel in dict.fromkeys((decode_kernel(), None)):
        graphs = GraphDecoder(module.model, module.compute_dtype, kernel)
        try:
            difference = probe_steps(graphs, module)
        except RuntimeError as error:
            why = f"which is slower: {str(error).splitlines()[0]}"
            continue
        if difference <= allowed:
            return graphs
        why = f"whose log-probs differ by {difference:.2g}"
    logger.warning("engine: decoding is not recorded as CUDA graphs, %s", why)
    return fast


def probe_steps(decoder: GraphDecoder, module: ModuleDecoder) -> float:
    """Largest difference between the log-probs of tokens that a decoder's steps sample and those by plain forward
    passes. Two rows of different lengths are prefilled together."""
    vocabulary = module.model.config.get_text_config().vocab_size
    rows = [[(7 * row + 3 * i + 1) % vocabulary for i in range(n)] for row, n in enumerate(PROBE_LENGTHS)]
    with decoder.running():
        cache, _ = decoder.prefill([row[:-1] for row in rows])
        cache.resize(len(rows), cache.end + PROBE_STEPS, cache.end)
        newest = torch.tensor([row[-1] for row in rows])
        drawn = torch.full((PROBE_STEPS, len(rows)), 0.5)
        tokens, logprobs = decoder.steps(newest, drawn, [SamplingParams(PROBE_STEPS)] * len(rows), cache)
        tokens, logprobs = tokens.clone(), logprobs.clone()
        decoder.release(None)
    differences = []
    with module.running():
        for row, ids in enumerate(rows):
            sampled = tokens[:, row]
            logits = module.plain_logits([*ids, *sampled.tolist()])[-PROBE_STEPS - 1 : -1]
            plain = logits.gather(1, sampled[:, None])[:, 0] - logits.logsumexp(-1)
            differences.append((plain - logprobs[:, row]).abs().max())
    return float(torch.stack(differences).max())


def check_cache(causal_lm: Any) -> None:
    """Refuses models whose state is not a KV cache, whose rows could not be aligned at their ends."""
    name = type(causal_lm).__name__
    others = set(getattr(causal_lm.config.get_text_config(), "layer_types", None) or ()) - KV_LAYERS
    if others:
        raise ConfigError(f"engine=torch cannot decode {name}: layers of kind {', '.join(sorted(others))}; use another")
    if causal_lm.config.is_encoder_decoder or "past_key_values" not in signature(causal_lm.forward).parameters:
        raise ConfigError(f"engine=torch cannot decode {name}: it is no causal model with a KV cache; use another")


def probe(decoder: Decoder, module: ModuleDecoder) -> tuple[float, float]:
    """Largest difference between a decoder's logits and those of plain forward passes, and the largest allowed.

    Two rows of different lengths are prefilled together and then decoded for a few steps.
    """
    vocabulary = module.model.config.get_text_config().vocab_size
    rows = [[(7 * row + 3 * i + 1) % vocabulary for i in range(n + PROBE_STEPS)] for row, n in enumerate(PROBE_LENGTHS)]
    with module.running():
        plain = torch.stack([module.plain_logits(row)[-PROBE_STEPS - 1 :] for row in rows])
    with decoder.running():
        found = _decoded(decoder, rows)
    scale = float(plain.abs().max())
    exact = plain_dtype(module) == torch.float32
    return float((found - plain).abs().max()), scale * (1e-3 if exact else 0.1)


def plain_dtype(module: ModuleDecoder) -> torch.dtype:
    """The dtype that the module's matrix products run in."""
    return module.compute_dtype or next(module.model.parameters()).dtype


def _decoded(decoder: Decoder, rows: list[list[int]]) -> Tensor:
    """Logits [R, steps + 1, V] after each row's last tokens: prefilled but for the last, which are decoded."""
    cache, first = decoder.prefill([row[:-PROBE_STEPS] for row in rows])
    logits = [first]
    cache.resize(len(rows), cache.end + PROBE_STEPS, cache.end)
    for step in range(PROBE_STEPS):
        ids = torch.tensor([[row[step - PROBE_STEPS]] for row in rows], device=decoder.device)
        logits.append(decoder.forward(ids, cache))
    return torch.cat(logits, dim=1)
