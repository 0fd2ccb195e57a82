"""From messages to token ids: system prompt, instructions, and the tokenizer's chat template where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from yaml import YAMLError, safe_load

from shoal.errors import DataError
from shoal.types import Message

TEXT_FILES, YAML_FILES = (".txt",), (".yaml", ".yml")
SYSTEM, INSTRUCTIONS = "system_prompt", ("instructions", "additional_instructions")


@dataclass(frozen=True)
class Framing:
    """What stands around every question: a system message, and a text after the last user message."""

    system_prompt: str | None = None
    instructions: str | None = None

    def around(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with both; the system prompt takes the place of a row's own."""
        framed = [dict(message) for message in messages]
        if self.instructions:
            last = next(message for message in reversed(framed) if message["role"] == "user")
            last["content"] = f"{last['content']}\n\n{self.instructions}"
        if not self.system_prompt:
            return framed
        others = framed[1:] if framed[0]["role"] == "system" else framed
        return [{"role": "system", "content": self.system_prompt}, *others]


def read_framing(system_prompt: str | None, instructions: str | None) -> Framing:
    """From the configuration: `system_prompt` is a text, or the name of a file with it.

    A .yaml file has `system_prompt`, and may have `instructions` (or `additional_instructions`), which the key
    data.instructions wins over.

    Raises:
        DataError: the file is missing, or does not hold that.
    """
    suffix = Path(system_prompt).suffix if system_prompt and len(system_prompt.split()) == 1 else ""
    if not system_prompt or suffix not in (*TEXT_FILES, *YAML_FILES):
        return Framing(system_prompt, instructions)
    try:
        text = Path(system_prompt).expanduser().read_text(encoding="utf-8").strip()
        values = safe_load(text) if suffix in YAML_FILES else {SYSTEM: text}
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise DataError(f"data.system_prompt={system_prompt}: {' '.join(str(error).split())}") from error
    known = isinstance(values, dict) and set(values) <= {SYSTEM, *INSTRUCTIONS}
    if not known or not values.get(SYSTEM) or not all(isinstance(value, str) for value in values.values()):
        raise DataError(
            f"data.system_prompt={system_prompt}: the file must hold a text under {SYSTEM}, and may under "
            f"{' or '.join(INSTRUCTIONS)}"
        )
    own = next((values[name].strip() for name in INSTRUCTIONS if name in values), None)
    return Framing(values[SYSTEM].strip(), instructions or own)


def render(
    conversations: Sequence[list[Message]], tokenizer: PreTrainedTokenizerBase, template_kwargs: dict[str, Any]
) -> list[list[int]]:
    """Token ids of each conversation, ready for the model to answer.

    With a chat template the special tokens are the template's; without one the contents are joined by empty lines
    and the tokenizer adds its own.

    Raises:
        DataError: the chat template cannot render the messages.
    """
    if not conversations:
        return []
    texts = render_texts(conversations, tokenizer, template_kwargs, add_generation_prompt=True)
    return tokenizer(texts, add_special_tokens=not tokenizer.chat_template)["input_ids"]


def render_texts(
    conversations: Sequence[list[Message]],
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: dict[str, Any],
    *,
    add_generation_prompt: bool,
) -> list[str]:
    """The same as text, with special tokens where the template writes them.

    Raises:
        DataError: the chat template cannot render the messages.
    """
    template = tokenizer.chat_template or ""
    if "tool_calls" not in str(template) and any(turn.get("tool_calls") for turns in conversations for turn in turns):
        raise DataError(
            "messages have tool_calls, which the chat template does not read, so that they would be left out: set "
            "model.chat_template to one that does"
        )
    if not template:
        return ["\n\n".join(message["content"] for message in messages) for messages in conversations]
    kwargs = {**template_kwargs, "tokenize": False, "add_generation_prompt": add_generation_prompt}
    try:
        return [str(tokenizer.apply_chat_template(messages, **kwargs)) for messages in conversations]
    except TemplateError as error:
        raise DataError(
            f"the chat template cannot render the messages ({error}); see model.chat_template, "
            "model.chat_template_kwargs and data.system_prompt"
        ) from error
