"""Invariants 1 and 7 in the plain environment: ids are kept, and seeds depend on names alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from shoal.config import ShoalConfig
from shoal.engines.base import Engine, EngineOutput, Request, SamplingParams
from shoal.engines.builtin.engine import TorchEngine
from shoal.engines.seeds import sampling_seed
from shoal.rollout.engine_model import EngineModel
from shoal.rollout.environment import Item
from shoal.rollout.rollouts import Rollouts
from shoal.rollout.single_turn import SingleTurnEnvironment
from shoal.tasks.story import story_tokenizer
from shoal.tasks.warm_start import Recipe, architecture
from shoal.types import Group, Prompt, Segment, StopReason

QUESTIONS = {
    "a": "Dee has 16 cats drops 3 eats 3 How many?",
    "b": "Ada has 2 bags finds 1 How many?",
    "c": "Joe has 9 hats gives 2 buys 6 loses 1 How many?",
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return story_tokenizer()


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerFast) -> list[Prompt]:
    return [Prompt(name, tokenizer(question)["input_ids"]) for name, question in QUESTIONS.items()]


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        recipe = Recipe(layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=64)
        return Qwen3ForCausalLM(architecture(recipe, tokenizer)).eval()


def sample(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[tuple[Prompt, int]],
    *,
    max_batch: int = 64,
    group_size: int = 3,
    seed: int = 0,
) -> list[Group]:
    engine = TorchEngine(model, tokenizer, max_batch=max_batch)
    engine.refresh(7)
    rollouts = Rollouts(environment(tokenizer, seed), EngineModel(engine))
    items = [Item(prompt, epoch) for prompt, epoch in prompts]
    try:
        return rollouts.sample(items, size=group_size, sampling=SamplingParams(max_new_tokens=20))
    finally:
        rollouts.close()


def environment(tokenizer: Any, seed: int = 0) -> SingleTurnEnvironment:
    cfg = ShoalConfig()
    cfg.run.seed = seed
    return SingleTurnEnvironment(cfg, tokenizer, lambda ids: tokenizer.decode(ids, skip_special_tokens=True))


def sampled(groups: Sequence[Group]) -> dict[tuple[str, int], list[list[int]]]:
    return {(group.id, group.epoch): [one.segments[0].sampled_ids for one in group.completions] for group in groups}


def test_completions_depend_neither_on_the_order_of_prompts_nor_on_what_they_are_batched_with(
    model: Any, tokenizer: PreTrainedTokenizerFast, prompts: list[Prompt]
):
    drawn = [(prompt, 2) for prompt in prompts]
    together = sample(model, tokenizer, drawn)
    expected = sampled(together)
    assert sampled(sample(model, tokenizer, drawn[::-1])) == expected
    assert sampled(sample(model, tokenizer, drawn, max_batch=2)) == expected
    alone = [group for one in drawn for group in sample(model, tokenizer, [one])]
    assert sampled(alone) == expected
    for group, other in zip(together, alone, strict=True):
        for mine, theirs in zip(group.completions, other.completions, strict=True):
            assert mine.segments[0].logprobs == pytest.approx(theirs.segments[0].logprobs, abs=1e-5)


def test_the_first_completions_of_a_larger_group_are_those_of_a_smaller_one(
    model: Any, tokenizer: PreTrainedTokenizerFast, prompts: list[Prompt]
):
    small, large = (sampled(sample(model, tokenizer, [(prompts[0], 0)], group_size=size)) for size in (2, 5))
    assert large["a", 0][:2] == small["a", 0]


def test_samples_differ_between_members_epochs_and_seeds(
    model: Any, tokenizer: PreTrainedTokenizerFast, prompts: list[Prompt]
):
    found = [
        tuple(ids)
        for epoch, seed in ((0, 0), (1, 0), (0, 1))
        for ids in sampled(sample(model, tokenizer, [(prompts[0], epoch)], seed=seed))["a", epoch]
    ]
    assert len(set(found)) == 9


class Listening(Engine):
    """Writes down what it is asked for, and answers one token."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.given = 0

    @property
    def max_length(self) -> int:
        return 100

    def submit(self, requests: Sequence[Request]) -> None:
        self.requests += requests

    @property
    def in_flight(self) -> int:
        return len(self.requests) - self.given

    def poll(self, timeout: float) -> list[EngineOutput]:
        finished = self.requests[self.given :]
        self.given = len(self.requests)
        # As they finish, which is in any order.
        return [EngineOutput(one.id, [one.seed % 100], [-0.5], StopReason.STOP) for one in reversed(finished)]

    def abort(self, ids: Sequence[str]) -> None:
        raise NotImplementedError

    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        raise NotImplementedError


def test_seeds_are_made_from_run_prompt_epoch_and_member_and_groups_come_back_in_order(prompts: list[Prompt]):
    engine, sampling = Listening(), SamplingParams(max_new_tokens=1)
    drawn = [(prompts[1], 0), (prompts[0], 0), (prompts[1], 1)]
    made = environment(None, seed=11)
    made.decode = str
    rollouts = Rollouts(made, EngineModel(engine))
    groups = rollouts.sample([Item(prompt, epoch) for prompt, epoch in drawn], size=2, sampling=sampling)
    rollouts.close()
    wanted = [sampling_seed(11, prompt.id, epoch, index, 0) for prompt, epoch in drawn for index in range(2)]
    assert [request.seed for request in engine.requests] == wanted
    assert len(set(wanted)) == 6
    assert [(group.id, group.epoch, group.prompt) for group in groups] == [(p.id, epoch, p) for p, epoch in drawn]
    found = [one.segments[0].sampled_ids for group in groups for one in group.completions]
    assert found == [[seed % 100] for seed in wanted]


def test_ids_are_kept_as_they_were_sampled_and_the_text_is_only_read(
    model: Any, tokenizer: PreTrainedTokenizerFast, prompts: list[Prompt]
):
    ended = 0
    for group in sample(model, tokenizer, [(prompt, 0) for prompt in prompts], group_size=20):
        for completion in group.completions:
            [segment] = completion.segments
            assert segment.context_ids == group.prompt.token_ids
            assert len(segment.sampled_ids) == len(segment.logprobs) == len(segment.mask)
            assert all(segment.mask)
            assert completion.versions == [(0, 7)]
            if completion.stop_reason == StopReason.STOP:
                ended += 1
                assert segment.sampled_ids[-1] == tokenizer.eos_token_id
                assert tokenizer.eos_token not in completion.text
                assert tokenizer(completion.text)["input_ids"] != segment.sampled_ids
    assert ended > 3


def test_what_failed_in_the_engine_stands_in_the_completion():
    prompt = Prompt("p", [1, 2])
    output = EngineOutput("p/0/0", [3], [-1.0], StopReason.ERROR, [(0, 4)], error="the worker is gone")
    made = environment(None)
    made.decode = str
    completion = made.completion(Item(prompt), output)
    assert completion.info == {"error": "the worker is gone"}
    assert completion.stop_reason == StopReason.ERROR
    assert completion.versions == [(0, 4)]
