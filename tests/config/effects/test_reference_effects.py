"""Keys of `reference`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from stub_vllm import StubVllm, stub_vllm
from transformers import AutoModelForCausalLM

from effects.made import LENGTHS, made_groups
from effects.registry import effect
from shoal.build import build_reference
from shoal.engines.vllm.process import VllmProcess
from shoal.errors import EngineError
from shoal.network import free_port
from shoal.references import vllm as reference_vllm
from shoal.references.base import Reference
from shoal.references.model import ModelReference
from shoal.references.vllm import reference_arguments


@pytest.fixture
def reference_of(settings, make_learner):
    """A learner and the reference of its policy, under changed keys."""

    def make(changes: dict[str, object]):
        cfg = settings({"algorithm.kl_coef": 0.1, **changes})
        learner = make_learner(cfg)
        return learner, ModelReference(learner.policy, cfg, learner.runtime)

    return make


@effect("reference.name")
def test_the_kl_is_measured_to_the_named_model(settings, reference_of, other_model):
    def distance(changes: dict[str, object]) -> float:
        """The largest difference of a token's log-probs between policy and reference."""
        learner, reference = reference_of(changes)
        groups = made_groups()
        reference.score(groups)
        segments = [one.segments[0] for group in groups for one in group.completions]
        rows = learner.logprobs(segments)
        return max(
            abs(mine - theirs)
            for row, segment in zip(rows, segments, strict=True)
            for mine, theirs in zip(row, segment.ref_logprobs, strict=True)
        )

    assert distance({}) < 1e-5
    assert distance({"reference.name": str(other_model)}) > 0.1


