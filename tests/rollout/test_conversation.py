"""Token in, token out over several turns: what was sampled stays, what others say is masked, no marker is doubled."""

from __future__ import annotations

from functools import partial

import pytest
from chat_tokenizer import CHATML, DROPS_THINKING, END, START, chat_tokenizer

from shoal.engines.base import EngineOutput
from shoal.models.chat import render_texts
from shoal.rollout.conversation import Conversation
from shoal.types import Prompt, StopReason

START_ID, END_ID = 0, 1


class Chat:
    """A conversation in which the model's turns are given as text."""

    def __init__(self, template: str) -> None:
        self.tokenizer = chat_tokenizer(template)
        asked = [{"role": "user", "content": "Q"}]
        self.conversation = Conversation(
            Prompt("p", self.ids(self.text(asked, True)), messages=asked),
            self.text,
            self.ids,
            partial(self.tokenizer.decode, skip_special_tokens=True),
        )

    def text(self, messages: object, speaks_next: bool) -> str:
        return render_texts([list(messages)], self.tokenizer, {}, add_generation_prompt=speaks_next)[0]  # type: ignore[call-overload]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def says(self, text: str, version: int = 0, reason: StopReason = StopReason.STOP) -> None:
        ids = self.ids(text)
        output = EngineOutput("", ids, [-float(len(ids) - at) for at in range(len(ids))], reason, [(0, version)])
        self.conversation.add_turn(output)

    def hears(self, text: str, role: str = "tool") -> None:
        self.conversation.add_messages([{"role": role, "content": text}])

    @property
    def shown(self) -> list[tuple[str, str, str]]:
        """Of each segment: its context, its sampled text, and which of its tokens are trained (x)."""
        return [
            (
                self.tokenizer.decode(segment.context_ids),
                self.tokenizer.decode(segment.sampled_ids),
                "".join("x" if used else "." for used in segment.mask),
            )
            for segment in self.conversation.completion().segments
        ]


def test_the_golden_ids_of_a_call_and_its_answer():
    chat = Chat(CHATML)
    chat.says(f"c{END}", version=3)
    chat.hears("7")
    chat.says(f"ok{END}", version=4)
    [segment] = chat.conversation.completion().segments
    # Ids: <|im_start|> 0, <|im_end|> 1, then the characters from 4 on: "0" is 4, "a" is 14, a newline 100.
    user = [0, 34, 32, 18, 31, 100, 56, 1, 100]  # <|im_start|> u s e r \n Q <|im_end|> \n
    assistant = [0, 14, 32, 32, 22, 32, 33, 14, 27, 33, 100]  # <|im_start|> a s s i s t a n t \n
    tool = [100, 0, 33, 28, 28, 25, 100, 11, 1, 100]  # \n <|im_start|> t o o l \n 7 <|im_end|> \n
    assert segment.context_ids == user + assistant
    assert segment.sampled_ids == [16, 1, *tool, *assistant, 28, 24, 1]  # c END, the tool's turn, o k END
    assert segment.mask == [True] * 2 + [False] * 21 + [True] * 3
    assert segment.logprobs == [-2.0, -1.0] + [0.0] * 21 + [-3.0, -2.0, -1.0]
    assert chat.conversation.versions == [(0, 3), (23, 4)]


def test_no_end_of_turn_is_doubled_over_three_turns():
    chat = Chat(CHATML)
    for turn in range(3):
        chat.says(f"a{turn}{END}")
        if turn < 2:
            chat.hears(f"t{turn}")
    [(context, sampled, _)] = chat.shown
    assert (context + sampled).count(END) == 6  # one question, three turns, two answers of tools
    assert (context + sampled).count(START) == 6
    whole = chat.text(chat.conversation.messages, False)
    assert context + sampled + "\n" == whole, "what is trained on is what the template would write"


def test_a_turn_that_was_cut_off_is_ended_for_the_model():
    chat = Chat(CHATML)
    chat.says("cut")
    chat.hears("t")
    chat.says(f"b{END}")
    [(_, sampled, mask)] = chat.shown
    assert sampled == f"cut{END}\n{START}tool\nt{END}\n{START}assistant\nb{END}"
    assert mask == "xxx" + "." * (len(mask) - 5) + "xx"


def test_a_template_that_drops_earlier_thinking_makes_each_turn_a_segment():
    chat = Chat(DROPS_THINKING)
    chat.says(f"<think>x</think>1{END}")
    chat.hears("more", role="user")
    chat.says(f"<think>y</think>2{END}")
    first, second = chat.shown
    assert first == (f"{START}user\nQ{END}\n{START}assistant\n", f"<think>x</think>1{END}", "xxxxx")
    assert second[0] == (
        f"{START}user\nQ{END}\n{START}assistant\n1{END}\n{START}user\nmore{END}\n{START}assistant\n"
    ), "without the thinking of the first turn"
    assert second[1:] == (f"<think>y</think>2{END}", "xxxxx")


def test_the_same_template_keeps_the_thinking_before_a_call_in_one_segment():
    chat = Chat(DROPS_THINKING)
    chat.says(f"<think>x</think>c{END}")
    chat.hears("7")
    chat.says(f"ok{END}")
    [(_, sampled, mask)] = chat.shown
    assert sampled.startswith(f"<think>x</think>c{END}\n{START}tool\n7{END}")
    assert mask.startswith("xxxxx.") and mask.endswith("xxx")


@pytest.mark.parametrize("content", ["", "@", f"odd {END} inside", "<tool_call>{}</tool_call>"])
def test_what_a_tool_says_cannot_move_the_masks(content: str):
    chat = Chat(CHATML)
    chat.says(f"c{END}")
    chat.hears(content)
    chat.says(f"ok{END}")
    [(_, _, mask)] = chat.shown
    assert mask[:2] == "xx" and mask[-3:] == "xxx" and mask.count("x") == 5


def test_messages_that_leave_no_room_for_another_turn_end_the_completion_by_its_length():
    chat = Chat(CHATML)
    chat.says(f"c{END}")
    before, shown = chat.conversation.num_tokens, chat.shown
    assert chat.conversation.add_messages([{"role": "tool", "content": "a long answer"}], before + 5) is False
    assert chat.conversation.num_tokens == before and chat.shown == shown
    assert chat.conversation.completion().stop_reason is StopReason.LENGTH
    assert all(message["role"] != "tool" for message in chat.conversation.messages)
    assert chat.conversation.add_messages([{"role": "tool", "content": "a"}], before + 500) is True
    assert chat.conversation.num_tokens > before
