"""The plain environment: one prompt, one answer."""

from __future__ import annotations

from shoal.engines.base import EngineOutput, SamplingParams
from shoal.rollout.environment import Environment, Item, Model
from shoal.types import Completion, Segment


class SingleTurnEnvironment(Environment):
    """The prompt as it is, and what the model writes after it.

    `Rollouts` asks the engine of this process for all completions of its items at once, without a task for each; what
    comes out is the same.
    """

    async def rollout(self, item: Item, index: int, model: Model, sampling: SamplingParams) -> Completion:
        output = await model.sample(item.prompt.token_ids, self.seed(item, index), sampling, group=item.key)
        return self.completion(item, output)

    def completion(self, item: Item, output: EngineOutput) -> Completion:
        """The completion that an engine's output is. Its text is decoded for reading only."""
        segment = Segment(
            context_ids=item.prompt.token_ids,
            sampled_ids=output.token_ids,
            logprobs=output.logprobs,
            mask=[True] * len(output.token_ids),
        )
        return Completion(
            segments=[segment],
            stop_reason=output.stop_reason,
            text=self.decode(output.token_ids),
            versions=output.versions,
            info={"error": output.error} if output.error else {},
        )
