"""The built-in engine against plain forward passes and `generate`."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from engine_models import CONFIGS, POSITIONS, build, completed, make_requests, plain_logprobs
from transformers import MambaConfig, MambaForCausalLM

from shoal.engines.base import Request, SamplingParams
from shoal.engines.builtin.decode import ModuleDecoder
from shoal.engines.builtin.engine import TorchEngine
from shoal.engines.builtin.fast_decode import FastDecoder
from shoal.errors import ConfigError
from shoal.types import Segment, StopReason

FAST = {"qwen3", "qwen2", "llama", "mistral", "gemma"}


def engine_for(model: Any, tokenizer: Any, **options: Any) -> TorchEngine:
    engine = TorchEngine(model, tokenizer, **{"max_batch": 64, **options})
    engine.refresh(0)
    return engine


@pytest.mark.parametrize(
    ("name", "share_from"), [(name, 64) for name in CONFIGS] + [(name, 0) for name in sorted(FAST)]
)
def test_logprobs_are_those_of_a_plain_forward_pass(
    name: str, share_from: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.engines.builtin.cache.SHARE_FROM", share_from)
    model = build(name)
    engine = engine_for(model, tokenizer)
    assert isinstance(engine.decoder, FastDecoder if name in FAST else ModuleDecoder)
    # 24 new tokens go well beyond the sliding windows of 7.
    requests = make_requests(5, 3, SamplingParams(24, temperature=0.7))
    outputs = engine.generate(requests)
    segments = [Segment(list(r.prompt_ids), o.token_ids, [], []) for r, o in zip(requests, outputs, strict=True)]
    scored = engine.logprobs(segments, temperature=0.7)
    assert sum(len(output.token_ids) for output in outputs) > 200
    for request, output, score in zip(requests, outputs, scored, strict=True):
        plain = plain_logprobs(model, request.prompt_ids, output.token_ids, 0.7)
        assert output.logprobs == pytest.approx(plain, abs=1e-4)
        assert score == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_a_large_models_weights_are_read_without_copies(
    name: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.engines.builtin.fused_weights.SMALL_MODEL", {"cpu": 0})
    model = build(name)
    engine = engine_for(model, tokenizer)
    requests = make_requests(3, 2)
    for request, output in zip(requests, engine.generate(requests), strict=True):
        plain = plain_logprobs(model, request.prompt_ids, output.token_ids)
        assert output.logprobs == pytest.approx(plain, abs=1e-4)
    assert isinstance(engine.decoder, FastDecoder)
    assert engine.decoder.weights is not None
    read = [part[0] for layer in engine.decoder.weights.layers for part in layer.qkv.parts + layer.gate_up.parts]
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert len(read) == 2 * 5
    assert {weight.data_ptr() for weight in read} <= own


@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma", "gemma3", "gpt2"])
def test_greedy_decoding_equals_generate_token_by_token(name: str, tokenizer: Any) -> None:
    model = build(name)
    requests = make_requests(6, 1, SamplingParams(20, temperature=0))
    for request, output in zip(requests, engine_for(model, tokenizer).generate(requests), strict=True):
        ids = torch.tensor([request.prompt_ids])
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, pad_token_id=0
        )
        assert output.token_ids == theirs[0, len(request.prompt_ids) :].tolist()


@pytest.mark.parametrize(("name", "share_from"), [("qwen3", 0), ("qwen3", 64), ("mistral", 64), ("gpt2", 64)])
@pytest.mark.parametrize("options", [{"max_batch": 1}, {"max_batch": 3}, {"max_batch": 20, "max_cache_tokens": 120}])
def test_a_completion_does_not_depend_on_what_it_is_batched_with(
    name: str, share_from: int, options: dict[str, int], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.engines.builtin.cache.SHARE_FROM", share_from)
    model = build(name)
    # Lengths of 1 to 23 tokens, so that rows are dropped and moved in the batch of all 40, too.
    requests = [
        replace(request, sampling=SamplingParams(1 + 7 * i % 23)) for i, request in enumerate(make_requests(8, 5))
    ]
    expected = {o.request_id: o.token_ids for o in engine_for(model, tokenizer).generate(requests)}
    shuffled = Random(1).sample(requests, len(requests))
    found = {o.request_id: o.token_ids for o in engine_for(model, tokenizer, **options).generate(shuffled)}
    assert found == expected


def test_completions_of_one_prompt_differ_by_their_seeds(qwen: Any, tokenizer: Any) -> None:
    outputs = engine_for(qwen, tokenizer).generate(make_requests(1, 8))
    assert len({tuple(output.token_ids) for output in outputs}) == 8


@pytest.mark.parametrize("max_batch", [3, 64])
def test_a_prompt_is_prefilled_once_for_its_group(max_batch: int, qwen: Any, tokenizer: Any) -> None:
    engine = engine_for(qwen, tokenizer, max_batch=max_batch)
    requests = make_requests(4, 8)
    engine.statistics()
    tokens = sum(len(output.token_ids) for output in engine.generate(requests))
    found = engine.statistics()
    assert found["prefill_tokens"] == sum(len(prompt) for prompt in {request.prompt_ids for request in requests})
    assert found["tokens"] == tokens
    assert 0 < found["mean_rows"] <= max_batch
    assert engine.statistics()["tokens"] == 0


def test_the_cache_never_holds_more_than_its_bound(qwen: Any, tokenizer: Any) -> None:
    engine = engine_for(qwen, tokenizer, max_cache_tokens=150)
    engine.submit(make_requests(8, 2))
    sizes = []
    outputs = 0
    for _ in completed(engine):
        outputs += 1
        if engine.cache is not None:  # it goes with the last output
            sizes.append(engine.cache.capacity * engine.cache.columns)
    assert outputs == 16
    assert 0 < max(sizes) <= 150


def test_several_ids_end_a_completion_and_stay_in_it(qwen: Any, tokenizer: Any) -> None:
    # The tokenizer names 256, the generation configuration 256 and 257.
    outputs = engine_for(qwen, tokenizer).generate(make_requests(24, 4, SamplingParams(60)))
    stopped = [output for output in outputs if output.stop_reason is StopReason.STOP]
    assert {output.token_ids[-1] for output in stopped} == {256, 257}
    for output in outputs:
        assert not {256, 257} & set(output.token_ids[:-1])
        assert output.stop_reason is StopReason.STOP or len(output.token_ids) == 60


def test_a_stop_string_that_spans_tokens_ends_a_completion_and_stays_in_it(qwen: Any, tokenizer: Any) -> None:
    engine = engine_for(qwen, tokenizer)
    requests = make_requests(4, 4, SamplingParams(30))
    free = engine.generate(requests)
    texts = [tokenizer.decode(output.token_ids) for output in free]
    found = 0
    for request, output, text in zip(requests, free, texts, strict=True):
        # Two characters from the middle of what would be sampled, each a token of its own.
        pairs = [text[i : i + 2] for i in range(3, len(text) - 2) if text[i : i + 2].isascii()]
        if not pairs:
            continue
        found += 1
        sampling = SamplingParams(30, stop=("never there", pairs[0]))
        cut = engine.generate([Request("one", request.prompt_ids, request.seed, sampling)])[0]
        assert cut.token_ids == output.token_ids[: len(cut.token_ids)]
        assert cut.stop_reason is StopReason.STOP
        assert tokenizer.decode(cut.token_ids).endswith(pairs[0])
        assert pairs[0] not in tokenizer.decode(cut.token_ids[:-1])
    assert found >= 4


def test_a_completion_ends_at_the_last_position_of_the_model(qwen: Any, tokenizer: Any) -> None:
    prompt = tuple(range(POSITIONS - 3))
    output = engine_for(qwen, tokenizer).generate([Request("long", prompt, 5, SamplingParams(50))])[0]
    assert len(output.token_ids) == 3
    assert output.stop_reason is StopReason.LENGTH


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("a", (), 0, SamplingParams(4)), "empty"),
        (Request("a", tuple(range(POSITIONS)), 0, SamplingParams(4)), "positions"),
        (Request("a", (1,), 0, SamplingParams(0)), "max_new_tokens"),
        (Request("a", (1,), 0, SamplingParams(80)), "max_cache_tokens"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(request_: Request, words: str, qwen: Any, tokenizer: Any) -> None:
    engine = engine_for(qwen, tokenizer, max_cache_tokens=70)
    with pytest.raises(ValueError, match=words):
        engine.submit([request_])
    assert list(completed(engine)) == []


def test_an_id_that_is_queued_already_is_refused(qwen: Any, tokenizer: Any) -> None:
    engine = engine_for(qwen, tokenizer)
    request = Request("a", (1, 2), 0, SamplingParams(4))
    engine.submit([request])
    with pytest.raises(ValueError, match="queued already"):
        engine.submit([request])
    with pytest.raises(ValueError, match="same id"):
        engine.submit([Request("b", (1,), 0, SamplingParams(4))] * 2)
    assert [output.request_id for output in completed(engine)] == ["a"]


def test_requests_are_taken_in_while_others_run(qwen: Any, tokenizer: Any) -> None:
    requests = make_requests(6, 2)
    expected = {o.request_id: o.token_ids for o in engine_for(qwen, tokenizer).generate(requests)}
    engine = engine_for(qwen, tokenizer, max_batch=4)
    later = requests[3:]
    engine.submit(requests[:3])
    found = {}
    for output in completed(engine):
        found[output.request_id] = output.token_ids
        engine.submit(later[:2])
        del later[:2]
    assert found == expected


def test_aborted_requests_come_out_with_what_they_have(qwen: Any, tokenizer: Any) -> None:
    engine = engine_for(qwen, tokenizer, max_batch=4)
    requests = [Request(str(i), (i, 7), i, SamplingParams(2 if i == 0 else 40)) for i in range(6)]
    engine.submit(requests)
    outputs = {}
    for output in completed(engine):
        outputs[output.request_id] = output
        if output.request_id == "0":
            engine.abort(["1", "5", "unknown"])
    assert set(outputs) == {str(i) for i in range(6)}
    assert outputs["1"].stop_reason is StopReason.ABORT
    assert 1 <= len(outputs["1"].token_ids) < 40
    assert outputs["5"].stop_reason is StopReason.ABORT
    assert outputs["5"].token_ids == []
    whole = engine_for(qwen, tokenizer).generate([requests[1]])[0]
    assert whole.token_ids[: len(outputs["1"].token_ids)] == outputs["1"].token_ids
    assert {outputs[str(i)].stop_reason for i in (2, 3, 4)} <= {StopReason.STOP, StopReason.LENGTH}


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_a_refresh_gives_the_log_probs_of_the_new_weights(name: str, tokenizer: Any) -> None:
    model = build(name)
    engine = engine_for(model, tokenizer)
    segment = Segment([1, 2, 3], [4, 5, 6, 7], [], [])
    before = engine.logprobs([segment])[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    engine.refresh(1)
    after = engine.logprobs([segment])[0]
    assert engine.version == 1
    assert after == pytest.approx(plain_logprobs(model, (1, 2, 3), [4, 5, 6, 7]), abs=1e-4)
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 1e-2


def test_tokens_are_stamped_with_the_version_that_sampled_them(qwen: Any, tokenizer: Any) -> None:
    engine = engine_for(qwen, tokenizer)
    engine.submit([Request("short", (5,), 1, SamplingParams(2)), Request("long", (6,), 2, SamplingParams(9))])
    outputs = {}
    for output in completed(engine):
        outputs[output.request_id] = output
        engine.refresh(3)
    assert outputs["short"].versions == [(0, 0)]
    assert outputs["long"].versions == [(0, 0), (2, 3)]


def test_the_model_keeps_its_mode_and_its_gradients(tokenizer: Any) -> None:
    model = build("gpt2")  # has dropout
    engine = engine_for(model, tokenizer)
    requests = make_requests(2, 2)
    expected = [output.token_ids for output in engine.generate(requests)]
    model.train()
    model.transformer.h[0].eval()
    assert [output.token_ids for output in engine.generate(requests)] == expected
    assert model.training
    assert not model.transformer.h[0].training
    assert model.transformer.h[1].training
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["qwen3", "gemma"])
def test_sixteen_bit_products_stay_near_the_exact_log_probs(name: str, tokenizer: Any) -> None:
    model = build(name)
    engine = engine_for(model, tokenizer, compute_dtype=torch.bfloat16)
    assert isinstance(engine.decoder, FastDecoder)
    requests = make_requests(4, 4)
    differences = [
        abs(mine - exact)
        for request, output in zip(requests, engine.generate(requests), strict=True)
        for mine, exact in zip(
            output.logprobs, plain_logprobs(model, request.prompt_ids, output.token_ids), strict=True
        )
    ]
    assert 1e-6 < sum(differences) / len(differences) < 0.1


def test_lora_adapters_are_part_of_the_sampled_policy(tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - slow to import

    model = get_peft_model(build("qwen3"), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    engine = engine_for(model, tokenizer)
    assert isinstance(engine.decoder, FastDecoder)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.3)
    engine.refresh(1)
    model.eval()
    for request, output in zip(requests := make_requests(3, 2), engine.generate(requests), strict=True):
        adapted = plain_logprobs(model, request.prompt_ids, output.token_ids)
        assert output.logprobs == pytest.approx(adapted, abs=1e-4)
        with model.disable_adapter():
            base = plain_logprobs(model, request.prompt_ids, output.token_ids)
        assert max(abs(a - b) for a, b in zip(adapted, base, strict=True)) > 1e-2


def test_a_model_with_a_recurrent_state_is_refused_in_one_line(tokenizer: Any) -> None:
    config = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ConfigError, match="MambaForCausalLM") as error:
        engine_for(MambaForCausalLM(config), tokenizer)
    assert "\n" not in str(error.value)


def test_a_fast_path_that_disagrees_with_the_module_is_not_taken(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("qwen3")
    inner = model.model.norm.forward
    monkeypatch.setattr(model.model.norm, "forward", lambda hidden: 1.5 * inner(hidden))
    with caplog.at_level("INFO", logger="shoal.engines"):
        engine = engine_for(model, tokenizer)
    assert isinstance(engine.decoder, ModuleDecoder)
    assert "its logits differ" in caplog.text


@pytest.mark.parametrize("share_from", [0, 64])
@pytest.mark.parametrize("longer", [7, 60])
def test_a_short_prompt_that_was_prefilled_beside_a_long_one_is_held_for_the_rest_of_its_group(
    longer: int, share_from: int, qwen: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.engines.builtin.cache.SHARE_FROM", share_from)
    prompts = [tuple(range(5, 5 + longer)), (3, 4)]
    requests = [
        Request(f"{row}/{i}", prompt, 10 * row + i, SamplingParams(8))
        for row, prompt in enumerate(prompts)
        for i in range(6)
    ]
    whole = engine_for(qwen, tokenizer).generate(requests)
    # 8 fit at a time: all of the first prompt's with two of the second's, whose others come when the cache is empty.
    engine = engine_for(qwen, tokenizer, max_batch=8, max_cache_tokens=8 * (longer + 8))
    monkeypatch.setattr(engine, "_worth_admitting", lambda: not engine.rows.alive.any())
    assert [one.token_ids for one in engine.generate(requests)] == [one.token_ids for one in whole]


@pytest.mark.parametrize(("name", "share_from"), [("qwen3", 0), ("qwen3", 64), ("mistral", 64), ("gpt2", 64)])
def test_completions_in_flight_go_on_by_new_weights_alone(
    name: str, share_from: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.engines.builtin.cache.SHARE_FROM", share_from)
    monkeypatch.setattr("shoal.engines.builtin.engine.PREFILL_TOKENS", 64)  # several passes
    old, model = build(name), build(name)
    engine = engine_for(model, tokenizer, max_batch=20)
    requests = [
        replace(request, sampling=SamplingParams(5 + 7 * i % 23)) for i, request in enumerate(make_requests(8, 5))
    ]
    engine.submit(requests)
    outputs = engine.poll(60.0)
    counts = engine.in_flight_counts()
    assert len(counts) == 40 - len(outputs) and 0 < sum(map(bool, counts.values())) <= 20
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    engine.refresh(1)
    engine.recompute()
    while engine.in_flight:
        outputs += engine.poll(60.0)
    prompts = {request.id: request.prompt_ids for request in requests}
    for output in outputs:
        switch = counts.get(output.request_id, len(output.token_ids))
        assert output.versions == [(0, 0), (switch, 1)] if 0 < switch < len(output.token_ids) else output.versions
        by_old, by_new = (plain_logprobs(one, prompts[output.request_id], output.token_ids) for one in (old, model))
        assert output.logprobs == pytest.approx([*by_old[:switch], *by_new[switch:]], abs=1e-4)


def test_nothing_in_flight_is_nothing_to_recompute(qwen: Any, tokenizer: Any) -> None:
    engine = engine_for(qwen, tokenizer)
    expected = engine.generate(make_requests(2, 2))
    engine.refresh(1)
    engine.recompute()
    assert [one.token_ids for one in engine.generate(make_requests(2, 2))] == [one.token_ids for one in expected]
