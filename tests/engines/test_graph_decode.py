"""Steps that run ahead sample what single steps sample. Graphs themselves are CUDA's (see test_engine_on_a_gpu)."""

from __future__ import annotations

from typing import Any

import pytest
from engine_models import build, make_requests, plain_logprobs

from shoal.engines.base import EngineOutput, Request, SamplingParams
from shoal.engines.builtin import select
from shoal.engines.builtin.decode import ModuleDecoder
from shoal.engines.builtin.engine import TorchEngine
from shoal.engines.builtin.graph_decode import AT_ONCE, GraphDecoder
from shoal.engines.builtin.select import probe_steps

NAMES = ["qwen3", "llama", "mistral"]
SAMPLINGS = {
    "plain": SamplingParams(40),
    "cold": SamplingParams(40, temperature=0.7),
    "greedy": SamplingParams(40, temperature=0),
    "truncated": SamplingParams(40, temperature=0.9, top_k=20, top_p=0.9),
}


def engine_for(name: str, tokenizer: Any, graphs: bool, **options: Any) -> TorchEngine:
    engine = TorchEngine(build(name), tokenizer, max_batch=options.pop("max_batch", 64), **options)
    if graphs:
        engine.decoder = GraphDecoder(engine.model, None)
    engine.refresh(0)
    return engine


def by_id(outputs: list[EngineOutput]) -> dict[str, EngineOutput]:
    return {output.request_id: output for output in outputs}


def both(name: str, tokenizer: Any, requests: list[Request], **options: Any) -> tuple[dict[str, EngineOutput], ...]:
    return tuple(by_id(engine_for(name, tokenizer, graphs, **options).generate(requests)) for graphs in (False, True))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", NAMES)
def test_steps_ahead_sample_what_single_steps_sample(name: str, sampling: str, tokenizer: Any) -> None:
    requests = make_requests(5, 4, SAMPLINGS[sampling])
    single, ahead = both(name, tokenizer, requests)
    for id_, output in single.items():
        assert ahead[id_].token_ids == output.token_ids
        assert ahead[id_].stop_reason == output.stop_reason
        assert ahead[id_].logprobs == pytest.approx(output.logprobs, abs=1e-4)


def test_a_greedy_completion_beside_truncated_ones_has_its_log_probs_at_temperature_1(tokenizer: Any) -> None:
    greedy, truncated = SamplingParams(20, temperature=0, top_k=3), SAMPLINGS["truncated"]
    requests = [
        Request(one.id, one.prompt_ids, one.seed, truncated if number % 2 else greedy)
        for number, one in enumerate(make_requests(4, 2, greedy))
    ]
    single, ahead = both("qwen3", tokenizer, requests)
    for id_, output in single.items():
        assert ahead[id_].token_ids == output.token_ids
        assert ahead[id_].logprobs == pytest.approx(output.logprobs, abs=1e-4)


@pytest.mark.parametrize("max_batch", [3, 20])
def test_completions_that_end_make_room_for_those_in_the_queue(max_batch: int, tokenizer: Any) -> None:
    requests = [
        Request(one.id, one.prompt_ids, one.seed, SamplingParams(5 + 7 * (number % 6)))
        for number, one in enumerate(make_requests(9, 5, SamplingParams(1)))
    ]
    single, ahead = both("qwen3", tokenizer, requests, max_batch=max_batch)
    assert {id_: one.token_ids for id_, one in ahead.items()} == {id_: one.token_ids for id_, one in single.items()}


def test_new_weights_hold_from_the_next_step_on(tokenizer: Any) -> None:
    engine = engine_for("qwen3", tokenizer, graphs=True)
    requests = make_requests(2, 2, SamplingParams(3 * AT_ONCE, temperature=0))
    engine.ends[:] = False
    engine.submit(requests)
    assert engine.poll(0) == []
    sampled = min(engine.in_flight_counts().values())
    assert 0 < sampled < 3 * AT_ONCE
    for parameter in engine.model.parameters():
        parameter.data.mul_(1.5)
    engine.refresh(1)
    engine.recompute()
    outputs = []
    while engine.busy:
        outputs += engine.poll(60)
    for request, output in zip(requests, sorted(outputs, key=lambda one: one.request_id), strict=True):
        assert [version for _, version in output.versions] == [0, 1]
        first = output.versions[1][0]
        plain = plain_logprobs(engine.model, request.prompt_ids, output.token_ids)
        assert output.logprobs[first:] == pytest.approx(plain[first:], abs=1e-4)
        assert output.logprobs[:first] != pytest.approx(plain[:first], abs=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_the_probe_of_steps_tells_right_from_wrong(name: str) -> None:
    model = build(name)
    module, graphs = ModuleDecoder(model, None), GraphDecoder(model, None)
    assert probe_steps(graphs, module) < 1e-4
    graphs.scaling *= 1.5
    assert probe_steps(graphs, module) > 1e-4


@pytest.mark.parametrize("fault", ["cannot be made", "computes something else"])
def test_a_kernel_that_does_not_work_here_gives_way_to_torchs_and_that_to_single_steps(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("qwen3")
    kernel = object()
    broken: set[object] = {kernel}

    def probe_of(graphs: GraphDecoder, module: ModuleDecoder) -> float:
        if graphs.kernel not in broken:
            return probe_steps(graphs, module)
        if fault == "cannot be made":
            raise RuntimeError("out of shared memory")
        return 0.5

    monkeypatch.setattr(select, "can_record", lambda decoder: True)
    monkeypatch.setattr(select, "decode_kernel", lambda: kernel)
    monkeypatch.setattr(select, "probe_steps", probe_of)
    decoder = select.choose_decoder(model, None)
    assert isinstance(decoder, GraphDecoder)
    assert decoder.kernel is None
    assert not caplog.records
    broken.add(None)
    assert not isinstance(select.choose_decoder(model, None), GraphDecoder)
    told = {"cannot be made": "out of shared memory", "computes something else": "log-probs differ by 0.5"}
    assert [told[fault] in record.getMessage() for record in caplog.records] == [True]
