"""The built-in engine on a CUDA device against `generate` and plain forward passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_models import build, make_requests, plain_logprobs
from gpu_device import DEVICE, only_on_cuda

from shoal.engines.base import SamplingParams
from shoal.engines.builtin.engine import TorchEngine
from shoal.engines.builtin.graph_decode import GraphDecoder, decode_kernel, lane_by_lane

pytestmark = pytest.mark.gpu
NAMES = ["qwen3", "llama", "gemma3", "gpt2"]


def engine_for(model: Any, tokenizer: Any, **options: Any) -> TorchEngine:
    engine = TorchEngine(model, tokenizer, max_batch=64, **options)
    engine.refresh(0)
    return engine


@pytest.mark.parametrize("name", NAMES)
def test_greedy_decoding_on_a_gpu_equals_generate_token_by_token(name: str, tokenizer: Any) -> None:
    model = build(name).to(DEVICE)
    requests = make_requests(6, 1, SamplingParams(20, temperature=0))
    for request, output in zip(requests, engine_for(model, tokenizer).generate(requests), strict=True):
        ids = torch.tensor([request.prompt_ids], device=DEVICE)
        mask = torch.ones_like(ids)
        theirs = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=20, pad_token_id=0)
        assert output.token_ids == theirs[0, len(request.prompt_ids) :].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_log_probs_on_a_gpu_are_those_of_a_plain_forward_pass(name: str, dtype: torch.dtype, tokenizer: Any) -> None:
    model = build(name)
    requests = make_requests(5, 4, SamplingParams(24))
    engine = engine_for(model.to(DEVICE, dtype), tokenizer)
    # Where a model is one of the fast decoder's and the kernel has the dtype, decoding runs ahead by graphs.
    recorded = DEVICE == "cuda" and name in ("qwen3", "llama") and dtype is not torch.float32
    assert isinstance(engine.decoder, GraphDecoder) == recorded
    outputs = engine.generate(requests)
    model.to("cpu", torch.float32)
    for request, output in zip(requests, outputs, strict=True):
        plain = plain_logprobs(model, request.prompt_ids, output.token_ids)
        difference = sum(abs(a - b) for a, b in zip(output.logprobs, plain, strict=True)) / len(plain)
        assert difference < (1e-3 if dtype is torch.float32 else 0.2)


def test_sampling_on_a_gpu_follows_the_seed_alone(tokenizer: Any) -> None:
    model = build("qwen3").to(DEVICE)
    requests = make_requests(5, 4, SamplingParams(24, temperature=0.9, top_k=40, top_p=0.9))
    whole = engine_for(model, tokenizer).generate(requests)
    few = engine_for(model, tokenizer, max_cache_tokens=200)
    backwards = {
        request.id: output for request, output in zip(requests[::-1], few.generate(requests[::-1]), strict=True)
    }
    assert [output.token_ids for output in whole] == [backwards[request.id].token_ids for request in requests]
    others = [replace(request, seed=request.seed + 1) for request in requests]
    assert [one.token_ids for one in few.generate(others)] != [one.token_ids for one in whole]


@only_on_cuda
@pytest.mark.parametrize("window", [None, 7, 40])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 2, 32), (16, 8, 128), (4, 1, 64), (4, 4, 16)])
def test_the_decode_kernel_is_attention(heads: int, kv_heads: int, width: int, window: int | None) -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    lanes, columns = 5, 400

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE).to(torch.bfloat16)

    query = random(lanes, 2 * heads, width)[:, :heads]
    keys, values = random(2, lanes * columns, kv_heads, width).unbind()
    first = torch.tensor([0, 3, 250, 20, 7], device=DEVICE)
    begins = torch.cat(
        [torch.arange(lanes, device=DEVICE) * columns + first, first.new_tensor([lanes * columns])]
    ).int()
    used = torch.tensor([400, 1, 33, 364, 32], device=DEVICE).int()
    mixed = decode_kernel().attend(query, keys, values, begins, used, width**-0.5, window)
    exact = lane_by_lane(query.float(), keys.float(), values.float(), begins, used, width**-0.5, window)
    assert float((mixed - exact).abs().max()) < 0.02
