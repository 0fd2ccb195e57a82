"""The plain environment: one prompt, one answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shoal.engines.base import Engine, EngineOutput, Request, SamplingParams
from shoal.engines.seeds import sampling_seed
from shoal.types import Completion, Group, Prompt, Segment

Decode = Callable[[list[int]], str]


def roll_out(
    engine: Engine,
    prompts: Sequence[tuple[Prompt, int]],
    *,
    group_size: int,
    sampling: SamplingParams,
    seed: int,
    decode: Decode,
    finished: Callable[[EngineOutput], None] | None = None,
) -> list[Group]:
    """Samples `group_size` completions of every (prompt, epoch); groups come back whole, in the prompts' order.

    `finished` is called with each output as it comes.
    """
    requests = [
        Request(
            id=f"{prompt.id}/{epoch}/{index}",
            prompt_ids=tuple(prompt.token_ids),
            seed=sampling_seed(seed, prompt.id, epoch, index, 0),
            sampling=sampling,
            group=f"{prompt.id}/{epoch}",
        )
        for prompt, epoch in prompts
        for index in range(group_size)
    ]
    outputs = engine.generate(requests, finished)
    groups = []
    for position, (prompt, epoch) in enumerate(prompts):
        members = outputs[position * group_size : (position + 1) * group_size]
        completions = [to_completion(prompt, output, decode) for output in members]
        groups.append(Group(id=prompt.id, completions=completions, prompt=prompt, epoch=epoch))
    return groups


def to_completion(prompt: Prompt, output: EngineOutput, decode: Decode) -> Completion:
    """The completion that an engine's output is. Its text is decoded for reading only."""
    segment = Segment(
        context_ids=prompt.token_ids,
        sampled_ids=output.token_ids,
        logprobs=output.logprobs,
        mask=[True] * len(output.token_ids),
    )
    return Completion(
        segments=[segment],
        stop_reason=output.stop_reason,
        text=decode(output.token_ids),
        versions=output.versions,
        info={"error": output.error} if output.error else {},
    )