@effect("reference.revision")
def test_the_references_revision_reaches_the_hub(settings, reference_of, other_model, monkeypatch):
    # Local folders have no revisions: what would go to the Hub is looked at where it leaves Shoal.
    asked: dict[str, str | None] = {}
    load = AutoModelForCausalLM.from_pretrained

    def from_pretrained(name: str, **kwargs: object) -> object:
        asked[name] = kwargs["revision"]
        return load(name, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    for revision in (None, "v2"):
        reference_of({"reference.name": str(other_model), "reference.revision": revision})
        assert asked[str(other_model)] == revision


@effect("reference.polyak_every", "reference.polyak_alpha")
def test_the_reference_follows_the_policy(settings, reference_of):
    def share_after_each_step(changes: dict[str, object]) -> list[float]:
        """How far the reference has come on the way from the start to the policy of now."""
        learner, reference = reference_of(changes)
        mine, theirs = (dict(one.model.named_parameters()) for one in (learner.policy, reference.own))
        name = "model.layers.0.mlp.up_proj.weight"
        start = mine[name].detach().clone()
        shares = []
        for version in (1, 2):
            with torch.no_grad():
                mine[name].add_(1.0)
            reference.follow(version)
            shares.append(round(float((theirs[name] - start).mean()), 4))
        return shares

    assert share_after_each_step({}) == [0, 0]
    # The policy is 1 and 2 away from the start: .6 x 1, then .6 x 2 + .4 x .6.
    assert share_after_each_step({"reference.polyak_every": 1}) == [0.6, 1.44]
    assert share_after_each_step({"reference.polyak_every": 2}) == [0, 1.2]
    assert share_after_each_step({"reference.polyak_every": 1, "reference.polyak_alpha": 1.0}) == [1, 2]


@pytest.fixture
def launched(settings, make_learner, tmp_path):
    """vLLM's command line for a reference of its own, under changed keys."""

    def make(changes: dict[str, object], device: str = "cpu") -> list[str]:
        cfg = settings({"reference.kind": "vllm_launch", **changes})
        learner = make_learner(cfg)
        runtime = replace(learner.runtime, device=torch.device(device))
        return reference_arguments(cfg, learner.policy.info, runtime, tmp_path).line()

    return make


@effect("reference.dtype", "reference.tensor_parallel", "reference.max_model_len", "reference.extra_args")
def test_a_launched_reference_is_started_as_its_keys_say(settings, launched):
    plain = launched({"data.max_prompt_tokens": 100})
    changes = {
        "reference.dtype": "bfloat16",
        "reference.tensor_parallel": 2,
        "reference.max_model_len": 256,
        "reference.extra_args": ["--block-size=64"],
    }
    line = launched({"data.max_prompt_tokens": 100, **changes})
    for before, after in (
        ("--dtype=float32", "--dtype=bfloat16"),
        ("--tensor-parallel-size=1", "--tensor-parallel-size=2"),
        ("--max-model-len=107", "--max-model-len=256"),  # 100 of the prompt, 6 new ones, one that scoring samples
        ("--block-size=32", "--block-size=64"),
    ):
        assert before in plain
        assert after in line


@effect("reference.memory_share")
def test_a_launched_reference_takes_its_share_of_a_gpu(settings, launched):
    assert "--gpu-memory-utilization=0.9" in launched({}, "cuda")
    assert "--gpu-memory-utilization=0.2" in launched({"reference.memory_share": 0.2}, "cuda")


@effect("reference.start_timeout")
def test_a_launched_reference_has_so_long_to_start(settings, make_learner, monkeypatch, tmp_path):
    asked: list[float] = []

    class Recorded(VllmProcess):
        """A launch that is written down instead of done."""

        def launch(self, arguments: object) -> None:
            asked.append(self.start_timeout)

        def wait_until_healthy(self) -> None:
            pass

    monkeypatch.setattr(reference_vllm, "VllmProcess", Recorded)
    monkeypatch.setattr(reference_vllm.vllm_compat, "check_vllm", lambda: "0.32.0")
    for seconds in (600.0, 5.0):
        cfg = settings({"reference.kind": "vllm_launch", "reference.start_timeout": seconds})
        learner = make_learner(cfg)
        reference_vllm.launched_reference(cfg, learner.policy.info, learner.runtime, tmp_path)
    assert asked == [600.0, 5.0]


@pytest.fixture
def stub() -> Iterator[StubVllm]:
    with stub_vllm() as found:
        yield found


@pytest.fixture
def endpoint_of(settings, make_learner, stub, tmp_path):
    """The reference of a server that runs already, under changed keys; other addresses than the stub's are refused."""

    def make(changes: dict[str, object]) -> Reference:
        there = {"reference.kind": "vllm_endpoint", "reference.port": int(stub.url.rpartition(":")[2])}
        cfg = settings({**there, "reference.retries": 0, **changes})
        learner = make_learner(cfg)
        return build_reference(
            cfg,
            SimpleNamespace(info=learner.policy.info, policy=learner.policy, runtime=learner.runtime, learner=learner),
            tmp_path,
        )

    return make


def test_an_endpoint_scores_the_sampled_ids_of_every_segment(endpoint_of, stub):
    groups = made_groups()
    endpoint_of({}).score(groups)
    found = [one.segments[0].ref_logprobs for group in groups for one in group.completions]
    assert found == [[-1.0] * length for lengths in LENGTHS for length in lengths]


@effect("reference.kind", "reference.host", "reference.port")
def test_an_endpoint_is_asked_where_the_keys_say(settings, endpoint_of, stub):
    assert isinstance(endpoint_of({"reference.kind": "model"}), ModelReference)
    assert endpoint_of({}).client.url == stub.url
    with pytest.raises(EngineError, match="nothing answers there"):
        endpoint_of({"reference.host": "127.0.0.2"})
    with pytest.raises(EngineError, match="nothing answers there"):
        endpoint_of({"reference.port": free_port("127.0.0.1")})


@effect("reference.api_key")
def test_the_references_key_is_shown(settings, endpoint_of, stub):
    stub.key = "secret"
    with pytest.raises(EngineError, match=r"refuses the API key: set reference\.api_key"):
        endpoint_of({})
    endpoint_of({"reference.api_key": "secret"}).score(made_groups())


@effect("reference.request_timeout")
def test_a_reference_that_is_silent_is_given_up(settings, endpoint_of, stub):
    assert endpoint_of({}).client.timeout == 120
    stub.generate = "hang"
    with pytest.raises(EngineError, match="left 6 of 6 completions without log-probs after 0 retries"):
        endpoint_of({"reference.request_timeout": 1.0}).score(made_groups())


@effect("reference.retries")
def test_what_a_reference_left_unscored_is_asked_again(settings, endpoint_of, stub):
    # Each attempt scores one completion before the stream breaks.
    stub.generate = "break"
    with pytest.raises(EngineError, match="left 5 of 6 completions without log-probs after 0 retries"):
        endpoint_of({}).score(made_groups())
    with pytest.raises(EngineError, match="left 4 of 6 completions without log-probs after 1 retries"):
        endpoint_of({"reference.retries": 1}).score(made_groups())


def test_a_stream_that_breaks_after_its_last_result_has_scored_all(endpoint_of, stub):
    stub.generate = "break"
    groups = made_groups()[:1]
    groups[0].completions = groups[0].completions[:1]
    endpoint_of({}).score(groups)
    assert groups[0].completions[0].segments[0].ref_logprobs == [-1.0] * LENGTHS[0][0]


@effect("reference.concurrency")
def test_so_many_completions_are_with_the_reference_at_a_time(settings, endpoint_of, stub):
    for concurrency, requests in ((64, 1), (2, 3)):
        stub.streams = 0
        endpoint_of({"reference.concurrency": concurrency}).score(made_groups())
        assert stub.streams == requests
