"""What stands around a question: system prompt, instructions, template."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from shoal.errors import DataError
from shoal.models.chat import Framing, read_framing, render
from shoal.models.templates import TEMPLATES

ASKED = [{"role": "user", "content": "2+3?"}]
OLD = [{"role": "system", "content": "Old."}, *ASKED]
TALK = [*ASKED, {"role": "assistant", "content": "5"}, {"role": "user", "content": "And 4?"}]


def test_the_system_prompt_comes_first_and_replaces_the_rows_own() -> None:
    for messages in (ASKED, OLD):
        assert Framing("New.").around(messages) == [{"role": "system", "content": "New."}, *ASKED]
    assert Framing().around(OLD) == OLD


def test_instructions_follow_the_last_question() -> None:
    framed = Framing(instructions="Only the number.").around(TALK)
    assert [message["content"] for message in framed] == ["2+3?", "5", "And 4?\n\nOnly the number."]
    assert TALK[-1]["content"] == "And 4?"  # the row stays as it was


def test_a_system_prompt_may_stand_in_a_file(tmp_path: Path) -> None:
    text = tmp_path / "prompt.txt"
    text.write_text("Think.\nThen answer.\n")
    assert read_framing(str(text), None) == Framing("Think.\nThen answer.")
    both = tmp_path / "prompt.yaml"
    both.write_text("system_prompt: Think.\nadditional_instructions: Only the number.\n")
    assert read_framing(str(both), None) == Framing("Think.", "Only the number.")
    assert read_framing(str(both), "In words.") == Framing("Think.", "In words.")


@pytest.mark.parametrize("text", ["Think.", "Answer in prompt.txt", "You are Ada.", None])
def test_a_text_is_no_file(text: str | None) -> None:
    assert read_framing(text, "Short.") == Framing(text, "Short.")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "No such file"),
        ("broken.yaml", "a: [", "data.system_prompt="),
        ("other.yaml", "prompt: Think.", "must hold a text under system_prompt"),
        ("number.yaml", "system_prompt: 3", "must hold a text under system_prompt"),
        ("empty.txt", "", "must hold a text under system_prompt"),
    ],
)
def test_a_file_without_a_system_prompt_is_one_line(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_framing(str(path), None)
    assert message in str(caught.value) and "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain", "Old.\n\n2+3?\n\n"),
        ("dialogue", "Old.\n\nUser: 2+3?\n\nAssistant:"),
        ("chatml", "<|im_start|>system\nOld.<|im_end|>\n<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_templates_by_name_render_as_they_say(name: str, text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    assert tokenizer.decode(render([OLD], tokenizer, {})[0]) == text
    tokenizer.bos_token = "\x02"
    begins = tokenizer.decode(render([OLD], tokenizer, {})[0]).startswith("\x02")
    assert begins == (name != "chatml")


def test_the_r1_template_asks_for_think_and_answer_blocks(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TEMPLATES["r1"]
    text = tokenizer.decode(render([ASKED], tokenizer, {})[0])
    assert all(tag in text for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    assert text.endswith("User: 2+3?\n\nAssistant:")
