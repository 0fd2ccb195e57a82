"""The built-in engine's path on Metal, on a machine without it: see refusing_metal.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_models import build, make_requests
from refusing_metal import RefusingMetal

from shoal.engines.base import SamplingParams
from shoal.engines.builtin import engine as engine_module
from shoal.engines.builtin import sampling
from shoal.engines.builtin.engine import TorchEngine
from shoal.types import Segment

TRUNCATED = {"top_k": 20, "top_p": 0.9, "temperature": 0.8}


@pytest.mark.parametrize("options", [{}, TRUNCATED, {"temperature": 0}], ids=str)
@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3", "gpt2"])
def test_sampling_and_scoring_use_nothing_that_metal_lacks(
    name: str, options: dict[str, Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    for module in (engine_module, sampling):
        monkeypatch.setattr(module, "widest_float", lambda device: torch.float32)
    engine = TorchEngine(build(name), tokenizer, max_batch=64)
    engine.refresh(0)
    requests = make_requests(3, 2, SamplingParams(12, **options))
    with RefusingMetal() as metal:
        outputs = engine.generate(requests)
        one = outputs[0]
        scored = engine.logprobs(
            [
                Segment(
                    list(requests[0].prompt_ids), list(one.token_ids), [True] * len(one.token_ids), list(one.logprobs)
                )
            ]
        )
    assert "aten::searchsorted.Tensor" in metal.seen
    assert len(scored[0]) == len(one.token_ids)
