"""vLLM as the engine, in this process and behind HTTP: one contract, the same tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import completed, make_requests, plain_logprobs
from vllm_tiny import ENDS, POSITIONS, request_form, tiny_arguments

from shoal.engines.base import EngineOutput, Request, SamplingParams
from shoal.engines.stopping import StopStrings
from shoal.engines.vllm.in_process import InProcessVllmEngine
from shoal.types import Segment, StopReason

pytest.importorskip("vllm", reason="needs vLLM")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

TOLERANCE = 2e-5  # nats, in float32
NEVER = SamplingParams(400)  # ends by its id at some time, but seldom soon


@pytest.fixture(scope="module")
def model(vllm_model: Any) -> Any:
    return vllm_model


@pytest.fixture(scope="module", params=["vllm", "vllm_server"])
def engine(request: pytest.FixtureRequest, vllm_folder: Path, model: Any, tokenizer: Any) -> Iterator[Any]:
    """One engine of each kind for all tests of this module."""
    if request.param == "vllm_server":
        yield request.getfixturevalue("server")
        return
    made = InProcessVllmEngine(tiny_arguments(vllm_folder / "model"), request_form(model, tokenizer), 240.0)
    made.refresh(0)
    yield made
    made.close()


def long_requests(count: int, sampling: SamplingParams) -> list[Request]:
    """Requests whose prompts of over 300 tokens differ in their last token only, so that the prefix cache is used."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(0, 256, (330,), generator=generator).tolist()
    return [Request(f"long {number}", (*shared, number), number, sampling, "long") for number in range(count)]


