"""A conversation as token ids: what the model wrote stays as it was sampled, what others say is put between.

Tool outputs and user turns are rendered by the chat template and tokenised; the model's own tokens never are, where
they are trained on. Most templates show later turns everything that came before: the conversation is one growing
segment, in which the others' tokens are masked. Some drop earlier thinking: then a later turn is a segment of its own,
whose context is what the template makes of the conversation so far.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from logging import getLogger

from shoal.engines.base import EngineOutput
from shoal.types import Completion, Message, Prompt, Segment, StopReason

logger = getLogger(__name__)

Render = Callable[[Sequence[Message], bool], str]
"""Messages, and whether the model is to speak next, to text."""
Encode = Callable[[str], list[int]]
Decode = Callable[[list[int]], str]

PLACEHOLDER = "@@shoal-answer@@"  # nothing that a message holds


class Conversation:
    """One completion in the making.

    `render` is the chat template, `encode` tokenises without adding special tokens, `decode` gives text without special
    tokens. `context` is what the model has to be asked with next.
    """

    def __init__(self, prompt: Prompt, render: Render, encode: Encode, decode: Decode) -> None:
        self.render, self.encode, self.decode = render, encode, decode
        self.asked: list[Message] = list(prompt.messages)
        self.messages: list[Message] = list(prompt.messages)
        self.segments = [Segment(list(prompt.token_ids), [], [], [])]
        self.texts: list[str] = []
        self.versions: list[tuple[int, int]] = []
        self.stop_reason = StopReason.STOP

    @property
    def context(self) -> list[int]:
        """The ids to sample after."""
        return self.segments[-1].context_ids + self.segments[-1].sampled_ids

    @property
    def num_tokens(self) -> int:
        """Sampled tokens and those put between."""
        return sum(len(segment.sampled_ids) for segment in self.segments)

    def add_turn(self, output: EngineOutput) -> str:
        """Takes what the model wrote; gives its text."""
        start = self.num_tokens
        segment = self.segments[-1]
        segment.sampled_ids += output.token_ids
        segment.logprobs += output.logprobs
        segment.mask += [True] * len(output.token_ids)
        self.versions += [(start + first, version) for first, version in output.versions]
        self.stop_reason = output.stop_reason
        text = self.decode(output.token_ids)
        self.texts.append(text)
        self.messages.append({"role": "assistant", "content": text})
        return text

    def add_messages(self, messages: Sequence[Message], most: int | None = None) -> bool:
        """Puts others' messages after the model's turn, so that it is to speak next.

        Where they would leave no token for that turn within `most` of the whole completion, they are left out, the
        completion ends by its length, and the answer is False: nothing that comes after could be trained on.
        """
        whole = self.render([*self.messages, *messages], True)
        is_kept = self._keeps_everything(whole)
        between = self._between(messages) if is_kept else []
        if most is not None and self.num_tokens + len(between) >= most:
            self.stop_reason = StopReason.LENGTH
            return False
        self.messages += messages
        if not is_kept:
            self.segments.append(Segment(self.encode(whole), [], [], []))
            return True
        segment = self.segments[-1]
        segment.sampled_ids += between
        segment.logprobs += [0.0] * len(between)
        segment.mask += [False] * len(between)
        return True

    def completion(self) -> Completion:
        """The finished completion; its text is every turn of the model's, one after another."""
        return Completion(
            segments=[segment for segment in self.segments if any(segment.mask)] or self.segments[:1],
            stop_reason=self.stop_reason,
            text="\n".join(self.texts),
            versions=self.versions,
            info={"messages": self.messages},
        )

    def _keeps_everything(self, whole: str) -> bool:
        """Whether the template shows all that the model wrote, but for white space."""
        shown = _squeezed(whole)
        return all(_squeezed(text) in shown for text in self.texts)

    def _between(self, messages: Sequence[Message]) -> list[int]:
        """The ids from the end of the model's turn to the beginning of its next.

        The template's text after a turn begins with the end of the turn itself, which the model may have written, as
        its last token, or not (where it was cut off): what it wrote is not put there again.
        """
        answer: Message = {"role": "assistant", "content": PLACEHOLDER}
        text = self.render([*self.asked, answer, *messages], True)
        ids = self.encode(text[text.rindex(PLACEHOLDER) + len(PLACEHOLDER) :])
        written = self.segments[-1].sampled_ids
        overlap = next(size for size in range(len(ids), -1, -1) if written[len(written) - size :] == ids[:size])
        return ids[overlap:]


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)
