"""Attention by runs: the same gradients as by a mask. The kernel itself runs on CUDA only (see test_on_a_gpu)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import gradient, make_batch, relative

from shoal.algorithms.masks import allowed
from shoal.algorithms.packing import pack
from shoal.algorithms.runs import spans
from shoal.learners.cuda.varlen_attention import NAME
from shoal.learners.local import LocalLearner

Make = Callable[..., LocalLearner]


def by_runs(learner: LocalLearner) -> LocalLearner:
    """As on CUDA, but without the kernel."""
    learner.policy.causal_lm.config._attn_implementation = NAME
    learner.passes.forward.attention = NAME
    return learner


@pytest.mark.parametrize("keys", [{}, {"learner__micro_batch_tokens": 40}, {"learner__pack_length": 48}], ids=str)
@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral", "gemma3"])
def test_attention_by_runs_gives_the_gradient_of_attention_by_a_mask(make_learner: Make, name: str, keys: Any):
    batch = make_batch()
    learner = by_runs(make_learner(name, **keys, learner__packing="on"))
    packed = learner.passes.pack(batch.sequences)
    assert all(one.spans is not None for one in packed)
    assert any(one.spans.places is not None for one in packed)  # prompts are shared
    expected = gradient(make_learner(name, model__attention="eager", learner__packing="off"), batch)
    assert relative(gradient(learner, batch), expected) < 1e-4


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.booleans(), room=st.sampled_from([24, 48, 400]))
def test_a_run_sees_what_the_mask_allows(seed: int, share: bool, room: int):
    for one in pack(make_batch(seed).sequences, micro_batch_tokens=400, pack_length=room, share_prefix=share):
        found = spans(one.until)
        rows, width = one.until.shape
        mask = torch.block_diag(*allowed(one)[:, 0])
        places = torch.arange(rows * width) if found.places is None else found.places
        seen = torch.zeros_like(mask)
        for number in range(len(found.queries) - 1):
            first, last = found.queries[number : number + 2].tolist()
            low, high = found.keys[number : number + 2].tolist()
            for query in range(first, last):
                seen[query, places[low : high - (last - 1 - query)]] = True
        real = one.until.flatten() >= 0
        assert torch.equal(seen[real], mask[real])
        assert found.longest_queries == int(found.queries.diff().max())
        assert found.longest_keys == int(found.keys.diff().max())