def largest(rows: list[list[float]], others: list[list[float]]) -> float:
    return max(abs(a - b) for row, other in zip(rows, others, strict=True) for a, b in zip(row, other, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_log_probs_are_those_of_a_plain_forward_pass(engine: Any, model: Any, temperature: float) -> None:
    sampling = SamplingParams(24, temperature=temperature)
    requests = make_requests(6, 4, sampling)
    for again in range(2):  # the second time prompts come from the prefix cache
        requests += [
            Request(f"{r.id} again {again}", r.prompt_ids, r.seed, sampling) for r in long_requests(4, sampling)
        ]
    outputs = engine.generate(requests)
    plain = [
        plain_logprobs(model, request.prompt_ids, output.token_ids, temperature)
        for request, output in zip(requests, outputs, strict=True)
    ]
    assert sum(len(output.token_ids) for output in outputs) > 300
    assert largest([output.logprobs for output in outputs], plain) < TOLERANCE
    assert {tuple(output.versions) for output in outputs} == {((0, engine.version),)}


def test_log_probs_of_given_ids_are_those_of_a_plain_forward_pass_at_temperature_1(engine: Any, model: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 256, (400,), generator=generator).tolist()
    segments = [
        Segment(ids[:330], ids[330:360], [], []),
        Segment(ids[:5], ids[5:6], [], []),
        Segment(ids[:7], [], [], []),
        Segment(ids[:330], ids[330:], [], []),
    ]
    found = engine.logprobs(segments)
    plain = [plain_logprobs(model, tuple(s.context_ids), s.sampled_ids) if s.sampled_ids else [] for s in segments]
    assert [len(row) for row in found] == [30, 1, 0, 70]
    assert largest(found, plain) < TOLERANCE
    with pytest.raises(ValueError, match="ignore the temperature"):
        engine.logprobs(segments, temperature=0.7)


def test_one_token_goes_through_the_prefix_cache_and_has_its_log_prob(engine: Any, model: Any) -> None:
    prompt = long_requests(1, NEVER)[0].prompt_ids
    for _ in range(2):
        token, logprob = engine.replicas[0].sample_token(prompt)
        assert abs(logprob - plain_logprobs(model, prompt, [token])[0]) < TOLERANCE


def test_an_end_of_sequence_id_ends_a_completion_and_stays_in_it(engine: Any) -> None:
    outputs = engine.generate(make_requests(16, 4, SamplingParams(300, temperature=1.5)))
    ended = [output for output in outputs if output.stop_reason is StopReason.STOP]
    assert {output.token_ids[-1] for output in ended} == set(ENDS)
    for output in outputs:
        assert not set(ENDS) & set(output.token_ids[:-1])
        assert len(output.logprobs) == len(output.token_ids)
        if output.stop_reason is StopReason.LENGTH:
            assert len(output.token_ids) == 300


def test_a_stop_string_ends_a_completion_and_stays_in_its_tokens(engine: Any, tokenizer: Any) -> None:
    sampling = SamplingParams(60, stop=("e", "Zq"))
    outputs = engine.generate(make_requests(8, 4, sampling))
    stops = StopStrings(tokenizer)
    ends = [
        next((i + 1 for i in range(len(o.token_ids)) if stops.found(sampling.stop, o.token_ids[: i + 1])), None)
        for o in outputs
    ]
    assert sum(end is not None for end in ends) > 3
    for output, end in zip(outputs, ends, strict=True):
        if end is not None:
            assert (len(output.token_ids), output.stop_reason) == (end, StopReason.STOP)


def test_a_seed_alone_decides_a_completion_whatever_it_is_batched_with(engine: Any) -> None:
    requests = make_requests(4, 4, SamplingParams(12))
    together = {output.request_id: output.token_ids for output in engine.generate(requests)}
    for request in requests[::5]:
        assert engine.generate([request])[0].token_ids == together[request.id]
    assert {o.request_id: o.token_ids for o in engine.generate(requests[::-1])} == together
    assert len({tuple(together[f"0/{index}"]) for index in range(4)}) > 1


def test_greedy_sampling_takes_the_likeliest_id(engine: Any, model: Any) -> None:
    (output,) = engine.generate([Request("greedy", (1, 2, 3), 5, SamplingParams(6, temperature=0.0))])
    with torch.no_grad():
        ids = [1, 2, 3]
        for token in output.token_ids:
            assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


def test_completions_come_as_each_finishes(engine: Any) -> None:
    (long,) = [Request("long", (1, 2, 3), 1, SamplingParams(POSITIONS - 3, temperature=0.2, stop=()))]
    short = [Request(f"short {number}", (4, 5), number, SamplingParams(2)) for number in range(3)]
    engine.submit([long, *short])
    order = [output.request_id for output in completed(engine)]
    assert order[-1] == "long"
    assert sorted(order[:3]) == [request.id for request in short]


def test_requests_may_be_submitted_while_others_come_out(engine: Any) -> None:
    first, second = make_requests(2, 1, SamplingParams(4))
    engine.submit([first])
    seen = []
    for output in completed(engine):
        seen.append(output.request_id)
        if output.request_id == first.id:
            engine.submit([second])
    assert seen == [first.id, second.id]


def test_aborted_requests_come_out_with_what_they_have(engine: Any, model: Any) -> None:
    requests = [Request(f"{n}", (7, 8, n), n, SamplingParams(POSITIONS - 3, temperature=0.2)) for n in range(4)]
    engine.submit([*requests, Request("short", (1,), 0, SamplingParams(2))])
    outputs = {}
    for output in completed(engine):
        if output.request_id == "short":
            engine.abort(["1", "2", "unknown"])
        outputs[output.request_id] = output
    assert set(outputs) == {"0", "1", "2", "3", "short"}
    for id_ in ("1", "2"):
        assert outputs[id_].stop_reason is StopReason.ABORT
        assert len(outputs[id_].token_ids) < POSITIONS - 3
        if outputs[id_].token_ids:
            plain = plain_logprobs(model, (7, 8, int(id_)), outputs[id_].token_ids, 0.2)
            assert largest([outputs[id_].logprobs], [plain]) < 1e-4
    assert {outputs[id_].stop_reason for id_ in ("0", "3")} <= {StopReason.LENGTH, StopReason.STOP}


def test_what_cannot_be_sampled_is_refused_where_it_is_submitted(engine: Any) -> None:
    good = Request("a", (1,), 0, SamplingParams(1))
    for requests, words in (
        ([Request("a", (), 0, SamplingParams(1))], "the prompt is empty"),
        ([Request("a", (1,) * POSITIONS, 0, SamplingParams(1))], r"engine\.vllm\.max_model_len"),
        ([Request("a", (1,), 0, SamplingParams(0))], "max_new_tokens is 0"),
        ([good, good], "this id is queued already"),
    ):
        with pytest.raises(ValueError, match=words):
            engine.submit(requests)
    assert engine.in_flight == 0
    assert len(engine.generate([good])) == 1


def test_a_completion_ends_where_the_models_positions_do(engine: Any) -> None:
    prompt = long_requests(1, NEVER)[0].prompt_ids
    (output,) = engine.generate([Request("a", prompt, 3, SamplingParams(POSITIONS, temperature=0.2))])
    assert len(prompt) + len(output.token_ids) <= POSITIONS


def update_in_flight(engine: Any, mode: str, requests: list[Request]) -> list[EngineOutput]:
    """Publishes another version as soon as the first of the requests is out."""
    engine.submit([*requests, Request("short", (1,), 0, SamplingParams(2))])
    outputs = []
    for output in completed(engine):
        outputs.append(output)
        if len(outputs) == 1:
            control = engine.replicas[0]
            control.pause(mode)
            control.reset_prefix_cache()
            engine.refresh(engine.version + 1)
            control.resume()
    assert sorted(output.request_id for output in outputs) == sorted(["short", *(r.id for r in requests)])
    return [output for output in outputs if output.request_id != "short"]


@pytest.mark.parametrize("mode", ["keep", "abort", "drain"])
def test_an_update_in_flight_is_stamped_where_it_happens(engine: Any, mode: str) -> None:
    requests = [Request(f"{n}", (9, n), n, SamplingParams(POSITIONS - 2, temperature=0.2)) for n in range(6)]
    alone = {output.request_id: output.token_ids for output in engine.generate(requests)}
    # On a busy machine all may have ended before the update comes: then it is tried again.
    for _ in range(8):
        before = engine.version
        outputs = update_in_flight(engine, mode, requests)
        # Nothing that an update does to a request changes what it samples, as the weights are the same.
        assert {output.request_id: output.token_ids for output in outputs} == alone
        met = [output for output in outputs if output.versions != [(0, before)]]
        for output in met:
            if mode == "keep":
                (zero, first), (start, second) = output.versions
                assert (zero, first, second) == (0, before, before + 1)
                assert 0 < start < len(output.token_ids)
            else:
                assert mode == "abort"
                assert output.versions == [(0, before + 1)]
        if met or mode == "drain":
            return
    pytest.fail("no update met a request in flight")


def test_the_load_is_measured(engine: Any) -> None:
    engine.statistics()
    sampling = SamplingParams(100, temperature=0.3)
    outputs = engine.generate(long_requests(32, sampling))
    found = engine.statistics()
    assert found["tokens"] == sum(len(output.token_ids) for output in outputs)
    assert found["tokens_per_second"] > 0
    assert found["prompt_tokens"] == 32 * 331
    assert found["prefix_hit_rate"] > 0.8
    assert found["restarts"] == 0
    assert {"running", "waiting", "kv_cache_use"} <= set(found) or found["seconds"] < 2
    assert engine.statistics()["tokens"] == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_come_back_from_sleep_as_they_were(vllm_folder: Path, vllm_model: Any, tokenizer: Any) -> None:
    arguments = tiny_arguments(
        vllm_folder / "model", device="cuda", cache_gib=0.0, memory_share=0.3, eager=True, sleep=True
    )
    engine = InProcessVllmEngine(arguments, request_form(vllm_model, tokenizer), 240.0)
    engine.refresh(0)
    requests = make_requests(6, 4, SamplingParams(24))
    before = engine.generate(requests)
    assert engine.asleep
    free = torch.cuda.mem_get_info()[0]
    segments = [Segment(list(r.prompt_ids), o.token_ids, [], []) for r, o in zip(requests, before, strict=True)]
    after = engine.logprobs(segments)
    assert not engine.asleep
    assert torch.cuda.mem_get_info()[0] < free
    assert largest([output.logprobs for output in before], after) < 1e-3
    engine.close()
