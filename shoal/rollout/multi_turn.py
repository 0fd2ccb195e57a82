"""Environments of several turns: after each the environment says something, or ends the conversation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from shoal.engines.base import SamplingParams
from shoal.models.chat import render_texts
from shoal.rollout.conversation import Conversation
from shoal.rollout.environment import Environment, Item, Model
from shoal.types import Completion, Message, StopReason


class MultiTurnEnvironment(Environment):
    """Conversations; `reply` makes the turns between.

    `sampling.max_new_tokens` bounds the whole completion, others' tokens included; `environment.max_turns` the model's
    turns: a conversation that would have gone on ends by StopReason.TURNS. Verifiers see the text of all turns.
    """

    @abstractmethod
    async def reply(self, item: Item, text: str, info: dict[str, Any]) -> Sequence[Message]:
        """What follows the model's turn: messages, or none at the end. `info` is the completion's, to be added to."""

    async def rollout(self, item: Item, index: int, model: Model, sampling: SamplingParams) -> Completion:
        conversation = Conversation(item.prompt, self.render, self.encode, self.decode)
        info: dict[str, Any] = {}
        for turn in range(self.cfg.environment.max_turns):
            left = sampling.max_new_tokens - conversation.num_tokens
            seed, turn_sampling = self.seed(item, index, turn), replace(sampling, max_new_tokens=left)
            output = await model.sample(conversation.context, seed, turn_sampling, group=item.key)
            text = conversation.add_turn(output)
            if output.stop_reason is not StopReason.STOP:
                break
            messages = await self.reply(item, text, info)
            if not messages:
                break
            if turn + 1 == self.cfg.environment.max_turns:
                conversation.stop_reason = StopReason.TURNS
                break
            if not conversation.add_messages(messages, sampling.max_new_tokens):
                break
        completion = conversation.completion()
        completion.info |= info
        return completion

    def render(self, messages: Sequence[Message], speaks_next: bool) -> str:
        """The chat template's text."""
        kwargs = self.template_kwargs
        [text] = render_texts([list(messages)], self.tokenizer, kwargs, add_generation_prompt=speaks_next)
        return text

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of a conversation: the template has written the special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
